/* engine/service.c - see service.h. Threads and what they own:
 *
 *   any thread        submit: a job into `jobs` and `unprepared`; cancel: a flag
 *   workers           unprepared -> request_create -> prepared      (media, prompt, plan: no device)
 *   engine thread     prepared -> loop -> ended -> DONE; the device, the pool, all caches
 *
 * One lock guards the lists and the figures that others read; it is never held while a job is worked on or an event is
 * called. A job is freed by the engine thread, after its DONE. */
#include "engine/service.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"

#define GIB ((uint64_t)1 << 30)
#define IDLE_S 0.05                /* how often deadlines are looked at while nothing runs      */
#define LOOK_S 0.02                /* how often the figures that others read are written        */
#define PROGRESS_S 0.25            /* between two PROGRESS events of a request                  */

enum phase { UNPREPARED, PREPARING, PREPARED, WAITING, RUNNING, ENDED };

struct job {
    uint64_t id;
    struct service *s;
    struct service_request rq;
    struct chat_render_options render;
    struct eng_request *r;         /* NULL before it is prepared, and where that failed */
    enum phase phase;
    atomic_bool stop;
    struct err why;                /* of the stop, or of the failure to prepare; code OK: none */
    double submitted, prepared, admitted, first_token, progress_at;
    bool media_cached;
    double media_seconds;
    const struct eng_result **result;      /* [n_choices] */
    struct service_view view;
    struct job *next;              /* in `jobs` */
    struct job *queued;            /* in `unprepared`, `prepared` or `ended` */
};

struct queue { struct job *head, **tail; uint32_t n; };

struct service {
    struct engine *en;
    struct service_options o;
    struct service_loader loader;
    struct loop *loop;
    pthread_mutex_t lock;
    pthread_cond_t work, wake;     /* for workers; for the engine thread */
    pthread_t engine_thread, *worker;
    uint32_t n_workers;
    bool has_engine_thread, closing, draining, device_failed;
    struct job *jobs;
    struct queue unprepared, prepared, ended;
    uint32_t n_jobs, n_preparing, n_not_admitted;
    uint64_t next_id;
    atomic_bool stops;             /* some job's flag is set */
    struct service_gauges gauges;
    uint64_t prompt_tokens, generated_tokens;
    double looked, beat, service_s;
};

static void push(struct queue *q, struct job *j)
{
    j->queued = NULL;
    if (q->head == NULL) q->tail = &q->head;
    *q->tail = j;
    q->tail = &j->queued;
    q->n++;
}

static struct job *pop(struct queue *q)
{
    struct job *j = q->head;
    if (j == NULL) return NULL;
    q->head = j->queued;
    if (q->head == NULL) q->tail = &q->head;
    q->n--;
    return j;
}

static bool take_out(struct queue *q, struct job *j)
{
    for (struct job **p = &q->head; *p; p = &(*p)->queued) {
        if (*p != j) continue;
        *p = j->queued;
        if (q->tail == &j->queued) q->tail = p;
        q->n--;
        return true;
    }
    return false;
}

/* ---- events: engine thread ---------------------------------------------------------------------------------- */

static void summarise(const struct job *j, struct service_summary *out)
{
    const struct eng_request *r = j->r;
    const double now = clock_s();
    *out = (struct service_summary){ .n_choices = j->rq.n_choices, .choice = j->result, .media_cached = j->media_cached,
                                     .media_seconds = j->media_seconds, .total_s = now - j->submitted };
    if (j->prepared > 0) out->prepare_s = j->prepared - j->submitted;
    if (j->admitted > 0) out->queue_s = j->admitted - j->prepared;
    if (j->first_token > 0) out->first_token_s = j->first_token - j->submitted;
    if (r == NULL) return;
    const struct engine *en = j->s->en;
    out->prompt = &r->prompt;
    out->plan = &r->plan;
    out->policy = &r->policy;
    out->n_prompt = r->prompt.n;
    for (uint32_t i = 0; i < r->prompt.n; i++) out->n_kind[r->prompt.kind[i]]++;
    out->n_cached = r->n_cached;
    out->cached_layers = r->cached_layers;
    out->n_cached_early = r->n_cached_early;
    out->n_preempted = r->sched.n_preempted;
    out->max_tokens = r->n_new_max;
    const uint64_t page = en->info.page_bytes, L = decoder_shape(en->dec)->L;
    for (uint32_t l = 0; l < L; l++) out->kv_bytes += r->pages[l] * page;
    out->kv_bytes_unpruned = L * kv_pages_of(en->pool, r->prompt.n) * page;
    out->encode_s = r->tower_s;
    out->prefill_s = r->prefill_s;
    out->decode_s = r->decode_s;
    out->warnings = r->warnings;
}

static void tell(struct job *j, struct service_event ev)
{
    ev.id = j->id;
    if (j->rq.event) j->rq.event(j->rq.self, &ev);
}

static void on_admitted(void *self)
{
    struct job *j = self;
    if (j->admitted > 0) return;           /* after a preemption */
    struct service_summary sum;
    j->admitted = clock_s();
    pthread_mutex_lock(&j->s->lock);
    j->phase = RUNNING;
    j->s->n_not_admitted--;
    pthread_mutex_unlock(&j->s->lock);
    summarise(j, &sum);
    tell(j, (struct service_event){ .kind = SERVICE_ADMITTED, .summary = &sum });
}

static void on_progress(void *self, double done)
{
    struct job *j = self;
    const double now = clock_s();
    if (now - j->progress_at < PROGRESS_S) return;
    j->progress_at = now;
    tell(j, (struct service_event){ .kind = SERVICE_PROGRESS, .progress = done });
}

static bool on_token(void *self, struct eng_choice *c, const char *text, size_t n, int32_t id, float logprob)
{
    struct job *j = self;
    struct service_token token = { .id = id, .logprob = logprob };
    sampler_top(c->sampler, &token.top, &token.n_top);
    if (j->first_token == 0) j->first_token = clock_s();
    j->s->generated_tokens++;
    tell(j, (struct service_event){ .kind = SERVICE_TEXT, .choice = c->index, .text = text, .n_text = n, .token = &token,
                                    .n_token = 1 });
    return !atomic_load(&j->stop);
}

static void on_choice(void *self, struct eng_choice *c)
{
    tell(self, (struct service_event){ .kind = SERVICE_CHOICE, .choice = c->index, .result = &c->result });
}

/* Its pages are home. What is left to do waits for the end of the step. */
static void on_ended(void *self)
{
    struct job *j = self;
    pthread_mutex_lock(&j->s->lock);
    if (j->phase != RUNNING) j->s->n_not_admitted--;
    j->phase = ENDED;
    push(&j->s->ended, j);
    pthread_mutex_unlock(&j->s->lock);
}

/* How it ended, as an error; NULL: every choice finished. */
static const struct err *end_of(struct job *j)
{
    if (j->why.code != OK) return &j->why;
    for (uint32_t i = 0; j->r && i < j->r->n_choices; i++) {
        const struct eng_result *res = &j->r->choice[i].result;
        if (res->finish == ENG_FAILED) return &res->error;
        if (res->finish == ENG_CANCELLED) {
            err_set(&j->why, E_CANCELLED, "cancelled");
            return &j->why;
        }
    }
    return NULL;
}

static void job_free(struct job *j)
{
    struct service *s = j->s;
    eng_request_destroy(s->en, &j->r);
    chat_free(&j->rq.chat);
    free(j->rq.ids);
    if (j->rq.owner_free) j->rq.owner_free(j->rq.owner);
    free(j->result);
    free(j);
}

static void finish_ended(struct service *s)
{
    for (;;) {
        pthread_mutex_lock(&s->lock);
        struct job *j = pop(&s->ended);
        for (struct job **p = &s->jobs; j && *p; p = &(*p)->next)
            if (*p == j) {
                *p = j->next;
                s->n_jobs--;
                break;
            }
        pthread_mutex_unlock(&s->lock);
        if (j == NULL) return;
        struct service_summary sum;
        summarise(j, &sum);
        const struct err *error = end_of(j);
        if (error == NULL) {
            const double took = clock_s() - j->admitted;
            s->service_s = s->service_s == 0 ? took : 0.9 * s->service_s + 0.1 * took;
        }
        if (s->o.observe) s->o.observe(s->o.observe_self, &sum, error);
        tell(j, (struct service_event){ .kind = SERVICE_DONE, .summary = &sum, .error = error });
        job_free(j);
    }
}

/* ---- preparing: workers ------------------------------------------------------------------------------------- */

static status prepare_request(struct service *s, struct job *j, struct err *e)
{
    const struct request_source source = { .loader = s->o.loader ? &s->loader : NULL, .cache = s->en->media_cache,
                                           .owner = j->rq.owner, .salt = j->rq.salt, .stop = &j->stop };
    const struct request_extra x = { .source = &source, .render = j->rq.render, .ids = j->rq.ids, .n_ids = j->rq.n_ids,
                                     .n_choices = j->rq.n_choices, .default_max_tokens = s->o.default_max_tokens };
    struct eng_request_options o = j->rq.o;
    o.sample.top_logprobs = j->rq.top_logprobs;
    o.on_text = NULL;
    return request_create(s->en, &j->rq.chat, &o, j->rq.given, &x, &j->r, e);
}

/* Clients look for this sentence where a prompt is too long. */
static void name_context(const struct service *s, struct err *e)
{
    if (e->tag == NULL || strcmp(e->tag, "context_length_exceeded") != 0) return;
    char text[sizeof e->text];
    snprintf(text, sizeof text, "This model's maximum context length is %u tokens. However, %.*s", s->en->info.max_model_len,
             (int)sizeof text - 96, e->text);
    memcpy(e->text, text, sizeof text);
}

static void prepare(struct service *s, struct job *j)
{
    struct err e = { 0 };
    status st = atomic_load(&j->stop) ? err_set(&e, E_CANCELLED, "cancelled") : prepare_request(s, j, &e);
    if (st == OK) {
        struct eng_request *r = j->r;
        r->started = j->submitted;
        r->keep_embeds = s->o.priorities || j->rq.priority > 0;
        r->sched.priority = j->rq.priority;
        r->watch = (struct eng_watch){ .self = j, .admitted = on_admitted, .progress = on_progress, .token = on_token,
                                       .choice = on_choice, .ended = on_ended };
        j->media_cached = r->n_parts > 0;
        for (uint32_t i = 0; i < r->n_parts; i++) {
            j->media_cached = j->media_cached && r->part[i].was_cached;
            j->media_seconds += r->part[i].seconds;
        }
        for (uint32_t i = 0; i < r->n_choices; i++) j->result[i] = &r->choice[i].result;
    } else {
        name_context(s, &e);
        for (uint32_t i = 0; i < j->rq.n_choices; i++) j->result[i] = NULL;
    }
    pthread_mutex_lock(&s->lock);
    if (st != OK && j->why.code == OK) j->why = e;
    j->prepared = clock_s();
    j->phase = PREPARED;
    s->n_preparing--;
    push(&s->prepared, j);
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

static void *worker_main(void *arg)
{
    struct service *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        struct job *j = pop(&s->unprepared);
        if (j == NULL) {
            if (s->closing) break;
            pthread_cond_wait(&s->work, &s->lock);
            continue;
        }
        j->phase = PREPARING;
        s->n_preparing++;
        pthread_mutex_unlock(&s->lock);
        prepare(s, j);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- the engine thread -------------------------------------------------------------------------------------- */

static void end_unstarted(struct service *s, struct job *j, const struct err *why)
{
    if (why && j->why.code == OK) j->why = *why;
    pthread_mutex_lock(&s->lock);
    j->phase = ENDED;
    s->n_not_admitted--;
    push(&s->ended, j);
    pthread_mutex_unlock(&s->lock);
}

static void take_prepared(struct service *s)
{
    for (;;) {
        pthread_mutex_lock(&s->lock);
        struct job *j = pop(&s->prepared);
        pthread_mutex_unlock(&s->lock);
        if (j == NULL) return;
        struct err e;
        if (j->why.code != OK || j->r == NULL) {
            end_unstarted(s, j, NULL);
            continue;
        }
        pthread_mutex_lock(&s->lock);
        j->phase = WAITING;
        pthread_mutex_unlock(&s->lock);
        s->prompt_tokens += j->r->prompt.n;
        if (loop_add(s->loop, j->r, &e) != OK) end_unstarted(s, j, &e);
    }
}

/* The first job in the loop that somebody wants ended, with the reason. */
static struct job *stopped_job(struct service *s)
{
    struct job *found = NULL;
    pthread_mutex_lock(&s->lock);
    for (struct job *j = s->jobs; j && found == NULL; j = j->next)
        if ((j->phase == WAITING || j->phase == RUNNING) && atomic_load(&j->stop)) found = j;
    pthread_mutex_unlock(&s->lock);
    return found;
}

static void end_stopped(struct service *s)
{
    if (!atomic_exchange(&s->stops, false)) return;
    struct job *j;
    while ((j = stopped_job(s)) != NULL) {
        const bool late = j->why.code == E_TIMEOUT;
        loop_end(s->loop, j->r, late ? ENG_FAILED : ENG_CANCELLED, &j->why);
    }
}

static void stop_job(struct service *s, struct job *j, status code, const char *tag, const char *text)
{
    if (atomic_load(&j->stop) || j->phase == ENDED) return;
    err_set(&j->why, code, "%s", text);
    err_tag(&j->why, tag, NULL);
    atomic_store(&j->stop, true);
    atomic_store(&s->stops, true);
    if (j->phase == UNPREPARED && take_out(&s->unprepared, j)) {
        j->phase = PREPARED;
        push(&s->prepared, j);
    }
    pthread_cond_signal(&s->wake);
}

/* Deadlines, and the figures for others. */
static void look(struct service *s, double now)
{
    struct sched_counts c;
    sched_read(loop_sched(s->loop), &c);
    const struct media_cache_counts m = s->en->media_cache ? media_cache_read(s->en->media_cache)
                                                           : (struct media_cache_counts){ 0 };
    const struct kv_prefix_counts p = s->en->prefixes ? kv_prefix_read(s->en->prefixes) : (struct kv_prefix_counts){ 0 };
    pthread_mutex_lock(&s->lock);
    for (struct job *j = s->jobs; j; j = j->next) {
        if (j->rq.deadline_s > 0 && now - j->submitted > j->rq.deadline_s)
            stop_job(s, j, E_TIMEOUT, "deadline_exceeded", "the request took longer than its deadline allows");
        else if (j->rq.queue_timeout_s > 0 && j->phase < RUNNING && now - j->submitted > j->rq.queue_timeout_s)
            stop_job(s, j, E_TIMEOUT, "queue_timeout", "the request waited longer than the queue's time-out: try again later");
        struct eng_request *r = j->r;
        struct service_view *v = &j->view;
        v->n_pages = 0;
        if (r == NULL || (j->phase != WAITING && j->phase != RUNNING)) continue;
        v->n_prompt = r->prompt.n;
        v->n_generated = 0;
        for (uint32_t i = 0; i < r->n_choices; i++) {
            v->n_generated += (uint32_t)r->choice[i].n_ids;
            for (uint32_t l = 0; r->choice[i].table && l < decoder_shape(s->en->dec)->L; l++)
                v->n_pages += r->choice[i].table[l].n_pages;
        }
        static const char *const name[] = { "prepare", "wait", "encode", "encode", "prefill", "decode", "decode" };
        snprintf(v->phase, sizeof v->phase, "%s", name[r->sched.state]);
        v->layer = 0;
        v->done = r->sched.state == SCHED_DECODING ? 1 : 0;
        if (r->sched.state == SCHED_PREFILLING) v->done = march_progress(s->en, r->sched.group, &v->layer);
    }
    struct service_gauges *g = &s->gauges;
    *g = (struct service_gauges){
        .n_preparing = s->unprepared.n + s->n_preparing + s->prepared.n, .n_waiting = c.n_waiting,
        .n_encoding = c.n_encoding + c.n_ready, .n_prefilling = c.n_prefilling, .n_decoding = c.n_decoding,
        .pages_total = s->en->info.n_pages, .pages_free = kv_n_free(s->en->pool),
        .pages_reserved = kv_n_reserved(s->en->pool), .pages_cached = p.n_pages, .media_cache_bytes = m.bytes,
        .hidden_cache_bytes = p.hidden_bytes, .n_admitted = c.n_admitted, .n_admitted_by_freed = c.n_admitted_by_freed,
        .n_preemptions = c.n_preempted, .n_overtakes = c.n_overtakes, .pages_freed_by_pruning = c.pages_pruned,
        .prompt_tokens = s->prompt_tokens, .generated_tokens = s->generated_tokens, .media_cache_queries = m.queries,
        .media_cache_hits = m.hits, .prefix_cache_queries = s->en->prefix_queries,
        .prefix_cache_hits = s->en->prefix_hits, .n_quanta = c.n_quanta, .n_decode_steps = c.n_decode_steps,
        .decode_step_s = c.decode_s, .quantum_s = c.quantum_s, .service_s = s->service_s };
    s->looked = s->beat = now;
    pthread_mutex_unlock(&s->lock);
}

/* Nothing runs: sleep until something comes. */
static void rest(struct service *s)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)(IDLE_S * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&s->lock);
    if (s->prepared.head == NULL && !atomic_load(&s->stops) && !s->closing)
        pthread_cond_timedwait(&s->wake, &s->lock, &until);
    pthread_mutex_unlock(&s->lock);
}

/* The device is gone: all that is in the loop fails with it, now and later. */
static void device_failed(struct service *s, const struct err *why)
{
    struct err e = *why;
    err_tag(&e, "engine_dead", NULL);
    pthread_mutex_lock(&s->lock);
    s->device_failed = true;
    for (struct job *j = s->jobs; j; j = j->next)
        if (j->phase == WAITING || j->phase == RUNNING) {
            j->why = e;
            atomic_store(&j->stop, true);
        }
    atomic_store(&s->stops, true);
    pthread_mutex_unlock(&s->lock);
    end_stopped(s);
}

static bool over(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    const bool end = s->closing && s->jobs == NULL;
    pthread_mutex_unlock(&s->lock);
    return end;
}

static void *engine_main(void *arg)
{
    struct service *s = arg;
    while (!over(s)) {
        struct err e;
        bool idle = true;
        take_prepared(s);
        end_stopped(s);
        const status st = loop_step(s->loop, &idle, &e);
        if (st == E_CANCELLED) s->en->interrupted = 0;     /* engine_interrupt is of no use here: service_cancel_all is */
        else if (st != OK) device_failed(s, &e);
        finish_ended(s);
        const double now = clock_s();
        if (idle || now - s->looked > LOOK_S) look(s, now);
        if (idle) rest(s);
    }
    return NULL;
}

/* ---- life --------------------------------------------------------------------------------------------------- */

static uint32_t or(uint32_t v, uint32_t fallback) { return v ? v : fallback; }

static void on_step(void *self, uint32_t n_rows)
{
    struct service *s = self;
    if (s->o.observe_step) s->o.observe_step(s->o.observe_self, n_rows);
}

static uint64_t at_most(uint64_t a, uint64_t b) { return a < b ? a : b; }

static status open_caches(struct service *s, struct err *e)
{
    struct engine *en = s->en;
    const uint64_t quarter = en->ops->reserve ? en->plan.work / 4 : UINT64_MAX;    /* of work memory, which requests take it from */
    const uint64_t media = s->o.no_media_cache ? 0 : at_most(s->o.media_cache_bytes ? s->o.media_cache_bytes : GIB, quarter);
    TRY(media_cache_create(en->st, decoder_shape(en->dec)->d, media, &en->media_cache, e));
    if (s->o.no_prefix_cache) return OK;
    const struct kv_prefix_options po = { .n_layers = decoder_shape(en->dec)->L,
                                          .hidden_bytes_max = at_most(s->o.hidden_cache_bytes ? s->o.hidden_cache_bytes : GIB, quarter),
                                          .free_hidden = march_free_hidden, .self = en };
    return kv_prefix_create(&po, en->pool, &en->prefixes, e);
}

static status start(struct service *s, struct err *e)
{
    const struct sched_options d = sched_defaults();
    const struct loop_options lo = { .max_running = or(s->o.max_running, d.max_running), .max_waiting = d.max_waiting,
                                     .group_rows = or(s->o.group_rows, d.group_rows),
                                     .overtake_max = or(s->o.overtake_max, d.overtake_max),
                                     .itl_target_s = s->o.itl_target_s > 0 ? s->o.itl_target_s : d.itl_target_s,
                                     .step_s = d.step_s, .quantum_rows = s->o.quantum_rows, .preempt = d.preempt,
                                     .on_step = on_step, .self = s };
    TRY(open_caches(s, e));
    TRY(loop_create(s->en, &lo, &s->loop, e));
    look(s, clock_s());
    const uint32_t n = or(s->o.n_workers, 2);
    TRY(mem_alloc(&s->worker, n, sizeof *s->worker, e));
    for (; s->n_workers < n; s->n_workers++)
        if (pthread_create(&s->worker[s->n_workers], NULL, worker_main, s) != 0)
            return err_set(e, E_NOMEM, "a thread that prepares requests cannot be started: %s", strerror(errno));
    if (pthread_create(&s->engine_thread, NULL, engine_main, s) != 0)
        return err_set(e, E_NOMEM, "the engine thread cannot be started: %s", strerror(errno));
    s->has_engine_thread = true;
    return OK;
}

status service_open(struct engine *en, const struct service_options *o, struct service **out, struct err *e)
{
    struct service *s;
    TRY(mem_alloc(&s, 1, sizeof *s, e));
    s->en = en;
    s->o = *o;
    s->next_id = 1;
    if (o->loader) s->loader = *o->loader;
    struct queue *q[] = { &s->unprepared, &s->prepared, &s->ended };
    for (size_t i = 0; i < sizeof q / sizeof *q; i++) q[i]->tail = &q[i]->head;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    pthread_cond_init(&s->wake, NULL);
    const status st = start(s, e);
    if (st != OK) service_close(&s);
    else *out = s;
    return st;
}

void service_drain(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    s->draining = true;
    pthread_mutex_unlock(&s->lock);
}

void service_close(struct service **ps)
{
    struct service *s = *ps;
    if (s == NULL) return;
    service_cancel_all(s);
    pthread_mutex_lock(&s->lock);
    s->closing = s->draining = true;
    pthread_cond_broadcast(&s->work);
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    for (uint32_t i = 0; i < s->n_workers; i++) pthread_join(s->worker[i], NULL);
    if (s->has_engine_thread) pthread_join(s->engine_thread, NULL);
    loop_destroy(s->en, &s->loop);
    kv_prefix_destroy(&s->en->prefixes);
    media_cache_destroy(&s->en->media_cache);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->wake);
    free(s->worker);
    free(s);
    *ps = NULL;
}

/* ---- requests ----------------------------------------------------------------------------------------------- */

static status may_enter(struct service *s, bool continues, struct err *e)
{
    const uint32_t most = or(s->o.max_waiting, 256);
    if (s->device_failed) {
        err_set(e, E_DEVICE, "the device has failed: the server must be started anew");
        return err_tag(e, "engine_dead", NULL);
    }
    if (s->draining && !(continues && !s->closing)) {
        err_set(e, E_BUSY, "the server is shutting down and takes no new requests");
        return err_tag(e, "draining", NULL);
    }
    if (s->n_not_admitted >= most) {
        err_set(e, E_BUSY, "%u requests wait already, the most that may: try again later", s->n_not_admitted);
        return err_tag(e, "queue_full", NULL);
    }
    return OK;
}

status service_submit(struct service *s, struct service_request *rq, uint64_t *id, struct err *e)
{
    struct job *j;
    TRY(mem_alloc(&j, 1, sizeof *j, e));
    const uint32_t n = rq->n_choices ? rq->n_choices : 1;
    status st = mem_alloc(&j->result, n, sizeof *j->result, e);
    pthread_mutex_lock(&s->lock);
    if (st == OK) st = may_enter(s, rq->continues, e);
    if (st == OK) {
        j->s = s;
        j->rq = *rq;
        j->rq.n_choices = n;
        if (rq->render) {
            j->render = *rq->render;
            j->rq.render = &j->render;
        }
        j->submitted = rq->arrived_s > 0 ? rq->arrived_s : clock_s();
        *id = j->id = s->next_id++;
        snprintf(j->view.phase, sizeof j->view.phase, "prepare");
        snprintf(j->view.policy, sizeof j->view.policy, "%s", rq->o.policy ? prune_params_name(rq->o.policy) : "none");
        j->next = s->jobs;
        s->jobs = j;
        s->n_jobs++;
        s->n_not_admitted++;
        push(&s->unprepared, j);
        pthread_cond_signal(&s->work);
    }
    pthread_mutex_unlock(&s->lock);
    if (st != OK) {
        free(j->result);
        free(j);
    }
    return st;
}

void service_cancel(struct service *s, uint64_t id)
{
    pthread_mutex_lock(&s->lock);
    for (struct job *j = s->jobs; j; j = j->next)
        if (j->id == id) stop_job(s, j, E_CANCELLED, NULL, "cancelled");
    pthread_mutex_unlock(&s->lock);
}

void service_cancel_all(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    for (struct job *j = s->jobs; j; j = j->next) stop_job(s, j, E_CANCELLED, NULL, "cancelled");
    pthread_mutex_unlock(&s->lock);
}

status service_count(struct service *s, struct service_request *rq, struct token_list *tokens, uint32_t n_kind[4],
                     struct err *e)
{
    struct eng_request *r;
    const struct request_source source = { .loader = s->o.loader ? &s->loader : NULL, .cache = s->en->media_cache,
                                           .owner = rq->owner, .salt = rq->salt };
    const struct request_extra x = { .source = &source, .render = rq->render, .ids = rq->ids, .n_ids = rq->n_ids,
                                     .count_only = true };
    const status st = request_create(s->en, &rq->chat, &rq->o, rq->given, &x, &r, e);
    if (st != OK) {
        name_context(s, e);
        return st;
    }
    for (int k = 0; k < 4; k++) n_kind[k] = 0;
    for (uint32_t i = 0; i < r->prompt.n; i++) n_kind[r->prompt.kind[i]]++;
    status made = OK;
    if (tokens) made = mem_grow(&tokens->token, &tokens->cap, r->prompt.n, sizeof *tokens->token, e);
    for (uint32_t i = 0; tokens && made == OK && i < r->prompt.n; i++)
        tokens->token[i] = (struct prompt_token){ .id = r->prompt.id[i] };
    if (tokens && made == OK) tokens->n = r->prompt.n;
    eng_request_destroy(s->en, &r);
    return made;
}

/* ---- watching ----------------------------------------------------------------------------------------------- */

void service_read(struct service *s, struct service_gauges *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->gauges;
    out->beat_s = clock_s() - s->beat;
    out->draining = s->draining;
    out->device_failed = s->device_failed;
    pthread_mutex_unlock(&s->lock);
}

const struct engine *service_engine(const struct service *s) { return s->en; }

uint32_t service_list(struct service *s, struct service_view *out, uint32_t cap)
{
    uint32_t n = 0;
    pthread_mutex_lock(&s->lock);
    for (const struct job *j = s->jobs; j && n < cap; j = j->next) {
        if (j->phase == ENDED) continue;
        out[n] = j->view;
        out[n].id = j->id;
        out[n++].age_s = clock_s() - j->submitted;
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}
