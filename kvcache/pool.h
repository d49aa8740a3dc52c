/* kvcache/pool.h - the pages of one rank, and the promises made on them.
 * A page holds page_tokens rows of K and V of *one layer*. All pages have the same bytes, so a page is a number and
 * any layer of any request can have it. Its life:
 *   1 reserve   at admission: an upper bound for the whole request   (may say no)
 *   2 take      just before a layer runs: a promise becomes a page   (cannot fail)
 *   3 forfeit   when the layer is done: the unused rest of the promise
 *   4 release   trim, finish, cancel, failure: the page is free again
 * Invariants, checked by kv_pool_check() after every call in debug builds and by the property test:
 *   I1  n_free + n_held == n_total
 *   I2  n_reserved <= n_free
 *   I3  a page is in as many tables as its reference count says
 * The pool knows numbers only; the memory behind them belongs to the device (kernels/ops.h, struct kv_shape). */
#ifndef KVCACHE_POOL_H
#define KVCACHE_POOL_H

#include <stdint.h>

#include "base/err.h"

struct kv_pool;                               /* opaque; created once, at start       */
struct kv_reservation { uint32_t n_pages; };  /* moves with its request; never copied */

/* *out owns the book-keeping of n_pages pages of page_tokens rows each. E_ARG: a zero. */
status kv_pool_create(uint32_t n_pages, uint32_t page_tokens, struct kv_pool **out, struct err *e);
void kv_pool_destroy(struct kv_pool **p);     /* asserts that every page is home      */

/* Pages that n_rows rows of one layer need: ceil(n_rows / page_tokens). */
uint32_t kv_pages_of(const struct kv_pool *p, uint32_t n_rows);

/* Promise n_pages to the caller, who owns *out until kv_forfeit(). Adds to what *out already holds.
 * E_FULL: fewer than n_pages are neither held nor promised; the text names both numbers.
 * On failure *out is unchanged. O(1). */
status kv_reserve(struct kv_pool *p, uint32_t n_pages, struct kv_reservation *out, struct err *e);

/* Give back n_pages of a promise (kv_forfeit_all: all that is left). O(1). */
void kv_forfeit(struct kv_pool *p, struct kv_reservation *r, uint32_t n_pages);
void kv_forfeit_all(struct kv_pool *p, struct kv_reservation *r);

/* A promised page becomes a held one, count 1. Cannot fail: the promise was the check. O(1). */
uint32_t kv_take(struct kv_pool *p, struct kv_reservation *r);

/* One more table holds the page / one fewer; at zero it is free again. O(1). */
void kv_share(struct kv_pool *p, uint32_t page);
void kv_release(struct kv_pool *p, uint32_t page);

uint32_t kv_page_tokens(const struct kv_pool *p);
uint32_t kv_n_total(const struct kv_pool *p);
uint32_t kv_n_free(const struct kv_pool *p);       /* promised ones among them */
uint32_t kv_n_reserved(const struct kv_pool *p);
uint32_t kv_n_held_max(const struct kv_pool *p);   /* high-water mark of held pages */
uint32_t kv_count(const struct kv_pool *p, uint32_t page);   /* tables that hold the page */

/* I1, I2 and the reference counts' sanity; aborts with what was wrong. O(pages). */
void kv_pool_check(const struct kv_pool *p);

#endif
