/* prune/omnidrop.h - OmniDrop's plan without its choice: for policies that drop as many tokens at the same places. Their
 * parameters begin with these. Source: arXiv 2605.14458 3.1, 3.4; docs/omnidrop.md 2, 3. */
#ifndef PRUNE_OMNIDROP_H
#define PRUNE_OMNIDROP_H

#include "prune/step0.h"

enum {
    OD_RETENTION, OD_P_INIT, OD_P_FINAL, OD_T_MID, OD_BETA, OD_STEP0, OD_AUDIO, OD_KAPPA, OD_TRIM, OD_TRIM_LAG,
    OD_SHARED                      /* a policy's own come from here on */
};

/* clang-format off */
#define OD_PARAMS                                                                                                        \
    [OD_RETENTION] = { "retention", NULL, PARAM_NUMBER, 1e-6, 1, NAN,                                                    \
                       "target mean share alive over layers; solves p_final", NULL },                                    \
    [OD_P_INIT] = { "p_init", NULL, PARAM_NUMBER, 0, 1, 0, "share that a shallow layer drops", NULL },                   \
    [OD_P_FINAL] = { "p_final", NULL, PARAM_NUMBER, 0, 1, 0.2, "share that a deep layer drops", NULL },                  \
    [OD_T_MID] = { "t_mid", NULL, PARAM_NUMBER, 0, 1, 0.5, "middle of the sigmoid as share of depth", NULL },            \
    [OD_BETA] = { "beta", NULL, PARAM_NUMBER, 1e-9, 1000, 20, "steepness of the sigmoid", NULL },                        \
    [OD_STEP0] = { "step0", "intra", PARAM_BOOL, 0, 1, 1, "pruning before layer 0", NULL },                              \
    [OD_AUDIO] = { "audio", NULL, PARAM_NUMBER, 0, 1, 0.7, "step 0: share of audio tokens kept", NULL },                 \
    [OD_KAPPA] = { "kappa", NULL, PARAM_NUMBER, 0, 1, 0.2, "step 0: share kept of a reduced grid step", NULL },          \
    [OD_TRIM] = { "trim", NULL, PARAM_BOOL, 0, 1, 0,                                                                     \
                  "release shallow layers' K and V of dropped tokens after prefill", NULL },                             \
    [OD_TRIM_LAG] = { "trim_lag", NULL, PARAM_INTEGER, 0, 4096, 4096,                                                    \
                      "trim: layer l keeps what is alive so many layers deeper; all layers: what is left at the end", NULL }
/* clang-format on */

/* For struct policy. The plan needs nothing by itself: what the choice needs is its policy's to add. */
void omnidrop_defaults(struct policy_params *p);
status omnidrop_check(struct policy_params *p, struct err *e);
status omnidrop_plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out, struct err *e);

#endif
