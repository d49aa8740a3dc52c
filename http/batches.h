/* http/batches.h - the routes of /v1/batches: docs/http-api.md 1.9. */
#ifndef HTTP_BATCHES_H
#define HTTP_BATCHES_H

#include "api/batches.h"
#include "http/disk.h"

struct http_batches {              /* borrowed as long as the server runs */
    struct disk disk;
    struct batches *batches;
};
/* Before http_server_run. */
void http_batches_routes(struct http_batches *b);

#endif
