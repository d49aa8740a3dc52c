/* prune/prumerge.c - LLaVA-PruMerge: of every grid step the outliers of attention stay, take in their nearest, and one token holds
 * the rest; PruMerge+ adds evenly spaced samples. Received attention and keys of the last full vision block stand in for those
 * of CLIP's CLS token. Source: arXiv 2403.15388; docs/pruning-methods.md 7.9. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { PLUS, CAP, NEAR };
static const struct prune_param PARAMS[] = {
    [PLUS] = { "plus", NULL, PARAM_BOOL, 0, 1, 0, "also evenly spaced samples (PruMerge+)", NULL },
    [CAP] = { "cap", NULL, PARAM_NUMBER, 0, 1, 0.3, "most of a grid step that stays", NULL },
    [NEAR] = { "near", NULL, PARAM_INTEGER, 0, 4096, 32, "nearest tokens, by keys, that one takes in", NULL },
};

static uint32_t cap_of(const struct policy_params *p, uint32_t n)
{
    return n == 0 ? 0 : prune_kept(p->value[CAP], n);
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    uint32_t n = 0;
    bool vision = false;
    for (uint32_t i = 0; i < s->n_items; i++) {
        n += s->item[i].n_audio + s->item[i].steps * cap_of(p, s->item[i].step_tokens);
        vision = vision || prune_item_vision(&s->item[i]) > 0;
    }
    prune_plan_entry(out, n);
    out->exact = !vision;
    out->needs = vision ? PRUNE_NEEDS_VISION_SALIENCY | PRUNE_NEEDS_VISION_KEYS | PRUNE_NEEDS_MERGES : 0;
    return OK;
}

/* One step's memory, [n] of its tokens. */
struct step_work {
    float *v, *sorted, *w, *cos; /* saliency, sorted, over its sum; cosines of keys */
    uint8_t *kept;
    uint32_t *a, *b;
};

static int ascending(const void *pa, const void *pb)
{
    const float a = *(const float *)pa, b = *(const float *)pb;
    return (a > b) - (a < b);
}

/* At place q (n - 1) of the sorted list, linearly between neighbours. */
static double quartile(const float *sorted, uint32_t n, double q)
{
    const double at = q * (n - 1);
    const uint32_t low = (uint32_t)at, high = low + 1 < n ? low + 1 : low;
    return sorted[low] + (at - low) * ((double)sorted[high] - sorted[low]);
}

/* Outliers above Q3 + 1.5 IQR; v without NaN. */
static uint32_t outliers(const struct step_work *s, uint32_t n)
{
    memcpy(s->sorted, s->v, n * sizeof *s->v);
    qsort(s->sorted, n, sizeof *s->sorted, ascending);
    const double q1 = quartile(s->sorted, n, 0.25), q3 = quartile(s->sorted, n, 0.75),
                 most = q3 + 1.5 * (q3 - q1);
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) count += s->v[i] > most;
    return count;
}

/* Marks in kept what stays as it is: outliers, then samples, at most cap - 1. */
static status mark(struct choice *c, const struct step_work *s, uint32_t n, struct err *e)
{
    const uint32_t all = outliers(s, n), room = cap_of(c->r->params, n) - 1;
    const uint32_t m = all < room ? all : room;
    uint32_t count = m;
    memset(s->kept, 0, n);
    for (uint32_t i = 0; i < n; i++) c->score[i] = s->v[i];
    TRY(choose_pick(c, n, m, e));
    for (uint32_t i = 0; i < m; i++) s->kept[c->kept[i]] = 1;
    if (c->r->params->value[PLUS] == 0) return OK;
    const uint32_t third = all ? n / all / 3 : n, by = third ? third : 1;
    for (uint32_t i = 0; i < n && count < room; i += by) {
        if (s->kept[i]) continue;
        s->kept[i] = 1;
        count++;
    }
    return OK;
}

struct near {
    float cos;
    uint32_t i;
};

static int nearest_first(const void *pa, const void *pb)
{
    const struct near *a = pa, *b = pb;
    if (a->cos != b->cos) return a->cos < b->cos ? 1 : -1;
    return (a->i > b->i) - (a->i < b->i);
}

static int by_place(const void *pa, const void *pb)
{
    const struct near *a = pa, *b = pb;
    return (a->i > b->i) - (a->i < b->i);
}

/* Token i of the step takes in its nearest others. */
static status take_near(struct choice *c, const struct step_work *s, const uint32_t *place,
                        const uint32_t *row, uint32_t n, uint32_t i, struct near *near, struct err *e)
{
    uint32_t m = 0, most = (uint32_t)c->r->params->value[NEAR];
    for (uint32_t k = 0; k < n; k++) s->a[k] = row[i], s->b[k] = row[k];
    TRY(c->ops->cosine(
        c->v->st,
        &(struct cosine_args){
            .x = c->v->vision_keys, .d = c->v->d_key, .n = n, .a = s->a, .b = s->b, .out = s->cos },
        e));
    for (uint32_t k = 0; k < n; k++)
        if (k != i) near[m++] = (struct near){ s->cos[k], k };
    if (m) qsort(near, m, sizeof *near, nearest_first);
    if (m > most) m = most;
    if (m == 0) return OK;
    qsort(near, m, sizeof *near, by_place);
    TRY(choose_merge_into(c, place[i], 1.0f, e));
    for (uint32_t k = 0; k < m; k++) TRY(choose_merge_from(c, place[near[k].i], s->w[near[k].i], e));
    return OK;
}

static status choose_step(struct choice *c, const struct step_work *s, const struct av_step *step,
                          struct near *near, struct err *e)
{
    const uint32_t n = step->n, *place = c->g.vision + step->first, *row = c->g.vision_row + step->first;
    double sum = 0;
    uint32_t extra = UINT32_MAX, n_rest = 0;
    choose_saliency(c, place, n);
    for (uint32_t i = 0; i < n; i++) {
        s->v[i] = isnan(c->score[i]) ? 0 : c->score[i];
        sum += s->v[i];
    }
    for (uint32_t i = 0; i < n; i++) s->w[i] = sum > 0 ? (float)(s->v[i] / sum) : 0;
    TRY(mark(c, s, n, e));
    for (uint32_t i = 0; i < n; i++) {
        if (s->kept[i]) continue;
        n_rest++;
        if (extra == UINT32_MAX || s->v[i] > s->v[extra]) extra = i;
    }
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        s->a[i] = c->r->prompt->av[place[i]];
        if (s->kept[i] || i == extra) s->b[n_kept++] = i;
    }
    TRY(why_scored(c->out, s->a, s->v, n, s->b, n_kept, e));
    for (uint32_t i = 0; i < n; i++) {
        if (!s->kept[i] && i != extra) continue;
        c->keep[place[i]] = 1;
        if (s->kept[i]) {
            TRY(take_near(c, s, place, row, n, i, near, e));
            continue;
        }
        TRY(choose_merge_into(c, place[i], s->w[i], e));
        for (uint32_t k = 0; k < n && n_rest > 1; k++)
            if (!s->kept[k] && k != i) TRY(choose_merge_from(c, place[k], s->w[k], e));
    }
    return OK;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    struct step_work s = { 0 };
    struct near *near = NULL;
    uint32_t n = 0;
    status st = choose_begin(&c, r, v, out, e);
    if (st == OK) choose_all(&c, c.g.audio, c.g.n_audio);
    for (uint32_t k = 0; k < c.g.n_steps; k++) n = c.g.step[k].n > n ? c.g.step[k].n : n;
    if (st == OK) st = mem_alloc(&s.v, 4 * (size_t)n, sizeof *s.v, e);
    if (st == OK) st = mem_alloc(&s.kept, n, 1, e);
    if (st == OK) st = mem_alloc(&s.a, 2 * (size_t)n, sizeof *s.a, e);
    if (st == OK) st = mem_alloc(&near, n, sizeof *near, e);
    if (st == OK) s.sorted = s.v + n, s.w = s.sorted + n, s.cos = s.w + n, s.b = s.a + n;
    for (uint32_t k = 0; st == OK && k < c.g.n_steps; k++) st = choose_step(&c, &s, &c.g.step[k], near, e);
    free(s.v);
    free(s.kept);
    free(s.a);
    free(near);
    return choose_end(&c, st, e);
}

const struct policy policy_prumerge = {
    .name = "prumerge",
    .citation = "Shang et al., LLaVA-PruMerge, arXiv 2403.15388 (ICCV 2025)",
    .help = "Before the decoder: outliers of each grid step stay and take in the rest.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .plan = plan,
    .embed = embed
};
