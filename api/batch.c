/* api/batch.c - see batch.h. */
#include "api/batch.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "api/error.h"
#include "base/json.h"
#include "base/mem.h"

#define LINE_MAX_BYTES ((size_t)257 << 20)     /* a JSON body may have 256 MiB */
#define DEPTH_MAX 128              /* of a line; the body's own limit is the parser's of the endpoint */
#define AT_ONCE 8
#define TRIES 8                    /* of a line that found no room */

const char *const batch_endpoints[] = { "/v1/chat/completions", "/v1/completions", "/v1/audio/transcriptions",
                                        "/v1/audio/translations", NULL };

enum line_state { LINE_WAITING, LINE_RUNNING, LINE_OVER };

struct line {
    uint64_t offset, n, number;    /* place in the input; number from 1 */
    uint8_t key[16];               /* of SHA-256 of the custom_id */
    float cost;
    uint8_t state;
};

struct batch_plan {
    struct line *line;             /* [n] in the input's order */
    size_t n, cap;
    uint32_t *slot;                /* [n_slots] line + 1 by key; 0: free. A power of two, at most half full */
    size_t n_slots;
    char digest[MEDIA_DIGEST_TEXT];
    struct batch_problem problem[BATCH_PROBLEMS];
    size_t n_problems;             /* also those that are not kept */
    struct batch_counts counts;
};

static void random_hex(char *out, size_t n_bytes)
{
    uint8_t random[32];
    assert(n_bytes <= sizeof random);
    if (getrandom(random, n_bytes, 0) != (ssize_t)n_bytes) abort();
    for (size_t i = 0; i < n_bytes; i++) snprintf(out + 2 * i, 3, "%02x", random[i]);
}

/* ---- what a line costs, and its media ----------------------------------------------------------------------- */

/* Tokens that a line is worth, for the order only. A token takes about 4 bytes of text or 700 of compressed sound or
 * film; one that is generated as much time as four of the prompt. */
struct weight { double text, media; uint32_t n_media; };

static bool is_remote(const char *url)
{
    return strncmp(url, "data:", 5) == 0 || strncmp(url, "http:", 5) == 0 || strncmp(url, "https:", 6) == 0 ||
           strncmp(url, "pcm:", 4) == 0;
}

/* %41 -> A. Anything else stays. */
static void percent_decode(char *s)
{
    char *to = s;
    for (const char *p = s; *p; p++) {
        char hex[3] = { p[0] == '%' ? p[1] : 0, 0, 0 };
        if (hex[0]) hex[1] = p[2];
        char *end = hex;
        const long v = hex[0] && hex[1] ? strtol(hex, &end, 16) : 0;
        if (v > 0 && end == hex + 2) {
            *to++ = (char)v;
            p += 2;
        } else {
            *to++ = *p;
        }
    }
    *to = 0;
}

/* The absolute path of a URL that names a file; owned by the caller; NULL: it names none. */
static char *path_of(const char *url, const char *root)
{
    char path[PATH_MAX];
    const char *p = url;
    if (is_remote(url)) return NULL;
    const bool form = strncmp(p, "file:", 5) == 0;
    if (form) p += 5;
    if (form && strncmp(p, "//localhost/", 12) == 0) p += 11;
    else if (form && strncmp(p, "//", 2) == 0) p += 2;
    else if (!form && strstr(p, "://")) return NULL;
    const int n = p[0] == '/' ? snprintf(path, sizeof path, "%s", p) : snprintf(path, sizeof path, "%s/%s", root, p);
    if (*p == 0 || n < 0 || (size_t)n >= sizeof path) return NULL;
    if (form) percent_decode(path);
    return mem_must_strdup(path);
}

/* Calls fn for every place in the body where the URL of a medium may stand: fn may put another string there. */
typedef json_t *(*media_fn)(void *self, const json_t *url);

static void at_key(json_t *o, const char *key, media_fn fn, void *self)
{
    json_t *v = json_object_get(o, key);
    if (json_is_string(v)) {
        json_t *other = fn(self, v);
        if (other) json_object_set_new(o, key, other);
    } else if (json_is_array(v)) {             /* the frames of a film */
        for (size_t i = 0; i < json_array_size(v); i++) {
            json_t *other = json_is_string(json_array_get(v, i)) ? fn(self, json_array_get(v, i)) : NULL;
            if (other) json_array_set_new(v, i, other);
        }
    } else if (json_is_object(v)) {
        at_key(v, "url", fn, self);
    }
}

static void each_medium(json_t *body, media_fn fn, void *self)
{
    static const char *const KEY[] = { "image_url", "audio_url", "video_url", "input_audio", "input_video", "image",
                                       "audio", "video" };
    size_t i, k;
    json_t *message, *part;
    at_key(body, "file_url", fn, self);
    json_array_foreach(json_object_get(body, "messages"), i, message)
    {
        json_array_foreach(json_object_get(message, "content"), k, part)
        {
            if (!json_is_object(part)) continue;
            for (size_t m = 0; m < sizeof KEY / sizeof *KEY; m++) at_key(part, KEY[m], fn, self);
        }
    }
}

static json_t *absolute(void *root, const json_t *url)
{
    char *path = path_of(json_string_value(url), root), real[PATH_MAX];
    if (path == NULL) return NULL;
    const char *p = realpath(path, real) ? real : path; /* no links: loaders do not follow them out of a folder */
    char *text = mem_must(3 * strlen(p) + 8, 1), *to = text;
    to += sprintf(to, "file://");
    for (; *p; p++) {
        const bool plain =
            (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || strchr("/-._~", *p);
        if (plain) *to++ = *p;
        else to += sprintf(to, "%%%02X", (unsigned char)*p);
    }
    json_t *out = json_string(text);
    free(text);
    free(path);
    return out;
}

bool batch_media_path(const char *url, char *out, size_t cap)
{
    char *path = strncmp(url, "file:///", 8) == 0 ? path_of(url, "/") : NULL;
    const bool fits = path && strlen(path) < cap;
    if (fits) strcpy(out, path);
    free(path);
    return fits;
}

void batch_absolute_media(json_t *body, const char *media_root) { each_medium(body, absolute, (void *)media_root); }

struct media_sum { struct weight *w; const char *root; };

static json_t *add_medium(void *self, const json_t *url)
{
    struct media_sum *s = self;
    struct stat st;
    const char *text = json_string_value(url);
    s->w->n_media++;
    char *path = s->root ? path_of(text, s->root) : NULL;
    if (path && stat(path, &st) == 0 && S_ISREG(st.st_mode)) s->w->media += (double)st.st_size;
    free(path);
    return NULL;
}

/* Bytes of text and of inline media; depth is bounded by the parser. */
static void add_strings(const json_t *v, struct weight *w)
{
    size_t i;
    const char *key;
    json_t *x;
    if (json_is_string(v)) {
        const size_t n = json_string_length(v);
        const bool inline_media = n > 4096 && memchr(json_string_value(v), ' ', 4096) == NULL;
        *(inline_media ? &w->media : &w->text) += inline_media ? 0.75 * (double)n : (double)n;
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, x) add_strings(x, w);
    } else if (json_is_object(v)) {
        json_object_foreach((json_t *)v, key, x) add_strings(x, w);
    }
}

static double cost_of(json_t *body, const char *media_root)
{
    struct weight w = { 0 };
    struct media_sum s = { &w, media_root };
    add_strings(body, &w);
    each_medium(body, add_medium, &s);
    const json_t *most = json_object_get(body, "max_completion_tokens");
    if (!json_is_integer(most)) most = json_object_get(body, "max_tokens");
    const json_int_t asked = json_is_integer(most) ? json_integer_value(most) : 256;
    const double answer = asked < 1 ? 1 : asked > 32768 ? 32768 : (double)asked;
    return 16 + w.text / 4 + 100.0 * w.n_media + w.media / 700 + 4 * answer;
}

/* ---- the plan ------------------------------------------------------------------------------------------------ */

static status key_of(const char *custom_id, uint8_t key[16], struct err *e)
{
    struct media_digest *d;
    char hex[MEDIA_DIGEST_TEXT];
    TRY(media_digest_begin(&d, e));
    media_digest_add(d, custom_id, strlen(custom_id));
    media_digest_end(&d, hex);
    for (size_t i = 0; i < 16; i++) {
        const char byte[3] = { hex[2 * i], hex[2 * i + 1], 0 };
        key[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return OK;
}

/* The slot of a key: that of its line, or a free one. */
static uint32_t *slot_of(const struct batch_plan *p, const uint8_t key[16])
{
    uint64_t h;
    memcpy(&h, key, sizeof h);
    for (size_t i = h & (p->n_slots - 1);; i = (i + 1) & (p->n_slots - 1))
        if (p->slot[i] == 0 || memcmp(p->line[p->slot[i] - 1].key, key, 16) == 0) return &p->slot[i];
}

static status grow_slots(struct batch_plan *p, struct err *e)
{
    if (2 * (p->n + 1) <= p->n_slots) return OK;
    uint32_t *bigger, *old = p->slot;
    const size_t n = p->n_slots ? 2 * p->n_slots : 1024;
    TRY(mem_alloc(&bigger, n, sizeof *bigger, e));
    p->slot = bigger;
    p->n_slots = n;
    for (size_t i = 0; i < p->n; i++) *slot_of(p, p->line[i].key) = (uint32_t)i + 1;
    free(old);
    return OK;
}

static void problem(struct batch_plan *p, uint64_t line, const char *code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
static void problem(struct batch_plan *p, uint64_t line, const char *code, const char *param, const char *fmt, ...)
{
    if (p->n_problems++ >= BATCH_PROBLEMS) return;
    struct batch_problem *b = &p->problem[p->n_problems - 1];
    *b = (struct batch_problem){ .line = line, .code = code, .param = param };
    va_list args;
    va_start(args, fmt);
    vsnprintf(b->message, sizeof b->message, fmt, args);
    va_end(args);
}

/* A string member that is there, not empty and holds no NUL; else a problem. */
static const char *member(struct batch_plan *p, uint64_t number, const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    if (v == NULL || json_is_null(v)) {
        problem(p, number, "missing_required_parameter", key, "%s is missing", key);
    } else if (!json_is_string(v)) {
        problem(p, number, "invalid_type", key, "%s is %s: give a string", key, doc_kind(v));
    } else if (json_string_length(v) == 0 || strlen(json_string_value(v)) != json_string_length(v)) {
        problem(p, number, "invalid_value", key, "%s is empty or holds a NUL", key);
    } else {
        return json_string_value(v);
    }
    return NULL;
}

static bool known_endpoint(const char *url)
{
    for (size_t i = 0; batch_endpoints[i]; i++)
        if (strcmp(batch_endpoints[i], url) == 0) return true;
    return false;
}

/* Are method, url and body those of a request? */
static bool check_request(struct batch_plan *p, uint64_t number, const json_t *o, const struct batch_rules *r)
{
    const size_t before = p->n_problems;
    const char *method = member(p, number, o, "method"), *url = member(p, number, o, "url");
    const json_t *body = json_object_get(o, "body");
    if (method && strcmp(method, "POST") != 0)
        problem(p, number, "invalid_value", "method", "method is \"%.32s\": only POST is offered", method);
    if (url && r->endpoint && strcmp(url, r->endpoint) != 0)
        problem(p, number, "invalid_value", "url", "url is \"%.64s\", the batch's endpoint is %s", url, r->endpoint);
    else if (url && !known_endpoint(url))
        problem(p, number, "invalid_value", "url", "url is \"%.64s\": give %s, %s, %s or %s", url, batch_endpoints[0],
                batch_endpoints[1], batch_endpoints[2], batch_endpoints[3]);
    if (body == NULL || json_is_null(body)) problem(p, number, "missing_required_parameter", "body", "body is missing");
    else if (!json_is_object(body))
        problem(p, number, "invalid_type", "body", "body is %s: give an object", doc_kind(body));
    return p->n_problems == before;
}

static const struct doc_limits line_limits = { .bytes_max = LINE_MAX_BYTES, .depth_max = DEPTH_MAX, .allow_nul = true,
                                               .code = E_ARG };

/* One line of the input, not blank, into the plan or its problems. */
static status scan_line(struct batch_plan *p, const struct jsonl_line *l, uint64_t number, const struct batch_rules *r,
                        struct err *e)
{
    struct doc d;
    struct err bad;
    struct line t = { .offset = l->offset, .n = l->n, .number = number };
    if (l->text == NULL) {
        problem(p, number, "invalid_value", NULL, "the line has %llu bytes, %zu are allowed", (unsigned long long)l->n,
                LINE_MAX_BYTES);
        return OK;
    }
    if (doc_parse(l->text, (size_t)l->n, "the line", &line_limits, &d, &bad) != OK) {
        problem(p, number, "invalid_json", NULL, "%.*s", 250, bad.text);
        return OK;
    }
    status st = OK;
    const char *id = NULL;
    if (!json_is_object(d.root))
        problem(p, number, "invalid_type", NULL, "the line is %s: give an object", doc_kind(d.root));
    else id = member(p, number, d.root, "custom_id");
    if (id && strlen(id) > BATCH_CUSTOM_ID_MAX) {
        problem(p, number, "invalid_value", "custom_id", "custom_id has %zu bytes, %d are allowed", strlen(id),
                BATCH_CUSTOM_ID_MAX);
        id = NULL;
    }
    if (id) TRY_GOTO(st, key_of(id, t.key, e), done);
    if (id) TRY_GOTO(st, grow_slots(p, e), done);
    uint32_t *slot = id ? slot_of(p, t.key) : NULL;
    if (slot && *slot) {
        problem(p, number, "invalid_value", "custom_id", "custom_id \"%.64s\" stands in line %llu already", id,
                (unsigned long long)p->line[*slot - 1].number);
    } else if (json_is_object(d.root) && check_request(p, number, d.root, r) && slot) {
        t.cost = (float)cost_of(json_object_get(d.root, "body"), r->media_root);
        TRY_GOTO(st, mem_grow(&p->line, &p->cap, p->n + 1, sizeof *p->line, e), done);
        p->line[p->n++] = t;
        *slot = (uint32_t)p->n;
        p->counts.total++;
        p->counts.cost += t.cost;
    }
done:
    doc_close(&d);
    return st;
}

static bool is_blank(const struct jsonl_line *l)
{
    for (size_t i = 0; l->text && i < l->n; i++)
        if (l->text[i] != ' ' && l->text[i] != '\t' && l->text[i] != '\r') return false;
    return l->text != NULL;
}

static void into_digest(void *self, const void *bytes, size_t n) { media_digest_add(self, bytes, n); }

static status scan_lines(struct batch_plan *p, struct jsonl_reader *reader, const struct batch_rules *r, struct err *e)
{
    struct jsonl_line l;
    uint64_t number = 0;
    for (bool got;;) {
        TRY(jsonl_next(reader, &l, &got, e));
        if (!got) break;
        number++;
        if (r->stop && atomic_load(r->stop)) return err_set(e, E_CANCELLED, "stopped while the input was read");
        if (number == 1 && l.text && l.n >= 3 && memcmp(l.text, "\xef\xbb\xbf", 3) == 0) {     /* a byte order mark */
            l.text += 3;
            l.offset += 3;
            l.n -= 3;
        }
        if (is_blank(&l)) continue;
        if (p->n == UINT32_MAX - 1 || (r->lines_max && p->n == r->lines_max)) {
            problem(p, number, "invalid_value", NULL, "the input has more than %llu lines",
                    (unsigned long long)p->n);
            break;
        }
        TRY(scan_line(p, &l, number, r, e));
    }
    if (p->n == 0 && p->n_problems == 0) problem(p, 0, "invalid_value", NULL, "the input holds no line");
    return OK;
}

status batch_scan(int fd, const struct batch_rules *r, struct batch_plan **out, struct err *e)
{
    struct media_digest *d = NULL;
    TRY(media_digest_begin(&d, e));
    struct batch_plan *p = mem_must(1, sizeof *p);
    struct jsonl_reader reader = { .fd = fd, .line_max = LINE_MAX_BYTES, .seen = into_digest, .self = d };
    status st = grow_slots(p, e);
    if (st == OK) st = scan_lines(p, &reader, r, e);
    jsonl_reader_free(&reader);
    media_digest_end(&d, p->digest);
    if (st != OK) batch_plan_free(&p);
    *out = p;
    return st;
}

void batch_plan_free(struct batch_plan **pp)
{
    struct batch_plan *p = *pp;
    if (p == NULL) return;
    free(p->line);
    free(p->slot);
    free(p);
    *pp = NULL;
}

const char *batch_plan_digest(const struct batch_plan *p) { return p->digest; }

const struct batch_problem *batch_plan_problems(const struct batch_plan *p, size_t *n, size_t *n_all)
{
    *n = p->n_problems < BATCH_PROBLEMS ? p->n_problems : BATCH_PROBLEMS;
    *n_all = p->n_problems;
    return p->problem;
}

void batch_plan_counts(const struct batch_plan *p, struct batch_counts *out) { *out = p->counts; }

/* ---- what is over --------------------------------------------------------------------------------------------- */

int batch_line_status(const json_t *line)
{
    const json_t *response = json_object_get(line, "response"), *error = json_object_get(line, "error");
    const json_t *code = json_object_get(response, "status_code");
    if (!json_is_string(json_object_get(line, "custom_id"))) return -1;
    if (json_is_integer(code) && json_integer_value(code) >= 100 && json_integer_value(code) <= 599)
        return (int)json_integer_value(code);
    return json_is_null(response) && json_is_object(error) ? 0 : -1;
}

static uint64_t tokens(const json_t *usage, const char *key, const char *other)
{
    const json_t *v = json_object_get(usage, key);
    if (!json_is_integer(v)) v = json_object_get(usage, other);
    return json_is_integer(v) && json_integer_value(v) > 0 ? (uint64_t)json_integer_value(v) : 0;
}

/* A line is over, with this status (0: never ran) and reply. */
static void count_line(struct batch_plan *p, struct line *t, int status_code, const json_t *reply)
{
    const json_t *usage = json_object_get(reply, "usage");
    t->state = LINE_OVER;
    p->counts.cost_done += t->cost;
    if (status_code == 0) p->counts.never++;
    else if (status_code < 400) p->counts.completed++;
    else p->counts.failed++;
    p->counts.tokens_in += tokens(usage, "prompt_tokens", "input_tokens");
    p->counts.tokens_out += tokens(usage, "completion_tokens", "output_tokens");
}

enum batch_have batch_plan_have(struct batch_plan *p, const json_t *line)
{
    const int status_code = batch_line_status(line);
    const char *id = json_string_value(json_object_get(line, "custom_id"));
    uint8_t key[16];
    struct err e;
    if (status_code < 0 || key_of(id, key, &e) != OK) return BATCH_FOREIGN;
    const uint32_t *slot = slot_of(p, key);
    if (*slot == 0) return BATCH_FOREIGN;
    struct line *t = &p->line[*slot - 1];
    if (t->state == LINE_OVER) return BATCH_TWICE;
    count_line(p, t, status_code, json_object_get(json_object_get(line, "response"), "body"));
    return BATCH_HAVE;
}

/* ---- working ---------------------------------------------------------------------------------------------------- */

struct work {
    const struct batch_job *j;
    pthread_mutex_t lock;
    pthread_cond_t changed;        /* a worker ended, or a line */
    uint32_t *order;               /* [n_order] lines that wait, dearest first */
    size_t n_order, next;
    uint32_t n_workers;            /* that live */
    bool ended;                    /* begin no more: a line failed and fail_fast, or st */
    atomic_bool hurry;             /* as j->kill, or the output cannot be written */
    status st;
    struct err e;
};

static bool is_set(const atomic_bool *b) { return b && atomic_load(b); }

static int by_cost(const void *pa, const void *pb, void *lines)
{
    const uint32_t a = *(const uint32_t *)pa, b = *(const uint32_t *)pb;
    const struct line *line = lines;
    if (line[a].cost != line[b].cost) return line[a].cost > line[b].cost ? -1 : 1;
    return a < b ? -1 : a > b;
}

static status make_order(struct work *w, struct err *e)
{
    const struct batch_plan *p = w->j->plan;
    TRY(mem_alloc(&w->order, p->n, sizeof *w->order, e));
    for (size_t i = 0; i < p->n; i++)
        if (p->line[i].state == LINE_WAITING) w->order[w->n_order++] = (uint32_t)i;
    qsort_r(w->order, w->n_order, sizeof *w->order, by_cost, p->line);
    return OK;
}

/* The next line to run; NULL: none, or not now any more. */
static struct line *take(struct work *w)
{
    struct line *t = NULL;
    pthread_mutex_lock(&w->lock);
    if (!w->ended && !is_set(w->j->stop) && !is_set(w->j->kill) && w->next < w->n_order) {
        t = &w->j->plan->line[w->order[w->next++]];
        t->state = LINE_RUNNING;
    }
    pthread_mutex_unlock(&w->lock);
    return t;
}

/* The line's text again, parsed. It was good when it was scanned: a file that changed since is an error. */
static status read_line(const struct batch_job *j, const struct line *t, struct doc *out, struct err *e)
{
    char *text;
    status st;
    TRY(mem_alloc(&text, t->n + 1, 1, e));
    uint64_t have = 0;
    for (ssize_t got; have < t->n; have += (uint64_t)got) {
        got = pread(j->fd, text + have, t->n - have, (off_t)(t->offset + have));
        if (got < 0 && errno == EINTR) got = 0;
        else if (got <= 0) break;
    }
    if (have < t->n)
        st = err_set(e, E_IO, "line %llu of the input cannot be read again", (unsigned long long)t->number);
    else st = doc_parse(text, (size_t)t->n, "the line", &line_limits, out, e);
    free(text);
    if (st == E_ARG) st = err_set(e, E_IO, "line %llu of the input changed while it was worked on",
                                  (unsigned long long)t->number);
    return st;
}

static void reply_error(struct err *e, int *status_code, json_t **reply)
{
    *status_code = api_error_of(e).status;
    *reply = api_error_json(e);
}

static const char *error_code(const json_t *reply)
{
    const char *code = json_string_value(json_object_get(json_object_get(reply, "error"), "code"));
    return code ? code : "";
}

/* Sleeps, but not past a wish to end; false: there is one. */
static bool wait_a_little(const struct work *w, double seconds)
{
    for (double left = seconds; left > 0; left -= 0.05) {
        if (is_set(w->j->stop) || is_set(w->j->kill) || atomic_load(&w->hurry)) return false;
        const struct timespec t = { 0, 50000000 };
        nanosleep(&t, NULL);
    }
    return true;
}

/* One line run, as often as it takes to find room. False: it was not run to an end and waits again. */
static bool run_body(struct work *w, const char *url, const char *body, size_t n, const char *request_id,
                     int *status_code, json_t **reply)
{
    const struct batch_job *j = w->j;
    for (int tries = 1;; tries++) {
        *reply = NULL;
        *status_code = 500;
        j->run(j->run_self, url, body, n, request_id, j->kill, status_code, reply);
        assert(*reply);
        const bool no_room = *status_code == 429 || *status_code == 503;
        if (*status_code < 400 || !(is_set(j->kill) || no_room)) return true;
        const bool draining = strcmp(error_code(*reply), "draining") == 0;
        if (!is_set(j->kill) && !draining && tries == TRIES) return true;
        json_decref(*reply);
        *reply = NULL;
        if (draining && !is_set(j->kill)) {
            pthread_mutex_lock(&w->lock);
            w->ended = true;
            if (w->st == OK) {
                w->st = err_set(&w->e, E_BUSY, "the engine is ending and takes no more requests");
                err_tag(&w->e, "draining", NULL);
            }
            pthread_mutex_unlock(&w->lock);
        }
        if (draining || is_set(j->kill) || !wait_a_little(w, tries < 5 ? 0.1 * (1 << tries) : 5)) return false;
    }
}

/* The answer goes to its file. Under the lock. */
static void put_line(struct work *w, struct line *t, const char *custom_id, const char *request_id, int status_code,
                     json_t *reply)
{
    char id[48] = "batch_req_";
    const struct batch_job *j = w->j;
    random_hex(id + 10, 16);
    json_t *o = json_pack("{s:s, s:s, s:{s:i, s:s, s:O}, s:n}", "id", id, "custom_id", custom_id, "response",
                          "status_code", status_code, "request_id", request_id, "body", reply, "error");
    const status st =
        o ? jsonl_add(status_code < 400 ? j->out : j->errors, o, &w->e) : err_set(&w->e, E_NOMEM, "out of memory");
    json_decref(o);
    if (st != OK) {
        w->st = st;
        w->ended = true;
        t->state = LINE_WAITING;
        return;
    }
    count_line(j->plan, t, status_code, reply);
    if (status_code >= 400 && j->fail_fast) w->ended = true;
    if (status_code >= 400 && j->failed) j->failed(j->self, custom_id, status_code, reply);
    if (j->progress) j->progress(j->self, &j->plan->counts);
}

static void stream_refused(int *status_code, json_t **reply)
{
    struct err e;
    err_set(&e, E_ARG, "a batch line cannot stream: leave stream out");
    err_tag(&e, "invalid_value", "stream");
    reply_error(&e, status_code, reply);
}

static void run_line(struct work *w, struct line *t)
{
    const struct batch_job *j = w->j;
    struct doc d = { 0 };
    struct err e;
    char request_id[40] = "req_";
    int status_code = 500;
    json_t *reply = NULL;
    char *text = NULL;
    status st = read_line(j, t, &d, &e);
    bool ran = st == OK;
    random_hex(request_id + 4, 16);
    if (st == OK) {
        json_t *body = json_object_get(d.root, "body");
        if (j->media_root) batch_absolute_media(body, j->media_root);
        if (json_is_true(json_object_get(body, "stream"))) {
            stream_refused(&status_code, &reply);
        } else if ((text = json_dumps(body, JSON_COMPACT | JSON_REAL_PRECISION(17))) == NULL) {
            err_set(&e, E_NOMEM, "out of memory");
            reply_error(&e, &status_code, &reply);
        } else {
            ran = run_body(w, json_string_value(json_object_get(d.root, "url")), text, strlen(text), request_id,
                           &status_code, &reply);
        }
        free(text);
    }
    pthread_mutex_lock(&w->lock);
    if (ran) {
        put_line(w, t, json_string_value(json_object_get(d.root, "custom_id")), request_id, status_code, reply);
    } else {
        t->state = LINE_WAITING;
        if (st != OK && w->st == OK) {
            w->st = st;
            w->e = e;
            w->ended = true;
        }
    }
    if (w->st != OK) atomic_store(&w->hurry, true);
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    json_decref(reply);
    doc_close(&d);
}

static void *worker(void *arg)
{
    struct work *w = arg;
    const struct batch_job *j = w->j;
    for (bool more = true; more;) {
        if (j->enter && !j->enter(j->self)) break;
        struct line *t = take(w);
        more = t != NULL;
        if (t) run_line(w, t);
        if (j->leave) j->leave(j->self);
    }
    pthread_mutex_lock(&w->lock);
    w->n_workers--;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* Until all workers ended: once a second what was written goes to disk and progress is told. Under the lock. */
static void watch(struct work *w)
{
    const struct batch_job *j = w->j;
    while (w->n_workers > 0) {
        struct timespec until;
        struct err e;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        if (pthread_cond_timedwait(&w->changed, &w->lock, &until) != ETIMEDOUT) continue;
        status st = jsonl_tick(j->out, &e);
        if (st == OK && j->errors != j->out) st = jsonl_tick(j->errors, &e);
        if (st != OK && w->st == OK) {
            w->st = st;
            w->e = e;
            w->ended = true;
        }
        if (j->progress) j->progress(j->self, &j->plan->counts);
    }
}

status batch_work(const struct batch_job *j, struct batch_counts *counts, struct err *e)
{
    struct work w = { .j = j, .st = OK };
    const uint32_t most = j->n_at_once ? j->n_at_once : AT_ONCE;
    *counts = j->plan->counts;
    TRY(make_order(&w, e));
    const uint32_t n = w.n_order < most ? (uint32_t)w.n_order : most;
    pthread_t *thread = mem_must(n + 1, sizeof *thread);
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.changed, NULL);
    pthread_mutex_lock(&w.lock);
    uint32_t begun = 0;
    while (begun < n && pthread_create(&thread[begun], NULL, worker, &w) == 0) {
        begun++;
        w.n_workers++;
    }
    if (begun == 0 && n > 0) w.st = err_set(&w.e, E_NOMEM, "no thread can be started");
    if (j->progress) j->progress(j->self, &j->plan->counts);
    watch(&w);
    pthread_mutex_unlock(&w.lock);
    for (uint32_t i = 0; i < begun; i++) pthread_join(thread[i], NULL);
    if (w.st == OK) w.st = jsonl_sync(j->out, &w.e);
    if (w.st == OK) w.st = jsonl_sync(j->errors, &w.e);
    pthread_cond_destroy(&w.changed);
    pthread_mutex_destroy(&w.lock);
    free(thread);
    free(w.order);
    *counts = j->plan->counts;
    if (w.st != OK && e) *e = w.e;
    return w.st;
}

status batch_never(const struct batch_job *j, const char *code, const char *message, struct err *e)
{
    struct batch_plan *p = j->plan;
    for (size_t i = 0; i < p->n; i++) {
        struct doc d;
        struct line *t = &p->line[i];
        if (t->state == LINE_OVER) continue;
        TRY(read_line(j, t, &d, e));
        char id[48] = "batch_req_";
        random_hex(id + 10, 16);
        json_t *o =
            json_pack("{s:s, s:O, s:n, s:{s:s, s:s}}", "id", id, "custom_id", json_object_get(d.root, "custom_id"),
                      "response", "error", "code", code, "message", message);
        const status st = o ? jsonl_add(j->errors, o, e) : err_set(e, E_NOMEM, "out of memory");
        json_decref(o);
        doc_close(&d);
        TRY(st);
        count_line(p, t, 0, NULL);
    }
    return jsonl_sync(j->errors, e);
}
