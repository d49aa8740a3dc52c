/* prune/omnizip.h - OmniZip's removal rates of video groups (docs/pruning-methods.md 2.3, 2.6.3). */
#ifndef PRUNE_OMNIZIP_H
#define PRUNE_OMNIZIP_H

#include <stdbool.h>
#include <stdint.h>

/* rate[i] of group i with n[i] video tokens and share[i] of its audio kept (NaN: it has none). exact: sum n rate = rho_v sum n
 * by one offset; else as published, which may miss it. */
void omnizip_rates(const uint32_t *n, const double *share, uint32_t count, double rho_v, double rho_min, double rho_max, bool exact,
                   double *rate);

#endif
