/* tests/bare/media.c - in place of the files of media/ that need FFmpeg, on a machine that lacks its headers: every file and
 * every picture is refused in words; digests are the same. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "media/digest.h"
#include "media/extract.h"
#include "media/media.h"

static status none(const char *name, struct err *e)
{
    return err_set(e, E_INPUT, "%s: this build has no FFmpeg and reads no media", name ? name : "media");
}

status media_open(const char *path, struct media **out, struct err *e) { (void)out; return none(path, e); }
status media_open_memory(const void *bytes, size_t n, const char *name, struct media **out, struct err *e)
{
    (void)bytes, (void)n, (void)out;
    return none(name, e);
}
void media_close(struct media **m) { *m = NULL; }
const struct media_info *media_info(const struct media *m)
{
    static const struct media_info nothing;
    (void)m;
    return &nothing;
}
const char *media_warning(const struct media *m) { (void)m; return NULL; }
status media_audio_load(struct media *m, const struct media_audio_options *o, size_t max, float **samples, size_t *n, struct err *e)
{
    (void)m, (void)o, (void)max, (void)samples, (void)n;
    return none(NULL, e);
}
status media_image_load(struct media *m, const struct media_image_options *o, struct media_patches *out, struct err *e)
{
    (void)m, (void)o, (void)out;
    return none(NULL, e);
}
status media_video_open(struct media *m, const struct media_video_options *o, struct media_video **out, struct err *e)
{
    (void)m, (void)o, (void)out;
    return none(NULL, e);
}
const struct media_video_plan *media_video_get_plan(const struct media_video *v)
{
    static const struct media_video_plan nothing;
    (void)v;
    return &nothing;
}
status media_video_next(struct media_video *v, float *patches, struct err *e) { (void)v, (void)patches; return none(NULL, e); }
void media_video_close(struct media_video **v) { *v = NULL; }
status media_video_load(struct media *m, const struct media_video_options *o, struct media_patches *out, struct media_video_plan *plan,
                        struct err *e)
{
    (void)m, (void)o, (void)out, (void)plan;
    return none(NULL, e);
}
void media_source_close(struct media_source *s) { (void)s; }
void extract_free(struct extract *x) { (void)x; }
status extract_probe(const struct media_source *s, const struct extract_limits *l, struct media_info *out, struct err *e)
{
    (void)s, (void)l, (void)out;
    return none(NULL, e);
}
status extract_run(const struct media_source *s, uint32_t n, const struct extract_options *o, const struct extract_limits *l,
                   struct extract *out, struct err *e)
{
    (void)s, (void)n, (void)o, (void)l, (void)out;
    return none(NULL, e);
}

/* ---- SHA-256 (FIPS 180-4) ----------------------------------------------------------------------------- */

struct media_digest { uint32_t h[8]; uint8_t block[64]; uint64_t n; };

static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* The first 32 bits behind the point of the root of the i-th prime: square roots start the sum, cube roots its rounds. */
static void constants(uint32_t h[8], uint32_t k[64])
{
    for (int i = 0, p = 2; i < 64; p++) {
        bool prime = true;
        for (int d = 2; d * d <= p; d++) prime &= p % d != 0;
        if (!prime) continue;
        for (int root = 2; root <= 3; root++) {
            if (root == 2 && i >= 8) continue;
            unsigned __int128 lo = 0, hi = (unsigned __int128)1 << 36;      /* r^root <= p 2^(32 root) */
            while (hi - lo > 1) {
                const unsigned __int128 mid = (lo + hi) / 2, limit = (unsigned __int128)p << (32 * root);
                if ((root == 2 ? mid * mid : mid * mid * mid) <= limit) lo = mid;
                else hi = mid;
            }
            *(root == 2 ? &h[i] : &k[i]) = (uint32_t)lo;
        }
        i++;
    }
}

static void take_block(struct media_digest *d)
{
    static _Thread_local uint32_t first[8], k[64];
    uint32_t w[64], s[8];
    if (k[0] == 0) constants(first, k);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 4; j++) w[i] = (j ? w[i] << 8 : 0) | d->block[4 * i + j];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
               (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, d->h, sizeof s);
    for (int i = 0; i < 64; i++) {
        const uint32_t a = s[0], e = s[4];
        const uint32_t t1 = s[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
        const uint32_t t2 = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) d->h[i] += s[i];
}

status media_digest_begin(struct media_digest **out, struct err *e)
{
    uint32_t k[64];
    TRY(mem_alloc(out, 1, sizeof **out, e));
    constants((*out)->h, k);
    return OK;
}
void media_digest_add(struct media_digest *d, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        d->block[d->n++ % 64] = ((const uint8_t *)bytes)[i];
        if (d->n % 64 == 0) take_block(d);
    }
}
void media_digest_end(struct media_digest **out, char text[MEDIA_DIGEST_TEXT])
{
    struct media_digest *d = *out;
    const uint64_t bits = 8 * d->n;
    uint8_t end[8];
    for (int i = 0; i < 8; i++) end[i] = (uint8_t)(bits >> (56 - 8 * i));
    media_digest_add(d, "\x80", 1);
    while (d->n % 64 != 56) media_digest_add(d, "", 1);
    media_digest_add(d, end, 8);
    for (int i = 0; i < 8; i++) snprintf(text + 8 * i, 9, "%08x", d->h[i]);
    media_digest_free(out);
}
void media_digest_free(struct media_digest **d)
{
    free(*d);
    *d = NULL;
}
