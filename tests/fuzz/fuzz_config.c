/* Fuzz target: config.json. What is accepted must hold the promises that the engine builds on. */
#include <stdlib.h>

#include "model/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

/* Walk some of the expected tensors: names and shapes are made from the numbers read. */
static status count(void *ctx, const char *name, uint32_t rank, const uint64_t *shape, struct err *e)
{
    uint32_t *left = ctx;
    PROMISE(name[0] != '\0' && rank >= 1 && rank <= 5 && shape[rank - 1] > 0);
    return --*left == 0 ? err_set(e, E_CANCELLED, "enough") : OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err e;
    struct model_config c;
    uint32_t left = 500;
    if (model_config_parse((const char *)data, size, &c, &e) != OK) return 0;
    PROMISE(c.text.heads % c.text.kv_heads == 0 && c.text.head_dim % 2 == 0);
    PROMISE(c.text.mrope_section[0] + c.text.mrope_section[1] + c.text.mrope_section[2] ==
            c.text.head_dim / 2);
    PROMISE(c.audio.d_model % c.audio.heads == 0 && c.audio.output_dim == c.text.hidden);
    PROMISE(c.vision.hidden % (4 * c.vision.heads) == 0 && c.vision.out_hidden == c.text.hidden);
    PROMISE(c.vision.depth <= MODEL_BLOCKS_MAX && c.n_stop <= MODEL_STOP_MAX);
    PROMISE(c.ids.audio >= 0 && (uint32_t)c.ids.audio < c.text.vocab);
    checkpoint_expected(&c, count, &left, &e);
    return 0;
}
