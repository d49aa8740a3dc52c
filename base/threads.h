/* base/threads.h - the worker threads of one device: fork, join, nothing else.
 * Workers are pinned, spin for about 200 us after a job and then sleep on a futex (docs/cpu.md has the reasons).
 * The caller is thread 0. No nesting: a job must not start a job. */
#ifndef BASE_THREADS_H
#define BASE_THREADS_H

#include <stdint.h>

#include "base/err.h"

#define THREADS_MAX 256

struct threads;

typedef void (*threads_job)(void *arg, int thread, int n_threads);

/* n == 0: as many as the process may run on (affinity mask and cgroup quota), at most THREADS_MAX.
 * *out owns the workers. E_ARG: n > THREADS_MAX. E_NOMEM: a thread cannot be started. */
status threads_create(int n, struct threads **out, struct err *e);
void threads_destroy(struct threads **t);

int threads_count(const struct threads *t);

/* Run job(arg, i, n) on every thread, return when all are done. From one calling thread at a time. */
void threads_run(struct threads *t, threads_job job, void *arg);

/* Run job on the caller and on every worker that comes before the caller's own call ends; returns when all that came
 * are done. For jobs that take their pieces from a shared counter: a worker whose CPU is busy with another program is
 * not waited for. */
void threads_share(struct threads *t, threads_job job, void *arg);

#endif
