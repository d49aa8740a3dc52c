/* kernels/cuda/memory.c - a device's memory: asked of the runtime at start-up, afterwards out of one range. See inside.h.
 *
 * Until cuda_reserve each block is the runtime's (weights, what never changes, pages). From then on the runtime is asked for nothing
 * any more, and every block is cut out of the range that was reserved (base/range.h), on the host, without a word to the device.
 *
 * Why a block may be given to somebody else the moment it is released, though the device may still work on it: everything that reads
 * or writes such a block is given to one stream, `main`, in the order in which the host asks for it. What its next owner does comes
 * behind all that its last one asked for. The copy streams, which bring weights, are the one other way into a block: they wait for
 * main before they write into the range (cuda_behind_main), and main waits for them before it goes on (weight_send). Copies to the
 * host are on main too, and are waited for; so are sums between ranks (NCCL).
 *
 * OMNIDROP_CUDA_POISON=1 fills each block with NaN as it is taken and as it is released, so that whoever reads what is not his is
 * seen; by work on main, as everything. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cuda/inside.h"

#define LISTS_LEAST ((size_t)256 << 10)
#define LEASE_HEAD  RANGE_ALIGN    /* so that a lease and its first block have two addresses */

struct cuda_lease {
    char *block;
    size_t bytes;
    struct range *inside;
    struct cuda_lease *next;
};

/* ---- the runtime's --------------------------------------------------------------------------------------- */

static double mb(size_t bytes) { return (double)bytes / 1e6; }

static status no_memory(size_t bytes, cudaError_t rc, struct err *e)
{
    size_t free_bytes = 0, total = 0;
    if (rc != cudaErrorMemoryAllocation) return cuda_check(rc, "asking for memory", e);
    cudaGetLastError();            /* it is told here and not by the next call */
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) free_bytes = total = 0;
    return err_set(e, E_NOMEM, "no %.1f MB of device memory: %.1f MB of %.1f MB are free", mb(bytes), mb(free_bytes), mb(total));
}

static status ask_runtime(size_t bytes, void **out, struct err *e)
{
    const cudaError_t rc = cudaMalloc(out, bytes > 0 ? bytes : RANGE_ALIGN);
    return rc == cudaSuccess ? OK : no_memory(bytes, rc, e);
}

status cuda_memory(struct stream *st, uint64_t *free_bytes, uint64_t *total, struct err *e)
{
    size_t f = 0, t = 0;
    TRY(cuda_enter(cuda_stream_of(st), e));
    TRY(cuda_check(cudaMemGetInfo(&f, &t), "asking how much memory is free", e));
    *free_bytes = f;
    *total = t;
    return OK;
}

/* ---- blocks of the range --------------------------------------------------------------------------------- */

static struct cuda_lease *lease_around(const struct cuda_stream *s, const void *p)
{
    struct cuda_lease *l = s->lease;
    while (l != NULL && !range_has(l->inside, p)) l = l->next;
    return l;
}

static status poison(const struct cuda_stream *s, void *p, size_t bytes, struct err *e)
{
    if (!s->poison || bytes == 0) return OK;
    return cuda_check(cudaMemsetAsync(p, 0xff, bytes, s->main), "filling memory with NaN", e);
}

status cuda_alloc(struct stream *st, size_t bytes, void **out, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    *out = NULL;
    TRY(cuda_enter(s, e));
    if (s->work == NULL) return ask_runtime(bytes, out, e);
    struct range *r = s->within != NULL ? s->within->inside : s->work;
    *out = range_take(r, bytes);
    if (*out != NULL) return poison(s, *out, range_size(r, *out), e);
    const struct range_counts c = range_read(r);
    return err_set(e, E_NOMEM, "no %.1f MB of work memory%s: %.1f MB of %.1f MB are free, %.1f MB of them in one piece", mb(bytes),
                   s->within != NULL ? " in what this request was given" : "", mb(c.bytes - c.used), mb(c.bytes), mb(c.longest));
}

static void lease_free(struct cuda_stream *s, struct cuda_lease *l)
{
    struct cuda_lease **at = &s->lease;
    while (*at != l) at = &(*at)->next;
    *at = l->next;
    if (s->within == l) s->within = NULL;
    range_destroy(&l->inside);
    free(l);
}

void cuda_release(struct stream *st, void *p)
{
    struct cuda_stream *s = cuda_stream_of(st);
    if (p == NULL || cuda_enter(s, NULL) != OK) return;
    if (s->work == NULL || !range_has(s->work, p)) {
        /* What still runs ends first: cudaFree waits, and where that may be for ever we wait before, as then there is an end. */
        if (s->look != NULL) cuda_wait(s, NULL, "freeing memory", NULL);
        cudaFree(p);
        return;
    }
    struct cuda_lease *l = lease_around(s, p);
    struct range *r = l != NULL ? l->inside : s->work;
    for (struct cuda_lease *of = s->lease; l == NULL && of != NULL; of = of->next)
        if (of->block == p) {
            lease_free(s, of);
            break;
        }
    poison(s, p, range_size(r, p), NULL);
    range_give(r, p);
}

status cuda_within(struct stream *st, void *block, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    s->within = NULL;
    if (block == NULL) return OK;
    for (s->within = s->lease; s->within != NULL && s->within->block != block;) s->within = s->within->next;
    if (s->within != NULL) return OK;
    const size_t bytes = s->work != NULL ? range_size(s->work, block) : 0;
    if (bytes < LEASE_HEAD) return err_set(e, E_INTERNAL, "%p is no block of the work memory", block);
    struct cuda_lease *l = mem_must(1, sizeof *l);
    *l = (struct cuda_lease){ .block = block, .bytes = bytes, .next = s->lease };
    const status code = range_create(l->block + LEASE_HEAD, bytes - LEASE_HEAD, &l->inside, e);
    if (code != OK) {
        free(l);
        return code;
    }
    s->lease = s->within = l;
    return OK;
}

status cuda_behind_main(struct cuda_stream *s, const void *p, struct err *e)
{
    if (s->work == NULL || !range_has(s->work, p)) return OK;
    TRY(cuda_check(cudaEventRecord(s->behind, s->main), "marking work", e));
    for (int i = 0; i < CUDA_COPIES; i++)
        TRY(cuda_check(cudaStreamWaitEvent(s->copy[i], s->behind, 0), "waiting for work", e));
    return OK;
}

/* ---- what ops keep --------------------------------------------------------------------------------------- */

status cuda_room(struct cuda_stream *s, size_t bytes, struct err *e)
{
    if (bytes <= s->room_bytes) return OK;
    if (s->work != NULL)
        return err_set(e, E_NOMEM, "an op needs room for %.1f MB, %.1f MB were planned", mb(bytes), mb(s->room_bytes));
    cuda_release(&s->base, s->room);
    s->room = NULL;
    s->room_bytes = 0;
    const size_t more = bytes + bytes / 4;
    TRY(cuda_alloc(&s->base, more, &s->room, e));
    s->room_bytes = more;
    return OK;
}

void *cuda_take(char **at, size_t bytes)
{
    void *p = *at;
    *at += range_bytes(bytes);
    return p;
}

static void lists_free(struct cuda_stream *s)
{
    struct cuda_lists *l = &s->lists;
    if (l->host) cudaFreeHost(l->host);
    cuda_release(&s->base, l->device);
    l->host = l->device = NULL;
    l->half = l->at = 0;
    l->used[0] = l->used[1] = false;
}

status cuda_lists_room(struct cuda_stream *s, size_t half, struct err *e)
{
    struct cuda_lists *l = &s->lists;
    if (half < LISTS_LEAST) half = LISTS_LEAST;
    half = range_bytes(half);
    if (l->half >= half) return OK;
    if (s->work != NULL)
        return err_set(e, E_NOMEM, "an op's lists need %.1f MB, %.1f MB were planned", mb(half), mb(l->half));
    if (l->host) TRY(cuda_sync(&s->base, e));
    lists_free(s);
    TRY(cuda_check(cudaMallocHost((void **)&l->host, 2 * half), "asking for pinned memory", e));
    TRY(cuda_alloc(&s->base, 2 * half, (void **)&l->device, e));
    l->half = half;
    return OK;
}

/* ---- the plan -------------------------------------------------------------------------------------------- */

/* A half of the lists: those of kv_write or of decode, with all the pages of all sequences; of chosen rows, in groups; of rows. */
static size_t lists_half(const struct reserve_args *a)
{
    const size_t pages = (size_t)a->keys / CUDA_PAGE_TOKENS + 2;
    return a->seqs * (4 * pages + 48) + 64 * (size_t)a->keys + 16 * (size_t)a->list + ((size_t)64 << 10);
}

/* Products before GELU or SwiGLU, in pieces where they are longer; what attention writes where an operand's rows are padded; what ops
 * on chosen rows keep of each (pagerank: of each head). */
static size_t room_bytes(const struct cuda_stream *s, const struct reserve_args *a)
{
    const size_t keys = (size_t)a->keys * (64 + 32 * (size_t)a->heads) + 4096, out = a->out * sizeof(float), half = lists_half(a);
    size_t most = s->widest * CUDA_ROOM_ROWS < CUDA_ROOM_BYTES ? s->widest * CUDA_ROOM_ROWS : CUDA_ROOM_BYTES;
    if (out > most) most = out;
    if (keys > most) most = keys;
    if (half > most) most = half;              /* a result for each pair that lists name */
    return range_bytes(most);
}

/* All lists of a step of decode: every layer has its own, but few sequences have as many pages as one may have. */
static size_t step_bytes(const struct cuda_stream *s, const struct reserve_args *a)
{
    return s->steps != NULL ? range_bytes(2 * lists_half(a) + ((size_t)1 << 20)) : 0;
}

size_t cuda_reserve_bytes(const struct stream *st, const struct reserve_args *a)
{
    const struct cuda_stream *s = cuda_stream_of(st);
    return room_bytes(s, a) + 2 * range_bytes(lists_half(a)) + step_bytes(s, a) + range_bytes(a->bytes);
}

status cuda_reserve(struct stream *st, const struct reserve_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    const size_t room = room_bytes(s, a);
    TRY(cuda_enter(s, e));
    if (s->work != NULL) return err_set(e, E_INTERNAL, "work memory is reserved once");
    TRY(cuda_lists_room(s, lists_half(a), e));
    TRY(cuda_steps_reserve(s, step_bytes(s, a), e));
    if (room > s->room_bytes) {
        cuda_release(st, s->room);
        s->room = NULL;
        s->room_bytes = 0;
        TRY(ask_runtime(room, &s->room, e));
        s->room_bytes = room;
    }
    TRY(ask_runtime(range_bytes(a->bytes), &s->work_base, e));
    return range_create(s->work_base, a->bytes, &s->work, e);
}

void cuda_memory_close(struct cuda_stream *s)
{
    while (s->lease != NULL) lease_free(s, s->lease);
    range_destroy(&s->work);       /* from here on blocks are the runtime's again */
    lists_free(s);
    cuda_release(&s->base, s->room);
    cuda_release(&s->base, s->work_base);
    s->room = s->work_base = NULL;
}
