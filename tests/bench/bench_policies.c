/* tests/bench/bench_policies.c - what the choice of a pruning method costs, as a share of the prefill that it saves: select_NAME_10k,
 * select_NAME_40k. A film with sound at the widths of Qwen2.5-Omni-7B: each second 25 audio tokens and a grid step of 118, in chunks
 * of 2 s, random embeddings and saliency, 32 rows of question. Measured: everything before layer 0, and of each layer its scores
 * (time a key of ops->query_scores, measured in the same row; aim's ops->pagerank over all rows alive) and its selection. Saved:
 * multiply-adds that the plan spares, at the machine's peak, so the share is an upper bound. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "prune/policy.h"
#include "tests/bench/bench.h"

enum { L = 28, HEADS = 28, KV_HEADS = 4, HEAD = 128, WIDTH = 3584, FF = 18944 };
enum { AUDIO = 25, STEP = 118, N_TEXT = 32, N_BLOCKS = 4, D_KEY = 80 };

/* What every method is shown. Matrices repeat `pool` from row to row, each row from another place: random enough, made at once. */
struct film {
    uint32_t seconds;
    struct prompt p;
    float *audio, *vision, *saliency, *vision_saliency, *blocks, *keys, *text, *score;
    float *q, *k, *importance;     /* of walks along attention: film_walks */
    void *walk_scratch;
};

static void film_fini(struct film *f)
{
    free(f->p.kind), free(f->p.chunk), free(f->p.item), free(f->p.row), free(f->p.av), free(f->p.items);
    free(f->audio), free(f->vision), free(f->saliency), free(f->vision_saliency), free(f->blocks), free(f->keys), free(f->text);
    free(f->score), free(f->q), free(f->k), free(f->importance), free(f->walk_scratch);
}

static status rows_of(const float *pool, size_t n_pool, uint32_t n, uint32_t d, float **out, struct err *e)
{
    TRY(mem_alloc(out, (size_t)n * d, sizeof **out, e));
    for (uint32_t i = 0; i < n; i++)
        memcpy(*out + (size_t)i * d, pool + (size_t)i * 7919 % (n_pool - d), d * sizeof **out);
    return OK;
}

static status film_init(struct film *f, uint32_t seconds, struct err *e)
{
    enum { POOL = 1 << 20 };
    struct prompt *p = &f->p;
    const uint32_t n = seconds * (AUDIO + STEP);
    float *pool = NULL;
    status s;
    *f = (struct film){ .seconds = seconds };
    p->n = n + N_TEXT;
    TRY_GOTO(s, mem_alloc(&p->kind, p->n, sizeof *p->kind, e), done);
    TRY_GOTO(s, mem_alloc(&p->chunk, p->n, sizeof *p->chunk, e), done);
    TRY_GOTO(s, mem_alloc(&p->item, p->n, sizeof *p->item, e), done);
    TRY_GOTO(s, mem_alloc(&p->row, p->n, sizeof *p->row, e), done);
    TRY_GOTO(s, mem_alloc(&p->av, n, sizeof *p->av, e), done);
    TRY_GOTO(s, mem_alloc(&p->items, 1, sizeof *p->items, e), done);
    p->n_items = 1;
    p->items[0] = (struct prompt_item){ .media = { .kind = TOKEN_VIDEO, .n_audio = seconds * AUDIO, .t = seconds },
                                        .n_vision = seconds * STEP };
    for (uint32_t c = 0; c < seconds; c += 2) {
        const uint32_t len = seconds - c < 2 ? 1 : 2;
        for (uint32_t i = 0; i < len * (STEP + AUDIO); i++) {
            const uint32_t at = p->n_av;
            const bool vision = i < len * STEP;
            p->kind[at] = vision ? TOKEN_VIDEO : TOKEN_AUDIO;
            p->row[at] = vision ? p->n_vision++ : p->n_audio++;
            p->chunk[at] = (int32_t)(c / 2);
            p->item[at] = 0;
            p->av[p->n_av++] = at;
        }
    }
    for (uint32_t i = n; i < p->n; i++) p->kind[i] = TOKEN_TEXT, p->chunk[i] = -1, p->item[i] = UINT16_MAX, p->row[i] = 0;
    p->max_chunk = (int32_t)((seconds - 1) / 2);
    TRY_GOTO(s, bench_random(POOL, &pool, e), done);
    TRY_GOTO(s, rows_of(pool, POOL, p->n_audio, WIDTH, &f->audio, e), done);
    TRY_GOTO(s, rows_of(pool, POOL, p->n_vision, WIDTH, &f->vision, e), done);
    TRY_GOTO(s, rows_of(pool, POOL, p->n_vision, D_KEY, &f->keys, e), done);
    TRY_GOTO(s, rows_of(pool, POOL, N_TEXT, WIDTH, &f->text, e), done);
    TRY_GOTO(s, bench_random(p->n_audio, &f->saliency, e), done);
    TRY_GOTO(s, bench_random(p->n_vision, &f->vision_saliency, e), done);
    TRY_GOTO(s, bench_random((size_t)N_BLOCKS * p->n_vision, &f->blocks, e), done);
    TRY_GOTO(s, bench_random(n, &f->score, e), done);
done:
    free(pool);
    return s;
}

/* Queries and keys of n rows. */
static status film_walks(struct film *f, struct bench *b, uint32_t n, struct err *e)
{
    enum { POOL = 1 << 18 };
    float *pool;
    TRY(bench_random(POOL, &pool, e));
    status s = rows_of(pool, POOL, n, HEADS * HEAD, &f->q, e);
    if (s == OK) s = rows_of(pool, POOL, n, KV_HEADS * HEAD, &f->k, e);
    if (s == OK) s = mem_alloc(&f->importance, n, sizeof *f->importance, e);
    if (s == OK) s = mem_alloc_aligned(&f->walk_scratch, b->st->ops->pagerank_scratch(b->st, HEADS, n), e);
    free(pool);
    return s;
}

static status walk(struct bench *b, const struct film *f, uint32_t n, struct err *e)
{
    return b->st->ops->pagerank(b->st, &(struct pagerank_args){ .q = f->q, .k = f->k, .ldq = HEADS * HEAD, .ldk = KV_HEADS * HEAD, .n = n,
                                                                .H = HEADS, .G = KV_HEADS, .D = HEAD, .iterations = 5, .scale = 0.88f,
                                                                .importance = f->importance, .scratch = f->walk_scratch }, e);
}

/* ---- what a plan saves ------------------------------------------------------------------------------------- */

/* Multiply-adds of a layer of n rows: its products, and causal attention. */
static double macs(double n)
{
    const double row = (double)WIDTH * (HEADS + 2 * KV_HEADS) * HEAD + (double)HEADS * HEAD * WIDTH + 3.0 * WIDTH * FF;
    return n * row + 2.0 * HEAD * HEADS * n * (n + 1) / 2;
}

static double saved(const struct policy_plan *plan)
{
    double sum = 0;
    for (uint32_t l = 0; l < L; l++) sum += macs(plan->n_orig + N_TEXT) - macs(plan->alive[l] + N_TEXT);
    return sum;
}

/* ---- one method -------------------------------------------------------------------------------------------- */

/* Its defaults; of those without, shares that fall to 0.1 from layer to layer, and a leave half way. */
static status params_of(struct policy_params *p, const char *name, struct err *e)
{
    double falling[L];
    for (int l = 0; l < L; l++) falling[l] = 1 - 0.9 * l / (L - 1);
    TRY(prune_params_init(p, name, L, e));
    if (strcmp(name, "exit") == 0) TRY(prune_params_set(p, "at", L / 2, e));
    if (strcmp(name, "table") == 0) TRY(prune_params_set_list(p, "rates", falling, L, e));
    if (strcmp(name, "omnifit") == 0) {
        TRY(prune_params_set_list(p, "rates_a", falling, L, e));
        TRY(prune_params_set_list(p, "rates_v", falling, L, e));
    }
    return prune_params_finish(p, e);
}

/* Seconds of all stages once, scores of query rows aside; *keys: keys that those would score, in all layers. */
static status choose(struct bench *b, const struct film *f, const struct policy_params *params, const struct policy_plan *plan,
                     double *seconds, double *keys, struct err *e)
{
    struct policy_run *run = NULL;
    struct prune_selection sel = { 0 };
    uint32_t *alive = NULL, n;
    const struct prune_embed_view v = { .st = b->st, .d = WIDTH, .audio = f->audio, .vision = f->vision, .audio_saliency = f->saliency,
                                        .vision_saliency = f->vision_saliency, .n_blocks = N_BLOCKS, .vision_blocks = f->blocks,
                                        .d_key = D_KEY, .vision_keys = f->keys, .n_text = N_TEXT, .text = f->text };
    status s;
    *keys = 0;
    TRY_GOTO(s, mem_alloc(&alive, f->p.n_av, sizeof *alive, e), done);
    const double began = clock_s();
    TRY_GOTO(s, prune_begin(params, plan, &f->p, &run, e), done);
    TRY_GOTO(s, prune_embed(run, &v, &sel, e), done);
    n = sel.n_keep;
    memcpy(alive, sel.keep, n * sizeof *alive);
    for (uint32_t l = 0; l < L; l++) {
        if (!prune_selects_at(run, l)) continue;
        const struct prune_layer_view lv = { .st = b->st, .n_alive = n, .alive = alive, .score = plan->scored[l] ? f->score : NULL };
        if (plan->needs & PRUNE_NEEDS_PAGERANK) TRY_GOTO(s, walk(b, f, n + N_TEXT, e), done);
        else if (plan->scored[l]) *keys += n + N_TEXT;
        TRY_GOTO(s, prune_layer(run, l, &lv, &sel, e), done);
        n = sel.n_keep;
        memcpy(alive, sel.keep, n * sizeof *alive);
    }
    *seconds = clock_s() - began;
done:
    free(alive);
    prune_selection_free(&sel);
    prune_end(&run);
    return s;
}

/* The median of up to 9 rounds, of 3 where they take long, of one that takes seconds. */
static status measure(struct bench *b, const char *name, uint32_t film_s, struct bench_result *r, struct err *e)
{
    enum { ROUNDS = 9, FEW = 3 };
    struct film f;
    struct policy_params params;
    struct policy_plan plan = { 0 };
    double took[ROUNDS], keys = 0, a_key = 0;
    int n = 0;
    status s;
    TRY_GOTO(s, film_init(&f, film_s, e), done);
    TRY_GOTO(s, params_of(&params, name, e), done);
    TRY_GOTO(s, prune_plan(&params, &f.p, L, &plan, e), done);
    if (plan.needs & PRUNE_NEEDS_PAGERANK) TRY_GOTO(s, film_walks(&f, b, plan.n_entry + N_TEXT, e), done);
    for (double sum = 0; n < ROUNDS && (sum < 1.0 || (n < FEW && sum < 4.0)); sum += took[n++])
        TRY_GOTO(s, choose(b, &f, &params, &plan, &took[n], &keys, e), done);
    if (keys > 0) TRY_GOTO(s, bench_scores(b, &a_key, e), done);
    const double choice = bench_median(took, n), scores = keys * a_key;
    const double peak = bench_peak(b) * 1e9, spared = 2 * saved(&plan) / peak;
    r->value = spared > 0 ? (choice + scores) / spared : 0;
    r->unit = "of saved";
    r->floor = 0.03;
    r->lower_is_better = true;
    snprintf(r->note, sizeof r->note, "%u AV tokens: choice %.1f ms, scores of %.0f keys %.1f ms; saves %.1f s at the peak", f.p.n_av,
             choice * 1e3, keys, scores * 1e3, spared);
done:
    prune_plan_free(&plan);
    film_fini(&f);
    return s;
}

#define METHODS(X)                                                                                                               \
    X(random, "random") X(uniform, "uniform") X(saliency, "saliency") X(step0, "step0") X(ttm, "ttm") X(omnidrop, "omnidrop")     \
    X(random_layers, "random-layers") X(omnisift_lite, "omnisift-lite") X(omnizip, "omnizip") X(dash, "dash")                     \
    X(omnifocus, "omnifocus") X(vtc_cls, "vtc-cls") X(prumerge, "prumerge") X(fastv, "fastv")               \
    X(pyramiddrop, "pyramiddrop") X(table, "table") X(seats, "seats") X(exit, "exit") X(knee, "knee")       \
    X(aim, "aim") X(trim_lc, "trim-lc") X(omnifit, "omnifit")
#define RUN_10K(id, name)                                                                                                        \
    static status run_10k_##id(struct bench *b, struct bench_result *r, struct err *e) { return measure(b, name, 70, r, e); }
#define RUN_40K(id, name)                                                                                                        \
    static status run_40k_##id(struct bench *b, struct bench_result *r, struct err *e) { return measure(b, name, 280, r, e); }
METHODS(RUN_10K) METHODS(RUN_40K)
#define ROW_10K(id, name) { "select_" name "_10k", run_10k_##id },
#define ROW_40K(id, name) { "select_" name "_40k", run_40k_##id },

const struct bench_row bench_policy_rows[] = { METHODS(ROW_10K) METHODS(ROW_40K) { NULL, NULL } };
