/* kernels/cpu/scores.c - how much the query rows attend to each key, OmniDrop Eq. 5; see kernels/ops.h.
 *
 * The rows of KV head g are the query rows times the heads of its group (row-major, so that what they see
 * ascends). They are taken CHUNK rows of the query at a time, in four passes:
 *     pack      their q, by subtiles of 12
 *     stats     maximum and sum of each row over SPLIT keys at a time          (K is read once per 96 rows)
 *     merge     the splits of a row, in order
 *     columns   per block of 256 keys the sum over all rows of exp(s - m) / l  (K is read once)
 * A block of `partial` is written by one thread, and rows are added in order: two runs agree bit for bit.
 * Work: 4 n n_q H D flops. */
#include <math.h>

#include "kernels/cpu/attention.h"

#define CHUNK     512  /* query rows at a time */
#define SPLIT     1024 /* keys of one item of the stats */
#define TILE_SUBS 8    /* subtiles of one item of the stats */

struct scores {
    const struct cpu_stream *st;
    const struct query_scores_args *a;
    struct cpu_heads heads;
    uint32_t group;      /* query heads of a KV head */
    uint32_t i0, n;      /* query rows of this chunk */
    uint32_t rows, subs; /* rows of one KV head: n * group; in subtiles of 12 */
    uint32_t n_splits;
    char *q;           /* [G][subs] packed subtiles, 12 * D * 4 bytes apart */
    uint32_t *visible; /* [rows] */
    float *m, *l;      /* [n_splits][G][rows]; split 0 then holds the merged */
};

static uint32_t subtiles(uint32_t rows)
{
    return (rows + CPU_TILE - 1) / CPU_TILE;
}

size_t cpu_scores_shared(uint32_t H, uint32_t D, uint32_t n, uint32_t max_keys)
{
    /* q is largest with one head a group: H subtile rows of up to 12 more than the rows. */
    const size_t rows = n < CHUNK ? n : CHUNK, all = rows * H, n_splits = (max_keys + SPLIT - 1) / SPLIT;
    return cpu_align((all + (size_t)CPU_TILE * H) * D * 4) + cpu_align(all * sizeof(uint32_t)) +
           2 * n_splits * all * sizeof(float);
}

/* Subtile t of KV head g as rows of the kernels; m and l of one split. */
static struct cpu_rows subtile(const struct scores *j, uint32_t g, uint32_t t, uint32_t split)
{
    const uint32_t r0 = t * CPU_TILE;
    const size_t at = ((size_t)split * j->a->shape.G + g) * j->rows + r0;
    return (struct cpu_rows){ .n = j->rows - r0 < CPU_TILE ? j->rows - r0 : CPU_TILE,
                              .q = j->q + ((size_t)g * j->subs + t) * CPU_TILE * j->heads.D * 4,
                              .visible = j->visible + r0,
                              .m = j->m + at,
                              .l = j->l + at };
}

static void block_pages(const struct scores *j, uint32_t g, uint32_t k0, uint32_t end, const void **page)
{
    const struct kv_shape *shape = &j->a->shape;
    const char *base = (const char *)shape->base + g * j->heads.head_bytes;
    for (uint32_t p = 0; p < CPU_BLOCK_PAGES && k0 + p * CPU_PAGE_TOKENS < end; p++)
        page[p] = base + j->a->view.page[k0 / CPU_PAGE_TOKENS + p] * shape->page_bytes;
}

static void pack_items(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct scores *j = arg;
    const struct query_scores_args *a = j->a;
    for (uint32_t x = begin; x < end; x++) {
        const struct cpu_rows r = subtile(j, x / j->subs, x % j->subs, 0);
        const float *row[CPU_TILE];
        for (uint32_t i = 0; i < r.n; i++) {
            const uint32_t at = x % j->subs * CPU_TILE + i, h = x / j->subs * j->group + at % j->group;
            row[i] = a->q + (j->i0 + at / j->group) * a->ldq + (size_t)h * j->heads.D;
        }
        j->st->isa->attention->pack_rows(&j->heads, row, r.n, (void *)(uintptr_t)r.q);
    }
}

static void stats_items(void *arg, int thread, uint32_t begin, uint32_t end)
{
    const struct scores *j = arg;
    const struct cpu_room room = cpu_room_at(j->a->scratch, thread, j->heads.D);
    const uint32_t n_tiles = (j->subs + TILE_SUBS - 1) / TILE_SUBS;
    for (uint32_t x = begin; x < end; x++) {
        const uint32_t split = x % j->n_splits, g = x / j->n_splits / n_tiles,
                       t0 = x / j->n_splits % n_tiles * TILE_SUBS;
        const uint32_t t1 = j->subs - t0 < TILE_SUBS ? j->subs : t0 + TILE_SUBS,
                       most = j->visible[j->rows - 1];
        for (uint32_t t = t0; t < t1; t++) {
            const struct cpu_rows r = subtile(j, g, t, split);
            for (uint32_t i = 0; i < r.n; i++) r.m[i] = -CPU_BIG, r.l[i] = 0.0f;
        }
        for (uint32_t k0 = split * SPLIT; k0 < most && k0 < (split + 1) * SPLIT; k0 += CPU_BLOCK) {
            const void *page[CPU_BLOCK_PAGES];
            block_pages(j, g, k0, most, page);
            for (uint32_t t = t0; t < t1; t++) {
                const struct cpu_rows r = subtile(j, g, t, split);
                if (r.visible[r.n - 1] > k0) j->st->isa->attention->stats(&j->heads, &r, page, k0, room.t);
            }
        }
    }
}

static void merge_rows(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct scores *j = arg;
    const uint32_t all = j->a->shape.G * j->rows;
    for (uint32_t i = begin; i < end; i++) {
        float top = j->m[i], sum = 0.0f;
        for (uint32_t s = 1; s < j->n_splits; s++) top = fmaxf(top, j->m[(size_t)s * all + i]);
        for (uint32_t s = 0; s < j->n_splits; s++)
            sum += j->l[(size_t)s * all + i] * expf(j->m[(size_t)s * all + i] - top);
        j->m[i] = top;
        j->l[i] = sum;
    }
}

static void columns_items(void *arg, int thread, uint32_t begin, uint32_t end)
{
    const struct scores *j = arg;
    const struct cpu_room room = cpu_room_at(j->a->scratch, thread, j->heads.D);
    const uint32_t keys = j->a->view.n_rows, n_blocks = (keys + CPU_BLOCK - 1) / CPU_BLOCK;
    for (uint32_t x = begin; x < end; x++) {
        const uint32_t g = x / n_blocks, k0 = x % n_blocks * CPU_BLOCK;
        const uint32_t n = keys - k0 < CPU_BLOCK ? keys - k0 : CPU_BLOCK;
        float sum[CPU_BLOCK] = { 0 }, *out = j->a->partial + (size_t)g * keys + k0;
        const void *page[CPU_BLOCK_PAGES];
        if (j->i0 > 0) memcpy(sum, out, n * sizeof(float));
        block_pages(j, g, k0, keys, page);
        for (uint32_t t = 0; t < j->subs; t++) {
            const struct cpu_rows r = subtile(j, g, t, 0);
            if (r.visible[r.n - 1] > k0) j->st->isa->attention->columns(&j->heads, &r, page, k0, sum, room.t);
        }
        memcpy(out, sum, n * sizeof(float));
    }
}

status cpu_query_scores(struct stream *stream, const struct query_scores_args *a, struct err *e)
{
    const struct cpu_stream *st = cpu_stream_of(stream);
    TRY(cpu_heads_check(a->shape.D, a->H, a->shape.G, a->shape.dtype, e));
    for (uint32_t i = 0; i < a->n_q; i++)
        if (a->visible[i] == 0 || a->visible[i] > a->view.n_rows ||
            (i > 0 && a->visible[i] < a->visible[i - 1]))
            return err_set(e, E_ARG,
                           "scores: query row %u sees %u keys of %u: at least 1, at most all, ascending", i,
                           a->visible[i], a->view.n_rows);
    struct scores j = { .st = st,
                        .a = a,
                        .heads = cpu_heads_of(st, a->shape.D, a->shape.dtype, a->scale),
                        .group = a->H / a->shape.G,
                        .q = cpu_room_shared(st, a->scratch, a->shape.D) };
    if (a->n_q == 0) memset(a->partial, 0, (size_t)a->shape.G * a->view.n_rows * sizeof(float));
    for (j.i0 = 0; j.i0 < a->n_q; j.i0 += CHUNK) {
        j.n = a->n_q - j.i0 < CHUNK ? a->n_q - j.i0 : CHUNK;
        j.rows = j.n * j.group;
        j.subs = subtiles(j.rows);
        j.n_splits = (a->visible[j.i0 + j.n - 1] + SPLIT - 1) / SPLIT;
        j.visible = (uint32_t *)(j.q + cpu_align((size_t)a->shape.G * j.subs * CPU_TILE * j.heads.D * 4));
        j.m = (float *)((char *)j.visible + cpu_align(j.rows * sizeof(uint32_t)));
        j.l = j.m + (size_t)j.n_splits * a->shape.G * j.rows;
        for (uint32_t i = 0; i < j.rows; i++) j.visible[i] = a->visible[j.i0 + i / j.group];
        const uint32_t G = a->shape.G, n_tiles = (j.subs + TILE_SUBS - 1) / TILE_SUBS;
        cpu_for(stream, G * j.subs, 8, pack_items, &j);
        cpu_for(stream, G * n_tiles * j.n_splits, 1, stats_items, &j);
        cpu_for(stream, G * j.rows, 128, merge_rows, &j);
        cpu_for(stream, G * ((a->view.n_rows + CPU_BLOCK - 1) / CPU_BLOCK), 1, columns_items, &j);
    }
    return OK;
}
