/* Goal: a batch answers every line of its input once, dearest first, whatever kills it in between; bad inputs are told
 * of line by line. Method: a runner of its own in place of the engine, which notes what it ran; runs are killed with
 * SIGKILL, outputs are cut at every byte, the disk fills up, the queue is full. SEED repeats the kills. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "api/batch.h"

static char dir[64], input[96], output[96], errors[96], journal[110];
static struct err e;

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/test_batch_XXXXXX");
    if (mkdtemp(dir) == NULL) return -1;
    snprintf(input, sizeof input, "%s/in.jsonl", dir);
    snprintf(output, sizeof output, "%s/out.jsonl", dir);
    snprintf(errors, sizeof errors, "%s/err.jsonl", dir);
    snprintf(journal, sizeof journal, "%s.odj", output);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    DIR *d = opendir(dir);
    for (const struct dirent *t; (t = readdir(d)) != NULL;) unlinkat(dirfd(d), t->d_name, 0);
    closedir(d);
    return rmdir(dir);
}

static void write_text(const char *path, const char *text, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

static char *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    char *text = calloc(1, 1 << 20);
    *n = f ? fread(text, 1, (1 << 20) - 1, f) : 0;
    if (f) fclose(f);
    return text;
}

/* n lines "id-I"; every failing-th one is to be refused by the runner; lengths differ. */
static void write_input(int n, int failing)
{
    FILE *f = fopen(input, "wb");
    assert_non_null(f);
    for (int i = 0; i < n; i++)
        fprintf(f,
                "{\"custom_id\":\"id-%d\",\"method\":\"POST\",\"url\":\"/v1/chat/"
                "completions\",\"body\":{\"n\":%d,\"bad\":%s,"
                "\"text\":\"%0*d\"}}\n",
                i, i, failing && i % failing == 0 ? "true" : "false", 1 + i * 7 % 50, 0);
    fclose(f);
}

/* ---- the runner ------------------------------------------------------------------------------------------------- */

struct runner {
    pthread_mutex_t lock;
    int n_now, n_most;             /* runs at once */
    int ran[1000], n_ran;          /* "n" of the bodies, in order of their begin */
    int sleep_us;
    int refuse;                    /* that many runs find the queue full first */
    bool draining;                 /* all do */
    int log;                       /* descriptor: the n of every run that ended, as text; -1 */
};

static void run(void *self, const char *endpoint, const char *body, size_t n, const char *request_id,
                const atomic_bool *stop, int *status_code, json_t **reply)
{
    struct runner *r = self;
    json_t *o = json_loadb(body, n, 0, NULL);
    assert_non_null(o);
    assert_true(strncmp(endpoint, "/v1/", 4) == 0 && strncmp(request_id, "req_", 4) == 0);
    const int which = (int)json_integer_value(json_object_get(o, "n"));
    const bool bad = json_is_true(json_object_get(o, "bad"));
    json_decref(o);
    pthread_mutex_lock(&r->lock);
    if (r->n_ran < 1000) r->ran[r->n_ran++] = which;
    if (++r->n_now > r->n_most) r->n_most = r->n_now;
    const bool full = r->refuse > 0 && r->refuse-- > 0;
    pthread_mutex_unlock(&r->lock);
    for (int slept = 0; slept < r->sleep_us && !(stop && atomic_load(stop)); slept += 500) usleep(500);
    if (stop && atomic_load(stop)) {
        *status_code = 500;
        *reply = json_pack("{s:{s:s}}", "error", "code", "engine_error");
    } else if (r->draining || full) {
        *status_code = r->draining ? 503 : 429;
        *reply = json_pack("{s:{s:s}}", "error", "code", r->draining ? "draining" : "queue_full");
    } else if (bad) {
        *status_code = 400;
        *reply = json_pack("{s:{s:s}}", "error", "code", "invalid_value");
    } else {
        *status_code = 200;
        *reply = json_pack("{s:i, s:{s:i, s:i}}", "n", which, "usage", "prompt_tokens", 3, "completion_tokens", 2);
    }
    pthread_mutex_lock(&r->lock);
    r->n_now--;
    if (r->log >= 0 && *status_code == 200) dprintf(r->log, "%d\n", which);
    pthread_mutex_unlock(&r->lock);
}

static struct runner runner_new(void) { return (struct runner){ .lock = PTHREAD_MUTEX_INITIALIZER, .log = -1 }; }

static status run_files(const struct batch_files_options *o, struct batch_job job, struct runner *r,
                        struct batch_counts *c)
{
    struct batch_files b;
    TRY(batch_files_open(o, &b, &e));
    status st = OK;
    batch_plan_counts(b.plan, c);
    if (!b.complete) {
        job.plan = b.plan;
        job.fd = b.fd;
        job.out = b.out;
        job.errors = b.errors;
        job.run = run;
        job.run_self = r;
        st = batch_work(&job, c, &e);
    }
    struct err ignored;
    const status closed = batch_files_close(&b, st == OK ? &e : &ignored);
    return st == OK ? closed : st;
}

/* ---- what came out ---------------------------------------------------------------------------------------------- */

struct seen { int times[1000], code[1000], order[1000], n; };

static bool note(void *self, const json_t *line)
{
    struct seen *s = self;
    int which;
    assert_int_equal(sscanf(json_string_value(json_object_get(line, "custom_id")), "id-%d", &which), 1);
    assert_true(strncmp(json_string_value(json_object_get(line, "id")), "batch_req_", 10) == 0);
    s->times[which]++;
    s->code[which] = batch_line_status(line);
    s->order[s->n++] = which;
    const json_t *body = json_object_get(json_object_get(line, "response"), "body");
    if (s->code[which] == 200) {
        assert_int_equal(json_integer_value(json_object_get(body, "n")), which);
        assert_true(json_is_null(json_object_get(line, "error")));
    }
    return true;
}

/* Adds the lines of a file; all of it must be whole lines. */
static void look(const char *path, struct seen *s)
{
    struct stat st;
    uint64_t valid;
    const int fd = open(path, O_RDONLY);
    if (fd < 0) return;
    assert_int_equal(jsonl_read(fd, note, s, &valid, &e), OK);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(valid, st.st_size);
    close(fd);
}

static void each_once(int n, int failing)
{
    struct seen s = { 0 };
    look(output, &s);
    look(errors, &s);
    for (int i = 0; i < n; i++) {
        if (s.times[i] != 1) fail_msg("id-%d stands there %d times", i, s.times[i]);
        assert_int_equal(s.code[i], failing && i % failing == 0 ? 400 : 200);
    }
    assert_int_equal(s.n, n);
}

/* ---- scanning --------------------------------------------------------------------------------------------------- */

static struct batch_plan *scan(const char *text, size_t n, const struct batch_rules *r)
{
    struct batch_plan *p;
    write_text(input, text, n);
    const int fd = open(input, O_RDONLY);
    if (batch_scan(fd, r, &p, &e) != OK) fail_msg("%s", e.text);
    close(fd);
    return p;
}

#define GOOD "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{}}"
#define LINE(id, method, url, body) "{\"custom_id\":" id ",\"method\":" method ",\"url\":" url ",\"body\":" body "}"

static void test_problems(void **state)
{
    (void)state;
    static const struct { const char *line, *code, *param;
    } CASE[] = {
        { "{\"custom_id\":", "invalid_json", NULL },
        { "[]", "invalid_type", NULL },
        { GOOD " x", "invalid_json", NULL },
        { "\"\xff\"", "invalid_json", NULL },
        { "{\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{}}", "missing_required_parameter", "custom_id" },
        { LINE("7", "\"POST\"", "\"/v1/completions\"", "{}"), "invalid_type", "custom_id" },
        { LINE("\"\"", "\"POST\"", "\"/v1/completions\"", "{}"), "invalid_value", "custom_id" },
        { LINE("\"b\\u0000c\"", "\"POST\"", "\"/v1/completions\"", "{}"), "invalid_value", "custom_id" },
        { LINE("\"a\"", "\"POST\"", "\"/v1/completions\"", "{}"), "invalid_value", "custom_id" }, /* twice */
        { LINE("\"b\"", "\"GET\"", "\"/v1/completions\"", "{}"), "invalid_value", "method" },
        { LINE("\"b\"", "\"POST\"", "\"/v1/embeddings\"", "{}"), "invalid_value", "url" },
        { LINE("\"b\"", "\"POST\"", "\"/v1/chat/completions\"", "{}"), "invalid_value", "url" }, /* other endpoint */
        { LINE("\"b\"", "\"POST\"", "\"/v1/completions\"", "[]"), "invalid_type", "body" },
        { LINE("\"b\"", "\"POST\"", "\"/v1/completions\"", "null"), "missing_required_parameter", "body" },
        { LINE("\"b\"", "\"POST\"", "\"/v1/completions\"", "{},\"body\":{}"), "invalid_json", NULL },
    };
    const struct batch_rules r = { .endpoint = "/v1/completions" };
    for (size_t i = 0; i < sizeof CASE / sizeof *CASE; i++) {
        char text[1024];
        const int len = snprintf(text, sizeof text, GOOD "\n\n%s\n", CASE[i].line);
        struct batch_plan *p = scan(text, (size_t)len, &r);
        size_t n, all;
        const struct batch_problem *b = batch_plan_problems(p, &n, &all);
        if (n != 1) fail_msg("%s: %zu problems", CASE[i].line, n);
        assert_int_equal(b[0].line, 3);
        assert_string_equal(b[0].code, CASE[i].code);
        if (CASE[i].param) assert_string_equal(b[0].param, CASE[i].param);
        else assert_null(b[0].param);
        assert_true(strlen(b[0].message) > 10);
        batch_plan_free(&p);
    }
}

static void test_scan_edges(void **state)
{
    (void)state;
    size_t n, all;
    struct batch_counts c;
    const struct batch_rules r = { .lines_max = 3 };
    static const char bom[] = "\xef\xbb\xbf" GOOD "\r\n\r\n  \n";
    struct batch_plan *p = scan(bom, sizeof bom - 1, &r);
    batch_plan_problems(p, &n, &all);
    batch_plan_counts(p, &c);
    assert_int_equal(all, 0);
    assert_int_equal(c.total, 1);
    batch_plan_free(&p);
    p = scan(GOOD, sizeof GOOD - 1, &r);           /* no line end at the end of the file */
    batch_plan_counts(p, &c);
    assert_int_equal(c.total, 1);
    batch_plan_free(&p);
    p = scan("\n\n", 2, &r);
    assert_int_equal(batch_plan_problems(p, &n, &all)[0].line, 0);
    assert_int_equal(all, 1);
    batch_plan_free(&p);
    p = scan("", 0, &r);
    batch_plan_problems(p, &n, &all);
    assert_int_equal(all, 1);
    assert_string_equal(batch_plan_digest(p), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    batch_plan_free(&p);
    write_input(4, 0);
    size_t size;
    char *text = slurp(input, &size);
    p = scan(text, size, &r);
    assert_int_equal(batch_plan_problems(p, &n, &all)[0].line, 4);
    batch_plan_free(&p);
    free(text);
    FILE *f = fopen(input, "wb");                   /* more problems than are kept */
    for (int i = 0; i < 250; i++) fprintf(f, "nonsense\n");
    fclose(f);
    text = slurp(input, &size);
    p = scan(text, size, &r);
    batch_plan_problems(p, &n, &all);
    assert_int_equal(n, BATCH_PROBLEMS);
    assert_int_equal(all, 250);
    batch_plan_free(&p);
    free(text);
}

/* Lines longer than the reader's buffer, and longer than allowed, at every offset around its borders. */
static void test_reader(void **state)
{
    (void)state;
    for (size_t long_n = 65530; long_n < 65545; long_n++) {
        char *text = malloc(2 * long_n + 16);
        memset(text, 'x', 2 * long_n + 16);
        text[3] = '\n';
        text[3 + 1 + long_n] = '\n';
        write_text(input, text, 3 + 1 + long_n + 1 + 5);
        for (int allowed = 0; allowed < 2; allowed++) {
            struct jsonl_reader r = { .fd = open(input, O_RDONLY), .line_max = long_n - !allowed };
            struct jsonl_line l;
            bool got;
            assert_true(jsonl_next(&r, &l, &got, &e) == OK && got && l.n == 3 && l.ended && l.offset == 0);
            assert_true(jsonl_next(&r, &l, &got, &e) == OK && got && l.n == long_n && l.ended && l.offset == 4);
            assert_true((l.text != NULL) == allowed);
            assert_true(jsonl_next(&r, &l, &got, &e) == OK && got && l.n == 5 && !l.ended && l.offset == 5 + long_n);
            assert_memory_equal(l.text, "xxxxx", 5);
            assert_true(jsonl_next(&r, &l, &got, &e) == OK && !got);
            jsonl_reader_free(&r);
            close(r.fd);
        }
        free(text);
    }
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

static void test_all(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    const struct batch_files_options o = { .input = input, .output = output, .error_file = errors };
    write_input(100, 33);
    r.sleep_us = 1000;
    if (run_files(&o, (struct batch_job){ .n_at_once = 8 }, &r, &c) != OK) fail_msg("%s", e.text);
    assert_int_equal(c.total, 100);
    assert_int_equal(c.completed, 96);
    assert_int_equal(c.failed, 4);
    assert_int_equal(c.tokens_in, 96 * 3);
    assert_int_equal(c.tokens_out, 96 * 2);
    assert_true(c.cost > 0 && c.cost_done >= 0.999 * c.cost && c.cost_done <= 1.001 * c.cost);
    each_once(100, 33);
    assert_true(r.n_most > 1 && r.n_most <= 8);
    assert_int_equal(access(journal, F_OK), 0);     /* lines failed: a resume runs them again */
    struct seen s = { 0 };
    look(errors, &s);
    assert_int_equal(s.n, 4);
}

static void test_longest_first(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    const struct batch_files_options o = { .input = input, .output = output };
    char media[96];
    snprintf(media, sizeof media, "%s/film.bin", dir);
    write_text(media, "", 0);
    assert_int_equal(truncate(media, 3000000), 0);
    FILE *f = fopen(input, "wb");
    /* by text; by tokens of the answer; by the bytes of a file beside the input; by the number of media */
    const char *body[] = {
        "{\"n\":0,\"t\":\"short\"}",
        "{\"n\":1,\"t\":\"%01000d\"}",
        "{\"n\":2,\"max_tokens\":4000}",
        "{\"n\":3,\"messages\":[{\"content\":[{\"type\":\"video_url\",\"video_url\":{\"url\":\"file:film.bin\"}}]}]}",
        "{\"n\":4,\"messages\":[{\"content\":[{\"image_url\":\"http://x/a\"},{\"image_url\":\"http://x/b\"}]}]}",
        "{\"n\":5,\"t\":\"%03000d\"}"
    };
    for (int i = 0; i < 6; i++) {
        fprintf(f, "{\"custom_id\":\"id-%d\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":", i);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
        fprintf(f, body[i], 0);
#pragma GCC diagnostic pop
        fprintf(f, "}\n");
    }
    fclose(f);
    struct batch_files_options with = o;
    with.rules.media_root = dir;
    if (run_files(&with, (struct batch_job){ .n_at_once = 1, .media_root = dir }, &r, &c) != OK) fail_msg("%s", e.text);
    static const int WANT[] = { 2, 3, 5, 1, 4, 0 };
    assert_int_equal(r.n_ran, 6);
    for (int i = 0; i < 6; i++)
        if (r.ran[i] != WANT[i]) fail_msg("place %d: line %d ran, not %d", i, r.ran[i], WANT[i]);
    assert_int_equal(c.completed, 6);
    assert_int_not_equal(access(journal, F_OK), 0); /* all is done */
}

static void test_media_paths(void **state)
{
    (void)state;
    static const struct { const char *given, *want;
    } CASE[] = { { "clip.mp4", "file:///root%20dir/clip.mp4" },
                 { "file:clip.mp4", "file:///root%20dir/clip.mp4" },
                 { "file:a%20b%2Fc", "file:///root%20dir/a%20b/c" },
                 { "file:///x/y", "file:///x/y" },
                 { "file://localhost/x", "file:///x" },
                 { "/x/y%20", "file:///x/y%2520" },
                 { "\xc3\xa9#?", "file:///root%20dir/%C3%A9%23%3F" },
                 { "http://h/x", "http://h/x" },
                 { "https://h/x", "https://h/x" },
                 { "data:image/png;base64,AA", "data:image/png;base64,AA" },
                 { "ftp://h/x", "ftp://h/x" } };
    static const char *const SHAPE[] = {
        "{\"n\":0,\"messages\":[{\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"%s\"}}]}]}",
        "{\"n\":0,\"messages\":[{\"content\":[{\"audio_url\":\"%s\"}]}]}",
        "{\"n\":0,\"messages\":[{\"content\":\"x\"},{\"content\":[\"t\",{\"video\":[\"%s\"]}]}]}",
        "{\"n\":0,\"file_url\":\"%s\"}"
    };
    for (size_t i = 0; i < sizeof CASE / sizeof *CASE; i++)
        for (size_t k = 0; k < sizeof SHAPE / sizeof *SHAPE; k++) {
            char body[400], want[400], path[100];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
            snprintf(body, sizeof body, SHAPE[k], CASE[i].given);
            snprintf(want, sizeof want, SHAPE[k], CASE[i].want);
#pragma GCC diagnostic pop
            json_t *got = json_loads(body, 0, NULL), *expected = json_loads(want, 0, NULL);
            batch_absolute_media(got, "/root dir");
            if (!json_equal(got, expected)) fail_msg("%s became %s", body, json_dumps(got, 0));
            json_decref(got);
            json_decref(expected);
            assert_int_equal(batch_media_path(CASE[i].want, path, sizeof path), strncmp(CASE[i].want, "file:", 5) == 0);
        }
}

/* A link is followed by us, since a loader would not. */
static void test_media_links(void **state)
{
    (void)state;
    char link[128], path[128], url[200];
    snprintf(path, sizeof path, "%s/real file", dir);
    snprintf(link, sizeof link, "%s/link", dir);
    write_text(path, "x", 1);
    assert_int_equal(symlink(path, link), 0);
    json_t *o = json_pack("{s:s}", "file_url", "link");
    batch_absolute_media(o, dir);
    snprintf(url, sizeof url, "file://%s/real%%20file", dir);
    assert_string_equal(json_string_value(json_object_get(o, "file_url")), url);
    char back[128];
    assert_true(batch_media_path(url, back, sizeof back));
    assert_string_equal(back, path);
    json_decref(o);
}

static void test_stream_refused(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    const struct batch_files_options o = { .input = input, .output = output };
    static const char text[] = LINE("\"id-0\"", "\"POST\"", "\"/v1/completions\"", "{\"stream\":true}") "\n";
    write_text(input, text, sizeof text - 1);
    assert_int_equal(run_files(&o, (struct batch_job){ 0 }, &r, &c), OK);
    assert_int_equal(c.failed, 1);
    assert_int_equal(r.n_ran, 0);
    size_t n;
    char *got = slurp(output, &n);
    assert_non_null(strstr(got, "\"status_code\":400"));
    assert_non_null(strstr(got, "\"param\":\"stream\""));
    free(got);
}

static void test_full_queue(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    const struct batch_files_options o = { .input = input, .output = output };
    write_input(3, 0);
    r.refuse = 2;
    assert_int_equal(run_files(&o, (struct batch_job){ .n_at_once = 1 }, &r, &c), OK);
    assert_int_equal(c.completed, 3);
    assert_int_equal(r.n_ran, 5);
}

static void test_draining(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    struct batch_files_options o = { .input = input, .output = output };
    write_input(5, 0);
    r.draining = true;
    assert_int_equal(run_files(&o, (struct batch_job){ .n_at_once = 2 }, &r, &c), E_BUSY);
    assert_string_equal(e.tag, "draining");
    assert_int_equal(c.completed + c.failed, 0);
    r.draining = false;
    o.resume = true;
    assert_int_equal(run_files(&o, (struct batch_job){ .n_at_once = 2 }, &r, &c), OK);
    each_once(5, 0);
}

static void test_fail_fast(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    const struct batch_files_options o = { .input = input, .output = output };
    write_input(50, 2);
    assert_int_equal(run_files(&o, (struct batch_job){ .n_at_once = 1, .fail_fast = true }, &r, &c), OK);
    assert_int_equal(c.failed, 1);
    assert_true(c.completed + c.failed < 50);
    assert_int_equal(r.n_ran, c.completed + c.failed);
}

struct stopper { atomic_bool flag; uint64_t after; };

static void stop_after(void *self, const struct batch_counts *c)
{
    struct stopper *s = self;
    if (c->completed >= s->after) atomic_store(&s->flag, true);
}

/* A wish to end: what runs finishes, or is cancelled and counts as not run; a resume does the rest and only the rest.
 * */
static void test_stop_and_kill(void **state)
{
    (void)state;
    for (int kill_too = 0; kill_too < 2; kill_too++) {
        struct runner r = runner_new();
        struct batch_counts c;
        struct stopper s = { .after = 20 };
        struct batch_files_options o = { .input = input, .output = output, .overwrite = true };
        write_input(60, 0);
        r.sleep_us = 3000;
        struct batch_job j = { .n_at_once = 4, .progress = stop_after, .self = &s, .stop = &s.flag };
        if (kill_too) j.kill = &s.flag;
        assert_int_equal(run_files(&o, j, &r, &c), OK);
        assert_int_equal(c.failed, 0);
        assert_true(c.completed >= 20 && c.completed < 30);
        if (!kill_too) assert_int_equal(c.completed, r.n_ran);
        const int first = (int)c.completed;
        struct runner again = runner_new();
        o.resume = true;
        o.overwrite = false;
        assert_int_equal(run_files(&o, (struct batch_job){ .n_at_once = 4 }, &again, &c), OK);
        assert_int_equal(again.n_ran, 60 - first);
        each_once(60, 0);
    }
}

static bool only_two(void *self)
{
    atomic_int *left = self;
    return atomic_fetch_sub(left, 1) > 0;
}

static void test_slots(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    const struct batch_files_options o = { .input = input, .output = output };
    atomic_int left = 2;
    write_input(10, 0);
    assert_int_equal(run_files(&o, (struct batch_job){ .n_at_once = 3, .enter = only_two, .self = &left }, &r, &c), OK);
    assert_int_equal(c.completed, 2);
}

static void test_never(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    struct batch_files b;
    const struct batch_files_options o = { .input = input, .output = output, .error_file = errors };
    write_input(10, 0);
    assert_int_equal(batch_files_open(&o, &b, &e), OK);
    atomic_int left = 2;
    const struct batch_job j = { .plan = b.plan,
                                 .fd = b.fd,
                                 .out = b.out,
                                 .errors = b.errors,
                                 .run = run,
                                 .run_self = &r,
                                 .n_at_once = 1,
                                 .enter = only_two,
                                 .self = &left };
    assert_int_equal(batch_work(&j, &c, &e), OK);
    assert_int_equal(batch_never(&j, "batch_cancelled", "the batch was cancelled", &e), OK);
    batch_plan_counts(b.plan, &c);
    assert_int_equal(c.completed, 2);
    assert_int_equal(c.never, 8);
    assert_int_equal(batch_files_close(&b, &e), OK);
    struct seen s = { 0 };
    look(output, &s);
    look(errors, &s);
    int n_never = 0;
    for (int i = 0; i < 10; i++) {
        assert_int_equal(s.times[i], 1);
        n_never += s.code[i] == 0;
    }
    assert_int_equal(n_never, 8);
}

/* ---- killed, cut, changed, full ---------------------------------------------------------------------------------- */

static int read_log(const char *path, int *times)
{
    FILE *f = fopen(path, "r");
    int n = 0, which;
    while (f && fscanf(f, "%d", &which) == 1) {
        times[which]++;
        n++;
    }
    if (f) fclose(f);
    return n;
}

static void test_sigkill(void **state)
{
    (void)state;
    const char *text = getenv("SEED");
    const unsigned seed = text ? (unsigned)strtoul(text, NULL, 10) : (unsigned)time(NULL);
    print_message("SEED=%u\n", seed);
    srand(seed);
    for (int round = 0; round < 3; round++) {
        const int n = 200, failing = round == 2 ? 7 : 0;
        char log[96];
        snprintf(log, sizeof log, "%s/log", dir);
        unlink(log);
        unlink(output);
        unlink(errors);
        unlink(journal);
        write_input(n, failing);
        struct batch_files_options o = {
            .input = input, .output = output, .error_file = round == 1 ? errors : NULL, .resume = true
        };
        int killed = 0;
        for (int attempt = 0; attempt < 60; attempt++) {
            const pid_t child = fork();
            assert_true(child >= 0);
            if (child == 0) {
                struct runner r = runner_new();
                struct batch_counts c;
                r.sleep_us = 2000;
                r.log = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
                _exit(run_files(&o, (struct batch_job){ .n_at_once = 4 }, &r, &c) == OK ? 0 : 1);
            }
            usleep((useconds_t)(5000 + rand() % 40000));
            kill(child, SIGKILL);
            int how;
            assert_int_equal(waitpid(child, &how, 0), child);
            if (WIFEXITED(how)) {
                assert_int_equal(WEXITSTATUS(how), 0);
                break;
            }
            killed++;
            /* What is in the output now must never run again: its runs so far are all it may have. */
            struct seen s = { 0 };
            int before[1000] = { 0 }, after[1000] = { 0 };
            const int fd = open(output, O_RDONLY);
            if (fd >= 0) {
                assert_int_equal(jsonl_read(fd, note, &s, NULL, &e), OK);
                close(fd);
            }
            read_log(log, before);
            struct runner r = runner_new();
            struct batch_counts c;
            struct stopper stop = { .after = (uint64_t)s.n + 1 };
            r.log = open(log, O_WRONLY | O_APPEND | O_CREAT, 0600);
            assert_int_equal(run_files(&o, (struct batch_job){ .n_at_once = 2, .progress = stop_after, .self = &stop,
                                                               .stop = &stop.flag }, &r, &c), OK);
            close(r.log);
            read_log(log, after);
            for (int i = 0; i < n; i++)
                if (s.code[i] == 200 && after[i] != before[i]) fail_msg("id-%d was finished and ran again", i);
        }
        struct runner r = runner_new();
        struct batch_counts c;
        if (run_files(&o, (struct batch_job){ .n_at_once = 4 }, &r, &c) != OK) fail_msg("%s", e.text);
        assert_true(killed > 2);
        each_once(n, failing);
    }
}

static void test_torn(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    struct batch_files_options o = { .input = input, .output = output };
    struct stopper s = { .after = 4 };
    size_t n, nj;
    write_input(6, 0);
    assert_int_equal(
        run_files(&o, (struct batch_job){ .n_at_once = 1, .progress = stop_after, .self = &s, .stop = &s.flag }, &r,
                  &c),
        OK);
    char *text = slurp(output, &n), *head = slurp(journal, &nj);
    o.resume = true;
    for (size_t cut = 0; cut <= n; cut++) {
        write_text(output, text, cut);
        write_text(journal, head, nj);
        if (cut % 5 == 0) {                         /* or what a file system leaves after a power cut */
            FILE *f = fopen(output, "ab");
            for (int i = 0; i < 40; i++) fputc(0, f);
            fclose(f);
        }
        int whole = 0;
        for (size_t i = 0; i < cut; i++) whole += text[i] == '\n';
        struct runner again = runner_new();
        if (run_files(&o, (struct batch_job){ 0 }, &again, &c) != OK) fail_msg("cut at %zu: %s", cut, e.text);
        assert_int_equal(again.n_ran, 6 - whole);
        each_once(6, 0);
    }
    free(text);
    free(head);
}

static void test_refusals(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    struct batch_files_options o = { .input = input, .output = output };
    struct stopper s = { .after = 2 };
    const struct batch_job two = { .n_at_once = 1, .progress = stop_after, .self = &s, .stop = &s.flag };
    write_input(5, 0);
    assert_int_equal(run_files(&o, two, &r, &c), OK);
    assert_int_equal(run_files(&o, two, &r, &c), E_ARG);            /* the output is there */
    assert_non_null(strstr(e.text, "--resume"));
    size_t n, again_n;
    char *before = slurp(output, &n);
    write_input(6, 0);                                              /* a changed input */
    o.resume = true;
    assert_int_equal(run_files(&o, two, &r, &c), E_ARG);
    assert_non_null(strstr(e.text, "changed"));
    char *after = slurp(output, &again_n);
    assert_int_equal(n, again_n);                                   /* and nothing was touched */
    assert_memory_equal(before, after, n);
    free(before);
    free(after);
    write_input(5, 0);
    struct batch_files held;
    assert_int_equal(batch_files_open(&o, &held, &e), OK);          /* another run is at work */
    assert_int_equal(run_files(&o, two, &r, &c), E_ARG);
    assert_non_null(strstr(e.text, "in use"));
    assert_int_equal(batch_files_close(&held, &e), OK);
    unlink(journal);                                                /* an output without a journal */
    assert_int_equal(run_files(&o, two, &r, &c), E_ARG);
    assert_non_null(strstr(e.text, "no journal"));
    o.resume = false;
    o.overwrite = true;
    assert_int_equal(run_files(&o, (struct batch_job){ 0 }, &r, &c), OK);
    each_once(5, 0);
    o.resume = true;                                                /* complete: nothing runs */
    struct runner idle = runner_new();
    assert_int_equal(run_files(&o, (struct batch_job){ 0 }, &idle, &c), OK);
    assert_int_equal(idle.n_ran, 0);
    assert_int_equal(c.completed, 5);
    o.output = input;
    assert_int_equal(run_files(&o, two, &r, &c), E_ARG);
    o.output = output;
    o.error_file = output;
    assert_int_equal(run_files(&o, two, &r, &c), E_ARG);
    o.error_file = NULL;
    o.output = "/dev/null";
    o.resume = o.overwrite = false;
    assert_int_equal(run_files(&o, two, &r, &c), E_ARG);
    o.output = output;
    o.overwrite = true;
    write_text(input, "nonsense\n", 9);
    assert_int_equal(run_files(&o, two, &r, &c), E_INPUT);
    assert_non_null(strstr(e.text, "line 1"));
    unlink(input);
    assert_int_equal(run_files(&o, two, &r, &c), E_INPUT);
}

/* The lines that failed run again with a resume, and stand in the output once. */
static void test_failed_again(void **state)
{
    (void)state;
    struct runner r = runner_new();
    struct batch_counts c;
    struct batch_files_options o = { .input = input, .output = output };
    write_input(20, 4);
    assert_int_equal(run_files(&o, (struct batch_job){ 0 }, &r, &c), OK);
    assert_int_equal(c.failed, 5);
    struct runner again = runner_new();
    o.resume = true;
    assert_int_equal(run_files(&o, (struct batch_job){ 0 }, &again, &c), OK);
    assert_int_equal(again.n_ran, 5);
    assert_int_equal(c.failed, 5);
    each_once(20, 4);
}

/* Disk full in the middle: an error, no torn line, and a resume ends it. */
static void test_disk_full(void **state)
{
    (void)state;
    struct batch_files_options o = { .input = input, .output = output, .resume = true };
    write_input(50, 0);
    const pid_t child = fork();
    if (child == 0) {
        struct runner r = runner_new();
        struct batch_counts c;
        signal(SIGXFSZ, SIG_IGN);
        const struct rlimit limit = { 2000, 2000 };
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(2);
        const status st = run_files(&o, (struct batch_job){ .n_at_once = 3 }, &r, &c);
        _exit(st == E_NOMEM && c.completed > 0 && c.completed < 50 ? 0 : 1);
    }
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), 0);
    struct seen s = { 0 };
    look(output, &s);
    struct runner r = runner_new();
    struct batch_counts c;
    assert_int_equal(run_files(&o, (struct batch_job){ .n_at_once = 3 }, &r, &c), OK);
    assert_int_equal(r.n_ran, 50 - s.n);
    each_once(50, 0);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_problems),      CASE(test_scan_edges),   CASE(test_reader),      CASE(test_all),
        CASE(test_longest_first), CASE(test_media_paths),  CASE(test_media_links), CASE(test_stream_refused),
        CASE(test_full_queue),    CASE(test_draining),     CASE(test_fail_fast),   CASE(test_stop_and_kill),
        CASE(test_slots),         CASE(test_never),        CASE(test_sigkill),     CASE(test_torn),
        CASE(test_refusals),      CASE(test_failed_again), CASE(test_disk_full),
    };
    return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
