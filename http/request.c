/* http/request.c - one request: what its head must be before a byte of the body is read, where the body goes, and what
 * handlers read of it. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/internal.h"

/* ---- life ------------------------------------------------------------------------------------------------- */

struct http_request *request_new(struct connection *c)
{
    struct http_request *r = mem_must(1, sizeof *r);
    atomic_init(&r->n_refs, 1);
    r->server = c->server;
    r->connection = c;
    r->began_s = clock_s();
    snprintf(r->peer, sizeof r->peer, "%s", c->peer_text);
    unsigned char random[16];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) abort();
    memcpy(r->id, "req_", 4);
    for (size_t i = 0; i < sizeof random; i++) snprintf(r->id + 4 + 2 * i, 3, "%02x", random[i]);
    return r;
}

static void part_free(struct part *p)
{
    free(p->name);
    free(p->filename);
    free(p->content_type);
    free(p->value);
    spool_file_discard(&p->file);
}

static void request_free(void *arg)
{
    struct http_request *r = arg;
    reply_file_free(r);
    for (size_t i = 0; i < r->n_parts; i++) part_free(&r->part[i]);
    for (size_t i = 0; i < r->n_query; i++) {
        free(r->query[i].key);
        free(r->query[i].value);
    }
    free(r->query);
    spool_file_discard(&r->file);
    multipart_free(&r->multipart);
    r->server->counts.spool_bytes -= r->n_spooled;
    if (r->headers) evbuffer_free(r->headers);
    free(r->body);
    free(r->capture);
    reader_head_free(&r->head);
    free(r);
}

struct http_request *http_ref(struct http_request *r)
{
    atomic_fetch_add_explicit(&r->n_refs, 1, memory_order_relaxed);
    return r;
}

void http_unref(struct http_request *r)
{
    if (r == NULL || atomic_fetch_sub_explicit(&r->n_refs, 1, memory_order_acq_rel) > 1) return;
    if (pthread_equal(r->server->loop_thread, pthread_self())) request_free(r);
    else http_post(r->server, request_free, r);
}

/* ---- the head --------------------------------------------------------------------------------------------- */

static void take_id(struct http_request *r)
{
    const char *id = reader_header(&r->head, "x-request-id");
    const size_t n = id ? strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") : 0;
    if (n >= 1 && n < sizeof r->id && id[n] == '\0') memcpy(r->id, id, n + 1);
}

static bool media_type_is(const char *value, const char *type)
{
    const size_t n = strlen(type);
    return strncasecmp(value, type, n) == 0 && (value[n] == '\0' || strchr("; \t", value[n]) != NULL);
}

static status wrong_type(const struct http_route *route, struct err *e)
{
    err_set(e, E_ARG, "This endpoint takes %s as UTF-8, without Content-Encoding.",
            route->body == HTTP_BODY_FORM ? "multipart/form-data or application/json" : "application/json");
    return err_tag(e, "unsupported_content_type", NULL);
}

static status too_large(uint64_t max, struct err *e)
{
    err_set(e, E_ARG, "The body is too large: the limit is %llu bytes.", (unsigned long long)max);
    return err_tag(e, "request_too_large", NULL);
}

static status spool_full(struct err *e)
{
    err_set(e, E_NOMEM, "There is no room for uploads at the moment: try again later.");
    return err_tag(e, "spool_full", NULL);
}

static status spool_fits(const struct http_request *r, uint64_t more, struct err *e)
{
    const struct http_server *s = r->server;
    return s->counts.spool_bytes + more > s->o.max_spool ? spool_full(e) : OK;
}

static status begin_part(void *self, const char *name, const char *filename, const char *type, struct err *e);
static status part_data(void *self, const char *bytes, size_t n, struct err *e);
static status end_part(void *self, struct err *e);

/* What kind of body is it, and may it come? */
static status check_body(struct http_request *r, struct err *e)
{
    const struct reader_head *h = &r->head;
    const struct http_options *o = &r->server->o;
    const char *type = reader_header(h, "content-type"), *encoding = reader_header(h, "content-encoding");
    if (r->route->body == HTTP_BODY_NONE) {
        r->body_kind = request_has_body(r) ? BODY_IGNORED : BODY_NOTHING;
        r->body_max = IGNORED_BODY_MAX;
        return h->has_length && h->length > r->body_max ? too_large(r->body_max, e) : OK;
    }
    if (!h->chunked && !h->has_length) {
        err_set(e, E_ARG, "The request has neither Content-Length nor Transfer-Encoding: chunked.");
        return err_tag(e, "length_required", NULL);
    }
    if (encoding && encoding[0] && strcasecmp(encoding, "identity") != 0) return wrong_type(r->route, e);
    char charset[32];
    if (type && multipart_parameter(type, "charset", charset, sizeof charset) && strcasecmp(charset, "utf-8") != 0 &&
        strcasecmp(charset, "utf8") != 0)
        return wrong_type(r->route, e);
    if (type && media_type_is(type, "application/json")) {
        r->body_kind = BODY_JSON;
        r->body_max = r->route->body == HTTP_BODY_JSON && r->route->max_body ? r->route->max_body : o->max_json_body;
    } else if (type && r->route->body == HTTP_BODY_FORM && media_type_is(type, "multipart/form-data")) {
        r->body_kind = BODY_FORM;
        r->body_max = r->route->max_body ? r->route->max_body : o->max_upload;
    } else {
        return wrong_type(r->route, e);
    }
    if (h->has_length && h->length > r->body_max) return too_large(r->body_max, e);
    if (h->has_length && h->length > BODY_IN_MEMORY) {
        TRY(spool_fits(r, h->length, e));
        if (spool_room(r->server->spool) < h->length) return spool_full(e);
    }
    if (r->body_kind != BODY_FORM) return OK;
    const struct multipart_sink sink = { r, begin_part, part_data, end_part };
    return multipart_create(type, &sink, &r->multipart, e);
}

static status draining(struct err *e)
{
    err_set(e, E_BUSY, "The server is shutting down: send the request to another one or try again later.");
    return err_tag(e, "draining", NULL);
}

status request_head(struct http_request *r, struct err *e)
{
    const struct http_server *s = r->server;
    const struct reader_head *h = &r->head;
    const char *allow_origin;
    char allow[128];
    take_id(r);
    r->head_only = strcmp(h->method, "HEAD") == 0;
    TRY(keys_check_host(s, h, e));
    TRY(keys_check_origin(s, h, &allow_origin, e));
    if (allow_origin) {
        http_reply_header(r, "Access-Control-Allow-Origin", allow_origin);
        http_reply_header(r, "Access-Control-Expose-Headers", "x-request-id, retry-after");
        http_reply_header(r, "Vary", "Origin");
    }
    if (strcmp(h->method, "OPTIONS") == 0) return OK;
    struct err missing;
    const status found = routes_find(s, h->path, h->method, &r->route, &r->capture, allow, sizeof allow, &missing);
    /* Whoever has no key does not learn either which paths there are. */
    TRY(keys_check(s, h, r->key, r->route == NULL || !r->route->open, e));
    if (found != OK) {
        if (missing.tag && strcmp(missing.tag, "method_not_allowed") == 0) http_reply_header(r, "Allow", allow);
        *e = missing;
        return found;
    }
    if (s->phase >= DRAINING && !r->route->while_draining) return draining(e);
    if (s->gate && !r->route->while_draining) TRY(s->gate(s->gate_self, e));
    TRY(check_body(r, e));
    return r->route->head ? r->route->head(r->route->self, r, e) : OK;
}

bool request_has_body(const struct http_request *r)
{
    return r->head.chunked || (r->head.has_length && r->head.length > 0);
}

/* Headers that a page may send: those that the clients send, and no others. */
static void echo_headers(struct http_request *r, const char *asked)
{
    char out[1024] = "", *save = NULL;
    char *copy = mem_must_strdup(asked);
    for (char *name = strtok_r(copy, ", \t", &save); name; name = strtok_r(NULL, ", \t", &save)) {
        const bool good = strcasecmp(name, "authorization") == 0 || strcasecmp(name, "content-type") == 0 ||
                          strcasecmp(name, "x-request-id") == 0 || strncasecmp(name, "x-stainless-", 12) == 0;
        const size_t n = strlen(out);
        if (good && n + strlen(name) + 3 < sizeof out) snprintf(out + n, sizeof out - n, "%s%s", n ? ", " : "", name);
    }
    free(copy);
    if (out[0]) http_reply_header(r, "Access-Control-Allow-Headers", out);
}

bool request_answer_options(struct http_request *r)
{
    const struct reader_head *h = &r->head;
    if (strcmp(h->method, "OPTIONS") != 0) return false;
    const struct http_route *route;
    char allow[128] = "GET, HEAD, POST, DELETE, OPTIONS", *capture = NULL;
    struct err e;
    if (strcmp(h->path, "*") != 0 && routes_find(r->server, h->path, "GET", &route, &capture, allow, sizeof allow, &e) != OK &&
        strcmp(e.tag, "method_not_allowed") != 0) {
        http_reply_error(r, &e);
        return true;
    }
    free(capture);
    http_reply_header(r, "Allow", allow);
    /* The origin was checked with the head: without one, or from our own, no page needs permission. */
    if (reader_header(h, "origin") && reader_header(h, "access-control-request-method")) {
        const char *asked = reader_header(h, "access-control-request-headers");
        http_reply_header(r, "Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
        if (asked) echo_headers(r, asked);
        http_reply_header(r, "Access-Control-Max-Age", "600");
    }
    http_reply_bytes(r, 204, NULL, "", 0);
    return true;
}

/* ---- the body --------------------------------------------------------------------------------------------- */

static void on_stored(void *self, struct spool_file *f)
{
    struct http_request *r = self;
    (void)f;
    if (r->connection) connection_process(r->connection);
}

static status to_spool(struct http_request *r, struct spool_file *f, const char *bytes, size_t n, struct err *e)
{
    TRY(spool_fits(r, n, e));
    r->n_spooled += n;
    r->server->counts.spool_bytes += n;
    spool_file_write(f, bytes, n);
    return OK;
}

static status json_bytes(struct http_request *r, const char *bytes, size_t n, struct err *e)
{
    const bool large = r->n_body > BODY_IN_MEMORY || (r->head.has_length && r->head.length > BODY_IN_MEMORY);
    if (r->file == NULL && large) {
        const size_t before = (size_t)(r->n_body - n);
        r->file = spool_file_create(r->server->spool, on_stored, r);
        if (before) TRY(to_spool(r, r->file, r->body, before, e));
        free(r->body);
        r->body = NULL;
    }
    if (r->file) return to_spool(r, r->file, bytes, n, e);
    TRY(mem_grow(&r->body, &r->cap_body, (size_t)r->n_body + 1, 1, e));
    memcpy(r->body + r->n_body - n, bytes, n);
    r->body[r->n_body] = '\0';
    return OK;
}

status request_body(struct http_request *r, const char *bytes, size_t n, struct err *e)
{
    r->n_body += n;
    if (r->n_body > r->body_max) return too_large(r->body_max, e);
    switch (r->body_kind) {
    case BODY_JSON: return json_bytes(r, bytes, n, e);
    case BODY_FORM: return multipart_feed(r->multipart, bytes, n, e);
    default: return OK;
    }
}

static status begin_part(void *self, const char *name, const char *filename, const char *type, struct err *e)
{
    struct http_request *r = self;
    assert(r->n_parts < MULTIPART_PARTS_MAX);
    for (size_t i = 0; filename && i < r->n_parts; i++)
        if (r->part[i].filename && strcmp(r->part[i].name, name) == 0) {
            err_set(e, E_ARG, "the form has two files of one name; send one");
            return err_tag(e, "invalid_multipart", strlen(name) < sizeof e->param ? name : NULL);
        }
    struct part *p = &r->part[r->n_parts++];
    p->name = mem_must_strdup(name);
    if (filename) p->filename = mem_must_strdup(filename);
    if (type) p->content_type = mem_must_strdup(type);
    p->p = (struct http_part){ .name = p->name, .filename = p->filename, .content_type = p->content_type, .fd = -1 };
    if (filename) p->file = spool_file_create(r->server->spool, on_stored, r);
    return OK;
}

static status part_data(void *self, const char *bytes, size_t n, struct err *e)
{
    struct http_request *r = self;
    struct part *p = &r->part[r->n_parts - 1];
    if (p->file) {
        p->p.n += n;
        return to_spool(r, p->file, bytes, n, e);
    }
    if (p->p.n + n > FIELD_MAX) {
        err_set(e, E_ARG, "A field of the form is too large: the limit is %u bytes; send it as a file.", FIELD_MAX);
        return err_tag(e, "request_too_large", strlen(p->name) < sizeof e->param ? p->name : NULL);
    }
    TRY(mem_grow(&p->value, &p->cap, (size_t)p->p.n + n + 1, 1, e));
    memcpy(p->value + p->p.n, bytes, n);
    p->p.n += n;
    return OK;
}

static status end_part(void *self, struct err *e)
{
    struct http_request *r = self;
    struct part *p = &r->part[r->n_parts - 1];
    if (p->file) {
        spool_file_finish(p->file, false);
        return OK;
    }
    TRY(mem_grow(&p->value, &p->cap, (size_t)p->p.n + 1, 1, e));
    p->value[p->p.n] = '\0';
    p->p.value = p->value;
    return OK;
}

status request_body_end(struct http_request *r, struct err *e)
{
    if (r->body_kind == BODY_FORM) return multipart_finish(r->multipart, e);
    if (r->body_kind != BODY_JSON) return OK;
    if (r->file) spool_file_finish(r->file, true);
    else if (r->body == NULL) r->body = mem_must(1, 1);
    return OK;
}

bool request_stored(const struct http_request *r)
{
    if (r->file && !r->file->finished) return false;
    for (size_t i = 0; i < r->n_parts; i++)
        if (r->part[i].file && !r->part[i].file->finished) return false;
    return true;
}

const struct err *request_store_error(const struct http_request *r)
{
    if (r->file && r->file->failed) return &r->file->error;
    for (size_t i = 0; i < r->n_parts; i++)
        if (r->part[i].file && r->part[i].file->failed) return &r->part[i].file->error;
    return NULL;
}

uint64_t request_pending(const struct http_request *r)
{
    uint64_t n = r->file ? r->file->n_pending : 0;
    for (size_t i = 0; i < r->n_parts; i++)
        if (r->part[i].file) n += r->part[i].file->n_pending;
    return n;
}

/* ---- what handlers read ----------------------------------------------------------------------------------- */

struct http_server *http_request_server(const struct http_request *r) { return r->server; }
const char *http_request_id(const struct http_request *r) { return r->id; }
const char *http_request_method(const struct http_request *r) { return r->head.method ? r->head.method : ""; }
const char *http_request_capture(const struct http_request *r) { return r->capture; }
const char *http_request_peer(const struct http_request *r) { return r->peer; }
const char *http_request_key(const struct http_request *r) { return r->key; }
double http_request_start(const struct http_request *r) { return r->start_s; }
void *http_request_user(const struct http_request *r) { return r->user; }
void http_request_set_user(struct http_request *r, void *user) { r->user = user; }
bool http_request_is_gone(const struct http_request *r) { return r->gone; }
size_t http_request_n_parts(const struct http_request *r) { return r->n_parts; }

const char *http_request_route(const struct http_request *r) { return r->route ? r->route->path : ""; }
const char *http_request_path(const struct http_request *r)
{
    return r->head.path ? routes_strip_root(r->server, r->head.path) : "";
}

const char *http_request_header(const struct http_request *r, const char *name) { return reader_header(&r->head, name); }

static void read_query(struct http_request *r)
{
    r->query_read = true;
    if (r->head.query == NULL) return;
    struct err e;
    size_t cap = 0;
    char *copy = mem_must_strdup(r->head.query), *save = NULL;
    for (char *pair = strtok_r(copy, "&", &save); pair; pair = strtok_r(NULL, "&", &save)) {
        char *value = strchr(pair, '=');
        if (value) *value++ = '\0';
        if (mem_grow(&r->query, &cap, r->n_query + 1, sizeof *r->query, &e) != OK) abort();
        struct query *q = &r->query[r->n_query++];
        q->key = mem_must_strdup(pair);
        q->value = mem_must_strdup(value ? value : "");
        reader_unescape(q->key, true);
        reader_unescape(q->value, true);
    }
    free(copy);
}

const char *http_request_query(const struct http_request *r, const char *key)
{
    if (!r->query_read) read_query((struct http_request *)r);
    for (size_t i = 0; i < r->n_query; i++)
        if (strcmp(r->query[i].key, key) == 0) return r->query[i].value;
    return NULL;
}

const char *http_request_body(const struct http_request *r, size_t *n)
{
    *n = r->body_kind == BODY_JSON ? (size_t)r->n_body : 0;
    if (r->body_kind != BODY_JSON) return NULL;
    return r->file ? r->file->map : r->body;
}

struct http_part *http_request_part(struct http_request *r, size_t i)
{
    struct part *p = &r->part[i];
    if (p->file && p->file->finished) {
        p->p.fd = p->file->fd;
        p->p.digest = p->file->digest;
    }
    return &p->p;
}

const struct http_part *http_request_field(struct http_request *r, const char *name)
{
    for (size_t i = 0; i < r->n_parts; i++)
        if (r->part[i].filename == NULL && strcmp(r->part[i].name, name) == 0) return http_request_part(r, i);
    return NULL;
}

int http_part_take(struct http_part *p)
{
    struct part *own = (struct part *)p;       /* its first member */
    const int fd = p->fd;
    p->fd = -1;
    if (own->file) own->file->fd = -1;
    return fd;
}

/* ---- departure -------------------------------------------------------------------------------------------- */

static void tell_gone(void *arg)
{
    struct http_request *r = arg;
    if (r->on_gone) r->on_gone(r->gone_self, r, r->status ? "stream" : "wait");
    r->on_gone = NULL;
    http_unref(r);
}

void http_request_on_gone(struct http_request *r, void (*gone)(void *self, struct http_request *r, const char *phase),
                          void *self)
{
    r->on_gone = gone;
    r->gone_self = self;
    if (r->gone && gone) http_post(r->server, tell_gone, http_ref(r));
}

void request_abandon(struct http_request *r, const char *phase)
{
    r->connection = NULL;
    r->gone = true;
    if (r->streaming) r->server->counts.n_streaming--;
    r->streaming = false;
    if (!r->handled) r->server->counts.gone_upload++;
    access_log(r, 499);
    if (r->handled && r->on_gone) {
        void (*gone)(void *, struct http_request *, const char *) = r->on_gone;
        r->on_gone = NULL;
        gone(r->gone_self, r, phase);
    } else if (strcmp(phase, "slow_reader") == 0) {
        r->server->counts.gone_slow_reader++;
    }
}
