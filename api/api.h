/* api/api.h - the OpenAI dialect: request bodies in, replies out. It knows the engine's service and no sockets, so the
 * HTTP routes, the batch runner and tests share it. docs/http-api.md 1 says which fields are honoured, ignored, refused.
 *
 *   api_create                    what is served: names, limits, defaults
 *   api_chat_parse, api_completion_parse       body -> struct api_job, or an error with tag and param
 *   api_job_start                 -> service_submit; a sink gets the reply as it comes
 *     sink.chunk                  streaming: JSON chunks in order          (service threads)
 *     sink.done                   the whole reply, or the error; once      (service threads)
 *   api_run                       the same, blocking, from JSON to JSON: batch lines
 *
 * A sink's functions are called on service threads and must not block; HTTP posts what they bring to its loop. */
#ifndef API_API_H
#define API_API_H

#include <jansson.h>

#include "api/error.h"
#include "engine/service.h"

struct api;
struct groups;

/* The functions of engine/service.h that the api calls; tests put their own in their place. */
struct api_calls {
    status (*submit)(struct service *s, struct service_request *rq, uint64_t *id, struct err *e);
    void (*cancel)(struct service *s, uint64_t id);
    status (*count)(struct service *s, struct service_request *rq, struct token_list *tokens, uint32_t n_kind[4],
                    struct err *e);
    const struct engine *(*engine)(const struct service *s);
    void (*read)(struct service *s, struct service_gauges *out);
    void (*drain)(struct service *s);
};

/* service_request.owner of all that is submitted for a client begins with this, so that a loader's resolve() knows whose
 * files may be read. */
struct api_owner { char key[MEDIA_DIGEST_TEXT]; };         /* digest of the API key, or "" */

struct api_options {
    struct service *service;
    const struct api_calls *calls;     /* NULL: the service's own */
    const char *const *served_name;    /* [n_served_name]; NULL: the model's own name */
    size_t n_served_name;
    uint32_t max_n;                /* 0: 8. (The default length of an answer is service_options.default_max_tokens.) */
    const struct policy_params *policy;    /* default policy; NULL: none */
    bool generation_config_none;   /* 1/1 in place of the model's own temperature and top_p */
    enum { API_UNKNOWN_IGNORE, API_UNKNOWN_LOG, API_UNKNOWN_REJECT } unknown_fields;
    bool strict_openai;            /* no extension keys in replies */
    bool priorities;               /* the field `priority` is honoured */
    double queue_timeout_s, deadline_s;
    struct groups *groups;         /* api/groups.h: who runs a job; NULL: this process alone. Borrowed */
    void (*log)(void *self, const char *line);     /* unknown fields; may be NULL */
    void *log_self;
};

status api_create(const struct api_options *o, struct api **out, struct err *e);
void api_destroy(struct api **a);
struct service *api_service(const struct api *a);
void api_read(const struct api *a, struct service_gauges *out);
void api_drain(struct api *a);
struct groups *api_groups(const struct api *a);                /* NULL: none */
const char *api_model_name(const struct api *a);               /* the first served name */
const char *api_fingerprint(const struct api *a);              /* "od-<build>-<weights>-<policy>" */
/* Is it a served name (or "" or NULL)? E_ARG, tag model_not_found, param model. */
status api_check_model(const struct api *a, const char *name, struct err *e);
/* {"object":"list","data":[...]} and one of its elements (NULL: no such). The caller owns the reference. */
json_t *api_models(const struct api *a);
json_t *api_model(const struct api *a, const char *id);

/* Who asks: goes into ids, caches and logs. */
struct api_caller {
    const char *request_id;
    const char *key;               /* digest of the API key or "": salt of the caches, owner of files */
    bool batch;                    /* a batch line: lowest priority, no streaming */
    double arrived_s;              /* clock_s() of the last byte of the body, for service_request.arrived_s; 0: now */
};

struct api_job;
/* body: n bytes of JSON from a stranger. *out is owned: api_job_free, or given to api_job_start.
 * E_ARG with tag and param. With groups the body is borrowed until api_job_start or api_job_free. */
status api_chat_parse(struct api *a, const char *body, size_t n, const struct api_caller *c, struct api_job **out,
                      struct err *e);
status api_completion_parse(struct api *a, const char *body, size_t n, const struct api_caller *c, struct api_job **out,
                            struct err *e);
void api_job_free(struct api_job **j);
bool api_job_streams(const struct api_job *j);
bool api_job_wants_usage(const struct api_job *j);

struct api_sink {
    void *self;
    void (*chunk)(void *self, json_t *chunk);          /* streaming only; a reference is stolen */
    void (*progress)(void *self, const char *phase, double done);      /* "queue", "encode", "prefill"; may be NULL */
    void (*admitted)(void *self);                      /* may be NULL */
    /* reply: the whole reply where not streaming (a reference is stolen), else NULL. error NULL: all went well.
     * usage of the job either way where it is known, borrowed. */
    void (*done)(void *self, json_t *reply, const struct err *error);
};
/* *j is moved from on OK. Its sink->done comes exactly once. */
status api_job_start(struct api_job **j, const struct api_sink *sink, uint64_t *id, struct err *e);
/* Of a job that is over: nothing happens. Not from within a sink's function. */
void api_job_cancel(struct api *a, uint64_t id);
/* What is under way for a job that was started: a phase of service_list ("wait", "prefill", ...); "" when it is over. */
void api_job_phase(struct api *a, uint64_t id, char out[12]);

/* One call of an endpoint ("/v1/chat/completions", "/v1/completions"; api_audio_run has the others) from body to reply.
 * Blocks. *status_code is the HTTP status; *reply (owned) the body, an error object where it failed. stop may be NULL:
 * true cancels. */
void api_run(struct api *a, const char *endpoint, const char *body, size_t n, const struct api_caller *c,
             const atomic_bool *stop, int *status_code, json_t **reply);

/* /tokenize and /detokenize. */
status api_tokenize(struct api *a, const char *body, size_t n, const struct api_caller *c, json_t **out, struct err *e);
status api_detokenize(struct api *a, const char *body, size_t n, json_t **out, struct err *e);

/* The OpenAPI 3.1 description of everything that is served. The caller owns the reference. */
json_t *api_openapi(const struct api *a);

#endif
