/* api/batches.h - /v1/batches: batches that clients make of files, run beside online work: docs/http-api.md 1.9.
 *
 *   batches_create     validating     the input is read and checked, up to 100 errors      -> failed
 *                      in_progress    lines run; cancel, 24 hours or the last line end it
 *                      cancelling     lines that run finish, for 60 s at most
 *                      finalizing     output and error file go to the store of files
 *                      completed, cancelled, expired
 *
 *   DIR/<id>.odj       the states, one a line (api/batch_state.h)
 *   DIR/<id>.out .err  the lines that are over (api/batch.h), until they are files of the store
 *
 * All of it outlives the process: batches_open goes on with what an earlier one left. Lines run only in slots that
 * online work leaves free, those of up to four batches at once. All functions may be called from any thread but a
 * loop's: they touch the disk. */
#ifndef API_BATCHES_H
#define API_BATCHES_H

#include <jansson.h>

#include "api/batch_state.h"

struct batches;

/* As batch_run, for the key `owner`. */
typedef void (*batches_run)(void *self, const char *owner, const char *endpoint, const char *body, size_t n,
                            const char *request_id, const atomic_bool *stop, int *status_code, json_t **reply);

struct batches_options {
    const char *dir;               /* made where it is not there */
    struct files *files;           /* borrowed; closed after batches_close */
    uint32_t n_at_once;            /* lines of all batches; 0: 8 */
    /* How many batch lines may run now, of which n_batch do. NULL: n_at_once. */
    uint32_t (*room)(void *self, uint32_t n_batch);
    void *room_self;
    /* A line is over, with this status; 0: it never ran. May be NULL. */
    void (*observe)(void *self, int status_code);
    void *observe_self;
    int64_t (*now)(void);          /* seconds since 1970; NULL: time() */
    double cancel_s;               /* that running lines have after a cancel; 0: 60 */
};

/* E_IO, E_NOMEM; E_ARG where another process works in dir. */
status batches_open(const struct batches_options *o, struct batches **out, struct err *e);
/* From now on lines may run: the engine is there. */
void batches_start(struct batches *b, batches_run run, void *run_self);
/* Begins no more lines; those that run go on. What is in progress stays so for the next start. */
void batches_drain(struct batches *b);
/* Cancels lines that still run: they run again after the next start. Waits for their end. */
void batches_close(struct batches **b);

/* body: JSON of a stranger. *out is the batch object, the caller's reference. E_ARG with tag and param (not_found: the
 * file), E_BUSY tag rate_limit_exceeded: too many that are not over; draining. */
status batches_create(struct batches *b, const char *owner, const char *body, size_t n, json_t **out, struct err *e);
/* E_ARG, tag not_found. */
status batches_get(struct batches *b, const char *owner, const char *id, json_t **out, struct err *e);
/* Also E_ARG where it is over. A batch that is cancelling already is no error. */
status batches_cancel(struct batches *b, const char *owner, const char *id, json_t **out, struct err *e);
/* Newest first: {"object":"list","data",...,"has_more"}. after NULL: from the start; limit 1..100, 0: 20. */
status batches_list(struct batches *b, const char *owner, const char *after, uint32_t limit, json_t **out,
                    struct err *e);
/* Batches that are not over, lines that run. */
void batches_count(struct batches *b, uint32_t *n_live, uint32_t *n_lines);

#endif
