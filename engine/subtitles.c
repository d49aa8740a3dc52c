/* engine/subtitles.c - see subtitles.h. */
#include "engine/subtitles.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "engine/stitch.h"

#define FRAME_S 0.02
#define PAUSE 10                   /* frames */
#define SNAP_S 0.6
#define EDGE_S 1.0                 /* silence at the edge of a window that a subtitle need not cover */
#define EDGE_KEEP_S 0.2
#define SHORTEST_MS 200

const char *subtitle_timing_name(enum subtitle_timing t)
{
    static const char *const name[] = { "exact", "snapped", "interpolated" };
    return name[t];
}

void subtitles_free(struct subtitles *l)
{
    for (size_t i = 0; i < l->n; i++) free(l->s[i].text);
    free(l->s);
    *l = (struct subtitles){ 0 };
}

/* ---- text ------------------------------------------------------------------------------------------------- */

static size_t char_len(const char *text, size_t n)
{
    utf8proc_int32_t c;
    const utf8proc_ssize_t got = utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &c);
    return got > 0 ? (size_t)got : 1;
}

static uint32_t count_chars(const char *text, size_t n)
{
    uint32_t k = 0;
    for (size_t at = 0; at < n; k++) at += char_len(text + at, n - at);
    return k;
}

/* White space and control characters become single spaces; none at the ends. Owned by the caller. */
static status clean(const char *text, size_t n, char **out, size_t *n_out, struct err *e)
{
    char *s;
    TRY(mem_alloc(&s, n + 1, 1, e));
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)text[i];
        const bool blank = c <= 32 || c == 127;
        if (!blank) s[k++] = text[i];
        else if (k > 0 && s[k - 1] != ' ') s[k++] = ' ';
    }
    while (k > 0 && s[k - 1] == ' ') k--;
    s[k] = 0;
    *out = s;
    *n_out = k;
    return OK;
}

enum { NO_BREAK, WORD_BREAK, COMMA_BREAK, SENTENCE_BREAK };

static bool one_of(const char *s, size_t n, const char *const *list)
{
    for (; *list; list++)
        if (strlen(*list) == n && memcmp(s, *list, n) == 0) return true;
    return false;
}

/* What kind of break is possible before byte `at` (a character's first)? */
static int break_at(const char *text, size_t n, size_t at)
{
    static const char *const ends[] = { ".", "!", "?", "…", "‽", "؟", "۔", "।", "॥", NULL };
    static const char *const wide_ends[] = { "。", "！", "？", "．", "｡", NULL };
    static const char *const commas[] = { ",", ";", ":", "،", "؛", "–", "—", NULL };
    static const char *const wide_commas[] = { "，", "、", "；", "：", "､", NULL };
    static const char *const closing[] = { "\"", "'", ")", "]", "”", "’", "»", "」", "』", "）", NULL };
    if (at == 0 || at >= n || text[at] == ' ') return NO_BREAK;
    const bool space = text[at - 1] == ' ';
    size_t end = space ? at - 1 : at;
    for (int tries = 0; end > 0; tries++) {
        size_t c = end - 1;
        while (c > 0 && ((unsigned char)text[c] & 0xc0) == 0x80) c--;
        const char *s = text + c;
        const size_t len = end - c;
        if (one_of(s, len, wide_ends)) return SENTENCE_BREAK;
        if (one_of(s, len, wide_commas)) return COMMA_BREAK;
        if (space && one_of(s, len, ends)) return SENTENCE_BREAK;
        if (space && one_of(s, len, commas)) return COMMA_BREAK;
        if (tries > 0 || !one_of(s, len, closing)) break;
        end = c;
    }
    if (space) return WORD_BREAK;
    utf8proc_int32_t c;
    utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(n - at), &c);
    const utf8proc_category_t k = utf8proc_category(c);
    const bool mark = k >= UTF8PROC_CATEGORY_MN && k <= UTF8PROC_CATEGORY_ME;
    return !mark && stitch_spaceless(text, n) ? WORD_BREAK : NO_BREAK;
}

/* ---- time ------------------------------------------------------------------------------------------------- */

struct span {                      /* times of one window */
    const struct subtitle_source *src;
    double voiced_s;               /* in [from, to) */
};

/* Voiced seconds in [from_s, t). */
static double voiced_before(const struct subtitle_source *s, double t)
{
    double sum = 0;
    for (uint32_t i = 0; i < s->n_frames; i++) {
        const double a = fmax(s->frame0_s + i * FRAME_S, s->from_s), b = fmin(s->frame0_s + (i + 1) * FRAME_S, t);
        if (s->voiced[i] && b > a) sum += b - a;
    }
    return sum;
}

/* The time at which `share` of the voiced time has passed. */
static double time_of_share(const struct span *w, double share)
{
    const struct subtitle_source *s = w->src;
    if (w->voiced_s <= 0) return s->from_s + share * (s->to_s - s->from_s);
    double left = share * w->voiced_s;
    for (uint32_t i = 0; i < s->n_frames; i++) {
        const double a = fmax(s->frame0_s + i * FRAME_S, s->from_s), b = fmin(s->frame0_s + (i + 1) * FRAME_S, s->to_s);
        if (!s->voiced[i] || b <= a) continue;
        if (left <= b - a) return a + left;
        left -= b - a;
    }
    return s->to_s;
}

/* The pause nearest to t and at most SNAP_S away, inside the span. */
static bool nearest_pause(const struct subtitle_source *s, double t, double *begin, double *end)
{
    bool found = false;
    double best = SNAP_S;
    for (uint32_t a = 0, b; a < s->n_frames; a = b + 1) {
        for (b = a; b < s->n_frames && !s->voiced[b]; b++) {}
        if (b - a < PAUSE) continue;
        const double from = fmax(s->frame0_s + a * FRAME_S, s->from_s), to = fmin(s->frame0_s + b * FRAME_S, s->to_s);
        if (to <= from || from <= s->from_s || to >= s->to_s) continue;
        const double away = t < from ? from - t : t > to ? t - to : 0;
        if (away > best || (found && away == best)) continue;
        found = true;
        best = away;
        *begin = from;
        *end = to;
    }
    return found;
}

/* Where voice begins and ends inside the span. */
static void voice_bounds(const struct subtitle_source *s, double *begin, double *end)
{
    *begin = s->from_s;
    *end = s->to_s;
    bool any = false;
    for (uint32_t i = 0; i < s->n_frames; i++) {
        const double a = s->frame0_s + i * FRAME_S, b = a + FRAME_S;
        if (!s->voiced[i] || b <= s->from_s || a >= s->to_s) continue;
        if (!any) *begin = fmax(a, s->from_s);
        *end = fmin(b, s->to_s);
        any = true;
    }
}

/* ---- segments --------------------------------------------------------------------------------------------- */

struct piece { size_t begin, end; };       /* bytes of the window's text */
struct pieces { struct piece *p; size_t n, cap; };

/* Bytes of the next line from `at`: as many words as fit the width, at least one. */
static size_t line_end(const char *text, size_t n, size_t at, uint32_t width)
{
    size_t end = at, good = n;
    for (uint32_t k = 0; end < n; k++) {
        if (k > 0 && break_at(text, n, end) != NO_BREAK) good = end;
        if (k >= width && good < n && good > at) {
            const bool blank = text[end] == ' ';   /* the word ends just here */
            return blank ? end + 1 : good;
        }
        end += char_len(text + end, n - end);
    }
    return n;
}

static uint32_t count_lines(const char *text, size_t n, uint32_t width)
{
    uint32_t lines = 0;
    for (size_t at = 0; at < n; lines++) at = line_end(text, n, at, width);
    return lines;
}

static bool fits(const char *text, size_t n, const struct piece *p, const struct span *w,
                 const struct subtitle_limits *lim)
{
    const char *s = text + p->begin;
    const size_t len = p->end - p->begin;
    const uint32_t total = count_chars(text, n), chars = count_chars(s, len);
    if (lim->max_chars && chars > lim->max_chars) return false;
    if (lim->line_width && lim->line_count && count_lines(s, len, lim->line_width) > lim->line_count) return false;
    const double before = count_chars(text, p->begin), after = before + chars;
    return time_of_share(w, after / total) - time_of_share(w, before / total) <= lim->max_segment_s;
}

/* Cut at `kind` breaks; the one nearest the middle. False: there is none. */
static bool cut_piece(const char *text, size_t n, const struct piece *p, int kind, size_t *cut)
{
    bool found = false;
    size_t best = 0;
    for (size_t at = p->begin + char_len(text + p->begin, n - p->begin); at < p->end; at += char_len(text + at, n - at)) {
        if (break_at(text, n, at) < kind) continue;
        const size_t middle = (p->begin + p->end) / 2, away = at > middle ? at - middle : middle - at;
        if (found && away >= best) continue;
        found = true;
        best = away;
        *cut = at;
    }
    return found;
}

/* Depth is bounded by the number of breaks: each cut makes both pieces shorter. */
static status cut_until_fits(const char *text, size_t n, struct piece p, const struct span *w,
                             const struct subtitle_limits *lim, struct pieces *out, struct err *e)
{
    size_t at = 0;
    bool cut = cut_piece(text, n, &p, SENTENCE_BREAK, &at);
    if (!cut && !fits(text, n, &p, w, lim))
        cut = cut_piece(text, n, &p, COMMA_BREAK, &at) || cut_piece(text, n, &p, WORD_BREAK, &at);
    if (cut) {
        TRY(cut_until_fits(text, n, (struct piece){ p.begin, at }, w, lim, out, e));
        return cut_until_fits(text, n, (struct piece){ at, p.end }, w, lim, out, e);
    }
    TRY(mem_grow(&out->p, &out->cap, out->n + 1, sizeof *out->p, e));
    out->p[out->n++] = p;
    return OK;
}

/* No more pieces than the span has room for at 200 ms each: the shortest neighbours go together. */
static void merge_until_room(struct pieces *p, double span_s)
{
    const size_t room = span_s * 1000 < 2 * SHORTEST_MS ? 1 : (size_t)(span_s * 1000 / SHORTEST_MS);
    while (p->n > room) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < p->n; i++)
            if (p->p[i + 1].end - p->p[i].begin < p->p[best + 1].end - p->p[best].begin) best = i;
        p->p[best].end = p->p[best + 1].end;
        memmove(&p->p[best + 1], &p->p[best + 2], (p->n - best - 2) * sizeof *p->p);
        p->n--;
    }
}

/* Append with the list's invariants kept. */
static status append(struct subtitles *l, struct subtitle s, const char *text, size_t n, struct err *e)
{
    TRY(mem_grow(&l->s, &l->cap, l->n + 1, sizeof *l->s, e));
    TRY(mem_alloc(&s.text, n + 1, 1, e));
    memcpy(s.text, text, n);
    if (l->n > 0 && s.start_ms < l->s[l->n - 1].end_ms) s.start_ms = l->s[l->n - 1].end_ms;
    if (s.end_ms < s.start_ms + SHORTEST_MS) s.end_ms = s.start_ms + SHORTEST_MS;
    l->s[l->n++] = s;
    return OK;
}

static int64_t ms_of(double s) { return (int64_t)llround(s * 1000); }

struct bound { double end, start; enum subtitle_timing timing; };    /* of the piece before, of the piece after */

static status add_pieces(struct subtitles *l, const char *text, size_t n, const struct span *w, const struct pieces *p,
                         struct err *e)
{
    const struct subtitle_source *src = w->src;
    const uint32_t total = count_chars(text, n);
    double voice_from, voice_to;
    voice_bounds(src, &voice_from, &voice_to);
    struct bound last = { 0, src->from_s, src->exact_from ? TIMING_EXACT : TIMING_INTERPOLATED };
    if (voice_from - src->from_s > EDGE_S) last = (struct bound){ 0, voice_from - EDGE_KEEP_S, TIMING_SNAPPED };
    for (size_t i = 0; i < p->n; i++) {
        struct bound next = { src->to_s, 0, src->exact_to ? TIMING_EXACT : TIMING_INTERPOLATED };
        if (i + 1 < p->n) {
            const double t = time_of_share(w, (double)count_chars(text, p->p[i].end) / total);
            next = (struct bound){ t, t, TIMING_INTERPOLATED };
            if (nearest_pause(src, t, &next.end, &next.start)) next.timing = TIMING_SNAPPED;
        } else if (src->to_s - voice_to > EDGE_S) {
            next = (struct bound){ voice_to + EDGE_KEEP_S, 0, TIMING_SNAPPED };
        }
        size_t end = p->p[i].end;
        while (end > p->p[i].begin && text[end - 1] == ' ') end--;
        const struct subtitle s = { .start_ms = ms_of(last.start), .end_ms = ms_of(next.end),
                                    .start_timing = last.timing, .end_timing = next.timing, .window = src->window,
                                    .mean_logprob = src->mean_logprob };
        TRY(append(l, s, text + p->p[i].begin, end - p->p[i].begin, e));
        last = next;
    }
    return OK;
}

status subtitles_add(struct subtitles *l, const struct subtitle_source *src, const struct subtitle_limits *limits,
                     struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    struct pieces p = { 0 };
    const struct span w = { src, voiced_before(src, src->to_s) };
    const size_t before = l->n;
    TRY(clean(src->text, src->n, &text, &n, e));
    status st = n == 0 ? OK : cut_until_fits(text, n, (struct piece){ 0, n }, &w, limits, &p, e);
    merge_until_room(&p, src->to_s - src->from_s);
    if (st == OK) st = add_pieces(l, text, n, &w, &p, e);
    while (st != OK && l->n > before) free(l->s[--l->n].text);
    free(p.p);
    free(text);
    return st;
}

static void clock_text(char out[32], int64_t ms, char point)
{
    const long long h = ms / 3600000, m = ms / 60000 % 60, s = ms / 1000 % 60, rest = ms % 1000;
    if (point) snprintf(out, 32, "%02lld:%02lld:%02lld%c%03lld", h, m, s, point, rest);
    else snprintf(out, 32, "%02lld:%02lld:%02lld", h, m, s);
}

status subtitles_add_gap(struct subtitles *l, double from_s, double to_s, uint32_t window, struct err *e)
{
    char from[32], to[32], text[96];
    clock_text(from, ms_of(from_s), 0);
    clock_text(to, ms_of(ceil(to_s - 0.001)), 0);
    const int n = snprintf(text, sizeof text, "[untranscribed %s-%s]", from, to);
    const struct subtitle s = { .start_ms = ms_of(from_s), .end_ms = ms_of(to_s), .window = window, .gap = true };
    return append(l, s, text, (size_t)n, e);
}

void subtitles_end(struct subtitles *l, size_t from, double end_s)
{
    int64_t end = ms_of(end_s);
    for (size_t i = l->n; i > from && l->s[i - 1].end_ms > end; i--) {
        struct subtitle *s = &l->s[i - 1];
        const int64_t least = i > 1 && i - 1 == from ? l->s[i - 2].end_ms : 0;   /* what stands before is written */
        s->end_ms = end;
        if (s->start_ms > end - SHORTEST_MS) s->start_ms = end - SHORTEST_MS > least ? end - SHORTEST_MS : least;
        if (s->end_ms < s->start_ms) s->end_ms = s->start_ms;
        end = s->start_ms;
    }
}

/* ---- files ------------------------------------------------------------------------------------------------ */

static const char *const FORMAT[SUB_N_FORMATS] = { "txt", "srt", "vtt", "json", "jsonl", "tsv" };

int subtitle_format_of(const char *name, size_t n)
{
    for (int i = 0; i < SUB_N_FORMATS; i++)
        if (strlen(FORMAT[i]) == n && strncmp(FORMAT[i], name, n) == 0) return i;
    return -1;
}

const char *subtitle_format_name(enum subtitle_format f) { return FORMAT[f]; }

/* One line of cue text: "-->" would end the cue's times, and VTT has its own markup. */
static void write_cue(FILE *f, const char *s, size_t n, bool vtt)
{
    for (size_t i = 0; i < n; i++) {
        if (n - i >= 3 && memcmp(s + i, "-->", 3) == 0) {
            fputs(vtt ? "-&gt;" : "->", f);
            i += 2;
        } else if (vtt && s[i] == '&') {
            fputs("&amp;", f);
        } else if (vtt && s[i] == '<') {
            fputs("&lt;", f);
        } else if (vtt && s[i] == '>') {
            fputs("&gt;", f);
        } else {
            fputc(s[i], f);
        }
    }
}

static void write_lines(FILE *f, const char *text, uint32_t width, bool vtt)
{
    const size_t n = strlen(text);
    for (size_t at = 0; at < n;) {
        size_t end = width ? line_end(text, n, at, width) : n;
        const size_t next = end;
        while (end > at && text[end - 1] == ' ') end--;
        write_cue(f, text + at, end - at, vtt);
        fputc('\n', f);
        at = next;
    }
}

void subtitles_write_head(FILE *f, enum subtitle_format format)
{
    if (format == SUB_VTT) fputs("WEBVTT\n\n", f);
    if (format == SUB_TSV) fputs("start\tend\ttext\n", f);
}

json_t *subtitle_json(const struct subtitles *l, size_t i)
{
    const struct subtitle *s = &l->s[i];
    const enum subtitle_timing worst = s->start_timing > s->end_timing ? s->start_timing : s->end_timing;
    json_t *o = json_pack("{s:I, s:f, s:f, s:s, s:f, s:s, s:i}", "id", (json_int_t)i, "start",
                          (double)s->start_ms / 1000, "end", (double)s->end_ms / 1000, "text", s->text, "avg_logprob",
                          s->mean_logprob, "timing", subtitle_timing_name(worst), "window", (int)s->window);
    if (o && s->gap) json_object_set_new(o, "gap", json_true());
    return o;
}

void subtitles_write_one(FILE *f, enum subtitle_format format, const struct subtitle_style *style,
                         const struct subtitles *l, size_t i)
{
    const struct subtitle *s = &l->s[i];
    const char point = format == SUB_SRT ? ',' : '.';
    char from[32], to[32];
    clock_text(from, s->start_ms, point);
    clock_text(to, s->end_ms, point);
    switch (format) {
    case SUB_TXT:
        if (style->paragraphs && i > 0) {
            const struct subtitle *p = &l->s[i - 1];
            fputs(p->window != s->window ? "\n" : stitch_joint(p->text, strlen(p->text), s->text, strlen(s->text)), f);
        }
        fputs(s->text, f);
        if (!style->paragraphs) fputc('\n', f);
        break;
    case SUB_SRT:
        fprintf(f, "%zu\n%s --> %s\n", i + 1, from, to);
        write_lines(f, s->text, style->limits.line_width, false);
        fputc('\n', f);
        break;
    case SUB_VTT:
        fprintf(f, "%s --> %s\n", from, to);
        write_lines(f, s->text, style->limits.line_width, true);
        fputc('\n', f);
        break;
    case SUB_TSV:
        fprintf(f, "%lld\t%lld\t%s\n", (long long)s->start_ms, (long long)s->end_ms, s->text);
        break;
    case SUB_JSONL: {
        json_t *o = subtitle_json(l, i);
        if (o) json_dumpf(o, f, JSON_COMPACT | JSON_REAL_PRECISION(10));
        json_decref(o);
        fputc('\n', f);
        break;
    }
    case SUB_JSON:
    case SUB_N_FORMATS: break;
    }
}

void subtitles_write_tail(FILE *f, enum subtitle_format format, const struct subtitle_style *style,
                          const struct subtitles *l)
{
    if (format == SUB_TXT && style->paragraphs && l->n > 0) fputc('\n', f);
}

status subtitles_text(const struct subtitles *l, char **out, struct err *e)
{
    char *text = NULL;
    size_t n = 0, cap = 0;
    for (size_t i = 0; i < l->n; i++) {
        const struct subtitle *s = &l->s[i];
        if (s->gap) continue;
        const size_t len = strlen(s->text);
        const status st = mem_grow(&text, &cap, n + len + 2, 1, e);
        if (st != OK) {
            free(text);
            return st;
        }
        const char *joint = n ? stitch_joint(text, n, s->text, len) : "";
        memcpy(text + n, joint, strlen(joint));
        n += strlen(joint);
        memcpy(text + n, s->text, len);
        n += len;
    }
    if (text == NULL) TRY(mem_alloc(&text, 1, 1, e));
    text[n] = 0;
    *out = text;
    return OK;
}
