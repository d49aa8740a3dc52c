/* build/tests/vectors [--isa I] FILE...
 * Answers worked out apart from the engine, in files of two formats, both as in tests/data/vectors:
 *   omnidrop-vectors-1          schedules, calibrations and selections of OmniDrop
 *   omnidrop-policy-vectors-1   whole selections of the policies that this build has
 * One line per case, 'PASS|FAIL name', then 'N passed, N failed'; exit status 1 where one failed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "kernels/ops.h"
#include "model/safetensors.h"
#include "prune/policy.h"
#include "prune/schedule.h"

static unsigned n_passed, n_failed, n_left_out;

static void verdict(bool ok, const char *name, const char *detail)
{
    printf("%s %s%s%s\n", ok ? "PASS" : "FAIL", name, ok ? "" : ": ", ok ? "" : detail);
    if (ok)
        n_passed++;
    else
        n_failed++;
}

static void verdict_at(bool ok, const char *what, size_t i, const char *detail)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%zu", what, i);
    verdict(ok, name, detail);
}

/* A list of integers of any length; *out is owned, and NULL where there was an error. */
static status ints_of(const struct doc_at *o, const char *key, int64_t **out, size_t *n, struct err *e)
{
    struct doc_at a;
    TRY(doc_array(o, key, &a, e));
    *n = doc_count(&a);
    *out = mem_must(*n, sizeof **out);
    const status st = doc_ints(o, key, *n, INT32_MIN, UINT32_MAX, *out, e);
    if (st == OK) return OK;
    free(*out);
    *out = NULL;
    return st;
}

static status schedule_of(const struct doc_at *c, struct prune_schedule *s, uint32_t *L, struct err *e)
{
    TRY(doc_u32(c, "layers", 1, 65536, L, e));
    TRY(doc_double(c, "p_init", 0, 1, &s->p_init, e));
    TRY(doc_opt_double(c, "p_final", 0, 1, &s->p_final, e));
    TRY(doc_double(c, "t_mid", -1e9, 1e9, &s->t_mid, e));
    return doc_double(c, "beta", -1e9, 1e9, &s->beta, e);
}

static status run_schedule(const struct doc_at *c, size_t i, struct err *e)
{
    struct prune_schedule s = { 0 };
    uint32_t L = 0, n0 = 0;
    int64_t *want = NULL;
    size_t n = 0;
    TRY(schedule_of(c, &s, &L, e));
    TRY(doc_u32(c, "n0", 0, UINT32_MAX, &n0, e));
    TRY(ints_of(c, "alive", &want, &n, e));
    uint32_t *alive = mem_must(L + 1, sizeof *alive);
    prune_alive(&s, L, n0, alive);
    char detail[96] = "another number of layers";
    bool ok = n == L || n == (size_t)L + 1;
    for (size_t l = 0; ok && l < n; l++)
        if (alive[l] != want[l]) {
            ok = false;
            snprintf(detail, sizeof detail, "layer %zu: %u, expected %lld", l, alive[l], (long long)want[l]);
        }
    verdict_at(ok, "schedule", i, detail);
    free(alive);
    free(want);
    return OK;
}

static status run_calibrate(const struct doc_at *c, size_t i, struct err *e)
{
    struct prune_schedule s = { 0 };
    uint32_t L = 0;
    double r0, target, want = NAN, got = NAN, range[2], want_range[2] = { NAN, NAN };
    TRY(schedule_of(c, &s, &L, e));
    TRY(doc_double(c, "r0", 0, 1, &r0, e));
    TRY(doc_double(c, "target", -1e9, 1e9, &target, e));
    TRY(doc_opt_double(c, "p_final", -1e9, 1e9, &want, e));
    if (doc_has(c, "reachable")) TRY(doc_doubles(c, "reachable", 2, -1e9, 1e9, want_range, e));
    struct err why;
    const status st = prune_calibrate(&s, L, r0, target, &got, range, &why);
    char detail[160] = "";
    bool ok = isnan(want) ? st == E_ARG : st == OK && fabs(got - want) <= 1e-9;
    if (!ok) snprintf(detail, sizeof detail, "p_final %.12g, expected %.12g", got, want);
    for (int k = 0; k < 2 && ok; k++)
        if (!isnan(want_range[k]) && fabs(range[k] - want_range[k]) > 1e-9) {
            ok = false;
            snprintf(detail, sizeof detail, "reachable[%d] %.12g, expected %.12g", k, range[k],
                     want_range[k]);
        }
    verdict_at(ok, "calibrate", i, detail);
    return OK;
}

/* One selection as the file has it. */
struct choice {
    uint32_t n, k, max_chunk;
    double lambda;
    bool tds;
    float *score;
    int32_t *chunk;
    int64_t *pruned; /* [k] ascending */
};

static void choice_free(struct choice *c)
{
    free(c->score);
    free(c->chunk);
    free(c->pruned);
}

static status choice_of(const struct doc_at *c, struct choice *out, struct err *e)
{
    struct doc_at scores, v;
    int64_t *chunks = NULL;
    size_t n_chunks, n_pruned;
    TRY(doc_u32(c, "k", 0, UINT32_MAX, &out->k, e));
    TRY(doc_double(c, "lambda_div", -1e9, 1e9, &out->lambda, e));
    TRY(doc_bool(c, "tds", &out->tds, e));
    TRY(doc_u32(c, "max_chunk", 0, INT32_MAX, &out->max_chunk, e));
    TRY(doc_array(c, "scores", &scores, e));
    TRY(ints_of(c, "pruned", &out->pruned, &n_pruned, e));
    TRY(ints_of(c, "chunks", &chunks, &n_chunks, e));
    out->n = (uint32_t)doc_count(&scores);
    out->score = mem_must(out->n, sizeof *out->score);
    out->chunk = mem_must(n_chunks, sizeof *out->chunk);
    for (size_t j = 0; j < n_chunks; j++) out->chunk[j] = (int32_t)chunks[j];
    free(chunks);
    for (uint32_t j = 0; j < out->n; j++) {
        double x = NAN; /* null: not a number */
        doc_element(&scores, j, &v);
        if (!json_is_null(v.v)) TRY(doc_as_double(&v, -1e300, 1e300, &x, e));
        out->score[j] = (float)x;
    }
    if (n_chunks != out->n || n_pruned != out->k || out->k > out->n)
        return doc_err(c, e, "scores, chunks, k and pruned do not fit together");
    return OK;
}

static status run_choice(struct stream *st, const struct choice *c, size_t i, struct err *e)
{
    void *scratch = NULL;
    const uint32_t n_kept = c->n - c->k;
    uint32_t *keep = mem_must(c->n + 1, sizeof *keep);
    status r = mem_alloc_aligned(&scratch, st->ops->select_scratch(st, c->n), e);
    if (r == OK)
        r = st->ops->select(st,
                            &(struct select_args){ .score = c->score,
                                                   .chunk = c->chunk,
                                                   .n = c->n,
                                                   .k = c->k,
                                                   .tds = c->tds,
                                                   .lambda_div = c->lambda,
                                                   .max_chunk = (int32_t)c->max_chunk,
                                                   .keep = keep,
                                                   .scratch = scratch },
                            e);
    char detail[96] = "";
    for (uint32_t j = 0, a = 0, p = 0; r == OK && j < c->n && !detail[0]; j++) {
        const bool pruned = p < c->k && c->pruned[p] == j, kept = a < n_kept && keep[a] == j;
        p += pruned;
        a += kept;
        if (pruned == kept) snprintf(detail, sizeof detail, "token %u is %s", j, kept ? "kept" : "pruned");
    }
    if (r == OK) verdict_at(!detail[0], "select", i, detail);
    free(scratch);
    free(keep);
    return r;
}

static status run_select(struct stream *st, const struct doc_at *at, size_t i, struct err *e)
{
    struct choice c = { 0 };
    status r = choice_of(at, &c, e);
    if (r == OK) r = run_choice(st, &c, i, e);
    choice_free(&c);
    return r;
}

/* A case that cannot be read is a failure of its own; the rest of the file runs. */
static status run_section(struct stream *st, const struct doc_at *root, const char *key, struct err *e)
{
    struct doc_at list, c;
    if (!doc_has(root, key)) return OK;
    TRY(doc_array(root, key, &list, e));
    for (size_t i = 0; i < doc_count(&list); i++) {
        doc_element(&list, i, &c);
        status r = doc_as_object(&c, e);
        if (r == OK && key[0] == 's' && key[1] == 'c')
            r = run_schedule(&c, i, e);
        else if (r == OK && key[0] == 'c')
            r = run_calibrate(&c, i, e);
        else if (r == OK)
            r = run_select(st, &c, i, e);
        if (r != OK) verdict_at(false, key, i, e->text);
    }
    return OK;
}

/* ---- whole selections of policies -------------------------------------------------------------------------- */

/* One layout of the file: the prompt that its tokens make, and what the towers would have given. */
struct layout {
    struct prompt p;
    uint32_t d;
    float *audio, *vision; /* device */
    float *audio_saliency, *vision_saliency;
    const float *scores; /* [8, n_av] borrowed from the file */
};

static status tensor_of(const struct tensor_files *f, const char *prefix, const char *name,
                        enum tensor_dtype dtype, const struct tensor_info **out, struct err *e)
{
    char full[256];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    *out = tensor_files_find(f, full);
    if (*out == NULL || (*out)->dtype != dtype || (*out)->rank == 0)
        return err_set(e, E_INPUT, "tensor %s: not in the file, or not %s", full, tensor_dtype_name(dtype));
    return OK;
}

static void layout_free(struct stream *st, struct layout *y)
{
    prompt_free(&y->p);
    st->ops->release(st, y->audio);
    st->ops->release(st, y->vision);
    free(y->audio_saliency);
    free(y->vision_saliency);
}

/* meta [7, n]: prompt index, kind, item, chunk, step, y, x. */
static status layout_prompt(struct prompt *p, uint32_t n_prompt, const struct tensor_info *meta,
                            struct err *e)
{
    const uint32_t n = (uint32_t)meta->shape[meta->rank - 1];
    const int32_t *m = meta->data;
    if (meta->rank != 2 || meta->shape[0] != 7) return err_set(e, E_INPUT, "meta: not [7, n]");
    p->n = n_prompt;
    p->kind = mem_must(n_prompt, sizeof *p->kind);
    p->chunk = mem_must(n_prompt, sizeof *p->chunk);
    p->item = mem_must(n_prompt, sizeof *p->item);
    p->step = mem_must(n_prompt, sizeof *p->step);
    p->y = mem_must(n_prompt, sizeof *p->y);
    p->x = mem_must(n_prompt, sizeof *p->x);
    p->row = mem_must(n_prompt, sizeof *p->row);
    p->av = mem_must(n, sizeof *p->av);
    p->items = mem_must((size_t)n + 1, sizeof *p->items);
    for (uint32_t i = 0; i < n_prompt; i++) p->chunk[i] = -1, p->item[i] = UINT16_MAX;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t j = m[i], kind = m[n + i], item = m[2 * n + i], chunk = m[3 * n + i],
                      step = m[4 * n + i];
        if (j < 0 || (uint32_t)j >= n_prompt || (i && j <= m[i - 1]) || kind < 1 || kind > 3 || item < 0 ||
            (uint32_t)item > p->n_items || (uint32_t)item + 1 < p->n_items || chunk < 0 || step < 0 ||
            step >= 1 << 20)
            return err_set(e, E_INPUT, "meta: token %u is out of order or range", i);
        struct prompt_item *it = &p->items[item];
        if ((uint32_t)item == p->n_items) it->media.kind = TOKEN_AUDIO, p->n_items++;
        p->av[p->n_av++] = (uint32_t)j;
        p->kind[j] = (uint8_t)kind;
        p->item[j] = (uint16_t)item;
        p->chunk[j] = chunk;
        p->step[j] = (uint32_t)step;
        p->y[j] = (uint16_t)m[5 * n + i];
        p->x[j] = (uint16_t)m[6 * n + i];
        if (chunk > p->max_chunk) p->max_chunk = chunk;
        if (kind == TOKEN_AUDIO) {
            p->row[j] = p->n_audio++;
            it->media.n_audio++;
            continue;
        }
        p->row[j] = p->n_vision++;
        it->media.kind = (enum token_kind)kind;
        it->n_vision++;
        if ((uint32_t)step >= it->media.t) it->media.t = (uint32_t)step + 1;
    }
    return OK;
}

static status layout_load(struct stream *st, const struct tensor_files *f, const struct doc_at *at,
                          struct layout *y, struct err *e)
{
    const struct tensor_info *meta, *emb, *saliency, *scores;
    const char *prefix;
    uint32_t n_prompt;
    *y = (struct layout){ 0 };
    TRY(doc_string(at, "prefix", &prefix, e));
    TRY(doc_u32(at, "n_prompt", 1, 1u << 24, &n_prompt, e));
    TRY(tensor_of(f, prefix, "meta", TENSOR_I32, &meta, e));
    TRY(tensor_of(f, prefix, "emb", TENSOR_F32, &emb, e));
    TRY(tensor_of(f, prefix, "saliency", TENSOR_F32, &saliency, e));
    TRY(tensor_of(f, prefix, "scores", TENSOR_F32, &scores, e));
    TRY(layout_prompt(&y->p, n_prompt, meta, e));
    const struct prompt *p = &y->p;
    if (emb->rank != 2 || emb->shape[0] != p->n_av || saliency->n != p->n_av ||
        scores->n != (uint64_t)8 * p->n_av)
        return err_set(e, E_INPUT, "%s: emb, saliency or scores are not of %u tokens", prefix, p->n_av);
    y->d = (uint32_t)emb->shape[1];
    y->scores = scores->data;
    y->audio_saliency = mem_must(p->n_audio, sizeof(float));
    y->vision_saliency = mem_must(p->n_vision, sizeof(float));
    TRY(st->ops->alloc(st, ((size_t)p->n_audio * y->d + 1) * sizeof(float), (void **)&y->audio, e));
    TRY(st->ops->alloc(st, ((size_t)p->n_vision * y->d + 1) * sizeof(float), (void **)&y->vision, e));
    for (uint32_t i = 0; i < p->n_av; i++) {
        const uint32_t j = p->av[i], row = p->row[j];
        const bool audio = p->kind[j] == TOKEN_AUDIO;
        (audio ? y->audio_saliency : y->vision_saliency)[row] = ((const float *)saliency->data)[i];
        TRY(st->ops->upload(st, (audio ? y->audio : y->vision) + (size_t)row * y->d,
                            (const float *)emb->data + (size_t)i * y->d, y->d * sizeof(float), e));
    }
    return OK;
}

/* Is keep the list at `key`? Says where not. */
static status same_list(const struct doc_at *o, const char *key, const struct prune_selection *s,
                        char *detail, size_t cap, struct err *e)
{
    int64_t *want = NULL;
    size_t n = 0;
    const status st = ints_of(o, key, &want, &n, e);
    if (st == OK && n != s->n_keep) snprintf(detail, cap, "%u tokens kept, expected %zu", s->n_keep, n);
    for (size_t i = 0; st == OK && n == s->n_keep && i < n; i++)
        if (s->keep[i] != want[i]) {
            snprintf(detail, cap, "entry %zu of keep is %u, expected %lld", i, s->keep[i],
                     (long long)want[i]);
            break;
        }
    free(want);
    return st;
}

/* The layer hooks of one run, each with the scores of those alive. */
static status run_layers(struct stream *st, const struct doc_at *c, const struct layout *y,
                         struct policy_run *run, struct prune_selection *s, uint32_t L, char *detail,
                         size_t cap, struct err *e)
{
    struct doc_at list, entry;
    size_t next = 0, n_entries = 0;
    if (doc_has(c, "layers")) {
        TRY(doc_array(c, "layers", &list, e));
        n_entries = doc_count(&list);
    }
    uint32_t *alive = mem_must(y->p.n_av, sizeof *alive);
    float *score = mem_must(y->p.n_av, sizeof *score);
    status r = OK;
    for (uint32_t l = 0; l < L && r == OK && !detail[0]; l++) {
        uint32_t at = UINT32_MAX;
        const uint32_t n = s->n_keep;
        if (next < n_entries) {
            doc_element(&list, next, &entry);
            r = doc_u32(&entry, "layer", l, L - 1, &at, e);
        }
        if (r == OK && prune_selects_at(run, l)) {
            memcpy(alive, s->keep, n * sizeof *alive);
            for (uint32_t i = 0, k = 0; i < y->p.n_av && k < n; i++)
                if (y->p.av[i] == alive[k]) score[k++] = y->scores[(size_t)(l % 8) * y->p.n_av + i];
            const struct prune_layer_view v = { .st = st, .n_alive = n, .alive = alive, .score = score };
            r = prune_layer(run, l, &v, s, e);
        }
        if (r != OK) break;
        if (at == l) {
            r = same_list(&entry, "keep", s, detail, cap, e);
            next++;
        } else if (s->n_keep != n)
            snprintf(detail, cap, "layer %u drops tokens", l);
    }
    free(alive);
    free(score);
    return r;
}

static status run_policy(struct stream *st, const struct doc_at *c, const struct layout *y,
                         const struct policy_params *p, uint32_t L, char *detail, size_t cap, struct err *e)
{
    struct policy_plan plan = { 0 };
    struct policy_run *run = NULL;
    struct prune_selection s = { 0 };
    struct doc_at want;
    bool exact;
    int64_t *alive = mem_must(L + 1, sizeof *alive);
    const struct prune_embed_view v = { .st = st,
                                        .d = y->d,
                                        .audio = y->audio,
                                        .vision = y->vision,
                                        .audio_saliency = y->audio_saliency,
                                        .vision_saliency = y->vision_saliency };
    status r;
    TRY_GOTO(r, doc_object(c, "plan", &want, e), out);
    TRY_GOTO(r, doc_ints(&want, "alive", L + 1, 0, UINT32_MAX, alive, e), out);
    TRY_GOTO(r, doc_bool(&want, "exact", &exact, e), out);
    TRY_GOTO(r, prune_plan(p, &y->p, L, &plan, e), out);
    if (exact && !plan.exact) snprintf(detail, cap, "the plan should be exact");
    for (uint32_t l = 0; l <= L && !detail[0]; l++)
        if (exact ? plan.alive[l] != alive[l] : plan.alive[l] > alive[l])
            snprintf(detail, cap, "plan: %u alive at layer %u, expected %lld", plan.alive[l], l,
                     (long long)alive[l]);
    TRY_GOTO(r, prune_begin(p, &plan, &y->p, &run, e), out);
    TRY_GOTO(r, prune_embed(run, &v, &s, e), out);
    if (!detail[0]) TRY_GOTO(r, same_list(c, "keep", &s, detail, cap, e), out);
    if (!detail[0] && doc_has(c, "merges")) snprintf(detail, cap, "merges nothing");
    if (!detail[0]) TRY_GOTO(r, run_layers(st, c, y, run, &s, L, detail, cap, e), out);
out:
    prune_selection_free(&s);
    prune_end(&run);
    prune_plan_free(&plan);
    free(alive);
    return r;
}

/* "policy" and "params" as the interface takes them; *known: this build has the policy. */
static status params_of(const struct doc_at *c, uint32_t L, struct policy_params *p, bool *known,
                        struct err *e)
{
    const char *policy;
    struct doc_at params;
    TRY(doc_string(c, "policy", &policy, e));
    TRY(doc_object(c, "params", &params, e));
    *known = prune_find(policy) != NULL;
    if (!*known) return OK;
    json_t *o = json_copy((json_t *)params.v);
    json_object_set_new(o, "name", json_string(policy));
    const status st = prune_params_json(p, o, L, e);
    json_decref(o);
    return st;
}

static status run_policy_case(struct stream *st, const struct doc_at *root, const struct tensor_files *f,
                              uint32_t L, const struct doc_at *c, struct err *e)
{
    const char *name, *layout;
    struct doc_at layouts, at;
    struct policy_params p;
    struct layout y;
    bool known = false;
    char detail[160] = "";
    TRY(doc_string(c, "name", &name, e));
    TRY(params_of(c, L, &p, &known, e));
    if (!known) {
        n_left_out++;
        return OK;
    }
    TRY(doc_string(c, "layout", &layout, e));
    TRY(doc_object(root, "layouts", &layouts, e));
    TRY(doc_object(&layouts, layout, &at, e));
    status r = layout_load(st, f, &at, &y, e);
    if (r == OK) r = run_policy(st, c, &y, &p, L, detail, sizeof detail, e);
    layout_free(st, &y);
    if (r == OK) verdict(!detail[0], name, detail);
    return r;
}

/* Parameters that must be refused; where the parameters alone do not tell, the plan of a minute must. */
static status run_refusal(uint32_t L, const struct doc_at *c, size_t i, struct err *e)
{
    struct policy_params p;
    bool known = false;
    char name[64];
    struct err why = { 0 };
    status st = params_of(c, L, &p, &known, &why);
    if (!known) {
        if (st != OK) return *e = why, st;
        n_left_out++;
        return OK;
    }
    if (st == OK) {
        const struct prune_item item = {
            .kind = TOKEN_VIDEO, .n_audio = 1500, .steps = 60, .step_tokens = 144
        };
        struct policy_plan plan;
        st = prune_plan_shape(&p, &(struct prune_shape){ .n_layers = L, .n_items = 1, .item = &item }, &plan,
                              &why);
        if (st == OK) prune_plan_free(&plan);
    }
    snprintf(name, sizeof name, "errors.%zu", i);
    verdict(st == E_ARG && why.text[0], name, st == OK ? "was accepted" : why.text);
    return OK;
}

static status run_policy_cases(struct stream *st, const struct doc_at *root, const struct tensor_files *f,
                               struct err *e)
{
    struct doc_at list, c;
    uint32_t L;
    TRY(doc_u32(root, "layers", 1, 4096, &L, e));
    TRY(doc_array(root, "cases", &list, e));
    for (size_t i = 0; i < doc_count(&list); i++) {
        doc_element(&list, i, &c);
        if (run_policy_case(st, root, f, L, &c, e) != OK) verdict_at(false, "cases", i, e->text);
    }
    if (doc_has(root, "ops")) {
        TRY(doc_array(root, "ops", &list, e));
        n_left_out += (unsigned)doc_count(&list);
    }
    if (!doc_has(root, "errors")) return OK;
    TRY(doc_array(root, "errors", &list, e));
    for (size_t i = 0; i < doc_count(&list); i++) {
        doc_element(&list, i, &c);
        if (run_refusal(L, &c, i, e) != OK) verdict_at(false, "errors", i, e->text);
    }
    return OK;
}

/* The tensors lie beside the JSON. */
static status run_policies(struct stream *st, const char *path, const struct doc_at *root, struct err *e)
{
    const char *name, *slash = strrchr(path, '/');
    struct tensor_files *f = NULL;
    char full[4096];
    TRY(doc_string(root, "tensors", &name, e));
    snprintf(full, sizeof full, "%.*s%s", slash ? (int)(slash - path + 1) : 0, path, name);
    const char *const paths[] = { full };
    TRY(tensor_files_open(paths, 1, &f, e));
    const status r = run_policy_cases(st, root, f, e);
    tensor_files_close(&f);
    return r;
}

static status run_file(struct stream *st, const char *path, struct err *e)
{
    static const char *const sections[] = { "schedule", "calibrate", "select" };
    const unsigned before = n_passed + n_failed + n_left_out;
    struct doc_limits limits = doc_config_limits;
    struct doc doc;
    struct doc_at root;
    const char *format;
    limits.bytes_max = (size_t)1 << 30;
    TRY(doc_load(path, &limits, &doc, e));
    doc_root(&doc, &root);
    status r = doc_string(&root, "format", &format, e);
    if (r == OK && strcmp(format, "omnidrop-vectors-1") == 0) {
        for (int i = 0; r == OK && i < 3; i++) r = run_section(st, &root, sections[i], e);
    } else if (r == OK && strcmp(format, "omnidrop-policy-vectors-1") == 0) {
        r = run_policies(st, path, &root, e);
    } else if (r == OK) {
        r = doc_err(&root, e,
                    "format \"%s\": this runner takes omnidrop-vectors-1 and omnidrop-policy-vectors-1",
                    format);
    }
    if (r == OK && n_passed + n_failed + n_left_out == before) r = doc_err(&root, e, "holds no case");
    doc_close(&doc);
    return r;
}

int main(int argc, char **argv)
{
    struct stream_options o = { .device = "cpu", .n_threads = 1 };
    struct stream *st = NULL;
    struct err e = { 0 };
    int files = 0;
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--isa") == 0) o.isa = argv[i + 1];
    if (stream_open(&o, &st, &e) != OK) {
        fprintf(stderr, "vectors: %s\n", e.text);
        return 2;
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--isa") == 0) {
            i++;
            continue;
        }
        files++;
        if (run_file(st, argv[i], &e) != OK) {
            printf("FAIL %s %s\n", argv[i], e.text);
            n_failed++;
        }
    }
    st->ops->close(&st);
    if (files == 0) {
        fprintf(stderr, "usage: vectors [--isa I] FILE...\n");
        return 2;
    }
    if (n_left_out)
        printf("left out: %u cases of policies and pieces that this build does not have\n", n_left_out);
    printf("%u passed, %u failed\n", n_passed, n_failed);
    return n_failed != 0;
}
