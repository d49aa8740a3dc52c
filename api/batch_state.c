/* api/batch_state.c - see batch_state.h. */
#include "api/batch_state.h"

#include <string.h>

static const char *const NAME[BATCH_N_STATUS] = { "validating", "in_progress", "finalizing", "completed", "failed",
                                                  "cancelling", "cancelled", "expired" };
/* The member that says when a status began; validating: created_at. */
static const char *const AT[BATCH_N_STATUS] = { NULL, "in_progress_at", "finalizing_at", "completed_at", "failed_at",
                                                "cancelling_at", "cancelled_at", "expired_at" };

const char *batch_status_name(enum batch_status s) { return NAME[s]; }

bool batch_is_over(const struct batch_state *s)
{
    return s->status == BATCH_COMPLETED || s->status == BATCH_FAILED || s->status == BATCH_CANCELLED ||
           s->status == BATCH_EXPIRED;
}

void batch_state_free(struct batch_state *s)
{
    json_decref(s->metadata);
    json_decref(s->problems);
    *s = (struct batch_state){ 0 };
}

static json_t *time_json(int64_t t) { return t ? json_integer(t) : json_null(); }
static json_t *text_json(const char *s) { return *s ? json_string(s) : json_null(); }
static json_t *copy_json(json_t *v) { return v ? json_incref(v) : json_null(); }

json_t *batch_state_json(const struct batch_state *s)
{
    const struct batch_counts *c = &s->counts;
    json_t *o = json_pack("{s:s, s:s, s:s, s:o, s:s, s:s, s:s, s:o, s:o, s:I, s:o}", "id", s->id, "object", "batch",
                          "endpoint", s->endpoint, "errors",
                          s->problems ? json_pack("{s:s, s:O}", "object", "list", "data", s->problems) : json_null(),
                          "input_file_id", s->input_file_id, "completion_window", "24h", "status", NAME[s->status],
                          "output_file_id", text_json(s->output_file_id), "error_file_id", text_json(s->error_file_id),
                          "created_at", (json_int_t)s->created_at, "expires_at", time_json(s->expires_at));
    for (int i = 0; i < BATCH_N_STATUS; i++)
        if (AT[i]) json_object_set_new(o, AT[i], time_json(s->at[i]));
    json_object_set_new(o, "request_counts", json_pack("{s:I, s:I, s:I}", "total", (json_int_t)c->total, "completed",
                                                       (json_int_t)c->completed, "failed", (json_int_t)c->failed));
    json_object_set_new(o, "usage",
                        json_pack("{s:I, s:{s:i}, s:I, s:{s:i}, s:I}", "input_tokens", (json_int_t)c->tokens_in,
                                  "input_tokens_details", "cached_tokens", 0, "output_tokens",
                                  (json_int_t)c->tokens_out, "output_tokens_details", "reasoning_tokens", 0,
                                  "total_tokens", (json_int_t)(c->tokens_in + c->tokens_out)));
    json_object_set_new(o, "metadata", copy_json(s->metadata));
    return o;
}

json_t *batch_state_line(const struct batch_state *s)
{
    json_t *o = json_pack("{s:i, s:s, s:s, s:I, s:o}", "omnidrop_batch_state", 1, "owner", s->owner, "ending",
                          NAME[s->ending], "output_expires_after", (json_int_t)s->output_expires_after, "batch",
                          batch_state_json(s));
    return o;
}

/* ---- reading -------------------------------------------------------------------------------------------------- */

/* A string member, or null for "" where `may_lack`. */
static bool read_text(const json_t *o, const char *key, char *out, size_t cap, bool may_lack)
{
    const json_t *v = json_object_get(o, key);
    if (may_lack && (v == NULL || json_is_null(v))) return true;
    if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v) || json_string_length(v) >= cap)
        return false;
    memcpy(out, json_string_value(v), json_string_length(v) + 1);
    return true;
}

static bool read_number(const json_t *o, const char *key, int64_t *out)
{
    const json_t *v = json_object_get(o, key);
    if (v == NULL || json_is_null(v)) return true;
    if (!json_is_integer(v) || json_integer_value(v) < 0) return false;
    *out = json_integer_value(v);
    return true;
}

static bool read_count(const json_t *o, const char *key, uint64_t *out)
{
    int64_t v = 0;
    if (!read_number(o, key, &v)) return false;
    *out = (uint64_t)v;
    return true;
}

static bool read_status(const json_t *o, const char *key, enum batch_status *out)
{
    const char *name = json_string_value(json_object_get(o, key));
    for (int i = 0; name && i < BATCH_N_STATUS; i++)
        if (strcmp(name, NAME[i]) == 0) {
            *out = (enum batch_status)i;
            return true;
        }
    return false;
}

static bool is_id(const char *id, const char *prefix)
{
    const size_t n = strlen(prefix);
    return strncmp(id, prefix, n) == 0 && strlen(id) == n + 32 && strspn(id + n, "0123456789abcdef") == 32;
}

static bool is_file_id(const char *id) { return *id == 0 || is_id(id, "file-"); }

static bool read_object(const json_t *o, struct batch_state *s)
{
    const json_t *counts = json_object_get(o, "request_counts"), *usage = json_object_get(o, "usage");
    if (!read_text(o, "id", s->id, sizeof s->id, false) || !is_id(s->id, "batch_") ||
        !read_text(o, "endpoint", s->endpoint, sizeof s->endpoint, false) ||
        !read_text(o, "input_file_id", s->input_file_id, sizeof s->input_file_id, false) ||
        !read_text(o, "output_file_id", s->output_file_id, sizeof s->output_file_id, true) ||
        !read_text(o, "error_file_id", s->error_file_id, sizeof s->error_file_id, true) ||
        !is_id(s->input_file_id, "file-") || !is_file_id(s->output_file_id) || !is_file_id(s->error_file_id) ||
        !read_status(o, "status", &s->status) || !read_number(o, "created_at", &s->created_at) ||
        !read_number(o, "expires_at", &s->expires_at))
        return false;
    for (int i = 0; i < BATCH_N_STATUS; i++)
        if (AT[i] && !read_number(o, AT[i], &s->at[i])) return false;
    return read_count(counts, "total", &s->counts.total) && read_count(counts, "completed", &s->counts.completed) &&
           read_count(counts, "failed", &s->counts.failed) && read_count(usage, "input_tokens", &s->counts.tokens_in) &&
           read_count(usage, "output_tokens", &s->counts.tokens_out);
}

bool batch_state_read(const json_t *line, struct batch_state *out)
{
    struct batch_state s = { 0 };
    const json_t *o = json_object_get(line, "batch"), *version = json_object_get(line, "omnidrop_batch_state");
    if (!json_is_integer(version) || json_integer_value(version) != 1 ||
        !read_text(line, "owner", s.owner, sizeof s.owner, false) || !read_status(line, "ending", &s.ending) ||
        !read_number(line, "output_expires_after", &s.output_expires_after) || !read_object(o, &s))
        return false;
    json_t *metadata = json_object_get(o, "metadata"),
           *problems = json_object_get(json_object_get(o, "errors"), "data");
    if (json_is_object(metadata)) s.metadata = json_incref(metadata);
    if (json_is_array(problems)) s.problems = json_incref(problems);
    batch_state_free(out);
    *out = s;
    return true;
}
