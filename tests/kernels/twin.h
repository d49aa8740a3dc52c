/* tests/kernels/twin.h - what the tests of the kernels share: one stream per instruction set of this machine, random
 * numbers from a printed seed (SEED=n repeats), memory full of NaN, and comparison against double references. */
#ifndef TESTS_KERNELS_TWIN_H
#define TESTS_KERNELS_TWIN_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bf16.h"
#include "kernels/ops.h"

#define TWIN __attribute__((unused)) static

/* ---- random numbers ---------------------------------------------------------------------------------------- */

static uint64_t twin_state = 1;

/* Start from SEED or from 1, and say so. */
TWIN void twin_seed(const char *test)
{
    const char *s = getenv("SEED");
    twin_state = (s != NULL ? strtoull(s, NULL, 10) : 1) * 0x9e3779b97f4a7c15u + 1;
    print_message("%s: SEED=%s\n", test, s != NULL ? s : "1");
}
TWIN uint32_t twin_random(void)
{
    twin_state = twin_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(twin_state >> 32);
}
TWIN uint32_t twin_below(uint32_t n) { return (uint32_t)((uint64_t)twin_random() * n >> 32); }
/* -1 .. 1 */
TWIN float twin_float(void) { return (float)(int32_t)twin_random() * 0x1p-31f; }

TWIN void twin_fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = twin_float();
}

/* OMNIDROP_TESTS=small: what takes long under a tool that looks at every access is left out, of each kind of size some stay. */
TWIN bool twin_small(void)
{
    const char *s = getenv("OMNIDROP_TESTS");
    return s != NULL && strcmp(s, "small") == 0;
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

#define TWIN_OK(expr)                                                                                          \
    do {                                                                                                       \
        struct err twin_err = { 0 };                                                                           \
        struct err *const e = &twin_err;                                                                       \
        if ((expr) != OK) fail_msg("%s: %s", #expr, twin_err.text);                                            \
    } while (0)

/* Exactly `bytes` of the heap (so that ASan sees the first byte beyond), every float of it NaN. */
TWIN void *twin_alloc(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    assert_non_null(p);
    memset(p, 0xff, bytes);
    return p;
}
TWIN float *twin_floats(size_t n) { return twin_alloc(n * sizeof(float)); }
TWIN float *twin_random_floats(size_t n)
{
    float *x = twin_floats(n);
    twin_fill(x, n);
    return x;
}

/* ---- streams ----------------------------------------------------------------------------------------------- */

/* threads 0: one per CPU. */
TWIN struct stream *twin_open(const char *isa, int threads)
{
    struct stream *st = NULL;
    const struct stream_options o = { .device = "cpu", .n_threads = threads, .isa = isa };
    TWIN_OK(stream_open(&o, &st, e));
    return st;
}

/* Run body(stream, isa) for every instruction set of this machine. */
TWIN void twin_each(int threads, void (*body)(struct stream *st, const char *isa))
{
    for (const char *const *isa = cpu_isas(); *isa != NULL; isa++) {
        struct stream *st = twin_open(*isa, threads);
        body(st, *isa);
        st->ops->close(&st);
        assert_null(st);
    }
}

/* ---- comparison -------------------------------------------------------------------------------------------- */

/* Largest |got - want| over the largest |want| is at most tol; NaN fails. */
TWIN void twin_near(const float *got, const double *want, size_t n, double tol, const char *what)
{
    double top = 1e-30, worst = 0.0;
    size_t at = 0;
    for (size_t i = 0; i < n; i++)
        if (fabs(want[i]) > top) top = fabs(want[i]);
    for (size_t i = 0; i < n; i++) {
        const double d = fabs(got[i] - want[i]) / top;
        if (d <= worst) continue;
        worst = isnan(d) ? INFINITY : d;
        at = i;
        if (isnan(d)) break;
    }
    if (worst > tol) fail_msg("%s: element %zu of %zu is %.9g, not %.9g: %.3g > %.3g", what, at, n, (double)got[at],
                              want[at], worst, tol);
}

/* Bit for bit. */
TWIN void twin_same(const float *a, const float *b, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof a[i]) != 0)
            fail_msg("%s: element %zu of %zu: %.9g and %.9g", what, i, n, (double)a[i], (double)b[i]);
}

/* ---- operands ---------------------------------------------------------------------------------------------- */

TWIN struct operand twin_operand(struct stream *st, uint32_t rows, uint32_t k, enum dtype compute)
{
    return (struct operand){ twin_alloc(st->ops->operand_bytes(st, rows, k, compute)), rows, k, compute };
}
TWIN struct operand twin_pack(struct stream *st, const float *x, uint32_t rows, uint32_t k, enum dtype compute)
{
    struct operand o = twin_operand(st, rows, k, compute);
    const struct pack_args a = { .x = x, .ldx = k, .rows = rows, .k = k, .out = &o };
    TWIN_OK(st->ops->pack(st, &a, e));
    return o;
}

/* What an operand holds, [rows, k], whatever the device's layout: its product with the identity. */
TWIN float *twin_unpack(struct stream *st, const struct operand *o)
{
    float *identity = calloc((size_t)o->k * o->k, sizeof(float)), *y = twin_floats((size_t)o->rows * o->k);
    for (uint32_t i = 0; i < o->k; i++) identity[(size_t)i * o->k + i] = 1.0f;
    const struct weight_args wa = { .compute = o->compute, .k = o->k, .n_parts = 1,
                                    .part = { { .data = identity, .dtype = DT_F32, .n = o->k } } };
    struct weight *w = NULL;
    TWIN_OK(st->ops->weight_create(st, &wa, &w, e));
    const struct linear_args a = { .x = o, .w = w, .mode = LINEAR_STORE, .y = y, .ldy = o->k };
    TWIN_OK(st->ops->linear(st, &a, e));
    st->ops->weight_destroy(st, &w);
    free(identity);
    return y;
}

TWIN float twin_round_bf16(float x) { return bf16_to_f32(bf16_of_f32(x)); }

#endif
