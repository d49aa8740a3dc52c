/* cli/bench_profile.c - omnidrop bench profile: what the steps of this machine's engine take, as a profile for bench plan.
 * Prefill of several lengths, decode steps of several widths and depths, the towers, selections; each the quickest of some
 * tries, in well under a minute: what would take longer is left out and the largest that was tried stands for it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/plan_profile.h"
#include "engine/engine.h"
#include "media/media.h"

#define TRIES 3
#define LONGEST_S 4.0              /* of one try: what is foreseen to take longer is not tried */
#define BUDGET_S 45.0
#define GRID 24                    /* patches a side of a frame: 144 tokens a step */
#define TOKENS_OUT 25
#define WORKERS 2                  /* of serve, that prepare media */

static const struct cli_option profile_options[] = {
    { "output", 'o', CLI_TEXT, "FILE", NULL, "write the profile there; default: standard output" },
    { "overwrite", 'y', CLI_FLAG, NULL, NULL, "replace the file if it exists" },
    { "video", 0, CLI_TEXT, "FILE", NULL, "a film whose decoding is timed too; else media decoding counts as free" },
    { 0 }
};
static const struct cli_option *const profile_groups[] = { profile_options, cli_common_options, NULL };
static const struct cli_command profile_command = {
    .name = "bench profile", .summary = "What prefill, decode and towers take on this machine, for bench plan.",
    .usage = "omnidrop bench profile [-m DIR] [-o FILE] [--video FILE] [options]",
    .groups = profile_groups,
    .examples = "omnidrop bench profile -o measured.json\n"
                "omnidrop bench plan --profile measured.json --clients 8 --max-num-seqs 32" };

struct profiler {
    const struct cli *cli;
    struct engine *en;
    struct sim_model model;
    struct plan_profile p;
    double start;
    uint32_t max_len;
};

/* Rows of a prefill and what it took. */
struct point { double rows, s; };

static struct prompt_rules rules_of(const struct model_config *c)
{
    return (struct prompt_rules){
        .audio_id = c->ids.audio, .image_id = c->ids.image, .video_id = c->ids.video, .audio_bos = c->ids.audio_start,
        .audio_eos = c->ids.audio_end, .vision_bos = c->ids.vision_start, .vision_eos = c->ids.vision_end,
        .position_id_per_seconds = c->position_id_per_seconds, .seconds_per_chunk = c->seconds_per_chunk, .n_query_max = 256 };
}

/* n tokens of text, another one for each salt. */
static status text_prompt(const struct profiler *b, uint32_t n, uint32_t salt, struct prompt *out, struct err *e)
{
    const struct prompt_rules rules = rules_of(engine_config(b->en));
    const struct tokenizer *tok = engine_tokenizer(b->en);
    struct prompt_token *t;
    int32_t id = (int32_t)(salt % 64);
    TRY(mem_alloc(&t, n, sizeof *t, e));
    for (uint32_t i = 0; i < n; i++) {
        do id = (id + 1) % (int32_t)tokenizer_n_ids(tok);
        while (!tokenizer_has(tok, id) || id == rules.audio_id || id == rules.image_id || id == rules.video_id);
        t[i] = (struct prompt_token){ id, true };
    }
    const status st = prompt_build(&rules, t, n, NULL, 0, out, e);
    free(t);
    return st;
}

/* Runs `batch` equal texts; the quickest of some tries: seconds of prefill of all, and between two tokens. */
static status run_text(struct profiler *b, uint32_t n, uint32_t batch, uint32_t n_out, uint32_t tries, double *prefill, double *gap,
                       struct err *e)
{
    struct eng_request **req;
    TRY(mem_alloc(&req, batch, sizeof *req, e));
    status st = OK;
    *prefill = *gap = INFINITY;
    for (uint32_t k = 0; k < tries && st == OK; k++) {
        for (uint32_t i = 0; i < batch && st == OK; i++) {
            struct prompt p = { 0 };
            struct eng_request_options o = eng_request_defaults();
            o.max_tokens = n_out;
            o.ignore_eos = true;
            st = text_prompt(b, n, i, &p, e);
            const struct eng_given given = { .prompt = &p };
            if (st == OK) st = eng_request_create_given(b->en, NULL, &o, &given, &req[i], e);
            prompt_free(&p);
        }
        if (st == OK) st = eng_run(b->en, req, batch, e);
        for (uint32_t i = 0; i < batch && st == OK; i++) {
            const struct eng_result *r = eng_request_result(req[i]);
            if (r->finish == ENG_FAILED) {
                *e = r->error;
                st = e->code;
            }
        }
        if (st == OK) {
            const struct eng_result *r = eng_request_result(req[0]);
            *prefill = fmin(*prefill, r->prefill_s);
            for (uint32_t i = 2; i < r->n_ids; i++) *gap = fmin(*gap, r->token_s[i] - r->token_s[i - 1]);
        }
        for (uint32_t i = 0; i < batch; i++) eng_request_destroy(b->en, &req[i]);
    }
    free(req);
    return st;
}

/* ---- fitting ----------------------------------------------------------------------------------------------- */

/* FLOPs of the products of a prefill of n rows as it runs, but for the last row's; rows times keys. */
static double products(const struct profiler *b, double n)
{
    const struct work_row c = work_row(&b->model.work);
    return n * ((b->model.work.L - 1) * (c.kv + c.mix) + c.kv);
}

static double keys(const struct profiler *b, double n) { return (b->model.work.L - 1) * n * (n + 1) / 2 + n; }

/* Rates of products by rows, of attention: such that the same sums give the same seconds. */
static void fit_prefill(struct profiler *b, const struct point *at, uint32_t n)
{
    const struct work_row c = work_row(&b->model.work);
    struct sim_device *v = &b->p.device;
    double per_key = 0;            /* seconds */
    if (n >= 2) {                  /* the two longest differ by attention alone, and by length */
        const double f1 = products(b, at[n - 2].rows), f2 = products(b, at[n - 1].rows);
        const double k1 = keys(b, at[n - 2].rows), k2 = keys(b, at[n - 1].rows);
        per_key = fmax(0, (at[n - 1].s * f1 - at[n - 2].s * f2) / (k2 * f1 - k1 * f2));
    }
    v->attention = per_key > 0 ? c.key / per_key : 0;
    const double last = c.mix + 2.0 * b->model.work.V * b->model.work.d;   /* one row to the end: as long as the fewest rows */
    double last_s = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double rows = at[i].rows, flops = products(b, rows) + (i == 0 ? rows * last : 0);
        const double s = fmax(at[i].s - per_key * keys(b, rows) - last_s, 0.05 * at[i].s);
        v->gemm[v->n_gemm++] = (struct sim_rate){ rows, flops / s };
        if (i == 0) last_s = rows * last / v->gemm[0].per_s;
    }
}

static status measure_prefill(struct profiler *b, struct err *e)
{
    static const uint32_t LENGTHS[] = { 24, 96, 384, 1536, 6144 };
    struct point at[sizeof LENGTHS / sizeof *LENGTHS];
    uint32_t n = 0;
    double unused, warm;
    TRY(run_text(b, 96, 1, 1, 1, &warm, &unused, e));
    for (size_t i = 0; i < sizeof LENGTHS / sizeof *LENGTHS; i++) {
        const uint32_t most = b->max_len - 1, rows = LENGTHS[i] < most ? LENGTHS[i] : most;
        if (n > 0 && (rows < 1.5 * at[n - 1].rows || at[n - 1].s * pow(rows / at[n - 1].rows, 1.5) > LONGEST_S)) break;
        at[n].rows = rows;
        TRY(run_text(b, rows, 1, 1, TRIES, &at[n].s, &unused, e));
        cli_log(b->cli, CLI_DETAIL, "prefill of %u rows: %.2f ms", rows, at[n].s * 1e3);
        n++;
    }
    fit_prefill(b, at, n);
    return OK;
}

static status measure_decode(struct profiler *b, struct err *e)
{
    static const uint32_t BATCH[] = { 1, 4, 16, 32 };
    const struct work_shape *w = &b->model.work;
    const double weights = w->L * (2.0 * w->d * ((double)w->H * w->D + (double)w->G * w->D) + 3.0 * w->d * w->ff) + (double)w->V * w->d;
    const double row = 2.0 * w->G * w->D * b->p.kv_value_bytes * w->L;
    const uint32_t shallow = 16, deep = b->max_len / 2 < 2048 ? b->max_len / 2 : 2048, wide = 8;
    struct sim_device *v = &b->p.device;
    double prefill, near_s, deep_s, gap;
    TRY(run_text(b, shallow, wide, TOKENS_OUT, TRIES, &prefill, &near_s, e));
    TRY(run_text(b, deep, wide, TOKENS_OUT, 1, &prefill, &deep_s, e));
    v->memory = deep_s > near_s ? wide * row * (deep - shallow) / (deep_s - near_s) : 0;
    for (size_t i = 0; i < sizeof BATCH / sizeof *BATCH; i++) {
        TRY(run_text(b, shallow, BATCH[i], TOKENS_OUT, TRIES, &prefill, &gap, e));
        const double kept = v->memory > 0 ? BATCH[i] * row * (shallow + 2) / v->memory : 0;
        v->decode[v->n_decode++] = (struct sim_rate){ BATCH[i], 2 * weights * BATCH[i] / fmax(gap - kept, 0.1 * gap) };
        cli_log(b->cli, CLI_DETAIL, "a decode step of %u rows: %.3f ms", BATCH[i], gap * 1e3);
        if (gap * TOKENS_OUT > LONGEST_S) break;
    }
    return OK;
}

/* ---- media ------------------------------------------------------------------------------------------------- */

static void noise(float *x, size_t n)
{
    uint32_t s = 1;
    for (size_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(s >> 8) / (float)(1u << 23) - 1.0f;
    }
}

/* With it the engine stops for each choice, and its time is the choice's. */
static void see_choice(void *self, uint32_t l, const uint32_t *index, uint32_t n, const float *score)
{
    (void)self, (void)l, (void)index, (void)n, (void)score;
}

/* One request about `steps` grid steps of film or `frames` mel frames of sound. */
static status run_media(struct profiler *b, uint32_t steps, uint32_t frames, const char *policy, double *tower, double *select,
                        double *chosen_from, struct err *e)
{
    const uint32_t side = GRID, rows = steps * side * side;
    const size_t width = (size_t)3 * 2 * 14 * 14;
    float *x = NULL;
    struct chat chat;
    struct policy_params params;
    struct eng_request *r = NULL;
    struct eng_request_options o = eng_request_defaults();
    status st;
    const char *question = "a";
    const struct eng_trace trace = { .alive = see_choice };
    *chosen_from = 0;
    chat_init(&chat);
    TRY_GOTO(st, prune_params_init(&params, policy, b->model.work.L, e), done);
    TRY_GOTO(st, prune_params_finish(&params, e), done);
    TRY_GOTO(st, mem_alloc(&x, steps ? rows * width : (size_t)frames * MEDIA_MEL_BINS, sizeof *x, e), done);
    noise(x, steps ? rows * width : (size_t)frames * MEDIA_MEL_BINS);
    TRY_GOTO(st, chat_add_message(&chat, CHAT_USER, e), done);
    TRY_GOTO(st, chat_add_media(&chat, steps ? PART_VIDEO : PART_AUDIO, "given", e), done);
    TRY_GOTO(st, chat_add_text(&chat, question, strlen(question), e), done);
    const struct eng_features f = { .mel = steps ? NULL : x, .n_frames = steps ? 0 : frames, .patches = steps ? x : NULL, .t = steps,
                                    .h = side, .w = side };
    const struct eng_given given = { .features = &f, .n_features = 1 };
    o.max_tokens = 1;
    o.policy = &params;
    o.trace = &trace;
    TRY_GOTO(st, eng_request_create_given(b->en, &chat, &o, &given, &r, e), done);
    TRY_GOTO(st, eng_run(b->en, &r, 1, e), done);
    const struct eng_result *res = eng_request_result(r);
    if (res->finish == ENG_FAILED) {
        *e = res->error;
        st = e->code;
        goto done;
    }
    *tower = res->tower_s;
    *select = res->select_s;
    for (uint32_t l = 0; l < res->n_layers; l++)
        if (eng_request_plan(r)->selects[l]) *chosen_from += eng_request_plan(r)->alive[l];
done:
    eng_request_destroy(b->en, &r);
    chat_free(&chat);
    free(x);
    return st;
}

static status measure_towers(struct profiler *b, struct err *e)
{
    const uint32_t steps = b->max_len > 2600 ? 16 : b->max_len > 700 ? 4 : 1, frames = b->max_len > 1000 ? 3000 : 400;
    const uint32_t patches = steps * GRID * GRID;
    struct sim_device *v = &b->p.device;
    double tower, best[2] = { INFINITY, INFINITY }, select, from, entry = INFINITY, all = INFINITY;
    for (int i = 0; i < TRIES; i++) {
        TRY(run_media(b, steps, 0, "none", &tower, &select, &from, e));
        best[0] = fmin(best[0], tower);
        TRY(run_media(b, 0, frames, "none", &tower, &select, &from, e));
        best[1] = fmin(best[1], tower);
        if (clock_s() - b->start > BUDGET_S) break;
    }
    v->vision = work_patches(&b->model.work, patches) / best[0];
    v->audio = work_frames(&b->model.work, frames) / best[1];
    for (int i = 0; i < TRIES; i++) {
        TRY(run_media(b, steps, 0, "step0", &tower, &select, &from, e));
        entry = fmin(entry, select);
        TRY(run_media(b, steps, 0, "omnidrop", &tower, &select, &from, e));
        all = fmin(all, select);
        if (clock_s() - b->start > BUDGET_S) break;
    }
    v->entry_row_s = entry / (patches / 4);
    v->select_row_s = from > 0 ? fmax(0, all - entry) / from : 0;
    cli_log(b->cli, CLI_DETAIL, "towers: %u patches %.1f ms, %u mel frames %.1f ms; selections %.2f ms before the decoder, %.2f ms in it",
            patches, best[0] * 1e3, frames, best[1] * 1e3, entry * 1e3, (all - entry) * 1e3);
    return OK;
}

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* CPU seconds that a second of this film, and of its sound, takes to become features. */
static status measure_host(struct profiler *b, const char *file, struct err *e)
{
    struct media *m = NULL;
    struct media_patches patches = { 0 };
    float *sound = NULL, *mel = NULL;
    size_t n;
    TRY(media_open(file, &m, e));
    const struct media_info *i = media_info(m);
    const struct media_video_options vo = engine_video_options(engine_config(b->en), 0, 0, 0);
    const double seconds = i->duration_s;
    status st = i->has_video && seconds > 0 ? OK : err_set(e, E_INPUT, "%s: a film of known length is wanted", file);
    double start = cpu_s();
    if (st == OK) st = media_video_load(m, &vo, &patches, NULL, e);
    b->p.film_s = (cpu_s() - start) / seconds;
    start = cpu_s();
    if (st == OK && i->has_audio) {
        const struct media_audio_options ao = { .keep_time = true };
        st = media_audio_load(m, &ao, 0, &sound, &n, e);
        if (st == OK) st = mem_alloc(&mel, media_mel_frames(n) * MEDIA_MEL_BINS, sizeof *mel, e);
        if (st == OK) st = media_mel(sound, n, mel, e);
        b->p.sound_s = (cpu_s() - start) / seconds;
    }
    media_patches_free(&patches);
    free(sound);
    free(mel);
    media_close(&m);
    return st;
}

/* ---- the command ------------------------------------------------------------------------------------------- */

static void describe(struct profiler *b)
{
    const struct engine_info *i = engine_info(b->en);
    struct plan_profile *p = &b->p;
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t threads = 0;
    struct err none;
    if (cli_uint(b->cli, "threads", 0, 256, &threads, &none) != OK || threads == 0) threads = (uint64_t)cpus;
    snprintf(p->name, sizeof p->name, "%.60s", i->model_name);
    snprintf(p->source, sizeof p->source, "measured by bench profile: %s, %s weights, %s KV; media decoding %s; all-reduces, front "
             "end and network not measured", i->device, i->compute == DT_F32 ? "f32" : "bf16", i->kv_dtype == DT_F32 ? "f32" : "bf16",
             cli_text(b->cli, "video") ? "of a film" : "not measured");
    p->measured = true;
    p->value_bytes = i->compute == DT_F32 ? 4 : 2;
    p->kv_value_bytes = i->kv_dtype == DT_F32 ? 4 : 2;
    p->page_tokens = i->page_tokens;
    p->pool_bytes = (double)i->n_pages * (double)i->page_bytes;
    p->device.host_cores = WORKERS;
    p->device.shared_cores = (double)cpus;
    p->device.device_threads = (double)threads;
    p->front.cores = 1;
}

static status write_out(const struct profiler *b, struct err *e)
{
    const char *path = cli_text(b->cli, "output");
    json_t *o = plan_profile_json(&b->p);
    FILE *f = path ? fopen(path, "we") : stdout;
    bool ok = f != NULL && json_dumpf(o, f, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) == 0 && fputc('\n', f) != EOF && fflush(f) == 0;
    if (path && f && fclose(f) != 0) ok = false;
    json_decref(o);
    return ok ? OK : err_set(e, E_IO, "%s cannot be written: is its folder there, and is there room?", path ? path : "standard output");
}

static status run_command(struct profiler *b, struct err *e)
{
    const char *path = cli_text(b->cli, "output"), *video = cli_text(b->cli, "video");
    if (cli_n_words(b->cli) > 0) return err_set(e, E_ARG, "bench profile takes options only, not \"%s\"", cli_word(b->cli, 0));
    if (path && !cli_flag(b->cli, "overwrite") && access(path, F_OK) == 0)
        return err_set(e, E_ARG, "%s exists: -y replaces it", path);
    TRY(cli_engine(b->cli, sched_defaults().max_running, &b->en, e));
    b->start = clock_s();
    b->max_len = engine_info(b->en)->max_model_len;
    if (b->max_len < 256) return err_set(e, E_ARG, "--max-model-len %u: at least 256 are needed here", b->max_len);
    b->model = plan_model_of(engine_config(b->en));
    describe(b);
    TRY(measure_prefill(b, e));
    TRY(measure_decode(b, e));
    TRY(measure_towers(b, e));
    if (video) TRY(measure_host(b, video, e));
    return write_out(b, e);
}

int cli_main_bench_profile(int argc, char **argv)
{
    struct profiler b = { 0 };
    struct cli *c = NULL;
    struct err e = { 0 };
    bool done;
    status st = cli_parse(&profile_command, argc, argv, &c, &done, &e);
    if (st != OK) return cli_fail(NULL, st, &e);
    int code = CLI_OK;
    b.cli = c;
    if (!done) {
        st = run_command(&b, &e);
        if (st != OK) code = cli_fail(c, st, &e);
        if (b.en) engine_close(&b.en);
    }
    cli_free(&c);
    return code;
}
