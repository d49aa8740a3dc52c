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
/* What a library needs that gives st's device work of its own, in order with the ops (NCCL): its cudaStream_t and the number of the
 * device. false: the CPU, which has neither. */
bool device_native(struct stream *st, void **native, int *device);
/* Asked again and again by who waits for st's work, from a millisecond on and at the end; `waited`: for so long (0 at the end). Its
 * error ends the wait, and is returned by the op or copy that waited: the work may then still be under way. */
typedef status device_look(void *self, double waited, struct err *e);
/* For work that may wait for somebody else, and so for ever. look NULL: no more. Of the CPU nothing, as its ops wait for nobody. */
void device_guard(struct stream *st, device_look *look, void *self);

/* Is the CUDA backend beside this program (omnidrop-cuda.so, base/plugin.h), with the libraries that it needs? text: what is missing,
 * or "". It takes the device that CUDA_VISIBLE_DEVICES puts first, or that of this rank's number on its host where there are several. */
bool device_cuda_backend(char *text, size_t cap);

#endif
