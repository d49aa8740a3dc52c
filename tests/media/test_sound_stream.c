/* Sound through a child's pipe: the samples that this process would read, in order, whatever the size of the pieces;
 * a slow reader costs no time limit; failures on the way are told; nothing is left.
 * Method: files both ways; a film of some minutes for the pipe's back-pressure; the child killed in the middle. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "media/sound_stream.h"
#include "tests/media/child_hook.h"
#include "tests/media/expected.h"
#include "tests/media/film.h"

static const struct extract_limits NO_LIMITS = { .dir = NULL };
static char long_path[64];

static struct media_source source_of(const char *path)
{
    struct media_source s;
    struct err e = { .text = "" };
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail_msg("%s is not there", path);
    assert_ok(media_source_of_fd(fd, "sound", NULL, &s, &e), e);
    return s;
}

/* Ten minutes of 8 kHz sound beside a small film. */
static struct media_source long_source(void)
{
    struct err e = { .text = "" };
    if (long_path[0] == 0) {
        snprintf(long_path, sizeof long_path, "/tmp/omnidrop-sound-%d.mkv", (int)getpid());
        const struct film film = { .path = long_path, .codec = "mpeg4", .width = 32, .height = 32, .fps = 1,
                                   .seconds = 600, .sound_rate = 8000 };
        assert_ok(film_write(&film, &e), e);
    }
    return source_of(long_path);
}

static void same(const char *path, double start, double end, bool keep_time, size_t piece)
{
    struct media_source s = source_of(path);
    struct sound_stream *x = NULL;
    struct media *m;
    struct err e = { .text = "" };
    const struct media_audio_options ao = { .start_s = start, .end_s = end, .keep_time = keep_time };
    float *want, *have;
    size_t n, got, at = 0;
    assert_ok(media_open_fd(s.fd, s.bytes, "sound", &m, &e), e);
    assert_ok(media_audio_load(m, &ao, 0, &want, &n, &e), e);
    have = malloc((n + piece) * sizeof *have);
    assert_ok(sound_stream_open(&s, start, end, keep_time, &NO_LIMITS, &x, &e), e);
    assert_memory_equal(sound_stream_info(x), media_info(m), sizeof(struct media_info));
    do {
        assert_ok(sound_stream_read(x, have + at, piece, &got, &e), e);
        assert_true(at + got <= n);
        at += got;
    } while (got == piece);
    assert_int_equal(at, n);
    assert_memory_equal(want, have, n * sizeof *have);
    assert_ok(sound_stream_read(x, have, piece, &got, &e), e);
    assert_int_equal(got, 0);
    const char *warning = media_warning(m);
    if (warning == NULL) assert_null(sound_stream_warning(x));
    else assert_string_equal(sound_stream_warning(x), warning);
    sound_stream_close(&x);
    assert_null(x);
    media_close(&m);
    media_source_close(&s);
    free(want);
    free(have);
}

static void bits(void **state)
{
    (void)state;
    same(DATA "film.mp4", 0, 0, false, 4096);
    same(DATA "sound.mp3", 0, 0, false, 1);
    same(DATA "stereo.wav", 0.25, 0.75, false, 777);
    same(DATA "late.mkv", 0, 0, true, 16000);
    same(DATA "surround.m4a", 0, 0, true, 100000);
    char cut[64];                                 /* a file that ends too early gives its warning */
    static char bytes[100000];
    snprintf(cut, sizeof cut, "/tmp/omnidrop-sound-cut-%d.wav", (int)getpid());
    FILE *from = fopen(DATA "stereo.wav", "rb"), *to = fopen(cut, "wb");
    assert_int_equal(fread(bytes, 1, sizeof bytes, from), sizeof bytes);
    assert_int_equal(fwrite(bytes, 1, sizeof bytes, to), sizeof bytes);
    fclose(from);
    fclose(to);
    same(cut, 0, 0, false, 1000);
    unlink(cut);
}

/* Errors of opening and of the first samples. */
static void refused(void **state)
{
    (void)state;
    static const struct { const char *name, *tag; } bad[] = {
        { "bad_text.mp4", "unsupported_media" }, { "bad_no_moov.mp4", "media_decode_failed" },
        { "three.mp4", "media_decode_failed" }, { "bad_encrypted.mp4", "media_decode_failed" },
        { "bad_no_samples.wav", "media_decode_failed" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char path[256];
        float buf[100];
        size_t n;
        struct err e = { .text = "" };
        struct sound_stream *x = NULL;
        snprintf(path, sizeof path, DATA "%s", bad[i].name);
        struct media_source s = source_of(path);
        status st = sound_stream_open(&s, 0, 0, false, &NO_LIMITS, &x, &e);
        if (st == OK) st = sound_stream_read(x, buf, 100, &n, &e);
        if (st != E_INPUT || e.tag == NULL || strcmp(e.tag, bad[i].tag) != 0)
            fail_msg("%s: %s '%s'", path, err_name(st), e.text);
        sound_stream_close(&x);
        media_source_close(&s);
    }
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

/* Behind a full pipe the child waits: no time counts, and all samples come. */
static void slow_reader(void **state)
{
    (void)state;
    static float buf[16000];
    const struct extract_limits quick = { .wall_s = 1.5 };
    struct media_source s = long_source();
    struct sound_stream *x;
    struct err e = { .text = "" };
    size_t n, all = 0;
    assert_ok(sound_stream_open(&s, 0, 0, false, &quick, &x, &e), e);
    sleep(2);                                     /* longer than the limit */
    do {
        assert_ok(sound_stream_read(x, buf, 16000, &n, &e), e);
        all += n;
    } while (n > 0);
    assert_in_range(all, 599 * 16000, 601 * 16000);
    sound_stream_close(&x);
    media_source_close(&s);
}

/* A child of `of` that lives; 0: there is none. */
static pid_t child_of(pid_t of)
{
    DIR *d = opendir("/proc");
    pid_t found = 0;
    for (const struct dirent *f; !found && (f = readdir(d)) != NULL; ) {
        char path[300], line[512] = "", state;
        int pid, parent;
        snprintf(path, sizeof path, "/proc/%s/stat", f->d_name);
        FILE *file = atoi(f->d_name) > 0 ? fopen(path, "r") : NULL;
        if (file == NULL) continue;
        if (fgets(line, sizeof line, file) && sscanf(line, "%d (%*[^)]) %c %d", &pid, &state, &parent) == 3 && parent == of)
            found = state != 'Z' ? pid : 0;
        fclose(file);
    }
    closedir(d);
    return found;
}

static bool lives(pid_t pid)
{
    char path[64], line[512] = "", state = 'Z';
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (file == NULL) return false;
    if (fgets(line, sizeof line, file) == NULL || sscanf(line, "%*d (%*[^)]) %c", &state) != 1) state = 'Z';
    fclose(file);
    return state != 'Z';
}

/* Half a file is not a whole one: the reader learns that its child was killed. */
static void killed(void **state)
{
    (void)state;
    static float buf[16000];
    struct media_source s = long_source();
    struct sound_stream *x;
    struct err e = { .text = "" };
    size_t n, all = 0;
    status st;
    assert_ok(sound_stream_open(&s, 0, 0, false, &NO_LIMITS, &x, &e), e);
    assert_ok(sound_stream_read(x, buf, 16000, &n, &e), e);
    const pid_t pid = child_of(getpid());
    assert_true(pid > 0);
    kill(pid, SIGKILL);
    do {
        st = sound_stream_read(x, buf, 16000, &n, &e);
        all += n;
    } while (st == OK && n == 16000);
    assert_true(all < 599 * 16000);
    assert_int_equal(st, E_INPUT);
    assert_string_equal(e.tag, "media_decode_failed");
    assert_non_null(strstr(e.text, "signal 9"));
    sound_stream_close(&x);
    media_source_close(&s);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

/* The child of a process that died goes as well. */
static void orphan(void **state)
{
    (void)state;
    struct media_source s = long_source();
    pid_t pid = 0;
    fflush(NULL);
    const pid_t parent = fork();
    if (parent == 0) {
        struct sound_stream *x;
        if (sound_stream_open(&s, 0, 0, false, &NO_LIMITS, &x, NULL) == OK) pause();
        _exit(0);
    }
    for (int i = 0; i < 500 && pid == 0; i++, usleep(10000)) pid = child_of(parent);
    assert_true(pid > 0);
    usleep(300000);                               /* the pipe is full */
    kill(parent, SIGKILL);
    assert_int_equal(waitpid(parent, NULL, 0), parent);
    for (int i = 0; i < 200 && lives(pid); i++) usleep(10000);
    assert_false(lives(pid));
    media_source_close(&s);
}

/* Given up in the middle, and stopped from elsewhere. */
static void ended(void **state)
{
    (void)state;
    float buf[16];
    size_t n;
    static atomic_bool stop;
    const struct extract_limits limits = { .stop = &stop };
    struct media_source s = long_source();
    struct sound_stream *x;
    struct err e = { .text = "" };
    assert_ok(sound_stream_open(&s, 0, 0, false, &limits, &x, &e), e);
    assert_ok(sound_stream_read(x, buf, 16, &n, &e), e);
    sound_stream_close(&x);
    assert_ok(sound_stream_open(&s, 0, 0, false, &limits, &x, &e), e);
    assert_ok(sound_stream_read(x, buf, 16, &n, &e), e);
    atomic_store(&stop, true);
    assert_int_equal(sound_stream_read(x, buf, 16, &n, &e), E_CANCELLED);
    sound_stream_close(&x);
    media_source_close(&s);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits), cmocka_unit_test(refused), cmocka_unit_test(slow_reader), cmocka_unit_test(killed),
        cmocka_unit_test(ended), cmocka_unit_test(orphan),
    };
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    if (long_path[0] != 0) unlink(long_path);
    return rc;
}
