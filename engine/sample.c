/* engine/sample.c - see sample.h. Random numbers are a hash of (seed, step): no state that a batch could disturb. */
#include "engine/sample.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define SMALL 256                  /* candidates that are sorted rather than split further */

/* weight: 1 while they are counted, then exp((logit - best) / temperature). */
struct candidate { float logit; int32_t id; float weight; };

struct sampler {
    struct sample_params p;
    uint32_t V;
    const uint8_t *allowed;
    uint8_t *seen;                 /* [V] 1: in the prompt or generated  */
    uint32_t *count;               /* [V] times generated                */
    struct candidate *cand;        /* [V]; NULL where it is greedy */
    struct sample_bias *bias;      /* [p.n_logit_bias] by id  */
    int32_t *stop;                 /* [p.n_stop_ids] by id    */
    struct sample_top top[SAMPLE_TOP_MAX];
    uint32_t n_top;
    uint64_t step;
};

struct sample_params sample_defaults(void)
{
    return (struct sample_params){ .top_p = 1, .repetition_penalty = 1 };
}

static status range(const char *name, double v, double lo, double hi, struct err *e)
{
    if (v >= lo && v <= hi) return OK;
    err_set(e, E_ARG, "%s is %g: give a number from %g to %g", name, v, lo, hi);
    if (e) err_tag(e, "invalid_value", name);
    return E_ARG;
}

status sample_check(const struct sample_params *p, struct err *e)
{
    TRY(range("temperature", (double)p->temperature, 0, 2, e));
    TRY(range("top_p", (double)p->top_p, (double)1e-6f, 1, e));
    TRY(range("min_p", (double)p->min_p, 0, 1, e));
    TRY(range("repetition_penalty", (double)p->repetition_penalty, 0.01, 10, e));
    TRY(range("top_logprobs", (double)p->top_logprobs, 0, SAMPLE_TOP_MAX, e));
    TRY(range("logit_bias", (double)p->n_logit_bias, 0, SAMPLE_BIAS_MAX, e));
    for (uint32_t i = 0; i < p->n_logit_bias; i++)
        TRY(range("logit_bias", (double)p->logit_bias[i].bias, -100, 100, e));
    TRY(range("presence_penalty", (double)p->presence_penalty, -2, 2, e));
    return range("frequency_penalty", (double)p->frequency_penalty, -2, 2, e);
}

static int by_bias_id(const void *pa, const void *pb)
{
    const struct sample_bias *a = pa, *b = pb;
    return (a->id > b->id) - (a->id < b->id);
}

static int by_id(const void *pa, const void *pb)
{
    const int32_t *a = pa, *b = pb;
    return (*a > *b) - (*a < *b);
}

/* Own copies, by id, so that one walk over the vocabulary meets each where it stands. */
static status copy_lists(struct sampler *s, struct err *e)
{
    const uint32_t n = s->p.n_logit_bias, n_stop = s->p.n_stop_ids;
    TRY(mem_alloc(&s->bias, n + 1, sizeof *s->bias, e));
    TRY(mem_alloc(&s->stop, n_stop + 1, sizeof *s->stop, e));
    if (n) memcpy(s->bias, s->p.logit_bias, n * sizeof *s->bias);
    if (n_stop) memcpy(s->stop, s->p.stop_id, n_stop * sizeof *s->stop);
    s->p.logit_bias = NULL;
    s->p.stop_id = NULL;
    qsort(s->bias, n, sizeof *s->bias, by_bias_id);
    qsort(s->stop, n_stop, sizeof *s->stop, by_id);
    for (uint32_t i = 0; i < n; i++) {
        const int32_t id = s->bias[i].id;
        const bool there = id >= 0 && (uint32_t)id < s->V;
        if (there && (i == 0 || s->bias[i - 1].id != id)) continue;
        if (there) err_set(e, E_ARG, "logit_bias names the token %d twice", id);
        else err_set(e, E_ARG, "logit_bias names the token %d: ids are 0 to %u", id, s->V - 1);
        if (e) err_tag(e, "invalid_value", "logit_bias");
        return E_ARG;
    }
    return OK;
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
    if (st == OK && p->temperature > 0.0f) st = mem_alloc(&s->cand, V, sizeof *s->cand, e);
    if (st == OK) st = copy_lists(s, e);
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
    free(s->bias);
    free(s->stop);
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

/* The order of the candidates: no two are equal. */
static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->logit != b->logit ? a->logit > b->logit : a->id < b->id;
}

static int by_logit(const void *pa, const void *pb)
{
    return before(pa, pb) ? -1 : before(pb, pa);
}

/* Biased and penalised logits of the ids that may be chosen into cand (greedy: none is kept); returns how many, *best
 * the first of the highest. NaN counts as impossible. ban: without the stop ids. */
static uint32_t collect(struct sampler *s, const float *logits, bool ban, struct candidate *best)
{
    const bool keep = s->p.temperature > 0.0f;
    const struct sample_bias *bias = s->bias, *bias_end = bias + s->p.n_logit_bias;
    const int32_t *stop = s->stop, *stop_end = stop + (ban ? s->p.n_stop_ids : 0);
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->V; i++) {
        float x = logits[i];
        if (isnan(x)) x = -FLT_MAX;
        if (bias < bias_end && bias->id == (int32_t)i) x += bias++->bias;
        while (stop < stop_end && *stop < (int32_t)i) stop++;
        if (stop < stop_end && *stop == (int32_t)i) continue;
        if (s->allowed && !s->allowed[i]) continue;
        if (s->seen[i] && s->p.repetition_penalty != 1.0f)
            x = x > 0 ? x / s->p.repetition_penalty : x * s->p.repetition_penalty;
        if (s->count[i]) x -= s->p.presence_penalty + s->p.frequency_penalty * (float)s->count[i];
        if (n == 0 || x > best->logit) *best = (struct candidate){ x, (int32_t)i, 1.0f };
        if (keep) s->cand[n] = (struct candidate){ x, (int32_t)i, 1.0f };
        n++;
    }
    return n;
}

/* ---- log probabilities ------------------------------------------------------------------------------------ */

static bool counts(const struct sampler *s, const float *logits, uint32_t i)
{
    return (!s->allowed || s->allowed[i]) && !isnan(logits[i]);
}

/* log of the sum of exp over the raw logits of the allowed ids. */
static double log_sum(const struct sampler *s, const float *logits)
{
    float best = -FLT_MAX;
    for (uint32_t i = 0; i < s->V; i++)
        if (counts(s, logits, i) && logits[i] > best) best = logits[i];
    double sum = 0;
    for (uint32_t i = 0; i < s->V; i++)
        if (counts(s, logits, i)) sum += exp((double)logits[i] - (double)best);
    return (double)best + log(sum);
}

/* The likeliest into s->top: kept in order, most ids fail at its last entry. */
static void find_top(struct sampler *s, const float *logits, double norm)
{
    const uint32_t most = s->p.top_logprobs;
    struct sample_top *t = s->top;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->V; i++) {
        if (!counts(s, logits, i) || isinf(logits[i])) continue;
        if (n == most && logits[i] <= t[n - 1].logprob) continue;
        uint32_t at = n < most ? n++ : n - 1;
        for (; at > 0 && t[at - 1].logprob < logits[i]; at--) t[at] = t[at - 1];
        t[at] = (struct sample_top){ (int32_t)i, logits[i] };
    }
    for (uint32_t i = 0; i < n; i++) t[i].logprob = (float)((double)t[i].logprob - norm);
    s->n_top = n;
}

void sampler_top(const struct sampler *s, const struct sample_top **top, uint32_t *n)
{
    *top = s->top;
    *n = s->n_top;
}

/* ---- drawing ---------------------------------------------------------------------------------------------- */

static struct candidate median(const struct candidate *a, const struct candidate *b, const struct candidate *c)
{
    if (before(b, a)) return before(c, b) ? *b : before(c, a) ? *c : *a;
    return before(b, c) ? *b : before(a, c) ? *c : *a;
}

/* The shortest run of the best candidates whose weights reach target (pass it, where `past`): afterwards c[0..i] are
 * they, in any order but that c[i] is the last of them. Returns i, *mass their weight. Weighted selection: halves are
 * dropped by their mass, so the work is O(n) but for odd pivots, and after 64 of those a sort. */
static uint32_t run_of(struct candidate *c, uint32_t n, double target, bool past, double *mass)
{
    uint32_t lo = 0, hi = n;
    double sum = 0;
    for (int splits = 0; hi - lo > SMALL && splits < 64; splits++) {
        const struct candidate pivot = median(&c[lo], &c[lo + (hi - lo) / 2], &c[hi - 1]);
        uint32_t k = lo;
        double left = sum;
        for (uint32_t i = lo; i < hi; i++) {
            const struct candidate x = c[i];
            if (before(&pivot, &x)) continue;
            left += (double)x.weight;
            c[i] = c[k];
            c[k++] = x;
        }
        if (past ? left > target : left >= target) {
            hi = k;
        } else {
            sum = left;
            lo = k;
        }
    }
    qsort(c + lo, hi - lo, sizeof *c, by_logit);
    uint32_t i = lo;
    for (; i < hi; i++) {
        sum += (double)c[i].weight;
        if (past ? sum > target : sum >= target) break;
    }
    *mass = sum;
    return i < hi ? i : hi - 1;
}

/* Draw from cand[0..n), the best of them at logit `best`: temperature, min-p, top-k, top-p. */
static int32_t draw(struct sampler *s, uint32_t n, double best)
{
    struct candidate *c = s->cand;
    const double inv_t = 1.0 / (double)s->p.temperature;
    double mass, total = 0;
    if (s->p.top_k && s->p.top_k < n) n = run_of(c, n, (double)s->p.top_k, false, &mass) + 1;
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double x = ((double)c[i].logit - best) * inv_t;
        if (x < -104.0) continue;  /* weight 0 as a float */
        const double w = exp(x);   /* relative to the best: 1, falling */
        if (w < (double)s->p.min_p) continue;
        c[m] = c[i];
        c[m++].weight = (float)w;
    }
    if (m <= SMALL) qsort(c, m, sizeof *c, by_logit);
    for (uint32_t i = 0; i < m; i++) total += (double)c[i].weight;
    if (s->p.top_p < 1.0f) m = run_of(c, m, (double)s->p.top_p * total, false, &total) + 1;
    return c[run_of(c, m, uniform(s->p.seed, s->step) * total, true, &mass)].id;
}

/* ---- from the highest alone -------------------------------------------------------------------------------- */

/* How many of the highest a draw may take, the same that it would take of all; 0: they do not decide. A logit of -FLT_MAX or below
 * may be beaten by one that is not a number (collect). */
static uint32_t enough(const struct sampler *s, const struct top_row *row)
{
    const struct sample_params *p = &s->p;
    uint32_t n = 0;
    if (p->n_logit_bias || p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f) return 0;
    if (s->step < p->min_tokens && p->n_stop_ids) return 0;
    if (!isfinite(row->norm) || row->best[0].id < 0 || !isfinite(row->best[0].logit)) return 0;
    while (n < OPS_TOP && row->best[n].id >= 0 && row->best[n].logit > -FLT_MAX) n++;
    if (n < p->top_logprobs || n == 0) return 0;
    if (p->temperature <= 0.0f) return 1;
    if (p->top_k && p->top_k <= n) return p->top_k;
    if (p->min_p <= 0.0f || (p->top_k && p->top_k < OPS_TOP)) return 0;
    for (uint32_t i = 0; i < n; i++)           /* one that min-p drops shows that all below go too */
        if (exp(((double)row->best[i].logit - (double)row->best[0].logit) / (double)p->temperature) < 0.5 * (double)p->min_p) return i;
    return 0;
}

static void took(struct sampler *s, int32_t id)
{
    s->seen[id] = 1;
    s->count[id]++;
    s->step++;
}

bool sampler_next_top(struct sampler *s, const struct top_row *row, int32_t *id, float *logprob)
{
    const uint32_t n = enough(s, row);
    if (n == 0) return false;
    *id = row->best[0].id;
    if (s->p.temperature > 0.0f) {
        for (uint32_t i = 0; i < n; i++) s->cand[i] = (struct candidate){ row->best[i].logit, row->best[i].id, 1.0f };
        *id = draw(s, n, (double)row->best[0].logit);
    }
    uint32_t at = 0;
    while (row->best[at].id != *id) at++;
    if (logprob) *logprob = (float)((double)row->best[at].logit - row->norm);
    s->n_top = s->p.top_logprobs;
    for (uint32_t i = 0; i < s->n_top; i++)
        s->top[i] = (struct sample_top){ row->best[i].id, (float)((double)row->best[i].logit - row->norm) };
    took(s, *id);
    return true;
}

int32_t sampler_next(struct sampler *s, const float *logits, float *logprob)
{
    struct candidate best = { 0 };
    uint32_t n = collect(s, logits, s->step < s->p.min_tokens, &best);
    if (n == 0) n = collect(s, logits, false, &best);          /* nothing but stops may be chosen */
    assert(n > 0);
    const int32_t id = s->p.temperature <= 0.0f ? best.id : draw(s, n, (double)best.logit);
    if (logprob || s->p.top_logprobs) {
        const double norm = log_sum(s, logits);
        if (logprob) *logprob = (float)((double)logits[id] - norm);
        if (s->p.top_logprobs) find_top(s, logits, norm);
    }
    took(s, id);
    return id;
}
