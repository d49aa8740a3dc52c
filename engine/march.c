/* engine/march.c - groups of requests through the layers together, score first, tokens dropping on the way.
 *
 *   march_begin      per member: the policy's start, rows entering layer 0, what an earlier prompt left of them
 *   march_some       layer by layer:  ENTER  rows of a shared prefix join where tokens first drop; choices without scores
 *                                            that come before keys; pages appended
 *                                     LAYER  nobody selects: K, V and the rest, in row ranges
 *                                     KV     K and V of all rows, in row ranges
 *                                     SCORE  one member's scores and selection at a time; where the choice comes before
 *                                            keys, those of the dropped leave the pages again
 *                                     MIX    attention and MLP of the rows that live on, in row ranges
 * A quantum is as many of these pieces as fit the work that is allowed. Row ranges, groups and shared prefixes never
 * change a bit, since no row's result depends on what is computed beside it. What a request needs was promised when it
 * was admitted, so nothing here can fail for want of pages. A member that leaves has its rows skipped from then on.
 *
 * Lists of rows are the host's; or the device's (lists.h), where there is one rank and every choice of every member is one that
 * ops->choose makes. Then nothing waits for the device before the logits are read: how many rows live the plan knows, and which
 * they were the log tells at the end. A trace, or a shared prefix that joins a group so late, makes the host look at once. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"
#include "engine/lists.h"
#include "scheduler/work.h"

#define ROWS_KEPT 16384            /* buffers of longer groups are not kept */

/* Hidden states of the first rows of some prompt, entering the first layer that drops. */
struct hidden { struct team_rows *x; uint32_t refs; };

struct member {
    struct eng_request *r;         /* NULL: it left */
    struct policy_run *policy;
    uint32_t *av;                  /* [n_av] prompt indices alive */
    uint32_t n_av;
    struct prune_selection sel;
    float *merged;                 /* device: embeddings of sel.merges' destinations, until they are in x */
    uint32_t first_drop;           /* first layer that selects; L: none */
    uint32_t n_skip;               /* rows at the front that are in shared pages and not in x */
    uint32_t *skipped;             /* [n_skip] their prompt indices */
    struct hidden *hidden;         /* of those; where they join */
    struct kv_block_digest *digest;
    uint32_t n_blocks, n_hit;      /* whole pages of rows entering layer 0; of them shared */
    uint32_t angle0;               /* its first row of cos/sin */
    bool packed;                   /* the pages of this layer hold those alone that live past it */
    bool unseen;                   /* the device has dropped tokens and not told which: av is old, and its part of index */
    struct logged { size_t at; uint32_t n; } *logged;      /* [L + 1] rows that entered a layer unseen, in the log; n 0: none */
    double start;
};

enum stage { AT_ENTER, AT_LAYER, AT_KV, AT_SCORE, AT_MIX, AT_END };

struct march {
    struct member *m;
    uint32_t n;                    /* members, those that left among them */
    enum stage stage;
    uint32_t l, cursor, n_rows, n_keep, last_rows;
    bool dropped, in_place;
    bool on_device;                /* the lists of the ops are these; index and angle are copies, of members that are not unseen */
    struct lists lists;
    uint32_t cap, cap_angles;      /* rows of the first two below, and of the third */
    struct team_rows *x, *y, *angles;             /* residual stream (two, as a gather in place would race) */
    uint32_t *seq_start, *kv_start, *out_start, *sub_start, *sub_kv;   /* [members + 1] */
    struct kv_view *view;          /* [members] */
    size_t seq_cap, kv_cap, out_cap, sub_cap, sub_kv_cap, view_cap;
    uint32_t *index, *angle;       /* [rows] prompt index, angle row */
    uint32_t *keep, *kept_angle, *visible;        /* [rows] survivors, their angle rows and what they see */
    size_t index_cap, angle_cap, keep_cap, kept_angle_cap, visible_cap;
    int32_t *id;
    size_t id_cap;
    float *score;                  /* [rows] */
    size_t score_cap;
};

static uint32_t n_layers(const struct engine *en) { return decoder_shape(en->dec)->L; }

static struct work_row cost_of(const struct engine *en)
{
    const struct decoder_shape *s = decoder_shape(en->dec);
    return work_row(&(struct work_shape){ .L = s->L, .H = s->H, .G = s->G, .D = s->D, .d = s->d, .ff = s->ff, .V = s->V });
}

/* ---- buffers ---------------------------------------------------------------------------------------------- */

static void release_rows(struct engine *en, struct march *g)
{
    team_rows_close(en->team, &g->x);
    team_rows_close(en->team, &g->y);
    team_rows_close(en->team, &g->angles);
    g->cap = g->cap_angles = 0;
}

static status open_rows(struct engine *en, struct march *g, uint32_t rows, uint32_t angles, struct err *e)
{
    TRY(team_rows_open(en->team, rows, decoder_shape(en->dec)->d, &g->x, e));
    TRY(team_rows_open(en->team, rows, decoder_shape(en->dec)->d, &g->y, e));
    TRY(team_angles_open(en->team, angles, &g->angles, e));
    g->cap = rows;
    g->cap_angles = angles;
    return OK;
}

status march_prepare(struct engine *en, uint32_t group, struct err *e)
{
    const struct lists_room lists = memory_group_lists(en, group);
    TRY(mem_alloc(&en->march[group], 1, sizeof *en->march[group], e));
    struct march *g = en->march[group];
    if (team_alone(en->team)) TRY(lists_open(&g->lists, en->st, &lists, e));
    return open_rows(en, g, memory_group_rows(en, group), memory_group_angles(en, group), e);
}

/* For n members with prompts of `angles` tokens in all, of which `alive` may enter layer 0. */
static status grow(struct engine *en, struct march *g, uint32_t angles, uint32_t alive, uint32_t n, struct err *e)
{
    const uint32_t rows = angles;
    TRY(mem_grow(&g->seq_start, &g->seq_cap, n + 1, sizeof(uint32_t), e));
    TRY(mem_grow(&g->kv_start, &g->kv_cap, n + 1, sizeof(uint32_t), e));
    TRY(mem_grow(&g->out_start, &g->out_cap, n + 1, sizeof(uint32_t), e));
    TRY(mem_grow(&g->sub_start, &g->sub_cap, n + 1, sizeof(uint32_t), e));
    TRY(mem_grow(&g->sub_kv, &g->sub_kv_cap, n + 1, sizeof(uint32_t), e));
    TRY(mem_grow(&g->view, &g->view_cap, n, sizeof *g->view, e));
    TRY(mem_grow(&g->index, &g->index_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&g->angle, &g->angle_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&g->keep, &g->keep_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&g->kept_angle, &g->kept_angle_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&g->visible, &g->visible_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&g->id, &g->id_cap, rows, sizeof(int32_t), e));
    TRY(mem_grow(&g->score, &g->score_cap, rows, sizeof(float), e));
    if (en->ops->reserve) {
        if (alive <= g->cap && angles <= g->cap_angles) return OK;
        return err_set(e, E_INTERNAL, "a group of %u rows and %u angles: %u and %u were planned", alive, angles, g->cap, g->cap_angles);
    }
    if (rows <= g->cap) return OK;
    release_rows(en, g);
    return open_rows(en, g, rows, rows, e);
}

static void hidden_unref(struct engine *en, struct hidden *h)
{
    if (h == NULL || --h->refs > 0) return;
    team_rows_close(en->team, &h->x);
    free(h);
}

/* The cache lets go of hidden states. */
void march_free_hidden(void *self, void *hidden) { hidden_unref(self, hidden); }

/* What a member needs to march; its pages stay the request's. */
static void end_member(struct engine *en, struct member *m)
{
    prune_end(&m->policy);
    prune_selection_free(&m->sel);
    en->ops->release(en->st, m->merged);
    free(m->av);
    free(m->skipped);
    free(m->digest);
    free(m->logged);
    hidden_unref(en, m->hidden);
    if (m->r) m->r->group_member = NULL;
    *m = (struct member){ 0 };
}

static void end_group(struct engine *en, struct march *g)
{
    for (uint32_t s = 0; s < g->n; s++) end_member(en, &g->m[s]);
    free(g->m);
    g->m = NULL;
    g->n = 0;
    if (g->cap <= ROWS_KEPT || en->ops->reserve) return;
    release_rows(en, g);
    lists_close(&g->lists);
}

void march_free(struct engine *en, uint32_t group)
{
    struct march *g = en->march[group];
    if (g == NULL) return;
    end_group(en, g);
    release_rows(en, g);
    lists_close(&g->lists);
    void *host[] = { g->seq_start, g->kv_start, g->out_start, g->sub_start, g->sub_kv, g->view, g->index, g->angle,
                     g->keep, g->kept_angle, g->visible, g->id, g->score };
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    free(g);
    en->march[group] = NULL;
}

void march_leave(struct engine *en, struct eng_request *r)
{
    if (r->group_member) end_member(en, r->group_member);
}

/* ---- the start of a member -------------------------------------------------------------------------------- */

static bool is_av(const struct member *m, uint32_t index) { return m->r->prompt.kind[index] != TOKEN_TEXT; }

/* Replace the member's AV tokens by those that the selection keeps. */
static void apply_keep(struct member *m)
{
    memcpy(m->av, m->sel.keep, m->sel.n_keep * sizeof(uint32_t));
    m->n_av = m->sel.n_keep;
}

/* From layer `from` on no more than n_av media tokens live: what was promised for more goes back now. */
static void tighten(struct engine *en, struct eng_request *r, uint32_t from, uint32_t n_av)
{
    sched_tighten(en->sched, &r->sched, r->bound, from, n_av + r->n_text);
}

/* Prompt indices of the rows alive: text and media that are left. Returns how many. */
static uint32_t list_rows(const struct member *m, uint32_t *out)
{
    const struct prompt *p = &m->r->prompt;
    uint32_t n = 0;
    for (uint32_t i = 0, a = 0; i < p->n; i++) {
        if (is_av(m, i)) {
            if (a == m->n_av || m->av[a] != i) continue;
            a++;
        }
        out[n++] = i;
    }
    return n;
}

/* Is everything in the prompt known by content? */
static bool shareable(const struct engine *en, const struct eng_request *r)
{
    if (en->prefixes == NULL || r->given_audio || r->given_vision || r->plan.trim) return false;   /* trim moves rows in place */
    for (uint32_t i = 0; i < r->n_parts; i++)
        if (r->part[i].identity[0] == 0) return false;
    return r->prompt.n_av == 0 || r->n_parts > 0;
}

static unsigned nibble(char c) { return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'a' + 10); }

/* What row i is made of beside its own embedding, where it takes in others; *at walks over the merges. */
static void digest_merge(const struct member *m, struct media_digest *d, uint32_t i, uint32_t *at)
{
    const struct prune_merges *g = &m->sel.merges;
    const struct prompt *p = &m->r->prompt;
    while (*at < g->n && g->dst[*at] < i) ++*at;
    if (*at == g->n || g->dst[*at] != i) return;
    media_digest_add(d, &g->c0[*at], sizeof *g->c0);
    uint32_t item = p->item[i];
    for (uint32_t k = g->start[*at]; k < g->start[*at + 1]; k++) {
        const uint32_t j = g->src[k];
        const struct { uint32_t row; float w; } from = { p->row[j], g->w[k] };
        media_digest_add(d, &from, sizeof from);
        if (p->item[j] == item) continue;
        item = p->item[j];
        media_digest_add(d, m->r->part[item].identity, sizeof m->r->part[item].identity);
    }
}

/* One chained digest for each page of rows: what K and V of its last row depend on. */
static status digest_rows(const struct engine *en, struct member *m, const uint32_t *row, uint32_t n, struct err *e)
{
    const struct prompt *p = &m->r->prompt;
    const uint32_t per = en->info.page_tokens;
    m->n_blocks = n / per;
    TRY(mem_alloc(&m->digest, m->n_blocks, sizeof *m->digest, e));
    char chain[MEDIA_DIGEST_TEXT] = { 0 };
    snprintf(chain, sizeof chain, "%s", m->r->salt);
    uint32_t merge = 0;
    for (uint32_t b = 0; b < m->n_blocks; b++) {
        struct media_digest *d;
        TRY(media_digest_begin(&d, e));
        media_digest_add(d, chain, sizeof chain);
        uint32_t item = UINT32_MAX;
        for (uint32_t k = 0; k < per; k++) {
            const uint32_t i = row[b * per + k];
            const int32_t v[6] = { p->id[i], p->pos[0][i], p->pos[1][i], p->pos[2][i], p->kind[i], (int32_t)p->row[i] };
            media_digest_add(d, v, sizeof v);
            if (p->kind[i] == TOKEN_TEXT) continue;
            digest_merge(m, d, i, &merge);
            if (p->item[i] == item) continue;
            item = p->item[i];     /* rows count over all items: the first row of this one says where it begins */
            const struct prompt_item *it = &p->items[item];
            const uint32_t start[2] = { it->audio_row, it->vision_row };
            media_digest_add(d, start, sizeof start);
            media_digest_add(d, m->r->part[item].identity, sizeof m->r->part[item].identity);
        }
        memset(chain, 0, sizeof chain);
        media_digest_end(&d, chain);
        for (size_t k = 0; k < sizeof m->digest[b].byte; k++)
            m->digest[b].byte[k] = (uint8_t)(16 * nibble(chain[2 * k]) + nibble(chain[2 * k + 1]));
    }
    return OK;
}

/* Pages that an earlier prompt left become the member's. */
static void take_prefix(struct engine *en, struct member *m, const uint32_t *row, uint32_t n)
{
    struct eng_request *r = m->r;
    const uint32_t per = en->info.page_tokens, most = (n - 1) / per;   /* one row at least is computed */
    en->prefix_queries++;
    const struct kv_prefix_hit hit = kv_prefix_find(en->prefixes, m->digest, most < m->n_blocks ? most : m->n_blocks,
                                                    m->first_drop);
    if (hit.n_blocks == 0 || (m->first_drop < n_layers(en) && hit.hidden == NULL)) return;
    struct err none;
    if (mem_alloc(&m->skipped, (size_t)hit.n_blocks * per, sizeof *m->skipped, &none) != OK) return;
    en->prefix_hits++;
    m->n_hit = hit.n_blocks;
    m->n_skip = hit.n_blocks * per;
    memcpy(m->skipped, row, m->n_skip * sizeof *row);
    for (uint32_t l = 0; l < m->first_drop; l++)
        block_table_share(&r->choice[0].table[l], en->pool, kv_prefix_pages(&hit, l), hit.n_blocks);
    sched_forfeit(en->sched, &r->sched, hit.n_blocks * m->first_drop, false);
    if (m->first_drop < n_layers(en)) {
        m->hidden = hit.hidden;
        m->hidden->refs++;
    }
    r->cached_layers = m->first_drop;
    r->n_cached_early = m->n_skip;
    r->n_cached = m->first_drop == n_layers(en) ? m->n_skip : 0;
}

static status make_tables(struct engine *en, struct eng_request *r, struct err *e)
{
    TRY(mem_alloc(&r->choice[0].table, n_layers(en), sizeof *r->choice[0].table, e));
    for (uint32_t l = 0; l < n_layers(en); l++)
        TRY(block_table_init(&r->choice[0].table[l], en->pool, r->bound[l] + r->n_new_max, e));
    return OK;
}

/* Results of an earlier march, before a preemption. */
static void forget_march(struct engine *en, struct eng_request *r)
{
    for (uint32_t l = 0; l <= n_layers(en); l++) {
        free(r->survivors[l]);
        r->survivors[l] = NULL;
        memset(r->alive[l], 0, sizeof r->alive[l]);
    }
    memset(r->n_av, 0, sizeof r->n_av);
    r->n_why = 0;
}

/* Why the tokens that m's selection drops go, where that is asked for. */
static status note_why(struct member *m, int32_t layer, struct err *e)
{
    struct eng_request *r = m->r;
    const struct prune_selection *sel = &m->sel;
    if (!sel->want_why || sel->n_why == 0) return OK;
    TRY(mem_grow(&r->why, &r->why_cap, r->n_why + sel->n_why, sizeof *r->why, e));
    for (uint32_t i = 0; i < sel->n_why; i++) r->why[r->n_why++] = (struct eng_why){ layer, sel->why[i] };
    return OK;
}

/* Embeddings that become sums of others, into m->merged: a run of those of one tower at a time. The towers' own stay as they
 * are, for a march after a preemption. */
static status merge_embeds(struct engine *en, struct member *m, struct err *e)
{
    const struct prune_merges *g = &m->sel.merges;
    const struct prompt *p = &m->r->prompt;
    const uint32_t d = decoder_shape(en->dec)->d;
    if (g->n == 0) return OK;
    uint32_t *row, n_src = g->start[g->n];
    TRY(en->ops->alloc(en->st, (size_t)g->n * d * sizeof(float), (void **)&m->merged, e));
    TRY(mem_alloc(&row, (size_t)g->n + n_src, sizeof *row, e));
    for (uint32_t i = 0; i < g->n; i++) row[i] = p->row[g->dst[i]];
    for (uint32_t i = 0; i < n_src; i++) row[g->n + i] = p->row[g->src[i]];
    status st = OK;
    for (uint32_t i = 0, end; i < g->n && st == OK; i = end) {
        const bool audio = p->kind[g->dst[i]] == TOKEN_AUDIO;
        for (end = i + 1; end < g->n && (p->kind[g->dst[end]] == TOKEN_AUDIO) == audio;) end++;
        st = en->ops->merge(en->st, &(struct merge_args){
            .x = audio ? m->r->audio_embeds : m->r->vision_embeds, .d = d, .n = end - i, .dst = row + i, .c0 = g->c0 + i,
            .start = g->start + i, .src = row + g->n, .w = g->w, .y = m->merged + (size_t)i * d }, e);
    }
    free(row);
    return st;
}

/* Word embeddings of the user's own text, for policies that ask for them; *out NULL: there is none. */
static status embed_text(struct engine *en, const struct eng_request *r, struct team_rows **out, struct err *e)
{
    const struct prompt *p = &r->prompt;
    int32_t *id;
    *out = NULL;
    if (!(r->plan.needs & PRUNE_NEEDS_TEXT_EMBEDDINGS) || p->n_user_text == 0) return OK;
    TRY(mem_alloc(&id, p->n_user_text, sizeof *id, e));
    for (uint32_t i = 0; i < p->n_user_text; i++) id[i] = p->id[p->user_text[i]];
    status st = team_rows_open(en->team, p->n_user_text, decoder_shape(en->dec)->d, out, e);
    if (st == OK) st = team_embed(en->team, id, p->n_user_text, *out, e);
    free(id);
    return st;
}

/* The choice before layer 0. */
static status choose_entry(struct engine *en, struct member *m, struct err *e)
{
    struct eng_request *r = m->r;
    struct team_rows *text;
    status st = embed_text(en, r, &text, e);
    const struct prune_embed_view view = {
        .st = en->st, .audio = r->audio_embeds, .vision = r->vision_embeds, .d = decoder_shape(en->dec)->d,
        .audio_saliency = r->audio_saliency, .vision_saliency = r->vision_saliency,
        .n_blocks = r->vision_blocks ? vision_tower_blocks(en->vision) : 0, .vision_blocks = r->vision_blocks,
        .d_key = r->vision_keys ? vision_tower_hidden(en->vision) : 0, .vision_keys = r->vision_keys,
        .n_text = text ? r->prompt.n_user_text : 0, .text = text ? text->x : NULL,
        .n_tensors = en->selector.n_tensors, .tensor = en->selector.tensor };
    m->sel.want_why = r->o.want_why;
    if (st == OK) st = prune_embed(m->policy, &view, &m->sel, e);
    if (st == OK) st = note_why(m, ENG_BEFORE_LAYERS, e);
    team_rows_close(en->team, &text);
    return st == OK ? merge_embeds(en, m, e) : st;
}

/* The policy's own start, its choice on the embeddings, pages. scratch: [prompt.n]. *n_rows: rows entering layer 0. */
static status begin(struct engine *en, struct member *m, uint32_t *scratch, uint32_t *n_rows, struct err *e)
{
    struct eng_request *r = m->r;
    const struct prompt *p = &r->prompt;
    const double start = clock_s();
    forget_march(en, r);
    TRY(mem_alloc(&m->av, p->n_av, sizeof(uint32_t), e));
    memcpy(m->av, p->av, p->n_av * sizeof(uint32_t));
    m->n_av = p->n_av;
    m->start = start;
    for (uint32_t i = 0; i < p->n; i++) r->n_av[p->kind[i]]++;
    TRY(prune_begin(&r->policy, &r->plan, p, &m->policy, e));
    TRY(choose_entry(en, m, e));
    r->select_s = clock_s() - start;
    apply_keep(m);
    tighten(en, r, 0, m->n_av);
    while (m->first_drop < n_layers(en) && !prune_selects_at(m->policy, m->first_drop)) m->first_drop++;
    TRY(make_tables(en, r, e));
    *n_rows = list_rows(m, scratch);
    r->cached_layers = r->n_cached_early = r->n_cached = 0;
    if (!shareable(en, r)) return OK;
    TRY(digest_rows(en, m, scratch, *n_rows, e));
    take_prefix(en, m, scratch, *n_rows);
    return OK;
}

/* ---- rows of layer 0 -------------------------------------------------------------------------------------- */

/* What took in others, over what came from its tower. */
static status fill_merged(struct engine *en, struct march *g, uint32_t s, struct err *e)
{
    struct member *m = &g->m[s];
    const struct prune_merges *of = &m->sel.merges;
    uint32_t n = 0, at = 0;
    if (m->merged == NULL) return OK;
    for (uint32_t i = g->seq_start[s]; i < g->seq_start[s + 1]; i++) {
        while (at < of->n && of->dst[at] < g->index[i]) at++;
        if (at == of->n || of->dst[at] != g->index[i]) continue;
        g->keep[n] = at;
        g->visible[n++] = i;
    }
    if (n) TRY(team_put(en->team, m->merged, g->keep, g->visible, n, g->x, g->y, e));
    en->ops->release(en->st, m->merged);
    m->merged = NULL;
    return OK;
}

/* Media rows over their placeholders. */
static status fill_media(struct engine *en, struct march *g, uint32_t s, struct err *e)
{
    const struct prompt *p = &g->m[s].r->prompt;
    for (int audio = 0; audio < 2; audio++) {          /* two towers: two sources */
        uint32_t k = 0;
        for (uint32_t i = g->seq_start[s]; i < g->seq_start[s + 1]; i++) {
            const uint32_t j = g->index[i];
            if (p->kind[j] == TOKEN_TEXT || (p->kind[j] == TOKEN_AUDIO) != audio) continue;
            g->keep[k] = p->row[j];
            g->visible[k++] = i;
        }
        if (k == 0) continue;
        const float *from = audio ? g->m[s].r->audio_embeds : g->m[s].r->vision_embeds;
        TRY(team_put(en->team, from, g->keep, g->visible, k, g->x, g->y, e));
    }
    return fill_merged(en, g, s, e);
}

/* Word embeddings of all rows that are not in shared pages, then the media's. *n_ids: rows of angles. */
static status fill_rows(struct engine *en, struct march *g, uint32_t *n_ids, struct err *e)
{
    uint32_t n = 0, angles = 0;
    for (uint32_t s = 0; s < g->n; s++) {
        struct member *m = &g->m[s];
        g->seq_start[s] = n;
        if (m->r == NULL) continue;
        const struct prompt *p = &m->r->prompt;
        const int32_t *const pos[3] = { p->pos[0], p->pos[1], p->pos[2] };
        TRY(team_angles(en->team, pos, p->n, g->angles, angles, e));
        m->angle0 = angles;
        angles += p->n;
        const uint32_t rows = list_rows(m, g->keep) - m->n_skip;
        for (uint32_t k = 0; k < rows; k++) {
            const uint32_t i = g->keep[m->n_skip + k];
            g->index[n] = i;
            g->angle[n] = m->angle0 + i;
            g->id[n++] = p->id[i];
        }
    }
    g->seq_start[g->n] = n;
    g->n_rows = n;
    *n_ids = angles;
    TRY(team_embed(en->team, g->id, n, g->x, e));
    for (uint32_t s = 0; s < g->n; s++)
        if (g->m[s].r) TRY(fill_media(en, g, s, e));
    return OK;
}

/* ---- lists of the device ---------------------------------------------------------------------------------- */

/* Can the device make all choices of m? scratch: [prompt.n]. */
static bool picks_alone(const struct engine *en, const struct member *m, uint32_t *scratch)
{
    const struct eng_request *r = m->r;
    const uint32_t L = n_layers(en), n_ask = prompt_query(&r->prompt, r->plan.query, scratch);
    bool scores = false;
    if (r->o.want_why || is_av(m, r->prompt.n - 1) || prune_selects_at(m->policy, L - 1)) return false;
    for (uint32_t l = 0; l < L; l++) {
        struct prune_pick pick;
        if (!prune_selects_at(m->policy, l)) continue;
        if (!prune_layer_pick(m->policy, l, &pick)) return false;
        scores = true;
    }
    for (uint32_t i = 0; i < n_ask && scores; i++)
        if (is_av(m, scratch[i])) return false;
    return !scores || n_ask > 0;
}

/* What the rows of member m are, by id. */
static void mark_rows(const struct member *m, uint32_t *scratch, uint8_t *mark, int32_t *chunk)
{
    const struct prompt *p = &m->r->prompt;
    const uint32_t n_ask = prompt_query(p, m->r->plan.query, scratch);
    for (uint32_t i = 0; i < p->n; i++) mark[m->angle0 + i] = is_av(m, i) ? LIST_MEDIA : 0;
    for (uint32_t i = 0; i < n_ask; i++) mark[m->angle0 + scratch[i]] |= LIST_ASKS;
    memcpy(chunk + m->angle0, p->chunk, p->n * sizeof *chunk);
}

/* Rows that the lists of the group hold at most. The log takes the batch as it begins, again where prefixes join, after each layer
 * that drops and after the last; and one under way. */
static struct lists_room lists_need(const struct engine *en, const struct march *g, uint32_t n_ids)
{
    struct lists_room n = { .ids = n_ids };
    uint32_t times = 2;
    for (uint32_t s = 0; s < g->n; s++) {
        const struct member *m = &g->m[s];
        if (m->r == NULL) continue;
        const uint32_t n_ask = prompt_query(&m->r->prompt, m->r->plan.query, NULL);
        n.rows += m->n_av + m->r->n_text;
        n.asks = n_ask > n.asks ? n_ask : n.asks;
        times += m->hidden != NULL;
    }
    n.log = (size_t)times * n.rows + g->n;
    for (uint32_t l = 0; l < n_layers(en); l++) {
        bool drops = false;
        for (uint32_t s = 0; s < g->n; s++) drops = drops || (g->m[s].r && prune_selects_at(g->m[s].policy, l));
        for (uint32_t s = 0; s < g->n && drops; s++)
            if (g->m[s].r) n.log += g->m[s].r->plan.alive[l + 1] + g->m[s].r->n_text;
    }
    return n;
}

/* Where that can be, the lists become the device's. */
static status open_lists(struct engine *en, struct march *g, uint32_t n_ids, struct err *e)
{
    uint8_t *mark;
    int32_t *chunk = NULL;
    g->on_device = team_alone(en->team) && !en->textbook_order;
    for (uint32_t s = 0; s < g->n; s++) g->on_device = g->on_device && (g->m[s].r == NULL || picks_alone(en, &g->m[s], g->keep));
    if (!g->on_device) return OK;
    const struct lists_room room = lists_need(en, g, n_ids);
    TRY(lists_open(&g->lists, en->st, &room, e));
    TRY(mem_alloc(&mark, n_ids, sizeof *mark, e));
    status st = mem_alloc(&chunk, n_ids, sizeof *chunk, e);
    for (uint32_t s = 0; s < g->n && st == OK; s++) {
        if (g->m[s].r == NULL) continue;
        mark_rows(&g->m[s], g->keep, mark, chunk);
        st = mem_alloc(&g->m[s].logged, (size_t)n_layers(en) + 1, sizeof *g->m[s].logged, e);
    }
    if (st == OK) st = lists_tables(&g->lists, mark, chunk, n_ids, e);
    if (st == OK) st = lists_send(&g->lists, g->angle, g->n_rows, e);
    free(chunk);
    free(mark);
    return st;
}

static status begin_all(struct engine *en, struct march *g, struct eng_request *const *reqs, uint32_t n, march_fail fail, void *self,
                        struct err *e)
{
    uint32_t rows = 0, alive = 0;
    for (uint32_t i = 0; i < n; i++) {
        rows += reqs[i]->prompt.n;
        alive += reqs[i]->sched.n_rows;
    }
    TRY(grow(en, g, rows, alive, n, e));
    TRY(mem_alloc(&g->m, n, sizeof *g->m, e));
    g->n = n;
    for (uint32_t s = 0; s < n; s++) {
        struct err why;
        struct member *m = &g->m[s];
        uint32_t n_rows;
        m->r = reqs[s];
        m->r->group_member = m;
        status st = memory_enter(en, m->r, &why);
        if (st == OK) st = begin(en, m, g->keep, &n_rows, &why);
        memory_leave(en);
        if (st == OK) continue;
        if (st == E_DEVICE) {
            *e = why;
            return st;
        }
        fail(self, m->r, &why);    /* it leaves the group */
    }
    g->stage = AT_ENTER;
    g->l = g->cursor = 0;
    uint32_t n_ids;
    TRY(fill_rows(en, g, &n_ids, e));
    return open_lists(en, g, n_ids, e);
}

status march_begin(struct engine *en, uint32_t group, struct eng_request *const *reqs, uint32_t n, march_fail fail,
                   void *self, struct err *e)
{
    if (en->march[group] == NULL) TRY(mem_alloc(&en->march[group], 1, sizeof *en->march[group], e));
    struct march *g = en->march[group];
    const status st = begin_all(en, g, reqs, n, fail, self, e);
    if (st != OK) end_group(en, g);
    return st;
}

/* ---- rows of a layer ---------------------------------------------------------------------------------------- */

/* Note the AV tokens whose K and V layer l stores; l = L: who is left. */
static status note_av(struct member *m, uint32_t l, struct err *e)
{
    struct eng_request *r = m->r;
    uint32_t *count = r->alive[l];
    memset(count, 0, sizeof r->alive[l]);
    free(r->survivors[l]);
    r->survivors[l] = NULL;
    count[TOKEN_TEXT] = r->n_text;
    for (uint32_t i = 0; i < m->n_av; i++) count[r->prompt.kind[m->av[i]]]++;
    TRY(mem_alloc(&r->survivors[l], m->n_av, sizeof(uint32_t), e));
    memcpy(r->survivors[l], m->av, m->n_av * sizeof(uint32_t));
    return OK;
}

/* Those of member s that enter layer l, or where in the log they stand. */
static status note_alive(struct march *g, uint32_t s, uint32_t l, struct err *e)
{
    struct member *m = &g->m[s];
    if (!m->unseen) return note_av(m, l, e);
    m->logged[l] = (struct logged){ g->lists.at + g->seq_start[s], g->seq_start[s + 1] - g->seq_start[s] };
    return OK;
}

/* AV tokens among the ids of n rows become those of m. */
static void take_ids(struct member *m, const uint32_t *id, uint32_t n)
{
    m->n_av = 0;
    for (uint32_t i = 0; i < n; i++)
        if (is_av(m, id[i] - m->angle0)) m->av[m->n_av++] = id[i] - m->angle0;
}

/* The log has come: what the host has missed of m. */
static status recall(const struct engine *en, const struct march *g, struct member *m, struct err *e)
{
    for (uint32_t l = 0; l <= n_layers(en) && m->unseen; l++) {
        if (m->logged[l].n == 0) continue;
        take_ids(m, g->lists.host + m->logged[l].at, m->logged[l].n);
        m->logged[l].n = 0;
        TRY(note_av(m, l, e));
    }
    m->unseen = false;
    return OK;
}

/* The host's copy of index and angle for member s, who is not unseen. */
static void copy_lists(struct march *g, uint32_t s)
{
    const struct member *m = &g->m[s];
    const uint32_t n = list_rows(m, g->keep) - m->n_skip;
    for (uint32_t i = 0, to = g->seq_start[s]; i < n; i++, to++) {
        g->index[to] = g->keep[m->n_skip + i];
        g->angle[to] = m->angle0 + g->index[to];
    }
}

static bool someone_unseen(const struct march *g)
{
    for (uint32_t s = 0; s < g->n; s++)
        if (g->m[s].r && g->m[s].unseen) return true;
    return false;
}

/* Wait for the device, and know everything. */
static status look(struct engine *en, struct march *g, struct err *e)
{
    if (!someone_unseen(g)) return OK;
    TRY(lists_fetch(&g->lists, e));
    TRY(en->ops->sync(en->st, e));
    for (uint32_t s = 0; s < g->n; s++) {
        if (g->m[s].r == NULL || !g->m[s].unseen) continue;
        TRY(note_alive(g, s, g->l, e));
        TRY(recall(en, g, &g->m[s], e));
        copy_lists(g, s);
    }
    return OK;
}

static status trace_rows(struct engine *en, const struct member *m, uint32_t l, uint32_t row0, uint32_t n,
                         const struct team_rows *x, const uint32_t *index, struct err *e)
{
    const struct eng_trace *t = m->r->o.trace;
    if (t == NULL || t->hidden == NULL) return OK;
    const uint32_t d = decoder_shape(en->dec)->d;
    float *rows;
    TRY(mem_alloc(&rows, (size_t)n * d, sizeof(float), e));
    const status st = team_read(en->team, x, row0, n, rows, e);
    if (st == OK) t->hidden(t->self, l, rows, index, n, d);
    free(rows);
    return st;
}

static void swap_rows(struct march *g)
{
    struct team_rows *t = g->x;
    g->x = g->y;
    g->y = t;
}

/* y rows [to, to + n) = from rows [first, first + n). */
static status copy_rows(struct engine *en, struct march *g, const struct team_rows *from, uint32_t first, uint32_t n,
                        uint32_t to, struct err *e)
{
    if (n == 0) return OK;
    for (uint32_t i = 0; i < n; i++) g->keep[i] = first + i;
    return team_gather(en->team, from, g->keep, n, g->y, to, e);
}

/* The batch anew: rows of shared prefixes join where their member first drops tokens, in front of the member's own, and
 * rows of members that left go. */
static status lay_out(struct engine *en, struct march *g, struct err *e)
{
    uint32_t joining = 0, going = 0, *index, *angle = NULL, n = 0;
    for (uint32_t s = 0; s < g->n; s++) {
        if (g->m[s].r == NULL) going += g->seq_start[s + 1] - g->seq_start[s];
        else if (g->m[s].first_drop == g->l) joining += g->m[s].n_skip;
    }
    if (joining + (g->on_device ? 0 : going) == 0) return OK;  /* on the device the next layer that drops takes no rows of theirs */
    TRY(look(en, g, e));
    TRY(mem_alloc(&index, g->n_rows + joining, sizeof *index, e));
    status st = mem_alloc(&angle, g->n_rows + joining, sizeof *angle, e);
    for (uint32_t s = 0; s < g->n && st == OK; s++) {
        struct member *m = &g->m[s];
        const uint32_t r0 = g->seq_start[s], rows = m->r ? g->seq_start[s + 1] - r0 : 0, to = n;
        if (m->r && m->first_drop == g->l && m->n_skip) {
            st = copy_rows(en, g, m->hidden->x, 0, m->n_skip, n, e);
            for (uint32_t i = 0; i < m->n_skip; i++, n++) {
                index[n] = m->skipped[i];
                angle[n] = m->angle0 + m->skipped[i];
            }
            m->n_skip = 0;
            hidden_unref(en, m->hidden);
            m->hidden = NULL;
        }
        if (st == OK) st = copy_rows(en, g, g->x, r0, rows, n, e);
        memcpy(index + n, g->index + r0, rows * sizeof *index);
        memcpy(angle + n, g->angle + r0, rows * sizeof *angle);
        n += rows;
        g->seq_start[s] = to;
    }
    if (st == OK) {
        g->seq_start[g->n] = g->n_rows = n;
        memcpy(g->index, index, n * sizeof *index);
        memcpy(g->angle, angle, n * sizeof *angle);
        swap_rows(g);
        if (g->on_device) st = lists_send(&g->lists, g->angle, n, e);
    }
    free(index);
    free(angle);
    return st;
}

/* Rows up to the last media token, in whole pages: what another question about the media would begin with. */
static uint32_t blocks_worth_keeping(const struct engine *en, const struct member *m, const uint32_t *index, uint32_t rows)
{
    const uint32_t per = en->info.page_tokens;
    if (m->first_drop == n_layers(en) || m->n_av == 0) return m->n_blocks;
    uint32_t end = 0;
    while (end < rows && index[end] <= m->av[m->n_av - 1]) end++;
    return end / per < m->n_blocks ? end / per : m->n_blocks;
}

/* Keep what the next question about the same media can begin with: pages of the layers before the first drop, hidden
 * states entering it. A cache has no errors: what finds no room is not kept. */
static void keep_prefix(struct engine *en, struct march *g, uint32_t s)
{
    struct member *m = &g->m[s];
    const uint32_t d = decoder_shape(en->dec)->d, r0 = g->seq_start[s], rows = g->seq_start[s + 1] - r0;
    struct err none;
    if (m->digest == NULL || m->first_drop == 0) return;
    const uint32_t blocks = blocks_worth_keeping(en, m, g->index + r0, rows), n = blocks * en->info.page_tokens;
    if (blocks <= m->n_hit) return;
    struct hidden *h = NULL;
    if (m->first_drop < n_layers(en)) {
        if (mem_alloc(&h, 1, sizeof *h, &none) != OK) return;
        h->refs = 1;
        for (uint32_t i = 0; i < n; i++) g->keep[i] = r0 + i;
        memory_outside(en);
        const status opened = team_rows_open(en->team, n, d, &h->x, &none);
        memory_leave(en);
        if (opened != OK ||
            team_gather(en->team, g->x, g->keep, n, h->x, 0, &none) != OK) {
            hidden_unref(en, h);
            return;
        }
    }
    kv_prefix_insert(en->prefixes, m->digest, blocks, m->first_drop, m->r->choice[0].table, h,
                     h ? (uint64_t)n * d * sizeof(float) : 0, &none);
}

/* Rows that live on, into keep, visible and out_start: text and survivors; with `last` the last row of each member alone. */
static void list_alive(struct march *g, bool last)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < g->n; s++) {
        const struct member *m = &g->m[s];
        const uint32_t r0 = g->seq_start[s], r1 = g->seq_start[s + 1];
        g->out_start[s] = n;
        if (m->r == NULL) continue;
        /* AV tokens of the rows that are here; those in shared pages come before them. */
        uint32_t a = 0, kept = m->n_skip;
        while (a < m->n_av && r0 < r1 && m->av[a] < g->index[r0]) a++;
        for (uint32_t i = r0; i < r1; i++) {
            if (is_av(m, g->index[i])) {
                if (a == m->n_av || m->av[a] != g->index[i]) continue;
                a++;
            }
            kept++;
            if (last && i + 1 < r1) continue;
            g->keep[n] = i;
            g->kept_angle[n] = g->angle[i];
            g->visible[n++] = m->packed ? kept : m->n_skip + i - r0 + 1;
        }
    }
    g->out_start[g->n] = g->n_keep = n;
}

/* Those that live past this layer: after the last one no more than the last row is asked for. On the device each member's were
 * listed when it was its turn. */
static void list_survivors(struct engine *en, struct march *g)
{
    if (g->on_device) g->out_start[g->n] = g->n_keep;
    else list_alive(g, g->l + 1 == n_layers(en));
}

/* What the rows of the batch see where all of them live on, in place. */
static status list_all(struct march *g, struct err *e)
{
    for (uint32_t s = 0; s < g->n; s++) {
        const uint32_t r0 = g->seq_start[s], n = g->seq_start[s + 1] - r0, skip = g->m[s].n_skip;
        if (g->m[s].r == NULL) continue;
        if (g->on_device) TRY(lists_keep(&g->lists, r0, n, skip, r0, e));
        for (uint32_t i = 0; i < n && !g->on_device; i++) g->visible[r0 + i] = skip + i + 1;
    }
    return OK;
}

/* Rows of member s, which chooses nothing at this layer, that live past it. */
static status list_member(const struct engine *en, struct march *g, uint32_t s, struct err *e)
{
    const struct member *m = &g->m[s];
    const uint32_t r0 = g->seq_start[s], n = g->seq_start[s + 1] - r0, from = g->l + 1 == n_layers(en) ? n - 1 : 0;
    TRY(lists_keep(&g->lists, r0 + from, n - from, m->n_skip + from, g->n_keep, e));
    g->n_keep += n - from;
    return OK;
}

/* ---- choices ---------------------------------------------------------------------------------------------------- */

/* Does the policy choose at layer l before anything of the layer is computed? */
static bool chooses_before(const struct member *m, uint32_t l)
{
    return m->r->plan.go && prune_selects_at(m->policy, l) && !m->r->plan.scored[l];
}

/* ... when its K are there? */
static bool chooses_after(const struct member *m, uint32_t l) { return prune_selects_at(m->policy, l) && !chooses_before(m, l); }

/* Where nobody is scored. */
static void trace_alive(const struct member *m, uint32_t l)
{
    const struct eng_trace *t = m->r->o.trace;
    if (t && t->alive) t->alive(t->self, l, m->av, m->n_av, NULL);
}

/* n sequences from `first` on; at: the first row of x. */
static struct team_batch batch_of(const struct march *g, uint32_t n, const uint32_t *start, uint32_t first, uint32_t at)
{
    return (struct team_batch){ .b = { .n_seqs = n, .seq_start = start, .view = g->view + first, .on_device = g->on_device,
                                       .angle = g->on_device ? lists_angles(&g->lists, at) : g->angle + at },
                                .angles = g->angles, .x = g->x, .at = at };
}

/* The batch of member s alone. */
static struct team_batch batch_of_one(struct march *g, uint32_t s)
{
    g->sub_start[0] = g->sub_kv[0] = 0;
    g->sub_start[1] = g->seq_start[s + 1] - g->seq_start[s];
    return batch_of(g, 1, g->sub_start, s, g->seq_start[s]);
}

/* K and V of all of member s, by the weights of layer `by`, into the pages of the layer that the group is in. */
static status write_keys(struct engine *en, struct march *g, uint32_t s, uint32_t by, struct err *e)
{
    const struct team_batch b = batch_of_one(g, s);
    return team_kv(en->team, by, &b, g->sub_kv, e);
}

/* Scores of member s at this layer, of its AV rows to the front of g->score. Those by the weights of an earlier layer have keys
 * of their own, in the pages until the scores are there. */
static status score_member(struct engine *en, struct march *g, uint32_t s, double *work, struct err *e)
{
    struct member *m = &g->m[s];
    const uint32_t r0 = g->seq_start[s], n = g->seq_start[s + 1] - r0;
    const struct team_batch b = batch_of(g, g->n, g->seq_start, 0, 0);
    const uint32_t by = g->l - m->r->plan.back;
    uint32_t *query = (uint32_t *)g->id;       /* ids were for layer 0 */
    const uint32_t n_query = prompt_query(&m->r->prompt, m->r->plan.query, query);
    uint32_t n_q = 0, k = 0;
    for (uint32_t i = r0, q = 0; i < r0 + n && q < n_query; i++)
        if (g->index[i] == query[q]) {
            g->keep[n_q] = i;
            g->kept_angle[n_q] = g->angle[i];
            g->visible[n_q++] = i - r0 + 1;
            q++;
        }
    const struct decoder_rows ask = { .n = n_q, .row = g->keep, .angle = g->kept_angle, .visible = g->visible };
    if (n_q == 0) return err_set(e, E_INTERNAL, "layer %u: no query row is left", g->l);
    if (by != g->l) TRY(write_keys(en, g, s, by, e));
    TRY(team_scores(en->team, by, &b, s, &ask, g->score, e));
    if (by != g->l) TRY(write_keys(en, g, s, g->l, e));
    for (uint32_t i = 0; i < n; i++)
        if (is_av(m, g->index[r0 + i])) g->score[k++] = g->score[i];
    assert(k == m->n_av);
    const struct work_row c = cost_of(en);
    *work += work_scores(&c, n_q, n) + (by == g->l ? 0 : 2 * n * c.kv);
    return OK;
}

/* The same by walks along the attention of all its rows. */
static status walk_member(struct engine *en, struct march *g, uint32_t s, double *work, struct err *e)
{
    const struct member *m = &g->m[s];
    const uint32_t r0 = g->seq_start[s], n = g->seq_start[s + 1] - r0;
    const struct team_batch b = batch_of_one(g, s);
    const struct work_row c = cost_of(en);
    uint32_t k = 0;
    TRY(team_walks(en->team, g->l, &b, g->score, e));
    for (uint32_t i = 0; i < n; i++)
        if (is_av(m, g->index[r0 + i])) g->score[k++] = g->score[i];
    assert(k == m->n_av);
    *work += n * c.kv + 5 * work_scores(&c, n, n) / 2;     /* each walk goes along half of the pairs */
    return OK;
}

/* What the policy of member s keeps at this layer, by the scores where it asks for them. In its own memory. */
static status select_in(struct engine *en, struct march *g, uint32_t s, double *work, struct err *e)
{
    struct member *m = &g->m[s];
    const bool scored = m->r->plan.scored[g->l], go = m->r->plan.go;
    const double start = clock_s();
    if (scored) TRY((m->r->plan.needs & PRUNE_NEEDS_PAGERANK ? walk_member : score_member)(en, g, s, work, e));
    const float *score = scored ? g->score : NULL;
    const struct eng_trace *t = m->r->o.trace;
    if (t && t->alive) t->alive(t->self, g->l, m->av, m->n_av, score);
    const struct prune_layer_view view = { .st = en->st, .n_alive = m->n_av, .alive = m->av, .score = score };
    TRY(prune_layer(m->policy, g->l, &view, &m->sel, e));
    TRY(note_why(m, (int32_t)g->l, e));
    g->dropped = g->dropped || m->sel.n_keep != m->n_av;
    apply_keep(m);
    tighten(en, m->r, go && !scored ? g->l : g->l + 1, m->n_av);
    m->packed = go && scored;
    m->r->select_s += clock_s() - start;
    return OK;
}

static status select_at(struct engine *en, struct march *g, uint32_t s, double *work, struct err *e)
{
    status st = memory_enter(en, g->m[s].r, e);
    if (st == OK) st = select_in(en, g, s, work, e);
    memory_leave(en);
    return st;
}

/* The scores that the device chose by, and what it chose, for who traces member s. */
static status trace_choice(struct engine *en, struct march *g, uint32_t s, uint32_t n_out, struct err *e)
{
    struct member *m = &g->m[s];
    const struct eng_trace *t = m->r->o.trace;
    const uint32_t r0 = g->seq_start[s], n = g->seq_start[s + 1] - r0;
    uint32_t k = 0;
    TRY(en->ops->download(en->st, g->score, g->lists.score, n * sizeof(float), e));
    for (uint32_t i = 0; i < n; i++)
        if (is_av(m, g->index[r0 + i])) g->score[k++] = g->score[i];
    if (t->alive) t->alive(t->self, g->l, m->av, m->n_av, g->score);
    const uint32_t *out = g->lists.log + g->lists.next + g->n_keep;
    TRY(en->ops->download(en->st, g->keep, out, n_out * sizeof *out, e));
    take_ids(m, g->keep, n_out);
    return OK;
}

/* select_at where the device chooses: nobody waits, but for who looks on. */
static status pick_at(struct engine *en, struct march *g, uint32_t s, double *work, struct err *e)
{
    struct member *m = &g->m[s];
    const uint32_t r0 = g->seq_start[s], n = g->seq_start[s + 1] - r0;
    const uint32_t n_ask = prompt_query(&m->r->prompt, m->r->plan.query, NULL);
    const struct team_batch b = batch_of(g, g->n, g->seq_start, 0, 0);
    const struct work_row cost = cost_of(en);
    const struct eng_trace *t = m->r->o.trace;
    const bool looks = t && (t->alive || t->hidden);
    struct decoder_rows ask;
    struct prune_pick pick;
    if (looks) TRY(en->ops->sync(en->st, e));  /* then select_s is of the choice alone */
    const double start = clock_s();
    if (!prune_layer_pick(m->policy, g->l, &pick)) return err_set(e, E_INTERNAL, "layer %u: the choice is not the device's", g->l);
    struct choose_args c = { .n_of = m->n_av, .k = pick.k, .tds = pick.tds, .relative = pick.relative, .lambda_div = pick.lambda_div,
                             .max_chunk = pick.max_chunk };
    TRY(lists_choice(&g->lists, r0, n, g->n_keep, &c, e));
    TRY(lists_ask(&g->lists, r0, n, n_ask, &ask, e));
    TRY(team_choose(en->team, g->l, &b, s, &ask, &c, e));
    if (looks) TRY(trace_choice(en, g, s, n - c.k, e));
    else {
        m->n_av -= c.k;
        m->unseen = m->unseen || c.k > 0;
    }
    g->n_keep += n - c.k;
    g->dropped = g->dropped || c.k > 0;
    tighten(en, m->r, g->l + 1, m->n_av);
    *work += work_scores(&cost, n_ask, n);
    m->r->select_s += clock_s() - start;
    return OK;
}

/* What a member's own failure with st comes to: it ends alone, but where all of them are stuck. */
static status fails_alone(struct member *m, status st, const struct err *why, march_fail fail, void *self, struct err *e)
{
    if (st == OK) return OK;
    *e = *why;
    if (st == E_DEVICE || st == E_CANCELLED || st == E_NOMEM) return st;
    fail(self, m->r, why);
    return OK;
}

/* The rows that live on become the batch. */
static void renumber(const struct engine *en, struct march *g)
{
    for (uint32_t i = 0; i < g->n_keep && !g->on_device; i++) {
        g->index[i] = g->index[g->keep[i]];
        g->angle[i] = g->kept_angle[i];
    }
    memcpy(g->seq_start, g->out_start, (g->n + 1) * sizeof(uint32_t));
    g->n_rows = g->n_keep;
    if (!g->on_device) return;
    lists_next(&g->lists, g->n_keep);
    for (uint32_t s = 0; s < g->n && g->l + 1 < n_layers(en); s++)
        if (g->m[s].r && !g->m[s].unseen) copy_lists(g, s);
}

/* Choices that need nothing of the layer: rows that they drop go before it begins. */
static status drop_before(struct engine *en, struct march *g, march_fail fail, void *self, struct err *e)
{
    double none = 0;
    g->dropped = false;
    for (uint32_t s = 0; s < g->n; s++) {
        struct err why;
        if (g->m[s].r == NULL || !chooses_before(&g->m[s], g->l)) continue;
        TRY(fails_alone(&g->m[s], select_at(en, g, s, &none, &why), &why, fail, self, e));
    }
    if (!g->dropped) return OK;
    list_alive(g, false);
    TRY(team_gather(en->team, g->x, g->keep, g->n_keep, g->y, 0, e));
    swap_rows(g);
    renumber(en, g);
    return OK;
}

/* ---- a layer begins --------------------------------------------------------------------------------------------- */

static status enter(struct engine *en, struct march *g, march_fail fail, void *self, struct err *e)
{
    const uint32_t l = g->l;
    bool whole = l + 1 < n_layers(en);     /* every row lives on, as is known beforehand */
    TRY(lay_out(en, g, e));
    for (uint32_t s = 0; s < g->n; s++) {
        struct member *m = &g->m[s];
        const uint32_t r0 = g->seq_start[s];
        if (m->r == NULL) continue;
        m->packed = false;
        if (l > 0 && l == m->first_drop) keep_prefix(en, g, s);
        TRY(trace_rows(en, m, l, r0, g->seq_start[s + 1] - r0, g->x, g->index + r0, e));
    }
    TRY(drop_before(en, g, fail, self, e));
    for (uint32_t s = 0; s < g->n; s++) {
        struct member *m = &g->m[s];
        const uint32_t rows = g->seq_start[s + 1] - g->seq_start[s];
        g->view[s] = (struct kv_view){ 0 };
        g->kv_start[s] = 0;
        if (m->r == NULL) continue;
        struct eng_request *r = m->r;
        struct block_table *t = &r->choice[0].table[l];
        whole = whole && !chooses_after(m, l);
        TRY(note_alive(g, s, l, e));
        block_table_append(t, en->pool, &r->sched.reservation, rows);
        r->pages[l] = t->n_pages;
        g->view[s] = (struct kv_view){ .page = t->page, .n_rows = t->n_rows };
        g->kv_start[s] = m->n_skip;
        assert(t->n_rows == m->n_skip + rows);
    }
    g->dropped = false;
    g->cursor = 0;
    g->stage = whole ? AT_LAYER : AT_KV;
    if (!whole) return OK;
    TRY(list_all(g, e));
    for (uint32_t s = 0; s < g->n; s++)
        if (g->m[s].r && !chooses_before(&g->m[s], l)) trace_alive(&g->m[s], l);
    return OK;
}

/* ---- row ranges ------------------------------------------------------------------------------------------- */

double march_row_work(const struct engine *en, uint32_t n)
{
    const struct work_row c = cost_of(en);
    return n * (c.kv + c.mix);
}

/* Keys that row i of a range sees: of lists on the device about so many, as its place says. */
struct range { const struct march *g; const uint32_t *start; };

static uint32_t sees(const void *self, uint32_t i)
{
    const struct range *r = self;
    uint32_t s = 0;
    if (!r->g->on_device) return r->g->visible[i];
    while (r->start[s + 1] <= i) s++;
    return (uint32_t)((uint64_t)(i - r->start[s] + 1) * r->g->view[s].n_rows / (r->start[s + 1] - r->start[s]));
}

/* The next range of rows of `start` (seq_start or out_start) at the cursor: those of members that left are stepped over;
 * as many as max_work allows. *work gets its cost. Returns its end; == cursor: there is none. */
static uint32_t next_range(const struct engine *en, struct march *g, const uint32_t *start, bool kv, bool mix,
                           double max_work, double *work)
{
    const struct work_row c = cost_of(en);
    uint32_t s = 0;
    while (s < g->n && (start[s + 1] <= g->cursor || g->m[s].r == NULL)) {
        if (start[s + 1] > g->cursor) g->cursor = start[s + 1];
        s++;
    }
    if (s == g->n) return g->cursor;
    uint32_t end = g->cursor;
    double sum = 0;
    const struct range range = { g, start };
    for (; s < g->n && g->m[s].r && (sum < max_work || end - g->cursor < WORK_ROWS_MIN); s++)
        end = work_take((kv ? c.kv : 0) + (mix ? c.mix : 0), c.key, mix ? sees : NULL, &range, end, start[s + 1],
                        end - g->cursor, max_work, &sum);
    *work += sum;
    return end;
}

/* The range [cursor, end) of `start` as starts of its own; *first: the first sequence in it. Returns how many. */
static uint32_t clip(struct march *g, const uint32_t *start, uint32_t end, uint32_t *first)
{
    const uint32_t r0 = g->cursor;
    uint32_t s0 = 0, n = 0;
    while (start[s0 + 1] <= r0) s0++;
    for (uint32_t s = s0; s < g->n && start[s] < end; s++, n++) {
        g->sub_start[n] = start[s] > r0 ? start[s] - r0 : 0;
        g->sub_kv[n] = g->kv_start[s] + (start[s] < r0 ? r0 - start[s] : 0);
    }
    g->sub_start[n] = end - r0;
    *first = s0;
    return n;
}

/* K and V (and with `mix` all the rest, in place) of rows [cursor, end) of x. */
static status run_range(struct engine *en, struct march *g, uint32_t end, bool mix, struct err *e)
{
    uint32_t first;
    const uint32_t n = clip(g, g->seq_start, end, &first), r0 = g->cursor;
    const struct team_batch b = batch_of(g, n, g->sub_start, first, r0);
    const uint32_t *visible = (g->on_device ? g->lists.visible : g->visible) + r0;
    return mix ? team_layer(en->team, g->l, &b, g->sub_kv, visible, e) : team_kv(en->team, g->l, &b, g->sub_kv, e);
}

/* Rows [r0, end) of those that live on. */
static struct decoder_rows kept_rows(const struct march *g, uint32_t r0, uint32_t end)
{
    if (g->on_device) return lists_rows(&g->lists, g->in_place, r0, end - r0);
    return (struct decoder_rows){ .n = end - r0, .row = g->in_place ? NULL : g->keep + r0, .angle = g->kept_angle + r0,
                                  .visible = g->visible + r0 };
}

/* Rows [cursor, end) of those that live on. */
static status mix_range(struct engine *en, struct march *g, uint32_t end, struct err *e)
{
    uint32_t first;
    const uint32_t n = clip(g, g->out_start, end, &first), r0 = g->cursor;
    const struct team_batch b = batch_of(g, n, NULL, first, g->in_place ? r0 : 0);
    const struct decoder_rows keep = kept_rows(g, r0, end);
    return team_mix(en->team, g->l, &b, &keep, g->sub_start, g->y, r0, e);
}

/* The textbook order: every row through the layer, then the drop. Same numbers as score first. */
static status mix_textbook(struct engine *en, struct march *g, struct err *e)
{
    uint32_t *visible;
    const struct team_batch b = batch_of(g, g->n, NULL, 0, 0);
    TRY(mem_alloc(&visible, g->n_rows, sizeof *visible, e));
    for (uint32_t s = 0; s < g->n; s++)
        for (uint32_t i = g->seq_start[s]; i < g->seq_start[s + 1]; i++)
            visible[i] = g->m[s].n_skip + i - g->seq_start[s] + 1;
    for (uint32_t s = 0; s < g->n; s++) {      /* rows that are no keys see what the one before them sees, and go in any case */
        uint32_t k = g->out_start[s], sees = 1;
        for (uint32_t i = g->seq_start[s]; g->m[s].packed && i < g->seq_start[s + 1]; i++) {
            if (k < g->out_start[s + 1] && g->keep[k] == i) sees = g->visible[k++];
            visible[i] = sees;
        }
    }
    const struct decoder_rows all = { .n = g->n_rows, .angle = g->angle, .visible = visible };
    const status st = team_mix(en->team, g->l, &b, &all, g->seq_start, NULL, 0, e);
    free(visible);
    return st != OK ? st : team_gather(en->team, g->x, g->keep, g->n_keep, g->y, 0, e);
}

/* ---- choices by scores ------------------------------------------------------------------------------------------ */

/* One member's selection; the cursor counts members here. *over: all had theirs. */
static status score_next(struct engine *en, struct march *g, double *work, bool *over, march_fail fail, void *self,
                         struct err *e)
{
    *over = g->cursor >= g->n;
    if (*over) return OK;
    const uint32_t s = g->cursor++;
    struct member *m = &g->m[s];
    if (g->on_device) g->out_start[s] = g->n_keep = s ? g->n_keep : 0;
    if (m->r == NULL) return OK;
    if (!chooses_after(m, g->l)) {
        if (!chooses_before(m, g->l)) trace_alive(m, g->l);
        return g->on_device ? list_member(en, g, s, e) : OK;
    }
    struct err why;
    return fails_alone(m, (g->on_device ? pick_at : select_at)(en, g, s, work, &why), &why, fail, self, e);
}

/* Rows of the prompt in layer l of r's first choice become rows row[0..n) of them. Pages that are left over go to the pool; what
 * they free was the request's own, so the little more that the answer may now need is there to be promised. *freed grows by
 * the pages. */
static status shrink(struct engine *en, struct eng_request *r, uint32_t l, const uint32_t *row, uint32_t n, uint32_t *freed,
                     struct err *e)
{
    struct block_table *t = &r->choice[0].table[l];
    const uint32_t had = t->n_rows, had_pages = t->n_pages;
    const struct kv_view view = { .page = t->page, .n_rows = had };
    status st = team_compact(en->team, &view, row, n, e);
    const uint32_t promised = kv_pages_of(en->pool, had + r->n_new_max) - had_pages;
    block_table_trim(t, en->pool, n);
    *freed += had_pages - t->n_pages;
    r->pages[l] = t->n_pages;
    const uint32_t needed = kv_pages_of(en->pool, n + r->n_new_max) - t->n_pages;
    if (needed > promised && st == OK) st = kv_reserve(en->pool, needed - promised, &r->sched.reservation, e);
    if (needed < promised) sched_forfeit(en->sched, &r->sched, promised - needed, true);
    return st;
}

/* Where a choice by scores comes before keys: the dropped were keys for the scores alone. The bound stays, since a march after a
 * preemption holds as many rows again. */
static status pack(struct engine *en, struct march *g, struct err *e)
{
    uint32_t freed = 0;
    for (uint32_t s = 0; s < g->n; s++) {
        struct member *m = &g->m[s];
        const uint32_t r0 = g->seq_start[s], rows = g->seq_start[s + 1] - r0;
        if (m->r == NULL || !m->packed || m->n_av + m->r->n_text == rows) continue;
        uint32_t n = 0;
        for (uint32_t i = 0, a = 0; i < rows; i++) {
            if (is_av(m, g->index[r0 + i])) {
                if (a == m->n_av || m->av[a] != g->index[r0 + i]) continue;
                a++;
            }
            g->keep[n++] = i;
        }
        TRY(shrink(en, m->r, g->l, g->keep, n, &freed, e));
        TRY(note_alive(g, s, g->l, e));
        g->view[s].n_rows = n;
    }
    sched_pruned(en->sched, freed);
    return OK;
}

/* ---- leaving a layer -------------------------------------------------------------------------------------- */

static void leave(const struct engine *en, struct march *g)
{
    g->l++;
    g->cursor = 0;
    g->stage = g->l == n_layers(en) ? AT_END : AT_ENTER;
}

/* Rows of layer l that stay when it keeps what lives at layer `to`: their places in its view. Returns how many. */
static uint32_t rows_that_stay(const struct eng_request *r, uint32_t l, uint32_t to, uint32_t *row)
{
    const uint32_t *had = r->survivors[l], *kept = r->survivors[to];
    const uint32_t n_had = r->alive[l][TOKEN_AUDIO] + r->alive[l][TOKEN_VIDEO] + r->alive[l][TOKEN_IMAGE];
    const uint32_t n_kept = r->alive[to][TOKEN_AUDIO] + r->alive[to][TOKEN_VIDEO] + r->alive[to][TOKEN_IMAGE];
    uint32_t n = 0, place = 0, h = 0, k = 0;
    for (uint32_t i = 0; i < r->prompt.n; i++) {
        if (r->prompt.kind[i] != TOKEN_TEXT) {
            if (h == n_had || had[h] != i) continue;
            h++;
            const bool stays = k < n_kept && kept[k] == i;
            k += stays;
            place++;
            if (!stays) continue;
        } else {
            place++;
        }
        row[n++] = place - 1;
    }
    return n;
}

/* Shallow layers give back K and V of tokens that were dropped behind them. */
static status trim(struct engine *en, struct eng_request *r, struct err *e)
{
    const uint32_t L = n_layers(en);
    uint32_t *row, pages = 0;
    TRY(mem_alloc(&row, r->prompt.n, sizeof *row, e));
    status st = OK;
    for (uint32_t l = 0; l < L && st == OK; l++) {
        const uint32_t to = l + r->plan.trim_lag < L - 1 ? l + r->plan.trim_lag : L - 1;
        const uint32_t n = rows_that_stay(r, l, to, row);
        if (n < r->choice[0].table[l].n_rows) st = shrink(en, r, l, row, n, &pages, e);
    }
    sched_pruned(en->sched, pages);
    free(row);
    return st;
}

/* The device has done all of m's prefill, and the log is there. */
static status end_prefill(struct engine *en, struct march *g, struct member *m, struct err *e)
{
    const uint32_t L = n_layers(en);
    struct eng_request *r = m->r;
    TRY(recall(en, g, m, e));
    TRY(note_av(m, L, e));
    double sum = 0;
    for (uint32_t l = 0; l < L; l++)
        sum += (double)(r->alive[l][TOKEN_AUDIO] + r->alive[l][TOKEN_VIDEO] + r->alive[l][TOKEN_IMAGE]);
    r->mean_retention = r->prompt.n_av ? sum / L / r->prompt.n_av : 1;
    r->prefill_s += clock_s() - m->start;
    if (m->first_drop == L && m->digest && m->n_blocks > m->n_hit) {
        struct err none;
        kv_prefix_insert(en->prefixes, m->digest, m->n_blocks, L, r->choice[0].table, NULL, 0, &none);
    }
    if (r->plan.trim) TRY(trim(en, r, e));
    if (!r->keep_embeds) {
        en->ops->release(en->st, r->audio_embeds);
        en->ops->release(en->st, r->vision_embeds);
        en->ops->release(en->st, r->vision_keys);
        r->audio_embeds = r->vision_embeds = r->vision_keys = NULL;
    }
    memory_park(en, r);                        /* what is left of it, for another march */
    return OK;
}

/* first_tokens has logits, which the host had to wait for, and nobody has a token yet. */
static status end_prefills(struct engine *en, void *group, struct err *e)
{
    struct march *g = group;
    for (uint32_t s = 0; s < g->n; s++)
        if (g->m[s].r) TRY(end_prefill(en, g, &g->m[s], e));
    return OK;
}

/* Members' last words, and each one's first token. */
static status end_march(struct engine *en, struct march *g, march_fail fail, void *self, struct err *e)
{
    struct eng_request **reqs;
    uint32_t n = 0;
    const bool unseen = someone_unseen(g);
    struct err none;
    TRY(mem_alloc(&reqs, g->n, sizeof *reqs, e));
    for (uint32_t s = 0; s < g->n; s++) {
        if (g->m[s].r == NULL) continue;
        g->keep[n] = g->out_start[s];      /* its row: that of members that left are still between */
        reqs[n++] = g->m[s].r;
    }
    status st = team_gather(en->team, g->x, g->keep, n, g->y, 0, e);
    if (st == OK && unseen) st = lists_fetch(&g->lists, e);
    if (st == OK) st = first_tokens(en, reqs, n, g->y, end_prefills, g, fail, self, e);
    if (st != OK && unseen) en->ops->sync(en->st, &none);      /* what was fetched must have come before its memory goes */
    free(reqs);
    return st;
}

/* One piece. */
static status piece(struct engine *en, struct march *g, double max_work, double *work, march_fail fail, void *self,
                    struct err *e)
{
    uint32_t end;
    bool over;
    switch (g->stage) {
    case AT_ENTER: return enter(en, g, fail, self, e);
    case AT_LAYER:
        end = next_range(en, g, g->seq_start, true, true, max_work, work);
        if (end == g->cursor) {
            leave(en, g);
            return OK;
        }
        TRY(run_range(en, g, end, true, e));
        g->last_rows += end - g->cursor;
        g->cursor = end;
        return OK;
    case AT_KV:
        end = next_range(en, g, g->seq_start, true, false, max_work, work);
        if (end == g->cursor) {
            g->stage = AT_SCORE;
            g->cursor = 0;
            return OK;
        }
        TRY(run_range(en, g, end, false, e));
        g->cursor = end;
        return OK;
    case AT_SCORE:
        TRY(score_next(en, g, work, &over, fail, self, e));
        if (!over) return OK;
        TRY(pack(en, g, e));
        list_survivors(en, g);
        g->in_place = !g->dropped && g->l + 1 < n_layers(en) && g->n_keep == g->n_rows;
        g->stage = AT_MIX;
        g->cursor = 0;
        if (!en->textbook_order || g->in_place) return OK;
        TRY(mix_textbook(en, g, e));
        g->cursor = g->n_keep;
        return OK;
    case AT_MIX:
        end = next_range(en, g, g->out_start, false, true, max_work, work);
        if (end == g->cursor) {
            if (!g->in_place) {
                swap_rows(g);
                renumber(en, g);
            }
            leave(en, g);
            return OK;
        }
        TRY(mix_range(en, g, end, e));
        g->last_rows += end - g->cursor;
        g->cursor = end;
        return OK;
    case AT_END: break;
    }
    return OK;
}

static bool deserted(const struct march *g)
{
    for (uint32_t s = 0; s < g->n; s++)
        if (g->m[s].r) return false;
    return true;
}

status march_some(struct engine *en, uint32_t group, double max_work, double *work, double *left, bool *done,
                  march_fail fail, void *self, struct err *e)
{
    struct march *g = en->march[group];
    status st = OK;
    *work = *left = 0;
    g->last_rows = 0;
    do {
        if (en->interrupted) st = err_set(e, E_CANCELLED, "interrupted");
        else st = piece(en, g, max_work - *work, work, fail, self, e);
    } while (st == OK && g->stage != AT_END && *work < max_work && !deserted(g));
    *done = g->stage == AT_END || deserted(g);
    if (st == OK && *done && !deserted(g)) st = end_march(en, g, fail, self, e);
    const struct work_row c = cost_of(en);
    if (!*done) *left = (double)(n_layers(en) - g->l) * g->n_rows * (c.kv + c.mix);
    if (st != OK || *done) end_group(en, g);
    return st;
}

uint32_t march_members(const struct engine *en, uint32_t group, struct eng_request **reqs)
{
    const struct march *g = en->march[group];
    uint32_t n = 0;
    for (uint32_t s = 0; g && s < g->n; s++) {
        if (g->m[s].r == NULL) continue;
        if (reqs) reqs[n] = g->m[s].r;
        n++;
    }
    return n;
}

uint32_t march_rows(const struct engine *en, uint32_t group) { return en->march[group] ? en->march[group]->last_rows : 0; }

double march_progress(const struct engine *en, uint32_t group, uint32_t *layer)
{
    const struct march *g = en->march[group];
    if (layer) *layer = g ? g->l : 0;
    if (g == NULL || g->n == 0) return 1;
    const double part = g->n_rows && (g->stage == AT_LAYER || g->stage == AT_MIX) ? (double)g->cursor / g->n_rows : 0;
    return (g->l + (part < 1 ? part : 1)) / n_layers(en);
}
