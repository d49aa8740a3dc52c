/* kernels/cuda/pages.h - where things are in a page (kernels.h says what a page is). */
#ifndef KERNELS_CUDA_PAGES_H
#define KERNELS_CUDA_PAGES_H

#include "kernels/cuda/device.h"

enum { PAGE = CUDA_PAGE_TOKENS, BAND_BYTES = PAGE * CUDA_BAND_BYTES };   /* a band of a page: 8 KiB */

/* Values of dtype T in a band's row. */
template <class T> DEVICE constexpr uint32_t band_values() { return CUDA_BAND_BYTES / sizeof(T); }
static inline uint32_t bands_of(uint32_t D, enum dtype dtype)
{
    const uint32_t each = CUDA_BAND_BYTES / (uint32_t)dtype_size(dtype);
    return (D + each - 1) / each;
}

/* The first band of K (kind 0) or V (kind 1) of KV head g. */
DEVICE unsigned char *page_head(const cuda_pages &p, uint32_t bands, uint32_t page, uint32_t kind, uint32_t g)
{
    return (unsigned char *)p.base + (uint64_t)page * p.page_bytes + (uint64_t)(kind * p.G + g) * bands * BAND_BYTES;
}

/* Where the 16-byte piece `piece` (over all bands) of a token's row lies, from the first band on. */
DEVICE uint32_t piece_at(uint32_t token, uint32_t piece)
{
    return piece / 8 * BAND_BYTES + token * CUDA_BAND_BYTES + ((piece % 8) ^ (token % 8)) * 16;
}

#endif
