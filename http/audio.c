/* http/audio.c - see audio.h.
 *
 *   loop          handle     fields and file -> job -> api_audio_start, or the error: small work, no worker is needed
 *   job's thread  sink       progress, events, done: put on the call's list, the loop is told once
 *   loop          take       writes events; commits the stream at the first, or stream_commit_s after the body came
 *
 * A call is freed on the loop when its last note, the sink's done, was taken. */
#include "http/audio.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/app_inside.h"

#define EVENT_STREAM "text/event-stream; charset=utf-8"
#define TRANSCRIPTIONS "/v1/audio/transcriptions"
#define TRANSLATIONS "/v1/audio/translations"
#define JSON_MAX (256u << 10)      /* more is not parsed on the loop; such a body names a file and some options */

enum note_kind { NOTE_PROGRESS, NOTE_CHUNK, NOTE_DONE };

struct note {                      /* from the job's thread to the loop */
    enum note_kind kind;
    json_t *json;                  /* CHUNK: owned */
    double done;
    struct api_audio_reply reply;  /* DONE: owned */
    bool failed;
    struct err e;
};

struct audio_call {
    struct http_audio *h;
    struct http_request *r;        /* a reference */
    const char *route;
    bool streams;
    uint64_t id;
    pthread_mutex_t lock;          /* of the notes */
    struct note *note;
    size_t n_notes, cap;
    bool posted;                   /* the loop was told and has not looked yet */
    /* Loop thread alone. */
    bool over;                     /* the reply is complete, or its client gone */
    bool began;                    /* an event was sent */
    char comment[32];              /* what to say in silence */
    double written_s;
    struct http_timer *commit, *ping;
    struct audio_call *next, **link;
};

/* ---- life -------------------------------------------------------------------------------------------------- */

/* Nothing more is written to this request. */
static void call_over(struct audio_call *c)
{
    if (c->over) return;
    c->over = true;
    if (c->commit) http_timer_cancel(&c->commit);
    if (c->ping) http_timer_cancel(&c->ping);
    http_request_on_gone(c->r, NULL, NULL);
    *c->link = c->next;
    if (c->next) c->next->link = c->link;
}

static void on_gone(void *self, struct http_request *r, const char *phase)
{
    struct audio_call *c = self;
    (void)r;
    const char *what = strcmp(phase, "slow_reader") == 0 ? phase : c->began ? "decode" : "media";
    metrics_add1(c->h->app->metrics, METRIC_DISCONNECTS, what, 1);
    call_over(c);
    api_audio_cancel(atomic_load(&c->h->audio), c->id);
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

static void on_ping(void *arg)
{
    struct audio_call *c = arg;
    c->ping = NULL;
    const double silent = clock_s() - c->written_s, every = c->h->app->o.ping_s;
    const bool due = silent >= every * 0.999;
    if (due) {
        c->written_s = clock_s();
        http_stream_comment(c->r, c->comment);
    }
    if (c->over) return;                               /* the write may have ended it */
    c->ping = http_after(c->h->app->o.server, due ? every : every - silent, on_ping, c);
}

static void begin(struct audio_call *c)
{
    if (c->over || http_stream_begun(c->r)) return;
    if (c->commit) http_timer_cancel(&c->commit);
    http_reply_header(c->r, "Cache-Control", "no-cache");
    http_reply_header(c->r, "X-Accel-Buffering", "no");
    http_stream_begin(c->r, 200, EVENT_STREAM);
    c->written_s = clock_s();
    if (!c->over) c->ping = http_after(c->h->app->o.server, c->h->app->o.ping_s, on_ping, c);
}

static void on_commit(void *arg)
{
    struct audio_call *c = arg;
    c->commit = NULL;
    begin(c);
    if (!c->over) http_stream_comment(c->r, c->comment);
}

static void fail(struct audio_call *c, const struct err *e)
{
    struct http_request *r = c->r;
    metrics_failure(c->h->app->metrics, c->route, e);
    call_over(c);
    if (!http_stream_begun(r)) {
        http_reply_error(r, e);
        return;
    }
    http_stream_event(r, api_error_json(e));
    http_stream_abort(r);
}

void http_audio_end_all(struct http_audio *h, const struct err *e)
{
    struct err draining;
    app_draining_error(&draining);
    while (h->calls) {
        struct audio_call *c = h->calls;
        fail(c, e ? e : &draining);
        api_audio_cancel(atomic_load(&h->audio), c->id);
    }
}

/* ---- notes taken (loop) ------------------------------------------------------------------------------------ */

static void take_done(struct audio_call *c, struct note *n)
{
    if (n->failed) {
        if (n->e.code == E_CANCELLED && http_server_draining(c->h->app->o.server)) app_draining_error(&n->e);
        fail(c, &n->e);
        return;
    }
    if (c->streams) begin(c);                          /* a sound without a word */
    const bool gone = c->over;
    call_over(c);
    if (gone) return;
    if (c->streams) {
        http_stream_write(c->r, "data: [DONE]\n\n", 14);
        http_stream_end(c->r);
    } else if (n->reply.json) {
        http_reply_json(c->r, 200, json_incref(n->reply.json));
    } else {
        http_reply_bytes(c->r, 200, n->reply.content_type, n->reply.bytes, n->reply.n);
    }
}

static void take(struct audio_call *c, struct note *n)
{
    switch (n->kind) {
    case NOTE_PROGRESS:
        snprintf(c->comment, sizeof c->comment, "transcribe %.0f%%", n->done * 100);
        break;
    case NOTE_CHUNK:
        begin(c);
        if (c->over) break;
        c->began = true;
        c->written_s = clock_s();
        http_stream_event(c->r, json_incref(n->json));
        break;
    case NOTE_DONE:
        take_done(c, n);
        break;
    }
}

static void take_notes(void *arg)
{
    struct audio_call *c = arg;
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
        api_audio_reply_free(&note[i].reply);
        last |= note[i].kind == NOTE_DONE;
    }
    free(note);
    if (!last) return;
    call_over(c);
    http_unref(c->r);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

/* ---- notes given (the job's thread) ------------------------------------------------------------------------ */

static void tell(struct audio_call *c, const struct note *n)
{
    struct err e;
    struct http_server *server = c->h->app->o.server;
    pthread_mutex_lock(&c->lock);
    if (mem_grow(&c->note, &c->cap, c->n_notes + 1, sizeof *c->note, &e) != OK) abort();
    c->note[c->n_notes++] = *n;
    const bool post = !c->posted;
    c->posted = true;
    pthread_mutex_unlock(&c->lock);
    if (post) http_post(server, take_notes, c);
}

static void sink_chunk(void *self, json_t *event) { tell(self, &(struct note){ .kind = NOTE_CHUNK, .json = event }); }

static void sink_progress(void *self, const char *phase, double done)
{
    (void)phase;
    tell(self, &(struct note){ .kind = NOTE_PROGRESS, .done = done });
}

static void sink_done(void *self, struct api_audio_reply *reply, const struct err *error)
{
    struct note n = { .kind = NOTE_DONE, .failed = error != NULL };
    if (reply) n.reply = *reply;
    if (error) n.e = *error;
    tell(self, &n);
}

/* ---- start ------------------------------------------------------------------------------------------------- */

static status bad(struct err *e, const char *tag, const char *param, const char *text)
{
    err_set(e, E_ARG, "%s", text);
    return err_tag(e, tag, param);
}

/* The form's fields; its one file becomes *source. */
static status read_form(struct http_request *r, struct api_audio_field *field, size_t *n, struct media_source *source,
                        struct err *e)
{
    for (size_t i = 0; i < http_request_n_parts(r); i++) {
        struct http_part *p = http_request_part(r, i);
        const bool file = p->filename && strcmp(p->name, "file") == 0;
        if (p->filename == NULL && strlen(p->value) != p->n)
            return bad(e, "invalid_value", p->name, "a field of the form holds a zero byte");
        field[(*n)++] = (struct api_audio_field){ p->name, p->filename ? NULL : p->value, p->filename };
        if (!file) continue;
        if (source->fd >= 0) return bad(e, "invalid_multipart", "file", "the form holds more than one file");
        source->bytes = p->n;
        snprintf(source->digest, sizeof source->digest, "%s", p->digest);
        snprintf(source->name, sizeof source->name, "file");
        source->fd = http_part_take(p);
    }
    return OK;
}

static status parse_form(struct api_audio *a, struct http_request *r, bool translate, const struct api_caller *who,
                         struct api_audio_job **job, struct err *e)
{
    struct api_audio_field *field;
    struct media_source source = { .fd = -1 };
    size_t n = 0;
    TRY(mem_alloc(&field, http_request_n_parts(r), sizeof *field, e));
    status st = read_form(r, field, &n, &source, e);
    if (st == OK) st = api_audio_parse_form(a, translate, field, n, &source, who, job, e);
    else media_source_close(&source);
    free(field);
    return st;
}

static status parse(struct api_audio *a, struct http_request *r, bool translate, struct api_audio_job **job, struct err *e)
{
    const struct api_caller who = { .request_id = http_request_id(r), .key = http_request_key(r),
                                    .arrived_s = http_request_start(r) };
    size_t n = 0;
    const char *body = http_request_body(r, &n);
    if (body == NULL) return parse_form(a, r, translate, &who, job, e);
    if (n <= JSON_MAX) return api_audio_parse_json(a, translate, body, n, &who, job, e);
    err_set(e, E_ARG, "%zu bytes of JSON are more than the %u taken here: send the sound in a form", n, JSON_MAX);
    return err_tag(e, "request_too_large", NULL);
}

static status start(struct audio_call *c, struct api_audio *a, bool translate, struct err *e)
{
    const struct api_audio_sink sink = { c, sink_chunk, sink_progress, sink_done };
    struct api_audio_job *job = NULL;
    TRY(parse(a, c->r, translate, &job, e));
    c->streams = api_audio_job_streams(job);
    const status st = api_audio_start(&job, &sink, &c->id, e);
    api_audio_job_free(&job);
    return st;
}

static void handle(struct http_audio *h, struct http_request *r, bool translate)
{
    struct api_audio *a = atomic_load(&h->audio);
    struct audio_call *c = mem_must(1, sizeof *c);
    struct err e;
    status st;
    *c = (struct audio_call){ .h = h, .r = r, .route = translate ? TRANSLATIONS : TRANSCRIPTIONS, .comment = "ping" };
    pthread_mutex_init(&c->lock, NULL);
    if (a) st = start(c, a, translate, &e);
    else {
        err_set(&e, E_BUSY, "the model is being loaded: try again soon");
        st = err_tag(&e, "not_ready", NULL);
    }
    if (st != OK) {
        metrics_failure(h->app->metrics, c->route, &e);
        http_reply_error(r, &e);
        pthread_mutex_destroy(&c->lock);
        free(c);
        return;
    }
    http_ref(r);                       /* the job's notes are taken on this very thread: later than all of this */
    c->next = h->calls;
    c->link = &h->calls;
    if (c->next) c->next->link = &c->next;
    h->calls = c;
    http_request_on_gone(r, on_gone, c);
    if (!c->streams) return;
    const double left = h->app->o.stream_commit_s - (clock_s() - http_request_start(r));
    c->commit = http_after(h->app->o.server, left > 0 ? left : 0, on_commit, c);
}

static void transcriptions(void *self, struct http_request *r) { handle(self, r, false); }
static void translations(void *self, struct http_request *r) { handle(self, r, true); }

static status head(void *self, struct http_request *r, struct err *e)
{
    return app_head(((struct http_audio *)self)->app, r, e);
}

void http_audio_routes(struct http_audio *h)
{
    const struct http_route route[] = {
        { .method = "POST", .path = TRANSCRIPTIONS, .body = HTTP_BODY_FORM, .head = head, .handle = transcriptions, .self = h },
        { .method = "POST", .path = TRANSLATIONS, .body = HTTP_BODY_FORM, .head = head, .handle = translations, .self = h },
    };
    for (size_t i = 0; i < sizeof route / sizeof *route; i++) http_route_add(h->app->o.server, &route[i]);
}

void http_audio_start(struct http_audio *h, struct api_audio *audio) { atomic_store(&h->audio, audio); }

void http_audio_observe(void *metrics, const struct api_audio_outcome *o)
{
    struct metrics *m = metrics;
    metrics_add1(m, METRIC_WINDOWS, "ok", o->n_ok);
    metrics_add1(m, METRIC_WINDOWS, "retried", o->n_retried);
    metrics_add1(m, METRIC_WINDOWS, "failed", o->n_failed);
    metrics_add1(m, METRIC_WINDOWS, "cached", o->n_cached);
    if (o->sound_s > 0) metrics_add1(m, METRIC_RTF, o->policy, o->took_s / o->sound_s);
}
