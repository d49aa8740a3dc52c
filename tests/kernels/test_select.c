/* tests/kernels/test_select.c - which tokens go: OmniDrop Algorithm 1.
 * Method: the selections of tests/data/vectors/omnidrop.json, random scores full of ties, NaN and -0
 * against a sort by the rule's own words, and scores over their maximum by hand; the same choice with
 * nothing on the host, against select. */
#include <jansson.h>

#include "tests/kernels/choice.h"

static void run(struct stream *st, const struct select_args *args, uint32_t *keep)
{
    struct select_args a = *args;
    a.keep = keep;
    a.scratch = twin_alloc(st->ops->select_scratch(st, a.n));
    TWIN_OK(st->ops->select(st, &a, e));
    free(a.scratch);
}

/* Every selection of the file. */
static void test_vectors(void **state)
{
    (void)state;
    json_error_t je;
    json_t *root = json_load_file("tests/data/vectors/omnidrop.json", 0, &je);
    if (root == NULL) fail_msg("omnidrop.json: %s", je.text);
    json_t *cases = json_object_get(root, "select");
    assert_true(json_array_size(cases) >= 60);
    struct stream *st = twin_open(NULL, 1);
    for (size_t c = 0; c < json_array_size(cases); c++) {
        json_t *v = json_array_get(cases, c), *scores = json_object_get(v, "scores");
        json_t *chunks = json_object_get(v, "chunks"), *gone = json_object_get(v, "pruned");
        const uint32_t n = (uint32_t)json_array_size(scores),
                       k = (uint32_t)json_integer_value(json_object_get(v, "k"));
        float *s = twin_floats(n);
        int32_t *chunk = calloc(n + 1, sizeof *chunk);
        uint32_t *keep = calloc(n + 1, sizeof *keep), at = 0;
        bool *pruned = calloc(n + 1, sizeof *pruned);
        for (uint32_t i = 0; i < n; i++) {
            s[i] = (float)json_number_value(json_array_get(scores, i));
            chunk[i] = (int32_t)json_integer_value(json_array_get(chunks, i));
        }
        const struct select_args a = { .score = s,
                                       .chunk = chunk,
                                       .n = n,
                                       .k = k,
                                       .tds = json_is_true(json_object_get(v, "tds")),
                                       .lambda_div = json_number_value(json_object_get(v, "lambda_div")),
                                       .max_chunk =
                                           (int32_t)json_integer_value(json_object_get(v, "max_chunk")) };
        run(st, &a, keep);
        assert_int_equal(json_array_size(gone), k);
        for (uint32_t i = 0; i < k; i++) pruned[json_integer_value(json_array_get(gone, i))] = true;
        for (uint32_t i = 0; i < n; i++)
            if (!pruned[i] && keep[at++] != i) fail_msg("case %zu: token %u should have lived", c, i);
        assert_int_equal(at, n - k);
        free(s), free(chunk), free(keep), free(pruned);
    }
    st->ops->close(&st);
    json_decref(root);
}

/* The rule, by a sort: least important first; NaN least of all; of equals the higher index first. */
struct item {
    double value;
    uint32_t index;
};

static int by_rule(const void *x, const void *y)
{
    const struct item *a = x, *b = y;
    if (isnan(a->value) != isnan(b->value)) return isnan(a->value) ? -1 : 1;
    if (!isnan(a->value) && a->value != b->value) return a->value < b->value ? -1 : 1;
    return a->index > b->index ? -1 : 1;
}

static void reference(const struct select_args *a, uint32_t *keep)
{
    struct item *item = calloc(a->n + 1, sizeof *item);
    uint8_t *gone = calloc(a->n + 1, 1);
    for (uint32_t i = 0; i < a->n; i++) item[i] = (struct item){ a->score[i], i };
    qsort(item, a->n, sizeof *item, by_rule);
    if (a->tds && a->n > 0) {
        const uint32_t n_cand = 2 * a->k < a->n ? 2 * a->k : a->n, best = item[a->n - 1].index;
        const double most = item[a->n - 1].value;
        const bool over_most = a->relative && most > 0 && isfinite(most);
        for (uint32_t i = 0; i < n_cand; i++) {
            const double D = fabs((double)a->chunk[best] - a->chunk[item[i].index]) / fmax(1.0, a->max_chunk);
            if (over_most) item[i].value /= most;
            item[i].value += a->lambda_div * D;
        }
        qsort(item, n_cand, sizeof *item, by_rule);
    }
    for (uint32_t i = 0; i < a->k; i++) gone[item[i].index] = 1;
    for (uint32_t i = 0, n = 0; i < a->n; i++)
        if (!gone[i]) keep[n++] = i;
    free(item), free(gone);
}

/* Random scores of every kind. */
static void test_rule(void **state)
{
    (void)state;
    twin_seed("rule");
    struct stream *st = twin_open(NULL, 1);
    static const float special[] = {
        0.0f, -0.0f, NAN, -NAN, INFINITY, -INFINITY, 1e-42f, -1e-42f, 3e38f, 1.0f
    };
    for (uint32_t v = 0; v < 3000; v++) {
        const uint32_t n = v < 2900 ? twin_below(60) : twin_below(20000), style = twin_below(4);
        float *s = twin_floats(n);
        int32_t *chunk = calloc(n + 1, sizeof *chunk);
        uint32_t *keep = calloc(n + 1, sizeof *keep), *want = calloc(n + 1, sizeof *want);
        for (uint32_t i = 0; i < n; i++) {
            s[i] = style == 0   ? twin_float()
                   : style == 1 ? (float)twin_below(4) / 2000
                                : special[twin_below(10)];
            if (style == 3 && twin_below(2)) s[i] = twin_float() * 1e-3f;
            chunk[i] = (int32_t)(i / (1 + twin_below(20)));
        }
        const struct select_args a = { .score = s,
                                       .chunk = chunk,
                                       .n = n,
                                       .k = twin_below(3) ? twin_below(n + 1) : n / 9,
                                       .tds = twin_below(2),
                                       .relative = twin_below(2),
                                       .lambda_div = twin_below(2) ? 0.2 : 1e-4,
                                       .max_chunk = (int32_t)twin_below(60) };
        run(st, &a, keep);
        reference(&a, want);
        for (uint32_t i = 0; i < n - a.k; i++)
            if (keep[i] != want[i])
                fail_msg("case %u, n %u, k %u, tds %d, relative %d: place %u", v, n, a.k, (int)a.tds,
                         (int)a.relative, i);
        free(s), free(chunk), free(keep), free(want);
    }
    struct err e = { 0 };
    const struct select_args more = { .n = 3, .k = 4 };
    assert_int_equal(st->ops->select(st, &more, &e), E_ARG);
    st->ops->close(&st);
}

/* Candidates 1 (.002, a chunk away of 3) and 3 (.003, the best one's chunk). As printed the distance decides: .002 + .2/3
 * is above .003. Over the maximum .01 it is .2 + .2/3 against .3. Scores whose maximum is nothing to divide by stay. */
static void test_over_the_maximum(void **state)
{
    (void)state;
    struct stream *st = twin_open(NULL, 1);
    static const struct {
        float score[4];
        bool tds, relative;
        uint32_t gone;
    } cases[] = { { { .010f, .002f, .004f, .003f }, false, false, 1 },
                  { { .010f, .002f, .004f, .003f }, false, true, 1 },
                  { { .010f, .002f, .004f, .003f }, true, false, 3 },
                  { { .010f, .002f, .004f, .003f }, true, true, 1 },
                  { { .010f, .0024f, .004f, .003f }, true, true, 3 },
                  { { 0, 0, 0, 0 }, true, true, 3 },
                  { { -1, -4, -2, -3 }, true, true, 1 },
                  { { INFINITY, 0, 1, .01f }, true, true, 3 } };
    static const int32_t chunk[] = { 0, 1, 0, 0 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct select_args a = { .score = cases[i].score,
                                       .chunk = chunk,
                                       .n = 4,
                                       .k = 1,
                                       .tds = cases[i].tds,
                                       .relative = cases[i].relative,
                                       .lambda_div = 0.2,
                                       .max_chunk = 3 };
        uint32_t keep[3];
        run(st, &a, keep);
        for (uint32_t j = 0, k = 0; j < 4; j++)
            if (j != cases[i].gone && (k == 3 || keep[k++] != j))
                fail_msg("case %zu: token %u is gone", i, j);
    }
    st->ops->close(&st);
}

/* Tokens among other rows, and the lists of what is left. */
static void test_choose(void **state)
{
    (void)state;
    twin_seed("choose");
    struct stream *st = twin_open(NULL, 1);
    const struct ops *ops = st->ops;
    struct err why = { 0 };
    for (uint32_t v = 0; v < 1500; v++) {
        struct choice_case c = choice_make(v < 1450 ? 60 : 5000);
        const uint32_t n = c.a.n;
        uint32_t *row = twin_alloc(n * sizeof *row), *id = twin_alloc(n * sizeof *id),
                 *see = twin_alloc(n * sizeof *see);
        float *score = twin_floats(n);
        struct choose_args a = c.a;
        choice_want(&c, st);
        a.partial = c.partial, a.id = c.id, a.mark = c.mark, a.chunk = c.chunk, a.score = score;
        a.row = row, a.out_id = id, a.visible = see;
        a.scratch = twin_alloc(ops->choose_scratch(st, n));
        TWIN_OK(ops->choose(st, &a, e));
        choice_check(&c, score, row, id, see, "choose");
        a.n_of++;
        assert_int_equal(ops->choose(st, &a, &why), E_ARG);
        const struct list_rows_args all = {
            .id = c.id, .n = n, .first = 7, .place = 3, .n_out = n, .row = row, .out_id = id, .visible = see
        };
        TWIN_OK(ops->list_rows(st, &all, e));
        for (uint32_t i = 0; i < n; i++) assert_true(row[i] == 7 + i && id[i] == c.id[i] && see[i] == 4 + i);
        struct list_rows_args some = all;
        some.mark = c.mark, some.of = 1, some.n_out = c.n_marked, some.row = NULL;
        TWIN_OK(ops->list_rows(st, &some, e));
        for (uint32_t i = 0, j = 0; i < n; i++) {
            if (c.mark[c.id[i]] != 1) continue;
            assert_true(id[j] == c.id[i] && see[j] == 4 + i);
            j++;
        }
        some.n_out++;
        if (c.n_marked < n) assert_int_equal(ops->list_rows(st, &some, &why), E_ARG);
        free(row), free(id), free(see), free(score), free(a.scratch);
        choice_free(&c);
    }
    st->ops->close(&st);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_vectors), cmocka_unit_test(test_rule),
                                        cmocka_unit_test(test_over_the_maximum),
                                        cmocka_unit_test(test_choose) };
    return cmocka_run_group_tests_name("select", tests, NULL, NULL);
}
