/* Goal: ids are those of the `tokenizers` package, special tokens never come from user text, text comes
 * back whole. Method: tests/data/tokenizer (21,000 strings with the package's ids;
 * tools/make_tokenizer_cases.py), and segments, broken files and long strings of our own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "base/clock.h"
#include "model/tokenizer.h"

#define DATA  "tests/data/tokenizer/"
#define MODEL "models/omni-tiny"

#define MUST_OK(expr)                                                                                        \
    do {                                                                                                     \
        if ((expr) != OK) fail_msg("%s", e.text);                                                            \
    } while (0)

static void says(status st, const struct err *e, const char *words)
{
    if (st != E_MODEL) fail_msg("status %d instead of E_MODEL for '%s'", (int)st, words);
    if (strstr(e->text, words) == NULL) fail_msg("'%s' does not say '%s'", e->text, words);
}

/* A file's bytes, unpacked where it is gzip's, with a NUL behind; free() it. */
static char *slurp(const char *path, size_t *n)
{
    enum { PIECE = 1 << 16 };
    gzFile f = gzopen(path, "rb");
    if (f == NULL) fail_msg("%s cannot be opened: run the tests in the root of the repository", path);
    char *s = NULL;
    int got = 0;
    *n = 0;
    do {
        *n += (size_t)got;
        s = realloc(s, *n + PIECE + 1);
        assert_non_null(s);
        got = gzread(f, s + *n, PIECE);
        assert_true(got >= 0);
    } while (got > 0);
    assert_int_equal(gzclose(f), Z_OK);
    s[*n] = '\0';
    return s;
}

static struct tokenizer *tiny(void)
{
    struct err e;
    struct tokenizer *t = NULL;
    MUST_OK(tokenizer_load(MODEL, &t, &e));
    return t;
}

/* ---- the package's cases ------------------------------------------------------------------------------ */

static uint32_t u32(const char **p)
{
    uint32_t v;
    memcpy(&v, *p, 4);
    *p += 4;
    return v;
}

/* text -> U+FFFD for what is broken; a second way than the tokenizer's own, byte by byte from the Unicode
 * table. */
static size_t repaired(const uint8_t *s, size_t n, char *out)
{
    size_t o = 0;
    for (size_t i = 0; i < n;) {
        static const struct {
            uint8_t a0, a1, b0, b1, len;
        } rows[] = {
            { 0x00, 0x7f, 0, 0, 1 },       { 0xc2, 0xdf, 0x80, 0xbf, 2 }, { 0xe0, 0xe0, 0xa0, 0xbf, 3 },
            { 0xe1, 0xec, 0x80, 0xbf, 3 }, { 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
            { 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 }, { 0xf4, 0xf4, 0x80, 0x8f, 4 },
        };
        size_t good = 0, len = 0;
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            if (s[i] < rows[r].a0 || s[i] > rows[r].a1) continue;
            len = rows[r].len;
            good = 1;
            while (good < len && i + good < n) {
                const uint8_t c = s[i + good];
                if (good == 1 ? c < rows[r].b0 || c > rows[r].b1 : c < 0x80 || c > 0xbf) break;
                good++;
            }
        }
        if (len > 0 && good == len) {
            memcpy(out + o, s + i, len);
            o += len;
            i += len;
        } else {
            memcpy(out + o, "\xef\xbf\xbd", 3);
            o += 3;
            i += good > 0 ? good : 1;
        }
    }
    return o;
}

/* All cases of one file. Decoding is compared where nothing normalises: the text with broken bytes
 * repaired. */
static void run_cases(const struct tokenizer *t, const char *path, bool decode)
{
    struct err e;
    size_t size, n_decoded = 0;
    char *file = slurp(path, &size);
    const char *p = file + 8;
    assert_memory_equal(file, "ODTOK1\0\0", 8);
    const uint32_t n_cases = u32(&p);
    struct token_list l = { 0 };
    char *room = malloc(detok_room(t));
    assert_non_null(room);
    for (uint32_t c = 0; c < n_cases; c++) {
        const uint32_t n = u32(&p);
        const char *text = p;
        p += n;
        const uint32_t n_ids = u32(&p);
        MUST_OK(tokenizer_encode_text(t, text, n, &l, &e));
        for (uint32_t i = 0; i < n_ids || i < l.n; i++) {
            uint16_t want = 0;
            if (i < n_ids) memcpy(&want, p + 2 * i, 2);
            if (i >= n_ids || i >= l.n || l.token[i].id != want)
                fail_msg("%s: case %u: token %u is %d, must be %d (%zu tokens, must be %u): '%.*s'", path, c,
                         i, i < l.n ? (int)l.token[i].id : -1, i < n_ids ? (int)want : -1, l.n, n_ids, (int)n,
                         text);
            assert_false(l.token[i].is_user_text);
            assert_true(l.begin[i] < l.end[i] && l.end[i] <= n && (i == 0 || l.begin[i] >= l.begin[i - 1]));
        }
        p += 2 * n_ids;
        if (!decode) continue;
        char *back = malloc(3 * (size_t)n + 16), *want = malloc(3 * (size_t)n + 16);
        assert_non_null(back);
        assert_non_null(want);
        struct detokenizer d;
        detok_init(&d, t);
        size_t len = 0;
        for (size_t i = 0; i < l.n; i++) {
            const size_t k = detok_push(&d, l.token[i].id, room);
            assert_true(k <= detok_room(t));
            memcpy(back + len, room, k);
            len += k;
        }
        assert_int_equal(detok_flush(&d, room), 0);
        const size_t want_len = repaired((const uint8_t *)text, n, want);
        n_decoded += want_len == len && memcmp(want, back, len) == 0;
        free(back);
        free(want);
    }
    assert_true(p == file + size);
    printf("%s: %u strings, ids equal; %zu came back as they were\n", path, n_cases, n_decoded);
    assert_true(!decode || n_decoded > n_cases * 8 / 10); /* the others are those that NFC changes */
    free(room);
    free(file);
    token_list_free(&l);
}

static void ids_of_the_package_bundled_model(void **state)
{
    (void)state;
    struct tokenizer *t = tiny();
    run_cases(t, DATA "omni-tiny.bin.gz", true);
    tokenizer_free(&t);
}

static void ids_of_the_package_many_scripts(void **state)
{
    (void)state;
    struct err e;
    struct tokenizer *t;
    size_t n;
    char *json = slurp(DATA "multi.json", &n);
    MUST_OK(tokenizer_parse(json, n, &t, &e));
    run_cases(t, DATA "multi.bin.gz", true);
    tokenizer_free(&t);
    free(json);
}

static void vocab_and_merges_apart_give_the_same(void **state)
{
    (void)state;
    static const char *const names[] = { "vocab.json", "merges.txt", "tokenizer_config.json" };
    char dir[] = "/tmp/test_tokenizer_XXXXXX", path[200], from[200];
    struct err e;
    struct tokenizer *t;
    assert_non_null(mkdtemp(dir));
    says(tokenizer_load(dir, &t, &e), &e, "neither tokenizer.json nor vocab.json and merges.txt");
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        char *cwd = getcwd(NULL, 0);
        snprintf(from, sizeof from, "%s/" MODEL "/%s", cwd, names[i]);
        free(cwd);
        assert_int_equal(symlink(from, path), 0);
    }
    MUST_OK(tokenizer_load(dir, &t, &e));
    run_cases(t, DATA "omni-tiny.bin.gz", false);
    assert_int_equal(tokenizer_id(t, "<|im_end|>"), 748);
    assert_true(tokenizer_is_special(t, 748));
    assert_false(tokenizer_is_special(t, tokenizer_id(t, "<tool_call>")));
    tokenizer_free(&t);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

/* ---- Unicode ------------------------------------------------------------------------------------------ */

/* Where the libraries' Unicode is not the package's (model/unicode_tables.h): each line is there for one rule. */
static void the_packages_unicode(void **state)
{
    (void)state;
    static const struct {
        const char *text, *nfc;
        int32_t id[20];
    } cases[] = {
        { "\xea\xb1\x94\xe1\x86\xa7", "\xea\xb1\x94\xe1\x86\xa7", { 166, 109, 242, 157, 228, 100 } },
        { "\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81", { 784, 223 } },
        { "q\xcd\x85\xdf\xbd\xcc\xb4", "q\xcd\x85\xdf\xbd\xcc\xb4", { 80, 137, 227, 155, 121, 136, 112 } },
        { "\xf0\x91\xa4\xb5\xf0\x91\xa4\xb0",
          "\xf0\x91\xa4\xb5\xf0\x91\xa4\xb0",
          { 1251, 97, 113, 1251, 97, 108 } },
        { "e\xcc\x81\xcc\xa3\xcc\xb8", "\xe1\xba\xb9\xcc\xb8\xcc\x81", { 1208, 117, 136, 116, 136, 223 } },
        { "a \xe1\xa0\x8e  b", "a \xe1\xa0\x8e  b", { 64, 316, 254, 236, 220, 294 } },
        { "a\xf0\x90\xb5\x8a b\xe0\xa2\x97"
          "c1\xf0\x90\xb5\x80",
          "a\xf0\x90\xb5\x8a b\xe0\xa2\x97"
          "c1\xf0\x90\xb5\x80",
          { 64, 662, 113, 232, 294, 156, 95, 245, 66, 16, 662, 113, 222 } },
        { "\xcd\x85\xcc\x81x", "\xcc\x81\xcd\x85x", { 136, 223, 137, 227, 87 } },
        { "\xe2\x84\xab\xcd\x84 '\xc5\xbf 'K",
          "\xc3\x85\xcc\x88\xcc\x81 '\xc5\xbf 'K",
          { 127, 227, 136, 230, 136, 223, 394, 129, 123, 394, 42 } },
    };
    struct err e;
    struct tokenizer *t;
    struct token_list l = { 0 };
    size_t n;
    char *json = slurp(DATA "multi.json", &n);
    MUST_OK(tokenizer_parse(json, n, &t, &e));
    free(json);
    char *room = malloc(detok_room(t));
    assert_non_null(room);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct detokenizer d;
        char back[100];
        n = 0;
        detok_init(&d, t);
        MUST_OK(tokenizer_encode_text(t, cases[c].text, strlen(cases[c].text), &l, &e));
        for (size_t i = 0; i < l.n; i++) {
            assert_int_equal(l.token[i].id, cases[c].id[i]);
            const size_t k = detok_push(&d, l.token[i].id, room);
            memcpy(back + n, room, k);
            n += k;
        }
        assert_int_equal(cases[c].id[l.n], 0);
        back[n] = '\0';
        assert_string_equal(back, cases[c].nfc);
    }
    free(room);
    token_list_free(&l);
    tokenizer_free(&t);
}

/* ---- segments ----------------------------------------------------------------------------------------- */

#define SEG(s, ...)                                                                                          \
    {                                                                                                        \
        .text = s, .n = sizeof(s) - 1, __VA_ARGS__                                                           \
    }

static void added_tokens_come_from_the_template_alone(void **state)
{
    (void)state;
    struct err e;
    struct tokenizer *t = tiny();
    struct token_list l = { 0 };
    const struct text_segment segs[] = {
        SEG("<|im_start|>user\n", .is_template = true),
        SEG("<|im_end|><|AUDIO|><|im_", .is_user_text = true),
        SEG("end|>", .is_template = true),
        SEG("<|im_end|>\n", .is_template = true),
    };
    MUST_OK(tokenizer_encode(t, segs, 4, &l, &e));
    size_t added = 0;
    for (size_t i = 0; i < l.n; i++) {
        if (!tokenizer_is_added(t, l.token[i].id)) continue;
        assert_false(l.token[i].is_user_text);
        added++;
    }
    assert_int_equal(added, 2);
    assert_int_equal(l.token[0].id, 747);
    assert_int_equal(l.token[l.n - 2].id, 748);
    assert_int_equal(l.begin[l.n - 2], segs[0].n + segs[1].n + segs[2].n);
    for (int32_t id = 746; id < 768; id++) { /* no user text makes any of them */
        size_t n;
        const char *s = tokenizer_bytes(t, id, &n);
        MUST_OK(tokenizer_encode_text(t, s, n, &l, &e));
        for (size_t i = 0; i < l.n; i++) assert_false(tokenizer_is_added(t, l.token[i].id));
        const struct text_segment one = { .text = s, .n = n, .is_template = true };
        MUST_OK(tokenizer_encode(t, &one, 1, &l, &e));
        assert_int_equal(l.n, 1);
        assert_int_equal(l.token[0].id, id);
    }
    token_list_free(&l);
    tokenizer_free(&t);
}

/* How the segments are cut does not matter to the ids, and user text is what holds a character of it. */
static void segments_are_one_string(void **state)
{
    (void)state;
    static const char text[] =
        "What is said?\n\n  Caf\xc3\xa9 e\xcc\x81  \xe4\xbd\xa0\xe5\xa5\xbd 12 \xf0\x9f\x99\x82 the end\n";
    const size_t n = sizeof text - 1;
    struct err e;
    struct tokenizer *t = tiny();
    struct token_list whole = { 0 }, cut = { 0 };
    MUST_OK(tokenizer_encode_text(t, text, n, &whole, &e));
    for (size_t a = 0; a <= n; a++) {
        if (a < n && ((uint8_t)text[a] & 0xc0) == 0x80) continue; /* between characters */
        for (size_t b = a; b <= n; b++) {
            if (b < n && ((uint8_t)text[b] & 0xc0) == 0x80) continue;
            const struct text_segment segs[] = {
                { .text = text, .n = a, .is_template = true },
                { .text = text + a, .n = b - a, .is_user_text = true },
                { .text = text + b, .n = n - b },
            };
            MUST_OK(tokenizer_encode(t, segs, 3, &cut, &e));
            assert_int_equal(cut.n, whole.n);
            for (size_t i = 0; i < cut.n; i++) {
                assert_int_equal(cut.token[i].id, whole.token[i].id);
                assert_int_equal(cut.begin[i], whole.begin[i]);
                assert_int_equal(cut.token[i].is_user_text, a < b && cut.begin[i] < b && cut.end[i] > a);
            }
        }
    }
    token_list_free(&whole);
    token_list_free(&cut);
    tokenizer_free(&t);
}

static void broken_text_does_not_join_across_segments(void **state)
{
    (void)state;
    struct err e;
    struct tokenizer *t = tiny();
    struct token_list a = { 0 }, b = { 0 };
    const struct text_segment segs[] = { SEG("\xe4\xbd"), SEG("\xa0") };
    MUST_OK(tokenizer_encode(t, segs, 2, &a, &e));
    MUST_OK(tokenizer_encode_text(t, "\xef\xbf\xbd\xef\xbf\xbd", 6, &b, &e));
    assert_int_equal(a.n, b.n);
    for (size_t i = 0; i < a.n; i++) assert_int_equal(a.token[i].id, b.token[i].id);
    MUST_OK(tokenizer_encode(t, segs, 0, &a, &e));
    assert_int_equal(a.n, 0);
    token_list_free(&a);
    token_list_free(&b);
    tokenizer_free(&t);
}

/* ---- detokenising ------------------------------------------------------------------------------------- */

static void a_stream_never_splits_a_character(void **state)
{
    (void)state;
    struct err e;
    struct tokenizer *t = tiny();
    struct token_list l = { 0 };
    static const char text[] = "a\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x99\x82z";
    struct detokenizer d;
    char *room = malloc(detok_room(t)), all[64];
    size_t n = 0;
    assert_non_null(room);
    MUST_OK(tokenizer_encode_text(t, text, sizeof text - 1, &l, &e));
    assert_true(l.n > 5); /* characters fall into several tokens */
    detok_init(&d, t);
    for (size_t i = 0; i < l.n; i++) {
        const size_t k = detok_push(&d, l.token[i].id, room);
        if (k > 0) {
            assert_true(((uint8_t)room[0] & 0xc0) != 0x80);
            memcpy(all + n, room, k);
            n += k;
        }
        assert_int_equal(detok_push(&d, 748, room), 0); /* special: nothing, and nothing is broken up */
        assert_int_equal(detok_push(&d, 99999, room), 0);
        assert_int_equal(detok_push(&d, -1, room), 0);
    }
    assert_int_equal(detok_flush(&d, room), 0);
    assert_int_equal(n, sizeof text - 1);
    assert_memory_equal(all, text, n);
    d.keep_special = true;
    assert_int_equal(detok_push(&d, 748, room), 10);
    assert_memory_equal(room, "<|im_end|>", 10);
    d.keep_special = false;
    assert_int_equal(detok_push(&d, tokenizer_id(t, "<tool_call>"), room), 11);
    token_list_free(&l);
    tokenizer_free(&t);
    free(room);
}

/* Any bytes in any order: what comes out is what decoding all of it at once gives. */
static void broken_streams_are_repaired_as_a_whole(void **state)
{
    (void)state;
    static const uint8_t palette[] = { 'a',  0x80, 0xbf, 0xc2, 0xe0, 0xa0, 0xe4,
                                       0xed, 0x9f, 0xf0, 0x90, 0xf4, 0x8f, 0xff };
    struct tokenizer *t = tiny();
    char *room = malloc(detok_room(t)), got[64], want[64];
    assert_non_null(room);
    int32_t id_of[256];
    for (int32_t id = 0; id < (int32_t)tokenizer_n_ids(t); id++) {
        size_t n;
        const char *s = tokenizer_bytes(t, id, &n);
        if (n == 1) id_of[(uint8_t)s[0]] = id;
    }
    const size_t P = sizeof palette;
    for (size_t code = 0; code < P * P * P * P; code++) {
        uint8_t bytes[5];
        size_t c = code, n = 0, n_want;
        struct detokenizer d;
        detok_init(&d, t);
        for (int i = 0; i < 4; i++, c /= P) {
            bytes[i] = palette[c % P];
            n += detok_push(&d, id_of[bytes[i]], got + n);
        }
        n += detok_flush(&d, got + n);
        n_want = repaired(bytes, 4, want);
        if (n != n_want || memcmp(got, want, n) != 0)
            fail_msg("%02x %02x %02x %02x", bytes[0], bytes[1], bytes[2], bytes[3]);
    }
    tokenizer_free(&t);
    free(room);
}

/* ---- size --------------------------------------------------------------------------------------------- */

static void long_strings_take_no_quadratic_time(void **state)
{
    (void)state;
    static const char *const unit[] = {
        "a", " ",   "\n",   "e\xcc\x81\xcc\xa3", "\xcc\x81\xcc\xa3", "\xe4\xbd\xa0", "'s", "1",
        "!", " \n", "\xff", "\xf0\x9f\x99\x82"
    };
    const size_t n = 1 << 20;
    struct err e;
    size_t n_json;
    char *json = slurp(DATA "multi.json", &n_json), *text = malloc(n);
    struct tokenizer *t;
    struct token_list l = { 0 };
    assert_non_null(text);
    MUST_OK(tokenizer_parse(json, n_json, &t, &e));
    free(json);
    for (size_t u = 0; u < sizeof unit / sizeof *unit; u++) {
        for (size_t i = 0; i < n; i++) text[i] = unit[u][i % strlen(unit[u])];
        const double start = clock_s();
        MUST_OK(tokenizer_encode_text(t, text, n, &l, &e));
        const double s = clock_s() - start;
        printf("1 MiB of unit %zu: %zu tokens, %.0f ms\n", u, l.n, 1e3 * s);
        assert_true(s < 20.0); /* seconds, generous for sanitizers; quadratic would take hours */
    }
    const struct text_segment huge[] = { { .text = text, .n = (size_t)65 << 20 } };
    assert_int_equal(tokenizer_encode(t, huge, 1, &l, &e), E_ARG);
    free(text);
    token_list_free(&l);
    tokenizer_free(&t);
}

/* ---- files that are refused --------------------------------------------------------------------------- */

static void other_kinds_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b, *words;
    } bad[] = {
        { "\"type\": \"BPE\"", "\"type\": \"WordPiece\"", "tokenizer of type \"WordPiece\"" },
        { "\"type\": \"BPE\"", "\"type\": \"Unigram\"", "tokenizer of type \"Unigram\"" },
        { "\"type\": \"NFC\"", "\"type\": \"NFKC\"", "\"NFKC\" is not supported" },
        { "\"type\": \"Sequence\"", "\"type\": \"Metaspace\"",
          "\"Metaspace\": this engine reads byte-level" },
        { "\"type\": \"Split\"", "\"type\": \"Digits\"", "pre_tokenizer.pretokenizers[0]: type \"Digits\"" },
        { "\"behavior\": \"Isolated\"", "\"behavior\": \"Removed\"", "a Split of behavior \"Removed\"" },
        { "\"invert\": false", "\"invert\": true", "with invert" },
        { "\"Regex\": \"(?i:", "\"Regex\": \"(?i", "the pattern is not understood at byte" },
        { "\"Regex\"", "\"String\"", "pattern.Regex: is missing" },
        { "\"use_regex\": false", "\"use_regex\": true", "use_regex beside a Split" },
        { "\"add_prefix_space\": false", "\"add_prefix_space\": true", "add_prefix_space is true" },
        { "\"byte_fallback\": false", "\"byte_fallback\": true", "byte_fallback: a SentencePiece" },
        { "\"dropout\": null", "\"dropout\": 0.1", "dropout is 0.1" },
        { "\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix \"</w>\"" },
        { "\"decoder\": {\n    \"type\": \"ByteLevel\"", "\"decoder\": {\n    \"type\": \"WordPiece\"",
          "decoder: type" },
        { "\"!\": 0", "\"!\": 1", "has the id 1, which another token has" },
        { "\"!\": 0", "\"!\": -1", "model.vocab.!: is -1" },
        { "\"!\": 0", "\"!\": 16777216", "must be 0 to" },
        { "\"!\": 0", "\"!\": 1.0", "an integer is needed" },
        { "\"!\": 0", "\"!!!\": 0", "has no token for the byte 0x21" },
        { "\"id\": 746", "\"id\": 5", "added_tokens[0]: has the id 5 of another token" },
        { "\"id\": 746", "\"id\": 747", "second added token" },
        { "\"lstrip\": false", "\"lstrip\": true", "lstrip of an added token" },
        { "\"content\": \"<|endoftext|>\"", "\"content\": \"\"", "added_tokens[0].content: is empty" },
        { "\"merges\": [", "\"merges\": [7,", "model.merges[0]: is an integer" },
        { "\"merges\": [", "\"merges\": [\"ab\",", "has no space between" },
        { "\"merges\": [", "\"merges\": [\"qq zz\",", "needs both sides and the whole in the vocabulary" },
        { "\"merges\": [", "\"merges\": [[\"a\"],", "has 1 sides, a merge has two" },
        { "\"merges\": [", "\"merges\": [[\"a\", \"\xe4\xbd\xa0\"],", "not spelled in byte-level letters" },
        { "\"model\"", "\"modell\"", "tokenizer.json: model: is missing" },
    };
    size_t n;
    char *text = slurp(MODEL "/tokenizer.json", &n);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e;
        struct tokenizer *t = NULL;
        const char *at = strstr(text, bad[i].a);
        if (at == NULL) fail_msg("'%s' is not in tokenizer.json", bad[i].a);
        char *changed = malloc(n + 200);
        assert_non_null(changed);
        const int len = sprintf(changed, "%.*s%s%s", (int)(at - text), text, bad[i].b, at + strlen(bad[i].a));
        says(tokenizer_parse(changed, (size_t)len, &t, &e), &e, bad[i].words);
        assert_null(t);
        free(changed);
    }
    free(text);
}

/* The bundled tokenizer with the first `a` of its file replaced by `b`. */
static struct tokenizer *changed_tiny(const char *a, const char *b)
{
    struct err e;
    struct tokenizer *t = NULL;
    size_t n;
    char *text = slurp(MODEL "/tokenizer.json", &n), *changed = malloc(n + 200);
    assert_non_null(changed);
    const char *at = strstr(text, a);
    assert_non_null(at);
    const int len = sprintf(changed, "%.*s%s%s", (int)(at - text), text, b, at + strlen(a));
    MUST_OK(tokenizer_parse(changed, (size_t)len, &t, &e));
    free(changed);
    free(text);
    return t;
}

/* A token that no merges make is found only where the file says ignore_merges. */
static void whole_pieces_where_merges_are_ignored(void **state)
{
    (void)state;
    static const char *const change[] = {
        "\"ignore_merges\": false,\n    \"vocab\": {\"zqz\": 900,",
        "\"ignore_merges\": true,\n    \"vocab\": {\"zqz\": 900,",
    };
    for (int ignore = 0; ignore < 2; ignore++) {
        struct err e;
        struct token_list l = { 0 };
        struct tokenizer *t = changed_tiny("\"ignore_merges\": false,\n    \"vocab\": {", change[ignore]);
        MUST_OK(tokenizer_encode_text(t, "zqz zqz", 7, &l, &e));
        assert_int_equal(l.n, ignore ? 5 : 7); /* " zqz" is another piece and has no token */
        assert_int_equal(l.token[0].id == 900, ignore);
        assert_int_equal(tokenizer_n_ids(t), 901);
        assert_false(tokenizer_has(t, 899));
        token_list_free(&l);
        tokenizer_free(&t);
    }
}

static void the_longest_added_token_wins(void **state)
{
    (void)state;
    struct err e;
    struct token_list l = { 0 };
    struct tokenizer *t = changed_tiny("<tool_call>", "<|im_start|>us");
    const struct text_segment seg[] = { SEG("<|im_start|>user", .is_template = true) };
    MUST_OK(tokenizer_encode(t, seg, 1, &l, &e));
    assert_int_equal(l.token[0].id, 760);
    assert_int_equal(l.end[0], 14);
    token_list_free(&l);
    tokenizer_free(&t);
}

static void lookups(void **state)
{
    (void)state;
    struct tokenizer *t = tiny();
    size_t n;
    assert_int_equal(tokenizer_n_ids(t), 768);
    assert_true(tokenizer_has(t, 0) && tokenizer_has(t, 767));
    assert_false(tokenizer_has(t, 768) || tokenizer_has(t, -1));
    assert_int_equal(tokenizer_id(t, "<|AUDIO|>"), 749);
    assert_memory_equal(tokenizer_bytes(t, tokenizer_id(t, " is"), &n), " is", 3);
    assert_int_equal(n, 3);
    assert_int_equal(tokenizer_id(t, "no such token"), -1);
    assert_null(tokenizer_bytes(t, 768, &n));
    assert_int_equal(n, 0);
    assert_true(tokenizer_is_added(t, 760) && !tokenizer_is_special(t, 760));
    assert_true(tokenizer_bytes_max(t) >= 15);
    tokenizer_free(&t);
    assert_null(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_of_the_package_bundled_model),
        cmocka_unit_test(ids_of_the_package_many_scripts),
        cmocka_unit_test(vocab_and_merges_apart_give_the_same),
        cmocka_unit_test(the_packages_unicode),
        cmocka_unit_test(added_tokens_come_from_the_template_alone),
        cmocka_unit_test(segments_are_one_string),
        cmocka_unit_test(broken_text_does_not_join_across_segments),
        cmocka_unit_test(a_stream_never_splits_a_character),
        cmocka_unit_test(broken_streams_are_repaired_as_a_whole),
        cmocka_unit_test(long_strings_take_no_quadratic_time),
        cmocka_unit_test(other_kinds_are_refused_by_name),
        cmocka_unit_test(whole_pieces_where_merges_are_ignored),
        cmocka_unit_test(the_longest_added_token_wins),
        cmocka_unit_test(lookups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
