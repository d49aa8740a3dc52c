/* media/resize_isa.h - inside header: the two passes of the frame resizer over [w, 4] rows; see isa.h.
 * Across: an output pixel is a sum of 4-float pixels, weights scalar. Down: whole rows times a weight. */

#define V ISA_NAME(vf)
typedef float V __attribute__((vector_size(4 * ISA_LANES), aligned(4)));

/* dst [ow, 4] = row of src [w, 4] resized across. */
static void ISA_NAME(across)(const struct taps *t, const float *src, float *dst)
{
    for (uint32_t o = 0; o < t->n_out; o++) {
        const v4 *px = (const v4 *)src + t->first[o];
        const float *w = t->weight + (size_t)o * t->n_max;
        v4 sum = px[0] * w[0];
        for (uint32_t k = 1; k < t->count[o]; k++) sum += px[k] * w[k];
        ((v4 *)dst)[o] = sum;
    }
}

/* dst [n] = sum over k < count of weight[k] * row[k][n]; whole: to whole numbers 0..255, half to even. n % 4
 * == 0. */
static void ISA_NAME(down)(const float *const *row, const float *weight, uint32_t count, size_t n, bool whole,
                           float *dst)
{
    const float magic = 12582912.0f;          /* 1.5 * 2^23: adding it rounds to whole, half to even */
    const V zero = { 0 }, top = zero + 255.0f;
    size_t i = 0;
    for (; i + ISA_LANES <= n; i += ISA_LANES) {
        V sum = *(const V *)(row[0] + i) * weight[0];
        for (uint32_t k = 1; k < count; k++) sum += *(const V *)(row[k] + i) * weight[k];
        if (whole) {
            ISA_NAME(vi) m = sum > zero;
            sum = (V)(m & (ISA_NAME(vi))sum);
            m = sum < top;
            sum = (V)((m & (ISA_NAME(vi))sum) | (~m & (ISA_NAME(vi))top));
            sum = (sum + magic) - magic;
        }
        *(V *)(dst + i) = sum;
    }
    for (; i < n; i++) {
        float sum = row[0][i] * weight[0];
        for (uint32_t k = 1; k < count; k++) sum += row[k][i] * weight[k];
        if (whole) sum = ((sum > 0 ? sum < 255 ? sum : 255 : 0) + magic) - magic;
        dst[i] = sum;
    }
}

/* RGB8 [n, 3] -> [n, 4] f32. The last pixel is read byte by byte: nothing is read behind the row. */
static void ISA_NAME(widen)(const uint8_t *src, size_t n, float *dst)
{
    size_t i = 0;
    for (; i + 2 <= n; i++) {
        u8x4 b;
        memcpy(&b, src + 3 * i, 4);
        ((v4 *)dst)[i] = __builtin_convertvector(b, v4);
    }
    for (; i < n; i++) {
        dst[4 * i] = src[3 * i];
        dst[4 * i + 1] = src[3 * i + 1];
        dst[4 * i + 2] = src[3 * i + 2];
        dst[4 * i + 3] = 0.0f;
    }
}

/* n values of one channel (stride 4) of one patch row, scaled. */
static void ISA_NAME(patch_row)(const float *src, uint32_t n, float shift, float scale, float *dst)
{
    for (uint32_t x = 0; x < n; x++) dst[x] = (src[4 * x] - shift) * scale;
}

#undef V
