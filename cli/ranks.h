/* cli/ranks.h - several ranks: `mpirun -np N omnidrop serve|batch|transcribe --tp T --dp D`, N = T x D.
 *
 *   ranks_open                   the world, the groups, one table that says who is there; alone at no cost
 *     RANKS_ALONE                no launcher, or one process: as without all this
 *     RANKS_FRONT                rank 0: HTTP, files, the queue; leads group 0
 *     RANKS_LEADER               rank g x T: leads group g, runs what rank 0 sends (api/remote.h)
 *     RANKS_WORKER               the others: engine_work
 *   ranks_watch                  rank 0: who dies from here on is told to the groups, or ends the program
 *   ranks_leave                  rank 0: before it lets go of what it runs
 *   ranks_close                  leaves when all others do, or, where one is gone, without them
 *
 * A rank that loses rank 0 or one of its own group ends by itself, non-zero. docs/architecture.md, Ranks. */
#ifndef CLI_RANKS_H
#define CLI_RANKS_H

#include "api/groups.h"
#include "cli/cli.h"

struct api_audio;
struct comm;
struct remote;
struct ranks;

extern const struct cli_option cli_rank_options[];     /* --tp, --dp */

enum ranks_role { RANKS_ALONE, RANKS_FRONT, RANKS_LEADER, RANKS_WORKER };

/* E_ARG: N is not T x D, and what to start instead. E_MODEL: no MPI library, ranks of different builds, a rank without its
 * device. Only rank 0 comes back with an error; the others end with it. Prints the table on rank 0's stderr. */
status ranks_open(const struct cli *c, struct ranks **out, struct err *e);
enum ranks_role ranks_role(const struct ranks *r);
uint32_t ranks_count(const struct ranks *r);           /* N; 1 alone */
uint32_t ranks_groups(const struct ranks *r);          /* D; 1 alone */
uint32_t ranks_group(const struct ranks *r);           /* of this rank */
/* The ranks of this group, for the engine: one or more. NULL: no launcher. */
struct comm *ranks_tensor(const struct ranks *r);
/* Between the leaders; of a leader or rank 0 with D > 1, else NULL. */
const struct remote_link *ranks_link(const struct ranks *r);
/* Rank 0, once: g (may be NULL) hears of groups that are gone. When a rank of group 0 is, fatal is called once, on a thread
 * of its own, with the reason: it must end the program (ranks_exit) within seconds. */
void ranks_watch(struct ranks *r, struct groups *g, void (*fatal)(void *self, const struct err *why), void *self);
/* Rank 0, before it destroys what ranks_watch was given: deaths are of no account from here on. Does not return where `fatal` was
 * called: the program ends with that. A leader that rank 0 has told to end: the same, so that an end beside a dead rank is a good
 * one. Workers, alone, NULL: nothing. */
void ranks_leave(struct ranks *r);
/* What rank 0 says to all before it goes on: `code` other than CLI_OK ends them with it; below 0: with CLI_OK.
 * Every rank calls it, as often as the others; returns the code of rank 0. */
int ranks_agree(struct ranks *r, int code);
_Noreturn void ranks_exit(struct ranks *r, int code);
/* A worker's whole life, from rank 0's word (ranks_agree) on: the exit code. */
int ranks_work(struct ranks *r, const struct cli *c);
/* The leader of another group, until rank 0 says that it is over: the exit code. `open` loads; then *api and *audio run what
 * rank 0 sends. *remote is the caller's to stop and destroy. */
struct ranks_lead {
    status (*open)(void *self, struct err *e);
    void *self;
    struct api *const *api;
    struct api_audio *const *audio;    /* NULL: no sound */
    struct remote **remote;
};
int ranks_lead(struct ranks *r, const struct ranks_lead *l);
/* When all have come here, or a rank is gone. Returns code. */
int ranks_close(struct ranks **r, int code);

#endif
