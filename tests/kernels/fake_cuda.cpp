/* tests/kernels/fake_cuda.cpp - a CUDA runtime and a cuBLASLt for the host code of kernels/cuda/, over simt.h: together they make the
 * whole backend run on a CPU, thread for thread (omnidrop-cuda.so of tests/kernels/simt).
 *
 * Device memory is a range of its own that nobody may touch but kernels, copies and products while they run: host code that reads
 * or writes it ends with a sentence that says so, and a kernel or a product that is given host memory does too. Memory begins and ends
 * as NaN. What a stream is given is done as late as it may: when somebody waits, or now and then before; so a host buffer that is used
 * again too early, or an event that is missing between two streams, is seen. Work that waits for another process (fake_nccl.c) is tried
 * again and again by a thread, since a device goes on while its host does something else. What was launched and when the host waited is
 * kept in a list, fake_cuda_log, for tests that ask.
 *
 * Capture and graphs are as the runtime's documentation says. While a stream is captured the thread that began it may not allocate,
 * free or wait, nor record an event: what does ends the program. A node keeps its kernel's arguments by value and its copy's addresses, so
 * pinned memory is read when the graph runs; launches of one graph run in order. FAKE_CUDA_FAILS=capture, instantiate or graph makes the
 * end of a capture, an instantiation or the launch of a graph fail. */
#include "tests/kernels/simt.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bf16.h"
#include "tests/kernels/fake/cublasLt.h"
#include "tests/kernels/fake_cuda.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FENCE(p, n)  ASAN_POISON_MEMORY_REGION(p, n)
#define LET_IN(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define FENCE(p, n)  (void)0
#define LET_IN(p, n) (void)0
#endif

namespace {

/* No address in it is plain() below. */
unsigned char *const REGION = (unsigned char *)0x200050000000;
const size_t REGION_BYTES = (size_t)2 << 30, GAP = 512, BLOCKS = 1 << 14;

[[noreturn]] void die(const char *what, const void *p)
{
    fprintf(stderr, "fake CUDA: %s (%p)\n", what, p);
    abort();
}

/* One thread at a time; held by who looks at blocks and streams. */
pthread_mutex_t gate = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
struct hold {
    hold() { pthread_mutex_lock(&gate); }
    ~hold() { pthread_mutex_unlock(&gate); }
};

/* What there is of the region: OMNIDROP_FAKE_BYTES, else all. */
size_t limit()
{
    static const char *given = getenv("OMNIDROP_FAKE_BYTES");
    const size_t n = given ? strtoull(given, NULL, 10) : REGION_BYTES;
    return n < REGION_BYTES ? n : REGION_BYTES;
}

struct block { unsigned char *p; size_t n; };
struct block *device_block, *host_block;      /* in order of addresses */
size_t n_device, n_host, device_bytes;
int opened;

void on_fault(int, siginfo_t *i, void *)
{
    const unsigned char *p = (const unsigned char *)i->si_addr;
    const char *what = p >= REGION && p < REGION + REGION_BYTES ? "fake CUDA: host code touched device memory\n" : "fake CUDA: SIGSEGV\n";
    if (write(2, what, strlen(what)) < 0) _exit(3);
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
}

void begin()
{
    if (device_block != NULL) return;
    device_block = (struct block *)calloc(BLOCKS, sizeof *device_block);
    host_block = (struct block *)calloc(BLOCKS, sizeof *host_block);
    void *p = mmap(REGION, REGION_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != REGION || device_block == NULL || host_block == NULL) die("no room for device memory", p);
    madvise(REGION, REGION_BYTES, MADV_HUGEPAGE);                 /* few entries to change when it is opened and closed */
    struct sigaction a = {};
    a.sa_sigaction = on_fault;
    a.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &a, NULL);
}

/* The device's own time. */
struct at_work {
    at_work() { if (opened++ == 0) mprotect(REGION, REGION_BYTES, PROT_READ | PROT_WRITE); }
    ~at_work() { if (--opened == 0) mprotect(REGION, REGION_BYTES, PROT_NONE); }
};

bool inside(const struct block *b, size_t n_blocks, const void *p, size_t n)
{
    for (size_t i = 0; i < n_blocks; i++)
        if ((unsigned char *)p >= b[i].p && (unsigned char *)p + n <= b[i].p + b[i].n) return true;
    return false;
}

void need_device(const void *p, size_t n, const char *what)
{
    if (!inside(device_block, n_device, p, n)) die(what, p);
}

/* Names of kernels, "product", and "wait ..." for each time that the host stood still. */
const unsigned LOG_MAX = 1 << 16;
const char *host_log[LOG_MAX];
unsigned n_log;
void note(const char *what)
{
    if (n_log < LOG_MAX) host_log[n_log++] = what;
}

uint64_t random_state = 0x9e3779b97f4a7c15u;
unsigned below(unsigned n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((random_state >> 32) * n >> 32);
}

/* ---- products -------------------------------------------------------------------------------------------- */

struct product {
    const void *a, *b, *bias;
    void *d;
    cudaDataType_t in, out;
    uint64_t n, m, k;
    int64_t lda, ldb, ldd;
    float alpha, beta;
};

float value(const void *p, cudaDataType_t t, size_t i)
{
    return t == CUDA_R_32F ? ((const float *)p)[i] : bf16_to_f32(((const uint16_t *)p)[i]);
}

void multiply(const struct product *p)
{
    float *row = (float *)malloc(2 * p->k * sizeof *row), *column = row + p->k;
    for (uint64_t j = 0; j < p->m; j++) {
        for (uint64_t k = 0; k < p->k; k++) row[k] = value(p->b, p->in, j * p->ldb + k);
        for (uint64_t i = 0; i < p->n; i++) {
            const float *w = (const float *)p->a + i * p->lda;
            if (p->in != CUDA_R_32F) {
                for (uint64_t k = 0; k < p->k; k++) column[k] = value(p->a, p->in, i * p->lda + k);
                w = column;
            }
            float part[8] = { 0 };                                /* k is a multiple of 8 in all that is asked */
            for (uint64_t k = 0; k + 8 <= p->k; k += 8)
                for (int x = 0; x < 8; x++) part[x] += row[k + x] * w[k + x];
            for (uint64_t k = p->k / 8 * 8; k < p->k; k++) part[0] += row[k] * w[k];
            float y = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
            const size_t at = j * p->ldd + i;
            y *= p->alpha;
            if (p->beta != 0) y += p->beta * value(p->d, p->out, at);
            if (p->bias != NULL) y += value(p->bias, p->out, i);
            if (p->out == CUDA_R_32F) ((float *)p->d)[at] = y;
            else ((uint16_t *)p->d)[at] = bf16_of_f32(y);
        }
    }
    free(row);
}

} // namespace

/* ---- streams --------------------------------------------------------------------------------------------- */

struct work {
    struct work *next;
    enum { A_COPY, A_SET, A_KERNEL, A_PRODUCT, A_WAIT, A_GRAPH, A_MEETING } kind;
    void *to;
    const void *from;
    size_t bytes;
    void (*call)(const void *);
    void *arg;
    const char *name;
    dim3 grid;
    unsigned threads;
    size_t dynamic;
    struct product product;
    bool (*step)(void *);
    struct CUstream_st *other;
    uint64_t mark;
    struct CUgraphExec_st *exec;
};
struct CUstream_st {
    struct work *first, **last;
    uint64_t given, done, meeting;    /* meeting: the last work that waits for another process, counted as given and done */
    struct CUstream_st *next;
    struct CUgraph_st *into;      /* captured; by whom */
    pthread_t by;
};
struct CUgraph_st { struct work *first, **last; unsigned users; };
/* The last launch, so that another waits for it. The handle may be gone before they have run. */
struct CUgraphExec_st { struct CUgraph_st *graph; struct CUstream_st *stream; uint64_t mark; unsigned users; };
struct CUevent_st { struct CUstream_st *stream; uint64_t mark; unsigned flags; };

static struct CUstream_st *streams;

static bool run_some(struct CUstream_st *s, uint64_t mark);

static void graph_drop(struct CUgraph_st *g)
{
    if (--g->users > 0) return;
    for (struct work *w = g->first, *next; w != NULL; w = next) {
        next = w->next;
        free(w->arg);
        free(w);
    }
    free(g);
}

static void exec_drop(struct CUgraphExec_st *x)
{
    if (--x->users > 0) return;
    graph_drop(x->graph);
    free(x);
}

/* SIMT_KERNELS=file: the names of the kernels that ran, each once. */
static void tell(const char *name)
{
    static const char *known[128];
    const char *file = getenv("SIMT_KERNELS");
    if (file == NULL) return;
    for (const char **k = known; k < known + 128; k++) {
        if (*k != NULL && strcmp(*k, name) == 0) return;
        if (*k != NULL) continue;
        FILE *f = fopen(file, "a");
        if (f == NULL) die("SIMT_KERNELS can not be written", NULL);
        fprintf(f, "%s\n", *k = name);
        fclose(f);
        return;
    }
}

/* false: it waits for somebody, and stays. */
static bool do_work(const struct work *w)
{
    switch (w->kind) {
    case work::A_COPY: memmove(w->to, w->from, w->bytes); return true;
    case work::A_SET: memset(w->to, 0xff, w->bytes); return true;
    case work::A_PRODUCT: multiply(&w->product); return true;
    case work::A_KERNEL:
        tell(w->name);
        simt_run(w->name, w->call, w->arg, w->grid, w->threads, w->dynamic);
        return true;
    case work::A_WAIT: return run_some(w->other, w->mark);
    case work::A_MEETING: return w->step(w->arg);
    case work::A_GRAPH:
        if (w->other != NULL && !run_some(w->other, w->mark)) return false;
        for (const struct work *node = w->exec->graph->first; node != NULL; node = node->next) do_work(node);
        exec_drop(w->exec);
    }
    return true;
}

static bool run_one(struct CUstream_st *s)
{
    struct work *w = s->first;
    if (!do_work(w)) return false;
    s->first = w->next;
    if (s->first == NULL) s->last = &s->first;
    free(w->arg);
    free(w);
    s->done++;
    return true;
}

static bool run_some(struct CUstream_st *s, uint64_t mark)
{
    const struct hold here;
    const struct at_work now;
    while (s->done < mark)
        if (!run_one(s)) return false;
    return true;
}

/* By a host that waits, which holds nothing. */
static void run_to(struct CUstream_st *s, uint64_t mark)
{
    while (!run_some(s, mark)) usleep(100);
}

static void run_all()
{
    for (struct CUstream_st *s = streams; s != NULL; s = s->next) {
        if (s->done < s->given) note("wait for all, to free something");
        run_to(s, s->given);
    }
}

/* What the thread that captures a stream may not do. */
static void not_in_capture(const char *what)
{
    for (struct CUstream_st *s = streams; s != NULL; s = s->next)
        if (s->into != NULL && pthread_equal(s->by, pthread_self())) die(what, s);
}

static bool made_to_fail(const char *what)
{
    const char *v = getenv("FAKE_CUDA_FAILS");
    return v != NULL && strcmp(v, what) == 0;
}

static struct work *give(struct CUstream_st *s, int kind)
{
    if (s == NULL) die("work on no stream", NULL);
    if (s->into != NULL) {
        struct work *w = (struct work *)calloc(1, sizeof *w);
        if (w == NULL) die("no memory", NULL);
        if (!pthread_equal(s->by, pthread_self())) die("another thread's work on a stream that is captured", s);
        if (kind == work::A_WAIT || kind == work::A_GRAPH || kind == work::A_MEETING)
            die("a wait, a graph or a call of NCCL within a capture, which is not played", s);
        w->kind = (decltype(w->kind))kind;
        *s->into->last = w;
        s->into->last = &w->next;
        return w;
    }
    for (struct CUstream_st *t = streams; t != NULL; t = t->next)
        if (below(16) == 0) run_some(t, t->done + below((unsigned)(t->given - t->done) + 1));
    struct work *w = (struct work *)calloc(1, sizeof *w);
    if (w == NULL) die("no memory", NULL);
    w->kind = (decltype(w->kind))kind;
    *s->last = w;
    s->last = &w->next;
    s->given++;
    return w;
}

/* Four bytes and padding behind them, which may hold half of some address, are no address: a number under 2^24, or a float of some
 * 1e-9 to 1e5. One host address in ten passes for that too. */
static bool plain(uint64_t v)
{
    const uint32_t low = (uint32_t)v;
    return low < 1u << 24 || (low >= 0x30000000u && low < 0x48000000u);
}

/* Kernels come here through simt.h's launch. Every word of the arguments that could be an address must be one on the device. */
static void enqueue(void *stream, const char *name, void (*call)(const void *), void *arg, const void *args, size_t bytes, dim3 grid,
                    unsigned threads, size_t dynamic)
{
    const struct hold here;
    for (size_t at = 0; at + 8 <= bytes; at += 8) {
        uint64_t v;
        unsigned char in_core;
        memcpy(&v, (const char *)args + at, 8);
        const unsigned char *p = (const unsigned char *)v;
        if (p >= REGION && p < REGION + REGION_BYTES) {
            if (!inside(device_block, n_device, p, 0)) fprintf(stderr, "%s: ", name), die("a kernel is given memory that nobody has", p);
        } else if (v >= (uint64_t)0x5000 << 32 && v < (uint64_t)1 << 47 && !plain(v) &&
                   mincore((void *)(v & ~(uint64_t)4095), 1, &in_core) == 0) {
            fprintf(stderr, "%s: ", name);
            die("a kernel is given host memory", p);
        }
    }
    note(name);
    struct work *w = give((struct CUstream_st *)stream, work::A_KERNEL);
    w->name = name, w->call = call, w->arg = arg, w->grid = grid, w->threads = threads, w->dynamic = dynamic;
}

/* ---- work that waits for other processes ------------------------------------------------------------------- */

/* No further than to the last of it, so that what comes behind is done as late as ever. */
static void *go_on(void *)
{
    for (;;) {
        usleep(500);
        const struct hold here;
        for (struct CUstream_st *s = streams; s != NULL; s = s->next)
            if (s->done < s->meeting) run_some(s, s->meeting);
    }
    return NULL;
}

void fake_cuda_meeting(cudaStream_t s, bool (*step)(void *), void *arg)
{
    static bool going;
    pthread_t t;
    const struct hold here;
    struct work *w = give(s, work::A_MEETING);
    w->step = step, w->arg = arg;
    s->meeting = s->given;
    if (!going && pthread_create(&t, NULL, go_on, NULL) != 0) die("no thread", NULL);
    if (!going) pthread_detach(t);
    going = true;
}

void fake_cuda_device_memory(const void *p, size_t n, const char *what)
{
    const struct hold here;
    if (n > 0) need_device(p, n, what);
}

bool fake_cuda_stream(cudaStream_t s)
{
    const struct hold here;
    for (struct CUstream_st *t = streams; t != NULL; t = t->next)
        if (t == s) return true;
    return false;
}

extern "C" {

/* For tests that open this library themselves: calls that ask for memory of either side and give it back; bytes copied. */
struct fake_cuda_counts { uint64_t asked, given_back, up, down; };
__attribute__((visibility("default"))) struct fake_cuda_counts fake_cuda_counts;

/* ---- the runtime ----------------------------------------------------------------------------------------- */

const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation ? "out of memory" : e == cudaErrorStreamCaptureInvalidated ? "capture invalidated" :
           e == cudaSuccess ? "no error" : "invalid argument";
}
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
/* SIMT_DEVICES: so many, for ranks that want one each; a process uses one of them, whose memory is the process' own. */
static int devices()
{
    const char *v = getenv("SIMT_DEVICES");
    return v && atoi(v) > 0 ? atoi(v) : 1;
}
cudaError_t cudaGetDeviceCount(int *n) { *n = devices(); return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device >= 0 && device < devices() ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaDeviceGetPCIBusId(char *bus, int cap, int device)
{
    if (device < 0 || device >= devices()) return cudaErrorInvalidDevice;
    snprintf(bus, (size_t)cap, "0000:%02X:00.0", device);
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *v) { *v = 0; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 0; return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int)
{
    const char *compute = getenv("SIMT_COMPUTE");                 /* 90: the kernels for sm_90a */
    if (compute != NULL) simt_compute = (unsigned)atoi(compute);
    *p = {};
    snprintf(p->name, sizeof p->name, "a CPU that plays a GPU");
    p->totalGlobalMem = limit(), p->major = (int)simt_compute / 10, p->minor = (int)simt_compute % 10, p->multiProcessorCount = 1;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    const struct hold here;
    *free_bytes = limit() - device_bytes;
    *total = limit();
    return cudaSuccess;
}

/* The first hole that is large enough. */
cudaError_t cudaMalloc(void **out, size_t bytes)
{
    const struct hold here;
    begin();
    not_in_capture("cudaMalloc while a stream is captured");
    fake_cuda_counts.asked++;
    const size_t n = (bytes + 255) / 256 * 256;
    if (device_bytes + bytes > limit()) return cudaErrorMemoryAllocation;
    unsigned char *at = REGION;
    size_t i = 0;
    for (; i < n_device && (size_t)(device_block[i].p - at) < n + GAP; i++)
        at = device_block[i].p + (device_block[i].n + 255) / 256 * 256 + GAP;
    if (n_device == BLOCKS || at + n + GAP > REGION + REGION_BYTES) return cudaErrorMemoryAllocation;
    memmove(device_block + i + 1, device_block + i, (n_device++ - i) * sizeof *device_block);
    device_block[i] = { at, bytes };
    device_bytes += bytes;
    const struct at_work now;
    LET_IN(at, n + GAP);
    memset(at, 0xff, n + GAP);
    FENCE(at + bytes, n + GAP - bytes);
    *out = at;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (p == NULL) return cudaSuccess;
    not_in_capture("cudaFree while a stream is captured");
    fake_cuda_counts.given_back++;
    run_all();
    const struct hold here;
    for (size_t i = 0; i < n_device; i++)
        if (device_block[i].p == p) {
            {
                const struct at_work now;
                memset(p, 0xff, device_block[i].n);
            }
            FENCE(p, device_block[i].n);
            device_bytes -= device_block[i].n;
            memmove(device_block + i, device_block + i + 1, (--n_device - i) * sizeof *device_block);
            return cudaSuccess;
        }
    die("cudaFree of what is no memory of the device", p);
}

cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    const struct hold here;
    begin();
    not_in_capture("cudaMallocHost while a stream is captured");
    fake_cuda_counts.asked++;
    if (n_host == BLOCKS) return cudaErrorMemoryAllocation;
    *out = malloc(bytes);
    memset(*out, 0xff, bytes);
    host_block[n_host++] = { (unsigned char *)*out, bytes };
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    not_in_capture("cudaFreeHost while a stream is captured");
    fake_cuda_counts.given_back++;
    run_all();
    const struct hold here;
    for (size_t i = 0; i < n_host; i++)
        if (host_block[i].p == p) {
            host_block[i] = host_block[--n_host];
            free(p);
            return cudaSuccess;
        }
    die("cudaFreeHost of what is no pinned memory", p);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned)
{
    const struct hold here;
    begin();
    simt_enqueue = enqueue;
    struct CUstream_st *s = (struct CUstream_st *)calloc(1, sizeof *s);
    s->last = &s->first;
    s->next = streams;
    streams = *out = s;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    run_all();
    const struct hold here;
    for (struct CUstream_st **at = &streams; *at != NULL; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    free(s);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    not_in_capture("cudaStreamSynchronize while a stream is captured");
    note("wait for a stream");
    run_to(s, s->given);
    return cudaSuccess;
}

/* Whoever asks again and again sees it done some time. */
cudaError_t cudaStreamQuery(cudaStream_t s)
{
    not_in_capture("cudaStreamQuery while a stream is captured");
    const struct hold here;
    if (s->done < s->given && below(4) == 0) run_some(s, s->done + below((unsigned)(s->given - s->done) + 1));
    return s->done < s->given ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    const struct hold here;
    struct work *w = give(s, work::A_WAIT);
    w->other = e->stream ? e->stream : s;
    w->mark = e->stream && e->stream != s ? e->mark : 0;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    *out = (struct CUevent_st *)calloc(1, sizeof **out);
    (*out)->flags = flags;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    const struct hold here;
    if (s->into != NULL) die("an event recorded within a capture, which is not played", e);
    e->stream = s;
    e->mark = s->given;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    not_in_capture("cudaEventSynchronize while a stream is captured");
    if (e->stream && e->stream->done < e->mark) {
        note("wait for an event");
        run_to(e->stream, e->mark);
    }
    return cudaSuccess;
}

/* Whoever asks again and again sees it done some time. */
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    struct CUstream_st *s = e->stream;
    not_in_capture("cudaEventQuery while a stream is captured");
    const struct hold here;
    if (s && s->done < e->mark && below(4) == 0) run_some(s, s->done + below((unsigned)(e->mark - s->done) + 1));
    return s && s->done < e->mark ? cudaErrorNotReady : cudaSuccess;
}

/* Every piece of work takes a hundredth of a millisecond. */
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    if (begin->stream == NULL || end->stream == NULL || (begin->flags | end->flags) & cudaEventDisableTiming)
        return cudaErrorInvalidResourceHandle;
    if (begin->stream->done < begin->mark || end->stream->done < end->mark) return cudaErrorNotReady;
    *ms = 0.01f * (float)(end->mark - begin->mark);
    return cudaSuccess;
}

/* The list so far, which `clear` begins anew. */
__attribute__((visibility("default"))) unsigned fake_cuda_log(const char *const **list, int clear)
{
    const unsigned n = n_log;
    if (list != NULL) *list = host_log;
    if (clear) n_log = 0;
    return n;
}

/* ---- graphs ---------------------------------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode)
{
    if (s == NULL || s->into != NULL) return cudaErrorInvalidValue;
    s->into = (struct CUgraph_st *)calloc(1, sizeof *s->into);
    s->into->last = &s->into->first;
    s->into->users = 1;
    s->by = pthread_self();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out)
{
    const struct hold here;
    *out = NULL;
    if (s == NULL || s->into == NULL) return cudaErrorInvalidValue;
    if (!pthread_equal(s->by, pthread_self())) die("a capture ended by another thread", s);
    struct CUgraph_st *g = s->into;
    s->into = NULL;
    if (made_to_fail("capture")) {
        graph_drop(g);
        return cudaErrorStreamCaptureInvalidated;
    }
    *out = g;
    return cudaSuccess;
}

/* The graph's own handle may go at once. */
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long flags)
{
    not_in_capture("cudaGraphInstantiate while a stream is captured");
    if (g == NULL || flags != 0) return cudaErrorInvalidValue;
    if (made_to_fail("instantiate")) return cudaErrorMemoryAllocation;
    *out = (struct CUgraphExec_st *)calloc(1, sizeof **out);
    **out = { g, NULL, 0, 1 };
    g->users++;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    const struct hold here;
    graph_drop(g);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    const struct hold here;
    if (x == NULL) return cudaErrorInvalidValue;
    if (made_to_fail("graph")) return cudaErrorMemoryAllocation;
    note("graph");
    struct work *w = give(s, work::A_GRAPH);
    w->exec = x;
    w->other = x->stream != s ? x->stream : NULL;         /* in one stream it is in order anyway */
    w->mark = x->mark;
    x->stream = s;
    x->mark = s->given;
    x->users++;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    const struct hold here;
    exec_drop(x);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s)
{
    if (bytes == 0) return cudaSuccess;
    const struct hold here;
    if (kind == cudaMemcpyHostToHost) die("a copy of a kind that is not used", to);
    if (kind != cudaMemcpyDeviceToHost) need_device(to, bytes, "a copy that is not within device memory");
    if (kind != cudaMemcpyHostToDevice) need_device(from, bytes, "a copy that is not within device memory");
    const void *host = kind == cudaMemcpyDeviceToHost ? to : from;
    if (kind != cudaMemcpyDeviceToDevice && !inside(host_block, n_host, host, bytes)) die("a copy that is not within pinned memory", host);
    if (kind == cudaMemcpyDeviceToHost) fake_cuda_counts.down += bytes;
    if (kind == cudaMemcpyHostToDevice) fake_cuda_counts.up += bytes;
    struct work *w = give(s, work::A_COPY);
    w->to = to, w->from = from, w->bytes = bytes;
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s)
{
    if (value != 0xff) die("memory is set to what nobody asks for", to);
    const struct hold here;
    need_device(to, bytes, "memory is set that is not the device's");
    struct work *w = give(s, work::A_SET);
    w->to = to, w->bytes = bytes;
    return cudaSuccess;
}

/* ---- cuBLASLt -------------------------------------------------------------------------------------------- */

struct fake_product { cublasOperation_t a, b; cublasLtEpilogue_t epilogue; const void *bias; cudaDataType_t bias_type; };
struct fake_layout { cudaDataType_t type; uint64_t rows, cols; int64_t ld; };
struct fake_preference { uint64_t workspace; uint32_t schemes, align[4]; };
/* An algorithm knows what it was chosen for; columns of B and D may be another number. */
struct fake_algo { uint32_t known, in, out, epilogue; uint64_t n, k; uint32_t align_in, align_out, m; };
static_assert(sizeof(struct fake_algo) <= sizeof(cublasLtMatmulAlgo_t), "fits");

const char *cublasLtGetStatusString(cublasStatus_t s)
{
    return s == CUBLAS_STATUS_SUCCESS ? "success" : s == CUBLAS_STATUS_NOT_SUPPORTED ? "not supported" : "invalid value";
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { *h = (cublasLtHandle_t)malloc(1); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { free(h); return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    *d = (struct fake_product *)calloc(1, sizeof **d);
    (*d)->bias_type = (cudaDataType_t)-1;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { free(d); return CUBLAS_STATUS_SUCCESS; }

static cublasStatus_t set(void *field, size_t size, const void *v, size_t n)
{
    if (n != size) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, v, n);
    return CUBLAS_STATUS_SUCCESS;
}
#define SET(field) set(&(field), sizeof(field), v, n)

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, const void *v, size_t n)
{
    switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return SET(d->a);
    case CUBLASLT_MATMUL_DESC_TRANSB: return SET(d->b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return SET(d->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return SET(d->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return SET(d->bias_type);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type, uint64_t rows, uint64_t cols, int64_t ld)
{
    *l = (struct fake_layout *)malloc(sizeof **l);
    **l = { type, rows, cols, ld };
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { free(l); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a, const void *v, size_t n)
{
    return a == CUBLASLT_MATRIX_LAYOUT_COLS ? SET(l->cols) : SET(l->ld);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = (struct fake_preference *)malloc(sizeof **p);
    **p = { 0, UINT32_MAX, { 256, 256, 256, 256 } };              /* as the real one begins */
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { free(p); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t a, const void *v,
                                                    size_t n)
{
    if (a == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return SET(p->workspace);
    if (a == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) return SET(p->schemes);
    return SET(p->align[a - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES]);
}

/* W^T x as linear.c asks for it, in types that the library has: D of f32, or of the operands' own type; the bias is of D's. */
static cublasStatus_t check(const struct fake_product *d, const struct fake_layout *a, const struct fake_layout *b,
                            const struct fake_layout *c,
                            const struct fake_layout *y)
{
    if (d->a != CUBLAS_OP_T || d->b != CUBLAS_OP_N || a->type != b->type || (y->type != a->type && y->type != CUDA_R_32F) ||
        c->type != y->type)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d->epilogue == CUBLASLT_EPILOGUE_BIAS && d->bias_type != y->type) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a->rows != b->rows || y->rows != a->cols || y->cols != b->cols || c->rows != y->rows ||
        c->cols != y->cols) return CUBLAS_STATUS_INVALID_VALUE;
    if (a->ld < (int64_t)a->rows || b->ld < (int64_t)b->rows || y->ld < (int64_t)y->rows ||
        c->ld != y->ld) return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

/* The first of two splits K and must not be taken. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t y, cublasLtMatmulPreference_t p, int wanted,
                                              cublasLtMatmulHeuristicResult_t *out, int *n_out)
{
    const cublasStatus_t rc = check(d, a, b, c, y);
    if (rc != CUBLAS_STATUS_SUCCESS) return rc;
    if (wanted < 2 || p->schemes != CUBLASLT_REDUCTION_SCHEME_NONE) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (uint32_t i = 0; i < 2; i++) {
        const struct fake_algo f = { 1 + i, (uint32_t)a->type, (uint32_t)y->type, (uint32_t)d->epilogue, a->cols, a->rows,
                                     p->align[0] > p->align[1] ? p->align[0] : p->align[1], p->align[3], (uint32_t)b->cols };
        out[i] = {};
        memcpy(&out[i].algo, &f, sizeof f);
    }
    *n_out = 2;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *a, cublasLtMatmulAlgoConfigAttributes_t what, void *v,
                                                    size_t n,
                                                    size_t *written)
{
    struct fake_algo f;
    memcpy(&f, a, sizeof f);
    const uint32_t value = what == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? (f.known == 1 ? 4 : 1) : 0;
    *written = n;
    return set(v, 4, &value, n);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha, const void *A, cublasLtMatrixLayout_t a,
                              const void *B,
                              cublasLtMatrixLayout_t b, const void *beta, const void *C, cublasLtMatrixLayout_t c, void *D,
                              cublasLtMatrixLayout_t y, const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                                  cudaStream_t s)
{
    struct fake_algo f;
    memcpy(&f, algo, sizeof f);
    const cublasStatus_t rc = check(d, a, b, c, y);
    if (rc != CUBLAS_STATUS_SUCCESS) return rc;
    const struct hold here;
    if (f.known != 2 || f.in != (uint32_t)a->type || f.out != (uint32_t)y->type || f.epilogue != (uint32_t)d->epilogue ||
        f.n != a->cols || f.k != a->rows)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (y->cols == 3 && f.m != 3) return CUBLAS_STATUS_NOT_SUPPORTED;  /* as algorithms may be for few sizes alone */
    const size_t in = a->type == CUDA_R_32F ? 4 : 2, to = y->type == CUDA_R_32F ? 4 : 2;
    if (((uintptr_t)A | (uintptr_t)B | a->ld * in | b->ld * in) % f.align_in || ((uintptr_t)D | y->ld * to) % f.align_out)
        die("a product of less aligned matrices than its algorithm was chosen for", D);
    if (C != D || inside(device_block, n_device, alpha, 4) || inside(device_block, n_device, beta, 4)) return CUBLAS_STATUS_INVALID_VALUE;
    need_device(A, ((a->cols - 1) * a->ld + a->rows) * in, "a product whose W is not within device memory");
    need_device(B, ((b->cols - 1) * b->ld + b->rows) * in, "a product whose x is not within device memory");
    need_device(D, ((y->cols - 1) * y->ld + y->rows) * to, "a product whose y is not within device memory");
    need_device(workspace, workspace_bytes, "a product's workspace is not within device memory");
    const bool biased = d->epilogue == CUBLASLT_EPILOGUE_BIAS;
    if (biased) need_device(d->bias, y->rows * to, "a product's bias is not within device memory");
    note("product");
    struct work *w = give(s, work::A_PRODUCT);
    w->product = { A, B, biased ? d->bias : NULL, D, a->type, y->type, y->rows, y->cols, a->rows, a->ld, b->ld, y->ld,
                   *(const float *)alpha,
                   *(const float *)beta };
    return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"
