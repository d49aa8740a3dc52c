/* model/tower_parts.c - weights, tables and memory of the towers (tower_parts.h). */
#include "model/tower_parts.h"

#include <assert.h>
#include <stdio.h>

#include "model/tensor_f32.h"

#define NAME_MAX_BYTES 128

static const struct tensor_info *tensor_of(const struct checkpoint *ck, const char *name, uint32_t layer,
                                           const char *what)
{
    char full[NAME_MAX_BYTES];
    snprintf(full, sizeof full, name, layer);
    return checkpoint_tensor(ck, "%s%s", full, what);
}

status tower_weight(struct stream *st, const struct checkpoint *ck, enum dtype compute, enum weight_form form,
                    const struct tower_names *names, unsigned has_bias, uint32_t layer, struct weight **out,
                    struct err *e)
{
    struct weight_args a = { .form = form, .compute = compute };
    const struct tensor_info *w[3] = { 0 };
    assert(names->part[0] != NULL);
    for (; a.n_parts < 3 && names->part[a.n_parts]; a.n_parts++) {
        const uint32_t i = a.n_parts;
        w[i] = tensor_of(ck, names->part[i], layer, ".weight");
        a.k = (uint32_t)(w[i]->n / w[i]->shape[0]);
        a.part[i] = (struct weight_part){ .data = w[i]->data,
                                          .dtype = (enum dtype)w[i]->dtype,
                                          .n = (uint32_t)w[i]->shape[0] };
        if (has_bias >> i & 1) {
            const struct tensor_info *b = tensor_of(ck, names->part[i], layer, ".bias");
            a.part[i].bias = b->data;
            a.part[i].bias_dtype = (enum dtype)b->dtype;
        }
    }
    const status code = st->ops->weight_create(st, &a, out, e);
    if (code != OK) return err_prefix(e, "%s", w[0]->name), code;
    for (uint32_t i = 0; i < a.n_parts; i++) tensor_drop(w[i]);
    return OK;
}

float *tower_read(const struct checkpoint *ck, const char *name, uint32_t layer, float *out)
{
    const struct tensor_info *t = tensor_of(ck, name, layer, "");
    tensor_to_f32(t, out);
    return out + t->n;
}

status tower_upload(struct stream *st, const float *host, size_t n, float **out, struct err *e)
{
    TRY(st->ops->alloc(st, n * sizeof *host, (void **)out, e));
    return st->ops->upload(st, *out, host, n * sizeof *host, e);
}

status tower_room_need(struct stream *st, struct tower_room *r, size_t bytes, struct err *e)
{
    if (r->p && r->bytes >= bytes) return OK;
    tower_room_release(st, r);
    TRY(st->ops->alloc(st, bytes, &r->p, e));
    r->bytes = bytes;
    return OK;
}

void tower_room_release(struct stream *st, struct tower_room *r)
{
    if (r->p) st->ops->release(st, r->p);
    *r = (struct tower_room){ 0 };
}

struct operand tower_operand(const struct tower_room *r, uint32_t rows, uint32_t k, enum dtype compute)
{
    return (struct operand){ .data = r->p, .rows = rows, .k = k, .compute = compute };
}

status tower_linear(struct stream *st, const struct operand *x, const struct weight *w, enum linear_mode mode,
                    float *y, size_t ld, struct operand *out, struct err *e)
{
    const struct linear_args a = { .x = x, .w = w, .mode = mode, .y = y, .ldy = ld, .out = out };
    return st->ops->linear(st, &a, e);
}
