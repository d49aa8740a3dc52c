/* Log-mel: equal to the reference's feature extractor within 2e-4, the same bits with every instruction set.
 * Method: generated clips of awkward lengths against expected.txt; hand-computed filters; silence. */
#include <math.h>

#include "media/features.h"
#include "media/isa.h"
#include "tests/media/expected.h"

/* The clip of n samples that tools/make_media.py makes: noise with a quiet stretch. */
static float *clip(size_t n)
{
    float *x = test_malloc(n * sizeof *x);
    uint64_t s = n;
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)expected_noise(&s) / 16777216.0f - 0.5f;
        if (i >= n / 3 && i < n / 2) x[i] *= 1.0f / 4096.0f;
    }
    return x;
}

static void reference(void **state)
{
    (void)state;
    struct expected x;
    struct err e;
    expected_open(&x);
    while (expected_next(&x, "mel")) {
        const size_t n = expected_count(&x, 0), n_frames = expected_count(&x, 1);
        assert_int_equal(media_mel_frames(n), n_frames);
        float *in = clip(n), *mel = test_malloc(MEDIA_MEL_BINS * n_frames * sizeof *mel);
        assert_ok(media_mel(in, n, mel, &e), e);
        expected_some(&x, 2, mel, MEDIA_MEL_BINS * n_frames, 2e-4, 2e-4, 0);
        test_free(in);
        test_free(mel);
    }
}

static void isas_agree(void **state)
{
    (void)state;
    struct err e;
    const enum media_isa best = media_isa();
    const size_t lengths[] = { 1, 201, 640, 641, 2399, 2561, 5000, 16000 };
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        const size_t n = lengths[i], bytes = MEDIA_MEL_BINS * media_mel_frames(n) * sizeof(float);
        float *in = clip(n), *plain = test_malloc(bytes), *y = test_malloc(bytes);
        media_isa_force(MEDIA_PLAIN);
        assert_ok(media_mel(in, n, plain, &e), e);
        for (int isa = MEDIA_AVX2; isa <= (int)best; isa++) {
            media_isa_force((enum media_isa)isa);
            assert_ok(media_mel(in, n, y, &e), e);
            assert_memory_equal(y, plain, bytes);
        }
        test_free(in);
        test_free(plain);
        test_free(y);
    }
    media_isa_force(best);
}

static void silence(void **state)
{
    (void)state;
    struct err e;
    float x[1000] = { 0 }, mel[MEDIA_MEL_BINS * 7];
    for (size_t n = 1; n <= 1000; n += 111) {
        assert_ok(media_mel(x, n, mel, &e), e);
        for (size_t i = 0; i < MEDIA_MEL_BINS * media_mel_frames(n); i++)
            if (mel[i] != -1.5f) fail_msg("n %zu: value %zu is %.9g", n, i, mel[i]);
    }
    assert_int_equal(media_mel(x, 0, mel, &e), E_ARG);
}

/* Frames past L count for the maximum: here one of them is two decades above all that are kept. */
static void loud_end(void **state)
{
    (void)state;
    struct err e;
    float x[1760] = { 0 }, y[MEDIA_MEL_BINS * 11], least = 1e9f, top = -1e9f;
    x[1759] = 1000.0f;                        /* a sample before the centre of frame 11, the first not kept */
    assert_int_equal(media_mel_frames(1760), 11);
    assert_ok(media_mel(x, 1760, y, &e), e);
    for (int i = 0; i < MEDIA_MEL_BINS * 11; i++) {
        least = fminf(least, y[i]);
        top = fmaxf(top, y[i]);
    }
    assert_true(top - least < 1.7f);          /* 2 = 8 decades / 4 if the kept ones alone counted */
}

static void filters(void **state)
{
    (void)state;
    const struct { uint32_t row, bin; double weight; } want[] = {
        { 0, 1, 0.012373986 }, { 1, 1, 0.030392565 }, { 2, 2, 0.024747973 }, { 42, 25, 0.031611459 },
        { 43, 26, 0.024547001 }, { 64, 42, 0.006749683 }, { 64, 43, 0.018091518 }, { 127, 191, 0.000475695 },
        { 127, 192, 0.001617172 }, { 127, 193, 0.002758648 } };
    uint32_t first;
    float w[16];
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const size_t n = media_mel_filter(want[i].row, &first, w);
        assert_true(want[i].bin >= first && want[i].bin < first + n);
        assert_true(fabs(w[want[i].bin - first] - want[i].weight) < 4e-9);
    }
    size_t all = 0;
    for (uint32_t row = 0; row < MEDIA_MEL_BINS; row++) {
        const size_t n = media_mel_filter(row, &first, w);
        assert_true(n >= 1 && n <= 9);
        all += n;
    }
    assert_int_equal(all, 394);
    double sum = 0.0;
    const size_t n = media_mel_filter(127, &first, w);
    for (size_t i = 0; i < n; i++) sum += w[i];
    assert_true(fabs(sum - 0.024936044) < 1e-8);
}

static void counts(void **state)
{
    (void)state;
    const size_t table[][3] = { { 16000, 100, 25 },
                                { 16480, 103, 26 },
                                { 32000, 200, 50 },
                                { 40000, 250, 62 },
                                { 160000, 1000, 250 },
                                { 480000, 3000, 750 },
                                { 4800000, 30000, 7500 },
                                { 320, 2, 0 },
                                { 321, 3, 1 },
                                { 0, 0, 0 } };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(media_mel_frames(table[i][0]), table[i][1]);
        assert_int_equal(media_audio_tokens(table[i][1]), table[i][2]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference), cmocka_unit_test(isas_agree), cmocka_unit_test(silence),
        cmocka_unit_test(loud_end),  cmocka_unit_test(filters),    cmocka_unit_test(counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
