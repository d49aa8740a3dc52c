/* model/towers.h - the audio and vision encoders: features in, rows of the decoder's width out. Sources:
 * Qwen2_5OmniAudioEncoder and Qwen2_5OmniVisionEncoder of transformers 5.23 (docs/qwen2_5_omni.md 3.5,
 * 4.6-4.8). Each chunk of sound and each grid step stands alone: its rows do not depend on what runs with
 * it. */
#ifndef MODEL_TOWERS_H
#define MODEL_TOWERS_H

#include "kernels/ops.h"
#include "model/config.h"
#include "model/checkpoint.h"

struct audio_tower;
struct vision_tower;

/* Pack the tower's weights onto the stream, which must outlive the tower; the checkpoint may be closed after
 * it. compute: DT_F32 or DT_BF16. Scratch grows with the largest batch so far and goes with the tower;
 * on a device whose memory is planned (ops->reserve) there is room for whole batches from the start, and larger grid steps ask
 * for more while they run (vision_tower_more).
 * E_MODEL: sizes that no tower has. */
status audio_tower_create(struct stream *st, const struct checkpoint *ck, enum dtype compute,
                          struct audio_tower **out, struct err *e);
void audio_tower_destroy(struct audio_tower **t);
status vision_tower_create(struct stream *st, const struct checkpoint *ck, enum dtype compute,
                           struct vision_tower **out, struct err *e);
void vision_tower_destroy(struct vision_tower **t);

/* Audio tokens of L mel frames: (L + 1) / 4. */
uint32_t audio_tower_tokens(uint32_t n_frames);

/* mel [n_mel, L] f32 host, one clip -> embeds [tokens(L), H] device memory, borrowed, and saliency
 * [tokens(L)] host or NULL: windowed attention received in the last layer (docs/omnidrop.md 2), a short last
 * window scaled by its rows / n_window, mean over the two pooled rows. Runs in batches of 16 chunks: memory
 * does not grow with L. */
status audio_tower_run(struct audio_tower *t, const float *mel, uint32_t n_frames, float *embeds,
                       float *saliency, struct err *e);

/* The same in pieces: frames [f0, f0 + n) of the clip, f0 a multiple of audio_tower_span, n at most that and less only
 * at the clip's end. embeds and saliency are those of the whole clip; this piece's rows are written. */
uint32_t audio_tower_span(const struct audio_tower *t);
uint32_t audio_tower_bins(const struct audio_tower *t);        /* n_mel */
status audio_tower_part(struct audio_tower *t, const float *mel, uint32_t n_frames, uint32_t f0, uint32_t n, float *embeds,
                        float *saliency, struct err *e);

/* Rows of the clip before they are pooled: (n_frames + 1) / 2 but for chunks cut at odd ends; floats of each in a look. */
uint32_t audio_tower_rows(const struct audio_tower *t, uint32_t n_frames);
uint32_t audio_tower_look(const struct audio_tower *t);
/* audio_tower_part, and q, k and v of the last layer into this piece's rows of look [rows(n_frames), look] (device). */
status audio_tower_part_look(struct audio_tower *t, const float *mel, uint32_t n_frames, uint32_t f0, uint32_t n, float *embeds,
                             float *look, struct err *e);
/* saliency [tokens(n_frames)] host: attention received with all rows of the clip in one softmax, from the look at all of its
 * pieces (docs/pruning-methods.md 0.3, `global`). Quadratic in the clip's length. */
status audio_tower_global(struct audio_tower *t, const float *look, uint32_t n_frames, float *saliency, struct err *e);

/* patches [t*h*w, 1176] f32 host -> embeds [t*h*w/4, H] device memory, natural order. Call as often as
 * needed with a few grid steps each. saliency [t*h*w/4] host or NULL: attention received in the last full
 * block (the last block where none is full), mean over heads, rows and the 4 patches of a merge unit. E_ARG:
 * an odd side, or 0. */
status vision_tower_run(struct vision_tower *t, const float *patches, uint32_t t_steps, uint32_t h,
                        uint32_t w, float *embeds, float *saliency, struct err *e);

/* More of what the tower sees; any may be NULL. */
struct vision_look {
    float *saliency;               /* [t*h*w/4] host, as above                                                  */
    float *blocks;                 /* [vision_tower_blocks, stride] host: the same of every full block, ascending */
    size_t stride;
    float *keys;                   /* [t*h*w/4, hidden] device: keys of the last full block before their rotation,
                                      mean of the 4 patches                                                     */
};
uint32_t vision_tower_blocks(const struct vision_tower *t);    /* with attention over the whole step; 1 where none has it */
uint32_t vision_tower_hidden(const struct vision_tower *t);
status vision_tower_look(struct vision_tower *t, const float *patches, uint32_t t_steps, uint32_t h, uint32_t w, float *embeds,
                         const struct vision_look *look, struct err *e);

/* Bytes that the calls above allocate meanwhile, where memory is planned: for grid steps of h x w patches; for audio_tower_global,
 * beside the look. */
size_t vision_tower_more(const struct vision_tower *t, uint32_t h, uint32_t w);
size_t audio_tower_more(const struct audio_tower *t, uint32_t n_frames);
/* The most values that attention gives at once, in steps of at most so many patches. */
size_t vision_tower_attended(const struct vision_tower *t, uint32_t patches);
size_t audio_tower_attended(const struct audio_tower *t);

/* Floats of a patch: 1176. */
uint32_t vision_tower_patch(const struct vision_tower *t);

#endif
