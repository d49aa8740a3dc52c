/* comm/nccl.c - omnidrop-nccl.so: the calls of NCCL and of the CUDA runtime that comm/ is made of (struct nccl_lib in
 * inside.h). Tensors on device memory only; who starts, who exchanges the id and who notices deaths is MPI and the watcher.
 *
 * Communicators are nonblocking, so that no call waits on the host for a peer; an abort comes from a thread of its own,
 * ends the kernels that wait on the device, and leaves a handle that says no. Parts of different lengths are gathered by
 * grouped broadcasts. A sum has NCCL's order: the same bits on every rank and every run on the same machines, but not
 * those of rank order. */
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>

#include "comm/inside.h"

_Static_assert(sizeof(ncclUniqueId) <= NCCL_ID_BYTES, "an id fits");
_Static_assert((int)ncclInProgress == NCCL_IN_PROGRESS, "one number for it");

enum { CUDA_BASE = 1000 };         /* error numbers of the CUDA runtime come above this */
struct handle { ncclComm_t comm; pthread_mutex_t lock; bool aborted; };

static int cuda_rc(cudaError_t rc) { return rc == cudaSuccess ? 0 : CUDA_BASE + (int)rc; }

static int lib_version(char *text, size_t cap)
{
    int nccl = 0, runtime = 0, driver = 0;
    const int rc = (int)ncclGetVersion(&nccl);
    if (rc != 0) return rc;
    cudaRuntimeGetVersion(&runtime);
    cudaDriverGetVersion(&driver);
    char drv[32] = "no driver";
    if (driver > 0) snprintf(drv, sizeof drv, "driver %d.%d", driver / 1000, driver % 1000 / 10);
    snprintf(text, cap, "NCCL %d.%d.%d, CUDA %d.%d, %s", nccl / 10000, nccl / 100 % 100, nccl % 100, runtime / 1000,
             runtime % 1000 / 10, drv);
    return 0;
}

static int lib_id(uint8_t id[NCCL_ID_BYTES])
{
    ncclUniqueId u;
    const int rc = (int)ncclGetUniqueId(&u);
    if (rc == 0)
        for (size_t i = 0; i < sizeof u; i++) id[i] = (uint8_t)((const char *)&u)[i];
    return rc;
}

static int lib_device(int device, char bus[32])
{
    int rc = cuda_rc(cudaSetDevice(device));
    if (rc == 0) rc = cuda_rc(cudaDeviceGetPCIBusId(bus, 32, device));
    return rc;
}

static int lib_open(const uint8_t id[NCCL_ID_BYTES], int rank, int size, void **h)
{
    ncclUniqueId u;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    for (size_t i = 0; i < sizeof u; i++) ((char *)&u)[i] = (char)id[i];
    *h = NULL;
    struct handle *o = calloc(1, sizeof *o);
    if (o == NULL) return (int)ncclSystemError;
    pthread_mutex_init(&o->lock, NULL);
    const ncclResult_t rc = ncclCommInitRankConfig(&o->comm, size, u, rank, &config);
    if (rc != ncclSuccess && rc != ncclInProgress) {
        free(o);
        return (int)rc;
    }
    *h = o;
    return 0;
}

/* The communicator, held; NULL: it was aborted. */
static ncclComm_t hold(void *h)
{
    struct handle *o = h;
    pthread_mutex_lock(&o->lock);
    if (!o->aborted) return o->comm;
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

/* Calls of a group are only noted, or in progress like any other. */
static bool goes_on(ncclResult_t rc) { return rc == ncclSuccess || rc == ncclInProgress; }

/* In progress is no error: the caller asks for the state. */
static int let_go(void *h, ncclResult_t rc)
{
    struct handle *o = h;
    pthread_mutex_unlock(&o->lock);
    return rc == ncclInProgress ? 0 : (int)rc;
}

static int lib_state(void *h)
{
    ncclComm_t comm = hold(h);
    ncclResult_t now = ncclSuccess;
    if (comm == NULL) return (int)ncclRemoteError;
    const ncclResult_t rc = ncclCommGetAsyncError(comm, &now);
    let_go(h, rc);
    return rc != ncclSuccess ? (int)rc : (int)now;
}

static int lib_finish(void *h)
{
    ncclComm_t comm = hold(h);
    if (comm == NULL) return (int)ncclRemoteError;
    return let_go(h, ncclCommFinalize(comm));
}

static void lib_abort(void *h)
{
    struct handle *o = h;
    if (hold(h) == NULL) return;
    o->aborted = true;
    ncclCommAbort(o->comm);
    let_go(h, ncclSuccess);
}

static void lib_close(void *h)
{
    struct handle *o = h;
    if (hold(h) != NULL) {
        o->aborted = true;
        ncclCommDestroy(o->comm);
        let_go(h, ncclSuccess);
    }
    pthread_mutex_destroy(&o->lock);
    free(o);
}

static void lib_text(void *h, int rc, char *text, size_t cap)
{
    struct handle *o = h;
    if (rc >= CUDA_BASE) snprintf(text, cap, "%s", cudaGetErrorString((cudaError_t)(rc - CUDA_BASE)));
    else snprintf(text, cap, "%s (%s)", ncclGetErrorString((ncclResult_t)rc), ncclGetLastError(o && !o->aborted ? o->comm : NULL));
}

static int lib_all_reduce(void *h, void *stream, float *x, size_t n)
{
    ncclComm_t comm = hold(h);
    if (comm == NULL) return (int)ncclRemoteError;
    return let_go(h, ncclAllReduce(x, x, n, ncclFloat, ncclSum, comm, stream));
}

static int lib_all_gather(void *h, void *stream, int rank, int size, const void *mine, void *all, const size_t *bytes)
{
    ncclComm_t comm = hold(h);
    if (comm == NULL) return (int)ncclRemoteError;
    bool even = true;
    for (int i = 1; i < size; i++) even = even && bytes[i] == bytes[0];
    if (even) return let_go(h, ncclAllGather(mine, all, bytes[0], ncclUint8, comm, stream));
    uint8_t *at = all;
    ncclResult_t rc = ncclGroupStart();
    for (int i = 0; goes_on(rc) && i < size; at += bytes[i], i++)
        if (bytes[i] > 0) rc = ncclBroadcast(i == rank ? mine : at, at, bytes[i], ncclUint8, i, comm, stream);
    const ncclResult_t end = ncclGroupEnd();
    return let_go(h, goes_on(rc) ? end : rc);
}

static int lib_gather(void *h, void *stream, int rank, int size, int root, const void *mine, void *all, const size_t *bytes)
{
    ncclComm_t comm = hold(h);
    if (comm == NULL) return (int)ncclRemoteError;
    uint8_t *at = all;
    ncclResult_t rc = ncclGroupStart();
    for (int i = 0; rank == root && goes_on(rc) && i < size; at += bytes[i], i++) {
        if (i == root && mine != at)
            rc = cudaMemcpyAsync(at, mine, bytes[i], cudaMemcpyDeviceToDevice, stream) == cudaSuccess ? ncclSuccess
                                                                                                      : ncclUnhandledCudaError;
        else if (i != root && bytes[i] > 0) rc = ncclRecv(at, bytes[i], ncclUint8, i, comm, stream);
    }
    if (rank != root && bytes[rank] > 0) rc = ncclSend(mine, bytes[rank], ncclUint8, root, comm, stream);
    const ncclResult_t end = ncclGroupEnd();
    return let_go(h, goes_on(rc) ? end : rc);
}

static int lib_broadcast(void *h, void *stream, int root, void *x, size_t bytes)
{
    ncclComm_t comm = hold(h);
    if (comm == NULL) return (int)ncclRemoteError;
    return let_go(h, ncclBroadcast(x, x, bytes, ncclUint8, root, comm, stream));
}

static int lib_send(void *h, void *stream, int to, const void *x, size_t bytes)
{
    ncclComm_t comm = hold(h);
    if (comm == NULL) return (int)ncclRemoteError;
    return let_go(h, ncclSend(x, bytes, ncclUint8, to, comm, stream));
}

static int lib_recv(void *h, void *stream, int from, void *x, size_t bytes)
{
    ncclComm_t comm = hold(h);
    if (comm == NULL) return (int)ncclRemoteError;
    return let_go(h, ncclRecv(x, bytes, ncclUint8, from, comm, stream));
}

__attribute__((visibility("default"))) extern const struct nccl_lib omnidrop_nccl;
const struct nccl_lib omnidrop_nccl = {
    .abi = NCCL_LIB_ABI,
    .version = lib_version,
    .id = lib_id,
    .device = lib_device,
    .open = lib_open,
    .state = lib_state,
    .finish = lib_finish,
    .abort = lib_abort,
    .close = lib_close,
    .text = lib_text,
    .all_reduce = lib_all_reduce,
    .all_gather = lib_all_gather,
    .gather = lib_gather,
    .broadcast = lib_broadcast,
    .send = lib_send,
    .recv = lib_recv,
};
