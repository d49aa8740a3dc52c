/* api/chat.c - the body of /v1/chat/completions: docs/http-api.md 1.2. */
#include <stdio.h>
#include <string.h>

#include "api/fields.h"
#include "base/mem.h"

static struct doc_at member(const struct doc_at *o, const char *key)
{
    return (struct doc_at){ .v = json_object_get(o->v, key), .up = o, .key = key, .doc = o->doc };
}

static status unsupported(const struct doc_at *o, const char *key, const char *why, struct err *e)
{
    const struct doc_at at = member(o, key);
    return doc_err_as(&at, "unsupported_parameter", e, "%s", why);
}

/* Empty lists and "none" ask for nothing. */
static status check_tools(const struct doc_at *root, struct err *e)
{
    static const char *const lists[] = { "tools", "functions" }, *const choices[] = { "tool_choice", "function_call" };
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(root->v, lists[i]);
        if (v != NULL && !json_is_null(v) && !(json_is_array(v) && json_array_size(v) == 0))
            return unsupported(root, lists[i], "is not supported: this server calls no tools", e);
    }
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(root->v, choices[i]);
        if (v != NULL && !json_is_null(v) && !(json_is_string(v) && strcmp(json_string_value(v), "none") == 0))
            return unsupported(root, choices[i], "is not supported: this server calls no tools; \"none\" is accepted", e);
    }
    return OK;
}

static status check_format(const struct doc_at *root, struct err *e)
{
    struct doc_at o, at;
    const char *type = NULL;
    if (!doc_has(root, "response_format")) return OK;
    TRY(doc_object(root, "response_format", &o, e));
    TRY(doc_string(&o, "type", &type, e));
    if (strcmp(type, "text") == 0) return OK;
    if (strcmp(type, "json_object") == 0 || strcmp(type, "json_schema") == 0)
        return doc_err_as(&o, "unsupported_parameter", e, "\"%s\" is not supported: answers are free text", type);
    at = member(&o, "type");
    return doc_err_as(&at, "invalid_value", e, "is \"%.40s\", must be \"text\"", type);
}

static status check_modalities(const struct doc_at *root, struct err *e)
{
    struct doc_at list, at;
    if (!doc_has(root, "modalities")) return OK;
    TRY(doc_array(root, "modalities", &list, e));
    for (size_t i = 0; i < doc_count(&list); i++) {
        const char *s = NULL;
        doc_element(&list, i, &at);
        TRY(doc_as_string(&at, &s, NULL, e));
        if (strcmp(s, "audio") == 0)
            return doc_err_as(&list, "unsupported_parameter", e, "asks for audio: this server answers in text");
        if (strcmp(s, "text") != 0) return doc_err_as(&at, "invalid_value", e, "is \"%.40s\", must be \"text\"", s);
    }
    return OK;
}

static status read_length(struct api_job *j, const struct doc_at *root, struct err *e)
{
    TRY(doc_opt_u32(root, "max_tokens", 1, UINT32_MAX, &j->o.max_tokens, e));
    return doc_opt_u32(root, "max_completion_tokens", 1, UINT32_MAX, &j->o.max_tokens, e);
}

static status read_logprobs(struct api_job *j, const struct doc_at *root, struct err *e)
{
    TRY(doc_opt_bool(root, "logprobs", &j->logprobs, e));
    TRY(doc_opt_u32(root, "top_logprobs", 0, API_TOP_MAX, &j->top_logprobs, e));
    if (!j->logprobs && doc_has(root, "top_logprobs")) {
        const struct doc_at at = member(root, "top_logprobs");
        return doc_err_as(&at, "invalid_value", e, "is given without \"logprobs\": true");
    }
    return OK;
}

static status read_all(struct api_job *j, const struct doc_at *root, struct err *e)
{
    struct doc_at messages;
    struct chat_render_options render;
    TRY(api_fields_model(j->api, root, e));
    TRY(api_fields_check(j->api, root, API_CHAT, e));
    TRY(check_tools(root, e));
    TRY(check_format(root, e));
    TRY(check_modalities(root, e));
    TRY(read_length(j, root, e));
    TRY(read_logprobs(j, root, e));
    TRY(api_fields_common(j, root, e));
    TRY(doc_any(root, "messages", &messages, e));
    TRY(api_job_groups(j, 1, e));
    struct chat *chat = &j->group[0].rq.chat;
    TRY(chat_parse(&messages, NULL, chat, e));
    TRY(api_fields_media(root, chat, e));
    TRY(api_fields_render(root, chat, false, &render, e));
    if (render.continue_final || render.no_generation_prompt) {
        j->render = render;
        j->group[0].rq.render = &j->render;
    }
    return mem_alloc(&j->choice, j->n, sizeof *j->choice, e);
}

status api_chat_parse(struct api *a, const char *body, size_t n, const struct api_caller *c, struct api_job **out,
                      struct err *e)
{
    struct doc d;
    struct doc_at root;
    struct api_job *j;
    TRY(api_body_open(body, n, &d, &root, e));
    TRY(api_job_new(a, c, true, &j));
    j->body = body;
    j->n_body = n;
    const status st = read_all(j, &root, e);
    doc_close(&d);
    if (st != OK) api_job_free(&j);
    else *out = j;
    return st;
}
