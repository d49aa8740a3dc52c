/* engine/encode.c - the towers: features of a request's media parts to embeddings, a few batches at a time, so that
 * decode steps of others run between them. What the cache holds is copied, what was encoded is offered to it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"
#include "scheduler/work.h"

/* Sizes of the towers, by which their work is counted. */
static struct work_shape towers(const struct engine *en)
{
    const struct vision_config *v = &en->config.vision;
    const struct audio_config *a = &en->config.audio;
    return (struct work_shape){ .vision = { v->depth, v->hidden, v->ff }, .audio = { a->layers, a->d_model, a->ff } };
}

/* Grid steps [t, t + n) of a part, on all ranks; what is more than saliency on the leader alone. to: rows of the whole part. */
static status run_vision(struct engine *en, const float *patches, const struct req_part *p, uint32_t t, uint32_t n,
                         const struct media_rows *to, struct err *e)
{
    const uint32_t h = p->media.h, w = p->media.w;
    const size_t at = (size_t)t * (h * w / 4);
    float *out = to->vision + at * decoder_shape(en->dec)->d, *saliency = to->vision_saliency ? to->vision_saliency + at : NULL;
    if (to->blocks == NULL && to->keys == NULL) return team_vision(en->team, patches, n, h, w, out, saliency, e);
    const struct vision_look look = { .saliency = saliency, .blocks = to->blocks ? to->blocks + at : NULL, .stride = to->stride,
                                      .keys = to->keys ? to->keys + at * to->d_key : NULL };
    return vision_tower_look(en->vision, patches, n, h, w, out, &look, e);
}

/* Grid steps from r->enc_step on of one picture or film. */
static status some_vision(struct engine *en, struct eng_request *r, struct req_part *p, const struct media_rows *to,
                          double max_work, double *work, struct err *e)
{
    const uint32_t rows = p->media.h * p->media.w;
    const uint32_t at_once = work_grids_at_once(rows) * en->info.n_ranks;
    const struct work_shape shape = towers(en);
    const float *patches = p->entry ? p->entry->features.patches : p->patches;
    const size_t width = request_patch_width(en);
    float *stream = NULL;
    status st = OK;
    if (patches == NULL) TRY(mem_alloc(&stream, (size_t)at_once * rows * width, sizeof(float), e));
    do {
        const uint32_t t = r->enc_step, n = p->media.t - t < at_once ? p->media.t - t : at_once;
        const float *from = patches ? patches + (size_t)t * rows * width : stream;
        if (en->interrupted) st = err_set(e, E_CANCELLED, "interrupted");
        const double begin = clock_s();
        for (uint32_t i = 0; stream && i < n && st == OK; i++)
            st = media_video_next(p->video, stream + (size_t)i * rows * width, e);
        if (stream) r->media_s += clock_s() - begin;
        if (st == OK) st = run_vision(en, from, p, t, n, to, e);
        r->enc_step += n;
        *work += work_patches(&shape, (uint64_t)n * rows);
    } while (st == OK && r->enc_step < p->media.t && *work < max_work);
    free(stream);
    return st;
}

/* Frames of a clip whose saliency is global, on the leader alone; the last of them make it. */
static status look_at_sound(struct engine *en, struct eng_request *r, const float *mel, uint32_t frames, uint32_t f0, uint32_t n,
                            const struct media_rows *to, struct err *e)
{
    const uint32_t most = audio_tower_span(en->audio);
    const size_t floats = (size_t)audio_tower_rows(en->audio, frames) * audio_tower_look(en->audio);
    if (r->audio_look == NULL) TRY(en->ops->alloc(en->st, floats * sizeof(float), (void **)&r->audio_look, e));
    r->look_floats = floats;
    for (uint32_t at = f0; at < f0 + n; at += most)
        TRY(audio_tower_part_look(en->audio, mel, frames, at, f0 + n - at < most ? f0 + n - at : most, to->audio, r->audio_look, e));
    if (f0 + n < frames) return OK;
    const status st = audio_tower_global(en->audio, r->audio_look, frames, to->audio_saliency, e);
    en->ops->release(en->st, r->audio_look);
    r->audio_look = NULL;
    return st;
}

static status some_sound(struct engine *en, struct eng_request *r, struct req_part *p, const struct media_rows *to,
                         double max_work, double *work, struct err *e)
{
    const uint32_t frames = p->entry ? p->entry->features.n_frames : p->n_frames, span = audio_tower_span(en->audio) * en->info.n_ranks;
    const float *mel = p->entry ? p->entry->features.mel : p->mel;
    const bool wanted = r->plan.needs & PRUNE_NEEDS_AUDIO_GLOBAL;
    const bool global = wanted && audio_tower_rows(en->audio, frames) <= AUDIO_GLOBAL_ROWS;
    const struct work_shape shape = towers(en);
    if (wanted && !global && r->enc_step == 0)
        request_warn(r, "sound of more than 20 minutes: its saliency is that of windows of 2 s, not of the whole clip");
    do {
        const uint32_t f0 = r->enc_step, n = frames - f0 < span ? frames - f0 : span;
        if (en->interrupted) return err_set(e, E_CANCELLED, "interrupted");
        if (global) TRY(look_at_sound(en, r, mel, frames, f0, n, to, e));
        else TRY(team_audio(en->team, mel, frames, f0, n, to->audio, to->audio_saliency, e));
        r->enc_step += n;
        *work += work_frames(&shape, n);
    } while (r->enc_step < frames && *work < max_work);
    return OK;
}

/* Where part i's rows go, NULL what it has none of. */
static struct media_rows place_of(struct engine *en, struct eng_request *r, uint32_t i)
{
    const struct prompt_item *it = &r->prompt.items[i];
    const size_t d = decoder_shape(en->dec)->d;
    struct media_rows to = { .stride = r->prompt.n_vision };
    if (it->n_vision) {
        to.vision = r->vision_embeds + it->vision_row * d;
        if (r->vision_saliency) to.vision_saliency = r->vision_saliency + it->vision_row;
        if (r->vision_blocks) to.blocks = r->vision_blocks + it->vision_row;
        to.n_blocks = to.blocks ? vision_tower_blocks(en->vision) : 0;
        to.d_key = vision_tower_hidden(en->vision);
        if (r->vision_keys) to.keys = r->vision_keys + (size_t)it->vision_row * to.d_key;
    }
    if (it->media.n_audio) {
        to.audio = r->audio_embeds + it->audio_row * d;
        if (r->audio_saliency) to.audio_saliency = r->audio_saliency + it->audio_row;
    }
    return to;
}

/* For the next request with the same media. It lives outside of this one's memory; where memory is planned and short, it is not kept. */
static status keep_embeds(struct engine *en, struct eng_request *r, struct req_part *p, uint32_t n_vision, const struct media_rows *to,
                          struct err *e)
{
    memory_outside(en);
    const status st = media_entry_set_embeds(en->media_cache, p->entry, n_vision, to, e);
    TRY(memory_enter(en, r, e));
    return st == E_NOMEM && r->lease ? OK : st;
}

/* Are the part's rows done? Advances from film to sound and from part to part. */
static status some_of_part(struct engine *en, struct eng_request *r, uint32_t i, double max_work, double *work, bool *whole,
                           struct err *e)
{
    struct req_part *p = &r->part[i];
    const struct media_rows to = place_of(en, r, i);
    const uint32_t n_vision = r->prompt.items[i].n_vision, n_audio = r->prompt.items[i].media.n_audio;
    const bool embedded = p->entry && media_entry_state(en->media_cache, p->entry) == MEDIA_EMBEDDED;
    *whole = true;
    if (embedded) {                /* also where another request was faster midway */
        en->ops->release(en->st, r->audio_look);
        r->audio_look = NULL;
        return media_entry_copy(en->media_cache, p->entry, n_vision, &to, e);
    }
    if (n_vision && !r->enc_sound) {
        TRY(some_vision(en, r, p, &to, max_work, work, e));
        *whole = r->enc_step >= p->media.t;
        if (!*whole) return OK;
        r->enc_step = 0;
    }
    if (n_audio) {
        r->enc_sound = true;
        if (*work >= max_work) *whole = false;
        else {
            TRY(some_sound(en, r, p, &to, max_work, work, e));
            *whole = r->enc_step >= (p->entry ? p->entry->features.n_frames : p->n_frames);
        }
    }
    /* What the cache would give back is whole: sound that this request leaves out would be missing. */
    if (*whole && p->entry && p->entry->media.n_audio == n_audio &&
        media_entry_state(en->media_cache, p->entry) == MEDIA_FEATURES)
        TRY(keep_embeds(en, r, p, n_vision, &to, e));
    return OK;
}

static status trace_towers(struct engine *en, struct eng_request *r, struct err *e)
{
    const struct eng_trace *t = r->o.trace;
    if (t == NULL || t->towers == NULL) return OK;
    const uint32_t d = decoder_shape(en->dec)->d;
    float *a, *v = NULL;
    TRY(mem_alloc(&a, (size_t)r->prompt.n_audio * d, sizeof(float), e));
    status st = mem_alloc(&v, (size_t)r->prompt.n_vision * d, sizeof(float), e);
    if (st == OK) st = en->ops->download(en->st, a, r->audio_embeds, (size_t)r->prompt.n_audio * d * sizeof(float), e);
    if (st == OK) st = en->ops->download(en->st, v, r->vision_embeds, (size_t)r->prompt.n_vision * d * sizeof(float), e);
    if (st == OK) t->towers(t->self, a, r->prompt.n_audio, v, r->prompt.n_vision, d, r->audio_saliency);
    free(a);
    free(v);
    return st;
}

/* Memory of the embeddings. Saliency costs little and makes what is cached good for every policy. */
static status start(struct engine *en, struct eng_request *r, struct err *e)
{
    const struct prompt *p = &r->prompt;
    const uint32_t d = decoder_shape(en->dec)->d;
    bool cached = false;
    for (uint32_t i = 0; i < r->n_parts; i++) cached = cached || r->part[i].entry;
    TRY(en->ops->alloc(en->st, (size_t)p->n_audio * d * sizeof(float) + EMBEDS_MORE, (void **)&r->audio_embeds, e));
    TRY(en->ops->alloc(en->st, (size_t)p->n_vision * d * sizeof(float) + EMBEDS_MORE, (void **)&r->vision_embeds, e));
    if ((cached || r->plan.needs & (PRUNE_NEEDS_AUDIO_SALIENCY | PRUNE_NEEDS_AUDIO_GLOBAL)) && r->n_parts && r->audio_saliency == NULL)
        TRY(mem_alloc(&r->audio_saliency, p->n_audio, sizeof(float), e));
    if ((cached || r->plan.needs & PRUNE_NEEDS_VISION_SALIENCY) && r->n_parts && r->vision_saliency == NULL)
        TRY(mem_alloc(&r->vision_saliency, p->n_vision, sizeof(float), e));
    if (r->plan.needs & PRUNE_NEEDS_VISION_BLOCKS && r->n_parts && r->vision_blocks == NULL)
        TRY(mem_alloc(&r->vision_blocks, (size_t)vision_tower_blocks(en->vision) * p->n_vision, sizeof(float), e));
    if (r->plan.needs & PRUNE_NEEDS_VISION_KEYS && r->n_parts && r->vision_keys == NULL)
        TRY(en->ops->alloc(en->st, (size_t)p->n_vision * vision_tower_hidden(en->vision) * sizeof(float) + EMBEDS_MORE,
                           (void **)&r->vision_keys, e));
    return OK;
}

/* Embeddings were given. */
static status upload_given(struct engine *en, struct eng_request *r, struct err *e)
{
    const struct prompt *p = &r->prompt;
    const size_t row = decoder_shape(en->dec)->d * sizeof(float);
    if (p->n_audio) TRY(en->ops->upload(en->st, r->audio_embeds, r->given_audio, p->n_audio * row, e));
    if (p->n_vision) TRY(en->ops->upload(en->st, r->vision_embeds, r->given_vision, p->n_vision * row, e));
    if (r->given_saliency == NULL || r->audio_saliency) return OK;
    TRY(mem_alloc(&r->audio_saliency, p->n_audio, sizeof(float), e));
    memcpy(r->audio_saliency, r->given_saliency, p->n_audio * sizeof(float));
    return OK;
}

static status some(struct engine *en, struct eng_request *r, double max_work, double *work, bool *done, struct err *e)
{
    const double begin = clock_s(), media_s = r->media_s;
    *work = 0;
    *done = false;
    if (r->audio_embeds == NULL) TRY(start(en, r, e));
    if (r->n_parts == 0) TRY(upload_given(en, r, e));
    while (r->enc_part < r->n_parts && *work < max_work) {
        bool whole;
        TRY(some_of_part(en, r, r->enc_part, max_work, work, &whole, e));
        if (!whole) continue;
        r->enc_part++;
        r->enc_step = 0;
        r->enc_sound = false;
    }
    r->tower_s += clock_s() - begin - (r->media_s - media_s);
    if (r->enc_part < r->n_parts) return OK;
    request_free_media(en, r);
    r->encoded = *done = true;
    return trace_towers(en, r, e);
}

status encode_some(struct engine *en, struct eng_request *r, double max_work, double *work, bool *done, struct err *e)
{
    status st = memory_enter(en, r, e);
    *work = 0;
    *done = false;
    if (st == OK) st = some(en, r, max_work, work, done, e);
    memory_leave(en);
    return st;
}
