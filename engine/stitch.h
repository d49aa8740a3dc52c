/* engine/stitch.h - two neighbouring windows heard the same seconds: where does the left text end and the right one
 * begin? docs/http-api.md 5.3. Words are compared folded: case and punctuation do not count. Scripts that write no
 * spaces are compared by characters. */
#ifndef ENGINE_STITCH_H
#define ENGINE_STITCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum stitch_seam { SEAM_CLEAN, SEAM_MATCHED, SEAM_UNMATCHED };

struct stitch_side {
    const char *text;              /* UTF-8, n bytes                                              */
    size_t n;
    double middle;                 /* share of its voiced time before the middle of the overlap   */
    double overlap;                /* share of its voiced time inside the overlap                 */
};

struct stitch_cut {
    enum stitch_seam seam;
    size_t left_keep;              /* bytes of the left text that stay: [0, left_keep)            */
    size_t right_from;             /* the right text stays from here                              */
    uint32_t n_matched;            /* words (characters) of the alignment                         */
};

/* The cut at a hard seam. Looks for the end of the left text and the beginning of the right one, at most 40 words of each,
 * that agree best and are about as long as their share of the voiced time says; the two words that the windows' edges may
 * have broken need not agree. Accepts >= 3 equal words, or >= 60 % of the words compared. Then both are cut at the word of
 * the alignment that is nearest to the cut in time; else each at the word nearest to it by its share. E_NOMEM. */
status stitch_hard(const struct stitch_side *left, const struct stitch_side *right, struct stitch_cut *out,
                   struct err *e);

/* Is text mostly in a script without spaces between words (Han, kana, Thai, Lao, Khmer, Burmese, Tibetan)? */
bool stitch_spaceless(const char *text, size_t n);

/* What joins two pieces of text: "" or " ". Empty where one of them is empty. */
const char *stitch_joint(const char *left, size_t n_left, const char *right, size_t n_right);

#endif
