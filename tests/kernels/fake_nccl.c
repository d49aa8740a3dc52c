/* tests/kernels/fake_nccl.c - an NCCL between processes of one host over fake_cuda.cpp, for comm/nccl.c as it is (omnidrop-nccl.so of
 * tests/simt). Each pair of ranks has a pipe each way in shared memory; what a rank launches is work of its stream, done when its
 * turn comes and its peers' has come too.
 *
 * What NCCL's documentation asks of its caller is looked at, and ends the program where it is not kept:
 *   - communicators are nonblocking; nothing is launched before the state of the last call is success. Some launches reach the stream
 *     only with the call that says so, so that who does not ask has his work in the wrong order;
 *   - buffers are within one allocation of the device; gathers are in place or do not overlap;
 *   - every rank launches the same collectives, of the same size and root, in the same order; sends meet receives of their size;
 *   - all goes on one stream; several broadcasts, sends or receives at once are one group;
 *   - a communicator is finalized, by all its ranks, before it is destroyed, and not touched after that or after an abort.
 * A sum begins with the last rank: not the order of rank, as NCCL's is not. FAKE_NCCL_FAIL=n: what rank n launches fails, as a cable
 * does that is pulled: the state says so, and the work ends with an abort alone. */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/kernels/fake/nccl.h"
#include "tests/kernels/fake_cuda.h"

enum { RANKS = 8, PIPE = 1 << 16, OPS = 2 * RANKS };

struct pipe { _Atomic uint64_t written, read; uint8_t bytes[PIPE]; };
struct shared { _Atomic uint32_t size, joined, finalized; struct pipe pipe[RANKS][RANKS]; };   /* [from][to] */

enum what { ALL_REDUCE, ALL_GATHER, BROADCAST, SEND, RECV };
static const char *const names[] = { "ncclAllReduce", "ncclAllGather", "ncclBroadcast", "ncclSend", "ncclRecv" };
struct op { enum what what; const uint8_t *send; uint8_t *recv; size_t bytes; int root; };

/* What comes before the bytes of an op, and what has to come. */
struct header { uint32_t what, root; uint64_t bytes, number; };
struct seg { uint8_t *p; size_t n; const struct header *want; };
struct line { struct seg seg[2 * OPS]; unsigned n, now; size_t at; };
struct launch {
    struct ncclComm *c;
    unsigned n_ops;
    struct op op[OPS];
    struct header head[OPS], got[RANKS];
    uint8_t *part[OPS];           /* of a sum: what each rank sent */
    struct line out[RANKS], in[RANKS];
};

struct ncclComm {
    int rank, size;
    struct shared *s;
    char name[128];
    ncclResult_t error;
    bool finalizing, aborted, gone;
    unsigned polls;               /* until the pending launch reaches the stream */
    struct launch *pending;
    _Atomic unsigned under_way;
    cudaStream_t stream;
    uint64_t n_collectives;
};

static _Thread_local struct { unsigned depth, n; struct op op[OPS]; ncclComm_t c; cudaStream_t stream; } group;
static char last_error[256];

__attribute__((noreturn, format(printf, 2, 3))) static void die(const struct ncclComm *c, const char *fmt, ...)
{
    __builtin_va_list ap;
    __builtin_va_start(ap, fmt);
    fprintf(stderr, "fake NCCL, rank %d of %d: ", c ? c->rank : -1, c ? c->size : -1);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    __builtin_va_end(ap);
    abort();
}

static unsigned below(unsigned n)
{
    static uint64_t state = 0x9e3779b97f4a7c15u;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((state >> 32) * n >> 32);
}

/* ---- pipes ------------------------------------------------------------------------------------------------ */

static void flow_out(struct pipe *p, struct line *l)
{
    while (l->now < l->n) {
        struct seg *g = &l->seg[l->now];
        const uint64_t w = atomic_load(&p->written), room = PIPE - (w - atomic_load(&p->read)), to_end = PIPE - w % PIPE;
        size_t n = g->n - l->at;
        n = n < room ? n : room;
        n = n < to_end ? n : to_end;
        if (n == 0 && l->at < g->n) return;
        memcpy(p->bytes + w % PIPE, g->p + l->at, n);
        atomic_store(&p->written, w + n);
        l->at += n;
        if (l->at == g->n) l->now++, l->at = 0;
    }
}

static void compare(const struct ncclComm *c, int from, const struct header *got, const struct header *want)
{
    const bool pair = want->what == SEND;
    if (memcmp(got, want, sizeof *got) == 0) return;
    die(c, "rank %d is at %s of %llu bytes, root %u, number %llu; here it is %s of %llu, root %u, number %llu", from, names[got->what % 5],
        (unsigned long long)got->bytes, got->root, (unsigned long long)got->number, names[pair ? RECV : want->what],
        (unsigned long long)want->bytes, want->root, (unsigned long long)want->number);
}

static void flow_in(struct pipe *p, struct line *l, const struct ncclComm *c, int from, const struct header *got)
{
    while (l->now < l->n) {
        struct seg *g = &l->seg[l->now];
        const uint64_t r = atomic_load(&p->read), there = atomic_load(&p->written) - r, to_end = PIPE - r % PIPE;
        size_t n = g->n - l->at;
        n = n < there ? n : there;
        n = n < to_end ? n : to_end;
        if (n == 0 && l->at < g->n) return;
        memcpy(g->p + l->at, p->bytes + r % PIPE, n);
        atomic_store(&p->read, r + n);
        l->at += n;
        if (l->at < g->n) continue;
        if (g->want) compare(c, from, got, g->want);
        l->now++;
        l->at = 0;
    }
}

static void put(struct line *l, const void *p, size_t n, const struct header *want)
{
    l->seg[l->n++] = (struct seg){ (uint8_t *)(uintptr_t)p, n, want };
}

/* ---- a launch --------------------------------------------------------------------------------------------- */

static void to_peer(struct launch *l, int peer, unsigned i, const uint8_t *p)
{
    put(&l->out[peer], &l->head[i], sizeof l->head[i], NULL);
    put(&l->out[peer], p, l->op[i].bytes, NULL);
}
static void from_peer(struct launch *l, int peer, unsigned i, uint8_t *p)
{
    put(&l->in[peer], &l->got[peer], sizeof l->got[peer], &l->head[i]);
    put(&l->in[peer], p, l->op[i].bytes, NULL);
}

static struct launch *launch_new(struct ncclComm *c)
{
    struct launch *l = calloc(1, sizeof *l);
    l->c = c;
    l->n_ops = group.n;
    for (unsigned i = 0; i < l->n_ops; i++) {
        const struct op *o = &l->op[i];
        l->op[i] = group.op[i];
        const bool pair = o->what == SEND || o->what == RECV;
        l->head[i] = (struct header){ pair ? SEND : o->what, pair ? 0 : (uint32_t)o->root, o->bytes, pair ? 0 : c->n_collectives++ };
        if (o->what == ALL_REDUCE) l->part[i] = malloc((size_t)c->size * o->bytes + 1);
        for (int r = 0; r < c->size; r++) {
            if (r == c->rank) continue;
            if (o->what == ALL_REDUCE || o->what == ALL_GATHER || (o->what == BROADCAST && o->root == c->rank) ||
                (o->what == SEND && o->root == r)) to_peer(l, r, i, o->send);
            if (o->what == ALL_REDUCE) from_peer(l, r, i, l->part[i] + (size_t)r * o->bytes);
            if (o->what == ALL_GATHER) from_peer(l, r, i, o->recv + (size_t)r * o->bytes);
            if ((o->what == BROADCAST || o->what == RECV) && o->root == r) from_peer(l, r, i, o->recv);
        }
    }
    return l;
}

/* Its sums and its own part, when all has come. */
static void complete(struct launch *l, unsigned i)
{
    const struct ncclComm *c = l->c;
    const struct op *o = &l->op[i];
    if (o->what == ALL_REDUCE) {
        memcpy(l->part[i] + (size_t)c->rank * o->bytes, o->send, o->bytes);
        for (size_t k = 0; k < o->bytes / sizeof(float); k++) {
            float sum = 0, one;
            for (int r = c->size - 1; r >= 0; r--) {
                memcpy(&one, l->part[i] + (size_t)r * o->bytes + k * sizeof one, sizeof one);
                sum = r == c->size - 1 ? one : sum + one;
            }
            memcpy(o->recv + k * sizeof sum, &sum, sizeof sum);
        }
    }
    if (o->what == ALL_GATHER) memmove(o->recv + (size_t)c->rank * o->bytes, o->send, o->bytes);
    if (o->what == BROADCAST && o->root == c->rank) memmove(o->recv, o->send, o->bytes);
}

static bool step(void *arg)
{
    struct launch *l = *(struct launch **)arg;
    struct ncclComm *c = l->c;
    const char *fail = getenv("FAKE_NCCL_FAIL");
    bool over = true;
    if (!c->aborted && fail && atoi(fail) == c->rank) {
        c->error = ncclRemoteError;
        return false;
    }
    for (int r = 0; !c->aborted && r < c->size; r++) {
        flow_out(&c->s->pipe[c->rank][r], &l->out[r]);
        flow_in(&c->s->pipe[r][c->rank], &l->in[r], c, r, &l->got[r]);
        over = over && l->out[r].now == l->out[r].n && l->in[r].now == l->in[r].n;
    }
    if (!over) return false;
    for (unsigned i = 0; i < l->n_ops; i++) {
        if (!c->aborted) complete(l, i);
        free(l->part[i]);
    }
    free(l);
    atomic_fetch_sub(&c->under_way, 1);
    return true;
}

static void enqueue(struct ncclComm *c, struct launch *l)
{
    struct launch **arg = malloc(sizeof *arg);       /* freed by who calls step */
    *arg = l;
    atomic_fetch_add(&c->under_way, 1);
    fake_cuda_meeting(c->stream, step, arg);
}

static void alive(const struct ncclComm *c, const char *call)
{
    if (c == NULL) die(NULL, "%s of no communicator", call);
    if (c->gone) die(c, "%s after the communicator was destroyed or aborted", call);
}

static ncclResult_t state(struct ncclComm *c)
{
    if (c->error != ncclSuccess) return c->error;
    if (atomic_load(&c->s->joined) < (uint32_t)c->size) return ncclInProgress;
    if (c->pending) {
        if (c->polls-- > 0) return ncclInProgress;
        enqueue(c, c->pending);
        c->pending = NULL;
    }
    if (!c->finalizing) return ncclSuccess;
    if (c->finalizing && atomic_load(&c->under_way) > 0) return ncclInProgress;
    if (c->polls == 0) atomic_fetch_add(&c->s->finalized, 1), c->polls = 1;
    return atomic_load(&c->s->finalized) < (uint32_t)c->size ? ncclInProgress : ncclSuccess;
}

static ncclResult_t launch(void)
{
    struct ncclComm *c = group.c;
    if (group.n == 0) return ncclSuccess;
    const ncclResult_t before = c->pending ? ncclInProgress : state(c);
    if (before == ncclInProgress) {
        snprintf(last_error, sizeof last_error, "a call while the one before is in progress");
        return ncclInvalidUsage;
    }
    if (before != ncclSuccess) return before;
    if (c->finalizing) die(c, "a launch after ncclCommFinalize");
    if (c->stream == NULL) c->stream = group.stream;
    struct launch *l = launch_new(c);
    c->polls = below(3);
    if (c->polls == 0) {
        enqueue(c, l);
        return ncclSuccess;
    }
    c->pending = l;
    return ncclInProgress;
}

static ncclResult_t add(ncclComm_t c, cudaStream_t s, const char *call, struct op o)
{
    alive(c, call);
    if (o.root < 0 || o.root >= c->size) return ncclInvalidArgument;
    if ((o.what == SEND || o.what == RECV) && o.root == c->rank && group.depth == 0) die(c, "%s to itself outside a group", call);
    if (!fake_cuda_stream(s)) die(c, "%s on a stream that is none", call);
    if (group.n > 0 && (group.c != c || group.stream != s)) die(c, "%s of another communicator or stream in one group", call);
    if (c->stream != NULL && c->stream != s) die(c, "%s on another stream than before", call);
    if (group.n == OPS) die(c, "a group of more than %d calls", OPS);
    const size_t all = o.what == ALL_GATHER ? (size_t)c->size * o.bytes : o.bytes;
    const bool sends = o.send && (o.what != BROADCAST || o.root == c->rank);
    if (sends) fake_cuda_device_memory(o.send, o.bytes, "NCCL sends what is not in device memory");
    if (o.recv) fake_cuda_device_memory(o.recv, all, "NCCL receives into what is not device memory");
    if (o.what == ALL_GATHER && o.send != o.recv + (size_t)c->rank * o.bytes && o.send < o.recv + all && o.send + o.bytes > o.recv)
        die(c, "a gather that overlaps and is not in place");
    group.c = c;
    group.stream = s;
    group.op[group.n++] = o;
    if (group.depth > 0) return ncclSuccess;
    const ncclResult_t rc = launch();
    group.n = 0;
    return rc;
}

static size_t size_of(ncclDataType_t t) { return t == ncclFloat ? 4 : 1; }

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t s)
{
    if (t != ncclFloat || op != ncclSum) return ncclInvalidArgument;
    return add(c, s, "ncclAllReduce", (struct op){ ALL_REDUCE, send, recv, n * size_of(t), 0 });
}
ncclResult_t ncclAllGather(const void *send, void *recv, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t s)
{
    return add(c, s, "ncclAllGather", (struct op){ ALL_GATHER, send, recv, n * size_of(t), 0 });
}
ncclResult_t ncclBroadcast(const void *send, void *recv, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t s)
{
    return add(c, s, "ncclBroadcast", (struct op){ BROADCAST, send, recv, n * size_of(t), root });
}
ncclResult_t ncclSend(const void *x, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    return add(c, s, "ncclSend", (struct op){ SEND, x, NULL, n * size_of(t), peer });
}
ncclResult_t ncclRecv(void *x, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    return add(c, s, "ncclRecv", (struct op){ RECV, NULL, x, n * size_of(t), peer });
}

ncclResult_t ncclGroupStart(void)
{
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (group.depth == 0) return ncclInvalidUsage;
    if (--group.depth > 0) return ncclSuccess;
    const ncclResult_t rc = launch();
    group.n = 0;
    return rc;
}

/* ---- communicators ---------------------------------------------------------------------------------------- */

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

static struct shared *map(const char *name, int flags)
{
    const int fd = shm_open(name, flags | O_CLOEXEC, 0600);
    if (fd < 0) return NULL;
    void *p = ftruncate(fd, sizeof(struct shared)) == 0 ? mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                                                         : MAP_FAILED;
    close(fd);
    return p == MAP_FAILED ? NULL : p;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static unsigned n;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/omnidrop-nccl-%ld-%u", (long)getpid(), n++);
    struct shared *s = map(id->internal, O_CREAT | O_EXCL | O_RDWR);
    if (s == NULL) return ncclSystemError;
    munmap(s, sizeof *s);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    uint32_t none = 0;
    if (config->size != sizeof *config || config->magic != 0xcafebeef || size < 1 || size > RANKS || rank < 0 || rank >= size)
        return ncclInvalidArgument;
    if (config->blocking != 0) die(NULL, "a communicator that blocks");
    struct ncclComm *c = calloc(1, sizeof *c);
    c->rank = rank;
    c->size = size;
    snprintf(c->name, sizeof c->name, "%s", id.internal);
    c->s = map(c->name, O_RDWR);
    if (c->s == NULL) {
        free(c);
        return ncclSystemError;
    }
    if (!atomic_compare_exchange_strong(&c->s->size, &none, (uint32_t)size) && none != (uint32_t)size) die(c, "a communicator of %u", none);
    const uint32_t before = atomic_fetch_add(&c->s->joined, 1);
    if (before >= (uint32_t)size) die(c, "more ranks than there are");
    if (before + 1 == (uint32_t)size) shm_unlink(c->name);
    *out = c;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *out)
{
    alive(c, "ncclCommGetAsyncError");
    *out = state(c);
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    alive(c, "ncclCommFinalize");
    const ncclResult_t now = c->finalizing ? ncclInvalidUsage : state(c);
    if (now != ncclSuccess) return now == ncclInProgress ? ncclInvalidUsage : now;
    c->finalizing = true;
    c->polls = 0;
    return ncclInProgress;
}

/* A few bytes stay, so that who touches it again is seen. */
ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    alive(c, "ncclCommDestroy");
    if (!c->finalizing || state(c) != ncclSuccess) die(c, "ncclCommDestroy before ncclCommFinalize was over");
    c->gone = true;
    munmap(c->s, sizeof *c->s);
    return ncclSuccess;
}

/* What is on the device ends, and only then is its memory given back. */
ncclResult_t ncclCommAbort(ncclComm_t c)
{
    alive(c, "ncclCommAbort");
    c->aborted = true;
    while (atomic_load(&c->under_way) > 0) usleep(100);
    c->gone = true;
    if (c->pending)
        for (unsigned i = 0; i < c->pending->n_ops; i++) free(c->pending->part[i]);
    free(c->pending);
    shm_unlink(c->name);
    munmap(c->s, sizeof *c->s);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t rc)
{
    return rc == ncclRemoteError ? "remote process exited or there was a network error" : rc == ncclInvalidUsage ? "invalid usage"
         : rc == ncclSuccess ? "no error" : "invalid argument";
}
const char *ncclGetLastError(ncclComm_t c)
{
    (void)c;
    return last_error;
}
