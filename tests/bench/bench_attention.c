/* tests/bench/bench_attention.c - attention over pages: causal prefill of 8192 rows, one decoded row at
 * depth 8192, query scores with selection and gather. 14 query heads on 2 KV heads, one layer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/bench/bench.h"

enum { N = 8192, H = 14, G = 2 };

/* n_copies sequences of N rows in pages, all with the same content, and queries. */
struct paged {
    uint32_t D, n_copies, *page, *visible;
    struct kv_shape shape;
    float *q, *kv;
    void *scratch;
    struct operand out;
};

static void paged_fini(struct bench *b, struct paged *p)
{
    b->st->ops->release(b->st, p->shape.base);
    free(p->page), free(p->visible), free(p->q), free(p->kv), free(p->scratch), free(p->out.data);
}

/* Pages are taken in an order that jumps by 37, so that no two neighbours are neighbours in memory. */
static status paged_init(struct bench *b, struct paged *p, uint32_t D, enum dtype dtype, uint32_t n_copies,
                         struct err *e)
{
    const struct ops *ops = b->st->ops;
    const uint32_t T = ops->page_tokens, n_pages = N / T * n_copies;
    *p = (struct paged){ .D = D, .n_copies = n_copies };
    p->shape = (struct kv_shape){ G, D, dtype, T, ops->page_bytes(b->st, G, D, dtype), NULL };
    TRY(ops->alloc(b->st, n_pages * p->shape.page_bytes, &p->shape.base, e));
    TRY(mem_alloc(&p->page, n_pages, sizeof *p->page, e));
    TRY(mem_alloc(&p->visible, N, sizeof *p->visible, e));
    TRY(bench_random((size_t)N * H * D, &p->q, e));
    TRY(bench_random((size_t)N * 2 * G * D, &p->kv, e));
    TRY(mem_alloc_aligned(&p->scratch, ops->attention_scratch(b->st, H, D, N, N), e));
    p->out = (struct operand){ NULL, N, H * D, dtype };
    TRY(mem_alloc_aligned(&p->out.data, ops->operand_bytes(b->st, N, H * D, dtype), e));
    for (uint32_t i = 0; i < n_pages; i++) p->page[i] = (uint32_t)((uint64_t)i * 37 % n_pages);
    for (uint32_t i = 0; i < N; i++) p->visible[i] = i + 1;
    for (uint32_t c = 0; c < n_copies; c++) {
        const struct kv_view view = { p->page + c * (N / T), N };
        const struct kv_write_args w = { .kv = p->kv,
                                         .ldkv = 2 * (size_t)G * D,
                                         .shape = p->shape,
                                         .n_seqs = 1,
                                         .seq_start = (const uint32_t[]){ 0, N },
                                         .kv_start = (const uint32_t[]){ 0 },
                                         .view = &view };
        TRY(ops->kv_write(b->st, &w, e));
    }
    return OK;
}

/* ---- prefill ------------------------------------------------------------------------------------------- */

/* The N rows as PIECES stretches of 512 rows each, so that a stretch is short enough to stay undisturbed.
 * The share of the whole is flops over the sum of the pieces' time at their own peak. */
static status prefill_share(struct bench *b, uint32_t D, enum dtype dtype, double *share, double *gflops,
                            struct err *e)
{
    enum { PIECES = 16, ROUNDS = 12, ENOUGH = 3 };
    struct paged p;
    const double flops = 4.0 * D * H * ((double)N * (N + 1) / 2);
    double seconds = 0.0, peak_work = 0.0; /* of all pieces: time, and what the peak would have done in it */
    status s;
    TRY_GOTO(s, paged_init(b, &p, D, dtype, 1, e), done);
    const struct kv_view view = { p.page, N };
    for (uint32_t piece = 0; piece < PIECES; piece++) {
        const uint32_t row = piece * (N / PIECES), seq_start[2] = { 0, N / PIECES };
        p.out.rows = N / PIECES;
        const struct attention_args a = { .q = p.q + (size_t)row * H * D,
                                          .ldq = H * D,
                                          .H = H,
                                          .scale = 1.0f / sqrtf((float)D),
                                          .shape = p.shape,
                                          .n_seqs = 1,
                                          .seq_start = seq_start,
                                          .visible = p.visible + row,
                                          .view = &view,
                                          .out = &p.out,
                                          .scratch = p.scratch };
        double time[ROUNDS], work[ROUNDS];
        bool undisturbed[ROUNDS];
        int n = 0;
        for (int n_good = 0; n < ROUNDS && n_good < ENOUGH; n++) {
            const double before = bench_peak(b);
            const struct bench_clock t = bench_clock_now();
            TRY_GOTO(s, b->st->ops->attention(b->st, &a, e), done);
            time[n] = bench_seconds(b, t, &undisturbed[n]);
            work[n] = time[n] * 0.5 * (before + bench_peak(b)) * 1e9;
            n_good += undisturbed[n];
        }
        seconds += bench_median_of(time, undisturbed, n);
        peak_work += bench_median_of(work, undisturbed, n);
    }
    *share = flops / peak_work;
    *gflops = flops / seconds * 1e-9;
done:
    paged_fini(b, &p);
    return s;
}

static status run_prefill(struct bench *b, uint32_t D, enum dtype dtype, double floor, struct bench_result *r,
                          struct err *e)
{
    double gflops;
    TRY(prefill_share(b, D, dtype, &r->value, &gflops, e));
    r->unit = "of peak";
    r->floor = floor;
    r->measured = gflops;
    r->measured_unit = "GFLOP/s";
    snprintf(r->note, sizeof r->note,
             "causal, %d rows, %d/%d heads of %u, %s pages, %.0f GFLOP/s (4 D H n(n+1)/2)", N, H, G, D,
             dtype == DT_F32 ? "f32" : "bf16", gflops);
    return OK;
}

static status run_8192(struct bench *b, struct bench_result *r, struct err *e)
{
    return run_prefill(b, 64, DT_BF16, 0.68, r, e);
}
static status run_8192_d128(struct bench *b, struct bench_result *r, struct err *e)
{
    return run_prefill(b, 128, DT_BF16, 0.76, r, e);
}

/* The f32 peak is half the bf16 one, and its floor half of that. */
static status run_8192_f32(struct bench *b, struct bench_result *r, struct err *e)
{
    return run_prefill(b, 64, DT_F32, 0.25, r, e);
}

/* ---- decode -------------------------------------------------------------------------------------------- */

enum { LAYERS = 24 };

/* One row at depth N in each of the layers: other pages each, together more than any cache. */
static status decode_layers(struct bench *b, struct paged *p, struct err *e)
{
    const uint32_t seq_start[2] = { 0, 1 };
    for (uint32_t l = 0; l < LAYERS; l++) {
        const struct kv_view view = { p->page + l * (N / p->shape.page_tokens), N };
        const struct attention_args a = { .q = p->q,
                                          .ldq = (size_t)H * p->D,
                                          .H = H,
                                          .scale = 0.125f,
                                          .shape = p->shape,
                                          .n_seqs = 1,
                                          .seq_start = seq_start,
                                          .visible = &p->visible[N - 1],
                                          .view = &view,
                                          .out = &p->out,
                                          .scratch = p->scratch };
        TRY(b->st->ops->attention_decode(b->st, &a, e));
    }
    return OK;
}

/* Against a read of the same pages. */
static status run_decode(struct bench *b, struct bench_result *r, struct err *e)
{
    enum { D = 64, ROUNDS = 60, ENOUGH = 15 };
    struct paged p;
    double shares[ROUNDS], speeds[ROUNDS];
    bool undisturbed[ROUNDS];
    int n = 0;
    status s;
    TRY_GOTO(s, paged_init(b, &p, D, DT_BF16, LAYERS, e), done);
    p.out.rows = 1;
    const size_t bytes = LAYERS * (size_t)(N / p.shape.page_tokens) * p.shape.page_bytes;
    for (int n_good = 0; n < ROUNDS && n_good < ENOUGH; n++) {
        bool read_undisturbed;
        const struct bench_clock t0 = bench_clock_now();
        TRY_GOTO(s, decode_layers(b, &p, e), done);
        const double seconds = bench_seconds(b, t0, &undisturbed[n]);
        const struct bench_clock t1 = bench_clock_now();
        bench_read(b, p.shape.base, bytes);
        shares[n] = bench_seconds(b, t1, &read_undisturbed) / seconds;
        speeds[n] = (double)bytes / seconds * 1e-9;
        undisturbed[n] = undisturbed[n] && read_undisturbed;
        n_good += undisturbed[n];
    }
    r->value = bench_median_of(shares, undisturbed, n);
    r->unit = "of read";
    r->floor = 0.80;
    r->measured = bench_median_of(speeds, undisturbed, n);
    r->measured_unit = "GB/s";
    snprintf(r->note, sizeof r->note,
             "one row at depth %d, %d layers, %d/%d heads of %d, bf16: %.1f GB/s of KV", N, LAYERS, H, G, D,
             bench_median_of(speeds, undisturbed, n));
done:
    paged_fini(b, &p);
    return s;
}

/* ---- scores -------------------------------------------------------------------------------------------- */

/* Scores of 8192 keys from 32 query rows, selection of a tenth, gather of the rest (d = 896), against the
 * products of one such layer at 0.9 of the peak: 2 n (d (H + 2 G) D + H D d + 3 d ff), d = 896, ff = 4864. */
static status run_scores(struct bench *b, struct bench_result *r, struct err *e)
{
    enum { D = 64, N_Q = 32, K = N / 10, WIDTH = 896, FF = 4864, ROUNDS = 60, ENOUGH = 15 };
    const struct ops *ops = b->st->ops;
    const double layer =
        2.0 * N * ((double)WIDTH * (H + 2 * G) * D + (double)H * D * WIDTH + 3.0 * WIDTH * FF);
    struct paged p;
    float *partial = NULL, *x = NULL, *y = NULL;
    uint32_t *keep = NULL;
    int32_t *chunk = NULL;
    void *work = NULL;
    double shares[ROUNDS], part[3][ROUNDS];
    bool undisturbed[ROUNDS];
    int n = 0;
    status s;
    TRY_GOTO(s, paged_init(b, &p, D, DT_BF16, 1, e), done);
    TRY_GOTO(s, bench_random(G * N, &partial, e), done);
    TRY_GOTO(s, bench_random((size_t)N * WIDTH, &x, e), done);
    TRY_GOTO(s, bench_random((size_t)N * WIDTH, &y, e), done);
    TRY_GOTO(s, mem_alloc(&keep, N, sizeof *keep, e), done);
    TRY_GOTO(s, mem_alloc(&chunk, N, sizeof *chunk, e), done);
    TRY_GOTO(s, mem_alloc_aligned(&work, ops->select_scratch(b->st, N), e), done);
    for (int i = 0; i < N; i++) chunk[i] = i / 338;
    const struct query_scores_args qa = { .q = p.q,
                                          .ldq = H * D,
                                          .n_q = N_Q,
                                          .H = H,
                                          .scale = 0.125f,
                                          .shape = p.shape,
                                          .view = { p.page, N },
                                          .visible = p.visible + N - N_Q,
                                          .partial = partial,
                                          .scratch = p.scratch };
    const struct select_args sa = { .score = partial,
                                    .chunk = chunk,
                                    .n = N,
                                    .k = K,
                                    .tds = true,
                                    .lambda_div = 0.2,
                                    .max_chunk = N / 338,
                                    .keep = keep,
                                    .scratch = work };
    const struct gather_args ga = { .x = x, .row = keep, .n = N - K, .d = WIDTH, .y = y };
    for (int n_good = 0; n < ROUNDS && n_good < ENOUGH; n++) {
        const double seconds = layer / (0.9e9 * bench_peak(b));
        const struct bench_clock t = bench_clock_now();
        TRY_GOTO(s, ops->query_scores(b->st, &qa, e), done);
        const double t1 = clock_s();
        TRY_GOTO(s, ops->select(b->st, &sa, e), done);
        const double t2 = clock_s();
        TRY_GOTO(s, ops->gather(b->st, &ga, e), done);
        part[0][n] = t1 - t.wall, part[1][n] = t2 - t1, part[2][n] = clock_s() - t2;
        shares[n] = bench_seconds(b, t, &undisturbed[n]) / seconds;
        n_good += undisturbed[n];
    }
    r->value = bench_median_of(shares, undisturbed, n);
    r->unit = "of a layer";
    r->floor = 0.02;
    r->lower_is_better = true;
    snprintf(
        r->note, sizeof r->note,
        "%d keys, %d query rows: scores %.2f, selection %.2f, gather %.2f ms against the products of a 0.5B "
        "layer at 0.9 of the peak",
        N, N_Q, bench_median_of(part[0], undisturbed, n) * 1e3,
        bench_median_of(part[1], undisturbed, n) * 1e3, bench_median_of(part[2], undisturbed, n) * 1e3);
done:
    paged_fini(b, &p);
    free(partial), free(x), free(y), free(keep), free(chunk), free(work);
    return s;
}

/* Half of the heads are measured: twice the time. */
status bench_scores(struct bench *b, double *seconds, struct err *e)
{
    enum { D = 128, N_Q = 32, ROUNDS = 9 };
    struct paged p;
    float *partial = NULL;
    double took[ROUNDS];
    status s;
    TRY_GOTO(s, paged_init(b, &p, D, DT_BF16, 1, e), done);
    TRY_GOTO(s, bench_random(G * N, &partial, e), done);
    const struct query_scores_args a = { .q = p.q, .ldq = H * D, .n_q = N_Q, .H = H, .scale = 1.0f / sqrtf((float)D), .shape = p.shape,
                                         .view = { p.page, N }, .visible = p.visible + N - N_Q, .partial = partial,
                                         .scratch = p.scratch };
    for (int i = 0; i < ROUNDS; i++) {
        const double began = clock_s();
        TRY_GOTO(s, b->st->ops->query_scores(b->st, &a, e), done);
        took[i] = clock_s() - began;
    }
    *seconds = 2 * bench_median(took, ROUNDS) / N;
done:
    paged_fini(b, &p);
    free(partial);
    return s;
}

const struct bench_row bench_attention_rows[] = {
    { "attention_8192", run_8192 },         { "attention_8192_d128", run_8192_d128 },
    { "attention_8192_f32", run_8192_f32 }, { "attention_decode_8192", run_decode },
    { "query_scores", run_scores },         { NULL, NULL },
};
