/* kernels/cuda/hopper.cu - causal attention of prefill on sm_90a. See kernels.h, attend.h, warpgroup.h.
 *
 * A block is a tile of 128 rows of one KV head, packed as in attention.cu: two warpgroups of 64 rows, and a producer that brings K
 * and V. A step is 128 keys, two pages; two stages of shared memory, with a barrier each for K and V that have come (full) and that
 * have been read (empty). A band of a page is one bulk copy and lies as the tensor cores want it: K as an operand with k = head dims
 * fastest, V as one with columns = head dims fastest. Of K the bands of the two pages lie one behind the other, so a product has all
 * 128 keys; of V the pages do, a product takes 16 keys of one.
 *
 * A warpgroup's step t: S = Q K(t) is issued, then O += P V(t - 1); while the second runs, S becomes the next P and the maximum
 * moves on; then O is scaled. The two warpgroups take turns in issuing, so one's exponentials run beside the other's products
 * (FlashAttention-3, arXiv 2407.08608, sections 3.1 and 3.2). Both go to the end of what the tile's last row sees. */
#include "kernels/cuda/hopper.h"

#include "kernels/cuda/hopper_attend.h"

enum { GROUPS = 2, ROWS = CUDA_TILE_ROWS / GROUPS, THREADS = (GROUPS + 1) * WARPGROUP, KEYS = 2 * PAGE, STAGES = 2, PRODUCER_REGISTERS = 24,
       CONSUMER_REGISTERS = 240 };
/* Named barriers: a warpgroup's turn to issue, its rows of Q. */
enum { TURN = 1, ROWS_OF_Q = TURN + GROUPS };
enum { K = 0, V = 1 };

struct hopper_job { struct cuda_attention_args a; uint32_t group; float scale_log2; bool vectors; };

/* Dynamic shared memory: [STAGES][K, V] operands, the rows of Q of each warpgroup, barriers. */
template <int BANDS> struct places {
    enum { OPERAND = BANDS * 2 * BAND_BYTES, STAGE = 2 * OPERAND, Q = STAGES * STAGE, ROWS_OF_Q = BANDS * BAND_BYTES,
           BARRIERS = Q + GROUPS * ROWS_OF_Q };
};
enum { BARRIERS = 4 * STAGES, BARRIER_BYTES = 8 };

#ifdef HAS_WARPGROUPS

/* The barrier of a stage of K or V: full, or empty. */
DEVICE uint32_t full_of(uint32_t barriers, uint32_t kind, uint32_t stage) { return barriers + (kind * STAGES + stage) * BARRIER_BYTES; }
DEVICE uint32_t empty_of(uint32_t barriers, uint32_t kind, uint32_t stage) { return full_of(barriers, 2 + kind, stage); }

/* The producer's one thread: all pages in order. A step's second page that is not there is the last again: its keys are not seen, but
 * what is multiplied by probabilities of 0 has to be numbers. */
template <int BANDS>
DEVICE void produce(const cuda_pages &pages, const uint32_t *page, uint32_t n_pages, uint32_t g, uint32_t room, uint32_t barriers)
{
    for (uint32_t t = 0; t * 2 < n_pages; t++) {
        const uint32_t stage = t % STAGES, parity = t / STAGES % 2;
        const uint32_t two[2] = { page[2 * t], page[2 * t + 1 < n_pages ? 2 * t + 1 : n_pages - 1] };
        UNROLL for (uint32_t kind = 0; kind < 2; kind++) {
            const uint32_t to = room + stage * places<BANDS>::STAGE + kind * places<BANDS>::OPERAND, full = full_of(barriers, kind, stage);
            barrier_wait(empty_of(barriers, kind, stage), parity ^ 1);
            barrier_expect(full, places<BANDS>::OPERAND);
            UNROLL for (uint32_t i = 0; i < 2; i++) {
                const unsigned char *from = page_head(pages, BANDS, two[i], kind, g);
                if (kind == K)
                    UNROLL for (uint32_t b = 0; b < BANDS; b++)
                        bulk_copy(to + (b * 2 + i) * BAND_BYTES, from + b * BAND_BYTES, BAND_BYTES, full);
                else
                    bulk_copy(to + i * BANDS * BAND_BYTES, from, BANDS * BAND_BYTES, full);
            }
        }
    }
}

/* o += P V: probabilities of 128 keys, 16 at a time. */
template <int BANDS> DEVICE void issue_values(float (&o)[8 * BANDS][4], const uint32_t (&p)[8][4], uint32_t v)
{
    product_begin();
    UNROLL for (uint32_t i = 0; i < 8; i++)
        product_n_major(o, p[i], operand_at(v + i / 4 * BANDS * BAND_BYTES + i % 4 * 2 * PATTERN_BYTES, BAND_BYTES, PATTERN_BYTES));
    product_commit();
}

DEVICE void to_operand(const float (&s)[16][4], uint32_t (&p)[8][4])
{
    UNROLL for (int i = 0; i < 8; i++) UNROLL for (int x = 0; x < 4; x++)
        p[i][x] = bf16x2_of(s[2 * i + x / 2][x % 2 * 2], s[2 * i + x / 2][x % 2 * 2 + 1]);
}

/* One lane of each warp says that its warp has read a stage. */
DEVICE void release(uint32_t barriers, uint32_t kind, uint32_t stage)
{
    if (threadIdx.x % WARP == 0) barrier_arrive(empty_of(barriers, kind, stage));
}

#endif

template <int BANDS, class T> KERNEL BOUNDS(THREADS, 1) hopper_kernel(const hopper_job j)
{
#ifdef HAS_WARPGROUPS
    typedef places<BANDS> place;
    constexpr uint32_t D = BANDS * 64;
    const cuda_attention_args &a = j.a;
    const cuda_tile tile = a.tile[gridDim.x - 1 - blockIdx.x];
    const cuda_seq seq = a.seq[tile.seq];
    const uint32_t g = blockIdx.y, n = seq.n_rows * j.group, room = shared_address(shared_memory()), barriers = room + place::BARRIERS;
    const uint32_t *visible = a.visible + seq.row, *page = a.page + seq.page;
    const uint32_t last = tile.row + CUDA_TILE_ROWS < n ? tile.row + CUDA_TILE_ROWS - 1 : n - 1;
    const uint32_t n_pages = (visible[last / j.group] + PAGE - 1) / PAGE, steps = (n_pages + 1) / 2;
    const uint32_t w = shuffle_from(threadIdx.x / WARPGROUP, 0);      /* the same in all lanes, and the compiler sees it */
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < 2 * STAGES; i++) barrier_init(barriers + i * BARRIER_BYTES, 1);
        for (uint32_t i = 2 * STAGES; i < BARRIERS; i++) barrier_init(barriers + i * BARRIER_BYTES, GROUPS * WARPGROUP / WARP);
        barriers_published();
    }
    __syncthreads();
    if (w == GROUPS) {
        registers_fewer<PRODUCER_REGISTERS>();
        if (threadIdx.x % WARPGROUP == 0) produce<BANDS>(a.pages, page, n_pages, g, room, barriers);
        return;
    }
    registers_more<CONSUMER_REGISTERS>();
    const uint32_t row0 = tile.row + w * ROWS, l = threadIdx.x % WARP, first = row0 + threadIdx.x / WARP % 4 * 16;
    const uint32_t q = room + place::Q + w * place::ROWS_OF_Q;
    rows_to_operand<BANDS>(a.q + (uint64_t)seq.row * a.ldq, a.ldq, j.group, g, row0, ROWS, n, j.vectors, q, BAND_BYTES);
    const uint32_t see0 = first + l / 4 < n ? visible[(first + l / 4) / j.group] : 0;
    const uint32_t see1 = first + l / 4 + 8 < n ? visible[(first + l / 4 + 8) / j.group] : 0;
    const uint32_t least = visible[(first < last ? first : last) / j.group];
    float o[8 * BANDS][4], s[16][4], m[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 }, less[2];
    uint32_t p[8][4];
    UNROLL for (int i = 0; i < 8 * BANDS; i++) UNROLL for (int x = 0; x < 4; x++) o[i][x] = 0.0f;
    named_sync<ROWS_OF_Q>(w, WARPGROUP);

    barrier_wait(full_of(barriers, K, 0), 0);
    if (w > 0) named_sync<TURN>(w, GROUPS * WARPGROUP);
    issue_scores<BANDS>(s, q, BAND_BYTES, room, 2 * BAND_BYTES);
    if (w == 0 || steps > 1) named_arrive<TURN>(1 - w, GROUPS * WARPGROUP);
    product_wait<0>();
    product_hold(s);
    release(barriers, K, 0);
    soften(s, m, sum, less, 0, (uint32_t)KEYS > least, see0, see1, j.scale_log2);
    to_operand(s, p);
    barrier_wait(full_of(barriers, V, 0), 0);
    for (uint32_t t = 1; t < steps; t++) {
        const uint32_t stage = t % STAGES, before = (t - 1) % STAGES;
        barrier_wait(full_of(barriers, K, stage), t / STAGES % 2);
        named_sync<TURN>(w, GROUPS * WARPGROUP);
        issue_scores<BANDS>(s, q, BAND_BYTES, room + stage * place::STAGE, 2 * BAND_BYTES);
        issue_values<BANDS>(o, p, room + before * place::STAGE + place::OPERAND);
        if (w == 0 || t + 1 < steps) named_arrive<TURN>(1 - w, GROUPS * WARPGROUP);
        product_wait<1>();
        product_hold(s);
        release(barriers, K, stage);
        soften(s, m, sum, less, t * KEYS, (t + 1) * KEYS > least, see0, see1, j.scale_log2);
        product_hold(s);
        barrier_wait(full_of(barriers, V, stage), t / STAGES % 2);    /* a loop, which the assembler does not move the next wait over */
        product_wait<0>();
        product_hold(o);
        product_hold(s);
        release(barriers, V, before);
        UNROLL for (int i = 0; i < 8 * BANDS; i++) UNROLL for (int x = 0; x < 4; x++) o[i][x] *= less[x / 2];
        to_operand(s, p);
    }
    issue_values<BANDS>(o, p, room + (steps - 1) % STAGES * place::STAGE + place::OPERAND);
    product_wait<0>();
    product_hold(o);
    T *out[2];
    UNROLL for (int i = 0; i < 2; i++) {
        const uint32_t r = first + l / 4 + i * 8;
        out[i] = r < n ? (T *)a.out + ((uint64_t)(seq.row + r / j.group) * a.H + g * j.group + r % j.group) * D : NULL;
    }
    attend_end(o, sum, out[0], out[1], D);
#endif
}

bool hopper_here(void) { return warpgroups_here(); }

status hopper_attention(void *stream, const struct cuda_attention_args *a, struct err *e)
{
    const hopper_job j = { *a, a->H / a->pages.G, a->scale * LOG2_E, (a->ldq | (uintptr_t)a->q / 4) % 4 == 0 };
    const bool half = a->out_dtype == DT_BF16, wide = a->pages.D == 128;
    const auto kernel = wide ? (half ? hopper_kernel<2, uint16_t> : hopper_kernel<2, float>)
                             : (half ? hopper_kernel<1, uint16_t> : hopper_kernel<1, float>);
    const size_t memory = (wide ? (size_t)places<2>::BARRIERS : (size_t)places<1>::BARRIERS) + BARRIERS * BARRIER_BYTES;
    return launch("attention_hopper", kernel, dim3(a->n_tiles, a->pages.G), THREADS, memory, stream, j, e);
}
