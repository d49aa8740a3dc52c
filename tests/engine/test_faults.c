/* Memory that is refused, anywhere. Method: the n-th allocation fails (base/mem.h, mem_fail_after), for one n after the
 * other, while an engine is opened and while a text, a sound and a pruned film are created and run together; each time
 * the error must be E_NOMEM, every page home, and the same engine must then give the answers of an undisturbed run. Also
 * what ends one request alone: a policy that cannot start, a film that breaks, an interrupt. (Leaks: MODE=san.) */
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

#include "base/mem.h"
#include "engine/inside.h"

#define FILM       "tests/data/media/film.mp4"
#define ODD        "tests/goldens/odd-shared"
#define CHECKPOINT ODD "/checkpoint"
#define EACH       300 /* allocations that are failed one by one; then in growing strides */

struct ask {
    const char *media;
    enum chat_part_kind kind;
    const char *text, *policy;
};
static const struct ask ASKS[] = {
    { NULL, PART_TEXT, "Say something.", "none" },
    { "media/short.wav", PART_AUDIO, "What was that?", "none" },
    { "media/silent.mov", PART_VIDEO, "What happens here?", "omnidrop" },
};
enum { N_ASKS = sizeof ASKS / sizeof *ASKS, N_NEW = 4 };

static uint32_t next_n(uint32_t n)
{
    return n < EACH ? n + 1 : n + n / 10;
}

static status open_odd(struct engine **en, struct err *e)
{
    const struct engine_options o = { .model_dir = CHECKPOINT, .n_threads = 1, .max_model_len = 512 };
    return engine_open(&o, en, e);
}

static struct engine *must_open(void)
{
    struct engine *en;
    struct err e;
    if (open_odd(&en, &e) != OK) fail_msg("%s", e.text);
    return en;
}

/* ---- requests --------------------------------------------------------------------------------------------- */

struct answers {
    int32_t id[N_ASKS][N_NEW];
};

/* The chats and the options are built once, so that the allocations counted are the engine's alone. */
struct bench {
    struct chat chat[N_ASKS];
    struct policy_params policy[N_ASKS];
    struct eng_request_options o[N_ASKS];
};

static void bench_make(struct bench *b, const struct engine *en)
{
    struct err e;
    for (int i = 0; i < N_ASKS; i++) {
        const struct ask *a = &ASKS[i];
        chat_init(&b->chat[i]);
        assert_int_equal(chat_add_message(&b->chat[i], CHAT_USER, &e), OK);
        if (a->media) assert_int_equal(chat_add_media(&b->chat[i], a->kind, a->media, &e), OK);
        assert_int_equal(chat_add_text(&b->chat[i], a->text, strlen(a->text), &e), OK);
        assert_int_equal(prune_params_init(&b->policy[i], a->policy, engine_config(en)->text.layers, &e), OK);
        b->o[i] = eng_request_defaults();
        b->o[i].media_root = ODD;
        b->o[i].min_pixels = 3136;
        b->o[i].max_pixels = 6272;
        b->o[i].max_tokens = N_NEW;
        b->o[i].ignore_eos = true;
        b->o[i].policy = &b->policy[i];
    }
}

static void bench_free(struct bench *b)
{
    for (int i = 0; i < N_ASKS; i++) chat_free(&b->chat[i]);
}

/* Create and run all. Returns the first error, of a creation, of the run or of a request; what else went wrong is
 * asserted. */
static status run_bench(struct engine *en, const struct bench *b, struct answers *out, struct err *e)
{
    struct eng_request *r[N_ASKS] = { 0 };
    status st = OK;
    for (int i = 0; i < N_ASKS && st == OK; i++) st = eng_request_create(en, &b->chat[i], &b->o[i], &r[i], e);
    if (st == OK) {
        st = eng_run(en, r, N_ASKS, e);
        for (int i = 0; i < N_ASKS; i++) {
            const struct eng_result *res = eng_request_result(r[i]);
            if (res->finish == ENG_FAILED) {
                if (st == OK) *e = res->error;
                st = e->code;
                continue;
            }
            assert_int_equal(res->finish, ENG_LENGTH); /* a failure of others left it whole */
            assert_int_equal(res->n_ids, N_NEW);
            memcpy(out->id[i], res->ids, sizeof out->id[i]);
        }
        assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
    }
    for (int i = 0; i < N_ASKS; i++) eng_request_destroy(en, &r[i]);
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
    return st;
}

static void must_answer(struct engine *en, const struct bench *b, const struct answers *want, uint32_t after)
{
    struct answers got = { 0 };
    struct err e;
    if (run_bench(en, b, &got, &e) != OK) fail_msg("after allocation %u failed: %s", after, e.text);
    if (memcmp(&got, want, sizeof got) != 0)
        fail_msg("after allocation %u failed the answers are others", after);
}

/* ---- the n-th allocation ---------------------------------------------------------------------------------- */

static void test_open_without_memory(void **state)
{
    (void)state;
    uint32_t failures = 0;
    for (uint32_t n = 1;; n = next_n(n)) {
        struct engine *en = NULL;
        struct err e = { 0 };
        mem_fail_after((int)n);
        const status st = open_odd(&en, &e);
        const bool failed = mem_failed();
        mem_fail_after(0);
        if (st == OK) engine_close(&en);
        if (!failed) {
            assert_int_equal(st, OK);
            break;
        }
        failures++;
        if (st != E_NOMEM) fail_msg("allocation %u of engine_open: %s: %s", n, err_name(st), e.text);
        assert_int_equal(e.code, E_NOMEM);
        assert_non_null(strstr(e.text, "memory"));
    }
    assert_true(failures > 50);
}

static void test_run_without_memory(void **state)
{
    (void)state;
    struct engine *en = must_open();
    struct bench b;
    struct answers want = { 0 }, got;
    struct err e;
    uint32_t failures = 0, whole = 0;
    bench_make(&b, en);
    if (run_bench(en, &b, &want, &e) != OK) fail_msg("%s", e.text);
    engine_close(&en);
    /* On an engine that has run before, and every so often on a fresh one, whose buffers have yet to grow. */
    for (uint32_t n = 1;; n = next_n(n)) {
        if (en == NULL) en = must_open();
        e = (struct err){ 0 };
        mem_fail_after((int)n);
        const status st = run_bench(en, &b, &got, &e);
        const bool failed = mem_failed();
        mem_fail_after(0);
        if (!failed) {
            assert_int_equal(st, OK);
            assert_memory_equal(&got, &want, sizeof got);
            break;
        }
        failures++;
        if (st == OK)
            whole++;
        else if (st != E_NOMEM)
            fail_msg("allocation %u: %s: %s", n, err_name(st), e.text);
        if (n % 8 == 0) {
            must_answer(en, &b, &want, n);
        } else if (n % 8 == 4) {
            engine_close(&en);
            en = NULL;
        }
    }
    assert_true(failures > 100);
    assert_int_equal(whole, 0); /* no refusal is passed over in silence */
    must_answer(en, &b, &want, 0);
    bench_free(&b);
    engine_close(&en);
}

/* ---- one that fails alone --------------------------------------------------------------------------------- */

/* A prompt of given embeddings whose policy wants the saliency that it lacks ends before layer 0; those beside it do not
 * notice. */
static void test_policy_that_cannot_start(void **state)
{
    (void)state;
    struct engine *en = must_open();
    struct bench b;
    struct answers want = { 0 };
    struct err e;
    bench_make(&b, en);
    if (run_bench(en, &b, &want, &e) != OK) fail_msg("%s", e.text);
    const uint32_t d = engine_config(en)->text.hidden;
    for (int place = 0; place < 3; place++) {
        struct eng_request *sound, *r[3];
        struct policy_params policy;
        struct prompt prompt;
        assert_int_equal(eng_request_create(en, &b.chat[1], &b.o[1], &sound, &e), OK);
        const struct prompt *p = eng_request_prompt(sound);
        int64_t *list = mem_must((size_t)6 * p->n, sizeof *list);
        for (uint32_t i = 0; i < p->n; i++) {
            list[i] = p->id[i];
            for (uint32_t k = 0; k < 3; k++) list[(size_t)(1 + k) * p->n + i] = p->pos[k][i];
            list[(size_t)4 * p->n + i] = p->kind[i];
            list[(size_t)5 * p->n + i] = p->chunk[i];
        }
        const struct model_ids *id = &engine_config(en)->ids;
        const struct prompt_rules rules = { .audio_id = id->audio,
                                            .image_id = id->image,
                                            .video_id = id->video,
                                            .position_id_per_seconds =
                                                engine_config(en)->position_id_per_seconds,
                                            .seconds_per_chunk = engine_config(en)->seconds_per_chunk,
                                            .n_query_max = 256 };
        if (prompt_from_arrays(&rules, p->n, list, list + p->n, list + (size_t)4 * p->n,
                               list + (size_t)5 * p->n, NULL, 0, &prompt, &e) != OK)
            fail_msg("%s", e.text);
        float *embeds = mem_must((size_t)p->n_audio * d, sizeof *embeds);
        eng_request_destroy(en, &sound);
        assert_int_equal(prune_params_init(&policy, "omnidrop", engine_config(en)->text.layers, &e), OK);
        const struct eng_given given = { .prompt = &prompt, .audio_embeds = embeds };
        struct eng_request_options o = b.o[0];
        o.policy = &policy;
        const struct chat none = { 0 };
        for (int i = 0, k = 0; i < 3; i++) {
            if (i == place) {
                if (eng_request_create_given(en, &none, &o, &given, &r[i], &e) != OK) fail_msg("%s", e.text);
            } else {
                assert_int_equal(eng_request_create(en, &b.chat[k], &b.o[k], &r[i], &e), OK);
                k++;
            }
        }
        assert_int_equal(eng_run(en, r, 3, &e), OK);
        for (int i = 0, k = 0; i < 3; i++) {
            const struct eng_result *res = eng_request_result(r[i]);
            if (i == place) {
                assert_int_equal(res->finish, ENG_FAILED);
                assert_int_equal(res->error.code, E_ARG);
                assert_non_null(strstr(res->error.text, "saliency"));
            } else {
                assert_int_equal(res->finish, ENG_LENGTH);
                assert_memory_equal(res->ids, want.id[k], sizeof want.id[k]);
                k++;
            }
        }
        for (int i = 0; i < 3; i++) eng_request_destroy(en, &r[i]);
        prompt_free(&prompt);
        free(embeds);
        free(list);
        assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
    }
    bench_free(&b);
    engine_close(&en);
}

/* A copy of FILM whose last 40 % are zeroes: the packets are counted, but do not decode. */
static void write_broken(char *path)
{
    static char bytes[4 << 20];
    FILE *f = fopen(FILM, "rb");
    assert_non_null(f);
    const size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    assert_true(n > 1000 && n < sizeof bytes);
    memset(bytes + n * 6 / 10, 0, n - n * 6 / 10);
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, n), (ssize_t)n);
    close(fd);
}

/* Films streamed into the tower: a whole one gives the answer of one decoded at once; one whose data end before its
 * header says ends alone, in the run. */
static void test_film_that_breaks(void **state)
{
    (void)state;
    struct engine *en = must_open();
    struct bench b;
    struct answers want = { 0 };
    struct err e;
    bench_make(&b, en);
    if (run_bench(en, &b, &want, &e) != OK) fail_msg("%s", e.text);
    en->film_at_once = 0;
    must_answer(en, &b, &want, 0);
    struct chat broken;
    char path[] = "/tmp/omnidrop-broken-XXXXXX";
    write_broken(path);
    struct eng_request *r[1 + N_ASKS];
    chat_init(&broken);
    assert_int_equal(chat_add_message(&broken, CHAT_USER, &e), OK);
    assert_int_equal(chat_add_media(&broken, PART_VIDEO, path, &e), OK);
    assert_int_equal(chat_add_text(&broken, "And here?", 9, &e), OK);
    struct eng_request_options o = b.o[2];
    o.media_root = NULL;
    if (eng_request_create(en, &broken, &o, &r[0], &e) != OK) fail_msg("%s", e.text);
    for (int i = 0; i < N_ASKS; i++)
        assert_int_equal(eng_request_create(en, &b.chat[i], &b.o[i], &r[1 + i], &e), OK);
    assert_int_equal(eng_run(en, r, 1 + N_ASKS, &e), OK);
    assert_int_equal(eng_request_result(r[0])->finish, ENG_FAILED);
    assert_int_equal(eng_request_result(r[0])->error.code, E_INPUT);
    for (int i = 0; i < N_ASKS; i++) {
        assert_int_equal(eng_request_result(r[1 + i])->finish, ENG_LENGTH);
        assert_memory_equal(eng_request_result(r[1 + i])->ids, want.id[i], sizeof want.id[i]);
    }
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
    for (int i = 0; i < 1 + N_ASKS; i++) eng_request_destroy(en, &r[i]);
    chat_free(&broken);
    unlink(path);
    bench_free(&b);
    engine_close(&en);
}

/* ---- interrupts ------------------------------------------------------------------------------------------- */

struct stopper {
    struct engine *en;
    uint32_t at_layer;
    bool at_text;
    uint32_t heard;
};

static void stop_at_layer(void *self, uint32_t l, const uint32_t *index, uint32_t n, const float *score)
{
    struct stopper *s = self;
    (void)index;
    (void)n;
    (void)score;
    if (l == s->at_layer) engine_interrupt(s->en);
}

static bool stop_at_text(void *self, const char *text, size_t n)
{
    struct stopper *s = self;
    (void)text;
    (void)n;
    s->heard++;
    engine_interrupt(s->en);
    return true;
}

static void test_interrupts(void **state)
{
    (void)state;
    struct engine *en = must_open();
    struct bench b;
    struct answers want = { 0 };
    struct err e;
    bench_make(&b, en);
    if (run_bench(en, &b, &want, &e) != OK) fail_msg("%s", e.text);
    for (int where = 0; where < 3; where++) { /* before the run, amid prefill, amid decode */
        struct eng_request *r[N_ASKS];
        struct stopper s = { .en = en, .at_layer = 1 };
        const struct eng_trace trace = { .self = &s, .alive = stop_at_layer };
        for (int i = 0; i < N_ASKS; i++) {
            struct eng_request_options o = b.o[i];
            if (where == 1) o.trace = &trace;
            if (where == 2) {
                o.max_tokens = 40;
                o.on_text = stop_at_text;
                o.on_text_self = &s;
            }
            if (eng_request_create(en, &b.chat[i], &o, &r[i], &e) != OK) fail_msg("%s", e.text);
        }
        if (where == 0) engine_interrupt(en);
        assert_int_equal(eng_run(en, r, N_ASKS, &e), OK);
        for (int i = 0; i < N_ASKS; i++) {
            const struct eng_result *res = eng_request_result(r[i]);
            assert_int_equal(res->finish, ENG_CANCELLED);
            assert_true(where == 2 || res->n_ids == 0);
            assert_true(res->n_ids < 40);
            assert_int_equal(strlen(res->text), res->n_text);
        }
        assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
        assert_true(where != 2 || s.heard > 0);
        for (int i = 0; i < N_ASKS; i++) eng_request_destroy(en, &r[i]);
        must_answer(en, &b, &want, 0); /* one interrupt ends one run */
    }
    bench_free(&b);
    engine_close(&en);
}

/* ---- edges of the context --------------------------------------------------------------------------------- */

static void test_edges(void **state)
{
    (void)state;
    struct engine *en = must_open();
    struct bench b;
    struct answers want = { 0 };
    struct err e;
    bench_make(&b, en);
    if (run_bench(en, &b, &want, &e) != OK) fail_msg("%s", e.text);
    struct eng_request *r;
    struct eng_request_options o = b.o[0];
    struct policy_params omnidrop;
    o.max_tokens = 1; /* one token: ended by prefill alone */
    assert_int_equal(eng_request_create(en, &b.chat[0], &o, &r, &e), OK);
    const uint32_t n = eng_request_prompt(r)->n, max = engine_info(en)->max_model_len;
    assert_int_equal(eng_run(en, &r, 1, &e), OK);
    assert_int_equal(eng_request_result(r)->finish, ENG_LENGTH);
    assert_int_equal(eng_request_result(r)->n_ids, 1);
    assert_int_equal(eng_request_result(r)->ids[0], want.id[0][0]);
    eng_request_destroy(en, &r);
    o.max_tokens = max - n + 1; /* one over the context */
    assert_int_equal(eng_request_create(en, &b.chat[0], &o, &r, &e), E_ARG);
    for (int whole = 0; whole < 2; whole++) { /* to its very end, named and as "what fits" */
        o.max_tokens = whole ? max - n : 0;
        assert_int_equal(eng_request_create(en, &b.chat[0], &o, &r, &e), OK);
        assert_int_equal(eng_run(en, &r, 1, &e), OK);
        assert_int_equal(eng_request_result(r)->finish, ENG_LENGTH);
        assert_int_equal(eng_request_result(r)->n_ids, max - n);
        eng_request_destroy(en, &r);
    }
    assert_int_equal(prune_params_init(&omnidrop, "omnidrop", engine_config(en)->text.layers, &e), OK);
    o = b.o[0]; /* nothing to prune: the answer of policy none */
    o.policy = &omnidrop;
    assert_int_equal(eng_request_create(en, &b.chat[0], &o, &r, &e), OK);
    assert_int_equal(eng_run(en, &r, 1, &e), OK);
    assert_memory_equal(eng_request_result(r)->ids, want.id[0], sizeof want.id[0]);
    assert_true(eng_request_result(r)->mean_retention == 1);
    assert_int_equal(eng_run(en, &r, 1, &e), OK); /* a finished request is left as it is */
    assert_int_equal(eng_request_result(r)->n_ids, N_NEW);
    eng_request_destroy(en, &r);
    assert_int_equal(eng_run(en, NULL, 0, &e), OK);
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
    bench_free(&b);
    engine_close(&en);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_open_without_memory),
                                        cmocka_unit_test(test_run_without_memory),
                                        cmocka_unit_test(test_policy_that_cannot_start),
                                        cmocka_unit_test(test_film_that_breaks),
                                        cmocka_unit_test(test_interrupts),
                                        cmocka_unit_test(test_edges) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
