/* comm/inside.h - what the files of comm/ share: the struct behind comm.h, the tables of the two shared objects, waiting.
 *
 *   comm.c      the world, groups, launchers, which backend a call goes to, staging of device memory
 *   attach.c    NCCL: who may have it, waiting for what it does, its end
 *   self.c      the table of one rank
 *   host.c      the table of several ranks on host memory: point-to-point by MPI
 *   segment.c   the same inside one host: shared memory
 *   message.c   comm_post, comm_take
 *   watch.c     who is alive
 *   mpi.c       omnidrop-mpi.so: struct mpi_lib. Only calls that return at once, so nothing waits where nobody looks
 *   nccl.c      omnidrop-nccl.so: struct nccl_lib
 *
 * Groups are lists of world ranks and a number: MPI sees one communicator, the number is in its tags. So making a group,
 * using it and losing it are all made of nonblocking messages, which a death cannot block. */
#ifndef COMM_INSIDE_H
#define COMM_INSIDE_H

#include <pthread.h>
#include <stdatomic.h>

#include "comm/comm.h"

/* ---- the shared objects ------------------------------------------------------------------------------------ */

#define MPI_LIB_ABI 1
struct mpi_req { uint64_t v; };    /* an MPI_Request or MPI_Message, whatever this MPI makes it of */

/* Every function returns 0 or MPI's error number (text says what it is). All but open and close return at once and may be
 * called from any thread. Ranks are those of the world, counts bytes below 2^31. */
struct mpi_lib {
    uint32_t abi;
    int (*open)(int *rank, int *size, int *tag_max);     /* MPI_Init; from the thread that calls close */
    int (*close)(void);
    void (*version)(char *text, size_t cap);
    void (*text)(int rc, char *text, size_t cap);
    int (*isend)(const void *x, size_t n, int to, int tag, struct mpi_req *out);
    int (*irecv)(void *x, size_t n, int from, int tag, struct mpi_req *out);
    int (*test)(struct mpi_req *r, bool *done);
    int (*cancel)(struct mpi_req *r);
    int (*probe)(int tag, bool *found, int *from, size_t *n, struct mpi_req *message);   /* from anyone; takes it out */
    int (*recv_probed)(struct mpi_req *message, void *x, size_t n, struct mpi_req *out);
};
#define MPI_LIB_SYMBOL "omnidrop_mpi"

#define NCCL_LIB_ABI 2
#define NCCL_ID_BYTES 128
#define NCCL_IN_PROGRESS 7
/* 0 or an error number of NCCL or CUDA. `h` is one communicator; stream a cudaStream_t. Communicators are nonblocking:
 * a call is begun, and `state` says whether it is over (NCCL_IN_PROGRESS: not yet). */
struct nccl_lib {
    uint32_t abi;
    int (*version)(char *text, size_t cap);
    int (*id)(uint8_t id[NCCL_ID_BYTES]);
    int (*device)(int device, char bus[32]);             /* makes it current; its PCI bus id */
    int (*open)(const uint8_t id[NCCL_ID_BYTES], int rank, int size, void **h);
    int (*state)(void *h);
    int (*finish)(void *h);                              /* begun; over when all ranks have come and all work is done */
    void (*abort)(void *h);                              /* kernels that wait for peers end; the handle stays readable */
    void (*close)(void *h);                              /* after finish or abort */
    void (*text)(void *h, int rc, char *text, size_t cap);
    int (*all_reduce)(void *h, void *stream, float *x, size_t n);
    int (*all_gather)(void *h, void *stream, int rank, int size, const void *mine, void *all, const size_t *bytes);
    int (*gather)(void *h, void *stream, int rank, int size, int root, const void *mine, void *all, const size_t *bytes);
    int (*broadcast)(void *h, void *stream, int root, void *x, size_t bytes);
    int (*send)(void *h, void *stream, int to, const void *x, size_t bytes);
    int (*recv)(void *h, void *stream, int from, void *x, size_t bytes);
};
#define NCCL_LIB_SYMBOL "omnidrop_nccl"

/* ---- the struct -------------------------------------------------------------------------------------------- */

/* A backend on host memory. root UINT32_MAX: everybody gets all. Arguments were checked by comm.c. */
struct comm_ops {
    const char *name;
    status (*all_reduce)(struct comm *c, float *x, size_t n, struct err *e);
    status (*gather)(struct comm *c, const char *call, uint32_t root, const void *mine, void *all, const size_t *bytes,
                     struct err *e);
    status (*broadcast)(struct comm *c, uint32_t root, void *x, size_t bytes, struct err *e);
    status (*barrier)(struct comm *c, const char *call, struct err *e);
    status (*send)(struct comm *c, uint32_t to, const void *x, size_t bytes, struct err *e);
    status (*recv)(struct comm *c, uint32_t from, void *x, size_t bytes, struct err *e);
    status (*post)(struct comm *c, uint32_t to, uint32_t tag, const void *bytes, size_t n, struct err *e);
    /* One message that has come, if any, into c's inbox. */
    status (*pull)(struct comm *c, bool *came, struct err *e);
};
extern const struct comm_ops comm_self_ops, comm_host_ops;

enum broken { BROKEN_TENSORS = 1, BROKEN_MESSAGES = 2 };

struct watch;
struct segment;
struct starter;
struct letter { struct letter *next; struct comm_message m; };

/* The word that a sleeping comm_take waits on (a futex); on one host in memory that its ranks share. */
struct bell { _Atomic uint32_t rung, sleepers; uint8_t pad[56]; };

/* What all groups of this process share. */
struct world {
    struct comm_options o;
    uint32_t rank, size;
    struct comm_peer *peer;            /* [size] */
    uint32_t *host;                    /* [size] number of each rank's host */
    struct watch *watch;               /* NULL: one rank */
    const struct mpi_lib *mpi;         /* NULL: one rank */
    int tag_max;
    _Atomic uint32_t next_ctx;
    struct bell own_bell;              /* where there is no shared one */
    struct bell *bell;                 /* [n_local] by comm_peer.local */
    struct segment *bells;             /* holds them; NULL: own_bell */
    struct starter *starter;           /* comm.c: the thread that MPI was opened in */
};

struct comm {
    struct world *w;
    bool is_world;
    uint32_t rank, size, ctx;
    uint32_t *member;                  /* [size] world ranks */
    const struct comm_ops *ops;
    struct segment *seg;               /* all members are on one host; else NULL */
    bool all_local;
    uint8_t *accepted;                 /* [size] deaths that messages go on after (comm_go_on) */
    pthread_mutex_t *post_lock;        /* [size] one message at a time to each */
    pthread_mutex_t pull_lock, inbox_lock;
    struct letter *inbox, **inbox_end;
    _Atomic uint32_t broken;           /* enum broken: a call gave up in the middle: peers no longer agree on what comes next */
    struct err broken_why;
    void *stage;                       /* host copy of device tensors */
    size_t stage_cap;
    bool staged;
    const struct nccl_lib *nccl;
    void *nccl_h, *nccl_stream;
    struct stream *nccl_st;
    struct comm *next_nccl;            /* list of those that a death aborts */
    bool doomed;                       /* it is to be */
};

/* ---- waiting ----------------------------------------------------------------------------------------------- */

/* Spin a little, yield a while, then sleep in short naps: ranks may be more than processors. */
struct wait {
    const char *call;
    double start, idle_since;
    uint32_t turns;
};
void wait_begin(struct wait *w, const char *call);
/* Something moved: be quick again. */
void wait_moved(struct wait *w);
/* One turn. E_DEVICE: a member is gone, or the time is up; c is broken then. */
status wait_turn(struct comm *c, struct wait *w, struct err *e);
/* The same without the pause, for who sleeps otherwise. */
status wait_look(struct comm *c, struct wait *w, struct err *e);
/* One turn in the middle of a message: only the death of this peer, or of rank 0, ends it, since two who live on must agree
 * on where their messages begin. */
status wait_turn_message(struct comm *c, struct wait *w, uint32_t peer, struct err *e);

/* E_DEVICE where a member of c, or rank 0 of the world, is gone; messages: not for accepted deaths, but for `peer`. */
status comm_check(struct comm *c, const char *call, double waited, bool messages, uint32_t peer, struct err *e);
/* Remember that c's tensors, or messages, cannot be used; returns e->code. */
status comm_break(struct comm *c, enum broken what, const struct err *e);
/* The same for one that nobody has answered for `waited` seconds. */
status comm_late(struct comm *c, const char *call, enum broken what, double waited, struct err *e);
void nap(double seconds);
status comm_mpi_err(struct comm *c, const char *call, int rc, struct err *e);

/* ---- host.c ------------------------------------------------------------------------------------------------ */

enum { CHANNEL_COLLECTIVE, CHANNEL_TENSOR, CHANNEL_MESSAGE, CHANNEL_BODY, N_CHANNELS };
/* One stretch of bytes to or from a member. Both sides know its length; 0 moves nothing. */
struct part {
    bool send;
    uint32_t peer;
    void *mem;
    size_t bytes;
    /* transfer's own */
    size_t begun, over, len[2], at[2];
    uint8_t *slot[2];
    struct mpi_req req[2];
    bool busy[2];
};
/* All of them at once. Nothing of p->mem is touched after the return, whatever MPI still does to its own copies. */
status transfer(struct comm *c, const char *call, int channel, struct part *p, size_t n, struct err *e);

/* ---- segment.c --------------------------------------------------------------------------------------------- */

/* Memory that the n world ranks of `member` (all on this host) share; collective over c, which they are members of.
 * *out NULL: one of them could not (it is said to all). */
status segment_open(struct comm *c, const uint32_t *member, uint32_t n, uint32_t me, size_t bytes, struct segment **out,
                    struct err *e);
size_t segment_bytes(uint32_t n);                         /* for collectives of n ranks */
void *segment_memory(struct segment *s);
void segment_close(struct segment **s);
status segment_meet(struct comm *c, const char *call, struct err *e);
status segment_all_reduce(struct comm *c, float *x, size_t n, struct err *e);
status segment_gather(struct comm *c, const char *call, uint32_t root, const void *mine, void *all, const size_t *bytes,
                      struct err *e);
status segment_broadcast(struct comm *c, uint32_t root, void *x, size_t bytes, struct err *e);
/* x[i] := v[0][i] + v[1][i] + ... in this order; x may be one of them. */
void sum_in_order(float *x, const float *const *v, uint32_t n_v, size_t n);

/* ---- message.c --------------------------------------------------------------------------------------------- */

void inbox_put(struct comm *c, struct letter *l);
void inbox_clear(struct comm *c);
void bell_ring(struct world *w, uint32_t world_rank);     /* does nothing for ranks of other hosts */

/* ---- watch.c ----------------------------------------------------------------------------------------------- */

enum { WATCH_ADDRESSES = 16 };
struct watch_address { uint8_t family, bytes[16]; };      /* 4 or 6 */
/* How rank 0 is reached: sent to all by MPI. */
struct watch_place {
    uint16_t port, n;
    uint8_t token[32];
    struct watch_address a[WATCH_ADDRESSES];
};

/* Rank 0: listens. Others: *place is rank 0's. The watcher starts with watch_start, when every rank is connected. */
status watch_listen(const struct world *w, struct watch_place *place, struct watch **out, struct err *e);
status watch_accept(struct watch *x, double seconds, struct err *e);
status watch_connect(const struct world *w, const struct watch_place *place, bool same_host, double seconds,
                     struct watch **out, struct err *e);
status watch_start(struct watch *x, struct err *e);
void watch_stop(struct watch **x);                        /* says good-bye */
void watch_ends(struct watch *x, const char *why);        /* tells the others that this process ends now; any thread */
void watch_told(struct watch *x, void (*told)(void *self, uint32_t rank, const struct err *why), void *self);
uint32_t watch_count(const struct watch *x);              /* of the gone, for a quick look */
/* Is world rank r gone? Who left in good order counts after `grace` seconds, so that what it sent last may arrive. */
bool watch_gone(const struct watch *x, uint32_t r, double grace, struct err *why);
/* Of n world ranks the one that has been gone the longest: the others may have left because of it. UINT32_MAX: none. Those
 * with skip[i] (NULL: none) do not count, but rank[keep] does. */
uint32_t watch_first(const struct watch *x, const uint32_t *rank, const uint8_t *skip, uint32_t keep, uint32_t n, double grace);

/* ---- attach.c ---------------------------------------------------------------------------------------------- */

/* Until what a call of NCCL began is on the device's queue; rc: what the call returned. */
status comm_nccl_done(struct comm *c, const char *call, int rc, struct err *e);
void comm_nccl_deaths(struct world *w, uint32_t rank);    /* from the watcher, which it does not hold up */

#endif
