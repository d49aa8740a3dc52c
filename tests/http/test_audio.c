/* Goal: the routes of transcriptions on real sockets: forms and JSON in, replies and events out, departures cancel, a
 * drain lets finish what began. Method: the bundled model behind the whole application, on a free port; raw clients. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "api/audio.h"
#include "base/clock.h"
#include "http/audio.h"
#include "tests/media/child_hook.h"

#define DEMO "tests/data/omni-tiny-demo/"
#define WORDS "sleep green three nine jump sing bird cat"
#define BOUNDARY "XbX"

static struct engine *engine;
static struct service *service;
static struct api *api;
static struct api_audio *audio;
static struct http_server *server;
static struct app *app;
static struct http_audio routes;
static pthread_t loop;
static int exit_code;

/* ---- a client ------------------------------------------------------------------------------------------------ */

struct text { char *s; size_t n, cap; };

static void add(struct text *t, const void *bytes, size_t n)
{
    if (t->n + n + 1 > t->cap) t->s = realloc(t->s, t->cap = (t->n + n + 1) * 2);
    memcpy(t->s + t->n, bytes, n);
    t->s[t->n += n] = 0;
}

static void add_text(struct text *t, const char *s) { add(t, s, strlen(s)); }

static void add_field(struct text *t, const char *name, const char *value)
{
    char head[256];
    snprintf(head, sizeof head, "--" BOUNDARY "\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n", name);
    add_text(t, head);
    add_text(t, value);
    add_text(t, "\r\n");
}

/* The clip's samples `times` over, in one WAV. */
static void add_file(struct text *t, const char *path, int times)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char bytes[400000];
    const size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    char *data = memmem(bytes, n, "data", 4);
    assert_non_null(data);
    const size_t head = (size_t)(data + 8 - bytes);
    const uint32_t all = (uint32_t)((n - head) * (size_t)times);
    memcpy(data + 4, &all, 4);
    add_text(t, "--" BOUNDARY "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n"
                "Content-Type: audio/wav\r\n\r\n");
    add(t, bytes, head);
    for (int i = 0; i < times; i++) add(t, bytes + head, n - head);
    add_text(t, "\r\n");
}

static int dial(void)
{
    const struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(http_server_port(server)),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void put(int fd, const char *s, size_t n)
{
    for (size_t at = 0; at < n;) {
        const ssize_t got = write(fd, s + at, n - at);
        assert_true(got > 0);
        at += (size_t)got;
    }
}

static int post(const char *path, const char *type, const struct text *body)
{
    char head[512];
    const int fd = dial();
    const int n = snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: %s\r\n"
                                              "Content-Length: %zu\r\n\r\n", path, type, body->n);
    put(fd, head, (size_t)n);
    put(fd, body->s, body->n);
    return fd;
}

/* All that comes until the end, or until `until` has come. */
static struct text hear(int fd, const char *until)
{
    struct text t = { 0 };
    char buf[4096];
    add(&t, "", 0);
    while (until == NULL || strstr(t.s, until) == NULL) {
        const ssize_t got = read(fd, buf, sizeof buf);
        if (got <= 0) break;
        add(&t, buf, (size_t)got);
    }
    return t;
}

/* A form of the fields (name, value, ..., NULL) and n_files times the clip. */
static int send_form(const char *path, const char *const *field, int n_files, const char *clip, int times)
{
    struct text body = { 0 };
    for (; *field; field += 2) add_field(&body, field[0], field[1]);
    for (int i = 0; i < n_files; i++) add_file(&body, clip, times);
    add_text(&body, "--" BOUNDARY "--\r\n");
    const int fd = post(path, "multipart/form-data; boundary=" BOUNDARY, &body);
    free(body.s);
    return fd;
}

#define FORM(...) (const char *const[]){ __VA_ARGS__, NULL }
#define TRANSCRIPTIONS "/v1/audio/transcriptions"

static void expect(int fd, const char *status_line, const char *const *parts)
{
    struct text t = hear(fd, NULL);
    close(fd);
    if (strncmp(t.s, status_line, strlen(status_line)) != 0) fail_msg("%.600s", t.s);
    for (; *parts; parts++)
        if (strstr(t.s, *parts) == NULL) fail_msg("no %s in %.900s", *parts, t.s);
    free(t.s);
}

/* ---- tests --------------------------------------------------------------------------------------------------- */

static void replies(void **state)
{
    (void)state;
    expect(send_form(TRANSCRIPTIONS, FORM("model", "", "language", "en"), 1, DEMO "speech000.wav", 1), "HTTP/1.1 200",
           FORM("application/json", "\"text\":\"" WORDS "\"", "\"type\":\"duration\""));
    expect(send_form(TRANSCRIPTIONS, FORM("response_format", "srt"), 1, DEMO "speech000.wav", 1), "HTTP/1.1 200",
           FORM("application/x-subrip", "\r\n\r\n1\n00:00:0", " --> "));
    expect(send_form("/v1/audio/translations/", FORM("response_format", "text"), 1, DEMO "speech000.wav", 1), "HTTP/1.1 200",
           FORM("text/plain", "\r\n\r\n" WORDS "\n"));
}

static void refusals(void **state)
{
    (void)state;
    expect(send_form(TRANSCRIPTIONS, FORM("model", ""), 0, "", 1), "HTTP/1.1 400",
           FORM("missing_required_parameter", "\"param\":\"file\""));
    expect(send_form(TRANSCRIPTIONS, FORM("file", "RIFF"), 0, "", 1), "HTTP/1.1 400", FORM("invalid_type"));
    expect(send_form(TRANSCRIPTIONS, FORM("language", "klingon"), 1, DEMO "phrase000.wav", 1), "HTTP/1.1 400",
           FORM("invalid_language"));
    expect(send_form(TRANSCRIPTIONS, FORM("timestamp_granularities[]", "word"), 1, DEMO "phrase000.wav", 1), "HTTP/1.1 400",
           FORM("unsupported_timestamp_granularity"));
    expect(send_form(TRANSCRIPTIONS, FORM("response_format", "ass"), 1, DEMO "phrase000.wav", 1), "HTTP/1.1 400",
           FORM("invalid_value"));
    expect(send_form(TRANSCRIPTIONS, FORM("model", ""), 2, DEMO "phrase000.wav", 1), "HTTP/1.1 400", FORM("invalid_multipart"));
    struct text body = { 0 };
    add_text(&body, "{\"file_url\":\"http://127.0.0.1/x.wav\"}");
    expect(post(TRANSCRIPTIONS, "application/json", &body), "HTTP/1.1 400", FORM("unsupported_parameter", "file_url"));
    free(body.s);
}

static void streams(void **state)
{
    (void)state;
    const int fd = send_form(TRANSCRIPTIONS, FORM("stream", "true"), 1, DEMO "speech000.wav", 3);
    struct text t = hear(fd, NULL);
    close(fd);
    assert_non_null(strstr(t.s, "text/event-stream"));
    char all[2048] = "";
    int n_done = 0;
    for (char *p = t.s; (p = strstr(p, "data: {")) != NULL;) {
        json_error_t je;
        json_t *o = json_loads(p + 6, JSON_DISABLE_EOF_CHECK, &je);
        if (o == NULL) fail_msg("%s: %.200s", je.text, p);
        const char *delta = json_string_value(json_object_get(o, "delta"));
        if (delta) strcat(all, delta);
        else {
            assert_string_equal(json_string_value(json_object_get(o, "type")), "transcript.text.done");
            assert_string_equal(json_string_value(json_object_get(o, "text")), all);
            n_done++;
        }
        json_decref(o);
        p += 6;
    }
    assert_int_equal(n_done, 1);
    assert_true(strlen(all) > 3 * strlen(WORDS) - 10);
    assert_non_null(strstr(t.s, "data: [DONE]\n\n"));
    free(t.s);
}

static void departures(void **state)
{
    (void)state;
    for (int streaming = 0; streaming < 2; streaming++) {
        const int fd = send_form(TRANSCRIPTIONS, FORM("stream", streaming ? "true" : "false", "seed", streaming ? "3" : "4"), 1,
                                 DEMO "speech000.wav", 200);
        struct api_audio_counts c = { 0 };
        if (streaming) {
            struct text t = hear(fd, "transcript.text.delta");
            free(t.s);
        }
        for (int i = 0; i < 2000 && c.n_running == 0; i++, usleep(10000)) api_audio_read(audio, &c);
        assert_int_equal(c.n_running, 1);
        close(fd);
        const double from = clock_s();
        for (int i = 0; i < 1000 && c.n_running > 0; i++, usleep(10000)) api_audio_read(audio, &c);
        assert_int_equal(c.n_running, 0);
        assert_true(clock_s() - from < 5);
    }
}

/* The last: what has begun goes on to its end after the drain began; what comes then is refused. */
static void drain(void **state)
{
    (void)state;
    const int fd = send_form(TRANSCRIPTIONS, FORM("stream", "true", "seed", "7"), 1, DEMO "speech000.wav", 12);
    struct text first = hear(fd, "transcript.text.delta");
    http_post(server, (void (*)(void *))http_server_stop, server);
    struct text rest = hear(fd, NULL);
    close(fd);
    const bool whole = strstr(rest.s, "transcript.text.done") && strstr(rest.s, "[DONE]");
    if (!whole && strstr(first.s, "[DONE]") == NULL) fail_msg("%s", rest.s);
    free(first.s);
    free(rest.s);
    pthread_join(loop, NULL);
    assert_int_equal(exit_code, 0);
}

/* ---- all ------------------------------------------------------------------------------------------------------- */

static void *run(void *arg)
{
    exit_code = http_server_run(arg);
    return NULL;
}

static int set_up(void **state)
{
    struct err e;
    (void)state;
    const struct http_options ho = { .port_any = true, .spool_dir = "/tmp" };
    const struct engine_options eo = { .model_dir = "models/omni-tiny", .device = "cpu", .n_threads = 1 };
    const struct service_options so = { 0 };
    if (http_server_create(&ho, &server, &e) != OK) fail_msg("%s", e.text);
    const struct app_options po = { .server = server, .no_ui = true };
    if (app_create(&po, &app, &e) != OK) fail_msg("%s", e.text);
    routes.app = app;
    http_audio_routes(&routes);
    if (engine_open(&eo, &engine, &e) != OK || service_open(engine, &so, &service, &e) != OK) fail_msg("%s", e.text);
    const struct api_options ao = { .service = service };
    if (api_create(&ao, &api, &e) != OK) fail_msg("%s", e.text);
    const struct api_audio_options o = { .api = api, .observe = http_audio_observe, .observe_self = app_metrics(app) };
    if (api_audio_create(&o, &audio, &e) != OK) fail_msg("%s", e.text);
    pthread_create(&loop, NULL, run, server);
    expect(send_form(TRANSCRIPTIONS, FORM("model", ""), 1, DEMO "phrase000.wav", 1), "HTTP/1.1 503", FORM("not_ready"));
    app_engine(app, api);
    http_audio_start(&routes, audio);
    app_ready(app);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    api_audio_destroy(&audio);
    app_stop(app);
    app_destroy(&app);
    http_server_destroy(&server);
    api_destroy(&api);
    service_close(&service);
    engine_close(&engine);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(replies), cmocka_unit_test(refusals), cmocka_unit_test(streams),
                                        cmocka_unit_test(departures), cmocka_unit_test(drain) };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
