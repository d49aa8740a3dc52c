/* engine/defaults.c - see defaults.h. */
#include "engine/defaults.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/ini.h"
#include "base/mem.h"
#include "engine/languages.h"

#define WINDOW_MIN_S 2
#define WINDOW_MAX_S 120

struct model_defaults model_defaults_none(void)
{
    return (struct model_defaults){ .transcribe.overlap_s = -1 };
}

void model_defaults_free(struct model_defaults *d)
{
    free(d->policy);
    *d = model_defaults_none();
}

/* ---- the file --------------------------------------------------------------------------------------------- */

struct reading {
    struct ini in;
    struct model_defaults *to;
    uint32_t n_layers;
    int overlap_line;
    int *line;                     /* [n_policies] of the last key of each; owned */
    size_t cap;
};

static status number(const char *key, const char *text, double lo, double hi, double *out, struct err *e)
{
    char *end;
    const double v = strtod(text, &end);
    if (end == text || *end != 0 || !(v >= lo && v <= hi))
        return err_set(e, E_MODEL, "%s = %s: give a number of seconds from %g to %g", key, text, lo, hi);
    *out = v;
    return OK;
}

static status transcribe_key(struct reading *r, struct err *e)
{
    struct transcribe_defaults *t = &r->to->transcribe;
    const char *key = r->in.key, *value = r->in.value;
    if (strcmp(key, "window") == 0) return number(key, value, WINDOW_MIN_S, WINDOW_MAX_S, &t->window_s, e);
    if (strcmp(key, "overlap") == 0) {
        r->overlap_line = r->in.line;
        return number(key, value, 0, WINDOW_MAX_S / 2, &t->overlap_s, e);
    }
    if (strcmp(key, "instruction") == 0) {
        if (strlen(value) >= sizeof t->instruction)
            return err_set(e, E_MODEL, "instruction has %zu bytes: give at most %zu", strlen(value), sizeof t->instruction - 1);
        snprintf(t->instruction, sizeof t->instruction, "%s", value);
        return OK;
    }
    if (strcmp(key, "language") == 0) {
        const char *name = language_name(value);
        if (name == NULL) return err_set(e, E_MODEL, "language = %s: give an ISO 639 code (en, eng) or an English name", value);
        snprintf(t->language, sizeof t->language, "%s", name);
        return OK;
    }
    return err_set(e, E_MODEL, "[transcribe] has no key \"%s\": give instruction, language, window or overlap", key);
}

/* What the file says so far of a policy: *out is its index. */
static status policy_of(struct reading *r, const char *name, uint32_t *out, struct err *e)
{
    struct model_defaults *d = r->to;
    for (*out = 0; *out < d->n_policies; ++*out)
        if (strcmp(prune_params_name(&d->policy[*out]), name) == 0) return OK;
    TRY(mem_grow(&d->policy, &d->cap, d->n_policies + 1, sizeof *d->policy, e));
    TRY(mem_grow(&r->line, &r->cap, d->n_policies + 1, sizeof *r->line, e));
    TRY(prune_params_init(&d->policy[d->n_policies], name, r->n_layers, e));
    d->n_policies++;
    return OK;
}

static status policy_key(struct reading *r, struct err *e)
{
    const char *dot = strchr(r->in.key, '.');
    uint32_t i;
    char name[64], key[64];
    if (dot == NULL || (size_t)(dot - r->in.key) >= sizeof name || strlen(dot + 1) >= sizeof key)
        return err_set(e, E_MODEL, "\"%s\": give policy.parameter = value, as omnidrop.t_mid = 0.4", r->in.key);
    snprintf(name, sizeof name, "%.*s", (int)(dot - r->in.key), r->in.key);
    snprintf(key, sizeof key, "%s", dot + 1);
    for (char *c = key; *c; c++)
        if (*c == '-') *c = '_';   /* as flags are spelled */
    TRY(policy_of(r, name, &i, e));
    r->line[i] = r->in.line;
    return prune_params_set_text(&r->to->policy[i], key, r->in.value, e);
}

static status take(struct reading *r, struct err *e)
{
    const bool known = strcmp(r->in.section, "transcribe") == 0 || strcmp(r->in.section, "policy") == 0;
    if (!known && r->in.section[0] == 0)
        return err_set(e, E_MODEL, "\"%s\" stands in no section: put it under [transcribe] or [policy]", r->in.key);
    if (!known) return err_set(e, E_MODEL, "there is no section [%s]: give [transcribe] or [policy]", r->in.section);
    if (r->in.key == NULL) return OK;
    return r->in.section[0] == 't' ? transcribe_key(r, e) : policy_key(r, e);
}

static status read_file(struct reading *r, struct err *e)
{
    for (;;) {
        bool more;
        TRY(ini_next(&r->in, &more, e));
        if (!more) break;
        if (take(r, e) != OK) return ini_err(&r->in, e);
    }
    for (uint32_t i = 0; i < r->to->n_policies; i++) {
        struct policy_params whole = r->to->policy[i];
        r->in.line = r->line[i];
        if (prune_params_finish(&whole, e) != OK) return ini_err(&r->in, e);
    }
    const struct transcribe_defaults *t = &r->to->transcribe;
    const double window = t->window_s > 0 ? t->window_s : WINDOWS_WINDOW_S;
    if (t->overlap_s <= window / 2) return OK;
    return err_set(e, E_MODEL, "%s:%d: overlap = %g: give at most half a window of %g s", r->in.path, r->overlap_line,
                   t->overlap_s, window);
}

status model_defaults_load(const char *model_dir, uint32_t n_layers, struct model_defaults *out, struct err *e)
{
    char path[1200];
    struct reading r = { .to = out, .n_layers = n_layers };
    *out = model_defaults_none();
    snprintf(path, sizeof path, "%s/" MODEL_DEFAULTS_FILE, model_dir);
    if (access(path, F_OK) != 0) return OK;
    status st = ini_open(path, E_MODEL, &r.in, e);
    if (st == OK) st = read_file(&r, e);
    ini_close(&r.in);
    free(r.line);
    if (st != OK) model_defaults_free(out);
    return st;
}

/* ---- their use -------------------------------------------------------------------------------------------- */

void model_defaults_policy(const struct model_defaults *d, struct policy_params *p)
{
    for (uint32_t i = 0; d && i < d->n_policies; i++) prune_params_under(p, &d->policy[i]);
}

void model_defaults_windows(const struct model_defaults *d, double window_s, double overlap_s, struct windows_options *out)
{
    const struct transcribe_defaults *t = &d->transcribe;
    out->window_s = window_s > 0 ? window_s : t->window_s > 0 ? t->window_s : WINDOWS_WINDOW_S;
    out->overlap_s = overlap_s;
    if (overlap_s >= 0) return;
    out->overlap_s = t->overlap_s >= 0 ? t->overlap_s : WINDOWS_OVERLAP_S;
    if (window_s > 0 || t->overlap_s < 0) out->overlap_s = fmin(out->overlap_s, out->window_s / 4);
}
