/* kernels/cuda/hopper.h - the kernels for sm_90a alone: launchers that others call where hopper_here(). */
#ifndef KERNELS_CUDA_HOPPER_H
#define KERNELS_CUDA_HOPPER_H

#include "kernels/cuda/kernels.h"

bool hopper_here(void);
/* As cuda_attention; pages of bf16, heads of 64 or 128 dims. */
status hopper_attention(void *stream, const struct cuda_attention_args *a, struct err *e);
/* The two passes over K of cuda_query_scores, into `part`, and from `lse` into `partial`. */
status hopper_score_stats(void *stream, const struct cuda_query_scores_args *a, struct err *e);
status hopper_scores(void *stream, const struct cuda_query_scores_args *a, struct err *e);

#endif
