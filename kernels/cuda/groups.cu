/* kernels/cuda/groups.cu - means of groups of rows, distances between rows of a group, merging, walks. See kernels.h and
 * kernels/cpu/pairs.c, whose rules these are. A product of two rows is one warp's, summed in one order, so that bit-equal rows
 * tie here as they do there; what follows the product is in double. No table of distances is kept. */
#include "kernels/cuda/device.h"

enum { WARPS = 8, THREADS = WARPS * WARP };

DEVICE const float *row_of(const cuda_groups &g, uint32_t i) { return g.x + (uint64_t)g.row[i] * g.d; }

/* By a warp; the same bits in every lane. */
DEVICE float dot(const float *x, const float *y, uint32_t d)
{
    float sum = 0.0f;
    for (uint32_t c = threadIdx.x % WARP; c < d; c += WARP) sum = fmaf(x[c], y[c], sum);
    return warp_sum(sum);
}
DEVICE double cosine(const cuda_groups &g, const float *norm, uint32_t i, uint32_t j)
{
    return dot(row_of(g, i), row_of(g, j), g.d) / sqrt((double)norm[i] * norm[j]);
}

/* ---- lengths --------------------------------------------------------------------------------------------- */

struct norms_job { struct cuda_groups g; float *norm; };

KERNEL BOUNDS(THREADS, 1) norms_kernel(const norms_job j)
{
    const uint32_t i = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (i >= j.g.n) return;                                           /* the whole warp leaves */
    const float xx = dot(row_of(j.g, i), row_of(j.g, i), j.g.d);
    if (threadIdx.x % WARP == 0) j.norm[i] = xx > 1e-12f ? xx : 1e-12f;
}

static status norms(void *stream, const struct cuda_groups *g, float *norm, struct err *e)
{
    const norms_job j = { *g, norm };
    return launch("row_norms", norms_kernel, dim3(blocks_of(g->n, WARPS)), THREADS, 0, stream, j, e);
}

/* ---- means ----------------------------------------------------------------------------------------------- */

/* A block a group, a thread a column. */
KERNEL BOUNDS(THREADS, 1) means_kernel(const cuda_means_args a)
{
    const uint32_t begin = a.g.start[blockIdx.x], end = a.g.start[blockIdx.x + 1];
    for (uint32_t c = threadIdx.x; c < a.g.d; c += THREADS) {
        double sum = 0;
        for (uint32_t i = begin; i < end; i++) {
            const double over = a.unit ? 1 / sqrt((double)a.norm[i]) : 1;
            sum = add_rn(sum, mul_rn(over, row_of(a.g, i)[c]));
        }
        a.y[(uint64_t)blockIdx.x * a.g.d + c] = begin < end ? (float)(sum / (end - begin)) : 0.0f;
    }
}

status cuda_means(void *stream, const struct cuda_means_args *a, struct err *e)
{
    if (a->unit) TRY(norms(stream, &a->g, a->norm, e));
    return launch("means", means_kernel, dim3(a->g.n_groups), THREADS, 0, stream, *a, e);
}

/* ---- nearest --------------------------------------------------------------------------------------------- */

/* A warp a row of x. */
KERNEL BOUNDS(THREADS, 1) nearest_kernel(const cuda_nearest_args a)
{
    const uint32_t i = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (i >= a.x.n) return;
    const uint32_t g = part_of(a.x.start, a.x.n_groups, i), end = a.y.start[g + 1];
    const float *x = row_of(a.x, i);
    double best = -2;
    uint32_t which = UINT32_MAX;
    for (uint32_t m = a.y.start[g]; m < end; m++) {
        const double c = dot(x, row_of(a.y, m), a.x.d) / sqrt((double)a.x_norm[i] * a.y_norm[m]);
        if (which == UINT32_MAX || c > best) best = c, which = m;
    }
    if (threadIdx.x % WARP != 0) return;
    a.best[i] = which == UINT32_MAX ? -1.0f : (float)best;
    a.which[i] = which;
}

status cuda_nearest(void *stream, const struct cuda_nearest_args *a, struct err *e)
{
    TRY(norms(stream, &a->x, a->x_norm, e));
    TRY(norms(stream, &a->y, a->y_norm, e));
    return launch("nearest", nearest_kernel, dim3(blocks_of(a->x.n, WARPS)), THREADS, 0, stream, *a, e);
}

/* ---- density peaks --------------------------------------------------------------------------------------- */

struct density_shared { double near[WARPS][OPS_NEIGHBOURS_MAX]; };

/* A warp a row; its first lane keeps the k nearest in ascending order. */
KERNEL BOUNDS(THREADS, 1) density_kernel(const cuda_density_args a)
{
    SHARED(struct density_shared, s);
    const uint32_t i = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (i >= a.g.n) return;
    const uint32_t g = part_of(a.g.start, a.g.n_groups, i);
    double *near = s.near[threadIdx.x / WARP], most = 0, sum = 0;
    uint32_t n = 0;
    for (uint32_t m = a.g.start[g]; m < a.g.start[g + 1]; m++) {
        if (m == i) continue;
        const double D = 1 - cosine(a.g, a.norm, i, m);
        if (D > most) most = D;
        if (lane != 0 || (n == a.k && !(D < near[n - 1]))) continue;
        uint32_t at = n < a.k ? n++ : n - 1;
        for (; at > 0 && near[at - 1] > D; at--) near[at] = near[at - 1];
        near[at] = D;
    }
    if (lane != 0) return;
    for (uint32_t k = 0; k < n; k++) sum += near[k];
    a.dense[i] = n ? exp(-sum / n) : 1;
    a.most[i] = most;
}

KERNEL BOUNDS(THREADS, 1) peak_kernel(const cuda_density_args a)
{
    const uint32_t i = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (i >= a.g.n) return;
    const uint32_t g = part_of(a.g.start, a.g.n_groups, i);
    double least = INFINITY, most = 0;
    for (uint32_t m = a.g.start[g]; m < a.g.start[g + 1]; m++) {
        if (a.most[m] > most) most = a.most[m];
        if (!(a.dense[m] > a.dense[i])) continue;                     /* the same for all lanes */
        const double D = 1 - cosine(a.g, a.norm, i, m);
        if (D < least) least = D;
    }
    if (threadIdx.x % WARP == 0) a.out[i] = (float)(a.dense[i] * (least < INFINITY ? least : most));
}

status cuda_density(void *stream, const struct cuda_density_args *a, struct err *e)
{
    if (a->k == 0 || a->k > OPS_NEIGHBOURS_MAX)
        return err_set(e, E_ARG, "density: %u neighbours, this device takes 1 to %d", a->k, OPS_NEIGHBOURS_MAX);
    const dim3 grid(blocks_of(a->g.n, WARPS));
    TRY(norms(stream, &a->g, a->norm, e));
    TRY(launch("density", density_kernel, grid, THREADS, 0, stream, *a, e));
    return launch("density_peaks", peak_kernel, grid, THREADS, 0, stream, *a, e);
}

/* ---- farthest first -------------------------------------------------------------------------------------- */

struct farthest_shared { uint32_t best[WARPS]; };

/* Is b's key before a's? NaN comes last, ties go to the earlier. a or b UINT32_MAX: none. */
DEVICE bool wins(const double *key, uint32_t b, uint32_t a)
{
    if (a == UINT32_MAX || b == UINT32_MAX) return b != UINT32_MAX;
    const double x = key[a], y = key[b];
    return y > x || (x != x && y == y) || (b < a && !(x > y) && !(x == x && y != y));
}

/* A block a group; warps share its rows. least, key: of each row, the distance to what is chosen and what decides; key is NaN
 * and taken is set once it is chosen. The unit sum of FARTHEST_MEAN is in dynamic shared memory, [d]. */
KERNEL BOUNDS(THREADS, 1) farthest_kernel(const cuda_farthest_args a)
{
    SHARED(struct farthest_shared, s);
    double *sum = (double *)shared_memory();
    const uint32_t g = blockIdx.x, begin = a.g.start[g], end = a.g.start[g + 1], n = end - begin, warp = threadIdx.x / WARP;
    const uint32_t lane = threadIdx.x % WARP, n_pick = a.n_pick[g];
    uint32_t *pick = a.pick + a.pick_start[g], chosen = UINT32_MAX;
    if (n_pick == 0) return;
    if (a.first == FARTHEST_MEAN)
        for (uint32_t c = threadIdx.x; c < a.g.d; c += THREADS) {
            double x = 0;
            for (uint32_t i = begin; i < end; i++) x += 1 / sqrt((double)a.norm[i]) * row_of(a.g, i)[c];
            sum[c] = x;
        }
    __syncthreads();
    for (uint32_t k = 0; k < n_pick; k++) {
        for (uint32_t i = begin + warp; i < end; i += WARPS) {        /* keys of this round */
            const double weight = a.weight != NULL ? (double)a.weight[i] : 1;
            double key;
            if (k > 0) {
                if (a.taken[i]) continue;
                const double D = 1 - cosine(a.g, a.norm, i, chosen);
                const double least = D < a.least[i] ? D : a.least[i];
                key = weight * least;
                __syncwarp();                                         /* all lanes have read it */
                if (lane == 0) a.least[i] = least;
            } else if (a.first == FARTHEST_MEAN && n == 2) {          /* a tie, which sums of rows may miss */
                key = 1 - cosine(a.g, a.norm, begin, begin + 1);
            } else if (a.first == FARTHEST_MEAN) {
                double all = 0;
                for (uint32_t c = 0; c < a.g.d; c++) all += row_of(a.g, i)[c] * sum[c];
                key = n > 1 ? (n - all / sqrt((double)a.norm[i])) / (n - 1) : 0;
            } else {
                double least = INFINITY;
                for (uint32_t m = begin; m < end; m++) {
                    const double D = m == i ? (double)INFINITY : 1 - cosine(a.g, a.norm, i, m);
                    if (D < least) least = D;
                }
                key = weight * (n > 1 ? least : 0);
            }
            if (lane == 0) {
                a.key[i] = key;
                if (k == 0) a.taken[i] = 0, a.least[i] = INFINITY;
            }
        }
        __syncthreads();
        uint32_t best = UINT32_MAX;
        if (lane == 0)
            for (uint32_t i = begin + warp; i < end; i += WARPS)
                if (!a.taken[i] && wins(a.key, i, best)) best = i;
        if (lane == 0) s.best[warp] = best;
        __syncthreads();
        chosen = UINT32_MAX;
        for (uint32_t w = 0; w < WARPS; w++)
            if (wins(a.key, s.best[w], chosen)) chosen = s.best[w];
        __syncthreads();
        if (threadIdx.x == 0) {
            a.taken[chosen] = 1;
            pick[k] = chosen;
        }
        __syncthreads();
    }
}

status cuda_farthest(void *stream, const struct cuda_farthest_args *a, struct err *e)
{
    TRY(norms(stream, &a->g, a->norm, e));
    const size_t sum = a->first == FARTHEST_MEAN ? (size_t)a->g.d * sizeof(double) : 0;
    return launch("farthest", farthest_kernel, dim3(a->g.n_groups), THREADS, sum, stream, *a, e);
}

/* ---- merge ----------------------------------------------------------------------------------------------- */

KERNEL BOUNDS(THREADS, 1) merge_rows_kernel(const cuda_merge_args a)
{
    const uint32_t i = blockIdx.x;
    for (uint32_t c = threadIdx.x; c < a.d; c += THREADS) {
        float y = a.c0[i] * a.x[(uint64_t)a.dst[i] * a.d + c];
        for (uint32_t j = a.start[i]; j < a.start[i + 1]; j++) y += a.w[j] * a.x[(uint64_t)a.src[j] * a.d + c];
        a.y[(uint64_t)i * a.d + c] = y;
    }
}

status cuda_merge(void *stream, const struct cuda_merge_args *a, struct err *e)
{
    return launch("merge", merge_rows_kernel, dim3(a->n), THREADS, 0, stream, *a, e);
}

/* ---- walks ----------------------------------------------------------------------------------------------- */

/* scale q_i . k_j of head h, by one thread. */
DEVICE double logit(const cuda_pagerank_args &a, uint32_t h, uint32_t i, uint32_t j)
{
    const float *q = a.q + (uint64_t)i * a.ldq + (uint64_t)h * a.D, *k = a.k + (uint64_t)j * a.ldk + (uint64_t)(h / (a.H / a.G)) * a.D;
    float sum = 0.0f;
    for (uint32_t c = 0; c < a.D; c++) sum = fmaf(q[c], k[c], sum);
    return a.scale * sum;
}

DEVICE double warp_sum_f64(double x)
{
    UNROLL for (int i = WARP / 2; i > 0; i /= 2) x += shuffle_xor_f64(x, i);
    return x;
}

/* A warp a row and head: its greatest logit and the sum under it; the walk begins everywhere alike. */
KERNEL BOUNDS(THREADS, 1) walk_rows_kernel(const cuda_pagerank_args a)
{
    const uint32_t i = blockIdx.x * WARPS + threadIdx.x / WARP, h = blockIdx.y, lane = threadIdx.x % WARP;
    if (i >= a.n) return;
    double most = -INFINITY, sum = 0;
    for (uint32_t j = lane; j <= i; j += WARP) most = fmax(most, logit(a, h, i, j));
    UNROLL for (int k = WARP / 2; k > 0; k /= 2) most = fmax(most, shuffle_xor_f64(most, k));
    for (uint32_t j = lane; j <= i; j += WARP) sum += exp(logit(a, h, i, j) - most);
    sum = warp_sum_f64(sum);
    if (lane != 0) return;
    const uint64_t at = (uint64_t)h * a.n + i;
    a.most[at] = most;
    a.sum[at] = sum;
    a.from[at] = 1.0 / a.n;
}

/* A thread a key and head: what the rows from it on send there, in order. */
KERNEL BOUNDS(THREADS, 1) walk_step_kernel(const cuda_pagerank_args a)
{
    const uint32_t j = blockIdx.x * THREADS + threadIdx.x, h = blockIdx.y;
    if (j >= a.n) return;
    const uint64_t at = (uint64_t)h * a.n;
    double to = 0;
    for (uint32_t i = j; i < a.n; i++) to += a.from[at + i] / a.sum[at + i] * exp(logit(a, h, i, j) - a.most[at + i]);
    a.to[at + j] = to;
}

KERNEL BOUNDS(THREADS, 1) walk_end_kernel(const cuda_pagerank_args a)
{
    const uint32_t j = blockIdx.x * THREADS + threadIdx.x;
    if (j >= a.n) return;
    double sum = 0;
    for (uint32_t h = 0; h < a.H; h++) sum += a.from[(uint64_t)h * a.n + j] * a.from[(uint64_t)h * a.n + j];
    a.importance[j] = (float)sqrt(sum / a.H);
}

status cuda_pagerank(void *stream, const struct cuda_pagerank_args *a, struct err *e)
{
    if (a->G == 0 || a->H % a->G != 0) return err_set(e, E_ARG, "pagerank: %u heads over %u of K", a->H, a->G);
    struct cuda_pagerank_args j = *a;
    TRY(launch("walk_rows", walk_rows_kernel, dim3(blocks_of(a->n, WARPS), a->H), THREADS, 0, stream, j, e));
    for (uint32_t i = 0; i < a->iterations; i++) {
        TRY(launch("walk_step", walk_step_kernel, dim3(blocks_of(a->n, THREADS), a->H), THREADS, 0, stream, j, e));
        double *const was = j.from;
        j.from = j.to;
        j.to = was;
    }
    return launch("walk_end", walk_end_kernel, dim3(blocks_of(a->n, THREADS)), THREADS, 0, stream, j, e);
}
