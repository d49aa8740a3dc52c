/* comm/message.c - messages: an inbox a group, one thread at a time that takes what has come out of the backend (others
 * find theirs in the inbox), and a bell, a futex in memory that the ranks of a host share, so that who waits sleeps. From
 * ranks of other hosts nothing rings: while any may send, the sleeper looks up every NAP_REMOTE. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "comm/inside.h"

#define NAP_REMOTE 0.0006
#define NAP_LOCAL 0.01             /* for what an MPI shows only after the bell was rung */
enum { SPINS = 100, YIELDS = 100 };

static struct bell *bell_of(struct world *w, uint32_t world_rank)
{
    if (w->bells == NULL) return world_rank == w->rank ? &w->own_bell : NULL;
    return w->host[world_rank] == w->host[w->rank] ? &w->bell[w->peer[world_rank].local] : NULL;
}

void bell_ring(struct world *w, uint32_t world_rank)
{
    struct bell *b = bell_of(w, world_rank);
    if (b == NULL) return;
    atomic_fetch_add(&b->rung, 1);
    if (atomic_load(&b->sleepers) != 0) syscall(SYS_futex, &b->rung, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void bell_wait(struct bell *b, uint32_t seen, double seconds)
{
    const struct timespec t = { .tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - floor(seconds)) * 1e9) };
    atomic_fetch_add(&b->sleepers, 1);
    syscall(SYS_futex, &b->rung, FUTEX_WAIT, seen, &t, NULL, 0);
    atomic_fetch_sub(&b->sleepers, 1);
}

void inbox_put(struct comm *c, struct letter *l)
{
    l->next = NULL;
    pthread_mutex_lock(&c->inbox_lock);
    *c->inbox_end = l;
    c->inbox_end = &l->next;
    pthread_mutex_unlock(&c->inbox_lock);
}

void inbox_clear(struct comm *c)
{
    for (struct letter *l = c->inbox, *next; l != NULL; l = next) {
        next = l->next;
        free(l->m.bytes);
        free(l);
    }
    c->inbox = NULL;
    c->inbox_end = &c->inbox;
}

static bool inbox_take(struct comm *c, uint32_t from, uint32_t tag, struct comm_message *out)
{
    bool got = false;
    pthread_mutex_lock(&c->inbox_lock);
    for (struct letter **at = &c->inbox; *at != NULL; at = &(*at)->next) {
        struct letter *l = *at;
        if ((from != COMM_ANY && l->m.from != from) || (tag != COMM_ANY && l->m.tag != tag)) continue;
        *at = l->next;
        if (c->inbox_end == &l->next) c->inbox_end = at;
        *out = l->m;
        free(l);
        got = true;
        break;
    }
    pthread_mutex_unlock(&c->inbox_lock);
    return got;
}

status comm_post(struct comm *c, uint32_t to, uint32_t tag, const void *bytes, size_t n, struct err *e)
{
    if (to >= c->size) return err_set(e, E_ARG, "comm_post: no rank %u among %u", to, c->size);
    if (tag >= COMM_TAGS) return err_set(e, E_ARG, "comm_post: tag %u: 0 to %d are there", tag, COMM_TAGS - 1);
    if (to == c->rank) {
        struct letter *l = mem_must(1, sizeof *l);
        l->m = (struct comm_message){ .from = to, .tag = tag, .n = n };
        const status st = mem_alloc_aligned(&l->m.bytes, n + 1, e);
        if (st != OK) {
            free(l);
            return st;
        }
        if (n > 0) memcpy(l->m.bytes, bytes, n);
        inbox_put(c, l);
        bell_ring(c->w, c->w->rank);
        return OK;
    }
    TRY(comm_check(c, "comm_post", 0, true, to, e));
    return c->ops->post(c, to, tag, bytes, n, e);
}

status comm_post_all(struct comm *c, uint32_t tag, const void *bytes, size_t n, struct err *e)
{
    if (c->rank != 0) return err_set(e, E_ARG, "comm_post_all: rank %u of the group: it is rank 0's call", c->rank);
    status st = OK;
    for (uint32_t r = 1; r < c->size; r++) {
        if (c->accepted[r] && comm_dead(c, r, NULL)) continue;
        /* The living get it whoever is dead; the first error is the caller's. */
        const status one = comm_post(c, r, tag, bytes, n, st == OK ? e : NULL);
        if (st == OK) st = one;
    }
    return st;
}

void comm_go_on(struct comm *c)
{
    for (uint32_t r = 0; r < c->size; r++)
        if (comm_dead(c, r, NULL)) c->accepted[r] = 1;
}

status comm_take(struct comm *c, uint32_t from, uint32_t tag, double wait_s, struct comm_message *out, bool *got, struct err *e)
{
    *got = false;
    if (from != COMM_ANY && from >= c->size) return err_set(e, E_ARG, "comm_take: no rank %u among %u", from, c->size);
    if (tag != COMM_ANY && tag >= COMM_TAGS) return err_set(e, E_ARG, "comm_take: tag %u: 0 to %d are there", tag, COMM_TAGS - 1);
    struct bell *bell = bell_of(c->w, c->w->rank);
    const double start = clock_s(), most = c->all_local ? NAP_LOCAL : NAP_REMOTE;
    for (uint32_t turn = 0, last = 0;; turn++) {
        const uint32_t rung = atomic_load(&bell->rung);
        bool came = false;
        if (rung != last) turn = 0;            /* a message is there, or nearly */
        last = rung;
        if (inbox_take(c, from, tag, out)) {
            *got = true;
            return OK;
        }
        const uint32_t gone = c->w->watch ? watch_count(c->w->watch) : 0;
        if (pthread_mutex_trylock(&c->pull_lock) == 0) {
            const status st = c->ops->pull(c, &came, e);
            pthread_mutex_unlock(&c->pull_lock);
            if (st != OK) return st;
        }
        if (came) {
            if (inbox_take(c, from, tag, out)) {
                *got = true;
                return OK;
            }
            bell_ring(c->w, c->w->rank);       /* somebody else's */
            turn = 0;
            continue;
        }
        /* What a rank sent before it died was looked for after its death was known. */
        const double waited = clock_s() - start;
        if (gone != 0) TRY(comm_check(c, "comm_take", waited, true, from, e));
        if (waited >= wait_s) return OK;
        if (turn < SPINS) continue;
        if (turn < SPINS + YIELDS) sched_yield();
        else bell_wait(bell, rung, wait_s - waited < most ? wait_s - waited : most);
    }
}
