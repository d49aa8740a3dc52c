/* tests/bench/pool.c - see pool.h. */
#include "tests/bench/pool.h"

static status pool_weight(void *self, enum decoder_role role, uint32_t l, struct weight_args *a, struct err *e)
{
    (void)e;
    const struct bench_pool *p = self;
    const struct decoder_shape *s = p->shape;
    const uint32_t q = s->H * s->D, kv = s->G * s->D;
    const struct { uint32_t k, n[2]; enum weight_form form; bool bias; } of[] = {
        [DEC_QKV_Q] = { s->d, { q }, WEIGHT_PLAIN, true },     [DEC_QKV_KV] = { s->d, { kv, kv }, WEIGHT_PLAIN, true },
        [DEC_O] = { q, { s->d }, WEIGHT_PLAIN, false },        [DEC_GATE_UP] = { s->d, { s->ff, s->ff }, WEIGHT_SWIGLU, false },
        [DEC_DOWN] = { s->ff, { s->d }, WEIGHT_PLAIN, false }, [DEC_EMBED] = { s->d, { s->V }, WEIGHT_PLAIN, false },
        [DEC_LM_HEAD] = { s->d, { s->V }, WEIGHT_PLAIN, false } };
    a->form = of[role].form;
    a->k = of[role].k;
    a->n_parts = of[role].n[1] ? 2 : 1;
    size_t at = ((size_t)l * 7 + role) * 1000003;
    for (uint32_t i = 0; i < a->n_parts; i++) {
        const size_t size = (size_t)of[role].n[i] * a->k;
        at = size == p->n ? 0 : at % (p->n - size);
        a->part[i] = (struct weight_part){ p->values + at, DT_BF16, of[role].n[i], of[role].bias ? p->values : NULL, DT_BF16 };
        at += size;
    }
    return OK;
}

static status pool_norm(void *self, enum decoder_role role, uint32_t l, float *out, struct err *e)
{
    (void)role, (void)l, (void)e;
    const struct bench_pool *p = self;
    for (uint32_t i = 0; i < p->shape->d; i++) out[i] = 1.0f;
    return OK;
}

struct decoder_source bench_pool_source(struct bench_pool *p)
{
    return (struct decoder_source){ .weight = pool_weight, .norm = pool_norm, .self = p };
}
