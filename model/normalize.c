/* model/normalize.c - see normalize.h. */
#include "model/normalize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "model/unicode_tables.h"
#include "model/utf8.h"

#define N_OF(a)    (sizeof(a) / sizeof *(a))
#define FIRST_MARK 0x300 /* below it nothing changes under NFC and nothing combines */

/* ---- tables ------------------------------------------------------------------------------------------- */

/* Index of the range that holds cp, or -1. */
static int find_class(uint32_t cp)
{
    int lo = 0, hi = (int)N_OF(unicode_classes) - 1;
    while (lo <= hi) {
        const int mid = (lo + hi) / 2;
        if (cp < unicode_classes[mid].first)
            hi = mid - 1;
        else if (cp > unicode_classes[mid].last)
            lo = mid + 1;
        else
            return mid;
    }
    return -1;
}

static bool is_inert(uint32_t cp)
{
    int lo = 0, hi = (int)N_OF(unicode_inert) - 1;
    while (lo <= hi) {
        const int mid = (lo + hi) / 2;
        if (cp < unicode_inert[mid].first)
            hi = mid - 1;
        else if (cp > unicode_inert[mid].last)
            lo = mid + 1;
        else
            return true;
    }
    return false;
}

/* Can it move or compose with what stands before it? Marks and the later letters of a Hangul syllable; a
 * few that cannot are taken along, which changes nothing. */
static bool extends(uint32_t cp)
{
    if (cp < FIRST_MARK || is_inert(cp)) return false;
    if (cp >= 0x1160 && cp <= 0x11ff) return true;
    const utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)cp);
    return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_MC || k == UTF8PROC_CATEGORY_ME;
}

/* Alone, does it stay what it is? */
static bool is_stable(uint32_t cp)
{
    if (cp < FIRST_MARK) return true;
    const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)cp);
    return p->decomp_seqindex == UINT16_MAX || p->decomp_type != 0 || is_inert(cp);
}

/* ---- building ----------------------------------------------------------------------------------------- */

static status grow(struct clean_text *c, size_t more, struct err *e)
{
    TRY(mem_grow(&c->text, &c->text_cap, c->n + more + 1, 1, e));
    return mem_grow(&c->from, &c->from_cap, c->n + more + 1, sizeof *c->from, e);
}

void clean_free(struct clean_text *c)
{
    free(c->text);
    free(c->from);
    *c = (struct clean_text){ 0 };
}

status clean_append(struct clean_text *c, const char *raw, size_t n, uint32_t at, struct err *e)
{
    const uint8_t *s = (const uint8_t *)raw;
    TRY(grow(c, n, e));
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int len = utf8_step(s + i, n - i, &cp);
        if (len > 0) {
            for (int k = 0; k < len; k++) {
                c->text[c->n] = raw[i + (size_t)k];
                c->from[c->n++] = at + (uint32_t)i;
            }
        } else {
            len = len == 0 ? (int)(n - i) : -len;
            TRY(grow(c, n - i + 3, e));
            for (int k = 0; k < 3; k++) {
                c->text[c->n] = "\xef\xbf\xbd"[k];
                c->from[c->n++] = at + (uint32_t)i;
            }
        }
        i += (size_t)len;
    }
    c->from[c->n] = at + (uint32_t)n;
    return OK;
}

/* ---- NFC ---------------------------------------------------------------------------------------------- */

struct point {
    uint32_t cp, at, len;
}; /* a character, where it stands in the text */

struct sequence { /* a starter and what may combine with it */
    struct point *in;
    utf8proc_int32_t *out;
    uint64_t *key; /* to order marks */
    size_t n, in_cap, n_out, out_cap, key_cap;
};

static int by_value(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Order each run of marks by combining class, equals in the order given. */
static status order_marks(struct sequence *q, struct err *e)
{
    for (size_t i = 0; i < q->n_out;) {
        size_t n = 0;
        bool sorted = true;
        while (i + n < q->n_out) {
            const utf8proc_int32_t cp = q->out[i + n];
            const uint64_t class = (uint64_t)utf8proc_get_property(cp)->combining_class;
            if (class == 0) break;
            TRY(mem_grow(&q->key, &q->key_cap, n + 1, sizeof *q->key, e));
            q->key[n] = class << 56 | (uint64_t)n << 21 | (uint64_t)cp;
            if (n > 0 && q->key[n] < q->key[n - 1]) sorted = false;
            n++;
        }
        if (!sorted) {
            qsort(q->key, n, sizeof *q->key, by_value);
            for (size_t k = 0; k < n; k++) q->out[i + k] = (utf8proc_int32_t)(q->key[k] & 0x1fffff);
        }
        i += n + 1;
    }
    return OK;
}

/* NFC of the sequence, into q->out. */
static status compose(struct sequence *q, struct err *e)
{
    q->n_out = 0;
    for (size_t i = 0; i < q->n; i++) {
        TRY(mem_grow(&q->out, &q->out_cap, q->n_out + 32, sizeof *q->out, e));
        int last = 0;
        const utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)q->in[i].cp, q->out + q->n_out,
                                                           32, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &last);
        if (n < 0 || n > 32) return err_set(e, E_INTERNAL, "U+%04X cannot be decomposed", q->in[i].cp);
        q->n_out += (size_t)n;
    }
    TRY(order_marks(q, e));
    const utf8proc_ssize_t n =
        utf8proc_normalize_utf32(q->out, (utf8proc_ssize_t)q->n_out, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (n < 0) return err_set(e, E_INTERNAL, "a sequence of %zu characters cannot be composed", q->n_out);
    q->n_out = (size_t)n;
    return OK;
}

/* Put the sequence behind *out: as it was, byte for byte, or composed. */
static status put_sequence(const struct clean_text *in, struct sequence *q, struct clean_text *out,
                           struct err *e)
{
    const struct point *first = q->in, *last = q->in + q->n - 1;
    const size_t bytes = last->at + last->len - first->at;
    bool changed = false;
    if (q->n > 1 || !is_stable(first->cp)) {
        TRY(compose(q, e));
        changed = q->n_out != q->n;
        for (size_t i = 0; i < q->n && !changed; i++) changed = (uint32_t)q->out[i] != q->in[i].cp;
    }
    TRY(grow(out, changed ? 4 * q->n_out : bytes, e));
    if (!changed) {
        memcpy(out->text + out->n, in->text + first->at, bytes);
        memcpy(out->from + out->n, in->from + first->at, bytes * sizeof *in->from);
        out->n += bytes;
        return OK;
    }
    for (size_t i = 0; i < q->n_out; i++) {
        const int len = utf8_put((uint32_t)q->out[i], out->text + out->n);
        for (int k = 0; k < len; k++) out->from[out->n++] = in->from[first->at];
    }
    return OK;
}

static bool below_first_mark(const struct clean_text *c)
{
    for (size_t i = 0; i < c->n; i++)
        if ((uint8_t)c->text[i] >= 0xcc) return false; /* U+0300 begins with 0xcc */
    return true;
}

status clean_nfc(const struct clean_text *in, struct clean_text *out, bool *same, struct err *e)
{
    status st = OK;
    struct sequence q = { 0 };
    out->n = 0;
    *same = below_first_mark(in);
    if (*same) return OK;
    bool open = false; /* may the next character join the sequence? */
    for (size_t i = 0; i < in->n;) {
        struct point p = { .at = (uint32_t)i };
        p.len = (uint32_t)utf8_step((const uint8_t *)in->text + i, in->n - i, &p.cp);
        if (q.n > 0 && !(open && extends(p.cp))) {
            TRY_GOTO(st, put_sequence(in, &q, out, e), done);
            q.n = 0;
        }
        open = q.n > 0 ? open : p.cp < FIRST_MARK || !is_inert(p.cp);
        TRY_GOTO(st, mem_grow(&q.in, &q.in_cap, q.n + 1, sizeof *q.in, e), done);
        q.in[q.n++] = p;
        i += p.len;
    }
    if (q.n > 0) TRY_GOTO(st, put_sequence(in, &q, out, e), done);
    out->from[out->n] = in->from[in->n];
done:
    free(q.in);
    free(q.out);
    free(q.key);
    return st;
}

status clean_shadow(const struct clean_text *in, char **out, size_t *cap, bool *same, struct err *e)
{
    *same = true;
    if (below_first_mark(in)) return OK;
    for (size_t i = 0; i < in->n;) {
        uint32_t cp;
        const int len = utf8_step((const uint8_t *)in->text + i, in->n - i, &cp);
        const int k = len < 3 ? -1 : find_class(cp);
        if (k >= 0) {
            if (*same) {
                TRY(mem_grow(out, cap, in->n + 1, 1, e));
                memcpy(*out, in->text, in->n);
                *same = false;
            }
            utf8_put(unicode_classes[k].stand_in, *out + i);
        }
        i += (size_t)len;
    }
    return OK;
}
