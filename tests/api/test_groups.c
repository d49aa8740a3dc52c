/* Goal: a job that another group's leader runs is to its client what a local one is: the same chunks, replies and errors, in
 * order; cancels cross; files come in pieces; a group that dies ends its own jobs only, and the next ones go elsewhere.
 * Method: three leaders in one process, joined by queues between threads, each with a service by script. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api/audio_inside.h"
#include "api/groups.h"
#include "api/questions.h"
#include "api/remote.h"
#include "base/clock.h"
#include "base/mem.h"
#include "engine/transcribe.h"
#include "tests/api/fake_service.h"

#define N 3

/* ---- a link between threads ------------------------------------------------------------------------------------ */

struct letter { struct letter *next; uint32_t from; uint8_t *bytes; size_t n; };

static struct post {
    pthread_mutex_t lock;
    pthread_cond_t came;
    struct letter *first[N], **last[N];
    bool dead[N];

} net = { .lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER };

struct end { uint32_t rank; };
static struct end ends[N] = { { 0 }, { 1 }, { 2 } };

static status post(void *self, uint32_t to, const void *bytes, size_t n, struct err *e)
{
    const struct end *me = self;
    status st = OK;
    pthread_mutex_lock(&net.lock);
    if (net.dead[to] || net.dead[me->rank]) {
        st = err_set(e, E_DEVICE, "rank %u is gone", to);
    } else {
        struct letter *l = mem_must(1, sizeof *l);
        *l = (struct letter){ .from = me->rank, .bytes = mem_must(n + 1, 1), .n = n };
        memcpy(l->bytes, bytes, n);
        *net.last[to] = l;
        net.last[to] = &l->next;
        pthread_cond_broadcast(&net.came);
    }
    pthread_mutex_unlock(&net.lock);
    return st;
}

static status take(void *self, double wait_s, uint32_t *from, uint8_t **bytes, size_t *n, bool *got, struct err *e)
{
    const uint32_t me = ((struct end *)self)->rank;
    struct timespec t;
    (void)e;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += (long)(wait_s * 1e9);
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_mutex_lock(&net.lock);
    if (net.first[me] == NULL) pthread_cond_timedwait(&net.came, &net.lock, &t);
    struct letter *l = net.first[me];
    *got = l != NULL;
    if (l) {
        net.first[me] = l->next;
        if (l->next == NULL) net.last[me] = &net.first[me];
        *from = l->from;
        *bytes = l->bytes;
        *n = l->n;
    }
    pthread_mutex_unlock(&net.lock);
    free(l);
    return OK;
}

static const struct remote_link links[N] = { { &ends[0], 0, N, post, take }, { &ends[1], 1, N, post, take },
                                             { &ends[2], 2, N, post, take } };

/* ---- three groups ----------------------------------------------------------------------------------------------- */

static struct fake_script script[N];
static struct service *service[N];
static struct api *api[N];
static struct remote *leader[N];
static struct groups *groups;
static uint32_t n_lines, n_metrics;
static double metric_sum;
static int file_fd = -1;

static const struct service_gauges idle = { .pages_total = 100, .pages_free = 100 };

static void on_log(void *self, const char *line)
{
    (void)self, (void)line;
    __atomic_add_fetch(&n_lines, 1, __ATOMIC_SEQ_CST);
}

static void on_metric(void *self, uint32_t which, const char *const *label, uint32_t n, double v)
{
    (void)self;
    assert_int_equal(which, 7);
    assert_int_equal(n, 2);
    assert_string_equal(label[0], "a");
    assert_string_equal(label[1], "b");
    metric_sum += v;
    __atomic_add_fetch(&n_metrics, 1, __ATOMIC_SEQ_CST);
}

/* The store of rank 0: one file, of one owner. */
static status store(void *self, const char *key, const char *id, const char *name, struct media_source *out, struct err *e)
{
    (void)self;
    if (strcmp(key, "owner") == 0 && strcmp(id, "file-1") == 0) {
        *out = (struct media_source){ .fd = dup(file_fd), .bytes = (uint64_t)lseek(file_fd, 0, SEEK_END) };
        snprintf(out->digest, sizeof out->digest, "d1");
        return OK;
    }
    err_set(e, E_ARG, "%s: no such file", name);
    return err_tag(e, "not_found", name);
}

static const struct fake_step hello[] = { { .kind = SERVICE_ADMITTED },
                                          { .kind = SERVICE_PROGRESS },
                                          { .kind = SERVICE_TEXT, .text = "Hel", .id = { 5 } },
                                          { .kind = SERVICE_TEXT, .text = "lo \xc3\xa9\x01", .id = { 6, 7 } },
                                          { .kind = SERVICE_CHOICE, .finish = ENG_STOP } };

static void say_hello(struct fake_script *s) { *s = (struct fake_script){ .step = hello, .n_step = 5 }; }

/* Gauges cross every 200 ms: until rank 0 has heard that group k has so many free pages, unless it is gone. */
static void heard(uint32_t k, uint32_t pages_free)
{
    const struct timespec t = { 0, 5000000 };
    struct groups_view v[N];
    for (int i = 0; i < 4000; i++) {
        groups_list(groups, v, N);
        if (v[k].state == GROUPS_GONE || v[k].gauges.pages_free == pages_free) return;
        nanosleep(&t, NULL);
    }
    fail_msg("group %u is not heard", k);
}

static void set_pages(uint32_t k, uint32_t pages_free)
{
    struct service_gauges g = idle;
    g.pages_free = pages_free;
    g.n_decoding = pages_free == idle.pages_free ? 0 : 1;
    fake_gauges(service[k], &g);
}

/* Wants group i to be the emptiest. */
static void prefer(uint32_t i)
{
    for (uint32_t k = 0; k < N; k++) set_pages(k, k == i ? 100 : 20);
    for (uint32_t k = 0; k < N; k++) heard(k, k == i ? 100 : 20);
}

static int open_all(void **state)
{
    struct err e = { 0 };
    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        net.last[i] = &net.first[i];
        net.dead[i] = false;
        say_hello(&script[i]);
        service[i] = fake_open(fake_engine(), &script[i]);
        fake_gauges(service[i], &idle);
    }
    const struct groups_options o = { .link = &links[0], .files = store, .metric = on_metric, .log = on_log };
    n_lines = n_metrics = 0;
    metric_sum = 0;
    if (groups_create(&o, &groups, &e) != OK) fail_msg("%s", e.text);
    for (uint32_t i = 0; i < N; i++) {
        const struct api_options ao = { .service = service[i], .calls = &fake_calls, .groups = i == 0 ? groups : NULL };
        const struct remote_options ro = { .link = &links[i], .window = 4096 };
        if (i > 0 && remote_create(&ro, &leader[i], &e) != OK) fail_msg("%s", e.text);
        if (api_create(&ao, &api[i], &e) != OK) fail_msg("%s", e.text);
        if (i > 0) remote_start(leader[i], api[i], NULL);
    }
    groups_local(groups, api[0]);
    if (groups_wait(groups, NULL, &e) != OK) fail_msg("%s", e.text);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    groups_destroy(&groups);
    for (uint32_t i = 1; i < N; i++) remote_stop(leader[i]);
    for (uint32_t i = 0; i < N; i++) {
        fake_close(&service[i]);
        remote_destroy(&leader[i]);
        api_destroy(&api[i]);
    }
    for (uint32_t i = 0; i < N; i++)           /* nobody posts any more */
        while (net.first[i]) {
            struct letter *l = net.first[i];
            net.first[i] = l->next;
            free(l->bytes);
            free(l);
        }
    return 0;
}

/* ---- a client ---------------------------------------------------------------------------------------------------- */

struct client {
    pthread_mutex_t lock;
    pthread_cond_t over;
    json_t *chunks, *reply;
    uint32_t n_admitted, n_progress, n_done;
    size_t bytes;
    struct err error;
};

static void client_open(struct client *c)
{
    *c = (struct client){ .lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER, .chunks = json_array() };
}

static void client_close(struct client *c)
{
    json_decref(c->chunks);
    json_decref(c->reply);
}

static void on_chunk(void *self, json_t *chunk)
{
    struct client *c = self;
    pthread_mutex_lock(&c->lock);
    assert_int_equal(c->n_done, 0);
    json_array_append_new(c->chunks, chunk);
    pthread_mutex_unlock(&c->lock);
}

static void on_progress(void *self, const char *phase, double done)
{
    assert_string_equal(phase, "prefill");
    assert_true(done == 0.5);
    __atomic_add_fetch(&((struct client *)self)->n_progress, 1, __ATOMIC_SEQ_CST);
}

static void on_admitted(void *self) { __atomic_add_fetch(&((struct client *)self)->n_admitted, 1, __ATOMIC_SEQ_CST); }

static void on_done(void *self, json_t *reply, const struct err *error)
{
    struct client *c = self;
    pthread_mutex_lock(&c->lock);
    c->reply = reply;
    if (error) c->error = *error;
    c->n_done++;
    pthread_cond_signal(&c->over);
    pthread_mutex_unlock(&c->lock);
}

static uint64_t begin_as(struct client *c, const char *body, const struct api_caller *who)
{
    const struct api_sink sink = { c, on_chunk, on_progress, on_admitted, on_done };
    struct api_job *j = NULL;
    struct err e = { 0 };
    uint64_t id = 0;
    client_open(c);
    if (api_chat_parse(api[0], body, strlen(body), who, &j, &e) != OK) fail_msg("%s", e.text);
    if (api_job_start(&j, &sink, &id, &e) != OK) fail_msg("%s", e.text);
    return id;
}

static const struct api_caller anybody = { .request_id = "r1", .key = "owner" };
static uint64_t begin(struct client *c, const char *body) { return begin_as(c, body, &anybody); }

/* Within ten seconds: nothing may hang. */
static void wait_done(struct client *c)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 10;
    pthread_mutex_lock(&c->lock);
    while (c->n_done == 0)
        if (pthread_cond_timedwait(&c->over, &c->lock, &t) != 0) fail_msg("a job has not ended within 10 s");
    pthread_mutex_unlock(&c->lock);
}

static void until(uint32_t *n, uint32_t want)
{
    const struct timespec t = { 0, 5000000 };
    for (int i = 0; i < 2000 && __atomic_load_n(n, __ATOMIC_SEQ_CST) < want; i++) nanosleep(&t, NULL);
    assert_true(__atomic_load_n(n, __ATOMIC_SEQ_CST) >= want);
}

static uint32_t submitted(uint32_t i) { return fake_seen(service[i]).n_submitted; }

#define ASK(more) "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]" more "}"
#define FILM(url) "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"video_url\",\"video_url\":{\"url\":\"" url "\"}}]}]}"

static void timeless(json_t *o)
{
    size_t i;
    json_t *v;
    if (json_is_array(o)) json_array_foreach(o, i, v) timeless(v);
    else json_object_del(o, "created");
}

/* ---- what must be true --------------------------------------------------------------------------------------------- */

static void a_reply_is_the_same(void **state)
{
    (void)state;
    json_t *first = NULL;
    for (uint32_t i = 0; i < N; i++) {
        struct client c;
        prefer(i);
        const uint32_t before = submitted(i);
        const uint64_t id = begin(&c, ASK(",\"logprobs\":true,\"top_logprobs\":2"));
        wait_done(&c);
        assert_int_equal(submitted(i), before + 1);
        assert_int_equal(id & GROUPS_REMOTE ? 1 : 0, i > 0);
        assert_int_equal(c.error.code, OK);
        assert_int_equal(c.n_admitted, 1);
        assert_int_equal(c.n_progress, 1);
        timeless(c.reply);
        if (first && !json_equal(first, c.reply)) fail_msg("%s\n%s", json_dumps(first, 0), json_dumps(c.reply, 0));
        if (first == NULL) first = json_incref(c.reply);
        client_close(&c);
    }
    json_decref(first);
}

static void a_stream_is_the_same(void **state)
{
    (void)state;
    json_t *first = NULL;
    for (uint32_t i = 0; i < N; i++) {
        struct client c;
        prefer(i);
        begin(&c, ASK(",\"stream\":true,\"stream_options\":{\"include_usage\":true}"));
        wait_done(&c);
        assert_null(c.reply);
        assert_true(json_array_size(c.chunks) >= 4);
        timeless(c.chunks);
        if (first && !json_equal(first, c.chunks)) fail_msg("%s\n%s", json_dumps(first, 0), json_dumps(c.chunks, 0));
        if (first == NULL) first = json_incref(c.chunks);
        client_close(&c);
    }
    json_decref(first);
}

/* A chunk larger than the window, and many more bytes than it: all arrive in order. */
static void a_window_bounds_and_loses_nothing(void **state)
{
    static struct fake_step step[1200];
    static char big[20000];
    struct client c;
    size_t i;
    json_t *v;
    (void)state;
    memset(big, 'x', sizeof big - 1);
    step[0] = (struct fake_step){ .kind = SERVICE_ADMITTED };
    for (int k = 1; k < 1200; k++) step[k] = (struct fake_step){ .kind = SERVICE_TEXT, .text = k == 600 ? big : "word " };
    step[1199] = (struct fake_step){ .kind = SERVICE_CHOICE, .finish = ENG_LENGTH };
    prefer(1);
    script[1] = (struct fake_script){ .step = step, .n_step = 1200 };
    begin(&c, ASK(",\"stream\":true"));
    wait_done(&c);
    json_array_foreach(c.chunks, i, v) {
        const json_t *choice = json_array_get(json_object_get(v, "choices"), 0);
        c.bytes += json_string_length(json_object_get(json_object_get(choice, "delta"), "content"));
    }
    assert_int_equal(c.bytes, 1197 * 5 + sizeof big - 1);
    client_close(&c);
}

static void an_error_is_the_same(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        struct client c;
        script[i] = (struct fake_script){ .step = hello, .n_step = 3, .fail = E_TIMEOUT, .tag = "queue_timeout" };
        prefer(i);
        begin(&c, ASK(""));
        wait_done(&c);
        assert_int_equal(c.error.code, E_TIMEOUT);
        assert_string_equal(c.error.tag, "queue_timeout");
        assert_string_equal(c.error.text, "the script says so");
        assert_int_equal(api_error_of(&c.error).status, 503);
        client_close(&c);
    }
}

/* What a leader refuses at once comes through the sink. */
static void a_refusal_crosses(void **state)
{
    struct client c;
    (void)state;
    script[2].refuse = E_BUSY;
    script[2].tag = "queue_full";
    prefer(2);
    begin(&c, ASK(""));
    wait_done(&c);
    assert_int_equal(c.error.code, E_BUSY);
    assert_string_equal(c.error.tag, "queue_full");
    client_close(&c);
}

static void a_cancel_crosses(void **state)
{
    struct client c;
    (void)state;
    prefer(1);
    script[1].hold = true;
    const uint64_t id = begin(&c, ASK(",\"stream\":true"));
    until(&c.n_admitted, 1);
    char phase[12];
    api_job_phase(api[0], id, phase);
    assert_true(phase[0]);
    api_job_cancel(api[0], id);
    wait_done(&c);
    assert_int_equal(c.error.code, E_CANCELLED);
    assert_int_equal(fake_seen(service[1]).n_cancelled, 1);
    api_job_cancel(api[0], id);
    api_job_phase(api[0], id, phase);
    assert_string_equal(phase, "");
    client_close(&c);
}

/* api_run, as batches do. */
static void a_call_that_waits(void **state)
{
    const char *body = ASK("");
    int code = 0;
    json_t *reply;
    (void)state;
    prefer(2);
    api_run(api[0], "/v1/chat/completions", body, strlen(body), &anybody, NULL, &code, &reply);
    assert_int_equal(code, 200);
    assert_int_equal(submitted(2), 1);
    json_decref(reply);
}

static void the_emptiest_group_and_the_same_media(void **state)
{
    struct client c[8];
    (void)state;
    prefer(2);
    begin(&c[0], FILM("https://example.org/a.mp4"));
    wait_done(&c[0]);
    assert_int_equal(submitted(2), 1);
    prefer(1);                                          /* the film is known to group 2 still */
    begin(&c[1], FILM("https://example.org/a.mp4"));
    wait_done(&c[1]);
    assert_int_equal(submitted(2), 2);
    begin(&c[2], FILM("https://example.org/b.mp4"));
    wait_done(&c[2]);
    assert_int_equal(submitted(1), 1);
    set_pages(2, 0);
    heard(2, 0);
    begin(&c[3], FILM("https://example.org/a.mp4"));    /* a full group has it in vain */
    wait_done(&c[3]);
    assert_int_equal(submitted(2), 2);
    for (int i = 0; i < 4; i++) client_close(&c[i]);
}

/* Of equal groups each gets its part before any gauge can have changed: what was sent counts. */
static void a_burst_is_spread(void **state)
{
    struct client c[9];
    (void)state;
    for (uint32_t i = 0; i < N; i++) script[i].hold = true;
    const struct api_caller line = { .key = "owner", .batch = true };
    uint64_t id[9];
    for (int i = 0; i < 9; i++) id[i] = begin_as(&c[i], ASK(""), &line);
    for (int i = 0; i < 9; i++) until(&c[i].n_admitted, 1);
    for (uint32_t i = 0; i < N; i++) assert_int_equal(submitted(i), 3);
    struct groups_view v[N];
    assert_int_equal(groups_list(groups, v, N), N);
    for (uint32_t i = 0; i < N; i++) assert_int_equal(v[i].n_jobs, 3);
    for (int i = 0; i < 9; i++) api_job_cancel(api[0], id[i]);
    for (int i = 0; i < 9; i++) {
        wait_done(&c[i]);
        client_close(&c[i]);
    }
    groups_list(groups, v, N);
    for (uint32_t i = 1; i < N; i++) assert_int_equal(v[i].n_jobs, 0);
}

static void a_lost_group(void **state)
{
    struct client c[3];
    struct err why;
    (void)state;
    script[1].hold = script[2].hold = true;
    prefer(1);
    begin(&c[0], ASK(",\"stream\":true"));
    until(&c[0].n_admitted, 1);
    prefer(2);
    const uint64_t other = begin(&c[1], ASK(""));
    until(&c[1].n_admitted, 1);
    pthread_mutex_lock(&net.lock);
    net.dead[1] = true;
    pthread_mutex_unlock(&net.lock);
    const double from = clock_s();
    err_set(&why, E_DEVICE, "rank 3 (pid 71 on host b): killed");
    groups_lost(groups, 1, &why);
    groups_lost(groups, 1, &why);
    wait_done(&c[0]);
    assert_true(clock_s() - from < 2);
    assert_int_equal(n_lines, 1);
    assert_string_equal(c[0].error.tag, "group_lost");
    assert_non_null(strstr(c[0].error.text, "rank 3 (pid 71 on host b)"));
    assert_int_equal(api_error_of(&c[0].error).status, 503);
    assert_int_equal(c[1].n_done, 0);                   /* the others go on */
    struct groups_view v[N];
    groups_list(groups, v, N);
    assert_int_equal(v[1].state, GROUPS_GONE);
    assert_non_null(strstr(v[1].why, "rank 3"));
    assert_int_equal(v[2].state, GROUPS_READY);
    prefer(1);                                          /* its gauges would be the best */
    begin(&c[2], ASK(""));
    api_job_cancel(api[0], other);
    wait_done(&c[1]);
    assert_int_equal(c[1].error.code, E_CANCELLED);
    assert_int_equal(submitted(1), 1);
    script[2].hold = false;
    if (submitted(2) == 2) assert_int_equal(c[2].n_done, 0);
    groups_lost(groups, 2, &why);                       /* the last other one */
    wait_done(&c[2]);
    struct client alone;
    begin(&alone, ASK(""));
    wait_done(&alone);
    assert_int_equal(alone.error.code, OK);
    client_close(&alone);
    for (int i = 0; i < 3; i++) client_close(&c[i]);
}

static void files_come_in_pieces(void **state)
{
    const size_t n = 2 * REMOTE_PIECE + 12345;
    char *bytes = mem_must(n, 1), *got = mem_must(n, 1);
    struct media_source s;
    struct err e = { 0 };
    (void)state;
    for (size_t i = 0; i < n; i++) bytes[i] = (char)(i * 2654435761u >> 13);
    file_fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    assert_true(file_fd >= 0);
    assert_int_equal(write(file_fd, bytes, n), n);
    if (remote_files(leader[2], "owner", "file-1", "file", &s, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(s.bytes, n);
    assert_string_equal(s.digest, "d1");
    assert_int_equal(pread(s.fd, got, n, 0), n);
    assert_memory_equal(bytes, got, n);
    media_source_close(&s);
    assert_int_equal(remote_files(leader[1], "stranger", "file-1", "it", &s, &e), E_ARG);
    assert_string_equal(e.tag, "not_found");
    assert_int_equal(ftruncate(file_fd, 0), 0);         /* an empty one is a file too */
    assert_int_equal(remote_files(leader[1], "owner", "file-1", "it", &s, &e), OK);
    assert_int_equal(s.bytes, 0);
    media_source_close(&s);
    close(file_fd);
    free(bytes);
    free(got);
}

static void counters_cross(void **state)
{
    const char *label[] = { "a", "b" };
    (void)state;
    for (int i = 0; i < 10; i++) remote_metric(leader[1], 7, label, 2, 0.5);
    until(&n_metrics, 10);
    assert_true(metric_sum == 5);
}

static void all_drain_and_stop(void **state)
{
    struct err e;
    (void)state;
    groups_drain(groups);
    groups_stop(groups);
    for (uint32_t i = 1; i < N; i++) {
        assert_int_equal(remote_wait(leader[i], &e), OK);
        assert_int_equal(fake_seen(service[i]).n_drained, 1);
    }
}

/* Messages that nobody wrote: cut at every length, they hurt nobody. */
static void cut_messages(void **state)
{
    struct wire w;
    struct err e;
    (void)state;
    for (uint32_t what = 0; what < 20; what++) {
        remote_begin(&w, (enum remote_message)what, 77);
        wire_u64(&w, UINT64_MAX);
        wire_text(&w, "abc");
        for (size_t n = 0; n <= w.n && what != REMOTE_STOP && what != REMOTE_READY; n++) {
            links[1].post(links[1].self, 0, w.bytes, n, &e);
            links[0].post(links[0].self, 1, w.bytes, n, &e);
        }
        free(w.bytes);
    }
    struct client c;
    prefer(1);
    begin(&c, ASK(""));
    wait_done(&c);
    client_close(&c);
}

/* A leader that ends with jobs at work tells of each. */
static void a_leader_that_stops(void **state)
{
    struct client c;
    (void)state;
    prefer(1);
    script[1].hold = true;
    begin(&c, ASK(",\"stream\":true"));
    until(&c.n_admitted, 1);
    remote_stop(leader[1]);
    wait_done(&c);
    assert_int_equal(c.error.code, E_CANCELLED);
    client_close(&c);
}

static void a_group_that_cannot_load(void **state)
{
    struct err e = { 0 }, why;
    struct groups *g;
    struct remote *r;
    (void)state;
    for (uint32_t i = 0; i < N; i++) net.last[i] = &net.first[i];
    const struct groups_options o = { .link = &links[0] };
    const struct remote_options ro = { .link = &links[2] };
    assert_int_equal(groups_create(&o, &g, &e), OK);
    assert_int_equal(remote_create(&ro, &r, &e), OK);
    err_set(&why, E_MODEL, "there is no such folder");
    remote_failed(r, &why);
    assert_int_equal(groups_wait(g, NULL, &e), E_MODEL);
    assert_string_equal(e.text, "group 2: there is no such folder");
    err_set(&why, E_DEVICE, "killed");
    groups_lost(g, 1, &why);
    groups_lost(g, 2, &why);
    assert_int_equal(groups_wait(g, NULL, &e), OK);     /* both gone: nobody to wait for */
    remote_destroy(&r);
    groups_destroy(&g);
}

/* ---- transcriptions: windows over groups -------------------------------------------------------------------------- */

/* What a service was asked, in one string. */
struct looked { char text[4096]; };

static void look(void *self, const struct service_request *rq)
{
    struct looked *out = self;
    FILE *f = fmemopen(out->text, sizeof out->text, "w");
    double sum = 0;
    for (size_t i = 0; i < rq->o.pcm->n; i++) sum += (double)rq->o.pcm->samples[i] * (double)(i % 7);
    for (size_t m = 0; m < rq->chat.n_messages; m++)
        for (size_t i = 0; i < rq->chat.message[m].n_parts; i++) {
            const struct chat_part *p = &rq->chat.message[m].part[i];
            fprintf(f, "[%zu %d %.*s]", m, p->kind, (int)p->n_text, p->text ? p->text : p->url ? p->url : "");
        }
    for (uint32_t i = 0; i < rq->o.sample.n_logit_bias; i++)
        fprintf(f, " %d:%g", rq->o.sample.logit_bias[i].id, (double)rq->o.sample.logit_bias[i].bias);
    fprintf(f, " %zu %.17g %u %g %g %llu %d %s %d %s %g", rq->o.pcm->n, sum, rq->o.max_tokens, (double)rq->o.sample.temperature,
            (double)rq->o.sample.top_p, (unsigned long long)rq->o.sample.seed, rq->priority, rq->salt, rq->render != NULL,
            prune_params_name(rq->o.policy), rq->o.policy->value[0]);
    fclose(f);
}

struct listener { pthread_mutex_t lock; pthread_cond_t over; uint32_t n; struct answer a; };
#define LISTENER { .lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER }

static void hear(void *self, struct answer *a)
{
    struct listener *l = self;
    pthread_mutex_lock(&l->lock);
    l->a = *a;
    *a = (struct answer){ 0 };
    l->n++;
    pthread_cond_signal(&l->over);
    pthread_mutex_unlock(&l->lock);
}

static void wait_answer(struct listener *l)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 10;
    pthread_mutex_lock(&l->lock);
    while (l->n == 0)
        if (pthread_cond_timedwait(&l->over, &l->lock, &t) != 0) fail_msg("no answer within 10 s");
    pthread_mutex_unlock(&l->lock);
}

static const struct question *a_question(void)
{
    static const struct sample_bias bias[] = { { 5, 100 }, { 6, -1.5f } };
    static struct policy_params policy;
    static struct question q;
    static float x[5000];
    struct err e;
    for (int i = 0; i < 5000; i++) x[i] = (float)(i * 37 % 101) / 128;
    if (prune_params_init(&policy, "uniform", 4, &e) != OK || prune_params_set(&policy, "retention", 0.25, &e) != OK ||
        prune_params_finish(&policy, &e) != OK)
        fail_msg("%s", e.text);
    q = (struct question){ .x = x, .n = 5000, .context = "names: Zo\xc3\xab", .previous = "before", .instruction = "Write.",
                           .begun = "Eng", .bias = bias, .n_bias = 2, .max_tokens = 77, .temperature = 0.2, .top_p = 0.5f,
                           .seed = UINT64_MAX - 3, .policy = &policy, .priority = -2, .salt = "pepper", .keep_tokens = true };
    return &q;
}

/* Whichever group answers: the same question, the same answer. */
static void a_question_crosses(void **state)
{
    struct looked asked[N] = { 0 };
    struct questions *qs = questions_create(api[0], 2);
    struct questions_run run;
    struct answer first = { 0 };
    (void)state;
    questions_join(qs, 0, &run);
    const struct questioned by = questions_by(&run);
    for (uint32_t i = 0; i < N; i++) {
        struct listener l = LISTENER;
        struct err e = { 0 };
        uint64_t id = 0;
        script[i].look = look;
        script[i].self = &asked[i];
        prefer(i);
        if (by.ask(by.self, a_question(), hear, &l, &id, &e) != OK) fail_msg("%s", e.text);
        wait_answer(&l);
        assert_int_equal(id & GROUPS_REMOTE ? 1 : 0, i > 0);
        assert_int_equal(submitted(i), 1);
        assert_string_equal(asked[i].text, asked[0].text);
        assert_int_equal(l.a.error.code, OK);
        if (i == 0) {
            first = l.a;
            continue;
        }
        assert_int_equal(l.a.finish, ENG_STOP);
        assert_string_equal(l.a.text, "Hello \xc3\xa9\x01");
        assert_int_equal(l.a.n_text, first.n_text);
        assert_int_equal(l.a.n_ids, 3);
        assert_memory_equal(l.a.ids, first.ids, 3 * sizeof *first.ids);
        assert_true(l.a.logprob_sum == first.logprob_sum && first.logprob_sum == -0.125 * (5 + 6 + 7));
        assert_int_equal(l.a.n_prompt, 5);
        assert_int_equal(l.a.n_token, 3);
        for (int k = 0; k < 3; k++) {
            assert_int_equal(l.a.token[k].id, first.token[k].id);
            assert_int_equal(l.a.token[k].end, first.token[k].end);
            assert_true(l.a.token[k].logprob == first.token[k].logprob);
        }
        answer_free(&l.a);
    }
    assert_non_null(strstr(asked[0].text, "[0 0 names: Zo\xc3\xab][0 0 \n][0 0 before]"));
    assert_non_null(strstr(asked[0].text, "uniform"));
    struct groups_view v[N];
    groups_list(groups, v, N);
    for (uint32_t i = 0; i < N; i++) assert_int_equal(v[i].n_jobs, 0);
    answer_free(&first);
    questions_part(&run);
    questions_destroy(&qs);
}

static void a_question_is_cancelled(void **state)
{
    struct questions *qs = questions_create(api[0], 2);
    struct questions_run run;
    (void)state;
    questions_join(qs, 0, &run);
    const struct questioned by = questions_by(&run);
    for (uint32_t i = 0; i < 2; i++) {
        struct listener l = LISTENER;
        struct err e = { 0 };
        uint64_t id = 0;
        script[i].hold = true;
        prefer(i);
        if (by.ask(by.self, a_question(), hear, &l, &id, &e) != OK) fail_msg("%s", e.text);
        by.cancel(by.self, id);
        wait_answer(&l);
        assert_int_equal(l.a.error.code, E_CANCELLED);
        answer_free(&l.a);
    }
    /* One that is refused there comes back as an answer; a full queue and a dead engine as what can be asked again. */
    for (uint32_t i = 0; i < 3; i++) {
        static const struct { status st; const char *tag, *want; } refused[] = {
            { E_ARG, NULL, NULL }, { E_BUSY, "queue_full", "queue_full" }, { E_DEVICE, "engine_dead", "group_lost" } };
        struct listener l = LISTENER;
        struct err e = { 0 };
        uint64_t id = 0;
        script[2].refuse = refused[i].st;
        script[2].tag = refused[i].tag;
        prefer(2);
        assert_int_equal(by.ask(by.self, a_question(), hear, &l, &id, &e), OK);
        wait_answer(&l);
        assert_int_equal(l.a.error.code, refused[i].st);
        if (refused[i].want) assert_string_equal(l.a.error.tag, refused[i].want);
        answer_free(&l.a);
    }
    questions_part(&run);
    questions_destroy(&qs);
}

static void cut_questions(void **state)
{
    struct wire w = { 0 };
    struct answer a = { .text = mem_must(3, 1), .n_text = 2, .ids = mem_must(2, sizeof *a.ids), .n_ids = 2 }, got;
    struct err e;
    uint64_t id;
    (void)state;
    questions_put_answer(&w, &a);
    for (size_t n = 0; n < w.n; n++) assert_int_equal(questions_get_answer(w.bytes, n, &got, &e), E_INTERNAL);
    assert_int_equal(questions_get_answer(w.bytes, w.n, &got, &e), OK);
    answer_free(&got);
    answer_free(&a);
    free(w.bytes);
    w = (struct wire){ 0 };
    questions_put(&w, a_question());
    for (size_t n = 0; n < w.n; n += n < 600 ? 1 : 4999)
        assert_int_equal(questions_ask(api[1], w.bytes, n, NULL, NULL, &id, &e), E_INTERNAL);
    assert_int_equal(submitted(1), 0);
    free(w.bytes);
}

/* As many windows as groups have places; who joined first goes first; a group that is gone has none. */
static void places_and_turns(void **state)
{
    struct questions *qs = questions_create(api[0], 1);
    struct questions_run a, b;
    struct err why;
    (void)state;
    questions_join(qs, 0, &a);
    questions_join(qs, 1, &b);
    const struct questioned x = questions_by(&a), y = questions_by(&b);
    assert_int_equal(questions_places(qs), N);
    for (uint32_t i = 0; i < N; i++) assert_true(y.enter(y.self));
    assert_false(y.enter(y.self));
    assert_false(x.enter(x.self));
    y.leave(y.self);
    assert_false(y.enter(y.self));             /* the other one was to go first */
    assert_true(x.enter(x.self));
    y.leave(y.self);
    assert_true(y.enter(y.self));              /* which wants none now */
    err_set(&why, E_DEVICE, "killed");
    groups_lost(groups, 1, &why);
    assert_int_equal(questions_places(qs), N - 1);
    y.leave(y.self);
    assert_false(x.enter(x.self));             /* two are taken, two are left */
    questions_part(&a);
    y.leave(y.self);
    assert_true(y.enter(y.self));              /* who has left wants nothing */
    questions_part(&b);
    questions_destroy(&qs);
}

#define WINDOWS 30
struct noise { size_t at; };

static status read_noise(void *self, float *buf, size_t cap, size_t *n, struct err *e)
{
    struct noise *s = self;
    const size_t left = (size_t)WINDOWS * 2 * 16000 - s->at;
    (void)e;
    *n = left < cap ? left : cap;
    for (size_t i = 0; i < *n; i++, s->at++) buf[i] = (float)((s->at * 2654435761u >> 7) % 2000) / 4000 - 0.25f;
    return OK;
}

/* Nobody is answered before each group has its two: whichever is quicker, all get some. */
static void wait_for_all(void *self, const struct service_request *rq)
{
    const struct timespec t = { 0, 5000000 };
    (void)self, (void)rq;
    for (int i = 0; i < 4000 && (submitted(0) < 2 || submitted(1) < 2 || submitted(2) < 2); i++) nanosleep(&t, NULL);
}

static void *lose_group_1(void *arg)
{
    struct err why;
    wait_for_all(arg, NULL);
    err_set(&why, E_DEVICE, "rank 1: killed");
    groups_lost(groups, 1, &why);
    return NULL;
}

/* All windows of a sound though a group died with two of them; no group ever had more than its two. */
static void windows_of_a_lost_group(void **state)
{
    struct questions *qs = questions_create(api[0], 2);
    struct questions_run run;
    struct noise s = { 0 };
    struct transcript t;
    struct err e = { 0 };
    pthread_t other;
    (void)state;
    script[1].hold = true;
    for (uint32_t i = 0; i < N; i++) script[i].look = wait_for_all;
    questions_join(qs, 0, &run);
    const struct questioned by = questions_by(&run);
    const struct transcribe_options o = { .windows = { .window_s = 2, .keep_silence = true }, .jobs = 6, .language = "english",
                                          .by = &by, .limits = { .max_segment_s = 7, .max_chars = 84 } };
    assert_int_equal(pthread_create(&other, NULL, lose_group_1, NULL), 0);
    if (transcribe_run(service[0], read_noise, &s, &o, &t, &e) != OK) fail_msg("%s", e.text);
    pthread_join(other, NULL);
    assert_true(t.complete);
    assert_int_equal(t.n_windows, submitted(0) + submitted(2));
    assert_true(t.n_windows >= WINDOWS);
    assert_int_equal(submitted(1), 2);
    for (size_t i = 0; i < t.n_windows; i++) {
        assert_int_equal(t.window[i].status, WINDOW_OK);
        assert_int_equal(t.window[i].attempts, 1);
    }
    assert_int_equal(t.n_output, 3 * t.n_windows);
    transcript_free(&t);
    questions_part(&run);
    questions_destroy(&qs);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, open_all, close_all)
    const struct CMUnitTest tests[] = {
        CASE(a_reply_is_the_same), CASE(a_stream_is_the_same), CASE(a_window_bounds_and_loses_nothing),
        CASE(an_error_is_the_same), CASE(a_refusal_crosses), CASE(a_cancel_crosses), CASE(a_call_that_waits),
        CASE(the_emptiest_group_and_the_same_media), CASE(a_burst_is_spread), CASE(a_lost_group),
        CASE(files_come_in_pieces), CASE(counters_cross), CASE(all_drain_and_stop), CASE(cut_messages),
        CASE(a_leader_that_stops), CASE(a_question_crosses), CASE(a_question_is_cancelled), CASE(cut_questions),
        CASE(places_and_turns), CASE(windows_of_a_lost_group), cmocka_unit_test(a_group_that_cannot_load) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
