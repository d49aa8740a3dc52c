/* tests/comm/ranks.c - comm/ under mpirun: every call on several ranks against a serial computation, and what is left when
 * a rank dies. Run by tests/cli/test_comm.sh and test_comm_hosts.sh; prints lines 'ok - ' and 'not ok - '.
 *
 *   ranks calls              every collective, messages, groups, staging; SEED in the environment repeats a run
 *   ranks builds             rank 1 says that it is of another build
 *   ranks death HOW CALL V   rank V is killed or stopped (HOW: kill, stop, exit; cont: stopped and
 *                            woken when all have given it up) while all are inside CALL
 *   ranks groups HOW         the same to the last rank, while groups of two are at work
 *   ranks cpus               each rank starts the threads of a device, and says where they may run
 *   ranks late               one rank does not come
 *   ranks link CALL          the link between two hosts is cut while all are inside CALL; RANKS_LOG names the file for the lines
 *   ranks bench              all-reduce by size, ours and MPI_Allreduce's
 *   ranks device             the calls on memory of CUDA devices, through NCCL where each rank has one (SIMT_DEVICES of the fake)
 *   ranks device-death HOW V rank V is killed or stopped while all wait for their device, which waits for the others'
 *   ranks device-late        one rank does not come
 *   ranks device-fails       NCCL fails on rank 1 (FAKE_NCCL_FAIL=1)
 * Goal of death: every other rank's call returns E_DEVICE with the dead rank's name within SILENCE + 1 s. */
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/threads.h"
#include "base/plugin.h"
#include "comm/comm.h"
#include "kernels/cuda/backend.h"

#define BEAT 0.2
#define SILENCE 1.5
#define LATE 10                    /* device-late gives up after so long */

static struct comm *world;
static uint32_t me, np;
static uint64_t seed;
static uint32_t n_bad;
static char first_bad[512];
static pthread_mutex_t bad_lock = PTHREAD_MUTEX_INITIALIZER;

static void bad(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void bad(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    pthread_mutex_lock(&bad_lock);
    if (n_bad++ == 0) vsnprintf(first_bad, sizeof first_bad, fmt, ap);
    pthread_mutex_unlock(&bad_lock);
    va_end(ap);
}

#define CHECK(c) do { if (!(c)) bad("%s:%d: %s", __FILE__, __LINE__, #c); } while (0)
static _Thread_local struct err call_err;
#define CALL(expr) do { if ((expr) != OK) bad("%s:%d: %s", __FILE__, __LINE__, call_err.text); } while (0)

static void say(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(bool ok, const char *fmt, ...)
{
    char line[2048];
    va_list ap;
    va_start(ap, fmt);
    const int at = snprintf(line, sizeof line, "%s - np %u: ", ok ? "ok" : "not ok", np);
    vsnprintf(line + at, sizeof line - (size_t)at - 1, fmt, ap);
    va_end(ap);
    strcat(line, "\n");
    fflush(stdout);
    /* One write a line: mpirun does not mix those. A file where the line to mpirun is cut. */
    const char *file = getenv("RANKS_LOG");
    const int fd = file ? open(file, O_WRONLY | O_APPEND | O_CREAT, 0600) : 1;
    if (fd < 0 || write(fd, line, strlen(line)) < 0) _exit(9);
    if (fd != 1) close(fd);
}

/* Rank 0 says how a part went on all ranks. */
static void part(const char *what)
{
    struct { uint32_t n; char text[512]; } mine = { n_bad, "" }, *all = calloc(np, sizeof *all);
    size_t *bytes = calloc(np, sizeof *bytes);
    struct err e;
    for (uint32_t i = 0; i < np; i++) bytes[i] = sizeof mine;
    snprintf(mine.text, sizeof mine.text, "%s", first_bad);
    if (comm_gather(world, NULL, 0, &mine, all, bytes, &e) != OK) {
        say(false, "%s: rank %u cannot report: %s", what, me, e.text);
        comm_exit(world, 1);
    }
    bool ok = true;
    for (uint32_t i = 0; me == 0 && i < np; i++)
        if (all[i].n != 0) {
            ok = false;
            say(false, "%s: rank %u, %u failures, first: %s", what, i, all[i].n, all[i].text);
        }
    if (me == 0 && ok) say(true, "%s", what);
    n_bad = 0;
    free(all);
    free(bytes);
}

/* ---- random, the same on every rank -------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}
static uint64_t draw(uint64_t *s) { return mix((*s)++); }

/* Element i of rank r's tensor in round k: many magnitudes, so that another order of adding gives other bits. */
static float value(uint32_t r, uint64_t k, size_t i)
{
    const uint64_t u = mix(seed + k * 1000003 + r * 7919 + i * 31);
    if (u % 97 == 0) return u & 1024 ? -0.0f : 0.0f;
    return ldexpf((float)(int32_t)(u >> 32), (int)(u % 40) - 50);
}

static uint8_t byte(uint32_t r, uint64_t k, size_t i) { return (uint8_t)mix(seed + k * 77 + r * 7919 + i / 8) + (uint8_t)i; }

static bool same_floats(const float *x, uint64_t k, size_t n, const uint32_t *rank, uint32_t size)
{
    for (size_t i = 0; i < n; i++) {
        float s = value(rank[0], k, i);
        for (uint32_t r = 1; r < size; r++) s = s + value(rank[r], k, i);
        if (memcmp(&s, &x[i], sizeof s) != 0) return false;
    }
    return true;
}

static size_t some_length(uint64_t *s, size_t most)
{
    static const size_t odd[] = { 1, 2, 3, 5, 15, 16, 17, 63, 1000, 4095, 4096, 4097, 8191, 8192, 8193, 16385, 65535, 65536, 65537,
                                  131073, 262145, 300007, 700001 };
    const size_t n = draw(s) % 3 ? odd[draw(s) % (sizeof odd / sizeof *odd)] : draw(s) % most + 1;
    return n < most ? n : most;
}

/* ---- a device whose memory is not what it seems -------------------------------------------------------------- */

static void coded(uint8_t *to, const uint8_t *from, size_t n)
{
    for (size_t i = 0; i < n; i++) to[i] = from[i] ^ 0x5a;
}
static status fake_upload(struct stream *st, void *dst, const void *host, size_t n, struct err *e)
{
    (void)st, (void)e;
    coded(dst, host, n);
    return OK;
}
static status fake_download(struct stream *st, void *host, const void *src, size_t n, struct err *e)
{
    (void)st, (void)e;
    coded(host, src, n);
    return OK;
}
static status fake_sync(struct stream *st, struct err *e) { (void)st, (void)e; return OK; }
static status fake_alloc(struct stream *st, size_t n, void **out, struct err *e)
{
    (void)st, (void)e;
    *out = malloc(n);
    return OK;
}
static void fake_release(struct stream *st, void *p)
{
    (void)st;
    free(p);
}
static const struct ops fake_ops = { .name = "fake", .upload = fake_upload, .download = fake_download, .sync = fake_sync,
                                     .alloc = fake_alloc, .release = fake_release };
static struct stream fake = { .ops = &fake_ops };

/* n bytes where st computes (NULL: the host); put and take away what the host has at `host`. */
static void *place(struct stream *st, const void *host, size_t n)
{
    void *p = NULL;
    if (st == NULL) p = malloc(n);
    else CALL(st->ops->alloc(st, n, &p, &call_err));
    if (st == NULL) memcpy(p, host, n);
    else CALL(st->ops->upload(st, p, host, n, &call_err));
    return p;
}
static void displace(struct stream *st, void *p, void *host, size_t n)
{
    if (st == NULL) memcpy(host, p, n);
    else CALL(st->ops->download(st, host, p, n, &call_err));
    if (st == NULL) free(p);
    else st->ops->release(st, p);
}

/* ---- collectives --------------------------------------------------------------------------------------------- */

/* NCCL's sums: near the serial one, and the same on all ranks. */
static void near_floats(struct comm *c, const float *x, uint64_t k, size_t n, const uint32_t *rank)
{
    const uint32_t size = comm_size(c);
    uint64_t mine = 1, all[64];
    size_t bytes[64];
    for (size_t i = 0; i < n; i++) {
        double sum = 0, large = 0;
        uint32_t bits;
        for (uint32_t r = 0; r < size; r++) {
            sum += value(rank[r], k, i);
            large += fabs((double)value(rank[r], k, i));
        }
        if (!(fabs(x[i] - sum) <= 1e-6 * large)) {
            bad("all_reduce of %zu: element %zu is %g, not %g", n, i, (double)x[i], sum);
            break;
        }
        memcpy(&bits, &x[i], sizeof bits);
        mine = mix(mine ^ bits);
    }
    for (uint32_t r = 0; r < size; r++) bytes[r] = sizeof mine;
    CALL(comm_all_gather(c, NULL, &mine, all, bytes, &call_err));
    for (uint32_t r = 0; r < size; r++) CHECK(all[r] == mine);
}

static void reduces(struct comm *c, struct stream *st, uint64_t k, size_t n)
{
    float *host = malloc((n + 1) * sizeof *host);
    uint32_t *rank = malloc(comm_size(c) * sizeof *rank);
    for (uint32_t r = 0; r < comm_size(c); r++) rank[r] = comm_peer(c, r)->world;
    for (size_t i = 0; i < n; i++) host[i] = value(me, k, i);
    host[n] = 42;
    float *x = place(st, host, (n + 1) * sizeof *host);
    CALL(comm_all_reduce(c, st, x, n, &call_err));
    displace(st, x, host, (n + 1) * sizeof *host);
    if (st && comm_attached(c)) near_floats(c, host, k, n, rank);
    else if (!same_floats(host, k, n, rank, comm_size(c))) bad("all_reduce of %zu: not the serial sum's bits", n);
    CHECK(host[n] == 42);
    free(host);
    free(rank);
}

static void gathers(struct comm *c, struct stream *st, uint64_t k, size_t most, bool in_place, uint32_t root)
{
    const uint32_t size = comm_size(c), mine = comm_rank(c);
    uint64_t s = seed + k;
    size_t *bytes = malloc(size * sizeof *bytes), total = 0, start = 0;
    const bool even = draw(&s) % 3 == 0;
    for (uint32_t r = 0; r < size; r++) {
        bytes[r] = even && r > 0 ? bytes[0] : draw(&s) % 4 ? some_length(&s, most) : 0;
        if (r == mine) start = total;
        total += bytes[r];
    }
    uint8_t *host = malloc(total + 1), *host_own = malloc(bytes[mine] + 1);
    memset(host, 0xee, total + 1);
    for (size_t i = 0; i < bytes[mine]; i++) host_own[i] = byte(mine, k, i);
    if (in_place) memcpy(host + start, host_own, bytes[mine]);
    uint8_t *all = place(st, host, total + 1), *own = in_place ? all + start : place(st, host_own, bytes[mine] + 1);
    if (root == UINT32_MAX) CALL(comm_all_gather(c, st, own, all, bytes, &call_err));
    else CALL(comm_gather(c, st, root, own, all, bytes, &call_err));
    displace(st, all, host, total + 1);
    if (!in_place) displace(st, own, host_own, bytes[mine] + 1);
    if (root == UINT32_MAX || root == mine) {
        const uint8_t *at = host;
        for (uint32_t r = 0; r < size; at += bytes[r], r++)
            for (size_t i = 0; i < bytes[r]; i++)
                if (at[i] != byte(r, k, i)) {
                    bad("gather: byte %zu of %zu of rank %u is wrong", i, bytes[r], r);
                    break;
                }
    }
    CHECK(host[total] == 0xee);
    free(host_own);
    free(host);
    free(bytes);
}

static void broadcasts(struct comm *c, struct stream *st, uint64_t k, size_t n)
{
    const uint32_t root = (uint32_t)(k % comm_size(c));
    uint8_t *host = malloc(n + 1);
    for (size_t i = 0; i < n; i++) host[i] = comm_rank(c) == root ? byte(root, k, i) : 0;
    uint8_t *x = place(st, host, n);
    CALL(comm_broadcast(c, st, root, x, n, &call_err));
    displace(st, x, host, n);
    for (size_t i = 0; i < n; i++)
        if (host[i] != byte(root, k, i)) {
            bad("broadcast: byte %zu of %zu from %u", i, n, root);
            break;
        }
    free(host);
}

/* Everyone to its neighbour, the even ones first. */
static void passes(struct comm *c, struct stream *st, uint64_t k, size_t n)
{
    const uint32_t size = comm_size(c), mine = comm_rank(c), next = (mine + 1) % size, prev = (mine + size - 1) % size;
    if (size == 1) return;
    uint8_t *host = malloc(n + 1);
    for (size_t i = 0; i < n; i++) host[i] = byte(mine, k, i);
    uint8_t *out = place(st, host, n), *in = place(st, host, n);
    for (int turn = 0; turn < 2; turn++) {
        const bool send = (mine % 2 == 0) == (turn == 0);
        if (size % 2 == 1 && mine == size - 1) {            /* an odd ring: the last one receives, then sends */
            if (turn == 0) CALL(comm_recv(c, st, prev, in, n, &call_err));
            else CALL(comm_send(c, st, next, out, n, &call_err));
        } else if (send) CALL(comm_send(c, st, next, out, n, &call_err));
        else CALL(comm_recv(c, st, prev, in, n, &call_err));
    }
    displace(st, out, host, n);
    displace(st, in, host, n);
    for (size_t i = 0; i < n; i++)
        if (host[i] != byte(prev, k, i)) {
            bad("send and recv: byte %zu of %zu", i, n);
            break;
        }
    free(host);
}

static void collectives(struct comm *c, struct stream *st, int rounds, uint64_t *s)
{
    for (int i = 0; i < rounds; i++) {
        const uint64_t k = draw(s);
        switch (draw(s) % 6) {
        case 0: reduces(c, st, k, some_length(s, 800000)); break;
        case 1: gathers(c, st, k, 700001, k & 1, UINT32_MAX); break;
        case 2: gathers(c, st, k, 300000, k & 1, (uint32_t)(k / 2 % comm_size(c))); break;
        case 3: broadcasts(c, st, k, some_length(s, 3000000)); break;
        case 4: passes(c, st, k, some_length(s, 3000000)); break;
        default: CALL(comm_barrier(c, &call_err)); break;
        }
    }
}

/* Nobody comes out of a barrier before all are in it. */
static void barriers(void)
{
    for (uint32_t r = 0; r < np; r++) {
        double t = 0, out[64];
        size_t bytes[64];
        if (me == r) {
            const struct timespec d = { .tv_nsec = 60000000 };
            nanosleep(&d, NULL);
            t = clock_s();
        }
        CALL(comm_barrier(world, &call_err));
        const double after = clock_s();
        for (uint32_t i = 0; i < np; i++) bytes[i] = sizeof t;
        CALL(comm_all_gather(world, NULL, &t, out, bytes, &call_err));
        CHECK(after >= out[r]);
    }
}

/* ---- messages ------------------------------------------------------------------------------------------------- */

enum { THREADS = 3, MESSAGES = 40 };

static size_t message_size(uint32_t from, uint32_t to, uint32_t tag, uint32_t i)
{
    uint64_t s = mix(seed + from * 101 + to * 10007 + tag * 1000003 + i);
    if (i == 7 && tag == 1 && from == 0 && to == 1) return (size_t)64 << 20;
    return s % 5 == 0 ? 0 : s % 5 == 1 ? s / 8 % 200000 : s / 8 % 6000;
}

static uint8_t message_byte(uint32_t from, uint32_t tag, uint32_t i, size_t at)
{
    return (uint8_t)(from * 17 + tag * 5 + i * 3 + at + at / 4096);
}

static void *poster(void *arg)
{
    const uint32_t tag = (uint32_t)(uintptr_t)arg;
    for (uint32_t i = 0; i < MESSAGES; i++)
        for (uint32_t to = 0; to < np; to++) {
            const size_t n = message_size(me, to, tag, i);
            uint8_t *x = malloc(n + 1);
            for (size_t k = 0; k < n; k++) x[k] = message_byte(me, tag, i, k);
            CALL(comm_post(world, to, tag, x, n, &call_err));
            free(x);
        }
    return NULL;
}

static void check_message(const struct comm_message *m, uint32_t i)
{
    if (m->n != message_size(m->from, me, m->tag, i)) {
        bad("message %u of tag %u from %u has %zu bytes", i, m->tag, m->from, m->n);
        return;
    }
    for (size_t k = 0; k < m->n; k++)
        if (m->bytes[k] != message_byte(m->from, m->tag, i, k)) {
            bad("byte %zu of message %u of tag %u from %u", k, i, m->tag, m->from);
            return;
        }
}

/* Tag 0 and 1: from anyone; tag 2: from each rank in turn. */
static void *taker(void *arg)
{
    const uint32_t tag = (uint32_t)(uintptr_t)arg;
    uint32_t *seen = calloc(np, sizeof *seen);
    for (uint32_t i = 0; i < MESSAGES * np; i++) {
        struct comm_message m = { 0 };
        bool got = false;
        CALL(comm_take(world, tag == 2 ? i % np : COMM_ANY, tag, 60, &m, &got, &call_err));
        if (!got) {
            bad("message %u of tag %u did not come", i, tag);
            break;
        }
        CHECK(m.tag == tag && m.from < np && (tag != 2 || m.from == i % np));
        check_message(&m, seen[m.from]++);
        free(m.bytes);
    }
    free(seen);
    return NULL;
}

static void messages(void)
{
    pthread_t t[2 * THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) {
        pthread_create(&t[i], NULL, taker, (void *)i);
        pthread_create(&t[THREADS + i], NULL, poster, (void *)i);
    }
    for (int i = 0; i < 2 * THREADS; i++) pthread_join(t[i], NULL);
    struct comm_message m;
    bool got = true;
    CALL(comm_take(world, COMM_ANY, COMM_ANY, 0, &m, &got, &call_err));
    CHECK(!got);
    const double start = clock_s();
    CALL(comm_take(world, COMM_ANY, COMM_ANY, 0.1, &m, &got, &call_err));
    CHECK(!got && clock_s() - start >= 0.1);
    /* A plan for all, of any tag; and tags out of order. */
    CALL(comm_barrier(world, &call_err));
    if (me == 0) {
        CALL(comm_post_all(world, 1023, "plan", 5, &call_err));
        for (uint32_t r = 1; r < np; r++)
            for (uint32_t tag = 10; tag < 20; tag++) CALL(comm_post(world, r, tag, &tag, sizeof tag, &call_err));
    } else {
        CALL(comm_take(world, 0, COMM_ANY, 10, &m, &got, &call_err));
        CHECK(got && m.tag == 1023 && m.n == 5 && strcmp((char *)m.bytes, "plan") == 0);
        if (got) free(m.bytes);
        for (uint32_t tag = 19; tag >= 10; tag--) {
            CALL(comm_take(world, COMM_ANY, tag, 10, &m, &got, &call_err));
            CHECK(got && m.tag == tag && memcmp(m.bytes, &tag, sizeof tag) == 0);
            if (got) free(m.bytes);
        }
    }
    struct err e;
    CHECK(comm_post(world, np, 0, "", 0, &e) == E_ARG && comm_post(world, 0, 1024, "", 0, &e) == E_ARG);
    CHECK(comm_take(world, np, 0, 0, &m, &got, &e) == E_ARG && comm_take(world, 0, 1024, 0, &m, &got, &e) == E_ARG);
}

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* After a pause a message is seen soon, and waiting was cheap. The best of some, since tests run beside anything. */
static bool idle_once(void)
{
    enum { N = 15 };
    bool ok = true;
    double delay[N], cpu = 0, waited = 0;
    for (int i = 0; np > 1 && i < N; i++) {
        CALL(comm_barrier(world, &call_err));
        if (me == 0) {
            const struct timespec d = { .tv_nsec = 80000000 };
            nanosleep(&d, NULL);
            const double now = clock_s();
            CALL(comm_post(world, 1, 3, &now, sizeof now, &call_err));
        } else if (me == 1) {
            struct comm_message m = { 0 };
            bool got = false;
            double sent = 0;
            const double c0 = cpu_s(), t0 = clock_s();
            CALL(comm_take(world, 0, 3, INFINITY, &m, &got, &call_err));
            const double now = clock_s();
            cpu += cpu_s() - c0;
            waited += now - t0;
            CHECK(got);
            if (got) memcpy(&sent, m.bytes, sizeof sent);
            free(m.bytes);
            delay[i] = now - sent;
        }
    }
    if (np > 1 && me == 1) {
        for (int i = 1; i < N; i++)
            for (int k = i; k > 0 && delay[k] < delay[k - 1]; k--) {
                const double t = delay[k];
                delay[k] = delay[k - 1];
                delay[k - 1] = t;
            }
        printf("# idle take: %.0f us at best, %.0f us median until a message is seen, %.2f %% of a processor while waiting\n",
               delay[0] * 1e6, delay[N / 2] * 1e6, 100 * cpu / waited);
        fflush(stdout);
        ok = delay[0] < 0.005 && cpu < 0.1 * waited;
    }
    if (np > 1) CALL(comm_broadcast(world, NULL, 1, &ok, sizeof ok, &call_err));
    return ok;
}

static void idle(void)
{
    bool ok = false;
    for (int i = 0; !ok && i < 4; i++) ok = idle_once();
    CHECK(ok);
}

/* ---- groups --------------------------------------------------------------------------------------------------- */

static void groups(void)
{
    struct comm *odd = NULL, *back = NULL, *none = NULL, *sub = NULL;
    CALL(comm_split(world, me % 2, me, &odd, &call_err));
    CALL(comm_split(world, 7, np - me, &back, &call_err));
    CALL(comm_split(world, me == 0 ? UINT32_MAX : 1, 0, &none, &call_err));
    if (!odd || !back) return;
    CHECK(comm_size(odd) == (np + 1 - me % 2) / 2 && comm_peer(odd, comm_rank(odd))->world == me);
    CHECK(comm_size(back) == np && comm_rank(back) == np - 1 - me);
    CHECK((none == NULL) == (me == 0) && (me == 0 || comm_size(none) == np - 1));
    /* Groups at once: each has its own sequence. */
    uint64_t s = seed + 5 + me % 2;
    collectives(odd, NULL, 12 + 10 * (int)(me % 2), &s);
    s = seed + 99;
    collectives(back, NULL, 8, &s);
    if (none) collectives(none, NULL, 6, &s);
    CALL(comm_split(odd, comm_rank(odd) / 2, 0, &sub, &call_err));
    s = seed + 123 + me % 2 * 10;
    if (sub) collectives(sub, NULL, 6, &s);
    /* Messages of one group are not another's. */
    struct comm_message m;
    bool got;
    const uint32_t next = (comm_rank(back) + 1) % np;
    CALL(comm_post(back, next, 4, "back", 5, &call_err));
    CALL(comm_post(world, me, 4, "own", 4, &call_err));
    CALL(comm_take(back, COMM_ANY, 4, 10, &m, &got, &call_err));
    CHECK(got && strcmp((char *)m.bytes, "back") == 0 && m.from == (comm_rank(back) + np - 1) % np);
    if (got) free(m.bytes);
    CALL(comm_take(world, COMM_ANY, 4, 10, &m, &got, &call_err));
    CHECK(got && strcmp((char *)m.bytes, "own") == 0);
    if (got) free(m.bytes);
    CALL(comm_barrier(world, &call_err));
    comm_close(&sub);
    comm_close(&none);
    comm_close(&back);
    comm_close(&odd);
    CHECK(odd == NULL);
}

static void arguments(void)
{
    struct err e;
    uint8_t x = 0;
    size_t bytes[64] = { 0 };
    CHECK(comm_broadcast(world, NULL, np, &x, 1, &e) == E_ARG);
    CHECK(comm_gather(world, NULL, np, &x, &x, bytes, &e) == E_ARG);
    CHECK(comm_send(world, NULL, me, &x, 1, &e) == E_ARG && comm_recv(world, NULL, np, &x, 1, &e) == E_ARG);
    if (me != 0) CHECK(comm_post_all(world, 0, &x, 1, &e) == E_ARG);
    CALL(comm_all_reduce(world, NULL, NULL, 0, &call_err));
    CALL(comm_all_gather(world, NULL, NULL, NULL, bytes, &call_err));
    CALL(comm_broadcast(world, NULL, 0, NULL, 0, &call_err));
    const struct comm_peer *p = comm_peer(world, me);
    CHECK(p->world == me && p->pid == getpid() && p->local < p->n_local && p->host[0] != 0 && strcmp(p->build, "b1") == 0);
    CHECK(!comm_attached(world) && !comm_dead(world, 0, NULL));
    char v[256];
    comm_versions(world, v, sizeof v);
    if (me == 0) printf("# %s; %s\n", comm_name(world), v);
    CHECK(np == 1 || strstr(v, "MPI") != NULL);
    /* No device here: refused on all, and the group is as it was. */
    if (getenv("RANKS_DEVICE") == NULL && np > 1) {
        CHECK(comm_attach(world, &fake, NULL, 9999, &e) == E_MODEL && strstr(e.text, "NCCL") != NULL);
        CALL(comm_barrier(world, &call_err));
    }
}

static int calls(void)
{
    uint64_t s = seed;
    part("all ranks report");
    arguments();
    part("who they are, and arguments that are wrong");
    static const size_t edge[] = { 1, 3, 8191, 8192, 8193, 65535, 65537, 1 << 20, (1 << 20) + 17 };
    for (size_t i = 0; i < sizeof edge / sizeof *edge; i++) reduces(world, NULL, i, edge[i]);
    part("all_reduce at its edges has the bits of the serial sum");
    barriers();
    part("no one leaves a barrier early");
    collectives(world, NULL, 120, &s);
    part("120 random collectives");
    collectives(world, &fake, 40, &s);
    CHECK(np == 1 || strcmp(comm_name(world), "mpi, host-staged") == 0);
    part("40 collectives on device memory, through the host");
    messages();
    part("messages of three threads, one of 64 MiB, by tag and any");
    idle();
    part("an idle take is cheap and wakes soon");
    groups();
    part("groups at once, in groups, in another order");
    comm_close(&world);
    return 0;
}

/* ---- death ---------------------------------------------------------------------------------------------------- */

static const char *how;
/* When the victim was hit by its own clock, in the file RANKS_AT: timers come late on a busy machine. */
static void die(int sig)
{
    (void)sig;
    const char *file = getenv("RANKS_AT");
    const int fd = file ? open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
    const double now = clock_s();
    if (fd >= 0 && write(fd, &now, sizeof now) > 0) close(fd);
    if (strcmp(how, "exit") == 0) comm_exit(world, 7);
    raise(strcmp(how, "kill") == 0 ? SIGKILL : SIGSTOP);
}

static void die_in(double s)
{
    signal(SIGALRM, die);
    const struct itimerval t = { .it_value = { .tv_sec = (time_t)s, .tv_usec = (suseconds_t)((s - floor(s)) * 1e6) } };
    setitimer(ITIMER_REAL, &t, NULL);
}

/* On a machine with several times more to do than it has processors nothing comes in time. */
static double slack(void)
{
    double load = 0;
    return getloadavg(&load, 1) == 1 && load > 2.0 * (double)sysconf(_SC_NPROCESSORS_ONLN) + np ? 2 : 0;
}

static double died_at(double otherwise)
{
    const char *file = getenv("RANKS_AT");
    const int fd = file ? open(file, O_RDONLY) : -1;
    double at = otherwise;
    if (fd < 0) return otherwise;
    if (read(fd, &at, sizeof at) != sizeof at) at = otherwise;
    close(fd);
    return at;
}

static uint32_t told_of = UINT32_MAX;
static void on_death(void *self, uint32_t r, const struct err *why)
{
    (void)self, (void)why;
    __atomic_store_n(&told_of, r, __ATOMIC_SEQ_CST);
}

static status one_call(struct comm *c, const char *call, float *x, size_t n, struct err *e)
{
    const uint32_t size = comm_size(c), mine = comm_rank(c);
    size_t bytes[64];
    struct comm_message m;
    bool got;
    for (uint32_t i = 0; i < size; i++) bytes[i] = n / size;
    if (strcmp(call, "all_reduce") == 0) return comm_all_reduce(c, NULL, x, n / 4, e);
    if (strcmp(call, "all_reduce_short") == 0) return comm_all_reduce(c, NULL, x, 100, e);
    if (strcmp(call, "all_gather") == 0) return comm_all_gather(c, NULL, x + n / 4, x, bytes, e);
    if (strcmp(call, "gather") == 0) {
        TRY(comm_gather(c, NULL, 1, x + n / 4, x, bytes, e));
        return comm_barrier(c, e);
    }
    if (strcmp(call, "broadcast") == 0) return comm_broadcast(c, NULL, 1, x, n, e);
    if (strcmp(call, "barrier") == 0) return comm_barrier(c, e);
    if (strcmp(call, "split") == 0) {
        struct comm *g = NULL;
        TRY(comm_split(c, mine % 2, 0, &g, e));
        comm_close(&g);
        return OK;
    }
    if (strcmp(call, "send") == 0) {
        if (mine % 2 == 0) TRY(comm_send(c, NULL, (mine + 1) % size, x, n, e));
        TRY(comm_recv(c, NULL, (mine + size - 1) % size, x + n / 4, n, e));
        return mine % 2 ? comm_send(c, NULL, (mine + 1) % size, x, n, e) : OK;
    }
    if (strcmp(call, "post") == 0) {
        /* Rings of messages that are too long to lie about. */
        if (mine != 0) {
            TRY(comm_take(c, mine - 1, 5, INFINITY, &m, &got, e));
            free(m.bytes);
        }
        TRY(comm_post(c, (mine + 1) % size, 5, x, n, e));
        if (mine == 0) {
            TRY(comm_take(c, size - 1, 5, INFINITY, &m, &got, e));
            free(m.bytes);
        }
        return OK;
    }
    TRY(comm_take(c, COMM_ANY, COMM_ANY, INFINITY, &m, &got, e));
    return err_set(e, E_INTERNAL, "a message that nobody sent");
}

static void leave_dead(uint32_t victim)
{
    if (strcmp(how, "stop") == 0) kill((pid_t)comm_peer(world, victim)->pid, SIGKILL);
    if (strcmp(how, "cont") == 0) kill((pid_t)comm_peer(world, victim)->pid, SIGCONT);
    comm_exit(world, 0);
}

static int death(const char *call, uint32_t victim)
{
    enum { BYTES = 3 << 20 };
    const double delay = 0.4;
    float *x = calloc(BYTES / 2, sizeof *x);
    struct err e = { 0 };
    comm_on_death(world, on_death, NULL);
    if (comm_barrier(world, &e) != OK) bad("%s", e.text);
    const double start = clock_s();
    if (me == victim) die_in(delay);
    status st = OK;
    uint64_t n = 0;
    while (st == OK && clock_s() - start < 20) {
        st = one_call(world, call, x, BYTES, &e);
        n++;
    }
    if (me == victim && strcmp(how, "cont") == 0) {
        say(st == E_DEVICE && strstr(e.text, "it has given this rank up: no sign of life") != NULL, "woken rank %u in %s: %s", me,
            call, e.text);
        comm_exit(world, 0);
    }
    if (me == victim) pause();
    const double took = clock_s() - died_at(start + delay);
    char name[64], word[64];
    snprintf(name, sizeof name, "rank %u (pid %lld on host ", victim, (long long)comm_peer(world, victim)->pid);
    snprintf(word, sizeof word, "%s", strcmp(call, "take") == 0 || strcmp(call, "all_reduce") == 0 ? call : "comm_");
    uint32_t r = UINT32_MAX;
    struct err why = { 0 };
    const double until = clock_s() + 0.2;
    while (__atomic_load_n(&told_of, __ATOMIC_SEQ_CST) == UINT32_MAX && clock_s() < until) {}
    const bool ok = st == E_DEVICE && strstr(e.text, name) != NULL && strstr(e.text, word) != NULL && took < SILENCE + 1 + slack() &&
                    comm_any_dead(world, &r, &why) && r == victim && comm_dead(world, victim, NULL) &&
                    __atomic_load_n(&told_of, __ATOMIC_SEQ_CST) == victim && one_call(world, call, x, BYTES, &why) == E_DEVICE;
    say(ok, "%s of rank %u in %s: rank %u knows after %.2f s (%llu calls): %s", how, victim, call, me, took,
        (unsigned long long)n, st == OK ? "no error" : e.text);
    /* The others first: a rank that leaves is a death too, and rank 0 is everybody's. */
    const struct timespec d = { .tv_sec = me == 0, .tv_nsec = 300000000 };
    nanosleep(&d, NULL);
    leave_dead(victim);
    return 0;
}

/* Groups {0, 1}, {2, 3}, ...; the last rank dies. The others' groups and messages go on. */
static int group_death(void)
{
    const uint32_t victim = np - 1;
    struct comm *g = NULL;
    struct err e = { 0 };
    float *x = calloc(300000, sizeof *x);
    CALL(comm_split(world, me / 2, 0, &g, &call_err));
    CALL(comm_barrier(world, &call_err));
    const double start = clock_s(), delay = 0.4;
    if (me == victim) die_in(delay);
    const bool hit = me / 2 == victim / 2;
    status st = OK;
    uint64_t after = 0;
    while (st == OK && clock_s() - start < (hit ? 20 : delay + SILENCE + 1.5)) {
        for (size_t i = 0; i < 300000; i++) x[i] = (float)(me + 1);
        st = comm_all_reduce(g, NULL, x, 300000, &e);
        if (st == OK && !hit && x[299999] != (float)(me / 2 * 4 + 3)) st = err_set(&e, E_INTERNAL, "a wrong sum");
        if (comm_dead(world, victim, NULL)) after++;
        /* Both of a group stop at the same call. */
        float stop = clock_s() - start >= delay + SILENCE + 1.2;
        if (st == OK) st = comm_all_reduce(g, NULL, &stop, 1, &e);
        if (st == OK && stop > 0) break;
    }
    if (me == victim) pause();
    if (hit) say(st == E_DEVICE, "%s of rank %u: rank %u of its group: %s", how, victim, me, e.text);
    else say(st == OK && after > 3, "%s of rank %u: rank %u's group goes on, %llu sums after the death %s", how, victim, me,
             (unsigned long long)after, e.text);
    /* The world is no more, but messages between the living are. */
    bool ok = comm_barrier(world, &e) == E_DEVICE && comm_post(world, (me + 1) % victim, 1, "x", 1, &e) == E_DEVICE;
    comm_go_on(world);
    struct comm_message m = { 0 };
    bool got = false;
    const struct timespec d = { .tv_sec = 1 + (me == 0), .tv_nsec = 0 };
    for (int i = 0; ok && i < 50; i++) {
        ok = comm_post(world, (me + 1) % victim, 1, &i, sizeof i, &e) == OK &&
             comm_take(world, COMM_ANY, 1, 10, &m, &got, &e) == OK && got && m.from == (me + victim - 1) % victim &&
             memcmp(m.bytes, &i, sizeof i) == 0;
        free(m.bytes);
        m.bytes = NULL;
    }
    ok = ok && comm_post(world, victim, 1, "x", 1, &e) == E_DEVICE && comm_barrier(world, &e) == E_DEVICE;
    say(ok, "%s of rank %u: rank %u's messages with the living go on: %s", how, victim, me, e.text);
    nanosleep(&d, NULL);
    leave_dead(victim);
    return 0;
}

/* Every rank loses those of the other host. The lines say when, by the clock that all hosts of this machine share. */
static int link_cut(const char *call)
{
    enum { BYTES = 3 << 20 };
    float *x = calloc(BYTES / 2, sizeof *x);
    struct err e = { 0 };
    status st = comm_barrier(world, &e);
    if (me == 0) say(st == OK, "up with %s between %s and %s", comm_name(world), comm_peer(world, 0)->host, comm_peer(world, np - 1)->host);
    const double start = clock_s();
    while (st == OK && clock_s() - start < 30) st = one_call(world, call, x, BYTES, &e);
    const char *other = comm_peer(world, strcmp(comm_peer(world, me)->host, comm_peer(world, 0)->host) == 0 ? np - 1 : 0)->host;
    char on[80];
    snprintf(on, sizeof on, "on host %s): ", other);
    say(st == E_DEVICE && strstr(e.text, on) != NULL, "at %.2f rank %u in %s: %s", clock_s(), me, call, st == OK ? "no error" : e.text);
    comm_exit(world, 3);
}

/* ---- devices ------------------------------------------------------------------------------------------------------ */

static const struct cuda_backend *backend;
static struct stream *gpu;

static bool gpu_open(void)
{
    char why[512];
    void *native;
    int number;
    backend = plugin_symbol(CUDA_BACKEND_FILE, CUDA_BACKEND_SYMBOL, false, why, sizeof why);
    if (backend == NULL) bad("%s", why);
    else CALL(backend->open(&(struct stream_options){ .n_threads = 1 }, &gpu, &call_err));
    if (gpu == NULL) return false;
    backend->native(gpu, &native, &number);
    const status st = comm_attach(world, gpu, native, number, &call_err);
    if (st == OK) backend->guard(gpu, comm_look, world);
    else if (st != E_MODEL || strstr(call_err.text, "tensors go through host memory and MPI") == NULL) bad("%s", call_err.text);
    if (me == 0) printf("# %s%s%s\n", comm_name(world), st == OK ? "" : ": ", st == OK ? "" : call_err.text);
    return true;
}

static void gpu_close(void)
{
    CALL(gpu->ops->sync(gpu, &call_err));
    comm_detach(world);
    backend->guard(gpu, NULL, NULL);
    gpu->ops->close(&gpu);
    CHECK(!comm_attached(world));
}

/* Many sums behind each other, without a wait of the host: all of them are in one pipe. */
static void row_of_sums(void)
{
    enum { N = 5000, SUMS = 20 };
    float *host = malloc(N * sizeof *host);
    for (size_t i = 0; i < N; i++) host[i] = (float)(i % 97);
    float *x = place(gpu, host, N * sizeof *host);
    for (int k = 0; k < SUMS; k++) CALL(comm_all_reduce(world, gpu, x, N, &call_err));
    displace(gpu, x, host, N * sizeof *host);
    double by = 1;
    for (int k = 0; k < SUMS; k++) by *= np;
    for (size_t i = 0; i < N; i++)
        if (fabs(host[i] - by * (double)(i % 97)) > 1e-5 * by * (double)(i % 97)) {
            bad("sum %zu after %d of them is %g", i, SUMS, (double)host[i]);
            break;
        }
    free(host);
}

static int device(void)
{
    uint64_t s = seed;
    const char *devices = getenv("SIMT_DEVICES"), *off = getenv("OMNIDROP_COMM");
    const bool own = devices != NULL && atoi(devices) >= (int)np && (off == NULL || strcmp(off, "staged") != 0);
    if (gpu_open()) {
        CHECK(comm_attached(world) == own);
        row_of_sums();
        collectives(world, gpu, 40, &s);
        CHECK(strcmp(comm_name(world), own ? "nccl" : np == 1 ? "self" : "mpi, host-staged") == 0);
        gpu_close();
    }
    part("collectives on memory of devices");
    /* A second time, as an engine that is opened again; and the end without the calls that end it in good order. */
    if (gpu_open()) collectives(world, gpu, 5, &s);
    part("the same on a device that was opened again");
    comm_close(&world);
    if (gpu) {
        backend->guard(gpu, NULL, NULL);
        gpu->ops->close(&gpu);
    }
    return 0;
}

/* What a rank that waits for its device hears when another one does not come: st, and how long it took. */
static status gpu_loop(double most, double *took, struct err *e)
{
    enum { N = 30000 };
    float *x = NULL;
    status st = gpu->ops->alloc(gpu, N * sizeof *x, (void **)&x, e);
    double start = clock_s();
    while (st == OK && clock_s() - start < most) {
        st = comm_all_reduce(world, gpu, x, N, e);
        if (st == OK) st = gpu->ops->sync(gpu, e);
    }
    *took = clock_s() - start;
    return st;
}

static int device_death(uint32_t victim)
{
    const double delay = 0.4;
    struct err e = { 0 };
    double took;
    char name[64];
    CHECK(gpu_open() && comm_attached(world));
    part("up");
    const double start = clock_s();
    if (me == victim) die_in(delay);
    const status st = gpu_loop(20, &took, &e);
    if (me == victim) pause();
    const double late = clock_s() - died_at(start + delay);
    snprintf(name, sizeof name, "rank %u (pid %lld on host ", victim, (long long)comm_peer(world, victim)->pid);
    float one = 1;
    struct err again;
    const bool ok = st == E_DEVICE && strstr(e.text, name) != NULL && late < SILENCE + 1 + slack() &&
                    comm_all_reduce(world, gpu, &one, 1, &again) == E_DEVICE;
    /* The device goes on, and can be closed. */
    const double closing = clock_s();
    comm_detach(world);
    backend->guard(gpu, NULL, NULL);
    gpu->ops->close(&gpu);
    say(ok && clock_s() - closing < 5 + slack(), "%s of rank %u: rank %u, whose device waits for it, knows after %.2f s: %s", how, victim,
        me, late, st == OK ? "no error" : e.text);
    const struct timespec d = { .tv_sec = me == 0, .tv_nsec = 300000000 };
    nanosleep(&d, NULL);
    leave_dead(victim);
    return 0;
}

/* Rank 1 does not come, or NCCL fails on it; all live. */
static int device_trouble(bool late)
{
    struct err e = { 0 };
    double took = 0;
    CHECK(gpu_open() && comm_attached(world));
    const struct timespec d = { .tv_sec = late ? LATE + 4 : 1 };
    if (me == 1 && late) nanosleep(&d, NULL);
    const status st = gpu_loop(30, &took, &e);
    const bool lately = st == E_DEVICE && took >= LATE && strstr(e.text, "waiting for the device: no answer within 1") != NULL;
    const bool failed = st == E_DEVICE && strstr(e.text, "NCCL says: remote process exited") != NULL;
    if (late && me != 1) say(lately, "rank %u waits for its device: %s", me, e.text);
    if (!late && me == 1) say(failed, "rank 1: %s", e.text);
    comm_detach(world);
    backend->guard(gpu, NULL, NULL);
    gpu->ops->close(&gpu);
    comm_exit(world, 0);
}

/* Rank 1 comes late to a sum: the others give up, say so, and do not believe the group again. */
static int late(void)
{
    struct err e = { 0 };
    float x[8] = { 0 };
    const struct timespec d = { .tv_sec = 3 };
    CALL(comm_barrier(world, &call_err));
    if (me == 1) nanosleep(&d, NULL);
    const double start = clock_s();
    const status st = comm_all_reduce(world, NULL, x, 8, &e);
    const double took = clock_s() - start;
    if (me != 1) {
        say(st == E_DEVICE && took >= 1 && took < 2 && strstr(e.text, "no answer within 1.") != NULL, "late: rank %u: %s", me, e.text);
        const status again = comm_all_reduce(world, NULL, x, 8, &e);
        say(again == E_DEVICE && strstr(e.text, "broke before") != NULL, "late: rank %u again: %s", me, e.text);
    }
    nanosleep(&d, NULL);
    comm_exit(world, 0);
}

/* ---- bench ---------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct placed { uint32_t n_threads; struct threads_cpus allowed, pinned; };

static void where_job(void *arg, int thread, int n)
{
    struct threads_cpus *at = arg;
    (void)n;
    at[thread] = threads_allowed();
}

/* No CPU has pinned threads of two ranks, and there are no more threads than CPUs, or than ranks. */
static int cpus(void)
{
    struct placed mine = { .allowed = threads_allowed() }, *all = calloc(np, sizeof *all);
    size_t *bytes = calloc(np, sizeof *bytes);
    struct threads_cpus at[THREADS_MAX], any = { 0 };
    struct threads *t;
    uint32_t sum = 0;
    CALL(threads_create(0, &t, &call_err));
    threads_run(t, where_job, at);
    mine.n_threads = (uint32_t)threads_count(t);
    for (uint32_t i = 1; i < mine.n_threads; i++) {
        CHECK(threads_cpus_count(&at[i]) == 1);
        for (int w = 0; w < THREADS_CPUS / 64; w++) mine.pinned.set[w] |= at[i].set[w];
    }
    CHECK(mine.n_threads >= 1 && threads_cpus_count(&mine.pinned) == mine.n_threads - 1);
    threads_destroy(&t);
    for (uint32_t r = 0; r < np; r++) bytes[r] = sizeof mine;
    CALL(comm_all_gather(world, NULL, &mine, all, bytes, &call_err));
    for (uint32_t r = 0; r < np; r++) {
        sum += all[r].n_threads;
        for (int w = 0; w < THREADS_CPUS / 64; w++) {
            any.set[w] |= all[r].allowed.set[w];
            for (uint32_t k = 0; k < r; k++) CHECK((all[k].pinned.set[w] & all[r].pinned.set[w]) == 0);
        }
    }
    const uint32_t n_cpus = threads_cpus_count(&any);
    CHECK(sum <= (n_cpus > np ? n_cpus : np));
    part("ranks have CPUs of their own");
    if (me == 0) printf("# %u ranks start %u threads on %u CPUs\n", np, sum, n_cpus);
    free(all);
    free(bytes);
    comm_close(&world);
    return 0;
}

/* The manner of the OSU micro-benchmarks: back to back in batches after a barrier, mean over the ranks; median of the
 * batches. MPI's own through its C symbols, which the plugin has brought in. */
static int bench(void)
{
    enum { MOST = 16 << 20, BATCHES = 11 };
    float *x = calloc(MOST / 4, 4), *y = calloc(MOST / 4, 4);
    int (*all_reduce)(const void *, void *, int, void *, void *, void *) = NULL;
    void *type = dlsym(RTLD_DEFAULT, "ompi_mpi_float"), *op = dlsym(RTLD_DEFAULT, "ompi_mpi_op_sum");
    void *mpi_world = dlsym(RTLD_DEFAULT, "ompi_mpi_comm_world");
    *(void **)&all_reduce = dlsym(RTLD_DEFAULT, "MPI_Allreduce");
    if (me == 0) printf("# %u ranks, %s; us a call (median of %d batches), GB/s of one rank's tensor\n", np, comm_name(world), BATCHES);
    if (me == 0) printf("%10s %12s %12s %8s %10s\n", "bytes", "ours us", "MPI us", "ratio", "ours GB/s");
    for (size_t bytes = 4; bytes <= MOST; bytes *= bytes < 1024 ? 16 : 4) {
        double v[2][BATCHES] = { { 0 } };
        const int in = bytes <= 65536 ? 200 : bytes <= 1 << 20 ? 30 : 5;
        for (int b = 0; b < BATCHES; b++)
            for (int which = 0; which < 2; which++) {
                CALL(comm_barrier(world, &call_err));
                const double start = clock_s();
                for (int i = 0; i < in; i++) {
                    if (which == 0) CALL(comm_all_reduce(world, NULL, x, bytes / 4, &call_err));
                    else if (all_reduce && type && op && mpi_world) all_reduce(x, y, (int)(bytes / 4), type, op, mpi_world);
                }
                float mean = (float)((clock_s() - start) / in / np);
                CALL(comm_all_reduce(world, NULL, &mean, 1, &call_err));
                v[which][b] = mean;
            }
        for (int which = 0; which < 2; which++) qsort(v[which], BATCHES, sizeof **v, by_value);
        const double a = v[0][BATCHES / 2], m = v[1][BATCHES / 2];
        if (me == 0) printf("%10zu %12.2f %12.2f %8.2f %10.2f\n", bytes, a * 1e6, m * 1e6, m / a, (double)bytes / a / 1e9);
    }
    if (n_bad) printf("not ok - %s\n", first_bad);
    comm_close(&world);
    return 0;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "calls", *rank = getenv("OMPI_COMM_WORLD_RANK");
    struct err e = { 0 };
    const bool builds = strcmp(mode, "builds") == 0;
    const double patience = strcmp(mode, "late") == 0 ? 1 : strcmp(mode, "device-late") == 0 ? LATE : 60;
    const struct comm_options o = { .beat_s = BEAT, .silence_s = SILENCE, .timeout_s = patience,
                                    .build = builds && rank != NULL && atoi(rank) == 1 ? "b2" : "b1" };
    const char *s = getenv("SEED");
    seed = s ? strtoull(s, NULL, 10) : (uint64_t)getppid() * 1000 + (uint64_t)(clock_s() / 3600);
    const status st = comm_world_open(&o, &world, &e);
    if (builds) {
        np = 0;
        say(st == E_MODEL && strstr(e.text, "rank 1 (pid ") && strstr(e.text, "\"b2\"") && strstr(e.text, "\"b1\""), "mixed builds: %s",
            e.text);
        return 0;
    }
    if (st != OK) {
        say(false, "comm_world_open: %s", e.text);
        return 1;
    }
    me = comm_rank(world);
    np = comm_size(world);
    CALL(comm_broadcast(world, NULL, 0, &seed, sizeof seed, &call_err));
    how = argc > 2 ? argv[2] : "";
    if (strcmp(mode, "calls") == 0) {
        if (me == 0) printf("# SEED=%llu\n", (unsigned long long)seed);
        return calls();
    }
    if (strcmp(mode, "death") == 0 && argc > 4) return death(argv[3], (uint32_t)atoi(argv[4]));
    if (strcmp(mode, "groups") == 0) return group_death();
    if (strcmp(mode, "late") == 0) return late();
    if (strcmp(mode, "link") == 0 && argc > 2) return link_cut(argv[2]);
    if (strcmp(mode, "bench") == 0) return bench();
    if (strcmp(mode, "cpus") == 0) return cpus();
    if (strcmp(mode, "device") == 0) return device();
    if (strcmp(mode, "device-death") == 0 && argc > 3) return device_death((uint32_t)atoi(argv[3]));
    if (strcmp(mode, "device-late") == 0) return device_trouble(true);
    if (strcmp(mode, "device-fails") == 0) return device_trouble(false);
    fprintf(stderr, "ranks: no mode %s\n", mode);
    comm_exit(world, 2);
}
