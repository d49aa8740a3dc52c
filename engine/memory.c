/* engine/memory.c - a device's memory as one plan, where the device has to be asked for it (ops->reserve): see inside.h.
 *
 *   weights, what decoder and towers work in      asked for as they are made
 *   rows of groups and of decode steps            for the longest group and the most sequences, once
 *   lists and room of ops                         ops->reserve, for the most that an op can be asked for
 *   pages                                         what is left, in one piece
 *   work                                          all that lives with a request until it is prefilled, and caches; beside it a block
 *                                                 of what is allocated while nobody's lease is meant
 *
 * A request's share of the work memory is one block, as long as all that it will allocate: its *lease*, counted when the request is
 * made and taken when it is admitted, with its pages. What it allocates from then on comes out of its lease, so nothing that runs
 * can fail for want of memory, whatever runs beside it. A request that waits holds nothing on the device: one that is preempted has
 * its embeddings brought to the host. Caches live in what leases leave, and give way to them. */
#include <stdlib.h>

#include "base/mem.h"
#include "base/range.h"
#include "engine/inside.h"
#include "prune/omnisift.h"

#define COMMON_BYTES ((uint64_t)4 << 20)

enum { STEP_SEQS = 1024, GROUP_ROWS_LEAST = 8192, CONTEXTS = 4, POLICY_ROWS = 258 };

void memory_plan(struct engine *en)
{
    const uint32_t longest = en->info.max_model_len;
    en->plan.rows = longest > GROUP_ROWS_LEAST ? longest : GROUP_ROWS_LEAST;
    en->plan.seqs = STEP_SEQS;
}

/* A second group is shorter than a quarter of the one that it passes (scheduler.c), and takes the other buffers; prompts are at most
 * four times as long as what a policy lets in of them (request.c). */
uint32_t memory_group_rows(const struct engine *en, uint32_t group) { return group == 0 ? en->plan.rows : en->plan.rows / 4; }
uint32_t memory_group_angles(const struct engine *en, uint32_t group) { return 4 * memory_group_rows(en, group); }

/* A batch as it begins, after every layer, at the end, and again for each of some prefixes that join. */
struct lists_room memory_group_lists(const struct engine *en, uint32_t group)
{
    const uint32_t rows = memory_group_rows(en, group), joins = 128, times = decoder_shape(en->dec)->L + 3 + joins;
    return (struct lists_room){ .rows = rows, .ids = memory_group_angles(en, group), .asks = rows,
                                .log = (size_t)times * rows + en->plan.seqs };
}

uint64_t memory_rows_bytes(const struct engine *en)
{
    const struct decoder_shape *s = decoder_shape(en->dec);
    uint64_t sum = COMMON_BYTES;
    sum += range_bytes((size_t)en->plan.seqs * s->d * sizeof(float)) + range_bytes((size_t)en->plan.seqs * s->D * sizeof(float));
    for (uint32_t g = 0; g < SCHED_GROUPS; g++) {
        const struct lists_room lists = memory_group_lists(en, g);
        sum += 2 * range_bytes((size_t)memory_group_rows(en, g) * s->d * sizeof(float)) +
               range_bytes((size_t)memory_group_angles(en, g) * s->D * sizeof(float)) + lists_bytes(&lists);
    }
    return sum;
}

/* Embeddings of a context that is all media. */
uint64_t memory_work_least(const struct engine *en)
{
    return range_bytes((size_t)en->info.max_model_len * decoder_shape(en->dec)->d * sizeof(float)) + ((uint64_t)64 << 10);
}

/* Of some such contexts: one is prefilled while others are encoded, and caches have room. */
uint64_t memory_work_wanted(const struct engine *en) { return CONTEXTS * memory_work_least(en); }

struct reserve_args memory_args(const struct engine *en)
{
    const struct decoder_slice *own = decoder_slice(en->dec);
    const struct decoder_shape *s = decoder_shape(en->dec);
    const uint32_t longest = en->info.max_model_len, patches = 4 * longest;
    struct reserve_args a = { .bytes = en->plan.work + COMMON_BYTES, .seqs = en->plan.seqs, .keys = longest,
                              .heads = own->heads / own->kv_heads,
                              .list = patches > en->plan.rows ? patches : en->plan.rows,
                              .out = (size_t)en->plan.block * own->heads * s->D };
    const size_t film = en->vision ? vision_tower_attended(en->vision, vision_tower_hidden(en->vision) % 8 ? patches : 0) : 0;
    const size_t sound = en->audio ? audio_tower_attended(en->audio) : 0;
    if (film > a.out) a.out = film;
    if (sound > a.out) a.out = sound;
    return a;
}

/* ---- what a request needs -------------------------------------------------------------------------------- */

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* While its media are encoded, beside the embeddings: the look at the whole of one sound, a picture too large for the tower's own
 * room. */
static uint64_t encode_bytes(const struct engine *en, const struct eng_request *r)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < r->n_parts; i++) {
        const struct prompt_media *m = &r->part[i].media;
        if (m->h) most = larger(most, vision_tower_more(en->vision, m->h, m->w));
        if (m->n_audio == 0 || !(r->plan.needs & PRUNE_NEEDS_AUDIO_GLOBAL)) continue;
        const uint32_t frames = 4 * m->n_audio + 3;    /* at most, for so many tokens */
        if (audio_tower_rows(en->audio, frames) > AUDIO_GLOBAL_ROWS + 2) continue;
        most = larger(most, range_bytes((size_t)audio_tower_rows(en->audio, frames) * audio_tower_look(en->audio) * sizeof(float)) +
                                audio_tower_more(en->audio, frames));
    }
    return most;
}

/* While its policy chooses: what the choice before layer 0 works in, or what it made of the embeddings, or walks. */
static uint64_t choice_bytes(const struct engine *en, const struct eng_request *r)
{
    const uint64_t row = decoder_shape(en->dec)->d * sizeof(float);
    const uint32_t needs = r->plan.needs, n_av = r->prompt.n_av;
    uint64_t first = 0, most = 0;
    if (needs & PRUNE_NEEDS_TEXT_EMBEDDINGS) first += range_bytes(r->prompt.n_user_text * row);
    if (needs & PRUNE_NEEDS_EMBEDDINGS) first += range_bytes((2 * (uint64_t)n_av + POLICY_ROWS) * row);
    if (needs & PRUNE_NEEDS_WEIGHTS)
        first += omnisift_bytes(en->st, decoder_shape(en->dec)->d, en->selector.tensor, en->selector.n_tensors, n_av);
    if (needs & PRUNE_NEEDS_MERGES) most = range_bytes(r->plan.n_entry * row);
    if (needs & PRUNE_NEEDS_PAGERANK) most = larger(most, range_bytes(decoder_walk_bytes(en->dec, r->plan.n_entry + r->n_text)));
    return larger(first, most);
}

uint64_t memory_demand(const struct engine *en, const struct eng_request *r)
{
    const struct prompt *p = &r->prompt;
    const uint64_t row = decoder_shape(en->dec)->d * sizeof(float);
    uint64_t sum = RANGE_ALIGN;    /* of the lease itself */
    if (p->n_av == 0 && !(r->plan.needs & (PRUNE_NEEDS_TEXT_EMBEDDINGS | PRUNE_NEEDS_PAGERANK))) return 0;
    sum += range_bytes(p->n_audio * row + EMBEDS_MORE) + range_bytes(p->n_vision * row + EMBEDS_MORE);
    if (r->plan.needs & PRUNE_NEEDS_VISION_KEYS && en->vision)
        sum += range_bytes((size_t)p->n_vision * vision_tower_hidden(en->vision) * sizeof(float) + EMBEDS_MORE);
    return sum + larger(encode_bytes(en, r), choice_bytes(en, r));
}

/* ---- leases ---------------------------------------------------------------------------------------------- */

status memory_open(struct engine *en, struct err *e)
{
    TRY(en->ops->alloc(en->st, COMMON_BYTES, &en->common, e));
    return en->ops->within(en->st, en->common, e);
}

void memory_outside(struct engine *en)
{
    if (en->ops->reserve) en->ops->within(en->st, NULL, NULL);
}

bool memory_claim(struct engine *en, struct eng_request *r)
{
    if (r->lease_bytes == 0 || r->lease != NULL) return true;
    memory_outside(en);
    while (en->ops->alloc(en->st, r->lease_bytes, &r->lease, NULL) != OK) {
        r->lease = NULL;
        if (en->prefixes && kv_prefix_drop_hidden(en->prefixes)) continue;
        if (en->media_cache && media_cache_yield(en->media_cache)) continue;
        break;
    }
    memory_leave(en);
    return r->lease != NULL;
}

void memory_return(struct engine *en, struct eng_request *r)
{
    if (r->lease == NULL) return;
    en->ops->release(en->st, r->lease);
    r->lease = NULL;
    r->audio_embeds = r->vision_embeds = r->vision_keys = r->audio_look = NULL;
}

status memory_enter(struct engine *en, struct eng_request *r, struct err *e)
{
    if (en->ops->reserve == NULL) return OK;
    TRY(en->ops->within(en->st, r->lease ? r->lease : en->common, e));
    for (size_t i = 0; i < REQUEST_BLOCKS; i++) {      /* what was brought to the host comes back */
        struct parked *k = &r->parked[i];
        if (k->host == NULL) continue;
        TRY(en->ops->alloc(en->st, k->bytes, (void **)request_block(r, i), e));
        TRY(en->ops->upload(en->st, *request_block(r, i), k->host, k->bytes, e));
        free(k->host);
        *k = (struct parked){ 0 };
    }
    return OK;
}

void memory_leave(struct engine *en)
{
    if (en->ops->reserve) en->ops->within(en->st, en->common, NULL);
}

float **request_block(struct eng_request *r, size_t i)
{
    float **const of[REQUEST_BLOCKS] = { &r->audio_embeds, &r->vision_embeds, &r->vision_keys, &r->audio_look };
    return of[i];
}

static size_t block_bytes(const struct engine *en, const struct eng_request *r, size_t i)
{
    const size_t d = decoder_shape(en->dec)->d;
    const size_t floats[REQUEST_BLOCKS] = { r->prompt.n_audio * d, r->prompt.n_vision * d,
                                            en->vision ? (size_t)r->prompt.n_vision * vision_tower_hidden(en->vision) : 0, r->look_floats };
    return floats[i] * sizeof(float) + (i < 3 ? EMBEDS_MORE : 0);
}

void memory_park(struct engine *en, struct eng_request *r)
{
    if (r->lease == NULL) return;
    for (size_t i = 0; i < REQUEST_BLOCKS; i++) {
        if (*request_block(r, i) == NULL) continue;
        struct parked *k = &r->parked[i];
        k->bytes = block_bytes(en, r, i);
        k->host = mem_must(k->bytes, 1);
        en->ops->download(en->st, k->host, *request_block(r, i), k->bytes, NULL);   /* a device that fails says so at its next op too */
    }
    memory_return(en, r);
}
