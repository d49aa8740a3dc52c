/* kernels/cpu/attention.c - attention of query rows over pages: the loops over threads. See attention.h.
 *
 * Prefill: an item is up to 96 query rows of one head. Key blocks outside, subtiles inside, so that a
 * block of K and V (64 KiB at D = 64 and bf16) is read from memory once an item. Long items first. Decode:
 * an item is one row, one KV head and CPU_SPLIT keys; the query heads of the group are the rows of the
 * subtile, so K and V are read once. A second pass merges the splits of a row in order. The split is a
 * constant, so the result does not depend on the number of threads. */
#include "kernels/cpu/attention.h"

#define TILE_ROWS    96
#define CPU_SPLIT    1024 /* keys of one item of decode */
#define PIECES       2 /* pieces of work a thread, about: each begins with memory that nobody asked for yet */
#define DECODE_SLOTS 4096 /* partial results that a round of decode may hold, if one row needs no more */

/* ---- scratch ------------------------------------------------------------------------------------------- */

status cpu_heads_check(uint32_t D, uint32_t H, uint32_t G, enum dtype dtype, struct err *e)
{
    if (D == 0 || D % 2 != 0 || D > CPU_HEAD_MAX)
        return err_set(e, E_ARG, "attention: head dim %u: it must be even and 2 to %d", D, CPU_HEAD_MAX);
    if (G == 0 || H % G != 0 || H / G > CPU_ROOM_ROWS)
        return err_set(e, E_ARG,
                       "attention: %u query heads on %u KV heads: each must serve as many, at most %d", H, G,
                       CPU_ROOM_ROWS);
    if (dtype != DT_F32 && dtype != DT_BF16)
        return err_set(e, E_ARG, "attention: pages are f32 or bf16, not dtype %d", (int)dtype);
    return OK;
}

size_t cpu_room_bytes(uint32_t D)
{
    const size_t Dv = (D + 15) / 16 * 16;
    return cpu_align(sizeof(struct cpu_scores)) + cpu_align(CPU_ROOM_ROWS * (D + Dv + 2) * sizeof(float)) +
           CPU_BLOCK * (D + Dv) * sizeof(float);
}

struct cpu_room cpu_room_at(void *scratch, int thread, uint32_t D)
{
    const size_t Dv = (D + 15) / 16 * 16;
    char *p = (char *)scratch + (size_t)thread * cpu_room_bytes(D);
    struct cpu_room r = { .t = (struct cpu_scores *)p };
    p += cpu_align(sizeof(struct cpu_scores));
    r.page = p;
    r.acc = (float *)(p + CPU_BLOCK * (D + Dv) * sizeof(float));
    r.q = (char *)(r.acc + CPU_ROOM_ROWS * Dv);
    r.m = (float *)r.q + (size_t)CPU_ROOM_ROWS * D;
    r.l = r.m + CPU_ROOM_ROWS;
    return r;
}

void *cpu_room_shared(const struct cpu_stream *st, void *scratch, uint32_t D)
{
    return (char *)scratch + (size_t)threads_count(st->threads) * cpu_room_bytes(D);
}

/* One tile of rows of one sequence. */
struct tile {
    uint32_t seq, row;
};

size_t cpu_attention_scratch(const struct stream *stream, uint32_t H, uint32_t D, uint32_t n,
                             uint32_t max_keys)
{
    const struct cpu_stream *st = cpu_stream_of(stream);
    const size_t need[] = { (size_t)n * sizeof(struct tile), cpu_decode_shared(H, D, max_keys),
                            cpu_segment_shared(H, n), cpu_scores_shared(H, D, n, max_keys) };
    size_t most = 0;
    for (uint32_t i = 0; i < sizeof need / sizeof need[0]; i++) most = need[i] > most ? need[i] : most;
    return (size_t)threads_count(st->threads) * cpu_room_bytes(D) + cpu_align(most);
}

static status attention_check(const struct attention_args *a, uint32_t *n, struct err *e)
{
    TRY(cpu_heads_check(a->shape.D, a->H, a->shape.G, a->shape.dtype, e));
    *n = a->n_seqs > 0 ? a->seq_start[a->n_seqs] : 0;
    if (a->out->rows != *n || a->out->k != a->H * a->shape.D)
        return err_set(e, E_ARG, "attention: the operand is %u x %u, the rows are %u x %u", a->out->rows,
                       a->out->k, *n, a->H * a->shape.D);
    for (uint32_t s = 0; s < a->n_seqs; s++)
        for (uint32_t i = a->seq_start[s]; i < a->seq_start[s + 1]; i++)
            if (a->visible[i] == 0 || a->visible[i] > a->view[s].n_rows ||
                (i > a->seq_start[s] && a->visible[i] < a->visible[i - 1]))
                return err_set(e, E_ARG,
                               "attention: row %u of sequence %u sees %u keys of %u: at least 1, at most "
                               "all, ascending",
                               i - a->seq_start[s], s, a->visible[i], a->view[s].n_rows);
    return OK;
}

/* The pages of one head that hold keys k0 .. end-1, at most a block; what is left of the list repeats the
 * last. */
static void block_pages(const struct kv_shape *shape, const struct kv_view *view, size_t head_at, uint32_t k0,
                        uint32_t end, const void **page)
{
    const char *base = (const char *)shape->base + head_at;
    for (uint32_t p = 0; p < CPU_BLOCK_PAGES; p++)
        page[p] = k0 + p * CPU_PAGE_TOKENS < end
                      ? base + view->page[k0 / CPU_PAGE_TOKENS + p] * shape->page_bytes
                      : page[p - 1];
}

static void rows_clear(const struct cpu_heads *h, const struct cpu_rows *r)
{
    for (uint32_t i = 0; i < r->n; i++) r->m[i] = -CPU_BIG, r->l[i] = 0.0f;
    memset(r->acc, 0, (size_t)r->n * h->Dv * sizeof(float));
}

/* ---- prefill ------------------------------------------------------------------------------------------- */

struct prefill {
    const struct cpu_stream *st;
    const struct attention_args *a;
    struct cpu_heads heads;
    bool pairs; /* the operand's form */
    const struct tile *tile;
    uint32_t n_items; /* item: tile * H + head */
};

static void prefill_item(const struct prefill *j, const struct tile *tile, uint32_t h,
                         const struct cpu_room *room)
{
    const struct attention_args *a = j->a;
    const struct cpu_heads *heads = &j->heads;
    const struct cpu_attention_kernels *kern = j->st->isa->attention;
    const uint32_t D = heads->D, end = a->seq_start[tile->seq + 1];
    const uint32_t n = end - tile->row < TILE_ROWS ? end - tile->row : TILE_ROWS;
    const uint32_t g = h / (a->H / a->shape.G), keys = a->visible[tile->row + n - 1];
    struct cpu_rows sub[TILE_ROWS / CPU_TILE];
    uint32_t n_subs = 0;
    for (uint32_t i = 0; i < n; i += CPU_TILE, n_subs++) {
        struct cpu_rows *r = &sub[n_subs];
        const float *row[CPU_TILE];
        *r = (struct cpu_rows){ .n = n - i < CPU_TILE ? n - i : CPU_TILE,
                                .q = room->q + (size_t)i * D * 4,
                                .visible = a->visible + tile->row + i,
                                .m = room->m + i,
                                .l = room->l + i,
                                .acc = room->acc + (size_t)i * heads->Dv };
        for (uint32_t k = 0; k < r->n; k++) row[k] = a->q + (tile->row + i + k) * a->ldq + (size_t)h * D;
        kern->pack_rows(heads, row, r->n, room->q + (size_t)i * D * 4);
        rows_clear(heads, r);
    }
    const struct kv_view *view = &a->view[tile->seq];
    const void *page[CPU_BLOCK_PAGES], *next[CPU_BLOCK_PAGES];
    block_pages(&a->shape, view, g * heads->head_bytes, 0, keys, page);
    for (uint32_t k0 = 0; k0 < keys; k0 += CPU_BLOCK) {
        const bool more = k0 + CPU_BLOCK < keys;
        if (more) block_pages(&a->shape, view, g * heads->head_bytes, k0 + CPU_BLOCK, keys, next);
        bool first = true;
        for (uint32_t i = 0; i < n_subs; i++) {
            if (sub[i].visible[sub[i].n - 1] <= k0) continue;
            kern->attend(heads, &sub[i], page, !first ? NULL : more ? next : page, k0, room->t);
            first = false;
        }
        if (more) memcpy(page, next, sizeof page);
    }
    const uint32_t out_tile = operand_tile(a->out->rows);
    for (uint32_t i = 0; i < n; i++) {
        const struct operand_tile out = operand_tile_at(a->out, j->pairs, (tile->row + i) / out_tile);
        kern->emit(heads, room->acc + (size_t)i * heads->Dv, room->l[i], &out, (tile->row + i) % out_tile,
                   h * D);
    }
}

static void prefill_items(void *arg, int thread, uint32_t begin, uint32_t end)
{
    const struct prefill *j = arg;
    const struct cpu_room room = cpu_room_at(j->a->scratch, thread, j->heads.D);
    for (uint32_t i = begin; i < end; i++) {
        const uint32_t item = j->n_items - 1 - i;
        prefill_item(j, &j->tile[item / j->a->H], item % j->a->H, &room);
    }
}

status cpu_attention(struct stream *stream, const struct attention_args *a, struct err *e)
{
    const struct cpu_stream *st = cpu_stream_of(stream);
    uint32_t n, n_tiles = 0;
    TRY(attention_check(a, &n, e));
    struct tile *tile = cpu_room_shared(st, a->scratch, a->shape.D);
    for (uint32_t s = 0; s < a->n_seqs; s++)
        for (uint32_t i = a->seq_start[s]; i < a->seq_start[s + 1]; i += TILE_ROWS)
            tile[n_tiles++] = (struct tile){ s, i };
    struct prefill j = { .st = st,
                         .a = a,
                         .heads = cpu_heads_of(st, a->shape.D, a->shape.dtype, a->scale),
                         .pairs = operand_pairs(st->isa, a->out->compute),
                         .tile = tile,
                         .n_items = n_tiles * a->H };
    cpu_for(stream, j.n_items, 1, prefill_items, &j);
    return OK;
}

/* ---- decode -------------------------------------------------------------------------------------------- */

/* Split `split` of row `row`. Entry x, head h has its partial result at slot x * H + h. */
struct split {
    uint32_t row, split;
};

struct decode {
    const struct cpu_stream *st;
    const struct attention_args *a;
    struct cpu_heads heads;
    bool pairs;
    struct split *entry;
    uint32_t row0, n_entries; /* of this round */
    float *m, *l, *acc;       /* [slots], [slots], [slots][Dv] */
};

static uint32_t n_splits(uint32_t visible)
{
    return (visible + CPU_SPLIT - 1) / CPU_SPLIT;
}

static size_t decode_entries(uint32_t H, uint32_t max_keys)
{
    const size_t one_row = n_splits(max_keys), shared = DECODE_SLOTS / (H > 0 ? H : 1);
    return one_row > shared ? one_row : shared;
}

size_t cpu_decode_shared(uint32_t H, uint32_t D, uint32_t max_keys)
{
    const size_t entries = decode_entries(H, max_keys);
    return cpu_align(entries * sizeof(struct split)) + entries * H * ((D + 15) / 16 * 16 + 2) * sizeof(float);
}

/* Item i is KV head i % G of entry i / G. */
static uint32_t first_key(const struct decode *j, uint32_t item)
{
    return j->entry[item / j->a->shape.G].split * CPU_SPLIT;
}
static uint32_t last_key(const struct decode *j, uint32_t item)
{
    const uint32_t end = first_key(j, item) + CPU_SPLIT,
                   visible = j->a->visible[j->entry[item / j->a->shape.G].row];
    return end < visible ? end : visible;
}
static void item_pages(const struct decode *j, uint32_t item, uint32_t k0, const void **page)
{
    const uint32_t G = j->a->shape.G;
    block_pages(&j->a->shape, &j->a->view[j->entry[item / G].row], item % G * j->heads.head_bytes, k0,
                last_key(j, item), page);
}

/* The query heads of the item's group as subtiles; their number. */
static uint32_t item_rows(const struct decode *j, uint32_t item, const struct cpu_room *room,
                          const uint32_t *see, struct cpu_rows *sub)
{
    const struct attention_args *a = j->a;
    const uint32_t group = a->H / a->shape.G, D = j->heads.D, row = j->entry[item / a->shape.G].row;
    uint32_t n_subs = 0;
    for (uint32_t i = 0; i < group; i += CPU_TILE, n_subs++) {
        const uint32_t n = group - i < CPU_TILE ? group - i : CPU_TILE, h = item % a->shape.G * group + i;
        const size_t slot = (size_t)item / a->shape.G * a->H + h;
        char *packed = room->q + (size_t)i * D * 4;
        const float *q[CPU_TILE];
        for (uint32_t r = 0; r < n; r++) q[r] = a->q + row * a->ldq + (size_t)(h + r) * D;
        j->st->isa->attention->pack_rows(&j->heads, q, n, packed);
        sub[n_subs] = (struct cpu_rows){ .n = n,
                                         .q = packed,
                                         .visible = see,
                                         .m = j->m + slot,
                                         .l = j->l + slot,
                                         .acc = j->acc + slot * j->heads.Dv };
        rows_clear(&j->heads, &sub[n_subs]);
    }
    return n_subs;
}

/* Block after block, each attend told which pages come next, over the end of an item as well. */
static void decode_items(void *arg, int thread, uint32_t begin, uint32_t end)
{
    const struct decode *j = arg;
    const struct cpu_room room = cpu_room_at(j->a->scratch, thread, j->heads.D);
    const void *page[CPU_BLOCK_PAGES], *next[CPU_BLOCK_PAGES];
    item_pages(j, begin, first_key(j, begin), page);
    for (uint32_t item = begin; item < end; item++) {
        struct cpu_rows sub[CPU_ROOM_ROWS / CPU_TILE];
        uint32_t see[CPU_TILE];
        for (uint32_t i = 0; i < CPU_TILE; i++) see[i] = last_key(j, item);
        const uint32_t n_subs = item_rows(j, item, &room, see, sub);
        for (uint32_t k0 = first_key(j, item); k0 < last_key(j, item); k0 += CPU_BLOCK) {
            if (k0 + CPU_BLOCK < last_key(j, item))
                item_pages(j, item, k0 + CPU_BLOCK, next);
            else if (item + 1 < end)
                item_pages(j, item + 1, first_key(j, item + 1), next);
            for (uint32_t i = 0; i < n_subs; i++)
                j->st->isa->attention->attend(&j->heads, &sub[i], page, i + 1 == n_subs ? next : page, k0,
                                              room.t);
            memcpy(page, next, sizeof page);
        }
    }
}

/* Head i % H of row i / H of this round: the splits in order. */
static void merge_heads(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct decode *j = arg;
    const struct cpu_attention_kernels *kern = j->st->isa->attention;
    const uint32_t H = j->a->H, out_tile = operand_tile(j->a->out->rows);
    uint32_t x = 0; /* the first entry of the row */
    for (uint32_t i = begin; i < end; i++) {
        const uint32_t row = j->row0 + i / H;
        while (j->entry[x].row != row) x++;
        const struct operand_tile out = operand_tile_at(j->a->out, j->pairs, row / out_tile);
        const size_t slot = (size_t)x * H + i % H;
        float y[CPU_HEAD_MAX];
        const float l = kern->merge(&j->heads, j->m + slot, j->l + slot, j->acc + slot * j->heads.Dv,
                                    n_splits(j->a->visible[row]), H, y);
        kern->emit(&j->heads, y, l, &out, row % out_tile, i % H * j->heads.D);
    }
}

status cpu_attention_decode(struct stream *stream, const struct attention_args *a, struct err *e)
{
    const struct cpu_stream *st = cpu_stream_of(stream);
    uint32_t n, longest = 0;
    TRY(attention_check(a, &n, e));
    if (n != a->n_seqs)
        return err_set(e, E_ARG, "attention: %u rows of %u sequences: decode takes one row of each", n,
                       a->n_seqs);
    for (uint32_t i = 0; i < n; i++) longest = a->visible[i] > longest ? a->visible[i] : longest;
    const size_t cap = decode_entries(a->H, longest);
    struct decode j = { .st = st,
                        .a = a,
                        .heads = cpu_heads_of(st, a->shape.D, a->shape.dtype, a->scale),
                        .pairs = operand_pairs(st->isa, a->out->compute),
                        .entry = cpu_room_shared(st, a->scratch, a->shape.D) };
    j.acc = (float *)((char *)j.entry + cpu_align(cap * sizeof(struct split)));
    j.m = j.acc + cap * a->H * j.heads.Dv;
    j.l = j.m + cap * a->H;
    for (uint32_t i = 0; i < n;) { /* rounds of as many rows as the slots hold */
        j.row0 = i;
        j.n_entries = 0;
        for (; i < n && j.n_entries + n_splits(a->visible[i]) <= cap; i++)
            for (uint32_t s = 0; s < n_splits(a->visible[i]); s++)
                j.entry[j.n_entries++] = (struct split){ i, s };
        const uint32_t n_items = j.n_entries * a->shape.G,
                       share = n_items / (PIECES * (uint32_t)threads_count(st->threads));
        cpu_for(stream, n_items, share > 0 ? share : 1, decode_items, &j);
        cpu_for(stream, (i - j.row0) * a->H, 4, merge_heads, &j);
    }
    return OK;
}
