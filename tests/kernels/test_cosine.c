/* tests/kernels/test_cosine.c - cosines of pairs of rows.
 * Method: random rows against double; equal rows must give exactly 1, (i, j) and (j, i) one number,
 * whatever the number of threads; tiny rows the floor of 1e-12. */
#include "tests/kernels/twin.h"

static void cosine_body(struct stream *st, const char *isa)
{
    static const uint32_t ds[] = { 1, 3, 15, 16, 17, 33, 896, 3584 };
    for (uint32_t v = 0; v < sizeof ds / sizeof ds[0]; v++) {
        enum { ROWS = 40, N = 200 };
        const uint32_t d = ds[v];
        float *x = twin_random_floats((size_t)ROWS * d), out[N], back[N];
        uint32_t a[N], b[N];
        double want[N];
        for (uint32_t k = 0; k < d; k++) {
            x[k] = 0.0f;                                  /* row 0: zeros */
            x[d + k] *= 1e-8f;                            /* row 1: under the floor */
            x[3 * (size_t)d + k] = x[2 * (size_t)d + k];  /* rows 2, 3: equal */
            x[4 * (size_t)d + k] = -x[2 * (size_t)d + k]; /* row 4: opposite */
        }
        for (uint32_t i = 0; i < N; i++) {
            a[i] = i < 10 ? i / 2 : twin_below(ROWS), b[i] = i < 10   ? i % 5
                                                             : i < 60 ? a[i]
                                                                      : twin_below(ROWS);
            double xy = 0, xx = 0, yy = 0;
            for (uint32_t k = 0; k < d; k++) {
                const double p = x[(size_t)a[i] * d + k], q = x[(size_t)b[i] * d + k];
                xy += p * q, xx += p * p, yy += q * q;
            }
            want[i] = xy / sqrt(fmax(xx, 1e-12) * fmax(yy, 1e-12));
        }
        const struct cosine_args one = { x, d, N, a, b, out }, other = { x, d, N, b, a, back };
        TWIN_OK(st->ops->cosine(st, &one, e));
        TWIN_OK(st->ops->cosine(st, &other, e));
        twin_near(out, want, N, 1e-6, isa);
        twin_same(out, back, N, isa);
        for (uint32_t i = 0; i < N; i++)
            if (memcmp(x + (size_t)a[i] * d, x + (size_t)b[i] * d, d * sizeof *x) == 0 && a[i] > 1)
                assert_true(out[i] == 1.0f);
        struct stream *single = twin_open(isa, 1);
        const struct cosine_args again = { x, d, N, a, b, back };
        TWIN_OK(single->ops->cosine(single, &again, e));
        twin_same(out, back, N, isa);
        single->ops->close(&single);
        free(x);
    }
}

static void test_cosine(void **state)
{
    (void)state;
    twin_seed("cosine");
    twin_each(2, cosine_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_cosine) };
    return cmocka_run_group_tests_name("cosine", tests, NULL, NULL);
}
