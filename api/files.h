/* api/files.h - the store of files that clients upload and batches write: docs/http-api.md 1.8.
 *
 *   DIR/<id>         the bytes          an id is "file-" and 128 random bits in hexadecimal; no client's name is a path
 *   DIR/<id>.json    what is known      written last, removed first: a file is there when this is
 *   DIR/<name>.part  half written       removed at opening, like bytes without their <id>.json
 *
 * A file belongs to the API key that made it (the digest of the key, "" without keys); to others it is not there. An
 * open descriptor outlives a deletion. A file that a batch holds can be neither deleted nor expire.
 * All functions may be called from any thread; those that touch the disk (add, delete, open, sweep) must not be
 * called on a loop thread. */
#ifndef API_FILES_H
#define API_FILES_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "media/digest.h"

#define FILES_ID 40                /* "file-", 32 digits, NUL */

struct files;

struct files_options {
    const char *dir;               /* made where it is not there */
    uint64_t quota;                /* bytes of all files; 0: 100 GiB */
    int64_t (*now)(void);          /* seconds since 1970; NULL: time() */
};

struct file_info {
    char id[FILES_ID];
    char owner[MEDIA_DIGEST_TEXT]; /* digest of the key, or "" */
    char filename[256];            /* as the client called it, made UTF-8; never a path */
    char purpose[16];              /* batch, user_data, vision, batch_output */
    char digest[MEDIA_DIGEST_TEXT];
    char details[160];             /* of status "error": why */
    uint64_t bytes;
    int64_t created_at, expires_at;    /* expires_at 0: never */
    bool failed;                   /* status "error": it is no medium that can be used */
};

/* One process at a time: E_ARG where another holds dir. E_IO, E_NOMEM. */
status files_open(const struct files_options *o, struct files **out, struct err *e);
void files_close(struct files **f);

/* A client may upload for `purpose`? E_ARG, param purpose. */
status files_check_purpose(const char *purpose, struct err *e);
/* Seconds of expires_after, 3600..2592000: E_ARG with that param. */
status files_check_expiry(int64_t seconds, const char *param, struct err *e);

struct file_add {
    const char *id; /* NULL: a new one; else one of files_new_id: where it is there already, nothing is added */
    const char *owner, *filename, *purpose;
    const char *digest;            /* SHA-256 of the bytes; NULL: worked out */
    int fd;                        /* borrowed; its bytes from offset 0, not written to any more */
    bool may_link;                 /* fd's file has a name in the same file system that is ours: shared, not copied */
    int64_t expires_after;         /* seconds; 0: as the purpose has it (batch files 30 days, others never) */
    bool own;                      /* made by the engine: the quota does not refuse it */
    const char *error;             /* status "error" with this; NULL: all is well */
};
/* On disk when it returns. E_FULL, tag request_too_large: quota, with the numbers. E_NOMEM, tag spool_full: disk. */
status files_add(struct files *f, const struct file_add *a, struct file_info *out, struct err *e);
void files_new_id(char id[FILES_ID]);

/* E_ARG, tag not_found: none of that id is the owner's. */
status files_get(struct files *f, const char *owner, const char *id, struct file_info *out, struct err *e);
/* Its bytes: *fd is the caller's, read-only, offset 0. */
status files_open_data(struct files *f, const char *owner, const char *id, struct file_info *out, int *fd,
                       struct err *e);
/* Also E_BUSY, tag file_in_use: a batch holds it. */
status files_delete(struct files *f, const char *owner, const char *id, struct err *e);

/* Until files_release (as often) it is neither deleted nor does it expire. */
status files_hold(struct files *f, const char *owner, const char *id, struct file_info *out, struct err *e);
void files_release(struct files *f, const char *id);

struct files_query {
    const char *after;             /* id; NULL: from the start */
    uint32_t limit;                /* 1..10000; 0: 10000 */
    bool ascending;                /* by time of creation; else newest first */
    const char *purpose;           /* NULL: any */
};
/* {"object":"list","data",...}. *out is the caller's reference. A file that was deleted while a client pages through
 * the list is still good as `after`. E_ARG, param after: no such file. */
status files_list(struct files *f, const char *owner, const struct files_query *q, json_t **out, struct err *e);

/* The file object. The caller owns the reference. */
json_t *file_json(const struct file_info *info);

/* Removes what has expired; to be called now and then. */
void files_sweep(struct files *f);
/* Files and bytes that are there. */
void files_count(struct files *f, uint64_t *n, uint64_t *bytes);

#endif
