/* media/child.c - the child's side of child.h: `omnidrop --media-child`. Takes the job, goes behind the walls of
 * confine.h, and only then looks at the first byte of a file. It never returns to the program around it. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "media/child.h"
#include "media/confine.h"
#include "media/libav.h"

#define CONTROL 0
#define FDS_MAX 800u
#define PICTURE_PIXELS ((uint64_t)64 << 20)
#define FRAME_PIXELS ((uint64_t)8192 * 8192)
#define ROW 1176

const char *const CHILD_TAGS[] = { "unsupported_media", "media_decode_failed", "media_too_large", "media_too_long",
                                   "context_length_exceeded", "spool_full" };
const uint32_t CHILD_N_TAGS = sizeof CHILD_TAGS / sizeof *CHILD_TAGS;

static struct {
    struct child_job job;
    struct child_source *source;   /* [job.n_sources] */
    int fd[FDS_MAX];               /* the sources', then the result's or the samples' */
    int out;
} me;

/* ---- talking -------------------------------------------------------------------------------------------- */

static bool put(int fd, const void *bytes, size_t n)
{
    const char *p = bytes;
    while (n > 0) {
        const ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return false;
        p += done;
        n -= (size_t)done;
    }
    return true;
}

static bool get(void *to, size_t n)
{
    char *p = to;
    while (n > 0) {
        const ssize_t done = read(CONTROL, p, n);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return false;
        p += done;
        n -= (size_t)done;
    }
    return true;
}

/* The parent is gone where this fails: there is nobody to tell. */
static void say(enum child_word word, const void *bytes, size_t n)
{
    const struct child_head h = { .word = word, .bytes = (uint32_t)n };
    if (!put(CONTROL, &h, sizeof h) || !put(CONTROL, bytes, n)) _exit(1);
}

static _Noreturn void fail(const struct err *e)
{
    struct child_fail f = { .code = e->code, .tag = UINT32_MAX };
    for (uint32_t i = 0; i < CHILD_N_TAGS; i++)
        if (e->tag != NULL && strcmp(e->tag, CHILD_TAGS[i]) == 0) f.tag = i;
    snprintf(f.text, sizeof f.text, "%s", e->text);
    say(CHILD_FAIL, &f, sizeof f);
    _exit(0);
}

static void warn(const struct media *m)
{
    const char *text = media_warning(m);
    if (text != NULL) say(CHILD_WARNING, text, strlen(text));
}

/* ---- taking the job ------------------------------------------------------------------------------------- */

static bool take_fds(uint32_t n)
{
    for (uint32_t at = 0; at < n; ) {
        union {
            struct cmsghdr head;
            char bytes[CMSG_SPACE(253 * sizeof(int))];
        } control;
        char byte;
        struct iovec io = { .iov_base = &byte, .iov_len = 1 };
        struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = control.bytes,
                            .msg_controllen = sizeof control };
        const ssize_t got = recvmsg(CONTROL, &m, 0);
        if (got < 0 && errno == EINTR) continue;
        const struct cmsghdr *h = got == 1 ? CMSG_FIRSTHDR(&m) : NULL;
        if (h == NULL || h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS || h->cmsg_len < CMSG_LEN(0))
            return false;
        const uint32_t some = (uint32_t)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        if (some == 0 || some > n - at) return false;
        memcpy(me.fd + at, CMSG_DATA(h), some * sizeof(int));
        at += some;
    }
    return true;
}

static bool take_job(void)
{
    if (!get(&me.job, sizeof me.job)) return false;
    const uint32_t n = me.job.n_sources;
    const bool has_out = me.job.work != CHILD_PROBE;
    if (n == 0 || n >= FDS_MAX) return false;
    me.source = mem_must(n, sizeof *me.source);
    if (!take_fds(n + has_out) || !get(me.source, n * sizeof *me.source)) return false;
    me.out = has_out ? me.fd[n] : -1;
    return true;
}

/* ---- what every source is measured by ------------------------------------------------------------------- */

static status tagged(status st, struct err *e, const char *tag)
{
    err_tag(e, tag, NULL);
    return st;
}

static status check_size(const struct media *m, struct err *e)
{
    const struct media_info *i = media_info(m);
    if (!i->has_video && !i->is_image) return OK;
    const uint64_t own = me.job.max_pixels, most = own ? own : i->is_image ? PICTURE_PIXELS : FRAME_PIXELS;
    const uint64_t have = (uint64_t)i->video.width * i->video.height;
    if (have <= most) return OK;
    err_set(e, E_INPUT, "%s: %u x %u pixels are %" PRIu64 ", more than the limit of %" PRIu64 ": scale it down first",
            m->name, i->video.width, i->video.height, have, most);
    return tagged(E_INPUT, e, "media_too_large");
}

static status check_length(const struct media *m, struct err *e)
{
    const struct media_info *i = media_info(m);
    const double most = me.job.max_duration_s;
    double s = fmax(i->duration_s, i->has_audio ? i->audio.duration_s : 0);
    if (i->has_video) s = fmax(s, i->video.duration_s);
    if (!(s > most)) return OK;
    err_set(e, E_INPUT, "%s: %.0f s long, more than the limit of %.0f s: cut it first", m->name, s, most);
    return tagged(E_INPUT, e, "media_too_long");
}

static status open_source(uint32_t i, struct media **m, struct err *e)
{
    me.source[i].name[sizeof me.source[i].name - 1] = 0;
    TRY(media_open_fd(me.fd[i], me.source[i].bytes, me.source[i].name, m, e));
    TRY(check_size(*m, e));
    return check_length(*m, e);
}

/* ---- results -------------------------------------------------------------------------------------------- */

static status put_at(const void *bytes, size_t n, uint64_t at, struct err *e)
{
    const char *p = bytes;
    while (n > 0) {
        const ssize_t done = pwrite(me.out, p, n, (off_t)at);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            err_set(e, E_IO, "results cannot be written: %s", strerror(errno));
            return errno == ENOSPC || errno == EDQUOT ? tagged(E_IO, e, "spool_full") : E_IO;
        }
        p += done;
        at += (uint64_t)done;
        n -= (size_t)done;
    }
    return OK;
}

/* Tells the sizes and waits until the file has them. */
static void agree(const struct child_plan *p)
{
    struct child_head h;
    say(CHILD_PLAN, p, sizeof *p);
    if (!get(&h, sizeof h) || h.word != CHILD_GO) _exit(1);
}

struct work {
    struct media *m;
    const struct extract_options *o;
    struct child_plan plan;
    float *samples;                /* owned */
    size_t n_samples;
    struct media_video *film;
    struct media_patches picture;
};

static uint32_t merge_of(const struct work *w)
{
    const struct media_vision *v = w->plan.kind == MEDIA_IMAGE ? &w->o->image.vision : &w->o->video.vision;
    return v->patch ? v->merge : media_vision_default().merge;
}

static uint32_t row_of(const struct media_vision *v)
{
    return v->patch ? 3 * v->temporal * v->patch * v->patch : ROW;
}

static status check_tokens(const struct work *w, uint64_t heard, struct err *e)
{
    const uint64_t seen = (uint64_t)w->plan.t * w->plan.h * w->plan.w / ((uint64_t)merge_of(w) * merge_of(w));
    return extract_tokens_check(w->m->name, seen, heard, w->o->max_tokens, e);
}

/* ---- sound ---------------------------------------------------------------------------------------------- */

/* Audio tokens by what the container says of its length; 0: it does not say. */
static uint64_t sound_estimate(const struct work *w)
{
    const struct media_info *i = media_info(w->m);
    const double start = w->o->start_s > 0 ? w->o->start_s : 0;
    double end = i->audio.duration_s > 0 ? i->audio.duration_s : i->duration_s;
    if (w->o->end_s > 0 && w->o->end_s < end) end = w->o->end_s;
    return end > start ? media_audio_tokens(media_mel_frames((size_t)((end - start) * MEDIA_RATE))) : 0;
}

static status sound_load(struct work *w, struct err *e)
{
    const struct media_audio_options ao = { .start_s = w->o->start_s > 0 ? w->o->start_s : 0,
                                            .end_s = w->o->end_s > 0 ? w->o->end_s : 0 };
    const double length = media_info(w->m)->audio.duration_s;
    if (w->plan.kind == MEDIA_VIDEO && w->o->sound != 1 && length > 0 && ao.start_s >= length) {
        media_warn(w->m, "%s: its sound ends after %.3f s, before the part asked for", w->m->name, length);
        return OK;
    }
    const size_t most = w->o->max_tokens > 0 ? (size_t)(w->o->max_tokens * 4 + 4) * MEDIA_HOP : 0;
    const status st = media_audio_load(w->m, &ao, most, &w->samples, &w->n_samples, e);
    if (st == E_FULL) return check_tokens(w, w->o->max_tokens + 1, e);
    TRY(st);
    w->plan.n_frames = (uint32_t)media_mel_frames(w->n_samples);
    w->plan.n_audio = (uint32_t)media_audio_tokens(w->plan.n_frames);
    if (w->plan.n_audio > 0) return OK;
    w->plan.n_frames = 0;
    if (w->plan.kind != MEDIA_AUDIO && w->o->sound != 1) {
        media_warn(w->m, "%s: its sound is too short to be heard", w->m->name);
        return OK;
    }
    return err_set(e, E_INPUT, "%s: %zu samples of sound are too few: a token takes 321 (0.02 s)", w->m->name,
                   w->n_samples);
}

static status sound_write(struct work *w, struct err *e)
{
    float *mel;
    if (w->plan.n_frames == 0) return OK;
    const size_t n = (size_t)w->plan.n_frames * MEDIA_MEL_BINS;
    TRY(mem_alloc(&mel, n, sizeof *mel, e));
    status st = media_mel(w->samples, w->n_samples, mel, e);
    if (st == OK) st = put_at(mel, n * sizeof *mel, 0, e);
    free(mel);
    return st;
}

/* ---- films ---------------------------------------------------------------------------------------------- */

/* Fewer threads where frames are so large that their buffers alone would fill the memory. */
static int threads_for(const struct media_info *i, const struct media_video_options *o)
{
    const uint64_t frame = (uint64_t)i->video.width * i->video.height * 3;
    int n = o->n_threads > 0 ? o->n_threads : 8;
    while (n > 1 && (uint64_t)(2 * n + 16) * frame > me.job.memory_bytes / 2) n /= 2;
    return n == 8 && o->n_threads == 0 ? 0 : n;
}

static status film_open(struct work *w, struct err *e)
{
    struct media_video_options vo = w->o->video;
    vo.n_threads = threads_for(media_info(w->m), &vo);
    vo.start_s = w->o->start_s > 0 ? w->o->start_s : 0;
    vo.end_s = w->o->end_s > 0 ? w->o->end_s : 0;
    TRY(media_video_open(w->m, &vo, &w->film, e));
    const struct media_video_plan *p = media_video_get_plan(w->film);
    w->plan.film = *p;
    w->plan.t = p->grid_t, w->plan.h = p->grid_h, w->plan.w = p->grid_w;
    w->plan.row = row_of(&vo.vision);
    w->plan.second_per_grid = p->second_per_grid;
    return OK;
}

static status film_slices(struct work *w, struct err *e)
{
    const size_t n = (size_t)w->plan.h * w->plan.w * w->plan.row;
    const uint64_t at = child_mel_bytes(&w->plan);
    float *slice;
    status st = OK;
    TRY(mem_alloc_aligned(&slice, n * sizeof *slice, e));
    for (uint32_t t = 0; t < w->plan.t && st == OK; t++) {
        st = media_video_next(w->film, slice, e);
        if (st == OK) st = put_at(slice, n * sizeof *slice, at + t * n * sizeof *slice, e);
    }
    free(slice);
    return st;
}

/* As media_video_load: once more, by the true count, where the container's was wrong. */
static status film_write(struct work *w, struct err *e)
{
    const uint64_t known = w->m->n_frames_true;
    const status st = film_slices(w, e);
    if (st != E_INPUT || known != 0 || w->m->n_frames_true < 2) return st;
    media_video_close(&w->film);
    TRY(film_open(w, e));
    agree(&w->plan);
    TRY(sound_write(w, e));               /* the file begins anew */
    return film_slices(w, e);
}

/* ---- pictures ------------------------------------------------------------------------------------------- */

static status picture_plan(struct work *w, struct err *e)
{
    const struct media_info *i = media_info(w->m);
    struct media_image_plan p;
    w->plan.row = row_of(&w->o->image.vision);
    if (i->video.width == 0 || i->video.height == 0) return OK;     /* decoding says why */
    const status st = media_image_plan(i->video.height, i->video.width, &w->o->image, &p, e);
    if (st != OK) {
        err_prefix(e, "%s", w->m->name);
        return st;
    }
    w->plan.t = 1, w->plan.h = p.grid_h, w->plan.w = p.grid_w;
    return OK;
}

static status picture_load(struct work *w, struct err *e)
{
    TRY(media_image_load(w->m, &w->o->image, &w->picture, e));
    w->plan.t = w->picture.grid_t, w->plan.h = w->picture.grid_h, w->plan.w = w->picture.grid_w;
    w->plan.row = w->picture.row;
    return OK;
}

static status picture_write(struct work *w, struct err *e)
{
    const size_t n = (size_t)w->plan.t * w->plan.h * w->plan.w * w->plan.row;
    return put_at(w->picture.patches, n * sizeof(float), child_mel_bytes(&w->plan), e);
}

/* ---- films of single pictures --------------------------------------------------------------------------- */

struct frames {
    uint32_t load_h, load_w, n, factor;
    struct media_vision vision;
    struct media_resizer *resizer; /* the processor's; NULL: the size is right already */
    float *wide;                   /* [load_h, load_w, 4] */
    float *slice[16];              /* [height, width, 4] each */
};

/* As the reference does with a list of frames: each is loaded as a picture, the processor makes a film of them. */
static status frames_plan(struct work *w, struct frames *f, struct err *e)
{
    const struct media_info *i = media_info(w->m);
    const struct extract_options *o = w->o;
    const struct media_image_options io = { .vision = o->video.vision, .limits = o->image.limits };
    struct media_image_plan image;
    struct media_limits lim = o->video.limits;
    struct media_video_plan *p = &w->plan.film;
    const double fps = o->list_fps > 0 ? o->list_fps : 2.0;
    f->vision = o->video.vision.patch ? o->video.vision : media_vision_default();
    f->factor = f->vision.patch * f->vision.merge;
    f->n = me.job.n_sources;
    if (f->vision.temporal == 0 || f->vision.temporal > 16)
        return err_set(e, E_ARG, "temporal_patch_size must be 1 to 16, not %u", f->vision.temporal);
    if (lim.min_pixels == 0) lim.min_pixels = 100352;
    if (lim.max_pixels == 0) lim.max_pixels = 602112;
    TRY(media_image_plan(i->video.height, i->video.width, &io, &image, e));
    p->load_h = f->load_h = image.load_h;
    p->load_w = f->load_w = image.load_w;
    TRY(media_smart_resize(p->load_h, p->load_w, f->factor, lim, false, &p->height, &p->width, e));
    p->total_frames = p->n_frames = f->n;
    p->frame_rate = p->sample_fps = fps;
    p->n_sampled = f->n + f->n % 2;
    p->grid_t = (p->n_sampled + f->vision.temporal - 1) / f->vision.temporal;
    p->grid_h = p->height / f->vision.patch;
    p->grid_w = p->width / f->vision.patch;
    p->second_per_grid = f->vision.temporal / fps;
    p->n_tokens = (uint64_t)p->grid_t * p->grid_h * p->grid_w / (f->vision.merge * f->vision.merge);
    w->plan.t = p->grid_t, w->plan.h = p->grid_h, w->plan.w = p->grid_w;
    w->plan.row = row_of(&f->vision);
    w->plan.second_per_grid = p->second_per_grid;
    return OK;
}

static status frames_room(const struct work *w, struct frames *f, struct err *e)
{
    const struct media_video_plan *p = &w->plan.film;
    const size_t bytes = (size_t)p->height * p->width * 4 * sizeof(float);
    if (f->load_h != p->height || f->load_w != p->width) {
        TRY(media_resizer_create(f->load_h, f->load_w, p->height, p->width, &f->resizer, e));
        TRY(mem_alloc_aligned(&f->wide, (size_t)f->load_h * f->load_w * 4 * sizeof(float), e));
    }
    for (uint32_t i = 0; i < f->vision.temporal; i++) TRY(mem_alloc_aligned(&f->slice[i], bytes, e));
    return OK;
}

/* Picture i, as large as the first, into out [height, width, 4] of whole values. */
static status frame_load(const struct work *w, struct frames *f, uint32_t i, float *out, struct err *e)
{
    const struct media_video_plan *p = &w->plan.film;
    struct media *m = NULL;
    uint8_t *rgb = NULL, *loaded = NULL;
    uint32_t rows, columns;
    struct media_image_plan image;
    const struct media_image_options io = { .vision = f->vision, .limits = w->o->image.limits };
    status st;
    TRY_GOTO(st, open_source(i, &m, e), done);
    TRY_GOTO(st, media_image_rgb(m, &rgb, &rows, &columns, e), done);
    TRY_GOTO(st, media_image_plan(rows, columns, &io, &image, e), done);
    if (image.load_h != f->load_h || image.load_w != f->load_w) {
        st = err_set(e, E_INPUT, "%s: frame %u is %u x %u, the first becomes %u x %u: frames of one film have one size",
                     m->name, i, columns, rows, f->load_w, f->load_h);
        goto done;
    }
    TRY_GOTO(st, mem_alloc(&loaded, (size_t)f->load_h * f->load_w, 3, e), done);
    TRY_GOTO(st, media_resize_image(rgb, rows, columns, loaded, f->load_h, f->load_w, e), done);
    if (f->resizer == NULL) {
        media_widen(loaded, (size_t)p->height * p->width, out);
    } else {
        media_resize_frame(f->resizer, loaded, out);
    }
done:
    free(loaded);
    free(rgb);
    media_close(&m);
    return st;
}

static status frames_write(struct work *w, struct frames *f, struct err *e)
{
    const struct media_video_plan *p = &w->plan.film;
    const size_t n = (size_t)w->plan.h * w->plan.w * w->plan.row;
    const float *frame[16];
    float *patches;
    status st = OK;
    uint32_t given = 0;
    TRY(mem_alloc_aligned(&patches, n * sizeof *patches, e));
    for (uint32_t t = 0; t < p->grid_t && st == OK; t++) {
        for (uint32_t i = 0; i < f->vision.temporal && st == OK; i++) {
            frame[i] = f->slice[i];
            if (given < f->n) st = frame_load(w, f, given++, f->slice[i], e);
            else if (i > 0) frame[i] = frame[i - 1];      /* an odd rest: the last frame again */
        }
        if (st == OK) media_patches_write(&f->vision, frame, p->height, p->width, patches);
        if (st == OK) st = put_at(patches, n * sizeof *patches, t * n * sizeof *patches, e);
    }
    free(patches);
    return st;
}

static status frames_extract(struct work *w, struct err *e)
{
    struct frames f = { .n = 0 };
    if (!media_info(w->m)->is_image && !media_info(w->m)->has_video)
        return err_set(e, E_INPUT, "%s: not a picture: frames of a film are pictures", w->m->name);
    TRY(frames_plan(w, &f, e));
    TRY(check_tokens(w, 0, e));
    TRY(frames_room(w, &f, e));
    agree(&w->plan);
    return frames_write(w, &f, e);
}

/* ---- the whole ------------------------------------------------------------------------------------------ */

static enum media_kind kind_of(const struct extract_options *o, const struct media_info *i)
{
    if (o->kind != MEDIA_NONE) return o->kind;
    return i->is_image ? MEDIA_IMAGE : i->has_video ? MEDIA_VIDEO : MEDIA_AUDIO;
}

/* Counts first, then decoding: what is too long for its reader is not decoded at all. */
static status extract(struct work *w, struct err *e)
{
    const struct media_info *i = media_info(w->m);
    const struct extract_options *o = w->o;
    w->plan.kind = kind_of(o, i);
    if (me.job.n_sources > 1 || (w->plan.kind == MEDIA_VIDEO && o->list_fps > 0)) return frames_extract(w, e);
    const bool film = w->plan.kind == MEDIA_VIDEO;
    const bool sound = w->plan.kind == MEDIA_AUDIO || (film && (o->sound == 1 || (o->sound < 0 && i->has_audio)));
    if (sound && !i->has_audio)
        return err_set(e, E_INPUT, "%s: the file has no sound%s", w->m->name,
                       film ? ": leave audio-in-video off for it" : "");
    if (film) TRY(film_open(w, e));
    if (w->plan.kind == MEDIA_IMAGE) TRY(picture_plan(w, e));
    TRY(check_tokens(w, sound ? sound_estimate(w) : 0, e));
    if (sound) TRY(sound_load(w, e));
    if (w->plan.kind == MEDIA_IMAGE) TRY(picture_load(w, e));
    TRY(check_tokens(w, w->plan.n_audio, e));
    agree(&w->plan);
    TRY(sound_write(w, e));
    if (film) return film_write(w, e);
    return w->plan.kind == MEDIA_IMAGE ? picture_write(w, e) : OK;
}

static status stream(struct media *m, struct err *e)
{
    static float buf[16384];
    const struct media_audio_options ao = { .start_s = me.job.options.start_s > 0 ? me.job.options.start_s : 0,
                                            .end_s = me.job.options.end_s > 0 ? me.job.options.end_s : 0,
                                            .keep_time = me.job.keep_time };
    struct media_audio *a;
    size_t n;
    TRY(media_audio_open(m, &ao, &a, e));
    do {
        TRY(media_audio_read(a, buf, sizeof buf / sizeof *buf, &n, e));
        if (n > 0 && !put(me.out, buf, n * sizeof *buf)) _exit(1);
    } while (n > 0);
    return OK;
}

static status run(struct err *e)
{
    struct media *m = NULL;
    TRY(open_source(0, &m, e));
    say(CHILD_INFO, media_info(m), sizeof(struct media_info));
    if (me.job.work == CHILD_SOUND) TRY(stream(m, e));
    if (me.job.work == CHILD_EXTRACT) {
        struct work w = { .m = m, .o = &me.job.options };
        TRY(extract(&w, e));
    }
    warn(m);
    say(CHILD_DONE, NULL, 0);
    return OK;
}

int extract_child_main(int argc, char **argv)
{
    struct err e = { .text = "" };
    (void)argc, (void)argv;
    signal(SIGPIPE, SIG_DFL);             /* the end of whoever speaks to nobody */
    if (!take_job()) return 1;
    if (me.job.parent != 0 && (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0 || getppid() != me.job.parent)) return 1;
    const struct confine walls = { .stream_fd = { CONTROL, me.job.work == CHILD_SOUND ? me.out : -1 },
                                   .file_fd = me.job.work == CHILD_EXTRACT ? me.out : -1,
                                   .memory_bytes = me.job.memory_bytes, .cpu_s = me.job.cpu_s };
    if (confine_enter(&walls, &e) != OK || run(&e) != OK) fail(&e);
    _exit(0);
}
