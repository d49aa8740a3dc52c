/* kernels/element.h - what a checkpoint's tensor holds, whatever its type. */
#ifndef KERNELS_ELEMENT_H
#define KERNELS_ELEMENT_H

#include <string.h>

#include "base/bf16.h"
#include "kernels/ops.h"

/* Element i of an array of type t, at any alignment, as f32; exact. */
static inline float element(const void *p, enum dtype t, size_t i)
{
    if (t == DT_F32) {
        float f;
        memcpy(&f, (const char *)p + 4 * i, sizeof f);
        return f;
    }
    uint16_t h;
    memcpy(&h, (const char *)p + 2 * i, sizeof h);
    return t == DT_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

#endif
