/* kernels/cuda/kernels.h - the launchers of the CUDA kernels: what the backend of the ops table calls.
 *
 * The meaning of each is that of its namesake in kernels/ops.h, with these differences: every pointer is device memory,
 * lists of rows and pages too; shapes were checked by the caller; scratch is named. What is launched runs after what the
 * same stream (a cudaStream_t) was given before; the launcher returns at once. E_DEVICE: it was not launched.
 *
 * Layouts of this device. A matrix and an operand are row-major and dense (an operand of k columns has rows of k). Pages
 * hold PAGE_TOKENS tokens of one layer: [K, V][KV head][band][token][128 bytes], a band being 128 bytes of head dims (64
 * of bf16, 32 of f32; what a head lacks of whole bands is 0). The 16-byte piece c of a row lies at piece c ^ (token % 8):
 * that is the 128-byte swizzle of the tensor cores, so ldmatrix reads it without bank conflicts and a band of 8 KiB is
 * one bulk copy. */
#ifndef KERNELS_CUDA_KERNELS_H
#define KERNELS_CUDA_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/ops.h"

enum { CUDA_PAGE_TOKENS = 64, CUDA_BAND_BYTES = 128 };

/* ---- rows.cu: bound by memory ---------------------------------------------------------------------------- */

/* y row i = table row id[i]; the table [V, ld] in its own dtype; ld 0: d. */
struct cuda_embed_args { const void *table; enum dtype dtype; const int32_t *id; uint32_t n, d; float *y; uint32_t ld; };
status cuda_embed(void *stream, const struct cuda_embed_args *a, struct err *e);

/* RMSNorm (b NULL) or LayerNorm into an operand; `row` makes it the gather of survivors too. out [rows, ldo], group * d of each row
 * and zeros behind them; ldo 0: group * d. So it is with ldo below. */
struct cuda_norm_args {
    const float *x;
    const uint32_t *row;
    uint32_t rows, d, group;
    const float *w, *b;
    float eps;
    void *out;
    enum dtype out_dtype;
    uint32_t ldo;
};
status cuda_norm(void *stream, const struct cuda_norm_args *a, struct err *e);

struct cuda_pack_args { const float *x; size_t ldx; uint32_t rows, k; void *out; enum dtype out_dtype; uint32_t ldo; };
status cuda_pack(void *stream, const struct cuda_pack_args *a, struct err *e);

/* out = silu(gate) * up of gu [rows, 2 n] of `dtype`, gate and up interleaved by groups of 8 columns: a weight of the form
 * WEIGHT_SWIGLU is stored so that one thread finds both. n is a multiple of 8 (columns of zeros make it one). */
struct cuda_swiglu_args { const void *gu; enum dtype dtype; uint32_t rows, n; void *out; enum dtype out_dtype; };
status cuda_swiglu(void *stream, const struct cuda_swiglu_args *a, struct err *e);

/* out = gelu(x + bias), erf form; bias NULL: none. out_dtype DT_F32 may be in place. Columns n .. fill of out become 0. */
struct cuda_gelu_args {
    const float *x;
    size_t ldx;
    const float *bias;
    uint32_t rows, n;
    void *out;
    size_t ldo;
    enum dtype out_dtype;
    uint32_t fill;
};
status cuda_gelu(void *stream, const struct cuda_gelu_args *a, struct err *e);

/* y row to[i] = x row from[i]; from or to NULL: i. Gather, scatter. */
struct cuda_move_args { const float *x; const uint32_t *from, *to; uint32_t n, d; float *y; };
status cuda_move(void *stream, const struct cuda_move_args *a, struct err *e);

/* first[c]: where the rows of chunk c begin, [n_chunks + 1]. */
struct cuda_add_rows_args { float *y; const float *table; uint32_t d, n_chunks, rows; const uint32_t *first; };
status cuda_add_rows(void *stream, const struct cuda_add_rows_args *a, struct err *e);

struct cuda_mean_pairs_args { const float *x; uint32_t n, d; float *y; };
status cuda_mean_pairs(void *stream, const struct cuda_mean_pairs_args *a, struct err *e);

/* first_step, first_row: where the time steps and the output rows of each chunk begin, [n_chunks + 1] each. */
struct cuda_im2col_args {
    const float *x;
    size_t st, sc;
    uint32_t channels, stride, n_chunks, rows;
    const uint32_t *first_step, *first_row;
    void *out;
    enum dtype out_dtype;
    uint32_t ldo;
};
status cuda_im2col(void *stream, const struct cuda_im2col_args *a, struct err *e);

/* out[i] = cosine of x row a[i] and y row b[i]. */
struct cuda_cosine_args { const float *x, *y; uint32_t d, n; const uint32_t *a, *b; float *out; };
status cuda_cosine(void *stream, const struct cuda_cosine_args *a, struct err *e);

/* ---- pages.cu -------------------------------------------------------------------------------------------- */

struct cuda_pages { void *base; size_t page_bytes; uint32_t G, D; enum dtype dtype; };
size_t cuda_page_bytes(uint32_t G, uint32_t D, enum dtype dtype);

/* One sequence of a batch: its batch rows, and where its page numbers begin in the batch's list. */
struct cuda_seq { uint32_t row, n_rows, keys, page; };

struct cuda_rope_args { float *x; size_t ldx; uint32_t n, heads, D; const float *cos, *sin; const uint32_t *row; };
status cuda_rope(void *stream, const struct cuda_rope_args *a, struct err *e);

/* Item: one page that is written to, by its place in the sequence's view. seq[].keys: rows of the view before this write. A
 * page whose first row is written is cleared behind the last. */
struct cuda_kv_item { uint32_t seq, place; };
struct cuda_kv_write_args {
    const float *kv;
    size_t ldkv;
    const float *cos, *sin;
    const uint32_t *row;
    struct cuda_pages pages;
    const struct cuda_seq *seq;
    const uint32_t *page;
    const struct cuda_kv_item *item;
    uint32_t n_items;
};
status cuda_kv_write(void *stream, const struct cuda_kv_write_args *a, struct err *e);

struct cuda_page_copy_args { struct cuda_pages pages; const uint32_t *src, *dst; uint32_t n; };
status cuda_page_copy(void *stream, const struct cuda_page_copy_args *a, struct err *e);

/* View v: n_rows rows stay, those of row[seq[v].row ..] in order; seq[v].page as ever. */
struct cuda_kv_compact_args {
    struct cuda_pages pages;
    const struct cuda_seq *seq;
    const uint32_t *page, *row;
    uint32_t n_views;
};
status cuda_kv_compact(void *stream, const struct cuda_kv_compact_args *a, struct err *e);

/* ---- attention.cu ---------------------------------------------------------------------------------------- */

/* On tensor cores with pages of bf16, heads of 64 or 128 dims and, in decode, at most 16 heads a KV head; others by the plain
 * kernels, to 256 dims. */
enum { CUDA_TILE_ROWS = 128, CUDA_SPLIT_PAGES = 4 };
#define CUDA_NO_TILE UINT32_MAX   /* as `row` of a tile of decode: there is nothing to do */

/* Prefill: the rows of a sequence times the heads of a group from `row` on, a multiple of CUDA_TILE_ROWS; in any order, the last
 * are begun first, so rows that see most keys go to the end. Decode: the pages of a row from page `row` of its view on, a multiple
 * of CUDA_SPLIT_PAGES. */
struct cuda_tile { uint32_t seq, row; };

struct cuda_attention_args {
    const float *q;
    size_t ldq;
    uint32_t H;
    float scale;                  /* above 0 */
    struct cuda_pages pages;
    const struct cuda_seq *seq;   /* row, n_rows: query rows; decode: one each */
    const uint32_t *page, *visible;   /* visible: [batch rows] */
    const struct cuda_tile *tile; /* decode: in order of sequences, then pages; those of nothing behind them */
    uint32_t n_seqs, n_tiles;
    void *out;                    /* [rows, H * D] */
    enum dtype out_dtype;
    /* decode alone: */
    const uint32_t *first_item;   /* [n_seqs] the first tile of each */
    float *part, *part_stats;     /* [n_tiles, H, D] and [n_tiles, H, 2] scratch */
};
status cuda_attention(void *stream, const struct cuda_attention_args *a, struct err *e);
status cuda_attention_decode(void *stream, const struct cuda_attention_args *a, struct err *e);

/* ---- segments.cu ----------------------------------------------------------------------------------------- */

/* An operand of bf16 takes bf16 products, of f32 f32 throughout. Tile: CUDA_TILE_ROWS query rows of a segment (`seq`) from
 * `row` on. */
struct cuda_segment_attention_args {
    const float *q, *k, *v;       /* [n, ld] each */
    size_t ld;
    uint32_t heads, D;            /* D even, at most 256 */
    float scale;                  /* above 0 */
    const uint32_t *seg_start;
    const struct cuda_tile *tile;
    uint32_t n_tiles;
    void *out;                    /* [n, heads * D] */
    enum dtype out_dtype;
    float *received, *lse;        /* [n] or NULL; lse: [n, heads] scratch with it */
};
status cuda_segment_attention(void *stream, const struct cuda_segment_attention_args *a, struct err *e);

/* ---- scores.cu ------------------------------------------------------------------------------------------- */

enum { CUDA_STATS_PAGES = 16 };

/* One sequence; tensor cores as for attention. */
struct cuda_query_scores_args {
    const float *q;
    size_t ldq;
    uint32_t n_q, H;
    float scale;                  /* above 0 */
    struct cuda_pages pages;
    const uint32_t *page, *visible;
    uint32_t n_keys;
    float *partial;               /* [G, n_keys] */
    uint32_t n_splits;            /* pages of n_keys / CUDA_STATS_PAGES, rounded up */
    float *part, *lse;            /* [n_splits, n_q H, 2] and [n_q H] scratch */
};
status cuda_query_scores(void *stream, const struct cuda_query_scores_args *a, struct err *e);

/* ---- select.cu ------------------------------------------------------------------------------------------- */

/* score[j] = by x the sum over g, ascending, of partial[g, j], in f32: OmniDrop Eq. 5 with by = 1 / (H n_q). */
struct cuda_score_args { const float *partial; uint32_t G, n; float by; float *score; };
status cuda_score(void *stream, const struct cuda_score_args *a, struct err *e);

struct cuda_select_args {
    const float *score;
    const int32_t *chunk;
    uint32_t n, k;
    bool tds, relative;
    double lambda_div;
    int32_t max_chunk;
    uint32_t *keep;               /* [n - k]; may be NULL where there are ids */
    uint64_t *key;                /* [n] scratch */
    uint8_t *drop;                /* [n] scratch */
    /* With ids the tokens are n_of of the n rows, those with mark[id[i]] & of; chunk is by id, and what is left, the other rows too,
     * becomes lists as of list_rows: */
    const uint32_t *id;           /* [n] or NULL */
    const uint8_t *mark;
    uint8_t *in;                  /* [n] scratch */
    uint32_t n_of, first;
    uint32_t *row, *out_id, *visible;   /* [n - k] each */
    uint8_t of;
};
status cuda_select(void *stream, const struct cuda_select_args *a, struct err *e);

struct cuda_list_rows_args {
    const uint32_t *id;
    const uint8_t *mark;          /* NULL: all; else one block, whatever n */
    uint32_t n, first, place, n_out;
    uint32_t *row, *out_id, *visible;   /* NULL: not asked for */
    uint8_t of;
};
status cuda_list_rows(void *stream, const struct cuda_list_rows_args *a, struct err *e);

/* ---- top.cu ---------------------------------------------------------------------------------------------- */

enum { CUDA_TOP = 64, CUDA_TOP_SEGMENT = 2048 };
struct cuda_top_args {
    const float *x;
    size_t ldx;
    uint32_t n, V, n_segments;    /* V / CUDA_TOP_SEGMENT, rounded up */
    const uint8_t *allowed;
    uint64_t *key;                /* [n, n_segments, CUDA_TOP] scratch */
    double *sum;                  /* [n, n_segments] scratch */
    struct top_row *out;          /* [n] */
};
status cuda_top(void *stream, const struct cuda_top_args *a, struct err *e);

/* ---- groups.cu ------------------------------------------------------------------------------------------- */

/* struct row_groups on the device; n = start[n_groups]. norm: [n] scratch, the squared lengths. */
struct cuda_groups { const float *x; uint32_t d, n_groups, n; const uint32_t *start, *row; };

struct cuda_means_args { struct cuda_groups g; bool unit; float *y, *norm; };
status cuda_means(void *stream, const struct cuda_means_args *a, struct err *e);

struct cuda_nearest_args { struct cuda_groups x, y; float *best; uint32_t *which; float *x_norm, *y_norm; };
status cuda_nearest(void *stream, const struct cuda_nearest_args *a, struct err *e);

struct cuda_density_args { struct cuda_groups g; uint32_t k; float *out, *norm; double *dense, *most; };   /* [n] scratch each */
status cuda_density(void *stream, const struct cuda_density_args *a, struct err *e);

/* pick_start[g]: where the choices of group g begin. E_DEVICE with FARTHEST_MEAN for rows of more than about 28000. */
struct cuda_farthest_args {
    struct cuda_groups g;
    const float *weight;
    enum farthest_first first;
    const uint32_t *n_pick, *pick_start;
    uint32_t *pick;
    float *norm;
    double *least, *key;          /* [n] scratch each */
    uint8_t *taken;               /* [n] scratch */
};
status cuda_farthest(void *stream, const struct cuda_farthest_args *a, struct err *e);

struct cuda_merge_args {
    const float *x;
    uint32_t d, n;
    const uint32_t *dst;
    const float *c0;
    const uint32_t *start, *src;
    const float *w;
    float *y;
};
status cuda_merge(void *stream, const struct cuda_merge_args *a, struct err *e);

struct cuda_pagerank_args {
    const float *q, *k;
    size_t ldq, ldk;
    uint32_t n, H, G, D, iterations;
    float scale;
    float *importance;            /* [n] */
    double *most, *sum, *from, *to;   /* [H, n] scratch each */
};
status cuda_pagerank(void *stream, const struct cuda_pagerank_args *a, struct err *e);

#ifdef __cplusplus
}
#endif
#endif
