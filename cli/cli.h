/* cli/cli.h - the command line: options, where their values come from, and how a command ends.
 * Order of truth: flag > environment OMNIDROP_<FLAG> > --config FILE > omnidrop.ini of the model > default.
 * Long options take '-' or '_' alike, "--opt=value" or "--opt value"; a flag also takes "--no-flag". stdout carries
 * results only; everything else goes to stderr. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "prune/policy.h"

enum cli_exit {                    /* docs/http-api.md 4 */
    CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INPUT = 3, CLI_MODEL = 4, CLI_GAPS = 5, CLI_SERVER = 6, CLI_NOMEM = 7,
    CLI_SIGINT = 130, CLI_SIGTERM = 143
};

/* The exit code that a status ends a command with. */
int cli_exit_of(status st);

enum cli_kind { CLI_FLAG, CLI_TEXT, CLI_UINT, CLI_NUMBER, CLI_SECONDS };

struct cli_option {
    const char *name;              /* long name with '-': "max-tokens"                                     */
    char letter;                   /* short name or 0                                                      */
    enum cli_kind kind;
    const char *value;             /* what help calls the value: "N"; NULL for flags                       */
    const char *fallback;          /* default as text, or NULL: not set                                    */
    const char *help;
    const char *word;              /* a whole word of its own that means it: "-ss"; "-otxt" with word_value */
    const char *word_value;        /* what the word sets where it takes no value                           */
    bool repeat;                   /* may be given often; files and environment give a list with commas    */
    const char *const *choices;    /* NULL-terminated: the values that it takes; NULL: any                 */
};

struct cli_command {
    const char *name, *summary, *usage;
    const struct cli_option *const *groups;   /* NULL-terminated list of tables, each ended by name == NULL */
    const char *examples;
};

extern const struct cli_option cli_common_options[];   /* --model, --device, --threads, ... */
extern const struct cli_option cli_policy_options[];   /* --policy, --retention, --p-init, ... */

struct cli;                        /* parsed values of one command */

/* Parse argv[1..] of a command (argv[0] is its name). --help and --print-config are answered here: *done is then true.
 * E_ARG names the option and the values that it takes. */
status cli_parse(const struct cli_command *c, int argc, char **argv, struct cli **out, bool *done, struct err *e);
void cli_free(struct cli **c);

/* Values; of several flags the last one wins. NULL, false or the fallback where not set. Names must be of the command's tables. */
const char *cli_text(const struct cli *c, const char *name);
bool cli_flag(const struct cli *c, const char *name);
bool cli_given(const struct cli *c, const char *name);                   /* by anyone but the default */
status cli_uint(const struct cli *c, const char *name, uint64_t lo, uint64_t hi, uint64_t *out, struct err *e);
status cli_number(const struct cli *c, const char *name, double lo, double hi, double *out, struct err *e);
status cli_seconds(const struct cli *c, const char *name, double *out, struct err *e);   /* 90, 90.5s, 1500ms, 1:02:03.5 */

/* Occurrences in their order, of all options: for --image A --audio B. On the command line; then those of repeatable
 * options that only the environment or a file gives, in the order of the tables. And the free words. */
struct cli_given_option { const struct cli_option *option; const char *value; };
size_t cli_n_given(const struct cli *c);
struct cli_given_option cli_given_at(const struct cli *c, size_t i);
size_t cli_n_words(const struct cli *c);
const char *cli_word(const struct cli *c, size_t i);

/* "90", "90.5s", "1500ms", "01:30", "1:02:03.250" -> seconds. False where it is none of these. */
bool cli_time(const char *text, double *out);

/* Policy from the policy options and --seed, then the model's defaults (NULL: none), for a decoder of n_layers. Without
 * --policy: omnidrop where any of its options is given, else `fallback`. */
struct model_defaults;
status cli_policy(const struct cli *c, const char *fallback, uint32_t n_layers, const struct model_defaults *model,
                  struct policy_params *out, struct err *e);
/* The same with key = value on top, in place of what was given for it. */
status cli_policy_with(const struct cli *c, const char *fallback, uint32_t n_layers, const struct model_defaults *model,
                       const char *key, const char *value, struct policy_params *out, struct err *e);

/* ---- stderr ----------------------------------------------------------------------------------------------- */

/* Levels by -q (errors only), default, -v. --log-format json: one object a line. */
enum cli_level { CLI_ERROR, CLI_NOTE, CLI_DETAIL };
void cli_log(const struct cli *c, enum cli_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* A JSON string of any bytes: what is not UTF-8 becomes U+FFFD. The caller owns the reference. */
json_t *cli_json_string(const char *text);

/* "omnidrop: error: TEXT" and the exit code. */
int cli_fail(const struct cli *c, status st, const struct err *e);

/* ---- commands: each returns the exit code ----------------------------------------------------------------- */

int cli_main_chat(int argc, char **argv);
int cli_main_transcribe(int argc, char **argv);
int cli_main_inspect(int argc, char **argv);
int cli_main_serve(int argc, char **argv);
int cli_main_bench(int argc, char **argv);
int cli_main_bench_plan(int argc, char **argv);
int cli_main_bench_profile(int argc, char **argv);
int cli_main_batch(int argc, char **argv);

/* The engine that the common options describe, its pool for so many full contexts where no bytes are given; says on
 * stderr which model and device it took. */
struct engine;
status cli_engine(const struct cli *c, uint64_t contexts, struct engine **out, struct err *e);
/* The same on the ranks of comm (comm/comm.h), whose others run engine_work; NULL: alone. */
struct comm;
status cli_engine_on(const struct cli *c, uint64_t contexts, struct comm *comm, struct engine **out, struct err *e);

/* One line on stderr: how many films of a stated length the page pool holds at once under policy p, and how many without it;
 * where p is `none`, what omnidrop would give. at_once: how many requests run at most, by the option `limit`. */
void cli_say_capacity(const struct cli *c, const struct engine *en, const struct policy_params *p, uint32_t at_once,
                      const char *limit);

#endif
