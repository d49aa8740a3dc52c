/* Sizes, plans, both bicubics and the order of patches: equal to the reference.
 * Method: expected.txt (Pillow's pictures by hash, torch's frames by value), the published tables, brute
 * force. */
#include <inttypes.h>

#include <math.h>

#include "media/features.h"
#include "media/isa.h"
#include "tests/media/expected.h"

static void sizes(void **state)
{
    (void)state;
    struct expected x;
    struct err e;
    expected_open(&x);
    while (expected_next(&x, "size")) {
        const struct media_limits lim = { expected_count(&x, 3), expected_count(&x, 4) };
        const uint32_t h = (uint32_t)expected_count(&x, 1), w = (uint32_t)expected_count(&x, 2);
        const size_t want_h = expected_count(&x, 5), want_w = expected_count(&x, 6);
        uint32_t oh = 0, ow = 0;
        const status st = media_smart_resize(h, w, 28, lim, expected_count(&x, 0) == 1, &oh, &ow, &e);
        assert_int_equal(st, want_h == 0 ? E_INPUT : OK);
        if (oh != want_h || ow != want_w)
            fail_msg("%u x %u became %u x %u, not %zu x %zu", h, w, oh, ow, want_h, want_w);
    }
}

static void plans(void **state)
{
    (void)state;
    struct expected x;
    struct err e;
    expected_open(&x);
    while (expected_next(&x, "plan")) {
        const struct media_video_options o = { .fps = expected_number(&x, 4),
                                               .limits = { expected_count(&x, 5), expected_count(&x, 6) } };
        struct media_video_plan p;
        assert_ok(media_video_plan(expected_count(&x, 0), expected_number(&x, 1),
                                   (uint32_t)expected_count(&x, 2), (uint32_t)expected_count(&x, 3), &o, &p,
                                   &e),
                  e);
        uint64_t check = 0;
        for (uint32_t i = 0; i < p.n_sampled; i++) check += (i + 1) * media_frame_index(&p, i);
        assert_int_equal(p.n_sampled, expected_count(&x, 7));
        assert_int_equal(check, strtoull(x.word[8], NULL, 10));
        assert_int_equal(p.load_h, expected_count(&x, 9));
        assert_int_equal(p.load_w, expected_count(&x, 10));
        assert_int_equal(p.height, expected_count(&x, 11));
        assert_int_equal(p.width, expected_count(&x, 12));
        assert_int_equal(p.grid_t, p.n_sampled / 2);
        assert_true(p.second_per_grid == 2.0 / o.fps);
    }
}

/* The published tables: tokens a picture, tokens a slice, frames of short and long films. */
static void tables(void **state)
{
    (void)state;
    struct err e;
    const struct { uint32_t w, h, rw, rh, tokens; } pictures[] = {
        { 448, 448, 448, 448, 256 }, { 640, 480, 644, 476, 391 }, { 1280, 720, 1288, 728, 1196 },
        { 1920, 1080, 1932, 1092, 2691 }, { 28, 28, 56, 56, 4 }, { 300, 20, 308, 28, 11 },
        { 8000, 6000, 4116, 3080, 16170 } };
    for (size_t i = 0; i < sizeof pictures / sizeof *pictures; i++) {
        struct media_image_plan p;
        assert_ok(media_image_plan(pictures[i].h, pictures[i].w, NULL, &p, &e), e);
        assert_int_equal(p.width, pictures[i].rw);
        assert_int_equal(p.height, pictures[i].rh);
        assert_int_equal(p.n_tokens, pictures[i].tokens);
    }
    const struct { uint32_t w, h, n, tokens; } films[] = { { 640, 360, 12, 299 }, { 320, 240, 12, 140 },
        { 854, 480, 12, 510 }, { 1280, 720, 12, 720 }, { 1920, 1080, 12, 720 }, { 1920, 1080, 600, 364 } };
    for (size_t i = 0; i < sizeof films / sizeof *films; i++) {
        struct media_video_plan p;
        assert_ok(media_video_plan(films[i].n * 15, 30.0, films[i].h, films[i].w, NULL, &p, &e), e);
        assert_int_equal(p.n_sampled, films[i].n);
        assert_int_equal(p.n_tokens / p.grid_t, films[i].tokens);
    }
    const struct {
        uint64_t total;
        double rate;
        uint32_t n;
    } counts[] = { { 180, 30, 12 }, { 179, 29.97, 10 }, { 30, 30, 4 },      { 45, 30, 4 },
                   { 15, 30, 4 },   { 132, 25, 10 },    { 12000, 30, 768 }, { 3, 1, 2 } };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        struct media_video_plan p;
        assert_ok(media_video_plan(counts[i].total, counts[i].rate, 360, 640, NULL, &p, &e), e);
        assert_int_equal(p.n_sampled, counts[i].n);
        assert_int_equal(media_frame_index(&p, 0), 0);
        assert_int_equal(media_frame_index(&p, p.n_sampled - 1), counts[i].total - 1);
    }
}

/* Parts of films: what qwen-vl-utils' calculate_video_frame_range and smart_nframes say. */
static void parts(void **state)
{
    (void)state;
    struct err e;
    static const struct {
        uint64_t total;
        double rate, start, end;
        uint64_t first, last;
        uint32_t n;
    } films[] = {
        { 300, 30, 0, 0, 0, 299, 20 },     { 300, 30, 2, 0, 60, 299, 16 },    { 300, 30, 0, 4, 0, 120, 8 },
        { 300, 30, 2, 4, 60, 120, 4 },     { 300, 30, 2.01, 4.99, 61, 149, 4 }, { 300, 30, 9, 99, 270, 299, 4 },
        { 250, 25, 1.5, 5.5, 38, 137, 8 }, { 300, 29.97, 1, 3, 30, 89, 4 },   { 300, 30, 9.93, 99, 298, 299, 2 },
        { 300, 30, -1, -1, 0, 299, 20 },
    };
    for (size_t i = 0; i < sizeof films / sizeof *films; i++) {
        const struct media_video_options o = { .start_s = films[i].start, .end_s = films[i].end };
        struct media_video_plan p;
        assert_ok(media_video_plan(films[i].total, films[i].rate, 360, 640, &o, &p, &e), e);
        assert_int_equal(p.first_frame, films[i].first);
        assert_int_equal(p.first_frame + p.n_frames - 1, films[i].last);
        assert_int_equal(p.n_sampled, films[i].n);
        assert_int_equal(p.total_frames, films[i].total);
        assert_int_equal(media_frame_index(&p, 0), films[i].first);
        assert_int_equal(media_frame_index(&p, p.n_sampled - 1), films[i].last);
        assert_true(fabs(p.sample_fps - p.n_sampled / (double)p.n_frames * films[i].rate) < 1e-9);
        assert_true(p.second_per_grid == 1.0);
    }
    static const double bad[][2] = { { 5, 5 },     { 5, 4 },        { 10, 0 },  { 11, 12 },
                                     { 9.97, 0 },  { 2.001, 2.03 }, { 1e300, 0 } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct media_video_options o = { .start_s = bad[i][0], .end_s = bad[i][1] };
        struct media_video_plan p;
        assert_int_equal(media_video_plan(300, 30, 360, 640, &o, &p, &e), E_ARG);
        assert_non_null(strstr(e.text, "the part from"));
    }
}

static void options(void **state)
{
    (void)state;
    struct err e;
    struct media_video_plan p;
    struct media_video_options o = { .n_frames = 7 };
    assert_ok(media_video_plan(100, 25.0, 360, 640, &o, &p, &e), e);
    assert_int_equal(p.n_sampled, 8);                       /* 7 / 2 = 3.5, to even: 4 pairs */
    o.n_frames = 5;
    assert_ok(media_video_plan(100, 25.0, 360, 640, &o, &p, &e), e);
    assert_int_equal(p.n_sampled, 4);
    o.n_frames = 64;
    assert_ok(media_video_plan(33, 25.0, 360, 640, &o, &p, &e), e);
    assert_int_equal(p.n_sampled, 32);
    o = (struct media_video_options){ .max_frames = 7 };
    assert_ok(media_video_plan(1000, 25.0, 360, 640, &o, &p, &e), e);
    assert_int_equal(p.n_sampled, 6);
    /* A tight budget brings the loader under the processor's least: enlarged again. */
    o = (struct media_video_options){ .total_pixels = 20070400, .n_frames = 480 };
    assert_ok(media_video_plan(480, 30.0, 360, 640, &o, &p, &e), e);
    assert_int_equal(p.load_h, 224);
    assert_int_equal(p.load_w, 420);
    assert_int_equal(p.height, 252);
    assert_int_equal(p.width, 448);
    /* A checkpoint's own limits above the published ones. */
    o = (struct media_video_options){ .limits = { 3136, 1000000 }, .cap_pixels = 1000000 };
    assert_ok(media_video_plan(20, 25.0, 1080, 1920, &o, &p, &e), e);
    assert_true(p.height * p.width > 602112 && p.height * p.width <= 1000000);

    assert_int_equal(media_video_plan(1, 25.0, 360, 640, NULL, &p, &e), E_INPUT);
    assert_int_equal(media_video_plan(0, 25.0, 360, 640, NULL, &p, &e), E_INPUT);
    assert_int_equal(media_video_plan(100, 0.0, 360, 640, NULL, &p, &e), E_INPUT);
    assert_int_equal(media_video_plan(100, 25.0, 0, 640, NULL, &p, &e), E_INPUT);
    assert_int_equal(media_video_plan(100, 25.0, 10, 2010, NULL, &p, &e), E_INPUT);
    o = (struct media_video_options){ .limits = { 9000, 8000 } };
    assert_int_equal(media_video_plan(100, 25.0, 360, 640, &o, &p, &e), E_ARG);
    o = (struct media_video_options){ .fps = -1.0 };
    assert_int_equal(media_video_plan(100, 25.0, 360, 640, &o, &p, &e), E_ARG);
    o = (struct media_video_options){ .min_frames = 9, .max_frames = 8 };
    assert_int_equal(media_video_plan(100, 25.0, 360, 640, &o, &p, &e), E_ARG);
    struct media_image_plan i;
    assert_int_equal(media_image_plan(36, 6451, NULL, &i, &e), E_INPUT);   /* 28 x 6440 is 230 : 1 */
    assert_non_null(strstr(e.text, "aspect"));
}

/* Noise with sharp edges: tools/make_media.py's. */
static uint8_t *picture(uint32_t h, uint32_t w)
{
    uint8_t *a = test_malloc((size_t)h * w * 3);
    uint64_t s = (uint64_t)h * 1000 + w;
    for (size_t i = 0; i < (size_t)h * w * 3; i++) {
        a[i] = (uint8_t)(expected_noise(&s) >> 16);
        const size_t y = i / 3 / w, x = i / 3 % w;
        if (y % 2 == 0 && x % 3 == 0) a[i] = a[i] > 127 ? 255 : 0;
    }
    return a;
}

static void pillow(void **state)
{
    (void)state;
    struct expected x;
    struct err e;
    expected_open(&x);
    while (expected_next(&x, "picture")) {
        const uint32_t h = (uint32_t)expected_count(&x, 0), w = (uint32_t)expected_count(&x, 1);
        const uint32_t oh = (uint32_t)expected_count(&x, 2), ow = (uint32_t)expected_count(&x, 3);
        uint8_t *a = picture(h, w), *b = test_malloc((size_t)oh * ow * 3);
        assert_ok(media_resize_image(a, h, w, b, oh, ow, &e), e);
        if (expected_hash(b, (size_t)oh * ow * 3) != strtoull(x.word[4], NULL, 16))
            fail_msg("%u x %u to %u x %u is not Pillow's picture", w, h, ow, oh);
        test_free(a);
        test_free(b);
    }
}

/* The [oh, ow, 4] of a resizer as [oh, ow, 3]. */
static void drop_fourth(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) memmove(x + 3 * i, x + 4 * i, 3 * sizeof *x);
}

static void torch(void **state)
{
    (void)state;
    struct expected x;
    struct err e;
    expected_open(&x);
    while (expected_next(&x, "frame")) {
        const uint32_t h = (uint32_t)expected_count(&x, 0), w = (uint32_t)expected_count(&x, 1);
        const uint32_t oh = (uint32_t)expected_count(&x, 2), ow = (uint32_t)expected_count(&x, 3);
        const size_t n = (size_t)oh * ow;
        if (ow == 1) continue;                /* torch mixes up the strides of a picture one pixel wide */
        struct media_resizer *r;
        uint8_t *a = picture(h, w);
        float *y = test_malloc(n * 4 * sizeof *y), *in = test_malloc((size_t)h * w * 4 * sizeof *in);
        assert_ok(media_resizer_create(h, w, oh, ow, &r, &e), e);
        media_resize_frame(r, a, y);
        drop_fourth(y, n);
        double sum = 0.0;
        for (size_t i = 0; i < 3 * n; i++) {
            assert_true(y[i] >= 0.0f && y[i] <= 255.0f && y[i] == (float)(int)y[i]);
            sum += y[i];
        }
        const double off = sum - expected_number(&x, 4);
        assert_true(off <= 2.0 + 1e-4 * (double)n && -off <= 2.0 + 1e-4 * (double)n);
        const size_t next = expected_some(&x, 5, y, 3 * n, 1.0, 0.0, 1);
        media_widen(a, (size_t)h * w, in);
        media_resize_again(r, in, y);
        drop_fourth(y, n);
        expected_some(&x, next, y, 3 * n, 2e-3, 2e-3, 0);
        media_resizer_destroy(&r);
        test_free(a);
        test_free(in);
        test_free(y);
    }
}

static void isas_agree(void **state)
{
    (void)state;
    struct err e;
    const enum media_isa best = media_isa();
    const uint32_t h = 61, w = 89, oh = 56, ow = 84;
    const struct media_vision v = media_vision_default();
    const size_t n = (size_t)oh * ow * 4, n_patches = (size_t)oh / 14 * (ow / 14) * 1176;
    uint8_t *a = picture(h, w);
    float *y[2] = { test_malloc(n * sizeof(float)), test_malloc(n * sizeof(float)) };
    float *p[2] = { test_malloc(n_patches * sizeof(float)), test_malloc(n_patches * sizeof(float)) };
    for (int isa = 0; isa <= (int)best; isa++) {
        const int to = isa > 0;
        struct media_resizer *r;
        media_isa_force((enum media_isa)isa);
        assert_ok(media_resizer_create(h, w, oh, ow, &r, &e), e);
        media_resize_frame(r, a, y[to]);
        for (size_t i = 3; i < n; i += 4) y[to][i] = 0.0f;
        media_patches_write(&v, (const float *const[]){ y[to], y[to] }, oh, ow, p[to]);
        media_resizer_destroy(&r);
        if (to) assert_memory_equal(y[0], y[1], n * sizeof(float));
        if (to) assert_memory_equal(p[0], p[1], n_patches * sizeof(float));
    }
    media_isa_force(best);
    for (int i = 0; i < 2; i++) test_free(y[i]), test_free(p[i]);
    test_free(a);
}

/* Every value is where the formula of the layout says. */
static void patch_order(void **state)
{
    (void)state;
    const struct media_vision v = media_vision_default();
    const uint32_t h = 56, w = 84;
    float *f[2] = { test_malloc((size_t)h * w * 4 * sizeof(float)),
                    test_malloc((size_t)h * w * 4 * sizeof(float)) };
    float *out = test_malloc((size_t)h * w * 6 * sizeof(float));
    for (uint32_t t = 0; t < 2; t++)
        for (uint32_t i = 0; i < h * w * 4; i++) f[t][i] = (float)((i * 7 + t * 100) % 256);
    media_patches_write(&v, (const float *const *)f, h, w, out);
    for (uint32_t c = 0; c < 3; c++)
        for (uint32_t t = 0; t < 2; t++)
            for (uint32_t y = 0; y < h; y++)
                for (uint32_t x = 0; x < w; x++) {
                    const uint32_t py = y / 14, px = x / 14;
                    const uint32_t row = ((py / 2) * (w / 28) + px / 2) * 4 + py % 2 * 2 + px % 2;
                    const uint32_t col = ((c * 2 + t) * 14 + y % 14) * 14 + x % 14;
                    const float want = (f[t][(y * w + x) * 4 + c] / 255.0f - v.mean[c]) / v.std[c];
                    const float off = out[row * 1176 + col] - want;
                    assert_true(off < 1e-6f && off > -1e-6f);
                }
    test_free(f[0]);
    test_free(f[1]);
    test_free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),      cmocka_unit_test(plans),       cmocka_unit_test(tables),
        cmocka_unit_test(parts), cmocka_unit_test(options),    cmocka_unit_test(pillow),      cmocka_unit_test(torch),
        cmocka_unit_test(isas_agree), cmocka_unit_test(patch_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
