/* engine/lists.h - the rows of a marching group as lists of the device, where its ops read them and its choices write them. The host
 * knows how many rows there are, and asks which they were when it is over.
 *
 * An id is a row's place among the prompts of the group laid end to end, which is also its row of angles. The ids of a batch lie one
 * member behind the other; those of every layer stay, one batch behind the other: the log.
 *
 *   lists_open     memory;  lists_tables  what the ids are;  lists_send  a batch that the host has laid out
 *   lists_ask      the rows of a member that ask
 *   lists_choice   where ops->choose finds a member's rows and puts those that live on
 *   lists_keep     ... of a member that chooses nothing
 *   lists_next     those that live on are the batch
 *   lists_fetch    the log, to the host
 * All of it is asked of the stream; nothing waits but lists_open that grows. */
#ifndef ENGINE_LISTS_H
#define ENGINE_LISTS_H

#include "kernels/ops.h"
#include "model/decoder.h"

enum { LIST_MEDIA = 1, LIST_ASKS = 2 };    /* marks */

struct lists {
    struct stream *st;
    void *memory;                  /* device: all of the below */
    size_t bytes;
    uint32_t *log, *row, *visible; /* [log_cap]; [rows] of those that live on, as the log from `next` on says who they are */
    uint32_t *ask_row, *ask_id, *ask_visible;   /* [asks] */
    float *score;                  /* [rows] of the last choice */
    int32_t *chunk;                /* [ids] */
    uint8_t *mark;                 /* [ids] */
    size_t log_cap, at, next;      /* where in the log the batch begins, and the next one */
    uint32_t *host;                /* the log after lists_fetch and the next wait */
    size_t host_cap;
};

/* What a march needs at most: rows of a batch; rows of all prompts; rows of a member that ask; rows of all batches that the log
 * takes. E_NOMEM. */
struct lists_room { uint32_t rows, ids, asks; size_t log; };
size_t lists_bytes(const struct lists_room *n);    /* of the device */
status lists_open(struct lists *d, struct stream *st, const struct lists_room *n, struct err *e);
void lists_close(struct lists *d);

/* mark: LIST_MEDIA, LIST_ASKS or 0; chunk; [n] by id. The log is empty then. */
status lists_tables(struct lists *d, const uint8_t *mark, const int32_t *chunk, uint32_t n, struct err *e);
status lists_send(struct lists *d, const uint32_t *id, uint32_t n, struct err *e);

/* Rows [first, first + n) of the batch are one member's. Those of them that ask, n_ask: *out borrows. */
status lists_ask(struct lists *d, uint32_t first, uint32_t n, uint32_t n_ask, struct decoder_rows *out, struct err *e);
/* id, mark, of, chunk, score and the outputs of c, for rows that go to `to` and on in the next batch. */
status lists_choice(struct lists *d, uint32_t first, uint32_t n, uint32_t to, struct choose_args *c, struct err *e);
/* They live on, all; place: how many rows of the member stand before them in its view. */
status lists_keep(struct lists *d, uint32_t first, uint32_t n, uint32_t place, uint32_t to, struct err *e);
void lists_next(struct lists *d, uint32_t n);

/* Rows [r0, r0 + n) of those that live on. in_place: they are those of the batch, all of them. */
struct decoder_rows lists_rows(const struct lists *d, bool in_place, uint32_t r0, uint32_t n);
/* Their ids in the batch, for struct decoder_batch. */
static inline const uint32_t *lists_angles(const struct lists *d, uint32_t r0) { return d->log + d->at + r0; }

/* d->host [d->next] gets the log: filled after the stream's next wait. */
status lists_fetch(struct lists *d, struct err *e);

#endif
