/* kernels/cpu/pairs.c - means of groups of rows, and what asks for the distances between all rows of a group; see kernels/ops.h.
 * No table of distances is kept: n^2 of them would not fit for an hour of film, so what is needed twice is worked out twice.
 * Every cosine is the one of cosine.c: the products summed in one order, the last step in double. */
#include <math.h>

#include "kernels/cpu/attention.h"

#define FEW_FLOATS 65536 /* floats of one piece of work */

struct pairs {
    const struct cpu_stream *st;
    const struct row_groups *g;
    uint32_t n;
    double *a, *b;  /* [n] each, the op's own    */
    float *norm;    /* [n] x.x                   */
    uint8_t *taken; /* [n]                       */
    double *sum;    /* [threads][d]              */
};

size_t cpu_pair_scratch(const struct stream *st, uint32_t d, size_t n)
{
    return (n + 8) * (2 * sizeof(double) + sizeof(float) + 1) +
           (size_t)threads_count(cpu_stream_of(st)->threads) * d * sizeof(double);
}

static struct pairs pairs_of(struct stream *st, const struct row_groups *g, void *scratch)
{
    struct pairs p = { .st = cpu_stream_of(st), .g = g, .n = g->start[g->n_groups] };
    p.a = scratch;
    p.b = p.a + p.n;
    p.sum = p.b + p.n;
    p.norm = (float *)(p.sum + (size_t)threads_count(p.st->threads) * g->d);
    p.taken = (uint8_t *)(p.norm + p.n);
    return p;
}

static const float *row_of(const struct row_groups *g, uint32_t i)
{
    return g->x + (size_t)g->row[i] * g->d;
}

static float dot(const struct cpu_stream *st, const float *x, const float *y, uint32_t d)
{
    return st->isa->attention->dot(x, y, d);
}

static float norm_of(const struct cpu_stream *st, const float *x, uint32_t d)
{
    const float xx = dot(st, x, x, d);
    return xx > 1e-12f ? xx : 1e-12f;
}

static double cosine(const struct pairs *p, uint32_t i, uint32_t j)
{
    return dot(p->st, row_of(p->g, i), row_of(p->g, j), p->g->d) / sqrt((double)p->norm[i] * p->norm[j]);
}

/* The group that row i of the lists is in. */
static uint32_t group_of(const struct row_groups *g, uint32_t i)
{
    uint32_t low = 0, high = g->n_groups;
    while (high - low > 1) {
        const uint32_t mid = low + (high - low) / 2;
        if (g->start[mid] <= i)
            low = mid;
        else
            high = mid;
    }
    return low;
}

static uint32_t grain_of(uint32_t d, uint64_t rows_each)
{
    const uint64_t each = (uint64_t)(d + 8) * (rows_each + 1);
    return each >= FEW_FLOATS ? 1 : (uint32_t)(FEW_FLOATS / each);
}

static void norms_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct pairs *p = arg;
    for (uint32_t i = begin; i < end; i++) p->norm[i] = norm_of(p->st, row_of(p->g, i), p->g->d);
}

static void norms(struct stream *st, struct pairs *p)
{
    cpu_for(st, p->n, grain_of(p->g->d, 0), norms_body, p);
}

/* ---- means ------------------------------------------------------------------------------------------------ */

struct means_job {
    struct pairs p;
    const struct means_args *a;
};

/* sum of the group's rows, of the rows over their lengths with unit. */
static void sum_group(const struct pairs *p, uint32_t g, bool unit, double *sum)
{
    const uint32_t d = p->g->d;
    for (uint32_t k = 0; k < d; k++) sum[k] = 0;
    for (uint32_t i = p->g->start[g]; i < p->g->start[g + 1]; i++) {
        const float *x = row_of(p->g, i);
        const double over = unit ? 1 / sqrt((double)norm_of(p->st, x, d)) : 1;
        for (uint32_t k = 0; k < d; k++) sum[k] += over * x[k];
    }
}

static void means_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    const struct means_job *j = arg;
    const struct row_groups *rows = &j->a->g;
    double *sum = j->p.sum + (size_t)thread * rows->d;
    for (uint32_t g = begin; g < end; g++) {
        const uint32_t n = rows->start[g + 1] - rows->start[g];
        float *y = j->a->y + (size_t)g * rows->d;
        sum_group(&j->p, g, j->a->unit, sum);
        for (uint32_t k = 0; k < rows->d; k++) y[k] = n ? (float)(sum[k] / n) : 0.0f;
    }
}

status cpu_means(struct stream *st, const struct means_args *a, struct err *e)
{
    (void)e;
    struct means_job j = { .p = pairs_of(st, &a->g, a->scratch), .a = a };
    cpu_for(st, a->g.n_groups, 1, means_body, &j);
    return OK;
}

/* ---- nearest ---------------------------------------------------------------------------------------------- */

struct nearest_job {
    const struct cpu_stream *st;
    const struct nearest_args *a;
    float *norm; /* [rows of y] */
};

static void y_norms_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct nearest_job *j = arg;
    for (uint32_t i = begin; i < end; i++) j->norm[i] = norm_of(j->st, row_of(&j->a->y, i), j->a->y.d);
}

static void nearest_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct nearest_job *j = arg;
    const struct row_groups *gx = &j->a->x, *gy = &j->a->y;
    uint32_t g = group_of(gx, begin);
    for (uint32_t i = begin; i < end; i++) {
        while (gx->start[g + 1] <= i) g++;
        const float *x = row_of(gx, i);
        const double xx = norm_of(j->st, x, gx->d);
        double best = -2;
        uint32_t which = UINT32_MAX;
        for (uint32_t m = gy->start[g]; m < gy->start[g + 1]; m++) {
            const double c = dot(j->st, x, row_of(gy, m), gx->d) / sqrt(xx * j->norm[m]);
            if (which != UINT32_MAX && !(c > best)) continue;
            best = c;
            which = m;
        }
        j->a->best[i] = which == UINT32_MAX ? -1.0f : (float)best;
        j->a->which[i] = which;
    }
}

status cpu_nearest(struct stream *st, const struct nearest_args *a, struct err *e)
{
    if (a->x.d != a->y.d || a->x.n_groups != a->y.n_groups)
        return err_set(e, E_ARG, "nearest: %u groups of width %u against %u of %u", a->x.n_groups, a->x.d,
                       a->y.n_groups, a->y.d);
    struct nearest_job j = { .st = cpu_stream_of(st), .a = a, .norm = a->scratch };
    const uint32_t n_x = a->x.start[a->x.n_groups], n_y = a->y.start[a->y.n_groups];
    cpu_for(st, n_y, grain_of(a->y.d, 0), y_norms_body, &j);
    cpu_for(st, n_x, grain_of(a->x.d, a->x.n_groups ? n_y / a->x.n_groups : 0), nearest_body, &j);
    return OK;
}

/* ---- density peaks ---------------------------------------------------------------------------------------- */

struct density_job {
    struct pairs p; /* a: density, b: the greatest distance of each row */
    const struct density_args *a;
};

/* exp(-mean distance to the k nearest); the nearest are kept in ascending order. */
static void density_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct density_job *j = arg;
    const struct pairs *p = &j->p;
    uint32_t g = group_of(p->g, begin);
    for (uint32_t i = begin; i < end; i++) {
        while (p->g->start[g + 1] <= i) g++;
        double near[OPS_NEIGHBOURS_MAX], most = 0, sum = 0;
        uint32_t n = 0;
        for (uint32_t m = p->g->start[g]; m < p->g->start[g + 1]; m++) {
            if (m == i) continue;
            const double D = 1 - cosine(p, i, m);
            if (D > most) most = D;
            if (n == j->a->k && !(D < near[n - 1])) continue;
            uint32_t at = n < j->a->k ? n++ : n - 1;
            for (; at > 0 && near[at - 1] > D; at--) near[at] = near[at - 1];
            near[at] = D;
        }
        for (uint32_t k = 0; k < n; k++) sum += near[k];
        p->a[i] = n ? exp(-sum / n) : 1;
        p->b[i] = most;
    }
}

static void peak_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct density_job *j = arg;
    const struct pairs *p = &j->p;
    uint32_t g = group_of(p->g, begin);
    for (uint32_t i = begin; i < end; i++) {
        while (p->g->start[g + 1] <= i) g++;
        double least = INFINITY, most = 0;
        for (uint32_t m = p->g->start[g]; m < p->g->start[g + 1]; m++) {
            if (p->b[m] > most) most = p->b[m];
            if (!(p->a[m] > p->a[i])) continue;
            const double D = 1 - cosine(p, i, m);
            if (D < least) least = D;
        }
        j->a->out[i] = (float)(p->a[i] * (least < INFINITY ? least : most));
    }
}

status cpu_density(struct stream *st, const struct density_args *a, struct err *e)
{
    if (a->k == 0 || a->k > OPS_NEIGHBOURS_MAX)
        return err_set(e, E_ARG, "density: %u neighbours, this device takes 1 to %d", a->k,
                       OPS_NEIGHBOURS_MAX);
    struct density_job j = { .p = pairs_of(st, &a->g, a->scratch), .a = a };
    const uint32_t grain = grain_of(a->g.d, a->g.n_groups ? j.p.n / a->g.n_groups : 0);
    norms(st, &j.p);
    cpu_for(st, j.p.n, grain, density_body, &j);
    cpu_for(st, j.p.n, grain, peak_body, &j);
    return OK;
}

/* ---- farthest first --------------------------------------------------------------------------------------- */

struct farthest_job {
    struct pairs p; /* a: least distance to what is chosen, b: key of the first choice */
    const struct farthest_args *a;
    uint32_t group, chosen; /* of the loop inside one group */
    const double *sum;
};

static double weight_of(const struct farthest_job *j, uint32_t i)
{
    return j->a->weight ? (double)j->a->weight[i] : 1;
}

/* The key of row i as the first choice; sum: of the group's rows over their lengths. */
static double first_key(const struct farthest_job *j, uint32_t g, uint32_t i, const double *sum)
{
    const struct pairs *p = &j->p;
    const uint32_t n = p->g->start[g + 1] - p->g->start[g];
    if (j->a->first == FARTHEST_MEAN) {
        const float *x = row_of(p->g, i);
        double all = 0;
        for (uint32_t k = 0; k < p->g->d; k++) all += x[k] * sum[k];
        return n > 1 ? (n - all / sqrt((double)p->norm[i])) / (n - 1) : 0;
    }
    double least = INFINITY;
    for (uint32_t m = p->g->start[g]; m < p->g->start[g + 1]; m++) {
        const double D = m == i ? INFINITY : 1 - cosine(p, i, m);
        if (D < least) least = D;
    }
    return weight_of(j, i) * (n > 1 ? least : 0);
}

static void first_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct farthest_job *j = arg;
    const uint32_t from = j->p.g->start[j->group];
    for (uint32_t i = from + begin; i < from + end; i++) {
        j->p.a[i] = INFINITY;
        j->p.b[i] = first_key(j, j->group, i, j->sum);
    }
}

/* The distances to what was just chosen. */
static void closer_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct farthest_job *j = arg;
    const uint32_t from = j->p.g->start[j->group];
    for (uint32_t i = from + begin; i < from + end; i++) {
        if (j->p.taken[i]) continue;
        const double D = 1 - cosine(&j->p, i, j->chosen);
        if (D < j->p.a[i]) j->p.a[i] = D;
        j->p.b[i] = weight_of(j, i) * j->p.a[i];
    }
}

/* Greatest key of those not taken, NaN last, ties to the earlier. */
static uint32_t greatest(const struct farthest_job *j)
{
    const struct pairs *p = &j->p;
    uint32_t best = UINT32_MAX;
    for (uint32_t i = p->g->start[j->group]; i < p->g->start[j->group + 1]; i++) {
        if (p->taken[i]) continue;
        if (best == UINT32_MAX || p->b[i] > p->b[best] || (isnan(p->b[best]) && !isnan(p->b[i]))) best = i;
    }
    return best;
}

/* One group; st: its loops on all threads, NULL: on this one. */
static void choose_group(struct farthest_job *j, struct stream *st, uint32_t g, uint32_t *pick, double *sum)
{
    const uint32_t n = j->p.g->start[g + 1] - j->p.g->start[g], d = j->p.g->d;
    j->group = g;
    j->sum = sum;
    if (j->a->n_pick[g] == 0) return;
    if (j->a->first == FARTHEST_MEAN) sum_group(&j->p, g, true, sum);
    if (st)
        cpu_for(st, n, grain_of(d, j->a->first == FARTHEST_APART ? n : 0), first_body, j);
    else
        first_body(j, 0, 0, n);
    for (uint32_t k = 0; k < j->a->n_pick[g]; k++) {
        j->chosen = pick[k] = greatest(j);
        j->p.taken[j->chosen] = 1;
        if (k + 1 == j->a->n_pick[g]) break;
        if (st)
            cpu_for(st, n, grain_of(d, 0), closer_body, j);
        else
            closer_body(j, 0, 0, n);
    }
}

static void groups_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    struct farthest_job j = *(const struct farthest_job *)arg;
    uint32_t at = 0;
    for (uint32_t g = 0; g < begin; g++) at += j.a->n_pick[g];
    for (uint32_t g = begin; g < end; g++) {
        choose_group(&j, NULL, g, j.a->pick + at, j.p.sum + (size_t)thread * j.p.g->d);
        at += j.a->n_pick[g];
    }
}

status cpu_farthest(struct stream *st, const struct farthest_args *a, struct err *e)
{
    for (uint32_t g = 0; g < a->g.n_groups; g++)
        if (a->n_pick[g] > a->g.start[g + 1] - a->g.start[g])
            return err_set(e, E_ARG, "farthest: %u to choose of %u", a->n_pick[g],
                           a->g.start[g + 1] - a->g.start[g]);
    struct farthest_job j = { .p = pairs_of(st, &a->g, a->scratch), .a = a };
    norms(st, &j.p);
    memset(j.p.taken, 0, j.p.n);
    if (a->g.n_groups >= 8) { /* enough of them for the threads */
        cpu_for(st, a->g.n_groups, 1, groups_body, &j);
        return OK;
    }
    for (uint32_t g = 0, at = 0; g < a->g.n_groups; at += a->n_pick[g++])
        choose_group(&j, st, g, a->pick + at, j.p.sum);
    return OK;
}

/* ---- merge ------------------------------------------------------------------------------------------------ */

static void merge_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct merge_args *a = arg;
    for (uint32_t i = begin; i < end; i++) {
        const float *own = a->x + (size_t)a->dst[i] * a->d;
        float *y = a->y + (size_t)i * a->d;
        for (uint32_t k = 0; k < a->d; k++) y[k] = a->c0[i] * own[k];
        for (uint32_t j = a->start[i]; j < a->start[i + 1]; j++) {
            const float *x = a->x + (size_t)a->src[j] * a->d, w = a->w[j];
            for (uint32_t k = 0; k < a->d; k++) y[k] += w * x[k];
        }
    }
}

status cpu_merge(struct stream *st, const struct merge_args *a, struct err *e)
{
    (void)e;
    cpu_for(st, a->n, grain_of(a->d, a->n ? a->start[a->n] / a->n : 0), merge_body, (void *)(uintptr_t)a);
    return OK;
}
