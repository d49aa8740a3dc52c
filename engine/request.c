/* engine/request.c - from messages to a request whose demand is known: media are opened and measured, the prompt is
 * built, the plan and its pages counted, in this order. No page is promised and no tower has run yet. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"
#include "engine/service.h"

struct eng_request_options eng_request_defaults(void)
{
    return (struct eng_request_options){ .max_tokens = 512, .sample = sample_defaults() };
}

/* ---- media ------------------------------------------------------------------------------------------------ */

/* Pixel limits of a part: its own wish, else the request's; 0: the checkpoint's. */
static uint64_t min_pixels(const struct eng_request *r, const struct req_part *p)
{
    return p->chat->options.min_pixels ? p->chat->options.min_pixels : r->o.min_pixels;
}

static uint64_t max_pixels(const struct eng_request *r, const struct req_part *p)
{
    return p->chat->options.max_pixels ? p->chat->options.max_pixels : r->o.max_pixels;
}

/* detail "low": a quarter of what a picture may have otherwise. */
static struct media_image_options image_options(const struct engine *en, const struct eng_request *r,
                                                const struct req_part *p)
{
    struct media_image_options o = engine_image_options(&en->config, min_pixels(r, p), max_pixels(r, p));
    if (!p->chat->options.low_detail) return o;
    if (o.limits.max_pixels == 0) o.limits.max_pixels = 12845056;
    o.limits.max_pixels /= 4;
    if (o.limits.min_pixels > o.limits.max_pixels) o.limits.min_pixels = o.limits.max_pixels;
    return o;
}

static struct media_video_options video_options(const struct engine *en, const struct eng_request *r,
                                                const struct req_part *p)
{
    const struct chat_media_options *c = &p->chat->options;
    struct media_video_options v = engine_video_options(&en->config, min_pixels(r, p), max_pixels(r, p),
                                                        c->fps > 0 ? c->fps : r->o.fps);
    v.max_frames = c->max_frames;
    return v;
}

size_t request_patch_width(const struct engine *en)
{
    const struct vision_config *v = &en->config.vision;
    return (size_t)3 * v->temporal_patch_size * v->patch_size * v->patch_size;
}

/* What a URL names, as a path in out[cap]; pcm: and data: are handled before. */
static status path_of(const char *url, const char *root, char *out, size_t cap, struct err *e)
{
    const char *p = url;
    if (strncmp(p, "file://", 7) == 0) p += 7;
    else if (strncmp(p, "file:", 5) == 0) p += 5;
    else if (strstr(p, "://") != NULL && strchr(p, '/') > strchr(p, ':'))
        return err_set(e, E_INPUT, "%s: this engine fetches nothing from a network: give a file or the bytes", url);
    const int n = root && p[0] != '/' ? snprintf(out, cap, "%s/%s", root, p) : snprintf(out, cap, "%s", p);
    if (n < 0 || (size_t)n >= cap) return err_set(e, E_INPUT, "the path of %.60s... is too long", url);
    return OK;
}

static status open_file(const struct eng_request *r, struct req_part *p, struct err *e)
{
    const struct chat_part *c = p->chat;
    if (c->n_frames)
        return err_set(e, E_ARG, "%s: a film as a list of pictures is read by the server alone: ask it through the API", c->path);
    if (c->url == NULL) return media_open_memory(c->data, c->n_data, c->path, &p->file, e);
    char path[PATH_MAX];
    TRY(path_of(c->url, r->o.media_root, path, sizeof path, e));
    return media_open(path, &p->file, e);
}

/* Seconds of sound that the context holds beside a short question and its answer. */
static double seconds_that_fit(const struct engine *en)
{
    return en->info.max_model_len > 64 ? floor((en->info.max_model_len - 64) / 25.0) : 0;
}

/* Mel of samples: part->mel, n_frames, audio token count. */
static status mel_of(struct engine *en, struct req_part *p, const float *x, size_t n, const char *what, struct err *e)
{
    const size_t frames = media_mel_frames(n), tokens = media_audio_tokens(frames);
    if (tokens == 0)
        return err_set(e, E_INPUT, "%s: %zu samples of sound are too few: a token takes 321 (0.02 s)", what, n);
    if (tokens >= en->info.max_model_len)
        return err_set(e, E_ARG, "%s: %.1f s of sound are %zu tokens, the context holds %u: at most about %.0f s fit; "
                                 "transcribe cuts a long file into windows", what, (double)n / MEDIA_RATE, tokens,
                       en->info.max_model_len, seconds_that_fit(en));
    TRY(mem_alloc(&p->mel, frames * MEDIA_MEL_BINS, sizeof(float), e));
    p->n_frames = (uint32_t)frames;
    p->media.n_audio = (uint32_t)tokens;
    return media_mel(x, n, p->mel, e);
}

static const char *name_of(const struct chat_part *c) { return c->url ? c->url : c->path; }

static status load_sound(struct engine *en, struct req_part *p, struct err *e)
{
    const struct chat_media_options *c = &p->chat->options;
    const struct media_audio_options ao = { .start_s = c->start_s > 0 ? c->start_s : 0, .end_s = c->end_s > 0 ? c->end_s : 0 };
    const struct media_info *info = media_info(p->file);
    if (!info->has_audio)
        return err_set(e, E_INPUT, "%s: the file has no sound%s", name_of(p->chat),
                       p->media.kind == TOKEN_VIDEO ? ": leave audio-in-video off for it" : "");
    /* Refuse before decoding what can never fit; the rest is counted exactly. */
    const size_t most = ((size_t)en->info.max_model_len * 4 + 4) * MEDIA_HOP;
    float *x = NULL;
    size_t n = 0;
    status st = media_audio_load(p->file, &ao, most, &x, &n, e);
    if (st == E_FULL) {
        const double length = info->audio.duration_s > 0 ? info->audio.duration_s : info->duration_s;
        return err_set(e, E_ARG, "%s: %.1f s of sound are about %.0f tokens, the context holds %u: at most about %.0f s fit; "
                                 "transcribe cuts a long file into windows", name_of(p->chat), length, length * 25,
                       en->info.max_model_len, seconds_that_fit(en));
    }
    if (st == OK) st = mel_of(en, p, x, n, name_of(p->chat), e);
    free(x);
    return st;
}

static status load_picture(struct engine *en, struct eng_request *r, struct req_part *p, struct err *e)
{
    const struct media_image_options io = image_options(en, r, p);
    struct media_patches got = { 0 };
    TRY(media_image_load(p->file, &io, &got, e));
    p->patches = got.patches;
    p->media.t = got.grid_t;
    p->media.h = got.grid_h;
    p->media.w = got.grid_w;
    return OK;
}

/* A film of moderate size is decoded now, so that a wrong frame count in its container is mended before the prompt is
 * built; a large one is streamed into the tower. */
static status open_film(struct engine *en, struct eng_request *r, struct req_part *p, struct err *e)
{
    struct media_video_options vo = video_options(en, r, p);
    if (p->chat->options.start_s > 0) vo.start_s = p->chat->options.start_s;
    if (p->chat->options.end_s > 0) vo.end_s = p->chat->options.end_s;
    TRY(media_video_open(p->file, &vo, &p->video, e));
    struct media_video_plan plan = *media_video_get_plan(p->video);
    const uint64_t bytes = (uint64_t)plan.grid_t * plan.grid_h * plan.grid_w * request_patch_width(en) * sizeof(float);
    if (bytes <= en->film_at_once) {
        struct media_patches got = { 0 };
        media_video_close(&p->video);
        TRY(media_video_load(p->file, &vo, &got, &plan, e));
        p->patches = got.patches;
    }
    p->media.t = plan.grid_t;
    p->media.h = plan.grid_h;
    p->media.w = plan.grid_w;
    p->media.second_per_grid = plan.second_per_grid;
    p->plan = plan;
    p->film_h = media_info(p->file)->video.height;
    p->film_w = media_info(p->file)->video.width;
    p->seconds = plan.grid_t * plan.second_per_grid;
    return OK;
}

static status load_pcm(struct engine *en, struct eng_request *r, struct req_part *p, struct err *e)
{
    char *end;
    const unsigned long i = strtoul(p->chat->url + 4, &end, 10);
    if (*end != 0 || end == p->chat->url + 4 || i >= r->o.n_pcm)
        return err_set(e, E_INPUT, "%s: no samples were handed over under this name", p->chat->url);
    return mel_of(en, p, r->o.pcm[i].samples, r->o.pcm[i].n, p->chat->url, e);
}

/* Does this film bring its sound into the prompt? */
static bool wants_sound(const struct eng_request *r, const struct req_part *p)
{
    if (p->chat->options.use_audio >= 0) return p->chat->options.use_audio == 1;
    return r->o.audio_in_video;
}

/* ---- media that strangers sent: through the loader, the confined child and the cache ----------------------- */

/* What a policy may ask of the towers beside embeddings and saliencies: entries of the cache that have it are kept apart. Asked
 * of a film with sound, since the counts are not known yet. */
static uint32_t rare_needs(const struct engine *en, const struct eng_request *r)
{
    const struct prune_item film = { .kind = TOKEN_VIDEO, .n_audio = 100, .steps = 4, .step_tokens = 9 };
    struct policy_plan plan;
    if (r->o.policy == NULL ||
        prune_plan_shape(r->o.policy, &(struct prune_shape){ decoder_shape(en->dec)->L, 1, &film }, &plan, NULL) != OK)
        return 0;
    const uint32_t needs = plan.needs & (PRUNE_NEEDS_AUDIO_GLOBAL | PRUNE_NEEDS_VISION_BLOCKS | PRUNE_NEEDS_VISION_KEYS);
    prune_plan_free(&plan);
    return needs;
}

/* What a part becomes, as a digest: its bytes, how it is read, what else the towers make of it, and whose caches it may share. */
static status content_key(const struct media_source *src, uint32_t n, const struct extract_options *o, uint32_t needs,
                          const char *salt, char key[MEDIA_DIGEST_TEXT], struct err *e)
{
    struct media_digest *d;
    char text[512];
    const int len = snprintf(text, sizeof text, "%s|%d|%d|%.6f|%.6f|%llu|%llu|%llu|%llu|%llu|%llu|%.6f|%u|%u|%u|%.6f|%x|", salt,
                             (int)o->kind, o->sound, o->start_s, o->end_s, (unsigned long long)o->image.limits.min_pixels,
                             (unsigned long long)o->image.limits.max_pixels, (unsigned long long)o->video.limits.min_pixels,
                             (unsigned long long)o->video.limits.max_pixels, (unsigned long long)o->video.cap_pixels,
                             (unsigned long long)o->video.total_pixels, o->video.fps, o->video.n_frames, o->video.min_frames,
                             o->video.max_frames, o->list_fps, (unsigned)needs);
    TRY(media_digest_begin(&d, e));
    media_digest_add(d, text, (size_t)len);
    for (uint32_t i = 0; i < n; i++) media_digest_add(d, src[i].digest, sizeof src[i].digest);
    media_digest_end(&d, key);
    return OK;
}

static int sound_wish(const struct eng_request *r, const struct req_part *p)
{
    if (p->chat->options.use_audio >= 0) return p->chat->options.use_audio;
    return r->o.audio_in_video ? 1 : r->o.auto_audio ? -1 : 0;
}

static status extract_part(struct engine *en, struct eng_request *r, struct req_part *p, const struct request_source *from,
                           const struct media_source *src, uint32_t n, struct err *e)
{
    static const enum media_kind kind_of[] = { [PART_IMAGE] = MEDIA_IMAGE, [PART_AUDIO] = MEDIA_AUDIO,
                                               [PART_VIDEO] = MEDIA_VIDEO };
    const struct chat_media_options *c = &p->chat->options;
    const struct extract_options o = {
        .kind = kind_of[p->chat->kind], .sound = p->chat->kind == PART_VIDEO ? sound_wish(r, p) : 1,
        .start_s = c->start_s > 0 ? c->start_s : 0, .end_s = c->end_s > 0 ? c->end_s : 0, .image = image_options(en, r, p),
        .video = video_options(en, r, p), .max_tokens = en->info.max_model_len, .list_fps = p->chat->list_fps };
    struct extract_limits limits = from->loader->limits;
    limits.stop = from->stop;
    char key[MEDIA_DIGEST_TEXT];
    TRY(content_key(src, n, &o, 0, from->salt, key, e));
    snprintf(p->identity, sizeof p->identity, "%s", key);
    TRY(content_key(src, n, &o, rare_needs(en, r), from->salt, key, e));
    TRY(media_cache_find(from->cache, key, from->stop, &p->entry, e));
    if (media_entry_state(from->cache, p->entry) == MEDIA_EMPTY) {
        struct extract x = { 0 };
        const status st = extract_run(src, n, &o, &limits, &x, e);
        if (st != OK) {
            media_entry_give_up(from->cache, p->entry);
            p->entry = NULL;
            return st;
        }
        media_entry_set_features(from->cache, p->entry, &x);
    }
    p->was_cached = media_entry_state(from->cache, p->entry) == MEDIA_EMBEDDED;
    p->media = p->entry->media;
    p->plan = p->entry->plan;
    p->film_h = p->entry->info.video.height;
    p->film_w = p->entry->info.video.width;
    p->seconds = p->entry->seconds;
    return OK;
}

static status load_from(struct engine *en, struct eng_request *r, struct req_part *p, const struct request_source *from,
                        struct err *e)
{
    const uint32_t n = p->chat->n_frames ? (uint32_t)p->chat->n_frames : 1;
    struct media_source *src;
    uint32_t k = 0;
    status st = mem_alloc(&src, n, sizeof *src, e);
    if (st != OK) return st;
    for (uint32_t i = 0; i < n; i++) src[i].fd = -1;
    for (; k < n && st == OK; k++)
        st = from->loader->resolve(from->loader->self, from->owner, p->chat, p->chat->n_frames ? (int)k : -1, from->stop,
                                   &src[k], e);
    if (st == OK) st = extract_part(en, r, p, from, src, n, e);
    for (uint32_t i = 0; i < n; i++) media_source_close(&src[i]);
    free(src);
    return st == OK ? OK : err_tag(e, NULL, p->chat->path);
}

/* A film without sound beside one that has some: the layout knows one rule a request, so all of them go without. */
static void settle_sound(struct eng_request *r)
{
    bool some = false, all = true;
    for (uint32_t i = 0; i < r->n_parts; i++)
        if (r->part[i].media.kind == TOKEN_VIDEO) {
            some = some || r->part[i].media.has_audio;
            all = all && r->part[i].media.has_audio;
        }
    for (uint32_t i = 0; i < r->n_parts && some && !all; i++)
        if (r->part[i].media.kind == TOKEN_VIDEO) {
            r->part[i].media.has_audio = false;
            r->part[i].media.n_audio = 0;
        }
    r->o.audio_in_video = some && all;
}

/* A `file` part is what its content is. */
static status find_kinds(const struct chat *chat, const struct request_source *from, struct err *e)
{
    for (size_t m = 0; m < chat->n_messages; m++)
        for (size_t i = 0; i < chat->message[m].n_parts; i++) {
            struct chat_part *p = &chat->message[m].part[i];
            struct media_source src = { .fd = -1 };
            struct media_info info;
            struct extract_limits limits = from->loader->limits;
            limits.stop = from->stop;
            if (p->kind != PART_FILE) continue;
            status st = from->loader->resolve(from->loader->self, from->owner, p, -1, from->stop, &src, e);
            if (st == OK) st = extract_probe(&src, &limits, &info, e);
            media_source_close(&src);
            if (st != OK) return err_tag(e, NULL, p->path);
            p->kind = info.is_image ? PART_IMAGE : info.has_video ? PART_VIDEO : PART_AUDIO;
        }
    return OK;
}

static status check_count(const char *what, uint32_t n, uint32_t most, struct err *e)
{
    if (most == 0 || n <= most) return OK;
    err_set(e, E_ARG, "the request has %u %s, at most %u are taken", n, what, most);
    return err_tag(e, "too_many_media", "messages");
}

static status check_counts(const struct eng_request *r, const struct service_loader *l, struct err *e)
{
    uint32_t n[4] = { 0 };
    for (uint32_t i = 0; i < r->n_parts; i++) n[r->part[i].chat->kind]++;
    TRY(check_count("images", n[PART_IMAGE], l->max_images, e));
    TRY(check_count("sounds", n[PART_AUDIO], l->max_audios, e));
    return check_count("films", n[PART_VIDEO], l->max_videos, e);
}

static status load_part(struct engine *en, struct eng_request *r, struct req_part *p, struct err *e)
{
    static const enum token_kind kind_of[] = { [PART_IMAGE] = TOKEN_IMAGE, [PART_AUDIO] = TOKEN_AUDIO,
                                               [PART_VIDEO] = TOKEN_VIDEO };
    p->media.kind = kind_of[p->chat->kind];
    if (p->chat->kind == PART_AUDIO && p->chat->url && strncmp(p->chat->url, "pcm:", 4) == 0)
        return load_pcm(en, r, p, e);
    TRY(open_file(r, p, e));
    switch (p->media.kind) {
    case TOKEN_AUDIO: return load_sound(en, p, e);
    case TOKEN_IMAGE: return load_picture(en, r, p, e);
    default: break;
    }
    TRY(open_film(en, r, p, e));
    p->media.has_audio = wants_sound(r, p);
    return p->media.has_audio ? load_sound(en, p, e) : OK;
}

/* With auto_audio: sound in video where every film has some. */
static status decide_sound(struct eng_request *r, struct err *e)
{
    if (!r->o.auto_audio || r->o.audio_in_video) return OK;
    bool all = true, any = false;
    for (uint32_t i = 0; i < r->n_parts; i++) {
        struct req_part *p = &r->part[i];
        if (p->chat->kind != PART_VIDEO) continue;
        any = true;
        if (p->chat->options.use_audio >= 0) {    /* it says so itself */
            all = all && p->chat->options.use_audio == 1;
            continue;
        }
        TRY(open_file(r, p, e));
        all = all && media_info(p->file)->has_audio;
        media_close(&p->file);
    }
    r->o.audio_in_video = any && all;
    return OK;
}

static status load_media(struct engine *en, struct eng_request *r, const struct eng_given *given,
                         const struct request_source *from, struct err *e)
{
    TRY(mem_alloc(&r->part, r->rendered.n_media, sizeof *r->part, e));
    r->n_parts = (uint32_t)r->rendered.n_media;
    for (uint32_t i = 0; i < r->n_parts; i++) r->part[i].chat = r->rendered.media[i];
    if (given && given->features) {
        if (given->n_features != r->n_parts)
            return err_set(e, E_ARG, "%u media parts but features of %u", r->n_parts, given->n_features);
        for (uint32_t i = 0; i < r->n_parts; i++) {
            static const enum token_kind kind_of[] = { [PART_IMAGE] = TOKEN_IMAGE, [PART_AUDIO] = TOKEN_AUDIO,
                                                       [PART_VIDEO] = TOKEN_VIDEO };
            const struct eng_features *f = &given->features[i];
            const bool pictures = r->part[i].chat->kind != PART_AUDIO;
            if (pictures ? f->patches == NULL : f->mel == NULL)
                return err_set(e, E_ARG, "media part %u: its features lack the %s", i, pictures ? "patches" : "mel");
            struct req_part *p = &r->part[i];
            p->given = true;
            p->mel = (float *)f->mel;             /* borrowed: `given` keeps them from being freed or written */
            p->patches = (float *)f->patches;
            p->n_frames = f->n_frames;
            p->media = (struct prompt_media){ .kind = kind_of[p->chat->kind], .t = f->t, .h = f->h, .w = f->w,
                                              .n_audio = f->mel ? (uint32_t)media_audio_tokens(f->n_frames) : 0,
                                              .has_audio = f->mel && f->patches,
                                              .second_per_grid = 2.0 / (r->o.fps > 0 ? r->o.fps : 2.0) };
        }
        return OK;
    }
    if (from && from->loader) {
        TRY(check_counts(r, from->loader, e));
        for (uint32_t i = 0; i < r->n_parts; i++) {
            struct req_part *p = &r->part[i];
            const bool pcm = p->chat->kind == PART_AUDIO && p->chat->url && strncmp(p->chat->url, "pcm:", 4) == 0;
            TRY(pcm ? load_part(en, r, p, e) : load_from(en, r, p, from, e));
        }
        settle_sound(r);
        return OK;
    }
    TRY(decide_sound(r, e));
    for (uint32_t i = 0; i < r->n_parts; i++) TRY(load_part(en, r, &r->part[i], e));
    return OK;
}

/* ---- the prompt ------------------------------------------------------------------------------------------- */

static status build_prompt(struct engine *en, struct eng_request *r, struct err *e)
{
    const struct model_ids *id = &en->config.ids;
    const struct prompt_rules rules = {
        .audio_id = id->audio, .image_id = id->image, .video_id = id->video, .audio_bos = id->audio_start,
        .audio_eos = id->audio_end, .vision_bos = id->vision_start, .vision_eos = id->vision_end,
        .position_id_per_seconds = en->config.position_id_per_seconds,
        .seconds_per_chunk = en->config.seconds_per_chunk, .audio_in_video = r->o.audio_in_video, .n_query_max = 256 };
    struct prompt_media *media;
    if (r->tokens.token == NULL)   /* else a raw prompt */
        TRY(tokenizer_encode(en->tok, r->rendered.seg, r->rendered.n_seg, &r->tokens, e));
    TRY(mem_alloc(&media, r->n_parts, sizeof *media, e));
    for (uint32_t i = 0; i < r->n_parts; i++) media[i] = r->part[i].media;
    const status st = prompt_build(&rules, r->tokens.token, (uint32_t)r->tokens.n, media, r->n_parts, &r->prompt, e);
    free(media);
    return st;
}

/* Tokens of all films at another rate; UINT64_MAX where they cannot be known. */
static uint64_t film_tokens_at(struct engine *en, const struct eng_request *r, double fps)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < r->n_parts; i++) {
        const struct req_part *p = &r->part[i];
        struct media_video_options vo;
        struct media_video_plan plan;
        if (p->media.kind != TOKEN_VIDEO) continue;
        if (p->plan.total_frames == 0) return UINT64_MAX;
        vo = video_options(en, r, p);
        vo.fps = fps;
        if (media_video_plan(p->plan.total_frames, p->plan.frame_rate, p->film_h, p->film_w, &vo, &plan, NULL) != OK)
            return UINT64_MAX;
        sum += plan.n_tokens;
    }
    return sum;
}

/* The largest rate below fps, in hundredths, at which all films are `room` tokens at most; 0: none. */
static double rate_that_fits(struct engine *en, const struct eng_request *r, double fps, double room)
{
    for (int at = (int)ceil(fps * 100) - 1; at > 0; at--)
        if ((double)film_tokens_at(en, r, at / 100.0) <= room) return at / 100.0;
    return 0;
}

/* The prompt and the answer must fit the context; says what would. */
static status check_length(struct engine *en, struct eng_request *r, struct err *e)
{
    const uint32_t n = r->prompt.n, max = en->info.max_model_len;
    if (n == 0) return err_set(e, E_ARG, "the prompt is empty: send at least one message");
    if (r->o.max_tokens == 0) r->o.max_tokens = n < max ? max - n : 1;
    if ((uint64_t)n + r->o.max_tokens <= max) {
        r->n_new_max = r->o.max_tokens;
        return OK;
    }
    uint64_t n_film = 0, n_sound = 0;
    double seconds = 0, fps = 0;
    for (uint32_t i = 0; i < r->n_parts; i++) {
        const struct prompt_media *m = &r->part[i].media;
        if (m->kind == TOKEN_VIDEO) n_film += (uint64_t)m->t * (m->h / 2) * (m->w / 2);
        n_sound += m->n_audio;
        seconds += m->kind == TOKEN_VIDEO ? m->t * m->second_per_grid : m->n_audio / 25.0;
        if (m->kind == TOKEN_VIDEO) fps = fmax(fps, video_options(en, r, &r->part[i]).fps);
    }
    char way[256] = "", shorter_answer[64] = "";
    const double room = (double)max - r->o.max_tokens - (double)(n - n_film - n_sound);    /* for film and sound */
    const double thinner = n_film ? rate_that_fits(en, r, fps > 0 ? fps : 2.0, room - (double)n_sound) : 0;
    const double shorter = n_film + n_sound ? seconds * room / (double)(n_film + n_sound) : 0;
    if (n < max) snprintf(shorter_answer, sizeof shorter_answer, "an answer of at most %u tokens fits", max - n);
    if (thinner > 0)
        snprintf(way, sizeof way, ": --fps %.2f fits, or smaller frames (--max-pixels)", thinner);
    else if (shorter >= 0.1)
        snprintf(way, sizeof way, ": about %.1f s of the %.1f s fit", floor(shorter * 10) / 10, seconds);
    err_set(e, E_ARG, "the prompt has %u tokens (%llu of film, %llu of sound) and the answer up to %u; the context "
                             "holds %u%s%s%s", n, (unsigned long long)n_film, (unsigned long long)n_sound, r->o.max_tokens,
            max, way, shorter_answer[0] == 0 ? "" : way[0] ? "; " : ": ", shorter_answer);
    return err_tag(e, "context_length_exceeded", "messages");
}

/* ---- plan and pages --------------------------------------------------------------------------------------- */

/* Where memory is planned: r's lease, and rows for its group. */
static status plan_work(struct engine *en, struct eng_request *r, struct err *e)
{
    const uint32_t quarter = (r->prompt.n + 3) / 4;    /* memory_group_angles */
    if (r->sched.n_rows < quarter) r->sched.n_rows = quarter;
    r->lease_bytes = memory_demand(en, r);
    if (r->lease_bytes <= en->plan.work) return OK;
    err_set(e, E_FULL, "the request needs %.1f MB of work memory (%u tokens of media, policy %s) and %.1f MB were planned at start-up: "
                       "send less or smaller media, or start with more (--work-bytes)", (double)r->lease_bytes / 1e6, r->prompt.n_av,
            prune_params_name(&r->policy), (double)en->plan.work / 1e6);
    return err_tag(e, "insufficient_memory", NULL);
}

static status make_plan(struct engine *en, struct eng_request *r, struct err *e)
{
    const uint32_t L = decoder_shape(en->dec)->L;
    r->policy = r->o.policy ? *r->o.policy : prune_params_none();
    TRY(prune_plan(&r->policy, &r->prompt, L, &r->plan, e));
    if (engine_serves(en, &r->policy, &r->plan, e) != OK) return err_tag(e, "invalid_value", "omnidrop.policy");
    if (r->plan.needs & PRUNE_NEEDS_ROW_SCORES && r->prompt.n_av &&
        prompt_query(&r->prompt, r->plan.query, NULL) == 0)
        return err_set(e, E_ARG, "policy %s asks the text which media tokens matter, and no text comes after the media: "
                                 "put the question behind them", prune_params_name(&r->policy));
    r->n_text = r->prompt.n - r->prompt.n_av;
    TRY(mem_alloc(&r->bound, L, sizeof *r->bound, e));
    for (uint32_t l = 0; l < L; l++) r->bound[l] = prune_plan_rows(&r->plan, l) + r->n_text;
    r->sched = (struct sched_request){ .n_choices = r->n_choices, .n_new = r->n_new_max, .bound = r->bound,
                                       .n_rows = r->plan.n_entry + r->n_text, .encodes = r->prompt.n_av > 0, .driver = r };
    const uint64_t pages = sched_demand(en->pool, L, &r->sched);
    if (pages > en->info.n_pages) {
        uint64_t none = (uint64_t)L * kv_pages_of(en->pool, r->prompt.n + r->n_new_max);
        err_set(e, E_FULL, "the request needs %llu pages of KV (%u tokens of prompt, up to %u of answer, policy %s) "
                           "and the pool has %u: a pool of %.0f MB holds it%s", (unsigned long long)pages,
                r->prompt.n, r->n_new_max, prune_params_name(&r->policy), en->info.n_pages,
                ceil((double)pages * (double)en->info.page_bytes / 1e6),
                pages == none && r->prompt.n_av ? ", or prune with --policy omnidrop" : "");
        return err_tag(e, "insufficient_memory", NULL);
    }
    if (en->ops->reserve) TRY(plan_work(en, r, e));
    TRY(mem_alloc(&r->alive, L + 1, sizeof *r->alive, e));
    TRY(mem_alloc(&r->pages, L, sizeof *r->pages, e));
    return mem_alloc(&r->survivors, L + 1, sizeof *r->survivors, e);
}

/* Samplers of seeds seed, seed + 1, ... stop: room for all stop ids. */
static status make_samplers(struct engine *en, struct eng_request *r, int32_t *stop, struct err *e)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < en->config.n_stop && !r->o.ignore_eos; i++) stop[n++] = en->config.stop[i];
    for (uint32_t i = 0; i < r->o.n_stop_id; i++) stop[n++] = r->o.stop_id[i];
    for (uint32_t i = 0; i < r->n_choices; i++) {
        struct eng_choice *c = &r->choice[i];
        struct sample_params p = r->o.sample;
        p.seed += i;
        p.stop_id = stop;
        p.n_stop_ids = n;
        TRY(sampler_create(&p, en->config.text.vocab, en->allowed, r->prompt.id, r->prompt.n, &c->sampler, e));
        detok_init(&c->detok, en->tok);
        c->detok.keep_special = r->o.show_special_tokens;
    }
    return OK;
}

static status make_choices(struct engine *en, struct eng_request *r, struct err *e)
{
    int32_t *stop;
    TRY(mem_alloc(&stop, en->config.n_stop + r->o.n_stop_id, sizeof *stop, e));
    const status st = make_samplers(en, r, stop, e);
    free(stop);
    r->n_open = r->n_choices;
    return st;
}

/* The tokens of a raw prompt. */
static status take_ids(struct engine *en, struct eng_request *r, const struct request_extra *x, struct err *e)
{
    for (uint32_t i = 0; i < x->n_ids; i++)
        if (!tokenizer_has(en->tok, x->ids[i])) {
            err_set(e, E_ARG, "token id %d at %u of the prompt is not in the vocabulary", x->ids[i], i);
            return err_tag(e, "invalid_value", "prompt");
        }
    TRY(mem_grow(&r->tokens.token, &r->tokens.cap, x->n_ids, sizeof *r->tokens.token, e));
    for (uint32_t i = 0; i < x->n_ids; i++) r->tokens.token[i] = (struct prompt_token){ .id = x->ids[i] };
    r->tokens.n = x->n_ids;
    return OK;
}

static status create(struct engine *en, const struct chat *chat, const struct eng_request_options *o,
                     const struct eng_given *given, const struct request_extra *x, struct eng_request *r, struct err *e)
{
    const struct request_source *from = x ? x->source : NULL;
    r->o = *o;
    if (from && from->salt) snprintf(r->salt, sizeof r->salt, "%s", from->salt);
    r->n_choices = x && x->n_choices ? x->n_choices : 1;
    TRY(mem_alloc(&r->choice, r->n_choices, sizeof *r->choice, e));
    for (uint32_t i = 0; i < r->n_choices; i++) r->choice[i] = (struct eng_choice){ .r = r, .index = i };
    TRY(sample_check(&o->sample, e));
    if (o->fps < 0 || o->fps > 240) return err_set(e, E_ARG, "fps is %g: give a rate above 0, at most 240", o->fps);
    if (o->min_pixels && o->max_pixels && o->min_pixels > o->max_pixels)
        return err_set(e, E_ARG, "min-pixels %llu is above max-pixels %llu", (unsigned long long)o->min_pixels,
                       (unsigned long long)o->max_pixels);
    const double start = clock_s();
    if (given && given->prompt) {
        r->prompt = *given->prompt;
        *given->prompt = (struct prompt){ 0 };
        r->given_audio = given->audio_embeds;
        r->given_vision = given->vision_embeds;
        r->given_saliency = given->audio_saliency;
    } else if (x && x->ids) {
        TRY(take_ids(en, r, x, e));
        TRY(build_prompt(en, r, e));
    } else {
        if (from && from->loader) TRY(find_kinds(chat, from, e));
        TRY(chat_render(chat, x ? x->render : NULL, &r->rendered, e));
        TRY(load_media(en, r, given, from, e));
        if (given && given->tokens) {
            TRY(mem_grow(&r->tokens.token, &r->tokens.cap, given->n_tokens, sizeof *r->tokens.token, e));
            memcpy(r->tokens.token, given->tokens, given->n_tokens * sizeof *given->tokens);
            r->tokens.n = given->n_tokens;
        }
        TRY(build_prompt(en, r, e));
    }
    r->media_s = clock_s() - start;
    if (x && x->count_only) return OK;
    if (r->o.max_tokens == 0 && x && x->default_max_tokens && r->prompt.n < en->info.max_model_len) {
        const uint32_t room = en->info.max_model_len - r->prompt.n;
        r->o.max_tokens = x->default_max_tokens < room ? x->default_max_tokens : room;
    }
    TRY(check_length(en, r, e));
    TRY(make_plan(en, r, e));
    return make_choices(en, r, e);
}

status request_create(struct engine *en, const struct chat *chat, const struct eng_request_options *o,
                      const struct eng_given *given, const struct request_extra *x, struct eng_request **out, struct err *e)
{
    struct eng_request *r;
    TRY(mem_alloc(&r, 1, sizeof *r, e));
    const status st = create(en, chat, o, given, x, r, e);
    if (st != OK) eng_request_destroy(en, &r);
    else *out = r;
    return st;
}

status eng_request_create_given(struct engine *en, const struct chat *chat, const struct eng_request_options *o,
                                const struct eng_given *given, struct eng_request **out, struct err *e)
{
    return request_create(en, chat, o, given, NULL, out, e);
}

status eng_request_create(struct engine *en, const struct chat *chat, const struct eng_request_options *o,
                          struct eng_request **out, struct err *e)
{
    return eng_request_create_given(en, chat, o, NULL, out, e);
}

status eng_request_features(struct engine *en, struct eng_request *r, uint32_t part, struct eng_features *out,
                            struct err *e)
{
    if (part >= r->n_parts) return err_set(e, E_ARG, "media part %u of %u", part, r->n_parts);
    struct req_part *p = &r->part[part];
    if (p->entry) return err_set(e, E_ARG, "media part %u: its features belong to the cache", part);
    if (p->patches == NULL && p->video != NULL) {
        const size_t rows = (size_t)p->media.t * p->media.h * p->media.w, row = request_patch_width(en);
        TRY(mem_alloc(&p->patches, rows * row, sizeof(float), e));
        status st = OK;
        for (uint32_t t = 0; t < p->media.t && st == OK; t++)
            st = media_video_next(p->video, p->patches + (size_t)t * p->media.h * p->media.w * row, e);
        if (st != OK) {                /* a film half read is none */
            free(p->patches);
            p->patches = NULL;
            return st;
        }
        media_video_close(&p->video);
    }
    *out = (struct eng_features){ .mel = p->mel, .n_frames = p->n_frames, .patches = p->patches, .t = p->media.t,
                                  .h = p->media.h, .w = p->media.w };
    return OK;
}

const struct prompt *eng_request_prompt(const struct eng_request *r) { return &r->prompt; }
const struct policy_plan *eng_request_plan(const struct eng_request *r) { return &r->plan; }
const struct eng_result *eng_request_result(const struct eng_request *r) { return &r->choice[0].result; }
const char *eng_request_warnings(const struct eng_request *r) { return r->warnings; }

void request_warn(struct eng_request *r, const char *text)
{
    const size_t had = r->warnings ? strlen(r->warnings) : 0;
    char *all = mem_must(had + strlen(text) + 2, 1);
    sprintf(all, "%s%s%s", had ? r->warnings : "", had ? "\n" : "", text);
    free(r->warnings);
    r->warnings = all;
}

void request_free_media(struct engine *en, struct eng_request *r)
{
    for (uint32_t i = 0; i < r->n_parts; i++) {
        struct req_part *p = &r->part[i];
        media_video_close(&p->video);
        if (p->file && media_warning(p->file)) request_warn(r, media_warning(p->file));
        media_close(&p->file);
        if (p->entry && p->entry->warning) request_warn(r, p->entry->warning);
        if (p->entry) media_entry_release(en->media_cache, p->entry);
        p->entry = NULL;
        if (!p->given) {
            free(p->mel);
            free(p->patches);
        }
        p->mel = p->patches = NULL;
    }
}

void choice_drop_pages(struct engine *en, struct eng_choice *c)
{
    const uint32_t L = decoder_shape(en->dec)->L;
    for (uint32_t l = 0; c->table && l < L; l++) block_table_fini(&c->table[l], en->pool);
    free(c->table);
    c->table = NULL;
}

void request_drop_pages(struct engine *en, struct eng_request *r)
{
    for (uint32_t i = 0; r->choice && i < r->n_choices; i++) choice_drop_pages(en, &r->choice[i]);
}

void request_give_back(struct engine *en, struct eng_request *r)
{
    request_drop_pages(en, r);
    en->ops->release(en->st, r->audio_embeds);
    en->ops->release(en->st, r->vision_embeds);
    en->ops->release(en->st, r->vision_keys);
    en->ops->release(en->st, r->audio_look);
    r->audio_embeds = r->vision_embeds = r->vision_keys = r->audio_look = NULL;
    memory_return(en, r);
    for (size_t i = 0; i < REQUEST_BLOCKS; i++) {
        free(r->parked[i].host);
        r->parked[i] = (struct parked){ 0 };
    }
    request_free_media(en, r);
}

void eng_request_destroy(struct engine *en, struct eng_request **pr)
{
    struct eng_request *r = *pr;
    if (r == NULL) return;
    request_give_back(en, r);
    const uint32_t L = decoder_shape(en->dec)->L;
    for (uint32_t l = 0; r->survivors && l <= L; l++) free(r->survivors[l]);
    for (uint32_t i = 0; r->choice && i < r->n_choices; i++) {
        struct eng_choice *c = &r->choice[i];
        free(c->text);
        free(c->ids);
        free(c->token_s);
        sampler_destroy(&c->sampler);
    }
    free(r->choice);
    free(r->survivors);
    free(r->why);
    free(r->alive);
    free(r->pages);
    free(r->bound);
    free(r->part);
    free(r->warnings);
    free(r->audio_saliency);
    free(r->vision_saliency);
    free(r->vision_blocks);
    prune_plan_free(&r->plan);
    prompt_free(&r->prompt);
    token_list_free(&r->tokens);
    chat_prompt_free(&r->rendered);
    free(r);
    *pr = NULL;
}
