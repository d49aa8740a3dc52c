/* http/disk.h - answers that need the disk: worked out on a request worker, sent from the loop. */
#ifndef HTTP_DISK_H
#define HTTP_DISK_H

#include <jansson.h>

#include "http/metrics.h"
#include "http/server.h"
#include "http/workers.h"

struct disk {                      /* borrowed as long as the server runs */
    struct http_server *server;
    struct workers *workers;       /* destroyed before the server is */
    struct metrics *metrics;       /* failures are counted there; may be NULL */
};

struct disk_job {
    struct http_request *r;        /* counted; what it holds may be read */
    void *self;                    /* as given */
    int fd;                        /* in: an upload, or -1; closed when the job is over */
    json_t *json;                  /* out: the reply, a reference of the job's; or */
    int file;                      /* out: a file of n_file bytes, moved to the reply; else -1 */
    uint64_t n_file;
    const char *type;              /* its content type, a literal */
};
/* On a worker. The error is the reply where it is not OK. */
typedef status (*disk_work)(struct disk_job *j, struct err *e);

/* Loop thread. Takes fd. The work is done and the reply dropped where the client goes away meanwhile. route: the
 * pattern, a literal. */
void disk_reply(const struct disk *d, struct http_request *r, const char *route, void *self, int fd, disk_work work);

/* "limit" of a query, 1..most; 0 where it is not there. E_ARG, param limit. */
status disk_limit(const struct http_request *r, uint32_t most, uint32_t *out, struct err *e);

#endif
