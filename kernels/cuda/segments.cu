/* kernels/cuda/segments.cu - full attention inside segments, for the towers; see kernels.h and attend.h.
 * A block is 64 query rows, half a tile, of one head of one segment, 16 a warp. K and V come as f32 rows; each tile of 64 keys is
 * rounded to bf16 on its way to shared memory, where it lies as a page does, and what a head lacks of whole steps of 16 dims is 0
 * there. An operand of f32, and what keys receive, are left to plain.cu. */
#include "kernels/cuda/attend.h"
#include "kernels/cuda/plain.h"

enum { WARPS = 4, THREADS = WARPS * WARP, ROWS = CUDA_TILE_ROWS / 2 };

struct segments_job { struct cuda_segment_attention_args a; float scale_log2; bool vectors; };

/* Rows key0 .. of the segment, those at `end` and after as 0. vectors: four values of a head are at a multiple of 16 bytes. */
template <int STEPS>
DEVICE void bring_keys(const float *x, size_t ld, uint32_t D, uint32_t key0, uint32_t end, bool vectors, unsigned char *to)
{
    constexpr uint32_t PIECES = STEPS * 2;
    for (uint32_t i = threadIdx.x; i < PAGE * PIECES; i += THREADS) {
        const uint32_t key = i / PIECES, piece = i % PIECES;
        const float *row = x + (uint64_t)(key0 + key) * ld + piece * 8;
        float v[8];
        if (vectors && key0 + key < end && piece * 8 + 8 <= D)
            load8(row, v);
        else
            UNROLL for (uint32_t c = 0; c < 8; c++) v[c] = key0 + key < end && piece * 8 + c < D ? row[c] : 0.0f;
        store8((uint16_t *)(to + piece_at(key, piece)), v);
    }
}

template <int STEPS> KERNEL BOUNDS(THREADS, 2) segments_kernel(const segments_job j)
{
    constexpr uint32_t TILE = (STEPS + 3) / 4 * BAND_BYTES;
    const cuda_segment_attention_args &a = j.a;
    const cuda_tile tile = a.tile[blockIdx.x / 2];
    const uint32_t begin = a.seg_start[tile.seq], n = a.seg_start[tile.seq + 1] - begin, h = blockIdx.y, D = a.D, l = threadIdx.x % WARP;
    const uint32_t row0 = tile.row + blockIdx.x % 2 * ROWS;
    if (row0 >= n) return;
    unsigned char *memory = shared_memory();                          /* K, V: TILE each */
    const uint32_t room = shared_address(memory);
    const float *q[2];
    uint16_t *out[2];
    UNROLL for (int i = 0; i < 2; i++) {
        const uint32_t row = row0 + threadIdx.x / WARP * 16 + l / 4 + i * 8;
        q[i] = row < n ? a.q + (uint64_t)(begin + row) * a.ld + h * D : NULL;
        out[i] = row < n ? (uint16_t *)a.out + ((uint64_t)(begin + row) * a.heads + h) * D : NULL;
    }
    const float *k = a.k + (uint64_t)begin * a.ld + h * D, *v = a.v + (uint64_t)begin * a.ld + h * D;
    attend_rows<STEPS> r;
    attend_begin(r, q[0], q[1], D);
    for (uint32_t key = 0; key < n; key += PAGE) {
        bring_keys<STEPS>(k, a.ld, D, key, n, j.vectors, memory);
        bring_keys<STEPS>(v, a.ld, D, key, n, j.vectors, memory + TILE);
        __syncthreads();
        attend_tile<STEPS, true>(r, room, room + TILE, key, key + PAGE > n, n, n, j.scale_log2);
        __syncthreads();
    }
    attend_end(r.o, r.l, out[0], out[1], D);
}

status cuda_segment_attention(void *stream, const struct cuda_segment_attention_args *a, struct err *e)
{
    const bool attend = a->out_dtype == DT_BF16 && a->D % 2 == 0 && a->D > 0 && a->D <= 128;
    const segments_job j = { *a, a->scale * LOG2_E, (a->ld | a->D | (uintptr_t)a->k / 4 | (uintptr_t)a->v / 4) % 4 == 0 };
    const int steps = a->D <= 64 ? 4 : a->D <= 80 ? 5 : 8;
    const auto kernel = steps == 4 ? segments_kernel<4> : steps == 5 ? segments_kernel<5> : segments_kernel<8>;
    const size_t memory = (steps == 4 ? 2 : 4) * (size_t)BAND_BYTES;
    if (attend) TRY(launch("segment_attention", kernel, dim3(2 * a->n_tiles, a->heads), THREADS, memory, stream, j, e));
    return attend && a->received == NULL ? OK : plain_segments(stream, a, !attend, e);
}
