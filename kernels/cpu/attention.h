/* kernels/cpu/attention.h - pages, attention, scores, selection: what these files share, and their inner
 * kernels.
 *
 * A page holds CPU_PAGE_TOKENS = 16 rows of K and V of one layer, KV head after KV head. One head's part:
 *     K   bf16 [D/2][16][2]    f32 [D][16]      token the fast index: 16 columns of a product's right side
 *     V   bf16 [8][Dv][2]      f32 [16][Dv]     head dim the fast index; Dv = D rounded up to 16
 * so that two pages are the 32 columns of the 12 x 32 tile in Q K^T, and 32 head dims of V are those of P
 * V. Both parts are a multiple of 64 bytes. A page is cleared when its row 0 is written: what is not
 * written yet is 0.
 *
 * Work is cut into tiles of query rows and, inside, into subtiles of up to 12 rows of one head; keys into
 * blocks of CPU_BLOCK = 256 that always start at key 0. A subtile meets one block at a time (attend):
 * scores, running maximum and sum, then P V. Everything a row gets comes from its own q, its own keys and
 * their block, in one order; columns that it does not see enter as exact zeros. */
#ifndef KERNELS_CPU_ATTENTION_H
#define KERNELS_CPU_ATTENTION_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/operand.h"

#define CPU_BLOCK       256 /* keys of one step of the online softmax */
#define CPU_BLOCK_PAGES (CPU_BLOCK / CPU_PAGE_TOKENS)
#define CPU_HEAD_MAX    512 /* largest head dim */

/* The geometry of one attention: everything that its inner kernels need to know beside pointers. */
struct cpu_heads {
    uint32_t D, Dv;             /* head dim; width of a V row in a page: D rounded up to 16 */
    bool bf16;                  /* pages of bf16, else f32 */
    bool packed;                /* queries and probabilities are bf16 pairs (bf16 pages and a dot product) */
    float scale;                /* on the scores */
    size_t k_bytes, head_bytes; /* of one head's part of a page: K, and K with V */
};

/* Up to CPU_TILE query rows of one head, and what they have gathered so far. */
struct cpu_rows {
    uint32_t n;              /* rows, 1 .. CPU_TILE */
    const void *q;           /* packed by pack_rows: [D/2][n] pairs or [D][n] floats */
    const uint32_t *visible; /* [n] first keys that each row sees, counted from key 0, ascending */
    float *m, *l;            /* [n] running maximum (of the scaled scores) and sum; start -CPU_BIG, 0 */
    float *acc;              /* [n][Dv] running weighted sum of V; start 0 */
};

#define CPU_BIG 1e30f

/* Room of one subtile against one block; 64-byte aligned. */
struct cpu_scores {
    float s[CPU_TILE][CPU_BLOCK]; /* scores, then f32 probabilities */
    bf16 p[CPU_TILE][CPU_BLOCK];  /* probabilities where they are packed */
    float keep[CPU_TILE];         /* by how much the new maximum scales the old sum */
};

struct cpu_attention_kernels {
    /* Rows row[0..n-1] of D floats to what struct cpu_rows.q wants. */
    void (*pack_rows)(const struct cpu_heads *a, const float *const *row, uint32_t n, void *q);
    /* One block of keys: page[i] is the head's part of the page of keys k0 + 16 i. Reads no page past the
     * last row's limit; a row whose limit is k0 or less keeps its bits. next: NULL, or [CPU_BLOCK_PAGES]
     * pages that will be read soon and are fetched meanwhile; any valid pointers. */
    void (*attend)(const struct cpu_heads *a, const struct cpu_rows *r, const void *const *page,
                   const void *const *next, uint32_t k0, struct cpu_scores *t);
    /* As attend, m and l only. */
    void (*stats)(const struct cpu_heads *a, const struct cpu_rows *r, const void *const *page, uint32_t k0,
                  struct cpu_scores *t);
    /* sum[j] += sum over rows, in order, of the row's probability of key k0 + j, from the final m and l. */
    void (*columns)(const struct cpu_heads *a, const struct cpu_rows *r, const void *const *page, uint32_t k0,
                    float *sum, struct cpu_scores *t);
    /* Merge n_parts pieces of one row, in order, into y [Dv]; returns the sum by which y is still to be
     * divided. Piece i has m[i * step], l[i * step] and acc + i * step * Dv. */
    float (*merge)(const struct cpu_heads *a, const float *m, const float *l, const float *acc,
                   uint32_t n_parts, size_t step, float *y);
    /* acc [Dv] / l to columns k .. k + D of row `row` of an operand's tile. */
    void (*emit)(const struct cpu_heads *a, const float *acc, float l, const struct operand_tile *out,
                 uint32_t row, uint32_t k);
    /* n rows of K and V (ld_k, ld_v floats apart) into slots slot.. of one head's part of a page. v NULL:
     * K only. */
    void (*store)(const struct cpu_heads *a, const float *k, size_t ld_k, const float *v, size_t ld_v,
                  uint32_t n, uint32_t slot, void *page);
    /* y[j], y[j + D/2] = the rotation of x[j], x[j + D/2]; y may be x. */
    void (*rotate)(const float *x, const float *cos, const float *sin, uint32_t D, float *y);
    /* x.y, x.x, y.y */
    void (*dots)(const float *x, const float *y, uint32_t d, float out[3]);
    /* x.y alone, the bits of dots */
    float (*dot)(const float *x, const float *y, uint32_t d);
    /* out[i * ld + j] = x[i].y[j], the bits of dot: several rows at once, so that each is read less often */
    void (*dot_rows)(const float *const *x, uint32_t n_x, const float *const *y, uint32_t n_y, uint32_t d, float *out, size_t ld);
    /* x[j] = e^(scale x[j] - the greatest of them), j < n; returns their sum. n >= 1 */
    double (*soften)(float *x, uint32_t n, float scale);
    /* sum[t * ld + j] += share[t] * x[j], j < n, t < n_sums */
    void (*spread)(const float *x, uint32_t n, const double *share, uint32_t n_sums, double *sum, size_t ld);
};

/* Geometry of pages of this dtype on this stream. */
static inline struct cpu_heads cpu_heads_of(const struct cpu_stream *st, uint32_t D, enum dtype dtype,
                                            float scale)
{
    const uint32_t Dv = (D + 15) / 16 * 16;
    const size_t size = dtype_size(dtype), k_bytes = (size_t)D * CPU_PAGE_TOKENS * size;
    return (struct cpu_heads){ .D = D,
                               .Dv = Dv,
                               .bf16 = dtype == DT_BF16,
                               .packed = dtype == DT_BF16 && st->isa->dot_bf16,
                               .scale = scale,
                               .k_bytes = k_bytes,
                               .head_bytes = k_bytes + (size_t)Dv * CPU_PAGE_TOKENS * size };
}

/* Is this a shape that the kernels take? E_ARG names what is not. */
status cpu_heads_check(uint32_t D, uint32_t H, uint32_t G, enum dtype dtype, struct err *e);

/* ---- scratch and work ---------------------------------------------------------------------------------- */

#define CPU_ROOM_ROWS 384 /* most query rows of one head that a thread holds */

/* What one thread works in. Lies at the start of the caller's scratch, thread after thread; then the
 * shared part. */
struct cpu_room {
    struct cpu_scores *t;
    char *q;            /* packed subtiles, 12 * D * 4 bytes apart */
    float *acc, *m, *l; /* [CPU_ROOM_ROWS][Dv], [CPU_ROOM_ROWS], [CPU_ROOM_ROWS] */
    char *page;         /* CPU_BLOCK_PAGES parts of pages of one head */
};
size_t cpu_room_bytes(uint32_t D);
struct cpu_room cpu_room_at(void *scratch, int thread, uint32_t D);
/* The part of scratch that all threads share. */
void *cpu_room_shared(const struct cpu_stream *st, void *scratch, uint32_t D);
/* Bytes of the shared part that each entry needs, for n rows and max_keys keys a row. */
size_t cpu_decode_shared(uint32_t H, uint32_t D, uint32_t max_keys);
size_t cpu_segment_shared(uint32_t H, uint32_t n);
size_t cpu_scores_shared(uint32_t H, uint32_t D, uint32_t n, uint32_t max_keys);

static inline size_t cpu_align(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

#endif
