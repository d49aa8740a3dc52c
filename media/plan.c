/* media/plan.c - how large pictures become and which frames of a film are seen: qwen-omni-utils' smart_resize
 * and smart_nframes in f64, then the processor's smart_resize. */
#include <inttypes.h>
#include <math.h>

#include "media/features.h"

#define IMAGE_MIN 3136                    /* 4 groups of 28 x 28      */
#define IMAGE_MAX 12845056                /* 16384 groups             */
#define VIDEO_MIN 100352                  /* 128 groups               */
#define VIDEO_MAX 602112                  /* 768 groups               */
#define VIDEO_TOTAL 90316800              /* 128000 groups, times 0.9 */
#define RATIO_MAX 200

struct media_vision media_vision_default(void)
{
    return (struct media_vision){ .patch = 14, .merge = 2, .temporal = 2,
                                  .mean = { 0.48145466f, 0.4578275f, 0.40821073f },
                                  .std = { 0.26862954f, 0.26130258f, 0.27577711f } };
}

static double larger(double a, double b) { return a > b ? a : b; }

/* As media_smart_resize; the most pixels need not be whole (a share of a film's budget is not). */
static status smart_resize(uint32_t h, uint32_t w, uint32_t factor, double min_pixels, double max_pixels,
                           bool loader, uint32_t *out_h, uint32_t *out_w, struct err *e)
{
    if (h == 0 || w == 0) return err_set(e, E_INPUT, "a picture of %u x %u pixels shows nothing", w, h);
    const double ratio = h > w ? (double)h / w : (double)w / h, f = factor;
    if (ratio > RATIO_MAX)
        return err_set(e, E_INPUT,
                       "a picture of %u x %u pixels has an aspect ratio of %.1f, more than %d: crop it", w, h,
                       ratio, RATIO_MAX);
    double hb = rint(h / f) * f, wb = rint(w / f) * f;
    if (loader) hb = larger(f, hb), wb = larger(f, wb);
    const double area = (double)h * w;
    if (hb * wb > max_pixels) {
        const double beta = sqrt(area / max_pixels);
        hb = larger(f, floor(h / beta / f) * f);
        wb = larger(f, floor(w / beta / f) * f);
    } else if (hb * wb < min_pixels) {
        const double beta = sqrt(min_pixels / area);
        hb = ceil(h * beta / f) * f;
        wb = ceil(w * beta / f) * f;
    }
    if (hb < f || wb < f || hb * wb > 1e9)
        return err_set(e, E_INPUT,
                       "a picture of %u x %u pixels cannot be brought to between %.0f and %.0f pixels", w, h,
                       min_pixels, max_pixels);
    *out_h = (uint32_t)hb;
    *out_w = (uint32_t)wb;
    return OK;
}

status media_smart_resize(uint32_t h, uint32_t w, uint32_t factor, struct media_limits lim, bool loader,
                          uint32_t *out_h, uint32_t *out_w, struct err *e)
{
    return smart_resize(h, w, factor, (double)lim.min_pixels, (double)lim.max_pixels, loader, out_h, out_w,
                        e);
}

static struct media_limits limits_of(struct media_limits lim, uint64_t min_pixels, uint64_t max_pixels)
{
    if (lim.min_pixels == 0) lim.min_pixels = min_pixels;
    if (lim.max_pixels == 0) lim.max_pixels = max_pixels;
    return lim;
}

static status limits_check(const struct media_limits *lim, struct err *e)
{
    if (lim->min_pixels <= lim->max_pixels) return OK;
    return err_set(e, E_ARG,
                   "min_pixels %" PRIu64 " is above max_pixels %" PRIu64 ": give both, smaller first",
                   lim->min_pixels, lim->max_pixels);
}

status media_image_plan(uint32_t h, uint32_t w, const struct media_image_options *o,
                        struct media_image_plan *out, struct err *e)
{
    const struct media_image_options none = { .vision = { 0 } };
    if (o == NULL) o = &none;
    const struct media_vision v = o->vision.patch ? o->vision : media_vision_default();
    const struct media_limits lim = limits_of(o->limits, IMAGE_MIN, IMAGE_MAX);
    struct media_image_plan p;
    TRY(limits_check(&lim, e));
    TRY(media_smart_resize(h, w, v.patch * v.merge, lim, true, &p.load_h, &p.load_w, e));
    TRY(media_smart_resize(p.load_h, p.load_w, v.patch * v.merge, lim, false, &p.height, &p.width, e));
    p.grid_h = p.height / v.patch;
    p.grid_w = p.width / v.patch;
    p.n_tokens = (uint64_t)p.grid_h * p.grid_w / (v.merge * v.merge);
    *out = p;
    return OK;
}

/* How many frames to sample: even, between 2 and total. */
static status n_frames_of(uint64_t total, double rate, double fps, const struct media_video_options *o,
                          uint32_t *out, struct err *e)
{
    double n;
    if (o->n_frames != 0) {
        n = 2.0 * rint(o->n_frames / 2.0);
        if (n > (double)total) n = 2.0 * (double)(total / 2);
    } else {
        const uint32_t lo = o->min_frames ? o->min_frames : 4, hi = o->max_frames ? o->max_frames : 768;
        const double most = 2.0 * (double)((hi < total ? hi : total) / 2);
        n = (double)total / rate * fps;
        n = larger(n, 2.0 * ceil(lo / 2.0));
        if (n > most) n = most;
        n = 2.0 * floor(n / 2.0);
    }
    if (n < 2.0)
        return err_set(e, E_INPUT, "the film gives %.0f frames to look at and 2 is the least: it has %" PRIu64
                       ", or max_frames is too small", n, total);
    *out = (uint32_t)n;
    return OK;
}

/* Which frames the part has: qwen-vl-utils' calculate_video_frame_range. Times behind the film's end are its end. */
static status part_of(const struct media_video_options *o, struct media_video_plan *p, struct err *e)
{
    const double length = (double)p->total_frames / p->frame_rate;
    const double start = o->start_s > 0.0 ? o->start_s : 0.0, end = o->end_s > 0.0 ? o->end_s : length;
    if (!(start < 1e9) || end <= start)
        return err_set(e, E_ARG, "the part from %g s to %g s cannot be: the end must come after the start%s", start,
                       end, o->end_s > 0.0 ? "" : " and the film ends there");
    const double first = ceil((start < length ? start : length) * p->frame_rate);
    const double past = floor((end < length ? end : length) * p->frame_rate), last = (double)p->total_frames - 1.0;
    p->first_frame = (uint64_t)first;
    if (first >= (past < last ? past : last))
        return err_set(e, E_ARG,
                       "the part from %g s to %g s has fewer than 2 frames: the film has %.3f s at %.3g a second",
                       start, end, length, p->frame_rate);
    p->n_frames = (uint64_t)(past < last ? past : last) - p->first_frame + 1;
    return OK;
}

status media_video_plan(uint64_t total_frames, double frame_rate, uint32_t h, uint32_t w,
                        const struct media_video_options *o, struct media_video_plan *out, struct err *e)
{
    const struct media_video_options none = { .vision = { 0 } };
    if (o == NULL) o = &none;
    const struct media_vision v = o->vision.patch ? o->vision : media_vision_default();
    const struct media_limits lim = limits_of(o->limits, VIDEO_MIN, VIDEO_MAX);
    const double fps = o->fps != 0.0 ? o->fps : 2.0, cap = o->cap_pixels ? (double)o->cap_pixels : VIDEO_MAX;
    const double total_pixels = o->total_pixels ? (double)o->total_pixels : VIDEO_TOTAL;
    TRY(limits_check(&lim, e));
    if (!(fps > 0.0 && fps < 1e6)) return err_set(e, E_ARG, "fps must be above 0, not %g", fps);
    if (o->min_frames && o->max_frames && o->min_frames > o->max_frames)
        return err_set(e, E_ARG, "min_frames %u is above max_frames %u", o->min_frames, o->max_frames);
    if (total_frames < 2)
        return err_set(e, E_INPUT,
                       "a film of %" PRIu64 " frame%s: at least 2 are needed (a single picture is an image)",
                       total_frames, total_frames == 1 ? "" : "s");
    if (!(frame_rate > 0.0))
        return err_set(e, E_INPUT, "the film does not tell its frame rate: convert it to a common container");

    struct media_video_plan p = { .total_frames = total_frames, .frame_rate = frame_rate };
    TRY(part_of(o, &p, e));
    TRY(n_frames_of(p.n_frames, frame_rate, fps, o, &p.n_sampled, e));
    p.sample_fps = (double)p.n_sampled / (double)p.n_frames * frame_rate;

    /* The loader: a frame's share of the budget, never under 1.05 times the least, and the caller's own
     * limit. */
    double share = total_pixels / p.n_sampled * v.temporal;
    if (share > cap) share = cap;
    share = larger(share, floor((double)lim.min_pixels * 1.05));
    if ((double)lim.max_pixels < share) share = (double)lim.max_pixels;
    const uint32_t factor = v.patch * v.merge;
    TRY(smart_resize(h, w, factor, (double)lim.min_pixels, share, true, &p.load_h, &p.load_w, e));
    TRY(media_smart_resize(p.load_h, p.load_w, factor, lim, false, &p.height, &p.width, e));

    p.grid_t = (p.n_sampled + v.temporal - 1) / v.temporal;
    p.grid_h = p.height / v.patch;
    p.grid_w = p.width / v.patch;
    p.second_per_grid = v.temporal / fps;
    p.n_tokens = (uint64_t)p.grid_t * p.grid_h * p.grid_w / (v.merge * v.merge);
    *out = p;
    return OK;
}

uint64_t media_frame_index(const struct media_video_plan *p, uint32_t i)
{
    /* i (n_frames - 1) / (n - 1) to the nearest whole; n - 1 is odd, so a tie cannot be. */
    const uint64_t last = p->n_sampled - 1, x = (uint64_t)i * (p->n_frames - 1);
    return p->first_frame + (2 * x + last) / (2 * last);
}
