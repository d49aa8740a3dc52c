/* kernels/cpu/vec.h - vectors of CPU_VEC floats for the files compiled once per instruction set (isa_*.c).
 * GCC vector extensions, so +, -, *, / and the comparisons are the language's own; a * b + c becomes one fma
 * where the machine has it, in every kernel alike (-ffp-contract=fast). Memory may have any alignment.
 * Comparisons give a `vi` of 0 / -1. Sums across lanes run in one fixed order: halves are added until one is
 * left. */
#ifndef KERNELS_CPU_VEC_H
#define KERNELS_CPU_VEC_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "base/bf16.h"

#if defined(__AVX512F__)
#define CPU_VEC 16
#define VEC_ALL(x) { x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x }
#elif defined(__AVX2__)
#define CPU_VEC 8
#define VEC_ALL(x) { x, x, x, x, x, x, x, x }
#else
#define CPU_VEC 4
#define VEC_ALL(x) { x, x, x, x }
#endif

typedef float vf __attribute__((vector_size(CPU_VEC * 4)));
typedef int32_t vi __attribute__((vector_size(CPU_VEC * 4)));
typedef uint32_t vu __attribute__((vector_size(CPU_VEC * 4)));
typedef uint16_t vh __attribute__((vector_size(CPU_VEC * 2)));    /* CPU_VEC bf16 values */

#define VEC_FN static inline __attribute__((always_inline, unused))

/* ---- memory, constants ------------------------------------------------------------------------------- */

VEC_FN vf vf_load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
VEC_FN void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
VEC_FN vf vf_set1(float x) { return (vf)VEC_ALL(x); }
VEC_FN vf vf_zero(void) { return (vf)VEC_ALL(0.0f); }
VEC_FN vu vu_load(const void *p) { vu v; memcpy(&v, p, sizeof v); return v; }
VEC_FN void vu_store(void *p, vu v) { memcpy(p, &v, sizeof v); }
VEC_FN vu vu_set1(uint32_t x) { return (vu)VEC_ALL(x); }
VEC_FN vi vi_set1(int32_t x) { return (vi)VEC_ALL(x); }

/* 0, 1, 2, ... */
VEC_FN vi vi_iota(void)
{
#if CPU_VEC == 16
    return (vi){ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
#elif CPU_VEC == 8
    return (vi){ 0, 1, 2, 3, 4, 5, 6, 7 };
#else
    return (vi){ 0, 1, 2, 3 };
#endif
}

/* The first n < CPU_VEC floats; the other lanes are 0 (load) or untouched (store). */
VEC_FN vf vf_load_n(const float *p, uint32_t n)
{
    vf v = vf_zero();
    memcpy(&v, p, (size_t)n * 4);
    return v;
}
VEC_FN void vf_store_n(float *p, vf v, uint32_t n) { memcpy(p, &v, (size_t)n * 4); }

/* ---- selection --------------------------------------------------------------------------------------- */

/* mask lane -1: a, 0: b. */
VEC_FN vf vf_select(vi mask, vf a, vf b)
{
#if CPU_VEC == 16
    return (vf)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)b, (__m512)a);
#else
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
#endif
}

/* The larger (smaller) of the two; b where either is NaN. */
VEC_FN vf vf_max(vf a, vf b)
{
#if CPU_VEC == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif CPU_VEC == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
    return vf_select(a > b, a, b);
#endif
}
VEC_FN vf vf_min(vf a, vf b)
{
#if CPU_VEC == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif CPU_VEC == 8
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
    return vf_select(a < b, a, b);
#endif
}
VEC_FN vf vf_abs(vf a) { return (vf)((vu)a & vu_set1(0x7fffffffu)); }

/* ---- across lanes ------------------------------------------------------------------------------------ */

/* Lane i gets lane i ^ n: for n = CPU_VEC / 2 the halves change places. */
#if CPU_VEC == 16
#define VEC_SWAP(v, n)                                                                                         \
    __builtin_shuffle(v, (vi){ 0 ^ n, 1 ^ n, 2 ^ n, 3 ^ n, 4 ^ n, 5 ^ n, 6 ^ n, 7 ^ n, 8 ^ n, 9 ^ n, 10 ^ n,   \
                               11 ^ n, 12 ^ n, 13 ^ n, 14 ^ n, 15 ^ n })
#elif CPU_VEC == 8
#define VEC_SWAP(v, n) __builtin_shuffle(v, (vi){ 0 ^ n, 1 ^ n, 2 ^ n, 3 ^ n, 4 ^ n, 5 ^ n, 6 ^ n, 7 ^ n })
#else
#define VEC_SWAP(v, n) __builtin_shuffle(v, (vi){ 0 ^ n, 1 ^ n, 2 ^ n, 3 ^ n })
#endif

VEC_FN float vf_sum(vf v)
{
#if CPU_VEC >= 16
    v += VEC_SWAP(v, 8);
#endif
#if CPU_VEC >= 8
    v += VEC_SWAP(v, 4);
#endif
    v += VEC_SWAP(v, 2);
    v += VEC_SWAP(v, 1);
    return v[0];
}
VEC_FN float vf_max_of(vf v)
{
#if CPU_VEC >= 16
    v = vf_max(v, VEC_SWAP(v, 8));
#endif
#if CPU_VEC >= 8
    v = vf_max(v, VEC_SWAP(v, 4));
#endif
    v = vf_max(v, VEC_SWAP(v, 2));
    v = vf_max(v, VEC_SWAP(v, 1));
    return v[0];
}

/* ---- bf16 -------------------------------------------------------------------------------------------- */

VEC_FN vf vf_of_bf16(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }
VEC_FN vf vf_load_bf16(const bf16 *p) { vh h; memcpy(&h, p, sizeof h); return vf_of_bf16(h); }

/* The two halves of dwords that hold a pair (low: even index). */
VEC_FN vf vf_low_bf16(vu pair) { return (vf)(pair << 16); }
VEC_FN vf vf_high_bf16(vu pair) { return (vf)(pair & vu_set1(0xffff0000u)); }

/* To nearest, ties to even; NaN stays NaN. (The instruction takes denormals as 0, as the products do.) */
VEC_FN vh vf_to_bf16(vf v)
{
#if defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)v);
#else
    const vu u = (vu)v;
    const vu rounded = (u + vu_set1(0x7fffu) + ((u >> 16) & vu_set1(1))) >> 16;
    const vu is_nan = (vu)(v != v);
    return __builtin_convertvector((rounded & ~is_nan) | (((u >> 16) | vu_set1(0x40u)) & is_nan), vh);
#endif
}
VEC_FN void vf_store_bf16(bf16 *p, vf v) { const vh h = vf_to_bf16(v); memcpy(p, &h, sizeof h); }

/* ---- functions --------------------------------------------------------------------------------------- */

/* e^x for x in -87.33 .. 88.37, about 1 ulp; NaN stays NaN. */
VEC_FN vf vf_exp_inside(vf x)
{
#if CPU_VEC == 16
    const vf n = (vf)_mm512_roundscale_ps((__m512)(x * vf_set1(1.44269504f)), 8);
#else
    const vf magic = vf_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const vf shifted = x * vf_set1(1.44269504f) + magic;
    const vf n = shifted - magic;
#endif
    vf r = x - n * vf_set1(0.693359375f); /* ln 2 in two parts: the first is exact     */
    r = r + n * vf_set1(2.12194440e-4f);
    vf p = vf_set1(1.9875691500e-4f);
    p = p * r + vf_set1(1.3981999507e-3f);
    p = p * r + vf_set1(8.3334519073e-3f);
    p = p * r + vf_set1(4.1665795894e-2f);
    p = p * r + vf_set1(1.6666665459e-1f);
    p = p * r + vf_set1(5.0000001201e-1f);
    p = p * (r * r) + r + vf_set1(1.0f);
#if CPU_VEC == 16
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return p * (vf)(((vi)shifted << 23) + vi_set1(0x3f800000));
#endif
}

VEC_FN vf vf_exp_clamp(vf x) { return vf_min(vf_set1(88.37f), vf_max(vf_set1(-87.33f), x)); }

/* The same for all x: 0 below -87.33 (no denormals), at most e^88.37. */
VEC_FN vf vf_exp(vf x)
{
    const vi tiny = x < vf_set1(-87.33f);
    return (vf)((vi)vf_exp_inside(vf_exp_clamp(x)) & ~tiny);
}

/* erf(x), about 1 ulp: a polynomial near 0, 1 - e^polynomial further out. */
VEC_FN vf vf_erf(vf x)
{
    const vf t = vf_min(vf_set1(4.0f), vf_abs(x)), s = x * x;
    vf far = t * vf_set1(-1.72853470e-5f) + vf_set1(3.83197126e-4f);
    const vf mid = t * vf_set1(-3.88396438e-3f) + vf_set1(2.42546219e-2f);
    far = far * (t * t) + mid;
    far = far * t + vf_set1(-1.06777877e-1f);
    far = far * t + vf_set1(-6.34846687e-1f);
    far = far * t + vf_set1(-1.28717512e-1f);
    far = far * t - t;
    far = vf_set1(1.0f) - vf_exp_inside(far);              /* not below e^-17 */
    far = (vf)((vu)far | ((vu)x & vu_set1(0x80000000u)));
    vf near = vf_set1(-5.96761703e-4f);
    near = near * s + vf_set1(4.99119423e-3f);
    near = near * s + vf_set1(-2.67681349e-2f);
    near = near * s + vf_set1(1.12819925e-1f);
    near = near * s + vf_set1(-3.76125336e-1f);
    near = near * s + vf_set1(1.28379166e-1f);
    near = near * x + x;
    return vf_select(t > vf_set1(0.927734375f), far, near);
}

/* x/2 (1 + erf(x / sqrt 2)). */
VEC_FN vf vf_gelu(vf x) { return vf_set1(0.5f) * x * (vf_set1(1.0f) + vf_erf(x * vf_set1(0.70710678f))); }

/* x / (1 + e^-x). */
VEC_FN vf vf_silu(vf x) { return x / (vf_set1(1.0f) + vf_exp_inside(vf_exp_clamp(-x))); }

#endif
