/* prune/trim_lc.c - TrimTokenator-LC for many images: a budget for each by how varied it is, the most different tokens of each,
 * then of all together, then the best by difference and by likeness to the text. Audio stays. Reconstructed where the abstract
 * is silent. Source: arXiv 2512.22748; docs/pruning-methods.md 5. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { R, POOL };
static const struct prune_param PARAMS[] = {
    [R] = { "R", "retention", PARAM_NUMBER, 0, 1, 0.2, "share of the vision tokens kept, at least one",
            NULL },
    [POOL] = { "pool", NULL, PARAM_NUMBER, 1, 1e6, 1.5, "tokens that come to the last stage, over those kept",
               NULL },
};

static uint32_t kept_of(const struct policy_params *p, uint32_t n)
{
    const uint32_t k = prune_round(p->value[R] * (double)n);
    return n == 0 ? 0 : k == 0 ? 1 : k;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const uint32_t n_audio = kinds_spared(s, KINDS_VISION), n_vision = out->n_orig - n_audio;
    prune_plan_entry(out, n_audio + kept_of(p, n_vision));
    out->needs = n_vision ? PRUNE_NEEDS_EMBEDDINGS | PRUNE_NEEDS_TEXT_EMBEDDINGS : 0;
    return OK;
}

/* ---- budgets ---------------------------------------------------------------------------------------------- */

/* [images] unless it says otherwise; an image is a grid step or a picture. */
struct trim {
    uint32_t images, M, K, K1;
    float *mean;           /* [images, d] device: means of unit tokens */
    double *D, *w, *share; /* variety, weight, share of K1 */
    uint32_t *budget, *room;
    uint32_t *pool, *row; /* [M] places in the vision list of those left, their rows */
    uint32_t *pick;       /* [M] */
};

/* D[k] of each image, from the length of the mean of its unit tokens: the sum of all cosines is |sum u|^2. */
static status variety(struct choice *c, struct trim *t, struct err *e)
{
    float *host;
    TRY(mem_alloc(&host, c->v->d, sizeof *host, e));
    status st = OK;
    for (uint32_t k = 0; st == OK && k < t->images; k++) {
        const double m = c->g.step[k].n;
        double ss = 0;
        st = c->ops->download(c->v->st, host, t->mean + (size_t)k * c->v->d, c->v->d * sizeof *host, e);
        for (uint32_t i = 0; st == OK && i < c->v->d; i++) ss += (double)host[i] * host[i];
        t->D[k] = m > 1 ? 1 - (m * m * ss - m) / (m * (m - 1)) : 0;
    }
    free(host);
    return st;
}

/* Mean over pairs of images of 1 - cosine of their means. */
static status apart(struct choice *c, const struct trim *t, double *D, struct err *e)
{
    double sum = 0;
    *D = 0;
    for (uint32_t k = 0; k + 1 < t->images; k++) {
        const uint32_t n = t->images - k - 1;
        for (uint32_t i = 0; i < n; i++) c->list[0][i] = k, c->list[1][i] = k + 1 + i;
        TRY(choose_cosine(c, t->mean, c->list[0], NULL, c->list[1], n, c->score, e));
        for (uint32_t i = 0; i < n; i++) sum += 1 - (double)c->score[i];
    }
    if (t->images > 1) *D = sum / (0.5 * t->images * (t->images - 1.0));
    return OK;
}

struct weighed {
    double w;
    uint32_t i;
};

static int heaviest(const void *pa, const void *pb)
{
    const struct weighed *a = pa, *b = pb;
    if (a->w != b->w) return a->w < b->w ? 1 : -1;
    return (a->i > b->i) - (a->i < b->i);
}

/* One token each for the K1 images of greatest weight. */
static status one_each(struct trim *t, struct err *e)
{
    struct weighed *all;
    TRY(mem_alloc(&all, t->images, sizeof *all, e));
    for (uint32_t k = 0; k < t->images; k++) all[k] = (struct weighed){ t->w[k], k }, t->budget[k] = 0;
    qsort(all, t->images, sizeof *all, heaviest);
    for (uint32_t k = 0; k < t->K1; k++) t->budget[all[k].i] = 1;
    free(all);
    return OK;
}

static double share_of(const struct trim *t, uint32_t k, double scale)
{
    return fmin(fmax(scale * t->w[k], 1), t->room[k]);
}

/* Budgets clamp(scale w, 1, size) that sum to K1. */
static status intra_budgets(struct trim *t, struct err *e)
{
    double low = 0, high = 1;
    if (t->K1 < t->images) return one_each(t, e);
    for (uint32_t k = 0; k < t->images; k++) high = fmax(high, t->room[k] / t->w[k]);
    for (int i = 0; i < 200; i++) {
        const double mid = low + (high - low) / 2;
        double sum = 0;
        for (uint32_t k = 0; k < t->images; k++) sum += share_of(t, k, mid);
        if (sum < t->K1)
            low = mid;
        else
            high = mid;
    }
    for (uint32_t k = 0; k < t->images; k++) t->share[k] = share_of(t, k, high);
    return count_shares(t->share, t->room, t->images, t->K1, t->budget, e);
}

static status intra(struct choice *c, struct trim *t, struct err *e)
{
    const struct av_groups *g = &c->g;
    uint32_t *start = c->list[2];
    double D_intra = 0, D_inter;
    start[0] = 0;
    for (uint32_t k = 0; k < t->images; k++)
        start[k + 1] = start[k] + g->step[k].n, t->room[k] = g->step[k].n;
    const struct row_groups rows = { c->v->vision, c->v->d, t->images, start, g->vision_row };
    TRY(c->ops->means(c->v->st,
                      &(struct means_args){ .g = rows, .unit = true, .y = t->mean, .scratch = c->pair }, e));
    TRY(variety(c, t, e));
    TRY(apart(c, t, &D_inter, e));
    for (uint32_t k = 0; k < t->images; k++) {
        D_intra += t->D[k] / t->images;
        t->w[k] = t->room[k] * fmax(t->D[k], 1e-6);
    }
    const double own = fmax(0, 1 - D_intra), other = fmax(0, 1 - D_inter);
    const double b = t->images == 1 ? 1 : own + other > 0 ? own / (own + other) : 0.5;
    t->K1 = t->M - prune_round(b * (t->M - t->K));
    TRY(intra_budgets(t, e));
    TRY(c->ops->farthest(
        c->v->st,
        &(struct farthest_args){
            .g = rows, .first = FARTHEST_MEAN, .n_pick = t->budget, .pick = t->pick, .scratch = c->pair },
        e));
    return choose_why_far(c, &rows, g->vision, NULL, t->budget, t->pick, e);
}

/* ---- the last stage --------------------------------------------------------------------------------------- */

struct candidate {
    float f1, f2;      /* least distance to another; likeness to the text */
    uint32_t i, front; /* index into the pool */
    uint32_t better;   /* ranks in f1 and f2, summed */
};

static int in_pool_order(const void *pa, const void *pb)
{
    const uint32_t a = *(const uint32_t *)pa, b = *(const uint32_t *)pb;
    return (a > b) - (a < b);
}

static int by_f1(const void *pa, const void *pb)
{
    const struct candidate *a = pa, *b = pb;
    if (a->f1 != b->f1) return a->f1 < b->f1 ? 1 : -1;
    if (a->f2 != b->f2) return a->f2 < b->f2 ? 1 : -1;
    return (a->i > b->i) - (a->i < b->i);
}

static int by_f2(const void *pa, const void *pb)
{
    const struct candidate *a = pa, *b = pb;
    if (a->f2 != b->f2) return a->f2 < b->f2 ? 1 : -1;
    return (a->i > b->i) - (a->i < b->i);
}

/* Fronts first, then the sum of the ranks, then the index. */
static int by_front(const void *pa, const void *pb)
{
    const struct candidate *a = pa, *b = pb;
    if (a->front != b->front) return a->front < b->front ? -1 : 1;
    if (a->better != b->better) return a->better < b->better ? -1 : 1;
    return (a->i > b->i) - (a->i < b->i);
}

/* Fronts of those that none beats in both. In order of f1 only who came before can beat: front k is summed up by its greatest f2
 * and the greatest f1 that has it. */
static status peel(struct candidate *x, uint32_t n, struct err *e)
{
    float *top;
    uint32_t n_fronts = 0;
    TRY(mem_alloc(&top, 2 * (size_t)n, sizeof *top, e));
    qsort(x, n, sizeof *x, by_f2);
    for (uint32_t i = 0, first = 0; i < n; i++) {
        if (x[i].f2 != x[first].f2) first = i;
        x[i].better = first;
    }
    qsort(x, n, sizeof *x, by_f1);
    for (uint32_t i = 0, first = 0; i < n; i++) {
        if (x[i].f1 != x[first].f1) first = i;
        x[i].better += first;
        uint32_t low = 0, high = n_fronts; /* the first front that does not beat it */
        while (low < high) {
            const uint32_t mid = low + (high - low) / 2;
            const float *t = top + 2 * (size_t)mid;
            if (t[0] > x[i].f2 || (t[0] == x[i].f2 && t[1] > x[i].f1))
                low = mid + 1;
            else
                high = mid;
        }
        x[i].front = low;
        if (low == n_fronts || x[i].f2 > top[2 * (size_t)low])
            top[2 * (size_t)low] = x[i].f2, top[2 * (size_t)low + 1] = x[i].f1;
        if (low == n_fronts) n_fronts++;
    }
    free(top);
    qsort(x, n, sizeof *x, by_front);
    return OK;
}

/* Halves of the n rows in t->row meet each other, then halves of those, and so on: every pair meets once and nobody meets itself.
 * most[i] gets the greatest cosine of row i. list: 4 n + 8 of room, near: n. */
static status meet_others(struct choice *c, const struct trim *t, uint32_t n, float *most, uint32_t *list,
                          float *near, struct err *e)
{
    uint32_t *start_x = list, *start_y = start_x + n + 3, *row = start_y + n + 3, *which = row + n, half = 1;
    for (uint32_t i = 0; i < n; i++) most[i] = -INFINITY;
    while (half < n) half *= 2;
    for (half /= 2; half > 0; half /= 2) {
        uint32_t groups = 0, m = 0;
        for (uint32_t from = 0; from < n; from += 2 * half)
            for (uint32_t side = 0; side < 2; side++, groups++) {
                const uint32_t own = from + side * half, other = from + (1 - side) * half;
                start_x[groups] = own < n ? own : n;
                start_y[groups] = m;
                for (uint32_t i = other; i < other + half && i < n; i++) row[m++] = t->row[i];
            }
        start_x[groups] = n;
        start_y[groups] = m;
        TRY(c->ops->nearest(c->v->st,
                            &(struct nearest_args){ .x = { c->v->vision, c->v->d, groups, start_x, t->row },
                                                    .y = { c->v->vision, c->v->d, groups, start_y, row },
                                                    .best = near,
                                                    .which = which,
                                                    .scratch = c->pair },
                            e));
        for (uint32_t i = 0; i < n; i++)
            if (which[i] != UINT32_MAX && near[i] > most[i]) most[i] = near[i];
    }
    return OK;
}

/* f1 and f2 of the n rows in t->row. */
static status measure(struct choice *c, struct trim *t, struct candidate *x, uint32_t n, struct err *e)
{
    uint32_t *list;
    float *most = NULL;
    TRY(mem_alloc(&list, 4 * (size_t)n + 8, sizeof *list, e));
    status met = mem_alloc(&most, 2 * (size_t)n, sizeof *most, e);
    if (met == OK) met = meet_others(c, t, n, most, list, most + n, e);
    for (uint32_t i = 0; met == OK && i < n; i++)
        x[i] = (struct candidate){ .f1 = n > 1 ? 1 - most[i] : 0, .i = i };
    free(most);
    free(list);
    if (met != OK) return met;
    if (c->v->n_text == 0) return OK;
    const uint32_t start[] = { 0, c->v->n_text };
    uint32_t *row;
    TRY(mem_alloc(&row, c->v->n_text, sizeof *row, e));
    for (uint32_t i = 0; i < c->v->n_text; i++) row[i] = i;
    status st = c->ops->means(
        c->v->st,
        &(struct means_args){ .g = { c->v->text, c->v->d, 1, start, row }, .y = t->mean, .scratch = c->pair },
        e);
    free(row);
    for (uint32_t i = 0; i < n; i++) c->list[0][i] = 0;
    if (st == OK) st = choose_cosine(c, c->v->vision, t->row, t->mean, c->list[0], n, c->score, e);
    for (uint32_t i = 0; st == OK && i < n; i++) x[i].f2 = c->score[i];
    return st;
}

/* The pool: picks [n] of the vision list, in prompt order. */
static void fill_pool(const struct choice *c, struct trim *t, const uint32_t *from, uint32_t n)
{
    if (n) qsort(t->pick, n, sizeof *t->pick, in_pool_order);
    for (uint32_t i = 0; i < n; i++) t->pool[i] = from ? from[t->pick[i]] : t->pick[i];
    for (uint32_t i = 0; i < n; i++) t->row[i] = c->g.vision_row[t->pool[i]];
}

static status inter(struct choice *c, struct trim *t, struct err *e)
{
    struct candidate *x;
    const uint32_t most = prune_round(c->r->params->value[POOL] * t->K), K2 = most < t->K1 ? most : t->K1;
    const uint32_t start[] = { 0, t->K1 };
    fill_pool(c, t, NULL, t->K1);
    const struct row_groups rows = { c->v->vision, c->v->d, 1, start, t->row };
    TRY(c->ops->farthest(
        c->v->st,
        &(struct farthest_args){
            .g = rows, .first = FARTHEST_MEAN, .n_pick = &K2, .pick = t->pick, .scratch = c->pair },
        e));
    for (uint32_t i = 0; i < t->K1; i++) c->list[3][i] = t->pool[i], c->list[0][i] = c->g.vision[t->pool[i]];
    TRY(choose_why_far(c, &rows, c->list[0], NULL, &K2, t->pick, e));
    fill_pool(c, t, c->list[3], K2);
    TRY(mem_alloc(&x, K2, sizeof *x, e));
    status st = measure(c, t, x, K2, e);
    if (st == OK) st = peel(x, K2, e);
    for (uint32_t i = 0; st == OK && i < K2; i++) {
        const uint32_t place = c->g.vision[t->pool[x[i].i]];
        if (i < t->K)
            c->keep[place] = 1;
        else /* by its front: the first is 0 */
            st = why_one(c->out, c->r->prompt->av[place], -(float)x[i].front, i, PRUNE_BY_SCORE, e);
    }
    free(x);
    return st;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    struct trim t = { 0 };
    status st = choose_begin(&c, r, v, out, e);
    t.images = c.g.n_steps;
    t.M = c.g.n_vision;
    t.K = kept_of(r->params, t.M);
    if (st == OK) choose_all(&c, c.g.audio, c.g.n_audio);
    if (st == OK && t.M) {
        st = c.ops->alloc(v->st, ((size_t)t.images + 1) * v->d * sizeof(float), (void **)&t.mean, e);
        if (st == OK) st = mem_alloc(&t.D, 3 * (size_t)t.images, sizeof *t.D, e);
        if (st == OK) st = mem_alloc(&t.budget, 2 * (size_t)t.images + 3 * (size_t)t.M, sizeof *t.budget, e);
        if (st == OK) {
            t.w = t.D + t.images, t.share = t.w + t.images;
            t.room = t.budget + t.images, t.pool = t.room + t.images, t.row = t.pool + t.M,
            t.pick = t.row + t.M;
            st = intra(&c, &t, e);
        }
        if (st == OK) st = inter(&c, &t, e);
        c.ops->release(v->st, t.mean);
        free(t.D);
        free(t.budget);
    }
    return choose_end(&c, st, e);
}

const struct policy policy_trim_lc = {
    .name = "trim-lc",
    .citation = "Zhang et al., TrimTokenator-LC, arXiv 2512.22748 (2025), partly reconstructed",
    .help = "Before the decoder, for many images: the most different tokens near the text.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .plan = plan,
    .embed = embed
};
