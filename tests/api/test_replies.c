/* Goal: replies, chunk sequences, statistics and token counts are those of docs/http-api.md 1.4 to 1.6 and 1.10, byte for
 * byte, and follow our OpenAPI description. Method: a service by script; what the sink gets is written to one text. */
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
#include "base/mem.h"
#include "tests/api/fake_service.h"
#include "tests/api/schema.h"

#define HI "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define OPEN "{\"id\":\"chatcmpl-r1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"tiny\",\"choices\":["
#define CHUNK "{\"id\":\"chatcmpl-r1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"tiny\"," \
              "\"system_fingerprint\":\"FP\",\"choices\":["
#define TEXT_OPEN "{\"id\":\"cmpl-r1\",\"object\":\"text_completion\",\"created\":1,\"model\":\"tiny\","
#define DETAILS(cached, audio, text, image, video) ",\"prompt_tokens_details\":{\"cached_tokens\":" #cached \
    ",\"audio_tokens\":" #audio ",\"text_tokens\":" #text ",\"image_tokens\":" #image ",\"video_tokens\":" #video "}}"
#define USAGE(p, c, t) "\"usage\":{\"prompt_tokens\":" #p ",\"completion_tokens\":" #c "," \
    "\"total_tokens\":" #t DETAILS(0, 0, p, 0, 0)

static struct fake_script script;
static struct service *service;
static json_t *openapi;
static const struct api_caller caller = { .request_id = "r1", .key = "k" };

static struct api *make(struct api_options o)
{
    struct api *a;
    struct err e;
    static const char *const names[] = { "tiny" };
    o.service = service;
    o.calls = &fake_calls;
    o.served_name = names;
    o.n_served_name = 1;
    if (api_create(&o, &a, &e) != OK) fail_msg("%s", e.text);
    return a;
}

/* ---- what came -------------------------------------------------------------------------------------------- */

struct got {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char *text;                    /* chunks and reply, a line each; "admitted", "prefill 0.5", "error CODE" */
    size_t n;
    bool done, is_chat;
};

/* The parts that differ from run to run become fixed; what is left follows the description. */
static void put_json(struct got *g, json_t *o, const char *schema)
{
    char why[300], path[64];
    snprintf(path, sizeof path, "#/components/schemas/%s", schema);
    json_t *ref = json_pack("{s:s}", "$ref", path);
    if (!schema_follows(openapi, ref, o, why, sizeof why)) {
        fprintf(stderr, "%s: %s\n", schema, why);
        abort();
    }
    json_decref(ref);
    if (json_object_get(o, "created")) json_object_set_new(o, "created", json_integer(1));
    const char *fp = json_string_value(json_object_get(o, "system_fingerprint"));
    if (fp) json_object_set_new(o, "system_fingerprint", json_string(strstr(fp, "-omnidrop") ? "FP-omnidrop" : "FP"));
    char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6));
    const size_t n = strlen(text);
    g->text = realloc(g->text, g->n + n + 2);
    memcpy(g->text + g->n, text, n + 1);
    g->n += n;
    strcpy(g->text + g->n++, "\n");
    free(text);
    json_decref(o);
}

static void put_line(struct got *g, const char *line)
{
    g->text = realloc(g->text, g->n + strlen(line) + 2);
    g->n += (size_t)sprintf(g->text + g->n, "%s\n", line);
}

static void on_chunk(void *self, json_t *chunk)
{
    struct got *g = self;
    put_json(g, chunk, g->is_chat ? "ChatChunk" : "CompletionReply");
}

static void on_progress(void *self, const char *phase, double done)
{
    char line[64];
    snprintf(line, sizeof line, "%s %g", phase, done);
    put_line(self, line);
}

static void on_admitted(void *self) { put_line(self, "admitted"); }

static void on_done(void *self, json_t *reply, const struct err *error)
{
    struct got *g = self;
    char line[100];
    if (reply) put_json(g, reply, g->is_chat ? "ChatReply" : "CompletionReply");
    if (error) {
        snprintf(line, sizeof line, "error %s", api_error_of(error).code);
        put_line(g, line);
    }
    pthread_mutex_lock(&g->lock);
    assert_false(g->done);
    g->done = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void got_init(struct got *g, bool is_chat)
{
    *g = (struct got){ .is_chat = is_chat, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
    put_line(g, "");
    g->n = 0;
    g->text[0] = 0;
}

static void wait_done(struct got *g)
{
    pthread_mutex_lock(&g->lock);
    while (!g->done) pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

static struct api_sink sink_of(struct got *g, bool watched)
{
    return (struct api_sink){ .self = g, .chunk = on_chunk, .progress = watched ? on_progress : NULL,
                              .admitted = watched ? on_admitted : NULL, .done = on_done };
}

static void gives(struct api *a, bool is_chat, bool watched, const char *body, const char *want)
{
    struct api_job *j;
    struct err e = { 0 };
    struct got g;
    uint64_t id = 0;
    got_init(&g, is_chat);
    const struct api_sink sink = sink_of(&g, watched);
    const status st = is_chat ? api_chat_parse(a, body, strlen(body), &caller, &j, &e)
                              : api_completion_parse(a, body, strlen(body), &caller, &j, &e);
    if (st != OK) fail_msg("%s: %s", body, e.text);
    if (api_job_start(&j, &sink, &id, &e) != OK) fail_msg("%s: %s", body, e.text);
    assert_null(j);
    assert_true(id != 0);
    wait_done(&g);
    assert_string_equal(g.text, want);
    free(g.text);
}

/* ---- chat ------------------------------------------------------------------------------------------------- */

/* "Grüß": the first half of the u umlaut comes with the second token. */
static const struct fake_step hello[] = {
    { SERVICE_ADMITTED },
    { SERVICE_PROGRESS },
    { SERVICE_TEXT, 0, "Gr", { 8 } },
    { SERVICE_TEXT, 0, "\xc3", { 16 } },
    { SERVICE_TEXT, 0, "\xbc\xc3\x9f", { 24 } },
    { SERVICE_TEXT, 0, "", { 32 } },
    { SERVICE_CHOICE, 0, .finish = ENG_STOP },
};

static void use(const struct fake_step *step, size_t n)
{
    script = (struct fake_script){ .step = step, .n_step = (uint32_t)n };
}
#define USE(steps) use(steps, sizeof steps / sizeof *steps)

static void whole_chat(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 }), *s = make((struct api_options){ .strict_openai = true });
    USE(hello);
    gives(a, true, false, HI "}", OPEN "{\"index\":0,\"message\":{\"role\":\"assistant\","
          "\"content\":\"Gr\u00fc\u00df\",\"refusal\":null},"
          "\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE(5, 4, 9) ",\"system_fingerprint\":\"FP\"}\n");
    gives(s, true, false, HI ",\"return_token_ids\":true,\"omnidrop\":{\"return_pruning\":true}}",
          OPEN "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Gr\u00fc\u00df\",\"refusal\":null},"
          "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":5,"
          "\"completion_tokens\":4,\"total_tokens\":9,"
          "\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0}},\"system_fingerprint\":\"FP\"}\n");
    api_destroy(&a);
    api_destroy(&s);
}

static void streamed_chat(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    USE(hello);
    gives(a, true, true, HI ",\"stream\":true}",
          "admitted\n"
          CHUNK "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
          "\"finish_reason\":null}]}\n"
          "prefill 0.5\n"
          CHUNK "{\"index\":0,\"delta\":{\"content\":\"Gr\"},\"logprobs\":null,\"finish_reason\":null}]}\n"
          CHUNK "{\"index\":0,\"delta\":{\"content\":\"\u00fc\u00df\"},\"logprobs\":null,\"finish_reason\":null}]}\n"
          CHUNK "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n");
    gives(a, true, false, HI ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
          CHUNK "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
          "\"finish_reason\":null}],\"usage\":null}\n"
          CHUNK "{\"index\":0,\"delta\":{\"content\":\"Gr\"},\"logprobs\":null,\"finish_reason\":null}],"
          "\"usage\":null}\n"
          CHUNK "{\"index\":0,\"delta\":{\"content\":\"\u00fc\u00df\"},\"logprobs\":null,"
          "\"finish_reason\":null}],\"usage\":null}\n"
          CHUNK "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":null}\n"
          CHUNK "]," USAGE(5, 4, 9) "}\n");
    api_destroy(&a);
}

/* Three choices, of one prefill; each ends once. */
static void choices(void **state)
{
    (void)state;
    static const struct fake_step steps[] = {
        { SERVICE_ADMITTED },
        { SERVICE_TEXT, 1, "b", { 2 } },
        { SERVICE_TEXT, 0, "a", { 1 } },
        { SERVICE_CHOICE, 1, .finish = ENG_LENGTH },
        { SERVICE_TEXT, 0, "a", { 1 } },
        { SERVICE_CHOICE, 0, .finish = ENG_STOP },
    };
    struct api *a = make((struct api_options){ 0 });
    USE(steps);
    gives(a, true, false, HI ",\"n\":2}",
          OPEN "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"aa\",\"refusal\":null},"
          "\"logprobs\":null,"
          "\"finish_reason\":\"stop\"},{\"index\":1,\"message\":{\"role\":\"assistant\",\"content\":\"b\","
          "\"refusal\":null},"
          "\"logprobs\":null,\"finish_reason\":\"length\"}]," USAGE(5, 3, 8) ",\"system_fingerprint\":\"FP\"}\n");
    gives(a, true, false, HI ",\"n\":2,\"stream\":true}",
          CHUNK "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
          "\"finish_reason\":null}]}\n"
          CHUNK "{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
          "\"finish_reason\":null}]}\n"
          CHUNK "{\"index\":1,\"delta\":{\"content\":\"b\"},\"logprobs\":null,\"finish_reason\":null}]}\n"
          CHUNK "{\"index\":0,\"delta\":{\"content\":\"a\"},\"logprobs\":null,\"finish_reason\":null}]}\n"
          CHUNK "{\"index\":1,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]}\n"
          CHUNK "{\"index\":0,\"delta\":{\"content\":\"a\"},\"logprobs\":null,\"finish_reason\":null}]}\n"
          CHUNK "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n");
    api_destroy(&a);
}

/* A token's bytes, as a JSON list and as text (printable tokens of the bundled model). */
static char *entry(const char *word, double logprob, const char *more)
{
    char bytes[200] = "";
    for (const char *p = word; *p; p++) sprintf(bytes + strlen(bytes), "%s%d", p > word ? "," : "", (unsigned char)*p);
    char *out = malloc(600);
    snprintf(out, 600, "{\"token\":\"%s\",\"logprob\":%g,\"bytes\":[%s]%s}", word, logprob, bytes, more);
    return out;
}

static void logprobs(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    char one[20], two[20], three[20], want[4000];
    size_t n;
    /* Tokens 40 and 41 are the likeliest ones of the fake; 33 and 34 are chosen. */
    const int32_t ids[] = { 33, 34, 40 };
    char *const to[] = { one, two, three };
    for (int i = 0; i < 3; i++) {
        const char *s = tokenizer_bytes(a->tok, ids[i], &n);
        assert_true(s != NULL && n == 1 && *s > ' ' && *s != '"' && *s != '\\');
        snprintf(to[i], 20, "%.*s", (int)n, s);
    }
    static const struct fake_step steps[] = {
        { SERVICE_ADMITTED },
        { SERVICE_TEXT, 0, "", { 33 } },
        { SERVICE_TEXT, 0, "xy", { 34 } },
        { SERVICE_CHOICE, 0, .finish = ENG_STOP },
    };
    USE(steps);
    char *top = entry(three, -0.125, ""), more[300];
    snprintf(more, sizeof more, ",\"top_logprobs\":[%s]", top);
    char *first = entry(one, -4.125, more), *second = entry(two, -4.25, more);
    snprintf(want, sizeof want, OPEN "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"xy\","
          "\"refusal\":null},"
             "\"logprobs\":{\"content\":[%s,%s],\"refusal\":null},\"finish_reason\":\"stop\"}]," USAGE(5, 2, 7)
             ",\"system_fingerprint\":\"FP\"}\n", first, second);
    gives(a, true, false, HI ",\"logprobs\":true,\"top_logprobs\":1}", want);
    snprintf(want, sizeof want,
             CHUNK "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
             "\"finish_reason\":null}]}\n"
             CHUNK "{\"index\":0,\"delta\":{\"content\":\"xy\"},\"logprobs\":{\"content\":[%s,%s],\"refusal\":null},"
             "\"finish_reason\":null}]}\n"
             CHUNK "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n", first, second);
    gives(a, true, false, HI ",\"logprobs\":true,\"top_logprobs\":1,\"stream\":true}", want);
    snprintf(want, sizeof want, TEXT_OPEN "\"choices\":[{\"index\":0,\"text\":\"xy\","
          "\"logprobs\":{\"tokens\":[\"%s\",\"%s\"],"
             "\"token_logprobs\":[-4.125,-4.25],\"top_logprobs\":[{\"%s\":-0.125},{\"%s\":-0.125}],"
             "\"text_offset\":[0,0]},"
             "\"finish_reason\":\"stop\"}]," USAGE(1, 2, 3) ","
             "\"system_fingerprint\":\"FP\"}\n", one, two, three, three);
    gives(a, false, false, "{\"prompt\":[5],\"logprobs\":1}", want);
    free(top);
    free(first);
    free(second);
    api_destroy(&a);
}

static void token_ids(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    USE(hello);
    gives(a, false, false, "{\"prompt\":[5,6],\"return_token_ids\":true}",
          TEXT_OPEN "\"choices\":[{\"index\":0,\"text\":\"Gr\u00fc\u00df\",\"logprobs\":null,"
          "\"finish_reason\":\"stop\",\"token_ids\":"
          "[8,16,24,32],\"prompt_token_ids\":[5,6]}]," USAGE(2, 4, 6) ",\"system_fingerprint\":\"FP\"}\n");
    api_destroy(&a);
}

/* ---- completions ------------------------------------------------------------------------------------------ */

static void text_completions(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    USE(hello);
    gives(a, false, false, "{\"prompt\":[[5],[6,7]],\"max_tokens\":4}",
          TEXT_OPEN "\"choices\":[{\"index\":0,\"text\":\"Gr\u00fc\u00df\",\"logprobs\":null,"
          "\"finish_reason\":\"stop\"},"
          "{\"index\":1,\"text\":\"Gr\u00fc\u00df\",\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE(3, 8, 11)
          ",\"system_fingerprint\":\"FP\"}\n");
    gives(a, false, false, "{\"prompt\":\"ab\",\"echo\":true,\"stream\":true}",
          TEXT_OPEN "\"system_fingerprint\":\"FP\",\"choices\":[{\"index\":0,\"text\":\"ab\","
          "\"logprobs\":null,\"finish_reason\":null}]}\n"
          TEXT_OPEN "\"system_fingerprint\":\"FP\",\"choices\":[{\"index\":0,\"text\":\"Gr\","
          "\"logprobs\":null,\"finish_reason\":null}]}\n"
          TEXT_OPEN "\"system_fingerprint\":\"FP\",\"choices\":[{\"index\":0,\"text\":\"\u00fc\u00df\","
          "\"logprobs\":null,"
          "\"finish_reason\":null}]}\n"
          TEXT_OPEN "\"system_fingerprint\":\"FP\",\"choices\":[{\"index\":0,\"text\":\"\",\"logprobs\":null,"
          "\"finish_reason\":\"stop\"}]}\n");
    api_destroy(&a);
}

/* A later prompt that the service refuses ends all of them with its error, and nothing runs on. */
static void a_refused_prompt_ends_the_others(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    USE(hello);
    const struct fake_seen before = fake_seen(service);
    script.hold = true;
    script.refuse = E_BUSY;
    script.tag = "queue_full";
    script.refuse_from = before.n_submitted + 2;
    script.n_step = 0;
    gives(a, false, false, "{\"prompt\":[[5],[6],[7]]}", "error queue_full\n");
    const struct fake_seen after = fake_seen(service);
    assert_int_equal(after.n_submitted - before.n_submitted, 2);
    assert_int_equal(after.n_cancelled - before.n_cancelled, 2);
    script.refuse_from = 0;
    struct api_job *j;
    struct err e;
    struct got g;
    uint64_t id;
    got_init(&g, true);
    const struct api_sink sink = sink_of(&g, false);
    assert_int_equal(api_chat_parse(a, HI "}", strlen(HI "}"), &caller, &j, &e), OK);
    assert_int_equal(api_job_start(&j, &sink, &id, &e), E_BUSY);      /* still the caller's */
    assert_string_equal(api_error_of(&e).code, "queue_full");
    assert_false(g.done);
    api_job_free(&j);
    free(g.text);
    api_destroy(&a);
}

/* ---- ends ------------------------------------------------------------------------------------------------- */

/* A failure in the middle of a stream: no finish chunk, the error comes with the end. */
static void failures(void **state)
{
    (void)state;
    static const struct fake_step steps[] = { { SERVICE_ADMITTED }, { SERVICE_TEXT, 0, "a", { 1 } } };
    struct api *a = make((struct api_options){ 0 });
    USE(steps);
    script.fail = E_DEVICE;
    gives(a, true, false, HI ",\"stream\":true}",
          CHUNK "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
          "\"finish_reason\":null}]}\n"
          CHUNK "{\"index\":0,\"delta\":{\"content\":\"a\"},\"logprobs\":null,\"finish_reason\":null}]}\n"
          "error engine_error\n");
    gives(a, true, false, HI "}", "error engine_error\n");
    script.fail = E_TIMEOUT;
    script.tag = "queue_timeout";
    gives(a, true, false, HI "}", "error queue_timeout\n");
    api_destroy(&a);
}

/* One prompt of three fails: the others are cancelled, and its error is the job's. */
static void a_failed_prompt_ends_the_others(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    const struct fake_seen before = fake_seen(service);
    use(NULL, 0);
    script.hold = true;
    script.fail = E_TIMEOUT;
    script.tag = "queue_timeout";
    script.fail_only = before.n_submitted + 2;
    gives(a, false, false, "{\"prompt\":[[5],[6],[7]]}", "error queue_timeout\n");
    assert_int_equal(fake_seen(service).n_submitted - before.n_submitted, 3);
    api_destroy(&a);
}

static void cancelling(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    struct api_job *j;
    struct err e;
    struct got g;
    uint64_t id;
    use(NULL, 0);
    script.hold = true;
    got_init(&g, false);
    const struct api_sink sink = sink_of(&g, false);
    const struct fake_seen before = fake_seen(service);
    const char *body = "{\"prompt\":[[5],[6],[7]]}";
    assert_int_equal(api_completion_parse(a, body, strlen(body), &caller, &j, &e), OK);
    assert_int_equal(api_job_start(&j, &sink, &id, &e), OK);
    api_job_cancel(a, id + 1000);
    assert_false(g.done);
    api_job_cancel(a, id);
    wait_done(&g);
    assert_int_equal(fake_seen(service).n_cancelled - before.n_cancelled, 3);
    api_job_cancel(a, id);                         /* it is over: nothing happens */
    free(g.text);
    api_destroy(&a);
}

static void run_is_a_call(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    static const struct { const char *endpoint, *body; int status; const char *code; } calls[] = {
        { "/v1/chat/completions", HI "}", 200, NULL },
        { "/v1/completions", "{\"prompt\":\"a\"}", 200, NULL },
        { "/v1/chat/completions", HI ",\"stream\":true}", 400, "invalid_value" },
        { "/v1/chat/completions", "{}", 400, "missing_required_parameter" },
        { "/v1/chat/completions", HI ",\"model\":\"x\"}", 404, "model_not_found" },
        { "/v1/embeddings", "{}", 404, "unknown_endpoint" },
    };
    USE(hello);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        int code = 0;
        json_t *reply = NULL;
        char why[300];
        api_run(a, calls[i].endpoint, calls[i].body, strlen(calls[i].body), &caller, NULL, &code, &reply);
        assert_int_equal(code, calls[i].status);
        json_t *ref = json_pack("{s:s}", "$ref", code != 200 ? "#/components/schemas/Error"
                                                 : i    ? "#/components/schemas/CompletionReply"
                                                        : "#/components/schemas/ChatReply");
        if (!schema_follows(openapi, ref, reply, why, sizeof why)) fail_msg("%s", why);
        const json_t *error = json_object_get(reply, "error");
        if (calls[i].code) assert_string_equal(json_string_value(json_object_get(error, "code")), calls[i].code);
        json_decref(ref);
        json_decref(reply);
    }
    atomic_bool stop = true;
    int code = 0;
    json_t *reply = NULL;
    script.hold = true;
    api_run(a, "/v1/chat/completions", HI "}", strlen(HI "}"), &caller, &stop, &code, &reply);
    assert_true(code >= 400 && json_object_get(reply, "error") != NULL);
    json_decref(reply);
    api_destroy(&a);
}

/* ---- statistics ------------------------------------------------------------------------------------------- */

#define STATS_USAGE "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1,\"total_tokens\":10" DETAILS(2, 3, 3, 0, 3)
#define STATS_A "\"omnidrop\":{\"policy\":\"omnidrop\",\"resolved\":"
#define STATS_B ",\"av_tokens_in\":{\"audio\":3,\"video\":3,\"image\":0},\"layers\":3,\"kept_per_layer\":[6,5,4],\"kept_last\":" \
    "{\"audio\":2,\"video\":2,\"image\":0},\"mean_retention\":0.75,\"cached_layers\":1,\"kv_bytes\":1000,\"kv_bytes_unpruned\":2000," \
    "\"encode_ms\":500.0,\"prefill_ms\":250.0"
#define STATS_TOKENS ",\"tokens\":{\"chunks\":2,\"seconds_per_chunk\":2.0,\"audio\":[[2,1],[2,1],[1,1]]," \
    "\"video\":[[2,1],[1,1],[1,1]],\"audio_in\":[2,1],\"video_in\":[2,1]}"

#define STATS_REASONS ",\"dropped\":{\"token\":[5,3,6],\"kind\":[\"video\",\"audio\",\"audio\"],\"chunk\":[0,0,1]," \
    "\"layer\":[0,1,2],\"why\":[\"score\",\"layer\",\"likeness\"],\"score\":[0.125,null,0.5],\"rank\":[4,3,2]}"

static void statistics(void **state)
{
    (void)state;
    static const struct fake_step steps[] = {
        { SERVICE_ADMITTED },
        { SERVICE_TEXT, 0, "a", { 1 } },
        { SERVICE_CHOICE, 0, .finish = ENG_STOP },
    };
    struct api *a = make((struct api_options){ 0 });
    struct policy_params p;
    struct err e;
    char want[4000], resolved[600];
    assert_int_equal(prune_params_init(&p, "omnidrop", a->n_layers, &e), OK);
    model_defaults_policy(a->defaults, &p);        /* the bundled model has its own */
    assert_int_equal(prune_params_finish(&p, &e), OK);
    json_t *r = prune_params_to_json(&p);
    char *text = json_dumps(r, JSON_COMPACT | JSON_REAL_PRECISION(6));
    snprintf(resolved, sizeof resolved, "%s", text);
    free(text);
    json_decref(r);
    USE(steps);
    script.pruned = true;
#define ANSWER OPEN "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"a\",\"refusal\":null},\"logprobs\":null," \
    "\"finish_reason\":\"stop\"}]," STATS_USAGE ",\"system_fingerprint\":\"FP-omnidrop\""
#define OMNI ",\"omnidrop\":{\"policy\":\"omnidrop\""
    gives(a, true, false, HI OMNI "}}", ANSWER "}\n");
    snprintf(want, sizeof want, ANSWER "," STATS_A "%s" STATS_B "}}\n", resolved);
    gives(a, true, false, HI OMNI ",\"return_pruning\":true}}", want);
    snprintf(want, sizeof want, ANSWER "," STATS_A "%s" STATS_B STATS_TOKENS "}}\n", resolved);
    gives(a, true, false, HI OMNI ",\"return_pruning\":true,\"detail\":\"tokens\"}}", want);
    snprintf(want, sizeof want, ANSWER "," STATS_A "%s" STATS_B STATS_TOKENS STATS_REASONS "}}\n", resolved);
    gives(a, true, false, HI OMNI ",\"return_pruning\":true,\"detail\":\"reasons\"}}", want);
#define CHUNK2 "{\"id\":\"chatcmpl-r1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"tiny\"," \
               "\"system_fingerprint\":\"FP-omnidrop\",\"choices\":["
    /* On the usage chunk, else on the finishing chunk. */
    snprintf(want, sizeof want,
             CHUNK2 "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
             "\"finish_reason\":null}]}\n"
             CHUNK2 "{\"index\":0,\"delta\":{\"content\":\"a\"},\"logprobs\":null,\"finish_reason\":null}]}\n"
             CHUNK2 "{\"index\":0,\"delta\":{},\"logprobs\":null,"
             "\"finish_reason\":\"stop\"}]," STATS_A "%s" STATS_B "}}\n", resolved);
    gives(a, true, false, HI OMNI ",\"return_pruning\":true},\"stream\":true}", want);
    snprintf(want, sizeof want,
             CHUNK2 "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
             "\"finish_reason\":null}],\"usage\":null}\n"
             CHUNK2 "{\"index\":0,\"delta\":{\"content\":\"a\"},\"logprobs\":null,\"finish_reason\":null}],"
             "\"usage\":null}\n"
             CHUNK2 "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":null}\n"
             CHUNK2 "]," STATS_USAGE "," STATS_A "%s" STATS_B "}}\n", resolved);
    gives(a, true, false, HI OMNI ",\"return_pruning\":true},\"stream\":true,"
          "\"stream_options\":{\"include_usage\":true}}", want);
    api_destroy(&a);
}

/* ---- tokens ----------------------------------------------------------------------------------------------- */

static void counts_tokens(struct api *a, const char *body, const char *want)
{
    struct err e = { 0 };
    json_t *o = NULL;
    if (api_tokenize(a, body, strlen(body), &caller, &o, &e) != OK) fail_msg("%s: %s", body, e.text);
    struct got g;
    got_init(&g, true);
    put_json(&g, o, "TokenizeReply");
    assert_string_equal(g.text, want);
    free(g.text);
}

static void refuses_tokens(struct api *a, const char *body, const char *code, const char *param)
{
    struct err e = { 0 };
    json_t *o = NULL;
    assert_int_equal(api_tokenize(a, body, strlen(body), &caller, &o, &e), E_ARG);
    assert_string_equal(api_error_of(&e).code, code);
    assert_string_equal(e.param, param);
}

static void tokens_of_prompts(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 }), *s = make((struct api_options){ .strict_openai = true });
    struct token_list t = { 0 };
    struct err e = { 0 };
    char want[500];
    assert_int_equal(tokenizer_encode_text(a->tok, "hello", 5, &t, &e), OK);
    size_t n = (size_t)sprintf(want, "{\"count\":%zu,\"max_model_len\":2048,\"tokens\":[", t.n);
    for (size_t i = 0; i < t.n; i++) n += (size_t)sprintf(want + n, "%s%d", i ? "," : "", t.token[i].id);
    n += (size_t)sprintf(want + n, "],\"token_strs\":null");
    char *end = want + n;
    sprintf(end, ",\"omnidrop\":{\"text_tokens\":%zu,\"audio_tokens\":0,\"video_tokens\":0,"
          "\"image_tokens\":0}}\n", t.n);
    counts_tokens(a, "{\"prompt\":\"hello\"}", want);
    counts_tokens(a, "{\"content\":\"hello\",\"add_special_tokens\":false}", want);
    sprintf(end, "}\n");
    counts_tokens(s, "{\"prompt\":\"hello\"}", want);
    snprintf(want, sizeof want, "{\"count\":1,\"max_model_len\":2048,\"tokens\":[%d],"
          "\"token_strs\":[\"<|im_end|>\"],\"omnidrop\":"
             "{\"text_tokens\":1,\"audio_tokens\":0,\"video_tokens\":0,"
             "\"image_tokens\":0}}\n", tokenizer_id(a->tok, "<|im_end|>"));
    counts_tokens(a, "{\"prompt\":\"<|im_end|>\",\"return_token_strs\":true}", want);
    counts_tokens(a, "{\"messages\":[{\"role\":\"user\",\"content\":\"ab\"}]}",
                  "{\"count\":2,\"max_model_len\":2048,\"tokens\":[7,7],\"token_strs\":null,"
                  "\"omnidrop\":{\"text_tokens\":2,"
                  "\"audio_tokens\":0,\"video_tokens\":0,\"image_tokens\":0}}\n");
    counts_tokens(a, "{\"prompt\":\"\"}", "{\"count\":0,\"max_model_len\":2048,\"tokens\":[],"
          "\"token_strs\":null,\"omnidrop\":"
                  "{\"text_tokens\":0,\"audio_tokens\":0,\"video_tokens\":0,\"image_tokens\":0}}\n");
    refuses_tokens(a, "{}", "missing_required_parameter", "prompt");
    refuses_tokens(a, "{\"prompt\":3}", "invalid_type", "prompt");
    refuses_tokens(a, "{\"prompt\":\"a\",\"messages\":[]}", "invalid_value", "messages");
    refuses_tokens(a, "{\"messages\":[]}", "invalid_value", "messages");
    token_list_free(&t);
    api_destroy(&a);
    api_destroy(&s);
}

static void text_of_tokens(void **state)
{
    (void)state;
    struct api *a = make((struct api_options){ 0 });
    struct token_list t = { 0 };
    struct err e = { 0 };
    json_t *o = NULL;
    char body[300] = "{\"tokens\":[";
    const char *text = "Gr\u00fc\u00df Gott";
    assert_int_equal(tokenizer_encode_text(a->tok, text, strlen(text), &t, &e), OK);
    for (size_t i = 0; i < t.n; i++) sprintf(body + strlen(body), "%s%d", i ? "," : "", t.token[i].id);
    strcat(body, "]}");
    assert_int_equal(api_detokenize(a, body, strlen(body), &o, &e), OK);
    assert_string_equal(json_string_value(json_object_get(o, "prompt")), text);
    json_decref(o);
    static const struct { const char *body, *code, *param; } bad[] = {
        { "{\"tokens\":[99999999]}", "invalid_value", "tokens[0]" },
        { "{\"tokens\":[1,\"a\"]}", "invalid_type", "tokens[1]" },
        { "{}", "missing_required_parameter", "tokens" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        e = (struct err){ 0 };
        assert_int_equal(api_detokenize(a, bad[i].body, strlen(bad[i].body), &o, &e), E_ARG);
        assert_string_equal(api_error_of(&e).code, bad[i].code);
        assert_string_equal(e.param, bad[i].param);
    }
    token_list_free(&t);
    api_destroy(&a);
}

/* ---- the description -------------------------------------------------------------------------------------- */

/* Every reference leads somewhere. */
static void check_references(const json_t *v)
{
    const char *key;
    json_t *m;
    for (size_t i = 0; i < json_array_size(v); i++) check_references(json_array_get(v, i));
    if (!json_is_object(v)) return;
    const char *ref = json_string_value(json_object_get(v, "$ref"));
    if (ref) {
        const char *name = strrchr(ref, '/') + 1;
        if (json_object_get(json_object_get(json_object_get(openapi, "components"), "schemas"), name) == NULL) fail_msg("%s", ref);
    }
    json_object_foreach((json_t *)(uintptr_t)v, key, m) check_references(m);
}

static void describes_every_route(void **state)
{
    (void)state;
    static const char *const routes[] = {
        "get /v1/models", "get /v1/models/{id}", "post /v1/chat/completions", "post /v1/completions",
        "post /v1/audio/transcriptions", "post /v1/audio/translations", "post /v1/files", "get /v1/files", "get /v1/files/{id}",
        "delete /v1/files/{id}", "get /v1/files/{id}/content", "post /v1/batches", "get /v1/batches", "get /v1/batches/{id}",
        "post /v1/batches/{id}/cancel", "post /tokenize", "post /detokenize", "post /v1/tokenize", "post /v1/detokenize",
        "get /health", "get /ready", "get /version", "get /", "get /metrics", "get /openapi.json",
        "get /models", "get /v1/omnidrop/state" };
    const json_t *paths = json_object_get(openapi, "paths");
    size_t n = 0;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        char method[10];
        snprintf(method, sizeof method, "%.*s", (int)strcspn(routes[i], " "), routes[i]);
        const json_t *o = json_object_get(json_object_get(paths, strchr(routes[i], '/')), method);
        if (json_object_get(json_object_get(o, "responses"), "200") == NULL) fail_msg("not described: %s", routes[i]);
        assert_non_null(json_object_get(o, "operationId"));
    }
    const char *key;
    json_t *p;
    json_object_foreach((json_t *)(uintptr_t)paths, key, p) n += json_object_size(p);
    assert_int_equal(n, sizeof routes / sizeof *routes);
    assert_string_equal(json_string_value(json_object_get(openapi, "openapi")), "3.1.0");
    check_references(openapi);
    char *text = json_dumps(openapi, JSON_COMPACT);
    assert_non_null(text);
    free(text);
}

/* The description takes the requests that the parser takes, and refuses what it refuses. */
static void describes_requests(void **state)
{
    (void)state;
    char why[300];
    static const struct { const char *body; bool good; } requests[] = {
        { HI "}", true },
        { HI ",\"temperature\":3}", false },
        { HI ",\"omnidrop\":{\"policy\":\"omnidrop\",\"retention\":0.3,\"return_pruning\":true,"
              "\"detail\":\"tokens\"}}", true },
        { HI ",\"omnidrop\":{\"retension\":0.3}}", false },
        { HI ",\"stop\":[\"a\"],\"logit_bias\":{\"5\":1},\"stream_options\":null}", true },
        { HI ",\"n\":0}", false },
        { "{}", false },
    };
    json_t *ref = json_pack("{s:s}", "$ref", "#/components/schemas/ChatRequest");
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        json_t *v = json_loads(requests[i].body, 0, NULL);
        if (schema_follows(openapi, ref, v, why, sizeof why) != requests[i].good) fail_msg("%s: %s", requests[i].body, why);
        json_decref(v);
    }
    json_decref(ref);
}

/* ---- text ------------------------------------------------------------------------------------------------- */

/* In whatever pieces bytes come, the characters are the same. */
static void pieces_make_characters(void **state)
{
    (void)state;
    const char text[] = "a\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80\xff" "b\xe2\x82" "c\xc3";
    const char want[] = "a\u00fc\u20ac\U0001f600\ufffd" "b\ufffd\ufffd" "c\ufffd";
    for (size_t cut = 1; cut < sizeof text; cut++) {
        struct api_text t = { 0 };
        unsigned char held[4];
        uint32_t n_held = 0;
        size_t chars = 0;
        for (size_t i = 0; i < sizeof text - 1; i += cut)
            chars += api_text_add(&t, held, &n_held, text + i, i + cut < sizeof text - 1 ? cut : sizeof text - 1 - i);
        chars += api_text_end(&t, &n_held);
        assert_string_equal(t.text, want);
        assert_int_equal(chars, 10);
        api_text_free(&t);
    }
}

static int open_all(void **state)
{
    (void)state;
    service = fake_open(fake_engine(), &script);
    struct api *a = make((struct api_options){ 0 });
    openapi = api_openapi(a);
    api_destroy(&a);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    fake_close(&service);
    json_decref(openapi);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_chat), cmocka_unit_test(streamed_chat), cmocka_unit_test(choices), cmocka_unit_test(logprobs),
        cmocka_unit_test(token_ids), cmocka_unit_test(text_completions), cmocka_unit_test(a_refused_prompt_ends_the_others),
        cmocka_unit_test(failures), cmocka_unit_test(a_failed_prompt_ends_the_others),
        cmocka_unit_test(cancelling), cmocka_unit_test(run_is_a_call), cmocka_unit_test(statistics),
        cmocka_unit_test(tokens_of_prompts), cmocka_unit_test(text_of_tokens), cmocka_unit_test(describes_every_route),
        cmocka_unit_test(describes_requests), cmocka_unit_test(pieces_make_characters),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
