/* base/threads.c - see threads.h. A generation counter starts a job; workers enter it through a gate, which knows the
 * job's generation, how many are inside, and whether it is closed. Nobody is inside while a job is exchanged. */
#include "base/threads.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

#define SPIN_US 200
#define GATE_CLOSED 0x80000000u

struct threads {
    int n;
    threads_job job;
    void *arg;
    int quit;
    /* Each counter on its own cache line: workers poll `seq`, the caller polls `left`. */
    uint32_t seq __attribute__((aligned(64)));
    uint64_t gate __attribute__((aligned(64)));   /* generation << 32 | GATE_CLOSED | workers inside */
    uint32_t left __attribute__((aligned(64)));   /* grows when a worker leaves                      */
    uint32_t done;                                /* workers that have left this generation          */
    uint32_t sleepers __attribute__((aligned(64)));
    uint32_t caller_sleeps;
    pthread_t *handle;
    struct worker *worker;
};

struct worker {
    struct threads *t;
    int index, cpu;
};

static void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void futex_wait(uint32_t *a, uint32_t v) { syscall(SYS_futex, a, FUTEX_WAIT_PRIVATE, v, NULL, NULL, 0); }
static void futex_wake(uint32_t *a) { syscall(SYS_futex, a, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }

/* Poll until *a != old; after SPIN_US mark `flag` and sleep. */
static void wait_change(uint32_t *a, uint32_t old, uint32_t *flag)
{
    uint64_t start = 0;
    for (uint32_t i = 1; __atomic_load_n(a, __ATOMIC_ACQUIRE) == old; i++) {
        cpu_pause();
        if (i % 256 != 0) continue;
        const uint64_t now = clock_us();
        if (start == 0) start = now;
        if (now - start < SPIN_US) continue;
        __atomic_add_fetch(flag, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(a, __ATOMIC_SEQ_CST) == old) futex_wait(a, old);
        __atomic_sub_fetch(flag, 1, __ATOMIC_SEQ_CST);
    }
}

static void pin_to(int cpu)
{
    if (cpu < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);   /* a refusal costs speed only */
}

/* Into the job of generation `seq`, unless it is over. */
static bool enter(struct threads *t, uint32_t seq)
{
    uint64_t gate = __atomic_load_n(&t->gate, __ATOMIC_ACQUIRE);
    do {
        if ((uint32_t)(gate >> 32) != seq || (gate & GATE_CLOSED) != 0) return false;
    } while (!__atomic_compare_exchange_n(&t->gate, &gate, gate + 1, true, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return true;
}

static void leave(struct threads *t)
{
    __atomic_add_fetch(&t->done, 1, __ATOMIC_RELAXED);
    __atomic_sub_fetch(&t->gate, 1, __ATOMIC_ACQ_REL);
    __atomic_add_fetch(&t->left, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&t->caller_sleeps, __ATOMIC_SEQ_CST)) futex_wake(&t->left);
}

static void *worker_main(void *p)
{
    const struct worker *w = p;
    struct threads *t = w->t;
    uint32_t seen = 0;
    pin_to(w->cpu);
    for (;;) {
        wait_change(&t->seq, seen, &t->sleepers);
        seen = __atomic_load_n(&t->seq, __ATOMIC_ACQUIRE);
        if (__atomic_load_n(&t->quit, __ATOMIC_ACQUIRE)) return NULL;
        if (!enter(t, seen)) continue;
        t->job(t->arg, w->index, t->n);
        leave(t);
    }
}

/* ---- which CPUs --------------------------------------------------------------------------------------------- */

static struct threads_cpus own_cpus;
static uint32_t n_sharing;             /* 0: nobody else is known of */

static bool has(const struct threads_cpus *c, uint32_t cpu) { return c->set[cpu / 64] >> (cpu % 64) & 1; }
static void add(struct threads_cpus *c, uint32_t cpu) { c->set[cpu / 64] |= (uint64_t)1 << (cpu % 64); }

struct threads_cpus threads_allowed(void)
{
    struct threads_cpus out = { 0 };
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (uint32_t i = 0; i < THREADS_CPUS && i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &set)) add(&out, i);
    return out;
}

uint32_t threads_cpus_count(const struct threads_cpus *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < THREADS_CPUS; i++) n += has(c, i);
    return n;
}

struct threads_cpus threads_part(const struct threads_cpus *allowed, uint32_t n, uint32_t me)
{
    struct threads_cpus out = { 0 };
    uint16_t kind[THREADS_CPUS] = { 0 }, n_of[THREADS_CPUS] = { 0 }, at[THREADS_CPUS];
    /* CPUs are of one kind that the same processes may have: kinds are split by one process after the other. */
    for (uint32_t i = 0; i < n; i++) {
        uint16_t to[THREADS_CPUS][2] = { { 0 } }, n_kinds = 0;     /* number + 1 */
        for (uint32_t c = 0; c < THREADS_CPUS; c++) {
            uint16_t *k = &to[kind[c]][has(&allowed[i], c)];
            if (*k == 0) *k = ++n_kinds;
            kind[c] = *k - 1;
        }
    }
    for (uint32_t c = 0; c < THREADS_CPUS; c++) at[c] = n_of[kind[c]]++;
    for (uint32_t c = 0; c < THREADS_CPUS; c++) {
        uint32_t sharers = 0, mine = 0;
        if (!has(&allowed[me], c)) continue;
        for (uint32_t i = 0; i < n; i++) {
            sharers += has(&allowed[i], c);
            mine += i < me && has(&allowed[i], c);
        }
        const uint32_t all = n_of[kind[c]];
        if (at[c] >= mine * all / sharers && at[c] < (mine + 1) * all / sharers) add(&out, c);
    }
    return out;
}

void threads_own(const struct threads_cpus *own, uint32_t n)
{
    n_sharing = own ? n : 0;
    if (own) own_cpus = *own;
}

/* CPUs that the cgroup's quota is worth, or INT_MAX where there is none. */
static int cgroup_cpus(void)
{
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f == NULL) return INT_MAX;
    long quota = 0, period = 0;
    const int got = fscanf(f, "%ld %ld", &quota, &period);
    fclose(f);
    if (got != 2 || quota <= 0 || period <= 0) return INT_MAX;
    return (int)((quota + period - 1) / period);
}

status threads_create(int n, struct threads **out, struct err *e)
{
    const struct threads_cpus cpus = n_sharing ? own_cpus : threads_allowed();
    int n_cpus = 0, cpu_of[THREADS_CPUS];
    for (uint32_t c = 0; c < THREADS_CPUS; c++)
        if (has(&cpus, c)) cpu_of[n_cpus++] = (int)c;
    if (n < 0 || n > THREADS_MAX)
        return err_set(e, E_ARG, "%d threads asked for: give 1 to %d, or 0 for one per CPU", n, THREADS_MAX);
    if (n == 0) {
        n = n_cpus > 0 ? n_cpus : 1;
        const int quota = cgroup_cpus(), part = n_sharing && quota != INT_MAX ? quota / (int)n_sharing : quota;
        if (n > part) n = part > 0 ? part : 1;
        if (n > THREADS_MAX) n = THREADS_MAX;
    }
    /* The caller's own CPU is left to the caller. */
    int own = 0;
    for (int i = 0; i < n_cpus; i++)
        if (cpu_of[i] == sched_getcpu()) own = i;
    struct threads *t;
    TRY(mem_alloc_aligned(&t, sizeof *t, e));
    *t = (struct threads){ .n = 1 };
    t->handle = mem_must((size_t)n, sizeof *t->handle);
    t->worker = mem_must((size_t)n, sizeof *t->worker);
    for (int i = 1; i < n; i++) {
        /* Pin only where every thread can have a CPU of its own, else let the kernel balance. */
        t->worker[i] = (struct worker){ t, i, n <= n_cpus ? cpu_of[(own + i) % n_cpus] : -1 };
        if (pthread_create(&t->handle[i], NULL, worker_main, &t->worker[i]) != 0) {
            threads_destroy(&t);
            return err_set(e, E_NOMEM, "cannot start thread %d of %d: ask for fewer with --threads", i + 1, n);
        }
        t->n = i + 1;
    }
    *out = t;
    return OK;
}

void threads_destroy(struct threads **pt)
{
    struct threads *t = *pt;
    if (t == NULL) return;
    __atomic_store_n(&t->quit, 1, __ATOMIC_RELEASE);
    __atomic_add_fetch(&t->seq, 1, __ATOMIC_SEQ_CST);
    futex_wake(&t->seq);
    for (int i = 1; i < t->n; i++) pthread_join(t->handle[i], NULL);
    free(t->handle);
    free(t->worker);
    free(t);
    *pt = NULL;
}

int threads_count(const struct threads *t) { return t->n; }

/* Publish the job; workers come as they see it. */
static void start(struct threads *t, threads_job job, void *arg)
{
    t->job = job;
    t->arg = arg;
    __atomic_store_n(&t->done, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&t->gate, (uint64_t)(t->seq + 1) << 32, __ATOMIC_RELEASE);
    __atomic_add_fetch(&t->seq, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&t->sleepers, __ATOMIC_SEQ_CST)) futex_wake(&t->seq);
}

/* Close the gate and wait until nobody is inside. */
static void finish(struct threads *t)
{
    uint32_t left = __atomic_load_n(&t->left, __ATOMIC_ACQUIRE);
    uint64_t gate = __atomic_or_fetch(&t->gate, GATE_CLOSED, __ATOMIC_ACQ_REL);
    while ((gate & ~(uint64_t)GATE_CLOSED & UINT32_MAX) != 0) {
        wait_change(&t->left, left, &t->caller_sleeps);
        left = __atomic_load_n(&t->left, __ATOMIC_ACQUIRE);
        gate = __atomic_load_n(&t->gate, __ATOMIC_ACQUIRE);
    }
}

void threads_run(struct threads *t, threads_job job, void *arg)
{
    if (t->n == 1) {
        job(arg, 0, 1);
        return;
    }
    start(t, job, arg);
    job(arg, 0, t->n);
    for (;;) {
        const uint32_t left = __atomic_load_n(&t->left, __ATOMIC_ACQUIRE);
        if (__atomic_load_n(&t->done, __ATOMIC_ACQUIRE) == (uint32_t)t->n - 1) break;
        wait_change(&t->left, left, &t->caller_sleeps);
    }
    finish(t);
}

void threads_share(struct threads *t, threads_job job, void *arg)
{
    if (t->n == 1) {
        job(arg, 0, 1);
        return;
    }
    start(t, job, arg);
    job(arg, 0, t->n);
    finish(t);
}
