/* Goal: the store of files keeps what it took, for whom, and nothing half written; lists end. Method: a store in a
 * temporary folder with a clock of its own; it is closed and opened again, files of a crash are laid beside, a folder
 * that is full or held by another is tried, threads add and delete at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/files.h"

static char dir[64];
static struct files *store;
static int64_t clock_now = 1700000000;
static struct err e;

static int64_t test_now(void) { return clock_now; }

static void open_store(uint64_t quota)
{
    const struct files_options o = { .dir = dir, .quota = quota, .now = test_now };
    if (files_open(&o, &store, &e) != OK) fail_msg("%s", e.text);
}

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/test_files_XXXXXX");
    if (mkdtemp(dir) == NULL) return -1;
    open_store(0);
    return 0;
}

static int count_names(void)
{
    DIR *d = opendir(dir);
    int n = 0;
    for (const struct dirent *t; (t = readdir(d)) != NULL;) n += t->d_name[0] != '.' && strcmp(t->d_name, "lock") != 0;
    closedir(d);
    return n;
}

static int teardown(void **state)
{
    (void)state;
    files_close(&store);
    DIR *d = opendir(dir);
    for (const struct dirent *t; (t = readdir(d)) != NULL;) unlinkat(dirfd(d), t->d_name, 0);
    closedir(d);
    return rmdir(dir);
}

static int unnamed(const char *text)
{
    const int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    return fd;
}

static struct file_info add(const char *owner, const char *purpose, const char *text)
{
    struct file_info info;
    const int fd = unnamed(text);
    const struct file_add a = { .owner = owner, .filename = "a.bin", .purpose = purpose, .fd = fd };
    if (files_add(store, &a, &info, &e) != OK) fail_msg("%s", e.text);
    close(fd);
    return info;
}

static void holds(const char *owner, const char *id, const char *text)
{
    struct file_info info;
    char got[256] = "";
    int fd;
    if (files_open_data(store, owner, id, &info, &fd, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(read(fd, got, sizeof got - 1), strlen(text));
    assert_string_equal(got, text);
    assert_int_equal(info.bytes, strlen(text));
    close(fd);
}

static void not_there(const char *owner, const char *id)
{
    struct file_info info;
    assert_int_equal(files_get(store, owner, id, &info, &e), E_ARG);
    assert_string_equal(e.tag, "not_found");
}

static void test_keeps(void **state)
{
    (void)state;
    const struct file_info a = add("k1", "user_data", "hello"), b = add("", "batch", "{}");
    holds("k1", a.id, "hello");
    holds("", b.id, "{}");
    /* SHA-256 of "hello" */
    assert_string_equal(a.digest, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert_int_equal(a.expires_at, 0);
    assert_int_equal(b.expires_at, clock_now + 30 * 86400);
    not_there("k2", a.id);
    not_there("", a.id);
    not_there("k1", "../../etc/passwd");
    files_close(&store);
    open_store(0);
    holds("k1", a.id, "hello");
    not_there("k2", a.id);
    struct file_info again;
    assert_int_equal(files_get(store, "k1", a.id, &again, &e), OK);
    assert_memory_equal(&again, &a, sizeof a);
}

static void test_names_and_json(void **state)
{
    (void)state;
    static const struct { const char *name, *kept; } CASE[] = {
        { "../../etc/passwd", "passwd" }, { "C:\\x\\clip.mp4", "clip.mp4" }, { "a\nb\x01", "a_b_" }, { "", "file" },
        { "dir/", "file" }, { "\xff\xfe", "\xef\xbf\xbd\xef\xbf\xbd" }, { "\xe4\xbd\xa0.mp4", "\xe4\xbd\xa0.mp4" } };
    for (size_t i = 0; i < sizeof CASE / sizeof *CASE; i++) {
        struct file_info info;
        const int fd = unnamed("x");
        const struct file_add a = { .owner = "", .filename = CASE[i].name, .purpose = "vision", .fd = fd,
                                    .error = i == 0 ? "no audio/video in it" : NULL };
        assert_int_equal(files_add(store, &a, &info, &e), OK);
        assert_string_equal(info.filename, CASE[i].kept);
        json_t *o = file_json(&info);
        assert_non_null(o);
        assert_string_equal(json_string_value(json_object_get(o, "status")), i == 0 ? "error" : "processed");
        if (i == 0)
            assert_string_equal(json_string_value(json_object_get(o, "status_details")), "no audio/video in it");
        assert_true(json_is_null(json_object_get(o, "expires_at")));
        json_decref(o);
        close(fd);
    }
    char longest[600];
    memset(longest, 'a', sizeof longest);
    longest[599] = 0;
    struct file_info info;
    const int fd = unnamed("x");
    const struct file_add a = { .owner = "", .filename = longest, .purpose = "vision", .fd = fd };
    assert_int_equal(files_add(store, &a, &info, &e), OK);
    assert_int_equal(strlen(info.filename), 255);
    close(fd);
}

static void test_crash(void **state)
{
    (void)state;
    const struct file_info a = add("", "user_data", "whole"), b = add("", "user_data", "cut off");
    char path[160];
    files_close(&store);
    /* What a crash may leave: half-written parts, bytes without a description, a description without its bytes, and
     * bytes that are fewer than described. */
    static const char *const left[] = { "file-00000000000000000000000000000001.part",
                                        "file-00000000000000000000000000000002",
                                        "file-00000000000000000000000000000003.json",
                                        "file-00000000000000000000000000000004.json.part" };
    for (size_t i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, left[i]);
        close(open(path, O_CREAT | O_WRONLY, 0600));
    }
    snprintf(path, sizeof path, "%s/%s", dir, b.id);
    assert_int_equal(truncate(path, 2), 0);
    open_store(0);
    assert_int_equal(count_names(), 2);
    holds("", a.id, "whole");
    not_there("", b.id);
    uint64_t n, bytes;
    files_count(store, &n, &bytes);
    assert_int_equal(n, 1);
    assert_int_equal(bytes, 5);
}

static void test_delete_while_open(void **state)
{
    (void)state;
    const struct file_info a = add("", "user_data", "still here");
    struct file_info info;
    char got[16] = "";
    int fd;
    assert_int_equal(files_open_data(store, "", a.id, &info, &fd, &e), OK);
    assert_int_equal(files_delete(store, "other", a.id, &e), E_ARG);
    assert_int_equal(files_delete(store, "", a.id, &e), OK);
    assert_int_equal(files_delete(store, "", a.id, &e), E_ARG);
    assert_string_equal(e.tag, "not_found");
    assert_int_equal(read(fd, got, 15), 10);
    assert_string_equal(got, "still here");
    close(fd);
    not_there("", a.id);
    assert_int_equal(count_names(), 0);
}

static void test_hold(void **state)
{
    (void)state;
    const struct file_info a = add("", "batch", "line");
    struct file_info info;
    assert_int_equal(files_hold(store, "", a.id, &info, &e), OK);
    assert_int_equal(files_hold(store, "", a.id, &info, &e), OK);
    files_release(store, a.id);
    assert_int_equal(files_delete(store, "", a.id, &e), E_BUSY);
    assert_string_equal(e.tag, "file_in_use");
    clock_now += 31 * 86400;                /* past its expiry, but held */
    files_sweep(store);
    holds("", a.id, "line");
    files_release(store, a.id);
    not_there("", a.id);                    /* before any sweep */
    files_sweep(store);
    assert_int_equal(count_names(), 0);
}

static void test_quota(void **state)
{
    (void)state;
    files_close(&store);
    open_store(10);
    const struct file_info a = add("", "user_data", "123456");
    struct file_info info;
    const int fd = unnamed("12345");
    struct file_add f = { .owner = "", .filename = "b", .purpose = "user_data", .fd = fd };
    assert_int_equal(files_add(store, &f, &info, &e), E_FULL);
    assert_string_equal(e.tag, "request_too_large");
    assert_non_null(strstr(e.text, "10"));
    f.own = true;                           /* a batch's own output is never lost to the quota */
    assert_int_equal(files_add(store, &f, &info, &e), OK);
    assert_int_equal(files_delete(store, "", info.id, &e), OK);
    assert_int_equal(files_delete(store, "", a.id, &e), OK);
    f.own = false;
    assert_int_equal(files_add(store, &f, &info, &e), OK);
    close(fd);
}

static void test_given_id(void **state)
{
    (void)state;
    char id[FILES_ID];
    struct file_info one, two;
    const int fd = unnamed("out");
    files_new_id(id);
    const struct file_add a = {
        .id = id, .owner = "k", .filename = "o", .purpose = "batch_output", .fd = fd, .own = true
    };
    assert_int_equal(files_add(store, &a, &one, &e), OK);
    assert_int_equal(files_add(store, &a, &two, &e), OK);
    assert_memory_equal(&one, &two, sizeof one);
    assert_int_equal(count_names(), 2);
    close(fd);
}

/* A named file of another folder is copied unless it is said to be ours. */
static void test_named(void **state)
{
    (void)state;
    char path[96];
    snprintf(path, sizeof path, "%s-named", dir);
    const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, "text", 4), 4);
    for (int link = 0; link < 2; link++) {
        struct file_info info;
        struct stat s;
        const struct file_add a = { .owner = "", .filename = "n", .purpose = "vision", .fd = fd, .may_link = link };
        assert_int_equal(files_add(store, &a, &info, &e), OK);
        holds("", info.id, "text");
        assert_int_equal(fstat(fd, &s), 0);
        assert_int_equal(s.st_nlink, 1 + link);
    }
    close(fd);
    unlink(path);
}

/* Every page by `limit`: all ids once, has_more false at the end only. */
static void pages(const char *owner, const char *purpose, bool ascending, uint32_t limit, const char *const *want,
                  size_t n)
{
    char after[FILES_ID] = "";
    size_t at = 0;
    for (bool more = true; more;) {
        const struct files_query q = { .after = after[0] ? after : NULL, .limit = limit, .ascending = ascending,
                                       .purpose = purpose };
        json_t *list;
        if (files_list(store, owner, &q, &list, &e) != OK) fail_msg("%s", e.text);
        const json_t *data = json_object_get(list, "data");
        const size_t k = json_array_size(data);
        more = json_is_true(json_object_get(list, "has_more"));
        assert_true(k <= limit && (!more || k == limit) && at + k <= n && more == (at + k < n));
        for (size_t i = 0; i < k; i++)
            assert_string_equal(json_string_value(json_object_get(json_array_get(data, i), "id")),
                                want[ascending ? at + i : n - 1 - at - i]);
        at += k;
        if (k) snprintf(after, sizeof after, "%s", json_string_value(json_object_get(list, "last_id")));
        else
            assert_true(json_is_null(json_object_get(list, "last_id")) &&
                        json_is_null(json_object_get(list, "first_id")));
        json_decref(list);
    }
    assert_int_equal(at, n);
}

static void test_lists(void **state)
{
    (void)state;
    struct file_info f[7];
    const char *all[7], *vision[3];
    for (int i = 0; i < 7; i++) {
        f[i] = add("k", i % 3 == 0 ? "vision" : "user_data", "x");
        all[i] = f[i].id;
        if (i % 3 == 0) vision[i / 3] = f[i].id;
        if (i == 3) clock_now++;
        add("other", "vision", "y");
    }
    for (int opened = 0; opened < 2; opened++) {
        for (uint32_t limit = 1; limit <= 8; limit++)
            for (int ascending = 0; ascending < 2; ascending++) {
                pages("k", NULL, ascending, limit, all, 7);
                pages("k", "vision", ascending, limit, vision, 3);
                pages("nobody", NULL, ascending, limit, NULL, 0);
            }
        files_close(&store);
        open_store(0);
    }
    /* A client that deletes what it lists goes on from a file that is gone. */
    assert_int_equal(files_delete(store, "k", f[3].id, &e), OK);
    json_t *list;
    const struct files_query q = { .after = f[3].id, .limit = 1, .ascending = true };
    assert_int_equal(files_list(store, "k", &q, &list, &e), OK);
    assert_string_equal(json_string_value(json_object_get(list, "first_id")), f[4].id);
    json_decref(list);
    assert_int_equal(files_list(store, "other", &q, &list, &e), E_ARG);       /* not theirs */
    const struct files_query bad = { .after = "file-1" };
    assert_int_equal(files_list(store, "k", &bad, &list, &e), E_ARG);
    assert_string_equal(e.param, "after");
}

static void test_one_process(void **state)
{
    (void)state;
    struct files *second;
    const struct files_options o = { .dir = dir };
    assert_int_equal(files_open(&o, &second, &e), E_ARG);
    assert_null(second);
}

static void *churn(void *arg)
{
    struct err mine;
    for (int i = 0; i < 40; i++) {
        struct file_info info;
        const int fd = unnamed("some bytes");
        const struct file_add a = { .owner = arg, .filename = "t", .purpose = "user_data", .fd = fd };
        if (files_add(store, &a, &info, &mine) != OK) abort();
        close(fd);
        json_t *list;
        const struct files_query q = { .limit = 3 };
        if (files_list(store, arg, &q, &list, &mine) != OK) abort();
        json_decref(list);
        if (i % 4 && files_delete(store, arg, info.id, &mine) != OK) abort();
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t t[3];
    char *owner[3] = { "a", "b", "c" };
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&t[i], NULL, churn, owner[i]), 0);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    uint64_t n, bytes;
    files_count(store, &n, &bytes);
    assert_int_equal(n, 30);
    assert_int_equal(bytes, 300);
    assert_int_equal(count_names(), 60);
    files_close(&store);
    open_store(0);
    files_count(store, &n, &bytes);
    assert_int_equal(n, 30);
}

static void test_checks(void **state)
{
    (void)state;
    assert_int_equal(files_check_purpose("batch", &e), OK);
    assert_int_equal(files_check_purpose("batch_output", &e), E_ARG);
    assert_string_equal(e.param, "purpose");
    assert_int_equal(files_check_expiry(3600, "p", &e), OK);
    assert_int_equal(files_check_expiry(3599, "p", &e), E_ARG);
    assert_int_equal(files_check_expiry(2592001, "p", &e), E_ARG);
    assert_string_equal(e.param, "p");
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_keeps), CASE(test_names_and_json), CASE(test_crash), CASE(test_delete_while_open), CASE(test_hold),
        CASE(test_quota), CASE(test_given_id), CASE(test_named), CASE(test_lists), CASE(test_one_process),
        CASE(test_threads), CASE(test_checks),
    };
    return cmocka_run_group_tests_name("files", tests, NULL, NULL);
}
