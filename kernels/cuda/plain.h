/* kernels/cuda/plain.h - attention without tensor cores: f32 throughout, pages of either type, any head dim to 256. What the
 * launchers of attention.cu, scores.cu and segments.cu fall back on; slow and general. */
#ifndef KERNELS_CUDA_PLAIN_H
#define KERNELS_CUDA_PLAIN_H

#include "kernels/cuda/pages.h"

enum { PLAIN_HEAD_MAX = 256 };

/* The arguments of the launchers that call them. decode: the tiles are those of cuda_attention_decode. */
status plain_attention(void *stream, const struct cuda_attention_args *a, bool decode, struct err *e);
status plain_query_scores(void *stream, const struct cuda_query_scores_args *a, struct err *e);
/* out where `attend`, received where it is asked for. */
status plain_segments(void *stream, const struct cuda_segment_attention_args *a, bool attend, struct err *e);

#endif
