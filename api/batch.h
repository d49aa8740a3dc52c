/* api/batch.h - many requests from a file of JSON lines, run longest first, each answered once: the one runner behind
 * `omnidrop batch` and /v1/batches. docs/http-api.md 1.9 and 4.
 *
 *   batch_scan         reads the input once, as a stream: every line is checked, its place and its cost noted (64 bytes
 *                      a line stay in memory), SHA-256 of the whole
 *   batch_plan_have    lines that an earlier run answered
 *   batch_work         runs the others, n at once; each answer is a line of `out` or `errors`, in order of completion
 *   batch_never        the lines that will not run get their error line
 *
 * What is in the output files is what is done: no other record says so. A line is in them whole or not at all (see
 * api/jsonl.h), so after a crash exactly the lines that are missing there run again. */
#ifndef API_BATCH_H
#define API_BATCH_H

#include <jansson.h>
#include <stdatomic.h>

#include "api/jsonl.h"
#include "media/digest.h"

#define BATCH_PROBLEMS 100         /* told of; more are counted only */
#define BATCH_CUSTOM_ID_MAX 512    /* bytes */

struct batch_rules {
    const char *endpoint;          /* the url of every line; NULL: any of batch_endpoints */
    uint64_t lines_max;            /* 0: no limit */
    const char *media_root;        /* media may be files, relative ones start here; NULL: files are not looked at */
    const atomic_bool *stop;       /* may be NULL: E_CANCELLED */
};
extern const char *const batch_endpoints[];    /* NULL-terminated */

struct batch_problem {             /* a line that is no request */
    uint64_t line;                 /* from 1; 0: the whole file */
    const char *code, *param;      /* literals; param may be NULL */
    char message[256];
};

struct batch_plan;

/* Bad lines are problems of the plan, not errors. E_IO, E_NOMEM, E_CANCELLED. fd is borrowed for the call, read from
 * 0. */
status batch_scan(int fd, const struct batch_rules *r, struct batch_plan **out, struct err *e);
void batch_plan_free(struct batch_plan **p);
const char *batch_plan_digest(const struct batch_plan *p);
/* [*n] of the *n_all that there are. */
const struct batch_problem *batch_plan_problems(const struct batch_plan *p, size_t *n, size_t *n_all);

struct batch_counts {
    uint64_t total, completed, failed;     /* failed: answered with a status >= 400 */
    uint64_t never;                        /* lines that will not run */
    double cost, cost_done; /* of all lines, of those that are over: estimates, for the time that is left */
    uint64_t tokens_in, tokens_out;        /* as the replies' usage says */
};
/* From the lines that are known; batch_work counts on. */
void batch_plan_counts(const struct batch_plan *p, struct batch_counts *out);

enum batch_have { BATCH_HAVE, BATCH_TWICE, BATCH_FOREIGN };
/* `line` of an output file was read: the line of the input that it answers is over. Lines that are no answers to this
 * input are FOREIGN. */
enum batch_have batch_plan_have(struct batch_plan *p, const json_t *line);
/* The HTTP status of an output line; 0: it never ran; -1: no output line. */
int batch_line_status(const json_t *line);

/* Paths of media in a chat's or transcription's body, plain or "file:", become file: URLs of absolute paths, without
 * links where the file is there. Other URLs stay. */
void batch_absolute_media(json_t *body, const char *media_root);
/* The path in such a URL. False: it is none, or does not fit. */
bool batch_media_path(const char *url, char *out, size_t cap);

/* One request, blocking: *reply (owned by the caller, not NULL) is the body, an error object for a status >= 400. From
 * several threads at once. stop may be NULL; *stop true: end soon, with any status >= 400. */
typedef void (*batch_run)(void *self, const char *endpoint, const char *body, size_t n, const char *request_id,
                          const atomic_bool *stop, int *status_code, json_t **reply);

struct batch_job {
    struct batch_plan *plan;
    int fd;                        /* the input */
    struct jsonl *out, *errors;    /* may be the same */
    batch_run run;
    void *run_self;
    uint32_t n_at_once;            /* 0: 8 */
    const char *media_root;        /* as of the rules: paths in lines become absolute URLs; NULL: left as they are */
    bool fail_fast;                /* no new line after one failed */
    const atomic_bool *stop;       /* true: no new lines; those that run finish. May be NULL */
    const atomic_bool *kill;       /* true: those that run are cancelled; they count as not run. May be NULL */
    /* A slot for one line: blocks until there is one; false: begin no more (stop is true, say). And back. May be
     * NULL. */
    bool (*enter)(void *self);
    void (*leave)(void *self);
    /* After every line and once a second; never from two threads at once. May be NULL. */
    void (*progress)(void *self, const struct batch_counts *c);
    /* A line was answered with a status >= 400. As progress. May be NULL. */
    void (*failed)(void *self, const char *custom_id, int status_code, const json_t *reply);
    void *self;
};

/* Runs until no line is left, or stop. A line that finds the queue full or the server not ready waits and tries again.
 * OK also where lines failed. *counts is right either way. E_IO, E_NOMEM: the output could not be written; E_BUSY, tag
 * draining: the engine takes no more. */
status batch_work(const struct batch_job *j, struct batch_counts *counts, struct err *e);

/* For every line that is not over: {"response":null,"error":{code,message}} to errors. */
status batch_never(const struct batch_job *j, const char *code, const char *message, struct err *e);

/* ---- a batch of files, offline ------------------------------------------------------------------------------ */

struct batch_files {               /* {0} before batch_files_open */
    struct batch_plan *plan;
    int fd;
    struct jsonl *out, *errors, *journal;
    char *journal_path;
    uint64_t n_before;             /* lines that an earlier run finished */
    bool complete;                 /* nothing is left to do */
};

struct batch_files_options {
    const char *input, *output;
    const char *error_file;        /* NULL: failed lines stand in the output */
    bool resume, overwrite;
    struct batch_rules rules;
};
/* Scans, then opens or makes the outputs and the journal OUTPUT.odj, which holds the input's SHA-256. resume: what is
 * finished stays, a torn last line is dropped, failed lines run again. E_INPUT: the input, with its first bad lines.
 * E_ARG: an output is there and neither resume nor overwrite, the input changed since, or another run is at work. */
status batch_files_open(const struct batch_files_options *o, struct batch_files *out, struct err *e);
/* Syncs the outputs; removes the journal where all lines are answered well. */
status batch_files_close(struct batch_files *b, struct err *e);

#endif
