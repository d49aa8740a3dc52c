/* file: URLs (docs/http-api.md 2.6 rule 7, row B31 of 6.2): what lies beneath a root is read, all else gets one answer,
 * at once.
 * Method: a tree of files, links, pipes and folders in /tmp; a thread that swaps a folder for a link meanwhile. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "media/roots.h"
#include "tests/media/expected.h"

static char base[64], first[80], second[80];
static struct roots *roots;

static void make(const char *path, const char *text)
{
    char full[256];
    snprintf(full, sizeof full, "%s/%s", base, path);
    FILE *f = fopen(full, "w");
    if (f == NULL) fail_msg("%s cannot be written", full);
    fputs(text, f);
    fclose(f);
}

static void in_base(char *out, size_t cap, const char *path) { snprintf(out, cap, "%s/%s", base, path); }

static int setup(void **state)
{
    char path[256], to[256];
    struct err e = { .text = "" };
    (void)state;
    snprintf(base, sizeof base, "/tmp/omnidrop-roots-XXXXXX");
    assert_non_null(mkdtemp(base));
    snprintf(first, sizeof first, "%s/first", base);
    snprintf(second, sizeof second, "%s/second", base);
    assert_int_equal(mkdir(first, 0700), 0);
    assert_int_equal(mkdir(second, 0700), 0);
    in_base(path, sizeof path, "first/deep");
    assert_int_equal(mkdir(path, 0700), 0);
    in_base(path, sizeof path, "first-like");
    assert_int_equal(mkdir(path, 0700), 0);
    make("first/clip.mp4", "clip");
    make("first/deep/a b%.mp4", "odd");
    make("second/other.mp4", "other");
    make("outside.mp4", "secret");
    make("first-like/x.mp4", "secret");
    static const char *const link[][2] = { { "first/in.mp4", "deep/../clip.mp4" }, { "first/out.mp4", "../outside.mp4" },
                                           { "first/loop.mp4", "loop.mp4" }, { "first/up", ".." },
                                           { "first/self.mp4", "/proc/self/exe" }, { "first/fd.mp4", "/proc/self/fd/0" } };
    for (size_t i = 0; i < sizeof link / sizeof *link; i++) {
        in_base(path, sizeof path, link[i][0]);
        assert_int_equal(symlink(link[i][1], path), 0);
    }
    in_base(path, sizeof path, "first/absolute.mp4");
    in_base(to, sizeof to, "outside.mp4");
    assert_int_equal(symlink(to, path), 0);
    in_base(path, sizeof path, "first/pipe.mp4");
    assert_int_equal(mkfifo(path, 0600), 0);
    const char *const list[] = { first, second };
    assert_ok(roots_open(list, 2, &roots, &e), e);
    return 0;
}

static int teardown(void **state)
{
    char command[128];
    (void)state;
    roots_close(&roots);
    assert_null(roots);
    snprintf(command, sizeof command, "rm -rf %s", base);
    return system(command);
}

static void gives(const char *url, const char *text)
{
    struct media_source s;
    struct err e = { .text = "" };
    char buf[16];
    const status st = roots_source(roots, url, "part", NULL, &s, &e);
    if (st != OK) fail_msg("%s: %s", url, e.text);
    assert_int_equal(s.bytes, strlen(text));
    assert_int_equal(pread(s.fd, buf, sizeof buf, 0), strlen(text));
    assert_memory_equal(buf, text, strlen(text));
    assert_int_equal(strlen(s.digest), 64);
    assert_string_equal(s.name, "part");
    media_source_close(&s);
}

static void refuses(const char *url)
{
    struct media_source s;
    struct err e = { .text = "" };
    const double began = clock_s();
    const status st = roots_source(roots, url, "part", NULL, &s, &e);
    if (st != E_INPUT || e.tag == NULL || strcmp(e.tag, "media_path_not_allowed") != 0)
        fail_msg("%s: %s '%s'", url, err_name(st), e.text);
    assert_string_equal(e.text, "part: this file: URL names no file that may be read here");
    assert_true(clock_s() - began < 1);
}

static const char *url_of(const char *prefix, const char *path)
{
    static char url[512];
    snprintf(url, sizeof url, "%s%s", prefix, path);
    return url;
}

static void good(void **state)
{
    (void)state;
    char path[256];
    gives("file:clip.mp4", "clip");
    gives("FILE:clip.mp4", "clip");
    gives("file:./deep/../clip.mp4", "clip");
    gives("file:in.mp4", "clip");
    gives("file:deep/a%20b%25.mp4", "odd");
    in_base(path, sizeof path, "first/clip.mp4");
    gives(url_of("file:", path), "clip");
    gives(url_of("file://", path), "clip");
    gives(url_of("file://localhost", path), "clip");
    gives(url_of("file://LOCALHOST", path), "clip");
    in_base(path, sizeof path, "second/other.mp4");
    gives(url_of("file://", path), "other");
    in_base(path, sizeof path, "second//other.mp4");
    gives(url_of("file://", path), "other");
}

/* B31. */
static void bad(void **state)
{
    (void)state;
    static const char *const url[] = {
        "file:../outside.mp4", "file:deep/../../outside.mp4", "file:%2e%2e/outside.mp4", "file:%2e%2e%2foutside.mp4",
        "file:..%2foutside.mp4", "file:%252e%252e/outside.mp4", "file:out.mp4", "file:absolute.mp4", "file:up/outside.mp4",
        "file:up/first/clip.mp4", "file:self.mp4", "file:fd.mp4", "file:loop.mp4", "file:pipe.mp4", "file:deep", "file:.",
        "file:", "file://", "file:///", "file:missing.mp4", "file:clip.mp4/x", "file:///etc/passwd", "file:/etc/passwd",
        "file://evil.example/etc/passwd", "file:clip.mp4%00", "file:%00", "file:clip.mp4%", "file:clip%2", "file:clip%zz.mp4",
        "file:clip.mp4?x", "file:clip.mp4#x", "file:/proc/self/environ", "file:/dev/zero", "file:/dev/stdin",
    };
    static const char *const path[] = { "outside.mp4", "first-like/x.mp4", "first/../outside.mp4", "first", "second", "first/pipe.mp4" };
    for (size_t i = 0; i < sizeof url / sizeof *url; i++) refuses(url[i]);
    for (size_t i = 0; i < sizeof path / sizeof *path; i++) {
        char full[256];
        in_base(full, sizeof full, path[i]);
        refuses(url_of("file://", full));
    }
    char *longest = malloc(20000);
    memset(longest, 'a', 19999);
    memcpy(longest, "file:", 5);
    longest[19999] = 0;
    refuses(longest);
    free(longest);
}

static void no_roots(void **state)
{
    (void)state;
    struct err e = { .text = "" };
    struct roots *kept = roots, *none;
    const char *const missing[] = { "/there-is-no-such-folder" }, *const file[] = { "/etc/passwd" };
    roots = NULL;
    refuses("file:clip.mp4");
    assert_ok(roots_open(NULL, 0, &none, &e), e);
    roots = none;
    refuses("file:clip.mp4");
    refuses("file:///etc/passwd");
    roots_close(&none);
    roots = kept;
    assert_int_equal(roots_open(missing, 1, &none, &e), E_ARG);
    assert_int_equal(roots_open(file, 1, &none, &e), E_ARG);
}

/* With "/" as the root every regular file is beneath it, by links as well; /proc's own links are not followed. */
static void everything(void **state)
{
    (void)state;
    char path[256];
    struct err e = { .text = "" };
    struct roots *kept = roots;
    const char *const list[] = { "/" };
    assert_ok(roots_open(list, 1, &roots, &e), e);
    in_base(path, sizeof path, "first/absolute.mp4");
    gives(url_of("file://", path), "secret");
    gives(url_of("file:", path + 1), "secret");
    in_base(path, sizeof path, "first/clip.mp4");
    gives(url_of("file://", path), "clip");
    in_base(path, sizeof path, "first/pipe.mp4");
    refuses(url_of("file://", path));
    in_base(path, sizeof path, "first/self.mp4");
    refuses(url_of("file://", path));
    refuses("file:///proc/self/exe");
    roots_close(&roots);
    roots = kept;
}

/* The digest is that of the file now, not of what once stood there. */
static void changed(void **state)
{
    (void)state;
    struct media_source s;
    struct err e = { .text = "" };
    char was[MEDIA_DIGEST_TEXT];
    make("first/new.mp4", "abcd");
    for (int i = 0; i < 2; i++) {
        assert_ok(roots_source(roots, "file:new.mp4", "part", NULL, &s, &e), e);
        assert_string_equal(s.digest, "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589");
        memcpy(was, s.digest, sizeof was);
        media_source_close(&s);
    }
    usleep(20000);
    make("first/new.mp4", "efgh");
    assert_ok(roots_source(roots, "file:new.mp4", "part", NULL, &s, &e), e);
    assert_string_not_equal(s.digest, was);
    media_source_close(&s);
    atomic_bool stop = true;
    make("first/new.mp4", "ijkl");
    usleep(20000);
    make("first/newer.mp4", "ijkl");
    assert_int_equal(roots_source(roots, "file:newer.mp4", "part", &stop, &s, &e), E_CANCELLED);
}

static atomic_bool swap_stop;

/* first/turn is now a folder, now a link to the world above. */
static void *swap(void *arg)
{
    (void)arg;
    char turn[256], folder[256], link[256], spare[256];
    in_base(turn, sizeof turn, "first/turn");
    in_base(folder, sizeof folder, "folder");
    in_base(link, sizeof link, "link");
    in_base(spare, sizeof spare, "spare");
    while (!atomic_load(&swap_stop)) {
        renameat2(AT_FDCWD, turn, AT_FDCWD, link, RENAME_EXCHANGE);
        renameat2(AT_FDCWD, turn, AT_FDCWD, link, RENAME_EXCHANGE);
    }
    return NULL;
}

static void race(void **state)
{
    (void)state;
    char path[256];
    pthread_t t;
    int n_read = 0;
    in_base(path, sizeof path, "first/turn");
    assert_int_equal(mkdir(path, 0700), 0);
    make("first/turn/outside.mp4", "inside");
    in_base(path, sizeof path, "link");
    assert_int_equal(symlink("..", path), 0);              /* beneath first it leads to base */
    pthread_create(&t, NULL, swap, NULL);
    for (int i = 0; i < 3000; i++) {
        struct media_source s;
        struct err e = { .text = "" };
        char buf[16];
        const status st = roots_source(roots, "file:turn/outside.mp4", "part", NULL, &s, &e);
        if (st != OK) {
            assert_int_equal(st, E_INPUT);
            continue;
        }
        n_read++;
        const ssize_t n = pread(s.fd, buf, sizeof buf, 0);
        media_source_close(&s);
        if (n != 6 || memcmp(buf, "inside", 6) != 0) fail_msg("the file outside was read");
    }
    atomic_store(&swap_stop, true);
    pthread_join(t, NULL);
    assert_true(n_read > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good), cmocka_unit_test(bad), cmocka_unit_test(no_roots), cmocka_unit_test(everything), cmocka_unit_test(changed),
        cmocka_unit_test(race),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
