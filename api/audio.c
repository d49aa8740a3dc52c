/* api/audio.c - see audio.h. A job is one transcription: parsed by its caller, run by one of the threads.
 *
 *   waiting (list, in order) -> running (list) -> done told, freed
 *
 * One lock guards both lists; it is not held while a job runs or a sink is called. */
#include "api/audio.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "api/audio_inside.h"
#include "api/fields.h"
#include "api/groups.h"
#include "base/clock.h"
#include "base/mem.h"
#include "engine/version.h"
#include "media/sound_stream.h"

#define MAX_DURATION_S (24 * 3600.0)
#define CACHE_TTL_S 1800.0
#define SWEEP_S 60.0
#define SEGMENT_CHARS 84

struct api_audio {
    struct api_audio_options o;
    struct service_loader loader;
    char *cache_dir;
    pthread_t *thread;
    uint32_t n_started;
    pthread_mutex_t lock;
    pthread_cond_t work;
    bool closing;
    struct api_audio_job *waiting, **waiting_tail, *running;
    uint32_t n_waiting, n_running;
    uint64_t last_id, n_replayed;
    double swept_s;
};

struct api *api_audio_api(const struct api_audio *a) { return a->o.api; }

/* ---- the window cache --------------------------------------------------------------------------------------- */

/* Removes what nobody came back for. Several may sweep at once: what is gone is gone. */
static void sweep(struct api_audio *a)
{
    const double now = clock_s();
    pthread_mutex_lock(&a->lock);
    const bool due = a->cache_dir && (a->swept_s == 0 || now - a->swept_s > SWEEP_S);
    if (due) a->swept_s = now;
    pthread_mutex_unlock(&a->lock);
    DIR *d = due ? opendir(a->cache_dir) : NULL;
    const time_t oldest = time(NULL) - (time_t)a->o.cache_ttl_s;
    for (struct dirent *f; d && (f = readdir(d)) != NULL;) {
        const size_t n = strlen(f->d_name);
        struct stat s;
        if (n <= 4 || strcmp(f->d_name + n - 4, ".odj") != 0) continue;
        if (fstatat(dirfd(d), f->d_name, &s, AT_SYMLINK_NOFOLLOW) == 0 && s.st_mtime < oldest)
            unlinkat(dirfd(d), f->d_name, 0);
    }
    if (d) closedir(d);
}

/* What the text of a window depends on, and whose it is. */
static status cache_key(const struct api_audio_job *j, char key[MEDIA_DIGEST_TEXT], struct err *e)
{
    const struct transcribe_options *o = &j->o;
    struct media_digest *d;
    json_t *languages = json_array();
    for (size_t i = 0; i < o->n_languages; i++) json_array_append_new(languages, json_string(o->languages[i]));
    json_t *v = json_pack("{s:s,s:s,s:s,s:s,s:s,s:f,s:f,s:f,s:f,s:b,s:s,s:o,s:s,s:s,s:b,s:f,s:f,s:I,s:s,s:o}", "owner",
                          j->owner.key, "sound", j->source.digest, "model", api_fingerprint(j->audio->o.api), "engine",
                          OMNIDROP_VERSION, "plan", TRANSCRIBE_VERSION, "start", j->p.start_s, "end", j->p.end_s, "window",
                          o->windows.window_s, "overlap", o->windows.overlap_s, "translate", o->translate, "language",
                          o->language ? o->language : "", "languages", languages, "instruction",
                          o->instruction ? o->instruction : "", "context", o->context ? o->context : "", "previous",
                          o->condition_on_previous, "temperature", o->temperature, "top_p", (double)o->top_p, "seed",
                          (json_int_t)o->seed, "policy", prune_params_name(o->policy), "params",
                          prune_params_to_json(o->policy));
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    json_decref(v);
    if (text == NULL) return err_set(e, E_NOMEM, "out of memory");
    const status st = media_digest_begin(&d, e);
    if (st == OK) {
        media_digest_add(d, text, strlen(text));
        media_digest_end(&d, key);
    }
    free(text);
    return st;
}

/* The journal of this very job, or NULL: there is none to be had (another run of the same holds it, say). */
static struct journal *cache_open(const struct api_audio_job *j)
{
    const struct api_audio *a = j->audio;
    char key[MEDIA_DIGEST_TEXT], path[4096];
    struct journal *journal = NULL;
    struct err e;
    if (a->cache_dir == NULL || j->p.logprobs) return NULL;    /* journals hold no log probabilities */
    if (cache_key(j, key, &e) != OK) return NULL;
    snprintf(path, sizeof path, "%s/%s.odj", a->cache_dir, key);
    return journal_open(path, key, true, &journal, &e) == OK ? journal : NULL;
}

/* ---- one job ------------------------------------------------------------------------------------------------ */

/* The sound of strangers, confined: the one place that knows how. */
static status open_sound(const struct api_audio_job *j, struct sound_stream **out, struct err *e)
{
    struct extract_limits limits = j->audio->o.limits;
    limits.stop = j->cancel;
    return sound_stream_open(&j->source, j->p.start_s, j->p.end_s, true, &limits, out, e);
}

static status read_sound(void *self, float *buf, size_t cap, size_t *n, struct err *e)
{
    return sound_stream_read(self, buf, cap, n, e);
}

static status resolve(struct api_audio_job *j, struct err *e)
{
    const struct service_loader *l = &j->audio->loader;
    if (j->source.fd >= 0) return OK;
    if (j->fetch) return j->fetch(j->fetch_self, j->cancel, &j->source, e);
    struct chat_part part = { .kind = PART_AUDIO, .url = j->p.url };
    snprintf(part.path, sizeof part.path, "%s", strncmp(j->p.url, "file-id:", 8) == 0 ? "file_id" : "file_url");
    if (l->resolve == NULL) {
        err_set(e, E_ARG, "%s: this server takes files in a form only", part.path);
        return err_tag(e, "unsupported_parameter", part.path);
    }
    const status st = l->resolve(l->self, &j->owner, &part, -1, j->cancel, &j->source, e);
    return st == OK ? OK : err_tag(e, NULL, part.path);
}

static bool on_segments(void *self, const struct subtitles *list, size_t from)
{
    struct api_audio_job *j = self;
    (void)list;
    if (j->p.stream) audio_send_segments(j, j->t, from);
    return true;
}

static void on_progress(void *self, double done_s, uint32_t n_failed)
{
    struct api_audio_job *j = self;
    (void)n_failed;
    if (j->sink.progress == NULL || j->length_s <= 0) return;
    j->sink.progress(j->sink.self, "transcribe", fmin(done_s / j->length_s, 1));
}

static status transcribe(struct api_audio_job *j, struct sound_stream *sound, struct transcript *t, struct err *e)
{
    const struct media_info *info = sound_stream_info(sound);
    const double all = info->audio.duration_s > 0 ? info->audio.duration_s : info->duration_s;
    const double end = j->p.end_s > 0 && (all <= 0 || j->p.end_s < all) ? j->p.end_s : all;
    struct api_audio *a = j->audio;
    j->length_s = end - j->p.start_s;
    j->o.journal = cache_open(j);
    j->o.cancel = j->cancel;
    j->o.on_segments = on_segments;
    j->o.on_progress = on_progress;
    j->o.self = j;
    j->t = t;
    const status st = transcribe_run(api_service(a->o.api), read_sound, sound, &j->o, t, e);
    journal_close(&j->o.journal, j->o.journal && journal_count(j->o.journal) == 0);
    pthread_mutex_lock(&a->lock);
    a->n_replayed += t->n_replayed;
    pthread_mutex_unlock(&a->lock);
    return st;
}

static void observe(const struct api_audio_job *j, const struct transcript *t, double took_s)
{
    const struct api_audio_options *o = &j->audio->o;
    struct api_audio_outcome x = { .n_failed = t->n_failed, .n_cached = t->n_replayed, .took_s = took_s,
                                   .sound_s = t->complete ? t->duration_s : 0, .policy = prune_params_name(j->o.policy) };
    for (size_t i = 0; i < t->n_windows; i++) {
        const struct transcribe_window *w = &t->window[i];
        if (w->status != WINDOW_OK || w->replayed || w->attempts == 0) continue;   /* 0: it was not over */
        if (w->attempts > 1) x.n_retried++;
        else x.n_ok++;
    }
    if (o->observe) o->observe(o->observe_self, &x);
}

/* All of it, on this thread; tells the sink. */
static void run(struct api_audio_job *j)
{
    struct transcript t = { 0 };
    struct sound_stream *sound = NULL;
    struct api_audio_reply reply = { 0 };
    struct err e = { 0 };
    const double from = clock_s();
    status st = atomic_load(j->cancel) ? err_set(&e, E_CANCELLED, "cancelled") : OK;
    sweep(j->audio);
    if (st == OK) st = resolve(j, &e);
    if (st == OK) st = open_sound(j, &sound, &e);
    if (st == OK) st = transcribe(j, sound, &t, &e);
    sound_stream_close(&sound);
    if (st == OK && j->p.stream) audio_send_done(j, &t);
    else if (st == OK) st = audio_reply(j, &t, &reply, &e);
    observe(j, &t, clock_s() - from);
    transcript_free(&t);
    j->sink.done(j->sink.self, st == OK && !j->p.stream ? &reply : NULL, st == OK ? NULL : &e);
}

/* ---- threads ------------------------------------------------------------------------------------------------ */

static void leave(struct api_audio *a, struct api_audio_job *j)
{
    pthread_mutex_lock(&a->lock);
    for (struct api_audio_job **p = &a->running; *p; p = &(*p)->next)
        if (*p == j) {
            *p = j->next;
            a->n_running--;
            break;
        }
    pthread_mutex_unlock(&a->lock);
}

static void *thread_main(void *arg)
{
    struct api_audio *a = arg;
    pthread_mutex_lock(&a->lock);
    for (;;) {
        struct api_audio_job *j = a->waiting;
        if (j == NULL && a->closing) break;
        if (j == NULL) {
            pthread_cond_wait(&a->work, &a->lock);
            continue;
        }
        a->waiting = j->next;
        if (a->waiting == NULL) a->waiting_tail = &a->waiting;
        a->n_waiting--;
        j->next = a->running;
        a->running = j;
        a->n_running++;
        pthread_mutex_unlock(&a->lock);
        run(j);
        leave(a, j);
        api_audio_job_free(&j);
        pthread_mutex_lock(&a->lock);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

/* A waiting job that is cancelled is over as soon as a thread has looked at it; where all are busy, a canceller would wait
 * for them: so it is told here. With the lock held; the jobs come out as a list. */
static struct api_audio_job *cancel_locked(struct api_audio *a, uint64_t id)
{
    struct api_audio_job *out = NULL;
    for (struct api_audio_job *j = a->running; j; j = j->next)
        if (id == 0 || j->id == id) atomic_store(&j->stop, true);
    for (struct api_audio_job **p = &a->waiting; *p;) {
        struct api_audio_job *j = *p;
        if (id != 0 && j->id != id) {
            p = &j->next;
            continue;
        }
        *p = j->next;
        j->next = out;
        out = j;
        a->n_waiting--;
    }
    a->waiting_tail = &a->waiting;
    while (*a->waiting_tail) a->waiting_tail = &(*a->waiting_tail)->next;
    return out;
}

static void cancel(struct api_audio *a, uint64_t id)
{
    pthread_mutex_lock(&a->lock);
    struct api_audio_job *j = cancel_locked(a, id);
    pthread_mutex_unlock(&a->lock);
    while (j) {
        struct api_audio_job *next = j->next;
        struct err e;
        err_set(&e, E_CANCELLED, "cancelled");
        j->sink.done(j->sink.self, NULL, &e);
        api_audio_job_free(&j);
        j = next;
    }
}

void api_audio_cancel(struct api_audio *a, uint64_t id)
{
    if (id & GROUPS_REMOTE) groups_cancel(api_groups(a->o.api), id);
    else if (id != 0) cancel(a, id);
}

void api_audio_cancel_all(struct api_audio *a)
{
    if (api_groups(a->o.api)) groups_cancel_audio(api_groups(a->o.api));
    cancel(a, 0);
}

/* ---- life --------------------------------------------------------------------------------------------------- */

static status make_cache_dir(struct api_audio *a, struct err *e)
{
    if (a->o.cache_dir == NULL) return OK;
    if (mkdir(a->o.cache_dir, 0700) != 0 && errno != EEXIST)
        return err_set(e, E_IO, "the folder %s of the window cache cannot be made: %s", a->o.cache_dir, strerror(errno));
    struct stat s;                 /* texts of clients lie there: nobody else's folder, none that others may read */
    if (lstat(a->o.cache_dir, &s) != 0 || !S_ISDIR(s.st_mode) || s.st_uid != geteuid() || (s.st_mode & 077) != 0)
        return err_set(e, E_IO, "%s, for the window cache, must be a folder of this user alone (mode 0700)", a->o.cache_dir);
    if (access(a->o.cache_dir, W_OK | X_OK) != 0)
        return err_set(e, E_IO, "the folder %s of the window cache cannot be written: %s", a->o.cache_dir, strerror(errno));
    a->cache_dir = mem_must_strdup(a->o.cache_dir);
    return OK;
}

static status start_threads(struct api_audio *a, struct err *e)
{
    TRY(mem_alloc(&a->thread, a->o.n_threads, sizeof *a->thread, e));
    for (; a->n_started < a->o.n_threads; a->n_started++)
        if (pthread_create(&a->thread[a->n_started], NULL, thread_main, a) != 0)
            return err_set(e, E_NOMEM, "a thread for transcriptions cannot be started: %s", strerror(errno));
    return OK;
}

status api_audio_create(const struct api_audio_options *o, struct api_audio **out, struct err *e)
{
    struct api_audio *a = mem_must(1, sizeof *a);
    a->o = *o;
    if (o->loader) a->loader = *o->loader;
    if (a->o.n_threads == 0) a->o.n_threads = 8;
    if (a->o.max_waiting == 0) a->o.max_waiting = 64;
    if (a->o.windows_at_once == 0) a->o.windows_at_once = 4;
    if (!(a->o.cache_ttl_s > 0)) a->o.cache_ttl_s = CACHE_TTL_S;
    if (!(a->o.limits.max_duration_s > 0)) a->o.limits.max_duration_s = MAX_DURATION_S;
    a->waiting_tail = &a->waiting;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->work, NULL);
    status st = make_cache_dir(a, e);
    if (st == OK) st = start_threads(a, e);
    if (st == OK) *out = a;
    else api_audio_destroy(&a);
    return st;
}

void api_audio_destroy(struct api_audio **pa)
{
    struct api_audio *a = *pa;
    if (a == NULL) return;
    cancel(a, 0);
    pthread_mutex_lock(&a->lock);
    a->closing = true;
    pthread_cond_broadcast(&a->work);
    pthread_mutex_unlock(&a->lock);
    for (uint32_t i = 0; i < a->n_started; i++) pthread_join(a->thread[i], NULL);
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->work);
    free(a->thread);
    free(a->cache_dir);
    free(a);
    *pa = NULL;
}

void api_audio_read(struct api_audio *a, struct api_audio_counts *out)
{
    pthread_mutex_lock(&a->lock);
    *out = (struct api_audio_counts){ a->n_waiting, a->n_running, a->n_replayed };
    pthread_mutex_unlock(&a->lock);
}

/* ---- parsing ------------------------------------------------------------------------------------------------ */

/* Who asks, and how the model wants to be asked: docs/http-api.md 5. */
static status settle(struct api_audio_job *j, struct err *e)
{
    const struct model_defaults *defaults = j->audio->o.api->defaults;
    const struct transcribe_defaults *own = &defaults->transcribe;
    const struct audio_params *p = &j->p;
    struct transcribe_options *o = &j->o;
    struct windows_options windows = { 0 };
    model_defaults_windows(defaults, p->window_s, p->overlap_s, &windows);
    if (windows.overlap_s > windows.window_s / 2) {
        err_set(e, E_ARG, "omnidrop.overlap_s: %g s are more than half a window of %g s", p->overlap_s, windows.window_s);
        return err_tag(e, "invalid_value", "omnidrop.overlap_s");
    }
    *o = (struct transcribe_options){
        .start_s = p->start_s, .windows = windows,
        .jobs = j->audio->o.windows_at_once, .translate = p->translate, .language = p->language, .languages = p->languages,
        .n_languages = p->n_languages, .context = p->context, .condition_on_previous = p->condition_on_previous,
        .temperature = p->temperature, .top_p = (float)p->top_p, .seed = (uint64_t)p->seed, .policy = &p->omnidrop.policy,
        .limits = { .max_segment_s = p->max_segment_s, .max_chars = SEGMENT_CHARS }, .priority = j->batch ? INT32_MAX : 0,
        .keep_tokens = p->logprobs, .fail_on_gap = !p->mark, .journal_may_fail = true };
    memcpy(o->salt, j->owner.key, sizeof o->salt);
    if (own->instruction[0]) {
        /* Its own language into English is what it writes anyway. */
        if (p->translate && strcmp(own->language, "english") != 0) {
            err_set(e, E_ARG, "the model %s cannot translate", api_model_name(j->audio->o.api));
            return err_tag(e, "unsupported_parameter", "model");
        }
        o->instruction = own->instruction;
    }
    if (own->language[0] && o->language == NULL) o->language = own->language;
    return OK;
}

static struct api_audio_job *job_new(struct api_audio *a, const struct api_caller *c)
{
    struct api_audio_job *j = mem_must(1, sizeof *j);
    j->audio = a;
    j->source.fd = -1;
    j->batch = c->batch;
    j->cancel = &j->stop;
    snprintf(j->owner.key, sizeof j->owner.key, "%s", c->key ? c->key : "");
    snprintf(j->request_id, sizeof j->request_id, "%.64s", c->request_id ? c->request_id : "");
    return j;
}

/* The fields of `root`, beside the file that is there already or not. */
static status read_job(struct api_audio_job *j, const struct doc_at *root, bool translate, struct err *e)
{
    if (api_groups(j->audio->o.api) && (j->fields = json_dumps(root->v, JSON_COMPACT | JSON_REAL_PRECISION(17))) == NULL)
        return err_set(e, E_NOMEM, "out of memory");
    TRY(audio_fields_read(j->audio->o.api, root, translate, j->batch, &j->p, e));
    const bool file = j->source.fd >= 0 || j->fetch;
    if (file && j->p.url) {
        err_set(e, E_ARG, "file: was sent, and file_id or file_url as well: give one of them");
        return err_tag(e, "invalid_value", "file");
    }
    if (!file && j->p.url == NULL) {
        err_set(e, E_ARG, "file: is missing: send a sound or a film as a part of the form, or file_id or file_url");
        return err_tag(e, "missing_required_parameter", "file");
    }
    return settle(j, e);
}

status api_audio_parse_form(struct api_audio *a, bool translate, const struct api_audio_field *field, size_t n,
                            struct media_source *file, const struct api_caller *c, struct api_audio_job **out, struct err *e)
{
    struct api_audio_job *j = job_new(a, c);
    struct doc d = { .name = mem_must_strdup(""), .code = E_ARG };
    struct doc_at root;
    j->source = *file;
    file->fd = -1;
    status st = audio_fields_form(field, n, &d.root, e);
    if (st == OK) {
        doc_root(&d, &root);
        st = read_job(j, &root, translate, e);
    }
    doc_close(&d);
    if (st != OK) api_audio_job_free(&j);
    else *out = j;
    return st;
}

status audio_parse_moved(struct api_audio *a, bool translate, const char *fields, size_t n,
                         status (*fetch)(void *, const atomic_bool *, struct media_source *, struct err *), void *fetch_self,
                         const struct api_caller *c, struct api_audio_job **out, struct err *e)
{
    struct doc d;
    struct doc_at root;
    TRY(api_body_open(fields, n, &d, &root, e));
    struct api_audio_job *j = job_new(a, c);
    j->fetch = fetch;
    j->fetch_self = fetch_self;
    const status st = read_job(j, &root, translate, e);
    doc_close(&d);
    if (st != OK) api_audio_job_free(&j);
    else *out = j;
    return st;
}

status api_audio_parse_json(struct api_audio *a, bool translate, const char *body, size_t n, const struct api_caller *c,
                            struct api_audio_job **out, struct err *e)
{
    struct doc d;
    struct doc_at root;
    TRY(api_body_open(body, n, &d, &root, e));
    struct api_audio_job *j = job_new(a, c);
    const status st = read_job(j, &root, translate, e);
    doc_close(&d);
    if (st != OK) api_audio_job_free(&j);
    else *out = j;
    return st;
}

void api_audio_job_free(struct api_audio_job **pj)
{
    struct api_audio_job *j = *pj;
    if (j == NULL) return;
    if (j->counted) groups_left(api_groups(j->audio->o.api));
    free(j->fields);
    media_source_close(&j->source);
    audio_params_free(&j->p);
    api_text_free(&j->sent);
    json_decref(j->all_logprobs);
    free(j);
    *pj = NULL;
}

bool api_audio_job_streams(const struct api_audio_job *j) { return j->p.stream; }

/* ---- starting ----------------------------------------------------------------------------------------------- */

/* Where groups are: does another leader run it? *j is moved from then; else it counts as one of group 0's. */
static status start_elsewhere(struct api_audio_job **pj, const struct api_audio_sink *sink, uint64_t *id, bool *taken,
                              struct err *e)
{
    struct groups *g = api_groups((*pj)->audio->o.api);
    *taken = false;
    if (g == NULL) return OK;
    TRY(groups_start_audio(g, *pj, sink, taken, id, e));
    if (*taken) api_audio_job_free(pj);
    else (*pj)->counted = true;
    return OK;
}

status api_audio_start(struct api_audio_job **pj, const struct api_audio_sink *sink, uint64_t *id, struct err *e)
{
    struct api_audio_job *j = *pj;
    struct api_audio *a = j->audio;
    status st = OK;
    bool taken;
    TRY(start_elsewhere(pj, sink, id, &taken, e));
    if (taken) return OK;
    pthread_mutex_lock(&a->lock);
    if (a->n_waiting >= a->o.max_waiting) {
        err_set(e, E_BUSY, "%u transcriptions wait already, the most that may: try again later", a->n_waiting);
        st = err_tag(e, "queue_full", NULL);
    } else {
        j->sink = *sink;
        *id = j->id = ++a->last_id;
        j->next = NULL;
        *a->waiting_tail = j;
        a->waiting_tail = &j->next;
        a->n_waiting++;
        *pj = NULL;
        pthread_cond_signal(&a->work);
    }
    pthread_mutex_unlock(&a->lock);
    return st;
}

struct outcome {
    struct api_audio_reply reply;
    struct err error;
    struct api_wait wait;
};

static void on_done(void *self, struct api_audio_reply *reply, const struct err *error)
{
    struct outcome *o = self;
    if (reply) o->reply = *reply;
    if (error) o->error = *error;
    api_wait_over(&o->wait);
}

static void cancel_waited(void *self, uint64_t id) { api_audio_cancel(self, id); }

/* Here or elsewhere. */
static void run_waiting(struct api_audio_job **pj, struct outcome *o, const atomic_bool *stop)
{
    const struct api_audio_sink sink = { .self = o, .done = on_done };
    struct api_audio *a = (*pj)->audio;
    uint64_t id = 0;
    bool taken;
    if (start_elsewhere(pj, &sink, &id, &taken, &o->error) != OK) return;
    if (taken) {
        api_wait_for(&o->wait, stop, cancel_waited, a, id);
        return;
    }
    struct api_audio_job *j = *pj;
    if (stop) j->cancel = stop;
    j->sink = sink;
    run(j);
}

void api_audio_run(struct api_audio *a, const char *endpoint, const char *body, size_t n, const struct api_caller *c,
                   const atomic_bool *stop, int *status_code, json_t **reply)
{
    const bool translate = strcmp(endpoint, "/v1/audio/translations") == 0;
    struct api_audio_job *j = NULL;
    struct outcome o = { .wait = API_WAIT };
    struct api_caller who = *c;
    who.batch = true;
    if (!translate && strcmp(endpoint, "/v1/audio/transcriptions") != 0) {
        err_set(&o.error, E_ARG, "there is no endpoint %.100s for sound", endpoint);
        err_tag(&o.error, "unknown_endpoint", NULL);
    } else if (api_audio_parse_json(a, translate, body, n, &who, &j, &o.error) == OK) {
        run_waiting(&j, &o, stop);
    }
    api_audio_job_free(&j);
    api_wait_end(&o.wait);
    *status_code = o.error.code == OK ? 200 : api_error_of(&o.error).status;
    if (o.error.code != OK) *reply = api_error_json(&o.error);
    else if (o.reply.json) *reply = json_incref(o.reply.json);
    else *reply = json_stringn(o.reply.bytes, o.reply.n);
    api_audio_reply_free(&o.reply);
}
