/* prune/omnizip.c - OmniZip, second generation of its code: salient audio and anchors that take in others; the share of audio
 * kept in a chunk sets how much of its film goes; steps by density peaks and by change, in turn.
 * Source: arXiv 2511.14582; docs/pruning-methods.md 2. */
#include "prune/omnizip.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { RHO_A, RHO_V, NORM, G, ANCHOR, RHO_MIN, RHO_MAX, KNN };
enum { EXACT, PUBLISHED };
static const char *const NORM_WORDS[] = { "exact", "published" };
static const struct prune_param PARAMS[] = {
    [RHO_A] = { "rho_a", NULL, PARAM_NUMBER, 0, 1, 0.3, "share of audio removed, before anchors", NULL },
    [RHO_V] = { "rho_v", NULL, PARAM_NUMBER, 0, 1, 0.6, "share of video removed", NULL },
    [NORM] = { "norm", NULL, PARAM_WORD, 0, 1, EXACT, "rates meet rho_v exactly, or as published",
               NORM_WORDS },
    [G] = { "G", NULL, PARAM_INTEGER, 0, 4096, 3, "tokens that an anchor takes in", NULL },
    [ANCHOR] = { "anchor", NULL, PARAM_NUMBER, 0, 1, 0.05, "share of audio that become anchors", NULL },
    [RHO_MIN] = { "rho_min", NULL, PARAM_NUMBER, 0, 1, 0.35, "least share removed of a chunk's video", NULL },
    [RHO_MAX] = { "rho_max", NULL, PARAM_NUMBER, 0, 1, 0.75, "greatest share removed of a chunk's video",
                  NULL },
    [KNN] = { "knn", NULL, PARAM_INTEGER, 1, OPS_NEIGHBOURS_MAX, 5, "neighbours of the density", NULL },
};

static status check(struct policy_params *p, struct err *e)
{
    if (p->value[RHO_MIN] > p->value[RHO_MAX])
        return err_set(e, E_ARG, "rho_min %g is above rho_max %g", p->value[RHO_MIN], p->value[RHO_MAX]);
    return OK;
}

static struct choose_anchors anchors_of(const struct policy_params *p)
{
    return (struct choose_anchors){ p->value[RHO_A], p->value[ANCHOR], (uint32_t)p->value[G] };
}

/* Video tokens kept of an item: all of them with exact rates, else at most. */
static uint32_t video_kept(const struct policy_params *p, uint32_t steps, uint32_t step_tokens)
{
    const uint32_t n = steps * step_tokens;
    if (p->value[NORM] == EXACT) return n - prune_floor(p->value[RHO_V] * (double)n);
    return steps * prune_floor((double)step_tokens * (1 - fmin(p->value[RHO_MIN], p->value[RHO_V])));
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const struct choose_anchors a = anchors_of(p);
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_items; i++)
        n += choose_audio_kept(&a, s->item[i].n_audio) +
             video_kept(p, s->item[i].steps, s->item[i].step_tokens);
    prune_plan_entry(out, n == 0 && out->n_orig ? 1 : n);
    out->exact = p->value[NORM] == EXACT;
    out->needs = PRUNE_NEEDS_AUDIO_GLOBAL | PRUNE_NEEDS_EMBEDDINGS | PRUNE_NEEDS_MERGES;
    return OK;
}

/* ---- rates ------------------------------------------------------------------------------------------------ */

static double within(double x, double lo, double hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* The groups of least and greatest rate stay; the others are scaled to the target, clamped, and once given what is missing. */
static void published_rates(const uint32_t *n, uint32_t count, double target, double lo, double hi,
                            double *rate)
{
    uint32_t least = 0, most = 0;
    double all = 0, sum = 0, others = 0, fixed = 0, n_others = 0;
    for (uint32_t i = 0; i < count; i++) {
        all += n[i];
        sum += n[i] * rate[i];
        if (rate[i] < rate[least]) least = i;
        if (rate[i] > rate[most]) most = i;
    }
    if (count <= 2 || all == 0 || fabs(sum / all - target) <= 1e-3) return;
    for (uint32_t i = 0; i < count; i++)
        if (i == least || i == most)
            fixed += n[i] * rate[i];
        else
            others += n[i] * rate[i], n_others += n[i];
    if (others <= 0) return;
    const double scale = (target * all - fixed) / others;
    double missing = target * all - fixed;
    for (uint32_t i = 0; i < count; i++) {
        if (i == least || i == most) continue;
        rate[i] = within(rate[i] * scale, lo, hi);
        missing -= n[i] * rate[i];
    }
    for (uint32_t i = 0; i < count; i++)
        if (i != least && i != most) rate[i] = within(rate[i] + missing / n_others, lo, hi);
}

void omnizip_rates(const uint32_t *n, const double *share, uint32_t count, double rho_v, double rho_min,
                   double rho_max, bool exact, double *rate)
{
    double all = 0;
    for (uint32_t i = 0; i < count; i++) {
        rate[i] =
            isnan(share[i]) ? rho_v : within(rho_max - (rho_max - rho_min) * share[i], rho_min, rho_max);
        all += n[i];
    }
    if (exact)
        offset_rates(rate, n, count, rho_min, rho_max, rho_v * all);
    else
        published_rates(n, count, rho_v, rho_min, rho_max, rate);
}

/* ---- the choice ------------------------------------------------------------------------------------------- */

/* The groups of one item: its chunks with video. */
struct rates {
    uint32_t *chunk, *n, *kept;
    double *share, *rate;
};

/* Keep K tokens of the group's steps: evenly, the earlier ones taking the odd ones. */
static void spread(const struct av_chunk *c, uint32_t K, uint32_t *keep)
{
    for (uint32_t t = 0; t < c->n_steps; t++) keep[c->step + t] = K / c->n_steps + (t < K % c->n_steps);
}

static status item_steps(struct choice *c, const struct av_item *it, struct rates *w, uint32_t *turn,
                         uint32_t *keep, struct err *e)
{
    const double *value = c->r->params->value;
    const bool exact = value[NORM] == EXACT;
    uint32_t count = 0;
    for (uint32_t k = it->chunk; k < it->chunk + it->n_chunks; k++) {
        const struct av_chunk *g = &c->g.chunk[k];
        if (g->n_steps == 0) continue;
        uint32_t kept = 0;
        for (uint32_t i = 0; i < g->n_audio; i++) kept += c->keep[c->g.audio[g->audio + i]];
        w->chunk[count] = k;
        w->n[count] = g->n_steps * c->g.step[g->step].n;
        w->share[count++] = g->n_audio ? (double)kept / g->n_audio : NAN;
    }
    omnizip_rates(w->n, w->share, count, value[RHO_V], value[RHO_MIN], value[RHO_MAX], exact, w->rate);
    for (uint32_t i = 0; i < count; i++) w->share[i] = w->n[i] * (1 - w->rate[i]);
    if (exact)
        TRY(count_shares(w->share, w->n, count, video_kept(c->r->params, 1, it->n_vision), w->kept, e));
    for (uint32_t i = 0; i < count; i++) {
        const struct av_chunk *g = &c->g.chunk[w->chunk[i]];
        if (exact) spread(g, w->kept[i], keep);
        for (uint32_t t = 0; t < g->n_steps; t++) {
            if (!exact) keep[g->step + t] = prune_floor((double)c->g.step[g->step].n * (1 - w->rate[i]));
            turn[g->step + t] = t;
        }
    }
    return OK;
}

static status film(struct choice *c, struct err *e)
{
    const size_t n = c->g.n_chunks;
    struct rates w = { 0 };
    uint32_t *turn = c->list[2], *keep = c->list[3];
    status st = mem_alloc(&w.chunk, 3 * n, sizeof *w.chunk, e);
    if (st == OK) st = mem_alloc(&w.share, 2 * n, sizeof *w.share, e);
    if (st == OK) {
        w.n = w.chunk + n, w.kept = w.n + n, w.rate = w.share + n;
        for (uint32_t i = 0; st == OK && i < c->g.n_items; i++)
            st = item_steps(c, &c->g.item[i], &w, turn, keep, e);
    }
    if (st == OK) st = choose_steps(c, turn, keep, (uint32_t)c->r->params->value[KNN], e);
    free(w.chunk);
    free(w.share);
    return st;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    const struct choose_anchors a = anchors_of(r->params);
    status st = choose_begin(&c, r, v, out, e);
    for (uint32_t i = 0; st == OK && i < c.g.n_items; i++) {
        choose_saliency(&c, c.g.audio + c.g.item[i].audio, c.g.item[i].n_audio);
        st = choose_audio(&c, i, &a, e);
    }
    if (st == OK) st = film(&c, e);
    return choose_end(&c, st, e);
}

const struct policy policy_omnizip = {
    .name = "omnizip",
    .citation = "Tao et al., OmniZip, arXiv 2511.14582 (CVPR 2026)",
    .help = "Before the decoder: salient audio and anchors; film where its audio was dense.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .check = check,
    .plan = plan,
    .embed = embed
};
