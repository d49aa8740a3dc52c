/* model/tower_parts.h - what both towers are built from: weights by their names, tables, device memory.
 * An inside header of model/. Names are printf formats that take the layer: "visual.blocks.%u.attn.q". */
#ifndef MODEL_TOWER_PARTS_H
#define MODEL_TOWER_PARTS_H

#include "kernels/ops.h"
#include "model/checkpoint.h"

struct tower_names {
    const char *part[3];
}; /* without .weight and .bias; NULL: no more */

/* The weight whose parts are NAME.weight [n, ...] (all but the first dimension make k), each with NAME.bias
 * where has_bias says so (bit i: part i). *out owns it. E_MODEL, E_NOMEM: the text names the first part. */
status tower_weight(struct stream *st, const struct checkpoint *ck, enum dtype compute, enum weight_form form,
                    const struct tower_names *names, unsigned has_bias, uint32_t layer, struct weight **out,
                    struct err *e);

/* The tensor of that name as f32, to host memory with room for all of it; returns the place behind it. */
float *tower_read(const struct checkpoint *ck, const char *name, uint32_t layer, float *out);

/* f32 tables: host [n] to device memory; *out owns it, ops->release. */
status tower_upload(struct stream *st, const float *host, size_t n, float **out, struct err *e);

/* Device memory asked for again and again: at least `bytes` afterwards, contents lost when it grows. */
struct tower_room {
    void *p;
    size_t bytes;
};
status tower_room_need(struct stream *st, struct tower_room *r, size_t bytes, struct err *e);
void tower_room_release(struct stream *st, struct tower_room *r);

/* An operand [rows, k] in a room that tower_room_need made large enough. */
struct operand tower_operand(const struct tower_room *r, uint32_t rows, uint32_t k, enum dtype compute);

/* y = x W^T + b in the given mode: y [rows, ld] for STORE, ADD and GELU, else *out. */
status tower_linear(struct stream *st, const struct operand *x, const struct weight *w, enum linear_mode mode,
                    float *y, size_t ld, struct operand *out, struct err *e);

#endif
