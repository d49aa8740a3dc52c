/* media/digest.c - see digest.h. */
#include "media/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <libavutil/mem.h>
#include <libavutil/sha.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

#define PIECE (256u << 10)

struct media_digest { struct AVSHA *sha; };

status media_digest_begin(struct media_digest **out, struct err *e)
{
    struct media_digest *d;
    TRY(mem_alloc(&d, 1, sizeof *d, e));
    d->sha = av_sha_alloc();
    if (d->sha == NULL || av_sha_init(d->sha, 256) < 0) {
        media_digest_free(&d);
        return err_set(e, E_NOMEM, "out of memory");
    }
    *out = d;
    return OK;
}

void media_digest_free(struct media_digest **d)
{
    if (*d == NULL) return;
    av_free((*d)->sha);
    free(*d);
    *d = NULL;
}

void media_digest_add(struct media_digest *d, const void *bytes, size_t n) { av_sha_update(d->sha, bytes, n); }

void media_digest_end(struct media_digest **d, char text[MEDIA_DIGEST_TEXT])
{
    uint8_t sum[32];
    av_sha_final((*d)->sha, sum);
    for (int i = 0; i < 32; i++) snprintf(text + 2 * i, 3, "%02x", sum[i]);
    media_digest_free(d);
}

status media_digest_add_file(struct media_digest *d, const char *path, int (*stop)(void *self), void *self,
                             struct err *e)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return err_set(e, E_INPUT, "%s: %s", path, strerror(errno));
    uint8_t *buf = NULL;
    status st = mem_alloc(&buf, PIECE, 1, e);
    while (st == OK) {
        const ssize_t got = read(fd, buf, PIECE);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) st = err_set(e, E_INPUT, "%s: %s", path, strerror(errno));
        if (got <= 0) break;
        media_digest_add(d, buf, (size_t)got);
        if (stop && stop(self)) st = err_set(e, E_CANCELLED, "interrupted");
    }
    free(buf);
    close(fd);
    return st;
}
