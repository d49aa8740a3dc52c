/* api/wire.c - see wire.h. */
#include "api/wire.h"

#include <stdlib.h>
#include <string.h>

#include "api/error.h"
#include "base/mem.h"

void wire_put(struct wire *w, const void *bytes, size_t n)
{
    struct err e;
    if (mem_grow(&w->bytes, &w->cap, w->n + n, 1, &e) != OK) abort();
    if (n) memcpy(w->bytes + w->n, bytes, n);
    w->n += n;
}

void wire_u32(struct wire *w, uint32_t v) { wire_put(w, &v, sizeof v); }
void wire_u64(struct wire *w, uint64_t v) { wire_put(w, &v, sizeof v); }
void wire_f64(struct wire *w, double v) { wire_put(w, &v, sizeof v); }

void wire_blob(struct wire *w, const void *bytes, size_t n)
{
    wire_u64(w, n);
    wire_put(w, bytes, n);
}

void wire_text(struct wire *w, const char *text) { wire_blob(w, text, text ? strlen(text) : 0); }

void wire_err(struct wire *w, const struct err *e)
{
    wire_u32(w, (uint32_t)e->code);
    wire_text(w, e->text);
    wire_text(w, e->tag);
    wire_text(w, e->param);
}

void wire_get(struct wire_reader *r, void *out, size_t n)
{
    r->bad = r->bad || n > r->n - r->at;
    if (r->bad) {
        memset(out, 0, n);
        return;
    }
    memcpy(out, r->bytes + r->at, n);
    r->at += n;
}

uint32_t wire_get_u32(struct wire_reader *r)
{
    uint32_t v;
    wire_get(r, &v, sizeof v);
    return v;
}

uint64_t wire_get_u64(struct wire_reader *r)
{
    uint64_t v;
    wire_get(r, &v, sizeof v);
    return v;
}

double wire_get_f64(struct wire_reader *r)
{
    double v;
    wire_get(r, &v, sizeof v);
    return v;
}

const uint8_t *wire_get_blob(struct wire_reader *r, size_t *n)
{
    const uint64_t want = wire_get_u64(r);
    r->bad = r->bad || want > r->n - r->at;
    *n = r->bad ? 0 : (size_t)want;
    const uint8_t *at = r->bad ? NULL : r->bytes + r->at;
    r->at += *n;
    return at;
}

void wire_get_text(struct wire_reader *r, char *out, size_t cap)
{
    size_t n;
    const uint8_t *p = wire_get_blob(r, &n);
    if (n >= cap) n = cap - 1;
    if (n) memcpy(out, p, n);
    out[n] = 0;
}

void wire_get_err(struct wire_reader *r, struct err *e)
{
    char tag[64], param[sizeof e->param];
    const uint32_t code = wire_get_u32(r);
    *e = (struct err){ .code = code <= E_INTERNAL && !r->bad ? (status)code : E_INTERNAL };
    wire_get_text(r, e->text, sizeof e->text);
    wire_get_text(r, tag, sizeof tag);
    wire_get_text(r, param, sizeof param);
    if (tag[0]) e->tag = api_error_tag(tag);
    memcpy(e->param, param, sizeof param);
}
