/* http/disk.c - see disk.h. */
#include "http/disk.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

struct job {
    struct disk_job j;
    const struct disk *d;
    const char *route;
    disk_work work;
    status st;
    struct err e;
};

/* On the loop. */
static void answer(void *arg)
{
    struct job *t = arg;
    struct disk_job *j = &t->j;
    if (t->st != OK) {
        if (t->d->metrics) metrics_failure(t->d->metrics, t->route, &t->e);
        http_reply_error(j->r, &t->e);
    } else if (j->file >= 0) {
        http_reply_file(j->r, j->file, j->n_file, j->type);
        j->file = -1;
    } else {
        http_reply_json(j->r, 200, j->json);
        j->json = NULL;
    }
    json_decref(j->json);
    if (j->file >= 0) close(j->file);
    http_unref(j->r);
    free(t);
}

/* On a worker. */
static void work(void *arg)
{
    struct job *t = arg;
    t->st = t->work(&t->j, &t->e);
    if (t->j.fd >= 0) close(t->j.fd);
    http_post(t->d->server, answer, t);
}

void disk_reply(const struct disk *d, struct http_request *r, const char *route, void *self, int fd, disk_work fn)
{
    struct job *t = mem_must(1, sizeof *t);
    *t = (struct job){
        .j = { .r = http_ref(r), .self = self, .fd = fd, .file = -1 }, .d = d, .route = route, .work = fn
    };
    workers_run(d->workers, work, t);
}

status disk_limit(const struct http_request *r, uint32_t most, uint32_t *out, struct err *e)
{
    const char *text = http_request_query(r, "limit");
    char *end;
    *out = 0;
    if (text == NULL) return OK;
    const unsigned long v =
        strspn(text, "0123456789") == strlen(text) && strlen(text) < 10 ? strtoul(text, &end, 10) : 0;
    if (v < 1 || v > most) {
        err_set(e, E_ARG, "limit is \"%.32s\": give 1 to %u", text, most);
        return err_tag(e, "invalid_value", "limit");
    }
    *out = (uint32_t)v;
    return OK;
}
