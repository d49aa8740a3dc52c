/* model/prompt.c - placeholders to tokens, positions, chunks and query rows (prompt.h).
 *
 *   tokens  ..., vision_bos, VIDEO, vision_eos, ...        media[] in the same order
 *   expand  VIDEO -> t * h/2 * w/2 times VIDEO; with sound -> audio_bos, chunks of 2 s, audio_eos
 *   place   next = 1 + the largest coordinate of the block appended last (not of all blocks)
 *
 * A video with sound is woven twice. The reference's processor splits it by k * second_per_grid * 25 in f64,
 * which says what each token *is*; its position code splits the same video by the f32 product, truncated,
 * which says where each place of the prompt *stands*. The two agree for all usual rates. Where they do not
 * (9/7 fps from the tenth grid step on), tokens stand on each other's positions: kept as in the reference. */
#include "model/prompt.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define MERGE 2 /* patches a side of one vision token */

/* ---- weaving a video with its sound -------------------------------------------------------------------- */

/* One list of tokens cut where their time passes c * per; at most one cut a token, whatever the time does. */
struct splitter {
    uint32_t n, per_step; /* tokens; tokens of one time value                       */
    double step;          /* time of one step: 1 for sound                          */
    bool truncated;       /* f32 product, truncated, in place of the f64 one        */
    double scale;         /* position_id_per_seconds; time = k * step * scale       */
    uint32_t i, start;
    int64_t c;
    bool done;
};

static int64_t step_time(uint32_t k, double second_per_grid, double per_second)
{
    return (int64_t)((float)k * (float)second_per_grid * (float)per_second);
}

static double splitter_time(const struct splitter *s, uint32_t i)
{
    const uint32_t k = i / s->per_step;
    return s->truncated ? (double)step_time(k, s->step, s->scale) : (double)k * s->step * s->scale;
}

/* The next chunk [begin, end), or false. */
static bool splitter_next(struct splitter *s, uint32_t per, uint32_t *begin, uint32_t *end)
{
    if (s->done) return false;
    *begin = s->start;
    for (; s->i < s->n; s->i++)
        if (splitter_time(s, s->i) >= (double)s->c * per) {
            *end = s->start = s->i++;
            s->c++;
            return true;
        }
    *end = s->n;
    s->done = true;
    return true;
}

struct weave {
    struct splitter video, audio;
    uint32_t per;  /* positions of a chunk: 50 */
    bool is_audio; /* of the chunk under way   */
    uint32_t i, end;
    int32_t chunk;
};

static struct weave weave_begin(const struct prompt_rules *r, const struct prompt_media *m, bool truncated)
{
    const uint32_t per_step = (m->h / MERGE) * (m->w / MERGE);
    return (struct weave){
        .video = { .n = m->t * per_step,
                   .per_step = per_step,
                   .step = m->second_per_grid,
                   .truncated = truncated,
                   .scale = r->position_id_per_seconds,
                   .c = 1 },
        .audio = { .n = m->n_audio, .per_step = 1, .step = 1, .scale = 1, .c = 1 },
        .per = (uint32_t)(r->position_id_per_seconds * r->seconds_per_chunk),
        .is_audio = true,
        .chunk = -1,
    };
}

/* The next token of the item: which list, which of it, is it the first of its chunk? Ends after n tokens. */
static uint32_t weave_next(struct weave *w, bool *first)
{
    *first = w->i == w->end;
    while (w->i == w->end) { /* video chunk k, audio chunk k, video chunk k + 1, ... */
        w->is_audio = !w->is_audio;
        w->chunk += !w->is_audio;
        if (!splitter_next(w->is_audio ? &w->audio : &w->video, w->per, &w->i, &w->end)) w->i = w->end = 0;
    }
    return w->i++;
}

/* ---- building ------------------------------------------------------------------------------------------ */

struct builder {
    const struct prompt_rules *rules;
    struct prompt *p; /* p->n counts the tokens so far */
    int64_t next;     /* position of what comes next   */
    int32_t next_chunk;
};

static uint32_t vision_tokens(const struct prompt_media *m)
{
    return m->kind == TOKEN_AUDIO ? 0 : m->t * (m->h / MERGE) * (m->w / MERGE);
}

static uint32_t put(struct builder *b, int32_t id, int64_t t, int64_t h, int64_t w)
{
    struct prompt *p = b->p;
    const uint32_t i = p->n++;
    p->id[i] = id;
    p->pos[0][i] = (int32_t)t;
    p->pos[1][i] = (int32_t)h;
    p->pos[2][i] = (int32_t)w;
    p->kind[i] = TOKEN_TEXT;
    p->chunk[i] = -1;
    p->item[i] = UINT16_MAX;
    return i;
}

static void put_text(struct builder *b, int32_t id, bool is_user_text)
{
    const uint32_t i = put(b, id, b->next, b->next, b->next);
    if (is_user_text) b->p->user_text[b->p->n_user_text++] = i;
    b->next++;
}

/* Token j of the item's sound, or vision token j; its position is set by the caller. */
static uint32_t put_av(struct builder *b, enum token_kind kind, uint32_t item, uint32_t j, int32_t chunk)
{
    struct prompt *p = b->p;
    struct prompt_item *it = &p->items[item];
    const struct prompt_rules *r = b->rules;
    const uint32_t i = put(b,
                           kind == TOKEN_AUDIO   ? r->audio_id
                           : kind == TOKEN_IMAGE ? r->image_id
                                                 : r->video_id,
                           0, 0, 0);
    p->kind[i] = (uint8_t)kind;
    p->chunk[i] = chunk;
    p->item[i] = (uint16_t)item;
    p->av[p->n_av++] = i;
    if (kind == TOKEN_AUDIO) {
        p->row[i] = it->audio_row + j;
        p->n_audio++;
    } else {
        const uint32_t gw = it->media.w / MERGE, per_step = it->media.h / MERGE * gw;
        p->row[i] = it->vision_row + j;
        p->step[i] = j / per_step;
        p->y[i] = (uint16_t)(j % per_step / gw);
        p->x[i] = (uint16_t)(j % gw);
        p->n_vision++;
    }
    if (it->first_token > it->last_token) it->first_token = i;
    it->last_token = i;
    if (chunk > it->last_chunk) it->last_chunk = chunk;
    return i;
}

/* Position of sound token j or vision token j of an item that starts at s. Returns the largest coordinate. */
static int64_t place(struct builder *b, uint32_t i, const struct prompt_media *m, bool is_audio, uint32_t j,
                     int64_t s)
{
    int64_t v[3] = { s + j, s + j, s + j };
    if (!is_audio) {
        const uint32_t gw = m->w / MERGE, per_step = m->h / MERGE * gw;
        v[0] = s + (m->kind == TOKEN_VIDEO
                        ? step_time(j / per_step, m->second_per_grid, b->rules->position_id_per_seconds)
                        : 0);
        v[1] = s + j % per_step / gw;
        v[2] = s + j % gw;
    }
    for (int a = 0; a < 3; a++) b->p->pos[a][i] = (int32_t)v[a];
    const int64_t hw = v[1] > v[2] ? v[1] : v[2];
    return v[0] > hw ? v[0] : hw;
}

/* Sound alone, picture, silent video: one block. */
static void put_plain(struct builder *b, uint32_t item)
{
    const struct prompt_media *m = &b->p->items[item].media;
    const struct prompt_rules *r = b->rules;
    const uint32_t per = (uint32_t)(r->position_id_per_seconds * r->seconds_per_chunk);
    const bool is_audio = m->kind == TOKEN_AUDIO;
    const uint32_t n = is_audio ? m->n_audio : vision_tokens(m), per_step = is_audio ? 1 : n / m->t;
    int64_t max = b->next - 1;
    for (uint32_t j = 0; j < n; j++) {
        int32_t chunk = 0;
        if (m->kind == TOKEN_AUDIO) chunk = (int32_t)(j / per);
        if (m->kind == TOKEN_VIDEO)
            chunk = (int32_t)floor(r->position_id_per_seconds * (j / per_step) * m->second_per_grid / per);
        const uint32_t i = put_av(b, m->kind, item, j, b->next_chunk + chunk);
        const int64_t top = place(b, i, m, is_audio, j, b->next);
        if (top > max) max = top;
    }
    b->next = max + 1;
}

/* A video with its sound, between vision_bos (put already) and vision_eos (comes next). Both bos stand on one
 * position and so do both eos; every chunk is a block of its own. */
static void put_woven(struct builder *b, uint32_t item)
{
    const struct prompt_media *m = &b->p->items[item].media;
    const uint32_t n = vision_tokens(m) + m->n_audio;
    put(b, b->rules->audio_bos, b->next - 1, b->next - 1, b->next - 1);
    const int64_t s = b->next;
    int64_t max = s - 1;
    struct weave what = weave_begin(b->rules, m, false), where = weave_begin(b->rules, m, true);
    for (uint32_t k = 0; k < n; k++) {
        bool first;
        const uint32_t j = weave_next(&what, &first);
        const uint32_t i =
            put_av(b, what.is_audio ? TOKEN_AUDIO : TOKEN_VIDEO, item, j, b->next_chunk + what.chunk);
        const uint32_t at = weave_next(&where, &first);
        const int64_t top = place(b, i, m, where.is_audio, at, s);
        if (first || top > max) max = top;
    }
    b->next = max + 1;
    put(b, b->rules->audio_eos, b->next, b->next, b->next);
}

static void put_item(struct builder *b, uint32_t item, const struct prompt_media *m)
{
    struct prompt *p = b->p;
    p->items[item] = (struct prompt_item){
        .media = *m,
        .first_token = 1,
        .last_token = 0,
        .audio_row = p->n_audio,
        .vision_row = p->n_vision,
        .n_vision = vision_tokens(m),
        .first_chunk = b->next_chunk,
        .last_chunk = b->next_chunk - 1,
    };
    if (m->kind == TOKEN_VIDEO && m->has_audio)
        put_woven(b, item);
    else
        put_plain(b, item);
    b->next_chunk = p->items[item].last_chunk + 1;
    if (p->items[item].last_chunk > p->max_chunk) p->max_chunk = p->items[item].last_chunk;
}

/* The rows after the last AV token, their last n_max. */
static void choose_after(struct prompt *p, uint32_t n_max)
{
    p->after = p->n_av ? p->av[p->n_av - 1] + 1 : p->n;
    if (p->n - p->after > n_max) p->after = p->n - n_max;
}

/* The user's own text after the first AV token, else whatever follows the last one; its last n_max rows. */
static void choose_query(struct prompt *p, const uint32_t *text, uint32_t n_text, uint32_t n_max)
{
    p->n_query = 0;
    if (p->n_av == 0) return;
    for (uint32_t i = 0; i < n_text; i++)
        if (text[i] > p->av[0]) p->query[p->n_query++] = text[i];
    if (p->n_query == 0)
        for (uint32_t i = p->after; i < p->n; i++) p->query[p->n_query++] = i;
    if (p->n_query > n_max) {
        memmove(p->query, p->query + (p->n_query - n_max), n_max * sizeof *p->query);
        p->n_query = n_max;
    }
}

uint32_t prompt_query(const struct prompt *p, enum query_rows which, uint32_t *row)
{
    if (which == QUERY_TEXT) {
        if (row) memcpy(row, p->query, p->n_query * sizeof *row);
        return p->n_query;
    }
    const uint32_t n = p->n - p->after, n_rows = which == QUERY_LAST && n > 0 ? 1 : n;
    for (uint32_t i = 0; row && i < n_rows; i++) row[i] = p->n - n_rows + i;
    return n_rows;
}

static status prompt_alloc(struct prompt *p, uint64_t n, uint32_t n_items, struct err *e)
{
    memset(p, 0, sizeof *p);
    if (n == 0) return err_set(e, E_ARG, "the prompt is empty: send at least one message");
    if (n > INT_MAX || n_items >= UINT16_MAX)
        return err_set(e, E_ARG,
                       "the prompt has %llu tokens and %u media: at most %d and %d; send less in one request",
                       (unsigned long long)n, n_items, INT_MAX, UINT16_MAX - 1);
    status st = OK;
    TRY_GOTO(st, mem_alloc(&p->id, n, sizeof *p->id, e), undo);
    for (int a = 0; a < 3; a++) TRY_GOTO(st, mem_alloc(&p->pos[a], n, sizeof *p->pos[a], e), undo);
    TRY_GOTO(st, mem_alloc(&p->kind, n, sizeof *p->kind, e), undo);
    TRY_GOTO(st, mem_alloc(&p->chunk, n, sizeof *p->chunk, e), undo);
    TRY_GOTO(st, mem_alloc(&p->item, n, sizeof *p->item, e), undo);
    TRY_GOTO(st, mem_alloc(&p->step, n, sizeof *p->step, e), undo);
    TRY_GOTO(st, mem_alloc(&p->y, n, sizeof *p->y, e), undo);
    TRY_GOTO(st, mem_alloc(&p->x, n, sizeof *p->x, e), undo);
    TRY_GOTO(st, mem_alloc(&p->row, n, sizeof *p->row, e), undo);
    TRY_GOTO(st, mem_alloc(&p->av, n, sizeof *p->av, e), undo);
    TRY_GOTO(st, mem_alloc(&p->query, n, sizeof *p->query, e), undo);
    TRY_GOTO(st, mem_alloc(&p->user_text, n, sizeof *p->user_text, e), undo);
    TRY_GOTO(st, mem_alloc(&p->items, n_items, sizeof *p->items, e), undo);
    p->n_items = n_items;
    return OK;
undo:
    prompt_free(p);
    return st;
}

void prompt_free(struct prompt *p)
{
    free(p->id);
    for (int a = 0; a < 3; a++) free(p->pos[a]);
    free(p->kind);
    free(p->chunk);
    free(p->item);
    free(p->step);
    free(p->y);
    free(p->x);
    free(p->row);
    free(p->av);
    free(p->query);
    free(p->user_text);
    free(p->items);
    memset(p, 0, sizeof *p);
}

static status finish(struct builder *b, struct err *e)
{
    if (b->next > INT_MAX)
        return err_set(e, E_ARG, "the prompt ends at position %lld: at most %d; send shorter videos",
                       (long long)b->next, INT_MAX);
    b->p->next_pos = (int32_t)b->next;
    return OK;
}

/* ---- checks -------------------------------------------------------------------------------------------- */

static const char *kind_name(enum token_kind k)
{
    static const char *const name[] = { "text", "audio", "video", "image" };
    return name[k];
}

static status check_rules(const struct prompt_rules *r, struct err *e)
{
    const double per = r->position_id_per_seconds * r->seconds_per_chunk;
    if (!(r->position_id_per_seconds > 0 && per >= 1 && per < 1e6))
        return err_set(e, E_ARG,
                       "position_id_per_seconds %g and seconds_per_chunk %g: their product must be in 1..1e6",
                       r->position_id_per_seconds, r->seconds_per_chunk);
    return OK;
}

/* One media part; adds its tokens to *n. */
static status check_media(const struct prompt_rules *r, const struct prompt_media *m, uint32_t i, uint64_t *n,
                          struct err *e)
{
    if (m->kind == TOKEN_AUDIO) {
        *n += m->n_audio;
        return OK;
    }
    if (m->kind != TOKEN_IMAGE && m->kind != TOKEN_VIDEO)
        return err_set(e, E_ARG, "media %u is of kind %d: audio, image and video exist", i, (int)m->kind);
    const char *what = kind_name(m->kind);
    if (m->t == 0 || m->h == 0 || m->w == 0 || m->h % MERGE || m->w % MERGE || m->h / MERGE > UINT16_MAX ||
        m->w / MERGE > UINT16_MAX)
        return err_set(e, E_ARG,
                       "media %u (%s) has a grid of %u x %u x %u patches: height and width must be even, no "
                       "side 0",
                       i, what, m->t, m->h, m->w);
    if (m->kind == TOKEN_IMAGE && m->t != 1)
        return err_set(e, E_ARG, "media %u (image) has %u grid steps: a picture has one", i, m->t);
    if (m->kind == TOKEN_VIDEO) {
        if (!(m->second_per_grid > 0 && m->second_per_grid * m->t * r->position_id_per_seconds < INT_MAX / 2))
            return err_set(
                e, E_ARG,
                "media %u (video) has %u grid steps of %g s: the fps must be above 0 and the video "
                "shorter",
                i, m->t, m->second_per_grid);
        if (m->has_audio != r->audio_in_video)
            return err_set(
                e, E_ARG,
                m->has_audio ? "media %u (video) brings its sound, but audio in video is off for "
                               "this request"
                             : "media %u (video) has no sound, but audio in video is on: it holds for every "
                               "video of a request; switch it off, or send the videos apart",
                i);
    }
    /* No overflow: t and h/2 * w/2 are below 2^32 and 2^31 where they are multiplied as 64-bit numbers. */
    const uint64_t per_step = (uint64_t)(m->h / MERGE) * (m->w / MERGE);
    if (per_step > INT_MAX || per_step * m->t > INT_MAX)
        return err_set(
            e, E_ARG,
            "media %u (%s) has a grid of %u x %u x %u patches: more tokens than a prompt can hold; "
            "send less",
            i, what, m->t, m->h, m->w);
    *n += per_step * m->t;
    if (m->kind == TOKEN_VIDEO && m->has_audio) *n += (uint64_t)m->n_audio + 2;
    return OK;
}

/* Which kind of media a token stands for; TOKEN_TEXT for all others. */
static enum token_kind placeholder(const struct prompt_rules *r, int32_t id)
{
    if (id == r->audio_id) return TOKEN_AUDIO;
    if (id == r->image_id) return TOKEN_IMAGE;
    if (id == r->video_id) return TOKEN_VIDEO;
    return TOKEN_TEXT;
}

/* Do the placeholders fit media[], each between its bos and eos? */
static status check_tokens(const struct prompt_rules *r, const struct prompt_token *tokens, uint32_t n_tokens,
                           const struct prompt_media *media, uint32_t n_media, struct err *e)
{
    uint32_t k = 0;
    for (uint32_t i = 0; i < n_tokens; i++) {
        const enum token_kind kind = placeholder(r, tokens[i].id);
        if (kind == TOKEN_TEXT) continue;
        if (k < n_media && media[k].kind != kind)
            return err_set(
                e, E_ARG,
                "placeholder %u of the prompt (token %u) is for %s, media %u is %s: media must come "
                "in the order of their placeholders",
                k, i, kind_name(kind), k, kind_name(media[k].kind));
        const int32_t bos = kind == TOKEN_AUDIO ? r->audio_bos : r->vision_bos;
        const int32_t eos = kind == TOKEN_AUDIO ? r->audio_eos : r->vision_eos;
        if (i == 0 || i + 1 == n_tokens || tokens[i - 1].id != bos || tokens[i + 1].id != eos)
            return err_set(e, E_ARG,
                           "token %u is the placeholder of %s and must stand between tokens %d and %d", i,
                           kind_name(kind), bos, eos);
        k++;
    }
    if (k != n_media)
        return err_set(e, E_ARG, "the prompt has %u media placeholders, the request %u media: one for each",
                       k, n_media);
    return OK;
}

status prompt_build(const struct prompt_rules *rules, const struct prompt_token *tokens, uint32_t n_tokens,
                    const struct prompt_media *media, uint32_t n_media, struct prompt *out, struct err *e)
{
    status st = OK;
    uint64_t n = n_tokens;
    TRY(check_rules(rules, e));
    TRY(check_tokens(rules, tokens, n_tokens, media, n_media, e));
    for (uint32_t i = 0; i < n_media; i++) TRY(check_media(rules, &media[i], i, &n, e));
    TRY(prompt_alloc(out, n - n_media, n_media, e));
    struct builder b = { .rules = rules, .p = out };
    for (uint32_t i = 0, k = 0; i < n_tokens; i++)
        if (placeholder(rules, tokens[i].id) == TOKEN_TEXT)
            put_text(&b, tokens[i].id, tokens[i].is_user_text);
        else {
            put_item(&b, k, &media[k]);
            k++;
        }
    choose_after(out, rules->n_query_max);
    choose_query(out, out->user_text, out->n_user_text, rules->n_query_max);
    TRY_GOTO(st, finish(&b, e), undo);
    return OK;
undo:
    prompt_free(out);
    return st;
}

/* ---- from arrays --------------------------------------------------------------------------------------- */

static status copy_arrays(struct prompt *p, uint32_t n, const int64_t *id, const int64_t *pos,
                          const int64_t *kind, const int64_t *chunk, const int64_t *query, uint32_t n_query,
                          struct err *e)
{
    p->n = n;
    for (uint32_t i = 0; i < n; i++) {
        if (id[i] < 0 || id[i] > INT_MAX || kind[i] < TOKEN_TEXT || kind[i] > TOKEN_IMAGE || chunk[i] < -1 ||
            chunk[i] >= INT_MAX || (chunk[i] == -1) != (kind[i] == TOKEN_TEXT))
            return err_set(
                e, E_ARG,
                "token %u of the prompt: id %lld, kind %lld, chunk %lld; text has chunk -1, others 0 "
                "or more",
                i, (long long)id[i], (long long)kind[i], (long long)chunk[i]);
        p->id[i] = (int32_t)id[i];
        p->kind[i] = (uint8_t)kind[i];
        p->chunk[i] = (int32_t)chunk[i];
        p->item[i] = UINT16_MAX;
        for (int a = 0; a < 3; a++) {
            const int64_t v = pos[(size_t)a * n + i];
            if (v < 0 || v >= INT_MAX)
                return err_set(e, E_ARG, "token %u of the prompt has position %lld: 0..%d", i, (long long)v,
                               INT_MAX - 1);
            p->pos[a][i] = (int32_t)v;
        }
        if (kind[i] == TOKEN_TEXT) continue;
        p->av[p->n_av++] = i;
        p->row[i] = kind[i] == TOKEN_AUDIO ? p->n_audio++ : p->n_vision++;
        if (p->chunk[i] > p->max_chunk) p->max_chunk = p->chunk[i];
    }
    for (uint32_t i = 0; i < n_query; i++) {
        if (query[i] < 0 || query[i] >= n || (i && query[i] <= query[i - 1]))
            return err_set(e, E_ARG, "query row %u is %lld: ascending indices into the prompt of %u tokens",
                           i, (long long)query[i], n);
        p->query[i] = (uint32_t)query[i];
    }
    p->n_query = n_query;
    return OK;
}

/* Item k is the run [first, last] of AV tokens. Its vision tokens come step by step, row by row. */
static status derive_item(struct prompt *p, uint32_t k, uint32_t first, uint32_t last, double per_second,
                          struct err *e)
{
    struct prompt_item *it = &p->items[k];
    uint32_t prev = UINT32_MAX, step = 0, max_y = 0, max_x = 0;
    int32_t min_h = INT_MAX, min_w = INT_MAX;
    *it = (struct prompt_item){
        .media.kind = TOKEN_AUDIO, .first_token = first, .last_token = last, .first_chunk = INT_MAX
    };
    for (uint32_t i = first; i <= last; i++) {
        p->item[i] = (uint16_t)k;
        if (p->chunk[i] < it->first_chunk) it->first_chunk = p->chunk[i];
        if (p->chunk[i] > it->last_chunk) it->last_chunk = p->chunk[i];
        if (p->kind[i] == TOKEN_AUDIO) {
            if (it->media.n_audio++ == 0) it->audio_row = p->row[i];
            continue;
        }
        if (it->n_vision++ == 0) it->vision_row = p->row[i];
        it->media.kind = p->kind[i];
        if (p->pos[1][i] < min_h) min_h = p->pos[1][i];
        if (p->pos[2][i] < min_w) min_w = p->pos[2][i];
    }
    for (uint32_t i = first; i <= last; i++) {
        if (p->kind[i] == TOKEN_AUDIO) continue;
        const uint32_t y = (uint32_t)(p->pos[1][i] - min_h), x = (uint32_t)(p->pos[2][i] - min_w);
        if (y > UINT16_MAX || x > UINT16_MAX)
            return err_set(e, E_ARG,
                           "token %u of the prompt lies at row %u, column %u of its grid: at most %d", i, y,
                           x, UINT16_MAX);
        if (prev != UINT32_MAX && (y < p->y[prev] || (y == p->y[prev] && x <= p->x[prev]))) {
            if (++step == 1) it->media.second_per_grid = (p->pos[0][i] - p->pos[0][prev]) / per_second;
        }
        p->step[i] = step;
        p->y[i] = (uint16_t)y;
        p->x[i] = (uint16_t)x;
        if (y > max_y) max_y = y;
        if (x > max_x) max_x = x;
        prev = i;
    }
    if (it->n_vision) {
        it->media.t = step + 1;
        it->media.h = (max_y + 1) * MERGE;
        it->media.w = (max_x + 1) * MERGE;
        it->media.has_audio = it->media.n_audio > 0;
    }
    return OK;
}

status prompt_from_arrays(const struct prompt_rules *rules, uint32_t n, const int64_t *id, const int64_t *pos,
                          const int64_t *kind, const int64_t *chunk, const int64_t *query, uint32_t n_query,
                          struct prompt *out, struct err *e)
{
    status st = OK;
    uint32_t n_items = 0;
    TRY(check_rules(rules, e));
    for (uint32_t i = 0; i < n; i++)
        n_items += kind[i] != TOKEN_TEXT && (i == 0 || kind[i - 1] == TOKEN_TEXT);
    if (n_query > n) return err_set(e, E_ARG, "%u query rows in a prompt of %u tokens", n_query, n);
    TRY(prompt_alloc(out, n, n_items, e));
    TRY_GOTO(st, copy_arrays(out, n, id, pos, kind, chunk, query, n_query, e), undo);
    for (uint32_t i = 0, k = 0; i < n; i++) {
        if (kind[i] == TOKEN_TEXT) continue;
        uint32_t last = i;
        while (last + 1 < n && kind[last + 1] != TOKEN_TEXT) last++;
        TRY_GOTO(st, derive_item(out, k++, i, last, rules->position_id_per_seconds, e), undo);
        i = last;
    }
    choose_after(out, rules->n_query_max);
    if (n_query == 0) choose_query(out, NULL, 0, rules->n_query_max);
    for (int a = 0; a < 3; a++)
        if (out->pos[a][n - 1] >= out->next_pos) out->next_pos = out->pos[a][n - 1] + 1;
    return OK;
undo:
    prompt_free(out);
    return st;
}
