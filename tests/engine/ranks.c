/* tests/engine/ranks.c - see ranks.h. */
#include "tests/engine/ranks.h"

#include <stdio.h>
#include <string.h>

_Thread_local uint32_t ranks_me;

static void *serve(void *self)
{
    struct rank_thread *w = self;
    ranks_me = w->rank;
    w->st = engine_work(w->comm, &w->o, &w->e);
    return NULL;
}

status ranks_open_on(struct ranks *r, const struct engine_options *o, const struct engine_options *others, struct err *e)
{
    struct engine_options lead = *o;
    for (uint32_t i = 1; i < r->n; i++) {
        struct rank_thread *w = &r->worker[i];
        *w = (struct rank_thread){ .comm = r->comm[i], .rank = i };
        if (others) w->o = *others;
        if (pthread_create(&w->thread, NULL, serve, w) != 0) abort();
    }
    lead.comm = r->comm[0];
    return engine_open(&lead, &r->en, e);
}

status ranks_open(struct ranks *r, uint32_t n, const struct engine_options *o, const struct engine_options *others, struct err *e)
{
    *r = (struct ranks){ .n = n };
    comm_threads_open(n, r->comm);
    return ranks_open_on(r, o, others, e);
}

void ranks_close(struct ranks *r)
{
    engine_close(&r->en);
    for (uint32_t i = 1; i < r->n; i++) pthread_join(r->worker[i].thread, NULL);
    for (uint32_t i = 0; i < r->n; i++) comm_close(&r->comm[i]);
}

/* ---- in the form of engine_open -------------------------------------------------------------------------------- */

static struct ranks open_now[16];

status ranks_engine_open(uint32_t n, const struct engine_options *o, struct engine **out, struct err *e)
{
    size_t i = 0;
    while (open_now[i].en) i++;
    const status st = ranks_open(&open_now[i], n, o, NULL, e);
    if (st != OK) {
        ranks_close(&open_now[i]);
        return st;
    }
    *out = open_now[i].en;
    return OK;
}

void ranks_engine_close(struct engine **en)
{
    size_t i = 0;
    if (*en == NULL) return;
    while (open_now[i].en != *en) i++;
    ranks_close(&open_now[i]);
    for (uint32_t r = 1; r < open_now[i].n; r++)
        if (open_now[i].worker[r].st != OK) {
            fprintf(stderr, "rank %u: %s\n", r, open_now[i].worker[r].e.text);
            abort();
        }
    *en = NULL;
}
