/* model/checkpoint.c - see checkpoint.h. */
#include "model/checkpoint.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define NAME_MAX_BYTES 160

/* ---- what the config asks for ------------------------------------------------------------------------- */

struct visitor {
    checkpoint_visit visit;
    void *ctx;
    struct err *e;
};

/* One tensor: a name with at most one layer number, and its dimensions; 0 ends the list. */
static status ask(struct visitor *v, const char *fmt, uint32_t layer, uint64_t a, uint64_t b, uint64_t c,
                  uint64_t d, uint64_t f)
{
    const uint64_t shape[5] = { a, b, c, d, f };
    char name[NAME_MAX_BYTES];
    uint32_t rank = 0;
    while (rank < 5 && shape[rank] != 0) rank++;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(name, sizeof name, fmt, layer);
#pragma GCC diagnostic pop
    return v->visit(v->ctx, name, rank, shape, v->e);
}
#define ASK1(fmt, l, a)    TRY(ask(v, fmt, l, a, 0, 0, 0, 0))
#define ASK2(fmt, l, a, b) TRY(ask(v, fmt, l, a, b, 0, 0, 0))

static status expect_text(const struct model_config *m, struct visitor *v)
{
    const struct text_config *c = &m->text;
    const uint64_t H = c->hidden, I = c->ff;
    const uint64_t QD = (uint64_t)c->heads * c->head_dim, KV = (uint64_t)c->kv_heads * c->head_dim;
    ASK2("model.embed_tokens.weight", 0, c->vocab, H);
    for (uint32_t l = 0; l < c->layers; l++) {
        ASK1("model.layers.%u.input_layernorm.weight", l, H);
        ASK2("model.layers.%u.self_attn.q_proj.weight", l, QD, H);
        ASK1("model.layers.%u.self_attn.q_proj.bias", l, QD);
        ASK2("model.layers.%u.self_attn.k_proj.weight", l, KV, H);
        ASK1("model.layers.%u.self_attn.k_proj.bias", l, KV);
        ASK2("model.layers.%u.self_attn.v_proj.weight", l, KV, H);
        ASK1("model.layers.%u.self_attn.v_proj.bias", l, KV);
        ASK2("model.layers.%u.self_attn.o_proj.weight", l, H, QD);
        ASK1("model.layers.%u.post_attention_layernorm.weight", l, H);
        ASK2("model.layers.%u.mlp.gate_proj.weight", l, I, H);
        ASK2("model.layers.%u.mlp.up_proj.weight", l, I, H);
        ASK2("model.layers.%u.mlp.down_proj.weight", l, H, I);
    }
    ASK1("model.norm.weight", 0, H);
    ASK2("lm_head.weight", 0, c->vocab, H);
    return OK;
}

static status expect_vision(const struct model_config *m, struct visitor *v)
{
    static const char *const square[] = { "q", "k", "v", "proj" };
    const struct vision_config *c = &m->vision;
    const uint64_t d = c->hidden, I = c->ff, M = d * c->merge_size * c->merge_size;
    TRY(ask(v, "visual.patch_embed.proj.weight", 0, d, c->in_channels, c->temporal_patch_size, c->patch_size,
            c->patch_size));
    for (uint32_t l = 0; l < c->depth; l++) {
        ASK1("visual.blocks.%u.norm1.weight", l, d);
        ASK1("visual.blocks.%u.norm2.weight", l, d);
        for (int i = 0; i < 4; i++) {
            char fmt[64];
            snprintf(fmt, sizeof fmt, "visual.blocks.%%u.attn.%s.weight", square[i]);
            ASK2(fmt, l, d, d);
            snprintf(fmt, sizeof fmt, "visual.blocks.%%u.attn.%s.bias", square[i]);
            ASK1(fmt, l, d);
        }
        ASK2("visual.blocks.%u.mlp.gate_proj.weight", l, I, d);
        ASK1("visual.blocks.%u.mlp.gate_proj.bias", l, I);
        ASK2("visual.blocks.%u.mlp.up_proj.weight", l, I, d);
        ASK1("visual.blocks.%u.mlp.up_proj.bias", l, I);
        ASK2("visual.blocks.%u.mlp.down_proj.weight", l, d, I);
        ASK1("visual.blocks.%u.mlp.down_proj.bias", l, d);
    }
    ASK1("visual.merger.ln_q.weight", 0, d);
    ASK2("visual.merger.mlp.0.weight", 0, M, M);
    ASK1("visual.merger.mlp.0.bias", 0, M);
    ASK2("visual.merger.mlp.2.weight", 0, c->out_hidden, M);
    ASK1("visual.merger.mlp.2.bias", 0, c->out_hidden);
    return OK;
}

static status expect_audio(const struct model_config *m, struct visitor *v)
{
    const struct audio_config *c = &m->audio;
    const uint64_t d = c->d_model, I = c->ff;
    TRY(ask(v, "audio_tower.conv1.weight", 0, d, c->mel_bins, 3, 0, 0));
    ASK1("audio_tower.conv1.bias", 0, d);
    TRY(ask(v, "audio_tower.conv2.weight", 0, d, d, 3, 0, 0));
    ASK1("audio_tower.conv2.bias", 0, d);
    for (uint32_t l = 0; l < c->layers; l++) {
        ASK1("audio_tower.layers.%u.self_attn_layer_norm.weight", l, d);
        ASK1("audio_tower.layers.%u.self_attn_layer_norm.bias", l, d);
        ASK2("audio_tower.layers.%u.self_attn.q_proj.weight", l, d, d);
        ASK1("audio_tower.layers.%u.self_attn.q_proj.bias", l, d);
        ASK2("audio_tower.layers.%u.self_attn.k_proj.weight", l, d, d); /* has no bias */
        ASK2("audio_tower.layers.%u.self_attn.v_proj.weight", l, d, d);
        ASK1("audio_tower.layers.%u.self_attn.v_proj.bias", l, d);
        ASK2("audio_tower.layers.%u.self_attn.out_proj.weight", l, d, d);
        ASK1("audio_tower.layers.%u.self_attn.out_proj.bias", l, d);
        ASK1("audio_tower.layers.%u.final_layer_norm.weight", l, d);
        ASK1("audio_tower.layers.%u.final_layer_norm.bias", l, d);
        ASK2("audio_tower.layers.%u.fc1.weight", l, I, d);
        ASK1("audio_tower.layers.%u.fc1.bias", l, I);
        ASK2("audio_tower.layers.%u.fc2.weight", l, d, I);
        ASK1("audio_tower.layers.%u.fc2.bias", l, d);
    }
    ASK1("audio_tower.ln_post.weight", 0, d);
    ASK1("audio_tower.ln_post.bias", 0, d);
    ASK2("audio_tower.proj.weight", 0, c->output_dim, d);
    ASK1("audio_tower.proj.bias", 0, c->output_dim);
    ASK2("audio_tower.audio_bos_eos_token.weight", 0, 2, c->output_dim);
    return OK;
}

status checkpoint_expected(const struct model_config *c, checkpoint_visit visit, void *ctx, struct err *e)
{
    struct visitor v = { visit, ctx, e };
    TRY(expect_text(c, &v));
    TRY(expect_vision(c, &v));
    return expect_audio(c, &v);
}

/* ---- what is there ------------------------------------------------------------------------------------ */

static bool begins(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

static bool is_skipped(const char *name)
{
    return begins(name, "talker.") || begins(name, "token2wav.");
}

/* A name without the thinker's prefix. */
static const char *own_name(const struct checkpoint *ck, const char *name)
{
    return ck->has_prefix && begins(name, "thinker.") ? name + strlen("thinker.") : name;
}

static bool is_selector(const struct checkpoint *ck, const char *name)
{
    return (!ck->has_prefix || begins(name, "thinker.")) && begins(own_name(ck, name), "compressor.");
}

static const struct tensor_info *find(const struct checkpoint *ck, const char *name)
{
    char full[NAME_MAX_BYTES + 16];
    snprintf(full, sizeof full, "%s%s", ck->has_prefix ? "thinker." : "", name);
    return tensor_files_find(ck->files, full);
}

struct checker {
    struct checkpoint *ck;
    bool *used;           /* [tensor_files_count] */
    uint64_t by_dtype[3]; /* bytes */
};

static status check_one(void *ctx, const char *name, uint32_t rank, const uint64_t *shape, struct err *e)
{
    struct checker *c = ctx;
    struct checkpoint *ck = c->ck;
    const struct tensor_info *t = find(ck, name);
    const char *prefix = ck->has_prefix ? "thinker." : "";
    char want[120], have[120];
    if (t == NULL && strcmp(name, "lm_head.weight") == 0 && ck->config.tie_word_embeddings) {
        ck->tied = true;
        return OK;
    }
    tensor_shape_text(rank, shape, want, sizeof want);
    if (t == NULL) return err_set(e, E_MODEL, "%s: tensor %s%s %s is missing", ck->dir, prefix, name, want);
    const char *file = tensor_files_path(ck->files, t->file);
    bool same = t->rank == rank;
    for (uint32_t i = 0; same && i < rank; i++) same = t->shape[i] == shape[i];
    if (!same)
        return err_set(e, E_MODEL, "%s: tensor %s is %s, by config.json it must be %s", file, t->name,
                       tensor_shape_text(t->rank, t->shape, have, sizeof have), want);
    if (!tensor_is_weight(t))
        return err_set(e, E_MODEL, "%s: tensor %s is %s, supported are F32, F16 and BF16", file, t->name,
                       tensor_dtype_name(t->dtype));
    c->used[t - tensor_files_at(ck->files, 0)] = true;
    c->by_dtype[t->dtype] += t->bytes;
    ck->n_tensors++;
    ck->n_params += t->n;
    *(begins(name, "visual.")        ? &ck->vision_bytes
      : begins(name, "audio_tower.") ? &ck->audio_bytes
                                     : &ck->text_bytes) += t->bytes;
    return OK;
}

/* Every name is the thinker's or is skipped. */
static status check_rest(struct checkpoint *ck, const bool *used, struct err *e)
{
    for (size_t i = 0; i < tensor_files_count(ck->files); i++) {
        const struct tensor_info *t = tensor_files_at(ck->files, i);
        if (used[i]) continue;
        if (is_selector(ck, t->name)) {
            ck->n_selector++;
            continue;
        }
        if (!is_skipped(t->name))
            return err_set(e, E_MODEL,
                           "%s: tensor %s is unknown: the model of config.json has none of this name",
                           tensor_files_path(ck->files, t->file), t->name);
        ck->n_skipped++;
    }
    return OK;
}

static status check_tensors(struct checkpoint *ck, struct err *e)
{
    struct checker c = { .ck = ck };
    status st;
    const size_t n = tensor_files_count(ck->files);
    for (size_t i = 0; i < n && !ck->has_prefix; i++)
        ck->has_prefix = begins(tensor_files_at(ck->files, i)->name, "thinker.");
    TRY(mem_alloc(&c.used, n, sizeof *c.used, e));
    TRY_GOTO(st, checkpoint_expected(&ck->config, check_one, &c, e), done);
    TRY_GOTO(st, check_rest(ck, c.used, e), done);
    int kinds = 0;
    for (int i = 0; i < 3; i++) {
        kinds += c.by_dtype[i] > 0;
        if (c.by_dtype[i] > c.by_dtype[ck->dtype]) ck->dtype = (enum dtype)i;
    }
    ck->mixed = kinds > 1;
    ck->bytes = ck->text_bytes + ck->audio_bytes + ck->vision_bytes;
done:
    free(c.used);
    return st;
}

status checkpoint_open(const char *dir, struct checkpoint *out, struct err *e)
{
    struct checkpoint ck = { 0 };
    status st;
    TRY(model_config_load(dir, &ck.config, e));
    ck.dir = mem_must_strdup(dir);
    TRY_GOTO(st, tensor_files_open_dir(dir, &ck.files, e), fail);
    TRY_GOTO(st, check_tensors(&ck, e), fail);
    *out = ck;
    return OK;
fail:
    checkpoint_close(&ck);
    return st;
}

void checkpoint_close(struct checkpoint *ck)
{
    tensor_files_close(&ck->files);
    free(ck->dir);
    ck->dir = NULL;
}

const struct tensor_info *checkpoint_tensor(const struct checkpoint *ck, const char *fmt, ...)
{
    char name[NAME_MAX_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    const bool head = strcmp(name, "lm_head.weight") == 0;
    const struct tensor_info *t = find(ck, head && ck->tied ? "model.embed_tokens.weight" : name);
    if (t == NULL) fprintf(stderr, "omnidrop: no tensor %s was asked for at load\n", name);
    assert(t != NULL);
    return t;
}

const char *checkpoint_selector_name(const struct checkpoint *ck, uint32_t i)
{
    for (size_t k = 0; k < tensor_files_count(ck->files); k++) {
        const char *name = tensor_files_at(ck->files, k)->name;
        if (is_selector(ck, name) && i-- == 0) return own_name(ck, name);
    }
    return NULL;
}

const struct tensor_info *checkpoint_selector(const struct checkpoint *ck, const char *name)
{
    return begins(name, "compressor.") ? find(ck, name) : NULL;
}
