/* base/range.h - blocks out of a range of addresses that is somebody else's and is never touched here (a device's memory): only
 * where each block begins and ends is kept, on the host.
 *
 * Free neighbours are always one block, so a block is refused only where no gap is long enough. Gaps are kept by size, in classes a
 * quarter of a power of two wide: taking looks through one class and a bitmap, giving back through nothing. Whoever gives back what
 * has been taken last first (as calls nest) finds everything in one piece again, whatever the sizes. */
#ifndef BASE_RANGE_H
#define BASE_RANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define RANGE_ALIGN 256            /* of every block; sizes are rounded up to it */

/* Bytes that a block of so many takes up. */
static inline size_t range_bytes(size_t bytes) { return bytes == 0 ? RANGE_ALIGN : (bytes + RANGE_ALIGN - 1) / RANGE_ALIGN * RANGE_ALIGN; }

struct range;

/* base: a multiple of RANGE_ALIGN. *out is owned. E_NOMEM. */
status range_create(void *base, size_t bytes, struct range **out, struct err *e);
void range_destroy(struct range **r);      /* blocks may be out */

/* A block, or NULL where no gap is that long (or the host has no memory for the list). */
void *range_take(struct range *r, size_t bytes);
/* false: p is no block that is out. */
bool range_give(struct range *r, const void *p);
bool range_has(const struct range *r, const void *p);      /* inside the range, in a block or not */
/* Bytes of the block that begins at p, rounded; 0: none is out there. */
size_t range_size(const struct range *r, const void *p);

struct range_counts { size_t bytes, used, longest, most; uint32_t n_used, n_gaps; };   /* longest: gap; most: ever used */
struct range_counts range_read(const struct range *r);

/* Aborts with what is wrong: blocks and gaps lie end to end from base to its end, no two gaps side by side, lists and counts agree. */
void range_check(const struct range *r);

#endif
