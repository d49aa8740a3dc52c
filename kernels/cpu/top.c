/* kernels/cpu/top.c - the highest of a row of logits, and the logarithm of the sum of all; see kernels/ops.h. */
#include <float.h>
#include <math.h>

#include "kernels/cpu/cpu.h"

static void top_of_row(const float *x, uint32_t V, const uint8_t *allowed, struct top_row *out)
{
    uint32_t n = 0;
    float most = -FLT_MAX;
    double sum = 0;
    for (uint32_t i = 0; i < V; i++) {
        if ((allowed && !allowed[i]) || isnan(x[i])) continue;
        if (x[i] > most) most = x[i];
        if (n == OPS_TOP && !(x[i] > out->best[n - 1].logit)) continue;
        uint32_t at = n < OPS_TOP ? n++ : n - 1;
        for (; at > 0 && out->best[at - 1].logit < x[i]; at--) out->best[at] = out->best[at - 1];
        out->best[at] = (struct top_best){ x[i], (int32_t)i };
    }
    for (uint32_t i = n; i < OPS_TOP; i++) out->best[i] = (struct top_best){ 0, -1 };
    for (uint32_t i = 0; i < V; i++)
        if ((!allowed || allowed[i]) && !isnan(x[i])) sum += exp((double)x[i] - (double)most);
    out->norm = (double)most + log(sum);
}

status cpu_top(struct stream *st, const struct top_args *a, struct err *e)
{
    (void)st;
    if (a->V == 0) return err_set(e, E_ARG, "the highest of rows of nothing");
    for (uint32_t i = 0; i < a->n; i++) top_of_row(a->x + i * a->ldx, a->V, a->allowed, a->out + i);
    return OK;
}
