/* The service: many requests from any thread, and the same bits as each gives alone. Method: omni-tiny on its own clips;
 * what eng_run gives for a question is compared, ids and log probabilities, with what the service gives for it beside
 * others, in small quanta, as one of several choices, again after a preemption, and from the caches. Then ends: cancelled
 * in every phase, deadlines, a full queue, a drain; and a request that waits for pages that another's pruning frees. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"
#include "tests/engine/give_selector.h"
#include "tests/engine/resolve_path.h"
#include "engine/service.h"
#include "media/extract.h"

#define FILM  "tests/data/media/film.mp4"
#define SOUND "tests/data/media/mono16k.flac"
enum { N_MAX = 24 };

/* ---- what one request became ------------------------------------------------------------------------------- */

struct answer {
    uint32_t n;
    int32_t id[N_MAX];
    float logprob[N_MAX];
    struct sample_top top[N_MAX][5];
    char text[1024];
    enum eng_finish finish;
};

struct watcher {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct answer a[8];
    uint32_t n_text, n_done, n_admitted, n_choice;
    bool done;
    struct err error;
    bool failed;
    uint32_t n_cached, n_cached_early, cached_layers, n_preempted;
    bool media_cached;
    atomic_bool slow;              /* the engine waits a little at each token */
    void (*on_admitted)(void *arg);    /* on the engine thread */
    void *on_admitted_arg;
};

static void watch(void *self, const struct service_event *ev)
{
    struct watcher *w = self;
    if (ev->kind == SERVICE_TEXT && atomic_load(&w->slow)) usleep(20000);
    if (ev->kind == SERVICE_ADMITTED && w->on_admitted) w->on_admitted(w->on_admitted_arg);
    pthread_mutex_lock(&w->lock);
    assert_false(w->done);
    switch (ev->kind) {
    case SERVICE_ADMITTED: w->n_admitted++; break;
    case SERVICE_PROGRESS: assert_true(ev->progress >= 0 && ev->progress <= 1); break;
    case SERVICE_TEXT: {
        struct answer *a = &w->a[ev->choice];
        w->n_text++;
        assert_int_equal(ev->n_token, 1);
        assert_true(a->n < N_MAX);
        a->id[a->n] = ev->token[0].id;
        assert_true(ev->token[0].n_top <= 5);
        if (ev->token[0].n_top) memcpy(a->top[a->n], ev->token[0].top, ev->token[0].n_top * sizeof *ev->token[0].top);
        a->logprob[a->n++] = ev->token[0].logprob;
        const size_t had = strlen(a->text);
        assert_true(had + ev->n_text < sizeof a->text);
        memcpy(a->text + had, ev->text, ev->n_text);
        break;
    }
    case SERVICE_CHOICE:
        w->n_choice++;
        w->a[ev->choice].finish = ev->result->finish;
        break;
    case SERVICE_DONE:
        w->done = true;
        w->failed = ev->error != NULL;
        if (ev->error) w->error = *ev->error;
        w->n_cached = ev->summary->n_cached;
        w->n_cached_early = ev->summary->n_cached_early;
        w->cached_layers = ev->summary->cached_layers;
        w->media_cached = ev->summary->media_cached;
        w->n_preempted = ev->summary->n_preempted;
        break;
    }
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static struct watcher *watcher_new(void)
{
    struct watcher *w = mem_must(1, sizeof *w);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    return w;
}

static void wait_done(struct watcher *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->done) pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void wait_text(struct watcher *w, uint32_t n)
{
    pthread_mutex_lock(&w->lock);
    while (w->n_text < n && !w->done) pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

/* ---- questions ---------------------------------------------------------------------------------------------- */

struct ask {
    const char *media;
    enum chat_part_kind kind;
    const char *text;
    float temperature;
    uint32_t n_new;
    const char *policy;
    bool trim;
    double p_final;                /* 0: the default */
    const char *with;              /* other parameters: "key=value key=value" */
};

static struct chat chat_of(const struct ask *a)
{
    struct chat c;
    struct err e;
    chat_init(&c);
    assert_int_equal(chat_add_message(&c, CHAT_USER, &e), OK);
    if (a->media) assert_int_equal(chat_add_media(&c, a->kind, a->media, &e), OK);
    assert_int_equal(chat_add_text(&c, a->text, strlen(a->text), &e), OK);
    return c;
}

static struct policy_params policy_of(const struct engine *en, const struct ask *a)
{
    struct policy_params p;
    struct err e;
    if (prune_params_init(&p, a->policy ? a->policy : "none", engine_config(en)->text.layers, &e) != OK) fail_msg("%s", e.text);
    if (a->trim && prune_params_set(&p, "trim", 1, &e) != OK) fail_msg("%s", e.text);
    if (a->p_final > 0 && prune_params_set(&p, "p_final", a->p_final, &e) != OK) fail_msg("%s", e.text);
    char with[200], *rest = NULL;
    snprintf(with, sizeof with, "%s", a->with ? a->with : "");
    for (char *key = strtok_r(with, " ", &rest); key; key = strtok_r(NULL, " ", &rest)) {
        char *value = strchr(key, '=');
        *value++ = 0;
        if (prune_params_set_text(&p, key, value, &e) != OK) fail_msg("%s", e.text);
    }
    if (prune_params_finish(&p, &e) != OK) fail_msg("%s", e.text);
    return p;
}

static struct eng_request_options options_of(const struct ask *a, const struct policy_params *p)
{
    struct eng_request_options o = eng_request_defaults();
    o.max_tokens = a->n_new;
    o.ignore_eos = true;
    o.sample.temperature = a->temperature;
    o.sample.seed = 7;
    o.policy = p;
    o.audio_in_video = a->kind == PART_VIDEO;
    o.max_pixels = 28 * 28 * 16;
    return o;
}

/* Alone, through eng_run. */
static void alone(struct engine *en, const struct ask *a, struct answer *out)
{
    struct chat c = chat_of(a);
    struct policy_params p = policy_of(en, a);
    const struct eng_request_options o = options_of(a, &p);
    struct eng_request *r;
    struct err e;
    if (eng_request_create(en, &c, &o, &r, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(eng_run(en, &r, 1, &e), OK);
    const struct eng_result *res = eng_request_result(r);
    if (res->finish == ENG_FAILED) fail_msg("%s", res->error.text);
    *out = (struct answer){ .n = res->n_ids, .finish = res->finish };
    memcpy(out->id, res->ids, res->n_ids * sizeof *res->ids);
    snprintf(out->text, sizeof out->text, "%s", res->text);
    eng_request_destroy(en, &r);
    chat_free(&c);
}

struct asked { struct policy_params p; struct watcher *w; uint64_t id; };

static void submit_with(struct service *s, const struct ask *a, struct service_request rq, struct asked *out)
{
    struct err e;
    out->p = policy_of(service_engine(s), a);
    out->w = watcher_new();
    rq.chat = chat_of(a);
    rq.o = options_of(a, &out->p);
    rq.event = watch;
    rq.self = out->w;
    if (service_submit(s, &rq, &out->id, &e) != OK) fail_msg("%s", e.text);
}

static void submit(struct service *s, const struct ask *a, struct asked *out)
{
    submit_with(s, a, (struct service_request){ 0 }, out);
}

static void must_finish(struct asked *x)
{
    wait_done(x->w);
    if (x->w->failed) fail_msg("%s", x->w->error.text);
}

static void same(const struct answer *a, const struct answer *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->id, b->id, a->n * sizeof *a->id);
    assert_string_equal(a->text, b->text);
    assert_int_equal(a->finish, b->finish);
}

static void same_bits(const struct answer *a, const struct answer *b)
{
    same(a, b);
    assert_memory_equal(a->logprob, b->logprob, a->n * sizeof *a->logprob);
    assert_memory_equal(a->top, b->top, a->n * sizeof *a->top);
}

static void asked_free(struct asked *x) { free(x->w); }

static struct engine *open_tiny(uint64_t kv_bytes)
{
    const struct engine_options o = { .n_threads = 2, .kv_bytes = kv_bytes };
    struct engine *en;
    struct err e;
    if (engine_open(&o, &en, &e) != OK) fail_msg("%s", e.text);
    return en;
}

static struct service *open_service(struct engine *en, struct service_options o)
{
    struct service *s;
    struct err e;
    if (service_open(en, &o, &s, &e) != OK) fail_msg("%s", e.text);
    return s;
}

static void all_home(struct engine *en)
{
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
}

static const struct service_loader LOADER = { .resolve = resolve_path };

static const struct ask ASKS[] = {
    { NULL, PART_TEXT, "Say something about shapes.", 0, 12, NULL },
    { SOUND, PART_AUDIO, "What was that?", 0, 9, NULL },
    { FILM, PART_VIDEO, "What happens here?", 0, 11, NULL },
    { FILM, PART_VIDEO, "What happens here?", 0, 11, "omnidrop" },
    { NULL, PART_TEXT, "Draw.", 1, 14, NULL },
    { FILM, PART_VIDEO, "And what can be heard?", 1, 7, "omnidrop" },
    { FILM, PART_VIDEO, "Tell me more.", 0, 13, "omnidrop", true, 0.5 },
    { NULL, PART_TEXT, "One word.", 0, 1, NULL },
    { FILM, PART_VIDEO, "What is there to see?", 0, 8, "random-layers", false, 0.5 },
    { FILM, PART_VIDEO, "And now?", 0, 6, "uniform" },
    { FILM, PART_VIDEO, "Who speaks?", 0, 7, "fastv" },
    { FILM, PART_VIDEO, "What colour?", 0, 5, "knee" },    /* its counts are bounds */
    { FILM, PART_VIDEO, "Is it loud?", 0, 6, "omnisift-lite" },
    { FILM, PART_VIDEO, "Which shape?", 0, 6, "exit", .with = "at=5" },
    { FILM, PART_VIDEO, "How many?", 0, 5, "pyramiddrop", .with = "at=0,4,11" },
    { FILM, PART_VIDEO, "Which word?", 0, 7, "table", .with = "score=saliency rates=.8,.8,.8,.5,.5,.5,.5,.3,.3,.3,.1,0" },
    { FILM, PART_VIDEO, "Who is there?", 0, 6, "omnifit",
      .with = "rates_a=1,1,1,1,.5,.5,.5,.5,.5,.2,.2,.2 rates_v=1,1,.6,.6,.6,.6,.3,.3,.3,.3,0,0" },
    { FILM, PART_VIDEO, "What is said?", 0, 7, "seats", .with = "trim=true" },    /* bounds; scores by other weights */
    { FILM, PART_VIDEO, "What is said first?", 0, 6, "omnifocus" },
    { FILM, PART_VIDEO, "What is shown first?", 0, 6, "trim-lc" },
    { FILM, PART_VIDEO, "What is shown last?", 0, 6, "aim" },    /* merges, walks */
    { FILM, PART_VIDEO, "What is heard first?", 0, 5, "omnizip" },    /* global saliency: another entry of the cache */
    { FILM, PART_VIDEO, "What is heard last?", 0, 5, "dash" },
    { FILM, PART_VIDEO, "Who else is there?", 0, 5, "prumerge" },
    { FILM, PART_VIDEO, "What else is there?", 0, 5, "vtc-cls" },
};
enum { N_ASKS = sizeof ASKS / sizeof *ASKS };

/* ---- tests -------------------------------------------------------------------------------------------------- */

/* Of the policies that no ask above has. */
static const struct ask MORE[] = {
    { FILM, PART_VIDEO, "What happens here?", 0, 2, "none" },
    { FILM, PART_VIDEO, "Who?", 0, 2, "random" },
    { FILM, PART_VIDEO, "What then?", 0, 2, "step0" },
    { FILM, PART_VIDEO, "How long?", 0, 2, "ttm" },
    { FILM, PART_VIDEO, "How often?", 0, 2, "saliency", .with = "vision=0.5" },
    { FILM, PART_VIDEO, "Which one?", 0, 2, "omnisift" },
};
enum { N_MORE = sizeof MORE / sizeof *MORE, BLOCK = 3 };

/* What each of n asks comes to in one batch: its answer, and a hash of who lived where. */
static void together(struct engine *en, const struct ask *const *ask, int n, struct answer *out, uint32_t *lived)
{
    struct chat c[2 * BLOCK];
    struct policy_params p[2 * BLOCK];
    struct eng_request *r[2 * BLOCK];
    struct err e;
    for (int i = 0; i < n; i++) {
        c[i] = chat_of(ask[i]);
        p[i] = policy_of(en, ask[i]);
        struct eng_request_options o = options_of(ask[i], &p[i]);
        o.max_tokens = 2;
        if (eng_request_create(en, &c[i], &o, &r[i], &e) != OK) fail_msg("%s", e.text);
    }
    assert_int_equal(eng_run(en, r, (uint32_t)n, &e), OK);
    for (int i = 0; i < n; i++) {
        const struct eng_result *res = eng_request_result(r[i]);
        if (res->finish == ENG_FAILED) fail_msg("%s: %s", ask[i]->policy, res->error.text);
        out[i] = (struct answer){ .n = res->n_ids, .finish = res->finish };
        memcpy(out[i].id, res->ids, res->n_ids * sizeof *res->ids);
        lived[i] = 0;
        for (uint32_t l = 0; l <= res->n_layers; l++)
            for (uint32_t k = 0; k < res->alive[l][1] + res->alive[l][2] + res->alive[l][3]; k++)
                lived[i] = lived[i] * 31 + res->survivors[l][k];
        eng_request_destroy(en, &r[i]);
        chat_free(&c[i]);
    }
}

/* One ask of each registered policy; returns how many. */
static int one_of_each(const struct ask **of)
{
    int n = 0;
    for (const struct policy *const *p = prune_list(); *p; p++) {
        const struct ask *found = NULL;
        for (int i = 0; i < N_ASKS && !found; i++)
            if (ASKS[i].policy && strcmp(ASKS[i].policy, (*p)->name) == 0 && ASKS[i].temperature == 0) found = &ASKS[i];
        for (int i = 0; i < N_MORE && !found; i++)
            if (strcmp(MORE[i].policy, (*p)->name) == 0) found = &MORE[i];
        if (found == NULL) fail_msg("no ask has the policy %s", (*p)->name);
        of[n++] = found;
    }
    return n;
}

/* Every policy beside every other one: who lives and what is said are those of it alone. Method: three of them with three others, so
 * that each pair is in some batch. */
static void test_pairs(void **state)
{
    (void)state;
    struct engine *en = open_tiny(0);
    const struct ask *of[N_ASKS + N_MORE], *batch[2 * BLOCK];
    struct answer want[N_ASKS + N_MORE], got[2 * BLOCK];
    uint32_t lived[N_ASKS + N_MORE], now[2 * BLOCK];
    int who[2 * BLOCK], pairs = 0;
    give_selector(en);
    const int n = one_of_each(of);
    for (int i = 0; i < n; i++) together(en, &of[i], 1, &want[i], &lived[i]);
    bool met[N_ASKS + N_MORE][N_ASKS + N_MORE] = { { false } };
    for (int a = 0; a < n; a += BLOCK)
        for (int b = a + BLOCK; b < n; b += BLOCK) {
            int m = 0;
            for (int i = 0; i < BLOCK && a + i < n; i++) who[m++] = a + i;
            for (int i = 0; i < BLOCK && b + i < n; i++) who[m++] = b + i;
            for (int i = 0; i < m; i++) batch[i] = of[who[i]];
            together(en, batch, m, got, now);
            for (int i = 0; i < m; i++) {
                if (now[i] != lived[who[i]]) fail_msg("%s beside %s and others: others live", batch[i]->policy, batch[!i]->policy);
                same(&got[i], &want[who[i]]);
                for (int k = 0; k < m; k++) met[who[i]][who[k]] = true;
            }
        }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < i; k++) pairs += met[i][k];
    assert_int_equal(pairs, n * (n - 1) / 2);
    print_message("%d policies, every pair\n", n);
    all_home(en);
    engine_close(&en);
}

/* Beside others, at any size of quanta, whatever order: the bits of each alone. */
static void test_same_bits(void **state)
{
    (void)state;
    struct engine *en = open_tiny(0);
    struct answer want[N_ASKS];
    for (int i = 0; i < N_ASKS; i++) alone(en, &ASKS[i], &want[i]);
    static const double targets[] = { 1e-6, 2e-3, INFINITY };
    for (int t = 0; t < 3; t++) {
        struct service *s = open_service(en, (struct service_options){ .itl_target_s = targets[t], .max_running = 5,
                                                                      .group_rows = t == 1 ? 300 : 8192 });
        struct asked x[2 * N_ASKS];
        for (int i = 0; i < 2 * N_ASKS; i++) submit(s, &ASKS[(i * 3 + t) % N_ASKS], &x[i]);
        for (int i = 0; i < 2 * N_ASKS; i++) {
            must_finish(&x[i]);
            same(&x[i].w->a[0], &want[(i * 3 + t) % N_ASKS]);
            assert_int_equal(x[i].w->n_admitted, 1);
            asked_free(&x[i]);
        }
        service_close(&s);
        all_home(en);
    }
    engine_close(&en);
}

/* The second question about a film decodes and encodes nothing, shares the pages before the first drop, and its answer is
 * that of a service without caches, bit for bit. */
static void test_caches(void **state)
{
    (void)state;
    struct engine *en = open_tiny(0);
    static const struct { const char *name, *with; bool layered, few; } policies[] = {
        { "none", NULL, false, false },       { "omnidrop", NULL, true, false },  { "random-layers", NULL, true, false },
        { "random", NULL, false, true },      { "exit", "at=6", true, false },    { "pyramiddrop", NULL, true, false },
        { "omnizip", NULL, false, false },    { "prumerge", NULL, false, true },  { "vtc-cls", NULL, false, true },
    };
    for (size_t k = 0; k < sizeof policies / sizeof *policies; k++) {
        const bool layered = policies[k].layered;
        const struct ask first = { FILM, PART_VIDEO, "What happens here?", 0, 6, policies[k].name, .with = policies[k].with };
        const struct ask second = { FILM, PART_VIDEO, "Which colour has the shape, and who speaks?", 0, 10, policies[k].name,
                                    .with = policies[k].with };
        struct service *s = open_service(en, (struct service_options){ .loader = &LOADER, .no_prefix_cache = true,
                                                                      .no_media_cache = true });
        struct asked cold, warm[3];
        submit(s, &second, &cold);
        must_finish(&cold);
        assert_false(cold.w->media_cached);
        service_close(&s);
        all_home(en);
        s = open_service(en, (struct service_options){ .loader = &LOADER });
        submit(s, &first, &warm[0]);
        must_finish(&warm[0]);
        assert_false(warm[0].w->media_cached);
        assert_int_equal(warm[0].w->cached_layers, 0);
        for (int i = 1; i < 3; i++) {      /* the second time all but its last page is known where nothing drops */
            submit(s, &second, &warm[i]);
            must_finish(&warm[i]);
            assert_true(warm[i].w->media_cached);
            same_bits(&warm[i].w->a[0], &cold.w->a[0]);
            if (!policies[k].few) {
                assert_true(warm[i].w->cached_layers > 0);
                assert_true(warm[i].w->n_cached_early > 32);
            }
            assert_int_equal(warm[i].w->n_cached > 0, !layered);   /* random drops before layer 0: all layers are shared */
        }
        struct service_gauges g;
        usleep(60000);
        service_read(s, &g);
        assert_true(g.pages_cached > 0);
        assert_int_equal(g.media_cache_hits, 2);
        service_close(&s);
        all_home(en);
        asked_free(&cold);
        for (int i = 0; i < 3; i++) asked_free(&warm[i]);
    }
    engine_close(&en);
}

/* Thirty-two at once, of random priorities, in quanta of random sizes, with and without each cache, some cancelled: the
 * likeliest tokens' probabilities of those that finish are the bits of each alone. */
static void test_random_services(void **state)
{
    (void)state;
    enum { AT_ONCE = 32, ROUNDS = 6 };
    struct engine *en = open_tiny(0);
    const uint64_t roomy = (uint64_t)engine_info(en)->page_bytes * 1200;
    struct answer want[N_ASKS];
    engine_close(&en);
    en = open_tiny(roomy);                 /* pages are short, so that they wait, pass and push aside */
    struct service *s = open_service(en, (struct service_options){ .no_prefix_cache = true, .loader = &LOADER });
    for (int i = 0; i < N_ASKS; i++) {
        struct asked x;
        submit_with(s, &ASKS[i], (struct service_request){ .top_logprobs = 5 }, &x);
        must_finish(&x);
        want[i] = x.w->a[0];
        asked_free(&x);
    }
    service_close(&s);
    const char *seed = getenv("SEED");
    unsigned rnd = seed ? (unsigned)atoi(seed) : 1;
    uint32_t finished = 0, preempted = 0, cached = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const double targets[] = { 1e-6, 1e-3, 5e-3, INFINITY };
        s = open_service(en, (struct service_options){
            .loader = &LOADER, .itl_target_s = targets[rand_r(&rnd) % 4], .group_rows = 50 + (uint32_t)rand_r(&rnd) % 2000,
            .max_running = 2 + (uint32_t)rand_r(&rnd) % 30, .overtake_max = (uint32_t)rand_r(&rnd) % 5,
            .no_prefix_cache = rand_r(&rnd) % 3 == 0, .no_media_cache = rand_r(&rnd) % 3 == 0 });
        struct asked x[AT_ONCE];
        int which[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) {
            which[i] = rand_r(&rnd) % N_ASKS;
            submit_with(s, &ASKS[which[i]], (struct service_request){ .top_logprobs = 5, .priority = rand_r(&rnd) % 3 }, &x[i]);
            if (rand_r(&rnd) % 8 == 0) usleep((useconds_t)(rand_r(&rnd) % 5000));
            if (rand_r(&rnd) % 8 == 0) service_cancel(s, x[rand_r(&rnd) % (i + 1)].id);
        }
        for (int i = 0; i < AT_ONCE; i++) {
            wait_done(x[i].w);
            if (x[i].w->failed) {
                assert_int_equal(x[i].w->error.code, E_CANCELLED);
            } else {
                finished++;
                preempted += x[i].w->n_preempted;
                cached += x[i].w->cached_layers > 0;
                same_bits(&x[i].w->a[0], &want[which[i]]);
            }
            asked_free(&x[i]);
        }
        service_close(&s);
        all_home(en);
    }
    print_message("%u finished, %u preempted, %u with shared layers\n", finished, preempted, cached);
    assert_true(finished > AT_ONCE * ROUNDS / 2 && cached > 10);
    engine_close(&en);
}

/* Trim: after prefill each layer's pages are those of the last survivors; where nothing is dropped nothing changes. */
static void test_trim(void **state)
{
    (void)state;
    struct engine *en = open_tiny(0);
    struct ask a = { FILM, PART_VIDEO, "What happens here?", 0, 12, "omnidrop", true, 0.6 };
    struct chat c = chat_of(&a);
    struct policy_params p = policy_of(en, &a);
    const struct eng_request_options o = options_of(&a, &p);
    struct eng_request *r;
    struct err e;
    assert_int_equal(eng_request_create(en, &c, &o, &r, &e), OK);
    assert_int_equal(eng_run(en, &r, 1, &e), OK);
    const struct eng_result *res = eng_request_result(r);
    const uint32_t L = res->n_layers, per = engine_info(en)->page_tokens;
    const uint32_t *last = res->alive[L - 1], rows = last[0] + last[1] + last[2] + last[3];
    assert_true(rows < res->alive[0][0] + res->alive[0][1] + res->alive[0][2] + res->alive[0][3]);
    for (uint32_t l = 0; l < L; l++) assert_int_equal(res->pages[l], (rows + per - 1) / per);
    eng_request_destroy(en, &r);
    chat_free(&c);
    struct answer with, without;
    a.p_final = 1e-9;                      /* drops nothing */
    alone(en, &a, &with);
    a.trim = false;
    alone(en, &a, &without);
    same(&with, &without);
    all_home(en);
    engine_close(&en);
}

struct follower { struct service *s; const struct ask *ask; struct asked *x; };

static void follow(void *arg)
{
    struct follower *f = arg;
    submit(f->s, f->ask, f->x);
    usleep(50000);                 /* it is prepared meanwhile, and waits from the next step on */
}

/* B needs more pages than A leaves of the pool, until A's pruning gives some back: B is admitted while A still answers. */
static void test_admitted_by_freed_pages(void **state)
{
    (void)state;
    struct engine *en = open_tiny(0);
    const struct ask first = { FILM, PART_VIDEO, "What happens here?", 0, N_MAX, "omnidrop", true, 0.9 };
    const struct ask second = { NULL, PART_TEXT, "Say something.", 0, 3, NULL };
    struct chat c = chat_of(&first);
    struct policy_params p = policy_of(en, &first);
    const struct eng_request_options o = options_of(&first, &p);
    struct eng_request *r;
    struct err e;
    assert_int_equal(eng_request_create(en, &c, &o, &r, &e), OK);
    uint64_t pages = 0;
    const uint32_t L = engine_config(en)->text.layers, per = engine_info(en)->page_tokens;
    for (uint32_t l = 0; l < L; l++) pages += (r->bound[l] + N_MAX + per - 1) / per;
    eng_request_destroy(en, &r);
    chat_free(&c);
    const uint64_t bytes = engine_info(en)->page_bytes;
    engine_close(&en);
    en = open_tiny((pages + L) * bytes);   /* a page a layer beside A: B needs two */
    struct answer want;
    alone(en, &second, &want);
    struct service *s = open_service(en, (struct service_options){ .no_prefix_cache = true, .quantum_rows = 1 });
    struct asked a, b = { .w = NULL };
    struct follower f = { s, &second, &b };
    struct err err;
    a.p = policy_of(en, &first);
    a.w = watcher_new();
    a.w->slow = true;
    a.w->on_admitted = follow;
    a.w->on_admitted_arg = &f;
    struct service_request rq = { .chat = chat_of(&first), .o = options_of(&first, &a.p), .event = watch, .self = a.w };
    if (service_submit(s, &rq, &a.id, &err) != OK) fail_msg("%s", err.text);
    wait_text(a.w, 1);
    must_finish(&b);
    assert_false(a.w->done);               /* B came and went meanwhile */
    same(&b.w->a[0], &want);
    struct service_gauges g;
    atomic_store(&a.w->slow, false);
    must_finish(&a);
    usleep(60000);
    service_read(s, &g);
    assert_int_equal(g.n_admitted_by_freed, 1);
    assert_true(g.pages_freed_by_pruning >= L);
    asked_free(&a);
    asked_free(&b);
    service_close(&s);
    all_home(en);
    engine_close(&en);
}

/* n choices: the first is what one choice gives, each is what its seed gives alone. */
static void test_choices(void **state)
{
    (void)state;
    struct engine *en = open_tiny(0);
    struct service *s = open_service(en, (struct service_options){ .no_prefix_cache = true });
    const struct ask a = { FILM, PART_VIDEO, "What happens here?", 1, 10, "omnidrop" };
    struct asked three, one[3];
    submit_with(s, &a, (struct service_request){ .n_choices = 3, .top_logprobs = 4 }, &three);
    must_finish(&three);
    assert_int_equal(three.w->n_choice, 3);
    for (uint32_t i = 0; i < 3; i++) {
        struct err e;
        one[i].p = policy_of(en, &a);
        one[i].w = watcher_new();
        struct service_request rq = { .chat = chat_of(&a), .o = options_of(&a, &one[i].p), .top_logprobs = 4,
                                      .event = watch, .self = one[i].w };
        rq.o.sample.seed += i;
        assert_int_equal(service_submit(s, &rq, &one[i].id, &e), OK);
        must_finish(&one[i]);
        same_bits(&three.w->a[i], &one[i].w->a[0]);
        asked_free(&one[i]);
    }
    asked_free(&three);
    service_close(&s);
    all_home(en);
    engine_close(&en);
}

/* A request of a lower priority gives its pages to one of a higher one and comes back to the same bits. */
static void test_preemption(void **state)
{
    (void)state;
    struct engine *en = open_tiny(0);
    const struct ask low = { FILM, PART_VIDEO, "What happens here?", 1, 20, "omnidrop" };
    const struct ask high = { FILM, PART_VIDEO, "Who speaks?", 0, 4, NULL };
    struct answer want_low, want_high;
    alone(en, &low, &want_low);
    alone(en, &high, &want_high);
    struct service *s = open_service(en, (struct service_options){ .max_running = 1 });
    uint32_t preempted = 0;
    for (uint32_t at = 1; at < 18; at += 5) {
        struct asked x, y;
        submit_with(s, &low, (struct service_request){ .priority = 5 }, &x);
        wait_text(x.w, at);
        atomic_store(&x.w->slow, true);    /* it must not be done before the other is prepared */
        submit(s, &high, &y);
        must_finish(&y);
        atomic_store(&x.w->slow, false);
        must_finish(&x);
        same(&y.w->a[0], &want_high);
        same(&x.w->a[0], &want_low);
        preempted += x.w->n_preempted;
        asked_free(&x);
        asked_free(&y);
    }
    assert_true(preempted > 0);
    service_close(&s);
    all_home(en);
    engine_close(&en);
}

/* Cancelled at any moment: one DONE, every page home. */
static void test_cancels(void **state)
{
    (void)state;
    struct engine *en = open_tiny(0);
    struct service *s = open_service(en, (struct service_options){ .loader = &LOADER, .itl_target_s = 1e-6 });
    uint32_t cancelled = 0;
    for (int i = 0; i < 40; i++) {
        struct asked x, y;
        submit(s, &ASKS[i % N_ASKS == N_ASKS - 1 ? 0 : i % N_ASKS], &x);
        submit(s, &ASKS[(i + 2) % N_ASKS], &y);
        usleep((useconds_t)(i * 700));
        service_cancel(s, x.id);
        service_cancel(s, x.id);
        wait_done(x.w);
        if (x.w->failed) {
            assert_int_equal(x.w->error.code, E_CANCELLED);
            cancelled++;
        }
        must_finish(&y);
        asked_free(&x);
        asked_free(&y);
    }
    assert_true(cancelled > 5);
    service_close(&s);
    all_home(en);
    engine_close(&en);
}

/* What cannot be: never fits, too long, full queue, deadlines, drained. */
static void test_refusals(void **state)
{
    (void)state;
    struct engine *en = open_tiny(0);
    struct service *s = open_service(en, (struct service_options){ .max_waiting = 2, .max_running = 1 });
    struct ask a = ASKS[0];
    struct asked x[4];
    struct err e;
    a.n_new = 1u << 20;
    submit(s, &a, &x[0]);
    wait_done(x[0].w);
    assert_true(x[0].w->failed);
    assert_string_equal(x[0].w->error.tag, "context_length_exceeded");
    assert_memory_equal(x[0].w->error.text, "This model's maximum context length is ", 39);
    asked_free(&x[0]);
    a.n_new = N_MAX;
    struct policy_params p = policy_of(en, &a);
    submit_with(s, &a, (struct service_request){ .deadline_s = 1e-9 }, &x[0]);
    wait_done(x[0].w);
    if (x[0].w->failed) assert_string_equal(x[0].w->error.tag, "deadline_exceeded");
    asked_free(&x[0]);
    bool full = false;
    uint32_t n = 0;
    for (; n < 4 && !full; n++) {
        struct service_request rq = { .chat = chat_of(&a), .o = options_of(&a, &p), .event = watch, .self = (x[n].w = watcher_new()) };
        if (service_submit(s, &rq, &x[n].id, &e) == OK) continue;
        full = true;
        assert_int_equal(e.code, E_BUSY);
        assert_string_equal(e.tag, "queue_full");
        chat_free(&rq.chat);
        free(x[n].w);
        break;
    }
    assert_true(full);
    for (uint32_t i = 0; i < n; i++) {
        must_finish(&x[i]);
        asked_free(&x[i]);
    }
    service_drain(s);
    struct service_request rq = { .chat = chat_of(&a), .o = options_of(&a, &p) };
    uint64_t id;
    assert_int_equal(service_submit(s, &rq, &id, &e), E_BUSY);
    assert_string_equal(e.tag, "draining");
    chat_free(&rq.chat);
    service_close(&s);
    engine_close(&en);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--media-child") == 0) return extract_child_main(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs), cmocka_unit_test(test_same_bits), cmocka_unit_test(test_caches),
        cmocka_unit_test(test_choices), cmocka_unit_test(test_random_services), cmocka_unit_test(test_trim),
        cmocka_unit_test(test_admitted_by_freed_pages),
        cmocka_unit_test(test_preemption), cmocka_unit_test(test_cancels), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
