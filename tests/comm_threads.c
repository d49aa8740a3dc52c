/* tests/comm_threads.c - see comm_threads.h. */
#include "tests/comm_threads.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"

struct letter { struct letter *next; struct comm_message m; };

struct hub {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    uint32_t n, open, arrived, turn;
    bool dead[COMM_THREADS_MAX], idle[COMM_THREADS_MAX];
    uint32_t die[COMM_THREADS_MAX], corrupt[COMM_THREADS_MAX];     /* countdowns; 0: never */
    void *mem[COMM_THREADS_MAX];
    struct letter *inbox[COMM_THREADS_MAX];
    struct comm_peer peer[COMM_THREADS_MAX];
};
struct comm { struct hub *h; uint32_t rank; };

void comm_threads_open(uint32_t n, struct comm **out)
{
    struct hub *h = mem_must(1, sizeof *h);
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->moved, NULL);
    h->n = h->open = n;
    for (uint32_t r = 0; r < n; r++) {
        h->peer[r] = (struct comm_peer){ .host = "here", .world = r, .local = r, .n_local = n };
        out[r] = mem_must(1, sizeof **out);
        *out[r] = (struct comm){ h, r };
    }
}

void comm_close(struct comm **pc)
{
    struct comm *c = *pc;
    if (c == NULL) return;
    struct hub *h = c->h;
    pthread_mutex_lock(&h->lock);
    const bool last = --h->open == 0;
    pthread_mutex_unlock(&h->lock);
    for (uint32_t r = 0; last && r < h->n; r++)
        while (h->inbox[r]) {
            struct letter *l = h->inbox[r];
            h->inbox[r] = l->next;
            free(l->m.bytes);
            free(l);
        }
    if (last) free(h);
    free(c);
    *pc = NULL;
}

static void set(struct comm *c, uint32_t *of, uint32_t r, uint32_t k)
{
    pthread_mutex_lock(&c->h->lock);
    of[r] = k;
    pthread_mutex_unlock(&c->h->lock);
}

void comm_threads_die(struct comm *c, uint32_t r, uint32_t k) { set(c, c->h->die, r, k); }
void comm_threads_corrupt(struct comm *c, uint32_t r, uint32_t k) { set(c, c->h->corrupt, r, k); }

bool comm_threads_idle(struct comm *c, uint32_t r)
{
    pthread_mutex_lock(&c->h->lock);
    const bool idle = c->h->idle[r];
    pthread_mutex_unlock(&c->h->lock);
    return idle;
}

uint32_t comm_rank(const struct comm *c) { return c->rank; }
uint32_t comm_size(const struct comm *c) { return c->h->n; }
const struct comm_peer *comm_peer(const struct comm *c, uint32_t rank) { return &c->h->peer[rank]; }
const char *comm_name(const struct comm *c) { return c ? "threads" : ""; }

static bool counted(uint32_t *k) { return *k > 0 && --*k == 0; }

/* Under the lock: is everyone alive? A rank whose time has come dies here. */
static status alive(struct comm *c, const char *call, struct err *e)
{
    struct hub *h = c->h;
    if (counted(&h->die[c->rank])) {
        h->dead[c->rank] = true;
        pthread_cond_broadcast(&h->moved);
    }
    for (uint32_t r = 0; r < h->n; r++)
        if (h->dead[r]) return err_set(e, E_DEVICE, "%s: rank %u (%s) is gone", call, r, h->peer[r].host);
    return OK;
}

/* All ranks come here, or one is dead. Under the lock. */
static status meet(struct comm *c, const char *call, struct err *e)
{
    struct hub *h = c->h;
    TRY(alive(c, call, e));
    const uint32_t turn = h->turn;
    if (++h->arrived == h->n) {
        h->arrived = 0;
        h->turn++;
        pthread_cond_broadcast(&h->moved);
        return OK;
    }
    while (h->turn == turn) {
        for (uint32_t r = 0; r < h->n; r++)
            if (h->dead[r]) return err_set(e, E_DEVICE, "%s: rank %u (%s) is gone", call, r, h->peer[r].host);
        pthread_cond_wait(&h->moved, &h->lock);
    }
    return OK;
}

/* Everybody's memory is on show between the two meetings, unlocked. */
static status show(struct comm *c, const char *call, void *mem, struct err *e)
{
    pthread_mutex_lock(&c->h->lock);
    c->h->mem[c->rank] = mem;
    const status st = meet(c, call, e);
    pthread_mutex_unlock(&c->h->lock);
    return st;
}

static status hide(struct comm *c, const char *call, struct err *e)
{
    pthread_mutex_lock(&c->h->lock);
    const status st = meet(c, call, e);
    pthread_mutex_unlock(&c->h->lock);
    return st;
}

status comm_all_reduce(struct comm *c, struct stream *st, float *x, size_t n, struct err *e)
{
    (void)st;
    float *sum = mem_must(n, sizeof *sum);
    status s = show(c, "all_reduce", x, e);
    for (uint32_t r = 0; r < c->h->n && s == OK; r++)
        for (size_t i = 0; i < n; i++) {
            const float v = ((const float *)c->h->mem[r])[i];
            sum[i] = r == 0 ? v : sum[i] + v;
        }
    if (s == OK) s = hide(c, "all_reduce", e);
    if (s == OK) {
        memcpy(x, sum, n * sizeof *sum);
        pthread_mutex_lock(&c->h->lock);
        if (counted(&c->h->corrupt[c->rank]) && n > 0) x[n / 2] = nextafterf(x[n / 2], INFINITY);
        pthread_mutex_unlock(&c->h->lock);
    }
    free(sum);
    return s;
}

static status gather(struct comm *c, const char *call, bool mine_too, const void *mine, void *all, const size_t *bytes,
                     struct err *e)
{
    TRY(show(c, call, (void *)(uintptr_t)mine, e));
    size_t at = 0;
    for (uint32_t r = 0; r < c->h->n && mine_too; at += bytes[r++])
        if (bytes[r] && c->h->mem[r] != (char *)all + at) memmove((char *)all + at, c->h->mem[r], bytes[r]);
    return hide(c, call, e);
}

status comm_all_gather(struct comm *c, struct stream *st, const void *mine, void *all, const size_t *bytes, struct err *e)
{
    (void)st;
    return gather(c, "all_gather", true, mine, all, bytes, e);
}

status comm_gather(struct comm *c, struct stream *st, uint32_t root, const void *mine, void *all, const size_t *bytes,
                   struct err *e)
{
    (void)st;
    return gather(c, "gather", c->rank == root, mine, all, bytes, e);
}

status comm_broadcast(struct comm *c, struct stream *st, uint32_t root, void *x, size_t bytes, struct err *e)
{
    (void)st;
    TRY(show(c, "broadcast", x, e));
    if (c->rank != root && bytes) memcpy(x, c->h->mem[root], bytes);
    return hide(c, "broadcast", e);
}

status comm_post(struct comm *c, uint32_t to, uint32_t tag, const void *bytes, size_t n, struct err *e)
{
    struct hub *h = c->h;
    struct letter *l = mem_must(1, sizeof *l), **end;
    l->m = (struct comm_message){ .from = c->rank, .tag = tag, .bytes = mem_must(n, 1), .n = n };
    if (n) memcpy(l->m.bytes, bytes, n);
    pthread_mutex_lock(&h->lock);
    const status st = alive(c, "post", e);
    if (st == OK) {
        for (end = &h->inbox[to]; *end; end = &(*end)->next) {}
        *end = l;
        pthread_cond_broadcast(&h->moved);
    }
    pthread_mutex_unlock(&h->lock);
    if (st == OK) return OK;
    free(l->m.bytes);
    free(l);
    return st;
}

status comm_post_all(struct comm *c, uint32_t tag, const void *bytes, size_t n, struct err *e)
{
    for (uint32_t r = 0; r < c->h->n; r++)
        if (r != c->rank) TRY(comm_post(c, r, tag, bytes, n, e));
    return OK;
}

static struct letter *find(struct hub *h, uint32_t rank, uint32_t from, uint32_t tag)
{
    for (struct letter **at = &h->inbox[rank]; *at; at = &(*at)->next) {
        struct letter *l = *at;
        if ((from != COMM_ANY && l->m.from != from) || (tag != COMM_ANY && l->m.tag != tag)) continue;
        *at = l->next;
        return l;
    }
    return NULL;
}

status comm_take(struct comm *c, uint32_t from, uint32_t tag, double wait_s, struct comm_message *out, bool *got,
                 struct err *e)
{
    struct hub *h = c->h;
    struct letter *l;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += isinf(wait_s) ? 0 : (time_t)wait_s + 1;
    *got = false;
    pthread_mutex_lock(&h->lock);
    status st = OK;
    for (bool late = false; (l = find(h, c->rank, from, tag)) == NULL && !late;) {
        st = alive(c, "take", e);
        if (st != OK) break;
        h->idle[c->rank] = true;
        if (isinf(wait_s)) pthread_cond_wait(&h->moved, &h->lock);
        else late = pthread_cond_timedwait(&h->moved, &h->lock, &until) != 0;
        h->idle[c->rank] = false;
    }
    pthread_mutex_unlock(&h->lock);
    if (l == NULL) return st;
    *out = l->m;
    *got = true;
    free(l);
    return OK;
}

/* Threads share the host's memory: no device is anyone's own. */
status comm_attach(struct comm *c, struct stream *st, void *native, int device, struct err *e)
{
    (void)c, (void)st, (void)native, (void)device;
    return err_set(e, E_MODEL, "ranks that are threads have no NCCL");
}
void comm_detach(struct comm *c) { (void)c; }
bool comm_attached(const struct comm *c)
{
    (void)c;
    return false;
}
void comm_versions(const struct comm *c, char *text, size_t cap) { snprintf(text, cap, "%s", comm_name(c)); }
status comm_look(void *self, double waited, struct err *e)
{
    (void)self, (void)waited, (void)e;
    return OK;
}
