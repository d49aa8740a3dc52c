/* media/open.c - bytes to streams: the byte reader, the demuxer, decoders, and what is known of a file.
 * FFmpeg reads through our own byte reader and is never given a name, so a container can neither open another
 * file nor reach a network; only formats of a list are opened, and those that are lists of other files are told so. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libavutil/display.h>
#include <libavutil/intreadwrite.h>
#include <libavutil/mem.h>
#include <libavutil/pixdesc.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "media/libav.h"

#define IO_BYTES (64 << 10)
#define BLOCK_MAX ((size_t)768 << 20)   /* one allocation of the libraries: a picture of MEDIA_MAX_PIXELS in 4 bytes fits; a
                                          header that claims more gets nothing */

/* ---- FFmpeg's log: silent, its last complaint kept for our own messages --------------------------------- */

static __thread char complaint[256];
static __thread unsigned too_wide, too_high;      /* of a picture that was refused for its size; 0: none */
static pthread_once_t log_once = PTHREAD_ONCE_INIT;

static void log_take(void *ctx, int level, const char *fmt, va_list ap)
{
    (void)ctx;
    if (level > AV_LOG_ERROR) return;
    char line[sizeof complaint];
    vsnprintf(line, sizeof line, fmt, ap);
    size_t n = strlen(line);
    for (size_t i = 0; i < n; i++)                /* what a file says of itself may be any bytes */
        if (line[i] != '\n' && (line[i] < 32 || line[i] > 126)) line[i] = '?';
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == ' ' || line[n - 1] == '.')) line[--n] = 0;
    unsigned w, h;
    if (sscanf(line, "Picture size %ux%u exceeds", &w, &h) == 2) too_wide = w, too_high = h;
    if (n > 0) memcpy(complaint, line, sizeof complaint);
}

static void log_init(void) { av_log_set_callback(log_take); }

status libav_fail(struct err *e, const struct media *m, const char *what, int rc)
{
    char why[AV_ERROR_MAX_STRING_SIZE];
    if (rc == AVERROR(ENOMEM)) return err_set(e, E_NOMEM, "%s: %s: out of memory", m->name, what);
    av_make_error_string(why, sizeof why, rc);
    if (complaint[0] == 0) err_set(e, E_INPUT, "%s: %s: %s", m->name, what, why);
    else err_set(e, E_INPUT, "%s: %s: %s (%s)", m->name, what, why, complaint);
    return E_INPUT;
}

void media_warn(struct media *m, const char *fmt, ...)
{
    if (m->warning[0] != 0) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(m->warning, sizeof m->warning, fmt, ap);
    va_end(ap);
}

/* ---- bytes ---------------------------------------------------------------------------------------------- */

static int io_read(void *opaque, uint8_t *buf, int n)
{
    struct demux *d = opaque;
    const struct media *m = d->m;
    if (d->pos >= m->size) return AVERROR_EOF;
    if (n > m->size - d->pos) n = (int)(m->size - d->pos);
    if (m->bytes != NULL) {
        memcpy(buf, m->bytes + d->pos, (size_t)n);
    } else {
        const ssize_t got = pread(m->fd, buf, (size_t)n, d->pos);
        if (got < 0) return AVERROR(errno);
        if (got == 0) return AVERROR_EOF;
        n = (int)got;
    }
    d->pos += n;
    return n;
}

static int64_t io_seek(void *opaque, int64_t offset, int whence)
{
    struct demux *d = opaque;
    whence &= ~AVSEEK_FORCE;
    if (whence == AVSEEK_SIZE) return d->m->size;
    if (whence == SEEK_CUR) offset += d->pos;
    else if (whence == SEEK_END) offset += d->m->size;
    else if (whence != SEEK_SET) return AVERROR(EINVAL);
    if (offset < 0) return AVERROR(EINVAL);
    return d->pos = offset;
}

/* I1: whatever a container asks to open is not there. */
static int io_refuse(AVFormatContext *fc, AVIOContext **pb, const char *url, int flags,
                     AVDictionary **options)
{
    (void)fc, (void)pb, (void)url, (void)flags, (void)options;
    return AVERROR(EPERM);
}

/* Formats that are a list of other files, a description of a stream somewhere else, or no file at all. */
static bool format_is_list(const char *names)
{
    static const char *const list[] = { "hls", "applehttp", "dash", "concat", "sdp", "rtsp", "rtp", "image2",
                                        "imf", "lavfi", "redir", "vapoursynth", "tty" };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        const size_t n = strlen(list[i]);
        for (const char *p = names; p != NULL && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
            if (strncmp(p, list[i], n) == 0 && (p[n] == 0 || p[n] == ',')) return true;
    }
    return false;
}

#define TAKEN "MP4, MOV, MKV, WebM, AVI, TS or MPEG; WAV, FLAC, MP3, AAC, M4A, OGG or Opus; " \
              "PNG, JPEG, WebP, GIF, BMP or TIFF"

/* What is opened at all. FFmpeg knows some 350 formats, many from games and recorders of the past, or text that is
 * drawn; each one is code that strangers would run. */
static bool format_is_taken(const char *names)
{
    static const char *const list[] = {
        /* films with sound */
        "mov", "matroska", "avi", "mpegts", "mpeg", "flv", "live_flv", "asf", "ogg", "mxf", "gxf", "nut",
        "rm", "wtv", "dv",
        /* films alone */
        "mpegvideo", "m4v", "h263", "h264", "hevc", "av1", "obu", "ivf", "vc1", "mjpeg", "yuv4mpegpipe",
        "gif", "apng",
        /* sound */
        "wav", "w64", "aiff", "au", "caf", "voc", "sox", "flac", "mp3", "aac", "loas", "ac3", "eac3", "dts",
        "dtshd", "mlp", "truehd", "amr", "amrnb", "amrwb", "ape", "wv", "tta", "tak", "mpc", "mpc8", "shn",
        "dsf", "qcp",
        /* pictures */
        "bmp_pipe", "dds_pipe", "dpx_pipe", "exr_pipe", "gif_pipe", "j2k_pipe", "jpeg_pipe", "jpegls_pipe",
        "jpegxl_pipe", "pam_pipe", "pbm_pipe", "pcx_pipe", "pfm_pipe", "pgm_pipe", "pgmyuv_pipe",
        "png_pipe", "ppm_pipe", "psd_pipe", "qoi_pipe", "sgi_pipe", "sunrast_pipe", "tiff_pipe",
        "webp_pipe", "xbm_pipe", "xpm_pipe", "xwd_pipe",
    };
    const size_t n = strcspn(names, ",");
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (strlen(list[i]) == n && strncmp(names, list[i], n) == 0) return true;
    return false;
}

/* ---- containers ----------------------------------------------------------------------------------------- */

/* I3. */
static status size_check(const struct media *m, uint64_t w, uint64_t h, struct err *e)
{
    if (w * h <= MEDIA_MAX_PIXELS) return OK;
    err_set(e, E_INPUT,
            "%s: %" PRIu64 " x %" PRIu64 " pixels are %" PRIu64 ", more than the limit of %u: scale it down first",
            m->name, w, h, w * h, MEDIA_MAX_PIXELS);
    return err_tag(e, "media_too_large", NULL), E_INPUT;
}

/* PNG says its size in bytes 16 to 23; its decoder refuses large ones without telling. */
static status png_check(struct demux *d, struct err *e)
{
    uint8_t head[24];
    const int64_t at = avio_tell(d->io);
    if (avio_seek(d->io, 0, SEEK_SET) < 0 || avio_read(d->io, head, 24) != 24) head[0] = 0;
    avio_seek(d->io, at, SEEK_SET);
    if (memcmp(head, "\x89PNG", 4) != 0) return OK;
    return size_check(d->m, AV_RB32(head + 16), AV_RB32(head + 20), e);
}

/* No way to read it, whole as it may be. */
static status unsupported(struct err *e)
{
    err_tag(e, "unsupported_media", NULL);
    return E_INPUT;
}

static status container_open(struct demux *d, struct err *e)
{
    const struct media *m = d->m;
    const AVInputFormat *format = NULL;
    av_max_alloc(BLOCK_MAX);
    int rc = av_probe_input_buffer2(d->io, &format, NULL, NULL, 0, 0);
    if (rc < 0) {
        if (complaint[0] == 0 || rc == AVERROR_INVALIDDATA) {
            err_set(e, E_INPUT,
                    "%s: neither sound, nor a picture, nor a film: its first bytes are of no known format: give " TAKEN,
                    m->name);
            return unsupported(e);
        }
        return libav_fail(e, m, "cannot be read", rc);
    }
    if (format_is_list(format->name)) {
        err_set(e, E_INPUT, "%s: a list that names other files or places (%s): give the media file itself", m->name,
                format->name);
        return unsupported(e);
    }
    if (!format_is_taken(format->name)) {
        err_set(e, E_INPUT,
                "%s: %s is not among the formats that are taken: give " TAKEN, m->name,
                format->long_name != NULL ? format->long_name : format->name);
        return unsupported(e);
    }
    d->fc = avformat_alloc_context();
    if (d->fc == NULL) return err_set(e, E_NOMEM, "%s: out of memory", m->name);
    d->fc->pb = d->io;
    d->fc->flags |= AVFMT_FLAG_CUSTOM_IO;
    d->fc->io_open = io_refuse;
    d->fc->protocol_whitelist = av_strdup("none");
    d->fc->max_streams = 64;
    rc = avformat_open_input(&d->fc, "", format, NULL);
    if (rc < 0) return libav_fail(e, m, "damaged or incomplete", rc);
    return png_check(d, e);
}

/* Find what the streams are; pictures above the limit are not decoded for it. */
static status streams_find(struct demux *d, struct err *e)
{
    const unsigned n = d->fc->nb_streams;
    AVDictionary **options = NULL;
    char limit[24];
    snprintf(limit, sizeof limit, "%u", MEDIA_MAX_PIXELS);
    for (unsigned i = 0; i < n; i++) {            /* nobody reads subtitles here: their decoders are not started */
        AVCodecParameters *par = d->fc->streams[i]->codecpar;
        if (par->codec_type != AVMEDIA_TYPE_SUBTITLE) continue;
        par->codec_type = AVMEDIA_TYPE_DATA;
        par->codec_id = AV_CODEC_ID_NONE;
    }
    TRY(mem_alloc(&options, n, sizeof *options, e));
    for (unsigned i = 0; i < n; i++) av_dict_set(&options[i], "max_pixels", limit, 0);
    const int rc = avformat_find_stream_info(d->fc, n > 0 ? options : NULL);
    for (unsigned i = 0; i < n; i++) av_dict_free(&options[i]);
    free(options);
    TRY(size_check(d->m, too_wide, too_high, e));
    if (rc < 0) return libav_fail(e, d->m, "its streams cannot be read", rc);
    return OK;
}

status demux_open(struct media *m, int stream, struct demux *d, struct err *e)
{
    status st;
    *d = (struct demux){ .m = m };
    complaint[0] = 0;
    too_wide = too_high = 0;
    unsigned char *buf = av_malloc(IO_BYTES);
    if (buf != NULL) d->io = avio_alloc_context(buf, IO_BYTES, 0, d, io_read, NULL, io_seek);
    if (d->io == NULL) {
        av_free(buf);
        return err_set(e, E_NOMEM, "%s: out of memory", m->name);
    }
    TRY_GOTO(st, container_open(d, e), undo);
    TRY_GOTO(st, streams_find(d, e), undo);
    for (unsigned i = 0; stream >= 0 && i < d->fc->nb_streams; i++)
        if ((int)i != stream) d->fc->streams[i]->discard = AVDISCARD_ALL;
    return OK;
undo:
    demux_close(d);
    return st;
}

void demux_close(struct demux *d)
{
    if (d->fc != NULL) avformat_close_input(&d->fc);
    if (d->io != NULL) {
        av_freep(&d->io->buffer);
        avio_context_free(&d->io);
    }
}

status demux_read(struct demux *d, int stream, AVPacket *pkt, bool *end, struct err *e)
{
    *end = false;
    for (;;) {
        const int rc = av_read_frame(d->fc, pkt);
        if (rc == AVERROR(ENOMEM)) return err_set(e, E_NOMEM, "%s: out of memory", d->m->name);
        if (rc < 0) {
            if (rc != AVERROR_EOF)
                media_warn(d->m, "%s: damaged: it could not be read to its end", d->m->name);
            *end = true;
            return OK;
        }
        if (pkt->stream_index == stream) break;
        av_packet_unref(pkt);
    }
    if (av_packet_get_side_data(pkt, AV_PKT_DATA_ENCRYPTION_INFO, NULL) != NULL) {
        av_packet_unref(pkt);
        return err_set(e, E_INPUT, "%s: encrypted: decrypt it first", d->m->name);
    }
    if (pkt->flags & AV_PKT_FLAG_CORRUPT) media_warn(d->m, "%s: damaged or truncated", d->m->name);
    return OK;
}

/* "h264"; of unknown ones the container's own tag: "unknown zzz1". */
static void codec_name(char *out, size_t cap, const AVCodecParameters *p)
{
    if (p->codec_id != AV_CODEC_ID_NONE) snprintf(out, cap, "%s", avcodec_get_name(p->codec_id));
    else snprintf(out, cap, "unknown %s", av_fourcc2str(p->codec_tag));
}

status decoder_open(const struct demux *d, int stream, int n_threads, int idct, AVCodecContext **out,
                    struct err *e)
{
    const AVStream *s = d->fc->streams[stream];
    const AVCodec *codec = avcodec_find_decoder(s->codecpar->codec_id);
    if (codec == NULL) {
        char name[32];
        codec_name(name, sizeof name, s->codecpar);
        err_set(e, E_INPUT, "%s: no decoder for its %s (%s): convert it to a common format", d->m->name,
                s->codecpar->codec_type == AVMEDIA_TYPE_AUDIO ? "sound" : "pictures", name);
        return unsupported(e);
    }
    AVCodecContext *c = avcodec_alloc_context3(codec);
    if (c == NULL) return err_set(e, E_NOMEM, "%s: out of memory", d->m->name);
    int rc = avcodec_parameters_to_context(c, s->codecpar);
    c->pkt_timebase = s->time_base;
    c->max_pixels = MEDIA_MAX_PIXELS;
    c->idct_algo = idct;
    c->thread_count = n_threads;
    if (rc >= 0) rc = avcodec_open2(c, codec, NULL);
    if (rc < 0) {
        avcodec_free_context(&c);
        return libav_fail(e, d->m, "its decoder does not start", rc);
    }
    *out = c;
    return OK;
}

/* ---- what is inside ------------------------------------------------------------------------------------- */

/* The display matrix as a turn clockwise and a mirror before it. */
static void rotation_of(const AVStream *s, int *turn, bool *mirrored)
{
#if LIBAVCODEC_VERSION_MAJOR >= 61
    const AVPacketSideData *sd = av_packet_side_data_get(s->codecpar->coded_side_data,
                                                         s->codecpar->nb_coded_side_data,
                                                         AV_PKT_DATA_DISPLAYMATRIX);
    const int32_t *data = sd != NULL && sd->size >= 36 ? (const int32_t *)sd->data : NULL;
#else
    size_t size = 0;
    const int32_t *data = (const int32_t *)av_stream_get_side_data(s, AV_PKT_DATA_DISPLAYMATRIX, &size);
    if (size < 36) data = NULL;
#endif
    *turn = 0;
    *mirrored = false;
    if (data == NULL) return;
    int32_t matrix[9];
    memcpy(matrix, data, sizeof matrix);
    *mirrored = (double)matrix[0] * matrix[4] - (double)matrix[1] * matrix[3] < 0.0;
    if (*mirrored) av_display_matrix_flip(matrix, 1, 0);
    const double degrees = -av_display_rotation_get(matrix);
    if (isfinite(degrees)) *turn = (((int)lrint(degrees / 90.0) % 4 + 4) % 4) * 90;
}

static double seconds(int64_t t, AVRational base, double start)
{
    return t == AV_NOPTS_VALUE ? -1.0 : (double)t * av_q2d(base) - start;
}

static double file_start(const AVFormatContext *fc)
{
    return fc->start_time == AV_NOPTS_VALUE ? 0.0 : (double)fc->start_time / AV_TIME_BASE;
}

static double stream_duration(const AVFormatContext *fc, const AVStream *s)
{
    return s->duration > 0 ? (double)s->duration * av_q2d(s->time_base)
         : fc->duration > 0 ? (double)fc->duration / AV_TIME_BASE : -1.0;
}

static int stream_find(AVFormatContext *fc, enum AVMediaType type)
{
    const AVCodec *codec = NULL;
    int i = av_find_best_stream(fc, type, -1, -1, &codec, 0);
    if (i < 0) i = av_find_best_stream(fc, type, -1, -1, NULL, 0);
    if (i >= 0 && (fc->streams[i]->disposition & AV_DISPOSITION_ATTACHED_PIC)) i = -1;    /* a cover */
    return i;
}

static void audio_info(const AVFormatContext *fc, const AVStream *s, struct media_audio_info *a)
{
    codec_name(a->codec, sizeof a->codec, s->codecpar);
    a->rate = (uint32_t)s->codecpar->sample_rate;
    a->channels = (uint32_t)s->codecpar->ch_layout.nb_channels;
    a->start_s = seconds(s->start_time, s->time_base, file_start(fc));
    a->duration_s = stream_duration(fc, s);
}

static void video_info(const AVFormatContext *fc, const AVStream *s, bool picture, struct media_video_info *v)
{
    const AVCodecParameters *p = s->codecpar;
    const char *format = av_get_pix_fmt_name(p->format);
    codec_name(v->codec, sizeof v->codec, p);
    snprintf(v->pixel_format, sizeof v->pixel_format, "%s", format ? format : "unknown");
    if (!picture) rotation_of(s, &v->rotation, &v->mirrored);
    const bool turned = v->rotation % 180 != 0;
    v->width = (uint32_t)(turned ? p->height : p->width);
    v->height = (uint32_t)(turned ? p->width : p->height);
    v->fps = s->avg_frame_rate.num > 0 && s->avg_frame_rate.den > 0 ? av_q2d(s->avg_frame_rate)
           : s->r_frame_rate.num > 0 && s->r_frame_rate.den > 0 ? av_q2d(s->r_frame_rate) : 0.0;
    v->n_frames = s->nb_frames > 0 ? (uint64_t)s->nb_frames : 0;
    v->start_s = seconds(s->start_time, s->time_base, file_start(fc));
    v->duration_s = stream_duration(fc, s);
}

static bool format_is_picture(const char *name)
{
    const size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, "_pipe") == 0;
}

static status info_fill(struct media *m, struct demux *d, struct err *e)
{
    AVFormatContext *fc = d->fc;
    struct media_info *i = &m->info;
    snprintf(i->container, sizeof i->container, "%s", fc->iformat->name);
    i->is_image = format_is_picture(fc->iformat->name);
    i->duration_s = fc->duration > 0 ? (double)fc->duration / AV_TIME_BASE : -1.0;
    m->audio_stream = stream_find(fc, AVMEDIA_TYPE_AUDIO);
    m->video_stream = stream_find(fc, AVMEDIA_TYPE_VIDEO);
    if (m->audio_stream < 0 && m->video_stream < 0)
        return err_set(e, E_INPUT, "%s: neither sound nor pictures inside (%s)", m->name, i->container);
    i->has_audio = m->audio_stream >= 0;
    i->has_video = m->video_stream >= 0 && !i->is_image;
    if (i->has_audio) audio_info(fc, fc->streams[m->audio_stream], &i->audio);
    if (m->video_stream >= 0) video_info(fc, fc->streams[m->video_stream], i->is_image, &i->video);
    if (i->is_image) {
        i->duration_s = i->video.duration_s = i->video.start_s = -1.0;
        i->video.fps = 0.0;
    }
    if (i->is_image && (i->video.width == 0 || i->video.height == 0))
        return libav_fail(e, m, "damaged picture", AVERROR_INVALIDDATA);
    TRY(size_check(m, i->video.width, i->video.height, e));
    return OK;
}

static status start(struct media *m, struct media **out, struct err *e)
{
    struct demux d;
    status st;
    pthread_once(&log_once, log_init);
    if (m->size == 0) {
        st = err_set(e, E_INPUT, "%s: empty (0 bytes)", m->name);
        goto undo;
    }
    TRY_GOTO(st, demux_open(m, -1, &d, e), undo);
    st = info_fill(m, &d, e);
    demux_close(&d);
    if (st != OK) goto undo;
    *out = m;
    return OK;
undo:
    media_close(&m);
    return st;
}

status media_open(const char *path, struct media **out, struct err *e)
{
    struct stat s;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        const int why = errno;
        return err_set(e, E_INPUT, "%s: %s", path, why == ENOENT ? "no such file" : strerror(why));
    }
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        close(fd);
        return err_set(e, E_INPUT, "%s: %s", path,
                       S_ISDIR(s.st_mode) ? "a directory: give a media file" : "not a regular file");
    }
    struct media *m = mem_must(1, sizeof *m);
    m->fd = fd;
    m->size = s.st_size;
    m->name = mem_must_strdup(path);
    return start(m, out, e);
}

status media_open_memory(const void *bytes, size_t n, const char *name, struct media **out, struct err *e)
{
    struct media *m = mem_must(1, sizeof *m);
    m->fd = -1;
    m->bytes = bytes;
    m->size = (int64_t)n;
    m->name = mem_must_strdup(name);
    return start(m, out, e);
}

status media_open_fd(int fd, uint64_t bytes, const char *name, struct media **out, struct err *e)
{
    struct media *m = mem_must(1, sizeof *m);
    m->fd = fd;
    m->fd_borrowed = true;
    m->size = bytes > INT64_MAX ? INT64_MAX : (int64_t)bytes;
    m->name = mem_must_strdup(name);
    return start(m, out, e);
}

void media_close(struct media **m)
{
    if (*m == NULL) return;
    if ((*m)->fd >= 0 && !(*m)->fd_borrowed) close((*m)->fd);
    free((*m)->name);
    free(*m);
    *m = NULL;
}

const struct media_info *media_info(const struct media *m) { return &m->info; }

const char *media_warning(const struct media *m) { return m->warning[0] ? m->warning : NULL; }
