/* prune/random.c - a random choice before the decoder: what any method must beat at an equal budget. */
#include <stdlib.h>

#include "prune/policies.h"

enum { RETENTION, SEED };
static const struct prune_param PARAMS[] = {
    [RETENTION] = { "retention", "R", PARAM_NUMBER, 0, 1, 0.3, "share kept, floor(R n) tokens at every layer" },
    [SEED] = { "seed", NULL, PARAM_INTEGER, 0, 9007199254740992.0, 0, "same seed, same choice" },
};

/* Nothing may empty a request: the first AV token stays where the share rounds to none. */
static uint32_t kept_of(const struct policy_params *p, uint32_t n)
{
    const uint32_t k = prune_floor(p->value[RETENTION] * (double)n);
    return k == 0 && n > 0 ? 1 : k;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out, struct err *e)
{
    (void)e;
    out->n_entry = kept_of(p, out->n_orig);
    for (uint32_t l = 0; l <= s->n_layers; l++) out->alive[l] = out->n_entry;
    return OK;
}

static uint64_t hash(uint64_t seed, uint64_t i)
{
    uint64_t z = (seed ^ 0x5851f42d4c957f2du) + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct drawn { uint64_t key; uint32_t index; };

static int by_key(const void *pa, const void *pb)
{
    const struct drawn *a = pa, *b = pb;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return (a->index > b->index) - (a->index < b->index);
}

static int ascending(const void *pa, const void *pb)
{
    const uint32_t a = *(const uint32_t *)pa, b = *(const uint32_t *)pb;
    return (a > b) - (a < b);
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out, struct err *e)
{
    const uint32_t n = out->n_keep, k = kept_of(r->params, n);
    struct drawn *d = malloc(n * sizeof *d);
    (void)v;
    if (d == NULL) return err_set(e, E_NOMEM, "out of memory: %zu bytes", n * sizeof *d);
    for (uint32_t i = 0; i < n; i++) d[i] = (struct drawn){ hash((uint64_t)r->params->value[SEED], i), out->keep[i] };
    qsort(d, n, sizeof *d, by_key);
    for (uint32_t i = 0; i < k; i++) out->keep[i] = d[i].index;
    qsort(out->keep, k, sizeof *out->keep, ascending);
    out->n_keep = k;
    free(d);
    return OK;
}

const struct policy policy_random = { .name = "random", .citation = "baseline", .help = "A random share before layer 0.",
                                      .param = PARAMS, .n_param = sizeof PARAMS / sizeof *PARAMS, .plan = plan,
                                      .embed = embed };
