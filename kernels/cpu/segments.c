/* kernels/cpu/segments.c - full attention inside segments (the towers), and the attention that keys
 * receive.
 *
 * An item is up to CPU_ROOM_ROWS query rows of one head of one segment. K and V of a block are brought
 * into the layout of pages in the thread's own room, then everything is as in attention.c. The operand's
 * type decides: bf16 gives pages of bf16, f32 pages of f32. received: an item is one head of one segment;
 * pass 1 gives each row's maximum and sum, pass 2 the sums of columns; the heads are added in order at the
 * end. */
#include "kernels/cpu/attention.h"

#define SHORT CPU_BLOCK /* keys of a segment whose K and V of two heads fit the cache */

struct tile {
    uint32_t seg, row;
};

struct segments {
    const struct cpu_stream *st;
    const struct segment_attention_args *a;
    struct cpu_heads heads;
    bool pairs;
    uint32_t n, n_tiles;
    struct tile *tile;   /* [n_tiles] */
    float *m, *l, *part; /* [heads][n] each, with received */
};

size_t cpu_segment_shared(uint32_t H, uint32_t n)
{
    return cpu_align((size_t)n * sizeof(struct tile)) + (size_t)H * n * 3 * sizeof(float);
}

/* Ask for n rows of D floats, ld apart: they lie far from each other and nothing else would ask in time. */
static void fetch_rows(const float *x, size_t ld, uint32_t n, uint32_t D)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < D; k += 16) __builtin_prefetch(x + i * ld + k);
}

/* K and V (or K alone) of n keys from row0 on of head h into the room's pages; the rest of the last page is
 * 0. Meanwhile the rows that are wanted next are asked for: of a short segment those of the next head, which
 * the same thread mostly takes, of a long one those of the next page. */
static void bring_block(const struct segments *j, const struct cpu_room *room, uint32_t row0, uint32_t n,
                        uint32_t h, bool is_short, bool with_v, const void **page)
{
    const struct segment_attention_args *a = j->a;
    for (uint32_t i = 0; i < n; i += CPU_PAGE_TOKENS) {
        char *p = room->page + i / CPU_PAGE_TOKENS * j->heads.head_bytes;
        const uint32_t left = n - i, m = left < CPU_PAGE_TOKENS ? left : CPU_PAGE_TOKENS;
        const size_t at = (row0 + i) * a->ld + (size_t)h * a->D;
        const size_t next = at + (is_short ? a->D : m * a->ld);
        const uint32_t n_next =
            is_short ? (h + 1 < a->heads ? m : 0) : (left - m < CPU_PAGE_TOKENS ? left - m : CPU_PAGE_TOKENS);
        fetch_rows(a->k + next, a->ld, n_next, a->D);
        if (with_v) fetch_rows(a->v + next, a->ld, n_next, a->D);
        if (m < CPU_PAGE_TOKENS) memset(p, 0, j->heads.head_bytes);
        j->st->isa->attention->store(&j->heads, a->k + at, a->ld, with_v ? a->v + at : NULL, a->ld, m, 0, p);
        page[i / CPU_PAGE_TOKENS] = p;
    }
}

/* Query rows row .. row + n of head h as subtiles; their number. see: [CPU_TILE] filled with `keys`. */
static uint32_t take_rows(const struct segments *j, const struct cpu_room *room, uint32_t row, uint32_t n,
                          uint32_t h, const uint32_t *see, float *m, float *l, struct cpu_rows *sub)
{
    const struct segment_attention_args *a = j->a;
    uint32_t n_subs = 0;
    for (uint32_t i = 0; i < n; i += CPU_TILE, n_subs++) {
        struct cpu_rows *r = &sub[n_subs];
        const float *q[CPU_TILE];
        char *packed = room->q + (size_t)i * a->D * 4;
        *r = (struct cpu_rows){ .n = n - i < CPU_TILE ? n - i : CPU_TILE,
                                .q = packed,
                                .visible = see,
                                .m = m + i,
                                .l = l + i,
                                .acc = room->acc + (size_t)i * j->heads.Dv };
        for (uint32_t k = 0; k < r->n; k++) q[k] = a->q + (row + i + k) * a->ld + (size_t)h * a->D;
        j->st->isa->attention->pack_rows(&j->heads, q, r->n, packed);
        if (n <= SHORT && h + 1 < a->heads) fetch_rows(q[0] + a->D, a->ld, r->n, a->D);
    }
    return n_subs;
}

static void rows_clear(const struct cpu_heads *h, const struct cpu_rows *r)
{
    for (uint32_t i = 0; i < r->n; i++) r->m[i] = -CPU_BIG, r->l[i] = 0.0f;
    memset(r->acc, 0, (size_t)r->n * h->Dv * sizeof(float));
}

static void attend_item(const struct segments *j, const struct tile *t, uint32_t h,
                        const struct cpu_room *room)
{
    const struct segment_attention_args *a = j->a;
    const struct cpu_attention_kernels *kern = j->st->isa->attention;
    const uint32_t first = a->seg_start[t->seg], end = a->seg_start[t->seg + 1], keys = end - first;
    const uint32_t n = end - t->row < CPU_ROOM_ROWS ? end - t->row : CPU_ROOM_ROWS;
    uint32_t see[CPU_TILE];
    for (uint32_t i = 0; i < CPU_TILE; i++) see[i] = keys;
    struct cpu_rows sub[CPU_ROOM_ROWS / CPU_TILE];
    const uint32_t n_subs = take_rows(j, room, t->row, n, h, see, room->m, room->l, sub);
    for (uint32_t i = 0; i < n_subs; i++) rows_clear(&j->heads, &sub[i]);
    for (uint32_t k0 = 0; k0 < keys; k0 += CPU_BLOCK) {
        const void *page[CPU_BLOCK_PAGES];
        bring_block(j, room, first + k0, keys - k0 < CPU_BLOCK ? keys - k0 : CPU_BLOCK, h, keys <= SHORT,
                    true, page);
        for (uint32_t i = 0; i < n_subs; i++) kern->attend(&j->heads, &sub[i], page, NULL, k0, room->t);
    }
    const uint32_t out_tile = operand_tile(a->out->rows);
    for (uint32_t i = 0; i < n; i++) {
        const struct operand_tile out = operand_tile_at(a->out, j->pairs, (t->row + i) / out_tile);
        kern->emit(&j->heads, room->acc + (size_t)i * j->heads.Dv, room->l[i], &out, (t->row + i) % out_tile,
                   h * a->D);
    }
}

static void attend_items(void *arg, int thread, uint32_t begin, uint32_t end)
{
    const struct segments *j = arg;
    const struct cpu_room room = cpu_room_at(j->a->scratch, thread, j->a->D);
    for (uint32_t i = begin; i < end; i++) attend_item(j, &j->tile[i / j->a->heads], i % j->a->heads, &room);
}

/* ---- received ------------------------------------------------------------------------------------------ */

/* One pass over one head of one segment: stats of its rows, or (final) the sums of its columns. */
static void received_pass(const struct segments *j, uint32_t seg, uint32_t h, bool final,
                          const struct cpu_room *room)
{
    const struct segment_attention_args *a = j->a;
    const struct cpu_attention_kernels *kern = j->st->isa->attention;
    const uint32_t first = a->seg_start[seg], keys = a->seg_start[seg + 1] - first;
    const size_t at = (size_t)h * j->n;
    uint32_t see[CPU_TILE];
    for (uint32_t i = 0; i < CPU_TILE; i++) see[i] = keys;
    for (uint32_t row = 0; row < keys; row += CPU_ROOM_ROWS) {
        const uint32_t n = keys - row < CPU_ROOM_ROWS ? keys - row : CPU_ROOM_ROWS;
        struct cpu_rows sub[CPU_ROOM_ROWS / CPU_TILE];
        const uint32_t n_subs =
            take_rows(j, room, first + row, n, h, see, j->m + at + first + row, j->l + at + first + row, sub);
        for (uint32_t i = 0; i < n_subs && !final; i++) rows_clear(&j->heads, &sub[i]);
        for (uint32_t k0 = 0; k0 < keys; k0 += CPU_BLOCK) {
            const uint32_t m = keys - k0 < CPU_BLOCK ? keys - k0 : CPU_BLOCK;
            const void *page[CPU_BLOCK_PAGES];
            float sum[CPU_BLOCK] = { 0 };
            bring_block(j, room, first + k0, m, h, keys <= SHORT, false, page);
            for (uint32_t i = 0; i < n_subs; i++) {
                if (final)
                    kern->columns(&j->heads, &sub[i], page, k0, sum, room->t);
                else
                    kern->stats(&j->heads, &sub[i], page, k0, room->t);
            }
            for (uint32_t i = 0; i < m && final; i++) j->part[at + first + k0 + i] += sum[i];
        }
    }
}

static void received_items(void *arg, int thread, uint32_t begin, uint32_t end)
{
    const struct segments *j = arg;
    const struct cpu_room room = cpu_room_at(j->a->scratch, thread, j->a->D);
    for (uint32_t i = begin; i < end; i++) {
        const uint32_t seg = i / j->a->heads, h = i % j->a->heads, first = j->a->seg_start[seg];
        memset(j->part + (size_t)h * j->n + first, 0, (j->a->seg_start[seg + 1] - first) * sizeof(float));
        received_pass(j, seg, h, false, &room);
        received_pass(j, seg, h, true, &room);
    }
}

/* The mean over heads and rows; heads added in order. */
static void received_mean(const struct segments *j)
{
    const struct segment_attention_args *a = j->a;
    for (uint32_t s = 0; s < a->n_segs; s++)
        for (uint32_t i = a->seg_start[s]; i < a->seg_start[s + 1]; i++) {
            float sum = 0.0f;
            for (uint32_t h = 0; h < a->heads; h++) sum += j->part[(size_t)h * j->n + i];
            a->received[i] = sum / ((float)a->heads * (float)(a->seg_start[s + 1] - a->seg_start[s]));
        }
}

status cpu_segment_attention(struct stream *stream, const struct segment_attention_args *a, struct err *e)
{
    const struct cpu_stream *st = cpu_stream_of(stream);
    TRY(cpu_heads_check(a->D, a->heads, a->heads, a->out->compute, e));
    struct segments j = { .st = st,
                          .a = a,
                          .heads = cpu_heads_of(st, a->D, a->out->compute, a->scale),
                          .pairs = operand_pairs(st->isa, a->out->compute),
                          .n = a->n_segs > 0 ? a->seg_start[a->n_segs] : 0,
                          .tile = cpu_room_shared(st, a->scratch, a->D) };
    if (a->out->rows != j.n || a->out->k != a->heads * a->D)
        return err_set(e, E_ARG, "attention: the operand is %u x %u, the rows are %u x %u", a->out->rows,
                       a->out->k, j.n, a->heads * a->D);
    for (uint32_t s = 0; s < a->n_segs; s++)
        for (uint32_t i = a->seg_start[s]; i < a->seg_start[s + 1]; i += CPU_ROOM_ROWS)
            j.tile[j.n_tiles++] = (struct tile){ s, i };
    j.m = (float *)((char *)j.tile + cpu_align(j.n * sizeof(struct tile)));
    j.l = j.m + (size_t)a->heads * j.n;
    j.part = j.l + (size_t)a->heads * j.n;
    const uint32_t n_threads = (uint32_t)threads_count(st->threads), n_items = j.n_tiles * a->heads;
    const uint32_t grain = n_items / (8 * n_threads) < a->heads ? n_items / (8 * n_threads) : a->heads;
    cpu_for(stream, n_items, grain > 0 ? grain : 1, attend_items, &j);
    if (a->received == NULL) return OK;
    cpu_for(stream, a->n_segs * a->heads, 1, received_items, &j);
    received_mean(&j);
    return OK;
}
