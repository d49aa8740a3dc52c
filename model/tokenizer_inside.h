/* model/tokenizer_inside.h - an inside header: what loading builds, and encoding and decoding read. */
#ifndef MODEL_TOKENIZER_INSIDE_H
#define MODEL_TOKENIZER_INSIDE_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdbool.h>
#include <stdint.h>

#include "model/tokenizer.h"

#define TOKEN_ID_MAX (1u << 24)
#define NO_TOKEN     UINT32_MAX

struct vocab_entry {
    uint32_t at, len; /* bytes in tokenizer.bytes: what decoding gives */
    bool defined, added, special;
};

/* An added token and its text, for matching in the template. */
struct added_token {
    char *text;
    size_t n;
    uint32_t id;
};

/* left, right -> rank and the merged token; open addressing, n_slots is a power of two. */
struct merge_slot {
    uint32_t left, right, rank, id;
}; /* left == NO_TOKEN: empty */

/* Byte string -> id of a regular token. */
struct text_slot {
    uint32_t id;
}; /* NO_TOKEN: empty */

struct tokenizer {
    struct vocab_entry *entry; /* [n_ids] */
    uint32_t n_ids;
    char *bytes; /* of all entries */
    size_t n_bytes, bytes_cap, longest;
    uint32_t byte_id[256]; /* the token of each single byte */
    struct merge_slot *merge;
    uint32_t merge_mask, n_merges;
    struct text_slot *by_text; /* regular tokens by bytes */
    uint32_t text_mask;
    struct added_token *added;
    size_t n_added;
    bool nfc, ignore_merges;
    pcre2_code *pattern;
};

static inline uint64_t mix64(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

static inline const struct merge_slot *find_merge(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    uint32_t i = (uint32_t)mix64((uint64_t)left << 32 | right) & t->merge_mask;
    while (t->merge[i].left != NO_TOKEN) {
        if (t->merge[i].left == left && t->merge[i].right == right) return &t->merge[i];
        i = (i + 1) & t->merge_mask;
    }
    return NULL;
}

/* Id of the regular token of these bytes, or NO_TOKEN. */
uint32_t tokenizer_find_bytes(const struct tokenizer *t, const char *bytes, size_t n);

#endif
