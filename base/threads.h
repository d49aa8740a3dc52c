/* base/threads.h - the worker threads of one device: fork, join, nothing else.
 * Workers are pinned, spin for about 200 us after a job and then sleep on a futex (docs/cpu.md has the reasons).
 * The caller is thread 0. No nesting: a job must not start a job. */
#ifndef BASE_THREADS_H
#define BASE_THREADS_H

#include <stdint.h>

#include "base/err.h"

#define THREADS_MAX 256

struct threads;

/* Sets of CPUs, by their numbers. */
#define THREADS_CPUS 1024
struct threads_cpus { uint64_t set[THREADS_CPUS / 64]; };

/* Those that this process may run on (its affinity mask, which launchers and cgroups set). */
struct threads_cpus threads_allowed(void);
uint32_t threads_cpus_count(const struct threads_cpus *c);
/* The part of the me-th of n processes of one host, of which each may run on allowed[i]: every CPU goes to one of those that may
 * have it, neighbours together; CPUs that the same processes may have are dealt out evenly. Maybe none. */
struct threads_cpus threads_part(const struct threads_cpus *allowed, uint32_t n, uint32_t me);
/* From now on threads_create counts and pins by `own`, the part of this process, which shares its host (and a cgroup's quota)
 * with n in all; NULL: by what the process may run on. Before the threads that it is for; not from two threads at once. */
void threads_own(const struct threads_cpus *own, uint32_t n);

typedef void (*threads_job)(void *arg, int thread, int n_threads);

/* n == 0: as many as the process may run on, or as are its own (affinity mask, threads_own, cgroup quota), at least 1 and at most
 * THREADS_MAX. Workers are pinned where there is a CPU for each thread, else the kernel balances.
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
