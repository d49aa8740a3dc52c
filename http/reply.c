/* http/reply.c - what goes out: whole replies, files, streams, errors. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/error.h"
#include "base/mem.h"
#include "http/event.h"
#include "http/internal.h"

static const char *reason(int code)
{
    static const struct { int code; const char *text; } TEXT[] = {
        { 200, "OK" }, { 201, "Created" }, { 204, "No Content" }, { 206, "Partial Content" }, { 304, "Not Modified" },
        { 400, "Bad Request" }, { 401, "Unauthorized" }, { 403, "Forbidden" }, { 404, "Not Found" },
        { 405, "Method Not Allowed" }, { 408, "Request Timeout" }, { 409, "Conflict" }, { 411, "Length Required" },
        { 413, "Content Too Large" }, { 415, "Unsupported Media Type" }, { 416, "Range Not Satisfiable" },
        { 429, "Too Many Requests" }, { 431, "Request Header Fields Too Large" }, { 500, "Internal Server Error" },
        { 502, "Bad Gateway" }, { 503, "Service Unavailable" }, { 504, "Gateway Timeout" },
    };
    for (size_t i = 0; i < sizeof TEXT / sizeof *TEXT; i++)
        if (TEXT[i].code == code) return TEXT[i].text;
    return "Status";
}

void http_reply_header(struct http_request *r, const char *name, const char *value)
{
    if (r->headers == NULL) r->headers = evbuffer_new();
    evbuffer_add_printf(r->headers, "%s: ", name);
    /* What ends a line or is no text at all never gets out. */
    for (const char *p = value; *p; p++)
        if ((unsigned char)*p >= 0x20 && *p != 0x7f) evbuffer_add(r->headers, p, 1);
    evbuffer_add(r->headers, "\r\n", 2);
}

static bool can_reply(const struct http_request *r)
{
    assert(!r->complete || r->connection == NULL);
    return r->connection != NULL && !r->complete;
}

/* length < 0: a stream. */
static void begin(struct http_request *r, int code, const char *type, int64_t length)
{
    struct connection *c = r->connection;
    struct http_server *s = r->server;
    char date[40];
    const time_t now = time(NULL);
    struct tm utc;
    assert(r->status == 0);
    r->status = code;
    gmtime_r(&now, &utc);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &utc);
    if (!r->head.keep_alive || s->phase >= DRAINING || c->n_requests >= REQUESTS_PER_CONNECTION || c->peer_shut)
        r->close = true;
    r->chunked = length < 0 && r->head.minor == 1;
    if (length < 0 && !r->chunked) r->close = true;

    struct evbuffer *out = evbuffer_new();
    evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\n", code, reason(code), date);
    if (type) evbuffer_add_printf(out, "Content-Type: %s\r\nX-Content-Type-Options: nosniff\r\n", type);
    if (length >= 0 && code != 204 && code != 304) evbuffer_add_printf(out, "Content-Length: %lld\r\n", (long long)length);
    if (r->chunked) evbuffer_add_printf(out, "Transfer-Encoding: chunked\r\n");
    evbuffer_add_printf(out, "x-request-id: %s\r\n", r->id);
    if (r->headers) evbuffer_add_buffer(out, r->headers);
    evbuffer_add_printf(out, "Connection: %s\r\n\r\n", r->close ? "close" : "keep-alive");
    const size_t n = evbuffer_get_length(out);
    connection_write(c, evbuffer_pullup(out, -1), n);
    evbuffer_free(out);
    r->bytes_out += n;
}

/* After this the connection goes on with the next request, or closes. */
static void complete(struct http_request *r)
{
    r->complete = true;
    if (r->streaming) r->server->counts.n_streaming--;
    r->streaming = false;
    access_log(r, r->status);
    connection_reply_done(r->connection);
}

void http_reply_bytes(struct http_request *r, int code, const char *type, const void *bytes, size_t n)
{
    if (!can_reply(r)) return;
    begin(r, code, type, (int64_t)n);
    if (n && !r->head_only) {
        connection_write(r->connection, bytes, n);
        r->bytes_out += n;
    }
    complete(r);
}

void http_reply_json(struct http_request *r, int code, json_t *json)
{
    if (can_reply(r)) {
        char *text = json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(15));
        if (text == NULL) abort();
        http_reply_bytes(r, code, "application/json", text, strlen(text));
        free(text);
    }
    json_decref(json);
}

void http_reply_error(struct http_request *r, const struct err *e)
{
    if (!can_reply(r)) return;
    const struct api_error w = api_error_of(e);
    char seconds[16];
    if (w.status == 401) http_reply_header(r, "WWW-Authenticate", "Bearer");
    /* A head hook that knows better when to come back has said so. */
    if (w.retry_after && (r->headers == NULL || evbuffer_search(r->headers, "Retry-After: ", 13, NULL).pos < 0)) {
        snprintf(seconds, sizeof seconds, "%d", w.retry_after);
        http_reply_header(r, "Retry-After", seconds);
    }
    if (w.no_retry) http_reply_header(r, "x-should-retry", "false");
    http_reply_json(r, w.status, api_error_json(e));
}

/* ---- streams ---------------------------------------------------------------------------------------------- */

void http_stream_begin(struct http_request *r, int code, const char *type)
{
    if (!can_reply(r)) return;
    if (strncmp(type, "text/event-stream", 17) == 0) {
        http_reply_header(r, "Cache-Control", "no-cache");
        http_reply_header(r, "X-Accel-Buffering", "no");
    }
    begin(r, code, type, -1);
    r->streaming = true;
    r->server->counts.n_streaming++;
}

bool http_stream_begun(const struct http_request *r) { return r->status != 0; }

static void gone_slow(void *arg)
{
    struct http_request *r = arg;
    if (r->connection) connection_depart(r->connection, "slow_reader");
    http_unref(r);
}

void http_stream_write(struct http_request *r, const void *bytes, size_t n)
{
    if (!can_reply(r) || !r->streaming || n == 0 || r->head_only || r->connection->slow) return;
    struct connection *c = r->connection;
    char size[24];
    const int n_size = r->chunked ? snprintf(size, sizeof size, "%zx\r\n", n) : 0;
    /* A reader that leaves this much unread is gone. It is told from the loop, not from inside the writer's call. */
    if (evbuffer_get_length(c->ring) + n > RING_MAX) {
        if (!c->slow) http_post(r->server, gone_slow, http_ref(r));
        c->slow = true;
        return;
    }
    if (n_size) connection_write(c, size, (size_t)n_size);
    connection_write(c, bytes, n);
    if (n_size) connection_write(c, "\r\n", 2);
    r->bytes_out += n;
}

void http_stream_event(struct http_request *r, json_t *json)
{
    if (can_reply(r)) {
        size_t n;
        char *event = event_of_json(json, &n);
        http_stream_write(r, event, n);
        free(event);
    }
    json_decref(json);
}

void http_stream_comment(struct http_request *r, const char *text)
{
    char line[256];
    http_stream_write(r, line, event_comment(text, line, sizeof line));
}

void http_stream_end(struct http_request *r)
{
    if (!can_reply(r) || !r->streaming) return;
    if (r->chunked && !r->head_only) connection_write(r->connection, "0\r\n\r\n", 5);
    complete(r);
}

void http_stream_abort(struct http_request *r)
{
    if (!can_reply(r)) return;
    /* A chunked body without its last chunk is seen to be cut, and so is one that is shorter than its length. */
    r->connection->reset = r->streaming && !r->chunked;
    r->close = true;
    complete(r);
}

/* ---- files ------------------------------------------------------------------------------------------------ */

struct file_reply { int fd; uint64_t offset, left; bool reading; };

void reply_file_free(struct http_request *r)
{
    if (r->file_reply == NULL) return;
    close(r->file_reply->fd);
    free(r->file_reply);
    r->file_reply = NULL;
}

static void piece_read(void *self, const char *bytes, int64_t got)
{
    struct http_request *r = self;
    struct file_reply *f = r->file_reply;
    f->reading = false;
    if (r->connection && got <= 0) {
        http_stream_abort(r);
    } else if (r->connection) {
        connection_write(r->connection, bytes, (size_t)got);
        r->bytes_out += (uint64_t)got;
        f->offset += (uint64_t)got;
        f->left -= (uint64_t)got;
        if (f->left == 0) complete(r);
        else reply_file_more(r);
    }
    http_unref(r);
}

void reply_file_more(struct http_request *r)
{
    struct file_reply *f = r->file_reply;
    if (f == NULL || f->reading || f->left == 0 || connection_backlog(r->connection) >= OUTPUT_HIGH) return;
    f->reading = true;
    spool_read(r->server->spool, f->fd, f->offset, f->left < OUTPUT_HIGH ? (size_t)f->left : OUTPUT_HIGH, piece_read,
               http_ref(r));
}

/* "bytes=a-b", "bytes=a-", "bytes=-n": 1, and *from, *n; 0: none that we know, all is sent; -1: outside the file. */
static int read_range(const char *s, uint64_t size, uint64_t *from, uint64_t *n)
{
    if (s == NULL || strncmp(s, "bytes=", 6) != 0) return 0;
    s += 6;
    char *end;
    const bool suffix = *s == '-';
    if (suffix) s++;
    if (strspn(s, "0123456789") == 0 || strspn(s, "0123456789") > 18) return 0;
    const uint64_t a = strtoull(s, &end, 10);
    uint64_t last = size ? size - 1 : 0;
    if (suffix) {
        if (*end != '\0') return 0;
        *n = a < size ? a : size;
        *from = size - *n;
        return *n ? 1 : -1;
    }
    if (*end++ != '-') return 0;
    if (*end) {
        const size_t digits = strspn(end, "0123456789");
        if (digits == 0 || digits > 18 || end[digits]) return 0;
        const uint64_t b = strtoull(end, NULL, 10);
        if (b < a) return 0;
        if (b < last) last = b;
    }
    if (a >= size) return -1;
    *from = a;
    *n = last - a + 1;
    return 1;
}

void http_reply_file(struct http_request *r, int fd, uint64_t n, const char *type)
{
    uint64_t from = 0, count = n;
    char range[80];
    if (!can_reply(r)) {
        close(fd);
        return;
    }
    http_reply_header(r, "Accept-Ranges", "bytes");
    const int found = read_range(reader_header(&r->head, "range"), n, &from, &count);
    if (found < 0) {
        struct err e;
        err_set(&e, E_ARG, "The file has %llu bytes; the range that was asked for is outside of it.", (unsigned long long)n);
        snprintf(range, sizeof range, "bytes */%llu", (unsigned long long)n);
        http_reply_header(r, "Content-Range", range);
        http_reply_json(r, 416, api_error_json(&e));
        close(fd);
        return;
    }
    if (found) {
        snprintf(range, sizeof range, "bytes %llu-%llu/%llu", (unsigned long long)from,
                 (unsigned long long)(from + count - 1), (unsigned long long)n);
        http_reply_header(r, "Content-Range", range);
    }
    begin(r, found ? 206 : 200, type, (int64_t)count);
    if (r->head_only || count == 0) {
        close(fd);
        complete(r);
        return;
    }
    r->file_reply = mem_must(1, sizeof *r->file_reply);
    *r->file_reply = (struct file_reply){ .fd = fd, .offset = from, .left = count };
    reply_file_more(r);
}
