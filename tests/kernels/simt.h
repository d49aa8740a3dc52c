/* tests/kernels/simt.h - the CUDA kernels on a CPU, thread for thread.
 *
 * kernels/cuda/ is written over the primitives of kernels/cuda/device.h. This header is their second meaning: every .cu
 * is also compiled by the C++ compiler with it put in front, and simt.cpp runs a block with one fiber a thread, blocks in
 * random order, warps and lanes in random order between the points where they must meet. So index arithmetic, masks, page
 * tables, barriers and copies in flight are run without a GPU, by the launchers that a GPU would be given.
 *
 * What is caught: threads that do not meet (a barrier that some never reach, lanes at different instructions), copies read
 * before the wait that covers them or made over what is still read (half land at once, half at that wait), shared memory
 * read before it is written (it holds NaN), addresses outside shared memory, vectors that are not aligned, a missing barrier
 * in most runs (the order is random), and with ASan accesses outside global memory. What is not: the memory model between
 * real warps, bank conflicts, speed, what the assembler makes of it.
 *
 * Of sm_90a (kernels/cuda/warpgroup.h): a product of a warpgroup reads its operands at once or as late as the wait that covers it,
 * and its sums are NaN in between; operands are found by their descriptors as the PTX ISA decodes them. The tensor cores and bulk
 * copies see shared memory of their own: what threads store for them is there after operands_published(). A bulk copy lands at once
 * or when its barrier hears of it, which is late and in any order, and until then its place holds NaN. */
#ifndef TESTS_KERNELS_SIMT_H
#define TESTS_KERNELS_SIMT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/kernels.h"

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };

/* The thread that runs. */
extern struct simt_now {
    dim3 grid, block, blockIdx, threadIdx;
    unsigned char *shared;        /* fixed (`SHARED`) first, then dynamic */
    size_t fixed_bytes, shared_bytes;
} simt;
#define gridDim   simt.grid
#define blockDim  simt.block
#define blockIdx  simt.blockIdx
#define threadIdx simt.threadIdx

enum simt_meeting { SIMT_SYNCWARP, SIMT_XOR, SIMT_FROM, SIMT_UP, SIMT_BALLOT, SIMT_LDMATRIX, SIMT_MMA, SIMT_BARRIER, SIMT_PRODUCT,
                    SIMT_PRODUCT_BEGIN, SIMT_PRODUCT_COMMIT, SIMT_PRODUCT_WAIT };
#define SIMT_WORDS 9

extern "C" {
/* Ends the program with a sentence that names kernel, block and thread. */
void simt_die(const char *what) __attribute__((noreturn));
void simt_run(const char *kernel, void (*call)(const void *kernel_and_args), const void *kernel_and_args, dim3 grid,
              unsigned threads, size_t dynamic);
void simt_barrier(void);
/* All 32 lanes come with n words each; what lane i brought is then at [i]. Valid until the lane meets the others again. */
typedef uint32_t simt_words[SIMT_WORDS];
const simt_words *simt_meet(enum simt_meeting kind, const uint32_t *mine, unsigned n);
/* Kernels on a stream (fake_cuda.cpp): args are the kernel's own, arg is freed after the call. NULL: there are no streams. */
extern void (*simt_enqueue)(void *stream, const char *kernel, void (*call)(const void *), void *arg, const void *args, size_t bytes,
                            dim3 grid, unsigned threads, size_t dynamic);
unsigned char *simt_at(uint32_t shared_address, size_t bytes);
void simt_copy_async(uint32_t to, const void *from, bool zero);
void simt_copy_commit(void);
void simt_copy_wait(unsigned but);

/* What sm_90a has. simt_compute: the GPU that launchers find, 80 or 90. */
extern unsigned simt_compute;
void simt_barrier_init(uint32_t at, unsigned arrivals);
void simt_barriers_published(void);
void simt_barrier_arrive(uint32_t at, unsigned bytes);    /* bytes: what copies will bring before the phase ends */
void simt_barrier_wait(uint32_t at, unsigned parity);
void simt_bulk_copy(uint32_t to, const void *from, unsigned bytes, uint32_t barrier);
void simt_operand_stored(uint32_t at);                    /* 16 bytes */
void simt_operands_published(void);
void simt_named_barrier(unsigned name, unsigned threads, bool waits);
/* d [16 of the warp's rows, n] (+)= A [.., 16] B [16, n]. a NULL: A is where a_at says. */
void simt_product(float *d, unsigned n, const uint32_t *a, uint64_t a_at, uint64_t b_at, bool b_n_major, bool sum);
void simt_product_begin(void);
void simt_product_commit(void);
void simt_product_wait(unsigned but);
}

/* ---- device.h's primitives ------------------------------------------------------------------------------- */

#define DEVICE                   static inline
#define METHOD                   inline
#define KERNEL                   static void
#define BOUNDS(threads, blocks)
#define SHARED(type, name)       type &name = *(type *)simt.shared; if (sizeof(type) > simt.fixed_bytes) simt_die("too much SHARED")
#define UNROLL

DEVICE unsigned char *shared_memory() { return simt.shared + simt.fixed_bytes; }
DEVICE uint32_t shared_address(const void *p) { return (uint32_t)((const unsigned char *)p - simt.shared); }

DEVICE float f32_of_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
DEVICE uint32_t bits_of_f32(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
DEVICE uint64_t bits_of_f64(double f) { uint64_t u; memcpy(&u, &f, 8); return u; }
DEVICE uint16_t bf16_of(float f)
{
    const uint32_t u = bits_of_f32(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;          /* as cvt.rn.bf16 does */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
DEVICE uint32_t bf16x2_of(float low, float high) { return bf16_of(low) | (uint32_t)bf16_of(high) << 16; }
DEVICE float exp2_fast(float x) { return exp2f(x); }
DEVICE float rsqrt_of(float x) { return 1.0f / sqrtf(x); }
/* One rounding each, whatever the compiler likes to fuse. */
DEVICE double mul_rn(double a, double b) { volatile double c = a * b; return c; }
DEVICE double add_rn(double a, double b) { volatile double c = a + b; return c; }
DEVICE double div_rn(double a, double b) { return a / b; }

template <class V> DEVICE V load_vector(const void *p)
{
    if ((uintptr_t)p % sizeof(V) != 0) simt_die("a vector that is not aligned is read");
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class V> DEVICE void store_vector(void *p, const V &v)
{
    if ((uintptr_t)p % sizeof(V) != 0) simt_die("a vector that is not aligned is written");
    memcpy(p, &v, sizeof v);
}

DEVICE void __syncthreads() { simt_barrier(); }
DEVICE void __syncwarp() { simt_meet(SIMT_SYNCWARP, NULL, 0); }
DEVICE unsigned simt_lane() { return threadIdx.x % 32; }
template <class T> DEVICE T simt_shuffle(enum simt_meeting kind, T v, unsigned from)
{
    static_assert(sizeof(T) == 4, "words");
    uint32_t u;
    memcpy(&u, &v, 4);
    const simt_words *all = simt_meet(kind, &u, 1);
    memcpy(&v, &all[from % 32][0], 4);
    return v;
}
template <class T> DEVICE T shuffle_xor(T v, unsigned mask) { return simt_shuffle(SIMT_XOR, v, simt_lane() ^ mask); }
DEVICE double shuffle_xor_f64(double v, unsigned mask)
{
    uint64_t u;
    memcpy(&u, &v, 8);
    const uint32_t low = shuffle_xor((uint32_t)u, mask), high = shuffle_xor((uint32_t)(u >> 32), mask);
    u = low | (uint64_t)high << 32;
    memcpy(&v, &u, 8);
    return v;
}
template <class T> DEVICE T shuffle_from(T v, unsigned lane) { return simt_shuffle(SIMT_FROM, v, lane); }
/* Lanes below `by` get their own. */
template <class T> DEVICE T shuffle_up(T v, unsigned by)
{
    return simt_shuffle(SIMT_UP, v, simt_lane() < by ? simt_lane() : simt_lane() - by);
}
DEVICE uint32_t count_in_shared(uint32_t *at) { return (*at)++; }   /* atomic: a fiber is never stopped here */

DEVICE void copy_async(uint32_t to, const void *from, bool zero = false) { simt_copy_async(to, from, zero); }
DEVICE void copy_commit() { simt_copy_commit(); }
template <int but> DEVICE void copy_wait() { simt_copy_wait(but); }

/* Four 8 x 8 matrices of 16-bit words; lane i brings the address of row i % 8 of matrix i / 8. Lane l gets of matrix m
 * words (l / 4, 2 (l % 4)) and the next, or of its transpose. */
DEVICE void simt_ldmatrix(uint32_t *r, uint32_t row, bool transposed)
{
    const unsigned l = simt_lane();
    if (row % 16 != 0) simt_die("ldmatrix: a row that is not aligned");
    const simt_words *all = simt_meet(SIMT_LDMATRIX, &row, 1);
    for (unsigned m = 0; m < 4; m++) {
        uint16_t w[2];
        for (unsigned j = 0; j < 2; j++) {
            const unsigned at = transposed ? 8 * m + 2 * (l % 4) + j : 8 * m + l / 4;
            const unsigned column = transposed ? l / 4 : 2 * (l % 4) + j;
            memcpy(&w[j], simt_at(all[at][0], 16) + 2 * column, 2);
        }
        r[m] = w[0] | (uint32_t)w[1] << 16;
    }
}
DEVICE void ldmatrix(uint32_t *r, uint32_t row) { simt_ldmatrix(r, row, false); }
DEVICE void ldmatrix_transposed(uint32_t *r, uint32_t row) { simt_ldmatrix(r, row, true); }

/* c [16 x 8] += a [16 x 16] b [16 x 8], bf16 with f32 sums: the fragments of mma.m16n8k16. */
DEVICE void mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    const unsigned l = simt_lane();
    const uint32_t mine[6] = { a[0], a[1], a[2], a[3], b0, b1 };
    const simt_words *all = simt_meet(SIMT_MMA, mine, 6);
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
        float sum = c[i];
        for (unsigned k = 0; k < 16; k++) {
            const uint32_t x = all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], y = all[column * 4 + k % 8 / 2][4 + k / 8];
            sum += f32_of_bits(x >> (k % 2 * 16) << 16) * f32_of_bits(y >> (k % 2 * 16) << 16);
        }
        c[i] = sum;
    }
}

/* ---- warpgroup.h's primitives: sm_90a -------------------------------------------------------------------- */

#define HAS_WARPGROUPS 1
static inline bool warpgroups_here() { return simt_compute == 90; }

DEVICE void barrier_init(uint32_t at, uint32_t arrivals) { simt_barrier_init(at, arrivals); }
DEVICE void barriers_published() { simt_barriers_published(); }
DEVICE void barrier_arrive(uint32_t at) { simt_barrier_arrive(at, 0); }
DEVICE void barrier_expect(uint32_t at, uint32_t bytes) { simt_barrier_arrive(at, bytes); }
DEVICE void barrier_wait(uint32_t at, uint32_t parity) { simt_barrier_wait(at, parity); }
DEVICE void bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) { simt_bulk_copy(to, from, bytes, barrier); }
DEVICE void store_operand(uint32_t to, const uint4 &v)
{
    if (to % 16 != 0) simt_die("a vector that is not aligned is written");
    memcpy(simt_at(to, 16), &v, 16);
    simt_operand_stored(to);
}
DEVICE void operands_published() { simt_operands_published(); }
template <int name_0> DEVICE void named_sync(uint32_t i, uint32_t threads) { simt_named_barrier(name_0 + i, threads, true); }
template <int name_0> DEVICE void named_arrive(uint32_t i, uint32_t threads) { simt_named_barrier(name_0 + i, threads, false); }
template <int n> DEVICE void registers_fewer() { static_assert(n % 8 == 0 && n >= 24 && n <= 256, "setmaxnreg"); }
template <int n> DEVICE void registers_more() { static_assert(n % 8 == 0 && n >= 24 && n <= 256, "setmaxnreg"); }
DEVICE void product_begin() { simt_product_begin(); }
DEVICE void product_commit() { simt_product_commit(); }
template <int but> DEVICE void product_wait() { simt_product_wait(but); }
template <int N> DEVICE void product_hold(float (&)[N][4]) {}
template <int N> DEVICE void product(float (&d)[N][4], uint64_t a, uint64_t b, bool sum)
{
    simt_product(&d[0][0], N * 8, NULL, a, b, false, sum);
}
template <int N> DEVICE void product_n_major(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b)
{
    simt_product(&d[0][0], N * 8, a, 0, b, true, true);
}

/* ---- launching ------------------------------------------------------------------------------------------- */

template <class A> struct simt_call_of { void (*kernel)(A); const A *a; };
template <class A> static void simt_call(const void *p)
{
    const struct simt_call_of<A> *c = (const struct simt_call_of<A> *)p;
    c->kernel(*c->a);
}

template <class A>
static status launch(const char *name, void (*kernel)(A), dim3 grid, unsigned threads, size_t dynamic, void *stream, const A &a,
                     struct err *e)
{
    (void)e;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return OK;
    if (stream != NULL) {
        struct later { struct simt_call_of<A> call; A a; } *l = (struct later *)malloc(sizeof *l);
        memcpy((void *)&l->a, (const void *)&a, sizeof a);
        l->call = { kernel, &l->a };
        simt_enqueue(stream, name, simt_call<A>, l, &l->a, sizeof a, grid, threads, dynamic);
        return OK;
    }
    const struct simt_call_of<A> call = { kernel, &a };
    simt_run(name, simt_call<A>, &call, grid, threads, dynamic);
    return OK;
}

#endif
