/* media/audio.c - the sound of a file as 16 kHz mono f32, a piece at a time. */
#include <libswresample/swresample.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "media/libav.h"

#define GAP_S 0.05                        /* keep_time: shifts under this are jitter of the clock */
#define RATE_MIN 1000                     /* Hz that are resampled; a damaged header may say anything */
#define RATE_MAX 768000
#define PIECE 16384                       /* samples of silence made at once */

struct media_audio {
    struct media *m;
    struct demux d;
    AVCodecContext *dec;
    AVPacket *pkt;
    AVFrame *frame;
    SwrContext *swr;                      /* NULL: 16 kHz already, or nothing decoded yet        */
    int rate;                             /* of the last frame; 0: none yet                      */
    bool keep_time, packets_end, end;
    bool pending;                         /* a->frame waits behind silence, less its first `from` samples */
    int from;
    double file_start, clock_s;           /* keep_time: the clock's zero, and where we are       */
    uint64_t silence;                     /* samples (at rate) of silence still to make          */
    float *mono;                          /* [mono_cap] one frame at its own rate                */
    size_t mono_cap;
    float *out;                           /* [out_cap] 16 kHz samples, [out_at, out_n) waiting   */
    size_t out_cap, out_n, out_at;
    uint64_t skip, left;                  /* 16 kHz samples still to drop, still to give         */
    uint64_t n_decoded;                   /* samples that came out of the decoder                */
    uint64_t n_made;                      /* 16 kHz samples before skip and left                 */
    double start_s;
};

status media_audio_open(struct media *m, const struct media_audio_options *o, struct media_audio **out,
                        struct err *e)
{
    const struct media_audio_options none = { .start_s = 0.0 };
    struct media_audio *a;
    status st;
    if (o == NULL) o = &none;
    if (!m->info.has_audio) return err_set(e, E_INPUT, "%s: has no sound", m->name);
    if (!(o->start_s >= 0.0) || !(o->start_s < 1e9) || (o->end_s > 0.0 && o->end_s <= o->start_s))
        return err_set(e, E_ARG, "%s: cannot read from %g s to %g s", m->name, o->start_s, o->end_s);
    TRY(mem_alloc(&a, 1, sizeof *a, e));
    a->m = m;
    a->keep_time = o->keep_time;
    a->start_s = o->start_s;
    a->skip = (uint64_t)llround(o->start_s * MEDIA_RATE);
    a->left =
        o->end_s > 0.0 && o->end_s < 1e9 ? (uint64_t)llround(o->end_s * MEDIA_RATE) - a->skip : UINT64_MAX;
    TRY_GOTO(st, demux_open(m, m->audio_stream, &a->d, e), undo);
    TRY_GOTO(st, decoder_open(&a->d, m->audio_stream, 1, FF_IDCT_AUTO, &a->dec, e), undo);
    a->pkt = av_packet_alloc();
    a->frame = av_frame_alloc();
    if (a->pkt == NULL || a->frame == NULL) {
        st = err_set(e, E_NOMEM, "%s: out of memory", m->name);
        goto undo;
    }
    if (a->d.fc->start_time != AV_NOPTS_VALUE) a->file_start = (double)a->d.fc->start_time / AV_TIME_BASE;
    *out = a;
    return OK;
undo:
    media_audio_close(&a);
    return st;
}

void media_audio_close(struct media_audio **a)
{
    if (*a == NULL) return;
    swr_free(&(*a)->swr);
    avcodec_free_context(&(*a)->dec);
    av_packet_free(&(*a)->pkt);
    av_frame_free(&(*a)->frame);
    demux_close(&(*a)->d);
    free((*a)->mono);
    free((*a)->out);
    free(*a);
    *a = NULL;
}

/* Sample i of channel c as f32, full scale 1. */
static float sample(const AVFrame *f, int c, int i)
{
    const int n = f->ch_layout.nb_channels;
    const bool planar = av_sample_fmt_is_planar(f->format);
    const uint8_t *p = f->extended_data[planar ? c : 0];
    const int64_t at = planar ? i : (int64_t)i * n + c;
    switch (av_get_packed_sample_fmt(f->format)) {
    case AV_SAMPLE_FMT_U8: return (float)(p[at] - 128) * (1.0f / 128.0f);
    case AV_SAMPLE_FMT_S16: return (float)((const int16_t *)p)[at] * (1.0f / 32768.0f);
    case AV_SAMPLE_FMT_S32: return (float)((const int32_t *)p)[at] * (1.0f / 2147483648.0f);
    case AV_SAMPLE_FMT_S64: return (float)((const int64_t *)p)[at] * (1.0f / 9223372036854775808.0f);
    case AV_SAMPLE_FMT_DBL: return (float)((const double *)p)[at];
    default: return ((const float *)p)[at];
    }
}

/* mono[i] = mean over channels of samples from + i. */
static void average(const AVFrame *f, int from, int n, float *mono)
{
    const int channels = f->ch_layout.nb_channels;
    for (int i = 0; i < n; i++) {
        float sum = sample(f, 0, from + i);
        for (int c = 1; c < channels; c++) sum += sample(f, c, from + i);
        mono[i] = channels > 1 ? sum / (float)channels : sum;
    }
}

/* Samples at a->rate into the waiting 16 kHz ones; x == NULL: what the resampler still holds. */
static status resample(struct media_audio *a, const float *x, size_t n, struct err *e)
{
    if (a->swr == NULL) {
        TRY(mem_grow(&a->out, &a->out_cap, a->out_n + n, sizeof *a->out, e));
        if (n > 0) memcpy(a->out + a->out_n, x, n * sizeof *x);
        a->out_n += n;
        return OK;
    }
    const int room = swr_get_out_samples(a->swr, (int)n);
    if (room < 0) return libav_fail(e, a->m, "resampling failed", room);
    TRY(mem_grow(&a->out, &a->out_cap, a->out_n + (size_t)room + 64, sizeof *a->out, e));
    uint8_t *to = (uint8_t *)(a->out + a->out_n);
    const uint8_t *from = (const uint8_t *)x;
    const int got = swr_convert(a->swr, &to, room + 64, x != NULL ? &from : NULL, (int)n);
    if (got < 0) return libav_fail(e, a->m, "resampling failed", got);
    a->out_n += (size_t)got;
    return OK;
}

/* Drain the resampler and make one for `rate`. */
static status rate_change(struct media_audio *a, int rate, struct err *e)
{
    if (a->swr != NULL) TRY(resample(a, NULL, 0, e));
    swr_free(&a->swr);
    a->rate = rate;
    if (rate == MEDIA_RATE) return OK;
    AVChannelLayout mono = AV_CHANNEL_LAYOUT_MONO;
    int rc = swr_alloc_set_opts2(&a->swr, &mono, AV_SAMPLE_FMT_FLT, MEDIA_RATE, &mono, AV_SAMPLE_FMT_FLT,
                                 rate, 0, NULL);
    if (rc >= 0) rc = swr_init(a->swr);
    if (rc < 0) return libav_fail(e, a->m, "its sample rate cannot be resampled", rc);
    return OK;
}

/* keep_time: how far the frame is from where it should begin; silence before it, or samples to leave out. */
static int align(struct media_audio *a)
{
    const AVFrame *f = a->frame;
    const int64_t pts = f->best_effort_timestamp;
    if (!a->keep_time || pts == AV_NOPTS_VALUE) return 0;
    const double at = (double)pts * av_q2d(a->d.fc->streams[a->m->audio_stream]->time_base) - a->file_start;
    const double shift = at - a->clock_s;
    if (fabs(shift) < GAP_S) return 0;
    if (shift > 0.0) {
        a->silence = (uint64_t)llround(shift * a->rate);
        a->clock_s += (double)a->silence / a->rate;
        return 0;
    }
    const double drop = -shift * a->rate;
    return drop < f->nb_samples ? (int)drop : f->nb_samples;
}

/* A new frame: its rate, its place in time. */
static status frame_begin(struct media_audio *a, struct err *e)
{
    const AVFrame *f = a->frame;
    if (f->sample_rate < RATE_MIN || f->sample_rate > RATE_MAX || f->ch_layout.nb_channels <= 0)
        return err_set(e, E_INPUT, "%s: sound of %d Hz and %d channels cannot be used: %d to %d Hz, 1 or more",
                       a->m->name, f->sample_rate, f->ch_layout.nb_channels, RATE_MIN, RATE_MAX);
    if (f->sample_rate != a->rate) TRY(rate_change(a, f->sample_rate, e));
    a->from = align(a);
    a->pending = true;
    a->n_decoded += (uint64_t)f->nb_samples;
    return OK;
}

/* The waiting frame, or the next piece of the silence before it, becomes 16 kHz samples. */
static status frame_go_on(struct media_audio *a, struct err *e)
{
    const bool silent = a->silence > 0;
    const size_t n = !silent ? (size_t)(a->frame->nb_samples - a->from)
                   : a->silence < PIECE ? (size_t)a->silence : PIECE;
    TRY(mem_grow(&a->mono, &a->mono_cap, n + 1, sizeof *a->mono, e));
    if (silent) {
        memset(a->mono, 0, n * sizeof *a->mono);
        a->silence -= n;
    } else {
        average(a->frame, a->from, (int)n, a->mono);
        a->clock_s += (double)n / a->rate;
        av_frame_unref(a->frame);
        a->pending = false;
    }
    return resample(a, a->mono, n, e);
}

/* Decode until some samples wait, or the end. */
static status fill(struct media_audio *a, struct err *e)
{
    a->out_n = a->out_at = 0;
    while (a->out_n == 0 && !a->end) {
        if (a->pending) {
            TRY(frame_go_on(a, e));
            continue;
        }
        int rc = avcodec_receive_frame(a->dec, a->frame);
        if (rc >= 0) {
            TRY(frame_begin(a, e));
            continue;
        }
        if (rc == AVERROR(ENOMEM)) return err_set(e, E_NOMEM, "%s: out of memory", a->m->name);
        if (rc == AVERROR_EOF) {
            a->end = true;
            TRY(resample(a, NULL, 0, e));
            continue;
        }
        if (rc != AVERROR(EAGAIN)) media_warn(a->m, "%s: damaged sound: parts of it are missing", a->m->name);
        TRY(demux_read(&a->d, a->m->audio_stream, a->pkt, &a->packets_end, e));
        rc = avcodec_send_packet(a->dec, a->packets_end ? NULL : a->pkt);
        av_packet_unref(a->pkt);
        if (rc == AVERROR(ENOMEM)) return err_set(e, E_NOMEM, "%s: out of memory", a->m->name);
        if (rc < 0 && rc != AVERROR_EOF)
            media_warn(a->m, "%s: damaged sound: parts of it are missing", a->m->name);
    }
    a->n_made += a->out_n;
    return OK;
}

/* The end has come: was there anything, and all that was promised? */
static status end_check(struct media_audio *a, struct err *e)
{
    const double have = (double)a->n_made / MEDIA_RATE, want = a->m->info.audio.duration_s;
    if (a->n_decoded == 0)
        return err_set(e, E_INPUT, "%s: its sound (%s) holds no samples%s", a->m->name,
                       a->m->info.audio.codec, a->m->warning[0] ? " that can be decoded" : "");
    if (a->skip > 0)
        return err_set(e, E_INPUT, "%s: its sound ends at %.3f s, before the start asked for, %.3f s",
                       a->m->name, have, a->start_s);
    if (want > 0.0 && have < want - 1.0)
        media_warn(a->m, "%s: its sound ends after %.1f s; the file promises %.1f s", a->m->name, have, want);
    return OK;
}

status media_audio_read(struct media_audio *a, float *buf, size_t cap, size_t *n, struct err *e)
{
    *n = 0;
    while (*n < cap && a->left > 0) {
        size_t have = a->out_n - a->out_at;
        if (have == 0) {
            if (a->end) return end_check(a, e);
            TRY(fill(a, e));
            continue;
        }
        if (a->skip > 0) {
            const size_t drop = a->skip < have ? (size_t)a->skip : have;
            a->skip -= drop;
            a->out_at += drop;
            continue;
        }
        if (have > cap - *n) have = cap - *n;
        if (have > a->left) have = (size_t)a->left;
        memcpy(buf + *n, a->out + a->out_at, have * sizeof *buf);
        a->out_at += have;
        a->left -= have;
        *n += have;
    }
    return OK;
}

status media_audio_load(struct media *m, const struct media_audio_options *o, size_t max_samples,
                        float **samples, size_t *n, struct err *e)
{
    struct media_audio *a = NULL;
    float *x = NULL;
    size_t cap = 0, have = 0, got;
    status st;
    TRY(media_audio_open(m, o, &a, e));
    do {
        TRY_GOTO(st, mem_grow(&x, &cap, have + 65536, sizeof *x, e), undo);
        TRY_GOTO(st, media_audio_read(a, x + have, cap - have, &got, e), undo);
        have += got;
        if (max_samples > 0 && have > max_samples) {
            st =
                err_set(e, E_FULL, "%s: its sound is longer than %.1f s, the limit here: give a shorter part",
                        m->name, (double)max_samples / MEDIA_RATE);
            goto undo;
        }
    } while (got > 0);
    media_audio_close(&a);
    *samples = x;
    *n = have;
    return OK;
undo:
    media_audio_close(&a);
    free(x);
    return st;
}
