/* prune/knee.c - Sparsity Meets Similarity, rebuilt from its abstract: of every grid step the head of the sorted scores up to
 * their inflection; half way through the decoder once more by the question. Audio is left alone.
 * Source: arXiv 2409.01162; docs/pruning-methods.md 6. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

enum { SIGNAL };
enum { BY_SALIENCY, BY_MEAN };
static const char *const SIGNAL_WORDS[] = { "saliency", "mean" };
static const struct prune_param PARAMS[] = {
    [SIGNAL] = { "signal", NULL, PARAM_WORD, 0, 1, BY_SALIENCY,
                 "scores of a step: the tower's saliency, or likeness to the step's mean", SIGNAL_WORDS }
};

static uint32_t at_least_one(uint32_t n)
{
    return n ? n : 1;
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const uint32_t L = s->n_layers;
    uint32_t n = 0;
    bool vision = false;
    for (uint32_t i = 0; i < s->n_items; i++) {
        const struct prune_item *it = &s->item[i];
        n += it->n_audio +
             it->steps * (it->step_tokens ? at_least_one(prune_floor(0.5 * it->step_tokens)) : 0);
        vision = vision || prune_item_vision(it) > 0;
    }
    prune_plan_entry(out, n);
    out->exact = !vision;
    if (L >= 2) out->selects[L / 2 - 1] = vision;
    out->needs = (p->value[SIGNAL] == BY_MEAN ? PRUNE_NEEDS_EMBEDDINGS : PRUNE_NEEDS_VISION_SALIENCY) |
                 (vision && L >= 2 ? PRUNE_NEEDS_ROW_SCORES : 0u);
    return OK;
}

/* Scores of every vision token in the order of the list. */
static status signal_of(struct choice *c, float *s, struct err *e)
{
    const struct av_groups *g = &c->g;
    if (c->r->params->value[SIGNAL] == BY_SALIENCY) {
        choose_saliency(c, g->vision, g->n_vision);
        for (uint32_t i = 0; i < g->n_vision; i++) s[i] = c->score[i];
        return OK;
    }
    return choose_step_likeness(c, s, e);
}

static status choose(struct choice *c, float *s, float *work, struct err *e)
{
    const struct av_groups *g = &c->g;
    choose_all(c, g->audio, g->n_audio);
    TRY(signal_of(c, s, e));
    for (uint32_t k = 0; k < g->n_steps; k++) {
        const struct av_step *step = &g->step[k];
        const uint32_t n = step->n, low = prune_floor(0.05 * n), high = prune_floor(0.5 * n);
        uint32_t m = knee_of_unsorted(s + step->first, n, work) + 1;
        m = at_least_one(m < low ? low : m > high ? high : m);
        for (uint32_t i = 0; i < n; i++) c->score[i] = s[step->first + i];
        TRY(choose_best(c, g->vision + step->first, n, m, e));
    }
    return OK;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    struct choice c;
    float *s = NULL;
    status st = choose_begin(&c, r, v, out, e);
    if (st == OK) st = mem_alloc(&s, 2 * (size_t)r->prompt->n_av, sizeof *s, e);
    if (st == OK) st = choose(&c, s, s + r->prompt->n_av, e);
    free(s);
    return choose_end(&c, st, e);
}

/* The second round: of n vision tokens alive the knee, half of them at least. */
static status layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                    struct prune_selection *out, struct err *e)
{
    (void)l;
    float *s;
    uint32_t n = 0;
    TRY(mem_alloc(&s, 2 * (size_t)v->n_alive, sizeof *s, e));
    for (uint32_t i = 0; i < v->n_alive; i++)
        if (r->prompt->kind[v->alive[i]] != TOKEN_AUDIO) s[n++] = v->score[i];
    uint32_t m = n ? knee_of_unsorted(s, n, s + n) + 1 : 0;
    if (m < n - n / 2) m = n - n / 2;
    free(s);
    return layer_best(r, v, v->score, KINDS_VISION, m, out, e);
}

const struct policy policy_knee = {
    .name = "knee",
    .citation = "Yu et al., Sparsity Meets Similarity, arXiv 2409.01162 (2024), reconstruction",
    .help = "Vision up to the knee of its scores, before the decoder and half way through it.",
    .param = PARAMS,
    .n_param = sizeof PARAMS / sizeof *PARAMS,
    .plan = plan,
    .embed = embed,
    .layer = layer
};
