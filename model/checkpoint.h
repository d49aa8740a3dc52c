/* model/checkpoint.h - a checkpoint folder: its config and every tensor the thinker needs, checked by name
 * and shape. After checkpoint_open nothing about the weights can fail. Names are given without the prefix
 * `thinker.`; whether the file has it is decided by the names there, not by the config. Tensors of
 * `talker.` and `token2wav.` are skipped, those of `compressor.` (OmniSIFT's audio selector, which its
 * fine-tuned checkpoint brings along; pruning-methods.md 1.2) are left to who can use them,
 * any other name that the thinker does not know is an error. BF16,
 * F16 and F32 may be mixed. Embeddings are tied where lm_head.weight is absent and the config says so:
 * checkpoint_tensor then returns model.embed_tokens.weight for it. Source: qwen2_5_omni.md 1.4, 1.5 as in
 * transformers 5.23. */
#ifndef MODEL_CHECKPOINT_H
#define MODEL_CHECKPOINT_H

#include "base/err.h"
#include "model/config.h"
#include "model/safetensors.h"

struct checkpoint {
    char *dir; /* owned */
    struct model_config config;
    struct tensor_files *files;                     /* owned */
    bool has_prefix;                                /* names carry `thinker.` */
    bool tied;                                      /* no lm_head of its own */
    bool mixed;                                     /* more than one dtype */
    enum dtype dtype;                               /* the dtype of most bytes */
    uint32_t n_tensors;                             /* of the thinker */
    uint64_t n_params, bytes;                       /* of these */
    uint64_t text_bytes, audio_bytes, vision_bytes; /* bytes = text + audio + vision (lm_head is text) */
    uint32_t n_skipped;                             /* tensors of talker and vocoder */
    uint32_t n_selector;                            /* of `compressor.`: nothing is checked but the names' prefix */
};

/* *out owns all; close it after the last tensor was packed. E_MODEL names the file, tensor or key.  */
status checkpoint_open(const char *dir, struct checkpoint *out, struct err *e);
void checkpoint_close(struct checkpoint *ck);

/* A tensor by its name without prefix, printf style: checkpoint_tensor(ck,
 * "model.layers.%u.mlp.up_proj.weight", l). Borrowed; never NULL: asking for a name that qwen2_5_omni.md
 * 1.4 does not list is our mistake and aborts. Its dtype is one of the three of enum dtype. */
const struct tensor_info *checkpoint_tensor(const struct checkpoint *ck, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The tensors of `compressor.`: name(i) for i < n_selector, without the thinker's prefix; by such a name, NULL where there is none.
 * Any dtype and shape. Borrowed. */
const char *checkpoint_selector_name(const struct checkpoint *ck, uint32_t i);
const struct tensor_info *checkpoint_selector(const struct checkpoint *ck, const char *name);

/* Call back for every tensor the config asks for, with its shape, in file order of the model page. The
 * list is what checkpoint_open checks; tests and tools walk it too. Stops at the first status that is not
 * OK and returns it. */
typedef status (*checkpoint_visit)(void *ctx, const char *name, uint32_t rank, const uint64_t *shape,
                                   struct err *e);
status checkpoint_expected(const struct model_config *c, checkpoint_visit visit, void *ctx, struct err *e);

#endif
