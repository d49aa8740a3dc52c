/* The text of /metrics: a strict reader of the format 0.0.4 takes every line of it, and the numbers are those that were
 * put in. The reader knows nothing of how the text is made. */
#include <ctype.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "http/metrics.h"

/* ---- the reader -------------------------------------------------------------------------------------------- */

#define LABELS_MAX 8
#define SAMPLES_MAX 4096

struct sample {
    char name[128];
    size_t n_labels;
    struct { char name[64], value[512]; } label[LABELS_MAX];
    double value;
};
struct family { char name[128], type[16]; bool has_help; size_t first, n; };   /* samples of it */

static struct sample *samples;
static struct family families[256];
static size_t n_samples, n_families;

static bool name_start(char c) { return isalpha((unsigned char)c) || c == '_' || c == ':'; }
static bool name_more(char c) { return name_start(c) || isdigit((unsigned char)c); }

static const char *read_name(const char *p, char *out, size_t cap, bool colons)
{
    size_t n = 0;
    assert_true(name_start(*p));
    while (name_more(*p) && (colons || *p != ':')) {
        assert_true(n + 1 < cap);
        out[n++] = *p++;
    }
    out[n] = 0;
    return p;
}

static const char *read_labels(const char *p, struct sample *s)
{
    assert_true(*p == '{');
    p++;
    while (*p != '}') {
        assert_true(s->n_labels < LABELS_MAX);
        p = read_name(p, s->label[s->n_labels].name, sizeof s->label[0].name, false);
        assert_true(p[0] == '=' && p[1] == '"');
        size_t n = 0;
        for (p += 2; *p != '"'; p++) {
            assert_true(*p && *p != '\n' && n + 1 < sizeof s->label[0].value);
            if (*p == '\\') {
                p++;
                assert_true(*p == '\\' || *p == '"' || *p == 'n');
                s->label[s->n_labels].value[n++] = *p == 'n' ? '\n' : *p;
            } else {
                s->label[s->n_labels].value[n++] = *p;
            }
        }
        s->label[s->n_labels++].value[n] = 0;
        for (size_t i = 0; i + 1 < s->n_labels; i++) assert_string_not_equal(s->label[i].name, s->label[s->n_labels - 1].name);
        p++;
        if (*p == ',') p++;
        else assert_true(*p == '}');
    }
    return p + 1;
}

static double read_value(const char *p)
{
    char *end;
    if (strcmp(p, "+Inf") == 0) return INFINITY;
    assert_true(isdigit((unsigned char)*p) || *p == '-' || strcmp(p, "NaN") == 0);
    const double v = strtod(p, &end);
    assert_true(end != p && *end == 0);
    return v;
}

/* Does a sample's name belong to the family? */
static bool belongs(const struct family *f, const char *name)
{
    const size_t n = strlen(f->name);
    if (strncmp(name, f->name, n) != 0) return false;
    if (name[n] == 0) return strcmp(f->type, "histogram") != 0;
    return strcmp(f->type, "histogram") == 0 &&
           (strcmp(name + n, "_bucket") == 0 || strcmp(name + n, "_sum") == 0 || strcmp(name + n, "_count") == 0);
}

static bool same_labels(const struct sample *a, const struct sample *b, const char *but)
{
    for (size_t i = 0; i < a->n_labels; i++) {
        bool found = strcmp(a->label[i].name, but) == 0;
        for (size_t k = 0; k < b->n_labels; k++)
            found |= strcmp(a->label[i].name, b->label[k].name) == 0 && strcmp(a->label[i].value, b->label[k].value) == 0;
        if (!found) return false;
    }
    return true;
}

static void read_line(char *line)
{
    char name[128];
    if (strncmp(line, "# HELP ", 7) == 0 || strncmp(line, "# TYPE ", 7) == 0) {
        const char *rest = read_name(line + 7, name, sizeof name, true);
        assert_true(*rest == ' ' && rest[1] != 0);
        if (line[2] == 'H') {
            for (size_t i = 0; i < n_families; i++) assert_string_not_equal(families[i].name, name);   /* once, and in one piece */
            families[n_families] = (struct family){ .has_help = true, .first = n_samples };
            snprintf(families[n_families++].name, sizeof families[0].name, "%s", name);
            return;
        }
        struct family *f = &families[n_families - 1];
        assert_true(n_families > 0 && f->type[0] == 0 && f->n == 0);
        assert_string_equal(f->name, name);            /* behind its HELP, before its samples */
        assert_true(strcmp(rest + 1, "gauge") == 0 || strcmp(rest + 1, "counter") == 0 || strcmp(rest + 1, "histogram") == 0);
        snprintf(f->type, sizeof f->type, "%s", rest + 1);
        return;
    }
    assert_true(line[0] != '#' && line[0] != 0 && n_samples < SAMPLES_MAX && n_families > 0);
    struct sample *s = &samples[n_samples];
    *s = (struct sample){ 0 };
    const char *p = read_name(line, s->name, sizeof s->name, true);
    if (*p == '{') p = read_labels(p, s);
    assert_true(*p == ' ');
    s->value = read_value(p + 1);
    struct family *f = &families[n_families - 1];
    assert_true(f->type[0] && belongs(f, s->name));
    for (size_t i = f->first; i < n_samples; i++)      /* a series stands once */
        assert_false(strcmp(samples[i].name, s->name) == 0 && samples[i].n_labels == s->n_labels && same_labels(s, &samples[i], ""));
    f->n++;
    n_samples++;
}

static const struct sample *find(const char *name, const char *label, const char *value)
{
    for (size_t i = 0; i < n_samples; i++) {
        if (strcmp(samples[i].name, name) != 0) continue;
        if (label == NULL) return &samples[i];
        for (size_t k = 0; k < samples[i].n_labels; k++)
            if (strcmp(samples[i].label[k].name, label) == 0 && strcmp(samples[i].label[k].value, value) == 0) return &samples[i];
    }
    return NULL;
}

static double value_of(const char *name, const char *label, const char *value)
{
    const struct sample *s = find(name, label, value);
    if (s == NULL) fail_msg("no %s{%s=\"%s\"}", name, label ? label : "", value ? value : "");
    return s->value;
}

/* Buckets of each series rise, their bounds too, the last one is +Inf and equals the count; the sum is there. */
static void check_histogram(const struct family *f)
{
    char bucket[160], count[160], sum[160];
    snprintf(bucket, sizeof bucket, "%s_bucket", f->name);
    snprintf(count, sizeof count, "%s_count", f->name);
    snprintf(sum, sizeof sum, "%s_sum", f->name);
    double bound = -INFINITY, below = 0;
    size_t n_counts = 0, n_sums = 0, n_inf = 0;
    for (size_t i = f->first; i < f->first + f->n; i++) {
        const struct sample *s = &samples[i];
        if (strcmp(s->name, sum) == 0) n_sums++;
        if (strcmp(s->name, count) == 0) {
            n_counts++;
            assert_true(i >= 2 && strcmp(samples[i - 2].label[samples[i - 2].n_labels - 1].value, "+Inf") == 0);
            assert_true(same_labels(s, &samples[i - 2], "le"));
            assert_true(samples[i - 2].value == s->value);
        }
        if (strcmp(s->name, bucket) != 0) continue;
        assert_string_equal(s->label[s->n_labels - 1].name, "le");
        const double le = read_value(s->label[s->n_labels - 1].value);
        assert_true(le > bound && s->value >= below);
        bound = le;
        below = s->value;
        if (isinf(le)) {
            n_inf++;
            bound = -INFINITY;
            below = 0;
        }
    }
    assert_true(n_counts == n_inf && n_sums == n_inf);
}

static const struct groups_view *groups;
static uint32_t n_groups;

static void read_all(struct metrics *m, const struct service_gauges *g)
{
    char *text = metrics_text(m, NULL, g, groups, n_groups), *save = NULL;
    const size_t n = strlen(text);
    assert_true(n > 0 && text[n - 1] == '\n');
    n_samples = n_families = 0;
    assert_null(strstr(text, "\n\n"));
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) read_line(line);
    free(text);
    for (size_t i = 0; i < n_families; i++) {
        assert_true(families[i].has_help && families[i].type[0]);
        const size_t l = strlen(families[i].name);
        const bool total = l > 6 && strcmp(families[i].name + l - 6, "_total") == 0;
        if (strcmp(families[i].type, "counter") == 0) assert_true(total);
        if (strcmp(families[i].type, "histogram") == 0) check_histogram(&families[i]);
    }
}

/* ---- tests ------------------------------------------------------------------------------------------------- */

#define AWKWARD "a\\b \"c\"\nd\xc3\xa9"

static struct metrics *created(bool with_model)
{
    struct metrics *m;
    struct err e;
    const struct engine_info info = { .max_model_len = 32768, .page_tokens = 16, .n_pages = 100, .page_bytes = 4096,
                                      .weight_bytes = 1000, .kv_dtype = DT_F32 };
    assert_int_equal(metrics_create(&m, &e), OK);
    if (with_model) metrics_model(m, AWKWARD, &info);
    return m;
}

/* Before the model: what needs no model, in a text that reads. */
static void test_before_the_model(void **state)
{
    (void)state;
    struct metrics *m = created(false);
    metrics_add1(m, METRIC_SUCCESS, "stop", 1);
    metrics_add(m, METRIC_REQ_PROMPT, NULL, 7);        /* bounds follow from the model: not kept */
    read_all(m, NULL);
    assert_null(find("omnidrop:request_success_total", NULL, NULL));
    assert_true(value_of("omnidrop:build_info", NULL, NULL) == 1);
    for (const char **p = (const char *[]){ "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds",
                                            "process_virtual_memory_bytes", "process_max_fds", "process_start_time_seconds",
                                            NULL }; *p; p++)
        assert_true(value_of(*p, NULL, NULL) >= 0);
    assert_true(value_of("process_resident_memory_bytes", NULL, NULL) > 1e6);
    metrics_destroy(&m);
    assert_null(m);
}

/* Every family of the contract is there once a model is, each with the model's name as it was given. */
static void test_names(void **state)
{
    static const char *const want[] = {
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "media_jobs", "device_memory_bytes",
        "prompt_tokens_total", "generation_tokens_total", "num_preemptions_total", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "mm_cache_queries_total", "mm_cache_hits_total", "request_success_total",
        "request_failure_total", "client_disconnects_total", "av_tokens_total", "av_tokens_pruned_total",
        "layer_av_tokens_kept_total", "media_seconds_total", "media_bytes_total", "media_fetch_total",
        "transcription_windows_total", "batch_requests_total", "cache_config_info", "admitted_by_freed_pages_total",
        "pages_freed_by_pruning_total", "kv_pages" };
    static const char *const histograms[] = {
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
        "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds", "request_prompt_tokens",
        "request_generation_tokens", "request_params_n", "request_params_max_tokens", "iteration_tokens_total",
        "media_decode_time_seconds", "encoder_time_seconds", "av_retention_ratio", "transcription_real_time_factor" };
    (void)state;
    struct metrics *m = created(true);
    const struct service_gauges g = { .pages_total = 100, .pages_free = 60, .pages_reserved = 10, .pages_cached = 15 };
    metrics_add(m, METRIC_FAILURE, (const char *const[]){ "invalid_value", "/v1/chat/completions", NULL }, 1);
    metrics_add(m, METRIC_AV_TOKENS, (const char *const[]){ "audio", "none", NULL }, 1);
    metrics_add(m, METRIC_AV_PRUNED, (const char *const[]){ "audio", "none", NULL }, 0);
    metrics_add(m, METRIC_LAYER_KEPT, (const char *const[]){ "0", "none", NULL }, 1);
    for (enum metric w = METRIC_MEDIA_TIME; w < METRIC_COUNT; w++) metrics_add1(m, w, "x", 0.5);
    read_all(m, &g);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        char name[128];
        snprintf(name, sizeof name, "omnidrop:%s", want[i]);
        assert_non_null(find(name, "model_name", AWKWARD));
    }
    for (size_t i = 0; i < sizeof histograms / sizeof *histograms; i++) {
        char name[128];
        snprintf(name, sizeof name, "omnidrop:%s_bucket", histograms[i]);
        assert_non_null(find(name, "model_name", AWKWARD));
    }
    assert_true(fabs(value_of("omnidrop:kv_cache_usage_perc", NULL, NULL) - 0.35) < 1e-12);      /* 25 held and 10 promised */
    assert_true(value_of("omnidrop:kv_pages", "state", "cached") == 15);
    metrics_destroy(&m);
}

/* A value on a bound belongs to its bucket; the bounds are those that dashboards of vLLM expect. */
static void test_buckets(void **state)
{
    (void)state;
    struct metrics *m = created(true);
    for (const double *v = (const double[]){ 0.001, 0.0011, 3, 1e9, -1 }; *v >= 0; v++) metrics_add(m, METRIC_TTFT, NULL, *v);
    read_all(m, NULL);
    const char *bucket = "omnidrop:time_to_first_token_seconds_bucket";
    assert_true(value_of(bucket, "le", "0.001") == 1);
    assert_true(value_of(bucket, "le", "0.005") == 2);
    assert_true(value_of(bucket, "le", "2.5") == 2);
    assert_true(value_of(bucket, "le", "5") == 3);
    assert_true(value_of(bucket, "le", "2560") == 3);
    assert_true(value_of(bucket, "le", "+Inf") == 4);
    assert_true(value_of("omnidrop:time_to_first_token_seconds_sum", NULL, NULL) == 0.001 + 0.0011 + 3 + 1e9);
    assert_non_null(find("omnidrop:e2e_request_latency_seconds_bucket", "le", "7680"));
    assert_non_null(find("omnidrop:inter_token_latency_seconds_bucket", "le", "0.025"));
    assert_non_null(find("omnidrop:iteration_tokens_total_bucket", "le", "16384"));
    assert_non_null(find("omnidrop:request_prompt_tokens_bucket", "le", "20000"));     /* 1, 2, 5 up to the context */
    assert_null(find("omnidrop:request_prompt_tokens_bucket", "le", "50000"));
    metrics_destroy(&m);
}

/* A finished request, a cancelled one and a failed one: each number where it belongs. */
static void test_requests(void **state)
{
    (void)state;
    struct metrics *m = created(true);
    struct err e;
    const uint32_t alive[3][4] = { { 0, 10, 20, 0 }, { 0, 10, 12, 0 }, { 0, 4, 6, 0 } };
    const double token_s[3] = { 1.0, 1.02, 1.5 };
    const struct eng_result stop = { .finish = ENG_STOP, .n_ids = 3, .token_s = token_s, .n_layers = 2, .alive = alive,
                                     .mean_retention = 0.75 };
    const struct eng_result length = { .finish = ENG_LENGTH, .n_layers = 2, .alive = alive };
    const struct eng_result *const choice[2] = { &stop, &length };
    struct policy_params policy;
    assert_int_equal(prune_params_init(&policy, "omnidrop", 2, &e), OK);
    const struct service_summary s = { .n_choices = 2, .choice = choice, .policy = &policy, .n_prompt = 40,
                                       .n_kind = { 8, 12, 20, 0 }, .max_tokens = 64, .first_token_s = 0.5, .total_s = 2,
                                       .encode_s = 0.1, .prefill_s = 0.4, .decode_s = 1, .media_seconds = 1.5 };
    metrics_observe(m, &s, NULL);
    err_set(&e, E_CANCELLED, "gone");
    metrics_observe(m, &s, &e);
    err_set(&e, E_FULL, "too much");
    metrics_observe(m, &s, &e);
    metrics_failure(m, "/v1/chat/completions", &e);
    metrics_observe_step(m, 9);
    read_all(m, NULL);
    assert_true(value_of("omnidrop:request_success_total", "finished_reason", "stop") == 1);
    assert_true(value_of("omnidrop:request_success_total", "finished_reason", "length") == 1);
    assert_true(value_of("omnidrop:request_success_total", "finished_reason", "abort") == 1);
    assert_true(value_of("omnidrop:request_failure_total", "code", "insufficient_memory") == 1);
    assert_true(value_of("omnidrop:e2e_request_latency_seconds_count", NULL, NULL) == 1);
    assert_true(value_of("omnidrop:request_inference_time_seconds_sum", NULL, NULL) == 1.5);
    assert_true(value_of("omnidrop:inter_token_latency_seconds_count", NULL, NULL) == 2);
    assert_true(value_of("omnidrop:inter_token_latency_seconds_bucket", "le", "0.025") == 1);
    assert_true(value_of("omnidrop:av_tokens_total", "modality", "audio") == 12);
    assert_true(value_of("omnidrop:av_tokens_pruned_total", "modality", "audio") == 8);
    assert_true(value_of("omnidrop:av_tokens_pruned_total", "modality", "video") == 14);
    assert_null(find("omnidrop:av_tokens_total", "modality", "image"));
    assert_true(value_of("omnidrop:layer_av_tokens_kept_total", "layer", "1") == 22);
    assert_non_null(find("omnidrop:layer_av_tokens_kept_total", "policy", "omnidrop"));
    assert_true(value_of("omnidrop:media_seconds_total", "kind", "video") == 1.5);
    assert_true(value_of("omnidrop:request_params_max_tokens_bucket", "le", "100") == 1);
    assert_true(value_of("omnidrop:iteration_tokens_total_sum", NULL, NULL) == 9);
    metrics_destroy(&m);
}

static void *hammer(void *m)
{
    for (int i = 0; i < 2000; i++) metrics_add1(m, METRIC_WINDOWS, i % 2 ? "ok" : "failed", 1);
    return NULL;
}

/* From several threads, and read meanwhile: no count is lost. Too many series of a family: the rest goes to "other". */
static void test_threads_and_bounds(void **state)
{
    (void)state;
    struct metrics *m = created(true);
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&thread[i], NULL, hammer, m), 0);
    for (int i = 0; i < 5; i++) read_all(m, NULL);
    for (int i = 0; i < 4; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < METRICS_SERIES_MAX + 50; i++) {
        char value[16];
        snprintf(value, sizeof value, "v%d", i);
        metrics_add1(m, METRIC_BATCH, value, 1);
    }
    read_all(m, NULL);
    assert_true(value_of("omnidrop:transcription_windows_total", "status", "ok") == 4000);
    assert_true(value_of("omnidrop:transcription_windows_total", "status", "failed") == 4000);
    assert_true(value_of("omnidrop:batch_requests_total", "status", "other") >= 50);
    metrics_destroy(&m);
}

/* Gauges of each group that is there, counters of all; what another leader counts is counted here. */
static void test_groups(void **state)
{
    const struct groups_view v[3] = {
        { .group = 0, .state = GROUPS_READY, .n_jobs = 2, .gauges = { .pages_total = 10, .pages_free = 4, .prompt_tokens = 100 } },
        { .group = 1, .state = GROUPS_GONE, .gauges = { .pages_total = 10, .pages_free = 9, .prompt_tokens = 20 } },
        { .group = 2, .state = GROUPS_READY, .n_jobs = 1, .gauges = { .pages_total = 10, .pages_free = 7, .prompt_tokens = 3 } } };
    struct metrics *m = created(true), *far = created(true);
    uint32_t n_free = 0, n_up = 0, n_jobs = 0, n_prompt = 0, n_stop = 0;
    (void)state;
    metrics_forward(far, metrics_take, m);
    metrics_add1(far, METRIC_SUCCESS, "stop", 2);
    metrics_add1(far, METRIC_QUEUE_TIME, NULL, 0.25);
    metrics_take(m, METRIC_COUNT, NULL, 0, 1);         /* of another build: nothing */
    metrics_take(m, METRIC_SUCCESS, NULL, 0, 1);
    groups = v;
    n_groups = 3;
    read_all(m, NULL);
    for (size_t i = 0; i < n_samples; i++) {
        const struct sample *s = &samples[i];
        const char *last = s->n_labels ? s->label[s->n_labels - 1].value : "";
        const bool grouped = s->n_labels && strcmp(s->label[s->n_labels - 1].name, "group") == 0;
        if (strcmp(s->name, "omnidrop:kv_pages") == 0 && strcmp(s->label[s->n_labels - 2].value, "free") == 0) {
            assert_true(grouped && s->value == (last[0] == '0' ? 4 : 7) && last[0] != '1');
            n_free++;
        }
        if (strcmp(s->name, "omnidrop:group_up") == 0) n_up += grouped && s->value == (last[0] != '1');
        if (strcmp(s->name, "omnidrop:group_jobs") == 0) n_jobs += (uint32_t)s->value;
        if (strcmp(s->name, "omnidrop:prompt_tokens_total") == 0) n_prompt += (uint32_t)s->value;
        if (strcmp(s->name, "omnidrop:request_success_total") == 0 && strcmp(last, "stop") == 0) n_stop += (uint32_t)s->value;
    }
    assert_int_equal(n_free, 2);
    assert_int_equal(n_up, 3);
    assert_int_equal(n_jobs, 3);
    assert_int_equal(n_prompt, 123);
    assert_int_equal(n_stop, 2);
    groups = NULL;
    n_groups = 0;
    metrics_destroy(&m);
    metrics_destroy(&far);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_before_the_model), cmocka_unit_test(test_names), cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_requests), cmocka_unit_test(test_threads_and_bounds), cmocka_unit_test(test_groups),
    };
    samples = mem_must(SAMPLES_MAX, sizeof *samples);
    const int failed = cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
    free(samples);
    return failed;
}
