/* tests/kernels/test_cuda_attention.c - kernels/cuda/attention.cu and plain.cu on the CPU (simt.h): random sequences in
 * NaN-filled pages against softmax in double over the values that are multiplied (tensor cores: q, K and V rounded to bf16, and
 * the tolerance that of probabilities rounded before they meet V; plain: what the pages hold); then the same rows alone, which
 * must give the same bits. */
#include "tests/kernels/cuda_paged.h"

struct batch {
    uint32_t n_seqs, H, rows;
    const struct cuda_paged *p;
    struct cuda_seq seq[CUDA_SEQS];
    uint32_t *visible;
    float *q;                     /* [rows, ldq] */
    size_t ldq;
};

/* n_q rows of each sequence: the last ones causally, or with gaps: any ascending numbers, as after pruning. */
static struct batch batch_new(const struct cuda_paged *p, uint32_t H, const uint32_t *n_q, bool gaps, float loud)
{
    struct batch b = { .n_seqs = p->n_seqs, .H = H, .p = p, .ldq = (size_t)H * p->pages.D + (gaps ? 3 : 0) };
    for (uint32_t s = 0; s < p->n_seqs; s++) b.rows += n_q[s];
    b.q = twin_random_floats(b.rows * b.ldq);
    for (size_t i = 0; i < b.rows * b.ldq; i++) b.q[i] *= loud;
    b.visible = twin_alloc(b.rows * sizeof *b.visible);
    for (uint32_t s = 0, row = 0; s < p->n_seqs; row += n_q[s], s++) {
        b.seq[s] = (struct cuda_seq){ row, n_q[s], p->n_keys[s], p->at[s] };
        uint32_t less = 0;
        for (uint32_t i = n_q[s]; i-- > 0;) {
            const uint32_t most = p->n_keys[s] - (n_q[s] - 1 - i);
            if (gaps && twin_below(4) == 0) less += twin_below(30);
            b.visible[row + i] = most > less ? most - less : 1;
        }
    }
    return b;
}
static void batch_free(struct batch *b) { free(b->visible), free(b->q); }

static float *run(const struct batch *b, bool decode, enum dtype out_dtype)
{
    const uint32_t group = b->H / b->p->pages.G, each = decode ? CUDA_SPLIT_PAGES : CUDA_TILE_ROWS;
    const size_t n = (size_t)b->rows * b->H * b->p->pages.D;
    struct cuda_tile *tile = twin_alloc(1000 * sizeof *tile);
    struct cuda_seq *seq = cuda_copy(b->seq, sizeof b->seq);
    uint32_t n_tiles = 0, *first_item = twin_alloc(CUDA_SEQS * sizeof *first_item);
    for (uint32_t s = 0; s < b->n_seqs; s++) {
        const uint32_t end = decode ? cuda_pages_of(b->visible[b->seq[s].row]) : b->seq[s].n_rows * group;
        first_item[s] = n_tiles;
        for (uint32_t i = 0; i < end; i += each) tile[n_tiles++] = (struct cuda_tile){ s, i };
    }
    assert_true(n_tiles <= 1000);
    for (uint32_t i = 0; i < n_tiles && !decode; i++) {               /* tiles may come in any order */
        const uint32_t j = twin_below(i + 1);
        const struct cuda_tile t = tile[i];
        tile[i] = tile[j];
        tile[j] = t;
    }
    void *out = twin_alloc(n * dtype_size(out_dtype));
    struct cuda_attention_args a = { b->q, b->ldq, b->H, 0.1f, b->p->pages, seq, b->p->page, b->visible, tile, b->n_seqs, n_tiles,
                                     out, out_dtype, first_item, NULL, NULL };
    a.part = twin_floats((size_t)n_tiles * b->H * b->p->pages.D);
    a.part_stats = twin_floats((size_t)n_tiles * b->H * 2);
    if (decode)
        TWIN_OK(cuda_attention_decode(NULL, &a, e));
    else
        TWIN_OK(cuda_attention(NULL, &a, e));
    float *y = cuda_read(out, n, out_dtype);
    free(tile), free(out), free(a.part), free(a.part_stats), free(seq), free(first_item);
    return y;
}

static float rounded(float x, bool half) { return half ? twin_round_bf16(x) : x; }

static void check(const struct batch *b, const float *y, bool tensor, enum dtype out_dtype, const char *what)
{
    const bool half = b->p->pages.dtype == DT_BF16;
    const uint32_t D = b->p->pages.D, G = b->p->pages.G, group = b->H / G;
    const size_t n = (size_t)b->rows * b->H * D;
    double *want = calloc(n, sizeof *want), off = 0, all = 0, *prob = calloc(2000, sizeof *prob);
    for (uint32_t s = 0; s < b->n_seqs; s++)
        for (uint32_t i = 0; i < b->seq[s].n_rows; i++)
            for (uint32_t h = 0; h < b->H; h++) {
                const uint32_t row = b->seq[s].row + i, see = b->visible[row];
                const float *q = b->q + row * b->ldq + (size_t)h * D;
                double *y0 = want + ((size_t)row * b->H + h) * D, top = -INFINITY, sum = 0;
                for (uint32_t j = 0; j < see; j++) {
                    const float *k = b->p->kv[s] + ((size_t)j * 2 * G + h / group) * D;
                    prob[j] = 0;
                    for (uint32_t c = 0; c < D; c++) prob[j] += (double)rounded(q[c], tensor) * rounded(k[c], half) * 0.1f;
                    if (prob[j] > top) top = prob[j];
                }
                for (uint32_t j = 0; j < see; j++) sum += prob[j] = exp(prob[j] - top);
                for (uint32_t j = 0; j < see; j++) {
                    const float *v = b->p->kv[s] + ((size_t)j * 2 * G + G + h / group) * D;
                    for (uint32_t c = 0; c < D; c++) y0[c] += prob[j] / sum * rounded(v[c], half);
                }
            }
    twin_near(y, want, n, out_dtype == DT_BF16 ? 6e-3 : tensor ? 4e-3 : 1e-5, what);
    for (size_t i = 0; i < n; i++) off += (y[i] - want[i]) * (y[i] - want[i]), all += want[i] * want[i];
    if (sqrt(off / all) > 4e-3) fail_msg("%s: off by %.3g in all", what, sqrt(off / all));
    free(want), free(prob);
}

static void check_prefill(unsigned compute)
{
    simt_compute = compute;
    twin_seed("prefill");
    static const struct { uint32_t n_keys[3], n_q[3], G, group, D; bool gaps; float loud; bool f32; } cases[] = {
        { { 1, 64, 0 }, { 1, 64, 0 }, 1, 1, 64, false, 4 },     { { 65, 17, 63 }, { 65, 1, 16 }, 2, 7, 128, false, 4 },
        { { 200, 128, 1 }, { 33, 0, 1 }, 1, 7, 128, true, 4 },  { { 129, 70, 0 }, { 40, 15, 0 }, 1, 3, 64, true, 60 },
        { { 90, 300, 64 }, { 5, 20, 30 }, 1, 4, 128, true, 1 }, { { 257, 2, 0 }, { 2, 2, 0 }, 2, 8, 64, false, 0 },
        { { 129, 31, 1 }, { 20, 31, 1 }, 2, 2, 128, true, 4, true }, { { 70, 33, 0 }, { 7, 33, 0 }, 1, 3, 24, false, 4 },
        { { 65, 64, 0 }, { 5, 2, 0 }, 1, 2, 256, true, 4, true }, { { 40, 0, 0 }, { 40, 0, 0 }, 1, 1, 2, false, 4, false },
        { { 700, 600, 0 }, { 30, 1, 0 }, 1, 7, 128, true, 4 },  { { 129, 1100, 0 }, { 129, 3, 0 }, 1, 2, 64, false, 4 },
    };
    for (uint32_t v = 0; v < sizeof cases / sizeof cases[0]; v++) {
        if (twin_small() && cases[v].n_keys[0] + cases[v].n_keys[1] + cases[v].n_keys[2] > 1000) continue;
        const enum dtype out = v % 2 ? DT_BF16 : DT_F32;
        struct cuda_paged p = cuda_paged_new(3, cases[v].n_keys, cases[v].G, cases[v].D, cases[v].f32 ? DT_F32 : DT_BF16);
        struct batch b = batch_new(&p, cases[v].G * cases[v].group, cases[v].n_q, cases[v].gaps, cases[v].loud);
        float *y = run(&b, false, out);
        check(&b, y, !cases[v].f32 && cases[v].D % 64 == 0, out, "attention");
        /* the middle rows of the first sequence alone */
        const uint32_t skip = b.seq[0].n_rows / 3, n = b.seq[0].n_rows - skip, width = b.H * p.pages.D;
        struct batch one = b;
        one.n_seqs = 1, one.rows = n, one.q += skip * one.ldq, one.visible += skip, one.seq[0].n_rows = n;
        float *alone = run(&one, false, out);
        twin_same(alone, y + (size_t)skip * width, (size_t)n * width, "rows alone");
        free(y), free(alone);
        batch_free(&b), cuda_paged_free(&p);
    }
}

static void test_prefill(void **state)
{
    (void)state;
    check_prefill(80);
}
static void test_prefill_hopper(void **state)
{
    (void)state;
    check_prefill(90);
    simt_compute = 80;
}

static void test_decode(void **state)
{
    (void)state;
    twin_seed("decode");
    static const struct { uint32_t n_keys[3], G, group, D; float loud; bool f32; } cases[] = {
        { { 1, 64, 65 }, 1, 1, 64, 4 },     { { 256, 257, 700 }, 2, 7, 128, 4 }, { { 63, 1100, 128 }, 1, 16, 64, 60 },
        { { 511, 512, 513 }, 1, 9, 128, 1 }, { { 20, 300, 900 }, 4, 4, 128, 0 },
        { { 1, 300, 33 }, 1, 7, 128, 4, true }, { { 257, 31, 513 }, 1, 17, 64, 4 },
    };
    for (uint32_t v = 0; v < sizeof cases / sizeof cases[0]; v++) {
        if (twin_small() && cases[v].n_keys[0] + cases[v].n_keys[1] + cases[v].n_keys[2] > 1000) continue;
        const enum dtype out = v % 2 ? DT_BF16 : DT_F32;
        const uint32_t one_each[] = { 1, 1, 1 };
        struct cuda_paged p = cuda_paged_new(3, cases[v].n_keys, cases[v].G, cases[v].D, cases[v].f32 ? DT_F32 : DT_BF16);
        struct batch b = batch_new(&p, cases[v].G * cases[v].group, one_each, v % 2, cases[v].loud);
        float *y = run(&b, true, out);
        check(&b, y, !cases[v].f32 && cases[v].group <= 16, out, "decode");
        struct batch last = b;                                        /* the last row alone */
        const uint32_t width = b.H * p.pages.D;
        last.n_seqs = 1, last.rows = 1, last.q += 2 * b.ldq, last.visible += 2, last.seq[0] = b.seq[2], last.seq[0].row = 0;
        float *alone = run(&last, true, out);
        twin_same(alone, y + 2 * (size_t)width, width, "a row alone");
        free(y), free(alone);
        batch_free(&b), cuda_paged_free(&p);
    }
}

/* Shapes that make no sense, or that nothing was built for, are refused with the numbers. */
static void test_refused(void **state)
{
    (void)state;
    struct err e = { 0 };
    struct cuda_attention_args a = { .H = 7, .pages = { .G = 1, .D = 81, .dtype = DT_BF16 } };
    assert_int_equal(cuda_attention(NULL, &a, &e), E_ARG);
    assert_non_null(strstr(e.text, "81"));
    a.pages.D = 258;
    assert_int_equal(cuda_attention(NULL, &a, &e), E_ARG);
    a.pages.D = 64, a.pages.G = 2;
    assert_int_equal(cuda_attention(NULL, &a, &e), E_ARG);
    assert_int_equal(cuda_attention_decode(NULL, &a, &e), E_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_prefill), cmocka_unit_test(test_prefill_hopper),
                                        cmocka_unit_test(test_decode), cmocka_unit_test(test_refused) };
    return cmocka_run_group_tests_name("cuda attention", tests, NULL, NULL);
}
