/* Worker threads. Goal: threads_run runs a job once on every thread, threads_share ends only when all that came are done
 * and no piece is lost or done twice. Method: thousands of jobs of random length on more threads than CPUs, both kinds
 * mixed, whose arguments die with each call; pauses long enough for workers to fall asleep. CPUs that processes share out:
 * parts of masks drawn at random are disjoint, hold all CPUs and nobody's that it may not have, and are even where all may have
 * the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/threads.h"

enum { N = 7, PIECES = 64 };

struct job {
    uint32_t magic, next, n_pieces, spin;
    uint8_t piece[PIECES], thread[N];
    uint32_t inside;
};

static void work(uint32_t n)
{
    for (volatile uint32_t i = 0; i < n; i++) {}
}

static void count_job(void *arg, int thread, int n)
{
    struct job *j = arg;
    assert_int_equal(j->magic, 0x600dcafe);
    assert_int_equal(n, N);
    __atomic_add_fetch(&j->inside, 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&j->thread[thread], 1, __ATOMIC_SEQ_CST);
    for (uint32_t i; (i = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->n_pieces;) {
        work(j->spin);
        j->piece[i]++;
    }
    __atomic_sub_fetch(&j->inside, 1, __ATOMIC_SEQ_CST);
}

/* One job whose argument is overwritten the moment the call returns. */
static void one(struct threads *t, bool share, uint32_t n_pieces, uint32_t spin)
{
    struct job j = { .magic = 0x600dcafe, .n_pieces = n_pieces, .spin = spin };
    (share ? threads_share : threads_run)(t, count_job, &j);
    assert_int_equal(j.inside, 0);
    for (uint32_t i = 0; i < n_pieces; i++) assert_int_equal(j.piece[i], 1);
    assert_int_equal(j.thread[0], 1);
    for (int i = 1; i < N; i++) {
        if (share) assert_true(j.thread[i] <= 1);
        else assert_int_equal(j.thread[i], 1);
    }
    memset(&j, 0xee, sizeof j);
}

static void test_mixed(void **state)
{
    (void)state;
    struct threads *t;
    struct err e;
    uint32_t r = 12345;
    assert_int_equal(threads_create(N, &t, &e), OK);
    assert_int_equal(threads_count(t), N);
    for (int i = 0; i < 2000; i++) {
        r = r * 1664525u + 1013904223u;
        one(t, r >> 31, (r >> 8) % (PIECES + 1), (r >> 16) % 64 == 0 ? 20000 : (r >> 20) % 50);
        if (i % 500 == 499) usleep(2000);                  /* all workers sleep */
    }
    threads_destroy(&t);
    assert_null(t);
}

struct slow { uint32_t next, held; };
static void hold_job(void *arg, int thread, int n)
{
    (void)n;
    struct slow *s = arg;
    if (thread == 0) {
        while (__atomic_load_n(&s->held, __ATOMIC_ACQUIRE) == 0) usleep(100);   /* let one worker come */
        return;
    }
    __atomic_store_n(&s->held, 1, __ATOMIC_RELEASE);
    usleep(30000);
    __atomic_add_fetch(&s->next, 1, __ATOMIC_RELEASE);
}

/* The caller's own call ends at once, the worker's takes 30 ms: threads_share waits for it. */
static void test_waits_for_who_came(void **state)
{
    (void)state;
    struct threads *t;
    struct err e;
    assert_int_equal(threads_create(2, &t, &e), OK);
    for (int i = 0; i < 3; i++) {
        struct slow s = { 0 };
        threads_share(t, hold_job, &s);
        assert_int_equal(s.next, 1);
    }
    threads_destroy(&t);
}

static void alone_job(void *arg, int thread, int n)
{
    assert_int_equal(thread, 0);
    assert_int_equal(n, 1);
    ++*(int *)arg;
}

static void test_one_thread(void **state)
{
    (void)state;
    struct threads *t;
    struct err e;
    int calls = 0;
    assert_int_equal(threads_create(1, &t, &e), OK);
    threads_run(t, alone_job, &calls);
    threads_share(t, alone_job, &calls);
    assert_int_equal(calls, 2);
    threads_destroy(&t);
    assert_int_equal(threads_create(THREADS_MAX + 1, &t, &e), E_ARG);
}

static bool cpu_in(const struct threads_cpus *c, uint32_t i) { return c->set[i / 64] >> (i % 64) & 1; }
static void cpu_add(struct threads_cpus *c, uint32_t i) { c->set[i / 64] |= (uint64_t)1 << (i % 64); }

static void test_parts(void **state)
{
    (void)state;
    enum { MOST = 9 };
    uint32_t r = 99;
    for (int round = 0; round < 60; round++) {
        struct threads_cpus allowed[MOST] = { 0 }, part[MOST];
        const uint32_t n = 1 + (uint32_t)round % MOST;
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t c = 0; c < THREADS_CPUS; c++) {
                r = r * 1664525u + 1013904223u;
                if (r >> 31) cpu_add(&allowed[i], c);
            }
        for (uint32_t i = 0; i < n; i++) part[i] = threads_part(allowed, n, i);
        for (uint32_t c = 0; c < THREADS_CPUS; c++) {
            uint32_t may = 0, have = 0;
            for (uint32_t i = 0; i < n; i++) {
                may += cpu_in(&allowed[i], c);
                have += cpu_in(&part[i], c);
                assert_true(cpu_in(&allowed[i], c) || !cpu_in(&part[i], c));
            }
            assert_int_equal(have, may > 0);
        }
    }
}

/* Four processes on one host of 10 CPUs; two bound to each of two sockets; more of them than CPUs; a launcher that bound each. */
static void test_even_parts(void **state)
{
    (void)state;
    struct threads_cpus all[4] = { 0 }, part;
    static const uint32_t first[4] = { 2, 4, 7, 9 }, count[4] = { 2, 3, 2, 3 };
    for (int i = 0; i < 4; i++)
        for (uint32_t c = 2; c < 12; c++) cpu_add(&all[i], c);
    for (uint32_t i = 0; i < 4; i++) {
        part = threads_part(all, 4, i);
        assert_int_equal(threads_cpus_count(&part), count[i]);
        for (uint32_t c = first[i]; c < first[i] + count[i]; c++) assert_true(cpu_in(&part, c));
    }
    memset(all, 0, sizeof all);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t c = 0; c < 8; c++) cpu_add(&all[i], c + 8 * (i / 2));
    for (uint32_t i = 0; i < 4; i++) {
        part = threads_part(all, 4, i);
        for (uint32_t c = 0; c < 16; c++) assert_int_equal(cpu_in(&part, c), c / 4 == i);
    }
    memset(all, 0, sizeof all);
    uint32_t sum = 0;
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t c = 60; c < 63; c++) cpu_add(&all[i], c);
    for (uint32_t i = 0; i < 4; i++) {
        part = threads_part(all, 4, i);
        assert_true(threads_cpus_count(&part) <= 1);
        sum += threads_cpus_count(&part);
    }
    assert_int_equal(sum, 3);
    memset(all, 0, sizeof all);
    for (uint32_t i = 0; i < 4; i++) cpu_add(&all[i], 1000 + i);
    for (uint32_t i = 0; i < 4; i++) {
        part = threads_part(all, 4, i);
        assert_memory_equal(&part, &all[i], sizeof part);
    }
}

static void where_job(void *arg, int thread, int n)
{
    (void)n;
    ((struct threads_cpus *)arg)[thread] = threads_allowed();
}

/* A part is what counts, also one of no CPU: then there is one thread, and those that are asked for go where there is time. */
static void test_own(void **state)
{
    (void)state;
    const struct threads_cpus may = threads_allowed(), none = { 0 };
    struct threads_cpus mine = { 0 }, at[THREADS_MAX];
    struct threads *t;
    struct err e;
    uint32_t n = 0, most = threads_cpus_count(&may);
    for (uint32_t c = 0; c < THREADS_CPUS && n < (most + 1) / 2; c++)
        if (cpu_in(&may, c)) {
            cpu_add(&mine, c);
            n++;
        }
    threads_own(&mine, 1);
    assert_int_equal(threads_create(0, &t, &e), OK);
    assert_true(threads_count(t) >= 1 && (uint32_t)threads_count(t) <= n);
    threads_destroy(&t);
    assert_int_equal(threads_create((int)n, &t, &e), OK);
    threads_run(t, where_job, at);
    for (uint32_t i = 1; i < n; i++) {
        assert_int_equal(threads_cpus_count(&at[i]), 1);
        for (int w = 0; w < THREADS_CPUS / 64; w++) assert_int_equal(at[i].set[w] & ~mine.set[w], 0);
    }
    threads_destroy(&t);
    threads_own(&none, 5);
    assert_int_equal(threads_create(0, &t, &e), OK);
    assert_int_equal(threads_count(t), 1);
    threads_destroy(&t);
    assert_int_equal(threads_create(3, &t, &e), OK);
    threads_run(t, where_job, at);
    for (int i = 0; i < 3; i++) assert_memory_equal(&at[i], &may, sizeof may);
    threads_destroy(&t);
    threads_own(NULL, 0);
    assert_int_equal(threads_create(0, &t, &e), OK);
    assert_true((uint32_t)threads_count(t) <= most);
    threads_destroy(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_waits_for_who_came),
        cmocka_unit_test(test_one_thread),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_even_parts),
        cmocka_unit_test(test_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
