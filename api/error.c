/* api/error.c - see error.h. */
#include "api/error.h"

#include <string.h>
#include <utf8proc.h>

#define IRE "invalid_request_error"
#define SERVER "server_error"

/* docs/http-api.md 2.2, in its order. */
static const struct { const char *code; int status; const char *type; int retry_after; bool no_retry; } table[] = {
    { "invalid_json", 400, IRE, 0, false },
    { "json_too_complex", 400, IRE, 0, false },
    { "invalid_type", 400, IRE, 0, false },
    { "invalid_value", 400, IRE, 0, false },
    { "missing_required_parameter", 400, IRE, 0, false },
    { "unsupported_parameter", 400, IRE, 0, false },
    { "invalid_multipart", 400, IRE, 0, false },
    { "invalid_http", 400, IRE, 0, false },
    { "invalid_language", 400, IRE, 0, false },
    { "unsupported_timestamp_granularity", 400, IRE, 0, false },
    { "file_in_use", 409, IRE, 0, true },
    { "model_not_found", 404, IRE, 0, false },
    { "unknown_endpoint", 404, IRE, 0, false },
    { "method_not_allowed", 405, IRE, 0, false },
    { "not_found", 404, IRE, 0, false },
    { "invalid_api_key", 401, IRE, 0, false },
    { "forbidden", 403, "permission_error", 0, false },
    { "host_not_allowed", 403, "permission_error", 0, false },
    { "origin_not_allowed", 403, "permission_error", 0, false },
    { "context_length_exceeded", 400, IRE, 0, false },
    { "request_too_large", 413, IRE, 0, false },
    { "media_too_large", 400, IRE, 0, false },
    { "media_too_long", 400, IRE, 0, false },
    { "too_many_media", 400, IRE, 0, false },
    { "unsupported_media", 400, IRE, 0, false },
    { "media_decode_failed", 400, IRE, 0, false },
    { "media_url_not_allowed", 400, IRE, 0, false },
    { "media_path_not_allowed", 400, IRE, 0, false },
    { "media_fetch_failed", 400, IRE, 0, false },
    { "media_fetch_failed_remote", 502, SERVER, 0, false },
    { "media_fetch_timeout", 504, SERVER, 0, false },
    { "unsupported_content_type", 415, IRE, 0, false },
    { "length_required", 411, IRE, 0, false },
    { "headers_too_large", 431, IRE, 0, false },
    { "request_timeout", 408, IRE, 0, false },
    { "rate_limit_exceeded", 429, "rate_limit_error", 1, false },
    { "queue_full", 429, "rate_limit_error", 2, false },
    { "too_many_connections", 503, SERVER, 1, false },
    { "not_ready", 503, SERVER, 5, false },
    { "engine_dead", 503, SERVER, 30, false },
    { "group_lost", 503, SERVER, 1, false },
    { "draining", 503, SERVER, 5, false },
    { "spool_full", 503, SERVER, 10, false },
    { "queue_timeout", 503, SERVER, 5, false },
    { "insufficient_memory", 400, SERVER, 0, true },
    { "insufficient_memory_now", 503, SERVER, 5, false },
    { "deadline_exceeded", 504, SERVER, 0, true },
    { "transcription_incomplete", 500, SERVER, 0, true },
    { "engine_error", 500, SERVER, 0, false },
};

static const char *tag_of(status code)
{
    switch (code) {
    case E_ARG: return "invalid_value";
    case E_INPUT: return "media_decode_failed";
    case E_FULL: return "insufficient_memory";
    case E_NOMEM: return "insufficient_memory_now";
    case E_BUSY: return "queue_full";
    case E_TIMEOUT: return "deadline_exceeded";
    default: return "engine_error";
    }
}

/* Two statuses share one code on the wire where the cause differs: the tag says which. */
static const char *code_of(const char *tag)
{
    if (strcmp(tag, "media_fetch_failed_remote") == 0) return "media_fetch_failed";
    if (strcmp(tag, "insufficient_memory_now") == 0) return "insufficient_memory";
    return tag;
}

struct api_error api_error_of(const struct err *e)
{
    const char *tag = e->tag ? e->tag : tag_of(e->code);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i].code, tag) == 0)
            return (struct api_error){ table[i].status, table[i].type, code_of(tag), table[i].retry_after, table[i].no_retry };
    return (struct api_error){ 500, SERVER, "engine_error", 0, false };
}

const char *api_error_tag(const char *tag)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i].code, tag) == 0) return table[i].code;
    return "engine_error";
}

/* What was cut to fit may end in half a character: such bytes become question marks. */
static json_t *valid(const char *s)
{
    char copy[sizeof((struct err *)0)->text];
    utf8proc_int32_t cp;
    const size_t n = strlen(s);
    for (size_t i = 0; i < n;) {
        const utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &cp);
        if (k > 0) memcpy(copy + i, s + i, (size_t)k);
        else copy[i] = '?';
        i += k > 0 ? (size_t)k : 1;
    }
    return json_stringn(copy, n);
}

json_t *api_error_json(const struct err *e)
{
    const struct api_error w = api_error_of(e);
    return json_pack("{s:{s:o,s:s,s:o,s:s}}", "error", "message", valid(e->text), "type", w.type, "param",
                     e->param[0] ? valid(e->param) : json_null(), "code", w.code);
}
