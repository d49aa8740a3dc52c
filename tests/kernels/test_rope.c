/* tests/kernels/test_rope.c - rotary positions, and K and V on their way into pages.
 * Method: rotation against double; rows written with rotation must act as rows rotated first and written
 * plainly, whether at once, in pieces or on several threads. */
#include "tests/kernels/paged.h"

static void angles(float *cs, float *sn, uint32_t rows, uint32_t half)
{
    for (uint32_t i = 0; i < rows * half; i++) {
        const double x = 40.0 * twin_float();
        cs[i] = (float)cos(x), sn[i] = (float)sin(x);
    }
}

static void rope_body(struct stream *st, const char *isa)
{
    static const struct {
        uint32_t n, heads, D;
    } cases[] = {
        { 0, 2, 16 }, { 1, 1, 2 }, { 7, 3, 20 }, { 33, 14, 64 }, { 100, 2, 128 }, { 65, 5, 24 }, { 3, 1, 80 },
    };
    for (uint32_t v = 0; v < 2 * sizeof cases / sizeof cases[0]; v++) {
        const uint32_t n = cases[v / 2].n, heads = cases[v / 2].heads, D = cases[v / 2].D, half = D / 2;
        const uint32_t ld = heads * D + 3, rows = v % 2 ? 50 : n;
        float *x = twin_random_floats((size_t)n * ld), *cs = twin_floats((size_t)rows * half),
              *sn = twin_floats((size_t)rows * half);
        uint32_t *row = calloc(n + 1, sizeof *row);
        double *want = calloc((size_t)n * ld + 1, sizeof *want);
        angles(cs, sn, rows, half);
        for (uint32_t i = 0; i < n; i++) {
            row[i] = v % 2 ? twin_below(rows) : i;
            for (uint32_t c = 0; c < ld; c++) {
                const uint32_t j = c % D % half;
                const double a = x[i * ld + c], C = cs[row[i] * half + j], S = sn[row[i] * half + j];
                if (c >= heads * D)
                    want[i * ld + c] = a;
                else if (c % D < half)
                    want[i * ld + c] = a * C - x[i * ld + c + half] * S;
                else
                    want[i * ld + c] = a * C + x[i * ld + c - half] * S;
            }
        }
        const struct rope_args a = {
            .x = x, .ldx = ld, .n = n, .heads = heads, .D = D, .cos = cs, .sin = sn, .row = v % 2 ? row : NULL
        };
        TWIN_OK(st->ops->rope(st, &a, e));
        twin_near(x, want, (size_t)n * ld, 3e-7, isa);
        free(x), free(cs), free(sn), free(row), free(want);
    }
}

/* Rotation against double. */
static void test_rope(void **state)
{
    (void)state;
    twin_seed("rope");
    twin_each(2, rope_body);
}

/* The bytes of the pages that hold n rows, page list in order. */
static void write_rows(struct stream *st, struct kv_shape *shape, const float *kv, uint32_t n,
                       const uint32_t *piece, const float *cs, const float *sn, const uint32_t *row)
{
    const size_t width = 2 * (size_t)shape->G * shape->D;
    uint32_t pages[64];
    for (uint32_t i = 0; i < 64; i++) pages[i] = i;
    const struct kv_view view = { pages, n };
    memset(shape->base, 0xff, (size_t)(n + 15) / 16 * shape->page_bytes);
    for (uint32_t i = 0, p = 0, m; i < n; i += m, p++) {
        m = piece[p] < n - i ? piece[p] : n - i;
        const struct kv_write_args a = { .kv = kv + i * width,
                                         .ldkv = width,
                                         .cos = cs,
                                         .sin = sn,
                                         .row = row != NULL ? row + i : NULL,
                                         .shape = *shape,
                                         .n_seqs = 1,
                                         .seq_start = (const uint32_t[]){ 0, m },
                                         .kv_start = &i,
                                         .view = &view };
        TWIN_OK(st->ops->kv_write(st, &a, e));
    }
}

static void write_body(struct stream *st, const char *isa)
{
    static const struct {
        uint32_t G, D;
    } shapes[] = { { 2, 64 }, { 1, 20 }, { 3, 128 }, { 1, 2 } };
    struct stream *single = twin_open(isa, 1);
    for (uint32_t v = 0; v < 8; v++) {
        const uint32_t G = shapes[v / 2].G, D = shapes[v / 2].D, n = 1 + twin_below(700), half = D / 2;
        const enum dtype dtype = v % 2 ? DT_BF16 : DT_F32;
        struct kv_shape shape = { G,   D, dtype, st->ops->page_tokens, st->ops->page_bytes(st, G, D, dtype),
                                  NULL };
        const size_t bytes = (size_t)(n + 15) / 16 * shape.page_bytes, width = 2 * (size_t)G * D;
        void *first = twin_alloc(bytes), *second = twin_alloc(bytes);
        float *kv = twin_random_floats(n * width), *cs = twin_floats((size_t)n * half),
              *sn = twin_floats((size_t)n * half);
        uint32_t *row = calloc(n, sizeof *row), all[1] = { n }, pieces[1024];
        angles(cs, sn, n, half);
        for (uint32_t i = 0; i < n; i++) row[i] = twin_below(n);
        for (uint32_t i = 0; i < 1024; i++) pieces[i] = 1 + twin_below(40);
        shape.base = first;
        write_rows(st, &shape, kv, n, all, cs, sn, row);
        for (size_t i = 0; i < bytes / dtype_size(dtype); i++) /* nothing of the old NaN is left */
            assert_false(dtype == DT_F32 ? isnan(((float *)first)[i])
                                         : isnan(bf16_to_f32(((bf16 *)first)[i])));
        shape.base = second;
        write_rows(single, &shape, kv, n, pieces, cs, sn, row);
        assert_memory_equal(first, second, bytes);
        const struct rope_args r = {
            .x = kv, .ldx = width, .n = n, .heads = G, .D = D, .cos = cs, .sin = sn, .row = row
        };
        TWIN_OK(st->ops->rope(st, &r, e));
        write_rows(st, &shape, kv, n, pieces, NULL, NULL, NULL);
        assert_memory_equal(first, second, bytes);
        free(first), free(second), free(kv), free(cs), free(sn), free(row);
    }
    single->ops->close(&single);
}

/* Pages do not depend on how rows came, and hold no garbage behind them. */
static void test_write(void **state)
{
    (void)state;
    twin_seed("write");
    twin_each(2, write_body);
}

static void compact_body(struct stream *st, const char *isa)
{
    (void)isa;
    for (uint32_t v = 0; v < 8; v++) {
        const uint32_t n_keys[3] = { 1 + twin_below(90), 16 * (1 + twin_below(4)), 1 + twin_below(300) };
        const uint32_t G = 1 + v % 3, D = v < 4 ? 64 : 20;
        struct paged was = paged_new(st, 3, n_keys, G, D, v % 2 ? DT_BF16 : DT_F32);
        const size_t width = 2 * (size_t)G * D, page = was.shape.page_bytes;
        uint32_t *row[3], n[3], zero[3] = { 0 };
        struct paged want = was;
        TWIN_OK(st->ops->alloc(st, was.n_pages * page, &want.shape.base, e));
        memset(want.shape.base, 0xff, was.n_pages * page);
        for (uint32_t s = 0; s < 3; s++) {
            row[s] = calloc(n_keys[s], sizeof *row[s]);
            n[s] = 0;
            for (uint32_t i = 0; i < n_keys[s]; i++)
                if (v == 0 || twin_below(3) > 0) row[s][n[s]++] = i;
            want.kv[s] = twin_floats((n_keys[s] + 1) * width);
            for (uint32_t i = 0; i < n[s]; i++)
                memcpy(want.kv[s] + i * width, was.kv[s] + row[s][i] * width, width * sizeof(float));
        }
        paged_write(st, &want, zero, n);       /* the rows that stay, written as if there had been no others */
        const struct kv_compact_args a = { .shape = was.shape, .n_views = 3, .view = was.view,
                                           .row = (const uint32_t *const *)row, .n = n };
        TWIN_OK(st->ops->kv_compact(st, &a, e));
        for (uint32_t s = 0; s < 3; s++) {
            for (uint32_t p = 0; p < (n[s] + 15) / 16; p++)
                assert_memory_equal((char *)was.shape.base + was.page[s][p] * page,
                                    (char *)want.shape.base + was.page[s][p] * page, page);
            free(want.kv[s]);
            free(row[s]);
        }
        st->ops->release(st, want.shape.base);
        paged_free(st, &was);
    }
}

/* Rows that move together leave pages as if the others had never been written. */
static void test_compact(void **state)
{
    (void)state;
    twin_seed("compact");
    twin_each(2, compact_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_rope), cmocka_unit_test(test_write),
                                        cmocka_unit_test(test_compact) };
    return cmocka_run_group_tests_name("rope", tests, NULL, NULL);
}
