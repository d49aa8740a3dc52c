/* base/json.h - reading JSON that somebody else wrote: size and depth are bounded, a key stands once, and
 * every error names the file and the path inside it ("config.json:
 * thinker_config.text_config.hidden_size: ...").
 *
 * A `struct doc` owns a parsed text; a `struct doc_at` is a place in it and knows how it was reached:
 * places are plain values on the caller's stack, each borrows the one above it, and the path is written
 * out only for an error.
 *
 *     struct doc d;  struct doc_at root, text;  int64_t hidden;
 *     TRY(doc_load("config.json", &doc_config_limits, &d, e));
 *     doc_root(&d, &root);
 *     doc_object(&root, "text_config", &text, e)  &&  doc_int(&text, "hidden_size", 1, 65536, &hidden, e) ...
 *     doc_close(&d);
 *
 * null counts as absent. All getters leave *out alone when they fail; opt_ getters also when the key is
 * absent. The code of every error is the one of the limits (E_MODEL for checkpoint files, E_ARG for
 * requests). */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct doc_limits {
    size_t bytes_max;   /* larger texts are refused unread */
    unsigned depth_max; /* nesting of arrays and objects, at most 1024 */
    size_t values_max;  /* values of all kinds, counted before parsing; 0: no limit */
    bool allow_nul;     /* "\u0000" inside strings (chat text); names never */
    status code;        /* of every error below */
};

extern const struct doc_limits doc_config_limits; /* 16 MiB, depth 64, E_MODEL */

struct doc {
    json_t *root; /* owned */
    char *name;   /* owned: file name or what the caller calls it, for messages */
    status code;
};

struct doc_at {
    const json_t *v;         /* borrowed from the doc */
    const struct doc_at *up; /* NULL at the root */
    const char *key;         /* how it was reached: a member, */
    size_t index;            /* or, where key is NULL, an element */
    const struct doc *doc;
};

/* Parse a file or a buffer of n bytes; *out owns it. `name` is what errors call it (doc_load: the path).
 * Errors (limits->code; E_INPUT never): no such file, not readable, too large, too deep, not
 * UTF-8, a key twice, anything that is not JSON, with line and column. */
status doc_load(const char *path, const struct doc_limits *limits, struct doc *out, struct err *e);
status doc_parse(const char *text, size_t n, const char *name, const struct doc_limits *limits,
                 struct doc *out, struct err *e);
void doc_close(struct doc *d);

void doc_root(const struct doc *d, struct doc_at *out);

/* err_set with "NAME: PATH: " ("PATH: " where the doc has no name) before the text and the doc's code. Requests (E_ARG)
 * also get the path as the error's param, and from the getters a tag: invalid_type, invalid_value,
 * missing_required_parameter; from doc_parse invalid_json or json_too_complex. doc_err leaves the tag to its caller;
 * doc_err_as sets it. */
status doc_err(const struct doc_at *at, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
status doc_err_as(const struct doc_at *at, const char *tag, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* The path of a place, "a.b[3].c", cut to n bytes; "" at the root. Returns out. */
char *doc_path(const struct doc_at *at, char *out, size_t n);

/* Is there a member that is not null? */
bool doc_has(const struct doc_at *o, const char *key);

/* Members. Required: absence is an error. */
status doc_object(const struct doc_at *o, const char *key, struct doc_at *out, struct err *e);
status doc_array(const struct doc_at *o, const char *key, struct doc_at *out, struct err *e);
status doc_any(const struct doc_at *o, const char *key, struct doc_at *out, struct err *e);
status doc_int(const struct doc_at *o, const char *key, int64_t lo, int64_t hi, int64_t *out, struct err *e);
status doc_u32(const struct doc_at *o, const char *key, uint32_t lo, uint32_t hi, uint32_t *out,
               struct err *e);
status doc_double(const struct doc_at *o, const char *key, double lo, double hi, double *out, struct err *e);
status doc_bool(const struct doc_at *o, const char *key, bool *out, struct err *e);
status doc_string(const struct doc_at *o, const char *key, const char **out, struct err *e);

/* Members that may be absent. */
status doc_opt_int(const struct doc_at *o, const char *key, int64_t lo, int64_t hi, int64_t *out,
                   struct err *e);
status doc_opt_u32(const struct doc_at *o, const char *key, uint32_t lo, uint32_t hi, uint32_t *out,
                   struct err *e);
status doc_opt_double(const struct doc_at *o, const char *key, double lo, double hi, double *out,
                      struct err *e);
status doc_opt_bool(const struct doc_at *o, const char *key, bool *out, struct err *e);
status doc_opt_string(const struct doc_at *o, const char *key, const char **out, struct err *e);

/* The same of the place itself: for elements of arrays. Integers are JSON integers (2.0 is none), doubles
 * any number. */
status doc_as_object(const struct doc_at *at, struct err *e);
status doc_as_array(const struct doc_at *at, struct err *e);
status doc_as_int(const struct doc_at *at, int64_t lo, int64_t hi, int64_t *out, struct err *e);
status doc_as_double(const struct doc_at *at, double lo, double hi, double *out, struct err *e);
status doc_as_bool(const struct doc_at *at, bool *out, struct err *e);
status doc_as_string(const struct doc_at *at, const char **out, size_t *n /* may be NULL */, struct err *e);

/* Elements. */
size_t doc_count(const struct doc_at *array);
void doc_element(const struct doc_at *array, size_t i, struct doc_at *out); /* i < doc_count */

/* An array of exactly n numbers. */
status doc_ints(const struct doc_at *o, const char *key, size_t n, int64_t lo, int64_t hi, int64_t *out,
                struct err *e);
status doc_doubles(const struct doc_at *o, const char *key, size_t n, double lo, double hi, double *out,
                   struct err *e);

/* Error that names the first member of the object that is not in the NULL-ended list, and the list. */
status doc_only(const struct doc_at *o, const char *const *allowed, struct err *e);

/* What a value is, in words: "a string", "an object". */
const char *doc_kind(const json_t *v);

#endif
