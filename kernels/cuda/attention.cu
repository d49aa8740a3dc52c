/* kernels/cuda/attention.cu - causal attention of query rows over pages. See kernels.h and attend.h.
 *
 * Prefill (of sm_90a: hopper.cu): a block is 64 rows, half a tile, of one KV head, 16 a warp. The rows of a sequence are packed (query
 * row i, head h of the group) in this order, so heads that share K and V share their tiles. Pages of 64 keys come through two stages of
 * shared memory, the next one in flight while this one is multiplied; the loop ends with what the last row sees, masking begins where
 * the warp's first row sees no more.
 *
 * Decode: a block is one row, one KV head and SPLIT pages. The heads of the group fill the 16 rows of a tile; each warp scores 16
 * keys of a page and takes a quarter of the head's dims of V, the probabilities meet in shared memory. What the splits of a row
 * give is merged in order. A split is the same number of pages for all, so a row's bits depend on no neighbour. */
#include "kernels/cuda/attend.h"
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/plain.h"

enum { WARPS = 4, THREADS = WARPS * WARP, ROWS = CUDA_TILE_ROWS / 2, SPLIT = CUDA_SPLIT_PAGES, HEADS = 16 };

/* ---- prefill --------------------------------------------------------------------------------------------- */

struct prefill_job { struct cuda_attention_args a; uint32_t group; float scale_log2; };

template <int STEPS, class T> KERNEL BOUNDS(THREADS, 2) prefill_kernel(const prefill_job j)
{
    constexpr uint32_t D = STEPS * 16, TILE = (STEPS + 3) / 4 * BAND_BYTES;
    const cuda_attention_args &a = j.a;
    const cuda_tile tile = a.tile[blockIdx.x / 2];
    const cuda_seq s = a.seq[tile.seq];
    const uint32_t g = blockIdx.y, n = s.n_rows * j.group, warp = threadIdx.x / WARP, l = threadIdx.x % WARP;
    const uint32_t row0 = tile.row + blockIdx.x % 2 * ROWS;
    if (row0 >= n) return;
    const uint32_t room = shared_address(shared_memory());            /* [2 stages][K, V] of TILE */
    const uint32_t *visible = a.visible + s.row, *page = a.page + s.page;
    const uint32_t last = row0 + ROWS < n ? row0 + ROWS - 1 : n - 1, first = row0 + warp * 16;
    const uint32_t n_pages = (visible[last / j.group] + PAGE - 1) / PAGE;
    const uint32_t least = visible[(first < last ? first : last) / j.group];
    uint32_t see[2];
    const float *q[2];
    T *out[2];
    UNROLL for (int i = 0; i < 2; i++) {
        const uint32_t p = first + l / 4 + i * 8, row = p / j.group, h = g * j.group + p % j.group;
        see[i] = p < n ? visible[row] : 0;
        q[i] = p < n ? a.q + (uint64_t)(s.row + row) * a.ldq + h * D : NULL;
        out[i] = p < n ? (T *)a.out + ((uint64_t)(s.row + row) * a.H + h) * D : NULL;
    }
    page_copy_async<STEPS, true>(a.pages, page[0], g, room, room + TILE, THREADS);
    attend_rows<STEPS> r;
    attend_begin(r, q[0], q[1], D);
    for (uint32_t p = 0; p < n_pages; p++) {
        const uint32_t k_tile = room + p % 2 * 2 * TILE, next = room + (p + 1) % 2 * 2 * TILE;
        if (p + 1 < n_pages) {
            page_copy_async<STEPS, true>(a.pages, page[p + 1], g, next, next + TILE, THREADS);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        attend_tile<STEPS, true>(r, k_tile, k_tile + TILE, p * PAGE, (p + 1) * PAGE > least, see[0], see[1], j.scale_log2);
        __syncthreads();
    }
    attend_end(r.o, r.l, out[0], out[1], D);
}

static bool for_tensor_cores(const struct cuda_attention_args *a, uint32_t most_heads)
{
    const struct cuda_pages *p = &a->pages;
    return (p->D == 64 || p->D == 128) && p->dtype == DT_BF16 && p->G > 0 && a->H % p->G == 0 && a->H / p->G <= most_heads;
}

status cuda_attention(void *stream, const struct cuda_attention_args *a, struct err *e)
{
    if (!for_tensor_cores(a, UINT32_MAX)) return plain_attention(stream, a, false, e);
    if (hopper_here()) return hopper_attention(stream, a, e);
    const prefill_job j = { *a, a->H / a->pages.G, a->scale * LOG2_E };
    const bool half = a->out_dtype == DT_BF16, wide = a->pages.D == 128;
    const auto kernel = wide ? (half ? prefill_kernel<8, uint16_t> : prefill_kernel<8, float>)
                             : (half ? prefill_kernel<4, uint16_t> : prefill_kernel<4, float>);
    const size_t memory = (size_t)4 * bands_of(a->pages.D, DT_BF16) * BAND_BYTES;
    return launch("attention", kernel, dim3(2 * a->n_tiles, a->pages.G), THREADS, memory, stream, j, e);
}

/* ---- decode ---------------------------------------------------------------------------------------------- */

struct decode_shared {
    float score[HEADS][PAGE + 4], top[HEADS], sum[HEADS], less[HEADS];
};

/* Item x of the list: pages first .. first + SPLIT of its row; its part of the work buffer: [G][group][D] sums of V and
 * [G][group][2] the maximum and the sum. */
template <int STEPS> KERNEL BOUNDS(THREADS, 3) decode_kernel(const prefill_job j)
{
    constexpr uint32_t D = STEPS * 16, TILE = (STEPS + 3) / 4 * BAND_BYTES, MINE = STEPS / WARPS;   /* steps of V of a warp */
    SHARED(struct decode_shared, s);
    const cuda_attention_args &a = j.a;
    const cuda_tile item = a.tile[blockIdx.x];
    if (item.row == CUDA_NO_TILE) return;
    const cuda_seq seq = a.seq[item.seq];
    const uint32_t g = blockIdx.y, t = threadIdx.x, warp = t / WARP, l = t % WARP, group = j.group, first = item.row;
    const uint32_t see = a.visible[seq.row], *page = a.page + seq.page, all = (see + PAGE - 1) / PAGE;
    const uint32_t end = first + SPLIT < all ? first + SPLIT : all, room = shared_address(shared_memory());
    const float *q = a.q + (uint64_t)seq.row * a.ldq + g * group * D;
    page_copy_async<STEPS, true>(a.pages, page[first], g, room, room + TILE, THREADS);
    uint32_t qf[STEPS][4];
    UNROLL for (int k = 0; k < STEPS; k++) UNROLL for (int i = 0; i < 4; i++) {
        const uint32_t h = l / 4 + i % 2 * 8;
        qf[k][i] = columns_of(h < group ? q + h * D : NULL, k * 16 + i / 2 * 8 + l % 4 * 2, D);
    }
    float o[2 * MINE][4];
    UNROLL for (uint32_t n = 0; n < 2 * MINE; n++) UNROLL for (int i = 0; i < 4; i++) o[n][i] = 0.0f;
    if (t < HEADS) s.top[t] = -INFINITY, s.sum[t] = 0.0f;
    for (uint32_t p = first; p < end; p++) {
        const uint32_t k_tile = room + (p - first) % 2 * 2 * TILE, v_tile = k_tile + TILE, next = room + (p + 1 - first) % 2 * 2 * TILE;
        if (p + 1 < end) {
            page_copy_async<STEPS, true>(a.pages, page[p + 1], g, next, next + TILE, THREADS);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float x[2][4] = { { 0, 0, 0, 0 }, { 0, 0, 0, 0 } };
        UNROLL for (int k = 0; k < STEPS; k++) {
            uint32_t b[4];
            ldmatrix(b, k_tile + piece_at(warp * 16 + l % 8 + l / 16 * 8, k * 2 + l / 8 % 2));
            mma_bf16(x[0], qf[k], b[0], b[1]);
            mma_bf16(x[1], qf[k], b[2], b[3]);
        }
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int i = 0; i < 4; i++) {
            const uint32_t key = warp * 16 + n * 8 + l % 4 * 2 + i % 2;
            s.score[l / 4 + i / 2 * 8][key] = p * PAGE + key < see ? x[n][i] * j.scale_log2 : -INFINITY;
        }
        __syncthreads();
        UNROLL for (uint32_t h = t / 16; h < HEADS; h += THREADS / 16) {       /* 16 lanes a head, 4 keys each */
            float v[4], top = -INFINITY, sum = 0.0f;
            UNROLL for (int i = 0; i < 4; i++) v[i] = s.score[h][t % 16 + 16 * i], top = fmaxf(top, v[i]);
            UNROLL for (int i = 8; i > 0; i /= 2) top = fmaxf(top, shuffle_xor(top, i));
            const float before = s.top[h], now = fmaxf(before, top);           /* a page holds a key that is seen */
            UNROLL for (int i = 0; i < 4; i++) {
                v[i] = exp2_fast(v[i] - now);
                sum += v[i];
                s.score[h][t % 16 + 16 * i] = v[i];
            }
            UNROLL for (int i = 8; i > 0; i /= 2) sum += shuffle_xor(sum, i);
            __syncwarp();                                                      /* all have read top before one writes it */
            if (t % 16 == 0) {
                s.less[h] = exp2_fast(before - now);
                s.top[h] = now;
                s.sum[h] = s.sum[h] * s.less[h] + sum;
            }
        }
        __syncthreads();
        const float less0 = s.less[l / 4], less1 = s.less[l / 4 + 8];
        UNROLL for (uint32_t n = 0; n < 2 * MINE; n++) {
            o[n][0] *= less0, o[n][1] *= less0;
            o[n][2] *= less1, o[n][3] *= less1;
        }
        UNROLL for (int k = 0; k < 4; k++) {
            uint32_t w[4];
            UNROLL for (int i = 0; i < 4; i++) {
                const float *at = &s.score[l / 4 + i % 2 * 8][k * 16 + i / 2 * 8 + l % 4 * 2];
                w[i] = bf16x2_of(at[0], at[1]);
            }
            UNROLL for (uint32_t n = 0; n < MINE; n++) {
                uint32_t b[4];
                ldmatrix_transposed(b, v_tile + piece_at(k * 16 + l % 16, (warp * MINE + n) * 2 + l / 16));
                mma_bf16(o[2 * n], w, b[0], b[1]);
                mma_bf16(o[2 * n + 1], w, b[2], b[3]);
            }
        }
        __syncthreads();
    }
    const uint64_t at = ((uint64_t)blockIdx.x * a.pages.G + g) * group;
    UNROLL for (int i = 0; i < 2; i++) {
        const uint32_t h = l / 4 + i * 8;
        if (h >= group) continue;
        UNROLL for (uint32_t n = 0; n < 2 * MINE; n++)
            store_pair(a.part + (at + h) * D + warp * MINE * 16 + n * 8 + l % 4 * 2, o[n][2 * i], o[n][2 * i + 1]);
    }
    if (t < group) store_pair(a.part_stats + (at + t) * 2, s.top[t], s.sum[t]);
}

/* One block a row and a query head: the splits of the row in order. */
template <class T> KERNEL BOUNDS(128, 1) merge_kernel(const prefill_job j)
{
    const cuda_attention_args &a = j.a;
    const uint32_t D = a.pages.D, h = blockIdx.y, c = threadIdx.x, heads = a.pages.G * j.group;
    const cuda_seq seq = a.seq[blockIdx.x];
    const uint32_t n = ((a.visible[seq.row] + PAGE - 1) / PAGE + SPLIT - 1) / SPLIT, first = a.first_item[blockIdx.x];
    const float *stats = a.part_stats + ((uint64_t)first * heads + h) * 2;
    float top = -INFINITY, sum = 0.0f, o = 0.0f;
    for (uint32_t i = 0; i < n; i++) top = fmaxf(top, stats[(uint64_t)i * heads * 2]);
    for (uint32_t i = 0; i < n; i++) {
        const float weight = exp2_fast(stats[(uint64_t)i * heads * 2] - top);
        sum += weight * stats[(uint64_t)i * heads * 2 + 1];
        if (c < D) o += weight * a.part[((uint64_t)(first + i) * heads + h) * D + c];
    }
    if (c < D) store((T *)a.out + ((uint64_t)seq.row * a.H + h) * D + c, o / sum);
}

status cuda_attention_decode(void *stream, const struct cuda_attention_args *a, struct err *e)
{
    if (!for_tensor_cores(a, HEADS)) return plain_attention(stream, a, true, e);
    const prefill_job j = { *a, a->H / a->pages.G, a->scale * LOG2_E };
    TRY(launch("attention_decode", a->pages.D == 128 ? decode_kernel<8> : decode_kernel<4>, dim3(a->n_tiles, a->pages.G), THREADS,
               (size_t)4 * bands_of(a->pages.D, DT_BF16) * BAND_BYTES, stream, j, e));
    return launch("attention_merge", a->out_dtype == DT_BF16 ? merge_kernel<uint16_t> : merge_kernel<float>, dim3(a->n_seqs, a->H), 128, 0,
                  stream, j, e);
}
