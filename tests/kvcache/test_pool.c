/* Every page comes home. Method: random schedules of several requests (reserve, take, share, trim, forfeit, release,
 * refusals) against a second book kept here, with the invariants I1 to I4 checked after each call. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "kvcache/block_table.h"

#define LAYERS 5
#define REQUESTS 6
#define PAGE 16

static uint64_t rng_state;
static uint32_t rnd(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

static uint64_t seed_of_run(void)
{
    const char *s = getenv("SEED");
    return s ? strtoull(s, NULL, 10) : 20260514;
}

struct req { bool live; uint32_t rows_max; struct kv_reservation r; struct block_table t[LAYERS]; };

static void check_all(struct kv_pool *p, const struct req *q)
{
    uint32_t held = 0, promised = 0;
    kv_pool_check(p);
    uint8_t *seen = mem_must(kv_n_total(p), 1);
    for (int i = 0; i < REQUESTS; i++) {
        promised += q[i].r.n_pages;
        for (int l = 0; l < LAYERS && q[i].live; l++) {
            const struct block_table *t = &q[i].t[l];
            assert_int_equal(t->n_pages, kv_pages_of(p, t->n_rows));   /* I4 */
            assert_true(t->n_pages <= t->cap);
            for (uint32_t k = 0; k < t->n_pages; k++) {
                assert_true(t->page[k] < kv_n_total(p));
                assert_int_equal(seen[t->page[k]], 0);                 /* nobody shares in this test */
                seen[t->page[k]] = 1;
                held++;
            }
        }
    }
    free(seen);
    assert_int_equal(kv_n_free(p) + held, kv_n_total(p));              /* I1 */
    assert_int_equal(kv_n_reserved(p), promised);
    assert_true(kv_n_reserved(p) <= kv_n_free(p));                     /* I2 */
}

static void start(struct kv_pool *p, struct req *q)
{
    struct err e;
    const uint32_t rows = 1 + rnd(200), pages = LAYERS * kv_pages_of(p, rows);
    const uint32_t room = kv_n_free(p) - kv_n_reserved(p);
    const status st = kv_reserve(p, pages, &q->r, &e);
    assert_int_equal(st, pages <= room ? OK : E_FULL);
    if (st != OK) {
        char need[32], have[32];
        snprintf(need, sizeof need, "%u", pages);
        snprintf(have, sizeof have, "%u", room);
        assert_non_null(strstr(e.text, need));
        assert_non_null(strstr(e.text, have));
        assert_int_equal(q->r.n_pages, 0);
        return;
    }
    for (int l = 0; l < LAYERS; l++) assert_int_equal(block_table_init(&q->t[l], p, rows, &e), OK);
    q->live = true;
    q->rows_max = rows;
}

static void finish(struct kv_pool *p, struct req *q)
{
    for (int l = 0; l < LAYERS; l++) block_table_fini(&q->t[l], p);
    kv_forfeit_all(p, &q->r);
    *q = (struct req){ 0 };
}

static void test_random_schedules(void **state)
{
    (void)state;
    const uint64_t seed = seed_of_run();
    print_message("SEED=%llu repeats this\n", (unsigned long long)seed);
    rng_state = seed;
    for (int round = 0; round < 40; round++) {
        struct kv_pool *p;
        struct err e;
        struct req q[REQUESTS] = { 0 };
        assert_int_equal(kv_pool_create(20 + rnd(200), PAGE, &p, &e), OK);
        for (int step = 0; step < 300; step++) {
            struct req *r = &q[rnd(REQUESTS)];
            if (!r->live) {
                start(p, r);
            } else {
                struct block_table *t = &r->t[rnd(LAYERS)];
                switch (rnd(4)) {
                case 0:
                    if (t->n_rows < r->rows_max) {
                        const uint32_t grow = 1 + rnd(r->rows_max - t->n_rows);
                        const uint32_t need = kv_pages_of(p, t->n_rows + grow) - t->n_pages;
                        if (need <= r->r.n_pages) block_table_append(t, p, &r->r, grow);
                    }
                    break;
                case 1: block_table_trim(t, p, rnd(t->n_rows + 1)); break;
                case 2: kv_forfeit(p, &r->r, rnd(r->r.n_pages / 4 + 1)); break;
                default:
                    if (rnd(8) == 0) finish(p, r);
                }
            }
            check_all(p, q);
        }
        for (int i = 0; i < REQUESTS; i++) finish(p, &q[i]);
        assert_int_equal(kv_n_free(p), kv_n_total(p));
        assert_int_equal(kv_n_reserved(p), 0);
        kv_pool_destroy(&p);
    }
}

static void test_shared_pages(void **state)
{
    (void)state;
    struct kv_pool *p;
    struct err e;
    struct kv_reservation r = { 0 };
    assert_int_equal(kv_pool_create(4, PAGE, &p, &e), OK);
    assert_int_equal(kv_reserve(p, 2, &r, &e), OK);
    const uint32_t a = kv_take(p, &r);
    kv_share(p, a);
    kv_release(p, a);
    assert_int_equal(kv_n_free(p), 3);             /* one table still holds it */
    kv_release(p, a);
    assert_int_equal(kv_n_free(p), 4);
    assert_int_equal(kv_n_held_max(p), 1);
    assert_int_equal(kv_reserve(p, 4, &r, &e), E_FULL);
    assert_int_equal(r.n_pages, 1);                /* unchanged on failure */
    kv_forfeit_all(p, &r);
    kv_pool_destroy(&p);
}

static void test_bad_sizes(void **state)
{
    (void)state;
    struct kv_pool *p = NULL;
    struct err e;
    assert_int_equal(kv_pool_create(0, PAGE, &p, &e), E_ARG);
    assert_int_equal(kv_pool_create(8, 0, &p, &e), E_ARG);
    assert_null(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_random_schedules), cmocka_unit_test(test_shared_pages),
                                        cmocka_unit_test(test_bad_sizes) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
