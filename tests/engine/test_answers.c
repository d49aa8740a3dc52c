/* The bundled model on real files. Method: every question of tests/data/omni-tiny-demo (H.264, AAC, WAV, PNG) asked
 * through the whole engine; the greedy text must equal what the reference said in f32 (answers.jsonl), also when all
 * run in one batch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/json.h"
#include "base/mem.h"
#include "engine/engine.h"

#define CLIPS "tests/data/omni-tiny-demo"
#define MAX 128

struct question { char file[64], text[128], said[256]; enum chat_part_kind kind; bool sound; };
static struct question questions[MAX];
static uint32_t n_questions;

static void read_questions(void)
{
    FILE *f = fopen(CLIPS "/answers.jsonl", "re");
    char *line = NULL;
    size_t cap = 0;
    assert_non_null(f);
    for (ssize_t n; (n = getline(&line, &cap, f)) > 0 && n_questions < MAX;) {
        struct doc d;
        struct doc_at o;
        struct err e;
        const char *file = NULL, *text, *said;
        struct question *q = &questions[n_questions++];
        if (doc_parse(line, (size_t)n, "answers.jsonl", &doc_config_limits, &d, &e) != OK) fail_msg("%s", e.text);
        doc_root(&d, &o);
        static const struct { const char *key; enum chat_part_kind kind; } kinds[] = {
            { "video", PART_VIDEO }, { "audio", PART_AUDIO }, { "image", PART_IMAGE } };
        for (int k = 0; k < 3 && file == NULL; k++) {
            doc_opt_string(&o, kinds[k].key, &file, &e);
            q->kind = kinds[k].kind;
        }
        assert_int_equal(doc_string(&o, "question", &text, &e), OK);
        assert_int_equal(doc_string(&o, "model_says", &said, &e), OK);
        doc_opt_bool(&o, "use_audio_in_video", &q->sound, &e);
        snprintf(q->file, sizeof q->file, "%s", file ? file : "");      /* "": text alone */
        snprintf(q->text, sizeof q->text, "%s", text);
        snprintf(q->said, sizeof q->said, "%s", said);
        doc_close(&d);
    }
    free(line);
    fclose(f);
}

static struct eng_request *ask(struct engine *en, const struct question *q, struct chat *chat)
{
    struct eng_request_options o = eng_request_defaults();
    struct eng_request *r;
    struct err e;
    chat_init(chat);
    assert_int_equal(chat_add_message(chat, CHAT_USER, &e), OK);
    if (q->file[0]) assert_int_equal(chat_add_media(chat, q->kind, q->file, &e), OK);
    assert_int_equal(chat_add_text(chat, q->text, strlen(q->text), &e), OK);
    o.media_root = CLIPS;
    o.audio_in_video = q->sound;
    o.max_tokens = 64;
    if (eng_request_create(en, chat, &o, &r, &e) != OK) fail_msg("%s: %s", q->file, e.text);
    return r;
}

static void check(const struct question *q, const struct eng_request *r)
{
    const struct eng_result *res = eng_request_result(r);
    if (res->finish != ENG_STOP || strcmp(res->text, q->said) != 0)
        fail_msg("%s: \"%s\": the engine says \"%s\", the reference \"%s\"", q->file, q->text, res->text, q->said);
}

static void test_one_by_one(void **state)
{
    struct engine *en = *state;
    struct err e;
    for (uint32_t i = 0; i < n_questions; i++) {
        struct chat chat;
        struct eng_request *r = ask(en, &questions[i], &chat);
        assert_int_equal(eng_run(en, &r, 1, &e), OK);
        check(&questions[i], r);
        eng_request_destroy(en, &r);
        chat_free(&chat);
    }
}

static void test_in_one_batch(void **state)
{
    struct engine *en = *state;
    struct err e;
    struct chat chat[MAX];
    struct eng_request *r[MAX];
    for (uint32_t i = 0; i < n_questions; i++) r[i] = ask(en, &questions[i], &chat[i]);
    assert_int_equal(eng_run(en, r, n_questions, &e), OK);
    for (uint32_t i = 0; i < n_questions; i++) {
        check(&questions[i], r[i]);
        eng_request_destroy(en, &r[i]);
        chat_free(&chat[i]);
    }
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
}

static int start(void **state)
{
    struct engine *en;
    struct err e;
    const struct engine_options o = { .model_dir = ENGINE_BUNDLED_MODEL, .kv_bytes = (uint64_t)512 << 20 };
    read_questions();
    if (n_questions < 60 || engine_open(&o, &en, &e) != OK) return -1;
    *state = en;
    return 0;
}

static int stop(void **state)
{
    struct engine *en = *state;
    engine_close(&en);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_one_by_one), cmocka_unit_test(test_in_one_batch) };
    return cmocka_run_group_tests(tests, start, stop);
}
