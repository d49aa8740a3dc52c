/* prune/step0.h - OmniDrop's pruning before the decoder: audio by encoder saliency, films by temporal token merging.
 * Source: arXiv 2605.14458 3.4; DyCoke (arXiv 2411.15024) for TTM; docs/omnidrop.md 2, docs/pruning-methods.md 3. */
#ifndef PRUNE_STEP0_H
#define PRUNE_STEP0_H

#include "prune/policy.h"

struct step0 {
    double audio;                  /* share of an item's audio tokens that is kept, by saliency; 1: all */
    double kappa;                  /* share kept of a reduced grid step; 1: all (no TTM)                */
    bool anchor;                   /* all steps of a group against its first, not g3 against g2         */
};

/* AV tokens left of one item. */
uint32_t step0_count(const struct step0 *s, const struct prune_item *item);
/* Of all items; at least 1 where there was 1. */
uint32_t step0_total(const struct step0 *s, const struct prune_shape *shape);

/* Mark the tokens to keep among prompt->av: keep[i] for av[i]. */
status step0_select(const struct step0 *s, const struct prompt *p, const struct prune_embed_view *v, bool *keep,
                    struct err *e);

#endif
