/* A part of a message to a source: every form of URL goes where it belongs and nowhere else.
 * Method: parts made by hand; folders and a store of files in /tmp; nothing is fetched (tests/media/test_fetch.c does). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "api/api.h"
#include "api/files.h"
#include "api/loader.h"

#define ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

static char base[64];
static struct service_loader loader;
static struct files *files;
static char file_id[FILES_ID];

static int setup(void **state)
{
    char path[128];
    struct err e = { .text = "" };
    (void)state;
    snprintf(base, sizeof base, "/tmp/omnidrop-loader-XXXXXX");
    assert_non_null(mkdtemp(base));
    snprintf(path, sizeof path, "%s/clip.wav", base);
    FILE *f = fopen(path, "w");
    fputs("abc", f);
    fclose(f);
    snprintf(path, sizeof path, "%s/files", base);
    if (files_open(&(struct files_options){ .dir = path }, &files, &e) != OK) fail_msg("%s", e.text);
    struct media_source s;
    struct file_info info;
    assert_int_equal(media_source_of_bytes("abc", 3, "x", NULL, &s, &e), OK);
    const struct file_add add = { .owner = "key one", .filename = "x.wav", .purpose = "user_data", .fd = s.fd };
    if (files_add(files, &add, &info, &e) != OK) fail_msg("%s", e.text);
    memcpy(file_id, info.id, sizeof file_id);
    media_source_close(&s);
    const char *const root[] = { base }, *const domain[] = { "media.test" }, *const net[] = { "10.0.0.0/8" };
    const struct loader_options o = { .root = root, .n_roots = 1, .domain = domain, .n_domains = 1, .net = net, .n_nets = 1,
                                      .max_bytes = 1000, .max_images = 3, .limits = { .wall_s = 9 },
                                      .files = loader_files, .files_self = files };
    if (api_loader_create(&o, &loader, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(loader.max_images, 3);
    assert_true(loader.limits.wall_s == 9);
    assert_string_equal(loader.limits.dir, "/tmp");
    return 0;
}

static int teardown(void **state)
{
    char command[128];
    (void)state;
    api_loader_destroy(&loader);
    files_close(&files);
    snprintf(command, sizeof command, "rm -rf %s", base);
    return system(command);
}

/* One part: NULL where a source with ABC came, else the tag. */
static const char *try_part(struct chat_part p, int frame, const char *key, const char *name)
{
    struct media_source s;
    struct err e = { .text = "" };
    struct api_owner owner;
    snprintf(owner.key, sizeof owner.key, "%s", key);
    snprintf(p.path, sizeof p.path, "messages[0].content[1]");
    const status st = loader.resolve(loader.self, key[0] ? &owner : NULL, &p, frame, NULL, &s, &e);
    if (st != OK) {
        if (strncmp(e.text, "messages[0].content[1]", 22) != 0 && strcmp(e.tag ? e.tag : "", "not_found") != 0)
            fail_msg("'%s' does not say where", e.text);
        assert_null(strstr(e.text, base));
        return e.tag ? e.tag : err_name(st);
    }
    assert_string_equal(s.digest, ABC);
    assert_int_equal(s.bytes, 3);
    assert_string_equal(s.name, name);
    media_source_close(&s);
    return NULL;
}

static const char *try_url(const char *url, const char *key)
{
    return try_part((struct chat_part){ .kind = PART_AUDIO, .url = (char *)url }, -1, key, "messages[0].content[1]");
}

static void forms(void **state)
{
    (void)state;
    char url[256];
    uint8_t bytes[2000] = "abc";
    assert_null(try_url("data:audio/wav;base64,YWJj", ""));
    assert_null(try_url("file:clip.wav", ""));
    snprintf(url, sizeof url, "file://%s/clip.wav", base);
    assert_null(try_url(url, ""));
    snprintf(url, sizeof url, "file-id:%s", file_id);
    assert_null(try_url(url, "key one"));
    assert_null(try_part((struct chat_part){ .data = bytes, .n_data = 3 }, -1, "", "messages[0].content[1]"));
    char *frames[] = { (char *)"file:missing.png", (char *)"file:clip.wav" };
    assert_null(try_part((struct chat_part){ .frame = frames, .n_frames = 2 }, 1, "", "messages[0].content[1][1]"));
    assert_string_equal(try_part((struct chat_part){ .data = bytes, .n_data = 1001 }, -1, "", ""), "media_too_large");
}

static void refused(void **state)
{
    (void)state;
    static const struct { const char *url, *tag; } bad[] = {
        { "http://elsewhere.test/", "media_url_not_allowed" }, { "https://media.test@elsewhere.test/", "media_url_not_allowed" },
        { "HTTP://169.254.169.254/", "media_url_not_allowed" }, { "ftp://media.test/x", "media_url_not_allowed" },
        { "pcm:0", "media_url_not_allowed" }, { "/etc/passwd", "media_url_not_allowed" }, { "clip.wav", "media_url_not_allowed" },
        { "", "media_url_not_allowed" }, { "FILE-ID:x", "media_url_not_allowed" }, { " file:clip.wav", "media_url_not_allowed" },
        { "file:///etc/passwd", "media_path_not_allowed" }, { "file:missing", "media_path_not_allowed" },
        { "data:audio/wav,abc", "invalid_value" }, { "data:;base64,@", "invalid_value" },
        { "file-id:file-00000000000000000000000000000000", "not_found" }, { "file-id:../clip.wav", "not_found" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *tag = try_url(bad[i].url, "key one");
        if (tag == NULL || strcmp(tag, bad[i].tag) != 0) fail_msg("%s: %s", bad[i].url, tag ? tag : "taken");
    }
    char url[256];
    snprintf(url, sizeof url, "file-id:%s", file_id);
    assert_string_equal(try_url(url, "key two"), "not_found");    /* another client's */
    assert_string_equal(try_url(url, ""), "not_found");
}

/* Without roots, domains and a store nothing but bytes is taken; what is no list is said at the start. */
static void bare(void **state)
{
    (void)state;
    struct service_loader kept = loader;
    struct err e = { .text = "" };
    struct media_source s;
    assert_int_equal(api_loader_create(&(struct loader_options){ .n_roots = 0 }, &loader, &e), OK);
    assert_null(try_url("data:audio/wav;base64,YWJj", ""));
    assert_string_equal(try_url("file:clip.wav", ""), "media_path_not_allowed");
    assert_string_equal(try_url("http://media.test/", ""), "media_url_not_allowed");
    assert_string_equal(try_url("file-id:file-0", ""), "not_found");
    assert_int_equal(api_loader_source(&loader, "data:;base64,YWJj", "", "file_url", NULL, &s, &e), OK);
    media_source_close(&s);
    assert_int_equal(api_loader_source(&loader, "gopher://x", "", "file_url", NULL, &s, &e), E_INPUT);
    assert_non_null(strstr(e.text, "file_url: "));
    api_loader_destroy(&loader);
    loader = kept;
    const char *const wrong[] = { "/no/such/folder" };
    struct service_loader none;
    assert_int_equal(api_loader_create(&(struct loader_options){ .root = wrong, .n_roots = 1 }, &none, &e), E_ARG);
    assert_int_equal(api_loader_create(&(struct loader_options){ .domain = wrong, .n_domains = 1 }, &none, &e), E_ARG);
    assert_int_equal(api_loader_create(&(struct loader_options){ .net = wrong, .n_nets = 1 }, &none, &e), E_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(forms), cmocka_unit_test(refused), cmocka_unit_test(bare) };
    return cmocka_run_group_tests(tests, setup, teardown);
}
