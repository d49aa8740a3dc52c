/* Tensor parallelism of the decoder, ranks being threads. Goal: on 2, 3 and 4 ranks a request has the survivors and the
 * greedy tokens that it has alone and logits within rounding of it; what fails on one rank, in the opening or in any op, is
 * the leader's error with the rank's number and nothing hangs; ranks that compute other numbers are found where it begins.
 * Method: the bundled model and small random checkpoints, with everything compared over ranks after each layer; ops of one
 * rank are made to fail one by one; a rank is made to die at each of its first meetings, and at some later ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "engine/inside.h"
#include "tests/engine/give_selector.h"
#include "tests/engine/ranks.h"

#define MEDIA "tests/goldens/like7b-shared"

/* ---- requests --------------------------------------------------------------------------------------------------- */

struct ask { const char *media; enum chat_part_kind kind; const char *text, *policy; bool trim, sound; const char *key, *value; };
static const struct ask ASKS[] = {
    { NULL, PART_TEXT, "What comes after four?", "none", false, false, NULL, NULL },
    { "media/talk.mov", PART_VIDEO, "Which letter comes first?", "omnidrop", false, true, NULL, NULL },
    { "media/talk.mov", PART_VIDEO, "Which letter comes last?", "omnidrop", true, true, NULL, NULL },
    { "media/speech.flac", PART_AUDIO, "Say it again, please.", "omnidrop", false, false, NULL, NULL },
    { "media/shapes.png", PART_IMAGE, "What is this?", "none", false, false, NULL, NULL },
    { "media/talk.mov", PART_VIDEO, "Which letter comes first?", "exit", false, true, "at", "2" },
    { "media/talk.mov", PART_VIDEO, "Which letter comes next?", "pyramiddrop", false, true, "at", "0,2" },
    { "media/talk.mov", PART_VIDEO, "How many letters are there?", "seats", false, true, "drops", "1,2" },
    { "media/talk.mov", PART_VIDEO, "Which letter comes last?", "omnifocus", false, true, NULL, NULL },
    { "media/talk.mov", PART_VIDEO, "Is it loud?", "aim", false, true, "l1", "1" },
    { "media/talk.mov", PART_VIDEO, "Is it quiet?", "omnisift", false, true, NULL, NULL },
};
enum { N_ASKS = sizeof ASKS / sizeof *ASKS, N_NEW = 8 };

struct answer {
    status failed;
    char error[1024];
    float *logits;
    uint32_t V, n_ids;
    int32_t ids[N_NEW];
    uint32_t n_layers, n_alive[64], hash;
};

static void keep_logits(void *self, const float *logits, uint32_t V)
{
    struct answer *a = self;
    a->V = V;
    a->logits = mem_must(V, sizeof(float));
    memcpy(a->logits, logits, V * sizeof(float));
}

static void answers_free(struct answer *a)
{
    for (int i = 0; i < N_ASKS; i++) free(a[i].logits);
}

static void take(const struct eng_result *r, struct answer *a)
{
    if (r->finish == ENG_FAILED) {
        a->failed = r->error.code;
        snprintf(a->error, sizeof a->error, "%s", r->error.text);
        return;
    }
    a->n_ids = r->n_ids;
    memcpy(a->ids, r->ids, r->n_ids * sizeof *a->ids);
    a->n_layers = r->n_layers;
    for (uint32_t l = 0; l <= r->n_layers; l++) {
        a->n_alive[l] = r->alive[l][1] + r->alive[l][2] + r->alive[l][3];
        for (uint32_t k = 0; k < a->n_alive[l]; k++) a->hash = a->hash * 31 + r->survivors[l][k];
    }
}

/* The first n asks together. */
static status run(struct engine *en, uint32_t n, struct answer *out, struct err *e)
{
    struct eng_request *reqs[N_ASKS];
    struct chat chat[N_ASKS];
    struct policy_params policy[N_ASKS];
    struct eng_trace trace[N_ASKS];
    memset(out, 0, N_ASKS * sizeof *out);
    if (en->selector.n_tensors == 0) give_selector(en);
    for (uint32_t i = 0; i < n; i++) {
        const struct ask *a = &ASKS[i];
        struct eng_request_options o = eng_request_defaults();
        chat_init(&chat[i]);
        assert_int_equal(chat_add_message(&chat[i], CHAT_USER, e), OK);
        if (a->media) assert_int_equal(chat_add_media(&chat[i], a->kind, a->media, e), OK);
        assert_int_equal(chat_add_text(&chat[i], a->text, strlen(a->text), e), OK);
        assert_int_equal(prune_params_init(&policy[i], a->policy, engine_config(en)->text.layers, e), OK);
        if (strcmp(a->policy, "omnidrop") == 0) assert_int_equal(prune_params_set(&policy[i], "p_final", 0.5, e), OK);
        if (a->trim) assert_int_equal(prune_params_set(&policy[i], "trim", 1, e), OK);
        if (a->key) assert_int_equal(prune_params_set_text(&policy[i], a->key, a->value, e), OK);
        assert_int_equal(prune_params_finish(&policy[i], e), OK);
        trace[i] = (struct eng_trace){ .self = &out[i], .logits = keep_logits };
        o.media_root = MEDIA;
        o.max_pixels = 31360;
        o.min_pixels = 3136;
        o.audio_in_video = a->sound;
        o.policy = &policy[i];
        o.max_tokens = N_NEW;
        o.ignore_eos = true;
        o.trace = &trace[i];
        if (eng_request_create(en, &chat[i], &o, &reqs[i], e) != OK) fail_msg("ask %u: %s", i, e->text);
    }
    const status st = eng_run(en, reqs, n, e);
    for (uint32_t i = 0; i < n; i++) {
        take(eng_request_result(reqs[i]), &out[i]);
        eng_request_destroy(en, &reqs[i]);
        chat_free(&chat[i]);
    }
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
    return st;
}

static double distance(const struct answer *a, const struct answer *b)
{
    double diff = 0, norm = 0;
    for (uint32_t i = 0; i < a->V; i++) {
        diff += pow((double)a->logits[i] - (double)b->logits[i], 2);
        norm += pow((double)b->logits[i], 2);
    }
    return sqrt(diff / norm);
}

static void must_be_alike(const char *what, const struct answer *a, const struct answer *want, uint32_t n, double *worst)
{
    for (uint32_t i = 0; i < n; i++) {
        if (a[i].failed) fail_msg("%s, ask %u: %s", what, i, a[i].error);
        if (a[i].hash != want[i].hash) fail_msg("%s, ask %u: other survivors", what, i);
        assert_memory_equal(a[i].n_alive, want[i].n_alive, sizeof a[i].n_alive);
        assert_int_equal(a[i].V, want[i].V);
        const double d = distance(&a[i], &want[i]);
        if (!(d < 1e-4)) fail_msg("%s, ask %u: logits are %g away", what, i, d);
        if (d > *worst) *worst = d;
        assert_int_equal(a[i].n_ids, want[i].n_ids);
        assert_memory_equal(a[i].ids, want[i].ids, a[i].n_ids * sizeof *a[i].ids);
    }
}

/* ---- the same answers ------------------------------------------------------------------------------------------- */

/* All asks on n ranks as they are alone. */
static void same_answers(const char *dir, const uint32_t *sizes, bool textbook)
{
    const struct engine_options o = { .model_dir = dir, .dtype = "f32", .n_threads = 1, .check_ranks = true,
                                      .textbook_order = textbook };
    struct answer want[N_ASKS], got[N_ASKS];
    struct engine *en;
    struct err e;
    if (engine_open(&o, &en, &e) != OK) fail_msg("%s", e.text);
    const uint64_t whole = engine_rank(en, 0)->weight_bytes;
    assert_int_equal(run(en, N_ASKS, want, &e), OK);
    engine_close(&en);
    for (; *sizes; sizes++) {
        struct ranks r;
        char what[300];
        double worst = 0;
        snprintf(what, sizeof what, "%s on %u ranks%s", dir ? dir : "bundled", *sizes, textbook ? ", textbook order" : "");
        if (ranks_open(&r, *sizes, &o, NULL, &e) != OK) fail_msg("%s: %s", what, e.text);
        assert_int_equal(engine_info(r.en)->n_ranks, *sizes);
        uint64_t sum = 0, most = 0;
        for (uint32_t i = 0; i < *sizes; i++) {
            const uint64_t w = engine_rank(r.en, i)->weight_bytes;
            sum += w;
            most = w > most ? w : most;
            assert_true(engine_rank(r.en, i)->pages_fit >= engine_info(r.en)->n_pages);
            assert_true(engine_rank(r.en, i)->resident_bytes > 0);
        }
        assert_true(sum >= whole && most < whole);
        if (run(r.en, N_ASKS, got, &e) != OK) fail_msg("%s: %s", what, e.text);
        must_be_alike(what, got, want, N_ASKS, &worst);
        ranks_close(&r);
        for (uint32_t i = 1; i < *sizes; i++) assert_int_equal(r.worker[i].st, OK);
        print_message("%s: logits at most %.2g away; a rank has %.2f of the weights\n", what, worst, (double)most / (double)whole);
        answers_free(got);
    }
    answers_free(want);
}

static void test_same_answers(void **state)
{
    (void)state;
    same_answers(NULL, (const uint32_t[]){ 2, 4, 6, 0 }, false);                                       /* 6 and 2 heads */
    same_answers("tests/goldens/like7b-shared/checkpoint", (const uint32_t[]){ 2, 4, 0 }, false);      /* 14 and 2; 557 words */
    same_answers("tests/goldens/odd-shared/checkpoint", (const uint32_t[]){ 2, 3, 0 }, false);         /* 3 and 1; tied */
    same_answers("tests/goldens/like3b/checkpoint", (const uint32_t[]){ 4, 0 }, false);                /* 16 and 2 */
}

static void test_textbook(void **state)
{
    (void)state;
    same_answers("tests/goldens/like7b-shared/checkpoint", (const uint32_t[]){ 2, 4, 0 }, true);
}

/* ---- towers ----------------------------------------------------------------------------------------------------- */

struct towers { float *audio, *vision, *saliency; uint32_t n_audio, n_vision, d; };

static void keep_towers(void *self, const float *audio, uint32_t n_audio, const float *vision, uint32_t n_vision, uint32_t d,
                        const float *saliency)
{
    struct towers *t = self;
    *t = (struct towers){ .audio = mem_must((size_t)n_audio * d, 4), .vision = mem_must((size_t)n_vision * d, 4),
                          .saliency = mem_must(n_audio, 4), .n_audio = n_audio, .n_vision = n_vision, .d = d };
    memcpy(t->audio, audio, (size_t)n_audio * d * 4);
    memcpy(t->vision, vision, (size_t)n_vision * d * 4);
    assert_non_null(saliency);
    memcpy(t->saliency, saliency, n_audio * 4);
}

/* A sound of three spans, the last one short, and a film of five grid steps, as features. */
static void run_towers(struct engine *en, struct towers *out)
{
    enum { FRAMES = 7001, T = 5, H = 4, W = 6 };
    static float mel[128 * FRAMES], patches[T * H * W * 1176];
    uint32_t seed = 3;
    for (size_t i = 0; i < sizeof mel / 4; i++) mel[i] = (float)(int32_t)(seed = seed * 1664525u + 1013904223u) * 0x1p-31f;
    for (size_t i = 0; i < sizeof patches / 4; i++) patches[i] = (float)(int32_t)(seed = seed * 1664525u + 1013904223u) * 0x1p-31f;
    const struct eng_features f[2] = { { .mel = mel, .n_frames = FRAMES }, { .patches = patches, .t = T, .h = H, .w = W } };
    const struct eng_given given = { .features = f, .n_features = 2 };
    const struct eng_trace trace = { .self = out, .towers = keep_towers };
    struct eng_request_options o = eng_request_defaults();
    struct policy_params p;
    struct eng_request *r;
    struct chat chat;
    struct err e;
    chat_init(&chat);
    assert_int_equal(chat_add_message(&chat, CHAT_USER, &e), OK);
    assert_int_equal(chat_add_media(&chat, PART_AUDIO, "given", &e), OK);
    assert_int_equal(chat_add_media(&chat, PART_VIDEO, "given", &e), OK);
    assert_int_equal(chat_add_text(&chat, "What?", 5, &e), OK);
    assert_int_equal(prune_params_init(&p, "saliency", engine_config(en)->text.layers, &e), OK);
    assert_int_equal(prune_params_finish(&p, &e), OK);
    o.policy = &p;
    o.max_tokens = 1;
    o.trace = &trace;
    if (eng_request_create_given(en, &chat, &o, &given, &r, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(eng_run(en, &r, 1, &e), OK);
    if (eng_request_result(r)->finish == ENG_FAILED) fail_msg("%s", eng_request_result(r)->error.text);
    eng_request_destroy(en, &r);
    chat_free(&chat);
}

static void towers_free(struct towers *t) { free(t->audio), free(t->vision), free(t->saliency); }

/* Embeddings and saliency have the same bits however they were dealt out. */
static void test_towers(void **state)
{
    (void)state;
    const struct engine_options o = { .model_dir = "tests/goldens/odd-shared/checkpoint", .n_threads = 1 };
    struct towers want, got;
    struct engine *en;
    struct err e;
    if (engine_open(&o, &en, &e) != OK) fail_msg("%s", e.text);
    run_towers(en, &want);
    engine_close(&en);
    assert_true(want.n_audio == 1750 && want.n_vision == 30);
    for (uint32_t n = 2; n <= 3; n++) {
        struct ranks r;
        if (ranks_open(&r, n, &o, NULL, &e) != OK) fail_msg("%s", e.text);
        run_towers(r.en, &got);
        assert_true(got.n_audio == want.n_audio && got.n_vision == want.n_vision && got.d == want.d);
        assert_memory_equal(got.audio, want.audio, (size_t)want.n_audio * want.d * 4);
        assert_memory_equal(got.vision, want.vision, (size_t)want.n_vision * want.d * 4);
        assert_memory_equal(got.saliency, want.saliency, want.n_audio * 4);
        towers_free(&got);
        ranks_close(&r);
    }
    towers_free(&want);
}

/* ---- messages --------------------------------------------------------------------------------------------------- */

static struct team_counts tasks_of(struct engine *en, uint32_t n_new)
{
    const struct team_counts before = team_read_counts(en->team);
    struct eng_request_options o = eng_request_defaults();
    struct eng_request *r;
    struct chat chat;
    struct err e;
    chat_init(&chat);
    assert_int_equal(chat_add_message(&chat, CHAT_USER, &e), OK);
    assert_int_equal(chat_add_text(&chat, "Go on.", 6, &e), OK);
    o.max_tokens = n_new;
    o.ignore_eos = true;
    if (eng_request_create(en, &chat, &o, &r, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(eng_run(en, &r, 1, &e), OK);
    assert_int_equal(eng_request_result(r)->n_ids, n_new);
    eng_request_destroy(en, &r);
    chat_free(&chat);
    const struct team_counts after = team_read_counts(en->team);
    return (struct team_counts){ after.tasks - before.tasks, after.bytes - before.bytes };
}

/* A token is two tasks, the step and its logits; page lists that were sent are not sent again, however long they are. */
static void test_messages(void **state)
{
    (void)state;
    const struct engine_options o = { .model_dir = "tests/goldens/odd-shared/checkpoint", .n_threads = 1 };
    struct ranks r;
    struct err e;
    if (ranks_open(&r, 2, &o, NULL, &e) != OK) fail_msg("%s", e.text);
    const uint32_t L = engine_config(r.en)->text.layers;
    tasks_of(r.en, 2);                             /* buffers are made */
    const struct team_counts a = tasks_of(r.en, 2), b = tasks_of(r.en, 802);
    const double each = (double)(b.bytes - a.bytes) / 800;
    print_message("%.0f bytes a token of %u layers\n", each, L);
    assert_int_equal(b.tasks - a.tasks, 2 * 800);
    assert_true(each < 2 * 160 + 4 * (2 + 2.1 * L));   /* two heads, id and position, lengths of each layer, a page in 16 */
    ranks_close(&r);
}

/* ---- openings that fail ----------------------------------------------------------------------------------------- */

static void refused(uint32_t n, const struct engine_options *o, const struct engine_options *others, status code, const char *leader,
                    const char *worker)
{
    struct ranks r;
    struct err e;
    assert_int_equal(ranks_open(&r, n, o, others, &e), code);
    if (strstr(e.text, leader) == NULL) fail_msg("\"%s\" does not say \"%s\"", e.text, leader);
    ranks_close(&r);
    for (uint32_t i = 1; i < n; i++) {
        assert_int_equal(r.worker[i].st, code);
        if (strstr(r.worker[i].e.text, worker) == NULL) fail_msg("\"%s\" does not say \"%s\"", r.worker[i].e.text, worker);
    }
}

static void test_refused(void **state)
{
    (void)state;
    const struct engine_options odd = { .model_dir = "tests/goldens/odd-shared/checkpoint", .n_threads = 1 };
    refused(4, &odd, NULL, E_ARG, "can be cut into 1, 2, 3", "can be cut into 1, 2, 3");
    struct engine_options o = { .model_dir = "tests/no-such-folder", .n_threads = 1 };
    refused(2, &o, NULL, E_MODEL, "no-such-folder", "no-such-folder");
    const struct engine_options others = { .isa = "abacus" };
    refused(3, &odd, &others, E_MODEL, "rank 1 (here)", "abacus");
    o = odd;
    o.kv_bytes = 1;
    refused(2, &o, NULL, E_ARG, "--kv-bytes", "--kv-bytes");
    o.kv_bytes = 0;
    o.max_model_len = 1u << 30;
    refused(2, &o, NULL, E_ARG, "max-model-len", "max-model-len");
    o.max_model_len = 0;
    o.dtype = "int3";
    refused(2, &o, NULL, E_ARG, "int3", "rank 0");
}

/* ---- ops that fail on one rank ---------------------------------------------------------------------------------- */

#define OPS(X)                                                                                                     \
    X(embed, embed_args) X(norm, norm_args) X(linear, linear_args) X(rope, rope_args) X(kv_write, kv_write_args)   \
    X(attention, attention_args) X(attention_decode, attention_args) X(query_scores, query_scores_args)            \
    X(gather, gather_args) X(scatter, scatter_args) X(kv_compact, kv_compact_args)                                 \
    X(segment_attention, segment_attention_args)

static atomic_int who;             /* the rank whose calls may fail */
#define FAULTY_HERE ((int)ranks_me == atomic_load(&who))
#include "tests/engine/faulty_ops.h"

/* Want of memory in any op of a rank ends the requests that ran with that rank's text, and the next ones are as ever. */
static void faults_of(struct engine *en, int rank, const struct answer *want)
{
    struct answer got[N_ASKS];
    struct err e;
    double worst = 0;
    uint32_t n_failed = 0, n_runs = 0;
    char name[32];
    snprintf(name, sizeof name, "rank %d", rank);
    atomic_store(&which, -1);
    atomic_store(&who, rank);
    for (int op = 0; op < N_OPS; op++) atomic_store(&n_calls[op], 0);
    assert_int_equal(run(en, 3, got, &e), OK);
    answers_free(got);
    int calls[N_OPS];
    for (int op = 0; op < N_OPS; op++) calls[op] = atomic_load(&n_calls[op]);
    for (int op = 0; op < N_OPS; op++) {
        if (op < OP_upload && calls[op] == 0) fail_msg("%s is not called", OP_NAME[op]);
        const int at[] = { 1, calls[op] / 2, calls[op] };
        for (int i = 0; i < 3; i++) {
            if (at[i] < 1 || (i > 0 && at[i] == at[i - 1])) continue;
            atomic_store(&code, E_NOMEM);
            atomic_store(&countdown, at[i]);
            atomic_store(&which, op);
            assert_int_equal(run(en, 3, got, &e), OK);
            const bool hit = atomic_load(&countdown) <= 0;
            atomic_store(&which, -1);
            uint32_t failed = 0;
            for (uint32_t k = 0; k < 3; k++) {
                if (got[k].failed == OK) continue;
                failed++;
                assert_int_equal(got[k].failed, E_NOMEM);
                if (strstr(got[k].error, OP_NAME[op]) == NULL || (rank > 0 && strstr(got[k].error, name) == NULL))
                    fail_msg("%s of rank %d: \"%s\"", OP_NAME[op], rank, got[k].error);
            }
            if (hit && failed == 0) fail_msg("call %d of %s failed on rank %d and nobody was told", at[i], OP_NAME[op], rank);
            n_failed += failed;
            n_runs++;
            answers_free(got);
        }
    }
    assert_int_equal(run(en, 3, got, &e), OK);
    must_be_alike("after the faults", got, want, 3, &worst);
    answers_free(got);
    print_message("rank %d: %u runs with a fault, %u requests failed\n", rank, n_runs, n_failed);
    assert_true(n_failed >= n_runs);
}

static void test_faults(void **state)
{
    (void)state;
    const struct engine_options o = { .model_dir = "tests/goldens/like7b-shared/checkpoint", .n_threads = 1 };
    struct answer want[N_ASKS];
    struct ranks r;
    struct err e;
    if (ranks_open(&r, 3 - 1, &o, NULL, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(run(r.en, 3, want, &e), OK);
    const struct ops *table = r.en->ops;
    patch(table, true);
    faults_of(r.en, 1, want);
    faults_of(r.en, 0, want);
    /* A device that failed is the end of all. */
    struct answer got[N_ASKS];
    atomic_store(&who, 1);
    atomic_store(&code, E_DEVICE);
    atomic_store(&countdown, 40);
    atomic_store(&which, OP_linear);
    assert_int_equal(run(r.en, 3, got, &e), E_DEVICE);
    assert_non_null(strstr(e.text, "rank 1 (here): the op linear"));
    for (int i = 0; i < 3; i++) assert_int_equal(got[i].failed, E_DEVICE);
    patch(table, false);
    answers_free(got);
    answers_free(want);
    ranks_close(&r);
    assert_int_equal(r.worker[1].st, OK);
}

/* ---- ranks that compute other numbers, ranks that die ----------------------------------------------------------- */

static void test_check(void **state)
{
    (void)state;
    struct engine_options o = { .model_dir = "tests/goldens/like7b-shared/checkpoint", .n_threads = 1, .check_ranks = true };
    /* The second sum of a layer: what the first one got wrong would reach the others as a part of the second. */
    for (uint32_t at = 2; at < 40; at += 10) {
        struct ranks r;
        struct err e;
        struct answer got[N_ASKS];
        if (ranks_open(&r, 2, &o, NULL, &e) != OK) fail_msg("%s", e.text);
        comm_threads_corrupt(r.comm[0], 1, at);
        assert_int_equal(run(r.en, 2, got, &e), E_DEVICE);
        if (strstr(e.text, "rank 1 (here) has other residual rows than rank 0 after layer ") == NULL) fail_msg("%s", e.text);
        answers_free(got);
        ranks_close(&r);
    }
}

static void test_deaths(void **state)
{
    (void)state;
    const struct engine_options o = { .model_dir = "tests/goldens/odd-shared/checkpoint", .n_threads = 1 };
    uint32_t opened = 0, ran = 0;
    for (uint32_t dead = 0; dead < 3; dead += 2)
        for (uint32_t at = 1; at < 600; at = at < 16 ? at + 1 : at * 2) {
            struct ranks r = { .n = 3 };
            struct err e = { 0 };
            struct answer got[N_ASKS] = { 0 };
            comm_threads_open(3, r.comm);      /* before any thread, so that the count is that of the rank's own calls */
            comm_threads_die(r.comm[0], dead, at);
            status st = ranks_open_on(&r, &o, NULL, &e);
            if (st == OK) {
                opened++;
                st = run(r.en, 2, got, &e);
                if (st == OK) ran++;
            }
            if (st != OK) {
                assert_int_equal(st, E_DEVICE);
                if (strstr(e.text, dead ? "rank 2" : "rank 0") == NULL) fail_msg("call %u of rank %u: \"%s\"", at, dead, e.text);
            }
            answers_free(got);
            ranks_close(&r);
            for (uint32_t i = 1; i < 3 && st != OK; i++) assert_int_equal(r.worker[i].st, E_DEVICE);
        }
    print_message("%u opened, %u of them ran to the end\n", opened, ran);
    assert_true(opened > 0 && ran < opened);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_answers), cmocka_unit_test(test_textbook), cmocka_unit_test(test_refused), cmocka_unit_test(test_towers),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_faults),       cmocka_unit_test(test_check),    cmocka_unit_test(test_deaths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
