/* prune/dash.h - DASH's boundaries in audio (docs/pruning-methods.md 4). */
#ifndef PRUNE_DASH_H
#define PRUNE_DASH_H

#include <stdint.h>

/* cos [n - 1] of neighbours. cut [n + 1] gets 0, the cuts, n; returns how many entries: a cut lies behind token t where cos[t] is
 * below the threshold, at least `gap` after the last. */
uint32_t dash_cuts(const float *cos, uint32_t n, double threshold, uint32_t gap, uint32_t *cut);

#endif
