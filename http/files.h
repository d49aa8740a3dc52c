/* http/files.h - the routes of /v1/files on the store of files: docs/http-api.md 1.8. */
#ifndef HTTP_FILES_H
#define HTTP_FILES_H

#include "api/files.h"
#include "http/disk.h"

struct http_files {                /* borrowed as long as the server runs */
    struct disk disk;
    struct files *files;
    /* Is this upload a medium that can be used? On a worker, for purposes user_data and vision; where it says E_INPUT
     * the file gets status "error" and the text as status_details. fd is borrowed. NULL: not asked. */
    status (*probe)(void *self, int fd, const char *name, struct err *e);
    void *probe_self;
};
/* Before http_server_run. */
void http_files_routes(struct http_files *f);

#endif
