/* kernels/cuda/backend.h - what omnidrop-cuda.so gives to the program that opens it (kernels/stream.c). It links no part of the
 * program: what it uses of base/ is in it a second time. */
#ifndef KERNELS_CUDA_BACKEND_H
#define KERNELS_CUDA_BACKEND_H

#include "kernels/device.h"

#define CUDA_BACKEND_FILE   "omnidrop-cuda.so"
#define CUDA_BACKEND_SYMBOL "omnidrop_cuda_backend"

struct cuda_backend {
    uint32_t ops_bytes, args_bytes, own_bytes;   /* sizes of struct ops, attention_args and this: of one build with the program */
    /* E_MODEL: no driver, no device, or one that the kernels were not built for. */
    status (*open)(const struct stream_options *o, struct stream **out, struct err *e);
    status (*memory)(struct stream *st, uint64_t *free_bytes, uint64_t *total, struct err *e);
    struct device_steps (*steps)(struct stream *st);
    /* st's cudaStream_t and its device's number, for a library that gives it work (NCCL). */
    void (*native)(struct stream *st, void **cuda_stream, int *device);
    void (*guard)(struct stream *st, device_look *look, void *self);       /* device_guard */
};

#endif
