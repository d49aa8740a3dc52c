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

enum { THREADS = 1024, STACK = 1 << 17, PENDING = 512, FIXED = 28 << 10, SHARED_MOST = 227 << 10 };
enum { PRODUCTS = 32, KNOWN = 48, STORED = 128, BULKS = 64, NAMED = 16, COLUMNS = 256 };   /* most of each at once */

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
    enum { RUNS, AT_WARP, AT_BLOCK, AT_NAMED, AT_BARRIER } state;
    unsigned waits_for;           /* until the round of the warp, the block or the named barrier, or the barrier's phase is another */
    uint32_t waits_at;            /* the name or the address of the barrier */
    struct flight flight;
    /* Registers that products had, and what they held at the last product_begin. */
    struct { const void *at; unsigned bytes; uint32_t hash; } known[KNOWN];
    unsigned n_known, n_stored, products;
    uint32_t stored[STORED];
};

/* A product of a warp, from its issue to the wait that covers it. */
struct product {
    float *d[32];
    const uint32_t *a[32];        /* NULL: in shared memory */
    uint64_t a_at, b_at;
    unsigned n, group;
    bool b_n_major, sum, has_read;
    float x[16][16], y[16][COLUMNS];   /* A and B, once read */
    float before[16][COLUMNS];    /* what it adds to: of the registers at issue, or of the product before */
};

/* What a warp has in flight, oldest first. */
struct products {
    struct product p[PRODUCTS];
    unsigned n, n_groups, issued, met;
    bool begun;
};

/* In shared memory, by its address. */
struct barrier { int32_t tx : 22; uint32_t phase : 1, published : 1, magic : 8; uint16_t arrivals, pending; };
static_assert(sizeof(struct barrier) == 8, "an mbarrier object is 8 bytes");
enum { MAGIC = 0x5a };

struct bulk { uint32_t to, bytes, barrier; const void *from; bool landed; };

struct warp {
    simt_words word[2][32];       /* of the round, by its parity */
    unsigned round, arrived;
    enum simt_meeting kind;
};

struct fiber *fibers;
unsigned char *stacks;
struct warp *warps;
unsigned current, n_threads, block_round, block_arrived;
struct products *products;            /* [warps] */
unsigned char *async_shared;          /* shared memory as tensor cores and bulk copies see it */
struct bulk bulks[BULKS];
unsigned n_bulks;
enum { AT_ONCE, LATE, MIXED } bulk_mood;   /* when a block's bulk copies are done */
struct { unsigned round, arrived, threads; } named[NAMED];
struct { uint64_t a_at, b_at; } issues[THREADS / 128][PRODUCTS];   /* what the warpgroup's products are, by number */
unsigned n_issues[THREADS / 128];
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
    f->n_known = f->n_stored = f->products = 0;
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
    if (f->state == fiber::AT_NAMED && named[f->waits_at].round == f->waits_for) return false;
    if (f->state == fiber::AT_BARRIER && ((struct barrier *)simt_at(f->waits_at, 8))->phase == f->waits_for) return false;
    f->state = fiber::RUNS;
    return true;
}

static void bulk_done(unsigned i);

/* Run warps in random order, each as far as it comes alone (or now and then not so far), until all are done. */
static void run_block()
{
    for (unsigned i = 0; i < n_threads; i++) fiber_new(i);
    for (unsigned w = 0; w < n_threads / 32; w++) {
        warps[w].round = warps[w].arrived = 0;
        products[w].n = products[w].n_groups = products[w].issued = products[w].met = 0;
        products[w].begun = false;
    }
    block_round = block_arrived = n_bulks = 0;
    const unsigned mood = below(3);
    bulk_mood = mood == 0 ? AT_ONCE : mood == 1 ? LATE : MIXED;
    memset(named, 0, sizeof named);
    memset(n_issues, 0, sizeof n_issues);
    const unsigned n_warps = n_threads / 32;
    for (;;) {
        bool any = false, left = false;
        const unsigned w0 = below(n_warps), step = below(2) ? 1 : n_warps - 1;
        for (unsigned k = 0, w = w0; k < n_warps; k++, w = (w + step) % n_warps) {
            unsigned turns = below(2) ? UINT32_MAX : 1 + below(3);
            if (n_bulks > 0 && bulk_mood == MIXED && below(16) == 0) bulk_done(below(n_bulks)), any = true;
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
        if (!any && n_bulks > 0)
            bulk_done(below(n_bulks));
        else if (!any)
            simt_die("threads wait for others that have ended or wait elsewhere");
    }
    for (unsigned i = 0; i < n_threads; i++) {
        current = i;
        if (fibers[i].flight.n > 0 || n_bulks > 0) simt_die("ends with copies in flight");
        if (products[i / 32].n > 0) simt_die("ends with products in flight");
    }
    for (unsigned i = 0; i < NAMED; i++)
        if (named[i].arrived > 0) simt_die("ends with a named barrier that some have come to");
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
        async_shared = (unsigned char *)malloc(FIXED + SHARED_MOST);
        products = (struct products *)calloc(THREADS / 32, sizeof *products);
        if (fibers == NULL || warps == NULL || stacks == MAP_FAILED || simt.shared == NULL || async_shared == NULL || products == NULL)
            simt_die("no memory");
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
        memset(async_shared, 0xff, simt.shared_bytes);
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

/* ---- sm_90a: barriers and bulk copies -------------------------------------------------------------------- */

unsigned simt_compute = 80;

/* Others may run here. */
static void rest()
{
    if (below(4) == 0) to_home();
}

static struct barrier *barrier_at(uint32_t at)
{
    struct barrier *b = (struct barrier *)simt_at(at, 8);
    if (at % 8 != 0) simt_die("a barrier that is not aligned");
    if (b->magic != MAGIC) simt_die("no barrier was made here, or it was written over");
    return b;
}

static void end_phase(struct barrier *b)
{
    if (b->pending > 0 || b->tx != 0) return;
    b->phase ^= 1;
    b->pending = b->arrivals;
}

void simt_barrier_init(uint32_t at, unsigned arrivals)
{
    if (at % 8 != 0 || arrivals == 0 || arrivals > THREADS) simt_die("a barrier that is not aligned, or for nobody");
    const struct barrier b = { 0, 0, 0, MAGIC, (uint16_t)arrivals, (uint16_t)arrivals };
    memcpy(simt_at(at, 8), &b, 8);
    struct fiber *f = &fibers[current];
    if (f->n_stored == STORED) simt_die("too many stores for this simulation");
    f->stored[f->n_stored++] = at | 1;                            /* to be published: a barrier, not an operand */
}

void simt_barriers_published()
{
    struct fiber *f = &fibers[current];
    for (unsigned i = 0; i < f->n_stored; i++)
        if (f->stored[i] % 2) barrier_at(f->stored[i] - 1)->published = 1, f->stored[i--] = f->stored[--f->n_stored];
}

void simt_barrier_arrive(uint32_t at, unsigned bytes)
{
    struct barrier *b = barrier_at(at);
    if (b->pending == 0) simt_die("more arrive at a barrier than it expects");
    if (b->tx + (int)bytes >= 1 << 20) simt_die("a barrier expects more bytes than it can count");
    b->tx += (int)bytes;
    b->pending--;
    end_phase(b);
    rest();
}

void simt_barrier_wait(uint32_t at, unsigned parity)
{
    struct fiber *f = &fibers[current];
    if (barrier_at(at)->phase != parity) return;
    f->state = fiber::AT_BARRIER;
    f->waits_at = at;
    f->waits_for = parity;
    to_home();
}

static void bulk_land(const struct bulk *b)
{
    memcpy(simt_at(b->to, b->bytes), b->from, b->bytes);
    memcpy(async_shared + b->to, b->from, b->bytes);
}

void simt_bulk_copy(uint32_t to, const void *from, unsigned bytes, uint32_t barrier)
{
    if (to % 16 != 0 || (uintptr_t)from % 16 != 0 || bytes % 16 != 0 || bytes == 0) simt_die("a bulk copy that is not aligned");
    if (!barrier_at(barrier)->published) simt_die("a bulk copy that reports to a barrier nobody was told of");
    if (n_bulks == BULKS) simt_die("too many bulk copies in flight for this simulation");
    struct bulk *b = &bulks[n_bulks++];
    *b = (struct bulk){ to, bytes, barrier, from, bulk_mood == AT_ONCE || below(2) == 0 };
    if (b->landed) {
        bulk_land(b);
        if (bulk_mood == AT_ONCE || (bulk_mood == MIXED && below(2))) bulk_done(n_bulks - 1);
    } else {
        memset(simt_at(to, bytes), 0xff, bytes);
        memset(async_shared + to, 0xff, bytes);
    }
}

/* Copy i of those in flight has landed, and its barrier hears of it. */
static void bulk_done(unsigned i)
{
    const struct bulk b = bulks[i];
    bulks[i] = bulks[--n_bulks];
    if (!b.landed) bulk_land(&b);
    struct barrier *at = barrier_at(b.barrier);
    at->tx -= (int)b.bytes;
    end_phase(at);
}

void simt_operand_stored(uint32_t at)
{
    struct fiber *f = &fibers[current];
    if (f->n_stored == STORED) simt_die("too many stores for this simulation");
    f->stored[f->n_stored++] = at;
}

void simt_operands_published()
{
    struct fiber *f = &fibers[current];
    for (unsigned i = 0; i < f->n_stored; i++)
        if (f->stored[i] % 2 == 0) {
            memcpy(async_shared + f->stored[i], simt_at(f->stored[i], 16), 16);
            f->stored[i--] = f->stored[--f->n_stored];
        }
}

void simt_named_barrier(unsigned name, unsigned threads, bool waits)
{
    if (name == 0 || name >= NAMED || threads % 32 != 0 || threads > n_threads) simt_die("a named barrier that there is not");
    struct fiber *f = &fibers[current];
    if (named[name].arrived > 0 && named[name].threads != threads) simt_die("a named barrier of another number of threads");
    named[name].threads = threads;
    if (++named[name].arrived == threads) {
        named[name].arrived = 0;
        named[name].round++;
        return;
    }
    if (!waits) {
        rest();
        return;
    }
    f->state = fiber::AT_NAMED;
    f->waits_at = name;
    f->waits_for = named[name].round;
    to_home();
}

/* ---- sm_90a: products of a warpgroup --------------------------------------------------------------------- */

static float bf16_at(uint32_t address)
{
    uint16_t h;
    simt_at(address, 2);
    memcpy(&h, async_shared + address, 2);
    return f32_of_bits((uint32_t)h << 16);
}

/* Value (mn, k) of an operand of 16-bit values, mn a row of A or a column of B, where its descriptor says (PTX ISA,
 * "Asynchronous Warpgroup Level Matrix Shared Memory Layout"): bits 0-13 the start address, 16-29 the leading and 32-45 the stride
 * byte offset, all without their low 4 bits, 49-51 the base offset, 62-63 the swizzle: 0 none, 1 of 128 bytes, 2 of 64, 3 of 32.
 *     K-major    8 rows a group, `stride` apart, a row as wide as the swizzle; without it, pieces of 8 k are `leading` apart
 *     MN-major   rows of 16 bytes to the width of the swizzle hold mn; 8 k a group, `stride` apart; the next mn are `leading`
 *                apart; without a swizzle the two change places
 * The swizzle is on the bits of the address: 4-6 are xored with 7-9, of 64 bytes 4-5 with 7-8, of 32 bytes 4 with 7. */
static float operand_value(uint64_t at, unsigned mn, unsigned k, bool mn_major)
{
    const uint32_t start = (uint32_t)(at & 0x3fff) << 4, leading = (uint32_t)(at >> 16 & 0x3fff) << 4;
    const uint32_t stride = (uint32_t)(at >> 32 & 0x3fff) << 4, swizzle = (uint32_t)(at >> 62);
    const uint32_t width = swizzle == 0 ? 16 : 256 >> swizzle, each = width / 2;   /* bytes, values */
    uint32_t address = start;
    if (mn_major && swizzle == 0)
        address += mn / 8 * stride + mn % 8 * 2 + k / 8 * leading + k % 8 * 16;
    else if (mn_major)
        address += mn / each * leading + mn % each * 2 + k / 8 * stride + k % 8 * width;
    else
        address += mn / 8 * stride + mn % 8 * width + (swizzle == 0 ? k / 8 * leading + k % 8 * 2 : k * 2);
    if (swizzle != 0) address ^= (address >> 7 & (width / 16 - 1)) << 4;
    return bf16_at(address);
}

static void check_descriptor(uint64_t at)
{
    const uint32_t swizzle = (uint32_t)(at >> 62), start = (uint32_t)(at & 0x3fff) << 4;
    if ((at & 0x3ff1c000c000c000u) != 0) simt_die("a descriptor with bits that are not 0, or a base offset");
    if (swizzle != 0 && start % (2048u >> swizzle) / 128 != 0) simt_die("a descriptor that starts inside a pattern of the swizzle");
}

/* A [16, 16] and B [16, n] of a warp's product. */
static void read_operands(struct product *p, unsigned warp)
{
    for (unsigned r = 0; r < 16; r++)
        for (unsigned k = 0; k < 16; k++)
            if (p->a[0] != NULL)
                p->x[r][k] = f32_of_bits(p->a[r % 8 * 4 + k % 8 / 2][r / 8 + k / 8 * 2] >> (k % 2 * 16) << 16);
            else
                p->x[r][k] = operand_value(p->a_at, warp % 4 * 16 + r, k, false);
    for (unsigned k = 0; k < 16; k++)
        for (unsigned c = 0; c < p->n; c++) p->y[k][c] = operand_value(p->b_at, c, k, p->b_n_major);
    p->has_read = true;
}

static uint32_t hash_of(const void *at, unsigned bytes)
{
    uint32_t h = 2166136261u, w;
    for (unsigned i = 0; i < bytes; i += 4) memcpy(&w, (const char *)at + i, 4), h = (h ^ w) * 16777619u;
    return h;
}

static bool in_flight(const struct products *q, unsigned lane, const void *at)
{
    for (unsigned i = 0; i < q->n; i++)
        if (q->p[i].d[lane] == at || q->p[i].a[lane] == at) return true;
    return false;
}

/* Registers that a product takes are those that the last product_begin saw. */
static void check_register(const struct products *q, unsigned lane, const void *at, unsigned bytes)
{
    struct fiber *f = &fibers[current / 32 * 32 + lane];
    if (in_flight(q, lane, at)) return;
    for (unsigned i = 0; i < f->n_known; i++)
        if (f->known[i].at == at) {
            if (f->known[i].hash != hash_of(at, bytes)) simt_die("registers of a product were written after product_begin");
            return;
        }
    if (f->n_known == KNOWN) simt_die("too many registers in products for this simulation");
    f->known[f->n_known].at = at;
    f->known[f->n_known].bytes = bytes;
    f->known[f->n_known++].hash = hash_of(at, bytes);
}

/* The first lane back from a meeting does what the warp does. */
static bool first_back(struct products *q)
{
    const unsigned mine = ++fibers[current].products;
    if (q->met >= mine) return false;
    q->met = mine;
    return true;
}

void simt_product_begin()
{
    struct products *q = &products[current / 32];
    simt_meet(SIMT_PRODUCT_BEGIN, NULL, 0);
    if (!first_back(q)) return;
    q->begun = true;
    for (unsigned l = 0; l < 32; l++) {
        struct fiber *f = &fibers[current / 32 * 32 + l];
        for (unsigned i = 0; i < f->n_known; i++) f->known[i].hash = hash_of(f->known[i].at, f->known[i].bytes);
    }
}

/* Where row r of the warp's 16, column c lies: lane (r % 8) 4 + c % 8 / 2, register c / 8 * 4 + r / 8 * 2 + c % 2. */
static float *sum_of(const struct product *p, unsigned r, unsigned c)
{
    return p->d[r % 8 * 4 + c % 8 / 2] + c / 8 * 4 + r / 8 * 2 + c % 2;
}

void simt_product(float *d, unsigned n, const uint32_t *a, uint64_t a_at, uint64_t b_at, bool b_n_major, bool sum)
{
    struct products *q = &products[current / 32];
    const uint64_t where[4] = { (uintptr_t)d, (uintptr_t)a, a_at, b_at };
    uint32_t mine[SIMT_WORDS];
    memcpy(mine, where, sizeof where);
    mine[8] = n | (uint32_t)b_n_major << 16 | (uint32_t)sum << 17;
    const simt_words *all = simt_meet(SIMT_PRODUCT, mine, SIMT_WORDS);
    for (unsigned l = 0; l < 32; l++)
        if (memcmp(&all[l][4], &mine[4], 5 * sizeof *mine) != 0) simt_die("lanes of a warp at different products");
    if (!first_back(q)) return;
    if (n == 0 || n > COLUMNS || n % 8 != 0) simt_die("a product is of 8 to 256 columns");
    if (!q->begun) simt_die("a product before product_begin, or after a wait and before the next");
    if (q->n == PRODUCTS) simt_die("too many products in flight for this simulation");
    if (a == NULL) check_descriptor(a_at);
    check_descriptor(b_at);
    const unsigned group = current / 128, number = q->issued++;
    if (number >= n_issues[group] + PRODUCTS - 1) simt_die("a warp is far ahead of its warpgroup");
    if (number == n_issues[group])
        issues[group][number % PRODUCTS] = { a_at, b_at }, n_issues[group]++;
    else if (n_issues[group] - number <= PRODUCTS &&
             (issues[group][number % PRODUCTS].a_at != a_at || issues[group][number % PRODUCTS].b_at != b_at))
        simt_die("warps of a warpgroup at different products");
    struct product *p = &q->p[q->n];
    for (unsigned l = 0; l < 32; l++) {
        uint64_t at[2];
        memcpy(at, all[l], sizeof at);
        p->d[l] = (float *)(uintptr_t)at[0];
        p->a[l] = (const uint32_t *)(uintptr_t)at[1];
        if (sum) check_register(q, l, p->d[l], n * 2);
        if (a != NULL) check_register(q, l, p->a[l], 16);
    }
    const bool chained = in_flight(q, current % 32, d);
    for (unsigned r = 0; r < 16 && !chained; r++)
        for (unsigned c = 0; c < n; c++) {
            float *v = sum_of(p, r, c);
            p->before[r][c] = *v;
            memset(v, 0xff, sizeof *v);
        }
    p->a_at = a_at, p->b_at = b_at, p->n = n, p->group = q->n_groups, p->b_n_major = b_n_major, p->sum = sum, p->has_read = false;
    q->n++;
    if (below(2)) read_operands(p, current / 32);
}

void simt_product_commit()
{
    struct products *q = &products[current / 32];
    simt_meet(SIMT_PRODUCT_COMMIT, NULL, 0);
    if (first_back(q)) q->n_groups++;
}

/* The oldest product is done: its sums are in its registers, or go into the next product on them. */
static void product_lands(struct products *q, unsigned warp)
{
    struct product *p = &q->p[0], *next = NULL;
    if (!p->has_read) read_operands(p, warp);
    for (unsigned i = q->n - 1; i > 0; i--)
        if (q->p[i].d[0] == p->d[0]) next = &q->p[i];
    if (next != NULL && next->n != p->n) simt_die("products of different shapes on the same registers, without a wait");
    for (unsigned r = 0; r < 16; r++) {
        float *v = p->before[r];
        if (!p->sum) memset(v, 0, p->n * sizeof *v);
        for (unsigned k = 0; k < 16; k++)
            for (unsigned c = 0; c < p->n; c++) v[c] += p->x[r][k] * p->y[k][c];
        if (next != NULL) memcpy(next->before[r], v, p->n * sizeof *v);
        for (unsigned c = 0; c < p->n && next == NULL; c++) {
            uint32_t u;
            memcpy(&u, sum_of(p, r, c), 4);
            if (u != UINT32_MAX) simt_die("the sums of a product in flight were written");
            *sum_of(p, r, c) = v[c];
        }
    }
    memmove(q->p, q->p + 1, --q->n * sizeof *q->p);
}

void simt_product_wait(unsigned but)
{
    const unsigned warp = current / 32;
    struct products *q = &products[warp];
    rest();
    simt_meet(SIMT_PRODUCT_WAIT, NULL, 0);
    if (!first_back(q)) return;
    q->begun = false;
    while (q->n > 0 && q->p[0].group + but < q->n_groups) product_lands(q, warp);
}
