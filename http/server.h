/* http/server.h - a strict HTTP/1.1 server on libevent's core: sockets, requests, bodies, replies. It knows nothing of
 * models. docs/http-api.md 2 and 3 say what it promises.
 *
 *   http_server_create -> http_route... -> http_server_run (the loop thread; returns after the drain)
 *     a request's head arrives      limits, framing, Host, key, route; `head` hook of the route may refuse
 *     its body arrives              in memory up to http_options.memory_body, else spooled to disk with its SHA-256
 *     route->handle(request)        on the loop thread; replies now or later
 *     http_reply... / http_stream_  on the loop thread; other threads come through http_post
 *
 * Lifetime. A request object lives until it was answered *and* every http_ref was dropped; after the client went away
 * replies and writes do nothing. `gone` is told once, on the loop thread, as soon as the client's departure is seen.
 * Nothing here blocks; handlers must not either. */
#ifndef HTTP_SERVER_H
#define HTTP_SERVER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

struct http_server;
struct http_request;

/* ---- the server ------------------------------------------------------------------------------------------- */

struct http_options {              /* zero or NULL: the default of docs/http-api.md 2.4 */
    const char *host;              /* 127.0.0.1 */
    uint16_t port;                 /* 8000; with port_any: one that is free */
    bool port_any;
    const char *uds;               /* a Unix socket in place of host and port */
    const char *ssl_certfile, *ssl_keyfile;
    const char *const *api_key;    /* [n_api_key] */
    size_t n_api_key;
    const char *api_key_file;      /* read again on SIGHUP */
    bool insecure_no_auth;         /* without keys, serve more than loopback */
    const char *const *allowed_origin;     /* [n_allowed_origin] CORS; "*" */
    size_t n_allowed_origin;
    const char *const *allowed_host;       /* [n_allowed_host] beside loopback names */
    size_t n_allowed_host;
    const char *root_path;         /* prefix that a proxy leaves on the path */
    const char *spool_dir;
    uint64_t max_json_body, max_upload, max_spool;
    uint32_t max_connections, per_ip_connections;      /* both counted before the head is read; 503 beyond */
    double header_s, body_grace_s, body_stall_s, idle_s, write_stall_s, drain_delay_s, drain_s;
    uint64_t body_rate;            /* bytes a second that a body must keep */
    bool metrics_public;
    FILE *access_log;              /* one JSON line a request; NULL: none */
};

/* Binds (so that port conflicts are known before a model loads). E_ARG: options; E_IO: the address cannot be had. */
status http_server_create(const struct http_options *o, struct http_server **out, struct err *e);
void http_server_destroy(struct http_server **s);
uint16_t http_server_port(const struct http_server *s);
const char *http_server_address(const struct http_server *s);    /* "http://127.0.0.1:8000" */

/* The loop, until a drain has ended. SIGTERM and SIGINT: the life cycle of docs/http-api.md 3.6; SIGHUP: keys again.
 * Returns 0 when every connection came to its end, if only by the error that `expired` below gave it; 1 when a second
 * signal, or something that had not ended 6 s after `expired`, cut it short. */
int http_server_run(struct http_server *s);
/* As SIGTERM; from any thread or a signal handler. A second call is a second signal. */
void http_server_stop(struct http_server *s);
bool http_server_draining(const struct http_server *s);
/* Called on the loop: when the drain begins, and when its time is over (what still runs should end with an error). */
void http_server_on_drain(struct http_server *s, void (*begin)(void *self), void (*expired)(void *self), void *self);
/* Asked before the head hook of every route that is not while_draining: may refuse (not_ready, engine_dead). */
void http_server_set_gate(struct http_server *s, status (*gate)(void *self, struct err *e), void *self);
/* Reloads what SIGHUP reloads beside the keys. */
void http_server_on_hup(struct http_server *s, void (*hup)(void *self), void *self);

/* Run fn(arg) on the loop thread soon; from any thread. Order of one caller is kept. Never fails. */
void http_post(struct http_server *s, void (*fn)(void *arg), void *arg);

/* Run fn(arg) on the loop thread after `seconds`, once. Loop thread only. */
struct http_timer;
struct http_timer *http_after(struct http_server *s, double seconds, void (*fn)(void *arg), void *arg);
void http_timer_cancel(struct http_timer **t);

struct http_counts {
    uint64_t n_connections, n_streaming, spool_bytes;
    uint64_t n_requests, bytes_in, bytes_out;
    uint64_t gone_upload, gone_slow_reader;    /* departures that no handler saw */
};
void http_server_counts(const struct http_server *s, struct http_counts *out);
/* How often each (route, method, status) was answered, for the metrics; route: the pattern. */
void http_server_each_status(const struct http_server *s,
                             void (*fn)(void *self, const char *route, const char *method, int status, uint64_t n),
                             void *self);

/* ---- routes ----------------------------------------------------------------------------------------------- */

enum http_body {
    HTTP_BODY_NONE,                /* GET, DELETE, HEAD                                                         */
    HTTP_BODY_JSON,                /* application/json                                                          */
    HTTP_BODY_FORM                 /* multipart/form-data; application/json is taken as well                    */
};

struct http_route {
    const char *method;            /* "GET" also answers HEAD */
    const char *path;              /* "/v1/models/{id}": {id} is one piece, or several where it ends the pattern */
    enum http_body body;
    bool open;                     /* needs no key */
    bool while_draining;           /* answered during a drain and before the engine is ready (probes, metrics) */
    uint64_t max_body;             /* 0: the server's limit for its kind */
    /* May refuse before any byte of the body is read (queue full): E_ and tag as for http_reply_error. May be NULL. */
    status (*head)(void *self, struct http_request *r, struct err *e);
    void (*handle)(void *self, struct http_request *r);
    void *self;
};
/* Before http_server_run. The strings are borrowed. Both "/x" and "/x/" match. */
void http_route_add(struct http_server *s, const struct http_route *route);

/* ---- a request -------------------------------------------------------------------------------------------- */

struct http_server *http_request_server(const struct http_request *r);
const char *http_request_id(const struct http_request *r);               /* as sent back in x-request-id */
const char *http_request_method(const struct http_request *r);
const char *http_request_path(const struct http_request *r);             /* without query */
const char *http_request_route(const struct http_request *r);            /* the pattern that it matched */
const char *http_request_capture(const struct http_request *r);          /* what {id} matched, decoded; or NULL */
const char *http_request_query(const struct http_request *r, const char *key);   /* decoded; NULL: not there */
const char *http_request_header(const struct http_request *r, const char *lower_case_name);
const char *http_request_peer(const struct http_request *r);
const char *http_request_key(const struct http_request *r);              /* SHA-256 of the key, 64 digits; "" without keys */
double http_request_start(const struct http_request *r);                 /* clock_s() of the last byte of the body */

/* The JSON body, where there is one: n bytes, NUL-terminated, or mapped from the spool; NULL: there was none. */
const char *http_request_body(const struct http_request *r, size_t *n);

/* The parts of a form, in order. Files are in the spool: an open descriptor, moved to the caller by taking it. */
struct http_part {
    const char *name;              /* of the field */
    const char *filename;          /* NULL: a plain field */
    const char *content_type;      /* or NULL */
    const char *value;             /* plain: n bytes, NUL-terminated */
    uint64_t n;
    int fd;                        /* files: offset 0, read-only; -1 once taken */
    const char *digest;            /* files: SHA-256, 64 digits */
};
size_t http_request_n_parts(const struct http_request *r);
struct http_part *http_request_part(struct http_request *r, size_t i);
/* The first plain part of that name, or NULL. */
const struct http_part *http_request_field(struct http_request *r, const char *name);
int http_part_take(struct http_part *p);       /* the descriptor, now the caller's */

void *http_request_user(const struct http_request *r);
void http_request_set_user(struct http_request *r, void *user);
/* Told once if the client goes away before the reply is complete; `phase` is what was under way:
 * "upload" never (no handler ran), "wait" nothing sent yet, "stream", "slow_reader". */
void http_request_on_gone(struct http_request *r, void (*gone)(void *self, struct http_request *r, const char *phase),
                          void *self);
bool http_request_is_gone(const struct http_request *r);

struct http_request *http_ref(struct http_request *r);
void http_unref(struct http_request *r);

/* ---- replies (loop thread; exactly one of these chains for a request) --------------------------------------- */

/* A header of the reply; before the reply starts; from a head hook as well (its Retry-After is the one that counts). */
void http_reply_header(struct http_request *r, const char *name, const char *value);
/* json: a reference is stolen. */
void http_reply_json(struct http_request *r, int status, json_t *json);
void http_reply_bytes(struct http_request *r, int status, const char *content_type, const void *bytes, size_t n);
/* A file from its start, or the one range that the request asks for (206, 416); takes fd. */
void http_reply_file(struct http_request *r, int fd, uint64_t n, const char *content_type);

/* The OpenAI error object; status, headers and body follow from api/error.h. */
void http_reply_error(struct http_request *r, const struct err *e);

/* A stream: head now, then any number of writes, then end or abort. */
void http_stream_begin(struct http_request *r, int status, const char *content_type);
bool http_stream_begun(const struct http_request *r);
/* Copies. Output waits in memory up to 1 MiB above the socket's high water, then the reader counts as gone. */
void http_stream_write(struct http_request *r, const void *bytes, size_t n);
/* "data: " + the JSON in one line + "\n\n"; json: a reference is stolen. */
void http_stream_event(struct http_request *r, json_t *json);
/* ": TEXT\n\n" */
void http_stream_comment(struct http_request *r, const char *text);
void http_stream_end(struct http_request *r);
/* The connection is cut so that no client takes the body for complete; buffered bytes are sent first. */
void http_stream_abort(struct http_request *r);

#endif
