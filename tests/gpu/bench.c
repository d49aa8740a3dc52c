/* tests/gpu/bench.c - gpu_bench [--device D] [--tiny] [--towers DIR]: the measurements of `make gpu-check`, on any device of the
 * ops table (simt: the CUDA backend played by the CPU, as in tests/golden.c). One JSON object a line, as it is measured: name,
 * value, unit, and what was done, from which tests/gpu/floors.py has the floor; {"name", "error"} where a row failed, and the next
 * one runs. --tiny: sizes for a CPU, to see that it runs.
 *
 * Model: the thinker of Qwen2.5-Omni-7B, random weights; the decoder's come from one pool of random values. Ops are timed in
 * stretches of many calls between two syncs, prefill and decode as the engine runs them. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bf16.h"
#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"
#include "kernels/device.h"
#include "model/checkpoint.h"
#include "model/towers.h"
#include "prune/schedule.h"
#include "tests/bench/pool.h"
#include "tests/simt_device.h"

static const struct decoder_shape WHOLE = { .L = 28, .H = 28, .G = 4, .D = 128, .d = 3584, .ff = 18944, .V = 152064, .rms_eps = 1e-6f,
                                            .rope_theta = 1e6, .mrope_section = { 16, 24, 24 } };
static const struct decoder_shape TINY = { .L = 3, .H = 4, .G = 2, .D = 64, .d = 256, .ff = 512, .V = 1024, .rms_eps = 1e-6f,
                                           .rope_theta = 1e6, .mrope_section = { 8, 12, 12 } };
static struct decoder_shape S;
static bool tiny;
static const char *device = "cuda", *towers_dir;

enum { QUESTION = 64 };
#define ASKED (tiny ? 8u : (uint32_t)QUESTION)

/* ---- rows -------------------------------------------------------------------------------------------------- */

/* more: further members of the object, ", \"flop\": 1" */
static void row(const char *name, double value, const char *unit, const char *more, ...) __attribute__((format(printf, 4, 5)));
static void row(const char *name, double value, const char *unit, const char *more, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, more);
    vsnprintf(text, sizeof text, more, ap);
    va_end(ap);
    printf("{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"%s}\n", name, value, unit, text);
    fflush(stdout);
}

static void failed(const char *name, const struct err *e)
{
    char text[sizeof e->text];
    snprintf(text, sizeof text, "%s", e->text);
    for (char *p = text; *p; p++)
        if (*p == '"' || *p == '\\' || (unsigned char)*p < 32) *p = '\'';
    printf("{\"name\": \"%s\", \"error\": \"%s\"}\n", name, text);
    fflush(stdout);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, ascending);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

static float next_random(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*s >> 32) * 0x1p-31f;
}

/* ---- device memory ----------------------------------------------------------------------------------------- */

static struct stream *st;
static void *taken[64];
static size_t n_taken;

/* Lost with `drop`. */
static status room(size_t bytes, void **out, struct err *e)
{
    if (n_taken == sizeof taken / sizeof *taken) return err_set(e, E_INTERNAL, "too many pieces of memory");
    TRY(st->ops->alloc(st, bytes, out, e));
    taken[n_taken++] = *out;
    return OK;
}

static void drop(void)
{
    while (n_taken > 0) st->ops->release(st, taken[--n_taken]);
}

static status floats(size_t n, float **out, struct err *e)
{
    float *host;
    uint64_t s = 7 + n_taken;
    void *p = NULL;
    TRY(mem_alloc(&host, n, sizeof *host, e));
    for (size_t i = 0; i < n; i++) host[i] = next_random(&s);
    status rc = room(n * sizeof *host, &p, e);
    if (rc == OK) rc = st->ops->upload(st, p, host, n * sizeof *host, e);
    free(host);
    *out = p;
    return rc;
}

static status operand(uint32_t rows, uint32_t k, bool filled, struct operand *o, struct err *e)
{
    *o = (struct operand){ NULL, rows, k, DT_BF16 };
    TRY(room(st->ops->operand_bytes(st, rows, k, DT_BF16), &o->data, e));
    if (!filled) return OK;
    float *x;
    TRY(floats((size_t)rows * k, &x, e));
    return st->ops->pack(st, &(struct pack_args){ .x = x, .ldx = k, .rows = rows, .k = k, .out = o }, e);
}

/* ---- timing ------------------------------------------------------------------------------------------------- */

/* Seconds of one call: the median of five stretches of many. */
static status timed(status (*call)(void *arg, struct err *e), void *arg, double *seconds, struct err *e)
{
    double v[5];
    int n = 1, stretches = tiny ? 1 : 5;
    if (!tiny) TRY(call(arg, e));
    TRY(st->ops->sync(st, e));
    double t = clock_s();
    TRY(call(arg, e));
    TRY(st->ops->sync(st, e));
    t = clock_s() - t;
    if (!tiny && t > 0) n = t > 0.02 ? 1 : (int)(0.02 / t) + 1;
    for (int i = 0; i < stretches; i++) {
        t = clock_s();
        for (int k = 0; k < n; k++) TRY(call(arg, e));
        TRY(st->ops->sync(st, e));
        v[i] = (clock_s() - t) / n;
    }
    *seconds = median(v, stretches);
    return OK;
}

/* ---- the ops ------------------------------------------------------------------------------------------------ */

#define CALL(op) static status call_##op(void *arg, struct err *e) { return st->ops->op(st, arg, e); }
CALL(norm) CALL(rope) CALL(kv_write) CALL(attention) CALL(attention_decode) CALL(query_scores) CALL(choose) CALL(gather)
CALL(linear) CALL(segment_attention)

static uint32_t R;                 /* rows: 20k raw tokens after input pruning */

static status op_norm(struct err *e)
{
    float *x, *w;
    struct operand o;
    double t;
    uint32_t *keep;
    TRY(floats((size_t)R * S.d, &x, e));
    TRY(floats(S.d, &w, e));
    TRY(operand(R, S.d, false, &o, e));
    TRY(mem_alloc(&keep, R, sizeof *keep, e));
    for (uint32_t i = 0; i < R; i++) keep[i] = i;
    struct norm_args a = { .x = x, .row = keep, .rows = R, .d = S.d, .group = 1, .w = w, .eps = 1e-6f, .out = &o };
    const status rc = timed(call_norm, &a, &t, e);
    free(keep);
    if (rc == OK) row("RMSNorm with gather", t * 1e6, "us", ", \"byte\": %.0f", (double)R * S.d * 6);
    return rc;
}

static status op_linear(const char *name, uint32_t rows, uint32_t k, uint32_t n, enum linear_mode mode, struct err *e)
{
    struct weight *w = NULL;
    struct operand x, y = { 0 };
    float *out = NULL;
    uint16_t *host;
    double t = 0;
    const size_t all = (size_t)n * k;
    uint64_t s = 3;
    TRY(mem_alloc(&host, all, sizeof *host, e));
    for (size_t i = 0; i < all; i++) host[i] = bf16_of_f32(next_random(&s) * 0.05f);
    struct weight_args wa = { .compute = DT_BF16, .k = k, .n_parts = 1, .part = { { .data = host, .dtype = DT_BF16, .n = n } } };
    if (mode == LINEAR_SWIGLU) {
        wa.form = WEIGHT_SWIGLU;
        wa.n_parts = 2;
        wa.part[0].n = n / 2;
        wa.part[1] = (struct weight_part){ .data = host + all / 2, .dtype = DT_BF16, .n = n / 2 };
    }
    status rc = st->ops->weight_create(st, &wa, &w, e);
    if (rc == OK) rc = st->ops->sync(st, e);
    free(host);
    if (rc != OK) return rc;
    TRY_GOTO(rc, operand(rows, k, true, &x, e), done);
    if (mode == LINEAR_SWIGLU) TRY_GOTO(rc, operand(rows, n / 2, false, &y, e), done);
    else TRY_GOTO(rc, floats((size_t)rows * n, &out, e), done);
    struct linear_args a = { .x = &x, .w = w, .mode = mode, .y = out, .ldy = n, .out = &y };
    TRY_GOTO(rc, timed(call_linear, &a, &t, e), done);
    row(name, t * 1e6, "us", ", \"flop\": %.0f, \"byte\": %.0f, \"rate\": \"gemm\", \"note\": \"%.0f TFLOP/s\"", 2.0 * rows * (double)all,
        2.0 * (double)all, 2e-12 * rows * (double)all / t);
done:
    st->ops->weight_destroy(st, &w);
    return rc;
}

static status op_products(struct err *e)
{
    const uint32_t q = S.H * S.D, kv = S.G * S.D;
    TRY(op_linear("product q, k, v", R, S.d, q + 2 * kv, LINEAR_STORE, e));
    drop();
    TRY(op_linear("product o, residual", R, q, S.d, LINEAR_ADD, e));
    drop();
    TRY(op_linear("product gate and up, SwiGLU", R, S.d, 2 * S.ff, LINEAR_SWIGLU, e));
    drop();
    TRY(op_linear("product down, residual", R, S.ff, S.d, LINEAR_ADD, e));
    drop();
    return op_linear("head of 32 rows", 32, S.d, S.V, LINEAR_STORE, e);
}

/* A pool of `n` pages, all written, and a list of them that jumps. */
static status pages(uint32_t n, struct kv_shape *kv, uint32_t **list, struct err *e)
{
    const uint32_t T = st->ops->page_tokens, width = 2 * S.G * S.D;
    *kv = (struct kv_shape){ .G = S.G, .D = S.D, .dtype = DT_BF16, .page_tokens = T };
    kv->page_bytes = st->ops->page_bytes(st, S.G, S.D, DT_BF16);
    TRY(room((size_t)n * kv->page_bytes, &kv->base, e));
    TRY(mem_alloc(list, n, sizeof **list, e));
    uint32_t step = 37;
    while (n % step == 0) step++;
    for (uint32_t i = 0; i < n; i++) (*list)[i] = (uint32_t)((uint64_t)i * step % n);
    float *x;
    status rc = floats((size_t)T * width, &x, e);
    for (uint32_t i = 0; i < n && rc == OK; i++) {
        const struct kv_view view = { *list + i, T };
        const struct kv_write_args w = { .kv = x, .ldkv = width, .shape = *kv, .n_seqs = 1, .seq_start = (const uint32_t[]){ 0, T },
                                         .kv_start = (const uint32_t[]){ 0 }, .view = &view };
        rc = st->ops->kv_write(st, &w, e);
    }
    if (rc != OK) free(*list);
    return rc;
}

static status angles(uint32_t n, float **c, float **s, struct err *e)
{
    TRY(floats((size_t)n * S.D / 2, c, e));
    return floats((size_t)n * S.D / 2, s, e);
}

static status op_rope_and_write(struct err *e)
{
    struct kv_shape kv;
    uint32_t *list = NULL;
    float *x, *c, *s;
    double t;
    const uint32_t T = st->ops->page_tokens, width = (S.H + 2 * S.G) * S.D;
    TRY(pages((R + T - 1) / T, &kv, &list, e));
    status rc;
    TRY_GOTO(rc, floats((size_t)R * width, &x, e), done);
    TRY_GOTO(rc, angles(R, &c, &s, e), done);
    struct rope_args r = { .x = x, .ldx = width, .n = R, .heads = S.H, .D = S.D, .cos = c, .sin = s };
    TRY_GOTO(rc, timed(call_rope, &r, &t, e), done);
    row("rotation of q", t * 1e6, "us", ", \"byte\": %.0f", (double)R * S.H * S.D * 8);
    const struct kv_view view = { list, R };
    struct kv_write_args w = { .kv = x + (size_t)S.H * S.D, .ldkv = width, .cos = c, .sin = s, .shape = kv, .n_seqs = 1,
                               .seq_start = (const uint32_t[]){ 0, R }, .kv_start = (const uint32_t[]){ 0 }, .view = &view };
    TRY_GOTO(rc, timed(call_kv_write, &w, &t, e), done);
    row("rotation of k, k and v into pages", t * 1e6, "us", ", \"byte\": %.0f", (double)R * 2 * S.G * S.D * 6);
done:
    free(list);
    return rc;
}

/* rows of one sequence: the last `rows` of R keys, causally. */
static status attention_of(const char *name, uint32_t rows, struct err *e)
{
    struct kv_shape kv;
    uint32_t *list = NULL, *visible = NULL;
    float *q;
    struct operand o;
    void *scratch;
    double t;
    const uint32_t T = st->ops->page_tokens;
    TRY(pages((R + T - 1) / T, &kv, &list, e));
    status rc;
    TRY_GOTO(rc, mem_alloc(&visible, rows, sizeof *visible, e), done);
    for (uint32_t i = 0; i < rows; i++) visible[i] = R - rows + i + 1;
    TRY_GOTO(rc, floats((size_t)rows * S.H * S.D, &q, e), done);
    TRY_GOTO(rc, operand(rows, S.H * S.D, false, &o, e), done);
    TRY_GOTO(rc, room(st->ops->attention_scratch(st, S.H, S.D, rows, R), &scratch, e), done);
    const struct kv_view view = { list, R };
    struct attention_args a = { .q = q, .ldq = (size_t)S.H * S.D, .H = S.H, .scale = 1 / sqrtf((float)S.D), .shape = kv, .n_seqs = 1,
                                .seq_start = (const uint32_t[]){ 0, rows }, .visible = visible, .view = &view, .out = &o,
                                .scratch = scratch };
    TRY_GOTO(rc, timed(call_attention, &a, &t, e), done);
    const double flop = 4.0 * S.H * S.D * rows * ((double)R - 0.5 * rows);
    row(name, t * 1e6, "us", ", \"flop\": %.0f, \"byte\": %.0f, \"rate\": \"att\", \"note\": \"%.0f TFLOP/s\"", flop,
        (double)R * 2 * S.G * S.D * 2, flop / t * 1e-12);
done:
    free(list), free(visible);
    return rc;
}

static status op_attention(struct err *e) { return attention_of("attention, causal", R, e); }
static status op_text_rows(struct err *e) { return attention_of("attention of the question's rows", ASKED, e); }

static status op_decode(struct err *e)
{
    enum { MOST = 32 };
    const uint32_t B = tiny ? 2 : (uint32_t)MOST, T = st->ops->page_tokens, each = (R + T - 1) / T;
    struct kv_shape kv;
    struct kv_view view[MOST];
    uint32_t *list = NULL, start[MOST + 1], visible[MOST];
    float *q;
    struct operand o;
    void *scratch;
    double t;
    TRY(pages(each * B, &kv, &list, e));
    status rc;
    for (uint32_t i = 0; i <= B; i++) start[i] = i;
    for (uint32_t i = 0; i < B; i++) view[i] = (struct kv_view){ list + i * each, R }, visible[i] = R;
    TRY_GOTO(rc, floats((size_t)B * S.H * S.D, &q, e), done);
    TRY_GOTO(rc, operand(B, S.H * S.D, false, &o, e), done);
    TRY_GOTO(rc, room(st->ops->attention_scratch(st, S.H, S.D, B, R), &scratch, e), done);
    struct attention_args a = { .q = q, .ldq = (size_t)S.H * S.D, .H = S.H, .scale = 1 / sqrtf((float)S.D), .shape = kv, .n_seqs = B,
                                .seq_start = start, .visible = visible, .view = view, .out = &o, .scratch = scratch };
    TRY_GOTO(rc, timed(call_attention_decode, &a, &t, e), done);
    const double byte = (double)B * R * 2 * S.G * S.D * 2;
    row("attention, decode of 32", t * 1e6, "us", ", \"byte\": %.0f, \"note\": \"%.2f TB/s\"", byte, byte / t * 1e-12);
done:
    free(list);
    return rc;
}

static status op_scores(struct err *e)
{
    struct kv_shape kv;
    uint32_t *list = NULL, visible[QUESTION];
    float *q;
    void *partial, *scratch;
    double t;
    const uint32_t T = st->ops->page_tokens, rows = ASKED;
    TRY(pages((R + T - 1) / T, &kv, &list, e));
    status rc;
    for (uint32_t i = 0; i < rows; i++) visible[i] = R - rows + i + 1;
    TRY_GOTO(rc, floats((size_t)rows * S.H * S.D, &q, e), done);
    TRY_GOTO(rc, room((size_t)S.G * R * sizeof(float), &partial, e), done);
    TRY_GOTO(rc, room(st->ops->attention_scratch(st, S.H, S.D, rows, R), &scratch, e), done);
    struct query_scores_args a = { .q = q, .ldq = (size_t)S.H * S.D, .n_q = rows, .H = S.H, .scale = 1 / sqrtf((float)S.D), .shape = kv,
                                   .view = { list, R }, .visible = visible, .partial = partial, .scratch = scratch };
    TRY_GOTO(rc, timed(call_query_scores, &a, &t, e), done);
    row("scores by the question", t * 1e6, "us", ", \"flop\": %.0f, \"byte\": %.0f, \"rate\": \"score\"", 2.0 * S.H * S.D * rows * R,
        (double)R * S.G * (S.D * 2 + 4));
done:
    free(list);
    return rc;
}

/* The whole choice of a layer on the device: scores summed, tokens selected, what is left listed. */
static status op_select(struct err *e)
{
    const uint32_t k = R / 5;
    uint32_t *id = NULL;
    float *partial;
    void *there[7];
    const size_t bytes[] = { R * sizeof *id, R * sizeof(int32_t), R, R * sizeof(float), (R - k) * sizeof *id, (R - k) * sizeof *id,
                             (R - k) * sizeof *id };
    void *scratch;
    double t;
    status rc;
    TRY_GOTO(rc, mem_alloc(&id, R, sizeof *id, e), done);
    for (int i = 0; i < 7; i++) TRY_GOTO(rc, room(bytes[i], &there[i], e), done);
    TRY_GOTO(rc, room(st->ops->choose_scratch(st, R), &scratch, e), done);
    TRY_GOTO(rc, floats((size_t)S.G * R, &partial, e), done);
    for (uint32_t i = 0; i < R; i++) id[i] = i;
    TRY_GOTO(rc, st->ops->upload(st, there[0], id, bytes[0], e), done);
    for (uint32_t i = 0; i < R; i++) id[i] = i / 338;
    TRY_GOTO(rc, st->ops->upload(st, there[1], id, bytes[1], e), done);
    memset(id, 1, R);
    TRY_GOTO(rc, st->ops->upload(st, there[2], id, bytes[2], e), done);
    struct choose_args a = { .partial = partial, .G = S.G, .n = R, .by = 1e-3f, .id = there[0], .chunk = there[1], .mark = there[2],
                             .of = 1, .n_of = R, .k = k, .tds = true, .lambda_div = 0.2, .max_chunk = (int32_t)(R / 338),
                             .score = there[3], .row = there[4], .out_id = there[5], .visible = there[6], .scratch = scratch };
    TRY_GOTO(rc, timed(call_choose, &a, &t, e), done);
    row("selection with diversity", t * 1e6, "us", ", \"byte\": %.0f, \"note\": \"with the mean over heads and lists of what is "
        "left; latency binds: 12 us are planned\"", (double)R * (4 * S.G + 24));
done:
    free(id);
    return rc;
}

static status op_gather(struct err *e)
{
    const uint32_t n = R - R / 5;
    float *x, *y;
    uint32_t *keep;
    double t;
    TRY(floats((size_t)R * S.d, &x, e));
    TRY(floats((size_t)n * S.d, &y, e));
    TRY(mem_alloc(&keep, n, sizeof *keep, e));
    for (uint32_t i = 0; i < n; i++) keep[i] = (uint32_t)((uint64_t)i * R / n);
    struct gather_args a = { x, keep, n, S.d, y };
    const status rc = timed(call_gather, &a, &t, e);
    free(keep);
    if (rc == OK) row("gather of survivors", t * 1e6, "us", ", \"byte\": %.0f", (double)n * S.d * 8);
    return rc;
}

static status op_segments(struct err *e)
{
    static const struct { const char *name; uint32_t len, heads, D; } kinds[] = { { "video windows of 64", 64, 16, 80 },
                                                                                  { "video grids of 576", 576, 16, 80 },
                                                                                  { "audio blocks of 100", 100, 20, 64 } };
    for (int v = 0; v < 3; v++) {
        const uint32_t len = tiny ? 70 : kinds[v].len, n_segs = tiny ? 1 : 36864 / len, n = n_segs * len;
        const uint32_t heads = tiny ? 1 : kinds[v].heads, k = heads * kinds[v].D;
        uint32_t *start;
        float *qkv;
        struct operand o;
        void *scratch;
        double t;
        TRY(floats((size_t)n * 3 * k, &qkv, e));
        TRY(operand(n, k, false, &o, e));
        TRY(room(st->ops->attention_scratch(st, heads, kinds[v].D, n, n), &scratch, e));
        TRY(mem_alloc(&start, n_segs + 1, sizeof *start, e));
        for (uint32_t i = 0; i <= n_segs; i++) start[i] = i * len;
        struct segment_attention_args a = { .q = qkv, .k = qkv + k, .v = qkv + 2 * k, .ld = 3 * (size_t)k, .heads = heads,
                                            .D = kinds[v].D, .scale = 0.1f, .n_segs = n_segs, .seg_start = start, .out = &o,
                                            .scratch = scratch };
        const status rc = timed(call_segment_attention, &a, &t, e);
        free(start);
        if (rc != OK) return rc;
        row(kinds[v].name, t * 1e6, "us", ", \"flop\": %.0f, \"byte\": %.0f, \"rate\": \"enc\"", 4.0 * n * len * k, (double)n * k * 14);
        drop();
    }
    return OK;
}

static void ops_all(void)
{
    static const struct { const char *name; status (*run)(struct err *e); } all[] = {
        { "norm", op_norm }, { "products", op_products }, { "rope, kv_write", op_rope_and_write }, { "attention", op_attention },
        { "attention of few rows", op_text_rows }, { "query_scores", op_scores }, { "select", op_select }, { "gather", op_gather },
        { "attention_decode", op_decode }, { "segment_attention", op_segments } };
    const struct stream_options o = { .device = device };
    struct err e = { 0 };
    if (stream_open(&o, &st, &e) != OK) {
        failed("device", &e);
        exit(1);
    }
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].run(&e) != OK) failed(all[i].name, &e);
        drop();
    }
    st->ops->close(&st);
}

/* ---- towers -------------------------------------------------------------------------------------------------- */

static void towers_all(void)
{
    const struct stream_options o = { .device = device };
    struct checkpoint ck = { 0 };
    bool opened = false;
    struct audio_tower *audio = NULL;
    struct vision_tower *vision = NULL;
    float *mel = NULL, *patches = NULL, *out;
    uint64_t s = 11;
    struct err e = { 0 };
    status rc;
    const uint32_t steps = tiny ? 1 : 118, side = tiny ? 4 : 24, frames = tiny ? 40 : 12032, at_once = 4, rounds = tiny ? 1 : 3;
    const uint32_t n_video = steps * side * side / 4, n_audio = audio_tower_tokens(frames), n_raw = tiny ? 120 : 20000;
    if (towers_dir == NULL) return;
    TRY_GOTO(rc, stream_open(&o, &st, &e), done);
    TRY_GOTO(rc, checkpoint_open(towers_dir, &ck, &e), done);
    opened = true;
    double t = clock_s();
    TRY_GOTO(rc, audio_tower_create(st, &ck, DT_BF16, &audio, &e), done);
    TRY_GOTO(rc, vision_tower_create(st, &ck, DT_BF16, &vision, &e), done);
    TRY_GOTO(rc, st->ops->sync(st, &e), done);
    row("towers, from page cache to device", clock_s() - t, "s", "%s", "");
    const size_t d = ck.config.text.hidden, patch = vision_tower_patch(vision);
    TRY_GOTO(rc, mem_alloc(&mel, (size_t)128 * frames, sizeof *mel, &e), done);
    TRY_GOTO(rc, mem_alloc(&patches, (size_t)steps * side * side * patch, sizeof *patches, &e), done);
    TRY_GOTO(rc, floats((size_t)(n_video > n_audio ? n_video : n_audio) * d, &out, &e), done);
    for (size_t i = 0; i < (size_t)128 * frames; i++) mel[i] = next_random(&s);
    for (size_t i = 0; i < (size_t)steps * side * side * patch; i++) patches[i] = next_random(&s);
    double video[3], sound[3];
    for (uint32_t round = 0; round <= rounds; round++) {
        t = clock_s();
        for (uint32_t i = 0; i < steps; i += at_once) {
            const uint32_t n = steps - i < at_once ? steps - i : at_once;
            TRY_GOTO(rc, vision_tower_run(vision, patches + (size_t)i * side * side * patch, n, side, side,
                                          out + (size_t)i * side * side / 4 * d, NULL, &e), done);
        }
        TRY_GOTO(rc, st->ops->sync(st, &e), done);
        if (round > 0) video[round - 1] = clock_s() - t;
        t = clock_s();
        TRY_GOTO(rc, audio_tower_run(audio, mel, frames, out, NULL, &e), done);
        TRY_GOTO(rc, st->ops->sync(st, &e), done);
        if (round > 0) sound[round - 1] = clock_s() - t;
    }
    row("video tower 20k", median(video, (int)rounds) * 1e3, "ms",
        ", \"tower\": [\"video\", %u], \"note\": \"%u steps from host patches\"", n_raw, steps);
    row("audio tower 20k", median(sound, (int)rounds) * 1e3, "ms",
        ", \"tower\": [\"audio\", %u], \"note\": \"%u frames from host mel\"", n_raw, frames);
done:
    if (rc != OK) failed("towers", &e);
    if (audio) audio_tower_destroy(&audio);
    if (vision) vision_tower_destroy(&vision);
    if (opened) checkpoint_close(&ck);
    free(mel), free(patches);
    drop();
    if (st) st->ops->close(&st);
}

/* ---- the engine ---------------------------------------------------------------------------------------------- */

/* On a smaller GPU fewer pages, and so fewer of the large batches. */
static uint64_t pages_that_fit(uint64_t wanted)
{
    const uint64_t beside = (uint64_t)22 << 30, least = (uint64_t)2 << 30;      /* weights, work and what others hold */
    uint64_t left = 0, total = 0;
    struct stream *probe = NULL;
    if (stream_open(&(struct stream_options){ .device = device }, &probe, NULL) != OK) return wanted;
    if (device_memory(probe, &left, &total, NULL) != OK) left = wanted + beside;
    probe->ops->close(&probe);
    return left >= wanted + beside ? wanted : left > beside + least ? left - beside : least;
}

static struct engine *en;
static status engine_make(struct err *e)
{
    struct bench_pool pool = { .n = (size_t)S.V * S.d, .shape = &S };
    const struct decoder_source src = bench_pool_source(&pool);
    struct engine_options o = { .device = device, .max_model_len = tiny ? 4096 : 45056,
                                .kv_bytes = tiny ? (uint64_t)64 << 20 : (uint64_t)62 << 30 };
    if (!tiny) o.kv_bytes = pages_that_fit(o.kv_bytes);
    uint64_t s = 1;
    if (tiny && pool.n < (size_t)2 * S.d * S.ff) pool.n = (size_t)2 * S.d * S.ff;
    TRY(mem_alloc(&pool.values, pool.n, sizeof *pool.values, e));
    for (size_t i = 0; i < pool.n; i++) pool.values[i] = bf16_of_f32(next_random(&s) * 0.03f);
    const double t = clock_s();
    const status rc = engine_open_source(&o, &S, &src, DT_BF16, &en, e);
    free(pool.values);
    if (rc != OK) return rc;
    TRY(en->ops->sync(en->st, e));
    row("decoder, from host memory to device", clock_s() - t, "s", ", \"note\": \"%.2f GB\"", (double)en->info.weight_bytes * 1e-9);
    return OK;
}

static const struct { const char *name, *policy; double p_init, p_final; } MODES[] = {
    { "none", "none", 0, 0 }, { "omnidrop 30 %", "omnidrop", 0, 0.2 }, { "omnidrop 20 %", "omnidrop", 0.02, 0.5 } };
enum { N_MODES = 3, ROUNDS = 3 };

/* A film with sound of n tokens in all, a step a second, then the question. */
static status film_of(uint32_t n, struct prompt *out, struct err *e)
{
    const uint32_t step = tiny ? 16 : 144, side = tiny ? 8 : 24, steps = n / (step + 25);
    const struct model_ids *id = &en->config.ids;
    const struct prompt_rules rules = {
        .audio_id = id->audio, .image_id = id->image, .video_id = id->video, .audio_bos = id->audio_start,
        .audio_eos = id->audio_end, .vision_bos = id->vision_start, .vision_eos = id->vision_end,
        .position_id_per_seconds = 25, .seconds_per_chunk = 2, .audio_in_video = true, .n_query_max = 256 };
    const struct prompt_media media = { .kind = TOKEN_VIDEO, .n_audio = n - steps * step, .has_audio = true, .t = steps, .h = side,
                                        .w = side, .second_per_grid = 1 };
    struct prompt_token token[3 + QUESTION] = { { id->vision_start, false }, { id->video, false }, { id->vision_end, false } };
    for (int i = 0; i < (int)ASKED; i++) token[3 + i] = (struct prompt_token){ 10 + i, true };
    return prompt_build(&rules, token, 3 + ASKED, &media, 1, out, e);
}

struct measured { double prefill, select, step; uint32_t n_prompt; uint64_t pages; double mean; };

static void see_choice(void *self, uint32_t l, const uint32_t *index, uint32_t k, const float *score)
{
    (void)self, (void)l, (void)index, (void)k, (void)score;
}

/* looked: the engine stops for each choice, so that select is the choices' time and prefill is too long. */
static status prefill_once(uint32_t n, int mode, uint32_t n_new, bool looked, const float *embeds, struct measured *m, struct err *e)
{
    const struct eng_trace trace = { .alive = see_choice };
    struct prompt p;
    struct policy_params policy;
    struct eng_request *r = NULL;
    status rc;
    TRY(prune_params_init(&policy, MODES[mode].policy, S.L, e));
    if (mode > 0) {
        TRY(prune_params_set(&policy, "p_init", MODES[mode].p_init, e));
        TRY(prune_params_set(&policy, "p_final", MODES[mode].p_final, e));
    }
    TRY(prune_params_finish(&policy, e));
    struct eng_request_options o = eng_request_defaults();
    o.policy = &policy;
    o.max_tokens = n_new;
    o.ignore_eos = true;
    if (looked) o.trace = &trace;
    TRY(film_of(n, &p, e));
    const struct eng_given given = { .prompt = &p, .audio_embeds = embeds, .vision_embeds = embeds, .audio_saliency = embeds };
    TRY_GOTO(rc, eng_request_create_given(en, NULL, &o, &given, &r, e), done);
    TRY_GOTO(rc, eng_run(en, &r, 1, e), done);
    const struct eng_result *res = eng_request_result(r);
    if (res->finish == ENG_FAILED) {
        *e = res->error;
        rc = e->code;
        goto done;
    }
    m->prefill = res->prefill_s, m->select = res->select_s, m->n_prompt = res->n_prompt, m->mean = res->mean_retention;
    m->pages = 0;
    for (uint32_t l = 0; l < S.L; l++) m->pages += res->pages[l];
    if (res->n_ids > 4) m->step = (res->token_s[res->n_ids - 1] - res->token_s[3]) / (res->n_ids - 4);
done:
    prompt_free(&p);
    eng_request_destroy(en, &r);
    return rc;
}

static const char *size_of(uint32_t n, char text[16])
{
    snprintf(text, 16, "%uk", n / 1000);
    return tiny ? "20k" : text;
}

static status prefills(struct err *e)
{
    static const uint32_t whole[] = { 4000, 10000, 20000, 40000, 0 }, small[] = { 120, 0 };
    float *embeds;
    uint64_t s = 9;
    const uint32_t most = tiny ? 120 : 40000;
    const int rounds = tiny ? 1 : ROUNDS;
    status rc = OK;
    TRY(mem_alloc(&embeds, (size_t)most * S.d, sizeof *embeds, e));
    for (size_t i = 0; i < (size_t)most * S.d; i++) embeds[i] = next_random(&s);
    for (const uint32_t *n = tiny ? small : whole; *n && rc == OK; n++) {
        double v[N_MODES][ROUNDS];
        struct measured m[N_MODES] = { { 0 } };
        for (int round = tiny ? 0 : -1; round < rounds && rc == OK; round++)      /* the first is to warm up */
            for (int mode = 0; mode < N_MODES && rc == OK; mode++) {
                rc = prefill_once(*n, mode, 1, false, embeds, &m[mode], e);
                if (round >= 0) v[mode][round] = m[mode].prefill;
            }
        for (int mode = 0; mode < N_MODES && rc == OK; mode++) {
            char name[64], k[16];
            const char *size = size_of(*n, k);
            snprintf(name, sizeof name, "prefill %s %s", size, MODES[mode].name);
            row(name, median(v[mode], rounds) * 1e3, "ms",
                ", \"prefill\": [%u, \"%s\"], \"note\": \"%u rows enter, mean kept %.3f, towers apart\"", *n, MODES[mode].name,
                m[mode].n_prompt, m[mode].mean);
            snprintf(name, sizeof name, "KV %s %s", size, MODES[mode].name);
            row(name, (double)m[mode].pages * (double)en->info.page_bytes * 1e-9, "GB", ", \"note\": \"%llu pages\"",
                (unsigned long long)m[mode].pages);
            if (mode == 0) continue;
            struct measured seen = { 0 };
            rc = prefill_once(*n, mode, 1, true, embeds, &seen, e);
            snprintf(name, sizeof name, "selection share %s %s", size, MODES[mode].name);
            row(name, seen.select / median(v[mode], rounds), "of prefill",
                ", \"note\": \"scores and selections of a run that stops for each of them\"");
        }
        struct measured one = { 0 };
        if (rc == OK && (*n == 20000 || tiny)) rc = prefill_once(*n, 0, tiny ? 8 : 36, false, embeds, &one, e);
        if (one.step > 0) row("token 20k none, engine", one.step * 1e3, "ms", ", \"decode\": [%u, \"none\", 1]", *n);
    }
    free(embeds);
    return rc;
}

/* One step of B requests of 20k raw tokens, 30 % kept, by the decoder's own calls: each layer has the keys that the plan leaves. As a
 * graph (ops->step_begin), as the engine has it, or launch by launch. */
static status decode_of(uint32_t B, bool graph, struct err *e)
{
    const uint32_t n = tiny ? 120 : 20000, text = tiny ? 12 : 192, T = en->kv.page_tokens;
    struct prune_schedule sc = { 0, 0.2, 0.5, 20 };
    uint32_t *alive = NULL, *page = NULL, *start = NULL, *angle = NULL, *kv_start = NULL, *visible = NULL;
    int32_t *id = NULL;
    struct kv_view *view = NULL;
    float *logits = NULL, *x, *c, *s;
    double layers[5], whole[5];
    const int rounds = tiny ? 1 : 5;
    uint64_t next = 0;
    status rc;
    st = en->st;
    TRY_GOTO(rc, mem_alloc(&alive, S.L + 1, sizeof *alive, e), done);
    prune_alive(&sc, S.L, (uint32_t)(0.45 * n), alive);
    uint64_t n_pages = 0;
    for (uint32_t l = 0; l < S.L; l++) n_pages += (alive[l] + text + T - 1) / T;
    if (n_pages * B > en->info.n_pages) {
        rc = err_set(e, E_FULL, "batch %u needs %llu pages of %u", B, (unsigned long long)(n_pages * B), en->info.n_pages);
        goto done;
    }
    TRY_GOTO(rc, mem_alloc(&page, n_pages * B, sizeof *page, e), done);
    TRY_GOTO(rc, mem_alloc(&start, B + 1, sizeof *start, e), done);
    TRY_GOTO(rc, mem_alloc(&angle, B, sizeof *angle, e), done);
    TRY_GOTO(rc, mem_alloc(&kv_start, B, sizeof *kv_start, e), done);
    TRY_GOTO(rc, mem_alloc(&visible, B, sizeof *visible, e), done);
    TRY_GOTO(rc, mem_alloc(&id, 3 * (size_t)B, sizeof *id, e), done);
    TRY_GOTO(rc, mem_alloc(&view, B, sizeof *view, e), done);
    TRY_GOTO(rc, mem_alloc(&logits, (size_t)B * S.V, sizeof *logits, e), done);
    for (uint64_t i = 0; i < n_pages * B; i++) page[i] = (uint32_t)(i * 7919 % en->info.n_pages);
    for (uint32_t i = 0; i <= B; i++) start[i] = i;
    for (uint32_t i = 0; i < B; i++) angle[i] = i, id[i] = (int32_t)(10 + i);
    TRY_GOTO(rc, floats((size_t)B * S.d, &x, e), done);
    TRY_GOTO(rc, angles(B, &c, &s, e), done);
    for (int round = -3; round < rounds; round++) {        /* launched, captured, run: then it is warm */
        const int32_t *const pos[3] = { id, id, id };
        double t = clock_s();
        next = 0;
        if (graph) st->ops->step_begin(st, en->dec, B);
        TRY_GOTO(rc, decoder_angles(en->dec, pos, B, c, s, e), done);
        TRY_GOTO(rc, decoder_embed(en->dec, id, B, x, e), done);
        for (uint32_t l = 0; l < S.L; l++) {
            const uint32_t keys = alive[l] + text, each = (keys + T - 1) / T;
            for (uint32_t i = 0; i < B; i++) {
                view[i] = (struct kv_view){ page + next, keys };
                next += each;
                kv_start[i] = keys - 1;
                visible[i] = keys;
            }
            const struct decoder_batch b = { .n_seqs = B, .seq_start = start, .view = view, .angle = angle, .cos = c, .sin = s,
                                             .kv = en->kv, .decode = true };
            TRY_GOTO(rc, decoder_layer(en->dec, l, &b, x, kv_start, visible, e), done);
        }
        TRY_GOTO(rc, st->ops->step_end(st, false, e), done);
        TRY_GOTO(rc, st->ops->sync(st, e), done);
        if (round >= 0) layers[round] = clock_s() - t;
        TRY_GOTO(rc, decoder_logits(en->dec, x, NULL, B, logits, e), done);
        if (round >= 0) whole[round] = clock_s() - t;
    }
    char name[64];
    const double step = median(whole, rounds);
    snprintf(name, sizeof name, "decode 20k omnidrop 30 %% B=%u%s", B, graph ? "" : ", single launches");
    row(name, step * 1e3, "ms", ", \"decode\": [%u, \"omnidrop 30 %%\", %u, %u], \"note\": \"%.0f tokens/s; layers %.2f ms, head and "
        "logits to the host %.2f ms\"", n, B, text, B / step, median(layers, rounds) * 1e3, (step - median(layers, rounds)) * 1e3);
done:
    st->ops->step_end(st, true, NULL);
    free(alive), free(page), free(start), free(angle), free(kv_start), free(visible), free(id), free(view), free(logits);
    drop();
    return rc;
}

static void engine_all(void)
{
    static const uint32_t batches[] = { 1, 8, 32, 128 };
    struct err e = { 0 };
    if (engine_make(&e) != OK) {
        failed("decoder", &e);
        return;
    }
    if (prefills(&e) != OK) failed("prefill", &e);
    for (int i = 0; i < (tiny ? 4 : 8); i++) {
        const uint32_t B = batches[i / 2];
        if (decode_of(B, i % 2 == 0, &e) == OK) continue;
        char name[48];
        snprintf(name, sizeof name, "decode B=%u%s", B, i % 2 == 0 ? "" : ", single launches");
        failed(name, &e);
    }
    const struct device_steps n = device_steps(en->st);
    row("decode steps as graphs", (double)(n.captured + n.replayed), "steps", ", \"note\": \"%llu captured, %llu launched singly, "
        "%llu ended early\"", (unsigned long long)n.captured, (unsigned long long)n.plain, (unsigned long long)n.ended_early);
    engine_close(&en);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--tiny") == 0) tiny = true;
        else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc) {
            device = argv[++i];
            if (strcmp(device, "simt") == 0) device = simt_device("tests/simt");
        }
        else if (strcmp(argv[i], "--towers") == 0 && i + 1 < argc) towers_dir = argv[++i];
        else {
            fprintf(stderr, "usage: gpu_bench [--device D] [--tiny] [--towers DIR]\n");
            return 2;
        }
    }
    S = tiny ? TINY : WHOLE;
    R = tiny ? 70 : 9000;
    ops_all();
    towers_all();
    engine_all();
    return 0;
}
