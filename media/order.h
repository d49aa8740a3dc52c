/* media/order.h - inside header: which packet is which frame, told before it is decoded.
 * A frame's number is the rank of its timestamp among all of the film, and packets come in decoding order, at
 * most ORDER_DEPTH of them out of place. Timestamps go in as packets are read; once ORDER_DEPTH of them have
 * no number yet, the smallest gets the next one. What breaks the assumption (no timestamp, two equal ones,
 * one that comes after its number has gone to another) is noticed and said. Nothing here grows with the
 * film. */
#ifndef MEDIA_ORDER_H
#define MEDIA_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#define ORDER_DEPTH 40                    /* codecs reorder at most 16 frames */

struct order {
    int64_t waiting[ORDER_DEPTH + 1];     /* timestamps without a number, in no order */
    uint32_t n_waiting;
    int64_t last;                         /* the largest numbered                     */
    uint64_t n_numbered;
};

/* Take a timestamp in. False: the order cannot be told. */
bool order_put(struct order *o, int64_t pts);

/* The timestamp of frame n_numbered, which then counts as numbered. False: more packets must come first; at
 * the end of the film (`all`) only when none is waiting. */
bool order_next(struct order *o, bool all, int64_t *pts);

#endif
