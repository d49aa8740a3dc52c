/* prune/step0.c - see step0.h. Both parts are "keep the m best of a list", on the ops table's select. */
#include "prune/step0.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define GROUP 4                    /* grid steps that TTM looks at together */

uint32_t step0_count(const struct step0 *s, const struct prune_item *item)
{
    const uint32_t audio = prune_floor(s->audio * (double)item->n_audio);
    if (item->kind != TOKEN_VIDEO) return audio + item->steps * item->step_tokens;
    const uint32_t m = prune_floor(s->kappa * (double)item->step_tokens), whole = (item->steps + GROUP - 1) / GROUP;
    return audio + whole * item->step_tokens + (item->steps - whole) * m;
}

uint32_t step0_total(const struct step0 *s, const struct prune_shape *shape)
{
    uint32_t n = 0, orig = 0;
    for (uint32_t i = 0; i < shape->n_items; i++) {
        n += step0_count(s, &shape->item[i]);
        orig += shape->item[i].n_audio + shape->item[i].steps * shape->item[i].step_tokens;
    }
    return n == 0 && orig > 0 ? 1 : n;
}

/* Mark the m of n with the highest score, ties to the lower index: slot[i] is the place in `keep` of entry i. */
static status keep_best(struct stream *st, const float *score, const uint32_t *slot, uint32_t n, uint32_t m, bool *keep,
                        struct err *e)
{
    uint32_t *kept;
    void *scratch = NULL;
    TRY(mem_alloc(&kept, m + 1, sizeof *kept, e));
    status r = mem_alloc_aligned(&scratch, st->ops->select_scratch(st, n) + 64, e);
    if (r == OK)
        r = st->ops->select(st, &(struct select_args){ .score = score, .n = n, .k = n - m, .keep = kept,
                                                       .scratch = scratch }, e);
    for (uint32_t i = 0; r == OK && i < m; i++) keep[slot[kept[i]]] = true;
    free(scratch);
    free(kept);
    return r;
}

/* Tokens of one item, by their place in prompt->av: audio in order, vision in order of their embedding rows. */
struct places { uint32_t *audio, *vision; uint32_t n_audio, n_vision; };

static status audio_of(const struct step0 *s, const struct prompt *p, const struct prune_embed_view *v,
                       const struct places *at, bool *keep, struct err *e)
{
    const uint32_t m = prune_floor(s->audio * (double)at->n_audio);
    float *score;
    if (m >= at->n_audio) {
        for (uint32_t i = 0; i < at->n_audio; i++) keep[at->audio[i]] = true;
        return OK;
    }
    TRY(mem_alloc(&score, at->n_audio, sizeof *score, e));
    for (uint32_t i = 0; i < at->n_audio; i++) score[i] = v->audio_saliency[p->row[p->av[at->audio[i]]]];
    const status st = keep_best(v->st, score, at->audio, at->n_audio, m, keep, e);
    free(score);
    return st;
}

static status film_of(const struct step0 *s, const struct prompt *p, const struct prune_embed_view *v,
                      const struct places *at, uint32_t n_p, bool *keep, struct err *e)
{
    const uint32_t m = prune_floor(s->kappa * (double)n_p), steps = at->n_vision / n_p;
    float *score;
    uint32_t *a, *b;
    TRY(mem_alloc(&score, n_p, sizeof *score, e));
    status st = mem_alloc(&a, (size_t)2 * n_p, sizeof *a, e);
    if (st != OK) {
        free(score);
        return st;
    }
    b = a + n_p;
    for (uint32_t k = 0; k < steps && st == OK; k++) {
        const uint32_t *own = at->vision + (size_t)k * n_p, g = k % GROUP;
        if (g == 0 || m >= n_p) {
            for (uint32_t i = 0; i < n_p; i++) keep[own[i]] = true;
            continue;
        }
        const uint32_t ref = g == 3 && !s->anchor ? k - 1 : k - g;
        for (uint32_t i = 0; i < n_p; i++) {
            a[i] = p->row[p->av[own[i]]];
            b[i] = p->row[p->av[at->vision[(size_t)ref * n_p + i]]];
        }
        st = v->st->ops->cosine(v->st, &(struct cosine_args){ .x = v->vision, .d = v->d, .n = n_p, .a = a, .b = b,
                                                              .out = score }, e);
        for (uint32_t i = 0; i < n_p; i++) score[i] = -score[i];       /* the least alike stay */
        if (st == OK) st = keep_best(v->st, score, own, n_p, m, keep, e);
    }
    free(a);
    free(score);
    return st;
}

/* Nothing may empty a request: the most salient audio token stays, without audio the first AV token. */
static void keep_one(const struct prompt *p, const struct prune_embed_view *v, bool *keep)
{
    uint32_t best = 0;
    float most = -INFINITY;
    bool audio = false;
    for (uint32_t i = 0; i < p->n_av; i++) {
        if (keep[i]) return;
        if (p->kind[p->av[i]] != TOKEN_AUDIO || v->audio_saliency == NULL) continue;
        const float a = v->audio_saliency[p->row[p->av[i]]];
        if (!audio || a > most) {
            best = i;
            most = a;
        }
        audio = true;
    }
    if (p->n_av) keep[best] = true;
}

status step0_select(const struct step0 *s, const struct prompt *p, const struct prune_embed_view *v, bool *keep,
                    struct err *e)
{
    struct places at;
    TRY(mem_alloc(&at.audio, (size_t)2 * p->n_av, sizeof *at.audio, e));
    at.vision = at.audio + p->n_av;
    memset(keep, 0, p->n_av * sizeof *keep);
    status st = OK;
    for (uint32_t item = 0; item < p->n_items && st == OK; item++) {
        const struct prompt_item *it = &p->items[item];
        at.n_audio = at.n_vision = 0;
        for (uint32_t i = 0; i < p->n_av; i++) {
            const uint32_t j = p->av[i];
            if (p->item[j] != item) continue;
            if (p->kind[j] == TOKEN_AUDIO) at.audio[at.n_audio++] = i;
            else at.vision[at.n_vision++] = i;
        }
        st = audio_of(s, p, v, &at, keep, e);
        if (st != OK) break;
        if (it->media.kind == TOKEN_VIDEO && at.n_vision && it->media.t)
            st = film_of(s, p, v, &at, at.n_vision / it->media.t, keep, e);
        else
            for (uint32_t i = 0; i < at.n_vision; i++) keep[at.vision[i]] = true;
    }
    if (st == OK) keep_one(p, v, keep);
    free(at.audio);
    return st;
}
