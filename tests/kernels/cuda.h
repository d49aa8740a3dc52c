/* tests/kernels/cuda.h - what the tests of the CUDA kernels share. A test calls the launchers of kernels/cuda/kernels.h,
 * which here run on the CPU (simt.h), and compares with the CPU's op, the kernel's twin. The same tests run on a GPU (device.h);
 * therefore all that a launcher's arguments point to lies on the heap. */
#ifndef TESTS_KERNELS_CUDA_H
#define TESTS_KERNELS_CUDA_H

#include "kernels/cuda/kernels.h"
#include "tests/kernels/twin.h"
#ifdef CUDA_ON_DEVICE
#include "tests/kernels/device.h"
#include "launchers.h"   /* made of kernels.h: every launcher becomes ON_DEVICE(launcher, its struct, ...) */
#endif

/* The GPU that launchers find in the simulation: 80, or 90 with the kernels for sm_90a. */
extern unsigned simt_compute;

/* Device memory: exactly these bytes, so that ASan sees the first one beyond. */
TWIN void *cuda_copy(const void *host, size_t bytes)
{
    void *p = twin_alloc(bytes);
    if (bytes > 0) memcpy(p, host, bytes);
    return p;
}

/* n values of a device array, widened. */
TWIN float *cuda_read(const void *device, size_t n, enum dtype dtype)
{
    float *x = twin_floats(n);
    for (size_t i = 0; i < n; i++) x[i] = dtype == DT_BF16 ? bf16_to_f32(((const bf16 *)device)[i]) : ((const float *)device)[i];
    return x;
}

/* As bf16. */
TWIN bf16 *cuda_bf16(const float *x, size_t n)
{
    bf16 *y = twin_alloc(n * sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = bf16_of_f32(x[i]);
    return y;
}

/* Each value within tol of its twin's, relative to the largest; a value of bf16 may be the neighbour of its twin's too. */
TWIN void cuda_near(const float *got, const float *want, size_t n, enum dtype dtype, double tol, const char *what)
{
    double top = 1e-30;
    for (size_t i = 0; i < n; i++)
        if (fabs(want[i]) > top) top = fabs(want[i]);
    for (size_t i = 0; i < n; i++) {
        const double step = dtype == DT_BF16 ? fabs(want[i]) * 0x1p-7 : 0.0;
        if (!(fabs((double)got[i] - want[i]) <= tol * top + step))
            fail_msg("%s: element %zu of %zu is %.9g, not %.9g", what, i, n, (double)got[i], (double)want[i]);
    }
}

#endif
