/* model/tokenizer.c - encoding and look-ups; see tokenizer.h. Loading is in tokenizer_load.c.
 *
 *   segments -> chunks between added tokens -> valid UTF-8, NFC (normalize.c) -> pieces -> merges
 *
 * Every byte on the way knows the offset it came from, so that a token knows whose characters it holds. */
#include "model/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/normalize.h"
#include "model/tokenizer_inside.h"

#define TEXT_MAX    ((size_t)64 << 20)
#define SHORT_PIECE 24 /* bytes; longer pieces merge through a heap */

/* ---- look-ups ----------------------------------------------------------------------------------------- */

uint32_t tokenizer_n_ids(const struct tokenizer *t)
{
    return t->n_ids;
}

static const struct vocab_entry *entry_of(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && (uint32_t)id < t->n_ids && t->entry[id].defined ? &t->entry[id] : NULL;
}

bool tokenizer_has(const struct tokenizer *t, int32_t id)
{
    return entry_of(t, id) != NULL;
}

bool tokenizer_is_added(const struct tokenizer *t, int32_t id)
{
    const struct vocab_entry *v = entry_of(t, id);
    return v != NULL && v->added;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    const struct vocab_entry *v = entry_of(t, id);
    return v != NULL && v->special;
}

const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *n)
{
    const struct vocab_entry *v = entry_of(t, id);
    *n = v != NULL ? v->len : 0;
    return v != NULL ? t->bytes + v->at : NULL;
}

size_t tokenizer_bytes_max(const struct tokenizer *t)
{
    return t->longest;
}

int32_t tokenizer_id(const struct tokenizer *t, const char *text)
{
    const size_t n = strlen(text);
    for (size_t i = 0; i < t->n_added; i++)
        if (t->added[i].n == n && memcmp(t->added[i].text, text, n) == 0) return (int32_t)t->added[i].id;
    const uint32_t id = tokenizer_find_bytes(t, text, n);
    return id == NO_TOKEN ? -1 : (int32_t)id;
}

/* ---- the state of one call ---------------------------------------------------------------------------- */

struct symbol {
    uint32_t id, at, prev, next;
}; /* a token that may still grow; NO_TOKEN ends prev and next */

struct encoder {
    const struct tokenizer *t;
    const struct text_segment *seg;
    size_t n_seg;
    struct token_list *out;
    struct clean_text raw, nfc; /* the chunk at hand */
    char *shadow;
    size_t shadow_cap;
    pcre2_match_data *match;
    struct symbol *symbol;
    uint64_t *heap; /* rank << 32 | symbol */
    size_t symbol_cap, heap_cap, n_heap;
    size_t after;       /* see emit_from; 0 at the start of a chunk */
    size_t seg_at;      /* segments before it end before the next token */
    uint64_t seg_begin; /* where segment seg_at begins */
};

/* Does [begin, end) hold a byte of user text? Ranges come in ascending order. */
static bool holds_user_text(struct encoder *x, uint64_t begin, uint64_t end)
{
    while (x->seg_at < x->n_seg && x->seg_begin + x->seg[x->seg_at].n <= begin)
        x->seg_begin += x->seg[x->seg_at++].n;
    uint64_t at = x->seg_begin;
    for (size_t i = x->seg_at; i < x->n_seg && at < end; at += x->seg[i++].n)
        if (x->seg[i].is_user_text && x->seg[i].n > 0) return true;
    return false;
}

static status emit(struct encoder *x, uint32_t id, uint64_t begin, uint64_t end, struct err *e)
{
    struct token_list *l = x->out;
    if (l->n == l->cap) {
        size_t cap = l->cap, cap_begin = l->cap, cap_end = l->cap;
        TRY(mem_grow(&l->token, &cap, l->n + 1, sizeof *l->token, e));
        TRY(mem_grow(&l->begin, &cap_begin, l->n + 1, sizeof *l->begin, e));
        TRY(mem_grow(&l->end, &cap_end, l->n + 1, sizeof *l->end, e));
        l->cap = cap;
    }
    const bool user = !x->t->entry[id].added && holds_user_text(x, begin, end);
    l->token[l->n] = (struct prompt_token){ .id = (int32_t)id, .is_user_text = user };
    l->begin[l->n] = begin;
    l->end[l->n++] = end;
    return OK;
}

/* A token of bytes [a, b) of the clean text c. It ends where its last character ends: x->after is that
 * place for all bytes with this origin, remembered because a long sequence that NFC changed has one
 * origin. */
static status emit_from(struct encoder *x, const struct clean_text *c, uint32_t id, size_t a, size_t b,
                        struct err *e)
{
    if (x->after < b || c->from[b - 1] != c->from[x->after - 1]) {
        x->after = b;
        while (x->after < c->n && c->from[x->after] <= c->from[b - 1]) x->after++;
    }
    return emit(x, id, c->from[a], c->from[x->after], e);
}

/* ---- merging ------------------------------------------------------------------------------------------ */

static void heap_push(struct encoder *x, uint64_t key)
{
    size_t i = x->n_heap++;
    while (i > 0 && x->heap[(i - 1) / 2] > key) {
        x->heap[i] = x->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    x->heap[i] = key;
}

static uint64_t heap_pop(struct encoder *x)
{
    const uint64_t top = x->heap[0], last = x->heap[--x->n_heap];
    size_t i = 0;
    for (size_t c = 1; c < x->n_heap; c = 2 * i + 1) {
        if (c + 1 < x->n_heap && x->heap[c + 1] < x->heap[c]) c++;
        if (last <= x->heap[c]) break;
        x->heap[i] = x->heap[c];
        i = c;
    }
    x->heap[i] = last;
    return top;
}

static const struct merge_slot *pair_at(const struct encoder *x, uint32_t i)
{
    const struct symbol *s = &x->symbol[i];
    if (s->id == NO_TOKEN || s->next == NO_TOKEN) return NULL;
    return find_merge(x->t, s->id, x->symbol[s->next].id);
}

static void push_pair(struct encoder *x, uint32_t i)
{
    const struct merge_slot *m = pair_at(x, i);
    if (m != NULL) heap_push(x, (uint64_t)m->rank << 32 | i);
}

static void merge_at(struct encoder *x, uint32_t i, uint32_t id)
{
    struct symbol *s = &x->symbol[i], *gone = &x->symbol[s->next];
    s->id = id;
    s->next = gone->next;
    if (gone->next != NO_TOKEN) x->symbol[gone->next].prev = i;
    gone->id = NO_TOKEN;
}

/* Lowest rank first, leftmost of equals: n log n. A key is stale when the pair at its place has another
 * rank by now. */
static void merge_long(struct encoder *x, uint32_t n)
{
    x->n_heap = 0;
    for (uint32_t i = 0; i + 1 < n; i++) push_pair(x, i);
    while (x->n_heap > 0) {
        const uint64_t key = heap_pop(x);
        const uint32_t i = (uint32_t)key;
        const struct merge_slot *m = pair_at(x, i);
        if (m == NULL || m->rank != key >> 32) continue;
        merge_at(x, i, m->id);
        push_pair(x, i);
        if (x->symbol[i].prev != NO_TOKEN) push_pair(x, x->symbol[i].prev);
    }
}

/* The same by looking at all pairs each time: faster for words. */
static void merge_short(struct encoder *x, uint32_t n)
{
    const struct merge_slot *pair[SHORT_PIECE];
    uint32_t at[SHORT_PIECE]; /* symbols alive */
    for (uint32_t i = 0; i < n; i++) {
        at[i] = i;
        pair[i] = pair_at(x, i);
    }
    for (;;) {
        uint32_t best = NO_TOKEN, rank = NO_TOKEN;
        for (uint32_t i = 0; i + 1 < n; i++)
            if (pair[i] != NULL && pair[i]->rank < rank) {
                rank = pair[i]->rank;
                best = i;
            }
        if (best == NO_TOKEN) return;
        merge_at(x, at[best], pair[best]->id);
        n--;
        memmove(at + best + 1, at + best + 2, (n - best - 1) * sizeof *at);
        memmove(pair + best + 1, pair + best + 2, (n - best - 1) * sizeof *pair);
        pair[best] = pair_at(x, at[best]);
        if (best > 0) pair[best - 1] = pair_at(x, at[best - 1]);
    }
}

/* Bytes [a, b) of the clean text: one piece. */
static status encode_piece(struct encoder *x, const struct clean_text *c, size_t a, size_t b, struct err *e)
{
    const struct tokenizer *t = x->t;
    const uint8_t *s = (const uint8_t *)c->text + a;
    const uint32_t n = (uint32_t)(b - a);
    if (n == 1) return emit_from(x, c, t->byte_id[s[0]], a, b, e);
    if (t->ignore_merges) {
        const uint32_t id = tokenizer_find_bytes(t, c->text + a, n);
        if (id != NO_TOKEN) return emit_from(x, c, id, a, b, e);
    }
    TRY(mem_grow(&x->symbol, &x->symbol_cap, n, sizeof *x->symbol, e));
    for (uint32_t i = 0; i < n; i++)
        x->symbol[i] =
            (struct symbol){ t->byte_id[s[i]], i, i ? i - 1 : NO_TOKEN, i + 1 < n ? i + 1 : NO_TOKEN };
    if (n <= SHORT_PIECE) {
        merge_short(x, n);
    } else {
        TRY(mem_grow(&x->heap, &x->heap_cap, (size_t)3 * n, sizeof *x->heap, e));
        merge_long(x, n);
    }
    for (uint32_t i = 0; i != NO_TOKEN; i = x->symbol[i].next) {
        const uint32_t next = x->symbol[i].next, end = next == NO_TOKEN ? n : x->symbol[next].at;
        TRY(emit_from(x, c, x->symbol[i].id, a + x->symbol[i].at, a + end, e));
    }
    return OK;
}

/* ---- pieces ------------------------------------------------------------------------------------------- */

/* The next match in s[at..n). *found false: there is none. */
static status next_match(struct encoder *x, const char *s, size_t n, size_t at, bool *found, size_t *a,
                         size_t *b, struct err *e)
{
    int rc = pcre2_match(x->t->pattern, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, x->match, NULL);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(x->t->pattern, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, x->match,
                         NULL);
    *found = rc > 0;
    if (rc > 0) {
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(x->match);
        *a = v[0];
        *b = v[1];
    } else if (rc != PCRE2_ERROR_NOMATCH) {
        return err_set(e, E_ARG,
                       "the text cannot be split by the tokenizer's pattern (error %d of the pattern "
                       "matcher at byte %zu of %zu): shorten it",
                       rc, at, n);
    }
    return OK;
}

/* All pieces of the chunk: what matches, and what lies between. */
static status encode_pieces(struct encoder *x, const struct clean_text *c, struct err *e)
{
    bool same, found = true;
    TRY(clean_shadow(c, &x->shadow, &x->shadow_cap, &same, e));
    const char *s = same ? c->text : x->shadow;
    size_t done = 0, at = 0, a = 0, b = 0;
    x->after = 0;
    while (at < c->n) {
        TRY(next_match(x, s, c->n, at, &found, &a, &b, e));
        if (!found) break;
        if (b <= a) { /* an empty match splits nothing: look on behind the next character */
            for (at = a + 1; at < c->n && ((uint8_t)s[at] & 0xc0) == 0x80;) at++;
            continue;
        }
        if (a < done) a = done; /* a pattern may reset its start with \K; pieces never overlap */
        if (a > done) TRY(encode_piece(x, c, done, a, e));
        if (b > a) TRY(encode_piece(x, c, a, b, e));
        if (b > done) done = b;
        at = b > at ? b : at + 1;
    }
    return done < c->n ? encode_piece(x, c, done, c->n, e) : OK;
}

/* The chunk in x->raw ends: encode and empty it. */
static status flush(struct encoder *x, struct err *e)
{
    bool same = true;
    if (x->raw.n == 0) return OK;
    if (x->t->nfc) TRY(clean_nfc(&x->raw, &x->nfc, &same, e));
    TRY(encode_pieces(x, same ? &x->raw : &x->nfc, e));
    x->raw.n = 0;
    return OK;
}

/* ---- segments ----------------------------------------------------------------------------------------- */

/* The longest added token that begins at s[0..n), or NULL. */
static const struct added_token *added_at(const struct tokenizer *t, const char *s, size_t n)
{
    const struct added_token *best = NULL;
    for (size_t i = 0; i < t->n_added; i++) {
        const struct added_token *a = &t->added[i];
        if (a->n <= n && a->text[0] == s[0] && memcmp(a->text, s, a->n) == 0 &&
            (best == NULL || a->n > best->n))
            best = a;
    }
    return best;
}

static status add_segment(struct encoder *x, const struct text_segment *seg, uint64_t at, struct err *e)
{
    size_t done = 0;
    for (size_t i = 0; seg->is_template && i < seg->n;) {
        const struct added_token *a = added_at(x->t, seg->text + i, seg->n - i);
        if (a == NULL) {
            i++;
            continue;
        }
        TRY(clean_append(&x->raw, seg->text + done, i - done, (uint32_t)(at + done), e));
        TRY(flush(x, e));
        TRY(emit(x, a->id, at + i, at + i + a->n, e));
        i += a->n;
        done = i;
    }
    return clean_append(&x->raw, seg->text + done, seg->n - done, (uint32_t)(at + done), e);
}

status tokenizer_encode(const struct tokenizer *t, const struct text_segment *seg, size_t n_seg,
                        struct token_list *out, struct err *e)
{
    status st = OK;
    struct encoder x = { .t = t, .seg = seg, .n_seg = n_seg, .out = out };
    size_t total = 0;
    out->n = 0;
    for (size_t i = 0; i < n_seg; i++)
        if (seg[i].n > TEXT_MAX || (total += seg[i].n) > TEXT_MAX)
            return err_set(e, E_ARG, "a prompt of more than %zu bytes of text cannot be tokenised", TEXT_MAX);
    x.match = pcre2_match_data_create_from_pattern(t->pattern, NULL);
    if (x.match == NULL) return err_set(e, E_NOMEM, "out of memory for the pattern matcher");
    uint64_t at = 0;
    for (size_t i = 0; i < n_seg; at += seg[i++].n) TRY_GOTO(st, add_segment(&x, &seg[i], at, e), done);
    TRY_GOTO(st, flush(&x, e), done);
done:
    clean_free(&x.raw);
    clean_free(&x.nfc);
    free(x.shadow);
    free(x.symbol);
    free(x.heap);
    pcre2_match_data_free(x.match);
    return st;
}

status tokenizer_encode_text(const struct tokenizer *t, const char *text, size_t n, struct token_list *out,
                             struct err *e)
{
    const struct text_segment seg = { .text = text, .n = n };
    return tokenizer_encode(t, &seg, 1, out, e);
}

void token_list_free(struct token_list *l)
{
    free(l->token);
    free(l->begin);
    free(l->end);
    *l = (struct token_list){ 0 };
}
