/* tests/kernels/test_cuda_rows.c - kernels/cuda/rows.cu on the CPU (simt.h) against the CPU's ops.
 * Widths that vectors fit and that they do not, one row and many, lists in random order; outputs begin as NaN. */
#include "tests/kernels/cuda.h"

static const uint32_t widths[] = { 1, 7, 8, 33, 80, 256, 1000, 3584 };
#define EACH_WIDTH(w) for (uint32_t w = 0; w < sizeof widths / sizeof widths[0]; w++)

static struct stream *cpu;

static uint32_t *random_rows(uint32_t n, uint32_t of)
{
    uint32_t *row = twin_alloc(n * sizeof *row);
    for (uint32_t i = 0; i < n; i++) row[i] = twin_below(of);
    return row;
}

/* Distinct, in random order. */
static uint32_t *random_order(uint32_t n)
{
    uint32_t *row = twin_alloc(n * sizeof *row);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t j = twin_below(i + 1);
        row[i] = row[j];
        row[j] = i;
    }
    return row;
}

static void test_embed(void **state)
{
    (void)state;
    twin_seed("embed");
    EACH_WIDTH(w) {
        const uint32_t d = widths[w], V = 40, n = 1 + twin_below(9);
        const enum dtype dtype = twin_below(2) ? DT_BF16 : DT_F32;
        float *table = twin_random_floats((size_t)V * d), *y = twin_floats((size_t)n * d), *want = twin_floats((size_t)n * d);
        bf16 *half = cuda_bf16(table, (size_t)V * d);
        int32_t *id = twin_alloc(9 * sizeof *id);
        for (uint32_t i = 0; i < n; i++) id[i] = (int32_t)twin_below(V);
        const struct cuda_embed_args a = { dtype == DT_BF16 ? (void *)half : table, dtype, id, n, d, y };
        TWIN_OK(cuda_embed(NULL, &a, e));
        const struct weight_args wa = { .compute = dtype, .k = d, .n_parts = 1, .part = { { .data = table, .dtype = DT_F32, .n = V } } };
        struct weight *weight = NULL;
        TWIN_OK(cpu->ops->weight_create(cpu, &wa, &weight, e));
        const struct embed_args twin = { weight, id, n, want };
        TWIN_OK(cpu->ops->embed(cpu, &twin, e));
        twin_same(y, want, (size_t)n * d, "embed");
        cpu->ops->weight_destroy(cpu, &weight);
        free(table), free(half), free(y), free(want), free(id);
    }
}

static void test_norm(void **state)
{
    (void)state;
    twin_seed("norm");
    for (uint32_t v = 0; v < 4 * sizeof widths / sizeof widths[0]; v++) {
        const uint32_t d = widths[v / 4], of = 30, rows = v % 3 ? 1 + twin_below(20) : 1, group = d % 2 == 0 && twin_below(2) ? 2 : 1;
        const bool layer = v % 2, gathered = group == 1 && twin_below(2);
        const enum dtype dtype = v / 2 % 2 ? DT_BF16 : DT_F32;
        const size_t n = (size_t)rows * group * d;
        float *x = twin_random_floats((size_t)of * 2 * d), *weight = twin_random_floats(d), *b = twin_random_floats(d);
        uint32_t *row = random_rows(rows, of);
        for (size_t i = 0; i < d; i++) x[i] *= 1e-3f;
        void *out = twin_alloc(n * dtype_size(dtype));
        const struct cuda_norm_args a = { x, gathered ? row : NULL, rows, d, group, weight, layer ? b : NULL, 1e-6f, out, dtype };
        TWIN_OK(cuda_norm(NULL, &a, e));
        struct operand o = twin_operand(cpu, rows, group * d, dtype);
        const struct norm_args twin = { x, a.row, rows, d, group, weight, a.b, 1e-6f, &o };
        TWIN_OK(cpu->ops->norm(cpu, &twin, e));
        float *want = twin_unpack(cpu, &o), *got = cuda_read(out, n, dtype);
        cuda_near(got, want, n, dtype, d == 1 && layer ? 1e-2 : 4e-6, layer ? "LayerNorm" : "RMSNorm");
        free(x), free(weight), free(b), free(row), free(out), free(o.data), free(want), free(got);
    }
}

/* gelu(x + bias) and plain rows into operands, rows that lie apart. */
static void test_gelu_and_pack(void **state)
{
    (void)state;
    twin_seed("gelu and pack");
    EACH_WIDTH(w) {
        const uint32_t d = widths[w], rows = 1 + twin_below(7), ldx = d + twin_below(3) * 8;
        const enum dtype dtype = twin_below(2) ? DT_BF16 : DT_F32;
        const size_t n = (size_t)rows * d;
        float *x = twin_random_floats((size_t)rows * ldx), *bias = twin_random_floats(d), *want = twin_floats(n);
        void *out = twin_alloc(n * dtype_size(dtype));
        for (size_t i = 0; i < (size_t)rows * ldx; i++) x[i] *= 6;
        for (uint32_t i = 0; i < rows; i++)
            for (uint32_t k = 0; k < d; k++) {
                const double u = (double)x[i * ldx + k] + (w % 2 ? bias[k] : 0);
                want[i * d + k] = (float)(0.5 * u * (1 + erf(u * M_SQRT1_2)));
            }
        const struct cuda_gelu_args g = { x, ldx, w % 2 ? bias : NULL, rows, d, out, d, dtype };
        TWIN_OK(cuda_gelu(NULL, &g, e));
        float *got = cuda_read(out, n, dtype);
        cuda_near(got, want, n, dtype, 1e-6, "gelu");
        free(got);
        const struct cuda_pack_args p = { x, ldx, rows, d, out, dtype };
        TWIN_OK(cuda_pack(NULL, &p, e));
        got = cuda_read(out, n, dtype);
        for (uint32_t i = 0; i < rows; i++)
            for (uint32_t k = 0; k < d; k++)
                want[i * d + k] = dtype == DT_BF16 ? twin_round_bf16(x[i * ldx + k]) : x[i * ldx + k];
        twin_same(got, want, n, "pack");
        free(got), free(x), free(bias), free(want), free(out);
    }
}

/* A product with the identity is the CPU's way to the same values. */
static void test_swiglu(void **state)
{
    (void)state;
    twin_seed("swiglu");
    static const uint32_t ns[] = { 8, 16, 200, 4096 + 8 };
    for (uint32_t v = 0; v < 4 * sizeof ns / sizeof ns[0]; v++) {
        const uint32_t n = ns[v / 4], rows = 1 + twin_below(5);
        const enum dtype in = v % 2 ? DT_BF16 : DT_F32, dtype = v / 2 % 2 ? DT_BF16 : DT_F32;
        const size_t all = (size_t)rows * n;
        float *gu = twin_random_floats(2 * all), *want = twin_floats(all);
        for (size_t i = 0; i < 2 * all; i++) gu[i] = twin_round_bf16(gu[i] * (i % 5 ? 8 : 100));
        for (uint32_t i = 0; i < rows; i++)
            for (uint32_t k = 0; k < n; k++) {
                const float *at = gu + (size_t)i * 2 * n + k / 8 * 16 + k % 8;
                want[(size_t)i * n + k] = (float)(at[0] / (1 + exp(-(double)at[0])) * at[8]);
            }
        void *half = cuda_bf16(gu, 2 * all), *out = twin_alloc(all * dtype_size(dtype));
        const struct cuda_swiglu_args a = { in == DT_BF16 ? half : gu, in, rows, n, out, dtype };
        TWIN_OK(cuda_swiglu(NULL, &a, e));
        float *got = cuda_read(out, all, dtype);
        cuda_near(got, want, all, dtype, 1e-6, "swiglu");
        free(gu), free(want), free(half), free(out), free(got);
    }
    struct err e = { 0 };
    const struct cuda_swiglu_args odd = { .rows = 1, .n = 12 };
    assert_int_equal(cuda_swiglu(NULL, &odd, &e), E_ARG);
}

static void test_moves(void **state)
{
    (void)state;
    twin_seed("moves");
    EACH_WIDTH(w) {
        const uint32_t d = widths[w], n = 1 + twin_below(20);
        float *x = twin_random_floats((size_t)2 * n * d), *y = twin_random_floats((size_t)n * d), *want = twin_floats((size_t)n * d);
        uint32_t *row = random_rows(n, 2 * n), *order = random_order(n);
        const struct cuda_move_args gather = { x, row, NULL, n, d, y };
        TWIN_OK(cuda_move(NULL, &gather, e));
        const struct gather_args g = { x, row, n, d, want };
        TWIN_OK(cpu->ops->gather(cpu, &g, e));
        twin_same(y, want, (size_t)n * d, "gather");
        const struct cuda_move_args scatter = { x, NULL, order, n, d, y };
        TWIN_OK(cuda_move(NULL, &scatter, e));
        const struct scatter_args s = { x, order, n, d, want };
        TWIN_OK(cpu->ops->scatter(cpu, &s, e));
        twin_same(y, want, (size_t)n * d, "scatter");
        const struct cuda_mean_pairs_args mean = { x, n, d, y };
        TWIN_OK(cuda_mean_pairs(NULL, &mean, e));
        const struct mean_pairs_args m = { x, n, d, want };
        TWIN_OK(cpu->ops->mean_pairs(cpu, &m, e));
        twin_same(y, want, (size_t)n * d, "mean_pairs");
        free(x), free(y), free(want), free(row), free(order);
    }
}

/* Chunks of one step, of odd and even lengths; both ways that x may lie; strides 1 and 2. */
static void test_chunks(void **state)
{
    (void)state;
    twin_seed("chunks");
    static const uint32_t len[] = { 1, 2, 7, 20, 1 };
    enum { C = sizeof len / sizeof len[0], STEPS = 31 };
    for (uint32_t v = 0; v < 16; v++) {
        const uint32_t channels = v / 4 == 0 ? 1 : v / 4 == 1 ? 33 : v / 4 == 2 ? 128 : 1280, stride = 1 + v % 2;
        const bool by_time = v / 2 % 2;
        const enum dtype dtype = twin_below(2) ? DT_BF16 : DT_F32;
        uint32_t *first_step = calloc(C + 1, sizeof *first_step), *first_row = calloc(C + 1, sizeof *first_row);
        for (uint32_t c = 0; c < C; c++) {
            first_step[c + 1] = first_step[c] + len[c];
            first_row[c + 1] = first_row[c] + (len[c] - 1) / stride + 1;
        }
        assert_int_equal(first_step[C], STEPS);
        const uint32_t rows = first_row[C];
        const size_t n = (size_t)rows * channels * 3, st = by_time ? channels : 1, sc = by_time ? 1 : STEPS;
        float *x = twin_random_floats((size_t)STEPS * channels);
        void *out = twin_alloc(n * dtype_size(dtype));
        const struct cuda_im2col_args a = { x, st, sc, channels, stride, C, rows, first_step, first_row, out, dtype };
        TWIN_OK(cuda_im2col(NULL, &a, e));
        struct operand o = twin_operand(cpu, rows, 3 * channels, dtype);
        const struct im2col_args twin = { x, st, sc, channels, stride, C, len, &o };
        TWIN_OK(cpu->ops->im2col(cpu, &twin, e));
        float *got = cuda_read(out, n, dtype), *want = twin_unpack(cpu, &o);
        twin_same(got, want, n, "im2col");
        free(got), free(want), free(out), free(o.data);

        float *y = twin_random_floats((size_t)STEPS * channels), *twins = cuda_copy(y, (size_t)STEPS * channels * sizeof *y);
        const struct cuda_add_rows_args add = { y, x, channels, C, STEPS, first_step };
        TWIN_OK(cuda_add_rows(NULL, &add, e));
        const struct add_rows_args t = { twins, x, channels, C, len };
        TWIN_OK(cpu->ops->add_rows(cpu, &t, e));
        twin_same(y, twins, (size_t)STEPS * channels, "add_rows");
        free(x), free(y), free(twins), free(first_step), free(first_row);
    }
}

static void test_cosine(void **state)
{
    (void)state;
    twin_seed("cosine");
    EACH_WIDTH(w) {
        const uint32_t d = widths[w], n = 1 + twin_below(30);
        float *x = twin_random_floats((size_t)n * d), *y = twin_random_floats((size_t)n * d), *out = twin_floats(n), *want = twin_floats(n);
        uint32_t *a = random_rows(n, n), *b = random_rows(n, n);
        if (w % 2) a[0] = b[0];
        memset(x, 0, (n > 1 ? d : 0) * sizeof *x);                /* a row of nothing */
        const struct cuda_cosine_args g = { x, w % 2 ? x : y, d, n, a, b, out };
        TWIN_OK(cuda_cosine(NULL, &g, e));
        const struct cosine_args t = { .x = x, .d = d, .n = n, .a = a, .b = b, .out = want, .y = w % 2 ? NULL : y };
        TWIN_OK(cpu->ops->cosine(cpu, &t, e));
        cuda_near(out, want, n, DT_F32, 1e-5, "cosine");
        if (w % 2 && a[0] != 0) assert_true(out[0] == 1.0f);
        free(x), free(y), free(out), free(want), free(a), free(b);
    }
}

static int open_cpu(void **state)
{
    (void)state;
    cpu = twin_open(NULL, 1);
    return 0;
}
static int close_cpu(void **state)
{
    (void)state;
    cpu->ops->close(&cpu);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed), cmocka_unit_test(test_norm),   cmocka_unit_test(test_gelu_and_pack),
        cmocka_unit_test(test_swiglu), cmocka_unit_test(test_moves), cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_cosine),
    };
    return cmocka_run_group_tests_name("cuda rows", tests, open_cpu, close_cpu);
}
