/* kernels/cpu/select.c - the tokens to drop; OmniDrop Algorithm 1 (arXiv 2605.14458), see kernels/ops.h.
 *
 * Scores become unsigned keys of the same order (NaN lowest, -0 with +0), and the k lowest are found by
 * counting: 11 bits at a time from the top, each round looking only at what shared the bits so far. O(n),
 * no comparison sort. Ties: the lower index is kept, so of the keys equal to the last one dropped those
 * with the highest index go. */
#include <math.h>

#include "kernels/cpu/attention.h"

#define DIGIT 11

/* Ascending doubles to ascending integers; NaN is 0. */
static uint64_t key_of(double x)
{
    if (x != x) return 0;
    if (x == 0) x = 0; /* -0 */
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u >> 63 ? ~u : u | (uint64_t)1 << 63;
}

/* The k-th lowest (k >= 1) of key[0..n); *n_below: how many are lower. Orders `key` anew. */
static uint64_t kth_lowest(uint64_t *key, uint32_t n, uint32_t k, uint32_t *n_below)
{
    *n_below = 0;
    for (int shift = 64 - DIGIT;; shift = shift > DIGIT ? shift - DIGIT : 0) {
        uint32_t count[1 << DIGIT] = { 0 }, digit = 0, kept = 0;
        for (uint32_t i = 0; i < n; i++) count[key[i] >> shift & ((1 << DIGIT) - 1)]++;
        while (*n_below + count[digit] < k) *n_below += count[digit++];
        for (uint32_t i = 0; i < n; i++)
            if ((key[i] >> shift & ((1 << DIGIT) - 1)) == digit) key[kept++] = key[i];
        n = kept;
        if (n == 1 || shift == 0) return key[0];
    }
}

size_t cpu_select_scratch(const struct stream *st, uint32_t n)
{
    (void)st;
    return (size_t)n * (2 * sizeof(uint64_t) + sizeof(uint32_t) + 2);
}

/* Mark with 1 the k lowest of key[0..n) in drop, ties from the end; work: [n]. */
static void mark_lowest(const uint64_t *key, uint32_t n, uint32_t k, uint64_t *work, uint8_t *drop)
{
    memset(drop, 0, n);
    if (k == 0) return;
    uint32_t below;
    memcpy(work, key, n * sizeof *key);
    const uint64_t last = kth_lowest(work, n, k, &below);
    uint32_t equal = k - below;
    for (uint32_t i = n; i-- > 0;) {
        if (key[i] < last)
            drop[i] = 1;
        else if (key[i] == last && equal > 0)
            drop[i] = 1, equal--;
    }
}

/* Steps 1 to 5 of Algorithm 1: mark in drop. key holds the scores' keys and is overwritten. */
static void mark_diverse(const struct select_args *a, uint64_t *key, uint64_t *work, uint32_t *cand,
                         uint8_t *drop)
{
    uint8_t *out = drop + a->n; /* [n_cand] */
    uint32_t best = 0, n_cand = 0;
    for (uint32_t i = 1; i < a->n; i++)
        if (key[i] > key[best]) best = i;
    mark_lowest(key, a->n, a->k < a->n - a->k ? 2 * a->k : a->n, work, drop);
    for (uint32_t i = 0; i < a->n; i++)
        if (drop[i]) cand[n_cand++] = i;
    const double farthest = a->max_chunk > 1 ? a->max_chunk : 1, most = a->score[best];
    const double unit = a->relative && most > 0 && most < INFINITY ? most : 1;
    for (uint32_t i = 0; i < n_cand; i++) {
        const double apart = (double)a->chunk[best] - (double)a->chunk[cand[i]];
        const double D = (apart < 0 ? -apart : apart) / farthest;
        const double bonus = a->lambda_div * D;
        key[i] = key_of((double)a->score[cand[i]] / unit + bonus);
    }
    mark_lowest(key, n_cand, a->k, work, out);
    for (uint32_t i = 0; i < n_cand; i++) drop[cand[i]] = out[i];
}

status cpu_select(struct stream *st, const struct select_args *a, struct err *e)
{
    (void)st;
    if (a->k > a->n) return err_set(e, E_ARG, "selection: %u tokens to drop of %u", a->k, a->n);
    uint64_t *key = a->scratch, *work = key + a->n;
    uint32_t *cand = (uint32_t *)(work + a->n);
    uint8_t *drop = (uint8_t *)(cand + a->n);
    for (uint32_t i = 0; i < a->n; i++) key[i] = key_of(a->score[i]);
    if (a->tds && a->k > 0)
        mark_diverse(a, key, work, cand, drop);
    else
        mark_lowest(key, a->n, a->k, work, drop);
    uint32_t n = 0;
    for (uint32_t i = 0; i < a->n; i++)
        if (!drop[i]) a->keep[n++] = i;
    return OK;
}

/* ---- the same with nothing on the host ----------------------------------------------------------------- */

static void put(uint32_t *list, uint32_t i, uint32_t v)
{
    if (list) list[i] = v;
}

status cpu_list_rows(struct stream *st, const struct list_rows_args *a, struct err *e)
{
    (void)st;
    uint32_t n = 0;
    for (uint32_t i = 0; i < a->n; i++) {
        if (a->mark != NULL && !(a->mark[a->id[i]] & a->of)) continue;
        if (n < a->n_out) {
            put(a->row, n, a->first + i);
            put(a->out_id, n, a->id[i]);
            put(a->visible, n, a->place + i + 1);
        }
        n++;
    }
    if (n == a->n_out) return OK;
    return err_set(e, E_ARG, "list: %u rows were to be picked of %u, there are %u", a->n_out, a->n, n);
}

/* keep, place, score, chunk and what select needs. */
size_t cpu_choose_scratch(const struct stream *st, uint32_t n)
{
    return cpu_select_scratch(st, n) + (size_t)n * 16 + 8;
}

status cpu_choose(struct stream *st, const struct choose_args *a, struct err *e)
{
    uint32_t *keep = (uint32_t *)((char *)a->scratch + (cpu_select_scratch(st, a->n) + 7) / 8 * 8);
    uint32_t *place = keep + a->n, n = 0, kept = 0, out = 0;
    float *score = (float *)(place + a->n);
    int32_t *chunk = (int32_t *)(score + a->n);
    for (uint32_t i = 0; i < a->n; i++) {
        float sum = 0;
        for (uint32_t g = 0; g < a->G; g++) sum += a->partial[(size_t)g * a->n + i];
        a->score[i] = sum * a->by;
        if (!(a->mark[a->id[i]] & a->of)) continue;
        place[n] = i;
        score[n] = a->score[i];
        chunk[n++] = a->tds ? a->chunk[a->id[i]] : 0;
    }
    if (n != a->n_of)
        return err_set(e, E_ARG, "selection: %u tokens were said to be among %u rows, there are %u", a->n_of,
                       a->n, n);
    const struct select_args s = { .score = score,
                                   .chunk = chunk,
                                   .n = n,
                                   .k = a->k,
                                   .tds = a->tds,
                                   .relative = a->relative,
                                   .lambda_div = a->lambda_div,
                                   .max_chunk = a->max_chunk,
                                   .keep = keep,
                                   .scratch = a->scratch };
    TRY(cpu_select(st, &s, e));
    for (uint32_t i = 0, t = 0; i < a->n; i++) {
        const bool token = t < n && place[t] == i, stays = !token || (kept < n - a->k && keep[kept] == t);
        t += token;
        if (!stays) continue;
        kept += token;
        put(a->row, out, a->first + i);
        put(a->out_id, out, a->id[i]);
        put(a->visible, out++, i + 1);
    }
    return OK;
}
