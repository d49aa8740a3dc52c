/* tests/kernels/test_linear.c - weights, embeddings and products of every instruction set.
 * Method: random values on shapes that break code; sums in double; then the same bits in any company. */
#include "tests/kernels/twin.h"

/* ---- one product against the reference --------------------------------------------------------------- */

struct product_case {
    uint32_t rows, k, n_parts, n[3];
    enum dtype source, compute;
    enum linear_mode mode;
    unsigned bias;                /* bit i: part i has one */
};

/* A tensor of random values in a checkpoint's dtype at an odd address; values [n] get what it holds. */
static void *tensor(size_t n, enum dtype t, float *values)
{
    char *raw = twin_alloc(n * dtype_size(t) + 1);
    for (size_t i = 0; i < n; i++) {
        float v = twin_float();
        if (t == DT_BF16) {
            const bf16 h = bf16_of_f32(v);
            memcpy(raw + 1 + 2 * i, &h, 2);
            v = bf16_to_f32(h);
        } else if (t == DT_F16) {
            const uint16_t h = (uint16_t)(twin_below(2) << 15 | twin_below(15 << 10));
            memcpy(raw + 1 + 2 * i, &h, 2);
            v = f16_to_f32(h);
        } else {
            memcpy(raw + 1 + 4 * i, &v, 4);
        }
        values[i] = v;
    }
    return raw;
}

static double silu(double x) { return x / (1.0 + exp(-x)); }
static double gelu(double x) { return 0.5 * x * (1.0 + erf(x * M_SQRT1_2)); }

static void check_product(struct stream *st, const char *isa, const struct product_case *c)
{
    const struct ops *ops = st->ops;
    const bool to_operand = c->mode == LINEAR_SWIGLU || c->mode == LINEAR_GELU_OPERAND;
    struct weight_args wa = { .form = c->mode == LINEAR_SWIGLU ? WEIGHT_SWIGLU : WEIGHT_PLAIN,
                              .compute = c->compute,
                              .k = c->k,
                              .n_parts = c->n_parts };
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_parts; i++) n += c->n[i];
    float *w = twin_floats((size_t)n * c->k), *b = calloc(n, sizeof *b);
    void *raw[6] = { NULL };
    for (uint32_t i = 0, at = 0; i < c->n_parts; at += c->n[i++]) {
        struct weight_part *p = &wa.part[i];
        raw[i] = tensor((size_t)c->n[i] * c->k, c->source, w + (size_t)at * c->k);
        *p = (struct weight_part){ (char *)raw[i] + 1, c->source, c->n[i], NULL, c->source };
        if ((c->bias >> i & 1) == 0) continue;
        raw[3 + i] = tensor(c->n[i], c->source, b + at);
        p->bias = (char *)raw[3 + i] + 1;
    }
    if (c->compute == DT_BF16)
        for (size_t i = 0; i < (size_t)n * c->k; i++) w[i] = twin_round_bf16(w[i]);
    struct weight *weight = NULL;
    TWIN_OK(ops->weight_create(st, &wa, &weight, e));
    for (uint32_t i = 0; i < 6; i++) free(raw[i]);
    const struct weight_shape shape = ops->weight_shape(weight);
    assert_true(shape.n == n && shape.k == c->k && shape.compute == c->compute &&
                shape.has_bias == (c->bias != 0));

    float *x = twin_random_floats((size_t)c->rows * c->k);
    struct operand xo = twin_pack(st, x, c->rows, c->k, c->compute);
    float *held = twin_unpack(st, &xo);                       /* x as the device rounds it */
    const uint32_t columns = c->mode == LINEAR_SWIGLU ? n / 2 : n;
    const size_t ldy = n + 3;
    float *y = to_operand              ? NULL
               : c->mode == LINEAR_ADD ? twin_random_floats(c->rows * ldy)
                                       : twin_floats(c->rows * ldy);
    double *want = calloc((size_t)c->rows * columns, sizeof *want);
    double *sum = calloc(n, sizeof *sum);
    for (uint32_t r = 0; r < c->rows; r++) {
        for (uint32_t j = 0; j < n; j++) {
            sum[j] = b[j];
            for (uint32_t k = 0; k < c->k; k++)
                sum[j] += (double)held[(size_t)r * c->k + k] * w[(size_t)j * c->k + k];
        }
        for (uint32_t j = 0; j < columns; j++) {
            double v = sum[j];
            if (c->mode == LINEAR_SWIGLU) v = silu(v) * sum[columns + j];
            else if (c->mode == LINEAR_ADD) v += y[r * ldy + j];
            else if (c->mode != LINEAR_STORE) v = gelu(v);
            want[(size_t)r * columns + j] = v;
        }
    }
    struct operand out = { NULL, 0, 0, c->compute };
    if (to_operand) out = twin_operand(st, c->rows, columns, c->compute);
    const struct linear_args a = { &xo, weight, c->mode, y, ldy, &out };
    TWIN_OK(ops->linear(st, &a, e));

    char what[160];
    snprintf(what, sizeof what, "%s rows %u n %u k %u source %d compute %d mode %d bias %u", isa, c->rows, n,
             c->k, (int)c->source, (int)c->compute, (int)c->mode, c->bias);
    float *got = to_operand ? twin_unpack(st, &out) : twin_floats((size_t)c->rows * n);
    for (uint32_t r = 0; !to_operand && r < c->rows; r++) {
        memcpy(got + (size_t)r * n, y + r * ldy, n * sizeof(float));
        for (uint32_t j = n; j < ldy && c->mode != LINEAR_ADD; j++)
            if (!isnan(y[r * ldy + j])) fail_msg("%s: wrote beyond its columns", what);
    }
    /* What goes to an operand is rounded to bf16 once more where the machine multiplies bf16. */
    const bool rounds = to_operand && c->compute == DT_BF16 && strcmp(isa, "avx512-bf16") == 0;
    twin_near(got, want, (size_t)c->rows * columns, rounds ? 0.004 : 4e-6, what);
    ops->weight_destroy(st, &weight);
    assert_null(weight);
    free(w), free(b), free(x), free(held), free(y), free(want), free(sum), free(got), free(xo.data),
        free(out.data);
}

static void shapes_body(struct stream *st, const char *isa)
{
    static const uint32_t rows[] = { 1, 2, 3, 4, 7, 11, 12, 13, 16, 25, 37 };
    static const struct {
        uint32_t n, k;
    } size[] = { { 1, 1 }, { 31, 2 }, { 32, 64 }, { 91, 57 }, { 130, 91 }, { 65, 33 } };
    for (uint32_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (uint32_t j = 0; j < sizeof size / sizeof size[0]; j++)
            for (uint32_t v = 0; v < 30; v++) {
                struct product_case c = { .rows = rows[i], .k = size[j].k, .n_parts = 1, .n = { size[j].n } };
                c.compute = v % 2 ? DT_BF16 : DT_F32;
                c.source = (enum dtype)(v / 2 % 3);
                c.mode = (enum linear_mode)(v / 6);
                c.bias = twin_below(2);
                if (c.mode == LINEAR_SWIGLU) c.n_parts = 2, c.n[1] = c.n[0], c.bias = twin_below(4);
                check_product(st, isa, &c);
            }
}

/* Every mode, dtype and instruction set agrees with sums in double, on sizes that fill no panel. */
static void test_shapes(void **state)
{
    (void)state;
    twin_seed("shapes");
    twin_each(2, shapes_body);
}

static void sizes_body(struct stream *st, const char *isa)
{
    static const struct product_case cases[] = {
        { 2, 5121, 1, { 40 }, DT_BF16, DT_BF16, LINEAR_STORE, 1 },          /* two chunks of an odd k     */
        { 3, 10300, 1, { 64 }, DT_BF16, DT_BF16, LINEAR_ADD, 1 },           /* three chunks               */
        { 3, 10241, 1, { 33 }, DT_F32, DT_F32, LINEAR_GELU, 1 },
        { 14, 5200, 2, { 16, 16 }, DT_BF16, DT_BF16, LINEAR_SWIGLU, 0 },    /* an operand: no chunks      */
        { 128, 1176, 1, { 160 }, DT_BF16, DT_BF16, LINEAR_STORE, 0 },
        { 530, 96, 3, { 70, 10, 10 }, DT_BF16, DT_BF16, LINEAR_STORE, 5 },  /* two blocks of rows, fused  */
        { 1100, 40, 1, { 8 }, DT_F32, DT_F32, LINEAR_ADD, 0 },              /* more blocks than panels    */
        { 1, 300, 3, { 257, 31, 32 }, DT_F16, DT_BF16, LINEAR_STORE, 2 },
        { 40, 200, 1, { 333 }, DT_BF16, DT_BF16, LINEAR_GELU_OPERAND, 1 },
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_product(st, isa, &cases[i]);
}

/* Long rows (chunks of k), many rows (blocks), fused parts with a missing bias agree with double. */
static void test_sizes(void **state)
{
    (void)state;
    twin_seed("sizes");
    twin_each(0, sizes_body);
}

/* ---- the same bits ----------------------------------------------------------------------------------- */

struct same_case { enum linear_mode mode; enum dtype compute; uint32_t n, k; };

/* y [rows, columns] of the rows of x in this order, in batches of at most `batch`. */
static void run_rows(struct stream *st, const struct weight *w, const struct same_case *c, const float *x,
                     const float *y0, const uint32_t *order, uint32_t rows, uint32_t batch, float *y)
{
    const bool to_operand = c->mode == LINEAR_SWIGLU || c->mode == LINEAR_GELU_OPERAND;
    for (uint32_t at = 0; at < rows; at += batch) {
        const uint32_t n = rows - at < batch ? rows - at : batch;
        float *xs = twin_floats((size_t)n * c->k), *ys = twin_floats((size_t)n * c->n);
        for (uint32_t i = 0; i < n; i++) {
            memcpy(xs + (size_t)i * c->k, x + (size_t)order[at + i] * c->k, c->k * sizeof(float));
            memcpy(ys + (size_t)i * c->n, y0 + (size_t)order[at + i] * c->n, c->n * sizeof(float));
        }
        struct operand xo = twin_pack(st, xs, n, c->k, c->compute);
        struct operand out = { NULL, 0, 0, c->compute };
        if (to_operand) out = twin_operand(st, n, c->n, c->compute);
        const struct linear_args a = { &xo, w, c->mode, ys, c->n, &out };
        TWIN_OK(st->ops->linear(st, &a, e));
        if (to_operand) {
            free(ys);
            ys = twin_unpack(st, &out);
        }
        for (uint32_t i = 0; i < n; i++)
            memcpy(y + (size_t)order[at + i] * c->n, ys + (size_t)i * c->n, c->n * sizeof(float));
        free(xs), free(ys), free(xo.data), free(out.data);
    }
}

static void check_same(const char *isa, const struct same_case *c)
{
    enum { ROWS = 61 };
    static const uint32_t batch[] = { 1, 2, 3, 5, 8, 12, 13, 16, 30, ROWS };
    const uint32_t n_weight = c->mode == LINEAR_SWIGLU ? 2 * c->n : c->n;
    float *w = twin_random_floats((size_t)n_weight * c->k), *bias = twin_random_floats(n_weight);
    float *x = twin_random_floats((size_t)ROWS * c->k), *y0 = twin_random_floats((size_t)ROWS * c->n);
    float *want = twin_floats((size_t)ROWS * c->n), *got = twin_floats((size_t)ROWS * c->n);
    uint32_t order[ROWS];
    for (uint32_t i = 0; i < ROWS; i++) order[i] = i;
    for (int threads = 1; threads <= 3; threads++) {
        struct stream *st = twin_open(isa, threads);
        struct weight_args wa = { .form = WEIGHT_PLAIN, .compute = c->compute, .k = c->k, .n_parts = 1,
                                  .part = { { w, DT_F32, n_weight, bias, DT_F32 } } };
        if (c->mode == LINEAR_SWIGLU) {
            wa.form = WEIGHT_SWIGLU;
            wa.n_parts = 2;
            wa.part[0].n = c->n;
            wa.part[1] = (struct weight_part){ w + (size_t)c->n * c->k, DT_F32, c->n, bias + c->n, DT_F32 };
        }
        struct weight *weight = NULL;
        TWIN_OK(st->ops->weight_create(st, &wa, &weight, e));
        if (threads == 1) run_rows(st, weight, c, x, y0, order, ROWS, ROWS, want);
        for (uint32_t b = 0; b < sizeof batch / sizeof batch[0]; b++) {
            for (uint32_t i = ROWS - 1; i > 0; i--) {
                const uint32_t j = twin_below(i + 1), t = order[i];
                order[i] = order[j];
                order[j] = t;
            }
            memset(got, 0xff, (size_t)ROWS * c->n * sizeof(float));
            run_rows(st, weight, c, x, y0, order, ROWS, batch[b], got);
            char what[128];
            snprintf(what, sizeof what, "%s mode %d compute %d: %d threads, batches of %u", isa, (int)c->mode,
                     (int)c->compute, threads, batch[b]);
            twin_same(got, want, (size_t)ROWS * c->n, what);
        }
        st->ops->weight_destroy(st, &weight);
        st->ops->close(&st);
    }
    free(w), free(bias), free(x), free(y0), free(want), free(got);
}

/* A row gives the same bits alone and in any batch, at any place, with any number of threads. */
static void test_same_bits(void **state)
{
    (void)state;
    static const struct same_case cases[] = {
        { LINEAR_STORE, DT_BF16, 200, 130 },        { LINEAR_ADD, DT_BF16, 40, 5300 },
        { LINEAR_GELU, DT_F32, 70, 65 },            { LINEAR_SWIGLU, DT_BF16, 75, 96 },
        { LINEAR_GELU_OPERAND, DT_F32, 90, 64 },    { LINEAR_ADD, DT_F32, 33, 5400 },
        { LINEAR_SWIGLU, DT_F32, 40, 57 },          { LINEAR_GELU_OPERAND, DT_BF16, 64, 100 },
    };
    twin_seed("same bits");
    for (const char *const *isa = cpu_isas(); *isa != NULL; isa++)
        for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_same(*isa, &cases[i]);
}

/* ---- embeddings, errors, nothing --------------------------------------------------------------------- */

static void embed_body(struct stream *st, const char *isa)
{
    enum { V = 77, MAX_K = 45, N = 70 };
    for (uint32_t k = MAX_K - 1; k <= MAX_K; k++)
        for (uint32_t compute = DT_F32; compute <= DT_BF16; compute++) {
            float *table = twin_random_floats((size_t)V * k), *y = twin_floats((size_t)N * k);
            struct weight_args wa = { .compute = (enum dtype)compute, .k = k, .n_parts = 1,
                                      .part = { { .data = table, .dtype = DT_F32, .n = V } } };
            struct weight *w = NULL;
            TWIN_OK(st->ops->weight_create(st, &wa, &w, e));
            int32_t id[N];
            for (uint32_t i = 0; i < N; i++) id[i] = (int32_t)twin_below(V);
            id[0] = 0, id[1] = V - 1;
            struct embed_args a = { w, id, N, y };
            TWIN_OK(st->ops->embed(st, &a, e));
            for (uint32_t i = 0; i < N; i++)
                for (uint32_t j = 0; j < k; j++) {
                    const float v = table[(size_t)id[i] * k + j];
                    const float want = compute == DT_BF16 ? twin_round_bf16(v) : v;
                    if (y[(size_t)i * k + j] != want) fail_msg("%s: row %d column %u", isa, id[i], j);
                }
            struct err err;
            id[3] = V;
            assert_int_equal(st->ops->embed(st, &a, &err), E_ARG);
            id[3] = -1;
            assert_int_equal(st->ops->embed(st, &a, &err), E_ARG);
            st->ops->weight_destroy(st, &w);
            free(table), free(y);
        }
}

/* Rows of a table come back exactly (bf16: as rounded); an id outside it is refused. */
static void test_embed(void **state)
{
    (void)state;
    twin_seed("embed");
    twin_each(2, embed_body);
}

/* ---- columns of a wider matrix ------------------------------------------------------------------------- */

static void stride_body(struct stream *st, const char *isa)
{
    static const struct { uint32_t n, k, ld, at; enum dtype source, compute; bool gated; } cases[] = {
        { 33, 7, 20, 5, DT_F32, DT_F32, false },   { 40, 31, 31, 0, DT_BF16, DT_BF16, false },
        { 40, 31, 64, 33, DT_BF16, DT_BF16, false }, { 65, 48, 91, 43, DT_F16, DT_F32, false },
        { 18, 9, 19, 10, DT_F16, DT_BF16, true },  { 32, 128, 129, 1, DT_BF16, DT_F32, true },
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const uint32_t n = cases[i].n, k = cases[i].k, parts = cases[i].gated ? 2 : 1, columns = n * parts;
        const size_t size = dtype_size(cases[i].source), ld = cases[i].ld;
        struct weight_args wide = { .form = cases[i].gated ? WEIGHT_SWIGLU : WEIGHT_PLAIN, .compute = cases[i].compute, .k = k,
                                    .n_parts = parts };
        struct weight_args own = wide;
        char *raw[2], *copy[2];
        float *values = twin_floats(n * ld);
        for (uint32_t p = 0; p < parts; p++) {
            raw[p] = tensor((n - 1) * ld + cases[i].at + k, cases[i].source, values);      /* ends with the last column read */
            copy[p] = twin_alloc(n * k * size);
            for (uint32_t r = 0; r < n; r++) memcpy(copy[p] + r * k * size, raw[p] + 1 + (r * ld + cases[i].at) * size, k * size);
            wide.part[p] = (struct weight_part){ .data = raw[p] + 1 + cases[i].at * size, .dtype = cases[i].source, .n = n, .ld = ld };
            own.part[p] = (struct weight_part){ .data = copy[p], .dtype = cases[i].source, .n = n };
        }
        struct weight *w[2] = { NULL };
        TWIN_OK(st->ops->weight_create(st, &wide, &w[0], e));
        TWIN_OK(st->ops->weight_create(st, &own, &w[1], e));
        float *x = twin_random_floats(5 * k), *y[2];
        struct operand xo = twin_pack(st, x, 5, k, cases[i].compute);
        for (int j = 0; j < 2; j++) {
            y[j] = twin_floats(5 * columns);
            struct operand out = twin_operand(st, 5, n, cases[i].compute);
            const struct linear_args a = { &xo, w[j], parts == 2 ? LINEAR_SWIGLU : LINEAR_STORE, y[j], columns, &out };
            TWIN_OK(st->ops->linear(st, &a, e));
            if (parts == 2) {
                free(y[j]);
                y[j] = twin_unpack(st, &out);
            }
            free(out.data);
        }
        if (memcmp(y[0], y[1], (size_t)5 * (parts == 2 ? n : columns) * sizeof(float)) != 0)
            fail_msg("%s: case %u: columns of a wider matrix differ from their copy", isa, i);
        for (uint32_t p = 0; p < parts; p++) free(raw[p]), free(copy[p]);
        for (int j = 0; j < 2; j++) free(y[j]), st->ops->weight_destroy(st, &w[j]);
        free(values), free(x), free(xo.data);
    }
}

/* A weight made of some columns of a matrix is that made of a copy of them. */
static void test_stride(void **state)
{
    (void)state;
    twin_seed("stride");
    twin_each(0, stride_body);
}

static void refuse_body(struct stream *st, const char *isa)
{
    (void)isa;
    const float data[64] = { 0 };
    struct err err;
    struct weight *w = NULL;
    struct weight_args wa = { .compute = DT_F32, .k = 8, .n_parts = 0, .part = { { .data = data, .n = 8 } } };
    assert_int_equal(st->ops->weight_create(st, &wa, &w, &err), E_ARG);
    wa.n_parts = 1, wa.compute = DT_F16;
    assert_int_equal(st->ops->weight_create(st, &wa, &w, &err), E_ARG);
    wa.compute = DT_F32, wa.form = WEIGHT_SWIGLU;
    assert_int_equal(st->ops->weight_create(st, &wa, &w, &err), E_ARG);
    wa.form = WEIGHT_PLAIN, wa.part[0].ld = 7;
    assert_int_equal(st->ops->weight_create(st, &wa, &w, &err), E_ARG);
    wa.part[0].ld = 8;
    TWIN_OK(st->ops->weight_create(st, &wa, &w, e));
    float y[16];
    struct operand x = twin_operand(st, 2, 7, DT_F32), none = { NULL, 0, 8, DT_F32 };
    struct linear_args a = { &x, w, LINEAR_STORE, y, 8, NULL };
    assert_int_equal(st->ops->linear(st, &a, &err), E_ARG);      /* k differs          */
    a.x = &none, a.ldy = 7;
    assert_int_equal(st->ops->linear(st, &a, &err), E_ARG);      /* rows do not fit    */
    a.ldy = 8, a.mode = LINEAR_SWIGLU;
    assert_int_equal(st->ops->linear(st, &a, &err), E_ARG);      /* not a gated weight */
    a.mode = LINEAR_STORE, a.y = NULL;
    TWIN_OK(st->ops->linear(st, &a, e));                         /* no rows: nothing   */
    st->ops->weight_destroy(st, &w);
    st->ops->weight_destroy(st, &w);
    free(x.data);
}

/* Shapes that do not meet are E_ARG, no rows are no work. */
static void test_refuse(void **state)
{
    (void)state;
    twin_each(1, refuse_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes), cmocka_unit_test(test_sizes),  cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_embed),  cmocka_unit_test(test_stride), cmocka_unit_test(test_refuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
