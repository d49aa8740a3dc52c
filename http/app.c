/* http/app.c - see app.h. Small routes stand here; chat and completions in chat.c, the page in page.c. */
#include "http/app.h"

#include <event2/event.h>
#include <libavutil/avutil.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/version.h"
#include "http/app_inside.h"

#ifndef OMNIDROP_COMMIT
#define OMNIDROP_COMMIT "unknown"
#endif

#define BEAT_MAX_S 10.0            /* silence after which the engine thread counts as dead */
#define WATCH_S 1.0
#define SWEEP_S 600.0

/* ---- what is there ----------------------------------------------------------------------------------------- */

struct http_server *app_server(const struct app *a) { return a->o.server; }
struct api *app_api(const struct app *a) { return atomic_load(&a->api); }
struct workers *app_workers(const struct app *a) { return a->workers; }
struct metrics *app_metrics(const struct app *a) { return a->metrics; }

/* Is the engine beyond help? Reads the gauges where there are any. */
static bool engine_dead(struct app *a, struct service_gauges *g)
{
    struct api *api = app_api(a);
    *g = (struct service_gauges){ 0 };
    if (atomic_load(&a->state) == APP_FAILED) return true;
    if (api == NULL) return false;
    service_read(api_service(api), g);
    return g->device_failed || g->beat_s > BEAT_MAX_S;
}

static status say_dead(struct app *a, struct err *e)
{
    if (atomic_load(&a->state) == APP_FAILED)
        err_set(e, E_DEVICE, "the model could not be loaded: the server's log has the reason");
    else
        err_set(e, E_DEVICE, "the engine has stopped: the server must be started again");
    return err_tag(e, "engine_dead", NULL);
}

static status say_not_ready(struct err *e)
{
    err_set(e, E_BUSY, "the model is being loaded: try again in a few seconds; /ready tells when");
    return err_tag(e, "not_ready", NULL);
}

static status gate(void *self, struct err *e)
{
    struct app *a = self;
    struct service_gauges g;
    if (engine_dead(a, &g)) return say_dead(a, e);
    return atomic_load(&a->state) == APP_READY ? OK : say_not_ready(e);
}

status app_may_start(struct app *a, struct err *e)
{
    TRY(gate(a, e));
    if (!http_server_draining(a->o.server)) return OK;
    err_set(e, E_BUSY, "the server is shutting down and takes no new requests");
    return err_tag(e, "draining", NULL);
}

/* ---- groups ------------------------------------------------------------------------------------------------ */

/* Where there are several: what is known of each. Owned; NULL: one process alone. */
static struct groups_view *views_of(struct app *a, uint32_t *n)
{
    struct api *api = app_api(a);
    struct groups *g = api ? api_groups(api) : NULL;
    if (g == NULL) return NULL;
    struct groups_view *v = mem_must(groups_count(g), sizeof *v);
    *n = groups_list(g, v, groups_count(g));
    return v;
}

static json_t *group_json(const struct groups_view *v)
{
    static const char *const states[] = { [GROUPS_LOADING] = "loading", [GROUPS_READY] = "ready", [GROUPS_GONE] = "gone" };
    const struct service_gauges *g = &v->gauges;
    json_t *o = json_pack("{s:i, s:s, s:i, s:I, s:{s:i, s:i}, s:{s:i, s:i}}", "group", (int)v->group, "state", states[v->state],
                          "jobs", (int)v->n_jobs, "given", (json_int_t)v->n_given, "pages", "total", (int)g->pages_total, "free",
                          (int)g->pages_free, "requests", "waiting", (int)(g->n_preparing + g->n_waiting), "running",
                          (int)(g->n_encoding + g->n_prefilling + g->n_decoding));
    json_t *ranks = json_array();
    for (uint32_t i = 0; i < v->n_ranks; i++) json_array_append_new(ranks, json_integer(v->first_rank + i));
    json_object_set_new(o, "ranks", ranks);
    json_object_set_new(o, "hosts", json_string(v->hosts));
    if (v->state == GROUPS_GONE) json_object_set_new(o, "why", json_string(v->why));
    return o;
}

/* o with the member "groups", where there are several. */
static json_t *with_groups(struct app *a, json_t *o)
{
    uint32_t n = 0;
    struct groups_view *v = views_of(a, &n);
    if (v == NULL) return o;
    json_t *list = json_array();
    for (uint32_t i = 0; i < n; i++) json_array_append_new(list, group_json(&v[i]));
    json_object_set_new(o, "groups", list);
    free(v);
    return o;
}

/* Has another group's queue room? */
static bool room_elsewhere(struct app *a)
{
    uint32_t n = 0;
    bool room = false;
    struct groups_view *v = views_of(a, &n);
    for (uint32_t i = 1; i < n; i++)
        room = room || (v[i].state == GROUPS_READY && v[i].gauges.n_preparing + v[i].gauges.n_waiting < a->o.max_queue);
    free(v);
    return room;
}

/* ---- may a request start ------------------------------------------------------------------------------------- */

/* When those that wait will have been served, about: whole seconds that a client obeys (docs/http-api.md 2.1). */
static void say_when(struct http_request *r, const struct service_gauges *g)
{
    const uint32_t at_once = g->n_encoding + g->n_prefilling + g->n_decoding;
    const double s = ceil(g->service_s * (g->n_preparing + g->n_waiting) / (at_once ? at_once : 1));
    char text[16];
    snprintf(text, sizeof text, "%.0f", s < 1 ? 1 : s > 60 ? 60 : s);
    http_reply_header(r, "Retry-After", text);
}

static status room(struct app *a, struct http_request *r, struct err *e)
{
    struct service_gauges g;
    TRY(app_may_start(a, e));
    service_read(api_service(app_api(a)), &g);
    if (g.n_preparing + g.n_waiting < a->o.max_queue || room_elsewhere(a)) return OK;
    say_when(r, &g);
    err_set(e, E_BUSY, "%u requests wait already and the queue holds %u: try again later", g.n_preparing + g.n_waiting,
            a->o.max_queue);
    return err_tag(e, "queue_full", NULL);
}

status app_head(void *self, struct http_request *r, struct err *e)
{
    struct app *a = self;
    const status st = room(a, r, e);
    if (st != OK) metrics_failure(a->metrics, http_request_route(r), e);
    return st;
}

void app_reply_error(struct app *a, struct http_request *r, const char *route, const struct err *e)
{
    metrics_failure(a->metrics, route, e);
    http_reply_error(r, e);
}

/* ---- replies that a worker makes --------------------------------------------------------------------------- */

struct errand {
    struct app *a;
    struct http_request *r;        /* a reference */
    const char *route;
    status (*fn)(struct app *a, struct http_request *r, json_t **out, struct err *e);
    json_t *out;
    struct err e;
    status st;
};

static void errand_done(void *arg)
{
    struct errand *d = arg;
    if (d->st == OK) http_reply_json(d->r, 200, d->out);
    else app_reply_error(d->a, d->r, d->route, &d->e);
    http_unref(d->r);
    free(d);
}

static void errand_run(void *arg)
{
    struct errand *d = arg;
    d->st = d->fn(d->a, d->r, &d->out, &d->e);
    http_post(d->a->o.server, errand_done, d);
}

void app_reply_from_worker(struct app *a, struct http_request *r, const char *route,
                           status (*fn)(struct app *a, struct http_request *r, json_t **out, struct err *e))
{
    struct errand *d = mem_must(1, sizeof *d);
    *d = (struct errand){ .a = a, .r = http_ref(r), .route = route, .fn = fn };
    workers_run(a->workers, errand_run, d);
}

/* ---- probes ------------------------------------------------------------------------------------------------ */

static void health(void *self, struct http_request *r)
{
    struct app *a = self;
    struct service_gauges g;
    struct err e;
    if (engine_dead(a, &g)) {
        say_dead(a, &e);
        http_reply_error(r, &e);
        return;
    }
    http_reply_json(r, 200, with_groups(a, json_pack("{s:s}", "status", "ok")));
}

static void ready(void *self, struct http_request *r)
{
    struct err e;
    if (app_may_start(self, &e) != OK) http_reply_error(r, &e);
    else http_reply_json(r, 200, with_groups(self, json_pack("{s:s}", "status", "ready")));
}

static json_t *policy_names(void)
{
    json_t *names = json_array();
    for (const struct policy *const *p = prune_list(); *p; p++) json_array_append_new(names, json_string((*p)->name));
    return names;
}

static void version(void *self, struct http_request *r)
{
    struct app *a = self;
    struct api *api = app_api(a);
    http_reply_json(r, 200, json_pack("{s:s, s:s, s:o, s:o, s:s, s:s}", "version", OMNIDROP_VERSION, "commit", OMNIDROP_COMMIT,
                                      "backend", api ? json_string(engine_info(service_engine(api_service(api)))->device)
                                                     : json_null(),
                                      "policies", policy_names(), "libevent", event_get_version(), "ffmpeg",
                                      av_version_info()));
}

static void metrics(void *self, struct http_request *r)
{
    struct app *a = self;
    struct api *api = app_api(a);
    struct service_gauges g;
    if (api) service_read(api_service(api), &g);
    uint32_t n = 0;
    struct groups_view *view = views_of(a, &n);
    char *text = metrics_text(a->metrics, a->o.server, api ? &g : NULL, view, n);
    free(view);
    http_reply_bytes(r, 200, "text/plain; version=0.0.4; charset=utf-8", text, strlen(text));
    free(text);
}

static void openapi(void *self, struct http_request *r) { http_reply_json(r, 200, api_openapi(app_api(self))); }

/* ---- models ------------------------------------------------------------------------------------------------ */

/* While the weights load: the configured names. */
static json_t *name_only(const char *id)
{
    return json_pack("{s:s, s:s, s:I, s:s}", "id", id, "object", "model", "created", (json_int_t)time(NULL), "owned_by",
                     "omnidrop");
}

static void models(void *self, struct http_request *r)
{
    struct app *a = self;
    if (app_api(a)) {
        http_reply_json(r, 200, api_models(app_api(a)));
        return;
    }
    json_t *data = json_array();
    for (size_t i = 0; i < a->o.n_served_name; i++) json_array_append_new(data, name_only(a->o.served_name[i]));
    http_reply_json(r, 200, json_pack("{s:s, s:o}", "object", "list", "data", data));
}

static void model(void *self, struct http_request *r)
{
    struct app *a = self;
    const char *id = http_request_capture(r);
    json_t *found = app_api(a) ? api_model(app_api(a), id) : NULL;
    for (size_t i = 0; app_api(a) == NULL && i < a->o.n_served_name; i++)
        if (found == NULL && strcmp(a->o.served_name[i], id) == 0) found = name_only(id);
    if (found) {
        http_reply_json(r, 200, found);
        return;
    }
    struct err e;
    err_set(&e, E_ARG, "The model `%.64s` does not exist: GET /v1/models lists those that do", id);
    err_tag(&e, "model_not_found", "model");
    app_reply_error(a, r, "/v1/models/{id}", &e);
}

/* ---- tokens ------------------------------------------------------------------------------------------------ */

static status tokenize_work(struct app *a, struct http_request *r, json_t **out, struct err *e)
{
    size_t n = 0;
    const char *body = http_request_body(r, &n);
    const struct api_caller caller = { .request_id = http_request_id(r), .key = http_request_key(r),
                                       .arrived_s = http_request_start(r) };
    return api_tokenize(app_api(a), body ? body : "", n, &caller, out, e);
}

static status detokenize_work(struct app *a, struct http_request *r, json_t **out, struct err *e)
{
    size_t n = 0;
    const char *body = http_request_body(r, &n);
    return api_detokenize(app_api(a), body ? body : "", n, out, e);
}

static void tokenize(void *self, struct http_request *r) { app_reply_from_worker(self, r, "/tokenize", tokenize_work); }
static void detokenize(void *self, struct http_request *r) { app_reply_from_worker(self, r, "/detokenize", detokenize_work); }

/* ---- what the engine does, for the page -------------------------------------------------------------------- */

#define VIEWS_MAX 512

static json_t *view_json(const struct service_view *v)
{
    return json_pack("{s:I, s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f}", "id", (json_int_t)v->id, "phase", v->phase, "policy",
                     v->policy, "prompt_tokens", (int)v->n_prompt, "generated_tokens", (int)v->n_generated, "pages",
                     (int)v->n_pages, "layer", (int)v->layer, "age_s", v->age_s, "done", v->done);
}

static void state_of_service(json_t *o, struct service *s)
{
    struct service_gauges g;
    const struct engine_info *i = engine_info(service_engine(s));
    struct service_view *view = mem_must(VIEWS_MAX, sizeof *view);
    service_read(s, &g);
    const uint32_t held = g.pages_total - g.pages_free;    /* cached prefixes share pages: counted for each of them */
    json_object_set_new(o, "engine", json_pack("{s:s, s:b, s:s, s:i, s:i, s:i}", "model_name", i->model_name, "bundled",
                                               i->bundled, "device", i->device, "max_model_len", (int)i->max_model_len,
                                               "layers", (int)engine_config(service_engine(s))->text.layers, "page_tokens",
                                               (int)i->page_tokens));
    json_object_set_new(o, "pages", json_pack("{s:i, s:i, s:i, s:i, s:I}", "total", (int)g.pages_total, "free",
                                              (int)g.pages_free,
                                              "reserved", (int)g.pages_reserved, "cached",
                                              (int)(g.pages_cached < held ? g.pages_cached : held), "bytes",
                                              (json_int_t)i->page_bytes));
    json_object_set_new(o, "requests", json_pack("{s:i, s:i, s:i, s:i, s:i}", "preparing", (int)g.n_preparing, "waiting",
                                                 (int)g.n_waiting, "encoding", (int)g.n_encoding, "prefilling",
                                                 (int)g.n_prefilling, "decoding", (int)g.n_decoding));
    json_object_set_new(o, "counters", json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "admitted", (json_int_t)g.n_admitted,
                                                 "admitted_by_freed_pages", (json_int_t)g.n_admitted_by_freed,
                                                 "pages_freed_by_pruning", (json_int_t)g.pages_freed_by_pruning,
                                                 "preemptions", (json_int_t)g.n_preemptions, "prompt_tokens",
                                                 (json_int_t)g.prompt_tokens, "generated_tokens",
                                                 (json_int_t)g.generated_tokens, "media_cache_hits",
                                                 (json_int_t)g.media_cache_hits));
    json_t *list = json_array();
    const uint32_t n = service_list(s, view, VIEWS_MAX);
    for (uint32_t k = 0; k < n && k < VIEWS_MAX; k++) json_array_append_new(list, view_json(&view[k]));
    json_object_set_new(o, "list", list);
    free(view);
}

static void state(void *self, struct http_request *r)
{
    struct app *a = self;
    struct service_gauges g;
    struct api *api = app_api(a);
    const bool dead = engine_dead(a, &g);
    const char *name = dead ? "dead" : http_server_draining(a->o.server) ? "draining"
                       : atomic_load(&a->state) == APP_READY ? "ready" : "loading";
    json_t *o = json_pack("{s:s, s:s, s:f, s:o}", "state", name, "version", OMNIDROP_VERSION, "uptime_s",
                          clock_s() - a->created_s, "policies", policy_names());
    json_object_set_new(o, "model", api ? json_string(api_model_name(api)) : json_null());
    if (api) state_of_service(o, api_service(api));
    http_reply_header(r, "Cache-Control", "no-store");
    http_reply_json(r, 200, with_groups(a, o));
}

/* ---- life -------------------------------------------------------------------------------------------------- */

/* Looks at the engine thread's signs of life once a second, and says once that there are none. */
static void watch(void *self)
{
    struct app *a = self;
    struct service_gauges g;
    a->watch = NULL;
    if (engine_dead(a, &g)) {
        if (a->o.engine_died && atomic_load(&a->state) != APP_FAILED) a->o.engine_died(a->o.engine_died_self);
        return;
    }
    a->watch = http_after(a->o.server, WATCH_S, watch, a);
}

static void sweep(void *self)
{
    struct app *a = self;
    workers_run(a->workers, a->o.sweep, a->o.stores);
    http_after(a->o.server, SWEEP_S, sweep, a);
}

static void drain_begins(void *self)
{
    struct app *a = self;
    if (app_api(a)) service_drain(api_service(app_api(a)));
    if (app_api(a) && api_groups(app_api(a))) groups_drain(api_groups(app_api(a)));
    if (a->o.drain) workers_run(a->workers, a->o.drain, a->o.stores);
}

static void drain_is_over(void *self)
{
    struct app *a = self;
    struct err e;
    app_draining_error(&e);
    chat_end_all(a, &e);
    if (a->o.drain_over) a->o.drain_over(a->o.drain_over_self);
}

static void add(struct app *a, const char *method, const char *path, enum http_body body, bool open, bool always,
                status (*head)(void *, struct http_request *, struct err *), void (*handle)(void *, struct http_request *))
{
    const struct http_route route = { .method = method, .path = path, .body = body, .open = open, .while_draining = always,
                                      .head = head, .handle = handle, .self = a };
    http_route_add(a->o.server, &route);
}

static void add_routes(struct app *a)
{
    add(a, "GET", "/health", HTTP_BODY_NONE, true, true, NULL, health);
    add(a, "GET", "/ready", HTTP_BODY_NONE, true, true, NULL, ready);
    add(a, "GET", "/version", HTTP_BODY_NONE, true, true, NULL, version);
    add(a, "GET", "/metrics", HTTP_BODY_NONE, a->o.metrics_public, true, NULL, metrics);
    add(a, "GET", "/openapi.json", HTTP_BODY_NONE, false, false, NULL, openapi);
    add(a, "GET", "/v1/models", HTTP_BODY_NONE, false, true, NULL, models);
    add(a, "GET", "/models", HTTP_BODY_NONE, false, true, NULL, models);
    add(a, "GET", "/v1/models/{id}", HTTP_BODY_NONE, false, true, NULL, model);
    add(a, "GET", "/v1/omnidrop/state", HTTP_BODY_NONE, false, true, NULL, state);
    add(a, "POST", "/v1/chat/completions", HTTP_BODY_JSON, false, false, app_head, chat_handle);
    add(a, "POST", "/v1/completions", HTTP_BODY_JSON, false, false, app_head, completion_handle);
    add(a, "POST", "/tokenize", HTTP_BODY_JSON, false, false, NULL, tokenize);
    add(a, "POST", "/v1/tokenize", HTTP_BODY_JSON, false, false, NULL, tokenize);
    add(a, "POST", "/detokenize", HTTP_BODY_JSON, false, false, NULL, detokenize);
    add(a, "POST", "/v1/detokenize", HTTP_BODY_JSON, false, false, NULL, detokenize);
    if (!a->o.no_ui) page_route(a->o.server);
}

status app_create(const struct app_options *o, struct app **out, struct err *e)
{
    struct app *a;
    TRY(mem_alloc(&a, 1, sizeof *a, e));
    a->o = *o;
    if (a->o.max_queue == 0) a->o.max_queue = 256;
    if (a->o.stream_commit_s <= 0) a->o.stream_commit_s = 5;
    if (a->o.ping_s <= 0) a->o.ping_s = 15;
    a->created_s = clock_s();
    status st = metrics_create(&a->metrics, e);
    if (st == OK) st = workers_create(o->n_workers ? o->n_workers : 2, &a->workers, e);
    if (st != OK) {
        app_destroy(&a);
        return st;
    }
    add_routes(a);
    http_server_set_gate(o->server, gate, a);
    http_server_on_drain(o->server, drain_begins, drain_is_over, a);
    *out = a;
    return OK;
}

void app_stop(struct app *a) { workers_destroy(&a->workers); }

void app_destroy(struct app **pa)
{
    struct app *a = *pa;
    if (a == NULL) return;
    workers_destroy(&a->workers);
    metrics_destroy(&a->metrics);
    free(a);
    *pa = NULL;
}

static void start_watch(void *self)
{
    struct app *a = self;
    a->watch = http_after(a->o.server, WATCH_S, watch, a);
    if (a->o.sweep) sweep(a);
}

void app_engine(struct app *a, struct api *api)
{
    metrics_model(a->metrics, api_model_name(api), engine_info(service_engine(api_service(api))));
    atomic_store(&a->api, api);
    http_post(a->o.server, start_watch, a);
}

void app_ready(struct app *a) { atomic_store(&a->state, APP_READY); }

void app_lost(struct app *a, const struct err *why)
{
    atomic_store(&a->state, APP_FAILED);
    chat_end_all(a, why);
}

void app_failed(struct app *a) { atomic_store(&a->state, APP_FAILED); }
