/* tests/media/expected.h - reads tests/data/media/expected.txt, which tools/make_media.py made with the
 * reference. Tests run in the root of the tree. */
#ifndef TESTS_MEDIA_EXPECTED_H
#define TESTS_MEDIA_EXPECTED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"

#define DATA "tests/data/media/"
#define EXPECTED_WORDS 1024

/* Fails with the error's own text. */
#define assert_ok(expr, e)                                                                                 \
    do {                                                                                                   \
        const status ok_st_ = (expr);                                                                      \
        if (ok_st_ != OK) fail_msg("%s: %s: %s", #expr, err_name(ok_st_), (e).text);                       \
    } while (0)

struct expected {
    FILE *file;
    char *line;
    size_t cap;
    char *word[EXPECTED_WORDS];           /* of the current line, without its kind */
    size_t n_words, n_lines;
};

static inline void expected_open(struct expected *x)
{
    *x = (struct expected){ .file = fopen(DATA "expected.txt", "r") };
    if (x->file == NULL) fail_msg("%sexpected.txt is missing: run the tests in the root of the tree", DATA);
}

/* The next line of this kind; at the end closes the file and checks that there was one. */
static inline int expected_next(struct expected *x, const char *kind)
{
    while (getline(&x->line, &x->cap, x->file) >= 0) {
        char *save = NULL, *w = strtok_r(x->line, " \n", &save);
        if (w == NULL || strcmp(w, kind) != 0) continue;
        for (x->n_words = 0; (w = strtok_r(NULL, " \n", &save)) != NULL && x->n_words < EXPECTED_WORDS; )
            x->word[x->n_words++] = w;
        x->n_lines++;
        return 1;
    }
    fclose(x->file);
    free(x->line);
    assert_true(x->n_lines > 0);
    return 0;
}

static inline double expected_number(const struct expected *x, size_t i)
{
    if (i >= x->n_words) fail_msg("a line of expected.txt is short");
    return strtod(x->word[i], NULL);
}

static inline size_t expected_count(const struct expected *x, size_t i)
{
    return (size_t)expected_number(x, i);
}

/* 'count index value ...' from word i on, against y [n]: no value further off than `near`, and at most
 * `n_far` further than `exact`. Returns the word behind the list. */
static inline size_t expected_some(const struct expected *x, size_t i, const float *y, size_t n, double near,
                                   double exact, size_t n_far)
{
    const size_t count = expected_count(x, i++);
    size_t far = 0;
    for (size_t k = 0; k < count; k++, i += 2) {
        const size_t at = expected_count(x, i);
        const double want = expected_number(x, i + 1);
        assert_true(at < n);
        const double off = y[at] > want ? y[at] - want : want - y[at];
        if (!(off <= near)) fail_msg("%s: value %zu is %g, not %g", x->word[0], at, y[at], want);
        far += off > exact;
    }
    if (far > n_far) fail_msg("%s: %zu of %zu values differ by more than %g", x->word[0], far, count, exact);
    return i;
}

/* FNV-1a. */
static inline uint64_t expected_hash(const uint8_t *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

/* The generator of tools/make_media.py: 24 bits a step. */
static inline uint32_t expected_noise(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*s >> 40);
}

#endif
