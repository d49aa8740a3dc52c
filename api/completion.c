/* api/completion.c - the body of /v1/completions: docs/http-api.md 1.5. */
#include <stdlib.h>
#include <string.h>

#include "api/fields.h"
#include "base/mem.h"

#define MAX_TOKENS_DEFAULT 16

static struct doc_at member(const struct doc_at *o, const char *key)
{
    return (struct doc_at){ .v = json_object_get(o->v, key), .up = o, .key = key, .doc = o->doc };
}

/* Control tokens in the text are control tokens. */
static status take_text(struct api_job *j, struct api_group *g, const struct doc_at *at, struct err *e)
{
    struct text_segment seg = { .is_template = true };
    struct token_list tokens = { 0 };
    TRY(doc_as_string(at, &seg.text, &seg.n, e));
    if (seg.n == 0) return doc_err_as(at, "invalid_value", e, "is empty");
    status st = tokenizer_encode(j->api->tok, &seg, 1, &tokens, e);
    if (st == E_ARG) err_tag(e, "invalid_value", "prompt");
    if (st == OK) st = mem_alloc(&g->rq.ids, tokens.n, sizeof *g->rq.ids, e);
    for (size_t i = 0; i < tokens.n && st == OK; i++) {
        g->rq.ids[i] = tokens.token[i].id;
        st = api_check_id(j->api, at, tokens.token[i].id, e);
    }
    g->rq.n_ids = (uint32_t)tokens.n;
    token_list_free(&tokens);
    if (st == OK && j->echo) api_text_add(&g->echo, NULL, NULL, seg.text, seg.n);
    return st;
}

static status take_ids(struct api_job *j, struct api_group *g, const struct doc_at *at, struct err *e)
{
    struct doc_at el;
    const size_t n = doc_count(at);
    if (n == 0) return doc_err_as(at, "invalid_value", e, "has no tokens");
    TRY(mem_alloc(&g->rq.ids, n, sizeof *g->rq.ids, e));
    for (size_t i = 0; i < n; i++) {
        int64_t id = 0;
        doc_element(at, i, &el);
        TRY(doc_as_int(&el, INT64_MIN, INT64_MAX, &id, e));
        TRY(api_check_id(j->api, &el, id, e));
        g->rq.ids[i] = (int32_t)id;
    }
    g->rq.n_ids = (uint32_t)n;
    if (!j->echo) return OK;
    struct api_text bytes = { 0 };
    for (size_t i = 0; i < n; i++) {
        size_t k;
        const char *s = tokenizer_bytes(j->api->tok, g->rq.ids[i], &k);
        api_text_put(&bytes, s, k);
    }
    api_text_add(&g->echo, NULL, NULL, bytes.text, bytes.n);
    api_text_free(&bytes);
    return OK;
}

static status check_room(struct api_job *j, const struct api_group *g, struct err *e)
{
    const uint64_t want = (uint64_t)g->rq.n_ids + j->o.max_tokens;
    if (want <= j->api->max_model_len) return OK;
    err_set(e, E_ARG, "This model's maximum context length is %u tokens. However, you requested %llu tokens (%u in the prompt, "
                      "%u in the completion). Shorten the prompt or lower max_tokens.", j->api->max_model_len,
            (unsigned long long)want, g->rq.n_ids, j->o.max_tokens);
    return err_tag(e, "context_length_exceeded", "prompt");
}

static status read_prompts(struct api_job *j, const struct doc_at *root, struct err *e)
{
    struct doc_at prompt, el;
    TRY(doc_any(root, "prompt", &prompt, e));
    if (!json_is_string(prompt.v) && !json_is_array(prompt.v))
        return doc_err_as(&prompt, "invalid_type", e, "is %s, a string, an array of strings, or token ids are needed",
                          doc_kind(prompt.v));
    const size_t n = json_is_array(prompt.v) ? doc_count(&prompt) : 1;
    if (n == 0) return doc_err_as(&prompt, "invalid_value", e, "is empty");
    const json_t *first = json_is_array(prompt.v) ? json_array_get(prompt.v, 0) : prompt.v;
    if (json_is_string(prompt.v) || json_is_number(first)) {
        TRY(api_job_groups(j, 1, e));
        return json_is_string(prompt.v) ? take_text(j, &j->group[0], &prompt, e) : take_ids(j, &j->group[0], &prompt, e);
    }
    if (n > API_PROMPTS_MAX)
        return doc_err_as(&prompt, "invalid_value", e, "has %zu prompts, at most %d are allowed", n, API_PROMPTS_MAX);
    TRY(api_job_groups(j, (uint32_t)n, e));
    for (size_t i = 0; i < n; i++) {
        doc_element(&prompt, i, &el);
        if (json_is_array(first)) TRY(doc_as_array(&el, e));
        TRY(json_is_array(first) ? take_ids(j, &j->group[i], &el, e) : take_text(j, &j->group[i], &el, e));
    }
    return OK;
}

static status read_logprobs(struct api_job *j, const struct doc_at *root, struct err *e)
{
    if (!doc_has(root, "logprobs")) return OK;
    TRY(doc_u32(root, "logprobs", 0, API_TOP_MAX, &j->top_logprobs, e));
    j->logprobs = true;
    if (!j->echo) return OK;
    const struct doc_at at = member(root, "logprobs");
    return doc_err_as(&at, "unsupported_parameter", e, "is not supported together with echo: prompts are not scored");
}

/* As many as are asked for are made, and all of them returned. */
static status check_best_of(struct api_job *j, const struct doc_at *root, struct err *e)
{
    int64_t best_of = 1;
    TRY(doc_opt_int(root, "best_of", 1, INT32_MAX, &best_of, e));
    if (best_of <= (int64_t)j->n) return OK;
    const struct doc_at at = member(root, "best_of");
    return doc_err_as(&at, "unsupported_parameter", e, "is %lld, more than n (%u): choices are not ranked", (long long)best_of,
                      j->n);
}

static status read_all(struct api_job *j, const struct doc_at *root, struct err *e)
{
    TRY(api_fields_model(j->api, root, e));
    TRY(api_fields_check(j->api, root, API_COMPLETION, e));
    j->o.max_tokens = MAX_TOKENS_DEFAULT;
    TRY(doc_opt_u32(root, "max_tokens", 1, UINT32_MAX, &j->o.max_tokens, e));
    TRY(doc_opt_bool(root, "echo", &j->echo, e));
    TRY(read_logprobs(j, root, e));
    TRY(api_fields_common(j, root, e));
    TRY(check_best_of(j, root, e));
    TRY(read_prompts(j, root, e));
    for (uint32_t i = 0; i < j->n_groups; i++) TRY(check_room(j, &j->group[i], e));
    return mem_alloc(&j->choice, (size_t)j->n_groups * j->n, sizeof *j->choice, e);
}

status api_completion_parse(struct api *a, const char *body, size_t n, const struct api_caller *c, struct api_job **out,
                            struct err *e)
{
    struct doc d;
    struct doc_at root;
    struct api_job *j;
    TRY(api_body_open(body, n, &d, &root, e));
    TRY(api_job_new(a, c, false, &j));
    j->body = body;
    j->n_body = n;
    const status st = read_all(j, &root, e);
    doc_close(&d);
    if (st != OK) api_job_free(&j);
    else *out = j;
    return st;
}
