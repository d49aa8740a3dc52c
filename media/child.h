/* media/child.h - inside header: what the parent's and the child's side of media/extract.h say to each other.
 *
 *   parent                                     child
 *   job, names, descriptors        ->          confines itself, opens the source
 *                                  <-          INFO     what it holds                       (the clock is set by it)
 *                                  <-          PLAN     how large the results will be       (extract)
 *   GO: the file has that size     ->          decodes, writes
 *                                  <-          WARNING, FAIL or DONE
 * Both are the same program, so messages are structs. What the child says is believed no further than it can be
 * checked: it may be in the hands of whoever made the file. */
#ifndef MEDIA_CHILD_H
#define MEDIA_CHILD_H

#include <sys/types.h>

#include "media/extract.h"

enum child_work { CHILD_PROBE, CHILD_EXTRACT, CHILD_SOUND };

struct child_job {
    enum child_work work;
    uint32_t n_sources;
    uint64_t memory_bytes, max_pixels, cpu_s;
    double max_duration_s;
    struct extract_options options;
    bool keep_time;                /* CHILD_SOUND */
    pid_t parent;                  /* 0: the child may outlive the thread that started it */
};

/* Follow the job, one after the other. Descriptors: the sources', then the result's or the samples'. */
struct child_source {
    uint64_t bytes;
    char name[128];
};

enum child_word { CHILD_INFO = 1, CHILD_PLAN, CHILD_GO, CHILD_WARNING, CHILD_FAIL, CHILD_DONE };

struct child_head { uint32_t word, bytes; };

struct child_plan {
    uint32_t kind, n_frames, n_audio, t, h, w, row;   /* mel [128, n_frames], then patches [t*h*w, row] */
    double second_per_grid;
    struct media_video_plan film;
};

struct child_fail {
    uint32_t code, tag;            /* tag: a place in CHILD_TAGS */
    char text[1024];
};

extern const char *const CHILD_TAGS[];
extern const uint32_t CHILD_N_TAGS;

/* Bytes of the result file: mel, and patches from a multiple of 64 on. */
uint64_t child_mel_bytes(const struct child_plan *p);
uint64_t child_result_bytes(const struct child_plan *p);

/* E_ARG, tag context_length_exceeded, with both counts; most 0: no limit. */
status extract_tokens_check(const char *name, uint64_t seen, uint64_t heard, uint64_t most, struct err *e);

/* ---- parent --------------------------------------------------------------------------------------------- */

#define CHILD_MESSAGE_MAX 2048

struct child {
    pid_t pid;
    int fd;                        /* control */
    const char *name;              /* of the source; borrowed */
    const atomic_bool *stop;
    double started_s, limit_s;     /* clock_s() of the start; seconds that it may take */
    uint64_t memory_bytes;
    struct child_head head;        /* the message that came last */
    union {
        char bytes[CHILD_MESSAGE_MAX + 1];
        struct media_info info;
        struct child_plan plan;
        struct child_fail fail;
    } message;
};

/* Starts a child and gives it the job. `extra`: the result file or the pipe for samples; -1: none. */
status child_start(const struct child_job *job, const struct media_source *s, int extra, const struct extract_limits *l,
                   struct child *out, struct err *e);
/* The next message, in c->head and c->message. FAIL becomes the error itself; the end of the child without one, time
 * that is over and *stop become one as well. */
status child_hear(struct child *c, struct err *e);
status child_say(struct child *c, enum child_word word, struct err *e);
/* INFO: checks it, gives it out and sets the time limit by the length of the media. */
status child_info(struct child *c, const struct extract_limits *l, uint64_t bytes, struct media_info *out,
                  struct err *e);
/* A job with what the limits say, and a child at it that has told what the source holds. */
struct child_job extract_job(enum child_work work, uint32_t n_sources, const struct extract_limits *l);
status extract_start(const struct child_job *job, const struct media_source *s, int extra,
                     const struct extract_limits *l, struct child *out, struct media_info *info, struct err *e);
/* Kills it where it still runs, and buries it. */
void child_end(struct child *c);
/* What it means that nothing more comes: killed by whom and why. Ends the child. */
status child_lost(struct child *c, struct err *e);
/* E_CANCELLED, or that its time is over; OK: go on. `spent_s`: how long it has worked. */
status child_check(const struct child *c, double spent_s, struct err *e);

#endif
