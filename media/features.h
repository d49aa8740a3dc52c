/* media/features.h - samples and pixels to what the towers eat; pure arithmetic, no files, no codecs.
 *
 *   samples 16 kHz mono -> media_mel           -> log-mel [128, L], for the audio tower
 *   picture RGB8        -> media_resize_image  -> media_patches_write  \
 *   frames RGB8         -> media_resize_frame  -> media_patches_write  /-> patches [t*h*w, 1176], vision
 *
 * Every rule is the reference's (transformers' Qwen2.5-Omni processor behind qwen-omni-utils' loader). The
 * loader and the processor each choose a size; the second choice is nearly always the first one again, and
 * where it is not, a video frame is resized twice, as there. Results do not depend on the instruction set or
 * on threads. */
#ifndef MEDIA_FEATURES_H
#define MEDIA_FEATURES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MEDIA_RATE 16000           /* samples a second that the audio tower hears         */
#define MEDIA_MEL_BINS 128
#define MEDIA_HOP 160              /* samples from one mel frame to the next              */

/* ---- sound --------------------------------------------------------------------------------------------- */

/* Mel frames L of n samples: ceil(n / 160). */
size_t media_mel_frames(size_t n_samples);

/* Tokens of L mel frames: (L + 1) / 4, which is 0 for L of 1 or 2 (under 321 samples): pad or refuse such
 * clips. */
size_t media_audio_tokens(size_t n_frames);

/* Log-mel of one whole clip: x [n] samples at 16 kHz, mel [128, L] out, row-major (bin, frame).
 * 400-point Hann frames every 160 samples, centred, Slaney filters, log10, floor 8 below the loudest value of
 * the whole clip (frames just past L that still touch the signal count for that maximum), (v + 4) / 4.
 * Within 2e-4 of a computation in f64. n == 0: E_ARG. E_NOMEM. Work: 0.03 ms a second of sound. */
status media_mel(const float *x, size_t n, float *mel, struct err *e);

/* One filter of the bank, for tests: its first FFT bin and weights (at most 9 are not 0). Returns how
 * many. */
size_t media_mel_filter(uint32_t bin, uint32_t *first, float weight[16]);

/* ---- sizes --------------------------------------------------------------------------------------------- */

/* How the checkpoint cuts and scales pictures (preprocessor_config.json). */
struct media_vision {
    uint32_t patch, merge, temporal;      /* 14, 2, 2: pixels a patch side, patches a group side, frames */
    float mean[3], std[3];                /* per channel, of values in 0..1 */
};

/* Qwen2.5-Omni's published values. */
struct media_vision media_vision_default(void);

/* Pixels of one picture or frame. 0 in a field of a caller's struct: the default. */
struct media_limits {
    uint64_t min_pixels, max_pixels;
};

/* Height and width: multiples of `factor`, within the limits where that is possible, aspect ratio kept as
 * well as it goes. The loader never rounds a side to 0 on the way; the processor does (loader = false), and
 * the difference shows only for sides under factor/2. E_INPUT: a side of 0, an aspect ratio above 200. */
status media_smart_resize(uint32_t h, uint32_t w, uint32_t factor, struct media_limits lim, bool loader,
                          uint32_t *out_h, uint32_t *out_w, struct err *e);

/* Pictures. Defaults: 3136 and 12,845,056 pixels in loader and processor alike. */
struct media_image_options {
    struct media_vision vision;           /* all zero: media_vision_default() */
    struct media_limits limits;           /* loader and processor; 0: default */
};

/* Films. All zero: the defaults. */
struct media_video_options {
    struct media_vision vision;
    struct media_limits limits;           /* a frame; 0: 100,352 and 602,112. The loader also keeps to the
                                             budget of the whole film: see total_pixels */
    uint64_t cap_pixels;                  /* the loader's own cap of a frame; 0: 602,112. A checkpoint whose
                                             limits replace the published ones sets this to its max_pixels */
    uint64_t total_pixels;                /* of all sampled frames together; 0: 90,316,800 */
    double fps;                           /* frames a second to sample, also the processor's clock; 0: 2.0 */
    uint32_t n_frames;                    /* sample exactly so many (made even) in place of fps; 0: by fps */
    uint32_t min_frames, max_frames;      /* 0: 4 and 768 */
    int n_threads;                        /* CPUs for decoding; 0: all, at most 8 */
    double start_s, end_s;                /* the part to see, in seconds; 0: from the start, to the end. It is the
                                             frames ceil(start * rate) to floor(end * rate) by the average rate,
                                             and is sampled as a film of them alone (qwen-vl-utils' video_start and
                                             video_end) */
};

/* What is sampled of a film and how large it becomes. */
struct media_video_plan {
    uint64_t total_frames;                /* that the film decodes to */
    uint64_t first_frame, n_frames;       /* the part to see: 0 and total_frames where all of it is */
    double frame_rate;                    /* frames a second: the stream's average */
    uint32_t n_sampled;                   /* even, >= 2 */
    double sample_fps;                    /* n_sampled / n_frames * frame_rate */
    uint32_t load_h, load_w;              /* pixels after the loader */
    uint32_t height, width;               /* pixels after the processor */
    uint32_t grid_t, grid_h, grid_w;      /* slices, patches down, patches across */
    double second_per_grid;               /* temporal / fps: the processor's clock, not the achieved rate */
    uint64_t n_tokens;                    /* grid_t * grid_h * grid_w / merge^2 */
};

/* The plan of a film of total_frames at frame_rate, w x h pixels. E_INPUT: fewer than 2 frames, an unknown
 * rate, a side of 0, an aspect ratio above 200. E_ARG: options that cannot be (min above max, fps not above
 * 0, an end before the start, a part of fewer than 2 frames or behind the film's end). */
status media_video_plan(uint64_t total_frames, double frame_rate, uint32_t h, uint32_t w,
                        const struct media_video_options *o, struct media_video_plan *out, struct err *e);

/* Which frame of the film is sample i of the plan: first + the exact i * (n_frames - 1) / (n - 1), rounded half to
 * even. */
uint64_t media_frame_index(const struct media_video_plan *p, uint32_t i);

/* How large a picture becomes. */
struct media_image_plan {
    uint32_t load_h, load_w;              /* pixels after the loader */
    uint32_t height, width;               /* pixels after the processor: nearly always the same */
    uint32_t grid_h, grid_w;              /* patches */
    uint64_t n_tokens;
};

/* The plan of a picture of h x w pixels; o may be NULL. E_INPUT, E_ARG as above. */
status media_image_plan(uint32_t h, uint32_t w, const struct media_image_options *o,
                        struct media_image_plan *out, struct err *e);

/* ---- pixels -------------------------------------------------------------------------------------------- */

/* Pictures: Pillow's bicubic with antialias, bit-equal: fixed-point weights, 8-bit picture between the two
 * passes. src [h, w, 3] RGB8, dst [oh, ow, 3] RGB8. Equal sizes copy. E_NOMEM. */
status media_resize_image(const uint8_t *src, uint32_t h, uint32_t w, uint8_t *dst, uint32_t oh, uint32_t ow,
                          struct err *e);

/* Frames: torch's bicubic with antialias in f32. A resizer serves all frames of one pair of sizes; *out is
 * owned. */
struct media_resizer;
status media_resizer_create(uint32_t h, uint32_t w, uint32_t oh, uint32_t ow, struct media_resizer **out,
                            struct err *e);
void media_resizer_destroy(struct media_resizer **r);
/* src [h, w, 3] RGB8 -> dst [oh, ow, 4] f32, whole values 0..255 (clamped, rounded half to even), last of 4
 * unused. Equal sizes widen only. */
void media_resize_frame(struct media_resizer *r, const uint8_t *src, float *dst);
/* src [h, w, 4] f32 -> dst [oh, ow, 4] f32, neither clamped nor rounded: the processor's own resize of
 * frames. */
void media_resize_again(struct media_resizer *r, const float *src, float *dst);

/* RGB8 [n, 3] -> f32 [n, 4], for pictures on their way to patches. */
void media_widen(const uint8_t *rgb, size_t n, float *out);

/* One temporal slice into rows of patches. frame: [temporal] pointers to [height, width, 4] f32 of 0..255
 * values; out [grid_h * grid_w, 3 * temporal * patch * patch]: rows by merge groups (block row, block column,
 * row in block, column in block), columns channel, frame, y, x; values (v / 255 - mean) / std. */
void media_patches_write(const struct media_vision *v, const float *const *frame, uint32_t height,
                         uint32_t width, float *out);

#endif
