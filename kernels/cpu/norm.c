/* kernels/cpu/norm.c - what makes operands of f32 rows: norms, pack, im2col. Threads share the tiles. */
#include "kernels/cpu/linear.h"

/* Elements that are worth a second thread (about 5 us). */
#define PIECE_ELEMENTS 16384

/* Tiles that make a piece of work. */
static uint32_t tiles_of_piece(uint32_t rows, uint32_t k)
{
    const uint64_t of_tile = (uint64_t)operand_tile(rows) * k;
    return of_tile >= PIECE_ELEMENTS ? 1 : (uint32_t)(PIECE_ELEMENTS / (of_tile + 1)) + 1;
}
static uint32_t n_tiles(uint32_t rows)
{
    const uint32_t tile = operand_tile(rows);
    return (rows + tile - 1) / tile;
}

struct norm_job {
    struct cpu_norm_tile a;
    const struct cpu_linear_kernels *kernels;
    struct operand out;
    bool pairs;
};

static void norm_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct norm_job *j = arg;
    for (uint32_t i = begin; i < end; i++) {
        const struct operand_tile t = operand_tile_at(&j->out, j->pairs, i);
        j->kernels->norm_tile(&j->a, i * operand_tile(j->out.rows), &t);
    }
}

status cpu_norm(struct stream *st, const struct norm_args *a, struct err *e)
{
    if (a->group < 1 || a->out->rows != a->rows || a->out->k != a->d * a->group ||
        (a->row != NULL && a->group != 1))
        return err_set(e, E_ARG, "a norm of %u rows of %u x %u goes to an operand of %u x %u", a->rows,
                       a->group, a->d, a->out->rows, a->out->k);
    if (a->group > 1 && a->d % 2 != 0)
        return err_set(e, E_ARG, "norms of odd width %u cannot be set side by side", a->d);
    const struct cpu_isa *isa = cpu_stream_of(st)->isa;
    struct norm_job j = { { a->x, a->row, a->d, a->group, a->w, a->b, a->eps }, isa->linear, *a->out, false };
    j.pairs = operand_pairs(isa, a->out->compute);
    cpu_for(st, n_tiles(a->rows), tiles_of_piece(a->rows, a->out->k), norm_body, &j);
    return OK;
}

struct pack_job {
    const struct pack_args *a;
    const struct cpu_linear_kernels *kernels;
    bool pairs;
};

static void pack_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct pack_job *j = arg;
    for (uint32_t i = begin; i < end; i++) {
        const struct operand_tile t = operand_tile_at(j->a->out, j->pairs, i);
        const size_t row0 = (size_t)i * operand_tile(j->a->rows);
        j->kernels->fill_tile(&t, 0, j->a->k, j->a->x + row0 * j->a->ldx, j->a->ldx);
    }
}

status cpu_pack(struct stream *st, const struct pack_args *a, struct err *e)
{
    if (a->out->rows != a->rows || a->out->k != a->k)
        return err_set(e, E_ARG, "%u x %u values go to an operand of %u x %u", a->rows, a->k, a->out->rows,
                       a->out->k);
    const struct cpu_isa *isa = cpu_stream_of(st)->isa;
    struct pack_job j = { a, isa->linear, operand_pairs(isa, a->out->compute) };
    cpu_for(st, n_tiles(a->rows), tiles_of_piece(a->rows, a->k), pack_body, &j);
    return OK;
}

struct im2col_job {
    const struct im2col_args *a;
    const struct cpu_linear_kernels *kernels;
    bool pairs;
};

/* Where an output row begins: its chunk's first time step and length, and its place in it. */
struct place { uint32_t t0, len, u; };

static uint32_t rows_of_chunk(const struct im2col_args *a, uint32_t c)
{
    return (a->len[c] - 1) / a->stride + 1;
}

static struct place place_of(const struct im2col_args *a, uint32_t row)
{
    uint32_t t0 = 0, c = 0;
    for (; row >= rows_of_chunk(a, c); c++) {
        row -= rows_of_chunk(a, c);
        t0 += a->len[c];
    }
    return (struct place){ t0, a->len[c], row };
}

static void im2col_body(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    enum { CHANNELS = 32 };                                  /* of one step: 96 columns, a multiple of 32 */
    const struct im2col_job *j = arg;
    const struct im2col_args *a = j->a;
    for (uint32_t i = begin; i < end; i++) {
        const struct operand_tile t = operand_tile_at(a->out, j->pairs, i);
        struct place at[CPU_TILE];
        for (uint32_t r = 0; r < t.m; r++) at[r] = place_of(a, i * operand_tile(a->out->rows) + r);
        for (uint32_t ch = 0; ch < a->channels; ch += CHANNELS) {
            const uint32_t n = a->channels - ch < CHANNELS ? a->channels - ch : CHANNELS;
            float block[CPU_TILE][3 * CHANNELS];
            for (uint32_t r = 0; r < t.m; r++)
                for (uint32_t tap = 0; tap < 3; tap++) {
                    const uint32_t step = at[r].u * a->stride + tap;      /* one more than the time step */
                    const bool inside = step >= 1 && step <= at[r].len;
                    const float *x = inside ? a->x + (at[r].t0 + step - 1) * a->st + ch * a->sc : NULL;
                    for (uint32_t c = 0; c < n; c++) block[r][3 * c + tap] = inside ? x[c * a->sc] : 0.0f;
                }
            j->kernels->fill_tile(&t, 3 * ch, 3 * n, block[0], 3 * CHANNELS);
        }
    }
}

status cpu_im2col(struct stream *st, const struct im2col_args *a, struct err *e)
{
    uint64_t rows = 0;
    for (uint32_t c = 0; c < a->n_chunks; c++) {
        if (a->len[c] == 0) return err_set(e, E_ARG, "chunk %u of a convolution has no time steps", c);
        rows += rows_of_chunk(a, c);
    }
    if (rows != a->out->rows || a->out->k != 3 * a->channels)
        return err_set(e, E_ARG, "a convolution of %llu rows of %u channels goes to an operand of %u x %u",
                       (unsigned long long)rows, a->channels, a->out->rows, a->out->k);
    const struct cpu_isa *isa = cpu_stream_of(st)->isa;
    struct im2col_job j = { a, isa->linear, operand_pairs(isa, a->out->compute) };
    cpu_for(st, n_tiles(a->out->rows), tiles_of_piece(a->out->rows, a->out->k), im2col_body, &j);
    return OK;
}
