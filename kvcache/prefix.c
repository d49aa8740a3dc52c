/* kvcache/prefix.c - see prefix.h. Entries in an array; a search compares digests by bisection, since chained digests
 * match exactly up to the first difference. */
#include "kvcache/prefix.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define ENTRIES_MAX 4096u

struct entry {
    struct kv_block_digest *digest;        /* [n] */
    uint32_t n, n_layers;
    uint32_t *page;                        /* [n_layers, n] */
    void *hidden;
    uint64_t hidden_bytes, used;
};

struct kv_prefix_cache {
    struct kv_prefix_options o;
    struct kv_pool *pool;
    struct entry **entry;
    size_t n, cap;
    uint64_t clock, hidden_bytes;
    uint16_t *holds;               /* [pages of the pool] entries that hold it; there are ENTRIES_MAX at most */
    uint32_t n_pages;              /* that any entry holds */
};

status kv_prefix_create(const struct kv_prefix_options *o, struct kv_pool *pool, struct kv_prefix_cache **out, struct err *e)
{
    struct kv_prefix_cache *c;
    TRY(mem_alloc(&c, 1, sizeof *c, e));
    *c = (struct kv_prefix_cache){ .o = *o, .pool = pool };
    if (o->entries_max == 0 || o->entries_max > ENTRIES_MAX) c->o.entries_max = ENTRIES_MAX;
    const status st = mem_alloc(&c->holds, kv_n_total(pool), sizeof *c->holds, e);
    if (st != OK) {
        free(c);
        return st;
    }
    *out = c;
    return OK;
}

static void entry_free(struct kv_prefix_cache *c, struct entry *t)
{
    if (t->hidden && c->o.free_hidden) c->o.free_hidden(c->o.self, t->hidden);
    free(t->digest);
    free(t->page);
    free(t);
}

/* Returns the pages that became free. */
static uint32_t entry_drop(struct kv_prefix_cache *c, size_t i)
{
    struct entry *t = c->entry[i];
    const uint32_t before = kv_n_free(c->pool);
    for (size_t p = 0; p < (size_t)t->n * t->n_layers; p++) {
        c->n_pages -= --c->holds[t->page[p]] == 0;
        kv_release(c->pool, t->page[p]);
    }
    c->hidden_bytes -= t->hidden_bytes;
    c->entry[i] = c->entry[--c->n];
    entry_free(c, t);
    return kv_n_free(c->pool) - before;
}

void kv_prefix_destroy(struct kv_prefix_cache **pc)
{
    struct kv_prefix_cache *c = *pc;
    if (c == NULL) return;
    while (c->n) entry_drop(c, c->n - 1);
    free(c->holds);
    free(c->entry);
    free(c);
    *pc = NULL;
}

/* Blocks that are equal from the start. */
static uint32_t common(const struct kv_block_digest *a, uint32_t na, const struct kv_block_digest *b, uint32_t nb)
{
    uint32_t lo = 0, hi = na < nb ? na : nb;
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo + 1) / 2;
        if (memcmp(&a[mid - 1], &b[mid - 1], sizeof *a) == 0) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}

struct kv_prefix_hit kv_prefix_find(struct kv_prefix_cache *c, const struct kv_block_digest *digest, uint32_t n,
                                    uint32_t n_layers)
{
    struct kv_prefix_hit best = { 0 };
    struct entry *of = NULL;
    for (size_t i = 0; i < c->n; i++) {
        struct entry *t = c->entry[i];
        if (t->n_layers != n_layers) continue;
        const uint32_t same = common(t->digest, t->n, digest, n);
        if (same <= best.n_blocks) continue;
        of = t;
        best = (struct kv_prefix_hit){ .n_blocks = same, .entry_blocks = t->n, .hidden = t->hidden, .entry = t };
    }
    if (of) of->used = ++c->clock;
    return best;
}

const uint32_t *kv_prefix_pages(const struct kv_prefix_hit *h, uint32_t l)
{
    const struct entry *t = h->entry;
    return t->page + (size_t)l * t->n;
}

static size_t least_used(const struct kv_prefix_cache *c)
{
    size_t at = 0;
    for (size_t i = 1; i < c->n; i++)
        if (c->entry[i]->used < c->entry[at]->used) at = i;
    return at;
}

static status entry_make(struct kv_prefix_cache *c, const struct kv_block_digest *digest, uint32_t n, uint32_t n_layers,
                         struct entry **out, struct err *e)
{
    struct entry *t;
    TRY(mem_grow(&c->entry, &c->cap, c->n + 1, sizeof *c->entry, e));
    TRY(mem_alloc(&t, 1, sizeof *t, e));
    status st = mem_alloc(&t->digest, n, sizeof *t->digest, e);
    if (st == OK) st = mem_alloc(&t->page, (size_t)n * n_layers, sizeof *t->page, e);
    if (st != OK) {
        entry_free(c, t);
        return st;
    }
    memcpy(t->digest, digest, n * sizeof *digest);
    t->n = n;
    t->n_layers = n_layers;
    *out = t;
    return OK;
}

status kv_prefix_insert(struct kv_prefix_cache *c, const struct kv_block_digest *digest, uint32_t n, uint32_t n_layers,
                        const struct block_table *table, void *hidden, uint64_t hidden_bytes, struct err *e)
{
    struct entry *t = NULL;
    bool held = n == 0 || hidden_bytes > c->o.hidden_bytes_max;
    for (size_t i = 0; i < c->n && !held; i++)
        held = c->entry[i]->n_layers == n_layers && common(c->entry[i]->digest, c->entry[i]->n, digest, n) == n;
    const status st = held ? OK : entry_make(c, digest, n, n_layers, &t, e);
    if (held || st != OK) {
        if (hidden && c->o.free_hidden) c->o.free_hidden(c->o.self, hidden);
        return st;
    }
    for (uint32_t l = 0; l < n_layers; l++)
        for (uint32_t b = 0; b < n; b++) {
            t->page[(size_t)l * n + b] = table[l].page[b];
            kv_share(c->pool, table[l].page[b]);
            c->n_pages += c->holds[table[l].page[b]]++ == 0;
        }
    for (size_t i = c->n; i-- > 0;) {                  /* beginnings of the new one are held by it now */
        const struct entry *o = c->entry[i];
        if (o->n_layers == n_layers && o->n <= n && common(o->digest, o->n, digest, n) == o->n) entry_drop(c, i);
    }
    t->hidden = hidden;
    t->hidden_bytes = hidden_bytes;
    t->used = ++c->clock;
    while (c->n && (c->n >= c->o.entries_max || c->hidden_bytes + hidden_bytes > c->o.hidden_bytes_max))
        entry_drop(c, least_used(c));
    c->entry[c->n++] = t;
    c->hidden_bytes += hidden_bytes;
    return OK;
}

uint32_t kv_prefix_reclaim(struct kv_prefix_cache *c, uint32_t n_pages)
{
    uint32_t freed = 0;
    while (c->n && freed < n_pages) freed += entry_drop(c, least_used(c));
    return freed;
}

bool kv_prefix_drop_hidden(struct kv_prefix_cache *c)
{
    size_t at = c->n;
    for (size_t i = 0; i < c->n; i++)
        if (c->entry[i]->hidden && (at == c->n || c->entry[i]->used < c->entry[at]->used)) at = i;
    if (at == c->n) return false;
    entry_drop(c, at);
    return true;
}

struct kv_prefix_counts kv_prefix_read(const struct kv_prefix_cache *c)
{
    return (struct kv_prefix_counts){ .n_entries = (uint32_t)c->n, .n_pages = c->n_pages,
                                      .hidden_bytes = c->hidden_bytes };
}
