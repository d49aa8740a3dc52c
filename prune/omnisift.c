/* prune/omnisift.c - OmniSIFT, chunk by chunk before the decoder: of a pair of grid steps what is unlike its mean in the first and
 * what changed in the second; audio by a small trained network that asks the kept film (omnisift), or by the encoder's saliency
 * (omnisift-lite). Source: arXiv 2602.04804 and its code; docs/pruning-methods.md 1. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { RHO_V, RHO_A };
static const struct prune_param PARAMS[] = {
    [RHO_V] = { "rho_v", NULL, PARAM_NUMBER, 0, 1, 0.67, "share removed of each grid step", NULL },
    [RHO_A] = { "rho_a", NULL, PARAM_NUMBER, 0, 1, 0.4, "share removed of each chunk's audio", NULL },
};

static uint32_t left(double rho, uint32_t n)
{
    return n - prune_floor(rho * (double)n);
}

/* Audio kept of a chunk with n_audio and so many kept film tokens; the network asks nobody where there is no film. */
static uint32_t audio_kept(const struct policy_params *p, uint32_t n_audio, uint32_t n_video)
{
    if (p->policy == &policy_omnisift && (n_video == 0 || n_audio <= 1)) return n_audio;
    return left(p->value[RHO_A], n_audio);
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_chunks; i++) {
        const uint32_t video = s->chunk[i].n_steps * left(p->value[RHO_V], s->chunk[i].step_tokens);
        n += video + audio_kept(p, s->chunk[i].n_audio, video);
    }
    prune_plan_entry(out, n == 0 && out->n_orig ? 1 : n);
    out->needs = PRUNE_NEEDS_EMBEDDINGS |
                 (p->policy == &policy_omnisift ? PRUNE_NEEDS_WEIGHTS : (uint32_t)PRUNE_NEEDS_AUDIO_SALIENCY);
    return OK;
}

/* ---- film ------------------------------------------------------------------------------------------------- */

/* Cosine of every vision token, in the order of the list, to what its step is judged by: of even places in a chunk the step's
 * own mean, of odd ones the same place one step before. */
static status likeness(struct choice *c, float *cos, struct err *e)
{
    const struct av_groups *g = &c->g;
    status st = choose_step_likeness(c, cos, e);
    for (uint32_t k = 0; k < g->n_chunks; k++)
        for (uint32_t t = 1; t < g->chunk[k].n_steps && st == OK; t += 2) {
            const struct av_step *y = &g->step[g->chunk[k].step + t], *x = y - 1;
            st = choose_cosine(c, c->v->vision, g->vision_row + y->first, NULL, g->vision_row + x->first,
                               y->n, cos + y->first, e);
        }
    return st;
}

static status film(struct choice *c, struct err *e)
{
    const struct av_groups *g = &c->g;
    float *cos;
    if (g->n_vision == 0) return OK;
    TRY(mem_alloc(&cos, g->n_vision, sizeof *cos, e));
    status st = likeness(c, cos, e);
    for (uint32_t s = 0; s < g->n_steps && st == OK; s++) {
        const struct av_step *step = &g->step[s];
        for (uint32_t i = 0; i < step->n; i++) c->score[i] = -cos[step->first + i];
        st = choose_best(c, g->vision + step->first, step->n, left(c->r->params->value[RHO_V], step->n), e);
    }
    free(cos);
    return st;
}

/* ---- the trained selector --------------------------------------------------------------------------------- */

#define HEADS 8

enum { V_PROJ, A_PROJ, IN_Q, IN_K, IN_V, OUT_PROJ, HEAD_0, HEAD_2, N_WEIGHTS };
enum { V_NORM, A_NORM, POST_NORM, N_NORMS };

struct selector {
    struct choice *c;
    uint32_t width, hidden, d;
    struct weight *weight[N_WEIGHTS];
    const float *scale[N_NORMS], *shift[N_NORMS];
    uint32_t rows;   /* most of a chunk, of audio or of kept film */
    float *in, *out; /* device: [rows, max(d, width, hidden)] */
    void *operand;
    float *a, *v, *q, *k, *val, *o, *h; /* host [rows, width or hidden] */
};

/* *n: 0 takes the tensor's own length. */
static status tensor(const struct prune_embed_view *v, const char *name, size_t *n, const float **out,
                     struct err *e)
{
    for (uint32_t i = 0; i < v->n_tensors; i++) {
        if (strcmp(v->tensor[i].name, name) != 0) continue;
        if (*n && v->tensor[i].n != *n)
            return err_set(e, E_ARG, "omnisift: tensor %s has %zu numbers, expected %zu", name,
                           v->tensor[i].n, *n);
        *n = v->tensor[i].n;
        *out = v->tensor[i].data;
        return OK;
    }
    return err_set(
        e, E_ARG,
        "omnisift: this checkpoint lacks the tensor %s of the trained selector; omnisift-lite needs none",
        name);
}

static status make_weight(struct selector *s, int which, const char *name, const char *bias_name,
                          size_t offset, uint32_t n, uint32_t k, uint32_t parts, struct err *e)
{
    const float *w, *b;
    size_t all = (size_t)parts * n * k, all_b = (size_t)parts * n;
    TRY(tensor(s->c->v, name, &all, &w, e));
    TRY(tensor(s->c->v, bias_name, &all_b, &b, e));
    return s->c->ops->weight_create(s->c->v->st,
                                    &(struct weight_args){ .form = WEIGHT_PLAIN,
                                                           .compute = DT_F32,
                                                           .k = k,
                                                           .n_parts = 1,
                                                           .part = { { .data = w + offset * n * k,
                                                                       .dtype = DT_F32,
                                                                       .n = n,
                                                                       .bias = b + offset * n,
                                                                       .bias_dtype = DT_F32 } } },
                                    &s->weight[which], e);
}

static status load_norm(struct selector *s, int which, const char *scale, const char *shift, struct err *e)
{
    size_t n = s->width;
    TRY(tensor(s->c->v, scale, &n, &s->scale[which], e));
    return tensor(s->c->v, shift, &n, &s->shift[which], e);
}

static status load(struct selector *s, struct err *e)
{
    const float *ignored;
    size_t width = 0, hidden = 0;
    TRY(tensor(s->c->v, "v_proj.bias", &width, &ignored, e));
    TRY(tensor(s->c->v, "score_head.0.bias", &hidden, &ignored, e));
    if (width == 0 || width % HEADS || width > 65536 || hidden == 0 || hidden > 65536)
        return err_set(e, E_ARG, "omnisift: a selector of width %zu and %zu is not one of %d heads", width,
                       hidden, HEADS);
    s->width = (uint32_t)width, s->hidden = (uint32_t)hidden, s->d = s->c->v->d;
    TRY(make_weight(s, V_PROJ, "v_proj.weight", "v_proj.bias", 0, s->width, s->d, 1, e));
    TRY(make_weight(s, A_PROJ, "a_proj.weight", "a_proj.bias", 0, s->width, s->d, 1, e));
    for (uint32_t i = 0; i < 3; i++)
        TRY(make_weight(s, IN_Q + (int)i, "cross_attn.in_proj_weight", "cross_attn.in_proj_bias", i, s->width,
                        s->width, 3, e));
    TRY(make_weight(s, OUT_PROJ, "cross_attn.out_proj.weight", "cross_attn.out_proj.bias", 0, s->width,
                    s->width, 1, e));
    TRY(make_weight(s, HEAD_0, "score_head.0.weight", "score_head.0.bias", 0, s->hidden, s->width, 1, e));
    TRY(make_weight(s, HEAD_2, "score_head.2.weight", "score_head.2.bias", 0, 1, s->hidden, 1, e));
    TRY(load_norm(s, V_NORM, "v_norm.weight", "v_norm.bias", e));
    TRY(load_norm(s, A_NORM, "a_norm.weight", "a_norm.bias", e));
    return load_norm(s, POST_NORM, "post_attn_norm.weight", "post_attn_norm.bias", e);
}

static status make_room(struct selector *s, struct err *e)
{
    struct stream *st = s->c->v->st;
    const struct av_groups *g = &s->c->g;
    uint32_t wide = s->width > s->hidden ? s->width : s->hidden;
    for (uint32_t k = 0; k < g->n_chunks; k++) {
        const struct av_chunk *q = &g->chunk[k];
        uint32_t film_rows = 0;
        for (uint32_t t = 0; t < q->n_steps; t++) film_rows += g->step[q->step + t].n;
        if (q->n_audio > s->rows) s->rows = q->n_audio;
        if (film_rows > s->rows) s->rows = film_rows;
    }
    const size_t n = (size_t)s->rows * wide;
    TRY(mem_alloc(&s->a, 7 * n, sizeof *s->a, e));
    s->v = s->a + n, s->q = s->v + n, s->k = s->q + n, s->val = s->k + n, s->o = s->val + n, s->h = s->o + n;
    if (s->d > wide) wide = s->d;
    TRY(s->c->ops->alloc(st, (size_t)s->rows * wide * sizeof(float), (void **)&s->in, e));
    TRY(s->c->ops->alloc(st, (size_t)s->rows * wide * sizeof(float), (void **)&s->out, e));
    return s->c->ops->alloc(st, s->c->ops->operand_bytes(st, s->rows, wide, DT_F32), &s->operand, e);
}

static void release(struct selector *s)
{
    for (int i = 0; i < N_WEIGHTS; i++)
        if (s->weight[i]) s->c->ops->weight_destroy(s->c->v->st, &s->weight[i]);
    s->c->ops->release(s->c->v->st, s->in);
    s->c->ops->release(s->c->v->st, s->out);
    s->c->ops->release(s->c->v->st, s->operand);
    free(s->a);
}

/* y [n, N] host = the weight times s->in [n, k]. */
static status apply(struct selector *s, int which, uint32_t n, uint32_t k, float *y, struct err *e)
{
    struct stream *st = s->c->v->st;
    const uint32_t N = s->c->ops->weight_shape(s->weight[which]).n;
    struct operand x = { s->operand, n, k, DT_F32 };
    TRY(s->c->ops->pack(st, &(struct pack_args){ .x = s->in, .ldx = k, .rows = n, .k = k, .out = &x }, e));
    TRY(s->c->ops->linear(
        st,
        &(struct linear_args){ .x = &x, .w = s->weight[which], .mode = LINEAR_STORE, .y = s->out, .ldy = N },
        e));
    return s->c->ops->download(st, y, s->out, (size_t)n * N * sizeof *y, e);
}

/* The same of host rows x [n, k]. */
static status apply_host(struct selector *s, int which, const float *x, uint32_t n, uint32_t k, float *y,
                         struct err *e)
{
    TRY(s->c->ops->upload(s->c->v->st, s->in, x, (size_t)n * k * sizeof *x, e));
    return apply(s, which, n, k, y, e);
}

static void layer_norm(const struct selector *s, int which, float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++, x += s->width) {
        double mean = 0, var = 0;
        for (uint32_t k = 0; k < s->width; k++) mean += x[k] / (double)s->width;
        for (uint32_t k = 0; k < s->width; k++) var += (x[k] - mean) * (x[k] - mean) / s->width;
        const double over = 1 / sqrt(var + 1e-5);
        for (uint32_t k = 0; k < s->width; k++)
            x[k] = (float)((x[k] - mean) * over * s->scale[which][k] + s->shift[which][k]);
    }
}

/* o [n_a, width] = attention of q over n_v keys and values, by heads. */
static status attend(struct selector *s, uint32_t n_a, uint32_t n_v, struct err *e)
{
    const uint32_t D = s->width / HEADS;
    double *p;
    TRY(mem_alloc(&p, n_v, sizeof *p, e));
    for (uint32_t i = 0; i < n_a; i++)
        for (uint32_t h = 0; h < HEADS; h++) {
            const float *q = s->q + (size_t)i * s->width + h * D;
            float *o = s->o + (size_t)i * s->width + h * D;
            double most = -INFINITY, sum = 0;
            for (uint32_t j = 0; j < n_v; j++) {
                const float *k = s->k + (size_t)j * s->width + h * D;
                p[j] = 0;
                for (uint32_t x = 0; x < D; x++) p[j] += (double)q[x] * k[x];
                p[j] /= sqrt((double)D);
                most = fmax(most, p[j]);
            }
            for (uint32_t j = 0; j < n_v; j++) sum += p[j] = exp(p[j] - most);
            for (uint32_t x = 0; x < D; x++) {
                double y = 0;
                for (uint32_t j = 0; j < n_v; j++) y += p[j] * s->val[(size_t)j * s->width + h * D + x];
                o[x] = (float)(y / sum);
            }
        }
    free(p);
    return OK;
}

/* Scores of the chunk's audio, before the sigmoid, to c->score. */
static status ask_film(struct selector *s, const struct av_chunk *q, const uint32_t *film_row, uint32_t n_v,
                       struct err *e)
{
    struct choice *c = s->c;
    struct stream *st = c->v->st;
    const uint32_t n_a = q->n_audio, w = s->width;
    TRY(c->ops->gather(
        st, &(struct gather_args){ .x = c->v->vision, .row = film_row, .n = n_v, .d = s->d, .y = s->in }, e));
    TRY(apply(s, V_PROJ, n_v, s->d, s->v, e));
    TRY(c->ops->gather(
        st,
        &(struct gather_args){
            .x = c->v->audio, .row = c->g.audio_row + q->audio, .n = n_a, .d = s->d, .y = s->in },
        e));
    TRY(apply(s, A_PROJ, n_a, s->d, s->a, e));
    layer_norm(s, V_NORM, s->v, n_v);
    layer_norm(s, A_NORM, s->a, n_a);
    TRY(apply_host(s, IN_Q, s->a, n_a, w, s->q, e));
    TRY(apply_host(s, IN_K, s->v, n_v, w, s->k, e));
    TRY(apply_host(s, IN_V, s->v, n_v, w, s->val, e));
    TRY(attend(s, n_a, n_v, e));
    TRY(apply_host(s, OUT_PROJ, s->o, n_a, w, s->q, e));
    for (size_t i = 0; i < (size_t)n_a * w; i++) s->a[i] += s->q[i];
    layer_norm(s, POST_NORM, s->a, n_a);
    TRY(apply_host(s, HEAD_0, s->a, n_a, w, s->h, e));
    for (size_t i = 0; i < (size_t)n_a * s->hidden; i++)
        s->h[i] = (float)(s->h[i] / (1 + exp(-(double)s->h[i])));
    return apply_host(s, HEAD_2, s->h, n_a, s->hidden, c->score, e);
}

static status trained_audio(struct choice *c, struct err *e)
{
    struct selector s = { .c = c };
    const struct av_groups *g = &c->g;
    status st = load(&s, e);
    if (st == OK) st = make_room(&s, e);
    for (uint32_t k = 0; k < g->n_chunks && st == OK; k++) {
        const struct av_chunk *q = &g->chunk[k];
        uint32_t n_v = 0, *row = c->list[0];
        for (uint32_t t = 0; t < q->n_steps; t++)
            for (uint32_t i = 0; i < g->step[q->step + t].n; i++) {
                const uint32_t at = g->step[q->step + t].first + i;
                if (c->keep[g->vision[at]]) row[n_v++] = g->vision_row[at];
            }
        const uint32_t m = audio_kept(c->r->params, q->n_audio, n_v);
        if (m == q->n_audio)
            choose_all(c, g->audio + q->audio, q->n_audio);
        else
            st = ask_film(&s, q, row, n_v, e);
        if (m < q->n_audio && st == OK) st = choose_best(c, g->audio + q->audio, q->n_audio, m, e);
    }
    release(&s);
    return st;
}

/* ---- the choice ------------------------------------------------------------------------------------------- */

static status salient_audio(struct choice *c, struct err *e)
{
    for (uint32_t k = 0; k < c->g.n_chunks; k++) {
        const struct av_chunk *q = &c->g.chunk[k];
        const uint32_t *place = c->g.audio + q->audio;
        choose_saliency(c, place, q->n_audio);
        TRY(choose_best(c, place, q->n_audio, left(c->r->params->value[RHO_A], q->n_audio), e));
    }
    return OK;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    status st = choose_begin(&c, r, v, out, e);
    if (st == OK) st = film(&c, e);
    if (st == OK) st = r->params->policy == &policy_omnisift ? trained_audio(&c, e) : salient_audio(&c, e);
    return choose_end(&c, st, e);
}

const struct policy policy_omnisift_lite = {
    .name = "omnisift-lite",
    .citation = "Ding et al., OmniSIFT, arXiv 2602.04804 (ICML 2026), audio by saliency instead of the "
                "trained selector",
    .help = "Before the decoder, in each chunk: film unlike its mean or changed, and salient audio.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .by_chunk = true,
    .plan = plan,
    .embed = embed
};

const struct policy policy_omnisift = {
    .name = "omnisift",
    .citation = "Ding et al., OmniSIFT, arXiv 2602.04804 (ICML 2026)",
    .help = "As omnisift-lite, audio by the trained selector of a checkpoint that has one.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .by_chunk = true,
    .plan = plan,
    .embed = embed
};
