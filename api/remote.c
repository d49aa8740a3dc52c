/* api/remote.c - see remote.h: the leader of a group that is not rank 0's.
 *
 *   reader thread    takes messages; jobs go to the starters, cancels and credits to the job, pieces to who asked
 *   starters         parse and start a job as rank 0 would
 *   service threads  sink: what comes of a job is a frame; frames go out as far as the job's credit reaches
 *   gauge thread     every 200 ms
 *
 * A job is in the list until its DONE was put into the outbox. It has two references: its starter's and its sink's. */
#include "api/remote.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/audio_inside.h"
#include "api/questions.h"
#include "base/clock.h"
#include "base/mem.h"
#include "media/source.h"

#define WINDOW ((uint64_t)256 << 10)
#define STARTERS 4
#define GAUGES_S 0.2
#define TAKE_S 0.1

struct frame { struct frame *next; struct wire w; };

struct rjob {
    struct remote *r;
    uint64_t id;                   /* the front's */
    enum remote_job kind;
    struct wire_reader args;       /* what follows kind; into message */
    uint8_t *message;              /* owned */
    bool has_file;
    double came_s;
    atomic_int n_refs;
    pthread_mutex_t lock;          /* of what follows */
    struct frame *first, **last;   /* wait for credit */
    uint64_t under_way;            /* bytes of chunks that the front has not taken yet */
    bool started, cancelled;
    uint64_t api_id;
    /* of the list */
    struct rjob *next, *next_waiting;
};

struct ask {                       /* a thread that waits for a piece */
    uint64_t id;
    bool answered;
    struct err e;
    uint64_t total;
    char digest[MEDIA_DIGEST_TEXT];
    uint8_t *message;              /* owned: holds the bytes */
    const uint8_t *bytes;
    size_t n;
    struct ask *next;
};

struct remote {
    struct remote_options o;
    char *dir;
    struct outbox *out;
    pthread_t reader, gauges, starter[STARTERS];
    uint32_t n_starters;
    bool has_reader, has_gauges;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct api *api;               /* NULL: not yet */
    struct api_audio *audio;
    struct rjob *jobs, *waiting, **waiting_last;
    struct ask *asks;
    uint64_t last_ask;
    bool stop, closing, drained;
    struct err lost;               /* code OK: the front is heard */
    pthread_mutex_t metrics_lock;
    struct wire metrics;           /* a METRIC message that goes with the next gauges; n 0: nothing yet */
};

void remote_begin(struct wire *w, enum remote_message what, uint64_t job)
{
    *w = (struct wire){ 0 };
    wire_u32(w, what);
    wire_u64(w, job);
}

static void send_metrics(struct remote *r)
{
    pthread_mutex_lock(&r->metrics_lock);
    if (r->metrics.n) outbox_put(r->out, &r->metrics);
    pthread_mutex_unlock(&r->metrics_lock);
}

static void send_gauges(struct remote *r)
{
    struct service_gauges g;
    struct wire w;
    send_metrics(r);
    pthread_mutex_lock(&r->lock);
    struct api *api = r->api;
    pthread_mutex_unlock(&r->lock);
    if (api == NULL) return;
    api_read(api, &g);
    remote_begin(&w, REMOTE_GAUGES, 0);
    wire_blob(&w, &g, sizeof g);
    outbox_put(r->out, &w);
}

/* ---- jobs ---------------------------------------------------------------------------------------------------- */

static void unref(struct rjob *j)
{
    if (atomic_fetch_sub(&j->n_refs, 1) != 1) return;
    pthread_mutex_destroy(&j->lock);
    free(j->message);
    free(j);
}

static void forget(struct rjob *j)
{
    struct remote *r = j->r;
    pthread_mutex_lock(&r->lock);
    for (struct rjob **p = &r->jobs; *p; p = &(*p)->next)
        if (*p == j) {
            *p = j->next;
            break;
        }
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    unref(j);
}

static uint32_t kind_of(const struct wire *w)
{
    uint32_t kind;
    memcpy(&kind, w->bytes, sizeof kind);
    return kind;
}

/* What the credit allows, in order. True: DONE went out, and nothing more comes. With the job's lock. */
static bool flush_locked(struct rjob *j)
{
    while (j->first) {
        struct frame *f = j->first;
        const uint32_t kind = kind_of(&f->w);
        if (kind == REMOTE_CHUNK) {
            if (j->under_way >= j->r->o.window) return false;
            j->under_way += f->w.n;
        }
        j->first = f->next;
        if (j->first == NULL) j->last = &j->first;
        outbox_put(j->r->out, &f->w);
        free(f);
        if (kind == REMOTE_DONE) return true;
    }
    return false;
}

static void put_frame(struct rjob *j, struct wire *w)
{
    struct frame *f = mem_must(1, sizeof *f);
    f->w = *w;
    pthread_mutex_lock(&j->lock);
    *j->last = f;
    j->last = &f->next;
    const bool over = flush_locked(j);
    pthread_mutex_unlock(&j->lock);
    if (over) forget(j);
}

static void put_json(struct wire *w, const json_t *o)
{
    char *text = json_dumps(o, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    wire_text(w, text ? text : "null");
    free(text);
}

static void sink_chunk(void *self, json_t *chunk)
{
    struct rjob *j = self;
    struct wire w;
    remote_begin(&w, REMOTE_CHUNK, j->id);
    put_json(&w, chunk);
    json_decref(chunk);
    put_frame(j, &w);
}

/* Only the newest counts: what would have to wait is left out. */
static void sink_progress(void *self, const char *phase, double done)
{
    struct rjob *j = self;
    struct wire w;
    pthread_mutex_lock(&j->lock);
    const bool waits = j->first != NULL;
    pthread_mutex_unlock(&j->lock);
    if (waits) return;
    remote_begin(&w, REMOTE_PROGRESS, j->id);
    wire_text(&w, phase);
    wire_f64(&w, done);
    put_frame(j, &w);
}

/* The gauges first: who hears of the admission counts its pages from them. */
static void sink_admitted(void *self)
{
    struct rjob *j = self;
    struct wire w;
    send_gauges(j->r);
    remote_begin(&w, REMOTE_ADMITTED, j->id);
    put_frame(j, &w);
}

static void put_done(struct rjob *j, const struct err *error, enum remote_reply what, const void *bytes, size_t n)
{
    const struct err none = { .code = OK };
    struct wire w;
    send_gauges(j->r);
    remote_begin(&w, REMOTE_DONE, j->id);
    wire_err(&w, error ? error : &none);
    wire_u32(&w, what);
    wire_blob(&w, bytes, n);
    put_frame(j, &w);
}

static void put_done_json(struct rjob *j, const json_t *reply)
{
    char *text = json_dumps(reply, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    put_done(j, NULL, REMOTE_JSON, text, text ? strlen(text) : 0);
    free(text);
}

static void sink_done(void *self, json_t *reply, const struct err *error)
{
    if (error) put_done(self, error, REMOTE_NOTHING, NULL, 0);
    else if (reply) put_done_json(self, reply);
    else put_done(self, NULL, REMOTE_NOTHING, NULL, 0);
    json_decref(reply);
}

static void audio_done(void *self, struct api_audio_reply *reply, const struct err *error)
{
    if (error) put_done(self, error, REMOTE_NOTHING, NULL, 0);
    else if (reply == NULL) put_done(self, NULL, REMOTE_NOTHING, NULL, 0);
    else if (reply->json) put_done_json(self, reply->json);
    else put_done(self, NULL, REMOTE_BYTES, reply->bytes, reply->n);
    if (reply) api_audio_reply_free(reply);
}

/* ---- bytes that the front has ---------------------------------------------------------------------------------- */

/* One piece at `offset`; a->message is then the caller's. */
static status ask_piece(struct remote *r, uint64_t job, const char *key, const char *id, uint64_t offset,
                        const atomic_bool *stop, struct ask *a, struct err *e)
{
    struct wire w;
    *a = (struct ask){ 0 };
    pthread_mutex_lock(&r->lock);
    a->id = ++r->last_ask;
    a->next = r->asks;
    r->asks = a;
    pthread_mutex_unlock(&r->lock);
    remote_begin(&w, REMOTE_ASK, job);
    wire_u64(&w, a->id);
    wire_u64(&w, offset);
    wire_text(&w, key);
    wire_text(&w, id);
    outbox_put(r->out, &w);
    pthread_mutex_lock(&r->lock);
    while (!a->answered && r->lost.code == OK && !r->closing && !(stop && atomic_load(stop))) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 100000000;
        if (t.tv_nsec >= 1000000000) {
            t.tv_sec++;
            t.tv_nsec -= 1000000000;
        }
        pthread_cond_timedwait(&r->changed, &r->lock, &t);
    }
    for (struct ask **p = &r->asks; *p; p = &(*p)->next)
        if (*p == a) {
            *p = a->next;
            break;
        }
    pthread_mutex_unlock(&r->lock);
    if (!a->answered) return err_set(e, E_CANCELLED, "cancelled while the media came from rank 0");
    if (a->e.code == OK) return OK;
    *e = a->e;
    return e->code;
}

/* All of it, into the spool. */
static status pull(struct remote *r, uint64_t job, const char *key, const char *id, const char *name,
                   const atomic_bool *stop, struct media_source *out, struct err *e)
{
    struct media_source s = { .fd = -1 };
    TRY(spool_open(r->dir, &s.fd, e));
    status st;
    for (;;) {
        struct ask a;
        st = ask_piece(r, job, key, id, s.bytes, stop, &a, e);
        if (st == OK) st = spool_write(s.fd, a.bytes, a.n, e);
        s.bytes += a.n;
        memcpy(s.digest, a.digest, sizeof s.digest);
        const bool more = s.bytes < a.total;
        if (st == OK && more && a.n == 0) st = err_set(e, E_IO, "%s: it became shorter while it was read", name);
        free(a.message);
        if (st != OK || !more) break;
    }
    if (st == OK) st = spool_finish(&s.fd, e);
    if (st != OK) {
        media_source_close(&s);
        return st;
    }
    return media_source_of_fd(s.fd, name, s.digest[0] ? s.digest : NULL, out, e);
}

status remote_files(void *remote, const char *key, const char *id, const char *name, struct media_source *out,
                    struct err *e)
{
    return pull(remote, 0, key, id, name, NULL, out, e);
}

static status fetch_upload(void *self, const atomic_bool *stop, struct media_source *out, struct err *e)
{
    struct rjob *j = self;
    return pull(j->r, j->id, "", "", "file", stop, out, e);
}

/* ---- starting --------------------------------------------------------------------------------------------------- */

struct job_text { char request_id[128], key[MEDIA_DIGEST_TEXT]; const char *body; size_t n; };

static status start_chat(struct rjob *j, const struct api_caller *c, const struct job_text *t, struct err *e)
{
    const struct api_sink sink = { .self = j, .chunk = sink_chunk, .progress = sink_progress, .admitted = sink_admitted,
                                   .done = sink_done };
    struct api_job *job = NULL;
    uint64_t id = 0;
    TRY((j->kind == REMOTE_CHAT ? api_chat_parse : api_completion_parse)(j->r->api, t->body, t->n, c, &job, e));
    const status st = api_job_start(&job, &sink, &id, e);
    api_job_free(&job);
    j->api_id = id;
    return st;
}

static status start_audio(struct rjob *j, const struct api_caller *c, const struct job_text *t, struct err *e)
{
    const struct api_audio_sink sink = { j, sink_chunk, sink_progress, audio_done };
    struct api_audio_job *job = NULL;
    uint64_t id = 0;
    if (j->r->audio == NULL) return err_set(e, E_ARG, "transcriptions are not offered here");
    TRY(audio_parse_moved(j->r->audio, j->kind == REMOTE_TRANSLATION, t->body, t->n, j->has_file ? fetch_upload : NULL, j, c,
                          &job, e));
    const status st = api_audio_start(&job, &sink, &id, e);
    api_audio_job_free(&job);
    j->api_id = id;
    return st;
}

static void answered(void *self, struct answer *a)
{
    struct rjob *j = self;
    struct wire w = { 0 };
    questions_put_answer(&w, a);
    put_done(j, NULL, REMOTE_BYTES, w.bytes, w.n);
    free(w.bytes);
}

static status start_question(struct rjob *j, const struct job_text *t, struct err *e)
{
    return questions_ask(j->r->api, t->body, t->n, answered, j, &j->api_id, e);
}

static void cancel_started(struct rjob *j)
{
    if (j->kind <= REMOTE_COMPLETION) api_job_cancel(j->r->api, j->api_id);
    else if (j->kind == REMOTE_QUESTION) questions_cancel(j->r->api, j->api_id);
    else api_audio_cancel(j->r->audio, j->api_id);
}

static status start_kind(struct rjob *j, const struct api_caller *c, const struct job_text *t, struct err *e)
{
    switch (j->kind) {
    case REMOTE_CHAT:
    case REMOTE_COMPLETION: return start_chat(j, c, t, e);
    case REMOTE_TRANSCRIPTION:
    case REMOTE_TRANSLATION: return start_audio(j, c, t, e);
    case REMOTE_QUESTION: return start_question(j, t, e);
    }
    return err_set(e, E_INTERNAL, "a job came that is of no kind");
}

static void start(struct rjob *j)
{
    struct job_text t;
    struct err e = { 0 };
    struct wire_reader *r = &j->args;
    const bool batch = wire_get_u32(r);
    const double age = wire_get_f64(r);
    wire_get_text(r, t.request_id, sizeof t.request_id);
    wire_get_text(r, t.key, sizeof t.key);
    t.body = (const char *)wire_get_blob(r, &t.n);
    j->has_file = wire_get_u32(r);
    const struct api_caller caller = { .request_id = t.request_id, .key = t.key, .batch = batch,
                                       .arrived_s = j->came_s - age };
    pthread_mutex_lock(&j->r->lock);
    const bool ready = j->r->api != NULL;
    pthread_mutex_unlock(&j->r->lock);
    pthread_mutex_lock(&j->lock);
    const bool cancelled = j->cancelled;
    pthread_mutex_unlock(&j->lock);
    status st = cancelled ? err_set(&e, E_CANCELLED, "cancelled") : OK;
    if (st == OK && r->bad) st = err_set(&e, E_INTERNAL, "a job came in a form that is none");
    if (st == OK && !ready) {
        err_set(&e, E_BUSY, "the group is not ready yet");
        st = err_tag(&e, "not_ready", NULL);
    }
    if (st == OK) st = start_kind(j, &caller, &t, &e);
    if (st != OK) {
        put_done(j, &e, REMOTE_NOTHING, NULL, 0);
    } else {
        pthread_mutex_lock(&j->lock);
        j->started = true;
        const bool late = j->cancelled;
        pthread_mutex_unlock(&j->lock);
        if (late) cancel_started(j);
    }
    unref(j);
}

static void *starter_main(void *arg)
{
    struct remote *r = arg;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        struct rjob *j = r->waiting;
        if (j == NULL && r->closing) break;
        if (j == NULL) {
            pthread_cond_wait(&r->changed, &r->lock);
            continue;
        }
        r->waiting = j->next_waiting;
        if (r->waiting == NULL) r->waiting_last = &r->waiting;
        pthread_mutex_unlock(&r->lock);
        start(j);
        pthread_mutex_lock(&r->lock);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* ---- the reader --------------------------------------------------------------------------------------------------- */

static void take_job(struct remote *r, uint64_t id, struct wire_reader *in, uint8_t *message)
{
    struct rjob *j = mem_must(1, sizeof *j);
    *j = (struct rjob){ .r = r, .id = id, .message = message, .came_s = clock_s() };
    j->kind = (enum remote_job)wire_get_u32(in);
    j->args = *in;
    j->last = &j->first;
    atomic_init(&j->n_refs, 2);
    pthread_mutex_init(&j->lock, NULL);
    pthread_mutex_lock(&r->lock);
    j->next = r->jobs;
    r->jobs = j;
    *r->waiting_last = j;
    r->waiting_last = &j->next_waiting;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* The job with a reference more; NULL: it is over. */
static struct rjob *job_of(struct remote *r, uint64_t id)
{
    pthread_mutex_lock(&r->lock);
    struct rjob *j = r->jobs;
    while (j && j->id != id) j = j->next;
    if (j) atomic_fetch_add(&j->n_refs, 1);
    pthread_mutex_unlock(&r->lock);
    return j;
}

static void cancel_job(struct rjob *j)
{
    pthread_mutex_lock(&j->lock);
    const bool now = j->started && !j->cancelled;
    j->cancelled = true;
    pthread_mutex_unlock(&j->lock);
    if (now) cancel_started(j);
}

static void take_credit(struct rjob *j, uint64_t n)
{
    pthread_mutex_lock(&j->lock);
    j->under_way -= n < j->under_way ? n : j->under_way;
    const bool over = flush_locked(j);
    pthread_mutex_unlock(&j->lock);
    if (over) forget(j);
}

/* True: the message is the ask's now. */
static bool take_piece(struct remote *r, struct wire_reader *in, uint8_t *message)
{
    const uint64_t id = wire_get_u64(in);
    bool found = false;
    pthread_mutex_lock(&r->lock);
    for (struct ask *a = r->asks; a && !found; a = a->next) {
        if (a->id != id) continue;
        found = true;
        wire_get_err(in, &a->e);
        a->total = wire_get_u64(in);
        wire_get_text(in, a->digest, sizeof a->digest);
        a->bytes = wire_get_blob(in, &a->n);
        if (in->bad) err_set(&a->e, E_INTERNAL, "a piece of a file came in a form that is none");
        a->message = message;
        a->answered = true;
        pthread_cond_broadcast(&r->changed);
    }
    pthread_mutex_unlock(&r->lock);
    return found;
}

static void take_message(struct remote *r, uint8_t *bytes, size_t n)
{
    struct wire_reader in = { .bytes = bytes, .n = n };
    const uint32_t what = wire_get_u32(&in);
    const uint64_t id = wire_get_u64(&in);
    if (what == REMOTE_JOB) {
        take_job(r, id, &in, bytes);
        return;
    }
    if (what == REMOTE_PIECE_MESSAGE) {
        if (!take_piece(r, &in, bytes)) free(bytes);
        return;
    }
    struct rjob *j = what == REMOTE_CANCEL || what == REMOTE_CREDIT_MESSAGE ? job_of(r, id) : NULL;
    if (j && what == REMOTE_CANCEL) cancel_job(j);
    if (j && what == REMOTE_CREDIT_MESSAGE) take_credit(j, wire_get_u64(&in));
    if (j) unref(j);
    pthread_mutex_lock(&r->lock);
    struct api *api = r->api;
    if (what == REMOTE_STOP) r->stop = true;
    if (what == REMOTE_DRAIN) r->drained = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    if (what == REMOTE_DRAIN && api) api_drain(api);
    free(bytes);
}

static void *reader_main(void *arg)
{
    struct remote *r = arg;
    for (;;) {
        struct err e;
        uint32_t from;
        uint8_t *bytes;
        size_t n;
        bool got = false;
        pthread_mutex_lock(&r->lock);
        const bool end = r->closing || r->lost.code != OK;
        pthread_mutex_unlock(&r->lock);
        if (end) return NULL;
        const status st = r->o.link->take(r->o.link->self, TAKE_S, &from, &bytes, &n, &got, &e);
        if (st == OK && got) {
            take_message(r, bytes, n);
        } else if (st != OK) {
            pthread_mutex_lock(&r->lock);
            r->lost = e;
            pthread_cond_broadcast(&r->changed);
            pthread_mutex_unlock(&r->lock);
        }
    }
}

static void *gauges_main(void *arg)
{
    struct remote *r = arg;
    const struct timespec t = { 0, (long)(GAUGES_S * 1e9) };
    for (;;) {
        pthread_mutex_lock(&r->lock);
        const bool end = r->closing;
        pthread_mutex_unlock(&r->lock);
        if (end) return NULL;
        send_gauges(r);
        nanosleep(&t, NULL);
    }
}

/* ---- life --------------------------------------------------------------------------------------------------------- */

status remote_create(const struct remote_options *o, struct remote **out, struct err *e)
{
    struct remote *r = mem_must(1, sizeof *r);
    r->o = *o;
    if (r->o.window == 0) r->o.window = WINDOW;
    if (r->o.window < REMOTE_CREDIT) r->o.window = REMOTE_CREDIT;      /* less is never acknowledged */
    r->dir = mem_must_strdup(o->dir ? o->dir : "/tmp");
    r->waiting_last = &r->waiting;
    pthread_mutex_init(&r->lock, NULL);
    pthread_mutex_init(&r->metrics_lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    status st = outbox_open(o->link, 0, &r->out, e);
    if (st == OK) {
        r->has_reader = pthread_create(&r->reader, NULL, reader_main, r) == 0;
        r->has_gauges = pthread_create(&r->gauges, NULL, gauges_main, r) == 0;
        while (r->n_starters < STARTERS && pthread_create(&r->starter[r->n_starters], NULL, starter_main, r) == 0)
            r->n_starters++;
        if (!r->has_reader || !r->has_gauges || r->n_starters == 0) st = err_set(e, E_NOMEM, "no thread can be started");
    }
    if (st != OK) remote_destroy(&r);
    *out = r;
    return st;
}

void remote_start(struct remote *r, struct api *api, struct api_audio *audio)
{
    struct wire w;
    pthread_mutex_lock(&r->lock);
    r->api = api;
    r->audio = audio;
    const bool drained = r->drained;
    pthread_mutex_unlock(&r->lock);
    if (drained) api_drain(api);
    send_gauges(r);
    remote_begin(&w, REMOTE_READY, 0);
    wire_text(&w, api_fingerprint(api));
    outbox_put(r->out, &w);
}

void remote_failed(struct remote *r, const struct err *why)
{
    struct wire w;
    remote_begin(&w, REMOTE_FAILED, 0);
    wire_err(&w, why);
    outbox_put(r->out, &w);
}

status remote_wait(struct remote *r, struct err *e)
{
    pthread_mutex_lock(&r->lock);
    while (!r->stop && r->lost.code == OK) pthread_cond_wait(&r->changed, &r->lock);
    const status st = r->stop ? OK : r->lost.code;
    if (st != OK) *e = r->lost;
    pthread_mutex_unlock(&r->lock);
    return st;
}

/* Jobs that have begun end, their last frames without waiting for credit. */
static void end_jobs(struct remote *r)
{
    pthread_mutex_lock(&r->lock);
    while (r->jobs) {
        struct rjob *j = r->jobs;
        atomic_fetch_add(&j->n_refs, 1);
        pthread_mutex_unlock(&r->lock);
        cancel_job(j);
        take_credit(j, UINT64_MAX);
        pthread_mutex_lock(&r->lock);
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_sec++;
        if (r->jobs == j) pthread_cond_timedwait(&r->changed, &r->lock, &t);
        pthread_mutex_unlock(&r->lock);
        unref(j);
        pthread_mutex_lock(&r->lock);
    }
    pthread_mutex_unlock(&r->lock);
}

void remote_stop(struct remote *r)
{
    pthread_mutex_lock(&r->lock);
    r->closing = true;             /* no starter takes another job, who asks for pieces gives up */
    struct rjob *waiting = r->waiting;
    r->waiting = NULL;
    r->waiting_last = &r->waiting;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    if (r->has_reader) pthread_join(r->reader, NULL);
    if (r->has_gauges) pthread_join(r->gauges, NULL);
    for (uint32_t i = 0; i < r->n_starters; i++) pthread_join(r->starter[i], NULL);
    r->has_reader = r->has_gauges = false;
    r->n_starters = 0;
    while (waiting) {
        struct rjob *next = waiting->next_waiting;
        forget(waiting);           /* nobody has begun it: its sink's reference goes with the list */
        unref(waiting);
        waiting = next;
    }
    end_jobs(r);
}

void remote_destroy(struct remote **pr)
{
    struct remote *r = *pr;
    if (r == NULL) return;
    if (r->out) {
        remote_stop(r);
        send_metrics(r);
    }
    free(r->metrics.bytes);
    outbox_close(&r->out);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
    free(r->dir);
    free(r);
    *pr = NULL;
}

void remote_metric(void *remote, uint32_t which, const char *const *label, uint32_t n, double v)
{
    struct remote *r = remote;
    struct wire *w = &r->metrics;
    pthread_mutex_lock(&r->metrics_lock);
    if (w->n == 0) remote_begin(w, REMOTE_METRIC, 0);
    wire_u32(w, which);
    wire_u32(w, n);
    for (uint32_t i = 0; i < n; i++) wire_text(w, label[i]);
    wire_f64(w, v);
    pthread_mutex_unlock(&r->metrics_lock);
}
