/* tests/bare/jansson/jansson.h - in place of jansson on a machine that lacks its headers (docs/cuda.md, gpu-check): what the
 * goldens read and nothing more. Values of one text are read, or made one by one; nothing is written out. Names and meaning are
 * jansson's. */
#ifndef TESTS_BARE_JANSSON_H
#define TESTS_BARE_JANSSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { JSON_OBJECT, JSON_ARRAY, JSON_STRING, JSON_INTEGER, JSON_REAL, JSON_TRUE, JSON_FALSE, JSON_NULL } json_type;
typedef long long json_int_t;
typedef struct json_t json_t;
struct json_t {
    json_type type;
    size_t refs;
    char *text;                    /* JSON_STRING, [n + 1] */
    size_t n, cap;                 /* bytes, elements, members */
    json_int_t integer;
    double real;
    char **key;                    /* JSON_OBJECT, [n] in order of arrival */
    json_t **item;                 /* [n] */
    uint32_t *slot;                /* JSON_OBJECT, [slots] member + 1 by the hash of its key, 0: free */
    size_t slots;
};

#define JSON_REJECT_DUPLICATES 0x1
#define JSON_DECODE_ANY        0x4
#define JSON_ALLOW_NUL         0x10
#define JSON_ERROR_TEXT_LENGTH 160
enum json_error_code { json_error_unknown, json_error_invalid_syntax, json_error_numeric_overflow };
typedef struct {
    int line, column, position;
    char text[JSON_ERROR_TEXT_LENGTH];
    enum json_error_code code;
} json_error_t;
static inline enum json_error_code json_error_code(const json_error_t *e) { return e->code; }

json_t *json_loadb(const char *text, size_t n, size_t flags, json_error_t *error);
void json_delete(json_t *v);
static inline json_t *json_incref(json_t *v) { if (v) v->refs++; return v; }
static inline void json_decref(json_t *v) { if (v && --v->refs == 0) json_delete(v); }

#define json_typeof(v) ((v)->type)
static inline bool json_is_(const json_t *v, json_type t) { return v && v->type == t; }
#define json_is_object(v)  json_is_(v, JSON_OBJECT)
#define json_is_array(v)   json_is_(v, JSON_ARRAY)
#define json_is_string(v)  json_is_(v, JSON_STRING)
#define json_is_integer(v) json_is_(v, JSON_INTEGER)
#define json_is_real(v)    json_is_(v, JSON_REAL)
#define json_is_true(v)    json_is_(v, JSON_TRUE)
#define json_is_false(v)   json_is_(v, JSON_FALSE)
#define json_is_null(v)    json_is_(v, JSON_NULL)
#define json_is_boolean(v) (json_is_true(v) || json_is_false(v))
#define json_is_number(v)  (json_is_integer(v) || json_is_real(v))
static inline const char *json_string_value(const json_t *v) { return json_is_string(v) ? v->text : NULL; }
static inline size_t json_string_length(const json_t *v) { return json_is_string(v) ? v->n : 0; }
static inline json_int_t json_integer_value(const json_t *v) { return json_is_integer(v) ? v->integer : 0; }
static inline double json_real_value(const json_t *v) { return json_is_real(v) ? v->real : 0; }
static inline double json_number_value(const json_t *v) { return json_is_integer(v) ? (double)v->integer : json_real_value(v); }
static inline size_t json_array_size(const json_t *v) { return json_is_array(v) ? v->n : 0; }
static inline size_t json_object_size(const json_t *v) { return json_is_object(v) ? v->n : 0; }
static inline json_t *json_array_get(const json_t *v, size_t i) { return i < json_array_size(v) ? v->item[i] : NULL; }
json_t *json_object_get(const json_t *v, const char *key);

json_t *json_object(void);
json_t *json_array(void);
json_t *json_string(const char *text);
json_t *json_stringn(const char *text, size_t n);
json_t *json_integer(json_int_t i);
json_t *json_real(double r);
json_t *json_boolean_(bool b);
json_t *json_null(void);
#define json_boolean(b) json_boolean_(b)
#define json_true()     json_boolean_(true)
#define json_false()    json_boolean_(false)
/* 0, or -1 with the value gone. */
int json_object_set_new(json_t *o, const char *key, json_t *v);
int json_array_append_new(json_t *a, json_t *v);

void *json_object_iter(json_t *o);
void *json_object_iter_next(json_t *o, void *iter);
const char *json_object_iter_key(void *iter);
json_t *json_object_iter_value(void *iter);
#define json_object_foreach(o, k, v)                                                                       \
    for (size_t json_at = 0; json_at < json_object_size(o) && ((k) = (o)->key[json_at], (v) = (o)->item[json_at], 1); json_at++)
#define json_array_foreach(a, i, v) for ((i) = 0; (i) < json_array_size(a) && ((v) = json_array_get(a, i)); (i)++)

#endif
