/* tests/kernels/simt.cpp - fibers that play the threads of a block; see simt.h. No C++ library is needed. */
#include "tests/kernels/simt.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#undef gridDim
#undef blockDim
#undef blockIdx
#undef threadIdx

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define LEAVE(fake, to, bytes) __sanitizer_start_switch_fiber(fake, to, bytes)
#define ARRIVE(fake)           __sanitizer_finish_switch_fiber(fake, NULL, NULL)
#else
#define LEAVE(fake, to, bytes) (void)0
#define ARRIVE(fake)           (void)0
#endif

struct simt_now simt;
void (*simt_enqueue)(void *, const char *, void (*)(const void *), void *, const void *, size_t, dim3, unsigned, size_t);

/* swapcontext asks the kernel for the signal mask at every switch, which takes ten times the switch. */
#if defined(__x86_64__)
extern "C" void simt_switch(void **save, void *load);
__asm__(".text\n.globl simt_switch\n.type simt_switch,@function\nsimt_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size simt_switch,.-simt_switch\n");
#endif

namespace {

enum { THREADS = 1024, STACK = 1 << 17, PENDING = 512, FIXED = 48 << 10, SHARED_MOST = 227 << 10 };

struct copy { uint32_t to; bool zero; const void *from; };

/* Copies in flight, oldest first: those of closed groups, then those of the open one. */
struct flight {
    struct copy c[PENDING];
    unsigned n, n_groups, group_end[PENDING];
};

struct fiber {
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t context;
#endif
    bool done;
    enum { RUNS, AT_WARP, AT_BLOCK } state;
    unsigned waits_for;           /* until the warp's or the block's round is another */
    struct flight flight;
};

struct warp {
    simt_words word[2][32];       /* of the round, by its parity */
    unsigned round, arrived;
    enum simt_meeting kind;
};

struct fiber *fibers;
unsigned char *stacks;
struct warp *warps;
unsigned current, n_threads, block_round, block_arrived;
const char *kernel_name;
void (*body)(const void *);
const void *body_arg;
#if defined(__x86_64__)
void *home_sp;
#else
ucontext_t home;
#endif
uint64_t random_state;

unsigned below(unsigned n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((random_state >> 32) * n >> 32);
}

void entry()
{
    ARRIVE(NULL);
    body(body_arg);
    fibers[current].done = true;
    for (;;) {
        LEAVE(NULL, NULL, 0);
#if defined(__x86_64__)
        simt_switch(&fibers[current].sp, home_sp);
#else
        swapcontext(&fibers[current].context, &home);
#endif
    }
}

} // namespace

static void to_home()
{
    void *fake = NULL;
    (void)fake;
    LEAVE(&fake, NULL, 0);
#if defined(__x86_64__)
    simt_switch(&fibers[current].sp, home_sp);
#else
    swapcontext(&fibers[current].context, &home);
#endif
    ARRIVE(fake);
}

static void to_fiber(unsigned i)
{
    void *fake = NULL;
    (void)fake;
    current = i;
    simt.threadIdx = dim3(i, 0, 0);
    LEAVE(&fake, stacks + (size_t)i * STACK, STACK);
#if defined(__x86_64__)
    simt_switch(&home_sp, fibers[i].sp);
#else
    swapcontext(&home, &fibers[i].context);
#endif
    ARRIVE(fake);
}

static void fiber_new(unsigned i)
{
    struct fiber *f = &fibers[i];
    f->done = false;
    f->state = fiber::RUNS;
    f->flight.n = f->flight.n_groups = 0;
    unsigned char *stack = stacks + (size_t)i * STACK;
#if defined(__x86_64__)
    void **sp = (void **)(stack + STACK) - 2;              /* entered as if called: 8 off a multiple of 16 */
    sp[0] = (void *)entry;
    sp[1] = NULL;
    sp -= 6;
    memset(sp, 0, 6 * sizeof *sp);
    f->sp = sp;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = stack;
    f->context.uc_stack.ss_size = STACK;
    f->context.uc_link = &home;
    makecontext(&f->context, entry, 0);
#endif
}

void simt_die(const char *what)
{
    fprintf(stderr, "%s, block (%u, %u, %u) of (%u, %u, %u), thread %u of %u: %s\n", kernel_name, simt.blockIdx.x,
            simt.blockIdx.y, simt.blockIdx.z, simt.grid.x, simt.grid.y, simt.grid.z, current, n_threads, what);
    abort();
}

/* ---- meeting --------------------------------------------------------------------------------------------- */

void simt_barrier()
{
    struct fiber *f = &fibers[current];
    if (++block_arrived == n_threads) {
        block_arrived = 0;
        block_round++;
        return;
    }
    f->state = fiber::AT_BLOCK;
    f->waits_for = block_round;
    to_home();
}

const simt_words *simt_meet(enum simt_meeting kind, const uint32_t *mine, unsigned n)
{
    struct fiber *f = &fibers[current];
    struct warp *w = &warps[current / 32];
    if (w->arrived > 0 && w->kind != kind) simt_die("lanes of a warp meet at different instructions");
    w->kind = kind;
    const unsigned round = w->round;
    if (n > 0) memcpy(w->word[round % 2][current % 32], mine, n * sizeof *mine);
    if (++w->arrived == 32) {
        w->arrived = 0;
        w->round++;
    } else {
        f->state = fiber::AT_WARP;
        f->waits_for = round;
        to_home();
    }
    return warps[current / 32].word[round % 2];
}

static bool can_run(unsigned i)
{
    struct fiber *f = &fibers[i];
    if (f->done) return false;
    if (f->state == fiber::AT_WARP && warps[i / 32].round == f->waits_for) return false;
    if (f->state == fiber::AT_BLOCK && block_round == f->waits_for) return false;
    f->state = fiber::RUNS;
    return true;
}

/* Run warps in random order, each as far as it comes alone (or now and then not so far), until all are done. */
static void run_block()
{
    for (unsigned i = 0; i < n_threads; i++) fiber_new(i);
    for (unsigned w = 0; w < n_threads / 32; w++) warps[w].round = warps[w].arrived = 0;
    block_round = block_arrived = 0;
    const unsigned n_warps = n_threads / 32;
    for (;;) {
        bool any = false, left = false;
        const unsigned w0 = below(n_warps), step = below(2) ? 1 : n_warps - 1;
        for (unsigned k = 0, w = w0; k < n_warps; k++, w = (w + step) % n_warps) {
            unsigned turns = below(4) ? UINT32_MAX : 1 + below(3);
            for (bool ran = true; ran && turns > 0; turns--) {
                ran = false;
                const unsigned l0 = below(32), odd = 2 * below(16) + 1;
                for (unsigned j = 0; j < 32; j++) {
                    const unsigned i = 32 * w + (l0 + j * odd) % 32;
                    if (!can_run(i)) continue;
                    to_fiber(i);
                    ran = any = true;
                }
            }
        }
        for (unsigned i = 0; i < n_threads; i++) left |= !fibers[i].done;
        if (!left) break;
        if (!any) simt_die("threads wait for others that have ended or wait elsewhere");
    }
    for (unsigned i = 0; i < n_threads; i++) {
        current = i;
        if (fibers[i].flight.n > 0) simt_die("ends with copies in flight");
    }
}

void simt_run(const char *kernel, void (*call)(const void *), const void *arg, dim3 grid, unsigned threads, size_t dynamic)
{
    const size_t n_blocks = (size_t)grid.x * grid.y * grid.z;
    kernel_name = kernel;
    n_threads = threads;
    if (threads == 0 || threads > THREADS || threads % 32 != 0) simt_die("a block is 32 to 1024 threads, whole warps");
    if (grid.y > 65535 || grid.z > 65535) simt_die("a grid is at most 65535 high and deep");
    if (dynamic > SHARED_MOST) simt_die("more shared memory than an SM gives");
    if (n_blocks == 0) return;
    if (fibers == NULL) {
        fibers = (struct fiber *)calloc(THREADS, sizeof *fibers);
        warps = (struct warp *)calloc(THREADS / 32, sizeof *warps);
        stacks = (unsigned char *)mmap(NULL, (size_t)THREADS * STACK, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        simt.shared = (unsigned char *)aligned_alloc(1024, FIXED + SHARED_MOST);
        const char *seed = getenv("SEED");
        random_state = (seed != NULL ? strtoull(seed, NULL, 10) : 1) * 0x9e3779b97f4a7c15u + 1;
        if (fibers == NULL || warps == NULL || stacks == MAP_FAILED || simt.shared == NULL) simt_die("no memory");
    }
    simt.grid = grid;
    simt.block = dim3(threads, 1, 1);
    simt.fixed_bytes = FIXED;
    simt.shared_bytes = FIXED + dynamic;
    body = call;
    body_arg = arg;
    uint32_t *order = (uint32_t *)malloc(n_blocks * sizeof *order);
    for (size_t i = 0; i < n_blocks; i++) {
        const unsigned j = below((unsigned)i + 1);
        order[i] = order[j];
        order[j] = (uint32_t)i;
    }
    for (size_t i = 0; i < n_blocks; i++) {
        simt.blockIdx = dim3(order[i] % grid.x, order[i] / grid.x % grid.y, order[i] / grid.x / grid.y);
        memset(simt.shared, 0xff, simt.shared_bytes);
        run_block();
    }
    free(order);
}

/* ---- shared memory and copies in flight ------------------------------------------------------------------ */

unsigned char *simt_at(uint32_t address, size_t bytes)
{
    if ((size_t)address + bytes > simt.shared_bytes) simt_die("an address outside shared memory");
    return simt.shared + address;
}

static void land(const struct copy *c)
{
    if (c->zero)
        memset(simt_at(c->to, 16), 0, 16);
    else
        memcpy(simt_at(c->to, 16), c->from, 16);
}

/* Half of the copies land at once, so that one whose place is still being read is seen, the others as late as they may. */
void simt_copy_async(uint32_t to, const void *from, bool zero)
{
    struct flight *q = &fibers[current].flight;
    if (to % 16 != 0 || (uintptr_t)from % 16 != 0) simt_die("a copy of 16 bytes that is not aligned");
    if (q->n == PENDING) simt_die("too many copies in flight for this simulation");
    q->c[q->n++] = (struct copy){ to, zero, from };
    if (below(2)) land(&q->c[q->n - 1]);
    simt_at(to, 16);
}

void simt_copy_commit()
{
    struct flight *q = &fibers[current].flight;
    q->group_end[q->n_groups++] = q->n;
}

void simt_copy_wait(unsigned but)
{
    struct flight *q = &fibers[current].flight;
    if (q->n_groups <= but) return;
    const unsigned groups = q->n_groups - but, n = q->group_end[groups - 1];
    for (unsigned i = 0; i < n; i++) land(&q->c[i]);
    memmove(q->c, q->c + n, (q->n - n) * sizeof *q->c);
    q->n -= n;
    for (unsigned i = 0; i < but; i++) q->group_end[i] = q->group_end[groups + i] - n;
    q->n_groups = but;
}
