/* http/spool.c - see spool.h. One queue, one thread: a disk is not faster for being asked twice at once. */
#include "http/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/mem.h"
#include "http/internal.h"

#define BLOCK (64u << 10)

enum kind { WRITE, FINISH, DISCARD, READ };

struct job {
    struct job *next;
    enum kind kind;
    struct spool *spool;
    struct spool_file *file;       /* WRITE, FINISH, DISCARD */
    char *bytes;                   /* owned */
    size_t n;
    bool map;
    struct err error;              /* set by the thread where code is not OK */
    int fd;                        /* READ: borrowed; FINISH: the new descriptor */
    uint64_t offset;
    int64_t got;
    void (*read_done)(void *self, const char *bytes, int64_t got);
    void *self;
};

struct spool {
    struct http_server *server;
    char *dir;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct job *first, **last;
    bool stop;
};

/* ---- the thread ------------------------------------------------------------------------------------------- */

static status disk_error(struct err *e, int why)
{
    /* The process's own limits on file sizes and open files are a disk that is full for us. */
    if (why != ENOSPC && why != EDQUOT && why != EFBIG && why != EMFILE && why != ENFILE)
        return err_set(e, E_IO, "the request could not be stored: %s", strerror(why));
    err_set(e, E_NOMEM, "the disk that takes uploads is full: try again later");
    return err_tag(e, "spool_full", NULL);
}

/* A file without a name; where the file system has none, one whose name is gone at once. */
static int open_unnamed(const char *dir)
{
    const int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return fd;
    char path[4096];
    snprintf(path, sizeof path, "%s/omnidrop-XXXXXX", dir);
    const int named = mkostemp(path, O_CLOEXEC);
    if (named >= 0) unlink(path);
    return named;
}

static status write_all(struct spool_file *f, const char *bytes, size_t n, struct err *e)
{
    if (f->write_fd < 0) {
        TRY(media_digest_begin(&f->sum, e));
        f->write_fd = open_unnamed(f->spool->dir);
        if (f->write_fd < 0) return disk_error(e, errno);
    }
    media_digest_add(f->sum, bytes, n);
    while (n) {
        const ssize_t put = write(f->write_fd, bytes, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return disk_error(e, put < 0 ? errno : ENOSPC);
        bytes += put;
        n -= (size_t)put;
    }
    return OK;
}

/* A second, read-only descriptor, so that whoever gets it cannot change what the digest was made of. */
static status finish(struct job *j, struct err *e)
{
    struct spool_file *f = j->file;
    char path[64];
    TRY(write_all(f, "", 0, e));
    media_digest_end(&f->sum, f->digest);
    snprintf(path, sizeof path, "/proc/self/fd/%d", f->write_fd);
    j->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (j->fd < 0) {
        j->fd = f->write_fd;
        f->write_fd = -1;
        if (lseek(j->fd, 0, SEEK_SET) < 0) return disk_error(e, errno);
    } else {
        close(f->write_fd);
        f->write_fd = -1;
    }
    if (!j->map || j->n == 0) return OK;
    f->map = mmap(NULL, j->n, PROT_READ, MAP_PRIVATE, j->fd, 0);
    if (f->map != MAP_FAILED) return OK;
    f->map = NULL;
    return err_set(e, E_NOMEM, "the request's body of %zu bytes could not be mapped", j->n);
}

static void read_piece(struct job *j)
{
    j->got = 0;
    while ((size_t)j->got < j->n) {
        const ssize_t got = pread(j->fd, j->bytes + j->got, j->n - (size_t)j->got, (off_t)(j->offset + (uint64_t)j->got));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) j->got = -1;
        if (got <= 0) return;
        j->got += got;
    }
}

static void drop(struct spool_file *f)
{
    if (f->map) munmap(f->map, f->n_written);
    if (f->fd >= 0) close(f->fd);
    if (f->write_fd >= 0) close(f->write_fd);
    media_digest_free(&f->sum);
    free(f->block);
    free(f);
}

static void run_job(struct job *j)
{
    switch (j->kind) {
    case WRITE:
        write_all(j->file, j->bytes, j->n, &j->error);
        break;
    case FINISH:
        if (finish(j, &j->error) != OK && j->fd >= 0) {
            close(j->fd);
            j->fd = -1;
        }
        break;
    case READ:
        read_piece(j);
        break;
    case DISCARD:
        drop(j->file);
        break;
    }
}

static void on_loop(void *arg);

static void *work(void *arg)
{
    struct spool *s = arg;
    pthread_setname_np(pthread_self(), "spool");
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (s->first == NULL && !s->stop) pthread_cond_wait(&s->more, &s->lock);
        struct job *j = s->first;
        if (j == NULL) break;
        s->first = j->next;
        if (s->first == NULL) s->last = &s->first;
        pthread_mutex_unlock(&s->lock);
        const bool silent = j->kind == DISCARD;
        run_job(j);
        if (silent) free(j);
        else http_post(s->server, on_loop, j);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- the loop --------------------------------------------------------------------------------------------- */

static void give(struct spool *s, struct job *j)
{
    j->spool = s;
    j->next = NULL;
    if (j->file && j->kind != DISCARD) j->file->n_jobs++;
    pthread_mutex_lock(&s->lock);
    *s->last = j;
    s->last = &j->next;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
}

static void give_discard(struct spool_file *f)
{
    struct job *j = mem_must(1, sizeof *j);
    j->kind = DISCARD;
    j->file = f;
    give(f->spool, j);
}

static void on_loop(void *arg)
{
    struct job *j = arg;
    struct spool_file *f = j->file;
    if (j->kind == READ) {
        j->read_done(j->self, j->bytes, j->got);
    } else {
        f->n_jobs--;
        if (j->kind == WRITE) {
            f->n_pending -= j->n;
            f->n_written += j->n;
        } else if (j->error.code == OK) {
            f->fd = j->fd;
            f->finished = true;
        }
        if (j->error.code != OK && !f->failed) {
            f->failed = true;
            f->error = j->error;
        }
        if (!f->discarded) f->event(f->self, f);
        else if (f->n_jobs == 0) give_discard(f);
    }
    free(j->bytes);
    free(j);
}

struct spool_file *spool_file_create(struct spool *s, void (*event)(void *self, struct spool_file *f), void *self)
{
    struct spool_file *f = mem_must(1, sizeof *f);
    f->spool = s;
    f->event = event;
    f->self = self;
    f->fd = f->write_fd = -1;
    return f;
}

static void flush(struct spool_file *f)
{
    if (f->n_block == 0) return;
    struct job *j = mem_must(1, sizeof *j);
    j->kind = WRITE;
    j->file = f;
    j->n = f->n_block;
    j->bytes = f->block;
    f->block = NULL;
    f->n_block = 0;
    give(f->spool, j);
}

void spool_file_write(struct spool_file *f, const char *bytes, size_t n)
{
    f->n_pending += n;
    while (n) {
        if (f->block == NULL) f->block = mem_must(BLOCK, 1);
        const size_t room = BLOCK - f->n_block, take = n < room ? n : room;
        memcpy(f->block + f->n_block, bytes, take);
        f->n_block += take;
        bytes += take;
        n -= take;
        if (f->n_block == BLOCK) flush(f);
    }
}

void spool_file_finish(struct spool_file *f, bool map)
{
    flush(f);
    struct job *j = mem_must(1, sizeof *j);
    j->kind = FINISH;
    j->file = f;
    j->fd = -1;
    j->map = map;
    j->n = (size_t)(f->n_written + f->n_pending);
    give(f->spool, j);
}

void spool_file_discard(struct spool_file **file)
{
    struct spool_file *f = *file;
    if (f == NULL) return;
    *file = NULL;
    f->discarded = true;
    if (f->n_jobs == 0) give_discard(f);
}

void spool_read(struct spool *s, int fd, uint64_t offset, size_t n,
                void (*read_done)(void *self, const char *bytes, int64_t got), void *self)
{
    struct job *j = mem_must(1, sizeof *j);
    j->kind = READ;
    j->fd = fd;
    j->offset = offset;
    j->n = n;
    j->bytes = mem_must(n, 1);
    j->read_done = read_done;
    j->self = self;
    give(s, j);
}

uint64_t spool_room(const struct spool *s)
{
    struct statvfs v;
    return statvfs(s->dir, &v) == 0 ? (uint64_t)v.f_bavail * v.f_frsize : UINT64_MAX;
}

status spool_create(const char *dir, struct http_server *server, struct spool **out, struct err *e)
{
    struct stat st;
    if (stat(dir, &st) != 0 || !S_ISDIR(st.st_mode) || access(dir, W_OK | X_OK) != 0)
        return err_set(e, E_IO, "--spool-dir %s: not a directory that can be written to", dir);
    struct spool *s = mem_must(1, sizeof *s);
    s->server = server;
    s->dir = mem_must_strdup(dir);
    s->last = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->more, NULL);
    /* Signals are for the loop. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int failed = pthread_create(&s->thread, NULL, work, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed) {
        free(s->dir);
        free(s);
        return err_set(e, E_NOMEM, "a thread could not be started: %s", strerror(failed));
    }
    *out = s;
    return OK;
}

void spool_destroy(struct spool **spool)
{
    struct spool *s = *spool;
    if (s == NULL) return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    /* What the thread has done; files that can go now come back as jobs, and what goes with them may post. */
    http_run_posts(s->server);
    while (s->first) {
        struct job *j = s->first;
        s->first = j->next;
        if (s->first == NULL) s->last = &s->first;
        run_job(j);
        free(j->bytes);
        free(j);
        http_run_posts(s->server);
    }
    s->last = &s->first;
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->more);
    free(s->dir);
    free(s);
    *spool = NULL;
}
