/* kernels/cuda/inside.h - what the host code of the CUDA backend shares: backend.c (a device, copies), memory.c (its memory), later.c
 * (what the host learns without waiting), linear.c (weights and products), table.c (the ops), steps.c (a step's ops, held back and run
 * as a graph). C11 over the CUDA runtime and cuBLASLt; kernels are called by kernels.h alone.
 *
 * One stream, `main`, has all work in order; `copy` brings weights and joins it by events. Host lists (rows, pages, tiles) of an op
 * go to the device in one copy, out of a ring of pinned memory that is used again when the device has passed it. Nothing waits for
 * the device but download, sync, time_read where it is told to, a ring that has come round and, before cuda_reserve, memory that
 * grows. */
#ifndef KERNELS_CUDA_INSIDE_H
#define KERNELS_CUDA_INSIDE_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "base/range.h"
#include "base/threads.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/room.h"
#include "kernels/device.h"

enum { CUDA_STAGES = 4, CUDA_COPIES = 2 };
#define CUDA_STAGE_BYTES ((size_t)8 << 20)
/* The room of products before GELU or SwiGLU: so many rows of the widest, in no more than so many bytes. */
#define CUDA_ROOM_BYTES ((size_t)256 << 20)
enum { CUDA_ROOM_ROWS = 4096 };

/* Pinned memory on its way to the device. */
struct cuda_stage { void *host; cudaEvent_t read; bool used; };

/* Two halves, each a piece of pinned memory and its place on the device. */
struct cuda_lists {
    char *host, *device;
    size_t half, at;              /* bytes of a half; used of the one that is filled */
    int now;
    cudaEvent_t passed[2];
    bool used[2];
};

/* Bytes on their way to the host, and where work began and ended. */
enum { CUDA_FETCHES = 4 };
struct cuda_later {
    char *pinned;                 /* CUDA_STAGE_BYTES */
    size_t at;
    struct { void *host; size_t at, bytes; } fetch[CUDA_FETCHES];
    uint32_t n, first_time, n_times;
    cudaEvent_t begin[OPS_TIMES], end[OPS_TIMES];
};

struct cuda_plan;                 /* linear.c */
struct cuda_steps;                /* steps.c */
struct cuda_lease;                /* memory.c */

struct cuda_stream {
    struct stream base;
    int device;
    char name[256];
    struct threads *threads;      /* for weights on their way */
    cudaStream_t main, copy[CUDA_COPIES];
    cudaEvent_t copied[CUDA_COPIES];
    cublasLtHandle_t lt;
    void *workspace;              /* of products */
    struct cuda_stage stage[CUDA_STAGES];
    uint32_t next_stage, next_copy;
    void *down;                   /* pinned, CUDA_STAGE_BYTES: from the device */
    struct cuda_lists lists;
    struct cuda_later later;
    void *room;                   /* device: what an op needs beside its arguments; lost with the next op */
    size_t room_bytes;
    struct range *work;           /* NULL: nothing is reserved yet, and memory is the runtime's */
    void *work_base;
    struct cuda_lease *lease, *within;
    cudaEvent_t behind;           /* main, for the copy streams */
    size_t widest;                /* bytes of the widest row of a product that a weight gives */
    bool poison;
    struct cuda_plan *plan;
    size_t n_plans, plan_cap;
    bool one_plan;
    struct cuda_steps *steps;     /* NULL: every op is a launch of its own */
    device_look *look;            /* of who waits; NULL: nobody is asked */
    void *look_self;
};

static inline struct cuda_stream *cuda_stream_of(const struct stream *st) { return (struct cuda_stream *)(uintptr_t)st; }

/* Every op begins with it: the device of this thread, and what a step holds back is run before this. */
status cuda_enter(struct cuda_stream *s, struct err *e);
/* Or with this, where all that it launches goes through CUDA_RUN: then it may be held back itself. */
status cuda_join(struct cuda_stream *s, struct err *e);
/* OK, or E_DEVICE with what was done and CUDA's own words. */
status cuda_check(cudaError_t rc, const char *what, struct err *e);

/* memory.c */
status cuda_alloc(struct stream *st, size_t bytes, void **out, struct err *e);
void cuda_release(struct stream *st, void *p);
status cuda_memory(struct stream *st, uint64_t *free_bytes, uint64_t *total, struct err *e);
size_t cuda_reserve_bytes(const struct stream *st, const struct reserve_args *a);
status cuda_reserve(struct stream *st, const struct reserve_args *a, struct err *e);
status cuda_within(struct stream *st, void *block, struct err *e);
/* What the copy streams are given from now on comes behind all that main has been given, where p is in the work memory. */
status cuda_behind_main(struct cuda_stream *s, const void *p, struct err *e);
/* At least this many bytes of a half of the lists, 0: the least that there is. E_NOMEM: reserved, and not so many. */
status cuda_lists_room(struct cuda_stream *s, size_t half, struct err *e);
void cuda_memory_close(struct cuda_stream *s);

/* backend.c */
/* Until `event`, or with NULL all that main was given, is over. */
status cuda_wait(struct cuda_stream *s, cudaEvent_t event, const char *what, struct err *e);
status cuda_upload(struct stream *st, void *dst, const void *host, size_t bytes, struct err *e);
status cuda_download(struct stream *st, void *host, const void *src, size_t bytes, struct err *e);
status cuda_sync(struct stream *st, struct err *e);
void cuda_describe(const struct stream *st, char *text, size_t cap);
void cuda_close(struct stream **st);
status cuda_open(const struct stream_options *o, struct stream **out, struct err *e);

/* The next stage, free to be written: what it brought before has been read. */
status cuda_stage_next(struct cuda_stream *s, struct cuda_stage **out, struct err *e);
/* bytes of it to dst on a stream, which then marks it. */
status cuda_stage_send(struct cuda_stage *g, void *dst, size_t bytes, cudaStream_t on, struct err *e);

/* At least this many bytes of s->room. E_NOMEM. */
status cuda_room(struct cuda_stream *s, size_t bytes, struct err *e);
/* Places in s->room one behind the other, each at a multiple of 256; NULL as base counts. */
void *cuda_take(char **at, size_t bytes);

/* A piece of the lists that one op fills and sends. held: with those of the whole step. */
struct cuda_piece { char *host, *device; size_t at, bytes; bool held; };
status cuda_piece_begin(struct cuda_stream *s, size_t bytes, struct cuda_piece *p, struct err *e);
/* n bytes at *host to be written; returns where they will be on the device. NULL with n == 0. */
void *cuda_piece_room(struct cuda_piece *p, size_t n, void **host);
void *cuda_piece_put(struct cuda_piece *p, const void *from, size_t n);
status cuda_piece_send(struct cuda_stream *s, struct cuda_piece *p, struct err *e);
/* What n lists of `bytes` in all need. */
static inline size_t cuda_piece_bytes(size_t bytes, size_t n) { return bytes + 16 * n; }

/* later.c */
status cuda_later_open(struct cuda_stream *s, struct err *e);
void cuda_later_close(struct cuda_stream *s);
/* After the host has waited for `main`: what was fetched is handed out, or where the wait failed forgotten. */
void cuda_deliver(struct cuda_stream *s, bool came);
status cuda_fetch(struct stream *st, void *host, const void *src, size_t bytes, struct err *e);
status cuda_time_begin(struct stream *st, struct err *e);
status cuda_time_end(struct stream *st, struct err *e);
status cuda_time_read(struct stream *st, bool wait, double *seconds, struct err *e);

/* linear.c */
struct weight {
    uint32_t n, k, rows;          /* rows: n, or of a gated weight 2 x (n / 2 rounded up to 8): as it lies */
    enum weight_form form;
    enum dtype compute, gated;    /* gated: the type of the product before SwiGLU */
    size_t bytes;
    void *data;                   /* [rows, cuda_columns(k)] */
    float *bias;                  /* [rows], of a gated weight of bf16 in bf16; NULL: none */
};
/* Values of an operand's and a weight's row as they lie: k and zeros to a multiple of 8, so that all rows begin at multiples of 16
 * bytes. */
static inline uint32_t cuda_columns(uint32_t k) { return (k + 7) / 8 * 8; }
status cuda_weight_create(struct stream *st, const struct weight_args *a, struct weight **out, struct err *e);
void cuda_weight_destroy(struct stream *st, struct weight **w);
struct weight_shape cuda_weight_shape(const struct weight *w);
status cuda_linear(struct stream *st, const struct linear_args *a, struct err *e);
status cuda_products_open(struct cuda_stream *s, struct err *e);
void cuda_products_close(struct cuda_stream *s);

/* steps.c, which see. Made by cuda_steps_open unless OMNIDROP_CUDA_GRAPHS=0. */
status cuda_steps_open(struct cuda_stream *s, struct err *e);
void cuda_steps_close(struct cuda_stream *s);
/* Room for the lists of a whole step: at least so many bytes, and never more once work memory is reserved. */
status cuda_steps_reserve(struct cuda_stream *s, size_t bytes, struct err *e);
void cuda_step_begin(struct stream *st, const void *owner, uint32_t rows);
status cuda_step_end(struct stream *st, bool drop, struct err *e);
struct device_steps cuda_steps_read(struct stream *st);
/* Is one being held back? */
bool cuda_step_open(const struct cuda_stream *s);
/* Runs what is held back, each launch by itself; so go those that follow until the step's end. */
status cuda_step_flush(struct cuda_stream *s, struct err *e);
/* A piece of the step's lists; false: none is open, or it has no room for these. */
bool cuda_step_piece(struct cuda_stream *s, size_t bytes, struct cuda_piece *p);
void cuda_step_sent(struct cuda_stream *s, const struct cuda_piece *p);
/* How many places a list of `need` gets, at most `most` (unless need is more): in a step more than it needs now, so that the steps
 * that follow launch the same. */
uint32_t cuda_step_room(struct cuda_stream *s, uint32_t need, uint32_t most);

/* One launch, with all that it is given by value: now, or with the step. Arguments are compared as bytes. */
typedef status (*cuda_launcher)(struct cuda_stream *s, const void *args, struct err *e);
status cuda_run(struct cuda_stream *s, cuda_launcher launcher, const void *args, size_t bytes, struct err *e);
#define CUDA_RUN(s, launcher, a, e)                                      \
    ({                                                                   \
        __typeof__(*(a)) run_ = *(a);                                    \
        __builtin_clear_padding(&run_);                                  \
        cuda_run(s, launcher, &run_, sizeof run_, e);                    \
    })
/* run_x: cuda_x of kernels.h as such a launcher. */
#define CUDA_LAUNCHER(x)                                                                  \
    static status run_##x(struct cuda_stream *s, const void *args, struct err *e)         \
    {                                                                                     \
        return cuda_##x(s->main, args, e);                                                \
    }

/* table.c */
extern const struct ops cuda_ops;

#endif
