/* base/range.c - see range.h. Blocks and gaps are nodes of one array, by index: neighbours in order of addresses, gaps in a list of
 * their class, blocks in a list of their hash. */
#include "base/range.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"

enum { CLASSES = 256, BUCKETS = 256, NONE = 0xffffffff };   /* 64 powers of two, 4 classes each */

/* Places and sizes count pieces of RANGE_ALIGN bytes. */
struct node {
    uint64_t at, n;
    uint32_t before, after;        /* neighbours; of a node that is not used, after is the next such one */
    uint32_t next, last;           /* in its class, or in its bucket */
    bool gap;
};

struct range {
    unsigned char *base;
    uint64_t n;
    struct node *node;
    size_t cap;
    uint32_t n_nodes, spare, first;
    uint32_t class[CLASSES], bucket[BUCKETS];
    uint64_t some[CLASSES / 64];   /* classes that hold a gap */
    struct range_counts counts;
};

/* The class of gaps of n: those of a class are at least its least, and less than that of the next. */
static uint32_t class_of(uint64_t n)
{
    const uint32_t power = 63 - (uint32_t)__builtin_clzll(n);
    return 4 * power + (uint32_t)(power >= 2 ? n >> (power - 2) : n << (2 - power)) % 4;
}

static uint32_t bucket_of(uint64_t at) { return (uint32_t)((at * 0x9e3779b97f4a7c15u) >> 56); }

static uint32_t *list_of(struct range *r, const struct node *x)
{
    return x->gap ? &r->class[class_of(x->n)] : &r->bucket[bucket_of(x->at)];
}

static void mark(struct range *r, const struct node *x)
{
    const uint32_t c = class_of(x->n);
    if (!x->gap) return;
    if (r->class[c] == NONE) r->some[c / 64] &= ~((uint64_t)1 << c % 64);
    else r->some[c / 64] |= (uint64_t)1 << c % 64;
}

static void put_in(struct range *r, uint32_t i)
{
    struct node *x = &r->node[i];
    uint32_t *list = list_of(r, x);
    x->next = *list;
    x->last = NONE;
    if (*list != NONE) r->node[*list].last = i;
    *list = i;
    mark(r, x);
}

static void take_out(struct range *r, uint32_t i)
{
    struct node *x = &r->node[i];
    if (x->last != NONE) r->node[x->last].next = x->next;
    else *list_of(r, x) = x->next;
    if (x->next != NONE) r->node[x->next].last = x->last;
    mark(r, x);
}

/* A node that is not used, or NONE. */
static uint32_t new_node(struct range *r)
{
    const uint32_t i = r->spare;
    if (i != NONE) {
        r->spare = r->node[i].after;
        return i;
    }
    if (r->n_nodes == NONE - 1 || mem_grow(&r->node, &r->cap, (size_t)r->n_nodes + 1, sizeof *r->node, NULL) != OK) return NONE;
    return r->n_nodes++;
}

status range_create(void *base, size_t bytes, struct range **out, struct err *e)
{
    struct range *r;
    if ((uintptr_t)base % RANGE_ALIGN != 0) return err_set(e, E_ARG, "a range begins at %p: not at a multiple of %d", base, RANGE_ALIGN);
    TRY(mem_alloc(&r, 1, sizeof *r, e));
    r->base = base;
    r->n = bytes / RANGE_ALIGN;
    r->counts.bytes = r->n * RANGE_ALIGN;
    r->spare = r->first = NONE;
    for (int i = 0; i < CLASSES; i++) r->class[i] = NONE;
    for (int i = 0; i < BUCKETS; i++) r->bucket[i] = NONE;
    *out = r;
    if (r->n == 0) return OK;
    r->first = new_node(r);
    if (r->first == NONE) {
        range_destroy(out);
        return err_set(e, E_NOMEM, "no memory for the list of a range");
    }
    r->node[r->first] = (struct node){ .n = r->n, .before = NONE, .after = NONE, .gap = true };
    put_in(r, r->first);
    r->counts.n_gaps = 1;
    return OK;
}

void range_destroy(struct range **pr)
{
    if (*pr == NULL) return;
    free((*pr)->node);
    free(*pr);
    *pr = NULL;
}

/* The shortest gap of n's own class that is long enough, else any of the next class that has one. */
static uint32_t find(const struct range *r, uint64_t n)
{
    const uint32_t own = class_of(n);
    uint32_t best = NONE, word = (own + 1) / 64;
    for (uint32_t i = r->class[own]; i != NONE; i = r->node[i].next)
        if (r->node[i].n >= n && (best == NONE || r->node[i].n < r->node[best].n)) best = i;
    if (best != NONE || own + 1 == CLASSES) return best;
    uint64_t left = r->some[word] >> (own + 1) % 64 << (own + 1) % 64;
    while (left == 0 && ++word < CLASSES / 64) left = r->some[word];
    return left == 0 ? NONE : r->class[64 * word + (uint32_t)__builtin_ctzll(left)];
}

void *range_take(struct range *r, size_t bytes)
{
    const uint64_t n = range_bytes(bytes) / RANGE_ALIGN;
    if (bytes > r->counts.bytes) return NULL;
    const uint32_t i = find(r, n);
    if (i == NONE) return NULL;
    const uint32_t rest = r->node[i].n > n ? new_node(r) : NONE;     /* may move the nodes */
    if (r->node[i].n > n && rest == NONE) return NULL;
    take_out(r, i);
    struct node *x = &r->node[i];
    r->counts.n_gaps--;
    x->gap = false;
    if (rest != NONE) {
        r->node[rest] = (struct node){ .at = x->at + n, .n = x->n - n, .before = i, .after = x->after, .gap = true };
        if (x->after != NONE) r->node[x->after].before = rest;
        x->after = rest;
        x->n = n;
        put_in(r, rest);
        r->counts.n_gaps++;
    }
    put_in(r, i);
    r->counts.n_used++;
    r->counts.used += n * RANGE_ALIGN;
    if (r->counts.used > r->counts.most) r->counts.most = r->counts.used;
    return r->base + x->at * RANGE_ALIGN;
}

bool range_has(const struct range *r, const void *p)
{
    const uintptr_t at = (uintptr_t)p, base = (uintptr_t)r->base;
    return at >= base && at - base < r->counts.bytes;
}

static uint32_t block_at(const struct range *r, const void *p)
{
    const uintptr_t off = (uintptr_t)p - (uintptr_t)r->base;
    if (!range_has(r, p) || off % RANGE_ALIGN != 0) return NONE;
    uint32_t i = r->bucket[bucket_of(off / RANGE_ALIGN)];
    while (i != NONE && r->node[i].at != off / RANGE_ALIGN) i = r->node[i].next;
    return i;
}

size_t range_size(const struct range *r, const void *p)
{
    const uint32_t i = block_at(r, p);
    return i == NONE ? 0 : r->node[i].n * RANGE_ALIGN;
}

/* Gap b, behind gap a, becomes part of it. */
static void join(struct range *r, uint32_t a, uint32_t b)
{
    struct node *x = &r->node[a], *y = &r->node[b];
    x->n += y->n;
    x->after = y->after;
    if (x->after != NONE) r->node[x->after].before = a;
    y->after = r->spare;
    r->spare = b;
    r->counts.n_gaps--;
}

bool range_give(struct range *r, const void *p)
{
    uint32_t i = block_at(r, p);
    if (i == NONE) return false;
    take_out(r, i);
    r->counts.n_used--;
    r->counts.used -= r->node[i].n * RANGE_ALIGN;
    r->node[i].gap = true;
    r->counts.n_gaps++;
    const uint32_t before = r->node[i].before, after = r->node[i].after;
    if (after != NONE && r->node[after].gap) {
        take_out(r, after);
        join(r, i, after);
    }
    if (before != NONE && r->node[before].gap) {
        take_out(r, before);
        join(r, before, i);
        i = before;
    }
    put_in(r, i);
    return true;
}

struct range_counts range_read(const struct range *r)
{
    struct range_counts c = r->counts;
    uint32_t top = CLASSES;
    while (top > 0 && r->class[top - 1] == NONE) top--;
    c.longest = 0;
    for (uint32_t i = top > 0 ? r->class[top - 1] : NONE; i != NONE; i = r->node[i].next)
        if (r->node[i].n * RANGE_ALIGN > c.longest) c.longest = r->node[i].n * RANGE_ALIGN;
    return c;
}

static void broken(const char *what)
{
    fprintf(stderr, "range: %s\n", what);
    abort();
}

void range_check(const struct range *r)
{
    uint64_t at = 0, used = 0;
    uint32_t n_used = 0, n_gaps = 0, listed = 0, before = NONE;
    for (uint32_t i = r->first; i != NONE; before = i, i = r->node[i].after) {
        const struct node *x = &r->node[i];
        if (x->at != at || x->n == 0) broken("blocks do not lie end to end");
        if (x->before != before) broken("neighbours disagree");
        if (x->gap && before != NONE && r->node[before].gap) broken("two gaps side by side");
        at += x->n;
        if (x->gap) n_gaps++;
        else n_used++, used += x->n;
    }
    if (at != r->n) broken("the blocks are not the whole range");
    for (uint32_t c = 0; c < CLASSES; c++) {
        if ((r->class[c] != NONE) != (r->some[c / 64] >> c % 64 & 1)) broken("a class is marked wrong");
        for (uint32_t i = r->class[c]; i != NONE; i = r->node[i].next, listed++)
            if (!r->node[i].gap || class_of(r->node[i].n) != c) broken("a gap is in the list of another class");
    }
    for (uint32_t b = 0; b < BUCKETS; b++)
        for (uint32_t i = r->bucket[b]; i != NONE; i = r->node[i].next, listed++)
            if (r->node[i].gap || bucket_of(r->node[i].at) != b) broken("a block is in the list of another hash");
    if (listed != n_used + n_gaps) broken("not every block is in a list");
    if (n_used != r->counts.n_used || n_gaps != r->counts.n_gaps || used * RANGE_ALIGN != r->counts.used) broken("counted wrong");
}
