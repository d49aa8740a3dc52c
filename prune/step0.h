/* prune/step0.h - pruning before the decoder, item by item: audio by encoder saliency, films by temporal token merging
 * (which discards; nothing is averaged), grid steps by vision saliency. OmniDrop's step 0 is the first two.
 * Source: arXiv 2605.14458 3.4; DyCoke (arXiv 2411.15024) for TTM; docs/omnidrop.md 2, docs/pruning-methods.md 3. */
#ifndef PRUNE_STEP0_H
#define PRUNE_STEP0_H

#include "prune/policy.h"

struct step0 {
    double audio;                  /* share of an item's audio tokens that is kept, by saliency; 1: all            */
    double kappa;                  /* share kept of a reduced grid step: what changed most; 1: all (no TTM)        */
    double vision;                 /* share kept of each grid step and picture, by saliency; 1: all. Not with TTM  */
    bool anchor;                   /* all steps of a group against its first, not g3 against g2                    */
};

extern const char *const STEP0_REF[];  /* words of the parameter `ref`; index 1: anchor */
#define STEP0_REF_HELP "merging compares with: dycoke (step before, second of a pair) or anchor (first of the group)"

/* From the parameters audio, kappa, vision and ref, as far as the policy has them. */
struct step0 step0_of(const struct policy_params *p);

/* AV tokens left of one item. */
uint32_t step0_count(const struct step0 *s, const struct prune_item *item);
/* Of all items; at least 1 where there was 1. */
uint32_t step0_total(const struct step0 *s, const struct prune_shape *shape);
/* Of each kind, as step0_select keeps them: kept[enum token_kind]. */
void step0_kinds(const struct step0 *s, const struct prompt *p, uint32_t kept[4]);
/* enum prune_needs */
uint32_t step0_needs(const struct step0 *s);

/* Shrink out, which holds all of prompt->av, to what is kept. */
status step0_select(const struct step0 *s, const struct prompt *p, const struct prune_embed_view *v,
                    struct prune_selection *out, struct err *e);

#endif
