/* prune/aim.c - AIM: neighbours of a grid step become their mean before the decoder; in its second half the least important AV
 * tokens go, by PageRank over attention. Source: arXiv 2412.03248; docs/pruning-methods.md 7.2. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { ROUNDS, L1 };
static const struct prune_param PARAMS[] = {
    [ROUNDS] = { "rounds", NULL, PARAM_INTEGER, 0, 30, 2, "times that a step's tokens are halved by merging",
                 NULL },
    [L1] = { "l1", NULL, PARAM_INTEGER, 0, 4096, NAN,
             "first layer, from 0, after which tokens go; not set: the middle", NULL },
};

static uint32_t first_layer(const struct policy_params *p, uint32_t L)
{
    return isnan(p->value[L1]) ? L / 2 : (uint32_t)p->value[L1];
}

static uint32_t merged(uint32_t n, uint32_t rounds)
{
    for (; rounds > 0; rounds--) n -= n / 2;
    return n;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const uint32_t L = s->n_layers, l1 = first_layer(p, L), rounds = (uint32_t)p->value[ROUNDS];
    uint32_t n = 0;
    bool merges = false;
    for (uint32_t i = 0; i < s->n_items; i++) {
        n += s->item[i].n_audio + s->item[i].steps * merged(s->item[i].step_tokens, rounds);
        merges = merges || (rounds && prune_item_vision(&s->item[i]));
    }
    prune_plan_entry(out, n);
    for (uint32_t l = l1; l < L; l++) {
        out->alive[l + 1] = prune_floor(n * fmax(0, 1 - (l - l1 + 1) / 8.0));
        out->selects[l] = out->alive[l + 1] < out->alive[l];
    }
    out->needs =
        (merges ? PRUNE_NEEDS_EMBEDDINGS | PRUNE_NEEDS_MERGES : 0u) | (l1 < L ? PRUNE_NEEDS_PAGERANK : 0u);
    return OK;
}

/* ---- merging ---------------------------------------------------------------------------------------------- */

/* What a token has become; [n_vision] in the order of the list. */
struct merging {
    float *x, *y;    /* [n_vision, d] device: embeddings now; of one round's destinations */
    uint32_t *owner; /* the slot that holds it */
    double *w;       /* its weight there */
    uint32_t *alive; /* slots left, step by step, ascending */
    uint32_t *start; /* [n_steps + 1] of alive */
    uint32_t *source, *dest, *s_start, *d_start, *which; /* slots of one round; which: place in dest */
    float *best;
    uint32_t *into;  /* [n_vision] destination of a slot, or itself */
    uint32_t *count; /* [n_vision] sources of a destination */
    float *half;
};

/* Even places of each step are sources, odd ones destinations. */
static void split(const struct av_groups *g, struct merging *m)
{
    uint32_t n_s = 0, n_d = 0;
    for (uint32_t s = 0; s < g->n_steps; s++) {
        m->s_start[s] = n_s, m->d_start[s] = n_d;
        for (uint32_t i = m->start[s]; i < m->start[s + 1]; i++)
            if ((i - m->start[s]) % 2)
                m->dest[n_d++] = m->alive[i];
            else
                m->source[n_s++] = m->alive[i];
    }
    m->s_start[g->n_steps] = n_s, m->d_start[g->n_steps] = n_d;
}

/* Sources of step s that merge: the n div 2 with the best pairs. */
static status pair_up(struct choice *c, struct merging *m, uint32_t s, struct err *e)
{
    const uint32_t from = m->s_start[s], n = m->s_start[s + 1] - from, r = m->d_start[s + 1] - m->d_start[s];
    if (r == 0) return OK;
    for (uint32_t i = 0; i < n; i++) c->score[i] = m->best[from + i];
    TRY(choose_pick(c, n, r, e));
    for (uint32_t i = 0; i < r; i++) {
        const uint32_t at = from + c->kept[i], d = m->dest[m->which[at]];
        m->into[m->source[at]] = d;
        m->count[d]++;
    }
    return OK;
}

/* Every destination becomes the mean of itself and its sources. */
static status average(struct choice *c, struct merging *m, uint32_t *n_left, struct err *e)
{
    const struct av_groups *g = &c->g;
    const uint32_t n_dest = m->d_start[g->n_steps], n_source = m->s_start[g->n_steps];
    uint32_t *dst = c->list[0], *start = c->list[1], *src = c->list[2], *at = c->list[3], n = 0, sum = 0;
    for (uint32_t i = 0; i < n_dest; i++) {
        const uint32_t d = m->dest[i];
        if (m->count[d] == 0) continue;
        at[d] = n;
        dst[n] = d;
        start[n] = sum;
        m->half[n++] = (float)(1.0 / (m->count[d] + 1));
        sum += m->count[d];
    }
    start[n] = sum;
    float *w = c->score;
    uint32_t *fill = m->which; /* no longer needed */
    for (uint32_t i = 0; i < n; i++) fill[i] = start[i];
    for (uint32_t i = 0; i < n_source; i++) {
        const uint32_t d = m->into[m->source[i]];
        if (d == m->source[i]) continue;
        w[fill[at[d]]] = m->half[at[d]];
        src[fill[at[d]]++] = m->source[i];
    }
    TRY(c->ops->merge(c->v->st,
                      &(struct merge_args){ .x = m->x,
                                            .d = c->v->d,
                                            .n = n,
                                            .dst = dst,
                                            .c0 = m->half,
                                            .start = start,
                                            .src = src,
                                            .w = w,
                                            .y = m->y },
                      e));
    TRY(c->ops->scatter(c->v->st,
                        &(struct scatter_args){ .x = m->y, .row = dst, .n = n, .d = c->v->d, .y = m->x }, e));
    for (uint32_t i = 0; i < g->n_vision; i++) {
        const uint32_t d = m->into[m->owner[i]];
        m->owner[i] = d;
        if (m->count[d]) m->w[i] /= m->count[d] + 1;
    }
    *n_left = 0;
    for (uint32_t s = 0; s < g->n_steps; s++) {
        const uint32_t from = m->start[s], end = m->start[s + 1];
        m->start[s] = *n_left;
        for (uint32_t i = from; i < end; i++)
            if (m->into[m->alive[i]] == m->alive[i]) m->alive[(*n_left)++] = m->alive[i];
    }
    m->start[g->n_steps] = *n_left;
    return OK;
}

static status one_round(struct choice *c, struct merging *m, struct err *e)
{
    const struct av_groups *g = &c->g;
    uint32_t n_left;
    split(g, m);
    TRY(c->ops->nearest(c->v->st,
                        &(struct nearest_args){ .x = { m->x, c->v->d, g->n_steps, m->s_start, m->source },
                                                .y = { m->x, c->v->d, g->n_steps, m->d_start, m->dest },
                                                .best = m->best,
                                                .which = m->which,
                                                .scratch = c->pair },
                        e));
    for (uint32_t i = 0; i < g->n_vision; i++) m->into[i] = i, m->count[i] = 0;
    for (uint32_t s = 0; s < g->n_steps; s++) TRY(pair_up(c, m, s, e));
    return average(c, m, &n_left, e);
}

/* The merges in weights of what came in. Slots are places of the vision list. */
static status report(struct choice *c, const struct merging *m, struct err *e)
{
    const struct av_groups *g = &c->g;
    uint32_t *start = c->list[0], *list = c->list[1];
    for (uint32_t i = 0; i <= g->n_vision; i++) start[i] = 0;
    for (uint32_t i = 0; i < g->n_vision; i++) start[m->owner[i] + 1]++;
    for (uint32_t i = 0; i < g->n_vision; i++) start[i + 1] += start[i];
    for (uint32_t i = 0; i < g->n_vision; i++)
        list[start[m->owner[i]]++] = i; /* start[i] is now the end of slot i */
    for (uint32_t d = 0; d < g->n_vision; d++) {
        const uint32_t from = d ? start[d - 1] : 0;
        if (start[d] == from) continue;
        c->keep[g->vision[d]] = 1;
        if (start[d] - from == 1) continue;
        TRY(choose_merge_into(c, g->vision[d], (float)m->w[d], e));
        for (uint32_t k = from; k < start[d]; k++)
            if (list[k] != d) TRY(choose_merge_from(c, g->vision[list[k]], (float)m->w[list[k]], e));
    }
    return OK;
}

static status rounds(struct choice *c, struct merging *m, struct err *e)
{
    const struct av_groups *g = &c->g;
    TRY(c->ops->gather(
        c->v->st,
        &(struct gather_args){
            .x = c->v->vision, .row = g->vision_row, .n = g->n_vision, .d = c->v->d, .y = m->x },
        e));
    for (uint32_t i = 0; i < g->n_vision; i++) m->owner[i] = m->alive[i] = i, m->w[i] = 1;
    for (uint32_t s = 0; s < g->n_steps; s++) m->start[s] = g->step[s].first;
    m->start[g->n_steps] = g->n_vision;
    for (uint32_t k = 0; k < (uint32_t)c->r->params->value[ROUNDS]; k++) TRY(one_round(c, m, e));
    return report(c, m, e);
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    struct merging m = { 0 };
    if (!(r->plan->needs & PRUNE_NEEDS_MERGES)) return OK;
    status st = choose_begin(&c, r, v, out, e);
    const size_t n = c.g.n_vision, steps = (size_t)c.g.n_steps + 1;
    if (st == OK) st = c.ops->alloc(v->st, 2 * n * v->d * sizeof(float), (void **)&m.x, e);
    if (st == OK) st = mem_alloc(&m.owner, 7 * n + 3 * steps, sizeof *m.owner, e);
    if (st == OK) st = mem_alloc(&m.w, n, sizeof *m.w, e);
    if (st == OK) st = mem_alloc(&m.best, 2 * n, sizeof *m.best, e);
    if (st == OK) {
        m.y = m.x + n * v->d, m.half = m.best + n;
        m.alive = m.owner + n, m.source = m.alive + n, m.dest = m.source + n, m.which = m.dest + n,
        m.into = m.which + n;
        m.count = m.into + n, m.start = m.count + n, m.s_start = m.start + steps,
        m.d_start = m.s_start + steps;
        choose_all(&c, c.g.audio, c.g.n_audio);
        st = rounds(&c, &m, e);
    }
    if (c.ops) c.ops->release(v->st, m.x);
    free(m.owner);
    free(m.w);
    free(m.best);
    return choose_end(&c, st, e);
}

static status layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                    struct prune_selection *out, struct err *e)
{
    return layer_best(r, v, v->score, KINDS_AV, r->plan->alive[l + 1], out, e);
}

const struct policy policy_aim = {
    .name = "aim",
    .citation = "Zhong et al., AIM, arXiv 2412.03248 (ICCV 2025)",
    .help = "Merges alike tokens of a grid step; later layers drop by PageRank of attention.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .plan = plan,
    .embed = embed,
    .layer = layer
};
