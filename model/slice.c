/* model/slice.c - see slice.h. */
#include "model/slice.h"

#include <stdio.h>

#include "model/decoder.h"

/* Weights are packed by this many columns: a cut elsewhere would be padded (kernels/cpu/linear.h). */
enum { FF_UNIT = 16, ROW_UNIT = 32 };

static uint32_t at(uint32_t n, uint32_t unit, uint32_t rank, uint32_t size)
{
    const uint64_t units = (n + unit - 1) / unit, v = units * rank / size * unit;
    return v < n ? (uint32_t)v : n;
}

/* Part `rank` of n things in whole units where there is one for every rank. */
static void cut(uint32_t n, uint32_t unit, uint32_t rank, uint32_t size, uint32_t *first, uint32_t *count)
{
    if ((n + unit - 1) / unit < size) unit = 1;
    *first = at(n, unit, rank, size);
    *count = at(n, unit, rank + 1, size) - *first;
}

static bool possible(const struct decoder_shape *s, uint32_t size)
{
    if (size == 0 || size > s->H || size > s->ff || size > s->V) return false;
    return size <= s->G || size % s->G == 0;
}

static status refuse(const struct decoder_shape *s, uint32_t size, struct err *e)
{
    char list[256] = "";
    for (uint32_t n = 1, k = 0; n <= s->H && k + 16 < sizeof list; n++)
        if (possible(s, n)) k += (uint32_t)snprintf(list + k, sizeof list - k, "%s%u", k ? ", " : "", n);
    return err_set(e, E_ARG, "%u tensor-parallel ranks: this model (%u query heads, %u KV heads, MLP of %u) can be cut into %s",
                   size, s->H, s->G, s->ff, list);
}

status decoder_slice_of(const struct decoder_shape *s, uint32_t rank, uint32_t size, struct decoder_slice *out, struct err *e)
{
    const uint32_t per = s->H / s->G;          /* query heads of a KV head */
    if (!possible(s, size)) return refuse(s, size, e);
    struct decoder_slice o = { .rank = rank, .size = size, .sharers = 1 };
    if (size <= s->G) {
        cut(s->G, 1, rank, size, &o.kv0, &o.kv_heads);
        o.head0 = o.kv0 * per;
        o.heads = o.kv_heads * per;
    } else {
        o.sharers = size / s->G;
        o.kv0 = rank / o.sharers;
        o.kv_heads = 1;
        /* The first ranks of those that share get the larger parts. */
        const uint32_t i = rank % o.sharers, less = per / o.sharers, more = per % o.sharers;
        o.head0 = o.kv0 * per + i * less + (i < more ? i : more);
        o.heads = less + (i < more);
    }
    cut(s->ff, FF_UNIT, rank, size, &o.ff0, &o.ff);
    cut(s->V, ROW_UNIT, rank, size, &o.row0, &o.rows);
    *out = o;
    return OK;
}
