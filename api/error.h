/* api/error.h - errors on the wire: docs/http-api.md 2.1 and 2.2. */
#ifndef API_ERROR_H
#define API_ERROR_H

#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"

/* From e->tag, else from e->code. retry_after: seconds of Retry-After, 0: none; no_retry: x-should-retry: false. */
struct api_error { int status; const char *type, *code; int retry_after; bool no_retry; };
struct api_error api_error_of(const struct err *e);

/* The literal that is equal to a tag that came as bytes; one that is no code of the wire becomes "engine_error". */
const char *api_error_tag(const char *tag);

/* {"error":{"message","type","param","code"}}; the caller owns the reference. */
json_t *api_error_json(const struct err *e);

#endif
