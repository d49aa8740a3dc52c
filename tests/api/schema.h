/* tests/api/schema.h - does a JSON value follow a schema of the OpenAPI description? The keywords that the description uses;
 * an unknown one is a failure, so that nothing is passed over. */
#ifndef TEST_SCHEMA_H
#define TEST_SCHEMA_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* why: place and reason where it does not. */
bool schema_follows(const json_t *openapi, const json_t *schema, const json_t *v, char *why, size_t cap);

#endif
