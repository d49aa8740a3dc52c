/* prune/step0.c - see step0.h. All parts are "keep the m best of a list", on the ops table's select; and the policies
 * that are one part alone. */
#include "prune/step0.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

#define GROUP 4 /* grid steps that TTM looks at together */

const char *const STEP0_REF[] = { "dycoke", "anchor" };

/* Tokens kept of grid step k of an item. */
static uint32_t step_count(const struct step0 *s, const struct prune_item *item, uint32_t k)
{
    const uint32_t n = item->step_tokens, by_saliency = prune_floor(s->vision * (double)n);
    if (item->kind != TOKEN_VIDEO || k % GROUP == 0 || s->kappa >= 1) return by_saliency;
    return prune_floor(s->kappa * (double)n);
}

uint32_t step0_count(const struct step0 *s, const struct prune_item *item)
{
    uint32_t n = prune_floor(s->audio * (double)item->n_audio);
    for (uint32_t k = 0; k < item->steps; k++) n += step_count(s, item, k);
    return n;
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

void step0_kinds(const struct step0 *s, const struct prompt *p, uint32_t kept[4])
{
    memset(kept, 0, 4 * sizeof *kept);
    for (uint32_t i = 0; i < p->n_items; i++) {
        const struct prune_item item = prune_item_of(&p->items[i]);
        const uint32_t n_audio = prune_floor(s->audio * (double)item.n_audio);
        kept[TOKEN_AUDIO] += n_audio;
        if (item.steps) kept[p->items[i].media.kind] += step0_count(s, &item) - n_audio;
    }
    if (p->n_av && kept[TOKEN_AUDIO] + kept[TOKEN_VIDEO] + kept[TOKEN_IMAGE] == 0)
        kept[p->n_audio ? TOKEN_AUDIO : p->kind[p->av[0]]] = 1; /* keep_one */
}

uint32_t step0_needs(const struct step0 *s)
{
    return (s->audio < 1 ? PRUNE_NEEDS_AUDIO_SALIENCY : 0u) |
           (s->vision < 1 ? PRUNE_NEEDS_VISION_SALIENCY : 0u) | (s->kappa < 1 ? PRUNE_NEEDS_EMBEDDINGS : 0u);
}

/* ---- selection -------------------------------------------------------------------------------------------- */

/* One call's memory; all lists have room for every AV token. */
struct work {
    const struct step0 *s;
    const struct prompt *p;
    const struct prune_embed_view *v;
    bool *keep;               /* [n_av] of prompt->av                                                 */
    uint32_t *audio, *vision; /* places in prompt->av of one item's tokens, in prompt order           */
    uint32_t n_audio, n_vision;
    uint32_t *a, *b, *kept;
    float *score;
    void *scratch; /* of select                                                            */
    struct prune_selection *out;
};

/* Mark the m of n tokens at `place` with the highest w->score, ties to the lower index. */
static status keep_best(struct work *w, const uint32_t *place, uint32_t n, uint32_t m, struct err *e)
{
    TRY(w->v->st->ops->select(
        w->v->st,
        &(struct select_args){
            .score = w->score, .n = n, .k = n - m, .keep = w->kept, .scratch = w->scratch },
        e));
    for (uint32_t i = 0; i < m; i++) w->keep[place[w->kept[i]]] = true;
    if (!w->out->want_why) return OK;
    for (uint32_t i = 0; i < n; i++) w->a[i] = w->p->av[place[i]];
    return why_scored(w->out, w->a, w->score, n, w->kept, m, e);
}

/* The m of n tokens at `place` by the towers' saliency; all of them needs none. */
static status keep_salient(struct work *w, const float *saliency, const uint32_t *place, uint32_t n,
                           uint32_t m, struct err *e)
{
    if (m == n) {
        for (uint32_t i = 0; i < n; i++) w->keep[place[i]] = true;
        return OK;
    }
    for (uint32_t i = 0; i < n; i++) w->score[i] = saliency[w->p->row[w->p->av[place[i]]]];
    return keep_best(w, place, n, m, e);
}

/* The m tokens of step k that differ most from the same place of the step it is compared with. */
static status keep_changed(struct work *w, uint32_t k, uint32_t n, uint32_t m, struct err *e)
{
    const uint32_t g = k % GROUP, ref = g == 3 && !w->s->anchor ? k - 1 : k - g;
    const uint32_t *own = w->vision + (size_t)k * n, *other = w->vision + (size_t)ref * n;
    for (uint32_t i = 0; i < n; i++) {
        w->a[i] = w->p->row[w->p->av[own[i]]];
        w->b[i] = w->p->row[w->p->av[other[i]]];
    }
    TRY(w->v->st->ops->cosine(
        w->v->st,
        &(struct cosine_args){
            .x = w->v->vision, .d = w->v->d, .n = n, .a = w->a, .b = w->b, .out = w->score },
        e));
    for (uint32_t i = 0; i < n; i++) w->score[i] = -w->score[i];
    return keep_best(w, own, n, m, e);
}

static status select_item(struct work *w, const struct prune_item *item, struct err *e)
{
    TRY(keep_salient(w, w->v->audio_saliency, w->audio, w->n_audio,
                     prune_floor(w->s->audio * (double)w->n_audio), e));
    for (uint32_t k = 0; k < item->steps; k++) {
        const uint32_t n = item->step_tokens, m = step_count(w->s, item, k);
        if (w->s->kappa < 1 && item->kind == TOKEN_VIDEO && k % GROUP != 0)
            TRY(keep_changed(w, k, n, m, e));
        else
            TRY(keep_salient(w, w->v->vision_saliency, w->vision + (size_t)k * n, n, m, e));
    }
    return OK;
}

/* Nothing may empty a request: the most salient audio token stays, without audio the first AV token. */
static void keep_one(struct work *w)
{
    const struct prompt *p = w->p;
    uint32_t best = 0;
    float most = -INFINITY;
    bool audio = false;
    for (uint32_t i = 0; i < p->n_av; i++) {
        if (w->keep[i]) return;
        if (p->kind[p->av[i]] != TOKEN_AUDIO) continue;
        const float a = w->v->audio_saliency[p->row[p->av[i]]];
        if (!audio || a > most) best = i;
        if (!audio || a > most) most = isnan(a) ? -INFINITY : a;
        audio = true;
    }
    w->keep[best] = true;
}

static status select_all(struct work *w, struct err *e)
{
    const struct prompt *p = w->p;
    uint32_t first = 0; /* the tokens of an item lie together, and items in order */
    for (uint32_t item = 0; item < p->n_items; item++) {
        const struct prune_item counts = prune_item_of(&p->items[item]);
        w->n_audio = w->n_vision = 0;
        for (; first < p->n_av && p->item[p->av[first]] == item; first++)
            if (p->kind[p->av[first]] == TOKEN_AUDIO)
                w->audio[w->n_audio++] = first;
            else
                w->vision[w->n_vision++] = first;
        TRY(select_item(w, &counts, e));
    }
    assert(first == p->n_av);
    if (p->n_av) keep_one(w);
    return OK;
}

status step0_select(const struct step0 *s, const struct prompt *p, const struct prune_embed_view *v,
                    struct prune_selection *out, struct err *e)
{
    struct work w = { .s = s, .p = p, .v = v, .out = out };
    const size_t n = p->n_av;
    status st;
    TRY_GOTO(st, mem_alloc(&w.keep, n, sizeof *w.keep, e), undo);
    TRY_GOTO(st, mem_alloc(&w.audio, 5 * n, sizeof *w.audio, e), undo);
    w.vision = w.audio + n, w.a = w.vision + n, w.b = w.a + n, w.kept = w.b + n;
    TRY_GOTO(st, mem_alloc(&w.score, n, sizeof *w.score, e), undo);
    TRY_GOTO(st, mem_alloc_aligned(&w.scratch, v->st->ops->select_scratch(v->st, (uint32_t)n), e), undo);
    TRY_GOTO(st, select_all(&w, e), undo);
    out->n_keep = 0;
    for (uint32_t i = 0; i < n; i++)
        if (w.keep[i]) out->keep[out->n_keep++] = p->av[i];
undo:
    free(w.keep);
    free(w.audio);
    free(w.score);
    free(w.scratch);
    return st;
}

/* ---- the policies ----------------------------------------------------------------------------------------- */

static double value_or(const struct policy_params *p, const char *key, double otherwise)
{
    return prune_has(p, key) ? prune_get(p, key) : otherwise;
}

struct step0 step0_of(const struct policy_params *p)
{
    return (struct step0){ .audio = value_or(p, "audio", 1),
                           .kappa = value_or(p, "kappa", 1),
                           .vision = value_or(p, "vision", 1),
                           .anchor = value_or(p, "ref", 0) != 0 };
}

static status plan(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                   struct err *e)
{
    (void)e;
    const struct step0 s0 = step0_of(p);
    prune_plan_entry(out, step0_total(&s0, s));
    out->needs = step0_needs(&s0);
    return OK;
}

static status embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e)
{
    const struct step0 s0 = step0_of(r->params);
    return step0_select(&s0, r->prompt, v, out, e);
}

/* clang-format off */
#define P_AUDIO { "audio", NULL, PARAM_NUMBER, 0, 1, 0.7, "share of an item's audio tokens kept", NULL }
#define P_KAPPA { "kappa", NULL, PARAM_NUMBER, 0, 1, 0.2, "share kept of a reduced grid step", NULL }
#define P_REF { "ref", NULL, PARAM_WORD, 0, 1, 0, STEP0_REF_HELP, STEP0_REF }
/* clang-format on */

static const struct prune_param STEP0_PARAMS[] = { P_AUDIO, P_KAPPA, P_REF };
const struct policy policy_step0 = { .name = "step0",
                                     .citation = "Park et al., OmniDrop, arXiv 2605.14458 3.4 (2026)",
                                     .help = "OmniDrop's pruning before the decoder, and nothing inside it.",
                                     .param = STEP0_PARAMS,
                                     .n_param = sizeof STEP0_PARAMS / sizeof *STEP0_PARAMS,
                                     .plan = plan,
                                     .embed = embed };

enum { TTM_KAPPA, TTM_REF, TTM_RETAIN };
static const struct prune_param TTM_PARAMS[] = {
    [TTM_KAPPA] = P_KAPPA,
    [TTM_REF] = P_REF,
    [TTM_RETAIN] = { "retain", NULL, PARAM_NUMBER, 0.25, 1, NAN,
                     "share kept of four steps, (1 + 3 kappa) / 4", NULL },
};

static status ttm_check(struct policy_params *p, struct err *e)
{
    if (!p->given[TTM_RETAIN]) return OK;
    if (p->given[TTM_KAPPA])
        return err_set(e, E_ARG, "retain and kappa exclude each other: retain is (1 + 3 kappa) / 4");
    p->value[TTM_KAPPA] = (4 * p->value[TTM_RETAIN] - 1) / 3;
    return OK;
}

const struct policy policy_ttm = {
    .name = "ttm",
    .citation = "Tao et al., DyCoke, arXiv 2411.15024 (2025)",
    .help =
        "Before the decoder: of four grid steps of a film, keeps of three what changed most. Audio whole.",
    .param = TTM_PARAMS,
    .n_param = sizeof TTM_PARAMS / sizeof *TTM_PARAMS,
    .check = ttm_check,
    .plan = plan,
    .embed = embed
};

static const struct prune_param SALIENCY_PARAMS[] = {
    P_AUDIO,
    { "vision", NULL, PARAM_NUMBER, 0, 1, 1, "share of each grid step and picture kept, by saliency", NULL }
};
const struct policy policy_saliency = {
    .name = "saliency",
    .citation = "Attention received in the towers' last full layer; arXiv 2605.14458 3.4 for audio",
    .help = "Before the decoder: keeps what the towers themselves look at most.",
    .param = SALIENCY_PARAMS,
    .n_param = sizeof SALIENCY_PARAMS / sizeof *SALIENCY_PARAMS,
    .plan = plan,
    .embed = embed
};
