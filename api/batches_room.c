/* api/batches_room.c - how many batch lines the service has room for: batches_room of batches.h. */
#include "api/batches.h"

uint32_t batches_room(void *room, uint32_t n_batch)
{
    const struct batches_room *r = room;
    struct service_gauges g;
    service_read(r->service, &g);
    const uint32_t all = g.n_preparing + g.n_waiting + g.n_encoding + g.n_prefilling + g.n_decoding;
    const uint32_t online = all > n_batch ? all - n_batch : 0;
    const uint32_t left = r->max_running > online ? r->max_running - online : 0;
    const uint32_t share = (uint32_t)(r->share * r->max_running + 0.5);
    return left < share ? left : share;
}
