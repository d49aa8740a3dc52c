/* engine/selector.h - the trained audio selector that OmniSIFT's checkpoint brings along (tensors `compressor.`), as its policy
 * takes it. A model without one, or with one that cannot be used, serves everything else.
 * Source: docs/pruning-methods.md 1.2, 1.4. */
#ifndef ENGINE_SELECTOR_H
#define ENGINE_SELECTOR_H

#include "model/checkpoint.h"
#include "prune/policy.h"

struct selector {
    uint32_t n_tensors;            /* 0: there is none to use */
    struct prune_tensor *tensor;   /* [n_tensors], owned: names as the policy knows them, f32 on the host */
    float *data;                   /* all numbers; owned */
    char flaw[320];                /* n_tensors == 0: why */
};

/* *out is owned: selector_free. What the checkpoint lacks, has too much of or in another shape is no error here but the flaw, which
 * names the tensor; E_NOMEM is one. */
status selector_load(const struct checkpoint *ck, struct selector *out, struct err *e);
void selector_free(struct selector *s);

#endif
