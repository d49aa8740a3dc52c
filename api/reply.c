/* api/reply.c - replies and chunks: docs/http-api.md 1.4 and 1.5. With strict_openai no key is there that OpenAI's own
 * description does not name. Members stand in the order in which the description lists them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/inside.h"
#include "base/mem.h"

/* ---- pieces ----------------------------------------------------------------------------------------------- */

static const char *finish_name(enum eng_finish f) { return f == ENG_LENGTH ? "length" : "stop"; }

/* Six digits: what is beyond comes from the order of sums. */
static json_t *real(double v)
{
    if (isnan(v)) return json_null();
    return json_real(isinf(v) || v < -9999 ? -9999.0 : round(v * 1e6) / 1e6);
}

static json_t *head(const struct api_job *j, const char *object)
{
    return json_pack("{s:s,s:s,s:I,s:s}", "id", j->id, "object", object, "created", (json_int_t)j->created, "model",
                     j->api->name[0]);
}

static void put_fingerprint(const struct api_job *j, json_t *reply)
{
    char text[128];
    const char *a = j->api->fingerprint;
    const char *end = strrchr(a, '-');
    snprintf(text, sizeof text, "%.*s-%s", (int)(end ? end - a : (long)strlen(a)), a, prune_params_name(&j->omnidrop.policy));
    json_object_set_new(reply, "system_fingerprint", json_string(text));
}

static json_t *usage(const struct api_job *j)
{
    uint64_t prompt = 0, cached = 0, generated = 0, kind[4] = { 0 };
    for (uint32_t i = 0; i < j->n_groups; i++) {
        const struct api_group *g = &j->group[i];
        prompt += g->n_prompt;
        cached += g->n_cached;
        generated += g->n_generated;
        for (int k = 0; k < 4; k++) kind[k] += g->n_kind[k];
    }
    json_t *details = json_pack("{s:I,s:I}", "cached_tokens", (json_int_t)cached, "audio_tokens",
                                (json_int_t)kind[TOKEN_AUDIO]);
    if (!j->api->o.strict_openai)
        json_object_update_new(details, json_pack("{s:I,s:I,s:I}", "text_tokens", (json_int_t)kind[TOKEN_TEXT],
                                                  "image_tokens", (json_int_t)kind[TOKEN_IMAGE], "video_tokens",
                                                  (json_int_t)kind[TOKEN_VIDEO]));
    return json_pack("{s:I,s:I,s:I,s:o}", "prompt_tokens", (json_int_t)prompt, "completion_tokens", (json_int_t)generated,
                     "total_tokens", (json_int_t)(prompt + generated), "prompt_tokens_details", details);
}

/* A choice's {"index": ...} with what comes after in a fixed order. */
static json_t *choice_object(uint32_t index) { return json_pack("{s:I}", "index", (json_int_t)index); }

static json_t *taken(json_t **array)
{
    json_t *v = *array ? *array : json_array();
    *array = NULL;
    return v;
}

/* ---- log probabilities ------------------------------------------------------------------------------------ */

struct token_text { struct api_text text; const char *bytes; size_t n; };

static struct token_text text_of(const struct api_job *j, int32_t id)
{
    struct token_text t = { 0 };
    t.bytes = tokenizer_bytes(j->api->tok, id, &t.n);
    if (t.bytes == NULL) t.n = 0;
    api_text_add(&t.text, NULL, NULL, t.bytes, t.n);
    return t;
}

static json_t *chat_entry(const struct api_job *j, int32_t id, double logprob)
{
    struct token_text t = text_of(j, id);
    json_t *bytes = json_array();
    for (size_t i = 0; i < t.n; i++) json_array_append_new(bytes, json_integer((unsigned char)t.bytes[i]));
    json_t *o = json_pack("{s:o,s:o,s:o}", "token", api_text_json(&t.text), "logprob", real(logprob), "bytes", bytes);
    api_text_free(&t.text);
    return o;
}

/* Chat: an entry of `content`. Completions: {"token","logprob","top":{...}|null,"offset"}, which merges into lists. */
json_t *reply_token(const struct api_job *j, const struct service_token *t, size_t text_offset)
{
    if (j->is_chat) {
        json_t *top = json_array(), *o = chat_entry(j, t->id, (double)t->logprob);
        for (uint32_t i = 0; i < t->n_top && i < j->top_logprobs; i++)
            json_array_append_new(top, chat_entry(j, t->top[i].id, (double)t->top[i].logprob));
        json_object_set_new(o, "top_logprobs", top);
        return o;
    }
    struct token_text own = text_of(j, t->id);
    json_t *top = j->top_logprobs ? json_object() : json_null();
    for (uint32_t i = 0; i < t->n_top && i < j->top_logprobs; i++) {
        struct token_text x = text_of(j, t->top[i].id);
        const char *key = x.text.text ? x.text.text : "";
        /* Two tokens may look the same; the likelier one stays. */
        if (strlen(key) == x.text.n && json_object_get(top, key) == NULL)
            json_object_set_new(top, key, real((double)t->top[i].logprob));
        api_text_free(&x.text);
    }
    json_t *o = json_pack("{s:o,s:o,s:o,s:I}", "token", api_text_json(&own.text), "logprob", real((double)t->logprob), "top",
                          top, "offset", (json_int_t)text_offset);
    api_text_free(&own.text);
    return o;
}

static json_t *logprobs(const struct api_job *j, struct api_choice *c)
{
    static const char *const from[] = { "token", "logprob", "top", "offset" },
                            *const to[] = { "tokens", "token_logprobs", "top_logprobs", "text_offset" };
    if (!j->logprobs) return json_null();
    json_t *entries = taken(&c->logprobs);
    if (j->is_chat) return json_pack("{s:o,s:n}", "content", entries, "refusal");
    json_t *o = json_object();
    for (int k = 0; k < 4; k++) {
        json_t *list = json_array();
        for (size_t i = 0; i < json_array_size(entries); i++)
            json_array_append(list, json_object_get(json_array_get(entries, i), from[k]));
        json_object_set_new(o, to[k], list);
    }
    json_decref(entries);
    return o;
}

/* ---- the whole reply -------------------------------------------------------------------------------------- */

static json_t *whole_choice(struct api_job *j, uint32_t i)
{
    struct api_choice *c = &j->choice[i];
    struct api_group *g = &j->group[i / j->n];
    json_t *o = choice_object(i);
    if (j->is_chat) {
        json_object_set_new(o, "message", json_pack("{s:s,s:o,s:n}", "role", "assistant", "content", api_text_json(&c->text),
                                                    "refusal"));
    } else {
        struct api_text text = { 0 };
        api_text_put(&text, g->echo.text, g->echo.n);
        api_text_put(&text, c->text.text, c->text.n);
        json_object_set_new(o, "text", api_text_json(&text));
        api_text_free(&text);
    }
    json_object_set_new(o, "logprobs", logprobs(j, c));
    json_object_set_new(o, "finish_reason", json_string(finish_name(c->finish)));
    if (j->return_token_ids) {
        json_object_set_new(o, "token_ids", taken(&c->token_ids));
        if (!j->is_chat) json_object_set(o, "prompt_token_ids", g->prompt_ids);
    }
    return o;
}

json_t *reply_whole(struct api_job *j)
{
    json_t *reply = head(j, j->is_chat ? "chat.completion" : "text_completion"), *choices = json_array();
    for (uint32_t i = 0; i < j->n_groups * j->n; i++) json_array_append_new(choices, whole_choice(j, i));
    json_object_set_new(reply, "choices", choices);
    json_object_set_new(reply, "usage", usage(j));
    put_fingerprint(j, reply);
    if (j->return_token_ids && j->is_chat) json_object_set(reply, "prompt_token_ids", j->group[0].prompt_ids);
    if (j->statistics) json_object_set(reply, "omnidrop", j->statistics);
    return reply;
}

/* ---- chunks ----------------------------------------------------------------------------------------------- */

static json_t *chunk_of(const struct api_job *j, json_t *choice)
{
    json_t *chunk = head(j, j->is_chat ? "chat.completion.chunk" : "text_completion");
    put_fingerprint(j, chunk);
    json_t *choices = json_array();
    if (choice) json_array_append_new(choices, choice);
    json_object_set_new(chunk, "choices", choices);
    if (j->include_usage) json_object_set_new(chunk, "usage", json_null());
    return chunk;
}

static json_t *piece(struct api_job *j, uint32_t i, json_t *delta_or_text, bool with_tokens, const char *finish)
{
    struct api_choice *c = &j->choice[i];
    json_t *o = choice_object(i);
    json_object_set_new(o, j->is_chat ? "delta" : "text", delta_or_text);
    const bool some = with_tokens && json_array_size(c->logprobs) > 0;
    json_object_set_new(o, "logprobs", some ? logprobs(j, c) : json_null());
    json_object_set_new(o, "finish_reason", finish ? json_string(finish) : json_null());
    if (j->return_token_ids && with_tokens) json_object_set_new(o, "token_ids", taken(&c->token_ids));
    return o;
}

json_t *reply_start_chunk(struct api_job *j, uint32_t i)
{
    struct api_group *g = &j->group[i / j->n];
    json_t *start = j->is_chat ? json_pack("{s:s,s:s}", "role", "assistant", "content", "") : api_text_json(&g->echo);
    json_t *choice = piece(j, i, start, false, NULL);
    if (j->return_token_ids && !j->is_chat) json_object_set(choice, "prompt_token_ids", g->prompt_ids);
    json_t *chunk = chunk_of(j, choice);
    if (j->return_token_ids && j->is_chat) json_object_set(chunk, "prompt_token_ids", g->prompt_ids);
    return chunk;
}

json_t *reply_text_chunk(struct api_job *j, uint32_t i, const struct api_text *text)
{
    json_t *t = api_text_json(text);
    return chunk_of(j, piece(j, i, j->is_chat ? json_pack("{s:o}", "content", t) : t, true, NULL));
}

json_t *reply_finish_chunk(struct api_job *j, uint32_t i)
{
    return chunk_of(j, piece(j, i, j->is_chat ? json_object() : json_string(""), true, finish_name(j->choice[i].finish)));
}

json_t *reply_usage_chunk(struct api_job *j)
{
    json_t *chunk = chunk_of(j, NULL);
    json_object_set_new(chunk, "usage", usage(j));
    if (j->statistics) json_object_set(chunk, "omnidrop", j->statistics);
    return chunk;
}

/* ---- statistics of pruning -------------------------------------------------------------------------------- */

static json_t *by_kind(const uint32_t n[4])
{
    return json_pack("{s:I,s:I,s:I}", "audio", (json_int_t)n[TOKEN_AUDIO], "video", (json_int_t)n[TOKEN_VIDEO], "image",
                     (json_int_t)n[TOKEN_IMAGE]);
}

/* For each layer, how many tokens of `kind` enter it, by chunk: [layers][chunks]. */
static json_t *chunk_counts(const struct eng_result *r, const struct prompt *p, enum token_kind kind)
{
    const uint32_t n_chunks = (uint32_t)p->max_chunk + 1;
    uint32_t *count = mem_must(n_chunks, sizeof *count);
    json_t *layers = json_array();
    for (uint32_t l = 0; l < r->n_layers; l++) {
        const uint32_t n = r->alive[l][TOKEN_AUDIO] + r->alive[l][TOKEN_VIDEO] + r->alive[l][TOKEN_IMAGE];
        memset(count, 0, n_chunks * sizeof *count);
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t at = r->survivors[l][i];
            if (p->kind[at] == kind && p->chunk[at] >= 0) count[p->chunk[at]]++;
        }
        json_t *row = json_array();
        for (uint32_t c = 0; c < n_chunks; c++) json_array_append_new(row, json_integer(count[c]));
        json_array_append_new(layers, row);
    }
    free(count);
    return layers;
}

/* Tokens of `kind` in the prompt, before any was dropped, by chunk. */
static json_t *chunk_totals(const struct prompt *p, enum token_kind kind)
{
    const uint32_t n_chunks = (uint32_t)p->max_chunk + 1;
    uint32_t *count = mem_must(n_chunks, sizeof *count);
    json_t *row = json_array();
    for (uint32_t i = 0; i < p->n; i++)
        if (p->kind[i] == kind && p->chunk[i] >= 0) count[p->chunk[i]]++;
    for (uint32_t c = 0; c < n_chunks; c++) json_array_append_new(row, json_integer(count[c]));
    free(count);
    return row;
}

static json_t *token_detail(const struct api_job *j, const struct eng_result *r, const struct prompt *p)
{
    return json_pack("{s:I,s:f,s:o,s:o,s:o,s:o}", "chunks", (json_int_t)p->max_chunk + 1, "seconds_per_chunk",
                     j->api->seconds_per_chunk, "audio", chunk_counts(r, p, TOKEN_AUDIO), "video",
                     chunk_counts(r, p, TOKEN_VIDEO), "audio_in", chunk_totals(p, TOKEN_AUDIO), "video_in",
                     chunk_totals(p, TOKEN_VIDEO));
}

/* Why each token went: of entry i of every list, one token. */
static json_t *reasons(const struct eng_result *r, const struct prompt *p)
{
    static const char *const kinds[] = { [TOKEN_TEXT] = "text", [TOKEN_AUDIO] = "audio", [TOKEN_VIDEO] = "video", [TOKEN_IMAGE] = "image" };
    json_t *token = json_array(), *kind = json_array(), *chunk = json_array(), *layer = json_array(), *why = json_array(),
           *score = json_array(), *rank = json_array();
    for (uint32_t i = 0; i < r->n_why; i++) {
        const struct prune_why *w = &r->why[i].why;
        json_array_append_new(token, json_integer(w->index));
        json_array_append_new(kind, json_string(kinds[p->kind[w->index]]));
        json_array_append_new(chunk, json_integer(p->chunk[w->index]));
        json_array_append_new(layer, json_integer(r->why[i].layer));
        json_array_append_new(why, json_string(prune_cause_name(w->cause)));
        json_array_append_new(score, isfinite(w->score) ? json_real(w->score) : json_null());
        json_array_append_new(rank, json_integer(w->rank));
    }
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "token", token, "kind", kind, "chunk", chunk, "layer", layer, "why", why,
                     "score", score, "rank", rank);
}

/* All choices share the prefill, so the first one tells. */
json_t *reply_statistics(const struct api_job *j, const struct service_summary *s)
{
    const struct eng_result *r = s->n_choices ? s->choice[0] : NULL;
    if (r == NULL || r->alive == NULL || r->n_layers == 0) return NULL;
    const struct policy_params *policy = s->policy ? s->policy : &j->omnidrop.policy;
    const uint32_t L = r->n_layers;
    json_t *kept = json_array();
    for (uint32_t l = 0; l < L; l++)
        json_array_append_new(kept, json_integer((json_int_t)r->alive[l][TOKEN_AUDIO] + r->alive[l][TOKEN_VIDEO] +
                                                 r->alive[l][TOKEN_IMAGE]));
    json_t *o = json_pack("{s:s,s:o}", "policy", prune_params_name(policy), "resolved",
                          s->plan ? prune_plan_to_json(policy, s->plan) : prune_params_to_json(policy));
    json_object_update_new(o, json_pack("{s:o,s:I,s:o,s:o,s:o,s:I}", "av_tokens_in", by_kind(r->n_av), "layers", (json_int_t)L,
                                        "kept_per_layer", kept, "kept_last", by_kind(r->alive[L - 1]), "mean_retention",
                                        real(r->mean_retention), "cached_layers", (json_int_t)s->cached_layers));
    json_object_update_new(o, json_pack("{s:I,s:I,s:o,s:o}", "kv_bytes", (json_int_t)s->kv_bytes, "kv_bytes_unpruned",
                                        (json_int_t)s->kv_bytes_unpruned, "encode_ms", real(s->encode_s * 1e3), "prefill_ms",
                                        real(s->prefill_s * 1e3)));
    if (j->omnidrop.tokens && s->prompt && r->survivors) json_object_set_new(o, "tokens", token_detail(j, r, s->prompt));
    if (j->omnidrop.reasons && s->prompt) json_object_set_new(o, "dropped", reasons(r, s->prompt));
    return o;
}
