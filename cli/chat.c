/* cli/chat.c - omnidrop chat: one question with -p, or a conversation line by line. */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "engine/engine.h"

static const struct cli_option chat_options[] = {
    { "prompt", 'p', CLI_TEXT, "TEXT", NULL, "the question; @FILE reads it, - reads standard input", NULL, NULL },
    { "system", 0, CLI_TEXT, "TEXT", NULL, "system message in place of the model's own", NULL, NULL },
    { "image", 0, CLI_TEXT, "FILE", NULL, "a picture (repeatable; media keep their order)", .repeat = true },
    { "audio", 0, CLI_TEXT, "FILE", NULL, "a sound (repeatable)", .repeat = true },
    { "video", 0, CLI_TEXT, "FILE", NULL, "a film (repeatable)", .repeat = true },
    { "audio-in-video", 0, CLI_FLAG, NULL, NULL, "hear the films too; default: where every film has sound", NULL, NULL },
    { "fps", 0, CLI_NUMBER, "N", NULL, "frames a second to look at [2]", NULL, NULL },
    { "min-pixels", 0, CLI_UINT, "N", NULL, "of a picture or frame; default: the checkpoint's", NULL, NULL },
    { "max-pixels", 0, CLI_UINT, "N", NULL, "of a picture or frame", NULL, NULL },
    { "max-tokens", 0, CLI_UINT, "N", "512", "length of the answer at most", NULL, NULL },
    { "temperature", 0, CLI_NUMBER, "T", "0", "0: greedy", NULL, NULL },
    { "top-p", 0, CLI_NUMBER, "P", "1", "sample from the likeliest tokens that make up P", NULL, NULL },
    { "top-k", 0, CLI_UINT, "K", "0", "sample from the K likeliest tokens; 0: all", NULL, NULL },
    { "min-p", 0, CLI_NUMBER, "P", "0", "leave out what is less likely than P times the best", NULL, NULL },
    { "repetition-penalty", 0, CLI_NUMBER, "X", "1", "over prompt and answer; 1: none", NULL, NULL },
    { "presence-penalty", 0, CLI_NUMBER, "X", "0", "over the answer", NULL, NULL },
    { "frequency-penalty", 0, CLI_NUMBER, "X", "0", "over the answer", NULL, NULL },
    { "stop", 0, CLI_TEXT, "TEXT", NULL, "end before this text (repeatable)", .repeat = true },
    { "stream", 0, CLI_FLAG, NULL, "true", "show text as it comes (--no-stream: at the end)", NULL, NULL },
    { "json", 0, CLI_FLAG, NULL, NULL, "one JSON object an answer", NULL, NULL },
    { "return-pruning", 0, CLI_FLAG, NULL, NULL, "what lived at each layer, and its pages", NULL, NULL },
    { 0 }
};

static const struct cli_option *const chat_groups[] = { chat_options, cli_policy_options, cli_common_options, NULL };
static const struct cli_command chat_command = {
    .name = "chat", .summary = "Ask about pictures, sound and films.",
    .usage = "omnidrop chat [-m DIR] [--video FILE]... [-p TEXT] [options]\n"
             "       without -p: a conversation; /image FILE, /audio FILE, /video FILE, /reset, /quit",
    .groups = chat_groups,
    .examples = "omnidrop chat --video clip.mp4 -p \"What is said?\"\n"
                "omnidrop chat --video clip.mp4 --retention 0.3 --return-pruning -p \"What is shown at second 3?\"" };

static struct engine *volatile running_engine;
static volatile sig_atomic_t asked_to_end;

/* The first Ctrl-C ends an answer at its next step; where none is being made, or at the second, the program ends. */
static void on_signal(int sig)
{
    (void)sig;
    struct engine *en = running_engine;
    if (en == NULL || asked_to_end++) _exit(CLI_SIGINT);
    engine_interrupt(en);
}

/* ---- output ----------------------------------------------------------------------------------------------- */

static bool to_stdout(void *self, const char *text, size_t n)
{
    (void)self;
    return fwrite(text, 1, n, stdout) == n && fflush(stdout) == 0;
}

static const char *finish_name(enum eng_finish f)
{
    static const char *const name[] = { "unfinished", "stop", "length", "cancelled", "failed" };
    return name[f];
}

static uint32_t av_of(const uint32_t alive[4]) { return alive[1] + alive[2] + alive[3]; }

/* The statistics of docs/http-api.md 1.6. Owned by the caller. */
static json_t *pruning_json(const struct engine *en, const struct eng_result *r, const struct policy_params *p,
                            const struct policy_plan *plan)
{
    const struct engine_info *info = engine_info(en);
    json_t *kept = json_array(), *pages = json_array();
    uint64_t held = 0;
    for (uint32_t l = 0; l < r->n_layers; l++) {
        json_array_append_new(kept, json_integer(av_of(r->alive[l])));
        json_array_append_new(pages, json_integer(r->pages[l]));
        held += r->pages[l];
    }
    const uint64_t whole = (uint64_t)r->n_layers * ((r->n_prompt + info->page_tokens - 1) / info->page_tokens);
    const uint32_t *last = r->alive[r->n_layers];
    return json_pack("{s:s, s:o, s:{s:i,s:i,s:i}, s:i, s:o, s:o, s:{s:i,s:i,s:i}, s:f, s:I, s:I, s:f, s:f, s:f, s:f}",
                     "policy", prune_params_name(p), "resolved", prune_plan_to_json(p, plan),
                     "av_tokens_in", "audio", (int)r->n_av[TOKEN_AUDIO], "video", (int)r->n_av[TOKEN_VIDEO],
                     "image", (int)r->n_av[TOKEN_IMAGE], "layers", (int)r->n_layers, "kept_per_layer", kept,
                     "pages_per_layer", pages, "kept_last", "audio", (int)last[TOKEN_AUDIO], "video",
                     (int)last[TOKEN_VIDEO], "image", (int)last[TOKEN_IMAGE], "mean_retention", r->mean_retention,
                     "kv_bytes", (json_int_t)(held * info->page_bytes), "kv_bytes_unpruned",
                     (json_int_t)(whole * info->page_bytes), "media_ms", r->media_s * 1e3, "encode_ms", r->tower_s * 1e3,
                     "prefill_ms", r->prefill_s * 1e3, "decode_ms", r->decode_s * 1e3);
}

static void print_pruning(const struct engine *en, const struct eng_result *r, const struct policy_params *p)
{
    const struct engine_info *info = engine_info(en);
    uint64_t held = 0;
    fprintf(stderr, "policy %s: %u AV tokens in (audio %u, video %u, image %u), mean retention %.4f\n",
            prune_params_name(p), r->n_av[1] + r->n_av[2] + r->n_av[3], r->n_av[TOKEN_AUDIO], r->n_av[TOKEN_VIDEO],
            r->n_av[TOKEN_IMAGE], r->mean_retention);
    fprintf(stderr, "layer  AV tokens  audio  video  image  pages\n");
    for (uint32_t l = 0; l < r->n_layers; l++) {
        const uint32_t *a = r->alive[l];
        fprintf(stderr, "%5u  %9u  %5u  %5u  %5u  %5u\n", l, av_of(a), a[TOKEN_AUDIO], a[TOKEN_VIDEO], a[TOKEN_IMAGE],
                r->pages[l]);
        held += r->pages[l];
    }
    const uint64_t whole = (uint64_t)r->n_layers * ((r->n_prompt + info->page_tokens - 1) / info->page_tokens);
    fprintf(stderr, "pages %llu of %llu unpruned (%.1f of %.1f kB); media %.3f s, towers %.3f s, prefill %.3f s, decode "
                    "%.3f s (%u tokens)\n", (unsigned long long)held, (unsigned long long)whole,
            (double)held * (double)info->page_bytes / 1e3, (double)whole * (double)info->page_bytes / 1e3, r->media_s,
            r->tower_s, r->prefill_s, r->decode_s, r->n_ids);
}

/* ---- one answer ------------------------------------------------------------------------------------------- */

struct session {
    struct cli *cli;
    struct engine *en;
    struct eng_request_options o;
    struct policy_params policy;
    const char **stop;
    bool stream, json, pruning;
};

/* Run the chat; the text goes to stdout, *answer (owned, may be NULL) gets a copy. */
static status answer(struct session *s, const struct chat *chat, char **text, struct err *e)
{
    struct eng_request *r = NULL;
    s->o.on_text = s->stream && !s->json ? to_stdout : NULL;
    TRY(eng_request_create(s->en, chat, &s->o, &r, e));
    asked_to_end = 0;
    running_engine = s->en;
    status st = eng_run(s->en, &r, 1, e);
    running_engine = NULL;
    const struct eng_result *res = eng_request_result(r);
    if (st == OK && res->finish == ENG_FAILED) {
        *e = res->error;
        st = e->code;
    }
    if (st == OK && res->finish == ENG_CANCELLED) st = err_set(e, E_CANCELLED, "interrupted");
    if (st == E_CANCELLED && res->n_text && s->o.on_text) printf("\n");
    if (eng_request_warnings(r)) cli_log(s->cli, CLI_NOTE, "%s", eng_request_warnings(r));
    if (st == OK && s->json) {
        json_t *o = json_pack("{s:o, s:s%, s:s, s:{s:i, s:i, s:i}}", "model",
                              cli_json_string(engine_info(s->en)->model_name), "text", res->text, res->n_text,
                              "finish_reason", finish_name(res->finish), "usage", "prompt_tokens", (int)res->n_prompt,
                              "completion_tokens", (int)res->n_ids, "total_tokens", (int)(res->n_prompt + res->n_ids));
        if (eng_request_warnings(r))
            json_object_set_new(o, "warnings", cli_json_string(eng_request_warnings(r)));
        if (s->pruning) json_object_set_new(o, "omnidrop", pruning_json(s->en, res, &s->policy,
                                                                             eng_request_plan(r)));
        json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(15));
        printf("\n");
        json_decref(o);
    } else if (st == OK) {
        if (!s->stream) fwrite(res->text, 1, res->n_text, stdout);
        printf("\n");
        if (s->pruning) print_pruning(s->en, res, &s->policy);
    }
    fflush(stdout);
    if (st == OK && text) *text = mem_must_strdup(res->text);
    eng_request_destroy(s->en, &r);
    return st;
}

static status session_open(struct session *s, struct err *e)
{
    const struct cli *c = s->cli;
    uint64_t max_tokens = 0, top_k = 0, seed = 0, min_pixels = 0, max_pixels = 0;
    double t = 0, top_p = 1, min_p = 0, rep = 1, pres = 0, freq = 0;
    s->o = eng_request_defaults();
    TRY(cli_uint(c, "max-tokens", 1, 1u << 24, &max_tokens, e));
    TRY(cli_number(c, "temperature", 0, 2, &t, e));
    TRY(cli_number(c, "top-p", 1e-6, 1, &top_p, e));
    TRY(cli_uint(c, "top-k", 0, 1u << 24, &top_k, e));
    TRY(cli_number(c, "min-p", 0, 1, &min_p, e));
    TRY(cli_number(c, "repetition-penalty", 0.01, 10, &rep, e));
    TRY(cli_number(c, "presence-penalty", -2, 2, &pres, e));
    TRY(cli_number(c, "frequency-penalty", -2, 2, &freq, e));
    TRY(cli_uint(c, "seed", 0, UINT64_MAX, &seed, e));
    TRY(cli_number(c, "fps", 0.001, 240, &s->o.fps, e));
    TRY(cli_uint(c, "min-pixels", 1, UINT64_MAX / 2, &min_pixels, e));
    TRY(cli_uint(c, "max-pixels", 1, UINT64_MAX / 2, &max_pixels, e));
    s->o.max_tokens = (uint32_t)max_tokens;
    s->o.sample = (struct sample_params){ .temperature = (float)t, .top_k = (uint32_t)top_k, .top_p = (float)top_p,
                                          .min_p = (float)min_p, .repetition_penalty = (float)rep,
                                          .presence_penalty = (float)pres, .frequency_penalty = (float)freq, .seed = seed };
    s->o.min_pixels = min_pixels;
    s->o.max_pixels = max_pixels;
    if (cli_given(c, "audio-in-video")) s->o.audio_in_video = cli_flag(c, "audio-in-video");
    else s->o.auto_audio = true;
    size_t n_stop = 0;
    s->stop = mem_must(cli_n_given(c), sizeof *s->stop);
    for (size_t i = 0; i < cli_n_given(c); i++)
        if (strcmp(cli_given_at(c, i).option->name, "stop") == 0) s->stop[n_stop++] = cli_given_at(c, i).value;
    for (size_t i = 0; i < n_stop; i++)
        if (s->stop[i][0] == 0) return err_set(e, E_ARG, "--stop: an empty text ends nothing: leave it out");
    s->o.stop = s->stop;
    s->o.n_stop = (uint32_t)n_stop;
    s->stream = cli_flag(c, "stream");
    s->json = cli_flag(c, "json");
    s->pruning = cli_flag(c, "return-pruning");
    TRY(cli_engine(c, 1, &s->en, e));
    TRY(cli_policy(c, "none", engine_config(s->en)->text.layers, engine_defaults(s->en), &s->policy, e));
    s->o.policy = &s->policy;
    return OK;
}

#define PROMPT_MAX ((size_t)16 << 20)   /* bytes */

/* The prompt's text, n bytes: as given, of a file, or of standard input; line ends at its end fall away. Owned by the
 * caller. */
static status prompt_text(const char *arg, char **out, size_t *n_out, struct err *e)
{
    if (arg[0] != '@' && strcmp(arg, "-") != 0) {
        *out = mem_must_strdup(arg);
        *n_out = strlen(arg);
        return OK;
    }
    FILE *f = arg[0] == '@' ? fopen(arg + 1, "re") : stdin;
    if (f == NULL) return err_set(e, E_INPUT, "%s: %s", arg + 1, strerror(errno));
    char *text = NULL;
    size_t n = 0, cap = 0;
    status st = OK;
    do {
        st = mem_grow(&text, &cap, n + 4096, 1, e);
        if (st == OK) n += fread(text + n, 1, 4095, f);
    } while (st == OK && !feof(f) && !ferror(f) && n <= PROMPT_MAX);
    if (st == OK && ferror(f)) st = err_set(e, E_INPUT, "%s cannot be read: %s", arg, strerror(errno));
    if (st == OK && n > PROMPT_MAX) st = err_set(e, E_INPUT, "%s: a prompt of more than %zu bytes", arg, PROMPT_MAX);
    if (f != stdin) fclose(f);
    if (st != OK) {
        free(text);
        return st;
    }
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r')) n--;
    *out = text;
    *n_out = n;
    return OK;
}

static bool media_kind(const char *name, enum chat_part_kind *kind)
{
    static const struct { const char *name; enum chat_part_kind kind; } KINDS[] = {
        { "image", PART_IMAGE }, { "audio", PART_AUDIO }, { "video", PART_VIDEO } };
    for (size_t i = 0; i < 3; i++)
        if (strcmp(name, KINDS[i].name) == 0) {
            *kind = KINDS[i].kind;
            return true;
        }
    return false;
}

static bool has_given_media(const struct cli *c)
{
    enum chat_part_kind kind;
    for (size_t i = 0; i < cli_n_given(c); i++)
        if (media_kind(cli_given_at(c, i).option->name, &kind)) return true;
    return false;
}

static status add_given_media(const struct cli *c, struct chat *chat, struct err *e)
{
    for (size_t i = 0; i < cli_n_given(c); i++) {
        enum chat_part_kind kind;
        if (media_kind(cli_given_at(c, i).option->name, &kind))
            TRY(chat_add_media(chat, kind, cli_given_at(c, i).value, e));
    }
    return OK;
}

static status start_chat(const struct cli *c, struct chat *chat, struct err *e)
{
    const char *system = cli_text(c, "system");
    chat_init(chat);
    if (system) {
        TRY(chat_add_message(chat, CHAT_SYSTEM, e));
        TRY(chat_add_text(chat, system, strlen(system), e));
    }
    return OK;
}

static status one_question(struct session *s, struct err *e)
{
    struct chat chat;
    char *text = NULL;
    size_t n = 0;
    TRY(prompt_text(cli_text(s->cli, "prompt"), &text, &n, e));
    status st = start_chat(s->cli, &chat, e);
    if (st == OK) st = chat_add_message(&chat, CHAT_USER, e);
    if (st == OK) st = add_given_media(s->cli, &chat, e);
    if (st == OK) st = chat_add_text(&chat, text, n, e);
    if (st == OK) st = answer(s, &chat, NULL, e);
    chat_free(&chat);
    free(text);
    return st;
}

/* /image FILE, /audio FILE, /video FILE: media that go before the next question. */
static status add_named_media(struct chat *chat, char *line, bool *open, struct err *e)
{
    char *file = strchr(line, ' ');
    enum chat_part_kind kind;
    if (file) *file++ = 0;
    while (file && *file == ' ') file++;
    if (file == NULL || *file == 0 || !media_kind(line + 1, &kind))
        return err_set(e, E_ARG, "%s: /image FILE, /audio FILE, /video FILE, /reset or /quit", line);
    if (!*open) TRY(chat_add_message(chat, CHAT_USER, e));
    *open = true;
    return chat_add_media(chat, kind, file, e);
}

/* A line asked, its answer added to the chat; the question is taken back where there is none. */
static status ask_line(struct session *s, struct chat *chat, const char *line, size_t n, bool *open, struct err *e)
{
    char *said = NULL;
    if (!*open) TRY(chat_add_message(chat, CHAT_USER, e));
    *open = true;
    status st = chat_add_text(chat, line, n, e);
    if (st == OK) st = answer(s, chat, &said, e);
    *open = false;
    if (st != OK) {
        chat_drop_last(chat);
        return st;
    }
    st = chat_add_message(chat, CHAT_ASSISTANT, e);
    if (st == OK) st = chat_add_text(chat, said, strlen(said), e);
    free(said);
    return st;
}

/* A conversation, a line a turn. On a terminal it outlives what goes wrong with a line; a script ends there. */
static status conversation(struct session *s, struct err *e)
{
    struct chat chat;
    char *line = NULL;
    size_t cap = 0;
    bool open = false;             /* a user message has been begun */
    const bool tty = isatty(0);
    status st = start_chat(s->cli, &chat, e);
    if (st == OK && has_given_media(s->cli)) {
        st = chat_add_message(&chat, CHAT_USER, e);
        if (st == OK) st = add_given_media(s->cli, &chat, e);
        open = true;
    }
    while (st == OK) {
        if (tty) fprintf(stderr, "> ");
        const ssize_t got = getline(&line, &cap, stdin);
        if (got < 0) break;
        size_t n = (size_t)got;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (n == 0) continue;
        if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) break;
        if (strcmp(line, "/reset") == 0) {
            chat_free(&chat);
            st = start_chat(s->cli, &chat, e);
            open = false;
        } else if (line[0] == '/') {
            st = add_named_media(&chat, line, &open, e);
        } else {
            st = ask_line(s, &chat, line, n, &open, e);
        }
        if (st != OK && tty && !ferror(stdout)) {
            cli_log(s->cli, CLI_ERROR, "%s", e->text);
            st = OK;
        }
    }
    if (st == OK && ferror(stdin)) st = err_set(e, E_INPUT, "standard input cannot be read: %s", strerror(errno));
    free(line);
    chat_free(&chat);
    return st;
}

int cli_main_chat(int argc, char **argv)
{
    struct session s = { 0 };
    struct err e = { 0 };
    bool done;
    status st = cli_parse(&chat_command, argc, argv, &s.cli, &done, &e);
    if (st != OK) return cli_fail(NULL, st, &e);
    if (done) {
        cli_free(&s.cli);
        return CLI_OK;
    }
    signal(SIGINT, on_signal);
    if (cli_n_words(s.cli)) st = err_set(&e, E_ARG, "\"%s\": files are given with --image, --audio or --video, the question "
                                                    "with -p", cli_word(s.cli, 0));
    if (st == OK) st = session_open(&s, &e);
    if (st == OK) st = cli_text(s.cli, "prompt") ? one_question(&s, &e) : conversation(&s, &e);
    const int code = st == OK || (st == E_CANCELLED && ferror(stdout)) ? CLI_OK : cli_fail(s.cli, st, &e);
    engine_close(&s.en);
    free(s.stop);
    cli_free(&s.cli);
    return code;
}
