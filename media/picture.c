/* media/picture.c - still pictures to RGB8 as the reference's loader has them: Pillow's modes.
 *   RGBA (PNG of colour type 6, or 4 with 16 bits, WebP, ...)  composed on white
 *   other transparency (grey + alpha, tRNS, palettes)          dropped
 *   16 bits a channel                                          the high byte; grey alone is cut off at 255
 *   JPEG      libjpeg-turbo's triangle-filter chroma and YCbCr; FFmpeg's inverse DCT does rows first, libjpeg
 *             columns, so that some 5 % of the values differ by 1, a few by up to 3
 *   WebP      libwebp's chroma filter and YUV, bit-equal
 * What is left (subsampled TIFF, CMYK) goes through libswscale and may differ by some levels. */
#include <libavutil/pixdesc.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "media/libav.h"
#include "media/picture.h"

static uint8_t clamp8(int v) { return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v); }

/* c over white. */
static uint8_t on_white(unsigned c, unsigned alpha)
{
    const unsigned t = c * alpha + 255 * (255 - alpha) + 128;
    return (uint8_t)(((t >> 8) + t) >> 8);
}

/* ---- WebP ---------------------------------------------------------------------------------------------- */

/* Chroma of pixel x of a line from its own chroma row and the one on its other side: libwebp's
 * dsp/upsampling.c. */
static int webp_chroma(const uint8_t *near, const uint8_t *far, int n, int x)
{
    const int i = x / 2, j = x % 2 ? i + 1 : i - 1;
    if (j < 0 || j >= n) return (3 * near[i] + far[i] + 2) >> 2;
    return (((near[i] + 3 * near[j] + 3 * far[i] + far[j] + 8) >> 3) + near[i]) >> 1;
}

static uint8_t webp_clip(int v) { return (uint8_t)(v < 0 ? 0 : v >= 1 << 14 ? 255 : v >> 6); }

static void webp_rgb(const AVFrame *f, uint8_t *rgb)
{
    const int w = f->width, h = f->height, cw = (w + 1) / 2, ch = (h + 1) / 2;
    for (int y = 0; y < h; y++) {
        const uint8_t *luma = f->data[0] + y * (ptrdiff_t)f->linesize[0];
        const int i = y / 2;
        int j = y % 2 ? i + 1 : i - 1;
        j = j < 0 ? 0 : j >= ch ? ch - 1 : j;
        const ptrdiff_t su = f->linesize[1], sv = f->linesize[2];
        for (int x = 0; x < w; x++, rgb += 3) {
            const int u = webp_chroma(f->data[1] + i * su, f->data[1] + j * su, cw, x);
            const int v = webp_chroma(f->data[2] + i * sv, f->data[2] + j * sv, cw, x);
            const int l = luma[x] * 19077 >> 8;
            rgb[0] = webp_clip(l + (v * 26149 >> 8) - 14234);
            rgb[1] = webp_clip(l - (u * 6419 >> 8) - (v * 13320 >> 8) + 8708);
            rgb[2] = webp_clip(l + (u * 33050 >> 8) - 17685);
        }
    }
}

/* ---- JPEG ---------------------------------------------------------------------------------------------- */

/* One chroma row at full width. near, far: the chroma row of this line and the one that its other half lies
 * towards (equal where rows are not subsampled); low: rounding of the upper (1) or lower line.
 * libjpeg-turbo's jdsample.c. */
static void chroma_row(const uint8_t *near, const uint8_t *far, int n, bool wide, bool high, bool upper,
                       int width, uint8_t *out)
{
    if (!wide && !high) {
        memcpy(out, near, (size_t)width);
    } else if (!wide) {
        for (int x = 0; x < width; x++) out[x] = (uint8_t)((near[x] * 3 + far[x] + (upper ? 1 : 2)) >> 2);
    } else if (n <= 2) {                          /* too narrow for the filter: repeated */
        for (int x = 0; x < width; x++) out[x] = near[x / 2];
    } else {
        for (int x = 0; x < width; x++) {
            const int i = x / 2, j = x % 2 ? (i + 1 < n ? i + 1 : i) : (i > 0 ? i - 1 : i);
            if (high) {
                const int here = near[i] * 3 + far[i], there = near[j] * 3 + far[j];
                out[x] = (uint8_t)((here * 3 + there + (x % 2 ? 7 : 8)) >> 4);
            } else {
                out[x] = j == i ? near[i] : (uint8_t)((near[i] * 3 + near[j] + (x % 2 ? 2 : 1)) >> 2);
            }
        }
    }
}

/* YCbCr of full range, subsampled by at most 2 each way, to RGB. */
static status jpeg_rgb(const AVFrame *f, bool wide, bool high, uint8_t *rgb, struct err *e)
{
    const int w = f->width, h = f->height, cw = wide ? (w + 1) / 2 : w, ch = high ? (h + 1) / 2 : h;
    uint8_t *row;
    TRY(mem_alloc(&row, 2, (size_t)w, e));
    for (int y = 0; y < h; y++) {
        const int i = high ? y / 2 : y;
        int j = !high ? i : y % 2 ? i + 1 : i - 1;
        j = j < 0 ? 0 : j >= ch ? ch - 1 : j;
        for (int p = 1; p <= 2; p++) {
            const uint8_t *plane = f->data[p];
            const ptrdiff_t stride = f->linesize[p];
            const bool repeat = wide && high && cw <= 2;
            chroma_row(plane + i * stride, plane + (repeat ? i : j) * stride, cw, wide, high, y % 2 == 0, w,
                       row + (p - 1) * (ptrdiff_t)w);
        }
        const uint8_t *luma = f->data[0] + y * (ptrdiff_t)f->linesize[0];
        for (int x = 0; x < w; x++, rgb += 3) {
            const int l = luma[x], cb = row[x] - 128, cr = row[w + x] - 128;
            rgb[0] = clamp8(l + ((91881 * cr + 32768) >> 16));                /* 1.40200 in 2^-16 */
            rgb[1] = clamp8(l + ((-22554 * cb - 46802 * cr + 32768) >> 16));  /* 0.34414, 0.71414 */
            rgb[2] = clamp8(l + ((116130 * cb + 32768) >> 16));               /* 1.77200          */
        }
    }
    free(row);
    return OK;
}

/* ---- everything else ----------------------------------------------------------------------------------- */

/* Pixel x of a line in one of the packed formats that PNG and its kin decode to; *alpha stays where there is
 * none. rgba: Pillow would read the file as RGBA (16-bit grey is cut off otherwise). */
static bool packed_pixel(enum AVPixelFormat format, const uint8_t *line, int x, bool rgba, uint8_t rgb[3],
                         uint8_t *alpha)
{
    const uint8_t *p;
    switch (format) {
    case AV_PIX_FMT_RGB24: memcpy(rgb, line + 3 * x, 3); return true;
    case AV_PIX_FMT_RGBA: memcpy(rgb, line + 4 * x, 3); *alpha = line[4 * x + 3]; return true;
    case AV_PIX_FMT_BGRA:
        p = line + 4 * x;
        rgb[0] = p[2], rgb[1] = p[1], rgb[2] = p[0], *alpha = p[3];
        return true;
    case AV_PIX_FMT_ARGB: memcpy(rgb, line + 4 * x + 1, 3); *alpha = line[4 * x]; return true;
    case AV_PIX_FMT_GRAY8: rgb[0] = rgb[1] = rgb[2] = line[x]; return true;
    case AV_PIX_FMT_YA8: rgb[0] = rgb[1] = rgb[2] = line[2 * x]; *alpha = line[2 * x + 1]; return true;
    case AV_PIX_FMT_MONOBLACK:
        rgb[0] = rgb[1] = rgb[2] = line[x / 8] >> (7 - x % 8) & 1 ? 255 : 0;
        return true;
    case AV_PIX_FMT_MONOWHITE:
        rgb[0] = rgb[1] = rgb[2] = line[x / 8] >> (7 - x % 8) & 1 ? 0 : 255;
        return true;
    case AV_PIX_FMT_GRAY16BE: rgb[0] = rgb[1] = rgb[2] = line[2 * x] ? 255 : line[2 * x + 1]; return true;
    case AV_PIX_FMT_YA16BE:
        rgb[0] = rgb[1] = rgb[2] = rgba || line[4 * x] == 0 ? line[4 * x + !rgba] : 255;
        *alpha = line[4 * x + 2];
        return true;
    case AV_PIX_FMT_RGB48BE: for (int c = 0; c < 3; c++) rgb[c] = line[6 * x + 2 * c]; return true;
    case AV_PIX_FMT_RGBA64BE:
        for (int c = 0; c < 3; c++) rgb[c] = line[8 * x + 2 * c];
        *alpha = line[8 * x + 6];
        return true;
    default: return false;
    }
}

/* Planar YUV: by the rules of its codec, else by libswscale. */
static status planar_rgb(const struct media *m, const AVFrame *f, const AVPixFmtDescriptor *d,
                         enum AVCodecID codec, uint8_t *rgb, struct err *e)
{
    struct to_rgb c = { 0 };
    const bool yuv8 = d->nb_components >= 3 && !(d->flags & AV_PIX_FMT_FLAG_RGB) && d->comp[0].depth == 8;
    if (yuv8 && codec == AV_CODEC_ID_MJPEG && d->log2_chroma_w < 2 && d->log2_chroma_h < 2)
        return jpeg_rgb(f, d->log2_chroma_w, d->log2_chroma_h, rgb, e);
    if (yuv8 && codec == AV_CODEC_ID_WEBP && d->log2_chroma_w == 1 && d->log2_chroma_h == 1) {
        webp_rgb(f, rgb);
        return OK;
    }
    const status st = to_rgb_run(&c, m, f, rgb, e);
    to_rgb_free(&c);
    return st;
}

status picture_rgb(const struct media *m, const AVFrame *f, enum AVCodecID codec, bool rgba, uint8_t *rgb,
                   struct err *e)
{
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(f->format);
    uint8_t px[3], alpha = 255;
    if (d == NULL) return err_set(e, E_INPUT, "%s: the picture has unknown pixels", m->name);
    const uint32_t *palette = f->format == AV_PIX_FMT_PAL8 ? (const uint32_t *)f->data[1] : NULL;
    const bool packed = palette != NULL || packed_pixel(f->format, f->data[0], 0, rgba, px, &alpha);
    if (!packed) TRY(planar_rgb(m, f, d, codec, rgb, e));
    const bool alpha_plane = !packed && (d->flags & AV_PIX_FMT_FLAG_ALPHA) && d->comp[3].plane == 3 &&
                             d->comp[3].depth == 8;
    if (!packed && !(rgba && alpha_plane)) return OK;
    for (int y = 0; y < f->height; y++) {
        const uint8_t *line = f->data[0] + y * (ptrdiff_t)f->linesize[0];
        for (int x = 0; x < f->width; x++, rgb += 3) {
            alpha = 255;
            if (palette != NULL) {
                const uint32_t c = palette[line[x]];
                px[0] = (uint8_t)(c >> 16), px[1] = (uint8_t)(c >> 8), px[2] = (uint8_t)c;
            } else if (packed) {
                packed_pixel(f->format, line, x, rgba, px, &alpha);
            } else {
                memcpy(px, rgb, 3);
                alpha = f->data[3][y * (ptrdiff_t)f->linesize[3] + x];
            }
            for (int c = 0; c < 3; c++) rgb[c] = rgba ? on_white(px[c], alpha) : px[c];
        }
    }
    return OK;
}
