/* http/files.c - see files.h. */
#include "http/files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILES "/v1/files"
#define FILE_ID "/v1/files/{id}"
#define CONTENT "/v1/files/{id}/content"
#define LIST_MAX 10000

static status bad(struct err *e, const char *tag, const char *param, const char *text)
{
    err_set(e, E_ARG, "%s", text);
    return err_tag(e, tag, param);
}

/* ---- POST /v1/files ------------------------------------------------------------------------------------------ */

/* The one part that is the file. */
static status file_part(struct http_request *r, struct http_part **out, struct err *e)
{
    *out = NULL;
    for (size_t i = 0; i < http_request_n_parts(r); i++) {
        struct http_part *p = http_request_part(r, i);
        if (strcmp(p->name, "file") != 0) continue;
        if (*out) return bad(e, "invalid_multipart", "file", "the form holds more than one file");
        if (p->filename == NULL)
            return bad(e, "invalid_type", "file", "file is a plain field: send it as a file, with a filename");
        *out = p;
    }
    return *out ? OK : bad(e, "missing_required_parameter", "file", "file is missing: send a multipart form with one");
}

/* expires_after[seconds] with expires_after[anchor]; 0: not given. */
static status read_expiry(struct http_request *r, int64_t *out, struct err *e)
{
    const struct http_part *anchor = http_request_field(r, "expires_after[anchor]");
    const struct http_part *seconds = http_request_field(r, "expires_after[seconds]");
    *out = 0;
    if (anchor == NULL && seconds == NULL) return OK;
    if (anchor == NULL || strcmp(anchor->value, "created_at") != 0)
        return bad(e, anchor ? "invalid_value" : "missing_required_parameter", "expires_after[anchor]",
                   "expires_after[anchor] must be created_at");
    if (seconds == NULL)
        return bad(e, "missing_required_parameter", "expires_after[seconds]", "expires_after[seconds] is missing");
    if (seconds->n == 0 || seconds->n > 12 || strspn(seconds->value, "0123456789") != seconds->n)
        return bad(e, "invalid_type", "expires_after[seconds]", "expires_after[seconds] is no whole number");
    *out = strtoll(seconds->value, NULL, 10);
    return files_check_expiry(*out, "expires_after[seconds]", e);
}

static status read_upload(struct http_request *r, struct http_part **file, struct file_add *a, struct err *e)
{
    TRY(file_part(r, file, e));
    const struct http_part *purpose = http_request_field(r, "purpose");
    if (purpose == NULL)
        return bad(e, "missing_required_parameter", "purpose", "purpose is missing: give batch, user_data or vision");
    TRY(files_check_purpose(purpose->value, e));
    TRY(read_expiry(r, &a->expires_after, e));
    a->owner = http_request_key(r);
    a->filename = (*file)->filename;
    a->purpose = purpose->value;
    a->digest = (*file)->digest;
    return OK;
}

static status add_file(struct disk_job *j, struct err *e)
{
    const struct http_files *f = j->self;
    struct http_part *part;
    struct file_add a = { 0 };
    struct file_info info;
    struct err why;
    TRY(read_upload(j->r, &part, &a, e));
    a.fd = j->fd;
    if (f->probe && strcmp(a.purpose, "batch") != 0 && f->probe(f->probe_self, j->fd, a.filename, &why) == E_INPUT)
        a.error = why.text;
    TRY(files_add(f->files, &a, &info, e));
    j->json = file_json(&info);
    return OK;
}

static void fail(const struct http_files *f, struct http_request *r, const char *route, const struct err *e)
{
    if (f->disk.metrics) metrics_failure(f->disk.metrics, route, e);
    http_reply_error(r, e);
}

static void post(void *self, struct http_request *r)
{
    struct http_files *f = self;
    struct http_part *part;
    struct file_add a = { 0 };
    struct err e;
    if (read_upload(r, &part, &a, &e) != OK) {
        fail(f, r, FILES, &e);
        return;
    }
    disk_reply(&f->disk, r, FILES, f, http_part_take(part), add_file);
}

/* ---- the others ------------------------------------------------------------------------------------------------ */

static status list_files(struct disk_job *j, struct err *e)
{
    const struct http_files *f = j->self;
    const char *order = http_request_query(j->r, "order");
    struct files_query q = { .after = http_request_query(j->r, "after"),
                             .purpose = http_request_query(j->r, "purpose") };
    TRY(disk_limit(j->r, LIST_MAX, &q.limit, e));
    if (order && strcmp(order, "asc") != 0 && strcmp(order, "desc") != 0)
        return bad(e, "invalid_value", "order", "order must be asc or desc");
    q.ascending = order && strcmp(order, "asc") == 0;
    return files_list(f->files, http_request_key(j->r), &q, &j->json, e);
}

static status get_file(struct disk_job *j, struct err *e)
{
    const struct http_files *f = j->self;
    struct file_info info;
    TRY(files_get(f->files, http_request_key(j->r), http_request_capture(j->r), &info, e));
    j->json = file_json(&info);
    return OK;
}

static status delete_file(struct disk_job *j, struct err *e)
{
    const struct http_files *f = j->self;
    const char *id = http_request_capture(j->r);
    TRY(files_delete(f->files, http_request_key(j->r), id, e));
    j->json = json_pack("{s:s, s:s, s:b}", "id", id, "object", "file", "deleted", 1);
    return OK;
}

static status get_content(struct disk_job *j, struct err *e)
{
    const struct http_files *f = j->self;
    struct file_info info;
    TRY(files_open_data(f->files, http_request_key(j->r), http_request_capture(j->r), &info, &j->file, e));
    j->n_file = info.bytes;
    j->type = strncmp(info.purpose, "batch", 5) == 0 ? "application/jsonl" : "application/octet-stream";
    return OK;
}

static void list(void *self, struct http_request *r)
{
    disk_reply(&((struct http_files *)self)->disk, r, FILES, self, -1, list_files);
}
static void get(void *self, struct http_request *r)
{
    disk_reply(&((struct http_files *)self)->disk, r, FILE_ID, self, -1, get_file);
}
static void delete(void *self, struct http_request *r)
{
    disk_reply(&((struct http_files *)self)->disk, r, FILE_ID, self, -1, delete_file);
}
static void content(void *self, struct http_request *r)
{
    disk_reply(&((struct http_files *)self)->disk, r, CONTENT, self, -1, get_content);
}

void http_files_routes(struct http_files *f)
{
    const struct http_route route[] = {
        { .method = "POST", .path = FILES, .body = HTTP_BODY_FORM, .handle = post, .self = f },
        { .method = "GET", .path = FILES, .handle = list, .self = f },
        { .method = "GET", .path = FILE_ID, .handle = get, .self = f },
        { .method = "DELETE", .path = FILE_ID, .handle = delete, .self = f },
        { .method = "GET", .path = CONTENT, .handle = content, .self = f },
    };
    for (size_t i = 0; i < sizeof route / sizeof *route; i++) http_route_add(f->disk.server, &route[i]);
}
