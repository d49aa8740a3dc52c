/* model/config.c - see config.h. */
#include "model/config.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"

#define WIDTH_MAX (1u << 20) /* any width, layer or head count beyond it is damage, not a model */

/* ---- small rules -------------------------------------------------------------------------------------- */

/* The first of two spellings that is there; the first where none is, so that errors name the usual one. */
static const char *either(const struct doc_at *o, const char *usual, const char *other)
{
    return !doc_has(o, usual) && doc_has(o, other) ? other : usual;
}

/* Both spellings may stand side by side and must then agree. */
static status u32_of_two(const struct doc_at *o, const char *usual, const char *other, uint32_t lo,
                         uint32_t hi, uint32_t *out, struct err *e)
{
    TRY(doc_u32(o, either(o, usual, other), lo, hi, out, e));
    uint32_t second = *out;
    TRY(doc_opt_u32(o, other, lo, hi, &second, e));
    if (second != *out) return doc_err(o, e, "%s is %u and %s is %u", usual, *out, other, second);
    return OK;
}

/* A constant of the architecture: what the engine computes is written for this value alone. */
static status must_be(const struct doc_at *o, const char *key, uint32_t value, uint32_t only, struct err *e)
{
    if (value == only) return OK;
    return doc_err(o, e, "%s is %u, this engine supports %u alone", key, value, only);
}

static status must_be_text(const struct doc_at *o, const char *key, const char *only, struct err *e)
{
    const char *s = only;
    TRY(doc_opt_string(o, key, &s, e));
    if (strcmp(s, only) != 0)
        return doc_err(o, e, "%s is \"%.60s\", this engine supports \"%s\" alone", key, s, only);
    return OK;
}

static status must_be_false(const struct doc_at *o, const char *key, struct err *e)
{
    bool on = false;
    TRY(doc_opt_bool(o, key, &on, e));
    return on ? doc_err(o, e, "%s is true, which this engine does not support", key) : OK;
}

static status must_divide(const struct doc_at *o, const char *big, uint32_t n, const char *small, uint32_t by,
                          struct err *e)
{
    if (n % by == 0) return OK;
    return doc_err(o, e, "%s %u is not a multiple of %s %u", big, n, small, by);
}

/* ---- config.json -------------------------------------------------------------------------------------- */

/* rope_theta and mrope_section: in rope_parameters (5.x), or in rope_scaling with rope_theta beside it. */
static status parse_rope(const struct doc_at *text, struct text_config *c, struct err *e)
{
    struct doc_at rope;
    int64_t section[3];
    TRY(doc_object(text, either(text, "rope_parameters", "rope_scaling"), &rope, e));
    static const char *const names[] = { "rope_type", "type" };
    for (size_t i = 0; i < 2; i++) {
        const char *kind = "default";
        TRY(doc_opt_string(&rope, names[i], &kind, e));
        if (strcmp(kind, "default") != 0 && strcmp(kind, "mrope") != 0)
            return doc_err(&rope, e, "%s is \"%.60s\", this engine supports \"default\" and \"mrope\"",
                           names[i], kind);
    }
    const struct doc_at *has_theta = doc_has(&rope, "rope_theta") ? &rope : text;
    TRY(doc_double(has_theta, "rope_theta", 1.0, 1e12, &c->rope_theta, e));
    TRY(doc_ints(&rope, "mrope_section", 3, 0, WIDTH_MAX, section, e));
    if (section[0] + section[1] + section[2] != c->head_dim / 2)
        return doc_err(&rope, e, "mrope_section [%lld, %lld, %lld] does not sum to half the head dim %u",
                       (long long)section[0], (long long)section[1], (long long)section[2], c->head_dim);
    for (int i = 0; i < 3; i++) c->mrope_section[i] = (uint32_t)section[i];
    return OK;
}

static status parse_text(const struct doc_at *o, struct text_config *c, struct err *e)
{
    double eps;
    TRY(doc_u32(o, "hidden_size", 1, WIDTH_MAX, &c->hidden, e));
    TRY(doc_u32(o, "intermediate_size", 1, WIDTH_MAX, &c->ff, e));
    TRY(doc_u32(o, "num_hidden_layers", 1, 4096, &c->layers, e));
    TRY(doc_u32(o, "num_attention_heads", 1, 4096, &c->heads, e));
    TRY(doc_u32(o, "num_key_value_heads", 1, 4096, &c->kv_heads, e));
    TRY(must_divide(o, "num_attention_heads", c->heads, "num_key_value_heads", c->kv_heads, e));
    if (doc_has(o, "head_dim")) {
        TRY(doc_u32(o, "head_dim", 2, 4096, &c->head_dim, e));
    } else {
        TRY(must_divide(o, "hidden_size", c->hidden, "num_attention_heads", c->heads, e));
        c->head_dim = c->hidden / c->heads;
    }
    TRY(must_divide(o, "the head dim", c->head_dim, "two, as rotation needs:", 2, e));
    TRY(doc_u32(o, "vocab_size", 1, 1u << 24, &c->vocab, e));
    TRY(doc_u32(o, "max_position_embeddings", 1, 1u << 30, &c->max_positions, e));
    TRY(doc_double(o, "rms_norm_eps", 0.0, 1.0, &eps, e));
    c->rms_eps = (float)eps;
    TRY(must_be_text(o, "hidden_act", "silu", e));
    TRY(must_be_false(o, "use_sliding_window", e));
    if (doc_has(o, "layer_types")) {
        struct doc_at types, el;
        const char *s;
        TRY(doc_array(o, "layer_types", &types, e));
        for (size_t i = 0; i < doc_count(&types); i++) {
            doc_element(&types, i, &el);
            TRY(doc_as_string(&el, &s, NULL, e));
            if (strcmp(s, "full_attention") != 0)
                return doc_err(&el, e, "is \"%.60s\", this engine supports \"full_attention\" alone", s);
        }
    }
    return parse_rope(o, c, e);
}

static status parse_audio(const struct doc_at *o, uint32_t hidden, struct audio_config *c, struct err *e)
{
    TRY(doc_u32(o, "num_mel_bins", 1, 4096, &c->mel_bins, e));
    TRY(must_be(o, "num_mel_bins", c->mel_bins, 128, e));
    TRY(doc_u32(o, "d_model", 4, WIDTH_MAX, &c->d_model, e));
    TRY(doc_u32(o, "encoder_layers", 1, MODEL_BLOCKS_MAX, &c->layers, e));
    TRY(doc_u32(o, "encoder_attention_heads", 1, 4096, &c->heads, e));
    TRY(must_divide(o, "d_model", c->d_model, "encoder_attention_heads", c->heads, e));
    TRY(must_divide(o, "d_model", c->d_model, "two, as its positions need:", 2, e));
    TRY(doc_u32(o, "encoder_ffn_dim", 1, WIDTH_MAX, &c->ff, e));
    TRY(must_be_text(o, "activation_function", "gelu", e));
    TRY(must_be_false(o, "scale_embedding", e));
    TRY(doc_u32(o, "max_source_positions", 1, 1u << 24, &c->max_source_positions, e));
    TRY(doc_u32(o, "n_window", 1, 1u << 20, &c->n_window, e));
    if (c->n_window > c->max_source_positions)
        return doc_err(o, e, "n_window %u makes chunks of more positions than max_source_positions %u",
                       c->n_window, c->max_source_positions);
    TRY(doc_u32(o, "output_dim", 1, WIDTH_MAX, &c->output_dim, e));
    if (c->output_dim != hidden)
        return doc_err(o, e, "output_dim %u is not text_config.hidden_size %u", c->output_dim, hidden);
    return OK;
}

static status parse_vision(const struct doc_at *o, uint32_t hidden, struct vision_config *c, struct err *e)
{
    struct doc_at full, el;
    int64_t block;
    TRY(doc_u32(o, "depth", 1, MODEL_BLOCKS_MAX, &c->depth, e));
    TRY(u32_of_two(o, "hidden_size", "embed_dim", 1, WIDTH_MAX, &c->hidden, e));
    TRY(doc_u32(o, "num_heads", 1, 4096, &c->heads, e));
    TRY(must_divide(o, "hidden_size", c->hidden, "num_heads", c->heads, e));
    TRY(must_divide(o, "the head dim", c->hidden / c->heads, "four, as rotation in two dimensions needs:", 4,
                    e));
    TRY(doc_u32(o, "intermediate_size", 1, WIDTH_MAX, &c->ff, e));
    TRY(must_be_text(o, "hidden_act", "silu", e));
    TRY(u32_of_two(o, "in_channels", "in_chans", 1, 64, &c->in_channels, e));
    TRY(must_be(o, "in_channels", c->in_channels, 3, e));
    TRY(u32_of_two(o, "patch_size", "spatial_patch_size", 1, 4096, &c->patch_size, e));
    TRY(must_be(o, "patch_size", c->patch_size, 14, e));
    TRY(doc_u32(o, "temporal_patch_size", 1, 64, &c->temporal_patch_size, e));
    TRY(must_be(o, "temporal_patch_size", c->temporal_patch_size, 2, e));
    TRY(doc_u32(o, "spatial_merge_size", 1, 64, &c->merge_size, e));
    TRY(must_be(o, "spatial_merge_size", c->merge_size, 2, e));
    TRY(doc_u32(o, "window_size", c->patch_size * c->merge_size, 1u << 24, &c->window_size, e));
    TRY(doc_array(o, "fullatt_block_indexes", &full, e));
    for (size_t i = 0; i < doc_count(&full); i++) {
        doc_element(&full, i, &el);
        TRY(doc_as_int(&el, 0, c->depth - 1, &block, e));
        c->full_attention[block] = true;
    }
    TRY(doc_u32(o, "out_hidden_size", 1, WIDTH_MAX, &c->out_hidden, e));
    if (c->out_hidden != hidden)
        return doc_err(o, e, "out_hidden_size %u is not text_config.hidden_size %u", c->out_hidden, hidden);
    return OK;
}

static status parse_id(const struct doc_at *o, const char *usual, const char *other, bool required,
                       uint32_t vocab, int32_t *out, struct err *e)
{
    int64_t id = -1;
    const char *key = either(o, usual, other);
    TRY(required ? doc_int(o, key, 0, vocab - 1, &id, e) : doc_opt_int(o, key, 0, vocab - 1, &id, e));
    *out = (int32_t)id;
    return OK;
}

static void add_stop(struct model_config *c, int64_t id)
{
    for (uint32_t i = 0; i < c->n_stop; i++)
        if (c->stop[i] == id) return;
    if (id >= 0 && c->n_stop < MODEL_STOP_MAX) c->stop[c->n_stop++] = (int32_t)id;
}

static status parse_ids(const struct doc_at *o, uint32_t vocab, struct model_ids *c, struct err *e)
{
    const struct {
        const char *usual, *other;
        bool required;
        int32_t *out;
    } ids[] = {
        { "audio_token_index", "audio_token_id", true, &c->audio },
        { "image_token_index", "image_token_id", true, &c->image },
        { "video_token_index", "video_token_id", true, &c->video },
        { "audio_start_token_id", "audio_bos_token_id", true, &c->audio_start },
        { "audio_end_token_id", "audio_eos_token_id", true, &c->audio_end },
        { "vision_start_token_id", "vision_bos_token_id", true, &c->vision_start },
        { "vision_end_token_id", "vision_eos_token_id", true, &c->vision_end },
        { "vision_token_id", "vision_pad_token_id", false, &c->vision_pad },
        { "pad_token_id", "pad_token_id", false, &c->pad },
        { "bos_token_id", "bos_token_id", false, &c->bos },
        { "eos_token_id", "eos_token_id", false, &c->eos },
    };
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        TRY(parse_id(o, ids[i].usual, ids[i].other, ids[i].required, vocab, ids[i].out, e));
    for (size_t i = 0; i < 7; i++)
        for (size_t j = 0; j < i; j++)
            if (*ids[i].out == *ids[j].out)
                return doc_err(o, e, "%s and %s are both %d", ids[j].usual, ids[i].usual, *ids[i].out);
    return OK;
}

/* The object that describes the thinker: the root itself or its member thinker_config. */
static status find_thinker(const struct doc_at *root, struct model_config *c, struct doc_at *out,
                           struct err *e)
{
    const char *type;
    TRY(doc_as_object(root, e));
    TRY(doc_string(root, "model_type", &type, e));
    c->thinker_only = strcmp(type, "qwen2_5_omni_thinker") == 0;
    if (!c->thinker_only && strcmp(type, "qwen2_5_omni") != 0)
        return doc_err(root, e,
                       "this is a model of type \"%.60s\": the engine runs qwen2_5_omni (and "
                       "qwen2_5_omni_thinker)",
                       type);
    if (c->thinker_only) {
        *out = *root;
        return OK;
    }
    TRY(doc_object(root, "thinker_config", out, e));
    TRY(must_be_text(out, "model_type", "qwen2_5_omni_thinker", e));
    return OK;
}

static status parse_root(const struct doc_at *root, struct model_config *c, struct err *e)
{
    struct doc_at thinker, text, audio, vision;
    const char *dtype = "";
    TRY(find_thinker(root, c, &thinker, e));
    const struct doc_at *const both[] = { root, &thinker };
    for (size_t i = 0; i < 2; i++) {
        if (doc_has(both[i], "quantization_config"))
            return doc_err(both[i], e,
                           "quantization_config: quantised weights are not supported: take the "
                           "original bf16, f16 or f32 checkpoint");
        TRY(doc_opt_string(both[i], either(both[i], "torch_dtype", "dtype"), &dtype, e));
    }
    snprintf(c->dtype, sizeof c->dtype, "%s", dtype);
    TRY(doc_object(&thinker, "text_config", &text, e));
    TRY(doc_object(&thinker, "audio_config", &audio, e));
    TRY(doc_object(&thinker, "vision_config", &vision, e));
    TRY(parse_text(&text, &c->text, e));
    TRY(parse_audio(&audio, c->text.hidden, &c->audio, e));
    TRY(parse_vision(&vision, c->text.hidden, &c->vision, e));
    TRY(parse_ids(&thinker, c->text.vocab, &c->ids, e));
    c->position_id_per_seconds = 25.0;
    c->seconds_per_chunk = 2.0;
    TRY(doc_double(&thinker, "position_id_per_seconds", 1.0, 10000.0, &c->position_id_per_seconds, e));
    TRY(doc_double(&thinker, "seconds_per_chunk", 0.01, 3600.0, &c->seconds_per_chunk, e));
    /* The thinker's own flag governs; the text model's speaks only where that is absent. */
    TRY(doc_opt_bool(&text, "tie_word_embeddings", &c->tie_word_embeddings, e));
    TRY(doc_opt_bool(&thinker, "tie_word_embeddings", &c->tie_word_embeddings, e));
    add_stop(c, c->ids.eos);
    add_stop(c, c->ids.pad);
    return OK;
}

status model_config_parse(const char *json, size_t n, struct model_config *out, struct err *e)
{
    struct doc d;
    struct doc_at root;
    struct model_config c = { 0 };
    TRY(doc_parse(json, n, "config.json", &doc_config_limits, &d, e));
    doc_root(&d, &root);
    const status st = parse_root(&root, &c, e);
    doc_close(&d);
    if (st == OK) *out = c;
    return st;
}

/* ---- the other files ---------------------------------------------------------------------------------- */

static void path_in(const char *dir, const char *name, char *out, size_t n)
{
    snprintf(out, n, "%s/%s", dir, name);
}

static bool there(const char *dir, const char *name)
{
    char path[4096];
    path_in(dir, name, path, sizeof path);
    return access(path, F_OK) == 0;
}

static status load_in(const char *dir, const char *name, struct doc *out, struct err *e)
{
    char path[4096];
    path_in(dir, name, path, sizeof path);
    return doc_load(path, &doc_config_limits, out, e);
}

/* min_pixels and max_pixels, or size.shortest_edge and size.longest_edge. *found: both ends are there. */
static status parse_pixels(const struct doc_at *o, struct pixel_limits *out, bool *found, struct err *e)
{
    struct doc_at size;
    int64_t lo = -1, hi = -1;
    if (doc_has(o, "size")) {
        TRY(doc_any(o, "size", &size, e));
        TRY(doc_as_object(&size, e));
        TRY(doc_opt_int(&size, "shortest_edge", 1, 1ll << 40, &lo, e));
        TRY(doc_opt_int(&size, "longest_edge", 1, 1ll << 40, &hi, e));
    }
    TRY(doc_opt_int(o, "min_pixels", 1, 1ll << 40, &lo, e));
    TRY(doc_opt_int(o, "max_pixels", 1, 1ll << 40, &hi, e));
    *found = lo >= 0 && hi >= 0;
    if (!*found) return OK;
    if (lo > hi)
        return doc_err(o, e, "min_pixels %lld is more than max_pixels %lld", (long long)lo, (long long)hi);
    *out = (struct pixel_limits){ (uint64_t)lo, (uint64_t)hi };
    return OK;
}

/* The image part: pixel limits and normalisation; patch sizes must be those of config.json. */
static status parse_image(const struct doc_at *o, const struct model_config *c, struct preprocess_config *p,
                          struct err *e)
{
    const struct {
        const char *key;
        uint32_t want;
    } same[] = {
        { "patch_size", c->vision.patch_size },
        { "temporal_patch_size", c->vision.temporal_patch_size },
        { "merge_size", c->vision.merge_size },
    };
    double mean[3], std[3];
    bool found;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        uint32_t v = same[i].want;
        TRY(doc_opt_u32(o, same[i].key, 1, 4096, &v, e));
        if (v != same[i].want)
            return doc_err(o, e, "%s is %u, vision_config of config.json says %u", same[i].key, v,
                           same[i].want);
    }
    TRY(parse_pixels(o, &p->image, &found, e));
    if (!found)
        return doc_err(o, e,
                       "min_pixels and max_pixels (or size.shortest_edge and longest_edge) are missing");
    TRY(doc_doubles(o, "image_mean", 3, -1000.0, 1000.0, mean, e));
    TRY(doc_doubles(o, "image_std", 3, 1e-6, 1000.0, std, e));
    for (int i = 0; i < 3; i++) {
        p->mean[i] = (float)mean[i];
        p->std[i] = (float)std[i];
    }
    return OK;
}

/* The sound part: the log-mel front end is written for these numbers. */
static status parse_sound(const struct doc_at *o, struct err *e)
{
    static const struct {
        const char *key;
        uint32_t only;
    } want[] = {
        { "feature_size", 128 },
        { "sampling_rate", 16000 },
        { "n_fft", 400 },
        { "hop_length", 160 },
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        uint32_t v = want[i].only;
        TRY(doc_opt_u32(o, want[i].key, 0, UINT32_MAX, &v, e));
        TRY(must_be(o, want[i].key, v, want[i].only, e));
    }
    return OK;
}

/* The member `key` where the file keeps its parts apart (processor_config.json), else the file itself. */
static status part_of(const struct doc_at *root, const char *key, struct doc_at *out, struct err *e)
{
    TRY(doc_as_object(root, e));
    *out = *root;
    return doc_has(root, key) ? doc_object(root, key, out, e) : OK;
}

static status load_preprocess(const char *dir, struct model_config *c, struct err *e)
{
    static const char *const names[] = { "preprocessor_config.json", "processor_config.json" };
    const bool flat = there(dir, names[0]);
    if (!flat && !there(dir, names[1]))
        return err_set(e, E_MODEL, "%s: neither %s nor %s is there: the checkpoint is not complete", dir,
                       names[0], names[1]);
    struct doc d;
    struct doc_at root, part;
    status st;
    TRY(load_in(dir, flat ? names[0] : names[1], &d, e));
    doc_root(&d, &root);
    TRY_GOTO(st, part_of(&root, "image_processor", &part, e), done);
    TRY_GOTO(st, parse_image(&part, c, &c->preprocess, e), done);
    TRY_GOTO(st, part_of(&root, "feature_extractor", &part, e), done);
    TRY_GOTO(st, parse_sound(&part, e), done);
    if (doc_has(&root, "video_processor")) {
        TRY_GOTO(st, doc_object(&root, "video_processor", &part, e), done);
        TRY_GOTO(st, parse_pixels(&part, &c->preprocess.video, &c->preprocess.has_video, e), done);
    }
done:
    doc_close(&d);
    return st;
}

static status load_video(const char *dir, struct model_config *c, struct err *e)
{
    struct doc d;
    struct doc_at root;
    status st;
    if (!there(dir, "video_preprocessor_config.json")) return OK;
    TRY(load_in(dir, "video_preprocessor_config.json", &d, e));
    doc_root(&d, &root);
    TRY_GOTO(st, doc_as_object(&root, e), done);
    TRY_GOTO(st, parse_pixels(&root, &c->preprocess.video, &c->preprocess.has_video, e), done);
done:
    doc_close(&d);
    return st;
}

/* eos_token_id, a number or a list: all of it stops. */
static status load_generation(const char *dir, struct model_config *c, struct err *e)
{
    struct doc d;
    struct doc_at root, eos, el;
    int64_t id;
    status st;
    if (!there(dir, "generation_config.json")) return OK;
    TRY(load_in(dir, "generation_config.json", &d, e));
    doc_root(&d, &root);
    TRY_GOTO(st, doc_as_object(&root, e), done);
    if (!doc_has(&root, "eos_token_id")) goto done;
    TRY_GOTO(st, doc_any(&root, "eos_token_id", &eos, e), done);
    if (!json_is_array(eos.v)) {
        TRY_GOTO(st, doc_as_int(&eos, 0, c->text.vocab - 1, &id, e), done);
        add_stop(c, id);
        goto done;
    }
    if (doc_count(&eos) > MODEL_STOP_MAX - 2) {
        st = doc_err(&eos, e, "has %zu ids, at most %d are supported", doc_count(&eos), MODEL_STOP_MAX - 2);
        goto done;
    }
    for (size_t i = 0; i < doc_count(&eos); i++) {
        doc_element(&eos, i, &el);
        TRY_GOTO(st, doc_as_int(&el, 0, c->text.vocab - 1, &id, e), done);
        add_stop(c, id);
    }
done:
    doc_close(&d);
    return st;
}

static status load_config(const char *dir, struct model_config *c, struct err *e)
{
    struct doc d;
    struct doc_at root;
    TRY(load_in(dir, "config.json", &d, e));
    doc_root(&d, &root);
    const status st = parse_root(&root, c, e);
    doc_close(&d);
    return st;
}

status model_config_load(const char *dir, struct model_config *out, struct err *e)
{
    struct stat sb;
    struct model_config c = { 0 };
    if (strlen(dir) > 3900)
        return err_set(e, E_MODEL, "the path of the model is longer than 3900 characters");
    if (stat(dir, &sb) != 0)
        return err_set(e, E_MODEL, "%s: no such folder: give the folder of a Qwen2.5-Omni checkpoint", dir);
    if (!S_ISDIR(sb.st_mode))
        return err_set(e, E_MODEL, "%s: is a file: give the folder that holds config.json", dir);
    if (!there(dir, "config.json"))
        return err_set(e, E_MODEL, "%s: not a checkpoint: it holds no config.json", dir);
    TRY(load_config(dir, &c, e));
    TRY(load_preprocess(dir, &c, e));
    TRY(load_video(dir, &c, e));
    TRY(load_generation(dir, &c, e));
    if (c.n_stop == 0)
        return err_set(e, E_MODEL, "%s: neither config.json nor generation_config.json has an eos_token_id",
                       dir);
    *out = c;
    return OK;
}
