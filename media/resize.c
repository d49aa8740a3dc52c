/* media/resize.c - the two bicubics of the reference, and pixels to patches.
 * Both: a = -0.5, antialiased. For output o: scale = in / out, fs = max(scale, 1), centre c = (o + 0.5)
 * scale, taps int(c - 2 fs + 0.5) .. int(c + 2 fs + 0.5) - 1 clipped to the picture, weight f((i - c + 0.5) /
 * fs), sum 1; across first, then down. Pictures: weights are whole numbers of 2^-22 and the picture between
 * the passes is 8-bit (Pillow, src/libImaging/Resample.c). Frames: f32 throughout, weights computed in f32
 * too (torch, aten/native/cpu/UpSampleKernel.cpp). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "media/features.h"
#include "media/isa.h"

#define PICTURE_BITS 22                   /* fraction bits of a picture's weights */

typedef float v4 __attribute__((vector_size(16), aligned(4)));
typedef uint8_t u8x4 __attribute__((vector_size(4), aligned(1)));

/* Weights of one direction. */
struct taps {
    uint32_t n_in, n_out, n_max;          /* n_max: the most taps of an output                     */
    uint32_t *first, *count;              /* [n_out]                                               */
    float *weight;                        /* [n_out, n_max]: frames                                */
    int32_t *fixed;                       /* [n_out, n_max]: pictures, in units of 2^-22           */
};

typedef int32_t vi_plain __attribute__((vector_size(16)));
#define ISA_SUFFIX plain
#define ISA_LANES 4
#include "media/resize_isa.h"
#undef ISA_SUFFIX
#undef ISA_LANES

#if MEDIA_HAVE_X86
#pragma GCC push_options
#pragma GCC target("avx2")
typedef int32_t vi_avx2 __attribute__((vector_size(32)));
#define ISA_SUFFIX avx2
#define ISA_LANES 8
#include "media/resize_isa.h"
#undef ISA_SUFFIX
#undef ISA_LANES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
typedef int32_t vi_avx512 __attribute__((vector_size(64)));
#define ISA_SUFFIX avx512
#define ISA_LANES 16
#include "media/resize_isa.h"
#undef ISA_SUFFIX
#undef ISA_LANES
#pragma GCC pop_options
#endif

/* The inner loops of one instruction set. */
struct loops {
    void (*across)(const struct taps *, const float *, float *);
    void (*down)(const float *const *, const float *, uint32_t, size_t, bool, float *);
    void (*widen)(const uint8_t *, size_t, float *);
    void (*patch_row)(const float *, uint32_t, float, float, float *);
};

static const struct loops *loops(void)
{
    static const struct loops table[] = {
        { across_plain, down_plain, widen_plain, patch_row_plain },
#if MEDIA_HAVE_X86
        { across_avx2, down_avx2, widen_avx2, patch_row_avx2 },
        { across_avx512, down_avx512, widen_avx512, patch_row_avx512 },
#endif
    };
    return &table[media_isa()];
}

static void taps_free(struct taps *t)
{
    free(t->first);
    free(t->count);
    free(t->weight);
    free(t->fixed);
    *t = (struct taps){ 0 };
}

static double cubic(double x)
{
    x = fabs(x);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return 0.0;
}

static float cubic_f32(float x)
{
    x = fabsf(x);
    if (x < 1.0f) return (1.5f * x - 2.5f) * x * x + 1.0f;
    if (x < 2.0f) return ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f;
    return 0.0f;
}

static status taps_alloc(struct taps *t, uint32_t n_in, uint32_t n_out, bool picture, struct err *e)
{
    const double fs = n_in > n_out ? (double)n_in / n_out : 1.0;
    *t = (struct taps){ .n_in = n_in, .n_out = n_out, .n_max = 2 * (uint32_t)ceil(2.0 * fs) + 1 };
    status st;
    TRY_GOTO(st, mem_alloc(&t->first, n_out, sizeof *t->first, e), undo);
    TRY_GOTO(st, mem_alloc(&t->count, n_out, sizeof *t->count, e), undo);
    if (picture) TRY_GOTO(st, mem_alloc(&t->fixed, n_out, t->n_max * sizeof *t->fixed, e), undo);
    else TRY_GOTO(st, mem_alloc(&t->weight, n_out, t->n_max * sizeof *t->weight, e), undo);
    return OK;
undo:
    taps_free(t);
    return st;
}

/* As Pillow: weights in f64, then rounded half away from zero to units of 2^-22. */
static status taps_picture(struct taps *t, uint32_t n_in, uint32_t n_out, struct err *e)
{
    TRY(taps_alloc(t, n_in, n_out, true, e));
    double *w;
    status st;
    TRY_GOTO(st, mem_alloc(&w, t->n_max, sizeof *w, e), undo);
    const double scale = (double)n_in / n_out, fs = scale < 1.0 ? 1.0 : scale, support = 2.0 * fs;
    for (uint32_t o = 0; o < n_out; o++) {
        const double c = (o + 0.5) * scale;
        int64_t lo = (int64_t)(c - support + 0.5), hi = (int64_t)(c + support + 0.5);
        if (lo < 0) lo = 0;
        if (hi > n_in) hi = n_in;
        double sum = 0.0;
        for (int64_t i = lo; i < hi; i++) sum += w[i - lo] = cubic((i - c + 0.5) * (1.0 / fs));
        t->first[o] = (uint32_t)lo;
        t->count[o] = (uint32_t)(hi - lo);
        for (uint32_t k = 0; k < t->count[o]; k++) {
            const double v = (sum != 0.0 ? w[k] / sum : w[k]) * (1 << PICTURE_BITS);
            t->fixed[(size_t)o * t->n_max + k] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
        }
    }
    free(w);
    return OK;
undo:
    taps_free(t);
    return st;
}

/* As torch: every step in f32. */
static status taps_frame(struct taps *t, uint32_t n_in, uint32_t n_out, struct err *e)
{
    TRY(taps_alloc(t, n_in, n_out, false, e));
    const float scale = (float)n_in / (float)n_out;
    const float support = scale >= 1.0f ? 2.0f * scale : 2.0f, inv = scale >= 1.0f ? 1.0f / scale : 1.0f;
    for (uint32_t o = 0; o < n_out; o++) {
        const float c = scale * ((float)o + 0.5f);
        int64_t lo = (int64_t)(c - support + 0.5f), hi = (int64_t)(c + support + 0.5f);
        if (lo < 0) lo = 0;
        if (hi > n_in) hi = n_in;
        if (hi - lo > t->n_max) hi = lo + t->n_max;
        float *w = t->weight + (size_t)o * t->n_max, sum = 0.0f;
        for (int64_t i = lo; i < hi; i++)
            sum += w[i - lo] = cubic_f32(((float)(i - lo) + (float)lo - c + 0.5f) * inv);
        for (int64_t i = lo; i < hi && sum != 0.0f; i++) w[i - lo] /= sum;
        t->first[o] = (uint32_t)lo;
        t->count[o] = (uint32_t)(hi - lo);
    }
    return OK;
}

/* ---- pictures ------------------------------------------------------------------------------------------ */

static uint8_t clip8(int32_t v)
{
    v >>= PICTURE_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* One 8-bit pass: n_lines lines of 3-byte pixels; a step of `step` bytes leads to the next tap. */
static void picture_across(const struct taps *t, const uint8_t *src, uint32_t n_rows, uint8_t *dst)
{
    for (uint32_t y = 0; y < n_rows; y++) {
        const uint8_t *row = src + (size_t)y * t->n_in * 3;
        for (uint32_t o = 0; o < t->n_out; o++, dst += 3) {
            const uint8_t *p = row + (size_t)t->first[o] * 3;
            const int32_t *w = t->fixed + (size_t)o * t->n_max;
            int32_t r = 1 << (PICTURE_BITS - 1), g = r, b = r;
            for (uint32_t k = 0; k < t->count[o]; k++, p += 3) {
                r += p[0] * w[k];
                g += p[1] * w[k];
                b += p[2] * w[k];
            }
            dst[0] = clip8(r);
            dst[1] = clip8(g);
            dst[2] = clip8(b);
        }
    }
}

static status picture_down(const struct taps *t, const uint8_t *src, uint32_t width, uint8_t *dst,
                           struct err *e)
{
    const size_t n = (size_t)width * 3;
    int32_t *sum;
    TRY(mem_alloc(&sum, n, sizeof *sum, e));
    for (uint32_t o = 0; o < t->n_out; o++, dst += n) {
        const int32_t *w = t->fixed + (size_t)o * t->n_max;
        for (size_t i = 0; i < n; i++) sum[i] = 1 << (PICTURE_BITS - 1);
        for (uint32_t k = 0; k < t->count[o]; k++) {
            const uint8_t *p = src + (t->first[o] + k) * n;
            for (size_t i = 0; i < n; i++) sum[i] += p[i] * w[k];
        }
        for (size_t i = 0; i < n; i++) dst[i] = clip8(sum[i]);
    }
    free(sum);
    return OK;
}

status media_resize_image(const uint8_t *src, uint32_t h, uint32_t w, uint8_t *dst, uint32_t oh, uint32_t ow,
                          struct err *e)
{
    struct taps across = { 0 }, down = { 0 };
    uint8_t *between = NULL;
    status st = OK;
    const bool wide = ow != w, high = oh != h;
    if (!wide && !high) memcpy(dst, src, (size_t)h * w * 3);
    if (wide) TRY_GOTO(st, taps_picture(&across, w, ow, e), done);
    if (high) TRY_GOTO(st, taps_picture(&down, h, oh, e), done);
    if (wide && high) TRY_GOTO(st, mem_alloc(&between, (size_t)h * ow, 3, e), done);
    if (wide) picture_across(&across, src, h, high ? between : dst);
    if (high) st = picture_down(&down, wide ? between : src, ow, dst, e);
done:
    taps_free(&across);
    taps_free(&down);
    free(between);
    return st;
}

/* ---- frames -------------------------------------------------------------------------------------------- */

struct media_resizer {
    uint32_t h, w, oh, ow;
    struct taps across, down;             /* empty where a side stays as it is                            */
    float *wide;                          /* [w, 4]: one source row widened                               */
    float *ring;                          /* [n_ring, ow, 4]: rows after the first pass                   */
    uint32_t n_ring;
    const float **row;                    /* [n_ring]: the rows under one output row                      */
};

status media_resizer_create(uint32_t h, uint32_t w, uint32_t oh, uint32_t ow, struct media_resizer **out,
                            struct err *e)
{
    struct media_resizer *r;
    status st;
    if (h == 0 || w == 0 || oh == 0 || ow == 0)
        return err_set(e, E_ARG, "cannot resize %u x %u pixels to %u x %u", w, h, ow, oh);
    TRY(mem_alloc(&r, 1, sizeof *r, e));
    *r = (struct media_resizer){ .h = h, .w = w, .oh = oh, .ow = ow };
    if (ow != w) TRY_GOTO(st, taps_frame(&r->across, w, ow, e), undo);
    if (oh != h) TRY_GOTO(st, taps_frame(&r->down, h, oh, e), undo);
    r->n_ring = oh != h ? r->down.n_max : 1;
    TRY_GOTO(st, mem_alloc(&r->wide, w, 4 * sizeof *r->wide, e), undo);
    TRY_GOTO(st, mem_alloc_aligned(&r->ring, (size_t)r->n_ring * ow * 4 * sizeof *r->ring, e), undo);
    TRY_GOTO(st, mem_alloc(&r->row, r->n_ring, sizeof *r->row, e), undo);
    *out = r;
    return OK;
undo:
    media_resizer_destroy(&r);
    return st;
}

void media_resizer_destroy(struct media_resizer **r)
{
    if (*r == NULL) return;
    taps_free(&(*r)->across);
    taps_free(&(*r)->down);
    free((*r)->wide);
    free((*r)->ring);
    free((*r)->row);
    free(*r);
    *r = NULL;
}

/* Source row y, widened and resized across, into dst [ow, 4]. Exactly one of rgb and f32 is given. */
static void first_pass(struct media_resizer *r, const uint8_t *rgb, const float *f32, uint32_t y, float *dst)
{
    const struct loops *l = loops();
    const float *src = f32 != NULL ? f32 + (size_t)y * r->w * 4 : r->wide;
    if (f32 == NULL) l->widen(rgb + (size_t)y * r->w * 3, r->w, r->ow == r->w ? dst : r->wide);
    if (r->ow != r->w) l->across(&r->across, src, dst);
    else if (f32 != NULL) memcpy(dst, src, (size_t)r->w * 4 * sizeof *dst);
}

static void resize(struct media_resizer *r, const uint8_t *rgb, const float *f32, bool whole, float *dst)
{
    const struct loops *l = loops();
    const size_t n = (size_t)r->ow * 4;
    const float one = 1.0f;
    uint32_t made = 0;                    /* source rows already in the ring */
    for (uint32_t y = 0; y < r->oh; y++, dst += n) {
        const uint32_t first = r->oh != r->h ? r->down.first[y] : y;
        const uint32_t count = r->oh != r->h ? r->down.count[y] : 1;
        if (made < first) made = first;
        for (; made < first + count; made++) first_pass(r, rgb, f32, made, r->ring + made % r->n_ring * n);
        for (uint32_t k = 0; k < count; k++) r->row[k] = r->ring + (first + k) % r->n_ring * n;
        l->down(r->row, r->oh != r->h ? r->down.weight + (size_t)y * r->down.n_max : &one, count, n, whole,
                dst);
    }
}

void media_resize_frame(struct media_resizer *r, const uint8_t *src, float *dst)
{
    if (r->h == r->oh && r->w == r->ow) media_widen(src, (size_t)r->h * r->w, dst);
    else resize(r, src, NULL, true, dst);
}

void media_resize_again(struct media_resizer *r, const float *src, float *dst)
{
    resize(r, NULL, src, false, dst);
}

void media_widen(const uint8_t *rgb, size_t n, float *out) { loops()->widen(rgb, n, out); }

/* ---- patches ------------------------------------------------------------------------------------------- */

void media_patches_write(const struct media_vision *v, const float *const *frame, uint32_t height,
                         uint32_t width, float *out)
{
    const struct loops *l = loops();
    const uint32_t p = v->patch, m = v->merge, area = p * p;
    float shift[3], scale[3];
    for (int c = 0; c < 3; c++) {
        shift[c] = v->mean[c] * 255.0f;
        scale[c] = 1.0f / (v->std[c] * 255.0f);
    }
    for (uint32_t by = 0; by < height / p / m; by++)
        for (uint32_t bx = 0; bx < width / p / m; bx++)
            for (uint32_t in = 0; in < m * m; in++) {
                const uint32_t y0 = (by * m + in / m) * p, x0 = (bx * m + in % m) * p;
                for (uint32_t c = 0; c < 3; c++)
                    for (uint32_t f = 0; f < v->temporal; f++, out += area)
                        for (uint32_t y = 0; y < p; y++)
                            l->patch_row(frame[f] + ((size_t)(y0 + y) * width + x0) * 4 + c, p, shift[c],
                                         scale[c], out + y * p);
            }
}
