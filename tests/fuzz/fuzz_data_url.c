/* Fuzz target: data: URLs and base64 into files. The decoder into memory (model/chat.c) must say the same.
 * Sources: media/data_url.c media/source.c
 * Packages: libavutil */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "media/data_url.h"
#include "model/chat.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

static void check_bytes(struct media_source *s, const uint8_t *want, size_t n)
{
    uint8_t *have = malloc(n + 1);
    PROMISE(s->bytes == n && pread(s->fd, have, n + 1, 0) == (ssize_t)n && memcmp(have, want, n) == 0);
    free(have);
    media_source_close(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *dir = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL;
    struct media_source s;
    struct err e = { .text = "" };
    uint8_t *want = NULL;
    size_t n = 0;
    const status here = data_base64_source((const char *)data, size, "part", dir, 4096, &s, &e);
    const status there = chat_base64((const char *)data, size, 4096, &want, &n, NULL);
    PROMISE((here == OK) == (there == OK));
    PROMISE(here == OK || (e.tag != NULL && e.text[0] != 0));
    if (here == OK) check_bytes(&s, want, n);
    free(want);
    char *url = malloc(size + 1);
    memcpy(url, data, size);
    url[size] = 0;
    if (data_url_source(url, "part", dir, 4096, &s, &e) == OK) media_source_close(&s);
    free(url);
    return 0;
}
