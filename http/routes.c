/* http/routes.c - from a path to a handler.
 * A pattern is matched piece by piece; "{id}" takes one piece, or at its end all that are left ("org/name"). Of several
 * patterns that fit, the one with more literal pieces is meant, whatever its method: so GET on a path that only takes
 * POST is 405 even where a wider pattern has GET. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "http/internal.h"

const char *routes_strip_root(const struct http_server *s, const char *path)
{
    const size_t n = s->root_path ? strlen(s->root_path) : 0;
    if (n == 0 || strncmp(path, s->root_path, n) != 0) return path;
    if (path[n] == '\0') return "/";
    return path[n] == '/' ? path + n : path;
}

static size_t piece(const char *s) { return strcspn(s, "/"); }

/* Number of literal pieces + 1 where it fits, else 0. *from, *n: what {id} took. path has no slash at its end. */
static int match(const char *pattern, const char *path, size_t n_path, const char **from, size_t *n)
{
    int literal = 1;
    const char *end = path + n_path;
    *from = NULL;
    *n = 0;
    for (;;) {
        const bool pattern_over = *pattern == '\0', path_over = path >= end;
        if (pattern_over || path_over) return pattern_over && path_over ? literal : 0;
        if (*pattern++ != '/' || *path++ != '/') return 0;
        const size_t a = piece(pattern);
        size_t b = piece(path);
        if (path + b > end) b = (size_t)(end - path);
        if (a >= 2 && pattern[0] == '{') {
            if (pattern[a] == '\0') b = (size_t)(end - path);
            if (b == 0) return 0;
            *from = path;
            *n = b;
        } else {
            if (a != b || strncmp(pattern, path, a) != 0) return 0;
            literal++;
        }
        pattern += a;
        path += b;
    }
}

static bool answers(const struct http_route *r, const char *method)
{
    return strcmp(r->method, method) == 0 || (strcmp(method, "HEAD") == 0 && strcmp(r->method, "GET") == 0);
}

static void add_method(char *allow, size_t cap, const char *method)
{
    const size_t n = strlen(allow);
    if (strstr(allow, method) == NULL) snprintf(allow + n, cap - n, "%s%s", n ? ", " : "", method);
}

status routes_find(const struct http_server *s, const char *full, const char *method, const struct http_route **out,
                   char **capture, char *allow, size_t cap, struct err *e)
{
    const char *path = routes_strip_root(s, full);
    size_t n_path = strlen(path);
    if (n_path > 1 && path[n_path - 1] == '/') n_path--;
    int best = 0;
    const struct http_route *found = NULL;
    const char *from = NULL;
    size_t n_from = 0;
    allow[0] = '\0';
    for (size_t i = 0; i < s->n_routes; i++) {
        const char *at;
        size_t n;
        const int fit = match(s->route[i].path, path, n_path, &at, &n);
        if (fit == 0 || fit < best) continue;
        if (fit > best) {
            found = NULL;
            allow[0] = '\0';
        }
        best = fit;
        from = at;
        n_from = n;
        add_method(allow, cap, s->route[i].method);
        if (strcmp(s->route[i].method, "GET") == 0) add_method(allow, cap, "HEAD");
        if (answers(&s->route[i], method)) found = &s->route[i];
    }
    *out = found;
    *capture = NULL;
    if (best == 0) {
        err_set(e, E_ARG, "There is no %s %.*s here.", method, (int)(n_path < 200 ? n_path : 200), path);
        return err_tag(e, "unknown_endpoint", NULL);
    }
    add_method(allow, cap, "OPTIONS");
    if (found == NULL) {
        err_set(e, E_ARG, "%.*s does not take %s; it takes %s.", (int)(n_path < 200 ? n_path : 200), path, method, allow);
        return err_tag(e, "method_not_allowed", NULL);
    }
    if (from) {
        *capture = mem_must(n_from + 1, 1);
        memcpy(*capture, from, n_from);
        const size_t n = reader_unescape(*capture, false);
        json_t *text = json_stringn(*capture, n);
        const bool good = text != NULL;
        json_decref(text);
        for (size_t i = 0; i < n; i++)
            if (!good || (unsigned char)(*capture)[i] < 0x20 || (*capture)[i] == 0x7f) {
                free(*capture);
                *capture = NULL;
                err_set(e, E_ARG, "this is not a valid HTTP/1.1 request: the path holds bytes that are not text");
                return err_tag(e, "invalid_http", NULL);
            }
    }
    return OK;
}

void http_route_add(struct http_server *s, const struct http_route *route)
{
    struct err e;
    if (mem_grow(&s->route, &s->cap_routes, s->n_routes + 1, sizeof *s->route, &e) != OK) abort();
    s->route[s->n_routes++] = *route;
}
