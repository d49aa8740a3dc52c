/* kernels/cuda/later.c - what the host learns of the device without waiting for it: bytes that come with the next wait, and times
 * of work, by events. See inside.h. */
#include <math.h>
#include <string.h>

#include "kernels/cuda/inside.h"

status cuda_later_open(struct cuda_stream *s, struct err *e)
{
    struct cuda_later *l = &s->later;
    TRY(cuda_check(cudaMallocHost((void **)&l->pinned, CUDA_STAGE_BYTES), "asking for pinned memory", e));
    for (int i = 0; i < OPS_TIMES; i++) {
        TRY(cuda_check(cudaEventCreateWithFlags(&l->begin[i], cudaEventDefault), "making an event", e));
        TRY(cuda_check(cudaEventCreateWithFlags(&l->end[i], cudaEventDefault), "making an event", e));
    }
    return OK;
}

void cuda_later_close(struct cuda_stream *s)
{
    struct cuda_later *l = &s->later;
    for (int i = 0; i < OPS_TIMES; i++) {
        if (l->begin[i]) cudaEventDestroy(l->begin[i]);
        if (l->end[i]) cudaEventDestroy(l->end[i]);
    }
    if (l->pinned) cudaFreeHost(l->pinned);
}

void cuda_deliver(struct cuda_stream *s, bool came)
{
    struct cuda_later *l = &s->later;
    for (uint32_t i = 0; i < l->n && came; i++) memcpy(l->fetch[i].host, l->pinned + l->fetch[i].at, l->fetch[i].bytes);
    l->n = 0;
    l->at = 0;
}

/* What finds no room is waited for. */
status cuda_fetch(struct stream *st, void *host, const void *src, size_t bytes, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_later *l = &s->later;
    if (l->n == CUDA_FETCHES || bytes > CUDA_STAGE_BYTES - l->at) return cuda_download(st, host, src, bytes, e);
    if (bytes == 0) return OK;
    TRY(cuda_enter(s, e));
    TRY(cuda_check(cudaMemcpyAsync(l->pinned + l->at, src, bytes, cudaMemcpyDeviceToHost, s->main), "copying from the device", e));
    l->fetch[l->n].host = host;
    l->fetch[l->n].at = l->at;
    l->fetch[l->n++].bytes = bytes;
    l->at += bytes;
    return OK;
}

/* ---- times ------------------------------------------------------------------------------------------------ */

status cuda_time_begin(struct stream *st, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_later *l = &s->later;
    if (l->n_times == OPS_TIMES) return err_set(e, E_ARG, "%d times that nobody has read", OPS_TIMES);
    TRY(cuda_enter(s, e));
    return cuda_check(cudaEventRecord(l->begin[(l->first_time + l->n_times) % OPS_TIMES], s->main), "marking a time", e);
}

status cuda_time_end(struct stream *st, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_later *l = &s->later;
    TRY(cuda_enter(s, e));
    TRY(cuda_check(cudaEventRecord(l->end[(l->first_time + l->n_times) % OPS_TIMES], s->main), "marking a time", e));
    l->n_times++;
    return OK;
}

status cuda_time_read(struct stream *st, bool wait, double *seconds, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    struct cuda_later *l = &s->later;
    const uint32_t i = l->first_time % OPS_TIMES;
    float ms;
    *seconds = NAN;
    if (l->n_times == 0) return OK;
    TRY(cuda_enter(s, e));
    if (wait) TRY(cuda_wait(s, l->end[i], "waiting for work to end", e));
    const cudaError_t over = cudaEventQuery(l->end[i]);
    if (over == cudaErrorNotReady) return OK;
    TRY(cuda_check(over, "asking whether work has ended", e));
    TRY(cuda_check(cudaEventElapsedTime(&ms, l->begin[i], l->end[i]), "reading a time", e));
    *seconds = (double)ms * 1e-3;
    l->first_time++;
    l->n_times--;
    return OK;
}
