/* tests/kernels/test_query_scores.c - attention that keys receive from the query rows, OmniDrop Eq. 5.
 * Method: against softmax in double; what all keys receive sums to the number of rows; one to three
 * threads and two runs give the same bits. */
#include "tests/kernels/paged.h"

static void scores(struct stream *st, const struct paged *p, const float *q, uint32_t n_q, uint32_t H,
                   const uint32_t *visible, float *partial)
{
    const size_t bytes = st->ops->attention_scratch(st, H, p->shape.D, n_q, p->n_keys[0]);
    void *scratch = twin_alloc(bytes);
    const struct query_scores_args a = { .q = q,
                                         .ldq = (size_t)H * p->shape.D,
                                         .n_q = n_q,
                                         .H = H,
                                         .scale = 0.2f,
                                         .shape = p->shape,
                                         .view = p->view[0],
                                         .visible = visible,
                                         .partial = partial,
                                         .scratch = scratch };
    TWIN_OK(st->ops->query_scores(st, &a, e));
    free(scratch);
}

static void scores_body(struct stream *st, const char *isa)
{
    static const struct {
        uint32_t n, n_q, G, group, D;
    } cases[] = {
        { 1, 1, 1, 1, 16 },    { 16, 3, 2, 7, 64 },     { 17, 17, 1, 8, 24 },  { 255, 20, 2, 3, 32 },
        { 256, 1, 2, 7, 64 },  { 257, 100, 1, 1, 128 }, { 700, 12, 2, 7, 64 }, { 2100, 9, 1, 4, 16 },
        { 600, 530, 1, 2, 2 }, { 33, 0, 2, 1, 16 },
    };
    for (uint32_t v = 0; v < 2 * sizeof cases / sizeof cases[0]; v++) {
        const uint32_t n = cases[v / 2].n, n_q = cases[v / 2].n_q, G = cases[v / 2].G,
                       group = cases[v / 2].group;
        const uint32_t D = cases[v / 2].D, H = G * group;
        const enum dtype dtype = v % 2 ? DT_BF16 : DT_F32;
        struct paged p = paged_new(st, 1, &n, G, D, dtype);
        float *q = twin_random_floats((size_t)n_q * H * D), *partial = twin_floats((size_t)G * n),
              *again = twin_floats((size_t)G * n);
        uint32_t *visible = calloc(n_q + 1, sizeof *visible);
        double *want = calloc((size_t)G * n, sizeof *want), *prob = calloc(n, sizeof *prob), total = 0.0;
        for (uint32_t i = 0; i < n_q; i++)
            visible[i] = n - n_q + i + 1 > 30 && v % 3 == 0 ? n - n_q + i + 1 - 30 : n - n_q + i + 1;
        for (uint32_t i = 0; i < n_q; i++)
            for (uint32_t h = 0; h < H; h++) {
                paged_softmax(&p, 0, h / group, q + ((size_t)i * H + h) * D, paged_rounds(isa, dtype), 0.2f,
                              visible[i], prob);
                for (uint32_t j = 0; j < visible[i]; j++) want[h / group * (size_t)n + j] += prob[j];
            }
        scores(st, &p, q, n_q, H, visible, partial);
        twin_near(partial, want, (size_t)G * n, 4e-6, isa);
        for (size_t i = 0; i < (size_t)G * n; i++) total += partial[i];
        assert_true(fabs(total - (double)n_q * H) <= 1e-5 * n_q * H);
        for (int t = 1; t <= 3; t++) {
            struct stream *other = twin_open(isa, t);
            scores(other, &p, q, n_q, H, visible, again);
            twin_same(partial, again, (size_t)G * n, isa);
            other->ops->close(&other);
        }
        free(q), free(partial), free(again), free(visible), free(want), free(prob);
        paged_free(st, &p);
    }
}

static void test_scores(void **state)
{
    (void)state;
    twin_seed("scores");
    twin_each(2, scores_body);
}

/* A row that sees nothing, or more than there is, is refused. */
static void test_refused(void **state)
{
    (void)state;
    struct stream *st = twin_open(NULL, 1);
    const uint32_t n = 20;
    struct paged p = paged_new(st, 1, &n, 1, 16, DT_F32);
    float q[32] = { 0 }, partial[20];
    void *scratch = twin_alloc(st->ops->attention_scratch(st, 1, 16, 2, n));
    static const uint32_t bad[][2] = { { 0, 1 }, { 5, 4 }, { 20, 21 } };
    for (int i = 0; i < 3; i++) {
        struct err e = { 0 };
        const struct query_scores_args a = { .q = q,
                                             .ldq = 16,
                                             .n_q = 2,
                                             .H = 1,
                                             .scale = 1.0f,
                                             .shape = p.shape,
                                             .view = p.view[0],
                                             .visible = bad[i],
                                             .partial = partial,
                                             .scratch = scratch };
        assert_int_equal(st->ops->query_scores(st, &a, &e), E_ARG);
    }
    free(scratch);
    paged_free(st, &p);
    st->ops->close(&st);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_scores), cmocka_unit_test(test_refused) };
    return cmocka_run_group_tests_name("query scores", tests, NULL, NULL);
}
