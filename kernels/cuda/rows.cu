/* kernels/cuda/rows.cu - what is bound by memory: rows looked up, normed, moved, added. See kernels.h.
 * One block a row (or a row's part), each thread eight columns at a time: two loads and one store of 16 bytes. Where the
 * width or an address does not allow vectors the same threads take the same columns one by one. Statistics are f32, summed
 * by thread, by warp, then over warps in order: an order that depends on the width alone. */
#include "kernels/cuda/device.h"

enum { MOST = 512 };   /* threads a row */

/* Columns c .. c + count of a row, the rest 0. */
template <class T> DEVICE void load_some(const T *p, uint32_t count, bool wide, float *v)
{
    if (wide) {
        load8(p, v);
        return;
    }
    UNROLL for (uint32_t i = 0; i < 8; i++) v[i] = i < count ? f32_of(p[i]) : 0.0f;
}
template <class T> DEVICE void store_some(T *p, uint32_t count, bool wide, const float *v)
{
    if (wide) {
        store8(p, v);
        return;
    }
    UNROLL for (uint32_t i = 0; i < 8; i++)
        if (i < count) store(p + i, v[i]);
}
DEVICE uint32_t count_at(uint32_t c, uint32_t d) { return d - c < 8 ? d - c : 8; }
/* Columns from .. to of a row, by a block. */
template <class T> DEVICE void clear(T *row, uint32_t from, uint32_t to)
{
    for (uint32_t c = from + threadIdx.x; c < to; c += blockDim.x) store(row + c, 0.0f);
}

/* The sum over a block, the same bits in every thread. part: [MOST / WARP] of shared memory; call with a barrier between. */
DEVICE float block_sum(float x, float *part)
{
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (uint32_t i = 0; i < blockDim.x / WARP; i++) sum += part[i];
    __syncthreads();
    return sum;
}

/* ---- embedding ------------------------------------------------------------------------------------------- */

struct embed_job { struct cuda_embed_args a; bool wide; };

template <class T> KERNEL BOUNDS(MOST, 1) embed_kernel(const embed_job j)
{
    const uint32_t i = blockIdx.x, d = j.a.d;
    const T *x = (const T *)j.a.table + (uint64_t)j.a.id[i] * j.a.ld;
    for (uint32_t c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8];
        load_some(x + c, count_at(c, d), j.wide, v);
        store_some(j.a.y + (uint64_t)i * d + c, count_at(c, d), j.wide, v);
    }
}

status cuda_embed(void *stream, const struct cuda_embed_args *a, struct err *e)
{
    embed_job j = { *a, vectors_fit(a->d | a->ld, a->table, a->y) };
    if (j.a.ld == 0) j.a.ld = a->d;
    const auto kernel = a->dtype == DT_BF16 ? embed_kernel<uint16_t> : embed_kernel<float>;
    return launch("embed", kernel, dim3(a->n), threads_of(a->d, MOST), 0, stream, j, e);
}

/* ---- norms ----------------------------------------------------------------------------------------------- */

struct norm_job { struct cuda_norm_args a; bool wide; };
struct norm_shared { float part[MOST / WARP]; };

/* The row is read from memory once and held in dynamic shared memory [d]; each thread reads back only what it wrote. */
template <class T> KERNEL BOUNDS(MOST, 1) norm_kernel(const norm_job j)
{
    SHARED(struct norm_shared, s);
    float *held = (float *)shared_memory();
    const uint32_t i = blockIdx.x, g = blockIdx.y, d = j.a.d;
    const float *x = j.a.x + (j.a.row != NULL ? (uint64_t)j.a.row[i] : (uint64_t)i * j.a.group + g) * d;
    float mean = 0.0f, sum = 0.0f;
    for (uint32_t c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8];
        load_some(x + c, count_at(c, d), j.wide, v);
        UNROLL for (uint32_t k = 0; k < 8; k++) sum += v[k];
        store_some(held + c, count_at(c, d), d % 8 == 0, v);
    }
    if (j.a.b != NULL) mean = block_sum(sum, s.part) / (float)d;
    sum = 0.0f;
    for (uint32_t c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8];
        load_some(held + c, count_at(c, d), d % 8 == 0, v);
        UNROLL for (uint32_t k = 0; k < 8; k++) sum += c + k < d ? (v[k] - mean) * (v[k] - mean) : 0.0f;
    }
    const float scale = 1.0f / sqrtf(block_sum(sum, s.part) / (float)d + j.a.eps);
    T *row = (T *)j.a.out + (uint64_t)i * j.a.ldo, *out = row + g * d;
    if (g + 1 == j.a.group) clear(row, (g + 1) * d, j.a.ldo);
    for (uint32_t c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8], w[8], b[8];
        load_some(held + c, count_at(c, d), d % 8 == 0, v);
        load_some(j.a.w + c, count_at(c, d), j.wide, w);
        UNROLL for (uint32_t k = 0; k < 8; k++) v[k] = (v[k] - mean) * scale * w[k];
        if (j.a.b != NULL) {
            load_some(j.a.b + c, count_at(c, d), j.wide, b);
            UNROLL for (uint32_t k = 0; k < 8; k++) v[k] += b[k];
        }
        store_some(out + c, count_at(c, d), j.wide, v);
    }
}

status cuda_norm(void *stream, const struct cuda_norm_args *a, struct err *e)
{
    const bool wide = vectors_fit(a->d, a->x, a->out) && vectors_fit(a->d, a->w, a->b);
    norm_job j = { *a, wide };
    if (j.a.ldo == 0) j.a.ldo = a->group * a->d;
    const auto kernel = a->out_dtype == DT_BF16 ? norm_kernel<uint16_t> : norm_kernel<float>;
    return launch("norm", kernel, dim3(a->rows, a->group), threads_of(a->d, MOST), (size_t)a->d * sizeof(float), stream, j, e);
}

/* ---- operands of plain rows ------------------------------------------------------------------------------ */

struct gelu_job { struct cuda_gelu_args a; bool wide, plain; };

/* plain: the values as they are. */
template <class T> KERNEL BOUNDS(MOST, 1) gelu_kernel(const gelu_job j)
{
    const uint32_t d = j.a.n;
    const float *x = j.a.x + (uint64_t)blockIdx.x * j.a.ldx;
    T *out = (T *)j.a.out + (uint64_t)blockIdx.x * j.a.ldo;
    for (uint32_t c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8], b[8];
        load_some(x + c, count_at(c, d), j.wide, v);
        if (j.a.bias != NULL) {
            load_some(j.a.bias + c, count_at(c, d), j.wide, b);
            UNROLL for (uint32_t k = 0; k < 8; k++) v[k] += b[k];
        }
        if (!j.plain) UNROLL for (uint32_t k = 0; k < 8; k++) v[k] = 0.5f * v[k] * (1.0f + erff(v[k] * 0.70710678f));
        store_some(out + c, count_at(c, d), j.wide, v);
    }
    clear(out, d, j.a.fill);
}

static status gelu_launch(const char *name, void *stream, const struct cuda_gelu_args *a, bool plain, struct err *e)
{
    const gelu_job j = { *a, vectors_fit(a->n | a->ldx | a->ldo, a->x, a->out) && vectors_fit(0, a->bias, NULL), plain };
    const auto kernel = a->out_dtype == DT_BF16 ? gelu_kernel<uint16_t> : gelu_kernel<float>;
    return launch(name, kernel, dim3(a->rows), threads_of(a->n, MOST), 0, stream, j, e);
}

status cuda_gelu(void *stream, const struct cuda_gelu_args *a, struct err *e) { return gelu_launch("gelu", stream, a, false, e); }

status cuda_pack(void *stream, const struct cuda_pack_args *a, struct err *e)
{
    const uint32_t ldo = a->ldo ? a->ldo : a->k;
    const struct cuda_gelu_args g = { a->x, a->ldx, NULL, a->rows, a->k, a->out, ldo, a->out_dtype, ldo };
    return gelu_launch("pack", stream, &g, true, e);
}

/* ---- SwiGLU ---------------------------------------------------------------------------------------------- */

template <class In, class T> KERNEL BOUNDS(MOST, 1) swiglu_kernel(const cuda_swiglu_args a)
{
    const In *gu = (const In *)a.gu + (uint64_t)blockIdx.x * a.n * 2;
    T *out = (T *)a.out + (uint64_t)blockIdx.x * a.n;
    for (uint32_t c = threadIdx.x * 8; c < a.n; c += blockDim.x * 8) {
        float gate[8], up[8];
        load8(gu + (uint64_t)c * 2, gate);
        load8(gu + (uint64_t)c * 2 + 8, up);
        UNROLL for (uint32_t k = 0; k < 8; k++) up[k] *= gate[k] / (1.0f + expf(-gate[k]));
        store8(out + c, up);
    }
}

status cuda_swiglu(void *stream, const struct cuda_swiglu_args *a, struct err *e)
{
    if (!vectors_fit(a->n, a->gu, a->out))
        return err_set(e, E_ARG, "SwiGLU of %u columns: they come by eights, at addresses of multiples of 16", a->n);
    const bool half = a->dtype == DT_BF16, half_out = a->out_dtype == DT_BF16;
    const auto kernel = half ? (half_out ? swiglu_kernel<uint16_t, uint16_t> : swiglu_kernel<uint16_t, float>)
                             : (half_out ? swiglu_kernel<float, uint16_t> : swiglu_kernel<float, float>);
    return launch("swiglu", kernel, dim3(a->rows), threads_of(a->n, MOST), 0, stream, *a, e);
}

/* ---- moves ----------------------------------------------------------------------------------------------- */

struct move_job { struct cuda_move_args a; bool wide; };

KERNEL BOUNDS(MOST, 1) move_kernel(const move_job j)
{
    const uint32_t i = blockIdx.x, d = j.a.d;
    const float *x = j.a.x + (uint64_t)(j.a.from != NULL ? j.a.from[i] : i) * d;
    float *y = j.a.y + (uint64_t)(j.a.to != NULL ? j.a.to[i] : i) * d;
    for (uint32_t c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8];
        load_some(x + c, count_at(c, d), j.wide, v);
        store_some(y + c, count_at(c, d), j.wide, v);
    }
}

status cuda_move(void *stream, const struct cuda_move_args *a, struct err *e)
{
    const move_job j = { *a, vectors_fit(a->d, a->x, a->y) };
    return launch("move", move_kernel, dim3(a->n), threads_of(a->d, MOST), 0, stream, j, e);
}

struct add_rows_job { struct cuda_add_rows_args a; bool wide; };

KERNEL BOUNDS(MOST, 1) add_rows_kernel(const add_rows_job j)
{
    const uint32_t i = blockIdx.x, d = j.a.d, place = i - j.a.first[part_of(j.a.first, j.a.n_chunks, i)];
    float *y = j.a.y + (uint64_t)i * d;
    const float *row = j.a.table + (uint64_t)place * d;
    for (uint32_t c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8], r[8];
        load_some(y + c, count_at(c, d), j.wide, v);
        load_some(row + c, count_at(c, d), j.wide, r);
        UNROLL for (uint32_t k = 0; k < 8; k++) v[k] += r[k];
        store_some(y + c, count_at(c, d), j.wide, v);
    }
}

status cuda_add_rows(void *stream, const struct cuda_add_rows_args *a, struct err *e)
{
    const add_rows_job j = { *a, vectors_fit(a->d, a->y, a->table) };
    return launch("add_rows", add_rows_kernel, dim3(a->rows), threads_of(a->d, MOST), 0, stream, j, e);
}

struct mean_pairs_job { struct cuda_mean_pairs_args a; bool wide; };

KERNEL BOUNDS(MOST, 1) mean_pairs_kernel(const mean_pairs_job j)
{
    const uint32_t d = j.a.d;
    const float *x = j.a.x + (uint64_t)blockIdx.x * 2 * d;
    for (uint32_t c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
        float v[8], r[8];
        load_some(x + c, count_at(c, d), j.wide, v);
        load_some(x + d + c, count_at(c, d), j.wide, r);
        UNROLL for (uint32_t k = 0; k < 8; k++) v[k] = (v[k] + r[k]) * 0.5f;
        store_some(j.a.y + (uint64_t)blockIdx.x * d + c, count_at(c, d), j.wide, v);
    }
}

status cuda_mean_pairs(void *stream, const struct cuda_mean_pairs_args *a, struct err *e)
{
    const mean_pairs_job j = { *a, vectors_fit(a->d, a->x, a->y) };
    return launch("mean_pairs", mean_pairs_kernel, dim3(a->n), threads_of(a->d, MOST), 0, stream, j, e);
}

/* ---- convolution rows ------------------------------------------------------------------------------------ */

/* A thread takes one channel at a time and writes its three taps: reads run along channels or along time as x lies. */
template <class T> KERNEL BOUNDS(MOST, 1) im2col_kernel(const cuda_im2col_args a)
{
    const uint32_t c = part_of(a.first_row, a.n_chunks, blockIdx.x);
    const uint32_t t0 = a.first_step[c], len = a.first_step[c + 1] - t0, u = (blockIdx.x - a.first_row[c]) * a.stride;
    T *out = (T *)a.out + (uint64_t)blockIdx.x * a.ldo;
    clear(out, a.channels * 3, a.ldo);
    for (uint32_t ch = threadIdx.x; ch < a.channels; ch += blockDim.x)
        for (uint32_t tap = 0; tap < 3; tap++) {
            const uint32_t step = u + tap;                        /* one more than the time step */
            const bool inside = step >= 1 && step <= len;
            store(out + 3 * ch + tap, inside ? a.x[(uint64_t)(t0 + step - 1) * a.st + (uint64_t)ch * a.sc] : 0.0f);
        }
}

status cuda_im2col(void *stream, const struct cuda_im2col_args *a, struct err *e)
{
    const auto kernel = a->out_dtype == DT_BF16 ? im2col_kernel<uint16_t> : im2col_kernel<float>;
    struct cuda_im2col_args j = *a;
    if (j.ldo == 0) j.ldo = a->channels * 3;
    return launch("im2col", kernel, dim3(a->rows), threads_of(a->channels * 8, MOST), 0, stream, j, e);
}

/* ---- likeness of pairs ----------------------------------------------------------------------------------- */

enum { COSINE_WARPS = 4 };
struct cosine_job { struct cuda_cosine_args a; bool wide; };

/* One warp a pair. The three sums run in one order and only the last step is in double, so that bit-equal rows give
 * exactly 1: the square of an f32 is exact in double, and so is its root. */
KERNEL BOUNDS(COSINE_WARPS *WARP, 1) cosine_kernel(const cosine_job j)
{
    const uint32_t i = blockIdx.x * COSINE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP, d = j.a.d;
    if (i >= j.a.n) return;                                       /* the whole warp leaves */
    const float *x = j.a.x + (uint64_t)j.a.a[i] * d, *y = j.a.y + (uint64_t)j.a.b[i] * d;
    float xy = 0.0f, xx = 0.0f, yy = 0.0f;
    for (uint32_t c = lane * 8; c < d; c += WARP * 8) {
        float v[8], w[8];
        load_some(x + c, count_at(c, d), j.wide, v);
        load_some(y + c, count_at(c, d), j.wide, w);
        UNROLL for (uint32_t k = 0; k < 8; k++) {
            xy = fmaf(v[k], w[k], xy);
            xx = fmaf(v[k], v[k], xx);
            yy = fmaf(w[k], w[k], yy);
        }
    }
    xy = warp_sum(xy), xx = warp_sum(xx), yy = warp_sum(yy);
    if (lane == 0) {
        const double a = xx > 1e-12f ? xx : 1e-12f, b = yy > 1e-12f ? yy : 1e-12f;
        j.a.out[i] = (float)(xy / sqrt(a * b));
    }
}

status cuda_cosine(void *stream, const struct cuda_cosine_args *a, struct err *e)
{
    const cosine_job j = { *a, vectors_fit(a->d, a->x, a->y) };
    return launch("cosine", cosine_kernel, dim3(blocks_of(a->n, COSINE_WARPS)), COSINE_WARPS * WARP, 0, stream, j, e);
}
