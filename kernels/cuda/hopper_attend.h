/* kernels/cuda/hopper_attend.h - what the kernels of attention for sm_90a share: rows of queries as an operand, 64 rows against 128
 * keys. */
#ifndef KERNELS_CUDA_HOPPER_ATTEND_H
#define KERNELS_CUDA_HOPPER_ATTEND_H

#include "kernels/cuda/attend.h"
#include "kernels/cuda/warpgroup.h"

#ifdef HAS_WARPGROUPS

/* Rows first .. first + rows of the n packed rows (row / group of q, head of the group) of KV head g, rounded to bf16, by a warpgroup:
 * they lie as the tokens of a page do, bands `band` bytes apart; rows that are not there are 0. vectors: q is at multiples of 16
 * bytes. Products see them after a barrier. */
template <int BANDS>
DEVICE void rows_to_operand(const float *q, size_t ldq, uint32_t group, uint32_t g, uint32_t first, uint32_t rows, uint32_t n, bool vectors,
                            uint32_t to, uint32_t band)
{
    constexpr uint32_t D = BANDS * 64, PIECES = D / 8;
    for (uint32_t i = threadIdx.x % WARPGROUP; i < rows * PIECES; i += WARPGROUP) {
        const uint32_t row = i / PIECES, p = first + row, piece = i % PIECES;
        float v[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
        if (p < n) {
            const float *from = q + (uint64_t)(p / group) * ldq + (g * group + p % group) * D + piece * 8;
            if (vectors)
                load8(from, v);
            else
                UNROLL for (int x = 0; x < 8; x++) v[x] = from[x];
        }
        const uint4 u = { bf16x2_of(v[0], v[1]), bf16x2_of(v[2], v[3]), bf16x2_of(v[4], v[5]), bf16x2_of(v[6], v[7]) };
        store_operand(to + piece / 8 * band + piece_at(row, piece % 8), u);
    }
    operands_published();
}

/* s = A B of an operand of 64 rows, bands a_band bytes apart, and one of 128, both with head dims fastest; committed. */
template <int BANDS> DEVICE void issue_scores(float (&s)[16][4], uint32_t a, uint32_t a_band, uint32_t b, uint32_t b_band)
{
    product_begin();
    UNROLL for (uint32_t i = 0; i < BANDS * 4; i++)
        product(s, operand_at(a + i / 4 * a_band + i % 4 * 32, 0, PATTERN_BYTES),
                operand_at(b + i / 4 * b_band + i % 4 * 32, 0, PATTERN_BYTES), i > 0);
    product_commit();
}

#endif

#endif
