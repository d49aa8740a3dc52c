/* cli/bench_plan.c - omnidrop bench plan: what a cluster of such devices would do with such requests, `none` beside a
 * policy, by simulation (scheduler/simulate.h). Nothing is loaded but sizes; what is printed is computed, and as good as
 * the profile. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/plan_profile.h"
#include "engine/engine.h"

#define GPUS_MAX 32                /* sizes of a sweep */
#define LINES_MAX 100000           /* of a trace */
#define FULL 1.5                   /* clients for each request that fits, where nobody says how many ask */

static const struct cli_option plan_options[] = {
    { "profile", 0, CLI_TEXT, "NAME", "h200", "the device: h200, h100, a100 (computed), or a file of bench profile" },
    { "show-profile", 0, CLI_FLAG, NULL, NULL, "print the profile as JSON and end: to be changed and given as a file" },
    { "gpus", 0, CLI_TEXT, "LIST", "1", "devices in all, one run for each number: 1,8,64,512,4096" },
    { "tp", 0, CLI_UINT, "T", "1", "devices of one group; the others are groups beside it" },
    { "mix", 0, CLI_TEXT, "NAME", "minute-clips", "requests: minute-clips, ten-minute-films, transcription, mixed" },
    { "trace", 0, CLI_TEXT, "FILE", NULL,
      "requests, one JSON object a line: seconds, video, audio, prompt, output, max_tokens, n, priority, media,"
      " width, height, bytes" },
    { "rate", 0, CLI_NUMBER, "R", NULL, "requests a second for each device; default: so many clients that all is full" },
    { "clients", 0, CLI_UINT, "N", NULL, "for each device: each asks again when it has its answer" },
    { "max-num-seqs", 0, CLI_UINT, "N", "1024", "requests of a group that run at once (serve has 32)" },
    { "max-queue", 0, CLI_UINT, "N", "4096", "requests of a group that may wait" },
    { "itl-target", 0, CLI_SECONDS, "TIME", "50ms", "time between two tokens that prefill beside must leave" },
    { "group-rows", 0, CLI_UINT, "N", NULL, "rows that march together [8192]" },
    { "overtake-max", 0, CLI_UINT, "N", NULL, "later requests that may pass one that waits for pages [16]" },
    { "media-cache", 0, CLI_UINT, "BYTES", "1073741824", "encoder outputs that a group keeps; 0: none" },
    { "prefix-cache", 0, CLI_UINT, "BYTES", "1073741824", "hidden states that a group keeps for the next question; 0: nothing is shared" },
    { "media-by-url", 0, CLI_FLAG, NULL, NULL, "groups fetch media themselves: they do not pass the front end" },
    { "media-mbit", 0, CLI_NUMBER, "X", "2", "Mbit of a second of media, where a trace does not say" },
    { "fps", 0, CLI_NUMBER, "N", NULL, "frames a second to look at [2]" },
    { "frame", 0, CLI_TEXT, "WxH", "336x336", "size of films, where a trace does not say" },
    { "memory-utilization", 0, CLI_NUMBER, "X", "0.92", "share of a device's memory for weights, work and pages" },
    { "front-cores", 0, CLI_NUMBER, "N", NULL, "cores of the front end; default: the profile's" },
    { "requests", 0, CLI_UINT, "N", NULL, "that end in each simulated group while it is measured" },
    { "simulate-groups", 0, CLI_UINT, "N", "16", "of more groups so many, with their share of the stream; 0: all" },
    { "json", 0, CLI_FLAG, NULL, NULL, "JSON on stdout in place of the table" },
    { 0 }
};
static const struct cli_option *const plan_groups[] = { plan_options, cli_policy_options, cli_common_options, NULL };
static const struct cli_command plan_command = {
    .name = "bench plan", .summary = "What a cluster would do with such requests: the real scheduler over simulated devices.",
    .usage = "omnidrop bench plan [-m 7b|3b|DIR] [--profile NAME|FILE] [--gpus LIST] [--tp T] [--mix NAME | --trace FILE] [options]",
    .groups = plan_groups,
    .examples = "omnidrop bench plan --profile h200 --gpus 1,8,64,512,4096 --retention 0.3\n"
                "omnidrop bench plan -m 3b --profile a100 --tp 2 --gpus 8 --mix ten-minute-films --rate 0.1\n"
                "omnidrop bench profile -o measured.json && omnidrop bench plan --profile measured.json --clients 8" };

struct plan {
    const struct cli *cli;
    struct plan_profile profile;
    struct sim_model model;
    char model_name[1024];
    bool in_folder;                /* model_name is a checkpoint's folder */
    struct media_video_options video;      /* how the checkpoint wants films */
    uint32_t width, height;
    double mbit;
    struct sim_shape *shape;       /* [n_shapes] owned */
    size_t n_shapes, cap;
    uint32_t gpus[GPUS_MAX], n_gpus, tp;
    double utilization, rate;
    uint64_t clients, requests;
    struct policy_params policy[2];
    uint32_t n_policies;
    struct sim_options o;
};

/* One run's figures. */
struct row {
    uint32_t gpus;
    const char *policy;
    uint64_t clients;
    struct sim_result r;
    double took;
};

/* ---- requests ---------------------------------------------------------------------------------------------- */

struct request {
    double seconds, prompt, output, max_tokens, n, priority, width, height, bytes;
    bool video, audio;
    const char *media;
};

static uint64_t media_number(const char *id)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *id; id++) h = (h ^ (uint8_t)*id) * 0x100000001b3u;
    return h ? h : 1;
}

/* Counts as for a real request: the same frames, grids and tokens of sound. */
static status add_request(struct plan *p, const struct request *r, struct err *e)
{
    struct sim_shape s = { .n_text = (uint32_t)r->prompt, .n_query = (uint32_t)fmin(r->prompt, 256), .n_out = (uint32_t)r->output,
                           .n_new = (uint32_t)fmax(r->output, r->max_tokens), .n_choices = (uint32_t)r->n,
                           .priority = (int)r->priority };
    if (r->seconds > 0 && (r->video || r->audio)) {
        s.n_items = 1;
        s.item.kind = r->video ? TOKEN_VIDEO : TOKEN_AUDIO;
        s.host_s = p->profile.request_s + r->seconds * ((r->video ? p->profile.film_s : 0) + (r->audio ? p->profile.sound_s : 0));
        s.bytes = cli_flag(p->cli, "media-by-url") ? 0 : r->bytes > 0 ? r->bytes : r->seconds * p->mbit * 1e6 / 8;
        s.media = r->media ? media_number(r->media) : 0;
        if (r->audio) {
            s.frames = (uint32_t)media_mel_frames((size_t)(r->seconds * MEDIA_RATE));
            s.item.n_audio = (uint32_t)media_audio_tokens(s.frames);
        }
        if (r->video) {
            struct media_video_plan plan;
            const double rate = 25;
            TRY(media_video_plan((uint64_t)(r->seconds * rate), rate, r->height > 0 ? (uint32_t)r->height : p->height,
                                 r->width > 0 ? (uint32_t)r->width : p->width, &p->video, &plan, e));
            s.item.steps = plan.grid_t;
            s.patches = plan.grid_h * plan.grid_w;
            s.item.step_tokens = s.patches / 4;
        }
    }
    TRY(mem_grow(&p->shape, &p->cap, p->n_shapes + 1, sizeof *p->shape, e));
    p->shape[p->n_shapes++] = s;
    return OK;
}

static status read_line(struct plan *p, const char *line, size_t n, struct err *e)
{
    struct request r = { .prompt = 40, .output = 64, .video = true, .audio = true };
    const struct { const char *name; double *to; double least, most; } number[] = {
        { "seconds", &r.seconds, 0, 1e6 }, { "prompt", &r.prompt, 1, 1e7 }, { "output", &r.output, 1, 1e7 },
        { "max_tokens", &r.max_tokens, 1, 1e7 }, { "n", &r.n, 1, 128 }, { "priority", &r.priority, -1e9, 1e9 },
        { "width", &r.width, 1, 65536 }, { "height", &r.height, 1, 65536 }, { "bytes", &r.bytes, 0, 1e15 } };
    json_error_t why;
    json_t *o = json_loadb(line, n, JSON_REJECT_DUPLICATES, &why), *v;
    const char *key;
    char id[64];
    status st = OK;
    if (!json_is_object(o)) st = err_set(e, E_INPUT, "not a JSON object");
    if (st == OK)
        json_object_foreach(o, key, v) {
            size_t i = 0;
            while (i < sizeof number / sizeof *number && strcmp(key, number[i].name) != 0) i++;
            if (i < sizeof number / sizeof *number) {
                *number[i].to = json_number_value(v);
                if (!json_is_number(v) || !(*number[i].to >= number[i].least && *number[i].to <= number[i].most))
                    st = err_set(e, E_INPUT, "%s: a number from %g to %g is wanted", key, number[i].least, number[i].most);
            } else if ((strcmp(key, "video") == 0 || strcmp(key, "audio") == 0) && json_is_boolean(v)) {
                *(*key == 'v' ? &r.video : &r.audio) = json_is_true(v);
            } else if (strcmp(key, "media") == 0 && (json_is_string(v) || json_is_integer(v))) {
                if (json_is_integer(v)) snprintf(id, sizeof id, "%lld", (long long)json_integer_value(v));
                r.media = json_is_string(v) ? json_string_value(v) : id;
            } else {
                st = err_set(e, E_INPUT, "%s: no such key of a trace, or not of its kind", key);
            }
            if (st != OK) break;
        }
    if (st == OK) st = add_request(p, &r, e);
    json_decref(o);
    return st;
}

static status read_trace(struct plan *p, const char *path, struct err *e)
{
    FILE *f = fopen(path, "re");
    char *line = NULL;
    size_t cap = 0, number = 0;
    ssize_t n;
    status st = OK;
    if (f == NULL) return err_set(e, E_INPUT, "%s: %s", path, strerror(errno));
    while (st == OK && (n = getline(&line, &cap, f)) >= 0) {
        number++;
        while (n > 0 && strchr(" \t\r\n", line[n - 1])) n--;
        if (n == 0) continue;
        if (p->n_shapes == LINES_MAX) st = err_set(e, E_INPUT, "a trace has at most %d requests", LINES_MAX);
        else st = read_line(p, line, (size_t)n, e);
    }
    if (st != OK) err_prefix(e, "%s: line %zu", path, number);
    else if (p->n_shapes == 0) st = err_set(e, E_INPUT, "%s has no requests", path);
    free(line);
    fclose(f);
    return st;
}

static status read_mix(struct plan *p, const char *name, struct err *e)
{
    static const struct request clip = { .seconds = 60, .prompt = 40, .output = 64, .video = true, .audio = true },
                                film = { .seconds = 600, .prompt = 60, .output = 200, .video = true, .audio = true },
                                window = { .seconds = 30, .prompt = 20, .output = 120, .max_tokens = 200, .audio = true },
                                text = { .prompt = 500, .output = 200, .max_tokens = 500 };
    static const struct { const char *name; const struct request *r[8]; } MIXES[] = {
        { "minute-clips", { &clip } },
        { "ten-minute-films", { &film } },
        { "transcription", { &window } },
        { "mixed", { &clip, &clip, &clip, &clip, &film, &window, &window, &text } } };
    for (size_t i = 0; i < sizeof MIXES / sizeof *MIXES; i++) {
        if (strcmp(name, MIXES[i].name) != 0) continue;
        for (size_t k = 0; k < 8 && MIXES[i].r[k]; k++) TRY(add_request(p, MIXES[i].r[k], e));
        return OK;
    }
    return err_set(e, E_ARG, "--mix %s: minute-clips, ten-minute-films, transcription or mixed; others come from --trace", name);
}

/* ---- options ----------------------------------------------------------------------------------------------- */

static status read_gpus(struct plan *p, struct err *e)
{
    const char *at = cli_text(p->cli, "gpus");
    for (;;) {
        char *end;
        const unsigned long n = strtoul(at, &end, 10);
        if (end == at || (*end && *end != ',') || n == 0 || n > 1 << 20)
            return err_set(e, E_ARG, "--gpus %s: numbers of devices, as 1,8,64", cli_text(p->cli, "gpus"));
        if (n % p->tp) return err_set(e, E_ARG, "--gpus %lu: no whole number of groups of --tp %u", n, p->tp);
        if (p->n_gpus == GPUS_MAX) return err_set(e, E_ARG, "--gpus: at most %d sizes", GPUS_MAX);
        p->gpus[p->n_gpus++] = (uint32_t)n;
        if (*end == 0) return OK;
        at = end + 1;
    }
}

static status read_model(struct plan *p, struct err *e)
{
    const char *name = cli_text(p->cli, "model");
    char bundled[1024];
    struct model_config c;
    if (name == NULL && !p->profile.measured) name = "7b";
    if (name && plan_model_preset(name, &p->model)) snprintf(p->model_name, sizeof p->model_name, "Qwen2.5-Omni-%s", name);
    else {
        if (name == NULL) {
            TRY(engine_bundled_model(bundled, sizeof bundled, e));
            name = bundled;
        }
        TRY(model_config_load(name, &c, e));
        p->model = plan_model_of(&c);
        p->video = engine_video_options(&c, 0, 0, 0);
        snprintf(p->model_name, sizeof p->model_name, "%s", name);
        p->in_folder = true;
    }
    p->model.value_bytes = p->profile.value_bytes;
    p->model.kv_value_bytes = p->profile.kv_value_bytes;
    if (p->tp > p->model.work.H) return err_set(e, E_ARG, "--tp %u: the model has %u heads", p->tp, p->model.work.H);
    return OK;
}

/* Pages of a group: those of each of its ranks, which hold their heads of every page. */
static status count_pages(struct plan *p, struct err *e)
{
    const struct work_shape *w = &p->model.work;
    const uint32_t heads = (w->G + p->tp - 1) / p->tp;
    const double page = 2.0 * heads * w->D * p->model.kv_value_bytes * p->profile.page_tokens;
    const double weights = plan_weight_bytes(&p->model, p->tp);
    double pool = p->profile.pool_bytes;
    uint64_t given = 0;
    TRY(cli_uint(p->cli, "kv-bytes", 0, (uint64_t)1 << 46, &given, e));
    if (given) pool = (double)given;
    else if (pool <= 0) pool = p->profile.memory_bytes * p->utilization - weights - p->profile.work_bytes;
    if (pool < page)
        return err_set(e, E_ARG, "the weights need %.1f GB on each device, work %.1f GB, and %.1f GB of %.1f GB may be used: "
                                 "no room for pages; give --tp or --memory-utilization",
                       weights / 1e9, p->profile.work_bytes / 1e9, p->profile.memory_bytes * p->utilization / 1e9,
                       p->profile.memory_bytes / 1e9);
    if (pool / page > UINT32_MAX / 2) return err_set(e, E_ARG, "a pool of %.0f pages is too large", pool / page);
    p->o.n_pages = (uint32_t)(pool / page);
    p->o.page_tokens = (uint32_t)p->profile.page_tokens;
    return OK;
}

static status read_scheduler(struct plan *p, struct err *e)
{
    const struct cli *c = p->cli;
    struct sched_options *s = &p->o.sched;
    uint64_t running = 0, waiting = 0, rows, overtake, simulated = 0, cache = 0, hidden = 0, seed = 0;
    *s = sched_defaults();
    rows = s->group_rows;
    overtake = s->overtake_max;
    TRY(cli_uint(c, "max-num-seqs", 1, 1u << 20, &running, e));
    TRY(cli_uint(c, "max-queue", 1, 1u << 30, &waiting, e));
    TRY(cli_uint(c, "group-rows", 1, 1u << 30, &rows, e));
    TRY(cli_uint(c, "overtake-max", 1, 1u << 20, &overtake, e));
    TRY(cli_seconds(c, "itl-target", &s->itl_target_s, e));
    TRY(cli_uint(c, "simulate-groups", 0, 1u << 20, &simulated, e));
    TRY(cli_uint(c, "media-cache", 0, UINT64_MAX, &cache, e));
    TRY(cli_uint(c, "prefix-cache", 0, UINT64_MAX, &hidden, e));
    TRY(cli_uint(c, "seed", 0, UINT64_MAX, &seed, e));
    s->max_running = (uint32_t)running;
    s->group_rows = (uint32_t)rows;
    s->overtake_max = (uint32_t)overtake;
    p->o.max_waiting = (uint32_t)waiting;
    p->o.simulated = (uint32_t)simulated;
    p->o.media_cache_bytes = cache;
    p->o.hidden_bytes = hidden;
    p->o.seed = seed;
    return OK;
}

static status read_policies(struct plan *p, struct err *e)
{
    const uint32_t L = p->model.work.L;
    p->policy[0] = prune_params_none();
    struct model_defaults own = model_defaults_none();
    if (p->in_folder) TRY(model_defaults_load(p->model_name, L, &own, e));
    const status st = cli_policy(p->cli, "omnidrop", L, &own, &p->policy[1], e);
    model_defaults_free(&own);
    if (st != OK) return st;
    p->n_policies = strcmp(prune_params_name(&p->policy[1]), "none") == 0 ? 1 : 2;
    return OK;
}

static status read_options(struct plan *p, struct err *e)
{
    const struct cli *c = p->cli;
    uint64_t tp = 1;
    unsigned w, h;
    char rest;
    if (cli_n_words(c) > 0) return err_set(e, E_ARG, "bench plan takes options only, not \"%s\"", cli_word(c, 0));
    TRY(cli_uint(c, "tp", 1, 1024, &tp, e));
    p->tp = (uint32_t)tp;
    TRY(plan_profile_load(cli_text(c, "profile"), &p->profile, e));
    TRY(read_gpus(p, e));
    TRY(read_model(p, e));
    TRY(cli_number(c, "media-mbit", 0, 1e6, &p->mbit, e));
    TRY(cli_number(c, "memory-utilization", 0.01, 1, &p->utilization, e));
    TRY(cli_number(c, "fps", 0.001, 240, &p->video.fps, e));
    TRY(cli_number(c, "front-cores", 0.001, 1e6, &p->profile.front.cores, e));
    if (sscanf(cli_text(c, "frame"), "%5ux%5u%c", &w, &h, &rest) != 2 || w == 0 || h == 0)
        return err_set(e, E_ARG, "--frame %s: width and height in pixels, as 640x360", cli_text(c, "frame"));
    p->width = w;
    p->height = h;
    TRY(cli_number(c, "rate", 1e-9, 1e9, &p->rate, e));
    TRY(cli_uint(c, "clients", 1, 1u << 24, &p->clients, e));
    TRY(cli_uint(c, "requests", 1, 1u << 30, &p->requests, e));
    if (p->rate > 0 && p->clients) return err_set(e, E_ARG, "--rate and --clients exclude each other");
    if (cli_text(c, "trace") && cli_given(c, "mix")) return err_set(e, E_ARG, "--trace and --mix exclude each other");
    TRY(count_pages(p, e));
    TRY(read_scheduler(p, e));
    TRY(read_policies(p, e));
    return cli_text(c, "trace") ? read_trace(p, cli_text(c, "trace"), e) : read_mix(p, cli_text(c, "mix"), e);
}

/* ---- runs -------------------------------------------------------------------------------------------------- */

/* Requests that fit a group's pool on the average, under the policy asked for. */
static status that_fit(const struct plan *p, double *out, struct err *e)
{
    double pages = 0, sequences = 0;
    for (size_t i = 0; i < p->n_shapes; i++) {
        const struct sim_shape *s = &p->shape[i];
        const struct prune_shape shape = { .n_layers = p->model.work.L, .n_items = s->n_items, .item = &s->item };
        struct policy_plan plan;
        TRY(prune_plan_shape(&p->policy[p->n_policies - 1], &shape, &plan, e));
        const double n = s->n_choices ? s->n_choices : 1, further = (n - 1) * (ceil((double)s->n_new / p->o.page_tokens) + 1);
        for (uint32_t l = 0; l < p->model.work.L; l++)
            pages += ceil((double)(prune_plan_rows(&plan, l) + s->n_text + s->n_new) / p->o.page_tokens) + further;
        sequences += n;
        prune_plan_free(&plan);
    }
    const double each = (double)p->n_shapes;
    *out = fmax(1, fmin(p->o.n_pages / (pages / each), p->o.sched.max_running / (sequences / each)));
    return OK;
}

static status one_run(struct plan *p, uint32_t gpus, uint32_t policy, struct row *out, struct err *e)
{
    struct sim_options o = p->o;
    double fit = 0;
    TRY(that_fit(p, &fit, e));
    o.groups = gpus / p->tp;
    o.tp = p->tp;
    o.device = p->profile.device;
    o.front = p->profile.front;
    o.model = p->model;
    o.policy = &p->policy[policy];
    o.shape = p->shape;
    o.n_shapes = (uint32_t)p->n_shapes;
    o.rate = p->rate * gpus;
    const double a_group = p->clients ? (double)p->clients * p->tp : ceil(FULL * fit);
    o.clients = p->rate > 0 ? 0 : (uint64_t)(a_group * o.groups);
    const uint32_t n = o.simulated && o.simulated < o.groups ? o.simulated : o.groups;
    const double fill = p->rate > 0 ? fit : a_group;
    o.warmup = (uint64_t)(n * fmax(p->requests ? fill : 100, fill));
    o.measured = (uint64_t)n * (p->requests ? p->requests : (uint64_t)fmax(200, 2 * fill));
    const double start = clock_s();
    *out = (struct row){ .gpus = gpus, .policy = prune_params_name(&p->policy[policy]), .clients = o.clients };
    TRY(sim_run(&o, &out->r, e));
    out->took = clock_s() - start;
    cli_log(p->cli, CLI_DETAIL, "%u devices, %s: %llu requests in %.1f s, %llu steps", gpus, out->policy,
            (unsigned long long)(o.warmup + o.measured), out->took, (unsigned long long)out->r.n_steps);
    return OK;
}

/* What is full first. A share of the time, or of a resource. */
static const char *first_limit(const struct sim_result *r, char *text, size_t cap)
{
    const struct { const char *name; double share; } full[] = {
        { "the front end's network", r->link }, { "the front end", r->front }, { "media decoding", r->hosts } };
    const char *most = "device";
    double share = r->busy;
    for (size_t i = 0; i < sizeof full / sizeof *full; i++) {
        if (full[i].share >= 0.95) return full[i].name;
        if (full[i].share > share) most = full[i].name, share = full[i].share;
    }
    if (r->waits_pages > 0.5) return "memory";
    if (r->waits_slots > 0.5) return "max-num-seqs";
    if (r->busy >= 0.9) return r->reduce > 0.4 * r->busy ? "interconnect" : "device";
    snprintf(text, cap, "none (%s %.0f %%)", most, 100 * share);
    return text;
}

static json_t *times_json(const struct sim_times *t)
{
    return json_pack("{s:f, s:f, s:f, s:f}", "mean", t->mean, "p50", t->p50, "p90", t->p90, "p99", t->p99);
}

static json_t *row_json(const struct plan *p, const struct row *w)
{
    char text[96];
    const struct sim_result *r = &w->r;
    return json_pack(
        "{s:i, s:i, s:i, s:i, s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, "
        "s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:s, s:f, s:f}",
        "gpus", (int)w->gpus, "tp", (int)p->tp, "groups", (int)r->groups, "groups_simulated", (int)r->simulated, "policy", w->policy,
        "clients", (json_int_t)w->clients, "at_once_mean", r->at_once_mean, "at_once_max", r->at_once_max, "requests_per_s",
        r->requests_s, "tokens_per_s_gpu", r->tokens_s / w->gpus, "prompt_tokens_per_s_gpu", r->prompt_tokens_s / w->gpus,
        "first_token_s", times_json(&r->first), "between_tokens_s", times_json(&r->between), "request_s", times_json(&r->whole),
        "pages_mean", r->pages_mean, "pages_max", r->pages_max, "pages_of_a_request", r->pages_promised, "pages_unpruned",
        r->pages_unpruned, "pages_freed_per_s", r->pages_freed_s, "device_busy", r->busy, "all_reduce", r->reduce, "media_decoding",
        r->hosts, "front_end", r->front, "front_end_network", r->link, "waits_for_pages", r->waits_pages, "waits_for_slots",
        r->waits_slots, "media_cached", r->media_cached, "prefix_found", r->prefix_found, "preempted",
        (json_int_t)r->n_preempted, "refused", (json_int_t)r->n_refused, "shapes_too_large", (json_int_t)r->n_too_large, "first_limit",
        first_limit(r, text, sizeof text), "seconds_simulated", r->seconds, "took_s", w->took);
}

static json_t *plan_json(const struct plan *p, const struct row *row, size_t n)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(rows, row_json(p, &row[i]));
    return json_pack("{s:o, s:s, s:b, s:o, s:o, s:i, s:i, s:f, s:o}", "model", cli_json_string(p->model_name), "profile",
                     p->profile.name, "measured", p->profile.measured, "source", cli_json_string(p->profile.source), "policy",
                     prune_params_to_json(&p->policy[p->n_policies - 1]), "pages", (int)p->o.n_pages, "page_tokens",
                     (int)p->o.page_tokens, "weight_bytes", plan_weight_bytes(&p->model, p->tp), "runs", rows);
}

static void print_rows(const struct plan *p, const struct row *row, size_t n)
{
    char text[96];
    printf("%s on %s (%s), tp %u; %u pages of %u tokens a group\n", p->model_name, p->profile.name,
           p->profile.measured ? "profile measured, plan computed" : "all computed, nothing measured", p->tp, p->o.n_pages,
           p->o.page_tokens);
    printf("%6s %-10s %9s %9s %9s %9s  %-21s  %-11s %6s %6s  %s\n", "GPUs", "policy", "at once", "most", "req/s", "tok/s/GPU",
           "first p50, 90, 99 s", "gap 50,99 ms", "busy", "freed", "first limit");
    for (size_t i = 0; i < n; i++) {
        const struct sim_result *r = &row[i].r;
        const double freed = r->pages_unpruned > 0 ? 1 - r->pages_promised / r->pages_unpruned : 0;
        printf("%6u %-10s %9.1f %9.0f %9.3g %9.1f  %6.2f %6.2f %7.2f  %5.1f %6.1f %5.0f%% %5.0f%%  %s\n", row[i].gpus,
               row[i].policy, r->at_once_mean, r->at_once_max, r->requests_s, r->tokens_s / row[i].gpus, r->first.p50, r->first.p90,
               r->first.p99, r->between.p50 * 1e3, r->between.p99 * 1e3, 100 * r->busy, 100 * freed,
               first_limit(r, text, sizeof text));
        if (i + 1 == n || row[i + 1].gpus != row[i].gpus) {
            printf("       of the time: all-reduce %.0f %%, media decoding %.1f %%, front end %.1f %%, its network %.1f %%\n",
                   100 * r->reduce, 100 * r->hosts, 100 * r->front, 100 * r->link);
            if (r->simulated < r->groups)
                printf("       %u of %u groups simulated, with their share of the stream\n", r->simulated, r->groups);
        }
        if (r->prefix_found > 0) printf("       %.0f %% of the prompts with media began with another's pages\n", 100 * r->prefix_found);
        if (r->n_preempted) printf("       %llu preempted\n", (unsigned long long)r->n_preempted);
        if (r->n_refused) printf("       %llu refused: more come than can be served\n", (unsigned long long)r->n_refused);
        if (r->n_too_large) printf("       %llu of the kinds of requests never fit the pool\n", (unsigned long long)r->n_too_large);
    }
}

static status run_all(struct plan *p, struct err *e)
{
    struct row *row;
    size_t n = 0;
    status st = OK;
    TRY(mem_alloc(&row, 2 * (size_t)p->n_gpus, sizeof *row, e));
    for (uint32_t g = 0; g < p->n_gpus && st == OK; g++)
        for (uint32_t k = 0; k < p->n_policies && st == OK; k++) {
            st = one_run(p, p->gpus[g], k, &row[n], e);
            if (st == E_FULL && p->n_policies == 2 && k == 0) {    /* what never fits unpruned may fit pruned */
                cli_log(p->cli, CLI_NOTE, "none: %s", e->text);
                st = OK;
                continue;
            }
            n++;
        }
    if (st == OK && cli_flag(p->cli, "json")) {
        json_t *o = plan_json(p, row, n);
        json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        printf("\n");
        json_decref(o);
    } else if (st == OK) {
        print_rows(p, row, n);
    }
    free(row);
    return st;
}

static status run_command(struct plan *p, struct err *e)
{
    if (cli_flag(p->cli, "show-profile")) {
        TRY(plan_profile_load(cli_text(p->cli, "profile"), &p->profile, e));
        json_t *o = plan_profile_json(&p->profile);
        json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        printf("\n");
        json_decref(o);
        return OK;
    }
    TRY(read_options(p, e));
    return run_all(p, e);
}

int cli_main_bench_plan(int argc, char **argv)
{
    struct plan p = { 0 };
    struct cli *c = NULL;
    struct err e = { 0 };
    bool done;
    status st = cli_parse(&plan_command, argc, argv, &c, &done, &e);
    if (st != OK) return cli_fail(NULL, st, &e);
    int code = CLI_OK;
    p.cli = c;
    if (!done) {
        st = run_command(&p, &e);
        if (st != OK) code = cli_fail(c, st, &e);
    }
    free(p.shape);
    cli_free(&c);
    return code;
}
