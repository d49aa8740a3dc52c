/* tests/kernels/test_table.c - the table of CUDA beside the CPU's: every op through alloc, upload and download, the same numbers on
 * both sides. Without a GPU the table is that of tests/simt/omnidrop-cuda.so, kernels and host code on the CPU (fake_cuda.cpp), where
 * memory of the wrong side and what is done too early end the test; OMNIDROP_LIB=build takes the real one. The kernels' own edges are
 * test_cuda_*.c's. */
#include <unistd.h>

#include "kernels/device.h"
#include "tests/kernels/choice.h"
#include "tests/simt_device.h"

enum { CPU, CUDA, SIDES };
static struct stream *side[SIDES];
#define EACH_SIDE(s) for (int s = 0; s < SIDES; s++)

/* ---- memory of a side ------------------------------------------------------------------------------------ */

static void *room(int s, size_t bytes)
{
    void *p = NULL;
    TWIN_OK(side[s]->ops->alloc(side[s], bytes, &p, e));
    return p;
}
static void *there(int s, const void *host, size_t bytes)
{
    void *p = room(s, bytes);
    TWIN_OK(side[s]->ops->upload(side[s], p, host, bytes, e));
    return p;
}
static float *floats_there(int s, const float *x, size_t n) { return there(s, x, n * sizeof *x); }
static void gone(int s, const void *p) { side[s]->ops->release(side[s], (void *)(uintptr_t)p); }
static float *back(int s, const void *p, size_t n)
{
    float *x = twin_floats(n);
    TWIN_OK(side[s]->ops->download(side[s], x, p, n * sizeof *x, e));
    return x;
}

/* What both sides gave, which goes. tol: of the largest value; bf16: or a step of bf16 beside it. */
static void compare(float *got[SIDES], size_t n, double tol, bool half, const char *what)
{
    double top = 1e-30;
    for (size_t i = 0; i < n; i++) top = fmax(top, fabs((double)got[CPU][i]));
    for (size_t i = 0; i < n; i++) {
        const double want = got[CPU][i], x = got[CUDA][i];
        if (memcmp(&got[CPU][i], &got[CUDA][i], sizeof(float)) == 0) continue;
        if (!(fabs(x - want) <= tol * top + (half ? fabs(want) * 0x1p-7 : 0)))
            fail_msg("%s: element %zu of %zu is %.9g, the CPU has %.9g (largest %.3g)", what, i, n, x, want, top);
    }
    free(got[CPU]), free(got[CUDA]);
}

static struct operand operand(int s, uint32_t rows, uint32_t k, enum dtype compute)
{
    return (struct operand){ room(s, side[s]->ops->operand_bytes(side[s], rows, k, compute)), rows, k, compute };
}
static struct weight *weight(int s, const struct weight_args *a)
{
    struct weight *w = NULL;
    TWIN_OK(side[s]->ops->weight_create(side[s], a, &w, e));
    return w;
}
/* What an operand holds, which goes: its product with the identity. */
static float *unpack(int s, struct operand *o)
{
    float *one = calloc((size_t)o->k * o->k, sizeof *one), *y = room(s, (size_t)o->rows * o->k * sizeof *y);
    for (uint32_t i = 0; i < o->k; i++) one[(size_t)i * o->k + i] = 1.0f;
    struct weight *w = weight(s, &(struct weight_args){ .compute = o->compute, .k = o->k, .n_parts = 1,
                                                        .part = { { .data = one, .dtype = DT_F32, .n = o->k } } });
    TWIN_OK(side[s]->ops->linear(side[s], &(struct linear_args){ .x = o, .w = w, .mode = LINEAR_STORE, .y = y, .ldy = o->k }, e));
    float *got = back(s, y, (size_t)o->rows * o->k);
    side[s]->ops->weight_destroy(side[s], &w);
    gone(s, y), gone(s, o->data), free(one);
    return got;
}
static uint32_t *random_rows(uint32_t n, uint32_t of)
{
    uint32_t *row = twin_alloc(n * sizeof *row);
    for (uint32_t i = 0; i < n; i++) row[i] = twin_below(of);
    return row;
}

/* ---- tests ----------------------------------------------------------------------------------------------- */

static void test_memory(void **state)
{
    (void)state;
    twin_seed("memory");
    static const size_t sizes[] = { 0, 1, 5, 4096, (8 << 20) - 1, (17 << 20) + 3 };
    char text[256];
    uint64_t left, all;
    struct err why;
    void *p = NULL;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *x = twin_alloc(sizes[i]), *y = twin_alloc(sizes[i]);
        for (size_t j = 0; j < sizes[i]; j++) x[j] = (unsigned char)(j * 31 >> 3);
        void *d = there(CUDA, x, sizes[i]);
        assert_true((uintptr_t)d % 64 == 0 && d != NULL);
        TWIN_OK(side[CUDA]->ops->download(side[CUDA], y, d, sizes[i], e));
        assert_memory_equal(x, y, sizes[i]);
        gone(CUDA, d), free(x), free(y);
    }
    gone(CUDA, NULL);
    TWIN_OK(device_memory(side[CUDA], &left, &all, e));
    assert_true(left > 0 && left <= all);
    assert_int_equal(side[CUDA]->ops->alloc(side[CUDA], (size_t)1 << 46, &p, &why), E_NOMEM);
    assert_non_null(strstr(why.text, "free"));
    assert_null(p);
    TWIN_OK(device_memory(side[CPU], &left, &all, e));
    assert_true(all > 0);
    side[CUDA]->ops->describe(side[CUDA], text, sizeof text);
    assert_non_null(strstr(text, "sm_"));
    assert_string_equal(side[CUDA]->ops->name, "cuda");
    assert_true(device_cuda_backend(text, sizeof text));
    TWIN_OK(side[CUDA]->ops->sync(side[CUDA], e));
}

/* Rows 0 .. n of a product, all modes; `from`: the parts' own type. */
static void product_case(uint32_t rows, uint32_t k, uint32_t n, enum dtype compute, enum dtype from, enum linear_mode mode, bool biased)
{
    const bool swiglu = mode == LINEAR_SWIGLU, half = compute == DT_BF16;
    const uint32_t parts = swiglu ? 2 : 3, N = n * parts, ld = k + twin_below(3), out_k = swiglu ? n : N;
    float *w = twin_random_floats((size_t)N * ld), *x = twin_random_floats((size_t)rows * k), *b = twin_random_floats(N), *got[SIDES];
    float *y = twin_random_floats((size_t)rows * (N + 3));
    uint16_t *h = twin_alloc((size_t)N * ld * 2);
    for (size_t i = 0; i < (size_t)N * ld; i++) w[i] = twin_round_bf16(w[i]), h[i] = bf16_of_f32(w[i]);
    for (uint32_t i = 0; i < N && twin_below(2); i++) b[i] = twin_round_bf16(b[i]);
    struct weight_args a = { .form = swiglu ? WEIGHT_SWIGLU : WEIGHT_PLAIN, .compute = compute, .k = k, .n_parts = parts };
    for (uint32_t p = 0; p < parts; p++) {
        a.part[p] = (struct weight_part){ .data = from == DT_F32 ? (void *)(w + (size_t)p * n * ld) : h + (size_t)p * n * ld, .dtype = from,
                                          .n = n, .bias = biased && p != 1 ? b + p * n : NULL, .bias_dtype = DT_F32, .ld = ld };
    }
    EACH_SIDE(s) {
        const struct ops *ops = side[s]->ops;
        struct weight *W = weight(s, &a);
        const struct weight_shape shape = ops->weight_shape(W);
        assert_true(shape.n == N && shape.k == k && shape.compute == compute && shape.has_bias == biased &&
                    shape.bytes >= (size_t)N * k * (half ? 2 : 4));
        struct operand in = operand(s, rows, k, compute), out = operand(s, rows, out_k, compute);
        float *X = floats_there(s, x, (size_t)rows * k), *Y = floats_there(s, y, (size_t)rows * (N + 3));
        TWIN_OK(ops->pack(side[s], &(struct pack_args){ .x = X, .ldx = k, .rows = rows, .k = k, .out = &in }, e));
        const struct linear_args l = { .x = &in, .w = W, .mode = mode, .y = Y, .ldy = N + 3, .out = &out };
        TWIN_OK(ops->linear(side[s], &l, e));
        if (mode == LINEAR_GELU_OPERAND || swiglu) got[s] = unpack(s, &out);
        else got[s] = back(s, Y, (size_t)rows * (N + 3)), gone(s, out.data);
        gone(s, X), gone(s, Y), gone(s, in.data);
        ops->weight_destroy(side[s], &W);
        assert_null(W);
    }
    char what[96];
    snprintf(what, sizeof what, "linear mode %d, %u x %u x %u %s", (int)mode, rows, N, k, half ? "bf16" : "f32");
    compare(got, (size_t)rows * (mode == LINEAR_GELU_OPERAND || swiglu ? out_k : N + 3), half && swiglu ? 1.5e-2 : 2e-5,
            half && mode == LINEAR_GELU_OPERAND, what);
    free(w), free(x), free(b), free(y), free(h);
}

static void test_linear(void **state)
{
    (void)state;
    twin_seed("linear");
    static const uint32_t shapes[][3] = { { 1, 1, 1 }, { 3, 7, 5 }, { 70, 64, 25 }, { 65, 33, 8 }, { 2, 200, 50 } };
    for (uint32_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int mode = LINEAR_STORE; mode <= LINEAR_SWIGLU; mode++)
            for (int v = 0; v < 2; v++)
                product_case(shapes[i][0], shapes[i][1], shapes[i][2], v ? DT_BF16 : DT_F32, twin_below(2) ? DT_F32 : DT_BF16,
                             (enum linear_mode)mode, (i + (uint32_t)mode) % 2);
}

/* A row's bits do not depend on the rows beside it: few among few, many among many (and few among many with one plan). */
static void test_rows_alone(void **state)
{
    (void)state;
    twin_seed("rows alone");
    enum { ROWS = 150, K = 40, N = 24 };
    const struct ops *ops = side[CUDA]->ops;
    float *w = twin_random_floats(N * K), *x = twin_random_floats(ROWS * K), *X = floats_there(CUDA, x, ROWS * K),
        *Y = room(CUDA, ROWS * N * 4);
    struct weight *W = weight(CUDA, &(struct weight_args){ .compute = DT_BF16, .k = K, .n_parts = 1,
                                                           .part = { { .data = w, .dtype = DT_F32, .n = N } } });
    static const uint32_t spans[][2] = { { 0, 150 }, { 50, 80 }, { 10, 100 }, { 0, 64 }, { 30, 1 }, { 5, 40 } };
    float *all[2] = { NULL, NULL };
    for (uint32_t i = 0; i < 6; i++) {
        const uint32_t r0 = spans[i][0], n = spans[i][1], c = i >= 3;
        struct operand in = operand(CUDA, n, K, DT_BF16);
        TWIN_OK(ops->pack(side[CUDA], &(struct pack_args){ .x = X + r0 * K, .ldx = K, .rows = n, .k = K, .out = &in }, e));
        TWIN_OK(ops->linear(side[CUDA], &(struct linear_args){ .x = &in, .w = W, .mode = LINEAR_STORE, .y = Y, .ldy = N }, e));
        float *got = back(CUDA, Y, n * N);
        if (all[c] == NULL) all[c] = got;
        else twin_same(got, all[c] + r0 * N, n * N, "rows of another batch"), free(got);
        gone(CUDA, in.data);
    }
    struct operand none = { X, 0, K, DT_BF16 };
    TWIN_OK(ops->linear(side[CUDA], &(struct linear_args){ .x = &none, .w = W, .mode = LINEAR_STORE, .y = Y, .ldy = N }, e));
    ops->weight_destroy(side[CUDA], &W);
    gone(CUDA, X), gone(CUDA, Y), free(w), free(x), free(all[0]), free(all[1]);
}

static void test_rows(void **state)
{
    (void)state;
    twin_seed("rows");
    static const uint32_t widths[] = { 1, 12, 64, 33 };
    for (uint32_t v = 0; v < 4; v++) {
        const uint32_t d = widths[v], n = 9, of = 20, group = d % 2 ? 1 : 2;
        const enum dtype compute = v % 2 ? DT_BF16 : DT_F32;
        float *x = twin_random_floats(of * d), *w = twin_random_floats(d), *b = twin_random_floats(d), *got[9][SIDES];
        uint32_t *row = random_rows(n, of), *other = random_rows(n, of), len[3] = { 2, 1, 6 };
        int32_t id[9];
        for (uint32_t i = 0; i < n; i++) id[i] = (int32_t)row[i];
        EACH_SIDE(s) {
            const struct ops *ops = side[s]->ops;
            struct stream *st = side[s];
            float *X = floats_there(s, x, of * d), *W = floats_there(s, w, d), *B = floats_there(s, b, d), *Y = floats_there(s, x, of * d);
            struct weight *table = weight(s, &(struct weight_args){ .compute = compute, .k = d, .n_parts = 1,
                                                                    .part = { { .data = x, .dtype = DT_F32, .n = of } } });
            TWIN_OK(ops->embed(st, &(struct embed_args){ table, id, n, Y }, e));
            got[0][s] = back(s, Y, of * d);
            ops->weight_destroy(st, &table);
            struct operand o = operand(s, n, d, compute);
            TWIN_OK(ops->norm(st, &(struct norm_args){ .x = X, .row = row, .rows = n, .d = d, .group = 1, .w = W, .b = v % 3 ? B : NULL,
                                                       .eps = 1e-3f, .out = &o }, e));
            got[1][s] = unpack(s, &o);
            o = operand(s, n, group * d, compute);
            TWIN_OK(ops->norm(st, &(struct norm_args){ .x = X, .rows = n, .d = d, .group = group, .w = W, .eps = 1e-3f, .out = &o }, e));
            got[2][s] = unpack(s, &o);
            TWIN_OK(ops->gather(st, &(struct gather_args){ X, row, n, d, Y }, e));
            got[3][s] = back(s, Y, of * d);
            const uint32_t to[9] = { 8, 1, 3, 19, 0, 2, 11, 10, 5 };
            TWIN_OK(ops->scatter(st, &(struct scatter_args){ X, to, n, d, Y }, e));
            got[4][s] = back(s, Y, of * d);
            TWIN_OK(ops->add_rows(st, &(struct add_rows_args){ Y, X, d, 3, len }, e));
            got[5][s] = back(s, Y, of * d);
            TWIN_OK(ops->mean_pairs(st, &(struct mean_pairs_args){ X, n, d, Y }, e));
            got[6][s] = back(s, Y, of * d);
            got[7][s] = twin_floats(n);
            TWIN_OK(ops->cosine(st, &(struct cosine_args){ .x = X, .d = d, .n = n, .a = row, .b = other, .out = got[7][s] }, e));
            o = operand(s, 1 + 1 + 3, 3 * d, compute);
            TWIN_OK(ops->im2col(st, &(struct im2col_args){ X, d, 1, d, 2, 3, len, &o }, e));
            got[8][s] = unpack(s, &o);
            gone(s, X), gone(s, W), gone(s, B), gone(s, Y);
        }
        static const char *const what[] = { "embed", "norm", "norm of groups", "gather", "scatter", "add_rows", "mean_pairs", "cosine",
                                            "im2col" };
        const size_t sizes[] = { of * d, n * d, n * group * d, of * d, of * d, of * d, of * d, n, 5 * 3 * d };
        for (int i = 0; i < 9; i++) compare(got[i], sizes[i], i == 0 || i == 3 || i == 4 || i == 8 ? 0 : 2e-5, compute == DT_BF16 &&
                                            (i == 1 || i == 2), what[i]);
        free(x), free(w), free(b), free(row), free(other);
    }
}

/* Sequences written in two pieces, attended to, scored, copied to other pages, thinned out and attended to again. */
static void test_pages(void **state)
{
    (void)state;
    twin_seed("pages");
    static const struct { uint32_t D, G, group; enum dtype dtype; } cases[] = {
        { 64, 2, 3, DT_BF16 }, { 8, 1, 3, DT_F32 }, { 128, 1, 7, DT_BF16 }, { 6, 3, 1, DT_BF16 },
    };
    enum { SEQS = 3, POOL = 40 };
    for (uint32_t v = 0; v < 4; v++) {
        const uint32_t D = cases[v].D, G = cases[v].G, H = G * cases[v].group, width = 2 * G * D, keys[SEQS] = { 70, 1, 130 },
            first[SEQS] = { 30, 0, 64 };
        const enum dtype dtype = cases[v].dtype;
        const bool half = dtype == DT_BF16;
        enum { N = 201, Q = 20 };
        float *kv = twin_random_floats(N * width), *q = twin_random_floats(Q * H * D), *angle = twin_random_floats(N * (D / 2)),
            *got[6][SIDES];
        uint32_t page_at[SIDES][SEQS][16], angle_row[N], *kept = twin_alloc(130 * sizeof *kept);
        for (uint32_t i = 0; i < N; i++) angle_row[i] = N - 1 - i;
        for (uint32_t i = 0; i < 65; i++) kept[i] = 2 * i;
        EACH_SIDE(s) {
            const struct ops *ops = side[s]->ops;
            struct stream *st = side[s];
            struct kv_shape shape = { .G = G, .D = D, .dtype = dtype, .page_tokens = ops->page_tokens,
                                      .page_bytes = ops->page_bytes(st, G, D, dtype) };
            shape.base = room(s, POOL * shape.page_bytes);
            uint32_t used = 0, copied[16];
            struct kv_view view[SEQS];
            for (uint32_t i = 0; i < SEQS; i++) {
                view[i] = (struct kv_view){ page_at[s][i], keys[i] };
                for (uint32_t p = 0; p * shape.page_tokens < keys[i]; p++) page_at[s][i][p] = (used++ * 7 + 3) % POOL;
            }
            float *KV = floats_there(s, kv, N * width), *cs = floats_there(s, angle, N * (D / 2)), *X = floats_there(s, q, Q * H * D);
            uint32_t start[SEQS + 1] = { 0 }, begin[SEQS] = { 0 };
            for (uint32_t i = 0; i < SEQS; i++) start[i + 1] = start[i] + first[i];
            struct kv_write_args w = { .kv = KV, .ldkv = width, .cos = cs, .sin = cs, .row = angle_row, .shape = shape, .n_seqs = SEQS,
                                       .seq_start = start, .kv_start = begin, .view = view };
            TWIN_OK(ops->kv_write(st, &w, e));
            w.kv += start[SEQS] * width, w.row = v % 2 ? NULL : angle_row + start[SEQS];
            for (uint32_t i = 0; i < SEQS; i++) start[i + 1] = start[i] + keys[i] - first[i];
            w.kv_start = first;
            TWIN_OK(ops->kv_write(st, &w, e));
            TWIN_OK(ops->rope(st, &(struct rope_args){ .x = X, .ldx = H * D, .n = Q, .heads = H, .D = D, .cos = cs, .sin = cs,
                                                       .row = angle_row }, e));
            got[0][s] = back(s, X, Q * H * D);
            /* prefill: 5, 1 and 14 rows; decode: the first of each */
            const uint32_t rows[SEQS + 1] = { 0, 5, 6, 20 }, one[SEQS + 1] = { 0, 1, 2, 3 }, last[SEQS] = { 70, 1, 129 };
            uint32_t visible[Q];
            for (uint32_t i = 0; i < SEQS; i++)
                for (uint32_t r = rows[i]; r < rows[i + 1]; r++) visible[r] = keys[i] - (rows[i + 1] - 1 - r) / 2;
            void *scratch = room(s, ops->attention_scratch(st, H, D, Q, 130));
            struct operand o = operand(s, Q, H * D, dtype);
            struct attention_args a = { .q = X, .ldq = H * D, .H = H, .scale = 0.2f, .shape = shape, .n_seqs = SEQS, .seq_start = rows,
                                        .visible = visible, .view = view, .out = &o, .scratch = scratch };
            TWIN_OK(ops->attention(st, &a, e));
            got[1][s] = unpack(s, &o);
            o = operand(s, SEQS, H * D, dtype);
            a.seq_start = one, a.visible = last;
            TWIN_OK(ops->attention_decode(st, &a, e));
            got[2][s] = unpack(s, &o);
            float *partial = room(s, G * 130 * sizeof *partial);
            const struct query_scores_args scores = { .q = X, .ldq = H * D, .n_q = 14, .H = H, .scale = 0.2f, .shape = shape,
                                                      .view = view[2],
                                                      .visible = visible + 6, .partial = partial, .scratch = scratch };
            TWIN_OK(ops->query_scores(st, &scores, e));
            got[3][s] = back(s, partial, G * 130);
            /* the third moves to other pages; there every other row stays */
            const uint32_t n_pages = (130 + shape.page_tokens - 1) / shape.page_tokens;
            for (uint32_t p = 0; p < n_pages; p++) copied[p] = (used++ * 7 + 3) % POOL;
            TWIN_OK(ops->page_copy(st, &(struct page_copy_args){ shape, page_at[s][2], copied, n_pages }, e));
            view[2].page = copied;
            o = operand(s, SEQS, H * D, dtype);
            TWIN_OK(ops->attention_decode(st, &a, e));
            got[4][s] = unpack(s, &o);
            const uint32_t *lists[] = { kept }, n_kept[] = { 65 };
            TWIN_OK(ops->kv_compact(st, &(struct kv_compact_args){ shape, 1, view + 2, lists, n_kept }, e));
            view[2].n_rows = 65;
            o = operand(s, Q, H * D, dtype);
            for (uint32_t r = rows[2]; r < Q; r++) visible[r] = 30 + r;
            a.seq_start = rows, a.visible = visible;
            TWIN_OK(ops->attention(st, &a, e));
            got[5][s] = unpack(s, &o);
            struct err err;
            struct kv_shape wrong = shape;
            wrong.page_tokens++;
            a.shape = wrong;
            if (s == CUDA) assert_int_equal(ops->attention(st, &a, &err), E_ARG);
            gone(s, KV), gone(s, cs), gone(s, X), gone(s, scratch), gone(s, partial), gone(s, shape.base);
        }
        static const char *const what[] = { "rope", "attention", "decode", "scores", "decode over copied pages",
                                            "attention after compaction" };
        const size_t sizes[] = { Q * H * D, Q * H * D, SEQS * H * D, G * 130, SEQS * H * D, Q * H * D };
        for (int i = 0; i < 6; i++) compare(got[i], sizes[i], i == 0 ? 1e-6 : half ? 1.5e-2 : 2e-5, false, what[i]);
        free(kv), free(q), free(angle), free(kept);
    }
}

static void test_segments(void **state)
{
    (void)state;
    twin_seed("segments");
    for (uint32_t v = 0; v < 4; v++) {
        const uint32_t heads = v % 2 ? 3 : 2, D = v % 2 ? 6 : 80, k = heads * D, start[] = { 0, 70, 70, 87 };
        enum { N = 87 };
        const enum dtype compute = v / 2 ? DT_BF16 : DT_F32;
        float *x = twin_random_floats(N * 3 * k), *got[2][SIDES];
        EACH_SIDE(s) {
            const struct ops *ops = side[s]->ops;
            float *X = floats_there(s, x, N * 3 * k), *received = room(s, N * 4);
            void *scratch = room(s, ops->attention_scratch(side[s], heads, D, N, 70));
            struct operand o = operand(s, N, k, compute);
            TWIN_OK(ops->segment_attention(side[s], &(struct segment_attention_args){
                .q = X, .k = X + k, .v = X + 2 * k, .ld = 3 * k, .heads = heads, .D = D, .scale = 0.3f, .n_segs = 3, .seg_start = start,
                    .out = &o,
                .received = received, .scratch = scratch }, e));
            got[0][s] = unpack(s, &o);
            got[1][s] = back(s, received, N);
            gone(s, X), gone(s, received), gone(s, scratch);
        }
        compare(got[0], N * k, compute == DT_BF16 ? 1.5e-2 : 2e-5, false, "segments");
        compare(got[1], N, compute == DT_BF16 ? 1.5e-2 : 2e-5, false, "received");
        free(x);
    }
}

static void test_choices(void **state)
{
    (void)state;
    twin_seed("choices");
    enum { N = 60, D = 20, GROUPS = 3, M = 25 };
    float *x = twin_random_floats(N * D), weights[N], c0[M], w[2 * M], *got[6][SIDES];
    uint32_t start[] = { 0, 20, 20, N }, *row = random_rows(N, N), y_start[] = { 0, 10, 15, M }, n_pick[] = { 7, 0, 12 }, dst[M],
        m_start[M + 1], src[2 * M];
    for (uint32_t i = 0; i < N; i++) weights[i] = i == 3 ? NAN : twin_float();
    for (uint32_t i = 0; i <= M; i++) m_start[i] = 2 * i;
    for (uint32_t i = 0; i < M; i++) dst[i] = twin_below(N), c0[i] = twin_float();
    for (uint32_t i = 0; i < 2 * M; i++) src[i] = twin_below(N), w[i] = twin_float();
    uint32_t which[SIDES][N], pick[SIDES][2][19], keep[SIDES][3][N];
    int32_t chunk[N];
    for (uint32_t i = 0; i < N; i++) chunk[i] = (int32_t)(i / 7);
    EACH_SIDE(s) {
        const struct ops *ops = side[s]->ops;
        struct stream *st = side[s];
        float *X = floats_there(s, x, N * D), *Y = room(s, N * D * 4);
        char *scratch = twin_alloc(ops->pair_scratch(st, D, 2 * N) + ops->select_scratch(st, N) + ops->pagerank_scratch(st, 2, N));
        const struct row_groups g = { X, D, GROUPS, start, row }, y = { X, D, GROUPS, y_start, row };
        TWIN_OK(ops->means(st, &(struct means_args){ g, true, Y, scratch }, e));
        got[0][s] = back(s, Y, GROUPS * D);
        got[1][s] = twin_floats(N), got[2][s] = twin_floats(N), got[4][s] = twin_floats(30);
        TWIN_OK(ops->nearest(st, &(struct nearest_args){ g, y, got[1][s], which[s], scratch }, e));
        TWIN_OK(ops->density(st, &(struct density_args){ g, 5, got[2][s], scratch }, e));
        for (int f = 0; f < 2; f++)
            TWIN_OK(ops->farthest(st, &(struct farthest_args){ g, f ? NULL : weights, f ? FARTHEST_MEAN : FARTHEST_APART, n_pick,
                                                               pick[s][f], scratch }, e));
        /* the second half of the lists alone, as they are handed over in runs */
        TWIN_OK(ops->merge(st, &(struct merge_args){ X, D, M - 10, dst + 10, c0 + 10, m_start + 10, src, w, Y }, e));
        got[3][s] = back(s, Y, (M - 10) * D);
        TWIN_OK(ops->pagerank(st, &(struct pagerank_args){ .q = X, .k = X, .ldq = D, .ldk = D, .n = 30, .H = 2, .G = 1, .D = D / 2,
                                                           .iterations = 3,
                                                           .scale = 0.4f, .importance = got[4][s], .scratch = scratch }, e));
        for (int i = 0; i < 3; i++)
            TWIN_OK(ops->select(st, &(struct select_args){ .score = weights, .chunk = i ? chunk : NULL, .n = N, .k = i == 2 ? 0 : 23,
                                                           .tds = i > 0,
                                                           .relative = i == 1, .lambda_div = 0.3, .max_chunk = 8, .keep = keep[s][i],
                                                               .scratch = scratch }, e));
        struct err err;
        const struct select_args bad = { .score = weights, .n = 3, .k = 4 };
        if (s == CUDA) assert_int_equal(ops->select(st, &bad, &err), E_ARG);
        gone(s, X), gone(s, Y), free(scratch);
    }
    compare(got[0], GROUPS * D, 1e-6, false, "means");
    compare(got[1], N, 1e-5, false, "nearest");
    compare(got[2], N, 1e-5, false, "density");
    compare(got[3], (M - 10) * D, 1e-5, false, "merge");
    compare(got[4], 30, 1e-5, false, "pagerank");
    assert_memory_equal(which[CPU], which[CUDA], sizeof which[CPU]);
    assert_memory_equal(pick[CPU], pick[CUDA], sizeof pick[CPU]);
    for (int i = 0; i < 3; i++) assert_memory_equal(keep[CPU][i], keep[CUDA][i], (i == 2 ? N : N - 23) * sizeof(uint32_t));
    free(x), free(row);
}

/* What a device has chosen by itself, as lists that its other ops take: as the host's own lists. */
static void test_device_lists(void **state)
{
    (void)state;
    twin_seed("device lists");
    enum { D = 8, G = 2, H = 4, WIDTH = 2 * G * D, MOST = 150 };
    for (uint32_t v = 0; v < 60; v++) {
        struct choice_case c = choice_make(MOST);
        const uint32_t n = c.a.n, left = n - c.a.k;
        float *x = twin_random_floats(MOST * H * D), *kv = twin_random_floats(MOST * WIDTH), *angle = twin_random_floats(c.n_ids * D / 2);
        choice_want(&c, side[CPU]);
        if (left == 0) goto next;
        for (uint32_t i = 0; i < n; i++) c.want_row[i] -= i < left ? c.a.first : 0;
        c.a.first = 0;
        EACH_SIDE(s) {
            const struct ops *ops = side[s]->ops;
            struct stream *st = side[s];
            struct kv_shape shape = { .G = G, .D = D, .dtype = DT_F32, .page_tokens = ops->page_tokens,
                                      .page_bytes = ops->page_bytes(st, G, D, DT_F32) };
            uint32_t page[16], zero = 0, start[] = { 0, left }, lists[3][MOST];
            for (uint32_t i = 0; i < 16; i++) page[i] = 15 - i;
            shape.base = room(s, 16 * shape.page_bytes);
            const struct kv_view view = { page, left };
            uint32_t *row = room(s, 4 * left), *id = room(s, 4 * left), *see = room(s, 4 * left);
            float *score = room(s, 4 * n), *X = floats_there(s, x, MOST * H * D), *KV = floats_there(s, kv, MOST * WIDTH),
                  *cs = floats_there(s, angle, c.n_ids * D / 2), *W = floats_there(s, x, H * D), *y = room(s, MOST * H * D * 4);
            struct choose_args a = c.a;
            a.partial = floats_there(s, c.partial, a.G * n), a.id = there(s, c.id, 4 * n), a.mark = there(s, c.mark, c.n_ids);
            a.chunk = there(s, c.chunk, c.n_ids * 4), a.score = score, a.row = row, a.out_id = id, a.visible = see;
            a.scratch = room(s, ops->choose_scratch(st, n));
            TWIN_OK(ops->choose(st, &a, e));
            float *got = twin_floats(n);
            TWIN_OK(ops->fetch(st, got, score, 4 * n, e));
            TWIN_OK(ops->fetch(st, lists[0], row, 4 * left, e));
            TWIN_OK(ops->fetch(st, lists[1], id, 4 * left, e));
            TWIN_OK(ops->fetch(st, lists[2], see, 4 * left, e));
            if (v % 2) TWIN_OK(ops->sync(st, e));
            else free(back(s, score, n));
            choice_check(&c, got, lists[0], lists[1], lists[2], s == CPU ? "the CPU's choice" : "CUDA's choice");
            free(got);
            TWIN_OK(ops->list_rows(st, &(struct list_rows_args){ .id = id, .n = left, .n_out = left, .visible = see }, e));
            /* all the ops that take them, once with the host's lists and once with the device's */
            float *out[2][6];
            void *scratch = room(s, ops->attention_scratch(st, H, D, MOST, MOST));
            uint32_t ask = 0;
            while (ask < 5 && ask < left) ask++;
            for (int d = 0; d < 2; d++) {
                const uint32_t *r = d ? row : c.want_row, *ids = d ? id : c.want_id, *sees = see;
                uint32_t iota[MOST];
                for (uint32_t i = 0; i < left; i++) iota[i] = i + 1;
                if (!d) sees = iota;
                struct operand o = operand(s, left, H * D, DT_F32);
                TWIN_OK(ops->norm(st, &(struct norm_args){ .x = X, .row = r, .rows = left, .d = H * D, .group = 1, .w = W, .eps = 1e-3f,
                                                           .out = &o, .row_on_device = d }, e));
                out[d][0] = unpack(s, &o);
                TWIN_OK(ops->gather(st, &(struct gather_args){ X, r, left, H * D, y, d }, e));
                out[d][1] = back(s, y, left * H * D);
                TWIN_OK(ops->rope(st, &(struct rope_args){ .x = y, .ldx = H * D, .n = left, .heads = H, .D = D, .cos = cs, .sin = cs,
                                                           .row = ids, .row_on_device = d }, e));
                out[d][2] = back(s, y, left * H * D);
                TWIN_OK(ops->kv_write(st, &(struct kv_write_args){ .kv = KV, .ldkv = WIDTH, .cos = cs, .sin = cs, .row = ids,
                                                                   .shape = shape, .n_seqs = 1, .seq_start = start, .kv_start = &zero,
                                                                   .view = &view, .row_on_device = d }, e));
                o = operand(s, left, H * D, DT_F32);
                struct attention_args at = { .q = y, .ldq = H * D, .H = H, .scale = 0.2f, .shape = shape, .n_seqs = 1, .seq_start = start,
                                             .visible = sees, .view = &view, .out = &o, .scratch = scratch, .visible_on_device = d };
                TWIN_OK(ops->attention(st, &at, e));
                out[d][3] = unpack(s, &o);
                const struct query_scores_args q = { .q = y, .ldq = H * D, .n_q = ask, .H = H, .scale = 0.2f, .shape = shape, .view = view,
                                                     .visible = sees, .partial = KV, .scratch = scratch, .visible_on_device = d };
                TWIN_OK(ops->query_scores(st, &q, e));
                out[d][4] = back(s, KV, G * left);
                TWIN_OK(ops->upload(st, KV, kv, MOST * WIDTH * 4, e));
                struct err why;
                if (s == CUDA && d) assert_int_equal(ops->attention_decode(st, &at, &why), E_ARG);
            }
            const size_t sizes[] = { left * H * D, left * H * D, left * H * D, left * H * D, G * left };
            static const char *const what[] = { "norm", "gather", "rope", "attention", "scores" };
            for (int i = 0; i < 5; i++) twin_same(out[1][i], out[0][i], sizes[i], what[i]), free(out[0][i]), free(out[1][i]);
            const void *all[] = { shape.base, row, id, see, score, X, KV, cs, W, y, a.partial, a.id, a.mark, a.chunk, a.scratch, scratch };
            for (size_t i = 0; i < sizeof all / sizeof *all; i++) gone(s, all[i]);
        }
next:
        free(x), free(kv), free(angle);
        choice_free(&c);
    }
    struct err why;
    const struct choose_args bad = { .n = 3, .n_of = 2, .k = 3 };
    assert_int_equal(side[CUDA]->ops->choose(side[CUDA], &bad, &why), E_ARG);
    const struct list_rows_args more = { .n = 3, .n_out = 4 };
    assert_int_equal(side[CUDA]->ops->list_rows(side[CUDA], &more, &why), E_ARG);
}

/* More of what comes later than there is room for, and times. */
static void test_later(void **state)
{
    (void)state;
    twin_seed("later");
    enum { N = 1 << 20, MANY = 9 };
    EACH_SIDE(s) {
        const struct ops *ops = side[s]->ops;
        struct stream *st = side[s];
        float *x = twin_random_floats(N), *X = floats_there(s, x, N), *got[MANY], *last = NULL;
        double seconds = 0;
        struct err why;
        for (int i = 0; i < MANY; i++) {
            got[i] = twin_floats(N);
            TWIN_OK(ops->fetch(st, got[i], X + i, (N - (size_t)i) * sizeof *x, e));
        }
        TWIN_OK(ops->fetch(st, NULL, X, 0, e));
        last = back(s, X, 1);
        for (int i = 0; i < MANY; i++) twin_same(got[i], x + i, N - (size_t)i, "fetched"), free(got[i]);
        TWIN_OK(ops->time_read(st, true, &seconds, e));
        assert_true(isnan(seconds));
        for (int i = 0; i < OPS_TIMES; i++) {
            TWIN_OK(ops->time_begin(st, e));
            TWIN_OK(ops->mean_pairs(st, &(struct mean_pairs_args){ X, 100, 16, X + 65536 }, e));
            TWIN_OK(ops->time_end(st, e));
        }
        assert_int_equal(ops->time_begin(st, &why), E_ARG);
        for (int i = 0; i < OPS_TIMES; i++) {
            TWIN_OK(ops->time_read(st, i % 2 == 0, &seconds, e));
            if (i % 2 == 0) assert_true(seconds > 0);
            else if (isnan(seconds)) i--;                         /* not over yet */
        }
        TWIN_OK(ops->time_read(st, false, &seconds, e));
        assert_true(isnan(seconds));
        gone(s, X), free(x), free(last);
    }
}

/* Lists beyond the ring, and rings that come round long before the device has passed them. */
static void test_lists(void **state)
{
    (void)state;
    twin_seed("lists");
    enum { D = 3, OF = 500, ROUNDS = 60, MANY = 70000 };
    float *x = twin_random_floats(OF * D), *want = twin_floats((size_t)ROUNDS * OF * D);
    const struct ops *ops = side[CUDA]->ops;
    float *X = floats_there(CUDA, x, OF * D), *Y = room(CUDA, (size_t)ROUNDS * OF * D * 4), *Z = room(CUDA, (size_t)MANY * D * 4);
    uint32_t *row = twin_alloc(OF * sizeof *row), *many = random_rows(MANY, OF);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        for (uint32_t j = 0; j < OF; j++) {
            row[j] = twin_below(OF);                              /* the same memory each time */
            memcpy(want + ((size_t)i * OF + j) * D, x + row[j] * D, D * sizeof *x);
        }
        TWIN_OK(ops->gather(side[CUDA], &(struct gather_args){ X, row, OF, D, Y + (size_t)i * OF * D }, e));
    }
    TWIN_OK(ops->gather(side[CUDA], &(struct gather_args){ X, many, MANY, D, Z }, e));
    float *got = back(CUDA, Y, (size_t)ROUNDS * OF * D), *last = back(CUDA, Z, (size_t)MANY * D);
    twin_same(got, want, (size_t)ROUNDS * OF * D, "gathered in rounds");
    for (uint32_t i = 0; i < MANY; i++) twin_same(last + (size_t)i * D, x + many[i] * D, D, "a long list");
    gone(CUDA, X), gone(CUDA, Y), gone(CUDA, Z), free(x), free(want), free(row), free(many), free(got), free(last);
}

static void test_refused(void **state)
{
    (void)state;
    struct err why;
    float w[4] = { 1, 2, 3, 4 };
    struct weight *W = NULL;
    struct weight_args a = { .compute = DT_F16, .k = 2, .n_parts = 1, .part = { { .data = w, .dtype = DT_F32, .n = 2 } } };
    assert_int_equal(side[CUDA]->ops->weight_create(side[CUDA], &a, &W, &why), E_ARG);
    a.compute = DT_F32, a.form = WEIGHT_SWIGLU;
    assert_int_equal(side[CUDA]->ops->weight_create(side[CUDA], &a, &W, &why), E_ARG);
    a.form = WEIGHT_PLAIN, a.part[0].ld = 1;
    assert_int_equal(side[CUDA]->ops->weight_create(side[CUDA], &a, &W, &why), E_ARG);
    assert_null(W);
    a.part[0].ld = 0;
    W = weight(CUDA, &a);
    float *X = floats_there(CUDA, w, 4);
    const int32_t id[] = { 0, 2 };
    assert_int_equal(side[CUDA]->ops->embed(side[CUDA], &(struct embed_args){ W, id, 2, X }, &why), E_ARG);
    assert_non_null(strstr(why.text, "token 2"));
    const struct operand three = { X, 1, 3, DT_F32 };
    assert_int_equal(side[CUDA]->ops->linear(side[CUDA], &(struct linear_args){ .x = &three, .w = W, .y = X, .ldy = 2 }, &why), E_ARG);
    side[CUDA]->ops->weight_destroy(side[CUDA], &W);
    gone(CUDA, X);
}

/* A stream of its own whose memory is reserved: blocks are used again at once, and what is asked for beyond the plan is refused. */
static void test_reserved(void **state)
{
    (void)state;
    twin_seed("reserved");
    enum { N = 64, D = 24, BYTES = 1 << 16 };
    const struct stream_options o = { .device = "cuda", .n_threads = 2 };
    const struct reserve_args plan = { .bytes = BYTES, .seqs = 2, .keys = 256, .list = 16 }, none = { 0 };
    struct stream *st;
    struct err why;
    void *early, *all, *lease, *other, *in[3];
    float *x = twin_floats(N * D), *got = twin_floats(N * D), *other_x = twin_random_floats(N * D), *a, *b;
    int32_t id[N];
    uint32_t row[N], *many = calloc(1 << 20, sizeof *many);
    TWIN_OK(stream_open(&o, &st, e));
    const struct ops *ops = st->ops;
    TWIN_OK(ops->alloc(st, 1000, &early, e));
    assert_true(ops->reserve_bytes(st, &plan) > BYTES + ops->reserve_bytes(st, &none) / 2);
    TWIN_OK(ops->reserve(st, &plan, e));
    assert_int_equal(ops->reserve(st, &plan, &why), E_INTERNAL);
    for (int i = 0; i < N; i++) row[i] = (uint32_t)(N - 1 - i), id[i] = i;
    /* What reads a block is asked for, the block goes, and a weight comes to the same place by other streams. */
    for (int turn = 0; turn < 20; turn++) {
        for (int i = 0; i < N * D; i++) x[i] = (float)(turn + i);
        TWIN_OK(ops->alloc(st, N * D * sizeof *x, (void **)&a, e));
        TWIN_OK(ops->alloc(st, N * D * sizeof *x, (void **)&b, e));
        TWIN_OK(ops->upload(st, a, x, N * D * sizeof *x, e));
        TWIN_OK(ops->gather(st, &(struct gather_args){ .x = a, .row = row, .n = N, .d = D, .y = b }, e));
        ops->release(st, a);
        const struct weight_args w = { .compute = DT_F32, .k = D, .n_parts = 1, .part = { { .data = other_x, .dtype = DT_F32, .n = N } } };
        struct weight *W = NULL;
        TWIN_OK(ops->weight_create(st, &w, &W, e));
        TWIN_OK(ops->download(st, got, b, N * D * sizeof *x, e));
        for (int i = 0; i < N; i++) assert_memory_equal(got + i * D, x + (N - 1 - i) * D, D * sizeof *x);
        /* And what was brought early would have been written over by what the block's last owner had still to do. */
        TWIN_OK(ops->embed(st, &(struct embed_args){ .table = W, .id = id, .n = N, .y = b }, e));
        TWIN_OK(ops->download(st, got, b, N * D * sizeof *x, e));
        assert_memory_equal(got, w.part[0].data, N * D * sizeof *x);
        ops->weight_destroy(st, &W);
        ops->release(st, b);
    }
    TWIN_OK(ops->alloc(st, BYTES, &all, e));   /* all is home and in one piece */
    assert_int_equal(ops->alloc(st, 1, &other, &why), E_NOMEM);
    assert_null(other);
    assert_non_null(strstr(why.text, "work memory"));
    ops->release(st, all);
    /* A lease: what is in it goes with it. */
    TWIN_OK(ops->alloc(st, 2048, &lease, e));
    TWIN_OK(ops->within(st, lease, e));
    TWIN_OK(ops->alloc(st, 1000, &in[0], e));
    TWIN_OK(ops->alloc(st, 700, &in[1], e));
    assert_true((char *)in[0] > (char *)lease && (char *)in[1] + 700 <= (char *)lease + 2048);
    assert_int_equal(ops->alloc(st, 1, &in[2], &why), E_NOMEM);
    assert_non_null(strstr(why.text, "this request"));
    ops->release(st, in[0]);
    TWIN_OK(ops->alloc(st, 1024, &in[2], e));
    TWIN_OK(ops->within(st, NULL, e));
    TWIN_OK(ops->alloc(st, BYTES - 2048, &other, e));
    ops->release(st, in[1]);
    TWIN_OK(ops->within(st, lease, e));
    TWIN_OK(ops->alloc(st, 700, &in[1], e));
    ops->release(st, lease);
    TWIN_OK(ops->alloc(st, 2048, &lease, e));  /* and nothing is taken within it any more */
    ops->release(st, lease);
    ops->release(st, other);
    assert_int_equal(ops->within(st, early, &why), E_INTERNAL);
    TWIN_OK(ops->within(st, NULL, e));
    TWIN_OK(ops->alloc(st, BYTES, &all, e));
    /* Lists and room are as large as they were planned. */
    assert_int_equal(ops->gather(st, &(struct gather_args){ .x = all, .row = many, .n = 1 << 20, .d = 1, .y = early }, &why), E_NOMEM);
    assert_non_null(strstr(why.text, "were planned"));
    ops->release(st, early);
    ops->close(&st);                           /* with a block that is out */
    free(x), free(got), free(other_x), free(many);
}

/* Values and ids exactly, whatever the rows; more rows than the room holds at once come too. */
static void test_top(void **state)
{
    (void)state;
    twin_seed("top");
    enum { N = 9, V = 5000, LD = 5003 };
    float *x = twin_floats(N * LD);
    uint8_t *allowed = twin_alloc(V);
    struct top_row *got[SIDES];
    for (int i = 0; i < N * LD; i++) x[i] = i % 7 ? twin_float() : i % 3 ? NAN : 0.5f;
    for (int i = 0; i < V; i++) allowed[i] = twin_below(9) > 0;
    EACH_SIDE(s) {
        const struct ops *ops = side[s]->ops;
        const float *X = floats_there(s, x, N * LD);
        const void *may = there(s, allowed, V);
        got[s] = twin_alloc(2 * N * sizeof *got[s]);
        TWIN_OK(ops->top(side[s], &(struct top_args){ .x = X, .ldx = LD, .n = N, .V = V, .allowed = may, .out = got[s] }, e));
        TWIN_OK(ops->top(side[s], &(struct top_args){ .x = X, .ldx = LD, .n = N, .V = 40, .out = got[s] + N }, e));
        struct err why;
        assert_int_equal(ops->top(side[s], &(struct top_args){ .x = X, .n = 1, .out = got[s] }, &why), E_ARG);
        gone(s, X), gone(s, may);
    }
    for (int r = 0; r < 2 * N; r++) {
        assert_memory_equal(got[CPU][r].best, got[CUDA][r].best, sizeof got[CPU][r].best);
        assert_true(fabs(got[CPU][r].norm - got[CUDA][r].norm) <= 1e-12 * fabs(got[CPU][r].norm));
        assert_true((got[CPU][r].best[OPS_TOP - 1].id < 0) == (r >= N));
    }
    free(got[CPU]), free(got[CUDA]), free(x), free(allowed);
}

static int open_sides(void **state)
{
    (void)state;
    simt_device("../simt");
    const struct stream_options cuda = { .device = "cuda", .n_threads = 2 };
    side[CPU] = twin_open(NULL, 2);
    TWIN_OK(stream_open(&cuda, &side[CUDA], e));
    return 0;
}
static int close_sides(void **state)
{
    (void)state;
    EACH_SIDE(s) {
        side[s]->ops->close(&side[s]);
        assert_null(side[s]);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory), cmocka_unit_test(test_linear),   cmocka_unit_test(test_rows_alone), cmocka_unit_test(test_rows),
        cmocka_unit_test(test_pages),  cmocka_unit_test(test_segments), cmocka_unit_test(test_choices),    cmocka_unit_test(test_lists),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_device_lists), cmocka_unit_test(test_later),
        cmocka_unit_test(test_reserved),
        cmocka_unit_test(test_top),
    };
    return cmocka_run_group_tests_name("the table of CUDA", tests, open_sides, close_sides);
}
