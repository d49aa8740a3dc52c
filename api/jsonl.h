/* api/jsonl.h - files of JSON lines: read as a stream, and written so that a crash costs at most the last lines. The
 * batch runner's inputs, outputs and journals are such files.
 *
 * What a crash leaves of a file that is appended to is a row of whole lines and maybe a torn one. Opening it again
 * keeps the whole lines and cuts off the rest. A line is on disk (fsync) with the 16th that follows, or a second
 * after it was written where jsonl_tick is called that often. */
#ifndef API_JSONL_H
#define API_JSONL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* ---- reading ---------------------------------------------------------------------------------------------- */

struct jsonl_reader {              /* {0} but for fd and line_max */
    int fd;                        /* borrowed; read by pread, its position is left alone */
    size_t line_max;               /* bytes of a line without its end; longer ones are skipped and told of */
    uint64_t at;                   /* offset of what was not yet read into buf */
    char *buf;                     /* owned: jsonl_reader_free */
    size_t cap, begin, end;        /* buf[begin, end) was read and not given out */
    void (*seen)(void *self, const void *bytes, size_t n);     /* every byte of the file, in order; may be NULL */
    void *self;
};

struct jsonl_line {
    const char *text;              /* n bytes, no line end, not NUL-terminated; until the next call; NULL: too long */
    uint64_t offset, n;            /* where it stands; n is its true length */
    bool ended;                    /* by a line end, not by the end of the file */
};

/* *got false: the end. E_IO, E_NOMEM. */
status jsonl_next(struct jsonl_reader *r, struct jsonl_line *out, bool *got, struct err *e);
void jsonl_reader_free(struct jsonl_reader *r);

/* ---- appending -------------------------------------------------------------------------------------------- */

struct jsonl;

/* Told of every whole line of a file that is kept; false: this line and what follows is not wanted and is cut off. */
typedef bool (*jsonl_each)(void *self, const json_t *line);

/* keep false: what is there goes. keep true: its lines are given to each (may be NULL), which ends where a line is
 * torn, no JSON object or refused. One process at a time holds a file: E_ARG says so. E_IO; E_NOMEM also for a full
 * disk. */
status jsonl_open(const char *path, bool keep, jsonl_each each, void *self, struct jsonl **out, struct err *e);
/* One whole line, or nothing of it. line is borrowed. */
status jsonl_add(struct jsonl *j, const json_t *line, struct err *e);
/* fsync where a line has waited for a second. */
status jsonl_tick(struct jsonl *j, struct err *e);
status jsonl_sync(struct jsonl *j, struct err *e);
uint64_t jsonl_bytes(const struct jsonl *j);
/* Syncs what is there; a failure of that is not told: call jsonl_sync first where it matters. */
void jsonl_close(struct jsonl **j);

/* The lines of a file without opening it for writing: *valid (may be NULL) bytes are whole good lines. */
status jsonl_read(int fd, jsonl_each each, void *self, uint64_t *valid, struct err *e);

#endif
