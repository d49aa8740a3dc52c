/* cli/capacity.c - what pruning gives on this memory: films of a stated length that the page pool holds at once, counted by
 * the plan and by what admission reserves. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "engine/engine.h"
#include "media/features.h"

#define FILM_W 640
#define FILM_H 360
#define FILM_RATE 25
#define FILM_FPS 2.0               /* frames that the model sees of each second, as where a request names no fps */
#define TEXT_TOKENS 64             /* of template and question, and as many of the answer */
#define RETENTION 0.3

/* A film with sound of so many seconds, as this model takes it. */
static status film_of(const struct engine *en, uint32_t seconds, struct prune_item *out, struct err *e)
{
    const struct media_video_options vo = engine_video_options(engine_config(en), 0, 0, FILM_FPS);
    struct media_video_plan plan;
    TRY(media_video_plan((uint64_t)seconds * FILM_RATE, FILM_RATE, FILM_H, FILM_W, &vo, &plan, e));
    const struct prompt_item item = { .media = { .kind = TOKEN_VIDEO, .t = plan.grid_t, .n_audio = 25 * seconds },
                                      .n_vision = (uint32_t)plan.n_tokens };
    *out = prune_item_of(&item);
    return OK;
}

/* omnidrop as a person would turn it on: at a retention of 0.3 where this model can reach it, else as it comes. */
static status offer(const struct engine *en, const struct prune_shape *film, struct policy_params *p, char *flags, size_t cap,
                    uint64_t *pages, struct err *e)
{
    for (int plain = 0; ; plain++) {
        TRY(prune_params_init(p, "omnidrop", film->n_layers, e));
        if (!plain) TRY(prune_params_set(p, "retention", RETENTION, e));
        model_defaults_policy(engine_defaults(en), p);
        TRY(prune_params_finish(p, e));
        if (plain) snprintf(flags, cap, "--policy omnidrop");
        else snprintf(flags, cap, "--policy omnidrop --retention %g", RETENTION);
        const status st = engine_pages_of(en, p, film, TEXT_TOKENS, TEXT_TOKENS, pages, e);
        if (st == OK || plain) return st;
    }
}

void cli_say_capacity(const struct cli *c, const struct engine *en, const struct policy_params *p, uint32_t at_once,
                      const char *limit)
{
    const struct engine_info *info = engine_info(en);
    const struct policy_params none = prune_params_none();
    struct prune_item item;
    const struct prune_shape film = { .n_layers = engine_config(en)->text.layers, .n_items = 1, .item = &item };
    struct policy_params offered;
    uint64_t whole = 0, pruned = 0, given = 0;
    uint32_t seconds = 60;
    char flags[64], bound[96] = "", shared[64] = "";
    struct err e;
    /* The longest of 60, 30, 15, ... seconds that the context takes. */
    for (; seconds > 0; seconds /= 2) {
        if (film_of(en, seconds, &item, &e) != OK) continue;
        if (item.n_audio + item.steps * item.step_tokens + 2 * TEXT_TOKENS <= info->max_model_len) break;
    }
    if (seconds == 0 || engine_pages_of(en, &none, &film, TEXT_TOKENS, TEXT_TOKENS, &whole, &e) != OK) return;
    const bool off = strcmp(prune_params_name(p), "none") == 0;
    const status st = off ? offer(en, &film, &offered, flags, sizeof flags, &pruned, &e)
                          : engine_pages_of(en, p, &film, TEXT_TOKENS, TEXT_TOKENS, &pruned, &e);
    if (st != OK) {
        cli_log(c, CLI_NOTE, "policy %s: a film of %u s with sound would be refused: %s", prune_params_name(p), seconds, e.text);
        return;
    }
    const uint64_t n_whole = info->n_pages / whole, n_pruned = info->n_pages / pruned;
    if (n_whole > at_once || n_pruned > at_once)
        snprintf(bound, sizeof bound, "; %s %u runs no more than that at once", limit, at_once);
    if (info->n_local > 1 && cli_uint(c, "kv-bytes", 0, (uint64_t)1 << 46, &given, &e) == OK && given == 0)
        snprintf(shared, sizeof shared, "; %u ranks share the memory of this host", info->n_local);
    char size[160];
    snprintf(size, sizeof size, "films of %u s with sound (%u + %u tokens, %u of text, %u of answer)", seconds, item.n_audio,
             item.steps * item.step_tokens, TEXT_TOKENS, TEXT_TOKENS);
    if (off)
        cli_log(c, CLI_NOTE, "policy none: of %s the pages hold %llu at once; %s would hold %llu (%.1fx)%s%s", size,
                (unsigned long long)n_whole, flags, (unsigned long long)n_pruned, (double)whole / (double)pruned, bound, shared);
    else
        cli_log(c, CLI_NOTE, "policy %s: of %s the pages hold %llu at once, without pruning %llu (%.1fx)%s%s", prune_params_name(p),
                size, (unsigned long long)n_pruned, (unsigned long long)n_whole, (double)whole / (double)pruned, bound, shared);
}
