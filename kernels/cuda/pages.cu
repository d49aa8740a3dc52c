/* kernels/cuda/pages.cu - rotary positions, and K and V rows on their way into pages. See kernels.h. */
#include "kernels/cuda/pages.h"

size_t cuda_page_bytes(uint32_t G, uint32_t D, enum dtype dtype) { return (size_t)2 * G * bands_of(D, dtype) * BAND_BYTES; }

/* ---- rope ---------------------------------------------------------------------------------------------------- */

/* A thread turns pairs (i, i + D/2); one block a row. */
KERNEL BOUNDS(512, 1) rope_kernel(const cuda_rope_args a)
{
    const uint32_t half = a.D / 2, n = a.heads * half;
    const uint64_t angle = (uint64_t)(a.row != NULL ? a.row[blockIdx.x] : blockIdx.x) * half;
    float *row = a.x + (uint64_t)blockIdx.x * a.ldx;
    for (uint32_t p = threadIdx.x; p < n; p += blockDim.x) {
        const uint32_t i = p % half;
        float *x = row + p / half * a.D + i;
        const float c = a.cos[angle + i], s = a.sin[angle + i], low = x[0], high = x[half];
        x[0] = low * c - high * s;
        x[half] = high * c + low * s;
    }
}

status cuda_rope(void *stream, const struct cuda_rope_args *a, struct err *e)
{
    return launch("rope", rope_kernel, dim3(a->n), threads_of(a->heads * a->D * 4, 512), 0, stream, *a, e);
}

/* ---- write ----------------------------------------------------------------------------------------------- */

enum { WRITE_THREADS = 256 };
struct write_job { struct cuda_kv_write_args a; uint32_t bands; };

/* Value i of K after rotation; what a head lacks of whole bands is 0. */
DEVICE float k_rotated(const cuda_kv_write_args &a, const float *k, uint64_t angle, uint32_t i)
{
    const uint32_t D = a.pages.D, half = D / 2;
    if (i >= D) return 0.0f;
    if (a.cos == NULL) return k[i];
    const float c = a.cos[angle + i % half], s = a.sin[angle + i % half];
    return i < half ? k[i] * c - k[i + half] * s : k[i] * c + k[i - half] * s;
}

DEVICE uint4 piece_of(const float *v, uint16_t)
{
    const uint4 u = { bf16x2_of(v[0], v[1]), bf16x2_of(v[2], v[3]), bf16x2_of(v[4], v[5]), bf16x2_of(v[6], v[7]) };
    return u;
}
DEVICE uint4 piece_of(const float *v, float)
{
    const uint4 u = { bits_of_f32(v[0]), bits_of_f32(v[1]), bits_of_f32(v[2]), bits_of_f32(v[3]) };
    return u;
}

/* One block a page that is written to and a KV head: it owns that part of the page, so that clearing what lies behind a
 * freshly opened page's last row meets no other writer. A thread makes pieces of 16 bytes of K and of V. */
template <class T> KERNEL BOUNDS(WRITE_THREADS, 1) write_kernel(const write_job j)
{
    constexpr uint32_t EACH = 16 / sizeof(T);
    const cuda_kv_write_args &a = j.a;
    const cuda_kv_item item = a.item[blockIdx.x];
    const cuda_seq s = a.seq[item.seq];
    const uint32_t g = blockIdx.y, D = a.pages.D, pieces = j.bands * 8, first = item.place * PAGE;
    const uint32_t begin = first > s.keys ? 0 : s.keys - first;           /* slots of this page: begin .. end */
    const uint32_t last = s.keys + s.n_rows - first, end = last < (uint32_t)PAGE ? last : (uint32_t)PAGE;
    const uint32_t page = a.page[s.page + item.place];
    unsigned char *k_head = page_head(a.pages, j.bands, page, 0, g), *v_head = page_head(a.pages, j.bands, page, 1, g);
    for (uint32_t i = threadIdx.x; i < PAGE * pieces; i += WRITE_THREADS) {
        const uint32_t slot = i / pieces, piece = i % pieces;
        float k[8] = { 0 }, v[8] = { 0 };
        if (slot < begin || (slot >= end && begin > 0)) continue;
        if (slot < end) {
            const uint32_t row = s.row + first + slot - s.keys;
            const uint64_t angle = (uint64_t)(a.row != NULL ? a.row[row] : row) * (D / 2);
            const float *k_row = a.kv + (uint64_t)row * a.ldkv + (uint64_t)g * D, *v_row = k_row + (uint64_t)a.pages.G * D;
            UNROLL for (uint32_t x = 0; x < EACH; x++) {
                k[x] = k_rotated(a, k_row, angle, piece * EACH + x);
                v[x] = piece * EACH + x < D ? v_row[piece * EACH + x] : 0.0f;
            }
        }
        store_vector(k_head + piece_at(slot, piece), piece_of(k, T()));
        store_vector(v_head + piece_at(slot, piece), piece_of(v, T()));
    }
}

status cuda_kv_write(void *stream, const struct cuda_kv_write_args *a, struct err *e)
{
    const write_job j = { *a, bands_of(a->pages.D, a->pages.dtype) };
    const auto kernel = a->pages.dtype == DT_BF16 ? write_kernel<uint16_t> : write_kernel<float>;
    return launch("kv_write", kernel, dim3(a->n_items, a->pages.G), WRITE_THREADS, 0, stream, j, e);
}

/* ---- copy ------------------------------------------------------------------------------------------------ */

/* One block an 8 KiB band of a page. */
KERNEL BOUNDS(WRITE_THREADS, 1) copy_kernel(const cuda_page_copy_args a)
{
    const uint64_t band = (uint64_t)blockIdx.y * BAND_BYTES;
    const unsigned char *x = (const unsigned char *)a.pages.base + a.src[blockIdx.x] * a.pages.page_bytes + band;
    unsigned char *y = (unsigned char *)a.pages.base + a.dst[blockIdx.x] * a.pages.page_bytes + band;
    for (uint32_t i = threadIdx.x * 16; i < BAND_BYTES; i += WRITE_THREADS * 16) store_vector(y + i, load_vector<uint4>(x + i));
}

status cuda_page_copy(void *stream, const struct cuda_page_copy_args *a, struct err *e)
{
    const uint32_t bands = (uint32_t)(a->pages.page_bytes / BAND_BYTES);
    return launch("page_copy", copy_kernel, dim3(a->n, bands), WRITE_THREADS, 0, stream, *a, e);
}

/* ---- compaction ------------------------------------------------------------------------------------------ */

struct compact_job { struct cuda_kv_compact_args a; uint32_t bands; };

/* One block a view and a band of K or V. Rows move a page of targets at a time, all read before any is written: row i comes
 * from row[i] >= i, so later pages of targets never need what this one overwrites, and one barrier a page is enough. */
KERNEL BOUNDS(WRITE_THREADS, 1) compact_kernel(const compact_job j)
{
    enum { PIECES = 8, EACH = PAGE * PIECES / WRITE_THREADS };
    const cuda_kv_compact_args &a = j.a;
    const cuda_seq s = a.seq[blockIdx.x];
    const uint64_t band = (uint64_t)blockIdx.y * BAND_BYTES;
    const uint32_t *page = a.page + s.page, *from = a.row + s.row;
    for (uint32_t first = 0; first < s.n_rows; first += PAGE) {
        unsigned char *to = (unsigned char *)a.pages.base + page[first / PAGE] * a.pages.page_bytes + band;
        uint4 held[EACH];
        UNROLL for (uint32_t x = 0; x < EACH; x++) {
            const uint32_t i = threadIdx.x + x * WRITE_THREADS, slot = i / PIECES, piece = i % PIECES;
            const uint4 nothing = { 0, 0, 0, 0 };
            held[x] = nothing;
            if (first + slot >= s.n_rows) continue;
            const uint32_t row = from[first + slot];
            held[x] = load_vector<uint4>((unsigned char *)a.pages.base + page[row / PAGE] * a.pages.page_bytes + band +
                                         piece_at(row % PAGE, piece));
        }
        __syncthreads();
        UNROLL for (uint32_t x = 0; x < EACH; x++) {
            const uint32_t i = threadIdx.x + x * WRITE_THREADS;
            store_vector(to + piece_at(i / PIECES, i % PIECES), held[x]);
        }
    }
}

status cuda_kv_compact(void *stream, const struct cuda_kv_compact_args *a, struct err *e)
{
    const compact_job j = { *a, bands_of(a->pages.D, a->pages.dtype) };
    return launch("kv_compact", compact_kernel, dim3(a->n_views, 2 * a->pages.G * j.bands), WRITE_THREADS, 0, stream, j, e);
}
