/* tests/bare/jansson/jansson.c - see jansson.h. */
#include <jansson.h>

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 2048

/* ---- values ------------------------------------------------------------------------------------------- */

static json_t *make(json_type type)
{
    json_t *v = calloc(1, sizeof *v);
    if (v) v->type = type, v->refs = 1;
    return v;
}
json_t *json_object(void) { return make(JSON_OBJECT); }
json_t *json_array(void) { return make(JSON_ARRAY); }
json_t *json_null(void) { return make(JSON_NULL); }
json_t *json_boolean_(bool b) { return make(b ? JSON_TRUE : JSON_FALSE); }
json_t *json_integer(json_int_t i)
{
    json_t *v = make(JSON_INTEGER);
    if (v) v->integer = i;
    return v;
}
json_t *json_real(double r)
{
    json_t *v = isfinite(r) ? make(JSON_REAL) : NULL;
    if (v) v->real = r;
    return v;
}
json_t *json_stringn(const char *text, size_t n)
{
    json_t *v = make(JSON_STRING);
    if (v == NULL || (v->text = malloc(n + 1)) == NULL) return free(v), NULL;
    memcpy(v->text, text, n);
    v->text[n] = 0;
    v->n = n;
    return v;
}
json_t *json_string(const char *text) { return text ? json_stringn(text, strlen(text)) : NULL; }

void json_delete(json_t *v)
{
    const bool holds = v->type == JSON_OBJECT || v->type == JSON_ARRAY;
    for (size_t i = 0; holds && i < v->n; i++) {
        if (v->key) free(v->key[i]);
        json_decref(v->item[i]);
    }
    free(v->text), free(v->key), free(v->item), free(v->slot), free(v);
}

static bool grow(json_t *v)
{
    if (v->n < v->cap) return true;
    const size_t cap = v->cap ? 2 * v->cap : 8;
    json_t **item = realloc(v->item, cap * sizeof *item);
    if (item == NULL) return false;
    v->item = item;
    if (v->type == JSON_OBJECT) {
        char **key = realloc(v->key, cap * sizeof *key);
        if (key == NULL) return false;
        v->key = key;
    }
    v->cap = cap;
    return true;
}

int json_array_append_new(json_t *a, json_t *v)
{
    if (v == NULL || !json_is_array(a) || !grow(a)) return json_decref(v), -1;
    a->item[a->n++] = v;
    return 0;
}

static size_t hash_of(const char *key)
{
    size_t h = 14695981039346656037u;
    while (*key) h = (h ^ (unsigned char)*key++) * 1099511628211u;
    return h;
}

/* Where `key` stands in the table, or the free slot for it. */
static uint32_t *slot_of(const json_t *o, const char *key)
{
    size_t i = hash_of(key) & (o->slots - 1);
    while (o->slot[i] && strcmp(o->key[o->slot[i] - 1], key) != 0) i = (i + 1) & (o->slots - 1);
    return &o->slot[i];
}

json_t *json_object_get(const json_t *o, const char *key)
{
    if (!json_is_object(o) || key == NULL || o->n == 0) return NULL;
    const uint32_t at = *slot_of(o, key);
    return at ? o->item[at - 1] : NULL;
}

static bool grow_slots(json_t *o)
{
    if (2 * (o->n + 1) <= o->slots) return true;
    uint32_t *slot = calloc(o->slots ? 4 * o->slots : 16, sizeof *slot);
    if (slot == NULL) return false;
    free(o->slot);
    o->slot = slot;
    o->slots = o->slots ? 4 * o->slots : 16;
    for (size_t i = 0; i < o->n; i++) *slot_of(o, o->key[i]) = (uint32_t)i + 1;
    return true;
}

int json_object_set_new(json_t *o, const char *key, json_t *v)
{
    if (v == NULL || !json_is_object(o) || !grow(o) || !grow_slots(o)) return json_decref(v), -1;
    uint32_t *slot = slot_of(o, key);
    if (*slot) {
        json_decref(o->item[*slot - 1]);
        o->item[*slot - 1] = v;
        return 0;
    }
    char *copy = strdup(key);
    if (copy == NULL) return json_decref(v), -1;
    o->key[o->n] = copy;
    o->item[o->n] = v;
    *slot = (uint32_t)++o->n;
    return 0;
}

/* An iterator is the address of a member's key. */
struct iter { json_t *o; size_t at; };
static _Thread_local struct iter now;
void *json_object_iter(json_t *o)
{
    now = (struct iter){ o, 0 };
    return json_object_size(o) ? &now : NULL;
}
void *json_object_iter_next(json_t *o, void *iter)
{
    struct iter *i = iter;
    return ++i->at < json_object_size(o) ? i : NULL;
}
const char *json_object_iter_key(void *iter) { return ((struct iter *)iter)->o->key[((struct iter *)iter)->at]; }
json_t *json_object_iter_value(void *iter) { return ((struct iter *)iter)->o->item[((struct iter *)iter)->at]; }

/* ---- reading ------------------------------------------------------------------------------------------ */

struct reader {
    const char *s, *at, *end;
    size_t flags;
    unsigned depth;
    json_error_t *error;
};

static json_t *bad(struct reader *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static json_t *bad(struct reader *r, const char *fmt, ...)
{
    json_error_t *e = r->error;
    if (e == NULL || e->text[0]) return NULL;      /* the first stays */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    e->code = json_error_invalid_syntax;
    e->line = e->column = 1;
    e->position = (int)(r->at - r->s);
    for (const char *p = r->s; p < r->at; p++) {
        if (*p == '\n') e->line++, e->column = 0;
        e->column++;
    }
    return NULL;
}

static void blanks(struct reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

static bool hex4(struct reader *r, uint32_t *out)
{
    *out = 0;
    if (r->end - r->at < 4) return false;
    for (int i = 0; i < 4; i++) {
        const char c = *r->at++;
        const int v = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (v < 0) return false;
        *out = *out * 16 + (uint32_t)v;
    }
    return true;
}

static size_t utf8_of(uint32_t c, char *out)
{
    if (c < 0x80) return out[0] = (char)c, 1;
    if (c < 0x800) return out[0] = (char)(0xc0 | c >> 6), out[1] = (char)(0x80 | (c & 63)), 2;
    if (c < 0x10000)
        return out[0] = (char)(0xe0 | c >> 12), out[1] = (char)(0x80 | (c >> 6 & 63)), out[2] = (char)(0x80 | (c & 63)), 3;
    out[0] = (char)(0xf0 | c >> 18), out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63)), out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* Bytes of the whole character at p; 0: not UTF-8. */
static size_t char_at(const unsigned char *p, const unsigned char *end)
{
    const size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    if (n == 0 || (size_t)(end - p) < n) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f)) return 0;   /* too long; surrogates */
    return (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f) ? 0 : n;
}

/* What stands in quotes, at r->at behind the first; *out is owned. */
static bool quoted(struct reader *r, bool name, char **out, size_t *n_out)
{
    const char *close = r->at;
    while (close < r->end && *close != '"') close += *close == '\\' ? 2 : 1;
    if (close >= r->end) return bad(r, "premature end of input"), false;
    char *text = *out = malloc((size_t)(close - r->at) + 1);
    size_t n = 0;
    if (text == NULL) return bad(r, "no memory"), false;
    while (r->at < close) {
        const unsigned char c = (unsigned char)*r->at;
        if (c < 0x20) return bad(r, "control character 0x%x", c), false;
        if (c != '\\') {
            const size_t len = char_at((const unsigned char *)r->at, (const unsigned char *)close);
            if (len == 0) return bad(r, "unable to decode byte 0x%x", c), false;
            memcpy(text + n, r->at, len);
            n += len, r->at += len;
            continue;
        }
        r->at++;
        static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
        const char *k = *r->at ? strchr(from, *r->at) : NULL;
        if (k) {
            text[n++] = to[k - from];
            r->at++;
            continue;
        }
        if (*r->at++ != 'u') return bad(r, "invalid escape"), false;
        uint32_t u, low;
        if (!hex4(r, &u)) return bad(r, "invalid escape"), false;
        if (u >= 0xd800 && u < 0xdc00) {
            if (r->end - r->at < 6 || r->at[0] != '\\' || r->at[1] != 'u') return bad(r, "invalid Unicode '\\u%04X'", u), false;
            r->at += 2;
            if (!hex4(r, &low) || low < 0xdc00 || low > 0xdfff) return bad(r, "invalid Unicode '\\u%04X'", u), false;
            u = 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
        } else if (u >= 0xdc00 && u < 0xe000) {
            return bad(r, "invalid Unicode '\\u%04X'", u), false;
        }
        if (u == 0 && (name || !(r->flags & JSON_ALLOW_NUL))) return bad(r, "\\u0000 is not allowed"), false;
        n += utf8_of(u, text + n);
    }
    r->at = close + 1;
    text[n] = 0;
    *n_out = n;
    return true;
}

static json_t *number(struct reader *r)
{
    const char *p = r->at;
    bool whole = true;
    if (p < r->end && *p == '-') p++;
    if (p == r->end || *p < '0' || *p > '9') return bad(r, "invalid token");
    if (*p == '0') p++;
    else
        while (p < r->end && *p >= '0' && *p <= '9') p++;
    if (p < r->end && *p == '.') {
        whole = false;
        if (++p == r->end || *p < '0' || *p > '9') return bad(r, "invalid token");
        while (p < r->end && *p >= '0' && *p <= '9') p++;
    }
    if (p < r->end && (*p == 'e' || *p == 'E')) {
        whole = false;
        if (++p < r->end && (*p == '+' || *p == '-')) p++;
        if (p == r->end || *p < '0' || *p > '9') return bad(r, "invalid token");
        while (p < r->end && *p >= '0' && *p <= '9') p++;
    }
    char text[512];
    const size_t n = (size_t)(p - r->at);
    if (n >= sizeof text) return bad(r, "a number of %zu characters", n);
    memcpy(text, r->at, n);
    text[n] = 0;
    errno = 0;
    const json_int_t i = whole ? strtoll(text, NULL, 10) : 0;
    const double d = whole ? 0 : strtod(text, NULL);
    if ((whole && errno == ERANGE) || !isfinite(d)) {
        bad(r, "too big number");
        if (r->error) r->error->code = json_error_numeric_overflow;
        return NULL;
    }
    r->at = p;
    return whole ? json_integer(i) : json_real(d);
}

static json_t *value(struct reader *r);

static json_t *object(struct reader *r)
{
    json_t *o = json_object();
    blanks(r);
    if (r->at < r->end && *r->at == '}') return r->at++, o;
    for (;;) {
        char *key = NULL;
        size_t n;
        blanks(r);
        if (r->at == r->end || *r->at++ != '"') return json_decref(o), bad(r, "string or '}' expected");
        const bool read = quoted(r, true, &key, &n);
        if (read) blanks(r);
        if (!read || r->at == r->end || *r->at++ != ':') return free(key), json_decref(o), bad(r, "':' expected");
        if (r->flags & JSON_REJECT_DUPLICATES && json_object_get(o, key)) {
            bad(r, "duplicate object key near '\"%.60s\"'", key);
            return free(key), json_decref(o), NULL;
        }
        json_t *v = value(r);
        const bool set = v != NULL && json_object_set_new(o, key, v) == 0;
        free(key);
        if (!set) return json_decref(o), bad(r, "no memory");
        blanks(r);
        const char c = r->at < r->end ? *r->at++ : 0;
        if (c == '}') return o;
        if (c != ',') return json_decref(o), bad(r, "'}' expected");
    }
}

static json_t *array(struct reader *r)
{
    json_t *a = json_array();
    blanks(r);
    if (r->at < r->end && *r->at == ']') return r->at++, a;
    for (;;) {
        json_t *v = value(r);
        if (v == NULL || json_array_append_new(a, v) != 0) return json_decref(a), bad(r, "no memory");
        blanks(r);
        const char c = r->at < r->end ? *r->at++ : 0;
        if (c == ']') return a;
        if (c != ',') return json_decref(a), bad(r, "']' expected");
    }
}

static bool word(struct reader *r, const char *w)
{
    const size_t n = strlen(w);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, w, n) != 0) return false;
    r->at += n;
    return true;
}

static json_t *value(struct reader *r)
{
    blanks(r);
    if (r->at == r->end) return bad(r, "premature end of input");
    if (*r->at == '{' || *r->at == '[') {
        if (++r->depth > DEPTH_MAX) return bad(r, "maximum parsing depth reached");
        json_t *v = *r->at++ == '{' ? object(r) : array(r);
        r->depth--;
        return v;
    }
    if (*r->at == '"') {
        char *text = NULL;
        size_t n;
        r->at++;
        if (!quoted(r, false, &text, &n)) return free(text), NULL;
        json_t *v = json_stringn(text, n);
        return free(text), v;
    }
    if (word(r, "true")) return json_true();
    if (word(r, "false")) return json_false();
    if (word(r, "null")) return json_null();
    return number(r);
}

json_t *json_loadb(const char *text, size_t n, size_t flags, json_error_t *error)
{
    struct reader r = { .s = text, .at = text, .end = text + n, .flags = flags, .error = error };
    if (error) *error = (json_error_t){ .line = 1 };
    blanks(&r);
    if (!(flags & JSON_DECODE_ANY) && r.at < r.end && *r.at != '{' && *r.at != '[') return bad(&r, "'[' or '{' expected");
    json_t *v = value(&r);
    if (v == NULL) return NULL;
    blanks(&r);
    if (r.at != r.end) return json_decref(v), bad(&r, "end of file expected");
    return v;
}
