/* scheduler/work.h - the unit in which work is counted, and how rows are cut into quanta by it. One unit is a FLOP of the
 * matrix products and of attention; the engine that does the work, the scheduler that learns seconds a unit, and the
 * simulation that plans capacity count with the same functions. Pure arithmetic.
 * Source: shapes of the layers as in docs/qwen2_5_omni.md; a multiply and an add are two. */
#ifndef SCHEDULER_WORK_H
#define SCHEDULER_WORK_H

#include <stdint.h>

#define WORK_ROWS_MIN 96           /* of a range: 8 tiles of 12 */
#define WORK_TOWER_ROWS 4096       /* patches handed to the vision tower at once */

/* Sizes that decide how much work a token is. */
struct work_shape {
    uint32_t L, H, G, D, d, ff, V;             /* decoder: layers, query and KV heads, head dim, width, MLP, vocabulary */
    struct { uint32_t depth, hidden, ff; } vision;
    struct { uint32_t layers, d_model, ff; } audio;
};

/* FLOPs of one row of one layer: K and V; all the rest; and of one row and one key. */
struct work_row { double kv, mix, key; };
struct work_row work_row(const struct work_shape *s);

/* Scores of n rows by n_query query rows, one layer: half of attention, since no values are mixed. */
double work_scores(const struct work_row *c, uint32_t n_query, uint32_t n);

/* The towers, roughly: of so many patches; of so many mel frames. */
double work_patches(const struct work_shape *s, uint64_t patches);
double work_frames(const struct work_shape *s, uint64_t frames);
/* Grid steps of so many patches each that the vision tower takes at once. */
uint32_t work_grids_at_once(uint32_t patches);

/* Rows of one sequence into a range, by WORK_ROWS_MIN, until the range costs max_work and has that many rows at least.
 * [from, to): the sequence's rows that are left; taken: rows that the range has already; *sum grows by their cost.
 * What a row costs: row, and with visible (may be NULL: none) so many keys. `visible` is asked for the first row of each
 * step. Returns the end. */
uint32_t work_take(double row, double key, uint32_t (*visible)(const void *self, uint32_t i), const void *self, uint32_t from,
                   uint32_t to, uint32_t taken, double max_work, double *sum);

#endif
