/* prune/fastv.c - FastV: the last prompt row's attention at one early layer chooses once for all layers after it.
 * Source: arXiv 2403.06764; docs/pruning-methods.md 8.1. */
#include "prune/choose.h"
#include "prune/policies.h"

enum { K, R, KINDS };
static const struct prune_param PARAMS[] = {
    [K] = { "K", NULL, PARAM_INTEGER, 1, 4095, 2,
            "first layer without the dropped; the layer before it ranks", NULL },
    [R] = { "R", "retention", PARAM_NUMBER, 0, 1, 0.5, "share kept from layer K on", NULL },
    [KINDS] = { "kinds", NULL, PARAM_WORD, 0, 1, KINDS_AV,
                "what is ranked: all AV tokens, or vision with audio whole", KINDS_WORDS },
};

static status check(struct policy_params *p, struct err *e)
{
    if (p->n_layers && p->value[K] >= p->n_layers)
        return err_set(e, E_ARG, "K is %g and the model has %u layers: no layer is left to gain", p->value[K],
                       p->n_layers);
    return OK;
}

static uint32_t kept_of(const struct policy_params *p, uint32_t n)
{
    return prune_round(p->value[R] * (double)n);
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const uint32_t spared = kinds_spared(s, (int)p->value[KINDS]), k = (uint32_t)p->value[K];
    const uint32_t n = spared + kept_of(p, out->n_orig - spared);
    out->needs = PRUNE_NEEDS_ROW_SCORES;
    out->query = QUERY_LAST;
    for (uint32_t l = k; l <= s->n_layers; l++) out->alive[l] = n;
    if (k <= s->n_layers) out->selects[k - 1] = n < out->n_orig;
    return OK;
}

static status layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                    struct prune_selection *out, struct err *e)
{
    (void)l;
    const int kinds = (int)r->params->value[KINDS];
    const uint32_t n = kinds == KINDS_VISION ? r->prompt->n_vision : r->prompt->n_av;
    return layer_best(r, v, v->score, kinds, kept_of(r->params, n), out, e);
}

static bool pick(const struct policy_run *r, uint32_t l, struct prune_pick *out)
{
    *out = (struct prune_pick){ .k = r->plan->alive[l] - r->plan->alive[l + 1] };
    return (int)r->params->value[KINDS] == KINDS_AV;
}

const struct policy policy_fastv = {
    .name = "fastv",
    .citation = "Chen et al., FastV, arXiv 2403.06764 (ECCV 2024)",
    .help = "Once, after an early layer: keeps what the last prompt row looks at.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .check = check,
    .plan = plan,
    .layer = layer,
    .pick = pick
};
