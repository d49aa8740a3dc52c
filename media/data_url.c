/* media/data_url.c - see data_url.h. */
#include "media/data_url.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/mem.h"
#include "media/source.h"

#define PIECE (192u << 10)                /* bytes that are written at once; a multiple of 3 */
#define BYTES_MAX ((uint64_t)2 << 30)
#define NOT 255
#define SPACE 254
#define PAD 253

bool data_url_is(const char *url) { return strncasecmp(url, "data:", 5) == 0; }

/* What a character stands for. */
static uint8_t value_of(unsigned char c)
{
    if (c >= 'A' && c <= 'Z') return (uint8_t)(c - 'A');
    if (c >= 'a' && c <= 'z') return (uint8_t)(c - 'a' + 26);
    if (c >= '0' && c <= '9') return (uint8_t)(c - '0' + 52);
    switch (c) {
    case '+': case '-': return 62;
    case '/': case '_': return 63;
    case '=': return PAD;
    case ' ': case '\t': case '\r': case '\n': return SPACE;
    default: return NOT;
    }
}

static uint8_t table[256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void table_make(void)
{
    for (int c = 0; c < 256; c++) table[c] = value_of((unsigned char)c);
}

struct decoder {
    const char *name;
    int fd;
    struct media_digest *digest;
    uint8_t *out;                  /* [PIECE + 3] */
    size_t n_out;
    uint64_t n_bytes, max;
    uint32_t bits;                 /* the last n_digits digits, 6 bits each */
    unsigned n_digits, n_pad;
};

static status broken(const struct decoder *d, const char *why, struct err *e)
{
    err_set(e, E_ARG, "%s: %s", d->name, why);
    err_tag(e, "invalid_value", NULL);
    return E_ARG;
}

static status flush(struct decoder *d, struct err *e)
{
    d->n_bytes += d->n_out;
    if (d->n_bytes > d->max) {
        err_set(e, E_INPUT, "%s: more than %" PRIu64 " bytes, the limit here", d->name, d->max);
        err_tag(e, "media_too_large", NULL);
        return E_INPUT;
    }
    TRY(spool_write(d->fd, d->out, d->n_out, e));
    media_digest_add(d->digest, d->out, d->n_out);
    d->n_out = 0;
    return OK;
}

static status decode(struct decoder *d, const char *text, size_t n, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        const uint8_t v = table[(unsigned char)text[i]];
        if (v == SPACE) continue;
        if (v == PAD) {
            d->n_pad++;
            continue;
        }
        if (v == NOT || d->n_pad > 0) return broken(d, "its base64 has a character that is none", e);
        d->bits = d->bits << 6 | v;
        if (++d->n_digits < 4) continue;
        d->out[d->n_out++] = (uint8_t)(d->bits >> 16);
        d->out[d->n_out++] = (uint8_t)(d->bits >> 8);
        d->out[d->n_out++] = (uint8_t)d->bits;
        d->n_digits = 0;
        if (d->n_out == PIECE) TRY(flush(d, e));
    }
    /* The rest: two digits are a byte, three are two; padding, where there is some, makes it four. */
    if (d->n_digits == 1 || (d->n_pad > 0 && (d->n_digits == 0 || d->n_digits + d->n_pad != 4)))
        return broken(d, "its base64 has a length that cannot be", e);
    if (d->n_digits >= 2) d->out[d->n_out++] = (uint8_t)(d->bits >> (d->n_digits == 2 ? 4 : 10));
    if (d->n_digits == 3) d->out[d->n_out++] = (uint8_t)(d->bits >> 2);
    TRY(flush(d, e));
    return d->n_bytes > 0 ? OK : broken(d, "its base64 is empty", e);
}

status data_base64_source(const char *text, size_t n, const char *name, const char *dir, uint64_t max,
                          struct media_source *out, struct err *e)
{
    struct decoder d = { .name = name, .fd = -1, .max = max ? max : BYTES_MAX };
    char digest[MEDIA_DIGEST_TEXT];
    status st;
    pthread_once(&once, table_make);
    TRY(mem_alloc(&d.out, PIECE + 3, 1, e));
    TRY_GOTO(st, media_digest_begin(&d.digest, e), done);
    TRY_GOTO(st, spool_open(dir, &d.fd, e), done);
    TRY_GOTO(st, decode(&d, text, n, e), done);
    TRY_GOTO(st, spool_finish(&d.fd, e), done);
    media_digest_end(&d.digest, digest);
    st = media_source_of_fd(d.fd, name, digest, out, e);
    d.fd = -1;
done:
    if (d.fd >= 0) close(d.fd);
    media_digest_free(&d.digest);
    free(d.out);
    return st;
}

status data_url_source(const char *url, const char *name, const char *dir, uint64_t max, struct media_source *out,
                       struct err *e)
{
    const struct decoder d = { .name = name };
    const char *comma = strchr(url, ',');
    if (!data_url_is(url) || comma == NULL) return broken(&d, "its data: URL has no comma before the bytes", e);
    if (comma - url < 12 || strncasecmp(comma - 7, ";base64", 7) != 0)
        return broken(&d, "its data: URL is not base64: only data:TYPE;base64,... is taken", e);
    return data_base64_source(comma + 1, strlen(comma + 1), name, dir, max, out, e);
}
