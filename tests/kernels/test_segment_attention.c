/* tests/kernels/test_segment_attention.c - full attention inside the segments of a tower, and what keys
 * receive.
 * Method: random segments of every length against softmax in double; a segment alone, on another number of
 * threads, must have the same bits. */
#include "tests/kernels/twin.h"

struct tower {
    uint32_t heads, D, n_segs, *seg_start;
    size_t ld;
    float *q, *k, *v, scale;
};

/* Content of the operand [n, heads D], and received [n] or NULL. */
static float *run(struct stream *st, const struct tower *t, uint32_t seg0, uint32_t n_segs,
                  enum dtype compute, float *received)
{
    const uint32_t first = t->seg_start[seg0], n = t->seg_start[seg0 + n_segs] - first;
    uint32_t start[16], most = 0;
    for (uint32_t s = 0; s <= n_segs; s++) start[s] = t->seg_start[seg0 + s] - first;
    for (uint32_t s = 0; s < n_segs; s++)
        most = start[s + 1] - start[s] > most ? start[s + 1] - start[s] : most;
    struct operand out = twin_operand(st, n, t->heads * t->D, compute);
    void *scratch = twin_alloc(st->ops->attention_scratch(st, t->heads, t->D, n, most));
    const struct segment_attention_args a = { .q = t->q + first * t->ld,
                                              .k = t->k + first * t->ld,
                                              .v = t->v + first * t->ld,
                                              .ld = t->ld,
                                              .heads = t->heads,
                                              .D = t->D,
                                              .scale = t->scale,
                                              .n_segs = n_segs,
                                              .seg_start = start,
                                              .out = &out,
                                              .received = received,
                                              .scratch = scratch };
    TWIN_OK(st->ops->segment_attention(st, &a, e));
    float *y = twin_unpack(st, &out);
    free(out.data), free(scratch);
    return y;
}

static float rounded(bool round, float x)
{
    return round ? twin_round_bf16(x) : x;
}

static void reference(const struct tower *t, bool round_q, bool round_kv, double *y, double *received)
{
    const uint32_t D = t->D;
    for (uint32_t s = 0; s < t->n_segs; s++) {
        const uint32_t first = t->seg_start[s], n = t->seg_start[s + 1] - first;
        double *p = calloc(n + 1, sizeof *p);
        for (uint32_t i = first; i < first + n; i++)
            for (uint32_t h = 0; h < t->heads; h++) {
                const float *q = t->q + i * t->ld + (size_t)h * D;
                double top = -INFINITY, sum = 0.0, *out = y + ((size_t)i * t->heads + h) * D;
                for (uint32_t j = 0; j < n; j++) {
                    const float *k = t->k + (first + j) * t->ld + (size_t)h * D;
                    double x = 0.0;
                    for (uint32_t c = 0; c < D; c++)
                        x += (double)rounded(round_q, q[c]) * rounded(round_kv, k[c]);
                    p[j] = x * t->scale;
                    top = fmax(top, p[j]);
                }
                for (uint32_t j = 0; j < n; j++) sum += p[j] = exp(p[j] - top);
                for (uint32_t j = 0; j < n; j++) {
                    const float *v = t->v + (first + j) * t->ld + (size_t)h * D;
                    for (uint32_t c = 0; c < D; c++) out[c] += p[j] / sum * rounded(round_kv, v[c]);
                    received[first + j] += p[j] / sum / t->heads / n;
                }
            }
        free(p);
    }
}

static const uint32_t lengths[] = { 64, 1, 100, 15, 16, 17, 0, 31, 257, 33, 400 };

static void segments_body(struct stream *st, const char *isa)
{
    static const struct {
        uint32_t heads, D;
    } shapes[] = { { 2, 16 }, { 3, 20 }, { 1, 24 }, { 2, 64 }, { 2, 80 }, { 1, 2 } };
    for (uint32_t v = 0; v < 12; v++) {
        const enum dtype compute = v % 2 ? DT_BF16 : DT_F32;
        const bool pairs = compute == DT_BF16 && strcmp(isa, "avx512-bf16") == 0;
        uint32_t start[16] = { 0 };
        struct tower t = { .heads = shapes[v / 2].heads,
                           .D = shapes[v / 2].D,
                           .n_segs = 1 + twin_below(6),
                           .seg_start = start };
        t.ld = 3 * (size_t)t.heads * t.D;
        t.scale = 1.0f / sqrtf((float)t.D);
        for (uint32_t s = 0; s < t.n_segs; s++) start[s + 1] = start[s] + lengths[(s + 5 * v) % 11];
        const uint32_t n = start[t.n_segs], k = t.heads * t.D;
        t.q = twin_random_floats(n * t.ld), t.k = t.q + k, t.v = t.q + 2 * k;
        double *want = calloc((size_t)n * k + 1, sizeof *want), *heard = calloc(n + 1, sizeof *heard);
        float *received = twin_floats(n);
        reference(&t, pairs, compute == DT_BF16, want, heard);
        float *y = run(st, &t, 0, t.n_segs, compute, received);
        twin_near(y, want, (size_t)n * k, pairs ? 8e-3 : 2e-6, isa);
        twin_near(received, heard, n, 2e-6, isa);
        for (uint32_t s = 0; s < t.n_segs; s++) {
            struct stream *other = twin_open(isa, 1 + (int)(s % 3));
            const uint32_t m = start[s + 1] - start[s];
            float *alone = twin_floats(m), *z = run(other, &t, s, 1, compute, alone),
                  *plain = run(st, &t, s, 1, compute, NULL);
            twin_same(z, y + (size_t)start[s] * k, (size_t)m * k, isa);
            twin_same(plain, z, (size_t)m * k, isa);
            twin_same(alone, received + start[s], m, isa);
            other->ops->close(&other);
            free(alone), free(z), free(plain);
        }
        free(t.q), free(want), free(heard), free(received), free(y);
    }
}

static void test_segments(void **state)
{
    (void)state;
    twin_seed("segments");
    twin_each(2, segments_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_segments) };
    return cmocka_run_group_tests_name("segment attention", tests, NULL, NULL);
}
