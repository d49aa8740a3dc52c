/* kernels/cuda/plain.cu - see plain.h. One warp a query row and head: 32 keys at a time, a lane a key for the scores, a lane a
 * head dim for V, online softmax to base 2 in between. What keys receive: a thread a key, all rows past it in order. */
#include "kernels/cuda/plain.h"

enum { WARPS = 4, THREADS = WARPS * WARP, ROWS = CUDA_TILE_ROWS, DIMS = PLAIN_HEAD_MAX / WARP };
#define LOG2_E 1.4426950408889634f

/* Value c of K (kind 0) or V (1) of key j, in pages and in rows. */
template <class T> struct paged_keys {
    const cuda_pages *pages;
    const uint32_t *page;
    uint32_t g, bands;
    METHOD float at(uint32_t kind, uint32_t j, uint32_t c) const
    {
        const uint32_t byte = c * (uint32_t)sizeof(T);
        return f32_of(*(const T *)(page_head(*pages, bands, page[j / PAGE], kind, g) + piece_at(j % PAGE, byte / 16) + byte % 16));
    }
};
/* halve: the values as bf16 has them, as they would be in pages. */
DEVICE float halved(float x, bool halve) { return halve ? f32_of(bf16_of(x)) : x; }
struct matrix_keys {
    const float *k, *v;
    size_t ld;
    bool halve;
    METHOD float at(uint32_t kind, uint32_t j, uint32_t c) const { return halved((kind ? v : k)[(uint64_t)j * ld + c], halve); }
};

template <class Keys> DEVICE float dot(const Keys &keys, uint32_t j, const float *q, uint32_t D)
{
    float sum = 0.0f;
    for (uint32_t c = 0; c < D; c++) sum = fmaf(keys.at(0, j, c), q[c], sum);
    return sum;
}

/* One row, by a warp: q [D] in shared memory. out [D] unless NULL; lse: the log-sum-exp to base 2, unless NULL. */
template <class Keys, class T>
DEVICE void plain_row(const Keys &keys, const float *q, uint32_t D, uint32_t see, float scale_log2, T *out, float *lse)
{
    const uint32_t lane = threadIdx.x % WARP;
    float top = -INFINITY, sum = 0.0f, o[DIMS];
    UNROLL for (int i = 0; i < DIMS; i++) o[i] = 0.0f;
    for (uint32_t key = 0; key < see; key += WARP) {
        const uint32_t j = key + lane, n = see - key < WARP ? see - key : WARP;
        const float x = j < see ? dot(keys, j, q, D) * scale_log2 : -INFINITY;
        float now = fmaxf(top, x);
        UNROLL for (int i = WARP / 2; i > 0; i /= 2) now = fmaxf(now, shuffle_xor(now, i));
        const float p = exp2f(x - now), less = exp2f(top - now);
        sum = sum * less + warp_sum(p);
        top = now;
        if (out == NULL) continue;
        UNROLL for (int i = 0; i < DIMS; i++) o[i] *= less;
        for (uint32_t k = 0; k < n; k++) {
            const float weight = shuffle_from(p, k);
            UNROLL for (int i = 0; i < DIMS; i++)
                if (lane + i * WARP < D) o[i] = fmaf(weight, keys.at(1, key + k, lane + i * WARP), o[i]);
        }
    }
    if (lse != NULL && lane == 0) *lse = top + log2f(sum);
    if (out == NULL) return;
    UNROLL for (int i = 0; i < DIMS; i++)
        if (lane + i * WARP < D) store(out + lane + i * WARP, o[i] / sum);
}

struct plain_shared { float q[WARPS][PLAIN_HEAD_MAX]; };

/* This warp's q, once all its lanes have done with the one before. */
DEVICE const float *bring_q(plain_shared *s, const float *q, uint32_t D, bool halve)
{
    float *mine = s->q[threadIdx.x / WARP];
    __syncwarp();
    for (uint32_t c = threadIdx.x % WARP; c < D; c += WARP) mine[c] = halved(q[c], halve);
    __syncwarp();
    return mine;
}

/* ---- over pages ------------------------------------------------------------------------------------------ */

struct paged_job { struct cuda_attention_args a; uint32_t group, bands; bool decode; };

template <class T, class Out> KERNEL BOUNDS(THREADS, 1) paged_kernel(const paged_job j)
{
    SHARED(struct plain_shared, shared);
    const cuda_attention_args &a = j.a;
    const cuda_tile tile = a.tile[blockIdx.x];
    if (j.decode && tile.row != 0) return;                            /* the first pages' block takes all; CUDA_NO_TILE is not 0 either */
    const cuda_seq s = a.seq[tile.seq];
    const uint32_t g = blockIdx.y, D = a.pages.D, n = s.n_rows * j.group, to = tile.row + (j.decode ? n : (uint32_t)ROWS);
    const paged_keys<T> keys = { &a.pages, a.page + s.page, g, j.bands };
    for (uint32_t p = tile.row + threadIdx.x / WARP; p < (to < n ? to : n); p += WARPS) {
        const uint32_t row = s.row + p / j.group, h = g * j.group + p % j.group;
        const float *q = bring_q(&shared, a.q + (uint64_t)row * a.ldq + (uint64_t)h * D, D, false);
        plain_row(keys, q, D, a.visible[row], a.scale * LOG2_E, (Out *)a.out + ((uint64_t)row * a.H + h) * D, (float *)NULL);
    }
}

static status check_heads(uint32_t D, uint32_t H, uint32_t G, struct err *e)
{
    if (D == 0 || D % 2 != 0 || D > PLAIN_HEAD_MAX)
        return err_set(e, E_ARG, "attention: head dim %u: it must be even and 2 to %d", D, PLAIN_HEAD_MAX);
    if (G == 0 || H % G != 0) return err_set(e, E_ARG, "attention: %u query heads on %u KV heads: each must serve as many", H, G);
    return OK;
}

status plain_attention(void *stream, const struct cuda_attention_args *a, bool decode, struct err *e)
{
    TRY(check_heads(a->pages.D, a->H, a->pages.G, e));
    const paged_job j = { *a, a->H / a->pages.G, bands_of(a->pages.D, a->pages.dtype), decode };
    const bool half = a->pages.dtype == DT_BF16, half_out = a->out_dtype == DT_BF16;
    const auto kernel = half ? (half_out ? paged_kernel<uint16_t, uint16_t> : paged_kernel<uint16_t, float>)
                             : (half_out ? paged_kernel<float, uint16_t> : paged_kernel<float, float>);
    return launch("attention_plain", kernel, dim3(a->n_tiles, a->pages.G), THREADS, 0, stream, j, e);
}

/* ---- scores ---------------------------------------------------------------------------------------------- */

struct plain_scores_job { struct cuda_query_scores_args a; uint32_t group, rows, bands; };

template <class T> KERNEL BOUNDS(THREADS, 1) lse_rows_kernel(const plain_scores_job j)
{
    SHARED(struct plain_shared, shared);
    const cuda_query_scores_args &a = j.a;
    const uint32_t p = blockIdx.x * WARPS + threadIdx.x / WARP, g = blockIdx.y, D = a.pages.D;
    if (p >= j.rows) return;                                          /* the whole warp leaves */
    const paged_keys<T> keys = { &a.pages, a.page, g, j.bands };
    const float *q = bring_q(&shared, a.q + (uint64_t)(p / j.group) * a.ldq + (uint64_t)(g * j.group + p % j.group) * D, D, false);
    plain_row(keys, q, D, a.visible[p / j.group], a.scale * LOG2_E, (float *)NULL, a.lse + (uint64_t)g * j.rows + p);
}

template <class T> KERNEL BOUNDS(THREADS, 1) columns_kernel(const plain_scores_job j)
{
    const cuda_query_scores_args &a = j.a;
    const uint32_t key = blockIdx.x * THREADS + threadIdx.x, g = blockIdx.y, D = a.pages.D;
    if (key >= a.n_keys) return;
    const paged_keys<T> keys = { &a.pages, a.page, g, j.bands };
    float sum = 0.0f;
    for (uint32_t p = 0; p < j.rows; p++) {
        const float *q = a.q + (uint64_t)(p / j.group) * a.ldq + (uint64_t)(g * j.group + p % j.group) * D;
        if (key < a.visible[p / j.group]) sum += exp2f(dot(keys, key, q, D) * a.scale * LOG2_E - a.lse[(uint64_t)g * j.rows + p]);
    }
    a.partial[(uint64_t)g * a.n_keys + key] = sum;
}

status plain_query_scores(void *stream, const struct cuda_query_scores_args *a, struct err *e)
{
    TRY(check_heads(a->pages.D, a->H, a->pages.G, e));
    const uint32_t G = a->pages.G, group = a->H / G;
    const plain_scores_job j = { *a, group, a->n_q * group, bands_of(a->pages.D, a->pages.dtype) };
    const bool half = a->pages.dtype == DT_BF16;
    TRY(launch("score_rows_plain", half ? lse_rows_kernel<uint16_t> : lse_rows_kernel<float>, dim3(blocks_of(j.rows, WARPS), G), THREADS, 0,
               stream, j, e));
    return launch("scores_plain", half ? columns_kernel<uint16_t> : columns_kernel<float>, dim3(blocks_of(a->n_keys, THREADS), G), THREADS,
                  0, stream, j, e);
}

/* ---- segments -------------------------------------------------------------------------------------------- */

struct plain_segments_job { struct cuda_segment_attention_args a; bool attend; };

template <class Out> KERNEL BOUNDS(THREADS, 1) rows_kernel(const plain_segments_job j)
{
    SHARED(struct plain_shared, shared);
    const cuda_segment_attention_args &a = j.a;
    const cuda_tile tile = a.tile[blockIdx.x];
    const uint32_t begin = a.seg_start[tile.seq], n = a.seg_start[tile.seq + 1] - begin, h = blockIdx.y, D = a.D;
    const uint64_t at = (uint64_t)begin * a.ld + (uint64_t)h * D;
    const matrix_keys keys = { a.k + at, a.v + at, a.ld, a.out_dtype == DT_BF16 };
    for (uint32_t i = threadIdx.x / WARP; i < ROWS && tile.row + i < n; i += WARPS) {
        const uint32_t row = begin + tile.row + i;
        const float *q = bring_q(&shared, a.q + (uint64_t)row * a.ld + (uint64_t)h * D, D, keys.halve);
        plain_row(keys, q, D, n, a.scale * LOG2_E, j.attend ? (Out *)a.out + ((uint64_t)row * a.heads + h) * D : (Out *)NULL,
                  a.received != NULL ? a.lse + (uint64_t)row * a.heads + h : (float *)NULL);
    }
}

/* A tile's rows as keys: the rows of the segment in order for each head, the heads' sums in order. */
KERNEL BOUNDS(ROWS, 1) received_kernel(const plain_segments_job j)
{
    const cuda_segment_attention_args &a = j.a;
    const cuda_tile tile = a.tile[blockIdx.x];
    const uint32_t begin = a.seg_start[tile.seq], n = a.seg_start[tile.seq + 1] - begin, key = tile.row + threadIdx.x, D = a.D;
    if (key >= n) return;
    const bool halve = a.out_dtype == DT_BF16;
    float all = 0.0f;
    for (uint32_t h = 0; h < a.heads; h++) {
        const float *k = a.k + (uint64_t)(begin + key) * a.ld + (uint64_t)h * D;
        float sum = 0.0f;
        for (uint32_t i = begin; i < begin + n; i++) {
            const float *q = a.q + (uint64_t)i * a.ld + (uint64_t)h * D;
            float x = 0.0f;
            for (uint32_t c = 0; c < D; c++) x = fmaf(halved(k[c], halve), halved(q[c], halve), x);
            sum += exp2f(x * a.scale * LOG2_E - a.lse[(uint64_t)i * a.heads + h]);
        }
        all += sum;
    }
    a.received[begin + key] = all / ((float)a.heads * (float)n);
}

status plain_segments(void *stream, const struct cuda_segment_attention_args *a, bool attend, struct err *e)
{
    TRY(check_heads(a->D, a->heads, a->heads, e));
    const plain_segments_job j = { *a, attend };
    if (attend || a->received != NULL)
        TRY(launch("segment_rows_plain", a->out_dtype == DT_BF16 ? rows_kernel<uint16_t> : rows_kernel<float>, dim3(a->n_tiles, a->heads),
                   THREADS, 0, stream, j, e));
    return a->received == NULL ? OK : launch("received", received_kernel, dim3(a->n_tiles), ROWS, 0, stream, j, e);
}
