/* kernels/ops.h - all arithmetic: one table per device, one meaning per entry.
 * The CPU's table is the meaning; every other device must agree with it within the tolerance given here.
 *
 * Words. A *stream* is one device ready to work (the CPU's: a thread pool and an instruction set). Memory that an
 * op reads or writes comes from ops->alloc unless the text says *host*; the structs themselves are host memory, and
 * what is host memory has been read, or written, when the op returns. f32 matrices are row-major.
 *   weight    a matrix [N, K] in the device's own layout, made once at load, with its bias
 *   operand   the left side [rows, K] of a product in the device's own layout: made by the norms, by pack and by
 *             the epilogues of linear and attention; read by linear only. Its memory is the caller's scratch.
 *   view      the rows of one (sequence, layer) through its list of pages
 * Rules that hold for all: sums run in one order that depends on the shape of a *row* alone (never on the number
 * of rows, their place in the batch, tiles or threads), so a batch gives the bits that each request alone gives.
 * Softmax and norm statistics are f32. Products of bf16 weights take bf16 operands where the machine multiplies
 * bf16, f32 operands otherwise; products of f32 weights are f32 throughout.
 * An op may return before its work is done (CUDA); sync waits. Errors: E_ARG for shapes that a device was not built
 * for, E_DEVICE for a failed launch; outputs are undefined then. No op allocates.
 * Lists are on the host, where an op reads them before it returns; those that `choose` and `list_rows` made stay on the device,
 * and ops that take them say so by a flag, ..._on_device: the list is then memory of ops->alloc, and what is in it is not
 * checked. How long it is the host knows in any case. */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum dtype { DT_F32, DT_BF16, DT_F16 };

/* Bytes of one element. */
static inline size_t dtype_size(enum dtype t) { return t == DT_F32 ? 4 : 2; }

struct stream;   /* opaque; see stream_open below */
struct weight;   /* opaque; owned by whoever created it */

/* ---- weights ---------------------------------------------------------------------------------------------- */

/* One tensor of a checkpoint, borrowed for the call: row-major [n, k] on the host, or k columns of a wider one. */
struct weight_part {
    const void *data;             /* [n, ld] of dtype, host; k of each row are read                   */
    enum dtype dtype;
    uint32_t n;                   /* output rows                                                      */
    const void *bias;             /* [n] of bias_dtype, host; NULL: none (fused parts then add 0)     */
    enum dtype bias_dtype;
    size_t ld;                    /* elements between rows, at least k; 0: k                          */
};

enum weight_form {
    WEIGHT_PLAIN,                 /* parts stacked: output columns of part 0, then part 1, ...        */
    WEIGHT_SWIGLU                 /* exactly two parts of equal n: gate, up; for LINEAR_SWIGLU alone  */
};

struct weight_args {
    enum weight_form form;
    enum dtype compute;           /* DT_F32 or DT_BF16: what it is stored and multiplied as           */
    uint32_t k, n_parts;
    struct weight_part part[3];
};

/* What a weight is, readable by all. */
struct weight_shape { uint32_t n, k; enum dtype compute; bool has_bias; size_t bytes; };

/* ---- operands --------------------------------------------------------------------------------------------- */

struct operand {
    void *data;                   /* ops->operand_bytes(rows, k, compute) bytes of ops->alloc memory  */
    uint32_t rows, k;
    enum dtype compute;           /* must equal that of the weight it meets                           */
};

/* ---- pages ------------------------------------------------------------------------------------------------ */

/* The K and V rows of one sequence at one layer. Row i is in page[i / page_tokens]. Page layout: the device's own. */
struct kv_view {
    const uint32_t *page;         /* [ceil(n_rows / page_tokens)] page numbers, host                  */
    uint32_t n_rows;
};

struct kv_shape {
    uint32_t G, D;                /* KV heads of this rank, head dim                                  */
    enum dtype dtype;             /* DT_F32 or DT_BF16                                                */
    uint32_t page_tokens;         /* ops->page_tokens                                                 */
    size_t page_bytes;            /* ops->page_bytes(G, D, dtype)                                     */
    void *base;                   /* ops->alloc memory, n_pages * page_bytes                          */
};

/* ---- arguments -------------------------------------------------------------------------------------------- */

struct embed_args {
    const struct weight *table;   /* [V, d]                                                           */
    const int32_t *id;            /* [n] host, each in 0..V-1                                         */
    uint32_t n;
    float *y;                     /* [n, d] out                                                       */
};

/* y row i, column block j (of d) = norm(x row group * (row ? row[i] : i) + j), j < group; operand k = group * d. */
struct norm_args {
    const float *x;               /* [*, d]                                                           */
    const uint32_t *row;          /* [rows] host: which x row; NULL: row i. Only with group == 1      */
    uint32_t rows, d, group;
    const float *w, *b;           /* [d]; b: LayerNorm's, NULL for RMSNorm                            */
    float eps;
    struct operand *out;          /* rows x group*d; rows, k, compute are set by the caller           */
    bool row_on_device;
};

struct pack_args {
    const float *x;               /* [rows, ldx]                                                      */
    size_t ldx;                   /* floats between rows                                              */
    uint32_t rows, k;
    struct operand *out;
};

enum linear_mode {
    LINEAR_STORE,                 /* y  = x W^T + b                                                   */
    LINEAR_ADD,                   /* y += x W^T + b      (the residual)                               */
    LINEAR_GELU,                  /* y  = gelu(x W^T + b), erf form                                   */
    LINEAR_GELU_OPERAND,          /* out = gelu(x W^T + b), operand [rows, N]                         */
    LINEAR_SWIGLU                 /* out = silu(x Wg^T + bg) * (x Wu^T + bu), operand [rows, N/2]     */
};

struct linear_args {
    const struct operand *x;
    const struct weight *w;
    enum linear_mode mode;
    float *y;                     /* [rows, ldy], modes STORE, ADD, GELU                              */
    size_t ldy;
    struct operand *out;          /* modes *_OPERAND and SWIGLU                                       */
};

/* Rows of a 1-d convolution, kernel 3, zero padding 1, chunk by chunk (chunks never see each other).
 * out row of (chunk c, u): columns ch*3 + j = x[t0_c + stride*u + j - 1][ch], 0 outside the chunk. */
struct im2col_args {
    const float *x;               /* element (t, ch) at x[t * st + ch * sc]                           */
    size_t st, sc;
    uint32_t channels, stride, n_chunks;
    const uint32_t *len;          /* [n_chunks] host: time steps of each chunk, laid end to end       */
    struct operand *out;          /* rows = sum of (len - 1) / stride + 1; k = 3 * channels           */
};

/* x[i][h*D..] rotated in place by half rotation: pair (j, j + D/2), angle table row r = row ? row[i] : i. */
struct rope_args {
    float *x;                     /* [n, ldx], heads of D at column 0                                 */
    size_t ldx;
    uint32_t n, heads, D;
    const float *cos, *sin;       /* [*, D/2]                                                         */
    const uint32_t *row;          /* [n] host or NULL                                                 */
    bool row_on_device;
};

/* Rotate K, then write K and V rows into pages. Rows of sequence s: first_row[s] .. of the *batch* kv matrix. */
struct kv_write_args {
    const float *kv;              /* [n, ldkv]: K at column 0, V at column G*D                        */
    size_t ldkv;
    const float *cos, *sin;       /* [*, D/2] as in rope_args; NULL: K is not rotated                 */
    const uint32_t *row;          /* [n] host or NULL: row of cos/sin                                 */
    struct kv_shape shape;
    uint32_t n_seqs;
    const uint32_t *seq_start;    /* [n_seqs + 1] host: batch rows of sequence s                      */
    const uint32_t *kv_start;     /* [n_seqs] host: place of its first row in its view                */
    const struct kv_view *view;   /* [n_seqs] host; pages must be there for all rows written          */
    bool row_on_device;
};

/* Causal attention of query rows over pages; GQA: query head h uses KV head h / (H / G).
 * Query row i of sequence s sees the first visible[i] rows of view[s] (>= 1). Softmax f32, scale on the scores. */
struct attention_args {
    const float *q;               /* [n, ldq] after rope                                              */
    size_t ldq;
    uint32_t H;
    float scale;
    struct kv_shape shape;
    uint32_t n_seqs;
    const uint32_t *seq_start;    /* [n_seqs + 1] host: query rows of sequence s                      */
    const uint32_t *visible;      /* [n] host, ascending inside a sequence                            */
    const struct kv_view *view;   /* [n_seqs] host                                                    */
    struct operand *out;          /* rows n, k = H*D                                                  */
    void *scratch;                /* ops->attention_scratch bytes                                     */
    bool visible_on_device;       /* not of attention_decode                                          */
};

/* Full attention inside segments (towers). Output operand [n, heads*D]. */
struct segment_attention_args {
    const float *q, *k, *v;       /* [n, ld] each, heads of D at column 0                             */
    size_t ld;
    uint32_t heads, D;
    float scale;
    uint32_t n_segs;
    const uint32_t *seg_start;    /* [n_segs + 1] host                                                */
    struct operand *out;
    float *received;              /* [n] out or NULL: mean over heads and over the segment's rows of the
                                     probability that each key receives (pruning-methods.md 0.3)      */
    void *scratch;                /* ops->attention_scratch(rows, the longest segment) bytes          */
};

/* OmniDrop Eq. 5, one sequence: partial[g, j] = sum over query rows i and heads h of group g of A^h_{i,j},
 * A the softmax over the first visible[i] rows. S_j = sum_g partial[g, j] / (H n_q), summed g ascending in f32.
 * Tolerance to cpu: 1e-5 of the largest. Two runs agree bit for bit. */
struct query_scores_args {
    const float *q;               /* [n_q, ldq] after rope                                            */
    size_t ldq;
    uint32_t n_q, H;
    float scale;
    struct kv_shape shape;
    struct kv_view view;
    const uint32_t *visible;      /* [n_q] host, ascending                                            */
    float *partial;               /* [G, view.n_rows] out                                             */
    void *scratch;                /* ops->attention_scratch(n_q, view.n_rows) bytes                   */
    bool visible_on_device;
};

/* The k tokens to drop among n by importance, OmniDrop Algorithm 1 (omnidrop.md 5); ties keep the lower index. */
struct select_args {
    const float *score;           /* [n] host; NaN ranks last                                         */
    const int32_t *chunk;         /* [n] host; read with tds only                                     */
    uint32_t n, k;
    bool tds;
    bool relative;                /* with tds: scores over their maximum, before lambda D is added; a maximum that
                                     is not positive and finite leaves them                           */
    double lambda_div;
    int32_t max_chunk;            /* max over the whole prompt's AV tokens                            */
    uint32_t *keep;               /* [n - k] out, host: ascending indices into score                  */
    void *scratch;                /* ops->select_scratch(n) bytes, host                               */
};

/* Rows of one sequence, picked without the host's knowing which. A row has an id: its place in tables of the caller's. Out of
 * id[0..n), in order, those with mark[id[i]] & of, or all where mark is NULL: row[j] = first + i, out_id[j] = id[i], visible[j] =
 * place + i + 1. All of it is device memory; no list is also an input. */
struct list_rows_args {
    const uint32_t *id;           /* [n]                                                              */
    uint32_t n, first, place;
    const uint8_t *mark;          /* by id, or NULL                                                   */
    uint8_t of;
    uint32_t n_out;               /* how many there are: no more are written                          */
    uint32_t *row, *out_id, *visible;  /* [n_out] out; NULL: not asked for                            */
};

/* `select` with everything on the device: scores out of query_scores' parts, the k tokens to drop, and what is left as lists.
 * score[i] = by x the sum over g, ascending in f32, of partial[g, i]. The tokens are the rows with mark[id[i]] & of; the k that
 * select would drop of them by score and chunk[id[i]] go; the other rows, these and all that are no tokens, become lists as of
 * list_rows with place 0. Same bits as select. */
struct choose_args {
    const float *partial;         /* [G, n]                                                           */
    uint32_t G, n, first;
    float by;
    const uint32_t *id;           /* [n]                                                              */
    const uint8_t *mark;          /* by id                                                            */
    const int32_t *chunk;         /* by id; read with tds only                                        */
    uint8_t of;
    uint32_t n_of, k;             /* tokens among the rows, as many as there are; at most n_of go     */
    bool tds, relative;           /* these four as in select_args                                     */
    double lambda_div;
    int32_t max_chunk;
    float *score;                 /* [n] out                                                          */
    uint32_t *row, *out_id, *visible;  /* [n - k] out                                                 */
    void *scratch;                /* ops->choose_scratch(n) bytes of ops->alloc memory                */
};

/* out[i] = cos(x[a[i]], y[b[i]]) as in pruning-methods.md 0.2: bit-equal rows give exactly 1. */
struct cosine_args {
    const float *x;               /* [*, d]                                                           */
    uint32_t d, n;
    const uint32_t *a, *b;        /* [n] host                                                         */
    float *out;                   /* [n] out, host                                                    */
    const float *y;               /* [*, d] or NULL: x                                                */
};

/* Rows in groups: group g is row[start[g] .. start[g + 1]) of a matrix x. Groups may be empty. */
struct row_groups {
    const float *x;               /* [*, d]                                                           */
    uint32_t d, n_groups;
    const uint32_t *start;        /* [n_groups + 1] host, start[0] = 0                                */
    const uint32_t *row;          /* [start[n_groups]] host                                           */
};

/* y row g = mean of the rows of group g, of the rows over their lengths with `unit`; 0 of an empty group. Summed in double
 * in the order of the list: the mean of bit-equal rows is that row. Not in place. */
struct means_args {
    struct row_groups g;
    bool unit;
    float *y;                     /* [n_groups, d] out                                                */
    void *scratch;                /* ops->pair_scratch(d, rows of all groups) bytes, host             */
};

/* For row i of x: the row of y in the same group with the greatest cosine, ties to the earlier in its list; cosine -1 and place
 * UINT32_MAX where y has no row there. Groups of x and y correspond. */
struct nearest_args {
    struct row_groups x, y;       /* of one d and n_groups                                            */
    float *best;                  /* [rows of x] out, host: the cosine                                */
    uint32_t *which;              /* [rows of x] out, host: place in y.row                            */
    void *scratch;                /* pair_scratch(d, rows of x + rows of y) bytes, host               */
};

/* Density peaks inside each group: with D = 1 - cos, p_i = exp(-mean of D to the min(k, n - 1) nearest others), 1 if there are
 * none; delta_i = least D to a row of strictly higher p, for the densest the greatest D of the group; out = p delta.
 * Source: pruning-methods.md 2.4. O(n^2 d) a group. Tolerance 1e-5. */
struct density_args {
    struct row_groups g;
    uint32_t k;                   /* 1 .. OPS_NEIGHBOURS_MAX                                          */
    float *out;                   /* [rows of all groups] out, host                                   */
    void *scratch;                /* pair_scratch(d, rows of all groups) bytes, host                  */
};
#define OPS_NEIGHBOURS_MAX 64

/* Greedy choice of n_pick[g] rows of each group, each next one the row with the greatest weight x least distance (1 - cos) to
 * those chosen; ties to the earlier. The first: by weight x distance to its nearest other row (FARTHEST_APART), or by the mean
 * distance to all others (FARTHEST_MEAN). Weights that are NaN come last. O(n_pick n d) a group, FARTHEST_APART O(n^2 d).
 * Source: pruning-methods.md 8.1 SEATS stage I, 5 step 4. */
enum farthest_first { FARTHEST_APART, FARTHEST_MEAN };
struct farthest_args {
    struct row_groups g;
    const float *weight;          /* [rows of all groups] host or NULL: 1                             */
    enum farthest_first first;
    const uint32_t *n_pick;       /* [n_groups] host, at most the group's rows                        */
    uint32_t *pick;               /* [sum of n_pick] out, host: places in g.row, in order of choice   */
    void *scratch;                /* pair_scratch(d, rows of all groups) bytes, host                  */
};

/* y row i = c0[i] x[dst[i]] + sum over j in [start[i], start[i + 1]) of w[j] x[src[j]], in that order. Not in place.
 * Tolerance 1e-5 of the largest of the row. */
struct merge_args {
    const float *x;               /* [*, d]                                                           */
    uint32_t d, n;
    const uint32_t *dst;          /* [n] host                                                         */
    const float *c0;              /* [n] host                                                         */
    const uint32_t *start;        /* [n + 1] host                                                     */
    const uint32_t *src;          /* [start[n]] host                                                  */
    const float *w;               /* [start[n]] host                                                  */
    float *y;                     /* [n, d] out                                                       */
};

/* Importance by undamped walks (AIM, arXiv 2412.03248; pruning-methods.md 7.2): per head M = softmax over j <= i of
 * scale q_i . k_j; dist starts at 1 / n and becomes dist M, `iterations` times; importance = root of the mean over heads of
 * dist^2. Query head h uses K head h / (H / G). O(iterations n^2 H D). Tolerance 1e-5 of the largest. */
struct pagerank_args {
    const float *q, *k;           /* [n, ldq], [n, ldk] after rope                                    */
    size_t ldq, ldk;
    uint32_t n, H, G, D, iterations;
    float scale;
    float *importance;            /* [n] out, host                                                    */
    void *scratch;                /* ops->pagerank_scratch(H, n) bytes, host                          */
};

/* Of each row of logits the OPS_TOP highest that may be chosen, highest first, of equal ones the lower id first, and norm, the
 * logarithm of the sum of exp of all that may be chosen; NaN may not. best: behind the last the id is -1. Values and ids are exact;
 * norm within 1e-12, two runs agree bit for bit. */
#define OPS_TOP 64
struct top_best { float logit; int32_t id; };
struct top_row { double norm; struct top_best best[OPS_TOP]; };
struct top_args {
    const float *x;               /* [n, ldx]                                                         */
    size_t ldx;
    uint32_t n, V;
    const uint8_t *allowed;       /* [V] or NULL: 0 may not be chosen                                 */
    struct top_row *out;          /* [n] out, host                                                    */
};

/* y row i = x row row[i]. Not in place. */
struct gather_args {
    const float *x;               /* [*, d]                                                           */
    const uint32_t *row;          /* [n] host                                                         */
    uint32_t n, d;
    float *y;                     /* [n, d] out                                                       */
    bool row_on_device;
};

/* y row row[i] = x row i (media embeddings into the prompt). */
struct scatter_args {
    const float *x;               /* [n, d]                                                           */
    const uint32_t *row;          /* [n] host, distinct                                               */
    uint32_t n, d;
    float *y;                     /* [*, d]                                                           */
};

/* y row i += table row (i's place inside its chunk): the audio tower's sinusoids restart in each chunk. */
struct add_rows_args {
    float *y;                     /* [sum of len, d]                                                  */
    const float *table;           /* [>= max len, d]                                                  */
    uint32_t d, n_chunks;
    const uint32_t *len;          /* [n_chunks] host                                                  */
};

/* y row i = (x row 2i + x row 2i+1) / 2, i < n. */
struct mean_pairs_args {
    const float *x;               /* [2 n, d]                                                         */
    uint32_t n, d;
    float *y;                     /* [n, d] out                                                       */
};

/* Page dst becomes a copy of page src, whole, n times (dst distinct, none of them a src): a sequence that forks. */
struct page_copy_args { struct kv_shape shape; const uint32_t *src, *dst; uint32_t n; };   /* host arrays */

/* Row i of each view becomes what its row row[i] was, i < n; the rest of the last page used is cleared. In place, so the
 * pages must be the view's own. K is rotated already: its positions stay what they were. (docs/omnidrop.md 7, Trim) */
struct kv_compact_args {
    struct kv_shape shape;
    uint32_t n_views;
    const struct kv_view *view;    /* [n_views] host */
    const uint32_t *const *row;    /* [n_views] host: [n[v]] ascending, below view[v].n_rows */
    const uint32_t *n;             /* [n_views] host */
};

#define OPS_TIMES 8

/* The most that ops will be asked for. */
struct reserve_args {
    size_t bytes;                 /* of work memory: alloc's                                          */
    uint32_t seqs, keys;          /* sequences of one step; keys of one                               */
    uint32_t heads;               /* H of pagerank; 0: there is none                                  */
    uint32_t list;                /* rows that a list names                                           */
    size_t out;                   /* values of an attention's output                                  */
};

struct ops {
    const char *name;             /* "cpu" */
    uint32_t page_tokens;         /* 16 on the CPU */

    /* Memory. alloc: 64-byte aligned, not zeroed; E_NOMEM. upload/download copy between host and device. */
    status (*alloc)(struct stream *st, size_t bytes, void **out, struct err *e);
    void (*release)(struct stream *st, void *p);
    status (*upload)(struct stream *st, void *dst, const void *host, size_t bytes, struct err *e);
    status (*download)(struct stream *st, void *host, const void *src, size_t bytes, struct err *e);
    /* download, but at its own time: host is filled when the next download or sync has returned, and stays until then. */
    status (*fetch)(struct stream *st, void *host, const void *src, size_t bytes, struct err *e);
    status (*sync)(struct stream *st, struct err *e);

    /* How long work took where it is done, which may be after whoever asked for it has gone on. time_begin and time_end stand around
     * work, at most OPS_TIMES of them not read yet (E_ARG). time_read gives the seconds of the oldest that is over; NAN: of none, with
     * `wait` only where there is none at all. */
    status (*time_begin)(struct stream *st, struct err *e);
    status (*time_end)(struct stream *st, struct err *e);
    status (*time_read)(struct stream *st, bool wait, double *seconds, struct err *e);

    /* A device that has to ask its runtime for memory is asked for all of it once; NULL, all three, on one that need not (the CPU).
     * reserve: from now on alloc takes its blocks out of args->bytes, at once and whatever still runs, and what ops keep for
     * themselves is as large as args says. Once a stream. E_NOMEM: the device has not so much. reserve_bytes: what it asks for in all.
     * within: until the next call alloc takes its blocks out of `block`, one of alloc, which holds RANGE_ALIGN bytes less than its
     * size; NULL: of all that is reserved. Blocks know where they came from; releasing `block` releases all that is in it. */
    size_t (*reserve_bytes)(const struct stream *st, const struct reserve_args *a);
    status (*reserve)(struct stream *st, const struct reserve_args *a, struct err *e);
    status (*within)(struct stream *st, void *block, struct err *e);

    /* Sizes. Pure functions of their arguments and of the stream's instruction set. */
    size_t (*operand_bytes)(const struct stream *st, uint32_t rows, uint32_t k, enum dtype compute);
    size_t (*page_bytes)(const struct stream *st, uint32_t G, uint32_t D, enum dtype dtype);
    /* Scratch of attention, segment_attention and query_scores for up to n rows and max_keys keys a row. */
    size_t (*attention_scratch)(const struct stream *st, uint32_t H, uint32_t D, uint32_t n, uint32_t max_keys);
    size_t (*select_scratch)(const struct stream *st, uint32_t n);
    size_t (*choose_scratch)(const struct stream *st, uint32_t n);
    /* Of means, nearest, density and farthest over n rows of width d in all. */
    size_t (*pair_scratch)(const struct stream *st, uint32_t d, size_t n);
    size_t (*pagerank_scratch)(const struct stream *st, uint32_t H, uint32_t n);

    status (*weight_create)(struct stream *st, const struct weight_args *a, struct weight **out, struct err *e);
    void (*weight_destroy)(struct stream *st, struct weight **w);
    struct weight_shape (*weight_shape)(const struct weight *w);

    status (*embed)(struct stream *st, const struct embed_args *a, struct err *e);
    status (*norm)(struct stream *st, const struct norm_args *a, struct err *e);
    status (*pack)(struct stream *st, const struct pack_args *a, struct err *e);
    status (*linear)(struct stream *st, const struct linear_args *a, struct err *e);
    status (*im2col)(struct stream *st, const struct im2col_args *a, struct err *e);
    status (*rope)(struct stream *st, const struct rope_args *a, struct err *e);
    status (*kv_write)(struct stream *st, const struct kv_write_args *a, struct err *e);
    status (*attention)(struct stream *st, const struct attention_args *a, struct err *e);   /* many rows a sequence */
    status (*attention_decode)(struct stream *st, const struct attention_args *a, struct err *e); /* one row each  */
    status (*segment_attention)(struct stream *st, const struct segment_attention_args *a, struct err *e);
    status (*query_scores)(struct stream *st, const struct query_scores_args *a, struct err *e);
    status (*select)(struct stream *st, const struct select_args *a, struct err *e);
    status (*list_rows)(struct stream *st, const struct list_rows_args *a, struct err *e);
    status (*choose)(struct stream *st, const struct choose_args *a, struct err *e);
    status (*cosine)(struct stream *st, const struct cosine_args *a, struct err *e);
    status (*means)(struct stream *st, const struct means_args *a, struct err *e);
    status (*nearest)(struct stream *st, const struct nearest_args *a, struct err *e);
    status (*density)(struct stream *st, const struct density_args *a, struct err *e);
    status (*farthest)(struct stream *st, const struct farthest_args *a, struct err *e);
    status (*merge)(struct stream *st, const struct merge_args *a, struct err *e);
    status (*pagerank)(struct stream *st, const struct pagerank_args *a, struct err *e);
    status (*top)(struct stream *st, const struct top_args *a, struct err *e);
    status (*gather)(struct stream *st, const struct gather_args *a, struct err *e);
    status (*scatter)(struct stream *st, const struct scatter_args *a, struct err *e);
    status (*add_rows)(struct stream *st, const struct add_rows_args *a, struct err *e);
    status (*mean_pairs)(struct stream *st, const struct mean_pairs_args *a, struct err *e);
    status (*page_copy)(struct stream *st, const struct page_copy_args *a, struct err *e);
    status (*kv_compact)(struct stream *st, const struct kv_compact_args *a, struct err *e);

    /* Round ops that come again and again alike, but for the lists that they take: one token of so many sequences. A device may
     * hold back what stands between and run it as one with step_end; what cannot wait (a download, a sync, other ops than a
     * decoder's) ends the holding back, not the step. Not nested. owner, rows: steps that are alike have both alike.
     * drop: an op has failed, and what was held back is not run. E_DEVICE: as of an op. The CPU's do nothing. */
    void (*step_begin)(struct stream *st, const void *owner, uint32_t rows);
    status (*step_end)(struct stream *st, bool drop, struct err *e);

    /* Human-readable: "AMD EPYC, avx512-bf16, 2 threads". */
    void (*describe)(const struct stream *st, char *text, size_t cap);
    void (*close)(struct stream **st);
};

/* Every stream starts with its table, so that `const struct ops *ops = st->ops` works for all devices. */
struct stream { const struct ops *ops; };

struct stream_options {
    const char *device;           /* "auto", "cpu", "cuda"; NULL: auto                                */
    int n_threads;                /* CPU: 0 for one per CPU                                           */
    const char *isa;              /* CPU: "avx512-bf16", "avx512", "avx2", "plain"; NULL: the best that the
                                     machine has (the environment's OMNIDROP_ISA comes before it)     */
};

/* Open a device. E_MODEL: no such device, or an instruction set that this machine does not have (the text lists
 * what it has). *out is owned; close with ops->close. */
status stream_open(const struct stream_options *o, struct stream **out, struct err *e);

/* The CPU's instruction sets that this machine can run, best first; NULL-terminated static list. */
const char *const *cpu_isas(void);

/* Is there a CUDA driver on this machine? text says which, or that there is none (`inspect device`). */
bool device_cuda_driver(char *text, size_t cap);

#endif
