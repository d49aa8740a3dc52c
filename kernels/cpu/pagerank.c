/* kernels/cpu/pagerank.c - AIM's importance of every token by walks along causal attention; see kernels/ops.h. The matrix of a
 * head is never kept, and yet each of its rows is worked out once: what token j receives comes from tokens i >= j alone, so going
 * from the last row to the first, all walks are done with row i when it is reached and can go on from it together. */
#include <math.h>

#include "kernels/cpu/attention.h"

#define ROWS  8 /* of logits at once */
#define WALKS 5 /* in one pass over the matrix */
#define BLOCK 48 /* keys whose rows stay near the ALU */

struct walk {
    const struct cpu_stream *st;
    const struct pagerank_args *a;
    double *dist; /* [H][n] */
    char *room;   /* [threads] sums [WALKS][n] double, logits [ROWS][n] */
};

static size_t room_bytes(uint32_t n)
{
    return cpu_align((size_t)n * (WALKS * sizeof(double) + ROWS * sizeof(float)));
}

size_t cpu_pagerank_scratch(const struct stream *st, uint32_t H, uint32_t n)
{
    return cpu_align((size_t)H * n * sizeof(double)) + (size_t)threads_count(cpu_stream_of(st)->threads) * room_bytes(n);
}

/* Logits of rows first .. first + n_rows against the keys up to the last of them. */
static void logits(const struct walk *w, uint32_t h, uint32_t first, uint32_t n_rows, float *out)
{
    const struct pagerank_args *a = w->a;
    const float *q[ROWS], *k[BLOCK];
    const uint32_t n = first + n_rows;
    for (uint32_t i = 0; i < n_rows; i++) q[i] = a->q + (first + i) * a->ldq + (size_t)h * a->D;
    for (uint32_t j0 = 0; j0 < n; j0 += BLOCK) {
        const uint32_t m = n - j0 < BLOCK ? n - j0 : BLOCK;
        for (uint32_t j = 0; j < m; j++) k[j] = a->k + (j0 + j) * a->ldk + (size_t)(h / (a->H / a->G)) * a->D;
        w->st->isa->attention->dot_rows(q, n_rows, k, m, a->D, out + j0, a->n);
    }
}

/* dist [n] after `walks` more of one head. */
static void walk_head(const struct walk *w, uint32_t h, uint32_t walks, double *dist, double *sum, float *logit)
{
    const struct cpu_attention_kernels *kern = w->st->isa->attention;
    const uint32_t n = w->a->n;
    for (size_t i = 0; i < (size_t)walks * n; i++) sum[i] = 0;
    for (uint32_t end = n; end > 0;) {
        const uint32_t n_rows = end % ROWS ? end % ROWS : ROWS, first = end - n_rows;
        logits(w, h, first, n_rows, logit);
        for (uint32_t i = end; i-- > first;) {
            float *p = logit + (size_t)(i - first) * n;
            double share[WALKS], from = dist[i];
            const double all = kern->soften(p, i + 1, w->a->scale);
            for (uint32_t t = 0; t < walks; t++) {
                share[t] = from / all;
                from = sum[(size_t)t * n + i] + share[t] * p[i]; /* what came from later rows, and its own */
            }
            dist[i] = from;
            kern->spread(p, i, share, walks, sum, n);
        }
        end = first;
    }
}

static void walk_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    const struct walk *w = arg;
    const uint32_t n = w->a->n;
    double *sum = (double *)(w->room + (size_t)thread * room_bytes(n));
    for (uint32_t h = begin; h < end; h++) {
        double *dist = w->dist + (size_t)h * n;
        for (uint32_t i = 0; i < n; i++) dist[i] = 1.0 / n;
        for (uint32_t t = 0; t < w->a->iterations; t += WALKS)
            walk_head(w, h, w->a->iterations - t < WALKS ? w->a->iterations - t : WALKS, dist, sum,
                      (float *)(sum + (size_t)WALKS * n));
    }
}

status cpu_pagerank(struct stream *st, const struct pagerank_args *a, struct err *e)
{
    if (a->G == 0 || a->H % a->G != 0)
        return err_set(e, E_ARG, "pagerank: %u heads over %u of K", a->H, a->G);
    struct walk w = { cpu_stream_of(st), a, a->scratch, (char *)a->scratch + cpu_align((size_t)a->H * a->n * sizeof(double)) };
    cpu_for(st, a->H, 1, walk_body, &w);
    for (uint32_t i = 0; i < a->n; i++) {
        double sum = 0;
        for (uint32_t h = 0; h < a->H; h++) sum += w.dist[(size_t)a->n * h + i] * w.dist[(size_t)a->n * h + i];
        a->importance[i] = (float)sqrt(sum / a->H);
    }
    return OK;
}
