/* tests/bench/pool.h - a decoder of any shape out of few random values: each weight is a stretch of them, from another place. */
#ifndef TESTS_BENCH_POOL_H
#define TESTS_BENCH_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "model/decoder.h"

struct bench_pool {
    uint16_t *values;             /* [n] bf16, at least as many as the largest weight has; the caller's, until the decoder is made */
    size_t n;
    const struct decoder_shape *shape;
};

/* Borrows p. Biases are of its first values, norms are ones. */
struct decoder_source bench_pool_source(struct bench_pool *p);

#endif
