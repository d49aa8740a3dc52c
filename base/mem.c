/* base/mem.c - see mem.h. */
#include "base/mem.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_FROM ((size_t)4 << 20)
#define HUGE_PAGE ((size_t)2 << 20)

static atomic_int fail_after;      /* 0: never */
static atomic_bool failed;

void mem_fail_after(int n)
{
    fail_after = n;
    failed = false;
}

bool mem_failed(void) { return failed; }

/* Is this the call that a test wants to fail? */
static bool refused(void)
{
    if (fail_after == 0 || atomic_fetch_sub(&fail_after, 1) != 1) return false;
    failed = true;
    return true;
}

status mem_alloc(void *out, size_t n, size_t size, struct err *e)
{
    size_t bytes;
    void *p = NULL;
    if (!refused() && !__builtin_mul_overflow(n, size, &bytes)) p = calloc(n ? n : 1, size ? size : 1);
    if (p == NULL) return err_set(e, E_NOMEM, "out of memory: %zu x %zu bytes", n, size);
    memcpy(out, &p, sizeof p);
    return OK;
}

status mem_alloc_aligned(void *out, size_t bytes, struct err *e)
{
    void *p = NULL;
    const size_t align = bytes >= HUGE_FROM ? HUGE_PAGE : 64;
    size_t rounded;
    if (__builtin_add_overflow(bytes ? bytes : 1, align - 1, &rounded)) rounded = 0;
    rounded = rounded / align * align;
    if (refused() || rounded == 0 || posix_memalign(&p, align, rounded) != 0)
        return err_set(e, E_NOMEM, "out of memory: %zu bytes", bytes);
    if (align == HUGE_PAGE) madvise(p, rounded, MADV_HUGEPAGE);
    memcpy(out, &p, sizeof p);
    return OK;
}

status mem_grow(void *arr, size_t *cap, size_t need, size_t size, struct err *e)
{
    if (need <= *cap) return OK;
    size_t n = *cap ? *cap : 16;
    while (n < need && n <= SIZE_MAX / 2) n *= 2;
    void *p, *q = NULL;
    memcpy(&p, arr, sizeof p);
    size_t bytes;
    if (!refused() && n >= need && !__builtin_mul_overflow(n, size, &bytes)) q = realloc(p, bytes);
    if (q == NULL) return err_set(e, E_NOMEM, "out of memory: %zu x %zu bytes", need, size);
    memcpy(arr, &q, sizeof q);
    *cap = n;
    return OK;
}

void *mem_must(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size ? size : 1);      /* not mem_alloc: a test's refusal would be an abort */
    if (p == NULL) {
        fprintf(stderr, "omnidrop: out of memory: %zu x %zu bytes\n", n, size);
        abort();
    }
    return p;
}

char *mem_must_strdup(const char *s)
{
    const size_t n = strlen(s) + 1;
    return memcpy(mem_must(n, 1), s, n);
}
