/* model/decoder_source.c - the decoder's weights out of a checkpoint (decoder.h, struct decoder_source). */
#include <stdio.h>
#include <string.h>

#include "model/decoder.h"
#include "model/tensor_f32.h"

/* Tensors of each role; a second name is a second part. Bias: the same names with .bias. */
#define LAYER "model.layers.%u."
static const struct { const char *part[2]; bool bias; enum weight_form form; } ROLES[] = {
    [DEC_QKV_Q] = { { LAYER "self_attn.q_proj" }, true, WEIGHT_PLAIN },
    [DEC_QKV_KV] = { { LAYER "self_attn.k_proj", LAYER "self_attn.v_proj" }, true, WEIGHT_PLAIN },
    [DEC_O] = { { LAYER "self_attn.o_proj" }, false, WEIGHT_PLAIN },
    [DEC_GATE_UP] = { { LAYER "mlp.gate_proj", LAYER "mlp.up_proj" }, false, WEIGHT_SWIGLU },
    [DEC_DOWN] = { { LAYER "mlp.down_proj" }, false, WEIGHT_PLAIN },
    [DEC_NORM1] = { { LAYER "input_layernorm" }, false, WEIGHT_PLAIN },
    [DEC_NORM2] = { { LAYER "post_attention_layernorm" }, false, WEIGHT_PLAIN },
    [DEC_EMBED] = { { "model.embed_tokens" }, false, WEIGHT_PLAIN },
    [DEC_NORM] = { { "model.norm" }, false, WEIGHT_PLAIN },
    [DEC_LM_HEAD] = { { "lm_head" }, false, WEIGHT_PLAIN },
};

static const struct tensor_info *tensor_of(void *self, enum decoder_role role, int part, uint32_t l, const char *what)
{
    const struct decoder_checkpoint *c = self;
    char name[128];
    snprintf(name, sizeof name, ROLES[role].part[part], l);
    return checkpoint_tensor(c->ck, "%s.%s", name, what);
}

static status source_weight(void *self, enum decoder_role role, uint32_t l, struct weight_args *a, struct err *e)
{
    (void)e;
    a->form = ROLES[role].form;
    a->n_parts = ROLES[role].part[1] ? 2 : 1;
    for (uint32_t i = 0; i < a->n_parts; i++) {
        const struct tensor_info *w = tensor_of(self, role, (int)i, l, "weight"), *b = NULL;
        if (ROLES[role].bias) b = tensor_of(self, role, (int)i, l, "bias");
        a->k = (uint32_t)w->shape[1];
        a->part[i] = (struct weight_part){ .data = w->data, .dtype = (enum dtype)w->dtype, .n = (uint32_t)w->shape[0],
                                           .bias = b ? b->data : NULL, .bias_dtype = b ? (enum dtype)b->dtype : DT_F32 };
    }
    return OK;
}

static status source_norm(void *self, enum decoder_role role, uint32_t l, float *out, struct err *e)
{
    (void)e;
    tensor_to_f32(tensor_of(self, role, 0, l, "weight"), out);
    return OK;
}

static void source_done(void *self, enum decoder_role role, uint32_t l)
{
    for (int i = 0; i < 2 && ROLES[role].part[i]; i++) tensor_drop(tensor_of(self, role, i, l, "weight"));
}

struct decoder_source decoder_source_checkpoint(struct decoder_checkpoint *c)
{
    return (struct decoder_source){ .weight = source_weight, .norm = source_norm, .done = source_done, .self = c };
}

struct decoder_shape decoder_shape_of(const struct model_config *c)
{
    const struct text_config *t = &c->text;
    struct decoder_shape s = { .L = t->layers, .H = t->heads, .G = t->kv_heads, .D = t->head_dim, .d = t->hidden,
                               .ff = t->ff, .V = t->vocab, .rms_eps = t->rms_eps, .rope_theta = t->rope_theta };
    memcpy(s.mrope_section, t->mrope_section, sizeof s.mrope_section);
    return s;
}
