/* http/multipart.c - see multipart.h.
 *
 *     preamble  --B CRLF  headers CRLF CRLF  data  CRLF--B CRLF  headers ...  data  CRLF--B--  epilogue
 *
 * The delimiter CRLF--B has its only CR at the front, so a match that breaks off can only begin anew at the byte that
 * broke it: no backing up, and what was held back as a possible delimiter is told as data. */
#include "http/multipart.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"

enum state { PREAMBLE, AFTER_BOUNDARY, AFTER_DASH, BOUNDARY_LF, HEADERS, DATA, EPILOGUE };

struct multipart {
    struct multipart_sink sink;
    enum state state;
    char delimiter[4 + MULTIPART_BOUNDARY_MAX + 1];   /* "\r\n--B" */
    size_t n_delimiter, n_matched;
    uint32_t n_parts;
    char header[MULTIPART_HEADER_MAX + 1];
    size_t n_header;
};

static status bad(struct err *e, const char *what)
{
    err_set(e, E_ARG, "the form cannot be read: %s", what);
    return err_tag(e, "invalid_multipart", NULL);
}

/* Past one parameter's value; a quoted one may hold semicolons and escaped quotes. */
static const char *skip_value(const char *s)
{
    if (*s != '"') return s + strcspn(s, ";");
    for (s++; *s && *s != '"'; s++)
        if (*s == '\\' && s[1]) s++;
    return s + strcspn(s, ";");
}

/* Browsers and clients differ: \" and %22 both stand for a quote; a backslash before anything else is itself. */
static bool copy_value(const char *s, char *out, size_t cap)
{
    size_t n = 0;
    if (*s != '"') {
        n = strcspn(s, "; \t");
        if (n >= cap) return false;
        memcpy(out, s, n);
        out[n] = '\0';
        return true;
    }
    for (s++; *s != '"'; s++) {
        if (*s == '\0' || n + 1 >= cap) return false;
        if (*s == '\\' && (s[1] == '"' || s[1] == '\\')) s++;
        else if (strncmp(s, "%22", 3) == 0) {
            out[n++] = '"';
            s += 2;
            continue;
        }
        out[n++] = *s;
    }
    out[n] = '\0';
    return true;
}

bool multipart_parameter(const char *value, const char *name, char *out, size_t cap)
{
    const size_t n = strlen(name);
    for (const char *s = value + strcspn(value, ";"); *s == ';';) {
        s += 1 + strspn(s + 1, " \t");
        const char *equals = s + strcspn(s, "=;");
        if (*equals != '=') {
            s = equals;
            continue;
        }
        if ((size_t)(equals - s) == n && strncasecmp(s, name, n) == 0) return copy_value(equals + 1, out, cap);
        s = skip_value(equals + 1);
    }
    return false;
}

status multipart_create(const char *content_type, const struct multipart_sink *sink, struct multipart **out,
                        struct err *e)
{
    char boundary[MULTIPART_BOUNDARY_MAX + 2];
    if (!multipart_parameter(content_type, "boundary", boundary, sizeof boundary) || boundary[0] == '\0')
        return bad(e, "the Content-Type header names no boundary of 1 to 70 bytes");
    const size_t n = strlen(boundary);
    if (n > MULTIPART_BOUNDARY_MAX) return bad(e, "the boundary is longer than 70 bytes");
    for (size_t i = 0; i < n; i++)
        if ((!isalnum((unsigned char)boundary[i]) && strchr("'()+_,-./:=? ", boundary[i]) == NULL) ||
            (boundary[i] == ' ' && i + 1 == n))
            return bad(e, "the boundary holds a character that it must not");
    struct multipart *m = mem_must(1, sizeof *m);
    m->sink = *sink;
    m->n_delimiter = (size_t)snprintf(m->delimiter, sizeof m->delimiter, "\r\n--%s", boundary);
    m->n_matched = 2;              /* the first boundary needs no CRLF before it */
    *out = m;
    return OK;
}

void multipart_free(struct multipart **m)
{
    free(*m);
    *m = NULL;
}

/* ---- headers of a part ------------------------------------------------------------------------------------ */

static bool is_utf8(const char *s)
{
    json_t *j = json_string(s);
    json_decref(j);
    return j != NULL;
}

/* filename*=UTF-8''na%C3%AFve.mp3 (RFC 5987); out [cap] is left alone where it is not that. */
static void extended(const char *disposition, char *out, size_t cap)
{
    char raw[MULTIPART_HEADER_MAX];
    if (!multipart_parameter(disposition, "filename*", raw, sizeof raw) || strncasecmp(raw, "utf-8'", 6) != 0) return;
    const char *s = strchr(raw + 6, '\'');
    size_t n = 0;
    if (s == NULL) return;
    for (s++; *s && n + 1 < cap; s++) {
        unsigned byte;
        if (*s == '%' && isxdigit((unsigned char)s[1]) && isxdigit((unsigned char)s[2]) && sscanf(s + 1, "%2x", &byte) == 1) {
            out[n++] = (char)byte;
            s += 2;
        } else {
            out[n++] = *s;
        }
    }
    out[n] = '\0';
}

/* File names are hints only: what is not text becomes '?'. */
static void clean(char *s)
{
    const bool utf8 = is_utf8(s);
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f || (!utf8 && (unsigned char)*s >= 0x80)) *s = '?';
}

/* m->header holds the lines, each ended by CRLF. */
static status begin_part(struct multipart *m, struct err *e)
{
    char name[1024], filename[MULTIPART_HEADER_MAX];
    const char *disposition = NULL, *type = NULL;
    if (++m->n_parts > MULTIPART_PARTS_MAX) return bad(e, "more than 64 parts");
    for (char *line = m->header, *end; *line; line = end + 2) {
        end = strstr(line, "\r\n");
        if (end == NULL) return bad(e, "a part's header is not ended");
        *end = '\0';
        char *colon = strchr(line, ':');
        if (colon == NULL || colon == line || *line == ' ' || *line == '\t') return bad(e, "a part has a broken header");
        *colon = '\0';
        char *value = colon + 1 + strspn(colon + 1, " \t");
        for (const char *p = value; *p; p++)
            if (((unsigned char)*p < 0x20 && *p != '\t') || *p == 0x7f) return bad(e, "a control character in a part's header");
        if (strcasecmp(line, "content-disposition") == 0) disposition = value;
        else if (strcasecmp(line, "content-type") == 0) type = value;
        else if (strcasecmp(line, "content-transfer-encoding") == 0 && strcasecmp(value, "binary") != 0 &&
                 strcasecmp(value, "8bit") != 0 && strcasecmp(value, "7bit") != 0)
            return bad(e, "parts must not be encoded");
    }
    if (disposition == NULL || strncasecmp(disposition, "form-data", 9) != 0)
        return bad(e, "a part has no 'Content-Disposition: form-data'");
    if (!multipart_parameter(disposition, "name", name, sizeof name) || name[0] == '\0' || !is_utf8(name))
        return bad(e, "a part has no name");
    bool file = multipart_parameter(disposition, "filename", filename, sizeof filename);
    if (!file) filename[0] = '\0';
    extended(disposition, filename, sizeof filename);
    file = file || filename[0];
    clean(filename);
    if (type && !is_utf8(type)) type = NULL;
    return m->sink.begin(m->sink.self, name, file ? filename : NULL, type, e);
}

/* ---- the stream ------------------------------------------------------------------------------------------- */

static status header_byte(struct multipart *m, char c, struct err *e)
{
    if (c == '\0') return bad(e, "a control character in a part's header");
    if (m->n_header == MULTIPART_HEADER_MAX) return bad(e, "a part's header is longer than 8192 bytes");
    m->header[m->n_header++] = c;
    if (c != '\n') return OK;
    if (m->n_header < 2 || m->header[m->n_header - 2] != '\r') return bad(e, "a LF without CR in a part's header");
    const bool empty = m->n_header == 2 || memcmp(m->header + m->n_header - 4, "\r\n\r\n", 4) == 0;
    if (!empty) return OK;
    m->header[m->n_header - 2] = '\0';
    m->state = DATA;
    m->n_matched = 0;
    return begin_part(m, e);
}

/* Data from bytes[*at] on, as far as it goes. */
static status data_bytes(struct multipart *m, const char *bytes, size_t n, size_t *at, struct err *e)
{
    size_t i = *at;
    while (i < n) {
        if (m->n_matched == 0) {
            const char *cr = memchr(bytes + i, '\r', n - i);
            /* A CR that is not even followed by LF would only cut the data into small pieces. */
            while (cr && cr + 1 < bytes + n && cr[1] != '\n') cr = memchr(cr + 1, '\r', (size_t)(bytes + n - cr - 1));
            const size_t plain = cr ? (size_t)(cr - (bytes + i)) : n - i;
            if (plain && m->state == DATA) TRY(m->sink.data(m->sink.self, bytes + i, plain, e));
            i += plain;
            if (cr == NULL) break;
            m->n_matched = 1;
            i++;
            continue;
        }
        if (bytes[i] == m->delimiter[m->n_matched]) {
            i++;
            if (++m->n_matched < m->n_delimiter) continue;
            m->n_matched = 0;
            *at = i;
            const bool was_data = m->state == DATA;
            m->state = AFTER_BOUNDARY;
            return was_data ? m->sink.end(m->sink.self, e) : OK;
        }
        const size_t held = m->n_matched;
        m->n_matched = 0;
        if (m->state == DATA) TRY(m->sink.data(m->sink.self, m->delimiter, held, e));
    }
    *at = i;
    return OK;
}

static status after_boundary(struct multipart *m, char c, struct err *e)
{
    if (m->state == AFTER_DASH) {
        if (c != '-') return bad(e, "a boundary is followed by something else than CRLF or '--'");
        m->state = EPILOGUE;
    } else if (m->state == BOUNDARY_LF) {
        if (c != '\n') return bad(e, "a boundary is not ended by CRLF");
        m->state = HEADERS;
        m->n_header = 0;
    } else if (c == '-') {
        m->state = AFTER_DASH;
    } else if (c == '\r') {
        m->state = BOUNDARY_LF;
    } else if (c != ' ' && c != '\t') {
        return bad(e, "a boundary is followed by something else than CRLF or '--'");
    }
    return OK;
}

status multipart_feed(struct multipart *m, const char *bytes, size_t n, struct err *e)
{
    for (size_t i = 0; i < n;) {
        switch (m->state) {
        case PREAMBLE:
        case DATA:
            TRY(data_bytes(m, bytes, n, &i, e));
            break;
        case HEADERS:
            TRY(header_byte(m, bytes[i++], e));
            break;
        case EPILOGUE:
            return OK;
        default:
            TRY(after_boundary(m, bytes[i++], e));
        }
    }
    return OK;
}

status multipart_finish(struct multipart *m, struct err *e)
{
    return m->state == EPILOGUE ? OK : bad(e, "it ends before its closing boundary");
}
