/* Goal: a checkpoint opens only if every tensor the config asks for is there, with its shape, and nothing
 * else is; what is wrong is named. Method: a small model written by the test from the list of expected
 * tensors, whole and with one thing broken; the bundled model; the reference checkpoints of tests/goldens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/checkpoint.h"

#define MUST_OK(expr)                                                                                        \
    do {                                                                                                     \
        if ((expr) != OK) fail_msg("%s", e.text);                                                            \
    } while (0)

static void says(status st, const struct err *e, const char *words)
{
    if (st != E_MODEL) fail_msg("status %d instead of E_MODEL for '%s'", (int)st, words);
    if (strstr(e->text, words) == NULL) fail_msg("'%s' does not say '%s'", e->text, words);
}

static char dir[] = "/tmp/test_checkpoint_XXXXXX";

static char *in_dir(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void put(const char *name, const char *text)
{
    FILE *f = fopen(in_dir(name), "wb");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    fclose(f);
}

/* 2 decoder layers, 1 audio layer, 2 vision blocks. %s: true or false, for tied embeddings. */
static const char config[] =
    "{\"model_type\":\"qwen2_5_omni_thinker\",\"audio_token_index\":0,\"image_token_index\":1,"
    "\"video_token_index\":2,\"audio_start_token_id\":3,\"audio_end_token_id\":4,\"vision_start_token_id\":5,"
    "\"vision_end_token_id\":6,\"eos_token_id\":7,\"position_id_per_seconds\":25,\"seconds_per_chunk\":2,"
    "\"tie_word_embeddings\":%s,"
    "\"text_config\":{\"hidden_size\":12,\"intermediate_size\":7,\"num_hidden_layers\":2,\"num_attention_"
    "heads\":3,"
    "\"num_key_value_heads\":1,\"vocab_size\":20,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6,"
    "\"rope_parameters\":{\"rope_theta\":1e6,\"mrope_section\":[1,1,0]}},"
    "\"audio_config\":{\"num_mel_bins\":128,\"d_model\":4,\"encoder_layers\":1,\"encoder_attention_heads\":1,"
    "\"encoder_ffn_dim\":5,\"max_source_positions\":10,\"n_window\":2,\"output_dim\":12},"
    "\"vision_config\":{\"depth\":2,\"hidden_size\":8,\"num_heads\":2,\"intermediate_size\":3,\"in_"
    "channels\":3,"
    "\"patch_size\":14,\"temporal_patch_size\":2,\"spatial_merge_size\":2,\"window_size\":56,"
    "\"fullatt_block_indexes\":[],\"out_hidden_size\":12}}";

static void put_config(bool tied)
{
    char text[sizeof config + 8];
    snprintf(text, sizeof text, config, tied ? "true" : "false");
    put("config.json", text);
    put("preprocessor_config.json", "{\"min_pixels\":784,\"max_pixels\":7840,\"image_mean\":[0,0,0],"
                                    "\"image_std\":[1,1,1]}");
}

/* What to do differently when the weights are written. */
struct change {
    const char *prefix;
    const char *leave_out;
    const char *add;              /* one more tensor, U8 [1]                                   */
    const char *reshape;          /* its last dimension is cut by one                          */
    const char *dtype_of, *dtype; /* this tensor has another dtype                             */
    long cut;                     /* bytes cut from the end of the file                        */
};

struct writer {
    const struct change *how;
    char *header;
    size_t n;
    uint64_t at;
};

static void entry(struct writer *w, const char *prefix, const char *name, const char *dtype, uint32_t rank,
                  const uint64_t *shape)
{
    char text[100];
    uint64_t bytes = strcmp(dtype, "F32") == 0 ? 4 : strcmp(dtype, "U8") == 0 ? 1 : 2;
    for (uint32_t i = 0; i < rank; i++) bytes *= shape[i];
    w->n += (size_t)sprintf(w->header + w->n,
                            "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%" PRIu64 ",%" PRIu64
                            "]}",
                            w->n > 1 ? "," : "", prefix, name, dtype,
                            tensor_shape_text(rank, shape, text, sizeof text), w->at, w->at + bytes);
    w->at += bytes;
}

static status write_one(void *ctx, const char *name, uint32_t rank, const uint64_t *shape, struct err *e)
{
    (void)e;
    struct writer *w = ctx;
    const struct change *how = w->how;
    uint64_t dim[5];
    memcpy(dim, shape, rank * sizeof *dim);
    if (how->leave_out != NULL && strcmp(name, how->leave_out) == 0) return OK;
    if (how->reshape != NULL && strcmp(name, how->reshape) == 0) dim[rank - 1]--;
    const bool other = how->dtype_of != NULL && strcmp(name, how->dtype_of) == 0;
    entry(w, how->prefix, name, other ? how->dtype : "BF16", rank, dim);
    return OK;
}

static void put_weights(const struct change *how)
{
    struct err e;
    struct model_config c;
    struct writer w = { .how = how, .header = calloc(1, 1 << 20), .n = 1 };
    assert_non_null(w.header);
    w.header[0] = '{';
    MUST_OK(model_config_load(dir, &c, &e));
    MUST_OK(checkpoint_expected(&c, write_one, &w, &e));
    if (how->add != NULL) entry(&w, "", how->add, "U8", 1, (const uint64_t[]){ 1 });
    w.n += (size_t)sprintf(w.header + w.n, "}");
    while (w.n % 8 != 0) w.header[w.n++] = ' ';
    FILE *f = fopen(in_dir("model.safetensors"), "wb");
    assert_non_null(f);
    const uint64_t n = w.n;
    assert_int_equal(fwrite(&n, 8, 1, f), 1);
    assert_int_equal(fwrite(w.header, 1, w.n, f), w.n);
    assert_int_equal(fflush(f), 0);
    assert_int_equal(ftruncate(fileno(f), (off_t)(8 + w.n + w.at) - how->cut), 0);
    fclose(f);
    free(w.header);
}

static void whole_ones_open_with_and_without_prefix(void **state)
{
    (void)state;
    static const struct change good[] = {
        { .prefix = "" },
        { .prefix = "thinker." },
        { .prefix = "thinker.", .add = "talker.model.norm.weight" },
        { .prefix = "thinker.", .add = "token2wav.x" },
        { .prefix = "thinker.", .add = "thinker.compressor.x" },
        { .prefix = "", .add = "compressor.x" },
        { .prefix = "", .dtype_of = "model.norm.weight", .dtype = "F32" },
        { .prefix = "", .dtype_of = "model.norm.weight", .dtype = "F16" },
    };
    put_config(false);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct err e;
        struct checkpoint ck;
        put_weights(&good[i]);
        MUST_OK(checkpoint_open(dir, &ck, &e));
        assert_int_equal(ck.has_prefix, good[i].prefix[0] != '\0');
        const bool selector = good[i].add != NULL && strstr(good[i].add, "compressor.") != NULL;
        assert_int_equal(ck.n_skipped, good[i].add != NULL && !selector);
        assert_int_equal(ck.n_selector, selector);
        assert_null(checkpoint_selector_name(&ck, selector));
        assert_true((checkpoint_selector(&ck, "compressor.x") != NULL) == selector);
        assert_int_equal(ck.n_tensors, (3 + 12 * 2) + (6 + 16 * 2) + (9 + 15 * 1));
        assert_int_equal(ck.dtype, DT_BF16);
        assert_int_equal(ck.mixed, good[i].dtype != NULL && strcmp(good[i].dtype, "BF16") != 0);
        assert_false(ck.tied);
        assert_int_equal(ck.bytes, ck.text_bytes + ck.audio_bytes + ck.vision_bytes);
        if (!ck.mixed) assert_int_equal(ck.bytes, 2 * ck.n_params);
        const struct tensor_info *t = checkpoint_tensor(&ck, "model.layers.%u.self_attn.q_proj.weight", 1u);
        assert_int_equal(t->shape[0], 12);
        t = checkpoint_tensor(&ck, "visual.patch_embed.proj.weight");
        assert_int_equal(t->rank, 5);
        checkpoint_close(&ck);
    }
}

static void tied_embeddings(void **state)
{
    (void)state;
    const struct change without = { .prefix = "", .leave_out = "lm_head.weight" }, with = { .prefix = "" };
    struct err e;
    struct checkpoint ck;
    put_config(true);
    put_weights(&without);
    MUST_OK(checkpoint_open(dir, &ck, &e));
    assert_true(ck.tied);
    assert_ptr_equal(checkpoint_tensor(&ck, "lm_head.weight"),
                     checkpoint_tensor(&ck, "model.embed_tokens.weight"));
    checkpoint_close(&ck);
    put_weights(&with);
    MUST_OK(checkpoint_open(dir, &ck, &e));
    assert_false(ck.tied);
    assert_string_equal(checkpoint_tensor(&ck, "lm_head.weight")->name, "lm_head.weight");
    checkpoint_close(&ck);
    put_config(false);
    put_weights(&without);
    says(checkpoint_open(dir, &ck, &e), &e, "tensor lm_head.weight [20, 12] is missing");
}

static void broken_ones_name_the_tensor(void **state)
{
    (void)state;
    static const struct {
        struct change how;
        const char *words;
    } bad[] = {
        { { .prefix = "", .leave_out = "model.layers.1.mlp.down_proj.weight" },
          "tensor model.layers.1.mlp.down_proj.weight [12, 7] is missing" },
        { { .prefix = "thinker.", .leave_out = "audio_tower.conv2.bias" },
          "tensor thinker.audio_tower.conv2.bias [4] is missing" },
        { { .prefix = "", .reshape = "visual.blocks.1.attn.q.weight" },
          "tensor visual.blocks.1.attn.q.weight is [8, 7], by config.json it must be [8, 8]" },
        { { .prefix = "", .dtype_of = "model.norm.weight", .dtype = "I16" },
          "tensor model.norm.weight is I16, supported are" },
        { { .prefix = "", .add = "model.layers.2.mlp.up_proj.weight" },
          "tensor model.layers.2.mlp.up_proj.weight is unknown" },
        { { .prefix = "thinker.", .add = "thinker.audio_tower.layers.0.self_attn.k_proj.bias" },
          "is unknown" },
        { { .prefix = "thinker.", .add = "model.norm.weight" }, "tensor model.norm.weight is unknown" },
        { { .prefix = "thinker.", .add = "compressor.x" }, "tensor compressor.x is unknown" },
        { { .prefix = "", .cut = 1 }, "audio_tower.audio_bos_eos_token.weight: ends at byte" },
        { { .prefix = "", .cut = 1 }, "truncated" },
    };
    put_config(false);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e;
        struct checkpoint ck;
        put_weights(&bad[i].how);
        says(checkpoint_open(dir, &ck, &e), &e, bad[i].words);
    }
}

/* Leave out each tensor in turn: every one is noticed. */
struct walk {
    char names[200][64];
    size_t n;
};
static status collect(void *ctx, const char *name, uint32_t rank, const uint64_t *shape, struct err *e)
{
    (void)rank, (void)shape, (void)e;
    struct walk *w = ctx;
    snprintf(w->names[w->n++], sizeof w->names[0], "%s", name);
    return OK;
}

static void each_missing_tensor_is_noticed(void **state)
{
    (void)state;
    struct err e;
    struct model_config c;
    struct walk w = { .n = 0 };
    put_config(false);
    MUST_OK(model_config_load(dir, &c, &e));
    MUST_OK(checkpoint_expected(&c, collect, &w, &e));
    for (size_t i = 0; i < w.n; i++) {
        const struct change how = { .prefix = "thinker.", .leave_out = w.names[i] };
        struct checkpoint ck;
        put_weights(&how);
        says(checkpoint_open(dir, &ck, &e), &e, w.names[i]);
        says(checkpoint_open(dir, &ck, &e), &e, "is missing");
    }
}

static void real_checkpoints_open(void **state)
{
    (void)state;
    struct err e;
    struct checkpoint ck;
    MUST_OK(checkpoint_open("models/omni-tiny", &ck, &e));
    assert_true(ck.has_prefix);
    assert_int_equal(ck.dtype, DT_BF16);
    assert_int_equal(ck.n_skipped, 0);
    assert_int_equal(ck.bytes, tensor_files_bytes(ck.files));
    checkpoint_close(&ck);
    glob_t g;
    if (glob("tests/goldens/*/checkpoint", 0, NULL, &g) != 0) g.gl_pathc = 0;
    for (size_t i = 0; i < g.gl_pathc; i++) {
        MUST_OK(checkpoint_open(g.gl_pathv[i], &ck, &e));
        printf("%s: %u tensors, %" PRIu64 " bytes\n", g.gl_pathv[i], ck.n_tensors, ck.bytes);
        checkpoint_close(&ck);
    }
    globfree(&g);
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) == NULL;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(in_dir("config.json"));
    unlink(in_dir("preprocessor_config.json"));
    unlink(in_dir("model.safetensors"));
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_ones_open_with_and_without_prefix),
        cmocka_unit_test(tied_embeddings),
        cmocka_unit_test(broken_ones_name_the_tensor),
        cmocka_unit_test(each_missing_tensor_is_noticed),
        cmocka_unit_test(real_checkpoints_open),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
