/* kernels/cuda/table.c - the ops table of CUDA: what each op's arguments become before its launcher gets them. See inside.h.
 * An op's host lists travel in one piece; results that it gives on the host are waited for. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cuda/inside.h"

/* Splits of decode attention that one launch works through: its scratch does not grow with the batch. */
#define DECODE_TILES 4096u

/* What a step of decode may hold back (inside.h). */
CUDA_LAUNCHER(embed)
CUDA_LAUNCHER(norm)
CUDA_LAUNCHER(pack)
CUDA_LAUNCHER(rope)
CUDA_LAUNCHER(kv_write)
CUDA_LAUNCHER(attention)
CUDA_LAUNCHER(attention_decode)

static uint32_t pages_of(uint32_t rows) { return (rows + CUDA_PAGE_TOKENS - 1) / CUDA_PAGE_TOKENS; }
static uint32_t tiles_of(uint32_t rows) { return (rows + CUDA_TILE_ROWS - 1) / CUDA_TILE_ROWS; }
static uint32_t splits_of(uint32_t rows) { return (pages_of(rows) + CUDA_SPLIT_PAGES - 1) / CUDA_SPLIT_PAGES; }
static struct cuda_pages pages(const struct kv_shape *s) { return (struct cuda_pages){ s->base, s->page_bytes, s->G, s->D, s->dtype }; }

/* ---- sizes ----------------------------------------------------------------------------------------------- */

static size_t cuda_operand_bytes(const struct stream *st, uint32_t rows, uint32_t k, enum dtype compute)
{
    (void)st;
    return (size_t)rows * cuda_columns(k) * dtype_size(compute);
}

static size_t pages_bytes(const struct stream *st, uint32_t G, uint32_t D, enum dtype dtype)
{
    (void)st;
    return cuda_page_bytes(G, D, dtype);
}

static uint32_t decode_tiles(uint32_t n, uint32_t max_keys)
{
    const uint64_t each = splits_of(max_keys), all = n * each;
    return (uint32_t)(all < DECODE_TILES ? all : each > DECODE_TILES ? each : DECODE_TILES);
}

/* Places of statistics of splits, before the sums: as many whatever a launch has, so that the sums begin where they always do. */
static size_t stats_tiles(uint32_t splits) { return splits > DECODE_TILES ? splits : DECODE_TILES; }

/* The most of: statistics and parts of decode; rows' log-sum-exp of segments and scores, and the parts of those. */
static size_t cuda_attention_scratch(const struct stream *st, uint32_t H, uint32_t D, uint32_t n, uint32_t max_keys)
{
    (void)st;
    const size_t splits = (pages_of(max_keys) + CUDA_STATS_PAGES - 1) / CUDA_STATS_PAGES, rows = (size_t)n * H;
    const size_t decode = (stats_tiles(splits_of(max_keys)) * (size_t)2 + (size_t)decode_tiles(n, max_keys) * D) * H;
    const size_t other = rows + 2 * splits * rows;
    return (decode > other ? decode : other) * sizeof(float) + 512;
}

/* What the CPU keeps on the host is this device's own room. */
static size_t select_scratch(const struct stream *st, uint32_t n)
{
    (void)st, (void)n;
    return 64;
}
static size_t pair_scratch(const struct stream *st, uint32_t d, size_t n)
{
    (void)st, (void)d, (void)n;
    return 64;
}
static size_t pagerank_scratch(const struct stream *st, uint32_t H, uint32_t n)
{
    (void)st, (void)H, (void)n;
    return 64;
}

/* ---- rows ------------------------------------------------------------------------------------------------ */

/* One list of n words; there: it is on the device already. */
static status send_list(struct cuda_stream *s, const void *list, size_t n, bool there, const void **out, struct err *e)
{
    struct cuda_piece p;
    TRY(cuda_join(s, e));
    if (list == NULL || there) {
        *out = list;
        return OK;
    }
    TRY(cuda_piece_begin(s, cuda_piece_bytes(n * 4, 1), &p, e));
    *out = cuda_piece_put(&p, list, n * 4);
    return cuda_piece_send(s, &p, e);
}

static status embed(struct stream *st, const struct embed_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    const struct weight *w = a->table;
    const void *id;
    if (w->form != WEIGHT_PLAIN) return err_set(e, E_ARG, "rows can be looked up in a plain weight only");
    for (uint32_t i = 0; i < a->n; i++)
        if (a->id[i] < 0 || (uint32_t)a->id[i] >= w->n)
            return err_set(e, E_ARG, "token %d at place %u: the table has %u rows", a->id[i], i, w->n);
    TRY(send_list(s, a->id, a->n, false, &id, e));
    struct cuda_embed_args k = { w->data, w->compute, id, a->n, w->k, a->y, cuda_columns(w->k) };
    return CUDA_RUN(s, run_embed, &k, e);
}

static status norm(struct stream *st, const struct norm_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    const void *row;
    if (a->out->k != a->group * a->d || a->out->rows != a->rows || (a->row != NULL && a->group != 1))
        return err_set(e, E_ARG, "a norm of %u rows of %u x %u goes to an operand of %u x %u", a->rows, a->group, a->d, a->out->rows,
                       a->out->k);
    TRY(send_list(s, a->row, a->rows, a->row_on_device, &row, e));
    struct cuda_norm_args k = { .x = a->x, .row = row, .rows = a->rows, .d = a->d, .group = a->group, .w = a->w, .b = a->b, .eps = a->eps,
                                .out = a->out->data, .out_dtype = a->out->compute, .ldo = cuda_columns(a->out->k) };
    return CUDA_RUN(s, run_norm, &k, e);
}

static status pack(struct stream *st, const struct pack_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_pack_args k = { a->x, a->ldx, a->rows, a->k, a->out->data, a->out->compute, cuda_columns(a->k) };
    TRY(cuda_join(s, e));
    return CUDA_RUN(s, run_pack, &k, e);
}

static status im2col(struct stream *st, const struct im2col_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    void *steps, *rows;
    const size_t n = a->n_chunks + 1;
    TRY(cuda_enter(s, e));
    TRY(cuda_piece_begin(s, cuda_piece_bytes(8 * n, 2), &p, e));
    const uint32_t *first_step = cuda_piece_room(&p, 4 * n, &steps), *first_row = cuda_piece_room(&p, 4 * n, &rows);
    uint32_t *step = steps, *row = rows;
    step[0] = row[0] = 0;
    for (uint32_t c = 0; c < a->n_chunks; c++) {
        if (a->len[c] == 0) return err_set(e, E_ARG, "im2col: chunk %u is empty", c);
        step[c + 1] = step[c] + a->len[c];
        row[c + 1] = row[c] + (a->len[c] - 1) / a->stride + 1;
    }
    const uint32_t all = row[a->n_chunks];
    if (a->out->rows != all || a->out->k != 3 * a->channels)
        return err_set(e, E_ARG, "im2col of %u x %u goes to an operand of %u x %u", all, 3 * a->channels, a->out->rows, a->out->k);
    TRY(cuda_piece_send(s, &p, e));
    return cuda_im2col(s->main, &(struct cuda_im2col_args){ .x = a->x, .st = a->st, .sc = a->sc, .channels = a->channels,
                                                            .stride = a->stride, .n_chunks = a->n_chunks, .rows = all,
                                                            .first_step = first_step, .first_row = first_row, .out = a->out->data,
                                                            .out_dtype = a->out->compute, .ldo = cuda_columns(a->out->k) }, e);
}

static status move(struct stream *st, const float *x, const uint32_t *row, bool there, bool gather, uint32_t n, uint32_t d, float *y,
                   struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    const void *list;
    TRY(cuda_enter(s, e));
    TRY(send_list(s, row, n, there, &list, e));
    return cuda_move(s->main, &(struct cuda_move_args){ .x = x, .from = gather ? list : NULL, .to = gather ? NULL : list, .n = n, .d = d,
                                                        .y = y }, e);
}
static status gather(struct stream *st, const struct gather_args *a, struct err *e)
{
    return move(st, a->x, a->row, a->row_on_device, true, a->n, a->d, a->y, e);
}
static status scatter(struct stream *st, const struct scatter_args *a, struct err *e)
{
    return move(st, a->x, a->row, false, false, a->n, a->d, a->y, e);
}

static status add_rows(struct stream *st, const struct add_rows_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    void *host;
    uint64_t all = 0;
    TRY(cuda_enter(s, e));
    TRY(cuda_piece_begin(s, cuda_piece_bytes(4 * ((size_t)a->n_chunks + 1), 1), &p, e));
    const uint32_t *first = cuda_piece_room(&p, 4 * ((size_t)a->n_chunks + 1), &host);
    uint32_t *row = host;
    for (uint32_t c = 0; c <= a->n_chunks; c++) {
        row[c] = (uint32_t)all;
        all += c < a->n_chunks ? a->len[c] : 0;
    }
    if (all > UINT32_MAX) return err_set(e, E_ARG, "%llu rows: too many", (unsigned long long)all);
    TRY(cuda_piece_send(s, &p, e));
    return cuda_add_rows(s->main, &(struct cuda_add_rows_args){ a->y, a->table, a->d, a->n_chunks, (uint32_t)all, first }, e);
}

static status mean_pairs(struct stream *st, const struct mean_pairs_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    TRY(cuda_enter(s, e));
    return cuda_mean_pairs(s->main, &(struct cuda_mean_pairs_args){ a->x, a->n, a->d, a->y }, e);
}

/* ---- pages ----------------------------------------------------------------------------------------------- */

static status rope(struct stream *st, const struct rope_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    const void *row;
    if (a->D % 2 != 0) return err_set(e, E_ARG, "rope: head dim %u is odd", a->D);
    TRY(send_list(s, a->row, a->n, a->row_on_device, &row, e));
    struct cuda_rope_args k = { a->x, a->ldx, a->n, a->heads, a->D, a->cos, a->sin, row };
    return CUDA_RUN(s, run_rope, &k, e);
}

static status shape_check(const struct kv_shape *s, struct err *e)
{
    if (s->page_tokens == CUDA_PAGE_TOKENS && s->page_bytes == cuda_page_bytes(s->G, s->D, s->dtype)) return OK;
    return err_set(e, E_ARG, "pages of %u tokens and %zu bytes: here they have %d and %zu", s->page_tokens, s->page_bytes, CUDA_PAGE_TOKENS,
                   cuda_page_bytes(s->G, s->D, s->dtype));
}

static status kv_write(struct stream *st, const struct kv_write_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    void *seqs, *lists, *items;
    size_t n_items = 0;
    const uint32_t n = a->seq_start[a->n_seqs], D = a->shape.D;
    TRY(shape_check(&a->shape, e));
    if (D % 2 != 0) return err_set(e, E_ARG, "keys of head dim %u: it must be even", D);
    for (uint32_t i = 0; i < a->n_seqs; i++) {
        const uint32_t rows = a->seq_start[i + 1] - a->seq_start[i], from = a->kv_start[i];
        if (rows > 0) n_items += pages_of(from + rows) - from / CUDA_PAGE_TOKENS;
    }
    TRY(cuda_join(s, e));
    TRY(cuda_piece_begin(s, cuda_piece_bytes(a->n_seqs * sizeof(struct cuda_seq) + n_items * 4 + n_items * sizeof(struct cuda_kv_item) +
                                             (a->row_on_device ? 0 : (size_t)n * 4), 4), &p, e));
    struct cuda_kv_write_args k = { .kv = a->kv, .ldkv = a->ldkv, .cos = a->cos, .sin = a->sin, .pages = pages(&a->shape) };
    k.seq = cuda_piece_room(&p, a->n_seqs * sizeof(struct cuda_seq), &seqs);
    k.page = cuda_piece_room(&p, n_items * 4, &lists);
    k.item = cuda_piece_room(&p, n_items * sizeof(struct cuda_kv_item), &items);
    k.row = a->row_on_device ? a->row : cuda_piece_put(&p, a->row, (size_t)n * 4);
    struct cuda_seq *seq = seqs;
    struct cuda_kv_item *item = items;
    uint32_t *page = lists, at = 0;
    for (uint32_t i = 0; i < a->n_seqs; i++) {
        const uint32_t rows = a->seq_start[i + 1] - a->seq_start[i], from = a->kv_start[i], first = from / CUDA_PAGE_TOKENS;
        const uint32_t used = pages_of(from + rows);
        seq[i] = (struct cuda_seq){ a->seq_start[i], rows, from, at - first };    /* place `first` of the view is at `at`, modulo 2^32 */
        for (uint32_t j = first; rows > 0 && j < used; j++) {
            *item++ = (struct cuda_kv_item){ i, j };
            page[at++] = a->view[i].page[j];
        }
    }
    k.n_items = (uint32_t)n_items;
    TRY(cuda_piece_send(s, &p, e));
    return CUDA_RUN(s, run_kv_write, &k, e);
}

static status page_copy(struct stream *st, const struct page_copy_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    TRY(shape_check(&a->shape, e));
    TRY(cuda_enter(s, e));
    TRY(cuda_piece_begin(s, cuda_piece_bytes((size_t)a->n * 8, 2), &p, e));
    const uint32_t *src = cuda_piece_put(&p, a->src, (size_t)a->n * 4), *dst = cuda_piece_put(&p, a->dst, (size_t)a->n * 4);
    TRY(cuda_piece_send(s, &p, e));
    return cuda_page_copy(s->main, &(struct cuda_page_copy_args){ pages(&a->shape), src, dst, a->n }, e);
}

static status kv_compact(struct stream *st, const struct kv_compact_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    void *seqs, *lists, *rows;
    size_t n_pages = 0, n_rows = 0;
    TRY(shape_check(&a->shape, e));
    for (uint32_t v = 0; v < a->n_views; v++) {
        n_pages += pages_of(a->view[v].n_rows);
        n_rows += a->n[v];
    }
    TRY(cuda_enter(s, e));
    TRY(cuda_piece_begin(s, cuda_piece_bytes(a->n_views * sizeof(struct cuda_seq) + 4 * (n_pages + n_rows), 3), &p, e));
    struct cuda_kv_compact_args k = { .pages = pages(&a->shape), .n_views = a->n_views };
    k.seq = cuda_piece_room(&p, a->n_views * sizeof(struct cuda_seq), &seqs);
    k.page = cuda_piece_room(&p, n_pages * 4, &lists);
    k.row = cuda_piece_room(&p, n_rows * 4, &rows);
    struct cuda_seq *seq = seqs;
    uint32_t *page = lists, *row = rows, page_at = 0, row_at = 0;
    for (uint32_t v = 0; v < a->n_views; v++) {
        const uint32_t used = pages_of(a->view[v].n_rows);
        seq[v] = (struct cuda_seq){ .row = row_at, .n_rows = a->n[v], .keys = a->view[v].n_rows, .page = page_at };
        if (used > 0) memcpy(page + page_at, a->view[v].page, used * sizeof *page);
        if (a->n[v] > 0) memcpy(row + row_at, a->row[v], a->n[v] * sizeof *row);
        page_at += used;
        row_at += a->n[v];
    }
    TRY(cuda_piece_send(s, &p, e));
    return cuda_kv_compact(s->main, &k, e);
}

/* ---- attention ------------------------------------------------------------------------------------------- */

/* Where a kernel writes rows of k columns: the operand, or where its rows do not lie end to end the room, from which they are
 * packed. */
static status dense_out(struct cuda_stream *s, const struct operand *o, void **out, struct err *e)
{
    *out = o->data;
    if (cuda_columns(o->k) == o->k) return OK;
    TRY(cuda_room(s, (size_t)o->rows * o->k * sizeof(float), e));
    *out = s->room;
    return OK;
}
/* The type that it then writes. */
static enum dtype dense_type(const struct operand *o) { return cuda_columns(o->k) == o->k ? o->compute : DT_F32; }
static status dense_pack(struct cuda_stream *s, const struct operand *o, struct err *e)
{
    if (cuda_columns(o->k) == o->k) return OK;
    struct cuda_pack_args k = { s->room, o->k, o->rows, o->k, o->data, o->compute, cuda_columns(o->k) };
    return CUDA_RUN(s, run_pack, &k, e);
}

/* Keys that some row of sequence i sees: what its last row does, or where only the device knows that, all there are. */
static uint32_t seen(const struct attention_args *a, uint32_t i)
{
    const uint32_t end = a->seq_start[i + 1];
    if (end == a->seq_start[i]) return 0;
    return a->visible_on_device ? a->view[i].n_rows : a->visible[end - 1];
}

/* Sequences s0 .. s1 of a batch: their lists, and one launch. out: its first row. */
static status attend_some(struct cuda_stream *s, const struct attention_args *a, uint32_t s0, uint32_t s1, bool decode, void *out,
                          enum dtype out_dtype, struct err *e)
{
    struct cuda_piece p;
    void *seqs, *lists, *tiles, *firsts;
    const uint32_t n_seqs = s1 - s0, row0 = a->seq_start[s0], rows = a->seq_start[s1] - row0, group = a->H / a->shape.G;
    size_t n_pages = 0, n_tiles = 0;
    for (uint32_t i = s0; i < s1; i++) {
        const uint32_t n = a->seq_start[i + 1] - a->seq_start[i];
        if (n == 0) continue;
        n_pages += pages_of(seen(a, i));
        n_tiles += decode ? splits_of(a->visible[a->seq_start[i]]) : tiles_of(n * group);
    }
    const size_t stats = (size_t)stats_tiles((uint32_t)n_tiles) * a->H * 2;
    if (decode) {
        n_pages = cuda_step_room(s, (uint32_t)n_pages, UINT32_MAX);
        n_tiles = cuda_step_room(s, (uint32_t)n_tiles, DECODE_TILES);
    }
    TRY(cuda_piece_begin(s, cuda_piece_bytes(n_seqs * (sizeof(struct cuda_seq) + 4) + 4 * (n_pages + (a->visible_on_device ? 0 : rows)) +
                                             n_tiles * sizeof(struct cuda_tile), 5), &p, e));
    struct cuda_attention_args k = { .q = a->q + (size_t)row0 * a->ldq, .ldq = a->ldq, .H = a->H, .scale = a->scale,
                                     .pages = pages(&a->shape), .n_seqs = n_seqs, .n_tiles = (uint32_t)n_tiles, .out = out,
                                     .out_dtype = out_dtype };
    k.seq = cuda_piece_room(&p, n_seqs * sizeof(struct cuda_seq), &seqs);
    k.page = cuda_piece_room(&p, n_pages * 4, &lists);
    k.tile = cuda_piece_room(&p, n_tiles * sizeof(struct cuda_tile), &tiles);
    k.first_item = cuda_piece_room(&p, n_seqs * (size_t)4, &firsts);
    k.visible = a->visible_on_device ? a->visible + row0 : cuda_piece_put(&p, a->visible + row0, rows * (size_t)4);
    struct cuda_seq *seq = seqs;
    struct cuda_tile *tile = tiles;
    uint32_t *page = lists, *first = firsts, at = 0, done = 0;
    for (uint32_t i = s0; i < s1; i++) {
        const uint32_t row = a->seq_start[i], n = a->seq_start[i + 1] - row, see = seen(a, i);
        const uint32_t used = pages_of(see), step = decode ? (uint32_t)CUDA_SPLIT_PAGES : (uint32_t)CUDA_TILE_ROWS;
        seq[i - s0] = (struct cuda_seq){ row - row0, n, see, at };
        first[i - s0] = done;
        if (used > 0) memcpy(page + at, a->view[i].page, used * sizeof *page);
        for (uint32_t x = 0; n > 0 && x < (decode ? used : n * group); x += step) tile[done++] = (struct cuda_tile){ i - s0, x };
        at += used;
    }
    while (done < n_tiles) tile[done++] = (struct cuda_tile){ 0, CUDA_NO_TILE };
    k.part_stats = a->scratch;
    k.part = k.part_stats + stats;
    TRY(cuda_piece_send(s, &p, e));
    return CUDA_RUN(s, decode ? run_attention_decode : run_attention, &k, e);
}

static status attend(struct stream *st, const struct attention_args *a, bool decode, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    const uint32_t rows = a->seq_start[a->n_seqs];
    void *out;
    TRY(shape_check(&a->shape, e));
    if (a->shape.G == 0 || a->H % a->shape.G != 0 || !(a->scale > 0))
        return err_set(e, E_ARG, "attention of %u heads on %u, scale %g: each must serve as many, and the scale be above 0", a->H,
                       a->shape.G,
                       (double)a->scale);
    if (a->out->rows != rows || a->out->k != a->H * a->shape.D)
        return err_set(e, E_ARG, "attention of %u rows of %u x %u goes to an operand of %u x %u", rows, a->H, a->shape.D, a->out->rows,
                       a->out->k);
    if (decode && a->visible_on_device) return err_set(e, E_ARG, "decode attention: what rows see is a list on the host");
    for (uint32_t i = 0; i < a->n_seqs; i++) {
        const uint32_t n = a->seq_start[i + 1] - a->seq_start[i], last = seen(a, i);
        if (last > a->view[i].n_rows || (decode && n != 1))
            return err_set(e, E_ARG, "attention: sequence %u has %u rows, the last sees %u of %u keys", i, n, last, a->view[i].n_rows);
    }
    TRY(cuda_join(s, e));
    TRY(dense_out(s, a->out, &out, e));
    const enum dtype type = dense_type(a->out);
    for (uint32_t s0 = 0, s1; s0 < a->n_seqs; s0 = s1) {
        uint32_t tiles = 0;
        for (s1 = s0; s1 < a->n_seqs; s1++) {
            const uint32_t more = decode ? splits_of(a->visible[s1]) : 0;
            if (s1 > s0 && tiles + more > DECODE_TILES) break;
            tiles += more;
        }
        TRY(attend_some(s, a, s0, s1, decode, (char *)out + (size_t)a->seq_start[s0] * a->out->k * dtype_size(type), type, e));
    }
    return dense_pack(s, a->out, e);
}
static status attention(struct stream *st, const struct attention_args *a, struct err *e) { return attend(st, a, false, e); }
static status attention_decode(struct stream *st, const struct attention_args *a, struct err *e) { return attend(st, a, true, e); }

static status segment_attention(struct stream *st, const struct segment_attention_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    void *tiles, *out;
    size_t n_tiles = 0;
    const uint32_t rows = a->seg_start[a->n_segs];
    if (a->out->rows != rows || a->out->k != a->heads * a->D || !(a->scale > 0))
        return err_set(e, E_ARG, "attention of %u rows of %u x %u, scale %g, goes to an operand of %u x %u", rows, a->heads, a->D,
                       (double)a->scale, a->out->rows, a->out->k);
    for (uint32_t i = 0; i < a->n_segs; i++) n_tiles += tiles_of(a->seg_start[i + 1] - a->seg_start[i]);
    TRY(cuda_enter(s, e));
    TRY(dense_out(s, a->out, &out, e));
    TRY(cuda_piece_begin(s, cuda_piece_bytes(n_tiles * sizeof(struct cuda_tile) + 4 * ((size_t)a->n_segs + 1), 2), &p, e));
    struct cuda_segment_attention_args k = { .q = a->q, .k = a->k, .v = a->v, .ld = a->ld, .heads = a->heads, .D = a->D, .scale = a->scale,
                                             .n_tiles = (uint32_t)n_tiles, .out = out, .out_dtype = dense_type(a->out),
                                             .received = a->received, .lse = a->scratch };
    k.seg_start = cuda_piece_put(&p, a->seg_start, 4 * ((size_t)a->n_segs + 1));
    k.tile = cuda_piece_room(&p, n_tiles * sizeof(struct cuda_tile), &tiles);
    struct cuda_tile *tile = tiles;
    for (uint32_t i = 0; i < a->n_segs; i++)
        for (uint32_t x = 0; x < a->seg_start[i + 1] - a->seg_start[i]; x += CUDA_TILE_ROWS) *tile++ = (struct cuda_tile){ i, x };
    TRY(cuda_piece_send(s, &p, e));
    TRY(cuda_segment_attention(s->main, &k, e));
    return dense_pack(s, a->out, e);
}

static status query_scores(struct stream *st, const struct query_scores_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    const uint32_t n_pages = pages_of(a->view.n_rows), splits = (n_pages + CUDA_STATS_PAGES - 1) / CUDA_STATS_PAGES;
    TRY(shape_check(&a->shape, e));
    const uint32_t last = a->n_q == 0 || a->visible_on_device ? 0 : a->visible[a->n_q - 1];
    if (last > a->view.n_rows || !(a->scale > 0))
        return err_set(e, E_ARG, "scores, scale %g: the last row sees %u of %u keys", (double)a->scale, last, a->view.n_rows);
    TRY(cuda_enter(s, e));
    TRY(cuda_piece_begin(s, cuda_piece_bytes(4 * ((size_t)n_pages + a->n_q), 2), &p, e));
    struct cuda_query_scores_args k = { .q = a->q, .ldq = a->ldq, .n_q = a->n_q, .H = a->H, .scale = a->scale, .pages = pages(&a->shape),
                                        .n_keys = a->view.n_rows, .partial = a->partial, .n_splits = splits };
    k.page = cuda_piece_put(&p, a->view.page, 4 * (size_t)n_pages);
    k.visible = a->visible_on_device ? a->visible : cuda_piece_put(&p, a->visible, 4 * (size_t)a->n_q);
    k.lse = a->scratch;
    k.part = k.lse + ((size_t)a->n_q * a->H + 1) / 2 * 2;           /* of pairs */
    TRY(cuda_piece_send(s, &p, e));
    return cuda_query_scores(s->main, &k, e);
}

/* ---- what is chosen, on the host ------------------------------------------------------------------------- */

static status select_op(struct stream *st, const struct select_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    const size_t n = a->n;
    if (a->k > a->n) return err_set(e, E_ARG, "selection: %u tokens to drop of %u", a->k, a->n);
    if (a->n == a->k) return OK;
    TRY(cuda_enter(s, e));
    TRY(cuda_room(s, n * 13 + 1024, e));
    TRY(cuda_piece_begin(s, cuda_piece_bytes(8 * n, 2), &p, e));
    char *at = s->room;
    struct cuda_select_args k = { .n = a->n, .k = a->k, .tds = a->tds, .relative = a->relative, .lambda_div = a->lambda_div,
                                  .max_chunk = a->max_chunk };
    k.score = cuda_piece_put(&p, a->score, 4 * n);
    k.chunk = cuda_piece_put(&p, a->tds ? a->chunk : NULL, 4 * n);
    k.key = cuda_take(&at, 8 * n);
    k.keep = cuda_take(&at, 4 * n);
    k.drop = cuda_take(&at, n);
    TRY(cuda_piece_send(s, &p, e));
    TRY(cuda_select(s->main, &k, e));
    return cuda_download(st, a->keep, k.keep, 4 * (n - a->k), e);
}

static size_t choose_scratch(const struct stream *st, uint32_t n)
{
    (void)st;
    return (size_t)n * 10 + 3 * 256;
}

static status list_rows(struct stream *st, const struct list_rows_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    if (a->n_out > a->n || (a->mark == NULL && a->n_out != a->n))
        return err_set(e, E_ARG, "list: %u rows were to be picked of %u", a->n_out, a->n);
    TRY(cuda_enter(s, e));
    return cuda_list_rows(s->main, &(struct cuda_list_rows_args){ .id = a->id, .mark = a->mark, .n = a->n, .first = a->first,
                                                                  .place = a->place, .n_out = a->n_out, .row = a->row,
                                                                  .out_id = a->out_id, .visible = a->visible, .of = a->of }, e);
}

static status choose(struct stream *st, const struct choose_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    char *at = a->scratch;
    if (a->k > a->n_of || a->n_of > a->n)
        return err_set(e, E_ARG, "selection: %u tokens to drop of %u among %u rows", a->k, a->n_of, a->n);
    TRY(cuda_enter(s, e));
    struct cuda_select_args k = { .score = a->score, .chunk = a->chunk, .n = a->n, .k = a->k, .tds = a->tds, .relative = a->relative,
                                  .lambda_div = a->lambda_div, .max_chunk = a->max_chunk, .id = a->id, .mark = a->mark, .of = a->of,
                                  .n_of = a->n_of, .first = a->first, .row = a->row, .out_id = a->out_id, .visible = a->visible };
    k.key = cuda_take(&at, 8 * (size_t)a->n);
    k.drop = cuda_take(&at, a->n);
    k.in = cuda_take(&at, a->n);
    TRY(cuda_score(s->main, &(struct cuda_score_args){ a->partial, a->G, a->n, a->by, a->score }, e));
    return cuda_select(s->main, &k, e);
}

/* Pairs have no bound but the caller's: as many at a time as their lists have room for. */
static status cosine(struct stream *st, const struct cosine_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    TRY(cuda_enter(s, e));
    const size_t most = (s->lists.half - 64) / 8;
    for (size_t at = 0, n; at < a->n; at += n) {
        struct cuda_piece p;
        n = a->n - at < most ? a->n - at : most;
        TRY(cuda_room(s, 4 * n, e));
        TRY(cuda_piece_begin(s, cuda_piece_bytes(8 * n, 2), &p, e));
        const uint32_t *i = cuda_piece_put(&p, a->a + at, 4 * n), *j = cuda_piece_put(&p, a->b + at, 4 * n);
        TRY(cuda_piece_send(s, &p, e));
        TRY(cuda_cosine(s->main, &(struct cuda_cosine_args){ a->x, a->y ? a->y : a->x, a->d, (uint32_t)n, i, j, s->room }, e));
        TRY(cuda_download(st, a->out + at, s->room, 4 * n, e));
    }
    return OK;
}

static size_t groups_bytes(const struct row_groups *g) { return cuda_piece_bytes(4 * ((size_t)g->n_groups + 1 + g->start[g->n_groups]),
                                                                                 2); }
static struct cuda_groups groups(struct cuda_piece *p, const struct row_groups *g)
{
    const uint32_t n = g->start[g->n_groups];
    return (struct cuda_groups){ .x = g->x, .d = g->d, .n_groups = g->n_groups, .n = n,
                                 .start = cuda_piece_put(p, g->start, 4 * ((size_t)g->n_groups + 1)),
                                 .row = cuda_piece_put(p, g->row, 4 * (size_t)n) };
}

/* The lists of g, more bytes for n more lists, and room. */
static status groups_begin(struct cuda_stream *s, const struct row_groups *g, size_t more, size_t n, size_t room, struct cuda_piece *p,
                           struct cuda_groups *out, struct err *e)
{
    TRY(cuda_enter(s, e));
    TRY(cuda_room(s, room, e));
    TRY(cuda_piece_begin(s, groups_bytes(g) + cuda_piece_bytes(more, n), p, e));
    *out = groups(p, g);
    return OK;
}

static status means(struct stream *st, const struct means_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    struct cuda_means_args k = { .unit = a->unit, .y = a->y };
    TRY(groups_begin(s, &a->g, 0, 0, 4 * (size_t)a->g.start[a->g.n_groups] + 256, &p, &k.g, e));
    k.norm = s->room;
    TRY(cuda_piece_send(s, &p, e));
    return cuda_means(s->main, &k, e);
}

static status nearest(struct stream *st, const struct nearest_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    const size_t n = a->x.start[a->x.n_groups], m = a->y.start[a->y.n_groups];
    struct cuda_nearest_args k;
    if (n == 0) return OK;
    TRY(groups_begin(s, &a->x, groups_bytes(&a->y), 0, 12 * n + 4 * m + 4 * 256, &p, &k.x, e));
    k.y = groups(&p, &a->y);
    char *at = s->room;
    k.best = cuda_take(&at, 4 * n);
    k.which = cuda_take(&at, 4 * n);
    k.x_norm = cuda_take(&at, 4 * n);
    k.y_norm = cuda_take(&at, 4 * m);
    TRY(cuda_piece_send(s, &p, e));
    TRY(cuda_nearest(s->main, &k, e));
    TRY(cuda_download(st, a->best, k.best, 4 * n, e));
    return cuda_download(st, a->which, k.which, 4 * n, e);
}

static status density(struct stream *st, const struct density_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    const size_t n = a->g.start[a->g.n_groups];
    struct cuda_density_args k = { .k = a->k };
    if (n == 0) return OK;
    TRY(groups_begin(s, &a->g, 0, 0, 24 * n + 4 * 256, &p, &k.g, e));
    char *at = s->room;
    k.out = cuda_take(&at, 4 * n);
    k.norm = cuda_take(&at, 4 * n);
    k.dense = cuda_take(&at, 8 * n);
    k.most = cuda_take(&at, 8 * n);
    TRY(cuda_piece_send(s, &p, e));
    TRY(cuda_density(s->main, &k, e));
    return cuda_download(st, a->out, k.out, 4 * n, e);
}

static status farthest(struct stream *st, const struct farthest_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_piece p;
    void *host;
    size_t n_pick = 0;
    const size_t n = a->g.start[a->g.n_groups], n_groups = a->g.n_groups;
    for (size_t g = 0; g < n_groups; g++) n_pick += a->n_pick[g];
    if (n_pick == 0) return OK;
    struct cuda_farthest_args k = { .first = a->first };
    TRY(groups_begin(s, &a->g, 4 * n + 8 * n_groups, 3, 25 * n + 6 * 256, &p, &k.g, e));
    k.weight = cuda_piece_put(&p, a->weight, 4 * n);
    k.n_pick = cuda_piece_put(&p, a->n_pick, 4 * n_groups);
    k.pick_start = cuda_piece_room(&p, 4 * n_groups, &host);
    uint32_t *start = host, before = 0;
    for (size_t g = 0; g < n_groups; before += a->n_pick[g++]) start[g] = before;
    char *at = s->room;
    k.pick = cuda_take(&at, 4 * n);
    k.norm = cuda_take(&at, 4 * n);
    k.least = cuda_take(&at, 8 * n);
    k.key = cuda_take(&at, 8 * n);
    k.taken = cuda_take(&at, n);
    TRY(cuda_piece_send(s, &p, e));
    TRY(cuda_farthest(s->main, &k, e));
    return cuda_download(st, a->pick, k.pick, 4 * n_pick, e);
}

/* Rows [i0, i1) of a merge, whose sources are a part of longer lists. */
static status merge_some(struct cuda_stream *s, const struct merge_args *a, uint32_t i0, uint32_t i1, struct err *e)
{
    struct cuda_piece p;
    const size_t n = i1 - i0, from = a->start[i0], m = a->start[i1] - from;
    void *host;
    TRY(cuda_piece_begin(s, cuda_piece_bytes(4 * (3 * n + 1 + 2 * m), 5), &p, e));
    struct cuda_merge_args k = { .x = a->x, .d = a->d, .n = (uint32_t)n, .y = a->y + (size_t)i0 * a->d };
    k.dst = cuda_piece_put(&p, a->dst + i0, 4 * n);
    k.c0 = cuda_piece_put(&p, a->c0 + i0, 4 * n);
    k.start = cuda_piece_room(&p, 4 * (n + 1), &host);
    k.src = cuda_piece_put(&p, m > 0 ? a->src + from : NULL, 4 * m);
    k.w = cuda_piece_put(&p, m > 0 ? a->w + from : NULL, 4 * m);
    for (size_t i = 0; i <= n; i++) ((uint32_t *)host)[i] = a->start[i0 + i] - (uint32_t)from;
    TRY(cuda_piece_send(s, &p, e));
    return cuda_merge(s->main, &k, e);
}

/* Sources have no bound but their rows': as many rows at a time as their lists have room for. */
static status merge(struct stream *st, const struct merge_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    TRY(cuda_enter(s, e));
    for (uint32_t i = 0, end; i < a->n; i = end) {
        for (end = i + 1; end < a->n; end++) {
            const size_t n = end + 1 - i, m = a->start[end + 1] - a->start[i];
            if (cuda_piece_bytes(4 * (3 * n + 1 + 2 * m), 5) > s->lists.half) break;
        }
        TRY(merge_some(s, a, i, end, e));
    }
    return OK;
}

static status pagerank(struct stream *st, const struct pagerank_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    const size_t n = a->n, all = n * a->H;
    if (n == 0) return OK;
    TRY(cuda_enter(s, e));
    TRY(cuda_room(s, 4 * n + 32 * all + 5 * 256, e));
    char *at = s->room;
    struct cuda_pagerank_args k = { .q = a->q, .k = a->k, .ldq = a->ldq, .ldk = a->ldk, .n = a->n, .H = a->H, .G = a->G, .D = a->D,
                                    .iterations = a->iterations, .scale = a->scale };
    k.importance = cuda_take(&at, 4 * n);
    k.most = cuda_take(&at, 8 * all);
    k.sum = cuda_take(&at, 8 * all);
    k.from = cuda_take(&at, 8 * all);
    k.to = cuda_take(&at, 8 * all);
    TRY(cuda_pagerank(s->main, &k, e));
    return cuda_download(st, a->importance, k.importance, 4 * n, e);
}

/* As many rows at a time as the room holds. */
static status top(struct stream *st, const struct top_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    const size_t segments = ((size_t)a->V + CUDA_TOP_SEGMENT - 1) / CUDA_TOP_SEGMENT, key = segments * CUDA_TOP * 8, sum = segments * 8;
    const size_t each = key + sum + sizeof(struct top_row), ends = 3 * 256;
    if (a->V == 0) return err_set(e, E_ARG, "the highest of rows of nothing");
    TRY(cuda_enter(s, e));
    const size_t fit = s->room_bytes > each + ends ? (s->room_bytes - ends) / each : 1;
    for (size_t r = 0, n; r < a->n; r += n) {
        n = a->n - r < fit ? a->n - r : fit;
        TRY(cuda_room(s, n * each + ends, e));
        char *at = s->room;
        struct cuda_top_args k = { .x = a->x + r * a->ldx, .ldx = a->ldx, .n = (uint32_t)n, .V = a->V, .n_segments = (uint32_t)segments,
                                   .allowed = a->allowed };
        k.key = cuda_take(&at, n * key);
        k.sum = cuda_take(&at, n * sum);
        k.out = cuda_take(&at, n * sizeof *k.out);
        TRY(cuda_top(s->main, &k, e));
        TRY(cuda_download(st, a->out + r, k.out, n * sizeof *k.out, e));
    }
    return OK;
}

const struct ops cuda_ops = {
    .name = "cuda",
    .page_tokens = CUDA_PAGE_TOKENS,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .upload = cuda_upload,
    .download = cuda_download,
    .fetch = cuda_fetch,
    .sync = cuda_sync,
    .time_begin = cuda_time_begin,
    .time_end = cuda_time_end,
    .time_read = cuda_time_read,
    .reserve_bytes = cuda_reserve_bytes,
    .reserve = cuda_reserve,
    .within = cuda_within,
    .operand_bytes = cuda_operand_bytes,
    .page_bytes = pages_bytes,
    .attention_scratch = cuda_attention_scratch,
    .select_scratch = select_scratch,
    .choose_scratch = choose_scratch,
    .pair_scratch = pair_scratch,
    .pagerank_scratch = pagerank_scratch,
    .weight_create = cuda_weight_create,
    .weight_destroy = cuda_weight_destroy,
    .weight_shape = cuda_weight_shape,
    .embed = embed,
    .norm = norm,
    .pack = pack,
    .linear = cuda_linear,
    .im2col = im2col,
    .rope = rope,
    .kv_write = kv_write,
    .attention = attention,
    .attention_decode = attention_decode,
    .segment_attention = segment_attention,
    .query_scores = query_scores,
    .select = select_op,
    .list_rows = list_rows,
    .choose = choose,
    .cosine = cosine,
    .means = means,
    .nearest = nearest,
    .density = density,
    .farthest = farthest,
    .merge = merge,
    .pagerank = pagerank,
    .top = top,
    .gather = gather,
    .scatter = scatter,
    .add_rows = add_rows,
    .mean_pairs = mean_pairs,
    .page_copy = page_copy,
    .kv_compact = kv_compact,
    .step_begin = cuda_step_begin,
    .step_end = cuda_step_end,
    .describe = cuda_describe,
    .close = cuda_close,
};
