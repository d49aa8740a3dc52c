/* tests/kernels/cuda_paged.h - sequences in pages of the CUDA layout: a pool full of NaN, page lists in random order, K and V
 * written in random pieces by cuda_kv_write. */
#ifndef TESTS_KERNELS_CUDA_PAGED_H
#define TESTS_KERNELS_CUDA_PAGED_H

#include "tests/kernels/cuda.h"

#define CUDA_SEQS 4

struct cuda_paged {
    uint32_t n_seqs, n_keys[CUDA_SEQS], n_pages, at[CUDA_SEQS];   /* at: where a sequence begins in `page` */
    struct cuda_pages pages;
    uint32_t *page;
    float *kv[CUDA_SEQS];         /* [n_keys, 2 G D] as given */
};

static inline uint32_t cuda_pages_of(uint32_t rows) { return (rows + CUDA_PAGE_TOKENS - 1) / CUDA_PAGE_TOKENS; }

/* Value c of K (kind 0) or V (kind 1) of a row, by the words of kernels.h. */
TWIN float cuda_paged_value(const struct cuda_paged *p, uint32_t s, uint32_t row, uint32_t kind, uint32_t g, uint32_t c)
{
    const size_t size = dtype_size(p->pages.dtype), each = 128 / size, bands = (p->pages.D + each - 1) / each, token = row % 64;
    const char *at = (const char *)p->pages.base + p->page[p->at[s] + row / 64] * p->pages.page_bytes;
    at += ((kind * p->pages.G + g) * bands + c / each) * 64 * 128 + token * 128;
    at += (c % each * size / 16 ^ token % 8) * 16 + c * size % 16;
    float f;
    if (size == 2) return bf16_to_f32(*(const bf16 *)at);
    memcpy(&f, at, sizeof f);
    return f;
}

/* Batch rows of sequence s: seq_start[s] .. seq_start[s + 1], behind `begin[s]` rows that are there. */
TWIN void cuda_paged_write(struct cuda_paged *p, const float *kv, const uint32_t *begin, const uint32_t *n, const float *cos_,
                           const float *sin_, const uint32_t *row)
{
    struct cuda_seq *seq = twin_alloc(CUDA_SEQS * sizeof *seq);
    struct cuda_kv_item *item = twin_alloc(p->n_pages * sizeof *item);
    uint32_t n_items = 0, rows = 0;
    for (uint32_t s = 0; s < p->n_seqs; s++) {
        seq[s] = (struct cuda_seq){ rows, n[s], begin[s], p->at[s] };
        rows += n[s];
        for (uint32_t i = begin[s] / 64; n[s] > 0 && i <= (begin[s] + n[s] - 1) / 64; i++)
            item[n_items++] = (struct cuda_kv_item){ s, i };
    }
    const struct cuda_kv_write_args a = { kv, (size_t)2 * p->pages.G * p->pages.D, cos_, sin_, row, p->pages, seq, p->page, item, n_items };
    TWIN_OK(cuda_kv_write(NULL, &a, e));
    free(item), free(seq);
}

TWIN struct cuda_paged cuda_paged_new(uint32_t n_seqs, const uint32_t *n_keys, uint32_t G, uint32_t D, enum dtype dtype)
{
    struct cuda_paged p = { .n_seqs = n_seqs, .pages = { NULL, cuda_page_bytes(G, D, dtype), G, D, dtype } };
    uint32_t used = 0, begin[CUDA_SEQS] = { 0 }, left = 0;
    for (uint32_t s = 0; s < n_seqs; s++) {
        p.n_keys[s] = n_keys[s];
        p.at[s] = used;
        used += cuda_pages_of(n_keys[s]);
        left += n_keys[s];
        p.kv[s] = twin_random_floats((size_t)n_keys[s] * 2 * G * D);
    }
    p.n_pages = used + 2;
    p.page = twin_alloc(p.n_pages * sizeof *p.page);
    for (uint32_t i = 0; i < p.n_pages; i++) {
        const uint32_t j = twin_below(i + 1);
        p.page[i] = p.page[j];
        p.page[j] = i;
    }
    p.pages.base = twin_alloc(p.n_pages * p.pages.page_bytes);
    while (left > 0) {
        uint32_t n[CUDA_SEQS] = { 0 }, rows = 0;
        const size_t width = (size_t)2 * G * D;
        float *kv = twin_floats(left * width);
        for (uint32_t s = 0; s < n_seqs; s++) {
            n[s] = twin_below(2) ? n_keys[s] - begin[s] : twin_below(n_keys[s] - begin[s] + 1);
            memcpy(kv + rows * width, p.kv[s] + begin[s] * width, n[s] * width * sizeof *kv);
            rows += n[s];
        }
        cuda_paged_write(&p, kv, begin, n, NULL, NULL, NULL);
        for (uint32_t s = 0; s < n_seqs; s++) begin[s] += n[s];
        left -= rows;
        free(kv);
    }
    return p;
}

TWIN void cuda_paged_free(struct cuda_paged *p)
{
    for (uint32_t s = 0; s < p->n_seqs; s++) free(p->kv[s]);
    free(p->page), free(p->pages.base);
}

#endif
