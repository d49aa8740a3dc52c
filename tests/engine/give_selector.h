/* tests/engine/give_selector.h - a trained selector for omnisift, made of random numbers, for a model that has none. */
#ifndef TESTS_ENGINE_GIVE_SELECTOR_H
#define TESTS_ENGINE_GIVE_SELECTOR_H

#include <math.h>

#include "base/mem.h"
#include "engine/inside.h"
#include "prune/omnisift.h"

/* To the leader's engine, before it serves. The same numbers for every engine of the same width. */
__attribute__((unused)) static void give_selector(struct engine *en)
{
    const struct omnisift_sizes z = { .d = decoder_shape(en->dec)->d, .width = 32, .hidden = 16 };
    uint64_t shape[2], n = 0, rnd = 9;
    selector_free(&en->selector);
    for (uint32_t i = 0; i < OMNISIFT_TENSORS; i++) {
        omnisift_shape(i, &z, shape);
        n += shape[0] * shape[1];
    }
    en->selector.tensor = mem_must(OMNISIFT_TENSORS, sizeof *en->selector.tensor);
    en->selector.data = mem_must(n, sizeof(float));
    float *at = en->selector.data;
    for (uint32_t i = 0; i < OMNISIFT_TENSORS; i++) {
        omnisift_shape(i, &z, shape);
        en->selector.tensor[i] = (struct prune_tensor){ omnisift_name(i), at, shape[0] * shape[1] };
        for (uint64_t k = 0; k < shape[0] * shape[1]; k++) {
            rnd = rnd * 6364136223846793005u + 1442695040888963407u;
            *at++ = ((float)(uint32_t)(rnd >> 32) * 0x1p-31f - 1) / sqrtf((float)shape[1]);
        }
    }
    en->selector.n_tensors = OMNISIFT_TENSORS;
}

#endif
