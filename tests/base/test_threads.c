/* Worker threads. Goal: threads_run runs a job once on every thread, threads_share ends only when all that came are done
 * and no piece is lost or done twice. Method: thousands of jobs of random length on more threads than CPUs, both kinds
 * mixed, whose arguments die with each call; pauses long enough for workers to fall asleep. */
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_waits_for_who_came),
        cmocka_unit_test(test_one_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
