/* tests/kernels/test_cuda_top.c - kernels/cuda/top.cu on the CPU (simt.h) against the CPU's op: the same ids and values exactly, of
 * rows with ties inside and across segments, NaN, infinities, -0, few that may be chosen, and the sum of all. */
#include "tests/kernels/cuda.h"

static void test_top(void **state)
{
    (void)state;
    twin_seed("top");
    struct stream *cpu = twin_open(NULL, 1);
    static const uint32_t Vs[] = { 1, 2, 63, 64, 65, 2047, 2048, 2049, 4096, 5000, 70000 };
    static const float special[] = { 0.0f, -0.0f, NAN, -NAN, INFINITY, -INFINITY, 1e-42f, -1e-42f, 3e38f, -3e38f };
    for (uint32_t v = 0; v < 5 * sizeof Vs / sizeof *Vs; v++) {
        const uint32_t V = Vs[v / 5], style = v % 5, n = V > 5000 ? 1 : 1 + twin_below(3), ldx = V + twin_below(9);
        float *x = twin_floats((size_t)n * ldx);
        uint8_t *allowed = style % 2 ? twin_alloc(V) : NULL;
        const uint32_t one_in = style == 3 ? V / 20 + 1 : 3;      /* few enough that a row is not full */
        for (uint32_t i = 0; i < n * ldx; i++)
            x[i] = style < 2 ? 20 * twin_float() : style == 2 ? (float)twin_below(40) : style == 3 ? special[twin_below(10)] : 7.25f;
        for (uint32_t i = 0; allowed && i < V; i++) allowed[i] = style == 1 ? twin_below(one_in) > 0 : twin_below(one_in) == 0;
        struct top_row *want = twin_alloc(n * sizeof *want), *got = twin_alloc(n * sizeof *got);
        const struct top_args t = { .x = x, .ldx = ldx, .n = n, .V = V, .allowed = allowed, .out = want };
        TWIN_OK(cpu->ops->top(cpu, &t, e));
        struct cuda_top_args a = { .x = x, .ldx = ldx, .n = n, .V = V, .allowed = allowed, .out = got,
                                   .n_segments = (V + CUDA_TOP_SEGMENT - 1) / CUDA_TOP_SEGMENT };
        a.key = twin_alloc((size_t)n * a.n_segments * CUDA_TOP * sizeof *a.key);
        a.sum = twin_alloc((size_t)n * a.n_segments * sizeof *a.sum);
        TWIN_OK(cuda_top(NULL, &a, e));
        for (uint32_t r = 0; r < n; r++) {
            for (uint32_t i = 0; i < OPS_TOP; i++)
                if (got[r].best[i].id != want[r].best[i].id || got[r].best[i].logit != want[r].best[i].logit)
                    fail_msg("case %u, V %u, row %u: place %u is %d (%g), not %d (%g)", v, V, r, i, got[r].best[i].id,
                             (double)got[r].best[i].logit, want[r].best[i].id, (double)want[r].best[i].logit);
            if (isfinite(want[r].norm) && fabs(got[r].norm - want[r].norm) > 1e-12 * (1 + fabs(want[r].norm)))
                fail_msg("case %u, V %u, row %u: the sum is %.17g, not %.17g", v, V, r, got[r].norm, want[r].norm);
        }
        free(x), free(allowed), free(want), free(got), free(a.key), free(a.sum);
    }
    cpu->ops->close(&cpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_top) };
    return cmocka_run_group_tests_name("cuda top", tests, NULL, NULL);
}
