/* api/questions.c - see questions.h. */
#include "api/questions.h"

#include <stdlib.h>
#include <string.h>

#include "api/groups.h"
#include "api/inside.h"
#include "api/wire.h"
#include "base/mem.h"

#define SAMPLES_MAX ((uint64_t)1 << 26)    /* of a question that crosses: more than an hour */

/* ---- what crosses ------------------------------------------------------------------------------------------------- */

void questions_put(struct wire *w, const struct question *q)
{
    wire_text(w, q->context);
    wire_text(w, q->previous);
    wire_text(w, q->instruction);
    wire_text(w, q->begun);
    wire_blob(w, q->bias, q->n_bias * sizeof *q->bias);
    wire_u32(w, q->max_tokens);
    wire_f64(w, q->temperature);
    wire_f64(w, (double)q->top_p);
    wire_u64(w, q->seed);
    wire_u32(w, (uint32_t)q->priority);
    wire_text(w, q->salt);
    wire_u32(w, q->keep_tokens);
    wire_text(w, q->policy ? prune_params_name(q->policy) : "");
    wire_blob(w, q->policy, q->policy ? sizeof *q->policy : 0);
    wire_blob(w, q->x, q->n * sizeof *q->x);
}

/* A question with what it points at, until it is answered. */
struct moved {
    struct question q;
    char *text[4];
    struct sample_bias *bias;
    struct policy_params policy;
    float *x;
    question_answered answered;
    void *self;
};

static void moved_free(struct moved *m)
{
    for (int i = 0; i < 4; i++) free(m->text[i]);
    free(m->bias);
    free(m->x);
    free(m);
}

static char *get_text(struct wire_reader *r, size_t *n)
{
    const uint8_t *bytes = wire_get_blob(r, n);
    char *text = mem_must(*n + 1, 1);
    if (*n) memcpy(text, bytes, *n);
    text[*n] = 0;
    return text;
}

/* n things of `size` bytes, where they are aligned; NULL: there are none. */
static void *get_array(struct wire_reader *r, size_t size, size_t *n)
{
    size_t n_bytes;
    const uint8_t *bytes = wire_get_blob(r, &n_bytes);
    *n = n_bytes / size;
    r->bad = r->bad || n_bytes % size != 0;
    if (r->bad || *n == 0) return NULL;
    void *out = mem_must(*n, size);
    memcpy(out, bytes, n_bytes);
    return out;
}

static void get_policy(struct wire_reader *r, struct moved *m)
{
    char name[64];
    size_t n;
    wire_get_text(r, name, sizeof name);
    const uint8_t *bytes = wire_get_blob(r, &n);
    if (n == 0) return;
    const struct policy *policy = prune_find(name);
    r->bad = r->bad || policy == NULL || n != sizeof m->policy;
    if (r->bad) return;
    memcpy(&m->policy, bytes, n);
    m->policy.policy = policy;     /* a pointer of the sender's */
    m->q.policy = &m->policy;
}

static void get_question(struct wire_reader *r, struct moved *m)
{
    struct question *q = &m->q;
    size_t n;
    for (int i = 0; i < 4; i++) m->text[i] = get_text(r, &n);
    q->context = m->text[0];
    q->previous = m->text[1];
    q->instruction = m->text[2];
    q->begun = m->text[3];
    q->bias = m->bias = get_array(r, sizeof *m->bias, &n);
    q->n_bias = (uint32_t)n;
    q->max_tokens = wire_get_u32(r);
    q->temperature = wire_get_f64(r);
    q->top_p = (float)wire_get_f64(r);
    q->seed = wire_get_u64(r);
    q->priority = (int)wire_get_u32(r);
    wire_get_text(r, q->salt, sizeof q->salt);
    q->keep_tokens = wire_get_u32(r) != 0;
    get_policy(r, m);
    q->x = m->x = get_array(r, sizeof *m->x, &q->n);
    r->bad = r->bad || q->n == 0 || q->n > SAMPLES_MAX || q->n_bias > SAMPLE_BIAS_MAX;
}

static void moved_answered(void *self, struct answer *a)
{
    struct moved *m = self;
    m->answered(m->self, a);
    moved_free(m);
}

status questions_ask(struct api *a, const void *bytes, size_t n, question_answered answered, void *self, uint64_t *id,
                     struct err *e)
{
    struct wire_reader r = { .bytes = bytes, .n = n };
    struct moved *m = mem_must(1, sizeof *m);
    *m = (struct moved){ .answered = answered, .self = self };
    get_question(&r, m);
    status st = r.bad ? err_set(e, E_INTERNAL, "a question came in a form that is none") : OK;
    if (st == OK) st = question_ask(a->service, a->calls->submit, &m->q, moved_answered, m, id, e);
    if (st != OK) moved_free(m);
    return st;
}

void questions_cancel(struct api *a, uint64_t id) { a->calls->cancel(a->service, id); }

void questions_put_answer(struct wire *w, const struct answer *a)
{
    wire_err(w, &a->error);
    wire_u32(w, a->finish);
    wire_blob(w, a->text, a->n_text);
    wire_blob(w, a->ids, a->n_ids * sizeof *a->ids);
    wire_f64(w, a->logprob_sum);
    wire_u32(w, a->n_prompt);
    wire_u32(w, a->n_audio);
    wire_blob(w, a->token, a->n_token * sizeof *a->token);
}

status questions_get_answer(const uint8_t *bytes, size_t n, struct answer *out, struct err *e)
{
    struct wire_reader r = { .bytes = bytes, .n = n };
    size_t n_ids;
    *out = (struct answer){ 0 };
    wire_get_err(&r, &out->error);
    out->finish = (enum eng_finish)wire_get_u32(&r);
    out->text = get_text(&r, &out->n_text);
    out->ids = get_array(&r, sizeof *out->ids, &n_ids);
    out->n_ids = (uint32_t)n_ids;
    out->logprob_sum = wire_get_f64(&r);
    out->n_prompt = wire_get_u32(&r);
    out->n_audio = wire_get_u32(&r);
    out->token = get_array(&r, sizeof *out->token, &out->n_token);
    if (!r.bad) return OK;
    answer_free(out);
    return err_set(e, E_INTERNAL, "an answer of another group came in a form that is none");
}

/* ---- places ------------------------------------------------------------------------------------------------------- */

struct questions {
    struct api *api;
    uint32_t at_once;
    pthread_mutex_t lock;          /* of what follows */
    uint32_t n_taken;
    struct questions_run *runs;
};

struct questions *questions_create(struct api *api, uint32_t at_once)
{
    struct questions *q = mem_must(1, sizeof *q);
    *q = (struct questions){ .api = api, .at_once = at_once };
    pthread_mutex_init(&q->lock, NULL);
    return q;
}

void questions_destroy(struct questions **pq)
{
    if (*pq == NULL) return;
    pthread_mutex_destroy(&(*pq)->lock);
    free(*pq);
    *pq = NULL;
}

uint32_t questions_places(struct questions *q) { return q->at_once * groups_ready(q->api->o.groups); }

void questions_join(struct questions *q, uint32_t turn, struct questions_run *r)
{
    *r = (struct questions_run){ .of = q, .turn = turn };
    pthread_mutex_lock(&q->lock);
    r->next = q->runs;
    q->runs = r;
    pthread_mutex_unlock(&q->lock);
}

void questions_part(struct questions_run *r)
{
    struct questions *q = r->of;
    pthread_mutex_lock(&q->lock);
    for (struct questions_run **p = &q->runs; *p; p = &(*p)->next)
        if (*p == r) {
            *p = r->next;
            break;
        }
    pthread_mutex_unlock(&q->lock);
}

static bool enter(void *self)
{
    struct questions_run *r = self;
    struct questions *q = r->of;
    const uint32_t places = questions_places(q);
    pthread_mutex_lock(&q->lock);
    bool mine = q->n_taken < places;
    for (const struct questions_run *x = q->runs; x; x = x->next) mine = mine && !(x->wants && x->turn < r->turn);
    r->wants = !mine;
    q->n_taken += mine;
    pthread_mutex_unlock(&q->lock);
    return mine;
}

static void leave(void *self)
{
    struct questions *q = ((struct questions_run *)self)->of;
    pthread_mutex_lock(&q->lock);
    q->n_taken--;
    pthread_mutex_unlock(&q->lock);
}

/* ---- asking ------------------------------------------------------------------------------------------------------- */

struct under_way {
    struct groups *groups;
    question_answered answered;
    void *self;
};

static void local_answered(void *self, struct answer *a)
{
    struct under_way *u = self;
    groups_left(u->groups);
    u->answered(u->self, a);
    free(u);
}

/* A leader whose engine has failed is as good as gone, and rank 0 will know within moments. */
static void remote_answered(void *self, const void *bytes, size_t n, const struct err *error)
{
    struct under_way *u = self;
    struct answer a = { 0 };
    if (error == NULL) (void)questions_get_answer(bytes, n, &a, &a.error);
    else a.error = *error;
    if (a.error.code != OK && a.error.tag && strcmp(a.error.tag, "engine_dead") == 0) a.error.tag = "group_lost";
    u->answered(u->self, &a);
    answer_free(&a);
    free(u);
}

static status ask(void *self, const struct question *question, question_answered answered, void *answered_self, uint64_t *id,
                  struct err *e)
{
    struct api *api = ((struct questions_run *)self)->of->api;
    struct under_way *u = mem_must(1, sizeof *u);
    bool taken = false;
    *u = (struct under_way){ api->o.groups, answered, answered_self };
    status st = groups_start_question(api->o.groups, question, remote_answered, u, &taken, id, e);
    if (st == OK && taken) return OK;
    if (st == OK) {
        st = question_ask(api->service, api->calls->submit, question, local_answered, u, id, e);
        if (st != OK) groups_left(api->o.groups);
    }
    if (st != OK) free(u);
    return st;
}

static void cancel(void *self, uint64_t id)
{
    struct api *api = ((struct questions_run *)self)->of->api;
    if (id & GROUPS_REMOTE) groups_cancel(api->o.groups, id);
    else questions_cancel(api, id);
}

struct questioned questions_by(struct questions_run *r)
{
    return (struct questioned){ .self = r, .ask = ask, .cancel = cancel, .enter = enter, .leave = leave };
}
