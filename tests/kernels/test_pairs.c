/* tests/kernels/test_pairs.c - what looks at all pairs of rows of a group, and merging.
 * Method: small random groups, some empty, some with bit-equal rows, against the definitions written out in double; the choices
 * one by one; one thread gives the bits of many. */
#include "tests/kernels/twin.h"

enum { D = 37, ROWS = 230, GROUPS = 11, EQUAL = 220 }; /* from EQUAL on all rows are equal: the last group */

static float *x;
static uint32_t start[GROUPS + 1], row[ROWS];

/* Groups of 0, 1, 2, ... rows of x in a random order; rows 3 and 4 are equal, and all of the last group. */
static void setup(void)
{
    x = twin_random_floats((size_t)ROWS * D);
    memcpy(x + 4 * D, x + 3 * D, D * sizeof *x);
    for (uint32_t i = EQUAL; i < ROWS; i++) memcpy(x + (size_t)i * D, x + EQUAL * D, D * sizeof *x);
    static const uint32_t size[GROUPS] = { 0, 1, 2, 3, 7, 0, 130, 5, 60, 12, 10 };
    start[0] = 0;
    for (uint32_t g = 0; g < GROUPS; g++) start[g + 1] = start[g] + size[g];
    assert_int_equal(start[GROUPS], ROWS);
    for (uint32_t i = 0; i < ROWS; i++) row[i] = i;
    for (uint32_t i = EQUAL - 1; i > 0; i--) {
        const uint32_t j = twin_below(i + 1), t = row[i];
        row[i] = row[j], row[j] = t;
    }
}

static double norm2(const float *a)
{
    double s = 0;
    for (uint32_t k = 0; k < D; k++) s += (double)a[k] * a[k];
    return s;
}

static double distance(uint32_t i, uint32_t j)
{
    const float *a = x + (size_t)row[i] * D, *b = x + (size_t)row[j] * D;
    double xy = 0;
    if (memcmp(a, b, D * sizeof *a) == 0) return 0;
    for (uint32_t k = 0; k < D; k++) xy += (double)a[k] * b[k];
    return 1 - xy / sqrt(norm2(a) * norm2(b));
}

static void *scratch_of(struct stream *st)
{
    return twin_alloc(st->ops->pair_scratch(st, D, 2 * ROWS));
}

static void means_body(struct stream *st, const char *isa)
{
    float got[GROUPS * D];
    double want[GROUPS * D];
    void *scratch = scratch_of(st);
    for (int unit = 0; unit < 2; unit++) {
        const struct means_args a = { { x, D, GROUPS, start, row }, unit, got, scratch };
        TWIN_OK(st->ops->means(st, &a, e));
        for (uint32_t g = 0; g < GROUPS; g++)
            for (uint32_t k = 0; k < D; k++) {
                double sum = 0;
                for (uint32_t i = start[g]; i < start[g + 1]; i++) {
                    const float *r = x + (size_t)row[i] * D;
                    sum += r[k] / (unit ? sqrt(norm2(r)) : 1) / (start[g + 1] - start[g]);
                }
                want[g * D + k] = sum;
            }
        twin_near(got, want, GROUPS * D, 1e-6, isa);
        if (!unit)
            twin_same(got + (GROUPS - 1) * D, x + EQUAL * D, D, isa); /* the mean of equal rows is that row */
    }
    free(scratch);
}

static void nearest_body(struct stream *st, const char *isa)
{
    /* each group against the one before it, so that rows meet groups of other sizes, empty ones too */
    uint32_t y_start[GROUPS + 1], y_row[ROWS], n = 0, which[ROWS];
    float best[ROWS];
    double want[ROWS];
    for (uint32_t g = 0; g < GROUPS; g++) {
        y_start[g] = n;
        for (uint32_t i = g ? start[g - 1] : 0; i < (g ? start[g] : 0); i++) y_row[n++] = row[i];
    }
    y_start[GROUPS] = n;
    void *scratch = scratch_of(st);
    const struct nearest_args a = {
        { x, D, GROUPS, start, row }, { x, D, GROUPS, y_start, y_row }, best, which, scratch
    };
    TWIN_OK(st->ops->nearest(st, &a, e));
    for (uint32_t g = 0; g < GROUPS; g++)
        for (uint32_t i = start[g]; i < start[g + 1]; i++) {
            want[i] = -1;
            uint32_t at = UINT32_MAX;
            for (uint32_t j = g ? start[g - 1] : 0; j < (g ? start[g] : 0); j++)
                if (1 - distance(i, j) > want[i])
                    want[i] = 1 - distance(i, j), at = y_start[g] + j - start[g - 1];
            assert_int_equal(which[i], at);
        }
    twin_near(best, want, ROWS, 1e-6, isa);
    uint32_t few[2] = { 0, 0 };
    struct err e;
    struct nearest_args bad = a;
    bad.y = (struct row_groups){ x, D, 1, few, y_row };
    assert_int_equal(st->ops->nearest(st, &bad, &e), E_ARG);
    free(scratch);
}

static double density_of(uint32_t g, uint32_t i, uint32_t k)
{
    double D_of[ROWS], sum = 0;
    uint32_t n = 0;
    for (uint32_t j = start[g]; j < start[g + 1]; j++)
        if (j != i) D_of[n++] = distance(i, j);
    for (uint32_t a = 0; a < n; a++)
        for (uint32_t b = a + 1; b < n; b++)
            if (D_of[b] < D_of[a]) {
                const double t = D_of[a];
                D_of[a] = D_of[b], D_of[b] = t;
            }
    if (n > k) n = k;
    for (uint32_t a = 0; a < n; a++) sum += D_of[a];
    return n ? exp(-sum / n) : 1;
}

static void density_body(struct stream *st, const char *isa)
{
    float got[ROWS], again[ROWS];
    double want[ROWS], p[ROWS];
    void *scratch = scratch_of(st);
    for (uint32_t k = 1; k <= 9; k += 4) {
        TWIN_OK(
            st->ops->density(st, &(struct density_args){ { x, D, GROUPS, start, row }, k, got, scratch }, e));
        for (uint32_t g = 0; g < GROUPS; g++) {
            double most = 0;
            for (uint32_t i = start[g]; i < start[g + 1]; i++) {
                p[i] = density_of(g, i, k);
                for (uint32_t j = start[g]; j < start[g + 1]; j++) most = fmax(most, distance(i, j));
            }
            for (uint32_t i = start[g]; i < start[g + 1]; i++) {
                double least = INFINITY;
                for (uint32_t j = start[g]; j < start[g + 1]; j++)
                    if (p[j] > p[i] + 1e-9) least = fmin(least, distance(i, j));
                want[i] = p[i] * (least < INFINITY ? least : most);
            }
        }
        twin_near(got, want, ROWS, 1e-5, isa);
        struct stream *one = twin_open(isa, 1);
        TWIN_OK(one->ops->density(
            one, &(struct density_args){ { x, D, GROUPS, start, row }, k, again, scratch }, e));
        twin_same(got, again, ROWS, isa);
        one->ops->close(&one);
    }
    struct err e;
    for (uint32_t k = 0; k <= OPS_NEIGHBOURS_MAX + 1; k += OPS_NEIGHBOURS_MAX + 1)
        assert_int_equal(
            st->ops->density(st, &(struct density_args){ { x, D, GROUPS, start, row }, k, got, scratch }, &e),
            E_ARG);
    free(scratch);
}

/* A lone group that is large goes another way, with each pair met once: the bits are those of the same group beside another, on any
 * number of threads. Rows in clusters, some of them equal, one all NaN and one 0. */
static void large_body(struct stream *st, const char *isa)
{
    enum { N = 451 };
    float *many = twin_random_floats((size_t)(N + 1) * D), want[N + 1], got[N];
    uint32_t one[] = { 0, N }, two[] = { 0, N, N + 1 }, list[N + 1];
    void *scratch = twin_alloc(st->ops->pair_scratch(st, D, 2 * N + 2) + 4096);
    for (uint32_t i = 0; i <= N; i++) {
        list[i] = i;
        for (uint32_t k = 0; k < D && i >= 8; k++) many[(size_t)i * D + k] = many[(size_t)(i % 8) * D + k] + 0.3f * many[(size_t)i * D + k];
    }
    for (uint32_t i = 100; i < 120; i++) memcpy(many + (size_t)i * D, many + 99 * D, D * sizeof *many);
    for (uint32_t k = 0; k < D; k++) many[(size_t)200 * D + k] = NAN, many[(size_t)300 * D + k] = 0;
    for (uint32_t k = 1; k <= 21; k += 5) { /* 21: more than such a group keeps of each row */
        TWIN_OK(st->ops->density(st, &(struct density_args){ { many, D, 2, two, list }, k, want, scratch }, e));
        for (int threads = 1; threads <= 3; threads++) {
            struct stream *other = twin_open(isa, threads);
            void *room = twin_alloc(other->ops->pair_scratch(other, D, N));
            TWIN_OK(other->ops->density(other, &(struct density_args){ { many, D, 1, one, list }, k, got, room }, e));
            twin_same(got, want, N, isa);
            free(room);
            other->ops->close(&other);
        }
    }
    free(many);
    free(scratch);
}

/* Is `pick` the greatest key of those not taken, within rounding, and the first of bit-equal rows? */
static void check_pick(uint32_t g, uint32_t pick, const bool *taken, const double *key)
{
    assert_true(pick >= start[g] && pick < start[g + 1] && !taken[pick]);
    for (uint32_t i = start[g]; i < start[g + 1]; i++) {
        if (taken[i] || isnan(key[i])) continue;
        assert_true(!isnan(key[pick]) && key[i] <= key[pick] + 1e-6);
        if (g == GROUPS - 1) assert_true(i >= pick); /* all equal: in order */
    }
}

static void farthest_body(struct stream *st, const char *isa)
{
    float weight[ROWS];
    uint32_t n_pick[GROUPS], pick[ROWS], again[ROWS];
    void *scratch = scratch_of(st);
    for (uint32_t i = 0; i < ROWS; i++) weight[i] = i < EQUAL ? 0.1f + (float)twin_below(1000) : 1.0f;
    weight[start[6] + 3] = NAN;
    for (int round = 0; round < 4; round++) {
        const bool apart = round % 2 == 0, weighed = round < 2;
        uint32_t n = 0;
        for (uint32_t g = 0; g < GROUPS; g++)
            n_pick[g] = round ? (start[g + 1] - start[g] + 1) / 2 : start[g + 1] - start[g];
        struct farthest_args a = { .g = { x, D, GROUPS, start, row },
                                   .weight = weighed ? weight : NULL,
                                   .first = apart ? FARTHEST_APART : FARTHEST_MEAN,
                                   .n_pick = n_pick,
                                   .pick = pick,
                                   .scratch = scratch };
        TWIN_OK(st->ops->farthest(st, &a, e));
        for (uint32_t g = 0; g < GROUPS; g++) {
            bool taken[ROWS] = { false };
            double key[ROWS], near[ROWS];
            const uint32_t size = start[g + 1] - start[g];
            for (uint32_t i = start[g]; i < start[g + 1]; i++) {
                double least = INFINITY, sum = 0;
                for (uint32_t j = start[g]; j < start[g + 1]; j++) {
                    if (j != i) least = fmin(least, distance(i, j));
                    sum += distance(i, j);
                }
                const double w = weighed ? weight[i] : 1;
                key[i] = apart ? w * (size > 1 ? least : 0) : size > 1 ? sum / (size - 1) : 0;
                near[i] = INFINITY;
            }
            for (uint32_t k = 0; k < n_pick[g]; k++, n++) {
                check_pick(g, pick[n], taken, key);
                taken[pick[n]] = true;
                for (uint32_t i = start[g]; i < start[g + 1]; i++) {
                    near[i] = fmin(near[i], distance(i, pick[n]));
                    key[i] = (weighed ? weight[i] : 1) * near[i];
                }
            }
        }
        uint32_t of_two = 0; /* of two rows the first is chosen first, where no weight tells them apart */
        for (uint32_t g = 0; g < 2; g++) of_two += n_pick[g];
        if (!weighed || !apart) assert_int_equal(pick[of_two], start[2]);
        struct stream *one = twin_open(isa, 1);
        a.pick = again;
        TWIN_OK(one->ops->farthest(one, &a, e));
        assert_memory_equal(pick, again, n * sizeof *pick);
        one->ops->close(&one);
        /* the groups one by one take the other road through the threads */
        for (uint32_t g = 0, at = 0; g < GROUPS; at += n_pick[g++]) {
            const uint32_t own[] = { 0, start[g + 1] - start[g] };
            a.g = (struct row_groups){ x, D, 1, own, row + start[g] };
            a.weight = weighed ? weight + start[g] : NULL;
            a.n_pick = &n_pick[g];
            TWIN_OK(st->ops->farthest(st, &a, e));
            for (uint32_t k = 0; k < n_pick[g]; k++) assert_int_equal(again[k] + start[g], pick[at + k]);
        }
    }
    struct err e;
    n_pick[0] = 1; /* of none */
    assert_int_equal(st->ops->farthest(st,
                                       &(struct farthest_args){ .g = { x, D, GROUPS, start, row },
                                                                .n_pick = n_pick,
                                                                .pick = pick,
                                                                .scratch = scratch },
                                       &e),
                     E_ARG);
    free(scratch);
}

static void merge_body(struct stream *st, const char *isa)
{
    enum { N = 5 };
    static const uint32_t dst[N] = { 7, 0, 41, 7, 89 }, from[N + 1] = { 0, 2, 2, 5, 6, 6 },
                          src[6] = { 1, 2, 3, 41, 5, 7 };
    static const float c0[N] = { 0.5f, 1, 0, -2, 0.25f }, w[6] = { 0.25f, 0.25f, 1, 3, -0.5f, 1 };
    float got[N * D];
    double want[N * D];
    for (uint32_t i = 0; i < N; i++)
        for (uint32_t k = 0; k < D; k++) {
            double sum = c0[i] * (double)x[dst[i] * D + k];
            for (uint32_t j = from[i]; j < from[i + 1]; j++) sum += w[j] * (double)x[src[j] * D + k];
            want[i * D + k] = sum;
        }
    TWIN_OK(st->ops->merge(st, &(struct merge_args){ x, D, N, dst, c0, from, src, w, got }, e));
    twin_near(got, want, N * D, 1e-6, isa);
    twin_same(got + D, x, D, isa); /* weight 1 and nobody else */
}

static void cosine_body(struct stream *st, const char *isa)
{
    float got[ROWS];
    double want[ROWS];
    uint32_t a[ROWS], b[ROWS];
    for (uint32_t i = 0; i < ROWS; i++) a[i] = i, b[i] = twin_below(40);
    const float *y = x + 50 * D;
    for (uint32_t i = 0; i < ROWS; i++) {
        double xy = 0;
        for (uint32_t k = 0; k < D; k++) xy += (double)x[a[i] * D + k] * y[b[i] * D + k];
        want[i] = xy / sqrt(norm2(x + a[i] * D) * norm2(y + b[i] * D));
    }
    TWIN_OK(st->ops->cosine(
        st, &(struct cosine_args){ .x = x, .d = D, .n = ROWS, .a = a, .b = b, .out = got, .y = y }, e));
    twin_near(got, want, ROWS, 1e-6, isa);
}

static void pagerank_body(struct stream *st, const char *isa)
{
    enum { N = 33, H = 4, G = 2, W = 5, TURNS = 7 }; /* more than one pass of the CPU makes */
    float *q = twin_random_floats(N * H * W), *k = twin_random_floats(N * G * W), got[N], again[N];
    double want[N] = { 0 }, dist[N], next[N], p[N];
    for (uint32_t h = 0; h < H; h++) {
        for (uint32_t i = 0; i < N; i++) dist[i] = 1.0 / N;
        for (int t = 0; t < TURNS; t++) {
            for (uint32_t j = 0; j < N; j++) next[j] = 0;
            for (uint32_t i = 0; i < N; i++) {
                double sum = 0;
                for (uint32_t j = 0; j <= i; j++) {
                    double s = 0;
                    for (uint32_t c = 0; c < W; c++)
                        s += (double)q[i * H * W + h * W + c] * k[j * G * W + h / (H / G) * W + c];
                    sum += p[j] = exp(3 * s);
                }
                for (uint32_t j = 0; j <= i; j++) next[j] += dist[i] * p[j] / sum;
            }
            memcpy(dist, next, sizeof dist);
        }
        for (uint32_t i = 0; i < N; i++) want[i] += dist[i] * dist[i] / H;
    }
    for (uint32_t i = 0; i < N; i++) want[i] = sqrt(want[i]);
    void *scratch = twin_alloc(st->ops->pagerank_scratch(st, H, N));
    struct pagerank_args a = { .q = q,
                               .k = k,
                               .ldq = H * W,
                               .ldk = G * W,
                               .n = N,
                               .H = H,
                               .G = G,
                               .D = W,
                               .iterations = TURNS,
                               .scale = 3,
                               .importance = got,
                               .scratch = scratch };
    TWIN_OK(st->ops->pagerank(st, &a, e));
    twin_near(got, want, N, 1e-5, isa);
    struct stream *one = twin_open(isa, 1);
    a.importance = again;
    TWIN_OK(one->ops->pagerank(one, &a, e));
    twin_same(got, again, N, isa);
    one->ops->close(&one);
    struct err e;
    a.G = 3;
    assert_int_equal(st->ops->pagerank(st, &a, &e), E_ARG);
    free(q);
    free(k);
    free(scratch);
}

#define CASE(name)                                                                                           \
    static void test_##name(void **state)                                                                    \
    {                                                                                                        \
        (void)state;                                                                                         \
        twin_seed(#name);                                                                                    \
        setup();                                                                                             \
        twin_each(2, name##_body);                                                                           \
        free(x);                                                                                             \
    }
CASE(means)
CASE(nearest)
CASE(density)
CASE(large)
CASE(farthest)
CASE(merge)
CASE(cosine)
CASE(pagerank)

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_means),   cmocka_unit_test(test_nearest),
                                        cmocka_unit_test(test_density), cmocka_unit_test(test_large),
                                        cmocka_unit_test(test_farthest),
                                        cmocka_unit_test(test_merge),   cmocka_unit_test(test_cosine),
                                        cmocka_unit_test(test_pagerank) };
    return cmocka_run_group_tests_name("pairs", tests, NULL, NULL);
}
