/* http/event.h - the text of server-sent events. Whatever goes in, one event comes out: a client's reader never sees a
 * line end that the writer did not mean. */
#ifndef HTTP_EVENT_H
#define HTTP_EVENT_H

#include <jansson.h>
#include <stddef.h>

/* "data: " + the JSON in one line + "\n\n"; *n bytes, owned. */
char *event_of_json(const json_t *json, size_t *n);

/* ": TEXT\n\n" in out [cap], cap >= 5; line ends in the text become spaces, what does not fit is cut. Returns the bytes. */
size_t event_comment(const char *text, char *out, size_t cap);

#endif
