/* prune/uniform.c - evenly spaced tokens before the decoder: what a choice by content must beat. */
#include "prune/policies.h"

static const struct prune_param PARAMS[] = { { "retention", "R", PARAM_NUMBER, 0, 1, 0.3,
                                               "share kept, floor(R n) tokens in all" } };

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)s, (void)e;
    prune_plan_entry(out, prune_kept(p->value[0], out->n_orig));
    return OK;
}

/* Token i of n in prompt order stays where floor(i k / n) steps. */
static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    (void)v, (void)e;
    const uint64_t n = out->n_keep, k = r->plan->n_entry;
    out->n_keep = 0;
    for (uint64_t i = 0; i < n; i++)
        if ((i + 1) * k / n > i * k / n) out->keep[out->n_keep++] = out->keep[i];
    return OK;
}

const struct policy policy_uniform = { .name = "uniform",
                                       .citation = "baseline",
                                       .help = "Evenly spaced tokens before layer 0.",
                                       .param = PARAMS,
                                       .n_param = sizeof PARAMS / sizeof *PARAMS,
                                       .plan = plan,
                                       .embed = embed };
