/* tests/bench/bench.h - the measurements of `make bench`: what a row is, and what rows measure against.
 * A row is a ratio to something measured in the same minute (the peak of the bf16 dot product, a pure read of the
 * same bytes), because clocks and memory of shared machines move; rounds are interleaved and medians taken.
 * Each file bench_*.c has one NULL-terminated table of rows, named in bench.c. */
#ifndef TESTS_BENCH_BENCH_H
#define TESTS_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/ops.h"
#include "model/decoder.h"

struct bench {
    struct stream *st;            /* the CPU with all threads asked for                               */
    int n_threads;
    const char *program;          /* argv[0], for the command of a row                                */
};

/* Two kinds of rows. A ratio has `measured`: its value is the share of a bound that was measured in the same run, and
 * floor what that share must reach. Any other value stands against floor itself. In the JSON of both, `floor` is the
 * bound in the unit of `value`, share how near to it (1 = at it), and target what share must reach. */
struct bench_result {
    double value;
    const char *unit;             /* static text                                                      */
    double floor;                 /* what the value must reach; 0: the row is a measure for others    */
    bool lower_is_better;         /* a time: the value must stay under the floor                      */
    double measured;              /* ratios: the same in a unit of its own, "tokens/s"                */
    const char *measured_unit;    /* NULL: not a ratio                                                */
    char note[512];               /* shapes, absolute numbers, formula of the floor; printed          */
};

struct bench_row {
    const char *name;
    status (*run)(struct bench *b, struct bench_result *r, struct err *e);
};

extern const struct bench_row bench_kernel_rows[];
extern const struct bench_row bench_model_rows[], bench_load_rows[], bench_media_rows[],
    bench_attention_rows[], bench_serve_rows[], bench_policy_rows[], bench_ranks_rows[];
/* What a rank of bench_ranks.c does in a program of its own; the exit status. */
int bench_team(int n_threads);
/* The decoder of prefill_* and decode_*. */
extern const struct decoder_shape bench_model_shape;
void bench_model_close(void);      /* ends what the rows of the model share */
void bench_serve_close(void);

/* ---- what rows measure with -------------------------------------------------------------------------------- */

/* Wall time of a stretch of work that keeps all threads busy. A stretch is undisturbed if the process had nearly all
 * of its CPUs all the time: other programs show up as missing CPU time. */
struct bench_clock { double wall, cpu; };
struct bench_clock bench_clock_now(void);
double bench_seconds(const struct bench *b, struct bench_clock since, bool *undisturbed);

/* Median of the first n samples that are undisturbed, of all if fewer than 3 are. */
double bench_median_of(const double *v, const bool *undisturbed, int n);

/* GFLOP/s of the machine's widest multiply-add (bf16 dot product where it has it) on all threads: the best of five
 * runs of about 1.5 ms. */
double bench_peak(struct bench *b);

/* Seconds a key of ops->query_scores: 32 query rows, 28 heads on 4 KV heads of 128, bf16 pages. */
status bench_scores(struct bench *b, double *seconds, struct err *e);

/* Seconds to read `bytes` at p once, all threads, each its part in order. */
double bench_read(struct bench *b, const void *p, size_t bytes);

double bench_median(double *v, int n);

/* n random floats in -1 .. 1 / bf16 values times `scale`; *out is owned, free() it. */
status bench_random(size_t n, float **out, struct err *e);
status bench_random_bf16(size_t n, float scale, uint16_t **out, struct err *e);

#endif
