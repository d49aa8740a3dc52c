/* kernels/cpu/cosine.c - cosines of pairs of rows; see kernels/ops.h and attention.h.
 * The three sums run in one order and only the last step is in double, so that bit-equal rows give exactly
 * 1: the square of an f32 is exact in double, and so is its root. */
#include <math.h>

#include "kernels/cpu/attention.h"

#define FEW_FLOATS 16384 /* floats of one piece of work */

struct cosine_job {
    const struct cpu_stream *st;
    const struct cosine_args *a;
};

static void cosine_pairs(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct cosine_job *j = arg;
    const struct cosine_args *a = j->a;
    for (uint32_t i = begin; i < end; i++) {
        float s[3];
        const float *y = a->y ? a->y : a->x;
        j->st->isa->attention->dots(a->x + (size_t)a->a[i] * a->d, y + (size_t)a->b[i] * a->d, a->d, s);
        const double xx = s[1] > 1e-12f ? s[1] : 1e-12f, yy = s[2] > 1e-12f ? s[2] : 1e-12f;
        a->out[i] = (float)(s[0] / sqrt(xx * yy));
    }
}

status cpu_cosine(struct stream *stream, const struct cosine_args *a, struct err *e)
{
    (void)e;
    struct cosine_job j = { cpu_stream_of(stream), a };
    cpu_for(stream, a->n, FEW_FLOATS / (a->d + 1) + 1, cosine_pairs, &j);
    return OK;
}
