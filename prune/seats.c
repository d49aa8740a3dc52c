/* prune/seats.c - SEATS: before the decoder a diverse and salient set of every window; inside it three drops by the last row's
 * attention with budgets by window and modality, then an exit. Source: arXiv 2605.20035; docs/pruning-methods.md 8.1. */
#include "prune/seats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { TARGET_V, TARGET_A, SCALE, DROPS, EXIT_AT, TEMP, TRIM };
static const struct prune_param PARAMS[] = {
    [TARGET_V] = { "target_v", NULL, PARAM_NUMBER, 0, 1, 0.3, "mean share of vision alive over all layers",
                   NULL },
    [TARGET_A] = { "target_a", NULL, PARAM_NUMBER, 0, 1, 0.65, "mean share of audio alive over all layers",
                   NULL },
    [SCALE] = { "scale", NULL, PARAM_NUMBER, 1e-3, 100, 1.4, "share that enters layer 0, over the target",
                NULL },
    [DROPS] = { "drops", NULL, PARAM_LIST, 1, 4096, NAN,
                "layers, from 1, after which some go; not set: the paper's, scaled", NULL },
    [EXIT_AT] = { "exit_at", NULL, PARAM_INTEGER, 1, 4097, 24,
                  "layer, from 1, before which the rest goes; above all: never", NULL },
    [TEMP] = { "temp", NULL, PARAM_NUMBER, 1e-6, 1000, 0.1, "temperature of the budgets of windows", NULL },
    [TRIM] = { "trim", NULL, PARAM_BOOL, 0, 1, 0,
               "after prefill release what shallow layers hold of dropped tokens, as the authors' code does",
               NULL },
};

/* The paper's layers for 28 and 48, by share of depth elsewhere (36 keeps those of 28, as in the authors' runs). */
static struct prune_list drops_of(const struct policy_params *p, uint32_t L)
{
    const struct prune_list *d = prune_list_of(p, DROPS);
    if (d->n) return *d;
    if (L == 48) return (struct prune_list){ .n = 3, .v = { 27, 31, 35 } };
    const double to = L == 28 || L == 36 || L == 0 ? 1 : L / 28.0;
    struct prune_list out = { .n = 0 };
    const double paper[] = { 16, 18, 20 };
    for (int i = 0; i < 3; i++) {
        const double at = fmax(1, floor(paper[i] * to + 0.5));
        if (out.n == 0 || at > out.v[out.n - 1]) out.v[out.n++] = at;
    }
    return out;
}

static void defaults(struct policy_params *p)
{
    const uint32_t L = p->n_layers;
    p->value[EXIT_AT] = L == 48 ? 40 : L == 28 || L == 36 || L == 0 ? 24 : floor(24 * L / 28.0 + 0.5) + 1;
}

static status check(struct policy_params *p, struct err *e)
{
    const struct prune_list *d = prune_list_of(p, DROPS);
    if (d->n > SEATS_DROPS_MAX)
        return err_set(e, E_ARG, "drops has %u entries: at most %d", d->n, SEATS_DROPS_MAX);
    for (uint32_t i = 0; i < d->n; i++)
        if (d->v[i] != floor(d->v[i]) || (i && d->v[i] <= d->v[i - 1]))
            return err_set(e, E_ARG, "drops: give ascending layers, whole numbers from 1");
    return OK;
}

/* ---- ratios ----------------------------------------------------------------------------------------------- */

/* Mean share over all layers where `total` of the entry goes at the drops, shares 1 : e : e^2 ... of it. */
static double mean_of(const struct seats_ratios *r, uint32_t layers, double entry, double total, double *left)
{
    double weights = 0, alive = 1, sum = 0;
    for (uint32_t i = 0; i < r->n; i++) weights += exp(i);
    for (uint32_t l = 0, i = 0; l < r->exit_at; l++) {
        for (; i < r->n && r->at[i] == l; i++) {
            alive -= total * exp(i) / weights;
            if (left) left[i] = alive;
        }
        sum += alive;
    }
    return entry * sum / layers;
}

struct seats_ratios seats_ratios_of(uint32_t layers, const double *drop, uint32_t n_drops, uint32_t exit,
                                    double entry, double target)
{
    struct seats_ratios r = { .exit_at = exit - 1 < layers ? exit - 1 : layers };
    double left[SEATS_DROPS_MAX], low = 0, high = 1;
    for (uint32_t i = 0; i < n_drops && r.n < SEATS_DROPS_MAX; i++)
        if (drop[i] < r.exit_at) r.at[r.n++] = (uint32_t)drop[i];
    for (int i = 0; i < 100; i++) {
        const double mid = (low + high) / 2;
        if (mean_of(&r, layers, entry, mid, NULL) > target)
            low = mid;
        else
            high = mid;
    }
    mean_of(&r, layers, entry, low < 1e-12 ? 0 : high > 1 - 1e-12 ? 1 : high, left);
    for (uint32_t i = 0; i < r.n; i++) {
        const double before = i ? left[i - 1] : 1;
        r.ratio[i] = before > 0 ? prune_round(1e4 * fmax(0, left[i] / before)) / 1e4 : 0;
    }
    return r;
}

static struct seats_ratios ratios_of(const struct policy_params *p, uint32_t L, bool audio)
{
    const struct prune_list d = drops_of(p, L);
    const double target = p->value[audio ? TARGET_A : TARGET_V];
    return seats_ratios_of(L, d.v, d.n, (uint32_t)p->value[EXIT_AT], fmin(1, p->value[SCALE] * target),
                           target);
}

/* ---- the plan --------------------------------------------------------------------------------------------- */

/* Stage I: of a window's n tokens. */
static uint32_t window_kept(const struct policy_params *p, bool audio, uint32_t n)
{
    const uint32_t k = prune_round(fmin(1, p->value[SCALE] * p->value[audio ? TARGET_A : TARGET_V]) * n);
    return n == 0 ? 0 : k == 0 ? 1 : k;
}

/* Of n alive of one modality. */
static uint32_t total_kept(double ratio, uint32_t n)
{
    const uint32_t k = prune_round(ratio * n);
    return n == 0 ? 0 : k == 0 ? 1 : k;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const uint32_t L = s->n_layers;
    const struct seats_ratios v = ratios_of(p, L, false), a = ratios_of(p, L, true);
    uint32_t n_v = 0, n_a = 0, windows = 0;
    for (uint32_t i = 0; i < s->n_chunks; i++) {
        n_v += window_kept(p, false, s->chunk[i].n_vision);
        n_a += window_kept(p, true, s->chunk[i].n_audio);
        windows += s->chunk[i].n_vision + s->chunk[i].n_audio > 0;
    }
    const bool plain = windows <= 1 || n_v == 0 || n_a == 0;
    uint32_t n = n_v + n_a;
    prune_plan_entry(out, n);
    for (uint32_t i = 0; i < v.n; i++) {
        n_v = total_kept(v.ratio[i], n_v);
        n_a = total_kept(a.ratio[i], n_a);
        const double most = n_v == 0 ? a.ratio[i] : n_a == 0 ? v.ratio[i] : fmax(v.ratio[i], a.ratio[i]);
        const uint32_t bound = plain ? n_v + n_a : prune_floor(most * n) + 2 + windows;
        if (bound < n) n = bound;
        out->selects[v.at[i]] = out->n_orig > 0;
        for (uint32_t l = v.at[i]; l <= L; l++) out->alive[l] = n;
    }
    for (uint32_t l = v.exit_at; l <= L && v.exit_at < L; l++) out->alive[l] = 0;
    if (v.exit_at < L) {
        out->selects[v.exit_at] = out->n_orig > 0;
        out->scored[v.exit_at] = false;
    }
    out->exact = plain;
    out->go = true;
    out->back = 1;
    out->query = QUERY_LAST;
    out->needs = PRUNE_NEEDS_AUDIO_SALIENCY | PRUNE_NEEDS_VISION_SALIENCY | PRUNE_NEEDS_EMBEDDINGS |
                 PRUNE_NEEDS_GO | (v.n ? PRUNE_NEEDS_ROW_SCORES | PRUNE_NEEDS_BACK : 0u);
    out->trim = p->value[TRIM] != 0;
    out->trim_lag = L;
    return OK;
}

/* ---- stage I ---------------------------------------------------------------------------------------------- */

static status diverse(struct choice *c, bool audio, struct err *e)
{
    const struct av_groups *g = &c->g;
    const uint32_t n = audio ? g->n_audio : g->n_vision, *place = audio ? g->audio : g->vision;
    uint32_t *start = c->list[0], *n_pick = c->list[1], *pick = c->list[2], n_groups = 0, n_picks = 0;
    start[0] = 0;
    for (uint32_t i = 0; i < g->n_chunks;
         i++) { /* chunks in order: their ranges of the list lie end to end */
        const uint32_t size = audio ? g->chunk[i].n_audio : g->chunk[i].n_vision;
        if (size == 0) continue;
        n_pick[n_groups] = window_kept(c->r->params, audio, size);
        n_picks += n_pick[n_groups];
        start[n_groups + 1] = start[n_groups] + size;
        n_groups++;
    }
    if (n == 0) return OK;
    choose_saliency(c, place, n);
    const struct row_groups rows = { audio ? c->v->audio : c->v->vision, c->v->d, n_groups, start,
                                     audio ? g->audio_row : g->vision_row };
    TRY(c->ops->farthest(
        c->v->st,
        &(struct farthest_args){ .g = rows,
                                 .weight = c->score,
                                 .first = FARTHEST_APART,
                                 .n_pick = n_pick,
                                 .pick = pick,
                                 .scratch = c->pair },
        e));
    for (uint32_t i = 0; i < n_picks; i++) c->keep[place[pick[i]]] = 1;
    return choose_why_far(c, &rows, place, c->score, n_pick, pick, e);
}

/* The window of every token, for stage II. */
static void number_windows(struct policy_run *r, const struct av_groups *g)
{
    for (uint32_t w = 0; w < g->n_chunks; w++) {
        const struct av_chunk *k = &g->chunk[w];
        for (uint32_t i = 0; i < k->n_audio; i++) r->stored[g->audio[k->audio + i]] = (float)w;
        for (uint32_t i = 0; i < k->n_vision; i++) r->stored[g->vision[k->vision + i]] = (float)w;
    }
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    status st = choose_begin(&c, r, v, out, e);
    if (st == OK) st = diverse(&c, false, e);
    if (st == OK) st = diverse(&c, true, e);
    if (st == OK) st = mem_alloc(&r->stored, r->prompt->n_av, sizeof *r->stored, e);
    if (st == OK) number_windows(r, &c.g);
    return choose_end(&c, st, e);
}

/* ---- stage II --------------------------------------------------------------------------------------------- */

struct window {
    uint32_t id, first, n[2], budget, keep[2]; /* [0] vision, [1] audio; first: of `order` */
    double mean[2], p[2];
};

struct stage {
    struct window *w; /* [n_alive] */
    uint32_t *order;  /* [n_alive] indices of those alive, window by window */
    uint32_t *of;     /* [n_alive] the window number of each */
    uint8_t *keep;    /* [n_alive] */
    struct prune_selection part;
};

static bool is_audio(const struct policy_run *r, uint32_t index)
{
    return r->prompt->kind[index] == TOKEN_AUDIO;
}

struct numbered {
    uint32_t window, i;
};

static int by_window(const void *pa, const void *pb)
{
    const struct numbered *a = pa, *b = pb;
    if (a->window != b->window) return a->window < b->window ? -1 : 1;
    return (a->i > b->i) - (a->i < b->i);
}

/* Windows of those alive, and the means of their scores; NaN counts as 0. */
static status list_windows(const struct policy_run *r, const struct prune_layer_view *v, struct stage *s,
                           uint32_t *n_out, struct err *e)
{
    struct numbered *all;
    uint32_t n = 0;
    TRY(mem_alloc(&all, v->n_alive, sizeof *all, e));
    layer_places(r, v, s->of);
    for (uint32_t i = 0; i < v->n_alive; i++) all[i] = (struct numbered){ (uint32_t)r->stored[s->of[i]], i };
    if (v->n_alive) qsort(all, v->n_alive, sizeof *all, by_window);
    for (uint32_t k = 0; k < v->n_alive; k++) {
        const uint32_t i = s->order[k] = all[k].i, m = is_audio(r, v->alive[i]);
        if (k == 0 || all[k].window != s->w[n - 1].id)
            s->w[n++] = (struct window){ .id = all[k].window, .first = k };
        s->w[n - 1].n[m]++;
        s->w[n - 1].mean[m] += isnan(v->score[i]) ? 0 : v->score[i];
    }
    for (uint32_t i = 0; i < n; i++)
        for (int m = 0; m < 2; m++)
            if (s->w[i].n[m]) s->w[i].mean[m] /= s->w[i].n[m];
    free(all);
    *n_out = n;
    return OK;
}

static void soften(struct window *w, uint32_t n, double temp)
{
    for (int m = 0; m < 2; m++) {
        double most = -INFINITY, sum = 0;
        for (uint32_t i = 0; i < n; i++) most = fmax(most, w[i].mean[m]);
        for (uint32_t i = 0; i < n; i++) sum += w[i].p[m] = exp((w[i].mean[m] - most) / temp);
        for (uint32_t i = 0; i < n; i++) w[i].p[m] /= sum;
    }
}

/* Budgets of windows that sum to total, as far as 1 .. size lets them. */
static void budgets(struct window *w, uint32_t n, uint32_t total)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t size = w[i].n[0] + w[i].n[1], B = prune_round(total * (w[i].p[0] + w[i].p[1]) / 2);
        w[i].budget = B < 1 ? 1 : B > size ? size : B;
        sum += w[i].budget;
    }
    while (sum != total) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t size = w[i].n[0] + w[i].n[1];
            if (sum > total ? w[i].budget <= 1 : w[i].budget >= size) continue;
            if (best == UINT32_MAX ||
                (sum > total ? w[i].budget > w[best].budget : w[i].budget < w[best].budget))
                best = i;
        }
        if (best == UINT32_MAX) return;
        if (sum > total)
            w[best].budget--, sum--;
        else
            w[best].budget++, sum++;
    }
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Modality m of a window is there and got nothing: it gets one, the other less where it has more than one. */
static void give_one(struct window *w, int m)
{
    if (w->n[m] == 0 || w->keep[m] > 0) return;
    w->keep[m] = 1;
    if (w->keep[!m] > 1) w->keep[!m] = least(w->n[!m], w->budget > 2 ? w->budget - 1 : 1);
}

/* The budget of one window over the modalities; K: their totals. */
static void divide(struct window *w, const uint32_t K[2])
{
    const double v = w->p[0] * K[0], a = w->p[1] * K[1];
    const uint32_t B = w->budget;
    w->keep[0] = least(w->n[0], v + a > 0 ? prune_round(B * v / (v + a)) : 0);
    w->keep[1] = least(w->n[1], B - least(B, w->keep[0]));
    w->keep[0] = least(w->n[0], B - w->keep[1]);
    w->keep[1] = least(w->n[1], B - w->keep[0]);
    give_one(w, 0);
    give_one(w, 1);
}

/* Marks in keep the `count` best of modality m among order[from, end). */
static status best_in(struct policy_run *r, const struct prune_layer_view *v, struct stage *s, uint32_t from,
                      uint32_t end, int m, uint32_t count, struct err *e)
{
    struct prune_layer_view sub = *v;
    uint32_t *alive;
    float *score = NULL;
    TRY(mem_alloc(&alive, end - from, sizeof *alive, e));
    status st = mem_alloc(&score, end - from, sizeof *score, e);
    sub.n_alive = 0;
    for (uint32_t k = from; st == OK && k < end; k++) {
        const uint32_t i = s->order[k];
        if (is_audio(r, v->alive[i]) != (m == 1)) continue;
        score[sub.n_alive] = v->score[i];
        alive[sub.n_alive++] = v->alive[i];
    }
    sub.alive = alive;
    if (st == OK) st = mem_grow(&s->part.keep, &s->part.cap, sub.n_alive + 1, sizeof *s->part.keep, e);
    if (st == OK) st = layer_best(r, &sub, score, KINDS_AV, count, &s->part, e);
    for (uint32_t k = from, j = 0; st == OK && k < end && j < s->part.n_keep; k++)
        if (v->alive[s->order[k]] == s->part.keep[j]) s->keep[s->order[k]] = 1, j++;
    free(alive);
    free(score);
    return st;
}

static status choose(struct policy_run *r, const struct prune_layer_view *v, const double ratio[2],
                     struct stage *s, struct err *e)
{
    uint32_t n[2] = { 0, 0 }, windows;
    for (uint32_t i = 0; i < v->n_alive; i++) n[is_audio(r, v->alive[i])]++;
    const uint32_t K[2] = { total_kept(ratio[0], n[0]), total_kept(ratio[1], n[1]) };
    TRY(list_windows(r, v, s, &windows, e));
    if (windows <= 1 || n[0] == 0 || n[1] == 0) {
        for (uint32_t i = 0; i < v->n_alive; i++) s->order[i] = i;
        for (int m = 0; m < 2; m++) TRY(best_in(r, v, s, 0, v->n_alive, m, K[m], e));
        return OK;
    }
    soften(s->w, windows, r->params->value[TEMP]);
    budgets(s->w, windows, K[0] + K[1]);
    for (uint32_t i = 0; i < windows; i++) {
        const uint32_t end = i + 1 < windows ? s->w[i + 1].first : v->n_alive;
        divide(&s->w[i], K);
        for (int m = 0; m < 2; m++) TRY(best_in(r, v, s, s->w[i].first, end, m, s->w[i].keep[m], e));
    }
    return OK;
}

static status layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                    struct prune_selection *out, struct err *e)
{
    const uint32_t L = r->plan->n_layers;
    const struct seats_ratios sv = ratios_of(r->params, L, false), sa = ratios_of(r->params, L, true);
    struct stage s = { 0 };
    uint32_t i = 0;
    if (l >= sv.exit_at) {
        out->n_keep = 0;
        return OK;
    }
    while (i < sv.n && sv.at[i] != l) i++;
    if (i == sv.n) return OK;
    const double ratio[2] = { sv.ratio[i], sa.ratio[i] };
    s.part.want_why = out->want_why;
    status st = mem_alloc(&s.w, v->n_alive, sizeof *s.w, e);
    if (st == OK) st = mem_alloc(&s.order, 2 * (size_t)v->n_alive, sizeof *s.order, e);
    if (st == OK) st = mem_alloc(&s.keep, v->n_alive, sizeof *s.keep, e);
    if (st == OK) {
        s.of = s.order + v->n_alive;
        st = choose(r, v, ratio, &s, e);
    }
    if (st == OK) {
        out->n_keep = 0;
        for (uint32_t k = 0; k < v->n_alive; k++)
            if (s.keep[k]) out->keep[out->n_keep++] = v->alive[k];
        if (out->want_why) {
            struct prune_why *mine = out->why;
            const size_t cap = out->why_cap;
            out->why = s.part.why, out->n_why = s.part.n_why, out->why_cap = s.part.why_cap;
            s.part.why = mine, s.part.why_cap = cap;
        }
    }
    prune_selection_free(&s.part);
    free(s.w);
    free(s.order);
    free(s.keep);
    return st;
}

const struct policy policy_seats = {
    .name = "seats",
    .citation = "SEATS, arXiv 2605.20035 (2026)",
    .help = "Diverse salient tokens of every window enter; three drops by window budgets; an exit.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .by_chunk = true,
    .defaults = defaults,
    .check = check,
    .plan = plan,
    .embed = embed,
    .layer = layer
};
