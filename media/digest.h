/* media/digest.h - SHA-256, through libavutil. For keys that must not fit by accident: journals, caches. */
#ifndef MEDIA_DIGEST_H
#define MEDIA_DIGEST_H

#include <stddef.h>

#include "base/err.h"

#define MEDIA_DIGEST_TEXT 65       /* 64 hexadecimal digits and a NUL */

struct media_digest;

/* *out is owned until media_digest_end or media_digest_free. */
status media_digest_begin(struct media_digest **out, struct err *e);
void media_digest_add(struct media_digest *d, const void *bytes, size_t n);
/* The digits; frees *d. */
void media_digest_end(struct media_digest **d, char text[MEDIA_DIGEST_TEXT]);
void media_digest_free(struct media_digest **d);

/* Add all bytes of a file, read in pieces; `stop` (may be NULL) is asked after each, true ends it with E_CANCELLED.
 * E_INPUT: it cannot be read. */
status media_digest_add_file(struct media_digest *d, const char *path, int (*stop)(void *self), void *self,
                             struct err *e);

#endif
