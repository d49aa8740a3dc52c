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

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_greedy), cmocka_unit_test(test_penalties),
                                        cmocka_unit_test(test_frequencies), cmocka_unit_test(test_seed_and_ranges) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
