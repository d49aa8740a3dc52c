/* tests/bench/bench_media.c - the media front end: a minute of sound, a minute of 720p film.
 *   mel_60s         samples to log-mel, one thread; at most 10 ms
 *   video_60s_720p  H.264 file to patches at 2 fps, all threads; at most 3 s
 * The film (3 Mbit/s, 30 fps, key frames and B-frames as the encoder likes) is made beside the program
 * once. */
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "media/media.h"
#include "tests/bench/bench.h"
#include "tests/media/film.h"

#define ROUNDS 9
#define MEL_SAMPLES (60 * MEDIA_RATE)

static status mel_60s(struct bench *b, struct bench_result *r, struct err *e)
{
    float *x = NULL, *mel = NULL;
    double ms[ROUNDS];
    status st;
    (void)b;
    TRY(bench_random(MEL_SAMPLES, &x, e));
    mel = malloc(MEDIA_MEL_BINS * media_mel_frames(MEL_SAMPLES) * sizeof *mel);
    for (int i = -1; i < ROUNDS; i++) {
        const double start = clock_s();
        TRY_GOTO(st, media_mel(x, MEL_SAMPLES, mel, e), done);
        if (i >= 0) ms[i] = 1e3 * (clock_s() - start);
    }
    *r = (struct bench_result){
        .value = bench_median(ms, ROUNDS), .unit = "ms", .floor = 10.0, .lower_is_better = true };
    snprintf(r->note, sizeof r->note, "960000 samples to 128 x 6000, one thread; at most 10 ms");
done:
    free(x);
    free(mel);
    return st;
}

/* The film beside the program; made under another name first, so that a half-made one is never used. */
static status film_path(const struct bench *b, char *path, size_t cap, struct err *e)
{
    char program[512], part[600];
    snprintf(program, sizeof program, "%s", b->program);
    snprintf(path, cap, "%s/bench-720p.mov", dirname(program));
    if (access(path, R_OK) == 0) return OK;
    snprintf(part, sizeof part, "%.*s-part.mov", (int)strlen(path) - 4, path);
    const bool x264 = avcodec_find_encoder_by_name("libx264") != NULL;
    const struct film f = { .path = part,
                            .codec = x264 ? "libx264" : "mpeg4",
                            .width = 1280,
                            .height = 720,
                            .fps = 30,
                            .seconds = 60,
                            .bit_rate = 3000000,
                            .sound_rate = 8000 };
    TRY(film_write(&f, e));
    return rename(part, path) == 0 ? OK : err_set(e, E_IO, "%s cannot be renamed", part);
}

/* Seconds from opening the file to the last patch; patches are overwritten slice by slice. */
static status film_read(const char *path, int n_threads, double *seconds, struct media_video_plan *plan,
                        struct err *e)
{
    const struct media_video_options o = { .n_threads = n_threads };
    struct media *m = NULL;
    struct media_video *v = NULL;
    float *patches = NULL;
    status st;
    const double start = clock_s();
    TRY(media_open(path, &m, e));
    TRY_GOTO(st, media_video_open(m, &o, &v, e), done);
    *plan = *media_video_get_plan(v);
    patches = malloc((size_t)plan->grid_h * plan->grid_w * 1176 * sizeof *patches);
    for (uint32_t t = 0; t < plan->grid_t; t++) TRY_GOTO(st, media_video_next(v, patches, e), done);
    *seconds = clock_s() - start;
done:
    free(patches);
    media_video_close(&v);
    media_close(&m);
    return st;
}

static status video_60s_720p(struct bench *b, struct bench_result *r, struct err *e)
{
    char path[600];
    double s[3];
    struct media_video_plan p;
    TRY(film_path(b, path, sizeof path, e));
    for (int i = 0; i < 3; i++) TRY(film_read(path, b->n_threads, &s[i], &p, e));
    *r = (struct bench_result){
        .value = bench_median(s, 3), .unit = "s", .floor = 3.0, .lower_is_better = true };
    snprintf(r->note, sizeof r->note,
             "%llu frames, %u kept at 2 fps, %u x %u, %llu tokens, %d threads; at most 3 s",
             (unsigned long long)p.total_frames, p.n_sampled, p.width, p.height,
             (unsigned long long)p.n_tokens, b->n_threads);
    return OK;
}

const struct bench_row bench_media_rows[] = {
    { "mel_60s", mel_60s },
    { "video_60s_720p", video_60s_720p },
    { NULL, NULL },
};
