/* tests/kernels/test_cuda_segments.c - kernels/cuda/segments.cu on the CPU (simt.h): segments of the towers' kinds against softmax
 * in double, and what keys receive, over values that bf16 holds; and against the CPU's op. An operand of f32 takes f32 throughout
 * (plain.cu), of bf16 the tensor cores to 128 dims. */
#include "tests/kernels/cuda.h"

static void test_segments(void **state)
{
    (void)state;
    twin_seed("segments");
    static const struct { uint32_t len[5], heads, D; } cases[] = {
        { { 64, 64, 16, 0, 1 }, 2, 80 },     /* windows of the video tower */
        { { 100, 17, 0, 63, 65 }, 2, 64 },   /* chunks of the audio tower */
        { { 127, 128, 129, 1, 2 }, 1, 128 }, { { 5, 0, 70, 3, 0 }, 3, 24 }, { { 200, 1, 1, 1, 1 }, 1, 66 },
        { { 65, 1, 0, 0, 3 }, 1, 160 },
    };
    struct stream *cpu = twin_open(NULL, 2);
    for (uint32_t v = 0; v < 2 * sizeof cases / sizeof cases[0]; v++) {
        const uint32_t heads = cases[v / 2].heads, D = cases[v / 2].D, k = heads * D;
        const enum dtype out_dtype = v % 2 ? DT_BF16 : DT_F32;
        const float scale = 0.3f;
        uint32_t *start = calloc(6, sizeof *start), n_tiles = 0;
        struct cuda_tile *tile = twin_alloc(40 * sizeof *tile);
        for (uint32_t s = 0; s < 5; s++) {
            start[s + 1] = start[s] + cases[v / 2].len[s];
            for (uint32_t i = 0; i < cases[v / 2].len[s]; i += CUDA_TILE_ROWS) tile[n_tiles++] = (struct cuda_tile){ s, i };
        }
        const uint32_t n = start[5];
        const size_t ld = 3 * (size_t)k + v % 2;
        float *qkv = twin_random_floats(n * ld);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t c = 0; c < k; c++) qkv[i * ld + c] *= v < 4 ? 3 : 30;
        for (size_t i = 0; i < n * ld; i++) qkv[i] = twin_round_bf16(qkv[i]);
        double *want = calloc((size_t)n * k, sizeof *want), *prob = calloc(n, sizeof *prob), *part = calloc(n, sizeof *part);
        for (uint32_t s = 0; s < 5; s++)
            for (uint32_t i = start[s]; i < start[s + 1]; i++)
                for (uint32_t h = 0; h < heads; h++) {
                    const uint32_t c0 = h * D, c1 = c0 + D, len = start[s + 1] - start[s];
                    double top = -INFINITY, sum = 0, *y = want + (size_t)i * k;
                    for (uint32_t j = start[s]; j < start[s + 1]; j++) {
                        prob[j] = 0;
                        for (uint32_t c = c0; c < c1; c++) prob[j] += (double)qkv[i * ld + c] * qkv[j * ld + k + c] * scale;
                        if (prob[j] > top) top = prob[j];
                    }
                    for (uint32_t j = start[s]; j < start[s + 1]; j++) sum += prob[j] = exp(prob[j] - top);
                    for (uint32_t j = start[s]; j < start[s + 1]; j++) {
                        for (uint32_t c = c0; c < c1; c++) y[c] += prob[j] / sum * qkv[j * ld + 2 * k + c];
                        part[j] += prob[j] / sum / heads / len;
                    }
                }
        void *out = twin_alloc((size_t)n * k * dtype_size(out_dtype));
        float *received = v % 3 ? twin_floats(n) : NULL, *lse = twin_floats((size_t)n * heads), *twin_received = twin_floats(n);
        const struct cuda_segment_attention_args a = { qkv, qkv + k, qkv + 2 * k, ld, heads, D, scale, start, tile, n_tiles, out, out_dtype,
                                                       received, lse };
        TWIN_OK(cuda_segment_attention(NULL, &a, e));
        float *got = cuda_read(out, (size_t)n * k, out_dtype);
        twin_near(got, want, (size_t)n * k, out_dtype == DT_BF16 ? 6e-3 : 1e-5, "segments");
        if (received != NULL) twin_near(received, part, n, 2e-5, "received");
        struct operand o = twin_operand(cpu, n, k, out_dtype);
        void *scratch = twin_alloc(cpu->ops->attention_scratch(cpu, heads, D, n, n));
        const struct segment_attention_args t = { .q = qkv, .k = qkv + k, .v = qkv + 2 * k, .ld = ld, .heads = heads, .D = D,
                                                  .scale = scale, .n_segs = 5, .seg_start = start, .out = &o,
                                                  .received = twin_received, .scratch = scratch };
        TWIN_OK(cpu->ops->segment_attention(cpu, &t, e));
        float *twin = twin_unpack(cpu, &o);
        cuda_near(got, twin, (size_t)n * k, out_dtype, out_dtype == DT_BF16 ? 6e-3 : 1e-5, "segments and the CPU's");
        if (received != NULL) cuda_near(received, twin_received, n, DT_F32, 2e-5, "received and the CPU's");
        free(received), free(lse), free(twin_received), free(part), free(start), free(tile);
        free(qkv), free(want), free(prob), free(out), free(got), free(o.data), free(scratch), free(twin);
    }
    struct err e = { 0 };
    const struct cuda_segment_attention_args odd = { .D = 258 };
    assert_int_equal(cuda_segment_attention(NULL, &odd, &e), E_ARG);
    cpu->ops->close(&cpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_segments) };
    return cmocka_run_group_tests_name("cuda segments", tests, NULL, NULL);
}
