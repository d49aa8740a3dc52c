/* prune/seats.h - SEATS's keep ratios inside the decoder (docs/pruning-methods.md 8.1). */
#ifndef PRUNE_SEATS_H
#define PRUNE_SEATS_H

#include <stdint.h>

#define SEATS_DROPS_MAX 16

struct seats_ratios {
    uint32_t n;
    uint32_t at[SEATS_DROPS_MAX];   /* layers from 0; the choice is made before their K and V                      */
    double ratio[SEATS_DROPS_MAX];  /* kept of what is alive there, rounded to 4 digits                            */
    uint32_t exit_at;               /* first layer, from 0, without AV tokens; the layer count: none               */
};

/* drop [n_drops] and exit are counted from 1, as published. entry: share that enters layer 0; target: wanted mean over all layers. */
struct seats_ratios seats_ratios_of(uint32_t layers, const double *drop, uint32_t n_drops, uint32_t exit, double entry, double target);

#endif
