/* tests/engine/test_asked.c - what a policy does not ask for is not computed, and what it does not need is not held. Method: the calls of
 * the device's table that only choices make are counted; where a plan is but a bound, the pages promised are looked at when the rows
 * enter layer 0. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/mem.h"
#include "engine/inside.h"
#include "tests/engine/give_selector.h"

#define FILM "tests/data/media/film.mp4"

#define OPS(X)                                                                                                     \
    X(query_scores, query_scores_args) X(select, select_args) X(choose, choose_args) X(cosine, cosine_args)        \
    X(means, means_args) X(nearest, nearest_args) X(density, density_args) X(farthest, farthest_args)              \
    X(merge, merge_args) X(pagerank, pagerank_args) X(segment_attention, segment_attention_args)
#define FAULTY_HERE true
#include "tests/engine/faulty_ops.h"

enum { N_CHOICE = OP_segment_attention };
static uint32_t n_received;        /* attentions that told what keys receive */

static status look(struct stream *st, const struct segment_attention_args *a, struct err *e)
{
    n_received += a->received != NULL;
    return faulty_segment_attention(st, a, e);
}

static struct engine *open_tiny(void)
{
    const struct engine_options o = { .n_threads = 2 };
    struct engine *en;
    struct err e;
    if (engine_open(&o, &en, &e) != OK) fail_msg("%s", e.text);
    return en;
}

struct ask { const char *policy, *with; };

static struct eng_request *ask_for(struct engine *en, const struct ask *a, struct chat *c, struct policy_params *p,
                                   const struct eng_trace *t)
{
    struct eng_request_options o = eng_request_defaults();
    struct eng_request *r;
    struct err e;
    chat_init(c);
    assert_int_equal(chat_add_message(c, CHAT_USER, &e), OK);
    assert_int_equal(chat_add_media(c, PART_VIDEO, FILM, &e), OK);
    assert_int_equal(chat_add_text(c, "What is it?", 11, &e), OK);
    if (prune_params_init(p, a->policy, engine_config(en)->text.layers, &e) != OK) fail_msg("%s", e.text);
    char with[100], *value;
    snprintf(with, sizeof with, "%s", a->with ? a->with : "");
    if ((value = strchr(with, '='))) {
        *value++ = 0;
        if (prune_params_set_text(p, with, value, &e) != OK) fail_msg("%s", e.text);
    }
    if (prune_params_finish(p, &e) != OK) fail_msg("%s", e.text);
    o.max_tokens = 2;
    o.policy = p;
    o.audio_in_video = true;
    o.max_pixels = 28 * 28 * 16;
    o.trace = t;
    if (eng_request_create(en, c, &o, &r, &e) != OK) fail_msg("%s", e.text);
    return r;
}

static void finish(struct engine *en, struct eng_request *r, struct chat *c)
{
    struct err e;
    assert_int_equal(eng_run(en, &r, 1, &e), OK);
    if (eng_request_result(r)->finish == ENG_FAILED) fail_msg("%s", eng_request_result(r)->error.text);
    eng_request_destroy(en, &r);
    chat_free(c);
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
}

/* Which ops a policy calls at all; attention received in the towers is one of them. */
#define BIT(op) (1u << OP_##op)
enum { RECEIVED = 1u << OP_segment_attention };

static void nobody_pays_for_others(void **state)
{
    (void)state;
    static const struct {
        struct ask ask;
        unsigned calls;
    } cases[] = {
        { { "none", NULL }, 0 },
        { { "random", NULL }, 0 },
        { { "uniform", NULL }, 0 },
        { { "random-layers", NULL }, 0 },
        { { "exit", "at=3" }, 0 },
        { { "ttm", NULL }, BIT(cosine) | BIT(select) },
        { { "saliency", NULL }, RECEIVED | BIT(select) },
        { { "step0", NULL }, RECEIVED | BIT(cosine) | BIT(select) },
        { { "fastv", NULL }, BIT(query_scores) | BIT(choose) },
        { { "omnidrop", "step0=false" }, BIT(query_scores) | BIT(choose) },
        { { "omnisift-lite", NULL }, RECEIVED | BIT(means) | BIT(cosine) | BIT(select) },
        { { "omnisift", NULL }, BIT(means) | BIT(cosine) | BIT(select) },
        { { "omnifocus", NULL }, BIT(means) | BIT(cosine) | BIT(select) },
        { { "aim", NULL }, BIT(nearest) | BIT(merge) | BIT(pagerank) | BIT(select) },
    };
    struct engine *en = open_tiny();
    give_selector(en);
    patch(en->ops, true);
    ((struct ops *)(uintptr_t)en->ops)->segment_attention = look;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct chat c;
        struct policy_params p;
        unsigned calls = 0;
        for (int op = 0; op < N_OPS; op++) atomic_store(&n_calls[op], 0);
        n_received = 0;
        struct eng_request *r = ask_for(en, &cases[i].ask, &c, &p, NULL);
        finish(en, r, &c);
        for (int op = 0; op < N_CHOICE; op++) calls |= (unsigned)(atomic_load(&n_calls[op]) > 0) << op;
        assert_true(atomic_load(&n_calls[OP_segment_attention]) > 0);
        if (n_received) calls |= RECEIVED;
        for (int op = 0; op <= N_CHOICE; op++)
            if ((calls ^ cases[i].calls) >> op & 1)
                fail_msg("%s %s %s", cases[i].ask.policy, calls >> op & 1 ? "calls" : "does not call", OP_NAME[op]);
    }
    patch(en->ops, false);
    engine_close(&en);
}

struct promise {
    struct engine *en;
    const struct eng_request *r;
    uint32_t bound[64], n_rows;    /* of the plan; that entered layer 0 */
    uint64_t free, exact, planned;
};

/* Rows enter layer 0: what is promised now, against what they and the plan ask for. */
static void at_entry(void *self, uint32_t l, const float *rows, const uint32_t *index, uint32_t n, uint32_t d)
{
    (void)rows, (void)index, (void)d;
    struct promise *x = self;
    const uint32_t L = decoder_shape(x->en->dec)->L;
    if (l != 0) return;
    uint32_t bound[64];
    x->n_rows += n;
    for (uint32_t i = 0; i < L; i++) bound[i] = x->bound[i] < x->n_rows ? x->bound[i] : x->n_rows;
    struct sched_request s = { .n_choices = 1, .n_new = x->r->n_new_max, .bound = bound, .n_rows = n };
    x->exact = sched_demand(x->en->pool, L, &s);
    s.bound = x->bound;
    x->planned = sched_demand(x->en->pool, L, &s);
    x->free = engine_pages_free(x->en);
}

static void bounds_are_given_back_at_once(void **state)
{
    (void)state;
    static const struct ask asks[] = { { "knee", NULL }, { "dash", NULL }, { "prumerge", NULL }, { "omnizip", "norm=published" },
                                       { "none", NULL }, { "omnidrop", NULL } };
    struct engine *en = open_tiny();
    uint64_t given_back = 0;
    for (size_t i = 0; i < sizeof asks / sizeof *asks; i++) {
        struct chat c;
        struct policy_params p;
        struct promise x = { .en = en };
        const struct eng_trace t = { .self = &x, .hidden = at_entry };
        struct eng_request *r = ask_for(en, &asks[i], &c, &p, &t);
        x.r = r;
        for (uint32_t l = 0; l < decoder_shape(en->dec)->L; l++) x.bound[l] = prune_plan_rows(eng_request_plan(r), l) + r->n_text;
        const bool exact = eng_request_plan(r)->exact;
        finish(en, r, &c);
        assert_true(x.n_rows > 0);
        if (x.free != engine_info(en)->n_pages - x.exact)
            fail_msg("%s: %llu pages are free, %llu of %u would do", asks[i].policy, (unsigned long long)x.free,
                     (unsigned long long)x.exact, engine_info(en)->n_pages);
        if (exact) assert_int_equal(x.exact, x.planned);
        given_back += x.planned - x.exact;
    }
    assert_true(given_back > 0);
    engine_close(&en);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(nobody_pays_for_others), cmocka_unit_test(bounds_are_given_back_at_once) };
    return cmocka_run_group_tests_name("asked", tests, NULL, NULL);
}
