/* tests/kernels/test_cuda_pages.c - kernels/cuda/pages.cu on the CPU (simt.h): rope against the CPU's op, pages against the
 * words that say where a value lies (kernels.h), writes in random pieces into random pages that begin as NaN. */
#include "tests/kernels/cuda_paged.h"

static struct stream *cpu;

static void test_rope(void **state)
{
    (void)state;
    twin_seed("rope");
    for (uint32_t v = 0; v < 12; v++) {
        const uint32_t D = v < 6 ? 128 : v < 9 ? 80 : 2 * (1 + twin_below(40)), heads = 1 + twin_below(8), n = 1 + twin_below(9);
        const size_t ldx = heads * D + twin_below(2) * 16, size = n * ldx;
        float *x = twin_random_floats(size), *want = cuda_copy(x, size * sizeof *x);
        float *c = twin_random_floats(20 * D / 2), *s = twin_random_floats(20 * D / 2);
        uint32_t *row = twin_alloc(9 * sizeof *row);
        for (uint32_t i = 0; i < n; i++) row[i] = twin_below(20);
        const struct cuda_rope_args a = { x, ldx, n, heads, D, c, s, v % 2 ? row : NULL };
        TWIN_OK(cuda_rope(NULL, &a, e));
        const struct rope_args t = { want, ldx, n, heads, D, c, s, v % 2 ? row : NULL };
        TWIN_OK(cpu->ops->rope(cpu, &t, e));
        cuda_near(x, want, size, DT_F32, 3e-7, "rope");
        free(x), free(want), free(c), free(s), free(row);
    }
}

/* What lies behind the last row of a page is 0, whatever was there. */
static void check_tail(const struct cuda_paged *p, uint32_t s, uint32_t rows)
{
    for (uint32_t row = rows; row % 64 != 0; row++)
        for (uint32_t x = 0; x < 2 * p->pages.G * p->pages.D; x++)
            if (cuda_paged_value(p, s, row, x % 2, x / 2 % p->pages.G, x / 2 / p->pages.G) != 0)
                fail_msg("row %u of sequence %u, behind the last, is not clear", row, s);
}

static void test_write(void **state)
{
    (void)state;
    twin_seed("write");
    static const uint32_t lengths[][3] = { { 1, 63, 64 }, { 65, 127, 2 }, { 128, 0, 200 }, { 129, 300, 64 } };
    for (uint32_t v = 0; v < 16; v++) {
        const uint32_t D = v % 4 == 0 ? 128 : v % 4 == 1 ? 64 : v % 4 == 2 ? 24 : 96, G = 1 + twin_below(4);
        const enum dtype dtype = v / 4 % 2 ? DT_F32 : DT_BF16;
        struct cuda_paged p = cuda_paged_new(3, lengths[(v + v / 4) % 4], G, D, dtype);
        for (uint32_t s = 0; s < 3; s++) {
            for (uint32_t i = 0; i < p.n_keys[s]; i++)
                for (uint32_t x = 0; x < 2 * G * D; x++) {
                    const float want = p.kv[s][(size_t)i * 2 * G * D + x];
                    const float got = cuda_paged_value(&p, s, i, x / (G * D), x / D % G, x % D);
                    if (got != (dtype == DT_BF16 ? twin_round_bf16(want) : want))
                        fail_msg("case %u: row %u of sequence %u, value %u: %.9g of %.9g", v, i, s, x, (double)got, (double)want);
                }
            check_tail(&p, s, p.n_keys[s]);
        }
        cuda_paged_free(&p);
    }
}

/* K is rotated by the angle of its row, V is not. */
static void test_write_rotated(void **state)
{
    (void)state;
    twin_seed("write rotated");
    for (uint32_t v = 0; v < 8; v++) {
        const uint32_t D = v % 4 == 0 ? 128 : v % 4 == 1 ? 64 : v % 4 == 2 ? 24 : 96, G = 1 + twin_below(3), width = 2 * G * D;
        const enum dtype dtype = v / 4 ? DT_F32 : DT_BF16;
        const uint32_t n[] = { 70, 3 }, none[] = { 0, 0 }, rows = 73;
        struct cuda_paged p = cuda_paged_new(2, n, G, D, dtype);
        float *kv = twin_random_floats((size_t)rows * width), *c = twin_random_floats(80 * D / 2), *s = twin_random_floats(80 * D / 2);
        uint32_t *row = twin_alloc(rows * sizeof *row);
        for (uint32_t i = 0; i < rows; i++) row[i] = twin_below(80);
        cuda_paged_write(&p, kv, none, n, c, s, row);
        const struct rope_args t = { kv, width, rows, G, D, c, s, row };
        TWIN_OK(cpu->ops->rope(cpu, &t, e));
        for (uint32_t i = 0; i < rows; i++)
            for (uint32_t x = 0; x < width; x++) {
                const double want = kv[(size_t)i * width + x];
                const double got = cuda_paged_value(&p, i >= 70, i % 70, x / (G * D), x / D % G, x % D);
                if (!(fabs(got - want) <= (dtype == DT_BF16 ? 0x1p-7 * fabs(want) : 0) + 3e-7))
                    fail_msg("case %u: row %u, value %u: %.9g, not %.9g", v, i, x, got, want);
            }
        cuda_paged_free(&p);
        free(kv), free(c), free(s), free(row);
    }
}

static void test_copy_and_compact(void **state)
{
    (void)state;
    twin_seed("copy and compact");
    for (uint32_t v = 0; v < 8; v++) {
        const uint32_t lengths[] = { 1 + twin_below(400), 64 * (1 + twin_below(4)) }, G = 1 + twin_below(2), D = v % 2 ? 128 : 24;
        struct cuda_paged p = cuda_paged_new(2, lengths, G, D, v / 2 % 2 ? DT_F32 : DT_BF16);
        /* the two pages that no sequence has become copies of the first of each */
        const uint32_t first[] = { p.page[p.at[0]], p.page[p.at[1]] }, *dst = p.page + p.n_pages - 2;
        uint32_t *src = cuda_copy(first, sizeof first);
        const struct cuda_page_copy_args copy = { p.pages, src, dst, 2 };
        TWIN_OK(cuda_page_copy(NULL, &copy, e));
        for (uint32_t i = 0; i < 2; i++)
            assert_memory_equal((char *)p.pages.base + src[i] * p.pages.page_bytes, (char *)p.pages.base + dst[i] * p.pages.page_bytes,
                                p.pages.page_bytes);
        /* survivors: all, every other, a few, none */
        struct cuda_seq *seq = twin_alloc(2 * sizeof *seq);
        uint32_t *row = twin_alloc((lengths[0] + lengths[1]) * sizeof *row), n = 0;
        for (uint32_t s = 0; s < 2; s++) {
            seq[s] = (struct cuda_seq){ .row = n, .keys = 0, .page = p.at[s] };
            for (uint32_t i = 0; i < lengths[s]; i++)
                if (v < 2 || (v < 4 ? i % 2 : v < 6 ? twin_below(5) == 0 : s == 0)) row[n++] = i;
            seq[s].n_rows = n - seq[s].row;
        }
        const struct cuda_kv_compact_args a = { p.pages, seq, p.page, row, 2 };
        TWIN_OK(cuda_kv_compact(NULL, &a, e));
        for (uint32_t s = 0; s < 2; s++) {
            for (uint32_t i = 0; i < seq[s].n_rows; i++)
                for (uint32_t x = 0; x < 2 * G * D; x++) {
                    const float want = p.kv[s][(size_t)row[seq[s].row + i] * 2 * G * D + x];
                    if (cuda_paged_value(&p, s, i, x / (G * D), x / D % G, x % D) !=
                        (p.pages.dtype == DT_BF16 ? twin_round_bf16(want) : want))
                        fail_msg("case %u: row %u of sequence %u is not what row %u was", v, i, s, row[seq[s].row + i]);
                }
            check_tail(&p, s, seq[s].n_rows);
        }
        cuda_paged_free(&p);
        free(row), free(src), free(seq);
    }
}

static int open_cpu(void **state)
{
    (void)state;
    cpu = twin_open(NULL, 1);
    return 0;
}
static int close_cpu(void **state)
{
    (void)state;
    cpu->ops->close(&cpu);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_rope), cmocka_unit_test(test_write), cmocka_unit_test(test_write_rotated),
                                        cmocka_unit_test(test_copy_and_compact) };
    return cmocka_run_group_tests_name("cuda pages", tests, open_cpu, close_cpu);
}
