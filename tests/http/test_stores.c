/* Goal: /v1/files and /v1/batches over HTTP do what docs/http-api.md 1.8 and 1.9 say. Method: a real server on a free
 * port with stores in a temporary folder and a runner in place of the engine; libcurl is the client. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <curl/curl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "http/batches.h"
#include "http/files.h"

#define JSON "Content-Type: application/json"

static char dir[64];
static struct http_server *server;
static struct workers *workers;
static struct files *files;
static struct batches *batches;
static struct http_files http_files;
static struct http_batches http_batches;
static pthread_t loop;

/* A reply. */
static char body[1 << 16];
static size_t n_body;
static long code;
static char headers[4096];

static void run(void *self, const char *owner, const char *endpoint, const char *text, size_t n, const char *request_id,
                const atomic_bool *stop, int *status_code, json_t **reply)
{
    (void)self; (void)owner; (void)endpoint; (void)request_id; (void)stop;
    *status_code = memmem(text, n, "bad", 3) ? 400 : 200;
    *reply = json_pack("{s:s}", "object", "chat.completion");
}

static status probe(void *self, int fd, const char *name, struct err *e)
{
    char first[4] = "";
    (void)self;
    (void)name;
    return pread(fd, first, 4, 0) == 4 && memcmp(first, "RIFF", 4) == 0
               ? OK
               : err_set(e, E_INPUT, "neither sound nor picture");
}

static void *run_loop(void *arg)
{
    return (void *)(intptr_t)http_server_run(arg);
}

static void stop_loop(void *arg) { http_server_stop(arg); }

static int setup(void **state)
{
    (void)state;
    struct err e = { 0 };
    static char path[3][96];
    static const char *const keys[] = { "alpha", "beta" };
    strcpy(dir, "/tmp/test_stores_XXXXXX");
    if (mkdtemp(dir) == NULL) return -1;
    snprintf(path[0], 96, "%s/files", dir);
    snprintf(path[1], 96, "%s/batches", dir);
    const struct http_options o = { .port_any = true, .api_key = keys, .n_api_key = 2, .spool_dir = dir, .drain_s = 5 };
    const struct files_options fo = { .dir = path[0] };
    if (http_server_create(&o, &server, &e) != OK || workers_create(2, &workers, &e) != OK ||
        files_open(&fo, &files, &e) != OK) {
        print_message("%s\n", e.text);
        return -1;
    }
    const struct batches_options bo = { .dir = path[1], .files = files };
    if (batches_open(&bo, &batches, &e) != OK) return -1;
    batches_start(batches, run, NULL);
    const struct disk disk = { .server = server, .workers = workers };
    http_files = (struct http_files){ .disk = disk, .files = files, .probe = probe };
    http_batches = (struct http_batches){ .disk = disk, .batches = batches };
    http_files_routes(&http_files);
    http_batches_routes(&http_batches);
    return pthread_create(&loop, NULL, run_loop, server);
}

static int unlink_one(const char *path, const struct stat *s, int flag, struct FTW *f)
{
    (void)s; (void)flag; (void)f;
    return remove(path);
}

static int teardown(void **state)
{
    (void)state;
    http_post(server, stop_loop, server);
    pthread_join(loop, NULL);
    workers_destroy(&workers);
    batches_close(&batches);
    files_close(&files);
    http_server_destroy(&server);
    return nftw(dir, unlink_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- the client -------------------------------------------------------------------------------------------------- */

static size_t take(char *bytes, size_t size, size_t n, void *self)
{
    (void)self;
    (void)size;
    if (n_body + n >= sizeof body) return 0;
    memcpy(body + n_body, bytes, n);
    n_body += n;
    body[n_body] = 0;
    return n;
}

static size_t take_header(char *bytes, size_t size, size_t n, void *self)
{
    (void)self;
    (void)size;
    if (strlen(headers) + n < sizeof headers) strncat(headers, bytes, n);
    return n;
}

struct field { const char *name, *filename, *value; };

/* One request; fields: a form, ended by name NULL; text: a body of JSON. */
static void call(const char *method, const char *path, const char *key, const struct field *field, const char *text,
                 const char *range)
{
    CURL *c = curl_easy_init();
    char url[600], auth[96];
    struct curl_slist *list = NULL;
    curl_mime *mime = NULL;
    snprintf(url, sizeof url, "%s%s", http_server_address(server), path);
    snprintf(auth, sizeof auth, "Authorization: Bearer %s", key);
    list = curl_slist_append(list, auth);
    if (text) list = curl_slist_append(list, JSON);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    if (strcmp(method, "POST") == 0) {
        curl_easy_setopt(c, CURLOPT_POST, 1L);
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, text ? text : "");
    }
    if (field) {
        mime = curl_mime_init(c);
        for (; field->name; field++) {
            curl_mimepart *p = curl_mime_addpart(mime);
            curl_mime_name(p, field->name);
            curl_mime_data(p, field->value, CURL_ZERO_TERMINATED);
            if (field->filename) curl_mime_filename(p, field->filename);
        }
        curl_easy_setopt(c, CURLOPT_MIMEPOST, mime);
    }
    if (range) curl_easy_setopt(c, CURLOPT_RANGE, range);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, list);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 20L);
    n_body = 0;
    body[0] = headers[0] = 0;
    const CURLcode got = curl_easy_perform(c);
    if (got != CURLE_OK) fail_msg("%s %s: %s", method, path, curl_easy_strerror(got));
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &code);
    curl_slist_free_all(list);
    curl_mime_free(mime);
    curl_easy_cleanup(c);
}

static json_t *reply(long want)
{
    json_t *o = json_loadb(body, n_body, 0, NULL);
    if (code != want || o == NULL) fail_msg("status %ld, not %ld: %s", code, want, body);
    return o;
}

static const char *text_of(const json_t *o, const char *key) { return json_string_value(json_object_get(o, key)); }

static void refused(long want, const char *tag, const char *param)
{
    json_t *o = reply(want);
    const json_t *error = json_object_get(o, "error");
    if (strcmp(text_of(error, "code"), tag)) fail_msg("code %s, not %s: %s", text_of(error, "code"), tag, body);
    if (param) assert_string_equal(text_of(error, "param"), param);
    json_decref(o);
}

static void upload(const char *key, const char *purpose, const char *text, char id[FILES_ID])
{
    const struct field f[] = { { "purpose", NULL, purpose }, { "file", "../up/name.bin", text }, { 0 } };
    call("POST", "/v1/files", key, f, NULL, NULL);
    json_t *o = reply(200);
    assert_string_equal(text_of(o, "object"), "file");
    assert_string_equal(text_of(o, "purpose"), purpose);
    assert_string_equal(text_of(o, "filename"), "name.bin");
    assert_int_equal(json_integer_value(json_object_get(o, "bytes")), strlen(text));
    strcpy(id, text_of(o, "id"));
    json_decref(o);
}

static char *at(const char *form, const char *id)
{
    static char path[256];
    const char *star = strchr(form, '*');
    snprintf(path, sizeof path, "%.*s%s%s", (int)(star - form), form, id, star + 1);
    return path;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void test_files(void **state)
{
    (void)state;
    char id[FILES_ID], other[FILES_ID];
    upload("alpha", "user_data", "RIFF and so on", id);
    call("GET", at("/v1/files/*", id), "alpha", NULL, NULL, NULL);
    json_t *o = reply(200);
    assert_string_equal(text_of(o, "status"), "processed");
    json_decref(o);
    call("GET", at("/v1/files/*/content", id), "alpha", NULL, NULL, NULL);
    assert_int_equal(code, 200);
    assert_string_equal(body, "RIFF and so on");
    call("GET", at("/v1/files/*/content", id), "alpha", NULL, NULL, "5-7");
    assert_int_equal(code, 206);
    assert_string_equal(body, "and");
    assert_non_null(strcasestr(headers, "content-range: bytes 5-7/14"));
    call("GET", at("/v1/files/*", id), "beta", NULL, NULL, NULL);
    refused(404, "not_found", NULL);
    call("GET", at("/v1/files/*/content", id), "beta", NULL, NULL, NULL);
    refused(404, "not_found", NULL);
    call("DELETE", at("/v1/files/*", id), "beta", NULL, NULL, NULL);
    refused(404, "not_found", NULL);
    call("GET", "/v1/files/..%2f..%2fetc%2fpasswd/content", "alpha", NULL, NULL, NULL);
    refused(404, "not_found", NULL);
    call("GET", at("/v1/files/*", id), "nobody", NULL, NULL, NULL);
    refused(401, "invalid_api_key", NULL);
    upload("alpha", "vision", "not a medium", other);       /* taken, and said to be of no use */
    call("GET", at("/v1/files/*", other), "alpha", NULL, NULL, NULL);
    o = reply(200);
    assert_string_equal(text_of(o, "status"), "error");
    assert_string_equal(text_of(o, "status_details"), "neither sound nor picture");
    json_decref(o);
    call("GET", "/v1/files?limit=1&order=asc", "alpha", NULL, NULL, NULL);
    o = reply(200);
    assert_string_equal(text_of(o, "first_id"), id);
    assert_true(json_is_true(json_object_get(o, "has_more")));
    json_decref(o);
    char next[128];
    snprintf(next, sizeof next, "/v1/files?limit=1&order=asc&after=%s", id);
    call("GET", next, "alpha", NULL, NULL, NULL);
    o = reply(200);
    assert_string_equal(text_of(o, "last_id"), other);
    assert_true(json_is_false(json_object_get(o, "has_more")));
    json_decref(o);
    call("GET", "/v1/files?purpose=vision", "alpha", NULL, NULL, NULL);
    o = reply(200);
    assert_int_equal(json_array_size(json_object_get(o, "data")), 1);
    json_decref(o);
    call("DELETE", at("/v1/files/*", id), "alpha", NULL, NULL, NULL);
    o = reply(200);
    assert_true(json_is_true(json_object_get(o, "deleted")));
    assert_string_equal(text_of(o, "id"), id);
    json_decref(o);
    call("GET", at("/v1/files/*", id), "alpha", NULL, NULL, NULL);
    refused(404, "not_found", NULL);
}

static void test_bad_uploads(void **state)
{
    (void)state;
    static const struct { struct field f[5]; long code; const char *tag, *param;
    } CASE[] = {
        { { { "purpose", NULL, "batch" } }, 400, "missing_required_parameter", "file" },
        { { { "file", "a", "x" } }, 400, "missing_required_parameter", "purpose" },
        { { { "file", NULL, "x" }, { "purpose", NULL, "batch" } }, 400, "invalid_type", "file" },
        { { { "file", "a", "x" }, { "purpose", NULL, "fine-tune" } }, 400, "invalid_value", "purpose" },
        { { { "file", "a", "x" }, { "purpose", NULL, "batch_output" } }, 400, "invalid_value", "purpose" },
        { { { "file", "a", "x" }, { "file", "b", "y" }, { "purpose", NULL, "batch" } },
          400,
          "invalid_multipart",
          "file" },
        { { { "file", "a", "x" }, { "purpose", NULL, "batch" }, { "expires_after[seconds]", NULL, "7200" } },
          400,
          "missing_required_parameter",
          "expires_after[anchor]" },
        { { { "file", "a", "x" }, { "purpose", NULL, "batch" }, { "expires_after[anchor]", NULL, "created_at" } },
          400,
          "missing_required_parameter",
          "expires_after[seconds]" },
        { { { "file", "a", "x" },
            { "purpose", NULL, "batch" },
            { "expires_after[anchor]", NULL, "created_at" },
            { "expires_after[seconds]", NULL, "60" } },
          400,
          "invalid_value",
          "expires_after[seconds]" },
        { { { "file", "a", "x" },
            { "purpose", NULL, "batch" },
            { "expires_after[anchor]", NULL, "created_at" },
            { "expires_after[seconds]", NULL, "-1" } },
          400,
          "invalid_type",
          "expires_after[seconds]" },
    };
    for (size_t i = 0; i < sizeof CASE / sizeof *CASE; i++) {
        struct field f[6] = { { 0 } };
        memcpy(f, CASE[i].f, sizeof CASE[i].f);
        call("POST", "/v1/files", "alpha", f, NULL, NULL);
        refused(CASE[i].code, CASE[i].tag, CASE[i].param);
    }
    call("POST", "/v1/files", "alpha", NULL, "{}", NULL);
    refused(400, "missing_required_parameter", "file");
    static const char *const LIST[] = { "limit=0", "limit=10001", "limit=x", "limit=", "order=up", "after=file-x" };
    for (size_t i = 0; i < sizeof LIST / sizeof *LIST; i++) {
        char path[64];
        snprintf(path, sizeof path, "/v1/files?%s", LIST[i]);
        call("GET", path, "alpha", NULL, NULL, NULL);
        refused(400, "invalid_value", NULL);
    }
    call("PUT", "/v1/files", "alpha", NULL, NULL, NULL);
    refused(405, "method_not_allowed", NULL);
}

static void test_batches(void **state)
{
    (void)state;
    char input[FILES_ID], id[BATCH_ID], text[1024] = "", request[300];
    for (int i = 0; i < 5; i++)
        sprintf(
            text + strlen(text),
            "{\"custom_id\":\"c%d\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"x\":\"%s\"}}\n", i,
            i == 2 ? "bad" : "good");
    upload("alpha", "batch", text, input);
    snprintf(request, sizeof request,
             "{\"input_file_id\":\"%s\",\"endpoint\":\"/v1/chat/completions\",\"completion_window\":\"24h\"}", input);
    call("POST", "/v1/batches", "beta", NULL, request, NULL);           /* another's file */
    refused(404, "not_found", "input_file_id");
    call("POST", "/v1/batches", "alpha", NULL, "{\"input_file_id\":7}", NULL);
    refused(400, "invalid_type", "input_file_id");
    call("POST", "/v1/batches", "alpha", NULL, "{", NULL);
    refused(400, "invalid_json", NULL);
    call("POST", "/v1/batches", "alpha", NULL, request, NULL);
    json_t *o = reply(200);
    strcpy(id, text_of(o, "id"));
    for (int i = 0; i < 1000 && strcmp(text_of(o, "status"), "completed"); i++) {
        json_decref(o);
        usleep(10000);
        call("GET", at("/v1/batches/*", id), "alpha", NULL, NULL, NULL);
        o = reply(200);
    }
    assert_string_equal(text_of(o, "status"), "completed");
    const json_t *counts = json_object_get(o, "request_counts");
    assert_int_equal(json_integer_value(json_object_get(counts, "completed")), 4);
    assert_int_equal(json_integer_value(json_object_get(counts, "failed")), 1);
    call("GET", at("/v1/files/*/content", text_of(o, "output_file_id")), "alpha", NULL, NULL, NULL);
    assert_int_equal(code, 200);
    int lines = 0;
    for (size_t i = 0; i < n_body; i++) lines += body[i] == '\n';
    assert_int_equal(lines, 4);
    call("GET", at("/v1/files/*/content", text_of(o, "error_file_id")), "alpha", NULL, NULL, NULL);
    assert_non_null(strstr(body, "\"c2\""));
    call("GET", at("/v1/files/*/content", text_of(o, "error_file_id")), "beta", NULL, NULL, NULL);
    refused(404, "not_found", NULL);
    json_decref(o);
    call("POST", at("/v1/batches/*/cancel", id), "alpha", NULL, NULL, NULL);
    refused(400, "invalid_value", NULL);
    call("POST", at("/v1/batches/*/cancel", id), "beta", NULL, "{}", NULL);
    refused(404, "not_found", NULL);
    call("GET", at("/v1/batches/*", id), "beta", NULL, NULL, NULL);
    refused(404, "not_found", NULL);
    call("GET", "/v1/batches?limit=1", "alpha", NULL, NULL, NULL);
    o = reply(200);
    assert_string_equal(text_of(o, "first_id"), id);
    json_decref(o);
    call("GET", "/v1/batches?limit=101", "alpha", NULL, NULL, NULL);
    refused(400, "invalid_value", "limit");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_files), cmocka_unit_test(test_bad_uploads),
                                        cmocka_unit_test(test_batches) };
    curl_global_init(CURL_GLOBAL_DEFAULT);
    const int bad = cmocka_run_group_tests_name("stores", tests, setup, teardown);
    curl_global_cleanup();
    return bad;
}
