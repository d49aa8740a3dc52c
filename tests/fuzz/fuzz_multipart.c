/* Fuzz target: forms. The input is a Content-Type value, a NUL, a byte that chooses how the rest is cut, and the form. Read
 * whole and in pieces the same parts come out; what is accepted has as many ends as beginnings. */
#include <stdlib.h>
#include <string.h>

#include "http/multipart.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

struct seen { uint64_t sum; size_t n_data; uint32_t n_begun, n_ended; bool ok; };

static void add(struct seen *s, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) s->sum = (s->sum ^ (uint8_t)text[i]) * 1099511628211u;
}

static status on_begin(void *self, const char *name, const char *filename, const char *type, struct err *e)
{
    struct seen *s = self;
    (void)e;
    PROMISE(s->n_begun == s->n_ended && name[0]);
    PROMISE(++s->n_begun <= MULTIPART_PARTS_MAX);
    add(s, name, strlen(name) + 1);
    if (filename) add(s, filename, strlen(filename) + 1);
    if (type) add(s, type, strlen(type) + 1);
    return OK;
}

static status on_data(void *self, const char *bytes, size_t n, struct err *e)
{
    struct seen *s = self;
    (void)e;
    PROMISE(n > 0 && s->n_begun == s->n_ended + 1);
    add(s, bytes, n);
    s->n_data += n;
    return OK;
}

static status on_end(void *self, struct err *e)
{
    struct seen *s = self;
    (void)e;
    PROMISE(++s->n_ended == s->n_begun);
    return OK;
}

static struct seen run(const char *type, const uint8_t *data, size_t size, size_t cut)
{
    struct seen s = { .sum = 14695981039346656037u };
    const struct multipart_sink sink = { &s, on_begin, on_data, on_end };
    struct multipart *m = NULL;
    struct err e;
    status st = multipart_create(type, &sink, &m, &e);
    for (size_t at = 0; st == OK && at < size;) {
        const size_t take = cut && cut < size - at ? cut : size - at;
        st = multipart_feed(m, (const char *)data + at, take, &e);
        at += take;
    }
    if (st == OK) st = multipart_finish(m, &e);
    multipart_free(&m);
    s.ok = st == OK;
    PROMISE(s.ok || (e.code == E_ARG && strcmp(e.tag, "invalid_multipart") == 0));
    PROMISE(!s.ok || s.n_begun == s.n_ended);
    PROMISE(s.n_data <= size);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, 0, size);
    if (end == NULL || end + 1 >= data + size) return 0;
    const char *type = (const char *)data;
    const uint8_t *form = end + 2;
    const size_t n = (size_t)(data + size - form);
    const struct seen whole = run(type, form, n, 0), cut = run(type, form, n, 1 + end[1] % 64);
    PROMISE(whole.ok == cut.ok && whole.n_begun == cut.n_begun && whole.n_ended == cut.n_ended);
    PROMISE(!whole.ok || (whole.n_data == cut.n_data && whole.sum == cut.sum));
    return 0;
}
