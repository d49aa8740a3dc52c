/* prune/schedule.h - OmniDrop's layer-wise schedule: how many AV tokens live at each layer. Pure arithmetic in double
 * precision, as printed: floor of the double product. Source: arXiv 2605.14458 Eq. 3, 4, 6; docs/omnidrop.md 3. */
#ifndef PRUNE_SCHEDULE_H
#define PRUNE_SCHEDULE_H

#include <stdint.h>

#include "base/err.h"

struct prune_schedule { double p_init, p_final, t_mid, beta; };

/* Share that layer l of L drops: p_init + (p_final - p_init) / (1 + exp(-beta (l/L - t_mid))); 0 at the last. */
double prune_rate(const struct prune_schedule *s, uint32_t l, uint32_t L);

/* k_l of n_l tokens. */
uint32_t prune_drop_count(const struct prune_schedule *s, uint32_t l, uint32_t L, uint32_t n_l);

/* alive[l] = tokens entering layer l, l < L; alive[L] = left after the last. */
void prune_alive(const struct prune_schedule *s, uint32_t L, uint32_t n_0, uint32_t *alive);

/* (1/L) sum_l r_l of the continuous trajectory r_l = r0 prod_{j<l} (1 - p_j). */
double prune_mean_retained(const struct prune_schedule *s, uint32_t L, double r0);

/* p_final such that prune_mean_retained == target, by bisection to the last bit. s->p_final is not read.
 * E_ARG: the target is out of reach; the text and reachable[2] (may be NULL) have the range. */
status prune_calibrate(const struct prune_schedule *s, uint32_t L, double r0, double target, double *p_final,
                       double reachable[2], struct err *e);

#endif
