/* prune/vtc_cls.c - VTC-CLS: attention of the tower summed over several of its layers. Qwen2.5-Omni has no CLS token: attention
 * received in its full-attention blocks stands in. Source: arXiv 2412.05819; docs/pruning-methods.md 7.1. */
#include <math.h>

#include "prune/choose.h"
#include "prune/policies.h"

enum { RETAIN };
static const struct prune_param PARAMS[] = {
    [RETAIN] = { "retain", "R", PARAM_NUMBER, 0, 1, 0.3,
                 "share kept of each grid step and picture, at least one token", NULL }
};

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_items; i++)
        n += s->item[i].n_audio + s->item[i].steps * prune_kept(p->value[RETAIN], s->item[i].step_tokens);
    prune_plan_entry(out, n);
    out->needs = PRUNE_NEEDS_VISION_BLOCKS;
    return OK;
}

static status choose(struct choice *c, struct err *e)
{
    const struct av_groups *g = &c->g;
    choose_all(c, g->audio, g->n_audio);
    for (uint32_t s = 0; s < g->n_steps; s++) {
        const struct av_step *step = &g->step[s];
        for (uint32_t i = 0; i < step->n; i++) {
            double sum = 0;
            for (uint32_t b = 0; b < c->v->n_blocks; b++)
                sum += c->v->vision_blocks[(size_t)b * g->n_vision + g->vision_row[step->first + i]];
            c->score[i] = (float)sum;
        }
        TRY(choose_best(c, g->vision + step->first, step->n, prune_kept(c->r->params->value[RETAIN], step->n),
                        e));
    }
    return OK;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    status st = choose_begin(&c, r, v, out, e);
    if (st == OK) st = choose(&c, e);
    return choose_end(&c, st, e);
}

const struct policy policy_vtc_cls = {
    .name = "vtc-cls",
    .citation = "Wang et al., VTC-CLS, arXiv 2412.05819 (2024)",
    .help = "Before the decoder: vision that several blocks of its tower look at. Audio whole.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .plan = plan,
    .embed = embed
};
