/* One decoder layer, called in every way that it can be. Goal: decoder_layer, decoder_kv with decoder_mix, all rows kept
 * by name, one sequence at a time, and any size of block give the same bits; a token decoded gives those of a prefill
 * that is one longer. Method: random weights of an odd small shape, three sequences of different lengths, f32 and bf16. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "model/decoder.h"

enum { L = 2, H = 6, G = 2, D = 16, WIDTH = 40, FF = 72, V = 50, N_SEQS = 3, ROWS = 67, PER = 8 };
static const struct decoder_shape SHAPE = { .L = L, .H = H, .G = G, .D = D, .d = WIDTH, .ff = FF, .V = V, .rms_eps = 1e-6f,
                                            .rope_theta = 1e4, .mrope_section = { 2, 3, 3 }, .tied = true };
static const uint32_t START[N_SEQS + 1] = { 0, 30, 31, ROWS };

static float next(uint32_t *s)
{
    *s = *s * 1664525u + 1013904223u;
    return (float)(int32_t)*s * 0x1p-31f;
}

static status random_weight(void *self, enum decoder_role role, uint32_t l, struct weight_args *a, struct err *e)
{
    (void)e, (void)l;
    static const struct { uint32_t k, n[2]; enum weight_form form; } of[] = {
        [DEC_QKV_Q] = { WIDTH, { H * D, 0 }, WEIGHT_PLAIN },    [DEC_QKV_KV] = { WIDTH, { G * D, G * D }, WEIGHT_PLAIN },
        [DEC_O] = { H * D, { WIDTH, 0 }, WEIGHT_PLAIN },        [DEC_GATE_UP] = { WIDTH, { FF, FF }, WEIGHT_SWIGLU },
        [DEC_DOWN] = { FF, { WIDTH, 0 }, WEIGHT_PLAIN },        [DEC_EMBED] = { WIDTH, { V, 0 }, WEIGHT_PLAIN } };
    const float *values = self;
    a->form = of[role].form;
    a->k = of[role].k;
    a->n_parts = of[role].n[1] ? 2 : 1;
    for (uint32_t i = 0; i < a->n_parts; i++)
        a->part[i] = (struct weight_part){ .data = values + 100 * role + 1000 * i, .dtype = DT_F32, .n = of[role].n[i] };
    return OK;
}

static status ones(void *self, enum decoder_role role, uint32_t l, float *out, struct err *e)
{
    (void)self, (void)role, (void)l, (void)e;
    for (uint32_t i = 0; i < WIDTH; i++) out[i] = 1.0f;
    return OK;
}

/* A decoder, its pages, the rows of the batch and their angles. */
struct fixture {
    struct stream *st;
    struct decoder *dec;
    struct kv_shape kv;
    uint32_t page[N_SEQS][PER], angle[ROWS], visible[ROWS];
    struct kv_view view[N_SEQS];
    float *x, *cos, *sin;
};

static void open_all(struct fixture *f, enum dtype dtype, uint32_t max_rows)
{
    struct err e;
    static float values[20000];
    uint32_t s = 5;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) values[i] = 0.3f * next(&s);
    const struct stream_options so = { .device = "cpu", .n_threads = 2 };
    const struct decoder_source src = { .weight = random_weight, .norm = ones, .self = values };
    assert_int_equal(stream_open(&so, &f->st, &e), OK);
    assert_int_equal(decoder_create(f->st, &SHAPE, &src, dtype, dtype, max_rows, 256, &f->dec, &e), OK);
    f->kv = decoder_kv_shape(f->dec);
    assert_int_equal(f->st->ops->alloc(f->st, N_SEQS * PER * f->kv.page_bytes, &f->kv.base, &e), OK);
    memset(f->kv.base, 0xff, N_SEQS * PER * f->kv.page_bytes);      /* whatever is read before it is written is NaN */
    assert_int_equal(mem_alloc_aligned(&f->x, ROWS * WIDTH * sizeof(float), &e), OK);
    assert_int_equal(mem_alloc_aligned(&f->cos, ROWS * D / 2 * sizeof(float), &e), OK);
    assert_int_equal(mem_alloc_aligned(&f->sin, ROWS * D / 2 * sizeof(float), &e), OK);
    int32_t pos[3][ROWS];
    for (uint32_t q = 0; q < N_SEQS; q++) {
        for (uint32_t i = 0; i < PER; i++) f->page[q][i] = (i * N_SEQS + q) * 5 % (N_SEQS * PER);
        f->view[q] = (struct kv_view){ f->page[q], START[q + 1] - START[q] };
        for (uint32_t i = START[q]; i < START[q + 1]; i++) {
            f->visible[i] = i - START[q] + 1;
            f->angle[i] = i;
            for (int k = 0; k < 3; k++) pos[k][i] = (int32_t)((i - START[q]) / (uint32_t)(k + 1));
        }
    }
    for (uint32_t i = 0; i < ROWS * WIDTH; i++) f->x[i] = next(&s);
    const int32_t *const p[3] = { pos[0], pos[1], pos[2] };
    assert_int_equal(decoder_angles(f->dec, p, ROWS, f->cos, f->sin, &e), OK);
}

static void close_all(struct fixture *f)
{
    f->st->ops->release(f->st, f->kv.base);
    decoder_destroy(&f->dec);
    f->st->ops->close(&f->st);
    free(f->x), free(f->cos), free(f->sin);
}

static struct decoder_batch batch_of(const struct fixture *f)
{
    return (struct decoder_batch){ .n_seqs = N_SEQS, .seq_start = START, .view = f->view, .angle = f->angle, .cos = f->cos,
                                   .sin = f->sin, .kv = f->kv };
}

enum way { LAYER, KV_MIX, KV_MIX_KEEP, ONE_BY_ONE, DECODE_LAST };

/* All layers in one of the ways; y [ROWS, WIDTH] out. */
static void run(enum way way, enum dtype dtype, uint32_t max_rows, float *y)
{
    struct fixture f;
    struct err e;
    const uint32_t zero[N_SEQS] = { 0 };
    open_all(&f, dtype, max_rows);
    const struct decoder_batch b = batch_of(&f);
    for (uint32_t l = 0; l < L; l++) {
        memset(f.kv.base, 0xff, N_SEQS * PER * f.kv.page_bytes);
        uint32_t keep[ROWS];
        float *to = f.x;
        switch (way) {
        case LAYER: assert_int_equal(decoder_layer(f.dec, l, &b, f.x, zero, f.visible, &e), OK); break;
        case KV_MIX:
        case KV_MIX_KEEP:
            if (way == KV_MIX_KEEP) assert_int_equal(mem_alloc_aligned(&to, ROWS * WIDTH * sizeof(float), &e), OK);
            for (uint32_t i = 0; i < ROWS; i++) keep[i] = i;
            assert_int_equal(decoder_kv(f.dec, l, &b, f.x, zero, &e), OK);
            assert_int_equal(decoder_mix(f.dec, l, &b, f.x, &(struct decoder_rows){ .n = ROWS, .row = way == KV_MIX ? NULL : keep,
                                                                                    .angle = f.angle, .visible = f.visible },
                                         START, to, &e), OK);
            if (to != f.x) free(f.x);
            f.x = to;
            break;
        case ONE_BY_ONE:
        case DECODE_LAST:
            for (uint32_t q = 0; q < N_SEQS; q++) {
                uint32_t start[2] = { 0, START[q + 1] - START[q] };
                struct kv_view view = f.view[q];
                struct decoder_batch one = { .n_seqs = 1, .seq_start = start, .view = &view, .angle = f.angle + START[q],
                                             .cos = f.cos, .sin = f.sin, .kv = f.kv };
                float *x = f.x + (size_t)START[q] * WIDTH;
                if (way == DECODE_LAST) {               /* all but the last row, then that one as a decoded token */
                    const uint32_t n = --start[1];
                    view.n_rows--;
                    if (n > 0) assert_int_equal(decoder_layer(f.dec, l, &one, x, zero, f.visible + START[q], &e), OK);
                    start[1] = 1;
                    view.n_rows++;
                    one.angle += n;
                    one.decode = true;
                    assert_int_equal(decoder_layer(f.dec, l, &one, x + (size_t)n * WIDTH, &n, f.visible + START[q] + n, &e), OK);
                } else {
                    assert_int_equal(decoder_layer(f.dec, l, &one, x, zero, f.visible + START[q], &e), OK);
                }
            }
        }
    }
    memcpy(y, f.x, ROWS * WIDTH * sizeof(float));
    close_all(&f);
}

static void test_same_bits(void **state)
{
    (void)state;
    static const enum dtype dtypes[] = { DT_F32, DT_BF16 };
    static const uint32_t blocks[] = { 12, 19, 24, 66, 67, 1032 };
    static float want[ROWS * WIDTH], got[ROWS * WIDTH];
    for (int t = 0; t < 2; t++) {
        run(KV_MIX, dtypes[t], 1032, want);
        for (int i = 0; i < ROWS * WIDTH; i++) assert_true(want[i] == want[i]);
        for (int way = LAYER; way <= ONE_BY_ONE; way++)
            for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
                run((enum way)way, dtypes[t], blocks[i], got);
                if (memcmp(want, got, sizeof want) != 0)
                    fail_msg("way %d, blocks of %u, dtype %d: other bits", way, blocks[i], (int)dtypes[t]);
            }
    }
}

/* Decode sums the keys in its own order: close in f32, and all rows but the last of each sequence are the same bits. */
static void test_decode(void **state)
{
    (void)state;
    static float want[ROWS * WIDTH], got[ROWS * WIDTH];
    run(KV_MIX, DT_F32, 1032, want);
    run(DECODE_LAST, DT_F32, 1032, got);
    for (uint32_t i = 0; i < ROWS; i++)
        for (uint32_t k = 0; k < WIDTH; k++) {
            const float a = want[i * WIDTH + k], b = got[i * WIDTH + k];
            if (i + 1 == START[1] || i + 1 == START[2] || i + 1 == START[3]) assert_float_equal(a, b, 1e-4);
            else assert_true(a == b);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_same_bits), cmocka_unit_test(test_decode) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
