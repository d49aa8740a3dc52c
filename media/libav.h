/* media/libav.h - inside header: what the files that use FFmpeg's libraries share; nobody outside media/
 * includes it. A `struct media` holds the bytes and what is known of them; a `struct demux` is one reader's
 * own view. */
#ifndef MEDIA_LIBAV_H
#define MEDIA_LIBAV_H

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>

#include "media/media.h"

struct media {
    int fd;                               /* -1: memory */
    bool fd_borrowed;                     /* not closed with the file */
    const uint8_t *bytes;                 /* borrowed; NULL: file */
    int64_t size;
    char *name;                           /* owned; for messages */
    struct media_info info;
    int audio_stream, video_stream;       /* index in the container; -1: none. The picture's too */
    uint64_t n_frames_true;               /* decoded once: how many frames there really are; 0: not known */
    char warning[1024];                   /* empty: none */
};

/* One open container. */
struct demux {
    struct media *m;
    int64_t pos;                          /* of the byte reader */
    AVIOContext *io;
    AVFormatContext *fc;
};

/* Open the container at its start, streams found, everything but `stream` discarded (-1: nothing).
 * E_INPUT. */
status demux_open(struct media *m, int stream, struct demux *d, struct err *e);
void demux_close(struct demux *d);

/* The next packet of `stream`; *end at the end of what can be read (damage is noted as a warning).
 * E_INPUT: encrypted. */
status demux_read(struct demux *d, int stream, AVPacket *pkt, bool *end, struct err *e);

/* A decoder for `stream`, opened. idct: AVCodecContext.idct_algo. *out: avcodec_free_context(). */
status decoder_open(const struct demux *d, int stream, int n_threads, int idct, AVCodecContext **out,
                    struct err *e);

/* E_INPUT with FFmpeg's reason: its last log line if there is one, else the text of code `rc`. */
status libav_fail(struct err *e, const struct media *m, const char *what, int rc);

/* Note what is missing; the first note stays. */
void media_warn(struct media *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* RGB8 [h, w, 3] of a decoded frame by libswscale's default, the frame's own matrix and range. */
struct to_rgb {
    struct SwsContext *sws;
    int w, h, format, space, range;
    uint8_t *padded;                      /* rows with room to spare */
    size_t padded_cap;
};
status to_rgb_run(struct to_rgb *c, const struct media *m, const AVFrame *f, uint8_t *rgb, struct err *e);
void to_rgb_free(struct to_rgb *c);

#endif
