/* media/image.c - still pictures: bytes to RGB8, RGB8 to patches, and the count of tokens of any file. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "media/picture.h"

/* Is its transparency Pillow's mode RGBA? For PNG that is colour type 6, or 4 with 16 bits: bytes 24 and
 * 25. */
static bool alpha_counts(const struct media *m)
{
    uint8_t head[26] = { 0 };
    if (m->bytes != NULL && m->size >= 26) memcpy(head, m->bytes, 26);
    if (m->bytes == NULL && pread(m->fd, head, 26, 0) != 26) return false;
    if (memcmp(head, "\x89PNG", 4) == 0) return head[25] == 6 || (head[25] == 4 && head[24] == 16);
    return strcmp(m->info.video.codec, "gif") != 0 && strcmp(m->info.video.codec, "bmp") != 0;
}

/* The first frame of the picture or film in f. */
static status first_frame(struct media *m, struct demux *d, AVCodecContext *dec, AVPacket *pkt, AVFrame *f,
                          struct err *e)
{
    bool end = false;
    for (;;) {
        int rc = avcodec_receive_frame(dec, f);
        if (rc >= 0) return OK;
        if (end) return libav_fail(e, m, "the picture does not decode", rc);
        TRY(demux_read(d, m->video_stream, pkt, &end, e));
        rc = avcodec_send_packet(dec, end ? NULL : pkt);
        av_packet_unref(pkt);
        if (rc < 0 && rc != AVERROR_EOF) return libav_fail(e, m, "the picture does not decode", rc);
    }
}

status media_image_rgb(struct media *m, uint8_t **rgb, uint32_t *h, uint32_t *w, struct err *e)
{
    struct demux d;
    AVCodecContext *dec = NULL;
    AVPacket *pkt = av_packet_alloc();
    AVFrame *f = av_frame_alloc();
    uint8_t *out = NULL;
    status st;
    if (m->video_stream < 0) {
        st = err_set(e, E_INPUT, "%s: has no picture", m->name);
        goto none;
    }
    TRY_GOTO(st, demux_open(m, m->video_stream, &d, e), none);
    const enum AVCodecID id = d.fc->streams[m->video_stream]->codecpar->codec_id;
    TRY_GOTO(
        st,
        decoder_open(&d, m->video_stream, 1, id == AV_CODEC_ID_MJPEG ? FF_IDCT_INT : FF_IDCT_AUTO, &dec, e),
        done);
    if (pkt == NULL || f == NULL) {
        st = err_set(e, E_NOMEM, "%s: out of memory", m->name);
        goto done;
    }
    TRY_GOTO(st, first_frame(m, &d, dec, pkt, f, e), done);
    if (f->format == AV_PIX_FMT_GRAY16BE)
        media_warn(m,
                   "%s: 16-bit grey: values above 255 are white, as in the reference; convert it to 8 bits",
                   m->name);
    TRY_GOTO(st, mem_alloc(&out, (size_t)f->height * (size_t)f->width, 3, e), done);
    TRY_GOTO(st, picture_rgb(m, f, id, alpha_counts(m), out, e), done);
    *rgb = out;
    *h = (uint32_t)f->height;
    *w = (uint32_t)f->width;
    out = NULL;
done:
    avcodec_free_context(&dec);
    demux_close(&d);
none:
    av_packet_free(&pkt);
    av_frame_free(&f);
    free(out);
    return st;
}

void media_patches_free(struct media_patches *p)
{
    free(p->patches);
    *p = (struct media_patches){ 0 };
}

/* rgb [h, w, 3], sides multiples of a group, to patches: a strip of one row of groups at a time. */
static status patches_of(const struct media_vision *v, const uint8_t *rgb, uint32_t h, uint32_t w,
                         struct media_patches *out, struct err *e)
{
    const uint32_t side = v->patch * v->merge, rows = v->merge * (w / v->patch);
    struct media_patches p = { .grid_t = 1, .grid_h = h / v->patch, .grid_w = w / v->patch,
                               .row = 3 * v->temporal * v->patch * v->patch };
    const float *frame[16];
    float *strip = NULL;
    status st;
    if (v->temporal > 16) return err_set(e, E_ARG, "temporal_patch_size %u is above 16", v->temporal);
    TRY_GOTO(st, mem_alloc_aligned(&p.patches, (size_t)p.grid_h * p.grid_w * p.row * sizeof *p.patches, e),
             done);
    TRY_GOTO(st, mem_alloc(&strip, (size_t)side * w, 4 * sizeof *strip, e), done);
    for (uint32_t f = 0; f < v->temporal; f++) frame[f] = strip;
    for (uint32_t y = 0; y < h / side; y++) {
        media_widen(rgb + (size_t)y * side * w * 3, (size_t)side * w, strip);
        media_patches_write(v, frame, side, w, p.patches + (size_t)y * rows * p.row);
    }
    *out = p;
    p.patches = NULL;
done:
    free(p.patches);
    free(strip);
    return st;
}

/* The loader's resize, by Pillow: *rgb [h, w, 3] is replaced by its resized self. */
static status resize_load(uint8_t **rgb, uint32_t h, uint32_t w, uint32_t oh, uint32_t ow, struct err *e)
{
    uint8_t *out;
    if (h == oh && w == ow) return OK;
    TRY(mem_alloc(&out, (size_t)oh * ow, 3, e));
    const status st = media_resize_image(*rgb, h, w, out, oh, ow, e);
    free(st == OK ? *rgb : out);
    if (st == OK) *rgb = out;
    return st;
}

/* The processor's resize, by torch on 8-bit pictures; only limits that the loader cannot meet bring it
 * about. */
static status resize_process(uint8_t **rgb, uint32_t h, uint32_t w, uint32_t oh, uint32_t ow, struct err *e)
{
    const size_t n = (size_t)oh * ow;
    struct media_resizer *r = NULL;
    float *wide = NULL;
    uint8_t *out = NULL;
    status st;
    if (h == oh && w == ow) return OK;
    TRY_GOTO(st, media_resizer_create(h, w, oh, ow, &r, e), done);
    TRY_GOTO(st, mem_alloc(&wide, n, 4 * sizeof *wide, e), done);
    TRY_GOTO(st, mem_alloc(&out, n, 3, e), done);
    media_resize_frame(r, *rgb, wide);
    for (size_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++) out[3 * i + c] = (uint8_t)wide[4 * i + c];
    free(*rgb);
    *rgb = out;
    out = NULL;
done:
    media_resizer_destroy(&r);
    free(wide);
    free(out);
    return st;
}

status media_image_load(struct media *m, const struct media_image_options *o, struct media_patches *out,
                        struct err *e)
{
    const struct media_vision v = o != NULL && o->vision.patch ? o->vision : media_vision_default();
    struct media_image_plan p = { 0 };
    uint8_t *rgb = NULL;
    uint32_t h, w;
    status st;
    TRY(media_image_rgb(m, &rgb, &h, &w, e));
    st = media_image_plan(h, w, o, &p, e);
    if (st != OK) err_prefix(e, "%s", m->name);
    if (st == OK) st = resize_load(&rgb, h, w, p.load_h, p.load_w, e);
    if (st == OK) st = resize_process(&rgb, p.load_h, p.load_w, p.height, p.width, e);
    if (st == OK) st = patches_of(&v, rgb, p.height, p.width, out, e);
    free(rgb);
    return st;
}

/* ---- counting ------------------------------------------------------------------------------------------ */

static status count_sound(struct media *m, bool decode, struct media_counts *c, struct err *e)
{
    const double s = m->info.audio.duration_s;
    if (decode || s < 0.0) {
        struct media_audio *a;
        float buf[4096];
        size_t n;
        status st;
        TRY(media_audio_open(m, NULL, &a, e));
        do {
            st = media_audio_read(a, buf, sizeof buf / sizeof *buf, &n, e);
            c->n_samples += n;
        } while (st == OK && n > 0);
        media_audio_close(&a);
        if (st != OK) return st;
        c->samples_exact = true;
    } else {
        c->n_samples = (uint64_t)llround(s * MEDIA_RATE);
    }
    c->n_mel_frames = media_mel_frames(c->n_samples);
    c->n_audio_tokens = media_audio_tokens(c->n_mel_frames);
    return OK;
}

status media_tokens(struct media *m, const struct media_image_options *io,
                    const struct media_video_options *vo, bool decode, struct media_counts *out,
                    struct err *e)
{
    struct media_counts c = { 0 };
    if (m->info.has_audio) TRY(count_sound(m, decode, &c, e));
    if (m->info.is_image) {
        struct media_image_plan p;
        const status st = media_image_plan(m->info.video.height, m->info.video.width, io, &p, e);
        if (st != OK) {
            err_prefix(e, "%s", m->name);
            return st;
        }
        c.height = p.height, c.width = p.width;
        c.grid_t = 1, c.grid_h = p.grid_h, c.grid_w = p.grid_w;
        c.n_vision_tokens = p.n_tokens;
    } else if (m->info.has_video) {
        struct media_video *film;
        TRY(media_video_open(m, vo, &film, e));
        c.plan = *media_video_get_plan(film);
        media_video_close(&film);
        c.height = c.plan.height, c.width = c.plan.width;
        c.grid_t = c.plan.grid_t, c.grid_h = c.plan.grid_h, c.grid_w = c.plan.grid_w;
        c.n_vision_tokens = c.plan.n_tokens;
    }
    *out = c;
    return OK;
}
