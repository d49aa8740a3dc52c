/* prune/policies.h - one line for each policy; registry.c lists them, nobody else includes this. */
#ifndef PRUNE_POLICIES_H
#define PRUNE_POLICIES_H

#include "prune/policy.h"

extern const struct policy policy_none, policy_random, policy_omnidrop, policy_ttm, policy_saliency, policy_step0;
extern const struct policy policy_random_layers, policy_uniform;
extern const struct policy policy_omnizip, policy_dash, policy_fastv, policy_pyramiddrop, policy_seats, policy_table, policy_exit;
extern const struct policy policy_omnisift_lite, policy_omnisift, policy_omnifit, policy_omnifocus, policy_trim_lc, policy_knee;
extern const struct policy policy_aim, policy_prumerge, policy_vtc_cls;

#endif
