/* kernels/device.h - what is asked of devices before and beside their ops (kernels/ops.h). */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include "kernels/ops.h"

/* Bytes of the stream's device, and how many of them are free now. CPU: of the machine, all of them free. */
status device_memory(struct stream *st, uint64_t *free_bytes, uint64_t *total, struct err *e);

/* What became of the steps of a stream (ops->step_begin): launched one by one; captured as a graph, and run; run as a graph captured
 * before; not held back to their end. The CPU's: none. */
struct device_steps { uint64_t plain, captured, replayed, ended_early; };
struct device_steps device_steps(struct stream *st);

/* Is the CUDA backend beside this program (omnidrop-cuda.so, base/plugin.h), with the libraries that it needs? text: what is missing,
 * or "". It takes the device that CUDA_VISIBLE_DEVICES puts first, or that of this rank's number on its host where there are several. */
bool device_cuda_backend(char *text, size_t cap);

#endif
