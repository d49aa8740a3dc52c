/* model/vision_tower.c - patches in, rows of the decoder's width out (towers.h).
 *
 *   patches of a step, natural order    rows by merge groups: block row, block column, 2 x 2 inside
 *   embed, then window order            groups tiled 4 x 4 from the top left, windows small at the edges
 *   blocks                              attention inside a window, in some blocks inside the whole step
 *   merge 4 rows to one, natural order
 *
 * Grid steps never meet, so they run a few at a time (ROWS patches). Everything but attention works on
 * blocks of ROWS patches, so that a very large picture needs little beside its q, k and v. */
#include "model/towers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/range.h"
#include "model/tower_parts.h"

enum { ROWS = 4096 }; /* patches of a batch, unless one step has more */

#define NORM_EPS 1e-6f
#define BLOCK    "visual.blocks.%u."

struct vision_block {
    struct weight *qkv, *proj, *gate_up, *down;
    const float *norm1, *norm2; /* [d], in tower->tables */
};

/* Where everything lies in steps of h x w patches, for as many as run at once. Host but for the angles. */
struct plan {
    uint32_t h, w, n_steps;
    uint32_t n_windows, n_groups; /* of one step */
    uint32_t *group;              /* [steps * n_groups] natural group (over all steps) at each place */
    uint32_t *place;              /* [steps * h * w] window-order row of each natural row */
    uint32_t *angle;              /* [steps * h * w] row of cos and sin */
    uint32_t *window_start;       /* [steps * n_windows + 1] rows */
    uint32_t *step_start;         /* [steps + 1] rows */
    float *cos, *sin;             /* [h * w, D/2] device, window order: in the room for angles */
};

enum { ROOM_PATCHES, ROOM_IN, ROOM_MID, ROOM_NARROW, ROOM_X, ROOM_QKV, ROOM_ATTENDED, ROOM_RECEIVED, ROOM_ATTENTION, ROOM_ANGLES, ROOMS };

struct vision_tower {
    struct stream *st;
    enum dtype compute;
    struct vision_config c;
    uint32_t unit;  /* patches of a merge group */
    uint32_t patch; /* values of a patch */
    uint32_t D;
    uint32_t last_full; /* the block whose attention makes the saliency */
    struct weight *embed, *merge1, *merge2;
    struct vision_block *block; /* [c.depth] */
    float *tables;              /* norms, device */
    const float *ln_q;
    struct plan plan;
    union {
        struct { struct tower_room patches, in, mid, narrow, x, qkv, attended, received, attention, angles; };
        struct tower_room room[ROOMS];
    };
};

/* ---- creation ------------------------------------------------------------------------------------------ */

static status tables_create(struct vision_tower *t, const struct checkpoint *ck, struct err *e)
{
    const uint32_t d = t->c.hidden, L = t->c.depth;
    float *host, *at;
    TRY(mem_alloc(&host, (2 * (size_t)L + 1) * d, sizeof *host, e));
    at = host;
    for (uint32_t l = 0; l < L; l++) {
        at = tower_read(ck, BLOCK "norm1.weight", l, at);
        at = tower_read(ck, BLOCK "norm2.weight", l, at);
    }
    tower_read(ck, "visual.merger.ln_q.weight", 0, at);
    const status st = tower_upload(t->st, host, (2 * (size_t)L + 1) * d, &t->tables, e);
    free(host);
    TRY(st);
    for (uint32_t l = 0; l < L; l++) {
        t->block[l].norm1 = t->tables + 2 * (size_t)l * d;
        t->block[l].norm2 = t->block[l].norm1 + d;
    }
    t->ln_q = t->tables + 2 * (size_t)L * d;
    return OK;
}

static status weights_create(struct vision_tower *t, const struct checkpoint *ck, struct err *e)
{
    static const struct tower_names embed = { { "visual.patch_embed.proj" } },
                                    merge1 = { { "visual.merger.mlp.0" } },
                                    merge2 = { { "visual.merger.mlp.2" } },
                                    qkv = { { BLOCK "attn.q", BLOCK "attn.k", BLOCK "attn.v" } },
                                    proj = { { BLOCK "attn.proj" } },
                                    gate_up = { { BLOCK "mlp.gate_proj", BLOCK "mlp.up_proj" } },
                                    down = { { BLOCK "mlp.down_proj" } };
    const enum weight_form plain = WEIGHT_PLAIN;
    TRY(tower_weight(t->st, ck, t->compute, plain, &embed, 0, 0, &t->embed, e));
    TRY(tower_weight(t->st, ck, t->compute, plain, &merge1, 1, 0, &t->merge1, e));
    TRY(tower_weight(t->st, ck, t->compute, plain, &merge2, 1, 0, &t->merge2, e));
    for (uint32_t l = 0; l < t->c.depth; l++) {
        struct vision_block *b = &t->block[l];
        TRY(tower_weight(t->st, ck, t->compute, plain, &qkv, 7, l, &b->qkv, e));
        TRY(tower_weight(t->st, ck, t->compute, plain, &proj, 1, l, &b->proj, e));
        TRY(tower_weight(t->st, ck, t->compute, WEIGHT_SWIGLU, &gate_up, 3, l, &b->gate_up, e));
        TRY(tower_weight(t->st, ck, t->compute, plain, &down, 1, l, &b->down, e));
    }
    return OK;
}

static status config_check(const struct vision_config *c, struct err *e)
{
    if (c->hidden % c->heads || c->hidden / c->heads % 4)
        return err_set(e, E_MODEL,
                       "vision_config: hidden_size %u over %u heads must give a head dim that 4 divides",
                       c->hidden, c->heads);
    if (c->window_size < c->merge_size * c->patch_size)
        return err_set(e, E_MODEL,
                       "vision_config: window_size %u must hold a group of %u x %u patches of %u pixels",
                       c->window_size, c->merge_size, c->merge_size, c->patch_size);
    return OK;
}

static status scratch_need(struct vision_tower *t, uint32_t rows, uint32_t step_rows, struct err *e);

status vision_tower_create(struct stream *st, const struct checkpoint *ck, enum dtype compute,
                           struct vision_tower **out, struct err *e)
{
    const struct vision_config *c = &ck->config.vision;
    TRY(config_check(c, e));
    struct vision_tower *t = mem_must(1, sizeof *t);
    status code = OK;
    *t = (struct vision_tower){ .st = st,
                                .compute = compute,
                                .c = *c,
                                .unit = c->merge_size * c->merge_size,
                                .patch =
                                    c->in_channels * c->temporal_patch_size * c->patch_size * c->patch_size,
                                .D = c->hidden / c->heads,
                                .last_full = c->depth - 1 };
    for (uint32_t l = 0; l < c->depth; l++)
        if (c->full_attention[l]) t->last_full = l;
    t->block = mem_must(c->depth, sizeof *t->block);
    TRY_GOTO(code, tables_create(t, ck, e), undo);
    TRY_GOTO(code, weights_create(t, ck, e), undo);
    if (st->ops->reserve) TRY_GOTO(code, scratch_need(t, ROWS, ROWS, e), undo);
    *out = t;
    return OK;
undo:
    vision_tower_destroy(&t);
    return code;
}

static void plan_free(struct vision_tower *t)
{
    struct plan *p = &t->plan;
    free(p->group);
    free(p->place);
    free(p->angle);
    free(p->window_start);
    free(p->step_start);
    *p = (struct plan){ 0 };
}

void vision_tower_destroy(struct vision_tower **tower)
{
    struct vision_tower *t = *tower;
    if (!t) return;
    const struct ops *ops = t->st->ops;
    struct weight **top[] = { &t->embed, &t->merge1, &t->merge2 };
    for (size_t i = 0; i < sizeof top / sizeof *top; i++) ops->weight_destroy(t->st, top[i]);
    for (uint32_t l = 0; t->block && l < t->c.depth; l++) {
        ops->weight_destroy(t->st, &t->block[l].qkv);
        ops->weight_destroy(t->st, &t->block[l].proj);
        ops->weight_destroy(t->st, &t->block[l].gate_up);
        ops->weight_destroy(t->st, &t->block[l].down);
    }
    for (size_t i = 0; i < ROOMS; i++) tower_room_release(t->st, &t->room[i]);
    plan_free(t);
    if (t->tables) ops->release(t->st, t->tables);
    free(t->block);
    free(t);
    *tower = NULL;
}

/* ---- the plan ------------------------------------------------------------------------------------------ */

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* The groups of one step in window order, and where the windows end. */
static void windows_write(const struct vision_tower *t, struct plan *p)
{
    const uint32_t side = t->c.window_size / t->c.merge_size / t->c.patch_size;
    const uint32_t gh = p->h / t->c.merge_size, gw = p->w / t->c.merge_size;
    uint32_t n = 0;
    p->n_windows = 0;
    for (uint32_t y0 = 0; y0 < gh; y0 += side)
        for (uint32_t x0 = 0; x0 < gw; x0 += side) {
            for (uint32_t y = y0; y < min_u32(y0 + side, gh); y++)
                for (uint32_t x = x0; x < min_u32(x0 + side, gw); x++) p->group[n++] = y * gw + x;
            p->window_start[++p->n_windows] = n * t->unit;
        }
}

/* cos and sin [h * w, D/2] in window order: the first half of the angles from the row, the second from the
 * column. */
static status angles_create(struct vision_tower *t, struct plan *p, struct err *e)
{
    const uint32_t half = t->D / 2, n_freq = half / 2, m = t->c.merge_size, gw = p->w / m;
    const size_t n = (size_t)p->h * p->w * half;
    float *c = NULL, *s = NULL;
    status st = OK;
    TRY_GOTO(st, mem_alloc(&c, n, sizeof *c, e), done);
    TRY_GOTO(st, mem_alloc(&s, n, sizeof *s, e), done);
    for (uint32_t r = 0; r < p->h * p->w; r++) {
        const uint32_t g = p->group[r / t->unit], i = r % t->unit;
        const float at[2] = { (float)(g / gw * m + i / m), (float)(g % gw * m + i % m) };
        for (uint32_t j = 0; j < half; j++) {
            const float inv = 1.0f / powf(10000.0f, (float)(2 * (j % n_freq)) / (float)half);
            const float angle = at[j / n_freq] * inv;
            c[(size_t)r * half + j] = cosf(angle);
            s[(size_t)r * half + j] = sinf(angle);
        }
    }
    TRY_GOTO(st, tower_room_need(t->st, &t->angles, 2 * n * sizeof *c, e), done);
    p->cos = t->angles.p;
    p->sin = p->cos + n;
    TRY_GOTO(st, t->st->ops->upload(t->st, p->cos, c, n * sizeof *c, e), done);
    TRY_GOTO(st, t->st->ops->upload(t->st, p->sin, s, n * sizeof *s, e), done);
done:
    free(c);
    free(s);
    return st;
}

static status plan_need(struct vision_tower *t, uint32_t n_steps, uint32_t h, uint32_t w, struct err *e)
{
    struct plan *p = &t->plan;
    if (p->h == h && p->w == w && p->n_steps >= n_steps) return OK;
    plan_free(t);
    const uint32_t rows = h * w, groups = rows / t->unit;
    status st = OK;
    p->h = h;
    p->w = w;
    p->n_groups = groups;
    TRY_GOTO(st, mem_alloc(&p->group, (size_t)n_steps * groups, sizeof *p->group, e), undo);
    TRY_GOTO(st, mem_alloc(&p->place, (size_t)n_steps * rows, sizeof *p->place, e), undo);
    TRY_GOTO(st, mem_alloc(&p->angle, (size_t)n_steps * rows, sizeof *p->angle, e), undo);
    TRY_GOTO(st, mem_alloc(&p->window_start, (size_t)n_steps * groups + 1, sizeof *p->window_start, e), undo);
    TRY_GOTO(st, mem_alloc(&p->step_start, (size_t)n_steps + 1, sizeof *p->step_start, e), undo);
    windows_write(t, p);
    for (uint32_t s = 0; s < n_steps; s++) {
        for (uint32_t i = 0; i < groups; i++) {
            const uint32_t g = p->group[i] + s * groups;
            p->group[s * groups + i] = g;
            for (uint32_t k = 0; k < t->unit; k++)
                p->place[(size_t)g * t->unit + k] = (s * groups + i) * t->unit + k;
        }
        for (uint32_t i = 0; i < rows; i++) p->angle[(size_t)s * rows + i] = i;
        for (uint32_t i = 1; i <= p->n_windows; i++)
            p->window_start[s * p->n_windows + i] = s * rows + p->window_start[i];
        p->step_start[s + 1] = (s + 1) * rows;
    }
    TRY_GOTO(st, angles_create(t, p, e), undo);
    p->n_steps = n_steps;
    return OK;
undo:
    plan_free(t);
    return st;
}

/* ---- running ------------------------------------------------------------------------------------------- */

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Bytes for `rows` patches at once, of steps of step_rows each. */
static void scratch_bytes(const struct vision_tower *t, uint32_t rows, uint32_t step_rows, size_t bytes[ROOMS])
{
    const struct stream *st = t->st;
    const struct ops *ops = st->ops;
    const uint32_t d = t->c.hidden, part = min_u32(rows, ROWS), merged = part / t->unit;
    const size_t wide = ops->operand_bytes(st, merged, t->unit * d, t->compute);
    const size_t in1 = ops->operand_bytes(st, part, t->patch, t->compute);
    const size_t in2 = ops->operand_bytes(st, part, d, t->compute);
    const size_t mid = ops->operand_bytes(st, part, t->c.ff, t->compute);
    bytes[ROOM_PATCHES] = (size_t)part * t->patch * 4;
    bytes[ROOM_IN] = larger(larger(in1, in2), wide);
    bytes[ROOM_MID] = larger(mid, wide);
    bytes[ROOM_NARROW] = larger((size_t)part * d, (size_t)merged * t->c.out_hidden) * 4;
    bytes[ROOM_X] = (size_t)rows * d * 4;
    bytes[ROOM_QKV] = (size_t)rows * 3 * d * 4;
    bytes[ROOM_ATTENDED] = ops->operand_bytes(st, rows, d, t->compute);
    bytes[ROOM_RECEIVED] = (size_t)rows * 4;
    bytes[ROOM_ATTENTION] = ops->attention_scratch(st, t->c.heads, t->D, rows, step_rows);
    bytes[ROOM_ANGLES] = (size_t)step_rows * t->D * 4;
}

static status scratch_need(struct vision_tower *t, uint32_t rows, uint32_t step_rows, struct err *e)
{
    size_t bytes[ROOMS];
    scratch_bytes(t, rows, step_rows, bytes);
    for (int i = 0; i < ROOMS; i++) TRY(tower_room_need(t->st, &t->room[i], bytes[i], e));
    return OK;
}

size_t vision_tower_attended(const struct vision_tower *t, uint32_t patches)
{
    return (size_t)(patches > ROWS ? patches : ROWS) * t->c.hidden;
}

size_t vision_tower_more(const struct vision_tower *t, uint32_t h, uint32_t w)
{
    size_t bytes[ROOMS], sum = 0;
    if ((uint64_t)h * w <= ROWS || (uint64_t)h * w > UINT32_MAX / 8) return 0;   /* there is room, or it is refused */
    scratch_bytes(t, h * w, h * w, bytes);
    for (int i = 0; i < ROOMS; i++) sum += range_bytes(bytes[i]);
    return sum;
}

/* Natural rows r0 .. r0 + n of the patches -> their places in x. */
static status embed(struct vision_tower *t, const float *patches, uint32_t r0, uint32_t n, struct err *e)
{
    const struct ops *ops = t->st->ops;
    struct operand in = tower_operand(&t->in, n, t->patch, t->compute);
    TRY(ops->upload(t->st, t->patches.p, patches + (size_t)r0 * t->patch, (size_t)n * t->patch * 4, e));
    const struct pack_args pack = {
        .x = t->patches.p, .ldx = t->patch, .rows = n, .k = t->patch, .out = &in
    };
    TRY(ops->pack(t->st, &pack, e));
    TRY(tower_linear(t->st, &in, t->embed, LINEAR_STORE, t->narrow.p, t->c.hidden, NULL, e));
    const struct scatter_args scatter = {
        .x = t->narrow.p, .row = t->plan.place + r0, .n = n, .d = t->c.hidden, .y = t->x.p
    };
    return ops->scatter(t->st, &scatter, e);
}

/* RMSNorm of `rows` rows of `group` * d values each, to t->in. */
static status norm(struct vision_tower *t, const float *x, uint32_t rows, uint32_t group, const float *w,
                   struct operand *out, struct err *e)
{
    const struct norm_args a = {
        .x = x, .rows = rows, .d = t->c.hidden, .group = group, .w = w, .eps = NORM_EPS, .out = out
    };
    *out = tower_operand(&t->in, rows, group * t->c.hidden, t->compute);
    return t->st->ops->norm(t->st, &a, e);
}

/* Keys of the block that ran last, in t->qkv, to natural rows of keys: the mean of each merge unit. */
static status keys_write(struct vision_tower *t, uint32_t rows, float *keys, struct err *e)
{
    const struct ops *ops = t->st->ops;
    const uint32_t d = t->c.hidden, part = min_u32(rows, ROWS) / t->unit;
    uint32_t *row, *start = NULL;
    char *scratch = NULL;
    TRY(mem_alloc(&row, (size_t)part * t->unit, sizeof *row, e));
    status st = mem_alloc(&start, (size_t)part + 1, sizeof *start, e);
    if (st == OK) st = mem_alloc(&scratch, ops->pair_scratch(t->st, d, (size_t)part * t->unit), 1, e);
    for (uint32_t i = 0; st == OK && i <= part; i++) start[i] = i * t->unit;
    for (uint32_t g = 0; st == OK && g < rows / t->unit; g += part) {
        const uint32_t n = min_u32(rows / t->unit - g, part);
        for (uint32_t i = 0; i < n * t->unit; i++)
            row[i] = 3 * (g * t->unit + i) + 1; /* q, k and v of a patch lie one after the other */
        st = ops->means(t->st,
                        &(struct means_args){
                            .g = { t->qkv.p, d, n, start, row }, .y = t->narrow.p, .scratch = scratch },
                        e);
        if (st == OK)
            st = ops->scatter(t->st,
                              &(struct scatter_args){
                                  .x = t->narrow.p, .row = t->plan.group + g, .n = n, .d = d, .y = keys },
                              e);
    }
    free(scratch);
    free(start);
    free(row);
    return st;
}

/* keys: NULL, or where they go. */
static status attend(struct vision_tower *t, const struct vision_block *b, uint32_t n_steps, bool full,
                     float *received, float *keys, struct err *e)
{
    const struct plan *p = &t->plan;
    const uint32_t rows = n_steps * p->h * p->w, d = t->c.hidden;
    float *x = t->x.p, *qkv = t->qkv.p;
    struct operand in, out = tower_operand(&t->attended, rows, d, t->compute);
    for (uint32_t r = 0; r < rows; r += ROWS) {
        TRY(norm(t, x + (size_t)r * d, min_u32(rows - r, ROWS), 1, b->norm1, &in, e));
        TRY(tower_linear(t->st, &in, b->qkv, LINEAR_STORE, qkv + (size_t)r * 3 * d, 3 * (size_t)d, NULL, e));
    }
    if (keys) TRY(keys_write(t, rows, keys, e));
    const struct rope_args rope = { .x = qkv,
                                    .ldx = 3 * (size_t)d,
                                    .n = rows,
                                    .heads = 2 * t->c.heads,
                                    .D = t->D,
                                    .cos = p->cos,
                                    .sin = p->sin,
                                    .row = p->angle }; /* q and k in one go */
    TRY(t->st->ops->rope(t->st, &rope, e));
    const struct segment_attention_args a = {
        .q = qkv,
        .k = qkv + d,
        .v = qkv + 2 * (size_t)d,
        .ld = 3 * (size_t)d,
        .heads = t->c.heads,
        .D = t->D,
        .scale = 1.0f / sqrtf((float)t->D),
        .n_segs = full ? n_steps : n_steps * p->n_windows,
        .seg_start = full ? p->step_start : p->window_start,
        .out = &out,
        .received = received,
        .scratch = t->attention.p,
    };
    TRY(t->st->ops->segment_attention(t->st, &a, e));
    return tower_linear(t->st, &out, b->proj, LINEAR_ADD, x, d, NULL, e);
}

static status mlp(struct vision_tower *t, const struct vision_block *b, uint32_t rows, struct err *e)
{
    const uint32_t d = t->c.hidden;
    for (uint32_t r = 0; r < rows; r += ROWS) {
        const uint32_t n = min_u32(rows - r, ROWS);
        float *x = (float *)t->x.p + (size_t)r * d;
        struct operand in, mid = tower_operand(&t->mid, n, t->c.ff, t->compute);
        TRY(norm(t, x, n, 1, b->norm2, &in, e));
        TRY(tower_linear(t->st, &in, b->gate_up, LINEAR_SWIGLU, NULL, 0, &mid, e));
        TRY(tower_linear(t->st, &mid, b->down, LINEAR_ADD, x, d, NULL, e));
    }
    return OK;
}

/* Groups g0 .. g0 + n in window order -> their natural rows of embeds. */
static status merge(struct vision_tower *t, uint32_t g0, uint32_t n, float *embeds, struct err *e)
{
    const uint32_t wide = t->unit * t->c.hidden;
    struct operand in, mid = tower_operand(&t->mid, n, wide, t->compute);
    TRY(norm(t, (float *)t->x.p + (size_t)g0 * wide, n, t->unit, t->ln_q, &in, e));
    TRY(tower_linear(t->st, &in, t->merge1, LINEAR_GELU_OPERAND, NULL, 0, &mid, e));
    TRY(tower_linear(t->st, &mid, t->merge2, LINEAR_STORE, t->narrow.p, t->c.out_hidden, NULL, e));
    const struct scatter_args scatter = {
        .x = t->narrow.p, .row = t->plan.group + g0, .n = n, .d = t->c.out_hidden, .y = embeds
    };
    return t->st->ops->scatter(t->st, &scatter, e);
}

/* received [rows] in window order -> out [groups] in natural order: the mean over a group. */
static status saliency_write(struct vision_tower *t, uint32_t rows, float *out, struct err *e)
{
    float *s;
    TRY(mem_alloc(&s, rows, sizeof *s, e));
    const status st = t->st->ops->download(t->st, s, t->received.p, rows * sizeof *s, e);
    for (uint32_t i = 0; st == OK && i < rows / t->unit; i++) {
        float sum = 0.0f;
        for (uint32_t k = 0; k < t->unit; k++) sum += s[i * t->unit + k];
        out[t->plan.group[i]] = sum / (float)t->unit;
    }
    free(s);
    return st;
}

static bool is_full(const struct vision_tower *t, uint32_t l)
{
    return t->c.full_attention[l] || l == t->last_full;
}

static status steps_run(struct vision_tower *t, const float *patches, uint32_t n_steps, float *embeds,
                        const struct vision_look *look, struct err *e)
{
    const uint32_t rows = n_steps * t->plan.h * t->plan.w, groups = rows / t->unit, part = ROWS / t->unit;
    uint32_t n_seen = 0;
    for (uint32_t r = 0; r < rows; r += ROWS) TRY(embed(t, patches, r, min_u32(rows - r, ROWS), e));
    for (uint32_t l = 0; l < t->c.depth; l++) {
        const bool last = l == t->last_full, seen = (look->saliency && last) || (look->blocks && is_full(t, l));
        TRY(attend(t, &t->block[l], n_steps, t->c.full_attention[l], seen ? t->received.p : NULL,
                   last ? look->keys : NULL, e));
        if (look->blocks && seen) TRY(saliency_write(t, rows, look->blocks + look->stride * n_seen++, e));
        if (look->saliency && last) TRY(saliency_write(t, rows, look->saliency, e));
        TRY(mlp(t, &t->block[l], rows, e));
    }
    for (uint32_t g = 0; g < groups; g += part) TRY(merge(t, g, min_u32(groups - g, part), embeds, e));
    return OK;
}

uint32_t vision_tower_patch(const struct vision_tower *t) { return t->patch; }

uint32_t vision_tower_hidden(const struct vision_tower *t) { return t->c.hidden; }

uint32_t vision_tower_blocks(const struct vision_tower *t)
{
    uint32_t n = 0;
    for (uint32_t l = 0; l < t->c.depth; l++) n += is_full(t, l);
    return n;
}

status vision_tower_run(struct vision_tower *t, const float *patches, uint32_t t_steps, uint32_t h,
                        uint32_t w, float *embeds, float *saliency, struct err *e)
{
    return vision_tower_look(t, patches, t_steps, h, w, embeds, &(struct vision_look){ .saliency = saliency }, e);
}

/* Steps of h x w patches, at_once of them at a time. */
static status run_all(struct vision_tower *t, const float *patches, uint32_t t_steps, uint32_t h, uint32_t w, uint32_t at_once,
                      float *embeds, struct vision_look at, struct err *e)
{
    const uint32_t rows = h * w;
    TRY(plan_need(t, at_once, h, w, e));
    TRY(scratch_need(t, at_once * rows, rows, e));
    for (uint32_t s = 0; s < t_steps; s += at_once) {
        const uint32_t n = min_u32(t_steps - s, at_once);
        TRY(steps_run(t, patches, n, embeds, &at, e));
        patches += (size_t)n * rows * t->patch;
        embeds += (size_t)n * rows / t->unit * t->c.out_hidden;
        if (at.saliency) at.saliency += n * rows / t->unit;
        if (at.blocks) at.blocks += n * rows / t->unit;
        if (at.keys) at.keys += (size_t)n * rows / t->unit * t->c.hidden;
    }
    return OK;
}

status vision_tower_look(struct vision_tower *t, const float *patches, uint32_t t_steps, uint32_t h,
                         uint32_t w, float *embeds, const struct vision_look *look, struct err *e)
{
    if (h == 0 || w == 0 || h % t->c.merge_size || w % t->c.merge_size || (uint64_t)h * w > UINT32_MAX / 8)
        return err_set(e, E_ARG, "a grid of %u x %u patches: both sides must be multiples of %u, above 0", h,
                       w, t->c.merge_size);
    const uint32_t rows = h * w, at_once = min_u32(t_steps, rows < ROWS ? ROWS / rows : 1);
    if (t_steps == 0) return OK;
    if (t->st->ops->reserve == NULL || rows <= ROWS) return run_all(t, patches, t_steps, h, w, at_once, embeds, *look, e);
    /* Where memory is planned there is room for ROWS patches, always the same; a larger step has its own while it runs. */
    struct tower_room standing[ROOMS];
    memcpy(standing, t->room, sizeof standing);
    memset(t->room, 0, sizeof t->room);
    plan_free(t);
    const status st = run_all(t, patches, t_steps, h, w, at_once, embeds, *look, e);
    for (int i = 0; i < ROOMS; i++) tower_room_release(t->st, &t->room[i]);
    memcpy(t->room, standing, sizeof standing);
    plan_free(t);
    return st;
}
