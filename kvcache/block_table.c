/* kvcache/block_table.c - see block_table.h. */
#include "kvcache/block_table.h"

#include <assert.h>
#include <stdlib.h>

#include "base/mem.h"

status block_table_init(struct block_table *t, const struct kv_pool *p, uint32_t max_rows, struct err *e)
{
    uint32_t *page;
    const uint32_t cap = kv_pages_of(p, max_rows);
    TRY(mem_alloc(&page, cap, sizeof *page, e));
    *t = (struct block_table){ .page = page, .cap = cap };
    return OK;
}

void block_table_append(struct block_table *t, struct kv_pool *p, struct kv_reservation *r, uint32_t n)
{
    const uint32_t pages = kv_pages_of(p, t->n_rows + n);
    assert(pages <= t->cap);
    while (t->n_pages < pages) t->page[t->n_pages++] = kv_take(p, r);
    t->n_rows += n;
}

void block_table_share(struct block_table *t, struct kv_pool *p, const uint32_t *page, uint32_t n)
{
    assert(t->n_rows == 0 && n <= t->cap);
    for (uint32_t i = 0; i < n; i++) {
        kv_share(p, page[i]);
        t->page[i] = page[i];
    }
    t->n_pages = n;
    t->n_rows = n * kv_page_tokens(p);
}

void block_table_trim(struct block_table *t, struct kv_pool *p, uint32_t n_rows)
{
    assert(n_rows <= t->n_rows);
    const uint32_t pages = kv_pages_of(p, n_rows);
    while (t->n_pages > pages) kv_release(p, t->page[--t->n_pages]);
    t->n_rows = n_rows;
}

void block_table_fini(struct block_table *t, struct kv_pool *p)
{
    for (uint32_t i = 0; i < t->n_pages; i++) kv_release(p, t->page[i]);
    free(t->page);
    *t = (struct block_table){ 0 };
}
