/* model/tensor_f32.h - a tensor of a checkpoint as f32: norms, biases and tables stay f32 whatever the model is in. */
#ifndef MODEL_TENSOR_F32_H
#define MODEL_TENSOR_F32_H

#include <string.h>

#include "base/bf16.h"
#include "model/safetensors.h"

/* out [t->n] host. Only for weights (tensor_is_weight); BF16 and F16 widen exactly. */
static inline void tensor_to_f32(const struct tensor_info *t, float *out)
{
    const uint16_t *half = t->data;
    if (t->dtype == TENSOR_F32) memcpy(out, t->data, t->n * sizeof(float));
    else if (t->dtype == TENSOR_BF16)
        for (uint64_t i = 0; i < t->n; i++) out[i] = bf16_to_f32(half[i]);
    else
        for (uint64_t i = 0; i < t->n; i++) out[i] = f16_to_f32(half[i]);
}

#endif
