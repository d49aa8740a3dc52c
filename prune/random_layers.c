/* prune/random_layers.c - OmniDrop's plan with a random choice: as many tokens go at the same places, and nobody is asked
 * which. What the question's guidance is worth is the difference. */
#include <math.h>

#include "prune/draw.h"
#include "prune/omnidrop.h"
#include "prune/policies.h"

enum { SEED = OD_SHARED };
static const struct prune_param PARAMS[] = {
    OD_PARAMS,
    [SEED] = { "seed", NULL, PARAM_INTEGER, 0, 9007199254740992.0, 0, "same seed, same choice", NULL },
};

/* As many of each kind as step 0 would keep. */
static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    (void)v;
    if (r->params->value[OD_STEP0] == 0) return OK;
    const struct step0 s0 = step0_of(r->params);
    uint32_t kept[4];
    step0_kinds(&s0, r->prompt, kept);
    for (uint32_t kind = TOKEN_AUDIO; kind <= TOKEN_IMAGE; kind++)
        TRY(draw_keep((uint64_t)r->params->value[SEED], 0, r->prompt, 1u << kind, kept[kind], out, e));
    return OK;
}

static status layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                    struct prune_selection *out, struct err *e)
{
    (void)v;
    return draw_keep((uint64_t)r->params->value[SEED], l + 1, r->prompt, ~0u, r->plan->alive[l + 1], out, e);
}

const struct policy policy_random_layers = {
    .name = "random-layers",
    .citation = "baseline",
    .help = "OmniDrop's schedule and counts, with a random choice before the decoder and at each layer.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .defaults = omnidrop_defaults,
    .check = omnidrop_check,
    .plan = omnidrop_plan,
    .embed = embed,
    .layer = layer
};
