/* scheduler/work.c - see work.h. */
#include "scheduler/work.h"

#include <stddef.h>

struct work_row work_row(const struct work_shape *s)
{
    const double d = s->d, q = (double)s->H * s->D, g = (double)s->G * s->D;
    return (struct work_row){ .kv = 4 * d * g, .mix = 4 * d * q + 6 * d * s->ff, .key = 4 * q };
}

double work_scores(const struct work_row *c, uint32_t n_query, uint32_t n) { return (double)n_query * n * c->key / 2; }

double work_patches(const struct work_shape *s, uint64_t patches)
{
    const double h = s->vision.hidden;
    return (double)patches * s->vision.depth * (8.0 * h * h + 6.0 * h * s->vision.ff);
}

double work_frames(const struct work_shape *s, uint64_t frames)
{
    const double d = s->audio.d_model;
    return (double)frames / 2.0 * s->audio.layers * (8.0 * d * d + 4.0 * d * s->audio.ff);
}

uint32_t work_grids_at_once(uint32_t patches) { return WORK_TOWER_ROWS / patches ? WORK_TOWER_ROWS / patches : 1; }

uint32_t work_take(double row, double key, uint32_t (*visible)(const void *self, uint32_t i), const void *self, uint32_t from,
                   uint32_t to, uint32_t taken, double max_work, double *sum)
{
    uint32_t at = from;
    while (at < to && (*sum < max_work || taken + (at - from) < WORK_ROWS_MIN)) {
        const uint32_t n = to - at < WORK_ROWS_MIN ? to - at : WORK_ROWS_MIN;
        *sum += n * (row + (visible ? visible(self, at) * key : 0));
        at += n;
    }
    return at;
}
