/* model/slice.h - which part of the decoder is whose in a tensor-parallel group.
 * Query and KV heads, MLP columns and vocabulary rows are cut into contiguous ranges, in rank order, that need not be equal:
 *   size <= G   each rank has KV heads of its own and the query heads that read them
 *   size >  G   size must be a multiple of G; a KV head is held by size / G ranks, which share its query heads out
 * Q, K, V, gate and up are cut by output rows; O and down by input columns, so that each rank's product is a part of the
 * sum; the embedding and the head by vocabulary rows. Norms are everybody's.
 * Source: Megatron-LM (arXiv 1909.08053), section 3; for size > G as serving engines replicate KV heads. */
#ifndef MODEL_SLICE_H
#define MODEL_SLICE_H

#include <stdint.h>

#include "base/err.h"

struct decoder_shape;

struct decoder_slice {
    uint32_t rank, size;
    uint32_t head0, heads;         /* query heads [head0, head0 + heads)                */
    uint32_t kv0, kv_heads;        /* KV heads; with sharers > 1 one                    */
    uint32_t sharers;              /* ranks that hold the same KV heads                 */
    uint32_t ff0, ff;              /* MLP columns                                       */
    uint32_t row0, rows;           /* vocabulary                                        */
};

/* E_ARG: this shape cannot be cut so; the text lists the sizes that it can. */
status decoder_slice_of(const struct decoder_shape *s, uint32_t rank, uint32_t size, struct decoder_slice *out, struct err *e);

#endif
