/* engine/windows.c - see windows.h. The energy detector works on levels of 20 ms frames, in dB of full scale. Its
 * threshold adapts to each window: a quarter of the way (at least 6 dB) from the noise floor (the tenth percentile,
 * which may rise only slowly from window to window) to the loud frames, and never under -60 dBFS. */
#include "engine/windows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define RATE 16000
#define GRID (2 * WINDOWS_FRAME)   /* cuts lie on 40 ms, one audio token                    */
#define SEARCH_S 5.0               /* a cut lies in the last 5 s of a window, or its last half */
#define SILENCE_DB (-60.0f)        /* absolute: nothing under it is voice                   */
#define FLOOR_MIN (-66.0f)
#define FLOOR_MAX (-35.0f)         /* a steady sound above it is taken for voice            */
#define FLOOR_RISE 12.0f           /* dB from one window to the next                        */
#define ABOVE_FLOOR 6.0f
#define VOICED_MIN 8               /* frames: 150 ms                                        */
#define QUIET 5                    /* frames of the quietest 100 ms                         */
#define ALIKE 3.0f                 /* dB: a difference of levels that noise alone makes     */
#define EDGE 3                     /* frames of the gap between words where an overlap ends */

struct windows {
    struct windows_options o;
    windows_read read;
    void *self;
    uint64_t window, half;         /* samples: longest span, half of the overlap            */
    float *buf;                    /* samples [base, base + n)                              */
    size_t n, cap;
    uint64_t base, n_read;
    uint64_t from, begin;          /* where the next window's span begins, and its sound    */
    bool clean_from, ended;
    uint32_t index;
    float floor_db;
    float *level, *sorted;         /* [level_cap] frames of the window looked at            */
    uint8_t *voiced;
    size_t level_cap, sorted_cap, voiced_cap;
};

void window_free(struct window *w)
{
    free(w->samples);
    free(w->voiced);
    w->samples = NULL;
    w->voiced = NULL;
}

status windows_create(const struct windows_options *o, windows_read read, void *self, struct windows **out,
                      struct err *e)
{
    struct windows *w;
    if (!(o->window_s >= 1 && o->window_s <= 600))
        return err_set(e, E_ARG, "a window of %g s: give 1 to 600 s", o->window_s);
    if (!(o->overlap_s >= 0 && o->overlap_s <= o->window_s / 2))
        return err_set(e, E_ARG, "an overlap of %g s: give 0 to half of the window, %g s", o->overlap_s, o->window_s / 2);
    TRY(mem_alloc(&w, 1, sizeof *w, e));
    w->o = *o;
    w->read = read;
    w->self = self;
    w->window = (uint64_t)(o->window_s * RATE) / GRID * GRID;
    w->half = (uint64_t)(o->overlap_s * RATE / 2) / WINDOWS_FRAME * WINDOWS_FRAME;
    w->clean_from = true;
    w->floor_db = FLOOR_MAX;
    *out = w;
    return OK;
}

void windows_destroy(struct windows **pw)
{
    struct windows *w = *pw;
    if (w == NULL) return;
    free(w->buf);
    free(w->level);
    free(w->sorted);
    free(w->voiced);
    free(w);
    *pw = NULL;
}

uint64_t windows_n_read(const struct windows *w) { return w->n_read; }

/* Have samples up to `to`, or all there are; forget those before `keep`. */
static status fill(struct windows *w, uint64_t keep, uint64_t to, struct err *e)
{
    const size_t drop = (size_t)(keep - w->base);
    if (drop > 0) memmove(w->buf, w->buf + drop, (w->n - drop) * sizeof *w->buf);
    w->n -= drop;
    w->base = keep;
    TRY(mem_grow(&w->buf, &w->cap, (size_t)(to - keep), sizeof *w->buf, e));
    while (!w->ended && w->base + w->n < to) {
        size_t got = 0;
        TRY(w->read(w->self, w->buf + w->n, (size_t)(to - w->base) - w->n, &got, e));
        for (size_t i = 0; i < got; i++)           /* a float file may hold anything */
            if (!isfinite(w->buf[w->n + i])) w->buf[w->n + i] = 0;
        w->n += got;
        w->n_read += got;
        w->ended = got == 0;
    }
    return OK;
}

static float level_db(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return (float)(10 * log10(sum / (double)n + 1e-10));
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* w->level and w->voiced [n_frames] of x[n]. */
static status detect(struct windows *w, const float *x, size_t n, uint32_t *n_frames, struct err *e)
{
    const size_t m = (n + WINDOWS_FRAME - 1) / WINDOWS_FRAME;
    TRY(mem_grow(&w->level, &w->level_cap, m, sizeof *w->level, e));
    TRY(mem_grow(&w->sorted, &w->sorted_cap, m, sizeof *w->sorted, e));
    TRY(mem_grow(&w->voiced, &w->voiced_cap, m, 1, e));
    for (size_t i = 0; i < m; i++) {
        const size_t at = i * WINDOWS_FRAME;
        w->level[i] = level_db(x + at, n - at < WINDOWS_FRAME ? n - at : WINDOWS_FRAME);
    }
    memcpy(w->sorted, w->level, m * sizeof *w->level);
    qsort(w->sorted, m, sizeof *w->sorted, by_value);
    const float low = w->sorted[m / 10], high = w->sorted[m - 1 - m / 20];
    float floor_db = fminf(low, w->floor_db + FLOOR_RISE);
    floor_db = fminf(fmaxf(floor_db, FLOOR_MIN), FLOOR_MAX);
    w->floor_db = floor_db;
    const float voice = fmaxf(SILENCE_DB, floor_db + fmaxf(ABOVE_FLOOR, 0.25f * (high - floor_db)));
    size_t last = 0;               /* 1 + the last frame with voice */
    for (size_t i = 0; i < m; i++) {
        w->voiced[i] = w->level[i] > voice;
        if (!w->voiced[i]) continue;
        if (last > 0 && i - last < WINDOWS_PAUSE) memset(w->voiced + last, 1, i - last);
        last = i + 1;
    }
    *n_frames = (uint32_t)m;
    return OK;
}

/* Mean level of n frames (odd) around the boundary before frame c; what noise alone makes of silence is all the same. */
static float around(const struct windows *w, size_t c, size_t n)
{
    float sum = 0;
    for (size_t i = c - n / 2; i <= c + n / 2; i++) sum += w->level[i];
    return fmaxf(sum / (float)n, fmaxf(SILENCE_DB, w->floor_db + ALIKE));
}

/* The best cut inside pauses, of the boundaries before frames lo..hi on the grid (first: absolute number of frame 0).
 * Quietest first, but all silence is equally quiet; then the longest pause; then its middle. */
static bool cut_in_pause(const struct windows *w, uint32_t n, uint64_t first, uint32_t lo, uint32_t hi, uint32_t *cut)
{
    bool found = false;
    float quiet = 0, distance = 0;
    uint32_t length = 0;
    for (uint32_t a = 0, b; a < n; a = b + 1) {
        for (b = a; b < n && !w->voiced[b]; b++) {}
        if (b - a < WINDOWS_PAUSE) continue;
        for (uint32_t c = a + QUIET / 2; c + QUIET / 2 < b; c++) {
            if (c < lo || c > hi || (first + c) % (GRID / WINDOWS_FRAME) != 0) continue;
            const float q = around(w, c, QUIET);
            const float d = fabsf((float)c - 0.5f * (float)(a + b));
            const bool better = !found || q < quiet || (q == quiet && (b - a > length || (b - a == length && d < distance)));
            if (!better) continue;
            found = true;
            quiet = q;
            length = b - a;
            distance = d;
            *cut = c;
        }
    }
    return found;
}

/* No pause: the quietest 100 ms of lo..hi, the latest of equals. Between words said fast that is a gap. */
static uint32_t cut_hard(const struct windows *w, uint64_t first, uint32_t lo, uint32_t hi)
{
    uint32_t cut = hi;
    float quiet = INFINITY;
    for (uint32_t c = lo; c <= hi; c++) {
        if ((first + c) % (GRID / WINDOWS_FRAME) != 0 || c < QUIET / 2) continue;
        const float q = around(w, c, QUIET);
        if (q <= quiet) {
            quiet = q;
            cut = c;
        }
    }
    return cut;
}

/* Where an overlap ends, from frame `cut` on by -1 or 1: the quietest place between a fifth of `half` and all of it, the
 * farthest of those alike; what is heard of a word that the edge breaks would be a guess. n: frames there are. */
static uint32_t edge(const struct windows *w, uint32_t n, uint32_t cut, uint32_t half, int way)
{
    uint32_t best = 0;
    float quiet = INFINITY;
    for (int pass = 0; pass < 2; pass++)           /* how quiet is it, and where */
        for (uint32_t d = half / 5; d <= half; d++) {
            const int64_t c = (int64_t)cut + way * (int64_t)d;
            if (c < EDGE / 2 || c + EDGE / 2 >= n) break;
            const float q = around(w, (size_t)c, EDGE);
            if (pass == 0) quiet = fminf(quiet, q);
            else if (q <= quiet + ALIKE) best = d;
        }
    return (uint32_t)((int64_t)cut + way * (int64_t)best);
}

/* Copy [begin, end) out of the buffer. */
static status hand_out(struct windows *w, struct window *out, struct err *e)
{
    out->n_samples = (size_t)(out->end - out->begin);
    out->n_frames = (uint32_t)((out->n_samples + WINDOWS_FRAME - 1) / WINDOWS_FRAME);
    TRY(mem_alloc(&out->voiced, out->n_frames, 1, e));
    const status st = mem_alloc(&out->samples, out->n_samples, sizeof *out->samples, e);
    if (st != OK) {
        window_free(out);
        return st;
    }
    memcpy(out->samples, w->buf + (out->begin - w->base), out->n_samples * sizeof *out->samples);
    memcpy(out->voiced, w->voiced, out->n_frames);
    uint32_t n_voiced = 0;
    for (uint32_t i = 0; i < out->n_frames; i++) n_voiced += out->voiced[i];
    out->voiced_s = n_voiced * (double)WINDOWS_FRAME / RATE;
    out->silent = !w->o.keep_silence && n_voiced < VOICED_MIN;
    return OK;
}

status windows_next(struct windows *w, struct window *out, struct err *e)
{
    *out = (struct window){ .index = w->index, .from = w->from, .clean_from = w->clean_from };
    out->begin = w->begin;
    TRY(fill(w, out->begin, w->from + w->window + (w->half > GRID ? w->half : GRID), e));
    const uint64_t have = w->base + w->n;
    if (have <= w->from) return OK;
    uint32_t n;
    TRY(detect(w, w->buf, w->n, &n, e));
    if (w->ended && have - w->from <= w->window) {
        out->to = out->end = have;
        out->clean_to = true;
    } else {
        const double search = SEARCH_S < w->o.window_s / 2 ? SEARCH_S : w->o.window_s / 2;
        const uint64_t first = w->base / WINDOWS_FRAME;
        const uint32_t hi = (uint32_t)((w->from + w->window - w->base) / WINDOWS_FRAME);
        const uint32_t lo = hi - (uint32_t)(search * RATE / WINDOWS_FRAME);
        uint32_t cut;
        uint32_t last = hi + QUIET / 2 < n ? hi : n - 1 - QUIET / 2;
        out->clean_to = cut_in_pause(w, n, first, lo, last, &cut);
        if (!out->clean_to) cut = cut_hard(w, first, lo, last);
        out->to = out->end = w->begin = w->base + (uint64_t)cut * WINDOWS_FRAME;
        if (!out->clean_to && w->half > 0) {
            const uint32_t half = (uint32_t)(w->half / WINDOWS_FRAME);
            out->end = w->base + (uint64_t)edge(w, n, cut, half, 1) * WINDOWS_FRAME;
            w->begin = w->base + (uint64_t)edge(w, n, cut, half, -1) * WINDOWS_FRAME;
        }
    }
    TRY(hand_out(w, out, e));
    w->from = out->to;
    w->clean_from = out->clean_to;
    w->index++;
    return OK;
}

size_t windows_middle(const float *samples, size_t n)
{
    size_t cut = n / 2 / WINDOWS_FRAME * WINDOWS_FRAME;
    double quiet = INFINITY;
    for (size_t at = n / 3 / WINDOWS_FRAME * WINDOWS_FRAME; at + QUIET * WINDOWS_FRAME <= 2 * n / 3; at += WINDOWS_FRAME) {
        double sum = 0;
        for (size_t i = at; i < at + QUIET * WINDOWS_FRAME; i++) sum += (double)samples[i] * samples[i];
        if (sum < quiet) {
            quiet = sum;
            cut = at + QUIET / 2 * WINDOWS_FRAME;
        }
    }
    return cut;
}
