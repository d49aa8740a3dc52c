/* http/event.c - see event.h. */
#include "http/event.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define JSON_FLAGS (JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15))

char *event_of_json(const json_t *json, size_t *n)
{
    /* Compact JSON holds no line end: inside strings they are escaped. */
    const size_t size = json_dumpb(json, NULL, 0, JSON_FLAGS);
    char *out = mem_must(size + 9, 1);
    memcpy(out, "data: ", 6);
    if (json_dumpb(json, out + 6, size, JSON_FLAGS) != size) abort();
    memcpy(out + 6 + size, "\n\n", 2);
    *n = size + 8;
    return out;
}

size_t event_comment(const char *text, char *out, size_t cap)
{
    size_t n = 0;
    out[n++] = ':';
    out[n++] = ' ';
    for (; *text && n + 2 < cap; text++) out[n++] = *text == '\n' || *text == '\r' ? ' ' : *text;
    out[n++] = '\n';
    out[n++] = '\n';
    return n;
}
