/* model/decoder.c - see decoder.h. Rows are worked through in equal blocks of at most max_rows, so that the wide
 * intermediates (MLP, Q) stay in cache and scratch does not grow with the prompt. Nothing is allocated inside a layer
 * but by the first that needs it. */
#include "model/decoder.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define ANGLE_ROWS 256             /* rows of angles worked out on the host at a time */
#define GATHER_ROWS 96             /* rows of logits gathered from ranks at a time: 8 tiles of 12 */

struct layer {
    struct weight *q, *kv, *o, *gate_up, *down;
    float *norm1, *norm2;
};

struct decoder {
    struct stream *st;
    const struct ops *ops;
    struct decoder_shape s;        /* of the whole model */
    struct decoder_slice own;      /* what this rank has of it */
    struct decoder_slice *all;     /* [size] */
    struct comm *comm;             /* NULL: alone */
    struct stream *memory;         /* for comm: NULL where the device's memory is the host's */
    status before;                 /* decoder_fail */
    enum dtype compute, kv_dtype;
    uint32_t max_rows, max_keys;
    struct layer *layer;           /* [L] */
    struct weight *embed, *head;   /* head == embed where tied */
    float *norm;
    float *inv_freq;               /* [D/2] host */
    float *angle;                  /* [2, ANGLE_ROWS, D/2] host */
    /* Scratch of one block. */
    float *q, *kv, *logits, *partial;
    size_t logits_rows;
    float *gathered, *parts;       /* several ranks: embeddings [max_rows, d], logits [GATHER_ROWS, V] (rank 0); parts: on the host */
    size_t *bytes;                 /* [size] */
    void *op_in, *op_attn, *op_ff, *attn_scratch, *choose_scratch;
    float *partial_host;
    uint32_t *index;                    /* [2 * max_rows] several ranks: ids and their places */
    uint32_t *piece_start, *piece_kv;   /* sequence pieces of a block */
    struct kv_view *piece_view;
    size_t piece_cap, piece_kv_cap, piece_view_cap;
};

/* ---- creation --------------------------------------------------------------------------------------------- */

/* The part of a whole weight that this rank has. */
static void narrow(const struct decoder *dc, enum decoder_role role, struct weight_args *a)
{
    const struct decoder_slice *o = &dc->own;
    const uint32_t D = dc->s.D;
    uint32_t row = 0, rows = 0, column = 0, columns = 0;       /* rows, columns 0: all */
    switch (role) {
    case DEC_QKV_Q: row = o->head0 * D, rows = o->heads * D; break;
    case DEC_QKV_KV: row = o->kv0 * D, rows = o->kv_heads * D; break;
    case DEC_GATE_UP: row = o->ff0, rows = o->ff; break;
    case DEC_EMBED:
    case DEC_LM_HEAD: row = o->row0, rows = o->rows; break;
    case DEC_O: column = o->head0 * D, columns = o->heads * D; break;
    case DEC_DOWN: column = o->ff0, columns = o->ff; break;
    case DEC_NORM1: case DEC_NORM2: case DEC_NORM: break;
    }
    for (uint32_t i = 0; i < a->n_parts; i++) {
        struct weight_part *p = &a->part[i];
        const size_t ld = p->ld ? p->ld : a->k, size = dtype_size(p->dtype);
        p->data = (const char *)p->data + (row * ld + column) * size;
        p->ld = ld;
        if (p->bias) p->bias = (const char *)p->bias + row * dtype_size(p->bias_dtype);
        if (rows) p->n = rows;
    }
    if (columns) a->k = columns;
}

static status weight_of(struct decoder *dc, const struct decoder_source *src, enum decoder_role role, uint32_t l,
                        struct weight **out, struct err *e)
{
    struct weight_args a = { .compute = dc->compute };
    TRY(src->weight(src->self, role, l, &a, e));
    a.compute = dc->compute;
    if (dc->comm) narrow(dc, role, &a);
    TRY(dc->ops->weight_create(dc->st, &a, out, e));
    if (src->done) src->done(src->self, role, l);
    return OK;
}

static status norm_of(struct decoder *dc, const struct decoder_source *src, enum decoder_role role, uint32_t l,
                      float **out, struct err *e)
{
    const size_t bytes = dc->s.d * sizeof(float);
    float *host;
    TRY(mem_alloc(&host, dc->s.d, sizeof(float), e));
    status st = src->norm(src->self, role, l, host, e);
    if (st == OK) st = dc->ops->alloc(dc->st, bytes, (void **)out, e);
    if (st == OK) st = dc->ops->upload(dc->st, *out, host, bytes, e);
    free(host);
    return st;
}

static status scratch_create(struct decoder *dc, struct err *e)
{
    const struct ops *ops = dc->ops;
    const struct decoder_shape *s = &dc->s;
    const struct decoder_slice *o = &dc->own;
    const uint32_t n = dc->max_rows, in = s->d, columns = o->size > s->G ? o->size : s->G;   /* of scores, over all ranks */
    TRY(ops->alloc(dc->st, (size_t)n * o->heads * s->D * 4, (void **)&dc->q, e));
    TRY(ops->alloc(dc->st, (size_t)n * 2 * o->kv_heads * s->D * 4, (void **)&dc->kv, e));
    TRY(ops->alloc(dc->st, ops->operand_bytes(dc->st, n, in, dc->compute), &dc->op_in, e));
    TRY(ops->alloc(dc->st, ops->operand_bytes(dc->st, n, o->heads * s->D, dc->compute), &dc->op_attn, e));
    TRY(ops->alloc(dc->st, ops->operand_bytes(dc->st, n, o->ff, dc->compute), &dc->op_ff, e));
    TRY(ops->alloc(dc->st, ops->attention_scratch(dc->st, o->heads, s->D, n, dc->max_keys), &dc->attn_scratch, e));
    TRY(ops->alloc(dc->st, ops->choose_scratch(dc->st, dc->max_keys), &dc->choose_scratch, e));
    TRY(ops->alloc(dc->st, (size_t)columns * dc->max_keys * 4, (void **)&dc->partial, e));
    TRY(mem_alloc(&dc->angle, (size_t)2 * ANGLE_ROWS * (s->D / 2), sizeof(float), e));
    TRY(mem_alloc(&dc->index, (size_t)2 * n, sizeof *dc->index, e));
    TRY(mem_alloc(&dc->partial_host, (size_t)columns * dc->max_keys, 4, e));
    if (dc->comm == NULL && ops->reserve == NULL) return OK;
    if (dc->comm == NULL) {        /* memory is planned: nothing is asked for later */
        TRY(ops->alloc(dc->st, (size_t)GATHER_ROWS * s->V * 4, (void **)&dc->logits, e));
        dc->logits_rows = GATHER_ROWS;
        return OK;
    }
    /* Nothing may be lacking where others wait. */
    const size_t logits = (size_t)GATHER_ROWS * s->V, embeddings = (size_t)n * s->d;
    TRY(ops->alloc(dc->st, (size_t)GATHER_ROWS * o->rows * 4, (void **)&dc->logits, e));
    dc->logits_rows = GATHER_ROWS;
    TRY(ops->alloc(dc->st, (o->rank == 0 && logits > embeddings ? logits : embeddings) * 4, (void **)&dc->gathered, e));
    if (o->rank == 0) TRY(mem_alloc(&dc->parts, logits, sizeof(float), e));
    return mem_alloc(&dc->bytes, o->size, sizeof *dc->bytes, e);
}

/* Who has what. */
static status slices(struct decoder *dc, struct comm *c, struct err *e)
{
    const uint32_t size = c ? comm_size(c) : 1;
    TRY(decoder_slice_of(&dc->s, c ? comm_rank(c) : 0, size, &dc->own, e));
    TRY(mem_alloc(&dc->all, size, sizeof *dc->all, e));
    for (uint32_t r = 0; r < size; r++) TRY(decoder_slice_of(&dc->s, r, size, &dc->all[r], e));
    dc->comm = size > 1 || (c && comm_attached(c)) ? c : NULL;
    dc->memory = strcmp(dc->ops->name, "cpu") == 0 ? NULL : dc->st;
    return OK;
}

status decoder_create(struct stream *st, const struct decoder_shape *s, const struct decoder_source *src,
                      enum dtype compute, enum dtype kv_dtype, uint32_t max_rows, uint32_t max_keys,
                      struct decoder **out, struct err *e)
{
    return decoder_create_slice(st, s, src, compute, kv_dtype, max_rows, max_keys, NULL, out, e);
}

status decoder_create_slice(struct stream *st, const struct decoder_shape *s, const struct decoder_source *src,
                            enum dtype compute, enum dtype kv_dtype, uint32_t max_rows, uint32_t max_keys, struct comm *c,
                            struct decoder **out, struct err *e)
{
    struct decoder *dc;
    status r;
    TRY(mem_alloc(&dc, 1, sizeof *dc, e));
    *dc = (struct decoder){ .st = st, .ops = st->ops, .s = *s, .compute = compute, .kv_dtype = kv_dtype,
                            .max_rows = max_rows, .max_keys = max_keys };
    TRY_GOTO(r, slices(dc, c, e), undo);
    TRY_GOTO(r, mem_alloc(&dc->layer, s->L, sizeof *dc->layer, e), undo);
    TRY_GOTO(r, mem_alloc(&dc->inv_freq, s->D / 2, sizeof(float), e), undo);
    /* The reference's own rounding: 1.0f / (float)pow(theta, 2j/D). */
    for (uint32_t j = 0; j < s->D / 2; j++)
        dc->inv_freq[j] = 1.0f / (float)pow(s->rope_theta, 2.0 * j / s->D);
    for (uint32_t l = 0; l < s->L; l++) {
        struct layer *y = &dc->layer[l];
        TRY_GOTO(r, norm_of(dc, src, DEC_NORM1, l, &y->norm1, e), undo);
        TRY_GOTO(r, weight_of(dc, src, DEC_QKV_Q, l, &y->q, e), undo);
        TRY_GOTO(r, weight_of(dc, src, DEC_QKV_KV, l, &y->kv, e), undo);
        TRY_GOTO(r, weight_of(dc, src, DEC_O, l, &y->o, e), undo);
        TRY_GOTO(r, norm_of(dc, src, DEC_NORM2, l, &y->norm2, e), undo);
        TRY_GOTO(r, weight_of(dc, src, DEC_GATE_UP, l, &y->gate_up, e), undo);
        TRY_GOTO(r, weight_of(dc, src, DEC_DOWN, l, &y->down, e), undo);
    }
    TRY_GOTO(r, weight_of(dc, src, DEC_EMBED, 0, &dc->embed, e), undo);
    TRY_GOTO(r, norm_of(dc, src, DEC_NORM, 0, &dc->norm, e), undo);
    if (s->tied) dc->head = dc->embed;
    else TRY_GOTO(r, weight_of(dc, src, DEC_LM_HEAD, 0, &dc->head, e), undo);
    TRY_GOTO(r, scratch_create(dc, e), undo);
    *out = dc;
    return OK;
undo:
    decoder_destroy(&dc);
    return r;
}

void decoder_destroy(struct decoder **pdc)
{
    struct decoder *dc = *pdc;
    if (dc == NULL) return;
    const struct ops *ops = dc->ops;
    for (uint32_t l = 0; dc->layer && l < dc->s.L; l++) {
        struct layer *y = &dc->layer[l];
        struct weight **w[] = { &y->q, &y->kv, &y->o, &y->gate_up, &y->down };
        for (size_t i = 0; i < sizeof w / sizeof *w; i++) ops->weight_destroy(dc->st, w[i]);
        ops->release(dc->st, y->norm1);
        ops->release(dc->st, y->norm2);
    }
    if (dc->head != dc->embed) ops->weight_destroy(dc->st, &dc->head);
    ops->weight_destroy(dc->st, &dc->embed);
    void *device[] = { dc->norm, dc->q, dc->kv, dc->logits, dc->gathered, dc->partial, dc->op_in, dc->op_attn, dc->op_ff,
                       dc->attn_scratch, dc->choose_scratch };
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) ops->release(dc->st, device[i]);
    free(dc->layer);
    free(dc->all);
    free(dc->parts);
    free(dc->bytes);
    free(dc->inv_freq);
    free(dc->angle);
    free(dc->partial_host);
    free(dc->index);
    free(dc->piece_start);
    free(dc->piece_kv);
    free(dc->piece_view);
    free(dc);
    *pdc = NULL;
}

const struct decoder_shape *decoder_shape(const struct decoder *dc) { return &dc->s; }
const struct decoder_slice *decoder_slice(const struct decoder *dc) { return &dc->own; }
struct stream *decoder_stream(const struct decoder *dc) { return dc->st; }
uint32_t decoder_max_keys(const struct decoder *dc) { return dc->max_keys; }
void decoder_fail(struct decoder *dc, status st) { dc->before = st; }

const struct weight *decoder_weight(const struct decoder *dc, uint32_t i)
{
    enum { PER_LAYER = 5 };
    const uint32_t l = i / PER_LAYER;
    if (l >= dc->s.L) return i == dc->s.L * PER_LAYER ? dc->head : NULL;
    const struct layer *y = &dc->layer[l];
    const struct weight *const w[PER_LAYER] = { y->q, y->kv, y->o, y->gate_up, y->down };
    return w[i % PER_LAYER];
}

size_t decoder_weight_bytes(const struct decoder *dc)
{
    size_t bytes = 0;
    const struct weight *w;
    for (uint32_t i = 0; (w = decoder_weight(dc, i)) != NULL; i++) bytes += dc->ops->weight_shape(w).bytes;
    return bytes;
}

struct kv_shape decoder_kv_shape(const struct decoder *dc)
{
    const uint32_t G = dc->own.kv_heads;
    return (struct kv_shape){ .G = G, .D = dc->s.D, .dtype = dc->kv_dtype, .page_tokens = dc->ops->page_tokens,
                              .page_bytes = dc->ops->page_bytes(dc->st, G, dc->s.D, dc->kv_dtype) };
}

/* ---- several ranks ---------------------------------------------------------------------------------------- */

/* The status that the next call begins with. */
static status begin(struct decoder *dc)
{
    const status st = dc->before;
    dc->before = OK;
    return st;
}

/* What a collective adds to the status of this rank so far. Its own error stands, but not before a lost group's. */
static status met(status st, status met_st, const struct err *why, struct err *e)
{
    if (met_st == OK) return st;
    if (e) *e = *why;
    return met_st;
}

/* y [n] := its sum over ranks. A rank that failed takes part with what it has, so that nobody waits for it. */
static status sum_rows(struct decoder *dc, status st, float *y, size_t n, struct err *e)
{
    struct err why;
    if (dc->comm == NULL) return st;
    return met(st, comm_all_reduce(dc->comm, dc->memory, y, n, &why), &why, e);
}

/* Rank 0 adds its part of a product to the residual that all have, the others bring theirs alone. */
static enum linear_mode part_mode(const struct decoder *dc) { return dc->own.rank == 0 ? LINEAR_ADD : LINEAR_STORE; }

/* ---- inputs ----------------------------------------------------------------------------------------------- */

status decoder_angles(struct decoder *dc, const int32_t *const pos[3], uint32_t n, float *cos_out, float *sin_out,
                      struct err *e)
{
    const uint32_t half = dc->s.D / 2, s0 = dc->s.mrope_section[0], s1 = s0 + dc->s.mrope_section[1];
    float *c = dc->angle, *s = dc->angle + (size_t)ANGLE_ROWS * half;
    for (uint32_t i0 = 0; i0 < n; i0 += ANGLE_ROWS) {
        const uint32_t m = n - i0 < ANGLE_ROWS ? n - i0 : ANGLE_ROWS;
        for (uint32_t i = 0; i < m; i++)
            for (uint32_t j = 0; j < half; j++) {
                const int32_t p = pos[j < s0 ? 0 : j < s1 ? 1 : 2][i0 + i];
                const float angle = (float)p * dc->inv_freq[j];
                c[(size_t)i * half + j] = cosf(angle);
                s[(size_t)i * half + j] = sinf(angle);
            }
        const size_t bytes = (size_t)m * half * sizeof(float), at = (size_t)i0 * half;
        TRY(dc->ops->upload(dc->st, cos_out + at, c, bytes, e));
        TRY(dc->ops->upload(dc->st, sin_out + at, s, bytes, e));
    }
    return OK;
}

/* Rows of the ids that rank r has, in their order: ids counted from its first row, and where each belongs. */
static uint32_t ids_of(const struct decoder_slice *r, const int32_t *id, uint32_t n, int32_t *own, uint32_t *to)
{
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i++) {
        if ((uint32_t)id[i] < r->row0 || (uint32_t)id[i] - r->row0 >= r->rows) continue;
        if (own) own[m] = id[i] - (int32_t)r->row0;
        if (to) to[m] = i;
        m++;
    }
    return m;
}

/* n <= max_rows: each rank looks up the rows that it has; gathered, they are put in order. */
static status embed_gathered(struct decoder *dc, status st, const int32_t *id, uint32_t n, float *x, struct err *e)
{
    const uint32_t d = dc->s.d, rank = dc->own.rank;
    uint32_t *to = dc->index, at = 0;
    int32_t *own = (int32_t *)dc->index + dc->max_rows;
    float *mine = dc->gathered;
    struct err why;
    for (uint32_t r = 0; r < dc->own.size; r++) {
        const uint32_t m = ids_of(&dc->all[r], id, n, NULL, to + at);
        if (r == rank) mine = dc->gathered + (size_t)at * d;
        dc->bytes[r] = (size_t)m * d * sizeof(float);
        at += m;
    }
    const uint32_t m = ids_of(&dc->own, id, n, own, NULL);
    if (st == OK) st = dc->ops->embed(dc->st, &(struct embed_args){ .table = dc->embed, .id = own, .n = m, .y = mine }, e);
    st = met(st, comm_all_gather(dc->comm, dc->memory, mine, dc->gathered, dc->bytes, &why), &why, e);
    if (st != OK) return st;
    return dc->ops->scatter(dc->st, &(struct scatter_args){ .x = dc->gathered, .row = to, .n = n, .d = d, .y = x }, e);
}

status decoder_embed(struct decoder *dc, const int32_t *id, uint32_t n, float *x, struct err *e)
{
    status st = begin(dc);
    for (uint32_t i = 0; i < n; i++)
        if (id[i] < 0 || (uint32_t)id[i] >= dc->s.V)
            return err_set(e, E_ARG, "token id %d at %u is outside the vocabulary of %u rows", id[i], i, dc->s.V);
    if (dc->comm == NULL)
        return st != OK ? st : dc->ops->embed(dc->st, &(struct embed_args){ .table = dc->embed, .id = id, .n = n, .y = x }, e);
    for (uint32_t i0 = 0; i0 < n; i0 += dc->max_rows)
        st = embed_gathered(dc, st, id + i0, n - i0 < dc->max_rows ? n - i0 : dc->max_rows, x + (size_t)i0 * dc->s.d, e);
    return st;
}

/* ---- one layer -------------------------------------------------------------------------------------------- */

/* Rows of a block of n rows: as few blocks as max_rows allows, equal but for their last tile of ROW_TILE rows, as a
 * short last block would meet every weight for a few rows. */
static uint32_t block_rows(const struct decoder *dc, uint32_t n)
{
    enum { ROW_TILE = 12 };
    const uint32_t n_blocks = (n + dc->max_rows - 1) / dc->max_rows;
    if (n_blocks <= 1) return n > 0 ? n : 1;
    const uint32_t rows = ((n + n_blocks - 1) / n_blocks + ROW_TILE - 1) / ROW_TILE * ROW_TILE;
    return rows < dc->max_rows ? rows : dc->max_rows;
}

/* The sequences that rows [r0, r1) of a batch touch, with starts counted from r0. */
struct pieces { uint32_t n; const uint32_t *start; uint32_t first_seq; };

static status pieces_of(struct decoder *dc, const uint32_t *seq_start, uint32_t n_seqs, uint32_t r0, uint32_t r1,
                        struct pieces *out, struct err *e)
{
    uint32_t s0 = 0;
    while (s0 + 1 < n_seqs && seq_start[s0 + 1] <= r0) s0++;
    uint32_t s1 = s0;
    while (s1 < n_seqs && seq_start[s1] < r1) s1++;
    TRY(mem_grow(&dc->piece_start, &dc->piece_cap, s1 - s0 + 1, sizeof(uint32_t), e));
    for (uint32_t s = s0; s <= s1; s++) {
        const uint32_t at = seq_start[s];
        dc->piece_start[s - s0] = (at < r0 ? r0 : at > r1 ? r1 : at) - r0;
    }
    *out = (struct pieces){ .n = s1 - s0, .start = dc->piece_start, .first_seq = s0 };
    return OK;
}

/* Rows [r0, r0 + n) of a list of rows; who failed has no lists. */
static struct decoder_rows part_of(const struct decoder_rows *r, uint32_t r0, uint32_t n)
{
    return (struct decoder_rows){ .n = n, .row = r->row ? r->row + r0 : NULL, .angle = r->angle ? r->angle + r0 : NULL,
                                  .visible = r->visible ? r->visible + r0 : NULL, .on_device = r->on_device };
}

/* row NULL: those that lie there. */
static status norm_picked(struct decoder *dc, const float *x, const uint32_t *row, bool on_device, uint32_t rows, const float *w,
                          struct operand *out, struct err *e)
{
    *out = (struct operand){ .data = dc->op_in, .rows = rows, .k = dc->s.d, .compute = dc->compute };
    return dc->ops->norm(dc->st, &(struct norm_args){ .x = x, .row = row, .rows = rows, .d = dc->s.d, .group = 1, .w = w,
                                                      .eps = dc->s.rms_eps, .out = out, .row_on_device = on_device }, e);
}

static status norm_rows(struct decoder *dc, const float *x, const uint32_t *row, uint32_t rows, const float *w,
                        struct operand *out, struct err *e)
{
    return norm_picked(dc, x, row, false, rows, w, out, e);
}

/* K and V of the normed rows [r0, r0 + in->rows) of the batch, into the pages. */
static status kv_block(struct decoder *dc, const struct layer *w, const struct decoder_batch *b, const struct operand *in,
                       uint32_t r0, const uint32_t *kv_start, struct err *e)
{
    const uint32_t width = 2 * dc->own.kv_heads * dc->s.D;
    struct pieces p;
    TRY(dc->ops->linear(dc->st, &(struct linear_args){ .x = in, .w = w->kv, .mode = LINEAR_STORE, .y = dc->kv,
                                                       .ldy = width }, e));
    TRY(pieces_of(dc, b->seq_start, b->n_seqs, r0, r0 + in->rows, &p, e));
    TRY(mem_grow(&dc->piece_kv, &dc->piece_kv_cap, p.n, sizeof(uint32_t), e));
    for (uint32_t i = 0; i < p.n; i++) {
        const uint32_t s = p.first_seq + i, start = b->seq_start[s];
        dc->piece_kv[i] = kv_start[s] + (start < r0 ? r0 - start : 0);
    }
    return dc->ops->kv_write(dc->st, &(struct kv_write_args){
        .kv = dc->kv, .ldkv = width, .cos = b->cos, .sin = b->sin, .row = b->angle + r0, .shape = b->kv, .n_seqs = p.n,
        .seq_start = p.start, .kv_start = dc->piece_kv, .view = b->view + p.first_seq, .row_on_device = b->on_device }, e);
}

/* Q of normed rows, rotated, into dc->q. */
static status q_block(struct decoder *dc, const struct layer *w, const struct decoder_batch *b, const struct operand *in,
                      const struct decoder_rows *rows, struct err *e)
{
    const uint32_t width = dc->own.heads * dc->s.D;
    TRY(dc->ops->linear(dc->st, &(struct linear_args){ .x = in, .w = w->q, .mode = LINEAR_STORE, .y = dc->q,
                                                       .ldy = width }, e));
    return dc->ops->rope(dc->st, &(struct rope_args){ .x = dc->q, .ldx = width, .n = in->rows, .heads = dc->own.heads,
                                                      .D = dc->s.D, .cos = b->cos, .sin = b->sin, .row = rows->angle,
                                                      .row_on_device = rows->on_device }, e);
}

/* Attention of rows r, output rows from r0 on, added to y [r->n, d]. Before that y becomes these rows of x, where they are named. */
static status attend_block(struct decoder *dc, const struct layer *w, const struct decoder_batch *b, uint32_t r0,
                           const struct decoder_rows *r, const uint32_t *out_start, const float *x, float *y, struct err *e)
{
    const struct ops *ops = dc->ops;
    const uint32_t d = dc->s.d, qw = dc->own.heads * dc->s.D, rows = r->n;
    struct operand attn = { .data = dc->op_attn, .rows = rows, .k = qw, .compute = dc->compute };
    struct pieces p;
    TRY(pieces_of(dc, out_start, b->n_seqs, r0, r0 + rows, &p, e));
    const struct attention_args at = {
        .q = dc->q, .ldq = qw, .H = dc->own.heads, .scale = 1.0f / sqrtf((float)dc->s.D), .shape = b->kv, .n_seqs = p.n,
        .seq_start = p.start, .visible = r->visible, .view = b->view + p.first_seq, .out = &attn,
        .scratch = dc->attn_scratch, .visible_on_device = r->on_device };
    TRY((b->decode ? ops->attention_decode : ops->attention)(dc->st, &at, e));
    if (r->row && part_mode(dc) == LINEAR_ADD)
        TRY(ops->gather(dc->st, &(struct gather_args){ .x = x, .row = r->row, .n = rows, .d = d, .y = y, .row_on_device = r->on_device },
                        e));
    return ops->linear(dc->st, &(struct linear_args){ .x = &attn, .w = w->o, .mode = part_mode(dc), .y = y, .ldy = d }, e);
}

/* The MLP of y [rows, d], added to it. */
static status mlp_block(struct decoder *dc, const struct layer *w, uint32_t rows, float *y, struct err *e)
{
    const struct ops *ops = dc->ops;
    struct operand in, ff = { .data = dc->op_ff, .rows = rows, .k = dc->own.ff, .compute = dc->compute };
    TRY(norm_rows(dc, y, NULL, rows, w->norm2, &in, e));
    TRY(ops->linear(dc->st, &(struct linear_args){ .x = &in, .w = w->gate_up, .mode = LINEAR_SWIGLU, .out = &ff }, e));
    return ops->linear(dc->st, &(struct linear_args){ .x = &ff, .w = w->down, .mode = part_mode(dc), .y = y, .ldy = dc->s.d }, e);
}

/* What follows Q (attend_block, mlp_block), with the sums over ranks; st is the status of this rank so far. */
static status mix_block(struct decoder *dc, status st, const struct layer *w, const struct decoder_batch *b, uint32_t r0,
                        const struct decoder_rows *r, const uint32_t *out_start, const float *x, float *y, struct err *e)
{
    const size_t n = (size_t)r->n * dc->s.d;
    if (st == OK) st = attend_block(dc, w, b, r0, r, out_start, x, y, e);
    st = sum_rows(dc, st, y, n, e);
    if (st == OK) st = mlp_block(dc, w, r->n, y, e);
    return sum_rows(dc, st, y, n, e);
}

status decoder_kv(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, const float *x,
                  const uint32_t *kv_start, struct err *e)
{
    const struct layer *w = &dc->layer[layer];
    TRY(begin(dc));
    const uint32_t n = b->seq_start[b->n_seqs], block = block_rows(dc, n);
    for (uint32_t r0 = 0; r0 < n; r0 += block) {
        struct operand in;
        TRY(norm_rows(dc, x + (size_t)r0 * dc->s.d, NULL, n - r0 < block ? n - r0 : block, w->norm1, &in, e));
        TRY(kv_block(dc, w, b, &in, r0, kv_start, e));
    }
    return OK;
}

/* Figures of n rows by KV head lie end to end: those of all ranks in the order of KV heads, ranks that share one side by side.
 * Where this rank's own are. */
static float *own_partial(const struct decoder *dc, uint32_t n)
{
    return dc->partial + (size_t)(dc->own.sharers > 1 ? dc->own.rank : dc->own.kv0) * n;
}

/* score = the sum of all ranks' times `by`; st is the status of this rank so far. */
static status sum_partials(struct decoder *dc, status st, const float *mine, uint32_t n, float by, float *score, struct err *e)
{
    const uint32_t G = dc->s.G, sharers = dc->own.sharers;
    if (dc->comm) {
        struct err why;
        for (uint32_t r = 0; r < dc->own.size; r++) dc->bytes[r] = (size_t)dc->all[r].kv_heads * n * sizeof(float);
        st = met(st, comm_all_gather(dc->comm, dc->memory, mine, dc->partial, dc->bytes, &why), &why, e);
    }
    if (st != OK) return st;
    TRY(dc->ops->download(dc->st, dc->partial_host, dc->partial, (size_t)G * sharers * n * sizeof(float), e));
    for (uint32_t j = 0; j < n; j++) {
        float sum = 0;
        for (uint32_t g = 0; g < G; g++) {
            const float *of = dc->partial_host + (size_t)g * sharers * n + j;
            float one = of[0];
            for (uint32_t k = 1; k < sharers; k++) one += of[(size_t)k * n];
            sum += one;
        }
        score[j] = sum * by;
    }
    return OK;
}

/* This rank's part of the scores: partial [kv_heads, n] at `mine`. */
static status score_block(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, uint32_t s, const float *x,
                          const struct decoder_rows *query, float *mine, struct err *e)
{
    const struct layer *w = &dc->layer[layer];
    struct operand in;
    TRY(norm_picked(dc, x, query->row, query->on_device, query->n, w->norm1, &in, e));
    TRY(q_block(dc, w, b, &in, query, e));
    return dc->ops->query_scores(dc->st, &(struct query_scores_args){
        .q = dc->q, .ldq = (size_t)dc->own.heads * dc->s.D, .n_q = query->n, .H = dc->own.heads,
        .scale = 1.0f / sqrtf((float)dc->s.D), .shape = b->kv, .view = b->view[s], .visible = query->visible, .partial = mine,
        .scratch = dc->attn_scratch, .visible_on_device = query->on_device }, e);
}

static status scores_fit(const struct decoder *dc, uint32_t n_q, uint32_t n, struct err *e)
{
    if (n_q <= dc->max_rows && n <= dc->max_keys) return OK;
    return err_set(e, E_ARG, "%u query rows over %u keys: this decoder has room for %u and %u", n_q, n, dc->max_rows, dc->max_keys);
}

static float score_unit(const struct decoder *dc, uint32_t n_q) { return 1.0f / ((float)dc->s.H * (float)n_q); }

status decoder_scores(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, uint32_t s, const float *x,
                      const struct decoder_rows *query, float *score, struct err *e)
{
    status st = begin(dc);
    const uint32_t n = b->view[s].n_rows;
    TRY(scores_fit(dc, query->n, n, e));
    float *mine = own_partial(dc, n);
    if (st == OK) st = score_block(dc, layer, b, s, x, query, mine, e);
    return sum_partials(dc, st, mine, n, score_unit(dc, query->n), score, e);
}

status decoder_choose(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, uint32_t s, const float *x,
                      const struct decoder_rows *query, struct choose_args *c, struct err *e)
{
    TRY(begin(dc));
    if (dc->comm) return err_set(e, E_ARG, "a choice on the device is for one rank, here are %u", dc->own.size);
    TRY(scores_fit(dc, query->n, b->view[s].n_rows, e));
    TRY(score_block(dc, layer, b, s, x, query, dc->partial, e));
    c->partial = dc->partial;
    c->G = dc->s.G;
    c->by = score_unit(dc, query->n);
    c->scratch = dc->choose_scratch;
    return dc->ops->choose(dc->st, c, e);
}

/* Norm and Q of rows r, from r0 on, of decoder_mix. */
static status mix_query(struct decoder *dc, const struct layer *w, const struct decoder_batch *b, const float *x,
                        const struct decoder_rows *r, uint32_t r0, struct err *e)
{
    struct operand in;
    TRY(norm_picked(dc, r->row ? x : x + (size_t)r0 * dc->s.d, r->row, r->on_device, r->n, w->norm1, &in, e));
    return q_block(dc, w, b, &in, r, e);
}

status decoder_mix(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, const float *x,
                   const struct decoder_rows *keep, const uint32_t *out_start, float *y, struct err *e)
{
    const struct layer *w = &dc->layer[layer];
    const uint32_t n = keep->n, block = block_rows(dc, n);
    status st = begin(dc);
    assert(keep->row != NULL || x == y);
    for (uint32_t r0 = 0; r0 < n && (st == OK || dc->comm); r0 += block) {
        const struct decoder_rows r = part_of(keep, r0, n - r0 < block ? n - r0 : block);
        if (st == OK) st = mix_query(dc, w, b, x, &r, r0, e);
        st = mix_block(dc, st, w, b, r0, &r, out_start, x, y + (size_t)r0 * dc->s.d, e);
    }
    return st;
}

/* Norm, K, V and Q of rows r, from r0 on, of decoder_layer. */
static status layer_query(struct decoder *dc, const struct layer *w, const struct decoder_batch *b, const float *x, uint32_t r0,
                          const struct decoder_rows *r, const uint32_t *kv_start, struct err *e)
{
    struct operand in;
    TRY(norm_rows(dc, x, NULL, r->n, w->norm1, &in, e));
    TRY(kv_block(dc, w, b, &in, r0, kv_start, e));
    return q_block(dc, w, b, &in, r, e);
}

status decoder_layer(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, float *x, const uint32_t *kv_start,
                     const uint32_t *visible, struct err *e)
{
    const struct layer *w = &dc->layer[layer];
    const uint32_t n = b->seq_start[b->n_seqs], block = block_rows(dc, n);
    const struct decoder_rows all = { .n = n, .angle = b->angle, .visible = visible, .on_device = b->on_device };
    status st = begin(dc);
    for (uint32_t r0 = 0; r0 < n && (st == OK || dc->comm); r0 += block) {
        const struct decoder_rows r = part_of(&all, r0, n - r0 < block ? n - r0 : block);
        float *y = x + (size_t)r0 * dc->s.d;
        if (st == OK) st = layer_query(dc, w, b, y, r0, &r, kv_start, e);
        st = mix_block(dc, st, w, b, r0, &r, b->seq_start, NULL, y, e);
    }
    return st;
}

/* Logits of rows [r0, r0 + rows) of this rank's vocabulary, into dc->logits. */
static status logits_block(struct decoder *dc, const float *x, const uint32_t *row, uint32_t r0, uint32_t rows, struct err *e)
{
    struct operand in;
    if (row) TRY(norm_rows(dc, x, row + r0, rows, dc->norm, &in, e));
    else TRY(norm_rows(dc, x + (size_t)r0 * dc->s.d, NULL, rows, dc->norm, &in, e));
    return dc->ops->linear(dc->st, &(struct linear_args){ .x = &in, .w = dc->head, .mode = LINEAR_STORE, .y = dc->logits,
                                                          .ldy = dc->own.rows }, e);
}

/* Ranks' columns to rank 0, there side by side into logits [rows, V]. */
static status logits_gathered(struct decoder *dc, status st, uint32_t rows, float *logits, struct err *e)
{
    const uint32_t V = dc->s.V;
    struct err why;
    for (uint32_t r = 0; r < dc->own.size; r++) dc->bytes[r] = (size_t)rows * dc->all[r].rows * sizeof(float);
    st = met(st, comm_gather(dc->comm, dc->memory, 0, dc->logits, dc->gathered, dc->bytes, &why), &why, e);
    if (st != OK || dc->own.rank != 0) return st;
    TRY(dc->ops->download(dc->st, dc->parts, dc->gathered, (size_t)rows * V * sizeof(float), e));
    const float *from = dc->parts;
    for (uint32_t r = 0; r < dc->own.size; r++)
        for (uint32_t i = 0; i < rows; i++, from += dc->all[r].rows)
            memcpy(logits + (size_t)i * V + dc->all[r].row0, from, dc->all[r].rows * sizeof(float));
    return OK;
}

static status logits_room(struct decoder *dc, uint32_t rows, struct err *e)
{
    if (rows <= dc->logits_rows) return OK;
    dc->ops->release(dc->st, dc->logits);
    dc->logits = NULL;
    dc->logits_rows = 0;
    TRY(dc->ops->alloc(dc->st, (size_t)rows * dc->s.V * sizeof(float), (void **)&dc->logits, e));
    dc->logits_rows = rows;
    return OK;
}

status decoder_tops(struct decoder *dc, const float *x, const uint32_t *row, uint32_t n, const uint8_t *allowed, struct top_row *top,
                    struct err *e)
{
    const uint32_t V = dc->s.V;
    TRY(begin(dc));
    if (dc->comm || n > DECODER_TOPS)
        return err_set(e, E_ARG, "the highest logits of %u rows: of %d at most, and on one rank", n, DECODER_TOPS);
    TRY(logits_room(dc, n, e));
    TRY(logits_block(dc, x, row, 0, n, e));
    return dc->ops->top(dc->st, &(struct top_args){ .x = dc->logits, .ldx = V, .n = n, .V = V, .allowed = allowed, .out = top }, e);
}

status decoder_tops_row(struct decoder *dc, uint32_t i, float *logits, struct err *e)
{
    const size_t V = dc->s.V;
    return dc->ops->download(dc->st, logits, dc->logits + i * V, V * sizeof(float), e);
}

status decoder_logits(struct decoder *dc, const float *x, const uint32_t *row, uint32_t n, float *logits,
                      struct err *e)
{
    const uint32_t V = dc->s.V, most = dc->ops->reserve ? GATHER_ROWS : dc->max_rows, at_once = n < most ? n : most;
    status st = begin(dc);
    if (dc->comm) {
        for (uint32_t r0 = 0; r0 < n; r0 += GATHER_ROWS) {
            const uint32_t rows = n - r0 < GATHER_ROWS ? n - r0 : GATHER_ROWS;
            if (st == OK) st = logits_block(dc, x, row, r0, rows, e);
            st = logits_gathered(dc, st, rows, logits ? logits + (size_t)r0 * V : NULL, e);
        }
        return st;
    }
    TRY(st);
    TRY(logits_room(dc, at_once, e));
    const uint32_t even = block_rows(dc, n), block = even < most ? even : most;
    for (uint32_t r0 = 0; r0 < n; r0 += block) {
        const uint32_t rows = n - r0 < block ? n - r0 : block;
        TRY(logits_block(dc, x, row, r0, rows, e));
        TRY(dc->ops->download(dc->st, logits + (size_t)r0 * V, dc->logits, (size_t)rows * V * sizeof(float), e));
    }
    return OK;
}

/* ---- walks ------------------------------------------------------------------------------------------------ */

#define WALKS 5
#define WALK_HEAT 0.1f

/* One KV head of this rank's: the sum over its query heads of the square of where n walkers end. q, kv: of all n rows. */
static status walk_head(struct decoder *dc, uint32_t g, const float *q, const float *kv, uint32_t n, float *host, void *scratch,
                        float *out, struct err *e)
{
    const uint32_t D = dc->s.D, heads = dc->own.heads / dc->own.kv_heads;
    TRY(dc->ops->pagerank(dc->st, &(struct pagerank_args){
        .q = q + (size_t)g * heads * D, .k = kv + (size_t)g * D, .ldq = (size_t)dc->own.heads * D,
        .ldk = 2 * (size_t)dc->own.kv_heads * D, .n = n, .H = heads, .G = 1, .D = D, .iterations = WALKS,
        .scale = 1.0f / (sqrtf((float)D) * WALK_HEAT), .importance = host, .scratch = scratch }, e));
    for (uint32_t i = 0; i < n; i++) host[i] *= host[i] * (float)heads;
    return dc->ops->upload(dc->st, out + (size_t)g * n, host, n * sizeof(float), e);
}

/* Q and K (and V, which lies beside it) of all rows, rotated. */
static status walk_rows(struct decoder *dc, const struct layer *w, const struct decoder_batch *b, const float *x, uint32_t n,
                        float *q, float *kv, struct err *e)
{
    const uint32_t qw = dc->own.heads * dc->s.D, kvw = 2 * dc->own.kv_heads * dc->s.D, block = block_rows(dc, n);
    for (uint32_t r0 = 0; r0 < n; r0 += block) {
        struct operand in;
        TRY(norm_rows(dc, x + (size_t)r0 * dc->s.d, NULL, n - r0 < block ? n - r0 : block, w->norm1, &in, e));
        TRY(dc->ops->linear(dc->st, &(struct linear_args){ .x = &in, .w = w->q, .mode = LINEAR_STORE,
                                                           .y = q + (size_t)r0 * qw, .ldy = qw }, e));
        TRY(dc->ops->linear(dc->st, &(struct linear_args){ .x = &in, .w = w->kv, .mode = LINEAR_STORE,
                                                           .y = kv + (size_t)r0 * kvw, .ldy = kvw }, e));
    }
    struct rope_args rope = { .x = q, .ldx = qw, .n = n, .heads = dc->own.heads, .D = dc->s.D, .cos = b->cos, .sin = b->sin,
                              .row = b->angle };
    TRY(dc->ops->rope(dc->st, &rope, e));
    rope.x = kv;
    rope.ldx = kvw;
    rope.heads = dc->own.kv_heads;
    return dc->ops->rope(dc->st, &rope, e);
}

size_t decoder_walk_bytes(const struct decoder *dc, uint32_t n)
{
    return (size_t)n * (dc->own.heads + 2 * dc->own.kv_heads) * dc->s.D * sizeof(float);
}

/* This rank's part: partial [kv_heads, n] at `mine`. */
static status walk_part(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, const float *x, uint32_t n, float *mine,
                        struct err *e)
{
    const size_t qw = (size_t)dc->own.heads * dc->s.D;
    const size_t scratch_bytes = dc->ops->pagerank_scratch(dc->st, dc->own.heads / dc->own.kv_heads, n);
    float *q, *host = NULL;
    char *scratch = NULL;
    TRY(dc->ops->alloc(dc->st, decoder_walk_bytes(dc, n), (void **)&q, e));
    status st = mem_alloc(&host, n, sizeof *host, e);
    if (st == OK) st = mem_alloc(&scratch, scratch_bytes, 1, e);
    if (st == OK) st = walk_rows(dc, &dc->layer[layer], b, x, n, q, q + n * qw, e);
    for (uint32_t g = 0; g < dc->own.kv_heads && st == OK; g++) st = walk_head(dc, g, q, q + n * qw, n, host, scratch, mine, e);
    free(scratch);
    free(host);
    dc->ops->release(dc->st, q);
    return st;
}

status decoder_walks(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, const float *x, float *score,
                     struct err *e)
{
    status st = begin(dc);
    const uint32_t n = b->seq_start[b->n_seqs];
    if (n > dc->max_keys) return err_set(e, E_ARG, "walks over %u keys: this decoder has room for %u", n, dc->max_keys);
    float *mine = own_partial(dc, n);
    if (st == OK) st = walk_part(dc, layer, b, x, n, mine, e);
    TRY(sum_partials(dc, st, mine, n, 1.0f / (float)dc->s.H, score, e));
    for (uint32_t i = 0; i < n; i++) score[i] = sqrtf(score[i]);
    return OK;
}
