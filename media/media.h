/* media/media.h - files with sound, pictures and films, through FFmpeg's libraries.
 *
 *   media_open -> media_info                                   what is in it
 *     media_audio_open, _read ..., _close                      16 kHz mono samples, as a stream
 *     media_audio_load                                         the whole track at once
 *     media_image_load                                         patches of a still picture
 *     media_video_open, _next ..., _close                      patches of a film, slice by slice
 *   media_close
 * Readers read the file on their own, so sound and film of one file can be read side by side; they must be
 * closed before the file. Memory does not grow with the length of the file. One thread at a time per file and
 * its readers.
 *
 * Invariants
 *   I1  no other file is ever opened and no network is touched, whatever the container asks for
 *   I2  what does not decode at all is E_INPUT; what decodes in part is given, and media_warning() says what
 *       is missing
 *   I3  a picture above MEDIA_MAX_PIXELS is refused before it is decoded */
#ifndef MEDIA_MEDIA_H
#define MEDIA_MEDIA_H

#include "media/features.h"

#define MEDIA_MAX_PIXELS 178956970u   /* of one picture or frame; Pillow's own bound */

struct media;

struct media_audio_info {
    char codec[32];
    uint32_t rate, channels;
    double start_s, duration_s;           /* start: since the start of the file; -1: unknown */
};

struct media_video_info {
    char codec[32], pixel_format[32];
    uint32_t width, height;               /* as shown: after rotation */
    int rotation;                         /* 0, 90, 180, 270: degrees clockwise that the film asks for
                                             and gets (the reference's readers ignore it). Pictures:
                                             0, EXIF orientation is not applied, as in the reference */
    bool mirrored;                        /* the film also wants left and right changed, after the turn */
    double fps;                           /* average rate; 0: unknown */
    uint64_t n_frames;                    /* as the container says; 0: unknown */
    double start_s, duration_s;           /* as above */
};

struct media_info {
    char container[64];
    double duration_s;                    /* -1: unknown */
    bool has_audio, has_video;
    bool is_image;                        /* one still picture; has_video is false then */
    struct media_audio_info audio;
    struct media_video_info video;        /* also of the picture */
};

/* Open a file, or n bytes of memory, or an open file of so many bytes that is read with pread alone (both borrowed
 * until media_close; `name` is for messages). *out is owned.
 * E_INPUT: not there, not a regular file, not a media file, a playlist (it names other files), neither sound
 * nor pictures inside, a picture above MEDIA_MAX_PIXELS. Tags: unsupported_media, media_too_large; an error without
 * one says that the file is damaged. */
status media_open(const char *path, struct media **out, struct err *e);
status media_open_memory(const void *bytes, size_t n, const char *name, struct media **out, struct err *e);
status media_open_fd(int fd, uint64_t bytes, const char *name, struct media **out, struct err *e);
void media_close(struct media **m);

const struct media_info *media_info(const struct media *m);

/* What went wrong without stopping the work ("truncated after 3.2 s: ..."), or NULL. Valid until the next
 * call. */
const char *media_warning(const struct media *m);

/* ---- sound --------------------------------------------------------------------------------------------- */

struct media_audio;

struct media_audio_options {
    double start_s, end_s;                /* what to read; end_s <= 0: to the end */
    bool keep_time;                       /* true: seconds are the file's own clock (a late start and gaps
                                             become silence); false: the samples, one after the other */
};

/* 16 kHz mono: samples as f32, channels averaged, then libswresample's default where the rate differs.
 * Reading starts at the first sample of the file whatever start_s is, so that a part is bit-equal to the same
 * part of the whole. E_INPUT: no sound in the file, a codec that is not there. E_ARG: end before start. */
status media_audio_open(struct media *m, const struct media_audio_options *o, struct media_audio **out,
                        struct err *e);
/* Up to cap samples into buf; *n == 0 is the end. E_INPUT: nothing at all could be decoded, or start_s is
 * behind the end (the text has its length). */
status media_audio_read(struct media_audio *a, float *buf, size_t cap, size_t *n, struct err *e);
void media_audio_close(struct media_audio **a);

/* All of it: *samples (owned by the caller, free()) and *n >= 1. E_INPUT: as above, or no samples. E_FULL:
 * more than max_samples (0: no limit); nothing is cut silently. */
status media_audio_load(struct media *m, const struct media_audio_options *o, size_t max_samples,
                        float **samples, size_t *n, struct err *e);

/* ---- pictures and films -------------------------------------------------------------------------------- */

/* Patches of one picture. */
struct media_patches {
    float *patches;                       /* owned: [grid_t * grid_h * grid_w, 3 * temporal * patch^2] */
    uint32_t grid_t, grid_h, grid_w;
    uint32_t row;                         /* floats a row: 1176 */
};
void media_patches_free(struct media_patches *p);

/* The picture as RGB8 [h, w, 3], owned by the caller (free()), before any resizing: alpha on white, other
 * modes as Pillow's convert("RGB"). Of a film (GIF too) the first frame. */
status media_image_rgb(struct media *m, uint8_t **rgb, uint32_t *h, uint32_t *w, struct err *e);

/* o may be NULL. E_INPUT: no picture, damaged, aspect ratio above 200. */
status media_image_load(struct media *m, const struct media_image_options *o, struct media_patches *out,
                        struct err *e);

struct media_video;

/* Plan a film: counts its frames (reads through the packets, decodes only where packets do not tell). o may
 * be NULL.
 * E_INPUT: no film, fewer than 2 frames, nothing decodes. */
status media_video_open(struct media *m, const struct media_video_options *o, struct media_video **out,
                        struct err *e);
const struct media_video_plan *media_video_get_plan(const struct media_video *v);
/* The next slice: patches [grid_h * grid_w, 3 * temporal * patch^2]. Call it grid_t times.
 * E_INPUT: the film breaks before its last sampled frame; the true count is remembered, so opening it once
 * more gives a plan that holds. */
status media_video_next(struct media_video *v, float *patches, struct err *e);
void media_video_close(struct media_video **v);

/* The whole film at once; opens again by itself where the count was wrong. *plan may be NULL. */
status media_video_load(struct media *m, const struct media_video_options *o, struct media_patches *out,
                        struct media_video_plan *plan, struct err *e);

/* ---- counting ------------------------------------------------------------------------------------------ */

struct media_counts {
    uint64_t n_samples, n_mel_frames, n_audio_tokens;   /* 0 without sound */
    bool samples_exact;                                 /* false: from the container's duration */
    uint32_t height, width, grid_t, grid_h, grid_w;     /* of the picture or film; 0 without */
    uint64_t n_vision_tokens;
    struct media_video_plan plan;                       /* films */
};

/* Tokens that the file becomes. decode: decode the sound for the exact count. Options may be NULL. */
status media_tokens(struct media *m, const struct media_image_options *io,
                    const struct media_video_options *vo, bool decode, struct media_counts *out,
                    struct err *e);

#endif
