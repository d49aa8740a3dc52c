/* api/jsonl.c - see jsonl.h. */
#include "api/jsonl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

#define READ_BYTES ((size_t)64 << 10)
#define LINE_MAX_BYTES ((size_t)320 << 20)     /* of a file of our own: a reply may hold 256 MiB of body */
#define SYNC_LINES 16
#define SYNC_S 1.0

static status io_err(const char *what, struct err *e)
{
    const status code = errno == ENOSPC || errno == EDQUOT || errno == EFBIG ? E_NOMEM : E_IO;
    const char *why = strerror(errno);
    err_set(e, code, "%s: %s", what, why);
    return code == E_NOMEM ? err_tag(e, "spool_full", NULL) : code;
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

/* More bytes behind buf[end); *more false at the end of the file. */
static status fill(struct jsonl_reader *r, bool *more, struct err *e)
{
    if (r->begin > 0) {
        memmove(r->buf, r->buf + r->begin, r->end - r->begin);
        r->end -= r->begin;
        r->begin = 0;
    }
    TRY(mem_grow(&r->buf, &r->cap, r->end + READ_BYTES, 1, e));
    ssize_t got;
    do got = pread(r->fd, r->buf + r->end, r->cap - r->end, (off_t)r->at);
    while (got < 0 && errno == EINTR);
    if (got < 0) return io_err("the lines cannot be read", e);
    if (got > 0 && r->seen) r->seen(r->self, r->buf + r->end, (size_t)got);
    r->end += (size_t)got;
    r->at += (uint64_t)got;
    *more = got > 0;
    return OK;
}

/* The rest of a line that is too long, without keeping it. */
static status skip(struct jsonl_reader *r, struct jsonl_line *out, struct err *e)
{
    out->text = NULL;
    for (bool more = true; more;) {
        const char *end = memchr(r->buf + r->begin, '\n', r->end - r->begin);
        const size_t n = end ? (size_t)(end - (r->buf + r->begin)) : r->end - r->begin;
        out->n += n;
        out->ended = end != NULL;
        r->begin += n + (end != NULL);
        if (end) break;
        TRY(fill(r, &more, e));
    }
    return OK;
}

status jsonl_next(struct jsonl_reader *r, struct jsonl_line *out, bool *got, struct err *e)
{
    size_t looked = 0;             /* bytes of this line that hold no end */
    bool more = true;
    *out = (struct jsonl_line){ .offset = r->at - (r->end - r->begin) };
    *got = false;
    for (;;) {
        const size_t have = r->end - r->begin;
        const char *end = have > looked ? memchr(r->buf + r->begin + looked, '\n', have - looked) : NULL;
        const size_t n = end ? (size_t)(end - (r->buf + r->begin)) : have;
        if (n > r->line_max) {
            *got = true;
            return skip(r, out, e);
        }
        if (end || (!more && have > 0)) {
            out->text = r->buf + r->begin;
            out->n = n;
            out->ended = end != NULL;
            r->begin += n + (end != NULL);
            *got = true;
            return OK;
        }
        if (!more) return OK;
        looked = have;
        TRY(fill(r, &more, e));
    }
}

void jsonl_reader_free(struct jsonl_reader *r)
{
    free(r->buf);
    r->buf = NULL;
    r->cap = r->begin = r->end = 0;
}

status jsonl_read(int fd, jsonl_each each, void *self, uint64_t *valid, struct err *e)
{
    struct jsonl_reader r = { .fd = fd, .line_max = LINE_MAX_BYTES };
    struct jsonl_line line;
    uint64_t good = 0;
    status st = OK;
    for (bool got;;) {
        TRY_GOTO(st, jsonl_next(&r, &line, &got, e), done);
        if (!got || line.text == NULL || !line.ended) break;
        json_t *o = json_loadb(line.text, (size_t)line.n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
        const bool wanted = json_is_object(o) && (each == NULL || each(self, o));
        json_decref(o);
        if (!wanted) break;
        good = line.offset + line.n + 1;
    }
    if (valid) *valid = good;
done:
    jsonl_reader_free(&r);
    return st;
}

/* ---- appending -------------------------------------------------------------------------------------------- */

struct jsonl {
    int fd;
    uint64_t bytes;                /* of whole lines */
    uint32_t n_waiting;            /* lines that are not on disk */
    double waiting_since_s;
};

status jsonl_open(const char *path, bool keep, jsonl_each each, void *self, struct jsonl **out, struct err *e)
{
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    struct stat s;
    status st = OK;
    uint64_t valid = 0;
    if (fd < 0) return io_err(path, e);
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        st = err_set(e, E_ARG, "%s is no regular file: lines are appended to one", path);
        goto undo;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        st = err_set(e, E_ARG, "%s is in use by another run: wait for it or stop it", path);
        goto undo;
    }
    if (keep) TRY_GOTO(st, jsonl_read(fd, each, self, &valid, e), undo);
    if (ftruncate(fd, (off_t)valid) != 0 || lseek(fd, 0, SEEK_END) < 0) {
        st = io_err(path, e);
        goto undo;
    }
    struct jsonl *j = mem_must(1, sizeof *j);
    *j = (struct jsonl){ .fd = fd, .bytes = valid };
    *out = j;
    return OK;
undo:
    close(fd);
    return st;
}

status jsonl_sync(struct jsonl *j, struct err *e)
{
    if (j->n_waiting == 0) return OK;
    if (fdatasync(j->fd) != 0 && errno != EINVAL && errno != EROFS) return io_err("the lines cannot be written", e);
    j->n_waiting = 0;
    return OK;
}

status jsonl_tick(struct jsonl *j, struct err *e)
{
    if (j->n_waiting == 0 || clock_s() - j->waiting_since_s < SYNC_S) return OK;
    return jsonl_sync(j, e);
}

/* All n bytes, or the file is cut back to what it was. */
static status append(struct jsonl *j, const char *text, size_t n, struct err *e)
{
    for (size_t at = 0; at < n;) {
        const ssize_t got = write(j->fd, text + at, n - at);
        if (got > 0) {
            at += (size_t)got;
        } else if (errno != EINTR) {
            const status st = io_err("the lines cannot be written", e);
            if (ftruncate(j->fd, (off_t)j->bytes) == 0) lseek(j->fd, 0, SEEK_END);
            return st;
        }
    }
    j->bytes += n;
    return OK;
}

status jsonl_add(struct jsonl *j, const json_t *line, struct err *e)
{
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(15));
    if (text == NULL) return err_set(e, E_NOMEM, "out of memory");
    const size_t n = strlen(text);
    text[n] = '\n';                /* in place of the NUL */
    const status st = append(j, text, n + 1, e);
    free(text);
    TRY(st);
    if (j->n_waiting++ == 0) j->waiting_since_s = clock_s();
    return j->n_waiting >= SYNC_LINES ? jsonl_sync(j, e) : jsonl_tick(j, e);
}

uint64_t jsonl_bytes(const struct jsonl *j) { return j->bytes; }

void jsonl_close(struct jsonl **pj)
{
    struct jsonl *j = *pj;
    struct err e;
    if (j == NULL) return;
    (void)jsonl_sync(j, &e);
    close(j->fd);
    free(j);
    *pj = NULL;
}
