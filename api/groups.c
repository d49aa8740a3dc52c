/* api/groups.c - see groups.h.
 *
 *   any thread       chooses, puts a JOB into the outbox of its leader
 *   reader thread    takes what leaders say and tells the sinks: they are called on this thread alone, also about groups
 *                    that are gone, so that nothing follows a done
 *   filer thread     reads pieces of files that leaders ask for
 *
 * One lock guards groups, jobs and asks; it is not held while a sink is called or a file is read. */
#include "api/groups.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api/audio_inside.h"
#include "api/questions.h"
#include "api/remote.h"
#include "base/clock.h"
#include "base/mem.h"

#define TAKE_S 0.1
#define KEYS 256                   /* media that a group had last, remembered */
#define JOB_KEYS 16                /* media of a job that are looked at */
#define KEY_S 900.0                /* and for how long */
#define SAMPLE 4096                /* bytes at both ends of a medium that its key is made of */
#define MEAN_JOBS 32               /* a job that is not admitted counts as this part of a pool, where none ran yet */

struct media_key { uint64_t key; double at_s; };

struct group {
    struct groups_view v;
    struct outbox *out;            /* NULL: group 0 */
    uint32_t n_unadmitted;         /* of n_jobs; group 0: as its gauges say */
    struct err lost;               /* GONE */
    struct err failed;             /* what kept it from loading; code OK: nothing */
    struct media_key key[KEYS];
    uint32_t next_key;
};

struct gjob {
    uint64_t id;
    uint32_t group;
    bool audio, admitted, cancelled;
    char phase[12];
    struct api_sink sink;          /* chat, completion */
    struct api_audio_sink audio_sink;
    void (*answered)(void *self, const void *bytes, size_t n, const struct err *error);    /* a question's; else NULL */
    void *answered_self;
    const char *content_type;      /* of a reply that is bytes; static */
    struct media_source source;    /* an upload that the leader may ask for; fd -1 */
    uint64_t taken;                /* bytes whose credit was not given back yet */
    struct gjob *next;
};

struct asked {
    uint32_t group;
    uint64_t job, ask, offset;
    char key[MEDIA_DIGEST_TEXT], id[128];
    struct asked *next;
};

struct groups {
    struct groups_options o;
    uint32_t n;
    struct group *group;           /* [n] */
    struct api *local;             /* NULL: not there yet */
    struct gjob *jobs;
    struct asked *asked, **asked_last;
    uint64_t last_id;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t reader, filer;
    bool has_reader, has_filer, closing;
    bool stopping;                 /* leaders that end do so because they were told to */
    uint32_t reading;              /* uploads that the filer reads now: 1 or 0 */
};

static void say(struct groups *g, const char *line)
{
    if (g->o.log) g->o.log(g->o.log_self, line);
}

/* ---- which group ---------------------------------------------------------------------------------------------------- */

/* Of length, and of the bytes at both ends: it only says where something like it may lie. */
static uint64_t key_of(const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    uint64_t h = 1469598103934665603u ^ n;
    for (size_t i = 0; i < n; i++) {
        if (i == SAMPLE && n > 2 * SAMPLE) i = n - SAMPLE;
        h = (h ^ p[i]) * 1099511628211u;
    }
    return h ? h : 1;
}

struct wanted { uint64_t key[JOB_KEYS]; uint32_t n; bool batch; };

static void want(struct wanted *w, const void *bytes, size_t n)
{
    if (w->n < JOB_KEYS) w->key[w->n++] = key_of(bytes, n);
}

static void want_chat(struct wanted *w, const struct chat *c)
{
    for (size_t m = 0; m < c->n_messages; m++)
        for (size_t i = 0; i < c->message[m].n_parts; i++) {
            const struct chat_part *p = &c->message[m].part[i];
            if (p->url) want(w, p->url, strlen(p->url));
            if (p->data) want(w, p->data, p->n_data);
            if (p->n_frames) want(w, p->frame[0], strlen(p->frame[0]));
        }
}

static void read_local(struct groups *g)
{
    struct group *x = &g->group[0];
    if (g->local == NULL) return;
    api_read(g->local, &x->v.gauges);
    x->n_unadmitted = x->v.gauges.n_preparing + x->v.gauges.n_waiting;
}

/* Share of its pages that a job sent now would find: cached ones are given up for it. May be below 0. */
static double room_of(const struct group *x)
{
    const struct service_gauges *s = &x->v.gauges;
    const uint32_t running = s->n_encoding + s->n_prefilling + s->n_decoding;
    if (s->pages_total == 0) return 1 - (double)x->n_unadmitted / MEAN_JOBS;
    const double all = s->pages_total, free = fmin((double)s->pages_free + s->pages_cached, all) - s->pages_reserved;
    const double each = running > 0 ? fmax(all - free, 1) / running : all / MEAN_JOBS;
    return (free - each * x->n_unadmitted) / all;
}

static bool had(const struct group *x, const struct wanted *w, double now)
{
    for (uint32_t i = 0; i < w->n; i++)
        for (uint32_t k = 0; k < KEYS; k++)
            if (x->key[k].key == w->key[i] && now - x->key[k].at_s < KEY_S) return true;
    return false;
}

static bool takes_jobs(const struct group *x) { return x->v.state == GROUPS_READY; }

/* Under the lock. Group 0 where nobody else is there: what it says is the answer. */
static uint32_t choose(struct groups *g, const struct wanted *w)
{
    const double now = clock_s();
    uint32_t best = 0;
    bool any = false, best_had = false;
    double best_room = 0;
    read_local(g);
    for (uint32_t i = 0; i < g->n; i++) {
        const struct group *x = &g->group[i];
        if (!takes_jobs(x)) continue;
        const double room = room_of(x);
        const bool same = room > 0 && had(x, w, now);
        const uint32_t mine = x->v.n_jobs, others = g->group[best].v.n_jobs;
        bool better = !any;
        if (any && w->batch) better = mine < others || (mine == others && room > best_room);
        else if (any) better = same != best_had ? same : room > best_room || (room == best_room && mine < others);
        if (!better) continue;
        best = i;
        best_had = same;
        best_room = room;
        any = true;
    }
    struct group *x = &g->group[best];
    x->v.n_jobs++;
    x->v.n_given++;
    if (best > 0) x->n_unadmitted++;
    for (uint32_t i = 0; i < w->n; i++) x->key[x->next_key++ % KEYS] = (struct media_key){ w->key[i], now };
    return best;
}

void groups_left(struct groups *g)
{
    pthread_mutex_lock(&g->lock);
    g->group[0].v.n_jobs--;
    pthread_mutex_unlock(&g->lock);
}

/* ---- jobs --------------------------------------------------------------------------------------------------------- */

static void gjob_free(struct gjob *j)
{
    media_source_close(&j->source);
    free(j);
}

static void lost_error(uint32_t group, const struct err *why, struct err *e)
{
    err_set(e, E_DEVICE, "group %u, which worked on this request, is gone: %s; send the request again", group, why->text);
    err_tag(e, "group_lost", NULL);
}

/* Chooses and sends; *j is freed where the job stays here. The message w is complete but for its id. */
static bool send_job(struct groups *g, const struct wanted *want, struct gjob *j, struct wire *w, uint64_t *id)
{
    pthread_mutex_lock(&g->lock);
    const uint32_t group = choose(g, want);
    if (group > 0) {
        j->group = group;
        j->id = *id = ++g->last_id | GROUPS_REMOTE;
        j->next = g->jobs;
        g->jobs = j;
        memcpy(w->bytes + sizeof(uint32_t), &j->id, sizeof j->id);
        outbox_put(g->group[group].out, w);
    }
    pthread_mutex_unlock(&g->lock);
    return group > 0;
}

static bool alone(struct groups *g)
{
    bool others = false;
    pthread_mutex_lock(&g->lock);
    for (uint32_t i = 1; i < g->n; i++) others = others || takes_jobs(&g->group[i]);
    if (!others) {
        g->group[0].v.n_jobs++;
        g->group[0].v.n_given++;
    }
    pthread_mutex_unlock(&g->lock);
    return !others;
}

static void begin_job(struct wire *w, enum remote_job kind, bool batch, double arrived_s, const char *request_id,
                      const char *key, const char *body, size_t n, bool has_file)
{
    remote_begin(w, REMOTE_JOB, 0);
    wire_u32(w, kind);
    wire_u32(w, batch);
    wire_f64(w, arrived_s > 0 ? clock_s() - arrived_s : 0);
    wire_text(w, request_id);
    wire_text(w, key);
    wire_blob(w, body, n);
    wire_u32(w, has_file);
}

status groups_start(struct groups *g, struct api_job *j, const struct api_sink *sink, bool *taken, uint64_t *id,
                    struct err *e)
{
    struct wanted want = { .batch = j->batch };
    struct wire w;
    *taken = false;
    if (alone(g)) return OK;
    for (uint32_t i = 0; i < j->n_groups; i++) want_chat(&want, &j->group[i].rq.chat);
    struct gjob *mine;
    TRY(mem_alloc(&mine, 1, sizeof *mine, e));
    mine->sink = *sink;
    mine->source.fd = -1;
    snprintf(mine->phase, sizeof mine->phase, "prepare");
    begin_job(&w, j->is_chat ? REMOTE_CHAT : REMOTE_COMPLETION, j->batch, j->arrived_s, j->request_id, j->owner.key,
              j->body, j->n_body, false);
    *taken = send_job(g, &want, mine, &w, id);
    free(w.bytes);
    if (!*taken) gjob_free(mine);
    return OK;
}

status groups_start_audio(struct groups *g, struct api_audio_job *j, const struct api_audio_sink *sink, bool *taken,
                          uint64_t *id, struct err *e)
{
    struct wanted want_it = { .batch = j->batch };
    struct wire w;
    *taken = false;
    if (alone(g)) return OK;
    if (j->p.url) want(&want_it, j->p.url, strlen(j->p.url));
    else want(&want_it, j->source.digest, strlen(j->source.digest));
    struct gjob *mine;
    TRY(mem_alloc(&mine, 1, sizeof *mine, e));
    mine->audio = true;
    mine->audio_sink = *sink;
    mine->content_type = audio_content_type(j->p.format);
    mine->source = j->source;
    snprintf(mine->phase, sizeof mine->phase, "prepare");
    begin_job(&w, j->p.translate ? REMOTE_TRANSLATION : REMOTE_TRANSCRIPTION, j->batch, 0, j->request_id, j->owner.key,
              j->fields, strlen(j->fields), j->source.fd >= 0);
    *taken = send_job(g, &want_it, mine, &w, id);
    free(w.bytes);
    if (*taken) j->source.fd = -1;
    else free(mine);
    return OK;
}

status groups_start_question(struct groups *g, const struct question *q,
                             void (*answered)(void *self, const void *bytes, size_t n, const struct err *error), void *self,
                             bool *taken, uint64_t *id, struct err *e)
{
    const struct wanted want_it = { .batch = true };
    struct wire body = { 0 }, w;
    *taken = false;
    if (alone(g)) return OK;
    struct gjob *mine;
    TRY(mem_alloc(&mine, 1, sizeof *mine, e));
    mine->answered = answered;
    mine->answered_self = self;
    mine->source.fd = -1;
    snprintf(mine->phase, sizeof mine->phase, "prepare");
    questions_put(&body, q);
    begin_job(&w, REMOTE_QUESTION, true, 0, "", "", (const char *)body.bytes, body.n, false);
    free(body.bytes);
    *taken = send_job(g, &want_it, mine, &w, id);
    free(w.bytes);
    if (!*taken) gjob_free(mine);
    return OK;
}

void groups_cancel(struct groups *g, uint64_t id)
{
    struct wire w;
    pthread_mutex_lock(&g->lock);
    for (struct gjob *j = g->jobs; j; j = j->next) {
        if (j->id != id || j->cancelled) continue;
        j->cancelled = true;
        remote_begin(&w, REMOTE_CANCEL, id);
        outbox_put(g->group[j->group].out, &w);
    }
    pthread_mutex_unlock(&g->lock);
}

/* Every transcription: what is left of a drain. */
void groups_cancel_audio(struct groups *g)
{
    struct wire w;
    pthread_mutex_lock(&g->lock);
    for (struct gjob *j = g->jobs; j; j = j->next) {
        if (!j->audio || j->cancelled) continue;
        j->cancelled = true;
        remote_begin(&w, REMOTE_CANCEL, j->id);
        outbox_put(g->group[j->group].out, &w);
    }
    pthread_mutex_unlock(&g->lock);
}

void groups_phase(struct groups *g, uint64_t id, char out[12])
{
    out[0] = 0;
    pthread_mutex_lock(&g->lock);
    for (const struct gjob *j = g->jobs; j; j = j->next)
        if (j->id == id) memcpy(out, j->phase, 12);
    pthread_mutex_unlock(&g->lock);
}

/* ---- what leaders say (reader thread) -------------------------------------------------------------------------------- */

/* Only this thread takes jobs out of the list, so *j lives while it is worked on. */
static struct gjob *job_of(struct groups *g, uint64_t id, uint32_t group)
{
    pthread_mutex_lock(&g->lock);
    struct gjob *j = g->jobs;
    while (j && (j->id != id || j->group != group)) j = j->next;
    pthread_mutex_unlock(&g->lock);
    return j;
}

static void admit_locked(struct groups *g, struct gjob *j)
{
    if (j->admitted) return;
    j->admitted = true;
    if (g->group[j->group].n_unadmitted > 0) g->group[j->group].n_unadmitted--;
}

/* The filer may be at its file: that one is waited for. */
static void take_out(struct groups *g, struct gjob *j)
{
    pthread_mutex_lock(&g->lock);
    while (j->source.fd >= 0 && g->reading) pthread_cond_wait(&g->changed, &g->lock);
    for (struct gjob **p = &g->jobs; *p; p = &(*p)->next)
        if (*p == j) {
            *p = j->next;
            break;
        }
    admit_locked(g, j);
    g->group[j->group].v.n_jobs--;
    pthread_mutex_unlock(&g->lock);
}

static void end_job(struct groups *g, struct gjob *j, const struct err *error, json_t *reply, struct api_audio_reply *bytes)
{
    take_out(g, j);
    if (j->answered) {
        j->answered(j->answered_self, bytes ? bytes->bytes : NULL, bytes ? bytes->n : 0, error);
        if (bytes) api_audio_reply_free(bytes);
        json_decref(reply);
    } else if (!j->audio) {
        j->sink.done(j->sink.self, reply, error);
    } else {
        struct api_audio_reply whole = { .json = reply };
        if (bytes) whole = *bytes;
        j->audio_sink.done(j->audio_sink.self, whole.json || whole.bytes ? &whole : NULL, error);
    }
    gjob_free(j);
}

static json_t *json_of(const uint8_t *bytes, size_t n)
{
    return json_loadb((const char *)bytes, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
}

static void broken(struct groups *g, struct gjob *j)
{
    struct err e;
    err_set(&e, E_INTERNAL, "what group %u sent could not be read", j->group);
    end_job(g, j, &e, NULL, NULL);
}

static void on_done(struct groups *g, struct gjob *j, struct wire_reader *in)
{
    struct err e;
    size_t n;
    wire_get_err(in, &e);
    const uint32_t what = wire_get_u32(in);
    const uint8_t *bytes = wire_get_blob(in, &n);
    if (in->bad) {
        broken(g, j);
    } else if (e.code != OK || what == REMOTE_NOTHING) {
        end_job(g, j, e.code != OK ? &e : NULL, NULL, NULL);
    } else if (what == REMOTE_BYTES) {
        struct api_audio_reply r = { .content_type = j->content_type, .bytes = mem_must(n + 1, 1), .n = n };
        if (n) memcpy(r.bytes, bytes, n);
        end_job(g, j, NULL, NULL, &r);
    } else {
        json_t *reply = json_of(bytes, n);
        if (reply) end_job(g, j, NULL, reply, NULL);
        else broken(g, j);
    }
}

static void on_chunk(struct groups *g, struct gjob *j, struct wire_reader *in, size_t n_message)
{
    size_t n;
    const uint8_t *bytes = wire_get_blob(in, &n);
    json_t *chunk = bytes ? json_of(bytes, n) : NULL;
    pthread_mutex_lock(&g->lock);
    admit_locked(g, j);
    snprintf(j->phase, sizeof j->phase, "decode");
    pthread_mutex_unlock(&g->lock);
    if (chunk == NULL) return;
    if (j->audio) j->audio_sink.chunk(j->audio_sink.self, chunk);
    else if (j->sink.chunk) j->sink.chunk(j->sink.self, chunk);
    else json_decref(chunk);
    j->taken += n_message;
    if (j->taken < REMOTE_CREDIT) return;
    struct wire w;
    remote_begin(&w, REMOTE_CREDIT_MESSAGE, j->id);
    wire_u64(&w, j->taken);
    outbox_put(g->group[j->group].out, &w);
    j->taken = 0;
}

/* A transcription is at work from its first progress on: its windows are in the gauges. */
static void on_progress(struct groups *g, struct gjob *j, struct wire_reader *in)
{
    static const char *const phases[] = { "queue", "encode", "prefill", "transcribe" };
    char phase[16];
    wire_get_text(in, phase, sizeof phase);
    const double done = wire_get_f64(in);
    pthread_mutex_lock(&g->lock);
    if (j->audio) admit_locked(g, j);
    pthread_mutex_unlock(&g->lock);
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
        if (strcmp(phase, phases[i]) != 0) continue;
        if (j->audio && j->audio_sink.progress) j->audio_sink.progress(j->audio_sink.self, phases[i], done);
        if (!j->audio && j->sink.progress) j->sink.progress(j->sink.self, phases[i], done);
    }
}

static void on_admitted(struct groups *g, struct gjob *j)
{
    pthread_mutex_lock(&g->lock);
    admit_locked(g, j);
    snprintf(j->phase, sizeof j->phase, "prefill");
    pthread_mutex_unlock(&g->lock);
    if (!j->audio && j->sink.admitted) j->sink.admitted(j->sink.self);
}

static void on_ask(struct groups *g, uint32_t group, uint64_t job, struct wire_reader *in)
{
    struct asked *a = mem_must(1, sizeof *a);
    a->group = group;
    a->job = job;
    a->ask = wire_get_u64(in);
    a->offset = wire_get_u64(in);
    wire_get_text(in, a->key, sizeof a->key);
    wire_get_text(in, a->id, sizeof a->id);
    pthread_mutex_lock(&g->lock);
    *g->asked_last = a;
    g->asked_last = &a->next;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void on_metrics(struct groups *g, struct wire_reader *in)
{
    char text[4][64];
    const char *label[4] = { text[0], text[1], text[2], text[3] };
    while (!in->bad && in->at < in->n) {
        const uint32_t which = wire_get_u32(in), n = wire_get_u32(in);
        if (n > 4) return;
        for (uint32_t i = 0; i < n; i++) wire_get_text(in, text[i], sizeof text[i]);
        const double v = wire_get_f64(in);
        if (!in->bad && g->o.metric) g->o.metric(g->o.metric_self, which, label, n, v);
    }
}

/* A leader whose device has failed is of no more use than a dead one. */
static void on_group(struct groups *g, uint32_t group, uint32_t what, struct wire_reader *in)
{
    struct group *x = &g->group[group];
    size_t n;
    bool failed = false;
    pthread_mutex_lock(&g->lock);
    if (what == REMOTE_GAUGES) {
        const uint8_t *bytes = wire_get_blob(in, &n);
        if (n == sizeof x->v.gauges) memcpy(&x->v.gauges, bytes, n);
        failed = x->v.gauges.device_failed;
    } else if (what == REMOTE_READY && x->v.state == GROUPS_LOADING) {
        x->v.state = GROUPS_READY;
        pthread_cond_broadcast(&g->changed);
    } else if (what == REMOTE_FAILED && x->failed.code == OK) {
        wire_get_err(in, &x->failed);
        pthread_cond_broadcast(&g->changed);
    }
    pthread_mutex_unlock(&g->lock);
    if (!failed) return;
    struct err why;
    err_set(&why, E_DEVICE, "its device has failed");
    groups_lost(g, group, &why);
}

static void take_message(struct groups *g, uint32_t from, const uint8_t *bytes, size_t n)
{
    struct wire_reader in = { .bytes = bytes, .n = n };
    const uint32_t what = wire_get_u32(&in);
    const uint64_t id = wire_get_u64(&in);
    if (from == 0 || from >= g->n) return;
    if (what == REMOTE_ASK) {
        on_ask(g, from, id, &in);
    } else if (what == REMOTE_METRIC) {
        on_metrics(g, &in);
    } else if (id == 0) {
        on_group(g, from, what, &in);
    } else {
        struct gjob *j = job_of(g, id, from);
        if (j == NULL) return;
        if (what == REMOTE_CHUNK) on_chunk(g, j, &in, n);
        else if (what == REMOTE_ADMITTED) on_admitted(g, j);
        else if (what == REMOTE_PROGRESS) on_progress(g, j, &in);
        else if (what == REMOTE_DONE) on_done(g, j, &in);
    }
}

/* A job whose group is gone, or any job where all ends; NULL: there is none. */
static struct gjob *orphan(struct groups *g, struct err *e)
{
    struct gjob *found = NULL;
    pthread_mutex_lock(&g->lock);
    for (struct gjob *j = g->jobs; j && !found; j = j->next) {
        const struct group *x = &g->group[j->group];
        if (x->v.state != GROUPS_GONE && !g->closing) continue;
        found = j;
        if (x->v.state == GROUPS_GONE) lost_error(j->group, &x->lost, e);
        else err_set(e, E_CANCELLED, "the server ends");
    }
    pthread_mutex_unlock(&g->lock);
    return found;
}

static void *reader_main(void *arg)
{
    struct groups *g = arg;
    for (;;) {
        struct err e;
        uint32_t from;
        uint8_t *bytes;
        size_t n;
        bool got = false;
        for (struct gjob *j; (j = orphan(g, &e)) != NULL;) end_job(g, j, &e, NULL, NULL);
        pthread_mutex_lock(&g->lock);
        const bool end = g->closing;
        pthread_mutex_unlock(&g->lock);
        if (end) return NULL;
        if (g->o.link->take(g->o.link->self, TAKE_S, &from, &bytes, &n, &got, &e) != OK) {
            const struct timespec t = { 0, 20000000 };     /* who is gone is told by groups_lost */
            nanosleep(&t, NULL);
        } else if (got) {
            take_message(g, from, bytes, n);
            free(bytes);
        }
    }
}

/* ---- files that leaders ask for (filer thread) ---------------------------------------------------------------------- */

/* The file of an ask, opened or the job's own. */
static status open_asked(struct groups *g, const struct asked *a, struct media_source *s, bool *borrowed, struct err *e)
{
    *borrowed = a->id[0] == 0;
    if (!*borrowed && g->o.files) return g->o.files(g->o.files_self, a->key, a->id, "the file", s, e);
    if (*borrowed) {
        pthread_mutex_lock(&g->lock);
        struct gjob *j = g->jobs;
        while (j && j->id != a->job) j = j->next;
        if (j) *s = j->source;
        g->reading = j && s->fd >= 0;
        pthread_mutex_unlock(&g->lock);
        if (g->reading) return OK;
    }
    err_set(e, E_ARG, "there is no such file");
    return err_tag(e, "not_found", NULL);
}

static status read_piece(const struct media_source *s, uint64_t offset, uint8_t *to, size_t *n, struct err *e)
{
    const uint64_t left = offset < s->bytes ? s->bytes - offset : 0;
    const size_t want_n = left < REMOTE_PIECE ? (size_t)left : REMOTE_PIECE;
    for (*n = 0; *n < want_n;) {
        const ssize_t got = pread(s->fd, to + *n, want_n - *n, (off_t)(offset + *n));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return err_set(e, E_IO, "a file of the server cannot be read: %s", strerror(errno));
        if (got == 0) break;
        *n += (size_t)got;
    }
    return OK;
}

static void answer(struct groups *g, const struct asked *a, uint8_t *buffer)
{
    struct media_source s = { .fd = -1 };
    struct err e = { 0 };
    struct wire w;
    bool borrowed;
    size_t n = 0;
    status st = open_asked(g, a, &s, &borrowed, &e);
    if (st == OK) st = read_piece(&s, a->offset, buffer, &n, &e);
    if (st == OK) e.code = OK;
    remote_begin(&w, REMOTE_PIECE_MESSAGE, a->job);
    wire_u64(&w, a->ask);
    wire_err(&w, &e);
    wire_u64(&w, s.bytes);
    wire_text(&w, s.digest);
    wire_blob(&w, buffer, n);
    outbox_put(g->group[a->group].out, &w);
    if (!borrowed) media_source_close(&s);
    pthread_mutex_lock(&g->lock);
    g->reading = 0;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void *filer_main(void *arg)
{
    struct groups *g = arg;
    uint8_t *buffer = mem_must(REMOTE_PIECE, 1);
    pthread_mutex_lock(&g->lock);
    for (;;) {
        struct asked *a = g->asked;
        if (a == NULL && g->closing) break;
        if (a == NULL) {
            pthread_cond_wait(&g->changed, &g->lock);
            continue;
        }
        g->asked = a->next;
        if (g->asked == NULL) g->asked_last = &g->asked;
        pthread_mutex_unlock(&g->lock);
        answer(g, a, buffer);
        free(a);
        pthread_mutex_lock(&g->lock);
    }
    pthread_mutex_unlock(&g->lock);
    free(buffer);
    return NULL;
}

/* ---- life --------------------------------------------------------------------------------------------------------- */

status groups_create(const struct groups_options *o, struct groups **out, struct err *e)
{
    struct groups *g = mem_must(1, sizeof *g);
    g->o = *o;
    g->n = o->link->size;
    g->group = mem_must(g->n, sizeof *g->group);
    g->asked_last = &g->asked;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    status st = OK;
    for (uint32_t i = 0; i < g->n; i++) {
        struct groups_view *v = &g->group[i].v;
        v->group = i;
        v->n_ranks = o->link->n_ranks ? o->link->n_ranks : 1;
        v->first_rank = i * v->n_ranks;
        if (o->link->hosts) o->link->hosts(o->link->self, i, v->hosts, sizeof v->hosts);
        if (i > 0 && st == OK) st = outbox_open(o->link, i, &g->group[i].out, e);
    }
    if (st == OK) {
        g->has_reader = pthread_create(&g->reader, NULL, reader_main, g) == 0;
        g->has_filer = pthread_create(&g->filer, NULL, filer_main, g) == 0;
        if (!g->has_reader || !g->has_filer) st = err_set(e, E_NOMEM, "no thread can be started");
    }
    if (st != OK) groups_destroy(&g);
    *out = g;
    return st;
}

void groups_files(struct groups *g, status (*files)(void *, const char *, const char *, const char *, struct media_source *,
                                                    struct err *), void *files_self)
{
    pthread_mutex_lock(&g->lock);
    g->o.files = files;
    g->o.files_self = files_self;
    pthread_mutex_unlock(&g->lock);
}

void groups_destroy(struct groups **pg)
{
    struct groups *g = *pg;
    if (g == NULL) return;
    pthread_mutex_lock(&g->lock);
    g->closing = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    if (g->has_filer) pthread_join(g->filer, NULL);
    if (g->has_reader) pthread_join(g->reader, NULL);
    for (uint32_t i = 1; i < g->n; i++) outbox_close(&g->group[i].out);
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->changed);
    free(g->group);
    free(g);
    *pg = NULL;
}

static status ready_locked(const struct groups *g, bool *ready, struct err *e)
{
    *ready = true;
    for (uint32_t i = 1; i < g->n; i++) {
        const struct group *x = &g->group[i];
        if (x->failed.code != OK && x->v.state == GROUPS_LOADING) {
            *e = x->failed;
            return err_prefix(e, "group %u", i);
        }
        if (x->v.state == GROUPS_LOADING) *ready = false;
    }
    return OK;
}

status groups_wait(struct groups *g, const atomic_bool *stop, struct err *e)
{
    status st = OK;
    bool ready = false;
    pthread_mutex_lock(&g->lock);
    while ((st = ready_locked(g, &ready, e)) == OK && !ready) {
        struct timespec t;
        if (stop && atomic_load(stop)) {
            st = err_set(e, E_CANCELLED, "stopped while groups were loading");
            break;
        }
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 100000000;
        if (t.tv_nsec >= 1000000000) {
            t.tv_sec++;
            t.tv_nsec -= 1000000000;
        }
        pthread_cond_timedwait(&g->changed, &g->lock, &t);
    }
    pthread_mutex_unlock(&g->lock);
    return st;
}

void groups_local(struct groups *g, struct api *api)
{
    pthread_mutex_lock(&g->lock);
    g->local = api;
    if (g->group[0].v.state == GROUPS_LOADING) g->group[0].v.state = GROUPS_READY;
    pthread_mutex_unlock(&g->lock);
}

void groups_lost(struct groups *g, uint32_t group, const struct err *why)
{
    char line[1400];
    pthread_mutex_lock(&g->lock);
    struct group *x = &g->group[group];
    const bool first = x->v.state != GROUPS_GONE && !g->stopping;
    uint32_t left = 0;
    if (first) {
        x->v.state = GROUPS_GONE;
        x->lost = *why;
        snprintf(x->v.why, sizeof x->v.why, "%.255s", why->text);
        for (uint32_t i = 0; i < g->n; i++) left += g->group[i].v.state != GROUPS_GONE;
        snprintf(line, sizeof line, "group %u is gone, with %u requests: %s; %u of %u groups go on", group, x->v.n_jobs,
                 why->text, left, g->n);
        if (x->out) outbox_drop(x->out);
        pthread_cond_broadcast(&g->changed);
    }
    pthread_mutex_unlock(&g->lock);
    if (first) say(g, line);
}

static void tell_all(struct groups *g, enum remote_message what)
{
    for (uint32_t i = 1; i < g->n; i++) {
        struct wire w;
        remote_begin(&w, what, 0);
        outbox_put(g->group[i].out, &w);
    }
}

void groups_drain(struct groups *g) { tell_all(g, REMOTE_DRAIN); }

void groups_stop(struct groups *g)
{
    pthread_mutex_lock(&g->lock);
    g->stopping = true;
    pthread_mutex_unlock(&g->lock);
    tell_all(g, REMOTE_STOP);
}

uint32_t groups_count(const struct groups *g) { return g->n; }

uint32_t groups_ready(struct groups *g)
{
    uint32_t n = 0;
    pthread_mutex_lock(&g->lock);
    for (uint32_t i = 0; i < g->n; i++) n += takes_jobs(&g->group[i]);
    pthread_mutex_unlock(&g->lock);
    return n ? n : 1;
}

uint32_t groups_list(struct groups *g, struct groups_view *out, uint32_t cap)
{
    pthread_mutex_lock(&g->lock);
    read_local(g);
    const uint32_t n = g->n < cap ? g->n : cap;
    for (uint32_t i = 0; i < n; i++) out[i] = g->group[i].v;
    pthread_mutex_unlock(&g->lock);
    return n;
}
