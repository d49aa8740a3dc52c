/* prune/table.c - a retention for every layer from a list: the online part of G-Search and P-Sigmoid, whose search is a program
 * around the engine. Source: arXiv 2412.00556; docs/pruning-methods.md 7.3. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { RATES, SCORE };
enum { BY_QUERY, BY_SALIENCY };
static const char *const SCORE_WORDS[] = { "query", "saliency" };
static const struct prune_param PARAMS[] = {
    [RATES] = { "rates", NULL, PARAM_LIST, 0, 1, NAN,
                "share of the AV tokens alive at each layer, one number a layer, not rising", NULL },
    [SCORE] = { "score", NULL, PARAM_WORD, 0, 1, BY_QUERY,
                "what ranks: the question's attention one layer before, or the towers' saliency",
                SCORE_WORDS },
};

static status check(struct policy_params *p, struct err *e)
{
    const struct prune_list *rates = prune_list_of(p, RATES);
    if (rates->n == 0 || (p->n_layers && rates->n != p->n_layers))
        return err_set(e, E_ARG, "rates has %u entries: give one share for each of the %u layers", rates->n,
                       p->n_layers);
    for (uint32_t i = 1; i < rates->n; i++)
        if (rates->v[i] > rates->v[i - 1])
            return err_set(e, E_ARG,
                           "rates rise at layer %u, from %g to %g: what is dropped does not come back", i,
                           rates->v[i - 1], rates->v[i]);
    if (p->value[SCORE] == BY_QUERY && rates->v[0] < 1)
        return err_set(
            e, E_ARG,
            "rates start at %g: attention exists only from layer 0 on, so the first is 1 (or score = "
            "saliency)",
            rates->v[0]);
    return OK;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    const struct prune_list *rates = prune_list_of(p, RATES);
    const uint32_t L = s->n_layers;
    const bool go = p->value[SCORE] == BY_SALIENCY;
    uint32_t n = out->n_orig;
    if (rates->n != L) return err_set(e, E_ARG, "rates has %u entries: the model has %u layers", rates->n, L);
    out->needs = go ? PRUNE_NEEDS_AUDIO_SALIENCY | PRUNE_NEEDS_VISION_SALIENCY | PRUNE_NEEDS_GO
                    : PRUNE_NEEDS_ROW_SCORES;
    out->go = go;
    for (uint32_t l = 0; l < L; l++) {
        const uint32_t less = prune_floor(rates->v[l] * (double)out->n_orig);
        if (less < n) out->selects[go ? l : l - 1] = true;
        out->alive[l] = n = less < n ? less : n;
    }
    out->alive[L] = n;
    return OK;
}

/* a and v in one ranking, for all layers. */
static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    (void)out;
    const struct prompt *p = r->prompt;
    if (r->params->value[SCORE] != BY_SALIENCY) return OK;
    TRY(mem_alloc(&r->stored, p->n_av, sizeof *r->stored, e));
    for (uint32_t i = 0; i < p->n_av; i++) {
        const uint32_t at = p->av[i];
        r->stored[i] = (p->kind[at] == TOKEN_AUDIO ? v->audio_saliency : v->vision_saliency)[p->row[at]];
    }
    return OK;
}

static status by_saliency(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                          struct prune_selection *out, struct err *e)
{
    float *score;
    uint32_t *place;
    TRY(mem_alloc(&score, v->n_alive, sizeof *score, e));
    status st = mem_alloc(&place, v->n_alive, sizeof *place, e);
    if (st == OK) {
        layer_places(r, v, place);
        for (uint32_t i = 0; i < v->n_alive; i++) score[i] = r->stored[place[i]];
        st = layer_best(r, v, score, KINDS_AV, r->plan->alive[l], out, e);
        free(place);
    }
    free(score);
    return st;
}

static status layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                    struct prune_selection *out, struct err *e)
{
    if (r->plan->go) return by_saliency(r, l, v, out, e);
    return layer_best(r, v, v->score, KINDS_AV, r->plan->alive[l + 1], out, e);
}

const struct policy policy_table = { .name = "table",
                                     .citation = "Zhao et al., Accelerating MLLMs by Searching Optimal "
                                                 "Vision Token Reduction, arXiv 2412.00556 (CVPR 2025)",
                                     .help = "A share alive for each layer, from a list.",
                                     .param = PARAMS,
                                     .n_param = sizeof PARAMS / sizeof *PARAMS,
                                     .check = check,
                                     .plan = plan,
                                     .embed = embed,
                                     .layer = layer };
