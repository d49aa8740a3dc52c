/* The decoder's calls in every order that the engine may choose. Method: decoders of random weights and odd shapes (one
 * KV head, D 24, MLP 91), on every instruction set, in f32 and bf16; several sequences lose random tokens, or the least
 * important ones, at random layers, then decode. Score first or in the textbook order, chosen by the host or by the device
 * (decoder_choose, lists that stay there), alone or in a shuffled batch, in blocks of 7, 64 or 1032 rows, on 1 to 3
 * threads: scores, survivors and logits must be the same bits. And decoded rows must be those of a longer prompt (f32:
 * 1e-5). SEED=n repeats a run. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "model/decoder.h"

enum { N_SEQS = 5, N_MAX = 230, N_QUERY = 5, N_STEPS = 3, L_MAX = 4, V_MAX = 160 };
enum { ROWS_MAX = N_SEQS * (N_MAX + N_STEPS), KEYS_MAX = N_MAX + N_STEPS };

static uint64_t seed0;

/* A hash, so that what is drawn depends on its name alone. */
static uint32_t draw(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t z = seed0 + a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + c * 0x94d049bb133111ebu + 1;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static float unit(uint64_t a, uint64_t b, uint64_t c)
{
    return (float)draw(a, b, c) / 2147483648.0f - 1.0f;
}

/* ---- a decoder -------------------------------------------------------------------------------------------- */

static const struct decoder_shape SHAPES[] = {
    { .L = 3,
      .H = 4,
      .G = 1,
      .D = 24,
      .d = 48,
      .ff = 91,
      .V = 131,
      .rms_eps = 1e-6f,
      .rope_theta = 10000,
      .mrope_section = { 4, 4, 4 },
      .tied = true },
    { .L = 4,
      .H = 6,
      .G = 3,
      .D = 16,
      .d = 56,
      .ff = 64,
      .V = 160,
      .rms_eps = 1e-6f,
      .rope_theta = 1e6,
      .mrope_section = { 2, 3, 3 } },
};
enum { N_SHAPES = sizeof SHAPES / sizeof *SHAPES };

struct random_weights {
    struct decoder_shape s;
    float *w[2], *b[2];
};

static status random_weight(void *self, enum decoder_role role, uint32_t l, struct weight_args *a,
                            struct err *e)
{
    struct random_weights *r = self;
    const struct decoder_shape *s = &r->s;
    const uint32_t q = s->H * s->D, g = s->G * s->D;
    const struct {
        uint32_t parts, n, k;
        bool bias;
        float size;
    } of[] = { [DEC_QKV_Q] = { 1, q, s->d, true, 2 },      [DEC_QKV_KV] = { 2, g, s->d, true, 2 },
               [DEC_O] = { 1, s->d, q, false, 1 },         [DEC_GATE_UP] = { 2, s->ff, s->d, false, 1 },
               [DEC_DOWN] = { 1, s->d, s->ff, false, 1 },  [DEC_EMBED] = { 1, s->V, s->d, false, 8 },
               [DEC_LM_HEAD] = { 1, s->V, s->d, false, 1 } };
    (void)e;
    a->form = role == DEC_GATE_UP ? WEIGHT_SWIGLU : WEIGHT_PLAIN;
    a->n_parts = of[role].parts;
    a->k = of[role].k;
    for (uint32_t p = 0; p < a->n_parts; p++) {
        const size_t n = (size_t)of[role].n * of[role].k;
        r->w[p] = mem_must(n, sizeof(float));
        r->b[p] = of[role].bias ? mem_must(of[role].n, sizeof(float)) : NULL;
        const float size = of[role].size / sqrtf((float)of[role].k);
        for (size_t i = 0; i < n; i++) r->w[p][i] = size * unit(1 + role * 2 + p, l, i);
        for (uint32_t i = 0; r->b[p] && i < of[role].n; i++)
            r->b[p][i] = 0.1f * unit(100 + role * 2 + p, l, i);
        a->part[p] = (struct weight_part){
            .data = r->w[p], .dtype = DT_F32, .n = of[role].n, .bias = r->b[p], .bias_dtype = DT_F32
        };
    }
    return OK;
}

static status random_norm(void *self, enum decoder_role role, uint32_t l, float *out, struct err *e)
{
    (void)e;
    for (uint32_t i = 0; i < ((struct random_weights *)self)->s.d; i++)
        out[i] = 1 + 0.2f * unit(200 + role, l, i);
    return OK;
}

static void random_done(void *self, enum decoder_role role, uint32_t l)
{
    struct random_weights *r = self;
    (void)role;
    (void)l;
    for (int p = 0; p < 2; p++) {
        free(r->w[p]);
        free(r->b[p]);
        r->w[p] = r->b[p] = NULL;
    }
}

struct setup {
    const char *isa;
    int threads;
    enum dtype dtype;
    uint32_t max_rows;
    const struct decoder_shape *shape;
};

struct machine {
    struct stream *st;
    struct decoder *dec;
    struct decoder_shape s;
    struct kv_shape kv;
    uint32_t n_pages, per;
    float *x, *y, *cos, *sin;
};

#define MUST(expr)                                                                                           \
    do {                                                                                                     \
        struct err e;                                                                                        \
        if ((expr) != OK) fail_msg("SEED=%llu %s", (unsigned long long)seed0, e.text);                       \
    } while (0)

static void machine_open(struct machine *m, const struct setup *u)
{
    const struct stream_options so = { .device = "cpu", .n_threads = u->threads, .isa = u->isa };
    struct random_weights weights = { .s = *u->shape };
    const struct decoder_source src = { random_weight, random_norm, random_done, &weights };
    memset(m, 0, sizeof *m);
    m->s = *u->shape;
    MUST(stream_open(&so, &m->st, &e));
    MUST(decoder_create(m->st, u->shape, &src, u->dtype, u->dtype, u->max_rows, KEYS_MAX, &m->dec, &e));
    m->kv = decoder_kv_shape(m->dec);
    m->per = m->kv.page_tokens;
    m->n_pages = N_SEQS * L_MAX * ((KEYS_MAX + m->per - 1) / m->per);
    const struct ops *ops = m->st->ops;
    MUST(ops->alloc(m->st, m->n_pages * m->kv.page_bytes, &m->kv.base, &e));
    MUST(ops->alloc(m->st, (size_t)ROWS_MAX * m->s.d * sizeof(float), (void **)&m->x, &e));
    MUST(ops->alloc(m->st, (size_t)ROWS_MAX * m->s.d * sizeof(float), (void **)&m->y, &e));
    MUST(ops->alloc(m->st, (size_t)ROWS_MAX * m->s.D / 2 * sizeof(float), (void **)&m->cos, &e));
    MUST(ops->alloc(m->st, (size_t)ROWS_MAX * m->s.D / 2 * sizeof(float), (void **)&m->sin, &e));
}

static void machine_close(struct machine *m)
{
    void *device[] = { m->kv.base, m->x, m->y, m->cos, m->sin };
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) m->st->ops->release(m->st, device[i]);
    decoder_destroy(&m->dec);
    m->st->ops->close(&m->st);
}

/* ---- sequences -------------------------------------------------------------------------------------------- */

/* A prompt: [0, first) text, [first, last) media, [last, n) text, of which rows [ask, ask + n_query) ask: the last
 * ones, unless n was made longer. */
struct seq {
    uint32_t name, n, first, last, ask, n_query;
    bool by_score, whole;
};

static struct seq seq_of(uint32_t name, bool whole)
{
    static const uint32_t lengths[N_SEQS] = { 1, 17, 64, 150, N_MAX };
    struct seq q = { .name = name, .n = lengths[name], .by_score = name % 2 == 0, .whole = whole };
    q.n_query = q.n < N_QUERY ? 1 : N_QUERY - name % 2;
    q.ask = q.n - q.n_query;
    q.first = q.n < 8 ? 0 : 1 + draw(300, name, 0) % 4;
    q.last = q.n < 8 ? 0 : q.n - N_QUERY - draw(300, name, 1) % 3;
    return q;
}

static int32_t token(const struct machine *m, uint32_t name, uint32_t i)
{
    return (int32_t)(draw(301, name, i) % m->s.V);
}

/* The three positions of token i: as in film, they part on media and stay apart behind it. */
static int32_t position(const struct seq *q, uint32_t i, uint32_t axis)
{
    if (i < q->first || i >= q->last) return (int32_t)i;
    return (int32_t)(q->first + (axis == 0 ? (i - q->first) / 6 * 2 : (i - q->first) % (axis + 2)));
}

struct outcome {
    uint32_t n_alive[L_MAX + 1], index[L_MAX + 1][N_MAX];
    float score[L_MAX][N_MAX];
    float logits[1 + N_STEPS][V_MAX];
};

/* How many of n media tokens go at layer l. */
static uint32_t n_dropped(const struct seq *q, uint32_t l, uint32_t L, uint32_t n)
{
    if (q->whole || l + 1 == L || draw(302, q->name, l) % 4 == 0) return 0;
    return draw(303, q->name, l) % (n / 2 + 1);
}

/* Drop k of the media tokens among index[0..n): the lowest of score (by_score) or of a hash; ties: the later one.
 * keep: places that stay. Returns how many. */
static uint32_t choose(const struct seq *q, uint32_t l, const uint32_t *index, uint32_t n, const float *score,
                       uint32_t k, uint32_t *keep)
{
    bool gone[N_MAX] = { false };
    for (; k > 0; k--) {
        uint32_t worst = UINT32_MAX;
        double least = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (gone[i] || index[i] < q->first || index[i] >= q->last) continue;
            const double v =
                q->by_score ? (double)score[i] : (double)draw(304, q->name, (uint64_t)l << 32 | index[i]);
            if (worst == UINT32_MAX || v <= least) {
                worst = i;
                least = v;
            }
        }
        gone[worst] = true;
    }
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i++)
        if (!gone[i]) keep[m++] = i;
    return m;
}

/* ---- one march -------------------------------------------------------------------------------------------- */

struct rows { /* of a batch */
    uint32_t start[N_SEQS + 1], index[ROWS_MAX], angle[ROWS_MAX];
    uint32_t keep[ROWS_MAX], kept_angle[ROWS_MAX], visible[ROWS_MAX], out_start[N_SEQS + 1], all[ROWS_MAX];
    uint32_t row[ROWS_MAX], id[ROWS_MAX], see[ROWS_MAX]; /* of the device */
    uint8_t mark[ROWS_MAX];
    int32_t chunk[ROWS_MAX];
    uint32_t page[N_SEQS][L_MAX][KEYS_MAX], n_kv[N_SEQS][L_MAX]; /* pages, and rows written, of each table */
    uint32_t n_used;
};

/* Pages are handed out in a shuffled order: 7919 is prime to every count used here. */
static void add_pages(const struct machine *m, struct rows *b, uint32_t s, uint32_t l, uint32_t n)
{
    const uint32_t have = (b->n_kv[s][l] + m->per - 1) / m->per;
    b->n_kv[s][l] += n;
    for (uint32_t i = have; i < (b->n_kv[s][l] + m->per - 1) / m->per; i++, b->n_used++) {
        assert_true(b->n_used < m->n_pages && m->n_pages % 7919 != 0);
        b->page[s][l][i] = (uint32_t)((uint64_t)b->n_used * 7919 % m->n_pages);
    }
}

enum way { SCORE_FIRST, TEXTBOOK, ON_DEVICE };

/* The device's choice of n_gone media tokens of sequence s, to the front of b->row, id and see. */
static void choose_there(struct machine *m, struct rows *b, uint32_t l, const struct decoder_batch *batch,
                         uint32_t s, uint32_t n_query, uint32_t n_media, uint32_t n_gone, float *score)
{
    const uint32_t r0 = b->start[s], n = b->start[s + 1] - r0;
    struct decoder_rows ask = {
        .n = n_query, .row = b->row, .angle = b->id, .visible = b->see, .on_device = true
    };
    struct list_rows_args list = { .id = b->angle + r0,
                                   .n = n,
                                   .first = r0,
                                   .mark = b->mark,
                                   .of = 2,
                                   .n_out = n_query,
                                   .row = b->row,
                                   .out_id = b->id,
                                   .visible = b->see };
    struct choose_args c = { .n = n,
                             .first = r0,
                             .id = b->angle + r0,
                             .mark = b->mark,
                             .of = 1,
                             .chunk = b->chunk,
                             .n_of = n_media,
                             .k = n_gone,
                             .score = score,
                             .row = b->row,
                             .out_id = b->id,
                             .visible = b->see };
    MUST(m->st->ops->list_rows(m->st, &list, &e));
    MUST(decoder_choose(m->dec, l, batch, s, m->x, &ask, &c, &e));
}

static void prefill(struct machine *m, struct rows *b, const struct seq *q, uint32_t n_seqs, enum way way,
                    struct outcome *out)
{
    const struct ops *ops = m->st->ops;
    const uint32_t L = m->s.L, d = m->s.d;
    static int32_t id[ROWS_MAX], pos[3][ROWS_MAX];
    uint32_t n = 0;
    memset(b->n_kv, 0, sizeof b->n_kv);
    b->n_used = 0;
    for (uint32_t s = 0; s < n_seqs; s++) {
        b->start[s] = n;
        for (uint32_t i = 0; i < q[s].n; i++, n++) {
            b->index[n] = i;
            b->angle[n] = n;
            b->mark[n] = i >= q[s].first && i < q[s].last ? 1 : 0;
            if (i >= q[s].ask && i < q[s].ask + q[s].n_query) b->mark[n] |= 2;
            b->chunk[n] = 0;
            id[n] = token(m, q[s].name, i);
            for (uint32_t k = 0; k < 3; k++) pos[k][n] = position(&q[s], i, k);
        }
    }
    b->start[n_seqs] = n;
    MUST(decoder_angles(m->dec, (const int32_t *const[3]){ pos[0], pos[1], pos[2] }, n, m->cos, m->sin, &e));
    MUST(decoder_embed(m->dec, id, n, m->x, &e));
    for (uint32_t l = 0; l < L; l++) {
        struct kv_view view[N_SEQS];
        uint32_t kv_start[N_SEQS] = { 0 }, kept = 0;
        for (uint32_t s = 0; s < n_seqs; s++) {
            const uint32_t rows = b->start[s + 1] - b->start[s];
            add_pages(m, b, s, l, rows);
            view[s] = (struct kv_view){ .page = b->page[s][l], .n_rows = rows };
        }
        const struct decoder_batch batch = { .n_seqs = n_seqs,
                                             .seq_start = b->start,
                                             .view = view,
                                             .angle = b->angle,
                                             .on_device = way == ON_DEVICE,
                                             .cos = m->cos,
                                             .sin = m->sin,
                                             .kv = m->kv };
        MUST(decoder_kv(m->dec, l, &batch, m->x, kv_start, &e));
        for (uint32_t s = 0; s < n_seqs; s++) {
            struct outcome *o = &out[q[s].name];
            const uint32_t r0 = b->start[s], rows = b->start[s + 1] - r0;
            uint32_t ask[N_QUERY], ask_angle[N_QUERY], ask_see[N_QUERY], n_media = 0, stay[N_MAX];
            o->n_alive[l] = rows;
            memcpy(o->index[l], b->index + r0, rows * sizeof(uint32_t));
            for (uint32_t i = 0; i < rows; i++)
                n_media += b->index[r0 + i] >= q[s].first && b->index[r0 + i] < q[s].last;
            for (uint32_t i = 0; i < q[s].n_query; i++) /* where the rows that ask are now */
                for (uint32_t j = 0; j < rows; j++)
                    if (b->index[r0 + j] == q[s].ask + i) {
                        ask[i] = r0 + j;
                        ask_angle[i] = b->angle[r0 + j];
                        ask_see[i] = j + 1;
                    }
            const struct decoder_rows asking = {
                .n = q[s].n_query, .row = ask, .angle = ask_angle, .visible = ask_see
            };
            const uint32_t n_gone = n_dropped(&q[s], l, L, n_media);
            uint32_t n_stay;
            if (way == ON_DEVICE && q[s].by_score) {
                choose_there(m, b, l, &batch, s, q[s].n_query, n_media, n_gone, o->score[l]);
                n_stay = rows - n_gone;
                for (uint32_t i = 0; i < n_stay; i++) {
                    stay[i] = b->row[i] - r0;
                    assert_true(b->see[i] == stay[i] + 1 && b->id[i] == b->angle[b->row[i]]);
                }
            } else {
                MUST(decoder_scores(m->dec, l, &batch, s, m->x, &asking, o->score[l], &e));
                n_stay = choose(&q[s], l, b->index + r0, rows, o->score[l], n_gone, stay);
            }
            if (l + 1 == L) {
                stay[0] = rows - 1;
                n_stay = 1;
            }
            b->out_start[s] = kept;
            for (uint32_t i = 0; i < n_stay; i++) {
                b->keep[kept] = r0 + stay[i];
                b->kept_angle[kept] = b->angle[r0 + stay[i]];
                b->visible[kept++] = stay[i] + 1;
            }
        }
        b->out_start[n_seqs] = kept;
        const struct decoder_rows all = { .n = n, .angle = b->angle, .visible = b->all };
        const struct decoder_rows keep = { .n = kept,
                                           .row = b->keep,
                                           .angle = b->kept_angle,
                                           .visible = b->visible,
                                           .on_device = way == ON_DEVICE };
        if (way == TEXTBOOK) {
            for (uint32_t s = 0; s < n_seqs; s++)
                for (uint32_t i = b->start[s]; i < b->start[s + 1]; i++) b->all[i] = i - b->start[s] + 1;
            MUST(decoder_mix(m->dec, l, &batch, m->x, &all, b->start, m->x, &e));
            MUST(ops->gather(
                m->st, &(struct gather_args){ .x = m->x, .row = b->keep, .n = kept, .d = d, .y = m->y }, &e));
        } else {
            MUST(decoder_mix(m->dec, l, &batch, m->x, &keep, b->out_start, m->y, &e));
        }
        float *t = m->x;
        m->x = m->y;
        m->y = t;
        for (uint32_t i = 0; i < kept; i++) {
            b->index[i] = b->index[b->keep[i]];
            b->angle[i] = b->kept_angle[i];
        }
        memcpy(b->start, b->out_start, sizeof b->start);
        n = kept;
    }
    static float logits[N_SEQS * V_MAX];
    MUST(decoder_logits(m->dec, m->x, NULL, n_seqs, logits, &e));
    for (uint32_t s = 0; s < n_seqs; s++)
        memcpy(out[q[s].name].logits[0], logits + (size_t)s * m->s.V, m->s.V * sizeof(float));
}

/* N_STEPS more tokens of each sequence, those that a longer prompt would hold. */
static void decode(struct machine *m, struct rows *b, const struct seq *q, uint32_t n_seqs,
                   struct outcome *out)
{
    for (uint32_t step = 0; step < N_STEPS; step++) {
        int32_t id[N_SEQS], pos[N_SEQS];
        uint32_t start[N_SEQS + 1], visible[N_SEQS], kv_start[N_SEQS];
        for (uint32_t s = 0; s <= n_seqs; s++) start[s] = s;
        for (uint32_t s = 0; s < n_seqs; s++) {
            id[s] = token(m, q[s].name, q[s].n + step);
            pos[s] = (int32_t)(q[s].n + step);
        }
        MUST(decoder_angles(m->dec, (const int32_t *const[3]){ pos, pos, pos }, n_seqs, m->cos, m->sin, &e));
        MUST(decoder_embed(m->dec, id, n_seqs, m->x, &e));
        for (uint32_t l = 0; l < m->s.L; l++) {
            struct kv_view view[N_SEQS];
            for (uint32_t s = 0; s < n_seqs; s++) {
                kv_start[s] = b->n_kv[s][l];
                add_pages(m, b, s, l, 1);
                visible[s] = b->n_kv[s][l];
                view[s] = (struct kv_view){ .page = b->page[s][l], .n_rows = b->n_kv[s][l] };
            }
            const struct decoder_batch batch = { .n_seqs = n_seqs,
                                                 .seq_start = start,
                                                 .view = view,
                                                 .angle = start,
                                                 .cos = m->cos,
                                                 .sin = m->sin,
                                                 .kv = m->kv,
                                                 .decode = true };
            const struct decoder_rows all = { .n = n_seqs, .angle = start, .visible = visible };
            MUST(decoder_kv(m->dec, l, &batch, m->x, kv_start, &e));
            MUST(decoder_mix(m->dec, l, &batch, m->x, &all, start, m->x, &e));
        }
        static float logits[N_SEQS * V_MAX];
        MUST(decoder_logits(m->dec, m->x, NULL, n_seqs, logits, &e));
        for (uint32_t s = 0; s < n_seqs; s++)
            memcpy(out[q[s].name].logits[1 + step], logits + (size_t)s * m->s.V, m->s.V * sizeof(float));
    }
}

/* ---- the tests -------------------------------------------------------------------------------------------- */

struct march {
    uint32_t order[N_SEQS], n;
    enum way way;
};

static void march(const struct setup *u, const struct march *list, uint32_t n_list, struct outcome *out)
{
    struct machine m;
    struct rows *b = mem_must(1, sizeof *b);
    machine_open(&m, u);
    for (uint32_t k = 0; k < n_list; k++) {
        struct seq q[N_SEQS];
        for (uint32_t s = 0; s < list[k].n; s++) q[s] = seq_of(list[k].order[s], false);
        prefill(&m, b, q, list[k].n, list[k].way, out);
        decode(&m, b, q, list[k].n, out);
    }
    machine_close(&m);
    free(b);
}

static void assert_same(const struct outcome *a, const struct outcome *b, const struct decoder_shape *s,
                        const char *how)
{
    for (uint32_t name = 0; name < N_SEQS; name++) {
        const struct outcome *x = &a[name], *y = &b[name];
        for (uint32_t l = 0; l < s->L; l++) {
            if (x->n_alive[l] != y->n_alive[l] ||
                memcmp(x->index[l], y->index[l], x->n_alive[l] * sizeof(uint32_t)) != 0)
                fail_msg("SEED=%llu %s: sequence %u: other rows enter layer %u", (unsigned long long)seed0,
                         how, name, l);
            if (memcmp(x->score[l], y->score[l], x->n_alive[l] * sizeof(float)) != 0)
                fail_msg("SEED=%llu %s: sequence %u: other scores at layer %u", (unsigned long long)seed0,
                         how, name, l);
        }
        for (uint32_t t = 0; t <= N_STEPS; t++)
            if (memcmp(x->logits[t], y->logits[t], s->V * sizeof(float)) != 0)
                fail_msg("SEED=%llu %s: sequence %u: other logits at step %u", (unsigned long long)seed0, how,
                         name, t);
    }
}

static void test_one_result(void **state)
{
    (void)state;
    static const struct march alone[N_SEQS] = { { { 0 }, 1, SCORE_FIRST },
                                                { { 1 }, 1, SCORE_FIRST },
                                                { { 2 }, 1, SCORE_FIRST },
                                                { { 3 }, 1, SCORE_FIRST },
                                                { { 4 }, 1, SCORE_FIRST } };
    static const struct {
        uint32_t max_rows;
        int threads;
        struct march m;
        const char *how;
    } ways[] = {
        { 1032, 1, { { 0, 1, 2, 3, 4 }, 5, TEXTBOOK }, "textbook order" },
        { 7, 2, { { 4, 2, 0, 3, 1 }, 5, SCORE_FIRST }, "blocks of 7, 2 threads, shuffled" },
        { 64, 3, { { 3, 0, 4, 1, 2 }, 5, ON_DEVICE }, "on the device, blocks of 64, 3 threads, shuffled" },
        { 64, 2, { { 1, 3, 2, 4, 0 }, 5, TEXTBOOK }, "textbook order, blocks of 64, 2 threads, shuffled" },
    };
    struct outcome *want = mem_must(N_SEQS, sizeof *want), *got = mem_must(N_SEQS, sizeof *got);
    uint32_t dropped = 0;
    for (const char *const *isa = cpu_isas(); *isa; isa++)
        for (uint32_t k = 0; k < 2 * N_SHAPES; k++) {
            const struct decoder_shape *s = &SHAPES[k / 2];
            struct setup u = {
                .isa = *isa, .threads = 1, .dtype = k % 2 ? DT_BF16 : DT_F32, .max_rows = 1032, .shape = s
            };
            memset(want, 0, N_SEQS * sizeof *want);
            march(&u, alone, N_SEQS, want);
            for (uint32_t name = 0; name < N_SEQS; name++) {
                dropped += want[name].n_alive[0] - want[name].n_alive[s->L - 1];
                for (uint32_t t = 0; t <= N_STEPS; t++)
                    for (uint32_t i = 0; i < s->V; i++) assert_true(isfinite(want[name].logits[t][i]));
            }
            for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
                char how[128];
                snprintf(how, sizeof how, "%s %s shape %u, %s", *isa, k % 2 ? "bf16" : "f32", k / 2,
                         ways[w].how);
                u.threads = ways[w].threads;
                u.max_rows = ways[w].max_rows;
                memset(got, 0, N_SEQS * sizeof *got);
                march(&u, &ways[w].m, 1, got);
                assert_same(want, got, s, how);
            }
        }
    assert_true(dropped > 0);
    free(want);
    free(got);
}

static double distance(const float *a, const float *b, uint32_t n)
{
    double diff = 0, norm = 0;
    for (uint32_t i = 0; i < n; i++) {
        diff += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(diff / norm);
}

/* Logits after t decoded tokens against those of a prompt that ends with these t tokens. */
static void test_decode_is_a_longer_prompt(void **state)
{
    (void)state;
    struct outcome *short_one = mem_must(N_SEQS, sizeof *short_one),
                   *long_one = mem_must(N_SEQS, sizeof *long_one);
    struct rows *b = mem_must(1, sizeof *b);
    for (const char *const *isa = cpu_isas(); *isa; isa++)
        for (uint32_t k = 0; k < 2 * N_SHAPES; k++) {
            const struct setup u = { .isa = *isa,
                                     .threads = 2,
                                     .dtype = k % 2 ? DT_BF16 : DT_F32,
                                     .max_rows = 64,
                                     .shape = &SHAPES[k / 2] };
            const double tol = k % 2 ? 0.03 : 1e-5;
            struct machine m;
            machine_open(&m, &u);
            for (uint32_t i = 0; i < 2 * (N_SEQS - 1); i++) {
                const uint32_t name = i / 2;
                struct seq q = seq_of(name, i % 2);
                prefill(&m, b, &q, 1, SCORE_FIRST, short_one);
                decode(&m, b, &q, 1, short_one);
                for (uint32_t t = 1; t <= N_STEPS; t++) {
                    struct seq more = q;
                    more.n += t;
                    prefill(&m, b, &more, 1, ON_DEVICE, long_one);
                    const double far = distance(short_one[name].logits[t], long_one[name].logits[0], m.s.V);
                    if (!(far <= tol))
                        fail_msg("SEED=%llu %s %s: sequence %u step %u: %g from the longer prompt",
                                 (unsigned long long)seed0, *isa, k % 2 ? "bf16" : "f32", name, t, far);
                }
            }
            machine_close(&m);
        }
    free(b);
    free(short_one);
    free(long_one);
}

int main(void)
{
    const char *s = getenv("SEED");
    seed0 = s ? strtoull(s, NULL, 10) : 1;
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_one_result),
                                        cmocka_unit_test(test_decode_is_a_longer_prompt) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
