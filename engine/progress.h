/* engine/progress.h - how far a long piece of work has come, on stderr: docs/http-api.md 4.
 * A bar on a terminal (at most 10 redraws a second, as wide as the terminal is now), one plain line per 30 s
 * elsewhere, or JSON lines. */
#ifndef ENGINE_PROGRESS_H
#define ENGINE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

enum progress_mode { PROGRESS_NONE, PROGRESS_TTY, PROGRESS_PLAIN, PROGRESS_JSON };

/* auto, tty, plain, json or none. auto: a bar where f is a terminal and TERM is set and not "dumb". E_ARG. */
status progress_mode_of(const char *name, FILE *f, enum progress_mode *out, struct err *e);

struct progress {
    FILE *f;
    enum progress_mode mode;
    const char *file;              /* borrowed: what is worked on      */
    double total_s;                /* of media; < 0: unknown           */
    double began_s, shown_s;       /* clock; shown_s < 0: not yet      */
    double first_s;                /* media done when the work began   */
    uint64_t first_n;              /* items: the same                  */
    bool drawn;                    /* a bar stands on the line         */
};

void progress_begin(struct progress *p, FILE *f, enum progress_mode mode, const char *file, double total_s);
/* done_s of media are done. `phase`: "hash", "transcribe", ... Media done at the first call does not count as speed. */
void progress_show(struct progress *p, const char *phase, double done_s, uint32_t n_failed);
/* The same where lines of a batch are counted in place of media: n_done of n_total, which are `share` (0..1) of the work. */
void progress_items(struct progress *p, const char *phase, uint64_t n_done, uint64_t n_total, double share,
                    uint64_t n_failed);
/* Takes the bar away, so that other lines can be written; the next show draws it again. */
void progress_clear(struct progress *p);

#endif
