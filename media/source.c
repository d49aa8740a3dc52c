/* media/source.c - sources: open files that nobody else names; see extract.h. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "media/extract.h"
#include "media/source.h"

#define PIECE (256u << 10)

void media_source_close(struct media_source *s)
{
    if (s->fd >= 0) close(s->fd);
    *s = (struct media_source){ .fd = -1 };
}

status spool_open(const char *dir, int *fd, struct err *e)
{
    if (dir == NULL) dir = "/tmp";
    *fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (*fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {        /* a file system without: named for a moment */
        char path[PATH_MAX];
        const int n = snprintf(path, sizeof path, "%s/omnidrop-XXXXXX", dir);
        *fd = n > 0 && (size_t)n < sizeof path ? mkostemp(path, O_CLOEXEC) : -1;
        if (*fd >= 0) unlink(path);
    }
    return *fd >= 0 ? OK : spool_fail("cannot be made", e);
}

status spool_fail(const char *what, struct err *e)
{
    const int why = errno;
    err_set(e, E_IO, "a file in the spool %s: %s", what, strerror(why));
    if (why == ENOSPC || why == EDQUOT || why == EFBIG) err_tag(e, "spool_full", NULL);
    return E_IO;
}

status spool_write(int fd, const void *bytes, size_t n, struct err *e)
{
    const char *p = bytes;
    while (n > 0) {
        const ssize_t put = write(fd, p, n);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return spool_fail("cannot be written", e);
        p += put;
        n -= (size_t)put;
    }
    return OK;
}

status spool_finish(int *fd, struct err *e)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", *fd);
    const int again = open(path, O_RDONLY | O_CLOEXEC);
    if (again < 0) return spool_fail("cannot be opened again", e);
    close(*fd);
    *fd = again;
    return OK;
}

static void name_set(struct media_source *s, const char *name)
{
    snprintf(s->name, sizeof s->name, "%s", name != NULL && name[0] != 0 ? name : "media");
}

/* The digest of all bytes of s->fd. */
static status digest_of(struct media_source *s, struct err *e)
{
    struct media_digest *d = NULL;
    uint8_t *buf = NULL;
    status st;
    TRY(mem_alloc(&buf, PIECE, 1, e));
    TRY_GOTO(st, media_digest_begin(&d, e), done);
    for (uint64_t at = 0; at < s->bytes; ) {
        const ssize_t got = pread(s->fd, buf, PIECE, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            st = err_set(e, E_INPUT, "%s: cannot be read: %s", s->name, got < 0 ? strerror(errno) : "it has shrunk");
            err_tag(e, "media_decode_failed", NULL);
            goto done;
        }
        media_digest_add(d, buf, (size_t)got);
        at += (uint64_t)got;
    }
    media_digest_end(&d, s->digest);
done:
    media_digest_free(&d);
    free(buf);
    return st;
}

status media_source_of_fd(int fd, const char *name, const char *digest, struct media_source *out, struct err *e)
{
    struct media_source s = { .fd = fd };
    struct stat st;
    status rc = OK;
    name_set(&s, name);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = err_set(e, E_INPUT, "%s: not a regular file", s.name);
    } else {
        s.bytes = (uint64_t)st.st_size;
        if (digest != NULL) snprintf(s.digest, sizeof s.digest, "%s", digest);
        else rc = digest_of(&s, e);
    }
    if (rc != OK) {
        media_source_close(&s);
        return rc;
    }
    *out = s;
    return OK;
}

status media_source_of_bytes(const void *bytes, size_t n, const char *name, const char *dir, struct media_source *out,
                             struct err *e)
{
    struct media_digest *d = NULL;
    char digest[MEDIA_DIGEST_TEXT];
    int fd;
    status st;
    TRY(media_digest_begin(&d, e));
    media_digest_add(d, bytes, n);
    media_digest_end(&d, digest);
    TRY(spool_open(dir, &fd, e));
    st = spool_write(fd, bytes, n, e);
    if (st == OK) st = spool_finish(&fd, e);
    if (st != OK) {
        close(fd);
        return st;
    }
    return media_source_of_fd(fd, name, digest, out, e);
}
