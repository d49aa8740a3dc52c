/* api/outbox.h - messages to one other leader, in order, that nobody has to wait for: a thread posts them.
 *
 * A leader that was stopped or cut off holds up its own outbox only; what is put in afterwards is dropped as soon as a post
 * has failed. Who fills it bounds what is in it (api/remote.h, flow control). */
#ifndef API_OUTBOX_H
#define API_OUTBOX_H

#include "api/wire.h"

/* Messages between the leaders of all groups: those of one pair arrive in order. cli/ranks.c has it on comm/comm.h, tests
 * between threads. */
struct remote_link {
    void *self;
    uint32_t rank, size;           /* of this leader; rank g leads group g, rank 0 is the front */
    /* Any thread; may take as long as the other needs to take it. E_DEVICE: the other is gone. */
    status (*post)(void *self, uint32_t to, const void *bytes, size_t n, struct err *e);
    /* The next one to this rank: *bytes is owned by who takes it. *got false: none came within wait_s. One thread. */
    status (*take)(void *self, double wait_s, uint32_t *from, uint8_t **bytes, size_t *n, bool *got, struct err *e);
    uint32_t n_ranks;              /* of each group: those of group g are g * n_ranks and on; 0: 1 */
    /* Names of the hosts that a group is on, each once, for people. May be NULL. */
    void (*hosts)(void *self, uint32_t group, char *out, size_t cap);
};

struct outbox;
/* link is borrowed until outbox_close. E_NOMEM: no thread. */
status outbox_open(const struct remote_link *link, uint32_t to, struct outbox **out, struct err *e);
/* The bytes move from *w. Any thread; never waits. */
void outbox_put(struct outbox *o, struct wire *w);
/* What is in it is dropped, and what comes later. */
void outbox_drop(struct outbox *o);
/* Waits until what is in it was posted or has failed. */
void outbox_close(struct outbox **o);

#endif
