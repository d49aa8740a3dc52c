/* tests/kernels/test_misc.c - rows moved and added: gather, scatter, positions, pairs; memory of a device.
 * Method: random rows against the plain loop, with 0, 1 and enough rows for several threads. */
#include "tests/kernels/twin.h"

static void rows_body(struct stream *st, const char *isa)
{
    static const uint32_t ns[] = { 0, 1, 2, 33, 700 };
    for (uint32_t v = 0; v < 2 * sizeof ns / sizeof ns[0]; v++) {
        const uint32_t n = ns[v / 2], d = v % 2 ? 37 : 256;
        float *x = twin_random_floats((size_t)(2 * n + 1) * d), *y = twin_floats((size_t)(n + 1) * d);
        uint32_t *row = calloc(n + 1, sizeof *row);
        for (uint32_t i = 0; i < n; i++) row[i] = twin_below(2 * n);
        const struct gather_args g = { x, row, n, d, y };
        TWIN_OK(st->ops->gather(st, &g, e));
        for (uint32_t i = 0; i < n; i++) twin_same(y + (size_t)i * d, x + (size_t)row[i] * d, d, isa);

        float *spread = twin_floats((size_t)(2 * n + 1) * d);
        for (uint32_t i = 0; i < n; i++) row[i] = 2 * (n - 1 - i) + 1;
        const struct scatter_args s = { y, row, n, d, spread };
        TWIN_OK(st->ops->scatter(st, &s, e));
        for (uint32_t i = 0; i < n; i++) {
            twin_same(spread + (size_t)row[i] * d, y + (size_t)i * d, d, isa);
            assert_true(isnan(spread[(size_t)(row[i] - 1) * d]));      /* the rows between are untouched */
        }
        const struct mean_pairs_args m = { x, n, d, y };
        TWIN_OK(st->ops->mean_pairs(st, &m, e));
        for (size_t i = 0; i < (size_t)n * d; i++) {
            const size_t at = i / d * 2 * d + i % d;
            assert_true(y[i] == (x[at] + x[at + d]) * 0.5f);
        }
        assert_true(isnan(y[(size_t)n * d]));
        free(x), free(y), free(row), free(spread);
    }
}

/* Rows land where they belong and nowhere else. */
static void test_rows(void **state)
{
    (void)state;
    twin_seed("rows");
    twin_each(2, rows_body);
}

static void add_rows_body(struct stream *st, const char *isa)
{
    (void)isa;
    static const uint32_t lens[][5] = {
        { 0, 0, 0, 0, 0 }, { 1, 0, 0, 5, 1 }, { 100, 3, 0, 250, 100 }, { 0, 0, 0, 0, 900 }
    };
    enum { D = 70, MOST = 900 };
    float *table = twin_random_floats(MOST * D);
    for (uint32_t v = 0; v < 4; v++) {
        uint32_t rows = 0;
        for (uint32_t c = 0; c < 5; c++) rows += lens[v][c];
        float *y0 = twin_random_floats((size_t)rows * D), *y = twin_floats((size_t)rows * D);
        memcpy(y, y0, (size_t)rows * D * sizeof *y);
        const struct add_rows_args a = { y, table, D, 5, lens[v] };
        TWIN_OK(st->ops->add_rows(st, &a, e));
        for (uint32_t c = 0, row = 0; c < 5; c++)
            for (uint32_t u = 0; u < lens[v][c]; u++, row++)
                for (uint32_t k = 0; k < D; k++)
                    assert_true(y[row * D + k] == y0[row * D + k] + table[u * D + k]);
        free(y0), free(y);
    }
    free(table);
}

/* The table starts again with each chunk, also after empty chunks. */
static void test_add_rows(void **state)
{
    (void)state;
    twin_seed("add_rows");
    twin_each(2, add_rows_body);
}

static void memory_body(struct stream *st, const char *isa)
{
    (void)isa;
    static const size_t sizes[] = { 0, 1, 100, (size_t)5 << 20 };
    for (uint32_t i = 0; i < 4; i++) {
        void *p = NULL;
        TWIN_OK(st->ops->alloc(st, sizes[i], &p, e));
        assert_int_equal((uintptr_t)p % 64, 0);
        unsigned char host[100], back[100] = { 0 };
        for (uint32_t j = 0; j < 100; j++) host[j] = (unsigned char)twin_random();
        const size_t n = sizes[i] < 100 ? sizes[i] : 100;
        TWIN_OK(st->ops->upload(st, p, host, n, e));
        TWIN_OK(st->ops->sync(st, e));
        TWIN_OK(st->ops->download(st, back, p, n, e));
        assert_memory_equal(host, back, n);
        st->ops->release(st, p);
    }
    st->ops->release(st, NULL);
    void *p = NULL;
    struct err err;
    assert_int_equal(st->ops->alloc(st, SIZE_MAX - 10, &p, &err), E_NOMEM);
}

/* Memory is aligned, keeps what it is given, and what cannot be had is E_NOMEM. */
static void test_memory(void **state)
{
    (void)state;
    twin_each(1, memory_body);
}

static void page_copy_body(struct stream *st, const char *isa)
{
    (void)isa;
    enum { PAGES = 40, BYTES = 96 };
    const struct kv_shape shape = { .page_bytes = BYTES, .base = twin_random_floats(PAGES * BYTES / sizeof(float)) };
    unsigned char was[PAGES][BYTES], (*now)[BYTES] = (unsigned char (*)[BYTES])shape.base;
    memcpy(was, now, sizeof was);
    uint32_t src[PAGES / 2], dst[PAGES / 2];
    for (uint32_t i = 0; i < PAGES / 2; i++) {
        src[i] = 2 * twin_below(PAGES / 2);            /* even pages are read, one perhaps twice; odd ones written */
        dst[i] = 2 * (PAGES / 2 - 1 - i) + 1;
    }
    for (uint32_t n = 0; n <= PAGES / 2; n += n < 2 ? 1 : 9) {
        memcpy(now, was, sizeof was);
        TWIN_OK(st->ops->page_copy(st, &(struct page_copy_args){ .shape = shape, .src = src, .dst = dst, .n = n }, e));
        for (uint32_t i = 0; i < PAGES; i++) {
            const unsigned char *want = was[i];
            for (uint32_t k = 0; k < n; k++)
                if (dst[k] == i) want = was[src[k]];
            assert_memory_equal(now[i], want, BYTES);
        }
    }
    free(shape.base);
}

/* A page becomes another's copy and no third one changes. */
static void test_page_copy(void **state)
{
    (void)state;
    twin_seed("page copy");
    twin_each(2, page_copy_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_add_rows),
        cmocka_unit_test(test_page_copy),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
