/* cli/inspect.c - omnidrop inspect model|media|schedule|policies|device: what is there, and what it would cost,
 * without running it. Everything can be had as JSON. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "engine/engine.h"
#include "engine/transcribe.h"
#include "engine/windows.h"
#include "kernels/device.h"
#include "media/media.h"
#include "model/checkpoint.h"

static const struct cli_option inspect_options[] = {
    { "json", 0, CLI_FLAG, NULL, NULL, "JSON on stdout", NULL, NULL },
    { "fps", 0, CLI_NUMBER, "N", NULL, "media: frames a second to look at [2]", NULL, NULL },
    { "min-pixels", 0, CLI_UINT, "N", NULL, "media: of a picture or frame", NULL, NULL },
    { "max-pixels", 0, CLI_UINT, "N", NULL, "media: of a picture or frame", NULL, NULL },
    { "exact", 0, CLI_FLAG, NULL, NULL, "media: decode the sound for the exact count", NULL, NULL },
    { "windows", 0, CLI_FLAG, NULL, "true", "media: decode the sound and show where transcribe cuts it (--no-windows: not)" },
    { "window", 0, CLI_NUMBER, "S", NULL, "media: longest window in seconds, 2 to 120 [the model's, else 30]" },
    { "overlap", 0, CLI_NUMBER, "S", NULL, "media: seconds that both sides of a hard cut hear [the model's, else 2]" },
    { "audio-tokens", 0, CLI_UINT, "N", "1500", "schedule: audio tokens of the prompt", NULL, NULL },
    { "video-steps", 0, CLI_UINT, "N", "60", "schedule: grid steps of the film (2 frames each)", NULL, NULL },
    { "step-tokens", 0, CLI_UINT, "N", "144", "schedule: tokens of a grid step", NULL, NULL },
    { "text-tokens", 0, CLI_UINT, "N", "40", "schedule: text tokens of the prompt", NULL, NULL },
    { "layers", 0, CLI_UINT, "L", NULL, "schedule: decoder layers; default: the model's", NULL, NULL },
    { 0 }
};
static const struct cli_option *const inspect_groups[] = { inspect_options, cli_policy_options, cli_common_options, NULL };
static const struct cli_command inspect_command = {
    .name = "inspect", .summary = "What is there and what it would cost, without running it.",
    .usage = "omnidrop inspect model [DIR] | media FILE... | schedule | policies | device   [--json]",
    .groups = inspect_groups,
    .examples = "omnidrop inspect media talk.mp4\n"
                "omnidrop inspect schedule --layers 28 --retention 0.3\n"
                "omnidrop inspect schedule --p-init 0 --p-final 0.2 --t-mid 0.5 --beta 20 --json" };

static void print_json(json_t *o)
{
    json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    printf("\n");
    json_decref(o);
}

/* The folder that -m names, or the bundled one written into dir[cap]. */
static status model_folder(const struct cli *c, char *dir, size_t cap, const char **out, struct err *e)
{
    *out = cli_text(c, "model");
    if (*out) return OK;
    *out = dir;
    return engine_bundled_model(dir, cap, e);
}

/* ---- model ------------------------------------------------------------------------------------------------ */

/* What omnidrop.ini in the model's folder says; the caller owns the reference. */
static json_t *defaults_json(const struct model_defaults *d)
{
    const struct transcribe_defaults *t = &d->transcribe;
    json_t *transcribe = json_object(), *policies = json_object();
    if (t->instruction[0]) json_object_set_new(transcribe, "instruction", cli_json_string(t->instruction));
    if (t->language[0]) json_object_set_new(transcribe, "language", json_string(t->language));
    if (t->window_s > 0) json_object_set_new(transcribe, "window", json_real(t->window_s));
    if (t->overlap_s >= 0) json_object_set_new(transcribe, "overlap", json_real(t->overlap_s));
    for (uint32_t i = 0; i < d->n_policies; i++) {
        const struct policy_params *p = &d->policy[i];
        json_t *all = prune_params_to_json(p), *own = json_object();
        for (uint32_t k = 0; k < p->policy->n_param; k++)
            if (p->given[k]) json_object_set(own, p->policy->param[k].name, json_object_get(all, p->policy->param[k].name));
        json_decref(all);
        json_object_set_new(policies, prune_params_name(p), own);
    }
    return json_pack("{s:o, s:o}", "transcribe", transcribe, "policy", policies);
}

static void defaults_print(const struct model_defaults *d)
{
    json_t *all = defaults_json(d), *section, *v;
    const char *name, *key;
    json_object_foreach(json_object_get(all, "transcribe"), key, v)
    {
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
        printf(MODEL_DEFAULTS_FILE " [transcribe] %s = %s\n", key, text);
        free(text);
    }
    json_object_foreach(json_object_get(all, "policy"), name, section) json_object_foreach(section, key, v)
    {
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
        printf(MODEL_DEFAULTS_FILE " [policy] %s.%s = %s\n", name, key, text);
        free(text);
    }
    json_decref(all);
}

static status inspect_model(const struct cli *c, struct err *e)
{
    static const char *const dtype[] = { "F32", "BF16", "F16" };
    const char *dir;
    char bundled[1024];
    struct checkpoint ck;
    if (cli_n_words(c) > 1) dir = cli_word(c, 1);
    else TRY(model_folder(c, bundled, sizeof bundled, &dir, e));
    TRY(checkpoint_open(dir, &ck, e));
    struct model_defaults own;
    const status st = model_defaults_load(dir, ck.config.text.layers, &own, e);
    if (st != OK) {
        checkpoint_close(&ck);
        return st;
    }
    const struct model_config *m = &ck.config;
    const uint64_t kv = 2ull * m->text.kv_heads * m->text.head_dim * (ck.dtype == DT_F32 ? 4 : 2);
    if (cli_flag(c, "json")) {
        print_json(json_pack("{s:o, s:I, s:I, s:s, s:b, s:i, s:{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}, s:{s:i,s:i,s:i,s:i}, "
                             "s:{s:i,s:i,s:i,s:i}, s:I, s:o}",
                             "dir", cli_json_string(dir), "parameters", (json_int_t)ck.n_params, "bytes", (json_int_t)ck.bytes, "dtype",
                             dtype[ck.dtype], "tied", ck.tied, "tensors", (int)ck.n_tensors, "text", "layers",
                             (int)m->text.layers, "hidden", (int)m->text.hidden, "heads", (int)m->text.heads, "kv_heads",
                             (int)m->text.kv_heads, "head_dim", (int)m->text.head_dim, "ff", (int)m->text.ff, "vocab",
                             (int)m->text.vocab, "context", (int)m->text.max_positions, "audio", "layers",
                             (int)m->audio.layers, "d_model", (int)m->audio.d_model, "heads", (int)m->audio.heads, "ff",
                             (int)m->audio.ff, "vision", "depth", (int)m->vision.depth, "hidden", (int)m->vision.hidden,
                             "heads", (int)m->vision.heads, "ff", (int)m->vision.ff, "kv_bytes_per_token_layer",
                             (json_int_t)kv, "defaults", defaults_json(&own)));
    } else {
        printf("%s: Qwen2.5-Omni thinker, %.1f M parameters, %.1f MB (%s%s), %u tensors%s\n", dir,
               (double)ck.n_params / 1e6, (double)ck.bytes / 1e6, dtype[ck.dtype], ck.mixed ? ", mixed" : "", ck.n_tensors,
               ck.tied ? ", embeddings tied" : "");
        printf("decoder  %u layers, width %u, %u query and %u KV heads of %u, MLP %u, vocabulary %u, context %u\n",
               m->text.layers, m->text.hidden, m->text.heads, m->text.kv_heads, m->text.head_dim, m->text.ff, m->text.vocab,
               m->text.max_positions);
        printf("audio    %u layers, width %u, %u heads, MLP %u; %g tokens a second\n", m->audio.layers, m->audio.d_model,
               m->audio.heads, m->audio.ff, m->position_id_per_seconds);
        printf("vision   %u blocks, width %u, %u heads, MLP %u; windows of %u pixels\n", m->vision.depth, m->vision.hidden,
               m->vision.heads, m->vision.ff, m->vision.window_size);
        printf("KV       %llu bytes a token and layer, %llu a token\n", (unsigned long long)kv,
               (unsigned long long)kv * m->text.layers);
        defaults_print(&own);
    }
    model_defaults_free(&own);
    checkpoint_close(&ck);
    return OK;
}

/* ---- media ------------------------------------------------------------------------------------------------ */

/* How transcribe would cut the sound: docs/http-api.md 5.2. */
struct plan_entry { double from_s, to_s, begin_s, end_s, voiced_s; bool clean_to, silent; };

struct window_plan {
    struct windows_options o;
    struct plan_entry *entry;      /* owned */
    size_t n, cap;
};

static status read_sound(void *self, float *buf, size_t cap, size_t *n, struct err *e)
{
    return media_audio_read(self, buf, cap, n, e);
}

/* The model's own window and overlap hold where nobody gives others. */
static status window_options(const struct cli *c, const char *dir, struct windows_options *o, struct err *e)
{
    struct model_config m;
    struct model_defaults own;
    double window_s = 0;
    TRY(model_config_load(dir, &m, e));
    TRY(cli_number(c, "window", 2, 120, &window_s, e));
    TRY(model_defaults_load(dir, m.text.layers, &own, e));
    *o = (struct windows_options){ 0 };
    model_defaults_windows(&own, window_s, -1, o);
    model_defaults_free(&own);
    return cli_number(c, "overlap", 0, o->window_s / 2, &o->overlap_s, e);
}

static status plan_windows(struct media *m, struct window_plan *p, struct err *e)
{
    const struct media_audio_options ao = { .keep_time = true };
    struct media_audio *sound = NULL;
    struct windows *cutter = NULL;
    p->n = 0;
    TRY(media_audio_open(m, &ao, &sound, e));
    status st = windows_create(&p->o, read_sound, sound, &cutter, e);
    while (st == OK) {
        struct window w = { 0 };
        st = windows_next(cutter, &w, e);
        if (st != OK || w.n_samples == 0) break;
        st = mem_grow(&p->entry, &p->cap, p->n + 1, sizeof *p->entry, e);
        if (st == OK)
            p->entry[p->n++] = (struct plan_entry){
                .from_s = (double)w.from / MEDIA_RATE, .to_s = (double)w.to / MEDIA_RATE,
                .begin_s = (double)w.begin / MEDIA_RATE, .end_s = (double)w.end / MEDIA_RATE, .voiced_s = w.voiced_s,
                .clean_to = w.clean_to, .silent = w.silent };
        window_free(&w);
    }
    windows_destroy(&cutter);
    media_audio_close(&sound);
    return st;
}

static json_t *windows_json(const struct window_plan *p)
{
    json_t *list = json_array();
    for (size_t i = 0; i < p->n; i++) {
        const struct plan_entry *w = &p->entry[i];
        json_array_append_new(list, json_pack("{s:f, s:f, s:f, s:f, s:f, s:b, s:b}", "start", w->from_s, "end", w->to_s,
                                              "hear_start", w->begin_s, "hear_end", w->end_s, "voiced_s", w->voiced_s,
                                              "clean_end", w->clean_to, "skipped_silence", w->silent));
    }
    return json_pack("{s:f, s:f, s:o}", "window_s", p->o.window_s, "overlap_s", p->o.overlap_s, "list", list);
}

static void windows_print(const struct window_plan *p)
{
    printf("  transcribe: %zu window%s of at most %g s\n", p->n, p->n == 1 ? "" : "s", p->o.window_s);
    for (size_t i = 0; i < p->n; i++) {
        const struct plan_entry *w = &p->entry[i];
        printf("    %4zu  %10.3f - %10.3f s  voice %7.2f s  %s", i, w->from_s, w->to_s, w->voiced_s,
               w->silent ? "silence, skipped" : i + 1 == p->n ? "ends with the sound" : w->clean_to ? "ends in a pause" : "hard cut");
        if (w->begin_s < w->from_s || w->end_s > w->to_s) printf(", hears %.3f - %.3f", w->begin_s, w->end_s);
        printf("\n");
    }
}

static json_t *real_or_null(double v) { return v >= 0 ? json_real(v) : json_null(); }

static json_t *media_json(const char *file, const struct media_info *i, const struct media_counts *n,
                          const struct window_plan *windows, const char *warning)
{
    json_t *o = json_pack("{s:o, s:s, s:o, s:b}", "file", cli_json_string(file), "container", i->container, "duration_s",
                          real_or_null(i->duration_s), "image", i->is_image);
    if (i->has_audio)
        json_object_set_new(o, "audio", json_pack("{s:s, s:i, s:i, s:o, s:o, s:I, s:I, s:b}", "codec", i->audio.codec, "rate",
                                                  (int)i->audio.rate, "channels", (int)i->audio.channels, "start_s",
                                                  real_or_null(i->audio.start_s), "duration_s",
                                                  real_or_null(i->audio.duration_s), "mel_frames",
                                                  (json_int_t)n->n_mel_frames, "tokens", (json_int_t)n->n_audio_tokens,
                                                  "exact", n->samples_exact));
    if (i->has_video || i->is_image) {
        json_t *v = json_pack("{s:s, s:s, s:i, s:i, s:i, s:f, s:[i,i,i], s:I}", "codec", i->video.codec, "pixel_format",
                              i->video.pixel_format, "width", (int)i->video.width, "height", (int)i->video.height,
                              "rotation", i->video.rotation, "fps", i->video.fps, "grid", (int)n->grid_t, (int)n->grid_h,
                              (int)n->grid_w, "tokens", (json_int_t)n->n_vision_tokens);
        json_object_set_new(v, "resized_width", json_integer(n->width));
        json_object_set_new(v, "resized_height", json_integer(n->height));
        if (!i->is_image) {
            json_object_set_new(v, "frames", json_integer((json_int_t)n->plan.total_frames));
            json_object_set_new(v, "sampled", json_integer(n->plan.n_sampled));
            json_object_set_new(v, "sample_fps", json_real(n->plan.sample_fps));
            json_object_set_new(v, "start_s", real_or_null(i->video.start_s));
            json_object_set_new(v, "duration_s", real_or_null(i->video.duration_s));
        }
        json_object_set_new(o, "video", v);
    }
    json_object_set_new(o, "tokens", json_integer((json_int_t)(n->n_audio_tokens + n->n_vision_tokens)));
    if (windows) json_object_set_new(o, "windows", windows_json(windows));
    if (warning) json_object_set_new(o, "warning", cli_json_string(warning));
    return o;
}

static void media_print(const char *file, const struct media_info *i, const struct media_counts *n,
                        const struct window_plan *windows, const char *warning)
{
    printf("%s: %s", file, i->container);
    if (i->duration_s >= 0) printf(", %.3f s", i->duration_s);
    printf("\n");
    if (i->has_audio)
        printf("  sound  %s, %u Hz, %u channel%s%s%.3f s: %llu mel frames, %llu tokens%s\n", i->audio.codec, i->audio.rate,
               i->audio.channels, i->audio.channels == 1 ? "" : "s", i->audio.start_s > 0 ? ", starts late, " : ", ",
               i->audio.duration_s >= 0 ? i->audio.duration_s : i->duration_s, (unsigned long long)n->n_mel_frames,
               (unsigned long long)n->n_audio_tokens, n->samples_exact ? "" : " (by the container; --exact decodes)");
    if (i->is_image)
        printf("  picture  %s, %s, %u x %u -> %u x %u, grid %u x %u: %llu tokens\n", i->video.codec, i->video.pixel_format,
               i->video.width, i->video.height, n->width, n->height, n->grid_w, n->grid_h,
               (unsigned long long)n->n_vision_tokens);
    else if (i->has_video)
        printf("  film   %s, %s, %u x %u%s, %.3f fps, %llu frames; %u sampled (%.3f fps) -> %u x %u, grid %u x %u x %u: "
               "%llu tokens\n", i->video.codec, i->video.pixel_format, i->video.width, i->video.height,
               i->video.rotation ? " (rotated)" : "", i->video.fps, (unsigned long long)n->plan.total_frames,
               n->plan.n_sampled, n->plan.sample_fps, n->width, n->height, n->grid_t, n->grid_h, n->grid_w,
               (unsigned long long)n->n_vision_tokens);
    printf("  total  %llu tokens\n", (unsigned long long)(n->n_audio_tokens + n->n_vision_tokens));
    if (windows) windows_print(windows);
    if (warning) printf("  warning: %s\n", warning);
}

struct media_task {
    const struct cli *c;
    struct media_image_options io;
    struct media_video_options vo;
    struct window_plan windows;
    json_t *all;                   /* NULL: text */
};

static status one_file(struct media_task *t, const char *file, struct err *e)
{
    struct media *f = NULL;
    struct media_counts n = { 0 };
    struct err why;
    TRY(media_open(file, &f, e));
    const struct media_info *info = media_info(f);
    const struct window_plan *windows = cli_flag(t->c, "windows") && info->has_audio ? &t->windows : NULL;
    status st = media_tokens(f, &t->io, &t->vo, cli_flag(t->c, "exact"), &n, e);
    if (st == OK && windows && plan_windows(f, &t->windows, &why) != OK) {
        windows = NULL;            /* a film without its sound is still a film */
        if (info->has_video) cli_log(t->c, CLI_NOTE, "%s", why.text);
        else {
            *e = why;
            st = e->code;
        }
    }
    if (st == OK && t->all) json_array_append_new(t->all, media_json(file, info, &n, windows, media_warning(f)));
    else if (st == OK) media_print(file, info, &n, windows, media_warning(f));
    media_close(&f);
    return st;
}

static status inspect_media(const struct cli *c, struct err *e)
{
    char bundled[1024];
    const char *dir;
    struct model_config m;
    struct media_task t = { .c = c };
    if (cli_n_words(c) < 2) return err_set(e, E_ARG, "inspect media FILE...: no file was named");
    TRY(model_folder(c, bundled, sizeof bundled, &dir, e));
    TRY(model_config_load(dir, &m, e));
    uint64_t min = 0, max = 0;
    double fps = 0;
    TRY(cli_uint(c, "min-pixels", 1, UINT64_MAX / 2, &min, e));
    TRY(cli_uint(c, "max-pixels", 1, UINT64_MAX / 2, &max, e));
    TRY(cli_number(c, "fps", 0.001, 240, &fps, e));
    TRY(window_options(c, dir, &t.windows.o, e));
    t.io = engine_image_options(&m, min, max);
    t.vo = engine_video_options(&m, min, max, fps);
    t.all = cli_flag(c, "json") ? json_array() : NULL;
    status st = OK;
    for (size_t i = 1; i < cli_n_words(c) && st == OK; i++) st = one_file(&t, cli_word(c, i), e);
    if (st == OK && t.all)
        print_json(json_incref(json_array_size(t.all) == 1 ? json_array_get(t.all, 0) : t.all));
    json_decref(t.all);
    free(t.windows.entry);
    return st;
}

/* ---- device ----------------------------------------------------------------------------------------------- */

static status inspect_device(const struct cli *c, struct err *e)
{
    uint64_t threads = 0;
    struct stream *st = NULL;
    char text[256];
    TRY(cli_uint(c, "threads", 0, 256, &threads, e));
    const struct stream_options o = { .device = cli_text(c, "device"), .n_threads = (int)threads, .isa = cli_text(c, "isa") };
    TRY(stream_open(&o, &st, e));
    st->ops->describe(st, text, sizeof text);
    json_t *isas = json_array();
    for (const char *const *i = cpu_isas(); *i; i++) json_array_append_new(isas, json_string(*i));
    char cuda[256], lacks[256];
    uint64_t left = 0, total = 0;
    const bool driver = device_cuda_driver(cuda, sizeof cuda), backend = device_cuda_backend(lacks, sizeof lacks);
    const status known = device_memory(st, &left, &total, e);
    if (cli_flag(c, "json")) {
        print_json(json_pack("{s:s, s:s, s:O, s:i, s:I, s:I, s:{s:b, s:b, s:s, s:s}}", "device", st->ops->name, "description", text,
                             "instruction_sets", isas, "page_tokens", (int)st->ops->page_tokens, "memory_bytes", (json_int_t)total,
                             "memory_free_bytes", (json_int_t)left, "cuda", "backend", backend, "driver", driver, "detail", cuda,
                             "backend_detail", lacks));
    } else {
        printf("device   %s\nmemory   %.1f GB, %.1f GB free\npages    %u tokens\nISAs     ", text, (double)total / 1e9, (double)left / 1e9,
               st->ops->page_tokens);
        for (size_t i = 0; i < json_array_size(isas); i++)
            printf("%s%s", i ? ", " : "", json_string_value(json_array_get(isas, i)));
        printf("\ncuda     %s; %s\n", backend ? "omnidrop-cuda.so is there" : lacks, cuda);
    }
    json_decref(isas);
    st->ops->close(&st);
    return known;
}

/* ---- policies and schedule -------------------------------------------------------------------------------- */

/* A value of a parameter as a person writes it. */
static json_t *param_value(const struct prune_param *q, double v)
{
    if (isnan(v)) return json_null();
    switch (q->kind) {
    case PARAM_BOOL: return json_boolean(v != 0);
    case PARAM_WORD: return json_string(q->word[(int)v]);
    case PARAM_INTEGER: return json_integer((json_int_t)v);
    default: return json_real(v);
    }
}

static json_t *param_json(const struct prune_param *q)
{
    static const char *const kind[] = { "number", "integer", "bool", "word", "list" };
    json_t *o = json_pack("{s:s, s:s, s:o, s:s}", "name", q->name, "type", kind[q->kind], "default",
                          param_value(q, q->fallback), "help", q->help);
    if (q->kind == PARAM_WORD) {
        json_t *words = json_array();
        for (int i = 0; i <= (int)q->hi; i++) json_array_append_new(words, json_string(q->word[i]));
        json_object_set_new(o, "choices", words);
    } else if (q->kind != PARAM_BOOL) {
        json_object_set_new(o, "min", param_value(q, q->lo));
        json_object_set_new(o, "max", param_value(q, q->hi));
    }
    return o;
}

static void param_print(const struct prune_param *q)
{
    char range[128] = "true|false", fallback[64] = "";
    if (q->kind == PARAM_WORD) {
        size_t n = 0;
        for (int i = 0; i <= (int)q->hi && n < sizeof range; i++)
            n += (size_t)snprintf(range + n, sizeof range - n, "%s%s", i ? "|" : "", q->word[i]);
    } else if (q->kind != PARAM_BOOL) {
        snprintf(range, sizeof range, "%.16g..%.16g", q->lo, q->hi);
    }
    if (!isnan(q->fallback)) {
        if (q->kind == PARAM_WORD) snprintf(fallback, sizeof fallback, " [%s]", q->word[(int)q->fallback]);
        else if (q->kind == PARAM_BOOL) snprintf(fallback, sizeof fallback, " [%s]", q->fallback != 0 ? "true" : "false");
        else snprintf(fallback, sizeof fallback, " [%.16g]", q->fallback);
    }
    printf("                %-16s %s%s  %s\n", q->name, range, fallback, q->help);
}

static status inspect_policies(const struct cli *c)
{
    json_t *all = json_array();
    for (const struct policy *const *p = prune_list(); *p; p++) {
        json_t *params = json_array();
        if (!cli_flag(c, "json")) printf("%-13s %s\n              %s\n", (*p)->name, (*p)->help, (*p)->citation);
        for (uint32_t i = 0; i < (*p)->n_param; i++) {
            json_array_append_new(params, param_json(&(*p)->param[i]));
            if (!cli_flag(c, "json")) param_print(&(*p)->param[i]);
        }
        json_array_append_new(all, json_pack("{s:s, s:s, s:s, s:o}", "name", (*p)->name, "help", (*p)->help, "citation",
                                             (*p)->citation, "parameters", params));
    }
    if (cli_flag(c, "json")) print_json(json_incref(all));
    json_decref(all);
    return OK;
}

struct schedule_input { uint64_t layers, audio, steps, step_tokens, text, page_tokens; struct model_defaults defaults; };

static status schedule_input(const struct cli *c, struct schedule_input *s, struct err *e)
{
    TRY(cli_uint(c, "layers", 1, 4096, &s->layers, e));
    if (s->layers == 0) {
        char bundled[1024];
        const char *dir;
        struct model_config m;
        TRY(model_folder(c, bundled, sizeof bundled, &dir, e));
        TRY(model_config_load(dir, &m, e));
        s->layers = m.text.layers;
        TRY(model_defaults_load(dir, m.text.layers, &s->defaults, e));
    }
    TRY(cli_uint(c, "audio-tokens", 0, 1u << 24, &s->audio, e));
    TRY(cli_uint(c, "video-steps", 0, 1u << 20, &s->steps, e));
    TRY(cli_uint(c, "step-tokens", 1, 1u << 20, &s->step_tokens, e));
    TRY(cli_uint(c, "text-tokens", 1, 1u << 24, &s->text, e));
    struct stream *st = NULL;
    const struct stream_options so = { .device = cli_text(c, "device"), .n_threads = 1, .isa = cli_text(c, "isa") };
    TRY(stream_open(&so, &st, e));
    s->page_tokens = st->ops->page_tokens;
    st->ops->close(&st);
    return OK;
}

static status inspect_schedule(const struct cli *c, struct err *e)
{
    struct schedule_input in = { .defaults = model_defaults_none() };
    struct policy_params p;
    struct policy_plan plan;
    status st = schedule_input(c, &in, e);
    const uint32_t L = (uint32_t)in.layers;
    if (st == OK) st = cli_policy(c, "omnidrop", L, &in.defaults, &p, e);
    model_defaults_free(&in.defaults);
    if (st != OK) return st;
    const struct prune_item item = { .kind = in.steps ? TOKEN_VIDEO : TOKEN_AUDIO, .n_audio = (uint32_t)in.audio,
                                     .steps = (uint32_t)in.steps, .step_tokens = in.steps ? (uint32_t)in.step_tokens : 0 };
    const struct prune_shape shape = { .n_layers = L, .n_items = 1, .item = &item };
    TRY(prune_plan_shape(&p, &shape, &plan, e));
    json_t *alive = json_array(), *rate = json_array(), *pages = json_array();
    uint64_t sum = 0, total = 0;
    const uint64_t per = in.page_tokens, whole = L * ((plan.n_orig + in.text + per - 1) / per);
    if (!cli_flag(c, "json")) printf("layer  drops      AV tokens  pages\n");
    for (uint32_t l = 0; l < L; l++) {
        const uint64_t n = (plan.alive[l] + in.text + per - 1) / per;
        json_array_append_new(alive, json_integer(plan.alive[l]));
        json_array_append_new(rate, json_real(plan.rate[l]));
        json_array_append_new(pages, json_integer((json_int_t)n));
        sum += plan.alive[l];
        total += n;
        if (!cli_flag(c, "json")) printf("%5u  %.6f  %9u  %5llu\n", l, plan.rate[l], plan.alive[l], (unsigned long long)n);
    }
    const double mean = plan.n_orig ? (double)sum / L / plan.n_orig : 1;
    json_t *resolved = prune_plan_to_json(&p, &plan);
    if (cli_flag(c, "json"))
        print_json(json_pack("{s:s, s:O, s:i, s:i, s:i, s:i, s:b, s:O, s:O, s:O, s:I, s:I, s:f}", "policy",
                             prune_params_name(&p), "resolved", resolved, "layers", (int)L,
                             "av_tokens", (int)plan.n_orig, "entering", (int)plan.n_entry, "page_tokens", (int)per, "exact",
                             plan.exact, "alive", alive, "rate", rate, "pages_per_layer", pages, "pages",
                             (json_int_t)total, "pages_unpruned", (json_int_t)whole, "mean_retained", mean));
    else
        printf("policy %s: %u AV tokens, %u enter layer 0, mean retained %.4f; %llu pages of %u tokens, %llu unpruned "
               "(%.2fx)\n", prune_params_name(&p), plan.n_orig,
               plan.n_entry, mean, (unsigned long long)total, (unsigned)per, (unsigned long long)whole,
               (double)whole / (double)total);
    if (!cli_flag(c, "json") && !isnan(plan.p_final)) printf("p_final %.6g\n", plan.p_final);
    json_decref(resolved);
    json_decref(alive);
    json_decref(rate);
    json_decref(pages);
    prune_plan_free(&plan);
    return OK;
}

/* ---- dispatch --------------------------------------------------------------------------------------------- */

int cli_main_inspect(int argc, char **argv)
{
    struct cli *c = NULL;
    struct err e = { 0 };
    bool done;
    status st = cli_parse(&inspect_command, argc, argv, &c, &done, &e);
    if (st != OK) return cli_fail(NULL, st, &e);
    const char *what = !done && cli_n_words(c) ? cli_word(c, 0) : "";
    const size_t most = strcmp(what, "media") == 0 ? SIZE_MAX : strcmp(what, "model") == 0 ? 2 : 1;
    if (done) st = OK;
    else if (cli_n_words(c) > most) st = err_set(&e, E_ARG, "inspect %s: what is \"%s\"?", what, cli_word(c, most));
    else if (strcmp(what, "model") == 0) st = inspect_model(c, &e);
    else if (strcmp(what, "media") == 0) st = inspect_media(c, &e);
    else if (strcmp(what, "device") == 0) st = inspect_device(c, &e);
    else if (strcmp(what, "policies") == 0) st = inspect_policies(c);
    else if (strcmp(what, "schedule") == 0) st = inspect_schedule(c, &e);
    else st = err_set(&e, E_ARG, "inspect \"%s\": give model, media, schedule, policies or device", what);
    const int code = st == OK ? CLI_OK : cli_fail(c, st, &e);
    cli_free(&c);
    return code;
}
