/* api/batches.c - see batches.h.
 * One manager thread validates, starts and times; each of up to MAX_ACTIVE batches has a thread that owns its files and
 * runs batch_work. What is told to clients is under the lock; a batch's thread holds `busy` and alone touches the rest.
 * A batch object lives until batches_close or until it was forgotten, long after its end. */
#include "api/batches.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "api/error.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"

#define AT_ONCE 8
#define MAX_ACTIVE 4
#define MAX_LIVE 1000              /* batches that are not over */
#define LINES_MAX 50000
#define INPUT_MAX ((uint64_t)200000000)
#define WINDOW_S ((int64_t)86400)
#define KEEP_S ((int64_t)30 * 86400)   /* a batch is known for so long after its end */
#define CANCEL_S 60.0
#define AGAIN_S 10.0               /* after the disk was full, say */
#define LIST_DEFAULT 20
#define LIST_MAX 100
#define METADATA_MAX 16            /* pairs; keys of 64 bytes, values of 512 */

struct batch {
    struct batches *in;
    struct batch_state s;          /* under the lock */
    struct jsonl *journal;         /* NULL once over */
    bool holds_input;
    bool busy;                     /* a thread works on it */
    bool joinable;                 /* and its thread was not joined */
    pthread_t thread;
    double not_before_s;           /* clock: begin again then */
    double stop_since_s;           /* clock: running lines were told to come to an end; 0: not */
    atomic_bool stop, kill;
};

struct batches {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct batches_options o;
    int64_t (*now)(void);
    char *dir;
    int lock_fd;
    struct batch **batch;          /* [n] oldest first */
    size_t n, cap;
    batches_run run;
    void *run_self;
    uint32_t n_lines, n_active;
    bool draining, closing;
    pthread_t manager;
    bool has_manager;
};

static int64_t wall_clock(void) { return (int64_t)time(NULL); }

static status bad(struct err *e, const char *tag, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static status bad(struct err *e, const char *tag, const char *param, const char *fmt, ...)
{
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err_set(e, E_ARG, "%s", text);
    return err_tag(e, tag, param);
}

static char *path_of(const struct batches *b, const char *id, const char *suffix)
{
    const size_t n = strlen(b->dir) + strlen(id) + strlen(suffix) + 2;
    char *path = mem_must(n, 1);
    snprintf(path, n, "%s/%s%s", b->dir, id, suffix);
    return path;
}

static void remove_file(const struct batches *b, const char *id, const char *suffix)
{
    char *path = path_of(b, id, suffix);
    unlink(path);
    free(path);
}

/* ---- states (under the lock) ------------------------------------------------------------------------------------- */

static void enters(struct batch *t, enum batch_status next)
{
    t->s.status = next;
    if (t->s.at[next] == 0) t->s.at[next] = t->in->now();
}

/* The state as it is now goes to disk. A failure is told, and the next change writes all of it again. */
static status save(struct batch *t, struct err *e)
{
    json_t *line = batch_state_line(&t->s);
    status st = line ? jsonl_add(t->journal, line, e) : err_set(e, E_NOMEM, "out of memory");
    json_decref(line);
    return st == OK ? jsonl_sync(t->journal, e) : st;
}

static void release_input(struct batch *t)
{
    if (t->holds_input) files_release(t->in->o.files, t->s.input_file_id);
    t->holds_input = false;
}

/* It is over: on disk, then the input and the working files go. Where the disk is full, it stays as it was. */
static status ends(struct batch *t, enum batch_status last, struct err *e)
{
    const enum batch_status before = t->s.status;
    enters(t, last);
    const status st = save(t, e);
    if (st != OK) {
        t->s.status = before;
        t->s.at[last] = 0;
        return st;
    }
    jsonl_close(&t->journal);
    release_input(t);
    remove_file(t->in, t->s.id, ".out");
    remove_file(t->in, t->s.id, ".err");
    return OK;
}

static void add_problem(struct batch *t, const char *code, const char *param, uint64_t line, const char *message)
{
    if (t->s.problems == NULL) t->s.problems = json_array();
    json_array_append_new(t->s.problems, json_pack("{s:s, s:o, s:s, s:o}", "code", code, "line",
                                                   line ? json_integer((json_int_t)line) : json_null(), "message",
                                                   message, "param", param ? json_string(param) : json_null()));
}

static void put_off(struct batch *t)
{
    t->not_before_s = clock_s() + AGAIN_S;
}

/* ---- one batch at work: its own thread, no lock but where taken -------------------------------------------------- */

struct working {
    struct batch *t;
    struct batch_plan *plan;
    struct jsonl *out, *errors;
    int fd;                        /* of the input */
};

static bool keep_line(void *self, const json_t *line)
{
    struct working *w = self;
    return batch_plan_have(w->plan, line) == BATCH_HAVE;
}

static void run_line(void *self, const char *endpoint, const char *body, size_t n, const char *request_id,
                     const atomic_bool *stop, int *status_code, json_t **reply)
{
    const struct batch *t = self;
    t->in->run(t->in->run_self, t->s.owner, endpoint, body, n, request_id, stop, status_code, reply);
}

/* May one more line run? Under the lock. */
static bool has_room(const struct batches *b)
{
    const uint32_t at_once = b->o.n_at_once ? b->o.n_at_once : AT_ONCE;
    return b->run && b->n_lines < at_once && (b->o.room == NULL || b->n_lines < b->o.room(b->o.room_self, b->n_lines));
}

static void wait_until(pthread_cond_t *c, pthread_mutex_t *m, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)(seconds * 1e9);
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(c, m, &until);
}

static bool enter(void *self)
{
    struct batch *t = self;
    struct batches *b = t->in;
    pthread_mutex_lock(&b->lock);
    while (!atomic_load(&t->stop) && !has_room(b)) wait_until(&b->changed, &b->lock, 0.05);
    const bool go = !atomic_load(&t->stop);
    if (go) b->n_lines++;
    pthread_mutex_unlock(&b->lock);
    return go;
}

static void leave(void *self)
{
    struct batches *b = ((struct batch *)self)->in;
    pthread_mutex_lock(&b->lock);
    b->n_lines--;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

static void tell(struct batch *t, const struct batch_counts *c)
{
    const struct batches_options *o = &t->in->o;
    pthread_mutex_lock(&t->in->lock);
    const struct batch_counts before = t->s.counts;
    t->s.counts = *c;
    pthread_mutex_unlock(&t->in->lock);
    if (o->observe == NULL) return;
    for (uint64_t i = before.completed; i < c->completed; i++) o->observe(o->observe_self, 200);
    for (uint64_t i = before.failed; i < c->failed; i++) o->observe(o->observe_self, 400);
    for (uint64_t i = before.never; i < c->never; i++) o->observe(o->observe_self, 0);
}

static void progress(void *self, const struct batch_counts *c) { tell(self, c); }

static status open_lines(struct working *w, struct err *e)
{
    const struct batch *t = w->t;
    char *out = path_of(t->in, t->s.id, ".out"), *errors = path_of(t->in, t->s.id, ".err");
    status st = jsonl_open(out, true, keep_line, w, &w->out, e);
    if (st == OK) st = jsonl_open(errors, true, keep_line, w, &w->errors, e);
    free(out);
    free(errors);
    return st;
}

static status open_input(struct batch *t, int *fd, struct err *e)
{
    struct file_info info;
    return files_open_data(t->in->o.files, t->s.owner, t->s.input_file_id, &info, fd, e);
}

static status scan(struct batch *t, int fd, struct batch_plan **out, struct err *e)
{
    struct batch_rules r = { .endpoint = t->s.endpoint, .lines_max = LINES_MAX, .stop = &t->kill };
    return batch_scan(fd, &r, out, e);
}

/* A file of lines becomes a file of the store, under the id that was chosen; "": it has none. */
static status store(const struct batch *t, const char *suffix, const char *id, const char *what, struct err *e)
{
    if (*id == 0) return OK;
    char name[BATCH_ID + 24], *path = path_of(t->in, t->s.id, suffix);
    struct file_info info;
    snprintf(name, sizeof name, "%s_%s.jsonl", t->s.id, what);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    free(path);
    if (fd < 0) return err_set(e, E_IO, "the lines of a batch cannot be read: %s", strerror(errno));
    const struct file_add a = { .id = id, .owner = t->s.owner, .filename = name, .purpose = "batch_output", .fd = fd,
                                .may_link = true, .own = true, .expires_after = t->s.output_expires_after };
    const status st = files_add(t->in->o.files, &a, &info, e);
    close(fd);
    return st;
}

/* All lines are over: their files are stored, then the last status is true. */
static status finalize(struct working *w, enum batch_status last, struct err *e)
{
    struct batch *t = w->t;
    pthread_mutex_lock(&t->in->lock);
    t->s.ending = last;
    if (last != BATCH_CANCELLED) enters(t, BATCH_FINALIZING);
    char out[FILES_ID] = "", errors[FILES_ID] = "";
    if (t->s.output_file_id[0] == 0 && jsonl_bytes(w->out)) files_new_id(t->s.output_file_id);
    if (t->s.error_file_id[0] == 0 && jsonl_bytes(w->errors)) files_new_id(t->s.error_file_id);
    strcpy(out, t->s.output_file_id);
    strcpy(errors, t->s.error_file_id);
    status st = save(t, e);
    pthread_mutex_unlock(&t->in->lock);
    if (st == OK) st = store(t, ".out", out, "output", e);
    if (st == OK) st = store(t, ".err", errors, "error", e);
    if (st != OK) return st;
    pthread_mutex_lock(&t->in->lock);
    st = ends(t, last, e);
    pthread_mutex_unlock(&t->in->lock);
    return st;
}

/* How it is to end, as things are now; BATCH_IN_PROGRESS: it is not to end yet. */
static enum batch_status ending_of(struct batch *t, const struct batch_counts *c)
{
    enum batch_status last = BATCH_IN_PROGRESS;
    pthread_mutex_lock(&t->in->lock);
    if (t->s.status == BATCH_FINALIZING) last = t->s.ending;
    else if (t->s.status == BATCH_CANCELLING) last = BATCH_CANCELLED;
    else if (c->completed + c->failed == c->total) last = BATCH_COMPLETED;
    else if (t->s.expires_at <= t->in->now()) last = BATCH_EXPIRED;
    pthread_mutex_unlock(&t->in->lock);
    return last;
}

static status work(struct working *w, struct err *e)
{
    struct batch *t = w->t;
    struct batch_counts c;
    TRY(open_input(t, &w->fd, e));
    TRY(scan(t, w->fd, &w->plan, e));
    TRY(open_lines(w, e));
    batch_plan_counts(w->plan, &c);
    pthread_mutex_lock(&t->in->lock);
    t->s.counts = c;               /* those of an earlier process are not told again */
    pthread_mutex_unlock(&t->in->lock);
    const struct batch_job j = { .plan = w->plan, .fd = w->fd, .out = w->out, .errors = w->errors, .run = run_line,
                                 .run_self = t, .n_at_once = t->in->o.n_at_once, .stop = &t->stop, .kill = &t->kill,
                                 .enter = enter, .leave = leave, .progress = progress, .self = t };
    if (ending_of(t, &c) == BATCH_IN_PROGRESS) TRY(batch_work(&j, &c, e));
    const enum batch_status last = ending_of(t, &c);
    if (last == BATCH_IN_PROGRESS) return OK;          /* a drain: the next process goes on */
    if (last == BATCH_CANCELLED)
        TRY(batch_never(&j, "batch_cancelled", "the batch was cancelled before this line ran", e));
    if (last == BATCH_EXPIRED) TRY(batch_never(&j, "batch_expired", "the batch expired before this line ran", e));
    batch_plan_counts(w->plan, &c);
    tell(t, &c);
    return finalize(w, last, e);
}

static void *work_thread(void *arg)
{
    struct batch *t = arg;
    struct batches *b = t->in;
    struct working w = { .t = t, .fd = -1 };
    struct err e;
    const status st = work(&w, &e);
    jsonl_close(&w.out);
    jsonl_close(&w.errors);
    batch_plan_free(&w.plan);
    if (w.fd >= 0) close(w.fd);
    pthread_mutex_lock(&b->lock);
    if (st != OK) put_off(t);
    t->busy = false;
    b->n_active--;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

/* ---- the manager ------------------------------------------------------------------------------------------------- */

/* Reads and checks the input. Under the lock, which is let go meanwhile. */
static void validate(struct batch *t)
{
    struct batches *b = t->in;
    struct batch_plan *plan = NULL;
    struct err e;
    int fd = -1;
    size_t n = 0, all = 0;
    t->busy = true;
    pthread_mutex_unlock(&b->lock);
    status st = open_input(t, &fd, &e);
    if (st == OK) st = scan(t, fd, &plan, &e);
    if (fd >= 0) close(fd);
    pthread_mutex_lock(&b->lock);
    t->busy = false;
    const struct batch_problem *p = st == OK ? batch_plan_problems(plan, &n, &all) : NULL;
    for (size_t i = 0; i < n; i++) add_problem(t, p[i].code, p[i].param, p[i].line, p[i].message);
    if (st == OK) batch_plan_counts(plan, &t->s.counts);
    if (st == OK && t->s.status == BATCH_VALIDATING) {
        if (all > 0) {
            st = ends(t, BATCH_FAILED, &e);
        } else {
            enters(t, BATCH_IN_PROGRESS);
            st = save(t, &e);
        }
    }
    if (st != OK) put_off(t);
    batch_plan_free(&plan);
}

static void start_work(struct batch *t)
{
    struct batches *b = t->in;
    if (t->joinable) pthread_join(t->thread, NULL);    /* it has ended: busy is false */
    t->joinable = pthread_create(&t->thread, NULL, work_thread, t) == 0;
    if (!t->joinable) {
        put_off(t);
        return;
    }
    t->busy = true;
    b->n_active++;
}

/* Cancelled and expired batches: their lines come to an end, then are brought to one. */
static void time_batch(struct batch *t)
{
    const bool over_time = t->s.expires_at <= t->in->now(), cancelled = t->s.status == BATCH_CANCELLING;
    const double now = clock_s(), cancel_s = t->in->o.cancel_s > 0 ? t->in->o.cancel_s : CANCEL_S;
    if (!t->busy || !(over_time || cancelled)) return;
    atomic_store(&t->stop, true);
    if (t->stop_since_s <= 0) t->stop_since_s = now;
    if (now - t->stop_since_s >= cancel_s) atomic_store(&t->kill, true);
}

static void manage_one(struct batches *b, struct batch *t)
{
    time_batch(t);
    if (t->busy || batch_is_over(&t->s) || clock_s() < t->not_before_s) return;
    if (t->s.status == BATCH_VALIDATING) {
        validate(t);
    } else if (b->n_active < MAX_ACTIVE &&
               (b->run || t->s.status != BATCH_IN_PROGRESS || t->s.expires_at <= b->now())) {
        start_work(t);
    }
}

/* Batches that ended long ago. */
static void forget_old(struct batches *b)
{
    size_t kept = 0;
    for (size_t i = 0; i < b->n; i++) {
        struct batch *t = b->batch[i];
        if (t->busy || !batch_is_over(&t->s) || t->s.at[t->s.status] + KEEP_S > b->now()) {
            b->batch[kept++] = t;
            continue;
        }
        if (t->joinable) pthread_join(t->thread, NULL);
        remove_file(b, t->s.id, ".odj");
        batch_state_free(&t->s);
        free(t);
    }
    b->n = kept;
}

static void *manage(void *arg)
{
    struct batches *b = arg;
    double swept_s = 0;
    pthread_mutex_lock(&b->lock);
    while (!b->closing) {
        /* By index: validate() lets the lock go, and the list may grow. */
        for (size_t i = 0; i < b->n && !b->closing && !b->draining; i++) manage_one(b, b->batch[i]);
        if (clock_s() - swept_s > 60) {
            forget_old(b);
            pthread_mutex_unlock(&b->lock);
            files_sweep(b->o.files);
            pthread_mutex_lock(&b->lock);
            swept_s = clock_s();
        }
        if (!b->closing) wait_until(&b->changed, &b->lock, 0.2);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

/* ---- opening and closing ----------------------------------------------------------------------------------------- */

static bool read_state(void *self, const json_t *line) { return batch_state_read(line, self); }

/* The journal of one batch; what holds no state is removed. */
static status load_batch(struct batches *b, const char *id, struct err *e)
{
    struct batch *t = mem_must(1, sizeof *t);
    struct file_info info;
    struct err ignored;
    char *path = path_of(b, id, ".odj");
    t->in = b;
    status st = jsonl_open(path, true, read_state, &t->s, &t->journal, e);
    if (st == OK && strcmp(t->s.id, id) != 0) {        /* it died before its first state was on disk */
        unlink(path);
        jsonl_close(&t->journal);
        batch_state_free(&t->s);
        free(t);
        free(path);
        return OK;
    }
    free(path);
    if (st == OK) st = mem_grow(&b->batch, &b->cap, b->n + 1, sizeof(struct batch *), e);
    if (st != OK) {
        jsonl_close(&t->journal);
        batch_state_free(&t->s);
        free(t);
        return st;
    }
    b->batch[b->n++] = t;
    if (batch_is_over(&t->s)) {
        jsonl_close(&t->journal);
        remove_file(b, id, ".out");
        remove_file(b, id, ".err");
    } else if (files_hold(b->o.files, t->s.owner, t->s.input_file_id, &info, &ignored) == OK) {
        t->holds_input = true;
    } else {
        add_problem(t, "not_found", "input_file_id", 0, "the input file is not there any more");
        TRY(ends(t, BATCH_FAILED, e));
    }
    return OK;
}

static int by_age(const void *pa, const void *pb)
{
    const struct batch *a = *(struct batch *const *)pa, *b = *(struct batch *const *)pb;
    return a->s.created_at != b->s.created_at ? (a->s.created_at < b->s.created_at ? -1 : 1) : strcmp(a->s.id, b->s.id);
}

static status load(struct batches *b, struct err *e)
{
    DIR *d = opendir(b->dir);
    status st = OK;
    if (d == NULL) return err_set(e, E_IO, "%s: %s", b->dir, strerror(errno));
    for (const struct dirent *t; st == OK && (t = readdir(d)) != NULL;) {
        const char *dot = strrchr(t->d_name, '.');
        char id[BATCH_ID];
        if (dot == NULL || strcmp(dot, ".odj") != 0 || dot - t->d_name != BATCH_ID - 2) continue;
        memcpy(id, t->d_name, BATCH_ID - 2);
        id[BATCH_ID - 2] = 0;
        st = load_batch(b, id, e);
    }
    closedir(d);
    if (b->n) qsort(b->batch, b->n, sizeof *b->batch, by_age);
    return st;
}

status batches_open(const struct batches_options *o, struct batches **out, struct err *e)
{
    if (mkdir(o->dir, 0700) != 0 && errno != EEXIST) return err_set(e, E_IO, "%s: %s", o->dir, strerror(errno));
    struct batches *b = mem_must(1, sizeof *b);
    *b =
        (struct batches){ .o = *o, .now = o->now ? o->now : wall_clock, .dir = mem_must_strdup(o->dir), .lock_fd = -1 };
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    char *path = path_of(b, "lock", "");
    b->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    free(path);
    status st = OK;
    if (b->lock_fd < 0) st = err_set(e, E_IO, "%s: %s", o->dir, strerror(errno));
    else if (flock(b->lock_fd, LOCK_EX | LOCK_NB) != 0)
        st = err_set(e, E_ARG, "%s is in use by another server: give each its own --state-dir", o->dir);
    if (st == OK) st = load(b, e);
    if (st == OK) {
        b->has_manager = pthread_create(&b->manager, NULL, manage, b) == 0;
        if (!b->has_manager) st = err_set(e, E_NOMEM, "no thread can be started");
    }
    if (st != OK) batches_close(&b);
    *out = b;
    return st;
}

void batches_start(struct batches *b, batches_run run, void *run_self)
{
    pthread_mutex_lock(&b->lock);
    b->run = run;
    b->run_self = run_self;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

void batches_drain(struct batches *b)
{
    pthread_mutex_lock(&b->lock);
    b->draining = true;
    for (size_t i = 0; i < b->n; i++) atomic_store(&b->batch[i]->stop, true);
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

void batches_close(struct batches **pb)
{
    struct batches *b = *pb;
    if (b == NULL) return;
    batches_drain(b);
    pthread_mutex_lock(&b->lock);
    b->closing = true;
    for (size_t i = 0; i < b->n; i++) atomic_store(&b->batch[i]->kill, true);
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    if (b->has_manager) pthread_join(b->manager, NULL);
    for (size_t i = 0; i < b->n; i++) {
        struct batch *t = b->batch[i];
        if (t->joinable) pthread_join(t->thread, NULL);
        jsonl_close(&t->journal);
        release_input(t);
        batch_state_free(&t->s);
        free(t);
    }
    if (b->lock_fd >= 0) close(b->lock_fd);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
    free(b->batch);
    free(b->dir);
    free(b);
    *pb = NULL;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* A string member of the body. */
static status text_member(const json_t *o, const char *key, const char **out, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (v == NULL || json_is_null(v)) return bad(e, "missing_required_parameter", key, "%s is missing", key);
    if (!json_is_string(v)) return bad(e, "invalid_type", key, "%s is %s: give a string", key, doc_kind(v));
    *out = json_string_value(v);
    return OK;
}

static status check_metadata(const json_t *m, struct err *e)
{
    const char *key;
    json_t *v;
    if (m == NULL || json_is_null(m)) return OK;
    if (!json_is_object(m)) return bad(e, "invalid_type", "metadata", "metadata is %s: give an object", doc_kind(m));
    if (json_object_size(m) > METADATA_MAX)
        return bad(e, "invalid_value", "metadata", "metadata has %zu pairs, %d are allowed", json_object_size(m),
                   METADATA_MAX);
    json_object_foreach((json_t *)m, key, v)
    {
        if (!json_is_string(v))
            return bad(e, "invalid_type", "metadata", "metadata holds %s: give strings", doc_kind(v));
        if (strlen(key) > 64 || json_string_length(v) > 512)
            return bad(e, "invalid_value", "metadata",
                       "a pair of metadata is too long: keys have up to 64 bytes, values 512");
    }
    return OK;
}

/* output_expires_after: {"anchor":"created_at","seconds"}. */
static status read_expiry(const json_t *o, int64_t *seconds, struct err *e)
{
    const json_t *x = json_object_get(o, "output_expires_after"), *s = json_object_get(x, "seconds");
    const char *anchor;
    if (x == NULL || json_is_null(x)) return OK;
    if (!json_is_object(x))
        return bad(e, "invalid_type", "output_expires_after", "output_expires_after is %s: give an object",
                   doc_kind(x));
    TRY(text_member(x, "anchor", &anchor, e));
    if (strcmp(anchor, "created_at") != 0)
        return bad(e, "invalid_value", "output_expires_after.anchor", "the anchor is \"%.32s\": give created_at",
                   anchor);
    if (!json_is_integer(s))
        return bad(e, s ? "invalid_type" : "missing_required_parameter", "output_expires_after.seconds",
                   "seconds is %s: give "
                   "an integer",
                   s ? doc_kind(s) : "missing");
    *seconds = json_integer_value(s);
    return files_check_expiry(*seconds, "output_expires_after.seconds", e);
}

/* The body's fields into a state; the input file is not looked at yet. */
static status read_create(const json_t *o, struct batch_state *s, struct err *e)
{
    const char *endpoint, *window, *input;
    bool known = false;
    if (!json_is_object(o)) return bad(e, "invalid_type", NULL, "the body is %s: give an object", doc_kind(o));
    TRY(text_member(o, "input_file_id", &input, e));
    TRY(text_member(o, "endpoint", &endpoint, e));
    TRY(text_member(o, "completion_window", &window, e));
    for (size_t i = 0; batch_endpoints[i]; i++) known |= strcmp(endpoint, batch_endpoints[i]) == 0;
    if (!known)
        return bad(e, "invalid_value", "endpoint", "endpoint is \"%.64s\": give %s, %s, %s or %s", endpoint,
                   batch_endpoints[0], batch_endpoints[1], batch_endpoints[2], batch_endpoints[3]);
    if (strcmp(window, "24h") != 0)
        return bad(e, "invalid_value", "completion_window", "completion_window is \"%.32s\": only 24h is offered",
                   window);
    TRY(check_metadata(json_object_get(o, "metadata"), e));
    TRY(read_expiry(o, &s->output_expires_after, e));
    if (strlen(input) >= sizeof s->input_file_id)
        return bad(e, "not_found", "input_file_id", "there is no file \"%.64s\"", input);
    strcpy(s->input_file_id, input);
    strcpy(s->endpoint, endpoint);
    if (json_is_object(json_object_get(o, "metadata"))) s->metadata = json_incref(json_object_get(o, "metadata"));
    return OK;
}

static void new_id(char id[BATCH_ID])
{
    char file[FILES_ID];
    files_new_id(file);            /* 128 random bits */
    snprintf(id, BATCH_ID, "batch_%.32s", file + 5);
}

static status hold_input(struct batches *b, struct batch_state *s, struct err *e)
{
    struct file_info info;
    const status st = files_hold(b->o.files, s->owner, s->input_file_id, &info, e);
    if (st != OK) {
        if (e) snprintf(e->param, sizeof e->param, "input_file_id");
        return st;
    }
    if (strcmp(info.purpose, "batch") != 0)
        bad(e, "invalid_value", "input_file_id", "the file's purpose is \"%s\": upload it with purpose batch",
            info.purpose);
    else if (info.bytes > INPUT_MAX)
        bad(e, "invalid_value", "input_file_id", "the input has %llu bytes, %llu are allowed",
            (unsigned long long)info.bytes, (unsigned long long)INPUT_MAX);
    else
        return OK;
    files_release(b->o.files, s->input_file_id);
    return E_ARG;
}

/* Under the lock. */
static status may_create(const struct batches *b, struct err *e)
{
    size_t live = 0;
    if (b->draining) {
        err_set(e, E_BUSY, "the server is ending and takes no more batches");
        return err_tag(e, "draining", NULL);
    }
    for (size_t i = 0; i < b->n; i++) live += !batch_is_over(&b->batch[i]->s);
    if (live < MAX_LIVE) return OK;
    err_set(e, E_BUSY, "%zu batches are not over, more are not taken: wait, or cancel some", live);
    return err_tag(e, "rate_limit_exceeded", NULL);
}

/* A new batch with its first state on disk. Under the lock. */
static status begin(struct batches *b, struct batch *t, struct err *e)
{
    TRY(may_create(b, e));
    TRY(mem_grow(&b->batch, &b->cap, b->n + 1, sizeof *b->batch, e));
    char *path = path_of(b, t->s.id, ".odj");
    t->s.created_at = b->now();
    t->s.expires_at = t->s.created_at + WINDOW_S;
    status st = jsonl_open(path, false, NULL, NULL, &t->journal, e);
    if (st == OK) st = save(t, e);
    if (st != OK) unlink(path);
    free(path);
    if (st == OK) b->batch[b->n++] = t;
    return st;
}

status batches_create(struct batches *b, const char *owner, const char *body, size_t n, json_t **out, struct err *e)
{
    static const struct doc_limits limits = { .bytes_max = (size_t)1 << 20, .depth_max = 64, .code = E_ARG };
    struct doc d;
    struct batch *t = mem_must(1, sizeof *t);
    t->in = b;
    status st = doc_parse(body, n, "the body", &limits, &d, e);
    if (st != OK) {
        free(t);
        return err_tag(e, "invalid_json", NULL);
    }
    snprintf(t->s.owner, sizeof t->s.owner, "%s", owner);
    new_id(t->s.id);
    st = read_create(d.root, &t->s, e);
    doc_close(&d);
    if (st == OK) st = hold_input(b, &t->s, e);
    if (st == OK) t->holds_input = true;
    pthread_mutex_lock(&b->lock);
    if (st == OK) st = begin(b, t, e);
    if (st == OK) *out = batch_state_json(&t->s);
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    if (st != OK) {
        jsonl_close(&t->journal);
        release_input(t);
        batch_state_free(&t->s);
        free(t);
    }
    return st;
}

/* Under the lock; NULL: none of that id is the owner's. */
static struct batch *find(struct batches *b, const char *owner, const char *id)
{
    for (size_t i = 0; i < b->n; i++)
        if (strcmp(b->batch[i]->s.id, id) == 0 && strcmp(b->batch[i]->s.owner, owner) == 0) return b->batch[i];
    return NULL;
}

static status no_such(const char *id, struct err *e)
{
    return bad(e, "not_found", "batch_id", "there is no batch \"%.64s\"", id);
}

status batches_get(struct batches *b, const char *owner, const char *id, json_t **out, struct err *e)
{
    pthread_mutex_lock(&b->lock);
    const struct batch *t = find(b, owner, id);
    if (t) *out = batch_state_json(&t->s);
    pthread_mutex_unlock(&b->lock);
    return t ? OK : no_such(id, e);
}

status batches_cancel(struct batches *b, const char *owner, const char *id, json_t **out, struct err *e)
{
    pthread_mutex_lock(&b->lock);
    struct batch *t = find(b, owner, id);
    status st = t ? OK : no_such(id, e);
    if (t && (t->s.status == BATCH_VALIDATING || t->s.status == BATCH_IN_PROGRESS)) {
        const enum batch_status before = t->s.status;
        enters(t, BATCH_CANCELLING);
        st = save(t, e);
        if (st == OK) {
            atomic_store(&t->stop, true);
        } else {
            t->s.status = before;
            t->s.at[BATCH_CANCELLING] = 0;
        }
    } else if (t && t->s.status != BATCH_CANCELLING && t->s.status != BATCH_CANCELLED) {
        st = bad(e, "invalid_value", "batch_id", "a batch that is %s cannot be cancelled",
                 batch_status_name(t->s.status));
    }
    if (st == OK) *out = batch_state_json(&t->s);
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    return st;
}

status batches_list(struct batches *b, const char *owner, const char *after, uint32_t limit, json_t **out,
                    struct err *e)
{
    bool more = false, begun = after == NULL;
    const uint32_t most = limit ? limit : LIST_DEFAULT;
    if (limit > LIST_MAX) return bad(e, "invalid_value", "limit", "limit is %u: give 1 to %d", limit, LIST_MAX);
    json_t *data = json_array();
    pthread_mutex_lock(&b->lock);
    for (size_t i = b->n; i-- > 0 && !more;) {
        const struct batch *t = b->batch[i];
        if (strcmp(t->s.owner, owner) != 0) continue;
        if (begun) {
            more = json_array_size(data) == most;
            if (!more) json_array_append_new(data, batch_state_json(&t->s));
        } else if (strcmp(t->s.id, after) == 0) {
            begun = true;
        }
    }
    pthread_mutex_unlock(&b->lock);
    if (!begun) {
        json_decref(data);
        return bad(e, "invalid_value", "after", "there is no batch \"%.64s\" to list from", after);
    }
    const size_t n = json_array_size(data);
    const json_t *first = n ? json_object_get(json_array_get(data, 0), "id") : NULL;
    const json_t *last = n ? json_object_get(json_array_get(data, n - 1), "id") : NULL;
    *out = json_pack("{s:s, s:o, s:O?, s:O?, s:b}", "object", "list", "data", data, "first_id", first, "last_id", last,
                     "has_more", more);
    return OK;
}

void batches_count(struct batches *b, uint32_t *n_live, uint32_t *n_lines)
{
    pthread_mutex_lock(&b->lock);
    *n_live = 0;
    for (size_t i = 0; i < b->n; i++) *n_live += !batch_is_over(&b->batch[i]->s);
    *n_lines = b->n_lines;
    pthread_mutex_unlock(&b->lock);
}
