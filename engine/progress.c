/* engine/progress.c - see progress.h. */
#include "engine/progress.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"

#define TTY_EVERY_S 0.1
#define PLAIN_EVERY_S 30.0
#define JSON_EVERY_S 0.5

status progress_mode_of(const char *name, FILE *f, enum progress_mode *out, struct err *e)
{
    static const struct { const char *name; enum progress_mode mode; } MODE[] = {
        { "none", PROGRESS_NONE }, { "tty", PROGRESS_TTY }, { "plain", PROGRESS_PLAIN }, { "json", PROGRESS_JSON } };
    if (name == NULL || strcmp(name, "auto") == 0) {
        const char *term = getenv("TERM");
        *out = isatty(fileno(f)) && term && *term && strcmp(term, "dumb") != 0 ? PROGRESS_TTY : PROGRESS_PLAIN;
        return OK;
    }
    for (size_t i = 0; i < sizeof MODE / sizeof *MODE; i++)
        if (strcmp(name, MODE[i].name) == 0) {
            *out = MODE[i].mode;
            return OK;
        }
    return err_set(e, E_ARG, "--progress %s: give auto, tty, plain, json or none", name);
}

void progress_begin(struct progress *p, FILE *f, enum progress_mode mode, const char *file, double total_s)
{
    *p = (struct progress){ .f = f, .mode = mode, .file = file, .total_s = total_s, .began_s = clock_s(), .shown_s = -1,
                            .first_s = -1 };
}

static void time_text(char out[24], double s)
{
    if (!(s >= 0) || s > 1e8) {
        snprintf(out, 24, "--:--");
        return;
    }
    const long t = lround(s);
    if (t >= 3600) snprintf(out, 24, "%ld:%02ld:%02ld", t / 3600, t / 60 % 60, t % 60);
    else snprintf(out, 24, "%02ld:%02ld", t / 60, t % 60);
}

static int width_of(FILE *f)
{
    struct winsize w;
    if (ioctl(fileno(f), TIOCGWINSZ, &w) == 0 && w.ws_col > 0) return w.ws_col;
    return 80;
}

static void show_bar(struct progress *p, const char *phase, const char *numbers, double share)
{
    const int width = width_of(p->f) - 1, fixed = (int)strlen(phase) + (int)strlen(numbers) + 4;
    const int bar = width - fixed > 40 ? 40 : width - fixed;
    char cells[48] = "";
    if (bar >= 4) {
        const int full = share >= 0 ? (int)lround(share * bar) : 0;
        for (int i = 0; i < bar; i++) cells[i] = i < full ? '#' : '.';
        cells[bar] = 0;
        fprintf(p->f, "\r\033[K%s [%s] %s", phase, cells, numbers);
    } else {
        fprintf(p->f, "\r\033[K%.*s", width > 0 ? width : 0, numbers);
    }
    p->drawn = true;
}

static void show_json(struct progress *p, const char *phase, double done_s, double speed, double eta_s)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:f, s:o, s:f, s:o}", "event", "progress", "file", p->file, "phase", phase,
                          "done_s", done_s, "total_s", p->total_s >= 0 ? json_real(p->total_s) : json_null(), "speed",
                          speed, "eta_s", eta_s >= 0 ? json_real(eta_s) : json_null());
    if (o) json_dumpf(o, p->f, JSON_COMPACT | JSON_REAL_PRECISION(6));
    json_decref(o);
    fputc('\n', p->f);
}

/* Is it time to show something? The first call notes what was `done` when the work began. */
static bool due(struct progress *p, double done, bool end)
{
    static const double EVERY[] = { 0, TTY_EVERY_S, PLAIN_EVERY_S, JSON_EVERY_S };
    const double now = clock_s();
    if (p->mode == PROGRESS_NONE) return false;
    if (p->first_s < 0) {
        p->first_s = done;
        p->began_s = now;
        if (p->mode == PROGRESS_PLAIN) p->shown_s = now;       /* short work says nothing */
    }
    if (p->shown_s >= 0 && now - p->shown_s < EVERY[p->mode] && !(end && p->mode != PROGRESS_PLAIN)) return false;
    p->shown_s = now;
    return true;
}

void progress_show(struct progress *p, const char *phase, double done_s, uint32_t n_failed)
{
    const bool end = p->total_s >= 0 && done_s >= p->total_s;
    if (!due(p, done_s, end)) return;
    const double took = p->shown_s - p->began_s, speed = took > 0 ? (done_s - p->first_s) / took : 0;
    const double eta_s = speed > 0 && p->total_s >= done_s ? (p->total_s - done_s) / speed : -1;
    if (p->mode == PROGRESS_JSON) {
        show_json(p, phase, done_s, speed, eta_s);
        fflush(p->f);
        return;
    }
    char done[24], total[24], eta[24], failed[48] = "", numbers[200];
    time_text(done, done_s);
    time_text(total, p->total_s);
    time_text(eta, eta_s);
    if (n_failed) snprintf(failed, sizeof failed, ", %u window%s failed", n_failed, n_failed == 1 ? "" : "s");
    snprintf(numbers, sizeof numbers, "%s/%s %.1fx ETA %s%s", done, total, speed, eta, failed);
    if (p->mode == PROGRESS_TTY) show_bar(p, phase, numbers, p->total_s > 0 ? fmin(1, done_s / p->total_s) : -1);
    else fprintf(p->f, "omnidrop: %s: %s %s\n", p->file, phase, numbers);
    fflush(p->f);
}

static void items_json(const struct progress *p, const char *phase, uint64_t n_done, uint64_t n_total, uint64_t n_failed,
                       double speed, double eta_s)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:o}", "event", "progress", "file", p->file, "phase", phase,
                          "done", (json_int_t)n_done, "total", (json_int_t)n_total, "failed", (json_int_t)n_failed, "speed",
                          speed, "eta_s", eta_s >= 0 ? json_real(eta_s) : json_null());
    if (o) json_dumpf(o, p->f, JSON_COMPACT | JSON_REAL_PRECISION(6));
    json_decref(o);
    fputc('\n', p->f);
}

void progress_items(struct progress *p, const char *phase, uint64_t n_done, uint64_t n_total, double share,
                    uint64_t n_failed)
{
    if (p->first_s < 0) p->first_n = n_done;
    if (!due(p, share, n_done >= n_total)) return;
    const double took = p->shown_s - p->began_s, worked = share - p->first_s;
    const double speed = took > 0 ? (double)(n_done - p->first_n) / took : 0;
    const double eta_s = worked > 0 && share <= 1 ? (1 - share) * took / worked : n_done >= n_total ? 0 : -1;
    if (p->mode == PROGRESS_JSON) {
        items_json(p, phase, n_done, n_total, n_failed, speed, eta_s);
        fflush(p->f);
        return;
    }
    char eta[24], failed[48] = "", numbers[200];
    time_text(eta, eta_s);
    if (n_failed) snprintf(failed, sizeof failed, ", %llu failed", (unsigned long long)n_failed);
    snprintf(numbers, sizeof numbers, "%llu/%llu lines %.2f/s ETA %s%s", (unsigned long long)n_done,
             (unsigned long long)n_total, speed, eta, failed);
    if (p->mode == PROGRESS_TTY) show_bar(p, phase, numbers, fmin(1, share));
    else fprintf(p->f, "omnidrop: %s: %s %s\n", p->file, phase, numbers);
    fflush(p->f);
}

void progress_clear(struct progress *p)
{
    if (!p->drawn) return;
    fputs("\r\033[K", p->f);
    fflush(p->f);
    p->drawn = false;
}
