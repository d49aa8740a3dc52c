/* tests/bench/bench_kernels.c - products and memory: peak_bf16, stream_read, gemm_*. */
#include <stdio.h>
#include <stdlib.h>

#include "base/bf16.h"
#include "base/clock.h"
#include "base/mem.h"
#include "tests/bench/bench.h"

static status run_peak(struct bench *b, struct bench_result *r, struct err *e)
{
    (void)e;
    for (int i = 0; i < 10; i++) {          /* the clock rises and threads find their CPUs */
        const double v = bench_peak(b);
        if (v > r->value) r->value = v;
    }
    r->unit = "GFLOP/s";
    snprintf(r->note, sizeof r->note, "measured, %d threads", b->n_threads);
    return OK;
}

static status run_read(struct bench *b, struct bench_result *r, struct err *e)
{
    enum { ROUNDS = 25 };
    const size_t bytes = (size_t)512 << 20;
    char *p;
    TRY(mem_alloc_aligned(&p, bytes, e));
    for (size_t i = 0; i < bytes; i += 4096) p[i] = 1;
    double v[ROUNDS];
    bool undisturbed[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        const struct bench_clock t = bench_clock_now();
        bench_read(b, p, bytes);
        v[i] = (double)bytes / bench_seconds(b, t, &undisturbed[i]) * 1e-9;
    }
    free(p);
    r->value = bench_median_of(v, undisturbed, ROUNDS);
    r->unit = "GB/s";
    snprintf(r->note, sizeof r->note, "512 MiB, %d threads", b->n_threads);
    return OK;
}

/* ---- products ---------------------------------------------------------------------------------------- */

/* y = x W^T from f32 rows, packing them included; weights come from memory: several copies in turn. */
struct gemm {
    uint32_t rows, n, k, n_copies, next;
    struct weight *w[32];
    float *x, *y;
    void *packed, *scratch;       /* all three in one block, as an engine has it: huge pages          */
};

static void gemm_fini(struct bench *b, struct gemm *g)
{
    for (uint32_t i = 0; i < g->n_copies; i++) b->st->ops->weight_destroy(b->st, &g->w[i]);
    free(g->scratch);
}

static status gemm_init(struct bench *b, struct gemm *g, struct err *e)
{
    const struct ops *ops = b->st->ops;
    const size_t size = (size_t)g->n * g->k;
    uint16_t *values = NULL;
    status s;
    g->n_copies = (uint32_t)(((size_t)288 << 20) / (2 * size)) + 1;
    if (g->n_copies > 32) g->n_copies = 32;
    TRY_GOTO(s, bench_random_bf16(size, 0.05f, &values, e), done);
    struct weight_args wa = {
        .compute = DT_BF16, .k = g->k, .n_parts = 1, .part = { { values, DT_BF16, g->n, NULL, 0 } }
    };
    for (uint32_t i = 0; i < g->n_copies; i++) TRY_GOTO(s, ops->weight_create(b->st, &wa, &g->w[i], e), done);
    const size_t x_bytes = (size_t)g->rows * g->k * 4, y_bytes = (size_t)g->rows * g->n * 4;
    const size_t packed_bytes = ops->operand_bytes(b->st, g->rows, g->k, DT_BF16), least = (size_t)4 << 20;
    TRY_GOTO(s, mem_alloc_aligned(&g->scratch, x_bytes + y_bytes + packed_bytes + least, e), done);
    g->y = g->scratch;
    g->x = (float *)((char *)g->scratch + y_bytes);
    g->packed = (char *)g->x + x_bytes;
    for (size_t i = 0; i < x_bytes / 4; i++) g->x[i] = bf16_to_f32(values[i % size]) * 20.0f;
    memset(g->y, 0, y_bytes);
done:
    free(values);
    return s;
}

/* n products in a row, each with the next copy of the weight. */
static status gemm_run(struct bench *b, struct gemm *g, uint32_t n, struct err *e)
{
    struct operand x = { g->packed, g->rows, g->k, DT_BF16 };
    const struct pack_args pa = { g->x, g->k, g->rows, g->k, &x };
    for (uint32_t i = 0; i < n; i++) {
        const struct linear_args la = { &x, g->w[g->next++ % g->n_copies], LINEAR_STORE, g->y, g->n, NULL };
        TRY(b->st->ops->pack(b->st, &pa, e));
        TRY(b->st->ops->linear(b->st, &la, e));
    }
    return OK;
}

/* Share of the peak, measured before and after each stretch of about 5 ms, and GFLOP/s for the note. */
static status gemm_share(struct bench *b, uint32_t rows, uint32_t n, uint32_t k, double *share,
                         double *gflops, struct err *e)
{
    enum { ROUNDS = 60, ENOUGH = 15 };
    struct gemm g = { .rows = rows, .n = n, .k = k };
    double shares[ROUNDS], speeds[ROUNDS];
    bool undisturbed[ROUNDS];
    const double flops = 2.0 * rows * n * k;
    status s;
    int n_rounds = 0;
    TRY_GOTO(s, gemm_init(b, &g, e), done);
    TRY_GOTO(s, gemm_run(b, &g, g.n_copies, e), done);                  /* first touch */
    const uint32_t n_calls = (uint32_t)(0.02 * 800e9 / flops) + 1;
    for (int n_good = 0; n_rounds < ROUNDS && n_good < ENOUGH; n_rounds++) {
        const double before = bench_peak(b);
        const struct bench_clock t = bench_clock_now();
        TRY_GOTO(s, gemm_run(b, &g, n_calls, e), done);
        const double seconds = bench_seconds(b, t, &undisturbed[n_rounds]);
        const double after = bench_peak(b);
        speeds[n_rounds] = n_calls * flops / seconds * 1e-9;
        shares[n_rounds] = speeds[n_rounds] / (0.5 * (before + after));
        n_good += undisturbed[n_rounds];
    }
    *share = bench_median_of(shares, undisturbed, n_rounds);
    *gflops = bench_median_of(speeds, undisturbed, n_rounds);
done:
    gemm_fini(b, &g);
    return s;
}

/* The worse of a small and a large decoder's shape counts. */
static status run_gemm(struct bench *b, uint32_t rows, double floor, struct bench_result *r, struct err *e)
{
    double share[2], gflops[2];
    TRY(gemm_share(b, rows, 4864, 896, &share[0], &gflops[0], e));
    TRY(gemm_share(b, rows, 18944, 3584, &share[1], &gflops[1], e));
    r->value = share[0] < share[1] ? share[0] : share[1];
    r->unit = "of peak";
    r->floor = floor;
    r->measured = share[0] < share[1] ? gflops[0] : gflops[1];
    r->measured_unit = "GFLOP/s";
    snprintf(r->note, sizeof r->note, "896x4864: %.3f (%.0f GFLOP/s), 3584x18944: %.3f (%.0f)", share[0],
             gflops[0], share[1], gflops[1]);
    return OK;
}

static status run_gemm_m16(struct bench *b, struct bench_result *r, struct err *e)
{
    return run_gemm(b, 16, 0.55, r, e);
}
static status run_gemm_m128(struct bench *b, struct bench_result *r, struct err *e)
{
    return run_gemm(b, 128, 0.87, r, e);
}
static status run_gemm_m512(struct bench *b, struct bench_result *r, struct err *e)
{
    return run_gemm(b, 512, 0.90, r, e);
}
static status run_gemm_m2048(struct bench *b, struct bench_result *r, struct err *e)
{
    return run_gemm(b, 2048, 0.90, r, e);
}

const struct bench_row bench_kernel_rows[] = {
    { "peak_bf16", run_peak },      { "stream_read", run_read },    { "gemm_m16", run_gemm_m16 },
    { "gemm_m128", run_gemm_m128 }, { "gemm_m512", run_gemm_m512 }, { "gemm_m2048", run_gemm_m2048 },
    { NULL, NULL },
};
