/* cli/transcribe.c - omnidrop transcribe: files of any length to txt, srt, vtt, json, jsonl, tsv.
 * Under mpirun rank 0 has the files, the windows and the journals; every group answers questions about windows, as many at
 * once as one process would (api/questions.h). Then several files are worked on at once, the longest first. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/groups.h"
#include "api/questions.h"
#include "api/remote.h"
#include "base/clock.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/ranks.h"
#include "engine/languages.h"
#include "engine/progress.h"
#include "engine/transcribe.h"
#include "engine/version.h"
#include "media/digest.h"

#define SEGMENT_CHARS 84
#define FILES_MAX 256              /* at once */

static const struct cli_option transcribe_options[] = {
    { "input", 'i', CLI_TEXT, "FILE", NULL, "a sound or a film (repeatable, or as a word); - reads standard input", NULL, NULL },
    { "file", 'f', CLI_TEXT, "FILE", NULL, "the same", NULL, NULL },
    { "output", 'o', CLI_TEXT, "PATH", NULL, "a file, a folder, or - for standard output; default: standard output for "
                                             "one input and one format, else the current folder", NULL, NULL },
    { "output-format", 'F', CLI_TEXT, "LIST", NULL, "txt,srt,vtt,json,jsonl,tsv or all [txt]", NULL, NULL },
    { "output-format", 0, CLI_FLAG, NULL, NULL, "-F txt", "-otxt", "txt" },
    { "output-format", 0, CLI_FLAG, NULL, NULL, "-F srt", "-osrt", "srt" },
    { "output-format", 0, CLI_FLAG, NULL, NULL, "-F vtt", "-ovtt", "vtt" },
    { "output-format", 0, CLI_FLAG, NULL, NULL, "-F json", "-oj", "json" },
    { "output-format", 0, CLI_FLAG, NULL, NULL, "-F json", "-ojf", "json" },
    { "language", 'l', CLI_TEXT, "NAME", "auto", "ISO code or English name of the language spoken; auto: ask the model", NULL, NULL },
    { "task", 0, CLI_TEXT, "NAME", "transcribe", "transcribe, or translate into English", NULL, NULL },
    { "task", 0, CLI_FLAG, NULL, NULL, "--task translate", "-tr", "translate" },
    { "instruction", 0, CLI_TEXT, "TEXT", NULL, "ask with these words in place of the task's own", NULL, NULL },
    { "prompt", 0, CLI_TEXT, "TEXT", NULL, "context for every window: names, spelling, style", NULL, NULL },
    { "initial-prompt", 0, CLI_TEXT, "TEXT", NULL, "the same", NULL, NULL },
    { "hotwords", 0, CLI_TEXT, "LIST", NULL, "words to prefer, comma separated", NULL, NULL },
    { "start", 0, CLI_SECONDS, "TIME", NULL, "begin here: 90, 90.5s, 1500ms, 01:30, 1:02:03.250", "-ss", NULL },
    { "end", 0, CLI_SECONDS, "TIME", NULL, "end here", "-to", NULL },
    { "duration", 0, CLI_SECONDS, "TIME", NULL, "or after this long", NULL, NULL },
    { "temperature", 0, CLI_NUMBER, "T", "0", "of the first try; 0: greedy", NULL, NULL },
    { "window", 0, CLI_NUMBER, "S", NULL, "longest window in seconds, 2 to 120 [the model's, else 30]", NULL, NULL },
    { "overlap", 0, CLI_NUMBER, "S", NULL, "seconds that both sides of a hard cut hear [the model's, else 2]", NULL, NULL },
    { "skip-silence", 0, CLI_FLAG, NULL, "true", "windows without voice are listed, not transcribed", NULL, NULL },
    { "use-video", 0, CLI_FLAG, NULL, NULL, "look at the pictures too (not offered yet)", NULL, NULL },
    { "max-line-width", 0, CLI_UINT, "N", "0", "characters a line of srt and vtt; 0: one line", NULL, NULL },
    { "max-line-count", 0, CLI_UINT, "N", "0", "lines a segment; 0: any", NULL, NULL },
    { "max-segment", 0, CLI_NUMBER, "S", "7", "longest segment in seconds", NULL, NULL },
    { "condition-on-previous-text", 0, CLI_FLAG, NULL, NULL, "each window sees the end of the text before it", NULL, NULL },
    { "no-timestamps", 0, CLI_FLAG, NULL, NULL, "txt as one paragraph a window", "-nt", "true" },
    { "resume", 0, CLI_FLAG, NULL, NULL, "go on where an interrupted run ended", NULL, NULL },
    { "overwrite", 'y', CLI_FLAG, NULL, NULL, "replace outputs that exist", NULL, NULL },
    { "overwrite", 0, CLI_FLAG, NULL, NULL, "never replace them (default)", "-n", "false" },
    { "on-window-error", 0, CLI_TEXT, "WHAT", "mark", "mark the gap and go on (exit 5), or fail", NULL, NULL },
    { "jobs", 'j', CLI_UINT, "N", "4", "windows in one batch, of each group, 1 to 64", NULL, NULL },
    { "server", 0, CLI_TEXT, "URL", NULL, "have a server do it (not in this build)", NULL, NULL },
    { 0 }
};

static const struct cli_option *const transcribe_groups[] = { transcribe_options, cli_policy_options, cli_rank_options,
                                                              cli_common_options, NULL };
static const struct cli_command transcribe_command = {
    .name = "transcribe", .summary = "Files of any length to text and subtitles.",
    .usage = "omnidrop transcribe [-m DIR] FILE... [-F FORMATS] [-o PATH] [options]", .groups = transcribe_groups,
    .examples = "omnidrop transcribe -l en -F srt,json -o out/ lecture.mkv talk.mp3\n"
                "ffmpeg -v error -i dump.ts -f wav - | omnidrop transcribe -f - -F vtt -o - > dump.vtt\n"
                "omnidrop transcribe --resume -F srt -o out/ lecture.mkv            # after an interrupt\n"
                "mpirun -np 4 --enable-recovery omnidrop transcribe --dp 4 -F srt -o out/ *.mp3" };

/* ---- signals: the first lets the windows in work finish, the second ends the work, the third the program ---- */

static volatile sig_atomic_t n_signals, last_signal, talkative;
static atomic_bool stopping;       /* n_signals > 0, for groups_wait */

static void on_signal(int sig)
{
    static const char text[] = "\nomnidrop: finishing the windows in work; once more to abort\n";
    last_signal = sig;
    n_signals++;
    atomic_store(&stopping, true);
    if (n_signals == 1 && talkative) {
        const ssize_t unused = write(2, text, sizeof text - 1);
        (void)unused;
    }
    if (n_signals > 2) _exit(sig == SIGTERM ? CLI_SIGTERM : CLI_SIGINT);
}

static void watch_signals(void)
{
    struct sigaction a = { .sa_handler = on_signal };
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int signal_code(void) { return last_signal == SIGTERM ? CLI_SIGTERM : CLI_SIGINT; }

static int interrupted(void *self)
{
    (void)self;
    return n_signals > 0;
}

/* ---- what is asked for ------------------------------------------------------------------------------------ */

struct job {                       /* one input */
    const char *input;             /* as given; "-": standard input */
    char *base;                    /* owned: name without folder and extension */
    char *out[SUB_N_FORMATS];      /* owned: output files; NULL: not asked for, or standard output */
    char *journal;                 /* owned; NULL: none */
    double length_s;               /* of several at once: of its sound; INFINITY: not known */
    int code;                      /* exit code: what came of it */
};

struct task {
    struct cli *cli;
    int argc;
    char **argv;
    struct engine *en;
    struct service *service;
    struct ranks *ranks;
    struct groups *groups;         /* rank 0 of several groups, else NULL */
    struct api *api;               /* where there are several groups, else NULL */
    struct questions *questions;   /* rank 0 of several groups, else NULL */
    struct remote *remote;         /* another leader, else NULL */
    double end_s;                  /* of the part of the file; 0: its end */
    struct policy_params policy;
    struct transcribe_options o;
    struct subtitle_style style;
    bool format[SUB_N_FORMATS];
    bool to_stdout;
    enum subtitle_format stdout_format;
    bool resume, overwrite;
    int stdout_errno;              /* why standard output takes no more */
    enum progress_mode progress_mode;
    bool together;                 /* several files at once: one progress for all */
    pthread_mutex_t lock;          /* of standard error, and of the three below */
    struct progress progress;
    double done_s;                 /* of what progress shows */
    uint32_t n_failed;
    char context[8192];
    struct job *job;
    size_t n_jobs, cap_jobs;
    size_t *order;                 /* owned: [n_jobs] */
    atomic_size_t next;            /* of order */
};

struct work {                      /* one input under way */
    struct task *t;
    struct job *j;
    struct transcribe_options o;
    uint32_t turn;                 /* among several at once */
    struct questions_run run;
    struct questioned by;
    double done_s;                 /* of t->done_s */
    uint32_t n_failed;
};

static status add_input(struct task *t, const char *path, struct err *e)
{
    TRY(mem_grow(&t->job, &t->cap_jobs, t->n_jobs + 1, sizeof *t->job, e));
    struct job *j = &t->job[t->n_jobs++];
    *j = (struct job){ .input = path };
    if (strcmp(path, "-") == 0) {
        j->base = mem_must_strdup("stdin");
        return OK;
    }
    char *copy = mem_must_strdup(path);
    j->base = mem_must_strdup(basename(copy));
    free(copy);
    char *dot = strrchr(j->base, '.');
    if (dot && dot != j->base) *dot = 0;
    struct stat s;
    if (stat(path, &s) == 0) return OK;
    const bool format = subtitle_format_of(path, strlen(path)) >= 0;
    return err_set(e, E_INPUT, "%s: %s%s", path, strerror(errno),
                   format ? ": -f names an input here; -F names the output format" : "");
}

static status read_inputs(struct task *t, struct err *e)
{
    const struct cli *c = t->cli;
    for (size_t i = 0; i < cli_n_given(c); i++) {
        const struct cli_given_option g = cli_given_at(c, i);
        if (strcmp(g.option->name, "input") == 0 || strcmp(g.option->name, "file") == 0) TRY(add_input(t, g.value, e));
    }
    for (size_t i = 0; i < cli_n_words(c); i++) TRY(add_input(t, cli_word(c, i), e));
    if (t->n_jobs == 0) return err_set(e, E_ARG, "no input: name a sound or a film, or - for standard input");
    return OK;
}

static status add_formats(struct task *t, const char *list, struct err *e)
{
    for (const char *p = list;; p++) {
        const size_t n = strcspn(p, ",");
        const int f = subtitle_format_of(p, n);
        if (n == 3 && strncmp(p, "all", 3) == 0) {
            for (int i = 0; i < SUB_N_FORMATS; i++) t->format[i] = true;
        } else if (f >= 0) {
            t->format[f] = true;
        } else {
            return err_set(e, E_ARG, "--output-format %s: \"%.*s\" is none of txt, srt, vtt, json, jsonl, tsv, all", list,
                           (int)n, p);
        }
        p += n;
        if (*p == 0) return OK;
    }
}

static status read_formats(struct task *t, struct err *e)
{
    bool any = false;
    for (size_t i = 0; i < cli_n_given(t->cli); i++) {
        const struct cli_given_option g = cli_given_at(t->cli, i);
        if (strcmp(g.option->name, "output-format") != 0) continue;
        TRY(add_formats(t, g.value, e));
        any = true;
    }
    const char *list = cli_text(t->cli, "output-format");
    return any ? OK : add_formats(t, list ? list : "txt", e);
}

static bool is_folder(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

static char *path_in(const char *dir, const char *base, const char *extension)
{
    const size_t n = strlen(dir), cap = n + strlen(base) + strlen(extension) + 3;
    char *path = mem_must(cap, 1);
    snprintf(path, cap, "%s%s%s.%s", dir, n && dir[n - 1] != '/' ? "/" : "", base, extension);
    return path;
}

static status same_bases(const struct task *t, struct err *e)
{
    for (size_t i = 0; i < t->n_jobs; i++)
        for (size_t k = 0; k < i; k++)
            if (strcmp(t->job[i].base, t->job[k].base) == 0)
                return err_set(e, E_ARG, "%s and %s would both write %s.*: transcribe them in two runs, into two folders",
                               t->job[k].input, t->job[i].input, t->job[i].base);
    return OK;
}

/* Every output path, and the journals beside them. */
static status plan_outputs(struct task *t, struct err *e)
{
    const char *o = cli_text(t->cli, "output");
    size_t n_formats = 0;
    for (int f = 0; f < SUB_N_FORMATS; f++) {
        n_formats += t->format[f];
        if (t->format[f]) t->stdout_format = (enum subtitle_format)f;
    }
    const bool one = t->n_jobs == 1 && n_formats == 1;
    t->to_stdout = o ? strcmp(o, "-") == 0 : one;
    if (t->to_stdout && !one)
        return err_set(e, E_ARG, "-o -: standard output takes one input and one format: give a folder");
    if (t->to_stdout) return OK;
    if (o && one && !is_folder(o) && o[strlen(o) - 1] != '/') {
        t->job[0].out[t->stdout_format] = mem_must_strdup(o);
        const size_t cap = strlen(o) + 5;
        t->job[0].journal = mem_must(cap, 1);
        snprintf(t->job[0].journal, cap, "%s.odj", o);
        return OK;
    }
    if (o == NULL) o = ".";
    TRY(same_bases(t, e));
    if (!is_folder(o) && mkdir(o, 0777) != 0)
        return err_set(e, E_ARG, "-o %s: %s inputs or formats go into a folder, and it cannot be made: %s", o,
                       t->n_jobs > 1 ? "several" : "these", strerror(errno));
    for (size_t i = 0; i < t->n_jobs; i++) {
        for (int f = 0; f < SUB_N_FORMATS; f++)
            if (t->format[f]) t->job[i].out[f] = path_in(o, t->job[i].base, subtitle_format_name((enum subtitle_format)f));
        t->job[i].journal = path_in(o, t->job[i].base, "odj");
    }
    return OK;
}

static status check_folder(const char *output, struct err *e)
{
    char *copy = mem_must_strdup(output);
    const char *dir = dirname(copy);
    const bool writable = access(dir, W_OK) == 0;
    const status st = writable ? OK : err_set(e, E_ARG, "%s: the folder %s cannot be written: %s", output, dir, strerror(errno));
    free(copy);
    return st;
}

static status check_outputs(const struct task *t, struct err *e)
{
    if (t->resume && t->to_stdout)
        return err_set(e, E_ARG, "--resume needs outputs in files, as the journal lies beside them: give -o");
    for (size_t i = 0; i < t->n_jobs; i++) {
        const struct job *j = &t->job[i];
        struct stat in, out;
        if (j->journal) TRY(check_folder(j->journal, e));
        for (int f = 0; f < SUB_N_FORMATS; f++) {
            if (j->out[f] == NULL || stat(j->out[f], &out) != 0) continue;
            if (stat(j->input, &in) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
                return err_set(e, E_ARG, "%s is the input: give another output with -o", j->out[f]);
            if (!t->overwrite && !t->resume)
                return err_set(e, E_ARG, "%s exists: -y replaces it, --resume goes on with an interrupted run", j->out[f]);
            if (!S_ISREG(out.st_mode)) return err_set(e, E_ARG, "%s is not a regular file", j->out[f]);
        }
        if (j->journal && !t->overwrite && !t->resume && access(j->journal, F_OK) == 0)
            return err_set(e, E_ARG, "%s is the journal of an interrupted run: --resume goes on with it, -y begins anew",
                           j->journal);
    }
    return OK;
}

static status read_context(struct task *t, struct err *e)
{
    const char *prompt = cli_text(t->cli, "prompt"), *words = cli_text(t->cli, "hotwords");
    if (prompt == NULL) prompt = cli_text(t->cli, "initial-prompt");
    if (prompt == NULL && words == NULL) return OK;
    const int n = snprintf(t->context, sizeof t->context, "%s%s%s", prompt ? prompt : "", prompt && words ? "\n" : "",
                           words ? words : "");
    if (n < 0 || (size_t)n >= sizeof t->context)
        return err_set(e, E_ARG, "--prompt and --hotwords: %d bytes are too many, %zu are taken", n, sizeof t->context - 1);
    t->o.context = t->context;
    return OK;
}

/* Options that need no model. */
static status read_options(struct task *t, struct err *e)
{
    const struct cli *c = t->cli;
    uint64_t jobs = 4, seed = 0, width = 0, lines = 0;
    double duration = 0;
    if (cli_text(c, "server")) return err_set(e, E_ARG, "--server: this build has no client for servers: leave it out");
    if (cli_flag(c, "use-video"))
        return err_set(e, E_ARG, "--use-video is not offered yet: the sound of a film is transcribed without it");
    TRY(cli_seconds(c, "start", &t->o.start_s, e));
    TRY(cli_seconds(c, "end", &t->end_s, e));
    TRY(cli_seconds(c, "duration", &duration, e));
    if (cli_given(c, "duration") && cli_given(c, "end")) return err_set(e, E_ARG, "give --end or --duration, not both");
    if (cli_given(c, "duration")) t->end_s = t->o.start_s + duration;
    if ((cli_given(c, "end") || cli_given(c, "duration")) && t->end_s <= t->o.start_s)
        return err_set(e, E_ARG, "nothing lies between %g s and %g s: the end must come after the start", t->o.start_s,
                       t->end_s);
    TRY(cli_number(c, "temperature", 0, 1, &t->o.temperature, e));
    TRY(cli_number(c, "window", 2, 120, &t->o.windows.window_s, e));
    TRY(cli_number(c, "overlap", 0, 60, &t->o.windows.overlap_s, e));
    TRY(cli_number(c, "max-segment", 0.5, 3600, &t->o.limits.max_segment_s, e));
    TRY(cli_uint(c, "max-line-width", 0, 1000, &width, e));
    TRY(cli_uint(c, "max-line-count", 0, 1000, &lines, e));
    TRY(cli_uint(c, "jobs", 1, 64, &jobs, e));
    TRY(cli_uint(c, "seed", 0, UINT64_MAX, &seed, e));
    if (lines && !width) return err_set(e, E_ARG, "--max-line-count needs --max-line-width");
    t->o.jobs = (uint32_t)jobs;
    t->o.seed = seed;
    t->o.limits.max_chars = width && lines && width * lines < SEGMENT_CHARS ? (uint32_t)(width * lines) : SEGMENT_CHARS;
    t->o.limits.line_width = (uint32_t)width;
    t->o.limits.line_count = (uint32_t)lines;
    t->style = (struct subtitle_style){ t->o.limits, cli_flag(c, "no-timestamps") };
    t->o.windows.keep_silence = !cli_flag(c, "skip-silence");
    t->o.condition_on_previous = cli_flag(c, "condition-on-previous-text");
    const char *task = cli_text(c, "task"), *gap = cli_text(c, "on-window-error"), *language = cli_text(c, "language");
    if (strcmp(task, "translate") == 0) t->o.translate = true;
    else if (strcmp(task, "transcribe") != 0) return err_set(e, E_ARG, "--task %s: give transcribe or translate", task);
    if (strcmp(gap, "fail") == 0) t->o.fail_on_gap = true;
    else if (strcmp(gap, "mark") != 0) return err_set(e, E_ARG, "--on-window-error %s: give mark or fail", gap);
    if (strcmp(language, "auto") != 0 && (t->o.language = language_name(language)) == NULL)
        return err_set(e, E_ARG, "--language %s: give auto, an ISO 639 code (en, eng) or an English name", language);
    t->resume = cli_flag(c, "resume");
    t->overwrite = cli_flag(c, "overwrite");
    TRY(read_context(t, e));
    TRY(progress_mode_of(cli_flag(c, "quiet") && !cli_given(c, "progress") ? "none" : cli_text(c, "progress"), stderr,
                         &t->progress_mode, e));
    TRY(read_formats(t, e));
    TRY(read_inputs(t, e));
    TRY(plan_outputs(t, e));
    return check_outputs(t, e);
}

static status open_engine(struct task *t, struct err *e)
{
    uint64_t jobs = 4;
    TRY(cli_uint(t->cli, "jobs", 1, 64, &jobs, e));
    TRY(cli_engine_on(t->cli, 1, ranks_tensor(t->ranks), &t->en, e));
    const struct service_options so = { .max_running = (uint32_t)jobs, .max_waiting = 4 * TRANSCRIBE_JOBS_MAX,
                                        .no_media_cache = true, .no_prefix_cache = true };
    TRY(service_open(t->en, &so, &t->service, e));
    const struct api_options ao = { .service = t->service, .groups = t->groups };
    return ranks_groups(t->ranks) > 1 ? api_create(&ao, &t->api, e) : OK;
}

/* Options that depend on the model. */
static status ask_model(struct task *t, struct err *e)
{
    const struct cli *c = t->cli;
    TRY(cli_policy(c, "none", engine_config(t->en)->text.layers, engine_defaults(t->en), &t->policy, e));
    t->o.policy = &t->policy;
    const struct transcribe_defaults *own = &engine_defaults(t->en)->transcribe;
    model_defaults_windows(engine_defaults(t->en), t->o.windows.window_s, cli_given(c, "overlap") ? t->o.windows.overlap_s : -1,
                           &t->o.windows);
    if (cli_text(c, "instruction")) {
        t->o.instruction = cli_text(c, "instruction");
    } else if (own->instruction[0]) {
        if (t->o.translate)
            return err_set(e, E_ARG, "the model %s knows no words for --task translate; --instruction sets them",
                           engine_info(t->en)->model_name);
        t->o.instruction = own->instruction;
    }
    if (own->language[0] && !cli_given(c, "language")) t->o.language = own->language;
    return OK;
}

/* ---- the journal's key ------------------------------------------------------------------------------------ */

static int only_weights(const struct dirent *d)
{
    const size_t n = strlen(d->d_name);
    return strcmp(d->d_name, "config.json") == 0 || (n > 12 && strcmp(d->d_name + n - 12, ".safetensors") == 0);
}

/* Names, sizes and samples of all parts of the model's weights: 16 pieces of 64 KiB each, evenly spread. */
static status add_model(struct media_digest *d, const char *dir, struct err *e)
{
    struct dirent **entry;
    const int n = scandir(dir, &entry, only_weights, alphasort);
    if (n < 0) return err_set(e, E_MODEL, "%s: %s", dir, strerror(errno));
    char *piece;
    status st = mem_alloc(&piece, 65536, 1, e);
    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];
        struct stat s;
        snprintf(path, sizeof path, "%s/%s", dir, entry[i]->d_name);
        const int fd = st == OK ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd >= 0 && fstat(fd, &s) == 0) {
            char text[NAME_MAX + 40];
            snprintf(text, sizeof text, "%s %lld\n", entry[i]->d_name, (long long)s.st_size);
            media_digest_add(d, text, strlen(text));
            for (int k = 0; k < 16; k++) {
                const ssize_t got = pread(fd, piece, 65536, s.st_size / 16 * k);
                if (got > 0) media_digest_add(d, piece, (size_t)got);
            }
        }
        if (fd >= 0) close(fd);
        free(entry[i]);
    }
    free(entry);
    free(piece);
    return st;
}

static status journal_key(const struct task *t, const char *path, char key[MEDIA_DIGEST_TEXT], struct err *e)
{
    const struct transcribe_options *o = &t->o;
    struct media_digest *d;
    json_t *policy = prune_params_to_json(&t->policy);
    json_t *v = json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:b, s:b, s:s, s:s, s:s, s:b, s:f, s:I, s:i, s:s, s:o}", "engine",
                          OMNIDROP_VERSION, "plan", TRANSCRIBE_VERSION, "start", o->start_s, "end", t->end_s, "window",
                          o->windows.window_s, "overlap", o->windows.overlap_s, "keep_silence", o->windows.keep_silence,
                          "translate", o->translate, "language", o->language ? o->language : "auto", "instruction",
                          o->instruction ? o->instruction : "", "context", o->context ? o->context : "", "previous",
                          o->condition_on_previous, "temperature", o->temperature, "seed", (json_int_t)o->seed, "dtype",
                          (int)engine_info(t->en)->compute, "policy", prune_params_name(&t->policy), "params", policy);
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    json_decref(v);
    if (text == NULL) return err_set(e, E_ARG, "an option is not UTF-8");
    status st = media_digest_begin(&d, e);
    if (st == OK) {
        media_digest_add(d, text, strlen(text));
        st = add_model(d, engine_info(t->en)->model_dir, e);
        if (st == OK) st = media_digest_add_file(d, path, interrupted, NULL, e);
        if (st == OK) media_digest_end(&d, key);
        media_digest_free(&d);
    }
    free(text);
    return st;
}

/* ---- outputs ---------------------------------------------------------------------------------------------- */

static void write_all(const struct task *t, FILE *f, enum subtitle_format format, const struct transcript *tr)
{
    if (format == SUB_JSON) {
        json_t *o = transcript_json(tr, engine_info(t->en)->model_name, &t->policy);
        if (o) json_dumpf(o, f, JSON_INDENT(1) | JSON_REAL_PRECISION(10));
        json_decref(o);
        fputc('\n', f);
        return;
    }
    subtitles_write_head(f, format);
    for (size_t i = 0; i < tr->list.n; i++) subtitles_write_one(f, format, &t->style, &tr->list, i);
    subtitles_write_tail(f, format, &t->style, &tr->list);
}

static status write_err(const char *path, struct err *e)
{
    return err_set(e, errno == ENOSPC || errno == EDQUOT ? E_NOMEM : E_IO, "%s cannot be written: %s", path,
                   strerror(errno));
}

/* Whole or not at all: a temporary name in the same folder, then renamed. */
static status write_file(const struct task *t, const char *path, enum subtitle_format format, const struct transcript *tr,
                         struct err *e)
{
    const size_t cap = strlen(path) + 12;
    char *temp = mem_must(cap, 1);
    snprintf(temp, cap, "%s.XXXXXX", path);
    const int fd = mkstemp(temp);
    FILE *f = fd >= 0 ? fdopen(fd, "w") : NULL;
    status st = OK;
    if (f == NULL) {
        st = write_err(path, e);
        if (fd >= 0) close(fd);
    } else {
        const mode_t mask = umask(0);
        umask(mask);
        fchmod(fd, 0666 & ~mask);
        write_all(t, f, format, tr);
        if (fflush(f) != 0 || ferror(f) || fsync(fd) != 0) st = write_err(path, e);
        if (fclose(f) != 0 && st == OK) st = write_err(path, e);
        if (st == OK && rename(temp, path) != 0) st = write_err(path, e);
    }
    if (st != OK && fd >= 0) unlink(temp);
    free(temp);
    return st;
}

/* ---- one input -------------------------------------------------------------------------------------------- */

/* Standard error is the caller's, without the bar, until say_end. */
static void say_begin(struct task *t)
{
    pthread_mutex_lock(&t->lock);
    progress_clear(&t->progress);
}

static void say_end(struct task *t) { pthread_mutex_unlock(&t->lock); }

static bool on_segments(void *self, const struct subtitles *list, size_t from)
{
    struct task *t = ((struct work *)self)->t;
    if (!t->to_stdout || t->stdout_format == SUB_JSON) return true;
    say_begin(t);
    say_end(t);                    /* standard output may block, and who tells of lost groups must not wait for it */
    for (size_t i = from; i < list->n; i++) subtitles_write_one(stdout, t->stdout_format, &t->style, list, i);
    if (fflush(stdout) != 0) t->stdout_errno = errno;
    return t->stdout_errno == 0;
}

static void on_progress(void *self, double done_s, uint32_t n_failed)
{
    struct work *w = self;
    struct task *t = w->t;
    pthread_mutex_lock(&t->lock);
    t->done_s += done_s - w->done_s;
    t->n_failed += n_failed - w->n_failed;
    w->done_s = done_s;
    w->n_failed = n_failed;
    progress_show(&t->progress, "transcribe", t->done_s, t->n_failed);
    pthread_mutex_unlock(&t->lock);
}

static void on_note(void *self, bool failed, const char *text)
{
    const struct work *w = self;
    say_begin(w->t);
    cli_log(w->t->cli, failed ? CLI_NOTE : CLI_DETAIL, "%s: %s", w->j->input, text);
    say_end(w->t);
}

/* Standard input into a file without a name; path: how to open it. */
static status spool(char *path, size_t cap, struct err *e)
{
    const char *dir = getenv("TMPDIR");
    char buf[65536];
    snprintf(path, cap, "%s/omnidrop-XXXXXX", dir && *dir ? dir : "/tmp");
    const int fd = mkstemp(path);
    if (fd < 0) return write_err(path, e);
    status st = OK;
    while (st == OK) {
        const ssize_t got = read(0, buf, sizeof buf);
        if (n_signals) st = err_set(e, E_CANCELLED, "interrupted");
        else if (got < 0 && errno != EINTR) st = err_set(e, E_INPUT, "standard input: %s", strerror(errno));
        if (got == 0) break;
        for (ssize_t at = 0; st == OK && at < got;) {
            const ssize_t put = write(fd, buf + at, (size_t)(got - at));
            if (put > 0) at += put;
            else if (errno != EINTR) st = write_err(path, e);
        }
    }
    close(fd);
    if (st != OK) unlink(path);
    return st;
}

static void shell_word(FILE *f, const char *s)
{
    const bool plain = *s && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./,:@%") == strlen(s);
    if (plain) {
        fputs(s, f);
        return;
    }
    fputc('\'', f);
    for (; *s; s++)
        if (*s == '\'') fputs("'\\''", f);
        else fputc(*s, f);
    fputc('\'', f);
}

static void say_resume(const struct task *t, const struct job *j)
{
    if (j->journal == NULL) {
        cli_log(t->cli, CLI_NOTE, "%s: interrupted; output to a file (-o) could be resumed", j->input);
        return;
    }
    char *line = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&line, &n);
    if (f == NULL) return;
    if (ranks_role(t->ranks) != RANKS_ALONE) fprintf(f, "mpirun -np %u ", ranks_count(t->ranks));
    fputs("omnidrop transcribe", f);
    if (!t->resume) fputs(" --resume", f);
    for (int i = 1; i < t->argc; i++) {
        fputc(' ', f);
        shell_word(f, t->argv[i]);
    }
    fclose(f);
    cli_log(t->cli, CLI_ERROR, "%s: interrupted; go on with: %s", j->input, line);
    free(line);
}

static void say_done(const struct task *t, const struct job *j, const struct transcript *tr, double took)
{
    struct rusage u;
    cli_log(t->cli, CLI_NOTE, "%s: %.1f s of sound in %.1f s (%.1fx), %zu windows, %u silent, %u from the journal, %u failed",
            j->input, tr->duration_s, took, took > 0 ? tr->duration_s / took : 0, tr->n_windows, tr->n_silent,
            tr->n_replayed, tr->n_failed);
    if (getrusage(RUSAGE_SELF, &u) == 0) cli_log(t->cli, CLI_DETAIL, "peak memory %.1f MB", (double)u.ru_maxrss / 1024);
}

static status write_outputs(struct task *t, const struct job *j, const struct transcript *tr, struct err *e)
{
    for (int f = 0; f < SUB_N_FORMATS; f++)
        if (j->out[f]) TRY(write_file(t, j->out[f], (enum subtitle_format)f, tr, e));
    if (!t->to_stdout) return OK;
    if (t->stdout_format == SUB_JSON) write_all(t, stdout, SUB_JSON, tr);
    else subtitles_write_tail(stdout, t->stdout_format, &t->style, &tr->list);
    if (fflush(stdout) != 0) t->stdout_errno = errno;
    return t->stdout_errno == 0 ? OK : err_set(e, E_CANCELLED, "nobody reads the output");
}

static status read_audio(void *self, float *buf, size_t cap, size_t *n, struct err *e)
{
    return media_audio_read(self, buf, cap, n, e);
}

static status run(struct work *w, struct media *m, struct transcript *tr, struct err *e)
{
    struct task *t = w->t;
    const struct media_audio_options ao = { .start_s = t->o.start_s, .end_s = t->end_s, .keep_time = true };
    struct media_audio *audio = NULL;
    *tr = (struct transcript){ 0 };
    TRY(media_audio_open(m, &ao, &audio, e));
    if (t->questions) {
        const uint64_t most = (uint64_t)t->o.jobs * ranks_groups(t->ranks);
        questions_join(t->questions, w->turn, &w->run);
        w->by = questions_by(&w->run);
        w->o.by = &w->by;
        w->o.jobs = most < TRANSCRIBE_JOBS_MAX ? (uint32_t)most : TRANSCRIBE_JOBS_MAX;
    }
    const status st = transcribe_run(t->service, read_audio, audio, &w->o, tr, e);
    if (t->questions) questions_part(&w->run);
    media_audio_close(&audio);
    if (st == E_ARG)
        err_prefix(e, "a window of up to %g s does not fit; give a shorter --window or a larger --max-model-len",
                   t->o.windows.window_s);
    return st;
}

/* Seconds that are asked for; INFINITY: not known. */
static double length_of(const struct task *t, const struct media *m)
{
    const struct media_info *info = media_info(m);
    const double all = info->audio.duration_s > 0 ? info->audio.duration_s : info->duration_s;
    const double end = t->end_s > 0 && (all < 0 || t->end_s < all) ? t->end_s : all;
    return end > 0 ? fmax(end - t->o.start_s, 0) : INFINITY;
}

/* Transcribe an open input; *code is the exit code where all is said. */
static status transcribe_open(struct task *t, struct job *j, uint32_t turn, struct media *m, struct journal **journal, int *code,
                              struct err *e)
{
    struct transcript tr;
    struct work w = { .t = t, .j = j, .turn = turn, .o = t->o };
    if (!media_info(m)->has_audio) return err_set(e, E_INPUT, "%s: the file has no sound", j->input);
    w.o.journal = *journal;
    w.o.stop = &n_signals;
    w.o.on_segments = on_segments;
    w.o.on_progress = on_progress;
    w.o.on_note = on_note;
    w.o.self = &w;
    if (!t->together) {
        const double length = length_of(t, m);
        progress_begin(&t->progress, stderr, t->progress_mode, j->input, length < INFINITY ? length : -1);
        t->done_s = t->n_failed = 0;
    }
    on_progress(&w, 0, 0);
    if (t->to_stdout) subtitles_write_head(stdout, t->stdout_format);
    const double start = clock_s();
    status st = run(&w, m, &tr, e);
    say_begin(t);
    if (media_warning(m)) cli_log(t->cli, CLI_NOTE, "%s", media_warning(m));
    say_end(t);
    if (st == OK) st = write_outputs(t, j, &tr, e);
    say_begin(t);
    if (t->together && j->length_s < INFINITY) t->done_s += j->length_s - w.done_s;     /* what was skipped is over too */
    if (st == OK && !tr.complete) {
        say_resume(t, j);
        *code = signal_code();
    } else if (st == OK) {
        say_done(t, j, &tr, clock_s() - start);
        *code = tr.n_failed ? CLI_GAPS : CLI_OK;
        journal_close(journal, tr.n_failed == 0);
    } else if (st == E_CANCELLED && n_signals) {
        say_resume(t, j);
        *code = signal_code();
        st = OK;
    }
    say_end(t);
    transcript_free(&tr);
    if (st == E_CANCELLED && t->stdout_errno != EPIPE) {
        errno = t->stdout_errno;
        st = write_err("standard output", e);
    }
    return st;
}

static bool complete_already(const struct task *t, const struct job *j)
{
    if (!t->resume || j->journal == NULL || access(j->journal, F_OK) == 0) return false;
    for (int f = 0; f < SUB_N_FORMATS; f++)
        if (j->out[f] && access(j->out[f], F_OK) != 0) return false;
    return true;
}

static status transcribe_job(struct task *t, struct job *j, uint32_t turn, int *code, struct err *e)
{
    char spooled[PATH_MAX] = "";
    struct media *m = NULL;
    struct journal *journal = NULL;
    status st = OK;
    if (complete_already(t, j)) {
        say_begin(t);
        cli_log(t->cli, CLI_NOTE, "%s: complete already (there is no journal, and the outputs are there)", j->input);
        say_end(t);
        return OK;
    }
    const bool from_stdin = strcmp(j->input, "-") == 0;
    if (from_stdin) TRY(spool(spooled, sizeof spooled, e));
    const char *path = from_stdin ? spooled : j->input;
    st = media_open(path, &m, e);
    if (st == OK && j->journal) {
        char key[MEDIA_DIGEST_TEXT];
        st = journal_key(t, path, key, e);
        if (st == OK) st = journal_open(j->journal, key, t->resume, &journal, e);
    }
    if (from_stdin) unlink(spooled);
    if (st == OK) st = transcribe_open(t, j, turn, m, &journal, code, e);
    /* A journal without a finished window is worth nothing. */
    journal_close(&journal, journal && st != OK && journal_count(journal) == 0);
    media_close(&m);
    return st;
}

/* ---- all of them ------------------------------------------------------------------------------------------- */

static void *files_main(void *arg)
{
    struct task *t = arg;
    for (;;) {
        const size_t i = atomic_fetch_add(&t->next, 1);
        struct err e = { 0 };
        if (i >= t->n_jobs || n_signals > 0) return NULL;
        struct job *j = &t->job[t->order[i]];
        const status got = transcribe_job(t, j, (uint32_t)i, &j->code, &e);
        if (got == E_CANCELLED) {
            j->code = n_signals > 0 ? signal_code() : CLI_OK;  /* a closed standard output ends quietly */
        } else if (got != OK) {
            say_begin(t);
            j->code = cli_fail(t->cli, got, &e);
            say_end(t);
        }
    }
}

/* The longest first: what is begun last should be short. What cannot be opened says why when its turn comes. */
static void sort_jobs(struct task *t)
{
    for (size_t i = 0; i < t->n_jobs; i++) {
        struct job *j = &t->job[i];
        struct media *m = NULL;
        struct err e;
        j->length_s = strcmp(j->input, "-") == 0 ? INFINITY : 0;
        if (j->length_s == 0 && media_open(j->input, &m, &e) == OK) j->length_s = length_of(t, m);
        media_close(&m);
        size_t at = i;
        for (; at > 0 && t->job[t->order[at - 1]].length_s < j->length_s; at--) t->order[at] = t->order[at - 1];
        t->order[at] = i;
    }
}

static void transcribe_together(struct task *t)
{
    char what[32];
    double total_s = 0;
    pthread_t thread[FILES_MAX];
    size_t n = 0, most = questions_places(t->questions);
    if (most > t->n_jobs) most = t->n_jobs;
    if (most > FILES_MAX) most = FILES_MAX;
    sort_jobs(t);
    t->together = true;
    for (size_t i = 0; i < t->n_jobs; i++) total_s += t->job[i].length_s;
    snprintf(what, sizeof what, "%zu files", t->n_jobs);
    progress_begin(&t->progress, stderr, t->progress_mode, what, total_s < INFINITY ? total_s : -1);
    while (n < most && pthread_create(&thread[n], NULL, files_main, t) == 0) n++;
    if (n == 0) files_main(t);
    for (size_t i = 0; i < n; i++) pthread_join(thread[i], NULL);
    say_begin(t);
    say_end(t);
}

static int transcribe_all(struct task *t)
{
    int code = CLI_OK;
    t->order = mem_must(t->n_jobs, sizeof *t->order);
    for (size_t i = 0; i < t->n_jobs; i++) t->order[i] = i;
    if (t->questions && t->n_jobs > 1) transcribe_together(t);
    else files_main(t);
    for (size_t i = 0; i < t->n_jobs; i++) {
        const int one = t->job[i].code;
        if (code == CLI_OK || code == CLI_GAPS || one >= CLI_SIGINT) code = one != CLI_OK ? one : code;
    }
    return code;
}

/* ---- ranks -------------------------------------------------------------------------------------------------- */

static void log_line(void *self, const char *line)
{
    struct task *t = self;
    say_begin(t);
    cli_log(t->cli, CLI_NOTE, "%s", line);
    say_end(t);
}

static status open_leader(void *self, struct err *e) { return open_engine(self, e); }

static int lead(struct task *t)
{
    const struct ranks_lead l = { .open = open_leader, .self = t, .api = &t->api, .remote = &t->remote };
    return ranks_lead(t->ranks, &l);
}

/* A rank of group 0 that dies ends the program at once: what is in the journals stays, --resume goes on. */
static status open_all(struct task *t, struct err *e)
{
    const struct groups_options o = { .link = ranks_link(t->ranks), .log = log_line, .log_self = t };
    const status st = read_options(t, e);
    ranks_agree(t->ranks, st == OK ? CLI_OK : cli_exit_of(st));
    TRY(st);
    if (o.link) TRY(groups_create(&o, &t->groups, e));
    ranks_watch(t->ranks, t->groups, NULL, NULL);
    TRY(open_engine(t, e));
    TRY(ask_model(t, e));
    if (t->groups == NULL) return OK;
    groups_local(t->groups, t->api);
    t->questions = questions_create(t->api, t->o.jobs);
    return groups_wait(t->groups, &stopping, e);
}

static void task_free(struct task *t)
{
    ranks_leave(t->ranks);
    if (t->remote) remote_stop(t->remote);
    service_close(&t->service);
    if (t->groups) groups_stop(t->groups);
    groups_destroy(&t->groups);
    remote_destroy(&t->remote);
    questions_destroy(&t->questions);
    api_destroy(&t->api);
    engine_close(&t->en);
    for (size_t i = 0; i < t->n_jobs; i++) {
        free(t->job[i].base);
        free(t->job[i].journal);
        for (int f = 0; f < SUB_N_FORMATS; f++) free(t->job[i].out[f]);
    }
    free(t->job);
    free(t->order);
    pthread_mutex_destroy(&t->lock);
    cli_free(&t->cli);
}

int cli_main_transcribe(int argc, char **argv)
{
    struct task t = { .argc = argc, .argv = argv, .lock = PTHREAD_MUTEX_INITIALIZER };
    struct err e = { 0 };
    bool done;
    status st = cli_parse(&transcribe_command, argc, argv, &t.cli, &done, &e);
    if (st != OK) return cli_fail(NULL, st, &e);
    if (done) {
        cli_free(&t.cli);
        return CLI_OK;
    }
    talkative = !cli_flag(t.cli, "quiet");
    watch_signals();
    st = ranks_open(t.cli, &t.ranks, &e);
    if (st == OK && ranks_role(t.ranks) != RANKS_FRONT && ranks_role(t.ranks) != RANKS_ALONE) {
        const int code = ranks_role(t.ranks) == RANKS_LEADER ? lead(&t) : ranks_work(t.ranks, t.cli);
        task_free(&t);
        return ranks_close(&t.ranks, code);
    }
    if (st == OK) st = open_all(&t, &e);
    int code = st == OK ? transcribe_all(&t) : cli_fail(t.cli, st, &e);
    if (n_signals && code < CLI_SIGINT) code = signal_code();
    task_free(&t);
    return ranks_close(&t.ranks, code);
}
