/* tests/kernels/test_cuda_scores.c - kernels/cuda/scores.cu and plain.cu on the CPU (simt.h): against softmax in double over the
 * values that are multiplied; what all keys receive sums to the number of rows. */
#include "tests/kernels/cuda_paged.h"

static void check_scores(unsigned compute)
{
    simt_compute = compute;
    twin_seed("scores");
    static const struct { uint32_t n, n_q, G, group, D; float loud; bool f32; } cases[] = {
        { 1, 1, 1, 1, 64, 1 },      { 64, 3, 2, 7, 64, 4 },    { 65, 17, 1, 8, 128, 4 },   { 127, 1, 1, 7, 128, 60 },
        { 129, 20, 1, 3, 64, 0 },   { 300, 10, 1, 7, 128, 4 }, { 1030, 4, 1, 2, 128, 2 },  { 2100, 5, 1, 1, 64, 4 },
        { 70, 0, 1, 2, 64, 1 },     { 700, 90, 1, 7, 64, 4 },   { 200, 80, 2, 4, 128, 4 },
        { 130, 9, 2, 3, 24, 4 },   { 70, 5, 1, 7, 128, 4, true }, { 31, 31, 1, 1, 64, 4, true },
    };
    for (uint32_t v = 0; v < sizeof cases / sizeof cases[0]; v++) {
        if (twin_small() && cases[v].n > 700) continue;
        const uint32_t n = cases[v].n, n_q = cases[v].n_q, G = cases[v].G, group = cases[v].group, D = cases[v].D, H = G * group;
        struct cuda_paged p = cuda_paged_new(1, &n, G, D, cases[v].f32 ? DT_F32 : DT_BF16);
        const bool half = !cases[v].f32, tensor = half && D % 64 == 0;
        const size_t ldq = (size_t)H * D + v % 2 * 5;
        float *q = twin_random_floats(n_q * ldq), *partial = twin_floats((size_t)G * n);
        uint32_t *visible = twin_alloc(n_q * sizeof *visible);
        double *want = calloc((size_t)G * n, sizeof *want), *prob = calloc(n, sizeof *prob), total = 0;
        for (size_t i = 0; i < n_q * ldq; i++) q[i] *= cases[v].loud;
        for (uint32_t i = 0; i < n_q; i++) visible[i] = n - n_q + i + 1 > 200 && v % 2 ? n - n_q + i + 1 - 150 : n - n_q + i + 1;
        for (uint32_t i = 0; i < n_q; i++)
            for (uint32_t h = 0; h < H; h++) {
                double top = -INFINITY, sum = 0;
                for (uint32_t j = 0; j < visible[i]; j++) {
                    const float *k = p.kv[0] + ((size_t)j * 2 * G + h / group) * D;
                    prob[j] = 0;
                    for (uint32_t c = 0; c < D; c++) {
                        const float x = q[i * ldq + (size_t)h * D + c];
                        prob[j] += (double)(tensor ? twin_round_bf16(x) : x) * (half ? twin_round_bf16(k[c]) : k[c]) * 0.1f;
                    }
                    if (prob[j] > top) top = prob[j];
                }
                for (uint32_t j = 0; j < visible[i]; j++) sum += prob[j] = exp(prob[j] - top);
                for (uint32_t j = 0; j < visible[i]; j++) want[h / group * (size_t)n + j] += prob[j] / sum;
            }
        const uint32_t n_splits = (cuda_pages_of(n) + CUDA_STATS_PAGES - 1) / CUDA_STATS_PAGES;
        const struct cuda_query_scores_args a = { q, ldq, n_q, H, 0.1f, p.pages, p.page, visible, n, partial, n_splits,
                                                  twin_floats((size_t)n_splits * n_q * H * 2), twin_floats((size_t)n_q * H) };
        TWIN_OK(cuda_query_scores(NULL, &a, e));
        twin_near(partial, want, (size_t)G * n, 1e-5, "scores");
        for (size_t i = 0; i < (size_t)G * n; i++) total += partial[i];
        if (fabs(total - (double)n_q * H) > 1e-5 * n_q * H) fail_msg("case %u: all keys receive %.9g of %u rows", v, total, n_q * H);
        free(q), free(partial), free(visible), free(want), free(prob), free(a.part), free(a.lse);
        cuda_paged_free(&p);
    }
    struct err e = { 0 };
    const struct cuda_query_scores_args odd = { .H = 2, .pages = { .G = 1, .D = 31, .dtype = DT_BF16 } };
    assert_int_equal(cuda_query_scores(NULL, &odd, &e), E_ARG);
}

static void test_scores(void **state)
{
    (void)state;
    check_scores(80);
}
static void test_scores_hopper(void **state)
{
    (void)state;
    check_scores(90);
    simt_compute = 80;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_scores), cmocka_unit_test(test_scores_hopper) };
    return cmocka_run_group_tests_name("cuda scores", tests, NULL, NULL);
}
