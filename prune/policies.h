/* prune/policies.h - one line for each policy; registry.c lists them, nobody else includes this. */
#ifndef PRUNE_POLICIES_H
#define PRUNE_POLICIES_H

#include "prune/policy.h"

extern const struct policy policy_none, policy_random, policy_omnidrop, policy_ttm, policy_saliency, policy_step0;
extern const struct policy policy_random_layers, policy_uniform;

#endif
