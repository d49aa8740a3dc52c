/* prune/random.c - a random choice before the decoder: what any method must beat at an equal budget. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "prune/policies.h"

enum { RETENTION, SEED };
static const struct prune_param PARAMS[] = {
    [RETENTION] = { "retention", "R", PARAM_NUMBER, 0, 1, 0.3,
                    "share kept of each kind, floor(R n) tokens in all" },
    [SEED] = { "seed", NULL, PARAM_INTEGER, 0, 9007199254740992.0, 0, "same seed, same choice" },
};

/* Nothing may empty a request: one token stays where the share rounds to none. */
static uint32_t kept_of(const struct policy_params *p, uint32_t n)
{
    const uint32_t k = prune_floor(p->value[RETENTION] * (double)n);
    return k == 0 && n > 0 ? 1 : k;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
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

struct drawn {
    uint64_t key;
    uint32_t index;
};

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

/* Draw k of the n at `index`, ascending, to its front. */
static void draw(struct drawn *d, uint64_t seed, uint32_t *index, uint32_t n, uint32_t k)
{
    for (uint32_t i = 0; i < n; i++) d[i] = (struct drawn){ hash(seed, index[i]), index[i] };
    qsort(d, n, sizeof *d, by_key);
    for (uint32_t i = 0; i < k; i++) index[i] = d[i].index;
}

/* Each tower gives its share: floor(R n) of the audio, and of the rest what makes the sum floor(R n). */
static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    (void)v;
    const struct prompt *p = r->prompt;
    const uint32_t n = p->n_av, k = r->plan->n_entry;
    const uint64_t seed = (uint64_t)r->params->value[SEED];
    uint32_t k_audio = prune_floor(r->params->value[RETENTION] * (double)p->n_audio), n_audio = 0,
             n_vision = 0;
    if (p->n_vision == 0) k_audio = k;
    struct drawn *d;
    TRY(mem_alloc(&d, n, sizeof *d, e));
    for (uint32_t i = 0; i < n; i++)
        if (p->kind[p->av[i]] == TOKEN_AUDIO) out->keep[n_audio++] = p->av[i];
    uint32_t *vision = r->index;
    for (uint32_t i = 0; i < n; i++)
        if (p->kind[p->av[i]] != TOKEN_AUDIO) vision[n_vision++] = p->av[i];
    draw(d, seed, out->keep, n_audio, k_audio);
    draw(d, seed, vision, n_vision, k - k_audio);
    memcpy(out->keep + k_audio, vision, (k - k_audio) * sizeof *vision);
    qsort(out->keep, k, sizeof *out->keep, ascending);
    out->n_keep = k;
    free(d);
    return OK;
}

const struct policy policy_random = { .name = "random",
                                      .citation = "baseline",
                                      .help = "A random share before layer 0.",
                                      .param = PARAMS,
                                      .n_param = sizeof PARAMS / sizeof *PARAMS,
                                      .plan = plan,
                                      .embed = embed };
