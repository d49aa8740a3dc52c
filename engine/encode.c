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

/* Grid steps from r->enc_step on of one picture or film. out, saliency: rows of the whole part. */
static status some_vision(struct engine *en, struct eng_request *r, struct req_part *p, float *out, float *saliency,
                          double max_work, double *work, struct err *e)
{
    const uint32_t d = decoder_shape(en->dec)->d, rows = p->media.h * p->media.w;
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
        if (st == OK)
            st = team_vision(en->team, from, n, p->media.h, p->media.w, out + (size_t)t * (rows / 4) * d,
                                  saliency ? saliency + (size_t)t * (rows / 4) : NULL, e);
        r->enc_step += n;
        *work += work_patches(&shape, (uint64_t)n * rows);
    } while (st == OK && r->enc_step < p->media.t && *work < max_work);
    free(stream);
    return st;
}

static status some_sound(struct engine *en, struct eng_request *r, struct req_part *p, float *out, float *saliency,
                         double max_work, double *work, struct err *e)
{
    const uint32_t frames = p->entry ? p->entry->features.n_frames : p->n_frames, span = audio_tower_span(en->audio) * en->info.n_ranks;
    const float *mel = p->entry ? p->entry->features.mel : p->mel;
    const struct work_shape shape = towers(en);
    do {
        const uint32_t f0 = r->enc_step, n = frames - f0 < span ? frames - f0 : span;
        if (en->interrupted) return err_set(e, E_CANCELLED, "interrupted");
        TRY(team_audio(en->team, mel, frames, f0, n, out, saliency, e));
        r->enc_step += n;
        *work += work_frames(&shape, n);
    } while (r->enc_step < frames && *work < max_work);
    return OK;
}

/* Where part i's rows go. */
struct place { float *vision, *audio, *vision_saliency, *audio_saliency; uint32_t n_vision, n_audio; };

static struct place place_of(struct engine *en, struct eng_request *r, uint32_t i)
{
    const struct prompt_item *it = &r->prompt.items[i];
    const size_t d = decoder_shape(en->dec)->d;
    return (struct place){
        .vision = r->vision_embeds + it->vision_row * d, .audio = r->audio_embeds + it->audio_row * d,
        .vision_saliency = r->vision_saliency ? r->vision_saliency + it->vision_row : NULL,
        .audio_saliency = r->audio_saliency ? r->audio_saliency + it->audio_row : NULL,
        .n_vision = it->n_vision, .n_audio = it->media.n_audio };
}

/* Are the part's rows done? Advances from film to sound and from part to part. */
static status some_of_part(struct engine *en, struct eng_request *r, uint32_t i, double max_work, double *work, bool *whole,
                           struct err *e)
{
    struct req_part *p = &r->part[i];
    const struct place to = place_of(en, r, i);
    const bool embedded = p->entry && media_entry_state(en->media_cache, p->entry) == MEDIA_EMBEDDED;
    *whole = true;
    if (embedded)                  /* also where another request was faster midway */
        return media_entry_copy(en->media_cache, p->entry, to.n_vision, to.n_audio ? to.audio : NULL,
                                to.n_vision ? to.vision : NULL, to.n_audio ? to.audio_saliency : NULL,
                                to.n_vision ? to.vision_saliency : NULL, e);
    if (to.n_vision && !r->enc_sound) {
        TRY(some_vision(en, r, p, to.vision, to.vision_saliency, max_work, work, e));
        *whole = r->enc_step >= p->media.t;
        if (!*whole) return OK;
        r->enc_step = 0;
    }
    if (to.n_audio) {
        r->enc_sound = true;
        if (*work >= max_work) *whole = false;
        else {
            TRY(some_sound(en, r, p, to.audio, to.audio_saliency, max_work, work, e));
            *whole = r->enc_step >= (p->entry ? p->entry->features.n_frames : p->n_frames);
        }
    }
    /* What the cache would give back is whole: sound that this request leaves out would be missing. */
    if (*whole && p->entry && p->entry->media.n_audio == to.n_audio &&
        media_entry_state(en->media_cache, p->entry) == MEDIA_FEATURES)
        TRY(media_entry_set_embeds(en->media_cache, p->entry, to.audio, to.vision, to.n_vision, to.audio_saliency,
                                   to.vision_saliency, e));
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
    TRY(en->ops->alloc(en->st, (size_t)p->n_audio * d * sizeof(float) + 64, (void **)&r->audio_embeds, e));
    TRY(en->ops->alloc(en->st, (size_t)p->n_vision * d * sizeof(float) + 64, (void **)&r->vision_embeds, e));
    if ((cached || r->plan.needs & PRUNE_NEEDS_AUDIO_SALIENCY) && r->n_parts && r->audio_saliency == NULL)
        TRY(mem_alloc(&r->audio_saliency, p->n_audio, sizeof(float), e));
    if ((cached || r->plan.needs & PRUNE_NEEDS_VISION_SALIENCY) && r->n_parts && r->vision_saliency == NULL)
        TRY(mem_alloc(&r->vision_saliency, p->n_vision, sizeof(float), e));
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

status encode_some(struct engine *en, struct eng_request *r, double max_work, double *work, bool *done, struct err *e)
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
