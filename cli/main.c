/* cli/main.c - omnidrop <command> [options]. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "engine/version.h"
#include "media/extract.h"

static const struct { const char *name; int (*run)(int argc, char **argv); const char *summary; } COMMANDS[] = {
    { "serve", cli_main_serve, "the OpenAI API and a page for people, over one model" },
    { "chat", cli_main_chat, "ask about pictures, sound and films" },
    { "transcribe", cli_main_transcribe, "files of any length to txt, srt, vtt, json" },
    { "batch", cli_main_batch, "many requests from a file of JSON lines, resumed after any end" },
    { "inspect", cli_main_inspect, "model, media, schedule, policies, device: what is there and what it would cost" },
    { "bench", cli_main_bench, "latency of prefill and decode, with and without pruning" },
};

static void usage(FILE *f)
{
    fprintf(f, "omnidrop " OMNIDROP_VERSION ": long audio and video through Qwen2.5-Omni, with its tokens pruned inside the "
               "decoder\n\nusage: omnidrop COMMAND [options]\n\n");
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++)
        fprintf(f, "  %-12s %s\n", COMMANDS[i].name, COMMANDS[i].summary);
    fprintf(f, "\nomnidrop COMMAND --help lists the options of a command; --version prints the version.\n");
}

/* Did everything reach standard output? A reader that went away ends a command quietly; a full disk does not. */
static int finish(int code)
{
    if (code != CLI_OK || (fflush(stdout) == 0 && !ferror(stdout))) return code;
    struct pollfd out = { .fd = 1, .events = POLLOUT };
    if (poll(&out, 1, 0) == 1 && out.revents & (POLLERR | POLLHUP)) return CLI_OK;
    fprintf(stderr, "omnidrop: error: standard output could not be written: disk full?\n");
    return CLI_NOMEM;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--media-child") == 0) return extract_child_main(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        usage(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "version") == 0) {
        printf("omnidrop " OMNIDROP_VERSION "\n");
        return finish(CLI_OK);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        usage(stdout);
        return finish(CLI_OK);
    }
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++)
        if (strcmp(argv[1], COMMANDS[i].name) == 0) return finish(COMMANDS[i].run(argc - 1, argv + 1));
    fprintf(stderr, "omnidrop: error: no command \"%s\"; omnidrop --help lists them\n", argv[1]);
    return CLI_USAGE;
}
