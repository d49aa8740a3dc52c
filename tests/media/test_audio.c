/* Sound: the reference's samples from every sample format, codec, rate and number of channels.
 * Method: expected.txt file by file; parts against the whole, bit by bit; the clock of a track with gaps. */
#include "media/media.h"
#include "tests/media/expected.h"

static float *load(const char *name, const struct media_audio_options *o, size_t *n)
{
    struct media *m;
    struct err e;
    char path[256];
    float *x;
    snprintf(path, sizeof path, DATA "%s", name);
    assert_ok(media_open(path, &m, &e), e);
    assert_true(media_info(m)->has_audio);
    assert_ok(media_audio_load(m, o, 0, &x, n, &e), e);
    media_close(&m);
    return x;
}

static void reference(void **state)
{
    (void)state;
    struct expected x;
    expected_open(&x);
    while (expected_next(&x, "sound")) {
        size_t n;
        float *y = load(x.word[0], NULL, &n);
        assert_int_equal(n, expected_count(&x, 1));
        expected_some(&x, 2, y, n, 2e-6, 2e-6, 0);        /* other versions' decoders: the last bits */
        free(y);
    }
}

/* Any part, read in any pieces, is bit-equal to the same part of the whole. */
static void parts(void **state)
{
    (void)state;
    static const char *const name[] = { "sound.mp3", "stereo.wav", "mono16k.flac", "surround.m4a" };
    for (size_t k = 0; k < sizeof name / sizeof *name; k++) {
        size_t n, got;
        struct media *m;
        struct err e;
        char path[256];
        float *whole = load(name[k], NULL, &n), piece[1777];
        snprintf(path, sizeof path, DATA "%s", name[k]);
        assert_ok(media_open(path, &m, &e), e);
        const double ranges[][2] = { { 0, 0 }, { 0.25, 0.75 }, { 0.1, 99 }, { 0, 0.001 }, { 1.0, 1.1 } };
        for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
            const struct media_audio_options o = { .start_s = ranges[r][0], .end_s = ranges[r][1] };
            struct media_audio *a;
            const size_t from = (size_t)(ranges[r][0] * 16000 + 0.5);
            size_t at = from;
            const size_t end =
                o.end_s > 0 && o.end_s * 16000 < (double)n ? (size_t)(o.end_s * 16000 + 0.5) : n;
            assert_ok(media_audio_open(m, &o, &a, &e), e);
            do {
                assert_ok(media_audio_read(a, piece, 1 + (at * 7 + r) % 1777, &got, &e), e);
                assert_true(at + got <= end);
                assert_memory_equal(piece, whole + at, got * sizeof *piece);
                at += got;
            } while (got > 0);
            assert_int_equal(at, end);
            assert_ok(media_audio_read(a, piece, 10, &got, &e), e);
            assert_int_equal(got, 0);
            media_audio_close(&a);
        }
        media_close(&m);
        free(whole);
    }
}

/* late.mkv: a level of 0.5 from 1.0 to 1.5 s and from 2.5 to 3.0 s of the file. */
static void clock_kept(void **state)
{
    (void)state;
    size_t n;
    float *y = load("late.mkv", &(struct media_audio_options){ .keep_time = true }, &n);
    assert_true(n > 47000 && n <= 48100);
    for (size_t i = 0; i < n; i++) {
        const double t = (double)i / 16000;
        const bool near_edge =
            (t > 0.93 && t < 1.07) || (t > 1.43 && t < 1.57) || (t > 2.43 && t < 2.57) || t > 2.93;
        const bool sounds = (t > 1.0 && t < 1.5) || t > 2.5;
        if (!near_edge) assert_true(sounds ? y[i] > 0.49f && y[i] < 0.51f : y[i] == 0.0f);
    }
    free(y);
    y = load("late.mkv", NULL, &n);                   /* without the clock: the samples alone */
    assert_int_equal(n, 16000);
    for (size_t i = 0; i < n; i++) assert_true(y[i] > 0.49f && y[i] < 0.51f);
    free(y);
}

static void limits(void **state)
{
    (void)state;
    struct media *m;
    struct err e;
    struct media_audio *a;
    float *x = NULL, buf[16];
    size_t n;
    assert_ok(media_open(DATA "stereo.wav", &m, &e), e);
    assert_int_equal(media_audio_load(m, NULL, 16000, &x, &n, &e), E_FULL);
    assert_non_null(strstr(e.text, "1.0 s"));
    assert_ok(media_audio_load(m, &(struct media_audio_options){ .end_s = 1.0 }, 16000, &x, &n, &e), e);
    assert_int_equal(n, 16000);
    free(x);
    assert_int_equal(media_audio_open(m, &(struct media_audio_options){ .start_s = 2, .end_s = 1 }, &a, &e),
                     E_ARG);
    assert_int_equal(media_audio_open(m, &(struct media_audio_options){ .start_s = -1 }, &a, &e), E_ARG);
    assert_ok(media_audio_open(m, &(struct media_audio_options){ .start_s = 5.0 }, &a, &e), e);
    assert_int_equal(media_audio_read(a, buf, 16, &n, &e), E_INPUT);
    assert_non_null(strstr(e.text, "1.300 s"));
    media_audio_close(&a);
    media_close(&m);
    assert_ok(media_open(DATA "cover.mp3", &m, &e), e);
    assert_true(media_info(m)->has_audio && !media_info(m)->has_video);     /* a cover is not a film */
    media_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference),
        cmocka_unit_test(parts),
        cmocka_unit_test(clock_kept),
        cmocka_unit_test(limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
