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

struct layer {
    struct weight *q, *kv, *o, *gate_up, *down;
    float *norm1, *norm2;
};

struct decoder {
    struct stream *st;
    const struct ops *ops;
    struct decoder_shape s;
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
    void *op_in, *op_attn, *op_ff, *attn_scratch;
    float *partial_host;
    uint32_t *index;                    /* [2 * max_rows] angle rows and visible counts of a block */
    uint32_t *piece_start, *piece_kv;   /* sequence pieces of a block */
    struct kv_view *piece_view;
    size_t piece_cap, piece_kv_cap, piece_view_cap;
};

/* ---- creation --------------------------------------------------------------------------------------------- */

static status weight_of(struct decoder *dc, const struct decoder_source *src, enum decoder_role role, uint32_t l,
                        struct weight **out, struct err *e)
{
    struct weight_args a = { .compute = dc->compute };
    TRY(src->weight(src->self, role, l, &a, e));
    a.compute = dc->compute;
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
    const uint32_t n = dc->max_rows, in = s->d;
    TRY(ops->alloc(dc->st, (size_t)n * s->H * s->D * 4, (void **)&dc->q, e));
    TRY(ops->alloc(dc->st, (size_t)n * 2 * s->G * s->D * 4, (void **)&dc->kv, e));
    TRY(ops->alloc(dc->st, ops->operand_bytes(dc->st, n, in, dc->compute), &dc->op_in, e));
    TRY(ops->alloc(dc->st, ops->operand_bytes(dc->st, n, s->H * s->D, dc->compute), &dc->op_attn, e));
    TRY(ops->alloc(dc->st, ops->operand_bytes(dc->st, n, s->ff, dc->compute), &dc->op_ff, e));
    TRY(ops->alloc(dc->st, ops->attention_scratch(dc->st, s->H, s->D, n, dc->max_keys), &dc->attn_scratch, e));
    TRY(ops->alloc(dc->st, (size_t)s->G * dc->max_keys * 4, (void **)&dc->partial, e));
    TRY(mem_alloc(&dc->angle, (size_t)2 * ANGLE_ROWS * (s->D / 2), sizeof(float), e));
    TRY(mem_alloc(&dc->index, (size_t)2 * n, sizeof *dc->index, e));
    return mem_alloc(&dc->partial_host, (size_t)s->G * dc->max_keys, 4, e);
}

status decoder_create(struct stream *st, const struct decoder_shape *s, const struct decoder_source *src,
                      enum dtype compute, enum dtype kv_dtype, uint32_t max_rows, uint32_t max_keys,
                      struct decoder **out, struct err *e)
{
    struct decoder *dc;
    status r;
    TRY(mem_alloc(&dc, 1, sizeof *dc, e));
    *dc = (struct decoder){ .st = st, .ops = st->ops, .s = *s, .compute = compute, .kv_dtype = kv_dtype,
                            .max_rows = max_rows, .max_keys = max_keys };
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
    void *device[] = { dc->norm, dc->q, dc->kv, dc->logits, dc->partial, dc->op_in, dc->op_attn, dc->op_ff,
                       dc->attn_scratch };
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) ops->release(dc->st, device[i]);
    free(dc->layer);
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
    return (struct kv_shape){ .G = dc->s.G, .D = dc->s.D, .dtype = dc->kv_dtype, .page_tokens = dc->ops->page_tokens,
                              .page_bytes = dc->ops->page_bytes(dc->st, dc->s.G, dc->s.D, dc->kv_dtype) };
}

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

status decoder_embed(struct decoder *dc, const int32_t *id, uint32_t n, float *x, struct err *e)
{
    for (uint32_t i = 0; i < n; i++)
        if (id[i] < 0 || (uint32_t)id[i] >= dc->s.V)
            return err_set(e, E_ARG, "token id %d at %u is outside the vocabulary of %u rows", id[i], i, dc->s.V);
    return dc->ops->embed(dc->st, &(struct embed_args){ .table = dc->embed, .id = id, .n = n, .y = x }, e);
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

static status norm_rows(struct decoder *dc, const float *x, const uint32_t *row, uint32_t rows, const float *w,
                        struct operand *out, struct err *e)
{
    *out = (struct operand){ .data = dc->op_in, .rows = rows, .k = dc->s.d, .compute = dc->compute };
    return dc->ops->norm(dc->st, &(struct norm_args){ .x = x, .row = row, .rows = rows, .d = dc->s.d, .group = 1,
                                                      .w = w, .eps = dc->s.rms_eps, .out = out }, e);
}

/* K and V of the normed rows [r0, r0 + in->rows) of the batch, into the pages. */
static status kv_block(struct decoder *dc, const struct layer *w, const struct decoder_batch *b, const struct operand *in,
                       uint32_t r0, const uint32_t *kv_start, struct err *e)
{
    const uint32_t width = 2 * dc->s.G * dc->s.D;
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
        .seq_start = p.start, .kv_start = dc->piece_kv, .view = b->view + p.first_seq }, e);
}

/* Q of normed rows, rotated, into dc->q. angle: rows of cos/sin, already picked. */
static status q_block(struct decoder *dc, const struct layer *w, const struct decoder_batch *b, const struct operand *in,
                      const uint32_t *angle, struct err *e)
{
    const uint32_t width = dc->s.H * dc->s.D;
    TRY(dc->ops->linear(dc->st, &(struct linear_args){ .x = in, .w = w->q, .mode = LINEAR_STORE, .y = dc->q,
                                                       .ldy = width }, e));
    return dc->ops->rope(dc->st, &(struct rope_args){ .x = dc->q, .ldx = width, .n = in->rows, .heads = dc->s.H,
                                                      .D = dc->s.D, .cos = b->cos, .sin = b->sin, .row = angle }, e);
}

/* What follows Q, for output rows [r0, r0 + rows): attention, output, MLP, added to y [rows, d]. Before that y becomes
 * rows `from` of x, where `from` is given. */
static status mix_block(struct decoder *dc, const struct layer *w, const struct decoder_batch *b, uint32_t r0, uint32_t rows,
                        const uint32_t *out_start, const uint32_t *visible, const float *x, const uint32_t *from, float *y,
                        struct err *e)
{
    const struct ops *ops = dc->ops;
    const uint32_t d = dc->s.d, qw = dc->s.H * dc->s.D;
    struct operand in, ff = { .data = dc->op_ff, .rows = rows, .k = dc->s.ff, .compute = dc->compute };
    struct operand attn = { .data = dc->op_attn, .rows = rows, .k = qw, .compute = dc->compute };
    struct pieces p;
    TRY(pieces_of(dc, out_start, b->n_seqs, r0, r0 + rows, &p, e));
    const struct attention_args at = {
        .q = dc->q, .ldq = qw, .H = dc->s.H, .scale = 1.0f / sqrtf((float)dc->s.D), .shape = b->kv, .n_seqs = p.n,
        .seq_start = p.start, .visible = visible + r0, .view = b->view + p.first_seq, .out = &attn,
        .scratch = dc->attn_scratch };
    TRY((b->decode ? ops->attention_decode : ops->attention)(dc->st, &at, e));
    if (from) TRY(ops->gather(dc->st, &(struct gather_args){ .x = x, .row = from, .n = rows, .d = d, .y = y }, e));
    TRY(ops->linear(dc->st, &(struct linear_args){ .x = &attn, .w = w->o, .mode = LINEAR_ADD, .y = y, .ldy = d }, e));
    TRY(norm_rows(dc, y, NULL, rows, w->norm2, &in, e));
    TRY(ops->linear(dc->st, &(struct linear_args){ .x = &in, .w = w->gate_up, .mode = LINEAR_SWIGLU, .out = &ff }, e));
    return ops->linear(dc->st, &(struct linear_args){ .x = &ff, .w = w->down, .mode = LINEAR_ADD, .y = y, .ldy = d }, e);
}

status decoder_kv(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, const float *x,
                  const uint32_t *kv_start, struct err *e)
{
    const struct layer *w = &dc->layer[layer];
    const uint32_t n = b->seq_start[b->n_seqs], block = block_rows(dc, n);
    for (uint32_t r0 = 0; r0 < n; r0 += block) {
        struct operand in;
        TRY(norm_rows(dc, x + (size_t)r0 * dc->s.d, NULL, n - r0 < block ? n - r0 : block, w->norm1, &in, e));
        TRY(kv_block(dc, w, b, &in, r0, kv_start, e));
    }
    return OK;
}

status decoder_scores(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, uint32_t s, const float *x,
                      const uint32_t *row, uint32_t n_q, float *score, struct err *e)
{
    const struct layer *w = &dc->layer[layer];
    const uint32_t n = b->view[s].n_rows, G = dc->s.G;
    struct operand in;
    uint32_t *angle = dc->index, *visible = dc->index + n_q;
    if (n_q > dc->max_rows || n > dc->max_keys)
        return err_set(e, E_ARG, "%u query rows over %u keys: this decoder has room for %u and %u", n_q, n, dc->max_rows,
                       dc->max_keys);
    for (uint32_t i = 0; i < n_q; i++) {
        angle[i] = b->angle[row[i]];
        visible[i] = row[i] - b->seq_start[s] + 1;
    }
    TRY(norm_rows(dc, x, row, n_q, w->norm1, &in, e));
    TRY(q_block(dc, w, b, &in, angle, e));
    TRY(dc->ops->query_scores(dc->st, &(struct query_scores_args){
        .q = dc->q, .ldq = (size_t)dc->s.H * dc->s.D, .n_q = n_q, .H = dc->s.H, .scale = 1.0f / sqrtf((float)dc->s.D),
        .shape = b->kv, .view = b->view[s], .visible = visible, .partial = dc->partial,
        .scratch = dc->attn_scratch }, e));
    TRY(dc->ops->download(dc->st, dc->partial_host, dc->partial, (size_t)G * n * sizeof(float), e));
    const float inv = 1.0f / ((float)dc->s.H * (float)n_q);
    for (uint32_t j = 0; j < n; j++) {
        float sum = 0;
        for (uint32_t g = 0; g < G; g++) sum += dc->partial_host[(size_t)g * n + j];
        score[j] = sum * inv;
    }
    return OK;
}

status decoder_mix(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, const float *x,
                   const uint32_t *keep, uint32_t n_keep, const uint32_t *out_start, const uint32_t *visible,
                   float *y, struct err *e)
{
    const struct layer *w = &dc->layer[layer];
    const uint32_t d = dc->s.d, block = block_rows(dc, n_keep);
    assert(keep != NULL || x == y);
    for (uint32_t r0 = 0; r0 < n_keep; r0 += block) {
        const uint32_t rows = n_keep - r0 < block ? n_keep - r0 : block;
        const uint32_t *from = keep ? keep + r0 : NULL, *angle = b->angle + r0;
        struct operand in;
        for (uint32_t i = 0; from && i < rows; i++) dc->index[i] = b->angle[from[i]];
        if (from) angle = dc->index;
        TRY(norm_rows(dc, from ? x : x + (size_t)r0 * d, from, rows, w->norm1, &in, e));
        TRY(q_block(dc, w, b, &in, angle, e));
        TRY(mix_block(dc, w, b, r0, rows, out_start, visible, x, from, y + (size_t)r0 * d, e));
    }
    return OK;
}

status decoder_layer(struct decoder *dc, uint32_t layer, const struct decoder_batch *b, float *x, const uint32_t *kv_start,
                     const uint32_t *visible, struct err *e)
{
    const struct layer *w = &dc->layer[layer];
    const uint32_t n = b->seq_start[b->n_seqs], block = block_rows(dc, n);
    for (uint32_t r0 = 0; r0 < n; r0 += block) {
        const uint32_t rows = n - r0 < block ? n - r0 : block;
        float *y = x + (size_t)r0 * dc->s.d;
        struct operand in;
        TRY(norm_rows(dc, y, NULL, rows, w->norm1, &in, e));
        TRY(kv_block(dc, w, b, &in, r0, kv_start, e));
        TRY(q_block(dc, w, b, &in, b->angle + r0, e));
        TRY(mix_block(dc, w, b, r0, rows, b->seq_start, visible, NULL, NULL, y, e));
    }
    return OK;
}

status decoder_logits(struct decoder *dc, const float *x, const uint32_t *row, uint32_t n, float *logits,
                      struct err *e)
{
    const uint32_t V = dc->s.V, at_once = n < dc->max_rows ? n : dc->max_rows;
    if (at_once > dc->logits_rows) {
        dc->ops->release(dc->st, dc->logits);
        dc->logits = NULL;
        dc->logits_rows = 0;
        TRY(dc->ops->alloc(dc->st, (size_t)at_once * V * sizeof(float), (void **)&dc->logits, e));
        dc->logits_rows = at_once;
    }
    const uint32_t block = block_rows(dc, n);
    for (uint32_t r0 = 0; r0 < n; r0 += block) {
        const uint32_t rows = n - r0 < block ? n - r0 : block;
        struct operand in;
        if (row) TRY(norm_rows(dc, x, row + r0, rows, dc->norm, &in, e));
        else TRY(norm_rows(dc, x + (size_t)r0 * dc->s.d, NULL, rows, dc->norm, &in, e));
        TRY(dc->ops->linear(dc->st, &(struct linear_args){ .x = &in, .w = dc->head, .mode = LINEAR_STORE,
                                                           .y = dc->logits, .ldy = V }, e));
        TRY(dc->ops->download(dc->st, logits + (size_t)r0 * V, dc->logits, (size_t)rows * V * sizeof(float), e));
    }
    return OK;
}
