/* api/tokenize.c - /tokenize and /detokenize: docs/http-api.md 1.10. */
#include <stdio.h>
#include <string.h>

#include "api/fields.h"
#include "base/mem.h"

static struct doc_at member(const struct doc_at *o, const char *key)
{
    return (struct doc_at){ .v = json_object_get(o->v, key), .up = o, .key = key, .doc = o->doc };
}

/* Media are probed, not decoded. */
static status count_chat(struct api *a, const struct doc_at *root, const struct api_caller *c, struct token_list *tokens,
                         uint32_t n_kind[4], struct err *e)
{
    struct doc_at messages;
    struct chat_render_options render;
    struct api_owner owner = { { 0 } };
    const struct policy_params none = prune_params_none();
    struct service_request rq = { .render = &render, .o = eng_request_defaults(), .n_choices = 1, .owner = &owner };
    rq.o.policy = &none;
    rq.o.auto_audio = true;
    rq.o.max_tokens = 1;
    snprintf(owner.key, sizeof owner.key, "%s", c->key ? c->key : "");
    memcpy(rq.salt, owner.key, sizeof rq.salt);
    TRY(doc_any(root, "messages", &messages, e));
    TRY(chat_parse(&messages, NULL, &rq.chat, e));
    status st = api_fields_media(root, &rq.chat, e);
    if (st == OK) st = api_fields_render(root, &rq.chat, true, &render, e);
    if (st == OK) st = a->calls->count(a->service, &rq, tokens, n_kind, e);
    chat_free(&rq.chat);
    return st;
}

static status count_text(struct api *a, const struct doc_at *root, struct token_list *tokens, uint32_t n_kind[4], struct err *e)
{
    struct doc_at at;
    struct text_segment seg = { .is_template = true };
    const char *key = doc_has(root, "content") ? "content" : "prompt";
    TRY(doc_any(root, key, &at, e));
    TRY(doc_as_string(&at, &seg.text, &seg.n, e));
    const status st = tokenizer_encode(a->tok, &seg, 1, tokens, e);
    if (st == E_ARG) err_tag(e, "invalid_value", key);
    n_kind[TOKEN_TEXT] = (uint32_t)tokens->n;
    return st;
}

static json_t *token_text(const struct api *a, int32_t id)
{
    struct api_text t = { 0 };
    size_t n = 0;
    const char *bytes = tokenizer_bytes(a->tok, id, &n);
    api_text_add(&t, NULL, NULL, bytes, bytes ? n : 0);
    json_t *s = api_text_json(&t);
    api_text_free(&t);
    return s;
}

static json_t *answer(const struct api *a, const struct token_list *tokens, const uint32_t n_kind[4], bool strings)
{
    json_t *ids = json_array(), *texts = strings ? json_array() : json_null();
    for (size_t i = 0; i < tokens->n; i++) {
        json_array_append_new(ids, json_integer(tokens->token[i].id));
        if (strings) json_array_append_new(texts, token_text(a, tokens->token[i].id));
    }
    json_t *o = json_pack("{s:I,s:I,s:o,s:o}", "count", (json_int_t)tokens->n, "max_model_len", (json_int_t)a->max_model_len,
                          "tokens", ids, "token_strs", texts);
    if (!a->o.strict_openai)
        json_object_set_new(o, "omnidrop", json_pack("{s:I,s:I,s:I,s:I}", "text_tokens", (json_int_t)n_kind[TOKEN_TEXT],
                                                     "audio_tokens", (json_int_t)n_kind[TOKEN_AUDIO], "video_tokens",
                                                     (json_int_t)n_kind[TOKEN_VIDEO], "image_tokens",
                                                     (json_int_t)n_kind[TOKEN_IMAGE]));
    return o;
}

static status tokenize(struct api *a, const struct doc_at *root, const struct api_caller *c, json_t **out, struct err *e)
{
    struct token_list tokens = { 0 };
    uint32_t n_kind[4] = { 0 };
    bool strings = false, special;
    TRY(api_fields_model(a, root, e));
    TRY(doc_opt_bool(root, "return_token_strs", &strings, e));
    TRY(doc_opt_bool(root, "add_special_tokens", &special, e));    /* the model's tokenizer adds none */
    const bool chat = doc_has(root, "messages"), text = doc_has(root, "prompt") || doc_has(root, "content");
    if (chat && text) {
        const struct doc_at at = member(root, "messages");
        return doc_err_as(&at, "invalid_value", e, "is given beside a prompt: give one of them");
    }
    const status st = chat ? count_chat(a, root, c, &tokens, n_kind, e) : count_text(a, root, &tokens, n_kind, e);
    if (st == OK) *out = answer(a, &tokens, n_kind, strings);
    token_list_free(&tokens);
    return st;
}

status api_tokenize(struct api *a, const char *body, size_t n, const struct api_caller *c, json_t **out, struct err *e)
{
    struct doc d;
    struct doc_at root;
    TRY(api_body_open(body, n, &d, &root, e));
    const status st = tokenize(a, &root, c, out, e);
    doc_close(&d);
    return st;
}

static status detokenize(struct api *a, const struct doc_at *root, json_t **out, struct err *e)
{
    struct doc_at list, at;
    struct api_text bytes = { 0 }, text = { 0 };
    TRY(api_fields_model(a, root, e));
    TRY(doc_array(root, "tokens", &list, e));
    status st = OK;
    for (size_t i = 0; i < doc_count(&list) && st == OK; i++) {
        int64_t id = 0;
        size_t n = 0;
        doc_element(&list, i, &at);
        st = doc_as_int(&at, 0, (int64_t)a->vocab - 1, &id, e);
        const char *s = st == OK ? tokenizer_bytes(a->tok, (int32_t)id, &n) : NULL;
        if (s) api_text_put(&bytes, s, n);
    }
    if (st == OK) {
        api_text_add(&text, NULL, NULL, bytes.text, bytes.n);
        *out = json_pack("{s:o}", "prompt", api_text_json(&text));
    }
    api_text_free(&bytes);
    api_text_free(&text);
    return st;
}

status api_detokenize(struct api *a, const char *body, size_t n, json_t **out, struct err *e)
{
    struct doc d;
    struct doc_at root;
    TRY(api_body_open(body, n, &d, &root, e));
    const status st = detokenize(a, &root, out, e);
    doc_close(&d);
    return st;
}
