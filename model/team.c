/* model/team.c - see team.h. A task is a fixed head and the lists that its op takes, 32-bit words all of it:
 *   struct head | list 0 | list 1 | ... | rows of each view | [words of each page list known already] | page lists
 * The page lists of a decode step are those of the step before with a page more now and then: both sides remember them by
 * place, and only what comes after the part that is alike is sent. */
#include "model/team.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { TAG_TASK = 1, TAG_WHY = 2, TAG_FEATURES = 3, TAG_EMBEDDINGS = 4 };

enum op { OP_STOP, OP_PAGES, OP_ROWS, OP_RELEASE, OP_ANGLES, OP_EMBED, OP_PUT, OP_GATHER, OP_KV, OP_LAYER, OP_SCORES, OP_WALKS, OP_MIX,
          OP_STEP, OP_LOGITS, OP_PAGE_COPY, OP_COMPACT, OP_VISION, OP_AUDIO };

enum list { L_SEQ_START, L_KV_START, L_ANGLE, L_KEEP, L_OUT_START, L_VISIBLE, L_ID, L_POS, L_POS_H, L_POS_W, L_ROW, L_TO, N_LISTS };

struct head {
    uint32_t op, layer, n;
    uint32_t x, y, angles;         /* ids of rows */
    uint32_t x_at, y_at, width;
    uint32_t n_views, forget;      /* forget: page lists that were sent before do not count */
    uint32_t n_list[N_LISTS];
};

struct task {
    struct head h;
    const uint32_t *list[N_LISTS];
    const struct kv_view *view;
    /* Not sent. */
    bool on_device;                /* angles, rows and what they see are lists of the device: alone */
    const float *from;             /* the leader's */
    float *out, *saliency;
    uint32_t stride, f0;
    status failed;                 /* this worker could not take it down: it takes part and no more */
};

/* A page list as it was sent last. */
struct known { uint32_t *page, n; size_t cap; };

struct team {
    struct decoder *dc;
    struct stream *st;
    const struct ops *ops;
    struct comm *comm;             /* NULL: alone */
    uint32_t rank, size, L, d, D;
    bool check, serving, alone;    /* serving: workers have been given a task; alone: the decoder meets nobody, not even by NCCL */
    struct kv_shape kv;
    struct team_rows **rows;       /* by id; NULL: free */
    size_t rows_cap;
    /* Scratch. */
    uint32_t *message, *same, *iota, *start, *visible;
    size_t message_cap, same_cap, iota_cap, start_cap, visible_cap;
    struct kv_view *view;
    size_t view_cap;
    struct known *known;
    size_t known_cap;
    bool forget, lost;             /* lost: a collective failed, a rank is gone */
    float *score, *looked;         /* workers: [max_keys]; check: rows on the host */
    size_t looked_cap;
    struct reserve_args reserve;
    bool reserves;
    struct audio_tower *audio;
    struct vision_tower *vision;
    float *embeds;                 /* workers: device memory of a tower's output */
    size_t embeds_cap;             /* floats */
    float *packed;                 /* features, embeddings on their way */
    size_t packed_cap;
    struct reply *reply;           /* [size], leader */
    size_t *reply_bytes;           /* [size] */
    struct team_counts counts;
};

/* What every rank says after a task. */
struct reply { int32_t code; uint32_t layer; uint64_t rows, scores, keep; };

/* ---- what must be equal -------------------------------------------------------------------------------------- */

static uint64_t hash(uint64_t h, const void *p, size_t n_words)
{
    for (size_t i = 0; i < n_words; i++) {
        uint32_t w;
        memcpy(&w, (const char *)p + 4 * i, sizeof w);
        h = (h ^ w) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return h;
}

/* Hash of n rows at x, 0 without check. */
static status hash_rows(struct team *t, const float *x, uint32_t n, uint32_t width, uint64_t *out, struct err *e)
{
    const size_t words = (size_t)n * width;
    if (!t->check || t->comm == NULL) return OK;
    TRY(mem_grow(&t->looked, &t->looked_cap, words, sizeof(float), e));
    TRY(t->ops->download(t->st, t->looked, x, words * sizeof(float), e));
    *out = hash(1, t->looked, words);
    return OK;
}

static status differs(uint32_t r, const struct reply *a, const struct comm *c, struct err *e, const char *what)
{
    return err_set(e, E_DEVICE, "rank %u (%s) has other %s than rank 0 after layer %u: its machine computes other numbers", r,
                   comm_peer(c, r)->host, what, a->layer);
}

/* The leader: what ranks said. Its own error comes first, then that of the lowest rank. */
static status judge(struct team *t, status own, struct err *e)
{
    const struct reply *a = t->reply;
    for (uint32_t r = 1; r < t->size; r++) {
        if (a[r].code == OK) continue;
        struct comm_message m;
        struct err why;
        bool got;
        const status st = comm_take(t->comm, r, TAG_WHY, 60, &m, &got, &why);
        if (own != OK) {           /* taken, so that it is not taken for the next one's */
            if (st == OK && got) free(m.bytes);
            continue;
        }
        if (st != OK) {
            if (e) *e = why;
            return st;
        }
        own = err_set(e, (status)a[r].code, "rank %u (%s): %.*s", r, comm_peer(t->comm, r)->host, got ? (int)m.n : 0,
                      got ? (const char *)m.bytes : "");
        if (got) free(m.bytes);
    }
    if (own != OK) return own;
    for (uint32_t r = 1; r < t->size; r++) {
        if (a[r].keep != a[0].keep) return differs(r, &a[0], t->comm, e, "survivors");
        if (a[r].scores != a[0].scores) return differs(r, &a[0], t->comm, e, "scores");
        if (a[r].rows != a[0].rows) return differs(r, &a[0], t->comm, e, "residual rows");
    }
    return OK;
}

/* The end of a task on all ranks: *mine to the leader. st is this rank's own status, *e its text. */
static status settle(struct team *t, struct reply *mine, status st, struct err *e)
{
    struct err why;
    if (t->comm == NULL) return st;
    mine->code = st;
    if (st != OK && t->rank != 0) {
        const status posted = comm_post(t->comm, 0, TAG_WHY, e ? e->text : "", e ? strlen(e->text) : 0, &why);
        if (posted != OK) {
            t->lost = true;
            if (e) *e = why;
            return posted;
        }
    }
    const status met = comm_gather(t->comm, NULL, 0, mine, t->reply, t->reply_bytes, &why);
    if (met != OK) {
        t->lost = true;
        if (st == OK && e) *e = why;
        return st == OK ? met : st;
    }
    return t->rank == 0 ? judge(t, st, e) : st;
}

/* ---- tasks as words ------------------------------------------------------------------------------------------ */

enum { HEAD_WORDS = sizeof(struct head) / sizeof(uint32_t) };

static uint32_t pages_of(const struct team *t, uint32_t n_rows) { return (n_rows + t->kv.page_tokens - 1) / t->kv.page_tokens; }

/* What is alike in view i and what was sent for it last; the rest is remembered. */
static status remember(struct team *t, uint32_t i, const struct kv_view *v, uint32_t *same, struct err *e)
{
    struct known *k = &t->known[i];
    const uint32_t n = pages_of(t, v->n_rows);
    uint32_t a = 0;
    while (a < n && a < k->n && k->page[a] == v->page[a]) a++;
    TRY(mem_grow(&k->page, &k->cap, n, sizeof *k->page, e));
    memcpy(k->page + a, v->page + a, (n - a) * sizeof *k->page);
    k->n = n;
    *same = a;
    return OK;
}

static status known_room(struct team *t, uint32_t n, struct err *e)
{
    const size_t had = t->known_cap;
    TRY(mem_grow(&t->known, &t->known_cap, n, sizeof *t->known, e));
    memset(t->known + had, 0, (t->known_cap - had) * sizeof *t->known);
    return OK;
}

static void forget(struct team *t)
{
    for (size_t i = 0; i < t->known_cap; i++) t->known[i].n = 0;
    t->forget = true;
}

/* The task into t->message; *n_out words. */
static status write_task(struct team *t, struct task *k, size_t *n_out, struct err *e)
{
    const bool step = k->h.op == OP_STEP;
    size_t n = HEAD_WORDS + 2 * (size_t)k->h.n_views;
    TRY(mem_grow(&t->same, &t->same_cap, k->h.n_views, sizeof(uint32_t), e));
    if (step) TRY(known_room(t, k->h.n_views, e));
    for (uint32_t i = 0; i < k->h.n_views; i++) {
        t->same[i] = 0;
        if (step) TRY(remember(t, i, &k->view[i], &t->same[i], e));
        n += pages_of(t, k->view[i].n_rows) - t->same[i];
    }
    for (int i = 0; i < N_LISTS; i++) n += k->h.n_list[i];
    TRY(mem_grow(&t->message, &t->message_cap, n, sizeof(uint32_t), e));
    k->h.forget = t->forget;
    uint32_t *p = t->message;
    memcpy(p, &k->h, sizeof k->h);
    p += HEAD_WORDS;
    for (int i = 0; i < N_LISTS; p += k->h.n_list[i++])
        if (k->h.n_list[i]) memcpy(p, k->list[i], k->h.n_list[i] * sizeof *p);
    for (uint32_t i = 0; i < k->h.n_views; i++) *p++ = k->view[i].n_rows;
    for (uint32_t i = 0; step && i < k->h.n_views; i++) *p++ = t->same[i];
    for (uint32_t i = 0; i < k->h.n_views; i++) {
        const uint32_t m = pages_of(t, k->view[i].n_rows) - t->same[i];
        if (m) memcpy(p, k->view[i].page + t->same[i], m * sizeof *p);
        p += m;
    }
    *n_out = (size_t)(p - t->message);
    return OK;
}

/* A worker's copy of what the leader remembers; views point into it. */
static status recall(struct team *t, uint32_t n, const uint32_t *n_rows, const uint32_t *same, const uint32_t *page, struct err *e)
{
    TRY(known_room(t, n, e));
    for (uint32_t i = 0; i < n; i++) {
        struct known *k = &t->known[i];
        const uint32_t all = pages_of(t, n_rows[i]);
        if (same[i] > k->n) return err_set(e, E_INTERNAL, "a decode step builds on %u pages, %u are known", same[i], k->n);
        TRY(mem_grow(&k->page, &k->cap, all, sizeof *k->page, e));
        memcpy(k->page + same[i], page, (all - same[i]) * sizeof *page);
        page += all - same[i];
        k->n = all;
        t->view[i] = (struct kv_view){ .page = k->page, .n_rows = n_rows[i] };
    }
    return OK;
}

static status read_views(struct team *t, struct task *k, const uint32_t *p, struct err *e)
{
    const uint32_t n = k->h.n_views, *n_rows = p;
    TRY(mem_grow(&t->view, &t->view_cap, n, sizeof *t->view, e));
    k->view = t->view;
    p += n;
    if (k->h.op == OP_STEP) return recall(t, n, n_rows, p, p + n, e);
    for (uint32_t i = 0; i < n; p += pages_of(t, n_rows[i++])) t->view[i] = (struct kv_view){ .page = p, .n_rows = n_rows[i] };
    return OK;
}

/* The task out of a message, which it points into. Afterwards k->failed and *e say what this worker lacks. E_INTERNAL: it is
 * no task at all. */
static status read_task(struct team *t, const struct comm_message *m, struct task *k, struct err *e)
{
    const size_t words = m->n / sizeof(uint32_t);
    const uint32_t *p = (const uint32_t *)(const void *)m->bytes;
    *k = (struct task){ 0 };
    if (words < HEAD_WORDS) return err_set(e, E_INTERNAL, "a task of %zu bytes came from rank 0", m->n);
    memcpy(&k->h, p, sizeof k->h);
    size_t n = HEAD_WORDS + (size_t)k->h.n_views;
    for (int i = 0; i < N_LISTS; n += k->h.n_list[i++]) k->list[i] = p + n - k->h.n_views;
    if (n > words) return err_set(e, E_INTERNAL, "a task of %zu words came from rank 0 in %zu", n, words);
    if (k->h.forget)
        for (size_t i = 0; i < t->known_cap; i++) t->known[i].n = 0;
    for (int i = 0; i < N_LISTS; i++)
        if (k->h.n_list[i] == 0) k->list[i] = NULL;
    k->failed = read_views(t, k, p + n - k->h.n_views, e);
    return OK;
}

/* ---- what every rank does ------------------------------------------------------------------------------------ */

static float *row_at(const struct team *t, uint32_t id, uint32_t at)
{
    return t->rows[id]->x + (size_t)at * t->rows[id]->width;
}

static float *sin_of(const struct team *t, const struct team_rows *a) { return a->x + (size_t)a->n * (t->D / 2); }

static status do_rows(struct team *t, const struct task *k, struct err *e)
{
    struct team_rows *r;
    const size_t had = t->rows_cap;
    TRY(mem_grow(&t->rows, &t->rows_cap, (size_t)k->h.x + 1, sizeof *t->rows, e));
    memset(t->rows + had, 0, (t->rows_cap - had) * sizeof(struct team_rows *));
    TRY(mem_alloc(&r, 1, sizeof *r, e));
    *r = (struct team_rows){ .n = k->h.n, .width = k->h.width, .id = k->h.x };
    const status st = t->ops->alloc(t->st, (size_t)k->h.n * k->h.width * sizeof(float), (void **)&r->x, e);
    if (st != OK) free(r);
    else t->rows[k->h.x] = r;
    return st;
}

static void do_release(struct team *t, uint32_t id)
{
    if (id >= t->rows_cap || t->rows[id] == NULL) return;
    t->ops->release(t->st, t->rows[id]->x);
    free(t->rows[id]);
    t->rows[id] = NULL;
}

static status do_pages(struct team *t, uint32_t n, struct err *e)
{
    TRY(t->ops->alloc(t->st, (size_t)n * t->kv.page_bytes, &t->kv.base, e));
    return t->reserves ? t->ops->reserve(t->st, &t->reserve, e) : OK;
}

static status do_angles(struct team *t, const struct task *k, struct err *e)
{
    const struct team_rows *a = t->rows[k->h.angles];
    const size_t at = (size_t)k->h.x_at * (t->D / 2);
    const int32_t *const pos[3] = { (const int32_t *)k->list[L_POS], (const int32_t *)k->list[L_POS_H],
                                    (const int32_t *)k->list[L_POS_W] };
    return decoder_angles(t->dc, pos, k->h.n, a->x + at, sin_of(t, a) + at, e);
}

static status do_put(struct team *t, const struct task *k, struct err *e)
{
    const uint32_t n = k->h.n, d = t->d;
    float *spare = t->rows[k->h.y]->x;
    status st = OK;
    struct err why;
    if (t->rank == 0)
        st = t->ops->gather(t->st, &(struct gather_args){ .x = k->from, .row = k->list[L_ROW], .n = n, .d = d, .y = spare }, e);
    if (t->comm) {
        struct stream *memory = strcmp(t->ops->name, "cpu") == 0 ? NULL : t->st;
        const status met = comm_broadcast(t->comm, memory, 0, spare, (size_t)n * d * sizeof(float), &why);
        if (met != OK) {
            if (e) *e = why;
            return met;
        }
    }
    if (st != OK) return st;
    TRY(k->failed);
    return t->ops->scatter(t->st, &(struct scatter_args){ .x = spare, .row = k->list[L_TO], .n = n, .d = d,
                                                          .y = t->rows[k->h.x]->x }, e);
}

/* The decoder's batch of a task; of one that failed, its rows and nothing to read. */
static struct decoder_batch batch_of(struct team *t, const struct task *k, const uint32_t none[1])
{
    struct decoder_batch b = { .n_seqs = k->h.op == OP_WALKS ? 1 : k->h.n_views, .seq_start = k->list[L_SEQ_START],
                               .view = k->view, .angle = k->list[L_ANGLE], .on_device = k->on_device, .kv = t->kv };
    const struct team_rows *a = t->rows[k->h.angles];
    b.cos = a->x;
    b.sin = sin_of(t, a);
    if (k->failed == OK) return b;
    b.n_seqs = 0;
    b.seq_start = none;
    decoder_fail(t->dc, k->failed);
    return b;
}

/* The rows that a task picks out of its batch. */
static struct decoder_rows rows_of(const struct task *k)
{
    return (struct decoder_rows){ .n = k->h.n, .row = k->list[L_KEEP], .angle = k->list[L_ANGLE], .visible = k->list[L_VISIBLE],
                                  .on_device = k->on_device };
}

static status do_scores(struct team *t, const struct task *k, const struct decoder_batch *b, struct reply *says, struct err *e)
{
    /* Who failed still knows how many keys there are. */
    const struct kv_view bare = { .n_rows = k->h.width };
    struct decoder_batch of = *b;
    if (k->failed != OK) of.view = &bare;
    float *score = t->rank == 0 ? k->out : t->score;
    const struct decoder_rows query = rows_of(k);
    TRY(decoder_scores(t->dc, k->h.layer, &of, 0, row_at(t, k->h.x, k->h.x_at), &query, score, e));
    if (t->check) says->scores = hash(1, score, k->h.width);
    return OK;
}

static status do_walks(struct team *t, const struct task *k, const struct decoder_batch *b, struct reply *says, struct err *e)
{
    float *score = t->rank == 0 ? k->out : t->score;
    TRY(decoder_walks(t->dc, k->h.layer, b, row_at(t, k->h.x, k->h.x_at), score, e));
    if (t->check) says->scores = hash(1, score, k->h.n);
    return OK;
}

static status settle_layer(struct team *t, status st, uint32_t l, const float *x, uint32_t n, struct err *e)
{
    struct reply r = { .layer = l };
    if (st == OK) st = hash_rows(t, x, n, t->d, &r.rows, e);
    return settle(t, &r, st, e);
}

static status step_room(struct team *t, uint32_t n, struct err *e)
{
    TRY(mem_grow(&t->iota, &t->iota_cap, n + 1, sizeof(uint32_t), e));
    TRY(mem_grow(&t->start, &t->start_cap, n, sizeof(uint32_t), e));
    TRY(mem_grow(&t->visible, &t->visible_cap, n, sizeof(uint32_t), e));
    for (uint32_t i = 0; i <= n; i++) t->iota[i] = i;
    return OK;
}

static status do_step(struct team *t, const struct task *k, struct err *e)
{
    const uint32_t n = k->h.n, none[1] = { n };
    float *x = t->rows[k->h.x]->x;
    status st = k->failed;
    struct task at = *k;
    at.list[L_POS_H] = at.list[L_POS_W] = k->list[L_POS];
    const bool alone = t->alone;               /* else ranks meet between its ops */
    if (alone) t->ops->step_begin(t->st, t->dc, n);
    if (st == OK) st = step_room(t, n, e);
    if (st == OK) st = do_angles(t, &at, e);
    decoder_fail(t->dc, st);
    st = decoder_embed(t->dc, (const int32_t *)k->list[L_ID], n, x, e);
    for (uint32_t l = 0; l < t->L && (st == OK || t->comm); l++) {
        at.failed = st;
        struct decoder_batch b = batch_of(t, &at, none);
        if (st == OK) {
            const struct kv_view *view = k->view + (size_t)l * n;
            for (uint32_t i = 0; i < n; i++) {
                t->start[i] = view[i].n_rows - 1;
                t->visible[i] = view[i].n_rows;
            }
            b.n_seqs = n;
            b.view = view;
            b.seq_start = b.angle = t->iota;
        }
        b.decode = true;
        st = decoder_layer(t->dc, l, &b, x, t->start, t->visible, e);
        if (t->check && t->comm) st = settle_layer(t, st, l, x, n, e);
    }
    if (alone) {
        const status ended = t->ops->step_end(t->st, st != OK, e);
        if (st == OK) st = ended;
    }
    return st;
}

static status do_mix(struct team *t, const struct task *k, const struct decoder_batch *b, struct reply *says, struct err *e)
{
    const struct decoder_rows keep = rows_of(k);
    const bool in_place = keep.row == NULL;
    float *x = row_at(t, k->h.x, k->h.x_at), *y = in_place ? x : row_at(t, k->h.y, k->h.y_at);
    TRY(decoder_mix(t->dc, k->h.layer, b, x, &keep, k->list[L_OUT_START], y, e));
    if (t->check && t->comm && !in_place) says->keep = hash(1, k->list[L_KEEP], k->h.n);
    return hash_rows(t, y, k->h.n, t->d, &says->rows, e);
}

/* ---- towers -------------------------------------------------------------------------------------------------- */

/* What a rank has of a tower's task: grid steps or frames, their features in floats, the rows that come of them. */
struct share { uint32_t first, n, row, rows; size_t floats; };

static struct share share_of(const struct team *t, const struct task *k, uint32_t r)
{
    const uint32_t unit = k->h.op == OP_VISION ? 1 : audio_tower_span(t->audio), units = (k->h.n + unit - 1) / unit;
    const uint64_t a = ((uint64_t)units * r + t->size - 1) / t->size * unit, b = ((uint64_t)units * (r + 1) + t->size - 1) / t->size * unit;
    const uint32_t end = b < k->h.n ? (uint32_t)b : k->h.n;
    struct share s = { .first = (uint32_t)a < end ? (uint32_t)a : end };
    s.n = end - s.first;
    s.floats = (size_t)s.n * k->h.width;
    if (k->h.op == OP_VISION) {
        const uint32_t rows = k->h.x * k->h.y / 4;
        s.row = s.first * rows;
        s.rows = s.n * rows;
    } else {
        s.row = audio_tower_tokens(k->f0 + s.first);
        s.rows = audio_tower_tokens(s.n);
    }
    return s;
}

/* n features at `from` become rows at `embeds`. */
static status run_tower(struct team *t, const struct task *k, const float *from, uint32_t n, float *embeds, float *saliency,
                        struct err *e)
{
    if (n == 0) return OK;
    if (k->h.op == OP_VISION) return vision_tower_run(t->vision, from, n, k->h.x, k->h.y, embeds, saliency, e);
    return audio_tower_part(t->audio, from, n, 0, n, embeds, saliency, e);
}

/* Frames [f, f + n) of mel [bins, stride] end to end. */
static status pack_frames(struct team *t, const struct task *k, uint32_t f, uint32_t n, struct err *e)
{
    TRY(mem_grow(&t->packed, &t->packed_cap, (size_t)n * k->h.width, sizeof(float), e));
    for (uint32_t m = 0; m < k->h.width; m++)
        memcpy(t->packed + (size_t)m * n, k->from + (size_t)m * k->stride + k->f0 + f, n * sizeof(float));
    return OK;
}

/* The leader's: features to all, its own share, embeddings from all. */
static status deal_out(struct team *t, const struct task *k, struct err *e)
{
    const bool sal = k->saliency != NULL;
    status st = OK;
    for (uint32_t r = 1; r < t->size; r++) {
        const struct share s = share_of(t, k, r);
        const float *from = k->from + s.first * (size_t)k->h.width;
        if (s.n == 0) continue;
        if (k->h.op == OP_AUDIO) {
            if (st == OK) st = pack_frames(t, k, s.first, s.n, e);
            from = t->packed;
        }
        /* Nothing to do is what a rank is told where this one has no room for it. */
        struct err why;
        const status posted = comm_post(t->comm, r, TAG_FEATURES, from, st == OK ? s.floats * sizeof(float) : 0, &why);
        if (posted != OK) {
            if (e) *e = why;
            return posted;
        }
    }
    const struct share own = share_of(t, k, 0);
    if (st == OK && own.n && k->h.op == OP_VISION)
        st = run_tower(t, k, k->from, own.n, k->out, k->saliency, e);
    else if (st == OK && own.n) st = audio_tower_part(t->audio, k->from, k->stride, k->f0, own.n, k->out, k->saliency, e);
    for (uint32_t r = 1; r < t->size; r++) {
        const struct share s = share_of(t, k, r);
        struct comm_message m;
        struct err why;
        bool got = false;
        if (s.n == 0) continue;
        while (!got) {
            const status taken = comm_take(t->comm, r, TAG_EMBEDDINGS, INFINITY, &m, &got, &why);
            if (taken != OK) {
                if (e) *e = why;
                return taken;
            }
        }
        const size_t bytes = (size_t)s.rows * t->d * sizeof(float);
        if (st == OK && m.n == bytes + (sal ? s.rows * sizeof(float) : 0)) {
            st = t->ops->upload(t->st, k->out + (size_t)s.row * t->d, m.bytes, bytes, e);
            if (sal) memcpy(k->saliency + s.row, m.bytes + bytes, s.rows * sizeof(float));
        }
        free(m.bytes);             /* none: that rank failed, and says so at the end */
    }
    return st;
}

/* A worker's share of a tower's task, into t->packed. */
static status work_share(struct team *t, const struct task *k, const struct share *s, const struct comm_message *m, struct err *e)
{
    const size_t floats = (size_t)s->rows * t->d;
    TRY(k->failed);
    if (m->n != s->floats * sizeof(float)) return err_set(e, E_NOMEM, "no features came from rank 0");
    if (floats > t->embeds_cap) {
        t->ops->release(t->st, t->embeds);
        t->embeds = NULL;
        t->embeds_cap = 0;
        TRY(t->ops->alloc(t->st, floats * sizeof(float), (void **)&t->embeds, e));
        t->embeds_cap = floats;
    }
    TRY(mem_grow(&t->packed, &t->packed_cap, floats + s->rows, sizeof(float), e));
    TRY(run_tower(t, k, (const float *)(const void *)m->bytes, s->n, t->embeds, k->h.x_at ? t->packed + floats : NULL, e));
    return t->ops->download(t->st, t->packed, t->embeds, floats * sizeof(float), e);
}

static status do_tower(struct team *t, const struct task *k, struct err *e)
{
    if (t->rank == 0) return deal_out(t, k, e);
    const struct share s = share_of(t, k, t->rank);
    struct comm_message m;
    struct err why;
    bool got = false;
    if (s.n == 0) return OK;
    while (!got) TRY(comm_take(t->comm, 0, TAG_FEATURES, INFINITY, &m, &got, e));
    const status st = work_share(t, k, &s, &m, e);
    free(m.bytes);
    const size_t floats = (size_t)s.rows * t->d + (k->h.x_at ? s.rows : 0);
    const status posted = comm_post(t->comm, 0, TAG_EMBEDDINGS, t->packed, st == OK ? floats * sizeof(float) : 0, &why);
    if (posted != OK && st == OK) *e = why;
    return st != OK ? st : posted;
}

/* Collectives happen in here, on every rank or on none. */
static status do_task(struct team *t, const struct task *k, struct reply *says, struct err *e)
{
    const struct head *h = &k->h;
    const uint32_t none[1] = { h->n };
    says->layer = h->layer;
    struct decoder_batch b;
    switch ((enum op)h->op) {
    case OP_STOP: return OK;
    case OP_RELEASE: do_release(t, h->x); return OK;
    case OP_ROWS: return do_rows(t, k, e);
    case OP_PAGES: return do_pages(t, h->n, e);
    case OP_ANGLES: return do_angles(t, k, e);
    case OP_PUT: return do_put(t, k, e);
    case OP_STEP: return do_step(t, k, e);
    case OP_VISION:
    case OP_AUDIO: return do_tower(t, k, e);
    case OP_EMBED:
        decoder_fail(t->dc, k->failed);
        TRY(decoder_embed(t->dc, (const int32_t *)k->list[L_ID], h->n, t->rows[h->x]->x, e));
        return hash_rows(t, t->rows[h->x]->x, h->n, t->d, &says->rows, e);
    case OP_GATHER:
        TRY(k->failed);
        return t->ops->gather(t->st, &(struct gather_args){ .x = t->rows[h->x]->x, .row = k->list[L_ROW], .n = h->n,
                                                            .d = t->rows[h->x]->width, .y = row_at(t, h->y, h->y_at) }, e);
    case OP_KV:
        b = batch_of(t, k, none);
        return decoder_kv(t->dc, h->layer, &b, row_at(t, h->x, h->x_at), k->list[L_KV_START], e);
    case OP_LAYER:
        b = batch_of(t, k, none);
        TRY(decoder_layer(t->dc, h->layer, &b, row_at(t, h->x, h->x_at), k->list[L_KV_START], k->list[L_VISIBLE], e));
        return hash_rows(t, row_at(t, h->x, h->x_at), h->n, t->d, &says->rows, e);
    case OP_SCORES:
        b = batch_of(t, k, none);
        return do_scores(t, k, &b, says, e);
    case OP_WALKS:
        b = batch_of(t, k, none);
        return do_walks(t, k, &b, says, e);
    case OP_MIX:
        b = batch_of(t, k, none);
        return do_mix(t, k, &b, says, e);
    case OP_LOGITS:
        decoder_fail(t->dc, k->failed);
        return decoder_logits(t->dc, row_at(t, h->x, h->x_at), k->list[L_ROW], h->n, k->out, e);
    case OP_PAGE_COPY:
        TRY(k->failed);
        return t->ops->page_copy(t->st, &(struct page_copy_args){ .shape = t->kv, .src = k->list[L_ROW], .dst = k->list[L_TO],
                                                                  .n = h->n }, e);
    case OP_COMPACT:
        TRY(k->failed);
        return t->ops->kv_compact(t->st, &(struct kv_compact_args){ .shape = t->kv, .n_views = 1, .view = k->view,
                                                                    .row = &k->list[L_ROW], .n = &h->n }, e);
    }
    return err_set(e, E_INTERNAL, "task %u is none", h->op);
}

/* The leader: a task to all, done here too, and what came of it everywhere. */
static status give(struct team *t, struct task *k, struct err *e)
{
    struct reply says = { 0 };
    struct err why;
    if (e == NULL) e = &why;
    if (t->comm && k->on_device) return err_set(e, E_INTERNAL, "lists of the device for %u ranks", t->size);
    if (t->comm) {
        size_t n = 0;
        status st = write_task(t, k, &n, e);
        if (st == OK) st = comm_post_all(t->comm, TAG_TASK, t->message, n * sizeof(uint32_t), e);
        if (st != OK) {
            if (k->h.op == OP_STEP) forget(t);
            return st;
        }
        if (k->h.op == OP_STEP) t->forget = false;
        t->serving = true;
        t->counts.tasks++;
        t->counts.bytes += n * sizeof(uint32_t);
    }
    status st = do_task(t, k, &says, e);
    if (k->h.op == OP_RELEASE || k->h.op == OP_STOP) return st;
    st = settle(t, &says, st, e);
    if (st != OK && k->h.op == OP_STEP) forget(t);
    return st;
}

/* ---- life ---------------------------------------------------------------------------------------------------- */

static void team_free(struct team **pt)
{
    struct team *t = *pt;
    if (t == NULL) return;
    for (size_t i = 0; i < t->rows_cap; i++) do_release(t, (uint32_t)i);
    t->ops->release(t->st, t->kv.base);
    t->ops->release(t->st, t->embeds);
    for (size_t i = 0; i < t->known_cap; i++) free(t->known[i].page);
    void *host[] = { t->rows, t->message, t->same, t->iota, t->start, t->visible, t->view, t->known, t->score, t->looked,
                     t->packed, t->reply, t->reply_bytes };
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    free(t);
    *pt = NULL;
}

status team_open(struct decoder *dc, struct comm *c, bool check, struct team **out, struct err *e)
{
    struct team *t;
    const struct decoder_shape *s = decoder_shape(dc);
    TRY(mem_alloc(&t, 1, sizeof *t, e));
    *t = (struct team){ .dc = dc, .st = decoder_stream(dc), .ops = decoder_stream(dc)->ops, .size = 1, .L = s->L, .d = s->d,
                        .D = s->D, .check = check, .kv = decoder_kv_shape(dc) };
    *out = t;
    t->alone = c == NULL || (comm_size(c) == 1 && !comm_attached(c));
    if (c == NULL || comm_size(c) == 1) return OK;
    t->comm = c;
    t->rank = comm_rank(c);
    t->size = comm_size(c);
    status st = mem_alloc(&t->reply, t->size, sizeof *t->reply, e);
    if (st == OK) st = mem_alloc(&t->reply_bytes, t->size, sizeof *t->reply_bytes, e);
    if (st == OK && t->rank) st = mem_alloc(&t->score, decoder_max_keys(dc), sizeof(float), e);
    for (uint32_t r = 0; st == OK && r < t->size; r++) t->reply_bytes[r] = sizeof *t->reply;
    if (st != OK) team_free(out);
    return st;
}

void team_close(struct team **pt)
{
    struct team *t = *pt;
    if (t == NULL) return;
    struct task k = { .h = { .op = OP_STOP } };
    if (t->serving) give(t, &k, NULL);
    team_free(pt);
}

status team_work(struct team *t, struct err *e)
{
    for (;;) {
        struct comm_message m;
        struct task k;
        struct err why = { 0 };
        struct reply says = { 0 };
        bool got;
        TRY(comm_take(t->comm, 0, TAG_TASK, INFINITY, &m, &got, e));
        if (!got) continue;
        status st = read_task(t, &m, &k, &why);
        if (st == OK) {
            st = do_task(t, &k, &says, &why);
            if (k.h.op == OP_STOP) {
                free(m.bytes);
                return OK;
            }
            if (k.h.op != OP_RELEASE) st = settle(t, &says, st, &why);
        }
        free(m.bytes);
        if (st == E_INTERNAL || t->lost) {
            if (e) *e = why;
            return st;
        }
    }
}

struct team_counts team_read_counts(const struct team *t) { return t->counts; }
bool team_alone(const struct team *t) { return t->alone; }

/* ---- the leader's calls -------------------------------------------------------------------------------------- */

static void put_list(struct task *k, enum list i, const uint32_t *v, uint32_t n)
{
    k->list[i] = v;
    k->h.n_list[i] = n;
}

void team_reserve(struct team *t, const struct reserve_args *a)
{
    t->reserve = *a;
    t->reserves = true;
}

status team_pages(struct team *t, uint32_t n, struct kv_shape *out, struct err *e)
{
    struct task k = { .h = { .op = OP_PAGES, .n = n } };
    TRY(give(t, &k, e));
    *out = t->kv;
    return OK;
}

status team_rows_open(struct team *t, uint32_t n, uint32_t width, struct team_rows **out, struct err *e)
{
    uint32_t id = 0;
    while (id < t->rows_cap && t->rows[id]) id++;
    struct task k = { .h = { .op = OP_ROWS, .n = n, .x = id, .width = width } };
    const status st = give(t, &k, e);
    if (st != OK) {
        k.h.op = OP_RELEASE;
        if (t->comm) give(t, &k, NULL);
        do_release(t, id);
        return st;
    }
    *out = t->rows[id];
    return OK;
}

status team_angles_open(struct team *t, uint32_t n, struct team_rows **out, struct err *e)
{
    return team_rows_open(t, n, t->D / 2 * 2, out, e);
}

void team_rows_close(struct team *t, struct team_rows **r)
{
    if (*r == NULL) return;
    struct task k = { .h = { .op = OP_RELEASE, .x = (*r)->id } };
    const uint32_t id = k.h.x;
    if (give(t, &k, NULL) != OK) do_release(t, id);        /* nobody is there to be told */
    *r = NULL;
}

status team_read(struct team *t, const struct team_rows *r, uint32_t at, uint32_t n, float *host, struct err *e)
{
    return t->ops->download(t->st, host, row_at(t, r->id, at), (size_t)n * r->width * sizeof(float), e);
}

status team_angles(struct team *t, const int32_t *const pos[3], uint32_t n, struct team_rows *angles, uint32_t at, struct err *e)
{
    struct task k = { .h = { .op = OP_ANGLES, .n = n, .angles = angles->id, .x_at = at } };
    for (int i = 0; i < 3; i++) put_list(&k, L_POS + i, (const uint32_t *)pos[i], n);
    return give(t, &k, e);
}

static status check_ids(const struct team *t, const int32_t *id, uint32_t n, struct err *e)
{
    const uint32_t V = decoder_shape(t->dc)->V;
    for (uint32_t i = 0; t->comm && i < n; i++)
        if (id[i] < 0 || (uint32_t)id[i] >= V)
            return err_set(e, E_ARG, "token id %d at %u is outside the vocabulary of %u rows", id[i], i, V);
    return OK;
}

status team_embed(struct team *t, const int32_t *id, uint32_t n, struct team_rows *x, struct err *e)
{
    struct task k = { .h = { .op = OP_EMBED, .n = n, .x = x->id } };
    TRY(check_ids(t, id, n, e));
    put_list(&k, L_ID, (const uint32_t *)id, n);
    return give(t, &k, e);
}

status team_put(struct team *t, const float *from, const uint32_t *row, const uint32_t *to, uint32_t n, struct team_rows *x,
                struct team_rows *spare, struct err *e)
{
    struct task k = { .h = { .op = OP_PUT, .n = n, .x = x->id, .y = spare->id }, .from = from };
    k.list[L_ROW] = row;           /* places in the leader's memory: nobody else's business */
    put_list(&k, L_TO, to, n);
    return give(t, &k, e);
}

status team_gather(struct team *t, const struct team_rows *from, const uint32_t *row, uint32_t n, struct team_rows *y,
                   uint32_t to, struct err *e)
{
    struct task k = { .h = { .op = OP_GATHER, .n = n, .x = from->id, .y = y->id, .y_at = to } };
    put_list(&k, L_ROW, row, n);
    return give(t, &k, e);
}

static struct task task_of(enum op op, uint32_t layer, const struct team_batch *b)
{
    return (struct task){ .h = { .op = op, .layer = layer, .x = b->x->id, .x_at = b->at, .angles = b->angles->id,
                                 .n_views = b->b.n_seqs },
                          .view = b->b.view, .on_device = b->b.on_device };
}

/* The rows that a batch's sequences have. */
static void put_batch(struct task *k, const struct team_batch *b, const uint32_t *kv_start)
{
    const uint32_t n_seqs = b->b.n_seqs;
    k->h.n = b->b.seq_start[n_seqs];
    put_list(k, L_SEQ_START, b->b.seq_start, n_seqs + 1);
    put_list(k, L_KV_START, kv_start, n_seqs);
    put_list(k, L_ANGLE, b->b.angle, k->h.n);
}

status team_kv(struct team *t, uint32_t layer, const struct team_batch *b, const uint32_t *kv_start, struct err *e)
{
    struct task k = task_of(OP_KV, layer, b);
    put_batch(&k, b, kv_start);
    return give(t, &k, e);
}

status team_layer(struct team *t, uint32_t layer, const struct team_batch *b, const uint32_t *kv_start, const uint32_t *visible,
                  struct err *e)
{
    struct task k = task_of(OP_LAYER, layer, b);
    put_batch(&k, b, kv_start);
    put_list(&k, L_VISIBLE, visible, k.h.n);
    return give(t, &k, e);
}

static void put_rows(struct task *k, const struct decoder_rows *r)
{
    k->h.n = r->n;
    k->on_device = r->on_device;
    put_list(k, L_KEEP, r->row, r->row ? r->n : 0);
    put_list(k, L_ANGLE, r->angle, r->n);
    put_list(k, L_VISIBLE, r->visible, r->n);
}

status team_scores(struct team *t, uint32_t layer, const struct team_batch *b, uint32_t s, const struct decoder_rows *query,
                   float *score, struct err *e)
{
    struct task k = task_of(OP_SCORES, layer, b);
    k.h.n_views = 1;
    k.h.width = b->b.view[s].n_rows;
    k.view = b->b.view + s;
    k.out = score;
    put_rows(&k, query);
    return give(t, &k, e);
}

status team_choose(struct team *t, uint32_t layer, const struct team_batch *b, uint32_t s, const struct decoder_rows *query,
                   struct choose_args *c, struct err *e)
{
    struct decoder_batch of = b->b;
    of.cos = b->angles->x;
    of.sin = sin_of(t, b->angles);
    of.kv = t->kv;
    return decoder_choose(t->dc, layer, &of, s, row_at(t, b->x->id, b->at), query, c, e);
}

status team_walks(struct team *t, uint32_t layer, const struct team_batch *b, float *score, struct err *e)
{
    struct task k = task_of(OP_WALKS, layer, b);
    k.h.n_views = 0;
    k.h.n = b->b.seq_start[1];
    k.out = score;
    put_list(&k, L_SEQ_START, b->b.seq_start, 2);
    put_list(&k, L_ANGLE, b->b.angle, k.h.n);
    return give(t, &k, e);
}

status team_mix(struct team *t, uint32_t layer, const struct team_batch *b, const struct decoder_rows *keep, const uint32_t *out_start,
                struct team_rows *y, uint32_t y_at, struct err *e)
{
    struct task k = task_of(OP_MIX, layer, b);
    if (keep->n == 0) return OK;
    put_list(&k, L_OUT_START, out_start, b->b.n_seqs + 1);
    put_rows(&k, keep);
    if (keep->row) {
        k.h.y = y->id;
        k.h.y_at = y_at;
    }
    return give(t, &k, e);
}

status team_step(struct team *t, const int32_t *id, const int32_t *pos, uint32_t n, const struct kv_view *view,
                 struct team_rows *angles, struct team_rows *x, struct err *e)
{
    struct task k = { .h = { .op = OP_STEP, .n = n, .x = x->id, .angles = angles->id, .n_views = t->L * n }, .view = view };
    TRY(check_ids(t, id, n, e));
    put_list(&k, L_ID, (const uint32_t *)id, n);
    put_list(&k, L_POS, (const uint32_t *)pos, n);
    return give(t, &k, e);
}

status team_logits(struct team *t, const struct team_rows *x, uint32_t at, const uint32_t *row, uint32_t n, float *logits,
                   struct err *e)
{
    struct task k = { .h = { .op = OP_LOGITS, .n = n, .x = x->id, .x_at = at }, .out = logits };
    if (row) put_list(&k, L_ROW, row, n);
    return give(t, &k, e);
}

status team_tops(struct team *t, const struct team_rows *x, uint32_t at, const uint32_t *row, uint32_t n, const uint8_t *allowed,
                 struct top_row *top, struct err *e)
{
    return decoder_tops(t->dc, row_at(t, x->id, at), row, n, allowed, top, e);
}

status team_tops_row(struct team *t, uint32_t i, float *logits, struct err *e) { return decoder_tops_row(t->dc, i, logits, e); }

status team_page_copy(struct team *t, const uint32_t *src, const uint32_t *dst, uint32_t n, struct err *e)
{
    struct task k = { .h = { .op = OP_PAGE_COPY, .n = n } };
    put_list(&k, L_ROW, src, n);
    put_list(&k, L_TO, dst, n);
    return give(t, &k, e);
}

status team_compact(struct team *t, const struct kv_view *view, const uint32_t *row, uint32_t n, struct err *e)
{
    struct task k = { .h = { .op = OP_COMPACT, .n = n, .n_views = 1 }, .view = view };
    put_list(&k, L_ROW, row, n);
    return give(t, &k, e);
}

void team_towers(struct team *t, struct audio_tower *audio, struct vision_tower *vision)
{
    t->audio = audio;
    t->vision = vision;
}

status team_vision(struct team *t, const float *patches, uint32_t t_steps, uint32_t h, uint32_t w, float *embeds, float *saliency,
                   struct err *e)
{
    if (t->comm == NULL || t_steps == 0) return vision_tower_run(t->vision, patches, t_steps, h, w, embeds, saliency, e);
    struct task k = { .h = { .op = OP_VISION, .n = t_steps, .x = h, .y = w, .x_at = saliency != NULL,
                             .width = h * w * vision_tower_patch(t->vision) },
                      .from = patches, .out = embeds, .saliency = saliency };
    return give(t, &k, e);
}

status team_audio(struct team *t, const float *mel, uint32_t n_frames, uint32_t f0, uint32_t n, float *embeds, float *saliency,
                  struct err *e)
{
    if (t->comm == NULL) return audio_tower_part(t->audio, mel, n_frames, f0, n, embeds, saliency, e);
    struct task k = { .h = { .op = OP_AUDIO, .n = n, .x_at = saliency != NULL, .width = audio_tower_bins(t->audio) },
                      .from = mel, .out = embeds, .saliency = saliency, .stride = n_frames, .f0 = f0 };
    return give(t, &k, e);
}
