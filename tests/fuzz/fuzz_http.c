/* Fuzz target: the request reader. Any bytes, read whole and again in pieces whose sizes the first byte chooses: the same
 * requests come out, within the limits, and an error has its tag. */
#include <stdlib.h>
#include <string.h>

#include "http/reader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

struct seen { uint64_t sum; size_t n_body, n_heads, n_ends; bool bad; };

static void add(struct seen *s, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) s->sum = (s->sum ^ (uint8_t)text[i]) * 1099511628211u;
}

static void on_head(struct seen *s, struct reader *r)
{
    struct reader_head h;
    reader_take_head(r, &h);
    PROMISE(h.path && h.host && h.method && h.n_headers <= READER_HEADERS_MAX && (h.path[0] == '/' || strcmp(h.path, "*") == 0));
    PROMISE(!(h.chunked && h.has_length) && (h.minor == 0 || h.minor == 1));
    add(s, h.path, strlen(h.path));
    add(s, h.host, strlen(h.host));
    for (size_t i = 0; i < h.n_headers; i++) {
        PROMISE(h.header[i].name[0] && strpbrk(h.header[i].value, "\r\n") == NULL && strlen(h.header[i].value) <= READER_LINE_MAX);
        add(s, h.header[i].name, strlen(h.header[i].name));
        add(s, h.header[i].value, strlen(h.header[i].value));
    }
    const size_t n = strlen(h.path);
    PROMISE(reader_unescape(h.path, false) <= n && memchr(h.path, 0, strlen(h.path)) == NULL);
    reader_head_free(&h);
    s->n_heads++;
}

static struct seen run(const uint8_t *data, size_t size, size_t cut)
{
    struct seen s = { .sum = 14695981039346656037u };
    struct reader *r = reader_create();
    struct err e;
    for (size_t at = 0; at < size && !s.bad;) {
        const size_t take = cut && cut < size - at ? cut : size - at;
        size_t left = take;
        const char *bytes = (const char *)data + at;
        for (;;) {
            size_t used, n;
            const char *piece;
            const enum reader_event ev = reader_next(r, bytes, left, &used, &piece, &n, &e);
            PROMISE(used <= left);
            bytes += used;
            left -= used;
            if (ev == READER_HEAD) on_head(&s, r);
            if (ev == READER_BODY) {
                PROMISE(n && piece >= (const char *)data && piece + n <= (const char *)data + size);
                add(&s, piece, n);
                s.n_body += n;
            }
            s.n_ends += ev == READER_END;
            s.bad = ev == READER_BAD;
            if (s.bad) PROMISE(e.code == E_ARG && (strcmp(e.tag, "invalid_http") == 0 || strcmp(e.tag, "headers_too_large") == 0));
            if (s.bad || ev == READER_MORE) break;
        }
        PROMISE(s.bad || left == 0);
        at += take;
    }
    reader_free(&r);
    PROMISE(s.n_ends <= s.n_heads && s.n_heads <= s.n_ends + 1);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const struct seen whole = run(data + 1, size - 1, 0), cut = run(data + 1, size - 1, 1 + data[0] % 32);
    PROMISE(whole.bad == cut.bad && whole.n_heads == cut.n_heads && whole.n_ends == cut.n_ends && whole.n_body == cut.n_body &&
            whole.sum == cut.sum);
    return 0;
}
