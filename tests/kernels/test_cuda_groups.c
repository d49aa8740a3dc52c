/* tests/kernels/test_cuda_groups.c - kernels/cuda/groups.cu on the CPU (simt.h) against the CPU's ops: groups that are empty, of
 * one row, of bit-equal rows (which tie), rows that several groups share. */
#include "tests/kernels/cuda.h"

static struct stream *cpu;

enum { GROUPS = 6, ROWS = 40 };

struct case_ { uint32_t d, n; float *x; uint32_t *start, *row; };

static struct case_ case_new(uint32_t d, bool equal)
{
    struct case_ c = { .d = d, .x = twin_random_floats((size_t)ROWS * d), .start = calloc(GROUPS + 1, sizeof *c.start) };
    for (uint32_t g = 0; g < GROUPS; g++) c.start[g + 1] = c.start[g] + (g == 1 ? 0 : g == 2 ? 1 : 1 + twin_below(24));
    c.n = c.start[GROUPS];
    c.row = twin_alloc(c.n * sizeof *c.row);
    for (uint32_t i = 0; i < c.n; i++) c.row[i] = twin_below(ROWS);
    for (uint32_t i = 1; equal && i < 8; i++) memcpy(c.x + (size_t)i * d, c.x, d * sizeof *c.x);
    memset(c.x + (size_t)9 * d, 0, d * sizeof *c.x);
    return c;
}
static void case_free(struct case_ *c) { free(c->x), free(c->start), free(c->row); }
static struct cuda_groups on_device(const struct case_ *c) { return (struct cuda_groups){ c->x, c->d, GROUPS, c->n, c->start, c->row }; }
static struct row_groups on_cpu(const struct case_ *c) { return (struct row_groups){ c->x, c->d, GROUPS, c->start, c->row }; }
static void *scratch(const struct case_ *c, uint32_t more) { return twin_alloc(cpu->ops->pair_scratch(cpu, c->d, c->n + more)); }

/* Are places a and b of the lists other rows, and not bit-equal ones? */
static bool differs(const struct case_ *c, uint32_t a, uint32_t b)
{
    return a != b && memcmp(c->x + (size_t)c->row[a] * c->d, c->x + (size_t)c->row[b] * c->d, c->d * sizeof *c->x) != 0;
}

static const uint32_t widths[] = { 1, 5, 32, 100, 384 };
#define EACH_CASE(v) for (uint32_t v = 0; v < 3 * sizeof widths / sizeof widths[0]; v++)

static void test_means(void **state)
{
    (void)state;
    twin_seed("means");
    EACH_CASE(v) {
        struct case_ c = case_new(widths[v / 3], v % 2);
        const size_t n = (size_t)GROUPS * c.d;
        float *y = twin_floats(n), *want = twin_floats(n), *norm = twin_floats(c.n);
        void *s = scratch(&c, 0);
        const struct cuda_means_args a = { on_device(&c), v % 3 > 0, y, norm };
        TWIN_OK(cuda_means(NULL, &a, e));
        const struct means_args t = { on_cpu(&c), v % 3 > 0, want, s };
        TWIN_OK(cpu->ops->means(cpu, &t, e));
        cuda_near(y, want, n, DT_F32, 1e-6, "means");
        free(y), free(want), free(norm), free(s), case_free(&c);
    }
}

static void test_nearest(void **state)
{
    (void)state;
    twin_seed("nearest");
    EACH_CASE(v) {
        struct case_ x = case_new(widths[v / 3], v % 2), y = case_new(widths[v / 3], v % 2);
        float *best = twin_floats(x.n), *want = twin_floats(x.n), *nx = twin_floats(x.n), *ny = twin_floats(y.n);
        uint32_t *which = twin_alloc(x.n * sizeof *which), *at = twin_alloc(x.n * sizeof *at);
        void *s = scratch(&x, y.n);
        const struct cuda_nearest_args a = { on_device(&x), on_device(&y), best, which, nx, ny };
        TWIN_OK(cuda_nearest(NULL, &a, e));
        const struct nearest_args t = { on_cpu(&x), on_cpu(&y), want, at, s };
        TWIN_OK(cpu->ops->nearest(cpu, &t, e));
        for (uint32_t i = 0; i < x.n; i++) {
            if (!(fabsf(best[i] - want[i]) <= 1e-5f)) fail_msg("row %u: %.9g, not %.9g", i, (double)best[i], (double)want[i]);
            if ((which[i] == UINT32_MAX) != (at[i] == UINT32_MAX)) fail_msg("row %u: one is near nothing", i);
            if (which[i] != at[i] && (x.d > 5 || !differs(&y, which[i], at[i]))) fail_msg("row %u: place %u, not %u", i, which[i], at[i]);
        }
        free(best), free(want), free(nx), free(ny), free(which), free(at), free(s), case_free(&x), case_free(&y);
    }
}

static void test_density(void **state)
{
    (void)state;
    twin_seed("density");
    EACH_CASE(v) {
        struct case_ c = case_new(widths[v / 3], v % 2);
        if (c.d < 5) {                                             /* distances of 0 and 2 alone: who is denser is noise */
            case_free(&c);
            continue;
        }
        float *out = twin_floats(c.n), *want = twin_floats(c.n), *norm = twin_floats(c.n);
        double *dense = twin_alloc(c.n * sizeof *dense), *most = twin_alloc(c.n * sizeof *most);
        void *s = scratch(&c, 0);
        const uint32_t k = 1 + v % 7;
        const struct cuda_density_args a = { on_device(&c), k, out, norm, dense, most };
        TWIN_OK(cuda_density(NULL, &a, e));
        const struct density_args t = { on_cpu(&c), k, want, s };
        TWIN_OK(cpu->ops->density(cpu, &t, e));
        if (v % 2 == 0) cuda_near(out, want, c.n, DT_F32, 1e-5, "density");
        for (uint32_t i = 0; i < c.n; i++) assert_true(out[i] >= -1e-6f && out[i] <= 2.0f);
        free(out), free(want), free(norm), free(dense), free(most), free(s), case_free(&c);
    }
    struct err e = { 0 };
    const struct cuda_density_args many = { .k = OPS_NEIGHBOURS_MAX + 1 };
    assert_int_equal(cuda_density(NULL, &many, &e), E_ARG);
}

static void test_farthest(void **state)
{
    (void)state;
    twin_seed("farthest");
    EACH_CASE(v) {
        struct case_ c = case_new(widths[v / 3 % 3 + 2], false);
        uint32_t *n_pick = twin_alloc(GROUPS * sizeof *n_pick), *pick_start = twin_alloc(GROUPS * sizeof *pick_start), n = 0;
        for (uint32_t g = 0; g < GROUPS; g++) {
            const uint32_t len = c.start[g + 1] - c.start[g];
            n_pick[g] = g == 3 ? len : twin_below(len + 1);
            pick_start[g] = n;
            n += n_pick[g];
        }
        for (uint32_t g = 0; g < GROUPS; g++)                      /* no row twice in a group: which of equals is noise */
            for (uint32_t i = c.start[g]; i < c.start[g + 1]; i++) c.row[i] = i - c.start[g] + (g == 3) * 8 + 10;
        float *weight = twin_random_floats(c.n), *norm = twin_floats(c.n);
        double *least = twin_alloc(c.n * sizeof *least), *key = twin_alloc(c.n * sizeof *key);
        uint32_t *pick = twin_alloc(n * sizeof *pick), *want = twin_alloc(n * sizeof *want);
        uint8_t *taken = twin_alloc(c.n);
        void *s = scratch(&c, 0);
        for (uint32_t i = 0; i < c.n; i++) weight[i] = i % 6 == 1 ? NAN : fabsf(weight[i]) + 0.1f;
        const enum farthest_first first = v % 2 ? FARTHEST_MEAN : FARTHEST_APART;
        const struct cuda_farthest_args a = { on_device(&c), v % 3 ? weight : NULL, first, n_pick, pick_start, pick, norm, least, key,
                                              taken };
        TWIN_OK(cuda_farthest(NULL, &a, e));
        const struct farthest_args t = { on_cpu(&c), a.weight, first, n_pick, want, s };
        TWIN_OK(cpu->ops->farthest(cpu, &t, e));
        for (uint32_t i = 0; i < n; i++)
            if (pick[i] != want[i]) fail_msg("case %u: choice %u of %u is %u, not %u", v, i, n, pick[i], want[i]);
        free(weight), free(norm), free(least), free(key), free(pick), free(want), free(taken), free(s), case_free(&c);
        free(n_pick), free(pick_start);
    }
}

static void test_merge(void **state)
{
    (void)state;
    twin_seed("merge");
    EACH_CASE(v) {
        const uint32_t d = widths[v / 3], n = 1 + twin_below(20);
        struct case_ c = case_new(d, false);
        float *y = twin_floats((size_t)n * d), *want = twin_floats((size_t)n * d), *c0 = twin_floats(20), *w = twin_floats(100);
        uint32_t *dst = twin_alloc(20 * sizeof *dst), *start = calloc(21, sizeof *start), *src = twin_alloc(100 * sizeof *src);
        for (uint32_t i = 0; i < n; i++) {
            dst[i] = twin_below(ROWS), c0[i] = twin_float();
            start[i + 1] = start[i] + twin_below(6);
        }
        for (uint32_t i = 0; i < start[n]; i++) src[i] = twin_below(ROWS), w[i] = twin_float();
        const struct cuda_merge_args a = { c.x, d, n, dst, c0, start, src, w, y };
        TWIN_OK(cuda_merge(NULL, &a, e));
        const struct merge_args t = { .x = c.x, .d = d, .n = n, .dst = dst, .c0 = c0, .start = start, .src = src, .w = w, .y = want };
        TWIN_OK(cpu->ops->merge(cpu, &t, e));
        cuda_near(y, want, (size_t)n * d, DT_F32, 1e-6, "merge");
        free(y), free(want), free(c0), free(w), free(dst), free(start), free(src), case_free(&c);
    }
}

static void test_pagerank(void **state)
{
    (void)state;
    twin_seed("pagerank");
    static const struct { uint32_t n, H, G, D, iterations; float loud; } cases[] = {
        { 1, 1, 1, 2, 1, 1 }, { 33, 4, 2, 16, 3, 2 }, { 70, 3, 1, 24, 0, 1 }, { 300, 2, 2, 8, 2, 5 },
    };
    for (uint32_t v = 0; v < sizeof cases / sizeof cases[0]; v++) {
        const uint32_t n = cases[v].n, H = cases[v].H, G = cases[v].G, D = cases[v].D;
        const size_t ldq = (size_t)H * D + 3, ldk = (size_t)G * D, all = (size_t)H * n;
        float *q = twin_random_floats(n * ldq), *k = twin_random_floats(n * ldk), *out = twin_floats(n), *want = twin_floats(n);
        double *s[4];
        for (uint32_t i = 0; i < 4; i++) s[i] = twin_alloc(all * sizeof **s);
        void *scratch_ = twin_alloc(cpu->ops->pagerank_scratch(cpu, H, n));
        const struct cuda_pagerank_args a = { q, k, ldq, ldk, n, H, G, D, cases[v].iterations, cases[v].loud, out, s[0], s[1], s[2], s[3] };
        TWIN_OK(cuda_pagerank(NULL, &a, e));
        const struct pagerank_args t = { q, k, ldq, ldk, n, H, G, D, cases[v].iterations, cases[v].loud, want, scratch_ };
        TWIN_OK(cpu->ops->pagerank(cpu, &t, e));
        cuda_near(out, want, n, DT_F32, 1e-5, "pagerank");
        for (uint32_t i = 0; i < 4; i++) free(s[i]);
        free(q), free(k), free(out), free(want), free(scratch_);
    }
    struct err e = { 0 };
    const struct cuda_pagerank_args odd = { .H = 3, .G = 2 };
    assert_int_equal(cuda_pagerank(NULL, &odd, &e), E_ARG);
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
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_means), cmocka_unit_test(test_nearest), cmocka_unit_test(test_density),
                                        cmocka_unit_test(test_farthest), cmocka_unit_test(test_merge),
                                        cmocka_unit_test(test_pagerank) };
    return cmocka_run_group_tests_name("cuda groups", tests, open_cpu, close_cpu);
}
