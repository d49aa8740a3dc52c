/* prune/choose.h - what the methods share: the AV tokens of a prompt by item, chunk and grid step; keeping the best of a list;
 * density peaks and temporal change per step; counts that sum up to a budget; merges. Nobody outside prune/ includes it.
 * Sources: docs/pruning-methods.md 0.2, 2.2 to 2.6, 6, 7.9. */
#ifndef PRUNE_CHOOSE_H
#define PRUNE_CHOOSE_H

#include "prune/policy.h"

/* ---- the tokens in groups --------------------------------------------------------------------------------- */

/* A *place* is an index into prompt->av. The lists `audio` and `vision` hold the places of either tower in prompt order; items,
 * chunks and steps are ranges of those lists. */
struct av_step { uint32_t first, n; };              /* of vision; a film whose steps differ in size is one of them */
struct av_chunk {                                   /* of one item, ascending                                      */
    int32_t id;
    uint32_t audio, n_audio, vision, n_vision;      /* its own tokens                                              */
    uint32_t step, n_steps;                         /* steps whose first token is in it: they belong to it whole   */
};
struct av_item { uint32_t audio, n_audio, vision, n_vision, step, n_steps, chunk, n_chunks; };

struct av_groups {
    uint32_t n_audio, n_vision, n_items, n_steps, n_chunks;
    uint32_t *audio, *vision;                       /* [n_audio], [n_vision] places                                */
    uint32_t *audio_row, *vision_row;               /* the same tokens' rows of the towers' matrices               */
    struct av_item *item;
    struct av_step *step;
    struct av_chunk *chunk;
};

/* *g is owned: av_groups_free, which takes a zeroed one too. E_NOMEM. */
status av_groups_make(const struct prompt *p, struct av_groups *g, struct err *e);
void av_groups_free(struct av_groups *g);

/* ---- a choice before layer 0 ------------------------------------------------------------------------------ */

struct choice {
    struct policy_run *r;
    const struct prune_embed_view *v;
    const struct ops *ops;
    struct prune_selection *out;
    struct av_groups g;
    uint8_t *keep;                                  /* [n_av] by place; 0 at first                                 */
    float *score;                                   /* [n_av] scratch, for who calls                               */
    uint32_t *list[4];                              /* [n_av + 1] each, scratch for who calls                      */
    uint32_t *kept;                                 /* [n_av] by choose_pick and choose_best                        */
    void *pair;                                     /* pair_scratch of 2 n_av rows of width d                      */
};

/* choose_end turns keep into out->keep, sees to it that not nothing is kept, and frees; call it whatever came of it, with that
 * status, and return what it returns. */
status choose_begin(struct choice *c, struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                    struct err *e);
status choose_end(struct choice *c, status st, struct err *e);

/* c->kept gets the m of 0 .. n-1 with the highest c->score, ascending; ties keep the lower index, NaN ranks last. */
status choose_pick(struct choice *c, uint32_t n, uint32_t m, struct err *e);
/* The same of n tokens at `place`, which are kept. */
status choose_best(struct choice *c, const uint32_t *place, uint32_t n, uint32_t m, struct err *e);
/* Keep all n. */
void choose_all(struct choice *c, const uint32_t *place, uint32_t n);
/* Saliency of n tokens at `place` into c->score. */
void choose_saliency(struct choice *c, const uint32_t *place, uint32_t n);
/* Cosines of n rows a of x to rows b of y into out. */
status choose_cosine(struct choice *c, const float *x, const uint32_t *a, const float *y, const uint32_t *b, uint32_t n, float *out,
                     struct err *e);
/* Cosine of every vision token, in the order of the list, to the mean of its grid step: out [n_vision]. Uses list[0], list[1]. */
status choose_step_likeness(struct choice *c, float *out, struct err *e);

/* Of grid step s keep keep[s] tokens: of even turn[s] by density peaks among its own (knn neighbours), of odd ones those least
 * like the same place of the step before (docs/pruning-methods.md 2.4). [n_steps] both. */
status choose_steps(struct choice *c, const uint32_t *turn, const uint32_t *keep, uint32_t knn, struct err *e);

/* OmniZip's and DASH's audio (2.1, 2.2): of item i the rn((1 - rho) n) of highest c->score [n_audio of the item] are kept, then
 * anchors, a share `anchor` of all, take in up to G others each. */
struct choose_anchors { double rho, anchor; uint32_t G; };
uint32_t choose_audio_kept(const struct choose_anchors *a, uint32_t n_audio);
status choose_audio(struct choice *c, uint32_t item, const struct choose_anchors *a, struct err *e);

/* Merges, in ascending order of dst: one dst, then its sources. Places. */
status choose_merge_into(struct choice *c, uint32_t dst, float c0, struct err *e);
status choose_merge_from(struct choice *c, uint32_t src, float w, struct err *e);

/* After ops->farthest over groups of rows x (start, row; what the groups' n_pick rows are is in pick), where reasons are wanted: those
 * of the rows that were not picked. place[i]: of row i of the lists; weight [rows] or NULL. */
status choose_why_far(struct choice *c, const struct row_groups *g, const uint32_t *place, const float *weight,
                      const uint32_t *n_pick, const uint32_t *pick, struct err *e);

/* ---- a choice at a layer ---------------------------------------------------------------------------------- */

enum { KINDS_AV, KINDS_VISION, KINDS_AUDIO };
extern const char *const KINDS_WORDS[];   /* of the first two */
/* Audio tokens of a shape where `kinds` is KINDS_VISION, else none: what a choice inside the decoder leaves alone. */
uint32_t kinds_spared(const struct prune_shape *s, int kinds);

/* Of those alive with score[i] (all, or of the vision tower, or audio) keep the k best; the others stay. */
status layer_best(struct policy_run *r, const struct prune_layer_view *v, const float *score, int kinds, uint32_t k,
                  struct prune_selection *out, struct err *e);
/* Where reasons are wanted: those of the tokens alive that are not among kept[0..m), indices into them, by v->score. */
status layer_why(const struct prune_layer_view *v, const uint32_t *kept, uint32_t m, struct prune_selection *out, struct err *e);
/* The place of every token alive. */
void layer_places(const struct policy_run *r, const struct prune_layer_view *v, uint32_t *place);

/* ---- reasons ---------------------------------------------------------------------------------------------- */

/* All of these do nothing where none are wanted. One more; those not in kept[0..m) of n that were compared by score, index[i] being
 * token i's prompt index. */
status why_one(struct prune_selection *s, uint32_t index, float score, uint32_t rank, enum prune_cause cause, struct err *e);
status why_scored(struct prune_selection *s, const uint32_t *index, const float *score, uint32_t n, const uint32_t *kept,
                  uint32_t m, struct err *e);
/* In order, without those that stayed after all, and of several of one token the first; who has none gets the one that the selection
 * as a whole tells: taken in, all gone, place. before [n]: who was alive, ascending. */
status why_end(struct prune_selection *s, const uint32_t *before, uint32_t n, struct err *e);

/* ---- counts ----------------------------------------------------------------------------------------------- */

/* count[i] = floor of share[i], then one more for the largest remainders (those within 1e-9 of each other: lower index) until
 * they sum to total, none above room[i] (NULL: no bound). */
status count_shares(const double *share, const uint32_t *room, uint32_t n, uint32_t total, uint32_t *count, struct err *e);
/* rate[i] + one offset, clamped to [lo, hi] widened to hold target / sum of n, such that sum n[i] rate[i] = target. */
void offset_rates(double *rate, const uint32_t *n, uint32_t count, double lo, double hi, double target);
/* Inflection of s, sorted in descending order: the place farthest below the chord from first to last (docs/pruning-methods.md 6). */
uint32_t knee_of(const float *s, uint32_t n);
/* The same of scores in any order, NaN last; work: [n]. */
uint32_t knee_of_unsorted(const float *s, uint32_t n, float *work);

#endif
