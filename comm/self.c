/* comm/self.c - the table of one rank: everything is a copy of its own bytes. Others do not exist, so there is nobody to
 * send a tensor to; messages to oneself go by the inbox (message.c). */
#include <string.h>

#include "comm/inside.h"

static status self_all_reduce(struct comm *c, float *x, size_t n, struct err *e)
{
    (void)c, (void)x, (void)n, (void)e;
    return OK;
}

static status self_gather(struct comm *c, const char *call, uint32_t root, const void *mine, void *all, const size_t *bytes,
                          struct err *e)
{
    (void)c, (void)call, (void)root, (void)e;
    if (mine != all && bytes[0] > 0) memmove(all, mine, bytes[0]);
    return OK;
}

static status self_broadcast(struct comm *c, uint32_t root, void *x, size_t bytes, struct err *e)
{
    (void)c, (void)root, (void)x, (void)bytes, (void)e;
    return OK;
}

static status self_barrier(struct comm *c, const char *call, struct err *e)
{
    (void)c, (void)call, (void)e;
    return OK;
}

static status self_pull(struct comm *c, bool *came, struct err *e)
{
    (void)c, (void)e;
    *came = false;
    return OK;
}

/* send, recv and post are refused or served before the table is asked: there is no other rank. */
const struct comm_ops comm_self_ops = {
    .name = "self",
    .all_reduce = self_all_reduce,
    .gather = self_gather,
    .broadcast = self_broadcast,
    .barrier = self_barrier,
    .pull = self_pull,
};
