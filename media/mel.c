/* media/mel.c - log-mel of a clip; the inner loops are in mel_isa.h. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "media/features.h"
#include "media/isa.h"

#define N_FFT 400
#define MEL_T 20                          /* floats a row of the transposed samples: 16 + 2, rounded up */
#define MEL_TAPS 16
#define REF_SAMPLES 4800000               /* the reference pads every clip to 300 s ... */
#define REF_FRAMES 30000                  /* ... and keeps so many frames */

struct mel_filter {
    uint32_t first, n;
    float weight[MEL_TAPS];
};

static struct {
    float window[N_FFT];
    float twiddle[2 * 200];               /* exp(-2 pi i k / 200): cos, -sin */
    float untangle[2 * 201];              /* exp(-2 pi i k / 400) */
    struct mel_filter filter[MEDIA_MEL_BINS];
} mel;

static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Slaney's scale: linear to 1000 Hz (mel 15), logarithmic above. */
static double hz_of_mel(double m)
{
    return m < 15.0 ? 200.0 * m / 3.0 : 1000.0 * exp((m - 15.0) * log(6.4) / 27.0);
}

static void tables_make(void)
{
    for (int k = 0; k < N_FFT; k++) mel.window[k] = (float)(0.5 - 0.5 * cos(2.0 * M_PI * k / N_FFT));
    for (int k = 0; k < 200; k++) {
        mel.twiddle[2 * k] = (float)cos(2.0 * M_PI * k / 200.0);
        mel.twiddle[2 * k + 1] = (float)-sin(2.0 * M_PI * k / 200.0);
    }
    for (int k = 0; k <= 200; k++) {
        mel.untangle[2 * k] = (float)cos(2.0 * M_PI * k / 400.0);
        mel.untangle[2 * k + 1] = (float)-sin(2.0 * M_PI * k / 400.0);
    }
    double p[MEDIA_MEL_BINS + 2];
    const double top = 15.0 + 27.0 * log(8.0) / log(6.4);                     /* mel(8000 Hz) */
    for (int i = 0; i < MEDIA_MEL_BINS + 2; i++) p[i] = hz_of_mel(top * i / (MEDIA_MEL_BINS + 1));
    for (int i = 0; i < MEDIA_MEL_BINS; i++) {
        struct mel_filter *f = &mel.filter[i];
        for (uint32_t j = 0; j <= N_FFT / 2; j++) {
            const double hz = 40.0 * j;
            const double up = (hz - p[i]) / (p[i + 1] - p[i]), down = (p[i + 2] - hz) / (p[i + 2] - p[i + 1]);
            const double w = 2.0 / (p[i + 2] - p[i]) * fmax(0.0, fmin(up, down));
            if (w <= 0.0) continue;
            if (f->n == 0) f->first = j;
            f->weight[f->n++] = (float)w;
        }
    }
}

#define ISA_SUFFIX plain
#define ISA_LANES 4
#include "media/mel_isa.h"
#undef ISA_SUFFIX
#undef ISA_LANES

#if MEDIA_HAVE_X86
#pragma GCC push_options
#pragma GCC target("avx2")
#define ISA_SUFFIX avx2
#define ISA_LANES 8
#include "media/mel_isa.h"
#undef ISA_SUFFIX
#undef ISA_LANES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define ISA_SUFFIX avx512
#define ISA_LANES 16
#include "media/mel_isa.h"
#undef ISA_SUFFIX
#undef ISA_LANES
#pragma GCC pop_options
#endif

size_t media_mel_frames(size_t n_samples) { return n_samples / MEDIA_HOP + (n_samples % MEDIA_HOP != 0); }

size_t media_audio_tokens(size_t n_frames) { return (n_frames + 1) / 4; }

size_t media_mel_filter(uint32_t bin, uint32_t *first, float weight[16])
{
    pthread_once(&once, tables_make);
    if (bin >= MEDIA_MEL_BINS) return 0;
    *first = mel.filter[bin].first;
    memcpy(weight, mel.filter[bin].weight, sizeof mel.filter[bin].weight);
    return mel.filter[bin].n;
}

/* Sample i of the padded clip: mirrored at the left end, zeros on the right up to 300 s and mirrored
 * there. */
static float sample_at(const float *x, size_t n, int64_t i)
{
    if (i < 0) i = -i;
    if (n <= REF_SAMPLES && i >= REF_SAMPLES) i = 2 * (int64_t)(REF_SAMPLES - 1) - i;
    return (size_t)i < n ? x[i] : 0.0f;
}

/* t[r][q] = sample 160 (f0 + q) - 200 + r for q < lanes + 2. */
static void transpose(const float *x, size_t n, size_t f0, uint32_t lanes, float *t)
{
    for (uint32_t q = 0; q < lanes + 2; q++) {
        const int64_t at = (int64_t)((f0 + q) * MEDIA_HOP) - N_FFT / 2;
        if (at >= 0 && (size_t)at + MEDIA_HOP <= n) {
            for (int r = 0; r < MEDIA_HOP; r++) t[r * MEL_T + q] = x[at + r];
        } else {
            for (int r = 0; r < MEDIA_HOP; r++) t[r * MEL_T + q] = sample_at(x, n, at + r);
        }
    }
}

status media_mel(const float *x, size_t n, float *out, struct err *e)
{
    if (n == 0) return err_set(e, E_ARG, "a clip of 0 samples has no spectrum");
    pthread_once(&once, tables_make);
    float (*block)(const float *, float *, size_t, uint32_t) = mel_block_plain;
    uint32_t lanes = 4;
#if MEDIA_HAVE_X86
    if (media_isa() == MEDIA_AVX2) block = mel_block_avx2, lanes = 8;
    if (media_isa() == MEDIA_AVX512) block = mel_block_avx512, lanes = 16;
#endif
    const size_t n_frames = media_mel_frames(n);
    size_t n_seen = (n + N_FFT / 2 + MEDIA_HOP - 1) / MEDIA_HOP;  /* frames that touch the signal */
    if (n <= REF_SAMPLES && n_seen > REF_FRAMES) n_seen = REF_FRAMES;
    if (n_seen < n_frames) n_seen = n_frames;

    float t[MEDIA_HOP * MEL_T], tail[MEDIA_MEL_BINS * 16];
    float top = -10.0f;
    for (size_t f0 = 0; f0 < n_seen; f0 += lanes) {
        const bool whole = f0 + lanes <= n_frames;
        transpose(x, n, f0, lanes, t);
        const uint32_t n_valid = n_seen - f0 < lanes ? (uint32_t)(n_seen - f0) : lanes;
        const float m = block(t, whole ? out + f0 : tail, whole ? n_frames : lanes, n_valid);
        if (m > top) top = m;
        if (whole || f0 >= n_frames) continue;
        for (int bin = 0; bin < MEDIA_MEL_BINS; bin++)
            memcpy(out + (size_t)bin * n_frames + f0, tail + bin * lanes, (n_frames - f0) * sizeof *out);
    }
    const float low = top - 8.0f;
    const size_t all = MEDIA_MEL_BINS * n_frames;
    for (size_t i = 0; i < all; i++) out[i] = ((out[i] > low ? out[i] : low) + 4.0f) / 4.0f;
    return OK;
}
