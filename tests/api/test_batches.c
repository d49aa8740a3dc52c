/* Goal: a batch of /v1/batches goes through its states as documented, whatever its input and whoever cancels, expires
 * or kills it, and each custom_id is answered once. Method: the real stores in a temporary folder, a runner of its
 * own in place of the engine, a clock of its own; processes are ended in the middle, by batches_close and by SIGKILL.
 * */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/batches.h"

#define CHAT "/v1/chat/completions"

static char dir[64], files_dir[96], batches_dir[96];
static struct files *files;
static struct batches *batches;
static struct err e;
static _Atomic int64_t clock_now;
static double cancel_s;
static uint32_t (*room)(void *, uint32_t);

/* The runner. */
static atomic_int n_now, n_most, n_runs, hold, sleep_us;
static atomic_int times[1000];

static int64_t test_now(void) { return atomic_load(&clock_now); }

static void run(void *self, const char *owner, const char *endpoint, const char *body, size_t n, const char *request_id,
                const atomic_bool *stop, int *status_code, json_t **reply)
{
    (void)self;
    (void)request_id;
    json_t *o = json_loadb(body, n, 0, NULL);
    if (o == NULL || strcmp(owner, "key") != 0 || strcmp(endpoint, CHAT) != 0) abort();
    const int which = (int)json_integer_value(json_object_get(o, "n"));
    const bool bad = json_is_true(json_object_get(o, "bad"));
    json_decref(o);
    atomic_fetch_add(&n_runs, 1);
    const int now = atomic_fetch_add(&n_now, 1) + 1;
    if (now > atomic_load(&n_most)) atomic_store(&n_most, now);
    for (int slept = 0; !atomic_load(stop) && (atomic_load(&hold) || slept < atomic_load(&sleep_us)); slept += 500)
        usleep(500);
    atomic_fetch_sub(&n_now, 1);
    if (atomic_load(stop)) {
        *status_code = 500;
        *reply = json_pack("{s:{s:s}}", "error", "code", "engine_error");
        return;
    }
    atomic_fetch_add(&times[which], 1);
    *status_code = bad ? 400 : 200;
    *reply = bad ? json_pack("{s:{s:s}}", "error", "code", "invalid_value")
                 : json_pack("{s:i, s:{s:i, s:i}}", "n", which, "usage", "prompt_tokens", 3, "completion_tokens", 2);
}

static void open_all(bool start)
{
    const struct files_options fo = { .dir = files_dir, .now = test_now };
    const struct batches_options bo = {
        .dir = batches_dir, .now = test_now, .n_at_once = 4, .cancel_s = cancel_s, .room = room
    };
    if (files_open(&fo, &files, &e) != OK) fail_msg("%s", e.text);
    struct batches_options with = bo;
    with.files = files;
    if (batches_open(&with, &batches, &e) != OK) fail_msg("%s", e.text);
    if (start) batches_start(batches, run, NULL);
}

static void close_all(void)
{
    batches_close(&batches);
    files_close(&files);
}

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/test_batches_XXXXXX");
    if (mkdtemp(dir) == NULL) return -1;
    snprintf(files_dir, sizeof files_dir, "%s/files", dir);
    snprintf(batches_dir, sizeof batches_dir, "%s/batches", dir);
    atomic_store(&clock_now, 1700000000);
    n_now = n_most = n_runs = hold = sleep_us = 0;
    for (int i = 0; i < 1000; i++) times[i] = 0;
    cancel_s = 0;
    room = NULL;
    return 0;
}

static int unlink_one(const char *path, const struct stat *s, int flag, struct FTW *f)
{
    (void)s;
    (void)flag;
    (void)f;
    return remove(path);
}

static int teardown(void **state)
{
    (void)state;
    close_all();
    return nftw(dir, unlink_one, 8, FTW_DEPTH | FTW_PHYS);
}

static struct file_info upload(const char *owner, const char *purpose, const char *text, size_t n)
{
    struct file_info info;
    const int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    assert_int_equal(write(fd, text, n), n);
    const struct file_add a = { .owner = owner, .filename = "in.jsonl", .purpose = purpose, .fd = fd };
    if (files_add(files, &a, &info, &e) != OK) fail_msg("%s", e.text);
    close(fd);
    return info;
}

static struct file_info upload_lines(int n, int failing)
{
    char *text = malloc((size_t)n * 160 + 1);
    size_t at = 0;
    for (int i = 0; i < n; i++)
        at += (size_t)sprintf(text + at,
                              "{\"custom_id\":\"id-%d\",\"method\":\"POST\",\"url\":\"" CHAT "\",\"body\":{\"n\":%d,"
                              "\"bad\":%s}}\n",
                              i, i, failing && i % failing == 0 ? "true" : "false");
    const struct file_info info = upload("key", "batch", text, at);
    free(text);
    return info;
}

static void create(const char *file_id, char id[BATCH_ID])
{
    char body[300];
    json_t *o;
    const int n = snprintf(body, sizeof body,
                           "{\"input_file_id\":\"%s\",\"endpoint\":\"" CHAT "\",\"completion_window\":"
                           "\"24h\",\"metadata\":{\"a\":\"b\"}}",
                           file_id);
    if (batches_create(batches, "key", body, (size_t)n, &o, &e) != OK) fail_msg("%s", e.text);
    assert_string_equal(json_string_value(json_object_get(o, "object")), "batch");
    assert_string_equal(json_string_value(json_object_get(o, "status")), "validating");
    assert_string_equal(json_string_value(json_object_get(json_object_get(o, "metadata"), "a")), "b");
    assert_int_equal(json_integer_value(json_object_get(o, "expires_at")), test_now() + 86400);
    strcpy(id, json_string_value(json_object_get(o, "id")));
    json_decref(o);
}

static json_t *get(const char *id)
{
    json_t *o;
    if (batches_get(batches, "key", id, &o, &e) != OK) fail_msg("%s", e.text);
    return o;
}

static bool has_status(const json_t *o, const char *name)
{
    return strcmp(json_string_value(json_object_get(o, "status")), name) == 0;
}

/* Waits until the batch has this status; the object then. */
static json_t *wait_status(const char *id, const char *name)
{
    json_t *o = NULL;
    for (int i = 0; i < 6000; i++) {
        o = get(id);
        if (has_status(o, name)) return o;
        if (i < 5999) json_decref(o);
        usleep(5000);
    }
    fail_msg("the batch is %s, not %s", json_string_value(json_object_get(o, "status")), name);
    return NULL;
}

static void wait_runs(int n)
{
    for (int i = 0; i < 2000 && atomic_load(&n_now) < n; i++) usleep(5000);
    assert_int_equal(atomic_load(&n_now), n);
}

static int64_t number(const json_t *o, const char *key)
{
    assert_true(json_is_integer(json_object_get(o, key)));
    return json_integer_value(json_object_get(o, key));
}

static void counts(const json_t *o, int total, int completed, int failed)
{
    const json_t *c = json_object_get(o, "request_counts");
    assert_int_equal(number(c, "total"), total);
    assert_int_equal(number(c, "completed"), completed);
    assert_int_equal(number(c, "failed"), failed);
}

/* ---- output files ------------------------------------------------------------------------------------------------ */

struct seen { int times[1000], code[1000], n; const char *never; };

static bool note(void *self, const json_t *line)
{
    struct seen *s = self;
    int which;
    assert_int_equal(sscanf(json_string_value(json_object_get(line, "custom_id")), "id-%d", &which), 1);
    s->times[which]++;
    s->code[which] = batch_line_status(line);
    s->n++;
    if (s->code[which] == 0)
        assert_string_equal(json_string_value(json_object_get(json_object_get(line, "error"), "code")), s->never);
    return true;
}

static int look(const json_t *o, const char *key, struct seen *s)
{
    struct file_info info;
    int fd;
    uint64_t valid;
    const int before = s->n;
    const json_t *id = json_object_get(o, key);
    if (json_is_null(id)) return 0;
    if (files_open_data(files, "key", json_string_value(id), &info, &fd, &e) != OK) fail_msg("%s: %s", key, e.text);
    assert_string_equal(info.purpose, "batch_output");
    assert_true(info.expires_at > test_now());
    assert_int_equal(jsonl_read(fd, note, s, &valid, &e), OK);
    assert_int_equal(valid, info.bytes);
    close(fd);
    return s->n - before;
}

static void each_once(const json_t *o, int n, int failing)
{
    struct seen s = { .never = "" };
    look(o, "output_file_id", &s);
    look(o, "error_file_id", &s);
    for (int i = 0; i < n; i++) {
        if (s.times[i] != 1) fail_msg("id-%d stands there %d times", i, s.times[i]);
        assert_int_equal(s.code[i], failing && i % failing == 0 ? 400 : 200);
    }
    assert_int_equal(s.n, n);
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void test_completes(void **state)
{
    (void)state;
    char id[BATCH_ID];
    open_all(true);
    const struct file_info input = upload_lines(100, 33);
    atomic_store(&sleep_us, 1000);
    create(input.id, id);
    assert_int_equal(files_delete(files, "key", input.id, &e), E_BUSY);
    assert_string_equal(e.tag, "file_in_use");
    json_t *o = wait_status(id, "completed");
    counts(o, 100, 96, 4);
    each_once(o, 100, 33);
    struct seen s = { 0 };
    assert_int_equal(look(o, "error_file_id", &s), 4);
    const json_t *usage = json_object_get(o, "usage");
    assert_int_equal(number(usage, "input_tokens"), 96 * 3);
    assert_int_equal(number(usage, "total_tokens"), 96 * 5);
    assert_true(number(o, "in_progress_at") > 0 && number(o, "finalizing_at") > 0 && number(o, "completed_at") > 0);
    assert_true(json_is_null(json_object_get(o, "failed_at")) && json_is_null(json_object_get(o, "errors")));
    assert_true(atomic_load(&n_most) > 1 && atomic_load(&n_most) <= 4);
    assert_int_equal(files_delete(files, "key", input.id, &e), OK);     /* the batch is over */
    json_t *same;
    assert_int_equal(batches_cancel(batches, "key", id, &same, &e), E_ARG);
    close_all();
    open_all(true);
    same = get(id);
    assert_true(json_equal(o, same));
    json_decref(o);
    json_decref(same);
    assert_int_equal(batches_get(batches, "other", id, &o, &e), E_ARG);
    assert_string_equal(e.tag, "not_found");
    assert_int_equal(batches_cancel(batches, "other", id, &o, &e), E_ARG);
}

static void test_all_fail(void **state)
{
    (void)state;
    char id[BATCH_ID];
    open_all(true);
    create(upload_lines(5, 1).id, id);
    json_t *o = wait_status(id, "completed");
    counts(o, 5, 0, 5);
    assert_true(json_is_null(json_object_get(o, "output_file_id")));
    each_once(o, 5, 1);
    json_decref(o);
}

static void test_validation(void **state)
{
    (void)state;
    char id[BATCH_ID];
    open_all(true);
    char *text = malloc(300 * 16);
    size_t at = 0;
    for (int i = 0; i < 250; i++) at += (size_t)sprintf(text + at, "nonsense\n");
    create(upload("key", "batch", text, at).id, id);
    free(text);
    json_t *o = wait_status(id, "failed");
    const json_t *data = json_object_get(json_object_get(o, "errors"), "data");
    assert_int_equal(json_array_size(data), 100);
    assert_int_equal(number(json_array_get(data, 7), "line"), 8);
    assert_string_equal(json_string_value(json_object_get(json_array_get(data, 7), "code")), "invalid_json");
    assert_true(number(o, "failed_at") > 0);
    assert_true(json_is_null(json_object_get(o, "output_file_id")) &&
                json_is_null(json_object_get(o, "in_progress_at")));
    assert_int_equal(atomic_load(&n_runs), 0);
    close_all();
    open_all(true);
    json_t *same = get(id);
    assert_true(json_equal(o, same));
    json_decref(o);
    json_decref(same);
    create(upload("key", "batch", "", 0).id, id);
    json_decref(wait_status(id, "failed"));
}

static void test_bad_requests(void **state)
{
    (void)state;
    open_all(true);
    const struct file_info good = upload_lines(1, 0), other = upload("other", "batch", "x", 1),
                           wrong = upload("key", "user_data", "x", 1);
    static const struct { const char *body, *tag, *param;
    } CASE[] = {
        { "{", "invalid_json", "" },
        { "[]", "invalid_type", "" },
        { "{\"endpoint\":\"" CHAT "\",\"completion_window\":\"24h\"}", "missing_required_parameter", "input_file_id" },
        { "{\"input_file_id\":5,\"endpoint\":\"" CHAT "\",\"completion_window\":\"24h\"}", "invalid_type",
          "input_file_id" },
        { "{\"input_file_id\":\"GOOD\",\"completion_window\":\"24h\"}", "missing_required_parameter", "endpoint" },
        { "{\"input_file_id\":\"GOOD\",\"endpoint\":\"/v1/embeddings\",\"completion_window\":\"24h\"}", "invalid_value",
          "endpoint" },
        { "{\"input_file_id\":\"GOOD\",\"endpoint\":\"" CHAT "\"}", "missing_required_parameter", "completion_window" },
        { "{\"input_file_id\":\"GOOD\",\"endpoint\":\"" CHAT "\",\"completion_window\":\"1h\"}", "invalid_value",
          "completion_window" },
        { "{\"input_file_id\":\"OTHER\",\"endpoint\":\"" CHAT "\",\"completion_window\":\"24h\"}", "not_found",
          "input_file_id" },
        { "{\"input_file_id\":\"../../x\",\"endpoint\":\"" CHAT "\",\"completion_window\":\"24h\"}", "not_found",
          "input_file_id" },
        { "{\"input_file_id\":\"WRONG\",\"endpoint\":\"" CHAT "\",\"completion_window\":\"24h\"}", "invalid_value",
          "input_file_id" },
        { "{\"input_file_id\":\"GOOD\",\"endpoint\":\"" CHAT "\",\"completion_window\":\"24h\",\"metadata\":[]}",
          "invalid_type", "metadata" },
        { "{\"input_file_id\":\"GOOD\",\"endpoint\":\"" CHAT "\",\"completion_window\":\"24h\",\"metadata\":{\"a\":1}}",
          "invalid_type", "metadata" },
        { "{\"input_file_id\":\"GOOD\",\"endpoint\":\"" CHAT
          "\",\"completion_window\":\"24h\",\"output_expires_after\":"
          "{\"anchor\":\"created_at\",\"seconds\":5}}",
          "invalid_value", "output_expires_after.seconds" },
        { "{\"input_file_id\":\"GOOD\",\"endpoint\":\"" CHAT
          "\",\"completion_window\":\"24h\",\"output_expires_after\":"
          "{\"anchor\":\"now\",\"seconds\":5000}}",
          "invalid_value", "output_expires_after.anchor" },
    };
    for (size_t i = 0; i < sizeof CASE / sizeof *CASE; i++) {
        char body[400] = "";
        const char *at = strstr(CASE[i].body, "GOOD"), *id = good.id;
        size_t skip = 4;
        if (at == NULL && (at = strstr(CASE[i].body, "OTHER"))) id = other.id, skip = 5;
        if (at == NULL && (at = strstr(CASE[i].body, "WRONG"))) id = wrong.id, skip = 5;
        if (at) snprintf(body, sizeof body, "%.*s%s%s", (int)(at - CASE[i].body), CASE[i].body, id, at + skip);
        else snprintf(body, sizeof body, "%s", CASE[i].body);
        json_t *o;
        if (batches_create(batches, "key", body, strlen(body), &o, &e) != E_ARG) fail_msg("%s was taken", body);
        if (strcmp(e.tag, CASE[i].tag) || strcmp(e.param, CASE[i].param))
            fail_msg("%s: %s, %s, %s", body, e.tag, e.param, e.text);
    }
    assert_int_equal(files_delete(files, "key", good.id, &e), OK);      /* no refusal left it held */
    uint32_t live, lines;
    batches_count(batches, &live, &lines);
    assert_int_equal(live, 0);
}

/* Running lines finish where they come to an end soon; the others never run. */
static void test_cancel(void **state)
{
    (void)state;
    for (int killed = 0; killed < 2; killed++) {
        char id[BATCH_ID];
        json_t *o;
        cancel_s = killed ? 0.3 : 30;
        n_runs = 0;
        open_all(true);
        const struct file_info input = upload_lines(20, 0);
        atomic_store(&hold, 1);
        create(input.id, id);
        wait_runs(4);
        if (batches_cancel(batches, "key", id, &o, &e) != OK) fail_msg("%s", e.text);
        assert_true(has_status(o, "cancelling"));
        assert_true(number(o, "cancelling_at") > 0);
        json_decref(o);
        assert_int_equal(batches_cancel(batches, "key", id, &o, &e), OK);     /* twice is the same */
        json_decref(o);
        if (!killed) atomic_store(&hold, 0);
        o = wait_status(id, "cancelled");
        const int done = killed ? 0 : 4;
        counts(o, 20, done, 0);
        assert_int_equal(atomic_load(&n_runs), 4);
        struct seen s = { .never = "batch_cancelled" };
        assert_int_equal(look(o, "output_file_id", &s), done);
        assert_int_equal(look(o, "error_file_id", &s), 20 - done);
        for (int i = 0; i < 20; i++) assert_int_equal(s.times[i], 1);
        json_decref(o);
        assert_int_equal(files_delete(files, "key", input.id, &e), OK);
        close_all();
    }
    open_all(true);
}

/* A cancel before the engine is there, before and across a restart. */
static void test_cancel_early(void **state)
{
    (void)state;
    char id[BATCH_ID];
    json_t *o;
    open_all(false);
    create(upload_lines(3, 0).id, id);
    assert_int_equal(batches_cancel(batches, "key", id, &o, &e), OK);
    json_decref(o);
    close_all();
    open_all(false);
    o = wait_status(id, "cancelled");
    counts(o, 3, 0, 0);
    json_decref(o);
}

static void test_expires(void **state)
{
    (void)state;
    char id[BATCH_ID];
    open_all(true);
    const struct file_info input = upload_lines(10, 0);
    atomic_store(&hold, 1);
    create(input.id, id);
    wait_runs(4);
    atomic_fetch_add(&clock_now, 86400);
    usleep(600000);                 /* the manager sees it; lines that run may still finish */
    atomic_store(&hold, 0);
    json_t *o = wait_status(id, "expired");
    counts(o, 10, 4, 0);
    struct seen s = { .never = "batch_expired" };
    assert_int_equal(look(o, "output_file_id", &s), 4);
    assert_int_equal(look(o, "error_file_id", &s), 6);
    assert_true(number(o, "expired_at") > 0 && number(o, "finalizing_at") > 0);
    json_decref(o);
}

/* Ended in the middle, again and again: what was finished stays, what was running runs again. */
static void test_restarts(void **state)
{
    (void)state;
    char id[BATCH_ID];
    open_all(true);
    atomic_store(&sleep_us, 2000);
    create(upload_lines(300, 50).id, id);
    int restarts = 0;
    for (; restarts < 50; restarts++) {
        usleep(60000);
        json_t *o = get(id);
        const bool over = has_status(o, "completed");
        json_decref(o);
        if (over) break;
        if (restarts % 2) batches_drain(batches);
        if (restarts % 2) usleep(5000);
        close_all();
        open_all(true);
    }
    assert_true(restarts > 1);
    json_t *o = wait_status(id, "completed");
    counts(o, 300, 294, 6);
    each_once(o, 300, 50);
    for (int i = 0; i < 300; i++) assert_int_equal(atomic_load(&times[i]), 1);    /* finished, so never again */
    json_decref(o);
}

static void test_sigkill(void **state)
{
    (void)state;
    char id[BATCH_ID];
    open_all(false);
    create(upload_lines(200, 40).id, id);
    json_decref(wait_status(id, "in_progress"));
    close_all();
    int killed = 0;
    for (int attempt = 0; attempt < 12; attempt++) {
        const pid_t child = fork();
        if (child == 0) {
            atomic_store(&sleep_us, 25000);    /* so that it cannot be done after three kills */
            open_all(true);
            json_decref(wait_status(id, "completed"));
            _exit(0);
        }
        usleep((useconds_t)(40000 + 7919 * attempt % 60000));
        kill(child, SIGKILL);
        int how;
        assert_int_equal(waitpid(child, &how, 0), child);
        killed += WIFSIGNALED(how);
    }
    assert_true(killed > 3);
    open_all(true);
    json_t *o = wait_status(id, "completed");
    counts(o, 200, 195, 5);
    each_once(o, 200, 40);
    json_decref(o);
    uint64_t n, bytes;
    files_count(files, &n, &bytes);
    assert_int_equal(n, 3);         /* input, output, errors: no second ones */
}

static atomic_uint room_now;
static uint32_t room_fn(void *self, uint32_t n_batch)
{
    (void)self;
    (void)n_batch;
    return atomic_load(&room_now);
}

/* Lines run only where online work leaves room, those of all batches together. */
static void test_room(void **state)
{
    (void)state;
    char a[BATCH_ID], b[BATCH_ID];
    room = room_fn;
    atomic_store(&room_now, 0);
    open_all(true);
    atomic_store(&hold, 1);
    create(upload_lines(6, 0).id, a);
    create(upload_lines(6, 0).id, b);
    json_decref(wait_status(b, "in_progress"));
    usleep(300000);
    assert_int_equal(atomic_load(&n_runs), 0);
    atomic_store(&room_now, 2);
    wait_runs(2);
    usleep(300000);
    assert_int_equal(atomic_load(&n_now), 2);
    uint32_t live, lines;
    batches_count(batches, &live, &lines);
    assert_int_equal(live, 2);
    assert_int_equal(lines, 2);
    atomic_store(&room_now, 100);
    wait_runs(4);                   /* n_at_once */
    atomic_store(&hold, 0);
    json_decref(wait_status(a, "completed"));
    json_decref(wait_status(b, "completed"));
    assert_int_equal(atomic_load(&n_most), 4);
}

static void test_lists(void **state)
{
    (void)state;
    char id[5][BATCH_ID];
    open_all(false);
    const struct file_info input = upload_lines(1, 0);
    for (int i = 0; i < 5; i++) create(input.id, id[i]);
    for (uint32_t limit = 1; limit <= 6; limit++) {
        int at = 4;
        char after[BATCH_ID] = "";
        for (bool more = true; more;) {
            json_t *o;
            assert_int_equal(batches_list(batches, "key", after[0] ? after : NULL, limit, &o, &e), OK);
            const json_t *data = json_object_get(o, "data");
            for (size_t i = 0; i < json_array_size(data); i++)
                assert_string_equal(json_string_value(json_object_get(json_array_get(data, i), "id")), id[at--]);
            more = json_is_true(json_object_get(o, "has_more"));
            assert_int_equal(more, at >= 0);
            if (json_array_size(data)) strcpy(after, json_string_value(json_object_get(o, "last_id")));
            json_decref(o);
        }
        assert_int_equal(at, -1);
    }
    json_t *o;
    assert_int_equal(batches_list(batches, "nobody", NULL, 0, &o, &e), OK);
    assert_int_equal(json_array_size(json_object_get(o, "data")), 0);
    assert_true(json_is_null(json_object_get(o, "first_id")));
    json_decref(o);
    assert_int_equal(batches_list(batches, "key", "batch_x", 0, &o, &e), E_ARG);
    assert_int_equal(batches_list(batches, "key", NULL, 101, &o, &e), E_ARG);
}

/* The journal cut at every byte: the batch is there with its last whole state, or it is not there and holds nothing. */
static void test_journal_cut(void **state)
{
    (void)state;
    char id[BATCH_ID], path[200];
    open_all(false);
    create(upload_lines(2, 0).id, id);
    json_decref(wait_status(id, "in_progress"));
    close_all();
    snprintf(path, sizeof path, "%s/%s.odj", batches_dir, id);
    char text[8192];
    FILE *f = fopen(path, "rb");
    const size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    const size_t first = (size_t)((char *)memchr(text, '\n', n) - text) + 1;
    assert_true(first < n);
    for (size_t cut = 0; cut <= n; cut += cut + 20 < n ? 13 : 1) {
        f = fopen(path, "wb");
        fwrite(text, 1, cut, f);
        fclose(f);
        open_all(false);
        json_t *o;
        const status st = batches_get(batches, "key", id, &o, &e);
        assert_int_equal(st, cut >= first ? OK : E_ARG);
        if (st == OK) json_decref(o);
        close_all();
    }
    open_all(false);
}

/* Ended after the outputs were stored and before that was noted: the same files again, not second ones. */
static void test_stored_twice(void **state)
{
    (void)state;
    char id[BATCH_ID], path[200], text[16384], command[600];
    open_all(true);
    create(upload_lines(10, 5).id, id);
    json_t *o = wait_status(id, "completed");
    close_all();
    snprintf(path, sizeof path, "%s/%s.odj", batches_dir, id);
    FILE *f = fopen(path, "rb");
    size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    assert_true(n > 0 && text[n - 1] == '\n');
    for (n--; text[n - 1] != '\n'; n--) continue;      /* without its last state */
    f = fopen(path, "wb");
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
    snprintf(command, sizeof command, "cp %s/%s %s/%s.out && cp %s/%s %s/%s.err", files_dir,
             json_string_value(json_object_get(o, "output_file_id")), batches_dir, id, files_dir,
             json_string_value(json_object_get(o, "error_file_id")), batches_dir, id);
    assert_int_equal(system(command), 0);
    open_all(true);
    json_t *again = wait_status(id, "completed");
    assert_true(json_equal(o, again));
    each_once(again, 10, 5);
    uint64_t n_files, bytes;
    files_count(files, &n_files, &bytes);
    assert_int_equal(n_files, 3);
    json_decref(o);
    json_decref(again);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_completes), CASE(test_all_fail), CASE(test_validation), CASE(test_bad_requests), CASE(test_cancel),
        CASE(test_cancel_early), CASE(test_expires), CASE(test_restarts), CASE(test_sigkill), CASE(test_room),
        CASE(test_lists), CASE(test_stored_twice), CASE(test_journal_cut),
    };
    return cmocka_run_group_tests_name("batches", tests, NULL, NULL);
}
