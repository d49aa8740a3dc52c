/* media/rgb.c - decoded frames to RGB8 by libswscale with its default flags. The matrix (601, 709, ...) and
 * the range are the stream's; 601 and limited where it does not say. The reference is PyAV on FFmpeg 8: 8-bit
 * 4:2:0 and 4:2:2 of even height have a direct converter of the same values in all versions; the others
 * interpolate chroma, which before libswscale 9 places the rows of the bilinear filter half a row too low.
 * There a Gaussian of exponent 3.4, whose taps at 1/4 and 3/4 are within 0.03 of the right ones, takes its
 * place (mean error 0.3 of 255 in place of 2.4). */
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "media/libav.h"

/* Where chroma sits between luma samples, in 1/256 of the way to the next: swscale's own unit. */
static int chroma_x(enum AVChromaLocation l)
{
    return l == AVCHROMA_LOC_LEFT || l == AVCHROMA_LOC_TOPLEFT || l == AVCHROMA_LOC_BOTTOMLEFT ? 0 : 128;
}

static int chroma_y(enum AVChromaLocation l)
{
    return l == AVCHROMA_LOC_TOPLEFT || l == AVCHROMA_LOC_TOP ? 0
         : l == AVCHROMA_LOC_BOTTOMLEFT || l == AVCHROMA_LOC_BOTTOM ? 256 : 128;
}

static struct SwsContext *converter(const AVFrame *f)
{
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(f->format);
    struct SwsContext *s = sws_alloc_context();
    if (s == NULL || d == NULL) return s;
    const bool direct = d->comp[0].depth == 8 && f->height % 2 == 0;
    const bool gauss = LIBSWSCALE_VERSION_MAJOR < 9 && d->log2_chroma_h > 0 && !direct;
    av_opt_set_int(s, "srcw", f->width, 0);
    av_opt_set_int(s, "srch", f->height, 0);
    av_opt_set_int(s, "src_format", f->format, 0);
    av_opt_set_int(s, "dstw", f->width, 0);
    av_opt_set_int(s, "dsth", f->height, 0);
    av_opt_set_int(s, "dst_format", AV_PIX_FMT_RGB24, 0);
    av_opt_set_int(s, "sws_flags", gauss ? SWS_GAUSS : SWS_BILINEAR, 0);
    if (gauss) av_opt_set_double(s, "param0", 3.4, 0);
    if (d->log2_chroma_w > 0) av_opt_set_int(s, "src_h_chr_pos", chroma_x(f->chroma_location), 0);
    if (d->log2_chroma_h > 0) av_opt_set_int(s, "src_v_chr_pos", chroma_y(f->chroma_location), 0);
    if (sws_init_context(s, NULL, NULL) < 0) {
        sws_freeContext(s);
        return NULL;
    }
    int *inverse, *table, from, to, brightness, contrast, saturation;
    if (sws_getColorspaceDetails(s, &inverse, &from, &table, &to, &brightness, &contrast, &saturation) >= 0) {
        if (f->color_range == AVCOL_RANGE_JPEG) from = 1;
        if (f->color_range == AVCOL_RANGE_MPEG) from = 0;
        sws_setColorspaceDetails(s, sws_getCoefficients((int)f->colorspace), from, table, to, brightness,
                                 contrast, saturation);
    }
    return s;
}

status to_rgb_run(struct to_rgb *c, const struct media *m, const AVFrame *f, uint8_t *rgb, struct err *e)
{
    if (c->sws == NULL || c->w != f->width || c->h != f->height || c->format != f->format ||
        c->space != (int)f->colorspace || c->range != (int)f->color_range) {
        sws_freeContext(c->sws);
        c->sws = converter(f);
        if (c->sws == NULL) {
            const char *name = av_get_pix_fmt_name(f->format);
            return err_set(e, E_INPUT, "%s: pixels of the kind %s cannot be converted", m->name,
                           name ? name : "?");
        }
        c->w = f->width, c->h = f->height, c->format = f->format;
        c->space = (int)f->colorspace, c->range = (int)f->color_range;
    }
    /* libswscale leaves out the last columns of rows that have no room for a multiple of 8 pixels. */
    const size_t row = 3 * (size_t)f->width, stride = 3 * (((size_t)f->width + 15) / 16 * 16);
    uint8_t *to = rgb;
    if (stride != row) {
        TRY(mem_grow(&c->padded, &c->padded_cap, stride * (size_t)f->height, 1, e));
        to = c->padded;
    }
    uint8_t *const dst[4] = { to };
    const int strides[4] = { (int)stride };
    const int rc =
        sws_scale(c->sws, (const uint8_t *const *)f->data, f->linesize, 0, f->height, dst, strides);
    if (rc < 0) return libav_fail(e, m, "its pixels cannot be converted", rc);
    for (int y = 0; to != rgb && y < f->height; y++)
        memcpy(rgb + (size_t)y * row, to + (size_t)y * stride, row);
    return OK;
}

void to_rgb_free(struct to_rgb *c)
{
    sws_freeContext(c->sws);
    free(c->padded);
    *c = (struct to_rgb){ 0 };
}
