/* tests/kernels/fake_cuda.h - what fake_nccl.c asks of fake_cuda.cpp beside the runtime's own calls. */
#ifndef TESTS_FAKE_CUDA_H
#define TESTS_FAKE_CUDA_H

#include <stdbool.h>

#include "tests/kernels/fake/cuda_runtime_api.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Work of stream s that needs other processes: step(arg) is called in its turn until it returns true; it touches device memory.
 * arg is freed then. */
void fake_cuda_meeting(cudaStream_t s, bool (*step)(void *arg), void *arg);
/* Ends the program with `what` where n bytes at p are not within one allocation. */
void fake_cuda_device_memory(const void *p, size_t n, const char *what);
bool fake_cuda_stream(cudaStream_t s);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
