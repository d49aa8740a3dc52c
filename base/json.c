/* base/json.c - see json.h. */
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

const struct doc_limits doc_config_limits = { .bytes_max = (size_t)16 << 20,
                                              .depth_max = 64,
                                              .code = E_MODEL };

/* ---- parsing ----------------------------------------------------------------------------------------- */

/* Deepest nesting of brackets outside strings, so that no parser recurses further than was allowed. *values: at most so
 * many values are there (each but the root follows a comma or a bracket that opens). */
static unsigned depth_of(const char *s, size_t n, size_t *line, size_t *values)
{
    unsigned depth = 0, deepest = 0;
    size_t at = 1;
    bool in_string = false;
    *line = 1;
    *values = 1;
    for (size_t i = 0; i < n; i++) {
        const char c = s[i];
        if (c == '\n') at++;
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == ',') {
            ++*values;
        } else if (c == '[' || c == '{') {
            ++*values;
            if (++depth > deepest) {
                deepest = depth;
                *line = at;
            }
        } else if ((c == ']' || c == '}') && depth > 0) {
            depth--;
        }
    }
    return deepest;
}

/* A text that is no document: requests get a tag. Returns st. */
static status refuse_text(const struct doc_limits *limits, const char *tag, struct err *e, status st)
{
    if (limits->code == E_ARG) err_tag(e, tag, NULL);
    return st;
}

status doc_parse(const char *text, size_t n, const char *name, const struct doc_limits *limits,
                 struct doc *out, struct err *e)
{
    if (n > limits->bytes_max)
        return err_set(e, limits->code, "%s: %zu bytes of JSON are more than the %zu allowed", name, n,
                       limits->bytes_max);
    size_t line, values;
    const unsigned depth = depth_of(text, n, &line, &values);
    if (depth > limits->depth_max)
        return refuse_text(limits, "json_too_complex", e,
                           err_set(e, limits->code, "%s%sline %zu: nested %u deep, %u are allowed", name,
                                   name[0] ? ": " : "", line, depth, limits->depth_max));
    if (limits->values_max && values > limits->values_max)
        return refuse_text(limits, "json_too_complex", e,
                           err_set(e, limits->code, "%s%s%zu values, %zu are allowed", name, name[0] ? ": " : "",
                                   values, limits->values_max));
    json_error_t je;
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | (limits->allow_nul ? JSON_ALLOW_NUL : 0);
    json_t *root = json_loadb(text, n, flags, &je);
    if (root == NULL)
        return refuse_text(limits,
                           json_error_code(&je) == json_error_numeric_overflow ? "invalid_value" : "invalid_json", e,
                           err_set(e, limits->code, "%s%sline %d, column %d: not valid JSON: %s", name,
                                   name[0] ? ": " : "", je.line, je.column, je.text));
    out->root = root;
    out->name = mem_must_strdup(name);
    out->code = limits->code;
    return OK;
}

/* The whole of a regular file, NUL-terminated; *out is owned by the caller. */
static status read_file(const char *path, const struct doc_limits *limits, char **out, size_t *n,
                        struct err *e)
{
    status st = OK;
    char *buf = NULL;
    struct stat sb;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return err_set(e, limits->code, "%s: %s", path, strerror(errno));
    if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        st = err_set(e, limits->code, "%s: not a regular file", path);
        goto done;
    }
    if ((uint64_t)sb.st_size > limits->bytes_max) {
        st = err_set(e, limits->code, "%s: %lld bytes, a file of this kind has at most %zu", path,
                     (long long)sb.st_size, limits->bytes_max);
        goto done;
    }
    const size_t size = (size_t)sb.st_size;
    TRY_GOTO(st, mem_alloc(&buf, size + 1, 1, e), done);
    size_t got = 0;
    while (got < size) {
        const ssize_t r = read(fd, buf + got, size - got);
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) {
            st = err_set(e, limits->code, "%s: cannot be read: %s", path,
                         r < 0 ? strerror(errno) : "it became shorter meanwhile");
            goto done;
        }
        got += (size_t)r;
    }
    *out = buf;
    *n = size;
    buf = NULL;
done:
    free(buf);
    close(fd);
    return st;
}

status doc_load(const char *path, const struct doc_limits *limits, struct doc *out, struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    TRY(read_file(path, limits, &text, &n, e));
    const status st = doc_parse(text, n, path, limits, out, e);
    free(text);
    return st;
}

void doc_close(struct doc *d)
{
    json_decref(d->root);
    free(d->name);
    d->root = NULL;
    d->name = NULL;
}

/* ---- places ------------------------------------------------------------------------------------------ */

void doc_root(const struct doc *d, struct doc_at *out)
{
    *out = (struct doc_at){ .v = d->root, .doc = d };
}

static size_t path_write(const struct doc_at *at, char *out, size_t n, size_t used)
{
    if (at->up == NULL) return used;
    used = path_write(at->up, out, n, used);
    if (used >= n) return used;
    int w;
    if (at->key == NULL)
        w = snprintf(out + used, n - used, "[%zu]", at->index);
    else
        w = snprintf(out + used, n - used, "%s%.100s", used > 0 ? "." : "", at->key);
    return used + (w > 0 ? (size_t)w : 0);
}

char *doc_path(const struct doc_at *at, char *out, size_t n)
{
    if (n > 0) out[0] = '\0';
    path_write(at, out, n, 0);
    return out;
}

/* tag NULL: none. Requests alone have tags and params. */
static status refuse(const struct doc_at *at, const char *tag, struct err *e, const char *fmt, va_list ap)
{
    const status code = at->doc->code;
    char path[300], text[600];
    vsnprintf(text, sizeof text, fmt, ap);
    doc_path(at, path, sizeof path);
    const char *name = at->doc->name;
    err_set(e, code, "%s%s%s%s%s", name, name[0] ? ": " : "", path, path[0] ? ": " : "", text);
    if (code == E_ARG) err_tag(e, tag, path);
    return code;
}

status doc_err(const struct doc_at *at, struct err *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const status st = refuse(at, NULL, e, fmt, ap);
    va_end(ap);
    return st;
}

status doc_err_as(const struct doc_at *at, const char *tag, struct err *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const status st = refuse(at, tag, e, fmt, ap);
    va_end(ap);
    return st;
}

static status not_a(const struct doc_at *at, const char *what, struct err *e)
{
    return doc_err_as(at, "invalid_type", e, "is %s, %s is needed", doc_kind(at->v), what);
}

const char *doc_kind(const json_t *v)
{
    if (v == NULL) return "nothing";
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "true or false";
    case JSON_NULL:
        return "null";
    }
    return "nothing";
}

static struct doc_at member(const struct doc_at *o, const char *key)
{
    const json_t *v = json_object_get(o->v, key);
    return (
        struct doc_at){ .v = v == NULL || json_is_null(v) ? NULL : v, .up = o, .key = key, .doc = o->doc };
}

bool doc_has(const struct doc_at *o, const char *key)
{
    return member(o, key).v != NULL;
}

status doc_any(const struct doc_at *o, const char *key, struct doc_at *out, struct err *e)
{
    if (!json_is_object(o->v)) return not_a(o, "an object", e);
    const struct doc_at m = member(o, key);
    if (m.v == NULL) return doc_err_as(&m, "missing_required_parameter", e, "is missing");
    *out = m;
    return OK;
}

/* ---- the value of a place ---------------------------------------------------------------------------- */

status doc_as_object(const struct doc_at *at, struct err *e)
{
    return json_is_object(at->v) ? OK : not_a(at, "an object", e);
}

status doc_as_array(const struct doc_at *at, struct err *e)
{
    return json_is_array(at->v) ? OK : not_a(at, "an array", e);
}

status doc_as_int(const struct doc_at *at, int64_t lo, int64_t hi, int64_t *out, struct err *e)
{
    if (json_is_real(at->v) && fabs(json_real_value(at->v)) >= 0x1p63)
        return doc_err_as(at, "invalid_value", e, "is %g, must be %lld to %lld", json_real_value(at->v), (long long)lo,
                          (long long)hi);
    if (!json_is_integer(at->v)) return not_a(at, "an integer", e);
    const int64_t v = json_integer_value(at->v);
    if (v < lo || v > hi)
        return doc_err_as(at, "invalid_value", e, "is %lld, must be %lld to %lld", (long long)v, (long long)lo,
                          (long long)hi);
    *out = v;
    return OK;
}

status doc_as_double(const struct doc_at *at, double lo, double hi, double *out, struct err *e)
{
    if (!json_is_number(at->v)) return not_a(at, "a number", e);
    const double v = json_number_value(at->v);
    if (!isfinite(v) || v < lo || v > hi)
        return doc_err_as(at, "invalid_value", e, "is %g, must be %g to %g", v, lo, hi);
    *out = v;
    return OK;
}

status doc_as_bool(const struct doc_at *at, bool *out, struct err *e)
{
    if (!json_is_boolean(at->v)) return not_a(at, "true or false", e);
    *out = json_is_true(at->v);
    return OK;
}

status doc_as_string(const struct doc_at *at, const char **out, size_t *n, struct err *e)
{
    if (!json_is_string(at->v)) return not_a(at, "a string", e);
    const char *s = json_string_value(at->v);
    const size_t len = json_string_length(at->v);
    if (n == NULL && strlen(s) != len) return doc_err(at, e, "has a NUL character inside");
    *out = s;
    if (n != NULL) *n = len;
    return OK;
}

/* ---- members ----------------------------------------------------------------------------------------- */

status doc_object(const struct doc_at *o, const char *key, struct doc_at *out, struct err *e)
{
    struct doc_at m = { 0 };
    TRY(doc_any(o, key, &m, e));
    TRY(doc_as_object(&m, e));
    *out = m;
    return OK;
}

status doc_array(const struct doc_at *o, const char *key, struct doc_at *out, struct err *e)
{
    struct doc_at m = { 0 };
    TRY(doc_any(o, key, &m, e));
    TRY(doc_as_array(&m, e));
    *out = m;
    return OK;
}

status doc_int(const struct doc_at *o, const char *key, int64_t lo, int64_t hi, int64_t *out, struct err *e)
{
    struct doc_at m = { 0 };
    TRY(doc_any(o, key, &m, e));
    return doc_as_int(&m, lo, hi, out, e);
}

status doc_u32(const struct doc_at *o, const char *key, uint32_t lo, uint32_t hi, uint32_t *out,
               struct err *e)
{
    int64_t v = 0;
    TRY(doc_int(o, key, lo, hi, &v, e));
    *out = (uint32_t)v;
    return OK;
}

status doc_double(const struct doc_at *o, const char *key, double lo, double hi, double *out, struct err *e)
{
    struct doc_at m = { 0 };
    TRY(doc_any(o, key, &m, e));
    return doc_as_double(&m, lo, hi, out, e);
}

status doc_bool(const struct doc_at *o, const char *key, bool *out, struct err *e)
{
    struct doc_at m = { 0 };
    TRY(doc_any(o, key, &m, e));
    return doc_as_bool(&m, out, e);
}

status doc_string(const struct doc_at *o, const char *key, const char **out, struct err *e)
{
    struct doc_at m = { 0 };
    TRY(doc_any(o, key, &m, e));
    return doc_as_string(&m, out, NULL, e);
}

status doc_opt_int(const struct doc_at *o, const char *key, int64_t lo, int64_t hi, int64_t *out,
                   struct err *e)
{
    return doc_has(o, key) ? doc_int(o, key, lo, hi, out, e) : OK;
}

status doc_opt_u32(const struct doc_at *o, const char *key, uint32_t lo, uint32_t hi, uint32_t *out,
                   struct err *e)
{
    return doc_has(o, key) ? doc_u32(o, key, lo, hi, out, e) : OK;
}

status doc_opt_double(const struct doc_at *o, const char *key, double lo, double hi, double *out,
                      struct err *e)
{
    return doc_has(o, key) ? doc_double(o, key, lo, hi, out, e) : OK;
}

status doc_opt_bool(const struct doc_at *o, const char *key, bool *out, struct err *e)
{
    return doc_has(o, key) ? doc_bool(o, key, out, e) : OK;
}

status doc_opt_string(const struct doc_at *o, const char *key, const char **out, struct err *e)
{
    return doc_has(o, key) ? doc_string(o, key, out, e) : OK;
}

/* ---- elements ---------------------------------------------------------------------------------------- */

size_t doc_count(const struct doc_at *array)
{
    return json_array_size(array->v);
}

void doc_element(const struct doc_at *array, size_t i, struct doc_at *out)
{
    *out = (struct doc_at){ .v = json_array_get(array->v, i), .up = array, .index = i, .doc = array->doc };
}

static status array_of(const struct doc_at *o, const char *key, size_t n, struct doc_at *out, struct err *e)
{
    TRY(doc_array(o, key, out, e));
    if (doc_count(out) != n) return doc_err(out, e, "has %zu elements, must have %zu", doc_count(out), n);
    return OK;
}

status doc_ints(const struct doc_at *o, const char *key, size_t n, int64_t lo, int64_t hi, int64_t *out,
                struct err *e)
{
    struct doc_at a, el;
    TRY(array_of(o, key, n, &a, e));
    for (size_t i = 0; i < n; i++) {
        doc_element(&a, i, &el);
        TRY(doc_as_int(&el, lo, hi, &out[i], e));
    }
    return OK;
}

status doc_doubles(const struct doc_at *o, const char *key, size_t n, double lo, double hi, double *out,
                   struct err *e)
{
    struct doc_at a, el;
    TRY(array_of(o, key, n, &a, e));
    for (size_t i = 0; i < n; i++) {
        doc_element(&a, i, &el);
        TRY(doc_as_double(&el, lo, hi, &out[i], e));
    }
    return OK;
}

status doc_only(const struct doc_at *o, const char *const *allowed, struct err *e)
{
    TRY(doc_as_object(o, e));
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o->v, key, v)
    {
        size_t i = 0;
        while (allowed[i] != NULL && strcmp(allowed[i], key) != 0) i++;
        if (allowed[i] != NULL) continue;
        char list[400] = "";
        size_t used = 0;
        for (i = 0; allowed[i] != NULL && used < sizeof list; i++) {
            const int w = snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", allowed[i]);
            used += w > 0 ? (size_t)w : 0;
        }
        const struct doc_at m = { .v = v, .up = o, .key = key, .doc = o->doc };
        return doc_err(&m, e, "is an unknown key; known are %s", list);
    }
    return OK;
}
