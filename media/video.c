/* media/video.c - films: count the frames, pick some, hand them over as patches.
 *
 *   count    The packets are read once, undecoded. A packet is a frame with the codecs in one_to_one(); with
 *            others, and where the file looks damaged, is interlaced or begins in the middle, everything is
 *            decoded once to count.
 *   pick     SELECT, for H.264 and HEVC: the frames that are wanted are known by their timestamps before they
 *            are decoded (order.h), so the decoder may drop every other frame that nothing refers to.
 *            ALL: every frame is decoded and numbered as it comes. Also the way out when SELECT meets a
 *            surprise.
 *            SELECT begins a part of a film two key frames before it, not at the start.
 *   convert  RGB8, turned as the file asks, the loader's resize, the processor's, patches. */
#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "media/libav.h"
#include "media/order.h"

#define QUEUE 128                         /* packets between the file and the decoder, a power of 2 */
#define WANTED 256                        /* sampled frames whose timestamp is known, not yet decoded */
#define KEYS 64                           /* key packets remembered, more than ORDER_DEPTH */
#define TEMPORAL_MAX 16

struct media_video {
    struct media *m;
    struct media_vision vision;
    struct media_video_plan plan;
    int n_threads;
    bool select;                          /* SELECT, else ALL                                     */
    bool ended;                           /* no more packets in the file                          */

    struct demux d;
    AVCodecContext *dec;
    AVPacket *pkt;
    AVFrame *frame;
    uint32_t n_given;                     /* samples handed over                                  */
    uint64_t n_out;                       /* ALL: frames decoded                                  */

    struct order order;                   /* SELECT                                               */
    AVPacket *queue[QUEUE];               /* read, not yet sent: [at, at + n) modulo QUEUE        */
    uint32_t queue_at, queue_n;
    int64_t wanted[WANTED];               /* timestamp of sample i at i modulo WANTED             */
    uint32_t n_wanted;                    /* samples that have one                                */
    uint64_t n_skip, n_taken;             /* first packets that nothing sampled needs; taken so far */

    struct to_rgb to_rgb;
    uint8_t *rgb, *turned;                /* [n_pixels, 3] of one frame                           */
    size_t rgb_cap, turned_cap;
    uint32_t in_h, in_w;                  /* what the resizer was made for                        */
    struct media_resizer *load, *process; /* process NULL: the second size is the first           */
    float *loaded;                        /* [load_h, load_w, 4]; with process alone              */
    float *slice[TEMPORAL_MAX];           /* [height, width, 4] each                              */
};

/* ---- counting ------------------------------------------------------------------------------------------ */

/* Codecs whose packets are frames, one to one. */
static bool one_to_one(enum AVCodecID id)
{
    static const enum AVCodecID list[] = { AV_CODEC_ID_H264,     AV_CODEC_ID_HEVC,    AV_CODEC_ID_VP9,
                                           AV_CODEC_ID_AV1,      AV_CODEC_ID_MJPEG,   AV_CODEC_ID_PNG,
                                           AV_CODEC_ID_PRORES,   AV_CODEC_ID_DNXHD,   AV_CODEC_ID_FFV1,
                                           AV_CODEC_ID_RAWVIDEO, AV_CODEC_ID_HUFFYUV, AV_CODEC_ID_QTRLE,
                                           AV_CODEC_ID_UTVIDEO };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i] == id) return true;
    return false;
}

/* Frames by packets. *sure: decoding will give as many; *ordered: their timestamps tell their order. */
static status count_packets(struct media *m, uint64_t *n, bool *sure, bool *ordered, struct err *e)
{
    struct demux d;
    struct order order = { .n_waiting = 0 };
    int64_t first = AV_NOPTS_VALUE, pts;
    uint64_t n_packets = 0;               /* with those that an edit list hides */
    bool end = false;
    status st;
    AVPacket *pkt = av_packet_alloc();
    if (pkt == NULL) return err_set(e, E_NOMEM, "%s: out of memory", m->name);
    *n = 0;
    *ordered = true;
    TRY_GOTO(st, demux_open(m, m->video_stream, &d, e), none);
    const AVCodecParameters *par = d.fc->streams[m->video_stream]->codecpar;
    *sure = one_to_one(par->codec_id) && par->field_order <= AV_FIELD_PROGRESSIVE;   /* else fields */
    for (bool begun = false;; begun = true) {
        TRY_GOTO(st, demux_read(&d, m->video_stream, pkt, &end, e), done);
        if (end) break;
        if (!begun) first = pkt->pts;
        if (!begun && !(pkt->flags & AV_PKT_FLAG_KEY)) *sure = false;     /* begins in the middle */
        if (pkt->flags & AV_PKT_FLAG_CORRUPT) *sure = false;
        if (pkt->pts != AV_NOPTS_VALUE && pkt->pts < first && !(pkt->flags & AV_PKT_FLAG_DISCARD))
            *sure = false;                /* leads a key frame: may not decode */
        n_packets++;
        if (!(pkt->flags & AV_PKT_FLAG_DISCARD)) {
            ++*n;
            *ordered = *ordered && order_put(&order, pkt->pts);
            if (*ordered) order_next(&order, false, &pts);
        }
        av_packet_unref(pkt);
    }
    if (n_packets < m->info.video.n_frames)
        media_warn(m, "%s: truncated: %" PRIu64 " of its %" PRIu64 " frames are there", m->name, n_packets,
                   m->info.video.n_frames);
    if (m->warning[0] != 0) *sure = false;
done:
    demux_close(&d);
none:
    av_packet_free(&pkt);
    return st;
}

static int cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    const int n = CPU_COUNT(&set);
    return n > 8 ? 8 : n;
}

static status decoder_start(struct media_video *v, struct err *e)
{
    TRY(demux_open(v->m, v->m->video_stream, &v->d, e));
    TRY(decoder_open(&v->d, v->m->video_stream, v->n_threads, FF_IDCT_AUTO, &v->dec, e));
    if (v->pkt == NULL) v->pkt = av_packet_alloc();
    if (v->frame == NULL) v->frame = av_frame_alloc();
    if (v->pkt == NULL || v->frame == NULL) return err_set(e, E_NOMEM, "%s: out of memory", v->m->name);
    return OK;
}

static void decoder_stop(struct media_video *v)
{
    avcodec_free_context(&v->dec);
    demux_close(&v->d);
    for (; v->queue_n > 0; v->queue_n--) av_packet_free(&v->queue[v->queue_at++ % QUEUE]);
    v->order = (struct order){ .n_waiting = 0 };
    v->ended = false;
    v->n_out = 0;
    v->n_wanted = 0;
    v->n_taken = 0;
}

/* SELECT, of a part: how many packets lie before the key frame before the key frame that its first frame follows. The
 * second key frame back, because the frames around one may lean on what came before it. */
static status skip_find(struct media_video *v, struct err *e)
{
    struct { uint64_t index; int64_t pts; } key[KEYS];
    struct order order = { .n_waiting = 0 };
    struct demux d;
    int64_t pts = 0;
    uint64_t n_keys = 0;
    bool end = false;
    status st = OK;
    AVPacket *pkt = av_packet_alloc();
    v->n_skip = 0;
    if (pkt == NULL) return err_set(e, E_NOMEM, "%s: out of memory", v->m->name);
    TRY_GOTO(st, demux_open(v->m, v->m->video_stream, &d, e), none);
    for (uint64_t i = 0; order.n_numbered <= v->plan.first_frame; i++) {
        TRY_GOTO(st, demux_read(&d, v->m->video_stream, pkt, &end, e), done);
        if (!end && (pkt->flags & AV_PKT_FLAG_KEY)) {
            key[n_keys % KEYS].index = i;
            key[n_keys++ % KEYS].pts = pkt->pts;
        }
        if (!end && !(pkt->flags & AV_PKT_FLAG_DISCARD) && !order_put(&order, pkt->pts)) goto done;
        if (!order_next(&order, end, &pts) && end) goto done;
        av_packet_unref(pkt);
    }
    for (uint64_t k = n_keys, found = 0; k-- > 0 && k + KEYS >= n_keys;)
        if (key[k % KEYS].pts <= pts && ++found == 2) {
            v->n_skip = key[k % KEYS].index;
            break;
        }
done:
    demux_close(&d);
none:
    av_packet_free(&pkt);
    return st;
}

/* ---- decoding ------------------------------------------------------------------------------------------ */

/* SELECT: read one packet into the queue and give out the numbers that this settles. *lost: the order cannot
 * be told. */
static status queue_read(struct media_video *v, bool *lost, struct err *e)
{
    int64_t pts;
    AVPacket *pkt = av_packet_alloc();
    if (pkt == NULL) return err_set(e, E_NOMEM, "%s: out of memory", v->m->name);
    const status st = demux_read(&v->d, v->m->video_stream, pkt, &v->ended, e);
    if (st != OK || v->ended) av_packet_free(&pkt);
    TRY(st);
    if (pkt != NULL) {
        v->queue[(v->queue_at + v->queue_n++) % QUEUE] = pkt;
        if (!(pkt->flags & AV_PKT_FLAG_DISCARD) && !order_put(&v->order, pkt->pts)) *lost = true;
    }
    while (!*lost && order_next(&v->order, v->ended, &pts)) {
        if (v->n_wanted == v->plan.n_sampled) continue;
        if (v->order.n_numbered - 1 != media_frame_index(&v->plan, v->n_wanted)) continue;
        if (v->n_wanted - v->n_given == WANTED) *lost = true;
        v->wanted[v->n_wanted++ % WANTED] = pts;
    }
    return OK;
}

static bool is_wanted(const struct media_video *v, int64_t pts)
{
    for (uint32_t i = v->n_given; i < v->n_wanted; i++)
        if (v->wanted[i % WANTED] == pts) return true;
    return false;
}

/* SELECT: the next packet into v->pkt, once it has its number, and what the decoder may drop. */
static status queue_take(struct media_video *v, bool *end, bool *lost, struct err *e)
{
    for (;;) {
        AVPacket *front = v->queue_n > 0 ? v->queue[v->queue_at % QUEUE] : NULL;
        const bool numbered = v->order.n_numbered > 0 && front != NULL && front->pts <= v->order.last;
        if (front != NULL && (v->ended || numbered || (front->flags & AV_PKT_FLAG_DISCARD))) {
            if (v->n_taken++ < v->n_skip) {
                av_packet_free(&v->queue[v->queue_at++ % QUEUE]);
                v->queue_n--;
                continue;
            }
            v->dec->skip_frame = is_wanted(v, front->pts) ? AVDISCARD_DEFAULT : AVDISCARD_NONREF;
            av_packet_move_ref(v->pkt, front);
            av_packet_free(&v->queue[v->queue_at++ % QUEUE]);
            v->queue_n--;
            *end = false;
            return OK;
        }
        *end = v->ended;
        if (v->ended) return OK;
        *lost = *lost || v->queue_n == QUEUE;
        if (*lost) return OK;
        TRY(queue_read(v, lost, e));
        if (*lost) return OK;
    }
}

/* The next decoded frame in v->frame, or *end. *lost: SELECT cannot go on. */
static status frame_next(struct media_video *v, bool *end, bool *lost, struct err *e)
{
    for (;;) {
        int rc = avcodec_receive_frame(v->dec, v->frame);
        if (rc >= 0) return OK;
        *end = rc == AVERROR_EOF;
        if (*end) return OK;
        bool drained = false;
        if (rc == AVERROR(EAGAIN)) {
            if (v->select) TRY(queue_take(v, &drained, lost, e));
            else TRY(demux_read(&v->d, v->m->video_stream, v->pkt, &drained, e));
            if (*lost) return OK;
            rc = avcodec_send_packet(v->dec, drained ? NULL : v->pkt);
            av_packet_unref(v->pkt);
        }
        if (rc == AVERROR(ENOMEM)) return err_set(e, E_NOMEM, "%s: out of memory", v->m->name);
        if (rc >= 0 || rc == AVERROR_EOF) continue;
        media_warn(v->m, "%s: damaged film: some frames are missing or broken", v->m->name);
        *lost = v->select;
        if (*lost) return OK;
    }
}

/* All frames decoded, counted. */
static status count_decoded(struct media *m, int n_threads, uint64_t *n, struct err *e)
{
    struct media_video v = { .m = m, .n_threads = n_threads };
    bool end = false, lost = false;
    status st = decoder_start(&v, e);
    for (*n = 0; st == OK; ++*n) {
        st = frame_next(&v, &end, &lost, e);
        if (end) break;
    }
    decoder_stop(&v);
    av_packet_free(&v.pkt);
    av_frame_free(&v.frame);
    if (st == OK) m->n_frames_true = *n;
    return st;
}

/* ALL has come to the end too early or too late: count, remember, say. */
static status miscounted(struct media_video *v, struct err *e)
{
    uint64_t n;
    const uint64_t promised = v->plan.total_frames;
    TRY(count_decoded(v->m, v->n_threads, &n, e));
    return err_set(e, E_INPUT, "%s: damaged: its packets promise %" PRIu64 " frames and %" PRIu64 " decode",
                   v->m->name, promised, n);
}

/* The frame of the next sample in v->frame. */
static status sample_find(struct media_video *v, struct err *e)
{
    const uint32_t i = v->n_given;
    for (;;) {
        bool end = false, lost = false;
        TRY(frame_next(v, &end, &lost, e));
        if (v->select) {
            const int64_t want = i < v->n_wanted ? v->wanted[i % WANTED] : INT64_MAX;
            if (!end && !lost && v->frame->pts == want) return OK;
            if (!end && !lost && v->frame->pts < want) continue;
            decoder_stop(v);              /* a surprise: ALL, from the start */
            v->select = false;
            TRY(decoder_start(v, e));
            continue;
        }
        if (end) return miscounted(v, e);
        if (v->n_out++ == media_frame_index(&v->plan, i)) return OK;
    }
}

/* After the last sample, ALL: does the film end here? A part need not reach the end. */
static status end_check(struct media_video *v, struct err *e)
{
    const struct media_video_plan *p = &v->plan;
    bool end = false, lost = false;
    if (v->select || v->m->n_frames_true != 0 || p->first_frame + p->n_frames < p->total_frames) return OK;
    TRY(frame_next(v, &end, &lost, e));
    return end ? OK : miscounted(v, e);
}

/* ---- converting ---------------------------------------------------------------------------------------- */

/* src [h, w, 3] turned clockwise by `turn` degrees, then mirrored left to right. */
static void turn_rgb(const uint8_t *src, uint32_t h, uint32_t w, int turn, bool mirror, uint8_t *dst)
{
    const uint32_t oh = turn % 180 ? w : h, ow = turn % 180 ? h : w;
    for (uint32_t y = 0; y < oh; y++)
        for (uint32_t x = 0; x < ow; x++, dst += 3) {
            const uint32_t u = mirror ? ow - 1 - x : x;
            const uint32_t sy = turn == 0 ? y : turn == 90 ? h - 1 - u : turn == 180 ? h - 1 - y : u;
            const uint32_t sx = turn == 0 ? u : turn == 90 ? y : turn == 180 ? w - 1 - u : w - 1 - y;
            memcpy(dst, src + ((size_t)sy * w + sx) * 3, 3);
        }
}

static status resizers_make(struct media_video *v, uint32_t h, uint32_t w, struct err *e)
{
    const struct media_video_plan *p = &v->plan;
    if (v->load != NULL && v->in_h == h && v->in_w == w) return OK;
    media_resizer_destroy(&v->load);
    TRY(media_resizer_create(h, w, p->load_h, p->load_w, &v->load, e));
    v->in_h = h;
    v->in_w = w;
    if (v->process != NULL || (p->load_h == p->height && p->load_w == p->width)) return OK;
    TRY(media_resizer_create(p->load_h, p->load_w, p->height, p->width, &v->process, e));
    return mem_alloc_aligned(&v->loaded, (size_t)p->load_h * p->load_w * 4 * sizeof *v->loaded, e);
}

/* v->frame as the plan's size into out [height, width, 4]. */
static status sample_convert(struct media_video *v, float *out, struct err *e)
{
    const struct media_video_info *i = &v->m->info.video;
    const AVFrame *f = v->frame;
    uint32_t h = (uint32_t)f->height, w = (uint32_t)f->width;
    const size_t bytes = (size_t)h * w * 3;
    TRY(mem_grow(&v->rgb, &v->rgb_cap, bytes, 1, e));
    uint8_t *rgb = v->rgb;
    TRY(to_rgb_run(&v->to_rgb, v->m, f, rgb, e));
    if (i->rotation != 0 || i->mirrored) {
        TRY(mem_grow(&v->turned, &v->turned_cap, bytes, 1, e));
        turn_rgb(rgb, h, w, i->rotation, i->mirrored, v->turned);
        rgb = v->turned;
        if (i->rotation % 180 != 0) h = (uint32_t)f->width, w = (uint32_t)f->height;
    }
    TRY(resizers_make(v, h, w, e));
    media_resize_frame(v->load, rgb, v->process != NULL ? v->loaded : out);
    if (v->process != NULL) media_resize_again(v->process, v->loaded, out);
    return OK;
}

/* ---- the film ------------------------------------------------------------------------------------------ */

static status plan_make(struct media_video *v, const struct media_video_options *o, struct err *e)
{
    struct media *m = v->m;
    const struct media_video_info *i = &m->info.video;
    uint64_t n = m->n_frames_true;
    bool sure = true, ordered = false;
    TRY(count_packets(m, &n, &sure, &ordered, e));
    if (m->n_frames_true != 0) n = m->n_frames_true;
    else if (!sure && n > 0) TRY(count_decoded(m, v->n_threads, &n, e));
    if (n == 0)
        return err_set(e, E_INPUT, "%s: its film (%s) has no frames%s", m->name, i->codec,
                       m->n_frames_true == 0 && !sure ? " that can be decoded" : "");
    const double rate = i->fps > 0.0 ? i->fps : i->duration_s > 0.0 ? (double)n / i->duration_s : 0.0;
    const status st = media_video_plan(n, rate, i->height, i->width, o, &v->plan, e);
    if (st != OK) {
        err_prefix(e, "%s", m->name);
        return st;
    }
    const bool drops = strcmp(i->codec, "h264") == 0 || strcmp(i->codec, "hevc") == 0;
    v->select = drops && sure && ordered && m->n_frames_true == 0 && v->plan.n_sampled < n / 2;
    return OK;
}

status media_video_open(struct media *m, const struct media_video_options *o, struct media_video **out,
                        struct err *e)
{
    struct media_video *v;
    status st;
    if (m->info.is_image)
        return err_set(e, E_INPUT, "%s: a still picture (%s): give it as an image", m->name,
                       m->info.container);
    if (!m->info.has_video) return err_set(e, E_INPUT, "%s: has no film", m->name);
    TRY(mem_alloc(&v, 1, sizeof *v, e));
    v->m = m;
    v->vision = o != NULL && o->vision.patch ? o->vision : media_vision_default();
    const int n = o != NULL && o->n_threads > 0 ? o->n_threads : cpus();
    v->n_threads = n == 1 ? 1 : n > 8 ? 16 : 2 * n;   /* twice: work for them while a frame is resized */
    if (v->vision.temporal == 0 || v->vision.temporal > TEMPORAL_MAX) {
        st = err_set(e, E_ARG, "temporal_patch_size must be 1 to %d, not %u", TEMPORAL_MAX,
                     v->vision.temporal);
        goto undo;
    }
    TRY_GOTO(st, plan_make(v, o, e), undo);
    if (v->select && v->plan.first_frame > 0) TRY_GOTO(st, skip_find(v, e), undo);
    TRY_GOTO(st, decoder_start(v, e), undo);
    for (uint32_t f = 0; f < v->vision.temporal; f++)
        TRY_GOTO(
            st,
            mem_alloc_aligned(&v->slice[f], (size_t)v->plan.height * v->plan.width * 4 * sizeof(float), e),
            undo);
    *out = v;
    return OK;
undo:
    media_video_close(&v);
    return st;
}

const struct media_video_plan *media_video_get_plan(const struct media_video *v) { return &v->plan; }

status media_video_next(struct media_video *v, float *patches, struct err *e)
{
    const struct media_video_plan *p = &v->plan;
    const uint32_t temporal = v->vision.temporal;
    if (v->n_given >= p->n_sampled)
        return err_set(e, E_ARG, "%s: all %u slices of the film have been read", v->m->name, p->grid_t);
    const float *frame[TEMPORAL_MAX];
    for (uint32_t f = 0; f < temporal; f++) {
        frame[f] = v->slice[f];
        if (v->n_given == p->n_sampled) {         /* an odd rest: the last frame again */
            frame[f] = frame[f - 1];
            continue;
        }
        TRY(sample_find(v, e));
        const status st = sample_convert(v, v->slice[f], e);
        av_frame_unref(v->frame);
        TRY(st);
        v->n_given++;
    }
    if (v->n_given == p->n_sampled) TRY(end_check(v, e));
    media_patches_write(&v->vision, frame, p->height, p->width, patches);
    return OK;
}

void media_video_close(struct media_video **video)
{
    struct media_video *v = *video;
    if (v == NULL) return;
    decoder_stop(v);
    av_packet_free(&v->pkt);
    av_frame_free(&v->frame);
    to_rgb_free(&v->to_rgb);
    media_resizer_destroy(&v->load);
    media_resizer_destroy(&v->process);
    for (int f = 0; f < TEMPORAL_MAX; f++) free(v->slice[f]);
    free(v->loaded);
    free(v->rgb);
    free(v->turned);
    free(v);
    *video = NULL;
}

/* One try of media_video_load. */
static status load(struct media *m, const struct media_video_options *o, struct media_patches *out,
                   struct media_video_plan *plan, struct err *e)
{
    struct media_video *v;
    struct media_patches p = { .grid_t = 0 };
    status st;
    TRY(media_video_open(m, o, &v, e));
    p.grid_t = v->plan.grid_t, p.grid_h = v->plan.grid_h, p.grid_w = v->plan.grid_w;
    p.row = 3 * v->vision.temporal * v->vision.patch * v->vision.patch;
    const size_t slice = (size_t)p.grid_h * p.grid_w * p.row;
    TRY_GOTO(st, mem_alloc_aligned(&p.patches, p.grid_t * slice * sizeof *p.patches, e), done);
    for (uint32_t t = 0; t < p.grid_t; t++) TRY_GOTO(st, media_video_next(v, p.patches + t * slice, e), done);
    if (plan != NULL) *plan = v->plan;
    *out = p;
    p.patches = NULL;
done:
    free(p.patches);
    media_video_close(&v);
    return st;
}

status media_video_load(struct media *m, const struct media_video_options *o, struct media_patches *out,
                        struct media_video_plan *plan, struct err *e)
{
    const uint64_t known = m->n_frames_true;
    const status st = load(m, o, out, plan, e);
    if (st != E_INPUT || known != 0 || m->n_frames_true < 2) return st;
    return load(m, o, out, plan, e);
}
