/* tests/kernels/device.h - the tests of the CUDA kernels on a GPU. The same sources that run thread for thread on the CPU
 * (simt.h) are compiled a second time with CUDA_ON_DEVICE and linked with what nvcc made of the kernels.
 *
 * A test keeps all its memory on the heap of the host. Each call of a launcher is redirected (cuda.h): every block of the heap
 * that its arguments point into gets a twin of exactly that size on the device, which is filled before the launch and read back
 * behind it; so a test sees what the kernel wrote, and compute-sanitizer the first byte beyond. The program is linked with
 * --wrap=malloc and its kin, which is how the sizes of blocks are known. Arguments that point to the stack or into the program
 * itself end the test with a sentence: such lists belong on the heap (cuda_copy). */
#ifndef TESTS_KERNELS_DEVICE_H
#define TESTS_KERNELS_DEVICE_H

#include <stddef.h>

#include "base/err.h"

/* Brings what the arguments point to; they then point to the device. E_ARG, E_DEVICE. */
status device_bring(const char *kernel, void *args, size_t bytes, struct err *e);
/* Waits, takes everything back, frees it; returns st, or E_DEVICE with the kernel's name where it failed while it ran. */
status device_take(const char *kernel, status st, struct err *e);

#define ON_DEVICE(launcher, args, a, e)                                                                        \
    ({                                                                                                         \
        args on_device_ = *(a);                                                                                \
        const status brought_ = device_bring(#launcher, &on_device_, sizeof on_device_, e);                    \
        device_take(#launcher, brought_ == OK ? launcher(NULL, &on_device_, e) : brought_, e);                 \
    })

#endif
