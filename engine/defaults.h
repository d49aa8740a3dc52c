/* engine/defaults.h - the defaults of a model: omnidrop.ini in its folder, for models that were trained on wordings or
 * lengths of their own, or whose layers read their evidence elsewhere than the paper's.
 *
 *   [transcribe]                       as the flags of `omnidrop transcribe` are called
 *   instruction = Transcribe the speech.   the wording that the model knows
 *   language = english                 what it hears
 *   window = 6                         seconds, 2 to 120
 *   overlap = 1                        seconds, at most half a window
 *   [policy]
 *   omnidrop.t_mid = 0.35              policy.parameter: where neither the command nor the request gives it
 *
 * Order of truth: request > flag > environment > --config FILE > this file > what is built in. A model without the file has
 * nothing set. */
#ifndef ENGINE_DEFAULTS_H
#define ENGINE_DEFAULTS_H

#include "engine/windows.h"
#include "prune/policy.h"

struct transcribe_defaults {
    char instruction[512];         /* ""; in place of the task's own */
    char language[32];             /* ""; lower-case English name    */
    double window_s;               /* 0                              */
    double overlap_s;              /* -1                             */
};

struct model_defaults {            /* model_defaults_free */
    struct transcribe_defaults transcribe;
    struct policy_params *policy;  /* [n_policies] those that the file names; `given` is what it says of them */
    uint32_t n_policies;
    size_t cap;
};

#define MODEL_DEFAULTS_FILE "omnidrop.ini"

/* Nothing set. */
struct model_defaults model_defaults_none(void);
/* Of the folder of a model with n_layers decoder layers; no such file: nothing set. E_MODEL: an unknown section, key or
 * policy, a value out of range; the text has file and line, and what would be right. *out is nothing set after an error. */
status model_defaults_load(const char *model_dir, uint32_t n_layers, struct model_defaults *out, struct err *e);
void model_defaults_free(struct model_defaults *d);

/* The model's values for all parameters of p that nobody gave; those that exclude one that was given stay out. d may be
 * NULL. Before prune_params_finish. */
void model_defaults_policy(const struct model_defaults *d, struct policy_params *p);
/* Windows of window_s (0: not asked for) that overlap by overlap_s (< 0: not asked for): what is not asked for is the
 * model's, else 30 and 2; an overlap that was not chosen for the window is a quarter of it at most. */
void model_defaults_windows(const struct model_defaults *d, double window_s, double overlap_s, struct windows_options *out);

#endif
