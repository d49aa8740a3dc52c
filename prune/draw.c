/* prune/draw.c - see draw.h. */
#include "prune/draw.h"

#include <stdlib.h>

#include "base/mem.h"
#include "prune/choose.h"

struct drawn {
    uint64_t key;
    uint32_t index;
};

/* splitmix64 of a counter. */
static uint64_t hash(uint64_t seed, uint64_t i)
{
    uint64_t z = (seed ^ 0x5851f42d4c957f2du) + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int by_key(const void *pa, const void *pb)
{
    const struct drawn *a = pa, *b = pb;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return (a->index > b->index) - (a->index < b->index);
}

/* How many of sorted[0..n) come before d. */
static uint32_t rank_of(const struct drawn *d, const struct drawn *sorted, uint32_t n)
{
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t mid = low + (high - low) / 2;
        if (by_key(&sorted[mid], d) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

status draw_keep(uint64_t seed, uint32_t round, const struct prompt *p, unsigned kinds, uint32_t k,
                 struct prune_selection *s, struct err *e)
{
    struct drawn *all, *sorted;
    uint32_t n = 0, left = 0;
    status st = OK;
    const uint64_t own = round ? hash(seed, ~(uint64_t)round) : seed;
    TRY(mem_alloc(&all, 2 * (size_t)s->n_keep, sizeof *all, e));
    for (uint32_t i = 0; i < s->n_keep; i++)
        if (kinds >> p->kind[s->keep[i]] & 1) all[n++] = (struct drawn){ hash(own, s->keep[i]), s->keep[i] };
    sorted = all + n;
    for (uint32_t i = 0; i < n; i++) sorted[i] = all[i];
    qsort(sorted, n, sizeof *sorted, by_key);
    for (uint32_t i = 0, j = 0; i < s->n_keep; i++) {
        const bool drawn = j < n && all[j].index == s->keep[i];
        if (!drawn || k >= n || (k > 0 && by_key(&all[j], &sorted[k - 1]) <= 0))
            s->keep[left++] = s->keep[i];
        else if (st == OK && s->want_why)
            st = why_one(s, s->keep[i], (float)((double)all[j].key * 0x1p-64), rank_of(&all[j], sorted, n), PRUNE_BY_DRAW, e);
        j += drawn;
    }
    s->n_keep = left;
    free(all);
    return st;
}
