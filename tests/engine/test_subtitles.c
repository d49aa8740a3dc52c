/* Goal: segments are readable (length, breaks at sentences), in time and in order, and each file format is what its
 * readers expect. Method: invariants of subtitles.h on seeded texts and voices; exact files for small lists. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/languages.h"
#include "engine/subtitles.h"

static const struct subtitle_limits plain = { .max_segment_s = 7, .max_chars = 84 };

/* One window of 20 ms frames with voice. */
static void add(struct subtitles *l, const char *text, double from, double to, const uint8_t *voiced, uint32_t n,
                const struct subtitle_limits *lim)
{
    const struct subtitle_source s = { .text = text, .n = strlen(text), .from_s = from, .to_s = to, .exact_from = true,
                                       .exact_to = true, .voiced = voiced, .n_frames = n, .frame0_s = from };
    struct err e;
    if (subtitles_add(l, &s, lim, &e) != OK) fail_msg("%s", e.text);
}

static void voice(uint8_t *v, double from, double to)
{
    for (uint32_t i = (uint32_t)(from * 50 + 0.5); i < (uint32_t)(to * 50 + 0.5); i++) v[i] = 1;
}

static void sentences_become_segments_at_pauses(void **state)
{
    (void)state;
    struct subtitles l = { 0 };
    uint8_t v[500] = { 0 };
    voice(v, 0.3, 4.0);
    voice(v, 4.5, 9.6);                    /* the pause of 4.0 to 4.5 s lies near the share of the first sentence */
    add(&l, "This is the first one, really. And this here is the second sentence!", 10, 20, v, 500, &plain);
    assert_int_equal(l.n, 2);
    assert_string_equal(l.s[0].text, "This is the first one, really.");
    assert_string_equal(l.s[1].text, "And this here is the second sentence!");
    assert_true(l.s[0].start_ms == 10000 && l.s[0].start_timing == TIMING_EXACT);
    assert_true(l.s[0].end_ms == 14000 && l.s[0].end_timing == TIMING_SNAPPED);
    assert_true(l.s[1].start_ms == 14500 && l.s[1].end_ms == 20000 && l.s[1].end_timing == TIMING_EXACT);
    subtitles_free(&l);
    memset(v, 1, sizeof v);                /* no pause: by share of characters */
    add(&l, "aaaa bbbb. cccc dddd.", 0, 10, v, 500, &plain);
    assert_int_equal(l.n, 2);
    assert_true(l.s[0].end_timing == TIMING_INTERPOLATED && l.s[0].end_ms == l.s[1].start_ms);
    assert_in_range(l.s[0].end_ms, 4500, 5500);
    subtitles_free(&l);
}

static void long_text_breaks_at_commas_then_words(void **state)
{
    (void)state;
    struct subtitles l = { 0 };
    uint8_t v[1000];
    memset(v, 1, sizeof v);
    add(&l, "when the evening comes over the hills of the old country, nobody in the village goes out alone anymore",
        0, 10, v, 500, &plain);
    assert_int_equal(l.n, 2);
    assert_string_equal(l.s[0].text, "when the evening comes over the hills of the old country,");
    subtitles_free(&l);
    add(&l, "one two three four five six seven eight nine ten", 0, 20, v, 1000, &plain);   /* 20 s: by time */
    assert_true(l.n >= 3);
    for (size_t i = 0; i < l.n; i++) assert_true(l.s[i].end_ms - l.s[i].start_ms <= 7001);
    subtitles_free(&l);
    add(&l, "今天天气很好。我们一起去公园散步吧！明天也是。", 0, 9, v, 450, &plain);
    assert_int_equal(l.n, 3);
    assert_string_equal(l.s[0].text, "今天天气很好。");
    subtitles_free(&l);
    /* Abbreviation without space and numbers are no sentence ends. */
    add(&l, "it costs 3.50 at e.g.the shop", 0, 5, v, 250, &plain);
    assert_int_equal(l.n, 1);
    subtitles_free(&l);
}

static void silence_at_the_edges_is_left_out(void **state)
{
    (void)state;
    struct subtitles l = { 0 };
    uint8_t v[500] = { 0 };
    voice(v, 4, 6);
    add(&l, "hello", 0, 10, v, 500, &plain);
    assert_true(l.s[0].start_ms == 3800 && l.s[0].end_ms == 6200);
    assert_true(l.s[0].start_timing == TIMING_SNAPPED && l.s[0].end_timing == TIMING_SNAPPED);
    subtitles_free(&l);
}

static uint64_t rng_state;
static uint32_t rnd(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng_state >> 33) % n);
}

static void random_windows_keep_the_invariants(void **state)
{
    (void)state;
    static const char *const bit[] = { "a", "word", "Straße", "好", "。", ", ", ". ", " ", " ", "\n", "\t", "-->", "é", "w",
                                       "\xff", "สวั", "? ", "\x01" };
    const char *seed = getenv("SEED");
    const uint64_t first = seed ? strtoull(seed, NULL, 10) : 1;
    for (uint64_t k = first; k < first + 300; k++) {
        rng_state = k * 7919;
        struct subtitles l = { 0 };
        struct subtitle_limits lim = plain;
        if (rnd(2)) lim.line_width = 1 + rnd(40);
        if (lim.line_width && rnd(2)) lim.line_count = 1 + rnd(3);
        double at = 0;
        for (int w = 0; w < 4; w++) {
            char text[2000] = "";
            uint8_t v[1600];
            for (int i = (int)rnd(200); i > 0; i--) strcat(text, bit[rnd(18)]);
            const uint32_t n = 20 + rnd(1500);
            for (uint32_t i = 0; i < n;) {
                const uint8_t on = (uint8_t)rnd(2);
                for (uint32_t run = 1 + rnd(90); run > 0 && i < n; run--) v[i++] = on;
            }
            add(&l, text, at, at + n * 0.02, v, n, &lim);
            at += n * 0.02;
        }
        subtitles_end(&l, 0, at);
        for (size_t i = 0; i < l.n; i++) {
            const struct subtitle *s = &l.s[i];
            assert_true(s->text[0] && strpbrk(s->text, "\n\t\x01") == NULL && strstr(s->text, "  ") == NULL);
            assert_true(s->end_ms > s->start_ms && s->end_ms <= (int64_t)(at * 1000 + 0.5));
            if (i > 0) assert_true(s->start_ms >= l.s[i - 1].end_ms);
            if (i + 1 < l.n) assert_true(s->end_ms - s->start_ms >= 200);
        }
        subtitles_free(&l);
    }
}

static char *written(enum subtitle_format f, const struct subtitle_style *style, const struct subtitles *l)
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    assert_non_null(out);
    subtitles_write_head(out, f);
    for (size_t i = 0; i < l->n; i++) subtitles_write_one(out, f, style, l, i);
    subtitles_write_tail(out, f, style, l);
    fclose(out);
    return text;
}

static void says(enum subtitle_format f, const struct subtitle_style *style, const struct subtitles *l, const char *want)
{
    char *text = written(f, style, l);
    assert_string_equal(text, want);
    free(text);
}

static void files(void **state)
{
    (void)state;
    struct subtitles l = { 0 };
    struct subtitle_style style = { .limits = plain };
    struct err e;
    says(SUB_SRT, &style, &l, "");
    says(SUB_VTT, &style, &l, "WEBVTT\n\n");
    says(SUB_TXT, &style, &l, "");
    add(&l, "a --> b & <c>", 0, 1.2345, NULL, 0, &plain);
    assert_int_equal(subtitles_add_gap(&l, 3599.9996, 3605.5, 1, &e), OK);
    says(SUB_SRT, &style, &l, "1\n00:00:00,000 --> 00:00:01,235\na -> b & <c>\n\n"
                              "2\n01:00:00,000 --> 01:00:05,500\n[untranscribed 01:00:00-01:00:06]\n\n");
    says(SUB_VTT, &style, &l, "WEBVTT\n\n00:00:00.000 --> 00:00:01.235\na -&gt; b &amp; &lt;c&gt;\n\n"
                              "01:00:00.000 --> 01:00:05.500\n[untranscribed 01:00:00-01:00:06]\n\n");
    says(SUB_TXT, &style, &l, "a --> b & <c>\n[untranscribed 01:00:00-01:00:06]\n");
    says(SUB_TSV, &style, &l, "start\tend\ttext\n0\t1235\ta --> b & <c>\n"
                              "3600000\t3605500\t[untranscribed 01:00:00-01:00:06]\n");
    says(SUB_JSONL, &style, &l,
         "{\"id\":0,\"start\":0.0,\"end\":1.235,\"text\":\"a --> b & <c>\",\"avg_logprob\":0.0,\"timing\":\"exact\","
         "\"window\":0}\n{\"id\":1,\"start\":3600.0,\"end\":3605.5,\"text\":\"[untranscribed 01:00:00-01:00:06]\","
         "\"avg_logprob\":0.0,\"timing\":\"exact\",\"window\":1,\"gap\":true}\n");
    char *text;
    assert_int_equal(subtitles_text(&l, &text, &e), OK);
    assert_string_equal(text, "a --> b & <c>");
    free(text);
    subtitles_free(&l);
}

static void lines_wrap(void **state)
{
    (void)state;
    struct subtitles l = { 0 };
    struct subtitle_style style = { .limits = { .max_segment_s = 7, .max_chars = 84, .line_width = 10 } };
    uint8_t v[50];
    memset(v, 1, sizeof v);
    add(&l, "one three five eleven incomprehensibility is long", 0, 1, v, 50, &style.limits);
    char *text = written(SUB_SRT, &style, &l);
    assert_string_equal(text, "1\n00:00:00,000 --> 00:00:01,000\none three\nfive\neleven\nincomprehensibility\nis long\n\n");
    free(text);
    subtitles_free(&l);
    style.limits.line_count = 2;           /* more segments, so that each has at most two lines */
    add(&l, "one three five eleven six seven", 0, 1, v, 50, &style.limits);
    assert_int_equal(l.n, 2);
    subtitles_free(&l);
    style.paragraphs = true;
    style.limits = plain;
    add(&l, "One. Two.", 0, 1, v, 50, &plain);
    text = written(SUB_TXT, &style, &l);
    assert_string_equal(text, "One. Two.\n");
    free(text);
    subtitles_free(&l);
}

static void formats_and_languages_by_name(void **state)
{
    (void)state;
    assert_int_equal(subtitle_format_of("srt", 3), SUB_SRT);
    assert_int_equal(subtitle_format_of("jsonl", 5), SUB_JSONL);
    assert_int_equal(subtitle_format_of("jsonl", 4), SUB_JSON);
    assert_int_equal(subtitle_format_of("ass", 3), -1);
    assert_string_equal(language_name("EN"), "english");
    assert_string_equal(language_name("deu"), "german");
    assert_string_equal(language_name("French"), "french");
    assert_null(language_name("klingon"));
    assert_null(language_name(""));
    assert_string_equal(language_in_text("The language is German.", 23), "german");
    assert_null(language_in_text("I heard it in Germany", 21));
    assert_null(language_in_text("", 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sentences_become_segments_at_pauses),
        cmocka_unit_test(long_text_breaks_at_commas_then_words),
        cmocka_unit_test(silence_at_the_edges_is_left_out),
        cmocka_unit_test(random_windows_keep_the_invariants),
        cmocka_unit_test(files),
        cmocka_unit_test(lines_wrap),
        cmocka_unit_test(formats_and_languages_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
