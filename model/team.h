/* model/team.h - the decoder of a whole tensor-parallel group, driven by its rank 0: the leader calls, the workers replay.
 *
 *   team_open      around this rank's decoder; alone (no communicator) every call is the decoder's and no more
 *   team_work      on the others: take a task, do the same, until the leader closes
 *     team_pages   page memory: the same page numbers on every rank, each with its own KV heads
 *     team_rows    matrices that live on every rank under one name: residual streams, angles, hidden states
 *     team_*       the calls of decoder.h on these, a message each: what to do and the host arrays that it takes
 *
 *     team_vision, team_audio   towers, which every rank has whole: features are dealt out, embeddings come back
 *
 * A call returns when every rank has done it. What fails on a worker fails the leader's call with that rank's text; the group
 * goes on. Only a rank that is gone ends it (E_DEVICE, comm.h). The leader alone has policies, a scheduler and samplers: what
 * it decided travels as lists in the next message.
 * Leaders: one thread at a time. Source: docs/architecture.md (Ranks). */
#ifndef MODEL_TEAM_H
#define MODEL_TEAM_H

#include "model/decoder.h"
#include "model/towers.h"

struct team;

/* n rows of `width` floats on every rank; x is the leader's own. */
struct team_rows { float *x; uint32_t n, width, id; };

/* dc is borrowed. c: its communicator, or NULL. check: after every call, and every layer of a step, compare over ranks what
 * must be equal (residual rows, scores, survivors): a difference is E_DEVICE and names rank and layer. All ranks must give the
 * same check. */
status team_open(struct decoder *dc, struct comm *c, bool check, struct team **out, struct err *e);
/* The leader's: workers that serve return. Rows that are left go too. */
void team_close(struct team **t);
/* Workers serve. OK: the leader closed. E_DEVICE: a rank is gone. */
status team_work(struct team *t, struct err *e);

/* Where memory is planned (ops->reserve): what this rank reserves behind its pages. On every rank, before team_pages. */
void team_reserve(struct team *t, const struct reserve_args *a);
/* Memory of n pages on every rank, once, and then what is to be reserved; *out is decoder_kv_shape with base. Freed by team_close. */
status team_pages(struct team *t, uint32_t n, struct kv_shape *out, struct err *e);

/* Not zeroed. E_NOMEM. */
status team_rows_open(struct team *t, uint32_t n, uint32_t width, struct team_rows **out, struct err *e);
void team_rows_close(struct team *t, struct team_rows **r);
/* Angles of decoder_angles: rows for n positions. */
status team_angles_open(struct team *t, uint32_t n, struct team_rows **out, struct err *e);

/* Rows [at, at + n) of r to the host. No message: the leader's are as good as any. */
status team_read(struct team *t, const struct team_rows *r, uint32_t at, uint32_t n, float *host, struct err *e);

/* Angles of positions [n] become rows [at, at + n) of `angles`. */
status team_angles(struct team *t, const int32_t *const pos[3], uint32_t n, struct team_rows *angles, uint32_t at, struct err *e);
/* Word embeddings of n ids become rows [0, n) of x. */
status team_embed(struct team *t, const int32_t *id, uint32_t n, struct team_rows *x, struct err *e);
/* Rows row[i] of `from` (device memory of the leader alone, [*, d]) become rows to[i] of x, distinct. spare: room for n rows,
 * not x. */
status team_put(struct team *t, const float *from, const uint32_t *row, const uint32_t *to, uint32_t n, struct team_rows *x,
                struct team_rows *spare, struct err *e);
/* Rows row[i] of `from` become rows to + i of y; y is not `from`. */
status team_gather(struct team *t, const struct team_rows *from, const uint32_t *row, uint32_t n, struct team_rows *y,
                   uint32_t to, struct err *e);

/* Does the decoder meet no other rank, not even itself by NCCL? Lists of the device are for such a team alone: they travel nowhere. */
bool team_alone(const struct team *t);

/* A batch for the calls below: cos, sin and kv are filled in here, the rest is decoder.h's; `at`: the batch's first row in x. */
struct team_batch {
    struct decoder_batch b;
    const struct team_rows *angles;
    struct team_rows *x;
    uint32_t at;
};

status team_kv(struct team *t, uint32_t layer, const struct team_batch *b, const uint32_t *kv_start, struct err *e);
status team_layer(struct team *t, uint32_t layer, const struct team_batch *b, const uint32_t *kv_start, const uint32_t *visible,
                  struct err *e);
status team_scores(struct team *t, uint32_t layer, const struct team_batch *b, uint32_t s, const struct decoder_rows *query,
                   float *score, struct err *e);
/* decoder_choose: alone. */
status team_choose(struct team *t, uint32_t layer, const struct team_batch *b, uint32_t s, const struct decoder_rows *query,
                   struct choose_args *c, struct err *e);
/* decoder_walks: a batch of one sequence. */
status team_walks(struct team *t, uint32_t layer, const struct team_batch *b, float *score, struct err *e);
/* keep->row NULL: in place, y is not read; else the rows go to rows [y_at, y_at + keep->n) of y. */
status team_mix(struct team *t, uint32_t layer, const struct team_batch *b, const struct decoder_rows *keep, const uint32_t *out_start,
                struct team_rows *y, uint32_t y_at, struct err *e);

/* One token of each of n sequences through all layers, a single message: x row i is id[i] at position pos[i]; view [L][n] are
 * the pages of each layer with this token's row in them. x and angles have room for n. */
status team_step(struct team *t, const int32_t *id, const int32_t *pos, uint32_t n, const struct kv_view *view,
                 struct team_rows *angles, struct team_rows *x, struct err *e);

/* logits [n, V] host of rows at + row[i] (row NULL: i). */
status team_logits(struct team *t, const struct team_rows *x, uint32_t at, const uint32_t *row, uint32_t n, float *logits,
                   struct err *e);

/* decoder_tops of rows at + row[i], where the team is alone. */
status team_tops(struct team *t, const struct team_rows *x, uint32_t at, const uint32_t *row, uint32_t n, const uint8_t *allowed,
                 struct top_row *top, struct err *e);
status team_tops_row(struct team *t, uint32_t i, float *logits, struct err *e);

/* ops->page_copy and ops->kv_compact (one view) on every rank's pages. */
status team_page_copy(struct team *t, const uint32_t *src, const uint32_t *dst, uint32_t n, struct err *e);
status team_compact(struct team *t, const struct kv_view *view, const uint32_t *row, uint32_t n, struct err *e);

/* This rank's towers, borrowed; on every rank before the first of the two calls below. */
void team_towers(struct team *t, struct audio_tower *audio, struct vision_tower *vision);
/* vision_tower_run: grid steps in equal numbers to the ranks. patches and saliency are the leader's host memory, embeds its
 * device memory. Same bits as alone, since no grid step sees another. */
status team_vision(struct team *t, const float *patches, uint32_t t_steps, uint32_t h, uint32_t w, float *embeds, float *saliency,
                   struct err *e);
/* audio_tower_part of frames [f0, f0 + n): any number of spans (the last may be short), dealt out. */
status team_audio(struct team *t, const float *mel, uint32_t n_frames, uint32_t f0, uint32_t n, float *embeds, float *saliency,
                  struct err *e);

/* Bytes that went to the workers as tasks, and how many tasks. */
struct team_counts { uint64_t tasks, bytes; };
struct team_counts team_read_counts(const struct team *t);

#endif
