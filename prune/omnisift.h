/* prune/omnisift.h - the layout of OmniSIFT's audio selector in a checkpoint, where its tensors are named `compressor.` and what stands
 * here. Source: dingyue772/OmniSIFT; docs/pruning-methods.md 1.2. */
#ifndef PRUNE_OMNISIFT_H
#define PRUNE_OMNISIFT_H

#include <stdint.h>

#include "prune/policy.h"

#define OMNISIFT_TENSORS 18
#define OMNISIFT_HEADS   8

/* Its sizes follow from its tensors: `width` from v_proj.weight, `hidden` from score_head.0.weight. */
struct omnisift_sizes { uint64_t d, width, hidden; };   /* d: of the model's embeddings */

/* Of tensor i < OMNISIFT_TENSORS: its name, and its shape, of which it has one dimension or two. */
const char *omnisift_name(uint32_t i);
uint32_t omnisift_shape(uint32_t i, const struct omnisift_sizes *s, uint64_t shape[2]);
/* E_ARG: no selector has such sizes. */
status omnisift_check(const struct omnisift_sizes *s, struct err *e);
/* Device memory that the policy has while it chooses, at most, where a chunk has at most `rows` tokens of a kind; d: of the embeddings.
 * Where the tensors are not there it has none. */
size_t omnisift_bytes(const struct stream *st, uint32_t d, const struct prune_tensor *tensor, uint32_t n_tensors, uint32_t rows);

#endif
