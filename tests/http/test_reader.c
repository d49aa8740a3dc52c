/* The request reader. Goal: what is a request is read right, everything else is refused with the right tag, however the
 * bytes are cut. Method: a table of streams and what must come of them, each fed whole, byte by byte and in random
 * pieces; limits at their edge and one beyond. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "http/reader.h"

#define HOST "Host: a\r\n"
#define GET "GET / HTTP/1.1\r\n" HOST

struct seen {
    struct reader_head head;       /* of the last request */
    uint32_t n_heads, n_ends;
    char body[1 << 16];            /* of all requests, one after the other */
    size_t n_body;
    struct err error;
    bool bad;
};

static void feed(struct reader *r, const char *bytes, size_t n, struct seen *s)
{
    while (!s->bad) {
        size_t used, n_piece;
        const char *piece;
        const enum reader_event ev = reader_next(r, bytes, n, &used, &piece, &n_piece, &s->error);
        assert_true(used <= n);
        bytes += used;
        n -= used;
        switch (ev) {
        case READER_HEAD:
            reader_head_free(&s->head);
            reader_take_head(r, &s->head);
            s->n_heads++;
            break;
        case READER_BODY:
            assert_true(s->n_body + n_piece < sizeof s->body);
            memcpy(s->body + s->n_body, piece, n_piece);
            s->n_body += n_piece;
            s->body[s->n_body] = '\0';
            break;
        case READER_END: s->n_ends++; break;
        case READER_BAD: s->bad = true; break;
        case READER_MORE:
            assert_int_equal(n, 0);
            return;
        }
    }
}

static uint32_t random_state = 1;
static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % n;
}

/* cut: 0 whole, 1 byte by byte, else pieces of up to `cut` bytes. */
static struct seen *run(const char *bytes, size_t n, uint32_t cut)
{
    struct seen *s = calloc(1, sizeof *s);
    struct reader *r = reader_create();
    for (size_t i = 0; i < n && !s->bad;) {
        size_t take = cut == 0 ? n : cut == 1 ? 1 : 1 + random_below(cut);
        if (take > n - i) take = n - i;
        char *copy = malloc(take);             /* so that reading past it is seen */
        memcpy(copy, bytes + i, take);
        feed(r, copy, take, s);
        free(copy);
        i += take;
    }
    reader_free(&r);
    return s;
}

static void seen_free(struct seen *s)
{
    reader_head_free(&s->head);
    free(s);
}

static const uint32_t CUTS[] = { 0, 1, 3, 17 };
#define EACH_CUT(c) for (size_t c = 0; c < sizeof CUTS / sizeof *CUTS; c++)

struct row { const char *bytes; size_t n; const char *what; };
#define ROW(text, what) { text, sizeof(text) - 1, what }

static void test_refused(void **state)
{
    (void)state;
    static const struct row ROWS[] = {
        ROW("GET / HTTP/1.1\n" HOST "\r\n", "LF alone after the request line"),
        ROW("GET / HTTP/1.1\r\nHost: a\n\r\n", "LF alone after a header"),
        ROW(GET "\n", "LF alone at the end"),
        ROW("GET / HTTP/1.1\r" HOST "\r\n", "CR alone"),
        ROW(GET "A: b\rc\r\n\r\n", "CR inside a value"),
        ROW(GET "A: b\0c\r\n\r\n", "NUL in a value"),
        ROW(GET "A: b\x01\r\n\r\n", "control character"),
        ROW(GET "A: b\x7f\r\n\r\n", "DEL"),
        ROW(GET "A: b\r\n c\r\n\r\n", "folded line"),
        ROW("GET / HTTP/1.1\r\n X: y\r\n" HOST "\r\n", "space before the first header"),
        ROW(GET "A : b\r\n\r\n", "space before the colon"),
        ROW(GET "A\t: b\r\n\r\n", "tab before the colon"),
        ROW(GET ": b\r\n\r\n", "no name"),
        ROW(GET "nonsense\r\n\r\n", "no colon"),
        ROW(GET "A(b): c\r\n\r\n", "name that is no token"),
        ROW(GET "\xc3\xa4: c\r\n\r\n", "name that is not ASCII"),
        ROW("GET / HTTP/1.1\r\n\r\n", "no Host"),
        ROW("GET / HTTP/1.1\r\n" HOST HOST "\r\n", "Host twice"),
        ROW("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "Host with a space"),
        ROW("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "Host with a slash"),
        ROW("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "Host with a user"),
        ROW("GET  / HTTP/1.1\r\n" HOST "\r\n", "two spaces"),
        ROW("GET / HTTP/1.1 \r\n" HOST "\r\n", "space at the end"),
        ROW("GET /\r\n" HOST "\r\n", "no version"),
        ROW("GET / HTTP/2.0\r\n" HOST "\r\n", "version 2.0"),
        ROW("GET / HTTP/1.2\r\n" HOST "\r\n", "version 1.2"),
        ROW("GET / HTTP/0.9\r\n" HOST "\r\n", "version 0.9"),
        ROW("GET / http/1.1\r\n" HOST "\r\n", "version in lower case"),
        ROW("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "the preface of HTTP/2"),
        ROW("G\x80T / HTTP/1.1\r\n" HOST "\r\n", "method that is not ASCII"),
        ROW("BREW / HTTP/1.1\r\n" HOST "\r\n", "unknown method"),
        ROW("get / HTTP/1.1\r\n" HOST "\r\n", "method in lower case"),
        ROW("GET a HTTP/1.1\r\n" HOST "\r\n", "target without a slash"),
        ROW("GET /\xc3\xa4 HTTP/1.1\r\n" HOST "\r\n", "target that is not ASCII"),
        ROW("GET /a#b HTTP/1.1\r\n" HOST "\r\n", "fragment"),
        ROW("GET /%00 HTTP/1.1\r\n" HOST "\r\n", "%00"),
        ROW("GET /?a=%00 HTTP/1.1\r\n" HOST "\r\n", "%00 in the query"),
        ROW("GET /%zz HTTP/1.1\r\n" HOST "\r\n", "broken escape"),
        ROW("GET /a% HTTP/1.1\r\n" HOST "\r\n", "cut escape"),
        ROW("GET /a%4 HTTP/1.1\r\n" HOST "\r\n", "cut escape"),
        ROW("GET * HTTP/1.1\r\n" HOST "\r\n", "GET *"),
        ROW("GET http://u@h/ HTTP/1.1\r\n" HOST "\r\n", "target with a user"),
        ROW("GET http:/// HTTP/1.1\r\n" HOST "\r\n", "target with an empty host"),
        ROW("GET ftp://h/ HTTP/1.1\r\n" HOST "\r\n", "target of another scheme"),
        ROW("CONNECT a:1 HTTP/1.1\r\n" HOST "\r\n", "CONNECT"),
        ROW("POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", "two lengths"),
        ROW("POST / HTTP/1.1\r\n" HOST "Content-Length: 1, 1\r\n\r\nx", "list of lengths"),
        ROW("POST / HTTP/1.1\r\n" HOST "Content-Length: -1\r\n\r\n", "negative length"),
        ROW("POST / HTTP/1.1\r\n" HOST "Content-Length: +1\r\n\r\nx", "signed length"),
        ROW("POST / HTTP/1.1\r\n" HOST "Content-Length: 0x1\r\n\r\nx", "length in hex"),
        ROW("POST / HTTP/1.1\r\n" HOST "Content-Length: \r\n\r\n", "empty length"),
        ROW("POST / HTTP/1.1\r\n" HOST "Content-Length: 1 1\r\n\r\n", "length with a space"),
        ROW("POST / HTTP/1.1\r\n" HOST "Content-Length: 18446744073709551617\r\n\r\n", "length over 64 bits"),
        ROW("POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "length and coding"),
        ROW("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n", "coding and length"),
        ROW("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "two codings"),
        ROW("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip\r\n\r\n", "other coding"),
        ROW("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "coding twice"),
        ROW("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: xchunked\r\n\r\n", "coding that only ends so"),
        ROW("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding:\r\n\r\n", "empty coding"),
        ROW("POST / HTTP/1.0\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "coding in 1.0"),
        ROW("\r\n\r\n\r\n\r\n\r\n" GET "\r\n", "many empty lines"),
        ROW("\n" GET "\r\n", "LF before a request"),
#define CHUNKED "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
        ROW(CHUNKED "\r\n", "chunk without a size"),
        ROW(CHUNKED "g\r\n", "size that is no number"),
        ROW(CHUNKED "0x1\r\nx\r\n", "size with 0x"),
        ROW(CHUNKED "-1\r\n", "negative size"),
        ROW(CHUNKED " 1\r\nx\r\n", "space before a size"),
        ROW(CHUNKED "1 \r\nx\r\n", "space after a size"),
        ROW(CHUNKED "1\nx\r\n", "LF alone after a size"),
        ROW(CHUNKED "1\rx", "CR alone after a size"),
        ROW(CHUNKED "1;a\nb\r\nx\r\n", "LF inside an extension"),
        ROW(CHUNKED "1\r\nxy\r\n", "chunk longer than its size"),
        ROW(CHUNKED "2\r\nx\r\n\r\n", "chunk that is ended by LF CR"),
        ROW(CHUNKED "1\r\nx\n", "LF alone after a chunk"),
        ROW(CHUNKED "1000000000000000\r\n", "16 digits"),
        ROW(CHUNKED "0\r\n\n", "LF alone after the last chunk"),
        ROW(CHUNKED "0\r\nA: b\n\r\n", "LF alone in a trailer"),
        ROW(CHUNKED "0\r\n a: b\r\n\r\n", "folded trailer"),
        ROW(CHUNKED "0\r\nA: \x01\r\n\r\n", "control character in a trailer"),
        ROW(CHUNKED "0\r\n\rx", "CR alone at the very end"),
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++)
        EACH_CUT(c) {
            struct seen *s = run(ROWS[i].bytes, ROWS[i].n, CUTS[c]);
            if (!s->bad || s->error.tag == NULL || strcmp(s->error.tag, "invalid_http") != 0 || s->n_ends)
                fail_msg("%s (cut %u): %s, tag %s", ROWS[i].what, CUTS[c], s->bad ? "refused" : "taken", s->error.tag);
            assert_int_equal(s->error.code, E_ARG);
            seen_free(s);
        }
}

static void test_read(void **state)
{
    (void)state;
    static const char STREAM[] = "\r\nPOST /a%20b/c?x=1%202&y HTTP/1.1\r\nHost: Example.com:80\r\nX-Empty:\r\nX-Space:  \t a b \t\r\n"
                                 "X-UTF: \xc3\xa4\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\nhello";
    EACH_CUT(c) {
        struct seen *s = run(STREAM, sizeof STREAM - 1, CUTS[c]);
        assert_false(s->bad);
        assert_int_equal(s->n_heads, 1);
        assert_string_equal(s->head.method, "POST");
        assert_string_equal(s->head.path, "/a%20b/c");
        assert_string_equal(s->head.query, "x=1%202&y");
        assert_string_equal(s->head.host, "Example.com:80");
        assert_string_equal(reader_header(&s->head, "x-empty"), "");
        assert_string_equal(reader_header(&s->head, "x-space"), "a b");
        assert_string_equal(reader_header(&s->head, "x-utf"), "\xc3\xa4");
        assert_null(reader_header(&s->head, "x-none"));
        assert_int_equal(s->head.n_headers, 6);
        assert_true(s->head.keep_alive && s->head.has_length && !s->head.chunked && s->head.expects_continue);
        assert_int_equal(s->head.length, 5);
        assert_string_equal(s->body, "hello");
        seen_free(s);
    }
}

/* Requests that follow each other without a gap, with every framing. */
static void test_pipeline(void **state)
{
    (void)state;
    static const char STREAM[] = GET "\r\n" "POST /1 HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc"
                                 "POST /2 HTTP/1.1\r\n" HOST "Transfer-Encoding: Chunked\r\n\r\n"
                                 "2;name=\"v\"\r\nde\r\n00A\r\n0123456789\r\n0\r\nX-Trailer: dropped\r\nB: c\r\n\r\n"
                                 "POST /3 HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n"
                                 "GET /4 HTTP/1.0\r\n\r\n" "OPTIONS * HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n";
    EACH_CUT(c) {
        struct seen *s = run(STREAM, sizeof STREAM - 1, CUTS[c]);
        assert_false(s->bad);
        assert_int_equal(s->n_heads, 6);
        assert_string_equal(s->body, "abcde0123456789");
        assert_string_equal(s->head.path, "*");
        assert_false(s->head.keep_alive);
        assert_null(reader_header(&s->head, "x-trailer"));
        seen_free(s);
    }
}

static void test_targets(void **state)
{
    (void)state;
    static const struct { const char *bytes, *path, *query, *host; } ROWS[] = {
        { "GET http://h.example:81/p?q HTTP/1.1\r\nHost: other\r\n\r\n", "/p", "q", "h.example:81" },
        { "GET HTTP://h HTTP/1.1\r\nHost: other\r\n\r\n", "/", NULL, "h" },
        { "GET https://h?q=/ HTTP/1.1\r\nHost: other\r\n\r\n", "/", "q=/", "h" },
        { "GET //a//b/ HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", "//a//b/", NULL, "[::1]:8000" },
        { "GET /? HTTP/1.1\r\nHost:\r\n\r\n", "/", "", "" },
        { "GET /a?b?c HTTP/1.0\r\n\r\n", "/a", "b?c", "" },
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        struct seen *s = run(ROWS[i].bytes, strlen(ROWS[i].bytes), 1);
        if (s->bad) fail_msg("%s: %s", ROWS[i].bytes, s->error.text);
        assert_string_equal(s->head.path, ROWS[i].path);
        assert_string_equal(s->head.host, ROWS[i].host);
        if (ROWS[i].query) assert_string_equal(s->head.query, ROWS[i].query);
        else assert_null(s->head.query);
        seen_free(s);
    }
}

/* Builds a request with one thing repeated; returns its tag or NULL. */
static const char *verdict(size_t target, size_t n_headers, size_t value)
{
    const size_t cap = target + n_headers * (value + 32) + 256;
    char *text = malloc(cap), *p = text;
    p += sprintf(p, "GET /");
    memset(p, 'a', target);
    p += target;
    p += sprintf(p, " HTTP/1.1\r\n" HOST);
    for (size_t i = 0; i < n_headers; i++) {
        p += sprintf(p, "x: ");
        memset(p, 'v', value);
        p += value;
        p += sprintf(p, "\r\n");
    }
    p += sprintf(p, "\r\n");
    const char *tag = NULL;
    EACH_CUT(c) {
        struct seen *s = run(text, (size_t)(p - text), CUTS[c]);
        const char *t = s->bad ? s->error.tag : NULL;
        if (c) assert_true(t == tag);
        tag = t;
        if (!s->bad) assert_int_equal(s->head.n_headers, n_headers + 1);
        seen_free(s);
    }
    free(text);
    return tag;
}

static void test_limits(void **state)
{
    (void)state;
    const size_t line = READER_LINE_MAX, fixed = strlen("GET / HTTP/1.1");
    assert_null(verdict(line - fixed, 1, 1));
    assert_string_equal(verdict(line - fixed + 1, 1, 1), "headers_too_large");
    assert_null(verdict(1, 1, line - 3));
    assert_string_equal(verdict(1, 1, line - 2), "headers_too_large");
    assert_null(verdict(1, 99, 10));
    assert_string_equal(verdict(1, 100, 10), "headers_too_large");
    /* HOST and the headers together: 32 KiB, each line with its CRLF. */
    const size_t block = READER_BLOCK_MAX - strlen(HOST), each = block / 8 - 5;
    assert_null(verdict(1, 8, each));
    assert_string_equal(verdict(1, 8, each + 1), "headers_too_large");
    assert_string_equal(verdict(1, 5, 8000), "headers_too_large");
}

static void test_chunk_limits(void **state)
{
    (void)state;
    char *text = malloc(80000);
    for (int over = 0; over < 2; over++) {
        char *p = text + sprintf(text, CHUNKED "1;");
        memset(p, 'e', READER_CHUNK_EXTRA_MAX - 1 + (size_t)over);
        p += READER_CHUNK_EXTRA_MAX - 1 + over;
        p += sprintf(p, "\r\nx\r\n0\r\n\r\n");
        struct seen *s = run(text, (size_t)(p - text), 0);
        if (over) assert_string_equal(s->error.tag, "headers_too_large");
        else assert_int_equal(s->n_ends, 1);
        seen_free(s);
    }
    free(text);
}

static void test_unescape(void **state)
{
    (void)state;
    char a[] = "org%2Fname+x%c3%a4%", b[] = "a+b%20c";
    assert_int_equal(reader_unescape(a, false), strlen("org/name+x\xc3\xa4%"));
    assert_string_equal(a, "org/name+x\xc3\xa4%");
    reader_unescape(b, true);
    assert_string_equal(b, "a b c");
}

/* After an error the reader stays where it is: what comes behind a broken request is never read as one. */
static void test_stays_broken(void **state)
{
    (void)state;
    struct seen *s = calloc(1, sizeof *s);
    struct reader *r = reader_create();
    static const char bad[] = "GET / HTTP/1.1\n", good[] = GET "\r\n";
    feed(r, bad, sizeof bad - 1, s);
    assert_true(s->bad);
    s->bad = false;
    feed(r, good, sizeof good - 1, s);
    assert_true(s->bad);
    assert_int_equal(s->n_heads, 0);
    reader_free(&r);
    seen_free(s);
}

int main(void)
{
    const char *seed = getenv("SEED");
    random_state = seed ? (uint32_t)strtoul(seed, NULL, 10) : 1;
    print_message("SEED=%u\n", random_state);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused), cmocka_unit_test(test_read),         cmocka_unit_test(test_pipeline),
        cmocka_unit_test(test_targets), cmocka_unit_test(test_limits),       cmocka_unit_test(test_chunk_limits),
        cmocka_unit_test(test_unescape), cmocka_unit_test(test_stays_broken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
