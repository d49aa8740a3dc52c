/* http/metrics.h - what /metrics says: Prometheus text format 0.0.4, the names of docs/http-api.md 1.12.
 * Counters and histograms are kept here and may be fed from any thread; gauges are read when the text is made. A family
 * that needs a model is not shown before metrics_model. Label values are our own words, never a client's text; more than
 * METRICS_SERIES_MAX different ones of a family are counted under the value "other". */
#ifndef HTTP_METRICS_H
#define HTTP_METRICS_H

#include "api/groups.h"
#include "http/server.h"

#define METRICS_SERIES_MAX 512

enum metric {
    /* Read when the text is made. */
    METRIC_RUNNING, METRIC_WAITING, METRIC_KV_USAGE, METRIC_PAGES, METRIC_MEDIA_JOBS, METRIC_MM_CACHE_BYTES,
    METRIC_DEVICE_MEMORY, METRIC_CONNECTIONS, METRIC_SPOOL, METRIC_DRAINING, METRIC_PROMPT_TOKENS, METRIC_GENERATION_TOKENS,
    METRIC_PREEMPTIONS, METRIC_OVERTAKES, METRIC_ADMITTED, METRIC_ADMITTED_BY_FREED, METRIC_PAGES_FREED, METRIC_PREFIX_QUERIES,
    METRIC_PREFIX_HITS, METRIC_MM_QUERIES, METRIC_MM_HITS, METRIC_HTTP_REQUESTS, METRIC_HTTP_BYTES, METRIC_BUILD_INFO,
    METRIC_CACHE_INFO, METRIC_GROUP_UP, METRIC_GROUP_JOBS,
    /* Kept here; the labels of each in their order stand behind it. */
    METRIC_SUCCESS,                /* finished_reason */
    METRIC_FAILURE,                /* code, route */
    METRIC_DISCONNECTS,            /* phase */
    METRIC_AV_TOKENS, METRIC_AV_PRUNED,        /* modality, policy */
    METRIC_LAYER_KEPT,             /* layer, policy */
    METRIC_MEDIA_SECONDS,          /* kind */
    METRIC_MEDIA_BYTES,            /* source: data, upload, file, http */
    METRIC_MEDIA_FETCH,            /* result: ok, refused, failed, timeout, too_large */
    METRIC_WINDOWS,                /* status: ok, retried, failed, cached */
    METRIC_BATCH,                  /* status */
    METRIC_TTFT, METRIC_ITL, METRIC_E2E, METRIC_QUEUE_TIME, METRIC_PREFILL_TIME, METRIC_DECODE_TIME, METRIC_INFERENCE_TIME,
    METRIC_REQ_PROMPT, METRIC_REQ_GENERATION, METRIC_PARAMS_N, METRIC_PARAMS_MAX_TOKENS, METRIC_ITERATION_TOKENS,
    METRIC_MEDIA_TIME, METRIC_ENCODER_TIME,    /* modality */
    METRIC_RETENTION, METRIC_RTF,              /* policy */
    METRIC_COUNT
};

struct metrics;

status metrics_create(struct metrics **out, struct err *e);
void metrics_destroy(struct metrics **m);

/* The model is there: its name is a label of every engine family. Once. */
void metrics_model(struct metrics *m, const char *model_name, const struct engine_info *info);

/* A counter grows by v, a histogram takes v. label [number of the family's labels], NULL where it has none. Families
 * of the first group of the enum take nothing. */
void metrics_add(struct metrics *m, enum metric which, const char *const *label, double v);
/* The same for families of one label and of none. */
void metrics_add1(struct metrics *m, enum metric which, const char *label, double v);

/* service_options.observe and .observe_step with self == m: everything that a finished request tells. */
void metrics_observe(void *m, const struct service_summary *s, const struct err *error);
void metrics_observe_step(void *m, uint32_t n_tokens);

/* A request of a route ended with an error that the client was told. */
void metrics_failure(struct metrics *m, const char *route, const struct err *error);

/* From now on what is added goes to `to` instead, which hands it to metrics_take of rank 0. */
void metrics_forward(struct metrics *m, void (*to)(void *self, uint32_t which, const char *const *label, uint32_t n, double v),
                     void *self);
/* What metrics_forward brought; groups_options.metric with metric_self == m. */
void metrics_take(void *m, uint32_t which, const char *const *label, uint32_t n, double v);

/* The text, NUL-terminated; the caller frees it. server, g may be NULL: their families are left out. groups [n_groups]: with
 * several groups each one's gauges stand under its number, and counters are their sums; g is not looked at then. */
char *metrics_text(struct metrics *m, const struct http_server *server, const struct service_gauges *g,
                   const struct groups_view *groups, uint32_t n_groups);

#endif
