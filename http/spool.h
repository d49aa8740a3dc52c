/* http/spool.h - files that nobody else can name, written and read by a thread of their own, so that the loop never
 * waits for a disk. All functions here are for the loop thread; what the thread has done comes back through http_post.
 *
 * A file lives from spool_file_create to spool_file_discard. Its jobs run in the order in which they were given. */
#ifndef HTTP_SPOOL_H
#define HTTP_SPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "http/server.h"
#include "media/digest.h"

struct spool;

/* dir: borrowed; it must exist and be writable. E_IO: it is not. */
status spool_create(const char *dir, struct http_server *server, struct spool **out, struct err *e);
/* Waits for what was begun; all files must have been discarded. */
void spool_destroy(struct spool **s);
/* Bytes that the disk could still take; UINT64_MAX where it does not say. */
uint64_t spool_room(const struct spool *s);

struct spool_file {
    /* For the loop to read. */
    uint64_t n_written, n_pending; /* bytes on the disk; bytes on their way there                               */
    bool finished;                 /* fd and digest are there                                                   */
    bool failed;                   /* and error says why; tag spool_full where the disk is full                 */
    struct err error;
    int fd;                        /* read-only, offset 0; -1 before it is finished and after it was taken      */
    char digest[MEDIA_DIGEST_TEXT];
    void *map;                     /* of a finished file, where asked for: n_written bytes                      */
    /* The spool's own. */
    struct spool *spool;
    void (*event)(void *self, struct spool_file *f);
    void *self;
    bool discarded;
    uint32_t n_jobs;
    int write_fd;                  /* the thread's */
    struct media_digest *sum;      /* the thread's */
    char *block;                   /* gathers small writes; owned */
    size_t n_block;
};

/* event: called on the loop after each job, until the file is discarded. */
struct spool_file *spool_file_create(struct spool *s, void (*event)(void *self, struct spool_file *f), void *self);
/* Copies; small pieces are gathered before they go to the thread. */
void spool_file_write(struct spool_file *f, const char *bytes, size_t n);
/* No more writes. With `map` the bytes are mapped as well. */
void spool_file_finish(struct spool_file *f, bool map);
void spool_file_discard(struct spool_file **f);

/* Read n bytes at an offset of a descriptor that stays open until then; told on the loop: got < 0 failed. The bytes are
 * freed after the call. */
void spool_read(struct spool *s, int fd, uint64_t offset, size_t n,
                void (*read_done)(void *self, const char *bytes, int64_t got), void *self);

#endif
