/* cli/cli.c - see cli.h. */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <utf8proc.h>

#include "base/ini.h"
#include "base/mem.h"
#include "engine/engine.h"
#include "engine/version.h"

static const char *const LOG_FORMATS[] = { "text", "json", NULL };
static const char *const PROGRESS[] = { "auto", "tty", "plain", "json", "none", NULL };

const struct cli_option cli_common_options[] = {
    { "model", 'm', CLI_TEXT, "DIR", NULL, "checkpoint folder (Hugging Face layout); default: the bundled omni-tiny", NULL, NULL },
    { "device", 0, CLI_TEXT, "NAME", "auto", "auto, cpu or cuda", NULL, NULL },
    { "isa", 0, CLI_TEXT, "NAME", NULL, "CPU instruction set: avx512-bf16, avx512, avx2, plain; default: the best", NULL, NULL },
    { "threads", 't', CLI_UINT, "N", "0", "worker threads; 0: one per CPU", NULL, NULL },
    { "dtype", 0, CLI_TEXT, "NAME", "auto", "auto, bf16 or f32", NULL, NULL },
    { "max-model-len", 0, CLI_UINT, "N", "0", "context in tokens, prompt and answer; 0: the model's own, at most 32768", NULL, NULL },
    { "kv-bytes", 0, CLI_UINT, "N", "0",
      "bytes of the KV page pool; 0: one full context, for serve and batch one for each that runs at once (at most a quarter "
      "of the memory)", NULL, NULL },
    { "work-bytes", 0, CLI_UINT, "N", "0",
      "bytes of a GPU for all that requests work in until they are prefilled, and for caches; 0: four contexts of embeddings", NULL, NULL },
    { "seed", 0, CLI_UINT, "N", "0", "seed of sampling and of random policies", NULL, NULL },
    { "verbose", 'v', CLI_FLAG, NULL, NULL, "say more on stderr", NULL, NULL },
    { "quiet", 'q', CLI_FLAG, NULL, NULL, "errors only on stderr", NULL, NULL },
    { "log-format", 0, CLI_TEXT, "F", "text", "text or json", .choices = LOG_FORMATS },
    { "progress", 0, CLI_TEXT, "F", "auto", "auto, tty, plain, json or none", .choices = PROGRESS },
    { "config", 0, CLI_TEXT, "FILE", NULL, "INI file: sections [common] and one per command, keys are long options", NULL, NULL },
    { "print-config", 0, CLI_FLAG, NULL, NULL, "print the resolved options as such a file and end", NULL, NULL },
    { "help", 'h', CLI_FLAG, NULL, NULL, "this text", NULL, NULL },
    { 0 }
};

const struct cli_option cli_policy_options[] = {
    { "policy", 0, CLI_TEXT, "NAME", NULL, "who drops audio, video and image tokens: none (default), omnidrop, random, ...; "
                                            "default omnidrop where one of the next is given", NULL, NULL },
    { "retention", 0, CLI_NUMBER, "R", NULL, "target mean share of AV tokens alive over the layers, (0, 1]", NULL, NULL },
    { "p-init", 0, CLI_NUMBER, "P", NULL, "share that a shallow layer drops, 0..1", NULL, NULL },
    { "p-final", 0, CLI_NUMBER, "P", NULL, "share that a deep layer drops, 0..1", NULL, NULL },
    { "t-mid", 0, CLI_NUMBER, "T", NULL, "middle of the schedule as share of depth", NULL, NULL },
    { "beta", 0, CLI_NUMBER, "B", NULL, "steepness of the schedule", NULL, NULL },
    { "lambda-div", 0, CLI_NUMBER, "X", NULL, "weight of the temporal diversity score", NULL, NULL },
    { "tds-start-layer", 0, CLI_NUMBER, "L", NULL, "first layer that uses it", NULL, NULL },
    { "step0", 0, CLI_FLAG, NULL, NULL, "pruning before layer 0 (--no-step0: without)", NULL, NULL },
    { "policy-param", 0, CLI_TEXT, "KEY=VALUE", NULL, "a parameter (repeatable; VALUE or @FILE); inspect policies lists them",
      .repeat = true },
    { 0 }
};

#define N_COMMON (sizeof cli_common_options / sizeof *cli_common_options)

struct value { const struct cli_option *option; const char *text; enum { BY_DEFAULT, BY_FILE, BY_ENV, BY_FLAG } by; };

struct cli {
    const struct cli_command *command;
    struct value *value;           /* [n_options], every option of the command once */
    size_t n_options;
    struct cli_given_option *given;
    size_t n_given, given_cap;
    const char **word;
    size_t n_words, word_cap;
    char **own;                    /* texts read from files and environment */
    size_t n_own, own_cap;
};

int cli_exit_of(status st)
{
    switch (st) {
    case OK: return CLI_OK;
    case E_ARG: return CLI_USAGE;
    case E_INPUT: return CLI_INPUT;
    case E_MODEL: return CLI_MODEL;
    case E_NOMEM:
    case E_FULL: return CLI_NOMEM;
    case E_CANCELLED: return CLI_SIGINT;
    default: return CLI_FAILED;
    }
}

/* ---- options ---------------------------------------------------------------------------------------------- */

static bool same_name(const char *a, const char *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((a[i] == '_' ? '-' : a[i]) != b[i]) return false;
    return b[n] == 0;
}

static struct value *find(const struct cli *c, const char *name, size_t n)
{
    for (size_t i = 0; i < c->n_options; i++)
        if (same_name(name, c->value[i].option->name, n)) return &c->value[i];
    return NULL;
}

static struct value *must(const struct cli *c, const char *name)
{
    struct value *v = find(c, name, strlen(name));
    if (v == NULL) {
        fprintf(stderr, "omnidrop: internal: no option --%s\n", name);
        abort();
    }
    return v;
}

static const char *keep_text(struct cli *c, char *text)
{
    struct err e;
    if (mem_grow(&c->own, &c->own_cap, c->n_own + 1, sizeof *c->own, &e) != OK) abort();
    return c->own[c->n_own++] = text;
}

static status set_value(struct cli *c, struct value *v, const char *text, int by, struct err *e)
{
    v->text = text;
    v->by = by;
    if (by != BY_FLAG) return OK;
    TRY(mem_grow(&c->given, &c->given_cap, c->n_given + 1, sizeof *c->given, e));
    c->given[c->n_given++] = (struct cli_given_option){ v->option, text };
    return OK;
}

static void environment_name(const struct cli_option *o, char *out, size_t cap)
{
    size_t n = (size_t)snprintf(out, cap, "OMNIDROP_");
    for (const char *p = o->name; *p && n + 1 < cap; p++) out[n++] = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
    out[n] = 0;
}

/* How a person wrote the option: "--threads", "OMNIDROP_THREADS", "threads in FILE". */
static const char *origin(const struct cli *c, const struct value *v, char *out, size_t cap)
{
    if (v->by == BY_ENV) environment_name(v->option, out, cap);
    else if (v->by == BY_FILE) snprintf(out, cap, "%s in %s", v->option->name, cli_text(c, "config"));
    else snprintf(out, cap, "--%s", v->option->name);
    return out;
}

static bool truth(const char *text) { return text && strchr("t1yo", text[0]) && strcmp(text, "off") != 0; }

/* Does the option take its value? Flags and options with choices; numbers are checked where their range is known. */
static status check_value(const struct cli *c, const struct value *v, struct err *e)
{
    static const char *const truths[] = { "true", "false", "1", "0", "yes", "no", "on", "off", NULL };
    const struct cli_option *o = v->option;
    const char *const *choices = o->kind == CLI_FLAG ? truths : o->choices;
    if (v->by == BY_DEFAULT || choices == NULL) return OK;
    for (const char *const *w = choices; *w; w++)
        if (strcmp(v->text, *w) == 0) return OK;
    char from[256];
    origin(c, v, from, sizeof from);
    if (o->kind == CLI_FLAG)
        return err_set(e, E_ARG, "%s is a switch: it takes no value, or true or false, not \"%s\"", from, v->text);
    return err_set(e, E_ARG, "%s \"%s\": give %s", from, v->text, o->help);
}

/* argv[*i] is an option: take it and its value. */
static status take(struct cli *c, int argc, char **argv, int *i, struct err *e)
{
    const char *a = argv[*i];
    for (size_t k = 0; k < c->n_options; k++) {        /* whole words first: -ss, -otxt */
        const struct cli_option *o = c->value[k].option;
        if (o->word == NULL || strcmp(a, o->word) != 0) continue;
        if (o->word_value) return set_value(c, find(c, o->name, strlen(o->name)), o->word_value, BY_FLAG, e);
        if (*i + 1 >= argc) return err_set(e, E_ARG, "%s needs a value: %s", a, o->value);
        return set_value(c, &c->value[k], argv[++*i], BY_FLAG, e);
    }
    const char *name = a + 2, *eq = NULL;
    struct value *v = NULL;
    bool negated = false;
    if (a[1] == '-') {
        eq = strchr(name, '=');
        const size_t n = eq ? (size_t)(eq - name) : strlen(name);
        v = find(c, name, n);
        if (v == NULL && n > 3 && (strncmp(name, "no-", 3) == 0 || strncmp(name, "no_", 3) == 0)) {
            v = find(c, name + 3, n - 3);
            negated = true;
            if (v && v->option->kind != CLI_FLAG) v = NULL;
        }
    } else {
        for (size_t k = 0; k < c->n_options; k++)
            if (c->value[k].option->letter == a[1]) v = &c->value[k];
        if (v && a[2] != 0) {
            if (v->option->kind == CLI_FLAG) v = NULL;
            else eq = a + (a[2] == '=' ? 2 : 1);       /* -t4, -t=4 */
        }
    }
    if (v == NULL)
        return err_set(e, E_ARG, "%s: no such option; omnidrop %s --help lists them", a, c->command->name);
    if (v->option->kind == CLI_FLAG) {
        if (eq && negated) return err_set(e, E_ARG, "%s: --no-... takes no value", a);
        return set_value(c, v, eq ? eq + 1 : negated ? "false" : "true", BY_FLAG, e);
    }
    if (eq) return set_value(c, v, eq + 1, BY_FLAG, e);
    if (*i + 1 >= argc)
        return err_set(e, E_ARG, "%s needs a value: %s (%s)", a, v->option->value, v->option->help);
    return set_value(c, v, argv[++*i], BY_FLAG, e);
}

/* An empty variable is none. */
static status from_environment(struct cli *c, struct err *e)
{
    for (size_t i = 0; i < c->n_options; i++) {
        struct value *v = &c->value[i];
        char name[96];
        environment_name(v->option, name, sizeof name);
        const char *text = getenv(name);
        if (text == NULL || text[0] == 0 || v->by == BY_FLAG) continue;
        TRY(set_value(c, v, text, BY_ENV, e));
    }
    return OK;
}

/* INI: [common] and [COMMAND]; other sections are other commands'. */
static status read_config(struct cli *c, struct ini *in, struct err *e)
{
    for (;;) {
        bool more;
        TRY(ini_next(in, &more, e));
        if (!more) return OK;
        const bool ours = in->section[0] == 0 || strcmp(in->section, "common") == 0 ||
                          strcmp(in->section, c->command->name) == 0;
        if (in->key == NULL || !ours) continue;
        struct value *v = find(c, in->key, strlen(in->key));
        if (v == NULL) {
            err_set(e, E_ARG, "omnidrop %s has no option \"%s\"", c->command->name, in->key);
            return ini_err(in, e);
        }
        if (v->by < BY_ENV) TRY(set_value(c, v, keep_text(c, mem_must_strdup(in->value)), BY_FILE, e));
    }
}

static status from_file(struct cli *c, const char *path, struct err *e)
{
    struct ini in;
    struct err why;
    status st = ini_open(path, E_ARG, &in, &why);
    if (st != OK) err_set(e, E_ARG, "--config %s", why.text);
    else st = read_config(c, &in, e);
    ini_close(&in);
    return st;
}

/* The next item of a list, in place: blanks around it fall away, a backslash keeps what follows it as it is. *rest:
 * behind the comma, or NULL. */
static char *next_item(char *list, char **rest)
{
    while (isspace((unsigned char)*list)) list++;
    char *out = list, *end = list;                     /* end: behind the last character that is no blank */
    const char *p = list;
    for (; *p && *p != ','; p++) {
        const bool escaped = *p == '\\' && p[1] != 0;
        if (escaped) p++;
        *out++ = *p;
        if (escaped || !isspace((unsigned char)*p)) end = out;
    }
    *rest = *p ? (char *)p + 1 : NULL;
    *end = 0;
    return list;
}

/* Repeatable options that no flag names. */
static status take_lists(struct cli *c, struct err *e)
{
    for (size_t i = 0; i < c->n_options; i++) {
        const struct value *v = &c->value[i];
        if (!v->option->repeat || (v->by != BY_FILE && v->by != BY_ENV)) continue;
        char *rest = mem_must_strdup(v->text);
        keep_text(c, rest);
        while (rest) {
            TRY(mem_grow(&c->given, &c->given_cap, c->n_given + 1, sizeof *c->given, e));
            c->given[c->n_given++] = (struct cli_given_option){ v->option, next_item(rest, &rest) };
        }
    }
    return OK;
}

static void print_help(const struct cli *c)
{
    printf("%s\n\nusage: %s\n", c->command->summary, c->command->usage);
    for (size_t g = 0; c->command->groups[g]; g++) {
        printf("\n");
        for (const struct cli_option *o = c->command->groups[g]; o->name; o++) {
            char left[64];
            if (o->letter) snprintf(left, sizeof left, "-%c, --%s %s", o->letter, o->name, o->value ? o->value : "");
            else snprintf(left, sizeof left, "%s%s--%s %s", o->word ? o->word : "", o->word ? ", " : "    ", o->name,
                          o->value ? o->value : "");
            printf("  %-30s %s", left, o->help);
            if (o->fallback) printf(" [%s]", o->fallback);
            printf("\n");
        }
    }
    if (c->command->examples) printf("\n%s\n", c->command->examples);
}

/* A value between double quotes, as unquote and next_item read it. */
static void print_quoted(const char *text, bool item)
{
    const size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) {
        const bool edge = (i == 0 || i + 1 == n) && text[i] == ' ';
        if (item && (text[i] == ',' || text[i] == '\\' || edge)) fputs("\\\\", stdout);
        if (text[i] == '\n') fputs("\\n", stdout);
        else if (text[i] == '"' || text[i] == '\\') printf("\\%c", text[i]);
        else putchar(text[i]);
    }
}

static void print_config_line(const struct cli *c, const struct value *v)
{
    const struct cli_option *o = v->option;
    const char *t = v->text;
    const size_t n = strlen(t);
    if (!o->repeat && n && !isspace((unsigned char)t[0]) && !isspace((unsigned char)t[n - 1]) && t[0] != '"' &&
        strchr(t, '\n') == NULL) {
        printf("%s = %s\n", o->name, t);
        return;
    }
    printf("%s = \"", o->name);
    size_t n_items = 0;
    for (size_t i = 0; o->repeat && i < c->n_given; i++) {
        if (c->given[i].option != o) continue;
        if (n_items++) putchar(',');
        print_quoted(c->given[i].value, true);
    }
    if (!o->repeat) print_quoted(t, false);
    printf("\"\n");
}

static void print_config(const struct cli *c)
{
    for (int own = 0; own < 2; own++) {
        printf("%s[%s]\n", own ? "\n" : "", own ? c->command->name : "common");
        for (size_t i = 0; i < c->n_options; i++) {
            const struct cli_option *o = c->value[i].option;
            const bool common = o >= cli_common_options && o < cli_common_options + N_COMMON;
            if (common == !!own || strcmp(o->name, "help") == 0 || strcmp(o->name, "print-config") == 0 ||
                strcmp(o->name, "config") == 0 || c->value[i].text == NULL)
                continue;
            print_config_line(c, &c->value[i]);
        }
    }
}

static status parse(struct cli *c, int argc, char **argv, bool *done, struct err *e)
{
    size_t n = 0;
    for (size_t g = 0; c->command->groups[g]; g++)
        for (const struct cli_option *o = c->command->groups[g]; o->name; o++) n++;
    TRY(mem_alloc(&c->value, n, sizeof *c->value, e));
    for (size_t g = 0; c->command->groups[g]; g++)
        for (const struct cli_option *o = c->command->groups[g]; o->name; o++)
            c->value[c->n_options++] = (struct value){ o, o->fallback, BY_DEFAULT };
    bool words_only = false;
    for (int i = 1; i < argc; i++) {
        if (!words_only && strcmp(argv[i], "--") == 0) {
            words_only = true;
        } else if (!words_only && argv[i][0] == '-' && argv[i][1] != 0) {
            TRY(take(c, argc, argv, &i, e));
        } else {
            TRY(mem_grow(&c->word, &c->word_cap, c->n_words + 1, sizeof *c->word, e));
            c->word[c->n_words++] = argv[i];
        }
    }
    *done = cli_flag(c, "help");
    if (*done) {
        print_help(c);
        return OK;
    }
    TRY(from_environment(c, e));
    if (cli_text(c, "config")) TRY(from_file(c, cli_text(c, "config"), e));
    for (size_t i = 0; i < c->n_options; i++) TRY(check_value(c, &c->value[i], e));
    TRY(take_lists(c, e));
    *done = cli_flag(c, "print-config");
    if (*done) print_config(c);
    return OK;
}

status cli_parse(const struct cli_command *command, int argc, char **argv, struct cli **out, bool *done, struct err *e)
{
    struct cli *c;
    *done = false;
    TRY(mem_alloc(&c, 1, sizeof *c, e));
    c->command = command;
    const status st = parse(c, argc, argv, done, e);
    if (st != OK) cli_free(&c);
    else *out = c;
    return st;
}

void cli_free(struct cli **pc)
{
    struct cli *c = *pc;
    if (c == NULL) return;
    for (size_t i = 0; i < c->n_own; i++) free(c->own[i]);
    free(c->own);
    free(c->value);
    free(c->given);
    free(c->word);
    free(c);
    *pc = NULL;
}

const char *cli_text(const struct cli *c, const char *name) { return must(c, name)->text; }
bool cli_flag(const struct cli *c, const char *name) { return truth(must(c, name)->text); }
bool cli_given(const struct cli *c, const char *name) { return must(c, name)->by != BY_DEFAULT; }
size_t cli_n_given(const struct cli *c) { return c->n_given; }
struct cli_given_option cli_given_at(const struct cli *c, size_t i) { return c->given[i]; }
size_t cli_n_words(const struct cli *c) { return c->n_words; }
const char *cli_word(const struct cli *c, size_t i) { return c->word[i]; }

status cli_uint(const struct cli *c, const char *name, uint64_t lo, uint64_t hi, uint64_t *out, struct err *e)
{
    const char *text = cli_text(c, name);
    if (text == NULL) return OK;
    char *end, from[256];
    errno = 0;
    const unsigned long long v = strtoull(text, &end, 10);
    if (errno || end == text || *end != 0 || strchr(text, '-') || v < lo || v > hi)
        return err_set(e, E_ARG, "%s %s: give a whole number from %llu to %llu", origin(c, must(c, name), from, sizeof from),
                       text, (unsigned long long)lo, (unsigned long long)hi);
    *out = v;
    return OK;
}

status cli_number(const struct cli *c, const char *name, double lo, double hi, double *out, struct err *e)
{
    const char *text = cli_text(c, name);
    if (text == NULL) return OK;
    char *end, from[256];
    const double v = strtod(text, &end);
    if (end == text || *end != 0 || !(v >= lo && v <= hi))
        return err_set(e, E_ARG, "%s %s: give a number from %g to %g", origin(c, must(c, name), from, sizeof from), text, lo,
                       hi);
    *out = v;
    return OK;
}

bool cli_time(const char *text, double *out)
{
    double total = 0;
    const char *p = text;
    for (int fields = 1; ; fields++) {
        if (!isdigit((unsigned char)*p) && *p != '.') return false;
        char *end;
        const double v = strtod(p, &end);
        if (end == p || !isfinite(v) || strpbrk(text, "eExXnN") != NULL) return false;
        total = total * 60 + v;
        if (*end == 0) break;
        if (fields == 1 && strcmp(end, "s") == 0) break;
        if (fields == 1 && strcmp(end, "ms") == 0) {
            total /= 1000;
            break;
        }
        if (*end != ':' || fields == 3) return false;
        p = end + 1;
    }
    *out = total;
    return true;
}

status cli_seconds(const struct cli *c, const char *name, double *out, struct err *e)
{
    const char *text = cli_text(c, name);
    char from[256];
    if (text == NULL || cli_time(text, out)) return OK;
    return err_set(e, E_ARG, "%s %s: give a time such as 90, 90.5s, 1500ms, 01:30 or 1:02:03.250",
                   origin(c, must(c, name), from, sizeof from), text);
}

status cli_policy(const struct cli *c, const char *fallback, uint32_t n_layers, const struct model_defaults *model,
                  struct policy_params *out, struct err *e)
{
    return cli_policy_with(c, fallback, n_layers, model, "", NULL, out, e);
}

/* A value given as @FILE: the file's text into room, which holds cap bytes; else the value itself. */
static status value_text(const char *value, char *room, size_t cap, const char **out, struct err *e)
{
    *out = value;
    if (value[0] != '@') return OK;
    FILE *f = fopen(value + 1, "rb");
    if (f == NULL) return err_set(e, E_ARG, "%s: %s", value + 1, strerror(errno));
    const size_t n = fread(room, 1, cap, f);
    const bool failed = ferror(f) || n == cap;
    fclose(f);
    if (failed) return err_set(e, E_ARG, "%s: cannot be read, or is longer than %zu bytes", value + 1, cap - 1);
    room[n] = 0;
    *out = room;
    return OK;
}

status cli_policy_with(const struct cli *c, const char *fallback, uint32_t n_layers, const struct model_defaults *model,
                       const char *over, const char *value, struct policy_params *out, struct err *e)
{
    const char *name = cli_text(c, "policy");
    for (const struct cli_option *o = cli_policy_options; name == NULL && o->name; o++)
        if (cli_given(c, o->name)) name = "omnidrop";
    TRY(prune_params_init(out, name ? name : fallback, n_layers, e));
    for (const struct cli_option *o = cli_policy_options; o->name; o++) {
        if (strcmp(o->name, "policy") == 0 || o->repeat || !cli_given(c, o->name)) continue;
        char key[64];
        snprintf(key, sizeof key, "%s", o->name);
        for (char *p = key; *p; p++)
            if (*p == '-') *p = '_';
        if (strcmp(key, over) != 0) TRY(prune_params_set_text(out, key, cli_text(c, o->name), e));
    }
    for (size_t i = 0; i < c->n_given; i++) {
        const char *text = c->given[i].value, *eq = strchr(text, '=');
        char key[64];
        if (strcmp(c->given[i].option->name, "policy-param") != 0) continue;
        if (eq == NULL || (size_t)(eq - text) >= sizeof key)
            return err_set(e, E_ARG, "--policy-param %s: give KEY=VALUE, such as kappa=0.3", text);
        snprintf(key, sizeof key, "%.*s", (int)(eq - text), text);
        char room[8192];
        TRY(value_text(eq + 1, room, sizeof room, &text, e));
        if (strcmp(key, over) != 0) TRY(prune_params_set_text(out, key, text, e));
    }
    if (value != NULL) TRY(prune_params_set_text(out, over, value, e));
    if (cli_given(c, "seed") && prune_has(out, "seed") && !prune_is_set(out, "seed"))
        TRY(prune_params_set_text(out, "seed", cli_text(c, "seed"), e));
    model_defaults_policy(model, out);
    return prune_params_finish(out, e);
}

/* ---- stderr ----------------------------------------------------------------------------------------------- */

json_t *cli_json_string(const char *text)
{
    json_t *s = json_string(text);
    if (s) return s;
    const size_t n = strlen(text);
    char *clean = mem_must(3 * n + 1, 1), *out = clean;
    for (size_t i = 0; i < n; ) {
        utf8proc_int32_t point;
        const utf8proc_ssize_t used = utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(n - i), &point);
        out += utf8proc_encode_char(used > 0 ? point : 0xFFFD, (utf8proc_uint8_t *)out);
        i += used > 0 ? (size_t)used : 1;
    }
    s = json_string(clean);
    free(clean);
    return s;
}

void cli_log(const struct cli *c, enum cli_level level, const char *fmt, ...)
{
    static const char *const name[] = { "error", "note", "detail" };
    const enum cli_level most = c == NULL ? CLI_NOTE : cli_flag(c, "quiet") ? CLI_ERROR
                                : cli_flag(c, "verbose") ? CLI_DETAIL : CLI_NOTE;
    if (level > most) return;
    char text[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (c && strcmp(cli_text(c, "log-format"), "json") == 0) {
        json_t *o = json_pack("{s:s, s:o}", "level", name[level], "message", cli_json_string(text));
        char *line = json_dumps(o, JSON_COMPACT);
        fprintf(stderr, "%s\n", line);
        free(line);
        json_decref(o);
        return;
    }
    fprintf(stderr, "omnidrop: %s%s\n", level == CLI_ERROR ? "error: " : "", text);
}

int cli_fail(const struct cli *c, status st, const struct err *e)
{
    cli_log(c, CLI_ERROR, "%s", e->text);
    return cli_exit_of(st);
}

/* ---- the engine ------------------------------------------------------------------------------------------- */

status cli_engine(const struct cli *c, uint64_t contexts, struct engine **out, struct err *e)
{
    return cli_engine_on(c, contexts, NULL, out, e);
}

status cli_engine_on(const struct cli *c, uint64_t contexts, struct comm *comm, struct engine **out, struct err *e)
{
    uint64_t threads = 0, len = 0, kv = 0, work = 0;
    TRY(cli_uint(c, "threads", 0, 256, &threads, e));
    TRY(cli_uint(c, "max-model-len", 0, 1u << 24, &len, e));
    TRY(cli_uint(c, "kv-bytes", 0, (uint64_t)1 << 46, &kv, e));
    TRY(cli_uint(c, "work-bytes", 0, (uint64_t)1 << 46, &work, e));
    const struct engine_options o = { .model_dir = cli_text(c, "model"), .device = cli_text(c, "device"),
                                      .isa = cli_text(c, "isa"), .n_threads = (int)threads, .dtype = cli_text(c, "dtype"),
                                      .max_model_len = (uint32_t)len, .kv_bytes = kv, .work_bytes = work,
                                      .kv_contexts = (uint32_t)contexts, .comm = comm };
    TRY(engine_open(&o, out, e));
    const struct engine_info *i = engine_info(*out);
    if (i->bundled) cli_log(c, CLI_NOTE, "no model was named: using the bundled %s (%s)", i->model_name, i->model_dir);
    cli_log(c, CLI_DETAIL, "%s on %s, %s, %.1f MB of weights, %u pages of %zu bytes, loaded in %.2f s", i->model_name,
            i->device, i->compute == DT_F32 ? "f32" : "bf16", (double)i->weight_bytes / 1e6, i->n_pages, i->page_bytes,
            i->load_s);
    return OK;
}
