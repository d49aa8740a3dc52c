/* model/normalize.h - an inside header of the tokenizer: text made valid and NFC, with a map back to what
 * was given. NFC as `tokenizers` 0.23 computes it: libutf8proc's, but for the code points of
 * unicode_inert, which its older Unicode does not know. Work is n log n at worst, whatever marks a text
 * piles up. */
#ifndef MODEL_NORMALIZE_H
#define MODEL_NORMALIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Valid UTF-8, owned. from[i] is the offset, in what was given, of the character that byte i came from;
 * from[n] is the end of all. Where normalising changed a sequence, all its bytes point at the sequence's
 * first. */
struct clean_text {
    char *text;     /* [n] */
    uint32_t *from; /* [n + 1] */
    size_t n, text_cap, from_cap;
};

/* Append `raw`, which stands at offset `at`; bytes that are not UTF-8 become U+FFFD. */
status clean_append(struct clean_text *c, const char *raw, size_t n, uint32_t at, struct err *e);

/* in -> NFC in *out (emptied first). *same: nothing had to change and *out was left empty. */
status clean_nfc(const struct clean_text *in, struct clean_text *out, bool *same, struct err *e);

void clean_free(struct clean_text *c);

/* For matching: the same text with unicode_classes applied, same length, in *out (owned, grown to *cap);
 * *same: there is nothing to apply and *out was left alone. */
status clean_shadow(const struct clean_text *in, char **out, size_t *cap, bool *same, struct err *e);

#endif
