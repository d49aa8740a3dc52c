/* kernels/cpu/pairs.c - means of groups of rows, and what asks for the distances between all rows of a group; see kernels/ops.h.
 * No table of distances is kept: n^2 of them would not fit for an hour of film. Rows meet in blocks that the caches hold, so that
 * memory is read once a block. Every cosine is the one of cosine.c: the products summed in one order, the last step in double; so
 * no bit depends on which pairs are looked at together, or left out because they can not matter. */
#include <math.h>

#include "kernels/cpu/attention.h"

#define FEW_FLOATS 65536 /* floats of one piece of work */
#define BLOCK      24    /* rows that meet as many others at once */
#define NEAR       16    /* nearest rows that density remembers of each */
#define AHEAD      16    /* rows that farthest brings up to date at once */
#define LARGE      400   /* rows of a lone group whose pairs meet only once */

struct pairs {
    const struct cpu_stream *st;
    const struct row_groups *g;
    uint32_t n;
    double *a, *b;  /* [n] each, the op's own    */
    float *norm;    /* [n] x.x                   */
    uint32_t *near; /* [n][NEAR]                 */
    double *far;    /* [n][NEAR], of density     */
    uint32_t *count; /* [n], likewise            */
    uint8_t *taken; /* [n]                       */
    double *sum;    /* [threads][d]              */
};

size_t cpu_pair_scratch(const struct stream *st, uint32_t d, size_t n)
{
    return (n + 8) * ((2 + NEAR) * sizeof(double) + sizeof(float) + (NEAR + 1) * sizeof(uint32_t) + 1) +
           (size_t)threads_count(cpu_stream_of(st)->threads) * d * sizeof(double);
}

static struct pairs pairs_of(struct stream *st, const struct row_groups *g, void *scratch)
{
    struct pairs p = { .st = cpu_stream_of(st), .g = g, .n = g->start[g->n_groups] };
    p.a = scratch;
    p.b = p.a + p.n;
    p.sum = p.b + p.n;
    p.far = p.sum + (size_t)threads_count(p.st->threads) * g->d;
    p.norm = (float *)(p.far + (size_t)NEAR * p.n);
    p.near = (uint32_t *)(p.norm + p.n);
    p.count = p.near + (size_t)NEAR * p.n;
    p.taken = (uint8_t *)(p.count + p.n);
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

/* 1 - cos of rows i and j, whose product is known. */
static double distance(const struct pairs *p, float xy, uint32_t i, uint32_t j)
{
    return 1 - xy / sqrt((double)p->norm[i] * p->norm[j]);
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

static uint32_t at_most(uint32_t n, uint32_t most)
{
    return n < most ? n : most;
}

/* Products of up to BLOCK rows with up to BLOCK others. */
struct block {
    const float *x[BLOCK], *y[BLOCK];
    float xy[BLOCK][BLOCK];
};

static void meet(const struct cpu_stream *st, struct block *b, uint32_t n_x, uint32_t n_y, uint32_t d)
{
    st->isa->attention->dot_rows(b->x, n_x, b->y, n_y, d, b->xy[0], BLOCK);
}

/* With the rows of g from m on, as many as fit and come before `end`. Returns how many. */
static uint32_t meet_from(const struct cpu_stream *st, struct block *b, uint32_t n_x, const struct row_groups *g, uint32_t m,
                          uint32_t end)
{
    const uint32_t n_y = at_most(end - m, BLOCK);
    for (uint32_t k = 0; k < n_y; k++) b->y[k] = row_of(g, m + k);
    meet(st, b, n_x, n_y, g->d);
    return n_y;
}

/* Rows begin .. end of the lists, at most BLOCK at once and of one group. */
static void by_blocks(const struct row_groups *rows, uint32_t begin, uint32_t end,
                      void (*block)(const void *job, uint32_t g, uint32_t i, uint32_t n), const void *job)
{
    uint32_t g = group_of(rows, begin);
    for (uint32_t i = begin, n; i < end; i += n) {
        while (rows->start[g + 1] <= i) g++;
        n = at_most(at_most(end, rows->start[g + 1]) - i, BLOCK);
        block(job, g, i, n);
    }
}

static uint32_t grain_of(uint32_t d, uint64_t rows_each)
{
    const uint64_t each = (uint64_t)(d + 8) * (rows_each + 1);
    return each >= FEW_FLOATS ? 1 : (uint32_t)(FEW_FLOATS / each);
}

/* The same of rows that meet others by blocks. */
static uint32_t block_grain(uint32_t d, uint64_t rows_each)
{
    const uint32_t n = grain_of(d, rows_each);
    return n < BLOCK ? BLOCK : n;
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

/* n rows of x from i on against all of y in their group g. */
static void nearest_block(const void *job, uint32_t g, uint32_t i, uint32_t n)
{
    const struct nearest_job *j = job;
    const struct row_groups *gx = &j->a->x, *gy = &j->a->y;
    struct block b;
    double xx[BLOCK], best[BLOCK];
    uint32_t which[BLOCK];
    for (uint32_t r = 0; r < n; r++) {
        b.x[r] = row_of(gx, i + r);
        xx[r] = norm_of(j->st, b.x[r], gx->d);
        best[r] = -2;
        which[r] = UINT32_MAX;
    }
    for (uint32_t m = gy->start[g], n_y; m < gy->start[g + 1]; m += n_y) {
        n_y = meet_from(j->st, &b, n, gy, m, gy->start[g + 1]);
        for (uint32_t r = 0; r < n; r++)
            for (uint32_t k = 0; k < n_y; k++) {
                const double c = b.xy[r][k] / sqrt(xx[r] * j->norm[m + k]);
                if (which[r] != UINT32_MAX && !(c > best[r])) continue;
                best[r] = c;
                which[r] = m + k;
            }
    }
    for (uint32_t r = 0; r < n; r++) {
        j->a->best[i + r] = which[r] == UINT32_MAX ? -1.0f : (float)best[r];
        j->a->which[i + r] = which[r];
    }
}

static void nearest_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct nearest_job *j = arg;
    by_blocks(&j->a->x, begin, end, nearest_block, j);
}

status cpu_nearest(struct stream *st, const struct nearest_args *a, struct err *e)
{
    if (a->x.d != a->y.d || a->x.n_groups != a->y.n_groups)
        return err_set(e, E_ARG, "nearest: %u groups of width %u against %u of %u", a->x.n_groups, a->x.d,
                       a->y.n_groups, a->y.d);
    struct nearest_job j = { .st = cpu_stream_of(st), .a = a, .norm = a->scratch };
    const uint32_t n_x = a->x.start[a->x.n_groups], n_y = a->y.start[a->y.n_groups];
    cpu_for(st, n_y, grain_of(a->y.d, 0), y_norms_body, &j);
    cpu_for(st, n_x, block_grain(a->x.d, a->x.n_groups ? n_y / a->x.n_groups : 0), nearest_body, &j);
    return OK;
}

/* ---- density peaks ---------------------------------------------------------------------------------------- */

struct density_job {
    struct pairs p; /* a: density, b: the greatest distance of each row */
    const struct density_args *a;
};

/* The nearest of one row so far, in ascending order. */
struct nearest_of {
    double D[OPS_NEIGHBOURS_MAX];
    uint32_t i[OPS_NEIGHBOURS_MAX], n;
};

/* A list of n entries, most of them at most; NaN is as far as can be. */
static void come_near(double *list, uint32_t *who, uint32_t *n, uint32_t most, double D, uint32_t i)
{
    if (isnan(D)) D = INFINITY;
    if (*n == most && !(D < list[most - 1])) return;
    uint32_t at = *n < most ? (*n)++ : most - 1;
    for (; at > 0 && list[at - 1] > D; at--) list[at] = list[at - 1], who[at] = who[at - 1];
    list[at] = D;
    who[at] = i;
}

static double density_by(const double *near, uint32_t n)
{
    double sum = 0;
    for (uint32_t t = 0; t < n; t++) sum += near[t];
    return n ? exp(-sum / n) : 1;
}

/* n rows of group g, from i on: exp(-mean distance to the k nearest) and the greatest distance; who is nearest is kept. */
static void density_block(const void *job, uint32_t g, uint32_t i, uint32_t n)
{
    const struct density_job *j = job;
    const struct pairs *p = &j->p;
    const uint32_t most = j->a->k > NEAR ? j->a->k : NEAR;
    struct block b;
    struct nearest_of of[BLOCK];
    double far[BLOCK];
    for (uint32_t r = 0; r < n; r++) b.x[r] = row_of(p->g, i + r), of[r].n = 0, far[r] = 0;
    for (uint32_t m = p->g->start[g], n_y; m < p->g->start[g + 1]; m += n_y) {
        n_y = meet_from(p->st, &b, n, p->g, m, p->g->start[g + 1]);
        for (uint32_t r = 0; r < n; r++)
            for (uint32_t k = 0; k < n_y; k++) {
                if (m + k == i + r) continue;
                const double D = distance(p, b.xy[r][k], i + r, m + k);
                if (D > far[r]) far[r] = D;
                come_near(of[r].D, of[r].i, &of[r].n, most, D, m + k);
            }
    }
    for (uint32_t r = 0; r < n; r++) {
        p->a[i + r] = density_by(of[r].D, at_most(of[r].n, j->a->k));
        p->b[i + r] = far[r];
        memcpy(p->near + (size_t)(i + r) * NEAR, of[r].i, at_most(of[r].n, NEAR) * sizeof *p->near);
    }
}

static void density_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct density_job *j = arg;
    by_blocks(j->p.g, begin, end, density_block, j);
}

/* ---- a group that is large enough for the threads: every pair meets once and both learn of it ---- */

/* Both rows of every pair of one part of the group with another, or of a part with itself. */
static void meet_parts(const struct density_job *j, uint32_t from, uint32_t to, uint32_t from_y, uint32_t to_y)
{
    const struct pairs *p = &j->p;
    struct block b;
    for (uint32_t i = from, n; i < to; i += n) {
        n = at_most(to - i, BLOCK);
        for (uint32_t r = 0; r < n; r++) b.x[r] = row_of(p->g, i + r);
        for (uint32_t m = from == from_y ? i : from_y, n_y; m < to_y; m += n_y) {
            n_y = meet_from(p->st, &b, n, p->g, m, to_y);
            for (uint32_t r = 0; r < n; r++)
                for (uint32_t k = 0; k < n_y; k++) {
                    const uint32_t one = i + r, other = m + k;
                    if (from == from_y && other <= one) continue;
                    const double D = distance(p, b.xy[r][k], one, other);
                    if (D > p->b[one]) p->b[one] = D;
                    if (D > p->b[other]) p->b[other] = D;
                    come_near(p->far + (size_t)one * NEAR, p->near + (size_t)one * NEAR, &p->count[one], NEAR, D, other);
                    come_near(p->far + (size_t)other * NEAR, p->near + (size_t)other * NEAR, &p->count[other], NEAR, D, one);
                }
        }
    }
}

/* Parts of a group in rounds, as in a tournament: in one round every part is in one pair at most. */
struct rounds {
    const struct density_job *j;
    uint32_t first, n, parts, round; /* parts: even; round 0: each part with itself */
};

static uint32_t part_at(const struct rounds *t, uint32_t k)
{
    return t->first + (uint32_t)((uint64_t)t->n * k / t->parts);
}

static void round_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct rounds *t = arg;
    const uint32_t others = t->parts - 1;
    for (uint32_t k = begin; k < end; k++) {
        uint32_t a = k, b = k;
        if (t->round > 0) { /* the last part stays, the others go round a circle */
            a = k == 0 ? others : (t->round - 1 + k) % others;
            b = (t->round - 1 + others - k) % others;
        }
        if (a > b) {
            const uint32_t c = a;
            a = b, b = c;
        }
        meet_parts(t->j, part_at(t, a), part_at(t, a + 1), part_at(t, b), part_at(t, b + 1));
    }
}

/* What density_body does, of one group; k <= NEAR. */
static void density_of_large(const struct density_job *j, struct stream *st, uint32_t g)
{
    const struct pairs *p = &j->p;
    struct rounds t = { .j = j, .first = p->g->start[g], .n = p->g->start[g + 1] - p->g->start[g] };
    t.parts = at_most(8 * (uint32_t)threads_count(p->st->threads), t.n / BLOCK / 2 * 2);
    for (uint32_t i = t.first; i < t.first + t.n; i++) p->b[i] = 0, p->count[i] = 0;
    for (; t.round < t.parts; t.round++) cpu_for(st, t.round ? t.parts / 2 : t.parts, 1, round_body, &t);
    for (uint32_t i = t.first; i < t.first + t.n; i++)
        p->a[i] = density_by(p->far + (size_t)i * NEAR, at_most(p->count[i], j->a->k));
}

/* The first denser one of row i's n nearest, of which no denser row can be nearer. false: there is none among them. */
static bool denser_near(const struct pairs *p, uint32_t i, uint32_t n, double *D)
{
    const uint32_t *near = p->near + (size_t)i * NEAR;
    for (uint32_t k = 0; k < n; k++)
        if (p->a[near[k]] > p->a[i]) {
            *D = 1 - cosine(p, i, near[k]);
            return true;
        }
    return false;
}

/* The n rows row[] of group g, each the densest around: how far is the nearest that is denser, of the whole group? */
static void peak_block(const struct density_job *j, uint32_t g, const uint32_t *row, uint32_t n)
{
    const struct pairs *p = &j->p;
    const uint32_t end = p->g->start[g + 1];
    struct block b;
    uint32_t of[BLOCK], n_y = 0;
    double least[BLOCK], most = 0, low = INFINITY;
    for (uint32_t r = 0; r < n; r++) {
        b.x[r] = row_of(p->g, row[r]);
        least[r] = INFINITY;
        if (p->a[row[r]] < low) low = p->a[row[r]];
    }
    for (uint32_t m = p->g->start[g]; m < end; m++) {
        if (p->b[m] > most) most = p->b[m];
        if (p->a[m] > low) {
            of[n_y] = m;
            b.y[n_y++] = row_of(p->g, m);
        }
        if (n_y < BLOCK && m + 1 < end) continue;
        meet(p->st, &b, n, n_y, p->g->d);
        for (uint32_t r = 0; r < n; r++)
            for (uint32_t k = 0; k < n_y; k++) {
                if (!(p->a[of[k]] > p->a[row[r]])) continue;
                const double D = distance(p, b.xy[r][k], row[r], of[k]);
                if (D < least[r]) least[r] = D;
            }
        n_y = 0;
    }
    for (uint32_t r = 0; r < n; r++)
        j->a->out[row[r]] = (float)(p->a[row[r]] * (least[r] < INFINITY ? least[r] : most));
}

static void peak_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct density_job *j = arg;
    const struct pairs *p = &j->p;
    const uint32_t *start = p->g->start;
    uint32_t g = group_of(p->g, begin), alone[BLOCK], n = 0;
    for (uint32_t i = begin; i < end; i++) {
        double D;
        while (start[g + 1] <= i) g++;
        if (denser_near(p, i, at_most(start[g + 1] - start[g] - 1, NEAR), &D))
            j->a->out[i] = (float)(p->a[i] * D);
        else
            alone[n++] = i;
        if (n == BLOCK || (n > 0 && (i + 1 == end || i + 1 == start[g + 1]))) {
            peak_block(j, g, alone, n);
            n = 0;
        }
    }
}

status cpu_density(struct stream *st, const struct density_args *a, struct err *e)
{
    if (a->k == 0 || a->k > OPS_NEIGHBOURS_MAX)
        return err_set(e, E_ARG, "density: %u neighbours, this device takes 1 to %d", a->k,
                       OPS_NEIGHBOURS_MAX);
    struct density_job j = { .p = pairs_of(st, &a->g, a->scratch), .a = a };
    const uint32_t grain = block_grain(a->g.d, a->g.n_groups ? j.p.n / a->g.n_groups : 0);
    norms(st, &j.p);
    if (a->k <= NEAR && a->g.n_groups == 1 && j.p.n >= LARGE)
        density_of_large(&j, st, 0);
    else
        cpu_for(st, j.p.n, grain, density_body, &j);
    cpu_for(st, j.p.n, grain < 10 * BLOCK ? 10 * BLOCK : grain, peak_body, &j); /* few rows of each piece are alone */
    return OK;
}

/* ---- farthest first --------------------------------------------------------------------------------------- */

/* A row's key only sinks as others are chosen. So a row is brought up to date when its key of before is among the greatest, and most
 * rows never meet most of what is chosen. */
struct farthest_job {
    struct pairs p; /* a: least distance to what is chosen, b: the key that it gives; near: how many chosen the row has met */
    const struct farthest_args *a;
    uint32_t group, n_chosen; /* of the loop inside one group */
    const uint32_t *pick;     /* [n_chosen] */
    const double *sum;
    bool sinks;               /* no weight is negative */
    uint32_t behind[AHEAD], n_behind;
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
    if (j->a->first == FARTHEST_MEAN && n == 2) { /* as far from each other as they are: a tie, which sums of rows may miss */
        const uint32_t first = p->g->start[g];
        return 1 - cosine(p, first, first + 1);
    }
    if (j->a->first == FARTHEST_MEAN) {
        const float *x = row_of(p->g, i);
        double all = 0;
        for (uint32_t k = 0; k < p->g->d; k++) all += x[k] * sum[k];
        return n > 1 ? (n - all / sqrt((double)p->norm[i])) / (n - 1) : 0;
    }
    return weight_of(j, i) * (n > 1 ? p->a[i] : 0);
}

/* The distance of n rows from i on, of group g, to the nearest other. */
static void apart_block(const struct farthest_job *j, uint32_t g, uint32_t i, uint32_t n)
{
    const struct pairs *p = &j->p;
    struct block b;
    for (uint32_t r = 0; r < n; r++) b.x[r] = row_of(p->g, i + r), p->a[i + r] = INFINITY;
    for (uint32_t m = p->g->start[g], n_y; m < p->g->start[g + 1]; m += n_y) {
        n_y = meet_from(p->st, &b, n, p->g, m, p->g->start[g + 1]);
        for (uint32_t r = 0; r < n; r++)
            for (uint32_t k = 0; k < n_y; k++) {
                const double D = distance(p, b.xy[r][k], i + r, m + k);
                if (m + k != i + r && D < p->a[i + r]) p->a[i + r] = D;
            }
    }
}

static void first_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct farthest_job *j = arg;
    const uint32_t from = j->p.g->start[j->group];
    for (uint32_t i = from + begin, n; i < from + end; i += n) {
        n = at_most(from + end - i, BLOCK);
        if (j->a->first == FARTHEST_APART) apart_block(j, j->group, i, n);
        for (uint32_t r = i; r < i + n; r++) {
            j->p.b[r] = first_key(j, j->group, r, j->sum);
            j->p.a[r] = INFINITY;
            j->p.near[r] = 0;
        }
    }
}

/* n rows meet what was chosen since the one of them that has met least. */
static void catch_up(const struct farthest_job *j, const uint32_t *row, uint32_t n)
{
    const struct pairs *p = &j->p;
    struct block b;
    uint32_t met = j->n_chosen;
    for (uint32_t r = 0; r < n; r++) {
        b.x[r] = row_of(p->g, row[r]);
        met = at_most(met, p->near[row[r]]);
    }
    for (uint32_t n_y; met < j->n_chosen; met += n_y) {
        n_y = at_most(j->n_chosen - met, BLOCK);
        for (uint32_t k = 0; k < n_y; k++) b.y[k] = row_of(p->g, j->pick[met + k]);
        meet(p->st, &b, n, n_y, p->g->d);
        for (uint32_t r = 0; r < n; r++)
            for (uint32_t k = 0; k < n_y; k++) {
                const double D = distance(p, b.xy[r][k], row[r], j->pick[met + k]);
                if (D < p->a[row[r]]) p->a[row[r]] = D;
            }
    }
    for (uint32_t r = 0; r < n; r++) {
        p->near[row[r]] = j->n_chosen;
        p->b[row[r]] = weight_of(j, row[r]) * p->a[row[r]];
    }
}

static void behind_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct farthest_job *j = arg;
    catch_up(j, j->behind + begin, end - begin);
}

/* All that are not taken. */
static void all_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct farthest_job *j = arg;
    const uint32_t from = j->p.g->start[j->group];
    uint32_t row[BLOCK], n = 0;
    for (uint32_t i = from + begin; i < from + end; i++) {
        if (!j->p.taken[i]) row[n++] = i;
        if (n == BLOCK || (n > 0 && i + 1 == from + end)) {
            catch_up(j, row, n);
            n = 0;
        }
    }
}

static bool is_behind(const struct farthest_job *j, uint32_t i)
{
    return j->p.near[i] < j->n_chosen;
}

/* Does row i come before row m? Greatest key first, ties to the earlier, NaN last: but one that is not up to date may have
 * been that of a row that met nobody, so it comes first. */
static bool is_before(const struct farthest_job *j, uint32_t i, uint32_t m)
{
    const double a = j->p.b[i], b = j->p.b[m];
    const bool nan_a = isnan(a), nan_b = isnan(b);
    if (nan_a || nan_b) {
        const int rank_a = nan_a ? (is_behind(j, i) ? 0 : 2) : 1, rank_b = nan_b ? (is_behind(j, m) ? 0 : 2) : 1;
        return rank_a != rank_b ? rank_a < rank_b : i < m;
    }
    return a != b ? a > b : i < m;
}

/* The first AHEAD of those not taken, in order of is_before; returns the very first. */
static uint32_t look_ahead(struct farthest_job *j)
{
    const struct pairs *p = &j->p;
    uint32_t first[AHEAD], n = 0;
    for (uint32_t i = p->g->start[j->group]; i < p->g->start[j->group + 1]; i++) {
        if (p->taken[i] || (n == AHEAD && !is_before(j, i, first[n - 1]))) continue;
        uint32_t at = n < AHEAD ? n++ : n - 1;
        for (; at > 0 && is_before(j, i, first[at - 1]); at--) first[at] = first[at - 1];
        first[at] = i;
    }
    j->n_behind = 0;
    for (uint32_t k = 0; k < n; k++)
        if (is_behind(j, first[k])) j->behind[j->n_behind++] = first[k];
    return first[0];
}

/* The next of the group: the first in order once it is up to date. Keys that do not sink are all brought up to date. */
static uint32_t next_of(struct farthest_job *j, struct stream *st, uint32_t n)
{
    if (j->n_chosen == 1 || (j->n_chosen > 1 && !j->sinks)) { /* what led to the first choice bounds no later key */
        if (st)
            cpu_for(st, n, block_grain(j->p.g->d, 0), all_body, j);
        else
            all_body(j, 0, 0, n);
    }
    for (;;) {
        const uint32_t i = look_ahead(j);
        if (!is_behind(j, i)) return i;
        if (st)
            cpu_for(st, j->n_behind, 4, behind_body, j);
        else
            behind_body(j, 0, 0, j->n_behind);
    }
}

/* One group; st: its loops on all threads, NULL: on this one. */
static void choose_group(struct farthest_job *j, struct stream *st, uint32_t g, uint32_t *pick, double *sum)
{
    const uint32_t n = j->p.g->start[g + 1] - j->p.g->start[g], d = j->p.g->d;
    j->group = g;
    j->sum = sum;
    if (j->a->n_pick[g] == 0) return;
    if (j->a->first == FARTHEST_MEAN) sum_group(&j->p, g, true, sum);
    j->n_chosen = 0;
    j->pick = pick;
    if (st)
        cpu_for(st, n, block_grain(d, j->a->first == FARTHEST_APART ? n : 0), first_body, j);
    else
        first_body(j, 0, 0, n);
    for (uint32_t k = 0; k < j->a->n_pick[g]; k++) {
        pick[k] = next_of(j, st, n);
        j->p.taken[pick[k]] = 1;
        j->n_chosen = k + 1;
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
    struct farthest_job j = { .p = pairs_of(st, &a->g, a->scratch), .a = a, .sinks = true };
    norms(st, &j.p);
    memset(j.p.taken, 0, j.p.n);
    for (uint32_t i = 0; i < j.p.n && a->weight; i++) j.sinks = j.sinks && !(a->weight[i] < 0);
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
