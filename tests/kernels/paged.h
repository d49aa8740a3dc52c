/* tests/kernels/paged.h - sequences in pages for the tests of attention: a pool full of NaN, page lists in
 * random order, K and V written in random pieces, and attention in double to compare with. */
#ifndef TESTS_KERNELS_PAGED_H
#define TESTS_KERNELS_PAGED_H

#include "tests/kernels/twin.h"

#define PAGED_SEQS 4

/* K and V rows of a few sequences, as f32 and in the pages of a stream. */
struct paged {
    uint32_t n_seqs, n_keys[PAGED_SEQS];
    struct kv_shape shape;
    struct kv_view view[PAGED_SEQS];
    uint32_t *page[PAGED_SEQS];
    float *kv[PAGED_SEQS]; /* [n_keys, 2 G D] as given; pages of bf16 hold them rounded */
    uint32_t n_pages;
};

/* Write rows [begin[s], begin[s] + n[s]) of all sequences. */
TWIN void paged_write(struct stream *st, struct paged *p, const uint32_t *begin, const uint32_t *n)
{
    const size_t width = 2 * (size_t)p->shape.G * p->shape.D;
    uint32_t seq_start[PAGED_SEQS + 1] = { 0 };
    for (uint32_t s = 0; s < p->n_seqs; s++) seq_start[s + 1] = seq_start[s] + n[s];
    float *kv = twin_floats((size_t)seq_start[p->n_seqs] * width);
    for (uint32_t s = 0; s < p->n_seqs; s++)
        memcpy(kv + seq_start[s] * width, p->kv[s] + begin[s] * width, n[s] * width * sizeof *kv);
    const struct kv_write_args a = { .kv = kv,
                                     .ldkv = width,
                                     .shape = p->shape,
                                     .n_seqs = p->n_seqs,
                                     .seq_start = seq_start,
                                     .kv_start = begin,
                                     .view = p->view };
    TWIN_OK(st->ops->kv_write(st, &a, e));
    free(kv);
}

/* Random K and V for n_keys[s] rows each, written in random pieces. */
TWIN struct paged paged_new(struct stream *st, uint32_t n_seqs, const uint32_t *n_keys, uint32_t G,
                            uint32_t D, enum dtype dtype)
{
    struct paged p = { .n_seqs = n_seqs };
    const uint32_t T = st->ops->page_tokens;
    for (uint32_t s = 0; s < n_seqs; s++) p.n_pages += (n_keys[s] + T - 1) / T + 1;
    p.shape = (struct kv_shape){ G, D, dtype, T, st->ops->page_bytes(st, G, D, dtype), NULL };
    TWIN_OK(st->ops->alloc(st, p.n_pages * p.shape.page_bytes, &p.shape.base, e));
    memset(p.shape.base, 0xff, p.n_pages * p.shape.page_bytes);
    uint32_t *order = calloc(p.n_pages, sizeof *order), next = 0, begin[PAGED_SEQS] = { 0 }, left = 0;
    for (uint32_t i = 0; i < p.n_pages; i++) {
        const uint32_t j = twin_below(i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (uint32_t s = 0; s < n_seqs; s++) {
        const uint32_t n_pages = (n_keys[s] + T - 1) / T;
        p.n_keys[s] = n_keys[s];
        p.page[s] = calloc(n_pages + 1, sizeof *order);
        memcpy(p.page[s], order + next, n_pages * sizeof *order);
        next += n_pages;
        p.view[s] = (struct kv_view){ p.page[s], n_keys[s] };
        p.kv[s] = twin_random_floats((size_t)n_keys[s] * 2 * G * D);
        left += n_keys[s];
    }
    while (left > 0) {
        uint32_t n[PAGED_SEQS] = { 0 };
        for (uint32_t s = 0; s < n_seqs; s++) {
            n[s] = twin_below(2) ? n_keys[s] - begin[s] : twin_below(n_keys[s] - begin[s] + 1);
            left -= n[s];
        }
        paged_write(st, &p, begin, n);
        for (uint32_t s = 0; s < n_seqs; s++) begin[s] += n[s];
    }
    free(order);
    return p;
}

TWIN void paged_free(struct stream *st, struct paged *p)
{
    for (uint32_t s = 0; s < p->n_seqs; s++) free(p->page[s]), free(p->kv[s]);
    st->ops->release(st, p->shape.base);
}

/* The value that pages hold, and that a query takes part with: rounded only where the machine multiplies
 * bf16. */
TWIN double paged_k(const struct paged *p, uint32_t s, uint32_t j, uint32_t g, uint32_t c)
{
    const float x = p->kv[s][((size_t)j * 2 * p->shape.G + g) * p->shape.D + c];
    return p->shape.dtype == DT_BF16 ? twin_round_bf16(x) : x;
}
TWIN double paged_v(const struct paged *p, uint32_t s, uint32_t j, uint32_t g, uint32_t c)
{
    return paged_k(p, s, j, g + p->shape.G, c);
}
TWIN bool paged_rounds(const char *isa, enum dtype dtype)
{
    return dtype == DT_BF16 && strcmp(isa, "avx512-bf16") == 0;
}

/* Probabilities [visible] of query row q [D] over sequence s, in double. */
TWIN void paged_softmax(const struct paged *p, uint32_t s, uint32_t g, const float *q, bool round_q,
                        float scale, uint32_t visible, double *prob)
{
    double top = -INFINITY, sum = 0.0;
    for (uint32_t j = 0; j < visible; j++) {
        double x = 0.0;
        for (uint32_t c = 0; c < p->shape.D; c++)
            x += (round_q ? twin_round_bf16(q[c]) : q[c]) * paged_k(p, s, j, g, c);
        prob[j] = x * scale;
        if (prob[j] > top) top = prob[j];
    }
    for (uint32_t j = 0; j < visible; j++) sum += prob[j] = exp(prob[j] - top);
    for (uint32_t j = 0; j < visible; j++) prob[j] /= sum;
}

#endif
