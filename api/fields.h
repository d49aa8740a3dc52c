/* api/fields.h - the fields of request bodies: which there are, and how those that endpoints share are read.
 * docs/http-api.md 1.2, 1.5, 1.6. Errors are E_ARG with tag and param. */
#ifndef API_FIELDS_H
#define API_FIELDS_H

#include "api/inside.h"
#include "base/json.h"

enum api_rule { API_HONOURED, API_IGNORED, API_REFUSED };
enum { API_CHAT = 1, API_COMPLETION = 2 };

struct api_field {
    const char *name;              /* a trailing '*' stands for any end */
    unsigned where;                /* API_CHAT | API_COMPLETION */
    enum api_rule rule;
    const char *schema;            /* of what is honoured, as api_schema reads it; else NULL */
};
extern const struct api_field api_fields[];                /* ends with name NULL */

/* JSON Schema text with ' in place of " (none holds an apostrophe). The caller owns the reference. openapi.c */
json_t *api_schema(const char *text);

/* Parse and see that it is an object. *d is owned by the caller: doc_close. */
status api_body_open(const char *body, size_t n, struct doc *d, struct doc_at *root, struct err *e);

/* Refused and unknown fields. */
status api_fields_check(struct api *a, const struct doc_at *root, unsigned where, struct err *e);

/* Everything that chat and completions share, the length of the answer and logprobs apart: sampling, n, stop, stream,
 * omnidrop, ids. */
status api_fields_common(struct api_job *j, const struct doc_at *root, struct err *e);
status api_fields_model(const struct api *a, const struct doc_at *root, struct err *e);

/* The object `omnidrop` of root, strict; *out is set where it is absent too. */
status api_fields_omnidrop(const struct api *a, const struct doc_at *root, struct api_omnidrop *out, struct err *e);
/* One key of it, handed over as text (form fields "omnidrop[retention]=0.3"): into an object that api_fields_omnidrop
 * then reads. E_ARG: no such key. */
status api_omnidrop_field(json_t *object, const char *key, const char *text, struct err *e);

/* mm_processor_kwargs and media_io_kwargs: into the parts that do not say it themselves. */
status api_fields_media(const struct doc_at *root, struct chat *chat, struct err *e);

/* add_generation_prompt, continue_final_message. */
status api_fields_render(const struct doc_at *root, const struct chat *chat, bool closed_last, struct chat_render_options *out,
                         struct err *e);

/* A token id that a prompt may hold: below the vocabulary, defined, no media placeholder. */
status api_check_id(const struct api *a, const struct doc_at *at, int64_t id, struct err *e);

#endif
