/* Memory does not grow with the length of a file: one hour needs what one minute does.
 * Method: films with sound made here, each read to its end by a process of its own, whose largest memory
 * counts. */
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "media/media.h"
#include "tests/media/expected.h"
#include "tests/media/film.h"

#if defined(__SANITIZE_ADDRESS__)
#define MEASURES 0                        /* freed memory is kept in quarantine: only the reading is tested */
#define LONG_S 120
#else
#define MEASURES 1
#define LONG_S 3600
#endif
/* An hour of samples is 230 MB, of these frames 33 MB. What may grow is the index that QuickTime files carry
 * and FFmpeg holds, some 2 MB an hour and reader; Matroska has none to speak of. */
#define SLACK_MKV_KB 1024
#define SLACK_MOV_KB 8192

struct outcome {
    uint64_t n_samples, n_slices;
    long peak_kb;
    char text[256];                       /* empty: all went well */
};

/* Everything in the file, in constant pieces; sound and film side by side. */
static status read_all(const char *path, struct outcome *out, struct err *e)
{
    struct media *m = NULL;
    struct media_audio *a = NULL;
    struct media_video *v = NULL;
    const struct media_video_options o = { .limits = { 3136, 9408 }, .n_threads = 1 };
    float *patches = NULL, samples[8000];
    size_t n = 0;
    status st;
    TRY(media_open(path, &m, e));
    TRY_GOTO(st, media_audio_open(m, NULL, &a, e), done);
    TRY_GOTO(st, media_video_open(m, &o, &v, e), done);
    const struct media_video_plan *p = media_video_get_plan(v);
    patches = malloc((size_t)p->grid_h * p->grid_w * 1176 * sizeof *patches);
    do {
        TRY_GOTO(st, media_audio_read(a, samples, 8000, &n, e), done);
        out->n_samples += n;
        if (out->n_slices == p->grid_t) continue;
        TRY_GOTO(st, media_video_next(v, patches, e), done);
        out->n_slices++;
    } while (n > 0 || out->n_slices < p->grid_t);
done:
    free(patches);
    media_audio_close(&a);
    media_video_close(&v);
    media_close(&m);
    return st;
}

/* A fresh process makes the film (or reads it) and reports. */
static struct outcome in_child(const struct film *film, bool make)
{
    struct outcome out = { .n_samples = 0 };
    int pipe_of[2];
    assert_int_equal(pipe(pipe_of), 0);
    fflush(NULL);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct err e = { .text = "" };
        struct rusage u;
        const status st = make ? film_write(film, &e) : read_all(film->path, &out, &e);
        getrusage(RUSAGE_SELF, &u);
        out.peak_kb = u.ru_maxrss;
        if (st != OK) snprintf(out.text, sizeof out.text, "%.250s", e.text);
        _exit(write(pipe_of[1], &out, sizeof out) == sizeof out ? 0 : 1);
    }
    close(pipe_of[1]);
    assert_int_equal(read(pipe_of[0], &out, sizeof out), sizeof out);
    close(pipe_of[0]);
    waitpid(pid, NULL, 0);
    if (out.text[0] != 0) fail_msg("%s", out.text);
    return out;
}

static void one_hour(const char *ending, long slack_kb)
{
    char path[2][64];
    struct outcome out[2];
    const int seconds[2] = { 60, LONG_S };
    for (int i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "/tmp/omnidrop-test-%d-%d.%s", (int)getpid(), i, ending);
        const struct film f = { .path = path[i], .codec = "mpeg4", .width = 64, .height = 48, .fps = 2,
                                .seconds = seconds[i], .sound_rate = 8000 };
        in_child(&f, true);
        out[i] = in_child(&f, false);
        unlink(path[i]);
        assert_int_equal(out[i].n_samples, (uint64_t)seconds[i] * 16000);
        assert_int_equal(out[i].n_slices, (seconds[i] * 2 < 768 ? seconds[i] * 2 : 768) / 2);
    }
    print_message("%s: %ld kB for %d s, %ld kB for %d s\n", ending, out[0].peak_kb, seconds[0],
                  out[1].peak_kb, seconds[1]);
    if (MEASURES && out[1].peak_kb > out[0].peak_kb + slack_kb)
        fail_msg("%s: one minute %ld kB, one hour %ld kB", ending, out[0].peak_kb, out[1].peak_kb);
}

static void matroska(void **state)
{
    (void)state;
    one_hour("mkv", SLACK_MKV_KB);
}

static void quicktime(void **state)
{
    (void)state;
    one_hour("mov", SLACK_MOV_KB);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(matroska), cmocka_unit_test(quicktime) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
