/* kvcache/pool.c - see pool.h. A stack of free page numbers and a count for each page. */
#include "kvcache/pool.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"

struct kv_pool {
    uint32_t n_total, n_free, n_reserved, n_held_max, page_tokens;
    uint32_t *free_page; /* [n_total] stack: the first n_free entries are free */
    uint32_t *count;     /* [n_total] tables that hold the page */
};

status kv_pool_create(uint32_t n_pages, uint32_t page_tokens, struct kv_pool **out, struct err *e)
{
    struct kv_pool *p;
    if (n_pages == 0 || page_tokens == 0)
        return err_set(e, E_ARG, "a pool of %u pages of %u tokens: both must be above 0", n_pages,
                       page_tokens);
    TRY(mem_alloc(&p, 1, sizeof *p, e));
    status st = mem_alloc(&p->free_page, n_pages, sizeof *p->free_page, e);
    if (st == OK) st = mem_alloc(&p->count, n_pages, sizeof *p->count, e);
    if (st != OK) {
        free(p->free_page);
        free(p);
        return st;
    }
    p->n_total = p->n_free = n_pages;
    p->page_tokens = page_tokens;
    for (uint32_t i = 0; i < n_pages; i++) p->free_page[i] = n_pages - 1 - i; /* page 0 is taken first */
    *out = p;
    return OK;
}

void kv_pool_destroy(struct kv_pool **pp)
{
    struct kv_pool *p = *pp;
    if (p == NULL) return;
    assert(p->n_free == p->n_total && p->n_reserved == 0);
    free(p->free_page);
    free(p->count);
    free(p);
    *pp = NULL;
}

uint32_t kv_pages_of(const struct kv_pool *p, uint32_t n_rows)
{
    return n_rows / p->page_tokens + (n_rows % p->page_tokens != 0);
}

status kv_reserve(struct kv_pool *p, uint32_t n_pages, struct kv_reservation *out, struct err *e)
{
    const uint32_t room = p->n_free - p->n_reserved;
    if (n_pages > room)
        return err_set(e, E_FULL, "%u pages of KV are needed and %u of %u are neither held nor promised",
                       n_pages, room, p->n_total);
    p->n_reserved += n_pages;
    out->n_pages += n_pages;
    return OK;
}

void kv_forfeit(struct kv_pool *p, struct kv_reservation *r, uint32_t n_pages)
{
    assert(n_pages <= r->n_pages && n_pages <= p->n_reserved);
    r->n_pages -= n_pages;
    p->n_reserved -= n_pages;
}

void kv_forfeit_all(struct kv_pool *p, struct kv_reservation *r)
{
    kv_forfeit(p, r, r->n_pages);
}

uint32_t kv_take(struct kv_pool *p, struct kv_reservation *r)
{
    assert(r->n_pages > 0 && p->n_reserved > 0 && p->n_free > 0);
    r->n_pages--;
    p->n_reserved--;
    const uint32_t page = p->free_page[--p->n_free];
    assert(p->count[page] == 0);
    p->count[page] = 1;
    if (p->n_total - p->n_free > p->n_held_max) p->n_held_max = p->n_total - p->n_free;
    return page;
}

void kv_share(struct kv_pool *p, uint32_t page)
{
    assert(page < p->n_total && p->count[page] > 0);
    p->count[page]++;
}

void kv_release(struct kv_pool *p, uint32_t page)
{
    assert(page < p->n_total && p->count[page] > 0);
    if (--p->count[page] == 0) p->free_page[p->n_free++] = page;
}

uint32_t kv_page_tokens(const struct kv_pool *p)
{
    return p->page_tokens;
}

uint32_t kv_n_total(const struct kv_pool *p)
{
    return p->n_total;
}
uint32_t kv_n_free(const struct kv_pool *p)
{
    return p->n_free;
}
uint32_t kv_n_reserved(const struct kv_pool *p)
{
    return p->n_reserved;
}
uint32_t kv_n_held_max(const struct kv_pool *p)
{
    return p->n_held_max;
}

uint32_t kv_count(const struct kv_pool *p, uint32_t page)
{
    assert(page < p->n_total);
    return p->count[page];
}

void kv_pool_check(const struct kv_pool *p)
{
    uint32_t held = 0;
    for (uint32_t i = 0; i < p->n_total; i++) held += p->count[i] > 0;
    const char *broken = NULL;
    if (p->n_free + held != p->n_total) broken = "I1: free + held != total";
    if (p->n_reserved > p->n_free) broken = "I2: more is promised than is free";
    for (uint32_t i = 0; i < p->n_free; i++)
        if (p->count[p->free_page[i]] != 0) broken = "I3: a free page is in a table";
    if (broken == NULL) return;
    fprintf(stderr, "kv_pool: %s (free %u, held %u, total %u, promised %u)\n", broken, p->n_free, held,
            p->n_total, p->n_reserved);
    abort();
}
