/* prune/policy.h - who drops tokens, when, and how many: the interface of all pruning methods.
 * A policy is a table of functions and parameters; adding one is one file and one line in registry.c.
 *
 *   params   prune_params_init, _set..., _finish      checked names and ranges
 *   plan     prune_plan        counts -> tokens alive per layer, before any tower runs (admission needs it)
 *   run      prune_begin
 *              prune_embed     once, before layer 0, on the towers' outputs
 *              prune_layer     at the layers that the plan names, on the scores of that layer
 *            prune_end
 * A policy sees no pages, no batch and no other request; the same input gives the same answer in any batch. Text
 * tokens are never dropped. Survivors come back as ascending prompt indices; nothing is renumbered.
 * Source of the stages: docs/pruning-methods.md 9. */
#ifndef PRUNE_POLICY_H
#define PRUNE_POLICY_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/ops.h"
#include "model/prompt.h"

#define PRUNE_PARAMS_MAX 16

/* What a plan asks the engine to compute; what is not asked for is not computed. */
enum prune_needs {
    PRUNE_NEEDS_AUDIO_SALIENCY = 1,    /* windowed attention received, last audio layer */
    PRUNE_NEEDS_EMBEDDINGS = 2,        /* the towers' outputs, at prune_embed           */
    PRUNE_NEEDS_ROW_SCORES = 4,        /* Eq. 5 over the query rows, at prune_layer     */
    PRUNE_NEEDS_VISION_SALIENCY = 8    /* attention received inside its grid step, last full vision block */
};

enum prune_param_kind { PARAM_NUMBER, PARAM_INTEGER, PARAM_BOOL, PARAM_WORD };

struct prune_param {
    const char *name;              /* as in the API: "p_init"                                         */
    const char *alias;             /* or NULL                                                         */
    enum prune_param_kind kind;
    double lo, hi, fallback;       /* fallback NaN: not set unless given                              */
    const char *help;
    const char *const *word;       /* PARAM_WORD: [hi + 1] choices; the value is an index             */
};

/* Counts of one media item. */
struct prune_item {
    enum token_kind kind;
    uint32_t n_audio;              /* audio tokens                                                    */
    uint32_t steps, step_tokens;   /* grid steps and tokens of each; pictures: 1 step                 */
};

/* The counts of an item of a prompt. A film whose steps differ in size is one picture: nothing merges over time. */
struct prune_item prune_item_of(const struct prompt_item *item);

struct prune_shape {
    uint32_t n_layers;
    uint32_t n_items;
    const struct prune_item *item;
};

struct policy_params {             /* plain data: copy freely */
    const struct policy *policy;
    uint32_t n_layers;
    double value[PRUNE_PARAMS_MAX];
    bool given[PRUNE_PARAMS_MAX];
};

struct policy_plan {
    uint32_t n_layers;
    uint32_t n_orig, n_entry;      /* AV tokens of the prompt; entering layer 0                       */
    uint32_t *alive;               /* [L + 1] AV rows whose K and V layer l stores; [L]: left at the end. Owned */
    bool *selects;                 /* [L] prune_layer is called there. Owned                          */
    double *rate;                  /* [L] share that layer l drops, for display. Owned                */
    bool exact;                    /* alive is what will be, not only an upper bound                  */
    uint32_t needs;                /* enum prune_needs                                                */
    enum query_rows query;         /* PRUNE_NEEDS_ROW_SCORES: whose attention                         */
    double p_final;                /* schedules: as given or calibrated                               */
    bool trim;                     /* after prefill layer l keeps K and V of the tokens alive entering layer
                                      min(L - 1, l + trim_lag) alone (docs/omnidrop.md 7, Trim)        */
    uint32_t trim_lag;
};

struct prune_selection {           /* zero before first use; prune_selection_free */
    uint32_t *keep;                /* [n_keep] ascending prompt indices of AV tokens                  */
    uint32_t n_keep;
    size_t cap;
};

struct prune_embed_view {
    struct stream *st;
    uint32_t d;
    const float *audio, *vision;   /* [n_audio, d], [n_vision, d] device; rows as prompt->row says    */
    const float *audio_saliency;   /* [n_audio] host; where asked for                                 */
    const float *vision_saliency;  /* [n_vision] host; where asked for                                */
};

struct prune_layer_view {
    struct stream *st;
    uint32_t n_alive;
    const uint32_t *alive;         /* [n_alive] prompt indices, ascending                             */
    const float *score;            /* [n_alive] host; where asked for                                 */
};

struct policy_run;                 /* one request's own state */

struct policy {
    const char *name, *citation, *help;
    const struct prune_param *param;   /* [n_param]                                                   */
    uint32_t n_param;
    /* Values that depend on the model (fallbacks hold where NULL), and checks across parameters. */
    void (*defaults)(struct policy_params *p);
    status (*check)(struct policy_params *p, struct err *e);
    /* out->alive, selects, rate have room; fill them. */
    status (*plan)(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out, struct err *e);
    /* Both may be NULL: keeps all. keep has room for all alive. */
    status (*embed)(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out, struct err *e);
    status (*layer)(struct policy_run *r, uint32_t l, const struct prune_layer_view *v, struct prune_selection *out,
                    struct err *e);
};

struct policy_run {
    const struct policy_params *params;
    const struct policy_plan *plan;
    const struct prompt *prompt;
    int32_t *chunk;                /* [n_av] scratch */
    uint32_t *index;               /* [n_av] scratch */
    void *select_scratch;
    size_t select_bytes;
};

/* ---- registry and parameters ------------------------------------------------------------------------------ */

const struct policy *prune_find(const char *name);         /* NULL: no such policy */
const struct policy *const *prune_list(void);              /* NULL-terminated      */

/* E_ARG names the policies that there are. */
status prune_params_init(struct policy_params *p, const char *name, uint32_t n_layers, struct err *e);
struct policy_params prune_params_none(void);
const char *prune_params_name(const struct policy_params *p);

/* Set one by name. E_ARG: the policy has no such parameter (lists those it has), out of range, not a number or bool. */
status prune_params_set(struct policy_params *p, const char *key, double value, struct err *e);
status prune_params_set_text(struct policy_params *p, const char *key, const char *text, struct err *e);
/* {"name" or "policy": ..., key: value, ...}; ends with prune_params_finish. */
status prune_params_json(struct policy_params *p, const json_t *object, uint32_t n_layers, struct err *e);
/* What `under` gives and p does not, where both are of one policy: the defaults below p. A retention or p_final that excludes
 * what p gives stays out. Before prune_params_finish. */
void prune_params_under(struct policy_params *p, const struct policy_params *under);
/* Checks across parameters; call once after the last set. */
status prune_params_finish(struct policy_params *p, struct err *e);
/* The resolved set as an object; the caller owns the reference. Left out: what nobody set and what the plan works out. */
json_t *prune_params_to_json(const struct policy_params *p);
/* The same, with what the plan worked out (p_final of a retention). */
json_t *prune_plan_to_json(const struct policy_params *p, const struct policy_plan *plan);

bool prune_has(const struct policy_params *p, const char *key);       /* does the policy have it at all? */
double prune_get(const struct policy_params *p, const char *key);
bool prune_is_set(const struct policy_params *p, const char *key);

/* ---- plan and run ----------------------------------------------------------------------------------------- */

/* *out is owned: prune_plan_free. E_ARG: a target that cannot be reached. */
status prune_plan_shape(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out, struct err *e);
status prune_plan(const struct policy_params *p, const struct prompt *prompt, uint32_t n_layers, struct policy_plan *out,
                  struct err *e);
void prune_plan_free(struct policy_plan *plan);

/* All borrowed until prune_end. */
status prune_begin(const struct policy_params *p, const struct policy_plan *plan, const struct prompt *prompt,
                   struct policy_run **out, struct err *e);
void prune_end(struct policy_run **r);
/* E_ARG: the view lacks what the plan's needs name. |keep| <= plan is asserted, equality where the plan is exact. */
status prune_embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out, struct err *e);
bool prune_selects_at(const struct policy_run *r, uint32_t l);
/* The same promise of the plan. */
status prune_layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v, struct prune_selection *out,
                   struct err *e);
void prune_selection_free(struct prune_selection *s);

/* ---- what policies share ---------------------------------------------------------------------------------- */

/* floor(x + 1e-9): products of a fraction and a count (docs/pruning-methods.md 0.2). */
uint32_t prune_floor(double x);
/* prune_floor(share n); nothing may empty a request, so one token stays where the share of some rounds to none. */
uint32_t prune_kept(double share, uint32_t n);
/* A plan that drops before the decoder alone: n tokens enter layer 0 and live to the end. */
void prune_plan_entry(struct policy_plan *out, uint32_t n);

#endif
