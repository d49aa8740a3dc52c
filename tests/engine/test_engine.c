/* Whole requests through the engine. Method: the small random checkpoints of tests/goldens; the same request alone, in
 * shuffled batches, on other thread counts and in the textbook order must give the same bits; what cannot run is refused
 * with its numbers; and after everything every page is home. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "engine/engine.h"

#define DIR7B "tests/goldens/like7b-shared"
#define ODD "tests/goldens/odd-shared"

/* What one run left behind. */
struct run {
    float *logits;
    uint32_t V, n_ids;
    int32_t ids[64];
    char text[2048];
    uint32_t alive[64], L;
    uint32_t survivors, survivor_hash;
};

static void keep_logits(void *self, const float *logits, uint32_t V)
{
    struct run *r = self;
    r->V = V;
    r->logits = mem_must(V, sizeof(float));
    memcpy(r->logits, logits, V * sizeof(float));
}

struct ask { const char *media; enum chat_part_kind kind; const char *text; const char *policy; double temperature; bool sound; };

static const struct ask ASKS[] = {
    { NULL, PART_TEXT, "What comes after four?", "none", 0, false },
    { "media/talk.mov", PART_VIDEO, "Which letter comes first?", "omnidrop", 0, true },
    { "media/shapes.png", PART_IMAGE, "What is this?", "none", 0.9, false },
    { "media/speech.flac", PART_AUDIO, "Say it again, please.", "omnidrop", 0, false },
    { "media/talk.mov", PART_VIDEO, "And this one?", "random", 0.7, true },
};
#define N_ASKS (sizeof ASKS / sizeof *ASKS)

static struct engine *open_engine(const char *dir, int threads, bool textbook, uint64_t kv_bytes, uint32_t max_len)
{
    struct engine *en;
    struct err e;
    char path[256];
    snprintf(path, sizeof path, "%s/checkpoint", dir);
    const struct engine_options o = { .model_dir = path, .n_threads = threads, .textbook_order = textbook,
                                      .kv_bytes = kv_bytes, .max_model_len = max_len };
    if (engine_open(&o, &en, &e) != OK) fail_msg("%s", e.text);
    return en;
}

static void chat_of(const struct ask *a, struct chat *chat)
{
    struct err e;
    chat_init(chat);
    assert_int_equal(chat_add_message(chat, CHAT_USER, &e), OK);
    if (a->media) assert_int_equal(chat_add_media(chat, a->kind, a->media, &e), OK);
    assert_int_equal(chat_add_text(chat, a->text, strlen(a->text), &e), OK);
}

/* Run the asks named by order[0..n) together; results by ask. */
static void run_asks(struct engine *en, const size_t *order, size_t n, struct run *out)
{
    struct eng_request *reqs[N_ASKS];
    struct chat chat[N_ASKS];
    struct policy_params policy[N_ASKS];
    struct eng_trace trace[N_ASKS];
    struct err e;
    for (size_t i = 0; i < n; i++) {
        const struct ask *a = &ASKS[order[i]];
        struct eng_request_options o = eng_request_defaults();
        chat_of(a, &chat[i]);
        assert_int_equal(prune_params_init(&policy[i], a->policy, engine_config(en)->text.layers, &e), OK);
        if (strcmp(a->policy, "omnidrop") == 0) assert_int_equal(prune_params_set(&policy[i], "p_final", 0.5, &e), OK);
        trace[i] = (struct eng_trace){ .self = &out[order[i]], .logits = keep_logits };
        o.media_root = DIR7B;
        o.max_pixels = 31360;
        o.min_pixels = 3136;
        o.audio_in_video = a->sound;
        o.policy = &policy[i];
        o.max_tokens = 12;
        o.ignore_eos = true;
        o.sample.temperature = (float)a->temperature;
        o.sample.seed = 11;
        o.trace = &trace[i];
        if (eng_request_create(en, &chat[i], &o, &reqs[i], &e) != OK) fail_msg("ask %zu: %s", order[i], e.text);
    }
    assert_int_equal(eng_run(en, reqs, (uint32_t)n, &e), OK);
    for (size_t i = 0; i < n; i++) {
        const struct eng_result *r = eng_request_result(reqs[i]);
        const struct policy_plan *plan = eng_request_plan(reqs[i]);
        struct run *to = &out[order[i]];
        if (r->finish == ENG_FAILED) fail_msg("ask %zu: %s", order[i], r->error.text);
        assert_int_equal(r->finish, ENG_LENGTH);
        to->n_ids = r->n_ids;
        memcpy(to->ids, r->ids, r->n_ids * sizeof(int32_t));
        snprintf(to->text, sizeof to->text, "%s", r->text);
        to->L = r->n_layers;
        for (uint32_t l = 0; l <= r->n_layers; l++) {
            to->alive[l] = r->alive[l][1] + r->alive[l][2] + r->alive[l][3];
            assert_int_equal(to->alive[l], plan->alive[l]);            /* the plan and what really lived agree */
            for (uint32_t k = 0; k < to->alive[l]; k++) to->survivor_hash = to->survivor_hash * 31 + r->survivors[l][k];
            if (l < r->n_layers) {
                const uint32_t rows = to->alive[l] + r->alive[l][0], per = engine_info(en)->page_tokens;
                assert_int_equal(r->pages[l], (rows + per - 1) / per);
            }
        }
        eng_request_destroy(en, &reqs[i]);
        chat_free(&chat[i]);
    }
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
}

static void assert_same(const struct run *a, const struct run *b, size_t ask)
{
    if (a->V != b->V || memcmp(a->logits, b->logits, a->V * sizeof(float)) != 0) fail_msg("ask %zu: logits differ", ask);
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, a->n_ids * sizeof(int32_t));
    assert_int_equal(a->survivor_hash, b->survivor_hash);
    assert_string_equal(a->text, b->text);
}

static void free_runs(struct run *r)
{
    for (size_t i = 0; i < N_ASKS; i++) free(r[i].logits);
    memset(r, 0, N_ASKS * sizeof *r);
}

static void test_batches_threads_and_order(void **state)
{
    (void)state;
    static const size_t orders[][N_ASKS] = { { 0, 1, 2, 3, 4 }, { 4, 3, 2, 1, 0 }, { 2, 0, 4, 1, 3 } };
    struct run alone[N_ASKS] = { 0 }, other[N_ASKS] = { 0 };
    struct engine *en = open_engine(DIR7B, 2, false, 0, 2048);
    for (size_t i = 0; i < N_ASKS; i++) run_asks(en, &i, 1, alone);
    for (size_t k = 0; k < 3; k++) {
        run_asks(en, orders[k], N_ASKS, other);
        for (size_t i = 0; i < N_ASKS; i++) assert_same(&alone[i], &other[i], i);
        free_runs(other);
    }
    engine_close(&en);
    static const struct { int threads; bool textbook; } ways[] = { { 1, false }, { 3, false }, { 2, true } };
    for (size_t k = 0; k < 3; k++) {
        en = open_engine(DIR7B, ways[k].threads, ways[k].textbook, 0, 2048);
        run_asks(en, orders[0], N_ASKS, other);
        for (size_t i = 0; i < N_ASKS; i++) assert_same(&alone[i], &other[i], i);
        free_runs(other);
        engine_close(&en);
    }
    free_runs(alone);
}

/* ---- text ------------------------------------------------------------------------------------------------- */

struct heard { char text[4096]; size_t n; bool whole; };

static bool utf8_whole(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        const unsigned char c = (unsigned char)s[i];
        const size_t len = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
        if (c >= 0x80 && c < 0xc0) return false;
        if (i + len > n) return false;
        for (size_t k = 1; k < len; k++)
            if (((unsigned char)s[i + k] & 0xc0) != 0x80) return false;
        i += len;
    }
    return true;
}

static bool collect(void *self, const char *text, size_t n)
{
    struct heard *s = self;
    s->whole = s->whole && utf8_whole(text, n);
    memcpy(s->text + s->n, text, n);
    s->n += n;
    return true;
}

static bool refuse(void *self, const char *text, size_t n)
{
    (void)text;
    (void)n;
    return ++*(int *)self < 3;
}

static void one_text(struct engine *en, struct eng_request_options *o, struct eng_result *res, char *text, size_t cap)
{
    struct chat chat;
    struct eng_request *r;
    struct err e;
    chat_of(&ASKS[0], &chat);
    if (eng_request_create(en, &chat, o, &r, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(eng_run(en, &r, 1, &e), OK);
    *res = *eng_request_result(r);
    snprintf(text, cap, "%s", res->text);
    eng_request_destroy(en, &r);
    chat_free(&chat);
}

static void test_streaming_and_stop_strings(void **state)
{
    (void)state;
    struct engine *en = open_engine(ODD, 1, false, 0, 1024);
    struct eng_request_options o = eng_request_defaults();
    struct heard s = { .whole = true };
    struct eng_result res;
    char whole[4096], cut[4096], stop[5];
    o.max_tokens = 60;
    o.ignore_eos = true;
    o.on_text = collect;
    o.on_text_self = &s;
    one_text(en, &o, &res, whole, sizeof whole);
    assert_int_equal(res.finish, ENG_LENGTH);
    assert_int_equal(res.n_ids, 60);
    s.text[s.n] = 0;
    assert_string_equal(s.text, whole);
    assert_true(s.whole);
    assert_true(strlen(whole) > 20);
    memcpy(stop, whole + strlen(whole) / 2, 4);
    stop[4] = 0;
    const char *stops[] = { "never said", stop };
    s = (struct heard){ .whole = true };
    o.stop = stops;
    o.n_stop = 2;
    one_text(en, &o, &res, cut, sizeof cut);
    s.text[s.n] = 0;
    assert_int_equal(res.finish, ENG_STOP);
    assert_true(strstr(whole, stop) != NULL);
    assert_int_equal(strlen(cut), (size_t)(strstr(whole, stop) - whole));
    assert_memory_equal(cut, whole, strlen(cut));
    assert_string_equal(s.text, cut);                  /* nothing of the stop string was handed out */
    int calls = 0;
    o.n_stop = 0;
    o.on_text = refuse;
    o.on_text_self = &calls;
    one_text(en, &o, &res, cut, sizeof cut);
    assert_int_equal(res.finish, ENG_CANCELLED);
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
    engine_close(&en);
}

/* ---- refusals --------------------------------------------------------------------------------------------- */

static status create_ask(struct engine *en, const struct ask *a, const char *root, struct eng_request_options o, struct err *e)
{
    struct chat chat;
    struct eng_request *r = NULL;
    o.media_root = root;
    chat_of(a, &chat);
    const status st = eng_request_create(en, &chat, &o, &r, e);
    eng_request_destroy(en, &r);
    chat_free(&chat);
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
    return st;
}

static void test_refusals(void **state)
{
    (void)state;
    struct err e;
    struct eng_request_options o = eng_request_defaults();
    o.max_pixels = 31360;
    o.max_tokens = 16;
    o.audio_in_video = true;
    struct engine *en = open_engine(DIR7B, 1, false, 40000, 2048);
    assert_int_equal(create_ask(en, &ASKS[1], DIR7B, o, &e), E_FULL);      /* pages needed, pages there */
    char have[32];
    snprintf(have, sizeof have, "%u", engine_info(en)->n_pages);
    assert_non_null(strstr(e.text, have));
    engine_close(&en);
    en = open_engine(DIR7B, 1, false, 0, 128);
    assert_int_equal(create_ask(en, &ASKS[1], DIR7B, o, &e), E_ARG);       /* over the context */
    assert_non_null(strstr(e.text, "128"));
    assert_non_null(strstr(e.text, "fit"));
    struct ask gone = ASKS[1];
    gone.media = "media/gone.mov";
    assert_int_equal(create_ask(en, &gone, DIR7B, o, &e), E_INPUT);
    assert_non_null(strstr(e.text, "gone.mov"));
    gone.media = "http://example.com/x.mp4";
    assert_int_equal(create_ask(en, &gone, DIR7B, o, &e), E_INPUT);
    gone.media = "media/shapes.png";
    gone.kind = PART_AUDIO;
    assert_int_equal(create_ask(en, &gone, DIR7B, o, &e), E_INPUT);        /* a picture has no sound */
    o.sample.temperature = -1;
    assert_int_equal(create_ask(en, &ASKS[0], DIR7B, o, &e), E_ARG);
    engine_close(&en);
    const struct engine_options bad = { .model_dir = "tests/goldens" };
    assert_int_equal(engine_open(&bad, &en, &e), E_MODEL);
    assert_non_null(strstr(e.text, "tests/goldens"));
}

/* ---- query rows ------------------------------------------------------------------------------------------- */

enum { N_SOUND = 60, N_GIVEN = N_SOUND + 12, FIRST_SOUND = 3 };

/* Scores of the first layer that drops; n stays 0 where tokens drop unscored. */
struct scores { uint32_t n, n_layers; float at[N_SOUND]; };

static void keep_scores(void *self, uint32_t l, const uint32_t *index, uint32_t n, const float *score)
{
    struct scores *s = self;
    (void)l;
    (void)index;
    s->n_layers++;
    if (score == NULL || s->n > 0) return;
    assert_true(n <= N_SOUND);
    s->n = n;
    memcpy(s->at, score, n * sizeof *score);
}

/* Sound between text, with the query rows given (n_query 0: none are), and the parameter `query` (NULL: not given). */
static struct scores scores_of(struct engine *en, const int64_t *query, uint32_t n_query, const char *policy, const char *word)
{
    const struct model_config *c = engine_config(en);
    const struct prompt_rules rules = { .audio_id = c->ids.audio, .image_id = c->ids.image, .video_id = c->ids.video,
                                        .position_id_per_seconds = c->position_id_per_seconds,
                                        .seconds_per_chunk = c->seconds_per_chunk, .n_query_max = 256 };
    int64_t id[N_GIVEN], pos[3 * N_GIVEN], kind[N_GIVEN], chunk[N_GIVEN];
    for (uint32_t i = 0; i < N_GIVEN; i++) {
        const bool sound = i >= FIRST_SOUND && i < FIRST_SOUND + N_SOUND;
        id[i] = sound ? c->ids.audio : 10 + (int64_t)i % 7;
        kind[i] = sound ? TOKEN_AUDIO : TOKEN_TEXT;
        chunk[i] = sound ? ((int64_t)i - FIRST_SOUND) / 50 : -1;
        for (uint32_t k = 0; k < 3; k++) pos[k * N_GIVEN + i] = i;
    }
    struct prompt prompt;
    struct policy_params p;
    struct eng_request *r;
    struct err e;
    struct scores out = { 0 };
    if (prompt_from_arrays(&rules, N_GIVEN, id, pos, kind, chunk, query, n_query, &prompt, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(prune_params_init(&p, policy, c->text.layers, &e), OK);
    assert_int_equal(prune_params_set(&p, "p_final", 0.4, &e), OK);
    assert_int_equal(prune_params_set(&p, "step0", 0, &e), OK);
    if (word && prune_params_set_text(&p, "query", word, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(prune_params_finish(&p, &e), OK);
    float *embeds = mem_must((size_t)N_SOUND * c->text.hidden, sizeof *embeds);
    for (uint32_t i = 0; i < N_SOUND * c->text.hidden; i++) embeds[i] = (float)(i * 2654435761u >> 16) / 65536 - 0.5f;
    const struct eng_trace trace = { .self = &out, .alive = keep_scores };
    const struct eng_given given = { .prompt = &prompt, .audio_embeds = embeds };
    struct eng_request_options o = eng_request_defaults();
    const struct chat none = { 0 };
    o.policy = &p;
    o.max_tokens = 1;
    o.trace = &trace;
    if (eng_request_create_given(en, &none, &o, &given, &r, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(eng_run(en, &r, 1, &e), OK);
    const struct eng_result *res = eng_request_result(r);
    if (res->finish == ENG_FAILED) fail_msg("%s", res->error.text);
    assert_int_equal(out.n_layers, c->text.layers);
    assert_true(eng_request_plan(r)->alive[c->text.layers] < N_SOUND);
    eng_request_destroy(en, &r);
    free(embeds);
    return out;
}

/* The wish `query` scores by the rows that it names. Method: the scores of the same prompt with these rows given, which the
 * reference cases check. A policy that asks for no scores gets none. */
static void test_query_rows(void **state)
{
    (void)state;
    const struct engine_options eo = { .n_threads = 2 };
    struct engine *en;
    struct err e;
    enum { AFTER = FIRST_SOUND + N_SOUND, N_AFTER = N_GIVEN - AFTER };
    int64_t own[3] = { AFTER + 2, AFTER + 3, AFTER + 4 }, after[N_AFTER];
    for (uint32_t i = 0; i < N_AFTER; i++) after[i] = AFTER + i;
    if (engine_open(&eo, &en, &e) != OK) fail_msg("%s", e.text);
    const struct scores by_own = scores_of(en, own, 3, "omnidrop", NULL), by_after = scores_of(en, after, N_AFTER, "omnidrop", NULL),
                        by_last = scores_of(en, after + N_AFTER - 1, 1, "omnidrop", NULL);
    assert_int_equal(by_own.n, N_SOUND);
    assert_memory_not_equal(&by_own, &by_after, sizeof by_own);
    assert_memory_not_equal(&by_own, &by_last, sizeof by_own);
    assert_memory_not_equal(&by_after, &by_last, sizeof by_own);
    struct scores got = scores_of(en, own, 3, "omnidrop", "text");
    assert_memory_equal(&got, &by_own, sizeof got);
    got = scores_of(en, own, 3, "omnidrop", "after");
    assert_memory_equal(&got, &by_after, sizeof got);
    got = scores_of(en, own, 3, "omnidrop", "last");
    assert_memory_equal(&got, &by_last, sizeof got);
    got = scores_of(en, own, 3, "random-layers", NULL);
    assert_int_equal(got.n, 0);
    engine_close(&en);
}

/* A part of a film brings the tokens of its seconds alone. */
static void test_part_of_a_film(void **state)
{
    (void)state;
    const struct engine_options eo = { .n_threads = 2 };
    struct engine *en;
    struct err e;
    uint32_t n[2] = { 0 };
    if (engine_open(&eo, &en, &e) != OK) fail_msg("%s", e.text);
    for (int part = 0; part < 2; part++) {
        struct chat c;
        struct eng_request *r;
        struct eng_request_options o = eng_request_defaults();
        o.max_tokens = 1;
        o.audio_in_video = true;
        chat_init(&c);
        assert_int_equal(chat_add_message(&c, CHAT_USER, &e), OK);
        assert_int_equal(chat_add_media(&c, PART_VIDEO, "tests/data/media/film.mp4", &e), OK);
        assert_int_equal(chat_add_text(&c, "And?", 4, &e), OK);
        if (part) c.message[0].part[0].options.end_s = 1.0;
        if (eng_request_create(en, &c, &o, &r, &e) != OK) fail_msg("%s", e.text);
        n[part] = eng_request_prompt(r)->n_av;
        assert_int_equal(eng_run(en, &r, 1, &e), OK);
        assert_int_equal(eng_request_result(r)->n_ids, 1);
        eng_request_destroy(en, &r);
        chat_free(&c);
    }
    assert_true(n[1] > 0 && n[1] < n[0]);
    engine_close(&en);
}

/* 1 GiB, pages of 1 KiB: a rank takes a quarter of its share of them, half of it for one long context, and no more than asked. */
static void test_pool_by_share(void **state)
{
    (void)state;
    const uint64_t gib = (uint64_t)1 << 30;
    assert_int_equal(engine_pool_pages(gib, 1, 1024, 1000, 4), 4000);
    assert_int_equal(engine_pool_pages(gib, 4, 1024, 1000, 4), 4000);
    for (uint32_t n = 1; n <= 8; n++) {
        assert_int_equal(engine_pool_pages(gib, n, 1024, 1000, 4096), (1u << 20) / n / 2 / 2);
        assert_true(n * engine_pool_pages(gib, n, 1024, 1u << 30, 1) <= 1u << 19);
    }
    assert_int_equal(engine_pool_pages(gib, 1, 1024, 300000, 2), 300000);      /* over a quarter, under half */
    assert_int_equal(engine_pool_pages(gib, 2, 1024, 300000, 2), 262144);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_pool_by_share),
                                        cmocka_unit_test(test_batches_threads_and_order),
                                        cmocka_unit_test(test_streaming_and_stop_strings),
                                        cmocka_unit_test(test_part_of_a_film), cmocka_unit_test(test_query_rows),
                                        cmocka_unit_test(test_refusals) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
