/* Who has what of a decoder. Goal: for shapes of published models and odd ones and every size up to 40, the slices of all
 * ranks together are the whole, in rank order, with nothing left out or held twice but the KV heads that ranks share; where a
 * model cannot be cut the text lists the sizes that it can. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "model/decoder.h"

static const struct decoder_shape SHAPES[] = {
    { .H = 28, .G = 4, .D = 128, .ff = 18944, .V = 152064 }, { .H = 16, .G = 2, .D = 128, .ff = 11008, .V = 151936 },
    { .H = 3, .G = 1, .D = 24, .ff = 61, .V = 406 },         { .H = 14, .G = 2, .D = 8, .ff = 96, .V = 557 },
    { .H = 6, .G = 3, .D = 16, .ff = 5, .V = 7 },            { .H = 1, .G = 1, .D = 16, .ff = 40, .V = 50 },
};

static bool possible(const struct decoder_shape *s, uint32_t n)
{
    return n <= s->ff && n <= s->V && (n <= s->G || (n % s->G == 0 && n / s->G <= s->H / s->G));
}

static void test_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        for (uint32_t n = 1; n <= 40; n++) {
            const struct decoder_shape *s = &SHAPES[i];
            struct decoder_slice a;
            struct err e;
            uint32_t head = 0, ff = 0, row = 0, kv = 0;
            for (uint32_t r = 0; r < n; r++) {
                const status st = decoder_slice_of(s, r, n, &a, &e);
                assert_int_equal(st, possible(s, n) ? OK : E_ARG);
                if (st != OK) break;
                assert_int_equal(a.rank, r);
                assert_int_equal(a.size, n);
                assert_int_equal(a.head0, head);
                assert_int_equal(a.ff0, ff);
                assert_int_equal(a.row0, row);
                assert_true(a.heads > 0 && a.kv_heads > 0 && a.ff > 0 && a.rows > 0);
                assert_int_equal(a.heads % a.kv_heads, 0);
                const uint32_t per = s->H / s->G;                /* its query heads read its KV heads, and no other */
                assert_true(a.head0 / per >= a.kv0 && (a.head0 + a.heads - 1) / per < a.kv0 + a.kv_heads);
                if (n <= s->G) assert_int_equal(a.heads, a.kv_heads * per);
                assert_int_equal(a.sharers, n > s->G ? n / s->G : 1);
                assert_int_equal(a.kv0, kv);
                if (n <= s->G || (r + 1) % a.sharers == 0) kv += a.kv_heads;
                head += a.heads, ff += a.ff, row += a.rows;
            }
            if (!possible(s, n)) continue;
            assert_true(head == s->H && ff == s->ff && row == s->V && kv == s->G);
        }
}

static void test_uneven(void **state)
{
    (void)state;
    struct decoder_slice a, b;
    struct err e;
    assert_int_equal(decoder_slice_of(&SHAPES[0], 0, 8, &a, &e), OK);      /* 7 heads over two ranks: 4 and 3 */
    assert_int_equal(decoder_slice_of(&SHAPES[0], 1, 8, &b, &e), OK);
    assert_true(a.heads == 4 && b.heads == 3 && a.kv0 == 0 && b.kv0 == 0 && b.head0 == 4);
    assert_int_equal(decoder_slice_of(&SHAPES[0], 0, 3, &a, &e), OK);      /* 4 KV heads over three: 1, 1, 2 */
    assert_int_equal(decoder_slice_of(&SHAPES[0], 2, 3, &b, &e), OK);
    assert_true(a.kv_heads == 1 && b.kv_heads == 2 && b.heads == 14);
}

static void test_refused(void **state)
{
    (void)state;
    struct decoder_slice a;
    struct err e;
    assert_int_equal(decoder_slice_of(&SHAPES[2], 0, 4, &a, &e), E_ARG);
    assert_non_null(strstr(e.text, "4 tensor-parallel ranks"));
    assert_non_null(strstr(e.text, "can be cut into 1, 2, 3"));
    assert_int_equal(decoder_slice_of(&SHAPES[0], 0, 6, &a, &e), E_ARG);
    assert_non_null(strstr(e.text, "1, 2, 3, 4, 8, 12, 16, 20, 24, 28"));
    assert_int_equal(decoder_slice_of(&SHAPES[0], 0, 0, &a, &e), E_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_whole), cmocka_unit_test(test_uneven), cmocka_unit_test(test_refused) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
