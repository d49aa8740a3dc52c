/* engine/selector.c - see selector.h. */
#include "engine/selector.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/tensor_f32.h"
#include "prune/omnisift.h"

static const char *prefix_of(const struct checkpoint *ck) { return ck->has_prefix ? "thinker." : ""; }

static const struct tensor_info *find(const struct checkpoint *ck, const char *name)
{
    char full[96];
    snprintf(full, sizeof full, "compressor.%s", name);
    return checkpoint_selector(ck, full);
}

/* Rows of a tensor; 0 where it is not there. */
static uint64_t rows_of(const struct checkpoint *ck, const char *name)
{
    const struct tensor_info *t = find(ck, name);
    return t && t->rank > 0 ? t->shape[0] : 0;
}

/* Is tensor i there as it must be? Else e says what is wrong. */
static status check_one(const struct checkpoint *ck, uint32_t i, const struct omnisift_sizes *z, struct err *e)
{
    const struct tensor_info *t = find(ck, omnisift_name(i));
    uint64_t want[2];
    char text[80], is[120];
    const uint32_t rank = omnisift_shape(i, z, want);
    if (t == NULL)
        return err_set(e, E_ARG, "tensor %scompressor.%s of the trained selector is missing", prefix_of(ck), omnisift_name(i));
    bool same = t->rank == rank;
    for (uint32_t k = 0; same && k < rank; k++) same = t->shape[k] == want[k];
    if (!same)
        return err_set(e, E_ARG, "tensor %s is %s, in this selector it must be %s", t->name,
                       tensor_shape_text(t->rank, t->shape, is, sizeof is), tensor_shape_text(rank, want, text, sizeof text));
    if (!tensor_is_weight(t))
        return err_set(e, E_ARG, "tensor %s is %s, supported are F32, F16 and BF16", t->name, tensor_dtype_name(t->dtype));
    return OK;
}

/* A name that is none of the selector's. */
static status check_names(const struct checkpoint *ck, struct err *e)
{
    for (uint32_t k = 0; k < ck->n_selector; k++) {
        const char *name = checkpoint_selector_name(ck, k) + strlen("compressor.");
        uint32_t i = 0;
        while (i < OMNISIFT_TENSORS && strcmp(name, omnisift_name(i)) != 0) i++;
        if (i == OMNISIFT_TENSORS)
            return err_set(e, E_ARG, "tensor %scompressor.%s is none of OmniSIFT's selector", prefix_of(ck), name);
    }
    return OK;
}

static status check(const struct checkpoint *ck, struct err *e)
{
    struct omnisift_sizes z = { .d = ck->config.text.hidden };
    if (ck->n_selector == 0)
        return err_set(e, E_ARG, "this checkpoint has no trained selector: no tensor is named %scompressor.*", prefix_of(ck));
    TRY(check_names(ck, e));
    z.width = rows_of(ck, "v_proj.weight");
    z.hidden = rows_of(ck, "score_head.0.weight");
    for (uint32_t i = 0; i < OMNISIFT_TENSORS; i++) TRY(check_one(ck, i, &z, e));
    return omnisift_check(&z, e);
}

status selector_load(const struct checkpoint *ck, struct selector *out, struct err *e)
{
    struct err flaw;
    size_t n = 0;
    *out = (struct selector){ 0 };
    if (check(ck, &flaw) != OK) {
        snprintf(out->flaw, sizeof out->flaw, "%.*s", (int)sizeof out->flaw - 1, flaw.text);
        return OK;
    }
    for (uint32_t i = 0; i < OMNISIFT_TENSORS; i++) n += find(ck, omnisift_name(i))->n;
    TRY(mem_alloc(&out->tensor, OMNISIFT_TENSORS, sizeof *out->tensor, e));
    TRY(mem_alloc(&out->data, n, sizeof *out->data, e));
    n = 0;
    for (uint32_t i = 0; i < OMNISIFT_TENSORS; i++) {
        const struct tensor_info *t = find(ck, omnisift_name(i));
        tensor_to_f32(t, out->data + n);
        out->tensor[i] = (struct prune_tensor){ omnisift_name(i), out->data + n, t->n };
        n += t->n;
    }
    out->n_tensors = OMNISIFT_TENSORS;
    return OK;
}

void selector_free(struct selector *s)
{
    free(s->tensor);
    free(s->data);
    *s = (struct selector){ 0 };
}
