/* kernels/cpu/pagerank.c - AIM's importance of every token by walks along causal attention; see kernels/ops.h. The matrix of a
 * head is never kept: each walk works out its rows again, from the maximum and the sum that the first pass stored. */
#include <math.h>

#include "kernels/cpu/attention.h"

struct walk {
    const struct cpu_stream *st;
    const struct pagerank_args *a;
};

size_t cpu_pagerank_scratch(const struct stream *st, uint32_t H, uint32_t n)
{
    (void)st;
    return (size_t)H * n * (4 * sizeof(double) + sizeof(float));
}

/* One head: dist after all walks, in from. */
static void walk_head(const struct walk *w, uint32_t h, double *from, double *to, double *most, double *sum,
                      float *logit)
{
    const struct pagerank_args *a = w->a;
    const float *k = a->k + (size_t)(h / (a->H / a->G)) * a->D;
    for (uint32_t i = 0; i < a->n; i++) from[i] = 1.0 / a->n;
    for (uint32_t t = 0; t < a->iterations; t++) {
        for (uint32_t j = 0; j < a->n; j++) to[j] = 0;
        for (uint32_t i = 0; i < a->n; i++) {
            const float *q = a->q + i * a->ldq + (size_t)h * a->D;
            for (uint32_t j = 0; j <= i; j++)
                logit[j] = a->scale * w->st->isa->attention->dot(q, k + j * a->ldk, a->D);
            if (t == 0) {
                most[i] = logit[0], sum[i] = 0;
                for (uint32_t j = 1; j <= i; j++) most[i] = logit[j] > most[i] ? logit[j] : most[i];
                for (uint32_t j = 0; j <= i; j++) sum[i] += exp(logit[j] - most[i]);
            }
            const double share = from[i] / sum[i];
            for (uint32_t j = 0; j <= i; j++) to[j] += share * exp(logit[j] - most[i]);
        }
        for (uint32_t j = 0; j < a->n; j++) from[j] = to[j];
    }
}

static void walk_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct walk *w = arg;
    const size_t n = w->a->n, H = w->a->H;
    double *all = w->a->scratch;
    for (uint32_t h = begin; h < end; h++) {
        double *own = all + 4 * n * h;
        walk_head(w, h, own, own + n, own + 2 * n, own + 3 * n, (float *)(all + 4 * n * H) + n * h);
    }
}

status cpu_pagerank(struct stream *st, const struct pagerank_args *a, struct err *e)
{
    if (a->G == 0 || a->H % a->G != 0)
        return err_set(e, E_ARG, "pagerank: %u heads over %u of K", a->H, a->G);
    struct walk w = { cpu_stream_of(st), a };
    const double *all = a->scratch;
    cpu_for(st, a->H, 1, walk_body, &w);
    for (uint32_t i = 0; i < a->n; i++) {
        double sum = 0;
        for (uint32_t h = 0; h < a->H; h++)
            sum += all[4 * (size_t)a->n * h + i] * all[4 * (size_t)a->n * h + i];
        a->importance[i] = (float)sqrt(sum / a->H);
    }
    return OK;
}
