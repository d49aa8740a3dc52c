/* http/reader.c - see reader.h. The library (http_parser) knows methods, targets and the grammar of lines; what it lets
 * pass for the sake of old peers is refused before or after it. */
#include "http/reader.h"

#include <ctype.h>
#include <http_parser.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"

enum state {
    HEAD,
    PLAIN,                         /* `left` bytes of a body with a length */
    CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_SIZE_LF, CHUNK_DATA, CHUNK_DATA_CR, CHUNK_DATA_LF,
    TRAILER_START, TRAILER, TRAILER_LF, TRAILER_END_LF,
    BROKEN
};

#define EMPTY_LINES_MAX 4          /* before a request: old clients send one after a body */
#define CHUNK_MAX (UINT64_C(1) << 60)

struct reader {
    enum state state;
    /* The head so far. */
    char *text;
    size_t n_text, cap;
    size_t line;                   /* where the present line starts */
    size_t block;                  /* where the headers start; 0: still in the request line */
    uint32_t n_lines, n_empty;
    bool cr;                       /* the last byte was a CR */
    struct reader_head head;
    /* The body. */
    uint64_t left;
    uint32_t n_digits, n_extra;
};

struct reader *reader_create(void)
{
    return mem_must(1, sizeof(struct reader));
}

void reader_free(struct reader **r)
{
    if (*r == NULL) return;
    free((*r)->text);
    reader_head_free(&(*r)->head);
    free(*r);
    *r = NULL;
}

void reader_head_free(struct reader_head *h)
{
    free(h->text);
    *h = (struct reader_head){ 0 };
}

bool reader_idle(const struct reader *r) { return r->state == HEAD && r->n_text == 0; }

void reader_take_head(struct reader *r, struct reader_head *out)
{
    *out = r->head;
    r->head = (struct reader_head){ 0 };
}

const char *reader_header(const struct reader_head *h, const char *name)
{
    for (size_t i = 0; i < h->n_headers; i++)
        if (strcmp(h->header[i].name, name) == 0) return h->header[i].value;
    return NULL;
}

static status bad(struct err *e, const char *what)
{
    err_set(e, E_ARG, "this is not a valid HTTP/1.1 request: %s", what);
    return err_tag(e, "invalid_http", NULL);
}

static status too_large(struct err *e, const char *what, unsigned limit, const char *unit)
{
    err_set(e, E_ARG, "%s: the limit is %u %s", what, limit, unit);
    return err_tag(e, "headers_too_large", NULL);
}

static status block_too_large(struct err *e) { return too_large(e, "the headers are too long", READER_BLOCK_MAX, "bytes"); }

/* ---- the head --------------------------------------------------------------------------------------------- */

static bool is_token(unsigned char c)
{
    return isalnum(c) || (c != 0 && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

static int hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* METHOD SP target SP HTTP/1.x, nothing more. */
static status check_request_line(const char *s, size_t n, struct err *e)
{
    const char *one = memchr(s, ' ', n);
    const char *two = one ? memchr(one + 1, ' ', (size_t)(s + n - one - 1)) : NULL;
    if (two == NULL || two == one + 1 || one == s) return bad(e, "the request line is not 'METHOD target HTTP/1.1'");
    for (const char *p = s; p < one; p++)
        if (!is_token((unsigned char)*p)) return bad(e, "the method is not a word");
    for (const char *p = one + 1; p < two; p++)
        if (*p <= 0x20 || *p >= 0x7f || *p == '#') return bad(e, "the target holds a character that must be escaped");
    const size_t left = (size_t)(s + n - two - 1);
    if (left != 8 || (memcmp(two + 1, "HTTP/1.1", 8) != 0 && memcmp(two + 1, "HTTP/1.0", 8) != 0))
        return bad(e, "the version is not HTTP/1.1 or HTTP/1.0");
    return OK;
}

static status check_header_line(const char *s, size_t n, struct err *e)
{
    if (*s == ' ' || *s == '\t') return bad(e, "a header line is folded");
    const char *colon = memchr(s, ':', n);
    if (colon == NULL || colon == s) return bad(e, "a header line has no name or no colon");
    for (const char *p = s; p < colon; p++)
        if (!is_token((unsigned char)*p)) return bad(e, "a header name holds a character that it must not");
    return OK;
}

/* One line is complete, n bytes without its CRLF. *done: it was the empty one that ends the head. */
static status end_line(struct reader *r, size_t n, bool *done, struct err *e)
{
    const char *s = r->text + r->line;
    *done = false;
    if (r->n_lines == 0 && n == 0) {
        r->n_text = 0;
        return ++r->n_empty > EMPTY_LINES_MAX ? bad(e, "empty lines in place of a request") : OK;
    }
    if (n == 0) {
        *done = true;
        return OK;
    }
    TRY(r->n_lines == 0 ? check_request_line(s, n, e) : check_header_line(s, n, e));
    if (r->block && r->n_text - r->block > READER_BLOCK_MAX) return block_too_large(e);
    if (r->n_lines++ == 0) r->block = r->n_text;
    else if (r->n_lines > READER_HEADERS_MAX + 1) return too_large(e, "too many headers", READER_HEADERS_MAX, "headers");
    r->line = r->n_text;
    return OK;
}

/* Take bytes into the head until it is complete. */
static status gather(struct reader *r, const char *bytes, size_t n, size_t *used, bool *done, struct err *e)
{
    *done = false;
    for (size_t i = 0; i < n && !*done; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        *used = i + 1;
        if (r->n_text + 1 > r->cap) {
            r->cap = r->cap ? 2 * r->cap : 2048;
            char *more = realloc(r->text, r->cap);
            if (more == NULL) abort();
            r->text = more;
        }
        r->text[r->n_text++] = (char)c;
        if (r->cr) {
            r->cr = false;
            if (c != '\n') return bad(e, "a CR without LF");
            TRY(end_line(r, r->n_text - 2 - r->line, done, e));
            continue;
        }
        if (c == '\n') return bad(e, "a LF without CR");
        if (c == '\r') r->cr = true;
        else if ((c < 0x20 && c != '\t') || c == 0x7f) return bad(e, "a control character in the head");
        if (r->n_text - r->line > READER_LINE_MAX + 1)
            return r->n_lines ? too_large(e, "a header is too long", READER_LINE_MAX, "bytes")
                              : too_large(e, "the request line is too long", READER_LINE_MAX, "bytes");
        if (r->block && r->n_text - r->block > READER_BLOCK_MAX + 2) return block_too_large(e);
    }
    return OK;
}

struct lines {                     /* where the library found things */
    struct reader_head *h;
    char *url;
    size_t n_url;
    bool in_value, whole;
    size_t n_name;
};

static int on_url(http_parser *p, const char *at, size_t n)
{
    struct lines *l = p->data;
    if (l->url == NULL) l->url = (char *)at;
    l->n_url += n;
    return 0;
}

/* A header is complete. Its strings are ended after the whole head was read: until then the library needs what stands
 * behind them. */
static void end_header(struct lines *l)
{
    if (l->h->n_headers == 0) return;
    struct reader_header *h = &l->h->header[l->h->n_headers - 1];
    char *name = (char *)h->name;
    for (size_t i = 0; i < l->n_name; i++) name[i] = (char)tolower((unsigned char)name[i]);
}

static int on_name(http_parser *p, const char *at, size_t n)
{
    struct lines *l = p->data;
    if (l->h->n_headers == 0 || l->in_value) {
        end_header(l);
        if (l->h->n_headers == READER_HEADERS_MAX) return 1;
        l->h->header[l->h->n_headers++] = (struct reader_header){ .name = at };
        l->n_name = 0;
        l->in_value = false;
    }
    l->n_name += n;
    return 0;
}

static int on_value(http_parser *p, const char *at, size_t n)
{
    (void)at, (void)n;
    ((struct lines *)p->data)->in_value = true;
    return 0;
}

static int on_head(http_parser *p)
{
    struct lines *l = p->data;
    end_header(l);
    l->h->method = http_method_str((enum http_method)p->method);
    l->h->minor = p->http_minor;
    l->h->keep_alive = http_should_keep_alive(p) != 0;
    l->whole = true;
    return 1;                      /* the body is ours */
}

/* Ends names, values and target where they end in the text. A value ends before its CRLF and the space before that. */
static void end_strings(struct lines *l)
{
    for (size_t i = 0; i < l->h->n_headers; i++) {
        struct reader_header *h = &l->h->header[i];
        char *colon = strchr((char *)h->name, ':');
        h->value = colon + 1;
        char *end = strchr((char *)h->value, '\r');
        while (end > h->value && (end[-1] == ' ' || end[-1] == '\t')) end--;
        while (h->value < end && (*h->value == ' ' || *h->value == '\t')) h->value++;
        *end = '\0';
        *colon = '\0';
    }
    l->url[l->n_url] = '\0';
}

static const char *single(const struct reader_head *h, const char *name, unsigned *n)
{
    const char *found = NULL;
    *n = 0;
    for (size_t i = 0; i < h->n_headers; i++)
        if (strcmp(h->header[i].name, name) == 0) {
            if ((*n)++ == 0) found = h->header[i].value;
        }
    return found;
}

static status read_framing(struct reader_head *h, struct err *e)
{
    unsigned n_length, n_coding;
    const char *length = single(h, "content-length", &n_length);
    const char *coding = single(h, "transfer-encoding", &n_coding);
    if (n_length > 1) return bad(e, "Content-Length stands twice");
    if (n_length && n_coding) return bad(e, "Content-Length and Transfer-Encoding exclude each other");
    if (n_coding > 1 || (n_coding && strcasecmp(coding, "chunked") != 0))
        return bad(e, "the only Transfer-Encoding is 'chunked'");
    if (n_coding && h->minor == 0) return bad(e, "HTTP/1.0 has no Transfer-Encoding");
    h->chunked = n_coding == 1;
    if (n_length == 0) return OK;
    const size_t n = strspn(length, "0123456789");
    if (n == 0 || n > 18 || length[n] != '\0') return bad(e, "Content-Length is not a number of bytes");
    h->has_length = true;
    h->length = strtoull(length, NULL, 10);
    return OK;
}

static status read_host(struct reader_head *h, struct err *e)
{
    unsigned n;
    const char *host = single(h, "host", &n);
    if (n > 1) return bad(e, "Host stands twice");
    if (n == 0 && h->minor == 1) return bad(e, "the Host header is missing");
    if (h->host == NULL) h->host = host ? host : "";
    for (const char *p = host ? host : ""; *p; p++)
        if (!isalnum((unsigned char)*p) && strchr("-._~!$&'()*+,;=:[]%", *p) == NULL)
            return bad(e, "Host is not a name or address");
    return OK;
}

static status check_escapes(const char *s, struct err *e)
{
    for (; *s; s++) {
        if (*s != '%') continue;
        const int hi = hex(s[1]), lo = hi < 0 ? -1 : hex(s[2]);
        if (lo < 0) return bad(e, "the target holds a broken percent escape");
        if (hi == 0 && lo == 0) return bad(e, "the target holds %00");
    }
    return OK;
}

/* "/path?query", "http://host/path?query" or "*"; cut up in place. */
static status read_target(struct reader_head *h, char *path, struct err *e)
{
    if (*path != '/' && strcmp(path, "*") != 0) {
        const size_t scheme = strncasecmp(path, "http://", 7) == 0 ? 7 : strncasecmp(path, "https://", 8) == 0 ? 8 : 0;
        if (scheme == 0) return bad(e, "the target is not a path");
        char *host = path + scheme, *end = host + strcspn(host, "/?");
        if (end == host || memchr(host, '@', (size_t)(end - host))) return bad(e, "the target names no plain host");
        /* The host moves two to the left, so that a NUL fits between it and the path, and a path where there is none. */
        memmove(host - 2, host, (size_t)(end - host));
        end[-2] = '\0';
        end[-1] = '/';
        h->host = host - 2;
        path = *end == '/' ? end : end - 1;
    }
    if (*path == '*' && strcmp(h->method, "OPTIONS") != 0) return bad(e, "only OPTIONS has the target '*'");
    TRY(check_escapes(path, e));
    h->query = strchr(path, '?');
    if (h->query) *h->query++ = '\0';
    h->path = path;
    return OK;
}

/* The whole head is in text. On OK r->head has it. */
static status read_head(struct reader *r, struct err *e)
{
    struct reader_head *h = &r->head;
    struct lines l = { .h = h };
    http_parser p;
    http_parser_settings on;
    http_parser_settings_init(&on);
    on.on_url = on_url;
    on.on_header_field = on_name;
    on.on_header_value = on_value;
    on.on_headers_complete = on_head;
    http_parser_init(&p, HTTP_REQUEST);
    p.data = &l;
    reader_head_free(h);
    h->text = r->text;
    const size_t n = r->n_text;
    r->text = NULL;
    r->n_text = r->cap = r->line = r->block = 0;
    r->n_lines = r->n_empty = 0;

    http_parser_execute(&p, &on, h->text, n);
    if (!l.whole || l.url == NULL) {
        const enum http_errno why = HTTP_PARSER_ERRNO(&p);
        return bad(e, why == HPE_OK ? "the head ends too early" : http_errno_description(why));
    }
    end_strings(&l);
    TRY(read_framing(h, e));
    TRY(read_target(h, l.url, e));
    TRY(read_host(h, e));
    const char *expect = reader_header(h, "expect");
    h->expects_continue = h->minor == 1 && expect && strcasecmp(expect, "100-continue") == 0;
    if (h->minor == 0) h->keep_alive = false;
    return OK;
}

/* ---- the body --------------------------------------------------------------------------------------------- */

static void finish(struct reader *r)
{
    r->state = HEAD;
    r->n_extra = 0;
}

static status extra(struct reader *r, struct err *e)
{
    if (++r->n_extra > READER_CHUNK_EXTRA_MAX)
        return too_large(e, "chunk extensions and trailers are too long", READER_CHUNK_EXTRA_MAX, "bytes");
    return OK;
}

static bool is_text(char c) { return ((unsigned char)c >= 0x20 && c != 0x7f) || c == '\t'; }

/* One byte of what stands around chunks. *end: the body is over. */
static status chunk_byte(struct reader *r, char c, bool *end, struct err *e)
{
    switch (r->state) {
    case CHUNK_SIZE:
        if (hex(c) >= 0) {
            if (++r->n_digits > 15) return bad(e, "a chunk size has too many digits");
            r->left = r->left * 16 + (uint64_t)hex(c);
            return r->left >= CHUNK_MAX ? bad(e, "a chunk size is too large") : OK;
        }
        if (r->n_digits == 0 || (c != ';' && c != '\r')) return bad(e, "a chunk size is not a number");
        r->state = c == ';' ? CHUNK_EXTENSION : CHUNK_SIZE_LF;
        return OK;
    case CHUNK_EXTENSION:
        if (c == '\r') r->state = CHUNK_SIZE_LF;
        else if (!is_text(c)) return bad(e, "a control character in a chunk extension");
        return extra(r, e);
    case CHUNK_SIZE_LF:
        if (c != '\n') return bad(e, "a chunk size is not ended by CRLF");
        r->state = r->left ? CHUNK_DATA : TRAILER_START;
        return OK;
    case CHUNK_DATA_CR:
        if (c != '\r') return bad(e, "a chunk is longer than its size");
        r->state = CHUNK_DATA_LF;
        return OK;
    case CHUNK_DATA_LF:
        if (c != '\n') return bad(e, "a chunk is not ended by CRLF");
        r->state = CHUNK_SIZE;
        r->n_digits = 0;
        return OK;
    case TRAILER_START:
        if (c == '\r') {
            r->state = TRAILER_END_LF;
            return OK;
        }
        if (!is_token((unsigned char)c)) return bad(e, "a trailer line has no name");
        r->state = TRAILER;
        return extra(r, e);
    case TRAILER:
        if (c == '\r') r->state = TRAILER_LF;
        else if (!is_text(c)) return bad(e, "a control character in a trailer");
        return extra(r, e);
    case TRAILER_LF:
        if (c != '\n') return bad(e, "a trailer is not ended by CRLF");
        r->state = TRAILER_START;
        return OK;
    default:                       /* TRAILER_END_LF */
        if (c != '\n') return bad(e, "the trailers are not ended by CRLF");
        *end = true;
        return OK;
    }
}

static enum reader_event broken(struct reader *r)
{
    r->state = BROKEN;
    return READER_BAD;
}

static enum reader_event next_head(struct reader *r, const char *bytes, size_t n, size_t *used, struct err *e)
{
    bool done;
    if (gather(r, bytes, n, used, &done, e) != OK) return broken(r);
    if (!done) return READER_MORE;
    if (read_head(r, e) != OK) return broken(r);
    r->left = r->head.chunked ? 0 : r->head.length;
    r->n_digits = 0;
    r->state = r->head.chunked ? CHUNK_SIZE : PLAIN;
    return READER_HEAD;
}

enum reader_event reader_next(struct reader *r, const char *bytes, size_t n, size_t *used, const char **piece,
                              size_t *n_piece, struct err *e)
{
    *used = 0;
    *n_piece = 0;
    if (r->state == BROKEN) {
        bad(e, "what came before could not be read");
        return READER_BAD;
    }
    if (r->state == HEAD) return next_head(r, bytes, n, used, e);
    if (r->state == PLAIN && r->left == 0) {
        finish(r);
        return READER_END;
    }
    for (size_t i = 0; i < n;) {
        if (r->state == PLAIN || r->state == CHUNK_DATA) {
            *piece = bytes + i;
            *n_piece = n - i < r->left ? n - i : (size_t)r->left;
            *used = i + *n_piece;
            r->left -= *n_piece;
            if (r->state == CHUNK_DATA && r->left == 0) r->state = CHUNK_DATA_CR;
            return READER_BODY;
        }
        bool end = false;
        *used = i + 1;
        if (chunk_byte(r, bytes[i++], &end, e) != OK) return broken(r);
        if (end) {
            finish(r);
            return READER_END;
        }
    }
    *used = n;
    return READER_MORE;
}

size_t reader_unescape(char *s, bool plus)
{
    size_t n = 0;
    for (size_t i = 0; s[i]; i++) {
        if (s[i] == '%' && hex(s[i + 1]) >= 0 && hex(s[i + 2]) >= 0) {
            s[n++] = (char)(hex(s[i + 1]) * 16 + hex(s[i + 2]));
            i += 2;
        } else {
            s[n++] = plus && s[i] == '+' ? ' ' : s[i];
        }
    }
    s[n] = '\0';
    return n;
}
