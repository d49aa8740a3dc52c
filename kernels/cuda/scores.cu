/* kernels/cuda/scores.cu - how much the query rows attend to each key, OmniDrop Eq. 5; see kernels.h and attend.h.
 *
 * The rows of KV head g are the query rows times the heads of its group. Two passes over K:
 *     stats    a block is 64 rows and STATS_PAGES pages: maximum and sum of each row; then the splits merged in order to the
 *              log-sum-exp of the row, to base 2
 *     scores   a block is 128 keys, which stay in registers, 32 a warp; all rows stream past through shared memory, and each
 *              thread adds the probabilities of its own keys: no atomics, one order, so two runs agree bit for bit
 * K is read once a pass. Of sm_90a both passes are hopper_scores.cu's. */
#include "kernels/cuda/attend.h"
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/plain.h"

enum { WARPS = 4, THREADS = WARPS * WARP, ROWS = 64, KEYS = 2 * PAGE, STATS_PAGES = CUDA_STATS_PAGES };

struct scores_job { struct cuda_query_scores_args a; uint32_t group, rows; float scale_log2; bool vectors; };

/* ---- log-sum-exp of the rows ----------------------------------------------------------------------------- */

/* a.part: [splits][G][rows][2]. */
template <int STEPS> KERNEL BOUNDS(THREADS, 2) stats_kernel(const scores_job j)
{
    constexpr uint32_t D = STEPS * 16, TILE = (STEPS + 3) / 4 * BAND_BYTES;
    const cuda_query_scores_args &a = j.a;
    const uint32_t g = blockIdx.y, l = threadIdx.x % WARP, row0 = blockIdx.x * ROWS, first = row0 + threadIdx.x / WARP * 16;
    const uint32_t last = row0 + ROWS < j.rows ? row0 + ROWS - 1 : j.rows - 1, begin = blockIdx.z * STATS_PAGES;
    const uint32_t pages = (a.visible[last / j.group] + PAGE - 1) / PAGE;
    const uint32_t end = begin + STATS_PAGES < pages ? begin + STATS_PAGES : pages;
    const uint32_t least = a.visible[(first < last ? first : last) / j.group], room = shared_address(shared_memory());
    uint32_t see[2];
    const float *q[2];
    UNROLL for (int i = 0; i < 2; i++) {
        const uint32_t p = first + l / 4 + i * 8;
        see[i] = p < j.rows ? a.visible[p / j.group] : 0;
        q[i] = p < j.rows ? a.q + (uint64_t)(p / j.group) * a.ldq + (g * j.group + p % j.group) * D : NULL;
    }
    attend_rows<STEPS> r;
    attend_begin(r, q[0], q[1], D);
    if (begin < end) page_copy_async<STEPS, false>(a.pages, a.page[begin], g, room, 0, THREADS);
    for (uint32_t p = begin; p < end; p++) {
        const uint32_t k_tile = room + (p - begin) % 2 * TILE, next = room + (p + 1 - begin) % 2 * TILE;
        if (p + 1 < end) {
            page_copy_async<STEPS, false>(a.pages, a.page[p + 1], g, next, 0, THREADS);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        attend_tile<STEPS, false>(r, k_tile, 0, p * PAGE, (p + 1) * PAGE > least, see[0], see[1], j.scale_log2);
        __syncthreads();
    }
    UNROLL for (int i = 0; i < 2; i++) {
        const uint32_t p = first + l / 4 + i * 8;
        const float sum = row_sum(r.l[i]);
        if (l % 4 == 0 && p < j.rows)
            store_pair(a.part + (((uint64_t)blockIdx.z * a.pages.G + g) * j.rows + p) * 2, r.m[i] * j.scale_log2, sum);
    }
}

/* a.lse: [G][rows]. A split that a row does not see has a sum of 0. */
KERNEL BOUNDS(256, 1) lse_kernel(const scores_job j)
{
    const uint32_t all = j.a.pages.G * j.rows, i = blockIdx.x * 256 + threadIdx.x;
    if (i >= all) return;
    float top = -INFINITY, sum = 0.0f;
    for (uint32_t s = 0; s < j.a.n_splits; s++) top = fmaxf(top, j.a.part[((uint64_t)s * all + i) * 2]);
    for (uint32_t s = 0; s < j.a.n_splits; s++) {
        const float *at = j.a.part + ((uint64_t)s * all + i) * 2;
        sum += at[1] * exp2f(at[0] - top);
    }
    j.a.lse[i] = top + log2f(sum);
}

/* ---- what the keys receive ------------------------------------------------------------------------------- */

struct scores_shared { float lse[2][ROWS]; uint32_t see[2][ROWS]; };

/* Rows t * 64 .. of KV head g, rounded to bf16, into a tile that lies as a page of K does. */
template <int STEPS> DEVICE void bring_rows(const scores_job &j, uint32_t t, uint32_t g, unsigned char *to, float *lse, uint32_t *see)
{
    constexpr uint32_t D = STEPS * 16, PIECES = D / 8;
    for (uint32_t i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const uint32_t row = i / PIECES, p = t * ROWS + row, piece = i % PIECES;
        const float *q = j.a.q + (uint64_t)(p / j.group) * j.a.ldq + (g * j.group + p % j.group) * D + piece * 8;
        float v[8];
        if (j.vectors && p < j.rows)
            load8(q, v);
        else
            UNROLL for (int x = 0; x < 8; x++) v[x] = p < j.rows ? q[x] : 0.0f;
        store8((uint16_t *)(to + piece_at(row, piece)), v);
    }
    for (uint32_t i = threadIdx.x; i < ROWS; i += THREADS) {
        const uint32_t p = t * ROWS + i;
        lse[i] = p < j.rows ? j.a.lse[(uint64_t)g * j.rows + p] : INFINITY;
        see[i] = p < j.rows ? j.a.visible[p / j.group] : 0;
    }
}

template <int STEPS> KERNEL BOUNDS(THREADS, 2) scores_kernel(const scores_job j)
{
    constexpr uint32_t TILE = (STEPS + 3) / 4 * BAND_BYTES;
    SHARED(struct scores_shared, s);
    const cuda_query_scores_args &a = j.a;
    unsigned char *memory = shared_memory();                          /* [2] pages of K, [2 stages] of query rows, TILE each */
    const uint32_t room = shared_address(memory), g = blockIdx.y, warp = threadIdx.x / WARP, l = threadIdx.x % WARP;
    const uint32_t key0 = blockIdx.x * KEYS, n_tiles = (j.rows + ROWS - 1) / ROWS, mine = key0 + warp * 32 + l / 4;
    for (uint32_t p = 0; p < 2; p++)                                  /* a page that is not there: the first again, and unread */
        page_copy_async<STEPS, false>(a.pages, a.page[key0 + p * PAGE < a.n_keys ? 2 * blockIdx.x + p : 2 * blockIdx.x], g,
                                      room + p * TILE, 0, THREADS);
    bring_rows<STEPS>(j, 0, g, memory + 2 * TILE, s.lse[0], s.see[0]);
    copy_wait<0>();
    __syncthreads();
    uint32_t k[2][STEPS][4];                                          /* keys 16 m + .. of the warp's 32, as the left side */
    UNROLL for (int m = 0; m < 2; m++) UNROLL for (int i = 0; i < STEPS; i++) {
        const uint32_t key = warp * 32 + m * 16 + l % 16;
        ldmatrix(k[m][i], room + key / PAGE * TILE + piece_at(key % PAGE, i * 2 + l / 16));
    }
    float sum[2][2] = { { 0, 0 }, { 0, 0 } };                         /* keys mine + 16 m + 8 i */
    for (uint32_t t = 0; t < n_tiles; t++) {
        const uint32_t stage = t % 2, rows = room + (2 + stage) * TILE;
        if (t + 1 < n_tiles)
            bring_rows<STEPS>(j, t + 1, g, memory + (2 + (t + 1) % 2) * TILE, s.lse[(t + 1) % 2], s.see[(t + 1) % 2]);
        for (uint32_t n = 0; n < ROWS / 8; n++) {
            float c[2][4] = { { 0, 0, 0, 0 }, { 0, 0, 0, 0 } };
            UNROLL for (int i = 0; i < STEPS; i += 2) {
                uint32_t b[4];
                ldmatrix(b, rows + piece_at(n * 8 + l % 8, i * 2 + l / 8));
                UNROLL for (int m = 0; m < 2; m++) {
                    mma_bf16(c[m], k[m][i], b[0], b[1]);
                    mma_bf16(c[m], k[m][i + 1], b[2], b[3]);
                }
            }
            UNROLL for (int x = 0; x < 4; x++) {
                const uint32_t row = n * 8 + l % 4 * 2 + x % 2;
                UNROLL for (int m = 0; m < 2; m++)
                    if (mine + 16 * m + x / 2 * 8 < s.see[stage][row])
                        sum[m][x / 2] += exp2_fast(fmaf(c[m][x], j.scale_log2, -s.lse[stage][row]));
            }
        }
        __syncthreads();
    }
    UNROLL for (int m = 0; m < 2; m++) UNROLL for (int i = 0; i < 2; i++) {
        const float all = row_sum(sum[m][i]);
        const uint32_t key = mine + 16 * m + 8 * i;
        if (l % 4 == 0 && key < a.n_keys) a.partial[(uint64_t)g * a.n_keys + key] = all;
    }
}

status cuda_query_scores(void *stream, const struct cuda_query_scores_args *a, struct err *e)
{
    const struct cuda_pages *p = &a->pages;
    if ((p->D != 64 && p->D != 128) || p->dtype != DT_BF16 || p->G == 0 || a->H % p->G != 0)
        return plain_query_scores(stream, a, e);
    const uint32_t group = a->H / p->G, rows = a->n_q * group;
    const scores_job j = { *a, group, rows, a->scale * LOG2_E, (a->ldq | (uintptr_t)a->q / 4) % 4 == 0 };
    const size_t tile = (size_t)bands_of(p->D, DT_BF16) * BAND_BYTES;
    const bool wide = p->D == 128;
    const bool hopper = hopper_here();
    TRY(hopper ? hopper_score_stats(stream, a, e)
               : launch("score_stats", wide ? stats_kernel<8> : stats_kernel<4>, dim3(blocks_of(rows, ROWS), p->G, a->n_splits), THREADS,
                        2 * tile, stream, j, e));
    TRY(launch("score_lse", lse_kernel, dim3(blocks_of((uint64_t)p->G * rows, 256)), 256, 0, stream, j, e));
    if (hopper) return hopper_scores(stream, a, e);
    const dim3 grid(blocks_of(a->n_keys, KEYS), p->G);
    return launch("scores", wide ? scores_kernel<8> : scores_kernel<4>, grid, THREADS, 4 * tile, stream, j, e);
}
