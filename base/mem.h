/* base/mem.h - plain heap helpers. Memory comes from jemalloc in release builds (linked, nothing to call).
 * What is sized by us and small aborts on failure (mem_must); what is sized by input reports E_NOMEM. */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Zeroed memory for n elements of `size` bytes; *out owns it, free() it. n * size is checked for overflow.
 * E_NOMEM names the bytes. n == 0 gives a valid pointer to free. */
status mem_alloc(void *out, size_t n, size_t size, struct err *e);

/* As mem_alloc, not zeroed, 64-byte aligned; blocks of 4 MiB and more are 2 MiB aligned and ask for huge pages.
 * free() it. */
status mem_alloc_aligned(void *out, size_t bytes, struct err *e);

/* Grow *arr (owned, may be NULL) so that it holds at least `need` elements; *cap counts elements. Doubles. */
status mem_grow(void *arr, size_t *cap, size_t need, size_t size, struct err *e);

/* Small allocations sized by ourselves; abort with a message when the machine has nothing left. */
void *mem_must(size_t n, size_t size);
char *mem_must_strdup(const char *s);

/* For tests: the n-th call of mem_alloc, mem_alloc_aligned or growing mem_grow from now on (1: the next) reports
 * E_NOMEM, once; 0 calls it off. mem_failed: has it happened since? */
void mem_fail_after(int n);
bool mem_failed(void);

#endif
