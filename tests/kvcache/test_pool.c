/* tests/kvcache/test_pool.c - pages are never lost, never in two places unless shared, never promised twice.
 * Method: a second book kept here beside the pool, through random lives of several requests (reserve, take, share,
 * trim, forfeit, release, refusals); I1 to I4 after every call; and allocations that fail at every place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "kvcache/block_table.h"

#define N_REQUESTS 6
#define N_LAYERS   4

static uint64_t random_state;

static uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 32) * n >> 32);
}

static void seed(void)
{
    const char *s = getenv("SEED");
    random_state = (s ? strtoull(s, NULL, 10) : 1) * 0x9e3779b97f4a7c15u + 1;
    print_message("SEED=%s repeats this\n", s ? s : "1");
}

/* A request as the engine sees it: one promise, a table for each layer. */
struct life {
    bool admitted;
    struct kv_reservation promise;
    struct block_table table[N_LAYERS];
    uint32_t max_rows[N_LAYERS];
};

/* Every page's tables counted anew, every promise added up. */
static void check(const struct kv_pool *p, const struct life *r, uint32_t page_tokens)
{
    const uint32_t n = kv_n_total(p);
    uint32_t *count = mem_must(n, sizeof *count), held = 0, promised = 0;
    kv_pool_check(p);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        promised += r[i].promise.n_pages;
        for (uint32_t l = 0; l < N_LAYERS; l++) {
            const struct block_table *t = &r[i].table[l];
            assert_int_equal(t->n_pages, (t->n_rows + page_tokens - 1) / page_tokens); /* I4 */
            assert_true(t->n_pages <= t->cap);
            for (uint32_t j = 0; j < t->n_pages; j++) {
                assert_true(t->page[j] < n);
                count[t->page[j]]++;
                for (uint32_t k = 0; k < j; k++) assert_int_not_equal(t->page[j], t->page[k]);
            }
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        held += count[i] > 0;
        assert_int_equal(kv_count(p, i), count[i]); /* I3 */
    }
    assert_int_equal(kv_n_free(p) + held, n); /* I1 */
    assert_int_equal(kv_n_reserved(p), promised);
    assert_true(promised <= kv_n_free(p)); /* I2 */
    assert_true(kv_n_held_max(p) >= held);
    free(count);
}

static void finish(struct kv_pool *p, struct life *r)
{
    for (uint32_t l = 0; l < N_LAYERS; l++) block_table_fini(&r->table[l], p);
    kv_forfeit_all(p, &r->promise);
    r->admitted = false;
}

/* Admission with room for max_rows a layer. A refusal names both numbers and leaves everything as it was. */
static void admit(struct kv_pool *p, struct life *r)
{
    struct err e = { 0 };
    uint32_t pages = 0;
    const uint32_t room = kv_n_free(p) - kv_n_reserved(p);
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        r->max_rows[l] = below(60);
        pages += kv_pages_of(p, r->max_rows[l]);
    }
    const status st = kv_reserve(p, pages, &r->promise, &e);
    assert_int_equal(st, pages <= room ? OK : E_FULL);
    if (st != OK) {
        char need[32], have[32];
        snprintf(need, sizeof need, "%u pages", pages);
        snprintf(have, sizeof have, " %u of %u", room, kv_n_total(p));
        assert_non_null(strstr(e.text, need));
        assert_non_null(strstr(e.text, have));
        assert_int_equal(r->promise.n_pages, 0);
        return;
    }
    for (uint32_t l = 0; l < N_LAYERS; l++)
        assert_int_equal(block_table_init(&r->table[l], p, r->max_rows[l], &e), OK);
    r->admitted = true;
}

/* Grow, as far as the promise goes: pages that were trimmed or forfeited cannot be taken again. */
static void grow(struct kv_pool *p, struct life *r, uint32_t l)
{
    struct block_table *t = &r->table[l];
    const uint32_t n = below(r->max_rows[l] - t->n_rows + 1);
    const uint32_t promised = r->promise.n_pages, before = t->n_pages;
    if (kv_pages_of(p, t->n_rows + n) - t->n_pages > promised) return;
    block_table_append(t, p, &r->promise, n);
    assert_int_equal(promised - r->promise.n_pages, t->n_pages - before);
}

/* Another request's whole pages at the front of an empty table: what prefix sharing does. */
static void share(struct kv_pool *p, struct life *r, const struct life *from, uint32_t l,
                  uint32_t page_tokens)
{
    struct block_table *t = &r->table[l];
    const struct block_table *f = &from->table[l];
    if (t->n_pages > 0) return;
    while (t->n_pages < f->n_rows / page_tokens && (t->n_pages + 1) * page_tokens <= r->max_rows[l]) {
        kv_share(p, f->page[t->n_pages]);
        t->page[t->n_pages] = f->page[t->n_pages];
        t->n_pages++;
    }
    t->n_rows = t->n_pages * page_tokens;
}

/* One more promise to a request that holds some: all of it or none. */
static void reserve_more(struct kv_pool *p, struct life *r)
{
    struct err e;
    const uint32_t more = below(30), room = kv_n_free(p) - kv_n_reserved(p), had = r->promise.n_pages;
    const status st = kv_reserve(p, more, &r->promise, &e);
    assert_int_equal(st, more <= room ? OK : E_FULL);
    assert_int_equal(r->promise.n_pages, st == OK ? had + more : had);
}

/* One random call for request a; b is who may share. */
static void live(struct kv_pool *p, struct life *a, const struct life *b, uint32_t page_tokens)
{
    const uint32_t l = below(N_LAYERS), what = below(16);
    struct block_table *t = &a->table[l];
    if (!a->admitted)
        admit(p, a);
    else if (what < 7)
        grow(p, a, l);
    else if (what < 9)
        block_table_trim(t, p, below(t->n_rows + 1));
    else if (what < 11)
        kv_forfeit(p, &a->promise, below(a->promise.n_pages / 4 + 1));
    else if (what < 14 && b->admitted && a != b)
        share(p, a, b, l, page_tokens);
    else if (what < 15)
        reserve_more(p, a);
    else
        finish(p, a);
}

static void test_random_lives(void **state)
{
    (void)state;
    static const uint32_t sizes[] = { 1, 3, 16, 64 };
    uint32_t n_shared = 0;
    seed();
    for (uint32_t round = 0; round < 40; round++) {
        const uint32_t page_tokens = sizes[round % 4], n_pages = 1 + below(page_tokens < 4 ? 400 : 60);
        struct err e;
        struct kv_pool *p;
        struct life r[N_REQUESTS] = { 0 };
        assert_int_equal(kv_pool_create(n_pages, page_tokens, &p, &e), OK);
        for (uint32_t step = 0; step < 500; step++) {
            live(p, &r[below(N_REQUESTS)], &r[below(N_REQUESTS)], page_tokens);
            check(p, r, page_tokens);
            for (uint32_t i = 0; i < n_pages; i++) n_shared += kv_count(p, i) > 1;
        }
        for (uint32_t i = 0; i < N_REQUESTS; i++) {
            finish(p, &r[i]);
            check(p, r, page_tokens);
        }
        assert_int_equal(kv_n_free(p), n_pages);
        assert_int_equal(kv_n_reserved(p), 0);
        kv_pool_destroy(&p);
        assert_null(p);
    }
    assert_true(n_shared > 0); /* or the test would say nothing about I3 */
}

/* A page that two tables hold survives the first that lets go, and not the second. */
static void test_shared_page(void **state)
{
    (void)state;
    struct err e;
    struct kv_pool *p;
    struct kv_reservation r = { 0 };
    assert_int_equal(kv_pool_create(4, 16, &p, &e), OK);
    assert_int_equal(kv_reserve(p, 2, &r, &e), OK);
    const uint32_t page = kv_take(p, &r);
    kv_share(p, page);
    kv_release(p, page);
    assert_int_equal(kv_n_free(p), 3);
    kv_release(p, page);
    assert_int_equal(kv_n_free(p), 4);
    assert_int_equal(kv_n_held_max(p), 1);
    assert_int_equal(kv_reserve(p, 4, &r, &e), E_FULL);
    assert_int_equal(r.n_pages, 1); /* unchanged on failure */
    kv_forfeit_all(p, &r);
    kv_pool_destroy(&p);
}

static void test_sizes(void **state)
{
    (void)state;
    struct kv_pool *p = NULL;
    struct err e;
    struct block_table t = { 0 };
    assert_int_equal(kv_pool_create(0, 16, &p, &e), E_ARG);
    assert_int_equal(kv_pool_create(8, 0, &p, &e), E_ARG);
    assert_null(p);
    kv_pool_destroy(&p);
    assert_int_equal(kv_pool_create(1, UINT32_MAX, &p, &e), OK);
    assert_int_equal(kv_pages_of(p, 0), 0);
    assert_int_equal(kv_pages_of(p, UINT32_MAX), 1);
    block_table_fini(&t, p);
    kv_pool_destroy(&p);
}

/* Out of memory at every possible place: the right error, and not a page lost.
 * Method: fail the 1st allocation of an admission, then the 2nd, ... until none fails. */
static void test_out_of_memory(void **state)
{
    (void)state;
    int n = 0;
    for (bool failed = true; failed;) {
        struct err e = { 0 };
        struct kv_pool *p = NULL;
        struct life r = { 0 };
        mem_fail_after(++n);
        status st = kv_pool_create(50, 16, &p, &e);
        if (st == OK) st = kv_reserve(p, 3 * N_LAYERS, &r.promise, &e);
        for (uint32_t l = 0; l < N_LAYERS && st == OK; l++) st = block_table_init(&r.table[l], p, 40, &e);
        failed = mem_failed();
        mem_fail_after(0);
        assert_int_equal(st, failed ? E_NOMEM : OK);
        if (p == NULL) continue;
        for (uint32_t l = 0; l < N_LAYERS && st == OK; l++)
            block_table_append(&r.table[l], p, &r.promise, 40);
        assert_int_equal(kv_n_free(p), st == OK ? 50 - 3 * N_LAYERS : 50);
        finish(p, &r);
        assert_int_equal(kv_n_free(p), 50);
        assert_int_equal(kv_n_reserved(p), 0);
        kv_pool_destroy(&p);
    }
    assert_int_equal(n, 3 + N_LAYERS + 1); /* three of the pool, one a table, and the run without a failure */
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_random_lives),
                                        cmocka_unit_test(test_shared_page), cmocka_unit_test(test_sizes),
                                        cmocka_unit_test(test_out_of_memory) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
