/* kernels/cpu/misc.c - rows moved and added: gather, scatter, positions, pairs. Bound by memory. */
#include "kernels/cpu/cpu.h"

/* Floats that make a piece of work (64 KiB). */
#define PIECE_FLOATS 16384

static uint32_t rows_of_piece(uint32_t d) { return d >= PIECE_FLOATS ? 1 : PIECE_FLOATS / (d + 1) + 1; }

static void gather_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct gather_args *a = arg;
    for (uint32_t i = begin; i < end; i++)
        memcpy(a->y + (size_t)i * a->d, a->x + (size_t)a->row[i] * a->d, a->d * sizeof(float));
}

status cpu_gather(struct stream *st, const struct gather_args *a, struct err *e)
{
    (void)e;
    struct gather_args args = *a;
    cpu_for(st, a->n, rows_of_piece(a->d), gather_body, &args);
    return OK;
}

static void scatter_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct scatter_args *a = arg;
    for (uint32_t i = begin; i < end; i++)
        memcpy(a->y + (size_t)a->row[i] * a->d, a->x + (size_t)i * a->d, a->d * sizeof(float));
}

status cpu_scatter(struct stream *st, const struct scatter_args *a, struct err *e)
{
    (void)e;
    struct scatter_args args = *a;
    cpu_for(st, a->n, rows_of_piece(a->d), scatter_body, &args);
    return OK;
}

static void add_rows_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct add_rows_args *a = arg;
    uint32_t chunk = 0, place = begin;                       /* of row `begin` */
    for (; begin < end && place >= a->len[chunk]; chunk++) place -= a->len[chunk];
    for (uint32_t i = begin; i < end; i++, place++) {
        for (; place >= a->len[chunk]; chunk++) place -= a->len[chunk];
        float *y = a->y + (size_t)i * a->d;
        const float *row = a->table + (size_t)place * a->d;
        for (uint32_t k = 0; k < a->d; k++) y[k] += row[k];
    }
}

status cpu_add_rows(struct stream *st, const struct add_rows_args *a, struct err *e)
{
    uint64_t rows = 0;
    for (uint32_t c = 0; c < a->n_chunks; c++) rows += a->len[c];
    if (rows > UINT32_MAX) return err_set(e, E_ARG, "%llu rows: too many", (unsigned long long)rows);
    struct add_rows_args args = *a;
    cpu_for(st, (uint32_t)rows, rows_of_piece(a->d), add_rows_body, &args);
    return OK;
}

static void mean_pairs_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct mean_pairs_args *a = arg;
    for (uint32_t i = begin; i < end; i++) {
        const float *x = a->x + (size_t)2 * i * a->d;
        float *y = a->y + (size_t)i * a->d;
        for (uint32_t k = 0; k < a->d; k++) y[k] = (x[k] + x[a->d + k]) * 0.5f;
    }
}

status cpu_mean_pairs(struct stream *st, const struct mean_pairs_args *a, struct err *e)
{
    (void)e;
    struct mean_pairs_args args = *a;
    cpu_for(st, a->n, rows_of_piece(a->d), mean_pairs_body, &args);
    return OK;
}

static void page_copy_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct page_copy_args *a = arg;
    const size_t bytes = a->shape.page_bytes;
    for (uint32_t i = begin; i < end; i++)
        memcpy((char *)a->shape.base + a->dst[i] * bytes, (const char *)a->shape.base + a->src[i] * bytes, bytes);
}

status cpu_page_copy(struct stream *st, const struct page_copy_args *a, struct err *e)
{
    (void)e;
    struct page_copy_args args = *a;
    cpu_for(st, a->n, 1, page_copy_body, &args);
    return OK;
}
