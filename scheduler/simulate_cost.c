/* scheduler/simulate_cost.c - what a step of the simulated device takes: work over rate, fixed costs, all-reduces. Ranks of
 * a group share products, heads and towers evenly; a range costs what its slowest part costs, parts are added.
 * Source of the terms: prefill and decode floors of a decoder on one device, each product the larger of its arithmetic and
 * one read of its weights, fused element-wise passes by their bytes, two all-reduces a layer. */
#include <math.h>

#include "scheduler/simulate.h"

double sim_rate_at(const struct sim_rate *table, uint32_t n, double rows)
{
    if (n == 0 || rows <= 0) return 0;
    if (rows <= table[0].rows) return table[0].per_s * rows / table[0].rows;       /* fewer rows take the same time */
    for (uint32_t i = 1; i < n; i++)
        if (rows <= table[i].rows) {
            const double at = log(rows / table[i - 1].rows) / log(table[i].rows / table[i - 1].rows);
            return exp(log(table[i - 1].per_s) + at * log(table[i].per_s / table[i - 1].per_s));
        }
    return table[n - 1].per_s;
}

static double over(double work, double rate) { return rate > 0 ? work / rate : 0; }

/* A product of n rows with so many weights on this rank. */
static double product(const struct sim_options *o, double rows, double weights)
{
    const struct sim_device *v = &o->device;
    const double t = over(2 * rows * weights, sim_rate_at(v->gemm, v->n_gemm, rows));
    const double read = v->read_weights ? over(weights * o->model.value_bytes, v->memory) : 0;
    return t > read ? t : read;
}

/* A ring: each rank sends and receives 2 (tp - 1) / tp of the rows. */
static double reduce(const struct sim_options *o, double rows, double times)
{
    if (o->tp < 2) return 0;
    const double bytes = rows * o->model.work.d * o->model.value_bytes * 2 * (o->tp - 1) / o->tp;
    return times * (o->device.reduce_s + over(bytes, o->device.reduce_bytes));
}

/* KV heads of a rank: at least one, held twice where there are more ranks than heads. */
static double kv_heads(const struct sim_options *o)
{
    const uint32_t g = (o->model.work.G + o->tp - 1) / o->tp;
    return g;
}

double sim_range_s(const struct sim_options *o, uint32_t rows, bool kv, bool mix, double keys, double *reduced)
{
    const struct work_shape *w = &o->model.work;
    const struct sim_device *v = &o->device;
    const double q = (double)w->H * w->D / o->tp, g = kv_heads(o) * w->D, ff = (double)w->ff / o->tp, d = w->d;
    double t = v->range_s, values = 0;
    if (kv) {
        t += product(o, rows, 2 * d * g);
        values += 2 * d + 4 * g;                       /* norm: read, write; K and V: read, write */
    }
    if (mix) {
        t += product(o, rows, 2 * d * q) + product(o, rows, 2 * d * ff) + product(o, rows, ff * d);
        t += over(keys * 4 * q, v->attention);
        values += 2 * q + 6 * d + 3 * ff;              /* Q; residual, norm, residual; gate, up and what they make */
        const double r = reduce(o, rows, 2);
        *reduced += r;
        t += r;
    }
    if (v->fused_rows) t += over(rows * values * o->model.value_bytes, v->memory);
    return t;
}

double sim_logits_s(const struct sim_options *o, uint32_t n, double *reduced)
{
    const double r = reduce(o, n, 1);                  /* of the vocabulary's parts: a row or less */
    *reduced += r;
    return o->device.step_s + n * o->device.row_s + product(o, n, (double)o->model.work.V * o->model.work.d / o->tp) + r;
}

double sim_decode_s(const struct sim_options *o, uint32_t n, double kv_rows, double *reduced)
{
    const struct work_shape *w = &o->model.work;
    const struct sim_device *v = &o->device;
    const double q = (double)w->H * w->D, g = kv_heads(o) * o->tp * w->D;
    const double weights = w->L * (2.0 * w->d * (q + g) + 3.0 * w->d * w->ff) + (double)w->V * w->d;
    const double keys = over(kv_rows * 2 * kv_heads(o) * w->D * o->model.kv_value_bytes, v->memory);
    if (v->n_decode) {
        const double r = reduce(o, n, 2.0 * w->L);
        *reduced += r;
        return over(2 * n * weights / o->tp, sim_rate_at(v->decode, v->n_decode, n)) + keys + r;
    }
    double t = keys + sim_logits_s(o, n, reduced);
    for (uint32_t l = 0; l < w->L; l++) t += sim_range_s(o, n, true, true, 0, reduced);
    return t;
}

double sim_select_s(const struct sim_options *o, uint32_t n, uint32_t n_media, uint32_t n_query)
{
    const struct work_row c = work_row(&o->model.work);
    return o->device.select_s + n_media * o->device.select_row_s + over(work_scores(&c, n_query, n) / o->tp, o->device.score);
}

double sim_tower_s(const struct sim_options *o, uint64_t patches, uint64_t frames)
{
    return o->device.tower_s + over(work_patches(&o->model.work, patches) / o->tp, o->device.vision) +
           over(work_frames(&o->model.work, frames) / o->tp, o->device.audio);
}
