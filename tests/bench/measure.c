/* tests/bench/measure.c - the peaks that rows are held against. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "kernels/cpu/cpu.h"
#include "tests/bench/bench.h"

static struct threads *threads_of(struct bench *b) { return cpu_stream_of(b->st)->threads; }

/* ---- undisturbed time -------------------------------------------------------------------------------- */

struct bench_clock bench_clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (struct bench_clock){ clock_s(), (double)t.tv_sec + 1e-9 * (double)t.tv_nsec };
}

double bench_seconds(const struct bench *b, struct bench_clock since, bool *undisturbed)
{
    const struct bench_clock now = bench_clock_now();
    const double wall = now.wall - since.wall;
    *undisturbed = now.cpu - since.cpu >= 0.99 * wall * b->n_threads;
    return wall;
}

double bench_median_of(const double *v, const bool *undisturbed, int n)
{
    double kept[256];
    int n_kept = 0;
    for (int i = 0; i < n && n_kept < 256; i++)
        if (undisturbed[i]) kept[n_kept++] = v[i];
    if (n_kept < 3)
        for (n_kept = 0; n_kept < n && n_kept < 256; n_kept++) kept[n_kept] = v[n_kept];
    return bench_median(kept, n_kept);
}

/* ---- multiply-add ------------------------------------------------------------------------------------ */

/* Independent accumulators: 16 of 32 registers (12 are 7 % slower on Zen 5: latency), 12 of 16. The
 * instruction is written out so that nothing is hoisted; sums stay finite. */
#define TWELVE(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define SIXTEEN(F) TWELVE(F) F(12) F(13) F(14) F(15)
#define TURNS 400000
#define PEAK(name, isa, bytes, accumulators, count, instruction, flops)                                \
    typedef float name##_vec __attribute__((vector_size(bytes)));                                      \
    __attribute__((target(isa))) static void name(void *arg, int thread, int n)                        \
    {                                                                                                  \
        (void)arg, (void)thread, (void)n;                                                              \
        name##_vec x = { 0 }, c[count] = { { 0 } };                                                    \
        for (long i = 0; i < TURNS; i++) { accumulators(instruction) }                                 \
    }                                                                                                  \
    enum { name##_flops = (flops) * (count) };

#if defined(__x86_64__)
#define DOT_BF16(j) __asm__ volatile("vdpbf16ps %1,%1,%0" : "+v"(c[j]) : "v"(x));
#define FMA(j) __asm__ volatile("vfmadd231ps %1,%1,%0" : "+v"(c[j]) : "v"(x));
#define MUL_ADD(j) __asm__ volatile("mulps %1,%0\n\taddps %1,%0" : "+x"(c[j]) : "x"(x));
PEAK(peak_bf16, "avx512f,avx512bf16", 64, SIXTEEN, 16, DOT_BF16, 64)
PEAK(peak_512, "avx512f", 64, SIXTEEN, 16, FMA, 32)
PEAK(peak_256, "avx2,fma", 32, TWELVE, 12, FMA, 16)
PEAK(peak_plain, "sse2", 16, TWELVE, 12, MUL_ADD, 8)
#else
#define MUL_ADD(j) c[j] = c[j] * x + x; __asm__ volatile("" : "+m"(c[j]));
PEAK(peak_plain, "", 16, TWELVE, 12, MUL_ADD, 8)
#endif

double bench_peak(struct bench *b)
{
    threads_job job = peak_plain;
    double flops = peak_plain_flops, best = 0.0;
#if defined(__x86_64__)
    const char *isa = cpu_stream_of(b->st)->isa->name;
    if (strcmp(isa, "avx512-bf16") == 0) job = peak_bf16, flops = peak_bf16_flops;
    else if (strcmp(isa, "avx512") == 0) job = peak_512, flops = peak_512_flops;
    else if (strcmp(isa, "avx2") == 0) job = peak_256, flops = peak_256_flops;
#endif
    for (int i = 0; i < 5; i++) {
        const double t = clock_s();
        threads_run(threads_of(b), job, NULL);
        const double v = flops * TURNS * b->n_threads / (clock_s() - t) * 1e-9;
        if (v > best) best = v;
    }
    return best;
}

/* ---- reading ----------------------------------------------------------------------------------------- */

struct read_job { const char *p; size_t bytes; };

static void read_part(void *arg, int thread, int n)
{
    typedef uint64_t line __attribute__((vector_size(64), aligned(8)));
    const struct read_job *j = arg;
    const size_t part = j->bytes / (size_t)n / 512 * 512;
    const char *p = j->p + part * (size_t)thread;
    line a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };
    for (size_t i = 0; i + 256 <= part; i += 256) {
        for (size_t k = 0; k < 256; k += 64) __builtin_prefetch(p + i + 8192 + k);
        a ^= *(const line *)(p + i), b ^= *(const line *)(p + i + 64);
        c ^= *(const line *)(p + i + 128), d ^= *(const line *)(p + i + 192);
    }
    a ^= b ^ c ^ d;
    __asm__ volatile("" : : "m"(a));
}

double bench_read(struct bench *b, const void *p, size_t bytes)
{
    struct read_job j = { p, bytes };
    const double t = clock_s();
    threads_run(threads_of(b), read_part, &j);
    return clock_s() - t;
}

/* ---- numbers ----------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, ascending);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

static float next_random(uint32_t *s)
{
    *s = *s * 1664525u + 1013904223u;
    return (float)(int32_t)*s * 0x1p-31f;
}

status bench_random(size_t n, float **out, struct err *e)
{
    TRY(mem_alloc_aligned(out, n * sizeof **out, e));
    uint32_t s = 7;
    for (size_t i = 0; i < n; i++) (*out)[i] = next_random(&s);
    return OK;
}

status bench_random_bf16(size_t n, float scale, uint16_t **out, struct err *e)
{
    TRY(mem_alloc_aligned(out, n * sizeof **out, e));
    uint32_t s = 7;
    for (size_t i = 0; i < n; i++) (*out)[i] = bf16_of_f32(next_random(&s) * scale);
    return OK;
}
