/* tests/api/fake_service.c - see fake_service.h. */
#include "tests/api/fake_service.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define N_REQUESTS 128
#define LAYERS 3

struct fake_request {
    struct service *s;
    struct service_request rq;
    uint64_t id;
    bool cancelled;
};

struct service {
    const struct engine *en;
    const struct fake_script *script;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct fake_request request[N_REQUESTS];
    uint32_t n_running;
    struct fake_seen seen;
    struct service_gauges gauges;
};

/* A film of two chunks: audio 10 11, video 12 13 | audio 14, video 15; what is alive shrinks by a token a layer. */
static uint8_t kinds[] = { 0, 0, 1, 1, 2, 2, 1, 2, 0 };
static int32_t chunks[] = { -1, -1, 0, 0, 0, 0, 1, 1, -1 };
static int32_t ids[] = { 1, 2, 3, 3, 4, 4, 3, 4, 5 };
static const struct prompt film = { .n = 9, .id = ids, .kind = kinds, .chunk = chunks, .max_chunk = 1 };
static const uint32_t alive0[] = { 2, 3, 4, 5, 6, 7 }, alive1[] = { 2, 3, 4, 6, 7 }, alive2[] = { 2, 4, 6, 7 }, alive3[] = { 2, 4, 7 };
static const uint32_t *const survivors[LAYERS + 1] = { alive0, alive1, alive2, alive3 };
/* {layer, {token, score, rank, cause}} of those that go. */
static const struct eng_why why[] = { { 0, { 5, 0.125f, 4, PRUNE_BY_SCORE } },
                                      { 1, { 3, NAN, 3, PRUNE_BY_LAYER } },
                                      { 2, { 6, 0.5f, 2, PRUNE_BY_LIKENESS } } };
static const uint32_t counts[LAYERS + 1][4] = { { 0, 3, 3, 0 }, { 0, 3, 2, 0 }, { 0, 2, 2, 0 }, { 0, 1, 2, 0 } };

static void send(struct fake_request *r, struct service_event ev)
{
    ev.id = r->id;
    r->rq.event(r->rq.self, &ev);
}

/* The log probability of id i is -i / 8; of the likeliest ones, one after the other, the same. */
static void send_text(struct fake_request *r, const struct fake_step *step)
{
    struct service_token token[4];
    struct sample_top top[20];
    struct service_event ev = { .kind = SERVICE_TEXT, .choice = step->choice, .text = step->text, .n_text = strlen(step->text),
                                .token = token };
    for (uint32_t i = 0; i < 20; i++) top[i] = (struct sample_top){ (int32_t)(40 + i), -0.125f * (float)(i + 1) };
    while (ev.n_token < 4 && step->id[ev.n_token]) {
        const int32_t id = step->id[ev.n_token];
        token[ev.n_token++] = (struct service_token){ id, -0.125f * (float)id, top, r->rq.top_logprobs };
    }
    send(r, ev);
}

static void *run(void *arg)
{
    struct fake_request *r = arg;
    struct service *s = r->s;
    const struct fake_script *c = s->script;
    struct eng_result result[16] = { 0 };
    char text[16][256] = { 0 };
    int32_t all[16][64];
    const struct eng_result *choice[16];
    const struct policy_params *policy = r->rq.o.policy;
    const uint32_t n_prompt = r->rq.n_ids ? r->rq.n_ids : c->n_prompt ? c->n_prompt : 5;
    struct prompt bare = { .n = n_prompt, .id = r->rq.ids };
    struct service_summary sum = { .n_choices = r->rq.n_choices, .choice = choice, .policy = policy, .n_prompt = n_prompt,
                                   .n_kind = { n_prompt }, .prompt = r->rq.ids ? &bare : NULL };
    if (c->pruned) {
        sum.prompt = &film;
        sum.n_prompt = 9;
        memcpy(sum.n_kind, (uint32_t[4]){ 3, 3, 3, 0 }, sizeof sum.n_kind);
        sum.n_cached = 2;
        sum.cached_layers = 1;
        sum.kv_bytes = 1000;
        sum.kv_bytes_unpruned = 2000;
        sum.encode_s = 0.5;
        sum.prefill_s = 0.25;
    }
    for (uint32_t i = 0; i < 16; i++) {
        choice[i] = &result[i];
        result[i].text = text[i];
        result[i].ids = all[i];
        if (!c->pruned) continue;
        result[i].n_layers = LAYERS;
        result[i].alive = counts;
        result[i].survivors = survivors;
        if (r->rq.o.want_why) result[i].why = why, result[i].n_why = 3;
        memcpy(result[i].n_av, counts[0], sizeof counts[0]);
        result[i].mean_retention = 0.75;
    }
    if (c->look) c->look(c->self, &r->rq);
    for (uint32_t i = 0; i < c->n_step; i++) {
        const struct fake_step *step = &c->step[i];
        if (step->choice >= r->rq.n_choices) continue;
        struct eng_result *res = &result[step->choice];
        if (step->kind == SERVICE_TEXT) {
            for (int k = 0; k < 4 && step->id[k] && res->n_ids < 64; k++) {
                all[step->choice][res->n_ids++] = step->id[k];
                res->logprob_sum += -0.125 * step->id[k];
            }
            for (const char *p = step->text; *p && res->n_text < 255; p++) text[step->choice][res->n_text++] = *p;
            send_text(r, step);
        } else {
            res->finish = step->finish;
            send(r, (struct service_event){ .kind = step->kind, .choice = step->choice, .progress = 0.5, .result = res,
                                            .summary = &sum });
        }
    }
    const bool fails = c->fail != OK && (c->fail_only == 0 || c->fail_only == r->id);
    const bool holds = c->hold && !(fails && c->fail_only);
    pthread_mutex_lock(&s->lock);
    while (holds && !r->cancelled) pthread_cond_wait(&s->changed, &s->lock);
    const bool cancelled = r->cancelled;
    pthread_mutex_unlock(&s->lock);
    struct err e = { 0 };
    if (fails || (holds && cancelled)) {
        err_set(&e, fails ? c->fail : E_CANCELLED, "the script says so");
        if (fails) err_tag(&e, c->tag, NULL);
    }
    send(r, (struct service_event){ .kind = SERVICE_DONE, .summary = &sum, .error = e.code ? &e : NULL });
    chat_free(&r->rq.chat);
    free(r->rq.ids);
    if (r->rq.owner_free) r->rq.owner_free(r->rq.owner);
    pthread_mutex_lock(&s->lock);
    s->seen.n_owners_freed++;
    s->n_running--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static status submit(struct service *s, struct service_request *rq, uint64_t *id, struct err *e)
{
    pthread_t t;
    pthread_attr_t detached;
    pthread_mutex_lock(&s->lock);
    const uint32_t n = s->seen.n_submitted;
    pthread_mutex_unlock(&s->lock);
    if (n >= N_REQUESTS || (s->script->refuse != OK && n >= s->script->refuse_from)) {
        err_set(e, s->script->refuse, "the script refuses");
        return err_tag(e, s->script->tag, NULL);
    }
    struct fake_request *r = &s->request[n];
    *r = (struct fake_request){ .s = s, .rq = *rq, .id = n + 1 };
    *id = r->id;
    pthread_mutex_lock(&s->lock);
    s->seen.n_submitted++;
    s->n_running++;
    pthread_mutex_unlock(&s->lock);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&t, &detached, run, r) != 0) abort();
    pthread_attr_destroy(&detached);
    return OK;
}

static void cancel(struct service *s, uint64_t id)
{
    pthread_mutex_lock(&s->lock);
    if (id >= 1 && id <= s->seen.n_submitted && !s->request[id - 1].cancelled) {
        s->request[id - 1].cancelled = true;
        s->seen.n_cancelled++;
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* A token a byte of text, 100 a medium. */
static status count(struct service *s, struct service_request *rq, struct token_list *tokens, uint32_t n_kind[4], struct err *e)
{
    static const enum token_kind kind_of[] = { TOKEN_TEXT, TOKEN_IMAGE, TOKEN_AUDIO, TOKEN_VIDEO, TOKEN_VIDEO };
    (void)s;
    for (size_t m = 0; m < rq->chat.n_messages; m++)
        for (size_t i = 0; i < rq->chat.message[m].n_parts; i++) {
            const struct chat_part *p = &rq->chat.message[m].part[i];
            const size_t n = p->kind == PART_TEXT ? p->n_text : 100;
            TRY(mem_grow(&tokens->token, &tokens->cap, tokens->n + n, sizeof *tokens->token, e));
            for (size_t k = 0; k < n; k++) tokens->token[tokens->n++] = (struct prompt_token){ .id = (int32_t)p->kind + 7 };
            n_kind[kind_of[p->kind]] += (uint32_t)n;
        }
    return OK;
}

static const struct engine *engine(const struct service *s) { return s->en; }

static void read_gauges(struct service *s, struct service_gauges *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->gauges;
    pthread_mutex_unlock(&s->lock);
}

void fake_gauges(struct service *s, const struct service_gauges *g)
{
    pthread_mutex_lock(&s->lock);
    s->gauges = *g;
    pthread_mutex_unlock(&s->lock);
}

static void drain(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    s->seen.n_drained++;
    pthread_mutex_unlock(&s->lock);
}

const struct api_calls fake_calls = { submit, cancel, count, engine, read_gauges, drain };

struct service *fake_open(const struct engine *en, const struct fake_script *script)
{
    struct service *s = mem_must(1, sizeof *s);
    s->en = en;
    s->script = script;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    return s;
}

void fake_close(struct service **ps)
{
    struct service *s = *ps;
    pthread_mutex_lock(&s->lock);
    while (s->n_running) pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
    *ps = NULL;
}

struct fake_seen fake_seen(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    const struct fake_seen seen = s->seen;
    pthread_mutex_unlock(&s->lock);
    return seen;
}

static struct engine *opened;
static void close_engine(void) { engine_close(&opened); }

struct engine *fake_engine(void)
{
    struct err e;
    const struct engine_options o = { .model_dir = ENGINE_BUNDLED_MODEL, .n_threads = 1, .max_model_len = 2048 };
    if (opened) return opened;
    if (engine_open(&o, &opened, &e) != OK) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
    atexit(close_engine);
    return opened;
}
