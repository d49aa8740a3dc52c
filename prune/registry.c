/* prune/registry.c - the policies that there are, their parameters, and what is common to all plans and runs. */
#include <assert.h>
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "prune/choose.h"
#include "prune/policies.h"

/* clang-format off */
static const struct policy *const POLICIES[] = {
    &policy_none,
    &policy_random,
    &policy_omnidrop,
    &policy_random_layers,
    &policy_uniform,
    &policy_step0,
    &policy_ttm,
    &policy_saliency,
    &policy_omnizip,
    &policy_dash,
    &policy_omnisift_lite,
    &policy_omnisift,
    &policy_fastv,
    &policy_pyramiddrop,
    &policy_seats,
    &policy_table,
    &policy_exit,
    &policy_omnifit,
    &policy_omnifocus,
    &policy_trim_lc,
    &policy_knee,
    &policy_aim,
    &policy_prumerge,
    &policy_vtc_cls,
    NULL
};
/* clang-format on */

const struct policy *const *prune_list(void)
{
    return POLICIES;
}

const struct policy *prune_find(const char *name)
{
    for (const struct policy *const *p = POLICIES; *p; p++)
        if (strcmp((*p)->name, name) == 0) return *p;
    return NULL;
}

/* ---- parameters ------------------------------------------------------------------------------------------- */

static int find_param(const struct policy *p, const char *key)
{
    for (uint32_t i = 0; i < p->n_param; i++)
        if (strcmp(key, p->param[i].name) == 0 || (p->param[i].alias && strcmp(key, p->param[i].alias) == 0))
            return (int)i;
    return -1;
}

status prune_params_init(struct policy_params *p, const char *name, uint32_t n_layers, struct err *e)
{
    const struct policy *policy = prune_find(name);
    if (policy == NULL) {
        char list[512] = "";
        for (const struct policy *const *q = POLICIES; *q; q++) {
            const size_t n = strlen(list);
            snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", (*q)->name);
        }
        return err_set(e, E_ARG, "there is no policy \"%s\": this build has %s", name, list);
    }
    *p = (struct policy_params){ .policy = policy, .n_layers = n_layers };
    for (uint32_t i = 0; i < policy->n_param; i++) p->value[i] = policy->param[i].fallback;
    if (policy->defaults) policy->defaults(p);
    return OK;
}

struct policy_params prune_params_none(void)
{
    struct policy_params p;
    prune_params_init(&p, "none", 0, NULL);
    return p;
}

const char *prune_params_name(const struct policy_params *p)
{
    return p->policy->name;
}

static status no_param(const struct policy_params *p, const char *key, struct err *e)
{
    char list[512] = "";
    for (uint32_t i = 0; i < p->policy->n_param; i++) {
        const size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", p->policy->param[i].name);
    }
    return err_set(e, E_ARG, "policy %s has no parameter \"%s\"; %s%s", p->policy->name, key,
                   list[0] ? "it has " : "it has none", list);
}

/* Which of the lists parameter i is. */
static uint32_t list_of(const struct policy *policy, uint32_t i)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < i; k++) n += policy->param[k].kind == PARAM_LIST;
    assert(policy->param[i].kind == PARAM_LIST && n < PRUNE_LISTS_MAX);
    return n;
}

const struct prune_list *prune_list_of(const struct policy_params *p, uint32_t i)
{
    return &p->list[list_of(p->policy, i)];
}

status prune_params_set_list(struct policy_params *p, const char *key, const double *v, size_t n,
                             struct err *e)
{
    const int i = find_param(p->policy, key);
    if (i < 0) return no_param(p, key, e);
    const struct prune_param *d = &p->policy->param[i];
    if (d->kind != PARAM_LIST) return err_set(e, E_ARG, "%s: give one value, not a list", key);
    struct prune_list *list = &p->list[list_of(p->policy, (uint32_t)i)];
    if (n > PRUNE_LIST_MAX)
        return err_set(e, E_ARG, "%s has %zu entries: at most %d", key, n, PRUNE_LIST_MAX);
    for (size_t k = 0; k < n; k++)
        if (!(v[k] >= d->lo && v[k] <= d->hi))
            return err_set(e, E_ARG, "%s: entry %zu is %g: give numbers from %g to %g", key, k, v[k], d->lo,
                           d->hi);
    for (size_t k = 0; k < n; k++) list->v[k] = v[k];
    list->n = (uint32_t)n;
    p->value[i] = n ? (double)n : NAN;
    p->given[i] = true;
    return OK;
}

status prune_params_set(struct policy_params *p, const char *key, double value, struct err *e)
{
    const int i = find_param(p->policy, key);
    if (i < 0) return no_param(p, key, e);
    const struct prune_param *d = &p->policy->param[i];
    if (d->kind == PARAM_LIST) return prune_params_set_list(p, key, &value, 1, e);
    if (!(value >= d->lo && value <= d->hi) || (d->kind != PARAM_NUMBER && value != floor(value)))
        return err_set(e, E_ARG, "%s is %g: give %s from %g to %g", key, value,
                       d->kind == PARAM_NUMBER ? "a number" : "a whole number", d->lo, d->hi);
    p->value[i] = value;
    p->given[i] = true;
    return OK;
}

/* One of the words of d. */
static status set_word(struct policy_params *p, const struct prune_param *d, const char *text, struct err *e)
{
    char list[256] = "";
    for (int i = 0; i <= (int)d->hi; i++) {
        if (strcmp(d->word[i], text) == 0) return prune_params_set(p, d->name, i, e);
        const size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", n ? " or " : "", d->word[i]);
    }
    return err_set(e, E_ARG, "%s is \"%s\": give %s", d->name, text, list);
}

static status set_list_text(struct policy_params *p, const char *key, const char *text, struct err *e)
{
    double v[PRUNE_LIST_MAX];
    size_t n = 0;
    for (const char *at = text + strspn(text, " \t\r\n,"); *at; at += strspn(at, " \t\r\n,")) {
        char *end;
        if (n == PRUNE_LIST_MAX) return err_set(e, E_ARG, "%s: more than %d entries", key, PRUNE_LIST_MAX);
        v[n++] = strtod(at, &end);
        if (end == at || (*end && strchr(" \t\r\n,", *end) == NULL))
            return err_set(e, E_ARG, "%s: \"%.20s\" is no number: give numbers with commas between them", key,
                           at);
        at = end;
    }
    return prune_params_set_list(p, key, v, n, e);
}

status prune_params_set_text(struct policy_params *p, const char *key, const char *text, struct err *e)
{
    const int i = find_param(p->policy, key);
    if (i < 0) return no_param(p, key, e);
    if (p->policy->param[i].kind == PARAM_BOOL) {
        if (strcmp(text, "true") == 0 || strcmp(text, "1") == 0 || strcmp(text, "yes") == 0 ||
            strcmp(text, "on") == 0)
            return prune_params_set(p, key, 1, e);
        if (strcmp(text, "false") == 0 || strcmp(text, "0") == 0 || strcmp(text, "no") == 0 ||
            strcmp(text, "off") == 0)
            return prune_params_set(p, key, 0, e);
        return err_set(e, E_ARG, "%s is \"%s\": give true or false", key, text);
    }
    if (p->policy->param[i].kind == PARAM_WORD) return set_word(p, &p->policy->param[i], text, e);
    if (p->policy->param[i].kind == PARAM_LIST) return set_list_text(p, key, text, e);
    char *end;
    const double v = strtod(text, &end);
    if (end == text || *end != 0) return err_set(e, E_ARG, "%s is \"%s\": give a number", key, text);
    return prune_params_set(p, key, v, e);
}

static status set_json_list(struct policy_params *p, const char *key, const json_t *v, struct err *e)
{
    double list[PRUNE_LIST_MAX];
    const size_t n = json_array_size(v);
    if (!json_is_array(v)) return err_set(e, E_ARG, "policy.%s: give an array of numbers", key);
    if (n > PRUNE_LIST_MAX)
        return err_set(e, E_ARG, "%s has %zu entries: at most %d", key, n, PRUNE_LIST_MAX);
    for (size_t i = 0; i < n; i++) {
        if (!json_is_number(json_array_get(v, i)))
            return err_set(e, E_ARG, "policy.%s: give an array of numbers", key);
        list[i] = json_number_value(json_array_get(v, i));
    }
    return prune_params_set_list(p, key, list, n, e);
}

static status set_json(struct policy_params *p, const char *key, const struct prune_param *d, const json_t *v,
                       struct err *e)
{
    switch (d->kind) {
    case PARAM_BOOL:
        if (json_is_boolean(v)) return prune_params_set(p, key, json_is_true(v), e);
        return err_set(e, E_ARG, "policy.%s: give true or false", key);
    case PARAM_WORD:
        if (json_is_string(v)) return set_word(p, d, json_string_value(v), e);
        return err_set(e, E_ARG, "policy.%s: give a string", key);
    case PARAM_LIST:
        return set_json_list(p, key, v, e);
    default:
        if (json_is_number(v)) return prune_params_set(p, key, json_number_value(v), e);
        return err_set(e, E_ARG, "policy.%s: give a number", key);
    }
}

status prune_params_json(struct policy_params *p, const json_t *object, uint32_t n_layers, struct err *e)
{
    const json_t *name = json_object_get(object, "name");
    if (name == NULL) name = json_object_get(object, "policy");
    if (!json_is_string(name)) return err_set(e, E_ARG, "policy: expected an object with a \"name\"");
    TRY(prune_params_init(p, json_string_value(name), n_layers, e));
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)object, key, v)
    {
        if (v == name) continue;
        const int i = find_param(p->policy, key);
        if (i < 0) return no_param(p, key, e);
        TRY(set_json(p, key, &p->policy->param[i], v, e));
    }
    return prune_params_finish(p, e);
}

void prune_params_under(struct policy_params *p, const struct policy_params *under)
{
    if (under->policy != p->policy) return;
    const int pair[2] = { find_param(p->policy, "retention"), find_param(p->policy, "p_final") };
    for (int i = 0; i < (int)p->policy->n_param; i++) {
        const int other = i == pair[0] ? pair[1] : i == pair[1] ? pair[0] : -1;
        if (!under->given[i] || p->given[i] || (other >= 0 && p->given[other])) continue;
        p->value[i] = under->value[i];
        p->given[i] = true;
        if (p->policy->param[i].kind == PARAM_LIST) {
            const uint32_t k = list_of(p->policy, (uint32_t)i);
            p->list[k] = under->list[k];
        }
    }
}

status prune_params_finish(struct policy_params *p, struct err *e)
{
    return p->policy->check ? p->policy->check(p, e) : OK;
}

static json_t *list_json(const struct prune_list *list)
{
    json_t *a = json_array();
    for (uint32_t i = 0; i < list->n; i++) json_array_append_new(a, json_real(list->v[i]));
    return a;
}

json_t *prune_params_to_json(const struct policy_params *p)
{
    json_t *o = json_object();
    for (uint32_t i = 0; i < p->policy->n_param; i++) {
        const struct prune_param *d = &p->policy->param[i];
        if (isnan(p->value[i])) continue;
        json_object_set_new(o, d->name,
                            d->kind == PARAM_BOOL      ? json_boolean(p->value[i] != 0)
                            : d->kind == PARAM_WORD    ? json_string(d->word[(int)p->value[i]])
                            : d->kind == PARAM_LIST    ? list_json(prune_list_of(p, i))
                            : d->kind == PARAM_INTEGER ? json_integer((json_int_t)p->value[i])
                                                       : json_real(p->value[i]));
    }
    return o;
}

json_t *prune_plan_to_json(const struct policy_params *p, const struct policy_plan *plan)
{
    json_t *o = prune_params_to_json(p);
    if (!isnan(plan->p_final)) json_object_set_new(o, "p_final", json_real(plan->p_final));
    return o;
}

bool prune_has(const struct policy_params *p, const char *key)
{
    return find_param(p->policy, key) >= 0;
}

double prune_get(const struct policy_params *p, const char *key)
{
    const int i = find_param(p->policy, key);
    assert(i >= 0);
    return p->value[i];
}

bool prune_is_set(const struct policy_params *p, const char *key)
{
    const int i = find_param(p->policy, key);
    return i >= 0 && p->given[i];
}

uint32_t prune_floor(double x)
{
    return (uint32_t)floor(x + 1e-9);
}

uint32_t prune_round(double x)
{
    const double low = floor(x), over = x - low;
    if (over > 0.5 + 1e-9 || (over >= 0.5 - 1e-9 && fmod(low, 2) != 0)) return (uint32_t)low + 1;
    return (uint32_t)low;
}

uint32_t prune_kept(double share, uint32_t n)
{
    const uint32_t k = prune_floor(share * (double)n);
    return k == 0 && n > 0 ? 1 : k;
}

void prune_plan_entry(struct policy_plan *out, uint32_t n)
{
    out->n_entry = n;
    for (uint32_t l = 0; l <= out->n_layers; l++) out->alive[l] = n;
}

/* ---- plan ------------------------------------------------------------------------------------------------- */

/* Chunks of the native interleave for a shape that names none: 50 audio tokens and 2 grid steps each. *n counts them; chunk
 * may be NULL. */
static void nominal_chunks(const struct prune_shape *s, struct prune_chunk *chunk, uint32_t *n)
{
    *n = 0;
    for (uint32_t i = 0; i < s->n_items; i++) {
        const struct prune_item *it = &s->item[i];
        for (uint32_t audio = 0, step = 0; audio < it->n_audio || step < it->steps; ++*n) {
            const uint32_t a = it->n_audio - audio < 50 ? it->n_audio - audio : 50;
            const uint32_t t = it->steps - step < 2 ? it->steps - step : 2;
            if (chunk) chunk[*n] = (struct prune_chunk){ a, t * it->step_tokens, t, it->step_tokens };
            audio += a;
            step += t;
        }
    }
}

static status plan_policy(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                          struct err *e)
{
    struct prune_shape with = *s;
    struct prune_chunk *chunk = NULL;
    if (p->policy->by_chunk && s->chunk == NULL) {
        nominal_chunks(s, NULL, &with.n_chunks);
        TRY(mem_alloc(&chunk, with.n_chunks, sizeof *chunk, e));
        nominal_chunks(s, chunk, &with.n_chunks);
        with.chunk = chunk;
    }
    const status st = p->policy->plan(p, &with, out, e);
    free(chunk);
    return st;
}

status prune_plan_shape(const struct policy_params *p, const struct prune_shape *s, struct policy_plan *out,
                        struct err *e)
{
    const uint32_t L = s->n_layers;
    *out = (struct policy_plan){ .n_layers = L, .p_final = NAN };
    for (uint32_t i = 0; i < s->n_items; i++)
        out->n_orig += s->item[i].n_audio + prune_item_vision(&s->item[i]);
    out->n_entry = out->n_orig;
    out->exact = true;
    status st = mem_alloc(&out->alive, L + 1, sizeof *out->alive, e);
    if (st == OK) st = mem_alloc(&out->selects, L, sizeof *out->selects, e);
    if (st == OK) st = mem_alloc(&out->scored, L, sizeof *out->scored, e);
    if (st == OK) st = mem_alloc(&out->rate, L, sizeof *out->rate, e);
    if (st == OK) {
        for (uint32_t l = 0; l <= L; l++) out->alive[l] = out->n_orig;
        for (uint32_t l = 0; l < L; l++) out->scored[l] = true;
        if (p->policy->plan) st = plan_policy(p, s, out, e);
        for (uint32_t l = 0; l < L; l++)
            out->scored[l] = out->scored[l] && out->selects[l] &&
                             out->needs & (PRUNE_NEEDS_ROW_SCORES | PRUNE_NEEDS_PAGERANK);
    }
    if (st != OK) prune_plan_free(out);
    return st;
}

struct prune_item prune_item_of(const struct prompt_item *item)
{
    const uint32_t t = item->media.t, n = item->n_vision;
    struct prune_item out = { .kind = item->media.kind, .n_audio = item->media.n_audio };
    if (n == 0) return out;
    if (out.kind == TOKEN_VIDEO && (t == 0 || n % t != 0)) out.kind = TOKEN_IMAGE;
    out.steps = out.kind == TOKEN_VIDEO ? t : 1;
    out.step_tokens = n / out.steps;
    return out;
}

status prune_plan(const struct policy_params *p, const struct prompt *prompt, uint32_t n_layers,
                  struct policy_plan *out, struct err *e)
{
    struct prune_item *item;
    struct av_groups g = { 0 };
    struct prune_chunk *chunk = NULL;
    TRY(mem_alloc(&item, prompt->n_items, sizeof *item, e));
    for (uint32_t i = 0; i < prompt->n_items; i++) { item[i] = prune_item_of(&prompt->items[i]); }
    struct prune_shape shape = { .n_layers = n_layers, .n_items = prompt->n_items, .item = item };
    status st = OK;
    if (p->policy->by_chunk) {
        TRY_GOTO(st, av_groups_make(prompt, &g, e), undo);
        TRY_GOTO(st, mem_alloc(&chunk, g.n_chunks, sizeof *chunk, e), undo);
        for (uint32_t i = 0; i < g.n_chunks; i++) {
            const struct av_chunk *c = &g.chunk[i];
            chunk[i] = (struct prune_chunk){ c->n_audio, c->n_vision, c->n_steps,
                                             c->n_steps ? g.step[c->step].n : 0 };
        }
        shape.n_chunks = g.n_chunks;
        shape.chunk = chunk;
    }
    TRY_GOTO(st, prune_plan_shape(p, &shape, out, e), undo);
    assert(out->n_orig == prompt->n_av);
undo:
    av_groups_free(&g);
    free(chunk);
    free(item);
    return st;
}

void prune_plan_free(struct policy_plan *plan)
{
    free(plan->alive);
    free(plan->selects);
    free(plan->scored);
    free(plan->rate);
    plan->alive = NULL;
    plan->selects = plan->scored = NULL;
    plan->rate = NULL;
}

uint32_t prune_plan_rows(const struct policy_plan *plan, uint32_t l)
{
    if (!plan->go || !plan->scored[l]) return plan->alive[l];
    return l ? plan->alive[l - 1] : plan->n_entry;
}

/* In words, by bit. */
static const char *const NEED[] = { "the saliency of the audio tokens",
                                    "the towers' embeddings",
                                    "attention scores inside the decoder",
                                    "the saliency of the vision tokens",
                                    "audio saliency over the whole clip",
                                    "vision saliency of several blocks",
                                    "the vision tower's keys",
                                    "the embeddings of the user's text",
                                    "weights of its own in the checkpoint",
                                    "merging tokens before the decoder",
                                    "dropping tokens before a layer's K and V",
                                    "PageRank over a layer's attention",
                                    "scores by the weights of the layer before" };

/* The words of `needs`, with commas. */
static void list_needs(uint32_t needs, char *text, size_t cap)
{
    text[0] = 0;
    for (size_t i = 0; i < sizeof NEED / sizeof *NEED; i++) {
        const size_t n = strlen(text);
        if (needs >> i & 1) snprintf(text + n, cap - n, "%s%s", n ? ", " : "", NEED[i]);
    }
}

status prune_served(const struct policy_params *p, const struct policy_plan *plan, uint32_t served,
                    struct err *e)
{
    char text[600];
    const uint32_t lacking = plan->needs & ~served;
    if (lacking == 0) return OK;
    list_needs(lacking, text, sizeof text);
    return err_set(e, E_ARG, "policy %s needs what this engine does not have yet: %s", prune_params_name(p),
                   text);
}

/* ---- run -------------------------------------------------------------------------------------------------- */

status prune_begin(const struct policy_params *p, const struct policy_plan *plan, const struct prompt *prompt,
                   struct policy_run **out, struct err *e)
{
    struct policy_run *r;
    TRY(mem_alloc(&r, 1, sizeof *r, e));
    *r = (struct policy_run){ .params = p, .plan = plan, .prompt = prompt };
    status st = mem_alloc(&r->chunk, prompt->n_av, sizeof *r->chunk, e);
    if (st == OK) st = mem_alloc(&r->index, prompt->n_av, sizeof *r->index, e);
    if (st != OK)
        prune_end(&r);
    else
        *out = r;
    return st;
}

void prune_end(struct policy_run **pr)
{
    struct policy_run *r = *pr;
    if (r == NULL) return;
    free(r->chunk);
    free(r->index);
    free(r->select_scratch);
    free(r->stored);
    free(r);
    *pr = NULL;
}

static status keep_all(const uint32_t *alive, uint32_t n, struct prune_selection *out, struct err *e)
{
    TRY(mem_grow(&out->keep, &out->cap, n + 1, sizeof *out->keep, e));
    memcpy(out->keep, alive, n * sizeof *alive);
    out->n_keep = n;
    out->merges.n = out->n_why = 0;
    return OK;
}

/* The plan was the promise that pages were reserved on. */
static void check_count(const struct policy_run *r, uint32_t bound, uint32_t n)
{
    assert(n <= bound);
    assert(!r->plan->exact || n == bound);
}

const char *prune_cause_name(enum prune_cause cause)
{
    static const char *const name[] = { [PRUNE_BY_SCORE] = "score", [PRUNE_BY_LIKENESS] = "likeness", [PRUNE_BY_DRAW] = "draw",
                                        [PRUNE_BY_PLACE] = "place", [PRUNE_BY_MERGE] = "merge",       [PRUNE_BY_LAYER] = "layer" };
    return name[cause];
}

/* What of the plan's needs these inputs lack. */
static uint32_t lacking(const struct policy_run *r, const struct prune_embed_view *v)
{
    const struct prompt *p = r->prompt;
    uint32_t has = PRUNE_NEEDS_ROW_SCORES | PRUNE_NEEDS_MERGES | PRUNE_NEEDS_GO | PRUNE_NEEDS_PAGERANK |
                   PRUNE_NEEDS_BACK;
    if (p->n_audio == 0 || v->audio_saliency) has |= PRUNE_NEEDS_AUDIO_SALIENCY | PRUNE_NEEDS_AUDIO_GLOBAL;
    if (p->n_vision == 0 || v->vision_saliency) has |= PRUNE_NEEDS_VISION_SALIENCY;
    if (p->n_vision == 0 || v->vision_blocks) has |= PRUNE_NEEDS_VISION_BLOCKS;
    if (p->n_vision == 0 || v->vision_keys) has |= PRUNE_NEEDS_VISION_KEYS;
    if ((p->n_audio == 0 || v->audio) && (p->n_vision == 0 || v->vision)) has |= PRUNE_NEEDS_EMBEDDINGS;
    if (v->n_text == 0 || v->text) has |= PRUNE_NEEDS_TEXT_EMBEDDINGS;
    if (v->tensor) has |= PRUNE_NEEDS_WEIGHTS;
    return r->plan->needs & ~has;
}

status prune_embed(struct policy_run *r, const struct prune_embed_view *v, struct prune_selection *out,
                   struct err *e)
{
    const uint32_t lacks = lacking(r, v);
    char text[600];
    TRY(keep_all(r->prompt->av, r->prompt->n_av, out, e));
    if (lacks) {
        list_needs(lacks, text, sizeof text);
        return err_set(e, E_ARG, "policy %s needs %s, and these inputs come without", r->params->policy->name,
                       text);
    }
    if (r->params->policy->embed && r->prompt->n_av) TRY(r->params->policy->embed(r, v, out, e));
    check_count(r, r->plan->n_entry, out->n_keep);
    return why_end(out, r->prompt->av, r->prompt->n_av, e);
}

bool prune_selects_at(const struct policy_run *r, uint32_t l)
{
    return r->plan->selects[l];
}

bool prune_layer_pick(const struct policy_run *r, uint32_t l, struct prune_pick *out)
{
    const struct policy_plan *p = r->plan;
    if (!p->exact || p->go || p->back || !p->scored[l] || p->needs & PRUNE_NEEDS_PAGERANK) return false;
    return r->params->policy->pick != NULL && r->params->policy->pick(r, l, out);
}

status prune_layer(struct policy_run *r, uint32_t l, const struct prune_layer_view *v,
                   struct prune_selection *out, struct err *e)
{
    TRY(keep_all(v->alive, v->n_alive, out, e));
    if (r->params->policy->layer) TRY(r->params->policy->layer(r, l, v, out, e));
    check_count(r, r->plan->alive[r->plan->go ? l : l + 1], out->n_keep);
    return why_end(out, v->alive, v->n_alive, e);
}

void prune_selection_free(struct prune_selection *s)
{
    free(s->keep);
    free(s->merges.dst);
    free(s->merges.start);
    free(s->merges.c0);
    free(s->merges.src);
    free(s->merges.w);
    free(s->why);
    *s = (struct prune_selection){ 0 };
}
