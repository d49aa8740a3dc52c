/* model/chat.c - see chat.h. */
#include "model/chat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define N_OF(a) (sizeof(a) / sizeof *(a))

const struct chat_limits chat_default_limits = {
    .messages_max = 2048, .parts_max = 1024, .text_max = (size_t)16 << 20, .inline_max = (size_t)512 << 20
};

static const struct chat_media_options no_options = { .start_s = -1, .end_s = -1, .use_audio = -1 };

/* ---- base64 ------------------------------------------------------------------------------------------- */

static int base64_value(unsigned char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' || c == '-' ? 62 : c == '/' || c == '_' ? 63 : -1;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

status chat_base64(const char *text, size_t n, size_t max, uint8_t **out, size_t *n_out, struct err *e)
{
    size_t digits = 0, padding = 0;
    for (size_t i = 0; i < n; i++) {
        if (is_blank(text[i])) continue;
        if (text[i] == '=') {
            padding++;
            continue;
        }
        if (base64_value((unsigned char)text[i]) < 0)
            return err_set(e, E_ARG, "the byte 0x%02x at place %zu is no base64", (unsigned char)text[i], i);
        if (padding > 0) return err_set(e, E_ARG, "base64 goes on after its padding, at place %zu", i);
        digits++;
    }
    if (digits == 0) return err_set(e, E_ARG, "the base64 data is empty");
    if (digits % 4 == 1 || padding > 2 || (padding > 0 && (digits + padding) % 4 != 0))
        return err_set(e, E_ARG, "%zu base64 digits and %zu of padding make no whole bytes: the data was cut",
                       digits, padding);
    const size_t bytes = digits / 4 * 3 + digits % 4 * 3 / 4;
    if (bytes > max)
        return err_set(e, E_ARG, "%zu bytes of inline data are more than the %zu left", bytes, max);
    uint8_t *p;
    TRY(mem_alloc(&p, bytes, 1, e));
    size_t k = 0;
    uint32_t bits = 0, have = 0;
    for (size_t i = 0; i < n; i++) {
        if (is_blank(text[i]) || text[i] == '=') continue;
        bits = bits << 6 | (uint32_t)base64_value((unsigned char)text[i]);
        have += 6;
        if (have < 8) continue;
        have -= 8;
        p[k++] = (uint8_t)(bits >> have);
        bits &= (1u << have) - 1;
    }
    *out = p;
    *n_out = k;
    return OK;
}

/* ---- building ----------------------------------------------------------------------------------------- */

void chat_init(struct chat *c)
{
    *c = (struct chat){ 0 };
}

static void message_free(struct chat_message *m)
{
    for (size_t i = 0; i < m->n_parts; i++) {
        struct chat_part *p = &m->part[i];
        free(p->text);
        free(p->url);
        free(p->data);
        free(p->format);
    }
    free(m->part);
}

void chat_drop_last(struct chat *c)
{
    if (c->n_messages) message_free(&c->message[--c->n_messages]);
}

void chat_free(struct chat *c)
{
    for (size_t m = 0; m < c->n_messages; m++) message_free(&c->message[m]);
    free(c->message);
    *c = (struct chat){ 0 };
}

status chat_add_message(struct chat *c, enum chat_role role, struct err *e)
{
    TRY(mem_grow(&c->message, &c->cap, c->n_messages + 1, sizeof *c->message, e));
    c->message[c->n_messages++] = (struct chat_message){ .role = role };
    return OK;
}

/* A new part at the end of the last message. */
static status add_part(struct chat *c, enum chat_part_kind kind, struct chat_part **out, struct err *e)
{
    *out = NULL;
    if (c->n_messages == 0) {
        err_set(e, E_ARG, "a part was given before the first message");
        return E_ARG;
    }
    struct chat_message *m = &c->message[c->n_messages - 1];
    TRY(mem_grow(&m->part, &m->cap, m->n_parts + 1, sizeof *m->part, e));
    struct chat_part *p = &m->part[m->n_parts];
    *p = (struct chat_part){ .kind = kind, .options = no_options };
    snprintf(p->path, sizeof p->path, "messages[%zu].content[%zu]", c->n_messages - 1, m->n_parts);
    m->n_parts++;
    *out = p;
    return OK;
}

static status copy_bytes(const char *s, size_t n, char **out, struct err *e)
{
    char *p;
    TRY(mem_alloc(&p, n + 1, 1, e));
    memcpy(p, s, n);
    *out = p;
    return OK;
}

status chat_add_text(struct chat *c, const char *text, size_t n, struct err *e)
{
    struct chat_part *p;
    TRY(add_part(c, PART_TEXT, &p, e));
    TRY(copy_bytes(text, n, &p->text, e));
    p->n_text = n;
    return OK;
}

status chat_add_media(struct chat *c, enum chat_part_kind kind, const char *url, struct err *e)
{
    struct chat_part *p;
    TRY(add_part(c, kind, &p, e));
    return copy_bytes(url, strlen(url), &p->url, e);
}

/* ---- parsing ------------------------------------------------------------------------------------------ */

struct parser {
    struct chat *chat;
    struct chat_limits left; /* what may still come: text_max and inline_max count down */
};

/* Copy the error of a helper that knows no place. */
static status at_place(const struct doc_at *at, struct err *e)
{
    char text[sizeof e->text];
    if (e == NULL) return E_ARG;
    if (e->code == E_NOMEM) return E_NOMEM;
    memcpy(text, e->text, sizeof text);
    return doc_err(at, e, "%s", text);
}

/* "data:audio/wav;base64,AAAA": the part's bytes, and its type as the hint. */
static status take_data_url(struct parser *x, const struct doc_at *at, const char *url, size_t n,
                            struct chat_part *p, struct err *e)
{
    const char *comma = memchr(url, ',', n), *mime = url + 5;
    if (comma == NULL) return doc_err(at, e, "a data: URL without a comma");
    size_t head = (size_t)(comma - mime);
    if (head < 7 || memcmp(comma - 7, ";base64", 7) != 0)
        return doc_err(at, e, "a data: URL that is not base64: write data:TYPE;base64,DATA");
    const char *end = memchr(mime, ';', head);
    if (p->format == NULL && end > mime) TRY(copy_bytes(mime, (size_t)(end - mime), &p->format, e));
    if (chat_base64(comma + 1, n - (size_t)(comma + 1 - url), x->left.inline_max, &p->data, &p->n_data, e) !=
        OK)
        return at_place(at, e);
    x->left.inline_max -= p->n_data;
    return OK;
}

/* A string that names or holds the media. */
static status take_url(struct parser *x, const struct doc_at *at, struct chat_part *p, struct err *e)
{
    const char *url;
    size_t n;
    TRY(doc_as_string(at, &url, &n, e));
    if (n == 0) return doc_err(at, e, "is empty");
    if (memchr(url, '\0', n) != NULL) return doc_err(at, e, "has a NUL character inside");
    if (n >= 5 && strncmp(url, "data:", 5) == 0) return take_data_url(x, at, url, n, p, e);
    if (n > 65536) return doc_err(at, e, "a URL of %zu bytes is too long", n);
    return copy_bytes(url, n, &p->url, e);
}

/* Seconds as a number, or "[HH:]MM:SS.mmm". */
static status take_time(const struct doc_at *o, const char *key, double *out, struct err *e)
{
    struct doc_at at;
    const char *s;
    if (!doc_has(o, key)) return OK;
    TRY(doc_any(o, key, &at, e));
    if (!json_is_string(at.v)) return doc_as_double(&at, 0, 1e9, out, e);
    TRY(doc_as_string(&at, &s, NULL, e));
    double total = 0;
    const char *p = s;
    for (int fields = 1; fields <= 3 && *p >= '0' && *p <= '9'; fields++, p++) {
        char *end;
        const double v = strtod(p, &end);
        if (!isfinite(v) || v > 1e9) break;
        total = total * 60 + v;
        p = end;
        if (*p == '\0') {
            *out = total;
            return OK;
        }
        if (*p != ':') break;
    }
    return doc_err(&at, e, "\"%.40s\" is no time: write seconds or [HH:]MM:SS.mmm", s);
}

static status take_options(const struct doc_at *o, struct chat_media_options *p, struct err *e)
{
    int64_t lo = (int64_t)p->min_pixels, hi = (int64_t)p->max_pixels;
    bool audio;
    TRY(take_time(o, "start", &p->start_s, e));
    TRY(take_time(o, "end", &p->end_s, e));
    TRY(doc_opt_double(o, "fps", 1e-3, 1000.0, &p->fps, e));
    TRY(doc_opt_u32(o, "max_frames", 1, 1u << 24, &p->max_frames, e));
    TRY(doc_opt_int(o, "min_pixels", 1, 1ll << 40, &lo, e));
    TRY(doc_opt_int(o, "max_pixels", 1, 1ll << 40, &hi, e));
    p->min_pixels = (uint64_t)lo;
    p->max_pixels = (uint64_t)hi;
    if (doc_has(o, "use_audio")) {
        TRY(doc_bool(o, "use_audio", &audio, e));
        p->use_audio = audio;
    }
    if (p->start_s >= 0 && p->end_s >= 0 && p->end_s <= p->start_s)
        return doc_err(o, e, "end %g is not after start %g", p->end_s, p->start_s);
    if (lo > 0 && hi > 0 && lo > hi)
        return doc_err(o, e, "min_pixels %lld is more than max_pixels %lld", (long long)lo, (long long)hi);
    return OK;
}

/* {"url": ...} or {"data": ..., "format": ...}, or the string itself. */
static status take_source(struct parser *x, const struct doc_at *at, struct chat_part *p, struct err *e)
{
    struct doc_at v;
    const char *s;
    size_t n;
    if (json_is_string(at->v)) return take_url(x, at, p, e);
    if (json_is_array(at->v)) return doc_err(at, e, "a list of frames is not supported: give a file");
    TRY(doc_as_object(at, e));
    TRY(take_options(at, &p->options, e));
    if (doc_has(at, "detail")) {
        TRY(doc_string(at, "detail", &s, e));
        p->options.low_detail = strcmp(s, "low") == 0;
        if (!p->options.low_detail && strcmp(s, "auto") != 0 && strcmp(s, "high") != 0)
            return doc_err(at, e, "detail \"%.40s\" is unknown: low, high or auto", s);
    }
    if (doc_has(at, "format")) {
        TRY(doc_string(at, "format", &s, e));
        if (strlen(s) > 80) return doc_err(at, e, "format is longer than 80 bytes");
        TRY(copy_bytes(s, strlen(s), &p->format, e));
    }
    if (doc_has(at, "data") && doc_has(at, "url")) return doc_err(at, e, "has data and url: give one");
    if (!doc_has(at, "data")) {
        TRY(doc_any(at, "url", &v, e));
        return take_url(x, &v, p, e);
    }
    TRY(doc_any(at, "data", &v, e));
    TRY(doc_as_string(&v, &s, &n, e));
    if (n >= 5 && strncmp(s, "data:", 5) == 0) return take_url(x, &v, p, e);
    if (chat_base64(s, n, x->left.inline_max, &p->data, &p->n_data, e) != OK) return at_place(&v, e);
    x->left.inline_max -= p->n_data;
    return OK;
}

static status take_text(struct parser *x, const struct doc_at *at, struct err *e)
{
    const char *s;
    size_t n;
    TRY(doc_as_string(at, &s, &n, e));
    if (n > x->left.text_max)
        return doc_err(at, e, "%zu bytes of text are more than the %zu left of the limit", n,
                       x->left.text_max);
    x->left.text_max -= n;
    return chat_add_text(x->chat, s, n, e);
}

static const struct part_name {
    const char *type;   /* value of "type"                                        */
    const char *key[2]; /* members that may hold it                               */
    enum chat_part_kind kind;
} part_names[] = {
    { "text", { "text", NULL }, PART_TEXT },
    { "refusal", { "refusal", NULL }, PART_TEXT },
    { "image_url", { "image_url", "image" }, PART_IMAGE },
    { "image", { "image", "image_url" }, PART_IMAGE },
    { "audio_url", { "audio_url", "audio" }, PART_AUDIO },
    { "audio", { "audio", "audio_url" }, PART_AUDIO },
    { "input_audio", { "input_audio", NULL }, PART_AUDIO },
    { "video_url", { "video_url", "video" }, PART_VIDEO },
    { "video", { "video", "video_url" }, PART_VIDEO },
    { "input_video", { "input_video", NULL }, PART_VIDEO },
};

/* By "type"; where there is none, by the member that is there. */
static status name_of(const struct doc_at *o, const struct part_name **out, struct err *e)
{
    const char *type = NULL;
    TRY(doc_opt_string(o, "type", &type, e));
    for (size_t i = 0; i < N_OF(part_names); i++)
        if (type != NULL ? strcmp(type, part_names[i].type) == 0 : doc_has(o, part_names[i].key[0])) {
            *out = &part_names[i];
            return OK;
        }
    const struct doc_at at = { .v = o->v, .up = o, .key = "type", .doc = o->doc };
    if (type == NULL) return doc_err(&at, e, "is missing");
    static const char *const refused[] = { "file", "image_embeds", "audio_embeds", "prompt_embeds" };
    for (size_t i = 0; i < N_OF(refused); i++)
        if (strcmp(type, refused[i]) == 0) return doc_err(&at, e, "\"%s\" is not supported", type);
    return doc_err(&at, e, "\"%.60s\" is unknown: text, image_url, audio_url, input_audio or video_url",
                   type);
}

static status parse_part(struct parser *x, const struct doc_at *at, struct err *e)
{
    const struct part_name *name = NULL;
    struct doc_at v;
    struct chat_part *p;
    if (json_is_string(at->v)) return take_text(x, at, e);
    TRY(doc_as_object(at, e));
    TRY(name_of(at, &name, e));
    const char *key = name->key[1] != NULL && !doc_has(at, name->key[0]) && doc_has(at, name->key[1])
                          ? name->key[1]
                          : name->key[0];
    TRY(doc_any(at, key, &v, e));
    if (name->kind == PART_TEXT) return take_text(x, &v, e);
    TRY(add_part(x->chat, name->kind, &p, e));
    TRY(take_options(at, &p->options, e));
    return take_source(x, &v, p, e);
}

static status parse_role(const struct doc_at *o, enum chat_role *out, struct err *e)
{
    static const struct {
        const char *name;
        enum chat_role role;
    } roles[] = {
        { "system", CHAT_SYSTEM },
        { "developer", CHAT_SYSTEM },
        { "user", CHAT_USER },
        { "assistant", CHAT_ASSISTANT },
    };
    struct doc_at at;
    const char *s;
    TRY(doc_any(o, "role", &at, e));
    TRY(doc_as_string(&at, &s, NULL, e));
    for (size_t i = 0; i < N_OF(roles); i++)
        if (strcmp(s, roles[i].name) == 0) {
            *out = roles[i].role;
            return OK;
        }
    return doc_err(&at, e, "\"%.60s\" is not supported: system, developer, user or assistant", s);
}

static status parse_message(struct parser *x, const struct doc_at *o, struct err *e)
{
    static const char *const refused[] = { "tool_calls", "function_call", "tool_call_id" };
    struct doc_at content, part;
    enum chat_role role;
    TRY(doc_as_object(o, e));
    TRY(parse_role(o, &role, e));
    for (size_t i = 0; i < N_OF(refused); i++) {
        struct doc_at at;
        if (!doc_has(o, refused[i])) continue;
        TRY(doc_any(o, refused[i], &at, e));
        if (!json_is_array(at.v) || doc_count(&at) > 0) return doc_err(&at, e, "is not supported");
    }
    TRY(chat_add_message(x->chat, role, e));
    if (role == CHAT_ASSISTANT && !doc_has(o, "content")) return OK;
    TRY(doc_any(o, "content", &content, e));
    if (json_is_string(content.v)) return take_text(x, &content, e);
    if (!json_is_array(content.v))
        return doc_err(&content, e, "is %s, a string or an array of parts is needed", doc_kind(content.v));
    const size_t n = doc_count(&content);
    if (n == 0 || n > x->left.parts_max)
        return doc_err(&content, e, "has %zu parts, must have 1 to %zu", n, x->left.parts_max);
    for (size_t i = 0; i < n; i++) {
        doc_element(&content, i, &part);
        TRY(parse_part(x, &part, e));
    }
    return OK;
}

status chat_parse(const struct doc_at *messages, const struct chat_limits *limits, struct chat *out,
                  struct err *e)
{
    struct chat c = { 0 };
    struct parser x = { .chat = &c, .left = limits != NULL ? *limits : chat_default_limits };
    struct doc_at o;
    status st = OK;
    TRY(doc_as_array(messages, e));
    const size_t n = doc_count(messages);
    if (n == 0 || n > x.left.messages_max)
        return doc_err(messages, e, "has %zu messages, must have 1 to %zu", n, x.left.messages_max);
    for (size_t i = 0; i < n && st == OK; i++) {
        doc_element(messages, i, &o);
        st = parse_message(&x, &o, e);
    }
    if (st == OK)
        *out = c;
    else
        chat_free(&c);
    return st;
}

/* ---- rendering ---------------------------------------------------------------------------------------- */

static status put(struct chat_prompt *p, const char *text, size_t n, bool is_template, bool is_user,
                  struct err *e)
{
    TRY(mem_grow(&p->seg, &p->seg_cap, p->n_seg + 1, sizeof *p->seg, e));
    p->seg[p->n_seg++] = (struct text_segment){ text, n, is_template, is_user };
    return OK;
}

static status put_template(struct chat_prompt *p, const char *text, struct err *e)
{
    return put(p, text, strlen(text), true, false, e);
}

/* "Picture 3: " */
static status put_label(struct chat_prompt *p, const char *what, unsigned number, struct err *e)
{
    char text[32];
    TRY(mem_grow(&p->own, &p->own_cap, p->n_own + 1, sizeof *p->own, e));
    snprintf(text, sizeof text, "%s %u: ", what, number);
    p->own[p->n_own++] = mem_must_strdup(text);
    return put_template(p, p->own[p->n_own - 1], e);
}

struct counters {
    unsigned image, audio, video;
};

static status put_media(struct chat_prompt *p, const struct chat_part *part,
                        const struct chat_render_options *o, struct counters *n, struct err *e)
{
    TRY(mem_grow(&p->media, &p->media_cap, p->n_media + 1, sizeof *p->media, e));
    p->media[p->n_media++] = part;
    switch (part->kind) {
    case PART_IMAGE:
        n->image++;
        if (o->add_vision_id) TRY(put_label(p, "Picture", n->image, e));
        return put_template(p, "<|vision_bos|><|IMAGE|><|vision_eos|>", e);
    case PART_AUDIO:
        n->audio++;
        if (o->add_audio_id) TRY(put_label(p, "Audio", n->audio, e));
        return put_template(p, "<|audio_bos|><|AUDIO|><|audio_eos|>", e);
    case PART_VIDEO:
        n->video++;
        if (o->add_vision_id) TRY(put_label(p, "Video", n->video, e));
        return put_template(p, "<|vision_bos|><|VIDEO|><|vision_eos|>", e);
    case PART_TEXT:
        break;
    }
    return OK;
}

static status render(const struct chat *c, const struct chat_render_options *o, struct chat_prompt *p,
                     struct err *e)
{
    static const char *const head[] = { "<|im_start|>system\n", "<|im_start|>user\n",
                                        "<|im_start|>assistant\n" };
    struct counters n = { 0 };
    size_t last_user = c->n_messages;
    for (size_t m = 0; m < c->n_messages; m++)
        if (c->message[m].role == CHAT_USER) last_user = m;
    if (c->message[0].role != CHAT_SYSTEM)
        TRY(put_template(p, "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", e));
    for (size_t m = 0; m < c->n_messages; m++) {
        const struct chat_message *msg = &c->message[m];
        TRY(put_template(p, head[msg->role], e));
        for (size_t i = 0; i < msg->n_parts; i++) {
            const struct chat_part *part = &msg->part[i];
            if (part->kind == PART_TEXT)
                TRY(put(p, part->text, part->n_text, false, m == last_user, e));
            else
                TRY(put_media(p, part, o, &n, e));
        }
        TRY(put_template(p, "<|im_end|>\n", e));
    }
    return o->no_generation_prompt ? OK : put_template(p, head[CHAT_ASSISTANT], e);
}

status chat_render(const struct chat *c, const struct chat_render_options *options, struct chat_prompt *out,
                   struct err *e)
{
    static const struct chat_render_options none = { 0 };
    struct chat_prompt p = { 0 };
    if (c->n_messages == 0) return err_set(e, E_ARG, "the conversation is empty: send at least one message");
    const status st = render(c, options != NULL ? options : &none, &p, e);
    if (st == OK)
        *out = p;
    else
        chat_prompt_free(&p);
    return st;
}

void chat_prompt_free(struct chat_prompt *p)
{
    for (size_t i = 0; i < p->n_own; i++) free(p->own[i]);
    free(p->own);
    free(p->media);
    free(p->seg);
    *p = (struct chat_prompt){ 0 };
}

status chat_check_tokens(const struct tokenizer *t, const struct model_ids *ids, struct err *e)
{
    const struct {
        const char *text;
        int32_t id;
        const char *key;
    } need[] = {
        { "<|AUDIO|>", ids->audio, "audio_token_index" },
        { "<|IMAGE|>", ids->image, "image_token_index" },
        { "<|VIDEO|>", ids->video, "video_token_index" },
        { "<|audio_bos|>", ids->audio_start, "audio_start_token_id" },
        { "<|audio_eos|>", ids->audio_end, "audio_end_token_id" },
        { "<|vision_bos|>", ids->vision_start, "vision_start_token_id" },
        { "<|vision_eos|>", ids->vision_end, "vision_end_token_id" },
        { "<|im_start|>", -1, NULL },
        { "<|im_end|>", -1, NULL },
    };
    for (size_t i = 0; i < N_OF(need); i++) {
        const int32_t id = tokenizer_id(t, need[i].text);
        if (id < 0 || !tokenizer_is_added(t, id))
            return err_set(e, E_MODEL, "the tokenizer has no added token %s, which the chat template needs",
                           need[i].text);
        if (need[i].key != NULL && id != need[i].id)
            return err_set(e, E_MODEL, "the tokenizer gives %s the id %d, %s of config.json is %d",
                           need[i].text, id, need[i].key, need[i].id);
    }
    return OK;
}
