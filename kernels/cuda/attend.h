/* kernels/cuda/attend.h - what the kernels of attention share: 16 query rows of a warp against 64 keys in shared memory.
 *
 * K and V tiles lie as in a page: piece_at says where. Fragments are those of mma.m16n8k16: lane l holds of a 16-row tile
 * rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next of each 8. Softmax is online and to base 2: scores are multiplied by
 * scale * log2(e). A tile that a row does not see leaves its sums bit for bit, so a row's result depends on no other row. */
#ifndef KERNELS_CUDA_ATTEND_H
#define KERNELS_CUDA_ATTEND_H

#include "kernels/cuda/pages.h"

#define LOG2_E 1.4426950408889634f

/* STEPS: head dims / 16. */
template <int STEPS> struct attend_rows {
    uint32_t q[STEPS][4];
    float o[2 * STEPS][4];        /* [8 dims each] */
    float m[2], l[2];             /* of rows l / 4 and l / 4 + 8; m is of scores before the scale, l of this lane's keys alone */
};

/* Two columns of a row that may not be there, as bf16. */
DEVICE uint32_t columns_of(const float *row, uint32_t column, uint32_t D)
{
    const float a = row != NULL && column < D ? row[column] : 0.0f, b = row != NULL && column + 1 < D ? row[column + 1] : 0.0f;
    return bf16x2_of(a, b);
}

/* row0, row1: this lane's rows [D], NULL where there is none. */
template <int STEPS> DEVICE void attend_begin(attend_rows<STEPS> &r, const float *row0, const float *row1, uint32_t D)
{
    const uint32_t column = threadIdx.x % 4 * 2;
    UNROLL for (int k = 0; k < STEPS; k++) {
        r.q[k][0] = columns_of(row0, k * 16 + column, D);
        r.q[k][1] = columns_of(row1, k * 16 + column, D);
        r.q[k][2] = columns_of(row0, k * 16 + 8 + column, D);
        r.q[k][3] = columns_of(row1, k * 16 + 8 + column, D);
    }
    UNROLL for (int n = 0; n < 2 * STEPS; n++) UNROLL for (int i = 0; i < 4; i++) r.o[n][i] = 0.0f;
    UNROLL for (int i = 0; i < 2; i++) r.m[i] = -INFINITY, r.l[i] = 0.0f;
}

/* Scores of the 16 rows against keys 8 n .. 8 n + 8 of a tile, n < 8. */
template <int STEPS> DEVICE void tile_scores(const attend_rows<STEPS> &r, uint32_t k_tile, float s[8][4])
{
    const uint32_t l = threadIdx.x % WARP;
    UNROLL for (int n = 0; n < 8; n++) UNROLL for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
    UNROLL for (int k = 0; k < STEPS; k++)
        UNROLL for (int n = 0; n < 4; n++) {
            uint32_t b[4];
            ldmatrix(b, k_tile + piece_at(n * 16 + l % 8 + l / 16 * 8, k * 2 + l / 8 % 2));
            mma_bf16(s[2 * n], r.q[k], b[0], b[1]);
            mma_bf16(s[2 * n + 1], r.q[k], b[2], b[3]);
        }
}

/* Scores of 8 N keys from key0 on to probabilities against the maximum so far: m and l go on, and what was summed before is to be
 * multiplied by `less`. The lane's rows see keys below see0 and see1; edge: is there one that some row of the warp does not see? */
template <int N>
DEVICE void soften(float (&s)[N][4], float (&m)[2], float (&l)[2], float (&less)[2], uint32_t key0, bool edge, uint32_t see0, uint32_t see1,
                   float scale_log2)
{
    const uint32_t first = key0 + threadIdx.x % 4 * 2;
    if (edge)
        UNROLL for (int n = 0; n < N; n++)
            UNROLL for (int j = 0; j < 2; j++) {
                const uint32_t key = first + n * 8 + j;
                if (key >= see0) s[n][j] = -INFINITY;
                if (key >= see1) s[n][2 + j] = -INFINITY;
            }
    UNROLL for (int i = 0; i < 2; i++) {
        float top = m[i];
        UNROLL for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        const float zero = top == -INFINITY ? 0.0f : top * scale_log2;
        less[i] = exp2_fast(m[i] * scale_log2 - zero);
        m[i] = top;
        l[i] *= less[i];
        UNROLL for (int n = 0; n < N; n++)
            UNROLL for (int j = 0; j < 2; j++) {
                s[n][2 * i + j] = exp2_fast(fmaf(s[n][2 * i + j], scale_log2, -zero));
                l[i] += s[n][2 * i + j];
            }
    }
}

/* One tile of keys key0 .. key0 + 64; see0, see1, edge as above. */
template <int STEPS, bool WITH_V>
DEVICE void attend_tile(attend_rows<STEPS> &r, uint32_t k_tile, uint32_t v_tile, uint32_t key0, bool edge, uint32_t see0, uint32_t see1,
                        float scale_log2)
{
    const uint32_t l = threadIdx.x % WARP;
    float s[8][4], less[2];
    tile_scores(r, k_tile, s);
    soften(s, r.m, r.l, less, key0, edge, see0, see1, scale_log2);
    if constexpr (WITH_V) {
        UNROLL for (int n = 0; n < 2 * STEPS; n++) UNROLL for (int i = 0; i < 4; i++) r.o[n][i] *= less[i / 2];
        UNROLL for (int k = 0; k < 4; k++) {
            const uint32_t p[4] = { bf16x2_of(s[2 * k][0], s[2 * k][1]), bf16x2_of(s[2 * k][2], s[2 * k][3]),
                                    bf16x2_of(s[2 * k + 1][0], s[2 * k + 1][1]), bf16x2_of(s[2 * k + 1][2], s[2 * k + 1][3]) };
            UNROLL for (int n = 0; n < STEPS; n++) {
                uint32_t b[4];
                ldmatrix_transposed(b, v_tile + piece_at(k * 16 + l % 16, n * 2 + l / 16));
                mma_bf16(r.o[2 * n], p, b[0], b[1]);
                mma_bf16(r.o[2 * n + 1], p, b[2], b[3]);
            }
        }
    }
}

/* The sums of the four lanes that share a row. */
DEVICE float row_sum(float x)
{
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}

DEVICE void store_pair(float *p, float a, float b)
{
    const float2 v = { a, b };
    store_vector(p, v);
}
DEVICE void store_pair(uint16_t *p, float a, float b) { store_vector(p, bf16x2_of(a, b)); }

/* The lane's sums o over the row sums l into rows out0 and out1 (NULL: not there) of D values. */
template <int N, class T> DEVICE void attend_end(const float (&o)[N][4], const float (&l)[2], T *out0, T *out1, uint32_t D)
{
    const uint32_t column = threadIdx.x % 4 * 2;
    UNROLL for (int i = 0; i < 2; i++) {
        const float sum = row_sum(l[i]), over = 1.0f / sum;
        T *out = i == 0 ? out0 : out1;
        if (out == NULL) continue;
        UNROLL for (int n = 0; n < N; n++)
            if (n * 8 + column < D) store_pair(out + n * 8 + column, o[n][2 * i] * over, o[n][2 * i + 1] * over);
    }
}

/* A page's K (and V) of one head on their way to shared memory, by a block of `threads`. */
template <int STEPS, bool WITH_V>
DEVICE void page_copy_async(const cuda_pages &pages, uint32_t page, uint32_t g, uint32_t k_tile, uint32_t v_tile, uint32_t threads)
{
    constexpr uint32_t BANDS = (STEPS + 3) / 4, BYTES = BANDS * BAND_BYTES;
    const unsigned char *k = page_head(pages, BANDS, page, 0, g), *v = page_head(pages, BANDS, page, 1, g);
    for (uint32_t i = threadIdx.x * 16; i < BYTES; i += threads * 16) {
        copy_async(k_tile + i, k + i);
        if (WITH_V) copy_async(v_tile + i, v + i);
    }
    copy_commit();
}

#endif
