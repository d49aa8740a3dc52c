/* OmniDrop's schedule and its calibration. Method: the numbers printed in docs/omnidrop.md 3, the closed properties of
 * the sums, and refusals that name the reachable range. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "prune/policy.h"
#include "prune/schedule.h"

static const struct prune_schedule PAPER_7B_30 = { 0, 0.2, 0.5, 20 };

static void test_the_minute_of_7b(void **state)
{
    (void)state;
    static const uint32_t want[28] = { 4563, 4563, 4563, 4563, 4563, 4563, 4562, 4560, 4554, 4542,
                                       4518, 4469, 4376, 4207, 3931, 3538, 3063, 2569, 2110, 1711,
                                       1379, 1107, 888,  711,  570,  457,  366,  293 };
    uint32_t alive[29];
    uint64_t sum = 0;
    prune_alive(&PAPER_7B_30, 28, 4563, alive);
    for (int l = 0; l < 28; l++) {
        assert_int_equal(alive[l], want[l]);
        sum += alive[l];
    }
    assert_int_equal(alive[28], alive[27]); /* the last layer drops nothing */
    assert_true(fabs((double)sum / 28 / 10140 - 0.3024) < 5e-5);
}

static void test_calibration(void **state)
{
    (void)state;
    double p, range[2];
    struct err e;
    assert_int_equal(prune_calibrate(&PAPER_7B_30, 28, 0.45, 0.30, &p, range, &e), OK);
    assert_true(fabs(p - 0.206) < 1e-3);
    struct prune_schedule s = PAPER_7B_30;
    s.p_final = p;
    assert_true(fabs(prune_mean_retained(&s, 28, 0.45) - 0.30) < 1e-12);
    assert_int_equal(prune_calibrate(&PAPER_7B_30, 28, 0.45, 0.45, &p, range, &e), OK);
    assert_true(p < 1e-9);
    assert_int_equal(prune_calibrate(&PAPER_7B_30, 28, 0.45, range[0], &p, range, &e), OK);
    assert_true(p > 1 - 1e-6);
    assert_int_equal(prune_calibrate(&PAPER_7B_30, 28, 0.45, 0.46, &p, range, &e), E_ARG);
    assert_non_null(strstr(e.text, "0.45"));
    assert_int_equal(prune_calibrate(&PAPER_7B_30, 28, 0.45, range[0] / 2, &p, NULL, &e), E_ARG);
}

/* The plan of a minute of 7B at the paper's resolution: 35 + 115 of 338 a chunk, to the token. */
static void test_plan_of_a_minute(void **state)
{
    (void)state;
    struct policy_params p;
    struct policy_plan plan;
    struct err e;
    const struct prune_item item = { .kind = TOKEN_VIDEO, .n_audio = 1500, .steps = 60, .step_tokens = 144 };
    const struct prune_shape shape = { .n_layers = 28, .n_items = 1, .item = &item };
    assert_int_equal(prune_params_init(&p, "omnidrop", 28, &e), OK);
    assert_int_equal(prune_params_finish(&p, &e), OK);
    assert_int_equal(prune_plan_shape(&p, &shape, &plan, &e), OK);
    assert_int_equal(plan.n_orig, 10140);
    assert_int_equal(plan.n_entry, 4470);
    assert_true(plan.exact);
    uint64_t sum = 0;
    for (int l = 0; l < 28; l++) sum += plan.alive[l];
    assert_true(fabs((double)sum / 28 / 10140 - 0.296) < 5e-4);
    prune_plan_free(&plan);
    assert_int_equal(prune_params_set(&p, "step0", 0, &e), OK);
    assert_int_equal(prune_plan_shape(&p, &shape, &plan, &e), OK);
    assert_int_equal(plan.n_entry, 10140);
    prune_plan_free(&plan);
}

static void test_defaults_by_model(void **state)
{
    (void)state;
    static const struct {
        uint32_t layers;
        double p_final, tds;
    } want[] = { { 28, 0.2, 14 }, { 36, 0.15, 19 }, { 12, 0.2, 6 } };
    struct err e;
    for (size_t i = 0; i < 3; i++) {
        struct policy_params p;
        assert_int_equal(prune_params_init(&p, "omnidrop", want[i].layers, &e), OK);
        assert_true(prune_get(&p, "p_final") == want[i].p_final);
        assert_true(prune_get(&p, "tds_start_layer") == want[i].tds);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct policy_params p;
    struct policy_plan plan;
    struct err e;
    assert_int_equal(prune_params_init(&p, "fancy", 28, &e), E_ARG);
    assert_non_null(strstr(e.text, "omnidrop"));
    assert_int_equal(prune_params_init(&p, "none", 28, &e), OK);
    assert_int_equal(prune_params_set(&p, "p_final", 0.1, &e), E_ARG);
    assert_int_equal(prune_params_init(&p, "omnidrop", 28, &e), OK);
    assert_int_equal(prune_params_set(&p, "p_final", 1.5, &e), E_ARG);
    assert_int_equal(prune_params_set(&p, "p_final", NAN, &e), E_ARG);
    assert_int_equal(prune_params_set_text(&p, "step0", "maybe", &e), E_ARG);
    assert_int_equal(prune_params_set(&p, "p_init", 0.5, &e), OK);
    assert_int_equal(prune_params_finish(&p, &e), E_ARG); /* p_init above p_final */
    assert_non_null(strstr(e.text, "p_init"));
    assert_int_equal(prune_params_init(&p, "omnidrop", 28, &e), OK);
    assert_int_equal(prune_params_set(&p, "retention", 0.9, &e), OK);
    const struct prune_item item = { .kind = TOKEN_AUDIO, .n_audio = 1000 };
    const struct prune_shape shape = { .n_layers = 28, .n_items = 1, .item = &item };
    assert_int_equal(prune_plan_shape(&p, &shape, &plan, &e), E_ARG); /* step 0 leaves 0.7 */
    assert_non_null(strstr(e.text, "0.7000"));
    assert_int_equal(prune_params_set(&p, "p_final", 0.2, &e), OK);
    assert_int_equal(prune_params_finish(&p, &e), E_ARG); /* excludes retention */
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_the_minute_of_7b),
                                        cmocka_unit_test(test_calibration),
                                        cmocka_unit_test(test_plan_of_a_minute),
                                        cmocka_unit_test(test_defaults_by_model),
                                        cmocka_unit_test(test_refusals) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
