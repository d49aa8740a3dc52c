/* http/multipart.h - multipart/form-data (RFC 7578) as it streams in: bytes in any pieces, parts out. No sockets, no
 * files; memory is one part header and one delimiter, whatever the parts hold.
 *
 * Errors are E_ARG, tag invalid_multipart: no boundary or one over 70 bytes, more than 64 parts, a part header over
 * 8 KiB, a part without a name, a transfer encoding, the end missing. */
#ifndef HTTP_MULTIPART_H
#define HTTP_MULTIPART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MULTIPART_BOUNDARY_MAX 70
#define MULTIPART_PARTS_MAX 64
#define MULTIPART_HEADER_MAX (8u << 10)

struct multipart;

/* Where parts go. Each may refuse; the error ends the parse. Strings live for the call. */
struct multipart_sink {
    void *self;
    status (*begin)(void *self, const char *name, const char *filename, const char *content_type, struct err *e);
    status (*data)(void *self, const char *bytes, size_t n, struct err *e);
    status (*end)(void *self, struct err *e);
};

/* content_type: the header's value, with its boundary. */
status multipart_create(const char *content_type, const struct multipart_sink *sink, struct multipart **out,
                        struct err *e);
void multipart_free(struct multipart **m);

status multipart_feed(struct multipart *m, const char *bytes, size_t n, struct err *e);
/* All bytes were fed: was it whole? */
status multipart_finish(struct multipart *m, struct err *e);

/* A parameter of a header value: `form-data; name="x"` and "name" -> x, unquoted, to out [cap]. False: it is not there,
 * does not fit or is malformed. */
bool multipart_parameter(const char *value, const char *name, char *out, size_t cap);

#endif
