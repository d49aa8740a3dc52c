/* Goal: every rule about config.json and its neighbours holds, and a refusal names file and key. Method:
 * the bundled model's files with one text replaced by another, in memory and in a temporary folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/config.h"

#define MODEL "models/omni-tiny"
#define MUST_OK(expr)                                                                                        \
    do {                                                                                                     \
        if ((expr) != OK) fail_msg("%s", e.text);                                                            \
    } while (0)

static void says(status st, const struct err *e, const char *words)
{
    if (st != E_MODEL) fail_msg("status %d instead of E_MODEL for '%s'", (int)st, words);
    if (strstr(e->text, words) == NULL) fail_msg("'%s' does not say '%s'", e->text, words);
}

/* A file's text; free() it. */
static char *slurp(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) fail_msg("%s cannot be opened: run the tests in the root of the repository", path);
    char *s = calloc(1, 1 << 16);
    assert_non_null(s);
    const size_t n = fread(s, 1, (1 << 16) - 1, f);
    fclose(f);
    s[n] = '\0';
    return s;
}

/* The text with the first `a` replaced by `b`; a NULL: unchanged. free() it. */
static char *replaced(const char *text, const char *a, const char *b)
{
    char *out = calloc(1, strlen(text) + (b != NULL ? strlen(b) : 0) + 1);
    assert_non_null(out);
    if (a == NULL) return strcpy(out, text);
    const char *at = strstr(text, a);
    if (at == NULL) fail_msg("'%s' is not in the text", a);
    memcpy(out, text, (size_t)(at - text));
    strcat(strcat(out, b), at + strlen(a));
    return out;
}

static void the_bundled_model_is_read(void **state)
{
    (void)state;
    struct err e;
    struct model_config c;
    MUST_OK(model_config_load(MODEL, &c, &e));
    assert_false(c.thinker_only);
    assert_int_equal(c.text.hidden, 192);
    assert_int_equal(c.text.ff, 512);
    assert_int_equal(c.text.layers, 12);
    assert_int_equal(c.text.heads, 6);
    assert_int_equal(c.text.kv_heads, 2);
    assert_int_equal(c.text.head_dim, 32);
    assert_int_equal(c.text.vocab, 768);
    assert_int_equal(c.text.max_positions, 4096);
    assert_true(c.text.rms_eps == 1e-6f);
    assert_true(c.text.rope_theta == 10000.0);
    assert_int_equal(c.text.mrope_section[0], 8);
    assert_int_equal(c.text.mrope_section[2], 4);
    assert_int_equal(c.audio.d_model, 128);
    assert_int_equal(c.audio.layers, 3);
    assert_int_equal(c.audio.heads, 4);
    assert_int_equal(c.audio.ff, 384);
    assert_int_equal(c.audio.n_window, 100);
    assert_int_equal(c.vision.depth, 3);
    assert_int_equal(c.vision.hidden, 96);
    assert_false(c.vision.full_attention[0]);
    assert_false(c.vision.full_attention[1]);
    assert_true(c.vision.full_attention[2]);
    assert_int_equal(c.vision.window_size, 112);
    assert_int_equal(c.ids.audio, 749);
    assert_int_equal(c.ids.image, 758);
    assert_int_equal(c.ids.video, 759);
    assert_int_equal(c.ids.audio_start, 750);
    assert_int_equal(c.ids.vision_end, 756);
    assert_true(c.position_id_per_seconds == 25.0 && c.seconds_per_chunk == 2.0);
    assert_false(c.tie_word_embeddings);
    assert_int_equal(c.preprocess.image.min, 3136);
    assert_int_equal(c.preprocess.image.max, 28224);
    assert_true(c.preprocess.has_video);
    assert_int_equal(c.preprocess.video.max, 9408);
    assert_true(c.preprocess.mean[0] == 0.48145467f && c.preprocess.std[2] == 0.2757771f);
    assert_int_equal(c.n_stop, 2);
    assert_int_equal(c.stop[0], 748);
    assert_int_equal(c.stop[1], 746);
    assert_string_equal(c.dtype, "bfloat16");
}

static void both_spellings_are_read(void **state)
{
    (void)state;
    static const char *const same[][2] = {
        { "audio_token_index", "audio_token_id" },
        { "image_token_index", "image_token_id" },
        { "video_token_index", "video_token_id" },
        { "\"hidden_size\": 96,", "" },
        { "\"embed_dim\": 96,", "" },
        { "\"in_chans\": 3,", "" },
        { "\"spatial_patch_size\": 14,", "" },
        { "\"patch_size\": 14,", "" },
        { "\"rope_theta\": 10000.0,", "" },
        { "\"rope_parameters\"", "\"other\"" },
        { "\"rope_scaling\"", "\"other\"" },
        { "\"num_hidden_layers\": 12,", "\"num_hidden_layers\": 12, \"head_dim\": 32," },
        { "\"pad_token_id\": 746,", "" },
    };
    char *text = slurp(MODEL "/config.json");
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        struct err e;
        struct model_config c;
        char *t = replaced(text, same[i][0], same[i][1]);
        MUST_OK(model_config_parse(t, strlen(t), &c, &e));
        assert_int_equal(c.ids.audio, 749);
        assert_int_equal(c.vision.hidden, 96);
        assert_int_equal(c.text.head_dim, 32);
        assert_true(c.text.rope_theta == 10000.0);
        free(t);
    }
    free(text);
}

static void a_thinker_alone_is_read(void **state)
{
    (void)state;
    struct err e;
    struct model_config c;
    char *text = slurp(MODEL "/config.json");
    char *thinker = strstr(text, "\"thinker_config\": ") + strlen("\"thinker_config\": ");
    *strrchr(text, '}') = '\0';
    MUST_OK(model_config_parse(thinker, strlen(thinker), &c, &e));
    assert_true(c.thinker_only);
    assert_int_equal(c.text.hidden, 192);
    free(text);
}

static void refusals_name_the_key(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b, *words;
        bool twice;
    } bad[] = {
        { "\"qwen2_5_omni\"", "\"qwen2_5_vl\"", "a model of type \"qwen2_5_vl\"" },
        { "\"model_type\": \"qwen2_5_omni\",", "", "model_type: is missing" },
        { "\"thinker_config\"", "\"thinker\"", "thinker_config: is missing" },
        { "\"qwen2_5_omni_thinker\"", "\"qwen3_omni_moe_thinker\"", "thinker_config: model_type is" },
        { "\"enable_talker\": false,", "\"quantization_config\": {},", "quantised" },
        { "\"hidden_size\": 192,", "", "thinker_config.text_config.hidden_size: is missing" },
        { "\"hidden_size\": 192,", "\"hidden_size\": 0,", "text_config.hidden_size: is 0, must be 1" },
        { "\"hidden_size\": 192,", "\"hidden_size\": 192.0,", "is a number with a fraction" },
        { "\"hidden_size\": 192,", "\"hidden_size\": 191,",
          "hidden_size 191 is not a multiple of num_attention_heads" },
        { "\"hidden_size\": 192,", "\"hidden_size\": 200, \"head_dim\": 32,", "output_dim 192 is not" },
        { "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4",
          "num_attention_heads 6 is not a multiple of" },
        { "\"silu\"", "\"gelu\"", "hidden_act is \"gelu\"" },
        { "\"gelu\"", "\"relu\"", "activation_function is \"relu\"" },
        { "\"use_sliding_window\": false", "\"use_sliding_window\": true", "use_sliding_window is true" },
        { "\"sliding_window\": 32768", "\"layer_types\": [\"sliding_attention\"]",
          "layer_types[0]: is \"sliding" },
        { "\"rms_norm_eps\": 1e-06,", "", "rms_norm_eps: is missing" },
        { "8,\n          4,", "8, 8,", "does not sum to half the head dim 32", true },
        { "\"mrope_section\"", "\"x\"", "rope_parameters.mrope_section: is missing", true },
        { "\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"", "rope_type is \"yarn\"", true },
        { "\"num_mel_bins\": 128", "\"num_mel_bins\": 80", "num_mel_bins is 80, this engine supports 128" },
        { "\"encoder_attention_heads\": 4", "\"encoder_attention_heads\": 3",
          "d_model 128 is not a multiple" },
        { "\"n_window\": 100", "\"n_window\": 2000", "max_source_positions 1500" },
        { "\"output_dim\": 192", "\"output_dim\": 100", "output_dim 100 is not text_config.hidden_size 192" },
        { "\"out_hidden_size\": 192", "\"out_hidden_size\": 1", "out_hidden_size 1 is not" },
        { "\"embed_dim\": 96", "\"embed_dim\": 95", "hidden_size is 96 and embed_dim is 95" },
        { "\"patch_size\": 14", "\"patch_size\": 16", "spatial_patch_size is 14" },
        { "\"num_heads\": 4", "\"num_heads\": 16", "not a multiple of four" },
        { "\"window_size\": 112", "\"window_size\": 20", "window_size: is 20, must be 28" },
        { "2\n      ],", "3],", "fullatt_block_indexes[0]: is 3, must be 0 to 2" },
        { "\"fullatt_block_indexes\"", "\"x\"", "fullatt_block_indexes: is missing" },
        { "\"audio_token_index\": 749", "\"audio_token_index\": 768", "must be 0 to 767" },
        { "\"audio_token_index\": 749", "\"audio_token_index\": 758", "are both 758" },
        { "\"video_token_index\": 759,", "", "video_token_index: is missing" },
        { "\"position_id_per_seconds\": 25,", "", "position_id_per_seconds: is missing" },
    };
    char *text = slurp(MODEL "/config.json");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e;
        struct model_config c;
        char *t = replaced(text, bad[i].a, bad[i].b);
        if (bad[i].twice) {
            char *twice = replaced(t, bad[i].a, bad[i].b);
            free(t);
            t = twice;
        }
        says(model_config_parse(t, strlen(t), &c, &e), &e, bad[i].words);
        free(t);
    }
    free(text);
}

/* ---- the files beside it ------------------------------------------------------------------------------ */

static char dir[] = "/tmp/test_config_XXXXXX";

static void put(const char *name, const char *text)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (text == NULL) {
        unlink(path);
        return;
    }
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fputs(text, f) >= 0, 1);
    fclose(f);
}

#define IMAGE "\"image_mean\":[0.5,0.5,0.5],\"image_std\":[0.25,0.25,0.25]"

static void neighbours_of_config_json(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text, *words;
    } bad[] = {
        { "preprocessor_config.json", "{" IMAGE "}", "min_pixels and max_pixels" },
        { "preprocessor_config.json", "{\"min_pixels\":5,\"max_pixels\":4," IMAGE "}",
          "min_pixels 5 is more than" },
        { "preprocessor_config.json", "{\"min_pixels\":5,\"max_pixels\":9}", "image_mean: is missing" },
        { "preprocessor_config.json", "{\"min_pixels\":5,\"max_pixels\":9,\"merge_size\":3," IMAGE "}",
          "merge_size is 3" },
        { "preprocessor_config.json", "{\"min_pixels\":5,\"max_pixels\":9,\"n_fft\":512," IMAGE "}",
          "n_fft is 512" },
        { "preprocessor_config.json", "[]", "an object is needed" },
        { "video_preprocessor_config.json", "{\"min_pixels\":\"a\"}", "min_pixels: is a string" },
        { "generation_config.json", "{\"eos_token_id\":[1,768]}", "eos_token_id[1]: is 768" },
        { "generation_config.json", "{\"eos_token_id\":\"x\"}", "eos_token_id: is a string" },
        { "config.json", "nonsense", "config.json: line 1" },
    };
    struct err e;
    struct model_config c;
    char *text = slurp(MODEL "/config.json");
    says(model_config_load("/nonexistent", &c, &e), &e, "/nonexistent: no such folder");
    says(model_config_load(MODEL "/config.json", &c, &e), &e, "is a file: give the folder");
    says(model_config_load(dir, &c, &e), &e, "not a checkpoint: it holds no config.json");
    put("config.json", text);
    says(model_config_load(dir, &c, &e), &e, "neither preprocessor_config.json nor processor_config.json");
    put("processor_config.json",
        "{\"image_processor\":{\"size\":{\"shortest_edge\":10,\"longest_edge\":20}," IMAGE
        "},\"feature_extractor\":{\"hop_length\":160},"
        "\"video_processor\":{\"size\":{\"shortest_edge\":7,\"longest_edge\":8}}}");
    MUST_OK(model_config_load(dir, &c, &e));
    assert_int_equal(c.preprocess.image.min, 10);
    assert_int_equal(c.preprocess.image.max, 20);
    assert_true(c.preprocess.mean[1] == 0.5f && c.preprocess.std[1] == 0.25f);
    assert_true(c.preprocess.has_video);
    assert_int_equal(c.preprocess.video.min, 7);
    assert_int_equal(c.n_stop, 2);
    put("preprocessor_config.json", "{\"min_pixels\":5,\"max_pixels\":9," IMAGE "}");
    MUST_OK(model_config_load(dir, &c, &e));
    assert_int_equal(c.preprocess.image.max, 9);
    assert_false(c.preprocess.has_video);
    put("generation_config.json", "{\"eos_token_id\":5}");
    MUST_OK(model_config_load(dir, &c, &e));
    assert_int_equal(c.n_stop, 3);
    assert_int_equal(c.stop[2], 5);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put("config.json", text);
        put("preprocessor_config.json", "{\"min_pixels\":5,\"max_pixels\":9," IMAGE "}");
        put("video_preprocessor_config.json", "{}");
        put("generation_config.json", "{}");
        MUST_OK(model_config_load(dir, &c, &e));
        put(bad[i].name, bad[i].text);
        says(model_config_load(dir, &c, &e), &e, bad[i].words);
    }
    static const char *const names[] = { "config.json", "preprocessor_config.json", "processor_config.json",
                                         "video_preprocessor_config.json", "generation_config.json" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) put(names[i], NULL);
    free(text);
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) == NULL;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bundled_model_is_read), cmocka_unit_test(both_spellings_are_read),
        cmocka_unit_test(a_thinker_alone_is_read),   cmocka_unit_test(refusals_name_the_key),
        cmocka_unit_test(neighbours_of_config_json),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
