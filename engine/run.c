/* engine/run.c - requests from promised pages to text: towers, prefill, decode.
 *
 *   eng_run
 *     encode        features -> embeddings, one request at a time
 *     prefill       groups of requests march through the layers together, score first; tokens drop on the way
 *     decode        one token of every running request a step, until none runs
 * What a request needs was promised when it was created, so nothing here can fail for want of pages. A request that
 * fails (its media break while they are read) ends alone; an error of the device ends all. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"

#define GROUP_ROWS 16384           /* rows that march together; a longer prompt is a group of its own */
#define TOWER_ROWS 4096            /* patches handed to the vision tower at once */
#define LOGIT_ROWS 96              /* requests whose logits are held at once: 8 tiles of 12 */

struct run_buffers {
    uint32_t rows;                 /* capacity of the four below */
    float *x, *y, *cos, *sin;      /* device: residual stream (two, as a gather in place would race), angles */
    uint32_t *seq_start, *kv_start, *out_start;   /* [reqs + 1] */
    struct kv_view *view;          /* [reqs] */
    size_t seq_cap, kv_cap, out_cap, view_cap;
    uint32_t *index, *angle, *keep, *visible;     /* [rows] prompt index, angle row; survivors and what they see */
    size_t index_cap, angle_cap, keep_cap, visible_cap;
    int32_t *id;
    size_t id_cap;
    int32_t *pos[3];
    size_t pos_cap[3];
    float *score;                  /* [rows] */
    size_t score_cap;
    float *logits;                 /* [min(reqs, LOGIT_ROWS), V] */
    size_t logits_cap;
};

static void buffers_release(struct engine *en, struct run_buffers *b)
{
    float *dev[] = { b->x, b->y, b->cos, b->sin };
    for (size_t i = 0; i < sizeof dev / sizeof *dev; i++) en->ops->release(en->st, dev[i]);
    b->x = b->y = b->cos = b->sin = NULL;
    b->rows = 0;
}

void run_buffers_free(struct engine *en)
{
    struct run_buffers *b = en->run;
    if (b == NULL) return;
    buffers_release(en, b);
    void *host[] = { b->seq_start, b->kv_start, b->out_start, b->view, b->index, b->angle, b->keep, b->visible,
                     b->id, b->pos[0], b->pos[1], b->pos[2], b->score, b->logits };
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    free(b);
    en->run = NULL;
}

/* Room for `rows` rows of `reqs` requests. */
static status buffers_grow(struct engine *en, uint32_t rows, uint32_t reqs, struct err *e)
{
    if (en->run == NULL) TRY(mem_alloc(&en->run, 1, sizeof *en->run, e));
    struct run_buffers *b = en->run;
    const struct decoder_shape *s = decoder_shape(en->dec);
    TRY(mem_grow(&b->seq_start, &b->seq_cap, reqs + 1, sizeof(uint32_t), e));
    TRY(mem_grow(&b->kv_start, &b->kv_cap, reqs + 1, sizeof(uint32_t), e));
    TRY(mem_grow(&b->out_start, &b->out_cap, reqs + 1, sizeof(uint32_t), e));
    TRY(mem_grow(&b->view, &b->view_cap, reqs, sizeof *b->view, e));
    TRY(mem_grow(&b->index, &b->index_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&b->angle, &b->angle_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&b->keep, &b->keep_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&b->visible, &b->visible_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&b->id, &b->id_cap, rows, sizeof(int32_t), e));
    for (int k = 0; k < 3; k++) TRY(mem_grow(&b->pos[k], &b->pos_cap[k], rows, sizeof(int32_t), e));
    TRY(mem_grow(&b->score, &b->score_cap, rows, sizeof(float), e));
    const size_t at_once = reqs < LOGIT_ROWS ? reqs : LOGIT_ROWS;
    TRY(mem_grow(&b->logits, &b->logits_cap, at_once * s->V, sizeof(float), e));
    if (rows <= b->rows) return OK;
    buffers_release(en, b);
    TRY(en->ops->alloc(en->st, (size_t)rows * s->d * sizeof(float), (void **)&b->x, e));
    TRY(en->ops->alloc(en->st, (size_t)rows * s->d * sizeof(float), (void **)&b->y, e));
    TRY(en->ops->alloc(en->st, (size_t)rows * (s->D / 2) * sizeof(float), (void **)&b->cos, e));
    TRY(en->ops->alloc(en->st, (size_t)rows * (s->D / 2) * sizeof(float), (void **)&b->sin, e));
    b->rows = rows;
    return OK;
}

/* ---- the end of a request --------------------------------------------------------------------------------- */

static bool running(const struct eng_request *r) { return r->result.finish == ENG_UNFINISHED; }

static void finish(struct engine *en, struct eng_request *r, enum eng_finish how, const struct err *why)
{
    struct eng_result *res = &r->result;
    res->finish = how;
    if (why) res->error = *why;
    res->text = r->text ? r->text : "";
    res->n_text = r->n_text_bytes;
    res->ids = r->ids;
    res->n_ids = (uint32_t)r->n_ids;
    res->token_s = r->token_s;
    res->n_prompt = r->prompt.n;
    res->n_layers = decoder_shape(en->dec)->L;
    res->alive = (const uint32_t(*)[4])r->alive;
    res->pages = r->pages;
    res->survivors = (const uint32_t *const *)r->survivors;
    request_give_back(en, r);
}

/* What came of a piece of work for n requests: a device that failed and an interrupt end the whole run; any other
 * failure ends those of them that still run, and the run goes on. */
static status settle(struct engine *en, struct eng_request **reqs, uint32_t n, status st, const struct err *why,
                     struct err *e)
{
    if (st == E_DEVICE || st == E_CANCELLED) {
        *e = *why;
        return st;
    }
    for (uint32_t i = 0; st != OK && i < n; i++)
        if (running(reqs[i])) finish(en, reqs[i], ENG_FAILED, why);
    return OK;
}

/* ---- towers ----------------------------------------------------------------------------------------------- */

/* saliency: of every merged token, or NULL. */
static status encode_vision(struct engine *en, struct req_part *p, float *out, float *saliency, struct err *e)
{
    const uint32_t d = decoder_shape(en->dec)->d, rows = p->media.h * p->media.w;
    const struct vision_config *v = &en->config.vision;
    const size_t width = 3u * v->temporal_patch_size * v->patch_size * v->patch_size;
    uint32_t steps = TOWER_ROWS / rows ? TOWER_ROWS / rows : 1;
    float *stream = NULL;
    status st = OK;
    if (p->patches == NULL) TRY(mem_alloc(&stream, (size_t)steps * rows * width, sizeof(float), e));
    for (uint32_t t = 0; t < p->media.t && st == OK; t += steps) {
        const uint32_t n = p->media.t - t < steps ? p->media.t - t : steps;
        const float *patches = p->patches ? p->patches + (size_t)t * rows * width : stream;
        if (en->interrupted) st = err_set(e, E_CANCELLED, "interrupted");
        for (uint32_t i = 0; stream && i < n && st == OK; i++)
            st = media_video_next(p->video, stream + (size_t)i * rows * width, e);
        if (st == OK)
            st = vision_tower_run(en->vision, patches, n, p->media.h, p->media.w, out + (size_t)t * (rows / 4) * d,
                                  saliency ? saliency + (size_t)t * (rows / 4) : NULL, e);
    }
    free(stream);
    return st;
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

static status encode(struct engine *en, struct eng_request *r, struct err *e)
{
    const struct prompt *p = &r->prompt;
    const uint32_t d = decoder_shape(en->dec)->d;
    const double start = clock_s();
    TRY(en->ops->alloc(en->st, (size_t)p->n_audio * d * sizeof(float) + 64, (void **)&r->audio_embeds, e));
    TRY(en->ops->alloc(en->st, (size_t)p->n_vision * d * sizeof(float) + 64, (void **)&r->vision_embeds, e));
    if (r->n_parts == 0) {         /* embeddings were given, or there is nothing but text */
        if (p->n_audio)
            TRY(en->ops->upload(en->st, r->audio_embeds, r->given_audio, (size_t)p->n_audio * d * sizeof(float), e));
        if (p->n_vision)
            TRY(en->ops->upload(en->st, r->vision_embeds, r->given_vision, (size_t)p->n_vision * d * sizeof(float), e));
        if (r->given_saliency == NULL) return OK;
        TRY(mem_alloc(&r->audio_saliency, p->n_audio, sizeof(float), e));
        memcpy(r->audio_saliency, r->given_saliency, p->n_audio * sizeof(float));
        return OK;
    }
    if (r->plan.needs & PRUNE_NEEDS_AUDIO_SALIENCY)
        TRY(mem_alloc(&r->audio_saliency, p->n_audio, sizeof(float), e));
    if (r->plan.needs & PRUNE_NEEDS_VISION_SALIENCY)
        TRY(mem_alloc(&r->vision_saliency, p->n_vision, sizeof(float), e));
    for (uint32_t i = 0; i < r->n_parts; i++) {
        const struct prompt_item *it = &p->items[i];
        struct req_part *part = &r->part[i];
        if (it->n_vision)
            TRY(encode_vision(en, part, r->vision_embeds + (size_t)it->vision_row * d,
                              r->vision_saliency ? r->vision_saliency + it->vision_row : NULL, e));
        if (it->media.n_audio)
            TRY(audio_tower_run(en->audio, part->mel, part->n_frames, r->audio_embeds + (size_t)it->audio_row * d,
                                r->audio_saliency ? r->audio_saliency + it->audio_row : NULL, e));
    }
    request_free_media(r);
    r->result.tower_s = clock_s() - start;
    return trace_towers(en, r, e);
}

/* ---- prefill ---------------------------------------------------------------------------------------------- */

/* One request inside a group. */
struct member {
    struct eng_request *r;
    struct policy_run *policy;
    uint32_t *av;                  /* [n_av] prompt indices alive */
    uint32_t n_av;
    uint32_t angle0;               /* its first row of cos/sin */
    struct prune_selection sel;
};

static bool is_av(const struct member *m, uint32_t index) { return m->r->prompt.kind[index] != TOKEN_TEXT; }

/* Note who is alive entering layer l. */
static status note_alive(struct member *m, uint32_t l, struct err *e)
{
    struct eng_request *r = m->r;
    uint32_t *count = r->alive[l];
    count[TOKEN_TEXT] = r->n_text;
    for (uint32_t i = 0; i < m->n_av; i++) count[r->prompt.kind[m->av[i]]]++;
    TRY(mem_alloc(&r->survivors[l], m->n_av, sizeof(uint32_t), e));
    memcpy(r->survivors[l], m->av, m->n_av * sizeof(uint32_t));
    return OK;
}

static status trace_rows(struct engine *en, const struct member *m, uint32_t l, uint32_t row0, uint32_t n, const float *x,
                         const uint32_t *index, struct err *e)
{
    const struct eng_trace *t = m->r->o.trace;
    if (t == NULL || t->hidden == NULL) return OK;
    const uint32_t d = decoder_shape(en->dec)->d;
    float *rows;
    TRY(mem_alloc(&rows, (size_t)n * d, sizeof(float), e));
    const status st = en->ops->download(en->st, rows, x + (size_t)row0 * d, (size_t)n * d * sizeof(float), e);
    if (st == OK) t->hidden(t->self, l, rows, index, n, d);
    free(rows);
    return st;
}

/* Replace the member's AV tokens by those that the selection keeps. */
static void apply_keep(struct member *m)
{
    memcpy(m->av, m->sel.keep, m->sel.n_keep * sizeof(uint32_t));
    m->n_av = m->sel.n_keep;
}

/* Before layer 0: the policy's own start and its choice on the embeddings. */
static status begin(struct engine *en, struct member *m, struct err *e)
{
    struct eng_request *r = m->r;
    const struct prompt *p = &r->prompt;
    TRY(mem_alloc(&m->av, p->n_av, sizeof(uint32_t), e));
    memcpy(m->av, p->av, p->n_av * sizeof(uint32_t));
    m->n_av = p->n_av;
    for (uint32_t i = 0; i < p->n; i++) r->result.n_av[p->kind[i]]++;
    TRY(prune_begin(&r->policy, &r->plan, p, &m->policy, e));
    const struct prune_embed_view view = {
        .st = en->st, .audio = r->audio_embeds, .vision = r->vision_embeds, .d = decoder_shape(en->dec)->d,
        .audio_saliency = r->audio_saliency, .vision_saliency = r->vision_saliency };
    const double start = clock_s();
    TRY(prune_embed(m->policy, &view, &m->sel, e));
    r->result.select_s = clock_s() - start;
    apply_keep(m);
    return OK;
}

/* Rows of layer 0: word embeddings of all tokens alive, then the media's rows over their placeholders. */
static status fill_rows(struct engine *en, struct member *m, uint32_t n_members, uint32_t *n_rows, struct err *e)
{
    struct run_buffers *b = en->run;
    const uint32_t d = decoder_shape(en->dec)->d;
    uint32_t n = 0, angles = 0;
    for (uint32_t s = 0; s < n_members; s++) {
        const struct prompt *p = &m[s].r->prompt;
        const int32_t *const pos[3] = { p->pos[0], p->pos[1], p->pos[2] };
        const size_t at = (size_t)angles * (decoder_shape(en->dec)->D / 2);
        TRY(decoder_angles(en->dec, pos, p->n, b->cos + at, b->sin + at, e));
        m[s].angle0 = angles;
        angles += p->n;
        b->seq_start[s] = n;
        for (uint32_t i = 0, a = 0; i < p->n; i++) {
            if (is_av(&m[s], i)) {
                if (a == m[s].n_av || m[s].av[a] != i) continue;
                a++;
            }
            b->index[n] = i;
            b->angle[n] = m[s].angle0 + i;
            b->id[n++] = p->id[i];
        }
    }
    b->seq_start[n_members] = n;
    TRY(decoder_embed(en->dec, b->id, n, b->x, e));
    for (uint32_t s = 0; s < n_members; s++) {
        const struct prompt *p = &m[s].r->prompt;
        for (int audio = 0; audio < 2; audio++) {      /* two towers: two sources */
            uint32_t k = 0;
            for (uint32_t i = b->seq_start[s]; i < b->seq_start[s + 1]; i++) {
                const uint32_t j = b->index[i];
                if (p->kind[j] == TOKEN_TEXT || (p->kind[j] == TOKEN_AUDIO) != audio) continue;
                b->keep[k] = p->row[j];
                b->visible[k++] = i;
            }
            if (k == 0) continue;
            const float *from = audio ? m[s].r->audio_embeds : m[s].r->vision_embeds;
            TRY(en->ops->gather(en->st, &(struct gather_args){ .x = from, .row = b->keep, .n = k, .d = d, .y = b->y }, e));
            TRY(en->ops->scatter(en->st, &(struct scatter_args){ .x = b->y, .row = b->visible, .n = k, .d = d,
                                                                 .y = b->x }, e));
        }
    }
    *n_rows = n;
    return OK;
}

/* Scores of member s at layer l, and what the policy keeps. b->score: [rows of s] importance of every row. */
static status select_at(struct engine *en, struct member *m, uint32_t s, uint32_t l, const struct decoder_batch *batch,
                        struct err *e)
{
    struct run_buffers *b = en->run;
    const struct prompt *p = &m->r->prompt;
    const uint32_t r0 = b->seq_start[s], n = b->seq_start[s + 1] - r0;
    uint32_t n_q = 0;
    for (uint32_t i = r0, q = 0; i < r0 + n && q < p->n_query; i++)
        if (b->index[i] == p->query[q]) {
            b->keep[n_q++] = i;
            q++;
        }
    if (n_q == 0) return err_set(e, E_INTERNAL, "layer %u: no query row is left", l);
    TRY(decoder_scores(en->dec, l, batch, s, b->x, b->keep, n_q, b->score, e));
    uint32_t k = 0;
    for (uint32_t i = 0; i < n; i++)
        if (is_av(m, b->index[r0 + i])) b->score[k++] = b->score[i];
    assert(k == m->n_av);
    const struct eng_trace *t = m->r->o.trace;
    if (t && t->alive) t->alive(t->self, l, m->av, m->n_av, b->score);
    const struct prune_layer_view view = { .st = en->st, .n_alive = m->n_av, .alive = m->av, .score = b->score };
    TRY(prune_layer(m->policy, l, &view, &m->sel, e));
    apply_keep(m);
    return OK;
}

/* Rows that live past layer l, into keep, visible and out_start: text and survivors; at the last layer the last row
 * of each request alone. Returns how many. */
static uint32_t list_survivors(struct engine *en, const struct member *m, uint32_t n_members, bool last)
{
    struct run_buffers *b = en->run;
    uint32_t n = 0;
    for (uint32_t s = 0; s < n_members; s++) {
        const uint32_t r0 = b->seq_start[s], r1 = b->seq_start[s + 1];
        b->out_start[s] = n;
        for (uint32_t i = last ? r1 - 1 : r0, a = 0; i < r1; i++) {
            if (!last && is_av(&m[s], b->index[i])) {
                if (a == m[s].n_av || m[s].av[a] != b->index[i]) continue;
                a++;
            }
            b->keep[n] = i;
            b->visible[n++] = i - r0 + 1;
        }
    }
    b->out_start[n_members] = n;
    return n;
}

/* Rows keep[0..n) become the batch. */
static void renumber(struct run_buffers *b, uint32_t n, uint32_t n_members)
{
    for (uint32_t i = 0; i < n; i++) {
        b->index[i] = b->index[b->keep[i]];
        b->angle[i] = b->angle[b->keep[i]];
    }
    memcpy(b->seq_start, b->out_start, (n_members + 1) * sizeof(uint32_t));
}

static void swap_rows(struct run_buffers *b)
{
    float *t = b->x;
    b->x = b->y;
    b->y = t;
}

/* The textbook order: every row through the layer, then the drop. Same numbers as score first. */
static status mix_textbook(struct engine *en, uint32_t l, const struct decoder_batch *batch, uint32_t n_rows,
                           uint32_t n_keep, struct err *e)
{
    struct run_buffers *b = en->run;
    uint32_t *visible;
    TRY(mem_alloc(&visible, n_rows, sizeof *visible, e));
    for (uint32_t s = 0; s < batch->n_seqs; s++)
        for (uint32_t i = b->seq_start[s]; i < b->seq_start[s + 1]; i++) visible[i] = i - b->seq_start[s] + 1;
    const status st = decoder_mix(en->dec, l, batch, b->x, NULL, n_rows, b->seq_start, visible, b->x, e);
    free(visible);
    if (st != OK) return st;
    return en->ops->gather(en->st, &(struct gather_args){ .x = b->x, .row = b->keep, .n = n_keep,
                                                          .d = decoder_shape(en->dec)->d, .y = b->y }, e);
}

/* One layer of one group. *n_rows goes from the rows entering it to those leaving it. */
static status prefill_layer(struct engine *en, struct member *m, uint32_t n_members, uint32_t l, uint32_t *n_rows,
                            struct err *e)
{
    struct run_buffers *b = en->run;
    const uint32_t L = decoder_shape(en->dec)->L;
    const bool last = l + 1 == L;
    bool whole = !last;            /* every row lives on, as is known beforehand */
    for (uint32_t s = 0; s < n_members; s++) {
        struct eng_request *r = m[s].r;
        const uint32_t rows = b->seq_start[s + 1] - b->seq_start[s];
        whole = whole && !prune_selects_at(m[s].policy, l);
        TRY(note_alive(&m[s], l, e));
        TRY(trace_rows(en, &m[s], l, b->seq_start[s], rows, b->x, b->index + b->seq_start[s], e));
        block_table_append(&r->table[l], en->pool, &r->reservation, rows);
        r->pages[l] = r->table[l].n_pages;
        b->view[s] = (struct kv_view){ .page = r->table[l].page, .n_rows = rows };
        b->kv_start[s] = 0;
    }
    const struct decoder_batch batch = { .n_seqs = n_members, .seq_start = b->seq_start, .view = b->view,
                                         .angle = b->angle, .cos = b->cos, .sin = b->sin, .kv = en->kv };
    if (!whole) TRY(decoder_kv(en->dec, l, &batch, b->x, b->kv_start, e));
    bool dropped = false;
    for (uint32_t s = 0; s < n_members; s++) {
        const struct eng_trace *t = m[s].r->o.trace;
        if (prune_selects_at(m[s].policy, l)) {
            const uint32_t before = m[s].n_av;
            const double start = clock_s();
            TRY(select_at(en, &m[s], s, l, &batch, e));
            m[s].r->result.select_s += clock_s() - start;
            dropped = dropped || m[s].n_av != before;
        } else if (t && t->alive) {
            t->alive(t->self, l, m[s].av, m[s].n_av, NULL);
        }
        /* What the bound promised and the layer did not take goes back now; the answer's rows stay promised. */
        struct eng_request *r = m[s].r;
        const uint32_t bound = kv_pages_of(en->pool, r->plan.alive[l] + r->n_text + r->n_new_max);
        const uint32_t need = kv_pages_of(en->pool, r->table[l].n_rows + r->n_new_max);
        if (bound > need) kv_forfeit(en->pool, &r->reservation, bound - need);
    }
    const uint32_t n = list_survivors(en, m, n_members, last);
    if (whole) return decoder_layer(en->dec, l, &batch, b->x, b->kv_start, b->visible, e);
    if (!dropped && !last) return decoder_mix(en->dec, l, &batch, b->x, NULL, *n_rows, b->out_start, b->visible, b->x, e);
    if (en->textbook_order) TRY(mix_textbook(en, l, &batch, *n_rows, n, e));
    else TRY(decoder_mix(en->dec, l, &batch, b->x, b->keep, n, b->out_start, b->visible, b->y, e));
    swap_rows(b);
    renumber(b, n, n_members);
    *n_rows = n;
    return OK;
}

static status next_tokens(struct engine *en, struct eng_request **reqs, uint32_t n, struct err *e);

/* The layers, and the first token of each member; reqs[i] is that of m[i]. */
static status prefill_members(struct engine *en, struct member *m, struct eng_request **reqs, uint32_t n_members,
                              struct err *e)
{
    const uint32_t L = decoder_shape(en->dec)->L;
    uint32_t rows;
    TRY(fill_rows(en, m, n_members, &rows, e));
    for (uint32_t l = 0; l < L; l++) {
        if (en->interrupted) return err_set(e, E_CANCELLED, "interrupted");
        TRY(prefill_layer(en, m, n_members, l, &rows, e));
    }
    for (uint32_t s = 0; s < n_members; s++) {
        struct eng_request *r = m[s].r;
        TRY(note_alive(&m[s], L, e));
        const uint32_t n_orig = r->prompt.n_av;
        double sum = 0;
        for (uint32_t l = 0; l < L; l++)
            sum += (double)(r->alive[l][TOKEN_AUDIO] + r->alive[l][TOKEN_VIDEO] + r->alive[l][TOKEN_IMAGE]);
        r->result.mean_retention = n_orig ? sum / L / n_orig : 1;
    }
    return next_tokens(en, reqs, n_members, e);
}

/* The member's request has its rows now, or has failed: free what was needed to get there. */
static void end_member(struct engine *en, struct member *m)
{
    en->ops->release(en->st, m->r->audio_embeds);
    en->ops->release(en->st, m->r->vision_embeds);
    m->r->audio_embeds = m->r->vision_embeds = NULL;
    prune_end(&m->policy);
    prune_selection_free(&m->sel);
    free(m->av);
    *m = (struct member){ 0 };
}

/* reqs is put in another order where a member fails before layer 0: the others march on at its front. */
static status prefill_group(struct engine *en, struct eng_request **reqs, uint32_t n, uint32_t rows, struct err *e)
{
    struct member *m;
    const double start = clock_s();
    TRY(buffers_grow(en, rows, n, e));
    TRY(mem_alloc(&m, n, sizeof *m, e));
    status st = OK;
    uint32_t k = 0;
    for (uint32_t s = 0; s < n && st == OK; s++) {
        struct err why;
        struct eng_request *r = reqs[s];
        m[k].r = r;
        const status began = begin(en, &m[k], &why);
        if (began == OK) {
            reqs[s] = reqs[k];
            reqs[k++] = r;
            continue;
        }
        end_member(en, &m[k]);
        st = settle(en, &r, 1, began, &why, e);
    }
    if (st == OK && k > 0) st = prefill_members(en, m, reqs, k, e);
    for (uint32_t s = 0; s < k; s++) {
        m[s].r->result.prefill_s = clock_s() - start;
        end_member(en, &m[s]);
    }
    free(m);
    return st;
}

/* ---- decode ----------------------------------------------------------------------------------------------- */

static bool is_stop_id(const struct engine *en, int32_t id)
{
    for (uint32_t i = 0; i < en->config.n_stop; i++)
        if (en->config.stop[i] == id) return true;
    return false;
}

/* Bytes at the end of text[from..n) that may be the beginning of a stop string; *at: where one stands whole. */
static size_t held_back(const struct eng_request *r, bool *found, size_t *at)
{
    size_t hold = 0;
    *found = false;
    for (uint32_t i = 0; i < r->o.n_stop; i++) {
        const size_t len = strlen(r->o.stop[i]);
        if (len == 0) continue;
        const char *p = memmem(r->text + r->n_sent, r->n_text_bytes - r->n_sent, r->o.stop[i], len);
        if (p && (!*found || (size_t)(p - r->text) < *at)) {
            *found = true;
            *at = (size_t)(p - r->text);
        }
        for (size_t k = len - 1; k > hold; k--)
            if (k <= r->n_text_bytes - r->n_sent && memcmp(r->text + r->n_text_bytes - k, r->o.stop[i], k) == 0) {
                hold = k;
                break;
            }
    }
    return hold;
}

/* Hand out text that no stop string can take back. Returns false where the receiver wants no more. */
static bool send_text(struct eng_request *r, size_t upto)
{
    const size_t n = upto - r->n_sent;
    const char *from = r->text + r->n_sent;
    r->n_sent = upto;
    return n == 0 || r->o.on_text == NULL || r->o.on_text(r->o.on_text_self, from, n);
}

/* Sample the next token from logits, add its text, decide whether the request ends. */
static status accept(struct engine *en, struct eng_request *r, const float *logits, struct err *e)
{
    float logprob;
    const int32_t id = sampler_next(r->sampler, logits, &logprob);
    TRY(mem_grow(&r->ids, &r->ids_cap, r->n_ids + 1, sizeof *r->ids, e));
    TRY(mem_grow(&r->token_s, &r->token_cap, r->n_ids + 1, sizeof *r->token_s, e));
    r->token_s[r->n_ids] = clock_s() - r->started;
    r->ids[r->n_ids++] = id;
    r->result.logprob_sum += (double)logprob;
    r->next_id = id;
    const size_t room = detok_room(en->tok);
    TRY(mem_grow(&r->text, &r->text_cap, r->n_text_bytes + 2 * room + 1, 1, e));
    const bool stop_id = is_stop_id(en, id) && !r->o.ignore_eos;
    const bool full = r->n_ids >= r->n_new_max;
    if (!stop_id) r->n_text_bytes += detok_push(&r->detok, id, r->text + r->n_text_bytes);
    if (stop_id || full) r->n_text_bytes += detok_flush(&r->detok, r->text + r->n_text_bytes);
    r->text[r->n_text_bytes] = 0;
    bool stop_text = false;
    size_t at = 0;
    const size_t hold = held_back(r, &stop_text, &at);
    if (stop_text) r->n_text_bytes = at;
    const bool ends = stop_id || stop_text || full;
    const bool more = send_text(r, ends ? r->n_text_bytes : r->n_text_bytes - hold);
    r->text[r->n_text_bytes] = 0;
    if (ends) finish(en, r, stop_id || stop_text ? ENG_STOP : ENG_LENGTH, NULL);
    else if (!more) finish(en, r, ENG_CANCELLED, NULL);
    return OK;
}

/* Logits of row i of x and the next token of reqs[i], for the n requests that run. */
static status next_tokens(struct engine *en, struct eng_request **reqs, uint32_t n, struct err *e)
{
    struct run_buffers *b = en->run;
    const struct decoder_shape *s = decoder_shape(en->dec);
    for (uint32_t i0 = 0; i0 < n; i0 += LOGIT_ROWS) {
        const uint32_t k = n - i0 < LOGIT_ROWS ? n - i0 : LOGIT_ROWS;
        TRY(decoder_logits(en->dec, b->x + (size_t)i0 * s->d, NULL, k, b->logits, e));
        for (uint32_t i = 0; i < k; i++) {
            struct eng_request *r = reqs[i0 + i];
            const float *logits = b->logits + (size_t)i * s->V;
            const struct eng_trace *t = r->o.trace;
            struct err why;
            if (r->n_ids == 0 && t && t->logits) t->logits(t->self, logits, s->V);
            TRY(settle(en, &r, 1, accept(en, r, logits, &why), &why, e));
        }
    }
    return OK;
}

/* One token of each of the n running requests. */
static status decode_step(struct engine *en, struct eng_request **reqs, uint32_t n, struct err *e)
{
    struct run_buffers *b = en->run;
    const struct decoder_shape *s = decoder_shape(en->dec);
    for (uint32_t i = 0; i < n; i++) {
        b->id[i] = reqs[i]->next_id;
        for (int k = 0; k < 3; k++) b->pos[k][i] = reqs[i]->next_pos;
        reqs[i]->next_pos++;
        b->angle[i] = b->seq_start[i] = i;
    }
    b->seq_start[n] = n;
    const int32_t *const pos[3] = { b->pos[0], b->pos[1], b->pos[2] };
    TRY(decoder_angles(en->dec, pos, n, b->cos, b->sin, e));
    TRY(decoder_embed(en->dec, b->id, n, b->x, e));
    for (uint32_t l = 0; l < s->L; l++) {
        for (uint32_t i = 0; i < n; i++) {
            struct block_table *t = &reqs[i]->table[l];
            b->kv_start[i] = t->n_rows;
            block_table_append(t, en->pool, &reqs[i]->reservation, 1);
            b->view[i] = (struct kv_view){ .page = t->page, .n_rows = t->n_rows };
            b->visible[i] = t->n_rows;
        }
        const struct decoder_batch batch = { .n_seqs = n, .seq_start = b->seq_start, .view = b->view, .angle = b->angle,
                                             .cos = b->cos, .sin = b->sin, .kv = en->kv, .decode = true };
        TRY(decoder_layer(en->dec, l, &batch, b->x, b->kv_start, b->visible, e));
    }
    return next_tokens(en, reqs, n, e);
}

/* ---- the whole -------------------------------------------------------------------------------------------- */

static status encode_all(struct engine *en, struct eng_request **reqs, uint32_t n, struct err *e)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!running(reqs[i])) continue;
        if (en->interrupted) return err_set(e, E_CANCELLED, "interrupted");
        struct err why;
        TRY(settle(en, &reqs[i], 1, encode(en, reqs[i], &why), &why, e));
    }
    return OK;
}

static status run_all(struct engine *en, struct eng_request **live, uint32_t n, struct err *e)
{
    TRY(encode_all(en, live, n, e));
    for (uint32_t i = 0; i < n;) {             /* groups, first come first served */
        uint32_t rows = 0, k = 0;
        struct eng_request **group = live + i;
        for (; i + k < n && (k == 0 || rows + live[i + k]->prompt.n <= GROUP_ROWS); k++) {
            if (!running(live[i + k])) break;
            rows += live[i + k]->prompt.n;
        }
        struct err why;
        if (k > 0) TRY(settle(en, group, k, prefill_group(en, group, k, rows, &why), &why, e));
        i += k ? k : 1;
    }
    for (;;) {
        uint32_t m = 0;
        for (uint32_t i = 0; i < n; i++)
            if (running(live[i])) live[m++] = live[i];
        if ((n = m) == 0) return OK;
        if (en->interrupted) return err_set(e, E_CANCELLED, "interrupted");
        const double start = clock_s();
        TRY(buffers_grow(en, n, n, e));
        TRY(decode_step(en, live, n, e));
        const double took = clock_s() - start;
        for (uint32_t i = 0; i < n; i++) live[i]->result.decode_s += took;
    }
}

status eng_run(struct engine *en, struct eng_request **reqs, uint32_t n, struct err *e)
{
    struct eng_request **live = NULL;
    struct err why = { 0 };
    status st = mem_alloc(&live, n, sizeof *live, &why);
    for (uint32_t i = 0; i < n; i++) reqs[i]->started = clock_s();
    if (st == OK) {
        for (uint32_t i = 0; i < n; i++) live[i] = reqs[i];
        st = run_all(en, live, n, &why);
    }
    en->interrupted = 0;           /* consumed: one interrupt ends one run */
    if (en->run && en->run->rows > GROUP_ROWS) buffers_release(en, en->run);   /* a long prompt's rows are not kept */
    free(live);
    for (uint32_t i = 0; i < n; i++)
        if (running(reqs[i])) finish(en, reqs[i], st == E_CANCELLED ? ENG_CANCELLED : ENG_FAILED, &why);
    if (st == E_DEVICE) {
        if (e) *e = why;
        return st;
    }
    return OK;
}
