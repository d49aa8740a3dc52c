/* prune/omnisift.c - OmniSIFT, chunk by chunk before the decoder: of a pair of grid steps what is unlike its mean in the first and
 * what changed in the second; audio by a small trained network that asks the kept film (omnisift), or by the encoder's saliency
 * (omnisift-lite). Source: arXiv 2602.04804 and its code; docs/pruning-methods.md 1. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/range.h"
#include "prune/choose.h"
#include "prune/omnisift.h"
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

enum size { ONE, D, WIDTH, WIDTH_3, HIDDEN };
static const struct {
    const char *name;
    enum size rows, columns; /* columns ONE: a vector */
} LAYOUT[OMNISIFT_TENSORS] = {
    { "v_proj.weight", WIDTH, D },
    { "v_proj.bias", WIDTH, ONE },
    { "a_proj.weight", WIDTH, D },
    { "a_proj.bias", WIDTH, ONE },
    { "v_norm.weight", WIDTH, ONE },
    { "v_norm.bias", WIDTH, ONE },
    { "a_norm.weight", WIDTH, ONE },
    { "a_norm.bias", WIDTH, ONE },
    { "post_attn_norm.weight", WIDTH, ONE },
    { "post_attn_norm.bias", WIDTH, ONE },
    { "cross_attn.in_proj_weight", WIDTH_3, WIDTH },
    { "cross_attn.in_proj_bias", WIDTH_3, ONE },
    { "cross_attn.out_proj.weight", WIDTH, WIDTH },
    { "cross_attn.out_proj.bias", WIDTH, ONE },
    { "score_head.0.weight", HIDDEN, WIDTH },
    { "score_head.0.bias", HIDDEN, ONE },
    { "score_head.2.weight", ONE, HIDDEN },
    { "score_head.2.bias", ONE, ONE },
};

const char *omnisift_name(uint32_t i)
{
    return LAYOUT[i].name;
}

uint32_t omnisift_shape(uint32_t i, const struct omnisift_sizes *s, uint64_t shape[2])
{
    const uint64_t of[] = { [ONE] = 1, [D] = s->d, [WIDTH] = s->width, [WIDTH_3] = 3 * s->width, [HIDDEN] = s->hidden };
    shape[0] = of[LAYOUT[i].rows];
    shape[1] = of[LAYOUT[i].columns];
    return strstr(LAYOUT[i].name, "weight") && strstr(LAYOUT[i].name, "norm") == NULL ? 2 : 1;
}

status omnisift_check(const struct omnisift_sizes *s, struct err *e)
{
    if (s->width == 0 || s->width % OMNISIFT_HEADS || s->width > 65536 || s->hidden == 0 || s->hidden > 65536)
        return err_set(e, E_ARG, "omnisift: a selector of width %llu and %llu is not one of %d heads",
                       (unsigned long long)s->width, (unsigned long long)s->hidden, OMNISIFT_HEADS);
    return OK;
}

enum { V_PROJ, A_PROJ, IN_Q, IN_KV, OUT_PROJ, HEAD_0, HEAD_2, AS_IT_IS, N_WEIGHTS };
enum { V_NORM, A_NORM, POST_NORM, N_NORMS };

/* One operand and one matrix of each kind serve chunk after chunk; all on the device. Pages of K want heads of even width and gated
 * products columns by eights: what a selector has less than that is filled with zeros, which change no sum. */
struct selector {
    struct choice *c;
    uint32_t width, hidden, d;
    uint32_t head, wide_head, inside, wide_hidden; /* width / 8; made even; 8 of those; hidden by eights */
    struct weight *weight[N_WEIGHTS];
    float *norm[N_NORMS];     /* [2 width]: scale, shift */
    uint32_t rows;            /* most of a chunk, of audio or of kept film */
    float *x, *a, *kv;        /* [rows, the widest], [rows, width], [rows, 2 width] */
    void *operand[2], *scratch;
    struct kv_shape pages;
    uint32_t *page, *visible; /* host: [pages of rows], [rows] */
};

/* Tensor `name` of n numbers. */
static status tensor(const struct prune_embed_view *v, const char *name, uint64_t n, const float **out, struct err *e)
{
    for (uint32_t i = 0; i < v->n_tensors; i++) {
        if (strcmp(v->tensor[i].name, name) != 0) continue;
        if (n && v->tensor[i].n != n)
            return err_set(e, E_ARG, "omnisift: tensor %s has %zu numbers, expected %llu", name, v->tensor[i].n,
                           (unsigned long long)n);
        *out = v->tensor[i].data;
        return OK;
    }
    return err_set(
        e, E_ARG,
        "omnisift: this checkpoint lacks the tensor %s of the trained selector; omnisift-lite needs none", name);
}

/* How many numbers tensor `name` has, a vector as long as one side of its matrix. */
static status length(const struct prune_embed_view *v, const char *name, uint64_t *n, struct err *e)
{
    const float *ignored;
    TRY(tensor(v, name, 0, &ignored, e));
    for (uint32_t i = 0; i < v->n_tensors; i++)
        if (strcmp(v->tensor[i].name, name) == 0) *n = v->tensor[i].n;
    return OK;
}

static status make_weight(struct selector *s, int which, const float *w, const float *b, uint32_t n, uint32_t k,
                          struct err *e)
{
    const struct weight_args a = { .form = WEIGHT_PLAIN, .compute = DT_F32, .k = k, .n_parts = 1,
                                   .part = { { .data = w, .dtype = DT_F32, .n = n, .bias = b, .bias_dtype = DT_F32 } } };
    return s->c->ops->weight_create(s->c->v->st, &a, &s->weight[which], e);
}

/* A matrix [n, k] as it is, with its bias. */
static status load_weight(struct selector *s, int which, const char *name, const char *bias_name, uint32_t n, uint32_t k,
                          struct err *e)
{
    const float *w, *b;
    TRY(tensor(s->c->v, name, (uint64_t)n * k, &w, e));
    TRY(tensor(s->c->v, bias_name, n, &b, e));
    return make_weight(s, which, w, b, n, k, e);
}

/* Parts first .. first + n of q, k, v, their heads made wide. */
static status load_heads(struct selector *s, int which, uint32_t first, uint32_t n, struct err *e)
{
    const uint32_t W = s->width, own = s->head, wide = s->wide_head;
    const float *w, *b;
    float *to;
    TRY(tensor(s->c->v, "cross_attn.in_proj_weight", (uint64_t)3 * W * W, &w, e));
    TRY(tensor(s->c->v, "cross_attn.in_proj_bias", 3 * W, &b, e));
    TRY(mem_alloc(&to, (size_t)n * s->inside * (W + 1), sizeof *to, e));
    float *to_b = to + (size_t)n * s->inside * W;
    for (uint32_t h = 0; h < n * OMNISIFT_HEADS; h++) { /* heads of all parts, one after the other */
        const size_t from = (size_t)first * W + (size_t)h * own, at = (size_t)h * wide;
        memcpy(to + at * W, w + from * W, (size_t)own * W * sizeof *to);
        memcpy(to_b + at, b + from, own * sizeof *to);
    }
    const status st = make_weight(s, which, to, to_b, n * s->inside, W, e);
    free(to);
    return st;
}

/* The product that takes the heads together again. */
static status load_out(struct selector *s, struct err *e)
{
    const uint32_t W = s->width;
    const float *w, *b;
    float *to;
    TRY(tensor(s->c->v, "cross_attn.out_proj.weight", (uint64_t)W * W, &w, e));
    TRY(tensor(s->c->v, "cross_attn.out_proj.bias", W, &b, e));
    TRY(mem_alloc(&to, (size_t)W * s->inside, sizeof *to, e));
    for (uint32_t i = 0; i < W; i++)
        for (uint32_t h = 0; h < OMNISIFT_HEADS; h++)
            memcpy(to + (size_t)i * s->inside + h * s->wide_head, w + (size_t)i * W + h * s->head, s->head * sizeof *to);
    const status st = make_weight(s, OUT_PROJ, to, b, W, s->inside, e);
    free(to);
    return st;
}

/* The last product: a row over the hidden columns. */
static status load_last(struct selector *s, struct err *e)
{
    const float *w, *b;
    float *to;
    TRY(tensor(s->c->v, "score_head.2.weight", s->hidden, &w, e));
    TRY(tensor(s->c->v, "score_head.2.bias", 1, &b, e));
    TRY(mem_alloc(&to, s->wide_hidden, sizeof *to, e));
    memcpy(to, w, s->hidden * sizeof *to);
    const status st = make_weight(s, HEAD_2, to, b, 1, s->wide_hidden, e);
    free(to);
    return st;
}

/* SiLU is a gated product whose other side is 1. */
static status make_silu(struct selector *s, struct err *e)
{
    const uint32_t n = s->wide_hidden;
    const size_t size = ((size_t)s->width + 1) * n;
    const float *w, *b;
    float *gate;
    TRY(tensor(s->c->v, "score_head.0.weight", (uint64_t)s->hidden * s->width, &w, e));
    TRY(tensor(s->c->v, "score_head.0.bias", s->hidden, &b, e));
    TRY(mem_alloc(&gate, 2 * size, sizeof *gate, e));
    float *gate_b = gate + (size_t)s->width * n, *other = gate + size, *one = other + (size_t)s->width * n;
    memcpy(gate, w, (size_t)s->hidden * s->width * sizeof *gate);
    memcpy(gate_b, b, s->hidden * sizeof *gate);
    for (uint32_t i = 0; i < n; i++) one[i] = 1;
    const struct weight_args a = { .form = WEIGHT_SWIGLU, .compute = DT_F32, .k = s->width, .n_parts = 2,
                                   .part = { { .data = gate, .dtype = DT_F32, .n = n, .bias = gate_b, .bias_dtype = DT_F32 },
                                             { .data = other, .dtype = DT_F32, .n = n, .bias = one, .bias_dtype = DT_F32 } } };
    const status st = s->c->ops->weight_create(s->c->v->st, &a, &s->weight[HEAD_0], e);
    free(gate);
    return st;
}

/* The product with 1 turns an operand back into rows. */
static status make_identity(struct selector *s, struct err *e)
{
    float *one;
    TRY(mem_alloc(&one, (size_t)s->width * s->width, sizeof *one, e));
    for (uint32_t i = 0; i < s->width; i++) one[(size_t)i * s->width + i] = 1;
    const struct weight_args a = { .form = WEIGHT_PLAIN, .compute = DT_F32, .k = s->width, .n_parts = 1,
                                   .part = { { .data = one, .dtype = DT_F32, .n = s->width } } };
    const status st = s->c->ops->weight_create(s->c->v->st, &a, &s->weight[AS_IT_IS], e);
    free(one);
    return st;
}

static status load_norm(struct selector *s, int which, const char *scale, const char *shift, struct err *e)
{
    const float *w, *b;
    const size_t bytes = s->width * sizeof *w;
    TRY(tensor(s->c->v, scale, s->width, &w, e));
    TRY(tensor(s->c->v, shift, s->width, &b, e));
    TRY(s->c->ops->alloc(s->c->v->st, 2 * bytes, (void **)&s->norm[which], e));
    TRY(s->c->ops->upload(s->c->v->st, s->norm[which], w, bytes, e));
    return s->c->ops->upload(s->c->v->st, s->norm[which] + s->width, b, bytes, e);
}

static status load(struct selector *s, struct err *e)
{
    struct omnisift_sizes z = { .d = s->c->v->d };
    TRY(length(s->c->v, "v_proj.bias", &z.width, e));
    TRY(length(s->c->v, "score_head.0.bias", &z.hidden, e));
    TRY(omnisift_check(&z, e));
    const uint32_t W = s->width = (uint32_t)z.width, d = s->d = s->c->v->d;
    s->hidden = (uint32_t)z.hidden, s->wide_hidden = (s->hidden + 7) / 8 * 8;
    s->head = W / OMNISIFT_HEADS, s->wide_head = s->head + s->head % 2, s->inside = OMNISIFT_HEADS * s->wide_head;
    TRY(load_weight(s, V_PROJ, "v_proj.weight", "v_proj.bias", W, d, e));
    TRY(load_weight(s, A_PROJ, "a_proj.weight", "a_proj.bias", W, d, e));
    TRY(load_heads(s, IN_Q, 0, 1, e));
    TRY(load_heads(s, IN_KV, 1, 2, e));
    TRY(load_out(s, e));
    TRY(make_silu(s, e));
    TRY(load_last(s, e));
    TRY(make_identity(s, e));
    TRY(load_norm(s, V_NORM, "v_norm.weight", "v_norm.bias", e));
    TRY(load_norm(s, A_NORM, "a_norm.weight", "a_norm.bias", e));
    return load_norm(s, POST_NORM, "post_attn_norm.weight", "post_attn_norm.bias", e);
}

static status make_room(struct selector *s, struct err *e)
{
    struct stream *st = s->c->v->st;
    const struct ops *ops = s->c->ops;
    const struct av_groups *g = &s->c->g;
    const uint32_t W = s->inside, D_head = s->wide_head;
    uint32_t wide = s->d > W ? s->d : W;
    if (s->wide_hidden > wide) wide = s->wide_hidden;
    for (uint32_t k = 0; k < g->n_chunks; k++) {
        const struct av_chunk *q = &g->chunk[k];
        uint32_t film_rows = 0;
        for (uint32_t t = 0; t < q->n_steps; t++) film_rows += g->step[q->step + t].n;
        if (q->n_audio > s->rows) s->rows = q->n_audio;
        if (film_rows > s->rows) s->rows = film_rows;
    }
    const uint32_t n_pages = s->rows / ops->page_tokens + 1;
    s->pages = (struct kv_shape){ .G = OMNISIFT_HEADS, .D = D_head, .dtype = DT_F32, .page_tokens = ops->page_tokens,
                                  .page_bytes = ops->page_bytes(st, OMNISIFT_HEADS, D_head, DT_F32) };
    TRY(ops->alloc(st, (size_t)s->rows * wide * sizeof(float), (void **)&s->x, e));
    TRY(ops->alloc(st, (size_t)s->rows * W * sizeof(float), (void **)&s->a, e));
    TRY(ops->alloc(st, (size_t)s->rows * 2 * W * sizeof(float), (void **)&s->kv, e));
    TRY(ops->alloc(st, n_pages * s->pages.page_bytes, &s->pages.base, e));
    for (int i = 0; i < 2; i++) TRY(ops->alloc(st, ops->operand_bytes(st, s->rows, wide, DT_F32), &s->operand[i], e));
    TRY(ops->alloc(st, ops->attention_scratch(st, OMNISIFT_HEADS, D_head, s->rows, s->rows), &s->scratch, e));
    TRY(mem_alloc(&s->page, n_pages, sizeof *s->page, e));
    for (uint32_t i = 0; i < n_pages; i++) s->page[i] = i;
    return mem_alloc(&s->visible, s->rows, sizeof *s->visible, e);
}

/* Of a weight as any device may have it. */
static size_t weight_bytes(uint64_t n, uint64_t k)
{
    return range_bytes((n + 16) * (k + 8) * sizeof(float)) + range_bytes((n + 16) * sizeof(float));
}

size_t omnisift_bytes(const struct stream *st, uint32_t d, const struct prune_tensor *tensor, uint32_t n_tensors, uint32_t rows)
{
    const struct prune_embed_view v = { .tensor = tensor, .n_tensors = n_tensors };
    const struct ops *ops = st->ops;
    uint64_t W, hidden;
    if (length(&v, "v_proj.bias", &W, NULL) != OK || length(&v, "score_head.0.bias", &hidden, NULL) != OK) return 0;
    const uint64_t head = (W / OMNISIFT_HEADS + 1) / 2 * 2, inside = OMNISIFT_HEADS * head, wide_hidden = (hidden + 7) / 8 * 8;
    const uint64_t wide = d > inside ? d > wide_hidden ? d : wide_hidden : inside > wide_hidden ? inside : wide_hidden;
    const size_t weights = 2 * weight_bytes(W, d) + weight_bytes(inside, W) + weight_bytes(2 * inside, W) +
                           weight_bytes(W, inside) + weight_bytes(2 * wide_hidden, W) +
                           weight_bytes(1, wide_hidden) + weight_bytes(W, W) + 3 * range_bytes(2 * W * sizeof(float));
    const size_t pages = (rows / ops->page_tokens + 1) * ops->page_bytes(st, OMNISIFT_HEADS, (uint32_t)head, DT_F32);
    return weights + range_bytes(rows * wide * sizeof(float)) + range_bytes(rows * inside * sizeof(float)) +
           range_bytes(2 * rows * inside * sizeof(float)) + range_bytes(pages) +
           2 * range_bytes(ops->operand_bytes(st, rows, (uint32_t)wide, DT_F32)) +
           range_bytes(ops->attention_scratch(st, OMNISIFT_HEADS, (uint32_t)head, rows, rows));
}

static void release(struct selector *s)
{
    struct stream *st = s->c->v->st;
    const struct ops *ops = s->c->ops;
    for (int i = 0; i < N_WEIGHTS; i++)
        if (s->weight[i]) ops->weight_destroy(st, &s->weight[i]);
    for (int i = 0; i < N_NORMS; i++) ops->release(st, s->norm[i]);
    ops->release(st, s->x);
    ops->release(st, s->a);
    ops->release(st, s->kv);
    ops->release(st, s->pages.base);
    ops->release(st, s->operand[0]);
    ops->release(st, s->operand[1]);
    ops->release(st, s->scratch);
    free(s->page);
    free(s->visible);
}

static status times(struct selector *s, int which, const struct operand *x, enum linear_mode mode, float *y, struct err *e)
{
    const struct linear_args a = { .x = x, .w = s->weight[which], .mode = mode, .y = y,
                                   .ldy = s->c->ops->weight_shape(s->weight[which]).n };
    return s->c->ops->linear(s->c->v->st, &a, e);
}

/* Operand 0 = the norm of n rows of x [n, width]. */
static status norm(struct selector *s, int which, const float *x, uint32_t n, struct operand *out, struct err *e)
{
    *out = (struct operand){ s->operand[0], n, s->width, DT_F32 };
    const struct norm_args a = { .x = x, .rows = n, .d = s->width, .group = 1, .w = s->norm[which],
                                 .b = s->norm[which] + s->width, .eps = 1e-5f, .out = out };
    return s->c->ops->norm(s->c->v->st, &a, e);
}

/* Operand 0 = LN(proj(rows row[] of from)); y: [n, width] room. */
static status project(struct selector *s, int proj, int ln, const float *from, const uint32_t *row, uint32_t n, float *y,
                      struct operand *out, struct err *e)
{
    struct stream *st = s->c->v->st;
    const struct operand x = { s->operand[1], n, s->d, DT_F32 };
    struct operand packed = x;
    TRY(s->c->ops->gather(st, &(struct gather_args){ .x = from, .row = row, .n = n, .d = s->d, .y = s->x }, e));
    TRY(s->c->ops->pack(st, &(struct pack_args){ .x = s->x, .ldx = s->d, .rows = n, .k = s->d, .out = &packed }, e));
    TRY(times(s, proj, &x, LINEAR_STORE, y, e));
    return norm(s, ln, y, n, out, e);
}

/* Operand 1 = attention of n_a rows q in s->x over the n_v rows of K and V in s->kv. */
static status attend(struct selector *s, uint32_t n_a, uint32_t n_v, struct operand *out, struct err *e)
{
    struct stream *st = s->c->v->st;
    const struct kv_view view = { s->page, n_v };
    const uint32_t keys[] = { 0, n_v }, rows[] = { 0, n_a }, none = 0;
    *out = (struct operand){ s->operand[1], n_a, s->inside, DT_F32 };
    for (uint32_t i = 0; i < n_a; i++) s->visible[i] = n_v;
    const struct kv_write_args write = { .kv = s->kv, .ldkv = 2 * s->inside, .shape = s->pages, .n_seqs = 1,
                                         .seq_start = keys, .kv_start = &none, .view = &view };
    TRY(s->c->ops->kv_write(st, &write, e));
    const struct attention_args a = { .q = s->x, .ldq = s->inside, .H = OMNISIFT_HEADS,
                                      .scale = 1 / sqrtf((float)s->head), .shape = s->pages, .n_seqs = 1,
                                      .seq_start = rows, .visible = s->visible, .view = &view, .out = out,
                                      .scratch = s->scratch };
    return s->c->ops->attention(st, &a, e);
}

/* Scores of the chunk's audio, before the sigmoid, to c->score. */
static status ask_film(struct selector *s, const struct av_chunk *q, const uint32_t *film_row, uint32_t n_v,
                       struct err *e)
{
    struct choice *c = s->c;
    const uint32_t n_a = q->n_audio;
    struct operand x, seen, h = { s->operand[1], n_a, s->wide_hidden, DT_F32 };
    TRY(project(s, V_PROJ, V_NORM, c->v->vision, film_row, n_v, s->kv, &x, e));
    TRY(times(s, IN_KV, &x, LINEAR_STORE, s->kv, e));
    TRY(project(s, A_PROJ, A_NORM, c->v->audio, c->g.audio_row + q->audio, n_a, s->a, &x, e));
    TRY(times(s, AS_IT_IS, &x, LINEAR_STORE, s->a, e));
    TRY(times(s, IN_Q, &x, LINEAR_STORE, s->x, e));
    TRY(attend(s, n_a, n_v, &seen, e));
    TRY(times(s, OUT_PROJ, &seen, LINEAR_ADD, s->a, e));
    TRY(norm(s, POST_NORM, s->a, n_a, &x, e));
    const struct linear_args silu = { .x = &x, .w = s->weight[HEAD_0], .mode = LINEAR_SWIGLU, .out = &h };
    TRY(c->ops->linear(c->v->st, &silu, e));
    TRY(times(s, HEAD_2, &h, LINEAR_STORE, s->x, e));
    return c->ops->download(c->v->st, c->score, s->x, n_a * sizeof *c->score, e);
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
