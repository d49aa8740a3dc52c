/* media/roots.c - see roots.h. */
#include "media/roots.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/mem.h"

#define KNOWN 256
#define PIECE (256u << 10)

/* A digest that was computed once. Files that change keep neither size nor time. */
struct known {
    struct stat s;
    char digest[MEDIA_DIGEST_TEXT];       /* "": empty place */
};

struct roots {
    uint32_t n;
    int *fd;                       /* [n] */
    char **path;                   /* [n] absolute, without a slash at the end but for "/" itself ("") */
    pthread_mutex_t lock;          /* of what follows */
    struct known known[KNOWN];
    uint32_t next;
};

bool roots_is_file_url(const char *url) { return strncasecmp(url, "file:", 5) == 0; }

/* RESOLVE_BENEATH is what all rests on: a kernel or container without it gets no roots. */
static bool can_walk(int fd)
{
    const struct open_how how = { .flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS };
    const int here = (int)syscall(SYS_openat2, fd, ".", &how, sizeof how);
    if (here >= 0) close(here);
    return here >= 0;
}

status roots_open(const char *const *path, uint32_t n, struct roots **out, struct err *e)
{
    struct roots *r = mem_must(1, sizeof *r);
    r->fd = mem_must(n + 1, sizeof *r->fd);
    r->path = mem_must(n + 1, sizeof *r->path);
    pthread_mutex_init(&r->lock, NULL);
    for (uint32_t i = 0; i < n; i++) {
        const int fd = open(path[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
        char *real = fd >= 0 && can_walk(fd) ? realpath(path[i], NULL) : NULL;
        if (real == NULL) {
            err_set(e, E_ARG, "%s: %s: media may only be read beneath a folder", path[i], strerror(errno));
            if (fd >= 0) close(fd);
            roots_close(&r);
            return E_ARG;
        }
        if (strcmp(real, "/") == 0) real[0] = 0;
        r->fd[r->n] = fd;
        r->path[r->n++] = real;
    }
    *out = r;
    return OK;
}

void roots_close(struct roots **r)
{
    if (*r == NULL) return;
    for (uint32_t i = 0; i < (*r)->n; i++) {
        close((*r)->fd[i]);
        free((*r)->path[i]);
    }
    pthread_mutex_destroy(&(*r)->lock);
    free((*r)->fd);
    free((*r)->path);
    free(*r);
    *r = NULL;
}

/* ---- the path in a URL ---------------------------------------------------------------------------------- */

static int hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Decoded once. False: a broken escape, a NUL, too long, empty. */
static bool path_of(const char *url, char *out, size_t cap)
{
    const char *p = url + 5;
    size_t n = 0;
    if (strncmp(p, "//", 2) == 0) {
        p += 2;
        const size_t host = strcspn(p, "/");
        if (host != 0 && !(host == 9 && strncasecmp(p, "localhost", 9) == 0)) return false;
        p += host;
    }
    for (; *p != 0; p++) {
        char c = *p;
        if (c == '?' || c == '#') return false;        /* written as they are they would be no part of the path */
        if (c == '%') {
            const int high = hex(p[1]), low = high >= 0 ? hex(p[2]) : -1;
            if (low < 0 || high * 16 + low == 0) return false;
            c = (char)(high * 16 + low);
            p += 2;
        }
        if (n + 1 >= cap) return false;
        out[n++] = c;
    }
    out[n] = 0;
    return n > 0;
}

/* Which root, and the path from there; NULL: none. */
static const char *beneath(const struct roots *r, const char *path, uint32_t *root)
{
    if (path[0] != '/') {
        *root = 0;
        return r->n > 0 ? path : NULL;
    }
    const char *best = NULL;
    size_t longest = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        const size_t n = strlen(r->path[i]);
        if (strncmp(path, r->path[i], n) != 0 || path[n] != '/' || (best != NULL && n <= longest)) continue;
        best = path + n;
        while (*best == '/') best++;
        longest = n;
        *root = i;
    }
    return best != NULL && *best != 0 ? best : NULL;
}

/* ---- digests -------------------------------------------------------------------------------------------- */

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
           a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static bool recall(struct roots *r, const struct stat *s, char digest[MEDIA_DIGEST_TEXT])
{
    bool found = false;
    pthread_mutex_lock(&r->lock);
    for (uint32_t i = 0; i < KNOWN && !found; i++) {
        found = r->known[i].digest[0] != 0 && same_file(&r->known[i].s, s);
        if (found) memcpy(digest, r->known[i].digest, MEDIA_DIGEST_TEXT);
    }
    pthread_mutex_unlock(&r->lock);
    return found;
}

static void remember(struct roots *r, const struct stat *s, const char *digest)
{
    pthread_mutex_lock(&r->lock);
    struct known *k = &r->known[r->next++ % KNOWN];
    k->s = *s;
    memcpy(k->digest, digest, MEDIA_DIGEST_TEXT);
    pthread_mutex_unlock(&r->lock);
}

static status refuse(const char *name, struct err *e)
{
    err_set(e, E_INPUT, "%s: this file: URL names no file that may be read here", name);
    err_tag(e, "media_path_not_allowed", NULL);
    return E_INPUT;
}

static status digest_of(int fd, const char *name, const atomic_bool *stop, char digest[MEDIA_DIGEST_TEXT],
                        struct err *e)
{
    struct media_digest *d = NULL;
    uint8_t *buf = NULL;
    status st;
    off_t at = 0;
    TRY(mem_alloc(&buf, PIECE, 1, e));
    TRY_GOTO(st, media_digest_begin(&d, e), done);
    for (;;) {
        const ssize_t got = pread(fd, buf, PIECE, at);
        if (stop != NULL && atomic_load(stop)) st = err_set(e, E_CANCELLED, "interrupted");
        else if (got < 0 && errno != EINTR) st = refuse(name, e);
        if (st != OK) goto done;
        if (got == 0) break;
        if (got < 0) continue;
        media_digest_add(d, buf, (size_t)got);
        at += got;
    }
    media_digest_end(&d, digest);
done:
    media_digest_free(&d);
    free(buf);
    return st;
}

/* ---- the file ------------------------------------------------------------------------------------------- */

/* A regular file beneath a root, or -1. Beneath "/" lies everything, also where a link with a whole path leads. */
static int open_beneath(int root, bool everywhere, const char *path, struct stat *s)
{
    const struct open_how how = { .flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                                  .resolve = RESOLVE_NO_MAGICLINKS | (everywhere ? 0 : RESOLVE_BENEATH) };
    int fd;
    /* EAGAIN: something was renamed on the way; the kernel will not say where it led. */
    for (int i = 0; (fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how)) < 0 && errno == EAGAIN && i < 8; i++)
        continue;
    if (fd < 0) return -1;
    if (fstat(fd, s) == 0 && S_ISREG(s->st_mode)) return fd;
    close(fd);
    return -1;
}

status roots_source(struct roots *r, const char *url, const char *name, const atomic_bool *stop,
                    struct media_source *out, struct err *e)
{
    char path[PATH_MAX], digest[MEDIA_DIGEST_TEXT];
    uint32_t root = 0;
    struct stat before, after;
    const char *rest = r != NULL && path_of(url, path, sizeof path) ? beneath(r, path, &root) : NULL;
    const int fd = rest != NULL ? open_beneath(r->fd[root], r->path[root][0] == 0, rest, &before) : -1;
    if (fd < 0) return refuse(name, e);
    if (!recall(r, &before, digest)) {
        const status st = digest_of(fd, name, stop, digest, e);
        if (st != OK) {
            close(fd);
            return st;
        }
        if (fstat(fd, &after) == 0 && same_file(&before, &after)) remember(r, &before, digest);
    }
    return media_source_of_fd(fd, name, digest, out, e);
}
