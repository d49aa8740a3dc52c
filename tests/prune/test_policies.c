/* Whole selections of every policy on prompts that break code: no audio, no film, one token, one step, equal
 * embeddings, pictures only. Method: keep is ascending, unique, AV and alive; counts are the plan's; two runs agree; and
 * the counts of temporal token merging as docs/pruning-methods.md 10 has them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
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

struct layout { uint32_t n_audio, steps, step_tokens, images; bool equal; };

struct world {
    struct prompt p;
    float *audio, *vision, *saliency;
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
            .media = { .kind = n_film ? TOKEN_VIDEO : TOKEN_AUDIO, .n_audio = y->n_audio, .t = y->steps }, .n_vision = n_film };
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
        p->items[p->n_items] = (struct prompt_item){ .media = { .kind = TOKEN_IMAGE, .t = 1 }, .n_vision = 4 };
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
    for (uint32_t i = 0; i < p->n_vision * D; i++) w->vision[i] = y->equal ? 1.0f : (float)rnd(1000) / 500 - 1;
    for (uint32_t i = 0; i < p->n_audio; i++) w->saliency[i] = y->equal ? 0.5f : (float)rnd(1000);
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
}

static void check_keep(const struct prune_selection *s, const uint32_t *alive, uint32_t n_alive)
{
    for (uint32_t i = 0, a = 0; i < s->n_keep; i++) {
        assert_true(i == 0 || s->keep[i] > s->keep[i - 1]);
        while (a < n_alive && alive[a] < s->keep[i]) a++;
        assert_true(a < n_alive && alive[a] == s->keep[i]);
    }
}

/* All stages once; out gets the survivors of each. */
static void run_once(const struct policy_params *params, struct world *w, uint32_t *out, uint32_t *n_out)
{
    struct policy_plan plan;
    struct policy_run *run;
    struct prune_selection s = { 0 };
    struct err e;
    assert_int_equal(prune_plan(params, &w->p, L, &plan, &e), OK);
    assert_int_equal(prune_begin(params, &plan, &w->p, &run, &e), OK);
    const struct prune_embed_view ev = { .st = st, .d = D, .audio = w->audio, .vision = w->vision,
                                         .audio_saliency = w->saliency };
    assert_int_equal(prune_embed(run, &ev, &s, &e), OK);
    check_keep(&s, w->p.av, w->p.n_av);
    assert_int_equal(s.n_keep, plan.alive[0]);
    assert_true(w->p.n_av == 0 || s.n_keep > 0);
    uint32_t n = s.n_keep, at = 0;
    uint32_t *alive = mem_must(n + 1, sizeof *alive);
    float *score = mem_must(n + 1, sizeof *score);
    memcpy(alive, s.keep, n * sizeof *alive);
    rng_state = 7;
    for (uint32_t l = 0; l < L; l++) {
        for (uint32_t i = 0; i < n; i++) out[at++] = alive[i];
        if (!prune_selects_at(run, l)) {
            assert_int_equal(plan.alive[l + 1], n);
            continue;
        }
        for (uint32_t i = 0; i < n; i++) score[i] = (float)rnd(20);    /* many ties */
        const struct prune_layer_view lv = { .st = st, .n_alive = n, .alive = alive, .score = score };
        assert_int_equal(prune_layer(run, l, &lv, &s, &e), OK);
        check_keep(&s, alive, n);
        assert_int_equal(s.n_keep, plan.alive[l + 1]);
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

static void test_every_policy_on_every_layout(void **state)
{
    (void)state;
    static const struct layout layouts[] = {
        { 0, 0, 0, 0, false }, { 1, 0, 0, 0, false }, { 50, 0, 0, 0, false }, { 125, 5, 12, 0, false },
        { 0, 1, 12, 0, false }, { 0, 7, 36, 0, false }, { 0, 0, 0, 3, false }, { 30, 4, 144, 2, true },
        { 0, 8, 1, 1, true },   { 300, 12, 9, 1, false }, { 90000, 1, 4, 0, false } };
    for (const struct policy *const *pol = prune_list(); *pol; pol++)
        for (size_t y = 0; y < sizeof layouts / sizeof *layouts; y++) {
            struct policy_params p;
            struct world w;
            struct err e;
            uint32_t n1, n2;
            rng_state = 1000 + y;
            build(&w, &layouts[y]);
            assert_int_equal(prune_params_init(&p, (*pol)->name, L, &e), OK);
            uint32_t *a = mem_must((size_t)(w.p.n_av + 1) * L, sizeof *a), *b = mem_must((size_t)(w.p.n_av + 1) * L, sizeof *b);
            run_once(&p, &w, a, &n1);
            run_once(&p, &w, b, &n2);
            assert_int_equal(n1, n2);
            assert_memory_equal(a, b, n1 * sizeof *a);
            free(a);
            free(b);
            tear_down(&w);
        }
}

/* kappa .2, 144 tokens a step: 144, 28, 28, 28 per group; equal steps keep the first 28 places of each. */
static void test_merging_counts(void **state)
{
    (void)state;
    static const struct { uint32_t steps, want; } cases[] = { { 1, 144 }, { 2, 172 }, { 4, 228 }, { 7, 428 }, { 60, 3420 } };
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
                for (uint32_t j = 0; j < 28; j++) assert_int_equal(out[144 + (k - 1) * 28 + j], 2 + k * 144 + j);
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
                                        cmocka_unit_test(test_merging_counts),
                                        cmocka_unit_test(test_random_follows_its_seed) };
    return cmocka_run_group_tests(tests, open_stream, close_stream);
}
