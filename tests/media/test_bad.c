/* Bad input: the right code, a sentence that names the file and the trouble, no other file opened, nothing
 * leaked.
 * Method: a table of files of every kind of trouble, then seeded damage to good ones (prints the
 * seed). */
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "media/media.h"
#include "tests/media/expected.h"

enum reader { OPEN, SOUND, PICTURE, FILM };

/* Everything that `reader` does with an open file. */
static status use(struct media *m, enum reader reader, struct err *e)
{
    const struct media_image_options io = { .limits = { 3136, 9408 } };
    const struct media_video_options vo = { .limits = { 3136, 9408 }, .n_frames = 4, .n_threads = 1 };
    struct media_patches p = { .grid_t = 0 };
    float *x = NULL;
    size_t n;
    status st = OK;
    if (reader == SOUND) st = media_audio_load(m, NULL, 10u << 20, &x, &n, e);
    if (reader == PICTURE) st = media_image_load(m, &io, &p, e);
    if (reader == FILM) st = media_video_load(m, &vo, &p, NULL, e);
    assert_true(st == OK || (x == NULL && p.patches == NULL));
    free(x);
    media_patches_free(&p);
    return st;
}

static void table(void **state)
{
    (void)state;
    static const struct { const char *name; enum reader reader; const char *says; } bad[] = {
        { "there_is_none.mp4", OPEN, "no such file" },
        { "", OPEN, "directory" },
        { "bad_text.mp4", OPEN, "no known format" },
        { "bad_no_moov.mp4", OPEN, "moov atom not found" },
        { "bad_no_tracks.mp4", OPEN, "neither sound nor pictures" },
        { "bad_no_frames.mp4", FILM, "no frames" },
        { "bad_no_frames.mp4", SOUND, "no samples" },
        { "bad_no_frames.mp4", PICTURE, "does not decode" },
        { "bad_no_samples.wav", SOUND, "no samples" },
        { "bad_bomb.png", OPEN, "268435456, more than the limit of 178956970" },
        { "bad_half.png", OPEN, "damaged picture" },
        { "bad_thin.png", PICTURE, "aspect ratio of 300.0, more than 200" },
        { "bad_encrypted.mp4", FILM, "encrypted" },
        { "bad_encrypted.mp4", SOUND, "encrypted" },
        { "bad_codec.mp4", FILM, "no decoder for its pictures (unknown zzz1)" },
        { "bad_list.m3u8", OPEN, "hls" },
        { "bad_list.ffconcat", OPEN, "concat" },
        { "bad_list.sdp", OPEN, "sdp" },
        { "one.mp4", FILM, "1 frame: at least 2" },
        { "rgb.png", FILM, "still picture" },
        { "rgb.png", SOUND, "no sound" },
        { "three.mp4", SOUND, "no sound" },
        { "stereo.wav", FILM, "no film" },
        { "stereo.wav", PICTURE, "no picture" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct media *m = NULL;
        struct err e;
        char path[256];
        snprintf(path, sizeof path, DATA "%s", bad[i].name);
        status st = media_open(path, &m, &e);
        if (bad[i].reader != OPEN) {
            assert_ok(st, e);
            st = use(m, bad[i].reader, &e);
        }
        if (st != E_INPUT) fail_msg("%s: %s instead of E_INPUT", path, err_name(st));
        if (strstr(e.text, bad[i].says) == NULL || strstr(e.text, path) != e.text)
            fail_msg("%s: expected '%s', got '%s'", path, bad[i].says, e.text);
        media_close(&m);
    }
}

/* A pipe, an empty file, no permission to be a file; memory of 0 bytes. */
static void not_files(void **state)
{
    (void)state;
    struct media *m = NULL;
    struct err e;
    assert_int_equal(media_open("/dev/null", &m, &e), E_INPUT);
    assert_non_null(strstr(e.text, "not a regular file"));
    char name[] = "/tmp/omnidrop-test-XXXXXX";
    const int fd = mkstemp(name);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(media_open(name, &m, &e), E_INPUT);
    assert_non_null(strstr(e.text, "empty"));
    unlink(name);
    assert_int_equal(mkfifo(name, 0600), 0);
    assert_int_equal(media_open(name, &m, &e), E_INPUT);      /* does not wait for a writer */
    unlink(name);
    assert_int_equal(media_open_memory("", 0, "upload", &m, &e), E_INPUT);
    assert_null(m);
}

/* Lists inside memory are refused as well, and a list with a good file's name opens nothing. */
static void lists(void **state)
{
    (void)state;
    static const char *const text[] = {
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\nfile:" DATA "film.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '" DATA "film.mp4'\n",
        "<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\" "
        "profiles=\"urn:mpeg:dash:profile:isoff-main:2011\"><Period><BaseURL>film.mp4</BaseURL></Period></"
        "MPD>",
        "[Reference]\nRef1=http://127.0.0.1/film.mp4?MSWMExt=.asf\n",
        "<?xml version=\"1.0\"?><svg xmlns=\"http://www.w3.org/2000/svg\" width=\"9\" height=\"9\"><image "
        "href=\"file:///etc/passwd\"/></svg>",
        "WEBVTT\n\n00:00.000 --> 00:01.000\nText is no medium.\n",
        "; SBaGen\noff: -\nNOW off\n",
    };
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        struct media *m = NULL;
        struct err e;
        assert_int_equal(media_open_memory(text[i], strlen(text[i]), "upload", &m, &e), E_INPUT);
        assert_null(m);
        assert_string_equal(e.tag, "unsupported_media");
    }
}

/* Cut short or with bytes changed: an error or a result, never a crash, a hang or a leak. */
static void damage(void **state)
{
    (void)state;
    static const char *const name[] = { "film.mp4",     "late.mkv",     "mpeg2.ts",  "mpeg4.avi",
                                        "altref.webm",  "moving.gif",   "sound.mp3", "sound.opus",
                                        "u8.wav",       "mono16k.flac", "rgba.png",  "alpha.webp",
                                        "photo420.jpg", "picture.bmp" };
    static uint8_t good[1 << 18], bad[1 << 18];
    const char *env = getenv("SEED");
    const uint64_t seed = env ? strtoull(env, NULL, 10) : 1;
    uint64_t s = seed;
    print_message("SEED=%llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        char path[256];
        snprintf(path, sizeof path, DATA "%s", name[i]);
        FILE *f = fopen(path, "rb");
        assert_non_null(f);
        const size_t n = fread(good, 1, sizeof good, f);
        fclose(f);
        for (int round = 0; round < 40; round++) {
            struct media *m = NULL;
            struct err e;
            memcpy(bad, good, n);
            const size_t cut = round % 3 == 0 ? expected_noise(&s) % n : n;
            for (uint32_t k = expected_noise(&s) % 20 * (round % 3 != 0); k > 0; k--) {
                const size_t at = expected_noise(&s) % (k % 2 && n > 400 ? 400 : n);   /* more headers */
                bad[at] = (uint8_t)expected_noise(&s);
            }
            if (media_open_memory(bad, cut, "damaged", &m, &e) != OK) continue;
            for (enum reader r = SOUND; r <= FILM; r++) use(m, r, &e);
            media_close(&m);
        }
    }
}

/* A WAV of 121 bytes whose list of titles claims gigabytes (found by the fuzzer): nothing is allocated by claim. */
static void claims(void **state)
{
    (void)state;
    struct rusage before, after;
    struct media *m = NULL;
    struct err e;
    getrusage(RUSAGE_SELF, &before);
    if (media_open("tests/fuzz/seeds/wav/claims_gigabytes.wav", &m, &e) == OK) media_close(&m);
    getrusage(RUSAGE_SELF, &after);
    assert_true(after.ru_maxrss - before.ru_maxrss < 64 << 10);        /* KiB */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table),
        cmocka_unit_test(not_files),
        cmocka_unit_test(lists),
        cmocka_unit_test(damage),
        cmocka_unit_test(claims),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
