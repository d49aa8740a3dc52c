/* Fuzz target: the writer of server-sent events. Any text as the value of an event, or as a comment: one event comes out,
 * it holds no other line end, and a reader gets the same value back. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "http/event.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

static void one_event(const char *text, size_t n)
{
    PROMISE(n >= 4 && memcmp(text + n - 2, "\n\n", 2) == 0);
    PROMISE(memchr(text, '\n', n - 2) == NULL && memchr(text, '\r', n) == NULL && memchr(text, '\0', n) == NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *value = json_stringn((const char *)data, size);
    if (value) {
        size_t n;
        json_t *event = json_pack("{s:O,s:[O]}", "a", value, "b", value);
        char *text = event_of_json(event, &n);
        one_event(text, n);
        PROMISE(memcmp(text, "data: ", 6) == 0);
        json_t *back = json_loadb(text + 6, n - 8, JSON_ALLOW_NUL, NULL);
        PROMISE(back && json_equal(back, event));
        json_decref(back);
        json_decref(event);
        free(text);
    }
    json_decref(value);
    char *copy = malloc(size + 1), out[64];
    PROMISE(copy != NULL);
    if (size) memcpy(copy, data, size);
    copy[size] = '\0';
    const size_t n = event_comment(copy, out, size % 60 + 5);
    PROMISE(n <= size % 60 + 5 && out[0] == ':');
    one_event(out, n);
    free(copy);
    return 0;
}
