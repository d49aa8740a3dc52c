/* kernels/cuda/steps.c - ops of one step of decode, held back and run as one CUDA graph. See inside.h and ops->step_begin.
 *
 * Between step_begin and step_end an op does all that it does on the host, but what it would launch is written down (a launcher and
 * its arguments, as bytes: the *log*), and its lists go to places in one block that begin anew with every step. step_end sends the
 * block in one copy. Then the log is compared with that of the last step of the same owner and number of rows:
 *   other   each launch by itself, as without steps; the log is kept
 *   same    the same launches again, this time captured as a graph, which is run
 *   same    once more: the graph is run
 * So whatever moves (memory, a list that needs more room, a plan) makes a step other and never wrong, and what is captured was
 * launched before: modules are loaded and cuBLASLt's choices are made. Lengths and page numbers are in the lists and change nothing, as
 * ops ask for more room than they need (cuda_step_room).
 *
 * Rules of capture (CUDA runtime API, stream management): in it nothing is allocated, freed or waited for by this thread; only the
 * stream's own work is captured, and all that is kept of a launch are its arguments by value. Neither lists nor copies are in the
 * graph: the block goes up before it, out of one of two pinned twins. What fails ends the capture, is told once, and steps are
 * launched one by one from then on. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cuda/inside.h"

enum { GRAPHS = 64 };
#define BLOCK_BYTES ((size_t)1 << 20)

/* The last step of its owner with so many rows. */
struct graph {
    const void *owner;
    uint32_t rows;
    uint64_t used;
    char *log;
    size_t n, log_cap;
    uint32_t *room;               /* what cuda_step_room gave, in order */
    size_t n_rooms, room_cap;
    cudaGraphExec_t exec;         /* NULL: not captured */
};

struct cuda_steps {
    bool failed, open;            /* open: launches are held back */
    struct graph graph[GRAPHS], *of;
    uint32_t n_graphs;
    uint64_t n_steps;
    /* The lists: two pinned twins in turn, and where they go. */
    char *host[2], *device;
    size_t bytes, at, want;
    int turn;
    cudaEvent_t read[2];
    bool used[2];
    /* This step's, as of a graph. */
    char *log;
    size_t n, log_cap;
    uint32_t *room;
    size_t n_rooms, room_cap;
    struct device_steps count;
};

/* In the log, its arguments behind it at a multiple of 8. */
struct entry { cuda_launcher launcher; size_t bytes; };
static size_t entry_bytes(size_t args) { return sizeof(struct entry) + (args + 7) / 8 * 8; }

static void give_up(struct cuda_steps *q, const char *why)
{
    if (!q->failed) fprintf(stderr, "omnidrop: decode goes on without CUDA graphs: %s\n", why);
    q->failed = true;
}

/* ---- lists ------------------------------------------------------------------------------------------------- */

static void block_free(struct cuda_stream *s)
{
    struct cuda_steps *q = s->steps;
    for (int i = 0; i < 2; i++) {
        if (q->host[i]) cudaFreeHost(q->host[i]);
        q->host[i] = NULL;
        q->used[i] = false;
    }
    cuda_release(&s->base, q->device);
    q->device = NULL;
    q->bytes = 0;
}

static status block_room(struct cuda_stream *s, size_t bytes, struct err *e)
{
    struct cuda_steps *q = s->steps;
    if (bytes <= q->bytes || s->work != NULL) return OK;          /* reserved: steps that need more go launch by launch */
    TRY(cuda_sync(&s->base, e));
    block_free(s);
    for (int i = 0; i < 2; i++)
        TRY(cuda_check(cudaMallocHost((void **)&q->host[i], bytes), "asking for pinned memory", e));
    TRY(cuda_alloc(&s->base, bytes, (void **)&q->device, e));
    q->bytes = bytes;
    return OK;
}

status cuda_steps_reserve(struct cuda_stream *s, size_t bytes, struct err *e)
{
    if (s->steps == NULL) return OK;
    return block_room(s, bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES, e);
}

bool cuda_step_piece(struct cuda_stream *s, size_t bytes, struct cuda_piece *p)
{
    struct cuda_steps *q = s->steps;
    if (!cuda_step_open(s)) return false;
    if (q->at + bytes > q->bytes) {
        q->want = 2 * (q->at + bytes);
        return false;
    }
    *p = (struct cuda_piece){ .host = q->host[q->turn] + q->at, .device = q->device + q->at, .bytes = bytes, .held = true };
    return true;
}

void cuda_step_sent(struct cuda_stream *s, const struct cuda_piece *p) { s->steps->at += (p->at + 255) / 256 * 256; }

static status send_lists(struct cuda_stream *s, struct err *e)
{
    struct cuda_steps *q = s->steps;
    if (q->at == 0) return OK;
    TRY(cuda_check(cudaMemcpyAsync(q->device, q->host[q->turn], q->at, cudaMemcpyHostToDevice, s->main), "copying a step's lists", e));
    TRY(cuda_check(cudaEventRecord(q->read[q->turn], s->main), "marking a step's lists", e));
    q->used[q->turn] = true;
    q->turn ^= 1;
    return OK;
}

/* ---- launches ---------------------------------------------------------------------------------------------- */

status cuda_run(struct cuda_stream *s, cuda_launcher launcher, const void *args, size_t bytes, struct err *e)
{
    struct cuda_steps *q = s->steps;
    if (!cuda_step_open(s)) return launcher(s, args, e);
    const size_t n = entry_bytes(bytes);
    const struct entry head = { launcher, bytes };
    TRY(mem_grow(&q->log, &q->log_cap, q->n + n, 1, e));
    memset(q->log + q->n, 0, n);
    memcpy(q->log + q->n, &head, sizeof head);
    memcpy(q->log + q->n + sizeof head, args, bytes);
    q->n += n;
    return OK;
}

static status play(struct cuda_stream *s, struct err *e)
{
    const struct cuda_steps *q = s->steps;
    struct entry head;
    for (size_t at = 0; at < q->n; at += entry_bytes(head.bytes)) {
        memcpy(&head, q->log + at, sizeof head);
        TRY(head.launcher(s, q->log + at + sizeof head, e));
    }
    return OK;
}

static status capture(struct cuda_stream *s, cudaGraphExec_t *out, struct err *e)
{
    cudaGraph_t graph = NULL;
    TRY(cuda_check(cudaStreamBeginCapture(s->main, cudaStreamCaptureModeThreadLocal), "beginning to capture a step", e));
    status st = play(s, e);
    const cudaError_t rc = cudaStreamEndCapture(s->main, &graph);      /* in any case: the stream is the engine's again */
    if (st == OK) st = cuda_check(rc, "capturing a step", e);
    if (st == OK) st = cuda_check(cudaGraphInstantiate(out, graph, 0), "making a graph of a step", e);
    if (graph != NULL) cudaGraphDestroy(graph);
    if (st != OK) {
        *out = NULL;
        cudaGetLastError();        /* it is told here and not by the next call */
    }
    return st;
}

/* ---- steps ------------------------------------------------------------------------------------------------- */

bool cuda_step_open(const struct cuda_stream *s) { return s->steps != NULL && s->steps->open; }

static void graph_forget(struct graph *g)
{
    if (g->exec != NULL) cudaGraphExecDestroy(g->exec);   /* one that runs ends first */
    g->exec = NULL;
    g->n = g->n_rooms = 0;
}

/* That of the owner and its rows; else a new one in the place of the one not used for longest. */
static struct graph *graph_of(struct cuda_steps *q, const void *owner, uint32_t rows)
{
    struct graph *last = &q->graph[0];
    for (uint32_t i = 0; i < q->n_graphs; i++) {
        if (q->graph[i].owner == owner && q->graph[i].rows == rows) return &q->graph[i];
        if (q->graph[i].used < last->used) last = &q->graph[i];
    }
    if (q->n_graphs < GRAPHS) last = &q->graph[q->n_graphs++];
    graph_forget(last);
    last->owner = owner;
    last->rows = rows;
    return last;
}

uint32_t cuda_step_room(struct cuda_stream *s, uint32_t need, uint32_t most)
{
    struct cuda_steps *q = s->steps;
    if (!cuda_step_open(s)) return need;
    const uint32_t had = q->n_rooms < q->of->n_rooms ? q->of->room[q->n_rooms] : 0, room = cuda_room_for(need, had);
    const uint32_t given = room <= most ? room : need > most ? need : most;
    if (mem_grow(&q->room, &q->room_cap, q->n_rooms + 1, sizeof *q->room, NULL) == OK) q->room[q->n_rooms++] = given;
    return given;
}

void cuda_step_begin(struct stream *st, const void *owner, uint32_t rows)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_steps *q = s->steps;
    struct err why;
    if (q == NULL || q->failed || q->open) return;
    status code = block_room(s, q->want, &why);
    if (code == OK && q->used[q->turn]) code = cuda_wait(s, q->read[q->turn], "waiting for a step's lists to be read", &why);
    if (code != OK) {
        give_up(q, why.text);
        return;
    }
    q->used[q->turn] = false;
    q->at = q->n = q->n_rooms = 0;
    q->of = graph_of(q, owner, rows);
    q->of->used = ++q->n_steps;
    q->open = true;
}

status cuda_step_flush(struct cuda_stream *s, struct err *e)
{
    if (!cuda_step_open(s)) return OK;
    s->steps->open = false;
    s->steps->count.ended_early++;
    TRY(send_lists(s, e));
    return play(s, e);
}

/* What is in the log becomes the last step of its kind. */
static void remember(struct cuda_steps *q)
{
    struct graph *g = q->of;
    graph_forget(g);
    if (mem_grow(&g->log, &g->log_cap, q->n, 1, NULL) != OK ||
        mem_grow(&g->room, &g->room_cap, q->n_rooms, sizeof *g->room, NULL) != OK)
        return;                    /* the next one is new again */
    memcpy(g->log, q->log, q->n);
    if (q->n_rooms > 0) memcpy(g->room, q->room, q->n_rooms * sizeof *g->room);
    g->n = q->n;
    g->n_rooms = q->n_rooms;
}

status cuda_step_end(struct stream *st, bool drop, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_steps *q = s->steps;
    struct err why;
    if (!cuda_step_open(s)) return OK;
    q->open = false;
    if (drop || q->n == 0) return OK;
    TRY(cuda_join(s, e));
    TRY(send_lists(s, e));
    struct graph *g = q->of;
    const bool same = g->n == q->n && memcmp(g->log, q->log, q->n) == 0, again = g->exec != NULL;
    if (same && !again && capture(s, &g->exec, &why) != OK) give_up(q, why.text);
    if (same && g->exec != NULL) {
        const cudaError_t rc = cudaGraphLaunch(g->exec, s->main);
        if (rc == cudaSuccess) {
            (*(again ? &q->count.replayed : &q->count.captured))++;
            return OK;
        }
        cuda_check(rc, "launching a step", &why);
        cudaGetLastError();
        give_up(q, why.text);
    }
    if (!same) remember(q);
    q->count.plain++;
    return play(s, e);
}

struct device_steps cuda_steps_read(struct stream *st)
{
    const struct cuda_stream *s = cuda_stream_of(st);
    return s->steps != NULL ? s->steps->count : (struct device_steps){ 0 };
}

status cuda_steps_open(struct cuda_stream *s, struct err *e)
{
    const char *off = getenv("OMNIDROP_CUDA_GRAPHS");
    if (off != NULL && strcmp(off, "0") == 0) return OK;
    TRY(mem_alloc(&s->steps, 1, sizeof *s->steps, e));
    s->steps->want = BLOCK_BYTES;
    for (int i = 0; i < 2; i++)
        TRY(cuda_check(cudaEventCreateWithFlags(&s->steps->read[i], cudaEventDisableTiming), "making an event", e));
    return OK;
}

void cuda_steps_close(struct cuda_stream *s)
{
    struct cuda_steps *q = s->steps;
    if (q == NULL) return;
    for (uint32_t i = 0; i < q->n_graphs; i++) {
        graph_forget(&q->graph[i]);
        free(q->graph[i].log);
        free(q->graph[i].room);
    }
    block_free(s);
    for (int i = 0; i < 2; i++)
        if (q->read[i]) cudaEventDestroy(q->read[i]);
    free(q->log);
    free(q->room);
    free(q);
    s->steps = NULL;
}
