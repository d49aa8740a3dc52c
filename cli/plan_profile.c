/* cli/plan_profile.c - see plan_profile.h. */
#include "cli/plan_profile.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* ---- built in ---------------------------------------------------------------------------------------------- */

/* Computed, not measured. Products of the H200: 790 TFLOP/s on random bf16 data, copies 4.3 TB/s, both 0.80 and 0.90 of its
 * data sheet (989 TFLOP/s dense bf16, 4.8 TB/s); the others take the same shares of theirs: H100 SXM 989 and 3.35 TB/s, A100
 * SXM 312 and 2.04 TB/s. Attention 600 TFLOP/s at head dim 128 (best published Hopper kernels: 595 to 648), A100 200 (as
 * published for FlashAttention-2). Scores 300, A100 95. Towers: their products, short attention and fused passes over these
 * rates, as FLOP/s of scheduler/work.h's count. 1.2 us a kernel in a graph, ten kernels a layer; three dependent launches of
 * 4 us a selection. All-reduce: 370 GB/s sent a rank over NVLink 4 (900 GB/s), in proportion 247 over NVLink 3 (600), 18 us
 * a small call. Host cores: a DGX's two sockets over its eight devices. Assumed: a front end of 8 cores, 2 ms of one for a
 * request, 50 us for a token, 100 Gbit/s (the HTTP thread of this server was seen to use 0.2 to 0.4 ms for a small request of
 * text). Media: CPU seconds seen on an AMD EPYC, 0.02 for a second of film of 640x360 at 25 frames/s in H.264 (0.07 at
 * 1280x720); the sound's and the request's share are assumed. */
#define FRONT { .cores = 8, .request_s = 2e-3, .token_s = 5e-5, .bytes_per_s = 12.5e9 }
#define HOST .film_s = 0.02, .sound_s = 5e-4, .request_s = 5e-3
#define SOURCE "computed from data sheets and floors, not measured: cli/plan_profile.c says which"
static const struct plan_profile BUILT_IN[] = {
    { .name = "h200", .source = SOURCE, .memory_bytes = 141e9, .work_bytes = 5e9, .value_bytes = 2, .kv_value_bytes = 2,
      .page_tokens = 64, HOST, .front = FRONT,
      .device = { .n_gemm = 1, .gemm = { { 1, 790e12 } }, .attention = 600e12, .score = 300e12, .vision = 588e12,
                  .audio = 687e12, .memory = 4.3e12, .read_weights = true, .fused_rows = true, .range_s = 12e-6, .step_s = 1e-4,
                  .select_s = 12e-6, .entry_row_s = 3.5e-9, .tower_s = 4e-4, .reduce_s = 18e-6, .reduce_bytes = 370e9,
                  .host_cores = 14 } },
    { .name = "h100", .source = SOURCE, .memory_bytes = 80e9, .work_bytes = 5e9, .value_bytes = 2, .kv_value_bytes = 2,
      .page_tokens = 64, HOST, .front = FRONT,
      .device = { .n_gemm = 1, .gemm = { { 1, 790e12 } }, .attention = 600e12, .score = 300e12, .vision = 542e12,
                  .audio = 663e12, .memory = 3.0e12, .read_weights = true, .fused_rows = true, .range_s = 12e-6, .step_s = 1e-4,
                  .select_s = 12e-6, .entry_row_s = 5e-9, .tower_s = 4e-4, .reduce_s = 18e-6, .reduce_bytes = 370e9,
                  .host_cores = 14 } },
    { .name = "a100", .source = SOURCE, .memory_bytes = 80e9, .work_bytes = 5e9, .value_bytes = 2, .kv_value_bytes = 2,
      .page_tokens = 64, HOST, .front = FRONT,
      .device = { .n_gemm = 1, .gemm = { { 1, 249e12 } }, .attention = 200e12, .score = 95e12, .vision = 195e12,
                  .audio = 221e12, .memory = 1.83e12, .read_weights = true, .fused_rows = true, .range_s = 12e-6, .step_s = 1e-4,
                  .select_s = 12e-6, .entry_row_s = 8e-9, .tower_s = 4e-4, .reduce_s = 18e-6, .reduce_bytes = 247e9,
                  .host_cores = 16 } },
};

/* Source of the sizes: config.json of both checkpoints (docs/qwen2_5_omni.md). */
static const struct { const char *name; struct sim_model m; } MODELS[] = {
    { "7b", { .work = { 28, 28, 4, 128, 3584, 18944, 152064, { 32, 1280, 3420 }, { 32, 1280, 5120 } } } },
    { "3b", { .work = { 36, 16, 2, 128, 2048, 11008, 151936, { 32, 1280, 3420 }, { 32, 1280, 5120 } } } },
};

#define CHUNKS 16                  /* that the audio tower takes at once, of 2 n_window mel frames each */

bool plan_model_preset(const char *name, struct sim_model *out)
{
    for (size_t i = 0; i < sizeof MODELS / sizeof *MODELS; i++)
        if (strcmp(name, MODELS[i].name) == 0) {
            *out = MODELS[i].m;
            out->audio_span = CHUNKS * 200;
            return true;
        }
    return false;
}

struct sim_model plan_model_of(const struct model_config *c)
{
    return (struct sim_model){
        .work = { c->text.layers, c->text.heads, c->text.kv_heads, c->text.head_dim, c->text.hidden, c->text.ff, c->text.vocab,
                  { c->vision.depth, c->vision.hidden, c->vision.ff }, { c->audio.layers, c->audio.d_model, c->audio.ff } },
        .audio_span = CHUNKS * 2 * c->audio.n_window };
}

double plan_weight_bytes(const struct sim_model *m, uint32_t tp)
{
    const struct work_shape *s = &m->work;
    const double d = s->d, q = (double)s->H * s->D, g = (double)s->G * s->D, v = s->vision.hidden, a = s->audio.d_model;
    const double decoder = s->L * (2 * d * (q + g) + 3 * d * s->ff) + 2.0 * s->V * d;
    /* Merger 4v x 4v and 4v x d; patches of 1176; convolutions of 3 over 128 bins and over the width. */
    const double vision = s->vision.depth * (4 * v * v + 3 * v * s->vision.ff) + 1176 * v + 16 * v * v + 4 * v * d;
    const double audio = s->audio.layers * (4 * a * a + 2 * a * s->audio.ff) + 3 * 128 * a + 3 * a * a + a * d;
    return (decoder / tp + vision + audio) * m->value_bytes;
}

/* ---- files ------------------------------------------------------------------------------------------------- */

enum field_kind { NUMBER, COUNT, FLAG, TABLE };
struct field { const char *name; enum field_kind kind; size_t at, n_at; };
#define AT(member) offsetof(struct plan_profile, member)
static const struct field FIELDS[] = {
    { "memory_bytes", NUMBER, AT(memory_bytes), 0 },
    { "work_bytes", NUMBER, AT(work_bytes), 0 },
    { "pool_bytes", NUMBER, AT(pool_bytes), 0 },
    { "value_bytes", NUMBER, AT(value_bytes), 0 },
    { "kv_value_bytes", NUMBER, AT(kv_value_bytes), 0 },
    { "page_tokens", NUMBER, AT(page_tokens), 0 },
    { "gemm_flops", TABLE, AT(device.gemm), AT(device.n_gemm) },
    { "decode_flops", TABLE, AT(device.decode), AT(device.n_decode) },
    { "attention_flops", NUMBER, AT(device.attention), 0 },
    { "score_flops", NUMBER, AT(device.score), 0 },
    { "vision_flops", NUMBER, AT(device.vision), 0 },
    { "audio_flops", NUMBER, AT(device.audio), 0 },
    { "memory_bytes_per_s", NUMBER, AT(device.memory), 0 },
    { "read_weights", FLAG, AT(device.read_weights), 0 },
    { "fused_rows", FLAG, AT(device.fused_rows), 0 },
    { "range_s", NUMBER, AT(device.range_s), 0 },
    { "step_s", NUMBER, AT(device.step_s), 0 },
    { "row_s", NUMBER, AT(device.row_s), 0 },
    { "select_s", NUMBER, AT(device.select_s), 0 },
    { "select_row_s", NUMBER, AT(device.select_row_s), 0 },
    { "entry_row_s", NUMBER, AT(device.entry_row_s), 0 },
    { "tower_s", NUMBER, AT(device.tower_s), 0 },
    { "reduce_s", NUMBER, AT(device.reduce_s), 0 },
    { "reduce_bytes_per_s", NUMBER, AT(device.reduce_bytes), 0 },
    { "host_cores", COUNT, AT(device.host_cores), 0 },
    { "shared_cores", NUMBER, AT(device.shared_cores), 0 },
    { "device_threads", NUMBER, AT(device.device_threads), 0 },
    { "host_film_s", NUMBER, AT(film_s), 0 },
    { "host_sound_s", NUMBER, AT(sound_s), 0 },
    { "host_request_s", NUMBER, AT(request_s), 0 },
    { "front_cores", NUMBER, AT(front.cores), 0 },
    { "front_request_s", NUMBER, AT(front.request_s), 0 },
    { "front_token_s", NUMBER, AT(front.token_s), 0 },
    { "front_bytes_per_s", NUMBER, AT(front.bytes_per_s), 0 },
};
#define N_FIELDS (sizeof FIELDS / sizeof *FIELDS)

json_t *plan_profile_json(const struct plan_profile *p)
{
    json_t *o = json_pack("{s:s, s:s, s:b}", "name", p->name, "source", p->source, "measured", p->measured);
    const char *base = (const char *)p;
    for (size_t i = 0; i < N_FIELDS; i++) {
        const struct field *f = &FIELDS[i];
        json_t *v = NULL;
        switch (f->kind) {
        case NUMBER: v = json_real(*(const double *)(base + f->at)); break;
        case COUNT: v = json_integer(*(const uint32_t *)(base + f->at)); break;
        case FLAG: v = json_boolean(*(const bool *)(base + f->at)); break;
        case TABLE: {
            const struct sim_rate *t = (const struct sim_rate *)(base + f->at);
            v = json_array();
            for (uint32_t k = 0; k < *(const uint32_t *)(base + f->n_at); k++)
                json_array_append_new(v, json_pack("[f,f]", t[k].rows, t[k].per_s));
            break;
        }
        }
        json_object_set_new(o, f->name, v);
    }
    return o;
}

static status table_from(const json_t *v, const char *name, struct sim_rate *t, uint32_t *n, struct err *e)
{
    *n = 0;
    if (!json_is_array(v) || json_array_size(v) > SIM_RATES)
        return err_set(e, E_INPUT, "%s: a list of at most %d pairs [rows, FLOP/s] is wanted", name, SIM_RATES);
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *pair = json_array_get(v, i);
        const struct sim_rate r = { json_number_value(json_array_get(pair, 0)), json_number_value(json_array_get(pair, 1)) };
        if (!(r.rows > (i ? t[i - 1].rows : 0)) || !(r.per_s > 0))
            return err_set(e, E_INPUT, "%s: pair %zu: rows must ascend and rates be above 0", name, i);
        t[(*n)++] = r;
    }
    return OK;
}

static status field_from(const struct field *f, const json_t *v, struct plan_profile *p, struct err *e)
{
    char *base = (char *)p;
    const double x = json_number_value(v);
    switch (f->kind) {
    case TABLE: return table_from(v, f->name, (struct sim_rate *)(base + f->at), (uint32_t *)(base + f->n_at), e);
    case FLAG:
        if (!json_is_boolean(v)) return err_set(e, E_INPUT, "%s: true or false is wanted", f->name);
        *(bool *)(base + f->at) = json_is_true(v);
        return OK;
    case NUMBER:
    case COUNT:
        if (!json_is_number(v) || !(x >= 0 && x < 1e18) || (f->kind == COUNT && x > 1e6))
            return err_set(e, E_INPUT, "%s: a number from 0 on is wanted", f->name);
        if (f->kind == COUNT) *(uint32_t *)(base + f->at) = (uint32_t)x;
        else *(double *)(base + f->at) = x;
        return OK;
    }
    return OK;
}

static status from_json(json_t *o, struct plan_profile *p, struct err *e)
{
    const char *key;
    json_t *v;
    if (!json_is_object(o)) return err_set(e, E_INPUT, "an object is wanted");
    json_object_foreach(o, key, v) {
        size_t i = 0;
        while (i < N_FIELDS && strcmp(key, FIELDS[i].name) != 0) i++;
        if (i < N_FIELDS) TRY(field_from(&FIELDS[i], v, p, e));
        else if (strcmp(key, "name") == 0 && json_is_string(v)) snprintf(p->name, sizeof p->name, "%s", json_string_value(v));
        else if (strcmp(key, "source") == 0 && json_is_string(v)) snprintf(p->source, sizeof p->source, "%s", json_string_value(v));
        else if (strcmp(key, "measured") == 0 && json_is_boolean(v)) p->measured = json_is_true(v);
        else return err_set(e, E_INPUT, "%s: no such key in a profile, or not of its kind", key);
    }
    if (p->device.n_gemm == 0) return err_set(e, E_INPUT, "gemm_flops: at least one pair is wanted");
    if (p->page_tokens < 1 || p->page_tokens > 65536 || p->value_bytes <= 0 || p->kv_value_bytes <= 0)
        return err_set(e, E_INPUT, "page_tokens, value_bytes and kv_value_bytes are wanted");
    if (p->pool_bytes <= 0 && p->memory_bytes <= 0) return err_set(e, E_INPUT, "memory_bytes or pool_bytes is wanted");
    return OK;
}

status plan_profile_load(const char *name, struct plan_profile *out, struct err *e)
{
    for (size_t i = 0; i < sizeof BUILT_IN / sizeof *BUILT_IN; i++)
        if (strcmp(name, BUILT_IN[i].name) == 0) {
            *out = BUILT_IN[i];
            return OK;
        }
    json_error_t why;
    FILE *f = fopen(name, "re");
    if (f == NULL)
        return err_set(e, E_ARG, "--profile %s: neither h200, h100 or a100 nor a file that can be read (bench profile makes one)", name);
    json_t *o = json_loadf(f, JSON_REJECT_DUPLICATES, &why);
    fclose(f);
    if (o == NULL) return err_set(e, E_INPUT, "%s: line %d: %s", name, why.line, why.text);
    *out = (struct plan_profile){ .name = "" };
    const status st = from_json(o, out, e);
    json_decref(o);
    return st == OK ? OK : err_prefix(e, "%s", name);
}
