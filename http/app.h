/* http/app.h - the application on the server: which paths there are, what stands behind them, and what is true before
 * the model is there.
 *
 *   http_server_create -> app_create         every route is there; the API answers 503 not_ready
 *     app_engine (a loading thread)          the api is there, /v1/models is complete
 *     app_ready                              the warm-up ran: /ready says 200, requests are taken
 *     app_failed                             the model cannot be had: engine_dead
 *   http_server_run ... ends
 *   app_stop                                 then the stores and the service may close
 *   app_destroy                              before api_destroy and http_server_destroy
 *
 * Handlers run on the loop thread. What may take long (large JSON, templates, media) runs on the request workers. */
#ifndef HTTP_APP_H
#define HTTP_APP_H

#include "api/api.h"
#include "http/metrics.h"
#include "http/server.h"
#include "http/workers.h"

struct app;

struct app_options {
    struct http_server *server;    /* borrowed */
    const char *const *served_name;    /* [n_served_name] what /models says while weights load; borrowed */
    size_t n_served_name;
    uint32_t max_queue;            /* requests that may wait; 0: 256 */
    bool no_ui;                    /* no page at / */
    bool metrics_public;
    double stream_commit_s;        /* 0: 5 */
    double ping_s;                 /* comments in silence; 0: 15 */
    uint32_t n_workers;            /* 0: 2 */
    /* All may be NULL. Where the engine thread has died: on the loop thread, once. When a drain begins, and every ten
     * minutes: on a request worker. When a drain's time is over: on the loop thread. */
    void (*engine_died)(void *self);
    void *engine_died_self;
    void (*drain)(void *self), (*sweep)(void *self);
    void *stores;                  /* self of drain and sweep */
    void (*drain_over)(void *self);
    void *drain_over_self;
};

/* Adds its routes to the server. */
status app_create(const struct app_options *o, struct app **out, struct err *e);
/* After http_server_run: waits for the request workers. From then on nothing of the app runs on a thread of its own. */
void app_stop(struct app *a);
void app_destroy(struct app **a);

/* From any thread, in this order. api is borrowed until app_destroy. */
void app_engine(struct app *a, struct api *api);
void app_ready(struct app *a);
void app_failed(struct app *a);
/* Loop thread: the engine is lost, why says how: every chat and completion ends with it, nothing new is taken. */
void app_lost(struct app *a, const struct err *why);

struct http_server *app_server(const struct app *a);
struct api *app_api(const struct app *a);              /* NULL: not there yet */
struct workers *app_workers(const struct app *a);
struct metrics *app_metrics(const struct app *a);

/* E_BUSY with tag not_ready or draining, E_DEVICE with tag engine_dead: may a request start now? */
status app_may_start(struct app *a, struct err *e);
/* The same, and queue_full: a head hook with self == the app, for routes that start work of the engine. */
status app_head(void *app, struct http_request *r, struct err *e);
/* http_reply_error, and counted as a failure of the route. */
void app_reply_error(struct app *a, struct http_request *r, const char *route, const struct err *e);
/* Run fn on a request worker, then answer with its JSON (owned; 200) or its error. Not cut short when the client goes:
 * for what takes a second at most. */
void app_reply_from_worker(struct app *a, struct http_request *r, const char *route,
                           status (*fn)(struct app *a, struct http_request *r, json_t **out, struct err *e));

#endif
