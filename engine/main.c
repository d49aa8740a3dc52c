/* engine/main.c - omnidrop <command> [options]. */
#include <stdio.h>
#include <string.h>

#include "engine/cli.h"
#include "engine/version.h"

static const struct { const char *name; int (*run)(int argc, char **argv); const char *summary; } COMMANDS[] = {
    { "chat", cli_main_chat, "ask about pictures, sound and films" },
    { "transcribe", cli_main_transcribe, "files of any length to txt, srt, vtt, json" },
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

int main(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "version") == 0) {
        printf("omnidrop " OMNIDROP_VERSION "\n");
        return CLI_OK;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        usage(stdout);
        return CLI_OK;
    }
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++)
        if (strcmp(argv[1], COMMANDS[i].name) == 0) return COMMANDS[i].run(argc - 1, argv + 1);
    fprintf(stderr, "omnidrop: error: no command \"%s\"; omnidrop --help lists them\n", argv[1]);
    return CLI_USAGE;
}
