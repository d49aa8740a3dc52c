/* http/reader.h - requests out of a byte stream, strictly: HTTP/1.0 and 1.1 as RFC 9112 has them and nothing looser,
 * because what two readers understand differently is how requests are smuggled. Bytes in, events out; no sockets.
 *
 *   the head      gathered whole, each byte checked as it comes, then read by the parser library and checked again
 *   the body      told in pieces that point into the caller's bytes; chunked coding is taken off, trailers are dropped
 *
 * Refused (E_ARG, tag invalid_http): bare CR or LF, NUL and other control characters, folded lines, space before the
 * colon, Content-Length twice or not a number or beside Transfer-Encoding, a coding that is not exactly "chunked",
 * Host missing (1.1) or twice, versions that are not 1.0 or 1.1, broken percent escapes or %00 in the target.
 * Too much of something (the limits below): E_ARG, tag headers_too_large. */
#ifndef HTTP_READER_H
#define HTTP_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* docs/http-api.md 2.4 */
#define READER_LINE_MAX (8u << 10)         /* the request line; one header */
#define READER_BLOCK_MAX (32u << 10)       /* all headers */
#define READER_HEADERS_MAX 100
#define READER_CHUNK_EXTRA_MAX (16u << 10) /* chunk extensions and trailers of one body */

struct reader;

struct reader_header { const char *name, *value; };   /* name in lower case; value without space around it */

struct reader_head {
    char *text;                    /* owned: all strings point into it. NULL: there is no head */
    const char *method;            /* one that the library knows, upper case */
    char *path;                    /* starts with '/', still escaped; "*" for OPTIONS * */
    char *query;                   /* what follows '?', still escaped, or NULL */
    const char *host;              /* Host, or what the target says; "" where a 1.0 client sent none */
    int minor;                     /* HTTP/1.minor */
    struct reader_header header[READER_HEADERS_MAX];
    size_t n_headers;
    bool keep_alive;               /* what the client wants */
    bool chunked, has_length;      /* how the body is framed; neither: there is none */
    uint64_t length;
    bool expects_continue;
};

enum reader_event {
    READER_MORE,                   /* all bytes were used, more are needed */
    READER_HEAD,                   /* reader_take_head has it; go on for the body */
    READER_BODY,                   /* a piece of the body */
    READER_END,                    /* the request is over; the next one starts with the next byte */
    READER_BAD                     /* *e says why; the stream cannot be read on */
};

struct reader *reader_create(void);
void reader_free(struct reader **r);

/* The next event in n bytes. *used: how many of them are done with. READER_BODY: *piece, *n_piece point into bytes. */
enum reader_event reader_next(struct reader *r, const char *bytes, size_t n, size_t *used, const char **piece,
                              size_t *n_piece, struct err *e);

/* Nothing of the next request has come yet. */
bool reader_idle(const struct reader *r);

/* After READER_HEAD, once: moves the head to the caller, who frees it. */
void reader_take_head(struct reader *r, struct reader_head *out);
void reader_head_free(struct reader_head *h);

/* The value of a header, or NULL; of several of one name the first. */
const char *reader_header(const struct reader_head *h, const char *lower_case_name);

/* Undo %XX in place (and '+' where plus is true); returns the new length. The escapes were checked by the reader. */
size_t reader_unescape(char *s, bool plus);

#endif
