/* tests/kernels/test_attention.c - causal attention over pages, prefill and decode.
 * Method: random sequences in NaN-filled pages against softmax in double on every instruction set, then
 * the same rows in other batches, pieces, places and thread counts, which must give the same bits. */
#include "tests/kernels/paged.h"

/* Run rows [begin[s], begin[s] + n[s]) of each sequence's queries q[s] [*, H*D]; the operand's content
 * [rows, H*D]. */
static float *run(struct stream *st, const struct paged *p, float *const *q, uint32_t *const *visible,
                  uint32_t H, float scale, const uint32_t *begin, const uint32_t *n, enum dtype compute,
                  bool decode)
{
    const uint32_t k = H * p->shape.D, ld = k + 5; /* a stride that is not the width */
    uint32_t seq_start[PAGED_SEQS + 1] = { 0 }, most = 1;
    for (uint32_t s = 0; s < p->n_seqs; s++) {
        seq_start[s + 1] = seq_start[s] + n[s];
        if (p->n_keys[s] > most) most = p->n_keys[s];
    }
    const uint32_t rows = seq_start[p->n_seqs];
    float *x = twin_floats((size_t)rows * ld);
    uint32_t *see = calloc(rows + 1, sizeof *see);
    for (uint32_t s = 0; s < p->n_seqs; s++)
        for (uint32_t i = 0; i < n[s]; i++) {
            memcpy(x + (size_t)(seq_start[s] + i) * ld, q[s] + (size_t)(begin[s] + i) * k, k * sizeof *x);
            see[seq_start[s] + i] = visible[s][begin[s] + i];
        }
    struct operand out = twin_operand(st, rows, k, compute);
    void *scratch;
    TWIN_OK(st->ops->alloc(st, st->ops->attention_scratch(st, H, p->shape.D, rows, most), &scratch, e));
    memset(scratch, 0xff, st->ops->attention_scratch(st, H, p->shape.D, rows, most));
    const struct attention_args a = { .q = x,
                                      .ldq = ld,
                                      .H = H,
                                      .scale = scale,
                                      .shape = p->shape,
                                      .n_seqs = p->n_seqs,
                                      .seq_start = seq_start,
                                      .visible = see,
                                      .view = p->view,
                                      .out = &out,
                                      .scratch = scratch };
    TWIN_OK(decode ? st->ops->attention_decode(st, &a, e) : st->ops->attention(st, &a, e));
    float *y = twin_unpack(st, &out);
    st->ops->release(st, scratch);
    free(x), free(see), free(out.data);
    return y;
}

/* Queries and what they see: the last n_q rows causally, or (gaps) any ascending numbers, as after
 * pruning. */
static void queries(const struct paged *p, uint32_t H, const uint32_t *n_q, bool gaps, float **q,
                    uint32_t **visible)
{
    for (uint32_t s = 0; s < p->n_seqs; s++) {
        q[s] = twin_random_floats((size_t)n_q[s] * H * p->shape.D);
        for (size_t i = 0; i < (size_t)n_q[s] * H * p->shape.D; i++) q[s][i] *= 4.0f;
        visible[s] = calloc(n_q[s] + 1, sizeof **visible);
        for (uint32_t i = 0; i < n_q[s]; i++) visible[s][i] = p->n_keys[s] - n_q[s] + i + 1;
        for (uint32_t i = n_q[s]; gaps && i-- > 0;)
            if (twin_below(3) == 0)
                for (uint32_t c = 0, less = twin_below(40); c <= i; c++)
                    visible[s][c] = visible[s][c] > less ? visible[s][c] - less : 1;
    }
}

static double *reference(const struct paged *p, const char *isa, float *const *q, uint32_t *const *visible,
                         uint32_t H, float scale, const uint32_t *n_q)
{
    const uint32_t D = p->shape.D, group = H / p->shape.G;
    size_t rows = 0, at = 0;
    uint32_t most = 1;
    for (uint32_t s = 0; s < p->n_seqs; s++) rows += n_q[s], most = p->n_keys[s] > most ? p->n_keys[s] : most;
    double *y = calloc(rows * H * D + 1, sizeof *y), *prob = calloc(most, sizeof *prob);
    for (uint32_t s = 0; s < p->n_seqs; s++)
        for (uint32_t i = 0; i < n_q[s]; i++)
            for (uint32_t h = 0; h < H; h++, at += D) {
                paged_softmax(p, s, h / group, q[s] + ((size_t)i * H + h) * D,
                              paged_rounds(isa, p->shape.dtype), scale, visible[s][i], prob);
                for (uint32_t j = 0; j < visible[s][i]; j++)
                    for (uint32_t c = 0; c < D; c++) y[at + c] += prob[j] * paged_v(p, s, j, h / group, c);
            }
    free(prob);
    return y;
}

static void free_all(uint32_t n_seqs, float **q, uint32_t **visible)
{
    for (uint32_t s = 0; s < n_seqs; s++) free(q[s]), free(visible[s]);
}

static const struct {
    uint32_t G, group, D;
} shapes[] = {
    { 1, 1, 16 },  { 2, 7, 64 }, { 1, 8, 24 },  { 2, 3, 32 },
    { 1, 1, 128 }, { 2, 2, 2 },  { 1, 13, 80 }, { 2, 1, 96 },
};
#define N_SHAPES (sizeof shapes / sizeof shapes[0])

/* What the result may differ by: f32 sums, or probabilities rounded to bf16. */
static double tolerance(const char *isa, enum dtype pages, enum dtype compute)
{
    if (compute == DT_BF16 && paged_rounds(isa, DT_BF16)) return 8e-3;
    return paged_rounds(isa, pages) ? 4e-3 : 2e-6;
}

static void prefill_body(struct stream *st, const char *isa)
{
    static const uint32_t lengths[][2] = {
        /* keys, of which the last are queries */
        { 1, 1 },    { 15, 15 },  { 16, 16 },  { 17, 17 },   { 31, 31 }, { 32, 32 }, { 33, 33 },
        { 255, 40 }, { 256, 97 }, { 257, 12 }, { 700, 110 }, { 513, 1 }, { 300, 0 }, { 0, 0 },
    };
    for (uint32_t v = 0; v < 40; v++) {
        const uint32_t G = shapes[v % N_SHAPES].G, H = G * shapes[v % N_SHAPES].group,
                       D = shapes[v % N_SHAPES].D;
        const enum dtype dtype = v / N_SHAPES % 2 ? DT_BF16 : DT_F32, compute = v % 3 ? DT_F32 : dtype;
        const uint32_t n_seqs = v % 3 + 1;
        uint32_t n_keys[PAGED_SEQS], n_q[PAGED_SEQS], begin[PAGED_SEQS] = { 0 }, *visible[PAGED_SEQS];
        size_t rows = 0;
        for (uint32_t s = 0; s < n_seqs; s++) {
            const uint32_t *l = lengths[(v + 5 * s) % (sizeof lengths / sizeof lengths[0])];
            n_keys[s] = l[0], n_q[s] = l[1], rows += l[1];
        }
        struct paged p = paged_new(st, n_seqs, n_keys, G, D, dtype);
        float *q[PAGED_SEQS], scale = 1.0f / sqrtf((float)D);
        queries(&p, H, n_q, v % 2, q, visible);
        float *y = run(st, &p, q, visible, H, scale, begin, n_q, compute, false);
        double *want = reference(&p, isa, q, visible, H, scale, n_q);
        char what[96];
        snprintf(what, sizeof what, "%s case %u: %u/%u heads of %u, dtype %d", isa, v, H, G, D, (int)dtype);
        twin_near(y, want, rows * H * D, tolerance(isa, dtype, compute), what);
        free(y), free(want);
        free_all(n_seqs, q, visible);
        paged_free(st, &p);
    }
}

/* Prefill against double. */
static void test_prefill(void **state)
{
    (void)state;
    twin_seed("prefill");
    twin_each(2, prefill_body);
}

static void decode_body(struct stream *st, const char *isa)
{
    static const uint32_t lengths[] = { 1, 15, 16, 17, 33, 255, 256, 257, 511, 512, 513, 700, 1025, 2100 };
    for (uint32_t v = 0; v < 32; v++) {
        const uint32_t G = shapes[v % N_SHAPES].G, H = G * shapes[v % N_SHAPES].group,
                       D = shapes[v % N_SHAPES].D;
        const enum dtype dtype = v / N_SHAPES % 2 ? DT_BF16 : DT_F32;
        const uint32_t n_seqs = v % 4 + 1, ones[PAGED_SEQS] = { 1, 1, 1, 1 };
        uint32_t n_keys[PAGED_SEQS], begin[PAGED_SEQS] = { 0 }, *visible[PAGED_SEQS];
        for (uint32_t s = 0; s < n_seqs; s++)
            n_keys[s] = lengths[(v + 3 * s) % (sizeof lengths / sizeof lengths[0])];
        struct paged p = paged_new(st, n_seqs, n_keys, G, D, dtype);
        float *q[PAGED_SEQS], scale = 1.0f / sqrtf((float)D);
        queries(&p, H, ones, false, q, visible);
        float *y = run(st, &p, q, visible, H, scale, begin, ones, DT_F32, true);
        double *want = reference(&p, isa, q, visible, H, scale, ones);
        char what[96];
        snprintf(what, sizeof what, "%s decode case %u: %u/%u heads of %u, dtype %d", isa, v, H, G, D,
                 (int)dtype);
        twin_near(y, want, (size_t)n_seqs * H * D, tolerance(isa, dtype, DT_F32), what);
        free(y), free(want);
        free_all(n_seqs, q, visible);
        paged_free(st, &p);
    }
}

/* Decode against double. */
static void test_decode(void **state)
{
    (void)state;
    twin_seed("decode");
    twin_each(2, decode_body);
}

/* One sequence of a batch alone. */
static struct paged only(const struct paged *p, uint32_t s)
{
    return (struct paged){
        .n_seqs = 1, .n_keys = { p->n_keys[s] }, .shape = p->shape, .view = { p->view[s] }, .kv = { p->kv[s] }
    };
}

static void bits_body(struct stream *unused, const char *isa)
{
    (void)unused;
    struct stream *one = twin_open(isa, 1);
    for (uint32_t v = 0; v < 12; v++) {
        const uint32_t G = shapes[v % N_SHAPES].G, H = G * shapes[v % N_SHAPES].group,
                       D = shapes[v % N_SHAPES].D;
        const enum dtype dtype = v % 2 ? DT_BF16 : DT_F32;
        const uint32_t n_keys[PAGED_SEQS] = { 130 + twin_below(400), 1 + twin_below(40),
                                              1 + twin_below(300) };
        uint32_t n_q[PAGED_SEQS], *visible[PAGED_SEQS];
        for (uint32_t s = 0; s < 3; s++) n_q[s] = 1 + twin_below(n_keys[s] < 130 ? n_keys[s] : 130);
        struct paged p = paged_new(one, 3, n_keys, G, D, dtype);
        float *q[PAGED_SEQS], *want[PAGED_SEQS], scale = 0.3f;
        queries(&p, H, n_q, v % 3 == 0, q, visible);
        for (uint32_t s = 0; s < 3; s++) {
            struct paged alone = only(&p, s);
            want[s] =
                run(one, &alone, q + s, visible + s, H, scale, (uint32_t[]){ 0 }, n_q + s, DT_F32, false);
        }
        for (uint32_t t = 1; t <= 3; t++) {
            struct stream *st = twin_open(isa, (int)t);
            uint32_t begin[PAGED_SEQS] = { 0 }, left = n_q[0] + n_q[1] + n_q[2];
            while (left > 0) { /* pieces of random sizes, all sequences in one batch */
                uint32_t n[PAGED_SEQS] = { 0 }, row = 0;
                for (uint32_t s = 0; s < 3; s++) n[s] = twin_below(n_q[s] - begin[s] + 1), left -= n[s];
                float *y = run(st, &p, q, visible, H, scale, begin, n, DT_F32, false);
                for (uint32_t s = 0; s < 3; s++) {
                    twin_same(y + (size_t)row * H * D, want[s] + (size_t)begin[s] * H * D,
                              (size_t)n[s] * H * D, isa);
                    row += n[s], begin[s] += n[s];
                }
                free(y);
            }
            st->ops->close(&st);
        }
        for (uint32_t s = 0; s < 3; s++) free(want[s]);
        free_all(3, q, visible);
        paged_free(one, &p);
    }
    one->ops->close(&one);
}

/* A row has the same bits alone on one thread, and in any piece of any batch on one to three. */
static void test_prefill_bits(void **state)
{
    (void)state;
    twin_seed("prefill bits");
    twin_each(1, bits_body);
}

static void decode_bits_body(struct stream *one, const char *isa)
{
    const uint32_t ones[PAGED_SEQS] = { 1, 1, 1, 1 }, zeros[PAGED_SEQS] = { 0 };
    for (uint32_t v = 0; v < 2 * N_SHAPES; v++) {
        const uint32_t G = shapes[v % N_SHAPES].G, H = G * shapes[v % N_SHAPES].group,
                       D = shapes[v % N_SHAPES].D;
        const uint32_t n_keys[PAGED_SEQS] = { 1 + twin_below(3000), 1 + twin_below(600), 1 + twin_below(20),
                                              512 };
        uint32_t *visible[PAGED_SEQS];
        struct paged p = paged_new(one, 4, n_keys, G, D, v % 2 ? DT_BF16 : DT_F32);
        float *q[PAGED_SEQS], *want[PAGED_SEQS];
        queries(&p, H, ones, false, q, visible);
        for (uint32_t s = 0; s < 4; s++) {
            struct paged alone = only(&p, s);
            want[s] = run(one, &alone, q + s, visible + s, H, 0.3f, zeros, ones, DT_F32, true);
        }
        for (uint32_t t = 1; t <= 3; t++) {
            struct stream *st = twin_open(isa, (int)t);
            float *y = run(st, &p, q, visible, H, 0.3f, zeros, ones, DT_F32, true);
            for (uint32_t s = 0; s < 4; s++) twin_same(y + (size_t)s * H * D, want[s], (size_t)H * D, isa);
            free(y);
            st->ops->close(&st);
        }
        for (uint32_t s = 0; s < 4; s++) free(want[s]);
        free_all(4, q, visible);
        paged_free(one, &p);
    }
}

/* A decoded row has the same bits alone and in a batch, on one to three threads. */
static void test_decode_bits(void **state)
{
    (void)state;
    twin_seed("decode bits");
    twin_each(1, decode_bits_body);
}

static void many_body(struct stream *st, const char *isa)
{
    /* 600 sequences of 30 keys: more partial results than one round of decode holds. All share their
     * pages, so all rows with equal queries must agree. */
    enum { N = 600, H = 14, D = 16 };
    uint32_t n_keys[1] = { 30 }, seq_start[N + 1], visible[N];
    struct paged p = paged_new(st, 1, n_keys, 2, D, DT_F32);
    struct kv_view view[N];
    float *q = twin_floats((size_t)N * H * D), *one = twin_random_floats((size_t)H * D);
    for (uint32_t s = 0; s < N; s++) {
        seq_start[s] = s, visible[s] = 30, view[s] = p.view[0];
        memcpy(q + (size_t)s * H * D, one, H * D * sizeof *q);
    }
    seq_start[N] = N;
    struct operand out = twin_operand(st, N, H * D, DT_F32);
    void *scratch = twin_alloc(st->ops->attention_scratch(st, H, D, N, 30));
    const struct attention_args a = { .q = q,
                                      .ldq = H * D,
                                      .H = H,
                                      .scale = 1.0f,
                                      .shape = p.shape,
                                      .n_seqs = N,
                                      .seq_start = seq_start,
                                      .visible = visible,
                                      .view = view,
                                      .out = &out,
                                      .scratch = scratch };
    TWIN_OK(st->ops->attention_decode(st, &a, e));
    float *y = twin_unpack(st, &out);
    for (uint32_t s = 1; s < N; s++) twin_same(y, y + (size_t)s * H * D, (size_t)H * D, isa);
    assert_false(isnan(y[0]));
    free(q), free(one), free(y), free(out.data), free(scratch);
    paged_free(st, &p);
}

/* More rows than one round of decode holds. */
static void test_many_sequences(void **state)
{
    (void)state;
    twin_seed("many");
    twin_each(2, many_body);
}

/* Wrong shapes are refused, and said. */
static void test_refused(void **state)
{
    (void)state;
    struct stream *st = twin_open(NULL, 1);
    const uint32_t n_keys[1] = { 20 }, seq_start[2] = { 0, 2 };
    struct paged p = paged_new(st, 1, n_keys, 2, 16, DT_F32);
    struct operand out = twin_operand(st, 2, 64, DT_F32);
    float *q = twin_random_floats(2 * 64);
    void *scratch = twin_alloc(st->ops->attention_scratch(st, 4, 16, 2, 20));
    static const struct {
        uint32_t H, D, see[2];
    } bad[] = {
        { 3, 16, { 19, 20 } }, { 4, 15, { 19, 20 } }, { 4, 514, { 19, 20 } }, { 4, 16, { 0, 20 } },
        { 4, 16, { 19, 21 } }, { 4, 16, { 20, 19 } }, { 2, 16, { 19, 20 } },
    };
    for (uint32_t i = 0; i <= sizeof bad / sizeof bad[0]; i++) {
        struct attention_args a = { .q = q,
                                    .ldq = 64,
                                    .H = 4,
                                    .scale = 1.0f,
                                    .shape = p.shape,
                                    .n_seqs = 1,
                                    .seq_start = seq_start,
                                    .visible = (const uint32_t[]){ 19, 20 },
                                    .view = p.view,
                                    .out = &out,
                                    .scratch = scratch };
        struct err e = { 0 };
        if (i < sizeof bad / sizeof bad[0]) {
            a.H = bad[i].H, a.shape.D = bad[i].D, a.visible = bad[i].see;
            assert_int_equal(st->ops->attention(st, &a, &e), E_ARG);
            assert_true(strlen(e.text) > 10);
        } else {
            assert_int_equal(st->ops->attention(st, &a, &e), OK);
            assert_int_equal(st->ops->attention_decode(st, &a, &e), E_ARG); /* two rows of one sequence */
        }
    }
    free(q), free(scratch), free(out.data);
    paged_free(st, &p);
    st->ops->close(&st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill),        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_prefill_bits),   cmocka_unit_test(test_decode_bits),
        cmocka_unit_test(test_many_sequences), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
