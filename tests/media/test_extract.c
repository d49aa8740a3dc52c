/* Extraction in a child: the same bits as in this process, for every kind of file; the same trouble for bad ones, with
 * its tag; nothing survives a killed child, a flag to stop or a limit of time.
 * Method: every file of tests/data/media through both ways; bad files by a table; faults by looking for the child in
 * /proc and killing it. */
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/media/child_hook.h"
#include "tests/media/expected.h"
#include "tests/media/film.h"

static const struct extract_limits NO_LIMITS = { .dir = NULL };

static struct media_source source_of(const char *path)
{
    struct media_source s;
    struct err e = { .text = "" };
    const char *name = strrchr(path, '/');
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail_msg("%s is not there", path);
    assert_ok(media_source_of_fd(fd, name ? name + 1 : path, NULL, &s, &e), e);
    return s;
}

static struct media_source data(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, DATA "%s", name);
    return source_of(path);
}

/* Everything open in this process: descriptors and children. */
static int n_open(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d) != NULL) n++;
    closedir(d);
    return n;
}

static void no_children(void) { assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); }

/* ---- the same bits -------------------------------------------------------------------------------------- */

static void same_error(const char *name, status here, const struct err *he, status there, const struct err *te)
{
    if (here == OK && there == OK) return;
    if (here != there || strcmp(he->text, te->text) != 0)
        fail_msg("%s: here %s '%s', in a child %s '%s'", name, err_name(here), here ? he->text : "", err_name(there),
                 there ? te->text : "");
    if (here == E_INPUT) assert_non_null(te->tag);
}

static void check_sound(const char *name, struct media *m, const struct extract_options *o, const struct extract *x)
{
    struct err e;
    float *samples, *mel;
    size_t n;
    const struct media_audio_options ao = { .start_s = o->start_s, .end_s = o->end_s };
    assert_ok(media_audio_load(m, &ao, 0, &samples, &n, &e), e);
    if (x->n_frames != media_mel_frames(n)) fail_msg("%s: %u mel frames, not %zu", name, x->n_frames, media_mel_frames(n));
    assert_int_equal(x->n_audio, media_audio_tokens(x->n_frames));
    mel = malloc((size_t)x->n_frames * MEDIA_MEL_BINS * sizeof *mel);
    assert_ok(media_mel(samples, n, mel, &e), e);
    assert_memory_equal(mel, x->mel, (size_t)x->n_frames * MEDIA_MEL_BINS * sizeof *mel);
    free(mel);
    free(samples);
}

static void check_patches(const struct media_patches *p, const struct extract *x)
{
    assert_int_equal(p->grid_t, x->t);
    assert_int_equal(p->grid_h, x->h);
    assert_int_equal(p->grid_w, x->w);
    assert_memory_equal(p->patches, x->patches, (size_t)x->t * x->h * x->w * p->row * sizeof(float));
}

/* One file as one kind, both ways. Returns whether it could be read. */
static bool compare(const char *name, const struct extract_options *o)
{
    struct media_source s = data(name);
    struct media *m = NULL;
    struct extract x = { .kind = MEDIA_NONE };
    struct media_patches p = { .grid_t = 0 };
    struct media_video_plan plan = { 0 };
    struct err he = { .text = "" }, te = { .text = "" };
    const status there = extract_run(&s, 1, o, &NO_LIMITS, &x, &te);
    status here = media_open_fd(s.fd, s.bytes, name, &m, &he);
    if (here == OK && o->kind == MEDIA_IMAGE) here = media_image_load(m, &o->image, &p, &he);
    struct media_video_options vo = o->video;
    vo.start_s = o->start_s;
    vo.end_s = o->end_s;
    if (here == OK && o->kind == MEDIA_VIDEO) here = media_video_load(m, &vo, &p, &plan, &he);
    if (here == OK && o->kind == MEDIA_AUDIO) {
        float *samples = NULL;
        size_t n;
        if (media_info(m)->has_audio) here = media_audio_load(m, NULL, 0, &samples, &n, &he);
        else here = err_set(&he, E_INPUT, "%s: the file has no sound", name);
        free(samples);
    }
    same_error(name, here, &he, there, &te);
    if (here == OK) {
        assert_int_equal(x.kind, o->kind);
        assert_memory_equal(&x.info.video, &media_info(m)->video, sizeof x.info.video);
        assert_string_equal(x.info.container, media_info(m)->container);
        if (x.has_sound) check_sound(name, m, o, &x);
        assert_true(x.has_sound == (o->kind == MEDIA_AUDIO || (o->kind == MEDIA_VIDEO && media_info(m)->has_audio)));
        if (o->kind != MEDIA_AUDIO) check_patches(&p, &x);
        if (o->kind == MEDIA_VIDEO) assert_memory_equal(&plan, &x.plan, sizeof plan);
        assert_true(x.decode_s > 0);
        const char *warning = media_warning(m);
        if (warning == NULL) assert_null(x.warning);
        else assert_string_equal(x.warning, warning);
    }
    media_patches_free(&p);
    media_close(&m);
    extract_free(&x);
    media_source_close(&s);
    return here == OK;
}

/* Every file as what it is: pictures, films with their sound, sounds. */
static void bits(void **state)
{
    (void)state;
    static const char *const name[] = {
        "alpha.webp", "bits1.png", "exif_turned.jpg", "grey.jpg", "grey16.png", "grey_alpha.png", "palette.png",
        "photo.webp", "photo420.jpg", "picture.bmp", "rgb.png", "rgba16.png", "still.gif", "wide.png",
        "altref.webm", "bt709.mp4", "exact.mov", "film.mp4", "late.mkv", "mirrored90.mp4", "moving.gif", "mpeg2.ts",
        "mpeg4.avi", "odd.mkv", "one.mp4", "open_gop.mp4", "ten_bit.mkv", "three.mp4", "turned270.mp4", "variable.mp4",
        "vp9.webm", "bad_half.mp4", "bad_no_frames.mp4",
        "cover.mp3", "f64.wav", "mono16k.flac", "phone.wav", "s24.wav", "sound.mp3", "sound.ogg", "sound.opus",
        "stereo.wav", "surround.m4a", "u8.wav", "bad_no_samples.wav",
    };
    const int before = n_open();
    int good = 0;
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        const char *end = strrchr(name[i], '.');
        const bool picture = strstr(".webp.png.jpg.bmp", end) != NULL || strcmp(name[i], "still.gif") == 0;
        const bool sound = strstr(".mp3.wav.flac.ogg.opus.m4a", end) != NULL;
        const struct extract_options o = {
            .kind = picture ? MEDIA_IMAGE : sound ? MEDIA_AUDIO : MEDIA_VIDEO, .sound = -1,
            .image = { .limits = { 3136, 50176 } },
            .video = { .limits = { 3136, 25088 }, .max_frames = 8, .n_threads = i % 2 ? 1 : 2 },
        };
        good += compare(name[i], &o);
    }
    assert_int_equal(good, (int)(sizeof name / sizeof *name) - 3);    /* one frame, no frames, no samples */
    assert_int_equal(n_open(), before);
    no_children();
}

/* The published limits, a part of a sound, the sound of a film left out and asked for. */
static void choices(void **state)
{
    (void)state;
    struct err e = { .text = "" };
    struct extract x;
    assert_true(compare("film.mp4", &(struct extract_options){ .kind = MEDIA_VIDEO, .sound = 1 }));
    assert_true(compare("film.mp4", &(struct extract_options){ .kind = MEDIA_VIDEO, .sound = 1, .start_s = 0.5, .end_s = 1.5 }));
    assert_false(compare("film.mp4", &(struct extract_options){ .kind = MEDIA_VIDEO, .sound = 1, .start_s = 500 }));
    assert_true(compare("rgb.png", &(struct extract_options){ .kind = MEDIA_IMAGE }));
    assert_true(compare("stereo.wav", &(struct extract_options){ .kind = MEDIA_AUDIO, .start_s = 0.5, .end_s = 1 }));
    assert_true(compare("film.mp4", &(struct extract_options){ .kind = MEDIA_VIDEO, .sound = 1, .start_s = 0.5, .end_s = 1.7 }));
    assert_true(compare("mpeg4.avi", &(struct extract_options){ .kind = MEDIA_VIDEO, .start_s = 0.7 }));
    /* A part behind the end of the film's sound: silent, and said; where the sound was asked for, refused. */
    struct media_source s = data("short_sound.mp4");
    const struct extract_options late = { .kind = MEDIA_VIDEO, .sound = -1, .start_s = 0.6 };
    const struct extract_options must = { .kind = MEDIA_VIDEO, .sound = 1, .start_s = 0.6 };
    assert_ok(extract_run(&s, 1, &late, &NO_LIMITS, &x, &e), e);
    assert_true(!x.has_sound && x.n_audio == 0 && x.t > 0);
    assert_non_null(strstr(x.warning, "before the part asked for"));
    extract_free(&x);
    assert_int_equal(extract_run(&s, 1, &must, &NO_LIMITS, &x, &e), E_INPUT);
    assert_non_null(strstr(e.text, "before the start asked for"));
    media_source_close(&s);
    assert_true(compare("short_sound.mp4", &(struct extract_options){ .kind = MEDIA_VIDEO, .sound = 1 }));
    s = data("film.mp4");
    assert_ok(extract_run(&s, 1, &(struct extract_options){ .kind = MEDIA_VIDEO }, &NO_LIMITS, &x, &e), e);
    assert_false(x.has_sound);
    assert_null(x.mel);
    extract_free(&x);
    assert_ok(extract_run(&s, 1, &(struct extract_options){ .sound = -1 }, &NO_LIMITS, &x, &e), e);
    assert_int_equal(x.kind, MEDIA_VIDEO);        /* found by looking */
    extract_free(&x);
    media_source_close(&s);
    s = data("three.mp4");
    assert_int_equal(extract_run(&s, 1, &(struct extract_options){ .kind = MEDIA_VIDEO, .sound = 1 }, &NO_LIMITS, &x, &e),
                     E_INPUT);
    assert_non_null(strstr(e.text, "no sound"));
    media_source_close(&s);
}

static void probes(void **state)
{
    (void)state;
    static const char *const name[] = { "film.mp4", "rgb.png", "sound.mp3", "late.mkv", "turned90.mp4" };
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        struct media_source s = data(name[i]);
        struct media_info info;
        struct media *m;
        struct err e = { .text = "" };
        assert_ok(extract_probe(&s, &NO_LIMITS, &info, &e), e);
        assert_ok(media_open_fd(s.fd, s.bytes, name[i], &m, &e), e);
        assert_memory_equal(&info, media_info(m), sizeof info);
        media_close(&m);
        media_source_close(&s);
    }
}

/* A film given as single pictures is the film of those pictures; they must have one size. */
static void frame_list(void **state)
{
    (void)state;
    struct err e = { .text = "" };
    struct extract x, one;
    struct media_source s[3] = { data("rgb.png"), data("rgb.png"), data("rgb.png") };
    const struct extract_options o = { .kind = MEDIA_VIDEO, .video = { .limits = { 3136, 25088 } }, .list_fps = 4 };
    const struct extract_options io = { .kind = MEDIA_IMAGE, .image = { .limits = { 3136, 25088 } } };
    assert_ok(extract_run(s, 3, &o, &NO_LIMITS, &x, &e), e);
    assert_int_equal(x.t, 2);
    assert_int_equal(x.plan.n_sampled, 4);
    assert_true(x.second_per_grid == 0.5);
    const size_t slice = (size_t)x.h * x.w * 1176;
    assert_memory_equal(x.patches, x.patches + slice, slice * sizeof(float));
    assert_ok(extract_run(s, 1, &io, &NO_LIMITS, &one, &e), e);
    assert_int_equal(one.h, x.h);
    assert_int_equal(one.w, x.w);
    assert_memory_equal(one.patches, x.patches, slice * sizeof(float));       /* a picture is two equal frames */
    extract_free(&one);
    assert_ok(extract_run(s, 1, &o, &NO_LIMITS, &one, &e), e);                /* a list of one: twice that frame */
    assert_true(one.t == 1 && one.plan.n_sampled == 2 && one.plan.n_frames == 1);
    assert_memory_equal(one.patches, x.patches, slice * sizeof(float));
    extract_free(&one);
    /* The loader keeps to the picture's limits, the processor to the film's. */
    const struct extract_options tight = { .kind = MEDIA_VIDEO, .image = { .limits = { 3136, 6272 } },
                                           .video = { .limits = { 3136, 25088 } }, .list_fps = 4 };
    assert_ok(extract_run(s, 1, &tight, &NO_LIMITS, &one, &e), e);
    assert_true(one.plan.load_h * one.plan.load_w <= 6272 && one.plan.height == one.plan.load_h);
    extract_free(&one);
    const struct extract_options cut = { .kind = MEDIA_VIDEO, .list_fps = 4, .end_s = 1 };
    assert_int_equal(extract_run(s, 1, &cut, &NO_LIMITS, &one, &e), E_ARG);
    extract_free(&x);
    media_source_close(&s[1]);
    s[1] = data("wide.png");
    assert_int_equal(extract_run(s, 3, &o, &NO_LIMITS, &x, &e), E_INPUT);
    assert_non_null(strstr(e.text, "one size"));
    for (int i = 0; i < 3; i++) media_source_close(&s[i]);
}

/* ---- bad input ------------------------------------------------------------------------------------------ */

static void refuse(struct media_source s, const struct extract_options *o, const struct extract_limits *l, status want,
                   const char *tag, const char *says)
{
    struct extract x;
    struct err e = { .text = "" };
    const status st = extract_run(&s, 1, o, l, &x, &e);
    if (st != want || strcmp(e.tag ? e.tag : "", tag) != 0 || strstr(e.text, says) == NULL)
        fail_msg("%s: %s, tag %s, '%s'; expected %s, tag %s, '%s'", s.name, err_name(st), e.tag ? e.tag : "none", e.text,
                 err_name(want), tag, says);
    media_source_close(&s);
}

static struct media_source bytes(const void *p, size_t n, const char *name)
{
    struct media_source s;
    struct err e = { .text = "" };
    assert_ok(media_source_of_bytes(p, n, name, NULL, &s, &e), e);
    return s;
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static uint32_t crc(const uint8_t *p, size_t n)
{
    uint32_t c = ~0u;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
    }
    return ~c;
}

/* B26: 60000 x 60000 pixels in 1 kB. */
static struct media_source png_bomb(void)
{
    static uint8_t p[1024] = "\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR";
    put32(p + 16, 60000);
    put32(p + 20, 60000);
    memcpy(p + 24, "\x08\x02\0\0\0", 5);
    put32(p + 29, crc(p + 12, 17));
    put32(p + 33, 900);
    memcpy(p + 37, "IDAT", 4);
    return bytes(p, sizeof p, "bomb.png");
}

/* B27: film.mp4 whose header and tracks claim 10^9 s. */
static struct media_source long_claim(void)
{
    static uint8_t p[1 << 17];
    FILE *f = fopen(DATA "film.mp4", "rb");
    const size_t n = fread(p, 1, sizeof p, f);
    fclose(f);
    int found = 0;
    for (size_t i = 0; i + 32 < n; i++) {
        const bool mvhd = memcmp(p + i, "mvhd", 4) == 0, mdhd = memcmp(p + i, "mdhd", 4) == 0;
        if (!mvhd && !mdhd) continue;
        put32(p + i + 16, 1);             /* ticks a second */
        put32(p + i + 20, 1000000000);
        found++;
    }
    assert_true(found >= 2);
    return bytes(p, n, "long.mp4");
}

static void bad(void **state)
{
    (void)state;
    const struct extract_options film = { .kind = MEDIA_VIDEO, .sound = -1 }, sound = { .kind = MEDIA_AUDIO },
                                 picture = { .kind = MEDIA_IMAGE };
    const struct extract_limits small = { .max_pixels = 1000 }, brief = { .max_duration_s = 0.5 };
    const int before = n_open();
    refuse(data("bad_text.mp4"), &film, &NO_LIMITS, E_INPUT, "unsupported_media", "no known format");          /* B24 */
    refuse(data("bad_no_moov.mp4"), &film, &NO_LIMITS, E_INPUT, "media_decode_failed", "moov atom not found");  /* B25 */
    refuse(data("bad_encrypted.mp4"), &film, &NO_LIMITS, E_INPUT, "media_decode_failed", "encrypted");
    refuse(data("bad_codec.mp4"), &film, &NO_LIMITS, E_INPUT, "unsupported_media", "no decoder");
    refuse(data("bad_no_tracks.mp4"), &film, &NO_LIMITS, E_INPUT, "media_decode_failed", "neither sound nor pictures");
    refuse(png_bomb(), &picture, &NO_LIMITS, E_INPUT, "media_too_large", "60000 x 60000");                      /* B26 */
    refuse(data("bad_bomb.png"), &picture, &NO_LIMITS, E_INPUT, "media_too_large", "268435456");
    refuse(data("rgb.png"), &picture, &small, E_INPUT, "media_too_large", "limit of 1000");
    refuse(long_claim(), &film, &NO_LIMITS, E_INPUT, "media_too_long", "1000000000 s");                         /* B27 */
    refuse(data("stereo.wav"), &sound, &brief, E_INPUT, "media_too_long", "limit of 0 s");
    refuse(data("bad_list.m3u8"), &film, &NO_LIMITS, E_INPUT, "unsupported_media", "hls");                      /* B28 */
    refuse(data("bad_list.ffconcat"), &film, &NO_LIMITS, E_INPUT, "unsupported_media", "concat");
    refuse(data("bad_list.sdp"), &film, &NO_LIMITS, E_INPUT, "unsupported_media", "sdp");
    refuse(bytes("", 0, "nothing"), &film, &NO_LIMITS, E_INPUT, "media_decode_failed", "empty");
    refuse(data("rgb.png"), &film, &NO_LIMITS, E_INPUT, "media_decode_failed", "still picture");
    assert_int_equal(n_open(), before);
    no_children();
}

/* max_tokens: refused from the counts, with both, and what fits exactly is taken. */
static void tokens(void **state)
{
    (void)state;
    struct extract_options o = { .kind = MEDIA_VIDEO, .sound = -1, .video = { .limits = { 3136, 25088 } } };
    struct media_source s = data("film.mp4");
    struct extract x;
    struct err e = { .text = "" };
    char want[64];
    assert_ok(extract_run(&s, 1, &o, &NO_LIMITS, &x, &e), e);
    const uint64_t n = (uint64_t)x.t * x.h * x.w / 4 + x.n_audio;
    snprintf(want, sizeof want, "%u to hear", x.n_audio);
    extract_free(&x);
    o.max_tokens = n;
    assert_ok(extract_run(&s, 1, &o, &NO_LIMITS, &x, &e), e);
    extract_free(&x);
    media_source_close(&s);
    o.max_tokens = n - 1;
    refuse(data("film.mp4"), &o, &NO_LIMITS, E_ARG, "context_length_exceeded", want);
    o = (struct extract_options){ .kind = MEDIA_AUDIO, .max_tokens = 5 };
    refuse(data("stereo.wav"), &o, &NO_LIMITS, E_ARG, "context_length_exceeded", "of which 5 can be taken");
    refuse(data("sound.ogg"), &o, &NO_LIMITS, E_ARG, "context_length_exceeded", "of which 5 can be taken");
    o = (struct extract_options){ .kind = MEDIA_IMAGE, .max_tokens = 1 };
    refuse(data("photo420.jpg"), &o, &NO_LIMITS, E_ARG, "context_length_exceeded", "0 to hear");
}

/* ---- faults --------------------------------------------------------------------------------------------- */

static const char *long_film(void)
{
    static char path[64];
    static const struct film shape = { .codec = "mpeg4", .width = 640, .height = 480, .fps = 25, .seconds = 40 };
    struct err e = { .text = "" };
    if (path[0] != 0) return path;
    snprintf(path, sizeof path, "/tmp/omnidrop-extract-%d.mkv", (int)getpid());
    struct film film = shape;
    film.path = path;
    assert_ok(film_write(&film, &e), e);
    return path;
}

struct runner {
    pthread_t thread;
    struct media_source source;
    struct extract_limits limits;
    struct err e;
    status st;
    double seconds;
};

static void *run_long(void *arg)
{
    struct runner *r = arg;
    struct extract x;
    const struct extract_options o = { .kind = MEDIA_VIDEO, .video = { .fps = 25, .n_threads = 1 } };
    const double began = clock_s();
    r->st = extract_run(&r->source, 1, &o, &r->limits, &x, &r->e);
    r->seconds = clock_s() - began;
    if (r->st == OK) extract_free(&x);
    return NULL;
}

/* The child of `of`, once it is behind its walls; *status_ gets its /proc text. */
static pid_t child_pid(pid_t of, char *text, size_t cap)
{
    for (int i = 0; i < 500; i++, usleep(10000)) {
        DIR *d = opendir("/proc");
        struct dirent *f;
        pid_t found = 0;
        while ((f = readdir(d)) != NULL && found == 0) {
            char path[300], parent[32];
            snprintf(path, sizeof path, "/proc/%s/status", f->d_name);
            FILE *file = atoi(f->d_name) > 0 ? fopen(path, "r") : NULL;
            if (file == NULL) continue;
            text[fread(text, 1, cap - 1, file)] = 0;
            fclose(file);
            snprintf(parent, sizeof parent, "PPid:\t%d\n", (int)of);
            if (strstr(text, parent) != NULL && strstr(text, "Seccomp:\t2") != NULL) found = atoi(f->d_name);
        }
        closedir(d);
        if (found) return found;
    }
    fail_msg("no child behind a filter was seen");
    return 0;
}

/* The walls stand around the real child: filter, no privileges, and only the descriptors of its work. */
static void killed(void **state)
{
    (void)state;
    static char text[8192];
    struct runner r = { .source = source_of(long_film()) };
    pthread_create(&r.thread, NULL, run_long, &r);
    const pid_t pid = child_pid(getpid(), text, sizeof text);
    assert_non_null(strstr(text, "NoNewPrivs:\t1"));
    char path[64];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *d = opendir(path);
    if (d != NULL) {                      /* root alone may look: the child is not dumpable */
        for (const struct dirent *f; (f = readdir(d)) != NULL;) n += f->d_name[0] != '.';
        closedir(d);
        assert_int_equal(n, 5);           /* control, two times nothing, source, result */
    }
    snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
    kill(pid, SIGKILL);
    pthread_join(r.thread, NULL);
    assert_int_equal(r.st, E_INPUT);
    assert_string_equal(r.e.tag, "media_decode_failed");
    assert_non_null(strstr(r.e.text, "signal 9"));
    assert_null(strstr(r.e.text, "/tmp"));
    media_source_close(&r.source);
    no_children();
}

static void stopped(void **state)
{
    (void)state;
    static char text[8192];
    static atomic_bool stop;
    struct runner r = { .source = source_of(long_film()), .limits = { .stop = &stop } };
    pthread_create(&r.thread, NULL, run_long, &r);
    child_pid(getpid(), text, sizeof text);
    const double at = clock_s();
    atomic_store(&stop, true);
    pthread_join(r.thread, NULL);
    assert_true(clock_s() - at < 1);
    assert_int_equal(r.st, E_CANCELLED);
    media_source_close(&r.source);
    no_children();
}

static void too_slow(void **state)
{
    (void)state;
    struct runner r = { .source = source_of(long_film()), .limits = { .wall_s = 0.3 } };
    run_long(&r);
    assert_int_equal(r.st, E_INPUT);
    assert_string_equal(r.e.tag, "media_decode_failed");
    assert_true(r.seconds < 2);
    media_source_close(&r.source);
    no_children();
}

static void too_much_memory(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip();                               /* its shadow does not fit any limit */
#endif
    struct runner r = { .source = source_of(long_film()), .limits = { .memory_bytes = 4 << 20 } };
    run_long(&r);
    assert_int_equal(r.st, E_INPUT);
    assert_string_equal(r.e.tag, "media_decode_failed");
    /* Where exactly it has too little decides who notices: the child says so, or a library in it dies. */
    if (strstr(r.e.text, "more than the 4 MiB") == NULL) print_message("%s\n", r.e.text);
    assert_true(r.e.text[0] != 0);
    media_source_close(&r.source);
    no_children();
}

/* A child does not outlive its parent. */
static void orphan(void **state)
{
    (void)state;
    static char text[8192];
    struct runner r = { .source = source_of(long_film()) };
    fflush(NULL);
    const pid_t parent = fork();
    if (parent == 0) {
        run_long(&r);
        _exit(0);
    }
    const pid_t pid = child_pid(parent, text, sizeof text);
    kill(parent, SIGKILL);
    assert_int_equal(waitpid(parent, NULL, 0), parent);
    char path[64];
    bool there = true;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    for (int i = 0; i < 200 && there; i++, usleep(10000)) {
        FILE *f = fopen(path, "r");
        text[0] = 0;
        if (f != NULL) {
            text[fread(text, 1, sizeof text - 1, f)] = 0;
            fclose(f);
        }
        there = text[0] != 0 && strstr(text, "State:\tZ") == NULL;
    }
    assert_false(there);
    media_source_close(&r.source);
}

/* What a server asks at its start. */
static void check(void **state)
{
    (void)state;
    struct err e = { .text = "" };
    assert_ok(extract_check(&NO_LIMITS, &e), e);
    extract_set_program("/bin/true");                      /* starts, and says nothing */
    const status st = extract_check(&NO_LIMITS, &e);
    assert_true(st == E_INTERNAL || st == E_IO);           /* it may be gone before it is told anything */
    assert_null(e.tag);
    extract_set_program("/proc/self/exe");
}

/* A spool that is not there or full; a program that is not there. */
static void no_room(void **state)
{
    (void)state;
    const struct extract_limits nowhere = { .dir = "/nonexistent-spool" };
    struct extract x;
    struct err e = { .text = "" };
    struct media_source s = data("rgb.png");
    assert_int_equal(extract_run(&s, 1, &(struct extract_options){ .kind = MEDIA_IMAGE }, &nowhere, &x, &e), E_IO);
    assert_null(strstr(e.text, "nonexistent"));
    const struct rlimit small = { 1000, RLIM_INFINITY };
    struct rlimit old;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    setrlimit(RLIMIT_FSIZE, &small);
    const status st = extract_run(&s, 1, &(struct extract_options){ .kind = MEDIA_IMAGE }, &NO_LIMITS, &x, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(st, E_IO);
    assert_string_equal(e.tag, "spool_full");
    extract_set_program("/nonexistent/program");
    assert_int_equal(extract_run(&s, 1, &(struct extract_options){ .kind = MEDIA_IMAGE }, &NO_LIMITS, &x, &e), E_IO);
    extract_set_program("/proc/self/exe");
    media_source_close(&s);
}

/* Sources: the digest of what they hold, nothing but regular files, no writing. */
static void sources(void **state)
{
    (void)state;
    struct err e = { .text = "" };
    struct media_source s = bytes("abc", 3, "abc");
    assert_string_equal(s.digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_int_equal(s.bytes, 3);
    assert_int_equal(write(s.fd, "x", 1), -1);
    media_source_close(&s);
    assert_int_equal(s.fd, -1);
    s = data("rgb.png");
    assert_int_equal(strlen(s.digest), 64);
    media_source_close(&s);
    assert_int_equal(media_source_of_fd(open("/dev/null", O_RDONLY), "null", NULL, &s, &e), E_INPUT);
    assert_int_equal(media_source_of_fd(open("/tmp", O_RDONLY), "tmp", NULL, &s, &e), E_INPUT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sources), cmocka_unit_test(probes), cmocka_unit_test(bits), cmocka_unit_test(choices),
        cmocka_unit_test(frame_list), cmocka_unit_test(bad), cmocka_unit_test(tokens), cmocka_unit_test(killed),
        cmocka_unit_test(stopped), cmocka_unit_test(too_slow), cmocka_unit_test(too_much_memory),
        cmocka_unit_test(no_room), cmocka_unit_test(orphan), cmocka_unit_test(check),
    };
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    char path[64];
    snprintf(path, sizeof path, "/tmp/omnidrop-extract-%d.mkv", (int)getpid());
    unlink(path);
    return rc;
}
