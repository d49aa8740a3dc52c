/* api/audio_fields.c - the fields of transcriptions and translations: docs/http-api.md 1.7. A form becomes the JSON object
 * that a batch line would have had; one reader knows the rules. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/audio_inside.h"
#include "api/fields.h"
#include "base/mem.h"
#include "engine/languages.h"

/* ---- forms -------------------------------------------------------------------------------------------------- */

enum kind { TEXT, NUMBER, INTEGER, FLAG, LIST, TIME };
struct form_field { const char *name; enum kind kind; };

static const struct form_field form_fields[] = {
    { "model", TEXT }, { "prompt", TEXT }, { "language", TEXT }, { "response_format", TEXT }, { "file_id", TEXT },
    { "file_url", TEXT }, { "temperature", NUMBER }, { "top_p", NUMBER }, { "seed", INTEGER }, { "stream", FLAG },
    { "languages", LIST }, { "keywords", LIST }, { "include", LIST }, { "timestamp_granularities", LIST },
    { "known_speaker_names", LIST }, { "known_speaker_references", LIST }, { NULL, TEXT } };
static const struct form_field chunking_fields[] = {
    { "type", TEXT }, { "threshold", NUMBER }, { "prefix_padding_ms", NUMBER }, { "silence_duration_ms", NUMBER },
    { NULL, TEXT } };
/* Keys of `omnidrop` that are not those of 1.6. */
static const struct form_field own_fields[] = {
    { "window_s", NUMBER }, { "overlap_s", NUMBER }, { "start", TIME }, { "end", TIME }, { "use_video", FLAG },
    { "condition_on_previous_text", FLAG }, { "on_window_error", TEXT }, { "max_segment_s", NUMBER },
    { "to_language", TEXT }, { NULL, TEXT } };

static const struct form_field *find(const struct form_field *list, const char *name, size_t n)
{
    for (; list->name; list++)
        if (strlen(list->name) == n && memcmp(list->name, name, n) == 0) return list;
    return NULL;
}

static status bad(const char *tag, const char *param, struct err *e, const char *what, const char *found)
{
    err_set(e, E_ARG, "%.100s: %s%s%.60s%s", param, what, found ? ", not \"" : "", found ? found : "", found ? "\"" : "");
    return err_tag(e, tag, param);
}

/* A field's text as the JSON that it means. */
static status typed(const char *param, enum kind kind, const char *text, json_t **out, struct err *e)
{
    char *end;
    *out = NULL;
    if (kind == FLAG) {
        const bool on = strcasecmp(text, "true") == 0 || strcmp(text, "1") == 0;
        if (!on && strcasecmp(text, "false") != 0 && strcmp(text, "0") != 0)
            return bad("invalid_type", param, e, "must be true or false", text);
        *out = json_boolean(on);
        return OK;
    }
    if (kind == NUMBER || kind == INTEGER) {
        const double v = strtod(text, &end);
        const long long i = kind == INTEGER ? strtoll(text, &end, 10) : 0;
        if (end == text || *end || !isfinite(v))
            return bad("invalid_type", param, e, kind == NUMBER ? "must be a number" : "must be a whole number", text);
        *out = kind == NUMBER ? json_real(v) : json_integer(i);
        return OK;
    }
    *out = json_string(text);
    return *out ? OK : bad("invalid_value", param, e, "is no valid UTF-8", NULL);
}

static json_t *object_of(json_t *root, const char *key)
{
    json_t *o = json_object_get(root, key);
    if (json_is_object(o)) return o;
    o = json_object();
    json_object_set_new(root, key, o);
    return o;
}

/* "base[key]": key into buf; false: the name has no such shape. */
static bool key_of(const char *name, const char *base, char *buf, size_t cap)
{
    const size_t n = strlen(base), len = strlen(name);
    if (strncmp(name, base, n) != 0 || name[n] != '[' || name[len - 1] != ']' || len - n - 2 >= cap || len < n + 3)
        return false;
    snprintf(buf, cap, "%.*s", (int)(len - n - 2), name + n + 1);
    return true;
}

/* A field that may hold a JSON object as text. */
static status object_text(json_t *root, const char *name, const char *text, struct err *e)
{
    struct doc d;
    struct doc_at at;
    if (api_body_open(text, strlen(text), &d, &at, e) != OK) {
        err_prefix(e, "%s", name);
        return err_tag(e, "invalid_json", name);
    }
    json_object_update(object_of(root, name), d.root);
    doc_close(&d);
    return OK;
}

static status form_omnidrop(json_t *root, const char *key, const char *text, struct err *e)
{
    char param[96];
    json_t *v;
    snprintf(param, sizeof param, "omnidrop.%.60s", key);
    const struct form_field *f = find(own_fields, key, strlen(key));
    if (f == NULL) return api_omnidrop_field(object_of(root, "omnidrop"), key, text, e);
    TRY(typed(param, f->kind, text, &v, e));
    json_object_set_new(object_of(root, "omnidrop"), key, v);
    return OK;
}

static status form_field(json_t *root, const char *name, const char *text, struct err *e)
{
    char key[64];
    json_t *v;
    size_t n = strlen(name);
    if (strcmp(name, "omnidrop") == 0) return object_text(root, name, text, e);
    if (key_of(name, "omnidrop", key, sizeof key)) return form_omnidrop(root, key, text, e);
    if (key_of(name, "chunking_strategy", key, sizeof key)) {
        const struct form_field *f = find(chunking_fields, key, strlen(key));
        TRY(typed(name, f ? f->kind : TEXT, text, &v, e));
        json_object_set_new(object_of(root, "chunking_strategy"), key, v);
        return OK;
    }
    if (strcmp(name, "chunking_strategy") == 0) {
        if (*text == '{') return object_text(root, name, text, e);
        TRY(typed(name, TEXT, text, &v, e));
        json_object_set_new(root, name, v);
        return OK;
    }
    if (n > 2 && strcmp(name + n - 2, "[]") == 0) n -= 2;
    const struct form_field *f = find(form_fields, name, n);
    if (f == NULL) return OK;                      /* forms arrive from many wrappers */
    if (*text == 0 && f->kind != LIST) return OK;  /* which send what nobody filled in, too */
    TRY(typed(f->name, f->kind, text, &v, e));
    if (f->kind != LIST) {
        json_object_set_new(root, f->name, v);
        return OK;
    }
    json_t *list = json_object_get(root, f->name);
    if (list == NULL) json_object_set_new(root, f->name, list = json_array());
    json_array_append_new(list, v);
    return OK;
}

status audio_fields_form(const struct api_audio_field *field, size_t n, json_t **out, struct err *e)
{
    json_t *root = json_object();
    status st = OK;
    for (size_t i = 0; i < n && st == OK; i++) {
        const bool is_file = strcmp(field[i].name, "file") == 0;
        if (is_file && field[i].filename == NULL)
            st = bad("invalid_type", "file", e, "must be a file: a part with a filename", NULL);
        else if (!is_file && field[i].filename == NULL) st = form_field(root, field[i].name, field[i].value, e);
    }
    if (st != OK) json_decref(root);
    else *out = root;
    return st;
}

/* ---- rules -------------------------------------------------------------------------------------------------- */

static struct doc_at member(const struct doc_at *o, const char *key)
{
    return (struct doc_at){ .v = json_object_get(o->v, key), .up = o, .key = key, .doc = o->doc };
}

static status refuse(const struct doc_at *o, const char *key, const char *tag, struct err *e, const char *why)
{
    const struct doc_at at = member(o, key);
    return doc_err_as(&at, tag, e, "%s", why);
}

/* Up to `most` strings; also one string in place of a list. each() takes them. */
static status strings(const struct doc_at *root, const char *key, size_t most,
                      status (*each)(struct audio_params *p, const struct doc_at *at, const char *s, struct err *e),
                      struct audio_params *p, struct err *e)
{
    struct doc_at list, at;
    const char *s;
    if (!doc_has(root, key)) return OK;
    TRY(doc_any(root, key, &list, e));
    if (json_is_string(list.v)) return each(p, &list, json_string_value(list.v), e);
    TRY(doc_as_array(&list, e));
    if (doc_count(&list) > most)
        return doc_err_as(&list, "invalid_value", e, "%zu entries, at most %zu are taken", doc_count(&list), most);
    for (size_t i = 0; i < doc_count(&list); i++) {
        doc_element(&list, i, &at);
        TRY(doc_as_string(&at, &s, NULL, e));
        TRY(each(p, &at, s, e));
    }
    return OK;
}

static status language_of(const struct doc_at *at, const char *s, const char **out, struct err *e)
{
    *out = language_name(s);
    if (*out) return OK;
    return doc_err_as(at, "invalid_language", e, "\"%.40s\" is no language known here: give an ISO 639 code (en, eng) or an "
                                                 "English name", s);
}

static status each_language(struct audio_params *p, const struct doc_at *at, const char *s, struct err *e)
{
    TRY(language_of(at, s, &p->languages[p->n_languages], e));
    p->n_languages++;
    return OK;
}

static void add_context(struct audio_params *p, const char *joint, const char *s)
{
    const size_t had = p->context ? strlen(p->context) : 0, cap = had + strlen(joint) + strlen(s) + 1;
    char *text = mem_must(cap, 1);
    snprintf(text, cap, "%s%s%s", had ? p->context : "", had ? joint : "", s);
    free(p->context);
    p->context = text;
}

static status each_keyword(struct audio_params *p, const struct doc_at *at, const char *s, struct err *e)
{
    const size_t n = strlen(s);
    if (n == 0 || n > AUDIO_KEYWORD_BYTES_MAX)
        return doc_err_as(at, "invalid_value", e, "%zu bytes, a keyword has 1 to %d", n, AUDIO_KEYWORD_BYTES_MAX);
    add_context(p, at->key == NULL && at->index > 0 ? ", " : "\n", s);
    return OK;
}

static status each_granularity(struct audio_params *p, const struct doc_at *at, const char *s, struct err *e)
{
    p->segments = true;
    if (strcmp(s, "segment") == 0) return OK;
    if (strcmp(s, "word") == 0)
        return doc_err_as(at, "unsupported_timestamp_granularity", e, "the model gives no times of words and none are made up: "
                                                                      "ask for \"segment\"");
    return doc_err_as(at, "invalid_value", e, "\"%.40s\" must be \"segment\"", s);
}

static status each_include(struct audio_params *p, const struct doc_at *at, const char *s, struct err *e)
{
    if (strcmp(s, "logprobs") != 0) return doc_err_as(at, "invalid_value", e, "\"%.40s\" must be \"logprobs\"", s);
    p->logprobs = true;
    return OK;
}

static status read_format(const struct doc_at *root, struct audio_params *p, struct err *e)
{
    static const char *const name[] = { "json", "text", "srt", "vtt", "verbose_json" };
    const char *s = "json";
    TRY(doc_opt_string(root, "response_format", &s, e));
    for (int i = 0; i < 5; i++)
        if (strcmp(s, name[i]) == 0) {
            p->format = (enum audio_format)i;
            return OK;
        }
    const struct doc_at at = member(root, "response_format");
    return doc_err_as(&at, "invalid_value", e, "\"%.40s\" must be one of json, text, srt, vtt, verbose_json", s);
}

/* The planner works with pauses of 200 ms and a floor of its own; what a client asks for beside that is refused, not
 * ignored. */
static status read_chunking(const struct doc_at *root, struct err *e)
{
    static const char *const known[] = { "type", "threshold", "prefix_padding_ms", "silence_duration_ms", NULL };
    static const double usual[] = { 0.5, 300, 200 };
    struct doc_at at;
    const char *type = "";
    if (!doc_has(root, "chunking_strategy")) return OK;
    TRY(doc_any(root, "chunking_strategy", &at, e));
    if (json_is_string(at.v)) {
        if (strcmp(json_string_value(at.v), "auto") == 0) return OK;
        return doc_err_as(&at, "invalid_value", e, "must be \"auto\" or an object of type \"server_vad\"");
    }
    TRY(doc_as_object(&at, e));
    TRY(doc_only(&at, known, e));
    TRY(doc_string(&at, "type", &type, e));
    if (strcmp(type, "server_vad") != 0) return refuse(&at, "type", "invalid_value", e, "must be \"server_vad\"");
    for (int i = 0; i < 3; i++) {
        double v = usual[i];
        TRY(doc_opt_double(&at, known[i + 1], 0, i ? 60000 : 1, &v, e));
        if (v != usual[i])
            return refuse(&at, known[i + 1], "unsupported_parameter", e, "this planner of windows has fixed values (threshold "
                          "0.5, padding 300 ms, pauses of 200 ms): leave it out");
    }
    return OK;
}

/* Seconds, or [HH:]MM:SS.mmm. */
static status read_time(const struct doc_at *o, const char *key, double *out, struct err *e)
{
    struct doc_at at;
    if (!doc_has(o, key)) return OK;
    TRY(doc_any(o, key, &at, e));
    if (!json_is_string(at.v)) return doc_as_double(&at, 0, 1e7, out, e);
    const char *s = json_string_value(at.v);
    double total = 0;
    for (int field = 0; field < 3; field++) {
        char *end;
        const double v = *s >= '0' && *s <= '9' ? strtod(s, &end) : -1;
        if (v < 0 || v > 1e7 || (field && v >= 60)) break;
        total = total * 60 + v;
        if (*end == 0) {
            *out = total;
            return OK;
        }
        if (*end != ':') break;
        s = end + 1;
    }
    return doc_err_as(&at, "invalid_value", e, "\"%.40s\" is no time: write seconds or [HH:]MM:SS.mmm",
                      json_string_value(at.v));
}

static status read_own(const struct doc_at *o, struct audio_params *p, struct err *e)
{
    bool video = false;
    const char *gap = "fail", *to = "english";
    TRY(doc_opt_double(o, "window_s", 2, 120, &p->window_s, e));
    TRY(doc_opt_double(o, "overlap_s", 0, 60, &p->overlap_s, e));
    TRY(doc_opt_double(o, "max_segment_s", 0.5, 3600, &p->max_segment_s, e));
    TRY(read_time(o, "start", &p->start_s, e));
    TRY(read_time(o, "end", &p->end_s, e));
    TRY(doc_opt_bool(o, "use_video", &video, e));
    TRY(doc_opt_bool(o, "condition_on_previous_text", &p->condition_on_previous, e));
    TRY(doc_opt_string(o, "on_window_error", &gap, e));
    TRY(doc_opt_string(o, "to_language", &to, e));
    p->mark = strcmp(gap, "mark") == 0;
    if (doc_has(o, "end") && p->end_s <= p->start_s)
        return refuse(o, "end", "invalid_value", e, "must come after the start");
    if (video) return refuse(o, "use_video", "unsupported_parameter", e, "is not offered: the sound is transcribed without the pictures");
    if (!p->mark && strcmp(gap, "fail") != 0) return refuse(o, "on_window_error", "invalid_value", e, "must be \"fail\" or \"mark\"");
    if (doc_has(o, "to_language") && (language_name(to) == NULL || strcmp(language_name(to), "english") != 0))
        return refuse(o, "to_language", "unsupported_parameter", e, "translations are into English");
    return OK;
}

/* What is left of the object is that of 1.6; without a policy of its own it is `none`, whatever the server prunes else. */
static status read_omnidrop(const struct api *a, const struct doc_at *root, struct audio_params *p, struct err *e)
{
    struct doc_at o, rest;
    if (doc_has(root, "omnidrop")) {
        TRY(doc_object(root, "omnidrop", &o, e));
        TRY(read_own(&o, p, e));
    }
    json_t *all = json_object(), *own = json_copy(json_object_get(root->v, "omnidrop"));
    if (own == NULL) own = json_object();
    for (const struct form_field *f = own_fields; f->name; f++) json_object_del(own, f->name);
    if (!json_object_get(own, "policy")) {
        bool scheduled = false;
        const char *key;
        json_t *v;
        json_object_foreach(own, key, v)
            if (strcmp(key, "return_pruning") != 0 && strcmp(key, "detail") != 0) scheduled = true;
        if (!scheduled) json_object_set_new(own, "policy", json_string("none"));
    }
    json_object_set_new(all, "omnidrop", own);
    struct doc d = { .root = all, .name = root->doc->name, .code = E_ARG };
    doc_root(&d, &rest);
    const status st = api_fields_omnidrop(a, &rest, &p->omnidrop, e);
    json_decref(all);
    return st;
}

static status read_prompt(const struct api *a, const struct doc_at *root, struct audio_params *p, struct err *e)
{
    const char *prompt = "";
    struct token_list tokens = { 0 };
    TRY(doc_opt_string(root, "prompt", &prompt, e));
    const size_t n = strlen(prompt);
    if (n == 0) return OK;
    if (n > 64 * AUDIO_PROMPT_TOKENS_MAX)      /* not worth counting */
        return refuse(root, "prompt", "invalid_value", e, "is longer than 1024 tokens");
    status st = tokenizer_encode_text(a->tok, prompt, n, &tokens, e);
    const size_t n_tokens = tokens.n;
    token_list_free(&tokens);
    if (st != OK) return st;
    const struct doc_at at = member(root, "prompt");
    if (n_tokens > AUDIO_PROMPT_TOKENS_MAX)
        return doc_err_as(&at, "invalid_value", e, "%zu tokens, at most %d are taken", n_tokens, AUDIO_PROMPT_TOKENS_MAX);
    add_context(p, "", prompt);
    return OK;
}

static status read_source(const struct doc_at *root, struct audio_params *p, struct err *e)
{
    const char *id = NULL, *url = NULL;
    if (doc_has(root, "file") && root->v)
        return refuse(root, "file", "invalid_type", e, "is a file in a form; JSON takes file_id or file_url");
    TRY(doc_opt_string(root, "file_id", &id, e));
    TRY(doc_opt_string(root, "file_url", &url, e));
    if (id && url) return refuse(root, "file_url", "invalid_value", e, "and file_id were both given: give one of them");
    if (id == NULL && url == NULL) return OK;
    const size_t cap = strlen(id ? id : url) + 9;
    p->url = mem_must(cap, 1);
    snprintf(p->url, cap, "%s%s", id ? "file-id:" : "", id ? id : url);
    return OK;
}

static status check_format(const struct doc_at *root, const struct audio_params *p, bool batch, struct err *e)
{
    if (p->stream && batch) return refuse(root, "stream", "invalid_value", e, "is true, which a reply in one piece cannot be");
    if (p->stream && (p->format == AUDIO_SRT || p->format == AUDIO_VTT))
        return refuse(root, "stream", "invalid_value", e, "is true: srt and vtt come in one piece");
    if (p->segments && p->format != AUDIO_VERBOSE_JSON && !p->stream)
        return refuse(root, "timestamp_granularities", "invalid_value", e, "needs response_format verbose_json, or stream");
    if (p->logprobs && p->format != AUDIO_JSON && !p->stream)
        return refuse(root, "include", "invalid_value", e, "logprobs come with response_format json, or stream");
    return OK;
}

status audio_fields_read(const struct api *a, const struct doc_at *root, bool translate, bool batch, struct audio_params *out,
                         struct err *e)
{
    const char *model = NULL, *language = NULL;
    struct audio_params *p = out;
    *p = (struct audio_params){ .translate = translate, .top_p = 1, .overlap_s = -1, .max_segment_s = 7 };
    TRY(doc_opt_string(root, "model", &model, e));
    TRY(api_check_model(a, model, e));
    for (int i = 0; i < 2; i++) {
        const char *key = i ? "known_speaker_references" : "known_speaker_names";
        if (doc_has(root, key)) return refuse(root, key, "unsupported_parameter", e, "speakers are not told apart here");
    }
    TRY(strings(root, "timestamp_granularities", 2, each_granularity, p, e));
    TRY(doc_opt_string(root, "language", &language, e));
    if (language && *language) {
        const struct doc_at at = member(root, "language");
        TRY(language_of(&at, language, &p->language, e));
    }
    TRY(read_format(root, p, e));
    TRY(strings(root, "languages", AUDIO_KEYWORDS_MAX, each_language, p, e));
    TRY(strings(root, "include", 8, each_include, p, e));
    TRY(doc_opt_bool(root, "stream", &p->stream, e));
    TRY(check_format(root, p, batch, e));
    TRY(doc_opt_double(root, "temperature", 0, 1, &p->temperature, e));
    TRY(doc_opt_double(root, "top_p", 1e-6, 1, &p->top_p, e));
    TRY(doc_opt_int(root, "seed", INT64_MIN, INT64_MAX, &p->seed, e));
    TRY(read_chunking(root, e));
    TRY(read_prompt(a, root, p, e));
    TRY(strings(root, "keywords", AUDIO_KEYWORDS_MAX, each_keyword, p, e));
    TRY(read_omnidrop(a, root, p, e));
    return read_source(root, p, e);
}

void audio_params_free(struct audio_params *p)
{
    free(p->url);
    free(p->context);
    *p = (struct audio_params){ 0 };
}
