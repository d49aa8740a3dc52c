/* kernels/cpu/loop.c - one loop shared by the threads: an atomic counter hands out pieces, so that a thread
 * whose CPU is busy with something else takes fewer, or none: it is not waited for. */
#include "kernels/cpu/cpu.h"

struct loop {
    cpu_body body;
    void *arg;
    uint32_t n, grain;
    uint32_t next __attribute__((aligned(64)));
};

static void loop_job(void *p, int thread, int n_threads)
{
    (void)n_threads;
    struct loop *l = p;
    const uint32_t n_pieces = (l->n + l->grain - 1) / l->grain;
    for (;;) {
        const uint32_t i = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
        if (i >= n_pieces) return;
        const uint32_t begin = i * l->grain;
        l->body(l->arg, thread, begin, l->n - begin < l->grain ? l->n : begin + l->grain);
    }
}

void cpu_for(const struct stream *st, uint32_t n, uint32_t grain, cpu_body body, void *arg)
{
    if (n == 0) return;
    struct threads *t = cpu_stream_of(st)->threads;
    if (n <= grain || threads_count(t) == 1) {
        for (uint32_t i = 0; i < n; i += grain) body(arg, 0, i, n - i < grain ? n : i + grain);
        return;
    }
    struct loop l = { .body = body, .arg = arg, .n = n, .grain = grain };
    threads_share(t, loop_job, &l);
}

static void shrinking_job(void *p, int thread, int n_threads)
{
    struct loop *l = p;
    uint32_t begin = __atomic_load_n(&l->next, __ATOMIC_RELAXED);
    while (begin < l->n) {
        uint32_t take = (l->n - begin) / (2 * (uint32_t)n_threads);
        take = take < 1 ? 1 : take > l->grain ? l->grain : take;
        if (!__atomic_compare_exchange_n(&l->next, &begin, begin + take, true, __ATOMIC_RELAXED,
                                         __ATOMIC_RELAXED))
            continue;                                        /* begin is now what another thread left */
        l->body(l->arg, thread, begin, begin + take);
        begin = __atomic_load_n(&l->next, __ATOMIC_RELAXED);
    }
}

void cpu_for_shrinking(const struct stream *st, uint32_t n, uint32_t most, cpu_body body, void *arg)
{
    struct loop l = { .body = body, .arg = arg, .n = n, .grain = most };
    threads_share(cpu_stream_of(st)->threads, shrinking_job, &l);
}
