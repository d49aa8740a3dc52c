/* media/mel_isa.h - inside header: power spectrum, filters and logarithm of ISA_LANES frames at once.
 * Lane l of every vector is frame f0 + l, so nothing is ever shuffled:
 *   t[r][q] = x[160 (f0 + q) - 200 + r]         the samples, transposed once
 *   tap n = 160 j + r of all frames             one load at t[r][j]
 *   400 real points = 200 complex (even, odd)   5 x 5 x 4 x 2 Stockham, then one untangling pass
 *   power -> filters (394 products) -> log10    rows of the output are whole vectors */

#define V ISA_NAME(vf)
#define VI ISA_NAME(vi)
#define CV ISA_NAME(cv)

typedef float V __attribute__((vector_size(4 * ISA_LANES)));
typedef int32_t VI __attribute__((vector_size(4 * ISA_LANES)));
typedef float ISA_NAME(vu) __attribute__((vector_size(4 * ISA_LANES), aligned(4)));   /* at any address */
typedef struct { V r, i; } CV;

#define INLINE static inline __attribute__((always_inline))

INLINE void ISA_NAME(cmul)(CV *a, float wr, float wi)
{
    const V r = a->r * wr - a->i * wi;
    a->i = a->r * wi + a->i * wr;
    a->r = r;
}

INLINE V ISA_NAME(maxv)(V a, V b)
{
    const VI above = a > b;
    return (V)((above & (VI)a) | (~above & (VI)b));
}

/* One Stockham stage: length n, stride s, radix R; y[q + s (R p + r)] from x[q + s (p + m r)]. */
#define STAGE_HEAD(R)                                                                                     \
    const int m = n / R;                                                                                  \
    for (int p = 0; p < m; p++) {                                                                         \
        for (int q = 0; q < s; q++) {                                                                     \
            const CV *a = x + q + s * p;                                                                  \
            CV *o = y + q + s * R * p;
#define STAGE_TAIL                                                                                        \
        }                                                                                                 \
    }
/* exp(-2 pi i p r / n) */
#define POWER(r)                                                                                             \
    mel.twiddle[2 * (p * (r) * (200 / n) % 200)], mel.twiddle[2 * (p * (r) * (200 / n) % 200) + 1]

INLINE void ISA_NAME(stage5)(int n, int s, const CV *x, CV *y)
{
    const float c1 = 0.30901699437f, c2 = -0.80901699437f, s1 = 0.95105651630f, s2 = 0.58778525229f;
    STAGE_HEAD(5)
            const CV a0 = a[0], a1 = a[s * m], a2 = a[2 * s * m], a3 = a[3 * s * m], a4 = a[4 * s * m];
            const V t1r = a1.r + a4.r, t1i = a1.i + a4.i, t2r = a2.r + a3.r, t2i = a2.i + a3.i;
            const V d1r = a1.r - a4.r, d1i = a1.i - a4.i, d2r = a2.r - a3.r, d2i = a2.i - a3.i;
            const V u1r = a0.r + (t1r * c1 + t2r * c2), u1i = a0.i + (t1i * c1 + t2i * c2);
            const V u2r = a0.r + (t1r * c2 + t2r * c1), u2i = a0.i + (t1i * c2 + t2i * c1);
            const V v1r = d1i * s1 + d2i * s2, v1i = -(d1r * s1 + d2r * s2);     /* times -i */
            const V v2r = d1i * s2 - d2i * s1, v2i = -(d1r * s2 - d2r * s1);
            CV o1 = { u1r + v1r, u1i + v1i }, o2 = { u2r + v2r, u2i + v2i };
            CV o3 = { u2r - v2r, u2i - v2i }, o4 = { u1r - v1r, u1i - v1i };
            o[0] = (CV){ a0.r + (t1r + t2r), a0.i + (t1i + t2i) };
            ISA_NAME(cmul)(&o1, POWER(1));
            ISA_NAME(cmul)(&o2, POWER(2));
            ISA_NAME(cmul)(&o3, POWER(3));
            ISA_NAME(cmul)(&o4, POWER(4));
            o[s] = o1;
            o[2 * s] = o2;
            o[3 * s] = o3;
            o[4 * s] = o4;
    STAGE_TAIL
}

INLINE void ISA_NAME(stage4)(int n, int s, const CV *x, CV *y)
{
    STAGE_HEAD(4)
            const CV a0 = a[0], a1 = a[s * m], a2 = a[2 * s * m], a3 = a[3 * s * m];
            const V t0r = a0.r + a2.r, t0i = a0.i + a2.i, t1r = a0.r - a2.r, t1i = a0.i - a2.i;
            const V t2r = a1.r + a3.r, t2i = a1.i + a3.i, t3r = a1.i - a3.i, t3i = a3.r - a1.r;
            CV o1 = { t1r + t3r, t1i + t3i }, o2 = { t0r - t2r, t0i - t2i }, o3 = { t1r - t3r, t1i - t3i };
            o[0] = (CV){ t0r + t2r, t0i + t2i };
            ISA_NAME(cmul)(&o1, POWER(1));
            ISA_NAME(cmul)(&o2, POWER(2));
            ISA_NAME(cmul)(&o3, POWER(3));
            o[s] = o1;
            o[2 * s] = o2;
            o[3 * s] = o3;
    STAGE_TAIL
}

/* The last stage: n = 2, no twiddles. */
INLINE void ISA_NAME(stage2)(int s, const CV *x, CV *y)
{
    for (int q = 0; q < s; q++) {
        const CV a0 = x[q], a1 = x[q + s];
        y[q] = (CV){ a0.r + a1.r, a0.i + a1.i };
        y[q + s] = (CV){ a0.r - a1.r, a0.i - a1.i };
    }
}

#undef STAGE_HEAD
#undef STAGE_TAIL
#undef POWER

/* log10 of normal positive numbers, error under 1e-7 of the result or 4e-8: x = 2^e m, m in [sqrt(1/2),
 * sqrt(2)). */
INLINE V ISA_NAME(log10v)(V x)
{
    const VI bits = (VI)x;
    VI e = ((bits >> 23) & 255) - 126;
    V m = (V)((bits & 0x007fffff) | 0x3f000000);                              /* [0.5, 1) */
    const VI low = m < 0.70710678f;                                           /* -1 where true */
    e += low;
    m = (V)((VI)m + (low & 0x00800000)) - 1.0f;                               /* doubled there, then m - 1 */
    const V z = m * m;
    V p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const V ef = __builtin_convertvector(e, V);
    const V y = p * m * z - 0.5f * z;                                         /* ln(1+m) = m + y */
    return (m * 0.43359375f + y * 0.43359375f) + (m + y) * 7.0073190e-4f + ef * 3.0102999566e-1f;
}

/* Frames f0 .. f0 + ISA_LANES - 1. t: see above, rows of MEL_T floats. out row b at out + b * ld: log10 of
 * the mel power, not yet clamped. Returns the largest of the first n_valid lanes. */
static float ISA_NAME(mel_block)(const float *t, float *out, size_t ld, uint32_t n_valid)
{
    CV a[200], b[200];
    for (int k = 0; k < 200; k++) {
        const int n0 = 2 * k, n1 = 2 * k + 1;
        a[k].r = *(const ISA_NAME(vu) *)(t + (n0 % 160) * MEL_T + n0 / 160) * mel.window[n0];
        a[k].i = *(const ISA_NAME(vu) *)(t + (n1 % 160) * MEL_T + n1 / 160) * mel.window[n1];
    }
    ISA_NAME(stage5)(200, 1, a, b);
    ISA_NAME(stage5)(40, 5, b, a);
    ISA_NAME(stage4)(8, 25, a, b);
    ISA_NAME(stage2)(100, b, a);

    /* X[k] = E[k] + w^k O[k] with E, O the spectra of even and odd samples. Pairs k, 200 - k share their
     * parts. */
    V power[201];
    for (int k = 0; k <= 100; k++) {
        const CV z = a[k], c = a[(200 - k) % 200];
        const V er = (z.r + c.r) * 0.5f, ei = (z.i - c.i) * 0.5f;             /* E[k]            */
        CV o = { (z.i + c.i) * 0.5f, (c.r - z.r) * 0.5f };                    /* O[k]            */
        ISA_NAME(cmul)(&o, mel.untangle[2 * k], mel.untangle[2 * k + 1]);
        const V pr = er + o.r, pi = ei + o.i, mr = er - o.r, mi = ei - o.i;   /* X[k], X*[200-k] */
        power[k] = pr * pr + pi * pi;
        power[200 - k] = mr * mr + mi * mi;
    }

    const V zero = { 0 }, lowest = zero + 1e-10f, minus10 = zero - 10.0f;
    V top = minus10;
    for (int bin = 0; bin < MEDIA_MEL_BINS; bin++) {
        const struct mel_filter *f = &mel.filter[bin];
        V sum = power[f->first] * f->weight[0];
        for (uint32_t j = 1; j < f->n; j++) sum += power[f->first + j] * f->weight[j];
        const V y = ISA_NAME(maxv)(ISA_NAME(log10v)(ISA_NAME(maxv)(sum, lowest)), minus10);
        *(ISA_NAME(vu) *)(out + (size_t)bin * ld) = y;
        top = ISA_NAME(maxv)(y, top);
    }
    float best = -10.0f;
    for (uint32_t l = 0; l < n_valid; l++) best = top[l] > best ? top[l] : best;
    return best;
}

#undef V
#undef VI
#undef CV
#undef INLINE
