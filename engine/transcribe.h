/* engine/transcribe.h - a sound of any length to timed text: docs/http-api.md 5.
 *
 *   transcribe_run              windows -> requests of the service -> guards, retries -> seams -> segments
 *
 * Each window is a request of its own, up to `jobs` at once, beside all else that the service runs, or a question to
 * whoever `by` names; their text comes out in the order of the sound. Several runs may go on at once, each on its caller's thread.
 * Memory: `jobs` windows of samples, whatever the length of the sound; the text of all segments is kept.
 * Every second of the sound is in exactly one window, and a window is transcribed, skipped as silence (listed), or
 * failed (listed): nothing is cut short in silence. */
#ifndef ENGINE_TRANSCRIBE_H
#define ENGINE_TRANSCRIBE_H

#include <signal.h>
#include <stdatomic.h>

#include "engine/journal.h"
#include "engine/question.h"
#include "engine/service.h"
#include "engine/stitch.h"
#include "engine/subtitles.h"
#include "engine/windows.h"

#define TRANSCRIBE_JOBS_MAX 1024
#define TRANSCRIBE_VERSION "3"     /* of instructions, window plan and guards: part of the journal's key */

/* The instruction for a task and a language (English name; NULL: not known), docs/http-api.md 5.4. */
void transcribe_instruction(char *out, size_t cap, bool translate, const char *language);

struct transcribe_options {
    double start_s;                /* where in the file the sound begins: all times count from there        */
    struct windows_options windows;
    uint32_t jobs;                 /* windows at once, 1..TRANSCRIBE_JOBS_MAX                              */
    const struct questioned *by;   /* who answers; NULL: the service of the run. Borrowed                  */
    bool translate;
    const char *language;          /* English name; NULL: ask the model on the first voiced window         */
    const char *const *languages;  /* [n_languages] English names that the answer may be; none: all known  */
    size_t n_languages;
    const char *instruction;       /* as given; NULL: of the task and the language                         */
    const char *context;           /* spelling and style, for every window; may be NULL                    */
    bool condition_on_previous;    /* one window after the other, each sees the last 200 characters        */
    double temperature;            /* of the first try; tries go on to 0.2 and 0.4 where guards fail       */
    uint64_t seed;
    const struct policy_params *policy;    /* NULL: none                                                   */
    struct subtitle_limits limits;
    float top_p;                   /* 0: 1                                                                 */
    int priority;                  /* of the requests, and what separates their caches from others'        */
    char salt[MEDIA_DIGEST_TEXT];
    bool keep_tokens;              /* transcript.token is filled; windows of a journal have none           */
    bool fail_on_gap;              /* a window that fails ends the run with E_DEVICE, tag
                                      transcription_incomplete; else it is marked                          */
    struct journal *journal;       /* finished windows are read from and written to it; may be NULL        */
    bool journal_may_fail;         /* a journal that cannot be written is left alone; else the run ends    */
    const volatile sig_atomic_t *stop;     /* 1: finish the windows begun, then end; more: cancel. May be NULL */
    const atomic_bool *cancel;     /* true: cancel; may be NULL                                            */
    /* Segments [from, list->n) are final and in order. Return false to end the run (E_CANCELLED). */
    bool (*on_segments)(void *self, const struct subtitles *list, size_t from);
    void (*on_progress)(void *self, double done_s, uint32_t n_failed);     /* seconds of sound since start_s */
    void (*on_note)(void *self, bool failed, const char *text);    /* a window was retried, split or failed */
    void *self;
};

enum transcribe_window_status { WINDOW_OK, WINDOW_SILENT, WINDOW_FAILED };

struct transcribe_window {
    double start_s, end_s;         /* of the file */
    enum transcribe_window_status status;
    enum stitch_seam seam;         /* with the one before */
    uint32_t attempts, n_tokens;
    double mean_logprob, temperature;
    bool split, replayed;          /* replayed: from the journal */
    const char *code;              /* WINDOW_FAILED: "length", "repetition", "low_logprob", "engine_error" */
    char reason[160];              /* the same for a person */
};

/* One token of the text that was kept: what lies behind a seam is not there. */
struct transcribe_token { int32_t id; float logprob; uint32_t window; };

struct transcript {                /* transcript_free */
    struct subtitles list;
    struct transcribe_window *window;      /* [n_windows] in order */
    size_t n_windows, cap;
    struct transcribe_token *token;        /* [n_tokens] where keep_tokens asked for them */
    size_t n_tokens, cap_tokens;
    uint64_t n_prompt, n_audio, n_output;  /* tokens of the answers that were taken: asked, of them sound; answered */
    uint32_t n_failed, n_silent, n_replayed;
    double start_s, duration_s;    /* what was read of the sound */
    char language[32];             /* "english", or "unknown" */
    bool complete;                 /* false: the run ended before the sound did */
};
void transcript_free(struct transcript *t);

/* Run: `read` gives the sound (16 kHz mono, from start_s on). *out is filled as far as the run came, also on failure;
 * transcript_free in any case. Blocks; when it returns none of its questions is under way.
 * E_ARG: an option; a window does not fit the context (tag context_length_exceeded). E_FULL, E_NOMEM, E_BUSY (draining).
 * E_CANCELLED: stop, cancel, or on_segments said so. E_DEVICE: the device failed, or fail_on_gap. Errors of read. */
status transcribe_run(struct service *s, windows_read read, void *source, const struct transcribe_options *o,
                      struct transcript *out, struct err *e);

/* {"text","language","duration","segments","omnidrop":{...}}; NULL: out of memory. The caller owns it. */
json_t *transcript_json(const struct transcript *t, const char *model, const struct policy_params *policy);

/* The guards against loops. Do repeats of one n-gram (n of 1 to 12 tokens, one after the other, at least 4 of them and 12
 * tokens) make up more than 40 % of ids? */
bool transcribe_repeats(const int32_t *ids, uint32_t n);
/* Bytes of the text over its bytes after zlib level 6; 0 for no text. Above 2.4 it goes in circles. */
double transcribe_compression(const char *text, size_t n);

#endif
