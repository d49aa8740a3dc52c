/* engine/decode.c - one token of every running choice: one row each through all layers, then logits and samples.
 * A request that was preempted feeds its own ids again, row by row, so that its pages hold the bits that they held. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"

struct decode_buffers {
    uint32_t cap;                  /* rows of the two below */
    struct team_rows *x, *angles;
    struct eng_choice **choice;    /* [rows] */
    uint32_t *row;                 /* [rows] */
    struct kv_view *view;          /* [L][rows] */
    int32_t *id, *pos;
    size_t choice_cap, row_cap, view_cap, id_cap, pos_cap;
    float *logits;                 /* host [min(rows, LOGIT_ROWS), V]; one row where the device finds candidates */
    size_t logits_cap;
    struct top_row *top;           /* [LOGIT_ROWS] then */
    size_t top_cap;
};

static void release_rows(struct engine *en, struct decode_buffers *b)
{
    team_rows_close(en->team, &b->x);
    team_rows_close(en->team, &b->angles);
    b->cap = 0;
}

void decode_free(struct engine *en)
{
    struct decode_buffers *b = en->decode;
    if (b == NULL) return;
    release_rows(en, b);
    void *host[] = { b->choice, b->row, b->view, b->id, b->pos, b->logits, b->top };
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    free(b);
    en->decode = NULL;
}

static status open_rows(struct engine *en, struct decode_buffers *b, uint32_t cap, struct err *e)
{
    TRY(team_rows_open(en->team, cap, decoder_shape(en->dec)->d, &b->x, e));
    TRY(team_angles_open(en->team, cap, &b->angles, e));
    b->cap = cap;
    return OK;
}

status decode_prepare(struct engine *en, uint32_t rows, struct err *e)
{
    TRY(mem_alloc(&en->decode, 1, sizeof *en->decode, e));
    return open_rows(en, en->decode, rows, e);
}

static status grow(struct engine *en, uint32_t rows, struct err *e)
{
    if (en->decode == NULL) TRY(mem_alloc(&en->decode, 1, sizeof *en->decode, e));
    struct decode_buffers *b = en->decode;
    const struct decoder_shape *s = decoder_shape(en->dec);
    TRY(mem_grow(&b->choice, &b->choice_cap, rows, sizeof *b->choice, e));
    TRY(mem_grow(&b->row, &b->row_cap, rows, sizeof(uint32_t), e));
    TRY(mem_grow(&b->view, &b->view_cap, (size_t)s->L * rows, sizeof *b->view, e));
    TRY(mem_grow(&b->id, &b->id_cap, rows, sizeof(int32_t), e));
    TRY(mem_grow(&b->pos, &b->pos_cap, rows, sizeof(int32_t), e));
    const uint32_t whole = en->allowed_there ? 1 : rows < LOGIT_ROWS ? rows : LOGIT_ROWS;
    TRY(mem_grow(&b->logits, &b->logits_cap, (size_t)whole * s->V, sizeof(float), e));
    if (en->allowed_there) TRY(mem_grow(&b->top, &b->top_cap, LOGIT_ROWS, sizeof *b->top, e));
    if (rows <= b->cap) return OK;
    if (en->ops->reserve) return err_set(e, E_INTERNAL, "a step of %u sequences: %u were planned", rows, b->cap);
    release_rows(en, b);
    return open_rows(en, b, rows + 15, e);
}

/* Take the token of c from its logits; what fails ends the request alone. */
static status take(struct engine *en, struct eng_choice *c, struct token_row *row, march_fail fail, void *self, struct err *e)
{
    struct err why;
    if (!choice_open(c)) return OK;        /* another choice of the request was cancelled or failed */
    const status st = accept_token(en, c, row, &why);
    if (st == OK) return OK;
    *e = why;
    if (st == E_DEVICE || st == E_CANCELLED) return st;
    fail(self, c->r, &why);
    return OK;
}

/* Logits of rows at + row[i] of x, n of them at most LOGIT_ROWS: all of them here, or what the device found in each. */
static status find(struct engine *en, const struct team_rows *x, uint32_t at, const uint32_t *row, uint32_t n, struct err *e)
{
    struct decode_buffers *b = en->decode;
    if (en->allowed_there) return team_tops(en->team, x, at, row, n, en->allowed_there, b->top, e);
    return team_logits(en->team, x, at, row, n, b->logits, e);
}

/* Row i of what was found last. */
static struct token_row row_of(const struct engine *en, uint32_t i)
{
    const struct decode_buffers *b = en->decode;
    if (en->allowed_there) return (struct token_row){ .top = b->top + i, .row = i, .whole = b->logits };
    return (struct token_row){ .logits = b->logits + (size_t)i * decoder_shape(en->dec)->V };
}

status fork_choices(struct engine *en, struct eng_request *r, struct err *e)
{
    const uint32_t L = decoder_shape(en->dec)->L, per = en->info.page_tokens;
    const struct block_table *from = r->choice[0].table;
    uint32_t *src, n;
    TRY(mem_alloc(&src, 2 * (size_t)L, sizeof *src, e));
    uint32_t *dst = src + L;
    status st = OK;
    for (uint32_t i = 1; i < r->n_choices && st == OK; i++) {
        struct eng_choice *c = &r->choice[i];
        if (!choice_open(c)) continue;
        TRY_GOTO(st, mem_alloc(&c->table, L, sizeof *c->table, e), out);
        n = 0;
        for (uint32_t l = 0; l < L; l++) {
            struct block_table *t = &c->table[l];
            const uint32_t full = from[l].n_rows / per, rest = from[l].n_rows % per;
            TRY_GOTO(st, block_table_init(t, en->pool, r->bound[l] + r->n_new_max, e), out);
            block_table_share(t, en->pool, from[l].page, full);
            if (rest == 0) continue;
            block_table_append(t, en->pool, &r->sched.reservation, rest);
            src[n] = from[l].page[full];
            dst[n++] = t->page[full];
        }
        if (n) st = team_page_copy(en->team, src, dst, n, e);
    }
out:
    free(src);
    if (st == OK && !choice_open(&r->choice[0])) choice_drop_pages(en, &r->choice[0]);  /* it ended before a preemption */
    return st;
}

status first_tokens(struct engine *en, struct eng_request *const *reqs, uint32_t n, const struct team_rows *x, march_ready ready,
                    void *group, march_fail fail, void *self, struct err *e)
{
    const struct decoder_shape *s = decoder_shape(en->dec);
    TRY(grow(en, n, e));
    for (uint32_t i0 = 0; i0 < n; i0 += LOGIT_ROWS) {
        const uint32_t k = n - i0 < LOGIT_ROWS ? n - i0 : LOGIT_ROWS;
        TRY(find(en, x, i0, NULL, k, e));
        if (i0 == 0) TRY(ready(en, group, e));
        for (uint32_t i = 0; i < k; i++) {
            struct eng_request *r = reqs[i0 + i];
            struct token_row row = row_of(en, i);
            const struct eng_trace *t = r->o.trace;
            struct err why;
            const status st = fork_choices(en, r, &why);
            if (st != OK) {
                *e = why;
                if (st == E_DEVICE) return st;
                fail(self, r, &why);
                continue;
            }
            if (r->choice[0].n_ids == 0 && t && t->logits) {
                TRY(token_logits(en, &row, e));
                t->logits(t->self, row.logits, s->V);
            }
            for (uint32_t j = 0; j < r->n_choices && !r->over; j++)
                if (r->choice[j].n_ids == 0) TRY(take(en, &r->choice[j], &row, fail, self, e));
        }
    }
    return OK;
}

/* The rows of this step: the id that each choice has not fed yet, with a row more in every layer's pages. */
static status feed(struct engine *en, uint32_t n, struct err *e)
{
    struct decode_buffers *b = en->decode;
    for (uint32_t i = 0; i < n; i++) {
        struct eng_choice *c = b->choice[i];
        b->id[i] = c->ids[c->n_played];
        b->pos[i] = c->r->prompt.next_pos + (int32_t)c->n_played;
        c->n_played++;
    }
    for (uint32_t l = 0; l < decoder_shape(en->dec)->L; l++)
        for (uint32_t i = 0; i < n; i++) {
            struct eng_choice *c = b->choice[i];
            struct block_table *t = &c->table[l];
            block_table_append(t, en->pool, &c->r->sched.reservation, 1);
            b->view[(size_t)l * n + i] = (struct kv_view){ .page = t->page, .n_rows = t->n_rows };
        }
    return team_step(en->team, b->id, b->pos, n, b->view, b->angles, b->x, e);
}

/* Logits and samples of the choices that fed their last id; those that feed old ones again need none. */
static status sample(struct engine *en, uint32_t n, march_fail fail, void *self, struct err *e)
{
    struct decode_buffers *b = en->decode;
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i++)
        if (b->choice[i]->n_played == b->choice[i]->n_ids) {
            b->choice[m] = b->choice[i];
            b->row[m++] = i;
        }
    for (uint32_t i0 = 0; i0 < m; i0 += LOGIT_ROWS) {
        const uint32_t k = m - i0 < LOGIT_ROWS ? m - i0 : LOGIT_ROWS;
        TRY(find(en, b->x, 0, b->row + i0, k, e));
        for (uint32_t i = 0; i < k; i++) {
            struct token_row row = row_of(en, i);
            TRY(take(en, b->choice[i0 + i], &row, fail, self, e));
        }
    }
    return OK;
}

status decode_step(struct engine *en, struct eng_request *const *reqs, uint32_t n, uint32_t *n_rows, march_fail fail,
                   void *self, struct err *e)
{
    uint32_t rows = 0, k = 0;
    const double start = clock_s();
    for (uint32_t i = 0; i < n; i++) rows += reqs[i]->n_open;
    TRY(grow(en, rows, e));
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < reqs[i]->n_choices; j++)
            if (choice_open(&reqs[i]->choice[j])) en->decode->choice[k++] = &reqs[i]->choice[j];
    assert(k == rows);
    *n_rows = rows;
    TRY(feed(en, rows, e));
    /* Before the samples: a request that ends with this step counts it. */
    const double took = clock_s() - start;
    for (uint32_t i = 0; i < n; i++) reqs[i]->decode_s += took;
    return sample(en, rows, fail, self, e);
}
