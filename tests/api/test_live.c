/* Goal: the api on the real service with the bundled model: what clients see of one film agrees with itself, and every reply
 * follows the OpenAPI description. Method: api_run and a stream of the same request, compared. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/inside.h"
#include "tests/api/fake_service.h"
#include "tests/api/schema.h"

#define FILM "{\"type\":\"video_url\",\"video_url\":\"file:tests/data/media/film.mp4\",\"fps\":1,\"max_pixels\":50176}"
#define ASK "{\"messages\":[{\"role\":\"user\",\"content\":[" FILM ",\"What is said?\"]}],\"max_tokens\":6,\"temperature\":0"

static struct service *service;
static struct api *api;
static json_t *openapi;
static const struct api_caller caller = { .key = "" };

static void follows(const json_t *o, const char *schema)
{
    char why[300], path[80];
    snprintf(path, sizeof path, "#/components/schemas/%s", schema);
    json_t *ref = json_pack("{s:s}", "$ref", path);
    if (!schema_follows(openapi, ref, o, why, sizeof why)) fail_msg("%s: %s", schema, why);
    json_decref(ref);
}

static json_t *run(const char *endpoint, const char *body, int want_status)
{
    int code = 0;
    json_t *reply = NULL;
    api_run(api, endpoint, body, strlen(body), &caller, NULL, &code, &reply);
    if (code != want_status) fail_msg("%d: %s", code, json_dumps(reply, JSON_COMPACT));
    follows(reply, code >= 400 ? "Error" : strstr(endpoint, "chat") ? "ChatReply" : "CompletionReply");
    return reply;
}

static const json_t *at(const json_t *o, const char *a, const char *b)
{
    const json_t *v = json_object_get(o, a);
    return b ? json_object_get(v, b) : v;
}

static json_int_t count(const json_t *o, const char *key) { return json_integer_value(json_object_get(o, key)); }
static const json_t *first(const json_t *reply) { return json_array_get(json_object_get(reply, "choices"), 0); }
static const char *content(const json_t *reply) { return json_string_value(at(first(reply), "message", "content")); }

static void usage_adds_up(void **state)
{
    (void)state;
    json_t *r = run("/v1/chat/completions", ASK ",\"logprobs\":true,\"top_logprobs\":3,\"return_token_ids\":true}", 200), *t = NULL;
    const json_t *u = json_object_get(r, "usage"), *d = json_object_get(u, "prompt_tokens_details");
    struct err e = { 0 };
    assert_true(count(d, "audio_tokens") > 0 && count(d, "video_tokens") > 0 && count(d, "image_tokens") == 0);
    assert_int_equal(count(d, "audio_tokens") + count(d, "video_tokens") + count(d, "text_tokens"), count(u, "prompt_tokens"));
    assert_int_equal(count(u, "prompt_tokens") + count(u, "completion_tokens"), count(u, "total_tokens"));
    assert_int_equal(json_array_size(at(first(r), "logprobs", "content")), count(u, "completion_tokens"));
    assert_int_equal(json_array_size(at(first(r), "token_ids", NULL)), count(u, "completion_tokens"));
    assert_int_equal(json_array_size(at(r, "prompt_token_ids", NULL)), count(u, "prompt_tokens"));
    const json_t *entry = json_array_get(at(first(r), "logprobs", "content"), 0);
    assert_int_equal(json_array_size(json_object_get(entry, "top_logprobs")), 3);
    if (api_tokenize(api, ASK "}", strlen(ASK "}"), &caller, &t, &e) != OK) fail_msg("%s", e.text);
    follows(t, "TokenizeReply");
    assert_int_equal(count(t, "count"), count(u, "prompt_tokens"));
    assert_true(json_equal(json_object_get(t, "tokens"), json_object_get(r, "prompt_token_ids")));
    json_decref(t);
    json_decref(r);
}

static void sound_can_be_left_out(void **state)
{
    (void)state;
    json_t *r = run("/v1/chat/completions", ASK ",\"mm_processor_kwargs\":{\"use_audio_in_video\":false}}", 200);
    assert_int_equal(count(at(r, "usage", "prompt_tokens_details"), "audio_tokens"), 0);
    json_decref(r);
}

static void pruning_is_told(void **state)
{
    (void)state;
    json_t *r = run("/v1/chat/completions", ASK ",\"omnidrop\":{\"policy\":\"omnidrop\",\"retention\":0.5,\"return_pruning\":true,"
                                            "\"detail\":\"tokens\"}}", 200);
    const json_t *o = json_object_get(r, "omnidrop"), *kept = json_object_get(o, "kept_per_layer"), *t = json_object_get(o, "tokens");
    assert_int_equal(json_array_size(kept), api->n_layers);
    for (size_t l = 0; l < json_array_size(kept); l++) {
        json_int_t sum = 0;
        for (int k = 0; k < 2; k++) {
            const json_t *row = json_array_get(json_object_get(t, k ? "video" : "audio"), l);
            assert_int_equal(json_array_size(row), count(t, "chunks"));
            for (size_t c = 0; c < json_array_size(row); c++) sum += json_integer_value(json_array_get(row, c));
        }
        assert_int_equal(sum, json_integer_value(json_array_get(kept, l)));
        if (l) assert_true(json_integer_value(json_array_get(kept, l)) <= json_integer_value(json_array_get(kept, l - 1)));
    }
    assert_true(count(o, "kv_bytes") > 0 && count(o, "kv_bytes") < count(o, "kv_bytes_unpruned"));
    json_decref(r);
    r = run("/v1/chat/completions", ASK ",\"omnidrop\":{\"policy\":\"omnidrop\",\"retention\":0.5}}", 200);
    assert_null(json_object_get(r, "omnidrop"));
    json_decref(r);
    /* B20: out of reach once step 0 took its share. */
    r = run("/v1/chat/completions", ASK ",\"omnidrop\":{\"policy\":\"omnidrop\",\"retention\":0.99}}", 400);
    assert_string_equal(json_string_value(at(r, "error", "code")), "invalid_value");
    assert_string_equal(json_string_value(at(r, "error", "param")), "omnidrop.retention");
    json_decref(r);
}

/* The words that wrappers look for. */
static void the_context_is_bounded(void **state)
{
    (void)state;
    json_t *r = run("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":5000}", 400);
    assert_string_equal(json_string_value(at(r, "error", "code")), "context_length_exceeded");
    const char *text = json_string_value(at(r, "error", "message"));
    if (strncmp(text, "This model's maximum context length is 2048 tokens.", 51) != 0) fail_msg("%s", text);
    json_decref(r);
    r = run("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"video_url\",\"video_url\":"
                                    "\"file:tests/data/media/no-such-film.mp4\"}]}]}", 400);
    assert_null(strstr(json_string_value(at(r, "error", "message")), "/work"));
    json_decref(r);
}

/* ---- streams ---------------------------------------------------------------------------------------------- */

struct got {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char text[4096];
    int n_finish, n_usage;
    bool done, failed;
};

static void on_chunk(void *self, json_t *chunk)
{
    struct got *g = self;
    follows(chunk, "ChatChunk");
    const json_t *c = first(chunk);
    const char *s = json_string_value(at(c, "delta", "content"));
    if (s) strncat(g->text, s, sizeof g->text - strlen(g->text) - 1);
    g->n_finish += json_is_string(json_object_get(c, "finish_reason"));
    g->n_usage += json_is_object(json_object_get(chunk, "usage"));
    json_decref(chunk);
}

static void on_done(void *self, json_t *reply, const struct err *error)
{
    struct got *g = self;
    json_decref(reply);
    pthread_mutex_lock(&g->lock);
    g->failed = error != NULL;
    g->done = true;
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void a_stream_says_the_same(void **state)
{
    (void)state;
    struct got g = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
    const struct api_sink sink = { .self = &g, .chunk = on_chunk, .done = on_done };
    const char *body = ASK ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
    struct api_job *j;
    struct err e;
    uint64_t id;
    json_t *r = run("/v1/chat/completions", ASK "}", 200);
    if (api_chat_parse(api, body, strlen(body), &caller, &j, &e) != OK) fail_msg("%s", e.text);
    if (api_job_start(&j, &sink, &id, &e) != OK) fail_msg("%s", e.text);
    pthread_mutex_lock(&g.lock);
    while (!g.done) pthread_cond_wait(&g.changed, &g.lock);
    pthread_mutex_unlock(&g.lock);
    assert_false(g.failed);
    assert_string_equal(g.text, content(r));
    assert_true(g.n_finish == 1 && g.n_usage == 1);
    json_decref(r);
}

/* ---- completions ------------------------------------------------------------------------------------------ */

static void completions(void **state)
{
    (void)state;
    json_t *r = run("/v1/completions", "{\"prompt\":[\"one two\",\"three\"],\"n\":2,\"temperature\":1,\"seed\":4,\"max_tokens\":5,"
                                       "\"echo\":true}", 200);
    json_t *again = run("/v1/completions", "{\"prompt\":[\"one two\",\"three\"],\"n\":2,\"temperature\":1,\"seed\":4,\"max_tokens\":5,"
                                           "\"echo\":true}", 200);
    const json_t *c = json_object_get(r, "choices");
    assert_int_equal(json_array_size(c), 4);
    for (size_t i = 0; i < 4; i++) {
        const char *text = json_string_value(json_object_get(json_array_get(c, i), "text"));
        assert_true(strncmp(text, i < 2 ? "one two" : "three", i < 2 ? 7 : 5) == 0);
    }
    assert_true(json_equal(c, json_object_get(again, "choices")));
    json_decref(r);
    json_decref(again);
}

/* A token that the model chose ends the answer when it is a stop id, banned until min_tokens by the sampler. */
static void stops(void **state)
{
    (void)state;
    char body[300];
    json_t *r = run("/v1/completions", "{\"prompt\":\"one two\",\"temperature\":0,\"max_tokens\":6,\"return_token_ids\":true,"
                                       "\"ignore_eos\":true}", 200);
    const json_int_t third = json_integer_value(json_array_get(json_object_get(first(r), "token_ids"), 2));
    snprintf(body, sizeof body, "{\"prompt\":\"one two\",\"temperature\":0,\"max_tokens\":6,\"ignore_eos\":true,\"stop_token_ids\":"
             "[%lld]}", (long long)third);
    json_t *s = run("/v1/completions", body, 200);
    assert_string_equal(json_string_value(json_object_get(first(s), "finish_reason")), "stop");
    assert_true(count(json_object_get(s, "usage"), "completion_tokens") <= 3);
    json_decref(r);
    json_decref(s);
}

static int open_all(void **state)
{
    (void)state;
    struct err e;
    const struct service_options so = { .n_workers = 1 };
    if (service_open(fake_engine(), &so, &service, &e) != OK) fail_msg("%s", e.text);
    if (api_create(&(struct api_options){ .service = service }, &api, &e) != OK) fail_msg("%s", e.text);
    openapi = api_openapi(api);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    service_close(&service);
    api_destroy(&api);
    json_decref(openapi);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(usage_adds_up), cmocka_unit_test(sound_can_be_left_out), cmocka_unit_test(pruning_is_told),
        cmocka_unit_test(the_context_is_bounded),
        cmocka_unit_test(a_stream_says_the_same), cmocka_unit_test(completions), cmocka_unit_test(stops),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
