/* kernels/cpu/operand.h - the layout of operands: known here and nowhere else.
 * Rows are cut into tiles of at most CPU_TILE rows, as equal as they get; the last may be shorter. A tile of m
 * rows starting at row r0 begins at element r0 * kp of the operand, kp = k rounded up to OPERAND_K_ALIGN:
 *   pairs (the machine multiplies bf16)   bf16, (k, r) at ((k / 2) * m + r) * 2 + k % 2
 *   else                                  f32, (k, r) at k * m + r
 * Whoever fills an operand writes columns 0 .. k-1, and for odd k one zero more; the rest is never read. */
#ifndef KERNELS_CPU_OPERAND_H
#define KERNELS_CPU_OPERAND_H

#include "kernels/cpu/cpu.h"

#define OPERAND_K_ALIGN 32

static inline uint32_t operand_tile(uint32_t rows)
{
    const uint32_t n = (rows + CPU_TILE - 1) / CPU_TILE;
    return n == 0 ? 1 : (rows + n - 1) / n;
}
static inline size_t operand_kp(uint32_t k)
{
    return ((size_t)k + OPERAND_K_ALIGN - 1) / OPERAND_K_ALIGN * OPERAND_K_ALIGN;
}
static inline bool operand_pairs(const struct cpu_isa *isa, enum dtype compute)
{
    return compute == DT_BF16 && isa->dot_bf16;
}

/* One tile of an operand, ready to be written or read. */
struct operand_tile {
    void *data;                   /* bf16 pairs or f32, see the top */
    uint32_t m;                   /* rows of this tile              */
    bool pairs;
    bool last;                    /* no tile follows                */
    size_t bytes;                 /* of this tile                   */
};

static inline struct operand_tile operand_tile_at(const struct operand *o, bool pairs, uint32_t tile_index)
{
    const uint32_t tile = operand_tile(o->rows), r0 = tile_index * tile, left = o->rows - r0;
    const size_t row_bytes = operand_kp(o->k) * (pairs ? 2 : 4);
    const uint32_t m = left < tile ? left : tile;
    return (struct operand_tile){ (char *)o->data + r0 * row_bytes, m, pairs, left <= tile, m * row_bytes };
}

/* Write n columns from k (even) on of row r of the tile; an odd end is padded by a zero. */
static inline void operand_put(const struct operand_tile *t, uint32_t r, uint32_t k, uint32_t n,
                               const float *v)
{
    if (!t->pairs) {
        float *out = (float *)t->data + (size_t)k * t->m + r;
        for (uint32_t i = 0; i < n; i++) out[(size_t)i * t->m] = v[i];
        if (n % 2) out[(size_t)n * t->m] = 0.0f;
        return;
    }
    uint32_t *out = (uint32_t *)t->data + (size_t)(k / 2) * t->m + r;
    for (uint32_t i = 0; i < n; i += 2)
        out[(size_t)(i / 2) * t->m] =
            bf16_of_f32(v[i]) | (i + 1 < n ? (uint32_t)bf16_of_f32(v[i + 1]) << 16 : 0u);
}

#endif
