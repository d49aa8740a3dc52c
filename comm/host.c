/* comm/host.c - several ranks on host memory. Where all of a group are on one host its collectives are those of segment.c;
 * between hosts they are point-to-point messages of MPI, each of at most CHUNK bytes, begun and asked after, never waited
 * for inside the library.
 *
 * Counted for one rank of p, n bytes of tensor, over the wire:
 *   all_reduce   short, or p = 2: sends (p-1) n, one latency; else reduce-scatter and all-gather by slices: 2 (p-1)/p n,
 *                which no all-reduce can undercut, two latencies
 *   all_gather   sends its part p-1 times (more than GATHER_FLAT ranks: to rank 0 and back down a tree)
 *   broadcast    a binomial tree: log2(p) latencies, each rank sends at most log2(p) n
 *   barrier      log2(p) rounds
 * Every message passes one copy of ours on each side: what MPI still holds when a peer died must not be the caller's. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "comm/inside.h"

#define CHUNK ((size_t)1 << 20)
#define REDUCE_SHORT ((size_t)16 << 10)
enum { GATHER_FLAT = 16, INLINE_BYTES = 3968 };   /* header and inline bytes fit into the 4 KiB that MPIs send at once */

static int tag_of(const struct comm *c, int channel) { return (int)c->ctx * N_CHANNELS + channel; }

/* ---- transfers --------------------------------------------------------------------------------------------- */

static size_t slot_bytes(const struct part *p) { return p->bytes < CHUNK ? p->bytes : CHUNK; }

/* Begin what can be begun, finish what is done. */
static status advance(struct comm *c, const char *call, int channel, struct part *p, bool *moved, struct err *e)
{
    const struct mpi_lib *mpi = c->w->mpi;
    const int peer = (int)c->member[p->peer], tag = tag_of(c, channel);
    for (int i = 0; i < 2; i++) {
        if (p->busy[i]) {
            bool done;
            const int rc = mpi->test(&p->req[i], &done);
            if (rc != 0) return comm_mpi_err(c, call, rc, e);
            if (!done) continue;
            p->busy[i] = false;
            if (!p->send) memcpy((uint8_t *)p->mem + p->at[i], p->slot[i], p->len[i]);
            p->over += p->len[i];
            *moved = true;
        }
        /* Slots take turns, so that chunks are begun in order on both sides. */
        if (p->begun == p->bytes || (p->begun / CHUNK) % 2 != (size_t)i) continue;
        const size_t left = p->bytes - p->begun;
        p->at[i] = p->begun;
        p->len[i] = left < CHUNK ? left : CHUNK;
        if (p->send) memcpy(p->slot[i], (const uint8_t *)p->mem + p->at[i], p->len[i]);
        const int rc = p->send ? mpi->isend(p->slot[i], p->len[i], peer, tag, &p->req[i])
                               : mpi->irecv(p->slot[i], p->len[i], peer, tag, &p->req[i]);
        if (rc != 0) return comm_mpi_err(c, call, rc, e);
        p->busy[i] = true;
        p->begun += p->len[i];
        *moved = true;
    }
    return OK;
}

status transfer(struct comm *c, const char *call, int channel, struct part *p, size_t n, struct err *e)
{
    size_t need = 0;
    for (size_t i = 0; i < n; i++) need += slot_bytes(&p[i]) * (p[i].bytes > CHUNK ? 2 : 1) + 128;
    uint8_t *slots, *next;
    TRY(mem_alloc_aligned(&slots, need + 1, e));
    next = slots;
    for (size_t i = 0; i < n; i++) {
        p[i].begun = p[i].over = 0;
        p[i].busy[0] = p[i].busy[1] = false;
        for (int k = 0; k < (p[i].bytes > CHUNK ? 2 : 1); k++) {
            p[i].slot[k] = next;
            next += (slot_bytes(&p[i]) + 63) & ~(size_t)63;
        }
    }
    struct wait w;
    wait_begin(&w, call);
    status st = OK;
    for (size_t open = n; st == OK && open > 0;) {
        bool moved = false;
        open = 0;
        for (size_t i = 0; st == OK && i < n; i++) {
            if (p[i].over == p[i].bytes) continue;
            st = advance(c, call, channel, &p[i], &moved, e);
            open += p[i].over < p[i].bytes;
        }
        if (st != OK || open == 0) break;
        if (moved) wait_moved(&w);
        else if (channel == CHANNEL_COLLECTIVE || channel == CHANNEL_TENSOR) st = wait_turn(c, &w, e);
        else st = wait_turn_message(c, &w, p->peer, e);
    }
    bool held = false;
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < 2; k++) {
            if (!p[i].busy[k]) continue;
            held = true;
            if (!p[i].send) c->w->mpi->cancel(&p[i].req[k]);
        }
    if (!held) free(slots);   /* else MPI may still read or write there, for as long as this process lives */
    return st;
}

static status exchange(struct comm *c, const char *call, struct part *p, size_t n, struct err *e)
{
    return transfer(c, call, CHANNEL_COLLECTIVE, p, n, e);
}

/* ---- collectives between hosts ----------------------------------------------------------------------------- */

/* One part to and one from every other rank. */
static size_t to_all(const struct comm *c, struct part *p, bool send, void *(*at)(void *self, uint32_t peer, size_t *bytes),
                     void *self)
{
    size_t n = 0;
    for (uint32_t k = 1; k < c->size; k++) {
        /* Everyone begins with its neighbour, so that not all send to rank 0 first. */
        const uint32_t peer = (c->rank + (send ? k : c->size - k)) % c->size;
        p[n] = (struct part){ .send = send, .peer = peer };
        p[n].mem = at(self, peer, &p[n].bytes);
        n++;
    }
    return n;
}

struct reduction {
    const struct comm *c;
    float *x, *in;            /* in [p][stride]: what the others sent */
    size_t n, stride;
    bool whole;
};

static size_t cut(const struct reduction *r, uint32_t k) { return r->n * k / r->c->size; }

static void *slice_out(void *self, uint32_t peer, size_t *bytes)
{
    struct reduction *r = self;
    const size_t a = r->whole ? 0 : cut(r, peer), b = r->whole ? r->n : cut(r, peer + 1);
    *bytes = (b - a) * sizeof(float);
    return r->x + a;
}

static void *slice_in(void *self, uint32_t peer, size_t *bytes)
{
    struct reduction *r = self;
    *bytes = (r->whole ? r->n : cut(r, r->c->rank + 1) - cut(r, r->c->rank)) * sizeof(float);
    return r->in + peer * r->stride;
}

static void *sum_out(void *self, uint32_t peer, size_t *bytes)
{
    struct reduction *r = self;
    (void)peer;
    *bytes = (cut(r, r->c->rank + 1) - cut(r, r->c->rank)) * sizeof(float);
    return r->x + cut(r, r->c->rank);
}

static void *sum_in(void *self, uint32_t peer, size_t *bytes)
{
    struct reduction *r = self;
    *bytes = (cut(r, peer + 1) - cut(r, peer)) * sizeof(float);
    return r->x + cut(r, peer);
}

static status wire_reduce(struct comm *c, float *x, size_t n, struct err *e)
{
    const char *call = "comm_all_reduce";
    const size_t most = CHUNK / sizeof(float);        /* a slice is at most one message */
    struct reduction r = { .c = c, .whole = c->size == 2 || n * sizeof *x <= REDUCE_SHORT };
    const size_t step = r.whole ? most : most * c->size;
    r.stride = n < step ? (r.whole ? n : n / c->size + 1) : most;
    struct part *p;
    const float **v = NULL;
    TRY(mem_alloc(&p, 2 * c->size, sizeof *p, e));
    status st = mem_alloc_aligned(&r.in, r.stride * c->size * sizeof *x, e);
    if (st == OK) v = mem_must(c->size, sizeof *v);
    for (size_t at = 0; st == OK && at < n; at += step) {
        r.x = x + at;
        r.n = n - at < step ? n - at : step;
        size_t m = to_all(c, p, true, slice_out, &r);
        m += to_all(c, p + m, false, slice_in, &r);
        TRY_GOTO(st, exchange(c, call, p, m, e), out);
        const size_t a = r.whole ? 0 : cut(&r, c->rank), b = r.whole ? r.n : cut(&r, c->rank + 1);
        for (uint32_t i = 0; i < c->size; i++) v[i] = i == c->rank ? r.x + a : r.in + i * r.stride;
        sum_in_order(r.x + a, v, c->size, b - a);
        if (r.whole) continue;
        m = to_all(c, p, true, sum_out, &r);
        m += to_all(c, p + m, false, sum_in, &r);
        TRY_GOTO(st, exchange(c, call, p, m, e), out);
    }
out:
    free(p);
    free(v);
    free(r.in);
    return st;
}

struct gathering { const struct comm *c; const size_t *bytes, *start; uint8_t *all; const void *mine; };

static void *part_in(void *self, uint32_t peer, size_t *bytes)
{
    const struct gathering *g = self;
    *bytes = g->bytes[peer];
    return g->all + g->start[peer];
}

static void *part_out(void *self, uint32_t peer, size_t *bytes)
{
    const struct gathering *g = self;
    (void)peer;
    *bytes = g->bytes[g->c->rank];
    return (void *)g->mine;
}

static status wire_tree(struct comm *c, const char *call, uint32_t root, void *x, size_t bytes, struct err *e)
{
    struct part p[32];
    const uint32_t v = (c->rank + c->size - root) % c->size;      /* place in the tree; the root is 0 */
    uint32_t bit = 1;
    while (bit < c->size && !(v & bit)) bit <<= 1;
    if (v != 0) {
        p[0] = (struct part){ .peer = (v - bit + root) % c->size, .mem = x, .bytes = bytes };
        TRY(exchange(c, call, p, 1, e));
    }
    size_t n = 0;
    for (bit >>= 1; bit > 0; bit >>= 1)
        if (v + bit < c->size)
            p[n++] = (struct part){ .send = true, .peer = (v + bit + root) % c->size, .mem = x, .bytes = bytes };
    return exchange(c, call, p, n, e);
}

static status wire_gather(struct comm *c, const char *call, uint32_t root, const void *mine, void *all, const size_t *bytes,
                          struct err *e)
{
    struct part *p;
    size_t *start = mem_must(c->size + 1, sizeof *start);
    for (uint32_t i = 0; i < c->size; i++) start[i + 1] = start[i] + bytes[i];
    struct gathering g = { .c = c, .bytes = bytes, .start = start, .all = all, .mine = mine };
    const bool flat = root == UINT32_MAX && c->size <= GATHER_FLAT;
    const uint32_t top = root == UINT32_MAX ? 0 : root;
    status st = mem_alloc(&p, 2 * c->size, sizeof *p, e);
    if (st != OK) goto out;
    size_t m = 0;
    if (flat || c->rank == top || root == UINT32_MAX)
        if (bytes[c->rank] > 0 && (const uint8_t *)mine != g.all + start[c->rank])
            memmove(g.all + start[c->rank], mine, bytes[c->rank]);
    if (flat || c->rank != top) g.mine = root == UINT32_MAX ? g.all + start[c->rank] : mine;
    if (flat) {
        m = to_all(c, p, true, part_out, &g);
        m += to_all(c, p + m, false, part_in, &g);
    } else if (c->rank == top) {
        m = to_all(c, p, false, part_in, &g);
    } else {
        p[m++] = (struct part){ .send = true, .peer = top, .mem = (void *)g.mine, .bytes = bytes[c->rank] };
    }
    st = exchange(c, call, p, m, e);
    if (st == OK && !flat && root == UINT32_MAX) st = wire_tree(c, call, top, all, start[c->size], e);
out:
    free(p);
    free(start);
    return st;
}

static status wire_barrier(struct comm *c, const char *call, struct err *e)
{
    uint8_t token = 0, seen = 0;
    for (uint32_t d = 1; d < c->size; d <<= 1) {
        struct part p[2] = { { .send = true, .peer = (c->rank + d) % c->size, .mem = &token, .bytes = 1 },
                             { .peer = (c->rank + c->size - d) % c->size, .mem = &seen, .bytes = 1 } };
        TRY(exchange(c, call, p, 2, e));
    }
    return OK;
}

/* ---- the table --------------------------------------------------------------------------------------------- */

static status host_all_reduce(struct comm *c, float *x, size_t n, struct err *e)
{
    return c->seg ? segment_all_reduce(c, x, n, e) : wire_reduce(c, x, n, e);
}

static status host_gather(struct comm *c, const char *call, uint32_t root, const void *mine, void *all, const size_t *bytes,
                          struct err *e)
{
    return c->seg ? segment_gather(c, call, root, mine, all, bytes, e) : wire_gather(c, call, root, mine, all, bytes, e);
}

static status host_broadcast(struct comm *c, uint32_t root, void *x, size_t bytes, struct err *e)
{
    return c->seg ? segment_broadcast(c, root, x, bytes, e) : wire_tree(c, "comm_broadcast", root, x, bytes, e);
}

static status host_barrier(struct comm *c, const char *call, struct err *e)
{
    return c->seg ? segment_meet(c, call, e) : wire_barrier(c, call, e);
}

static status host_send(struct comm *c, uint32_t to, const void *x, size_t bytes, struct err *e)
{
    struct part p = { .send = true, .peer = to, .mem = (void *)x, .bytes = bytes };
    return transfer(c, "comm_send", CHANNEL_TENSOR, &p, 1, e);
}

static status host_recv(struct comm *c, uint32_t from, void *x, size_t bytes, struct err *e)
{
    struct part p = { .peer = from, .mem = x, .bytes = bytes };
    return transfer(c, "comm_recv", CHANNEL_TENSOR, &p, 1, e);
}

/* ---- messages ---------------------------------------------------------------------------------------------- */

/* A message is a header with the first bytes, and then the rest on a channel of its own, in chunks. */
struct header { uint64_t n; uint32_t tag, magic; };
#define MAGIC 0x6f6d6e69u

static status post_locked(struct comm *c, uint32_t to, uint32_t tag, const uint8_t *bytes, size_t n, struct err *e)
{
    const struct mpi_lib *mpi = c->w->mpi;
    const size_t first = n < INLINE_BYTES ? n : INLINE_BYTES;
    const struct header h = { .n = n, .tag = tag, .magic = MAGIC };
    uint8_t *buf = mem_must(1, sizeof h + first);
    memcpy(buf, &h, sizeof h);
    if (first > 0) memcpy(buf + sizeof h, bytes, first);
    struct mpi_req q;
    int rc = mpi->isend(buf, sizeof h + first, (int)c->member[to], tag_of(c, CHANNEL_MESSAGE), &q);
    bell_ring(c->w, c->member[to]);
    struct wait w;
    wait_begin(&w, "comm_post");
    bool done = false, late = false;
    status st = OK;
    while (rc == 0 && st == OK) {
        rc = mpi->test(&q, &done);
        if (rc != 0 || done) break;
        late = true;
        st = wait_turn_message(c, &w, to, e);
    }
    if (rc != 0) st = comm_mpi_err(c, "comm_post", rc, e);
    if (st != OK) return st;       /* buf is MPI's for good */
    free(buf);
    if (late) bell_ring(c->w, c->member[to]);
    if (n == first) return OK;
    struct part p = { .send = true, .peer = to, .mem = (void *)(bytes + first), .bytes = n - first };
    return transfer(c, "comm_post", CHANNEL_BODY, &p, 1, e);
}

static status host_post(struct comm *c, uint32_t to, uint32_t tag, const void *bytes, size_t n, struct err *e)
{
    pthread_mutex_lock(&c->post_lock[to]);
    const status st = post_locked(c, to, tag, bytes, n, e);
    pthread_mutex_unlock(&c->post_lock[to]);
    return st;
}

static uint32_t place_of(const struct comm *c, uint32_t world_rank)
{
    for (uint32_t i = 0; i < c->size; i++)
        if (c->member[i] == world_rank) return i;
    return UINT32_MAX;
}

static status receive(struct comm *c, int from, size_t n, struct mpi_req *message, struct err *e)
{
    const struct mpi_lib *mpi = c->w->mpi;
    const char *call = "comm_take";
    const uint32_t peer = place_of(c, (uint32_t)from);
    struct letter *l = NULL;
    uint8_t *buf = mem_must(1, n + 1);
    struct mpi_req q;
    int rc = mpi->recv_probed(message, buf, n, &q);
    struct wait w;
    wait_begin(&w, call);
    bool done = false;
    status st = OK;
    while (rc == 0 && st == OK) {
        rc = mpi->test(&q, &done);
        if (rc != 0 || done) break;
        st = wait_turn_message(c, &w, peer, e);
    }
    if (rc != 0) st = comm_mpi_err(c, call, rc, e);
    if (st != OK) return st;       /* buf is MPI's for good */
    struct header h = { 0 };
    if (n >= sizeof h) memcpy(&h, buf, sizeof h);
    if (h.magic != MAGIC || peer == UINT32_MAX || n - sizeof h != (h.n < INLINE_BYTES ? h.n : INLINE_BYTES)) {
        st = err_set(e, E_INTERNAL, "%s: a message of %zu bytes from world rank %d that no comm_post made", call, n, from);
        goto out;
    }
    l = mem_must(1, sizeof *l);
    l->m = (struct comm_message){ .from = peer, .tag = h.tag, .n = h.n };
    TRY_GOTO(st, mem_alloc_aligned(&l->m.bytes, h.n + 1, e), out);
    memcpy(l->m.bytes, buf + sizeof h, n - sizeof h);
    if (h.n > INLINE_BYTES) {
        struct part p = { .peer = peer, .mem = l->m.bytes + INLINE_BYTES, .bytes = h.n - INLINE_BYTES };
        TRY_GOTO(st, transfer(c, call, CHANNEL_BODY, &p, 1, e), out);
    }
    inbox_put(c, l);
    l = NULL;
out:
    if (l != NULL) free(l->m.bytes);
    free(l);
    free(buf);
    return st;
}

static status host_pull(struct comm *c, bool *came, struct err *e)
{
    int from = 0;
    size_t n = 0;
    struct mpi_req message;
    const int rc = c->w->mpi->probe(tag_of(c, CHANNEL_MESSAGE), came, &from, &n, &message);
    if (rc != 0) return comm_mpi_err(c, "comm_take", rc, e);
    return *came ? receive(c, from, n, &message, e) : OK;
}

const struct comm_ops comm_host_ops = {
    .name = "mpi",
    .all_reduce = host_all_reduce,
    .gather = host_gather,
    .broadcast = host_broadcast,
    .barrier = host_barrier,
    .send = host_send,
    .recv = host_recv,
    .post = host_post,
    .pull = host_pull,
};
