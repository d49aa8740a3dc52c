/* build/tests/vectors [--isa I] FILE...
 * Answers worked out apart from the engine, in files of two formats, both as in tests/data/vectors:
 *   omnidrop-vectors-1          schedules, calibrations and selections of OmniDrop
 *   omnidrop-policy-vectors-1   whole selections of the policies, small pieces of them, and what they must refuse
 * One line per case, 'PASS|FAIL name', then 'N passed, N failed'; exit status 1 where one failed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "kernels/ops.h"
#include "model/safetensors.h"
#include "prune/choose.h"
#include "prune/dash.h"
#include "prune/omnizip.h"
#include "prune/policy.h"
#include "prune/schedule.h"
#include "prune/seats.h"

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
struct drop_list {
    uint32_t n, k, max_chunk;
    double lambda;
    bool tds;
    float *score;
    int32_t *chunk;
    int64_t *pruned; /* [k] ascending */
};

static void choice_free(struct drop_list *c)
{
    free(c->score);
    free(c->chunk);
    free(c->pruned);
}

static status choice_of(const struct doc_at *c, struct drop_list *out, struct err *e)
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

static status run_choice(struct stream *st, const struct drop_list *c, size_t i, struct err *e)
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
    struct drop_list c = { 0 };
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
    float *audio, *vision, *text, *keys; /* device */
    float *audio_saliency, *vision_saliency, *blocks;
    uint32_t n_text, n_blocks, d_key;
    const float *emb, *scores; /* [n_av, d], [8, n_av] borrowed from the file */
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
    st->ops->release(st, y->text);
    st->ops->release(st, y->keys);
    free(y->audio_saliency);
    free(y->vision_saliency);
    free(y->blocks);
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

/* What some files have beside: text, saliency of several blocks, keys. */
static status layout_more(struct stream *st, const struct tensor_files *f, const char *prefix,
                          struct layout *y, struct err *e)
{
    const struct tensor_info *text, *blocks, *keys;
    const struct prompt *p = &y->p;
    struct err none;
    if (tensor_of(f, prefix, "text", TENSOR_F32, &text, &none) == OK && text->rank == 2) {
        y->n_text = (uint32_t)text->shape[0];
        if (y->n_text && text->shape[1] != y->d)
            return err_set(e, E_INPUT, "%stext: not of width %u", prefix, y->d);
        TRY(st->ops->alloc(st, ((size_t)y->n_text * y->d + 1) * sizeof(float), (void **)&y->text, e));
        TRY(st->ops->upload(st, y->text, text->data, (size_t)y->n_text * y->d * sizeof(float), e));
    }
    if (tensor_of(f, prefix, "vblocks", TENSOR_F32, &blocks, &none) == OK && blocks->rank == 2 &&
        blocks->shape[1] == p->n_av) {
        y->n_blocks = (uint32_t)blocks->shape[0];
        y->blocks = mem_must((size_t)y->n_blocks * p->n_vision + 1, sizeof *y->blocks);
    }
    if (tensor_of(f, prefix, "vkeys", TENSOR_F32, &keys, &none) == OK && keys->rank == 2 &&
        keys->shape[0] == p->n_av) {
        y->d_key = (uint32_t)keys->shape[1];
        TRY(st->ops->alloc(st, ((size_t)p->n_vision * y->d_key + 1) * sizeof(float), (void **)&y->keys, e));
    }
    for (uint32_t i = 0; i < p->n_av; i++) {
        const uint32_t j = p->av[i], row = p->row[j];
        if (p->kind[j] == TOKEN_AUDIO) continue;
        for (uint32_t b = 0; b < y->n_blocks; b++)
            y->blocks[(size_t)b * p->n_vision + row] = ((const float *)blocks->data)[(size_t)b * p->n_av + i];
        if (y->d_key)
            TRY(st->ops->upload(st, y->keys + (size_t)row * y->d_key,
                                (const float *)keys->data + (size_t)i * y->d_key, y->d_key * sizeof(float),
                                e));
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
    y->emb = emb->data;
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
    return layout_more(st, f, prefix, y, e);
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
    const struct policy_plan *plan = run->plan;
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
            const struct prune_layer_view v = {
                .st = st, .n_alive = n, .alive = alive, .score = plan->scored[l] ? score : NULL
            };
            r = prune_layer(run, l, &v, s, e);
        }
        if (r != OK) break;
        if (at == l) {
            const char *keys;
            r = doc_string(&entry, "keys", &keys, e);
            if (r == OK && (strcmp(keys, "go") == 0) != plan->go)
                snprintf(detail, cap, "layer %u: the keys of the dropped should %s", l, keys);
            if (r == OK && !detail[0]) r = same_list(&entry, "keep", s, detail, cap, e);
            next++;
        } else if (s->n_keep != n)
            snprintf(detail, cap, "layer %u drops tokens", l);
    }
    free(alive);
    free(score);
    return r;
}

/* ---- merges ---- */

/* The place of prompt index j among the AV tokens. */
static uint32_t place_of(const struct prompt *p, int64_t j)
{
    uint32_t i = 0;
    while (i < p->n_av && p->av[i] != j) i++;
    return i;
}

/* Row i of the expected embeddings against merge i's, worked out on the device. */
static status same_rows(struct stream *st, const struct layout *y, const struct prune_merges *m,
                        const float *want, char *detail, size_t cap, struct err *e)
{
    const struct prompt *p = &y->p;
    float *x = NULL, *out = NULL, *got = mem_must((size_t)m->n * y->d + 1, sizeof *got);
    const uint32_t n_pairs = m->start[m->n];
    uint32_t *dst = mem_must((size_t)m->n + n_pairs + 1, sizeof *dst), *src = dst + m->n;
    status r;
    for (uint32_t i = 0; i < m->n; i++) dst[i] = place_of(p, m->dst[i]);
    for (uint32_t i = 0; i < n_pairs; i++) src[i] = place_of(p, m->src[i]);
    TRY_GOTO(r, st->ops->alloc(st, (size_t)p->n_av * y->d * sizeof *x, (void **)&x, e), undo);
    TRY_GOTO(r, st->ops->upload(st, x, y->emb, (size_t)p->n_av * y->d * sizeof *x, e), undo);
    TRY_GOTO(r, st->ops->alloc(st, ((size_t)m->n * y->d + 1) * sizeof *x, (void **)&out, e), undo);
    TRY_GOTO(
        r, st->ops->merge(st, &(struct merge_args){ x, y->d, m->n, dst, m->c0, m->start, src, m->w, out }, e),
        undo);
    TRY_GOTO(r, st->ops->download(st, got, out, (size_t)m->n * y->d * sizeof *got, e), undo);
    for (uint32_t i = 0; i < m->n && !detail[0]; i++) {
        double top = 0, worst = 0;
        for (uint32_t k = 0; k < y->d; k++) {
            top = fmax(top, fabs(want[i * y->d + k]));
            worst = fmax(worst, fabs(want[i * y->d + k] - got[i * y->d + k]));
        }
        if (!(worst <= 1e-4 * top))
            snprintf(detail, cap, "merge into %u: embedding off by %g", m->dst[i], worst);
    }
undo:
    st->ops->release(st, x);
    st->ops->release(st, out);
    free(dst);
    free(got);
    return r;
}

/* The pairs of merge i are those of the file from *at on, as a set. */
static void same_pairs(const struct prune_merges *m, uint32_t i, const int32_t *pair, const float *w,
                       uint64_t n, uint64_t *at, char *detail, size_t cap)
{
    uint64_t count = 0;
    while (*at + count < n && (uint32_t)pair[2 * (*at + count)] == m->dst[i]) count++;
    if (count != m->start[i + 1] - m->start[i])
        snprintf(detail, cap, "merge into %u of %u tokens, expected %llu", m->dst[i],
                 m->start[i + 1] - m->start[i], (unsigned long long)count);
    for (uint32_t k = m->start[i]; k < m->start[i + 1] && !detail[0]; k++) {
        uint64_t j = *at;
        while (j < *at + count && (uint32_t)pair[2 * j + 1] != m->src[k]) j++;
        if (j == *at + count)
            snprintf(detail, cap, "merge into %u: takes in %u", m->dst[i], m->src[k]);
        else if (!(fabs(w[j] - m->w[k]) <= 1e-4))
            snprintf(detail, cap, "merge of %u into %u: weight %g, expected %g", m->src[k], m->dst[i],
                     m->w[k], w[j]);
    }
    *at += count;
}

static status same_merges(struct stream *st, const struct tensor_files *f, const struct doc_at *c,
                          const struct layout *y, const struct prune_selection *s, char *detail, size_t cap,
                          struct err *e)
{
    const struct tensor_info *dst, *c0, *pair, *w, *emb;
    const struct prune_merges *m = &s->merges;
    const char *prefix;
    uint64_t at = 0;
    if (!doc_has(c, "merges")) {
        if (m->n) snprintf(detail, cap, "merges %u tokens, expected none", m->n);
        return OK;
    }
    TRY(doc_string(c, "merges", &prefix, e));
    TRY(tensor_of(f, prefix, "dst", TENSOR_I32, &dst, e));
    TRY(tensor_of(f, prefix, "c0", TENSOR_F32, &c0, e));
    TRY(tensor_of(f, prefix, "pair", TENSOR_I32, &pair, e));
    TRY(tensor_of(f, prefix, "w", TENSOR_F32, &w, e));
    TRY(tensor_of(f, prefix, "emb", TENSOR_F32, &emb, e));
    if (dst->n != m->n) {
        snprintf(detail, cap, "merges into %u tokens, expected %llu", m->n, (unsigned long long)dst->n);
        return OK;
    }
    if (m->n == 0) return OK;
    for (uint32_t i = 0; i < m->n && !detail[0]; i++) {
        const float want = ((const float *)c0->data)[i];
        if (m->dst[i] != (uint32_t)((const int32_t *)dst->data)[i])
            snprintf(detail, cap, "merge %u is into %u, expected %d", i, m->dst[i],
                     ((const int32_t *)dst->data)[i]);
        else if (!(fabs(want - m->c0[i]) <= 1e-4))
            snprintf(detail, cap, "merge into %u: own weight %g, expected %g", m->dst[i], m->c0[i], want);
        else
            same_pairs(m, i, pair->data, w->data, w->n, &at, detail, cap);
    }
    return detail[0] ? OK : same_rows(st, y, m, emb->data, detail, cap, e);
}

/* ---- one case ---- */

/* The trained tensors of the file under the prefix of `policy`; `missing` (or NULL) is left out. Owned. */
static uint32_t weights_of(const struct tensor_files *f, const struct doc_at *root, const char *policy,
                           const char *missing, struct prune_tensor **out)
{
    static const char *const names[] = { "v_proj.weight",
                                         "v_proj.bias",
                                         "a_proj.weight",
                                         "a_proj.bias",
                                         "v_norm.weight",
                                         "v_norm.bias",
                                         "a_norm.weight",
                                         "a_norm.bias",
                                         "post_attn_norm.weight",
                                         "post_attn_norm.bias",
                                         "cross_attn.in_proj_weight",
                                         "cross_attn.in_proj_bias",
                                         "cross_attn.out_proj.weight",
                                         "cross_attn.out_proj.bias",
                                         "score_head.0.weight",
                                         "score_head.0.bias",
                                         "score_head.2.weight",
                                         "score_head.2.bias" };
    enum { N = sizeof names / sizeof *names };
    struct doc_at weights;
    const char *prefix;
    struct err e;
    uint32_t n = 0;
    *out = mem_must(N, sizeof **out);
    if (!doc_has(root, "weights") || doc_object(root, "weights", &weights, &e) != OK ||
        !doc_has(&weights, policy) || doc_string(&weights, policy, &prefix, &e) != OK)
        return 0;
    for (int i = 0; i < N; i++) {
        const struct tensor_info *t;
        if ((missing && strcmp(missing, names[i]) == 0) ||
            tensor_of(f, prefix, names[i], TENSOR_F32, &t, &e) != OK)
            continue;
        (*out)[n++] = (struct prune_tensor){ names[i], t->data, t->n };
    }
    return n;
}

static void check_ratios(const struct doc_at *c, const struct policy_params *p, uint32_t L, char *detail,
                         size_t cap)
{
    static const char *const names[] = { "vision", "audio" }, *const targets[] = { "target_v", "target_a" };
    const double paper[] = { 16, 18, 20 };
    struct doc_at ratios, list, v;
    struct err e;
    if (!doc_has(c, "ratios") || doc_object(c, "ratios", &ratios, &e) != OK) return;
    for (int m = 0; m < 2; m++) {
        if (doc_array(&ratios, names[m], &list, &e) != OK) continue;
        const double target = prune_get(p, targets[m]);
        const struct seats_ratios r = seats_ratios_of(L, paper, 3, (uint32_t)prune_get(p, "exit_at"),
                                                      fmin(1, prune_get(p, "scale") * target), target);
        if (doc_count(&list) != r.n) snprintf(detail, cap, "%s: %u ratios", names[m], r.n);
        for (uint32_t i = 0; i < r.n && !detail[0]; i++) {
            double want = NAN;
            doc_element(&list, i, &v);
            if (doc_as_double(&v, 0, 1, &want, &e) != OK || !(fabs(want - r.ratio[i]) <= 1e-9))
                snprintf(detail, cap, "%s: ratio %u is %.12g, expected %.12g", names[m], i, r.ratio[i], want);
        }
    }
}

static struct prune_embed_view view_of(struct stream *st, const struct layout *y)
{
    return (struct prune_embed_view){ .st = st,
                                      .d = y->d,
                                      .audio = y->audio,
                                      .vision = y->vision,
                                      .audio_saliency = y->audio_saliency,
                                      .vision_saliency = y->vision_saliency,
                                      .n_blocks = y->n_blocks,
                                      .vision_blocks = y->blocks,
                                      .d_key = y->d_key,
                                      .vision_keys = y->keys,
                                      .n_text = y->n_text,
                                      .text = y->text };
}

static status run_policy(struct stream *st, const struct doc_at *root, const struct tensor_files *f,
                         const struct doc_at *c, const struct layout *y, const struct policy_params *p,
                         uint32_t L, char *detail, size_t cap, struct err *e)
{
    struct policy_plan plan = { 0 };
    struct policy_run *run = NULL;
    struct prune_selection s = { 0 };
    struct prune_tensor *tensors = NULL;
    struct doc_at want;
    bool exact;
    int64_t *alive = mem_must(L + 1, sizeof *alive);
    struct prune_embed_view v = view_of(st, y);
    v.n_tensors = weights_of(f, root, prune_params_name(p), NULL, &tensors);
    v.tensor = tensors;
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
    check_ratios(c, p, L, detail, cap);
    TRY_GOTO(r, prune_begin(p, &plan, &y->p, &run, e), out);
    TRY_GOTO(r, prune_embed(run, &v, &s, e), out);
    if (!detail[0]) TRY_GOTO(r, same_list(c, "keep", &s, detail, cap, e), out);
    if (!detail[0]) TRY_GOTO(r, same_merges(st, f, c, y, &s, detail, cap, e), out);
    if (!detail[0]) TRY_GOTO(r, run_layers(st, c, y, run, &s, L, detail, cap, e), out);
out:
    prune_selection_free(&s);
    prune_end(&run);
    prune_plan_free(&plan);
    free(tensors);
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
    if (r == OK) r = run_policy(st, root, f, c, &y, &p, L, detail, sizeof detail, e);
    layout_free(st, &y);
    if (r == OK) verdict(!detail[0], name, detail);
    return r;
}

/* The first layout, without one of the policy's tensors. */
static status run_missing(struct stream *st, const struct doc_at *root, const struct tensor_files *f,
                          uint32_t L, const struct doc_at *c, const struct policy_params *p, struct err *why)
{
    const char *missing;
    struct doc_at layouts, at;
    struct layout y = { 0 };
    struct policy_plan plan = { 0 };
    struct policy_run *run = NULL;
    struct prune_selection s = { 0 };
    struct prune_tensor *tensors = NULL;
    status r;
    TRY(doc_string(c, "missing", &missing, why));
    TRY(doc_object(root, "layouts", &layouts, why));
    TRY(doc_object(&layouts, json_object_iter_key(json_object_iter((json_t *)(uintptr_t)layouts.v)), &at,
                   why));
    TRY_GOTO(r, layout_load(st, f, &at, &y, why), out);
    struct prune_embed_view v = view_of(st, &y);
    v.n_tensors = weights_of(f, root, prune_params_name(p), missing, &tensors);
    v.tensor = tensors;
    TRY_GOTO(r, prune_plan(p, &y.p, L, &plan, why), out);
    TRY_GOTO(r, prune_begin(p, &plan, &y.p, &run, why), out);
    r = prune_embed(run, &v, &s, why);
    if (r != OK && strstr(why->text, missing) == NULL)
        r = err_set(why, E_INTERNAL, "the error does not name %s", missing);
out:
    prune_selection_free(&s);
    prune_end(&run);
    prune_plan_free(&plan);
    layout_free(st, &y);
    free(tensors);
    return r;
}

/* Parameters that must be refused; where the parameters alone do not tell, the plan of a minute must. */
static status run_refusal(struct stream *s, const struct doc_at *root, const struct tensor_files *f,
                          uint32_t L, const struct doc_at *c, size_t i, struct err *e)
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
    if (st == OK && doc_has(c, "missing")) st = run_missing(s, root, f, L, c, &p, &why);
    snprintf(name, sizeof name, "errors.%zu", i);
    verdict(st == E_ARG && why.text[0], name, st == OK ? "was accepted" : why.text);
    return OK;
}

/* ---- small pieces ----------------------------------------------------------------------------------------- */

/* The tensor that `key` names. */
static status op_tensor(const struct tensor_files *f, const struct doc_at *c, const char *key,
                        enum tensor_dtype dtype, const struct tensor_info **out, struct err *e)
{
    const char *name;
    TRY(doc_string(c, key, &name, e));
    return tensor_of(f, "", name, dtype, out, e);
}

/* Within tol of want, relative to the largest of them. */
static void same_floats(const float *got, const float *want, uint64_t n, double tol, char *detail, size_t cap)
{
    double top = 1e-30;
    for (uint64_t i = 0; i < n; i++) top = fmax(top, fabs(want[i]));
    for (uint64_t i = 0; i < n && !detail[0]; i++)
        if (!(fabs(got[i] - want[i]) <= tol * top))
            snprintf(detail, cap, "entry %llu is %.9g, expected %.9g", (unsigned long long)i, got[i],
                     want[i]);
}

/* A list of numbers at `key`, null as NaN; owned. */
static status doubles_of(const struct doc_at *c, const char *key, double **out, size_t *n, struct err *e)
{
    struct doc_at list, v;
    TRY(doc_array(c, key, &list, e));
    *n = doc_count(&list);
    *out = mem_must(*n + 1, sizeof **out);
    for (size_t i = 0; i < *n; i++) {
        (*out)[i] = NAN;
        doc_element(&list, i, &v);
        if (!json_is_null(v.v)) TRY(doc_as_double(&v, -1e300, 1e300, &(*out)[i], e));
    }
    return OK;
}

static void same_doubles(const double *got, const double *want, size_t n, char *detail, size_t cap)
{
    for (size_t i = 0; i < n && !detail[0]; i++)
        if (!(fabs(got[i] - want[i]) <= 1e-9))
            snprintf(detail, cap, "entry %zu is %.12g, expected %.12g", i, got[i], want[i]);
}

static status op_rates(const struct doc_at *c, char *detail, size_t cap, struct err *e)
{
    double *n = NULL, *share = NULL, *want = NULL, rho_v, low, high, got[256];
    uint32_t counts[256];
    size_t k = 0, k2 = 0, k3 = 0;
    const char *norm;
    TRY(doubles_of(c, "n", &n, &k, e));
    TRY(doubles_of(c, "share", &share, &k2, e));
    TRY(doubles_of(c, "rates", &want, &k3, e));
    TRY(doc_double(c, "rho_v", 0, 1, &rho_v, e));
    TRY(doc_double(c, "rho_min", 0, 1, &low, e));
    TRY(doc_double(c, "rho_max", 0, 1, &high, e));
    TRY(doc_string(c, "norm", &norm, e));
    if (k != k2 || k != k3 || k > 256) return doc_err(c, e, "n, share and rates do not fit together");
    for (size_t i = 0; i < k; i++) counts[i] = (uint32_t)n[i];
    omnizip_rates(counts, share, (uint32_t)k, rho_v, low, high, strcmp(norm, "exact") == 0, got);
    same_doubles(got, want, k, detail, cap);
    free(n);
    free(share);
    free(want);
    return OK;
}

static status op_ratios(const struct doc_at *c, char *detail, size_t cap, struct err *e)
{
    double *drops = NULL, *want = NULL, entry, target;
    int64_t *at = NULL;
    uint32_t layers, exit_from_1, exit_at;
    size_t n_drops = 0, n = 0, n_at = 0;
    TRY(doubles_of(c, "drops", &drops, &n_drops, e));
    TRY(doubles_of(c, "ratios", &want, &n, e));
    TRY(ints_of(c, "at", &at, &n_at, e));
    TRY(doc_u32(c, "layers", 1, 4096, &layers, e));
    TRY(doc_u32(c, "exit", 1, 4097, &exit_from_1, e));
    TRY(doc_u32(c, "exit_at", 0, 4096, &exit_at, e));
    TRY(doc_double(c, "entry", 0, 1, &entry, e));
    TRY(doc_double(c, "target", 0, 1, &target, e));
    const struct seats_ratios r =
        seats_ratios_of(layers, drops, (uint32_t)n_drops, exit_from_1, entry, target);
    if (r.n != n || r.n != n_at || r.exit_at != exit_at)
        snprintf(detail, cap, "%u drops, exit at %u; expected %zu, %u", r.n, r.exit_at, n, exit_at);
    for (uint32_t i = 0; i < r.n && !detail[0]; i++)
        if (r.at[i] != at[i])
            snprintf(detail, cap, "drop %u at %u, expected %lld", i, r.at[i], (long long)at[i]);
    if (!detail[0]) same_doubles(r.ratio, want, n, detail, cap);
    free(drops);
    free(want);
    free(at);
    return OK;
}

static status op_cuts(const struct tensor_files *f, const struct doc_at *c, char *detail, size_t cap,
                      struct err *e)
{
    const struct tensor_info *cos;
    int64_t *want = NULL;
    uint32_t n, gap;
    size_t n_want = 0;
    double threshold;
    TRY(op_tensor(f, c, "cos", TENSOR_F32, &cos, e));
    TRY(ints_of(c, "cuts", &want, &n_want, e));
    TRY(doc_u32(c, "n", 1, 1u << 24, &n, e));
    TRY(doc_u32(c, "gap", 1, 1u << 24, &gap, e));
    TRY(doc_double(c, "threshold", -1, 1, &threshold, e));
    uint32_t *cut = mem_must((size_t)n + 1, sizeof *cut);
    const uint32_t k = dash_cuts(cos->data, n, threshold, gap, cut);
    if (k != n_want) snprintf(detail, cap, "%u cuts, expected %zu", k, n_want);
    for (uint32_t i = 0; i < k && !detail[0]; i++)
        if (cut[i] != want[i])
            snprintf(detail, cap, "cut %u is %u, expected %lld", i, cut[i], (long long)want[i]);
    free(cut);
    free(want);
    return OK;
}

/* Attention received by each of n rows inside segments of `window` rows, the mean over heads and rows. q, k: [heads, n, width]. */
static status received(struct stream *st, const struct tensor_info *q, const struct tensor_info *k,
                       uint32_t window, float *out, struct err *e)
{
    const uint32_t H = (uint32_t)q->shape[0], n = (uint32_t)q->shape[1], D = (uint32_t)q->shape[2], w = H * D;
    uint32_t *start = mem_must((size_t)n + 2, sizeof *start), n_segs = 0;
    float *rows[2] = { NULL, NULL }, *heard = NULL, *host = mem_must((size_t)n * w, sizeof *host);
    struct operand o = { .rows = n, .k = w, .compute = DT_F32 };
    void *scratch = NULL;
    status r = OK;
    for (uint32_t i = 0; i < n; i += window) start[n_segs++] = i;
    start[n_segs] = n;
    for (int m = 0; m < 2; m++) {
        const float *from = (m ? k : q)->data;
        for (uint32_t h = 0; h < H; h++)
            for (uint32_t i = 0; i < n; i++)
                memcpy(host + (size_t)i * w + h * D, from + ((size_t)h * n + i) * D, D * sizeof *host);
        TRY_GOTO(r, st->ops->alloc(st, (size_t)n * w * sizeof *host, (void **)&rows[m], e), undo);
        TRY_GOTO(r, st->ops->upload(st, rows[m], host, (size_t)n * w * sizeof *host, e), undo);
    }
    TRY_GOTO(r, st->ops->alloc(st, n * sizeof *heard, (void **)&heard, e), undo);
    TRY_GOTO(r, st->ops->alloc(st, st->ops->operand_bytes(st, n, w, DT_F32), &o.data, e), undo);
    TRY_GOTO(r, st->ops->alloc(st, st->ops->attention_scratch(st, H, D, n, n), &scratch, e), undo);
    TRY_GOTO(r,
             st->ops->segment_attention(st,
                                        &(struct segment_attention_args){ .q = rows[0],
                                                                          .k = rows[1],
                                                                          .v = rows[1],
                                                                          .ld = w,
                                                                          .heads = H,
                                                                          .D = D,
                                                                          .scale = (float)(1 / sqrt(D)),
                                                                          .n_segs = n_segs,
                                                                          .seg_start = start,
                                                                          .out = &o,
                                                                          .received = heard,
                                                                          .scratch = scratch },
                                        e),
             undo);
    r = st->ops->download(st, out, heard, n * sizeof *out, e);
undo:
    for (int m = 0; m < 2; m++) st->ops->release(st, rows[m]);
    st->ops->release(st, heard);
    st->ops->release(st, o.data);
    st->ops->release(st, scratch);
    free(start);
    free(host);
    return r;
}

static status op_audio_saliency(struct stream *st, const struct tensor_files *f, const struct doc_at *c,
                                char *detail, size_t cap, struct err *e)
{
    const struct tensor_info *q, *k, *a;
    const char *variant;
    uint32_t window;
    TRY(op_tensor(f, c, "q", TENSOR_F32, &q, e));
    TRY(op_tensor(f, c, "k", TENSOR_F32, &k, e));
    TRY(op_tensor(f, c, "a", TENSOR_F32, &a, e));
    TRY(doc_string(c, "variant", &variant, e));
    TRY(doc_u32(c, "window", 1, 1u << 20, &window, e));
    const uint32_t n = (uint32_t)q->shape[1], own = strcmp(variant, "global") == 0 ? n : window;
    float *s = mem_must(n, sizeof *s);
    const status r = received(st, q, k, own, s, e);
    for (uint32_t i = 0; i < n && own == window; i++) { /* a short last window */
        const uint32_t left = n - i / window * window;
        if (left < window) s[i] *= (float)left / (float)window;
    }
    for (uint32_t i = 0; i < n / 2; i++) s[i] = (s[2 * i] + s[2 * i + 1]) / 2;
    if (r == OK && a->n != n / 2)
        snprintf(detail, cap, "%llu tokens, expected %u", (unsigned long long)a->n, n / 2);
    if (r == OK && !detail[0]) same_floats(s, a->data, a->n, 1e-5, detail, cap);
    free(s);
    return r;
}

static status op_vision_saliency(struct stream *st, const struct tensor_files *f, const struct doc_at *c,
                                 char *detail, size_t cap, struct err *e)
{
    const struct tensor_info *q, *k, *perm, *v;
    TRY(op_tensor(f, c, "q", TENSOR_F32, &q, e));
    TRY(op_tensor(f, c, "k", TENSOR_F32, &k, e));
    TRY(op_tensor(f, c, "perm", TENSOR_I32, &perm, e));
    TRY(op_tensor(f, c, "v", TENSOR_F32, &v, e));
    const uint32_t n = (uint32_t)q->shape[1];
    float *s = mem_must(n, sizeof *s), *got = mem_must(n, sizeof *got);
    const status r = received(st, q, k, n, s, e);
    for (uint32_t i = 0; i < n / 4 && i < perm->n; i++) {
        const int32_t to = ((const int32_t *)perm->data)[i];
        if (to >= 0 && (uint32_t)to < n)
            got[to] = (s[4 * i] + s[4 * i + 1] + s[4 * i + 2] + s[4 * i + 3]) / 4;
    }
    if (r == OK) same_floats(got, v->data, v->n, 1e-5, detail, cap);
    free(s);
    free(got);
    return r;
}

/* The logits are q against the rows of an identity. */
static status op_pagerank(struct stream *st, const struct tensor_files *f, const struct doc_at *c,
                          char *detail, size_t cap, struct err *e)
{
    const struct tensor_info *logits, *want;
    uint32_t iterations;
    double tau;
    TRY(op_tensor(f, c, "logits", TENSOR_F32, &logits, e));
    TRY(op_tensor(f, c, "importance", TENSOR_F32, &want, e));
    TRY(doc_u32(c, "iterations", 0, 1000, &iterations, e));
    TRY(doc_double(c, "tau", 1e-9, 1e9, &tau, e));
    const uint32_t H = (uint32_t)logits->shape[0], n = (uint32_t)logits->shape[1];
    float *q = NULL, *k = NULL, *host = mem_must((size_t)n * n * H, sizeof *host),
          *got = mem_must(n, sizeof *got);
    void *scratch = NULL;
    status r;
    TRY_GOTO(r, st->ops->alloc(st, (size_t)n * n * H * sizeof *host, (void **)&q, e), undo);
    TRY_GOTO(r, st->ops->alloc(st, (size_t)n * n * sizeof *host, (void **)&k, e), undo);
    TRY_GOTO(r, mem_alloc_aligned(&scratch, st->ops->pagerank_scratch(st, H, n), e), undo);
    for (uint32_t i = 0; i < n * n; i++) host[i] = i / n == i % n;
    TRY_GOTO(r, st->ops->upload(st, k, host, (size_t)n * n * sizeof *host, e), undo);
    for (uint32_t h = 0; h < H; h++)
        for (uint32_t i = 0; i < n; i++)
            memcpy(host + ((size_t)i * H + h) * n, (const float *)logits->data + ((size_t)h * n + i) * n,
                   n * sizeof *host);
    TRY_GOTO(r, st->ops->upload(st, q, host, (size_t)n * n * H * sizeof *host, e), undo);
    TRY_GOTO(r,
             st->ops->pagerank(st,
                               &(struct pagerank_args){ .q = q,
                                                        .k = k,
                                                        .ldq = (size_t)n * H,
                                                        .ldk = n,
                                                        .n = n,
                                                        .H = H,
                                                        .G = 1,
                                                        .D = n,
                                                        .iterations = iterations,
                                                        .scale = (float)(1 / tau),
                                                        .importance = got,
                                                        .scratch = scratch },
                               e),
             undo);
    same_floats(got, want->data, want->n, 1e-5, detail, cap);
undo:
    st->ops->release(st, q);
    st->ops->release(st, k);
    free(scratch);
    free(host);
    free(got);
    return r;
}

static status op_knee(const struct tensor_files *f, const struct doc_at *c, char *detail, size_t cap,
                      struct err *e)
{
    const struct tensor_info *s;
    uint32_t want;
    TRY(op_tensor(f, c, "s", TENSOR_F32, &s, e));
    TRY(doc_u32(c, "cut", 0, UINT32_MAX, &want, e));
    float *work = mem_must(s->n + 1, sizeof *work);
    const uint32_t got = knee_of_unsorted(s->data, (uint32_t)s->n, work);
    if (got != want) snprintf(detail, cap, "cut %u, expected %u", got, want);
    free(work);
    return OK;
}

static status op_dpc(struct stream *st, const struct tensor_files *f, const struct doc_at *c, char *detail,
                     size_t cap, struct err *e)
{
    const struct tensor_info *x, *want;
    uint32_t k;
    TRY(op_tensor(f, c, "x", TENSOR_F32, &x, e));
    TRY(op_tensor(f, c, "score", TENSOR_F32, &want, e));
    TRY(doc_u32(c, "k", 1, OPS_NEIGHBOURS_MAX, &k, e));
    const uint32_t n = (uint32_t)x->shape[0], d = (uint32_t)x->shape[1], start[] = { 0, n };
    uint32_t *row = mem_must(n, sizeof *row);
    float *rows = NULL, *got = mem_must(n, sizeof *got);
    void *scratch = NULL;
    status r;
    for (uint32_t i = 0; i < n; i++) row[i] = i;
    TRY_GOTO(r, st->ops->alloc(st, (size_t)n * d * sizeof *rows, (void **)&rows, e), undo);
    TRY_GOTO(r, st->ops->upload(st, rows, x->data, (size_t)n * d * sizeof *rows, e), undo);
    TRY_GOTO(r, mem_alloc_aligned(&scratch, st->ops->pair_scratch(st, d, n), e), undo);
    TRY_GOTO(r,
             st->ops->density(st, &(struct density_args){ { rows, d, 1, start, row }, k, got, scratch }, e),
             undo);
    same_floats(got, want->data, want->n, 1e-5, detail, cap);
undo:
    st->ops->release(st, rows);
    free(scratch);
    free(row);
    free(got);
    return r;
}

static status run_op(struct stream *st, const struct tensor_files *f, const struct doc_at *c, size_t i,
                     struct err *e)
{
    const char *op;
    char detail[160] = "", name[96];
    status r;
    TRY(doc_string(c, "op", &op, e));
    snprintf(name, sizeof name, "ops.%zu.%s", i, op);
    if (strcmp(op, "omnizip_rates") == 0)
        r = op_rates(c, detail, sizeof detail, e);
    else if (strcmp(op, "seats_ratios") == 0)
        r = op_ratios(c, detail, sizeof detail, e);
    else if (strcmp(op, "dash_cuts") == 0)
        r = op_cuts(f, c, detail, sizeof detail, e);
    else if (strcmp(op, "audio_saliency") == 0)
        r = op_audio_saliency(st, f, c, detail, sizeof detail, e);
    else if (strcmp(op, "vision_saliency") == 0)
        r = op_vision_saliency(st, f, c, detail, sizeof detail, e);
    else if (strcmp(op, "pagerank") == 0)
        r = op_pagerank(st, f, c, detail, sizeof detail, e);
    else if (strcmp(op, "knee") == 0)
        r = op_knee(f, c, detail, sizeof detail, e);
    else if (strcmp(op, "dpc") == 0)
        r = op_dpc(st, f, c, detail, sizeof detail, e);
    else
        r = err_set(e, E_INPUT, "this runner has no piece \"%s\"", op);
    if (r == OK) verdict(!detail[0], name, detail);
    return r;
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
        for (size_t i = 0; i < doc_count(&list); i++) {
            doc_element(&list, i, &c);
            if (run_op(st, f, &c, i, e) != OK) verdict_at(false, "ops", i, e->text);
        }
    }
    if (!doc_has(root, "errors")) return OK;
    TRY(doc_array(root, "errors", &list, e));
    for (size_t i = 0; i < doc_count(&list); i++) {
        doc_element(&list, i, &c);
        if (run_refusal(st, root, f, L, &c, i, e) != OK) verdict_at(false, "errors", i, e->text);
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
