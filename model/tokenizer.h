/* model/tokenizer.h - text to token ids and back: byte-level BPE as tokenizer.json describes it. Exact
 * against the `tokenizers` package 0.23: NFC where the file asks for it, the file's Split pattern,
 * byte-level letters, merges by rank. Another kind of tokenizer is refused by name. Special tokens are
 * matched only in segments that the template wrote; what a user typed is text whatever it says. A
 * tokenizer is read-only after loading and may be used from any thread. */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/prompt.h"

struct tokenizer;

/* A piece of one prompt. All segments of a call are one string to the tokenizer (a template newline can
 * merge with the user's own); bytes that are not UTF-8 become U+FFFD as Python's errors='replace' makes
 * them. */
struct text_segment {
    const char *text; /* n bytes, borrowed */
    size_t n;
    bool is_template;  /* added tokens are matched inside it (never across segments) */
    bool is_user_text; /* a text part of the last user message: golden-format.md, query rows */
};

/* Result of encode; grows as needed, may be reused; token_list_free. token[i].is_user_text: not an added
 * token, and at least one of its characters came from a segment with is_user_text. */
struct token_list {
    struct prompt_token *token; /* [n] */
    uint64_t *begin, *end;      /* [n] bytes [begin, end) of the segments put one after the other */
    size_t n, cap;
};

/* Load DIR/tokenizer.json, or vocab.json + merges.txt (+ added_tokens.json, tokenizer_config.json) where
 * there is none. *out owns it. E_MODEL: no such file, another kind of tokenizer, inconsistent vocabulary;
 * names file and entry. */
status tokenizer_load(const char *dir, struct tokenizer **out, struct err *e);
/* tokenizer.json from memory. */
status tokenizer_parse(const char *json, size_t n, struct tokenizer **out, struct err *e);
void tokenizer_free(struct tokenizer **t);

/* Append the tokens of the segments to out (out->n is set to 0 first). Work: n log n at worst,
 * JIT-compiled pattern. E_ARG: more than 64 MiB of text. E_NOMEM. */
status tokenizer_encode(const struct tokenizer *t, const struct text_segment *seg, size_t n_seg,
                        struct token_list *out, struct err *e);
/* One piece of plain text, no added tokens. */
status tokenizer_encode_text(const struct tokenizer *t, const char *text, size_t n, struct token_list *out,
                             struct err *e);
void token_list_free(struct token_list *l);

/* Ids. The largest id + 1; ids below it may be undefined (tokenizer_has). Golden logits are compared over
 * those defined. */
uint32_t tokenizer_n_ids(const struct tokenizer *t);
bool tokenizer_has(const struct tokenizer *t, int32_t id);
bool tokenizer_is_added(const struct tokenizer *t, int32_t id);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id); /* skipped on decode */
/* Bytes of a token as decoding makes them (not terminated); NULL, 0 for an undefined id. */
const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *n);
/* Id of an added token by its text ("<|im_end|>"), else of a regular token by its bytes; -1: none. */
int32_t tokenizer_id(const struct tokenizer *t, const char *text);
/* Longest tokenizer_bytes of all. */
size_t tokenizer_bytes_max(const struct tokenizer *t);

/* Streaming detokenisation: bytes come out as soon as they make whole characters; a sequence that can no
 * longer become a character comes out as U+FFFD, one for each maximal part, as decoding the whole does. */
struct detokenizer {
    const struct tokenizer *t; /* borrowed */
    bool keep_special;         /* default false: special tokens give no text */
    unsigned char held[4];     /* an unfinished character */
    uint8_t n_held;
};
void detok_init(struct detokenizer *d, const struct tokenizer *t);
/* Bytes that `out` of push and flush must have room for. */
size_t detok_room(const struct tokenizer *t);
/* Writes the text that token id completes; returns its length (0: nothing yet). Undefined ids give
 * nothing. No allocation, cannot fail. */
size_t detok_push(struct detokenizer *d, int32_t id, char *out);
/* The end: an unfinished character comes out as U+FFFD. */
size_t detok_flush(struct detokenizer *d, char *out);

#endif
