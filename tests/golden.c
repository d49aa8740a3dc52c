/* build/tests/golden [--device D] [--isa I] [--threads N] [--dtype T] [--textbook] [--tp N] [--pack DIR | --make-pack DIR] DIR...
 * Reference cases of docs/golden-format.md: any number of directories, known or not. One line per check,
 * 'PASS|FAIL name value tolerance', then 'N passed, N failed'; exit status 1 where one failed.
 * --make-pack writes what the text and the media of each case become (tokens, mel, patches) into a folder; --pack takes them
 * from there, on a machine that has no FFmpeg or no PCRE2. A case that can not begin then is 'SKIP name why'.
 * mpirun -np N build/tests/golden --tp N DIR...: rank 0 runs the cases on an engine of N ranks, with everything compared over
 * ranks after each layer. --device simt: the CUDA backend, host code and kernels, played by the CPU (tests/kernels/fake_cuda.cpp). */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "comm/comm.h"
#include "engine/inside.h"
#include "model/safetensors.h"
#include "tests/simt_device.h"

static unsigned n_passed, n_failed, n_skipped;
static const char *pack, *make_pack;

/* ---- checks ----------------------------------------------------------------------------------------------- */

static void verdict(bool ok, const char *where, const char *name, double value, double tol)
{
    printf("%s %s %s %.3g %.3g\n", ok ? "PASS" : "FAIL", where, name, value, tol);
    if (ok) n_passed++;
    else n_failed++;
}

static void fail_text(const char *where, const char *name, const char *text)
{
    printf("FAIL %s %s %s\n", where, name, text);
    n_failed++;
}

enum start { FROM_MEDIA, FROM_FEATURES, FROM_IDS };

struct golden_case {
    const char *where;             /* "dir/case-x" for the lines */
    struct tensor_files *ref;
    struct tensor_files *packed;   /* NULL: no pack, or it lacks the case */
    struct doc doc;
    struct doc_at tol;             /* object; v NULL: none */
    double rel_tol;
    enum start start;
    const struct tokenizer *tok;
};

/* The tolerance of tensors called `kind`: the case's own, else rel_tol. */
static double tol_of(const struct golden_case *c, const char *kind)
{
    double t = c->rel_tol;
    struct err e;
    if (c->tol.v && doc_has(&c->tol, kind)) {
        struct doc_at a;
        if (json_is_array(json_object_get(c->tol.v, kind))) {
            if (doc_array(&c->tol, kind, &a, &e) == OK && doc_count(&a) > 0) {
                struct doc_at first;
                doc_element(&a, 0, &first);
                doc_as_double(&first, 0, 1e9, &t, &e);
            }
        } else {
            doc_opt_double(&c->tol, kind, 0, 1e9, &t, &e);
        }
    }
    return t;
}

/* The second number of a pair such as "mel": [rel, abs]; `otherwise` where the case has none. */
static double abs_tol_of(const struct golden_case *c, const char *kind, double otherwise)
{
    struct err e;
    double t = otherwise;
    if (c->tol.v == NULL || !doc_has(&c->tol, kind)) return t;
    const json_t *v = json_object_get(c->tol.v, kind);
    if (json_is_array(v) && json_array_size(v) == 2) return json_number_value(json_array_get(v, 1));
    if (!json_is_array(v)) doc_opt_double(&c->tol, kind, 0, 1e9, &t, &e);
    return t;
}

static const struct tensor_info *ref_of(const struct golden_case *c, const char *name, enum tensor_dtype dtype)
{
    const struct tensor_info *t = tensor_files_find(c->ref, name);
    if (t == NULL) return NULL;
    if (t->dtype == dtype) return t;
    fail_text(c->where, name, "has another dtype than the format says");
    return NULL;
}

static double rel_norm(const float *out, const float *ref, uint64_t n)
{
    double diff = 0, norm = 0;
    for (uint64_t i = 0; i < n; i++) {
        const double d = (double)out[i] - (double)ref[i];
        diff += d * d;
        norm += (double)ref[i] * (double)ref[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

static void check_f32(const struct golden_case *c, const char *name, const char *kind, const float *out, uint64_t n)
{
    const struct tensor_info *t = ref_of(c, name, TENSOR_F32);
    if (t == NULL) return;
    if (t->n != n) {
        char text[96];
        snprintf(text, sizeof text, "has %llu values, expected %llu", (unsigned long long)n, (unsigned long long)t->n);
        fail_text(c->where, name, text);
        return;
    }
    const double tol = tol_of(c, kind), r = rel_norm(out, t->data, n);
    verdict(r <= tol, c->where, name, r, tol);       /* a NaN fails */
}

static void check_max_abs(const struct golden_case *c, const char *name, const float *out, uint64_t n, double tol)
{
    const struct tensor_info *t = ref_of(c, name, TENSOR_F32);
    if (t == NULL) return;
    if (t->n != n) {
        fail_text(c->where, name, "has another size");
        return;
    }
    const float *ref = t->data;
    double worst = 0;
    for (uint64_t i = 0; i < n; i++) {
        const double d = fabs((double)out[i] - (double)ref[i]);
        if (!(d <= worst)) worst = d;
    }
    verdict(worst <= tol, c->where, name, worst, tol);
}

/* Equal lists; the value printed is the number of differences. */
static void check_list(const struct golden_case *c, const char *name, const int64_t *out, uint64_t n)
{
    const struct tensor_info *t = ref_of(c, name, TENSOR_I64);
    if (t == NULL) return;
    const int64_t *ref = t->data;
    uint64_t bad = t->n > n ? t->n - n : n - t->n;
    for (uint64_t i = 0; i < n && i < t->n; i++) bad += out[i] != ref[i];
    verdict(bad == 0, c->where, name, (double)bad, 0);
}

/* ---- what the engine shows while it runs ------------------------------------------------------------------ */

struct watch { const struct golden_case *c; };

static void on_hidden(void *self, uint32_t l, const float *rows, const uint32_t *index, uint32_t n, uint32_t d)
{
    char name[32];
    (void)index;
    snprintf(name, sizeof name, "hidden.%u", l);
    check_f32(((struct watch *)self)->c, name, "hidden", rows, (uint64_t)n * d);
}

static void on_alive(void *self, uint32_t l, const uint32_t *index, uint32_t n, const float *score)
{
    const struct golden_case *c = ((struct watch *)self)->c;
    char name[32];
    int64_t *list = mem_must(n, sizeof *list);
    for (uint32_t i = 0; i < n; i++) list[i] = index[i];
    snprintf(name, sizeof name, "alive.%u", l);
    check_list(c, name, list, n);
    free(list);
    snprintf(name, sizeof name, "scores.%u", l);
    if (score) check_f32(c, name, "scores", score, n);
    else if (tensor_files_find(c->ref, name)) fail_text(c->where, name, "the engine made no scores at this layer");
}

static void on_logits(void *self, const float *logits, uint32_t V)
{
    const struct golden_case *c = ((struct watch *)self)->c;
    const struct tensor_info *t = ref_of(c, "logits", TENSOR_F32);
    if (t == NULL) return;
    if (t->n != V) {
        fail_text(c->where, "logits", "has another number of rows");
        return;
    }
    float *a = mem_must(V, sizeof *a), *b = mem_must(V, sizeof *b);
    uint32_t n = 0;
    for (uint32_t i = 0; i < V; i++)
        if (tokenizer_has(c->tok, (int32_t)i)) {
            a[n] = logits[i];
            b[n++] = ((const float *)t->data)[i];
        }
    const double tol = tol_of(c, "logits"), r = rel_norm(a, b, n);
    verdict(r <= tol, c->where, "logits", r, tol);
    free(a);
    free(b);
}

static void on_towers(void *self, const float *audio, uint32_t n_audio, const float *vision, uint32_t n_vision, uint32_t d,
                      const float *saliency)
{
    const struct golden_case *c = ((struct watch *)self)->c;
    check_f32(c, "audio_embeds", "audio_embeds", audio, (uint64_t)n_audio * d);
    check_f32(c, "vision_embeds", "vision_embeds", vision, (uint64_t)n_vision * d);
    if (saliency) check_f32(c, "saliency", "saliency", saliency, n_audio);
}

/* ---- one case --------------------------------------------------------------------------------------------- */

static status read_case(struct golden_case *c, const struct doc_at *root, struct eng_request_options *o,
                        struct policy_params *policy, uint32_t n_layers, struct err *e)
{
    static const char *const keys[] = { "format", "messages", "use_audio_in_video", "fps", "min_pixels", "max_pixels",
                                        "policy", "max_tokens", "rel_tol", "starts_at", "tol", NULL };
    const char *format, *starts = "media";
    int64_t min_pixels = 0, max_pixels = 0;
    TRY(doc_only(root, keys, e));
    TRY(doc_string(root, "format", &format, e));
    if (strcmp(format, "omnidrop-golden-1") != 0)
        return doc_err(root, e, "format \"%s\" is not omnidrop-golden-1", format);
    TRY(doc_opt_bool(root, "use_audio_in_video", &o->audio_in_video, e));
    TRY(doc_opt_double(root, "fps", 1e-3, 240, &o->fps, e));
    TRY(doc_opt_int(root, "min_pixels", 1, INT64_MAX, &min_pixels, e));
    TRY(doc_opt_int(root, "max_pixels", 1, INT64_MAX, &max_pixels, e));
    o->min_pixels = (uint64_t)min_pixels;
    o->max_pixels = (uint64_t)max_pixels;
    TRY(doc_opt_u32(root, "max_tokens", 1, 1u << 20, &o->max_tokens, e));
    TRY(doc_opt_double(root, "rel_tol", 0, 1e9, &c->rel_tol, e));
    TRY(doc_opt_string(root, "starts_at", &starts, e));
    if (strcmp(starts, "media") == 0) c->start = FROM_MEDIA;
    else if (strcmp(starts, "features") == 0) c->start = FROM_FEATURES;
    else if (strcmp(starts, "ids") == 0) c->start = FROM_IDS;
    else return doc_err(root, e, "starts_at \"%s\": give media, features or ids", starts);
    if (doc_has(root, "tol")) TRY(doc_object(root, "tol", &c->tol, e));
    if (doc_has(root, "policy")) {
        struct doc_at p;
        TRY(doc_object(root, "policy", &p, e));
        TRY(prune_params_json(policy, p.v, n_layers, e));
        o->policy = policy;
    }
    return OK;
}

static const struct tensor_info *need(const struct golden_case *c, const char *name, enum tensor_dtype dtype, struct err *e)
{
    const struct tensor_info *t = c->packed ? tensor_files_find(c->packed, name) : NULL;
    if (t == NULL) t = tensor_files_find(c->ref, name);
    if (t == NULL || t->dtype != dtype) {
        err_set(e, E_INPUT, "%s: the case starts there but its tensors lack %s", c->where, name);
        return NULL;
    }
    return t;
}

/* Features of every media part out of the tensors, in prompt order. */
static status take_features(const struct golden_case *c, const struct chat *chat, bool audio_in_video,
                            struct eng_features **out, uint32_t *n_out, struct err *e)
{
    uint32_t n = 0, n_audio = 0, n_vision = 0;
    for (size_t m = 0; m < chat->n_messages; m++) n += (uint32_t)chat->message[m].n_parts;
    struct eng_features *f = *out = mem_must(n, sizeof *f);
    n = 0;
    for (size_t m = 0; m < chat->n_messages; m++)
        for (size_t i = 0; i < chat->message[m].n_parts; i++) {
            const enum chat_part_kind kind = chat->message[m].part[i].kind;
            char name[32];
            if (kind == PART_TEXT) continue;
            if (kind != PART_AUDIO) {
                snprintf(name, sizeof name, "patches.%u", n_vision);
                const struct tensor_info *p = need(c, name, TENSOR_F32, e);
                snprintf(name, sizeof name, "grid.%u", n_vision++);
                const struct tensor_info *g = p ? need(c, name, TENSOR_I64, e) : NULL;
                if (g == NULL) return E_INPUT;
                const int64_t *grid = g->data;
                f[n].patches = p->data;
                f[n].t = (uint32_t)grid[0];
                f[n].h = (uint32_t)grid[1];
                f[n].w = (uint32_t)grid[2];
                if (g->n != 3 || p->rank != 2 || (uint64_t)f[n].t * f[n].h * f[n].w != p->shape[0])
                    return err_set(e, E_INPUT, "%s: %s does not fit its patches", c->where, name);
            }
            if (kind == PART_AUDIO || (kind == PART_VIDEO && audio_in_video)) {
                snprintf(name, sizeof name, "mel.%u", n_audio++);
                const struct tensor_info *t = need(c, name, TENSOR_F32, e);
                if (t == NULL) return E_INPUT;
                f[n].mel = t->data;
                f[n].n_frames = (uint32_t)t->shape[1];
            }
            n++;
        }
    *n_out = n;
    return OK;
}

/* ---- packs ------------------------------------------------------------------------------------------------ */

/* FOLDER/dir.case-x.safetensors of "any/dir/case-x" */
static void pack_path(const char *folder, const char *where, char *out, size_t cap)
{
    const char *name = strrchr(where, '/'), *dir = name;
    while (dir > where && dir[-1] != '/') dir--;
    snprintf(out, cap, "%s/%.*s.%s.safetensors", folder, (int)(name - dir), dir, name + 1);
}

static status take_tokens(const struct golden_case *c, struct prompt_token **out, uint32_t *n, struct err *e)
{
    const struct tensor_info *id = need(c, "tokens_in", TENSOR_I64, e), *user = id ? need(c, "user", TENSOR_I64, e) : NULL;
    if (user == NULL || id->n != user->n) return E_INPUT;
    *out = mem_must(id->n, sizeof **out);
    *n = (uint32_t)id->n;
    for (uint32_t i = 0; i < *n; i++)
        (*out)[i] = (struct prompt_token){ (int32_t)((const int64_t *)id->data)[i], ((const int64_t *)user->data)[i] != 0 };
    return OK;
}

/* The tensors of a pack, gathered, then written. */
struct packing { char head[16384]; size_t n_head, at, n; struct { const void *data; size_t bytes; void *owned; } part[64]; };

static void pack_add(struct packing *p, const char *name, const char *dtype, uint32_t rows, uint32_t columns, const void *data,
                     void *owned)
{
    const size_t bytes = (size_t)rows * (columns ? columns : 1) * (dtype[0] == 'I' ? 8 : 4);
    char shape[32];
    if (p->n == sizeof p->part / sizeof *p->part) abort();
    snprintf(shape, sizeof shape, columns ? "%u,%u" : "%u", rows, columns);
    p->n_head += (size_t)snprintf(p->head + p->n_head, sizeof p->head - p->n_head,
                                  "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", p->n ? "," : "{", name,
                                  dtype, shape, p->at, p->at + bytes);
    p->part[p->n].data = data, p->part[p->n].bytes = bytes, p->part[p->n++].owned = owned;
    p->at += bytes;
}

static status pack_write(struct packing *p, const char *path, struct err *e)
{
    p->n_head += (size_t)snprintf(p->head + p->n_head, sizeof p->head - p->n_head, "}");
    while (p->n_head % 8) p->head[p->n_head++] = ' ';
    const uint64_t n = p->n_head;
    FILE *f = fopen(path, "wb");
    bool ok = f != NULL && fwrite(&n, sizeof n, 1, f) == 1 && fwrite(p->head, n, 1, f) == 1;
    for (size_t i = 0; i < p->n; i++) {
        ok = ok && (p->part[i].bytes == 0 || fwrite(p->part[i].data, p->part[i].bytes, 1, f) == 1);
        free(p->part[i].owned);
    }
    if (f != NULL) ok = fclose(f) == 0 && ok;
    return ok ? OK : err_set(e, E_IO, "%s cannot be written", path);
}

static status pack_case(const struct golden_case *c, struct engine *en, struct eng_request *r, struct err *e)
{
    struct packing *p = mem_must(1, sizeof *p);
    const uint32_t n = (uint32_t)r->tokens.n;
    int64_t *id = mem_must(n, sizeof *id), *user = mem_must(n, sizeof *user);
    char path[8192], name[32];
    uint32_t n_audio = 0, n_vision = 0;
    status st = OK;
    p->n = p->at = p->n_head = 0;
    for (uint32_t i = 0; i < n; i++) id[i] = r->tokens.token[i].id, user[i] = r->tokens.token[i].is_user_text;
    pack_add(p, "tokens_in", "I64", n, 0, id, id);
    pack_add(p, "user", "I64", n, 0, user, user);
    for (uint32_t i = 0; i < r->n_parts && st == OK; i++) {
        struct eng_features f;
        st = eng_request_features(en, r, i, &f, e);
        if (st != OK) break;
        if (f.mel) {
            snprintf(name, sizeof name, "mel.%u", n_audio++);
            pack_add(p, name, "F32", 128, f.n_frames, f.mel, NULL);
        }
        if (f.patches) {
            int64_t *grid = mem_must(3, sizeof *grid);
            grid[0] = f.t, grid[1] = f.h, grid[2] = f.w;
            snprintf(name, sizeof name, "patches.%u", n_vision);
            pack_add(p, name, "F32", f.t * f.h * f.w, 1176, f.patches, NULL);
            snprintf(name, sizeof name, "grid.%u", n_vision++);
            pack_add(p, name, "I64", 3, 0, grid, grid);
        }
    }
    pack_path(make_pack, c->where, path, sizeof path);
    if (st == OK) st = pack_write(p, path, e);
    free(p);
    return st;
}

static status take_prompt(const struct golden_case *c, struct engine *en, struct prompt *out, const float **audio,
                          const float **vision, struct err *e)
{
    static const char *const name[] = { "input_ids", "position_ids", "kind", "chunk", "query" };
    const struct tensor_info *t[5];
    for (int i = 0; i < 4; i++)
        if ((t[i] = need(c, name[i], TENSOR_I64, e)) == NULL) return E_INPUT;
    t[4] = tensor_files_find(c->ref, "query");
    if (t[1]->n != 3 * t[0]->n || t[2]->n != t[0]->n || t[3]->n != t[0]->n)
        return err_set(e, E_INPUT, "%s: input_ids, position_ids, kind and chunk differ in length", c->where);
    const struct model_config *m = engine_config(en);
    const struct prompt_rules rules = { .audio_id = m->ids.audio, .image_id = m->ids.image, .video_id = m->ids.video,
                                        .position_id_per_seconds = m->position_id_per_seconds,
                                        .seconds_per_chunk = m->seconds_per_chunk, .n_query_max = 256 };
    TRY(prompt_from_arrays(&rules, (uint32_t)t[0]->n, t[0]->data, t[1]->data, t[2]->data, t[3]->data,
                           t[4] ? t[4]->data : NULL, t[4] ? (uint32_t)t[4]->n : 0, out, e));
    const uint64_t d = m->text.hidden;
    const struct tensor_info *a = tensor_files_find(c->ref, "audio_embeds"), *v = tensor_files_find(c->ref, "vision_embeds");
    if ((out->n_audio && (a == NULL || a->n != out->n_audio * d)) || (out->n_vision && (v == NULL || v->n != out->n_vision * d)))
        return err_set(e, E_INPUT, "%s: audio_embeds or vision_embeds do not fit the prompt's kinds", c->where);
    *audio = a ? a->data : NULL;
    *vision = v ? v->data : NULL;
    return OK;
}

static void check_prompt(const struct golden_case *c, const struct prompt *p)
{
    int64_t *v = mem_must((size_t)3 * p->n, sizeof *v);
    for (uint32_t i = 0; i < p->n; i++) v[i] = p->id[i];
    check_list(c, "input_ids", v, p->n);
    for (uint32_t k = 0; k < 3; k++)
        for (uint32_t i = 0; i < p->n; i++) v[(size_t)k * p->n + i] = p->pos[k][i];
    check_list(c, "position_ids", v, (uint64_t)3 * p->n);
    for (uint32_t i = 0; i < p->n; i++) v[i] = p->kind[i];
    check_list(c, "kind", v, p->n);
    for (uint32_t i = 0; i < p->n; i++) v[i] = p->chunk[i];
    check_list(c, "chunk", v, p->n);
    for (uint32_t i = 0; i < p->n_query; i++) v[i] = p->query[i];
    check_list(c, "query", v, p->n_query);
    free(v);
}

static void check_features(const struct golden_case *c, struct engine *en, struct eng_request *r, const struct chat *chat)
{
    uint32_t part = 0, n_audio = 0, n_vision = 0;
    for (size_t m = 0; m < chat->n_messages; m++)
        for (size_t i = 0; i < chat->message[m].n_parts; i++) {
            struct eng_features f;
            struct err e;
            char name[32];
            if (chat->message[m].part[i].kind == PART_TEXT) continue;
            if (eng_request_features(en, r, part++, &f, &e) != OK) {
                fail_text(c->where, "features", e.text);
                return;
            }
            if (f.mel) {
                snprintf(name, sizeof name, "mel.%u", n_audio++);
                check_f32(c, name, "mel", f.mel, (uint64_t)128 * f.n_frames);
                check_max_abs(c, name, f.mel, (uint64_t)128 * f.n_frames, abs_tol_of(c, "mel", 1e-3));
            }
            if (f.patches) {
                const int64_t grid[3] = { f.t, f.h, f.w };
                snprintf(name, sizeof name, "grid.%u", n_vision);
                check_list(c, name, grid, 3);
                snprintf(name, sizeof name, "patches.%u", n_vision++);
                check_max_abs(c, name, f.patches, (uint64_t)f.t * f.h * f.w * 1176, abs_tol_of(c, "patches", 0.02));
            }
        }
}

static void check_tokens(const struct golden_case *c, const struct engine *en, const struct eng_result *res)
{
    const struct tensor_info *t = ref_of(c, "tokens", TENSOR_I64);
    if (t == NULL) return;
    const int64_t *ref = t->data;
    uint64_t bad = t->n > res->n_ids ? t->n - res->n_ids : 0;
    for (uint64_t i = 0; i < t->n && i < res->n_ids; i++) bad += ref[i] != res->ids[i];
    const struct model_config *m = engine_config(en);
    for (uint32_t i = 0; t->n && i < m->n_stop; i++)
        if (ref[t->n - 1] == m->stop[i]) bad += res->n_ids != t->n || res->finish != ENG_STOP;
    verdict(bad == 0, c->where, "tokens", (double)bad, 0);
}

static status run_case(struct engine *en, struct golden_case *c, const char *dir, struct err *e)
{
    struct doc_at root, messages;
    struct chat chat = { 0 };
    struct policy_params policy = prune_params_none();
    struct eng_request_options o = eng_request_defaults();
    struct eng_features *features = NULL;
    struct prompt prompt = { 0 };
    struct eng_request *r = NULL;
    struct watch w = { c };
    const struct eng_trace trace = { .self = &w, .hidden = on_hidden, .alive = on_alive, .logits = on_logits,
                                     .towers = on_towers };
    struct eng_given given = { 0 };
    status st;
    doc_root(&c->doc, &root);
    TRY(read_case(c, &root, &o, &policy, engine_config(en)->text.layers, e));
    o.media_root = dir;
    o.trace = &trace;
    TRY(doc_array(&root, "messages", &messages, e));
    TRY(chat_parse(&messages, NULL, &chat, e));
    struct prompt_token *tokens = NULL;
    const bool from_pack = c->packed != NULL && c->start != FROM_IDS;
    if (from_pack) {
        TRY_GOTO(st, take_tokens(c, &tokens, &given.n_tokens, e), out);
        given.tokens = tokens;
    }
    if (c->start == FROM_FEATURES || from_pack) {
        TRY_GOTO(st, take_features(c, &chat, o.audio_in_video, &features, &given.n_features, e), out);
        given.features = features;
    } else if (c->start == FROM_IDS) {
        TRY_GOTO(st, take_prompt(c, en, &prompt, &given.audio_embeds, &given.vision_embeds, e), out);
        given.prompt = &prompt;
    }
    st = eng_request_create_given(en, &chat, &o, c->start == FROM_MEDIA && !from_pack ? NULL : &given, &r, e);
    if (st != OK && pack && !from_pack && c->start != FROM_IDS) {
        printf("SKIP %s %s\n", c->where, e->text);
        n_skipped++;
        st = OK;
        goto out;
    }
    if (st != OK) goto out;
    if (make_pack && c->start != FROM_IDS) TRY_GOTO(st, pack_case(c, en, r, e), out);
    if (c->start != FROM_IDS) check_prompt(c, eng_request_prompt(r));
    if (c->start == FROM_MEDIA && !from_pack) check_features(c, en, r, &chat);
    TRY_GOTO(st, eng_run(en, &r, 1, e), out);
    const struct eng_result *res = eng_request_result(r);
    if (res->finish == ENG_FAILED) {
        *e = res->error;
        st = e->code;
    } else {
        check_tokens(c, en, res);
    }
out:
    if (r) eng_request_destroy(en, &r);
    prompt_free(&prompt);
    free(features);
    free(tokens);
    chat_free(&chat);
    const uint32_t gone = engine_info(en)->n_pages - engine_pages_free(en);
    verdict(gone == 0, c->where, "pages-home", gone, 0);
    return st;
}

/* ---- directories ------------------------------------------------------------------------------------------ */

static int is_case(const struct dirent *d)
{
    const size_t n = strlen(d->d_name);
    return n > 10 && strncmp(d->d_name, "case-", 5) == 0 && strcmp(d->d_name + n - 5, ".json") == 0;
}

static void run_dir(const struct engine_options *base, const char *dir)
{
    if (base->comm && comm_rank(base->comm) != 0) {
        struct err e;
        if (engine_work(base->comm, base, &e) != E_DEVICE) return;
        fprintf(stderr, "golden: rank %u: %s\n", comm_rank(base->comm), e.text);
        comm_exit(base->comm, 1);
    }
    struct engine_options o = *base;
    struct engine *en = NULL;
    struct err e = { 0 };
    struct dirent **list;
    char path[4096];
    snprintf(path, sizeof path, "%s/checkpoint", dir);
    o.model_dir = path;
    if (engine_open(&o, &en, &e) != OK) {
        fail_text(dir, "checkpoint", e.text);
        return;
    }
    if (engine_info(en)->link[0]) printf("tensors between ranks: %s\n", engine_info(en)->link);
    for (uint32_t r = 0; engine_info(en)->n_ranks > 1 && r < engine_info(en)->n_ranks; r++)
        printf("rank %u: %.1f MB of decoder weights, %.1f MB resident\n", r, (double)engine_rank(en, r)->weight_bytes / 1e6,
               (double)engine_rank(en, r)->resident_bytes / 1e6);
    const int n = scandir(dir, &list, is_case, alphasort);
    if (n <= 0) fail_text(dir, "cases", "there is no case-*.json");
    for (int i = 0; i < n; i++) {
        char where[4096], file[8192];
        snprintf(where, sizeof where, "%s/%.*s", dir, (int)strlen(list[i]->d_name) - 5, list[i]->d_name);
        struct golden_case c = { .where = where, .rel_tol = 1e-4, .tok = engine_tokenizer(en) };
        struct doc_limits limits = doc_config_limits;
        limits.bytes_max = (size_t)256 << 20;
        limits.allow_nul = true;
        snprintf(file, sizeof file, "%s.json", where);
        status st = doc_load(file, &limits, &c.doc, &e);
        if (st == OK) {
            snprintf(file, sizeof file, "%s.safetensors", where);
            const char *one = file;
            st = tensor_files_open(&one, 1, &c.ref, &e);
            if (pack) {
                pack_path(pack, where, file, sizeof file);
                if (access(file, R_OK) == 0 && st == OK) st = tensor_files_open(&one, 1, &c.packed, &e);
            }
            if (st == OK) st = run_case(en, &c, dir, &e);
            if (c.packed) tensor_files_close(&c.packed);
            if (c.ref) tensor_files_close(&c.ref);
            doc_close(&c.doc);
        }
        if (st != OK) fail_text(where, err_name(st), e.text);
        free(list[i]);
    }
    if (n >= 0) free(list);
    engine_close(&en);
}

int main(int argc, char **argv)
{
    struct engine_options o = { 0 };
    struct comm *world = NULL;
    int n_dirs = 0, tp = 1;
    char **dir = mem_must((size_t)argc, sizeof *dir);
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--textbook") == 0) o.textbook_order = true;
        else if (strcmp(argv[i], "--device") == 0) o.device = strcmp(value, "simt") == 0 ? simt_device("simt") : value, i++;
        else if (strcmp(argv[i], "--isa") == 0) o.isa = value, i++;
        else if (strcmp(argv[i], "--dtype") == 0) o.dtype = value, i++;
        else if (strcmp(argv[i], "--threads") == 0) o.n_threads = atoi(value), i++;
        else if (strcmp(argv[i], "--tp") == 0) tp = atoi(value), i++;
        else if (strcmp(argv[i], "--nccl") == 0) o.one_rank_too = true;
        else if (strcmp(argv[i], "--pack") == 0) pack = value, i++;
        else if (strcmp(argv[i], "--make-pack") == 0) make_pack = value, i++;
        else if (argv[i][0] == '-') {
            fprintf(stderr, "golden: no option %s\n", argv[i]);
            return 2;
        } else dir[n_dirs++] = argv[i];
    }
    if (n_dirs == 0) {
        fprintf(stderr, "usage: golden [--device D] [--isa I] [--threads N] [--dtype T] [--textbook] [--tp N | --nccl] "
                        "[--pack DIR | --make-pack DIR] DIR...\n");
        return 2;
    }
    if (o.one_rank_too && comm_self_open(&world, NULL) == OK) o.comm = world;
    if (tp != 1) {
        struct err e;
        const struct comm_options co = { .build = "golden" };
        if (comm_world_open(&co, &world, &e) != OK) {
            fprintf(stderr, "golden: %s\n", e.text);
            return 1;
        }
        if (tp < 1 || comm_size(world) != (uint32_t)tp) {
            fprintf(stderr, "golden: --tp %d: start it with mpirun -np %d\n", tp, tp);
            comm_exit(world, 2);
        }
        o.comm = world;
        o.check_ranks = true;
    }
    for (int i = 0; i < n_dirs; i++) run_dir(&o, dir[i]);
    free(dir);
    if (world == NULL || comm_rank(world) == 0) {
        if (n_skipped > 0) printf("%u cases skipped\n", n_skipped);
        printf("%u passed, %u failed\n", n_passed, n_failed);
    }
    comm_close(&world);
    return n_failed != 0;
}
