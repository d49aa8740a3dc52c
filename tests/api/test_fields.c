/* Goal: every field of docs/http-api.md 1.2, 1.5 and 1.6 is honoured, ignored or refused as the tables there say, with the
 * code and the place of 2.2; the rows of 6.2 that concern JSON. Method: bodies that break or use one rule each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/fields.h"
#include "tests/api/fake_service.h"

static const struct fake_script script;
static struct service *service;
static const struct api_caller caller = { .request_id = "r1", .key = "k" };

static struct api *make(struct api_options o)
{
    struct api *a;
    struct err e;
    static const char *const names[] = { "tiny", "org/name" };
    o.service = service;
    o.calls = &fake_calls;
    o.served_name = names;
    o.n_served_name = 2;
    if (api_create(&o, &a, &e) != OK) fail_msg("%s", e.text);
    return a;
}

static status parse(struct api *a, bool chat, const char *body, size_t n, struct api_job **j, struct err *e)
{
    *e = (struct err){ 0 };
    return chat ? api_chat_parse(a, body, n, &caller, j, e) : api_completion_parse(a, body, n, &caller, j, e);
}

/* The body is refused with this code and param. */
static void refuses(struct api *a, bool chat, const char *body, size_t n, const char *code, const char *param)
{
    struct api_job *j = NULL;
    struct err e;
    if (parse(a, chat, body, n, &j, &e) == OK) fail_msg("taken: %.300s", body);
    const struct api_error w = api_error_of(&e);
    if (strcmp(w.code, code) != 0) fail_msg("%.300s: %s (%s), not %s", body, w.code, e.text, code);
    if (param && strcmp(e.param, param) != 0) fail_msg("%.300s: param '%s', not '%s'", body, e.param, param);
    assert_string_equal(w.type, "invalid_request_error");
    assert_int_equal(w.status, strcmp(code, "model_not_found") == 0 ? 404 : 400);
    assert_true(e.text[0] != 0 && e.text[0] != ':');
}

#define CHAT(more) "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]" more "}"
#define TEXT(more) "{\"prompt\":\"hi\"" more "}"

static struct api_job *takes(struct api *a, bool chat, const char *body)
{
    struct api_job *j = NULL;
    struct err e;
    if (parse(a, chat, body, strlen(body), &j, &e) != OK) fail_msg("%s: %s (%s)", body, e.text, e.param);
    return j;
}

static void taken(struct api *a, bool chat, const char *body)
{
    struct api_job *j = takes(a, chat, body);
    api_job_free(&j);
}

/* ---- 6.2 -------------------------------------------------------------------------------------------------- */

struct bad { const char *body, *code, *param; };

static void bad_inputs(void **state)
{
    (void)state;
    static const struct bad bad[] = {
        { "", "invalid_json", "" },
        { "{\"messages\":[", "invalid_json", "" },                                                    /* B1 */
        { CHAT("") "x", "invalid_json", "" },                                                         /* B2 */
        { CHAT(",\"user\":\"\xff\""), "invalid_json", "" },                                           /* B3 */
        { CHAT(",\"user\":\"\\ud800\""), "invalid_json", "" },
        { CHAT(",\"model\":\"tiny\",\"model\":\"tiny\""), "invalid_json", "" },                       /* B5 */
        { "[]", "invalid_type", "" },                                                                 /* B6 */
        { "\"x\"", "invalid_type", "" },
        { "{}", "missing_required_parameter", "messages" },                                           /* B7 */
        { "{\"messages\":null}", "missing_required_parameter", "messages" },
        { "{\"messages\":[]}", "invalid_value", "messages" },
        { "{\"messages\":{}}", "invalid_type", "messages" },
        { "{\"messages\":[{\"role\":\"wizard\",\"content\":\"\"}]}", "invalid_value", "messages[0].role" },   /* B8 */
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"smell\"}]}]}", "invalid_value",
          "messages[0].content[0].type" },                                                            /* B9 */
        { CHAT(",\"temperature\":3"), "invalid_value", "temperature" },                               /* B10 */
        { CHAT(",\"temperature\":NaN"), "invalid_json", "" },
        { CHAT(",\"temperature\":\"0.5\""), "invalid_type", "temperature" },
        { CHAT(",\"max_tokens\":0"), "invalid_value", "max_tokens" },                                 /* B11 */
        { CHAT(",\"max_tokens\":-5"), "invalid_value", "max_tokens" },
        { CHAT(",\"max_tokens\":1e99"), "invalid_value", "max_tokens" },
        { CHAT(",\"max_tokens\":99999999999999999999"), "invalid_value", NULL },
        { CHAT(",\"n\":100000"), "invalid_value", "n" },                                              /* B12 */
        { CHAT(",\"model\":\"nope\""), "model_not_found", "model" },                                  /* B13 */
        { CHAT(",\"stream_options\":{\"include_usage\":true}"), "invalid_value", "stream_options" },  /* B15 */
        { CHAT(",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{}}"), "unsupported_parameter",
          "response_format" },                                                                        /* B16 */
        { CHAT(",\"modalities\":[\"text\",\"audio\"]"), "unsupported_parameter", "modalities" },      /* B17 */
        { CHAT(",\"tools\":[{\"type\":\"function\"}]"), "unsupported_parameter", "tools" },           /* B18 */
        { CHAT(",\"omnidrop\":{\"retension\":0.3}"), "invalid_value", "omnidrop.retension" },         /* B19 */
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"retension\":0.3}"), "invalid_value", "omnidrop.retension" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"p_final\":1.5}"), "invalid_value", "omnidrop.p_final" },   /* B20 */
        { CHAT(",\"omnidrop\":{\"p_final\":1.5}"), "invalid_value", "omnidrop.p_final" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"p_final\":0.5,\"retention\":0.3}"), "invalid_value", "omnidrop" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":\"data:image/png;base64,\"}]}]}",
          "invalid_value", NULL },                                                                    /* B22 */
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":\"data:image/png;base64,@@@\"}]}]}",
          "invalid_value", NULL },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":\"data:image/png,abc\"}]}]}",
          "invalid_value", NULL },                                                                    /* B23 */
    };
    struct api *a = make((struct api_options){ 0 });
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuses(a, true, bad[i].body, strlen(bad[i].body), bad[i].code, bad[i].param);
    api_destroy(&a);
}

/* B4: depth and number of values. */
static void complex_bodies(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    const size_t n = 10000;
    char *deep = malloc(2 * n + 1), *many = malloc(300000);
    memset(deep, '[', n);
    memset(deep + n, ']', n);
    deep[2 * n] = 0;
    refuses(a, true, deep, 2 * n, "json_too_complex", "");
    size_t k = (size_t)sprintf(many, "{\"user\":[0");
    for (int i = 0; i < 100000; i++) k += (size_t)sprintf(many + k, ",0");
    k += (size_t)sprintf(many + k, "]}");
    refuses(a, true, many, k, "json_too_complex", "");
    free(deep);
    free(many);
    api_destroy(&a);
}

/* Names from strangers that are cut in the middle of a character still make an error that is JSON. */
static void cut_names(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ .unknown_fields = API_UNKNOWN_REJECT });
    for (size_t shift = 0; shift < 3; shift++) {
        char body[600], *p = body + sprintf(body, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"%.*s", (int)shift, "aa");
        for (int i = 0; i < 100; i++) p += sprintf(p, "\u20ac");
        sprintf(p, "\":1}");
        struct api_job *j;
        struct err e;
        assert_int_equal(parse(a, true, body, strlen(body), &j, &e), E_ARG);
        json_t *o = api_error_json(&e);
        assert_non_null(o);
        assert_non_null(strstr(json_string_value(json_object_get(json_object_get(o, "error"), "param")), "\u20ac"));
        json_decref(o);
    }
    api_destroy(&a);
}

/* ---- 1.2: refused and ignored ----------------------------------------------------------------------------- */

static void refused_fields(void **state)
{
    (void)state;
    static const char *const names[] = {
        "moderation", "web_search_options", "chat_template", "structured_outputs", "guided_json", "guided_regex", "grammar",
        "use_beam_search", "best_of", "truncate_prompt_tokens", "prompt_logprobs", "lora", "lora_request" };
    struct api *a = make((struct api_options){ 0 });
    char body[300];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(body, sizeof body, CHAT(",\"%s\":{}"), names[i]);
        refuses(a, true, body, strlen(body), "unsupported_parameter", names[i]);
        snprintf(body, sizeof body, CHAT(",\"%s\":null"), names[i]);
        taken(a, true, body);
    }
    static const struct bad bad[] = {
        { CHAT(",\"functions\":[{}]"), "unsupported_parameter", "functions" },
        { CHAT(",\"tool_choice\":\"auto\""), "unsupported_parameter", "tool_choice" },
        { CHAT(",\"function_call\":{\"name\":\"f\"}"), "unsupported_parameter", "function_call" },
        { CHAT(",\"response_format\":{\"type\":\"json_object\"}"), "unsupported_parameter", "response_format" },
        { CHAT(",\"response_format\":{\"type\":\"yaml\"}"), "invalid_value", "response_format.type" },
        { CHAT(",\"modalities\":[\"smell\"]"), "invalid_value", "modalities[0]" },
        { CHAT(",\"priority\":3"), "unsupported_parameter", "priority" },
        { CHAT(",\"mm_processor_kwargs\":{\"size\":1}"), "unsupported_parameter", "mm_processor_kwargs.size" },
        { CHAT(",\"media_io_kwargs\":{\"image\":{}}"), "unsupported_parameter", "media_io_kwargs.image" },
        { CHAT(",\"media_io_kwargs\":{\"video\":{\"seek\":1}}"), "unsupported_parameter", "media_io_kwargs.video.seek" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuses(a, true, bad[i].body, strlen(bad[i].body), bad[i].code, bad[i].param);
    api_destroy(&a);
}

static void ignored_fields(void **state)
{
    (void)state;
    static const char *const names[] = {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "verbosity", "reasoning_effort", "parallel_tool_calls", "prediction", "request_id",
        "chat_template_kwargs", "cache_prompt", "cache_salt", "echo", "audio" };
    struct api *a = make((struct api_options){ 0 }), *strict = make((struct api_options){ .unknown_fields = API_UNKNOWN_REJECT });
    char body[300];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(body, sizeof body, CHAT(",\"%s\":{\"x\":1}"), names[i]);
        taken(a, true, body);
        taken(strict, true, body);
    }
    taken(a, true, CHAT(",\"tools\":[],\"functions\":[],\"tool_choice\":\"none\",\"function_call\":\"none\""));
    taken(a, true, CHAT(",\"response_format\":{\"type\":\"text\"},\"modalities\":[\"text\"]"));
    taken(a, true, CHAT(",\"never_heard_of\":1"));
    taken(a, true, CHAT(",\"stream\":true,\"stream_options\":{\"include_usage\":true,\"include_obfuscation\":false}"));
    refuses(strict, true, CHAT(",\"never_heard_of\":1"), strlen(CHAT(",\"never_heard_of\":1")), "unsupported_parameter",
            "never_heard_of");
    api_destroy(&a);
    api_destroy(&strict);
}

static void count_line(void *self, const char *line)
{
    assert_non_null(strstr(line, "never_heard_of"));
    ++*(int *)self;
}

static void unknown_fields_are_logged_once_an_hour(void **state)
{
    (void)state;
    int lines = 0;
    struct api *a = make((struct api_options){ .unknown_fields = API_UNKNOWN_LOG, .log = count_line, .log_self = &lines });
    for (int i = 0; i < 3; i++) taken(a, true, CHAT(",\"never_heard_of\":1"));
    assert_int_equal(lines, 1);
    api_destroy(&a);
}

/* null is absent, for every honoured field. */
static void null_is_absent(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    char body[300];
    for (const struct api_field *f = api_fields; f->name; f++) {
        if (strcmp(f->name, "messages") == 0 || strcmp(f->name, "prompt") == 0 || strchr(f->name, '*')) continue;
        snprintf(body, sizeof body, CHAT(",\"%s\":null"), f->name);
        if (f->where & API_CHAT) taken(a, true, body);
        snprintf(body, sizeof body, TEXT(",\"%s\":null"), f->name);
        if (f->where & API_COMPLETION) taken(a, false, body);
    }
    api_destroy(&a);
}

/* ---- 1.2: ranges ------------------------------------------------------------------------------------------ */

static void ranges(void **state)
{
    (void)state;
    static const struct { const char *field, *good, *bad, *wrong_type; } range[] = {
        { "max_completion_tokens", "1", "0", "true" }, { "temperature", "2", "2.01", "[]" }, { "temperature", "0", "-0.1", "{}" },
        { "top_p", "1", "1.1", "\"1\"" },              { "top_p", "0.001", "0", "true" },    { "n", "8", "9", "1.5" },
        { "seed", "-9223372036854775808", "1e40", "\"7\"" },                                 { "n", "1", "0", "\"1\"" },
        { "presence_penalty", "-2", "-2.1", "\"\"" },  { "frequency_penalty", "2", "2.1", "[]" },
        { "stop", "\"x\"", "\"\"", "7" },              { "stop", "[\"a\",\"b\"]", "[\"a\",\"\"]", "[1]" },
        { "logit_bias", "{\"5\":-100}", "{\"5\":-101}", "[]" },
        { "logit_bias", "{}", "{\"x\":1}", "{\"5\":\"1\"}" },
        { "logit_bias", "{\"0\":1}", "{\"99999999\":1}", "3" },                              { "top_k", "-1", "-2", "0.5" },
        { "logit_bias", "{\"1\":1}", "{\"01\":1,\"1\":1}", "\"\"" },
        { "min_p", "1", "1.1", "\"\"" },               { "repetition_penalty", "1.2", "0", "true" },
        { "min_tokens", "0", "-1", "\"1\"" },          { "stop_token_ids", "[1,2]", "[-1]", "[\"1\"]" },
        { "stop_token_ids", "[]", "[99999999]", "7" }, { "stream", "true", NULL, "\"true\"" }, { "ignore_eos", "true", NULL, "1" },
        { "include_stop_str_in_output", "true", NULL, "0" },   { "skip_special_tokens", "false", NULL, "\"\"" },
        { "add_generation_prompt", "false", NULL, "1" },       { "continue_final_message", "false", NULL, "1" },
        { "return_token_ids", "true", NULL, "1" },     { "logprobs", "true", NULL, "5" },    { "omnidrop", "{}", NULL, "[]" },
        { "mm_processor_kwargs", "{\"fps\":2}", "{\"fps\":0}", "{\"fps\":\"2\"}" },
        { "mm_processor_kwargs", "{\"max_pixels\":9}", "{\"max_pixels\":9,\"min_pixels\":10}", "{\"use_audio_in_video\":1}" },
        { "media_io_kwargs", "{\"video\":{\"num_frames\":4}}", "{\"video\":{\"num_frames\":0}}", "{\"video\":4}" },
    };
    struct api *a = make((struct api_options){ 0 });
    char body[400];
    for (size_t i = 0; i < sizeof range / sizeof *range; i++) {
        snprintf(body, sizeof body, CHAT(",\"%s\":%s"), range[i].field, range[i].good);
        taken(a, true, body);
        snprintf(body, sizeof body, CHAT(",\"%s\":%s"), range[i].field, range[i].wrong_type);
        refuses(a, true, body, strlen(body), "invalid_type", NULL);
        if (range[i].bad == NULL) continue;
        snprintf(body, sizeof body, CHAT(",\"%s\":%s"), range[i].field, range[i].bad);
        refuses(a, true, body, strlen(body), "invalid_value", NULL);
    }
    static const struct bad bad[] = {
        { CHAT(",\"top_logprobs\":5"), "invalid_value", "top_logprobs" },
        { CHAT(",\"logprobs\":true,\"top_logprobs\":21"), "invalid_value", "top_logprobs" },
        { CHAT(",\"max_tokens\":3,\"min_tokens\":4"), "invalid_value", "min_tokens" },
        { CHAT(",\"stop\":[1]"), "invalid_type", "stop[0]" },
        { CHAT(",\"logit_bias\":{\"5\":true}"), "invalid_type", "logit_bias.5" },
        { CHAT(",\"continue_final_message\":true"), "invalid_value", "continue_final_message" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}", "invalid_value",
          "messages[1].role" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}],"
          "\"continue_final_message\":true,\"add_generation_prompt\":true}", "invalid_value", "add_generation_prompt" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuses(a, true, bad[i].body, strlen(bad[i].body), bad[i].code, bad[i].param);
    api_destroy(&a);
}

/* Sixteen stop strings of 256 bytes, and one more of either. */
static void stop_limits(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    char body[6000], *p = body;
    p += sprintf(p, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stop\":[");
    for (int i = 0; i < 16; i++) p += sprintf(p, "%s\"%0256d\"", i ? "," : "", i);
    char *end = p;
    sprintf(p, "]}");
    taken(a, true, body);
    sprintf(end, ",\"x\"]}");
    refuses(a, true, body, strlen(body), "invalid_value", "stop");
    sprintf(body, CHAT(",\"stop\":\"%0257d\""), 0);
    refuses(a, true, body, strlen(body), "invalid_value", "stop");
    api_destroy(&a);
}

/* ---- 1.2: honoured ---------------------------------------------------------------------------------------- */

static void honoured_fields(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ .priorities = true });
    struct api_job *j = takes(a, true, CHAT(
        ",\"max_completion_tokens\":7,\"max_tokens\":9,\"temperature\":0.5,\"top_p\":0.9,\"seed\":-3,\"n\":3,"
        "\"stop\":[\"a\",\"b\"],\"presence_penalty\":1,\"frequency_penalty\":-1,\"logit_bias\":{\"5\":2.5},\"logprobs\":true,"
        "\"top_logprobs\":4,\"stream\":true,\"stream_options\":{\"include_usage\":true},\"top_k\":11,\"min_p\":0.25,"
        "\"repetition_penalty\":1.5,\"min_tokens\":2,\"stop_token_ids\":[8,9],\"ignore_eos\":true,"
        "\"include_stop_str_in_output\":true,\"skip_special_tokens\":false,\"add_generation_prompt\":false,"
        "\"return_token_ids\":true,\"priority\":-4,\"model\":\"org/name\""));
    const struct sample_params *s = &j->o.sample;
    assert_int_equal(j->o.max_tokens, 7);
    assert_true(fabsf(s->temperature - 0.5f) < 1e-6f && fabsf(s->top_p - 0.9f) < 1e-6f && fabsf(s->min_p - 0.25f) < 1e-6f);
    assert_true(fabsf(s->presence_penalty - 1) < 1e-6f && fabsf(s->frequency_penalty + 1) < 1e-6f);
    assert_true(fabsf(s->repetition_penalty - 1.5f) < 1e-6f);
    assert_true(s->seed == (uint64_t)-3 && s->top_k == 11 && s->min_tokens == 2);
    assert_int_equal(s->n_logit_bias, 1);
    assert_int_equal(s->logit_bias[0].id, 5);
    assert_true(fabsf(s->logit_bias[0].bias - 2.5f) < 1e-6f);
    assert_int_equal(j->o.n_stop, 2);
    assert_string_equal(j->o.stop[1], "b");
    assert_int_equal(j->o.n_stop_id, 2);
    assert_int_equal(j->o.stop_id[1], 9);
    assert_true(j->o.ignore_eos && j->o.keep_stop_text && j->o.show_special_tokens && j->o.auto_audio);
    assert_true(j->logprobs && j->stream && j->include_usage && j->return_token_ids);
    assert_true(api_job_streams(j) && api_job_wants_usage(j));
    assert_int_equal(j->top_logprobs, 4);
    assert_int_equal(j->n, 3);
    assert_int_equal(j->priority, -4);
    assert_true(j->group[0].rq.render->no_generation_prompt);
    assert_string_equal(j->owner.key, "k");
    api_job_free(&j);

    j = takes(a, true, CHAT(",\"max_tokens\":9"));
    assert_int_equal(j->o.max_tokens, 9);
    assert_true(!j->o.show_special_tokens && !j->logprobs && j->n == 1 && j->group[0].rq.render == NULL);
    api_job_free(&j);
    j = takes(a, true, CHAT(""));
    assert_int_equal(j->o.max_tokens, 0);
    api_job_free(&j);
    j = takes(a, true, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"so\"}],\"continue_final_message\":true}");
    assert_true(j->group[0].rq.render->continue_final);
    api_job_free(&j);
    api_destroy(&a);
}

/* The bundled model's own configuration says that it does not sample. */
static void defaults_of_the_model(void **state)
{
    (void)state;
    struct api *own = make((struct api_options){ 0 }), *none = make((struct api_options){ .generation_config_none = true });
    struct api_job *a = takes(own, true, CHAT("")), *b = takes(none, true, CHAT(""));
    assert_true(a->o.sample.temperature <= 0 && b->o.sample.temperature >= 1 && b->o.sample.top_p >= 1);
    assert_true(a->o.sample.seed != b->o.sample.seed);
    api_job_free(&a);
    api_job_free(&b);
    api_destroy(&own);
    api_destroy(&none);
}

static void media_defaults_reach_silent_parts(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    struct api_job *j = takes(a, true,
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"video_url\",\"video_url\":\"file:a\"},"
        "{\"type\":\"video_url\",\"video_url\":\"file:b\",\"fps\":4,\"max_frames\":6,\"use_audio\":true,\"max_pixels\":500},"
        "{\"type\":\"image_url\",\"image_url\":\"file:c\"}]}],"
        "\"mm_processor_kwargs\":{\"use_audio_in_video\":false,\"fps\":1,\"min_pixels\":100,\"max_pixels\":200},"
        "\"media_io_kwargs\":{\"video\":{\"num_frames\":32}}}");
    const struct chat_part *p = j->group[0].rq.chat.message[0].part;
    assert_true(fabs(p[0].options.fps - 1) < 1e-9 && p[0].options.max_frames == 32 && p[0].options.use_audio == 0);
    assert_true(p[0].options.min_pixels == 100 && p[0].options.max_pixels == 200);
    assert_true(fabs(p[1].options.fps - 4) < 1e-9 && p[1].options.max_frames == 6 && p[1].options.use_audio == 1);
    assert_true(p[1].options.min_pixels == 0 && p[1].options.max_pixels == 500);
    assert_true(p[2].options.fps <= 0 && p[2].options.max_pixels == 200);
    api_job_free(&j);
    api_destroy(&a);
}

/* ---- 1.6 -------------------------------------------------------------------------------------------------- */

static void the_extension_object(void **state)
{
    (void)state;
    static const struct bad bad[] = {
        { CHAT(",\"omnidrop\":{\"policy\":\"nope\"}"), "invalid_value", "omnidrop.policy" },
        { CHAT(",\"omnidrop\":{\"policy\":3}"), "invalid_type", "omnidrop.policy" },
        { CHAT(",\"omnidrop\":{\"policy\":\"none\",\"beta\":3}"), "invalid_value", "omnidrop.beta" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"beta\":\"3\"}"), "invalid_type", "omnidrop.beta" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"beta\":0}"), "invalid_value", "omnidrop.beta" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"retention\":0}"), "invalid_value", "omnidrop.retention" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"step0\":1}"), "invalid_type", "omnidrop.step0" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"tds_start_layer\":1.5}"), "invalid_value", "omnidrop.tds_start_layer" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"tds_start_layer\":900}"), "invalid_value", "omnidrop" },
        { CHAT(",\"omnidrop\":{\"return_pruning\":\"yes\"}"), "invalid_type", "omnidrop.return_pruning" },
        { CHAT(",\"omnidrop\":{\"detail\":\"all\"}"), "invalid_value", "omnidrop.detail" },
        { CHAT(",\"omnidrop\":{\"policy\":\"none\",\"trim\":true}"), "invalid_value", "omnidrop.trim" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"query\":\"first\"}"), "invalid_value", "omnidrop.query" },
        { CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"tds\":false}"), "invalid_type", "omnidrop.tds" },
        { CHAT(",\"omnidrop\":{\"policy\":\"random-layers\",\"query\":\"last\"}"), "invalid_value", "omnidrop.query" },
        { CHAT(",\"omnidrop\":{\"policy\":\"pyramiddrop\",\"at\":[2,\"x\"]}"), "invalid_type", "omnidrop.at[1]" },
        { CHAT(",\"omnidrop\":{\"policy\":\"pyramiddrop\",\"at\":[-1]}"), "invalid_value", "omnidrop.at" },
        { CHAT(",\"omnidrop\":{\"policy\":\"pyramiddrop\",\"at\":[2,1]}"), "invalid_value", "omnidrop" },
        { CHAT(",\"omnidrop\":{\"policy\":\"pyramiddrop\",\"at\":true}"), "invalid_type", "omnidrop.at" },
        { CHAT(",\"omnidrop\":{\"policy\":\"exit\"}"), "invalid_value", "omnidrop" },
        { CHAT(",\"omnidrop\":{\"policy\":\"exit\",\"at\":[1]}"), "invalid_type", "omnidrop.at" },
    };
    struct api *a = make((struct api_options){ 0 });
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuses(a, true, bad[i].body, strlen(bad[i].body), bad[i].code, bad[i].param);
    struct api_job *lists = takes(a, true, CHAT(",\"omnidrop\":{\"policy\":\"pyramiddrop\",\"at\":[1,2],\"R\":0.25}"));
    assert_true(lists->omnidrop.policy.list[0].n == 2 && lists->omnidrop.policy.list[0].v[1] == 2);
    api_job_free(&lists);
    struct api_job *j = takes(a, true, CHAT(",\"omnidrop\":{\"policy\":\"omnidrop\",\"retention\":0.3,\"t_mid\":null,\"step0\":false,"
                                            "\"trim\":false,\"query\":\"last\",\"tds\":\"max\","
                                            "\"return_pruning\":true,\"detail\":\"tokens\"}"));
    assert_string_equal(prune_params_name(&j->omnidrop.policy), "omnidrop");
    assert_true(prune_get(&j->omnidrop.policy, "query") == QUERY_LAST && prune_is_set(&j->omnidrop.policy, "tds"));
    assert_true(fabs(prune_get(&j->omnidrop.policy, "retention") - 0.3) < 1e-9);
    struct policy_params model;    /* t_mid is nobody's: the model's, else the policy's own */
    struct err e;
    assert_int_equal(prune_params_init(&model, "omnidrop", engine_config(fake_engine())->text.layers, &e), OK);
    model_defaults_policy(engine_defaults(fake_engine()), &model);
    assert_true(prune_get(&j->omnidrop.policy, "t_mid") == prune_get(&model, "t_mid"));
    assert_true(prune_get(&j->omnidrop.policy, "step0") < 0.5);
    assert_true(j->omnidrop.return_pruning && j->omnidrop.tokens);
    api_job_free(&j);
    api_destroy(&a);
}

/* Request before server flag before the model's defaults; what excludes a key of the request goes with it. */
static void policies_resolve_in_order(void **state)
{
    (void)state;
    struct policy_params p;
    struct err e;
    assert_int_equal(prune_params_init(&p, "omnidrop", 2, &e), OK);
    assert_int_equal(prune_params_set(&p, "retention", 0.3, &e), OK);
    assert_int_equal(prune_params_set(&p, "beta", 7, &e), OK);
    assert_int_equal(prune_params_finish(&p, &e), OK);
    struct api *a = make((struct api_options){ .policy = &p });
    struct api_job *j = takes(a, true, CHAT(""));
    assert_true(fabs(prune_get(&j->omnidrop.policy, "retention") - 0.3) < 1e-9);
    api_job_free(&j);
    j = takes(a, true, CHAT(",\"omnidrop\":{\"t_mid\":0.4}"));
    assert_true(fabs(prune_get(&j->omnidrop.policy, "retention") - 0.3) < 1e-9);
    assert_true(fabs(prune_get(&j->omnidrop.policy, "beta") - 7) < 1e-9);
    assert_true(fabs(prune_get(&j->omnidrop.policy, "t_mid") - 0.4) < 1e-9);
    api_job_free(&j);
    j = takes(a, true, CHAT(",\"omnidrop\":{\"p_final\":0.6}"));
    assert_true(!prune_is_set(&j->omnidrop.policy, "retention"));
    assert_true(fabs(prune_get(&j->omnidrop.policy, "p_final") - 0.6) < 1e-9);
    assert_true(fabs(prune_get(&j->omnidrop.policy, "beta") - 7) < 1e-9);
    api_job_free(&j);
    j = takes(a, true, CHAT(",\"omnidrop\":{\"policy\":\"none\"}"));
    assert_string_equal(prune_params_name(&j->omnidrop.policy), "none");
    api_job_free(&j);
    assert_non_null(strstr(api_fingerprint(a), "-omnidrop"));
    struct policy_params own[2];
    const struct model_defaults model = { .policy = own, .n_policies = 2 };
    assert_int_equal(prune_params_init(&own[0], "omnidrop", 2, &e), OK);
    assert_int_equal(prune_params_set(&own[0], "beta", 3, &e), OK);
    assert_int_equal(prune_params_set(&own[0], "t_mid", 0.2, &e), OK);
    assert_int_equal(prune_params_set(&own[0], "p_final", 0.7, &e), OK);
    assert_int_equal(prune_params_init(&own[1], "random", 2, &e), OK);
    assert_int_equal(prune_params_set(&own[1], "retention", 0.6, &e), OK);
    a->defaults = &model;
    static const struct { const char *body; double beta, t_mid, retention, p_final; } resolved[] = {
        { CHAT(",\"omnidrop\":{\"return_pruning\":true}"), 7, 0.2, 0.3, NAN },       /* the server's retention */
        { CHAT(",\"omnidrop\":{\"beta\":9,\"t_mid\":0.5}"), 9, 0.5, 0.3, NAN },
        { CHAT(",\"omnidrop\":{\"retention\":0.4}"), 7, 0.2, 0.4, NAN },
        { CHAT(",\"omnidrop\":{\"p_final\":0.6}"), 7, 0.2, NAN, 0.6 },
    };
    for (size_t i = 0; i < sizeof resolved / sizeof *resolved; i++) {
        j = takes(a, true, resolved[i].body);
        const struct policy_params *got = &j->omnidrop.policy;
        assert_true(prune_get(got, "beta") == resolved[i].beta && prune_get(got, "t_mid") == resolved[i].t_mid);
        assert_true(isnan(resolved[i].retention) ? !prune_is_set(got, "retention") : prune_get(got, "retention") == resolved[i].retention);
        assert_true(isnan(resolved[i].p_final) ? !prune_is_set(got, "p_final") : prune_get(got, "p_final") == resolved[i].p_final);
        api_job_free(&j);
    }
    j = takes(a, true, CHAT(",\"omnidrop\":{\"policy\":\"random\"}"));
    assert_true(prune_get(&j->omnidrop.policy, "retention") == 0.6);
    api_job_free(&j);
    j = takes(a, true, CHAT(",\"omnidrop\":{\"policy\":\"step0\"}"));
    assert_true(!prune_is_set(&j->omnidrop.policy, "audio"));
    api_job_free(&j);
    api_destroy(&a);
}

/* Form fields "omnidrop[KEY]". */
static void extension_keys_as_text(void **state)
{
    (void)state;
    struct err e = { 0 };
    json_t *o = json_object();
    assert_int_equal(api_omnidrop_field(o, "policy", "omnidrop", &e), OK);
    assert_int_equal(api_omnidrop_field(o, "retention", "0.3", &e), OK);
    assert_int_equal(api_omnidrop_field(o, "step0", "False", &e), OK);
    assert_int_equal(api_omnidrop_field(o, "beta", "many", &e), OK);
    char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(3));
    assert_string_equal(text, "{\"policy\":\"omnidrop\",\"retention\":0.3,\"step0\":false,\"beta\":\"many\"}");
    assert_int_equal(api_omnidrop_field(o, "retension", "0.3", &e), E_ARG);
    assert_string_equal(e.param, "omnidrop.retension");
    free(text);
    json_decref(o);
}

/* ---- 1.5 -------------------------------------------------------------------------------------------------- */

static void completions(void **state)
{
    (void)state;
    static const struct bad bad[] = {
        { "{}", "missing_required_parameter", "prompt" },
        { "{\"prompt\":7}", "invalid_type", "prompt" },
        { "{\"prompt\":\"\"}", "invalid_value", "prompt" },
        { "{\"prompt\":[]}", "invalid_value", "prompt" },
        { "{\"prompt\":[[]]}", "invalid_value", "prompt[0]" },
        { "{\"prompt\":[1,\"a\"]}", "invalid_type", "prompt[1]" },
        { "{\"prompt\":[\"a\",1]}", "invalid_type", "prompt[1]" },
        { "{\"prompt\":[[1],2]}", "invalid_type", "prompt[1]" },
        { "{\"prompt\":[true]}", "invalid_type", "prompt[0]" },
        { "{\"prompt\":[-1]}", "invalid_value", "prompt[0]" },
        { "{\"prompt\":[99999999]}", "invalid_value", "prompt[0]" },
        { "{\"prompt\":\"a <|IMAGE|> b\"}", "invalid_value", "prompt" },
        { TEXT(",\"suffix\":\"x\""), "unsupported_parameter", "suffix" },
        { TEXT(",\"best_of\":2"), "unsupported_parameter", "best_of" },
        { TEXT(",\"logprobs\":21"), "invalid_value", "logprobs" },
        { TEXT(",\"logprobs\":true"), "invalid_type", "logprobs" },
        { TEXT(",\"logprobs\":0,\"echo\":true"), "unsupported_parameter", "logprobs" },
        { TEXT(",\"max_tokens\":5000"), "context_length_exceeded", "prompt" },
        { TEXT(",\"messages\":[]"), "unsupported_parameter", "messages" },
    };
    struct api *a = make((struct api_options){ 0 });
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuses(a, false, bad[i].body, strlen(bad[i].body), bad[i].code, bad[i].param);
    struct api_job *j = takes(a, false, TEXT(",\"n\":2,\"best_of\":2,\"logprobs\":3"));
    assert_true(j->o.max_tokens == 16 && j->logprobs && j->top_logprobs == 3 && j->n_groups == 1);
    api_job_free(&j);
    j = takes(a, false, "{\"prompt\":[\"a\",\"b <|im_end|>\"],\"echo\":true}");
    assert_int_equal(j->n_groups, 2);
    const struct service_request *rq = &j->group[1].rq;
    assert_int_equal(rq->ids[rq->n_ids - 1], tokenizer_id(a->tok, "<|im_end|>"));
    assert_string_equal(j->group[1].echo.text, "b <|im_end|>");
    api_job_free(&j);
    j = takes(a, false, "{\"prompt\":[5,6,7]}");
    assert_true(j->n_groups == 1 && j->group[0].rq.n_ids == 3 && j->group[0].rq.ids[2] == 7);
    api_job_free(&j);
    j = takes(a, false, "{\"prompt\":[[5],[6,7]]}");
    assert_true(j->n_groups == 2 && j->group[1].rq.n_ids == 2);
    api_job_free(&j);
    char body[1000], *p = body + sprintf(body, "{\"prompt\":[\"a\"");
    for (int i = 1; i < 64; i++) p += sprintf(p, ",\"a\"");
    char *end = p;
    sprintf(end, "]}");
    taken(a, false, body);
    sprintf(end, ",\"a\"]}");
    refuses(a, false, body, strlen(body), "invalid_value", "prompt");
    api_destroy(&a);
}

static void context_message(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    struct api_job *j;
    struct err e;
    const char *body = TEXT(",\"max_tokens\":5000");
    assert_int_equal(parse(a, false, body, strlen(body), &j, &e), E_ARG);
    assert_non_null(strstr(e.text, "This model's maximum context length is 2048 tokens."));
    assert_true(strncmp(e.text, "This model's", 12) == 0);
    api_destroy(&a);
}

/* ---- 1.1 -------------------------------------------------------------------------------------------------- */

static void models(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 }), *s = make((struct api_options){ .strict_openai = true });
    char want[600];
    snprintf(want, sizeof want, "{\"object\":\"list\",\"data\":[{\"id\":\"tiny\",\"object\":\"model\",\"created\":%lld,"
             "\"owned_by\":\"omnidrop\",\"max_model_len\":2048,\"architecture\":{\"input_modalities\":[\"text\",\"image\",\"audio\","
             "\"video\"],\"output_modalities\":[\"text\"]}},{\"id\":\"org/name\",\"object\":\"model\",\"created\":%lld,\"owned_by\":"
             "\"omnidrop\",\"max_model_len\":2048,\"architecture\":{\"input_modalities\":[\"text\",\"image\",\"audio\",\"video\"],"
             "\"output_modalities\":[\"text\"]}}]}", (long long)a->created, (long long)a->created);
    json_t *o = api_models(a), *one = api_model(s, "org/name");
    char *text = json_dumps(o, JSON_COMPACT), *strict = json_dumps(one, JSON_COMPACT);
    assert_string_equal(text, want);
    snprintf(want, sizeof want, "{\"id\":\"org/name\",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"omnidrop\"}",
             (long long)s->created);
    assert_string_equal(strict, want);
    assert_null(api_model(a, "nope"));
    struct err e;
    assert_int_equal(api_check_model(a, "", &e), OK);
    assert_int_equal(api_check_model(a, NULL, &e), OK);
    assert_string_equal(api_model_name(a), "tiny");
    free(text);
    free(strict);
    json_decref(o);
    json_decref(one);
    api_destroy(&a);
    api_destroy(&s);
}

static int open_all(void **state)
{
    (void)state;
    service = fake_open(fake_engine(), &script);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    fake_close(&service);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_inputs), cmocka_unit_test(complex_bodies), cmocka_unit_test(cut_names), cmocka_unit_test(refused_fields),
        cmocka_unit_test(ignored_fields), cmocka_unit_test(unknown_fields_are_logged_once_an_hour),
        cmocka_unit_test(null_is_absent), cmocka_unit_test(ranges), cmocka_unit_test(stop_limits),
        cmocka_unit_test(honoured_fields), cmocka_unit_test(defaults_of_the_model),
        cmocka_unit_test(media_defaults_reach_silent_parts), cmocka_unit_test(the_extension_object),
        cmocka_unit_test(policies_resolve_in_order), cmocka_unit_test(extension_keys_as_text), cmocka_unit_test(completions),
        cmocka_unit_test(context_message), cmocka_unit_test(models),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
