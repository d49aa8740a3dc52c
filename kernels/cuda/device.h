/* kernels/cuda/device.h - what kernels are written over, as CUDA has it.
 * The second meaning of the same names is tests/kernels/simt.h, which runs kernels on a CPU: a .cu uses CUDA's own
 * threadIdx, blockIdx, gridDim, blockDim and __syncthreads, what is named here, and nothing else. */
#ifndef KERNELS_CUDA_DEVICE_H
#define KERNELS_CUDA_DEVICE_H

#include <stdint.h>

#include "kernels/cuda/kernels.h"

#define WARP 32

#ifdef __CUDACC__

#define DEVICE                  static __device__ __forceinline__
#define METHOD                  __device__ __forceinline__
#define KERNEL                  static __global__ void
#define BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define SHARED(type, name)      __shared__ type name     /* one a kernel */
#define UNROLL                  _Pragma("unroll")

DEVICE unsigned char *shared_memory()
{
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    return dynamic_shared;
}
DEVICE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

DEVICE float f32_of_bits(uint32_t u) { return __uint_as_float(u); }
DEVICE uint32_t bits_of_f32(float f) { return __float_as_uint(f); }
DEVICE uint64_t bits_of_f64(double f) { return (uint64_t)__double_as_longlong(f); }
DEVICE uint16_t bf16_of(float f)
{
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
DEVICE uint32_t bf16x2_of(float low, float high)
{
    uint32_t u;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
    return u;
}
DEVICE float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float rsqrt_of(float x) { return 1.0f / sqrtf(x); }
DEVICE double mul_rn(double a, double b) { return __dmul_rn(a, b); }
DEVICE double add_rn(double a, double b) { return __dadd_rn(a, b); }
DEVICE double div_rn(double a, double b) { return __ddiv_rn(a, b); }

template <class V> DEVICE V load_vector(const void *p) { return *(const V *)p; }
template <class V> DEVICE void store_vector(void *p, const V &v) { *(V *)p = v; }

template <class T> DEVICE T shuffle_xor(T v, unsigned mask) { return __shfl_xor_sync(~0u, v, mask); }
template <class T> DEVICE T shuffle_from(T v, unsigned lane) { return __shfl_sync(~0u, v, lane); }
template <class T> DEVICE T shuffle_up(T v, unsigned by) { return __shfl_up_sync(~0u, v, by); }
DEVICE double shuffle_xor_f64(double v, unsigned mask) { return __shfl_xor_sync(~0u, v, mask); }
DEVICE uint32_t count_in_shared(uint32_t *at) { return atomicAdd(at, 1u); }

/* 16 bytes, or zeros, to shared memory; read after the copy_wait<but> that leaves at most `but` younger groups in flight and
 * a barrier. */
DEVICE void copy_async(uint32_t to, const void *from, bool zero = false)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(zero ? 0 : 16) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int but> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(but) : "memory"); }

DEVICE void ldmatrix(uint32_t *r, uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
DEVICE void ldmatrix_transposed(uint32_t *r, uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
DEVICE void mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* One kernel with one struct of arguments on a stream (a cudaStream_t). E_DEVICE: it was not taken. */
template <class A>
static status launch(const char *name, void (*kernel)(A), dim3 grid, unsigned threads, size_t dynamic, void *stream, const A &a,
                     struct err *e)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return OK;
    void *args[] = { (void *)&a };
    cudaError_t bad = cudaSuccess;
    if (dynamic > 32 << 10)   /* 48 KiB, less what SHARED takes, needs no asking */
        bad = cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)dynamic);
    if (bad == cudaSuccess)
        bad = cudaLaunchKernel((const void *)kernel, grid, dim3(threads), args, dynamic, (cudaStream_t)stream);
    if (bad == cudaSuccess) return OK;
    return err_set(e, E_DEVICE, "kernel %s on a grid of %u x %u x %u was not launched: %s", name, grid.x, grid.y, grid.z,
                   cudaGetErrorString(bad));
}

#elif !defined(TESTS_KERNELS_SIMT_H)
#error "kernels/cuda/*.cu are compiled by nvcc, or by a C++ compiler with tests/kernels/simt.h put in front"
#endif

/* ---- shared by all kernels ------------------------------------------------------------------------------- */

DEVICE float f32_of(float x) { return x; }
DEVICE float f32_of(uint16_t bf16) { return f32_of_bits((uint32_t)bf16 << 16); }
DEVICE void store(float *p, float x) { *p = x; }
DEVICE void store(uint16_t *p, float x) { *p = bf16_of(x); }

/* Eight values at an address of a multiple of 16 bytes. */
DEVICE void load8(const float *p, float *v)
{
    const float4 a = load_vector<float4>(p), b = load_vector<float4>(p + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
DEVICE void load8(const uint16_t *p, float *v)
{
    const uint4 a = load_vector<uint4>(p);
    const uint32_t u[4] = { a.x, a.y, a.z, a.w };
    UNROLL for (int i = 0; i < 4; i++) {
        v[2 * i] = f32_of_bits(u[i] << 16);
        v[2 * i + 1] = f32_of_bits(u[i] & 0xffff0000u);
    }
}
DEVICE void store8(float *p, const float *v)
{
    const float4 a = { v[0], v[1], v[2], v[3] }, b = { v[4], v[5], v[6], v[7] };
    store_vector(p, a);
    store_vector(p + 4, b);
}
DEVICE void store8(uint16_t *p, const float *v)
{
    const uint4 a = { bf16x2_of(v[0], v[1]), bf16x2_of(v[2], v[3]), bf16x2_of(v[4], v[5]), bf16x2_of(v[6], v[7]) };
    store_vector(p, a);
}

/* The sum over a warp, the same bits in every lane. */
DEVICE float warp_sum(float x)
{
    UNROLL for (int i = WARP / 2; i > 0; i /= 2) x += shuffle_xor(x, i);
    return x;
}

/* The last i with start[i] <= x, start ascending from 0 with n + 1 entries and x < start[n]. */
DEVICE uint32_t part_of(const uint32_t *start, uint32_t n, uint32_t x)
{
    uint32_t low = 0, high = n;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (start[middle] <= x)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static inline uint32_t blocks_of(uint64_t n, uint32_t each) { return (uint32_t)((n + each - 1) / each); }
/* Threads that go over d values eight at a time: whole warps, at most `most`. */
static inline uint32_t threads_of(uint32_t d, uint32_t most)
{
    const uint32_t n = (d / 8 + WARP) / WARP * WARP;
    return n > most ? most : n;
}
static inline bool vectors_fit(uint64_t d, const void *p, const void *q) { return (d | (uintptr_t)p / 2 | (uintptr_t)q / 2) % 8 == 0; }

#endif
