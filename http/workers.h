/* http/workers.h - the request workers: a few threads that do what must not be done on the loop, first come first
 * served. A job's results go back to the loop by http_post. */
#ifndef HTTP_WORKERS_H
#define HTTP_WORKERS_H

#include <stdint.h>

#include "base/err.h"

struct workers;

status workers_create(uint32_t n_threads, struct workers **out, struct err *e);
/* Runs what is queued to its end first. */
void workers_destroy(struct workers **w);
/* Run fn(arg) on one of the threads. From any thread. */
void workers_run(struct workers *w, void (*fn)(void *arg), void *arg);

#endif
