/* api/job.c - a job while it runs: events of the service to chunks, or to one reply at the end.
 *
 * A job lives until its own reference and one for each submitted group (service_request.owner) are dropped. Events of
 * one group come one at a time, those of two groups may come at once: job->lock makes the sink's calls follow one
 * another. The service is never called with that lock held. */
#include <stdlib.h>
#include <string.h>

#include "api/groups.h"
#include "api/inside.h"
#include "base/mem.h"

static void send(struct api_job *j, json_t *chunk)
{
    if (j->sink.chunk) j->sink.chunk(j->sink.self, chunk);
    else json_decref(chunk);
}

static void start_choice(struct api_job *j, uint32_t i)
{
    struct api_choice *c = &j->choice[i];
    if (c->started) return;
    c->started = true;
    const struct api_group *g = &j->group[i / j->n];
    if (j->stream && (j->is_chat || g->echo.n > 0 || j->return_token_ids)) send(j, reply_start_chunk(j, i));
}

/* ---- events ----------------------------------------------------------------------------------------------- */

static void take_counts(struct api_group *g, const struct service_summary *s)
{
    const struct api_job *j = g->job;
    if (s == NULL) return;
    g->n_prompt = s->n_prompt;
    g->n_cached = s->n_cached;
    memcpy(g->n_kind, s->n_kind, sizeof g->n_kind);
    if (!j->return_token_ids || g->prompt_ids || s->prompt == NULL) return;
    g->prompt_ids = json_array();
    for (uint32_t i = 0; i < s->prompt->n; i++) json_array_append_new(g->prompt_ids, json_integer(s->prompt->id[i]));
}

static void on_admitted(struct api_group *g, const struct service_event *ev)
{
    struct api_job *j = g->job;
    take_counts(g, ev->summary);
    if (!j->admitted && j->sink.admitted) j->sink.admitted(j->sink.self);
    j->admitted = true;
    for (uint32_t i = 0; i < j->n; i++) start_choice(j, g->index * j->n + i);
}

static void take_tokens(struct api_job *j, struct api_choice *c, const struct service_event *ev)
{
    for (uint32_t i = 0; i < ev->n_token; i++) {
        if (j->logprobs) {
            if (c->logprobs == NULL) c->logprobs = json_array();
            json_array_append_new(c->logprobs, reply_token(j, &ev->token[i], c->n_chars));
        }
        if (!j->return_token_ids) continue;
        if (c->token_ids == NULL) c->token_ids = json_array();
        json_array_append_new(c->token_ids, json_integer(ev->token[i].id));
    }
}

static void on_text(struct api_group *g, const struct service_event *ev)
{
    struct api_job *j = g->job;
    const uint32_t at = g->index * j->n + ev->choice;
    struct api_choice *c = &j->choice[at];
    struct api_text piece = { 0 };
    start_choice(j, at);
    take_tokens(j, c, ev);
    struct api_text *to = j->stream ? &piece : &c->text;
    c->n_chars += api_text_add(to, c->held, &c->n_held, ev->text, ev->n_text);
    if (j->stream && piece.n > 0) send(j, reply_text_chunk(j, at, &piece));
    api_text_free(&piece);
}

/* The last chunk of all waits for the statistics where no chunk with the usage follows. */
static void on_choice(struct api_group *g, const struct service_event *ev)
{
    struct api_job *j = g->job;
    const uint32_t at = g->index * j->n + ev->choice;
    struct api_choice *c = &j->choice[at];
    struct api_text rest = { 0 };
    start_choice(j, at);
    c->finish = ev->result->finish;
    g->n_generated += ev->result->n_ids;
    c->n_chars += api_text_end(j->stream ? &rest : &c->text, &c->n_held);
    j->n_finished++;
    if (!j->stream) return;
    if (rest.n > 0) send(j, reply_text_chunk(j, at, &rest));
    api_text_free(&rest);
    json_t *chunk = reply_finish_chunk(j, at);
    if (j->omnidrop.return_pruning && !j->include_usage && j->n_finished == j->n_groups * j->n) j->held_finish = chunk;
    else send(j, chunk);
}

/* The first failure is the job's; what the others then say of their cancelling is not. */
static bool on_done(struct api_group *g, const struct service_event *ev)
{
    struct api_job *j = g->job;
    take_counts(g, ev->summary);
    if (ev->error != NULL && j->error.code == OK) {
        j->error = *ev->error;
        if (j->error.code == OK) j->error.code = E_INTERNAL;
    }
    if (ev->error == NULL && ev->summary && j->omnidrop.return_pruning && j->statistics == NULL)
        j->statistics = reply_statistics(j, ev->summary);
    return ev->error != NULL;
}

/* ---- the end ---------------------------------------------------------------------------------------------- */

static void forget(struct api_job *j)
{
    struct api *a = j->api;
    pthread_mutex_lock(&a->lock);
    for (struct api_job **p = &a->live; *p; p = &(*p)->next)
        if (*p == j) {
            *p = j->next;
            break;
        }
    pthread_mutex_unlock(&a->lock);
    if (j->counted) groups_left(a->o.groups);
}

/* All groups are over: nobody else touches the job. */
static void finish(struct api_job *j)
{
    json_t *reply = NULL;
    forget(j);
    if (j->error.code == OK && j->stream) {
        if (j->held_finish) {
            if (j->statistics) json_object_set(j->held_finish, "omnidrop", j->statistics);
            send(j, j->held_finish);
            j->held_finish = NULL;
        }
        if (j->include_usage) send(j, reply_usage_chunk(j));
    } else if (j->error.code == OK) {
        reply = reply_whole(j);
    }
    j->sink.done(j->sink.self, reply, j->error.code == OK ? NULL : &j->error);
}

/* Cancels what was submitted. Without job->lock. */
static void cancel_groups(struct api_job *j, const struct api_group *but)
{
    struct api *a = j->api;
    uint64_t id[API_PROMPTS_MAX];
    uint32_t n = 0;
    pthread_mutex_lock(&a->lock);
    for (uint32_t i = 0; i < j->n_submitted; i++)
        if (&j->group[i] != but) id[n++] = j->group[i].id;
    pthread_mutex_unlock(&a->lock);
    for (uint32_t i = 0; i < n; i++) a->calls->cancel(a->service, id[i]);
}

static void on_event(void *self, const struct service_event *ev)
{
    struct api_group *g = self;
    struct api_job *j = g->job;
    bool failed = false, over = false;
    pthread_mutex_lock(&j->lock);
    switch (ev->kind) {
    case SERVICE_ADMITTED: on_admitted(g, ev); break;
    case SERVICE_PROGRESS:
        if (j->sink.progress) j->sink.progress(j->sink.self, "prefill", ev->progress);
        break;
    case SERVICE_TEXT: on_text(g, ev); break;
    case SERVICE_CHOICE: on_choice(g, ev); break;
    case SERVICE_DONE:
        failed = on_done(g, ev);
        over = --j->n_pending == 0;
        break;
    }
    if (failed) j->cancelled = true;
    pthread_mutex_unlock(&j->lock);
    if (failed && !over) cancel_groups(j, g);
    if (over) finish(j);
}

static void drop(void *owner)
{
    struct api_job *j = owner;
    api_job_free(&j);
}

/* ---- starting --------------------------------------------------------------------------------------------- */

static status submit(struct api_job *j, struct api_group *g, struct err *e)
{
    struct api *a = j->api;
    struct service_request *rq = &g->rq;
    uint64_t id = 0;
    rq->o = j->o;
    rq->o.policy = &j->omnidrop.policy;
    rq->o.want_why = j->omnidrop.return_pruning && j->omnidrop.reasons;
    rq->n_choices = j->n;
    rq->top_logprobs = j->top_logprobs;
    rq->priority = j->priority;
    rq->queue_timeout_s = a->o.queue_timeout_s;
    rq->deadline_s = a->o.deadline_s;
    rq->arrived_s = j->arrived_s;
    memcpy(rq->salt, j->owner.key, sizeof rq->salt);
    rq->event = on_event;
    rq->self = g;
    rq->owner = j;
    rq->owner_free = drop;
    atomic_fetch_add(&j->ref, 1);
    const status st = a->calls->submit(a->service, rq, &id, e);
    if (st != OK) {
        atomic_fetch_sub(&j->ref, 1);             /* the caller holds one */
        return st;
    }
    /* What was moved is the service's. */
    rq->ids = NULL;
    rq->n_ids = 0;
    rq->chat = (struct chat){ 0 };
    pthread_mutex_lock(&a->lock);
    g->id = id;
    j->n_submitted++;
    const bool late = j->cancelled;
    pthread_mutex_unlock(&a->lock);
    if (late) a->calls->cancel(a->service, id);
    return OK;
}

/* A later group that is refused ends the job through the sink: the first ones run already. */
static void fail_rest(struct api_job *j, uint32_t n_missing, const struct err *why)
{
    pthread_mutex_lock(&j->lock);
    if (j->error.code == OK) j->error = *why;
    j->cancelled = true;
    j->n_pending -= n_missing;
    const bool over = j->n_pending == 0;
    pthread_mutex_unlock(&j->lock);
    if (over) finish(j);
    else cancel_groups(j, NULL);
}

status api_job_start(struct api_job **pj, const struct api_sink *sink, uint64_t *id, struct err *e)
{
    struct api_job *j = *pj;
    struct api *a = j->api;
    struct err why;
    if (a->o.groups) {
        bool taken;
        TRY(groups_start(a->o.groups, j, sink, &taken, id, e));
        if (taken) {
            api_job_free(pj);
            return OK;
        }
        j->counted = true;
    }
    j->sink = *sink;
    j->n_pending = j->n_groups;
    pthread_mutex_lock(&a->lock);
    j->number = ++a->last_id;
    *id = j->number;
    j->next = a->live;
    a->live = j;
    pthread_mutex_unlock(&a->lock);
    for (uint32_t i = 0; i < j->n_groups; i++) {
        if (submit(j, &j->group[i], &why) == OK) continue;
        if (i == 0) {
            forget(j);
            if (e) *e = why;
            return why.code;
        }
        fail_rest(j, j->n_groups - i, &why);
        break;
    }
    api_job_free(pj);
    return OK;
}

void api_job_cancel(struct api *a, uint64_t number)
{
    struct api_job *j;
    if (number & GROUPS_REMOTE) {
        if (a->o.groups) groups_cancel(a->o.groups, number);
        return;
    }
    pthread_mutex_lock(&a->lock);
    for (j = a->live; j && j->number != number;) j = j->next;
    if (j) {
        j->cancelled = true;
        atomic_fetch_add(&j->ref, 1);
    }
    pthread_mutex_unlock(&a->lock);
    if (j == NULL) return;
    cancel_groups(j, NULL);
    api_job_free(&j);
}

/* Its first group's: the others are behind it. */
void api_job_phase(struct api *a, uint64_t number, char out[12])
{
    if (number & GROUPS_REMOTE) {
        out[0] = 0;
        if (a->o.groups) groups_phase(a->o.groups, number, out);
        return;
    }
    struct service_view *view = mem_must(API_VIEWS, sizeof *view);
    uint64_t id = 0;
    pthread_mutex_lock(&a->lock);
    for (const struct api_job *j = a->live; j; j = j->next)
        if (j->number == number && j->n_submitted > 0) id = j->group[0].id;
    pthread_mutex_unlock(&a->lock);
    const uint32_t n = id ? service_list(a->service, view, API_VIEWS) : 0;
    out[0] = 0;
    for (uint32_t i = 0; i < n; i++)
        if (view[i].id == id) snprintf(out, 12, "%s", view[i].phase);
    free(view);
}
