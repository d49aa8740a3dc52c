/* model/tokenizer_load.c - what a byte-level BPE needs, out of tokenizer.json or of vocab.json and
 * merges.txt; see tokenizer.h. Everything the engine does not compute is refused by name: other models,
 * normalizers, splitters. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/tokenizer.h"
#include "model/tokenizer_inside.h"
#include "model/utf8.h"

#define PATTERN_MAX 4096
#define ADDED_MAX   4096

/* 11 MB for the largest published one. */
static const struct doc_limits file_limits = { .bytes_max = (size_t)64 << 20,
                                               .depth_max = 32,
                                               .code = E_MODEL };

static const char qwen2_pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---- bytes and letters -------------------------------------------------------------------------------- */

/* The byte-level alphabet: printable bytes of Latin-1 stand for themselves, the others, in order, for 256,
 * 257, ... The 68 others are 0..32, 127..160 and 173. */
static int byte_of_letter(uint32_t cp)
{
    if ((cp >= 33 && cp <= 126) || (cp >= 161 && cp <= 172) || (cp >= 174 && cp <= 255)) return (int)cp;
    if (cp >= 256 && cp < 256 + 33) return (int)cp - 256;
    if (cp >= 256 + 33 && cp < 256 + 67) return (int)cp - 256 - 33 + 127;
    return cp == 256 + 67 ? 173 : -1;
}

/* Letters to bytes; out has room for n. Returns the number of bytes, or -1: a character that is no letter. */
static long letters_to_bytes(const char *s, size_t n, char *out)
{
    long n_out = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        const int len = utf8_step((const uint8_t *)s + i, n - i, &cp);
        const int b = len > 0 ? byte_of_letter(cp) : -1;
        if (b < 0) return -1;
        out[n_out++] = (char)b;
        i += (size_t)len;
    }
    return n_out;
}

/* ---- tables ------------------------------------------------------------------------------------------- */

static uint64_t hash_bytes(const char *s, size_t n)
{
    uint64_t h = n;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return mix64(h);
}

/* The slot of these bytes, or the empty one where they belong. */
static struct text_slot *text_slot(const struct tokenizer *t, const char *s, size_t n)
{
    uint32_t i = (uint32_t)hash_bytes(s, n) & t->text_mask;
    for (;; i = (i + 1) & t->text_mask) {
        struct text_slot *slot = &t->by_text[i];
        if (slot->id == NO_TOKEN) return slot;
        const struct vocab_entry *v = &t->entry[slot->id];
        if (v->len == n && memcmp(t->bytes + v->at, s, n) == 0) return slot;
    }
}

uint32_t tokenizer_find_bytes(const struct tokenizer *t, const char *bytes, size_t n)
{
    return text_slot(t, bytes, n)->id;
}

static uint32_t power_of_two_over(size_t n)
{
    uint32_t p = 16;
    while (p < n) p *= 2;
    return p;
}

static status set_entry(struct tokenizer *t, uint32_t id, const char *s, size_t n, struct err *e)
{
    TRY(mem_grow(&t->bytes, &t->bytes_cap, t->n_bytes + n + 1, 1, e));
    memcpy(t->bytes + t->n_bytes, s, n);
    t->entry[id] = (struct vocab_entry){ .at = (uint32_t)t->n_bytes, .len = (uint32_t)n, .defined = true };
    t->n_bytes += n;
    if (n > t->longest) t->longest = n;
    return OK;
}

/* The object {"token": id, ...}. n_ids counts those of added tokens too. */
static status load_vocab(struct tokenizer *t, const struct doc_at *vocab, uint32_t n_ids, struct err *e)
{
    const char *key;
    json_t *v;
    status st = OK;
    char *bytes = NULL;
    size_t cap = 0;
    t->n_ids = n_ids;
    TRY(mem_alloc(&t->entry, n_ids, sizeof *t->entry, e));
    const uint32_t slots = power_of_two_over(2 * json_object_size(vocab->v));
    t->text_mask = slots - 1;
    TRY(mem_alloc(&t->by_text, slots, sizeof *t->by_text, e));
    memset(t->by_text, 0xff, slots * sizeof *t->by_text);
    json_object_foreach((json_t *)(uintptr_t)vocab->v, key, v)
    {
        const struct doc_at at = { .v = v, .up = vocab, .key = key, .doc = vocab->doc };
        const size_t n = strlen(key);
        int64_t id;
        TRY_GOTO(st, doc_as_int(&at, 0, n_ids - 1, &id, e), done);
        if (t->entry[id].defined) {
            st = doc_err(&at, e, "has the id %lld, which another token has", (long long)id);
            goto done;
        }
        TRY_GOTO(st, mem_grow(&bytes, &cap, n + 1, 1, e), done);
        const long len = letters_to_bytes(key, n, bytes);
        /* What is not spelled in byte letters cannot come out of merges; decoding gives it as it stands. */
        TRY_GOTO(st, set_entry(t, (uint32_t)id, len < 0 ? key : bytes, len < 0 ? n : (size_t)len, e), done);
        if (len >= 0) text_slot(t, bytes, (size_t)len)->id = (uint32_t)id;
    }
    for (int b = 0; b < 256; b++) {
        const char c = (char)b;
        t->byte_id[b] = tokenizer_find_bytes(t, &c, 1);
        if (t->byte_id[b] == NO_TOKEN) {
            st = doc_err(vocab, e, "has no token for the byte 0x%02x: not a byte-level vocabulary", b);
            goto done;
        }
    }
done:
    free(bytes);
    return st;
}

static status start_merges(struct tokenizer *t, size_t n, struct err *e)
{
    const uint32_t slots = power_of_two_over(2 * n);
    t->merge_mask = slots - 1;
    TRY(mem_alloc(&t->merge, slots, sizeof *t->merge, e));
    memset(t->merge, 0xff, slots * sizeof *t->merge);
    return OK;
}

/* The next merge, both sides spelled in letters. Returns what is wrong, or NULL. A pair that comes twice
 * has the later rank, as in the reference. */
static const char *add_merge(struct tokenizer *t, const char *a, size_t n_a, const char *b, size_t n_b,
                             char *room)
{
    const long x = letters_to_bytes(a, n_a, room);
    const long y = x < 0 ? -1 : letters_to_bytes(b, n_b, room + x);
    if (x <= 0 || y <= 0) return "is not spelled in byte-level letters";
    const uint32_t left = tokenizer_find_bytes(t, room, (size_t)x);
    const uint32_t right = tokenizer_find_bytes(t, room + x, (size_t)y);
    const uint32_t id = tokenizer_find_bytes(t, room, (size_t)(x + y));
    if (left == NO_TOKEN || right == NO_TOKEN || id == NO_TOKEN)
        return "needs both sides and the whole in the vocabulary";
    uint32_t i = (uint32_t)mix64((uint64_t)left << 32 | right) & t->merge_mask;
    while (t->merge[i].left != NO_TOKEN && (t->merge[i].left != left || t->merge[i].right != right))
        i = (i + 1) & t->merge_mask;
    t->merge[i] = (struct merge_slot){ left, right, t->n_merges++, id };
    return NULL;
}

/* ["a b", ...] or [["a", "b"], ...] */
static status load_merges(struct tokenizer *t, const struct doc_at *merges, struct err *e)
{
    status st = OK;
    char *room = NULL;
    size_t cap = 0;
    TRY(start_merges(t, doc_count(merges), e));
    for (size_t i = 0; i < doc_count(merges); i++) {
        struct doc_at m, side;
        const char *a, *b;
        size_t n_a, n_b;
        doc_element(merges, i, &m);
        if (json_is_array(m.v)) {
            if (doc_count(&m) != 2) {
                st = doc_err(&m, e, "has %zu sides, a merge has two", doc_count(&m));
                goto done;
            }
            doc_element(&m, 0, &side);
            TRY_GOTO(st, doc_as_string(&side, &a, &n_a, e), done);
            doc_element(&m, 1, &side);
            TRY_GOTO(st, doc_as_string(&side, &b, &n_b, e), done);
        } else {
            TRY_GOTO(st, doc_as_string(&m, &a, &n_a, e), done);
            const char *space = memchr(a, ' ', n_a);
            if (space == NULL) {
                st = doc_err(&m, e, "\"%.60s\" has no space between its two sides", a);
                goto done;
            }
            b = space + 1;
            n_b = n_a - (size_t)(b - a);
            n_a = (size_t)(space - a);
        }
        TRY_GOTO(st, mem_grow(&room, &cap, n_a + n_b + 1, 1, e), done);
        const char *wrong = add_merge(t, a, n_a, b, n_b, room);
        if (wrong != NULL) {
            st = doc_err(&m, e, "\"%.*s %.*s\" %s", (int)(n_a < 60 ? n_a : 60), a, (int)(n_b < 60 ? n_b : 60),
                         b, wrong);
            goto done;
        }
    }
done:
    free(room);
    return st;
}

/* One added token; `o` has content, special and the flags of matching. */
static status add_added(struct tokenizer *t, const struct doc_at *o, int64_t id, struct err *e)
{
    static const char *const no[] = { "single_word", "lstrip", "rstrip" };
    struct doc_at at;
    const char *text;
    size_t n;
    bool special = false;
    TRY(doc_any(o, "content", &at, e));
    TRY(doc_as_string(&at, &text, &n, e));
    if (n == 0) return doc_err(&at, e, "is empty");
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
        bool on = false;
        TRY(doc_opt_bool(o, no[i], &on, e));
        if (on) return doc_err(o, e, "%s of an added token is not supported", no[i]);
    }
    TRY(doc_opt_bool(o, "special", &special, e));
    for (size_t i = 0; i < t->n_added; i++)
        if (t->added[i].id == id || (t->added[i].n == n && memcmp(t->added[i].text, text, n) == 0))
            return doc_err(o, e, "is the second added token with this id or content");
    struct vocab_entry *v = &t->entry[id];
    if (v->defined && (v->len != n || memcmp(t->bytes + v->at, text, n) != 0))
        return doc_err(o, e, "has the id %lld of another token", (long long)id);
    if (!v->defined) TRY(set_entry(t, (uint32_t)id, text, n, e));
    v->added = true;
    v->special = special;
    char *copy;
    TRY(mem_alloc(&copy, n + 1, 1, e));
    memcpy(copy, text, n);
    t->added[t->n_added++] = (struct added_token){ .text = copy, .n = n, .id = (uint32_t)id };
    return OK;
}

/* ---- the pattern -------------------------------------------------------------------------------------- */

static status compile(struct tokenizer *t, const char *pattern, const struct doc_at *where, struct err *e)
{
    int why;
    PCRE2_SIZE at;
    const size_t n = strlen(pattern);
    if (n == 0 || n > PATTERN_MAX)
        return doc_err(where, e, "a pattern of %zu bytes, it must have 1 to %d", n, PATTERN_MAX);
    const uint32_t flags = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
    t->pattern = pcre2_compile((PCRE2_SPTR)pattern, n, flags, &why, &at, NULL);
    if (t->pattern == NULL) {
        PCRE2_UCHAR text[120];
        pcre2_get_error_message(why, text, sizeof text);
        return doc_err(where, e, "the pattern is not understood at byte %zu: %s", (size_t)at, (char *)text);
    }
    pcre2_jit_compile(t->pattern, PCRE2_JIT_COMPLETE); /* without it matching is slower and the same */
    return OK;
}

/* ByteLevel: the letters alone, or with GPT-2's own split before. */
static status read_byte_level(struct tokenizer *t, const struct doc_at *o, struct err *e)
{
    bool prefix = true, regex = true;
    TRY(doc_opt_bool(o, "add_prefix_space", &prefix, e));
    TRY(doc_opt_bool(o, "use_regex", &regex, e));
    if (prefix) return doc_err(o, e, "add_prefix_space is true, which is not supported");
    if (regex && t->pattern != NULL) return doc_err(o, e, "use_regex beside a Split is not supported");
    if (regex) return compile(t, gpt2_pattern, o, e);
    if (t->pattern == NULL) return doc_err(o, e, "there is no pattern to split with");
    return OK;
}

static status read_split(struct tokenizer *t, const struct doc_at *o, struct err *e)
{
    struct doc_at pattern;
    const char *behaviour, *text;
    bool invert = false;
    TRY(doc_string(o, "behavior", &behaviour, e));
    TRY(doc_opt_bool(o, "invert", &invert, e));
    if (strcmp(behaviour, "Isolated") != 0 || invert)
        return doc_err(o, e, "a Split of behavior \"%.40s\"%s, supported is \"Isolated\"", behaviour,
                       invert ? " with invert" : "");
    if (t->pattern != NULL) return doc_err(o, e, "a second Split is not supported");
    TRY(doc_object(o, "pattern", &pattern, e));
    TRY(doc_string(&pattern, "Regex", &text, e));
    return compile(t, text, &pattern, e);
}

static status read_pre_tokenizer(struct tokenizer *t, const struct doc_at *root, struct err *e)
{
    struct doc_at o, list, el;
    const char *type;
    TRY(doc_object(root, "pre_tokenizer", &o, e));
    TRY(doc_string(&o, "type", &type, e));
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(t, &o, e);
    if (strcmp(type, "Sequence") != 0)
        return doc_err(&o, e, "type \"%.40s\": this engine reads byte-level tokenizers alone", type);
    TRY(doc_array(&o, "pretokenizers", &list, e));
    const size_t n = doc_count(&list);
    if (n == 0) return doc_err(&list, e, "is empty");
    for (size_t i = 0; i < n; i++) {
        doc_element(&list, i, &el);
        TRY(doc_as_object(&el, e));
        TRY(doc_string(&el, "type", &type, e));
        const bool last = i + 1 == n;
        if (!last && strcmp(type, "Split") == 0) {
            TRY(read_split(t, &el, e));
        } else if (last && strcmp(type, "ByteLevel") == 0) {
            TRY(read_byte_level(t, &el, e));
        } else {
            return doc_err(&el, e, "type \"%.40s\" here: supported is a Split, then ByteLevel", type);
        }
    }
    return OK;
}

/* ---- tokenizer.json ----------------------------------------------------------------------------------- */

static status read_normalizer(struct tokenizer *t, const struct doc_at *root, struct err *e)
{
    struct doc_at o, list, el;
    const char *type;
    if (!doc_has(root, "normalizer")) return OK;
    TRY(doc_object(root, "normalizer", &o, e));
    TRY(doc_string(&o, "type", &type, e));
    if (strcmp(type, "Sequence") == 0) {
        TRY(doc_array(&o, "normalizers", &list, e));
        if (doc_count(&list) == 0) return OK;
        if (doc_count(&list) > 1) return doc_err(&list, e, "has more than one step, supported is NFC");
        doc_element(&list, 0, &el);
        TRY(doc_as_object(&el, e));
        TRY(doc_string(&el, "type", &type, e));
    }
    if (strcmp(type, "NFC") != 0) return doc_err(&o, e, "type \"%.40s\" is not supported, NFC is", type);
    t->nfc = true;
    return OK;
}

/* A member that, where it is there, must be of type ByteLevel. */
static status must_be_byte_level(const struct doc_at *root, const char *key, struct err *e)
{
    struct doc_at o;
    const char *type;
    if (!doc_has(root, key)) return OK;
    TRY(doc_object(root, key, &o, e));
    TRY(doc_string(&o, "type", &type, e));
    if (strcmp(type, "ByteLevel") != 0)
        return doc_err(&o, e, "type \"%.40s\" is not supported, ByteLevel is", type);
    return OK;
}

static status read_model_flags(struct tokenizer *t, const struct doc_at *m, struct err *e)
{
    static const char *const empty[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    const char *type = "BPE", *s;
    bool fallback = false;
    double dropout = 0;
    TRY(doc_opt_string(m, "type", &type, e));
    if (strcmp(type, "BPE") != 0)
        return doc_err(m, e, "this is a tokenizer of type \"%.40s\": this engine reads byte-level BPE alone",
                       type);
    TRY(doc_opt_double(m, "dropout", 0, 1, &dropout, e));
    if (dropout != 0) return doc_err(m, e, "dropout is %g, which is not supported", dropout);
    for (size_t i = 0; i < 2; i++) {
        s = "";
        TRY(doc_opt_string(m, empty[i], &s, e));
        if (s[0] != '\0') return doc_err(m, e, "%s \"%.40s\" is not supported", empty[i], s);
    }
    TRY(doc_opt_bool(m, "byte_fallback", &fallback, e));
    if (fallback) return doc_err(m, e, "byte_fallback: a SentencePiece vocabulary, not a byte-level one");
    return doc_opt_bool(m, "ignore_merges", &t->ignore_merges, e);
}

/* Largest id of the vocabulary and the added tokens, + 1. */
static status count_ids(const struct doc_at *vocab, const struct doc_at *added, uint32_t *n_ids,
                        struct err *e)
{
    const char *key;
    json_t *v;
    int64_t most = -1, id;
    json_object_foreach((json_t *)(uintptr_t)vocab->v, key, v)
    {
        const struct doc_at at = { .v = v, .up = vocab, .key = key, .doc = vocab->doc };
        TRY(doc_as_int(&at, 0, TOKEN_ID_MAX - 1, &id, e));
        if (id > most) most = id;
    }
    for (size_t i = 0; added != NULL && i < doc_count(added); i++) {
        struct doc_at el;
        doc_element(added, i, &el);
        TRY(doc_as_object(&el, e));
        TRY(doc_int(&el, "id", 0, TOKEN_ID_MAX - 1, &id, e));
        if (id > most) most = id;
    }
    if (most < 0) return doc_err(vocab, e, "is empty");
    *n_ids = (uint32_t)(most + 1);
    return OK;
}

static status room_for_added(struct tokenizer *t, const struct doc_at *where, size_t n, struct err *e)
{
    if (n > ADDED_MAX)
        return doc_err(where, e, "has %zu added tokens, at most %d are supported", n, ADDED_MAX);
    return mem_alloc(&t->added, n, sizeof *t->added, e);
}

static status read_root(struct tokenizer *t, const struct doc_at *root, struct err *e)
{
    struct doc_at model, vocab, merges, added, el;
    int64_t id;
    uint32_t n_ids = 0;
    TRY(doc_as_object(root, e));
    TRY(doc_object(root, "model", &model, e));
    TRY(read_model_flags(t, &model, e));
    TRY(read_normalizer(t, root, e));
    TRY(read_pre_tokenizer(t, root, e));
    TRY(must_be_byte_level(root, "decoder", e));
    TRY(must_be_byte_level(root, "post_processor", e));
    TRY(doc_object(&model, "vocab", &vocab, e));
    TRY(doc_array(&model, "merges", &merges, e));
    const bool has_added = doc_has(root, "added_tokens");
    if (has_added) TRY(doc_array(root, "added_tokens", &added, e));
    TRY(count_ids(&vocab, has_added ? &added : NULL, &n_ids, e));
    TRY(load_vocab(t, &vocab, n_ids, e));
    TRY(load_merges(t, &merges, e));
    if (!has_added) return OK;
    TRY(room_for_added(t, &added, doc_count(&added), e));
    for (size_t i = 0; i < doc_count(&added); i++) {
        doc_element(&added, i, &el);
        TRY(doc_int(&el, "id", 0, TOKEN_ID_MAX - 1, &id, e));
        TRY(add_added(t, &el, id, e));
    }
    return OK;
}

static status from_doc(struct doc *d, struct tokenizer **out, struct err *e)
{
    struct tokenizer *t = mem_must(1, sizeof *t);
    struct doc_at root;
    doc_root(d, &root);
    const status st = read_root(t, &root, e);
    doc_close(d);
    if (st != OK) tokenizer_free(&t);
    if (st == OK) *out = t;
    return st;
}

status tokenizer_parse(const char *json, size_t n, struct tokenizer **out, struct err *e)
{
    struct doc d;
    TRY(doc_parse(json, n, "tokenizer.json", &file_limits, &d, e));
    return from_doc(&d, out, e);
}

/* ---- vocab.json and merges.txt ------------------------------------------------------------------------ */

/* tokenizer_config.json: added_tokens_decoder, {"id": {"content": ...}}; *n_ids grows to hold them. */
static status decoder_ids(const struct doc_at *decoder, uint32_t *n_ids, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)decoder->v, key, v)
    {
        const struct doc_at at = { .v = v, .up = decoder, .key = key, .doc = decoder->doc };
        char *end;
        const long id = strtol(key, &end, 10);
        if (*key < '0' || *key > '9' || *end != '\0' || id < 0 || id >= (long)TOKEN_ID_MAX)
            return doc_err(&at, e, "is not a token id");
        TRY(doc_as_object(&at, e));
        if ((uint32_t)id >= *n_ids) *n_ids = (uint32_t)id + 1;
    }
    return OK;
}

static status load_decoder(struct tokenizer *t, const struct doc_at *decoder, struct err *e)
{
    const char *key;
    json_t *v;
    TRY(room_for_added(t, decoder, json_object_size(decoder->v), e));
    json_object_foreach((json_t *)(uintptr_t)decoder->v, key, v)
    {
        const struct doc_at at = { .v = v, .up = decoder, .key = key, .doc = decoder->doc };
        TRY(add_added(t, &at, strtol(key, NULL, 10), e));
    }
    return OK;
}

/* Lines "a b", after a line that begins with #version. */
static status load_merges_txt(struct tokenizer *t, const char *path, struct err *e)
{
    status st = OK;
    char *line = NULL, *room = NULL;
    size_t cap = 0, room_cap = 0, n = 0, number = 0;
    FILE *f = fopen(path, "rb");
    if (f == NULL) return err_set(e, E_MODEL, "%s: cannot be opened", path);
    for (int c; (c = getc(f)) != EOF;) n += c == '\n';
    rewind(f);
    TRY_GOTO(st, start_merges(t, n + 1, e), done);
    for (ssize_t len; (len = getline(&line, &cap, f)) > 0;) {
        number++;
        while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
        if (len == 0 || (number == 1 && strncmp(line, "#version", 8) == 0)) continue;
        const char *space = memchr(line, ' ', (size_t)len), *wrong = "has no space between its two sides";
        TRY_GOTO(st, mem_grow(&room, &room_cap, (size_t)len + 1, 1, e), done);
        if (space != NULL)
            wrong =
                add_merge(t, line, (size_t)(space - line), space + 1, (size_t)(line + len - space - 1), room);
        if (wrong != NULL) {
            st = err_set(e, E_MODEL, "%s: line %zu: \"%.*s\" %s", path, number, (int)(len < 60 ? len : 60),
                         line, wrong);
            goto done;
        }
    }
done:
    free(line);
    free(room);
    fclose(f);
    return st;
}

static status read_apart(struct tokenizer *t, const struct doc_at *vocab, const struct doc_at *config,
                         const char *merges_path, struct err *e)
{
    struct doc_at decoder;
    const char *class;
    uint32_t n_ids = 0;
    TRY(doc_as_object(vocab, e));
    TRY(doc_string(config, "tokenizer_class", &class, e));
    if (strcmp(class, "Qwen2Tokenizer") != 0 && strcmp(class, "Qwen2TokenizerFast") != 0)
        return doc_err(config, e, "tokenizer_class \"%.60s\" without tokenizer.json is not supported", class);
    TRY(doc_object(config, "added_tokens_decoder", &decoder, e));
    t->nfc = true;
    TRY(compile(t, qwen2_pattern, config, e));
    TRY(count_ids(vocab, NULL, &n_ids, e));
    TRY(decoder_ids(&decoder, &n_ids, e));
    TRY(load_vocab(t, vocab, n_ids, e));
    TRY(load_merges_txt(t, merges_path, e));
    return load_decoder(t, &decoder, e);
}

static status load_apart(const char *vocab_path, const char *merges_path, const char *config_path,
                         struct tokenizer **out, struct err *e)
{
    struct doc vocab, config;
    struct doc_at vocab_root, config_root;
    TRY(doc_load(vocab_path, &file_limits, &vocab, e));
    status st = doc_load(config_path, &file_limits, &config, e);
    if (st != OK) {
        doc_close(&vocab);
        return st;
    }
    struct tokenizer *t = mem_must(1, sizeof *t);
    doc_root(&vocab, &vocab_root);
    doc_root(&config, &config_root);
    st = read_apart(t, &vocab_root, &config_root, merges_path, e);
    doc_close(&vocab);
    doc_close(&config);
    if (st != OK) tokenizer_free(&t);
    if (st == OK) *out = t;
    return st;
}

status tokenizer_load(const char *dir, struct tokenizer **out, struct err *e)
{
    char whole[4096], vocab[4096], merges[4096], config[4096];
    if (strlen(dir) > 4000)
        return err_set(e, E_MODEL, "the path of the model is longer than 4000 characters");
    snprintf(whole, sizeof whole, "%s/tokenizer.json", dir);
    snprintf(vocab, sizeof vocab, "%s/vocab.json", dir);
    snprintf(merges, sizeof merges, "%s/merges.txt", dir);
    snprintf(config, sizeof config, "%s/tokenizer_config.json", dir);
    if (access(whole, F_OK) == 0) {
        struct doc d;
        TRY(doc_load(whole, &file_limits, &d, e));
        return from_doc(&d, out, e);
    }
    if (access(vocab, F_OK) != 0 || access(merges, F_OK) != 0)
        return err_set(e, E_MODEL,
                       "%s: no tokenizer: neither tokenizer.json nor vocab.json and merges.txt are there",
                       dir);
    return load_apart(vocab, merges, config, out, e);
}

void tokenizer_free(struct tokenizer **tokenizer)
{
    struct tokenizer *t = *tokenizer;
    if (t == NULL) return;
    for (size_t i = 0; i < t->n_added; i++) free(t->added[i].text);
    free(t->added);
    free(t->entry);
    free(t->bytes);
    free(t->merge);
    free(t->by_text);
    pcre2_code_free(t->pattern);
    free(t);
    *tokenizer = NULL;
}
