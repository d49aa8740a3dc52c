/* model/chat.c - see chat.h. */
#include "model/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

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

status chat_data_url(const char *url, size_t n, size_t max, char **type, uint8_t **out, size_t *n_out, struct err *e)
{
    char *t = NULL;
    if (n < 5 || strncasecmp(url, "data:", 5) != 0) return err_set(e, E_ARG, "not a data: URL");
    const char *mime = url + 5, *comma = memchr(url, ',', n);
    if (comma == NULL) return err_set(e, E_ARG, "a data: URL without a comma");
    const size_t head = (size_t)(comma - mime);
    if (head < 7 || strncasecmp(comma - 7, ";base64", 7) != 0)
        return err_set(e, E_ARG, "a data: URL that is not base64: write data:TYPE;base64,DATA");
    const size_t n_type = (size_t)((const char *)memchr(mime, ';', head) - mime);
    if (type != NULL && n_type > 0) {
        TRY(mem_alloc(&t, n_type + 1, 1, e));
        memcpy(t, mime, n_type);
    }
    const status st = chat_base64(comma + 1, n - (size_t)(comma + 1 - url), max, out, n_out, e);
    if (st != OK)
        free(t);
    else if (type != NULL)
        *type = t;
    return st;
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
        for (size_t k = 0; k < p->n_frames; k++) free(p->frame[k]);
        free(p->frame);
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

/* doc_err with a tag of docs/http-api.md 2.2, for what is out of range, unknown or empty. */
#define BAD_VALUE "invalid_value"

/* Copy the error of a helper that knows no place. */
static status at_place(const struct doc_at *at, struct err *e)
{
    char text[sizeof e->text];
    if (e == NULL) return E_ARG;
    if (e->code == E_NOMEM) return E_NOMEM;
    memcpy(text, e->text, sizeof text);
    return doc_err_as(at, BAD_VALUE, e, "%s", text);
}

static bool is_data_url(const char *url, size_t n)
{
    return n >= 5 && strncasecmp(url, "data:", 5) == 0;
}

/* "data:audio/wav;base64,AAAA": the part's bytes, and its type as the hint. */
static status take_data_url(struct parser *x, const struct doc_at *at, const char *url, size_t n,
                            struct chat_part *p, struct err *e)
{
    char *type = NULL;
    if (chat_data_url(url, n, x->left.inline_max, &type, &p->data, &p->n_data, e) != OK) return at_place(at, e);
    if (p->format == NULL)
        p->format = type;
    else
        free(type);
    x->left.inline_max -= p->n_data;
    return OK;
}

static status check_url(const struct doc_at *at, const char *url, size_t n, struct err *e)
{
    if (n == 0) return doc_err_as(at, BAD_VALUE, e, "is empty");
    if (memchr(url, '\0', n) != NULL) return doc_err_as(at, BAD_VALUE, e, "has a NUL character inside");
    if (n > 65536 && !is_data_url(url, n)) return doc_err_as(at, BAD_VALUE, e, "a URL of %zu bytes is too long", n);
    return OK;
}

/* A string that names or holds the media. */
static status take_url(struct parser *x, const struct doc_at *at, struct chat_part *p, struct err *e)
{
    const char *url;
    size_t n;
    TRY(doc_as_string(at, &url, &n, e));
    TRY(check_url(at, url, n, e));
    return is_data_url(url, n) ? take_data_url(x, at, url, n, p, e) : copy_bytes(url, n, &p->url, e);
}

/* The pictures that are the frames of a film. Those that hold their bytes are checked and counted here, decoded where
 * they are used. */
static status take_frames(struct parser *x, const struct doc_at *list, struct chat_part *p, struct err *e)
{
    const struct chat_media_options *o = &p->options;
    const size_t n = doc_count(list);
    if (n == 0 || n > x->left.parts_max)
        return doc_err_as(list, BAD_VALUE, e, "has %zu frames, must have 1 to %zu", n, x->left.parts_max);
    if (o->start_s >= 0 || o->end_s >= 0)
        return doc_err_as(list, BAD_VALUE, e, "a list of frames has no start and end: leave frames out");
    if (o->max_frames > 0 && n > o->max_frames)
        return doc_err_as(list, BAD_VALUE, e, "has %zu frames, more than max_frames %u", n, o->max_frames);
    TRY(mem_alloc(&p->frame, n, sizeof *p->frame, e));
    for (size_t i = 0; i < n; i++) {
        struct doc_at at;
        const char *url;
        size_t len;
        doc_element(list, i, &at);
        TRY(doc_as_string(&at, &url, &len, e));
        TRY(check_url(&at, url, len, e));
        if (is_data_url(url, len)) {
            uint8_t *bytes;
            size_t n_bytes;
            if (chat_data_url(url, len, x->left.inline_max, NULL, &bytes, &n_bytes, e) != OK) return at_place(&at, e);
            free(bytes);
            x->left.inline_max -= n_bytes;
        }
        TRY(copy_bytes(url, len, &p->frame[i], e));
        p->n_frames = i + 1;
    }
    return OK;
}

/* "12.5", "MM:SS.mmm" or "HH:MM:SS.mmm"; the first field may pass 59. */
static bool time_of(const char *s, double *out)
{
    double total = 0;
    for (int field = 1; field <= 3; field++) {
        double v = 0, unit = 1;
        int n = 0;
        for (; *s >= '0' && *s <= '9'; s++, n++) v = v * 10 + (*s - '0');
        if (n == 0 || n > 9 || (field > 1 && v >= 60)) return false;
        total = total * 60 + v;
        if (*s == ':') {
            s++;
            continue;
        }
        if (*s == '.')
            for (s++, n = 0; *s >= '0' && *s <= '9' && n < 9; s++, n++) total += (*s - '0') * (unit /= 10);
        if (*s != '\0' || n == 0) return false;
        *out = total;
        return true;
    }
    return false;
}

/* Seconds as a number, or as time_of. */
static status take_time(const struct doc_at *o, const char *key, double *out, struct err *e)
{
    struct doc_at at;
    const char *s;
    if (!doc_has(o, key)) return OK;
    TRY(doc_any(o, key, &at, e));
    if (!json_is_string(at.v)) return doc_as_double(&at, 0, 1e9, out, e);
    TRY(doc_as_string(&at, &s, NULL, e));
    if (time_of(s, out)) return OK;
    return doc_err_as(&at, BAD_VALUE, e, "\"%.40s\" is no time: write seconds or [HH:]MM:SS.mmm", s);
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
        return doc_err_as(o, BAD_VALUE, e, "end %g is not after start %g", p->end_s, p->start_s);
    if (lo > 0 && hi > 0 && lo > hi)
        return doc_err_as(o, BAD_VALUE, e, "min_pixels %lld is more than max_pixels %lld", (long long)lo,
                          (long long)hi);
    return OK;
}

/* Bare samples, 16 bits little-endian, one channel, get the WAV header that makes them a file. */
static status wrap_pcm(const struct doc_at *at, uint32_t rate, struct chat_part *p, struct err *e)
{
    uint8_t *wav;
    if (p->n_data >= 12 && memcmp(p->data, "RIFF", 4) == 0 && memcmp(p->data + 8, "WAVE", 4) == 0) return OK;
    if (p->n_data % 2 != 0 || p->n_data > UINT32_MAX - 36)
        return doc_err_as(at, BAD_VALUE, e,
                          "%zu bytes are no whole 16-bit samples: pcm16 is one channel, little-endian", p->n_data);
    TRY(mem_alloc(&wav, p->n_data + 44, 1, e));
    const uint32_t field[] = { [1] = (uint32_t)p->n_data + 36, [4] = 16, [5] = 1 | 1u << 16, [6] = rate,
                               [7] = 2 * rate, [8] = 2 | 16u << 16, [10] = (uint32_t)p->n_data };
    for (size_t i = 0; i < 44; i++) wav[i] = (uint8_t)(field[i / 4] >> i % 4 * 8);
    memcpy(wav, "RIFF", 4);
    memcpy(wav + 8, "WAVEfmt ", 8);
    memcpy(wav + 36, "data", 4);
    memcpy(wav + 44, p->data, p->n_data);
    free(p->data);
    p->data = wav;
    p->n_data += 44;
    return OK;
}

/* What an object says beside its bytes: detail, format; sample_rate of pcm16 into *rate, 0 where it is not pcm16. */
static status take_hints(const struct doc_at *at, struct chat_part *p, uint32_t *rate, struct err *e)
{
    const char *s = NULL;
    *rate = 0;
    TRY(take_options(at, &p->options, e));
    TRY(doc_opt_string(at, "detail", &s, e));
    if (s != NULL) {
        p->options.low_detail = strcmp(s, "low") == 0;
        if (!p->options.low_detail && strcmp(s, "auto") != 0 && strcmp(s, "high") != 0) {
            const struct doc_at detail = { .v = at->v, .up = at, .key = "detail", .doc = at->doc };
            return doc_err_as(&detail, BAD_VALUE, e, "detail \"%.40s\" is unknown: low, high or auto", s);
        }
    }
    s = NULL;
    TRY(doc_opt_string(at, "format", &s, e));
    if (s == NULL) return OK;
    if (strlen(s) > 80) return doc_err_as(at, BAD_VALUE, e, "format is longer than 80 bytes");
    TRY(copy_bytes(s, strlen(s), &p->format, e));
    return strcmp(s, "pcm16") == 0 ? doc_u32(at, "sample_rate", 1000, 768000, rate, e) : OK;
}

/* {"url": ...} or {"data": ..., "format": ...}, the string itself, or a film's frames. */
static status take_source(struct parser *x, const struct doc_at *at, struct chat_part *p, struct err *e)
{
    struct doc_at v;
    const char *s;
    size_t n;
    uint32_t pcm_rate;
    if (json_is_string(at->v)) return take_url(x, at, p, e);
    if (json_is_array(at->v) && p->kind == PART_VIDEO) return take_frames(x, at, p, e);
    TRY(doc_as_object(at, e));
    TRY(take_hints(at, p, &pcm_rate, e));
    if (doc_has(at, "data") && doc_has(at, "url"))
        return doc_err_as(at, BAD_VALUE, e, "has data and url: give one");
    if (!doc_has(at, "data")) {
        TRY(doc_any(at, "url", &v, e));
        TRY(take_url(x, &v, p, e));
    } else {
        TRY(doc_any(at, "data", &v, e));
        TRY(doc_as_string(&v, &s, &n, e));
        if (is_data_url(s, n)) {
            TRY(take_url(x, &v, p, e));
        } else {
            if (chat_base64(s, n, x->left.inline_max, &p->data, &p->n_data, e) != OK) return at_place(&v, e);
            x->left.inline_max -= p->n_data;
        }
    }
    if (pcm_rate == 0) return OK;
    if (p->data == NULL) return doc_err_as(&v, BAD_VALUE, e, "pcm16 needs its samples in data, not behind a URL");
    return wrap_pcm(&v, pcm_rate, p, e);
}

/* {"file_id": "file-..."} or {"file_data": base64 or a data: URL, "filename": ...}. */
static status take_file(struct parser *x, const struct doc_at *at, struct chat_part *p, struct err *e)
{
    struct doc_at v;
    const char *s;
    size_t n;
    TRY(doc_as_object(at, e));
    TRY(take_options(at, &p->options, e));
    if (doc_has(at, "file_id") && doc_has(at, "file_data"))
        return doc_err_as(at, BAD_VALUE, e, "has file_id and file_data: give one");
    if (doc_has(at, "file_data")) {
        TRY(doc_any(at, "file_data", &v, e));
        TRY(doc_as_string(&v, &s, &n, e));
        if (is_data_url(s, n)) return take_data_url(x, &v, s, n, p, e);
        if (chat_base64(s, n, x->left.inline_max, &p->data, &p->n_data, e) != OK) return at_place(&v, e);
        x->left.inline_max -= p->n_data;
        return OK;
    }
    TRY(doc_any(at, "file_id", &v, e));
    TRY(doc_as_string(&v, &s, &n, e));
    if (n == 0 || n > 128 || strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != n)
        return doc_err_as(&v, BAD_VALUE, e, "is no file id: give the id that the upload returned");
    TRY(mem_alloc(&p->url, n + 9, 1, e));
    snprintf(p->url, n + 9, "file-id:%s", s);
    return OK;
}

static status take_text(struct parser *x, const struct doc_at *at, struct err *e)
{
    const char *s;
    size_t n;
    TRY(doc_as_string(at, &s, &n, e));
    if (n > x->left.text_max)
        return doc_err_as(at, BAD_VALUE, e, "%zu bytes of text are more than the %zu left of the limit", n,
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
    { "file", { "file", NULL }, PART_FILE },
};

/* By "type"; where there is none, by the member that is there. */
static status name_of(const struct doc_at *o, const struct part_name **out, struct err *e)
{
    static const char *const refused[] = { "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds" };
    const char *type = NULL;
    TRY(doc_opt_string(o, "type", &type, e));
    for (size_t i = 0; i < N_OF(part_names); i++)
        if (type != NULL ? strcmp(type, part_names[i].type) == 0 : doc_has(o, part_names[i].key[0])) {
            *out = &part_names[i];
            return OK;
        }
    const struct doc_at at = { .v = o->v, .up = o, .key = "type", .doc = o->doc };
    for (size_t i = 0; i < N_OF(refused); i++)
        if (type != NULL ? strcmp(type, refused[i]) == 0 : doc_has(o, refused[i]))
            return doc_err_as(&at, "unsupported_parameter", e, "\"%s\" is not supported: send the media", refused[i]);
    if (type == NULL) return doc_err_as(&at, "missing_required_parameter", e, "is missing");
    return doc_err_as(&at, BAD_VALUE, e,
                      "\"%.60s\" is unknown: text, image_url, audio_url, input_audio, video_url or file", type);
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
    if (name->kind == PART_FILE) return take_file(x, &v, p, e);
    TRY(take_source(x, &v, p, e));
    if (p->n_frames == 0) return OK;
    p->list_fps = p->options.fps > 0 ? p->options.fps : 2.0;
    return doc_opt_double(at, "sample_fps", 1e-3, 1000.0, &p->list_fps, e);
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
    const bool known = strcmp(s, "tool") == 0 || strcmp(s, "function") == 0;
    return doc_err_as(&at, known ? "unsupported_parameter" : BAD_VALUE, e,
                      "\"%.60s\" is not supported: system, developer, user or assistant", s);
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
        if (!json_is_array(at.v) || doc_count(&at) > 0)
            return doc_err_as(&at, "unsupported_parameter", e, "is not supported");
    }
    TRY(chat_add_message(x->chat, role, e));
    if (role == CHAT_ASSISTANT && !doc_has(o, "content")) return OK;
    TRY(doc_any(o, "content", &content, e));
    if (json_is_string(content.v)) return take_text(x, &content, e);
    if (!json_is_array(content.v))
        return doc_err_as(&content, "invalid_type", e, "is %s, a string or an array of parts is needed",
                          doc_kind(content.v));
    const size_t n = doc_count(&content);
    if (n == 0 || n > x->left.parts_max)
        return doc_err_as(&content, BAD_VALUE, e, "has %zu parts, must have 1 to %zu", n, x->left.parts_max);
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
        return doc_err_as(messages, BAD_VALUE, e, "has %zu messages, must have 1 to %zu", n, x.left.messages_max);
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

/* The place of an error that was set. */
static status err_at(struct err *e, const char *param)
{
    if (e != NULL) err_tag(e, BAD_VALUE, param);
    return E_ARG;
}

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
    case PART_FILE:
        err_set(e, E_ARG, "%s: what kind of media the file holds was not found out", part->path);
        return err_at(e, part->path);
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
        if (m + 1 == c->n_messages && o->continue_final) return OK;
        TRY(put_template(p, "<|im_end|>\n", e));
    }
    return o->no_generation_prompt ? OK : put_template(p, head[CHAT_ASSISTANT], e);
}

/* An answer begins where the last message ends: what may that be? */
static status check_last(const struct chat *c, const struct chat_render_options *o, struct err *e)
{
    if (c->n_messages == 0) {
        err_set(e, E_ARG, "the conversation is empty: send at least one message");
        return err_at(e, "messages");
    }
    const bool answer = c->message[c->n_messages - 1].role == CHAT_ASSISTANT;
    if (o->continue_final && !answer) {
        err_set(e, E_ARG, "continue_final_message: the last message is not the assistant's: nothing to continue");
        return err_at(e, "continue_final_message");
    }
    if (answer && !o->continue_final && !o->no_generation_prompt) {
        err_set(e, E_ARG,
                "the last message is the assistant's: ask something behind it, or set continue_final_message");
        return err_at(e, "messages");
    }
    return OK;
}

status chat_render(const struct chat *c, const struct chat_render_options *options, struct chat_prompt *out,
                   struct err *e)
{
    static const struct chat_render_options none = { 0 };
    struct chat_prompt p = { 0 };
    if (options == NULL) options = &none;
    TRY(check_last(c, options, e));
    const status st = render(c, options, &p, e);
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
