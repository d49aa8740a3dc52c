/* kernels/cpu/isa_linear.c - inner kernels of products, norms and packing; compiled once per instruction set.
 *
 * A product is an outer product: for each k (or pair of k values) some vectors of a weight panel meet one
 * broadcast of each row of a tile, and rows * vectors accumulators stay in registers:
 *   512 bits   12 rows x 2 vectors, the 32 columns of a panel
 *   256 bits    6 rows x 2 vectors, twice for the rows and twice for the columns
 *   128 bits    6 rows x 2 vectors, twice for the rows and four times for the columns
 * Every accumulator takes its k values in order from zero, so the shape of the block changes no bit.
 * Weights are read once per tile, from L2 but for the first tile; operand rows come from L1. The sums go to a
 * small block in L1 from which the epilogue takes them, so the loop knows no modes. */
#include <math.h>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/vec.h"

#define PANEL_VECS (CPU_PANEL / CPU_VEC)
#if CPU_VEC == 16
#define MAX_ROWS 12         /* of one block of accumulators */
#else
#define MAX_ROWS 6
#endif
/* Bytes of a panel that are asked for ahead of their use: from memory into L1, from L2 into L1. */
#define NEAR_STREAMED 8192
#define NEAR_REUSED 2048
/* The same for the rows of a checkpoint's tensor, which are packed side by side: more streams than the
 * hardware follows; and for the tile that is written. */
#define PACK_AHEAD 1024
#define WRITE_AHEAD 4096

/* Sums of one tile and one panel. */
struct sums { float at[CPU_TILE][CPU_PANEL] __attribute__((aligned(64))); };

/* ---- the inner loop ---------------------------------------------------------------------------------- */

/* What meets what: f32 operand and weight; f32 operand and bf16 weight pairs; bf16 pairs both. */
enum kind { KIND_F32, KIND_WIDEN, KIND_PAIRS };

VEC_FN vf dot_pairs(vf sum, vu x, vu w)
{
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    (void)x, (void)w;
    return sum;               /* such operands are made only where the machine has the instruction */
#endif
}

/* What one call multiplies: rows of a tile of m, and a panel. */
struct strip {
    uint32_t n_steps, m;
    const uint32_t *x, *w;
    size_t near;                  /* bytes to ask for ahead of w                                      */
    const char *far;              /* what comes after this panel: asked for into L2, far_step a step  */
    size_t far_step;
};

/* R rows and V vectors of the panel from `column` on. R, V and the kind are constants at each call. */
VEC_FN void multiply(const enum kind kind, const int R, const int V, const struct strip *s, int column,
                     float *out)
{
    const uint32_t *x = s->x, *w = s->w + column, m = s->m;
    const char *far = s->far;
    const size_t near = s->near, far_step = s->far_step;
    vf c[CPU_TILE][8];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) c[r][v] = vf_zero();
    for (uint32_t n = s->n_steps; n > 0; n--) {
        vu b[8];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            b[v] = vu_load(w + v * CPU_VEC);
            __builtin_prefetch((const char *)(w + v * CPU_VEC) + near);
        }
        __builtin_prefetch(far, 0, 2);
        far += far_step;
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const vu a = vu_set1(x[r]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                if (kind == KIND_PAIRS) c[r][v] = dot_pairs(c[r][v], a, b[v]);
                else c[r][v] = (vf)a * (kind == KIND_F32 ? (vf)b[v] : vf_low_bf16(b[v])) + c[r][v];
            }
        }
        x += m;
        if (kind == KIND_WIDEN) {
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const vf a = (vf)vu_set1(x[r]);
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) c[r][v] = a * vf_high_bf16(b[v]) + c[r][v];
            }
            x += m;
        }
        w += CPU_PANEL;
    }
    out += column;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) vf_store(out + r * CPU_PANEL + v * CPU_VEC, c[r][v]);
}

/* Vectors of a block of R rows: few rows take the whole width of a panel. */
#if CPU_VEC == 16
#define BLOCK_VECS(R) 2
#else
#define BLOCK_VECS(R) (PANEL_VECS * (R) <= 8 ? PANEL_VECS : 2)
#endif

typedef void (*multiply_fn)(const struct strip *s, float *out);

/* name[R - 1] multiplies R rows with all columns of a panel. */
#define DEFINE_ROWS(name, kind, R)                                                                        \
    static __attribute__((noinline)) void name##_##R(const struct strip *s, float *out)                   \
    {                                                                                                     \
        for (int v = 0; v < PANEL_VECS; v += BLOCK_VECS(R))                                               \
            multiply(kind, R, BLOCK_VECS(R), s, v * CPU_VEC, out);                                        \
    }
#define DEFINE_SIX(name, kind)                                                                            \
    DEFINE_ROWS(name, kind, 1)                                                                            \
    DEFINE_ROWS(name, kind, 2)                                                                            \
    DEFINE_ROWS(name, kind, 3)                                                                            \
    DEFINE_ROWS(name, kind, 4)                                                                            \
    DEFINE_ROWS(name, kind, 5)                                                                            \
    DEFINE_ROWS(name, kind, 6)
#if CPU_VEC == 16
#define DEFINE_ALL(name, kind)                                                                            \
    DEFINE_SIX(name, kind)                                                                                \
    DEFINE_ROWS(name, kind, 7)                                                                            \
    DEFINE_ROWS(name, kind, 8)                                                                            \
    DEFINE_ROWS(name, kind, 9)                                                                            \
    DEFINE_ROWS(name, kind, 10)                                                                           \
    DEFINE_ROWS(name, kind, 11)                                                                           \
    DEFINE_ROWS(name, kind, 12)                                                                           \
    static const multiply_fn name[MAX_ROWS] = {                                                           \
        name##_1, name##_2, name##_3, name##_4,  name##_5,  name##_6,                                     \
        name##_7, name##_8, name##_9, name##_10, name##_11, name##_12                                     \
    };
#else
#define DEFINE_ALL(name, kind)                                                                            \
    DEFINE_SIX(name, kind)                                                                                \
    static const multiply_fn name[MAX_ROWS] = { name##_1, name##_2, name##_3, name##_4, name##_5, name##_6 };
#endif

DEFINE_ALL(multiply_f32, KIND_F32)
#if defined(__AVX512BF16__)
DEFINE_ALL(multiply_bf16, KIND_PAIRS)
#else
DEFINE_ALL(multiply_bf16, KIND_WIDEN)
#endif

/* ---- tiles of operands ------------------------------------------------------------------------------- */

/* n registers of CPU_VEC / n squares side by side: in each square r[i][j] becomes r[j][i]. Blocks of half its
 * size change places, then of a quarter, ... */
VEC_FN void transpose(vu *r, const int n)
{
#pragma GCC unroll 4
    for (int h = n / 2; h > 0; h /= 2) {
        vi low, high;                                       /* from a, else (from CPU_VEC on) from b */
#pragma GCC unroll 16
        for (int l = 0; l < CPU_VEC; l++) {
            low[l] = l & h ? CPU_VEC + l - h : l;
            high[l] = l & h ? CPU_VEC + l : l + h;
        }
#pragma GCC unroll 16
        for (int i = 0; i < n; i++) {
            if (i & h) continue;
            const vu a = r[i], b = r[i + h];
            r[i] = __builtin_shuffle(a, b, low);
            r[i + h] = __builtin_shuffle(a, b, high);
        }
    }
}

/* The first m lanes of v. */
VEC_FN void store_lanes(uint32_t *out, vu v, uint32_t m)
{
#if CPU_VEC == 16
    _mm512_mask_storeu_epi32(out, (__mmask16)((1u << m) - 1), (__m512i)v);
#else
    if (m == CPU_VEC) vu_store(out, v);
    else memcpy(out, &v, m * 4);
#endif
}

/* n <= CPU_VEC dwords of each of m <= CPU_VEC rows, `ld` dwords apart, to out[dword * step + row]. Whole
 * vectors are read. */
VEC_FN void write_dwords(const uint32_t *rows, size_t ld, uint32_t m, uint32_t n, uint32_t *out, size_t step)
{
    vu r[CPU_VEC];
#pragma GCC unroll 16
    for (uint32_t i = 0; i < CPU_VEC; i++) r[i] = vu_load(rows + (i < m ? i : m - 1) * ld);
    transpose(r, CPU_VEC);
#pragma GCC unroll 16
    for (uint32_t i = 0; i < CPU_VEC; i++) {
        if (i == n) return;
        store_lanes(out + i * step, r[i], m);
    }
}

#if defined(__AVX512BF16__)
/* The same for 16 floats of each row, as n <= 8 bf16 pairs: a register takes a row and the one 8 below it. */
VEC_FN void write_pairs(const float *rows, size_t ld, uint32_t m, uint32_t n, uint32_t *out, size_t step)
{
    vu r[8];
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 8; i++) {
        const vf upper = vf_load(rows + (i < m ? i : m - 1) * ld),
                 lower = vf_load(rows + (i + 8 < m ? i + 8 : m - 1) * ld);
        r[i] = (vu)_mm512_cvtne2ps_pbh((__m512)lower, (__m512)upper);
    }
    transpose(r, 8);
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 8; i++) {
        if (i == n) return;
        store_lanes(out + i * step, r[i], m);
    }
}
#else
VEC_FN void write_pairs(const float *rows, size_t ld, uint32_t m, uint32_t n, uint32_t *out, size_t step)
{
    (void)rows, (void)ld, (void)m, (void)n, (void)out, (void)step;   /* no such operands here */
}
#endif

/* Columns [k0, k0 + n) of the tile's rows at x, ldx apart, in the form of operand.h; k0 even. */
static void tile_write(const struct operand_tile *t, uint32_t k0, uint32_t n, const float *x, size_t ldx)
{
    uint32_t *out = (uint32_t *)t->data + (size_t)(t->pairs ? k0 / 2 : k0) * t->m;
    for (uint32_t j = 0; j < n; j += CPU_VEC, x += CPU_VEC) {
        const float *rows = x;
        size_t ld = ldx;
        float copy[CPU_TILE][CPU_VEC];
        uint32_t width = CPU_VEC;
        if (n - j < CPU_VEC) { /* room to read whole vectors, a zero for odd n */
            width = n - j + n % 2;
            memset(copy, 0, sizeof copy);
            for (uint32_t r = 0; r < t->m; r++) memcpy(copy[r], x + r * ldx, (n - j) * 4);
            rows = copy[0], ld = CPU_VEC;
        }
        if (t->pairs) {
            const vh row = vf_to_bf16(vf_load(rows));
            if (t->m > 1) write_pairs(rows, ld, t->m, width / 2, out, t->m);
            else if (width == CPU_VEC) memcpy(out, &row, sizeof row);
            else memcpy(out, &row, width * 2);
            out += (size_t)width / 2 * t->m;
            continue;
        }
        for (uint32_t r = 0; r < t->m; r += CPU_VEC)
            write_dwords((const uint32_t *)rows + r * ld, ld, t->m - r < CPU_VEC ? t->m - r : CPU_VEC, width,
                         out + r, t->m);
        out += (size_t)width * t->m;
    }
}

/* Ask for a later part of the tile, to be written: its lines may lie in other cores' caches. */
VEC_FN void tile_ahead(const struct operand_tile *t, uint32_t k0)
{
    const size_t block = CPU_PANEL * (t->pairs ? 2 : 4) * t->m;      /* bytes of 32 columns */
    const size_t at = k0 / CPU_PANEL * block,
                 end = at + WRITE_AHEAD + block < t->bytes ? at + WRITE_AHEAD + block : t->bytes;
    for (size_t i = k0 == 0 ? 0 : at + WRITE_AHEAD; i < end; i += 64)
        __builtin_prefetch((const char *)t->data + i, 1);
}

static void fill_tile(const struct operand_tile *t, uint32_t k0, uint32_t n, const float *x, size_t ldx)
{
    /* The rows of the next tile are asked for in the order of memory while this one is written: so many
     * streams side by side are more than the hardware follows. */
    const char *next = (const char *)(x + t->m * ldx);
    const size_t step = t->last || n < CPU_PANEL ? 0 : t->m * ldx * 4 / (n / CPU_PANEL);
    for (uint32_t k = 0; k < n; k += CPU_PANEL, next += step) {
        for (size_t i = 0; i < step; i += 64) __builtin_prefetch(next + i, 0, 2);
        tile_ahead(t, k0 + k);
        tile_write(t, k0 + k, n - k < CPU_PANEL ? n - k : CPU_PANEL, x + k, ldx);
    }
}

/* ---- epilogues --------------------------------------------------------------------------------------- */

/* m rows and n columns of one panel to y: what was there + sum + bias, and the activation, in this order. */
VEC_FN void finish_rows(const struct sums *s, uint32_t m, uint32_t n, bool add, const float *bias, bool gelu,
                        float *y, size_t ldy)
{
    for (uint32_t r = 0; r < m; r++, y += ldy)
        for (uint32_t j = 0; j < n; j += CPU_VEC) {
            const uint32_t width = n - j < CPU_VEC ? n - j : CPU_VEC;
            vf v = vf_load(s->at[r] + j);
            if (add) v = (width == CPU_VEC ? vf_load(y + j) : vf_load_n(y + j, width)) + v;
            if (bias != NULL) v += vf_load(bias + j);
            if (gelu) v = vf_gelu(v);
            if (width == CPU_VEC) vf_store(y + j, v);
            else vf_store_n(y + j, v, width);
        }
}

/* m rows of one panel for an operand, in place: gelu of 32 columns, or silu of 16 times the other 16. */
VEC_FN void activate_rows(struct sums *s, uint32_t m, bool gated, const float *bias)
{
    const uint32_t n = gated ? CPU_PANEL / 2 : CPU_PANEL;
    for (uint32_t r = 0; r < m; r++)
        for (uint32_t j = 0; j < n; j += CPU_VEC) {
            vf v = vf_load(s->at[r] + j);
            if (bias != NULL) v += vf_load(bias + j);
            if (gated) {
                vf up = vf_load(s->at[r] + n + j);
                if (bias != NULL) up += vf_load(bias + n + j);
                v = vf_silu(v) * up;
            } else {
                v = vf_gelu(v);
            }
            vf_store(s->at[r] + j, v);
        }
}

/* The sums of rows row0 + m - 1 of a panel to where the mode wants them. */
static void finish(const struct cpu_product *p, struct sums *s, uint32_t panel, uint32_t tile, uint32_t row0,
                   uint32_t m)
{
    const float *bias = p->last && p->w->bias != NULL ? p->w->bias + (size_t)panel * CPU_PANEL : NULL;
    if (p->mode == LINEAR_STORE || p->mode == LINEAR_ADD || p->mode == LINEAR_GELU) {
        const uint32_t column = panel * CPU_PANEL, left = p->w->n - column;
        const bool add = p->mode == LINEAR_ADD || !p->first, gelu = p->mode == LINEAR_GELU && p->last;
        float *y = p->y + row0 * p->ldy + column;
        if (left < CPU_PANEL || gelu)
            finish_rows(s, m, left < CPU_PANEL ? left : CPU_PANEL, add, bias, gelu, y, p->ldy);
        else if (add) finish_rows(s, m, CPU_PANEL, true, bias, false, y, p->ldy);
        else if (bias != NULL) finish_rows(s, m, CPU_PANEL, false, bias, false, y, p->ldy);
        else finish_rows(s, m, CPU_PANEL, false, NULL, false, y, p->ldy);
        return;
    }
    const struct operand_tile t = operand_tile_at(&p->out, p->out_pairs, tile);
    const bool gated = p->mode == LINEAR_SWIGLU;
    const uint32_t columns = gated ? CPU_PANEL / 2 : CPU_PANEL;
    if (gated && bias == NULL) activate_rows(s, m, true, NULL);
    else if (gated) activate_rows(s, m, true, bias);
    else activate_rows(s, m, false, bias);
    tile_write(&t, panel * columns, columns, s->at[0], CPU_PANEL);
}

/* Ask for the lines that finish() will write: they come while the tile is multiplied. */
VEC_FN void output_ahead(const struct cpu_product *p, uint32_t panel, uint32_t tile, uint32_t row0,
                         uint32_t m)
{
    if (p->mode == LINEAR_STORE || p->mode == LINEAR_ADD || p->mode == LINEAR_GELU) {
        for (uint32_t r = 0; r < m; r++) {
            const float *y = p->y + (row0 + r) * p->ldy + (size_t)panel * CPU_PANEL;
            __builtin_prefetch(y, 1);
            __builtin_prefetch(y + CPU_PANEL / 2, 1);
        }
        return;
    }
    const struct operand_tile t = operand_tile_at(&p->out, p->out_pairs, tile);
    const size_t column = (p->mode == LINEAR_SWIGLU ? CPU_PANEL / 2 : CPU_PANEL) * m * (p->out_pairs ? 2 : 4);
    for (size_t i = 0; i < column; i += 64) __builtin_prefetch((const char *)t.data + panel * column + i, 1);
}

static void product(const struct cpu_product *p, uint32_t panel0, uint32_t panel1, uint32_t tile0,
                    uint32_t tile1)
{
    const struct weight *w = p->w;
    const uint32_t tile = operand_tile(p->x.rows), n_tiles = tile1 - tile0;
    const bool pairs = w->compute == DT_BF16;                       /* weight dwords hold two k values */
    const size_t w_skip = (size_t)(pairs ? p->k0 / 2 : p->k0) * CPU_PANEL;
    const size_t kp = p->x_pairs ? operand_kp(p->x.k) / 2 : operand_kp(p->x.k);      /* dwords of a row */
    const size_t x_skip = p->x_pairs ? p->k0 / 2 : p->k0;
    const multiply_fn *kernel = pairs ? multiply_bf16 : multiply_f32;
    const size_t stride = w->panel_bytes / 4;
    struct strip s = { .n_steps = pairs ? (p->k1 - p->k0 + 1) / 2 : p->k1 - p->k0 };
    const size_t bytes = (size_t)s.n_steps * CPU_PANEL * 4;
    struct sums sums;
    for (uint32_t panel = panel0; panel < panel1; panel++) {
        const uint32_t *b = (const uint32_t *)w->data + panel * stride + w_skip;
        const bool next = n_tiles > 1 && panel + 1 < panel1;        /* is there one to ask for? */
        for (uint32_t i = tile0; i < tile1; i++) {
            const uint32_t row0 = i * tile, m = p->x.rows - row0 < tile ? p->x.rows - row0 : tile;
            s.m = m;
            s.x = (const uint32_t *)p->x.data + row0 * kp + x_skip * m;
            s.w = b;
            s.near = n_tiles == 1 || (i == tile0 && panel == panel0) ? NEAR_STREAMED : NEAR_REUSED;
            s.far = (const char *)(next ? b + stride : b) + (next ? bytes / n_tiles * (i - tile0) : 0);
            s.far_step = next ? 128 / n_tiles : 0;
            output_ahead(p, panel, i, row0, m);
            const uint32_t n_blocks = (m + MAX_ROWS - 1) / MAX_ROWS, block = (m + n_blocks - 1) / n_blocks;
            for (uint32_t r = 0; r < m; r += block, s.x += block)
                kernel[(m - r < block ? m - r : block) - 1](&s, sums.at[r]);
            finish(p, &sums, panel, i, row0, m);
        }
    }
}

/* ---- norms ------------------------------------------------------------------------------------------- */

/* Mean (0 for RMSNorm) and 1 / deviation of d floats: sums by lane, then across lanes, then the tail. */
static void statistics(const float *x, uint32_t d, float eps, bool centre, float *mean, float *scale)
{
    const uint32_t whole = d / CPU_VEC * CPU_VEC;
    *mean = 0.0f;
    if (centre) {
        vf sum = vf_zero();
        for (uint32_t j = 0; j < whole; j += CPU_VEC) sum += vf_load(x + j);
        float total = vf_sum(sum);
        for (uint32_t j = whole; j < d; j++) total += x[j];
        *mean = total / (float)d;
    }
    const vf centres = vf_set1(*mean);
    vf sum = vf_zero();
    for (uint32_t j = 0; j < whole; j += CPU_VEC) {
        const vf v = vf_load(x + j) - centres;
        sum = v * v + sum;
    }
    float total = vf_sum(sum);
    for (uint32_t j = whole; j < d; j++) total += (x[j] - *mean) * (x[j] - *mean);
    *scale = 1.0f / sqrtf(total / (float)d + eps);
}

/* n <= 32 columns of one normalised row. */
static void normalise(const float *x, uint32_t n, float mean, float scale, const float *w, const float *b,
                      float *out)
{
    const vf means = vf_set1(mean), scales = vf_set1(scale);
    uint32_t j = 0;
    for (; j + CPU_VEC <= n; j += CPU_VEC) {
        vf v = (vf_load(x + j) - means) * scales * vf_load(w + j);
        if (b != NULL) v += vf_load(b + j);
        vf_store(out + j, v);
    }
    if (j == n) return;
    vf v = (vf_load_n(x + j, n - j) - means) * scales * vf_load_n(w + j, n - j);
    if (b != NULL) v += vf_load_n(b + j, n - j);
    vf_store(out + j, v);
}

static void norm_tile(const struct cpu_norm_tile *a, uint32_t row0, const struct operand_tile *t)
{
    float mean[CPU_TILE], scale[CPU_TILE];
    const float *x[CPU_TILE];
    struct sums s;
    for (uint32_t g = 0; g < a->group; g++) {
        for (uint32_t r = 0; r < t->m; r++) {
            const size_t row = a->row != NULL ? a->row[row0 + r] : (size_t)(row0 + r) * a->group + g;
            x[r] = a->x + row * a->d;
            statistics(x[r], a->d, a->eps, a->b != NULL, &mean[r], &scale[r]);
        }
        for (uint32_t k = 0; k < a->d; k += CPU_PANEL) {
            const uint32_t n = a->d - k < CPU_PANEL ? a->d - k : CPU_PANEL;
            for (uint32_t r = 0; r < t->m; r++)
                normalise(x[r] + k, n, mean[r], scale[r], a->w + k, a->b != NULL ? a->b + k : NULL, s.at[r]);
            tile_ahead(t, g * a->d + k);
            tile_write(t, g * a->d + k, n, s.at[0], CPU_PANEL);
        }
    }
}

/* ---- packing of weights ------------------------------------------------------------------------------ */

/* n <= 32 values of a checkpoint's row from k on, as 32 f32 or 16 dwords of bf16 pairs; zeros behind them. */
VEC_FN void widen(const void *row, enum dtype t, uint32_t k, uint32_t n, float *out)
{
    memset(out, 0, CPU_PANEL * 4);
    if (row == NULL) return;
    if (t == DT_F32) {
        memcpy(out, (const char *)row + (size_t)k * 4, (size_t)n * 4);
        return;
    }
    uint16_t h[CPU_PANEL] = { 0 };
    memcpy(h, (const char *)row + (size_t)k * 2, (size_t)n * 2);
    if (t == DT_BF16)
        for (uint32_t i = 0; i < CPU_PANEL; i += CPU_VEC) vf_store(out + i, vf_load_bf16(h + i));
    else
        for (uint32_t i = 0; i < n; i++) out[i] = f16_to_f32(h[i]);
}

static void pack_values(const void *row, enum dtype t, enum dtype compute, uint32_t k, uint32_t n,
                        uint32_t *out)
{
    if (compute == DT_F32) {
        widen(row, t, k, n, (float *)out);
        return;
    }
    if (row == NULL || t == DT_BF16) {
        if (n < CPU_PANEL || row == NULL) memset(out, 0, CPU_PANEL * 2);
        if (row == NULL) return;
        __builtin_prefetch((const char *)row + (size_t)k * 2 + PACK_AHEAD);
        if (n == CPU_PANEL) memcpy(out, (const char *)row + (size_t)k * 2, CPU_PANEL * 2);
        else memcpy(out, (const char *)row + (size_t)k * 2, n * 2);
        return;
    }
    float values[CPU_PANEL];
    widen(row, t, k, n, values);
    for (uint32_t i = 0; i < CPU_PANEL; i += CPU_VEC) vf_store_bf16((bf16 *)out + i, vf_load(values + i));
}

static void pack_panel(const struct cpu_panel_source *s, void *panel)
{
    uint32_t *out = panel;
    const uint32_t per_dword = s->compute == DT_BF16 ? 2 : 1;
    for (uint32_t k = 0; k < s->k; k += CPU_PANEL) {
        const uint32_t n = s->k - k < CPU_PANEL ? s->k - k : CPU_PANEL,
                       n_dwords = (n + per_dword - 1) / per_dword;
        uint32_t block[CPU_PANEL][CPU_PANEL] __attribute__((aligned(64)));
        for (uint32_t c = 0; c < CPU_PANEL; c++)
            pack_values(s->row[c], s->dtype[c], s->compute, k, n, block[c]);
        for (uint32_t c = 0; c < CPU_PANEL; c += CPU_VEC)
            for (uint32_t j = 0; j < n_dwords; j += CPU_VEC)
                write_dwords(&block[c][j], CPU_PANEL, CPU_VEC,
                             n_dwords - j < CPU_VEC ? n_dwords - j : CPU_VEC,
                             out + (size_t)(k / per_dword + j) * CPU_PANEL + c, CPU_PANEL);
    }
}

extern const struct cpu_linear_kernels CPU_ISA(cpu_linear_kernels);
const struct cpu_linear_kernels CPU_ISA(cpu_linear_kernels) = {
    .pack_panel = pack_panel,
    .product = product,
    .norm_tile = norm_tile,
    .fill_tile = fill_tile,
};
