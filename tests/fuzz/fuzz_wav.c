/* Fuzz target: a WAV file (and whatever else the bytes become) through the reader of sound, as the child opens it: what it
 * says of itself may be anything, what comes out is samples or an error.
 * Sources: media/open.c media/audio.c
 * Packages: libavformat libavcodec libswresample libavutil */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "media/media.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static float buf[4096];
    struct media *m = NULL;
    struct media_audio *a = NULL;
    struct err e = { .text = "" };
    const struct media_audio_options o = { .keep_time = size % 2 };
    status st = media_open_memory(data, size, "fuzz", &m, &e);
    PROMISE(st == OK || ((st == E_INPUT || st == E_NOMEM) && strncmp(e.text, "fuzz: ", 6) == 0));
    if (st == OK) st = media_audio_open(m, &o, &a, &e);
    size_t n = 1;
    for (int i = 0; st == OK && n > 0 && i < 64; i++) {
        st = media_audio_read(a, buf, sizeof buf / sizeof *buf, &n, &e);
        PROMISE(n <= sizeof buf / sizeof *buf);
    }
    PROMISE(st == OK || e.text[0] != 0);
    media_audio_close(&a);
    media_close(&m);
    return 0;
}
