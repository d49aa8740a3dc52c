/* prune/omnifit.c - OmniFit: one score from the embeddings alone, then a list of shares for each modality and layer. The lists
 * are the calibration's. Source: OmniFit (ICML 2026), second-hand; docs/pruning-methods.md 8.1. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { RATES_A, RATES_V, N_ANCHOR, LAM, KNN };
static const struct prune_param PARAMS[] = {
    [RATES_A] = { "rates_a", NULL, PARAM_LIST, 0, 1e9, NAN,
                  "share of the audio alive at each layer, one number a layer, not rising", NULL },
    [RATES_V] = { "rates_v", NULL, PARAM_LIST, 0, 1e9, NAN, "the same of vision", NULL },
    [N_ANCHOR] = { "n_anchor", NULL, PARAM_INTEGER, 0, 65536, 32, "density peaks of the other modality",
                   NULL },
    [LAM] = { "lam", NULL, PARAM_NUMBER, 0, 1e6, 1.5, "weight of the likeness to them", NULL },
    [KNN] = { "knn", NULL, PARAM_INTEGER, 1, OPS_NEIGHBOURS_MAX, 5, "neighbours of the density", NULL },
};

static status check_list(const struct policy_params *p, uint32_t i, struct err *e)
{
    const struct prune_list *rates = prune_list_of(p, i);
    const char *name = p->policy->param[i].name;
    if (rates->n == 0 || (p->n_layers && rates->n != p->n_layers))
        return err_set(e, E_ARG, "%s has %u entries: give one share for each of the %u layers", name,
                       rates->n, p->n_layers);
    for (uint32_t l = 1; l < rates->n; l++)
        if (rates->v[l] > rates->v[l - 1])
            return err_set(e, E_ARG, "%s rise at layer %u: what is dropped does not come back", name, l);
    return OK;
}

static status check(struct policy_params *p, struct err *e)
{
    TRY(check_list(p, RATES_A, e));
    return check_list(p, RATES_V, e);
}

static uint32_t alive_of(const struct prune_list *rates, uint32_t l, uint32_t n)
{
    return prune_floor(fmin(1, rates->v[l]) * (double)n);
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    const struct prune_list *ra = prune_list_of(p, RATES_A), *rv = prune_list_of(p, RATES_V);
    const uint32_t L = s->n_layers, n_audio = kinds_spared(s, KINDS_VISION);
    uint32_t n = out->n_orig;
    if (ra->n != L || rv->n != L) return err_set(e, E_ARG, "rates_a and rates_v: the model has %u layers", L);
    for (uint32_t l = 0; l < L; l++) {
        out->alive[l] = alive_of(ra, l, n_audio) + alive_of(rv, l, out->n_orig - n_audio);
        out->selects[l] = out->alive[l] < n;
        n = out->alive[l];
    }
    out->alive[L] = n;
    out->needs = PRUNE_NEEDS_EMBEDDINGS | PRUNE_NEEDS_GO;
    out->go = true;
    return OK;
}

/* ---- the score -------------------------------------------------------------------------------------------- */

/* The rows of one tower, and its density peaks. */
struct side {
    const float *x;
    const uint32_t *row, *place;
    uint32_t n, *anchor, n_anchors;
};

static status find_anchors(struct choice *c, struct side *s, struct err *e)
{
    const uint32_t start[] = { 0, s->n }, want = (uint32_t)c->r->params->value[N_ANCHOR],
                   k = want < s->n ? want : s->n;
    if (k == 0) return OK;
    TRY(c->ops->density(c->v->st,
                        &(struct density_args){ .g = { s->x, c->v->d, 1, start, s->row },
                                                .k = (uint32_t)c->r->params->value[KNN],
                                                .out = c->score,
                                                .scratch = c->pair },
                        e));
    TRY(choose_pick(c, s->n, k, e));
    for (uint32_t i = 0; i < k; i++) s->anchor[i] = s->row[c->kept[i]];
    s->n_anchors = k;
    return OK;
}

/* |x| of each row of s to c->score. */
static status lengths(struct choice *c, const struct side *s, float *host, struct err *e)
{
    for (uint32_t i = 0; i < s->n; i++) {
        double ss = 0;
        TRY(c->ops->download(c->v->st, host, s->x + (size_t)s->row[i] * c->v->d, c->v->d * sizeof *host, e));
        for (uint32_t k = 0; k < c->v->d; k++) ss += (double)host[k] * host[k];
        c->score[i] = (float)sqrt(ss);
    }
    return OK;
}

/* |x| + lam relu(max over the other's anchors z of x.z / |z|), by place. */
static status score(struct choice *c, const struct side *s, const struct side *other, float *host,
                    struct err *e)
{
    const uint32_t start[] = { 0, s->n }, start_z[] = { 0, other->n_anchors };
    float *best = NULL;
    if (s->n == 0) return OK;
    TRY(lengths(c, s, host, e));
    TRY(mem_alloc(&best, s->n, sizeof *best, e));
    const status st =
        c->ops->nearest(c->v->st,
                        &(struct nearest_args){ .x = { s->x, c->v->d, 1, start, s->row },
                                                .y = { other->x, c->v->d, 1, start_z, other->anchor },
                                                .best = best,
                                                .which = c->list[2],
                                                .scratch = c->pair },
                        e);
    for (uint32_t i = 0; st == OK && i < s->n; i++)
        c->r->stored[s->place[i]] =
            (float)(c->score[i] * (1 + c->r->params->value[LAM] * (other->n_anchors ? fmax(0, best[i]) : 0)));
    free(best);
    return st;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    float *host = NULL;
    status st = choose_begin(&c, r, v, out, e);
    struct side a = { v->audio, c.g.audio_row, c.g.audio, c.g.n_audio, c.list[0], 0 };
    struct side b = { v->vision, c.g.vision_row, c.g.vision, c.g.n_vision, c.list[1], 0 };
    if (st == OK) st = mem_alloc(&r->stored, r->prompt->n_av, sizeof *r->stored, e);
    if (st == OK) st = mem_alloc(&host, v->d, sizeof *host, e);
    if (st == OK && b.n) st = find_anchors(&c, &a, e);
    if (st == OK && a.n) st = find_anchors(&c, &b, e);
    if (st == OK) st = score(&c, &a, &b, host, e);
    if (st == OK) st = score(&c, &b, &a, host, e);
    free(host);
    if (st == OK) {
        choose_all(&c, c.g.audio, c.g.n_audio);
        choose_all(&c, c.g.vision, c.g.n_vision);
    }
    return choose_end(&c, st, e);
}

/* ---- at a layer ------------------------------------------------------------------------------------------- */

static status layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                    struct prune_selection *out, struct err *e)
{
    const struct prompt *p = r->prompt;
    const uint32_t k_a = alive_of(prune_list_of(r->params, RATES_A), l, p->n_audio);
    const uint32_t k_v = alive_of(prune_list_of(r->params, RATES_V), l, p->n_vision);
    float *score_of;
    uint32_t *place;
    TRY(mem_alloc(&score_of, v->n_alive, sizeof *score_of, e));
    status st = mem_alloc(&place, 2 * (size_t)v->n_alive, sizeof *place, e);
    if (st != OK) {
        free(score_of);
        return st;
    }
    layer_places(r, v, place);
    for (uint32_t i = 0; i < v->n_alive; i++) score_of[i] = r->stored[place[i]];
    st = layer_best(r, v, score_of, KINDS_VISION, k_v, out, e);
    if (st == OK) { /* then audio among what is left */
        uint32_t *alive = place + v->n_alive, n = out->n_keep;
        for (uint32_t i = 0, j = 0; j < n; i++)
            if (v->alive[i] == out->keep[j]) alive[j] = out->keep[j], score_of[j] = r->stored[place[i]], j++;
        const struct prune_layer_view rest = { .st = v->st, .n_alive = n, .alive = alive };
        st = layer_best(r, &rest, score_of, KINDS_AUDIO, k_a, out, e);
    }
    free(score_of);
    free(place);
    return st;
}

const struct policy policy_omnifit = {
    .name = "omnifit",
    .citation = "OmniFit (ICML 2026), from second-hand descriptions",
    .help = "Ranks once by the embeddings; shares for each modality and layer from two lists.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .check = check,
    .plan = plan,
    .embed = embed,
    .layer = layer
};
