/* prune/draw.h - random choices among tokens: every prompt index draws a key from a hash, the lowest keys stay. So the same
 * request gets the same choice in any batch, and what else is alive changes nobody's key. */
#ifndef PRUNE_DRAW_H
#define PRUNE_DRAW_H

#include "prune/policy.h"

/* Of the tokens of s whose kind is in `kinds` (bits 1 << enum token_kind) keep k, all where there are no more; the others
 * stay. s stays ascending. Each round of a seed draws anew. */
status draw_keep(uint64_t seed, uint32_t round, const struct prompt *p, unsigned kinds, uint32_t k, struct prune_selection *s,
                 struct err *e);

#endif
