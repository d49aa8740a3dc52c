/* kernels/cpu/linear.c - weights and products: checks, panels, who computes what (how: isa_linear.c). */
#include "kernels/cpu/linear.h"

#include <stdlib.h>

#include "base/mem.h"
#include "kernels/element.h"

/* Operand bytes that stay in a core's L2 while the panels pass by; blocks of rows are made equal. */
#define BLOCK_BYTES ((size_t)960 << 10)
#define BLOCK_ROWS_MIN 96
/* Products under this many multiplications are not worth waking a second thread for (about 1 us). */
#define ALONE_MACS 131072u

size_t cpu_operand_bytes(const struct stream *st, uint32_t rows, uint32_t k, enum dtype compute)
{
    return (size_t)rows * operand_kp(k) * (operand_pairs(cpu_stream_of(st)->isa, compute) ? 2 : 4);
}

/* ---- weights ----------------------------------------------------------------------------------------- */

struct pack_job {
    const struct weight_args *a;
    struct weight *w;
    const struct cpu_linear_kernels *kernels;
};

/* Which part and which row of it is column c of the panel? NULL: padding. */
static const struct weight_part *panel_column(const struct weight_args *a, uint32_t panel, uint32_t c,
                                              uint32_t *row)
{
    if (a->form == WEIGHT_SWIGLU) {
        *row = panel * (CPU_PANEL / 2) + c % (CPU_PANEL / 2);
        const struct weight_part *part = &a->part[c / (CPU_PANEL / 2)];
        return *row < part->n ? part : NULL;
    }
    *row = panel * CPU_PANEL + c;
    for (uint32_t i = 0; i < a->n_parts; *row -= a->part[i++].n)
        if (*row < a->part[i].n) return &a->part[i];
    return NULL;
}

static void pack_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct pack_job *j = arg;
    for (uint32_t p = begin; p < end; p++) {
        struct cpu_panel_source s = { .k = j->w->k, .compute = j->w->compute };
        for (uint32_t c = 0; c < CPU_PANEL; c++) {
            uint32_t row = 0;
            const struct weight_part *part = panel_column(j->a, p, c, &row);
            if (part != NULL) {
                s.row[c] = (const char *)part->data + row * (part->ld ? part->ld : s.k) * dtype_size(part->dtype);
                s.dtype[c] = part->dtype;
            }
            if (j->w->bias == NULL) continue;
            const bool there = part != NULL && part->bias != NULL;
            j->w->bias[p * CPU_PANEL + c] = there ? element(part->bias, part->bias_dtype, row) : 0.0f;
        }
        j->kernels->pack_panel(&s, (char *)j->w->data + p * j->w->panel_bytes);
    }
}

static status weight_check(const struct weight_args *a, struct err *e)
{
    if (a->n_parts < 1 || a->n_parts > 3 || a->k < 1)
        return err_set(e, E_ARG, "a weight of %u parts and k = %u: need 1 to 3 parts and k >= 1", a->n_parts,
                       a->k);
    if (a->compute != DT_F32 && a->compute != DT_BF16)
        return err_set(e, E_ARG, "a weight can be computed in f32 or bf16 only");
    if (a->form == WEIGHT_SWIGLU && (a->n_parts != 2 || a->part[0].n != a->part[1].n))
        return err_set(e, E_ARG, "a gated weight needs two parts of equal rows");
    uint64_t n = 0;
    for (uint32_t i = 0; i < a->n_parts; i++) {
        if (a->part[i].n < 1) return err_set(e, E_ARG, "part %u of a weight has no rows", i);
        if (a->part[i].ld && a->part[i].ld < a->k)
            return err_set(e, E_ARG, "part %u of a weight: rows of k = %u do not fit %zu elements apart", i, a->k, a->part[i].ld);
        n += a->part[i].n;
    }
    if (n > INT32_MAX) return err_set(e, E_ARG, "a weight of %llu rows: too many", (unsigned long long)n);
    return OK;
}

status cpu_weight_create(struct stream *st, const struct weight_args *a, struct weight **out, struct err *e)
{
    TRY(weight_check(a, e));
    status s;
    struct weight *w = mem_must(1, sizeof *w);
    *w = (struct weight){ .k = a->k, .form = a->form, .compute = a->compute };
    for (uint32_t i = 0; i < a->n_parts; i++) {
        w->n += a->part[i].n;
        w->has_bias = w->has_bias || a->part[i].bias != NULL;
    }
    const uint32_t columns = a->form == WEIGHT_SWIGLU ? CPU_PANEL / 2 : CPU_PANEL;   /* per panel */
    w->n_panels = ((a->form == WEIGHT_SWIGLU ? w->n / 2 : w->n) + columns - 1) / columns;
    w->panel_bytes =
        a->compute == DT_BF16 ? ((size_t)a->k + 1) / 2 * CPU_PANEL * 4 : (size_t)a->k * CPU_PANEL * 4;
    w->bytes = w->n_panels * w->panel_bytes;
    TRY_GOTO(s, mem_alloc_aligned(&w->data, w->bytes, e), fail);
    if (w->has_bias) {
        TRY_GOTO(s, mem_alloc_aligned(&w->bias, (size_t)w->n_panels * CPU_PANEL * sizeof(float), e), fail);
        w->bytes += (size_t)w->n_panels * CPU_PANEL * sizeof(float);
    }
    struct pack_job j = { a, w, cpu_stream_of(st)->isa->linear };
    cpu_for(st, w->n_panels, 1, pack_body, &j);
    *out = w;
    return OK;
fail:
    cpu_weight_destroy(st, &w);
    return s;
}

void cpu_weight_destroy(struct stream *st, struct weight **w)
{
    (void)st;
    if (*w == NULL) return;
    free((*w)->data);
    free((*w)->bias);
    free(*w);
    *w = NULL;
}

struct weight_shape cpu_weight_shape(const struct weight *w)
{
    return (struct weight_shape){ w->n, w->k, w->compute, w->has_bias, w->bytes };
}

/* ---- rows of a table --------------------------------------------------------------------------------- */

static void embed_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct embed_args *a = arg;
    const struct weight *w = a->table;
    for (uint32_t i = begin; i < end; i++) {
        const uint32_t id = (uint32_t)a->id[i], c = id % CPU_PANEL;
        const char *panel = (const char *)w->data + id / CPU_PANEL * w->panel_bytes;
        float *y = a->y + (size_t)i * w->k;
        if (w->compute == DT_F32) {
            const float *column = (const float *)panel + c;
            for (uint32_t k = 0; k < w->k; k++) y[k] = column[(size_t)k * CPU_PANEL];
            continue;
        }
        const uint32_t *column = (const uint32_t *)panel + c;
        for (uint32_t k = 0; k < w->k; k++)
            y[k] = bf16_to_f32((bf16)(column[(size_t)(k / 2) * CPU_PANEL] >> (k % 2 * 16)));
    }
}

status cpu_embed(struct stream *st, const struct embed_args *a, struct err *e)
{
    if (a->table->form != WEIGHT_PLAIN)
        return err_set(e, E_ARG, "rows can be looked up in a plain weight only");
    for (uint32_t i = 0; i < a->n; i++)
        if (a->id[i] < 0 || (uint32_t)a->id[i] >= a->table->n)
            return err_set(e, E_ARG, "token %d at place %u: the table has %u rows", a->id[i], i, a->table->n);
    struct embed_args args = *a;
    cpu_for(st, a->n, 16, embed_body, &args);
    return OK;
}

/* ---- products ---------------------------------------------------------------------------------------- */

/* A unit of work is one panel for one block of tiles; they are numbered block by block. */
struct product_job {
    const struct cpu_linear_kernels *kernels;
    struct cpu_product p;
    uint32_t n_tiles, block;      /* tiles of the operand, of a block */
};

static void product_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct product_job *j = arg;
    const uint32_t n_panels = j->p.w->n_panels;
    while (begin < end) {
        const uint32_t tile = begin / n_panels * j->block, panel = begin % n_panels;
        const uint32_t panel1 = end - begin < n_panels - panel ? panel + end - begin : n_panels;
        j->kernels->product(&j->p, panel, panel1, tile,
                            j->n_tiles - tile < j->block ? j->n_tiles : tile + j->block);
        begin += panel1 - panel;
    }
}

static bool to_operand(enum linear_mode m) { return m == LINEAR_GELU_OPERAND || m == LINEAR_SWIGLU; }

static status linear_check(const struct linear_args *a, struct err *e)
{
    const struct weight *w = a->w;
    if (a->x->k != w->k || a->x->compute != w->compute)
        return err_set(e, E_ARG, "an operand of k = %u (dtype %d) meets a weight of k = %u (dtype %d)",
                       a->x->k, (int)a->x->compute, w->k, (int)w->compute);
    if ((a->mode == LINEAR_SWIGLU) != (w->form == WEIGHT_SWIGLU))
        return err_set(e, E_ARG, "a gated weight and LINEAR_SWIGLU go together, and with nothing else");
    const uint32_t columns = w->form == WEIGHT_SWIGLU ? w->n / 2 : w->n;
    if (to_operand(a->mode) && (a->out->rows != a->x->rows || a->out->k != columns))
        return err_set(e, E_ARG, "a product of %u x %u goes to an operand of %u x %u", a->x->rows, columns,
                       a->out->rows, a->out->k);
    if (!to_operand(a->mode) && a->ldy < w->n)
        return err_set(e, E_ARG, "rows of %u columns do not fit %zu floats apart", w->n, a->ldy);
    return OK;
}

status cpu_linear(struct stream *st, const struct linear_args *a, struct err *e)
{
    TRY(linear_check(a, e));
    const struct cpu_stream *s = cpu_stream_of(st);
    const struct weight *w = a->w;
    const uint32_t rows = a->x->rows, tile = operand_tile(rows), n_tiles = (rows + tile - 1) / tile;
    if (rows == 0) return OK;
    struct product_job j = { .kernels = s->isa->linear, .n_tiles = n_tiles };
    j.p = (struct cpu_product){ .x = *a->x, .w = w, .mode = a->mode, .y = a->y, .ldy = a->ldy };
    j.p.x_pairs = operand_pairs(s->isa, a->x->compute);
    if (to_operand(a->mode)) {
        j.p.out = *a->out;
        j.p.out_pairs = operand_pairs(s->isa, a->out->compute);
    }
    const uint32_t n_chunks = to_operand(a->mode) ? 1 : (w->k + LINEAR_K_CHUNK - 1) / LINEAR_K_CHUNK;
    const uint32_t n_threads = (uint32_t)threads_count(s->threads);

    /* Blocks of rows that stay in cache; more of them when there are too few panels to go round. */
    const size_t row_bytes = (size_t)w->k / n_chunks * (j.p.x_pairs ? 2 : 4);
    const uint32_t fit = row_bytes * BLOCK_ROWS_MIN >= BLOCK_BYTES
                             ? BLOCK_ROWS_MIN
                             : (uint32_t)(BLOCK_BYTES / (row_bytes + 1));
    uint32_t n_blocks = (rows + fit - 1) / fit;
    if (n_tiles > 1 && n_threads > 1) {
        const uint32_t wanted = (4 * n_threads + w->n_panels - 1) / w->n_panels;
        if (n_blocks < wanted) n_blocks = wanted < n_tiles ? wanted : n_tiles;
    }
    j.block = (n_tiles + n_blocks - 1) / n_blocks;
    n_blocks = (n_tiles + j.block - 1) / j.block;
    const bool alone = (uint64_t)rows * w->n * w->k < ALONE_MACS || n_threads == 1;
    for (uint32_t c = 0; c < n_chunks; c++) {
        j.p.k0 = (uint32_t)((uint64_t)w->k * c / n_chunks) / 4 * 4;
        j.p.k1 = c + 1 == n_chunks ? w->k : (uint32_t)((uint64_t)w->k * (c + 1) / n_chunks) / 4 * 4;
        j.p.first = c == 0;
        j.p.last = c + 1 == n_chunks;
        if (alone) product_body(&j, 0, 0, n_blocks * w->n_panels);
        else cpu_for_shrinking(st, n_blocks * w->n_panels, w->n_panels, product_body, &j);
    }
    return OK;
}
