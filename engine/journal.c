/* engine/journal.c - see journal.h. */
#include "engine/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

#define JOURNAL_MAX ((off_t)1 << 30)

struct journal {
    int fd;
    char *path;
    char *language;
    struct journal_entry *entry;   /* texts are owned */
    size_t n, cap;
    uint32_t n_added;
};

/* ---- reading ---------------------------------------------------------------------------------------------- */

enum line { LINE_BAD, LINE_OTHER_KEY, LINE_GOOD };

static enum line read_head(const json_t *o, const char *key)
{
    json_int_t version;
    const char *its;
    if (json_unpack((json_t *)o, "{s:I, s:s}", "omnidrop_journal", &version, "key", &its) != 0) return LINE_BAD;
    return version == 1 && strcmp(its, key) == 0 ? LINE_GOOD : LINE_OTHER_KEY;
}

static enum line read_entry(struct journal *j, const json_t *o)
{
    json_int_t window, from, to, tokens, attempts, prompt = 0, audio = 0;
    const char *text;
    int split;
    struct journal_entry *t;
    struct err e;
    if (json_unpack((json_t *)o, "{s:s}", "language", &text) == 0) {
        free(j->language);
        j->language = mem_must_strdup(text);
        return LINE_GOOD;
    }
    struct journal_entry got = { 0 };
    if (json_unpack((json_t *)o, "{s:I, s:I, s:I, s:s, s:I, s:I, s:F, s:F, s:b, s?I, s?I}", "window", &window, "from", &from,
                    "to", &to, "text", &text, "tokens", &tokens, "attempts", &attempts, "mean_logprob",
                    &got.mean_logprob, "temperature", &got.temperature, "split", &split, "prompt", &prompt, "audio", &audio) != 0)
        return LINE_BAD;
    if (prompt < 0 || prompt > UINT32_MAX || audio < 0 || audio > prompt) return LINE_BAD;
    if (window < 0 || window > UINT32_MAX || from < 0 || to < from || tokens < 0 || tokens > UINT32_MAX ||
        attempts < 0 || attempts > UINT32_MAX)
        return LINE_BAD;
    if (mem_grow(&j->entry, &j->cap, j->n + 1, sizeof *j->entry, &e) != OK) return LINE_BAD;
    got.window = (uint32_t)window;
    got.from = (uint64_t)from;
    got.to = (uint64_t)to;
    got.n_tokens = (uint32_t)tokens;
    got.attempts = (uint32_t)attempts;
    got.split = split;
    got.n_prompt = (uint32_t)prompt;
    got.n_audio = (uint32_t)audio;
    got.text = mem_must_strdup(text);
    t = &j->entry[j->n++];
    *t = got;
    return LINE_GOOD;
}

/* Lines of text[n] into j; *valid: bytes of whole good lines. The head's verdict. */
static enum line read_lines(struct journal *j, const char *text, size_t n, const char *key, size_t *valid)
{
    enum line head = LINE_BAD;
    *valid = 0;
    for (size_t at = 0; at < n;) {
        const char *end = memchr(text + at, '\n', n - at);
        if (end == NULL) break;
        const size_t len = (size_t)(end - (text + at));
        json_t *o = json_loadb(text + at, len, JSON_REJECT_DUPLICATES, NULL);
        const enum line got = o == NULL ? LINE_BAD : at == 0 ? read_head(o, key) : read_entry(j, o);
        json_decref(o);
        if (at == 0) head = got;
        if (got != LINE_GOOD) break;
        at += len + 1;
        *valid = at;
    }
    return head;
}

static void clear(struct journal *j)
{
    for (size_t i = 0; i < j->n; i++) free((char *)j->entry[i].text);
    free(j->entry);
    free(j->language);
    j->entry = NULL;
    j->language = NULL;
    j->n = j->cap = 0;
}

int journal_parse(const char *text, size_t n, const char *key, size_t *valid)
{
    struct journal j = { .fd = -1 };
    const enum line head = read_lines(&j, text, n, key, valid);
    const int got = head == LINE_GOOD ? (int)j.n : -1;
    clear(&j);
    return got;
}

/* ---- writing ---------------------------------------------------------------------------------------------- */

static status io_err(const struct journal *j, const char *what, struct err *e)
{
    const status code = errno == ENOSPC || errno == EDQUOT ? E_NOMEM : E_IO;
    return err_set(e, code, "the journal %s cannot be %s: %s", j->path, what, strerror(errno));
}

/* One line, whole and on disk. Moves o. */
static status write_line(struct journal *j, json_t *o, struct err *e)
{
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(o);
    if (text == NULL) return err_set(e, E_NOMEM, "out of memory");
    const size_t n = strlen(text);
    text[n] = '\n';                /* in place of the NUL */
    status st = OK;
    for (size_t at = 0; at <= n && st == OK;) {
        const ssize_t got = write(j->fd, text + at, n + 1 - at);
        if (got > 0) at += (size_t)got;
        else if (errno != EINTR) st = io_err(j, "written", e);
    }
    if (st == OK && fsync(j->fd) != 0 && errno != EINVAL && errno != EROFS) st = io_err(j, "written", e);
    free(text);
    return st;
}

/* What an earlier run left; truncates behind the last good line. */
static status load(struct journal *j, const char *key, struct err *e)
{
    struct stat s;
    char *text;
    size_t n = 0, valid;
    if (fstat(j->fd, &s) != 0) return io_err(j, "read", e);
    if (s.st_size > JOURNAL_MAX) return err_set(e, E_ARG, "%s is too large for a journal", j->path);
    TRY(mem_alloc(&text, (size_t)s.st_size + 1, 1, e));
    for (ssize_t got; n < (size_t)s.st_size && (got = pread(j->fd, text + n, (size_t)s.st_size - n, (off_t)n)) > 0;)
        n += (size_t)got;
    const enum line head = read_lines(j, text, n, key, &valid);
    const bool torn_head = memchr(text, '\n', n) == NULL;
    free(text);
    if (head != LINE_GOOD && !torn_head)
        return err_set(e, E_ARG, "%s belongs to another input, model or set of options%s: give the same ones as before, or "
                                 "start anew without --resume", j->path, head == LINE_BAD ? ", or is no journal" : "");
    if (ftruncate(j->fd, (off_t)valid) != 0 || lseek(j->fd, 0, SEEK_END) < 0) return io_err(j, "written", e);
    return OK;
}

status journal_open(const char *path, const char *key, bool resume, struct journal **out, struct err *e)
{
    struct journal *j;
    status st;
    TRY(mem_alloc(&j, 1, sizeof *j, e));
    j->path = mem_must_strdup(path);
    j->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (j->fd < 0) {
        st = io_err(j, "opened", e);
        goto undo;
    }
    if (flock(j->fd, LOCK_EX | LOCK_NB) != 0) {
        st = err_set(e, E_ARG, "%s is in use by another run: wait for it or stop it", path);
        goto undo;
    }
    if (resume) {
        TRY_GOTO(st, load(j, key, e), undo);
    } else if (ftruncate(j->fd, 0) != 0) {
        st = io_err(j, "written", e);
        goto undo;
    }
    if (lseek(j->fd, 0, SEEK_CUR) == 0)
        TRY_GOTO(st, write_line(j, json_pack("{s:i, s:s}", "omnidrop_journal", 1, "key", key), e), undo);
    *out = j;
    return OK;
undo:
    journal_close(&j, false);
    return st;
}

uint32_t journal_count(const struct journal *j) { return (uint32_t)j->n + j->n_added; }
const char *journal_language(const struct journal *j) { return j->language; }

const struct journal_entry *journal_find(const struct journal *j, uint32_t window, uint64_t from, uint64_t to)
{
    for (size_t i = 0; i < j->n; i++)
        if (j->entry[i].window == window && j->entry[i].from == from && j->entry[i].to == to) return &j->entry[i];
    return NULL;
}

status journal_add(struct journal *j, const struct journal_entry *t, struct err *e)
{
    TRY(write_line(j, json_pack("{s:I, s:I, s:I, s:s, s:I, s:I, s:f, s:f, s:b, s:I, s:I}", "window", (json_int_t)t->window,
                                   "from", (json_int_t)t->from, "to", (json_int_t)t->to, "text", t->text, "tokens",
                                   (json_int_t)t->n_tokens, "attempts", (json_int_t)t->attempts, "mean_logprob",
                                   t->mean_logprob, "temperature", t->temperature, "split", t->split, "prompt",
                                   (json_int_t)t->n_prompt, "audio", (json_int_t)t->n_audio), e));
    j->n_added++;
    return OK;
}

status journal_add_language(struct journal *j, const char *language, struct err *e)
{
    return write_line(j, json_pack("{s:s}", "language", language), e);
}

void journal_close(struct journal **pj, bool remove)
{
    struct journal *j = *pj;
    if (j == NULL) return;
    if (remove) unlink(j->path);
    if (j->fd >= 0) close(j->fd);
    clear(j);
    free(j->path);
    free(j);
    *pj = NULL;
}
