/* prune/exit.c - no AV token from one layer on: what DyVTE's routers and YOPO's calibration come to without training.
 * Sources: arXiv 2411.19628, 2410.06169; docs/pruning-methods.md 7.4, 7.7. */
#include <math.h>

#include "prune/policies.h"

enum { AT };
static const struct prune_param PARAMS[] = {
    [AT] = { "at", NULL, PARAM_INTEGER, 0, 4095, NAN,
             "first layer, from 0, without any AV token; must be given", NULL },
};

static status check(struct policy_params *p, struct err *e)
{
    if (!p->given[AT])
        return err_set(e, E_ARG, "exit needs at: the first layer without audio and video (from 0)");
    if (p->n_layers && p->value[AT] >= p->n_layers)
        return err_set(e, E_ARG, "at is %g and the model has %u layers, numbered from 0", p->value[AT],
                       p->n_layers);
    return OK;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const uint32_t at = (uint32_t)p->value[AT];
    out->needs = PRUNE_NEEDS_GO;
    out->go = true;
    for (uint32_t l = at; l <= s->n_layers; l++) out->alive[l] = 0;
    if (at < s->n_layers) out->selects[at] = out->n_orig > 0;
    return OK;
}

static status layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                    struct prune_selection *out, struct err *e)
{
    (void)r, (void)l, (void)v, (void)e;
    out->n_keep = 0;
    return OK;
}

const struct policy policy_exit = {
    .name = "exit",
    .citation = "Wu et al., DyVTE, arXiv 2411.19628; Zhang et al., YOPO, arXiv 2410.06169 (2024)",
    .help = "Every AV token leaves before one layer.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .check = check,
    .plan = plan,
    .layer = layer
};
