/* model/config.h - what a checkpoint of the Qwen2.5-Omni thinker says about itself, checked. Read from
 * config.json (full model or thinker alone), preprocessor_config.json or processor_config.json,
 * video_preprocessor_config.json and generation_config.json. A key that matters and is missing is an
 * error, never a class default. Keys of the talker and the vocoder are ignored. Plain data, no pointers:
 * copy it freely. Source: configuration_qwen2_5_omni.py of transformers 4.5x and 5.x; both spellings of
 * each key are read. */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MODEL_BLOCKS_MAX 256 /* vision blocks and audio layers */
#define MODEL_STOP_MAX   16

struct text_config {
    uint32_t hidden, layers, heads, kv_heads, head_dim, ff, vocab;
    uint32_t max_positions; /* context length in tokens */
    float rms_eps;
    double rope_theta;
    uint32_t mrope_section[3]; /* of the head_dim / 2 frequencies: t, h, w, contiguous */
};

struct audio_config {
    uint32_t d_model, layers, heads, ff, mel_bins;
    uint32_t n_window; /* a chunk is 2 * n_window mel frames */
    uint32_t max_source_positions;
    uint32_t output_dim; /* == text.hidden */
};

struct vision_config {
    uint32_t depth, hidden, heads, ff;
    uint32_t in_channels, patch_size, temporal_patch_size, merge_size; /* 3, 14, 2, 2 */
    uint32_t window_size;                  /* pixels; window_size / merge_size / patch_size groups a side */
    bool full_attention[MODEL_BLOCKS_MAX]; /* [depth] else windowed */
    uint32_t out_hidden;                   /* == text.hidden */
};

struct model_ids {               /* -1: the config has none */
    int32_t audio, image, video; /* placeholders */
    int32_t audio_start, audio_end, vision_start, vision_end;
    int32_t vision_pad, pad, bos, eos;
};

struct pixel_limits {
    uint64_t min, max;
};

struct preprocess_config {
    struct pixel_limits image; /* loader and processor alike */
    bool has_video;            /* the checkpoint brings limits of its own for video frames, */
    struct pixel_limits video; /* valid where has_video: they replace loader's and processor's */
    float mean[3], std[3];     /* RGB, of values in 0..1 */
};

struct model_config {
    bool thinker_only; /* config.json is the thinker's own */
    struct text_config text;
    struct audio_config audio;
    struct vision_config vision;
    struct model_ids ids;
    double position_id_per_seconds; /* 25 */
    double seconds_per_chunk;       /* 2  */
    bool tie_word_embeddings;
    struct preprocess_config preprocess;
    uint32_t n_stop;
    int32_t stop[MODEL_STOP_MAX]; /* each ends an answer: eos, pad (<|endoftext|>), generation_config's */
    char dtype[16];               /* "bfloat16" as the config says, "" if it does not; informative */
};

/* Read all files of a checkpoint folder. E_MODEL: no such folder, no config.json, another model (named), a
 * value out of range; file and key are named. */
status model_config_load(const char *dir, struct model_config *out, struct err *e);

/* config.json alone, from memory: everything but preprocess and generation_config's stop ids. */
status model_config_parse(const char *json, size_t n, struct model_config *out, struct err *e);

#endif
