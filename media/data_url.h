/* media/data_url.h - data: URLs (RFC 2397, base64 alone) straight into a file of the spool, a piece at a time, so that
 * half a gigabyte of text does not become another half of heap. */
#ifndef MEDIA_DATA_URL_H
#define MEDIA_DATA_URL_H

#include <stdbool.h>

#include "media/extract.h"

bool data_url_is(const char *url);

/* n characters of base64: either alphabet, white space between them, padding or not. E_ARG, tag invalid_value: anything
 * else, or nothing at all. E_INPUT, tag media_too_large: more than max bytes (0: 2 GiB). E_IO. *out is owned. */
status data_base64_source(const char *text, size_t n, const char *name, const char *dir, uint64_t max,
                          struct media_source *out, struct err *e);

/* "data:[type][;parameter]...;base64,...": as above, also E_ARG where it is not of this form. */
status data_url_source(const char *url, const char *name, const char *dir, uint64_t max, struct media_source *out,
                       struct err *e);

#endif
