/* http/chat.c - POST /v1/chat/completions and /v1/completions: from a body to a reply or a stream of events.
 *
 *   loop     handle       a call is made, its body goes to a request worker
 *   worker   parse        JSON -> job -> the service, or the error
 *   service  sink         admitted, progress, chunks, done: put on the call's list, the loop is told once
 *   loop     take         writes events; commits the stream at admission, or stream_commit_s after the body came
 *
 * A call is freed on the loop, when its last message was taken: the sink's done, or the error that kept it from
 * starting. The client may be gone long before; then the service was asked to cancel and nothing more is written. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/app_inside.h"

#define EVENT_STREAM "text/event-stream; charset=utf-8"

enum note_kind { NOTE_PARSED, NOTE_ADMITTED, NOTE_PROGRESS, NOTE_CHUNK, NOTE_DONE };

struct note {                      /* from other threads to the loop */
    enum note_kind kind;
    json_t *json;                  /* CHUNK; DONE: the reply or NULL. Owned */
    char phase[12];                /* PROGRESS */
    double done;
    bool failed;                   /* DONE */
    struct err e;
};

typedef status parse_fn(struct api *a, const char *body, size_t n, const struct api_caller *c, struct api_job **out,
                        struct err *e);

struct call {
    struct app *app;
    struct http_request *r;        /* a reference */
    const char *route;
    parse_fn *parse;
    atomic_int n_refs;             /* the worker's, and the loop's until its last note */
    bool streams;                  /* written by the worker before its first note */

    pthread_mutex_t lock;          /* of what follows, up to the next comment */
    struct note *note;
    size_t n_notes, cap;
    bool posted;                   /* the loop was told and has not looked yet */
    bool started, cancelled;
    uint64_t id;                   /* of the service, where started */

    /* Loop thread alone. */
    bool over;                     /* the reply is complete, or its client gone */
    uint32_t n_chunks;             /* sent; the first one is only the role */
    char comment[32];              /* what to say in silence */
    double written_s;              /* last write */
    struct http_timer *commit, *ping;
    struct call *next, **link;     /* in app->calls */
};

/* ---- life -------------------------------------------------------------------------------------------------- */

static void call_unref(struct call *c)
{
    if (atomic_fetch_sub(&c->n_refs, 1) != 1) return;
    pthread_mutex_destroy(&c->lock);
    free(c->note);
    free(c);
}

static void cancel(struct call *c)
{
    pthread_mutex_lock(&c->lock);
    const bool started = c->started;
    c->cancelled = true;
    pthread_mutex_unlock(&c->lock);
    if (started) api_job_cancel(app_api(c->app), c->id);
}

/* Nothing more is written to this request. */
static void call_over(struct call *c)
{
    if (c->over) return;
    c->over = true;
    if (c->commit) http_timer_cancel(&c->commit);
    if (c->ping) http_timer_cancel(&c->ping);
    http_request_on_gone(c->r, NULL, NULL);
    *c->link = c->next;
    if (c->next) c->next->link = c->link;
}

/* What was under way, as client_disconnects_total names it. */
static const char *phase_of(struct call *c)
{
    static const struct { const char *ours, *name; } phases[] = {
        { "prepare", "media" }, { "wait", "queue" }, { "encode", "media" }, { "prefill", "prefill" }, { "decode", "decode" } };
    char now[12] = "";
    if (c->n_chunks > 1) return "decode";
    pthread_mutex_lock(&c->lock);
    const bool started = c->started;
    pthread_mutex_unlock(&c->lock);
    if (started) api_job_phase(app_api(c->app), c->id, now);
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++)
        if (strcmp(phases[i].ours, now) == 0) return phases[i].name;
    return started ? "decode" : "media";
}

static void on_gone(void *self, struct http_request *r, const char *phase)
{
    struct call *c = self;
    (void)r;
    metrics_add1(c->app->metrics, METRIC_DISCONNECTS, strcmp(phase, "slow_reader") == 0 ? phase : phase_of(c), 1);
    call_over(c);
    cancel(c);
}

/* ---- writing (loop) ---------------------------------------------------------------------------------------- */

static void on_ping(void *arg)
{
    struct call *c = arg;
    c->ping = NULL;
    const double silent = clock_s() - c->written_s, every = c->app->o.ping_s;
    if (silent >= every * 0.999) {
        http_stream_comment(c->r, c->comment);
        c->written_s = clock_s();
    }
    if (c->over) return;                               /* the write may have ended it */
    c->ping = http_after(c->app->o.server, silent >= every * 0.999 ? every : every - silent, on_ping, c);
}

static void begin(struct call *c)
{
    if (http_stream_begun(c->r)) return;
    if (c->commit) http_timer_cancel(&c->commit);
    http_reply_header(c->r, "Cache-Control", "no-cache");
    http_reply_header(c->r, "X-Accel-Buffering", "no");
    http_stream_begin(c->r, 200, EVENT_STREAM);
    c->written_s = clock_s();
    if (!c->over) c->ping = http_after(c->app->o.server, c->app->o.ping_s, on_ping, c);
}

static void on_commit(void *arg)
{
    struct call *c = arg;
    c->commit = NULL;
    begin(c);
    if (!c->over) http_stream_comment(c->r, c->comment);
}

static void fail(struct call *c, const struct err *e)
{
    struct http_request *r = c->r;
    metrics_failure(c->app->metrics, c->route, e);
    call_over(c);
    if (!http_stream_begun(r)) {
        http_reply_error(r, e);
        return;
    }
    http_stream_event(r, api_error_json(e));
    http_stream_abort(r);
}

void app_draining_error(struct err *e)
{
    err_set(e, E_BUSY, "the server is shutting down: send the request again");
    err_tag(e, "draining", NULL);
}

void chat_end_all(struct app *a, const struct err *e)
{
    while (a->calls) {
        struct call *c = a->calls;
        fail(c, e);
        cancel(c);
    }
}

/* ---- notes taken (loop) ------------------------------------------------------------------------------------ */

static void take_progress(struct call *c, const struct note *n)
{
    if (n->done < 1) snprintf(c->comment, sizeof c->comment, "%s %.0f%%", n->phase, n->done * 100);
    else snprintf(c->comment, sizeof c->comment, "ping");
}

static void take_done(struct call *c, struct note *n)
{
    if (n->failed) {
        if (n->e.code == E_CANCELLED && http_server_draining(c->app->o.server)) app_draining_error(&n->e);
        fail(c, &n->e);
        return;
    }
    call_over(c);
    if (!c->streams) {
        http_reply_json(c->r, 200, n->json);
        n->json = NULL;
        return;
    }
    begin(c);                                          /* an answer without any chunk */
    http_stream_write(c->r, "data: [DONE]\n\n", 14);
    http_stream_end(c->r);
}

static void take(struct call *c, struct note *n)
{
    switch (n->kind) {
    case NOTE_PARSED:
        if (c->streams) {
            const double left = c->app->o.stream_commit_s - (clock_s() - http_request_start(c->r));
            c->commit = http_after(c->app->o.server, left > 0 ? left : 0, on_commit, c);
        }
        break;
    case NOTE_ADMITTED:
        if (c->streams) begin(c);
        break;
    case NOTE_PROGRESS:
        take_progress(c, n);
        break;
    case NOTE_CHUNK:
        begin(c);
        c->n_chunks++;
        c->written_s = clock_s();
        snprintf(c->comment, sizeof c->comment, "ping");
        http_stream_event(c->r, n->json);
        n->json = NULL;
        break;
    case NOTE_DONE:
        take_done(c, n);
        break;
    }
}

static void take_notes(void *arg)
{
    struct call *c = arg;
    bool last = false;
    pthread_mutex_lock(&c->lock);
    struct note *note = c->note;
    const size_t n = c->n_notes;
    c->note = NULL;
    c->n_notes = c->cap = 0;
    c->posted = false;
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < n; i++) {
        if (!c->over) take(c, &note[i]);
        json_decref(note[i].json);
        last |= note[i].kind == NOTE_DONE;
    }
    free(note);
    if (!last) return;
    call_over(c);
    http_unref(c->r);
    call_unref(c);
}

/* ---- notes given (any thread) ------------------------------------------------------------------------------ */

/* Takes the note's json. The call may be gone when this returns, unless the caller holds a reference. */
static void tell(struct call *c, const struct note *n)
{
    struct err e;
    pthread_mutex_lock(&c->lock);
    if (mem_grow(&c->note, &c->cap, c->n_notes + 1, sizeof *c->note, &e) != OK) abort();
    c->note[c->n_notes++] = *n;
    const bool post = !c->posted;
    c->posted = true;
    struct http_server *server = c->app->o.server;
    pthread_mutex_unlock(&c->lock);
    if (post) http_post(server, take_notes, c);
}

static void sink_chunk(void *self, json_t *chunk) { tell(self, &(struct note){ .kind = NOTE_CHUNK, .json = chunk }); }
static void sink_admitted(void *self) { tell(self, &(struct note){ .kind = NOTE_ADMITTED }); }

static void sink_progress(void *self, const char *phase, double done)
{
    struct note n = { .kind = NOTE_PROGRESS, .done = done };
    snprintf(n.phase, sizeof n.phase, "%s", phase);
    tell(self, &n);
}

static void tell_error(struct call *c, const struct err *e)
{
    tell(c, &(struct note){ .kind = NOTE_DONE, .failed = true, .e = *e });
}

static void sink_done(void *self, json_t *reply, const struct err *error)
{
    if (error == NULL) {
        tell(self, &(struct note){ .kind = NOTE_DONE, .json = reply });
        return;
    }
    json_decref(reply);
    tell_error(self, error);
}

/* ---- start ------------------------------------------------------------------------------------------------- */

static status start(struct call *c, struct err *e)
{
    struct api *api = app_api(c->app);
    const struct api_caller caller = { .request_id = http_request_id(c->r), .key = http_request_key(c->r),
                                       .arrived_s = http_request_start(c->r) };
    struct api_job *job = NULL;
    uint64_t id = 0;
    size_t n = 0;
    const char *body = http_request_body(c->r, &n);
    TRY(c->parse(api, body ? body : "", n, &caller, &job, e));
    c->streams = api_job_streams(job);
    tell(c, &(struct note){ .kind = NOTE_PARSED });
    const struct api_sink sink = { .self = c, .chunk = sink_chunk, .progress = sink_progress, .admitted = sink_admitted,
                                   .done = sink_done };
    const status st = api_job_start(&job, &sink, &id, e);
    if (st != OK) {
        api_job_free(&job);
        return st;
    }
    pthread_mutex_lock(&c->lock);
    c->id = id;
    c->started = true;
    const bool cancelled = c->cancelled;
    pthread_mutex_unlock(&c->lock);
    if (cancelled) api_job_cancel(api, id);
    return OK;
}

static void run(void *arg)
{
    struct call *c = arg;
    struct err e;
    pthread_mutex_lock(&c->lock);
    const bool cancelled = c->cancelled;               /* gone before its turn came */
    pthread_mutex_unlock(&c->lock);
    if (cancelled) {
        err_set(&e, E_CANCELLED, "the client is gone");
        tell_error(c, &e);
    } else if (start(c, &e) != OK) {
        tell_error(c, &e);
    }
    call_unref(c);
}

static void handle(struct app *a, struct http_request *r, const char *route, parse_fn *parse)
{
    struct call *c = mem_must(1, sizeof *c);
    *c = (struct call){ .app = a, .r = http_ref(r), .route = route, .parse = parse, .comment = "ping" };
    atomic_store(&c->n_refs, 2);
    pthread_mutex_init(&c->lock, NULL);
    c->next = a->calls;
    c->link = &a->calls;
    if (c->next) c->next->link = &c->next;
    a->calls = c;
    http_request_on_gone(r, on_gone, c);
    workers_run(a->workers, run, c);
}

void chat_handle(void *app, struct http_request *r) { handle(app, r, "/v1/chat/completions", api_chat_parse); }
void completion_handle(void *app, struct http_request *r) { handle(app, r, "/v1/completions", api_completion_parse); }
