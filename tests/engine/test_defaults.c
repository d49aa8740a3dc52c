/* Goal: omnidrop.ini gives a model's defaults where nobody says otherwise, and nothing that is wrong in it passes. Method:
 * files good and bad beside no model at all; what is given against what the file gives, every pair that matters; the
 * bundled model's own file, and that the page counts said at start are those that admission reserves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/defaults.h"
#include "engine/inside.h"

#define L 12

static char dir[64], path[96];

static void write_file(const char *text)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static struct model_defaults load(const char *text)
{
    struct model_defaults d;
    struct err e;
    write_file(text);
    if (model_defaults_load(dir, L, &d, &e) != OK) fail_msg("%s", e.text);
    return d;
}

static void good_files(void **state)
{
    (void)state;
    struct err e;
    struct model_defaults d;
    unlink(path);
    assert_int_equal(model_defaults_load(dir, L, &d, &e), OK);
    assert_true(d.n_policies == 0 && d.transcribe.window_s == 0 && d.transcribe.overlap_s < 0 && !d.transcribe.language[0]);
    model_defaults_free(&d);
    d = load("");
    assert_true(d.n_policies == 0 && d.transcribe.overlap_s < 0);
    model_defaults_free(&d);
    d = load("# words\n[transcribe]\ninstruction = \"Say it.\\n\"\nlanguage = EN\nwindow = 6.5\noverlap = 0\n"
             "[policy]\nomnidrop.t_mid = 0.4\nomnidrop.p-init = 0.3\nomnidrop.p_final = 0.5\nrandom.R = 0.2\nomnidrop.step0 = off\n"
             "omnidrop.ref = anchor\nomnidrop.t_mid = 0.25\n[transcribe]\nwindow = 7\n");
    assert_string_equal(d.transcribe.instruction, "Say it.\n");
    assert_string_equal(d.transcribe.language, "english");
    assert_true(d.transcribe.window_s == 7 && d.transcribe.overlap_s == 0 && d.n_policies == 2);
    const struct policy_params *p = &d.policy[0];
    assert_string_equal(prune_params_name(p), "omnidrop");
    assert_true(prune_get(p, "t_mid") == 0.25 && prune_get(p, "p_init") == 0.3 && prune_get(p, "step0") == 0);
    assert_true(prune_is_set(p, "ref") && !prune_is_set(p, "beta"));
    assert_true(prune_get(&d.policy[1], "retention") == 0.2);
    model_defaults_free(&d);
    model_defaults_free(&d);       /* nothing set is freed like anything */
}

static void bad_files(void **state)
{
    (void)state;
    static const struct { const char *text; int line; const char *why, *right; } bad[] = {
        { "window = 6\n", 1, "\"window\"", "[transcribe]" },
        { "[transcribe]\nwindow_s = 6\n", 2, "\"window_s\"", "window or overlap" },
        { "\n[chat]\n", 2, "[chat]", "[transcribe] or [policy]" },
        { "[transcribe]\n\nwindow = six\n", 3, "window = six", "2 to 120" },
        { "[transcribe]\nwindow = 1.5\n", 2, "window = 1.5", "2 to 120" },
        { "[transcribe]\nwindow = 6 s\n", 2, "6 s", "number" },
        { "[transcribe]\nwindow = nan\n", 2, "nan", "number" },
        { "[transcribe]\nwindow =\n", 2, "window", "number" },
        { "[transcribe]\noverlap = -1\n", 2, "overlap", "0 to 60" },
        { "[transcribe]\noverlap = 4\nlanguage = en\nwindow = 6\n", 2, "overlap = 4", "half a window of 6 s" },
        { "[transcribe]\noverlap = 16\n", 2, "overlap = 16", "half a window of 30 s" },
        { "[transcribe]\nlanguage = klingon\n", 2, "klingon", "ISO 639" },
        { "[policy]\nt_mid = 0.4\n", 2, "\"t_mid\"", "omnidrop.t_mid = 0.4" },
        { "[policy]\nguess.t_mid = 0.4\n", 2, "\"guess\"", "omnidrop" },
        { "[policy]\nomnidrop.mid = 0.4\n", 2, "\"mid\"", "t_mid" },
        { "[policy]\nomnidrop. = 0.4\n", 2, "\"\"", "t_mid" },
        { "[policy]\nnone.t_mid = 0.4\n", 2, "\"t_mid\"", "none" },
        { "[policy]\nomnidrop.t_mid = 1.4\n", 2, "1.4", "0 to 1" },
        { "[policy]\nomnidrop.t_mid = x\n", 2, "\"x\"", "number" },
        { "[policy]\nomnidrop.step0 = 2\n", 2, "\"2\"", "true or false" },
        { "[policy]\nomnidrop.ref = other\n", 2, "other", "dycoke or anchor" },
        { "[policy]\nomnidrop.tds_start_layer = 13\n", 2, "13", "12 layers" },
        { "[policy]\nomnidrop.p_final = 0.3\nomnidrop.retention = 0.3\nrandom.seed = 1\n", 3, "exclude", "retention" },
        { "[policy]\nomnidrop.p_init = 0.6\nrandom.seed = 1\n", 2, "p_init", "lower p_init" },
        { "[policy\n", 1, "without ]", "" },
        { "[policy]\nomnidrop.t_mid\n", 2, "expected key = value", "" },
        { "[transcribe]\ninstruction = \"Say\n", 2, "quote", "" },
    };
    struct model_defaults d;
    struct err e;
    char at[128];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file(bad[i].text);
        if (model_defaults_load(dir, L, &d, &e) != E_MODEL) fail_msg("%zu passes: %s", i, bad[i].text);
        assert_int_equal(e.code, E_MODEL);
        snprintf(at, sizeof at, "%s:%d: ", path, bad[i].line);
        if (strncmp(e.text, at, strlen(at)) != 0 || strstr(e.text, bad[i].why) == NULL || strstr(e.text, bad[i].right) == NULL)
            fail_msg("%zu: %s", i, e.text);
        assert_true(d.n_policies == 0 && d.policy == NULL);
    }
    char text[1024] = "[transcribe]\ninstruction = ";
    memset(text + strlen(text), 'x', 600);
    write_file(text);
    assert_int_equal(model_defaults_load(dir, L, &d, &e), E_MODEL);
    assert_non_null(strstr(e.text, "at most 511"));
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(model_defaults_load(dir, L, &d, &e), E_MODEL);
    assert_non_null(strstr(e.text, "omnidrop.ini: Is a directory"));
    rmdir(path);
}

static struct policy_params given(const char *policy, const char *key, double value)
{
    struct policy_params p;
    struct err e;
    assert_int_equal(prune_params_init(&p, policy, L, &e), OK);
    if (key) assert_int_equal(prune_params_set(&p, key, value, &e), OK);
    return p;
}

static void policies_of_the_model(void **state)
{
    (void)state;
    struct err e;
    struct model_defaults d = load("[policy]\nomnidrop.t_mid = 0.25\nomnidrop.p_final = 0.5\nrandom.retention = 0.2\n");
    struct policy_params p = given("omnidrop", NULL, 0);
    model_defaults_policy(NULL, &p);
    assert_true(prune_get(&p, "t_mid") == 0.5);
    model_defaults_policy(&d, &p);
    assert_int_equal(prune_params_finish(&p, &e), OK);
    assert_true(prune_get(&p, "t_mid") == 0.25 && prune_get(&p, "p_final") == 0.5 && prune_get(&p, "beta") == 20);
    p = given("omnidrop", "t_mid", 0.7);                   /* who asks comes first */
    model_defaults_policy(&d, &p);
    assert_true(prune_get(&p, "t_mid") == 0.7 && prune_get(&p, "p_final") == 0.5);
    p = given("omnidrop", "retention", 0.3);               /* and takes with it what it excludes */
    model_defaults_policy(&d, &p);
    assert_int_equal(prune_params_finish(&p, &e), OK);
    assert_true(prune_get(&p, "t_mid") == 0.25 && !prune_is_set(&p, "p_final"));
    p = given("ttm", NULL, 0);                             /* of another policy nothing */
    const struct policy_params before = p;
    model_defaults_policy(&d, &p);
    assert_memory_equal(&before, &p, sizeof p);
    p = given("random", "seed", 3);
    model_defaults_policy(&d, &p);
    assert_true(prune_get(&p, "retention") == 0.2 && prune_get(&p, "seed") == 3);
    model_defaults_free(&d);
    d = load("[policy]\nomnidrop.retention = 0.4\n");
    p = given("omnidrop", "p_final", 0.6);
    model_defaults_policy(&d, &p);
    assert_int_equal(prune_params_finish(&p, &e), OK);
    assert_true(!prune_is_set(&p, "retention") && prune_get(&p, "p_final") == 0.6);
    p = given("omnidrop", "beta", 9);
    model_defaults_policy(&d, &p);
    assert_int_equal(prune_params_finish(&p, &e), OK);
    assert_true(prune_get(&p, "retention") == 0.4 && prune_get(&p, "beta") == 9);
    model_defaults_free(&d);
}

static void windows_of_the_model(void **state)
{
    (void)state;
    static const struct { const char *text; double window, overlap, want_window, want_overlap; } cases[] = {
        { "", 0, -1, 30, 2 },
        { "", 4, -1, 4, 1 },
        { "[transcribe]\nwindow = 6\noverlap = 2.5\n", 0, -1, 6, 2.5 },
        { "[transcribe]\nwindow = 6\noverlap = 2.5\n", 4, -1, 4, 1 },
        { "[transcribe]\nwindow = 6\noverlap = 2.5\n", 40, -1, 40, 2.5 },
        { "[transcribe]\nwindow = 6\noverlap = 2.5\n", 0, 0, 6, 0 },
        { "[transcribe]\nwindow = 6\noverlap = 2.5\n", 8, 3, 8, 3 },
        { "[transcribe]\noverlap = 0\n", 0, -1, 30, 0 },
        { "[transcribe]\nwindow = 2\n", 0, -1, 2, 0.5 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_defaults d = load(cases[i].text);
        struct windows_options o = { .keep_silence = true };
        model_defaults_windows(&d, cases[i].window, cases[i].overlap, &o);
        if (o.window_s != cases[i].want_window || o.overlap_s != cases[i].want_overlap)
            fail_msg("%zu: %g and %g", i, o.window_s, o.overlap_s);
        assert_true(o.keep_silence);
        model_defaults_free(&d);
    }
}

/* The bundled model: 30 % of a film of 8 s with sound must be within its reach. */
static void the_bundled_model(void **state)
{
    struct engine *en = *state;
    struct err e;
    const struct model_defaults *d = engine_defaults(en);
    assert_true(d->transcribe.instruction[0] && d->transcribe.window_s > 0);
    struct policy_params p = given("omnidrop", "retention", 0.3);
    model_defaults_policy(d, &p);
    assert_int_equal(prune_params_finish(&p, &e), OK);
    const struct prune_item item = { .kind = TOKEN_VIDEO, .n_audio = 200, .steps = 8, .step_tokens = 12 };
    const struct prune_shape film = { .n_layers = engine_config(en)->text.layers, .n_items = 1, .item = &item };
    struct policy_plan plan;
    if (prune_plan_shape(&p, &film, &plan, &e) != OK) fail_msg("%s", e.text);
    assert_true(plan.p_final <= 0.9);
    prune_plan_free(&plan);
}

/* What the start line counts with is what admission reserves for the request itself. */
static void pages_are_those_of_admission(void **state)
{
    struct engine *en = *state;
    static const struct { const char *policy, *key; double value; uint32_t max_tokens; } cases[] = {
        { "none", NULL, 0, 16 }, { "omnidrop", "retention", 0.3, 64 }, { "omnidrop", "p_final", 0.6, 1 },
        { "random", "retention", 0.2, 100 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct policy_params p = given(cases[i].policy, cases[i].key, cases[i].value);
        struct eng_request_options o = eng_request_defaults();
        struct eng_request *r;
        struct chat chat;
        struct err e;
        uint64_t pages = 0;
        model_defaults_policy(engine_defaults(en), &p);
        assert_int_equal(prune_params_finish(&p, &e), OK);
        chat_init(&chat);
        assert_int_equal(chat_add_message(&chat, CHAT_USER, &e), OK);
        assert_int_equal(chat_add_media(&chat, PART_VIDEO, "tests/data/omni-tiny-demo/av000.mp4", &e), OK);
        assert_int_equal(chat_add_text(&chat, "What is said?", 13, &e), OK);
        o.auto_audio = true;
        o.max_tokens = cases[i].max_tokens;
        o.policy = &p;
        if (eng_request_create(en, &chat, &o, &r, &e) != OK) fail_msg("%s", e.text);
        const struct prompt *prompt = eng_request_prompt(r);
        const struct prune_item item = prune_item_of(&prompt->items[0]);
        const struct prune_shape film = { .n_layers = engine_config(en)->text.layers, .n_items = 1, .item = &item };
        if (engine_pages_of(en, &p, &film, prompt->n - prompt->n_av, o.max_tokens, &pages, &e) != OK) fail_msg("%s", e.text);
        assert_int_equal(pages, sched_demand(en->pool, film.n_layers, &r->sched));
        assert_true(pages > 0);
        eng_request_destroy(en, &r);
        chat_free(&chat);
    }
    struct policy_params p = given("omnidrop", "retention", 0.001);
    struct err e;
    uint64_t pages;
    const struct prune_item item = { .kind = TOKEN_AUDIO, .n_audio = 100 };
    const struct prune_shape sound = { .n_layers = engine_config(en)->text.layers, .n_items = 1, .item = &item };
    assert_int_equal(engine_pages_of(en, &p, &sound, 8, 8, &pages, &e), E_ARG);
}

static int setup(void **state)
{
    struct engine *en;
    struct err e;
    const struct engine_options o = { .model_dir = ENGINE_BUNDLED_MODEL, .kv_bytes = (uint64_t)16 << 20 };
    strcpy(dir, "/tmp/test_defaults_XXXXXX");
    if (mkdtemp(dir) == NULL || engine_open(&o, &en, &e) != OK) return -1;
    snprintf(path, sizeof path, "%s/" MODEL_DEFAULTS_FILE, dir);
    *state = en;
    return 0;
}

static int teardown(void **state)
{
    struct engine *en = *state;
    engine_close(&en);
    unlink(path);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(good_files), cmocka_unit_test(bad_files),
                                        cmocka_unit_test(policies_of_the_model), cmocka_unit_test(windows_of_the_model),
                                        cmocka_unit_test(the_bundled_model), cmocka_unit_test(pages_are_those_of_admission) };
    return cmocka_run_group_tests(tests, setup, teardown);
}
