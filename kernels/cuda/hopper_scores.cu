/* kernels/cuda/hopper_scores.cu - the two passes over K of query_scores (scores.cu says what they are) on sm_90a. See hopper.cu for
 * the way of K and for turns; here only K comes.
 *     stats    a block is 128 rows and STATS_PAGES pages, 128 keys a step: 64 rows a warpgroup, as in hopper.cu without V
 *     scores   a block is two pages, the 64 keys of one are the rows of a warpgroup's product; the query rows are its columns, 128 a
 *              step: the third warpgroup rounds them to bf16 into two stages, with their log-sum-exps and what they see */
#include "kernels/cuda/hopper.h"

#include "kernels/cuda/hopper_attend.h"

enum { GROUPS = 2, ROWS = 64, THREADS = (GROUPS + 1) * WARPGROUP, KEYS = 2 * PAGE, COLUMNS = 128, STATS_PAGES = CUDA_STATS_PAGES };
enum { STAGES = 2, PRODUCER_REGISTERS = 56, CONSUMER_REGISTERS = 216, BARRIER_BYTES = 8 };
/* Named barriers. */
enum { TURN = 1, ROWS_OF_Q = TURN + GROUPS };

struct hopper_scores_job { struct cuda_query_scores_args a; uint32_t group, rows; float scale_log2; bool vectors; };

/* Dynamic shared memory: operands of 128 rows, one a stage; the stationary operands, 64 rows a warpgroup; of scores the log-sum-exps
 * and limits of each stage; barriers: full and empty of each stage, and the stationary operands' one. */
template <int BANDS> struct score_places {
    enum { STAGE = BANDS * 2 * BAND_BYTES, STILL = STAGES * STAGE, LSE = STILL + GROUPS * BANDS * BAND_BYTES,
           SEE = LSE + STAGES * COLUMNS * 4, BARRIERS = SEE + STAGES * COLUMNS * 4, ALL = BARRIERS + (2 * STAGES + 1) * BARRIER_BYTES };
};

#ifdef HAS_WARPGROUPS
DEVICE uint32_t full_of(uint32_t barriers, uint32_t stage) { return barriers + stage * BARRIER_BYTES; }
DEVICE uint32_t empty_of(uint32_t barriers, uint32_t stage) { return barriers + (STAGES + stage) * BARRIER_BYTES; }

/* By all threads of the block: a stage is full when `filled` have arrived, empty when the consumers' warps have. */
DEVICE void make_barriers(uint32_t barriers, uint32_t filled)
{
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < STAGES; i++) {
            barrier_init(full_of(barriers, i), filled);
            barrier_init(empty_of(barriers, i), GROUPS * WARPGROUP / WARP);
        }
        barrier_init(barriers + 2 * STAGES * BARRIER_BYTES, 1);
        barriers_published();
    }
    __syncthreads();
}
#endif

/* a.part: [splits][G][rows][2]. */
template <int BANDS> KERNEL BOUNDS(THREADS, 1) hopper_stats_kernel(const hopper_scores_job j)
{
#ifdef HAS_WARPGROUPS
    typedef score_places<BANDS> place;
    const cuda_query_scores_args &a = j.a;
    const uint32_t g = blockIdx.y, tile = blockIdx.x * GROUPS * ROWS, begin = blockIdx.z * STATS_PAGES;
    const uint32_t last = tile + GROUPS * ROWS < j.rows ? tile + GROUPS * ROWS - 1 : j.rows - 1;
    const uint32_t pages = (a.visible[last / j.group] + PAGE - 1) / PAGE;
    const uint32_t end = begin + STATS_PAGES < pages ? begin + STATS_PAGES : pages, steps = begin < end ? (end - begin + 1) / 2 : 0;
    const uint32_t room = shared_address(shared_memory()), barriers = room + place::BARRIERS;
    const uint32_t w = shuffle_from(threadIdx.x / WARPGROUP, 0);
    make_barriers(barriers, 1);
    if (w == GROUPS) {
        registers_fewer<PRODUCER_REGISTERS>();
        for (uint32_t t = 0; t < steps && threadIdx.x % WARPGROUP == 0; t++) {
            const uint32_t stage = t % STAGES;
            barrier_wait(empty_of(barriers, stage), t / STAGES % 2 ^ 1);
            barrier_expect(full_of(barriers, stage), place::STAGE);
            UNROLL for (uint32_t i = 0; i < 2; i++) {                 /* a second page that is not there: the last again, and unseen */
                const uint32_t p = begin + 2 * t + i < end ? begin + 2 * t + i : end - 1;
                const unsigned char *from = page_head(a.pages, BANDS, a.page[p], 0, g);
                UNROLL for (uint32_t b = 0; b < BANDS; b++)
                    bulk_copy(room + stage * place::STAGE + (b * 2 + i) * BAND_BYTES, from + b * BAND_BYTES, BAND_BYTES,
                              full_of(barriers, stage));
            }
        }
        return;
    }
    registers_more<CONSUMER_REGISTERS>();
    const uint32_t l = threadIdx.x % WARP, first = tile + w * ROWS + threadIdx.x / WARP % 4 * 16;
    const uint32_t q = room + place::STILL + w * BANDS * BAND_BYTES;
    rows_to_operand<BANDS>(a.q, a.ldq, j.group, g, tile + w * ROWS, ROWS, j.rows, j.vectors, q, BAND_BYTES);
    const uint32_t see0 = first + l / 4 < j.rows ? a.visible[(first + l / 4) / j.group] : 0;
    const uint32_t see1 = first + l / 4 + 8 < j.rows ? a.visible[(first + l / 4 + 8) / j.group] : 0;
    const uint32_t least = a.visible[(first < last ? first : last) / j.group];
    float s[16][4], m[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 }, less[2];
    named_sync<ROWS_OF_Q>(w, WARPGROUP);
    for (uint32_t t = 0; t < steps; t++) {
        const uint32_t stage = t % STAGES, key0 = (begin + 2 * t) * PAGE;
        barrier_wait(full_of(barriers, stage), t / STAGES % 2);
        if (w > 0 || t > 0) named_sync<TURN>(w, GROUPS * WARPGROUP);
        issue_scores<BANDS>(s, q, BAND_BYTES, room + stage * place::STAGE, 2 * BAND_BYTES);
        if (w == 0 || t + 1 < steps) named_arrive<TURN>(1 - w, GROUPS * WARPGROUP);
        product_wait<0>();
        product_hold(s);
        if (l == 0) barrier_arrive(empty_of(barriers, stage));
        soften(s, m, sum, less, key0, key0 + KEYS > least, see0, see1, j.scale_log2);
        product_hold(s);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        const uint32_t p = first + l / 4 + i * 8;
        const float all = row_sum(sum[i]);
        if (l % 4 == 0 && p < j.rows)
            store_pair(a.part + (((uint64_t)blockIdx.z * a.pages.G + g) * j.rows + p) * 2, m[i] * j.scale_log2, all);
    }
#endif
}

template <int BANDS> KERNEL BOUNDS(THREADS, 1) hopper_scores_kernel(const hopper_scores_job j)
{
#ifdef HAS_WARPGROUPS
    typedef score_places<BANDS> place;
    const cuda_query_scores_args &a = j.a;
    const uint32_t g = blockIdx.y, room = shared_address(shared_memory()), barriers = room + place::BARRIERS;
    const uint32_t w = shuffle_from(threadIdx.x / WARPGROUP, 0), steps = (j.rows + COLUMNS - 1) / COLUMNS;
    const uint32_t still = room + place::STILL, brought = barriers + 2 * STAGES * BARRIER_BYTES;
    float *lse = (float *)(shared_memory() + place::LSE);             /* [STAGES][COLUMNS] */
    uint32_t *see = (uint32_t *)(shared_memory() + place::SEE);
    make_barriers(barriers, WARPGROUP);
    if (w == GROUPS) {
        registers_fewer<PRODUCER_REGISTERS>();
        const uint32_t i = threadIdx.x % WARPGROUP;
        if (i == 0) {
            barrier_expect(brought, GROUPS * BANDS * BAND_BYTES);
            UNROLL for (uint32_t p = 0; p < GROUPS; p++) {            /* a page that is not there: the first again, and unread */
                const uint32_t page = blockIdx.x * KEYS + p * PAGE < a.n_keys ? a.page[2 * blockIdx.x + p] : a.page[2 * blockIdx.x];
                bulk_copy(still + p * BANDS * BAND_BYTES, page_head(a.pages, BANDS, page, 0, g), BANDS * BAND_BYTES, brought);
            }
        }
        for (uint32_t t = 0; t < steps; t++) {
            const uint32_t stage = t % STAGES, p = t * COLUMNS + i;
            barrier_wait(empty_of(barriers, stage), t / STAGES % 2 ^ 1);
            lse[stage * COLUMNS + i] = p < j.rows ? a.lse[(uint64_t)g * j.rows + p] : INFINITY;
            see[stage * COLUMNS + i] = p < j.rows ? a.visible[p / j.group] : 0;
            rows_to_operand<BANDS>(a.q, a.ldq, j.group, g, t * COLUMNS, COLUMNS, j.rows, j.vectors, room + stage * place::STAGE,
                                   2 * BAND_BYTES);
            barrier_arrive(full_of(barriers, stage));
        }
        return;
    }
    registers_more<CONSUMER_REGISTERS>();
    const uint32_t l = threadIdx.x % WARP, page = blockIdx.x * KEYS + w * PAGE, mine = page + threadIdx.x / WARP % 4 * 16 + l / 4;
    float s[16][4], sum[2] = { 0, 0 };                                /* of keys mine and mine + 8 */
    barrier_wait(brought, 0);
    for (uint32_t t = 0; t < steps; t++) {
        const uint32_t stage = t % STAGES;
        const float *lse_of = lse + stage * COLUMNS + l % 4 * 2;
        const uint32_t *see_of = see + stage * COLUMNS + l % 4 * 2;
        barrier_wait(full_of(barriers, stage), t / STAGES % 2);
        if (w > 0 || t > 0) named_sync<TURN>(w, GROUPS * WARPGROUP);
        issue_scores<BANDS>(s, still + w * BANDS * BAND_BYTES, BAND_BYTES, room + stage * place::STAGE, 2 * BAND_BYTES);
        if (w == 0 || t + 1 < steps) named_arrive<TURN>(1 - w, GROUPS * WARPGROUP);
        product_wait<0>();
        product_hold(s);
        UNROLL for (int n = 0; n < 16; n++) {
            const float2 less = load_vector<float2>(lse_of + n * 8);
            UNROLL for (int x = 0; x < 4; x++) {
                const float p = exp2_fast(fmaf(s[n][x], j.scale_log2, x % 2 ? -less.y : -less.x));
                sum[x / 2] += mine + x / 2 * 8 < see_of[n * 8 + x % 2] ? p : 0.0f;
            }
        }
        __syncwarp();                                                 /* all lanes have read lse and see */
        if (l == 0) barrier_arrive(empty_of(barriers, stage));
    }
    UNROLL for (int i = 0; i < 2; i++) {
        const float all = row_sum(sum[i]);
        if (l % 4 == 0 && mine + 8 * i < a.n_keys) a.partial[(uint64_t)g * a.n_keys + mine + 8 * i] = all;
    }
#endif
}

static hopper_scores_job job_of(const struct cuda_query_scores_args *a)
{
    const uint32_t group = a->H / a->pages.G;
    const hopper_scores_job j = { *a, group, a->n_q * group, a->scale * LOG2_E, (a->ldq | (uintptr_t)a->q / 4) % 4 == 0 };
    return j;
}

static size_t memory_of(uint32_t D) { return D == 128 ? (size_t)score_places<2>::ALL : (size_t)score_places<1>::ALL; }

status hopper_score_stats(void *stream, const struct cuda_query_scores_args *a, struct err *e)
{
    const hopper_scores_job j = job_of(a);
    const dim3 grid(blocks_of(j.rows, GROUPS * ROWS), a->pages.G, a->n_splits);
    return launch("score_stats_hopper", a->pages.D == 128 ? hopper_stats_kernel<2> : hopper_stats_kernel<1>, grid, THREADS,
                  memory_of(a->pages.D), stream, j, e);
}

status hopper_scores(void *stream, const struct cuda_query_scores_args *a, struct err *e)
{
    const hopper_scores_job j = job_of(a);
    const dim3 grid(blocks_of(a->n_keys, KEYS), a->pages.G);
    return launch("scores_hopper", a->pages.D == 128 ? hopper_scores_kernel<2> : hopper_scores_kernel<1>, grid, THREADS,
                  memory_of(a->pages.D), stream, j, e);
}
