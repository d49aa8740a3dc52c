/* engine/sample.c - see sample.h. Random numbers are a hash of (seed, step): no state that a batch could disturb. */
#include "engine/sample.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

struct candidate { float logit; int32_t id; };

struct sampler {
    struct sample_params p;
    uint32_t V;
    const uint8_t *allowed;
    uint8_t *seen;                 /* [V] 1: in the prompt or generated  */
    uint32_t *count;               /* [V] times generated                */
    struct candidate *cand;        /* [V] */
    uint64_t step;
};

struct sample_params sample_defaults(void)
{
    return (struct sample_params){ .top_p = 1, .repetition_penalty = 1 };
}

static status range(const char *name, double v, double lo, double hi, struct err *e)
{
    if (v >= lo && v <= hi) return OK;
    return err_set(e, E_ARG, "%s is %g: give a number from %g to %g", name, v, lo, hi);
}

status sample_check(const struct sample_params *p, struct err *e)
{
    TRY(range("temperature", (double)p->temperature, 0, 2, e));
    TRY(range("top_p", (double)p->top_p, (double)1e-6f, 1, e));
    TRY(range("min_p", (double)p->min_p, 0, 1, e));
    TRY(range("repetition_penalty", (double)p->repetition_penalty, 0.01, 10, e));
    TRY(range("presence_penalty", (double)p->presence_penalty, -2, 2, e));
    return range("frequency_penalty", (double)p->frequency_penalty, -2, 2, e);
}

status sampler_create(const struct sample_params *p, uint32_t V, const uint8_t *allowed, const int32_t *prompt,
                      uint32_t n_prompt, struct sampler **out, struct err *e)
{
    struct sampler *s;
    TRY(sample_check(p, e));
    TRY(mem_alloc(&s, 1, sizeof *s, e));
    *s = (struct sampler){ .p = *p, .V = V, .allowed = allowed };
    status st = mem_alloc(&s->seen, V, 1, e);
    if (st == OK) st = mem_alloc(&s->count, V, sizeof *s->count, e);
    if (st == OK) st = mem_alloc(&s->cand, V, sizeof *s->cand, e);
    if (st != OK) {
        sampler_destroy(&s);
        return st;
    }
    for (uint32_t i = 0; i < n_prompt; i++)
        if (prompt[i] >= 0 && (uint32_t)prompt[i] < V) s->seen[prompt[i]] = 1;
    *out = s;
    return OK;
}

void sampler_destroy(struct sampler **ps)
{
    struct sampler *s = *ps;
    if (s == NULL) return;
    free(s->seen);
    free(s->count);
    free(s->cand);
    free(s);
    *ps = NULL;
}

/* Uniform in [0, 1) with 53 bits, from (seed, step): splitmix64's finaliser over both. */
static double uniform(uint64_t seed, uint64_t step)
{
    uint64_t z = seed + (step + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

static int by_logit(const void *pa, const void *pb)
{
    const struct candidate *a = pa, *b = pb;
    if (a->logit != b->logit) return a->logit < b->logit ? 1 : -1;
    return (a->id > b->id) - (a->id < b->id);
}

/* Penalised logits of the allowed ids into cand; returns how many. NaN counts as impossible. */
static uint32_t collect(struct sampler *s, const float *logits)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->V; i++) {
        if (s->allowed && !s->allowed[i]) continue;
        float x = logits[i];
        if (isnan(x)) x = -FLT_MAX;
        if (s->seen[i] && s->p.repetition_penalty != 1.0f)
            x = x > 0 ? x / s->p.repetition_penalty : x * s->p.repetition_penalty;
        if (s->count[i]) x -= s->p.presence_penalty + s->p.frequency_penalty * (float)s->count[i];
        s->cand[n++] = (struct candidate){ x, (int32_t)i };
    }
    return n;
}

static float logprob_of(const struct sampler *s, const float *logits, int32_t id)
{
    float best = -FLT_MAX;
    for (uint32_t i = 0; i < s->V; i++)
        if ((!s->allowed || s->allowed[i]) && logits[i] > best) best = logits[i];
    double sum = 0;
    for (uint32_t i = 0; i < s->V; i++)
        if ((!s->allowed || s->allowed[i]) && !isnan(logits[i])) sum += exp((double)logits[i] - (double)best);
    return (float)((double)logits[id] - (double)best - log(sum));
}

/* Draw from cand[0..n): temperature, min-p, top-k, top-p. */
static int32_t draw(struct sampler *s, uint32_t n)
{
    struct candidate *c = s->cand;
    qsort(c, n, sizeof *c, by_logit);
    const double inv_t = 1.0 / (double)s->p.temperature, best = (double)c[0].logit;
    uint32_t m = n;
    if (s->p.top_k && s->p.top_k < m) m = s->p.top_k;
    double total = 0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < m; i++) {
        const double w = exp(((double)c[i].logit - best) * inv_t);   /* relative to the best: 1, falling */
        if (i > 0 && w < (double)s->p.min_p) break;
        c[i].logit = (float)w;
        total += (double)c[i].logit;
        last = i + 1;
    }
    if (s->p.top_p < 1.0f) {
        double sum = 0;
        for (uint32_t i = 0; i < last; i++) {
            sum += (double)c[i].logit;
            if (sum >= (double)s->p.top_p * total) {
                last = i + 1;
                total = sum;
                break;
            }
        }
    }
    double u = uniform(s->p.seed, s->step) * total;
    for (uint32_t i = 0; i + 1 < last; i++) {
        u -= (double)c[i].logit;
        if (u < 0) return c[i].id;
    }
    return c[last - 1].id;
}

int32_t sampler_next(struct sampler *s, const float *logits, float *logprob)
{
    const uint32_t n = collect(s, logits);
    int32_t id;
    if (s->p.temperature <= 0.0f) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < n; i++)
            if (s->cand[i].logit > s->cand[best].logit) best = i;
        id = s->cand[best].id;
    } else {
        id = draw(s, n);
    }
    if (logprob) *logprob = logprob_of(s, logits, id);
    s->seen[id] = 1;
    s->count[id]++;
    s->step++;
    return id;
}
