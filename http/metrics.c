/* http/metrics.c - see metrics.h. One table says what families there are; a series is the text of its labels. */
#include "http/metrics.h"

#include <dirent.h>
#include <event2/event.h>
#include <libavutil/avutil.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "api/error.h"
#include "base/mem.h"
#include "engine/version.h"

#define LABELS_MAX 3
#define BOUNDS_MAX 32

enum kind { GAUGE, COUNTER, HISTOGRAM };
static const char *const kind_name[] = { "gauge", "counter", "histogram" };

/* Upper bounds, ended by 0. Those of names that vLLM has too are vLLM's, so that dashboards can be carried over. */
static const double ttft_bounds[] = { 0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20,
                                      40, 80, 160, 640, 2560, 0 };
static const double itl_bounds[] = { 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
                                     80, 0 };
static const double request_bounds[] = { 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
                                         1920, 7680, 0 };
static const double choices_bounds[] = { 1, 2, 5, 10, 20, 0 };
static const double iteration_bounds[] = { 1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 0 };
static const double ratio_bounds[] = { 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 0 };
static const double factor_bounds[] = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 0 };
static const double by_context[] = { 0 };          /* 1, 2, 5, 10, ... up to the model's context */

static const struct family {
    const char *name;
    enum kind kind;
    bool engine;                   /* has model_name, and is not there before the model */
    const char *label[LABELS_MAX];
    const double *bound;
    const char *help;
} families[METRIC_COUNT] = {
    [METRIC_RUNNING] = { "num_requests_running", GAUGE, true,
        .help = "Requests that are encoded, prefilled or decoded." },
    [METRIC_WAITING] = { "num_requests_waiting", GAUGE, true, .help = "Requests that are prepared or wait for pages." },
    [METRIC_KV_USAGE] = { "kv_cache_usage_perc", GAUGE, true,
        .help = "Share of the KV pages in use or promised, 0 to 1." },
    [METRIC_PAGES] = { "kv_pages", GAUGE, true, { "state" },
        .help = "KV pages by state; cached ones are taken back when needed." },
    [METRIC_MEDIA_JOBS] = { "media_jobs", GAUGE, true, { "stage" },
        .help = "Requests whose media are in a stage of preparation." },
    [METRIC_MM_CACHE_BYTES] = { "mm_cache_bytes", GAUGE, true, { "kind" },
        .help = "Bytes of cached encoder outputs and hidden states." },
    [METRIC_DEVICE_MEMORY] = { "device_memory_bytes", GAUGE, true, { "kind" }, .help = "Memory of the device by use." },
    [METRIC_CONNECTIONS] = { "http_connections", GAUGE, .help = "Open connections." },
    [METRIC_SPOOL] = { "spool_bytes", GAUGE, .help = "Bytes of request bodies on disk." },
    [METRIC_DRAINING] = { "draining", GAUGE, .help = "1 while the server ends what runs and takes nothing new." },
    [METRIC_PROMPT_TOKENS] = { "prompt_tokens_total", COUNTER, true, .help = "Prompt tokens, before pruning." },
    [METRIC_GENERATION_TOKENS] = { "generation_tokens_total", COUNTER, true, .help = "Generated tokens." },
    [METRIC_PREEMPTIONS] = { "num_preemptions_total", COUNTER, true,
        .help = "Requests that gave their pages up and run again." },
    [METRIC_OVERTAKES] = { "overtakes_total", COUNTER, true, .help = "Admissions past a request that waited longer." },
    [METRIC_ADMITTED] = { "admitted_total", COUNTER, true, .help = "Requests that got their pages." },
    [METRIC_ADMITTED_BY_FREED] = { "admitted_by_freed_pages_total", COUNTER, true,
                                   .help = "Requests admitted with pages that the pruning of a running request gave back." },
    [METRIC_PAGES_FREED] = { "pages_freed_by_pruning_total", COUNTER, true,
        .help = "Pages that pruned layers did not need." },
    [METRIC_PREFIX_QUERIES] = { "prefix_cache_queries_total", COUNTER, true,
        .help = "Prompt tokens looked for among cached prefixes." },
    [METRIC_PREFIX_HITS] = { "prefix_cache_hits_total", COUNTER, true, .help = "Of them, found." },
    [METRIC_MM_QUERIES] = { "mm_cache_queries_total", COUNTER, true,
        .help = "Media looked for among cached encoder outputs." },
    [METRIC_MM_HITS] = { "mm_cache_hits_total", COUNTER, true, .help = "Of them, found." },
    [METRIC_HTTP_REQUESTS] = { "http_requests_total", COUNTER, false, { "route", "method", "status" },
        .help = "Answered requests." },
    [METRIC_HTTP_BYTES] = { "http_bytes_total", COUNTER, false, { "direction" },
        .help = "Bytes over all connections." },
    [METRIC_BUILD_INFO] = { "build_info", GAUGE, false, { "version", "libevent", "ffmpeg" },
        .help = "Versions; the value is 1." },
    [METRIC_CACHE_INFO] = { "cache_config_info", GAUGE, true, { "block_size", "cache_dtype", "num_blocks" },
                            .help = "The page pool; the value is 1." },
    [METRIC_GROUP_UP] = { "group_up", GAUGE, true, { "group" }, .help = "1 where the group takes requests, 0 where it is gone." },
    [METRIC_GROUP_JOBS] = { "group_jobs", GAUGE, true, { "group" }, .help = "Jobs that a group was given and has not ended." },
    [METRIC_SUCCESS] = { "request_success_total", COUNTER, true, { "finished_reason" },
        .help = "Answers by how they ended." },
    [METRIC_FAILURE] = { "request_failure_total", COUNTER, true, { "code", "route" },
        .help = "Requests that ended with an error." },
    [METRIC_DISCONNECTS] = { "client_disconnects_total", COUNTER, true, { "phase" },
        .help = "Clients that left, by what was under way." },
    [METRIC_AV_TOKENS] = { "av_tokens_total", COUNTER, true, { "modality", "policy" },
        .help = "Media tokens before pruning." },
    [METRIC_AV_PRUNED] = { "av_tokens_pruned_total", COUNTER, true, { "modality", "policy" },
        .help = "Of them, dropped before the last layer's end." },
    [METRIC_LAYER_KEPT] = { "layer_av_tokens_kept_total", COUNTER, true, { "layer", "policy" },
        .help = "Media tokens alive entering a layer." },
    [METRIC_MEDIA_SECONDS] = { "media_seconds_total", COUNTER, true, { "kind" },
        .help = "Seconds of sound and film taken in." },
    [METRIC_MEDIA_BYTES] = { "media_bytes_total", COUNTER, true, { "source" },
        .help = "Bytes of media by where they came from." },
    [METRIC_MEDIA_FETCH] = { "media_fetch_total", COUNTER, true, { "result" },
        .help = "Media fetched from other hosts." },
    [METRIC_WINDOWS] = { "transcription_windows_total", COUNTER, true, { "status" },
        .help = "Windows of transcriptions." },
    [METRIC_BATCH] = { "batch_requests_total", COUNTER, true, { "status" }, .help = "Lines of batches." },
    [METRIC_TTFT] = { "time_to_first_token_seconds", HISTOGRAM, true, .bound = ttft_bounds,
        .help = "From the last byte of the request to its first token." },
    [METRIC_ITL] = { "inter_token_latency_seconds", HISTOGRAM, true, .bound = itl_bounds,
        .help = "Between two tokens of an answer." },
    [METRIC_E2E] = { "e2e_request_latency_seconds", HISTOGRAM, true, .bound = request_bounds,
        .help = "From the last byte of the request to the end of its answer." },
    [METRIC_QUEUE_TIME] = { "request_queue_time_seconds", HISTOGRAM, true, .bound = request_bounds,
        .help = "Waiting for pages." },
    [METRIC_PREFILL_TIME] = { "request_prefill_time_seconds", HISTOGRAM, true, .bound = request_bounds,
        .help = "Prefill." },
    [METRIC_DECODE_TIME] = { "request_decode_time_seconds", HISTOGRAM, true, .bound = request_bounds,
        .help = "First to last token." },
    [METRIC_INFERENCE_TIME] = { "request_inference_time_seconds", HISTOGRAM, true, .bound = request_bounds,
        .help = "Encoding, prefill and decode." },
    [METRIC_REQ_PROMPT] = { "request_prompt_tokens", HISTOGRAM, true, .bound = by_context,
        .help = "Prompt tokens of a request, before pruning." },
    [METRIC_REQ_GENERATION] = { "request_generation_tokens", HISTOGRAM, true, .bound = by_context,
        .help = "Generated tokens of a request." },
    [METRIC_PARAMS_N] = { "request_params_n", HISTOGRAM, true, .bound = choices_bounds,
        .help = "Answers that a request asked for." },
    [METRIC_PARAMS_MAX_TOKENS] = { "request_params_max_tokens", HISTOGRAM, true, .bound = by_context,
        .help = "Longest answer that a request allowed." },
    [METRIC_ITERATION_TOKENS] = { "iteration_tokens_total", HISTOGRAM, true, .bound = iteration_bounds,
        .help = "Tokens of a step of the engine." },
    [METRIC_MEDIA_TIME] = { "media_decode_time_seconds", HISTOGRAM, true, { "modality" }, request_bounds,
        "Fetching, probing and decoding the media of a request." },
    [METRIC_ENCODER_TIME] = { "encoder_time_seconds", HISTOGRAM, true, { "modality" }, request_bounds,
        "The audio and vision towers, for a request." },
    [METRIC_RETENTION] = { "av_retention_ratio", HISTOGRAM, true, { "policy" }, ratio_bounds,
        "Mean share of the media tokens alive over the layers." },
    [METRIC_RTF] = { "transcription_real_time_factor", HISTOGRAM, true, { "policy" }, factor_bounds,
        "Seconds of work for a second of media." },
};

struct series {
    char *labels;                  /* owned: a="b",c="d" without model_name; "" */
    double value;                  /* counter; sum of a histogram */
    uint64_t count, *bucket;       /* histogram: [n_bounds], not cumulative; owned */
};

struct metrics {
    pthread_mutex_t lock;
    struct { struct series *s; size_t n, cap; } family[METRIC_COUNT];
    double context_bound[BOUNDS_MAX];          /* ended by 0 */
    char *model;                   /* owned, escaped; NULL: not there yet */
    struct engine_info info;
    double started;                /* seconds of the real time clock */
    uint64_t gone_upload, gone_slow_reader;    /* of the server's counts, what is in the family already */
    void (*forward)(void *self, uint32_t which, const char *const *label, uint32_t n, double v);   /* NULL: kept here */
    void *forward_self;
};

/* ---- text -------------------------------------------------------------------------------------------------- */

struct text { char *p; size_t n, cap; };

static void put_bytes(struct text *t, const char *p, size_t n)
{
    struct err e;
    if (mem_grow(&t->p, &t->cap, t->n + n + 1, 1, &e) != OK) abort();
    memcpy(t->p + t->n, p, n);
    t->n += n;
    t->p[t->n] = 0;
}

static void put(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    put_bytes(t, line, n < (int)sizeof line ? (size_t)n : sizeof line - 1);
}

/* A value of a label: backslash, quote and line end are escaped. */
static void put_escaped(struct text *t, const char *s)
{
    for (; *s; s++) {
        if (*s == '\\') put_bytes(t, "\\\\", 2);
        else if (*s == '"') put_bytes(t, "\\\"", 2);
        else if (*s == '\n') put_bytes(t, "\\n", 2);
        else put_bytes(t, s, 1);
    }
}

/* The shortest decimal that reads back as v. */
static void put_number(struct text *t, double v)
{
    char s[40];
    if (isnan(v)) { put(t, "NaN"); return; }
    if (isinf(v)) { put(t, v > 0 ? "+Inf" : "-Inf"); return; }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtod(s, NULL) == v) break;
    }
    put(t, "%s", s);
}

static char *labels_text(const struct family *f, const char *const *label)
{
    struct text t = { 0 };
    put(&t, "%s", "");
    for (int i = 0; i < LABELS_MAX && f->label[i]; i++) {
        put(&t, "%s%s=\"", i ? "," : "", f->label[i]);
        put_escaped(&t, label && label[i] ? label[i] : "");
        put(&t, "\"");
    }
    return t.p;
}

/* NAME{model_name="M",LABELS,extra} VALUE */
static void put_sample(struct text *t, const struct metrics *m, const struct family *f, const char *suffix, const char *labels,
                       const char *extra, double v)
{
    const bool model = f->engine && m->model, any = model || labels[0] || extra[0];
    put(t, "omnidrop:%s%s", f->name, suffix);
    if (any) put(t, "{");
    if (model) {
        put(t, "model_name=\"");
        put_bytes(t, m->model, strlen(m->model));
        put(t, "\"%s", labels[0] || extra[0] ? "," : "");
    }
    put_bytes(t, labels, strlen(labels));
    if (any) put(t, "%s%s}", labels[0] && extra[0] ? "," : "", extra);
    put(t, " ");
    put_number(t, v);
    put(t, "\n");
}

static void put_head(struct text *t, const struct family *f)
{
    put(t, "# HELP omnidrop:%s %s\n# TYPE omnidrop:%s %s\n", f->name, f->help, f->name, kind_name[f->kind]);
}

static const double *bounds_of(const struct metrics *m, const struct family *f)
{
    return f->bound == by_context ? m->context_bound : f->bound;
}

static void put_histogram(struct text *t, const struct metrics *m, const struct family *f, const struct series *s)
{
    const double *bound = bounds_of(m, f);
    uint64_t below = 0;
    for (size_t i = 0; bound[i] > 0; i++) {
        struct text le = { 0 };
        below += s->bucket[i];
        put(&le, "le=\"");
        put_number(&le, bound[i]);
        put(&le, "\"");
        put_sample(t, m, f, "_bucket", s->labels, le.p, (double)below);
        free(le.p);
    }
    put_sample(t, m, f, "_bucket", s->labels, "le=\"+Inf\"", (double)s->count);
    put_sample(t, m, f, "_sum", s->labels, "", s->value);
    put_sample(t, m, f, "_count", s->labels, "", (double)s->count);
}

/* ---- series (locked) --------------------------------------------------------------------------------------- */

static struct series *series_of(struct metrics *m, enum metric which, const char *const *label)
{
    static const char *const other[LABELS_MAX] = { "other", "other", "other" };
    const struct family *f = &families[which];
    char *text = labels_text(f, label);
    for (size_t i = 0; i < m->family[which].n; i++)
        if (strcmp(m->family[which].s[i].labels, text) == 0) {
            free(text);
            return &m->family[which].s[i];
        }
    if (m->family[which].n >= METRICS_SERIES_MAX && label != other) {
        free(text);
        return series_of(m, which, other);
    }
    struct err e;
    if (mem_grow(&m->family[which].s, &m->family[which].cap, m->family[which].n + 1, sizeof(struct series), &e) != OK) abort();
    struct series *s = &m->family[which].s[m->family[which].n++];
    *s = (struct series){ .labels = text };
    if (f->kind == HISTOGRAM) s->bucket = mem_must(BOUNDS_MAX, sizeof *s->bucket);
    return s;
}

static void add(struct metrics *m, enum metric which, const char *const *label, double v)
{
    const struct family *f = &families[which];
    if (m->forward) {
        uint32_t n = 0;
        while (n < LABELS_MAX && f->label[n]) n++;
        m->forward(m->forward_self, which, label, n, v);
        return;
    }
    if (which < METRIC_SUCCESS || (f->bound == by_context && m->model == NULL)) return;
    struct series *s = series_of(m, which, label);
    s->value += v;
    if (f->kind != HISTOGRAM) return;
    s->count++;
    const double *bound = bounds_of(m, f);
    for (size_t i = 0; bound[i] > 0; i++)
        if (v <= bound[i]) {
            s->bucket[i]++;
            break;
        }
}

void metrics_add(struct metrics *m, enum metric which, const char *const *label, double v)
{
    pthread_mutex_lock(&m->lock);
    add(m, which, label, v);
    pthread_mutex_unlock(&m->lock);
}

void metrics_forward(struct metrics *m, void (*to)(void *self, uint32_t which, const char *const *label, uint32_t n, double v),
                     void *self)
{
    m->forward = to;
    m->forward_self = self;
}

void metrics_take(void *self, uint32_t which, const char *const *label, uint32_t n, double v)
{
    uint32_t want = 0;
    if (which >= METRIC_COUNT) return;
    while (want < LABELS_MAX && families[which].label[want]) want++;
    if (n == want) metrics_add(self, (enum metric)which, label, v);
}

void metrics_add1(struct metrics *m, enum metric which, const char *label, double v)
{
    metrics_add(m, which, (const char *const[LABELS_MAX]){ label, "", "" }, v);
}

/* Series that are there from the start, so that a rate over them is right from the first event on. */
static void seed(struct metrics *m)
{
    static const struct { enum metric which; const char *value[7]; } known[] = {
        { METRIC_SUCCESS, { "stop", "length", "abort" } },
        { METRIC_DISCONNECTS, { "upload", "queue", "media", "prefill", "decode", "slow_reader" } },
        { METRIC_MEDIA_SECONDS, { "audio", "video" } },
        { METRIC_MEDIA_BYTES, { "data", "upload", "file", "http" } },
        { METRIC_MEDIA_FETCH, { "ok", "refused", "failed", "timeout", "too_large" } },
        { METRIC_WINDOWS, { "ok", "retried", "failed", "cached" } },
        { METRIC_BATCH, { "completed", "failed" } },
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        for (size_t k = 0; known[i].value[k]; k++) series_of(m, known[i].which, &known[i].value[k]);
    for (int which = METRIC_SUCCESS; which < METRIC_COUNT; which++)
        if (families[which].label[0] == NULL) series_of(m, (enum metric)which, NULL);
}

/* ---- life -------------------------------------------------------------------------------------------------- */

status metrics_create(struct metrics **out, struct err *e)
{
    struct metrics *m;
    TRY(mem_alloc(&m, 1, sizeof *m, e));
    pthread_mutex_init(&m->lock, NULL);
    m->started = (double)time(NULL);
    seed(m);
    *out = m;
    return OK;
}

void metrics_destroy(struct metrics **pm)
{
    struct metrics *m = *pm;
    if (m == NULL) return;
    for (int which = 0; which < METRIC_COUNT; which++) {
        for (size_t i = 0; i < m->family[which].n; i++) {
            free(m->family[which].s[i].labels);
            free(m->family[which].s[i].bucket);
        }
        free(m->family[which].s);
    }
    free(m->model);
    pthread_mutex_destroy(&m->lock);
    free(m);
    *pm = NULL;
}

void metrics_model(struct metrics *m, const char *model_name, const struct engine_info *info)
{
    static const double step[] = { 1, 2, 5 };
    struct text t = { 0 };
    put_escaped(&t, model_name);
    pthread_mutex_lock(&m->lock);
    free(m->model);
    m->model = t.p ? t.p : mem_must_strdup("");
    m->info = *info;
    size_t n = 0;
    for (double power = 1; n < BOUNDS_MAX - 1 && power <= info->max_model_len; power *= 10)
        for (int i = 0; i < 3 && n < BOUNDS_MAX - 1 && step[i] * power <= info->max_model_len; i++)
            m->context_bound[n++] = step[i] * power;
    m->context_bound[n] = 0;
    pthread_mutex_unlock(&m->lock);
}

/* ---- what a request tells ---------------------------------------------------------------------------------- */

static const char *const modality_name[] = { "text", "audio", "video", "image" };

static void observe_pruning(struct metrics *m, const struct service_summary *s, const struct eng_result *r, const char *policy)
{
    const uint32_t n_av = s->n_kind[TOKEN_AUDIO] + s->n_kind[TOKEN_VIDEO] + s->n_kind[TOKEN_IMAGE];
    if (n_av == 0 || r->alive == NULL) return;
    for (int k = TOKEN_AUDIO; k <= TOKEN_IMAGE; k++) {
        if (s->n_kind[k] == 0) continue;
        const char *const label[LABELS_MAX] = { modality_name[k], policy };
        add(m, METRIC_AV_TOKENS, label, s->n_kind[k]);
        add(m, METRIC_AV_PRUNED, label, (double)s->n_kind[k] - r->alive[r->n_layers][k]);
    }
    for (uint32_t l = 0; l < r->n_layers; l++) {
        char number[16];
        snprintf(number, sizeof number, "%u", l);
        add(m, METRIC_LAYER_KEPT, (const char *const[LABELS_MAX]){ number, policy },
            r->alive[l][1] + r->alive[l][2] + r->alive[l][3]);
    }
    add(m, METRIC_RETENTION, (const char *const[LABELS_MAX]){ policy }, r->mean_retention);
}

static void observe_media(struct metrics *m, const struct service_summary *s)
{
    const char *modality = s->n_kind[TOKEN_VIDEO] ? "video" : s->n_kind[TOKEN_IMAGE] ? "image" : "audio";
    if (s->n_kind[TOKEN_AUDIO] + s->n_kind[TOKEN_VIDEO] + s->n_kind[TOKEN_IMAGE] == 0) return;
    const char *const label[LABELS_MAX] = { modality };
    if (s->media_seconds > 0) add(m, METRIC_MEDIA_SECONDS, label, s->media_seconds);
    if (s->media_cached) return;
    add(m, METRIC_MEDIA_TIME, label, s->prepare_s);
    add(m, METRIC_ENCODER_TIME, label, s->encode_s);
}

static void observe_choice(struct metrics *m, const struct eng_result *r)
{
    static const char *const reason[] = { NULL, "stop", "length", "abort", NULL };
    if (reason[r->finish]) add(m, METRIC_SUCCESS, &reason[r->finish], 1);
    for (uint32_t i = 1; r->token_s && i < r->n_ids; i++) add(m, METRIC_ITL, NULL, r->token_s[i] - r->token_s[i - 1]);
    add(m, METRIC_REQ_GENERATION, NULL, r->n_ids);
}

void metrics_observe(void *self, const struct service_summary *s, const struct err *error)
{
    struct metrics *m = self;
    const char *abort_reason = "abort";
    if (s == NULL || (error && error->code != E_CANCELLED)) return;        /* failures: metrics_failure has the route */
    pthread_mutex_lock(&m->lock);
    if (error) {
        add(m, METRIC_SUCCESS, &abort_reason, 1);
    } else {
        for (uint32_t i = 0; i < s->n_choices; i++)
            if (s->choice[i]) observe_choice(m, s->choice[i]);
        if (s->n_choices && s->choice[0])
            observe_pruning(m, s, s->choice[0], s->policy ? prune_params_name(s->policy) : "none");
        observe_media(m, s);
        if (s->first_token_s > 0) add(m, METRIC_TTFT, NULL, s->first_token_s);
        add(m, METRIC_E2E, NULL, s->total_s);
        add(m, METRIC_QUEUE_TIME, NULL, s->queue_s);
        add(m, METRIC_PREFILL_TIME, NULL, s->prefill_s);
        add(m, METRIC_DECODE_TIME, NULL, s->decode_s);
        add(m, METRIC_INFERENCE_TIME, NULL, s->encode_s + s->prefill_s + s->decode_s);
        add(m, METRIC_REQ_PROMPT, NULL, s->n_prompt);
        add(m, METRIC_PARAMS_N, NULL, s->n_choices);
        add(m, METRIC_PARAMS_MAX_TOKENS, NULL, s->max_tokens);
    }
    pthread_mutex_unlock(&m->lock);
}

void metrics_observe_step(void *self, uint32_t n_tokens) { metrics_add(self, METRIC_ITERATION_TOKENS, NULL, n_tokens); }

void metrics_failure(struct metrics *m, const char *route, const struct err *error)
{
    metrics_add(m, METRIC_FAILURE, (const char *const[LABELS_MAX]){ api_error_of(error).code, route }, 1);
}

/* ---- the page of text -------------------------------------------------------------------------------------- */

struct page {
    struct text t;
    struct metrics *m;
    const struct service_gauges *gauges;       /* where there are no groups */
    const struct groups_view *groups;          /* [n_gauges]; NULL: none */
    uint32_t n_gauges;
};

static void one(struct page *p, enum metric which, double v)
{
    put_head(&p->t, &families[which]);
    put_sample(&p->t, p->m, &families[which], "", "", "", v);
}

/* n samples of a family with one label. */
static void some(struct page *p, enum metric which, size_t n, const char *const *label, const double *v)
{
    put_head(&p->t, &families[which]);
    for (size_t i = 0; i < n; i++) {
        char *labels = labels_text(&families[which], (const char *const[LABELS_MAX]){ label[i] });
        put_sample(&p->t, p->m, &families[which], "", labels, "", v[i]);
        free(labels);
    }
}

/* A gauge of the engine by the value of its label, in the order of put_service. */
static void gauge_of(enum metric which, const struct service_gauges *g, const struct engine_info *i, double v[4])
{
    const uint32_t used = g->pages_total - g->pages_free, cached = g->pages_cached < used ? g->pages_cached : used;
    const double caches = (double)(g->media_cache_bytes + g->hidden_cache_bytes);
    switch (which) {
    case METRIC_RUNNING: v[0] = g->n_encoding + g->n_prefilling + g->n_decoding; break;
    case METRIC_WAITING: v[0] = g->n_preparing + g->n_waiting; break;
    case METRIC_KV_USAGE: v[0] = g->pages_total ? (double)(used - cached + g->pages_reserved) / g->pages_total : 0; break;
    case METRIC_PAGES: v[0] = g->pages_total, v[1] = g->pages_free, v[2] = g->pages_reserved, v[3] = g->pages_cached; break;
    case METRIC_MEDIA_JOBS: v[0] = g->n_preparing, v[1] = g->n_encoding; break;
    case METRIC_MM_CACHE_BYTES: v[0] = (double)g->media_cache_bytes, v[1] = (double)g->hidden_cache_bytes; break;
    default: v[0] = (double)i->weight_bytes, v[1] = (double)i->n_pages * (double)i->page_bytes, v[2] = caches; break;
    }
}

/* Of every group that is there, with its number where there are several. label NULL: the family has none. */
static void put_gauge(struct page *p, enum metric which, const char *const *label, size_t n)
{
    put_head(&p->t, &families[which]);
    for (uint32_t k = 0; k < p->n_gauges; k++) {
        char group[32] = "";
        double v[4] = { 0 };
        if (p->groups && p->groups[k].state != GROUPS_READY) continue;
        if (p->groups) snprintf(group, sizeof group, "group=\"%u\"", p->groups[k].group);
        gauge_of(which, p->groups ? &p->groups[k].gauges : p->gauges, &p->m->info, v);
        for (size_t i = 0; i < (label ? n : 1); i++) {
            char *labels = label ? labels_text(&families[which], (const char *const[LABELS_MAX]){ label[i] }) : NULL;
            put_sample(&p->t, p->m, &families[which], "", labels ? labels : "", group, v[i]);
            free(labels);
        }
    }
}

/* Counters of all groups; one that is gone keeps what it had. */
static struct service_gauges sum_of(const struct page *p)
{
    struct service_gauges s = { 0 };
    for (uint32_t k = 0; k < p->n_gauges; k++) {
        const struct service_gauges *g = p->groups ? &p->groups[k].gauges : p->gauges;
        s.prompt_tokens += g->prompt_tokens;
        s.generated_tokens += g->generated_tokens;
        s.n_preemptions += g->n_preemptions;
        s.n_overtakes += g->n_overtakes;
        s.n_admitted += g->n_admitted;
        s.n_admitted_by_freed += g->n_admitted_by_freed;
        s.pages_freed_by_pruning += g->pages_freed_by_pruning;
        s.prefix_cache_queries += g->prefix_cache_queries;
        s.prefix_cache_hits += g->prefix_cache_hits;
        s.media_cache_queries += g->media_cache_queries;
        s.media_cache_hits += g->media_cache_hits;
    }
    return s;
}

static void put_groups(struct page *p)
{
    for (enum metric which = METRIC_GROUP_UP; which <= METRIC_GROUP_JOBS && p->groups; which++) {
        put_head(&p->t, &families[which]);
        for (uint32_t k = 0; k < p->n_gauges; k++) {
            const struct groups_view *v = &p->groups[k];
            char number[16];
            snprintf(number, sizeof number, "%u", v->group);
            char *labels = labels_text(&families[which], (const char *const[LABELS_MAX]){ number });
            put_sample(&p->t, p->m, &families[which], "", labels, "",
                       which == METRIC_GROUP_UP ? v->state == GROUPS_READY : (double)v->n_jobs);
            free(labels);
        }
    }
}

static void put_service(struct page *p)
{
    const struct engine_info *i = &p->m->info;
    const struct service_gauges sum = sum_of(p), *g = &sum;
    put_gauge(p, METRIC_RUNNING, NULL, 1);
    put_gauge(p, METRIC_WAITING, NULL, 1);
    put_gauge(p, METRIC_KV_USAGE, NULL, 1);
    put_gauge(p, METRIC_PAGES, (const char *const[]){ "total", "free", "reserved", "cached" }, 4);
    put_gauge(p, METRIC_MEDIA_JOBS, (const char *const[]){ "decode", "encode" }, 2);
    put_gauge(p, METRIC_MM_CACHE_BYTES, (const char *const[]){ "encoder", "hidden" }, 2);
    put_gauge(p, METRIC_DEVICE_MEMORY, (const char *const[]){ "weights", "kv_pages", "caches" }, 3);
    put_groups(p);
    one(p, METRIC_PROMPT_TOKENS, (double)g->prompt_tokens);
    one(p, METRIC_GENERATION_TOKENS, (double)g->generated_tokens);
    one(p, METRIC_PREEMPTIONS, (double)g->n_preemptions);
    one(p, METRIC_OVERTAKES, (double)g->n_overtakes);
    one(p, METRIC_ADMITTED, (double)g->n_admitted);
    one(p, METRIC_ADMITTED_BY_FREED, (double)g->n_admitted_by_freed);
    one(p, METRIC_PAGES_FREED, (double)g->pages_freed_by_pruning);
    one(p, METRIC_PREFIX_QUERIES, (double)g->prefix_cache_queries);
    one(p, METRIC_PREFIX_HITS, (double)g->prefix_cache_hits);
    one(p, METRIC_MM_QUERIES, (double)g->media_cache_queries);
    one(p, METRIC_MM_HITS, (double)g->media_cache_hits);
    char size[16], pages[16];
    snprintf(size, sizeof size, "%u", i->page_tokens);
    snprintf(pages, sizeof pages, "%u", i->n_pages);
    char *labels = labels_text(&families[METRIC_CACHE_INFO],
                               (const char *const[LABELS_MAX]){ size, i->kv_dtype == DT_F32 ? "f32" : "bf16", pages });
    put_head(&p->t, &families[METRIC_CACHE_INFO]);
    put_sample(&p->t, p->m, &families[METRIC_CACHE_INFO], "", labels, "", 1);
    free(labels);
}

static void put_status(void *self, const char *route, const char *method, int code, uint64_t n)
{
    struct page *p = self;
    char number[16];
    snprintf(number, sizeof number, "%d", code);
    char *labels = labels_text(&families[METRIC_HTTP_REQUESTS], (const char *const[LABELS_MAX]){ route, method, number });
    put_sample(&p->t, p->m, &families[METRIC_HTTP_REQUESTS], "", labels, "", (double)n);
    free(labels);
}

/* Departures that no handler saw are counted by the server: what is new since the last time. */
static void add_disconnects(struct metrics *m, const struct http_counts *c)
{
    const char *upload = "upload", *slow = "slow_reader";
    add(m, METRIC_DISCONNECTS, &upload, (double)(c->gone_upload - m->gone_upload));
    add(m, METRIC_DISCONNECTS, &slow, (double)(c->gone_slow_reader - m->gone_slow_reader));
    m->gone_upload = c->gone_upload;
    m->gone_slow_reader = c->gone_slow_reader;
}

static void put_server(struct page *p, const struct http_server *server)
{
    struct http_counts c;
    http_server_counts(server, &c);
    one(p, METRIC_CONNECTIONS, (double)c.n_connections);
    one(p, METRIC_SPOOL, (double)c.spool_bytes);
    one(p, METRIC_DRAINING, http_server_draining(server));
    some(p, METRIC_HTTP_BYTES, 2, (const char *const[]){ "in", "out" },
         (const double[]){ (double)c.bytes_in, (double)c.bytes_out });
    put_head(&p->t, &families[METRIC_HTTP_REQUESTS]);
    http_server_each_status(server, put_status, p);
    add_disconnects(p->m, &c);
}

static void put_kept(struct page *p)
{
    for (int which = METRIC_SUCCESS; which < METRIC_COUNT; which++) {
        const struct family *f = &families[which];
        if (p->m->family[which].n == 0 || (f->engine && p->m->model == NULL)) continue;
        put_head(&p->t, f);
        for (size_t i = 0; i < p->m->family[which].n; i++) {
            const struct series *s = &p->m->family[which].s[i];
            if (f->kind == HISTOGRAM) put_histogram(&p->t, p->m, f, s);
            else put_sample(&p->t, p->m, f, "", s->labels, "", s->value);
        }
    }
}

static void put_build(struct page *p)
{
    const unsigned v = avutil_version();
    char ffmpeg[64];
    snprintf(ffmpeg, sizeof ffmpeg, "%s (libavutil %u.%u.%u)", av_version_info(), v >> 16, v >> 8 & 255, v & 255);
    char *labels = labels_text(&families[METRIC_BUILD_INFO],
                               (const char *const[LABELS_MAX]){ OMNIDROP_VERSION, event_get_version(), ffmpeg });
    put_head(&p->t, &families[METRIC_BUILD_INFO]);
    put_sample(&p->t, p->m, &families[METRIC_BUILD_INFO], "", labels, "", 1);
    free(labels);
}

static void put_process_one(struct page *p, const char *name, const char *kind, const char *help, double v)
{
    put(&p->t, "# HELP process_%s %s\n# TYPE process_%s %s\nprocess_%s ", name, help, name, kind, name);
    put_number(&p->t, v);
    put(&p->t, "\n");
}

/* Entries of /proc/self/fd but ".", ".." and the one that looks. */
static int open_files(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n > 3 ? n - 3 : 0;
}

static void put_process(struct page *p)
{
    struct rusage u;
    struct rlimit files = { 0, 0 };
    unsigned long size = 0, resident = 0;
    getrusage(RUSAGE_SELF, &u);
    getrlimit(RLIMIT_NOFILE, &files);
    FILE *f = fopen("/proc/self/statm", "re");
    if (f) {
        if (fscanf(f, "%lu %lu", &size, &resident) != 2) size = resident = 0;
        fclose(f);
    }
    const double page = (double)sysconf(_SC_PAGESIZE);
    put_process_one(p, "cpu_seconds_total", "counter", "User and system CPU time in seconds.",
                    (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                        1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec));
    put_process_one(p, "resident_memory_bytes", "gauge", "Resident memory in bytes.", (double)resident * page);
    put_process_one(p, "virtual_memory_bytes", "gauge", "Virtual memory in bytes.", (double)size * page);
    put_process_one(p, "open_fds", "gauge", "Open file descriptors.", open_files());
    put_process_one(p, "max_fds", "gauge", "Most file descriptors that may be open.", (double)files.rlim_cur);
    put_process_one(p, "start_time_seconds", "gauge", "Start of the process, seconds since 1970.", p->m->started);
}

char *metrics_text(struct metrics *m, const struct http_server *server, const struct service_gauges *g,
                   const struct groups_view *groups, uint32_t n_groups)
{
    struct page p = { .m = m, .gauges = g, .groups = n_groups ? groups : NULL, .n_gauges = n_groups ? n_groups : g != NULL };
    pthread_mutex_lock(&m->lock);
    if (server) put_server(&p, server);
    if (p.n_gauges && m->model) put_service(&p);
    put_kept(&p);
    put_build(&p);
    put_process(&p);
    pthread_mutex_unlock(&m->lock);
    return p.t.p;
}
