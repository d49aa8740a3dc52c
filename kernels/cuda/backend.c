/* kernels/cuda/backend.c - a device: opening it, copies to it and from it. See inside.h. */
#include "kernels/cuda/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "kernels/cuda/inside.h"

status cuda_check(cudaError_t rc, const char *what, struct err *e)
{
    if (rc == cudaSuccess) return OK;
    return err_set(e, E_DEVICE, "%s: CUDA says %s (%d)", what, cudaGetErrorString(rc), (int)rc);
}

/* A thread's device is the thread's own affair, and a stream is opened on one and used on another. */
status cuda_join(struct cuda_stream *s, struct err *e)
{
    static _Thread_local int current = -1;
    if (current == s->device) return OK;
    TRY(cuda_check(cudaSetDevice(s->device), "choosing the device", e));
    current = s->device;
    return OK;
}

status cuda_enter(struct cuda_stream *s, struct err *e)
{
    TRY(cuda_join(s, e));
    return cuda_step_flush(s, e);
}

/* Asks for the work in place of waiting for it, since nothing ends a wait of the runtime's own. Without pause at first, as it does. At
 * the end once more: what ended may have been broken off. */
static status wait_looking(struct cuda_stream *s, cudaEvent_t event, const char *what, struct err *e)
{
    const double start = clock_s(), often = 1e-3, patient = 20e-3;
    for (double next = often;;) {
        const cudaError_t rc = event ? cudaEventQuery(event) : cudaStreamQuery(s->main);
        const double waited = clock_s() - start;
        if (rc == cudaSuccess) return s->look(s->look_self, 0, e);
        if (rc != cudaErrorNotReady) return cuda_check(rc, what, e);
        cudaGetLastError();        /* not ready is no error of the next call */
        if (waited < next) continue;
        TRY(s->look(s->look_self, waited, e));
        if (waited > patient) nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
        next = waited + often;
    }
}

status cuda_wait(struct cuda_stream *s, cudaEvent_t event, const char *what, struct err *e)
{
    if (s->look != NULL) return wait_looking(s, event, what, e);
    return cuda_check(event ? cudaEventSynchronize(event) : cudaStreamSynchronize(s->main), what, e);
}

static void native(struct stream *st, void **cuda_stream, int *device)
{
    *cuda_stream = cuda_stream_of(st)->main;
    *device = cuda_stream_of(st)->device;
}

static void guard(struct stream *st, device_look *look, void *self)
{
    cuda_stream_of(st)->look = look;
    cuda_stream_of(st)->look_self = self;
}

/* ---- copies ---------------------------------------------------------------------------------------------- */

status cuda_stage_next(struct cuda_stream *s, struct cuda_stage **out, struct err *e)
{
    struct cuda_stage *g = &s->stage[s->next_stage++ % CUDA_STAGES];
    if (g->used) TRY(cuda_wait(s, g->read, "waiting for a copy to the device", e));
    g->used = false;
    *out = g;
    return OK;
}

status cuda_stage_send(struct cuda_stage *g, void *dst, size_t bytes, cudaStream_t on, struct err *e)
{
    TRY(cuda_check(cudaMemcpyAsync(dst, g->host, bytes, cudaMemcpyHostToDevice, on), "copying to the device", e));
    g->used = true;
    return cuda_check(cudaEventRecord(g->read, on), "marking a copy", e);
}

/* A step's few floats go with its lists, and from there to their place. */
#define HELD_BYTES ((size_t)256 << 10)
CUDA_LAUNCHER(move)
static status upload_held(struct cuda_stream *s, void *dst, const struct cuda_piece *p, size_t n, struct err *e)
{
    cuda_step_sent(s, p);
    return CUDA_RUN(s, run_move, (&(struct cuda_move_args){ .x = (const float *)(const void *)p->device, .n = 1, .d = (uint32_t)n,
                                                            .y = dst }), e);
}

status cuda_upload(struct stream *st, void *dst, const void *host, size_t bytes, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    if (bytes > 0 && bytes <= HELD_BYTES && bytes % sizeof(float) == 0 && cuda_step_piece(s, bytes, &p)) {
        TRY(cuda_join(s, e));
        memcpy(p.host, host, p.at = bytes);
        return upload_held(s, dst, &p, bytes / sizeof(float), e);
    }
    TRY(cuda_enter(s, e));
    for (size_t at = 0; at < bytes; at += CUDA_STAGE_BYTES) {
        const size_t n = bytes - at < CUDA_STAGE_BYTES ? bytes - at : CUDA_STAGE_BYTES;
        struct cuda_stage *g;
        TRY(cuda_stage_next(s, &g, e));
        memcpy(g->host, (const char *)host + at, n);
        TRY(cuda_stage_send(g, (char *)dst + at, n, s->main, e));
    }
    return OK;
}

static status wait_for_main(struct cuda_stream *s, struct err *e)
{
    const status st = cuda_wait(s, NULL, "running what was asked for", e);
    cuda_deliver(s, st == OK);
    return st;
}

status cuda_download(struct stream *st, void *host, const void *src, size_t bytes, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    TRY(cuda_enter(s, e));
    for (size_t at = 0; at < bytes; at += CUDA_STAGE_BYTES) {
        const size_t n = bytes - at < CUDA_STAGE_BYTES ? bytes - at : CUDA_STAGE_BYTES;
        TRY(cuda_check(cudaMemcpyAsync(s->down, (const char *)src + at, n, cudaMemcpyDeviceToHost, s->main), "copying from the device", e));
        TRY(wait_for_main(s, e));
        memcpy((char *)host + at, s->down, n);
    }
    return OK;
}

status cuda_sync(struct stream *st, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    TRY(cuda_enter(s, e));
    return wait_for_main(s, e);
}

/* ---- lists ----------------------------------------------------------------------------------------------- */

status cuda_piece_begin(struct cuda_stream *s, size_t bytes, struct cuda_piece *p, struct err *e)
{
    struct cuda_lists *l = &s->lists;
    if (cuda_step_piece(s, bytes, p)) return OK;
    TRY(cuda_step_flush(s, e));
    if (bytes > l->half) TRY(cuda_lists_room(s, 2 * bytes, e));
    if (l->at + bytes > l->half) {                                /* on to the other half, once it has been passed */
        TRY(cuda_check(cudaEventRecord(l->passed[l->now], s->main), "marking lists", e));
        l->used[l->now] = true;
        l->now ^= 1;
        l->at = 0;
        if (l->used[l->now]) TRY(cuda_wait(s, l->passed[l->now], "waiting for lists to be read", e));
    }
    const size_t at = l->now * l->half + l->at;
    *p = (struct cuda_piece){ .host = l->host + at, .device = l->device + at, .bytes = bytes };
    return OK;
}

void *cuda_piece_room(struct cuda_piece *p, size_t n, void **host)
{
    const size_t at = p->at;
    *host = p->host + at;
    p->at += (n + 15) / 16 * 16;
    return n > 0 ? p->device + at : NULL;
}

void *cuda_piece_put(struct cuda_piece *p, const void *from, size_t n)
{
    void *host, *device = cuda_piece_room(p, from != NULL ? n : 0, &host);
    if (device != NULL) memcpy(host, from, n);
    return device;
}

status cuda_piece_send(struct cuda_stream *s, struct cuda_piece *p, struct err *e)
{
    if (p->at > p->bytes) return err_set(e, E_INTERNAL, "lists of %zu bytes in a piece of %zu", p->at, p->bytes);
    if (p->at == 0) return OK;
    if (p->held) {
        if (!cuda_step_open(s)) return err_set(e, E_INTERNAL, "lists of a step that is over");
        cuda_step_sent(s, p);
        return OK;
    }
    s->lists.at += (p->at + 255) / 256 * 256;
    return cuda_check(cudaMemcpyAsync(p->device, p->host, p->at, cudaMemcpyHostToDevice, s->main), "copying lists", e);
}

/* ---- a device -------------------------------------------------------------------------------------------- */

void cuda_describe(const struct stream *st, char *text, size_t cap) { snprintf(text, cap, "%s", cuda_stream_of(st)->name); }

void cuda_close(struct stream **st)
{
    if (*st == NULL) return;
    struct cuda_stream *s = cuda_stream_of(*st);
    if (s->main != NULL) cuda_sync(*st, NULL);
    cuda_steps_close(s);
    cuda_products_close(s);
    cuda_later_close(s);
    cuda_memory_close(s);
    if (s->down) cudaFreeHost(s->down);
    for (int i = 0; i < CUDA_STAGES; i++) {
        if (s->stage[i].read) cudaEventDestroy(s->stage[i].read);
        if (s->stage[i].host) cudaFreeHost(s->stage[i].host);
    }
    for (int i = 0; i < 2; i++)
        if (s->lists.passed[i]) cudaEventDestroy(s->lists.passed[i]);
    if (s->behind) cudaEventDestroy(s->behind);
    for (int i = 0; i < CUDA_COPIES; i++) {
        if (s->copied[i]) cudaEventDestroy(s->copied[i]);
        if (s->copy[i]) cudaStreamDestroy(s->copy[i]);
    }
    if (s->main) cudaStreamDestroy(s->main);
    threads_destroy(&s->threads);
    free(s);
    *st = NULL;
}

/* Ranks of one host take a device each, in order, as long as there are any. */
static int device_of_rank(int n)
{
    static const char *const names[] = { "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *v = getenv(names[i]);
        if (v != NULL && *v >= '0' && *v <= '9') return atoi(v) % n;
    }
    return 0;
}

static status find_device(struct cuda_stream *s, struct err *e)
{
    int n = 0, driver = 0;
    const cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess) return err_set(e, E_MODEL, "no GPU can be used: CUDA says %s (%d)", cudaGetErrorString(rc), (int)rc);
    if (n < 1) return err_set(e, E_MODEL, "this machine has no GPU that CUDA can use");
    struct cudaDeviceProp p;
    s->device = device_of_rank(n);
    TRY(cuda_enter(s, e));
    TRY(cuda_check(cudaGetDeviceProperties(&p, s->device), "asking what the device is", e));
    if (p.major < 8)
        return err_set(e, E_MODEL, "%s has compute capability %d.%d: the kernels are built for 8.0 (A100) and later", p.name, p.major,
                       p.minor);
    cudaDriverGetVersion(&driver);
    snprintf(s->name, sizeof s->name, "%.120s, sm_%d%d, %d SMs, %.1f GB, CUDA driver %d.%d", p.name, p.major, p.minor,
             p.multiProcessorCount,
             (double)p.totalGlobalMem / 1e9, driver / 1000, driver % 1000 / 10);
    return OK;
}

static status make_streams(struct cuda_stream *s, struct err *e)
{
    TRY(cuda_check(cudaStreamCreateWithFlags(&s->main, cudaStreamNonBlocking), "making a stream", e));
    for (int i = 0; i < CUDA_COPIES; i++) {
        TRY(cuda_check(cudaStreamCreateWithFlags(&s->copy[i], cudaStreamNonBlocking), "making a stream", e));
        TRY(cuda_check(cudaEventCreateWithFlags(&s->copied[i], cudaEventDisableTiming), "making an event", e));
    }
    for (int i = 0; i < 2; i++) TRY(cuda_check(cudaEventCreateWithFlags(&s->lists.passed[i], cudaEventDisableTiming), "making an event",
                                               e));
    for (int i = 0; i < CUDA_STAGES; i++) {
        TRY(cuda_check(cudaEventCreateWithFlags(&s->stage[i].read, cudaEventDisableTiming), "making an event", e));
        TRY(cuda_check(cudaMallocHost(&s->stage[i].host, CUDA_STAGE_BYTES), "asking for pinned memory", e));
    }
    TRY(cuda_check(cudaMallocHost(&s->down, CUDA_STAGE_BYTES), "asking for pinned memory", e));
    TRY(cuda_check(cudaEventCreateWithFlags(&s->behind, cudaEventDisableTiming), "making an event", e));
    return cuda_lists_room(s, 0, e);
}

status cuda_open(const struct stream_options *o, struct stream **out, struct err *e)
{
    struct cuda_stream *s = mem_must(1, sizeof *s);
    const char *poison = getenv("OMNIDROP_CUDA_POISON");
    *s = (struct cuda_stream){ .base = { &cuda_ops }, .poison = poison != NULL && strcmp(poison, "1") == 0 };
    struct stream *st = &s->base;
    status code = find_device(s, e);
    if (code == OK) code = threads_create(o->n_threads, &s->threads, e);
    if (code == OK) code = make_streams(s, e);
    if (code == OK) code = cuda_later_open(s, e);
    if (code == OK) code = cuda_products_open(s, e);
    if (code == OK) code = cuda_steps_open(s, e);
    if (code != OK) {
        cuda_close(&st);
        return code;
    }
    *out = st;
    return OK;
}

__attribute__((visibility("default"))) extern const struct cuda_backend omnidrop_cuda_backend;
const struct cuda_backend omnidrop_cuda_backend = { sizeof(struct ops), sizeof(struct attention_args), sizeof(struct cuda_backend),
                                                    cuda_open, cuda_memory, cuda_steps_read, native, guard };
