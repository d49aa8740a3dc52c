/* engine/subtitles.h - the text of a window becomes timed segments, and segments become files:
 * docs/http-api.md 5.5. Times are rounded once, to whole milliseconds, and carried from there. */
#ifndef ENGINE_SUBTITLES_H
#define ENGINE_SUBTITLES_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

/* How a bound was found: at a clean cut, at a pause near the estimate, or by share of characters. */
enum subtitle_timing { TIMING_EXACT, TIMING_SNAPPED, TIMING_INTERPOLATED };
const char *subtitle_timing_name(enum subtitle_timing t);

struct subtitle {
    int64_t start_ms, end_ms;
    enum subtitle_timing start_timing, end_timing;
    char *text;                    /* owned, one line, no control characters                     */
    uint32_t window;               /* the window that it came from                               */
    bool gap;                      /* stands for a span that could not be transcribed            */
    double mean_logprob;           /* of its window; 0 for gaps                                  */
    double unvoiced;               /* share of its time without voice, by energy; 0 where that is not known */
};

/* Invariants of a list
 *   I1  end_ms - start_ms >= 200, less only where the sound ends before
 *   I2  each starts at or after the end of the one before
 *   I3  after subtitles_end none ends behind the sound */
struct subtitles {                 /* zero before first use; subtitles_free */
    struct subtitle *s;            /* [n] */
    size_t n, cap;
};
void subtitles_free(struct subtitles *l);

struct subtitle_limits {
    double max_segment_s;          /* 7                                                          */
    uint32_t max_chars;            /* 84                                                         */
    uint32_t line_width;           /* characters a line; 0: no wrapping                          */
    uint32_t line_count;           /* lines a segment, with line_width; 0: any                   */
};

/* One window's text and what the energy detector knows of its span. */
struct subtitle_source {
    const char *text;              /* n bytes of UTF-8                                           */
    size_t n;
    double from_s, to_s;           /* the span, in the file's time                               */
    bool exact_from, exact_to;     /* clean cuts                                                 */
    const uint8_t *voiced;         /* [n_frames] of 20 ms, 1: voice; may be NULL                 */
    uint32_t n_frames;
    double frame0_s;               /* time of voiced[0]                                          */
    uint32_t window;
    double mean_logprob;
};

/* Append the segments of one window: cut at sentence ends, then at commas, then between words, until each fits the
 * limits. Silence of more than a second at either end of the span is left out. E_NOMEM; *l is then as before. */
status subtitles_add(struct subtitles *l, const struct subtitle_source *src, const struct subtitle_limits *limits,
                     struct err *e);
/* Append "[untranscribed 00:10:00-00:10:30]" over [from_s, to_s). */
status subtitles_add_gap(struct subtitles *l, double from_s, double to_s, uint32_t window, struct err *e);
/* After the last: nothing ends behind the sound. Segments before `from` have been handed on and stay. */
void subtitles_end(struct subtitles *l, size_t from, double end_s);

/* ---- files ------------------------------------------------------------------------------------------------ */

enum subtitle_format { SUB_TXT, SUB_SRT, SUB_VTT, SUB_JSON, SUB_JSONL, SUB_TSV, SUB_N_FORMATS };
/* "srt" and the like; also the extension. -1: no such format. */
int subtitle_format_of(const char *name, size_t n);
const char *subtitle_format_name(enum subtitle_format f);

struct subtitle_style {
    struct subtitle_limits limits; /* line_width, line_count                                     */
    bool paragraphs;               /* txt: one paragraph a window, not one segment a line        */
};

/* What stands before the first segment. */
void subtitles_write_head(FILE *f, enum subtitle_format format);
/* Segment i of the list, for all formats but SUB_JSON. The text of txt paragraphs ends with its window. */
void subtitles_write_one(FILE *f, enum subtitle_format format, const struct subtitle_style *style,
                         const struct subtitles *l, size_t i);
/* What stands after the last. */
void subtitles_write_tail(FILE *f, enum subtitle_format format, const struct subtitle_style *style,
                          const struct subtitles *l);
/* The segment as a JSON object; NULL: out of memory. The caller owns it. */
json_t *subtitle_json(const struct subtitles *l, size_t i);
/* All text, segments joined by a space or nothing as the script wants; gaps are left out. Owned by the caller. */
status subtitles_text(const struct subtitles *l, char **out, struct err *e);

#endif
