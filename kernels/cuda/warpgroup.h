/* kernels/cuda/warpgroup.h - what kernels for sm_90a are written over beside device.h: products of warpgroups (wgmma), mbarriers,
 * bulk copies. As in device.h the second meaning of these names is in tests/kernels/simt.h.
 *
 * In machine code for other GPUs these names are not there: a kernel has a body #ifdef HAS_WARPGROUPS, and launchers ask
 * warpgroups_here(). Sections are those of the PTX ISA. */
#ifndef KERNELS_CUDA_WARPGROUP_H
#define KERNELS_CUDA_WARPGROUP_H

#include "kernels/cuda/device.h"

enum { WARPGROUP = 4 * WARP };

#ifdef __CUDACC__

/* Was this built for the GPU that the calling thread uses, and has that GPU wgmma? WITH_SM90A: machine code for sm_90a is made. */
static inline bool warpgroups_here()
{
#ifdef WITH_SM90A
    int device = 0, major = 0, minor = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 && minor == 0;
#else
    return false;
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WARPGROUPS 1

/* ---- mbarriers (9.7.13.15): 8 bytes of shared memory, named by address ------------------------------------- */

/* A phase ends when `arrivals` have arrived and the bytes that were expected have come; then the next begins. */
DEVICE void barrier_init(uint32_t at, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
/* By the thread that made barriers, before a __syncthreads after which others and bulk copies use them. */
DEVICE void barriers_published() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(uint32_t at) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
/* Arrives, and adds bytes that bulk copies will bring. */
DEVICE void barrier_expect(uint32_t at, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
/* Until the phase of this parity has ended; phases count from 0, and parity 1 of a new barrier has. */
DEVICE void barrier_wait(uint32_t at, uint32_t parity)
{
    uint32_t done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                     : "=r"(done) : "r"(at), "r"(parity) : "memory");
    } while (done == 0);
}

/* ---- copies and the async proxy ---------------------------------------------------------------------------- */

/* bytes: a multiple of 16, as the addresses are; `barrier` hears of them (9.7.9.25.4.1). */
DEVICE void bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(barrier) : "memory");
}
/* 16 bytes of an operand that a product will find in shared memory. */
DEVICE void store_operand(uint32_t to, const uint4 &v)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
/* By each thread after its store_operand, before the barrier after which products read. */
DEVICE void operands_published() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* Barriers name_0 + i of `threads`, 1 to 15: to wait there, or only to have come. */
template <int name_0> DEVICE void named_sync(uint32_t i, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(name_0 + i), "r"(threads) : "memory");
}
template <int name_0> DEVICE void named_arrive(uint32_t i, uint32_t threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(name_0 + i), "r"(threads) : "memory");
}
/* All threads of a warpgroup; the kernel's BOUNDS say how many it begins with. */
template <int n> DEVICE void registers_fewer() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n)); }
template <int n> DEVICE void registers_more() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n)); }

/* ---- products of a warpgroup (9.7.15) ---------------------------------------------------------------------- */

/* Before the first product, and before those whose registers were written since: what was written then counts. */
DEVICE void product_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Until all but the `but` youngest groups are done: sums may be read, operands written. The compiler does not know what the wait is
 * for: product_hold ties registers to this place. */
template <int but> DEVICE void product_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(but) : "memory"); }
template <int N> DEVICE void product_hold(float (&d)[N][4])
{
    UNROLL for (int n = 0; n < N; n++)
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

#define SUMS_4(d, n)  "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SUMS_16(d, n) SUMS_4(d, n), SUMS_4(d, n + 1), SUMS_4(d, n + 2), SUMS_4(d, n + 3)
#define SUMS_32(d, n) SUMS_16(d, n), SUMS_16(d, n + 4)
#define NAMES_32                                                                                                                        \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_64                                                                                                                        \
    NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61," \
             "%62,%63"

/* d [64, 8 N] (+)= A [64, 16] B [16, 8 N] of bf16: warp w of the four has rows 16 w .. of d, in the fragments of mma.m16n8k16.
 * a, b: operand_at, A of rows and B of columns with k running fastest. */
DEVICE void product(float (&d)[16][4], uint64_t a, uint64_t b, bool sum)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
                 : SUMS_32(d, 0), SUMS_32(d, 8) : "l"(a), "l"(b), "r"((int)sum));
}
/* d += A B, A in registers as mma.m16n8k16 has it, 16 rows a warp; B with its columns running fastest. */
DEVICE void product_n_major(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
                 : SUMS_32(d, 0), SUMS_32(d, 8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
DEVICE void product_n_major(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
                 : SUMS_32(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif
#endif

/* The descriptor of an operand in shared memory in the 128-byte swizzle (9.7.15.5.1.2.2): bits 0-13 the start, 16-29 the leading,
 * 32-45 the stride byte offset, each without its low 4 bits, 62-63 the swizzle, 1. A pattern of the swizzle is 8 rows of 128 bytes
 * at a multiple of 1024; the start is in the first row of one (base offset 0).
 *     k fastest        rows of 64 k; 8 rows to the next 8 rows: stride; leading unused; 16 k further: start + 32 bytes
 *     columns fastest  rows of 64 columns; 8 k to the next 8 k: stride; 64 columns to the next 64: leading */
enum { PATTERN_BYTES = 8 * 128 };
DEVICE uint64_t operand_at(uint32_t start, uint32_t leading, uint32_t stride)
{
    return (uint64_t)(start >> 4 & 0x3fff) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 | (uint64_t)1 << 62;
}

#endif
