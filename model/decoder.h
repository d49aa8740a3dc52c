/* model/decoder.h - the decoder, one layer at a time, over rows of several requests at once.
 * A step works on a *batch*: the rows of its sequences laid end to end. Prefill marches a batch through the layers
 * score first (docs/omnidrop.md 6), so each layer is three calls, of which the second only where tokens drop:
 *   1 decoder_kv      every row: norm, K and V, rotation, into the pages of this layer
 *   2 decoder_scores  the query rows of one sequence: importance of every row of that sequence, on the host; or decoder_choose,
 *                     where the device chooses by it and keeps what it chose
 *   3 decoder_mix     the rows that live on: attention, output, MLP; the others are not computed
 * Where nothing drops, decoder_layer does 1 and 3 at once. Decode is that with one row a sequence. decoder_logits ends
 * both.
 * The decoder sees pages as plain arrays (struct kv_view) and knows nothing of pools, policies or requests.
 *
 * In a tensor-parallel group each rank has a decoder with its slice of the weights (model/slice.h) and pages of its own KV
 * heads. All ranks make the same calls with the same arrays (model/team.h sees to that); sums and gathers between them happen
 * inside, in rank order, so x has the same bits everywhere. A rank whose own work fails still takes part in what the others
 * wait for and returns its error at the end.
 * Source: Qwen2_5OmniThinkerTextModel of transformers 5.23, eager attention (docs/qwen2_5_omni.md 6). */
#ifndef MODEL_DECODER_H
#define MODEL_DECODER_H

#include "comm/comm.h"
#include "kernels/ops.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/slice.h"

struct decoder;

struct decoder_shape {
    uint32_t L, H, G, D;           /* layers, query heads, KV heads, head dim                        */
    uint32_t d, ff, V;             /* width, MLP width, vocabulary rows                              */
    float rms_eps;
    double rope_theta;
    uint32_t mrope_section[3];     /* of the D/2 frequencies: t, h, w                                */
    bool tied;                     /* lm_head is embed_tokens                                        */
};

/* Weights by role, for checkpoints that are not on disk (measurements): fill `w` for (role, layer). Layer is 0 for
 * the last three. What it borrows must live until the call that asked for it returns. */
enum decoder_role { DEC_QKV_Q, DEC_QKV_KV, DEC_O, DEC_GATE_UP, DEC_DOWN, DEC_NORM1, DEC_NORM2,
                    DEC_EMBED, DEC_NORM, DEC_LM_HEAD };
struct decoder_source {
    status (*weight)(void *self, enum decoder_role role, uint32_t layer, struct weight_args *out, struct err *e);
    status (*norm)(void *self, enum decoder_role role, uint32_t layer, float *out /* [d] host */, struct err *e);
    void (*done)(void *self, enum decoder_role role, uint32_t layer);   /* packed: its pages may be dropped */
    void *self;
};

/* The source that reads a checkpoint; *self_storage (owned by the caller) holds its state. */
struct decoder_checkpoint { const struct checkpoint *ck; };
struct decoder_source decoder_source_checkpoint(struct decoder_checkpoint *c);
struct decoder_shape decoder_shape_of(const struct model_config *c);

/* Pack all weights onto the stream as `compute`, KV rows as `kv_dtype`. max_rows bounds the rows computed at once
 * (scratch), max_keys the context. *out owns weights and scratch. E_MODEL names a tensor. */
status decoder_create(struct stream *st, const struct decoder_shape *s, const struct decoder_source *src,
                      enum dtype compute, enum dtype kv_dtype, uint32_t max_rows, uint32_t max_keys,
                      struct decoder **out, struct err *e);
/* The same of one rank: the part of the weights that slice_of(s, rank of c) names. c is borrowed for the decoder's life. A
 * source gives whole tensors; no more of them is read than this rank keeps. E_ARG: as decoder_slice_of. */
status decoder_create_slice(struct stream *st, const struct decoder_shape *s, const struct decoder_source *src,
                            enum dtype compute, enum dtype kv_dtype, uint32_t max_rows, uint32_t max_keys, struct comm *c,
                            struct decoder **out, struct err *e);
void decoder_destroy(struct decoder **dc);

/* Of the whole model, on every rank. */
const struct decoder_shape *decoder_shape(const struct decoder *dc);
const struct decoder_slice *decoder_slice(const struct decoder *dc);
struct stream *decoder_stream(const struct decoder *dc);
uint32_t decoder_max_keys(const struct decoder *dc);
/* The next call fails with st after taking part in what other ranks wait for: arrays are not read, x and y are. For a rank
 * that could not even take down what it is asked to do. */
void decoder_fail(struct decoder *dc, status st);
/* Packed weight i of those that a decoded token reads, in their order (each layer's, then the head); NULL after the last. */
const struct weight *decoder_weight(const struct decoder *dc, uint32_t i);
/* Bytes of all these, of this rank. */
size_t decoder_weight_bytes(const struct decoder *dc);

/* Where K and V live. `base` and the page count are the engine's to fill. */
struct kv_shape decoder_kv_shape(const struct decoder *dc);

/* Angles of n rows: cos, sin [n, D/2] device memory, from positions [n] each (t, h, w; host). */
status decoder_angles(struct decoder *dc, const int32_t *const pos[3], uint32_t n, float *cos, float *sin,
                      struct err *e);

/* Word embeddings of n tokens: x [n, d] device memory. */
status decoder_embed(struct decoder *dc, const int32_t *id, uint32_t n, float *x, struct err *e);

struct decoder_batch {
    uint32_t n_seqs;
    const uint32_t *seq_start;     /* [n_seqs + 1] rows of sequence s in x                           */
    const struct kv_view *view;    /* [n_seqs] pages of this layer; n_rows counts the rows written   */
    const uint32_t *angle;         /* [rows] row of cos/sin for each row of x                        */
    bool on_device;                /* angle, and visible of decoder_layer, are lists of the device (ops.h) */
    const float *cos, *sin;
    struct kv_shape kv;
    bool decode;                   /* one row a sequence: the split-KV kernel                        */
};

/* Rows picked out of a batch. */
struct decoder_rows {
    uint32_t n;
    const uint32_t *row;           /* [n] rows of x, ascending; NULL (decoder_mix): all that there are */
    const uint32_t *angle;         /* [n] their rows of cos/sin                                      */
    const uint32_t *visible;       /* [n] key rows that each may see                                 */
    bool on_device;                /* all three                                                      */
};

/* Step 1. x [rows, d]. Row i of sequence s becomes row kv_start[s] + i of view[s]. */
status decoder_kv(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, const float *x,
                  const uint32_t *kv_start, struct err *e);

/* Step 2 for sequence s: S over all rows of its view (host, [view[s].n_rows]), Eq. 5, by the rows of `query`. Reads of b the view
 * alone. */
status decoder_scores(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, uint32_t s, const float *x,
                      const struct decoder_rows *query, float *score, struct err *e);

/* Step 2 with the choice: what ops->choose does with these scores, n being the rows of the view. partial, G, by and scratch of c are
 * filled in here. For a decoder of one rank. */
status decoder_choose(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, uint32_t s, const float *x,
                      const struct decoder_rows *query, struct choose_args *c, struct err *e);

/* Another step 2, for a batch of one sequence: importance of all its rows by five walks along the attention between them, whose
 * logits are ten times as sharp as the layer's own (ops->pagerank; AIM, arXiv 2412.03248). score: host, [rows]. No pages are
 * read. O(rows^2). */
status decoder_walks(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, const float *x, float *score,
                     struct err *e);
size_t decoder_walk_bytes(const struct decoder *dc, uint32_t n);   /* that it allocates meanwhile, of n rows */

/* Step 3, for the rows of keep; out_start [n_seqs + 1] says which of them belong to which sequence. y [keep->n, d] out, may not be x
 * unless keep->row is NULL (then all rows of x, in place: y == x). Angles are keep's, b's are not read. */
status decoder_mix(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, const float *x,
                   const struct decoder_rows *keep, const uint32_t *out_start, float *y, struct err *e);

/* Steps 1 and 3 for all rows, in place: the same bits as decoder_kv and decoder_mix. visible [rows of x] as above. */
status decoder_layer(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, float *x, const uint32_t *kv_start,
                     const uint32_t *visible, struct err *e);

/* logits [n, V] host of n rows of x (any rows; row NULL: 0..n-1). Ranks other than 0 give NULL: they get none. */
status decoder_logits(struct decoder *dc, const float *x, const uint32_t *row, uint32_t n, float *logits,
                      struct err *e);

/* Of the same logits the highest alone (ops->top): top [n] host. At most DECODER_TOPS rows, of a decoder that is no slice; the rows
 * stay on the device until the next call, and decoder_tops_row brings row i of them: logits [V] host. */
#define DECODER_TOPS 96
status decoder_tops(struct decoder *dc, const float *x, const uint32_t *row, uint32_t n, const uint8_t *allowed, struct top_row *top,
                    struct err *e);
status decoder_tops_row(struct decoder *dc, uint32_t i, float *logits, struct err *e);

#endif
