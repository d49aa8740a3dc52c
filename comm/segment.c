/* comm/segment.c - collectives between ranks of one host, through memory that they share (a file of /dev/shm without a
 * name left). Ours, since the library's loop moves every byte through its own fragments and adds in an order of its own.
 *
 * Layout: a token; one counter a rank, each on its own cache line; three buffers of one slot of `chunk` bytes a rank.
 * A *meeting* is: raise your counter, wait for all others': a short spin, then asleep on a futex, since a processor that
 * is given away by yielding comes back a time slice later, and who is woken comes first. Chunk t uses buffer t mod 3:
 * after the meeting of chunk t a rank reads results of t, adds t + 1 and writes inputs of t + 2, and nobody is further
 * than one meeting ahead; so one meeting a chunk is enough, and none is needed at the end of a call.
 *
 * All-reduce of n floats by p ranks. Counted for one rank, with n in bytes:
 *   short (one meeting):   writes n, reads (p-1) n of the others, adds all n itself
 *   long (slices):         writes (p-1)/p n of inputs (its own slice stays where it is) and n/p of sums; reads (p-1)/p n of
 *                          inputs and (p-1)/p n of sums. For p = 2 both move the same, and the long one adds half.
 * Any all-reduce must bring in (p-1)/p n of inputs or sums twice: the long form is that, plus the copy out of n/p.
 * The sum of element i is v_0[i] + v_1[i] + ... + v_(p-1)[i] in f32 from left to right in both. */
#include "comm/inside.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/mem.h"

enum { HEAD = 4096, LINE = 64, N_BUFFERS = 3, SPINS = 1500 };
#define CHUNK_MOST ((size_t)256 << 10)    /* three slots of two ranks stay in a second-level cache */
#define ALL_CHUNKS ((size_t)2 << 20)      /* ... and a container's /dev/shm is 64 MB */
#define SHORT_BYTES ((size_t)32 << 10)    /* below, one meeting is worth more than half of the sums */

struct segment {
    uint8_t *base;
    size_t bytes, chunk;
    uint32_t n;
    uint64_t turn;
    uint32_t met;                 /* wraps */
};

struct counter { _Atomic uint32_t met, sleepers; uint8_t pad[LINE - 8]; };

static size_t chunk_of(uint32_t n)
{
    const size_t share = ALL_CHUNKS / n & ~(size_t)4095;
    return share < CHUNK_MOST ? share : CHUNK_MOST;
}

static size_t head_bytes(uint32_t n) { return (HEAD + (size_t)n * LINE + 4095) & ~(size_t)4095; }
size_t segment_bytes(uint32_t n) { return N_BUFFERS * n * chunk_of(n); }
void *segment_memory(struct segment *s) { return s->base + head_bytes(s->n); }
static struct counter *counters(const struct segment *s) { return (struct counter *)(s->base + HEAD); }

static uint8_t *slot(const struct segment *s, uint64_t turn, uint32_t rank)
{
    return s->base + head_bytes(s->n) + ((turn % N_BUFFERS) * s->n + rank) * s->chunk;
}

/* ---- opening ----------------------------------------------------------------------------------------------- */

struct invitation { char name[64]; uint8_t token[32]; uint64_t bytes; };

/* The file, made and filled with real pages: a full /dev/shm must say so now, not kill somebody later. */
static uint8_t *make_file(struct invitation *v)
{
    uint64_t id;
    if (getrandom(&id, sizeof id, 0) != sizeof id || getrandom(v->token, sizeof v->token, 0) != sizeof v->token) return NULL;
    snprintf(v->name, sizeof v->name, "/omnidrop-%ld-%016llx", (long)getpid(), (unsigned long long)id);
    const int fd = shm_open(v->name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) return NULL;
    uint8_t *p = MAP_FAILED;
    if (posix_fallocate(fd, 0, (off_t)v->bytes) == 0) p = mmap(NULL, v->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) {
        shm_unlink(v->name);
        return NULL;
    }
    memcpy(p, v->token, sizeof v->token);
    return p;
}

static uint8_t *join_file(const struct invitation *v)
{
    struct stat st;
    const int fd = shm_open(v->name, O_RDWR, 0);
    if (fd < 0) return NULL;
    uint8_t *p = MAP_FAILED;
    if (fstat(fd, &st) == 0 && (uint64_t)st.st_size == v->bytes)
        p = mmap(NULL, v->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) return NULL;
    if (memcmp(p, v->token, sizeof v->token) == 0) return p;
    munmap(p, v->bytes);
    return NULL;
}

/* The place in c of world rank r; both lists are short. */
static uint32_t place_of(const struct comm *c, uint32_t r)
{
    uint32_t i = 0;
    while (c->member[i] != r) i++;
    return i;
}

status segment_open(struct comm *c, const uint32_t *member, uint32_t n, uint32_t me, size_t bytes, struct segment **out,
                    struct err *e)
{
    *out = NULL;
    struct part *p;
    TRY(mem_alloc(&p, n, sizeof *p, e));
    const char *call = "comm_split, shared memory";
    struct invitation v = { .bytes = head_bytes(n) + bytes };
    uint8_t *base = NULL, all = 1;
    uint8_t *had = mem_must(n, 1);
    status st = OK;
    /* Invitation to all, their word to the first, its verdict to all. */
    if (me == 0) {
        base = make_file(&v);
        if (base == NULL) v.name[0] = 0;
        for (uint32_t i = 1; i < n; i++)
            p[i - 1] = (struct part){ .send = true, .peer = place_of(c, member[i]), .mem = &v, .bytes = sizeof v };
        st = transfer(c, call, CHANNEL_COLLECTIVE, p, n - 1, e);
        for (uint32_t i = 1; i < n; i++) p[i - 1] = (struct part){ .peer = place_of(c, member[i]), .mem = &had[i], .bytes = 1 };
        if (st == OK) st = transfer(c, call, CHANNEL_COLLECTIVE, p, n - 1, e);
        if (base != NULL) shm_unlink(v.name);
        all = base != NULL;
        for (uint32_t i = 1; i < n; i++) all &= had[i];
        for (uint32_t i = 1; i < n; i++)
            p[i - 1] = (struct part){ .send = true, .peer = place_of(c, member[i]), .mem = &all, .bytes = 1 };
        if (st == OK) st = transfer(c, call, CHANNEL_COLLECTIVE, p, n - 1, e);
    } else {
        const uint32_t first = place_of(c, member[0]);
        p[0] = (struct part){ .peer = first, .mem = &v, .bytes = sizeof v };
        st = transfer(c, call, CHANNEL_COLLECTIVE, p, 1, e);
        if (st == OK && v.name[0] != 0) base = join_file(&v);
        had[0] = base != NULL;
        p[0] = (struct part){ .send = true, .peer = first, .mem = &had[0], .bytes = 1 };
        if (st == OK) st = transfer(c, call, CHANNEL_COLLECTIVE, p, 1, e);
        p[0] = (struct part){ .peer = first, .mem = &all, .bytes = 1 };
        if (st == OK) st = transfer(c, call, CHANNEL_COLLECTIVE, p, 1, e);
    }
    free(p);
    free(had);
    if (st == OK && all) {
        struct segment *s = mem_must(1, sizeof *s);
        *s = (struct segment){ .base = base, .bytes = v.bytes, .chunk = chunk_of(n), .n = n };
        *out = s;
    } else if (base != NULL) {
        munmap(base, v.bytes);
    }
    return st;
}

void segment_close(struct segment **s)
{
    if (*s == NULL) return;
    munmap((*s)->base, (*s)->bytes);
    free(*s);
    *s = NULL;
}

/* ---- collectives ------------------------------------------------------------------------------------------- */

static status meet(struct comm *c, struct wait *w, struct err *e)
{
    struct segment *s = c->seg;
    struct counter *at = counters(s);
    const uint32_t now = ++s->met;
    atomic_store(&at[c->rank].met, now);
    if (atomic_load(&at[c->rank].sleepers) != 0) syscall(SYS_futex, &at[c->rank].met, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    for (uint32_t i = 0, spins = 0; i < s->n; spins++) {
        const uint32_t seen = atomic_load_explicit(&at[i].met, memory_order_acquire);
        if ((int32_t)(seen - now) >= 0) {
            i++;
        } else if (spins < SPINS) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            const struct timespec nap_s = { .tv_nsec = 2000000 };      /* then the dead are looked at */
            atomic_fetch_add(&at[i].sleepers, 1);
            syscall(SYS_futex, &at[i].met, FUTEX_WAIT, seen, &nap_s, NULL, 0);
            atomic_fetch_sub(&at[i].sleepers, 1);
            TRY(wait_look(c, w, e));
        }
    }
    return OK;
}

status segment_meet(struct comm *c, const char *call, struct err *e)
{
    struct wait w;
    wait_begin(&w, call);
    return meet(c, &w, e);
}

void sum_in_order(float *x, const float *const *v, uint32_t n_v, size_t n)
{
    enum { BLOCK = 1024 };
    float s[BLOCK];
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t m = n - at < BLOCK ? n - at : BLOCK;
        if (n_v == 2) {
            const float *a = v[0] + at, *b = v[1] + at;
            for (size_t i = 0; i < m; i++) s[i] = a[i] + b[i];
        } else {
            memcpy(s, v[0] + at, m * sizeof *s);
            for (uint32_t k = 1; k < n_v; k++) {
                const float *a = v[k] + at;
                for (size_t i = 0; i < m; i++) s[i] += a[i];
            }
        }
        memcpy(x + at, s, m * sizeof *s);
    }
}

static status reduce_short(struct comm *c, struct wait *w, float *x, size_t n, const float **v, struct err *e)
{
    struct segment *s = c->seg;
    const uint64_t t = s->turn++;
    memcpy(slot(s, t, c->rank), x, n * sizeof *x);
    TRY(meet(c, w, e));
    for (uint32_t i = 0; i < s->n; i++) v[i] = i == c->rank ? x : (const float *)slot(s, t, i);
    sum_in_order(x, v, s->n, n);
    return OK;
}

/* Slice k of a chunk of n floats: whole cache lines but the last. */
static size_t slice_at(const struct segment *s, size_t n, uint32_t k)
{
    const size_t lines = (n + 15) / 16, at = lines * k / s->n * 16;
    return at < n ? at : n;
}

/* All slices of a chunk but rank's own into its slot. */
static void put_slices(const struct segment *s, uint64_t t, uint32_t rank, const float *x, size_t n)
{
    float *to = (float *)slot(s, t, rank);
    const size_t a = slice_at(s, n, rank), b = slice_at(s, n, rank + 1);
    memcpy(to, x, a * sizeof *x);
    memcpy(to + b, x + b, (n - b) * sizeof *x);
}

static void add_slice(const struct segment *s, uint64_t t, uint32_t rank, float *x, size_t n, const float **v)
{
    const size_t a = slice_at(s, n, rank), b = slice_at(s, n, rank + 1);
    for (uint32_t i = 0; i < s->n; i++) v[i] = i == rank ? x + a : (const float *)slot(s, t, i) + a;
    sum_in_order(x + a, v, s->n, b - a);
    memcpy((float *)slot(s, t, rank) + a, x + a, (b - a) * sizeof *x);
}

static void take_slices(const struct segment *s, uint64_t t, uint32_t rank, float *x, size_t n)
{
    for (uint32_t i = 0; i < s->n; i++) {
        const size_t a = slice_at(s, n, i), b = slice_at(s, n, i + 1);
        if (i != rank) memcpy(x + a, (const float *)slot(s, t, i) + a, (b - a) * sizeof *x);
    }
}

status segment_all_reduce(struct comm *c, float *x, size_t n, struct err *e)
{
    struct segment *s = c->seg;
    struct wait w;
    wait_begin(&w, "comm_all_reduce");
    const float **v = mem_must(s->n, sizeof *v);
    const size_t most = s->chunk / sizeof *x;
    status st = OK;
    if (n * sizeof *x <= SHORT_BYTES && n <= most) {
        st = reduce_short(c, &w, x, n, v, e);
    } else {
        const uint64_t t0 = s->turn;
        const size_t n_chunks = (n + most - 1) / most;
        s->turn += n_chunks;
#define CHUNK(i) x + (i) * most, (i) + 1 < n_chunks ? most : n - (i) * most
        put_slices(s, t0, c->rank, CHUNK(0));
        st = meet(c, &w, e);
        for (size_t i = 0; st == OK && i < n_chunks; i++) {
            add_slice(s, t0 + i, c->rank, CHUNK(i), v);
            if (i + 1 < n_chunks) put_slices(s, t0 + i + 1, c->rank, CHUNK(i + 1));
            st = meet(c, &w, e);
            if (st == OK) take_slices(s, t0 + i, c->rank, CHUNK(i));
        }
#undef CHUNK
    }
    free(v);
    return st;
}

status segment_gather(struct comm *c, const char *call, uint32_t root, const void *mine, void *all, const size_t *bytes,
                      struct err *e)
{
    struct segment *s = c->seg;
    struct wait w;
    wait_begin(&w, call);
    const bool reads = root == UINT32_MAX || root == c->rank;
    size_t most = 0, own = 0, start = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        if (bytes[i] > most) most = bytes[i];
        if (i == c->rank) own = start;
        start += bytes[i];
    }
    if (reads && bytes[c->rank] > 0 && (const uint8_t *)mine != (uint8_t *)all + own)
        memmove((uint8_t *)all + own, mine, bytes[c->rank]);
    /* The root's own bytes stay at home. mine may be a part of all, at its place: it was not moved then. */
    for (size_t at = 0; at < most; at += s->chunk) {
        const uint64_t t = s->turn++;
        if (root != c->rank && at < bytes[c->rank]) {
            const size_t left = bytes[c->rank] - at;
            memcpy(slot(s, t, c->rank), (const uint8_t *)(reads ? (uint8_t *)all + own : mine) + at,
                   left < s->chunk ? left : s->chunk);
        }
        TRY(meet(c, &w, e));
        start = 0;
        for (uint32_t i = 0; i < s->n; start += bytes[i], i++) {
            if (!reads || i == c->rank || at >= bytes[i]) continue;
            const size_t left = bytes[i] - at;
            memcpy((uint8_t *)all + start + at, slot(s, t, i), left < s->chunk ? left : s->chunk);
        }
    }
    return OK;
}

status segment_broadcast(struct comm *c, uint32_t root, void *x, size_t bytes, struct err *e)
{
    struct segment *s = c->seg;
    struct wait w;
    wait_begin(&w, "comm_broadcast");
    for (size_t at = 0; at < bytes; at += s->chunk) {
        const uint64_t t = s->turn++;
        const size_t left = bytes - at, m = left < s->chunk ? left : s->chunk;
        if (c->rank == root) memcpy(slot(s, t, root), (uint8_t *)x + at, m);
        TRY(meet(c, &w, e));
        if (c->rank != root) memcpy((uint8_t *)x + at, slot(s, t, root), m);
    }
    return OK;
}
