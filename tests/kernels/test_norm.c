/* tests/kernels/test_norm.c - what makes operands: norms, pack and im2col of every instruction set.
 * Method: random rows against references in double, read back through a product with the identity. */
#include "tests/kernels/twin.h"

/* Operands of bf16 are rounded where the machine multiplies bf16. */
static bool rounds(const char *isa, enum dtype compute)
{
    return compute == DT_BF16 && strcmp(isa, "avx512-bf16") == 0;
}

static void check_norm(struct stream *st, const char *isa, uint32_t rows, uint32_t d, uint32_t group,
                       bool layer, bool by_row, enum dtype compute)
{
    const uint32_t x_rows = by_row ? rows + 5 : rows * group, k = d * group;
    float *x = twin_random_floats((size_t)x_rows * d), *w = twin_random_floats(d), *b = twin_random_floats(d);
    uint32_t *row = calloc(rows + 1, sizeof *row);
    for (uint32_t i = 0; i < rows; i++) row[i] = twin_below(x_rows);
    double *want = calloc((size_t)rows * k + 1, sizeof *want);
    for (uint32_t i = 0; i < rows * group; i++) {
        const float *v = x + (size_t)(by_row ? row[i] : i) * d;
        double mean = 0.0, square = 0.0;
        for (uint32_t j = 0; j < d && layer; j++) mean += (double)v[j] / d;
        for (uint32_t j = 0; j < d; j++) square += (v[j] - mean) * (v[j] - mean) / d;
        for (uint32_t j = 0; j < d; j++)
            want[(size_t)i * d + j] = (v[j] - mean) / sqrt(square + 1e-6) * w[j] + (layer ? b[j] : 0.0);
    }
    struct operand out = twin_operand(st, rows, k, compute);
    const struct norm_args a = { x, by_row ? row : NULL, rows, d, group, w, layer ? b : NULL, 1e-6f, &out };
    TWIN_OK(st->ops->norm(st, &a, e));
    float *got = twin_unpack(st, &out);
    char what[128];
    snprintf(what, sizeof what, "%s norm rows %u d %u group %u layer %d compute %d", isa, rows, d, group,
             layer, (int)compute);
    const double tol = layer && d < 16 ? 1e-4 : 1e-6;         /* few values may lie close to their mean */
    twin_near(got, want, (size_t)rows * k, rounds(isa, compute) ? 0.004 : tol, what);
    free(x), free(w), free(b), free(row), free(want), free(out.data), free(got);
}

static void norm_body(struct stream *st, const char *isa)
{
    static const uint32_t rows[] = { 0, 1, 2, 5, 11, 12, 13, 25, 128 };
    static const uint32_t d[] = { 1, 2, 15, 31, 32, 57, 96, 131 };
    for (uint32_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (uint32_t j = 0; j < sizeof d / sizeof d[0]; j++)
            for (uint32_t v = 0; v < 8; v++)
                check_norm(st, isa, rows[i], d[j], 1, v & 1, v & 2, v & 4 ? DT_BF16 : DT_F32);
    for (uint32_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        check_norm(st, isa, rows[i], 38, 4, true, false, DT_BF16);
    check_norm(st, isa, 9, 64, 4, false, false, DT_F32);
    check_norm(st, isa, 300, 896, 1, false, false, DT_BF16);
}

/* RMSNorm and LayerNorm, rows in order, picked or side by side, agree with double. */
static void test_norm(void **state)
{
    (void)state;
    twin_seed("norm");
    twin_each(2, norm_body);
}

static void pack_body(struct stream *st, const char *isa)
{
    static const uint32_t rows[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 25, 128 };
    static const uint32_t ks[] = { 1, 2, 31, 32, 33, 57, 64, 131 };
    for (uint32_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (uint32_t j = 0; j < 2 * sizeof ks / sizeof ks[0]; j++) {
            const uint32_t n = rows[i], k = ks[j / 2], ldx = k + j % 3;
            const enum dtype compute = j % 2 ? DT_BF16 : DT_F32;
            float *x = twin_random_floats((size_t)n * ldx);
            struct operand out = twin_operand(st, n, k, compute);
            const struct pack_args a = { x, ldx, n, k, &out };
            TWIN_OK(st->ops->pack(st, &a, e));
            float *got = twin_unpack(st, &out);
            for (uint32_t r = 0; r < n; r++)
                for (uint32_t c = 0; c < k; c++) {
                    const float v = x[(size_t)r * ldx + c],
                                want = rounds(isa, compute) ? twin_round_bf16(v) : v;
                    if (got[(size_t)r * k + c] != want)
                        fail_msg("%s rows %u k %u: (%u, %u) is %.9g, not %.9g", isa, n, k, r, c,
                                 (double)got[(size_t)r * k + c], (double)want);
                }
            free(x), free(out.data), free(got);
        }
}

/* Packed values come back exactly, rounded to nearest even where the operand is bf16. */
static void test_pack(void **state)
{
    (void)state;
    twin_seed("pack");
    twin_each(2, pack_body);
}

static void im2col_body(struct stream *st, const char *isa)
{
    static const uint32_t lens[][4] = {
        { 1, 1, 1, 1 }, { 7, 2, 1, 30 }, { 12, 13, 25, 6 }, { 200, 3, 77, 1 }
    };
    for (uint32_t v = 0; v < 32; v++) {
        const uint32_t *len = lens[v % 4], stride = v / 4 % 2 + 1, channels = v / 8 % 2 ? 37 : 64;
        const bool channel_major = v / 16;
        uint32_t times = 0, rows = 0;
        for (uint32_t c = 0; c < 4; c++) times += len[c], rows += (len[c] - 1) / stride + 1;
        const size_t st_t = channel_major ? 1 : channels, st_c = channel_major ? times : 1;
        float *x = twin_random_floats((size_t)times * channels);
        struct operand out = twin_operand(st, rows, 3 * channels, v % 3 ? DT_F32 : DT_BF16);
        const struct im2col_args a = { x, st_t, st_c, channels, stride, 4, len, &out };
        TWIN_OK(st->ops->im2col(st, &a, e));
        float *got = twin_unpack(st, &out);
        for (uint32_t c = 0, t0 = 0, row = 0; c < 4; t0 += len[c++])
            for (uint32_t u = 0; u * stride < len[c]; u++, row++)
                for (uint32_t i = 0; i < 3 * channels; i++) {
                    const int64_t t = (int64_t)u * stride + i % 3 - 1;
                    float want = t < 0 || t >= len[c] ? 0.0f : x[(t0 + (size_t)t) * st_t + i / 3 * st_c];
                    if (rounds(isa, out.compute)) want = twin_round_bf16(want);
                    if (got[(size_t)row * 3 * channels + i] != want)
                        fail_msg("%s case %u: row %u column %u", isa, v, row, i);
                }
        free(x), free(out.data), free(got);
    }
    const uint32_t bad[2] = { 3, 0 };
    struct operand out = { NULL, 3, 6, DT_F32 };
    const struct im2col_args a = { NULL, 1, 1, 2, 1, 2, bad, &out };
    struct err err;
    assert_int_equal(st->ops->im2col(st, &a, &err), E_ARG);
}

/* Rows of a convolution: every tap, zeros at the ends of each chunk, both strides and both orders of x. */
static void test_im2col(void **state)
{
    (void)state;
    twin_seed("im2col");
    twin_each(2, im2col_body);
}

/* A row's norm has the same bits alone, in any batch and with any number of threads. */
static void test_same_bits(void **state)
{
    (void)state;
    enum { ROWS = 50, D = 131 };
    twin_seed("same bits");
    float *x = twin_random_floats(ROWS * D), *w = twin_random_floats(D);
    for (const char *const *isa = cpu_isas(); *isa != NULL; isa++) {
        float *want = NULL;
        for (int threads = 1; threads <= 3; threads++) {
            struct stream *st = twin_open(*isa, threads);
            for (uint32_t batch = 1; batch <= ROWS; batch += batch < 14 ? 1 : 12)
                for (uint32_t at = 0; at < ROWS; at += batch) {
                    uint32_t row[ROWS];
                    const uint32_t n = at + batch <= ROWS ? batch : ROWS - at;
                    for (uint32_t i = 0; i < n; i++) row[i] = (at + i) * 7 % ROWS;
                    struct operand out = twin_operand(st, n, D, DT_F32);
                    const struct norm_args a = { x, row, n, D, 1, w, NULL, 1e-6f, &out };
                    TWIN_OK(st->ops->norm(st, &a, e));
                    float *got = twin_unpack(st, &out);
                    if (want == NULL) want = twin_floats(ROWS * D);
                    for (uint32_t i = 0; i < n; i++) {
                        if (threads == 1 && batch == 1) memcpy(want + row[i] * D, got, D * sizeof(float));
                        twin_same(got + i * D, want + row[i] * D, D, *isa);
                    }
                    free(out.data), free(got);
                }
            st->ops->close(&st);
        }
        free(want);
    }
    free(x), free(w);
}

static void refuse_body(struct stream *st, const char *isa)
{
    (void)isa;
    struct err err;
    struct operand out = { NULL, 4, 30, DT_F32 };
    const struct norm_args odd = { .rows = 4, .d = 15, .group = 2, .out = &out };
    assert_int_equal(st->ops->norm(st, &odd, &err), E_ARG);
    const struct norm_args other = { .rows = 4, .d = 16, .group = 2, .out = &out };
    assert_int_equal(st->ops->norm(st, &other, &err), E_ARG);
    const struct pack_args pack = { NULL, 31, 4, 31, &out };
    assert_int_equal(st->ops->pack(st, &pack, &err), E_ARG);
}

/* Operands of another shape are E_ARG. */
static void test_refuse(void **state)
{
    (void)state;
    twin_each(1, refuse_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),      cmocka_unit_test(test_pack),   cmocka_unit_test(test_im2col),
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_refuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
