/* kernels/cpu/cosine.c - cosines of pairs of rows; see kernels/ops.h and attention.h.
 * The three sums run in one order and only the last step is in double, so that bit-equal rows give exactly 1: the
 * square of an f32 is exact in double, and so is its root. */
#include <math.h>

#include "kernels/cpu/attention.h"

#define FEW_FLOATS 16384            /* under this a second thread costs more than it brings */

struct cosine_job {
    const struct cpu_stream *st;
    const struct cosine_args *a;
};

static void cosine_pairs(void *arg, int thread, int n_threads)
{
    const struct cosine_job *j = arg;
    const struct cosine_args *a = j->a;
    const uint32_t first = (uint32_t)((uint64_t)a->n * (uint32_t)thread / (uint32_t)n_threads);
    const uint32_t last = (uint32_t)((uint64_t)a->n * ((uint32_t)thread + 1) / (uint32_t)n_threads);
    for (uint32_t i = first; i < last; i++) {
        float s[3];
        j->st->isa->attention->dots(a->x + (size_t)a->a[i] * a->d, a->x + (size_t)a->b[i] * a->d, a->d, s);
        const double xx = s[1] > 1e-12f ? s[1] : 1e-12f, yy = s[2] > 1e-12f ? s[2] : 1e-12f;
        a->out[i] = (float)(s[0] / sqrt(xx * yy));
    }
}

status cpu_cosine(struct stream *stream, const struct cosine_args *a, struct err *e)
{
    (void)e;
    const struct cpu_stream *st = cpu_stream_of(stream);
    struct cosine_job j = { st, a };
    if ((size_t)a->n * a->d < FEW_FLOATS) cosine_pairs(&j, 0, 1);
    else threads_run(st->threads, cosine_pairs, &j);
    return OK;
}
