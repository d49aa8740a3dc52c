/* The multipart parser. Goal: parts come out as they went in, whatever they hold and however the bytes are cut; what is
 * no form is refused. Method: tables of forms and of broken ones, fed whole, byte by byte and in random pieces; forms of
 * random parts whose bytes are made of pieces of the delimiter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "http/multipart.h"

#define TYPE "multipart/form-data; boundary=XyZ"

struct got {
    char name[64][64], filename[64][64], type[64][64];
    bool file[64];
    char data[64][4096];
    size_t n[64], n_parts, n_ended;
    bool refuse;
};

static status on_begin(void *self, const char *name, const char *filename, const char *type, struct err *e)
{
    struct got *g = self;
    if (g->refuse) return err_set(e, E_NOMEM, "refused");
    assert_int_equal(g->n_parts, g->n_ended);
    assert_true(g->n_parts < 64);
    snprintf(g->name[g->n_parts], 64, "%s", name);
    snprintf(g->filename[g->n_parts], 64, "%s", filename ? filename : "");
    snprintf(g->type[g->n_parts], 64, "%s", type ? type : "");
    g->file[g->n_parts++] = filename != NULL;
    return OK;
}

static status on_data(void *self, const char *bytes, size_t n, struct err *e)
{
    struct got *g = self;
    (void)e;
    const size_t i = g->n_parts - 1;
    assert_true(n > 0 && g->n[i] + n < sizeof g->data[i]);
    memcpy(g->data[i] + g->n[i], bytes, n);
    g->n[i] += n;
    return OK;
}

static status on_end(void *self, struct err *e)
{
    struct got *g = self;
    (void)e;
    g->n_ended++;
    return OK;
}

static uint32_t random_state = 1;
static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % n;
}

/* cut: 0 whole, 1 byte by byte, else pieces of up to `cut`. */
static status run(const char *type, const char *bytes, size_t n, uint32_t cut, struct got *g, struct err *e)
{
    const struct multipart_sink sink = { g, on_begin, on_data, on_end };
    struct multipart *m = NULL;
    status st = multipart_create(type, &sink, &m, e);
    for (size_t i = 0; st == OK && i < n;) {
        size_t take = cut == 0 ? n : cut == 1 ? 1 : 1 + random_below(cut);
        if (take > n - i) take = n - i;
        char *copy = malloc(take);
        memcpy(copy, bytes + i, take);
        st = multipart_feed(m, copy, take, e);
        free(copy);
        i += take;
    }
    if (st == OK) st = multipart_finish(m, e);
    multipart_free(&m);
    return st;
}

static const uint32_t CUTS[] = { 0, 1, 4, 23 };
#define EACH_CUT(c) for (size_t c = 0; c < sizeof CUTS / sizeof *CUTS; c++)

static void test_form(void **state)
{
    (void)state;
    static const char FORM[] = "preamble --XyZ is not one\r\n--XyZ  \r\n"
                               "Content-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n"
                               "--XyZ\r\ncontent-disposition: form-data; name=language\r\n\r\n\r\n"
                               "--XyZ\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\\\"b%22;c.mp3\"\r\n"
                               "Content-Type: audio/mpeg\r\nX-Other: y\r\n\r\n\r\n-\r--X\r\n--XyY\r\n--Xy\r\r\n--XyZ\r\n"
                               "Content-Disposition: form-data; name=\"other\"; filename=\"x\"; filename*=UTF-8''na%C3%AFve.mp3\r\n\r\n"
                               "\r\n--XyZ\r\nContent-Disposition: form-data; name=\"empty\"; filename=\"\"\r\n\r\n"
                               "\r\n--XyZ--\r\nepilogue\r\n--XyZ\r\n";
    EACH_CUT(c) {
        struct got *g = calloc(1, sizeof *g);
        struct err e;
        if (run(TYPE, FORM, sizeof FORM - 1, CUTS[c], g, &e) != OK) fail_msg("%s", e.text);
        assert_int_equal(g->n_parts, 5);
        assert_int_equal(g->n_ended, 5);
        assert_string_equal(g->name[0], "model");
        assert_string_equal(g->data[0], "whisper-1");
        assert_false(g->file[0]);
        assert_string_equal(g->name[1], "language");
        assert_int_equal(g->n[1], 0);
        assert_string_equal(g->filename[2], "a\"b\";c.mp3");
        assert_string_equal(g->type[2], "audio/mpeg");
        assert_string_equal(g->data[2], "\r\n-\r--X\r\n--XyY\r\n--Xy\r");
        assert_string_equal(g->filename[3], "na\xc3\xafve.mp3");
        assert_true(g->file[4]);
        assert_string_equal(g->filename[4], "");
        free(g);
    }
}

static void test_boundaries(void **state)
{
    (void)state;
    static const struct { const char *type, *boundary; } GOOD[] = {
        { "multipart/form-data; boundary=\"a b\"", "a b" },
        { "multipart/form-data;boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW", "----WebKitFormBoundary7MA4YWxkTrZu0gW" },
        { "multipart/form-data; charset=utf-8; BOUNDARY=q", "q" },
        { "multipart/form-data; x=\"; boundary=no\"; boundary=yes", "yes" },
        { "multipart/form-data; boundary=0123456789012345678901234567890123456789012345678901234567890123456789",
          "0123456789012345678901234567890123456789012345678901234567890123456789" },
    };
    for (size_t i = 0; i < sizeof GOOD / sizeof *GOOD; i++) {
        char form[512];
        const int n = snprintf(form, sizeof form, "--%s\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--%s--", GOOD[i].boundary,
                               GOOD[i].boundary);
        struct got *g = calloc(1, sizeof *g);
        struct err e;
        if (run(GOOD[i].type, form, (size_t)n, 1, g, &e) != OK) fail_msg("%s: %s", GOOD[i].type, e.text);
        assert_string_equal(g->data[0], "b");
        free(g);
    }
    static const char *const BAD[] = {
        "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\"\"",
        "multipart/form-data; boundary=\"a", "multipart/form-data; boundary=\"a\r\n\"", "multipart/form-data; boundary=\"a \"",
        "multipart/form-data; boundary=a\xc3\xa4", "multipart/form-data; xboundary=a",
        "multipart/form-data; boundary=01234567890123456789012345678901234567890123456789012345678901234567890",
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        struct got *g = calloc(1, sizeof *g);
        struct err e;
        assert_int_equal(run(BAD[i], "", 0, 0, g, &e), E_ARG);
        assert_string_equal(e.tag, "invalid_multipart");
        free(g);
    }
}

static void test_refused(void **state)
{
    (void)state;
#define PART(headers) "--XyZ\r\n" headers "\r\n\r\nb\r\n--XyZ--\r\n"
#define NAMED "Content-Disposition: form-data; name=a"
    static const struct { const char *form, *what; } ROWS[] = {
        { "", "nothing" },
        { "--XyZ", "a boundary alone" },
        { "--XyZ\r\n" NAMED "\r\n\r\nb", "unterminated data" },
        { "--XyZ\r\n" NAMED "\r\n\r\nb\r\n--XyZ\r\n", "no closing boundary" },
        { "--XyZ\r\n" NAMED "\r\n\r\nb\r\n--XyZ-", "half a closing boundary" },
        { "--XyZ\r\n" NAMED "\r\n", "cut inside the headers" },
        { "--XyZ\r\n" NAMED "\r\n\r\nb\n--XyZ--\r\n", "LF alone before the boundary" },
        { "--XyZ\n" NAMED "\r\n\r\nb\r\n--XyZ--", "LF alone after the boundary" },
        { "--XyZ\r\n" NAMED "\n\r\nb\r\n--XyZ--", "LF alone in the headers" },
        { "--XyZzz\r\n" NAMED "\r\n\r\nb\r\n--XyZ--", "boundary with more behind it" },
        { "--XyZ\r\n" NAMED "\r\n\r\nb\r\n--XyZ-x", "one dash" },
        { PART("X: y"), "no disposition" },
        { PART("Content-Disposition: attachment; name=a"), "another disposition" },
        { PART("Content-Disposition: form-data"), "no name" },
        { PART("Content-Disposition: form-data; name=\"\""), "an empty name" },
        { PART("Content-Disposition: form-data; name=\"a"), "an open quote" },
        { PART("Content-Disposition: form-data; name=\"\xff\""), "a name that is not text" },
        { PART(NAMED "\r\n folded"), "a folded header" },
        { PART(NAMED "\r\nnonsense"), "a header without a colon" },
        { PART(NAMED "\r\nX: \x01"), "a control character" },
        { PART(NAMED "\r\nContent-Transfer-Encoding: base64"), "an encoded part" },
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++)
        EACH_CUT(c) {
            struct got *g = calloc(1, sizeof *g);
            struct err e;
            const status st = run(TYPE, ROWS[i].form, strlen(ROWS[i].form), CUTS[c], g, &e);
            if (st != E_ARG || strcmp(e.tag, "invalid_multipart") != 0) fail_msg("%s (cut %u): taken", ROWS[i].what, CUTS[c]);
            free(g);
        }
}

static void test_limits(void **state)
{
    (void)state;
    char *form = malloc(1 << 20);
    struct err e;
    for (int over = 0; over < 2; over++) {
        char *p = form;
        for (int i = 0; i < MULTIPART_PARTS_MAX + over; i++) p += sprintf(p, "--XyZ\r\n" NAMED "\r\n\r\n%d\r\n", i);
        p += sprintf(p, "--XyZ--");
        struct got *g = calloc(1, sizeof *g);
        assert_int_equal(run(TYPE, form, (size_t)(p - form), 0, g, &e), over ? E_ARG : OK);
        assert_int_equal(g->n_parts, MULTIPART_PARTS_MAX);
        free(g);

        p = form + sprintf(form, "--XyZ\r\n" NAMED "\r\nX: ");
        const size_t pad = MULTIPART_HEADER_MAX - strlen(NAMED "\r\nX: \r\n\r\n") + (size_t)over;
        memset(p, 'x', pad);
        p += pad;
        p += sprintf(p, "\r\n\r\nb\r\n--XyZ--");
        g = calloc(1, sizeof *g);
        assert_int_equal(run(TYPE, form, (size_t)(p - form), 1, g, &e), over ? E_ARG : OK);
        free(g);
    }
    free(form);
}

static void test_sink_refuses(void **state)
{
    (void)state;
    static const char FORM[] = "--XyZ\r\n" NAMED "\r\n\r\nb\r\n--XyZ--";
    struct got *g = calloc(1, sizeof *g);
    struct err e;
    g->refuse = true;
    assert_int_equal(run(TYPE, FORM, sizeof FORM - 1, 0, g, &e), E_NOMEM);
    assert_string_equal(e.text, "refused");
    free(g);
}

/* Bytes out of what a delimiter is made of; a part that holds the delimiter itself is no part and is not made. */
static void test_random(void **state)
{
    (void)state;
    static const char *const BITS[] = { "\r", "\n", "-", "--", "X", "XyZ", "\r\n", "\r\n--", "\r\n--X", "\r\n--Xy", "a", "\r\r\n--Xy", "" };
    for (int round = 0; round < 2000; round++) {
        static char form[1 << 16], want[8][2048];
        size_t n = 0, n_want[8];
        const uint32_t parts = 1 + random_below(7);
        for (uint32_t i = 0; i < parts; i++) {
            do {
                n_want[i] = 0;
                for (uint32_t k = random_below(40); k; k--) {
                    const char *bit = BITS[random_below(sizeof BITS / sizeof *BITS)];
                    const size_t len = *bit ? strlen(bit) : 1;         /* "" stands for a NUL */
                    memcpy(want[i] + n_want[i], bit, len);
                    n_want[i] += len;
                }
                want[i][n_want[i]] = '\0';
            } while (memmem(want[i], n_want[i], "\r\n--XyZ", 7));
            n += (size_t)sprintf(form + n, "--XyZ\r\nContent-Disposition: form-data; name=p%u; filename=f\r\n\r\n", i);
            memcpy(form + n, want[i], n_want[i]);
            n += n_want[i];
            n += (size_t)sprintf(form + n, "\r\n");
        }
        n += (size_t)sprintf(form + n, "--XyZ--\r\n");
        struct got *g = calloc(1, sizeof *g);
        struct err e;
        if (run(TYPE, form, n, 1 + random_below(60), g, &e) != OK) fail_msg("round %d: %s", round, e.text);
        assert_int_equal(g->n_parts, parts);
        for (uint32_t i = 0; i < parts; i++) {
            assert_int_equal(g->n[i], n_want[i]);
            assert_memory_equal(g->data[i], want[i], n_want[i]);
        }
        free(g);
    }
}

int main(void)
{
    const char *seed = getenv("SEED");
    random_state = seed ? (uint32_t)strtoul(seed, NULL, 10) : 1;
    print_message("SEED=%u\n", random_state);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_form),   cmocka_unit_test(test_boundaries),   cmocka_unit_test(test_refused),
        cmocka_unit_test(test_limits), cmocka_unit_test(test_sink_refuses), cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
