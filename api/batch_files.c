/* api/batch_files.c - the files of an offline batch: batch_files_open, batch_files_close of batch.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/batch.h"
#include "base/mem.h"

#define SHOWN 5                    /* bad lines in the message */

static char *with_suffix(const char *path, const char *suffix)
{
    const size_t n = strlen(path) + strlen(suffix) + 1;
    char *out = mem_must(n, 1);
    snprintf(out, n, "%s%s", path, suffix);
    return out;
}

static status problems_err(const struct batch_files_options *o, const struct batch_plan *p, struct err *e)
{
    size_t n, all, at = 0;
    char text[900] = "";
    const struct batch_problem *b = batch_plan_problems(p, &n, &all);
    if (all == 0) return OK;
    if (b[0].line == 0) return err_set(e, E_INPUT, "%s: %s", o->input, b[0].message);
    for (size_t i = 0; i < n && i < SHOWN; i++) {
        const int got = snprintf(text + at, sizeof text - at, "%sline %llu: %.150s", i ? "; " : "",
                                 (unsigned long long)b[i].line, b[i].message);
        at += got > 0 ? (size_t)got : 0;
    }
    if (all > SHOWN) snprintf(text + at, sizeof text - at, "; and %zu more", all - SHOWN);
    return err_set(e, E_INPUT, "%s: nothing was run: %s", o->input, text);
}

/* ---- the journal: one line, the input that the outputs belong to ------------------------------------------------ */

struct journal_head { const char *digest; bool found, same; };

static bool read_head(void *self, const json_t *line)
{
    struct journal_head *h = self;
    const char *digest = json_string_value(json_object_get(line, "input"));
    if (h->found || !json_is_integer(json_object_get(line, "omnidrop_batch")) || digest == NULL) return false;
    h->found = true;
    h->same = strcmp(digest, h->digest) == 0 && json_integer_value(json_object_get(line, "omnidrop_batch")) == 1;
    return true;
}

/* Of an earlier run: *found false where there is none, or none that was ever written. E_ARG: of another input. */
static status check_journal(const struct batch_files *b, const char *input, bool *found, struct err *e)
{
    struct journal_head h = { .digest = batch_plan_digest(b->plan) };
    const int fd = open(b->journal_path, O_RDONLY | O_CLOEXEC);
    *found = false;
    if (fd < 0 && errno == ENOENT) return OK;
    if (fd < 0) return err_set(e, E_IO, "%s: %s", b->journal_path, strerror(errno));
    uint64_t valid;
    const status st = jsonl_read(fd, read_head, &h, &valid, e);
    close(fd);
    TRY(st);
    *found = h.found;
    if (h.found && !h.same)
        return err_set(e, E_ARG, "%s changed since %s was begun: give the input of then, or start anew with -y", input,
                       b->journal_path);
    return OK;
}

static status begin_journal(struct batch_files *b, bool found, struct err *e)
{
    TRY(jsonl_open(b->journal_path, found, NULL, NULL, &b->journal, e));
    if (found) return OK;
    json_t *o = json_pack("{s:i, s:s}", "omnidrop_batch", 1, "input", batch_plan_digest(b->plan));
    status st = o ? jsonl_add(b->journal, o, e) : err_set(e, E_NOMEM, "out of memory");
    json_decref(o);
    return st == OK ? jsonl_sync(b->journal, e) : st;
}

/* ---- what an earlier run left ------------------------------------------------------------------------------------ */

struct earlier { struct batch_plan *plan; uint64_t n_good, n_failed; enum batch_have bad; };

static bool read_earlier(void *self, const json_t *line)
{
    struct earlier *w = self;
    const int status_code = batch_line_status(line);
    if (status_code >= 400 || status_code == 0) {
        w->n_failed++;
        return true;
    }
    const enum batch_have have = batch_plan_have(w->plan, line);
    if (have == BATCH_HAVE) w->n_good++;
    else w->bad = have;
    return have == BATCH_HAVE;
}

struct copying { FILE *to; bool bad; };

static bool copy_good(void *self, const json_t *line)
{
    struct copying *c = self;
    const int status_code = batch_line_status(line);
    if (status_code >= 400 || status_code == 0) return true;
    if (json_dumpf(line, c->to, JSON_COMPACT | JSON_REAL_PRECISION(15)) != 0 || fputc('\n', c->to) == EOF)
        c->bad = true;
    return !c->bad;
}

/* The output without the lines that failed: they run again and must not stand there twice. */
static status drop_failed(int fd, const char *path, struct err *e)
{
    char *part = with_suffix(path, ".part");
    struct copying c = { .to = fopen(part, "we") };
    status st = c.to ? jsonl_read(fd, copy_good, &c, NULL, e) : OK;
    bool bad = c.to == NULL || c.bad;
    if (c.to) {
        if (fflush(c.to) != 0 || fsync(fileno(c.to)) != 0) bad = true;
        fclose(c.to);
    }
    if (st == OK && (bad || rename(part, path) != 0))
        st = err_set(e, errno == ENOSPC || errno == EDQUOT ? E_NOMEM : E_IO, "%s cannot be written: %s", part,
                     strerror(errno));
    if (st != OK) unlink(part);
    free(part);
    return st;
}

/* Which lines the output holds. *found: there is one. */
static status read_output(struct batch_files *b, const char *path, bool *found, struct err *e)
{
    struct earlier w = { .plan = b->plan, .bad = BATCH_HAVE };
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    *found = fd >= 0;
    if (fd < 0 && errno == ENOENT) return OK;
    if (fd < 0) return err_set(e, E_IO, "%s: %s", path, strerror(errno));
    status st = jsonl_read(fd, read_earlier, &w, NULL, e);
    if (st == OK && w.bad == BATCH_FOREIGN)
        st = err_set(e, E_ARG, "%s holds lines that answer nothing of this input: it is left alone; give another -o",
                     path);
    if (st == OK && w.bad == BATCH_TWICE)
        st = err_set(e, E_ARG, "%s answers a custom_id twice: it is left alone; give another -o", path);
    if (st == OK && w.n_failed > 0) st = drop_failed(fd, path, e);
    b->n_before = w.n_good;
    close(fd);
    return st;
}

static status must_not_be_there(const char *path, struct err *e)
{
    struct stat s;
    if (path == NULL || stat(path, &s) != 0) return OK;
    if (!S_ISREG(s.st_mode)) return err_set(e, E_ARG, "%s is no regular file: lines are appended to one", path);
    return err_set(e, E_ARG, "%s is there already: --resume goes on with it, -y overwrites it", path);
}

static bool same_file(const char *a, const char *b)
{
    struct stat sa, sb;
    if (strcmp(a, b) == 0) return true;
    return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

static status check_names(const struct batch_files_options *o, struct err *e)
{
    if (same_file(o->input, o->output) || (o->error_file && same_file(o->input, o->error_file)))
        return err_set(e, E_ARG, "%s is the input: give another name for what comes out", o->input);
    if (o->error_file && same_file(o->output, o->error_file))
        return err_set(e, E_ARG,
                       "output and error file are the same: leave --error-file out to have failed lines in the output");
    if (o->resume || o->overwrite) return OK;
    TRY(must_not_be_there(o->output, e));
    return must_not_be_there(o->error_file, e);
}

/* Outputs as they are to be worked on; the journal first, because its lock keeps a second run away from the others. */
static status open_outputs(struct batch_files *b, const struct batch_files_options *o, struct err *e)
{
    bool journal = false, output = false;
    struct batch_counts c;
    if (o->resume) TRY(check_journal(b, o->input, &journal, e));
    if (o->resume && !journal && access(o->output, F_OK) == 0) {
        /* Without a journal only an output that answers every line is known to be of this input. */
        struct err ignored;
        const status st = read_output(b, o->output, &output, &ignored);
        batch_plan_counts(b->plan, &c);
        b->complete = st == OK && c.completed == c.total;
        return b->complete
                   ? OK
                   : err_set(e, E_ARG, "%s has no journal (%s), so it cannot be gone on with: give -y to start anew",
                             o->output, b->journal_path);
    }
    TRY(begin_journal(b, journal, e));
    if (journal) TRY(read_output(b, o->output, &output, e));
    TRY(jsonl_open(o->output, output, NULL, NULL, &b->out, e));
    if (o->error_file) TRY(jsonl_open(o->error_file, false, NULL, NULL, &b->errors, e));
    else b->errors = b->out;
    batch_plan_counts(b->plan, &c);
    b->complete = c.completed == c.total;
    return OK;
}

status batch_files_open(const struct batch_files_options *o, struct batch_files *b, struct err *e)
{
    struct stat s;
    struct err ignored;
    *b = (struct batch_files){ .fd = -1 };
    TRY(check_names(o, e));
    b->fd = open(o->input, O_RDONLY | O_CLOEXEC);
    if (b->fd < 0 || fstat(b->fd, &s) != 0) return err_set(e, E_INPUT, "%s: %s", o->input, strerror(errno));
    status st = OK;
    if (!S_ISREG(s.st_mode))
        st = err_set(e, E_INPUT, "%s is no regular file: its lines are read more than once", o->input);
    if (st == OK) st = batch_scan(b->fd, &o->rules, &b->plan, e);
    if (st == OK) st = problems_err(o, b->plan, e);
    if (st == OK) {
        b->journal_path = with_suffix(o->output, ".odj");
        st = open_outputs(b, o, e);
    }
    if (st != OK) batch_files_close(b, &ignored);
    return st;
}

status batch_files_close(struct batch_files *b, struct err *e)
{
    status st = OK;
    if (b->out) st = jsonl_sync(b->out, e);
    if (st == OK && b->errors) st = jsonl_sync(b->errors, e);
    if (b->plan && b->journal && st == OK) {
        struct batch_counts c;
        batch_plan_counts(b->plan, &c);
        if (c.completed == c.total) unlink(b->journal_path);
    }
    if (b->errors != b->out) jsonl_close(&b->errors);
    b->errors = NULL;
    jsonl_close(&b->out);
    jsonl_close(&b->journal);
    batch_plan_free(&b->plan);
    if (b->fd >= 0) close(b->fd);
    free(b->journal_path);
    *b = (struct batch_files){ .fd = -1 };
    return st;
}
