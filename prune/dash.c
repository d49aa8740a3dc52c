/* prune/dash.c - DASH: audio is cut where it changes, the cuts go over to the film; audio by change, rarity and saliency.
 * Source: arXiv 2603.15685; docs/pruning-methods.md 4. */
#include "prune/dash.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { RHO_A, RHO_V, THRESHOLD, GAP, G, ANCHOR, KNN };
static const struct prune_param PARAMS[] = {
    [RHO_A] = { "rho_a", NULL, PARAM_NUMBER, 0, 1, 0.45, "share of audio removed, before anchors", NULL },
    [RHO_V] = { "rho_v", NULL, PARAM_NUMBER, 0, 1, 0.76,
                "share of video removed, give or take 0.05 by segment", NULL },
    [THRESHOLD] = { "threshold", NULL, PARAM_NUMBER, -1, 1, 0.4,
                    "cosine of neighbours below which audio is cut", NULL },
    [GAP] = { "gap", NULL, PARAM_INTEGER, 1, 1 << 20, 30, "least audio tokens between cuts", NULL },
    [G] = { "G", NULL, PARAM_INTEGER, 0, 4096, 3, "tokens that an anchor takes in", NULL },
    [ANCHOR] = { "anchor", NULL, PARAM_NUMBER, 0, 1, 0.05, "share of audio that become anchors", NULL },
    [KNN] = { "knn", NULL, PARAM_INTEGER, 1, OPS_NEIGHBOURS_MAX, 5, "neighbours of the density", NULL },
};

#define BLOCK 256 /* rows of audio brought to the host at a time */

static struct choose_anchors anchors_of(const struct policy_params *p)
{
    return (struct choose_anchors){ p->value[RHO_A], p->value[ANCHOR], (uint32_t)p->value[G] };
}

/* Removal rate of a segment whose audio is kept to the share S; NaN: a film without audio. */
static double rate_of(double rho_v, double S)
{
    if (isnan(S)) return fmax(0.35, rho_v - 0.15);
    return fmin(fmax(rho_v + 0.1 * (0.5 - S), 0.1), 0.95);
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const struct choose_anchors a = anchors_of(p);
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_items; i++) {
        const struct prune_item *it = &s->item[i];
        const double rate = rate_of(p->value[RHO_V], it->n_audio ? 1 : NAN);
        n += choose_audio_kept(&a, it->n_audio) + it->steps * prune_floor(it->step_tokens * (1 - rate));
    }
    prune_plan_entry(out, n == 0 && out->n_orig ? 1 : n);
    out->exact = out->n_orig == 0;
    out->needs = PRUNE_NEEDS_AUDIO_GLOBAL | PRUNE_NEEDS_EMBEDDINGS | PRUNE_NEEDS_MERGES;
    return OK;
}

uint32_t dash_cuts(const float *cos, uint32_t n, double threshold, uint32_t gap, uint32_t *cut)
{
    uint32_t k = 0;
    cut[k++] = 0;
    for (uint32_t t = 0; t + 1 < n; t++)
        if (cos[t] < threshold && t + 1 - cut[k - 1] >= gap) cut[k++] = t + 1;
    cut[k++] = n;
    return k;
}

/* ---- scores of audio -------------------------------------------------------------------------------------- */

struct channel {
    double variance;
    uint32_t i;
};

static int by_variance(const void *pa, const void *pb)
{
    const struct channel *a = pa, *b = pb;
    if (a->variance != b->variance) return a->variance < b->variance ? -1 : 1;
    return (a->i > b->i) - (a->i < b->i);
}

/* One item's audio, seen a block of rows at a time. */
struct clip {
    struct choice *c;
    const uint32_t *row;
    uint32_t n, d, half;
    float *block, *gathered; /* [BLOCK, d] host; device */
    double *mean;            /* [d], then [half]: of the features */
    double *feature;         /* [half] */
    double *far;             /* [n] squared distance to the mean feature */
    struct channel *channel; /* [d] */
};

/* Rows [from, from + k) of the clip to block. */
static status see(struct clip *w, uint32_t from, uint32_t k, struct err *e)
{
    struct stream *st = w->c->v->st;
    TRY(w->c->ops->gather(
        st,
        &(struct gather_args){
            .x = w->c->v->audio, .row = w->row + from, .n = k, .d = w->d, .y = w->gathered },
        e));
    return w->c->ops->download(st, w->block, w->gathered, (size_t)k * w->d * sizeof(float), e);
}

/* Row x on the channels of least variance, of length 1. */
static void feature_of(const struct clip *w, const float *x, double *f)
{
    double ss = 0;
    for (uint32_t k = 0; k < w->half; k++) f[k] = x[w->channel[k].i], ss += f[k] * f[k];
    const double over = 1 / sqrt(fmax(ss, 1e-12));
    for (uint32_t k = 0; k < w->half; k++) f[k] *= over;
}

enum pass { PASS_MEAN, PASS_VARIANCE, PASS_FEATURE, PASS_FAR, PASSES };

static void pass_row(struct clip *w, enum pass pass, uint32_t t, const float *x)
{
    if (pass == PASS_MEAN)
        for (uint32_t k = 0; k < w->d; k++) w->mean[k] += x[k] / (double)w->n;
    if (pass == PASS_VARIANCE)
        for (uint32_t k = 0; k < w->d; k++)
            w->channel[k].variance += (x[k] - w->mean[k]) * (x[k] - w->mean[k]);
    if (pass == PASS_FEATURE || pass == PASS_FAR) feature_of(w, x, w->feature);
    if (pass == PASS_FEATURE)
        for (uint32_t k = 0; k < w->half; k++) w->mean[k] += w->feature[k] / w->n;
    if (pass == PASS_FAR)
        for (uint32_t k = 0; k < w->half; k++)
            w->far[t] += (w->feature[k] - w->mean[k]) * (w->feature[k] - w->mean[k]);
}

static status passes(struct clip *w, struct err *e)
{
    for (int pass = 0; pass < PASSES; pass++) {
        if (pass == PASS_FEATURE) {
            qsort(w->channel, w->d, sizeof *w->channel, by_variance);
            memset(w->mean, 0, w->d * sizeof *w->mean);
        }
        for (uint32_t from = 0; from < w->n; from += BLOCK) {
            const uint32_t k = w->n - from < BLOCK ? w->n - from : BLOCK;
            TRY(see(w, from, k, e));
            for (uint32_t i = 0; i < k; i++)
                pass_row(w, (enum pass)pass, from + i, w->block + (size_t)i * w->d);
        }
    }
    return OK;
}

/* .4 b / (max b + 1e-6) + .3 u + .3 a / (max a + 1e-6) into c->score; cos [n - 1] of neighbours. */
static void score_clip(struct clip *w, const float *cos)
{
    float *score = w->c->score;
    double most_k = 0, most_a = 0, most_b = 1; /* b of the first token is 1 */
    for (uint32_t t = 0; t < w->n; t++) {
        double k = 0;
        for (double al = 0.125; al <= 2; al *= 2) k += exp(-w->far[t] / (2 * al));
        w->far[t] = k;
        if (k > most_k) most_k = k;
        if (score[t] > most_a) most_a = score[t];
    }
    for (uint32_t t = 0; t < w->n; t++) {
        const double b = t ? fmin(fmax((1 - (double)cos[t - 1]) / 2, 0), 1) : 1;
        score[t] = (float)(0.4 * b / (most_b + 1e-6) + 0.3 * (1 - w->far[t] / most_k) +
                           0.3 * score[t] / (most_a + 1e-6));
    }
}

/* Scores of item i's audio to c->score; cos: [n] room, gets the cosines of neighbours. */
static status score_audio(struct choice *c, const struct av_item *it, float *cos, struct err *e)
{
    struct clip w = {
        .c = c, .row = c->g.audio_row + it->audio, .n = it->n_audio, .d = c->v->d, .half = c->v->d / 2
    };
    status st;
    TRY(choose_cosine(c, c->v->audio, w.row, NULL, w.row + 1, w.n - 1, cos, e));
    choose_saliency(c, c->g.audio + it->audio, w.n);
    TRY(c->ops->alloc(c->v->st, (size_t)BLOCK * w.d * sizeof(float), (void **)&w.gathered, e));
    TRY_GOTO(st, mem_alloc(&w.block, (size_t)BLOCK * w.d, sizeof *w.block, e), undo);
    TRY_GOTO(st, mem_alloc(&w.mean, 2 * (size_t)w.d + w.n, sizeof *w.mean, e), undo);
    TRY_GOTO(st, mem_alloc(&w.channel, w.d, sizeof *w.channel, e), undo);
    w.feature = w.mean + w.d;
    w.far = w.feature + w.d;
    for (uint32_t k = 0; k < w.d; k++) w.channel[k].i = k;
    TRY_GOTO(st, passes(&w, e), undo);
    score_clip(&w, cos);
undo:
    c->ops->release(c->v->st, w.gathered);
    free(w.block);
    free(w.mean);
    free(w.channel);
    return st;
}

/* ---- film ------------------------------------------------------------------------------------------------- */

/* A segment: steps [s, s_end) of the item and the audio [a, a_end) between the cuts that stand. */
static void segment(struct choice *c, const struct av_item *it, uint32_t s, uint32_t s_end, uint32_t a,
                    uint32_t a_end, uint32_t *turn, uint32_t *keep)
{
    double S = it->n_audio ? 0.5 : NAN;
    uint32_t kept = 0;
    for (uint32_t i = a; i < a_end; i++) kept += c->keep[c->g.audio[it->audio + i]];
    if (a_end > a) S = (double)kept / (a_end - a);
    const double rate = rate_of(c->r->params->value[RHO_V], S);
    for (uint32_t t = s; t < s_end; t++) {
        turn[it->step + t] = t - s;
        keep[it->step + t] = prune_floor(c->g.step[it->step + t].n * (1 - rate));
    }
}

/* Cuts [n] of the audio go to the nearest grid step; of equal ones the first stands, none at either end. */
static void film(struct choice *c, const struct av_item *it, const uint32_t *cut, uint32_t n, uint32_t *turn,
                 uint32_t *keep)
{
    uint32_t s = 0, a = 0;
    for (uint32_t i = 1; i + 1 < n; i++) {
        const uint32_t at = prune_round((double)cut[i] * it->n_steps / it->n_audio);
        if (at <= s || at >= it->n_steps) continue;
        segment(c, it, s, at, a, cut[i], turn, keep);
        s = at;
        a = cut[i];
    }
    segment(c, it, s, it->n_steps, a, it->n_audio, turn, keep);
}

static status item(struct choice *c, uint32_t i, float *cos, uint32_t *turn, uint32_t *keep, struct err *e)
{
    const struct av_item *it = &c->g.item[i];
    const double *value = c->r->params->value;
    const struct choose_anchors a = anchors_of(c->r->params);
    uint32_t *cut = c->list[0], n = 2;
    cut[0] = 0, cut[1] = 0;
    if (it->n_audio) {
        TRY(score_audio(c, it, cos, e));
        TRY(choose_audio(c, i, &a, e));
        n = dash_cuts(cos, it->n_audio, value[THRESHOLD], (uint32_t)value[GAP], cut);
    }
    if (it->n_steps) film(c, it, cut, n, turn, keep);
    return OK;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    float *cos = NULL;
    status st = choose_begin(&c, r, v, out, e);
    if (st == OK) st = mem_alloc(&cos, c.g.n_audio, sizeof *cos, e);
    for (uint32_t i = 0; st == OK && i < c.g.n_items; i++) st = item(&c, i, cos, c.list[2], c.list[3], e);
    if (st == OK) st = choose_steps(&c, c.list[2], c.list[3], (uint32_t)r->params->value[KNN], e);
    free(cos);
    return choose_end(&c, st, e);
}

const struct policy policy_dash = {
    .name = "dash",
    .citation = "DASH, arXiv 2603.15685 (ECCV 2026)",
    .help = "Before the decoder: audio cut where it changes, the film in the same segments.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .plan = plan,
    .embed = embed
};
