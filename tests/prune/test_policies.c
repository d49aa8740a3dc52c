/* tests/prune/test_policies.c - whole selections of every policy on prompts that break code: no audio, no film, one
 * token, one step, equal embeddings, pictures only, an hour, and random ones. Method: keep is ascending, unique, AV
 * and alive; counts are the plan's; two runs agree; what a plan does not ask for is not handed over; temporal token
 * merging counts as in docs/pruning-methods.md 10; memory fails everywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "base/mem.h"
#include "prune/policy.h"

#define L 9
#define D 16

static struct stream *st;
static uint64_t rng_state;

static uint32_t rnd(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

struct layout {
    uint32_t n_audio, steps, step_tokens, images;
    bool equal, zero; /* embeddings */
};

enum { N_TEXT = 3, N_BLOCKS = 4, D_KEY = 8, WIDTH = 16, HIDDEN = 8 };

struct world {
    struct prompt p;
    float *audio, *vision, *saliency, *vision_saliency;
    float *text, *blocks, *keys;
};

/* A selector for omnisift: every tensor is the start of one list of random numbers. */
static float trained[3 * WIDTH * WIDTH];
static const struct prune_tensor tensors[] = {
    { "v_proj.weight", trained, WIDTH *D },
    { "v_proj.bias", trained, WIDTH },
    { "a_proj.weight", trained, WIDTH *D },
    { "a_proj.bias", trained, WIDTH },
    { "v_norm.weight", trained, WIDTH },
    { "v_norm.bias", trained, WIDTH },
    { "a_norm.weight", trained, WIDTH },
    { "a_norm.bias", trained, WIDTH },
    { "post_attn_norm.weight", trained, WIDTH },
    { "post_attn_norm.bias", trained, WIDTH },
    { "cross_attn.in_proj_weight", trained, 3 * WIDTH *WIDTH },
    { "cross_attn.in_proj_bias", trained, 3 * WIDTH },
    { "cross_attn.out_proj.weight", trained, WIDTH *WIDTH },
    { "cross_attn.out_proj.bias", trained, WIDTH },
    { "score_head.0.weight", trained, HIDDEN *WIDTH },
    { "score_head.0.bias", trained, HIDDEN },
    { "score_head.2.weight", trained, HIDDEN },
    { "score_head.2.bias", trained, 1 },
};

/* text text [film with sound] [pictures] text: an item of its own each. */
static void build(struct world *w, const struct layout *y)
{
    struct prompt *p = &w->p;
    const uint32_t n_film = y->steps * y->step_tokens, n_pics = y->images * 4;
    const uint32_t n = 2 + y->n_audio + n_film + n_pics + 3;
    memset(w, 0, sizeof *w);
    p->n = n;
    p->kind = mem_must(n, 1);
    p->chunk = mem_must(n, sizeof *p->chunk);
    p->item = mem_must(n, sizeof *p->item);
    p->row = mem_must(n, sizeof *p->row);
    p->av = mem_must(n, sizeof *p->av);
    p->items = mem_must(2 + y->images, sizeof *p->items);
    for (uint32_t i = 0; i < n; i++) {
        p->chunk[i] = -1;
        p->item[i] = UINT16_MAX;
    }
    uint32_t at = 2;
    if (n_film || y->n_audio) {
        p->items[p->n_items] = (struct prompt_item){
            .media = { .kind = n_film ? TOKEN_VIDEO : TOKEN_AUDIO, .n_audio = y->n_audio, .t = y->steps },
            .n_vision = n_film
        };
        for (uint32_t i = 0; i < n_film + y->n_audio; i++, at++) {
            const bool vision = i < n_film;
            p->kind[at] = vision ? TOKEN_VIDEO : TOKEN_AUDIO;
            p->row[at] = vision ? p->n_vision++ : p->n_audio++;
            p->chunk[at] = (int32_t)(vision ? i / (2 * y->step_tokens) : (i - n_film) / 50);
            p->item[at] = (uint16_t)p->n_items;
            p->av[p->n_av++] = at;
        }
        p->n_items++;
    }
    for (uint32_t k = 0; k < y->images; k++) {
        p->items[p->n_items] =
            (struct prompt_item){ .media = { .kind = TOKEN_IMAGE, .t = 1 }, .n_vision = 4 };
        for (uint32_t i = 0; i < 4; i++, at++) {
            p->kind[at] = TOKEN_IMAGE;
            p->row[at] = p->n_vision++;
            p->chunk[at] = 100 + (int32_t)k;
            p->item[at] = (uint16_t)p->n_items;
            p->av[p->n_av++] = at;
        }
        p->n_items++;
    }
    for (uint32_t i = 0; i < n; i++)
        if (p->chunk[i] > p->max_chunk) p->max_chunk = p->chunk[i];
    w->audio = mem_must((size_t)p->n_audio * D, sizeof(float));
    w->vision = mem_must((size_t)p->n_vision * D, sizeof(float));
    w->saliency = mem_must(p->n_audio, sizeof(float));
    w->vision_saliency = mem_must(p->n_vision, sizeof(float));
    for (uint32_t i = 0; i < p->n_vision * D; i++)
        w->vision[i] = y->equal ? 1.0f : (float)rnd(1000) / 500 - 1;
    for (uint32_t i = 0; i < p->n_audio; i++) w->saliency[i] = y->equal ? 0.5f : (float)rnd(1000);
    for (uint32_t i = 0; i < p->n_vision; i++) w->vision_saliency[i] = y->equal ? 0.5f : (float)rnd(1000);
    w->text = mem_must(N_TEXT * D, sizeof(float));
    w->blocks = mem_must((size_t)N_BLOCKS * p->n_vision, sizeof(float));
    w->keys = mem_must((size_t)D_KEY * p->n_vision, sizeof(float));
    const uint64_t state = rng_state; /* what the older tests draw stays as it was */
    for (uint32_t i = 0; i < p->n_audio * D; i++) w->audio[i] = y->equal ? 1.0f : (float)rnd(1000) / 500 - 1;
    for (uint32_t i = 0; i < N_TEXT * D; i++) w->text[i] = (float)rnd(1000) / 500 - 1;
    for (uint32_t i = 0; i < N_BLOCKS * p->n_vision; i++) w->blocks[i] = y->equal ? 0.5f : (float)rnd(1000);
    for (uint32_t i = 0; i < D_KEY * p->n_vision; i++)
        w->keys[i] = y->equal ? 1.0f : (float)rnd(1000) / 500 - 1;
    for (uint32_t i = 0; i < 3 * WIDTH * WIDTH; i++) trained[i] = (float)rnd(1000) / 500 - 1;
    for (uint32_t i = 0; y->zero && i < p->n_audio * D; i++) w->audio[i] = 0;
    for (uint32_t i = 0; y->zero && i < p->n_vision * D; i++) w->vision[i] = 0;
    rng_state = state;
}

/* A policy with its defaults, and what it has none for. */
static void params_of(struct policy_params *p, const char *name)
{
    struct err e;
    double falling[L];
    for (int l = 0; l < L; l++) falling[l] = 1 - l / (double)L;
    assert_int_equal(prune_params_init(p, name, L, &e), OK);
    if (strcmp(name, "exit") == 0) assert_int_equal(prune_params_set(p, "at", 4, &e), OK);
    if (strcmp(name, "table") == 0) assert_int_equal(prune_params_set_list(p, "rates", falling, L, &e), OK);
    if (strcmp(name, "omnifit") == 0) {
        assert_int_equal(prune_params_set_list(p, "rates_a", falling, L, &e), OK);
        falling[0] = 0.9;
        assert_int_equal(prune_params_set_list(p, "rates_v", falling, L, &e), OK);
    }
    assert_int_equal(prune_params_finish(p, &e), OK);
}

static void tear_down(struct world *w)
{
    free(w->p.kind);
    free(w->p.chunk);
    free(w->p.item);
    free(w->p.row);
    free(w->p.av);
    free(w->p.items);
    free(w->audio);
    free(w->vision);
    free(w->saliency);
    free(w->vision_saliency);
    free(w->text);
    free(w->blocks);
    free(w->keys);
}

static void check_keep(const struct prune_selection *s, const uint32_t *alive, uint32_t n_alive)
{
    for (uint32_t i = 0, a = 0; i < s->n_keep; i++) {
        assert_true(i == 0 || s->keep[i] > s->keep[i - 1]);
        while (a < n_alive && alive[a] < s->keep[i]) a++;
        assert_true(a < n_alive && alive[a] == s->keep[i]);
    }
}

/* Everything, or only what `needs` names. */
static struct prune_embed_view view_of_needs(const struct world *w, uint32_t needs)
{
    struct prune_embed_view v = { .st = st, .d = D, .n_text = N_TEXT, .n_blocks = N_BLOCKS, .d_key = D_KEY };
    if (needs & PRUNE_NEEDS_EMBEDDINGS) v.audio = w->audio, v.vision = w->vision;
    if (needs & (PRUNE_NEEDS_AUDIO_SALIENCY | PRUNE_NEEDS_AUDIO_GLOBAL)) v.audio_saliency = w->saliency;
    if (needs & PRUNE_NEEDS_VISION_SALIENCY) v.vision_saliency = w->vision_saliency;
    if (needs & PRUNE_NEEDS_VISION_BLOCKS) v.vision_blocks = w->blocks;
    if (needs & PRUNE_NEEDS_VISION_KEYS) v.vision_keys = w->keys;
    if (needs & PRUNE_NEEDS_TEXT_EMBEDDINGS) v.text = w->text;
    if (needs & PRUNE_NEEDS_WEIGHTS) v.tensor = tensors, v.n_tensors = sizeof tensors / sizeof *tensors;
    return v;
}

static struct prune_embed_view view_of(const struct world *w)
{
    return view_of_needs(w, ~0u);
}

/* In an ascending list. */
static bool is_in(const uint32_t *list, uint32_t n, uint32_t x)
{
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t mid = low + (high - low) / 2;
        if (list[mid] < x)
            low = mid + 1;
        else
            high = mid;
    }
    return low < n && list[low] == x;
}

/* Into survivors in ascending order, from other AV tokens of the same tower, by finite weights. */
static void check_merges(const struct prune_selection *s, const struct prompt *p, bool allowed)
{
    const struct prune_merges *m = &s->merges;
    assert_true(m->n == 0 || allowed);
    for (uint32_t i = 0; i < m->n; i++) {
        assert_true(i == 0 || m->dst[i] > m->dst[i - 1]);
        assert_true(is_in(s->keep, s->n_keep, m->dst[i]) && isfinite(m->c0[i]));
        for (uint32_t k = m->start[i]; k < m->start[i + 1]; k++) {
            assert_true(m->src[k] != m->dst[i] && m->src[k] < p->n && isfinite(m->w[k]));
            assert_true(p->kind[m->src[k]] != TOKEN_TEXT);
            assert_true((p->kind[m->src[k]] == TOKEN_AUDIO) == (p->kind[m->dst[i]] == TOKEN_AUDIO));
        }
    }
}

/* What may decide in a policy: bits of enum prune_cause. */
static unsigned causes_of(const char *policy, bool layer)
{
    static const struct {
        const char *policy;
        unsigned embed, layer;
    } own[] = { { "random", 1u << PRUNE_BY_DRAW, 0 },
                { "random-layers", 1u << PRUNE_BY_DRAW, 1u << PRUNE_BY_DRAW },
                { "uniform", 1u << PRUNE_BY_PLACE, 0 },
                { "exit", 0, 1u << PRUNE_BY_LAYER },
                { "aim", 1u << PRUNE_BY_MERGE, 1u << PRUNE_BY_SCORE },
                { "trim-lc", 1u << PRUNE_BY_LIKENESS | 1u << PRUNE_BY_SCORE, 0 },
                { "seats", 1u << PRUNE_BY_LIKENESS, 1u << PRUNE_BY_SCORE | 1u << PRUNE_BY_LAYER } };
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strcmp(own[i].policy, policy) == 0) return layer ? own[i].layer : own[i].embed;
    return 1u << PRUNE_BY_SCORE;
}

/* Where reasons are wanted: of every dropped token one, ascending, of a kind that the policy has. */
static void check_why(const struct prune_selection *s, const uint32_t *alive, uint32_t n_alive, const char *policy, bool layer)
{
    const unsigned scored = 1u << PRUNE_BY_SCORE | 1u << PRUNE_BY_LIKENESS | 1u << PRUNE_BY_DRAW;
    assert_int_equal(s->n_why, s->want_why ? n_alive - s->n_keep : 0);
    for (uint32_t i = 0; i < s->n_why; i++) {
        const unsigned cause = 1u << s->why[i].cause;
        if (!(cause & causes_of(policy, layer))) fail_msg("%s: a token went by %s", policy, prune_cause_name(s->why[i].cause));
        if (!(cause & scored)) assert_true(isnan(s->why[i].score));
        if (cause == 1u << PRUNE_BY_DRAW) assert_true(s->why[i].score >= 0 && s->why[i].score <= 1);
    }
    for (uint32_t i = 0, k = 0, a = 0; i < s->n_why; i++) {
        const uint32_t x = s->why[i].index;
        assert_true(i == 0 || x > s->why[i - 1].index);
        while (a < n_alive && alive[a] < x) a++;
        assert_true(a < n_alive && alive[a] == x);
        while (k < s->n_keep && s->keep[k] < x) k++;
        assert_true(k == s->n_keep || s->keep[k] != x);
        assert_true(s->why[i].rank < n_alive);
    }
}

/* The promise of the plan about layer l. */
static void check_promise(const struct policy_plan *plan, uint32_t bound, uint32_t n)
{
    assert_true(n <= bound);
    if (plan->exact) assert_int_equal(n, bound);
}

static bool want_why;

/* All stages once; out gets the survivors of each. */
static void run_once(const struct policy_params *params, struct world *w, uint32_t *out, uint32_t *n_out)
{
    struct policy_plan plan;
    struct policy_run *run;
    struct prune_selection s = { .want_why = want_why };
    struct err e;
    assert_int_equal(prune_plan(params, &w->p, L, &plan, &e), OK);
    assert_int_equal(prune_begin(params, &plan, &w->p, &run, &e), OK);
    const struct prune_embed_view ev = view_of_needs(w, plan.needs);
    assert_int_equal(prune_embed(run, &ev, &s, &e), OK);
    check_keep(&s, w->p.av, w->p.n_av);
    check_promise(&plan, plan.n_entry, s.n_keep);
    check_merges(&s, &w->p, plan.needs & PRUNE_NEEDS_MERGES);
    check_why(&s, w->p.av, w->p.n_av, prune_params_name(params), false);
    assert_true(w->p.n_av == 0 || s.n_keep > 0);
    uint32_t n = s.n_keep, at = 0;
    uint32_t *alive = mem_must(n + 1, sizeof *alive);
    float *score = mem_must(n + 1, sizeof *score);
    memcpy(alive, s.keep, n * sizeof *alive);
    rng_state = 7;
    for (uint32_t l = 0; l < L; l++) {
        for (uint32_t i = 0; i < n; i++) out[at++] = alive[i];
        const uint32_t bound = plan.alive[plan.go ? l : l + 1];
        if (!prune_selects_at(run, l)) {
            check_promise(&plan, bound, n);
            continue;
        }
        for (uint32_t i = 0; i < n; i++) score[i] = (float)rnd(20); /* many ties */
        if (want_why && n) score[rnd(n)] = NAN;
        const struct prune_layer_view lv = {
            .st = st, .n_alive = n, .alive = alive, .score = plan.scored[l] ? score : NULL
        };
        assert_int_equal(prune_layer(run, l, &lv, &s, &e), OK);
        check_keep(&s, alive, n);
        check_promise(&plan, bound, s.n_keep);
        check_why(&s, alive, n, prune_params_name(params), true);
        assert_int_equal(s.merges.n, 0);
        n = s.n_keep;
        memcpy(alive, s.keep, n * sizeof *alive);
    }
    *n_out = at;
    free(alive);
    free(score);
    prune_selection_free(&s);
    prune_end(&run);
    prune_plan_free(&plan);
}

/* An hour of film in a moment: the choice takes a time that grows with the tokens. Not so where all sound meets all of its anchors
 * and the film (omnizip, dash), all tokens of a tower each other (omnifit) or what was chosen (trim-lc): an hour of those is planned
 * here and a minute is run. */
static bool is_quick(const struct policy *policy)
{
    static const char *const slow[] = { "omnizip", "dash", "omnifit", "trim-lc" };
    for (size_t i = 0; i < sizeof slow / sizeof *slow; i++)
        if (strcmp(policy->name, slow[i]) == 0) return false;
    return true;
}

static void test_every_policy_on_every_layout(void **state)
{
    (void)state;
    static const struct layout layouts[] = { { 0, 0, 0, 0, false },     { 1, 0, 0, 0, false },
                                             { 50, 0, 0, 0, false },    { 125, 5, 12, 0, false },
                                             { 0, 1, 12, 0, false },    { 0, 7, 36, 0, false },
                                             { 0, 0, 0, 3, false },     { 30, 4, 144, 2, true },
                                             { 0, 8, 1, 1, true },      { 300, 12, 9, 1, false },
                                             { 1, 1, 1, 0, false },     { 0, 0, 0, 9, true },
                                             { 90000, 1, 4, 0, false }, { 90000, 3600, 36, 0, false },
                                             { 0, 1, 1, 0, false },     { 0, 0, 0, 1, false },
                                             { 2, 2, 1, 1, true },      { 75, 3, 36, 1, false, true },
                                             { 0, 0, 0, 40, false },    { 1500, 60, 36, 1, false } };
    for (const struct policy *const *pol = prune_list(); *pol; pol++)
        for (size_t y = 0; y < sizeof layouts / sizeof *layouts; y++) {
            struct policy_params p;
            struct world w;
            struct err e;
            uint32_t n1, n2;
            rng_state = 1000 + y;
            build(&w, &layouts[y]);
            params_of(&p, (*pol)->name);
            if (prune_has(&p, "vision")) assert_int_equal(prune_params_set(&p, "vision", 0.4, &e), OK);
            if (w.p.n_av > 50000 && !is_quick(*pol)) {
                struct policy_plan plan;
                assert_int_equal(prune_plan(&p, &w.p, L, &plan, &e), OK);
                assert_true(plan.n_orig == w.p.n_av && plan.n_entry > 0 && plan.n_entry <= plan.n_orig);
                for (uint32_t l = 0; l < L; l++) assert_true(plan.alive[l + 1] <= plan.alive[l]);
                prune_plan_free(&plan);
                tear_down(&w);
                continue;
            }
            uint32_t *a = mem_must((size_t)(w.p.n_av + 1) * L, sizeof *a),
                     *b = mem_must((size_t)(w.p.n_av + 1) * L, sizeof *b);
            run_once(&p, &w, a, &n1);
            run_once(&p, &w, b, &n2);
            assert_int_equal(n1, n2);
            assert_memory_equal(a, b, n1 * sizeof *a);
            free(a);
            free(b);
            tear_down(&w);
        }
}

/* Every policy on random layouts: the promises of run_once, twice the same, with reasons and without. */
static void test_every_policy_on_random_layouts(void **state)
{
    (void)state;
    for (const struct policy *const *pol = prune_list(); *pol; pol++)
        for (uint64_t round = 0; round < 12; round++) {
            struct policy_params p;
            struct world w;
            uint32_t n1, n2;
            rng_state = 77 + round;
            const struct layout y = { rnd(3) ? rnd(160) : 0, rnd(3) ? rnd(9) : 0, 1 + rnd(30), rnd(3),
                                      rnd(4) == 0 };
            build(&w, &y);
            params_of(&p, (*pol)->name);
            uint32_t *a = mem_must((size_t)(w.p.n_av + 1) * L, sizeof *a),
                     *b = mem_must((size_t)(w.p.n_av + 1) * L, sizeof *b);
            want_why = round % 2;
            run_once(&p, &w, a, &n1);
            run_once(&p, &w, b, &n2);
            want_why = false;
            assert_int_equal(n1, n2);
            assert_memory_equal(a, b, n1 * sizeof *a);
            free(a);
            free(b);
            tear_down(&w);
        }
}

/* An engine that lacks something says what; one that has all takes all. */
static void test_what_an_engine_lacks(void **state)
{
    (void)state;
    static const struct {
        const char *policy, *says;
    } cases[] = { { "omnizip", "merging" }, { "pyramiddrop", "K and V" },       { "aim", "PageRank" },
                  { "vtc-cls", "blocks" },  { "omnifocus", "the user's text" }, { "omnisift", "weights" } };
    const struct prune_item item = { .kind = TOKEN_VIDEO, .n_audio = 100, .steps = 4, .step_tokens = 9 };
    const uint32_t some = PRUNE_NEEDS_AUDIO_SALIENCY | PRUNE_NEEDS_VISION_SALIENCY | PRUNE_NEEDS_EMBEDDINGS |
                          PRUNE_NEEDS_ROW_SCORES;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct policy_params p;
        struct policy_plan plan;
        struct err e;
        params_of(&p, cases[i].policy);
        assert_int_equal(prune_plan_shape(&p, &(struct prune_shape){ L, 1, &item }, &plan, &e), OK);
        assert_int_equal(prune_served(&p, &plan, ~0u, &e), OK);
        assert_int_equal(prune_served(&p, &plan, some, &e), E_ARG);
        if (strstr(e.text, cases[i].says) == NULL) fail_msg("%s: \"%s\"", cases[i].policy, e.text);
        prune_plan_free(&plan);
    }
}

/* The score of a dropped token and its rank among those it was compared with; NaN ranks last. */
static void test_reasons(void **state)
{
    (void)state;
    static const float score[] = { 0.4f, 0.1f, NAN, 0.3f, 0.1f };
    static const struct {
        const char *policy, *key;
        double value;
        uint32_t l, n, token[3], rank[3];
    } cases[] = { { "fastv", "K", 1, 0, 3, { 1, 2, 4 }, { 2, 4, 3 } },
                  { "omnidrop", "p_init", 0.2, 0, 1, { 2 }, { 4 } } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct world w;
        struct policy_params p;
        struct policy_plan plan;
        struct policy_run *run;
        struct prune_selection s = { .want_why = true };
        struct err e;
        build(&w, &(struct layout){ 5, 0, 0, 0, false });
        assert_int_equal(prune_params_init(&p, cases[k].policy, L, &e), OK);
        assert_int_equal(prune_params_set(&p, cases[k].key, cases[k].value, &e), OK);
        if (prune_has(&p, "step0")) assert_int_equal(prune_params_set(&p, "step0", 0, &e), OK);
        assert_int_equal(prune_plan(&p, &w.p, L, &plan, &e), OK);
        assert_int_equal(prune_begin(&p, &plan, &w.p, &run, &e), OK);
        const struct prune_layer_view v = { .st = st, .n_alive = 5, .alive = w.p.av, .score = score };
        assert_int_equal(prune_layer(run, cases[k].l, &v, &s, &e), OK);
        assert_int_equal(s.n_why, cases[k].n);
        for (uint32_t i = 0; i < s.n_why; i++) {
            const uint32_t t = cases[k].token[i];
            assert_int_equal(s.why[i].index, w.p.av[t]);
            assert_int_equal(s.why[i].rank, cases[k].rank[i]);
            assert_memory_equal(&s.why[i].score, &score[t], sizeof score[t]);
        }
        prune_selection_free(&s);
        prune_end(&run);
        prune_plan_free(&plan);
        tear_down(&w);
    }
}

/* Lists as text and as JSON; what does not fit is refused. */
static void test_lists(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = { { "1,x", "no number" },
                { "1;2", "no number" },
                { "-1", "from 0" },
                { "5,5", "ascending" },
                { "3,9", "below 9" } };
    struct policy_params p, under;
    struct err e;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(prune_params_init(&p, "pyramiddrop", L, &e), OK);
        status r = prune_params_set_text(&p, "at", bad[i].text, &e);
        if (r == OK) r = prune_params_finish(&p, &e);
        assert_int_equal(r, E_ARG);
        if (strstr(e.text, bad[i].says) == NULL) fail_msg("%s: \"%s\"", bad[i].text, e.text);
    }
    assert_int_equal(prune_params_init(&p, "pyramiddrop", L, &e), OK);
    assert_int_equal(prune_params_set_text(&p, "at", " 2, 5 7\n", &e), OK);
    json_t *o = prune_params_to_json(&p), *at = json_object_get(o, "at");
    assert_int_equal(json_array_size(at), 3);
    assert_true(json_number_value(json_array_get(at, 2)) == 7);
    json_decref(o);
    assert_int_equal(prune_params_init(&under, "pyramiddrop", L, &e), OK);
    prune_params_under(&under, &p);
    assert_true(under.list[0].n == 3 && under.list[0].v[1] == 5);
    o = json_pack("{s:s, s:[f, f]}", "name", "pyramiddrop", "at", 1.0, 2.0);
    assert_int_equal(prune_params_json(&p, o, L, &e), OK);
    assert_true(p.list[0].n == 2 && p.list[0].v[1] == 2);
    json_decref(o);
    o = json_pack("{s:s, s:[s]}", "name", "pyramiddrop", "at", "x");
    assert_int_equal(prune_params_json(&p, o, L, &e), E_ARG);
    json_decref(o);
    assert_int_equal(prune_params_init(&p, "exit", L, &e), OK);
    assert_int_equal(prune_params_finish(&p, &e), E_ARG); /* no default */
}

/* kappa .2, 144 tokens a step: 144, 28, 28, 28 per group; equal steps keep the first 28 places of each. */
static void test_merging_counts(void **state)
{
    (void)state;
    static const struct {
        uint32_t steps, want;
    } cases[] = { { 1, 144 }, { 2, 172 }, { 4, 228 }, { 7, 428 }, { 60, 3420 } };
    for (size_t i = 0; i < 5; i++) {
        struct world w;
        struct policy_params p;
        struct err e;
        uint32_t n;
        const struct layout y = { 0, cases[i].steps, 144, 0, true };
        build(&w, &y);
        assert_int_equal(prune_params_init(&p, "omnidrop", L, &e), OK);
        assert_int_equal(prune_params_set(&p, "p_final", 0, &e), OK);
        uint32_t *out = mem_must((size_t)(w.p.n_av + 1) * L, sizeof *out);
        run_once(&p, &w, out, &n);
        assert_int_equal(n, cases[i].want * L);
        if (cases[i].steps == 4)
            for (uint32_t k = 1; k < 4; k++)
                for (uint32_t j = 0; j < 28; j++)
                    assert_int_equal(out[144 + (k - 1) * 28 + j], 2 + k * 144 + j);
        free(out);
        tear_down(&w);
    }
}

static void test_random_follows_its_seed(void **state)
{
    (void)state;
    struct world w;
    struct policy_params p;
    struct err e;
    uint32_t n;
    const struct layout y = { 200, 0, 0, 0, false };
    build(&w, &y);
    uint32_t *a = mem_must(201 * L, sizeof *a), *b = mem_must(201 * L, sizeof *b);
    assert_int_equal(prune_params_init(&p, "random", L, &e), OK);
    assert_int_equal(prune_params_set(&p, "retention", 0.25, &e), OK);
    run_once(&p, &w, a, &n);
    assert_int_equal(n, 50 * L);
    assert_int_equal(prune_params_set(&p, "seed", 1, &e), OK);
    run_once(&p, &w, b, &n);
    assert_memory_not_equal(a, b, 50 * sizeof *a);
    free(a);
    free(b);
    tear_down(&w);
}

/* The survivors of step 0 alone, in s. */
static status embed_with(const struct policy_params *p, struct world *w, const struct prune_embed_view *v,
                         struct prune_selection *s, struct err *e)
{
    struct policy_plan plan;
    struct policy_run *run = NULL;
    status r;
    TRY(prune_plan(p, &w->p, L, &plan, e));
    r = prune_begin(p, &plan, &w->p, &run, e);
    if (r == OK) r = prune_embed(run, v, s, e);
    prune_end(&run);
    prune_plan_free(&plan);
    return r;
}

/* Token i of n in prompt order stays where floor((i+1) k / n) is above floor(i k / n); one at least. */
static void test_uniform_is_evenly_spaced(void **state)
{
    (void)state;
    static const struct {
        struct layout y;
        double retention;
        uint32_t n, keep[5]; /* places among the AV tokens */
    } cases[] = {
        { { 10, 0, 0, 0, false }, 0.3, 3, { 3, 6, 9 } }, { { 4, 2, 3, 0, false }, 0.5, 5, { 1, 3, 5, 7, 9 } },
        { { 7, 0, 0, 0, false }, 0.43, 3, { 2, 4, 6 } }, { { 0, 0, 0, 1, false }, 1, 4, { 0, 1, 2, 3 } },
        { { 5, 0, 0, 0, false }, 0.1, 1, { 4 } },        { { 5, 0, 0, 0, false }, 0, 1, { 4 } }
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world w;
        struct policy_params p;
        struct err e;
        struct prune_selection s = { 0 };
        build(&w, &cases[i].y);
        const struct prune_embed_view v = view_of_needs(&w, 0);
        assert_int_equal(prune_params_init(&p, "uniform", L, &e), OK);
        assert_int_equal(prune_params_set(&p, "retention", cases[i].retention, &e), OK);
        assert_int_equal(embed_with(&p, &w, &v, &s, &e), OK);
        assert_int_equal(s.n_keep, cases[i].n);
        for (uint32_t k = 0; k < s.n_keep; k++) assert_int_equal(s.keep[k], w.p.av[cases[i].keep[k]]);
        prune_selection_free(&s);
        tear_down(&w);
    }
}

static void count_kinds(const struct prompt *p, const uint32_t *index, uint32_t n, uint32_t count[4])
{
    memset(count, 0, 4 * sizeof *count);
    for (uint32_t i = 0; i < n; i++) count[p->kind[index[i]]]++;
}

/* random-layers and uniform on random layouts with random parameters. The first has OmniDrop's plan, and of each kind as
 * many tokens enter layer 0 as OmniDrop's own choice leaves; the second has floor(R n), no two gaps apart by more than 1. */
static void test_random_layouts(void **state)
{
    (void)state;
    uint64_t seed = 1; /* run_once starts the generator anew */
    uint32_t n_pruned = 0;
    for (int round = 0; round < 400; round++) {
        struct world w;
        struct policy_params p, od;
        struct policy_plan plan, od_plan;
        struct err e;
        struct prune_selection s = { 0 };
        uint32_t n1, n2, got[4], want[4];
        rng_state = seed;
        const struct layout y = { rnd(3) ? rnd(200) : rnd(2), rnd(3) ? rnd(14) : rnd(2), 1 + rnd(40),
                                  rnd(2) ? rnd(5) : 0, rnd(4) == 0 };
        build(&w, &y);
        const double kappa = rnd(11) / 10.0, audio = rnd(11) / 10.0, p_final = rnd(11) / 10.0,
                     R = rnd(101) / 100.0;
        const uint32_t step0 = rnd(4) != 0, draw = rnd(3);
        const bool film_breaks = y.steps > 1 && rnd(5) == 0;
        seed = rng_state;
        if (film_breaks && w.p.n_vision) w.p.items[0].media.t = 5; /* not always a divisor */
        uint32_t *a = mem_must((size_t)(w.p.n_av + 1) * L, sizeof *a),
                 *b = mem_must((size_t)(w.p.n_av + 1) * L, sizeof *b);

        assert_int_equal(prune_params_init(&p, "random-layers", L, &e), OK);
        assert_int_equal(prune_params_init(&od, "omnidrop", L, &e), OK);
        for (int k = 0; k < 2; k++) {
            struct policy_params *q = k ? &od : &p;
            assert_int_equal(prune_params_set(q, "kappa", kappa, &e), OK);
            assert_int_equal(prune_params_set(q, "audio", audio, &e), OK);
            assert_int_equal(prune_params_set(q, "p_final", p_final, &e), OK);
            assert_int_equal(prune_params_set(q, "step0", step0, &e), OK);
            assert_int_equal(prune_params_finish(q, &e), OK);
        }
        assert_int_equal(prune_params_set(&p, "seed", draw, &e), OK);
        assert_int_equal(prune_plan(&p, &w.p, L, &plan, &e), OK);
        assert_int_equal(prune_plan(&od, &w.p, L, &od_plan, &e), OK);
        assert_memory_equal(plan.alive, od_plan.alive, (L + 1) * sizeof *plan.alive);
        assert_memory_equal(plan.selects, od_plan.selects, L * sizeof *plan.selects);
        assert_true(plan.exact && plan.needs == 0);
        prune_plan_free(&plan);
        prune_plan_free(&od_plan);
        run_once(&p, &w, a, &n1);
        run_once(&p, &w, b, &n2);
        assert_int_equal(n1, n2);
        assert_memory_equal(a, b, n1 * sizeof *a);
        const struct prune_embed_view v = view_of(&w);
        assert_int_equal(embed_with(&od, &w, &v, &s, &e), OK);
        count_kinds(&w.p, s.keep, s.n_keep, want);
        count_kinds(&w.p, a, s.n_keep, got);
        assert_memory_equal(got, want, sizeof got);
        n_pruned += s.n_keep < w.p.n_av;
        prune_selection_free(&s);

        assert_int_equal(prune_params_init(&p, "uniform", L, &e), OK);
        assert_int_equal(prune_params_set(&p, "retention", R, &e), OK);
        run_once(&p, &w, a, &n1);
        run_once(&p, &w, b, &n2);
        assert_int_equal(n1, n2);
        assert_memory_equal(a, b, n1 * sizeof *a);
        const uint32_t k = n1 / L, n = w.p.n_av;
        assert_int_equal(k, n == 0 ? 0 : fmax(1, floor(R * n + 1e-9)));
        for (uint32_t i = 1; i < k; i++) { /* AV tokens lie together here, so prompt indices count them */
            const uint32_t gap = a[i] - a[i - 1];
            assert_true(gap == n / k || gap == (n + k - 1) / k);
        }
        free(a);
        free(b);
        tear_down(&w);
    }
    assert_true(n_pruned > 100);
}

/* Who survives random-layers: every token as often as any other, and other ones by another seed. 400 seeds of 60 tokens of
 * which m live to the end; five standard deviations of a binomial count. */
static void test_random_layers_is_fair(void **state)
{
    (void)state;
    enum { N = 60, SEEDS = 400 };
    struct world w;
    struct policy_params p;
    struct err e;
    uint32_t lived[N] = { 0 }, entered[N] = { 0 }, n, n_last = 0;
    build(&w, &(struct layout){ N, 0, 0, 0, false });
    uint32_t *a = mem_must((N + 1) * L, sizeof *a);
    assert_int_equal(prune_params_init(&p, "random-layers", L, &e), OK);
    assert_int_equal(prune_params_set(&p, "audio", 0.5, &e), OK);
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        struct policy_plan plan;
        assert_int_equal(prune_params_set(&p, "seed", seed, &e), OK);
        assert_int_equal(prune_plan(&p, &w.p, L, &plan, &e), OK);
        n_last = plan.alive[L - 1];
        assert_int_equal(plan.alive[0], N / 2);
        prune_plan_free(&plan);
        run_once(&p, &w, a, &n);
        for (uint32_t i = 0; i < N / 2; i++) entered[a[i] - w.p.av[0]]++;
        for (uint32_t i = n - n_last; i < n; i++) lived[a[i] - w.p.av[0]]++;
    }
    assert_true(n_last > 5 && n_last < 25);
    for (uint32_t i = 0; i < N; i++) {
        const double q = (double)n_last / N;
        assert_true(fabs(entered[i] - SEEDS * 0.5) < 5 * sqrt(SEEDS * 0.25));
        assert_true(fabs(lived[i] - SEEDS * q) < 5 * sqrt(SEEDS * q * (1 - q)));
    }
    free(a);
    tear_down(&w);
}

enum how { TDS_OFF, TDS_PRINTED, TDS_MAX };

/* OmniDrop's Algorithm 1 by its own words: drop[i] of the n alive. Lowest first is: value, then the higher index. TDS_MAX:
 * with scores over the highest. */
static void algorithm_1(const float *score, const int32_t *chunk, uint32_t n, uint32_t k, enum how tds,
                        int32_t max_chunk, bool *drop)
{
    double *value = mem_must(n, sizeof *value);
    bool *cand = mem_must(n, sizeof *cand);
    uint32_t best = 0, n_cand = tds ? (2 * k < n ? 2 * k : n) : n;
    for (uint32_t i = 0; i < n; i++) {
        value[i] = score[i];
        drop[i] = false;
        if (score[i] > score[best]) best = i;
    }
    for (uint32_t round = 0; round < n_cand; round++) {
        uint32_t low = UINT32_MAX;
        for (uint32_t i = 0; i < n; i++)
            if (!cand[i] && (low == UINT32_MAX || value[i] <= value[low])) low = i;
        cand[low] = true;
    }
    for (uint32_t i = 0; tds && i < n; i++)
        if (cand[i])
            value[i] = (tds == TDS_MAX && score[best] > 0 ? value[i] / score[best] : value[i]) +
                       0.2 * ((double)abs(chunk[best] - chunk[i]) / (max_chunk > 1 ? max_chunk : 1));
    for (uint32_t round = 0; round < k; round++) {
        uint32_t low = UINT32_MAX;
        for (uint32_t i = 0; i < n; i++)
            if (cand[i] && !drop[i] && (low == UINT32_MAX || value[i] <= value[low])) low = i;
        drop[low] = true;
    }
    free(value);
    free(cand);
}

/* What omnidrop hands to select: its own k, the chunks of those alive, diversity as told from the start layer on. */
static void drops_by_the_rule(const char *word, const char *key, double at, enum how tds)
{
    struct world w;
    struct policy_params p;
    struct policy_plan plan;
    struct policy_run *run;
    struct err e;
    struct prune_selection s = { 0 };
    rng_state = 5;
    build(&w, &(struct layout){ 200, 9, 7, 2, false });
    const struct prune_embed_view v = view_of(&w);
    assert_int_equal(prune_params_init(&p, "omnidrop", L, &e), OK);
    assert_int_equal(prune_params_set(&p, "p_init", 0.1, &e), OK);
    if (key) assert_int_equal(prune_params_set(&p, key, at, &e), OK);
    if (word) assert_int_equal(prune_params_set_text(&p, "tds", word, &e), OK);
    assert_int_equal(prune_plan(&p, &w.p, L, &plan, &e), OK);
    assert_int_equal(prune_begin(&p, &plan, &w.p, &run, &e), OK);
    assert_int_equal(prune_embed(run, &v, &s, &e), OK);
    uint32_t *alive = mem_must(w.p.n_av, sizeof *alive), n_layers = 0;
    const uint32_t start = (uint32_t)prune_get(&p, "tds_start_layer");
    int32_t *chunk = mem_must(w.p.n_av, sizeof *chunk);
    bool *drop = mem_must(w.p.n_av, sizeof *drop);
    float *score = mem_must(w.p.n_av, sizeof *score);
    for (uint32_t l = 0; l < L; l++) {
        if (!prune_selects_at(run, l)) continue;
        const uint32_t n = s.n_keep;
        for (uint32_t i = 0; i < n; i++) {
            alive[i] = s.keep[i];
            chunk[i] = w.p.chunk[alive[i]];
            score[i] = (float)rnd(64) / 256;
        }
        algorithm_1(score, chunk, n, n - plan.alive[l + 1], l >= start ? tds : TDS_OFF, w.p.max_chunk, drop);
        const struct prune_layer_view lv = { .st = st, .n_alive = n, .alive = alive, .score = score };
        assert_int_equal(prune_layer(run, l, &lv, &s, &e), OK);
        for (uint32_t i = 0, k = 0; i < n; i++)
            if (!drop[i]) assert_int_equal(s.keep[k++], alive[i]);
        n_layers++;
    }
    assert_int_equal(n_layers, L - 1);
    free(alive);
    free(chunk);
    free(drop);
    free(score);
    prune_selection_free(&s);
    prune_end(&run);
    prune_plan_free(&plan);
    tear_down(&w);
}

static void test_omnidrop_drops_by_the_rule(void **state)
{
    (void)state;
    drops_by_the_rule("printed", "tds_start_layer", 3, TDS_PRINTED);
    drops_by_the_rule("max", "tds_start_layer", 3, TDS_MAX);
    drops_by_the_rule("off", "tds_start_layer", 3, TDS_OFF);
    drops_by_the_rule("printed", NULL, 0, TDS_PRINTED);
    drops_by_the_rule(NULL, "tds_start_layer", 3, TDS_PRINTED);    /* who names what the score takes wants it */
    drops_by_the_rule(NULL, "lambda_div", 0.2, TDS_PRINTED);
    drops_by_the_rule(NULL, NULL, 0, TDS_OFF);
}

/* Each kind gives its share, and all of them floor(R n). */
static void test_random_takes_of_each_kind(void **state)
{
    (void)state;
    struct world w;
    struct policy_params p;
    struct err e;
    struct prune_selection s = { 0 };
    build(&w, &(struct layout){ 101, 5, 11, 0, false });
    const struct prune_embed_view v = view_of(&w);
    assert_int_equal(prune_params_init(&p, "random", L, &e), OK);
    assert_int_equal(prune_params_set(&p, "retention", 0.3, &e), OK);
    assert_int_equal(embed_with(&p, &w, &v, &s, &e), OK);
    uint32_t n_audio = 0;
    for (uint32_t i = 0; i < s.n_keep; i++) n_audio += w.p.kind[s.keep[i]] == TOKEN_AUDIO;
    assert_int_equal(n_audio, 30);
    assert_int_equal(s.n_keep, 46); /* floor(.3 * 156) */
    prune_selection_free(&s);
    tear_down(&w);
}

/* What would leave nothing keeps the most salient audio token, NaN last; without audio the first token. */
static void test_nothing_is_emptied(void **state)
{
    (void)state;
    struct world w;
    struct policy_params p;
    struct err e;
    struct prune_selection s = { 0 };
    build(&w, &(struct layout){ 5, 0, 0, 2, false });
    memcpy(w.saliency, (const float[]){ NAN, 1, 3, 3, 2 }, 5 * sizeof(float));
    struct prune_embed_view v = view_of(&w);
    assert_int_equal(prune_params_init(&p, "saliency", L, &e), OK);
    assert_int_equal(prune_params_set(&p, "audio", 0, &e), OK);
    assert_int_equal(prune_params_set(&p, "vision", 0, &e), OK);
    assert_int_equal(embed_with(&p, &w, &v, &s, &e), OK);
    assert_int_equal(s.n_keep, 1);
    assert_int_equal(s.keep[0], 2 + 2);
    v.audio_saliency = NULL; /* asked for, and not there */
    assert_int_equal(embed_with(&p, &w, &v, &s, &e), E_ARG);
    assert_non_null(strstr(e.text, "saliency of the audio"));
    v = view_of(&w);
    v.vision_saliency = NULL;
    assert_int_equal(embed_with(&p, &w, &v, &s, &e), E_ARG);
    assert_non_null(strstr(e.text, "saliency of the vision"));
    tear_down(&w);
    build(&w, &(struct layout){ 0, 0, 0, 2, false });
    v = view_of(&w);
    assert_int_equal(embed_with(&p, &w, &v, &s, &e), OK);
    assert_int_equal(s.n_keep, 1);
    assert_int_equal(s.keep[0], 2);
    prune_selection_free(&s);
    tear_down(&w);
}

/* The fourth step is compared with the third (dycoke) or with the first (anchor). Method: it equals the third but for
 * place 7 and the first but for place 9; of 10 places 2 live, so the changed one must and place 0 fills up. */
static void test_reference_of_the_fourth_step(void **state)
{
    (void)state;
    for (int anchor = 0; anchor < 2; anchor++) {
        struct world w;
        struct policy_params p;
        struct err e;
        struct prune_selection s = { 0 };
        build(&w, &(struct layout){ 0, 4, 10, 0, false });
        memcpy(w.vision + 30 * D, w.vision, 10 * D * sizeof(float));
        w.vision[39 * D] += 1;
        memcpy(w.vision + 20 * D, w.vision + 30 * D, 10 * D * sizeof(float));
        w.vision[27 * D] += 1;
        const struct prune_embed_view v = view_of(&w);
        assert_int_equal(prune_params_init(&p, "ttm", L, &e), OK);
        assert_int_equal(prune_params_set_text(&p, "ref", anchor ? "anchor" : "dycoke", &e), OK);
        assert_int_equal(embed_with(&p, &w, &v, &s, &e), OK);
        assert_int_equal(s.n_keep, 16);
        assert_int_equal(s.keep[14], 2 + 30);
        assert_int_equal(s.keep[15], 2 + 30 + (anchor ? 9 : 7));
        prune_selection_free(&s);
        tear_down(&w);
    }
}

/* A film whose tokens do not divide into its steps cannot merge over time and stays whole; the plan says so. */
static void test_uneven_film(void **state)
{
    (void)state;
    struct world w;
    struct policy_params p;
    struct err e;
    struct prune_selection s = { 0 };
    build(&w, &(struct layout){ 10, 5, 4, 0, false });
    w.p.items[0].media.t = 3;
    const struct prune_embed_view v = view_of(&w);
    assert_int_equal(prune_params_init(&p, "step0", L, &e), OK);
    assert_int_equal(embed_with(&p, &w, &v, &s, &e), OK);
    assert_int_equal(s.n_keep, 7 + 20);
    prune_selection_free(&s);
    tear_down(&w);
}

/* Parameters from JSON: names, aliases, words, kinds of value, and what excludes what. */
static void test_parameters_from_json(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = { { "{\"name\":\"ttm\",\"ref\":\"both\"}", "dycoke or anchor" },
                { "{\"name\":\"ttm\",\"ref\":1}", "a string" },
                { "{\"name\":\"ttm\",\"retain\":0.2}", "0.25" },
                { "{\"name\":\"ttm\",\"retain\":0.4,\"kappa\":0.2}", "exclude" },
                { "{\"name\":\"none\",\"p_final\":0.2}", "has none" },
                { "{\"name\":\"omnidrop\",\"step0\":1}", "true or false" },
                { "{\"name\":\"omnidrop\",\"beta\":\"20\"}", "a number" },
                { "{\"name\":\"omnidrop\",\"kapa\":1}", "kappa" },
                { "{\"name\":\"omnidrop\",\"retention\":0.3,\"p_final\":0.2}", "exclude" },
                { "{\"name\":\"omnidrop\",\"tds\":\"on\"}", "printed or max or off" },
                { "{\"name\":\"omnidrop\",\"query\":0}", "a string" },
                { "{\"name\":\"omnidrop\",\"query\":\"first\"}", "text or after or last" },
                { "{\"name\":\"random-layers\",\"query\":\"text\"}", "no parameter" },
                { "{\"name\":\"random-layers\",\"retention\":0.3,\"p_final\":0.2}", "exclude" },
                { "{\"name\":\"random-layers\",\"p_init\":0.5}", "above p_final" },
                { "{\"name\":\"uniform\",\"seed\":1}", "retention" },
                { "{}", "name" },
                { "{\"name\":\"omnidrop\",\"tds_start_layer\":10}", "9 layers" } };
    struct policy_params p;
    struct err e;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *o = json_loads(bad[i].text, 0, NULL);
        assert_int_equal(prune_params_json(&p, o, L, &e), E_ARG);
        if (strstr(e.text, bad[i].says) == NULL)
            fail_msg("%s: \"%s\" lacks \"%s\"", bad[i].text, e.text, bad[i].says);
        json_decref(o);
    }
    json_t *o =
        json_pack("{s:s, s:b, s:s, s:f}", "name", "omnidrop", "intra", 0, "ref", "anchor", "retention", 0.8);
    assert_int_equal(prune_params_json(&p, o, L, &e), OK);
    json_decref(o);
    assert_true(prune_get(&p, "step0") == 0 && prune_get(&p, "ref") == 1);
    o = prune_params_to_json(&p);
    assert_string_equal(json_string_value(json_object_get(o, "ref")), "anchor");
    assert_true(json_is_false(json_object_get(o, "step0")));
    assert_string_equal(json_string_value(json_object_get(o, "query")), "text");
    assert_string_equal(json_string_value(json_object_get(o, "tds")), "off");
    assert_null(json_object_get(o, "p_final")); /* the plan's to say: */
    json_decref(o);
    struct policy_plan plan;
    const struct prune_item item = { .kind = TOKEN_AUDIO, .n_audio = 1000 };
    assert_int_equal(prune_plan_shape(&p, &(struct prune_shape){ L, 1, &item }, &plan, &e), OK);
    o = prune_plan_to_json(&p, &plan);
    assert_true(json_real_value(json_object_get(o, "p_final")) == plan.p_final && plan.p_final > 0);
    json_decref(o);
    assert_true(plan.query == QUERY_TEXT);
    prune_plan_free(&plan);
    static const char *const words[] = { "text", "after", "last" };
    for (int q = QUERY_TEXT; q <= QUERY_LAST; q++) {
        o = json_pack("{s:s, s:s}", "policy", "omnidrop", "query", words[q]);
        assert_int_equal(prune_params_json(&p, o, L, &e), OK);
        json_decref(o);
        assert_int_equal(prune_plan_shape(&p, &(struct prune_shape){ L, 1, &item }, &plan, &e), OK);
        assert_int_equal(plan.query, q);
        prune_plan_free(&plan);
    }
}

/* Out of memory at every possible place: the right error and nothing leaks (ASan). Method: fail the 1st, 2nd, ...
 * allocation of a whole run until none fails. */
static void test_out_of_memory(void **state)
{
    (void)state;
    for (const struct policy *const *pol = prune_list(); *pol; pol++) {
        struct world w;
        struct policy_params p;
        struct err e;
        build(&w, &(struct layout){ 60, 8, 9, 1, false });
        const struct prune_embed_view v = view_of(&w);
        uint32_t *alive = mem_must(w.p.n_av, sizeof *alive);
        params_of(&p, (*pol)->name);
        bool failed = true;
        for (int n = 1; failed; n++) {
            struct policy_plan plan = { 0 };
            struct policy_run *run = NULL;
            struct prune_selection s = { 0 };
            mem_fail_after(n);
            status r = prune_plan(&p, &w.p, L, &plan, &e);
            if (r == OK) r = prune_begin(&p, &plan, &w.p, &run, &e);
            if (r == OK) r = prune_embed(run, &v, &s, &e);
            for (uint32_t l = 0; l < L && r == OK; l++) {
                if (!prune_selects_at(run, l)) continue;
                const uint32_t n_alive = s.n_keep;
                memcpy(alive, s.keep, n_alive * sizeof *alive);
                r = prune_layer(run, l,
                                &(struct prune_layer_view){
                                    .st = st, .n_alive = n_alive, .alive = alive, .score = w.vision },
                                &s, &e);
            }
            failed = mem_failed();
            mem_fail_after(0);
            assert_int_equal(r, failed ? E_NOMEM : OK);
            prune_selection_free(&s);
            prune_end(&run);
            prune_plan_free(&plan);
        }
        free(alive);
        tear_down(&w);
    }
}

static int open_stream(void **state)
{
    (void)state;
    struct err e;
    const struct stream_options o = { .device = "cpu", .n_threads = 2 };
    return stream_open(&o, &st, &e) == OK ? 0 : -1;
}

static int close_stream(void **state)
{
    (void)state;
    st->ops->close(&st);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_every_policy_on_every_layout),
                                        cmocka_unit_test(test_every_policy_on_random_layouts),
                                        cmocka_unit_test(test_what_an_engine_lacks),
                                        cmocka_unit_test(test_lists),
                                        cmocka_unit_test(test_reasons),
                                        cmocka_unit_test(test_merging_counts),
                                        cmocka_unit_test(test_random_follows_its_seed),
                                        cmocka_unit_test(test_uniform_is_evenly_spaced),
                                        cmocka_unit_test(test_random_layouts),
                                        cmocka_unit_test(test_random_layers_is_fair),
                                        cmocka_unit_test(test_omnidrop_drops_by_the_rule),
                                        cmocka_unit_test(test_random_takes_of_each_kind),
                                        cmocka_unit_test(test_nothing_is_emptied),
                                        cmocka_unit_test(test_reference_of_the_fourth_step),
                                        cmocka_unit_test(test_uneven_film),
                                        cmocka_unit_test(test_parameters_from_json),
                                        cmocka_unit_test(test_out_of_memory) };
    return cmocka_run_group_tests(tests, open_stream, close_stream);
}
