/* media/order.c - see order.h. */
#include "media/order.h"

bool order_put(struct order *o, int64_t pts)
{
    if (pts == INT64_MIN || (o->n_numbered > 0 && pts <= o->last)) return false;
    for (uint32_t i = 0; i < o->n_waiting; i++)
        if (o->waiting[i] == pts) return false;
    o->waiting[o->n_waiting++] = pts;
    return true;
}

bool order_next(struct order *o, bool all, int64_t *pts)
{
    if (o->n_waiting == 0 || (!all && o->n_waiting <= ORDER_DEPTH)) return false;
    uint32_t least = 0;
    for (uint32_t i = 1; i < o->n_waiting; i++)
        if (o->waiting[i] < o->waiting[least]) least = i;
    *pts = o->last = o->waiting[least];
    o->waiting[least] = o->waiting[--o->n_waiting];
    o->n_numbered++;
    return true;
}
