/* engine/journal.h - finished windows of one transcription, on disk: docs/http-api.md 5.5.
 * A JSONL file that only grows: a line with the key, then one line a window, each on disk (fsync) before the next
 * is begun. A line that was cut off by a crash, and what follows it, is dropped at opening. One process at a time
 * holds a journal (flock). */
#ifndef ENGINE_JOURNAL_H
#define ENGINE_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct journal_entry {
    uint32_t window;
    uint64_t from, to;             /* samples; the entry holds for this span only       */
    const char *text;              /* UTF-8                                             */
    uint32_t n_tokens;
    uint32_t n_prompt, n_audio;    /* tokens that were asked with, of them sound; 0 in journals of before */
    uint32_t attempts;             /* runs that it took                                 */
    double mean_logprob;
    double temperature;
    bool split;                    /* transcribed in two halves                         */
};

struct journal;

/* Open for writing. resume false: an old file is overwritten. resume true: its entries are kept if its key is the
 * same; a file that is not there is made. E_ARG: the key differs (another input, model or option; the text says what
 * to do), or another process holds it. E_IO. E_NOMEM: also a full disk. */
status journal_open(const char *path, const char *key, bool resume, struct journal **out, struct err *e);

/* Finished windows: found and added. */
uint32_t journal_count(const struct journal *j);
/* The language that an earlier run found; NULL: none noted. */
const char *journal_language(const struct journal *j);
/* The finished window, borrowed until the journal is closed; NULL: not done, or another span. */
const struct journal_entry *journal_find(const struct journal *j, uint32_t window, uint64_t from, uint64_t to);

status journal_add(struct journal *j, const struct journal_entry *entry, struct err *e);
status journal_add_language(struct journal *j, const char *language, struct err *e);

/* remove: the work is complete, the file goes. */
void journal_close(struct journal **j, bool remove);

/* Reads the lines of a journal from memory, for tests and fuzzing: entries found; *valid bytes were good.
 * -1: the first line is no journal's, or its key is another. */
int journal_parse(const char *text, size_t n, const char *key, size_t *valid);

#endif
