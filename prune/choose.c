/* prune/choose.c - see choose.h. */
#include "prune/choose.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* ---- the tokens in groups --------------------------------------------------------------------------------- */

/* The chunks of an item: runs of one chunk id, of either tower, brought together by id. */
static void chunk_item(const struct prompt *p, struct av_groups *g, struct av_item *it)
{
    uint32_t a = it->audio, v = it->vision, s = it->step;
    const uint32_t a_end = a + it->n_audio, v_end = v + it->n_vision, s_end = s + it->n_steps;
    while (a < a_end || v < v_end) {
        const int32_t of_a = a < a_end ? p->chunk[p->av[g->audio[a]]] : INT32_MAX;
        const int32_t of_v = v < v_end ? p->chunk[p->av[g->vision[v]]] : INT32_MAX;
        struct av_chunk *c = &g->chunk[g->n_chunks++];
        *c = (struct av_chunk){ .id = of_a < of_v ? of_a : of_v, .audio = a, .vision = v, .step = s };
        while (a < a_end && p->chunk[p->av[g->audio[a]]] == c->id) a++;
        while (v < v_end && p->chunk[p->av[g->vision[v]]] == c->id) v++;
        while (s < s_end && g->step[s].first < v) s++;
        c->n_audio = a - c->audio;
        c->n_vision = v - c->vision;
        c->n_steps = s - c->step;
    }
}

static void group_item(const struct prompt *p, struct av_groups *g, uint32_t i)
{
    const struct prune_item counts = prune_item_of(&p->items[i]);
    struct av_item *it = &g->item[i];
    for (uint32_t k = 0; k < counts.steps && counts.step_tokens > 0; k++)
        g->step[g->n_steps++] = (struct av_step){ it->vision + k * counts.step_tokens, counts.step_tokens };
    it->n_steps = g->n_steps - it->step;
    it->chunk = g->n_chunks;
    chunk_item(p, g, it);
    it->n_chunks = g->n_chunks - it->chunk;
}

status av_groups_make(const struct prompt *p, struct av_groups *g, struct err *e)
{
    *g = (struct av_groups){ .n_items = p->n_items };
    TRY(mem_alloc(&g->audio, 2 * (size_t)p->n_audio, sizeof *g->audio, e));
    TRY(mem_alloc(&g->vision, 2 * (size_t)p->n_vision, sizeof *g->vision, e));
    TRY(mem_alloc(&g->item, p->n_items, sizeof *g->item, e));
    TRY(mem_alloc(&g->step, p->n_vision, sizeof *g->step, e));
    TRY(mem_alloc(&g->chunk, p->n_av, sizeof *g->chunk, e));
    g->audio_row = g->audio + p->n_audio;
    g->vision_row = g->vision + p->n_vision;
    uint32_t first = 0; /* the tokens of an item lie together, and items in order */
    for (uint32_t i = 0; i < p->n_items; i++) {
        struct av_item *it = &g->item[i];
        *it = (struct av_item){ .audio = g->n_audio, .vision = g->n_vision, .step = g->n_steps };
        for (; first < p->n_av && p->item[p->av[first]] == i; first++) {
            const uint32_t at = p->av[first];
            if (p->kind[at] == TOKEN_AUDIO) {
                g->audio_row[g->n_audio] = p->row[at];
                g->audio[g->n_audio++] = first;
            } else {
                g->vision_row[g->n_vision] = p->row[at];
                g->vision[g->n_vision++] = first;
            }
        }
        it->n_audio = g->n_audio - it->audio;
        it->n_vision = g->n_vision - it->vision;
        group_item(p, g, i);
    }
    assert(first == p->n_av);
    return OK;
}

void av_groups_free(struct av_groups *g)
{
    free(g->audio);
    free(g->vision);
    free(g->item);
    free(g->step);
    free(g->chunk);
    *g = (struct av_groups){ 0 };
}

/* ---- the best of a list ----------------------------------------------------------------------------------- */

struct ranked {
    double score;
    uint32_t i;
};

static int by_score(const void *pa, const void *pb)
{
    const struct ranked *a = pa, *b = pb;
    if (a->score != b->score) return a->score < b->score ? 1 : -1;
    return (a->i > b->i) - (a->i < b->i);
}

/* ---- reasons ---------------------------------------------------------------------------------------------- */

status why_one(struct prune_selection *s, uint32_t index, float score, uint32_t rank, enum prune_cause cause, struct err *e)
{
    if (!s->want_why) return OK;
    TRY(mem_grow(&s->why, &s->why_cap, (size_t)s->n_why + 1, sizeof *s->why, e));
    s->why[s->n_why++] = (struct prune_why){ index, score, rank, cause };
    return OK;
}

static status note_why(struct prune_selection *s, const uint32_t *index, const float *score, uint32_t n,
                       const uint32_t *kept, uint32_t m, enum prune_cause cause, struct err *e)
{
    struct ranked *all;
    if (!s->want_why || m == n) return OK;
    TRY(mem_alloc(&all, 2 * (size_t)n, sizeof *all, e));
    for (uint32_t i = 0; i < n; i++) all[i] = (struct ranked){ isnan(score[i]) ? -INFINITY : score[i], i };
    qsort(all, n, sizeof *all, by_score);
    for (uint32_t rank = 0; rank < n; rank++) all[n + all[rank].i].i = rank;
    status st = mem_grow(&s->why, &s->why_cap, (size_t)s->n_why + n, sizeof *s->why, e);
    for (uint32_t i = 0, k = 0; st == OK && i < n; i++) {
        if (k < m && kept[k] == i)
            k++;
        else
            s->why[s->n_why++] = (struct prune_why){ index[i], score[i], all[n + i].i, cause };
    }
    free(all);
    return st;
}

status why_scored(struct prune_selection *s, const uint32_t *index, const float *score, uint32_t n, const uint32_t *kept,
                  uint32_t m, struct err *e)
{
    return note_why(s, index, score, n, kept, m, PRUNE_BY_SCORE, e);
}

static int by_index(const void *pa, const void *pb)
{
    const struct prune_why *a = pa, *b = pb;
    return (a->index > b->index) - (a->index < b->index);
}

static int by_number(const void *pa, const void *pb)
{
    const uint32_t a = *(const uint32_t *)pa, b = *(const uint32_t *)pb;
    return (a > b) - (a < b);
}

/* In order, without those that stayed after all. */
static void tidy_why(struct prune_selection *s)
{
    uint32_t n = 0, k = 0;
    if (s->n_why) qsort(s->why, s->n_why, sizeof *s->why, by_index);
    for (uint32_t i = 0; i < s->n_why; i++) {
        while (k < s->n_keep && s->keep[k] < s->why[i].index) k++;
        if (k < s->n_keep && s->keep[k] == s->why[i].index) continue;
        if (n && s->why[n - 1].index == s->why[i].index) continue;
        s->why[n++] = s->why[i];
    }
    s->n_why = n;
}

status why_end(struct prune_selection *s, const uint32_t *before, uint32_t n, struct err *e)
{
    if (!s->want_why) return OK;
    tidy_why(s);
    const uint32_t had = s->n_why;
    uint32_t *src = NULL, n_src = s->merges.n ? s->merges.start[s->merges.n] : 0;
    if (had + s->n_keep == n) return OK;
    TRY(mem_alloc(&src, (size_t)n_src + 1, sizeof *src, e));
    for (uint32_t i = 0; i < n_src; i++) src[i] = s->merges.src[i];
    if (n_src) qsort(src, n_src, sizeof *src, by_number);
    status st = OK;
    for (uint32_t i = 0, k = 0, w = 0; i < n && st == OK; i++) {
        while (k < s->n_keep && s->keep[k] < before[i]) k++;
        while (w < had && s->why[w].index < before[i]) w++;
        if ((k < s->n_keep && s->keep[k] == before[i]) || (w < had && s->why[w].index == before[i])) continue;
        const enum prune_cause cause = n_src && bsearch(&before[i], src, n_src, sizeof *src, by_number) ? PRUNE_BY_MERGE
                                       : s->n_keep == 0                                                  ? PRUNE_BY_LAYER
                                                                                                         : PRUNE_BY_PLACE;
        st = why_one(s, before[i], NAN, k, cause, e);
    }
    free(src);
    tidy_why(s);
    return st;
}

/* ---- the best, chosen ------------------------------------------------------------------------------------- */

/* The m highest of score[0..n), ascending, to kept, which has room for n. */
static status best_of(struct policy_run *r, struct stream *st, const float *score, uint32_t n, uint32_t m,
                      uint32_t *kept, struct err *e)
{
    const size_t bytes = st->ops->select_scratch(st, n);
    assert(m <= n);
    if (bytes > r->select_bytes) {
        free(r->select_scratch);
        r->select_scratch = NULL;
        r->select_bytes = 0;
        TRY(mem_alloc_aligned(&r->select_scratch, 2 * bytes, e));
        r->select_bytes = 2 * bytes;
    }
    return st->ops->select(
        st,
        &(struct select_args){
            .score = score, .n = n, .k = n - m, .keep = kept, .scratch = r->select_scratch },
        e);
}

/* ---- a choice before layer 0 ------------------------------------------------------------------------------ */

status choose_begin(struct choice *c, struct policy_run *r, const struct prune_embed_view *v,
                    struct prune_selection *out, struct err *e)
{
    const size_t n = r->prompt->n_av;
    *c = (struct choice){ .r = r, .v = v, .ops = v->st->ops, .out = out };
    TRY(av_groups_make(r->prompt, &c->g, e));
    TRY(mem_alloc(&c->keep, n, 1, e));
    TRY(mem_alloc(&c->score, n, sizeof *c->score, e));
    TRY(mem_alloc(&c->list[0], 5 * n + 4, sizeof *c->list[0], e));
    for (int i = 1; i < 4; i++) c->list[i] = c->list[i - 1] + n + 1;
    c->kept = c->list[3] + n + 1;
    return mem_alloc_aligned(&c->pair, c->ops->pair_scratch(v->st, v->d, 2 * n), e);
}

/* Nothing may empty a request: the most salient audio token stays, the first where saliency is not known; without audio the
 * first AV token. */
static void keep_one(struct choice *c)
{
    const float *a = c->v->audio_saliency;
    uint32_t best = 0;
    for (uint32_t i = 0; i < c->r->prompt->n_av; i++)
        if (c->keep[i]) return;
    if (c->g.n_audio == 0) {
        c->keep[0] = 1;
        return;
    }
    for (uint32_t i = 1; a && i < c->g.n_audio; i++) {
        const float x = a[c->g.audio_row[i]], y = a[c->g.audio_row[best]];
        if (x > y || (isnan(y) && !isnan(x))) best = i;
    }
    c->keep[c->g.audio[best]] = 1;
}

status choose_end(struct choice *c, status st, struct err *e)
{
    (void)e;
    if (st == OK) {
        const struct prompt *p = c->r->prompt;
        keep_one(c);
        c->out->n_keep = 0;
        for (uint32_t i = 0; i < p->n_av; i++)
            if (c->keep[i]) c->out->keep[c->out->n_keep++] = p->av[i];
    }
    av_groups_free(&c->g);
    free(c->keep);
    free(c->score);
    free(c->list[0]);
    free(c->pair);
    return st;
}

void choose_all(struct choice *c, const uint32_t *place, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) c->keep[place[i]] = 1;
}

status choose_pick(struct choice *c, uint32_t n, uint32_t m, struct err *e)
{
    return best_of(c->r, c->v->st, c->score, n, m, c->kept, e);
}

/* note_why of n tokens at `place`. */
static status why_places(struct choice *c, const uint32_t *place, const float *score, uint32_t n, const uint32_t *kept, uint32_t m,
                         enum prune_cause cause, struct err *e)
{
    uint32_t *index;
    if (!c->out->want_why || m == n) return OK;
    TRY(mem_alloc(&index, n, sizeof *index, e));
    for (uint32_t i = 0; i < n; i++) index[i] = c->r->prompt->av[place[i]];
    const status st = note_why(c->out, index, score, n, kept, m, cause, e);
    free(index);
    return st;
}

status choose_best(struct choice *c, const uint32_t *place, uint32_t n, uint32_t m, struct err *e)
{
    TRY(choose_pick(c, n, m, e));
    for (uint32_t i = 0; i < m; i++) c->keep[place[c->kept[i]]] = 1;
    return why_places(c, place, c->score, n, c->kept, m, PRUNE_BY_SCORE, e);
}

status choose_why_far(struct choice *c, const struct row_groups *g, const uint32_t *place, const float *weight,
                      const uint32_t *n_pick, const uint32_t *pick, struct err *e)
{
    const uint32_t n = g->start[g->n_groups];
    uint32_t *list, n_y = 0;
    float *near = NULL;
    if (!c->out->want_why) return OK;
    TRY(mem_alloc(&list, 3 * (size_t)n + g->n_groups + 1, sizeof *list, e));
    uint32_t *kept = list, *row = kept + n, *which = row + n, *start = which + n;
    status st = mem_alloc(&near, n, sizeof *near, e);
    for (uint32_t k = 0; st == OK && k < g->n_groups; k++) {
        start[k] = n_y;
        for (uint32_t i = 0; i < n_pick[k]; i++, n_y++) kept[n_y] = pick[n_y];
        if (n_pick[k]) qsort(kept + start[k], n_pick[k], sizeof *kept, by_number);
        for (uint32_t i = start[k]; i < n_y; i++) row[i] = g->row[kept[i]];
    }
    start[g->n_groups] = n_y;
    if (st == OK)
        st = c->ops->nearest(c->v->st,
                             &(struct nearest_args){ .x = *g,
                                                     .y = { g->x, g->d, g->n_groups, start, row },
                                                     .best = near,
                                                     .which = which,
                                                     .scratch = c->pair },
                             e);
    for (uint32_t i = 0; st == OK && i < n; i++) near[i] = (weight ? weight[i] : 1) * (1 - near[i]);
    for (uint32_t i = 0; st == OK && i < n_y; i++) near[kept[i]] = INFINITY; /* before all others of its group */
    for (uint32_t k = 0; st == OK && k < g->n_groups; k++) {
        const uint32_t from = g->start[k];
        for (uint32_t i = start[k]; i < start[k + 1]; i++) kept[i] -= from;
        st = why_places(c, place + from, near + from, g->start[k + 1] - from, kept + start[k], n_pick[k], PRUNE_BY_LIKENESS, e);
    }
    free(near);
    free(list);
    return st;
}

void choose_saliency(struct choice *c, const uint32_t *place, uint32_t n)
{
    const struct prompt *p = c->r->prompt;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = p->av[place[i]];
        c->score[i] = (p->kind[at] == TOKEN_AUDIO ? c->v->audio_saliency : c->v->vision_saliency)[p->row[at]];
    }
}

status choose_cosine(struct choice *c, const float *x, const uint32_t *a, const float *y, const uint32_t *b,
                     uint32_t n, float *out, struct err *e)
{
    return c->ops->cosine(
        c->v->st, &(struct cosine_args){ .x = x, .d = c->v->d, .n = n, .a = a, .y = y, .b = b, .out = out },
        e);
}

status choose_step_likeness(struct choice *c, float *out, struct err *e)
{
    const struct av_groups *g = &c->g;
    float *mean;
    uint32_t *start = c->list[0], *group = c->list[1];
    start[0] = 0;
    for (uint32_t k = 0; k < g->n_steps; k++) {
        start[k + 1] = start[k] + g->step[k].n;
        for (uint32_t i = 0; i < g->step[k].n; i++) group[start[k] + i] = k;
    }
    TRY(c->ops->alloc(c->v->st, (size_t)(g->n_steps + 1) * c->v->d * sizeof(float), (void **)&mean, e));
    status st = c->ops->means(
        c->v->st,
        &(struct means_args){
            .g = { c->v->vision, c->v->d, g->n_steps, start, g->vision_row }, .y = mean, .scratch = c->pair },
        e);
    if (st == OK) st = choose_cosine(c, c->v->vision, g->vision_row, mean, group, g->n_vision, out, e);
    c->ops->release(c->v->st, mean);
    return st;
}

/* Density peaks of the even steps that lose something: their scores, in the order of the vision list, to out. */
static status peaks(struct choice *c, const uint32_t *turn, const uint32_t *keep, uint32_t knn, float *out,
                    struct err *e)
{
    const struct av_groups *g = &c->g;
    uint32_t *start = c->list[0], *row = c->list[1], n = 0, n_groups = 0;
    for (uint32_t s = 0; s < g->n_steps; s++) {
        const struct av_step *step = &g->step[s];
        if (turn[s] % 2 || keep[s] >= step->n) continue;
        start[n_groups++] = n;
        for (uint32_t i = 0; i < step->n; i++) row[n++] = g->vision_row[step->first + i];
    }
    start[n_groups] = n;
    TRY(c->ops->density(c->v->st,
                        &(struct density_args){ .g = { c->v->vision, c->v->d, n_groups, start, row },
                                                .k = knn,
                                                .out = c->score,
                                                .scratch = c->pair },
                        e));
    n = 0;
    for (uint32_t s = 0; s < g->n_steps; s++) {
        const struct av_step *step = &g->step[s];
        if (turn[s] % 2 || keep[s] >= step->n) continue;
        memcpy(out + step->first, c->score + n, step->n * sizeof *out);
        n += step->n;
    }
    return OK;
}

static status keep_steps(struct choice *c, const uint32_t *turn, const uint32_t *keep, const float *peak,
                         struct err *e)
{
    const struct av_groups *g = &c->g;
    for (uint32_t s = 0; s < g->n_steps; s++) {
        const struct av_step *step = &g->step[s];
        const uint32_t *place = g->vision + step->first;
        if (keep[s] >= step->n) {
            choose_all(c, place, step->n);
            continue;
        }
        if (turn[s] % 2) {
            TRY(choose_cosine(c, c->v->vision, g->vision_row + step->first, NULL,
                              g->vision_row + g->step[s - 1].first, step->n, c->score, e));
            for (uint32_t i = 0; i < step->n; i++) c->score[i] = -c->score[i];
        } else {
            memcpy(c->score, peak + step->first, step->n * sizeof *c->score);
        }
        TRY(choose_best(c, place, step->n, keep[s], e));
    }
    return OK;
}

status choose_steps(struct choice *c, const uint32_t *turn, const uint32_t *keep, uint32_t knn, struct err *e)
{
    float *peak;
    if (c->g.n_vision == 0) return OK;
    TRY(mem_alloc(&peak, c->g.n_vision, sizeof *peak, e));
    status st = peaks(c, turn, keep, knn, peak, e);
    if (st == OK) st = keep_steps(c, turn, keep, peak, e);
    free(peak);
    return st;
}

/* ---- merges ----------------------------------------------------------------------------------------------- */

status choose_merge_into(struct choice *c, uint32_t dst, float c0, struct err *e)
{
    struct prune_merges *m = &c->out->merges;
    TRY(mem_grow(&m->dst, &m->dst_cap, m->n + 1, sizeof *m->dst, e));
    TRY(mem_grow(&m->c0, &m->c0_cap, m->n + 1, sizeof *m->c0, e));
    TRY(mem_grow(&m->start, &m->start_cap, m->n + 2, sizeof *m->start, e));
    if (m->n == 0) m->start[0] = 0;
    m->dst[m->n] = c->r->prompt->av[dst];
    m->c0[m->n] = c0;
    m->start[m->n + 1] = m->start[m->n];
    m->n++;
    return OK;
}

status choose_merge_from(struct choice *c, uint32_t src, float w, struct err *e)
{
    struct prune_merges *m = &c->out->merges;
    const uint32_t n = m->start[m->n];
    TRY(mem_grow(&m->src, &m->src_cap, n + 1, sizeof *m->src, e));
    TRY(mem_grow(&m->w, &m->w_cap, n + 1, sizeof *m->w, e));
    m->src[n] = c->r->prompt->av[src];
    m->w[n] = w;
    m->start[m->n] = n + 1;
    return OK;
}

/* ---- audio of OmniZip and DASH ---------------------------------------------------------------------------- */

static uint32_t dominant(const struct choose_anchors *a, uint32_t n)
{
    return prune_round((1 - a->rho) * (double)n);
}

static uint32_t anchors(const struct choose_anchors *a, uint32_t n)
{
    const uint32_t k = prune_round(a->anchor * (double)n), rest = n - dominant(a, n);
    return k < rest ? k : rest;
}

uint32_t choose_audio_kept(const struct choose_anchors *a, uint32_t n_audio)
{
    return dominant(a, n_audio) + anchors(a, n_audio);
}

/* One item's tokens that are neither dominant nor anchors, and the anchors: indices into the item's audio. */
struct consolidation {
    const uint32_t *anchor, *pool;
    uint32_t n_anchors, n_pool;
    float *near, *x; /* [n_pool] cosine to its anchor; to the film, or `near` */
    uint32_t *owner; /* [n_pool] place in anchor */
};

static status nearest_rows(struct choice *c, const uint32_t *a, uint32_t n_a, const float *y,
                           const uint32_t *b, uint32_t n_b, float *best, uint32_t *which, struct err *e)
{
    const uint32_t start_a[] = { 0, n_a }, start_b[] = { 0, n_b };
    return c->ops->nearest(c->v->st,
                           &(struct nearest_args){ .x = { c->v->audio, c->v->d, 1, start_a, a },
                                                   .y = { y, c->v->d, 1, start_b, b },
                                                   .best = best,
                                                   .which = which,
                                                   .scratch = c->pair },
                           e);
}

/* Every anchor takes in the min(G, n) of highest x among those it owns: (A + sum w A_p) / 2, w their softmax of x. */
static status take_in(struct choice *c, const uint32_t *place, const struct consolidation *k, uint32_t G,
                      struct err *e)
{
    struct ranked *own;
    status st = OK;
    TRY(mem_alloc(&own, k->n_pool, sizeof *own, e));
    for (uint32_t a = 0; st == OK && a < k->n_anchors; a++) {
        uint32_t n = 0;
        double sum = 0;
        for (uint32_t i = 0; i < k->n_pool; i++)
            if (k->owner[i] == a) own[n++] = (struct ranked){ k->x[i], i };
        if (n == 0) continue;
        qsort(own, n, sizeof *own, by_score);
        if (n > G) n = G;
        const double top = own[0].score;
        for (uint32_t i = 0; i < n; i++) sum += exp(own[i].score - top);
        st = choose_merge_into(c, place[k->anchor[a]], 0.5f, e);
        for (uint32_t i = 0; st == OK && i < n; i++)
            st = choose_merge_from(c, place[k->pool[own[i].i]], (float)(0.5 * exp(own[i].score - top) / sum),
                                   e);
    }
    free(own);
    return st;
}

static status consolidate(struct choice *c, const struct av_item *it, struct consolidation *k, uint32_t G,
                          struct err *e)
{
    const uint32_t *rows = c->g.audio_row + it->audio;
    uint32_t *a, *row;
    TRY(mem_alloc(&a, 2 * (size_t)it->n_audio, sizeof *a, e));
    row = a + it->n_audio;
    for (uint32_t i = 0; i < k->n_pool; i++) a[i] = rows[k->pool[i]];
    for (uint32_t i = 0; i < k->n_anchors; i++) row[i] = rows[k->anchor[i]];
    status st = nearest_rows(c, a, k->n_pool, c->v->audio, row, k->n_anchors, k->near, k->owner, e);
    if (st == OK && it->n_vision)
        st = nearest_rows(c, a, k->n_pool, c->v->vision, c->g.vision_row + it->vision, it->n_vision, k->x,
                          row, e);
    else if (st == OK)
        memcpy(k->x, k->near, k->n_pool * sizeof *k->x);
    if (st == OK) st = take_in(c, c->g.audio + it->audio, k, G, e);
    free(a);
    return st;
}

status choose_audio(struct choice *c, uint32_t item, const struct choose_anchors *a, struct err *e)
{
    const struct av_item *it = &c->g.item[item];
    const uint32_t n = it->n_audio, n_ctx = anchors(a, n), *place = c->g.audio + it->audio;
    uint32_t *rest = NULL, n_rest = 0;
    if (n == 0) return OK;
    TRY(choose_best(c, place, n, dominant(a, n), e));
    TRY(mem_alloc(&rest, 4 * (size_t)n, sizeof *rest, e));
    uint32_t *anchor = rest + n, *pool = anchor + n;
    struct consolidation k = { .anchor = anchor, .pool = pool, .owner = pool + n };
    for (uint32_t i = 0; i < n; i++)
        if (!c->keep[place[i]]) rest[n_rest++] = i;
    const uint32_t step = n_ctx && n_rest / n_ctx > 1 ? n_rest / n_ctx : 1;
    for (uint32_t i = 0; i < n_rest; i++)
        if (i % step == 0 && k.n_anchors < n_ctx)
            anchor[k.n_anchors++] = rest[i];
        else
            pool[k.n_pool++] = rest[i];
    for (uint32_t i = 0; i < k.n_anchors; i++) c->keep[place[anchor[i]]] = 1;
    status st = OK;
    if (k.n_anchors && k.n_pool) {
        st = mem_alloc(&k.near, 2 * (size_t)k.n_pool, sizeof *k.near, e);
        if (st == OK) k.x = k.near + k.n_pool;
        if (st == OK) st = consolidate(c, it, &k, a->G, e);
    }
    free(k.near);
    free(rest);
    return st;
}

/* ---- a choice at a layer ---------------------------------------------------------------------------------- */

const char *const KINDS_WORDS[] = { "av", "vision" };

uint32_t kinds_spared(const struct prune_shape *s, int kinds)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_items && kinds == KINDS_VISION; i++) n += s->item[i].n_audio;
    return n;
}

/* The k best of the n tokens whose places among those alive are in r->index; the rest stays. kept: [n] room. */
static status keep_among(struct policy_run *r, const struct prune_layer_view *v, const float *score,
                         uint32_t n, uint32_t k, uint32_t *kept, float *own, struct prune_selection *out,
                         struct err *e)
{
    for (uint32_t i = 0; i < n; i++) own[i] = score[r->index[i]];
    TRY(best_of(r, v->st, own, n, k, kept, e));
    if (out->want_why && k < n) {
        uint32_t *index = kept + n;
        for (uint32_t i = 0; i < n; i++) index[i] = v->alive[r->index[i]];
        TRY(why_scored(out, index, own, n, kept, k, e));
    }
    out->n_keep = 0;
    for (uint32_t i = 0, j = 0, m = 0; i < v->n_alive; i++) {
        const bool asked = j < n && r->index[j] == i, best = asked && m < k && kept[m] == j;
        if (!asked || best) out->keep[out->n_keep++] = v->alive[i];
        j += asked;
        m += best;
    }
    return OK;
}

status layer_best(struct policy_run *r, const struct prune_layer_view *v, const float *score, int kinds,
                  uint32_t k, struct prune_selection *out, struct err *e)
{
    uint32_t n = 0, *kept;
    float *own = NULL;
    for (uint32_t i = 0; i < v->n_alive; i++)
        if (kinds == KINDS_AV || (r->prompt->kind[v->alive[i]] == TOKEN_AUDIO) == (kinds == KINDS_AUDIO))
            r->index[n++] = i;
    TRY(mem_alloc(&kept, 2 * (size_t)n, sizeof *kept, e));
    status st = mem_alloc(&own, n, sizeof *own, e);
    if (st == OK) st = keep_among(r, v, score, n, k < n ? k : n, kept, own, out, e);
    free(own);
    free(kept);
    return st;
}

status layer_why(const struct prune_layer_view *v, const uint32_t *kept, uint32_t m,
                 struct prune_selection *out, struct err *e)
{
    return why_scored(out, v->alive, v->score, v->n_alive, kept, m, e);
}

void layer_places(const struct policy_run *r, const struct prune_layer_view *v, uint32_t *place)
{
    for (uint32_t i = 0, k = 0; i < v->n_alive; i++) {
        while (r->prompt->av[k] != v->alive[i]) k++;
        place[i] = k;
    }
}

/* ---- counts ----------------------------------------------------------------------------------------------- */

struct remainder {
    double over;
    uint32_t i;
};

static int by_over(const void *pa, const void *pb)
{
    const struct remainder *a = pa, *b = pb;
    if (a->over != b->over) return a->over < b->over ? 1 : -1;
    return (a->i > b->i) - (a->i < b->i);
}

/* Remainders within 1e-9 of the one before count as equal: runs of them in order of index. */
static void level_runs(struct remainder *r, uint32_t n)
{
    for (uint32_t from = 0, i = 1; i <= n; i++) {
        if (i < n && r[i - 1].over - r[i].over <= 1e-9) continue;
        for (uint32_t k = from; k < i; k++) r[k].over = 0;
        qsort(r + from, i - from, sizeof *r, by_over);
        from = i;
    }
}

status count_shares(const double *share, const uint32_t *room, uint32_t n, uint32_t total, uint32_t *count,
                    struct err *e)
{
    struct remainder *r;
    uint64_t sum = 0;
    TRY(mem_alloc(&r, n, sizeof *r, e));
    for (uint32_t i = 0; i < n; i++) {
        count[i] = prune_floor(share[i]);
        if (room && count[i] > room[i]) count[i] = room[i];
        r[i] = (struct remainder){ fmax(share[i] - count[i], 0), i };
        sum += count[i];
    }
    if (n) qsort(r, n, sizeof *r, by_over);
    level_runs(r, n);
    for (bool more = true; more && sum < total;) {
        more = false;
        for (uint32_t k = 0; k < n && sum < total; k++) {
            if (room && count[r[k].i] >= room[r[k].i]) continue;
            count[r[k].i]++;
            sum++;
            more = true;
        }
    }
    for (uint32_t k = n; k-- > 0 && sum > total;) /* only where the shares sum to more than the total */
        for (; count[r[k].i] > 0 && sum > total; sum--) count[r[k].i]--;
    free(r);
    return OK;
}

static double clamp(double x, double lo, double hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

void offset_rates(double *rate, const uint32_t *n, uint32_t count, double lo, double hi, double target)
{
    double all = 0, low = 0, high = 0;
    for (uint32_t i = 0; i < count; i++) all += n[i];
    if (all == 0) return;
    lo = fmin(lo, target / all);
    hi = fmax(hi, target / all);
    for (uint32_t i = 0; i < count; i++) {
        low = fmin(low, lo - rate[i]);
        high = fmax(high, hi - rate[i]);
    }
    for (int t = 0; t < 200 && low < high; t++) {
        const double mid = low + (high - low) / 2;
        double sum = 0;
        for (uint32_t i = 0; i < count; i++) sum += n[i] * clamp(rate[i] + mid, lo, hi);
        if (sum < target)
            low = mid;
        else
            high = mid;
    }
    for (uint32_t i = 0; i < count; i++) rate[i] = clamp(rate[i] + high, lo, hi);
}

uint32_t knee_of(const float *s, uint32_t n)
{
    uint32_t best = 0;
    double most = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        const double chord = n > 1 ? s[0] + ((double)s[n - 1] - s[0]) * i / (n - 1) : s[0];
        if (chord - s[i] > most) {
            most = chord - s[i];
            best = i;
        }
    }
    return best;
}

static int descending(const void *pa, const void *pb)
{
    const float a = *(const float *)pa, b = *(const float *)pb;
    if (isnan(a) || isnan(b)) return (int)isnan(a) - (int)isnan(b);
    return (a < b) - (a > b);
}

uint32_t knee_of_unsorted(const float *s, uint32_t n, float *work)
{
    memcpy(work, s, n * sizeof *work);
    qsort(work, n, sizeof *work, descending);
    while (n > 1 && isnan(work[n - 1])) n--;
    return knee_of(work, n);
}
