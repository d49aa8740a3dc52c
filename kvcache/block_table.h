/* kvcache/block_table.h - the pages of one (request, layer), in order.
 *   I4  n_pages == ceil(n_rows / page_tokens), n_pages <= cap */
#ifndef KVCACHE_BLOCK_TABLE_H
#define KVCACHE_BLOCK_TABLE_H

#include "kvcache/pool.h"

struct block_table {
    uint32_t *page;                /* [cap] owned                       */
    uint32_t n_rows, n_pages, cap; /* cap: fixed at admission, in pages */
};

/* Room for max_rows rows; holds no page yet. E_NOMEM. */
status block_table_init(struct block_table *t, const struct kv_pool *p, uint32_t max_rows, struct err *e);

/* Grow by n rows, taking pages from *r as needed. Asserts that the cap and the promise suffice. */
void block_table_append(struct block_table *t, struct kv_pool *p, struct kv_reservation *r, uint32_t n);

/* Begin with n full pages that another table holds too: only on a table without rows. */
void block_table_share(struct block_table *t, struct kv_pool *p, const uint32_t *page, uint32_t n);

/* Keep the first n_rows rows; pages behind them go back to the pool. */
void block_table_trim(struct block_table *t, struct kv_pool *p, uint32_t n_rows);

/* Release all pages and the array. Safe on a zeroed table. */
void block_table_fini(struct block_table *t, struct kv_pool *p);

#endif
