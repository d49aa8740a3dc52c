/* http/access_log.c - one JSON line for each request that is over, and how often each status was given. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/internal.h"

static void count(struct http_server *s, const char *route, const char *method, int code)
{
    struct err e;
    for (size_t i = 0; i < s->n_status_count; i++) {
        struct count *c = &s->status_count[i];
        if (c->status == code && strcmp(c->route, route) == 0 && strcmp(c->method, method) == 0) {
            c->n++;
            return;
        }
    }
    if (mem_grow(&s->status_count, &s->cap_status_count, s->n_status_count + 1, sizeof *s->status_count, &e) != OK) return;
    s->status_count[s->n_status_count++] = (struct count){ route, method, code, 1 };
}

void http_server_each_status(const struct http_server *s,
                             void (*fn)(void *self, const char *route, const char *method, int status, uint64_t n),
                             void *self)
{
    for (size_t i = 0; i < s->n_status_count; i++) {
        const struct count *c = &s->status_count[i];
        fn(self, c->route, c->method, c->status, c->n);
    }
}

static double since(double t) { return t > 0 ? (clock_s() - t) * 1e3 : 0; }

void access_log(struct http_request *r, int code)
{
    struct http_server *s = r->server;
    const char *route = r->route ? r->route->path : "other";
    /* Method names of the library and route patterns outlive the server: nothing of the client's is kept. */
    count(s, route, r->head.method ? r->head.method : "-", code);
    s->counts.n_requests++;
    if (s->o.access_log == NULL) return;
    struct timespec now;
    struct tm utc;
    char when[40], stamp[80];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(stamp, sizeof stamp, "%s.%03ldZ", when, now.tv_nsec / 1000000);
    json_t *line = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:i,s:I,s:I,s:f}", "time", stamp, "request_id", r->id, "peer", r->peer,
                             "method", r->head.method ? r->head.method : "-", "path", r->head.path ? r->head.path : "",
                             "route", route, "status", code, "bytes_in", (json_int_t)r->n_body, "bytes_out",
                             (json_int_t)r->bytes_out, "ms", since(r->began_s));
    if (line == NULL) return;
    json_dumpf(line, s->o.access_log, JSON_COMPACT | JSON_REAL_PRECISION(7));
    fputc('\n', s->o.access_log);
    fflush(s->o.access_log);
    json_decref(line);
}
