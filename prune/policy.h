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
#define PRUNE_LISTS_MAX 2          /* parameters of one policy that are lists */
#define PRUNE_LIST_MAX 128         /* entries of one                          */

/* What a plan asks the engine to compute; what is not asked for is not computed. An engine that does not have one of them
 * refuses the policy by prune_served. */
enum prune_needs {
    PRUNE_NEEDS_AUDIO_SALIENCY = 1 << 0,  /* attention received inside the encoder's window, last audio layer       */
    PRUNE_NEEDS_EMBEDDINGS = 1 << 1,      /* the towers' outputs, at prune_embed                                    */
    PRUNE_NEEDS_ROW_SCORES = 1 << 2,      /* Eq. 5 over the query rows, at prune_layer                              */
    PRUNE_NEEDS_VISION_SALIENCY = 1 << 3, /* attention received inside its grid step, last full vision block        */
    PRUNE_NEEDS_AUDIO_GLOBAL = 1 << 4,    /* audio saliency with every frame of the clip in one softmax             */
    PRUNE_NEEDS_VISION_BLOCKS = 1 << 5,   /* vision saliency of every full-attention block                          */
    PRUNE_NEEDS_VISION_KEYS = 1 << 6,     /* keys of the last full vision block, mean of a token's patches          */
    PRUNE_NEEDS_TEXT_EMBEDDINGS = 1 << 7, /* input embeddings of the user's text                                    */
    PRUNE_NEEDS_WEIGHTS = 1 << 8,         /* trained tensors of the method, by name                                 */
    PRUNE_NEEDS_MERGES = 1 << 9,          /* the selection before layer 0 changes embeddings                        */
    PRUNE_NEEDS_GO = 1 << 10,             /* layers that drop before their K and V (plan->go)                       */
    PRUNE_NEEDS_PAGERANK = 1 << 11,       /* scores are ops->pagerank over all rows alive                           */
    PRUNE_NEEDS_BACK = 1 << 12            /* scores by the norm, Wq and Wk of layer l - plan->back on layer l's input */
};

enum prune_param_kind { PARAM_NUMBER, PARAM_INTEGER, PARAM_BOOL, PARAM_WORD, PARAM_LIST };

struct prune_param {
    const char *name;              /* as in the API: "p_init"                                         */
    const char *alias;             /* or NULL                                                         */
    enum prune_param_kind kind;
    double lo, hi, fallback;       /* fallback NaN: not set unless given; of a list: lo and hi of each entry */
    const char *help;
    const char *const *word;       /* PARAM_WORD: [hi + 1] choices; the value is an index             */
};

/* Counts of one media item. */
struct prune_item {
    enum token_kind kind;
    uint32_t n_audio;              /* audio tokens                                                    */
    uint32_t steps, step_tokens;   /* grid steps and tokens of each; pictures: 1 step                 */
};

/* Audio and vision tokens of one chunk of one item; grid steps whose first token lies in it. */
struct prune_chunk { uint32_t n_audio, n_vision, n_steps, step_tokens; };

/* The counts of an item of a prompt. A film whose steps differ in size is one picture: nothing merges over time. */
struct prune_item prune_item_of(const struct prompt_item *item);

struct prune_shape {
    uint32_t n_layers;
    uint32_t n_items;
    const struct prune_item *item;
    uint32_t n_chunks;
    const struct prune_chunk *chunk;   /* NULL: of 50 audio tokens and 2 grid steps, the native interleave */
};

struct prune_list { uint32_t n; double v[PRUNE_LIST_MAX]; };

struct policy_params {             /* plain data: copy freely */
    const struct policy *policy;
    uint32_t n_layers;
    double value[PRUNE_PARAMS_MAX];    /* of a list: NaN while it is empty                                */
    bool given[PRUNE_PARAMS_MAX];
    struct prune_list list[PRUNE_LISTS_MAX];   /* of the PARAM_LIST parameters, in their order            */
};

struct policy_plan {
    uint32_t n_layers;
    uint32_t n_orig, n_entry;      /* AV tokens of the prompt; entering layer 0                       */
    uint32_t *alive;               /* [L + 1] AV rows whose K and V layer l stores; [L]: left at the end. Owned */
    bool *selects;                 /* [L] prune_layer is called there. Owned                          */
    bool *scored;                  /* [L] ... with scores. Owned                                      */
    bool go;                       /* the choice of layer l comes before its K and V are written: the dropped are no keys
                                      in l; else after, and they are (docs/pruning-methods.md 9.2)    */
    uint32_t back;                 /* scores of layer l are by the weights of layer l - back          */
    double *rate;                  /* [L] share that layer l drops, for display. Owned                */
    bool exact;                    /* alive is what will be, not only an upper bound                  */
    uint32_t needs;                /* enum prune_needs                                                */
    enum query_rows query;         /* PRUNE_NEEDS_ROW_SCORES: whose attention                         */
    double p_final;                /* schedules: as given or calibrated                               */
    bool trim;                     /* after prefill layer l keeps K and V of the tokens alive entering layer
                                      min(L - 1, l + trim_lag) alone (docs/omnidrop.md 7, Trim)        */
    uint32_t trim_lag;
};

/* Embeddings that become sums of others: e[dst[i]] <- c0[i] e[dst[i]] + sum over j in [start[i], start[i + 1]) of w[j] e[src[j]],
 * all e as they were before. Prompt indices; dst ascending, in keep, never a src of its own; a src may serve several and may
 * be kept. A dst keeps its place, kind, chunk and position. src and dst are of one tower. */
struct prune_merges {
    uint32_t n;
    uint32_t *dst, *start;         /* [n], [n + 1]                                                    */
    float *c0;                     /* [n]                                                             */
    uint32_t *src;                 /* [start[n]]                                                      */
    float *w;                      /* [start[n]]                                                      */
    size_t dst_cap, start_cap, c0_cap, src_cap, w_cap;
};

/* Why a token went: what decided, its score where it was compared, NaN where nothing was, and how many of those it was compared with
 * were better. */
enum prune_cause {
    PRUNE_BY_SCORE,                /* others had a better one                                         */
    PRUNE_BY_LIKENESS,             /* too near to those that stay: score is its distance to the nearest, weighed as the method does */
    PRUNE_BY_DRAW,                 /* a lot in 0 .. 1; the lowest stay                                */
    PRUNE_BY_PLACE,                /* its place among the tokens; no score                            */
    PRUNE_BY_MERGE,                /* others took it in; no score                                     */
    PRUNE_BY_LAYER                 /* from this layer on none is left; no score                       */
};
struct prune_why { uint32_t index; float score; uint32_t rank; enum prune_cause cause; };
/* "score", "likeness", "draw", "place", "merge", "layer". */
const char *prune_cause_name(enum prune_cause cause);

struct prune_selection {           /* zero before first use; prune_selection_free */
    uint32_t *keep;                /* [n_keep] ascending prompt indices of AV tokens                  */
    uint32_t n_keep;
    size_t cap;
    struct prune_merges merges;    /* none (n == 0) unless the plan needs PRUNE_NEEDS_MERGES; prune_embed alone */
    bool want_why;                 /* set by who calls: fill why                                      */
    struct prune_why *why;         /* [n_why] of every dropped token, ascending                         */
    uint32_t n_why;
    size_t why_cap;
};

struct prune_tensor { const char *name; const float *data; size_t n; };   /* host; a trained tensor of a policy */

/* What is not asked for may be NULL. Kind, chunk, item, step, place and position of the tokens are the prompt's. */
struct prune_embed_view {
    struct stream *st;
    uint32_t d;
    const float *audio, *vision;   /* [n_audio, d], [n_vision, d] device; rows as prompt->row says    */
    const float *audio_saliency;   /* [n_audio] host; windowed, or global where the plan asks for that */
    const float *vision_saliency;  /* [n_vision] host                                                 */
    uint32_t n_blocks;             /* vision blocks with full attention                               */
    const float *vision_blocks;    /* [n_blocks, n_vision] host: saliency of each                     */
    uint32_t d_key;
    const float *vision_keys;      /* [n_vision, d_key] device                                        */
    uint32_t n_text;
    const float *text;             /* [n_text, d] device: input embeddings of prompt->user_text; n_text may be 0 */
    uint32_t n_tensors;
    const struct prune_tensor *tensor;
};

struct prune_layer_view {
    struct stream *st;
    uint32_t n_alive;
    const uint32_t *alive;         /* [n_alive] prompt indices, ascending                             */
    const float *score;            /* [n_alive] host; where asked for                                 */
};

struct policy_run;                 /* one request's own state */

/* A choice that a device can make by itself: of all AV tokens alive the k that ops->select names go, by the scores of the layer. */
struct prune_pick {
    uint32_t k;
    bool tds, relative;            /* these as in struct select_args */
    double lambda_div;
    int32_t max_chunk;
};

struct policy {
    const char *name, *citation, *help;
    const struct prune_param *param;   /* [n_param]                                                   */
    uint32_t n_param;
    bool by_chunk;                 /* its plan reads shape->chunk                                     */
    /* Values that depend on the model (fallbacks hold where NULL), and checks across parameters. */
    void (*defaults)(struct policy_params *p);
    status (*check)(struct policy_params *p, struct err *e);
    /* out->alive, selects, rate have room; fill them. */
    status (*plan)(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out, struct err *e);
    /* Both may be NULL: keeps all. keep has room for all alive. */
    status (*embed)(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out, struct err *e);
    status (*layer)(struct policy_run *r, uint32_t l, const struct prune_layer_view *v, struct prune_selection *out,
                    struct err *e);
    /* Is what `layer` does at layer l no more than this pick? NULL: never. */
    bool (*pick)(const struct policy_run *r, uint32_t l, struct prune_pick *out);
};

struct policy_run {
    const struct policy_params *params;
    const struct policy_plan *plan;
    const struct prompt *prompt;
    int32_t *chunk;                /* [n_av] scratch */
    uint32_t *index;               /* [n_av] scratch */
    void *select_scratch;
    size_t select_bytes;
    float *stored;                 /* [n_av] or NULL: what prune_embed found for the layers to use; owned */
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
/* A number, true or false, a word; of a list, numbers with commas or blanks between them. */
status prune_params_set_text(struct policy_params *p, const char *key, const char *text, struct err *e);
status prune_params_set_list(struct policy_params *p, const char *key, const double *v, size_t n, struct err *e);
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
/* The list of parameter number i; n == 0: not set. */
const struct prune_list *prune_list_of(const struct policy_params *p, uint32_t i);

/* ---- plan and run ----------------------------------------------------------------------------------------- */

/* *out is owned: prune_plan_free. E_ARG: a target that cannot be reached. */
status prune_plan_shape(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out, struct err *e);
status prune_plan(const struct policy_params *p, const struct prompt *prompt, uint32_t n_layers, struct policy_plan *out,
                  struct err *e);
void prune_plan_free(struct policy_plan *plan);
/* AV rows whose K layer l holds at once, at most: alive[l], or those entering it where scores decide who goes before its keys. */
uint32_t prune_plan_rows(const struct policy_plan *plan, uint32_t l);
/* E_ARG where the plan needs what `served` (enum prune_needs) lacks; the text names it. */
status prune_served(const struct policy_params *p, const struct policy_plan *plan, uint32_t served, struct err *e);

/* All borrowed until prune_end. */
status prune_begin(const struct policy_params *p, const struct policy_plan *plan, const struct prompt *prompt,
                   struct policy_run **out, struct err *e);
void prune_end(struct policy_run **r);
/* E_ARG: the view lacks what the plan's needs name. |keep| <= n_entry is asserted, equality where the plan is exact. */
status prune_embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out, struct err *e);
bool prune_selects_at(const struct policy_run *r, uint32_t l);
/* The same promise of the plan: alive[l] where the plan's choices go before K and V, else alive[l + 1]. */
status prune_layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v, struct prune_selection *out,
                   struct err *e);
void prune_selection_free(struct prune_selection *s);
/* May the choice of layer l be made without prune_layer, as *out says? Only where the plan is exact and scores it. */
bool prune_layer_pick(const struct policy_run *r, uint32_t l, struct prune_pick *out);

/* ---- what policies share ---------------------------------------------------------------------------------- */

/* floor(x + 1e-9): products of a fraction and a count (docs/pruning-methods.md 0.2). */
uint32_t prune_floor(double x);
/* The nearest whole number, a half (within 1e-9) to the even one. x >= 0. */
uint32_t prune_round(double x);
/* AV tokens of an item; of its vision tower alone. */
static inline uint32_t prune_item_vision(const struct prune_item *i) { return i->steps * i->step_tokens; }
/* prune_floor(share n); nothing may empty a request, so one token stays where the share of some rounds to none. */
uint32_t prune_kept(double share, uint32_t n);
/* A plan that drops before the decoder alone: n tokens enter layer 0 and live to the end. */
void prune_plan_entry(struct policy_plan *out, uint32_t n);

#endif
