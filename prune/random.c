/* prune/random.c - a random choice before the decoder: what any method must beat at an equal budget. */
#include "prune/draw.h"
#include "prune/policies.h"

enum { RETENTION, SEED };
static const struct prune_param PARAMS[] = {
    [RETENTION] = { "retention", "R", PARAM_NUMBER, 0, 1, 0.3,
                    "share kept of each kind, floor(R n) tokens in all" },
    [SEED] = { "seed", NULL, PARAM_INTEGER, 0, 9007199254740992.0, 0, "same seed, same choice" },
};

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)s, (void)e;
    prune_plan_entry(out, prune_kept(p->value[RETENTION], out->n_orig));
    return OK;
}

/* Each tower gives its share: floor(R n) of the audio, and of the rest what makes the sum floor(R n). */
static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    (void)v;
    const struct prompt *p = r->prompt;
    const uint32_t k = r->plan->n_entry;
    const uint64_t seed = (uint64_t)r->params->value[SEED];
    uint32_t k_audio = prune_floor(r->params->value[RETENTION] * (double)p->n_audio);
    if (p->n_vision == 0) k_audio = k;
    TRY(draw_keep(seed, 0, p, 1u << TOKEN_AUDIO, k_audio, out, e));
    return draw_keep(seed, 0, p, 1u << TOKEN_VIDEO | 1u << TOKEN_IMAGE, k - k_audio, out, e);
}

const struct policy policy_random = { .name = "random",
                                      .citation = "baseline",
                                      .help = "A random share before layer 0.",
                                      .param = PARAMS,
                                      .n_param = sizeof PARAMS / sizeof *PARAMS,
                                      .plan = plan,
                                      .embed = embed };
