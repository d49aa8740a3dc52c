/* cli/serve.h - what the server keeps on disk: uploaded files and batches. */
#ifndef CLI_SERVE_H
#define CLI_SERVE_H

#include "api/audio.h"
#include "http/app.h"
#include "http/batches.h"
#include "http/files.h"

struct serve_stores_options {
    const char *state_dir;         /* NULL: a folder of its own in the spool, removed at the end */
    const char *spool_dir;         /* NULL: /tmp */
    uint64_t files_quota;
    double batch_share;
    uint32_t max_running;          /* of all groups */
    struct extract_limits limits;  /* of the child that looks into uploads */
};

struct serve_stores;

/* Opens both stores. E_ARG: the folder cannot be had, or another server works in it. */
status serve_stores_open(const struct serve_stores_options *o, struct serve_stores **out, struct err *e);
/* The routes of both; once, when there is an app. */
void serve_stores_routes(struct serve_stores *s, struct app *app);
/* The engine is there: batches that wait may run. */
void serve_stores_start(struct serve_stores *s, struct api *api, struct api_audio *audio);
/* The folder of the state. */
const char *serve_stores_dir(const struct serve_stores *s);
struct files *serve_stores_files(struct serve_stores *s);
/* Not on the loop: no more batch lines begin. What runs goes on. */
void serve_stores_drain(void *stores);
/* Not on the loop, now and then: what has expired goes. */
void serve_stores_sweep(void *stores);
/* Before service_close; waits for lines that run. */
void serve_stores_stop(struct serve_stores *s);
void serve_stores_close(struct serve_stores **s);
/* Where the process ends at once: a folder of its own goes, nothing else is touched. */
void serve_stores_abandon(struct serve_stores *s);

#endif
