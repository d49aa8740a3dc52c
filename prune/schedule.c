/* prune/schedule.c - see schedule.h. */
#include "prune/schedule.h"

#include <math.h>

double prune_rate(const struct prune_schedule *s, uint32_t l, uint32_t L)
{
    if (l + 1 >= L) return 0;
    const double sigmoid = 1 / (1 + exp(-s->beta * ((double)l / (double)L - s->t_mid)));
    return s->p_init + (s->p_final - s->p_init) * sigmoid;
}

uint32_t prune_drop_count(const struct prune_schedule *s, uint32_t l, uint32_t L, uint32_t n_l)
{
    const double k = floor(prune_rate(s, l, L) * (double)n_l);
    return k < (double)n_l ? (uint32_t)k : n_l;
}

void prune_alive(const struct prune_schedule *s, uint32_t L, uint32_t n_0, uint32_t *alive)
{
    alive[0] = n_0;
    for (uint32_t l = 0; l < L; l++) alive[l + 1] = alive[l] - prune_drop_count(s, l, L, alive[l]);
}

double prune_mean_retained(const struct prune_schedule *s, uint32_t L, double r0)
{
    double r = r0, sum = 0;
    for (uint32_t l = 0; l < L; l++) {
        sum += r;
        r *= 1 - prune_rate(s, l, L);
    }
    return sum / (double)L;
}

status prune_calibrate(const struct prune_schedule *s, uint32_t L, double r0, double target, double *p_final,
                       double reachable[2], struct err *e)
{
    struct prune_schedule t = *s;
    t.p_final = 1;
    const double low = prune_mean_retained(&t, L, r0);
    t.p_final = 0;
    const double high = prune_mean_retained(&t, L, r0);
    if (reachable) {
        reachable[0] = low;
        reachable[1] = high;
    }
    const double slack =
        1e-12; /* the sums are rounded: r0 itself can be named where nothing need be dropped */
    if (!(target >= low - slack && target <= high + slack))
        return err_set(
            e, E_ARG,
            "a mean retention of %g cannot be reached: with p_init %g, t_mid %g, beta %g, %u layers and "
            "%.4f of the AV tokens entering layer 0 it lies from %.4f to %.4f",
            target, s->p_init, s->t_mid, s->beta, L, r0, low, high);
    double a = 0, b = 1; /* the mean falls as p_final grows */
    for (int i = 0; i < 200 && a < b; i++) {
        t.p_final = a + (b - a) / 2;
        if (t.p_final == a || t.p_final == b) break;
        if (prune_mean_retained(&t, L, r0) > target)
            a = t.p_final;
        else
            b = t.p_final;
    }
    t.p_final = a;
    const double over = prune_mean_retained(&t, L, r0) - target;
    t.p_final = b;
    *p_final = fabs(over) <= fabs(prune_mean_retained(&t, L, r0) - target) ? a : b;
    return OK;
}
