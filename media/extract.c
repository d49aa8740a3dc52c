/* media/extract.c - the parent's side of extraction: limits, the result file, what a child may claim. See extract.h,
 * child.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "media/child.h"
#include "media/source.h"

#define SOURCES_MAX 768u                  /* frames of one film */
#define CPUS 8                            /* that decoding uses at most */
#define DAY_S (24 * 3600.0)

void extract_free(struct extract *x)
{
    if (x->map != NULL) munmap(x->map, x->map_bytes);
    free(x->warning);
    *x = (struct extract){ .kind = MEDIA_NONE };
}

/* ---- the job -------------------------------------------------------------------------------------------- */

struct child_job extract_job(enum child_work work, uint32_t n, const struct extract_limits *l)
{
    const double most = l->max_duration_s > 0 ? l->max_duration_s : DAY_S;
    const double wall = l->wall_s > 0 ? l->wall_s : 60 + 2 * most;
    return (struct child_job){ .work = work, .n_sources = n, .parent = getpid(),
                               .memory_bytes = l->memory_bytes ? l->memory_bytes : (uint64_t)2 << 30,
                               .max_pixels = l->max_pixels, .max_duration_s = most,
                               .cpu_s = (uint64_t)ceil(wall * CPUS) };
}

/* Now that its length is known: as much processor time as fits into the time that it has. */
static void cpu_limit(const struct child *c)
{
    const rlim_t s = (rlim_t)ceil(c->limit_s * CPUS);
    const struct rlimit r = { .rlim_cur = s, .rlim_max = s + 1 };
    prlimit(c->pid, RLIMIT_CPU, &r, NULL);
}

status extract_start(const struct child_job *job, const struct media_source *s, int extra,
                     const struct extract_limits *l, struct child *c, struct media_info *info, struct err *e)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < job->n_sources; i++) bytes += s[i].bytes;
    TRY(child_start(job, s, extra, l, c, e));
    const status st = child_info(c, l, bytes, info, e);
    if (st != OK) child_end(c);
    else cpu_limit(c);
    return st;
}

status extract_probe(const struct media_source *s, const struct extract_limits *l, struct media_info *out,
                     struct err *e)
{
    const struct child_job job = extract_job(CHILD_PROBE, 1, l);
    struct media_info info;
    struct child c;
    TRY(extract_start(&job, s, -1, l, &c, &info, e));
    child_end(&c);
    *out = info;
    return OK;
}

status extract_check(const struct extract_limits *l, struct err *e)
{
    static const uint8_t wav[52] = "RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0"
                                   "data\x08\0\0\0";
    struct media_source s;
    struct media_info info;
    TRY(media_source_of_bytes(wav, sizeof wav, "the child that decodes media", l->dir, &s, e));
    const status st = extract_probe(&s, l, &info, e);
    media_source_close(&s);
    if (st != OK && st != E_INPUT) return st;
    if (st == OK && info.has_audio && info.audio.rate == MEDIA_RATE) return OK;
    if (st == E_INPUT && e != NULL) e->code = E_INTERNAL, e->tag = NULL;
    return st == OK ? err_set(e, E_INTERNAL, "the child that decodes media does not read a WAV file") : E_INTERNAL;
}

/* ---- the result ----------------------------------------------------------------------------------------- */

uint64_t child_mel_bytes(const struct child_plan *p)
{
    return ((uint64_t)p->n_frames * MEDIA_MEL_BINS * sizeof(float) + 63) & ~(uint64_t)63;
}

uint64_t child_result_bytes(const struct child_plan *p)
{
    return child_mel_bytes(p) + (uint64_t)p->t * p->h * p->w * p->row * sizeof(float);
}

/* Is this a plan that an honest child could have made? */
static bool plan_honest(const struct child_plan *p, const struct extract_options *o)
{
    struct media_vision v = o->kind == MEDIA_IMAGE ? o->image.vision : o->video.vision;
    if (v.patch == 0) v = media_vision_default();
    const bool pictures = p->kind == MEDIA_IMAGE || p->kind == MEDIA_VIDEO;
    if (p->kind != MEDIA_AUDIO && !pictures) return false;
    if (o->kind != MEDIA_NONE && p->kind != (uint32_t)o->kind) return false;
    if (p->n_frames > UINT32_MAX / 2 || p->n_audio != media_audio_tokens(p->n_frames)) return false;
    if (p->kind == MEDIA_AUDIO && p->n_audio == 0) return false;
    if (!pictures) return p->t == 0 && p->h == 0 && p->w == 0;
    if (p->t == 0 || p->h == 0 || p->w == 0 || p->row != 3 * v.temporal * v.patch * v.patch) return false;
    if (p->kind == MEDIA_IMAGE && p->t != 1) return false;
    if (p->t > (1u << 20) || p->h > (1u << 14) || p->w > (1u << 14)) return false;
    if (!isfinite(p->second_per_grid) || !isfinite(p->film.frame_rate) || !isfinite(p->film.sample_fps)) return false;
    return (uint64_t)p->t * p->h * p->w <= (uint64_t)1 << 31;
}

/* The same rule as in the child, by numbers that were checked. */
static status tokens_check(const struct child *c, const struct child_plan *p, const struct extract_options *o,
                           struct err *e)
{
    const struct media_vision *given = p->kind == MEDIA_IMAGE ? &o->image.vision : &o->video.vision;
    const uint64_t merge = given->patch ? given->merge : media_vision_default().merge;
    const uint64_t seen = (uint64_t)p->t * p->h * p->w / (merge * merge);
    return extract_tokens_check(c->name, seen, p->n_audio, o->max_tokens, e);
}

status extract_tokens_check(const char *name, uint64_t seen, uint64_t heard, uint64_t most, struct err *e)
{
    if (most == 0 || seen + heard <= most) return OK;
    err_set(e, E_ARG,
            "%s: %" PRIu64 " tokens (%" PRIu64 " to see, %" PRIu64 " to hear), of which %" PRIu64 " can be taken",
            name, seen + heard, seen, heard, most);
    err_tag(e, "context_length_exceeded", NULL);
    return E_ARG;
}

/* PLAN: make the file that large, allow the child to fill it. */
static status plan_take(struct child *c, const struct extract_options *o, int fd, struct child_plan *out, struct err *e)
{
    const struct child_plan p = c->message.plan;
    if (!plan_honest(&p, o)) {
        err_set(e, E_INPUT, "%s: its decoder has gone astray: the file is damaged, or made to harm", c->name);
        err_tag(e, "media_decode_failed", NULL);
        return E_INPUT;
    }
    TRY(tokens_check(c, &p, o, e));
    const uint64_t bytes = child_result_bytes(&p);
    if (ftruncate(fd, 0) != 0 || ftruncate(fd, (off_t)bytes) != 0) return spool_fail("cannot grow to the results", e);
    const int rc = fallocate(fd, 0, 0, (off_t)bytes);      /* a full disk is met now, not on the way */
    if (rc != 0 && errno != EOPNOTSUPP) return spool_fail("cannot grow to the results", e);
    struct rlimit r;                      /* the soft one: a second plan may be larger, and a child cannot raise it */
    if (prlimit(c->pid, RLIMIT_FSIZE, NULL, &r) != 0) return child_lost(c, e);
    r.rlim_cur = (rlim_t)(bytes + bytes / 20);
    if (prlimit(c->pid, RLIMIT_FSIZE, &r, NULL) != 0) return child_lost(c, e);
    *out = p;
    return child_say(c, CHILD_GO, e);
}

/* Hear it out: plans (a film may be counted anew once), a warning, the end. */
static status follow(struct child *c, const struct extract_options *o, int fd, struct child_plan *plan, char **warning,
                     struct err *e)
{
    for (int plans = 0;;) {
        TRY(child_hear(c, e));
        if (c->head.word == CHILD_PLAN && plans++ < 2) {
            TRY(plan_take(c, o, fd, plan, e));
        } else if (c->head.word == CHILD_WARNING && *warning == NULL) {
            *warning = mem_must_strdup(c->message.bytes);
        } else if (c->head.word == CHILD_DONE && plans > 0) {
            return OK;
        } else {
            return child_lost(c, e);
        }
    }
}

/* The child is dead: nobody but us has the file any more, so it may be mapped. */
static status result_map(int fd, const struct child_plan *p, struct extract *x, struct err *e)
{
    const uint64_t bytes = child_result_bytes(p);
    void *map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) return err_set(e, E_NOMEM, "%" PRIu64 " bytes of results cannot be mapped", bytes);
    x->map = map;
    x->map_bytes = (size_t)bytes;
    x->kind = (enum media_kind)p->kind;
    x->n_frames = p->n_frames;
    x->n_audio = p->n_audio;
    x->has_sound = p->n_audio > 0;
    x->mel = x->has_sound ? map : NULL;
    x->t = p->t, x->h = p->h, x->w = p->w;
    x->patches = p->t > 0 ? (const float *)((const char *)map + child_mel_bytes(p)) : NULL;
    x->second_per_grid = p->second_per_grid;
    x->plan = p->film;
    return OK;
}

static status arguments(const struct media_source *s, uint32_t n, const struct extract_options *o, struct err *e)
{
    if (n == 0 || n > SOURCES_MAX)
        return err_set(e, E_ARG, "%u frames of a film: 1 to %u can be given one by one", n, SOURCES_MAX);
    if (n > 1 && o->kind != MEDIA_VIDEO)
        return err_set(e, E_ARG, "%s: only a film is made of several files", s->name);
    if ((n > 1 || o->list_fps > 0) && (o->start_s > 0 || o->end_s > 0))
        return err_set(e, E_ARG, "%s: a film of single frames has no start and end: leave frames out", s->name);
    return OK;
}

status extract_run(const struct media_source *s, uint32_t n_sources, const struct extract_options *o,
                   const struct extract_limits *l, struct extract *out, struct err *e)
{
    struct child_job job = extract_job(CHILD_EXTRACT, n_sources, l);
    struct extract x = { .kind = MEDIA_NONE };
    struct child_plan plan = { 0 };
    struct child c;
    int fd;
    status st;
    TRY(arguments(s, n_sources, o, e));
    job.options = *o;
    TRY(spool_open(l->dir, &fd, e));
    const double began = clock_s();
    TRY_GOTO(st, extract_start(&job, s, fd, l, &c, &x.info, e), closed);
    st = follow(&c, o, fd, &plan, &x.warning, e);
    child_end(&c);
    x.decode_s = clock_s() - began;
    if (st == OK) st = result_map(fd, &plan, &x, e);
closed:
    close(fd);
    if (st == OK) *out = x;
    else extract_free(&x);
    return st;
}
