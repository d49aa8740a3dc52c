/* prune/omnifocus.c - OmniFocus: chunks that speak to the question keep more; half of a chunk's tokens by their likeness to the
 * other modality, half by their distance to their own mean. Source: arXiv 2607.03050, second-hand; docs/pruning-methods.md 8.2. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { R };
static const struct prune_param PARAMS[] = { [R] = { "R", "retention", PARAM_NUMBER, 0, 1, 0.25,
                                                     "share of all AV tokens kept", NULL } };
#define RATE_MIN 0.35
#define RATE_MAX 0.75

static uint32_t kept_of(const struct policy_params *p, uint32_t n)
{
    const uint32_t k = prune_round(p->value[R] * (double)n);
    return n == 0 ? 0 : k == 0 ? 1 : k;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)s, (void)e;
    prune_plan_entry(out, kept_of(p, out->n_orig));
    out->needs = PRUNE_NEEDS_EMBEDDINGS | PRUNE_NEEDS_TEXT_EMBEDDINGS;
    return OK;
}

/* ---- budgets ---------------------------------------------------------------------------------------------- */

/* One choice's memory. [n_chunks] unless it says otherwise. */
struct focus {
    float *text, *mean[2]; /* device: [d] of the text; [n_chunks, d] of either modality, 0 vision, 1 audio */
    float *cos;            /* [n_av] of every token, audio's then vision's */
    double *rate, *share;
    uint32_t *n, *kept;
    uint32_t *group; /* [n_av] chunk of every row of a list */
};

static uint32_t size_of(const struct av_chunk *c, int m)
{
    return m ? c->n_audio : c->n_vision;
}

/* Cosine of all tokens of modality m to y row group[i], into out. */
static status cosines(struct choice *c, int m, const float *y, const uint32_t *group, float *out,
                      struct err *e)
{
    const struct av_groups *g = &c->g;
    return choose_cosine(c, m ? c->v->audio : c->v->vision, m ? g->audio_row : g->vision_row, y, group,
                         m ? g->n_audio : g->n_vision, out, e);
}

static status means(struct choice *c, const float *x, const uint32_t *row, const uint32_t *start, uint32_t n,
                    float *y, struct err *e)
{
    return c->ops->means(
        c->v->st, &(struct means_args){ .g = { x, c->v->d, n, start, row }, .y = y, .scratch = c->pair }, e);
}

/* The greatest likeness of a chunk's tokens to the mean of the text; all alike without text. */
static status relevance(struct choice *c, struct focus *f, struct err *e)
{
    const struct av_groups *g = &c->g;
    for (uint32_t k = 0; k < g->n_chunks; k++) f->rate[k] = c->v->n_text ? -INFINITY : 0;
    if (c->v->n_text == 0) return OK;
    uint32_t *row, start[] = { 0, c->v->n_text };
    TRY(mem_alloc(&row, c->v->n_text, sizeof *row, e));
    for (uint32_t i = 0; i < c->v->n_text; i++) row[i] = i;
    status st = means(c, c->v->text, row, start, 1, f->text, e);
    free(row);
    for (uint32_t i = 0; i < c->r->prompt->n_av; i++) c->list[0][i] = 0;
    for (int m = 0; m < 2 && st == OK; m++) {
        st = cosines(c, m, f->text, c->list[0], f->cos, e);
        for (uint32_t k = 0; k < g->n_chunks && st == OK; k++) {
            const struct av_chunk *q = &g->chunk[k];
            for (uint32_t i = 0; i < size_of(q, m); i++)
                f->rate[k] = fmax(f->rate[k], f->cos[(m ? q->audio : q->vision) + i]);
        }
    }
    return st;
}

/* Tokens kept of each chunk. */
static status chunk_budgets(struct choice *c, struct focus *f, struct err *e)
{
    const struct av_groups *g = &c->g;
    const uint32_t N = c->r->prompt->n_av, K = c->r->plan->n_entry;
    double low = INFINITY, high = -INFINITY;
    TRY(relevance(c, f, e));
    for (uint32_t k = 0; k < g->n_chunks; k++) {
        low = fmin(low, f->rate[k]), high = fmax(high, f->rate[k]);
        f->n[k] = g->chunk[k].n_audio + g->chunk[k].n_vision;
    }
    for (uint32_t k = 0; k < g->n_chunks; k++)
        f->rate[k] = high - low <= 1e-6
                         ? (RATE_MIN + RATE_MAX) / 2
                         : RATE_MAX - (RATE_MAX - RATE_MIN) * (f->rate[k] - low) / (high - low);
    offset_rates(f->rate, f->n, g->n_chunks, RATE_MIN, RATE_MAX, N - K);
    for (uint32_t k = 0; k < g->n_chunks; k++) f->share[k] = f->n[k] * (1 - f->rate[k]);
    return count_shares(f->share, f->n, g->n_chunks, K, f->kept, e);
}

/* ---- the choice ------------------------------------------------------------------------------------------- */

/* k of the chunk's n tokens of one modality at `place`: (k + 1) / 2 of greatest `like`, none where there is no other modality;
 * the rest of those left with the least `own`. */
static status halves(struct choice *c, const uint32_t *place, uint32_t n, uint32_t k, const float *like,
                     const float *own, struct err *e)
{
    const uint32_t first = like ? (k + 1) / 2 : 0;
    uint32_t *left = c->list[1], n_left = 0;
    for (uint32_t i = 0; i < n && like; i++) c->score[i] = like[i];
    if (first) TRY(choose_best(c, place, n, first, e));
    for (uint32_t i = 0; i < n; i++) {
        if (c->keep[place[i]]) continue;
        c->score[n_left] = -own[i];
        left[n_left++] = place[i];
    }
    return choose_best(c, left, n_left, k - first, e);
}

static status choose_chunk(struct choice *c, const struct av_chunk *q, uint32_t k, const float *const like[2],
                           const float *const own[2], struct err *e)
{
    const double n = q->n_audio + q->n_vision;
    const double share[2] = { k * (q->n_audio / n), k * (q->n_vision / n) };
    const uint32_t room[2] = { q->n_audio, q->n_vision }; /* kinds in their order: audio takes an odd one */
    uint32_t count[2];
    TRY(count_shares(share, room, 2, k, count, e));
    for (int m = 0; m < 2; m++) {
        const uint32_t at = m ? q->audio : q->vision;
        TRY(halves(c, (m ? c->g.audio : c->g.vision) + at, room[!m], count[!m], room[m] ? like[m] + at : NULL,
                   own[m] + at, e));
    }
    return OK;
}

/* Means of both modalities by chunk, and every token's cosines to its own and to the other one. */
static status choose(struct choice *c, struct focus *f, struct err *e)
{
    const struct av_groups *g = &c->g;
    const uint32_t n_av = c->r->prompt->n_av;
    float *like[2] = { f->cos + n_av, f->cos + n_av + g->n_vision };
    float *own[2] = { f->cos + 2 * (size_t)n_av, f->cos + 2 * (size_t)n_av + g->n_vision };
    TRY(chunk_budgets(c, f, e));
    for (int m = 0; m < 2; m++) {
        uint32_t *start = c->list[0];
        start[0] = 0; /* chunks in order: their ranges of a list lie end to end */
        for (uint32_t k = 0; k < g->n_chunks; k++) start[k + 1] = start[k] + size_of(&g->chunk[k], m);
        TRY(means(c, m ? c->v->audio : c->v->vision, m ? g->audio_row : g->vision_row, start, g->n_chunks,
                  f->mean[m], e));
    }
    for (int m = 0; m < 2; m++) {
        uint32_t n = 0;
        for (uint32_t k = 0; k < g->n_chunks; k++)
            for (uint32_t i = 0; i < size_of(&g->chunk[k], m); i++) f->group[n++] = k;
        TRY(cosines(c, m, f->mean[!m], f->group, like[m], e));
        TRY(cosines(c, m, f->mean[m], f->group, own[m], e));
    }
    for (uint32_t k = 0; k < g->n_chunks; k++)
        TRY(choose_chunk(c, &g->chunk[k], f->kept[k], (const float *const *)like, (const float *const *)own,
                         e));
    return OK;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    struct focus f = { 0 };
    status st = choose_begin(&c, r, v, out, e);
    const size_t n = c.g.n_chunks, n_av = r->prompt->n_av, row = v->d * sizeof(float);
    if (st == OK) st = c.ops->alloc(v->st, (2 * n + 1) * row, (void **)&f.text, e);
    if (st == OK) st = mem_alloc(&f.cos, 3 * n_av, sizeof *f.cos, e);
    if (st == OK) st = mem_alloc(&f.rate, 2 * n, sizeof *f.rate, e);
    if (st == OK) st = mem_alloc(&f.n, 2 * n + n_av, sizeof *f.n, e);
    if (st == OK) {
        f.mean[0] = f.text + v->d, f.mean[1] = f.mean[0] + n * v->d;
        f.share = f.rate + n;
        f.kept = f.n + n, f.group = f.kept + n;
        st = choose(&c, &f, e);
    }
    c.ops->release(v->st, f.text);
    free(f.cos);
    free(f.rate);
    free(f.n);
    return choose_end(&c, st, e);
}

const struct policy policy_omnifocus = {
    .name = "omnifocus",
    .citation = "OmniFocus, arXiv 2607.03050 (2026), from second-hand descriptions",
    .help = "Before the decoder: chunks near the question keep more, by both modalities.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .plan = plan,
    .embed = embed
};
