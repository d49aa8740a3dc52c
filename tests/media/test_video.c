/* Films: the frames the reference picks, at its sizes, in its patches; whatever codec, container, rate or
 * turn.
 * Method: expected.txt film by film; streams against whole loads; shuffled timestamps against
 * sorting. */
#include <math.h>

#include "media/media.h"
#include "media/order.h"
#include "tests/media/expected.h"

/* A step of one level of 255 is at most 0.0151. Resized values near a tie may go either way (a few in a
 * hundred); 10-bit chroma is interpolated otherwise by older libswscale (media/rgb.c). */
static void reference(void **state)
{
    (void)state;
    struct expected x;
    expected_open(&x);
    while (expected_next(&x, "film")) {
        struct media *m;
        struct err e;
        char path[256];
        struct media_patches p;
        struct media_video_plan plan;
        const struct media_video_options o = { .fps = expected_number(&x, 1),
                                               .n_threads = 1 + (int)(x.n_lines % 3),
                                               .limits = { expected_count(&x, 2), expected_count(&x, 3) } };
        snprintf(path, sizeof path, DATA "%s", x.word[0]);
        assert_ok(media_open(path, &m, &e), e);
        assert_true(media_info(m)->has_video && !media_info(m)->is_image);
        assert_ok(media_video_load(m, &o, &p, &plan, &e), e);
        assert_int_equal(plan.total_frames, expected_count(&x, 4));
        assert_int_equal(p.grid_t, expected_count(&x, 5));
        assert_int_equal(p.grid_h, expected_count(&x, 6));
        assert_int_equal(p.grid_w, expected_count(&x, 7));
        const bool deep = strcmp(x.word[0], "ten_bit.mkv") == 0;
        expected_some(&x, 8, p.patches, (size_t)p.grid_t * p.grid_h * p.grid_w * p.row, deep ? 0.2 : 0.0155,
                      1e-5, deep ? 60 : 3);
        media_patches_free(&p);
        media_close(&m);
    }
}

/* Slice by slice, any number of threads, from memory, beside the sound of the same file: the same bits. */
static void streams(void **state)
{
    (void)state;
    static uint8_t bytes[1 << 20];
    FILE *f = fopen(DATA "film.mp4", "rb");
    assert_non_null(f);
    const size_t n_bytes = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    struct media *m;
    struct err e;
    struct media_patches whole;
    struct media_video_plan plan;
    const struct media_video_options o = { .fps = 4.0, .limits = { 3136, 9408 } };
    assert_ok(media_open_memory(bytes, n_bytes, "upload", &m, &e), e);
    assert_ok(media_video_load(m, &o, &whole, &plan, &e), e);
    const size_t slice = (size_t)plan.grid_h * plan.grid_w * whole.row;
    float *p = test_malloc(slice * sizeof *p), sound[500];
    for (int threads = 1; threads <= 4; threads++) {
        struct media_video_options to = o;
        struct media_video *v;
        struct media_audio *a;
        size_t n;
        to.n_threads = threads;
        assert_ok(media_video_open(m, &to, &v, &e), e);
        assert_ok(media_audio_open(m, NULL, &a, &e), e);
        for (uint32_t t = 0; t < plan.grid_t; t++) {
            assert_ok(media_video_next(v, p, &e), e);
            assert_ok(media_audio_read(a, sound, 500, &n, &e), e);
            assert_int_equal(n, 500);
            assert_memory_equal(p, whole.patches + t * slice, slice * sizeof *p);
        }
        assert_int_equal(media_video_next(v, p, &e), E_ARG);
        media_video_close(&v);
        media_audio_close(&a);
        assert_null(v);
    }
    test_free(p);
    media_patches_free(&whole);
    media_close(&m);
}

/* The patches of frame i of a and of frame j of b are the same bits. */
static void same_frame(const struct media_patches *a, uint32_t i, const struct media_patches *b, uint32_t j)
{
    const size_t group = (size_t)a->grid_h * a->grid_w;
    for (size_t r = 0; r < group; r++)
        for (int c = 0; c < 3; c++)
            assert_memory_equal(a->patches + ((i / 2 * group + r) * 6 + (size_t)c * 2 + i % 2) * 196,
                                b->patches + ((j / 2 * group + r) * 6 + (size_t)c * 2 + j % 2) * 196,
                                196 * sizeof(float));
}

/* Frames that the decoder may drop and frames that it decodes: picked alike. film.mp4 at 24 fps decodes
 * everything, at 2 fps it drops; the last frame is in both. */
static void dropping(void **state)
{
    (void)state;
    struct media *m;
    struct err e;
    struct media_patches few, many;
    struct media_video_plan a, b;
    const struct media_video_options lo = { .fps = 2.0, .limits = { 3136, 9408 } };
    const struct media_video_options hi = { .n_frames = 1000, .limits = { 3136, 9408 } };
    assert_ok(media_open(DATA "film.mp4", &m, &e), e);
    assert_ok(media_video_load(m, &lo, &few, &a, &e), e);
    assert_ok(media_video_load(m, &hi, &many, &b, &e), e);
    assert_int_equal(b.n_sampled, b.total_frames / 2 * 2);
    for (uint32_t i = 0; i < a.n_sampled; i++) {
        uint32_t j = 0;
        while (j < b.n_sampled && media_frame_index(&b, j) != media_frame_index(&a, i)) j++;
        if (j < b.n_sampled) same_frame(&few, i, &many, j);   /* an odd total: one frame is not among the many */
    }
    media_patches_free(&few);
    media_patches_free(&many);
    media_close(&m);
}

/* A part of a film: frames of the whole film, none from outside the part; every codec, few frames and many. */
static void parts(void **state)
{
    (void)state;
    static const char *const name[] = { "film.mp4", "open_gop.mp4", "mpeg4.avi", "mpeg2.ts", "odd.mkv", "vp9.webm" };
    for (size_t k = 0; k < sizeof name / sizeof *name; k++) {
        struct media *m;
        struct err e;
        struct media_patches all, some;
        struct media_video_plan a, b;
        char path[256];
        struct media_video_options o = { .n_frames = 100000, .limits = { 3136, 9408 } };
        snprintf(path, sizeof path, DATA "%s", name[k]);
        assert_ok(media_open(path, &m, &e), e);
        assert_ok(media_video_load(m, &o, &all, &a, &e), e);
        const double length = (double)a.total_frames / a.frame_rate;
        uint32_t n_seen = 0;
        for (int way = 0; way < 12; way++) {
            static const double starts[] = { 0.3, 0.76, 0.6 };   /* with key frames far behind them and near */
            o.n_frames = way % 2 ? 100000 : 2;
            o.start_s = length * starts[way / 4];
            o.end_s = way % 4 < 2 ? length * 0.9 : 0;
            assert_ok(media_video_load(m, &o, &some, &b, &e), e);
            assert_int_equal(b.total_frames, a.total_frames);
            assert_int_equal(b.first_frame, (uint64_t)ceil(o.start_s * a.frame_rate));
            for (uint32_t i = 0; i < b.n_sampled; i++) {
                const uint64_t f = media_frame_index(&b, i);
                uint32_t j = 0;
                assert_true((double)f >= o.start_s * a.frame_rate && f < a.total_frames);
                if (way % 4 < 2) assert_true((double)f <= o.end_s * a.frame_rate);
                while (j < a.n_sampled && media_frame_index(&a, j) != f) j++;
                if (j == a.n_sampled) continue;   /* an odd total: one frame is not among all */
                same_frame(&some, i, &all, j);
                n_seen++;
            }
            media_patches_free(&some);
        }
        if (n_seen < 20) fail_msg("%s: %u of the %u frames compared", name[k], n_seen, (unsigned)a.total_frames);
        o.start_s = length + 1;
        o.end_s = 0;
        assert_int_equal(media_video_load(m, &o, &some, NULL, &e), E_ARG);
        media_patches_free(&all);
        media_close(&m);
    }
}

static void info(void **state)
{
    (void)state;
    struct media *m;
    struct err e;
    struct media_counts c;
    assert_ok(media_open(DATA "film.mp4", &m, &e), e);
    const struct media_info *i = media_info(m);
    assert_true(i->has_audio && i->has_video && !i->is_image);
    assert_string_equal(i->video.codec, "h264");
    assert_string_equal(i->audio.codec, "aac");
    assert_int_equal(i->audio.rate, 44100);
    assert_int_equal(i->audio.channels, 2);
    assert_true(i->video.fps == 30.0 && i->video.n_frames == 75);
    assert_true(i->duration_s > 2.4 && i->duration_s < 2.7);
    assert_ok(media_tokens(m, NULL, NULL, true, &c, &e), e);
    assert_int_equal(c.plan.total_frames, 75);
    assert_int_equal(c.n_vision_tokens, c.grid_t * c.grid_h * c.grid_w / 4);
    assert_int_equal(c.n_audio_tokens, media_audio_tokens(media_mel_frames(c.n_samples)));
    assert_true(c.samples_exact && c.n_samples > 39000 && c.n_samples < 42000);
    media_close(&m);

    assert_ok(media_open(DATA "turned90.mp4", &m, &e), e);
    assert_int_equal(media_info(m)->video.rotation, 90);
    assert_int_equal(media_info(m)->video.width, 72);
    assert_int_equal(media_info(m)->video.height, 96);
    assert_false(media_info(m)->video.mirrored);
    media_close(&m);
    assert_ok(media_open(DATA "mirrored.mp4", &m, &e), e);
    assert_true(media_info(m)->video.mirrored);
    media_close(&m);
}

/* A film cut off in the middle: what is there is used, and a warning says so. */
static void truncated(void **state)
{
    (void)state;
    struct media *m;
    struct err e;
    struct media_patches p;
    struct media_video_plan plan;
    const struct media_video_options o = { .limits = { 3136, 9408 } };
    assert_ok(media_open(DATA "bad_half.mp4", &m, &e), e);
    assert_ok(media_video_load(m, &o, &p, &plan, &e), e);
    assert_true(plan.total_frames >= 2 && plan.total_frames < 75);
    assert_non_null(media_warning(m));
    assert_non_null(strstr(media_warning(m), "bad_half.mp4"));
    media_patches_free(&p);
    media_close(&m);
}

/* Packets out of order by at most 16 places get the number of their rank; what cannot be told is refused. */
static void order(void **state)
{
    (void)state;
    const char *env = getenv("SEED");
    const uint64_t seed = env ? strtoull(env, NULL, 10) : 1;
    uint64_t s = seed;
    for (int round = 0; round < 200; round++) {
        int64_t pts[300] = { 0 }, next = -1000;
        const uint32_t n = expected_noise(&s) % 300;
        for (uint32_t i = 0; i < n; i++) pts[i] = next += 1 + expected_noise(&s) % 5;
        int64_t sorted[300];
        memcpy(sorted, pts, sizeof pts);
        for (uint32_t i = 0; i < n; i += 16) {    /* shuffle within 16 */
            const uint32_t len = n - i < 16 ? n - i : 16;
            for (uint32_t j = len; j-- > 1;) {
                const uint32_t k = expected_noise(&s) % (j + 1);
                const int64_t t = pts[i + j];
                pts[i + j] = pts[i + k];
                pts[i + k] = t;
            }
        }
        struct order o = { .n_waiting = 0 };
        uint64_t seen = 0;
        int64_t got;
        for (uint32_t i = 0; i < n; i++) {
            if (!order_put(&o, pts[i])) fail_msg("SEED=%llu round %d", (unsigned long long)seed, round);
            while (order_next(&o, false, &got)) assert_true(got == sorted[seen++]);
        }
        while (order_next(&o, true, &got)) assert_true(got == sorted[seen++]);
        assert_int_equal(seen, n);
    }
    struct order o = { .n_waiting = 0 };
    int64_t got;
    assert_false(order_put(&o, INT64_MIN));
    assert_true(order_put(&o, 5));
    assert_false(order_put(&o, 5));
    for (int64_t i = 6; i < 6 + ORDER_DEPTH; i++) assert_true(order_put(&o, i));
    assert_true(order_next(&o, false, &got));
    assert_true(got == 5);
    assert_false(order_put(&o, 4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference), cmocka_unit_test(streams),   cmocka_unit_test(dropping), cmocka_unit_test(parts),
        cmocka_unit_test(info),      cmocka_unit_test(truncated), cmocka_unit_test(order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
