/* kernels/cpu/rope.c - rotary positions, and K and V rows on their way into pages. Layout of pages: attention.h. */
#include "kernels/cpu/attention.h"

#define FEW_FLOATS 8192             /* under this a second thread costs more than it brings */

size_t cpu_page_bytes(const struct stream *st, uint32_t G, uint32_t D, enum dtype dtype)
{
    return G * cpu_heads_of(cpu_stream_of(st), D, dtype, 1.0f).head_bytes;
}

/* Run `job` on all threads, or on this one where there is little to do. */
static void run(const struct cpu_stream *st, bool few, threads_job job, void *arg)
{
    if (few) job(arg, 0, 1);
    else threads_run(st->threads, job, arg);
}

/* ---- rope -------------------------------------------------------------------------------------------------- */

struct rope_job {
    const struct cpu_stream *st;
    const struct rope_args *a;
};

static void rope_rows(void *arg, int thread, int n_threads)
{
    const struct rope_job *j = arg;
    const struct rope_args *a = j->a;
    const uint32_t first = (uint32_t)((uint64_t)a->n * (uint32_t)thread / (uint32_t)n_threads);
    const uint32_t last = (uint32_t)((uint64_t)a->n * ((uint32_t)thread + 1) / (uint32_t)n_threads);
    for (uint32_t i = first; i < last; i++) {
        const size_t at = (size_t)(a->row != NULL ? a->row[i] : i) * (a->D / 2);
        for (uint32_t h = 0; h < a->heads; h++) {
            float *x = a->x + i * a->ldx + (size_t)h * a->D;
            j->st->isa->attention->rotate(x, a->cos + at, a->sin + at, a->D, x);
        }
    }
}

status cpu_rope(struct stream *stream, const struct rope_args *a, struct err *e)
{
    const struct cpu_stream *st = cpu_stream_of(stream);
    TRY(cpu_heads_check(a->D, 1, 1, DT_F32, e));
    struct rope_job j = { st, a };
    run(st, (size_t)a->n * a->heads * a->D < FEW_FLOATS, rope_rows, &j);
    return OK;
}

/* ---- pages ------------------------------------------------------------------------------------------------- */

struct write_job {
    const struct cpu_stream *st;
    const struct kv_write_args *a;
    struct cpu_heads heads;
};

/* Batch rows i0 .. i0 + n of one sequence into slots of one page. */
static void write_page(const struct write_job *j, uint32_t i0, uint32_t n, uint32_t slot, char *page)
{
    const struct kv_write_args *a = j->a;
    const uint32_t G = a->shape.G, D = j->heads.D;
    if (slot == 0) memset(page, 0, a->shape.page_bytes);
    for (uint32_t g = 0; g < G; g++) {
        float rotated[CPU_PAGE_TOKENS * CPU_HEAD_MAX];
        const float *k = a->kv + i0 * a->ldkv + (size_t)g * D, *v = k + (size_t)G * D;
        size_t ld_k = a->ldkv;
        if (a->cos != NULL) {
            for (uint32_t i = 0; i < n; i++) {
                const size_t at = (size_t)(a->row != NULL ? a->row[i0 + i] : i0 + i) * (D / 2);
                j->st->isa->attention->rotate(k + i * a->ldkv, a->cos + at, a->sin + at, D, rotated + (size_t)i * D);
            }
            k = rotated;
            ld_k = D;
        }
        j->st->isa->attention->store(&j->heads, k, ld_k, v, a->ldkv, n, slot, page + g * j->heads.head_bytes);
    }
}

/* Sequences in turn; their pages are dealt to the threads. */
static void write_pages(void *arg, int thread, int n_threads)
{
    const struct write_job *j = arg;
    const struct kv_write_args *a = j->a;
    uint32_t turn = 0;
    for (uint32_t s = 0; s < a->n_seqs; s++) {
        const uint32_t first = a->seq_start[s], end = a->seq_start[s + 1];
        for (uint32_t i = first; i < end; turn++) {
            const uint32_t at = a->kv_start[s] + (i - first), slot = at % CPU_PAGE_TOKENS;
            const uint32_t room = CPU_PAGE_TOKENS - slot, n = end - i < room ? end - i : room;
            if (turn % (uint32_t)n_threads == (uint32_t)thread)
                write_page(j, i, n, slot,
                           (char *)a->shape.base + a->view[s].page[at / CPU_PAGE_TOKENS] * a->shape.page_bytes);
            i += n;
        }
    }
}

status cpu_kv_write(struct stream *stream, const struct kv_write_args *a, struct err *e)
{
    const struct cpu_stream *st = cpu_stream_of(stream);
    TRY(cpu_heads_check(a->shape.D, a->shape.G, a->shape.G, a->shape.dtype, e));
    struct write_job j = { .st = st, .a = a, .heads = cpu_heads_of(st, a->shape.D, a->shape.dtype, 1.0f) };
    const uint32_t n = a->n_seqs > 0 ? a->seq_start[a->n_seqs] - a->seq_start[0] : 0;
    run(st, (size_t)n * a->shape.G * a->shape.D < FEW_FLOATS, write_pages, &j);
    return OK;
}
