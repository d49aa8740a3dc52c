/* engine/windows.h - a long sound cut into windows, as a stream: docs/http-api.md 5.2.
 *
 *   windows_create(reader) -> windows_next ... until n_samples == 0 -> windows_destroy
 *
 *      |---- window 0 ----|--- window 1 ---.     a clean cut lies in a pause of 200 ms or more: no overlap
 *                                   .---- window 2 ----|   a hard cut: both sides hear up to overlap_s around it
 *
 * The plan depends on the samples and the options alone: the same sound gives the same windows, whatever the
 * reader's pieces. Memory: one window, its overlap and the window handed out.
 * Invariants
 *   I1  spans [from, to) tile the sound: the first begins at 0, each next one where the last ended
 *   I2  [begin, end) holds [from, to) and differs from it at hard cuts only, by at most half the overlap: it ends at the
 *       quietest place there, if it can between two words, as a model guesses what a broken word was
 *   I3  from and to lie on the grid, but for the end of the sound
 *   I4  to - from <= window_s */
#ifndef ENGINE_WINDOWS_H
#define ENGINE_WINDOWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define WINDOWS_FRAME 320          /* samples of one frame of the energy detector: 20 ms at 16 kHz */
#define WINDOWS_WINDOW_S 30.0      /* where neither the model nor a person says otherwise */
#define WINDOWS_OVERLAP_S 2.0
#define WINDOWS_PAUSE 10           /* frames without voice that make a pause: 200 ms               */

struct windows_options {
    double window_s;               /* longest span, 1..600                                              */
    double overlap_s;              /* heard by both sides of a hard cut at most, 0..window_s / 2        */
    bool keep_silence;             /* windows without voice are not marked silent                       */
};

/* Up to cap samples (16 kHz mono) into buf; *n == 0: the end. */
typedef status (*windows_read)(void *self, float *buf, size_t cap, size_t *n, struct err *e);

struct window {
    uint32_t index;
    uint64_t from, to;             /* samples since the start of the sound: from cut to cut             */
    uint64_t begin, end;           /* samples that are heard: with the overlaps                         */
    bool clean_from, clean_to;     /* the cut lies in a pause, or is the start or end of the sound      */
    bool silent;                   /* less than 150 ms of voice                                         */
    double voiced_s;               /* in [begin, end)                                                   */
    float *samples;                /* [n_samples] = [begin, end), owned                                 */
    size_t n_samples;
    uint8_t *voiced;               /* [n_frames] 1: voice; gaps under 200 ms are bridged. Owned         */
    uint32_t n_frames;             /* ceil(n_samples / WINDOWS_FRAME)                                   */
};

void window_free(struct window *w);    /* what it owns; safe to call twice */

struct windows;

/* E_ARG: an option out of its range. `read` and self are borrowed until windows_destroy. */
status windows_create(const struct windows_options *o, windows_read read, void *self, struct windows **out,
                      struct err *e);
void windows_destroy(struct windows **w);

/* The next window, moved to *out; n_samples == 0: the end. Errors of the reader pass through. Work: one pass. */
status windows_next(struct windows *w, struct window *out, struct err *e);

/* Samples read so far; after the end: the length of the sound. */
uint64_t windows_n_read(const struct windows *w);

/* Where to cut [0, n) of one window in two: the quietest 100 ms of its middle third, on the 20 ms grid. */
size_t windows_middle(const float *samples, size_t n);

#endif
