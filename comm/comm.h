/* comm/comm.h - ranks: who they are, sums and copies of tensors between them, messages, and noticing that one is gone.
 *
 *   comm_world_open      the processes that a launcher (mpirun, srun, the MPI operator) started; one alone without a launcher
 *   comm_split           a group of them: tensor-parallel ranks, or all leaders
 *     collectives        every rank of the group calls the same ones in the same order
 *     messages           bytes from one rank to another, by tag; any thread
 *   comm_dead            which rank is gone: killed, stopped, cut off
 *
 * Backends are tables (struct comm_ops): `self` (one rank; everything is a copy), `mpi` (host memory; also host-staged for
 * devices whose memory MPI does not take), `nccl` (device memory; several devices). mpi and nccl are shared objects beside
 * the program (omnidrop-mpi.so, omnidrop-nccl.so), opened when they are needed, so that one process on one machine needs
 * neither. MPI starts processes, exchanges ids and carries messages for all of them.
 *
 * Sums of host memory are taken in rank order, element by element in f32: every rank gets the same bits, run after run.
 * Pruning needs that (docs/architecture.md, Ranks). NCCL gives every rank the same bits too, in an order of its own, which of
 * more than two ranks may differ with the place of an element in the tensor.
 *
 * Nothing hangs. A call returns E_DEVICE, with a text that names call, rank, host and how long it waited, when a member
 * of its group is dead or when options.timeout_s has passed. Death is seen by a watcher of its own (one thread, a TCP
 * connection between each rank and rank 0, a beat every second): a killed process at once, a stopped or cut-off one after
 * silence_s. After a death only the groups that the dead rank was in are unusable; the others go on. Rank 0 counts as a
 * member of every group: who has lost it hears of no other death, so all its calls fail. A rank that has left (comm_close,
 * comm_exit) is as good as dead to who waits for it. MPI is not finalized then: comm_exit leaves without waiting.
 *
 * What a launcher makes of a death is its own matter. mpirun of Open MPI 4.1 kills the whole job when one process dies by a
 * signal or ends non-zero (never because one is stopped), which is right for one group. For groups to outlive each other it
 * must be given `--enable-recovery` (or `--continuous`); mpirun then ends with status 0 whatever became of the ranks, and
 * when a whole *host* is lost it ends the job all the same. srun: `--kill-on-bad-exit=0 --no-kill`.
 *
 * Environment: OMNIDROP_LIB, the folder of the shared objects, first of all; OMNIDROP_COMM=wire, no shared memory for
 * tensors (to compare, and where /dev/shm is too small: it is left out by itself when it cannot be had);
 * OMNIDROP_COMM=staged, no NCCL.
 * Source: docs/architecture.md (Collectives, Ranks, Failure rules). */
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct comm;
struct stream;                     /* kernels/ops.h: where a device's memory is; NULL: host memory */

struct comm_options {
    double timeout_s;              /* of one call with living peers; 0: 300 */
    double beat_s, silence_s;      /* 0: 1 and 6 */
    const char *build;             /* what must be equal on all ranks: refused otherwise, by name of the rank */
};

struct comm_peer {
    char host[64];
    uint32_t world;                /* its rank in the world */
    uint32_t local, n_local;       /* its place among the ranks of its host, and how many there are */
    int64_t pid;
    char build[64];
};

/* Was this process started as one of several? (environment of Open MPI, PMIx, Slurm, MPICH; needs no library) */
bool comm_launched(uint32_t *size);

/* The world. The ranks of a host share out the CPUs that they may run on (threads_own). E_MODEL: there is a launcher but the
 * MPI backend is missing or was made for another MPI (the text says what to install); ranks of different builds. *out is owned
 * by comm_close. Call once, from the main thread. */
status comm_world_open(const struct comm_options *o, struct comm **out, struct err *e);
/* One rank: no launcher, no library. */
status comm_self_open(struct comm **out, struct err *e);
/* Ranks of c with the same color, ordered by key, then rank. Collective over c. UINT32_MAX: in no group, *out NULL. */
status comm_split(struct comm *c, uint32_t color, uint32_t key, struct comm **out, struct err *e);
/* The world is closed last; finalizes MPI where all live, else leaves that out. */
void comm_close(struct comm **c);
/* Ends the process now with `code`, MPI or not: within 1 s, also where another thread keeps a file locked. */
_Noreturn void comm_exit(struct comm *world, int code);
/* It ends after so many seconds at the latest, whatever happens until then. */
void comm_exit_within(unsigned seconds, int code);

uint32_t comm_rank(const struct comm *c);
uint32_t comm_size(const struct comm *c);
const struct comm_peer *comm_peer(const struct comm *c, uint32_t rank);
const char *comm_name(const struct comm *c);   /* "self", "mpi", "nccl", "mpi, host-staged" */
/* MPI's, NCCL's and the driver's versions, as they say themselves. */
void comm_versions(const struct comm *c, char *text, size_t cap);

/* ---- the dead --------------------------------------------------------------------------------------------- */

/* Is rank r (of c) gone? why: one line, "rank 3 (pid 71 on host b): no sign of life for 6.0 s". May be called from any
 * thread at any time. */
bool comm_dead(const struct comm *c, uint32_t r, struct err *why);
/* Any of them (rank 0 of the world, if it is no member, is not looked at)? *r is the one that was gone first: others may have
 * left because of it. */
bool comm_any_dead(const struct comm *c, uint32_t *r, struct err *why);
/* Told once for each death (not of those who left), from the watcher's thread, or from this call for those that were; set
 * once, on the world. */
void comm_on_death(struct comm *world, void (*told)(void *self, uint32_t rank, const struct err *why), void *self);

/* ---- collectives ------------------------------------------------------------------------------------------- */
/* st: whose memory x is in; NULL: host memory. With a device stream the call is ordered behind what st was given before. */

/* x [n] := sum over ranks in rank order, the same bits on every rank. */
status comm_all_reduce(struct comm *c, struct stream *st, float *x, size_t n, struct err *e);
/* all := every rank's bytes end to end in rank order; bytes [size] of each. mine may lie in its place in all. */
status comm_all_gather(struct comm *c, struct stream *st, const void *mine, void *all, const size_t *bytes, struct err *e);
/* The same, to `root` alone (all is not read elsewhere). */
status comm_gather(struct comm *c, struct stream *st, uint32_t root, const void *mine, void *all, const size_t *bytes,
                   struct err *e);
status comm_broadcast(struct comm *c, struct stream *st, uint32_t root, void *x, size_t bytes, struct err *e);
status comm_barrier(struct comm *c, struct err *e);
/* Tensors from one to another; matched in order. */
status comm_send(struct comm *c, struct stream *st, uint32_t to, const void *x, size_t bytes, struct err *e);
status comm_recv(struct comm *c, struct stream *st, uint32_t from, void *x, size_t bytes, struct err *e);
/* From now on the tensors of this device's stream go through NCCL, without the host; native: its cudaStream_t. Collective
 * over c. E_MODEL, on every rank alike: a rank has no omnidrop-nccl.so, or two of them share a device; c stays as it was,
 * which is host-staged. One rank: its collectives go through NCCL too, to try it. A call returns when its work is on the stream;
 * who then waits for the stream must ask comm_look (kernels/device.h, device_guard), or a death or a rank that never comes would
 * keep it waiting. */
status comm_attach(struct comm *c, struct stream *st, void *native, int device, struct err *e);
/* E_DEVICE: a member is dead, NCCL has failed, or `waited` is over options.timeout_s. NCCL's work on the stream has been aborted
 * then, so that the stream goes on, with tensors that are worth nothing. self: the group. */
status comm_look(void *self, double waited, struct err *e);
bool comm_attached(const struct comm *c);
/* Host-staged again. Collective over c; what the stream was given is done before. comm_close does it too. */
void comm_detach(struct comm *c);

/* ---- messages ---------------------------------------------------------------------------------------------- */

/* Host bytes of any length to one rank, by tag (0..1023); returns when they are copied or sent. Any thread. What is longer
 * than 4000 bytes may wait until the other rank calls comm_take: any thread of it, for any tag. Messages of one thread to
 * one rank arrive in order. */
#define COMM_TAGS 1024
status comm_post(struct comm *c, uint32_t to, uint32_t tag, const void *bytes, size_t n, struct err *e);
/* The same to every other rank of the group, by rank 0: a step plan. The living get it even when another is dead. */
status comm_post_all(struct comm *c, uint32_t tag, const void *bytes, size_t n, struct err *e);
struct comm_message { uint32_t from, tag; uint8_t *bytes; size_t n; };     /* bytes owned by who takes it: free */
/* The next message to this rank: from one rank (or COMM_ANY), of one tag (or COMM_ANY). Waits wait_s at most (INFINITY:
 * until one comes or a member is dead); *got false: none came. What came before a death is still given out. An idle wait
 * costs no processor time to speak of, and the first message after one is seen within a millisecond. */
#define COMM_ANY UINT32_MAX
status comm_take(struct comm *c, uint32_t from, uint32_t tag, double wait_s, struct comm_message *out, bool *got,
                 struct err *e);
/* This rank knows of the deaths so far: messages with the living of c go on (comm_take from COMM_ANY waits again,
 * comm_post_all leaves the dead out). The next death is an error again; tensors of c stay refused. */
void comm_go_on(struct comm *c);

#endif
