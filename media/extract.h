/* media/extract.h - everything that the towers need of one media part, worked out in one call: in this process or in a
 * confined child. What strangers send is only ever decoded through the child.
 *
 *   source    a file that nobody else names: an open descriptor, its size and the SHA-256 of its bytes
 *   probe     what is in it, and whether it is a picture, a sound or a film
 *   extract   mel of the sound, patches of the picture or film, with the plan that they follow
 *
 * The child (the program itself, started anew as `omnidrop --media-child`) holds no descriptor but the source, the
 * result file and a control pipe; it has limits on CPU time, memory, file size and open files, cannot open files or
 * sockets (seccomp) and is killed when its wall-clock time is over, when *stop becomes true or when its parent dies.
 * The results come back in an unnamed temporary file that the caller maps, so their size is bounded by the child's
 * file size limit and the caller's heap does not grow with the media. */
#ifndef MEDIA_EXTRACT_H
#define MEDIA_EXTRACT_H

#include <stdatomic.h>

#include "media/digest.h"
#include "media/media.h"

struct media_source {
    int fd;                        /* owned, read-only, seekable; -1: none                                       */
    uint64_t bytes;
    char digest[MEDIA_DIGEST_TEXT];
    char name[128];                /* what messages call it: a file's name or "messages[0].content[1]"; no paths  */
};
void media_source_close(struct media_source *s);

/* A source of bytes in memory: written to an unnamed file in `dir` (the spool). E_IO with tag "spool_full": no room. */
status media_source_of_bytes(const void *bytes, size_t n, const char *name, const char *dir, struct media_source *out,
                             struct err *e);
/* A source of an open file; takes fd, also on failure. Computes the digest where `digest` is NULL. E_INPUT: not a
 * regular file. */
status media_source_of_fd(int fd, const char *name, const char *digest, struct media_source *out, struct err *e);

enum media_kind { MEDIA_NONE, MEDIA_IMAGE, MEDIA_AUDIO, MEDIA_VIDEO };

struct extract_options {
    enum media_kind kind;
    int sound;                     /* films: 1 their sound too (E_INPUT where there is none), 0 no, -1 if they can */
    double start_s, end_s;         /* of sound and film; <= 0: from the start, to the end. They replace video.start_s */
    struct media_image_options image;
    struct media_video_options video;
    uint64_t max_tokens;           /* refuse, from the counts and before decoding, what becomes more; 0: no limit  */
    double list_fps;               /* above 0: the sources, be it one, are the frames of one film at this rate, each
                                      loaded as a picture within `image.limits`. Several sources: 0 means 2.0      */
};

struct extract_limits {
    const char *dir;               /* where the result file lives (the spool); NULL: /tmp                          */
    double wall_s;                 /* 0: 2 x the media's length + 60 s                                             */
    uint64_t memory_bytes;         /* address space of the child, beside the program itself; 0: 2 GiB              */
    uint64_t max_pixels;           /* of one picture or frame; 0: 64 Mpx pictures, 8192 x 8192 frames              */
    double max_duration_s;         /* 0: 24 h                                                                      */
    const atomic_bool *stop;       /* may be NULL                                                                  */
};

struct extract {
    struct media_info info;        /* of the (first) source                                                        */
    enum media_kind kind;
    bool has_sound;                /* mel is there                                                                 */
    uint32_t n_frames;             /* mel frames                                                                   */
    uint32_t n_audio;              /* audio tokens                                                                 */
    const float *mel;              /* [128, n_frames]                                                              */
    uint32_t t, h, w;              /* patch grid                                                                   */
    const float *patches;          /* [t*h*w, 1176]                                                                */
    double second_per_grid;
    struct media_video_plan plan;  /* films                                                                        */
    char *warning;                 /* owned; what is missing, or NULL                                              */
    void *map;                     /* owned: the mapping that mel and patches point into                           */
    size_t map_bytes;
    double decode_s;               /* seconds of the child                                                         */
};
void extract_free(struct extract *x);

/* What the source holds, through the child. Errors as media_open, with tags: unsupported_media, media_decode_failed,
 * media_too_large, media_too_long. */
status extract_probe(const struct media_source *s, const struct extract_limits *l, struct media_info *out,
                     struct err *e);

/* Can a child be started and confined here? To be asked once, at the start, so that the operator learns it and not the
 * first client. E_INTERNAL and E_IO say what is in the way. */
status extract_check(const struct extract_limits *l, struct err *e);

/* n_sources is 1, or the frames of a film. *out is owned: extract_free. The bits are those of media_audio_load +
 * media_mel, media_image_load and media_video_load. E_INPUT with a tag as above (also when the child crashed or passed
 * a limit: the input is to blame), E_ARG with tag context_length_exceeded and both counts for max_tokens, E_CANCELLED,
 * E_IO with tag spool_full. */
status extract_run(const struct media_source *s, uint32_t n_sources, const struct extract_options *o,
                   const struct extract_limits *l, struct extract *out, struct err *e);

/* The program that is started as the child in place of this one (a path, borrowed for good); for programs whose main()
 * does not call extract_child_main. Before the first call of the above. */
void extract_set_program(const char *path);

/* The child's main, called by main() before anything else where argv[1] is "--media-child". Returns the exit status. */
int extract_child_main(int argc, char **argv);

#endif
