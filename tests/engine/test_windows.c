/* Goal: the window plan tiles every sound, cuts in pauses where there are some, skips silence and nothing else, and
 * does not depend on how the reader delivers. Method: made sounds (bursts and gaps of seeded lengths), invariants I1
 * to I4 of windows.h on each plan, plans compared between readers of different pieces. SEED repeats a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/windows.h"

#define RATE 16000

struct sound { float *x; size_t n, at, piece; };

static status read_sound(void *self, float *buf, size_t cap, size_t *n, struct err *e)
{
    struct sound *s = self;
    (void)e;
    size_t k = s->n - s->at < cap ? s->n - s->at : cap;
    if (s->piece && k > s->piece) k = s->piece;
    if (k > 0) memcpy(buf, s->x + s->at, k * sizeof *buf);
    s->at += k;
    *n = k;
    return OK;
}

static uint64_t rng_state;
static double rnd(void)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng_state >> 11) / 9007199254740992.0;
}

/* n samples of noise of an amplitude behind what is there. */
static void add_noise(struct sound *s, double seconds, double amplitude)
{
    const size_t n = (size_t)(seconds * RATE);
    s->x = realloc(s->x, (s->n + n + 1) * sizeof *s->x);
    assert_non_null(s->x);
    for (size_t i = 0; i < n; i++) s->x[s->n + i] = (float)(amplitude * (2 * rnd() - 1));
    s->n += n;
}

struct plan { struct window w[512]; size_t n; };

static void make_plan(struct sound *s, const struct windows_options *o, size_t piece, struct plan *p)
{
    struct windows *w;
    struct err e;
    s->at = 0;
    s->piece = piece;
    p->n = 0;
    if (windows_create(o, read_sound, s, &w, &e) != OK) fail_msg("%s", e.text);
    for (;;) {
        struct window one;
        if (windows_next(w, &one, &e) != OK) fail_msg("%s", e.text);
        if (one.n_samples == 0) break;
        assert_true(p->n < 512);
        p->w[p->n++] = one;
    }
    assert_int_equal(windows_n_read(w), s->n);
    windows_destroy(&w);
}

static void plan_free(struct plan *p)
{
    for (size_t i = 0; i < p->n; i++) window_free(&p->w[i]);
}

static void check_plan(const struct sound *s, const struct windows_options *o, const struct plan *p)
{
    uint64_t at = 0;
    const uint64_t longest = (uint64_t)(o->window_s * RATE), half = (uint64_t)(o->overlap_s * RATE / 2);
    for (size_t i = 0; i < p->n; i++) {
        const struct window *w = &p->w[i];
        assert_int_equal(w->index, i);
        assert_int_equal(w->from, at);                                         /* I1 */
        assert_true(w->to > w->from && w->to - w->from <= longest);            /* I4 */
        assert_true(w->begin <= w->from && w->end >= w->to);                   /* I2 */
        assert_true(w->from - w->begin <= half && w->end - w->to <= half);
        if (w->clean_from) assert_int_equal(w->begin, w->from);
        if (w->clean_to) assert_int_equal(w->end, w->to);
        if (w->to != s->n) assert_int_equal(w->to % 640, 0);                   /* I3 */
        assert_int_equal(w->n_samples, w->end - w->begin);
        assert_int_equal(w->n_frames, (w->n_samples + 319) / 320);
        assert_memory_equal(w->samples, s->x + w->begin, w->n_samples * sizeof *s->x);
        if (i > 0) assert_true(w->clean_from == p->w[i - 1].clean_to);
        at = w->to;
    }
    assert_int_equal(at, s->n);
}

static void random_sounds_keep_the_invariants(void **state)
{
    (void)state;
    const char *seed = getenv("SEED");
    const uint64_t first = seed ? strtoull(seed, NULL, 10) : 1;
    static const double lengths[] = { 1, 5, 6, 30 };
    static struct plan a, b;
    for (uint64_t k = first; k < first + 60; k++) {
        struct sound s = { 0 };
        rng_state = k * 977;
        const double all = 1 + 60 * rnd(), floor_level = rnd() < 0.3 ? 0 : 0.003 * rnd();
        while ((double)s.n / RATE < all) {
            add_noise(&s, 0.05 + 3 * rnd() * rnd(), 0.05 + 0.5 * rnd());
            add_noise(&s, 0.02 + rnd() * rnd() * (rnd() < 0.1 ? 12 : 0.6), floor_level);
        }
        s.n -= (size_t)(rnd() * 300);
        const double window = lengths[(size_t)(4 * rnd())];
        const struct windows_options o = { .window_s = window, .overlap_s = rnd() < 0.2 ? 0 : window * 0.2 * rnd(),
                                           .keep_silence = rnd() < 0.2 };
        make_plan(&s, &o, 0, &a);
        check_plan(&s, &o, &a);
        make_plan(&s, &o, 1 + (size_t)(4000 * rnd()), &b);
        assert_int_equal(a.n, b.n);
        for (size_t i = 0; i < a.n; i++)
            if (a.w[i].to != b.w[i].to || a.w[i].end != b.w[i].end || a.w[i].silent != b.w[i].silent)
                fail_msg("seed %llu: window %zu depends on the reader's pieces", (unsigned long long)k, i);
        plan_free(&a);
        plan_free(&b);
        free(s.x);
    }
}

static void cuts_in_the_pause(void **state)
{
    (void)state;
    struct sound s = { 0 };
    static struct plan p;
    rng_state = 5;
    add_noise(&s, 26.3, 0.3);
    add_noise(&s, 0.4, 0.0005);            /* the only pause: 26.3 to 26.7 s */
    add_noise(&s, 20, 0.3);
    const struct windows_options o = { .window_s = 30, .overlap_s = 2 };
    make_plan(&s, &o, 0, &p);
    assert_int_equal(p.n, 2);
    assert_true(p.w[0].clean_to);
    assert_in_range(p.w[0].to, (uint64_t)(26.3 * RATE), (uint64_t)(26.7 * RATE));
    plan_free(&p);
    /* A gap of 120 ms is no pause: a hard cut there, and both sides hear 2 s. */
    s.n = (size_t)(26.3 * RATE);
    add_noise(&s, 0.12, 0.0005);
    add_noise(&s, 20, 0.3);
    make_plan(&s, &o, 0, &p);
    assert_int_equal(p.n, 2);
    assert_false(p.w[0].clean_to);
    assert_in_range(p.w[0].to, (uint64_t)(26.3 * RATE), (uint64_t)(26.42 * RATE));
    assert_int_equal(p.w[0].end - p.w[0].to, RATE);
    assert_int_equal(p.w[1].from - p.w[1].begin, RATE);
    plan_free(&p);
    free(s.x);
}

/* Noise makes one of two pauses a little quieter; the longer one is the better cut. */
static void the_longer_of_two_noisy_pauses(void **state)
{
    (void)state;
    struct sound s = { 0 };
    static struct plan p;
    rng_state = 10;
    add_noise(&s, 26, 0.3);
    add_noise(&s, 0.9, 0.0040);
    add_noise(&s, 1, 0.3);
    add_noise(&s, 0.24, 0.0036);
    add_noise(&s, 20, 0.3);
    const struct windows_options o = { .window_s = 30, .overlap_s = 2 };
    make_plan(&s, &o, 0, &p);
    assert_true(p.w[0].clean_to);
    assert_in_range(p.w[0].to, (uint64_t)(26.4 * RATE), (uint64_t)(26.5 * RATE));      /* its middle */
    plan_free(&p);
    free(s.x);
}

/* Words 80 to 140 ms apart: both edges of every overlap lie in a gap, so that no side hears a broken word. */
static void overlaps_end_between_words(void **state)
{
    (void)state;
    struct sound s = { 0 };
    static struct plan p;
    rng_state = 11;
    while (s.n < 120 * RATE) {
        add_noise(&s, 0.25 + 0.25 * rnd(), 0.1 + 0.3 * rnd());
        add_noise(&s, 0.08 + 0.06 * rnd(), 0.001);
    }
    const struct windows_options o = { .window_s = 8, .overlap_s = 2 };
    make_plan(&s, &o, 0, &p);
    check_plan(&s, &o, &p);
    size_t n = 0;
    for (size_t i = 0; i < p.n; i++) {
        const uint64_t at[] = { p.w[i].begin, p.w[i].end };
        assert_true(i + 1 == p.n || !p.w[i].clean_to);
        for (int k = 0; k < 2; k++) {
            if (at[k] == 0 || at[k] == s.n) continue;
            const uint64_t far = k ? p.w[i].end - p.w[i].to : p.w[i].from - p.w[i].begin;
            assert_in_range(far, RATE / 5, RATE);
            for (uint64_t x = at[k] - 160; x < at[k] + 160; x++)
                if (fabsf(s.x[x]) > 0.001f) fail_msg("window %zu is heard %s inside a word", i, k ? "until" : "from");
            n++;
        }
    }
    assert_true(n > 20);
    plan_free(&p);
    free(s.x);
}

static void silence_is_marked_and_voice_is_not(void **state)
{
    (void)state;
    struct sound s = { 0 };
    static struct plan p;
    rng_state = 6;
    add_noise(&s, 12, 0.0002);             /* -79 dBFS */
    add_noise(&s, 0.1, 0.2);               /* a click of 100 ms is not voice */
    add_noise(&s, 11.9, 0.0002);
    add_noise(&s, 0.3, 0.2);
    add_noise(&s, 6, 0.0002);
    struct windows_options o = { .window_s = 6, .overlap_s = 1 };
    make_plan(&s, &o, 0, &p);
    check_plan(&s, &o, &p);
    size_t voiced = 0;
    for (size_t i = 0; i < p.n; i++)
        if (!p.w[i].silent) {
            voiced++;
            assert_true(p.w[i].from <= 24 * RATE && p.w[i].to > 24 * RATE);
            assert_true(fabs(p.w[i].voiced_s - 0.3) < 0.05);
        }
    assert_int_equal(voiced, 1);
    plan_free(&p);
    o.keep_silence = true;
    make_plan(&s, &o, 0, &p);
    for (size_t i = 0; i < p.n; i++) assert_false(p.w[i].silent);
    plan_free(&p);
    free(s.x);
}

static void loud_steady_sound_is_not_silence(void **state)
{
    (void)state;
    struct sound s = { 0 };
    static struct plan p;
    rng_state = 7;
    add_noise(&s, 13, 0.3);
    const struct windows_options o = { .window_s = 5, .overlap_s = 1 };
    make_plan(&s, &o, 0, &p);
    for (size_t i = 0; i < p.n; i++) assert_false(p.w[i].silent);
    plan_free(&p);
    free(s.x);
}

static void what_is_no_number_becomes_silence(void **state)
{
    (void)state;
    struct sound s = { 0 };
    static struct plan p;
    rng_state = 8;
    add_noise(&s, 2, 0.3);
    s.x[100] = NAN;
    s.x[200] = INFINITY;
    const struct windows_options o = { .window_s = 5 };
    make_plan(&s, &o, 0, &p);
    assert_int_equal(p.n, 1);
    assert_true(p.w[0].samples[100] == 0 && p.w[0].samples[200] == 0);
    plan_free(&p);
    free(s.x);
}

static void empty_and_tiny_sounds(void **state)
{
    (void)state;
    float one[1] = { 0.5f };
    static struct plan p;
    struct windows_options o = { .window_s = 6, .overlap_s = 1 };
    for (size_t n = 0; n < 2; n++) {
        struct sound s = { one, n, 0, 0 };
        make_plan(&s, &o, 0, &p);
        assert_int_equal(p.n, n);
        check_plan(&s, &o, &p);
        plan_free(&p);
    }
    struct windows *w;
    struct err e;
    o.overlap_s = 4;
    assert_int_equal(windows_create(&o, read_sound, NULL, &w, &e), E_ARG);
    assert_non_null(strstr(e.text, "half of the window, 3 s"));
    o.window_s = 0.5;
    assert_int_equal(windows_create(&o, read_sound, NULL, &w, &e), E_ARG);
}

static void middle_is_the_quietest_place(void **state)
{
    (void)state;
    struct sound s = { 0 };
    rng_state = 9;
    add_noise(&s, 4.7, 0.3);
    add_noise(&s, 0.2, 0.001);
    add_noise(&s, 5, 0.3);
    const size_t cut = windows_middle(s.x, s.n);
    assert_in_range(cut, (size_t)(4.7 * RATE), (size_t)(4.9 * RATE));
    assert_true(windows_middle(s.x, 700) <= 700);
    free(s.x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_sounds_keep_the_invariants),
        cmocka_unit_test(cuts_in_the_pause),
        cmocka_unit_test(the_longer_of_two_noisy_pauses),
        cmocka_unit_test(overlaps_end_between_words),
        cmocka_unit_test(silence_is_marked_and_voice_is_not),
        cmocka_unit_test(loud_steady_sound_is_not_silence),
        cmocka_unit_test(what_is_no_number_becomes_silence),
        cmocka_unit_test(empty_and_tiny_sounds),
        cmocka_unit_test(middle_is_the_quietest_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
