/* api/groups.h - data-parallel groups as rank 0 sees them: which of them gets a job, and the jobs that other leaders run.
 *
 *   groups_create                before the model is loaded; leaders are heard from here on
 *   groups_wait                  until every group is ready or gone
 *   api_options.groups           from here on api_job_start and api_audio_start choose a group for each job
 *   groups_lost                  a rank died: its group's jobs end with the error group_lost, it gets no more
 *   groups_drain, groups_stop    all leaders drain; all leaders end
 *
 * A job goes to a group that lately had the same media, unless that one is full; else to the group with the most free
 * pages, as far as rank 0 knows: what the group said last, less what was sent there since and is not admitted yet. Batch
 * lines go to the group that works on the fewest jobs. Group 0 is rank 0's own: what it gets runs as without groups.
 * The wire: api/remote.h. */
#ifndef API_GROUPS_H
#define API_GROUPS_H

#include "api/audio.h"
#include "api/outbox.h"
#include "engine/question.h"

struct groups;

#define GROUPS_REMOTE ((uint64_t)1 << 63)  /* in the ids of jobs that other leaders run */

struct groups_options {
    const struct remote_link *link;    /* borrowed */
    /* As loader_options.files: the store of rank 0, for leaders that ask for a file id. NULL: there is none. */
    status (*files)(void *files_self, const char *key, const char *id, const char *name, struct media_source *out,
                    struct err *e);
    void *files_self;
    /* A counter of another leader's grew (http/metrics.h); a line for the log. On any thread. May be NULL. */
    void (*metric)(void *metric_self, uint32_t which, const char *const *label, uint32_t n, double v);
    void *metric_self;
    void (*log)(void *log_self, const char *line);
    void *log_self;
};

status groups_create(const struct groups_options *o, struct groups **out, struct err *e);
/* The store may come later than the groups: before any job. */
void groups_files(struct groups *g, status (*files)(void *, const char *, const char *, const char *, struct media_source *,
                                                    struct err *), void *files_self);
/* Jobs that other leaders run end with E_CANCELLED; their sinks were told when it returns. */
void groups_destroy(struct groups **g);

/* Waits until each other group is ready or gone, or *stop (may be NULL). The error of one that could not load, which
 * names it. Not for the time that loading takes. E_CANCELLED: stop. */
status groups_wait(struct groups *g, const atomic_bool *stop, struct err *e);
/* Once, when the local group is there. api is borrowed until groups_destroy. */
void groups_local(struct groups *g, struct api *api);
/* Group `group` is gone; why names the rank. From any thread; of a group that is gone already nothing happens. */
void groups_lost(struct groups *g, uint32_t group, const struct err *why);
void groups_drain(struct groups *g);
void groups_stop(struct groups *g);

enum groups_state { GROUPS_LOADING, GROUPS_READY, GROUPS_GONE };
struct groups_view {
    uint32_t group, n_jobs;        /* jobs that rank 0 gave it and that are not over */
    uint32_t first_rank, n_ranks;
    char hosts[128];               /* "a, b"; "": not known */
    enum groups_state state;
    char why[256];                 /* GONE */
    uint64_t n_given;              /* jobs since the start */
    struct service_gauges gauges;  /* the last that were heard; of a group that is gone too */
};
uint32_t groups_count(const struct groups *g);
/* The first cap of them; returns how many were written. */
uint32_t groups_list(struct groups *g, struct groups_view *out, uint32_t cap);

/* Groups that take jobs; at least 1, since where nobody else is left there is group 0. */
uint32_t groups_ready(struct groups *g);

/* ---- for api/job.c, api/audio.c and api/questions.c ------------------------------------------------------------ */

/* Chooses. *taken: another leader runs it and *id is its id; else it is the caller's to run, and groups_left must follow
 * when it is over. A body is copied. */
status groups_start(struct groups *g, struct api_job *j, const struct api_sink *sink, bool *taken, uint64_t *id,
                    struct err *e);
/* The same; the job's file is moved from where it was taken. */
status groups_start_audio(struct groups *g, struct api_audio_job *j, const struct api_audio_sink *sink, bool *taken,
                          uint64_t *id, struct err *e);
/* The same; the question is copied. answered: bytes of questions_put_answer, or an error; once, on a thread of g. */
status groups_start_question(struct groups *g, const struct question *q,
                             void (*answered)(void *self, const void *bytes, size_t n, const struct err *error), void *self,
                             bool *taken, uint64_t *id, struct err *e);
void groups_left(struct groups *g);
void groups_cancel(struct groups *g, uint64_t id);
void groups_cancel_audio(struct groups *g);
void groups_phase(struct groups *g, uint64_t id, char out[12]);

#endif
