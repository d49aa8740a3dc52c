/* Blocks out of a range: what is taken does not overlap, lies inside and aligned, everything comes home as one piece, and a block is
 * refused only where no gap is long enough. Method: random taking and giving beside a plain list of what is out, the range's own
 * check after every step. SEED=n is another order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/range.h"

/* Nothing is there: addresses are all that counts. */
#define BASE ((unsigned char *)(uintptr_t)0x700000000000)

static uint64_t seed;
static uint32_t below(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % n);
}

struct out { unsigned char *p; size_t n; };

static bool overlap(const struct out *a, const struct out *b) { return a->p < b->p + b->n && b->p < a->p + a->n; }

/* The longest stretch that no block of the list covers. */
static size_t longest_gap(const struct out *o, uint32_t n, size_t bytes)
{
    size_t best = 0;
    for (uint32_t i = 0; i <= n; i++) {
        unsigned char *from = i == n ? BASE : o[i].p + o[i].n, *to = BASE + bytes;
        for (uint32_t j = 0; j < n; j++)
            if (o[j].p >= from && o[j].p < to) to = o[j].p;
        if ((size_t)(to - from) > best) best = (size_t)(to - from);
    }
    return best;
}

static size_t random_size(size_t bytes, int taste)
{
    if (taste == 0) return below(2000);                           /* small and of every alignment */
    if (taste == 1) return (size_t)1 << below(21);
    return below((uint32_t)(bytes / (1 + below(8)))) + (below(50) == 0 ? bytes : 0);
}

static void test_random(void **state)
{
    (void)state;
    enum { MOST = 400, STEPS = 6000 };
    const char *given = getenv("SEED");
    struct out o[MOST];
    for (int taste = 0; taste < 3; taste++) {
        const size_t bytes = (taste == 0 ? 64 : 4096) * (size_t)1024 + 100;
        const size_t whole = bytes / RANGE_ALIGN * RANGE_ALIGN;
        struct range *r;
        uint32_t n = 0, refused = 0;
        size_t used = 0;
        seed = (given ? strtoull(given, NULL, 10) : 1) * 3 + (uint64_t)taste;
        assert_int_equal(range_create(BASE, bytes, &r, NULL), OK);
        for (int k = 0; k < STEPS; k++) {
            const bool grow = below(1000) < (uint32_t)(k / 500 % 2 ? 350 : 650);
            if (grow && n < MOST) {
                const size_t want = random_size(bytes, taste);
                struct out x = { range_take(r, want), range_bytes(want) };
                if (x.p == NULL) {
                    assert_true(x.n > longest_gap(o, n, whole));
                    refused++;
                } else {
                    assert_true((uintptr_t)x.p % RANGE_ALIGN == 0 && x.p >= BASE && x.p + x.n <= BASE + whole);
                    for (uint32_t i = 0; i < n; i++) assert_false(overlap(&x, &o[i]));
                    assert_int_equal(range_size(r, x.p), x.n);
                    o[n++] = x;
                    used += x.n;
                }
            } else if (n > 0) {
                const uint32_t i = below(n);
                assert_true(range_give(r, o[i].p));
                assert_false(range_give(r, o[i].p));
                used -= o[i].n;
                o[i] = o[--n];
            }
            range_check(r);
            const struct range_counts c = range_read(r);
            assert_int_equal(c.used, used);
            assert_int_equal(c.n_used, n);
            assert_int_equal(c.bytes, whole);
            if (k % 50 == 0) assert_int_equal(c.longest, longest_gap(o, n, whole));
        }
        assert_true(refused > 0);
        while (n > 0) assert_true(range_give(r, o[--n].p));
        range_check(r);
        assert_int_equal(range_read(r).longest, whole);
        assert_ptr_equal(range_take(r, whole), BASE);
        assert_null(range_take(r, 1));
        assert_int_equal(range_read(r).most, whole);
        range_destroy(&r);
        assert_null(r);
    }
}

/* What nests fits exactly, in any sizes: a block is not refused for how gaps are classed. */
static void test_exact(void **state)
{
    (void)state;
    for (seed = 1; seed < 40; seed++) {
        size_t size[12], sum = 0;
        void *p[12];
        struct range *r;
        for (int i = 0; i < 12; i++) sum += size[i] = range_bytes(below(100000));
        assert_int_equal(range_create(BASE, sum, &r, NULL), OK);
        for (int turn = 0; turn < 3; turn++) {
            for (int i = 0; i < 12; i++) assert_non_null(p[i] = range_take(r, size[i]));
            assert_null(range_take(r, 0));
            assert_int_equal(range_read(r).used, sum);
            for (int i = 12; i-- > 4;) assert_true(range_give(r, p[i]));
            for (int i = 4; i < 12; i++) assert_non_null(p[i] = range_take(r, size[i]));
            for (int i = 12; i-- > 0;) assert_true(range_give(r, p[i]));
        }
        range_destroy(&r);
    }
}

static void test_odd(void **state)
{
    (void)state;
    struct range *r;
    struct err e;
    assert_int_equal(range_create(BASE + 1, 1024, &r, &e), E_ARG);
    assert_int_equal(range_create(BASE, RANGE_ALIGN - 1, &r, &e), OK);        /* nothing is there */
    assert_null(range_take(r, 0));
    assert_false(range_give(r, BASE));
    range_check(r);
    range_destroy(&r);
    range_destroy(&r);
    assert_int_equal(range_create(BASE, 4096, &r, &e), OK);
    unsigned char *a = range_take(r, 0), *b = range_take(r, RANGE_ALIGN + 1);
    assert_true(a == BASE && b == BASE + RANGE_ALIGN);
    assert_int_equal(range_size(r, b), 2 * RANGE_ALIGN);
    assert_int_equal(range_size(r, b + RANGE_ALIGN), 0);
    assert_false(range_give(r, b + 1));
    assert_false(range_give(r, b + RANGE_ALIGN));
    assert_false(range_give(r, BASE + 4096));
    assert_true(range_has(r, BASE + 4095) && !range_has(r, BASE + 4096) && !range_has(r, BASE - 1));
    assert_null(range_take(r, 4096));
    assert_null(range_take(r, SIZE_MAX));
    assert_true(range_give(r, a) && range_give(r, b));
    assert_int_equal(range_read(r).n_gaps, 1);
    range_destroy(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_random), cmocka_unit_test(test_exact), cmocka_unit_test(test_odd) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
