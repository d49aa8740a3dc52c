/* kernels/cpu/rope.c - rotary positions, and K and V rows on their way into pages. Layout of pages:
 * attention.h. */
#include "kernels/cpu/attention.h"

#define FEW_FLOATS 8192 /* floats of one piece of work */

size_t cpu_page_bytes(const struct stream *st, uint32_t G, uint32_t D, enum dtype dtype)
{
    return G * cpu_heads_of(cpu_stream_of(st), D, dtype, 1.0f).head_bytes;
}

/* ---- rope ---------------------------------------------------------------------------------------------- */

struct rope_job {
    const struct cpu_stream *st;
    const struct rope_args *a;
};

static void rope_rows(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct rope_job *j = arg;
    const struct rope_args *a = j->a;
    for (uint32_t i = begin; i < end; i++) {
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
    cpu_for(stream, a->n, FEW_FLOATS / (a->heads * a->D + 1) + 1, rope_rows, &j);
    return OK;
}

/* ---- pages --------------------------------------------------------------------------------------------- */

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
                j->st->isa->attention->rotate(k + i * a->ldkv, a->cos + at, a->sin + at, D,
                                              rotated + (size_t)i * D);
            }
            k = rotated;
            ld_k = D;
        }
        j->st->isa->attention->store(&j->heads, k, ld_k, v, a->ldkv, n, slot, page + g * j->heads.head_bytes);
    }
}

/* The pages that sequence s of the batch touches: the first in its view, and how many. */
static uint32_t touched(const struct kv_write_args *a, uint32_t s, uint32_t *first)
{
    const uint32_t begin = a->kv_start[s], n = a->seq_start[s + 1] - a->seq_start[s];
    *first = begin / CPU_PAGE_TOKENS;
    return n == 0 ? 0 : (begin + n - 1) / CPU_PAGE_TOKENS - *first + 1;
}

/* Pages begin .. end - 1 of all that are touched, sequence after sequence. */
static void write_pages(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct write_job *j = arg;
    const struct kv_write_args *a = j->a;
    for (uint32_t s = 0, at = 0; s < a->n_seqs && at < end; s++) {
        uint32_t first;
        const uint32_t n_pages = touched(a, s, &first), kv0 = a->kv_start[s],
                       kv1 = kv0 + a->seq_start[s + 1] - a->seq_start[s];
        for (uint32_t p = begin > at ? begin - at : 0; p < n_pages && at + p < end; p++) {
            const uint32_t page_row = (first + p) * CPU_PAGE_TOKENS, from = page_row > kv0 ? page_row : kv0;
            const uint32_t to = kv1 - page_row < CPU_PAGE_TOKENS ? kv1 : page_row + CPU_PAGE_TOKENS;
            write_page(j, a->seq_start[s] + from - kv0, to - from, from - page_row,
                       (char *)a->shape.base + a->view[s].page[first + p] * a->shape.page_bytes);
        }
        at += n_pages;
    }
}

status cpu_kv_write(struct stream *stream, const struct kv_write_args *a, struct err *e)
{
    const struct cpu_stream *st = cpu_stream_of(stream);
    TRY(cpu_heads_check(a->shape.D, a->shape.G, a->shape.G, a->shape.dtype, e));
    struct write_job j = { .st = st, .a = a, .heads = cpu_heads_of(st, a->shape.D, a->shape.dtype, 1.0f) };
    uint32_t n = 0, first;
    for (uint32_t s = 0; s < a->n_seqs; s++) n += touched(a, s, &first);
    cpu_for(stream, n, FEW_FLOATS / (CPU_PAGE_TOKENS * a->shape.G * a->shape.D) + 1, write_pages, &j);
    return OK;
}

/* One head's part of slot `from` of page src to slot `to` of page dst. */
static void move_slot(const struct cpu_heads *h, const char *src, uint32_t from, char *dst, uint32_t to)
{
    if (h->bf16) {
        const uint32_t *k = (const uint32_t *)src;
        uint32_t *ko = (uint32_t *)dst;
        for (uint32_t i = 0; i < h->D / 2; i++) ko[i * CPU_PAGE_TOKENS + to] = k[i * CPU_PAGE_TOKENS + from];
        const bf16 *v = (const bf16 *)(src + h->k_bytes) + (size_t)(from / 2) * h->Dv * 2 + from % 2;
        bf16 *vo = (bf16 *)(dst + h->k_bytes) + (size_t)(to / 2) * h->Dv * 2 + to % 2;
        for (uint32_t i = 0; i < h->Dv; i++) vo[2 * i] = v[2 * i];
        return;
    }
    const float *k = (const float *)src, *v = (const float *)(src + h->k_bytes) + (size_t)from * h->Dv;
    float *ko = (float *)dst, *vo = (float *)(dst + h->k_bytes) + (size_t)to * h->Dv;
    for (uint32_t i = 0; i < h->D; i++) ko[i * CPU_PAGE_TOKENS + to] = k[i * CPU_PAGE_TOKENS + from];
    memmove(vo, v, h->Dv * sizeof *vo);
}

static void clear_slot(const struct cpu_heads *h, char *page, uint32_t slot)
{
    if (h->bf16) {
        bf16 *v = (bf16 *)(page + h->k_bytes) + (size_t)(slot / 2) * h->Dv * 2 + slot % 2;
        for (uint32_t i = 0; i < h->D / 2; i++) ((uint32_t *)page)[i * CPU_PAGE_TOKENS + slot] = 0;
        for (uint32_t i = 0; i < h->Dv; i++) v[2 * i] = (bf16){ 0 };
        return;
    }
    for (uint32_t i = 0; i < h->D; i++) ((float *)page)[i * CPU_PAGE_TOKENS + slot] = 0;
    memset((float *)(page + h->k_bytes) + (size_t)slot * h->Dv, 0, h->Dv * sizeof(float));
}

struct compact_job { const struct kv_compact_args *a; struct cpu_heads heads; };

/* Heads begin .. end - 1 of all views, view after view: a head's rows move in order, so that none is overwritten unread. */
static void compact_heads(void *arg, int thread, uint32_t begin, uint32_t end)
{
    (void)thread;
    const struct compact_job *j = arg;
    const struct kv_compact_args *a = j->a;
    for (uint32_t i = begin; i < end; i++) {
        const uint32_t v = i / a->shape.G, n = a->n[v];
        const uint32_t *page = a->view[v].page;
        char *base = (char *)a->shape.base + (i % a->shape.G) * j->heads.head_bytes;
        for (uint32_t k = 0; k < n; k++) {
            const uint32_t from = a->row[v][k];
            if (from == k) continue;
            move_slot(&j->heads, base + page[from / CPU_PAGE_TOKENS] * a->shape.page_bytes, from % CPU_PAGE_TOKENS,
                      base + page[k / CPU_PAGE_TOKENS] * a->shape.page_bytes, k % CPU_PAGE_TOKENS);
        }
        for (uint32_t k = n; k % CPU_PAGE_TOKENS != 0; k++)
            clear_slot(&j->heads, base + page[k / CPU_PAGE_TOKENS] * a->shape.page_bytes, k % CPU_PAGE_TOKENS);
    }
}

status cpu_kv_compact(struct stream *stream, const struct kv_compact_args *a, struct err *e)
{
    const struct cpu_stream *st = cpu_stream_of(stream);
    TRY(cpu_heads_check(a->shape.D, a->shape.G, a->shape.G, a->shape.dtype, e));
    struct compact_job j = { .a = a, .heads = cpu_heads_of(st, a->shape.D, a->shape.dtype, 1.0f) };
    cpu_for(stream, a->n_views * a->shape.G, 1, compact_heads, &j);
    return OK;
}
