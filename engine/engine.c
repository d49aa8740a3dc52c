/* engine/engine.c - opening a model on a device: see engine.h. */
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"

#define EXACT_BYTES ((uint64_t)128 << 20)   /* bf16 models under this run in f32: dtype "auto" */
#define BLOCK_ROWS 1032                     /* rows computed at once: 86 tiles of 12           */
#define CONTEXT_DEFAULT 32768u
#define FILM_AT_ONCE ((uint64_t)256 << 20)

status engine_bundled_model(char *dir, size_t cap, struct err *e)
{
    char exe[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    const char *up[] = { "/..", "/../..", "/../../..", "/../share/omnidrop" };
    if (n > 0) {
        exe[n] = 0;
        const char *base = dirname(exe);
        for (size_t i = 0; i < sizeof up / sizeof *up; i++) {
            char path[PATH_MAX + 64];
            struct stat s;
            snprintf(path, sizeof path, "%s%s/" ENGINE_BUNDLED_MODEL, base, up[i]);
            char *real = stat(path, &s) == 0 ? realpath(path, NULL) : NULL;
            if (real == NULL) continue;
            snprintf(dir, cap, "%s", real);
            free(real);
            return OK;
        }
    }
    struct stat s;
    if (stat(ENGINE_BUNDLED_MODEL, &s) == 0) {
        snprintf(dir, cap, "%s", ENGINE_BUNDLED_MODEL);
        return OK;
    }
    return err_set(e, E_MODEL, "no model was named and the bundled one (" ENGINE_BUNDLED_MODEL
                               ") is not beside the program: give a folder with -m");
}

static status pick_dtype(const char *asked, const struct checkpoint *ck, enum dtype *out, struct err *e)
{
    if (asked == NULL || strcmp(asked, "auto") == 0) {
        *out = ck->dtype == DT_F32 || ck->bytes <= EXACT_BYTES ? DT_F32 : DT_BF16;
        return OK;
    }
    if (strcmp(asked, "f32") == 0 || strcmp(asked, "float32") == 0) *out = DT_F32;
    else if (strcmp(asked, "bf16") == 0 || strcmp(asked, "bfloat16") == 0) *out = DT_BF16;
    else return err_set(e, E_ARG, "dtype \"%s\": the CPU computes in f32 or bf16; give auto, f32 or bf16", asked);
    return OK;
}

static uint64_t ram_bytes(void)
{
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGE_SIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : (uint64_t)1 << 30;
}

/* The pool: as asked, else room for one whole context at every layer, at most half of the memory; for several contexts
 * as many as a quarter of the memory holds. */
static status open_pool(struct engine *en, uint64_t kv_bytes, uint32_t contexts, struct err *e)
{
    const uint32_t L = decoder_shape(en->dec)->L, per = en->kv.page_tokens;
    uint64_t pages = kv_bytes / en->kv.page_bytes;
    if (kv_bytes == 0) {
        const uint64_t one = (uint64_t)L * ((en->info.max_model_len + per - 1) / per + 1);
        const uint64_t half = ram_bytes() / 2 / en->kv.page_bytes;
        pages = one * (contexts ? contexts : 1) < half / 2 ? one * (contexts ? contexts : 1) : half / 2;
        if (pages < one) pages = one < half ? one : half;
    }
    if (pages < L)
        return err_set(e, E_ARG, "the page pool of %llu bytes holds %llu pages of %zu bytes, fewer than the %u layers: "
                                 "give more with --kv-bytes", (unsigned long long)kv_bytes, (unsigned long long)pages,
                       en->kv.page_bytes, L);
    if (pages > UINT32_MAX) pages = UINT32_MAX;
    TRY(en->ops->alloc(en->st, pages * en->kv.page_bytes, &en->kv.base, e));
    TRY(kv_pool_create((uint32_t)pages, per, &en->pool, e));
    en->info.n_pages = (uint32_t)pages;
    en->info.page_tokens = per;
    en->info.page_bytes = en->kv.page_bytes;
    return OK;
}

/* The decoder, the pool and all that goes with text. */
static status open_text(struct engine *en, const struct engine_options *o, const struct decoder_shape *shape,
                        const struct decoder_source *src, struct err *e)
{
    struct engine_info *info = &en->info;
    info->kv_dtype = info->compute;
    const uint32_t limit = en->config.text.max_positions;
    info->max_model_len = o->max_model_len ? o->max_model_len : limit < CONTEXT_DEFAULT ? limit : CONTEXT_DEFAULT;
    if (info->max_model_len > limit)
        return err_set(e, E_ARG, "max-model-len %u is over the %u positions that the model was made for",
                       info->max_model_len, limit);
    TRY(tokenizer_load(info->model_dir, &en->tok, e));
    TRY(chat_check_tokens(en->tok, &en->config.ids, e));
    if (tokenizer_n_ids(en->tok) > shape->V)
        return err_set(e, E_MODEL, "%s: tokenizer.json has ids up to %u, the model only %u rows of vocabulary",
                       info->model_dir, tokenizer_n_ids(en->tok) - 1, shape->V);
    TRY(mem_alloc(&en->allowed, shape->V, 1, e));
    for (uint32_t i = 0; i < tokenizer_n_ids(en->tok); i++) en->allowed[i] = tokenizer_has(en->tok, (int32_t)i);
    TRY(decoder_create(en->st, shape, src, info->compute, info->kv_dtype, BLOCK_ROWS, info->max_model_len, &en->dec, e));
    info->weight_bytes = decoder_weight_bytes(en->dec);
    en->kv = decoder_kv_shape(en->dec);
    return open_pool(en, o->kv_bytes, o->kv_contexts, e);
}

static status open_model(struct engine *en, const struct engine_options *o, struct checkpoint *ck, struct err *e)
{
    TRY(pick_dtype(o->dtype, ck, &en->info.compute, e));
    en->config = ck->config;
    TRY(model_defaults_load(en->info.model_dir, en->config.text.layers, &en->defaults, e));
    struct decoder_shape shape = decoder_shape_of(&en->config);
    shape.tied = ck->tied;
    struct decoder_checkpoint source = { .ck = ck };
    const struct decoder_source src = decoder_source_checkpoint(&source);
    TRY(open_text(en, o, &shape, &src, e));
    TRY(audio_tower_create(en->st, ck, en->info.compute, &en->audio, e));
    return vision_tower_create(en->st, ck, en->info.compute, &en->vision, e);
}

static struct media_vision vision_of(const struct model_config *c)
{
    const struct vision_config *v = &c->vision;
    struct media_vision m = { .patch = v->patch_size, .merge = v->merge_size, .temporal = v->temporal_patch_size };
    memcpy(m.mean, c->preprocess.mean, sizeof m.mean);
    memcpy(m.std, c->preprocess.std, sizeof m.std);
    return m;
}

/* The caller's limits before the checkpoint's own; one that was given moves the other where they would cross. */
static struct media_limits limits_of(struct pixel_limits own, uint64_t min_pixels, uint64_t max_pixels)
{
    struct media_limits l = { min_pixels ? min_pixels : own.min, max_pixels ? max_pixels : own.max };
    if (min_pixels == 0 && l.min_pixels > l.max_pixels) l.min_pixels = l.max_pixels;
    if (max_pixels == 0 && l.max_pixels < l.min_pixels) l.max_pixels = l.min_pixels;
    return l;
}

struct media_image_options engine_image_options(const struct model_config *c, uint64_t min_pixels, uint64_t max_pixels)
{
    return (struct media_image_options){ .vision = vision_of(c),
                                         .limits = limits_of(c->preprocess.image, min_pixels, max_pixels) };
}

struct media_video_options engine_video_options(const struct model_config *c, uint64_t min_pixels, uint64_t max_pixels,
                                                double fps)
{
    static const struct pixel_limits published = { 100352, 602112 };
    const struct preprocess_config *own = &c->preprocess;
    return (struct media_video_options){ .vision = vision_of(c), .fps = fps,
                                         .cap_pixels = own->has_video ? own->video.max : 0,
                                         .limits = limits_of(own->has_video ? own->video : published, min_pixels,
                                                             max_pixels) };
}

/* The model's folder and the device. */
static status open_start(struct engine *en, const struct engine_options *o, struct err *e)
{
    struct engine_info *info = &en->info;
    en->textbook_order = o->textbook_order;
    en->film_at_once = FILM_AT_ONCE;
    en->defaults = model_defaults_none();
    info->bundled = o->model_dir == NULL;
    if (o->model_dir) snprintf(info->model_dir, sizeof info->model_dir, "%s", o->model_dir);
    else TRY(engine_bundled_model(info->model_dir, sizeof info->model_dir, e));
    char copy[sizeof info->model_dir];
    snprintf(copy, sizeof copy, "%s", info->model_dir);
    snprintf(info->model_name, sizeof info->model_name, "%s", basename(copy));
    return OK;
}

static status open_stream(struct engine *en, const struct engine_options *o, struct err *e)
{
    const struct stream_options so = { .device = o->device, .n_threads = o->n_threads, .isa = o->isa };
    TRY(stream_open(&so, &en->st, e));
    en->ops = en->st->ops;
    en->ops->describe(en->st, en->info.device, sizeof en->info.device);
    return OK;
}

status engine_open(const struct engine_options *o, struct engine **out, struct err *e)
{
    struct engine *en;
    struct checkpoint ck;
    const double start = clock_s();
    TRY(mem_alloc(&en, 1, sizeof *en, e));
    status st;
    TRY_GOTO(st, open_start(en, o, e), undo);
    TRY_GOTO(st, checkpoint_open(en->info.model_dir, &ck, e), undo);
    st = open_stream(en, o, e);
    if (st == OK) st = open_model(en, o, &ck, e);
    checkpoint_close(&ck);
    if (st != OK) goto undo;
    en->info.load_s = clock_s() - start;
    *out = en;
    return OK;
undo:
    engine_close(&en);
    return st;
}

status engine_open_source(const struct engine_options *o, const struct decoder_shape *shape,
                          const struct decoder_source *src, enum dtype compute, struct engine **out, struct err *e)
{
    struct engine *en;
    const double start = clock_s();
    TRY(mem_alloc(&en, 1, sizeof *en, e));
    status st;
    TRY_GOTO(st, open_start(en, o, e), undo);
    TRY_GOTO(st, model_config_load(en->info.model_dir, &en->config, e), undo);
    struct text_config *t = &en->config.text;
    *t = (struct text_config){ .hidden = shape->d, .layers = shape->L, .heads = shape->H, .kv_heads = shape->G,
                               .head_dim = shape->D, .ff = shape->ff, .vocab = shape->V, .rms_eps = shape->rms_eps,
                               .rope_theta = shape->rope_theta, .max_positions = CONTEXT_DEFAULT };
    memcpy(t->mrope_section, shape->mrope_section, sizeof t->mrope_section);
    en->info.compute = compute;
    TRY_GOTO(st, open_stream(en, o, e), undo);
    TRY_GOTO(st, open_text(en, o, shape, src, e), undo);
    en->info.load_s = clock_s() - start;
    *out = en;
    return OK;
undo:
    engine_close(&en);
    return st;
}

void engine_close(struct engine **pen)
{
    struct engine *en = *pen;
    if (en == NULL) return;
    for (uint32_t g = 0; g < SCHED_GROUPS; g++) march_free(en, g);
    decode_free(en);
    kv_prefix_destroy(&en->prefixes);
    media_cache_destroy(&en->media_cache);
    if (en->pool) kv_pool_destroy(&en->pool);
    if (en->st) {
        en->ops->release(en->st, en->kv.base);
        audio_tower_destroy(&en->audio);
        vision_tower_destroy(&en->vision);
        decoder_destroy(&en->dec);
        en->ops->close(&en->st);
    }
    tokenizer_free(&en->tok);
    model_defaults_free(&en->defaults);
    free(en->allowed);
    free(en);
    *pen = NULL;
}

const struct engine_info *engine_info(const struct engine *en) { return &en->info; }
const struct model_config *engine_config(const struct engine *en) { return &en->config; }
const struct tokenizer *engine_tokenizer(const struct engine *en) { return en->tok; }
const struct model_defaults *engine_defaults(const struct engine *en) { return &en->defaults; }
uint32_t engine_pages_free(const struct engine *en) { return kv_n_free(en->pool) - kv_n_reserved(en->pool); }
void engine_interrupt(struct engine *en) { en->interrupted = 1; }

status engine_pages_of(const struct engine *en, const struct policy_params *p, const struct prune_shape *s, uint32_t n_text,
                       uint32_t n_new, uint64_t *out, struct err *e)
{
    const uint32_t L = s->n_layers;
    struct policy_plan plan;
    uint32_t *bound;
    TRY(prune_plan_shape(p, s, &plan, e));
    const status st = mem_alloc(&bound, L, sizeof *bound, e);
    if (st == OK) {
        for (uint32_t l = 0; l < L; l++) bound[l] = plan.alive[l] + n_text;
        const struct sched_request r = { .n_choices = 1, .n_new = n_new, .bound = bound, .n_rows = bound[0] };
        *out = sched_demand(en->pool, L, &r);
        free(bound);
    }
    prune_plan_free(&plan);
    return st;
}
