/* cli/batch.c - omnidrop batch: the requests of a file, answered line by line into another. docs/http-api.md 4.
 * Under mpirun rank 0 has the files and the queue; every group works on as many lines at once as one process would, and
 * takes the next, longest first, when one is over (cli/ranks.h). */
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/batch.h"
#include "api/batch_engine.h"
#include "api/groups.h"
#include "api/loader.h"
#include "api/remote.h"
#include "base/clock.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/ranks.h"
#include "engine/progress.h"
#include "engine/service.h"

#define SHOWN 20                   /* failed lines that are named on stderr */

static const struct cli_option batch_options[] = {
    { "input-file", 'i', CLI_TEXT, "FILE", NULL,
      "lines {\"custom_id\",\"method\":\"POST\",\"url\",\"body\"}; media in them may be "
      "files, relative to FILE",
      NULL, NULL },
    { "output-file", 'o', CLI_TEXT, "FILE", NULL, "the answers, in order of completion", NULL, NULL },
    { "error-file", 0, CLI_TEXT, "FILE", NULL, "lines that failed; default: they stand in the output", NULL, NULL },
    { "endpoint", 0, CLI_TEXT, "URL", NULL, "refuse lines with another url", NULL, NULL },
    { "resume", 0, CLI_FLAG, NULL, NULL, "go on with an output: what is answered stays, what failed runs again", NULL,
      NULL },
    { "overwrite", 'y', CLI_FLAG, NULL, NULL, "overwrite outputs that are there", NULL, NULL },
    { "max-concurrency", 0, CLI_UINT, "N", "8", "lines that run at once", NULL, NULL },
    { "fail-fast", 0, CLI_FLAG, NULL, NULL, "begin no more lines after one failed", NULL, NULL },
    { "served-model-name", 0, CLI_TEXT, "NAME", NULL,
      "name that lines may give as model (repeatable); default: the model's own", .repeat = true },
    { "allowed-media-domains", 0, CLI_TEXT, "HOST", NULL,
      "host that media may be fetched from (repeatable; \"*\": any); default: "
      "none, nothing is fetched",
      .repeat = true },
    { "default-max-tokens", 0, CLI_UINT, "N", "0",
      "length of an answer whose line names none; 0: the room in the context", NULL, NULL },
    { 0 }
};

static const struct cli_option *const batch_groups[] = { batch_options, cli_policy_options, cli_rank_options, cli_common_options, NULL };
static const struct cli_command batch_command = {
    .name = "batch", .summary = "Answer the requests of a file, longest first.",
    .usage = "omnidrop batch -i FILE -o FILE [-m DIR] [options]",
    .groups = batch_groups,
    .examples = "omnidrop batch -i qa.jsonl -o qa.out.jsonl --resume --max-concurrency 8 --progress json\n"
                "mpirun -np 4 --enable-recovery omnidrop batch --dp 4 -i qa.jsonl -o qa.out.jsonl --resume\n"
                "omnidrop batch -i qa.jsonl -o out.jsonl --error-file failed.jsonl --retention 0.3" };

/* ---- the end, when it is wanted ------------------------------------------------------------------------------- */

static atomic_bool stop, hurry;
static volatile sig_atomic_t last_signal, running;

/* The first signal lets running lines finish, the second cancels them, the third ends the program. */
static void on_signal(int sig)
{
    last_signal = sig;
    if (atomic_load(&hurry) || (atomic_load(&stop) && !running)) _exit(sig == SIGTERM ? CLI_SIGTERM : CLI_SIGINT);
    if (atomic_exchange(&stop, true)) atomic_store(&hurry, true);
}

static void watch_signals(void)
{
    struct sigaction a = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
}

/* ---- media of lines ---------------------------------------------------------------------------------------------- */

/* The loader that servers have, with every folder open to it: the data are the operator's own. A file that it did not
 * take is named with the reason, which it hides from strangers. */
static status resolve(void *self, void *owner, const struct chat_part *part, int frame, const atomic_bool *cancelled,
                      struct media_source *out, struct err *e)
{
    const struct service_loader *l = self;
    const char *url = frame >= 0 ? part->frame[frame] : part->url;
    char path[PATH_MAX];
    struct stat s;
    const status st = l->resolve(l->self, owner, part, frame, cancelled, out, e);
    if (st != E_INPUT || e->tag == NULL || strcmp(e->tag, "media_path_not_allowed") != 0 ||
        !batch_media_path(url, path, sizeof path))
        return st;
    const char *why = stat(path, &s) != 0 ? strerror(errno) : S_ISREG(s.st_mode) ? strerror(EACCES) : "no regular file";
    err_set(e, E_INPUT, "%s: %s: %s", part->path, path, why);
    return err_tag(e, "media_path_not_allowed", part->path);
}

static status open_loader(const struct cli *c, struct service_loader *out, struct err *e)
{
    static const char *const root[] = { "/" };
    const char **domain = mem_must(cli_n_given(c) + 1, sizeof *domain);
    uint32_t n = 0;
    for (size_t i = 0; i < cli_n_given(c); i++)
        if (strcmp(cli_given_at(c, i).option->name, "allowed-media-domains") == 0)
            domain[n++] = cli_given_at(c, i).value;
    const struct loader_options o = {
        .root = root, .n_roots = 1, .domain = domain, .n_domains = n, .max_bytes = INT64_MAX
    };
    const status st = api_loader_create(&o, out, e);
    free(domain);
    return st;
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

struct task {
    struct cli *cli;
    struct batch_files files;
    char media_root[PATH_MAX];
    struct engine *en;
    struct service *service;
    struct batch_engine runs;
    struct service_loader loader;  /* of the media */
    struct service_loader telling; /* the same, with reasons */
    struct policy_params policy;
    const char **served;
    struct progress progress;
    uint32_t n_at_once;
    uint64_t n_failed;             /* told of */
    struct ranks *ranks;
    struct groups *groups;         /* rank 0 of several groups, else NULL */
    struct remote *remote;         /* another leader, else NULL */
};

static void log_line(void *self, const char *line)
{
    struct task *t = self;
    progress_clear(&t->progress);
    cli_log(t->cli, CLI_NOTE, "%s", line);
}

static void on_progress(void *self, const struct batch_counts *c)
{
    struct task *t = self;
    progress_items(&t->progress, "batch", c->completed + c->failed, c->total, c->cost > 0 ? c->cost_done / c->cost : 1,
                   c->failed);
}

static void on_failed(void *self, const char *custom_id, int status_code, const json_t *reply)
{
    struct task *t = self;
    const json_t *error = json_object_get(reply, "error");
    const char *code = json_string_value(json_object_get(error, "code")),
               *text = json_string_value(json_object_get(error, "message"));
    if (t->n_failed++ >= SHOWN) return;
    progress_clear(&t->progress);
    cli_log(t->cli, CLI_NOTE, "%s: %d %s: %s%s", custom_id, status_code, code ? code : "", text ? text : "",
            t->n_failed == SHOWN ? " (more are not named)" : "");
}

static status open_files(struct task *t, struct err *e)
{
    const struct cli *c = t->cli;
    const char *input = cli_text(c, "input-file"), *output = cli_text(c, "output-file");
    char path[PATH_MAX];
    if (cli_n_words(c))
        return err_set(e, E_ARG, "\"%s\": the input is given with -i, the output with -o", cli_word(c, 0));
    if (input == NULL || output == NULL)
        return err_set(e, E_ARG, "%s is missing: batch -i FILE -o FILE", input ? "-o" : "-i");
    const char *endpoint = cli_text(c, "endpoint");
    bool known = endpoint == NULL;
    for (size_t i = 0; batch_endpoints[i]; i++) known = known || strcmp(endpoint, batch_endpoints[i]) == 0;
    if (!known)
        return err_set(e, E_ARG, "--endpoint %s: give %s, %s, %s or %s", endpoint, batch_endpoints[0],
                       batch_endpoints[1], batch_endpoints[2], batch_endpoints[3]);
    if (realpath(input, path) == NULL) return err_set(e, E_INPUT, "%s: %s", input, strerror(errno));
    snprintf(t->media_root, sizeof t->media_root, "%s", dirname(path));
    const struct batch_files_options o = { .input = input,
                                           .output = output,
                                           .error_file = cli_text(c, "error-file"),
                                           .resume = cli_flag(c, "resume"),
                                           .overwrite = cli_flag(c, "overwrite"),
                                           .rules = {
                                               .endpoint = endpoint, .media_root = t->media_root, .stop = &stop } };
    return batch_files_open(&o, &t->files, e);
}

static status open_engine(struct task *t, struct err *e)
{
    const struct cli *c = t->cli;
    uint64_t default_max = 0, at_once = 8;
    TRY(cli_uint(c, "max-concurrency", 1, 1024, &at_once, e));
    TRY(cli_uint(c, "default-max-tokens", 0, 1u << 24, &default_max, e));
    TRY(cli_engine_on(c, at_once, ranks_tensor(t->ranks), &t->en, e));
    TRY(cli_policy(c, "none", engine_config(t->en)->text.layers, engine_defaults(t->en), &t->policy, e));
    cli_say_capacity(c, t->en, &t->policy, t->n_at_once, "--max-concurrency");
    TRY(open_loader(c, &t->loader, e));
    t->telling = t->loader;
    t->telling.self = &t->loader;
    t->telling.resolve = resolve;
    /* A transcription has several windows at once. */
    const struct service_options so = { .max_running = t->n_at_once, .max_waiting = 8 * t->n_at_once + 64,
                                        .loader = &t->telling, .default_max_tokens = (uint32_t)default_max };
    TRY(service_open(t->en, &so, &t->service, e));
    size_t n = 0;
    t->served = mem_must(cli_n_given(c) + 1, sizeof *t->served);
    for (size_t i = 0; i < cli_n_given(c); i++)
        if (strcmp(cli_given_at(c, i).option->name, "served-model-name") == 0)
            t->served[n++] = cli_given_at(c, i).value;
    const struct api_options ao = { .service = t->service, .served_name = n ? t->served : NULL, .n_served_name = n,
                                    .policy = &t->policy, .groups = t->groups };
    TRY(api_create(&ao, &t->runs.api, e));
    const struct api_audio_options audio = { .api = t->runs.api, .loader = &t->loader, .n_threads = 1 };
    return api_audio_create(&audio, &t->runs.audio, e);
}

static int say_end(const struct task *t, const struct batch_counts *c, double took)
{
    const uint64_t left = c->total - c->completed - c->failed;
    cli_log(t->cli, CLI_NOTE,
            "%llu lines: %llu answered (%llu of them before), %llu failed, %llu left, in %.1f s; %llu tokens in, "
            "%llu out",
            (unsigned long long)c->total, (unsigned long long)c->completed, (unsigned long long)t->files.n_before,
            (unsigned long long)c->failed, (unsigned long long)left, took, (unsigned long long)c->tokens_in,
            (unsigned long long)c->tokens_out);
    if (left > 0 || c->failed > 0)
        cli_log(t->cli, CLI_ERROR, "%s; the same command with --resume goes on", left == 0 ? "lines failed"
                : last_signal ? "interrupted" : "ended after a line failed");
    if (left > 0 && last_signal) return last_signal == SIGTERM ? CLI_SIGTERM : CLI_SIGINT;
    return c->failed > 0 || left > 0 ? CLI_GAPS : CLI_OK;
}

static status work(struct task *t, int *code, struct err *e)
{
    struct batch_counts c;
    enum progress_mode mode;
    TRY(progress_mode_of(cli_text(t->cli, "progress"), stderr, &mode, e));
    progress_begin(&t->progress, stderr, cli_flag(t->cli, "quiet") ? PROGRESS_NONE : mode,
                   cli_text(t->cli, "input-file"), -1);
    const struct batch_job j = { .plan = t->files.plan,
                                 .fd = t->files.fd,
                                 .out = t->files.out,
                                 .errors = t->files.errors,
                                 .run = batch_engine_run,
                                 .run_self = &t->runs,
                                 .n_at_once = t->n_at_once * ranks_groups(t->ranks),
                                 .media_root = t->media_root,
                                 .fail_fast = cli_flag(t->cli, "fail-fast"),
                                 .stop = &stop,
                                 .kill = &hurry,
                                 .progress = on_progress,
                                 .failed = on_failed,
                                 .self = t };
    const double start = clock_s();
    running = 1;
    const status st = batch_work(&j, &c, e);
    progress_clear(&t->progress);
    if (st == OK) *code = say_end(t, &c, clock_s() - start);
    return st;
}

/* ---- ranks -------------------------------------------------------------------------------------------------------- */

#define NOTHING_TO_DO (-1)         /* for ranks_agree */

/* A rank of group 0 that dies ends the program at once: what is in the output stays, --resume goes on. */
static status open_groups(struct task *t, struct err *e)
{
    const struct groups_options o = { .link = ranks_link(t->ranks), .log = log_line, .log_self = t };
    if (o.link) TRY(groups_create(&o, &t->groups, e));
    ranks_watch(t->ranks, t->groups, NULL, NULL);
    return OK;
}

static status open_leader(void *self, struct err *e) { return open_engine(self, e); }

static int lead(struct task *t)
{
    const struct ranks_lead l = { .open = open_leader, .self = t, .api = &t->runs.api, .audio = &t->runs.audio, .remote = &t->remote };
    return ranks_lead(t->ranks, &l);
}

static status open_all(struct task *t, struct err *e)
{
    TRY(open_groups(t, e));
    TRY(open_engine(t, e));
    if (t->groups == NULL) return OK;
    groups_local(t->groups, t->runs.api);
    return groups_wait(t->groups, &stop, e);
}

static status run(struct task *t, int *code, struct err *e)
{
    status st = open_files(t, e);
    ranks_agree(t->ranks, st != OK ? cli_exit_of(st) : t->files.complete ? NOTHING_TO_DO : CLI_OK);
    TRY(st);
    if (t->files.complete) {
        cli_log(t->cli, CLI_NOTE, "all lines are answered already");
        return OK;
    }
    TRY(open_all(t, e));
    return work(t, code, e);
}

static void task_free(struct task *t)
{
    ranks_leave(t->ranks);
    if (t->remote) remote_stop(t->remote);
    api_audio_destroy(&t->runs.audio);
    service_close(&t->service);
    if (t->groups) groups_stop(t->groups);
    groups_destroy(&t->groups);
    remote_destroy(&t->remote);
    api_destroy(&t->runs.api);
    api_loader_destroy(&t->loader);
    engine_close(&t->en);
    free(t->served);
    cli_free(&t->cli);
}

int cli_main_batch(int argc, char **argv)
{
    struct task t = { .files = { .fd = -1 } };
    struct err e = { 0 }, closing;
    bool done;
    int code = CLI_OK;
    status st = cli_parse(&batch_command, argc, argv, &t.cli, &done, &e);
    if (st != OK) return cli_fail(NULL, st, &e);
    if (done) {
        cli_free(&t.cli);
        return CLI_OK;
    }
    watch_signals();
    uint64_t at_once = 0;
    st = cli_uint(t.cli, "max-concurrency", 1, 1024, &at_once, &e);
    t.n_at_once = (uint32_t)at_once;
    if (st == OK) st = ranks_open(t.cli, &t.ranks, &e);
    if (st == OK && ranks_role(t.ranks) != RANKS_FRONT && ranks_role(t.ranks) != RANKS_ALONE) {
        code = ranks_role(t.ranks) == RANKS_LEADER ? lead(&t) : ranks_work(t.ranks, t.cli);
        task_free(&t);
        return ranks_close(&t.ranks, code);
    }
    if (st == OK) st = run(&t, &code, &e);
    if (batch_files_close(&t.files, &closing) != OK && st == OK) {
        e = closing;
        st = e.code;
    }
    if (st == E_CANCELLED && last_signal == SIGTERM) code = CLI_SIGTERM;
    else if (st != OK) code = cli_fail(t.cli, st, &e);
    task_free(&t);
    return ranks_close(&t.ranks, code);
}
