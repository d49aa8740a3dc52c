/* engine/lists.c - see lists.h. */
#include "engine/lists.h"

#include <stdlib.h>

#include "base/mem.h"

#define ALIGN 256

/* n values of `size` out of the memory, from *at on; without memory it counts. */
static void *take(char *memory, size_t *at, size_t n, size_t size)
{
    void *p = memory ? memory + *at : NULL;
    *at += (n * size + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

static size_t lay(struct lists *d, char *memory, const struct lists_room *n)
{
    size_t at = 0;
    d->log = take(memory, &at, n->log, sizeof *d->log);
    d->row = take(memory, &at, n->rows, sizeof *d->row);
    d->visible = take(memory, &at, n->rows, sizeof *d->visible);
    d->ask_row = take(memory, &at, n->asks, sizeof *d->ask_row);
    d->ask_id = take(memory, &at, n->asks, sizeof *d->ask_id);
    d->ask_visible = take(memory, &at, n->asks, sizeof *d->ask_visible);
    d->score = take(memory, &at, n->rows, sizeof *d->score);
    d->chunk = take(memory, &at, n->ids, sizeof *d->chunk);
    d->mark = take(memory, &at, n->ids, sizeof *d->mark);
    return at;
}

size_t lists_bytes(const struct lists_room *n)
{
    struct lists sizes;
    return lay(&sizes, NULL, n);
}

status lists_open(struct lists *d, struct stream *st, const struct lists_room *n, struct err *e)
{
    struct lists sizes;
    const size_t bytes = lay(&sizes, NULL, n);
    d->st = st;
    if (bytes > d->bytes) {
        st->ops->release(st, d->memory);
        d->memory = NULL;
        d->bytes = 0;
        TRY(st->ops->alloc(st, bytes, &d->memory, e));
        d->bytes = bytes;
    }
    lay(d, d->memory, n);
    d->log_cap = n->log;
    return mem_grow(&d->host, &d->host_cap, n->log, sizeof *d->host, e);
}

void lists_close(struct lists *d)
{
    if (d->st) d->st->ops->release(d->st, d->memory);
    free(d->host);
    *d = (struct lists){ 0 };
}

status lists_tables(struct lists *d, const uint8_t *mark, const int32_t *chunk, uint32_t n, struct err *e)
{
    d->at = d->next = 0;
    TRY(d->st->ops->upload(d->st, d->mark, mark, n * sizeof *mark, e));
    return d->st->ops->upload(d->st, d->chunk, chunk, n * sizeof *chunk, e);
}

/* Is there room in the log for a batch of n rows? */
static status fits(const struct lists *d, uint32_t n, struct err *e)
{
    if (n <= d->log_cap - d->next) return OK;
    return err_set(e, E_INTERNAL, "a log of %zu rows has %zu and gets %u more", d->log_cap, d->next, n);
}

status lists_send(struct lists *d, const uint32_t *id, uint32_t n, struct err *e)
{
    TRY(fits(d, n, e));
    TRY(d->st->ops->upload(d->st, d->log + d->next, id, n * sizeof *id, e));
    lists_next(d, n);
    return OK;
}

status lists_ask(struct lists *d, uint32_t first, uint32_t n, uint32_t n_ask, struct decoder_rows *out, struct err *e)
{
    *out = (struct decoder_rows){ .n = n_ask, .row = d->ask_row, .angle = d->ask_id, .visible = d->ask_visible, .on_device = true };
    return d->st->ops->list_rows(d->st, &(struct list_rows_args){ .id = lists_angles(d, first), .n = n, .first = first, .mark = d->mark,
                                                                  .of = LIST_ASKS, .n_out = n_ask, .row = d->ask_row,
                                                                  .out_id = d->ask_id, .visible = d->ask_visible }, e);
}

status lists_choice(struct lists *d, uint32_t first, uint32_t n, uint32_t to, struct choose_args *c, struct err *e)
{
    c->id = lists_angles(d, first);
    c->n = n;
    c->first = first;
    c->mark = d->mark;
    c->of = LIST_MEDIA;
    c->chunk = d->chunk;
    c->score = d->score;
    c->row = d->row + to;
    c->out_id = d->log + d->next + to;
    c->visible = d->visible + to;
    return fits(d, to + n - c->k, e);
}

status lists_keep(struct lists *d, uint32_t first, uint32_t n, uint32_t place, uint32_t to, struct err *e)
{
    TRY(fits(d, to + n, e));
    return d->st->ops->list_rows(d->st, &(struct list_rows_args){ .id = lists_angles(d, first), .n = n, .first = first, .place = place,
                                                                  .n_out = n, .row = d->row + to, .out_id = d->log + d->next + to,
                                                                  .visible = d->visible + to }, e);
}

void lists_next(struct lists *d, uint32_t n)
{
    d->at = d->next;
    d->next += n;
}

struct decoder_rows lists_rows(const struct lists *d, bool in_place, uint32_t r0, uint32_t n)
{
    return (struct decoder_rows){ .n = n, .row = in_place ? NULL : d->row + r0,
                                  .angle = d->log + (in_place ? d->at : d->next) + r0, .visible = d->visible + r0, .on_device = true };
}

status lists_fetch(struct lists *d, struct err *e) { return d->st->ops->fetch(d->st, d->host, d->log, d->next * sizeof *d->log, e); }
