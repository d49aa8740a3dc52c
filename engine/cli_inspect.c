/* engine/cli_inspect.c - omnidrop inspect model|media|schedule|policies|device: what is there, and what it would cost,
 * without running it. Everything can be had as JSON. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/cli.h"
#include "engine/engine.h"
#include "kernels/ops.h"
#include "media/media.h"
#include "model/checkpoint.h"

static const struct cli_option inspect_options[] = {
    { "json", 0, CLI_FLAG, NULL, NULL, "JSON on stdout", NULL, NULL },
    { "fps", 0, CLI_NUMBER, "N", NULL, "media: frames a second to look at [2]", NULL, NULL },
    { "min-pixels", 0, CLI_UINT, "N", NULL, "media: of a picture or frame", NULL, NULL },
    { "max-pixels", 0, CLI_UINT, "N", NULL, "media: of a picture or frame", NULL, NULL },
    { "exact", 0, CLI_FLAG, NULL, NULL, "media: decode the sound for the exact count", NULL, NULL },
    { "window", 0, CLI_SECONDS, "T", "30", "media: target window of transcribe", NULL, NULL },
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
    json_dumpf(o, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(o);
}

/* ---- model ------------------------------------------------------------------------------------------------ */

static status inspect_model(const struct cli *c, struct err *e)
{
    static const char *const dtype[] = { "F32", "BF16", "F16" };
    const char *dir = cli_n_words(c) > 1 ? cli_word(c, 1) : cli_text(c, "model");
    char bundled[1024];
    struct checkpoint ck;
    if (dir == NULL) {
        TRY(engine_bundled_model(bundled, sizeof bundled, e));
        dir = bundled;
    }
    TRY(checkpoint_open(dir, &ck, e));
    const struct model_config *m = &ck.config;
    const uint64_t kv = 2ull * m->text.kv_heads * m->text.head_dim * (ck.dtype == DT_F32 ? 4 : 2);
    if (cli_flag(c, "json")) {
        print_json(json_pack("{s:s, s:I, s:I, s:s, s:b, s:i, s:{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}, s:{s:i,s:i,s:i,s:i}, "
                             "s:{s:i,s:i,s:i,s:i}, s:I}",
                             "dir", dir, "parameters", (json_int_t)ck.n_params, "bytes", (json_int_t)ck.bytes, "dtype",
                             dtype[ck.dtype], "tied", ck.tied, "tensors", (int)ck.n_tensors, "text", "layers",
                             (int)m->text.layers, "hidden", (int)m->text.hidden, "heads", (int)m->text.heads, "kv_heads",
                             (int)m->text.kv_heads, "head_dim", (int)m->text.head_dim, "ff", (int)m->text.ff, "vocab",
                             (int)m->text.vocab, "context", (int)m->text.max_positions, "audio", "layers",
                             (int)m->audio.layers, "d_model", (int)m->audio.d_model, "heads", (int)m->audio.heads, "ff",
                             (int)m->audio.ff, "vision", "depth", (int)m->vision.depth, "hidden", (int)m->vision.hidden,
                             "heads", (int)m->vision.heads, "ff", (int)m->vision.ff, "kv_bytes_per_token_layer",
                             (json_int_t)kv));
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
    }
    checkpoint_close(&ck);
    return OK;
}

/* ---- media ------------------------------------------------------------------------------------------------ */

static json_t *real_or_null(double v) { return v >= 0 ? json_real(v) : json_null(); }

static json_t *media_json(const char *file, const struct media_info *i, const struct media_counts *n, const char *warning)
{
    json_t *o = json_pack("{s:s, s:s, s:o, s:b}", "file", file, "container", i->container, "duration_s",
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
    if (warning) json_object_set_new(o, "warning", json_string(warning));
    return o;
}

static void media_print(const char *file, const struct media_info *i, const struct media_counts *n, const char *warning)
{
    printf("%s: %s", file, i->container);
    if (i->duration_s >= 0) printf(", %.3f s", i->duration_s);
    printf("\n");
    if (i->has_audio)
        printf("  sound  %s, %u Hz, %u channels%s%.3f s: %llu mel frames, %llu tokens%s\n", i->audio.codec, i->audio.rate,
               i->audio.channels, i->audio.start_s > 0 ? ", starts late, " : ", ",
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
    if (warning) printf("  warning: %s\n", warning);
}

static status inspect_media(const struct cli *c, struct err *e)
{
    char bundled[1024];
    const char *dir = cli_text(c, "model");
    struct model_config m;
    if (cli_n_words(c) < 2) return err_set(e, E_ARG, "inspect media FILE...: no file was named");
    if (dir == NULL) {
        TRY(engine_bundled_model(bundled, sizeof bundled, e));
        dir = bundled;
    }
    TRY(model_config_load(dir, &m, e));
    uint64_t min = 0, max = 0;
    double fps = 0;
    TRY(cli_uint(c, "min-pixels", 1, UINT64_MAX / 2, &min, e));
    TRY(cli_uint(c, "max-pixels", 1, UINT64_MAX / 2, &max, e));
    TRY(cli_number(c, "fps", 0.001, 240, &fps, e));
    const struct media_image_options io = engine_image_options(&m, min, max);
    const struct media_video_options vo = engine_video_options(&m, min, max, fps);
    json_t *all = json_array();
    status st = OK;
    for (size_t i = 1; i < cli_n_words(c) && st == OK; i++) {
        const char *file = cli_word(c, i);
        struct media *f = NULL;
        struct media_counts n = { 0 };
        st = media_open(file, &f, e);
        if (st == OK) st = media_tokens(f, &io, &vo, cli_flag(c, "exact"), &n, e);
        if (st == OK && cli_flag(c, "json"))
            json_array_append_new(all, media_json(file, media_info(f), &n, media_warning(f)));
        else if (st == OK) media_print(file, media_info(f), &n, media_warning(f));
        media_close(&f);
    }
    if (st == OK && cli_flag(c, "json"))
        print_json(json_array_size(all) == 1 ? json_incref(json_array_get(all, 0)) : json_incref(all));
    json_decref(all);
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
    char cuda[256];
    const bool driver = device_cuda_driver(cuda, sizeof cuda);
    if (cli_flag(c, "json")) {
        print_json(json_pack("{s:s, s:s, s:O, s:i, s:{s:b, s:b, s:s}}", "device", st->ops->name, "description", text,
                             "instruction_sets", isas, "page_tokens", (int)st->ops->page_tokens, "cuda", "backend", 0,
                             "driver", driver, "detail", cuda));
    } else {
        printf("device   %s\npages    %u tokens\nISAs     ", text, st->ops->page_tokens);
        for (size_t i = 0; i < json_array_size(isas); i++)
            printf("%s%s", i ? ", " : "", json_string_value(json_array_get(isas, i)));
        printf("\ncuda     no backend in this build; %s\n", cuda);
    }
    json_decref(isas);
    st->ops->close(&st);
    return OK;
}

/* ---- policies and schedule -------------------------------------------------------------------------------- */

static status inspect_policies(const struct cli *c)
{
    json_t *all = json_array();
    for (const struct policy *const *p = prune_list(); *p; p++) {
        json_t *params = json_array();
        if (!cli_flag(c, "json")) printf("%-10s %s\n           %s\n", (*p)->name, (*p)->help, (*p)->citation);
        for (uint32_t i = 0; i < (*p)->n_param; i++) {
            const struct prune_param *q = &(*p)->param[i];
            json_t *o = json_pack("{s:s, s:f, s:f, s:o, s:s}", "name", q->name, "min", q->lo, "max", q->hi, "default",
                                  isnan(q->fallback) ? json_null() : json_real(q->fallback), "help", q->help);
            json_array_append_new(params, o);
            if (cli_flag(c, "json")) continue;
            printf("             %-16s %g..%g", q->name, q->lo, q->hi);
            if (!isnan(q->fallback)) printf(" [%g]", q->fallback);
            printf("  %s\n", q->help);
        }
        json_array_append_new(all, json_pack("{s:s, s:s, s:s, s:o}", "name", (*p)->name, "help", (*p)->help, "citation",
                                             (*p)->citation, "parameters", params));
    }
    if (cli_flag(c, "json")) print_json(json_incref(all));
    json_decref(all);
    return OK;
}

struct schedule_input { uint64_t layers, audio, steps, step_tokens, text, page_tokens; };

static status schedule_input(const struct cli *c, struct schedule_input *s, struct err *e)
{
    TRY(cli_uint(c, "layers", 1, 4096, &s->layers, e));
    if (s->layers == 0) {
        char bundled[1024];
        const char *dir = cli_text(c, "model");
        struct model_config m;
        if (dir == NULL) {
            TRY(engine_bundled_model(bundled, sizeof bundled, e));
            dir = bundled;
        }
        TRY(model_config_load(dir, &m, e));
        s->layers = m.text.layers;
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
    struct schedule_input in = { 0 };
    struct policy_params p;
    struct policy_plan plan;
    TRY(schedule_input(c, &in, e));
    const uint32_t L = (uint32_t)in.layers;
    TRY(cli_policy(c, "omnidrop", L, &p, e));
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
    const char *what = cli_n_words(c) ? cli_word(c, 0) : "";
    if (done) st = OK;
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
