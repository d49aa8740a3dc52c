/* kernels/cpu/isa_attention.c - the inner kernels of attention.h, once per instruction set.
 *
 * Both products are outer products of 12 rows x 32 columns on the widest vectors (24 accumulators of 32
 * registers), of 6 rows x 2 vectors elsewhere. Left sides are broadcast from memory: packed queries
 * [k][rows], and rows of probabilities at a fixed stride. Right sides stream from the pages as they lie,
 * two pages at a time.
 *     PAIRS  bf16 pages, bf16 left side, one dot product for two k (only where the machine has it)
 *     WIDEN  bf16 pages, f32 left side: a dword is shifted or masked to its two floats
 *     F32    f32 pages, f32 left side
 * With PAIRS the softmax counts in powers of 2 (scores times scale / ln 2) and takes a polynomial good to
 * 3e-6, far under the rounding of its result to bf16; else it takes e^x to about 1 ulp. e^0 is exactly 1
 * in both, so a block that changes no maximum rescales nothing. */
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/vec.h"

enum kind { F32, PAIRS, WIDEN };

#if defined(__AVX512BF16__)
#define KIND_BF16 PAIRS
#else
#define KIND_BF16 WIDEN
#endif
#if CPU_VEC == 16
#define GROUP 12 /* rows that one pass over the right side serves */
#else
#define GROUP 6
#endif
#define NOINLINE __attribute__((noinline))
#define LOG2E    1.44269504088896341f

/* Fetching ahead: V of a block while its scores are made, K of the next block during P V. Fewer rows than
 * CPU_TILE (decode) read all of memory at little arithmetic: they always fetch, during the softmax too, and
 * past the caches; of a tile's many subtiles the first does, for all. */
#define FETCH(m, p)                                                                                          \
    do {                                                                                                     \
        if ((m) < CPU_TILE)                                                                                  \
            __builtin_prefetch(p, 0, 0);                                                                     \
        else                                                                                                 \
            __builtin_prefetch(p, 0, 2);                                                                     \
    } while (0)
#define FETCH_LINES 24 /* of a page, per row of the softmax */

/* ---- products ------------------------------------------------------------------------------------------ */

/* One step of k of `rows` x `nv` vectors: PAIRS and WIDEN take two k. Row i's left value lies at a + i *
 * row, its second k (WIDEN) `next` further; b0, b1 are the two right vectors. */
VEC_FN void step(const enum kind kind, const int rows, const int nv, vf c[GROUP][2], const void *left,
                 const size_t row, const size_t next, const void *b0, const void *b1)
{
    const float *a = left;
    if (kind == PAIRS) {
#if defined(__AVX512BF16__)
        const __m512bh x0 = (__m512bh)vu_load(b0), x1 = nv > 1 ? (__m512bh)vu_load(b1) : x0;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const __m512bh v = (__m512bh)_mm512_set1_epi32(((const int *)left)[i * row]);
            c[i][0] = (vf)_mm512_dpbf16_ps((__m512)c[i][0], v, x0);
            if (nv > 1) c[i][1] = (vf)_mm512_dpbf16_ps((__m512)c[i][1], v, x1);
        }
#endif
    } else if (kind == F32) {
        const vf x0 = vf_load(b0), x1 = nv > 1 ? vf_load(b1) : x0;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const vf v = vf_set1(a[i * row]);
            c[i][0] += v * x0;
            if (nv > 1) c[i][1] += v * x1;
        }
    } else {
        const vu x0 = vu_load(b0), x1 = nv > 1 ? vu_load(b1) : x0;
        const vf l0 = vf_low_bf16(x0), l1 = vf_low_bf16(x1);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const vf v = vf_set1(a[i * row]);
            c[i][0] += v * l0;
            if (nv > 1) c[i][1] += v * l1;
        }
        const vf h0 = vf_high_bf16(x0), h1 = vf_high_bf16(x1);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const vf v = vf_set1(a[i * row + next]);
            c[i][0] += v * h0;
            if (nv > 1) c[i][1] += v * h1;
        }
    }
}

/* s[i][0 .. 2 vectors) = q row i . K columns, rows r0 .. r0 + rows of m. b0, b1: first k of the two
 * vectors. */
VEC_FN void qk_cell(const enum kind kind, const bool fetch, const int m, const int r0, const int rows,
                    uint32_t D, const void *q, const void *b0, const void *b1, const char *soon0,
                    const char *soon1, float *s0, float *s1)
{
    vf c[GROUP][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) c[i][0] = c[i][1] = vf_zero();
    const uint32_t n = kind == F32 ? D : D / 2;
    const float *a = (const float *)q + r0;
    const float *x0 = b0, *x1 = b1; /* 4-byte units: floats or pairs */
    for (uint32_t k = 0; k < n; k++, x0 += 16, x1 += 16) {
        if (fetch) FETCH(m, soon0 + (size_t)k * 64);
        if (fetch && CPU_VEC == 16) FETCH(m, soon1 + (size_t)k * 64);
        step(kind, rows, 2, c, a, 1, m, x0, x1);
        a += kind == WIDEN ? 2 * m : m;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        vf_store(s0 + (size_t)(r0 + i) * CPU_BLOCK, c[i][0]);
        vf_store(s1 + (size_t)(r0 + i) * CPU_BLOCK, c[i][1]);
    }
}

/* Scores of m rows against n_pages pages. With vectors of a page's width two pages go together; an odd
 * last one goes with itself, and the columns written twice hold the same. */
VEC_FN void qk(const enum kind kind, const bool fetch, const int m, uint32_t D, const void *q,
               const void *const *page, uint32_t n_pages, size_t v_at, float *s)
{
#if CPU_VEC == 16
    for (uint32_t p = 0; p < n_pages; p += 2) {
        const uint32_t p1 = p + 1 < n_pages ? p + 1 : p;
        const char *b0 = page[p], *b1 = page[p1];
        qk_cell(kind, fetch, m, 0, m, D, q, b0, b1, b0 + v_at, b1 + v_at, s + p * 16, s + p1 * 16);
    }
#else
    for (uint32_t p = 0; p < n_pages; p++)
        for (uint32_t c = 0; c < 16; c += 2 * CPU_VEC) {
            const char *soon = (const char *)page[p] + v_at;
            const float *b0 = (const float *)page[p] + c, *b1 = b0 + CPU_VEC;
            float *s0 = s + p * 16 + c, *s1 = s0 + CPU_VEC;
            qk_cell(kind, fetch, m, 0, m < GROUP ? m : GROUP, D, q, b0, b1, soon, soon, s0, s1);
            if (m > GROUP) qk_cell(kind, false, m, GROUP, m - GROUP, D, q, b0, b1, soon, soon, s0, s1);
        }
#endif
}

/* acc[i][col ..] = acc * keep + P V, rows r0 .. r0 + rows of m. v_at: bytes from a page's head part to its
 * V. */
VEC_FN void pv_cell(const enum kind kind, const bool fetch, const int m, const int r0, const int rows,
                    const int nv, uint32_t Dv, size_t v_at, const void *const *page, const void *const *next,
                    uint32_t n_pages, uint32_t col, const struct cpu_scores *t, float *acc)
{
    const int steps = kind == F32 ? 16 : 8;
    vf c[GROUP][2];
    acc += (size_t)r0 * Dv + col;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        const vf keep = vf_set1(t->keep[r0 + i]);
        c[i][0] = vf_load(acc + (size_t)i * Dv) * keep;
        c[i][1] = nv > 1 ? vf_load(acc + (size_t)i * Dv + CPU_VEC) * keep : c[i][0];
    }
    const float *left = kind == PAIRS ? (const float *)t->p[r0] : t->s[r0];
    const size_t row = kind == PAIRS ? CPU_BLOCK / 2 : CPU_BLOCK;
    for (uint32_t p = 0; p < n_pages; p++) {
        const float *b = (const float *)((const char *)page[p] + v_at) + col;
        const char *soon = (const char *)next[p] + (size_t)col * steps * 4;
#pragma GCC unroll 1 /* else the fetches come in bursts */
        for (int j = 0; j < steps; j++, b += Dv, soon += nv * CPU_VEC * 4) {
            if (fetch) FETCH(m, soon);
            if (fetch && CPU_VEC == 16) FETCH(m, soon + 64);
            step(kind, rows, nv, c, left, row, 1, b, b + CPU_VEC);
            left += kind == WIDEN ? 2 : 1;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        vf_store(acc + (size_t)i * Dv, c[i][0]);
        if (nv > 1) vf_store(acc + (size_t)i * Dv + CPU_VEC, c[i][1]);
    }
}

VEC_FN void pv(const enum kind kind, const bool fetch, const int m, uint32_t Dv, size_t v_at,
               const void *const *page, const void *const *next, uint32_t n_pages, const struct cpu_scores *t,
               float *acc)
{
    uint32_t col = 0;
    for (; col + 2 * CPU_VEC <= Dv; col += 2 * CPU_VEC) {
        pv_cell(kind, fetch, m, 0, m < GROUP ? m : GROUP, 2, Dv, v_at, page, next, n_pages, col, t, acc);
        if (m > GROUP)
            pv_cell(kind, false, m, GROUP, m - GROUP, 2, Dv, v_at, page, next, n_pages, col, t, acc);
    }
    if (col < Dv)
        pv_cell(kind, fetch, m, 0, m < GROUP ? m : GROUP, 1, Dv, v_at, page, next, n_pages, col, t, acc);
}

/* One function per kind and number of rows, so that the accumulators stay in registers; all fetch but the
 * last, "12 still". */
typedef void (*qk_fn)(uint32_t D, const void *q, const void *const *page, uint32_t n_pages, size_t v_at,
                      float *s);
typedef void (*pv_fn)(uint32_t Dv, size_t v_at, const void *const *page, const void *const *next,
                      uint32_t n_pages, const struct cpu_scores *t, float *acc);

#define TILE_FNS(name, kind, m, fetch)                                                                       \
    static NOINLINE void qk_##name##m##_##fetch(uint32_t D, const void *q, const void *const *page,          \
                                                uint32_t n_pages, size_t v_at, float *s)                     \
    {                                                                                                        \
        qk(kind, fetch, m, D, q, page, n_pages, v_at, s);                                                    \
    }                                                                                                        \
    static NOINLINE void pv_##name##m##_##fetch(uint32_t Dv, size_t v_at, const void *const *page,           \
                                                const void *const *next, uint32_t n_pages,                   \
                                                const struct cpu_scores *t, float *acc)                      \
    {                                                                                                        \
        pv(kind, fetch, m, Dv, v_at, page, next, n_pages, t, acc);                                           \
    }
/* clang-format off */
#define ALL_ROWS(X, a, b)                                                                                    \
    X(a, b, 1, 1) X(a, b, 2, 1) X(a, b, 3, 1) X(a, b, 4, 1) X(a, b, 5, 1) X(a, b, 6, 1) X(a, b, 7, 1)        \
    X(a, b, 8, 1) X(a, b, 9, 1) X(a, b, 10, 1) X(a, b, 11, 1) X(a, b, 12, 1) X(a, b, 12, 0)
/* clang-format on */
#define QK_NAME(name, kind, m, fetch) qk_##name##m##_##fetch,
#define PV_NAME(name, kind, m, fetch) pv_##name##m##_##fetch,

ALL_ROWS(TILE_FNS, f, F32)
ALL_ROWS(TILE_FNS, h, KIND_BF16)
static const qk_fn qk_of[2][CPU_TILE + 1] = { { ALL_ROWS(QK_NAME, f, ) }, { ALL_ROWS(QK_NAME, h, ) } };
static const pv_fn pv_of[2][CPU_TILE + 1] = { { ALL_ROWS(PV_NAME, f, ) }, { ALL_ROWS(PV_NAME, h, ) } };

/* ---- softmax ------------------------------------------------------------------------------------------- */

/* e^x, or (two) 2^x to 3e-6, x <= about 0; of 0 exactly 1. Only packed probabilities count in powers of 2. */
VEC_FN vf exp_of(const bool two, vf x)
{
#if defined(__AVX512BF16__)
    if (two) {
        const vf n = (vf)_mm512_roundscale_ps((__m512)x, 8), f = x - n;
        vf p = vf_set1(9.58285294e-3f);
        p = p * f + vf_set1(5.59064262e-2f);
        p = p * f + vf_set1(2.40240991e-1f);
        p = p * f + vf_set1(6.93124175e-1f);
        p = p * f + vf_set1(1.0f);
        return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
    }
#endif
    (void)two;
    return vf_exp(x);
}

/* The largest of s[0 .. n), n >= 1. */
VEC_FN float row_max(const float *s, uint32_t n)
{
    vf m0 = vf_set1(-CPU_BIG), m1 = m0;
    uint32_t j = 0;
    for (; j + 2 * CPU_VEC <= n; j += 2 * CPU_VEC) {
        m0 = vf_max(m0, vf_load(s + j));
        m1 = vf_max(m1, vf_load(s + j + CPU_VEC));
    }
    for (; j < n; j += CPU_VEC)
        m0 = vf_max(m0, vf_select(vi_iota() < vi_set1((int)(n - j)), vf_load(s + j), vf_set1(-CPU_BIG)));
    return vf_max_of(vf_max(m0, m1));
}

/* Two vectors to bf16. */
VEC_FN void store_two(bf16 *p, vf low, vf high)
{
#if defined(__AVX512BF16__)
    const __m512bh h = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    memcpy(p, &h, sizeof h);
#else
    vf_store_bf16(p, low);
    vf_store_bf16(p + CPU_VEC, high);
#endif
}

/* Probabilities of s[0 .. n) against maximum m, zeros up to `cols`; to p where they are packed, else in
 * place. Returns their sum. Works on two vectors at a time, masked from n on. */
VEC_FN float row_exp(const bool packed, float *s, bf16 *p, uint32_t n, uint32_t cols, float scale, float m)
{
    const vf k = vf_set1(scale), minus = vf_set1(-m);
    vf sum0 = vf_zero(), sum1 = vf_zero();
    uint32_t j = 0;
    for (; j + 2 * CPU_VEC <= n; j += 2 * CPU_VEC) {
        const vf e0 = exp_of(packed, vf_load(s + j) * k + minus);
        const vf e1 = exp_of(packed, vf_load(s + j + CPU_VEC) * k + minus);
        sum0 += e0;
        sum1 += e1;
        if (packed) {
            store_two(p + j, e0, e1);
        } else {
            vf_store(s + j, e0);
            vf_store(s + j + CPU_VEC, e1);
        }
    }
    for (bool odd = false; j < cols; j += CPU_VEC, odd = !odd) {
        vf e = vf_zero();
        if (j < n) {
            const vi seen = vi_iota() < vi_set1((int)(n - j));
            e = (vf)((vi)exp_of(packed, vf_load(s + j) * k + minus) & seen);
            if (odd)
                sum1 += e;
            else
                sum0 += e;
        }
        if (packed)
            vf_store_bf16(p + j, e);
        else
            vf_store(s + j, e);
    }
    return vf_sum(sum0 + sum1);
}

/* New maxima of all rows and how much of the old sums they keep. seen[i]: visible columns of this block. */
VEC_FN void maxima(const bool two, const struct cpu_rows *r, const uint32_t *seen, float scale,
                   struct cpu_scores *t)
{
    float delta[16] = { 0 };
    for (uint32_t i = 0; i < r->n; i++) {
        if (seen[i] == 0) continue;
        const float old = r->m[i], top = row_max(t->s[i], seen[i]) * scale;
        r->m[i] = top > old ? top : old;
        delta[i] = old - r->m[i];
    }
    for (int i = 0; i < 16; i += CPU_VEC) vf_store(delta + i, exp_of(two, vf_load(delta + i)));
    memcpy(t->keep, delta, sizeof t->keep);
}

/* Visible columns of each row in the block from k0, and the pages that the last row needs. */
VEC_FN uint32_t columns_seen(const struct cpu_rows *r, uint32_t k0, uint32_t *seen)
{
    for (uint32_t i = 0; i < r->n; i++) {
        const uint32_t v = r->visible[i] > k0 ? r->visible[i] - k0 : 0;
        seen[i] = v < CPU_BLOCK ? v : CPU_BLOCK;
    }
    return (seen[r->n - 1] + CPU_PAGE_TOKENS - 1) / CPU_PAGE_TOKENS;
}

VEC_FN void softmax(const bool packed, const struct cpu_heads *a, const struct cpu_rows *r,
                    const uint32_t *seen, uint32_t cols, const void *const *next, struct cpu_scores *t)
{
    const float scale = packed ? a->scale * LOG2E : a->scale;
    maxima(packed, r, seen, scale, t);
    for (uint32_t i = 0; i < r->n; i++) {
        for (uint32_t k = 0; r->n < CPU_TILE && next != NULL && k < FETCH_LINES; k++)
            FETCH(1, (const char *)next[2 * i % 15] + (size_t)k * 64);
        r->l[i] = r->l[i] * t->keep[i] + row_exp(packed, t->s[i], t->p[i], seen[i], cols, scale, r->m[i]);
    }
}

static void attend(const struct cpu_heads *a, const struct cpu_rows *r, const void *const *page,
                   const void *const *next, uint32_t k0, struct cpu_scores *t)
{
    uint32_t seen[CPU_TILE];
    const uint32_t n_pages = columns_seen(r, k0, seen), cols = n_pages * CPU_PAGE_TOKENS;
    const uint32_t f = next == NULL && r->n == CPU_TILE ? CPU_TILE : r->n - 1;
    qk_of[a->bf16][f](a->D, r->q, page, n_pages, a->k_bytes, t->s[0]);
    if (KIND_BF16 == PAIRS && a->packed)
        softmax(true, a, r, seen, cols, next, t);
    else
        softmax(false, a, r, seen, cols, next, t);
    pv_of[a->bf16][f](a->Dv, a->k_bytes, page, next != NULL ? next : page, n_pages, t, r->acc);
}

static void stats(const struct cpu_heads *a, const struct cpu_rows *r, const void *const *page, uint32_t k0,
                  struct cpu_scores *t)
{
    uint32_t seen[CPU_TILE];
    const uint32_t n_pages = columns_seen(r, k0, seen);
    qk_of[a->bf16][r->n - 1](a->D, r->q, page, n_pages, a->k_bytes, t->s[0]);
    softmax(false, a, r, seen, n_pages * CPU_PAGE_TOKENS, NULL, t);
}

static void columns(const struct cpu_heads *a, const struct cpu_rows *r, const void *const *page, uint32_t k0,
                    float *sum, struct cpu_scores *t)
{
    uint32_t seen[CPU_TILE];
    const uint32_t n_pages = columns_seen(r, k0, seen);
    qk_of[a->bf16][r->n - 1](a->D, r->q, page, n_pages, a->k_bytes, t->s[0]);
    for (uint32_t i = 0; i < r->n; i++) {
        const vf scale = vf_set1(a->scale), minus = vf_set1(-r->m[i]), part = vf_set1(1.0f / r->l[i]);
        for (uint32_t j = 0; j < seen[i]; j += CPU_VEC) {
            const vi in = vi_iota() < vi_set1((int)(seen[i] - j));
            const vf p = vf_exp(vf_load(t->s[i] + j) * scale + minus) * part;
            vf_store(sum + j, vf_load(sum + j) + (vf)((vi)p & in));
        }
    }
}

static float merge(const struct cpu_heads *a, const float *m, const float *l, const float *acc,
                   uint32_t n_parts, size_t step, float *y)
{
    float top = m[0], sum = 0.0f;
    for (uint32_t i = 1; i < n_parts; i++) top = m[i * step] > top ? m[i * step] : top;
    for (uint32_t c = 0; c < a->Dv; c += CPU_VEC) vf_store(y + c, vf_zero());
    for (uint32_t i = 0; i < n_parts; i++) {
        float part[CPU_VEC];
        vf_store(part, exp_of(KIND_BF16 == PAIRS && a->packed, vf_set1(m[i * step] - top)));
        sum = l[i * step] * part[0] + sum;
        for (uint32_t c = 0; c < a->Dv; c += CPU_VEC)
            vf_store(y + c, vf_load(acc + i * step * a->Dv + c) * vf_set1(part[0]) + vf_load(y + c));
    }
    return sum;
}

/* ---- moving rows --------------------------------------------------------------------------------------- */

/* n floats (n even) to bf16. */
VEC_FN void row_to_bf16(const float *x, uint32_t n, bf16 *y)
{
    uint32_t k = 0;
    for (; k + CPU_VEC <= n; k += CPU_VEC) vf_store_bf16(y + k, vf_load(x + k));
    for (; k < n; k++) y[k] = bf16_of_f32(x[k]);
}

static void pack_rows(const struct cpu_heads *a, const float *const *row, uint32_t n, void *q)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < a->D; k += 16) __builtin_prefetch(row[i] + k);
    for (uint32_t i = 0; i < n; i++) {
        if (a->packed) {
            uint32_t pair[CPU_HEAD_MAX / 2], *out = (uint32_t *)q + i;
            row_to_bf16(row[i], a->D, (bf16 *)pair);
            for (uint32_t k = 0; k < a->D / 2; k++) out[(size_t)k * n] = pair[k];
        } else {
            float *out = (float *)q + i;
            for (uint32_t k = 0; k < a->D; k++) out[(size_t)k * n] = row[i][k];
        }
    }
}

/* CPU_VEC values of row x from column c on as bf16 in the low halves of dwords; 0 from column n on. */
VEC_FN vu row_halves(const float *x, uint32_t c, uint32_t n)
{
    if (c + CPU_VEC <= n) return __builtin_convertvector(vf_to_bf16(vf_load(x + c)), vu);
    return c < n ? __builtin_convertvector(vf_to_bf16(vf_load_n(x + c, n - c)), vu) : vu_set1(0);
}

/* V of slot `slot` and, where high is given, of slot + 1; slot is even then. A lone row leaves the other's
 * half. */
static void store_v_bf16(const struct cpu_heads *a, const float *row, const float *high, uint32_t slot,
                         uint32_t *vp)
{
    uint32_t *out = vp + (size_t)(slot / 2) * a->Dv;
    for (uint32_t c = 0; c < a->Dv; c += CPU_VEC) {
        const vu x = row_halves(row, c, a->D);
        if (high != NULL)
            vu_store(out + c, x | row_halves(high, c, a->D) << 16);
        else if (slot % 2 == 0)
            vu_store(out + c, (vu_load(out + c) & vu_set1(0xffff0000u)) | x);
        else
            vu_store(out + c, (vu_load(out + c) & vu_set1(0xffffu)) | x << 16);
    }
}

static void store_bf16(const struct cpu_heads *a, const float *k, size_t ld_k, const float *v, size_t ld_v,
                       uint32_t n, uint32_t slot, void *page)
{
    uint32_t *kp = (uint32_t *)page + slot, *vp = (uint32_t *)((char *)page + a->k_bytes);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t pair[CPU_HEAD_MAX / 2];
        row_to_bf16(k + i * ld_k, a->D, (bf16 *)pair);
        for (uint32_t c = 0; c < a->D / 2; c++) kp[(size_t)c * 16 + i] = pair[c];
    }
    if (v == NULL) return;
    for (uint32_t i = 0; i < n; i++) {
        const bool both = (slot + i) % 2 == 0 && i + 1 < n;
        store_v_bf16(a, v + i * ld_v, both ? v + (i + 1) * ld_v : NULL, slot + i, vp);
        i += both;
    }
}

static void store(const struct cpu_heads *a, const float *k, size_t ld_k, const float *v, size_t ld_v,
                  uint32_t n, uint32_t slot, void *page)
{
    if (a->bf16) {
        store_bf16(a, k, ld_k, v, ld_v, n, slot, page);
        return;
    }
    float *kp = (float *)page + slot, *vp = (float *)((char *)page + a->k_bytes) + (size_t)slot * a->Dv;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t c = 0; c < a->D; c++) kp[(size_t)c * 16 + i] = k[i * ld_k + c];
    for (uint32_t i = 0; v != NULL && i < n; i++) {
        memcpy(vp + (size_t)i * a->Dv, v + i * ld_v, a->D * sizeof(float));
        memset(vp + (size_t)i * a->Dv + a->D, 0, (a->Dv - a->D) * sizeof(float));
    }
}

static void emit(const struct cpu_heads *a, const float *acc, float l, const struct operand_tile *out,
                 uint32_t row, uint32_t k)
{
    float y[CPU_HEAD_MAX];
    for (uint32_t c = 0; c < a->Dv; c += CPU_VEC) vf_store(y + c, vf_load(acc + c) / vf_set1(l));
    if (!out->pairs) {
        operand_put(out, row, k, a->D, y);
        return;
    }
    uint32_t pair[CPU_HEAD_MAX / 2], *to = (uint32_t *)out->data + (size_t)(k / 2) * out->m + row;
    row_to_bf16(y, a->D, (bf16 *)pair);
    const size_t m = out->m;
    const uint32_t n = a->D / 2;
    for (uint32_t c = 0; c < n; c++) to[c * m] = pair[c];
}

static void rotate(const float *x, const float *cs, const float *sn, uint32_t D, float *y)
{
    const uint32_t half = D / 2;
    uint32_t j = 0;
    for (; j + CPU_VEC <= half; j += CPU_VEC) {
        const vf a = vf_load(x + j), b = vf_load(x + half + j), c = vf_load(cs + j), s = vf_load(sn + j);
        vf_store(y + j, a * c - b * s);
        vf_store(y + half + j, b * c + a * s);
    }
    for (; j < half; j++) {
        const float a = x[j], b = x[half + j];
        y[j] = a * cs[j] - b * sn[j];
        y[half + j] = b * cs[j] + a * sn[j];
    }
}

static void dots(const float *x, const float *y, uint32_t d, float out[3])
{
    vf xy[2] = { vf_zero(), vf_zero() }, xx[2] = { vf_zero(), vf_zero() }, yy[2] = { vf_zero(), vf_zero() };
    uint32_t k = 0;
    for (; k + 2 * CPU_VEC <= d; k += 2 * CPU_VEC)
        for (int i = 0; i < 2; i++) {
            const vf a = vf_load(x + k + (uint32_t)i * CPU_VEC), b = vf_load(y + k + (uint32_t)i * CPU_VEC);
            xy[i] += a * b;
            xx[i] += a * a;
            yy[i] += b * b;
        }
    for (; k < d; k += CPU_VEC) {
        const uint32_t n = d - k < CPU_VEC ? d - k : CPU_VEC;
        const vf a = vf_load_n(x + k, n), b = vf_load_n(y + k, n);
        xy[0] += a * b;
        xx[0] += a * a;
        yy[0] += b * b;
    }
    out[0] = vf_sum(xy[0] + xy[1]);
    out[1] = vf_sum(xx[0] + xx[1]);
    out[2] = vf_sum(yy[0] + yy[1]);
}

static float dot(const float *x, const float *y, uint32_t d)
{
    vf xy[2] = { vf_zero(), vf_zero() };
    uint32_t k = 0;
    for (; k + 2 * CPU_VEC <= d; k += 2 * CPU_VEC)
        for (int i = 0; i < 2; i++)
            xy[i] += vf_load(x + k + (uint32_t)i * CPU_VEC) * vf_load(y + k + (uint32_t)i * CPU_VEC);
    for (; k < d; k += CPU_VEC) {
        const uint32_t n = d - k < CPU_VEC ? d - k : CPU_VEC;
        xy[0] += vf_load_n(x + k, n) * vf_load_n(y + k, n);
    }
    return vf_sum(xy[0] + xy[1]);
}

#if CPU_VEC == 16
#define DOT_X 4 /* rows of a cell, two sums a pair: 24 of 32 registers */
#else
#define DOT_X 2
#endif
#define DOT_Y 3

/* Every sum runs as that of dot. */
VEC_FN void dot_cell(const int n_x, const int n_y, const float *const *x, const float *const *y, uint32_t d, float *out, size_t ld)
{
    vf s[DOT_X][DOT_Y][2];
#pragma GCC unroll 4
    for (int i = 0; i < n_x; i++)
#pragma GCC unroll 4
        for (int j = 0; j < n_y; j++) s[i][j][0] = s[i][j][1] = vf_zero();
    uint32_t k = 0;
    for (; k + 2 * CPU_VEC <= d; k += 2 * CPU_VEC)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const uint32_t at = k + (uint32_t)h * CPU_VEC;
            vf b[DOT_Y];
#pragma GCC unroll 4
            for (int j = 0; j < n_y; j++) b[j] = vf_load(y[j] + at);
#pragma GCC unroll 4
            for (int i = 0; i < n_x; i++) {
                const vf a = vf_load(x[i] + at);
#pragma GCC unroll 4
                for (int j = 0; j < n_y; j++) s[i][j][h] += a * b[j];
            }
        }
    for (; k < d; k += CPU_VEC) {
        const uint32_t n = d - k < CPU_VEC ? d - k : CPU_VEC;
#pragma GCC unroll 4
        for (int i = 0; i < n_x; i++)
#pragma GCC unroll 4
            for (int j = 0; j < n_y; j++) s[i][j][0] += vf_load_n(x[i] + k, n) * vf_load_n(y[j] + k, n);
    }
#pragma GCC unroll 4
    for (int i = 0; i < n_x; i++)
#pragma GCC unroll 4
        for (int j = 0; j < n_y; j++) out[(size_t)i * ld + j] = vf_sum(s[i][j][0] + s[i][j][1]);
}

static void dot_rows(const float *const *x, uint32_t n_x, const float *const *y, uint32_t n_y, uint32_t d, float *out, size_t ld)
{
    for (uint32_t i = 0; i < n_x;) {
        const bool full = n_x - i >= DOT_X;
        for (uint32_t j = 0; j < n_y;) {
            const bool wide = n_y - j >= DOT_Y;
            float *to = out + i * ld + j;
            if (full && wide)
                dot_cell(DOT_X, DOT_Y, x + i, y + j, d, to, ld);
            else if (full)
                dot_cell(DOT_X, 1, x + i, y + j, d, to, ld);
            else if (wide)
                dot_cell(1, DOT_Y, x + i, y + j, d, to, ld);
            else
                *to = dot(x[i], y[j], d);
            j += wide ? DOT_Y : 1;
        }
        i += full ? DOT_X : 1;
    }
}

static double soften(float *x, uint32_t n, float scale)
{
    vf top = vf_set1(-INFINITY);
    uint32_t j = 0;
    for (; j + CPU_VEC <= n; j += CPU_VEC) {
        const vf v = vf_load(x + j) * vf_set1(scale);
        vf_store(x + j, v);
        top = vf_max(v, top);
    }
    float most = vf_max_of(top);
    for (; j < n; j++) {
        x[j] *= scale;
        most = x[j] > most ? x[j] : most;
    }
    double sum = 0;
    for (j = 0; j + CPU_VEC <= n; j += CPU_VEC) {
        const vf p = vf_exp(vf_load(x + j) - vf_set1(most));
        vf_store(x + j, p);
        sum += vf_sum(p);
    }
    if (j < n) vf_store_n(x + j, vf_exp(vf_load_n(x + j, n - j) - vf_set1(most)), n - j);
    for (; j < n; j++) sum += x[j];
    return sum;
}

static void spread(const float *x, uint32_t n, const double *share, uint32_t n_sums, double *sum, size_t ld)
{
    for (uint32_t t = 0; t < n_sums; t++) {
        const double s = share[t];
        double *to = sum + t * ld;
        for (uint32_t j = 0; j < n; j++) to[j] += s * x[j];
    }
}

const struct cpu_attention_kernels CPU_ISA(cpu_attention_kernels) = {
    .pack_rows = pack_rows,
    .attend = attend,
    .stats = stats,
    .columns = columns,
    .merge = merge,
    .store = store,
    .emit = emit,
    .rotate = rotate,
    .dots = dots,
    .dot = dot,
    .dot_rows = dot_rows,
    .soften = soften,
    .spread = spread,
};
