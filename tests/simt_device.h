/* tests/simt_device.h - `--device simt` of a program of the tests: the CUDA backend played by the CPU (kernels/fake_cuda.cpp). */
#ifndef TESTS_SIMT_DEVICE_H
#define TESTS_SIMT_DEVICE_H

#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The device to ask for; its library lies in `folder` beside this program, unless OMNIDROP_LIB names another place already. */
static inline const char *simt_device(const char *folder)
{
    char exe[PATH_MAX], lib[PATH_MAX + 32];
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    snprintf(lib, sizeof lib, "%s/%s", dirname(exe), folder);
    setenv("OMNIDROP_LIB", lib, 0);
    setenv("OMNIDROP_CUDA_POISON", "1", 0);    /* memory that was released is NaN, to be seen by who still reads it */
    return "cuda";
}

#endif
