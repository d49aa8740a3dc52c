/* tests/engine/ranks.h - an engine on n ranks that are threads of this process: the leader is the caller. */
#ifndef TESTS_ENGINE_RANKS_H
#define TESTS_ENGINE_RANKS_H

#include <pthread.h>
#include <stdlib.h>

#include "base/mem.h"
#include "engine/engine.h"
#include "tests/comm_threads.h"

/* Which rank the calling thread is. */
extern _Thread_local uint32_t ranks_me;

struct rank_thread {
    pthread_t thread;
    struct comm *comm;
    struct engine_options o;
    uint32_t rank;
    status st;
    struct err e;
};
struct ranks {
    struct engine *en;
    uint32_t n;
    struct comm *comm[COMM_THREADS_MAX];
    struct rank_thread worker[COMM_THREADS_MAX];
};

/* engine_open on n ranks; others may be given their own options (NULL: none). The workers' ends are in r->worker after
 * ranks_close, which is called also where this fails. */
status ranks_open(struct ranks *r, uint32_t n, const struct engine_options *o, const struct engine_options *others, struct err *e);
/* The same over r->n communicators that are in r->comm already. */
status ranks_open_on(struct ranks *r, const struct engine_options *o, const struct engine_options *others, struct err *e);
void ranks_close(struct ranks *r);

/* The same in the form of engine_open and engine_close; n ranks where the model can be cut into so many. */
status ranks_engine_open(uint32_t n, const struct engine_options *o, struct engine **out, struct err *e);
void ranks_engine_close(struct engine **en);

#endif
