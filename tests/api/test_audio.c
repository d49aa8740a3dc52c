/* Goal: transcriptions and translations over the API answer as docs/http-api.md 1.7 and 5 say: every rule of a field, every
 * form of reply, events whose deltas are the text, several files at once, cancels, a second try that goes on from the
 * windows of the first. Method: the bundled model and its demo clips; sounds are made of them in memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/audio_inside.h"
#include "base/clock.h"
#include "engine/languages.h"
#include "tests/media/child_hook.h"

#define DEMO "tests/data/omni-tiny-demo/"

static struct engine *engine;
static struct service *service;
static struct api *api;
static struct api_audio *audio;
static char cache[64];

/* ---- sounds ------------------------------------------------------------------------------------------------- */

static void read_file(const char *path, char **bytes, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) fail_msg("%s is not there", path);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    *bytes = malloc(*n);
    assert_int_equal(fread(*bytes, 1, *n, f), *n);
    fclose(f);
}

static struct media_source source_of(const char *bytes, size_t n)
{
    struct media_source s;
    struct err e;
    if (media_source_of_bytes(bytes, n, "file", "/tmp", &s, &e) != OK) fail_msg("%s", e.text);
    return s;
}

static struct media_source clip(const char *path)
{
    char *bytes;
    size_t n;
    read_file(path, &bytes, &n);
    const struct media_source s = source_of(bytes, n);
    free(bytes);
    return s;
}

/* Clips of 16 kHz 16 bit mono WAV one after the other, `times` over, half a second of quiet between them. */
static struct media_source long_sound(int times)
{
    static const char *const path[] = { DEMO "phrase000.wav", DEMO "speech000.wav" };
    size_t n = 44, cap = 44;
    char *out = calloc(1, cap);
    for (int i = 0; i < times * 2; i++) {
        char *bytes;
        size_t got;
        read_file(path[i % 2], &bytes, &got);
        const char *data = memmem(bytes, got, "data", 4);
        assert_non_null(data);
        const size_t body = got - (size_t)(data + 8 - bytes);
        out = realloc(out, cap += body + 16000);
        memcpy(out + n, data + 8, body);
        memset(out + n + body, 0, 16000);
        n = cap;
        free(bytes);
    }
    const uint32_t head[11] = { 0x46464952, (uint32_t)n - 8, 0x45564157, 0x20746d66, 16, 0x10001, 16000, 32000, 0x100002,
                                0x61746164, (uint32_t)n - 44 };
    memcpy(out, head, 44);
    const struct media_source s = source_of(out, n);
    free(out);
    return s;
}

/* ---- calls -------------------------------------------------------------------------------------------------- */

struct call {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    json_t *chunks;
    struct api_audio_reply reply;
    struct err error;
    bool done, replied;
    double progress;
    size_t cancel_after;           /* chunks; 0: never */
    uint64_t id;
};

static void on_chunk(void *self, json_t *chunk)
{
    struct call *c = self;
    pthread_mutex_lock(&c->lock);
    assert_non_null(chunk);
    json_array_append_new(c->chunks, chunk);
    const bool enough = c->cancel_after && json_array_size(c->chunks) >= c->cancel_after;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (enough) api_audio_cancel(audio, c->id);
}

static void on_progress(void *self, const char *phase, double done)
{
    struct call *c = self;
    assert_string_equal(phase, "transcribe");
    assert_true(done >= c->progress && done <= 1);
    c->progress = done;
}

static void on_done(void *self, struct api_audio_reply *reply, const struct err *error)
{
    struct call *c = self;
    pthread_mutex_lock(&c->lock);
    assert_false(c->done);
    if (reply) c->reply = *reply, c->replied = true;
    if (error) c->error = *error;
    c->done = true;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static status parse(struct media_source s, bool translate, const char *const *field, const char *key,
                    struct api_audio_job **j, struct err *e)
{
    struct api_audio_field f[32] = { { "file", NULL, "a.wav" } };
    size_t n = s.fd >= 0;
    for (; field && *field; field += 2) f[n++] = (struct api_audio_field){ field[0], field[1], NULL };
    const struct api_caller who = { .request_id = "r1", .key = key };
    *e = (struct err){ 0 };
    *j = NULL;
    return api_audio_parse_form(audio, translate, f, n, &s, &who, j, e);
}

static void begin_until(struct call *c, size_t cancel_after, struct media_source s, bool translate, const char *const *field,
                        const char *key)
{
    struct api_audio_job *j;
    struct err e;
    if (parse(s, translate, field, key, &j, &e) != OK) fail_msg("%s (%s)", e.text, e.param);
    *c = (struct call){ .chunks = json_array(), .cancel_after = cancel_after };
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    const struct api_audio_sink sink = { c, on_chunk, on_progress, on_done };
    if (api_audio_start(&j, &sink, &c->id, &e) != OK) fail_msg("%s", e.text);
    assert_null(j);
}

static void begin(struct call *c, struct media_source s, bool translate, const char *const *field, const char *key)
{
    begin_until(c, 0, s, translate, field, key);
}

static void wait_chunks(struct call *c, size_t n)
{
    pthread_mutex_lock(&c->lock);
    while (!c->done && json_array_size(c->chunks) < n) pthread_cond_wait(&c->changed, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

static void end(struct call *c)
{
    pthread_mutex_lock(&c->lock);
    while (!c->done) pthread_cond_wait(&c->changed, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

static void drop(struct call *c)
{
    json_decref(c->chunks);
    api_audio_reply_free(&c->reply);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
}

static void ask(struct call *c, struct media_source s, bool translate, const char *const *field)
{
    begin(c, s, translate, field, "key");
    end(c);
    if (c->error.code != OK) fail_msg("%s", c->error.text);
}

static const char *text_of(const json_t *o, const char *key) { return json_string_value(json_object_get(o, key)); }
static double number_of(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }

#define FIELDS(...) (const char *const[]){ __VA_ARGS__, NULL }

/* ---- rules of the fields ------------------------------------------------------------------------------------ */

static void refuses(struct media_source s, const char *const *field, const char *code, const char *param)
{
    struct api_audio_job *j;
    struct err e;
    if (parse(s, false, field, "", &j, &e) == OK) fail_msg("taken: %s=%s", field[0], field[1]);
    const struct api_error w = api_error_of(&e);
    if (strcmp(w.code, code) != 0 || w.status != (strcmp(code, "model_not_found") == 0 ? 404 : 400))
        fail_msg("%s=%s: %d %s (%s)", field[0], field[1], w.status, w.code, e.text);
    if (strcmp(e.param, param) != 0) fail_msg("%s=%s: param %s, not %s", field[0], field[1], e.param, param);
}

static void takes(const char *const *field)
{
    struct api_audio_job *j;
    struct err e;
    if (parse(clip(DEMO "phrase000.wav"), false, field, "", &j, &e) != OK)
        fail_msg("%s=%s: %s (%s)", field[0], field[1], e.text, e.param);
    api_audio_job_free(&j);
}

static void fields_refused(void **state)
{
    static const char *const row[][4] = {
        { "timestamp_granularities[]", "word", "unsupported_timestamp_granularity", "timestamp_granularities[0]" },
        { "timestamp_granularities[]", "page", "invalid_value", "timestamp_granularities[0]" },
        { "timestamp_granularities[]", "segment", "invalid_value", "timestamp_granularities" },
        { "language", "klingon", "invalid_language", "language" },
        { "languages[]", "klingon", "invalid_language", "languages[0]" },
        { "response_format", "ass", "invalid_value", "response_format" },
        { "response_format", "diarized_json", "invalid_value", "response_format" },
        { "model", "gpt-77", "model_not_found", "model" },
        { "temperature", "1.5", "invalid_value", "temperature" },
        { "temperature", "warm", "invalid_type", "temperature" },
        { "seed", "1.5", "invalid_type", "seed" },
        { "top_p", "0", "invalid_value", "top_p" },
        { "stream", "maybe", "invalid_type", "stream" },
        { "include[]", "everything", "invalid_value", "include[0]" },
        { "known_speaker_names[]", "Ada", "unsupported_parameter", "known_speaker_names" },
        { "known_speaker_references[]", "data:", "unsupported_parameter", "known_speaker_references" },
        { "chunking_strategy", "none", "invalid_value", "chunking_strategy" },
        { "chunking_strategy[type]", "magic", "invalid_value", "chunking_strategy.type" },
        { "omnidrop[window_s]", "1000", "invalid_value", "omnidrop.window_s" },
        { "omnidrop[overlap_s]", "50", "invalid_value", "omnidrop.overlap_s" },
        { "omnidrop[start]", "yesterday", "invalid_value", "omnidrop.start" },
        { "omnidrop[use_video]", "true", "unsupported_parameter", "omnidrop.use_video" },
        { "omnidrop[on_window_error]", "shrug", "invalid_value", "omnidrop.on_window_error" },
        { "omnidrop[to_language]", "german", "unsupported_parameter", "omnidrop.to_language" },
        { "omnidrop[tempo]", "3", "invalid_value", "omnidrop.tempo" },
        { "omnidrop[retention]", "7", "invalid_value", "omnidrop.retention" },
        { "omnidrop", "{", "invalid_json", "omnidrop" },
        { "keywords[]", "", "invalid_value", "keywords[0]" },
        { "file_id", "file-1", "invalid_value", "file" },
        { "prompt", "\xff\xfe", "invalid_value", "prompt" } };
    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        refuses(clip(DEMO "phrase000.wav"), FIELDS(row[i][0], row[i][1]), row[i][2], row[i][3]);
    refuses(clip(DEMO "phrase000.wav"), FIELDS("stream", "1", "response_format", "srt"), "invalid_value", "stream");
    refuses(clip(DEMO "phrase000.wav"), FIELDS("include[]", "logprobs", "response_format", "vtt"), "invalid_value", "include");
    refuses(clip(DEMO "phrase000.wav"), FIELDS("omnidrop[start]", "5", "omnidrop[end]", "00:03"), "invalid_value", "omnidrop.end");
    char *words = malloc(20001);
    memset(words, 'a', 20000);
    for (int i = 1; i < 20000; i += 2) words[i] = ' ';
    words[20000] = 0;
    refuses(clip(DEMO "phrase000.wav"), FIELDS("prompt", words), "invalid_value", "prompt");
    free(words);
    /* B33: no file at all; a file sent as text. */
    const struct media_source none = { .fd = -1 };
    refuses(none, FIELDS("model", ""), "missing_required_parameter", "file");
    refuses(none, FIELDS("file", "RIFF"), "invalid_type", "file");
}

static void fields_taken(void **state)
{
    (void)state;
    takes(FIELDS("language", "EN"));
    takes(FIELDS("language", "eng"));
    takes(FIELDS("language", "German"));
    takes(FIELDS("language", ""));
    takes(FIELDS("stream", "True"));
    takes(FIELDS("stream", "0", "response_format", "vtt"));
    takes(FIELDS("stream", "true", "timestamp_granularities[]", "segment"));
    takes(FIELDS("response_format", "verbose_json", "timestamp_granularities[]", "segment"));
    takes(FIELDS("response_format", "json", "include[]", "logprobs"));
    takes(FIELDS("chunking_strategy", "auto"));
    takes(FIELDS("chunking_strategy[type]", "server_vad", "chunking_strategy[threshold]", "0.5"));
    takes(FIELDS("chunking_strategy", "{\"type\":\"server_vad\"}"));
    takes(FIELDS("omnidrop", "{\"window_s\":12,\"policy\":\"none\"}"));
    takes(FIELDS("omnidrop[policy]", "omnidrop", "omnidrop[retention]", "0.6"));
    takes(FIELDS("vad_filter", "true"));
    struct api_audio_job *j;
    struct err e;
    assert_int_equal(parse(clip(DEMO "phrase000.wav"), false,
                           FIELDS("prompt", "Names.", "keywords[]", "Ada", "keywords[]", "Omnidrop", "languages[]", "de",
                                  "omnidrop[start]", "00:01:02.5", "omnidrop[end]", "1:00:00", "omnidrop[window_s]", "20",
                                  "omnidrop[on_window_error]", "mark", "temperature", "0.25", "seed", "-3"), "k", &j, &e), OK);
    assert_string_equal(j->o.context, "Names.\nAda, Omnidrop");
    assert_string_equal(j->p.languages[0], "german");
    assert_true(j->p.start_s == 62.5 && j->p.end_s == 3600 && j->o.windows.window_s == 20 && j->o.temperature == 0.25);
    assert_false(j->o.fail_on_gap);
    assert_string_equal(prune_params_name(j->o.policy), "none");
    api_audio_job_free(&j);
}

/* ---- replies ------------------------------------------------------------------------------------------------ */

#define WORDS "sleep green three nine jump sing bird cat"

static void replies(void **state)
{
    struct call c;
    (void)state;
    ask(&c, clip(DEMO "speech000.wav"), false, FIELDS("language", "en"));
    assert_string_equal(text_of(c.reply.json, "text"), WORDS);
    const json_t *usage = json_object_get(c.reply.json, "usage");
    assert_string_equal(text_of(usage, "type"), "duration");
    assert_true(fabs(number_of(usage, "seconds") - 5.7) < 0.5);
    assert_int_equal(json_object_size(c.reply.json), 2);
    drop(&c);
    ask(&c, clip(DEMO "speech000.wav"), false, FIELDS("response_format", "text"));
    assert_string_equal(c.reply.bytes, WORDS "\n");
    assert_int_equal(strncmp(c.reply.content_type, "text/plain", 10), 0);
    drop(&c);
    ask(&c, clip(DEMO "speech000.wav"), false, FIELDS("response_format", "srt"));
    assert_int_equal(strncmp(c.reply.bytes, "1\n00:00:0", 9), 0);
    assert_non_null(strstr(c.reply.bytes, " --> "));
    assert_int_equal(strncmp(c.reply.content_type, "application/x-subrip", 20), 0);
    drop(&c);
    ask(&c, clip(DEMO "speech000.wav"), false, FIELDS("response_format", "vtt"));
    assert_int_equal(strncmp(c.reply.bytes, "WEBVTT\n\n", 8), 0);
    assert_int_equal(strncmp(c.reply.content_type, "text/vtt", 8), 0);
    drop(&c);
    ask(&c, clip(DEMO "av000.mp4"), true, FIELDS("response_format", "verbose_json"));
    assert_string_equal(text_of(c.reply.json, "task"), "translate");
    assert_string_equal(text_of(c.reply.json, "text"), "zero bird then");
    drop(&c);
}

static void verbose_json(void **state)
{
    static const char *const keys[] = { "id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob",
                                        "compression_ratio", "no_speech_prob" };
    struct call c;
    (void)state;
    ask(&c, long_sound(3), false, FIELDS("response_format", "verbose_json", "omnidrop[return_pruning]", "true"));
    const json_t *segments = json_object_get(c.reply.json, "segments"), *own = json_object_get(c.reply.json, "omnidrop");
    size_t i;
    json_t *s;
    double last = 0;
    assert_string_equal(text_of(c.reply.json, "language"), "english");
    assert_true(json_is_number(json_object_get(c.reply.json, "duration")));
    assert_true(json_array_size(segments) >= 3);
    json_array_foreach(segments, i, s)
    {
        assert_int_equal(json_object_size(s), 10);
        for (size_t k = 0; k < 10; k++) assert_non_null(json_object_get(s, keys[k]));
        assert_int_equal(json_integer_value(json_object_get(s, "id")), i);
        assert_true(number_of(s, "start") >= last && number_of(s, "end") > number_of(s, "start"));
        assert_true(number_of(s, "seek") <= number_of(s, "start") * 100 + 1);
        assert_true(number_of(s, "avg_logprob") <= 0 && number_of(s, "compression_ratio") > 0);
        assert_true(number_of(s, "no_speech_prob") >= 0 && number_of(s, "no_speech_prob") < 1);
        assert_true(json_array_size(json_object_get(s, "tokens")) > 0);
        last = number_of(s, "end");
    }
    assert_true(last <= number_of(c.reply.json, "duration") + 0.001);
    assert_true(json_array_size(json_object_get(own, "windows")) >= 3);
    assert_int_equal(json_array_size(json_object_get(own, "timing")), json_array_size(segments));
    drop(&c);
}

static void stream(void **state)
{
    struct call c, whole;
    (void)state;
    ask(&whole, long_sound(3), false, FIELDS("language", "en"));
    ask(&c, long_sound(3), false, FIELDS("stream", "true", "timestamp_granularities[]", "segment", "include[]", "logprobs"));
    char all[4096] = "";
    size_t i, n_segments = 0, n_deltas = 0;
    json_t *o;
    json_array_foreach(c.chunks, i, o)
    {
        const char *type = text_of(o, "type");
        if (strcmp(type, "transcript.text.delta") == 0) strcat(all, text_of(o, "delta")), n_deltas++;
        if (strcmp(type, "transcript.text.segment") == 0) n_segments++;
        assert_true((strcmp(type, "transcript.text.done") == 0) == (i + 1 == json_array_size(c.chunks)));
    }
    const json_t *done = json_array_get(c.chunks, json_array_size(c.chunks) - 1), *usage = json_object_get(done, "usage");
    assert_string_equal(text_of(done, "text"), all);
    assert_string_equal(text_of(whole.reply.json, "text"), all);
    assert_true(n_segments == n_deltas && n_deltas >= 3);
    assert_string_equal(text_of(usage, "type"), "tokens");
    assert_true(number_of(usage, "total_tokens") == number_of(usage, "input_tokens") + number_of(usage, "output_tokens"));
    assert_true(number_of(json_object_get(usage, "input_token_details"), "audio_tokens") > 100);
    const json_t *logprobs = json_object_get(done, "logprobs");
    char spoken[4096] = "";
    json_array_foreach(logprobs, i, o)
    {
        assert_true(number_of(o, "logprob") <= 0);
        strcat(spoken, text_of(o, "token"));
    }
    assert_true(strncmp(spoken + (*spoken == ' '), all, 8) == 0);
    assert_false(c.replied);
    drop(&c);
    drop(&whole);
}

/* ---- what goes wrong ---------------------------------------------------------------------------------------- */

static void fails(struct media_source s, const char *const *field, int status_code, const char *code)
{
    struct call c;
    begin(&c, s, false, field, "key");
    end(&c);
    assert_int_not_equal(c.error.code, OK);
    const struct api_error w = api_error_of(&c.error);
    if (w.status != status_code || strcmp(w.code, code) != 0) fail_msg("%d %s: %s", w.status, w.code, c.error.text);
    assert_null(strstr(c.error.text, "/tmp"));
    drop(&c);
}

static void bad_files(void **state)
{
    (void)state;
    fails(source_of("this is no sound at all, not in the least", 41), FIELDS("language", "en"), 400, "unsupported_media");
    fails(clip(DEMO "image000.png"), FIELDS("language", "en"), 400, "media_decode_failed");
    fails(clip(DEMO "phrase000.wav"), FIELDS("omnidrop[start]", "99"), 400, "media_decode_failed");
}

static void cancelled(void **state)
{
    struct call c;
    (void)state;
    begin(&c, long_sound(60), false, FIELDS("stream", "true", "include[]", "logprobs"), "cancel");
    wait_chunks(&c, 2);
    assert_false(c.done);
    const double from = clock_s();
    api_audio_cancel(audio, c.id);
    end(&c);
    assert_int_equal(c.error.code, E_CANCELLED);
    assert_true(clock_s() - from < 5);
    drop(&c);
    struct service_view view[4];
    for (int i = 0; i < 100 && service_list(service, view, 4); i++) usleep(50000);
    assert_int_equal(service_list(service, view, 4), 0);
}

/* A model of random weights never comes to an end: the gap is an error, or marked where that was asked for. */
static void incomplete(void **state)
{
    struct api_audio *const good = audio;
    struct engine *en;
    struct service *s;
    struct api *a;
    struct err e;
    struct call c;
    (void)state;
    const struct engine_options eo = { .model_dir = "tests/goldens/odd/checkpoint", .device = "cpu", .n_threads = 1 };
    const struct service_options so = { 0 };
    if (engine_open(&eo, &en, &e) != OK || service_open(en, &so, &s, &e) != OK) fail_msg("%s", e.text);
    const struct api_options ao = { .service = s };
    if (api_create(&ao, &a, &e) != OK) fail_msg("%s", e.text);
    const struct api_audio_options o = { .api = a, .n_threads = 1 };
    if (api_audio_create(&o, &audio, &e) != OK) fail_msg("%s", e.text);
    fails(clip(DEMO "speech000.wav"), FIELDS("omnidrop[window_s]", "5", "language", "en"), 500, "transcription_incomplete");
    ask(&c, clip(DEMO "speech000.wav"), false, FIELDS("omnidrop[window_s]", "5", "language", "en", "omnidrop[on_window_error]",
                                                      "mark", "response_format", "verbose_json"));
    assert_string_equal(text_of(c.reply.json, "text"), "");
    assert_int_equal(json_array_size(json_object_get(c.reply.json, "segments")), 0);
    const json_t *failed = json_object_get(json_object_get(c.reply.json, "omnidrop"), "failed_windows");
    assert_int_equal(json_array_size(failed), 2);
    assert_non_null(text_of(json_array_get(failed, 0), "code"));
    drop(&c);
    ask(&c, clip(DEMO "speech000.wav"), false, FIELDS("omnidrop[window_s]", "5", "language", "en", "omnidrop[on_window_error]",
                                                      "mark", "response_format", "srt"));
    assert_non_null(strstr(c.reply.bytes, "[untranscribed 00:00:0"));
    drop(&c);
    api_audio_destroy(&audio);
    api_destroy(&a);
    service_close(&s);
    engine_close(&en);
    audio = good;
}

/* Two files and a cancelled third side by side: each gets its own text. */
static void several(void **state)
{
    struct call c[3];
    (void)state;
    begin(&c[0], clip(DEMO "speech000.wav"), false, FIELDS("seed", "1"), "several");
    begin(&c[2], long_sound(40), false, FIELDS("seed", "1"), "several");
    begin(&c[1], clip(DEMO "phrase001.wav"), false, FIELDS("seed", "1"), "several");
    end(&c[0]);
    end(&c[1]);
    api_audio_cancel(audio, c[2].id);
    end(&c[2]);
    assert_string_equal(text_of(c[0].reply.json, "text"), WORDS);
    assert_string_equal(text_of(c[1].reply.json, "text"), "fish left six seven");
    assert_int_equal(c[2].error.code, E_CANCELLED);
    for (int i = 0; i < 3; i++) drop(&c[i]);
}

/* ---- the window cache --------------------------------------------------------------------------------------- */

#define IN_PIECES(...) FIELDS("omnidrop[window_s]", "6", "omnidrop[overlap_s]", "1", __VA_ARGS__)

static void goes_on(void **state)
{
    struct call c;
    struct api_audio_counts before, after;
    (void)state;
    begin_until(&c, 5, long_sound(7), false, IN_PIECES("stream", "true"), "mine");
    end(&c);
    assert_int_equal(c.error.code, E_CANCELLED);
    drop(&c);
    api_audio_read(audio, &before);
    begin(&c, long_sound(7), false, IN_PIECES("stream", "false"), "theirs");
    end(&c);
    api_audio_read(audio, &after);
    assert_int_equal(before.n_windows_replayed, after.n_windows_replayed);     /* nobody else's */
    char *fresh = strdup(text_of(c.reply.json, "text"));
    drop(&c);
    begin(&c, long_sound(7), false, IN_PIECES("stream", "false"), "mine");
    end(&c);
    api_audio_read(audio, &after);
    assert_true(after.n_windows_replayed >= before.n_windows_replayed + 2);
    assert_string_equal(text_of(c.reply.json, "text"), fresh);
    free(fresh);
    drop(&c);
    before = after;
    begin(&c, long_sound(7), false, IN_PIECES("stream", "true"), "mine");        /* all of it: and the bill is the same */
    end(&c);
    const json_t *usage = json_object_get(json_array_get(c.chunks, json_array_size(c.chunks) - 1), "usage");
    assert_true(number_of(json_object_get(usage, "input_token_details"), "audio_tokens") > 500);
    drop(&c);
    api_audio_read(audio, &after);
    assert_true(after.n_windows_replayed > before.n_windows_replayed + 8);
    before = after;
    begin(&c, long_sound(7), false, IN_PIECES("seed", "5"), "mine");             /* another wish */
    end(&c);
    api_audio_read(audio, &after);
    assert_int_equal(before.n_windows_replayed, after.n_windows_replayed);
    drop(&c);
}

/* ---- batch lines -------------------------------------------------------------------------------------------- */

static status resolve(void *self, void *owner, const struct chat_part *part, int frame, const atomic_bool *stop,
                      struct media_source *out, struct err *e)
{
    (void)self, (void)frame, (void)stop;
    assert_string_equal(((struct api_owner *)owner)->key, "batch");
    if (strcmp(part->url, "file-id:file-7") == 0) {
        *out = clip(DEMO "speech000.wav");
        return OK;
    }
    err_set(e, E_ARG, "%s: there is no such file", part->path);
    return err_tag(e, "not_found", NULL);
}

static void batch_line(const char *endpoint, const char *body, int want, const char *text)
{
    const struct api_caller who = { .request_id = "b1", .key = "batch", .batch = true };
    int status_code;
    json_t *reply;
    api_audio_run(audio, endpoint, body, strlen(body), &who, NULL, &status_code, &reply);
    char *shown = json_dumps(reply, JSON_ENCODE_ANY);
    if (status_code != want || strstr(shown, text) == NULL) fail_msg("%s: %d %s", body, status_code, shown);
    free(shown);
    json_decref(reply);
}

static void batch_lines(void **state)
{
    static const char *const path = "/v1/audio/transcriptions";
    (void)state;
    batch_line(path, "{\"file_id\":\"file-7\"}", 200, "\"" WORDS "\"");
    batch_line(path, "{\"file_id\":\"file-7\",\"response_format\":\"srt\"}", 200, " --> ");
    batch_line("/v1/audio/translations", "{\"file_id\":\"file-7\"}", 200, WORDS);
    batch_line(path, "{\"file_id\":\"file-8\"}", 404, "not_found");
    batch_line(path, "{}", 400, "missing_required_parameter");
    batch_line(path, "{\"file\":\"abc\"}", 400, "invalid_type");
    batch_line(path, "{\"file_id\":\"file-7\",\"stream\":true}", 400, "\"stream\"");
    batch_line(path, "{\"file_id\":\"file-7\",\"temperature\":\"hot\"}", 400, "invalid_type");
    batch_line(path, "[", 400, "invalid_json");
    batch_line("/v1/audio/speech", "{}", 404, "unknown_endpoint");
}

/* ---- the language ------------------------------------------------------------------------------------------- */

struct samples { float *x; size_t n, at; };

static status read_samples(void *self, float *buf, size_t cap, size_t *n, struct err *e)
{
    struct samples *s = self;
    (void)e;
    *n = s->n - s->at < cap ? s->n - s->at : cap;
    memcpy(buf, s->x + s->at, *n * sizeof *buf);
    s->at += *n;
    return OK;
}

/* The answer is one of those allowed, or none where the model was far from all of them; never another word. */
static void language_forced(void **state)
{
    static const char *const names[] = { "malay", "malayalam", "maltese", "german", "chinese" };
    struct media *m;
    struct samples s = { 0 };
    struct transcript t;
    struct err e;
    (void)state;
    assert_int_equal(media_open(DEMO "speech000.wav", &m, &e), OK);
    const struct media_audio_options ao = { .keep_time = true };
    assert_int_equal(media_audio_load(m, &ao, 0, &s.x, &s.n, &e), OK);
    for (size_t n = 0; n <= 5; n += 5) {
        const struct transcribe_options o = { .windows = { .window_s = 6, .overlap_s = 1 }, .jobs = 2, .languages = names,
                                              .n_languages = n, .limits = { .max_segment_s = 7, .max_chars = 84 } };
        s.at = 0;
        if (transcribe_run(service, read_samples, &s, &o, &t, &e) != OK) fail_msg("%s", e.text);
        bool known = strcmp(t.language, "unknown") == 0;
        for (size_t i = 0; i < (n ? n : 500) && !known; i++) {
            const char *name = n ? names[i] : language_at(i);
            if (name == NULL) break;
            known = strcmp(t.language, name) == 0;
        }
        if (!known) fail_msg("language %s", t.language);
        assert_true(t.complete);
        transcript_free(&t);
    }
    free(s.x);
    media_close(&m);
}

static void compression(void **state)
{
    char loop[241] = "";
    (void)state;
    for (int i = 0; i < 24; i++) strcat(loop, "and so on ");
    assert_true(transcribe_compression(loop, strlen(loop)) > 2.4);
    assert_true(transcribe_compression(WORDS, strlen(WORDS)) < 1.5);
    assert_true(transcribe_compression("", 0) == 0);
}

/* ---- all ---------------------------------------------------------------------------------------------------- */

static int set_up(void **state)
{
    struct err e;
    (void)state;
    snprintf(cache, sizeof cache, "/tmp/test_audio.XXXXXX");
    assert_non_null(mkdtemp(cache));
    static const struct service_loader loader = { .resolve = resolve };
    const struct engine_options eo = { .model_dir = "models/omni-tiny", .device = "cpu", .n_threads = 1 };
    const struct service_options so = { 0 };
    if (engine_open(&eo, &engine, &e) != OK || service_open(engine, &so, &service, &e) != OK) fail_msg("%s", e.text);
    const struct api_options ao = { .service = service };
    if (api_create(&ao, &api, &e) != OK) fail_msg("%s", e.text);
    const struct api_audio_options o = { .api = api, .loader = &loader, .cache_dir = cache, .n_threads = 3 };
    if (api_audio_create(&o, &audio, &e) != OK) fail_msg("%s", e.text);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    struct call c;
    begin(&c, long_sound(60), false, FIELDS("seed", "9"), "key");
    api_audio_destroy(&audio);                     /* with a job at work: it is told */
    assert_true(c.done && c.error.code == E_CANCELLED);
    drop(&c);
    api_destroy(&api);
    service_close(&service);
    engine_close(&engine);
    DIR *d = opendir(cache);
    for (struct dirent *f; d && (f = readdir(d)) != NULL;)
        if (f->d_name[0] != '.') unlinkat(dirfd(d), f->d_name, 0);
    if (d) closedir(d);
    return rmdir(cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_refused), cmocka_unit_test(fields_taken),  cmocka_unit_test(replies),
        cmocka_unit_test(verbose_json),   cmocka_unit_test(stream),        cmocka_unit_test(bad_files),
        cmocka_unit_test(incomplete),
        cmocka_unit_test(cancelled),      cmocka_unit_test(several),       cmocka_unit_test(goes_on),
        cmocka_unit_test(batch_lines),    cmocka_unit_test(language_forced), cmocka_unit_test(compression) };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
