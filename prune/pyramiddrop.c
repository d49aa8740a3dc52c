/* prune/pyramiddrop.c - PyramidDrop: at a few layers a share stays, ranked by the last prompt row with that layer's own weights;
 * the dropped are not even keys there. Positions are kept, unlike in the authors' code, which tears TMRoPE's clock apart.
 * Source: arXiv 2410.17247; docs/pruning-methods.md 8.1. */
#include <math.h>

#include "prune/choose.h"
#include "prune/policies.h"

enum { R, AT, KINDS };
static const struct prune_param PARAMS[] = {
    [R] = { "R", NULL, PARAM_NUMBER, 0, 1, 0.5, "share kept at each stage", NULL },
    [AT] = { "at", NULL, PARAM_LIST, 0, 4095, NAN,
             "layers, from 0, before which a stage is; not set: L/4, L/2, 3L/4", NULL },
    [KINDS] = { "kinds", NULL, PARAM_WORD, 0, 1, KINDS_AV,
                "what is ranked: all AV tokens, or vision with audio whole", KINDS_WORDS },
};

/* The stages of L layers. */
static struct prune_list stages(const struct policy_params *p, uint32_t L)
{
    const struct prune_list *at = prune_list_of(p, AT);
    if (at->n) return *at;
    return (struct prune_list){ .n = 3, .v = { L / 4, L / 2, 3 * L / 4 } };
}

static status check(struct policy_params *p, struct err *e)
{
    const struct prune_list *at = prune_list_of(p, AT);
    for (uint32_t i = 0; i < at->n; i++)
        if (at->v[i] != (uint32_t)at->v[i] || (i && at->v[i] <= at->v[i - 1]) ||
            (p->n_layers && at->v[i] >= p->n_layers))
            return err_set(e, E_ARG, "at: give ascending layers below %u, whole numbers from 0", p->n_layers);
    return OK;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const uint32_t L = s->n_layers, spared = kinds_spared(s, (int)p->value[KINDS]);
    const struct prune_list at = stages(p, L);
    uint32_t n = out->n_orig - spared;
    out->needs = PRUNE_NEEDS_ROW_SCORES | PRUNE_NEEDS_GO;
    out->query = QUERY_LAST;
    out->go = true;
    for (uint32_t l = 0, i = 0; l <= L; l++) {
        for (; l < L && i < at.n && at.v[i] == l; i++) {
            const uint32_t less = prune_floor(p->value[R] * (double)n);
            out->selects[l] = out->selects[l] || less < n;
            n = less;
        }
        out->alive[l] = spared + n;
    }
    return OK;
}

static status layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                    struct prune_selection *out, struct err *e)
{
    const int kinds = (int)r->params->value[KINDS];
    const uint32_t spared = kinds == KINDS_VISION ? r->prompt->n_audio : 0;
    return layer_best(r, v, v->score, kinds, r->plan->alive[l] - spared, out, e);
}

const struct policy policy_pyramiddrop = {
    .name = "pyramiddrop",
    .citation = "Xing et al., PyramidDrop, arXiv 2410.17247 (CVPR 2025)",
    .help = "A share stays at each of a few layers, by the last prompt row's attention.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .check = check,
    .plan = plan,
    .layer = layer
};
