/* kernels/cuda/select.cu - scores of tokens, which of them go (OmniDrop Algorithm 1), lists of rows. See kernels.h and
 * kernels/cpu/select.c. One block. Values become unsigned keys of the same order, in memory; the k lowest are found by counting, 8 bits at a time
 * from the top (whole numbers, so the order of the atomic adds does not matter). Each thread owns a stretch of indices: a
 * scan over threads then gives the rank among equals, and the place in the list of survivors. The doubles of the second
 * choice are multiplied, added and divided with one rounding each, as the CPU does. */
#include "kernels/cuda/device.h"

enum { THREADS = 1024, BINS = 256 };

/* ---- scores ---------------------------------------------------------------------------------------------- */

KERNEL BOUNDS(256, 1) score_kernel(const cuda_score_args a)
{
    const uint32_t i = blockIdx.x * 256 + threadIdx.x;
    if (i >= a.n) return;
    float sum = 0.0f;
    for (uint32_t g = 0; g < a.G; g++) sum += a.partial[(uint64_t)g * a.n + i];
    a.score[i] = sum * a.by;
}

status cuda_score(void *stream, const struct cuda_score_args *a, struct err *e)
{
    return launch("score", score_kernel, dim3(blocks_of(a->n, 256)), 256, 0, stream, *a, e);
}

/* ---- selection ------------------------------------------------------------------------------------------- */

struct select_shared {
    uint32_t bin[BINS];
    uint32_t part[THREADS / WARP];
    uint64_t best[THREADS / WARP];
    uint32_t best_at[THREADS / WARP];
    uint32_t digit, below;
};

/* Ascending doubles to ascending integers; NaN is 0. */
DEVICE uint64_t key_of(double x)
{
    if (x != x) return 0;
    if (x == 0) x = 0;                                            /* -0 */
    const uint64_t u = bits_of_f64(x);
    return u >> 63 ? ~u : u | (uint64_t)1 << 63;
}

/* The sum of x over the threads before this one; *all: over all. */
DEVICE uint32_t sum_before(uint32_t x, select_shared *s, uint32_t *all)
{
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint32_t sum = x;
    UNROLL for (uint32_t by = 1; by < WARP; by *= 2) {
        const uint32_t other = shuffle_up(sum, by);
        if (lane >= by) sum += other;
    }
    if (lane == WARP - 1) s->part[warp] = sum;
    __syncthreads();
    uint32_t before = 0, total = 0;
    for (uint32_t w = 0; w < THREADS / WARP; w++) {
        before += w < warp ? s->part[w] : 0;
        total += s->part[w];
    }
    __syncthreads();
    *all = total;
    return before + sum - x;
}

/* A thread's stretch of n indices. */
DEVICE uint32_t stretch(uint32_t n, uint32_t *end)
{
    const uint32_t each = (n + THREADS - 1) / THREADS, begin = threadIdx.x * each < n ? threadIdx.x * each : n;
    *end = begin + each < n ? begin + each : n;
    return begin;
}

/* Mark with 1 the k lowest of key[0..n) among those with in[i] (NULL: all), ties from the end; the others with 0. */
DEVICE void mark_lowest(const uint64_t *key, const uint8_t *in, uint32_t n, uint32_t k, uint8_t *drop, select_shared *s)
{
    uint64_t last = 0;
    uint32_t want = k, all, end;
    for (int shift = 56; k > 0 && shift >= 0; shift -= 8) {
        for (uint32_t b = threadIdx.x; b < BINS; b += THREADS) s->bin[b] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += THREADS)
            if ((in == NULL || in[i]) && (shift == 56 || key[i] >> (shift + 8) == last >> (shift + 8)))
                count_in_shared(&s->bin[key[i] >> shift & (BINS - 1)]);
        __syncthreads();
        const uint32_t mine = threadIdx.x < BINS ? s->bin[threadIdx.x] : 0, before = sum_before(mine, s, &all);
        if (before < want && want <= before + mine) {             /* one thread */
            s->digit = threadIdx.x;
            s->below = before;
        }
        __syncthreads();
        last |= (uint64_t)s->digit << shift;
        want -= s->below;
        __syncthreads();
    }
    const uint32_t begin = stretch(n, &end);                      /* `want` of those equal to `last` go, from the end */
    uint32_t equal = 0;
    for (uint32_t i = begin; i < end; i++) equal += k > 0 && (in == NULL || in[i]) && key[i] == last;
    uint32_t rank = sum_before(equal, s, &all);
    for (uint32_t i = begin; i < end; i++) {
        const bool of = k > 0 && (in == NULL || in[i]), same = of && key[i] == last;
        drop[i] = of && (key[i] < last || (same && rank >= all - want));
        rank += same;
    }
    __syncthreads();
}

/* The index of the greatest key among those with in[i] (NULL: all), the lowest of equals; no key is the greatest integer. */
DEVICE uint32_t arg_max(const uint64_t *key, const uint8_t *in, uint32_t n, select_shared *s)
{
    uint64_t best = 0;
    uint32_t at = 0, end;
    for (uint32_t i = stretch(n, &end); i < end; i++)
        if ((in == NULL || in[i]) && key[i] + 1 > best) best = key[i] + 1, at = i;
    UNROLL for (uint32_t by = 1; by < WARP; by *= 2) {            /* lanes ascend: what lies below wins of equals */
        const uint64_t other = shuffle_up((uint32_t)(best >> 32), by) * ((uint64_t)1 << 32) + shuffle_up((uint32_t)best, by);
        const uint32_t other_at = shuffle_up(at, by);
        if (other >= best && threadIdx.x % WARP >= by) best = other, at = other_at;
    }
    if (threadIdx.x % WARP == WARP - 1) s->best[threadIdx.x / WARP] = best, s->best_at[threadIdx.x / WARP] = at;
    __syncthreads();
    best = s->best[0], at = s->best_at[0];
    for (uint32_t w = 1; w < THREADS / WARP; w++)
        if (s->best[w] > best) best = s->best[w], at = s->best_at[w];
    __syncthreads();
    return at;
}

/* Chunk of row i. */
DEVICE double chunk_of(const cuda_select_args &a, uint32_t i) { return (double)a.chunk[a.id != NULL ? a.id[i] : i]; }

DEVICE void put(uint32_t *list, uint32_t i, uint32_t v)
{
    if (list != NULL) list[i] = v;
}

KERNEL BOUNDS(THREADS, 1) select_kernel(const cuda_select_args a)
{
    SHARED(struct select_shared, s);
    const uint32_t n = a.n, n_of = a.id != NULL ? a.n_of : n;
    const uint8_t *in = a.id != NULL ? a.in : NULL;
    uint32_t all, end;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        a.key[i] = key_of(a.score[i]);
        if (in != NULL) a.in[i] = (a.mark[a.id[i]] & a.of) != 0;
    }
    __syncthreads();
    if (a.tds && a.k > 0) {
        const uint32_t best = arg_max(a.key, in, n, &s);
        mark_lowest(a.key, in, n, a.k < n_of - a.k ? 2 * a.k : n_of, a.drop, &s);
        const double farthest = a.max_chunk > 1 ? a.max_chunk : 1, most = a.score[best];
        const double unit = a.relative && most > 0 && most < INFINITY ? most : 1;
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            if (!a.drop[i]) continue;
            const double apart = chunk_of(a, best) - chunk_of(a, i);
            const double D = div_rn(apart < 0 ? -apart : apart, farthest);
            a.key[i] = key_of(add_rn(div_rn(a.score[i], unit), mul_rn(a.lambda_div, D)));
        }
        __syncthreads();
        mark_lowest(a.key, a.drop, n, a.k, a.drop, &s);
    } else {
        mark_lowest(a.key, in, n, a.k, a.drop, &s);
    }
    uint32_t kept = 0;
    const uint32_t begin = stretch(n, &end);
    for (uint32_t i = begin; i < end; i++) kept += !a.drop[i];
    uint32_t place = sum_before(kept, &s, &all);
    for (uint32_t i = begin; i < end; i++) {
        if (a.drop[i] || place >= n - a.k) continue;
        put(a.keep, place, i);
        if (a.id != NULL) {
            put(a.row, place, a.first + i);
            put(a.out_id, place, a.id[i]);
            put(a.visible, place, i + 1);
        }
        place++;
    }
}

status cuda_select(void *stream, const struct cuda_select_args *a, struct err *e)
{
    if (a->k > a->n) return err_set(e, E_ARG, "selection: %u tokens to drop of %u", a->k, a->n);
    return launch("select", select_kernel, dim3(a->n > 0), THREADS, 0, stream, *a, e);
}

/* ---- lists ----------------------------------------------------------------------------------------------- */

DEVICE void put_row(const cuda_list_rows_args &a, uint32_t i, uint32_t at)
{
    if (at >= a.n_out) return;
    put(a.row, at, a.first + i);
    put(a.out_id, at, a.id[i]);
    put(a.visible, at, a.place + i + 1);
}

KERNEL BOUNDS(256, 1) all_rows_kernel(const cuda_list_rows_args a)
{
    const uint32_t i = blockIdx.x * 256 + threadIdx.x;
    if (i < a.n) put_row(a, i, i);
}

KERNEL BOUNDS(THREADS, 1) marked_rows_kernel(const cuda_list_rows_args a)
{
    SHARED(struct select_shared, s);
    uint32_t all, end, n = 0;
    const uint32_t begin = stretch(a.n, &end);
    for (uint32_t i = begin; i < end; i++) n += (a.mark[a.id[i]] & a.of) != 0;
    uint32_t at = sum_before(n, &s, &all);
    for (uint32_t i = begin; i < end; i++)
        if (a.mark[a.id[i]] & a.of) put_row(a, i, at++);
}

status cuda_list_rows(void *stream, const struct cuda_list_rows_args *a, struct err *e)
{
    if (a->mark == NULL) return launch("all_rows", all_rows_kernel, dim3(blocks_of(a->n, 256)), 256, 0, stream, *a, e);
    return launch("marked_rows", marked_rows_kernel, dim3(a->n > 0), THREADS, 0, stream, *a, e);
}
