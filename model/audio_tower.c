/* model/audio_tower.c - log-mel in, rows of the decoder's width out (towers.h).
 *
 *   chunk of 2 * n_window frames   conv1, GELU, conv2 (stride 2), GELU   -> u = (frames + 1) / 2 rows
 *                                  + sinusoids 0 .. u-1, pre-norm layers, attention inside the chunk
 *   clip                           mean of row pairs (an odd last row is dropped), ln_post, proj
 *
 * A chunk never meets another, so a clip runs in batches of BATCH chunks, whatever its length. A whole batch
 * has an even number of rows: pairs never straddle batches. */
#include "model/towers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/range.h"
#include "model/tower_parts.h"

enum { BATCH = 16 }; /* chunks at once; even */

#define NORM_EPS 1e-5f
#define LAYER    "audio_tower.layers.%u."

struct audio_layer {
    struct weight *qkv, *out, *fc1, *fc2;
    const float *norm1, *norm2; /* [2 d]: weight, bias; in tower->tables */
};

struct audio_tower {
    struct stream *st;
    enum dtype compute;
    struct audio_config c;
    uint32_t chunk; /* mel frames of a whole chunk */
    struct weight *conv1, *conv2, *proj;
    struct audio_layer *layer; /* [c.layers] */
    float *tables;             /* norms and sinusoids, device */
    const float *ln_post, *sinusoids;
    /* Scratch of one batch. */
    struct tower_room mel, in, mid, wide, x, received, attention;
    float *mel_host, *received_host;
};

uint32_t audio_tower_tokens(uint32_t n_frames)
{
    return (uint32_t)(((uint64_t)n_frames + 1) / 4);
}

/* ---- creation ------------------------------------------------------------------------------------------ */

/* Row p: sin(p z_j), then cos(p z_j), z_j = exp(-j ln 10000 / (d/2 - 1)), in f32 as the reference. */
static void sinusoids_write(float *out, uint32_t rows, uint32_t d)
{
    const uint32_t half = d / 2;
    const float step = (float)(-log(10000.0) / (half - 1.0));
    for (uint32_t p = 0; p < rows; p++)
        for (uint32_t j = 0; j < half; j++) {
            const float angle = (float)p * expf(step * (float)j);
            out[(size_t)p * d + j] = sinf(angle);
            out[(size_t)p * d + half + j] = cosf(angle);
        }
}

static status tables_create(struct audio_tower *t, const struct checkpoint *ck, struct err *e)
{
    const uint32_t d = t->c.d_model, L = t->c.layers;
    const size_t n = (4 * (size_t)L + 2 + t->c.n_window) * d;
    float *host, *at;
    TRY(mem_alloc(&host, n, sizeof *host, e));
    at = host;
    for (uint32_t l = 0; l < L; l++) {
        at = tower_read(ck, LAYER "self_attn_layer_norm.weight", l, at);
        at = tower_read(ck, LAYER "self_attn_layer_norm.bias", l, at);
        at = tower_read(ck, LAYER "final_layer_norm.weight", l, at);
        at = tower_read(ck, LAYER "final_layer_norm.bias", l, at);
    }
    at = tower_read(ck, "audio_tower.ln_post.weight", 0, at);
    at = tower_read(ck, "audio_tower.ln_post.bias", 0, at);
    sinusoids_write(at, t->c.n_window, d);
    const status st = tower_upload(t->st, host, n, &t->tables, e);
    free(host);
    TRY(st);
    for (uint32_t l = 0; l < L; l++) {
        t->layer[l].norm1 = t->tables + 4 * (size_t)l * d;
        t->layer[l].norm2 = t->layer[l].norm1 + 2 * d;
    }
    t->ln_post = t->tables + 4 * (size_t)L * d;
    t->sinusoids = t->ln_post + 2 * d;
    return OK;
}

static status weights_create(struct audio_tower *t, const struct checkpoint *ck, struct err *e)
{
    static const struct tower_names conv1 = { { "audio_tower.conv1" } }, conv2 = { { "audio_tower.conv2" } },
                                    proj = { { "audio_tower.proj" } },
                                    qkv = { { LAYER "self_attn.q_proj", LAYER "self_attn.k_proj",
                                              LAYER "self_attn.v_proj" } },
                                    out = { { LAYER "self_attn.out_proj" } }, fc1 = { { LAYER "fc1" } },
                                    fc2 = { { LAYER "fc2" } };
    const enum weight_form plain = WEIGHT_PLAIN;
    TRY(tower_weight(t->st, ck, t->compute, plain, &conv1, 1, 0, &t->conv1, e));
    TRY(tower_weight(t->st, ck, t->compute, plain, &conv2, 1, 0, &t->conv2, e));
    TRY(tower_weight(t->st, ck, t->compute, plain, &proj, 1, 0, &t->proj, e));
    for (uint32_t l = 0; l < t->c.layers; l++) {
        struct audio_layer *y = &t->layer[l];
        TRY(tower_weight(t->st, ck, t->compute, plain, &qkv, 1 | 4, l, &y->qkv, e)); /* k has no bias */
        TRY(tower_weight(t->st, ck, t->compute, plain, &out, 1, l, &y->out, e));
        TRY(tower_weight(t->st, ck, t->compute, plain, &fc1, 1, l, &y->fc1, e));
        TRY(tower_weight(t->st, ck, t->compute, plain, &fc2, 1, l, &y->fc2, e));
    }
    return OK;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Room for n_chunks chunks of at most t->chunk frames. */
static status scratch_need(struct audio_tower *t, uint32_t n_chunks, struct err *e)
{
    struct stream *st = t->st;
    const struct ops *ops = st->ops;
    const size_t d = t->c.d_model, frames = (size_t)n_chunks * t->chunk,
                 rows = (size_t)n_chunks * t->c.n_window;
    const uint32_t f = (uint32_t)frames, r = (uint32_t)rows, dd = (uint32_t)d;
    const size_t in1 = ops->operand_bytes(st, f, 3 * t->c.mel_bins, t->compute);
    const size_t in2 = ops->operand_bytes(st, r, 3 * dd, t->compute);
    const size_t mid1 = ops->operand_bytes(st, r, dd, t->compute);
    const size_t mid2 = ops->operand_bytes(st, r, t->c.ff, t->compute);
    TRY(tower_room_need(st, &t->mel, frames * t->c.mel_bins * 4, e));
    TRY(tower_room_need(st, &t->in, larger(in1, in2), e));
    TRY(tower_room_need(st, &t->mid, larger(mid1, mid2), e));
    TRY(tower_room_need(st, &t->wide, larger(frames * d, rows * 3 * d) * 4, e));
    TRY(tower_room_need(st, &t->x, rows * d * 4, e));
    TRY(tower_room_need(st, &t->received, rows * 4, e));
    return tower_room_need(st, &t->attention,
                           ops->attention_scratch(st, t->c.heads, dd / t->c.heads, r, t->c.n_window), e);
}

status audio_tower_create(struct stream *st, const struct checkpoint *ck, enum dtype compute,
                          struct audio_tower **out, struct err *e)
{
    struct audio_tower *t = mem_must(1, sizeof *t);
    status code = OK;
    *t = (struct audio_tower){ .st = st, .compute = compute, .c = ck->config.audio };
    t->chunk = 2 * t->c.n_window;
    if (t->c.d_model % t->c.heads || t->c.d_model % 2 || t->c.d_model < 4) {
        code = err_set(e, E_MODEL,
                       "audio_config: d_model %u must be even, above 2 and a multiple of the %u heads",
                       t->c.d_model, t->c.heads);
        goto undo;
    }
    t->layer = mem_must(t->c.layers, sizeof *t->layer);
    TRY_GOTO(code, tables_create(t, ck, e), undo);
    TRY_GOTO(code, weights_create(t, ck, e), undo);
    TRY_GOTO(code, scratch_need(t, st->ops->reserve ? BATCH : 1, e), undo);
    TRY_GOTO(code, mem_alloc(&t->mel_host, (size_t)BATCH * t->chunk * t->c.mel_bins, 4, e), undo);
    TRY_GOTO(code, mem_alloc(&t->received_host, (size_t)BATCH * t->c.n_window, 4, e), undo);
    *out = t;
    return OK;
undo:
    audio_tower_destroy(&t);
    return code;
}

void audio_tower_destroy(struct audio_tower **tower)
{
    struct audio_tower *t = *tower;
    if (!t) return;
    const struct ops *ops = t->st->ops;
    struct weight **top[] = { &t->conv1, &t->conv2, &t->proj };
    struct tower_room *room[] = { &t->mel, &t->in, &t->mid, &t->wide, &t->x, &t->received, &t->attention };
    for (size_t i = 0; i < sizeof top / sizeof *top; i++) ops->weight_destroy(t->st, top[i]);
    for (uint32_t l = 0; t->layer && l < t->c.layers; l++) {
        ops->weight_destroy(t->st, &t->layer[l].qkv);
        ops->weight_destroy(t->st, &t->layer[l].out);
        ops->weight_destroy(t->st, &t->layer[l].fc1);
        ops->weight_destroy(t->st, &t->layer[l].fc2);
    }
    for (size_t i = 0; i < sizeof room / sizeof *room; i++) tower_room_release(t->st, room[i]);
    if (t->tables) ops->release(t->st, t->tables);
    free(t->layer);
    free(t->mel_host);
    free(t->received_host);
    free(t);
    *tower = NULL;
}

/* ---- running ------------------------------------------------------------------------------------------- */

/* Chunks laid end to end: frames and rows of each. */
struct batch {
    uint32_t n_chunks, frames, rows;
    uint32_t frame_len[BATCH], row_len[BATCH], row_start[BATCH + 1];
};

static struct batch batch_of(uint32_t frames, uint32_t chunk)
{
    struct batch b = { .frames = frames };
    for (uint32_t at = 0; at < frames; at += chunk) {
        const uint32_t len = frames - at < chunk ? frames - at : chunk, c = b.n_chunks++;
        b.frame_len[c] = len;
        b.row_len[c] = (len - 1) / 2 + 1;
        b.rows += b.row_len[c];
        b.row_start[c + 1] = b.rows;
    }
    return b;
}

static status norm(struct audio_tower *t, const float *x, uint32_t rows, const float *table,
                   struct operand *out, struct err *e)
{
    const uint32_t d = t->c.d_model;
    const struct norm_args a = {
        .x = x, .rows = rows, .d = d, .group = 1, .w = table, .b = table + d, .eps = NORM_EPS, .out = out
    };
    *out = tower_operand(&t->in, rows, d, t->compute);
    return t->st->ops->norm(t->st, &a, e);
}

/* mel [n_mel, frames] -> x [rows, d] with its sinusoids. */
static status convolve(struct audio_tower *t, const struct batch *b, struct err *e)
{
    const struct ops *ops = t->st->ops;
    const uint32_t d = t->c.d_model;
    float *x = t->x.p, *wide = t->wide.p;
    struct operand in = tower_operand(&t->in, b->frames, 3 * t->c.mel_bins, t->compute);
    const struct im2col_args first = { .x = t->mel.p,
                                       .st = 1,
                                       .sc = b->frames,
                                       .channels = t->c.mel_bins,
                                       .stride = 1,
                                       .n_chunks = b->n_chunks,
                                       .len = b->frame_len,
                                       .out = &in };
    TRY(ops->im2col(t->st, &first, e));
    TRY(tower_linear(t->st, &in, t->conv1, LINEAR_GELU, wide, d, NULL, e));
    in = tower_operand(&t->in, b->rows, 3 * d, t->compute);
    const struct im2col_args second = { .x = wide,
                                        .st = d,
                                        .sc = 1,
                                        .channels = d,
                                        .stride = 2,
                                        .n_chunks = b->n_chunks,
                                        .len = b->frame_len,
                                        .out = &in };
    TRY(ops->im2col(t->st, &second, e));
    TRY(tower_linear(t->st, &in, t->conv2, LINEAR_GELU, x, d, NULL, e));
    const struct add_rows_args add = {
        .y = x, .table = t->sinusoids, .d = d, .n_chunks = b->n_chunks, .len = b->row_len
    };
    return ops->add_rows(t->st, &add, e);
}

static status layer_run(struct audio_tower *t, const struct audio_layer *y, const struct batch *b,
                        float *received, struct err *e)
{
    const uint32_t d = t->c.d_model, D = d / t->c.heads;
    float *x = t->x.p, *qkv = t->wide.p;
    struct operand in, mid = tower_operand(&t->mid, b->rows, d, t->compute);
    TRY(norm(t, x, b->rows, y->norm1, &in, e));
    TRY(tower_linear(t->st, &in, y->qkv, LINEAR_STORE, qkv, 3 * (size_t)d, NULL, e));
    const struct segment_attention_args attention = {
        .q = qkv,
        .k = qkv + d,
        .v = qkv + 2 * (size_t)d,
        .ld = 3 * (size_t)d,
        .heads = t->c.heads,
        .D = D,
        .scale = 1.0f / sqrtf((float)D),
        .n_segs = b->n_chunks,
        .seg_start = b->row_start,
        .out = &mid,
        .received = received,
        .scratch = t->attention.p,
    };
    TRY(t->st->ops->segment_attention(t->st, &attention, e));
    TRY(tower_linear(t->st, &mid, y->out, LINEAR_ADD, x, d, NULL, e));
    TRY(norm(t, x, b->rows, y->norm2, &in, e));
    mid = tower_operand(&t->mid, b->rows, t->c.ff, t->compute);
    TRY(tower_linear(t->st, &in, y->fc1, LINEAR_GELU_OPERAND, NULL, 0, &mid, e));
    return tower_linear(t->st, &mid, y->fc2, LINEAR_ADD, x, d, NULL, e);
}

/* received [rows] of the batch -> out [n], the mean of each pair. The values of a window sum to 1, so those
 * of a short one are scaled down by its share of a whole one. */
static status saliency_write(struct audio_tower *t, const struct batch *b, uint32_t n, float *out,
                             struct err *e)
{
    float *s = t->received_host;
    TRY(t->st->ops->download(t->st, s, t->received.p, b->rows * sizeof *s, e));
    for (uint32_t c = 0; c < b->n_chunks; c++)
        for (uint32_t i = b->row_start[c]; i < b->row_start[c + 1]; i++)
            s[i] *= (float)b->row_len[c] / (float)t->c.n_window;
    for (uint32_t i = 0; i < n; i++) out[i] = (s[2 * i] + s[2 * i + 1]) / 2;
    return OK;
}

/* q, k and v of the layer that ran last, [rows, 3 d] in t->wide, to look. */
static status look_write(struct audio_tower *t, const struct batch *b, float *look, struct err *e)
{
    uint32_t *row;
    TRY(mem_alloc(&row, b->rows, sizeof *row, e));
    for (uint32_t i = 0; i < b->rows; i++) row[i] = i;
    const struct gather_args all = {
        .x = t->wide.p, .row = row, .n = b->rows, .d = 3 * t->c.d_model, .y = look
    };
    const status st = t->st->ops->gather(t->st, &all, e);
    free(row);
    return st;
}

/* t->mel of one batch -> embeds [rows / 2, H]; look may be NULL. */
static status batch_run(struct audio_tower *t, const struct batch *b, float *embeds, float *saliency,
                        float *look, struct err *e)
{
    const uint32_t n = b->rows / 2;
    struct operand in;
    TRY(convolve(t, b, e));
    for (uint32_t l = 0; l < t->c.layers; l++)
        TRY(layer_run(t, &t->layer[l], b, saliency && l + 1 == t->c.layers ? t->received.p : NULL, e));
    if (look) TRY(look_write(t, b, look, e));
    if (n == 0) return OK; /* the odd last row of the clip */
    const struct mean_pairs_args pairs = { .x = t->x.p, .n = n, .d = t->c.d_model, .y = t->wide.p };
    TRY(t->st->ops->mean_pairs(t->st, &pairs, e));
    TRY(norm(t, t->wide.p, n, t->ln_post, &in, e));
    TRY(tower_linear(t->st, &in, t->proj, LINEAR_STORE, embeds, t->c.output_dim, NULL, e));
    return saliency ? saliency_write(t, b, n, saliency, e) : OK;
}

uint32_t audio_tower_span(const struct audio_tower *t) { return BATCH * t->chunk; }
uint32_t audio_tower_bins(const struct audio_tower *t) { return t->c.mel_bins; }

uint32_t audio_tower_rows(const struct audio_tower *t, uint32_t n_frames)
{
    const uint32_t rest = n_frames % t->chunk;
    return n_frames / t->chunk * t->c.n_window + (rest + 1) / 2;
}

uint32_t audio_tower_look(const struct audio_tower *t) { return 3 * t->c.d_model; }

/* Both may be NULL: saliency, look. */
static status part_run(struct audio_tower *t, const float *mel, uint32_t n_frames, uint32_t f0, uint32_t n, float *embeds,
                       float *saliency, float *look, struct err *e)
{
    TRY(scratch_need(t, n / t->chunk + 1 < BATCH ? n / t->chunk + 1 : BATCH, e));
    const struct batch b = batch_of(n, t->chunk);
    if (b.rows < 2 && look == NULL) return OK;     /* the odd last row of the clip */
    const size_t first = audio_tower_tokens(f0);
    for (uint32_t m = 0; m < t->c.mel_bins; m++)
        memcpy(t->mel_host + (size_t)m * n, mel + (size_t)m * n_frames + f0, n * sizeof *mel);
    TRY(t->st->ops->upload(t->st, t->mel.p, t->mel_host, (size_t)t->c.mel_bins * n * sizeof *mel, e));
    if (look) look += (size_t)audio_tower_rows(t, f0) * audio_tower_look(t);
    return batch_run(t, &b, embeds + first * t->c.output_dim, saliency ? saliency + first : NULL, look, e);
}

status audio_tower_part(struct audio_tower *t, const float *mel, uint32_t n_frames, uint32_t f0, uint32_t n, float *embeds,
                        float *saliency, struct err *e)
{
    return part_run(t, mel, n_frames, f0, n, embeds, saliency, NULL, e);
}

status audio_tower_part_look(struct audio_tower *t, const float *mel, uint32_t n_frames, uint32_t f0, uint32_t n, float *embeds,
                             float *look, struct err *e)
{
    return part_run(t, mel, n_frames, f0, n, embeds, NULL, look, e);
}

size_t audio_tower_attended(const struct audio_tower *t) { return (size_t)BATCH * t->c.n_window * t->c.d_model; }

size_t audio_tower_more(const struct audio_tower *t, uint32_t n_frames)
{
    const struct ops *ops = t->st->ops;
    const uint32_t rows = audio_tower_rows(t, n_frames), d = t->c.d_model;
    return range_bytes(ops->operand_bytes(t->st, rows, d, t->compute)) +
           range_bytes(ops->attention_scratch(t->st, t->c.heads, d / t->c.heads, rows, rows)) + range_bytes((size_t)rows * sizeof(float));
}

status audio_tower_global(struct audio_tower *t, const float *look, uint32_t n_frames, float *saliency, struct err *e)
{
    const struct ops *ops = t->st->ops;
    const uint32_t rows = audio_tower_rows(t, n_frames), d = t->c.d_model, D = d / t->c.heads, n = audio_tower_tokens(n_frames);
    const uint32_t start[] = { 0, rows };
    struct tower_room out = { 0 }, scratch = { 0 }, received = { 0 };
    float *host;
    TRY(mem_alloc(&host, rows, sizeof *host, e));
    status st = tower_room_need(t->st, &out, ops->operand_bytes(t->st, rows, d, t->compute), e);
    if (st == OK) st = tower_room_need(t->st, &scratch, ops->attention_scratch(t->st, t->c.heads, D, rows, rows), e);
    if (st == OK) st = tower_room_need(t->st, &received, rows * sizeof *host, e);
    if (st == OK) {
        struct operand attended = tower_operand(&out, rows, d, t->compute);
        const struct segment_attention_args a = {
            .q = look, .k = look + d, .v = look + 2 * (size_t)d, .ld = 3 * (size_t)d, .heads = t->c.heads, .D = D,
            .scale = 1.0f / sqrtf((float)D), .n_segs = 1, .seg_start = start, .out = &attended, .received = received.p,
            .scratch = scratch.p
        };
        st = ops->segment_attention(t->st, &a, e);
    }
    if (st == OK) st = ops->download(t->st, host, received.p, rows * sizeof *host, e);
    for (uint32_t i = 0; st == OK && i < n; i++) saliency[i] = (host[2 * i] + host[2 * i + 1]) / 2;
    tower_room_release(t->st, &out);
    tower_room_release(t->st, &scratch);
    tower_room_release(t->st, &received);
    free(host);
    return st;
}

status audio_tower_run(struct audio_tower *t, const float *mel, uint32_t n_frames, float *embeds,
                       float *saliency, struct err *e)
{
    const uint32_t step = audio_tower_span(t);
    for (uint32_t f0 = 0; f0 < n_frames; f0 += step)
        TRY(audio_tower_part(t, mel, n_frames, f0, n_frames - f0 < step ? n_frames - f0 : step, embeds, saliency, e));
    return OK;
}
