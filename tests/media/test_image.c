/* Still pictures: RGB as Pillow's and patches as the reference's, from a file or from memory.
 * Method: every mode of tests/data/media against expected.txt; bit-equal but for JPEG (see
 * media/picture.c). */
#include "media/media.h"
#include "tests/media/expected.h"

static void name_of(char *path, size_t cap, const char *name) { snprintf(path, cap, DATA "%s", name); }

static bool is_jpeg(const char *name) { return strstr(name, ".jpg") != NULL; }

static void rgb(void **state)
{
    (void)state;
    struct expected x;
    expected_open(&x);
    while (expected_next(&x, "rgb")) {
        struct media *m;
        struct err e;
        char path[256];
        uint8_t *p;
        uint32_t h, w;
        name_of(path, sizeof path, x.word[0]);
        assert_ok(media_open(path, &m, &e), e);
        assert_true(media_info(m)->is_image || strstr(path, ".gif") != NULL);
        assert_ok(media_image_rgb(m, &p, &h, &w, &e), e);
        assert_int_equal(h, expected_count(&x, 1));
        assert_int_equal(w, expected_count(&x, 2));
        const size_t n = (size_t)h * w * 3;
        if (!is_jpeg(path) && expected_hash(p, n) != strtoull(x.word[3], NULL, 16))
            fail_msg("%s is not Pillow's picture", path);
        float *y = test_malloc(n * sizeof *y);
        for (size_t i = 0; i < n; i++) y[i] = p[i];
        expected_some(&x, 4, y, n, is_jpeg(path) ? 3.0 : 0.0, 0.0, is_jpeg(path) ? 10 : 0);
        test_free(y);
        free(p);
        media_close(&m);
    }
}

static void patches(void **state)
{
    (void)state;
    struct expected x;
    expected_open(&x);
    while (expected_next(&x, "image")) {
        struct media *m;
        struct err e;
        char path[256];
        struct media_patches p;
        struct media_counts c;
        name_of(path, sizeof path, x.word[0]);
        assert_ok(media_open(path, &m, &e), e);
        assert_ok(media_image_load(m, NULL, &p, &e), e);
        assert_int_equal(p.grid_t, 1);
        assert_int_equal(p.grid_h, expected_count(&x, 1));
        assert_int_equal(p.grid_w, expected_count(&x, 2));
        assert_int_equal(p.row, 1176);
        const size_t n = (size_t)p.grid_h * p.grid_w * p.row;
        expected_some(&x, 3, p.patches, n, is_jpeg(path) ? 0.045 : 1e-5, 1e-5, is_jpeg(path) ? 20 : 0);
        if (media_info(m)->is_image) {
            assert_ok(media_tokens(m, NULL, NULL, false, &c, &e), e);
            assert_int_equal(c.n_vision_tokens, p.grid_h * p.grid_w / 4);
            assert_int_equal(c.n_audio_tokens, 0);
        }
        media_patches_free(&p);
        assert_null(p.patches);
        media_close(&m);
    }
}

static void memory(void **state)
{
    (void)state;
    static uint8_t bytes[65536];
    FILE *f = fopen(DATA "rgba.png", "rb");
    assert_non_null(f);
    const size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    struct media *a, *b;
    struct err e;
    struct media_patches p, q;
    const struct media_image_options o = { .limits = { 3136, 9408 } };
    assert_ok(media_open(DATA "rgba.png", &a, &e), e);
    assert_ok(media_open_memory(bytes, n, "upload", &b, &e), e);
    assert_ok(media_image_load(a, &o, &p, &e), e);
    assert_ok(media_image_load(b, &o, &q, &e), e);
    assert_int_equal(p.grid_h, 4);                /* 61 x 90 at most 9408 pixels: 56 x 84 */
    assert_int_equal(p.grid_w, 6);
    assert_memory_equal(p.patches, q.patches, (size_t)p.grid_h * p.grid_w * p.row * sizeof(float));
    media_patches_free(&p);
    media_patches_free(&q);
    media_close(&a);
    media_close(&b);
}

/* The EXIF turn is left alone, as in the reference; what a still picture says of itself. */
static void info(void **state)
{
    (void)state;
    struct media *m;
    struct err e;
    assert_ok(media_open(DATA "exif_turned.jpg", &m, &e), e);
    const struct media_info *i = media_info(m);
    assert_true(i->is_image && !i->has_video && !i->has_audio);
    assert_int_equal(i->video.width, 90);
    assert_int_equal(i->video.height, 61);
    assert_int_equal(i->video.rotation, 0);
    assert_string_equal(i->video.codec, "mjpeg");
    assert_true(i->duration_s == -1.0);
    assert_null(media_warning(m));
    media_close(&m);
    assert_null(m);
    assert_ok(media_open(DATA "grey16.png", &m, &e), e);
    uint8_t *p;
    uint32_t h, w;
    assert_ok(media_image_rgb(m, &p, &h, &w, &e), e);
    assert_non_null(strstr(media_warning(m), "16-bit"));
    free(p);
    media_close(&m);
}

/* Limits that the loader cannot meet: the processor resizes once more, and the plan is what comes out. */
static void second_resize(void **state)
{
    (void)state;
    struct media *m;
    struct err e;
    struct media_patches p;
    struct media_image_plan plan;
    const struct media_image_options o = { .limits = { 31000, 31360 } };
    assert_ok(media_open(DATA "wide.png", &m, &e), e);
    assert_ok(media_image_plan(20, 300, &o, &plan, &e), e);
    assert_true(plan.load_h != plan.height || plan.load_w != plan.width);
    assert_ok(media_image_load(m, &o, &p, &e), e);
    assert_int_equal(p.grid_h, plan.height / 14);
    assert_int_equal(p.grid_w, plan.width / 14);
    const size_t n = (size_t)p.grid_h * p.grid_w * p.row;
    for (size_t i = 0; i < n; i++) assert_true(p.patches[i] > -2.0f && p.patches[i] < 2.5f);
    media_patches_free(&p);
    media_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rgb),  cmocka_unit_test(patches),       cmocka_unit_test(memory),
        cmocka_unit_test(info), cmocka_unit_test(second_resize),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
