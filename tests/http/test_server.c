/* The server on real sockets. Goal: what docs/http-api.md 2 and 3 promise of the transport. Method: for each test a server
 * of its own on a free port, its loop in a thread, and raw clients that send exactly the bytes that the test names;
 * time limits are shortened, never waited out. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/clock.h"
#include "http/server.h"
#include "media/digest.h"

#define H "Host: localhost\r\n"
#define JSON "Content-Type: application/json\r\n"

/* ---- the server under test -------------------------------------------------------------------------------- */

static struct {
    struct http_server *server;
    pthread_t thread;
    int exit_code;
    bool joined;
    char log[64], uds[64];
    FILE *log_file;
    atomic_int n_held, n_handled;
    _Atomic(struct http_request *) held;
    char gone[32];                 /* phase of the last departure */
    atomic_int n_gone;
    atomic_int n_begun, n_expired; /* drain hooks */
    atomic_int refuse;             /* what the gate says */
} t;

static void get_ok(void *self, struct http_request *r)
{
    (void)self;
    t.n_handled++;
    http_reply_json(r, 200, json_pack("{s:s?,s:s?,s:s,s:s}", "capture", http_request_capture(r), "q", http_request_query(r, "q"), "key",
                                      http_request_key(r), "path", http_request_path(r)));
}

static void post_json(void *self, struct http_request *r)
{
    (void)self;
    size_t n;
    const char *body = http_request_body(r, &n);
    uint64_t sum = 0;
    for (size_t i = 0; body && i < n; i++) sum = sum * 31 + (unsigned char)body[i];
    t.n_handled++;
    http_reply_json(r, 200, json_pack("{s:I,s:I,s:b}", "n", (json_int_t)n, "sum", (json_int_t)(sum & 0xffffffff), "there", body != NULL));
}

static void post_form(void *self, struct http_request *r)
{
    (void)self;
    json_t *list = json_array();
    for (size_t i = 0; i < http_request_n_parts(r); i++) {
        struct http_part *p = http_request_part(r, i);
        json_t *j = json_pack("{s:s,s:s?,s:s?,s:I}", "name", p->name, "filename", p->filename, "type", p->content_type, "n",
                              (json_int_t)p->n);
        if (p->filename) {
            struct stat st;
            char first[8] = "";
            const int fd = http_part_take(p);
            assert_true(fstat(fd, &st) == 0 && (uint64_t)st.st_size == p->n && st.st_nlink == 0);
            assert_true(pread(fd, first, 7, 0) >= 0);
            assert_int_equal(write(fd, "x", 1), -1);
            json_object_set_new(j, "digest", json_string(p->digest));
            json_object_set_new(j, "first", json_string(first));
            close(fd);
        } else {
            json_object_set_new(j, "value", json_string(p->value));
        }
        json_array_append_new(list, j);
    }
    const struct http_part *field = http_request_field(r, "model");
    http_reply_json(r, 200, json_pack("{s:o,s:s?}", "parts", list, "model", field ? field->value : NULL));
}

static void on_gone(void *self, struct http_request *r, const char *phase)
{
    (void)self;
    snprintf(t.gone, sizeof t.gone, "%s", phase);
    assert_true(http_request_is_gone(r));
    struct http_request *held = atomic_exchange(&t.held, NULL);
    if (held) http_unref(held);
    t.n_gone++;
}

static void get_hold(void *self, struct http_request *r)
{
    (void)self;
    http_request_on_gone(r, on_gone, NULL);
    t.held = http_ref(r);
    t.n_held++;
    if (http_request_query(r, "stream")) {
        http_stream_begin(r, 200, "text/event-stream; charset=utf-8");
        http_stream_event(r, json_pack("{s:i}", "first", 1));
    }
}

/* Whatever is held gets its reply, from the loop. */
static void release(void *arg)
{
    (void)arg;
    struct http_request *r = atomic_exchange(&t.held, NULL);
    if (r == NULL) return;
    if (http_stream_begun(r)) {
        http_stream_comment(r, "pi\nng");
        http_stream_end(r);
    } else {
        http_reply_json(r, 200, json_pack("{s:b}", "released", 1));
    }
    http_unref(r);
}

struct flood { struct http_request *r; int left; size_t size; bool abort; };

static void flood_on(void *arg)
{
    struct flood *f = arg;
    char *block = malloc(f->size);
    memset(block, 'f', f->size);
    if (f->left-- > 0 && !http_request_is_gone(f->r)) {
        http_stream_write(f->r, block, f->size);
        http_after(http_request_server(f->r), 0.0005, flood_on, f);
    } else {
        if (f->abort) http_stream_abort(f->r);
        else http_stream_end(f->r);
        http_unref(f->r);
        free(f);
    }
    free(block);
}

static void get_flood(void *self, struct http_request *r)
{
    (void)self;
    struct flood *f = malloc(sizeof *f);
    const char *n = http_request_query(r, "n"), *size = http_request_query(r, "size");
    *f = (struct flood){ http_ref(r), n ? atoi(n) : 3, size ? (size_t)atol(size) : 10, http_request_query(r, "abort") != NULL };
    http_request_on_gone(r, on_gone, NULL);
    http_stream_begin(r, 200, "text/plain");
    flood_on(f);
}

static void answer_later(void *arg)
{
    struct http_request *r = arg;
    http_reply_bytes(r, 200, "text/plain", "later", 5);
    http_unref(r);
}

static void *other_thread(void *arg)
{
    struct http_request *r = arg;
    usleep(2000);
    http_post(http_request_server(r), answer_later, r);
    return NULL;
}

static void get_later(void *self, struct http_request *r)
{
    (void)self;
    pthread_t th;
    pthread_create(&th, NULL, other_thread, http_ref(r));
    pthread_detach(th);
}

#define FILE_BYTES 700000

static void get_file(void *self, struct http_request *r)
{
    (void)self;
    char path[] = "/tmp/omnidrop-test-XXXXXX";
    const int fd = mkstemp(path);
    unlink(path);
    char *bytes = malloc(FILE_BYTES);
    for (int i = 0; i < FILE_BYTES; i++) bytes[i] = (char)('a' + i % 26);
    assert_int_equal(write(fd, bytes, FILE_BYTES), FILE_BYTES);
    free(bytes);
    http_reply_file(r, fd, FILE_BYTES, "application/octet-stream");
}

static status head_busy(void *self, struct http_request *r, struct err *e)
{
    (void)self;
    if (http_request_header(r, "x-later")) http_reply_header(r, "Retry-After", "17");
    err_set(e, E_BUSY, "the queue is full");
    return err_tag(e, "queue_full", NULL);
}

static status gate(void *self, struct err *e)
{
    (void)self;
    if (!t.refuse) return OK;
    err_set(e, E_BUSY, "loading");
    return err_tag(e, "not_ready", NULL);
}

static void drain_begins(void *self) { (void)self; t.n_begun++; }

static void drain_expires(void *self)
{
    (void)self;
    t.n_expired++;
    struct http_request *r = atomic_exchange(&t.held, NULL);
    if (r == NULL) return;
    if (http_stream_begun(r)) {
        http_stream_event(r, json_pack("{s:{s:s}}", "error", "code", "draining"));
        http_stream_abort(r);
    } else {
        struct err e;
        err_set(&e, E_BUSY, "draining");
        err_tag(&e, "draining", NULL);
        http_reply_error(r, &e);
    }
    http_unref(r);
}

static void *loop(void *arg)
{
    (void)arg;
    t.exit_code = http_server_run(t.server);
    return NULL;
}

static void start(struct http_options o)
{
    struct err e;
    t.n_held = t.n_handled = t.n_gone = t.n_begun = t.n_expired = t.refuse = 0;
    t.held = NULL;
    t.gone[0] = '\0';
    t.exit_code = -1;
    t.joined = false;
    snprintf(t.log, sizeof t.log, "/tmp/omnidrop-test-log-%d", (int)getpid());
    t.log_file = o.access_log = fopen(t.log, "w+");
    if (o.port == 0 && o.uds == NULL) o.port_any = true;
    if (http_server_create(&o, &t.server, &e) != OK) fail_msg("%s", e.text);
    static const struct http_route ROUTES[] = {
        { "GET", "/ok", .handle = get_ok },
        { "GET", "/open", .open = true, .while_draining = true, .handle = get_ok },
        { "GET", "/models/{id}", .handle = get_ok },
        { "GET", "/files/{id}", .handle = get_ok },
        { "DELETE", "/files/{id}", .handle = get_ok },
        { "GET", "/files/{id}/content", .handle = get_file },
        { "POST", "/files/{id}/cancel", .handle = get_ok },
        { "POST", "/json", HTTP_BODY_JSON, .handle = post_json },
        { "POST", "/small", HTTP_BODY_JSON, .max_body = 1000, .handle = post_json },
        { "POST", "/busy", HTTP_BODY_JSON, .head = head_busy, .handle = post_json },
        { "POST", "/form", HTTP_BODY_FORM, .handle = post_form },
        { "GET", "/hold", .handle = get_hold },
        { "POST", "/hold", HTTP_BODY_JSON, .handle = get_hold },
        { "GET", "/flood", .handle = get_flood },
        { "GET", "/later", .handle = get_later },
        { "GET", "/file", .handle = get_file },
    };
    for (size_t i = 0; i < sizeof ROUTES / sizeof *ROUTES; i++) http_route_add(t.server, &ROUTES[i]);
    http_server_set_gate(t.server, gate, NULL);
    http_server_on_drain(t.server, drain_begins, drain_expires, NULL);
    pthread_create(&t.thread, NULL, loop, NULL);
}

static void join(void)
{
    if (t.joined) return;
    http_server_stop(t.server);
    pthread_join(t.thread, NULL);
    t.joined = true;
}

static int stop(void)
{
    join();
    struct http_counts c;
    http_server_counts(t.server, &c);
    assert_int_equal(c.n_streaming, 0);
    http_server_destroy(&t.server);
    fclose(t.log_file);
    unlink(t.log);
    return t.exit_code;
}

/* ---- clients ---------------------------------------------------------------------------------------------- */

struct client { int fd; SSL *ssl; char *buf; size_t n, cap; };

struct reply {
    int status;
    char head[4096];
    char *body;                    /* owned, NUL-terminated */
    size_t n;
    bool cut;                      /* the body ended before its framing said so */
};

static struct client dial(void)
{
    struct client c = { .fd = socket(t.uds[0] ? AF_UNIX : AF_INET, SOCK_STREAM, 0) };
    struct timeval tv = { 20, 0 };
    setsockopt(c.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    setsockopt(c.fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv);
    if (t.uds[0]) {
        struct sockaddr_un a = { .sun_family = AF_UNIX };
        snprintf(a.sun_path, sizeof a.sun_path, "%s", t.uds);
        assert_int_equal(connect(c.fd, (struct sockaddr *)&a, sizeof a), 0);
    } else {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(http_server_port(t.server)) };
        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        assert_int_equal(connect(c.fd, (struct sockaddr *)&a, sizeof a), 0);
    }
    return c;
}

static void hang_up(struct client *c)
{
    if (c->ssl) SSL_free(c->ssl);
    close(c->fd);
    free(c->buf);
    *c = (struct client){ .fd = -1 };
}

/* False: the server does not take it. */
static bool say_n(struct client *c, const void *bytes, size_t n)
{
    const char *p = bytes;
    while (n) {
        const ssize_t put = c->ssl ? SSL_write(c->ssl, p, (int)(n < 1 << 20 ? n : 1 << 20)) : send(c->fd, p, n, MSG_NOSIGNAL);
        if (put <= 0) return false;
        p += put;
        n -= (size_t)put;
    }
    return true;
}

static bool say(struct client *c, const char *text) { return say_n(c, text, strlen(text)); }

/* More bytes into the buffer; false: end of file, reset or 20 s of silence. */
static bool more(struct client *c)
{
    if (c->cap - c->n < 65536) c->buf = realloc(c->buf, c->cap = 2 * c->cap + 65536);
    const ssize_t got = c->ssl ? SSL_read(c->ssl, c->buf + c->n, 65536) : recv(c->fd, c->buf + c->n, 65536, 0);
    if (got <= 0) return false;
    c->n += (size_t)got;
    return true;
}

static void take(struct client *c, size_t n)
{
    memmove(c->buf, c->buf + n, c->n - n);
    c->n -= n;
}

static const char *header(const struct reply *r, const char *name)
{
    static char value[1024];
    const size_t n = strlen(name);
    for (const char *line = strstr(r->head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (strncasecmp(line + 2, name, n) == 0 && line[2 + n] == ':') {
            snprintf(value, sizeof value, "%.*s", (int)strcspn(line + 4 + n, "\r"), line + 4 + n);
            return value;
        }
    return NULL;
}

/* The next reply; head_only: of a HEAD. Interim 100s are kept in head_100. status 0: nothing came. */
static struct reply hear_as(struct client *c, bool head_only)
{
    struct reply r = { 0 };
    char *end;
    while ((end = c->n ? memmem(c->buf, c->n, "\r\n\r\n", 4) : NULL) == NULL)
        if (!more(c)) return r;
    const size_t n_head = (size_t)(end + 4 - c->buf);
    assert_true(n_head < sizeof r.head);
    memcpy(r.head, c->buf, n_head);
    take(c, n_head);
    assert_int_equal(sscanf(r.head, "HTTP/1.1 %d", &r.status), 1);
    const char *length = header(&r, "content-length");
    size_t want = length ? strtoul(length, NULL, 10) : 0;
    const char *coding = header(&r, "transfer-encoding");
    const bool chunked = coding != NULL;
    if (head_only || r.status == 204 || r.status == 100) {
        r.body = strdup("");
        return r;
    }
    r.body = malloc(1);
    if (chunked) {
        for (;;) {
            char *line;
            while ((line = c->n ? memmem(c->buf, c->n, "\r\n", 2) : NULL) == NULL && !r.cut) r.cut = !more(c);
            if (r.cut) break;
            const size_t size = strtoul(c->buf, NULL, 16), skip = (size_t)(line + 2 - c->buf);
            while (c->n < skip + size + 2 && !r.cut) r.cut = !more(c);
            if (r.cut) break;
            r.body = realloc(r.body, r.n + size + 1);
            memcpy(r.body + r.n, c->buf + skip, size);
            r.n += size;
            assert_memory_equal(c->buf + skip + size, "\r\n", 2);
            take(c, skip + size + 2);
            if (size == 0) break;
        }
    } else {
        if (length == NULL) while (more(c)) {}
        else while (c->n < want && more(c)) {}
        if (length == NULL || c->n < want) {
            r.cut = length != NULL;
            want = c->n;
        }
        r.body = realloc(r.body, want + 1);
        if (want) memcpy(r.body, c->buf, want);
        r.n = want;
        take(c, want);
    }
    r.body[r.n] = '\0';
    return r;
}

static struct reply hear(struct client *c) { return hear_as(c, false); }
static void forget(struct reply *r) { free(r->body); *r = (struct reply){ 0 }; }

/* Has the server closed, with nothing more said? */
static bool closed(struct client *c)
{
    while (c->n == 0 && more(c)) {}
    return c->n == 0;
}

/* One exchange on a connection of its own. */
static struct reply ask(const char *bytes)
{
    struct client c = dial();
    say(&c, bytes);
    struct reply r = hear(&c);
    hang_up(&c);
    return r;
}

#define EXPECT(r, code, wire_code) expect(&(r), code, wire_code, __LINE__)
static void expect(const struct reply *r, int code, const char *wire_code, int line)
{
    if (r->status != code) fail_msg("line %d: status %d, not %d: %s", line, r->status, code, r->body ? r->body : "");
    assert_non_null(header(r, "x-request-id"));
    if (wire_code == NULL) return;
    json_t *j = json_loads(r->body, 0, NULL), *e = json_object_get(j, "error");
    if (e == NULL) fail_msg("line %d: no error object: %s", line, r->body);
    assert_int_equal(json_object_size(e), 4);
    assert_true(json_is_string(json_object_get(e, "message")) && json_is_string(json_object_get(e, "type")));
    assert_non_null(json_object_get(e, "param"));
    const char *said = json_string_value(json_object_get(e, "code"));
    if (said == NULL || strcmp(said, wire_code) != 0) fail_msg("line %d: code %s, not %s", line, said, wire_code);
    assert_string_equal(header(r, "content-type"), "application/json");
    json_decref(j);
}

static void wait_for(atomic_int *counter, int n)
{
    for (int i = 0; i < 5000 && *counter < n; i++) usleep(1000);
    assert_true(*counter >= n);
}

static uint64_t count_fds(void)
{
    uint64_t n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

/* ---- tests ------------------------------------------------------------------------------------------------ */

static void test_strict(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    static const char *const ROWS[] = {
        "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "POST /json HTTP/1.1\r\n" H JSON "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "GET /ok HTTP/1.1\n" H "\r\n",
        "GET /ok HTTP/1.1\r\n\r\n",
        "GET /ok HTTP/1.1\r\n" H H "\r\n",
        "GET /ok HTTP/1.1\r\n" H "A: b\r\n c\r\n\r\n",
        "GET /ok HTTP/1.1\r\n" H "A : b\r\n\r\n",
        "GET /%00 HTTP/1.1\r\n" H "\r\n",
        "GET /models/%ff HTTP/1.1\r\n" H "\r\n",
        "GET /ok HTTP/2.0\r\n" H "\r\n",
        "\x16\x03\x01\x02 TLS to a plain port\r\n\r\n",
        "POST /json HTTP/1.1\r\n" H JSON "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        struct client c = dial();
        say(&c, ROWS[i]);
        struct reply r = hear(&c);
        EXPECT(r, 400, "invalid_http");
        const bool read_on = i == 9;           /* the head was whole and the next request is known to start there */
        assert_string_equal(header(&r, "connection"), read_on ? "keep-alive" : "close");
        if (!read_on) assert_true(closed(&c));
        forget(&r);
        hang_up(&c);
    }
    struct client c = dial();                  /* NUL cannot stand in a C string */
    say_n(&c, "GET /ok HTTP/1.1\r\n" H "A: \0\r\n\r\n", sizeof "GET /ok HTTP/1.1\r\n" H "A: \0\r\n\r\n" - 1);
    struct reply r = hear(&c);
    EXPECT(r, 400, "invalid_http");
    forget(&r);
    hang_up(&c);
    assert_int_equal(t.n_handled, 0);
    assert_int_equal(stop(), 0);
}

static void test_routes(void **state)
{
    (void)state;
    start((struct http_options){ .root_path = "/proxy/" });
    static const struct { const char *line; int status; const char *code, *capture; } ROWS[] = {
        { "GET /ok", 200, NULL, NULL }, { "GET /ok/", 200, NULL, NULL }, { "GET /proxy/ok", 200, NULL, NULL },
        { "GET /nothing", 404, "unknown_endpoint", NULL }, { "GET /okay", 404, "unknown_endpoint", NULL },
        { "GET /", 404, "unknown_endpoint", NULL }, { "GET /ok/x", 404, "unknown_endpoint", NULL },
        { "GET /models/org%2Fname", 200, NULL, "org/name" }, { "GET /models/org/name", 200, NULL, "org/name" },
        { "GET /models/a%2520b/", 200, NULL, "a%20b" }, { "GET /models/", 404, "unknown_endpoint", NULL },
        { "GET /files/a", 200, NULL, "a" }, { "DELETE /files/a", 200, NULL, "a" },
        { "GET /files/a/content", 200, NULL, NULL }, { "GET /files/a/cancel", 405, "method_not_allowed", NULL },
        { "GET /json", 405, "method_not_allowed", NULL }, { "PATCH /ok", 405, "method_not_allowed", NULL },
        { "GET http://localhost/ok", 200, NULL, NULL },
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        char text[256];
        snprintf(text, sizeof text, "%s HTTP/1.1\r\n" H "\r\n", ROWS[i].line);
        struct reply r = ask(text);
        if (r.status != ROWS[i].status) fail_msg("%s: %d", ROWS[i].line, r.status);
        EXPECT(r, ROWS[i].status, ROWS[i].code);
        if (ROWS[i].status == 405) assert_non_null(header(&r, "allow"));
        if (ROWS[i].capture) {
            json_t *j = json_loads(r.body, 0, NULL);
            assert_string_equal(json_string_value(json_object_get(j, "capture")), ROWS[i].capture);
            json_decref(j);
        }
        forget(&r);
    }
    struct reply r = ask("GET /json HTTP/1.1\r\n" H "\r\n");
    assert_string_equal(header(&r, "allow"), "POST, OPTIONS");
    forget(&r);
    r = ask("GET /ok?p&q=a%20b+c HTTP/1.1\r\n" H "x-request-id: mine-1\r\n\r\n");
    assert_non_null(strstr(r.body, "\"q\":\"a b c\""));
    assert_string_equal(header(&r, "x-request-id"), "mine-1");
    forget(&r);
    r = ask("GET /ok HTTP/1.1\r\n" H "x-request-id: not ok\r\n\r\n");
    assert_string_not_equal(header(&r, "x-request-id"), "not ok");
    forget(&r);
    assert_int_equal(stop(), 0);
}

static void test_versions(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client c = dial();
    say(&c, "GET /ok HTTP/1.0\r\n\r\n");
    struct reply r = hear(&c);
    EXPECT(r, 200, NULL);
    assert_string_equal(header(&r, "connection"), "close");
    assert_true(closed(&c));
    forget(&r);
    hang_up(&c);

    c = dial();                                /* a stream without chunks, ended by the end */
    say(&c, "GET /flood?n=3&size=10 HTTP/1.0\r\n\r\n");
    r = hear(&c);
    assert_null(header(&r, "transfer-encoding"));
    assert_int_equal(r.n, 30);
    forget(&r);
    hang_up(&c);

    c = dial();
    say(&c, "HEAD /ok HTTP/1.1\r\n" H "\r\nHEAD /flood HTTP/1.1\r\n" H "\r\nHEAD /file HTTP/1.1\r\n" H "\r\nGET /ok HTTP/1.1\r\n" H "\r\n");
    for (int i = 0; i < 4; i++) {
        r = hear_as(&c, i < 3);
        assert_int_equal(r.status, 200);
        if (i == 2) assert_int_equal(atoi(header(&r, "content-length")), FILE_BYTES);
        forget(&r);
    }
    hang_up(&c);
    assert_int_equal(stop(), 0);
}

static void test_keep_alive(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client c = dial();
    for (int i = 0; i < 1000; i++) {
        assert_true(say(&c, i % 2 ? "GET /ok HTTP/1.1\r\n" H "\r\n" : "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 2\r\n\r\n{}"));
        struct reply r = hear(&c);
        EXPECT(r, 200, NULL);
        assert_string_equal(header(&r, "connection"), i < 999 ? "keep-alive" : "close");
        forget(&r);
    }
    assert_true(closed(&c));
    hang_up(&c);
    assert_int_equal(t.n_handled, 1000);
    assert_int_equal(stop(), 0);
}

/* Many requests in one write; replies in order though some come later; errors without a body do not end it. */
static void test_pipeline(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client c = dial();
    for (int round = 0; round < 20; round++)
        say(&c, "GET /later HTTP/1.1\r\n" H "\r\nGET /ok?q=1 HTTP/1.1\r\n" H "\r\nGET /none HTTP/1.1\r\n" H "\r\n"
                "POST /json HTTP/1.1\r\n" H JSON "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
                "GET /flood HTTP/1.1\r\n" H "\r\nDELETE /files/x HTTP/1.1\r\n" H "Content-Length: 2\r\n\r\n{}");
    for (int round = 0; round < 20; round++) {
        static const char *const WANT[] = { "later", "\"q\":\"1\"", "unknown_endpoint", "\"n\":2", "ffffffffff", "\"capture\":\"x\"" };
        for (int i = 0; i < 6; i++) {
            struct reply r = hear(&c);
            if (r.body == NULL || strstr(r.body, WANT[i]) == NULL) fail_msg("round %d: %s, not %s", round, r.body, WANT[i]);
            forget(&r);
        }
    }
    hang_up(&c);
    assert_int_equal(stop(), 0);
}

static void test_bodies(void **state)
{
    (void)state;
    start((struct http_options){ .max_json_body = 8 << 20, .max_upload = 8 << 20 });
    static const struct { const char *text; int status; const char *code; } ROWS[] = {
        { "POST /json HTTP/1.1\r\n" H JSON "\r\n", 411, "length_required" },
        { "POST /json HTTP/1.1\r\n" H "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_content_type" },
        { "POST /json HTTP/1.1\r\n" H "Content-Length: 2\r\n\r\n{}", 415, "unsupported_content_type" },
        { "POST /json HTTP/1.1\r\n" H "Content-Type: application/jsonx\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_content_type" },
        { "POST /json HTTP/1.1\r\n" H JSON "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_content_type" },
        { "POST /json HTTP/1.1\r\n" H "Content-Type: application/json; charset=latin1\r\nContent-Length: 2\r\n\r\n{}",
          415, "unsupported_content_type" },
        { "POST /json HTTP/1.1\r\n" H "Content-Type: Application/JSON; charset=\"UTF-8\"\r\nContent-Length: 2\r\n\r\n{}", 200, NULL },
        { "POST /json HTTP/1.1\r\n" H JSON "Content-Encoding: identity\r\nContent-Length: 0\r\n\r\n", 200, NULL },
        { "POST /json HTTP/1.1\r\n" H "Content-Type: multipart/form-data; boundary=a\r\nContent-Length: 2\r\n\r\n{}",
          415, "unsupported_content_type" },
        { "POST /form HTTP/1.1\r\n" H "Content-Type: multipart/form-data\r\nContent-Length: 2\r\n\r\n{}", 400, "invalid_multipart" },
        { "POST /form HTTP/1.1\r\n" H "Content-Type: multipart/form-data; boundary=a\r\nContent-Length: 3\r\n\r\n--a",
          400, "invalid_multipart" },
        { "POST /form HTTP/1.1\r\n" H JSON "Content-Length: 2\r\n\r\n{}", 200, NULL },
        { "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 8388609\r\n\r\n", 413, "request_too_large" },
        { "POST /small HTTP/1.1\r\n" H JSON "Content-Length: 1001\r\n\r\n", 413, "request_too_large" },
        { "GET /ok HTTP/1.1\r\n" H "Content-Length: 70000\r\n\r\n", 413, "request_too_large" },
        { "POST /busy HTTP/1.1\r\n" H JSON "Content-Length: 1000\r\n\r\n", 429, "queue_full" },
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        struct reply r = ask(ROWS[i].text);
        EXPECT(r, ROWS[i].status, ROWS[i].code);
        if (ROWS[i].status == 429) assert_in_range(atoi(header(&r, "retry-after")), 1, 60);
        forget(&r);
    }
    /* Around the border between memory and spool, with a length and chunked. */
    static const size_t SIZES[] = { 1, 4095, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20 };
    char *body = malloc(4 << 20), head[256];
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++)
        for (int chunked = 0; chunked < 2; chunked++) {
            const size_t n = SIZES[i];
            uint64_t sum = 0;
            for (size_t k = 0; k < n; k++) {
                body[k] = (char)(k * 7 + k / 255);
                sum = sum * 31 + (unsigned char)body[k];
            }
            struct client c = dial();
            if (chunked) snprintf(head, sizeof head, "POST /json HTTP/1.1\r\n" H JSON "Transfer-Encoding: chunked\r\n\r\n%zx\r\n", n);
            else snprintf(head, sizeof head, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: %zu\r\n\r\n", n);
            say(&c, head);
            say_n(&c, body, n);
            if (chunked) say(&c, "\r\n0\r\n\r\n");
            struct reply r = hear(&c);
            EXPECT(r, 200, NULL);
            json_t *j = json_loads(r.body, 0, NULL);
            assert_int_equal(json_integer_value(json_object_get(j, "n")), n);
            assert_int_equal(json_integer_value(json_object_get(j, "sum")), sum & 0xffffffff);
            json_decref(j);
            forget(&r);
            hang_up(&c);
        }
    free(body);
    struct http_counts counts;
    http_server_counts(t.server, &counts);
    assert_int_equal(counts.spool_bytes, 0);
    assert_int_equal(stop(), 0);
}

#define FORM_HEAD "POST /form HTTP/1.1\r\n" H "Content-Type: multipart/form-data; boundary=bb\r\n"

static void test_form(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    static const char BODY[] = "--bb\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ntiny\r\n"
                               "--bb\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n"
                               "Content-Type: audio/wav\r\n\r\nabc\r\n--bb\r\n"
                               "Content-Disposition: form-data; name=\"e\"; filename=\"empty\"\r\n\r\n\r\n--bb--\r\n";
    char head[256];
    struct client c = dial();
    snprintf(head, sizeof head, FORM_HEAD "Content-Length: %zu\r\n\r\n", sizeof BODY - 1);
    say(&c, head);
    for (size_t i = 0; i < sizeof BODY - 1; i++) say_n(&c, BODY + i, 1);
    struct reply r = hear(&c);
    EXPECT(r, 200, NULL);
    assert_non_null(strstr(r.body, "\"model\":\"tiny\""));
    assert_non_null(strstr(r.body, "\"filename\":\"a.wav\",\"type\":\"audio/wav\",\"n\":3,"
                                   "\"digest\":\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",\"first\":\"abc\""));
    assert_non_null(strstr(r.body, "\"n\":0,\"digest\":\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\""));
    forget(&r);
    hang_up(&c);

    c = dial();                                /* two files of one name */
    say(&c, FORM_HEAD "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 2; i++) say(&c, "44\r\n--bb\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x\"\r\n\r\nxy\r\n\r\n");
    r = hear(&c);
    EXPECT(r, 400, "invalid_multipart");
    forget(&r);
    hang_up(&c);

    c = dial();                                /* a million parts */
    say(&c, FORM_HEAD "Content-Length: 60000000\r\n\r\n");
    for (int i = 0; i < 100; i++) say(&c, "--bb\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\nxy\r\n");
    r = hear(&c);
    EXPECT(r, 400, "invalid_multipart");
    forget(&r);
    hang_up(&c);

    c = dial();                                /* a field that is too large */
    say(&c, FORM_HEAD "Content-Length: 2000000\r\n\r\n--bb\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\n");
    char *fill = calloc(1, 1 << 20);
    say_n(&c, fill, 1 << 20);
    say_n(&c, fill, 1 << 19);
    free(fill);
    r = hear(&c);
    EXPECT(r, 413, "request_too_large");
    assert_non_null(strstr(r.body, "\"param\":\"prompt\""));
    forget(&r);
    hang_up(&c);
    assert_int_equal(stop(), 0);
}

/* A client that sends all before it reads gets to read its 413, though it sends 60 MiB more than are wanted. */
static void test_too_large_is_readable(void **state)
{
    (void)state;
    start((struct http_options){ .max_upload = 1 << 20 });
    char *block = calloc(1, 1 << 20);
    for (int chunked = 0; chunked < 2; chunked++) {
        struct client c = dial();
        if (chunked) say(&c, FORM_HEAD "Transfer-Encoding: chunked\r\n\r\n3C00000\r\n--bb\r\n"
                              "Content-Disposition: form-data; name=f; filename=f\r\n\r\n");
        else say(&c, FORM_HEAD "Content-Length: 62914560\r\n\r\n");
        for (int i = 0; i < 59; i++) assert_true(say_n(&c, block, 1 << 20));
        struct reply r = hear(&c);
        EXPECT(r, 413, "request_too_large");
        assert_string_equal(header(&r, "connection"), "close");
        forget(&r);
        hang_up(&c);
    }
    free(block);
    assert_int_equal(stop(), 0);
}

static void test_expect(void **state)
{
    (void)state;
    start((struct http_options){ .max_json_body = 1000 });
    struct client c = dial();
    say(&c, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    struct reply r = hear(&c);
    assert_int_equal(r.status, 100);
    forget(&r);
    say(&c, "{}");
    r = hear(&c);
    EXPECT(r, 200, NULL);
    forget(&r);
    hang_up(&c);
    static const struct { const char *text; int status; } ROWS[] = {
        { "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 2000\r\nExpect: 100-continue\r\n\r\n", 413 },
        { "POST /nothing HTTP/1.1\r\n" H JSON "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n", 404 },
        { "POST /busy HTTP/1.1\r\n" H JSON "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n", 429 },
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        r = ask(ROWS[i].text);
        assert_int_equal(r.status, ROWS[i].status);
        forget(&r);
    }
    assert_int_equal(stop(), 0);
}

static void test_keys(void **state)
{
    (void)state;
    char path[] = "/tmp/omnidrop-keys-XXXXXX";
    const int fd = mkstemp(path);
    assert_int_equal(write(fd, "# keys\nfrom-file  # one\n\n", 25), 25);
    start((struct http_options){ .api_key = (const char *const[]){ "one", "two" }, .n_api_key = 2, .api_key_file = path });
    static const struct { const char *auth; int status; } ROWS[] = {
        { "", 401 }, { "Authorization: Bearer wrong\r\n", 401 }, { "Authorization: Basic one\r\n", 401 },
        { "Authorization: Bearer \r\n", 401 }, { "Authorization: Bearer on\r\n", 401 }, { "Authorization: one\r\n", 401 },
        { "Authorization: Bearer one\r\n", 200 }, { "authorization: bearer  two\r\n", 200 }, { "Authorization: Bearer from-file\r\n", 200 },
    };
    char text[512], first[512] = "";
    struct reply r;
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        snprintf(text, sizeof text, "GET /ok HTTP/1.1\r\n" H "%s\r\n", ROWS[i].auth);
        r = ask(text);
        EXPECT(r, ROWS[i].status, ROWS[i].status == 401 ? "invalid_api_key" : NULL);
        if (ROWS[i].status == 401) {
            assert_string_equal(header(&r, "www-authenticate"), "Bearer");
            if (first[0]) assert_string_equal(r.body, first);
            else snprintf(first, sizeof first, "%s", r.body);
        } else {
            assert_null(strstr(r.body, "\"key\":\"\""));
        }
        forget(&r);
    }
    /* Before a byte of the body, and before it is told which paths there are. */
    r = ask("POST /json HTTP/1.1\r\n" H JSON "Content-Length: 100\r\nExpect: 100-continue\r\n\r\n");
    EXPECT(r, 401, "invalid_api_key");
    forget(&r);
    r = ask("GET /nothing HTTP/1.1\r\n" H "\r\n");
    EXPECT(r, 401, "invalid_api_key");
    forget(&r);
    r = ask("GET /open HTTP/1.1\r\n" H "\r\n");
    EXPECT(r, 200, NULL);
    forget(&r);
    r = ask("GET /ok HTTP/1.1\r\nHost: anything.example\r\nAuthorization: Bearer one\r\n\r\n");
    EXPECT(r, 200, NULL);
    forget(&r);
    /* New keys after SIGHUP; a broken file changes nothing. */
    assert_true(ftruncate(fd, 0) == 0 && pwrite(fd, "newer\n", 6, 0) == 6);
    kill(getpid(), SIGHUP);
    for (int i = 0; i < 200; i++) {
        r = ask("GET /ok HTTP/1.1\r\n" H "Authorization: Bearer newer\r\n\r\n");
        const int got = r.status;
        forget(&r);
        if (got == 200) break;
        usleep(10000);
        assert_true(i < 199);
    }
    r = ask("GET /ok HTTP/1.1\r\n" H "Authorization: Bearer from-file\r\n\r\n");
    EXPECT(r, 401, "invalid_api_key");
    forget(&r);
    assert_int_equal(stop(), 0);
    close(fd);
    unlink(path);
}

static void test_hosts(void **state)
{
    (void)state;
    start((struct http_options){ .allowed_host = (const char *const[]){ "my.example" }, .n_allowed_host = 1,
                                 .allowed_origin = (const char *const[]){ "https://page.example" }, .n_allowed_origin = 1 });
    static const struct { const char *headers; int status; const char *code; } ROWS[] = {
        { "Host: localhost:1234\r\n", 200, NULL }, { "Host: LOCALHOST.\r\n", 200, NULL }, { "Host: 127.0.0.1\r\n", 200, NULL },
        { "Host: 127.9.9.9:80\r\n", 200, NULL }, { "Host: [::1]:8000\r\n", 200, NULL }, { "Host: a.localhost\r\n", 200, NULL },
        { "Host: my.example:99\r\n", 200, NULL }, { "Host: evil.example\r\n", 403, "host_not_allowed" },
        { "Host: localhost.evil.example\r\n", 403, "host_not_allowed" }, { "Host: 127.0.0.1.evil.example\r\n", 403, "host_not_allowed" },
        { "Host: \r\n", 403, "host_not_allowed" }, { H "Origin: https://page.example\r\n", 200, NULL },
        { H "Origin: http://localhost\r\n", 200, NULL },
        { H "Origin: https://other.example\r\n", 403, "origin_not_allowed" }, { H "Origin: null\r\n", 403, "origin_not_allowed" },
    };
    char text[256];
    struct reply r;
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        snprintf(text, sizeof text, "GET /ok HTTP/1.1\r\n%s\r\n", ROWS[i].headers);
        r = ask(text);
        if (r.status != ROWS[i].status) fail_msg("%s: %d", ROWS[i].headers, r.status);
        EXPECT(r, ROWS[i].status, ROWS[i].code);
        forget(&r);
    }
    r = ask("GET /ok HTTP/1.1\r\n" H "Origin: https://page.example\r\n\r\n");
    assert_string_equal(header(&r, "access-control-allow-origin"), "https://page.example");
    assert_null(header(&r, "access-control-allow-credentials"));
    forget(&r);
    r = ask("OPTIONS /json HTTP/1.1\r\n" H "Origin: https://page.example\r\nAccess-Control-Request-Method: POST\r\n"
            "Access-Control-Request-Headers: Content-Type, authorization, x-evil, X-Stainless-OS\r\n\r\n");
    EXPECT(r, 204, NULL);
    assert_string_equal(header(&r, "access-control-allow-methods"), "GET, POST, DELETE, OPTIONS");
    assert_string_equal(header(&r, "access-control-allow-headers"), "Content-Type, authorization, X-Stainless-OS");
    forget(&r);
    r = ask("OPTIONS /json HTTP/1.1\r\n" H "Origin: https://other.example\r\nAccess-Control-Request-Method: POST\r\n\r\n");
    EXPECT(r, 403, "origin_not_allowed");
    assert_null(header(&r, "access-control-allow-origin"));
    forget(&r);
    r = ask("OPTIONS * HTTP/1.1\r\n" H "\r\n");
    EXPECT(r, 204, NULL);
    forget(&r);
    assert_int_equal(stop(), 0);

    struct err e;
    struct http_server *s = NULL;
    assert_int_equal(http_server_create(&(struct http_options){ .host = "0.0.0.0", .port_any = true }, &s, &e), E_ARG);
    assert_non_null(strstr(e.text, "--api-key"));
}

static void test_time_limits(void **state)
{
    (void)state;
    start((struct http_options){ .header_s = 0.3, .idle_s = 0.3, .body_grace_s = 0.3, .body_stall_s = 0.6, .body_rate = 100000 });
    /* A header that trickles: closed after 0.3 s though bytes keep coming. */
    struct client c = dial();
    const double began = clock_s();
    for (int i = 0; i < 200 && say_n(&c, "GET /ok HTTP/1.1\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + i % 60, 1); i++) {
        struct pollfd p = { .fd = c.fd, .events = POLLIN };
        if (poll(&p, 1, 10) == 1) break;
    }
    struct reply r = hear(&c);
    EXPECT(r, 408, "request_timeout");
    assert_true(clock_s() - began > 0.25 && clock_s() - began < 2);
    assert_true(closed(&c));
    forget(&r);
    hang_up(&c);
    /* Nothing at all: closed without a word. */
    c = dial();
    assert_true(closed(&c));
    hang_up(&c);
    c = dial();
    say(&c, "GET /ok HTTP/1.1\r\n" H "\r\n");
    r = hear(&c);
    EXPECT(r, 200, NULL);
    forget(&r);
    assert_true(closed(&c));
    hang_up(&c);
    /* A body under the rate, and one that stalls. */
    c = dial();
    say(&c, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 100000\r\n\r\n");
    for (int i = 0; i < 100 && say_n(&c, "x", 1); i++) {
        struct pollfd p = { .fd = c.fd, .events = POLLIN };
        if (poll(&p, 1, 10) == 1) break;
    }
    r = hear(&c);
    EXPECT(r, 408, "request_timeout");
    forget(&r);
    hang_up(&c);
    c = dial();
    char *much = calloc(1, 900000);
    say(&c, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 1000000\r\n\r\n");
    say_n(&c, much, 900000);                   /* enough for 9 s at the rate, so that only the stall can end it */
    free(much);
    const double stalled = clock_s();
    r = hear(&c);
    EXPECT(r, 408, "request_timeout");
    assert_true(clock_s() - stalled < 4);
    forget(&r);
    hang_up(&c);
    /* A handler may take as long as it likes. */
    c = dial();
    say(&c, "GET /hold HTTP/1.1\r\n" H "\r\n");
    wait_for(&t.n_held, 1);
    usleep(900000);
    assert_int_equal(t.n_gone, 0);
    http_post(t.server, release, NULL);
    r = hear(&c);
    EXPECT(r, 200, NULL);
    forget(&r);
    hang_up(&c);
    assert_int_equal(stop(), 0);
}

static void test_header_limits(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client c = dial();
    char line[1024];
    say(&c, "GET /ok HTTP/1.1\r\n" H);
    memset(line, 'x', sizeof line);
    memcpy(line, "x: ", 3);
    memcpy(line + sizeof line - 2, "\r\n", 2);
    for (int i = 0; i < 40; i++) say_n(&c, line, sizeof line);
    say(&c, "\r\n");
    struct reply r = hear(&c);
    EXPECT(r, 431, "headers_too_large");
    assert_true(closed(&c));
    forget(&r);
    hang_up(&c);
    assert_int_equal(stop(), 0);
}

/* Departures in each phase, by closing and by closing one half, also behind bytes that nobody reads. */
static void test_departures(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    int n = 0;
    char junk[18000];              /* five of them: over the input's high water, under it and the window together, */
    memset(junk, 'x', sizeof junk);  /* because an end of file behind a full window has not arrived */
    for (int streaming = 0; streaming < 2; streaming++)
        for (int half = 0; half < 2; half++)
            for (int behind = 0; behind < 2; behind++) {
                struct client c = dial();
                say(&c, streaming ? "GET /hold?stream=1 HTTP/1.1\r\n" H "\r\n" : "GET /hold HTTP/1.1\r\n" H "\r\n");
                wait_for(&t.n_held, ++n);
                for (int i = 0; behind && i < 5; i++) send(c.fd, junk, sizeof junk, MSG_DONTWAIT | MSG_NOSIGNAL);
                const double left = clock_s();
                if (half) shutdown(c.fd, SHUT_WR);
                else hang_up(&c);
                wait_for(&t.n_gone, n);
                assert_true(clock_s() - left < 0.5);
                assert_string_equal(t.gone, streaming ? "stream" : "wait");
                if (half) hang_up(&c);
            }
    /* With a reset. */
    struct client c = dial();
    const struct linger now = { 1, 0 };
    say(&c, "GET /hold HTTP/1.1\r\n" H "\r\n");
    wait_for(&t.n_held, ++n);
    setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    hang_up(&c);
    wait_for(&t.n_gone, n);
    /* During the upload: no handler runs, it is counted, the spool is empty again. */
    c = dial();
    char *block = calloc(1, 3 << 20);
    say(&c, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 8000000\r\n\r\n");
    say_n(&c, block, 3 << 20);
    free(block);
    usleep(20000);
    hang_up(&c);
    struct http_counts counts = { 0 };
    for (int i = 0; i < 2000 && (counts.gone_upload == 0 || counts.spool_bytes); i++) {
        usleep(1000);
        http_server_counts(t.server, &counts);
    }
    assert_int_equal(counts.gone_upload, 1);
    assert_int_equal(counts.spool_bytes, 0);
    assert_int_equal(t.n_handled, 0);
    /* A request whose sender is gone already is answered where that can be done at once. */
    c = dial();
    say(&c, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 2\r\n\r\n{}");
    shutdown(c.fd, SHUT_WR);
    struct reply r = hear(&c);
    EXPECT(r, 200, NULL);
    forget(&r);
    hang_up(&c);
    assert_int_equal(stop(), 0);
}

/* One who does not read: the stream ends with slow_reader while the memory that it holds stays bounded, and a healthy
 * stream beside it does not notice. One who reads late but in time gets everything. */
static void test_slow_readers(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client slow = dial(), healthy = dial();
    int small = 65536;             /* much smaller, and the window moves at the pace of delayed acknowledgements */
    setsockopt(slow.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    say(&slow, "GET /flood?n=100000&size=65536 HTTP/1.1\r\n" H "\r\n");
    say(&healthy, "GET /flood?n=300&size=100 HTTP/1.1\r\n" H "\r\n");
    struct reply r = hear(&healthy);
    assert_true(!r.cut && r.n == 30000);
    forget(&r);
    wait_for(&t.n_gone, 1);
    assert_string_equal(t.gone, "slow_reader");
    r = hear(&slow);
    assert_true(r.cut);
    assert_true(r.n < 16 << 20);
    forget(&r);
    hang_up(&slow);
    hang_up(&healthy);
    /* Over the high water, under the ring. */
    slow = dial();
    setsockopt(slow.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    say(&slow, "GET /flood?n=12&size=65536 HTTP/1.1\r\n" H "\r\nGET /ok HTTP/1.1\r\n" H "\r\n");
    usleep(100000);
    r = hear(&slow);
    assert_true(!r.cut && r.n == 12 * 65536);
    forget(&r);
    r = hear(&slow);
    EXPECT(r, 200, NULL);
    forget(&r);
    hang_up(&slow);
    assert_int_equal(stop(), 0);

    start((struct http_options){ .write_stall_s = 0.3 });
    slow = dial();
    setsockopt(slow.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    for (int i = 0; i < 40; i++) say(&slow, "GET /file HTTP/1.1\r\n" H "\r\n");
    struct http_counts counts = { 0 };
    for (int i = 0; i < 5000 && counts.gone_slow_reader == 0; i++) {
        usleep(1000);
        http_server_counts(t.server, &counts);
    }
    assert_int_equal(counts.gone_slow_reader, 1);
    hang_up(&slow);
    assert_int_equal(stop(), 0);
}

/* A client that sends without end while its request is handled: what the server holds of it is bounded. */
static void test_input_is_bounded(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client c = dial();
    say(&c, "GET /hold HTTP/1.1\r\n" H "\r\n");
    wait_for(&t.n_held, 1);
    char junk[65536];
    memset(junk, 'j', sizeof junk);
    uint64_t sent = 0;
    for (double until = clock_s() + 0.5; clock_s() < until;) {
        const ssize_t put = send(c.fd, junk, sizeof junk, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (put > 0) sent += (uint64_t)put;
        else usleep(1000);
    }
    struct http_counts counts;
    http_server_counts(t.server, &counts);
    assert_true(sent > 200000);
    assert_true(counts.bytes_in < 200000);
    http_post(t.server, release, NULL);
    struct reply r = hear(&c);
    EXPECT(r, 200, NULL);
    forget(&r);
    r = hear(&c);
    EXPECT(r, 431, "headers_too_large");
    forget(&r);
    hang_up(&c);
    assert_int_equal(stop(), 0);
}

static void test_abort(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client c = dial();
    say(&c, "GET /flood?n=2&size=5&abort=1 HTTP/1.1\r\n" H "\r\n");
    struct reply r = hear(&c);
    assert_int_equal(r.status, 200);
    assert_true(r.cut);
    assert_string_equal(r.body, "ffffffffff");
    forget(&r);
    hang_up(&c);
    c = dial();
    say(&c, "GET /flood?n=2&size=5&abort=1 HTTP/1.0\r\n\r\n");
    while (more(&c)) {}
    assert_int_equal(errno, ECONNRESET);
    assert_non_null(memmem(c.buf, c.n, "ffffffffff", 10));
    hang_up(&c);
    assert_int_equal(stop(), 0);
}

static void test_file(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    static const struct { const char *range; int status; long from, n; } ROWS[] = {
        { "", 200, 0, FILE_BYTES }, { "Range: bytes=0-0\r\n", 206, 0, 1 }, { "Range: bytes=26-51\r\n", 206, 26, 26 },
        { "Range: bytes=699990-\r\n", 206, 699990, 10 }, { "Range: bytes=-30\r\n", 206, FILE_BYTES - 30, 30 },
        { "Range: bytes=5-9999999999\r\n", 206, 5, FILE_BYTES - 5 }, { "Range: bytes=-9999999\r\n", 206, 0, FILE_BYTES },
        { "Range: bytes=700000-\r\n", 416, 0, 0 }, { "Range: bytes=-0\r\n", 416, 0, 0 }, { "Range: bytes=5-4\r\n", 200, 0, FILE_BYTES },
        { "Range: bytes=0-1,3-4\r\n", 200, 0, FILE_BYTES }, { "Range: lines=0-1\r\n", 200, 0, FILE_BYTES },
        { "Range: bytes=99999999999999999999-\r\n", 200, 0, FILE_BYTES },
    };
    struct client c = dial();
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        char text[256], want[80];
        snprintf(text, sizeof text, "GET /file HTTP/1.1\r\n" H "%s\r\n", ROWS[i].range);
        say(&c, text);
        struct reply r = hear(&c);
        if (r.status != ROWS[i].status) fail_msg("%s: %d", ROWS[i].range, r.status);
        if (r.status == 206) {
            snprintf(want, sizeof want, "bytes %ld-%ld/%d", ROWS[i].from, ROWS[i].from + ROWS[i].n - 1, FILE_BYTES);
            assert_string_equal(header(&r, "content-range"), want);
        }
        if (r.status != 416) {
            assert_int_equal(r.n, ROWS[i].n);
            for (long k = 0; k < ROWS[i].n; k++) assert_int_equal(r.body[k], 'a' + (k + ROWS[i].from) % 26);
        }
        forget(&r);
    }
    hang_up(&c);
    c = dial();                                /* gone in the middle */
    say(&c, "GET /file HTTP/1.1\r\n" H "\r\n");
    assert_true(more(&c));
    hang_up(&c);
    assert_int_equal(stop(), 0);
}

static void test_connection_limits(void **state)
{
    (void)state;
    start((struct http_options){ .per_ip_connections = 3 });
    struct client c[3];
    for (int i = 0; i < 3; i++) {
        c[i] = dial();
        say(&c[i], "GET /ok HTTP/1.1\r\n" H "\r\n");
        struct reply r = hear(&c[i]);
        EXPECT(r, 200, NULL);
        forget(&r);
    }
    struct reply r = ask("GET /ok HTTP/1.1\r\n" H "\r\n");
    EXPECT(r, 503, "too_many_connections");
    forget(&r);
    hang_up(&c[0]);
    for (int i = 0;; i++) {
        r = ask("GET /ok HTTP/1.1\r\n" H "\r\n");
        const int got = r.status;
        forget(&r);
        if (got == 200) break;
        assert_true(i < 200);
        usleep(10000);
    }
    hang_up(&c[1]);
    hang_up(&c[2]);
    assert_int_equal(stop(), 0);
}

static void test_gate(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    t.refuse = 1;
    struct reply r = ask("GET /ok HTTP/1.1\r\n" H "\r\n");
    EXPECT(r, 503, "not_ready");
    assert_non_null(header(&r, "retry-after"));
    forget(&r);
    r = ask("GET /open HTTP/1.1\r\n" H "\r\n");
    EXPECT(r, 200, NULL);
    forget(&r);
    assert_int_equal(stop(), 0);
}

/* SIGTERM: idle connections go, what is under way ends, what comes on open connections is 503. */
static void test_drain(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client idle = dial(), busy = dial(), next = dial();
    say(&idle, "GET /ok HTTP/1.1\r\n" H "\r\n");
    struct reply r = hear(&idle);
    EXPECT(r, 200, NULL);
    forget(&r);
    say(&next, "POST /json HTTP/1.1\r\n" H);       /* half a head */
    say(&busy, "GET /hold HTTP/1.1\r\n" H "\r\n");
    wait_for(&t.n_held, 1);
    usleep(20000);
    kill(getpid(), SIGTERM);
    wait_for(&t.n_begun, 1);
    assert_true(closed(&idle));
    say(&next, JSON "Content-Length: 2\r\n\r\n{}");
    r = hear(&next);
    EXPECT(r, 503, "draining");
    assert_string_equal(header(&r, "connection"), "close");
    forget(&r);
    const struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(http_server_port(t.server)),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&a, sizeof a), -1);
    close(fd);
    http_post(t.server, release, NULL);
    r = hear(&busy);
    EXPECT(r, 200, NULL);
    assert_string_equal(header(&r, "connection"), "close");
    forget(&r);
    hang_up(&busy);
    hang_up(&next);
    hang_up(&idle);
    pthread_join(t.thread, NULL);
    assert_int_equal(t.exit_code, 0);
    assert_int_equal(t.n_expired, 0);
    http_server_destroy(&t.server);
    fclose(t.log_file);
}

static void test_drain_expires(void **state)
{
    (void)state;
    start((struct http_options){ .drain_s = 0.2, .drain_delay_s = 0.1 });
    struct client streaming = dial(), uploading = dial();
    say(&streaming, "GET /hold?stream=1 HTTP/1.1\r\n" H "\r\n");
    wait_for(&t.n_held, 1);
    say(&uploading, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 10\r\n\r\n{");
    usleep(20000);
    http_server_stop(t.server);
    wait_for(&t.n_begun, 1);
    assert_true(http_server_draining(t.server));
    struct reply r = ask("GET /ok HTTP/1.1\r\n" H "\r\n");     /* still served: balancers need a moment */
    EXPECT(r, 200, NULL);
    forget(&r);
    r = hear(&streaming);
    assert_true(r.cut);
    assert_non_null(strstr(r.body, "\"draining\""));
    forget(&r);
    r = hear(&uploading);
    EXPECT(r, 503, "draining");
    forget(&r);
    hang_up(&streaming);
    hang_up(&uploading);
    pthread_join(t.thread, NULL);
    assert_int_equal(t.n_expired, 1);
    assert_int_equal(t.exit_code, 0);
    http_server_destroy(&t.server);
    fclose(t.log_file);
}

/* At once, with everything under way: a handler, an upload on its way to the disk, a file on its way from it, a reader that
 * does not read. Nothing leaks (under MODE=san) and the handler is told. */
static void test_second_signal(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client c = dial(), up = dial(), down = dial(), form = dial();
    char *block = calloc(1, 3 << 20);
    say(&up, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 8000000\r\n\r\n");
    say_n(&up, block, 3 << 20);
    say(&form, FORM_HEAD "Content-Length: 8000000\r\n\r\n--bb\r\nContent-Disposition: form-data; name=a; filename=a\r\n\r\n");
    say_n(&form, block, 3 << 20);
    free(block);
    for (int i = 0; i < 40; i++) say(&down, "GET /file HTTP/1.1\r\n" H "\r\n");
    say(&c, "GET /hold HTTP/1.1\r\n" H "\r\n");
    wait_for(&t.n_held, 1);
    kill(getpid(), SIGINT);
    wait_for(&t.n_begun, 1);
    kill(getpid(), SIGTERM);
    pthread_join(t.thread, NULL);
    assert_int_equal(t.exit_code, 1);
    http_server_destroy(&t.server);
    assert_int_equal(t.n_gone, 1);
    hang_up(&c);
    hang_up(&up);
    hang_up(&down);
    hang_up(&form);
    fclose(t.log_file);
}

static void test_unix_socket(void **state)
{
    (void)state;
    snprintf(t.uds, sizeof t.uds, "/tmp/omnidrop-test-%d.sock", (int)getpid());
    for (int round = 0; round < 2; round++) {  /* the second finds what a killed server left */
        start((struct http_options){ .uds = t.uds });
        struct reply r = ask("GET /ok HTTP/1.1\r\n" H "\r\n");
        EXPECT(r, 200, NULL);
        forget(&r);
        assert_non_null(strstr(http_server_address(t.server), "unix:"));
        struct http_server *second = NULL;
        struct err e;
        assert_int_equal(http_server_create(&(struct http_options){ .uds = t.uds }, &second, &e), E_IO);
        assert_int_equal(stop(), 0);
        assert_int_equal(access(t.uds, F_OK), -1);
        if (round) break;
        const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        struct sockaddr_un a = { .sun_family = AF_UNIX };
        snprintf(a.sun_path, sizeof a.sun_path, "%s", t.uds);
        assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
        close(fd);
    }
    t.uds[0] = '\0';
}

static void test_tls(void **state)
{
    (void)state;
    char dir[] = "/tmp/omnidrop-tls-XXXXXX", cert[64], key[64], command[512];
    assert_non_null(mkdtemp(dir));
    snprintf(cert, sizeof cert, "%s/cert.pem", dir);
    snprintf(key, sizeof key, "%s/key.pem", dir);
    snprintf(command, sizeof command,
             "openssl req -x509 -newkey rsa:2048 -nodes -keyout %s -out %s -days 2 -subj /CN=localhost >/dev/null 2>&1", key, cert);
    assert_int_equal(system(command), 0);
    start((struct http_options){ .ssl_certfile = cert, .ssl_keyfile = key, .header_s = 1 });
    assert_non_null(strstr(http_server_address(t.server), "https://"));
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    assert_int_equal(SSL_CTX_load_verify_locations(ctx, cert, NULL), 1);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    char *big = malloc(5 << 20);
    for (size_t i = 0; i < 5 << 20; i++) big[i] = (char)(i * 13 + i / 999);
    for (int round = 0; round < 2; round++) {
        struct client c = dial();
        c.ssl = SSL_new(ctx);
        SSL_set_fd(c.ssl, c.fd);
        assert_int_equal(SSL_connect(c.ssl), 1);
        say(&c, "GET /ok HTTP/1.1\r\n" H "\r\nGET /file HTTP/1.1\r\n" H "\r\nGET /flood?n=20&size=20000 HTTP/1.1\r\n" H "\r\n");
        struct reply r = hear(&c);
        EXPECT(r, 200, NULL);
        forget(&r);
        r = hear(&c);
        assert_true(r.n == FILE_BYTES && !r.cut);
        forget(&r);
        r = hear(&c);
        assert_true(r.n == 400000 && !r.cut);
        forget(&r);
        say(&c, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 5242880\r\n\r\n");
        say_n(&c, big, 5 << 20);
        uint64_t sum = 0;
        for (size_t i = 0; i < 5 << 20; i++) sum = sum * 31 + (unsigned char)big[i];
        r = hear(&c);
        EXPECT(r, 200, NULL);
        json_t *j = json_loads(r.body, 0, NULL);
        assert_int_equal(json_integer_value(json_object_get(j, "sum")), sum & 0xffffffff);
        json_decref(j);
        forget(&r);
        say(&c, "GET /hold HTTP/1.1\r\n" H "\r\n");
        wait_for(&t.n_held, round + 1);
        hang_up(&c);
        wait_for(&t.n_gone, round + 1);
    }
    free(big);
    struct client plain = dial();              /* no TLS at all, and one who never begins */
    say(&plain, "GET /ok HTTP/1.1\r\n" H "\r\n");
    while (more(&plain)) {}
    hang_up(&plain);
    plain = dial();
    assert_true(closed(&plain));
    hang_up(&plain);
    SSL_CTX_free(ctx);
    assert_int_equal(stop(), 0);
    unlink(cert);
    unlink(key);
    rmdir(dir);
}

static uint64_t rss_bytes(void)
{
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_int_equal(fscanf(f, "%*u %lu", &pages), 1);
    fclose(f);
    return (uint64_t)pages * 4096;
}

/* Big uploads: to the disk with the right digest, in flat memory, faster than the disk or not. */
static void test_big_upload(void **state)
{
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    const bool measured = false;               /* its own bookkeeping hides what is held */
#else
    const bool measured = true;
#endif
    const uint64_t total = measured ? 192 << 20 : 24 << 20;
    start((struct http_options){ 0 });
    char *block = malloc(1 << 20), head[160], digest[MEDIA_DIGEST_TEXT];
    struct media_digest *d;
    struct err e;
    assert_int_equal(media_digest_begin(&d, &e), OK);
    for (size_t i = 0; i < 1 << 20; i++) block[i] = (char)(i * i >> 7 ^ i);
    struct client c = dial();
    const uint64_t before = rss_bytes();
    uint64_t peak = 0;
    say(&c, FORM_HEAD "Transfer-Encoding: chunked\r\n\r\n");
    static const char PART[] = "--bb\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";
    snprintf(head, sizeof head, "%zx\r\n%s\r\n", sizeof PART - 1, PART);
    say(&c, head);
    for (uint64_t i = 0; i < total >> 20; i++) {
        say(&c, "100000\r\n");
        assert_true(say_n(&c, block, 1 << 20));
        say(&c, "\r\n");
        media_digest_add(d, block, 1 << 20);
        const uint64_t now = rss_bytes();
        if (now > peak) peak = now;
    }
    media_digest_end(&d, digest);
    say(&c, "A\r\n\r\n--bb--\r\n\r\n0\r\n\r\n");
    struct reply r = hear(&c);
    EXPECT(r, 200, NULL);
    assert_non_null(strstr(r.body, digest));
    if (measured && peak > before + (48 << 20)) fail_msg("memory grew by %lu MiB", (unsigned long)((peak - before) >> 20));
    forget(&r);
    hang_up(&c);
    free(block);
    assert_int_equal(stop(), 0);
}

/* No room: by the server's own limit, said before the body or while it comes, and by what the system lets us write. */
static void test_spool_full(void **state)
{
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    start((struct http_options){ .max_spool = 2 << 20 });
    struct reply r = ask("POST /json HTTP/1.1\r\n" H JSON "Content-Length: 3000000\r\n\r\n");
    EXPECT(r, 503, "spool_full");
    assert_non_null(header(&r, "retry-after"));
    forget(&r);
    struct client c = dial();
    char *block = calloc(1, 3 << 20);
    say(&c, "POST /json HTTP/1.1\r\n" H JSON "Transfer-Encoding: chunked\r\n\r\n300000\r\n");
    say_n(&c, block, 3 << 20);
    r = hear(&c);
    EXPECT(r, 503, "spool_full");
    forget(&r);
    hang_up(&c);
    assert_int_equal(stop(), 0);

    start((struct http_options){ 0 });
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 1500000;
    setrlimit(RLIMIT_FSIZE, &small);
    c = dial();
    say(&c, "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 3145728\r\n\r\n");
    say_n(&c, block, 3 << 20);
    r = hear(&c);
    setrlimit(RLIMIT_FSIZE, &old);
    EXPECT(r, 503, "spool_full");
    forget(&r);
    hang_up(&c);
    free(block);
    r = ask("GET /ok HTTP/1.1\r\n" H "\r\n");
    EXPECT(r, 200, NULL);
    forget(&r);
    assert_int_equal(stop(), 0);
}

static void test_access_log(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct reply r = ask("GET /ok?q=secret HTTP/1.1\r\n" H "x-request-id: one\r\n\r\n");
    forget(&r);
    r = ask("nonsense\r\n\r\n");
    forget(&r);
    struct client c = dial();
    say(&c, "GET /hold HTTP/1.1\r\n" H "x-request-id: left\r\n\r\n");
    wait_for(&t.n_held, 1);
    hang_up(&c);
    wait_for(&t.n_gone, 1);
    usleep(20000);
    rewind(t.log_file);
    char line[1024];
    int n = 0, code[3] = { 0 };
    while (n < 3 && fgets(line, sizeof line, t.log_file)) {
        json_t *j = json_loads(line, 0, NULL);
        assert_non_null(j);
        assert_null(strstr(line, "secret"));
        code[n++] = (int)json_integer_value(json_object_get(j, "status"));
        json_decref(j);
    }
    assert_int_equal(n, 3);
    assert_true(code[0] == 200 && code[1] == 400 && code[2] == 499);
    assert_int_equal(stop(), 0);
}

/* ---- posts and timers: what they do is written down here, on the loop ---- */

static struct { int n, n_late, wrong, last[4], fired[4]; struct http_timer *off; } seen;

static void count_one(void *arg)
{
    const uintptr_t who = (uintptr_t)arg >> 16, number = (uintptr_t)arg & 0xffff;
    seen.wrong += (int)number != seen.last[who] + 1;
    seen.last[who] = (int)number;
    seen.n++;
}

static void *post_many(void *arg)
{
    for (uintptr_t i = 1; i <= 5000; i++) http_post(t.server, count_one, (void *)((uintptr_t)arg << 16 | i));
    return NULL;
}

static void fire(void *arg) { seen.fired[(uintptr_t)arg] = ++seen.n_late; }
static void call_off(void *arg)
{
    (void)arg;
    http_timer_cancel(&seen.off);
    assert_null(seen.off);
}

static void set_timers(void *arg)
{
    (void)arg;
    http_after(t.server, 0.03, fire, (void *)1);
    http_after(t.server, 0.01, fire, (void *)0);
    seen.off = http_after(t.server, 0.05, fire, (void *)2);
    http_after(t.server, 0.02, call_off, NULL);
    http_after(t.server, 1000, fire, (void *)3);   /* still there at the end: freed, not called */
}

/* Posts of several threads all arrive, each thread's in order; timers fire once, by time, or are called off. */
static void test_posts_and_timers(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    memset(&seen, 0, sizeof seen);
    http_post(t.server, set_timers, NULL);
    pthread_t th[4];
    for (uintptr_t i = 0; i < 4; i++) pthread_create(&th[i], NULL, post_many, (void *)i);
    for (int i = 0; i < 4; i++) pthread_join(th[i], NULL);
    usleep(120000);
    assert_int_equal(stop(), 0);               /* the queue is run to its end */
    assert_int_equal(seen.n, 20000);
    assert_int_equal(seen.wrong, 0);
    assert_true(seen.fired[0] == 1 && seen.fired[1] == 2 && seen.fired[2] == 0 && seen.fired[3] == 0);
}

/* What a stream of events looks like on the wire, and how often each status was given. */
static void add_status(void *self, const char *route, const char *method, int code, uint64_t n)
{
    char line[128];
    snprintf(line, sizeof line, "%s %s %d %d;", method, route, code, (int)n);
    strcat(self, line);
}

static void test_events_and_counts(void **state)
{
    (void)state;
    start((struct http_options){ 0 });
    struct client c = dial();
    say(&c, "GET /hold?stream=1 HTTP/1.1\r\n" H "\r\n");
    wait_for(&t.n_held, 1);
    http_post(t.server, release, NULL);
    struct reply r = hear(&c);
    EXPECT(r, 200, NULL);
    assert_string_equal(r.body, "data: {\"first\":1}\n\n: pi ng\n\n");
    assert_string_equal(header(&r, "content-type"), "text/event-stream; charset=utf-8");
    assert_string_equal(header(&r, "cache-control"), "no-cache");
    assert_string_equal(header(&r, "x-accel-buffering"), "no");
    forget(&r);
    hang_up(&c);
    for (int i = 0; i < 4; i++) {
        r = ask(i < 3 ? "GET /models/m HTTP/1.1\r\n" H "\r\n" : "GET /what HTTP/1.1\r\n" H "\r\n");
        forget(&r);
    }
    r = ask("POST /busy HTTP/1.1\r\n" H JSON "x-later: 1\r\nContent-Length: 1\r\n\r\n");
    EXPECT(r, 429, "queue_full");
    assert_string_equal(header(&r, "retry-after"), "17");      /* the hook's, once */
    assert_null(strstr(strstr(r.head, "Retry-After") + 1, "Retry-After"));
    forget(&r);
    join();
    char text[1024] = "";
    http_server_each_status(t.server, add_status, text);
    assert_string_equal(text, "GET /hold 200 1;GET /models/{id} 200 3;GET other 404 1;POST /busy 429 1;");
    struct http_counts counts;
    http_server_counts(t.server, &counts);
    assert_int_equal(counts.n_requests, 6);
    assert_int_equal(stop(), 0);
}

/* Many clients that do everything, well and badly, at once; afterwards no descriptor is left. */
static void *storm(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    static const char *const SAY[] = {
        "GET /ok HTTP/1.1\r\n" H "\r\n", "GET /nothing HTTP/1.1\r\n" H "\r\n", "GET /later HTTP/1.1\r\n" H "\r\n",
        "POST /json HTTP/1.1\r\n" H JSON "Content-Length: 5\r\n\r\n12", "GET /flood?n=20&size=9000 HTTP/1.1\r\n" H "\r\n",
        "GET / HTTP/1.1\n",
        "GET /file HTTP/1.1\r\n" H "\r\n",
        FORM_HEAD "Content-Length: 900\r\n\r\n--bb\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\nxx",
        "GET /ok HTTP/1.1\r\n" H "\r\nGET /ok HTTP/1.1\r\n" H "\r\n", "\r\n",
        "POST /json HTTP/1.1\r\n" H JSON "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        "GET /flood?n=3&size=9&abort=1 HTTP/1.1\r\n" H "\r\n",
    };
    for (int i = 0; i < 60; i++) {
        struct client c = dial();
        for (int k = rand_r(&seed) % 4; k >= 0; k--) say(&c, SAY[(unsigned)rand_r(&seed) % (sizeof SAY / sizeof *SAY)]);
        switch (rand_r(&seed) % 4) {
        case 0: more(&c); break;
        case 1: usleep((unsigned)rand_r(&seed) % 5000); break;
        case 2: shutdown(c.fd, SHUT_WR); while (more(&c)) {} break;
        default: break;
        }
        hang_up(&c);
    }
    return NULL;
}

static void test_storm(void **state)
{
    (void)state;
    const uint64_t before = count_fds();
    start((struct http_options){ .header_s = 0.5, .body_grace_s = 0.5, .body_stall_s = 0.5, .idle_s = 0.5 });
    pthread_t th[8];
    for (uintptr_t i = 0; i < 8; i++) pthread_create(&th[i], NULL, storm, (void *)(i + 1));
    struct client c = dial();
    say(&c, "GET /flood?n=400&size=50 HTTP/1.1\r\n" H "\r\n");
    struct reply r = hear(&c);
    assert_true(!r.cut && r.n == 20000);
    forget(&r);
    hang_up(&c);
    for (int i = 0; i < 8; i++) pthread_join(th[i], NULL);
    assert_int_equal(stop(), 0);
    assert_int_equal(count_fds(), before);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strict), cmocka_unit_test(test_routes), cmocka_unit_test(test_versions),
        cmocka_unit_test(test_keep_alive), cmocka_unit_test(test_pipeline), cmocka_unit_test(test_bodies),
        cmocka_unit_test(test_form), cmocka_unit_test(test_too_large_is_readable), cmocka_unit_test(test_expect),
        cmocka_unit_test(test_keys), cmocka_unit_test(test_hosts), cmocka_unit_test(test_time_limits),
        cmocka_unit_test(test_header_limits), cmocka_unit_test(test_departures), cmocka_unit_test(test_slow_readers),
        cmocka_unit_test(test_input_is_bounded), cmocka_unit_test(test_abort), cmocka_unit_test(test_file),
        cmocka_unit_test(test_connection_limits), cmocka_unit_test(test_gate), cmocka_unit_test(test_drain),
        cmocka_unit_test(test_drain_expires), cmocka_unit_test(test_second_signal), cmocka_unit_test(test_unix_socket),
        cmocka_unit_test(test_tls), cmocka_unit_test(test_big_upload), cmocka_unit_test(test_spool_full),
        cmocka_unit_test(test_access_log), cmocka_unit_test(test_posts_and_timers), cmocka_unit_test(test_events_and_counts),
        cmocka_unit_test(test_storm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
