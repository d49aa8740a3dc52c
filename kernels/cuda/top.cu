/* kernels/cuda/top.cu - the highest of a row of logits, and the logarithm of the sum of all. See kernels.h and kernels/cpu/top.c.
 * A value and its place are one key of 64 bits, no two alike, so sorting has one outcome. A block sorts a segment of a row and
 * keeps its first CUDA_TOP; it also sums the exponentials of its segment, in the order in which they are sorted. A block a row
 * then sorts what the segments kept, and adds their sums one after the other. */
#include "kernels/cuda/device.h"

enum { THREADS = 256 };

/* Descending keys are descending values and, of equal ones, ascending places; 0: nothing. */
DEVICE uint64_t key_of(float x, uint32_t at)
{
    if (x != x) return 0;
    const uint32_t u = bits_of_f32(x + 0.0f);                     /* -0 is 0 */
    return (uint64_t)(u >> 31 ? ~u : u | 0x80000000u) << 32 | (0xffffffffu - at);
}
DEVICE float value_of(uint64_t key)
{
    const uint32_t u = (uint32_t)(key >> 32);
    return f32_of_bits(u >> 31 ? u & 0x7fffffffu : ~u);
}

/* key[0 .. CUDA_TOP_SEGMENT) descending, by the block. */
DEVICE void sort(uint64_t *key)
{
    __syncthreads();
    for (uint32_t size = 2; size <= CUDA_TOP_SEGMENT; size *= 2)
        for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
            for (uint32_t p = threadIdx.x; p < CUDA_TOP_SEGMENT / 2; p += THREADS) {
                const uint32_t i = 2 * p - (p & (stride - 1)), j = i + stride;
                const uint64_t a = key[i], b = key[j];
                if ((a < b) == ((i & size) == 0)) key[i] = b, key[j] = a;
            }
            __syncthreads();
        }
}

struct segment_shared {
    uint64_t key[CUDA_TOP_SEGMENT];
    double part[THREADS];
};

KERNEL BOUNDS(THREADS, 1) segment_kernel(const cuda_top_args a)
{
    SHARED(struct segment_shared, s);
    const uint32_t first = blockIdx.x * CUDA_TOP_SEGMENT, row = blockIdx.y;
    for (uint32_t i = threadIdx.x; i < CUDA_TOP_SEGMENT; i += THREADS) {
        const uint32_t at = first + i;
        const bool in = at < a.V && (a.allowed == NULL || a.allowed[at]);
        s.key[i] = in ? key_of(a.x[(uint64_t)row * a.ldx + at], at) : 0;
    }
    sort(s.key);
    const double most = s.key[0] ? (double)value_of(s.key[0]) : 0;
    double sum = 0;
    for (uint32_t i = threadIdx.x; i < CUDA_TOP_SEGMENT; i += THREADS)
        if (s.key[i]) sum += exp((double)value_of(s.key[i]) - most);
    s.part[threadIdx.x] = sum;
    __syncthreads();
    for (uint32_t by = THREADS / 2; by > 0; by /= 2) {
        if (threadIdx.x < by) s.part[threadIdx.x] += s.part[threadIdx.x + by];
        __syncthreads();
    }
    const uint64_t place = (uint64_t)row * gridDim.x + blockIdx.x;
    for (uint32_t i = threadIdx.x; i < CUDA_TOP; i += THREADS) a.key[place * CUDA_TOP + i] = s.key[i];
    if (threadIdx.x == 0) a.sum[place] = s.part[0];
}

KERNEL BOUNDS(THREADS, 1) row_kernel(const cuda_top_args a)
{
    SHARED(struct segment_shared, s);
    const uint32_t row = blockIdx.x, all = a.n_segments * CUDA_TOP;
    const uint64_t *from = a.key + (uint64_t)row * all;
    for (uint32_t i = threadIdx.x; i < CUDA_TOP; i += THREADS) s.key[i] = 0;
    for (uint32_t at = 0; at < all; at += CUDA_TOP_SEGMENT - CUDA_TOP) {      /* the best so far stay in front */
        for (uint32_t i = CUDA_TOP + threadIdx.x; i < CUDA_TOP_SEGMENT; i += THREADS)
            s.key[i] = at + i - CUDA_TOP < all ? from[at + i - CUDA_TOP] : 0;
        sort(s.key);
    }
    struct top_row *out = a.out + row;
    for (uint32_t i = threadIdx.x; i < CUDA_TOP; i += THREADS) {
        out->best[i].logit = s.key[i] ? value_of(s.key[i]) : 0.0f;
        out->best[i].id = s.key[i] ? (int32_t)(0xffffffffu - (uint32_t)s.key[i]) : -1;
    }
    if (threadIdx.x != 0) return;
    const double most = s.key[0] ? (double)value_of(s.key[0]) : 0;
    double sum = 0;
    for (uint32_t g = 0; g < a.n_segments; g++) {
        const uint64_t first = from[(uint64_t)g * CUDA_TOP];
        if (first) sum += a.sum[(uint64_t)row * a.n_segments + g] * exp((double)value_of(first) - most);
    }
    out->norm = most + log(sum);
}

status cuda_top(void *stream, const struct cuda_top_args *a, struct err *e)
{
    static_assert(CUDA_TOP == OPS_TOP, "a row of the op");
    TRY(launch("top of segments", segment_kernel, dim3(a->n_segments, a->n), THREADS, 0, stream, *a, e));
    return launch("top of rows", row_kernel, dim3(a->n), THREADS, 0, stream, *a, e);
}
