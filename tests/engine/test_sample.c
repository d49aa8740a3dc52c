/* Sampling. Method: hand-made logits where the answer is known, frequencies against the softmax within 5 sigma, and
 * the same seed giving the same draws. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "engine/sample.h"

#define V 8

static struct sampler *make(const struct sample_params *p, const uint8_t *allowed, const int32_t *prompt, uint32_t n)
{
    struct sampler *s;
    struct err e;
    assert_int_equal(sampler_create(p, V, allowed, prompt, n, &s, &e), OK);
    return s;
}

static void test_greedy(void **state)
{
    (void)state;
    const float logits[V] = { 0, 3, 1, 3, NAN, -1, 9, 2 };
    const uint8_t allowed[V] = { 1, 1, 1, 1, 1, 1, 0, 1 };     /* the best is not an id of the tokenizer */
    const struct sample_params p = sample_defaults();
    struct sampler *s = make(&p, allowed, NULL, 0);
    float lp;
    assert_int_equal(sampler_next(s, logits, &lp), 1);         /* a tie: the lower id */
    const double sum = exp(0) + 2 * exp(3) + exp(1) + exp(-1) + exp(2);
    assert_true(fabs((double)lp - (3 - log(sum))) < 1e-5);
    sampler_destroy(&s);
}

static void test_penalties(void **state)
{
    (void)state;
    const float logits[V] = { 2, 1.9f, -1, -1, -1, -1, -1, -1 };
    struct sample_params p = sample_defaults();
    const int32_t prompt[] = { 0 };
    p.repetition_penalty = 1.2f;                               /* 2 / 1.2 = 1.67 < 1.9 */
    struct sampler *s = make(&p, NULL, prompt, 1);
    assert_int_equal(sampler_next(s, logits, NULL), 1);
    assert_int_equal(sampler_next(s, logits, NULL), 0);        /* both seen now: 1.67 against 1.58 */
    sampler_destroy(&s);
    p = sample_defaults();
    p.frequency_penalty = 0.06f;
    s = make(&p, NULL, prompt, 1);                             /* the prompt does not count for OpenAI's penalties */
    const int32_t want[] = { 0, 0, 1, 0 };                     /* 2, 1.94, then 1.88 < 1.9, then 1.88 > 1.84 */
    for (int i = 0; i < 4; i++) assert_int_equal(sampler_next(s, logits, NULL), want[i]);
    sampler_destroy(&s);
    p = sample_defaults();
    p.presence_penalty = 0.5f;
    s = make(&p, NULL, NULL, 0);
    assert_int_equal(sampler_next(s, logits, NULL), 0);
    assert_int_equal(sampler_next(s, logits, NULL), 1);
    sampler_destroy(&s);
}

/* Draw n times with fresh samplers of seeds 0..n-1; counts by id. */
static void draw(struct sample_params p, const float *logits, int n, int *count)
{
    memset(count, 0, V * sizeof *count);
    for (int i = 0; i < n; i++) {
        p.seed = (uint64_t)i;
        struct sampler *s = make(&p, NULL, NULL, 0);
        count[sampler_next(s, logits, NULL)]++;
        sampler_destroy(&s);
    }
}

static void test_frequencies(void **state)
{
    (void)state;
    const float logits[V] = { 1, 0, 2, -1, 0.5f, -3, 1.5f, 0 };
    struct sample_params p = sample_defaults();
    enum { N = 20000 };
    int count[V];
    p.temperature = 0.7f;
    draw(p, logits, N, count);
    double sum = 0;
    for (int i = 0; i < V; i++) sum += exp((double)logits[i] / 0.7);
    for (int i = 0; i < V; i++) {
        const double q = exp((double)logits[i] / 0.7) / sum, sigma = sqrt(N * q * (1 - q));
        assert_true(fabs(count[i] - N * q) < 5 * sigma + 1);
    }
    p.top_k = 2;
    draw(p, logits, 2000, count);
    assert_int_equal(count[2] + count[6], 2000);
    assert_true(count[2] > 0 && count[6] > 0);
    p.top_k = 0;
    p.top_p = 0.3f;                                            /* the best alone has more than 0.3 */
    draw(p, logits, 500, count);
    assert_int_equal(count[2], 500);
    p.top_p = 1;
    p.min_p = 0.2f;                                            /* exp((x - 2) / 0.7) >= 0.2: x >= 0.87 */
    draw(p, logits, 3000, count);
    assert_int_equal(count[0] + count[2] + count[6], 3000);
    assert_true(count[0] > 0);
}

static void test_seed_and_ranges(void **state)
{
    (void)state;
    const float logits[V] = { 0 };
    struct sample_params p = sample_defaults();
    struct err e;
    p.temperature = 1;
    p.seed = 42;
    struct sampler *a = make(&p, NULL, NULL, 0), *b = make(&p, NULL, NULL, 0);
    int differ = 0, last = -1;
    for (int i = 0; i < 50; i++) {
        const int x = sampler_next(a, logits, NULL);
        assert_int_equal(x, sampler_next(b, logits, NULL));
        differ += x != last;
        last = x;
    }
    assert_true(differ > 20);
    sampler_destroy(&a);
    sampler_destroy(&b);
    struct sampler *s = NULL;
    p.top_p = 0;
    assert_int_equal(sampler_create(&p, V, NULL, NULL, 0, &s, &e), E_ARG);
    assert_non_null(strstr(e.text, "top_p"));
    assert_null(s);
}

/* ---- against a sort of the whole vocabulary ------------------------------------------------------------------ */

struct ref { float logit; int32_t id; };

static int ref_order(const void *pa, const void *pb)
{
    const struct ref *a = pa, *b = pb;
    if (a->logit != b->logit) return a->logit < b->logit ? 1 : -1;
    return (a->id > b->id) - (a->id < b->id);
}

/* The sampler's rules word by word: everything sorted, then temperature, min-p, top-k, top-p, and a walk. */
static int32_t ref_draw(const struct sample_params *p, struct ref *c, uint32_t n, uint64_t step)
{
    uint64_t z = p->seed + (step + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    qsort(c, n, sizeof *c, ref_order);
    const double best = (double)c[0].logit;
    uint32_t m = p->top_k && p->top_k < n ? p->top_k : n, last = 0;
    double total = 0, sum = 0;
    for (; last < m; last++) {
        const double w = exp(((double)c[last].logit - best) / (double)p->temperature);
        if (last > 0 && w < (double)p->min_p) break;
        c[last].logit = (float)w;
        total += (double)c[last].logit;
    }
    for (uint32_t i = 0; p->top_p < 1.0f && i < last; i++) {
        sum += (double)c[i].logit;
        if (sum < (double)p->top_p * total) continue;
        last = i + 1;
        total = sum;
    }
    double u = (double)(z >> 11) * 0x1p-53 * total;
    for (uint32_t i = 0; i + 1 < last; i++)
        if ((u -= (double)c[i].logit) < 0) return c[i].id;
    return c[last - 1].id;
}

static uint64_t state_of_rng;

static double next_uniform(void)
{
    state_of_rng = state_of_rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(state_of_rng >> 11) * 0x1p-53;
}

static void test_same_draws_as_a_sort(void **state)
{
    (void)state;
    enum { BIG = 6000 };
    static const uint32_t ks[] = { 0, 0, 1, 5, 300, 2000, BIG };
    static const float ps[] = { 1, 1, 0.95f, 0.5f, 0.999f, 0.01f }, ms[] = { 0, 0, 0.05f, 1e-4f };
    float *logits = malloc(BIG * sizeof *logits);
    struct ref *c = malloc(BIG * sizeof *c);
    uint8_t *used = malloc(BIG);
    const char *given = getenv("SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 10) : 1;
    print_message("seed %llu\n", (unsigned long long)seed);
    state_of_rng = seed;
    for (int run = 0; run < 300; run++) {
        const double spread = 0.01 + 12 * next_uniform() * next_uniform();
        const bool ties = run % 3 == 0, sorted = run % 7 == 0;
        const uint32_t n = run % 5 == 0 ? 40 : run % 5 == 1 ? 257 : BIG;
        struct sample_params p = sample_defaults();
        struct sampler *s;
        struct err e;
        p.temperature = (float)(0.2 + 1.8 * next_uniform());
        p.top_k = ks[run % 7];
        p.top_p = ps[run % 6];
        p.min_p = ms[run % 4];
        p.repetition_penalty = run % 2 ? 1.0f : 1.3f;
        p.seed = (uint64_t)run * 77;
        for (uint32_t i = 0; i < n; i++) {
            logits[i] = (float)(spread * (next_uniform() + next_uniform() + next_uniform() - 1.5));
            if (ties) logits[i] = rintf(logits[i]);
            if (sorted) logits[i] = (float)(spread * i / n);
        }
        memset(used, 0, BIG);
        assert_int_equal(sampler_create(&p, n, NULL, NULL, 0, &s, &e), OK);
        for (uint64_t step = 0; step < 8; step++) {
            for (uint32_t i = 0; i < n; i++) {
                const float x = logits[i];
                const float r = p.repetition_penalty;
                c[i] = (struct ref){ !used[i] ? x : x > 0 ? x / r : x * r, (int32_t)i };
            }
            const int32_t want = ref_draw(&p, c, n, step), got = sampler_next(s, logits, NULL);
            if (want != got) fail_msg("run %d, step %d: %d, the sort gives %d", run, (int)step, got, want);
            used[got] = 1;
        }
        sampler_destroy(&s);
    }
    free(logits);
    free(c);
    free(used);
}

/* ---- from the highest alone -------------------------------------------------------------------------------- */

/* Two samplers alike, one sees whole rows and the other what ops->top found of them, wherever that decides: the same ids, the same bits
 * of log probabilities (the CPU's op sums as the sampler does). Rows with ties, peaks, NaN, infinities, flat ones, few ids allowed. */
static void test_highest(void **state)
{
    (void)state;
    static const uint32_t sizes[] = { 5, 64, 65, 300, 3000 }, ks[] = { 0, 1, 20, 50, 64, 65, 400 };
    static const float warm[] = { 0, 0.7f, 1.5f }, tops[] = { 1, 0.9f, 0.3f }, mins[] = { 0, 0.05f, 0.3f };
    const struct stream_options so = { .device = "cpu", .n_threads = 1 };
    struct stream *st;
    struct err e;
    uint32_t decided[2] = { 0 };
    assert_int_equal(stream_open(&so, &st, &e), OK);
    for (int run = 0; run < 1200; run++) {
        const uint32_t n = sizes[run % 5], style = (uint32_t)run / 5 % 6;
        struct sample_params p = sample_defaults();
        float *x = malloc(n * sizeof *x);
        uint8_t *allowed = malloc(n);
        struct sampler *whole, *highest;
        p.temperature = warm[rand() % 3];
        p.top_k = ks[rand() % 7];
        p.top_p = tops[rand() % 3];
        p.min_p = mins[rand() % 3];
        p.repetition_penalty = rand() % 6 ? 1.0f : 1.2f;
        p.presence_penalty = rand() % 8 ? 0.0f : 0.5f;
        p.top_logprobs = rand() % 2 ? (uint32_t)rand() % 21 : 0;
        p.seed = (uint64_t)run;
        const int32_t stops[] = { 0, 3 };
        if (rand() % 8 == 0) p.min_tokens = 2, p.stop_id = stops, p.n_stop_ids = 2;
        for (uint32_t i = 0; i < n; i++) allowed[i] = rand() % 10 > 0;
        allowed[n - 1] = 1;
        assert_int_equal(sampler_create(&p, n, run % 3 ? allowed : NULL, NULL, 0, &whole, &e), OK);
        assert_int_equal(sampler_create(&p, n, run % 3 ? allowed : NULL, NULL, 0, &highest, &e), OK);
        for (int step = 0; step < 4; step++) {
            for (uint32_t i = 0; i < n; i++) {
                x[i] = (float)(30 * next_uniform() - 15);
                if (style == 1) x[i] = rintf(x[i] / 4);
                if (style == 2 && rand() % 3) x[i] = rand() % 2 ? -INFINITY : NAN;
                if (style == 3) x[i] = 2;
                if (style == 4) x[i] = rand() % 50 ? -20 : 10;
                if (style == 5 && rand() % 100) x[i] = NAN;
            }
            struct top_row row;
            const struct top_args a = { x, n, 1, n, run % 3 ? allowed : NULL, &row };
            assert_int_equal(st->ops->top(st, &a, &e), OK);
            float lp[2];
            int32_t id = -1;
            const int32_t want = sampler_next(whole, x, &lp[0]);
            const bool did = sampler_next_top(highest, &row, &id, &lp[1]);
            if (!did) id = sampler_next(highest, x, &lp[1]);
            decided[did]++;
            const struct sample_top *t[2];
            uint32_t m[2];
            sampler_top(whole, &t[0], &m[0]);
            sampler_top(highest, &t[1], &m[1]);
            if (id != want || m[0] != m[1] || (m[0] && memcmp(t[0], t[1], m[0] * sizeof **t) != 0) ||
                memcmp(&lp[0], &lp[1], sizeof lp[0]) != 0)
                fail_msg("run %d, step %d, style %u, %u ids: %d (%.9g), of all %d (%.9g)", run, step, style, n, id, (double)lp[1], want,
                         (double)lp[0]);
            const bool plain = p.repetition_penalty == 1.0f && p.presence_penalty == 0.0f && p.min_tokens == 0 && p.top_logprobs == 0;
            if (p.temperature == 0 && plain && (style < 2 || style == 3)) assert_true(did);
            if (!plain && (p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f)) assert_false(did);
        }
        sampler_destroy(&whole);
        sampler_destroy(&highest);
        free(x), free(allowed);
    }
    assert_true(decided[0] > 500 && decided[1] > 500);
    st->ops->close(&st);
}

/* ---- bias, minimum length, the likeliest ---------------------------------------------------------------------- */

static void test_bias(void **state)
{
    (void)state;
    const float logits[V] = { 1, 5, 2, 0, 0, 0, 0, 4 };
    const uint8_t allowed[V] = { 1, 1, 1, 1, 1, 1, 0, 1 };
    const struct sample_bias bias[] = { { 7, 100 }, { 1, -100 }, { 6, 100 }, { 2, 2.5f } };
    struct sample_params p = sample_defaults();
    struct err e;
    float lp;
    p.logit_bias = bias;
    p.n_logit_bias = 1;
    struct sampler *s = make(&p, allowed, NULL, 0);
    assert_int_equal(sampler_next(s, logits, &lp), 7);
    assert_true(fabs((double)lp - (4 - log(exp(1) + exp(5) + exp(2) + exp(4) + 3))) < 1e-5);   /* of the raw logits */
    sampler_destroy(&s);
    p.logit_bias = bias + 1;
    p.n_logit_bias = 3;
    s = make(&p, allowed, NULL, 0);
    assert_int_equal(sampler_next(s, logits, NULL), 2);        /* 1 is banned, 6 is not allowed, 2 + 2.5 > 4 */
    sampler_destroy(&s);
    const struct sample_bias bad[][2] = { { { 8, 1 }, { 0, 1 } }, { { -1, 1 }, { 0, 1 } }, { { 3, 1 }, { 3, 2 } },
                                          { { 3, 101 }, { 4, 1 } },
                                          { { 3, NAN }, { 4, 1 } } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        p.logit_bias = bad[i];
        p.n_logit_bias = 2;
        assert_int_equal(sampler_create(&p, V, NULL, NULL, 0, &s, &e), E_ARG);
        assert_string_equal(e.tag, "invalid_value");
        assert_string_equal(e.param, "logit_bias");
        assert_int_equal(sampler_create(&p, V, NULL, NULL, 0, &s, NULL), E_ARG);
    }
}

static void test_min_tokens(void **state)
{
    (void)state;
    const float logits[V] = { 9, 1, 8, 2, 0, 0, 0, 0 };
    const int32_t stops[] = { 2, 0, -1, 99 };
    struct sample_params p = sample_defaults();
    p.min_tokens = 2;
    p.stop_id = stops;
    p.n_stop_ids = 4;
    for (int warm = 0; warm < 2; warm++) {
        p.temperature = warm ? 0.05f : 0;                      /* exp(-1 / 0.05): the best, as good as always */
        struct sampler *s = make(&p, NULL, NULL, 0);
        assert_int_equal(sampler_next(s, logits, NULL), 3);
        assert_int_equal(sampler_next(s, logits, NULL), 3);
        assert_int_equal(sampler_next(s, logits, NULL), 0);
        sampler_destroy(&s);
    }
    const uint8_t only_stops[V] = { 1, 0, 1 };
    struct sampler *s = make(&p, only_stops, NULL, 0);
    assert_int_equal(sampler_next(s, logits, NULL), 0);        /* nothing else is left to say */
    sampler_destroy(&s);
}

static void test_top(void **state)
{
    (void)state;
    const float logits[V] = { 1, 7, NAN, 5, 5, -INFINITY, 6, 5 };
    const uint8_t allowed[V] = { 1, 1, 1, 1, 1, 1, 0, 1 };
    const int32_t want[] = { 1, 3, 4, 7, 0 };
    struct sample_params p = sample_defaults();
    const struct sample_top *top;
    struct err e;
    uint32_t n;
    float lp;
    const double norm = log(exp(1) + exp(7) + 3 * exp(5));
    for (uint32_t most = 0; most <= 20; most++) {
        p.top_logprobs = most;
        struct sampler *s = make(&p, allowed, NULL, 0);
        sampler_top(s, &top, &n);
        assert_int_equal(n, 0);
        assert_int_equal(sampler_next(s, logits, &lp), 1);
        sampler_top(s, &top, &n);
        assert_int_equal(n, most < 5 ? most : 5);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(top[i].id, want[i]);
            assert_true(fabs((double)top[i].logprob - ((double)logits[want[i]] - norm)) < 1e-5);
        }
        if (n) assert_true(top[0].logprob == lp);
        sampler_destroy(&s);
    }
    p.top_logprobs = 21;
    assert_int_equal(sample_check(&p, &e), E_ARG);
    assert_string_equal(e.param, "top_logprobs");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_greedy), cmocka_unit_test(test_penalties),
                                        cmocka_unit_test(test_frequencies), cmocka_unit_test(test_seed_and_ranges),
                                        cmocka_unit_test(test_same_draws_as_a_sort), cmocka_unit_test(test_bias),
                                        cmocka_unit_test(test_min_tokens), cmocka_unit_test(test_highest), cmocka_unit_test(test_top) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
