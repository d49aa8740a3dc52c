/* tests/media/film.h - writes films for tests and measurements with FFmpeg's own encoders: a moving pattern
 * and a tone. */
#ifndef TESTS_MEDIA_FILM_H
#define TESTS_MEDIA_FILM_H

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <math.h>
#include <stdbool.h>

#include "base/err.h"

struct film {
    const char *path;                     /* its ending chooses the container              */
    const char *codec;                    /* "libx264", "mpeg4"                            */
    int width, height, fps, seconds;      /* sides even                                    */
    int64_t bit_rate;                     /* 0: the encoder's default                      */
    int sound_rate;                       /* Hz, A-law mono; 0: silent film                */
};

struct film_writer {
    AVFormatContext *fc;
    AVCodecContext *video, *sound;
    AVPacket *pkt;
    AVFrame *picture, *samples;
};

static inline status film_fail(struct err *e, const char *what, int rc)
{
    return err_set(e, E_IO, "making a film: %s: %s", what, av_err2str(rc));
}

/* Frame t: two gradients that slide, a chequered square that crosses them. */
static inline void film_draw(AVFrame *f, int t)
{
    const int w = f->width, h = f->height, side = h / 4, sx = (t * 7) % (w + side) - side, sy = (t * 3) % h;
    for (int y = 0; y < h; y++) {
        uint8_t *p = f->data[0] + y * (ptrdiff_t)f->linesize[0];
        for (int x = 0; x < w; x++) {
            const bool in = x >= sx && x < sx + side && y >= sy && y < sy + side;
            p[x] = (uint8_t)(in ? ((x - sx) / 6 + (y - sy) / 6) % 2 * 200 + 20
                                : 16 + ((x * 3 / 4 + y / 2 + t * 2) & 127) + ((x ^ (y + t)) & 15));
        }
    }
    for (int c = 1; c <= 2; c++)
        for (int y = 0; y < h / 2; y++)
            for (int x = 0; x < w / 2; x++)
                f->data[c][y * (ptrdiff_t)f->linesize[c] + x] =
                    (uint8_t)(c == 1 ? 64 + ((x + t) / 4 & 127) : 64 + ((y * 2 + t) / 4 & 127));
}

/* Send one frame (NULL: the end) and write what comes out. */
static inline status film_encode(struct film_writer *k, AVCodecContext *enc, const AVFrame *f, int stream,
                                 struct err *e)
{
    int rc = avcodec_send_frame(enc, f);
    while (rc >= 0) {
        rc = avcodec_receive_packet(enc, k->pkt);
        if (rc == AVERROR(EAGAIN) || rc == AVERROR_EOF) return OK;
        if (rc < 0) break;
        k->pkt->stream_index = stream;
        if (k->pkt->duration == 0) k->pkt->duration = 1;
        av_packet_rescale_ts(k->pkt, enc->time_base, k->fc->streams[stream]->time_base);
        rc = av_interleaved_write_frame(k->fc, k->pkt);
    }
    return film_fail(e, "encoding", rc);
}

static inline status film_open(struct film_writer *k, const struct film *o, struct err *e)
{
    int rc = avformat_alloc_output_context2(&k->fc, NULL, NULL, o->path);
    if (rc < 0) return film_fail(e, o->path, rc);
    const int flags = k->fc->oformat->flags & AVFMT_GLOBALHEADER ? AV_CODEC_FLAG_GLOBAL_HEADER : 0;
    const AVCodec *codec = avcodec_find_encoder_by_name(o->codec),
                  *alaw = avcodec_find_encoder(AV_CODEC_ID_PCM_ALAW);
    if (codec == NULL || alaw == NULL) return film_fail(e, o->codec, AVERROR_ENCODER_NOT_FOUND);
    k->video = avcodec_alloc_context3(codec);
    k->video->width = o->width;
    k->video->height = o->height;
    k->video->pix_fmt = AV_PIX_FMT_YUV420P;
    k->video->time_base = (AVRational){ 1, o->fps };
    k->video->framerate = (AVRational){ o->fps, 1 };
    k->video->flags |= flags;
    if (o->bit_rate > 0) k->video->bit_rate = o->bit_rate;
    av_opt_set(k->video->priv_data, "preset", "veryfast", 0);
    rc = avcodec_open2(k->video, codec, NULL);
    if (rc < 0) return film_fail(e, o->codec, rc);
    AVStream *s = avformat_new_stream(k->fc, NULL);
    s->time_base = k->video->time_base;
    s->avg_frame_rate = k->video->framerate;
    avcodec_parameters_from_context(s->codecpar, k->video);
    if (o->sound_rate > 0) {
        k->sound = avcodec_alloc_context3(alaw);
        k->sound->sample_rate = o->sound_rate;
        k->sound->sample_fmt = AV_SAMPLE_FMT_S16;
        k->sound->time_base = (AVRational){ 1, o->sound_rate };
        av_channel_layout_default(&k->sound->ch_layout, 1);
        rc = avcodec_open2(k->sound, alaw, NULL);
        if (rc < 0) return film_fail(e, "A-law", rc);
        s = avformat_new_stream(k->fc, NULL);
        s->time_base = k->sound->time_base;
        avcodec_parameters_from_context(s->codecpar, k->sound);
    }
    k->pkt = av_packet_alloc();
    k->picture = av_frame_alloc();
    k->samples = av_frame_alloc();
    k->picture->width = o->width, k->picture->height = o->height, k->picture->format = AV_PIX_FMT_YUV420P;
    av_frame_get_buffer(k->picture, 0);
    rc = avio_open(&k->fc->pb, o->path, AVIO_FLAG_WRITE);
    if (rc >= 0) rc = avformat_write_header(k->fc, NULL);
    return rc < 0 ? film_fail(e, o->path, rc) : OK;
}

static inline status film_seconds(struct film_writer *k, const struct film *o, struct err *e)
{
    if (k->sound != NULL) {
        k->samples->nb_samples = o->sound_rate;
        k->samples->format = AV_SAMPLE_FMT_S16;
        k->samples->sample_rate = o->sound_rate;
        av_channel_layout_default(&k->samples->ch_layout, 1);
        av_frame_get_buffer(k->samples, 0);
        for (int i = 0; i < o->sound_rate; i++)
            ((int16_t *)k->samples->data[0])[i] =
                (int16_t)(8000.0 * sin(2.0 * M_PI * 440.0 * i / o->sound_rate));
    }
    for (int t = 0; t < o->seconds; t++) {
        for (int i = 0; i < o->fps; i++) {
            av_frame_make_writable(k->picture);
            film_draw(k->picture, t * o->fps + i);
            k->picture->pts = (int64_t)t * o->fps + i;
            TRY(film_encode(k, k->video, k->picture, 0, e));
        }
        if (k->sound == NULL) continue;
        k->samples->pts = (int64_t)t * o->sound_rate;
        TRY(film_encode(k, k->sound, k->samples, 1, e));
    }
    TRY(film_encode(k, k->video, NULL, 0, e));
    if (k->sound != NULL) TRY(film_encode(k, k->sound, NULL, 1, e));
    const int rc = av_write_trailer(k->fc);
    return rc < 0 ? film_fail(e, o->path, rc) : OK;
}

/* Write the film. E_IO: what failed; the file is unfinished then. */
static inline status film_write(const struct film *o, struct err *e)
{
    struct film_writer k = { .fc = NULL };
    const int level = av_log_get_level();
    av_log_set_level(AV_LOG_QUIET);       /* encoders talk */
    status st = film_open(&k, o, e);
    if (st == OK) st = film_seconds(&k, o, e);
    avcodec_free_context(&k.video);
    avcodec_free_context(&k.sound);
    av_packet_free(&k.pkt);
    av_frame_free(&k.picture);
    av_frame_free(&k.samples);
    if (k.fc != NULL) avio_closep(&k.fc->pb);
    avformat_free_context(k.fc);
    av_log_set_level(level);
    return st;
}

#endif
