/* kvcache/prefix.h - prompts that begin alike share the pages of what is alike.
 * An entry is the beginning of some request's rows, cut at a page's border: for each of its first n_layers layers the
 * pages of those rows, each held once more by the entry, and, where deeper layers exist, the rows' hidden states
 * entering layer n_layers. K and V of a row depend on the rows before it alone, so as long as no layer has dropped a
 * row, equal beginnings have equal pages, bit for bit.
 * What "alike" means is the caller's: it gives one digest for each page of rows, chained, so that equal digests at
 * block i mean equal rows 0..i.
 * Least recently used entries go first; pages still in a table of a running request stay until that ends. */
#ifndef KVCACHE_PREFIX_H
#define KVCACHE_PREFIX_H

#include <stdbool.h>

#include "kvcache/block_table.h"

struct kv_prefix_cache;
struct kv_block_digest { uint8_t byte[32]; };

struct kv_prefix_options {
    uint32_t n_layers;                     /* of the model                                        */
    uint64_t hidden_bytes_max;             /* of all entries' hidden states                       */
    uint32_t entries_max;                  /* 0: 4096, which is the most                          */
    void (*free_hidden)(void *self, void *hidden);
    void *self;
};

status kv_prefix_create(const struct kv_prefix_options *o, struct kv_pool *pool, struct kv_prefix_cache **out, struct err *e);
void kv_prefix_destroy(struct kv_prefix_cache **c);        /* every page goes home */

/* The longest beginning of digest[0..n) that an entry of exactly n_layers layers holds: blocks (pages of rows) that
 * match, 0: none. *page(l)[b]: see kv_prefix_page; *hidden its hidden states [rows, d] or NULL. Valid until the next
 * insert or reclaim. Counts as a use. */
struct kv_prefix_hit { uint32_t n_blocks, entry_blocks; void *hidden; const void *entry; };
struct kv_prefix_hit kv_prefix_find(struct kv_prefix_cache *c, const struct kv_block_digest *digest, uint32_t n,
                                    uint32_t n_layers);
/* Pages of layer l of the hit: [n_blocks]. */
const uint32_t *kv_prefix_pages(const struct kv_prefix_hit *h, uint32_t l);

/* Keep the first n blocks of table[l] for l < n_layers. hidden: owned from here (also on failure), NULL where n_layers is
 * all of them. What an entry already holds is not kept twice; an entry that is the beginning of the new one goes.
 * E_NOMEM: nothing is kept. */
status kv_prefix_insert(struct kv_prefix_cache *c, const struct kv_block_digest *digest, uint32_t n, uint32_t n_layers,
                        const struct block_table *table, void *hidden, uint64_t hidden_bytes, struct err *e);

/* Drop entries, the longest unused first, until n_pages pages became free or none is left. Returns how many became
 * free. UINT32_MAX: all entries. */
uint32_t kv_prefix_reclaim(struct kv_prefix_cache *c, uint32_t n_pages);

/* Drop the longest unused entry that has hidden states. false: none has. */
bool kv_prefix_drop_hidden(struct kv_prefix_cache *c);

struct kv_prefix_counts { uint32_t n_entries; uint32_t n_pages; uint64_t hidden_bytes; };   /* pages: that any entry holds */
struct kv_prefix_counts kv_prefix_read(const struct kv_prefix_cache *c);

#endif
