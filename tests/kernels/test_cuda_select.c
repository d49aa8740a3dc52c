/* tests/kernels/test_cuda_select.c - kernels/cuda/select.cu on the CPU (simt.h): random scores full of ties, NaN, infinities and
 * -0 against the CPU's op, which must agree exactly; the same among rows that are no tokens, and lists of rows. */
#include "tests/kernels/choice.h"
#include "tests/kernels/cuda.h"

static void test_select(void **state)
{
    (void)state;
    twin_seed("select");
    struct stream *cpu = twin_open(NULL, 1);
    static const float special[] = { 0.0f, -0.0f, NAN, -NAN, INFINITY, -INFINITY, 1e-42f, -1e-42f, 3e38f, 1.0f };
    for (uint32_t v = 0; v < 160; v += twin_small() ? 8 : 1) {
        const uint32_t n = v == 0 ? 0 : v < 4 ? 1 : v < 110 ? twin_below(80) : v < 155 ? twin_below(3000) : 5000 + twin_below(9000);
        const uint32_t style = twin_below(4), how = twin_below(5);
        const uint32_t k = how == 0 ? 0 : how == 1 ? n : how == 2 ? n - n / 3 : how == 3 ? n / 9 : twin_below(n + 1);
        float *s = twin_floats(n);
        int32_t *chunk = twin_alloc(n * sizeof *chunk);
        uint32_t *keep = twin_alloc((n - k) * sizeof *keep), *want = twin_alloc((n - k) * sizeof *want);
        for (uint32_t i = 0; i < n; i++) {
            s[i] = style == 0 ? twin_float() : style == 1 ? (float)twin_below(4) / 2000 : style == 2 ? special[twin_below(10)] : 0.25f;
            chunk[i] = (int32_t)(i / (1 + twin_below(20)));
        }
        struct cuda_select_args a = { .score = s, .chunk = chunk, .n = n, .k = k, .tds = twin_below(3) > 0, .relative = twin_below(2),
                                      .lambda_div = twin_below(2) ? 0.2 : 1e-4, .max_chunk = (int32_t)twin_below(60), .keep = keep,
                                      .key = twin_alloc(n * sizeof(uint64_t)), .drop = twin_alloc(n) };
        TWIN_OK(cuda_select(NULL, &a, e));
        const struct select_args t = { s, chunk, n, k, a.tds, a.relative, a.lambda_div, a.max_chunk, want,
                                       twin_alloc(cpu->ops->select_scratch(cpu, n)) };
        TWIN_OK(cpu->ops->select(cpu, &t, e));
        for (uint32_t i = 0; i < n - k; i++)
            if (keep[i] != want[i])
                fail_msg("case %u, n %u, k %u, tds %d, relative %d: place %u holds %u, not %u", v, n, k, (int)a.tds, (int)a.relative, i,
                         keep[i], want[i]);
        free(s), free(chunk), free(keep), free(want), free(a.key), free(a.drop), free(t.scratch);
    }
    struct err e = { 0 };
    const struct cuda_select_args more = { .n = 3, .k = 4 };
    assert_int_equal(cuda_select(NULL, &more, &e), E_ARG);
    cpu->ops->close(&cpu);
}

static void test_score(void **state)
{
    (void)state;
    twin_seed("score");
    static const uint32_t ns[] = { 1, 255, 256, 257, 1000 };
    for (uint32_t v = 0; v < 5; v++) {
        const uint32_t n = ns[v], G = 1 + twin_below(5);
        float *partial = twin_random_floats((size_t)G * n), *score = twin_floats(n), *want = twin_floats(n);
        for (uint32_t i = 0; i < n; i++) {
            want[i] = 0;
            for (uint32_t g = 0; g < G; g++) want[i] += partial[(size_t)g * n + i];
            want[i] *= 1.0f / 448.0f;
        }
        const struct cuda_score_args a = { partial, G, n, 1.0f / 448.0f, score };
        TWIN_OK(cuda_score(NULL, &a, e));
        twin_same(score, want, n, "score");
        free(partial), free(score), free(want);
    }
}

static void test_lists(void **state)
{
    (void)state;
    twin_seed("lists");
    struct stream *cpu = twin_open(NULL, 1);
    for (uint32_t v = 0; v < 120; v++) {
        struct choice_case c = choice_make(v < 100 ? 90 : v < 115 ? 3000 : 9000);
        const uint32_t n = c.a.n;
        uint32_t *row = twin_alloc(n * sizeof *row), *id = twin_alloc(n * sizeof *id), *see = twin_alloc(n * sizeof *see);
        choice_want(&c, cpu);
        struct cuda_select_args a = { .score = c.want_score, .chunk = c.chunk, .n = n, .k = c.a.k, .tds = c.a.tds,
                                      .relative = c.a.relative, .lambda_div = c.a.lambda_div, .max_chunk = c.a.max_chunk,
                                      .key = twin_alloc(n * sizeof(uint64_t)), .drop = twin_alloc(n), .id = c.id, .mark = c.mark,
                                      .in = twin_alloc(n), .n_of = c.a.n_of, .first = c.a.first, .row = row, .out_id = id, .visible = see,
                                      .of = c.a.of };
        TWIN_OK(cuda_select(NULL, &a, e));
        choice_check(&c, c.want_score, row, id, see, "choose");
        struct cuda_list_rows_args l = { .id = c.id, .mark = c.mark, .n = n, .first = 7, .place = 3, .n_out = c.n_marked, .row = row,
                                         .out_id = id, .of = 1 };
        TWIN_OK(cuda_list_rows(NULL, &l, e));
        for (uint32_t i = 0, j = 0; i < n; i++) {
            if (c.mark[c.id[i]] != 1) continue;
            assert_true(row[j] == 7 + i && id[j] == c.id[i]);
            j++;
        }
        l.mark = NULL, l.n_out = n, l.visible = see;
        TWIN_OK(cuda_list_rows(NULL, &l, e));
        for (uint32_t i = 0; i < n; i++) assert_true(row[i] == 7 + i && id[i] == c.id[i] && see[i] == 4 + i);
        free(row), free(id), free(see), free(a.key), free(a.drop), free(a.in);
        choice_free(&c);
    }
    cpu->ops->close(&cpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_select), cmocka_unit_test(test_score), cmocka_unit_test(test_lists) };
    return cmocka_run_group_tests_name("cuda select", tests, NULL, NULL);
}
