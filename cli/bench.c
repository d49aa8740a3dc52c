/* cli/bench.c - omnidrop bench latency: the same request again and again, with and without pruning, and how
 * long its parts take. Times are the clock's, from the call that opens the media to the token in question. */
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "engine/engine.h"
#include "engine/version.h"

#define INPUT_LEN 128              /* tokens of a prompt without media, where nobody says how many */
#define RUNS_MAX 32                /* values of a sweep, and the run without pruning */
#define QUESTION "What is seen and heard here?"

static const struct cli_option bench_options[] = {
    { "input-len", 0, CLI_UINT, "N", NULL, "tokens of a prompt of random text [128]" },
    { "prompt-tokens", 0, CLI_UINT, "N", NULL, "the same" },
    { "output-len", 0, CLI_UINT, "N", "32", "tokens of each answer, whatever the model says" },
    { "batch-size", 0, CLI_UINT, "N", "1", "equal requests that run together" },
    { "num-iters", 0, CLI_UINT, "N", "5", "repetitions that count" },
    { "warmup", 0, CLI_UINT, "N", "1", "repetitions before them that do not" },
    { "image", 0, CLI_TEXT, "FILE", NULL, "ask about a picture instead (repeatable; media keep their order)", .repeat = true },
    { "audio", 0, CLI_TEXT, "FILE", NULL, "a sound (repeatable)", .repeat = true },
    { "video", 0, CLI_TEXT, "FILE", NULL, "a film, heard too where it has sound (repeatable)", .repeat = true },
    { "prompt", 'p', CLI_TEXT, "TEXT", QUESTION, "the question about the media" },
    { "fps", 0, CLI_NUMBER, "N", NULL, "frames a second to look at [2]" },
    { "max-pixels", 0, CLI_UINT, "N", NULL, "of a picture or frame; default: the checkpoint's" },
    { "sweep", 0, CLI_TEXT, "KEY=A,B", NULL, "one run for each value of a policy option, and one without pruning" },
    { "json", 0, CLI_FLAG, NULL, NULL, "JSON on stdout in place of the table" },
    { "result-file", 0, CLI_TEXT, "FILE", NULL, "write that JSON to a file too" },
    { "overwrite", 'y', CLI_FLAG, NULL, NULL, "replace the file if it exists" },
    { 0 }
};

static const struct cli_option *const bench_groups[] = { bench_options, cli_policy_options, cli_common_options, NULL };
static const struct cli_command bench_command = {
    .name = "bench", .summary = "How long prefill and decode take, with and without pruning.",
    .usage = "omnidrop bench latency [-m DIR] [--input-len N | --video FILE] [--sweep retention=0.5,0.3] [options]\n"
             "       omnidrop bench profile | plan   (--help of their own)",
    .groups = bench_groups,
    .examples = "omnidrop bench latency --input-len 512 --output-len 64 --num-iters 10\n"
                "omnidrop bench latency --video talk.mp4 --sweep retention=0.4,0.3,0.2 --result-file r.json" };

static struct engine *running_engine;
static void on_signal(int sig)
{
    (void)sig;
    if (running_engine) engine_interrupt(running_engine);
}

/* ---- samples ----------------------------------------------------------------------------------------------- */

struct samples { double *v; size_t n, cap; };   /* v owned */

static status sample_add(struct samples *s, double v, struct err *e)
{
    TRY(mem_grow(&s->v, &s->cap, s->n + 1, sizeof *s->v, e));
    s->v[s->n++] = v;
    return OK;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The smallest sample that at least q of all do not exceed; sorts. 0 where there are none. */
static double percentile(struct samples *s, double q)
{
    if (s->n == 0) return 0;
    qsort(s->v, s->n, sizeof *s->v, ascending);
    size_t i = 0;
    while (i + 1 < s->n && (double)(i + 1) < q * (double)s->n) i++;
    return s->v[i];
}

static double mean(const struct samples *s)
{
    double sum = 0;
    for (size_t i = 0; i < s->n; i++) sum += s->v[i];
    return s->n ? sum / (double)s->n : 0;
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

/* Most bytes that the process had resident since peak_reset (where the kernel allows that; else since its start). */
static uint64_t peak_bytes(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[256];
    unsigned long long kb = 0;
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "VmHWM: %llu", &kb) == 1) break;
    if (f != NULL) fclose(f);
    return (uint64_t)kb * 1024;
}

static void peak_reset(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "we");
    if (f == NULL) return;
    fputs("5", f);
    fclose(f);
}

/* ---- one run ----------------------------------------------------------------------------------------------- */

/* What is asked, the same for all runs. */
struct bench {
    const struct cli *cli;
    struct engine *en;
    struct eng_request_options o;
    uint64_t input_len, batch, iters, warmup;
    bool media;
    struct chat chat;
};

/* One policy and what it took. */
struct run {
    char label[96];
    struct policy_params policy;
    struct samples ttft, itl, e2e, media, towers, prefill;   /* seconds */
    uint32_t n_prompt, n_av;       /* tokens of one request; of these audio, video, image */
    uint64_t n_out;                /* tokens of all answers of all repetitions */
    double mean_retention, media_seconds, wall;
    uint64_t pages, pages_whole, memory;
};

static void run_fini(struct run *r)
{
    struct samples *all[] = { &r->ttft, &r->itl, &r->e2e, &r->media, &r->towers, &r->prefill };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->v);
}

/* Random text of n tokens, not the same from one `salt` to the next. */
static status random_prompt(const struct bench *b, uint32_t n, uint64_t salt, struct prompt *out, struct err *e)
{
    const struct tokenizer *tok = engine_tokenizer(b->en);
    const struct model_config *c = engine_config(b->en);
    const struct prompt_rules rules = {
        .audio_id = c->ids.audio, .image_id = c->ids.image, .video_id = c->ids.video, .audio_bos = c->ids.audio_start,
        .audio_eos = c->ids.audio_end, .vision_bos = c->ids.vision_start, .vision_eos = c->ids.vision_end,
        .position_id_per_seconds = c->position_id_per_seconds, .seconds_per_chunk = c->seconds_per_chunk, .n_query_max = 256 };
    const uint32_t n_ids = tokenizer_n_ids(tok);
    int64_t *all;
    TRY(mem_alloc(&all, (size_t)n * 6, sizeof *all, e));
    int64_t *id = all, *pos = all + n, *kind = pos + 3 * (size_t)n, *chunk = kind + n;
    uint64_t s = salt * 0x9e3779b97f4a7c15u + 1;
    for (uint32_t i = 0; i < n; i++) {
        do {
            s = s * 6364136223846793005u + 1442695040888963407u;
            id[i] = (int64_t)((s >> 33) % n_ids);
        } while (!tokenizer_has(tok, (int32_t)id[i]));
        for (uint32_t k = 0; k < 3; k++) pos[(size_t)k * n + i] = i;
        chunk[i] = -1;
    }
    const status st = prompt_from_arrays(&rules, n, id, pos, kind, chunk, NULL, 0, out, e);
    free(all);
    return st;
}

static status create(const struct bench *b, const struct eng_request_options *o, uint64_t salt, struct eng_request **out,
                     struct err *e)
{
    if (b->media) return eng_request_create(b->en, &b->chat, o, out, e);
    struct prompt p;
    TRY(random_prompt(b, (uint32_t)b->input_len, salt, &p, e));
    const struct eng_given given = { .prompt = &p };
    const status st = eng_request_create_given(b->en, NULL, o, &given, out, e);
    prompt_free(&p);               /* empty where the request has taken it */
    return st;
}

/* Seconds of film and sound in a prompt. */
static double media_seconds(const struct prompt *p)
{
    double sum = 0;
    for (uint32_t i = 0; i < p->n_items; i++) {
        const struct prompt_media *m = &p->items[i].media;
        const double film = m->kind == TOKEN_VIDEO ? m->t * m->second_per_grid : 0, sound = m->n_audio / 25.0;
        sum += film > sound ? film : sound;
    }
    return sum;
}

/* What one finished request adds. `before`: seconds that all requests of the batch took to be made. */
static status take(const struct bench *b, struct run *r, const struct eng_request *req, double before, struct err *e)
{
    const struct eng_result *res = eng_request_result(req);
    if (res->finish == ENG_FAILED) {
        *e = res->error;
        return e->code;
    }
    if (res->finish == ENG_CANCELLED) return err_set(e, E_CANCELLED, "interrupted");
    const struct engine_info *info = engine_info(b->en);
    TRY(sample_add(&r->ttft, before + res->token_s[0], e));
    TRY(sample_add(&r->e2e, before + res->token_s[res->n_ids - 1], e));
    for (uint32_t i = 1; i < res->n_ids; i++) TRY(sample_add(&r->itl, res->token_s[i] - res->token_s[i - 1], e));
    TRY(sample_add(&r->media, res->media_s, e));
    TRY(sample_add(&r->towers, res->tower_s, e));
    TRY(sample_add(&r->prefill, res->prefill_s, e));
    r->n_prompt = res->n_prompt;
    r->n_av = res->n_av[TOKEN_AUDIO] + res->n_av[TOKEN_VIDEO] + res->n_av[TOKEN_IMAGE];
    r->n_out += res->n_ids;
    r->mean_retention = res->mean_retention;
    r->media_seconds = media_seconds(eng_request_prompt(req));
    r->pages = 0;
    for (uint32_t l = 0; l < res->n_layers; l++) r->pages += res->pages[l];
    r->pages_whole = (uint64_t)res->n_layers * ((res->n_prompt + info->page_tokens - 1) / info->page_tokens);
    return OK;
}

/* One repetition of one run; the first `warmup` do not count. */
static status repeat(struct bench *b, struct run *r, uint64_t iteration, struct eng_request **req, struct err *e)
{
    struct eng_request_options o = b->o;
    o.policy = &r->policy;
    peak_reset();
    const double start = clock_s();
    for (uint64_t i = 0; i < b->batch; i++) TRY(create(b, &o, iteration * b->batch + i, &req[i], e));
    const double before = clock_s() - start;
    running_engine = b->en;
    const status st = eng_run(b->en, req, (uint32_t)b->batch, e);
    running_engine = NULL;
    TRY(st);
    if (iteration < b->warmup)
        return eng_request_result(req[0])->finish == ENG_CANCELLED ? err_set(e, E_CANCELLED, "interrupted") : OK;
    r->wall += clock_s() - start;
    for (uint64_t i = 0; i < b->batch; i++) TRY(take(b, r, req[i], before, e));
    const uint64_t memory = peak_bytes();
    if (memory > r->memory) r->memory = memory;
    return OK;
}

/* Can this run be had at all? Asked of all runs before the first begins. */
static status try_run(struct bench *b, struct run *r, struct err *e)
{
    struct eng_request *req = NULL;
    struct eng_request_options o = b->o;
    o.policy = &r->policy;
    const status st = create(b, &o, 0, &req, e);
    eng_request_destroy(b->en, &req);
    return st == OK ? OK : err_prefix(e, "%s", r->label);
}

/* The runs take turns, so that a machine that slows down slows all of them. */
static status repeat_all(struct bench *b, struct run *run, size_t n, struct err *e)
{
    struct eng_request **req;
    TRY(mem_alloc(&req, b->batch, sizeof *req, e));
    status st = OK;
    for (uint64_t i = 0; i < b->warmup + b->iters && st == OK; i++) {
        for (size_t k = 0; k < n && st == OK; k++) {
            st = repeat(b, &run[k], i, req, e);
            for (uint64_t q = 0; q < b->batch; q++) eng_request_destroy(b->en, &req[q]);
        }
        cli_log(b->cli, CLI_DETAIL, "repetition %llu of %llu", (unsigned long long)i + 1,
                (unsigned long long)(b->warmup + b->iters));
    }
    free(req);
    return st;
}

/* ---- which runs -------------------------------------------------------------------------------------------- */

static status policy_run(const struct bench *b, struct run *r, struct err *e)
{
    TRY(cli_policy(b->cli, "none", engine_config(b->en)->text.layers, engine_defaults(b->en), &r->policy, e));
    snprintf(r->label, sizeof r->label, "%s", prune_params_name(&r->policy));
    return OK;
}

/* Value `text` of the sweep's key, on top of the policy options. */
static status sweep_run(const struct bench *b, const char *key, const char *text, struct run *r, struct err *e)
{
    TRY(cli_policy_with(b->cli, "omnidrop", engine_config(b->en)->text.layers, engine_defaults(b->en), key, text, &r->policy, e));
    snprintf(r->label, sizeof r->label, "%s %s=%s", prune_params_name(&r->policy), key, text);
    return OK;
}

/* "retention=0.5,0.3": a run without pruning, then one for each value. */
static status sweep_runs(const struct bench *b, const char *sweep, struct run *run, size_t *n, struct err *e)
{
    char *text = mem_must_strdup(sweep), *eq = strchr(text, '='), *save = NULL;
    status st = OK;
    if (eq == NULL || eq == text || eq[1] == 0)
        st = err_set(e, E_ARG, "--sweep %s: give an option of the policy and its values, as retention=0.5,0.3", sweep);
    if (st == OK) {
        *eq = 0;
        for (char *p = text; *p; p++)
            if (*p == '-') *p = '_';
        run[0].policy = prune_params_none();
        snprintf(run[0].label, sizeof run[0].label, "none");
        *n = 1;
    }
    for (char *v = st == OK ? strtok_r(eq + 1, ",", &save) : NULL; v != NULL && st == OK; v = strtok_r(NULL, ",", &save)) {
        if (*n == RUNS_MAX) st = err_set(e, E_ARG, "--sweep %s: at most %d values", sweep, RUNS_MAX - 1);
        else st = sweep_run(b, text, v, &run[(*n)++], e);
    }
    free(text);
    return st;
}

/* ---- output ------------------------------------------------------------------------------------------------ */

static json_t *times_json(struct samples *s)
{
    return json_pack("{s:f, s:f, s:f, s:f}", "mean", mean(s) * 1e3, "p50", percentile(s, 0.5) * 1e3, "p90",
                     percentile(s, 0.9) * 1e3, "p99", percentile(s, 0.99) * 1e3);
}

static double tokens_per_second(const struct run *r) { return r->wall > 0 ? (double)r->n_out / r->wall : 0; }

/* Seconds of media that one second works through; 0 without media. */
static double times_real(const struct bench *b, struct run *r)
{
    const double e2e = percentile(&r->e2e, 0.5);
    return e2e > 0 ? r->media_seconds * (double)b->batch / e2e : 0;
}

static json_t *run_json(const struct bench *b, struct run *r)
{
    const size_t page = engine_info(b->en)->page_bytes;
    json_t *o = json_pack(
        "{s:s, s:o, s:i, s:i, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:f, s:f, s:f, s:I, s:I, s:I, s:I}", "label", r->label, "policy",
        prune_params_to_json(&r->policy), "prompt_tokens", (int)r->n_prompt, "av_tokens", (int)r->n_av, "mean_retention",
        r->mean_retention, "ttft_ms", times_json(&r->ttft), "itl_ms", times_json(&r->itl), "e2e_ms", times_json(&r->e2e),
        "media_ms", times_json(&r->media), "encode_ms", times_json(&r->towers), "prefill_ms", times_json(&r->prefill),
        "output_tokens_per_s", tokens_per_second(r), "media_seconds", r->media_seconds, "times_real_time", times_real(b, r),
        "kv_pages", (json_int_t)r->pages, "kv_pages_unpruned", (json_int_t)r->pages_whole, "kv_bytes",
        (json_int_t)(r->pages * page), "peak_memory_bytes", (json_int_t)r->memory);
    return o;
}

/* Everything as an object; the caller owns the reference. */
static json_t *bench_json(const struct bench *b, struct run *run, size_t n)
{
    const struct engine_info *i = engine_info(b->en);
    json_t *runs = json_array();
    for (size_t k = 0; k < n; k++) json_array_append_new(runs, run_json(b, &run[k]));
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:o}", "bench", "latency", "version", OMNIDROP_VERSION,
                     "model", i->model_name, "device", i->device, "dtype", i->compute == DT_F32 ? "f32" : "bf16", "batch_size",
                     (json_int_t)b->batch, "output_len", (json_int_t)b->o.max_tokens, "num_iters", (json_int_t)b->iters,
                     "weight_bytes", (json_int_t)i->weight_bytes, "runs", runs);
}

static void print_times(const char *what, struct samples *s)
{
    if (s->n == 0) printf("  %-8s %10s\n", what, "-");
    else
        printf("  %-8s %10.2f %10.2f %10.2f %10.2f ms\n", what, mean(s) * 1e3, percentile(s, 0.5) * 1e3,
               percentile(s, 0.9) * 1e3, percentile(s, 0.99) * 1e3);
}

static void print_runs(const struct bench *b, struct run *run, size_t n)
{
    const struct engine_info *i = engine_info(b->en);
    printf("%s on %s, %s; batch of %llu, %u tokens of answer, %llu repetitions\n", i->model_name, i->device,
           i->compute == DT_F32 ? "f32" : "bf16", (unsigned long long)b->batch, b->o.max_tokens,
           (unsigned long long)b->iters);
    for (size_t k = 0; k < n; k++) {
        struct run *r = &run[k];
        printf("\n%s: %u prompt tokens, %u of film, sound and pictures, mean retention %.4f\n", r->label, r->n_prompt, r->n_av,
               r->mean_retention);
        printf("  %-8s %10s %10s %10s %10s\n", "", "mean", "p50", "p90", "p99");
        print_times("TTFT", &r->ttft);
        print_times("ITL", &r->itl);
        print_times("E2E", &r->e2e);
        print_times("media", &r->media);
        print_times("towers", &r->towers);
        print_times("prefill", &r->prefill);
        const double prefill = percentile(&r->prefill, 0.5), itl = percentile(&r->itl, 0.5);
        printf("  prefill %.0f tokens/s, decode %.1f tokens/s, all in all %.1f tokens/s of answer",
               prefill > 0 ? (double)r->n_prompt * (double)b->batch / prefill : 0, itl > 0 ? (double)b->batch / itl : 0,
               tokens_per_second(r));
        if (r->media_seconds > 0) printf(", %.2f x real time", times_real(b, r));
        printf("\n  KV %llu of %llu pages (%.2f of %.2f MB); peak memory %.1f MB\n", (unsigned long long)r->pages,
               (unsigned long long)r->pages_whole, (double)r->pages * (double)i->page_bytes * 1e-6,
               (double)r->pages_whole * (double)i->page_bytes * 1e-6, (double)r->memory * 1e-6);
        if (k > 0)
            printf("  against %s: TTFT %.2fx, prefill %.2fx, E2E %.2fx\n", run[0].label,
                   percentile(&run[0].ttft, 0.5) / percentile(&r->ttft, 0.5), percentile(&run[0].prefill, 0.5) / prefill,
                   percentile(&run[0].e2e, 0.5) / percentile(&r->e2e, 0.5));
    }
}

/* Whole or not at all: a file beside it, then a new name. */
static status write_json(const char *path, const json_t *o, struct err *e)
{
    char *temp = mem_must(strlen(path) + 6, 1);
    sprintf(temp, "%s.part", path);
    FILE *f = fopen(temp, "we");
    bool ok = f != NULL && json_dumpf(o, f, JSON_INDENT(2)) == 0 && fputc('\n', f) != EOF;
    if (f != NULL && fclose(f) != 0) ok = false;
    if (ok && rename(temp, path) != 0) ok = false;
    if (!ok && f != NULL) unlink(temp);
    free(temp);
    return ok ? OK : err_set(e, E_IO, "%s cannot be written: is its folder there, and is there room?", path);
}

/* ---- the command ------------------------------------------------------------------------------------------- */

static status check_words(const struct cli *c, struct err *e)
{
    if (cli_n_words(c) == 1 && strcmp(cli_word(c, 0), "latency") == 0) return OK;
    if (cli_n_words(c) == 0)
        return err_set(e, E_ARG, "bench what? Say: omnidrop bench latency, omnidrop bench profile or omnidrop bench plan");
    return err_set(e, E_ARG, "bench %s: this build measures \"latency\" and \"profile\", and computes \"plan\"",
                   cli_word(c, cli_n_words(c) > 1));
}

/* The question with its media, or nothing where the prompt is random text. */
static status make_chat(struct bench *b, struct err *e)
{
    static const struct { const char *name; enum chat_part_kind kind; } KINDS[] = {
        { "image", PART_IMAGE }, { "audio", PART_AUDIO }, { "video", PART_VIDEO } };
    TRY(chat_add_message(&b->chat, CHAT_USER, e));
    for (size_t i = 0; i < cli_n_given(b->cli); i++)
        for (size_t k = 0; k < sizeof KINDS / sizeof *KINDS; k++)
            if (strcmp(cli_given_at(b->cli, i).option->name, KINDS[k].name) == 0) {
                TRY(chat_add_media(&b->chat, KINDS[k].kind, cli_given_at(b->cli, i).value, e));
                b->media = true;
            }
    const char *text = cli_text(b->cli, "prompt");
    return chat_add_text(&b->chat, text, strlen(text), e);
}

static status read_options(struct bench *b, struct err *e)
{
    const struct cli *c = b->cli;
    const char *file = cli_text(c, "result-file"), *length = cli_given(c, "input-len") ? "input-len" : "prompt-tokens";
    uint64_t output = 0, max_pixels = 0, seed = 0;
    TRY(check_words(c, e));
    b->input_len = INPUT_LEN;
    TRY(cli_uint(c, length, 1, 1u << 24, &b->input_len, e));
    TRY(cli_uint(c, "output-len", 1, 1u << 24, &output, e));
    TRY(cli_uint(c, "batch-size", 1, 4096, &b->batch, e));
    TRY(cli_uint(c, "num-iters", 1, 1000000, &b->iters, e));
    TRY(cli_uint(c, "warmup", 0, 1000000, &b->warmup, e));
    b->o = eng_request_defaults();
    TRY(cli_number(c, "fps", 0.001, 240, &b->o.fps, e));
    TRY(cli_uint(c, "max-pixels", 1, UINT64_MAX / 2, &max_pixels, e));
    TRY(cli_uint(c, "seed", 0, UINT64_MAX, &seed, e));
    b->o.max_pixels = max_pixels;
    b->o.max_tokens = (uint32_t)output;
    b->o.sample.seed = seed;
    b->o.ignore_eos = true;
    b->o.auto_audio = true;
    TRY(make_chat(b, e));
    if (b->media && cli_given(c, length))
        return err_set(e, E_ARG, "--%s is for prompts of random text: with media the prompt is what they and the question "
                                 "make", length);
    if (file != NULL && !cli_flag(c, "overwrite") && access(file, F_OK) == 0)
        return err_set(e, E_ARG, "%s exists: -y replaces it", file);
    return OK;
}

static status run_command(struct bench *b, struct err *e)
{
    struct run *run;
    size_t n = 1;
    const char *sweep = cli_text(b->cli, "sweep"), *file = cli_text(b->cli, "result-file");
    TRY(read_options(b, e));
    TRY(cli_engine(b->cli, 1, &b->en, e));
    TRY(mem_alloc(&run, RUNS_MAX, sizeof *run, e));
    status st = sweep ? sweep_runs(b, sweep, run, &n, e) : policy_run(b, &run[0], e);
    for (size_t k = 0; k < n && st == OK; k++) st = try_run(b, &run[k], e);
    if (st == OK) st = repeat_all(b, run, n, e);
    if (st == OK) {
        json_t *o = bench_json(b, run, n);
        if (cli_flag(b->cli, "json")) {
            json_dumpf(o, stdout, JSON_INDENT(2));
            printf("\n");
        } else {
            print_runs(b, run, n);
        }
        fflush(stdout);
        if (file != NULL) st = write_json(file, o, e);
        json_decref(o);
    }
    for (size_t k = 0; k < RUNS_MAX; k++) run_fini(&run[k]);
    free(run);
    return st;
}

int cli_main_bench(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "plan") == 0) return cli_main_bench_plan(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "profile") == 0) return cli_main_bench_profile(argc - 1, argv + 1);
    struct cli *c = NULL;
    struct err e = { 0 };
    bool done;
    status st = cli_parse(&bench_command, argc, argv, &c, &done, &e);
    if (st != OK) return cli_fail(NULL, st, &e);
    struct bench b = { .cli = c };
    int code = CLI_OK;
    if (!done) {
        signal(SIGINT, on_signal);
        signal(SIGTERM, on_signal);
        chat_init(&b.chat);
        st = run_command(&b, &e);
        if (st != OK) code = cli_fail(c, st, &e);
        chat_free(&b.chat);
        if (b.en) engine_close(&b.en);
    }
    cli_free(&c);
    return code;
}
