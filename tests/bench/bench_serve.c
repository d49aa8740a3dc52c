/* tests/bench/bench_serve.c - many requests at once over a bounded page pool: serve_none, serve_omnidrop30,
 * itl_p99_beside_prefill. The engine's own loop, scheduler, pool and policies around a small random decoder (28 layers, as
 * the 7B model has: pages depend on depth and tokens alone), so that no media decoding and no socket is in the way.
 *
 * Thirty-two clients ask at once about a minute of film with sound each: 60 grid steps of 144 tokens and 1500 tokens of
 * sound are 169 AV tokens a second, then 40 tokens of question; 64 new tokens. The pool holds POOL_REQUESTS of them
 * unpruned. What pruning must give is page arithmetic: pages of such a request under `none` over pages under `omnidrop`
 * with retention 0.3, both from plan(). What it gives is how many requests hold pages at once while others wait. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"
#include "tests/bench/bench.h"

enum { STEPS = 60, GRID = 24, SOUND = 1500, QUESTION = 40, AV = STEPS * GRID * GRID / 4 + SOUND, NEW = 64, CLIENTS = 32,
       POOL_REQUESTS = 8, PROMPT_MAX = AV + 64 };
#define ITL_TARGET 0.05            /* seconds; the service's default */

static const struct decoder_shape S = { .L = 28, .H = 2, .G = 1, .D = 32, .d = 64, .ff = 128, .V = 768, .rms_eps = 1e-6f,
                                        .rope_theta = 1e6, .mrope_section = { 8, 4, 4 }, .tied = true };

static struct engine *engine;

/* ---- the model --------------------------------------------------------------------------------------------- */

static status random_weight(void *self, enum decoder_role role, uint32_t l, struct weight_args *a, struct err *e)
{
    (void)l, (void)e;
    const uint16_t *values = self;
    const uint32_t q = S.H * S.D, kv = S.G * S.D;
    const struct { uint32_t k, n[2]; enum weight_form form; bool bias; } of[] = {
        [DEC_QKV_Q] = { S.d, { q }, WEIGHT_PLAIN, true },     [DEC_QKV_KV] = { S.d, { kv, kv }, WEIGHT_PLAIN, true },
        [DEC_O] = { q, { S.d }, WEIGHT_PLAIN, false },        [DEC_GATE_UP] = { S.d, { S.ff, S.ff }, WEIGHT_SWIGLU, false },
        [DEC_DOWN] = { S.ff, { S.d }, WEIGHT_PLAIN, false },  [DEC_EMBED] = { S.d, { S.V }, WEIGHT_PLAIN, false } };
    a->form = of[role].form;
    a->k = of[role].k;
    a->n_parts = of[role].n[1] ? 2 : 1;
    for (uint32_t i = 0; i < a->n_parts; i++)
        a->part[i] = (struct weight_part){ values, DT_BF16, of[role].n[i], of[role].bias ? values : NULL, DT_BF16 };
    return OK;
}

static status ones(void *self, enum decoder_role role, uint32_t l, float *out, struct err *e)
{
    (void)self, (void)role, (void)l, (void)e;
    for (uint32_t i = 0; i < S.d; i++) out[i] = 1.0f;
    return OK;
}

static status model_open(const struct bench *b, struct err *e)
{
    uint16_t *values;
    if (engine != NULL) return OK;
    TRY(bench_random_bf16((size_t)S.V * S.d, 0.2f, &values, e));
    const struct decoder_source src = { .weight = random_weight, .norm = ones, .self = values };
    struct engine_options o = { .device = "cpu", .n_threads = b->n_threads, .max_model_len = 16384 };
    const size_t page_bytes = 16 * 2 * S.G * S.D * sizeof(uint16_t);   /* checked below */
    const uint32_t per_layer = (PROMPT_MAX + NEW + 15) / 16;
    o.kv_bytes = (uint64_t)POOL_REQUESTS * S.L * per_layer * page_bytes;
    const status s = engine_open_source(&o, &S, &src, DT_BF16, &engine, e);
    free(values);
    if (s != OK) return s;
    if (engine->kv.page_bytes != page_bytes || engine->kv.page_tokens != 16)
        return err_set(e, E_INPUT, "a page has %zu bytes and %u tokens, not %zu and 16", (size_t)engine->kv.page_bytes,
                       engine->kv.page_tokens, page_bytes);
    return OK;
}

void bench_serve_close(void)
{
    if (engine != NULL) engine_close(&engine);
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

static const float *embeds;        /* [AV, d], of every film */

/* One client's request and what it saw. */
struct client {
    struct eng_request *r;
    struct policy_params policy;
    double asked, first, last;     /* clock; first and last token */
    double *gap;                   /* [n_gap] seconds between its tokens, from the second on */
    bool *quiet;                   /* [n_gap] this process had its CPUs all that time */
    uint32_t n_gap, gap_cap;
    const struct bench *b;
    struct bench_clock at;         /* of the last token */
    bool watched;                  /* gaps are kept */
};

static bool on_token(void *self, struct eng_choice *c, const char *text, size_t n, int32_t id, float logprob)
{
    (void)c, (void)text, (void)n, (void)id, (void)logprob;
    struct client *k = self;
    const double now = clock_s();
    if (k->first == 0) k->first = now;
    else if (k->watched && k->n_gap < k->gap_cap) {
        bench_seconds(k->b, k->at, &k->quiet[k->n_gap]);
        k->gap[k->n_gap++] = now - k->last;
    }
    k->at = bench_clock_now();
    k->last = now;
    return true;
}

/* A minute of film and a question; without film: n_text tokens alone. */
static status make_prompt(bool film, uint32_t n_text, struct prompt *out, struct err *e)
{
    const struct model_ids *id = &engine->config.ids;
    const struct prompt_rules rules = {
        .audio_id = id->audio, .image_id = id->image, .video_id = id->video, .audio_bos = id->audio_start,
        .audio_eos = id->audio_end, .vision_bos = id->vision_start, .vision_eos = id->vision_end,
        .position_id_per_seconds = 25, .seconds_per_chunk = 2, .audio_in_video = true, .n_query_max = 256 };
    const struct prompt_media media = { .kind = TOKEN_VIDEO, .n_audio = SOUND, .has_audio = true, .t = STEPS, .h = GRID,
                                        .w = GRID, .second_per_grid = 1 };
    struct prompt_token *token;
    uint32_t n = 0;
    TRY(mem_alloc(&token, 3 + (size_t)n_text, sizeof *token, e));
    if (film) {
        token[n++] = (struct prompt_token){ id->vision_start, false };
        token[n++] = (struct prompt_token){ id->video, false };
        token[n++] = (struct prompt_token){ id->vision_end, false };
    }
    for (uint32_t i = 0; i < n_text; i++) token[n++] = (struct prompt_token){ 10 + (int32_t)(i % 500), true };
    const status s = prompt_build(&rules, token, n, &media, film, out, e);
    free(token);
    return s;
}

/* NULL: policy none. */
static status client_create(struct client *k, const struct bench *b, const char *policy, bool film, uint32_t n_text, uint32_t n_new,
                            struct err *e)
{
    struct prompt p;
    struct eng_request_options o = eng_request_defaults();
    *k = (struct client){ .gap_cap = n_new, .b = b };
    TRY(mem_alloc(&k->gap, n_new, sizeof *k->gap, e));
    TRY(mem_alloc(&k->quiet, n_new, sizeof *k->quiet, e));
    TRY(prune_params_init(&k->policy, policy ? policy : "none", S.L, e));
    if (policy) TRY(prune_params_set(&k->policy, "retention", 0.3, e));
    TRY(prune_params_finish(&k->policy, e));
    o.policy = &k->policy;
    o.max_tokens = n_new;
    o.ignore_eos = true;
    TRY(make_prompt(film, n_text, &p, e));
    const struct eng_given given = { .prompt = &p, .audio_embeds = embeds, .vision_embeds = embeds + (size_t)SOUND * S.d,
                                     .audio_saliency = embeds };
    const status s = eng_request_create_given(engine, NULL, &o, &given, &k->r, e);
    prompt_free(&p);
    if (s == OK) k->r->watch = (struct eng_watch){ .self = k, .token = on_token };
    return s;
}

static void client_destroy(struct client *k)
{
    eng_request_destroy(engine, &k->r);
    free(k->gap);
    free(k->quiet);
}

static status client_ask(struct client *k, struct loop *lp, struct err *e)
{
    k->asked = k->r->started = clock_s();
    return loop_add(lp, k->r, e);
}

static status loop_open(struct loop **lp, struct err *e)
{
    const struct loop_options o = { .max_running = CLIENTS, .max_waiting = 256, .group_rows = 8192, .overtake_max = 16,
                                    .itl_target_s = ITL_TARGET, .step_s = 0.05 };      /* what the service has by default */
    return loop_create(engine, &o, lp, e);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *v, uint32_t n, double q)
{
    if (n == 0) return 0;
    qsort(v, n, sizeof *v, ascending);
    const double at = q * (n - 1);
    const uint32_t i = (uint32_t)at;
    return i + 1 < n ? v[i] + (at - i) * (v[i + 1] - v[i]) : v[i];
}

enum { ENOUGH = 100 };

/* The gaps of n clients in one array (owned by the caller): the undisturbed ones, all where these are few. */
static status gaps(const struct client *k, uint32_t n, double **out, uint32_t *n_out, struct err *e)
{
    uint32_t total = 0, n_quiet = 0;
    for (uint32_t i = 0; i < n; i++) {
        total += k[i].n_gap;
        for (uint32_t g = 0; g < k[i].n_gap; g++) n_quiet += k[i].quiet[g];
    }
    TRY(mem_alloc(out, total + 1, sizeof **out, e));
    *n_out = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t g = 0; g < k[i].n_gap; g++)
            if (k[i].quiet[g] || n_quiet < ENOUGH) (*out)[(*n_out)++] = k[i].gap[g];
    return OK;
}

/* ---- thirty-two at once ------------------------------------------------------------------------------------ */

struct crowd {
    bool done;
    uint32_t n_pages;              /* of one request, by plan() and max_tokens */
    uint32_t n_prompt, running_max;
    double running_mean;           /* over time, while somebody waits */
    double seconds, ttft50, ttft99, itl50, itl99;
    uint64_t by_freed;             /* admitted with pages that pruning freed */
};

/* Steps to the end; how many hold pages, weighed by time, while others wait. */
static status crowd_steps(struct loop *lp, struct crowd *c, struct err *e)
{
    double area = 0, full = 0;
    struct sched_counts n;
    for (bool idle = false; !idle;) {
        const double start = clock_s();
        TRY(loop_step(lp, &idle, e));
        const double took = clock_s() - start;
        sched_read(loop_sched(lp), &n);
        const uint32_t running = n.n_encoding + n.n_ready + n.n_prefilling + n.n_decoding;
        if (running > c->running_max) c->running_max = running;
        if (n.n_waiting == 0) continue;
        area += took * running;
        full += took;
    }
    c->running_mean = full > 0 ? area / full : c->running_max;
    c->by_freed = n.n_admitted_by_freed;
    return OK;
}

static status crowd_times(struct client *k, struct crowd *c, struct err *e)
{
    double ttft[CLIENTS], *gap, start = k[0].asked, end = 0;
    uint32_t n_gap;
    for (int i = 0; i < CLIENTS; i++) {
        const struct eng_result *res = eng_request_result(k[i].r);
        if (res->finish != ENG_LENGTH || res->n_ids != NEW)
            return err_set(e, E_INPUT, "request %d ended with %u of %d tokens: %s", i, res->n_ids, NEW, res->error.text);
        ttft[i] = k[i].first - k[i].asked;
        if (k[i].last > end) end = k[i].last;
    }
    c->seconds = end - start;
    c->ttft50 = quantile(ttft, CLIENTS, 0.5);
    c->ttft99 = quantile(ttft, CLIENTS, 0.99);
    TRY(gaps(k, CLIENTS, &gap, &n_gap, e));
    c->itl50 = quantile(gap, n_gap, 0.5);
    c->itl99 = quantile(gap, n_gap, 0.99);
    free(gap);
    return OK;
}

static status crowd_run(const struct bench *b, const char *policy, struct crowd *c, struct err *e)
{
    struct client k[CLIENTS] = { 0 };
    struct loop *lp = NULL;
    float *values = NULL;
    status s;
    if (c->done) return OK;
    TRY(model_open(b, e));
    TRY_GOTO(s, bench_random((size_t)AV * S.d, &values, e), done);
    embeds = values;
    TRY_GOTO(s, loop_open(&lp, e), done);
    for (int i = 0; i < CLIENTS; i++) {
        TRY_GOTO(s, client_create(&k[i], b, policy, true, QUESTION, NEW, e), done);
        k[i].watched = true;
    }
    c->n_pages = (uint32_t)sched_demand(engine->pool, S.L, &k[0].r->sched);
    c->n_prompt = eng_request_prompt(k[0].r)->n;
    for (int i = 0; i < CLIENTS; i++) TRY_GOTO(s, client_ask(&k[i], lp, e), done);
    TRY_GOTO(s, crowd_steps(lp, c, e), done);
    TRY_GOTO(s, crowd_times(k, c, e), done);
    if (engine_pages_free(engine) != engine->info.n_pages)
        s = err_set(e, E_INPUT, "%u of %u pages are free at the end", engine_pages_free(engine), engine->info.n_pages);
    c->done = s == OK;
done:
    for (int i = 0; i < CLIENTS; i++) {
        if (k[i].r && lp && !k[i].r->over) loop_end(lp, k[i].r, ENG_CANCELLED, e);
        client_destroy(&k[i]);
    }
    loop_destroy(engine, &lp);
    free(values);
    embeds = NULL;
    return s;
}

static struct crowd none, omnidrop30;

static void crowd_note(const struct crowd *c, char *p, size_t cap)
{
    snprintf(p, cap, "%.2f requests/s, at once %.1f mean %u max; first token p50 %.1f p99 %.1f s; between tokens p50 %.0f "
             "p99 %.0f ms; %u pages each of %u", CLIENTS / c->seconds, c->running_mean, c->running_max, c->ttft50,
             c->ttft99, c->itl50 * 1e3, c->itl99 * 1e3, c->n_pages, engine->info.n_pages);
}

static status run_serve_none(struct bench *b, struct bench_result *r, struct err *e)
{
    TRY(crowd_run(b, NULL, &none, e));
    r->value = none.running_mean;
    r->unit = "requests";
    crowd_note(&none, r->note, sizeof r->note);
    return OK;
}

/* Requests at once against `none`, of what the pages of both plans promise. */
static status run_serve_omnidrop30(struct bench *b, struct bench_result *r, struct err *e)
{
    TRY(crowd_run(b, NULL, &none, e));
    TRY(crowd_run(b, "omnidrop", &omnidrop30, e));
    const double promised = (double)none.n_pages / omnidrop30.n_pages;
    r->measured = omnidrop30.running_mean / none.running_mean;
    r->measured_unit = "x none";
    r->value = r->measured / promised;
    r->unit = "of promised";
    r->floor = 0.95;
    const int n = snprintf(r->note, sizeof r->note, "promised %.2fx; requests/s %.2fx; ", promised,
                           none.seconds / omnidrop30.seconds);
    crowd_note(&omnidrop30, r->note + n, sizeof r->note - (size_t)n);
    return OK;
}

/* ---- tokens beside a prefill ------------------------------------------------------------------------------- */

enum { TALKERS = 8, TALK = 4096, ALONE = 100 };

/* Until the first of them has had n more tokens. */
static status talk_on(struct loop *lp, const struct client *k, uint32_t n, struct err *e)
{
    bool idle = false;
    const size_t until = k[0].r->choice[0].n_ids + n;
    while (!idle && k[0].r->choice[0].n_ids < until) TRY(loop_step(lp, &idle, e));
    const struct eng_result *res = eng_request_result(k[0].r);
    return idle ? err_set(e, E_INPUT, "the talkers ended after %u tokens: %s", res->n_ids, res->error.text) : OK;
}

static void watch_all(struct client *k, bool on)
{
    for (int i = 0; i < TALKERS; i++) {
        k[i].watched = on;
        if (on) k[i].n_gap = 0;
    }
}

/* Eight talk; then a minute of film comes in. Gaps between their tokens before, and while it marches. */
static status beside(struct client *k, struct client *film, struct loop *lp, double p99[2], double *prefill, uint32_t *n_gaps,
                     struct err *e)
{
    double *gap;
    uint32_t n;
    bool idle = false;
    for (int i = 0; i < TALKERS; i++) TRY(client_ask(&k[i], lp, e));
    TRY(talk_on(lp, k, 20, e));
    watch_all(k, true);
    TRY(talk_on(lp, k, ALONE, e));
    TRY(gaps(k, TALKERS, &gap, &n, e));
    p99[0] = quantile(gap, n, 0.99);
    free(gap);
    watch_all(k, true);
    TRY(client_ask(film, lp, e));
    while (!idle && film->first == 0) TRY(loop_step(lp, &idle, e));
    watch_all(k, false);
    TRY(gaps(k, TALKERS, &gap, n_gaps, e));
    p99[1] = quantile(gap, *n_gaps, 0.99);
    free(gap);
    *prefill = film->first - film->asked;
    return OK;
}

static status run_itl(struct bench *b, struct bench_result *r, struct err *e)
{
    struct client k[TALKERS] = { 0 }, film = { 0 };
    struct loop *lp = NULL;
    float *values = NULL;
    double p99[2], prefill;
    uint32_t n;
    status s;
    TRY(model_open(b, e));
    TRY_GOTO(s, bench_random((size_t)AV * S.d, &values, e), done);
    embeds = values;
    TRY_GOTO(s, loop_open(&lp, e), done);
    for (int i = 0; i < TALKERS; i++) TRY_GOTO(s, client_create(&k[i], b, NULL, false, 200, TALK, e), done);
    TRY_GOTO(s, client_create(&film, b, NULL, true, QUESTION, NEW, e), done);
    TRY_GOTO(s, beside(k, &film, lp, p99, &prefill, &n, e), done);
    r->value = p99[1] * 1e3;
    r->unit = "ms";
    r->floor = ITL_TARGET * 1e3;
    r->lower_is_better = true;
    snprintf(r->note, sizeof r->note, "p99 of the time between tokens of %d requests while %u tokens are read beside (%.1f s, "
             "%u gaps); %.1f ms without; the target is the scheduler's", TALKERS, eng_request_prompt(film.r)->n, prefill, n,
             p99[0] * 1e3);
done:
    for (int i = 0; i <= TALKERS; i++) {
        struct client *c = i < TALKERS ? &k[i] : &film;
        if (c->r && lp && !c->r->over) loop_end(lp, c->r, ENG_CANCELLED, e);
        client_destroy(c);
    }
    loop_destroy(engine, &lp);
    free(values);
    embeds = NULL;
    return s;
}

const struct bench_row bench_serve_rows[] = {
    { "serve_none", run_serve_none },
    { "serve_omnidrop30", run_serve_omnidrop30 },
    { "itl_p99_beside_prefill", run_itl },
    { NULL, NULL },
};
