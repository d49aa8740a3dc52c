/* api/files.c - see files.h. */
#include "api/files.h"

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

#include "base/mem.h"
#include "model/utf8.h"

#define DEFAULT_QUOTA ((uint64_t)100 << 30)
#define BATCH_DAYS 30
#define DAY_S ((int64_t)86400)
#define EXPIRES_MIN 3600
#define EXPIRES_MAX 2592000
#define LIST_MAX 10000
#define GONE_MAX 4096              /* deleted files that lists still know as `after` */
#define META_MAX 8192              /* bytes of <id>.json */
#define COPY_BYTES ((size_t)1 << 20)

struct file_entry {
    struct file_info info;
    uint64_t order;                /* microseconds since 1970, growing: the order of lists */
    uint32_t n_holds;
    bool gone;                     /* deleted; kept for its place in lists */
};

struct files {
    pthread_mutex_t lock;
    int dir;                       /* descriptor of the folder */
    int lock_fd;
    uint64_t quota;
    int64_t (*now)(void);
    struct file_entry *entry;      /* [n] by order */
    size_t n, cap, n_gone;
    uint64_t bytes;                /* of all files, and promised to those being added */
};

/* ---- small things ----------------------------------------------------------------------------------------- */

static int64_t wall_clock(void) { return (int64_t)time(NULL); }

static status io_err(const char *what, struct err *e)
{
    const bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;
    err_set(e, full ? E_NOMEM : E_IO, "%s: %s", what, strerror(errno));
    return full ? err_tag(e, "spool_full", NULL) : e ? e->code : E_IO;
}

static status not_found(const char *id, struct err *e)
{
    err_set(e, E_ARG, "there is no file \"%.64s\"", id);
    return err_tag(e, "not_found", "file_id");
}

void files_new_id(char id[FILES_ID])
{
    uint8_t random[16];
    /* 16 bytes come whole; the call fails before the system has entropy at all, when nothing could be served. */
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) abort();
    strcpy(id, "file-");
    for (size_t i = 0; i < sizeof random; i++) snprintf(id + 5 + 2 * i, 3, "%02x", random[i]);
}

static bool is_id(const char *id)
{
    return strncmp(id, "file-", 5) == 0 && strlen(id) == FILES_ID - 3 && strspn(id + 5, "0123456789abcdef") == 32;
}

/* Whole UTF-8 characters of a text, as many as fit, and no control characters. */
static void clean_text(const char *text, char *out, size_t cap)
{
    size_t at = 0;
    const size_t n = strlen(text);
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0xfffd;
        const int step = utf8_step((const uint8_t *)text + i, n - i, &cp);
        char bytes[4];
        if (step <= 0) cp = 0xfffd;
        else if (cp < 0x20 || cp == 0x7f) cp = '_';
        const int len = utf8_put(cp, bytes);
        if (at + (size_t)len + 1 > cap) break;
        memcpy(out + at, bytes, (size_t)len);
        at += (size_t)len;
        i += step > 0 ? (size_t)step : step < 0 ? (size_t)-step : n - i;
    }
    out[at] = 0;
}

/* What a client calls its file: the last piece of a path. */
static void clean_name(const char *name, char *out, size_t cap)
{
    const char *last = name;
    for (const char *p = name; *p; p++)
        if (*p == '/' || *p == '\\') last = p + 1;
    clean_text(*last ? last : "file", out, cap);
}

status files_check_purpose(const char *purpose, struct err *e)
{
    if (strcmp(purpose, "batch") == 0 || strcmp(purpose, "user_data") == 0 || strcmp(purpose, "vision") == 0) return OK;
    err_set(e, E_ARG, "purpose \"%.64s\" is not offered: give batch, user_data or vision", purpose);
    return err_tag(e, "invalid_value", "purpose");
}

status files_check_expiry(int64_t seconds, const char *param, struct err *e)
{
    if (seconds >= EXPIRES_MIN && seconds <= EXPIRES_MAX) return OK;
    err_set(e, E_ARG, "%s is %lld: give %d to %d seconds", param, (long long)seconds, EXPIRES_MIN, EXPIRES_MAX);
    return err_tag(e, "invalid_value", param);
}

/* ---- the index (under the lock) ---------------------------------------------------------------------------- */

static bool expired(const struct files *f, const struct file_entry *t)
{
    return t->n_holds == 0 && t->info.expires_at != 0 && t->info.expires_at <= f->now();
}

/* The entry of an id, whoever owns it; NULL. */
static struct file_entry *entry_of(struct files *f, const char *id)
{
    for (size_t i = 0; i < f->n; i++)
        if (strcmp(f->entry[i].info.id, id) == 0) return &f->entry[i];
    return NULL;
}

static status find(struct files *f, const char *owner, const char *id, struct file_entry **out, struct err *e)
{
    struct file_entry *t = entry_of(f, id);
    if (t == NULL || t->gone || expired(f, t) || strcmp(t->info.owner, owner) != 0) return not_found(id, e);
    *out = t;
    return OK;
}

static void forget_oldest_gone(struct files *f)
{
    for (size_t i = 0; i < f->n; i++)
        if (f->entry[i].gone) {
            memmove(&f->entry[i], &f->entry[i + 1], (f->n - i - 1) * sizeof *f->entry);
            f->n--;
            f->n_gone--;
            return;
        }
}

static int by_order(const void *pa, const void *pb)
{
    const struct file_entry *a = pa, *b = pb;
    return a->order != b->order ? (a->order < b->order ? -1 : 1) : strcmp(a->info.id, b->info.id);
}

/* ---- the disk ---------------------------------------------------------------------------------------------- */

static json_t *meta_json(const struct file_entry *t)
{
    const struct file_info *i = &t->info;
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:I}", "omnidrop_file", 1, "id", i->id,
                     "owner", i->owner, "filename", i->filename, "purpose", i->purpose, "digest", i->digest, "details",
                     i->details, "failed", i->failed, "bytes", (json_int_t)i->bytes, "created_at",
                     (json_int_t)i->created_at, "expires_at", (json_int_t)i->expires_at, "order", (json_int_t)t->order);
}

static bool copy_text(char *out, size_t cap, const char *s)
{
    const size_t n = strlen(s);
    if (n >= cap) return false;
    memcpy(out, s, n + 1);
    return true;
}

static bool meta_parse(const char *text, size_t n, struct file_entry *t)
{
    json_t *o = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    const char *id, *owner, *filename, *purpose, *digest, *details;
    json_int_t version, bytes, created, expires, order;
    int failed;
    struct file_info *i = &t->info;
    *t = (struct file_entry){ 0 };
    const bool good =
        o &&
        json_unpack(o, "{s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:I}", "omnidrop_file", &version, "id",
                    &id, "owner", &owner, "filename", &filename, "purpose", &purpose, "digest", &digest, "details",
                    &details, "failed", &failed, "bytes", &bytes, "created_at", &created, "expires_at", &expires,
                    "order", &order) == 0 &&
        version == 1 && bytes >= 0 && order >= 0 && is_id(id) && copy_text(i->id, sizeof i->id, id) &&
        copy_text(i->owner, sizeof i->owner, owner) && copy_text(i->filename, sizeof i->filename, filename) &&
        copy_text(i->purpose, sizeof i->purpose, purpose) && copy_text(i->digest, sizeof i->digest, digest) &&
        copy_text(i->details, sizeof i->details, details);
    if (good) {
        i->failed = failed;
        i->bytes = (uint64_t)bytes;
        i->created_at = created;
        i->expires_at = expires;
        t->order = (uint64_t)order;
    }
    json_decref(o);
    return good;
}

/* A file of ours under its final name: written beside, synced, renamed. */
static status write_whole(struct files *f, const char *name, const char *text, size_t n, struct err *e)
{
    char part[FILES_ID + 16];
    snprintf(part, sizeof part, "%s.part", name);
    const int fd = openat(f->dir, part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return io_err("the file cannot be stored", e);
    status st = OK;
    for (size_t at = 0; at < n && st == OK;) {
        const ssize_t got = write(fd, text + at, n - at);
        if (got > 0) at += (size_t)got;
        else if (errno != EINTR) st = io_err("the file cannot be stored", e);
    }
    if (st == OK && fsync(fd) != 0) st = io_err("the file cannot be stored", e);
    close(fd);
    if (st == OK && renameat(f->dir, part, f->dir, name) != 0) st = io_err("the file cannot be stored", e);
    if (st != OK) unlinkat(f->dir, part, 0);
    return st;
}

static status write_meta(struct files *f, const struct file_entry *t, struct err *e)
{
    char name[FILES_ID + 8];
    json_t *o = meta_json(t);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    if (text == NULL) return err_set(e, E_NOMEM, "out of memory");
    snprintf(name, sizeof name, "%s.json", t->info.id);
    status st = write_whole(f, name, text, strlen(text), e);
    free(text);
    if (st == OK && fsync(f->dir) != 0) st = io_err("the file cannot be stored", e);
    return st;
}

static void remove_from_disk(struct files *f, const char *id)
{
    char name[FILES_ID + 8];
    snprintf(name, sizeof name, "%s.json", id);
    unlinkat(f->dir, name, 0);
    unlinkat(f->dir, id, 0);
    (void)fsync(f->dir);
}

/* The bytes of `from` under the name `part`: copied; *digest is theirs. */
static status copy_bytes(struct files *f, int from, const char *part, struct err *e)
{
    char *buf;
    TRY(mem_alloc(&buf, COPY_BYTES, 1, e));
    const int fd = openat(f->dir, part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    status st = fd < 0 ? io_err("the file cannot be stored", e) : OK;
    for (off_t at = 0; st == OK;) {
        const ssize_t got = pread(from, buf, COPY_BYTES, at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) st = io_err("the upload cannot be read", e);
        if (got <= 0) break;
        for (ssize_t put = 0; put < got && st == OK;) {
            const ssize_t n = write(fd, buf + put, (size_t)(got - put));
            if (n > 0) put += n;
            else if (errno != EINTR) st = io_err("the file cannot be stored", e);
        }
        at += got;
    }
    if (st == OK && fsync(fd) != 0) st = io_err("the file cannot be stored", e);
    if (fd >= 0) close(fd);
    if (st != OK) unlinkat(f->dir, part, 0);
    free(buf);
    return st;
}

static status digest_of(int fd, char out[MEDIA_DIGEST_TEXT], struct err *e)
{
    struct media_digest *d = NULL;
    char *buf;
    TRY(mem_alloc(&buf, COPY_BYTES, 1, e));
    status st = media_digest_begin(&d, e);
    for (off_t at = 0; st == OK;) {
        const ssize_t got = pread(fd, buf, COPY_BYTES, at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) st = io_err("the upload cannot be read", e);
        if (got <= 0) break;
        media_digest_add(d, buf, (size_t)got);
        at += got;
    }
    free(buf);
    if (st == OK) media_digest_end(&d, out);
    else media_digest_free(&d);
    return st;
}

/* The bytes of a->fd under their id: an unnamed file gets a name, one of ours a second one, others are copied. */
static status store_bytes(struct files *f, const struct file_add *a, const char *id, bool linkable, struct err *e)
{
    char part[FILES_ID + 8], from[32];
    snprintf(part, sizeof part, "%s.part", id);
    snprintf(from, sizeof from, "/proc/self/fd/%d", a->fd);
    if (!linkable || linkat(AT_FDCWD, from, f->dir, part, AT_SYMLINK_FOLLOW) != 0 || fsync(a->fd) != 0) {
        unlinkat(f->dir, part, 0);
        TRY(copy_bytes(f, a->fd, part, e));
    }
    if (renameat(f->dir, part, f->dir, id) == 0) return OK;
    const status st = io_err("the file cannot be stored", e);
    unlinkat(f->dir, part, 0);
    return st;
}

/* ---- opening ------------------------------------------------------------------------------------------------ */

static bool read_meta(struct files *f, const char *name, struct file_entry *t)
{
    char text[META_MAX];
    struct stat s;
    const int fd = openat(f->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return false;
    const ssize_t n = read(fd, text, sizeof text);
    close(fd);
    if (n <= 0 || n == (ssize_t)sizeof text || !meta_parse(text, (size_t)n, t)) return false;
    char want[FILES_ID + 8];
    snprintf(want, sizeof want, "%s.json", t->info.id);
    return strcmp(want, name) == 0 && fstatat(f->dir, t->info.id, &s, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(s.st_mode) &&
           (uint64_t)s.st_size == t->info.bytes;
}

static bool ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), k = strlen(end);
    return n >= k && strcmp(s + n - k, end) == 0;
}

/* One name of the folder: a whole file is taken into the index, what is half there goes. Names that are not ours
 * stay. */
static status load_name(struct files *f, const char *name, struct err *e)
{
    char id[FILES_ID + 16];
    struct file_entry t;
    const size_t stem = strcspn(name, ".");
    if (stem >= sizeof id) return OK;
    memcpy(id, name, stem);
    id[stem] = 0;
    if (!is_id(id)) return OK;
    if (ends_with(name, ".part")) {
        unlinkat(f->dir, name, 0);
    } else if (ends_with(name, ".json")) {
        if (!read_meta(f, name, &t)) {
            unlinkat(f->dir, name, 0);
            unlinkat(f->dir, id, 0);
            return OK;
        }
        TRY(mem_grow(&f->entry, &f->cap, f->n + 1, sizeof *f->entry, e));
        f->entry[f->n++] = t;
        f->bytes += t.info.bytes;
    } else {
        char meta[FILES_ID + 24];
        snprintf(meta, sizeof meta, "%s.json", id);
        if (faccessat(f->dir, meta, F_OK, AT_SYMLINK_NOFOLLOW) != 0) unlinkat(f->dir, name, 0);
    }
    return OK;
}

static status load(struct files *f, struct err *e)
{
    const int fd = dup(f->dir);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (d == NULL) {
        const status st = io_err("the folder of files cannot be read", e);
        if (fd >= 0) close(fd);
        return st;
    }
    status st = OK;
    rewinddir(d);
    for (const struct dirent *t; st == OK && (t = readdir(d)) != NULL;) st = load_name(f, t->d_name, e);
    closedir(d);
    if (f->n) qsort(f->entry, f->n, sizeof *f->entry, by_order);
    return st;
}

status files_open(const struct files_options *o, struct files **out, struct err *e)
{
    if (mkdir(o->dir, 0700) != 0 && errno != EEXIST) return io_err(o->dir, e);
    struct files *f = mem_must(1, sizeof *f);
    *f = (struct files){ .dir = -1, .lock_fd = -1, .quota = o->quota ? o->quota : DEFAULT_QUOTA,
                         .now = o->now ? o->now : wall_clock };
    pthread_mutex_init(&f->lock, NULL);
    status st = OK;
    f->dir = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f->dir >= 0) f->lock_fd = openat(f->dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f->lock_fd < 0) st = io_err(o->dir, e);
    else if (flock(f->lock_fd, LOCK_EX | LOCK_NB) != 0)
        st = err_set(e, E_ARG, "%s is in use by another server: give each its own --state-dir", o->dir);
    if (st == OK) st = load(f, e);
    if (st == OK) files_sweep(f);
    else files_close(&f);
    *out = f;
    return st;
}

void files_close(struct files **pf)
{
    struct files *f = *pf;
    if (f == NULL) return;
    if (f->dir >= 0) close(f->dir);
    if (f->lock_fd >= 0) close(f->lock_fd);
    pthread_mutex_destroy(&f->lock);
    free(f->entry);
    free(f);
    *pf = NULL;
}

/* ---- adding and removing ------------------------------------------------------------------------------------ */

/* Under the lock: room for n more bytes, or why not. */
static status promise(struct files *f, uint64_t n, bool own, struct err *e)
{
    if (!own && (n > f->quota || f->bytes > f->quota - n)) {
        err_set(e, E_FULL, "the file has %llu bytes; of the %llu that all files may have %llu are taken: delete some",
                (unsigned long long)n, (unsigned long long)f->quota, (unsigned long long)f->bytes);
        return err_tag(e, "request_too_large", "file");
    }
    f->bytes += n;
    return OK;
}

/* Under the lock. Orders never repeat, whatever the clock does. */
static uint64_t next_order(const struct files *f, int64_t now)
{
    const uint64_t by_clock = (uint64_t)now * 1000000u, last = f->n ? f->entry[f->n - 1].order : 0;
    return by_clock > last ? by_clock : last + 1;
}

static void describe(const struct files *f, const struct file_add *a, uint64_t bytes, struct file_info *i)
{
    *i = (struct file_info){ .bytes = bytes, .created_at = f->now() };
    if (a->id) copy_text(i->id, sizeof i->id, a->id);
    else files_new_id(i->id);
    copy_text(i->owner, sizeof i->owner, a->owner);
    copy_text(i->purpose, sizeof i->purpose, a->purpose);
    clean_name(a->filename ? a->filename : "", i->filename, sizeof i->filename);
    const bool batch = strncmp(a->purpose, "batch", 5) == 0;
    const int64_t after = a->expires_after ? a->expires_after : batch ? BATCH_DAYS * DAY_S : 0;
    i->expires_at = after ? i->created_at + after : 0;
    if (a->error) {
        i->failed = true;
        clean_text(a->error, i->details, sizeof i->details);
    }
}

status files_add(struct files *f, const struct file_add *a, struct file_info *out, struct err *e)
{
    struct stat s;
    struct file_entry t = { 0 };
    status st;
    if (fstat(a->fd, &s) != 0 || !S_ISREG(s.st_mode)) return err_set(e, E_IO, "the upload cannot be read");
    pthread_mutex_lock(&f->lock);
    const struct file_entry *there = a->id ? entry_of(f, a->id) : NULL;
    if (there) *out = there->info;
    st = there ? OK : promise(f, (uint64_t)s.st_size, a->own, e);
    pthread_mutex_unlock(&f->lock);
    if (there || st != OK) return st;

    describe(f, a, (uint64_t)s.st_size, &t.info);
    if (a->digest) copy_text(t.info.digest, sizeof t.info.digest, a->digest);
    else TRY_GOTO(st, digest_of(a->fd, t.info.digest, e), undo);
    TRY_GOTO(st, store_bytes(f, a, t.info.id, a->may_link || s.st_nlink == 0, e), undo);
    pthread_mutex_lock(&f->lock);
    t.order = next_order(f, t.info.created_at);
    st = mem_grow(&f->entry, &f->cap, f->n + 1, sizeof *f->entry, e);
    if (st == OK) st = write_meta(f, &t, e);
    if (st == OK) f->entry[f->n++] = t;
    pthread_mutex_unlock(&f->lock);
    if (st != OK) {
        remove_from_disk(f, t.info.id);
        goto undo;
    }
    *out = t.info;
    return OK;
undo:
    pthread_mutex_lock(&f->lock);
    f->bytes -= (uint64_t)s.st_size;
    pthread_mutex_unlock(&f->lock);
    return st;
}

/* Under the lock. */
static void remove_entry(struct files *f, struct file_entry *t)
{
    remove_from_disk(f, t->info.id);
    f->bytes -= t->info.bytes;
    t->gone = true;
    if (++f->n_gone > GONE_MAX) forget_oldest_gone(f);
}

status files_delete(struct files *f, const char *owner, const char *id, struct err *e)
{
    struct file_entry *t;
    pthread_mutex_lock(&f->lock);
    status st = find(f, owner, id, &t, e);
    if (st == OK && t->n_holds > 0) {
        err_set(e, E_BUSY, "file \"%s\" is the input of a batch that is not over: cancel the batch first", id);
        st = err_tag(e, "file_in_use", "file_id");
    }
    if (st == OK) remove_entry(f, t);
    pthread_mutex_unlock(&f->lock);
    return st;
}

void files_sweep(struct files *f)
{
    pthread_mutex_lock(&f->lock);
    for (size_t i = f->n; i-- > 0;)
        if (!f->entry[i].gone && expired(f, &f->entry[i])) remove_entry(f, &f->entry[i]);
    pthread_mutex_unlock(&f->lock);
}

/* ---- reading -------------------------------------------------------------------------------------------------- */

status files_get(struct files *f, const char *owner, const char *id, struct file_info *out, struct err *e)
{
    struct file_entry *t;
    pthread_mutex_lock(&f->lock);
    const status st = find(f, owner, id, &t, e);
    if (st == OK) *out = t->info;
    pthread_mutex_unlock(&f->lock);
    return st;
}

status files_open_data(struct files *f, const char *owner, const char *id, struct file_info *out, int *fd,
                       struct err *e)
{
    struct file_entry *t;
    pthread_mutex_lock(&f->lock);
    status st = find(f, owner, id, &t, e);
    if (st == OK) {
        *out = t->info;
        *fd = openat(f->dir, t->info.id, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (*fd < 0) st = io_err("the stored file cannot be opened", e);
    }
    pthread_mutex_unlock(&f->lock);
    return st;
}

status files_hold(struct files *f, const char *owner, const char *id, struct file_info *out, struct err *e)
{
    struct file_entry *t;
    pthread_mutex_lock(&f->lock);
    const status st = find(f, owner, id, &t, e);
    if (st == OK) {
        t->n_holds++;
        *out = t->info;
    }
    pthread_mutex_unlock(&f->lock);
    return st;
}

void files_release(struct files *f, const char *id)
{
    pthread_mutex_lock(&f->lock);
    struct file_entry *t = entry_of(f, id);
    assert(t && t->n_holds > 0);
    t->n_holds--;
    pthread_mutex_unlock(&f->lock);
}

json_t *file_json(const struct file_info *i)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:o, s:s, s:s, s:s, s:o}", "id", i->id, "object", "file", "bytes",
                     (json_int_t)i->bytes, "created_at", (json_int_t)i->created_at, "expires_at",
                     i->expires_at ? json_integer(i->expires_at) : json_null(), "filename", i->filename, "purpose",
                     i->purpose, "status", i->failed ? "error" : "processed", "status_details",
                     i->failed ? json_string(i->details) : json_null());
}

/* Under the lock: does the list show it? */
static bool listed(const struct files *f, const struct file_entry *t, const char *owner, const char *purpose)
{
    return !t->gone && !expired(f, t) && strcmp(t->info.owner, owner) == 0 &&
           (purpose == NULL || strcmp(t->info.purpose, purpose) == 0);
}

status files_list(struct files *f, const char *owner, const struct files_query *q, json_t **out, struct err *e)
{
    const uint32_t limit = q->limit ? q->limit : LIST_MAX;
    bool more = false, begun = q->after == NULL;
    json_t *data = json_array();
    pthread_mutex_lock(&f->lock);
    const struct file_entry *after = q->after ? entry_of(f, q->after) : NULL;
    const bool known = q->after == NULL || (after && strcmp(after->info.owner, owner) == 0);
    for (size_t k = 0; known && k < f->n && !more; k++) {
        const struct file_entry *t = &f->entry[q->ascending ? k : f->n - 1 - k];
        if (begun && listed(f, t, owner, q->purpose)) {
            more = json_array_size(data) == limit;
            if (!more) json_array_append_new(data, file_json(&t->info));
        }
        if (t == after) begun = true;
    }
    pthread_mutex_unlock(&f->lock);
    if (!known) {
        json_decref(data);
        err_set(e, E_ARG, "there is no file \"%.64s\" to list from", q->after);
        return err_tag(e, "invalid_value", "after");
    }
    const size_t n = json_array_size(data);
    const json_t *first = n ? json_object_get(json_array_get(data, 0), "id") : NULL;
    const json_t *last = n ? json_object_get(json_array_get(data, n - 1), "id") : NULL;
    *out = json_pack("{s:s, s:o, s:O?, s:O?, s:b}", "object", "list", "data", data, "first_id", first, "last_id", last,
                     "has_more", more);
    return OK;
}

void files_count(struct files *f, uint64_t *n, uint64_t *bytes)
{
    pthread_mutex_lock(&f->lock);
    *n = f->n - f->n_gone;
    *bytes = f->bytes;
    pthread_mutex_unlock(&f->lock);
}
