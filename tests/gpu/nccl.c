/* tests/gpu/nccl.c - gpu_nccl omnidrop-nccl.so: the calls of struct nccl_lib (comm/inside.h) on one rank and one GPU, whose
 * results are known: what goes in comes out. One JSON object a line, as gpu_bench. */
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/inside.h"

enum { N = 1 << 20 };
static const struct nccl_lib *lib;
static void *h;
static float *x, *y;

static int fail(const char *name, const char *why)
{
    printf("{\"name\": \"nccl %s\", \"error\": \"%s\"}\n", name, why);
    return 1;
}

/* A call is begun; wait for it at most ten seconds. */
static int over(int rc)
{
    for (int i = 0; i < 10000 && (rc == 0 || rc == NCCL_IN_PROGRESS); i++) {
        rc = lib->state(h);
        if (rc != NCCL_IN_PROGRESS) return rc ? rc : (int)cudaDeviceSynchronize();
        usleep(1000);
    }
    return rc;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Runs call number i on what is 0, 1, 2 ...; y (or x in place) must be that again. */
static int one(int i)
{
    static const char *const name[] = { "all_reduce", "all_gather", "gather", "broadcast" };
    const size_t bytes = N * sizeof(float);
    float *host = malloc(bytes), *back = malloc(bytes);
    int rc = host && back ? 0 : 1;
    for (size_t k = 0; k < N && rc == 0; k++) host[k] = (float)k, back[k] = -1;
    if (rc == 0) rc = (int)cudaMemcpy(x, host, bytes, cudaMemcpyHostToDevice);
    if (rc == 0) rc = (int)cudaMemset(y, 0xff, bytes);
    const double t = now();
    if (rc == 0)
        rc = over(i == 0 ? lib->all_reduce(h, NULL, x, N) : i == 1 ? lib->all_gather(h, NULL, 0, 1, x, y, &bytes)
                  : i == 2 ? lib->gather(h, NULL, 0, 1, 0, x, y, &bytes) : lib->broadcast(h, NULL, 0, x, bytes));
    const double seconds = now() - t;
    if (rc == 0) rc = (int)cudaMemcpy(back, i == 1 || i == 2 ? y : x, bytes, cudaMemcpyDeviceToHost);
    char text[256] = "";
    if (rc != 0) lib->text(h, rc, text, sizeof text);
    else if (memcmp(host, back, bytes) != 0) rc = 1, snprintf(text, sizeof text, "one rank's values came back changed");
    if (rc == 0)
        printf("{\"name\": \"nccl %s\", \"value\": %.6g, \"unit\": \"us\", \"note\": \"4 MB, one rank\"}\n", name[i], seconds * 1e6);
    free(host), free(back);
    return rc ? fail(name[i], text) : 0;
}

int main(int argc, char **argv)
{
    uint8_t id[NCCL_ID_BYTES];
    char text[256] = "", bus[32];
    if (argc != 2) return 2;
    void *so = dlopen(argv[1], RTLD_NOW);
    if (so == NULL) return fail("open", "omnidrop-nccl.so can not be opened");
    lib = dlsym(so, NCCL_LIB_SYMBOL);
    if (lib == NULL || lib->abi != NCCL_LIB_ABI) return fail("open", "another version of omnidrop-nccl.so");
    lib->version(text, sizeof text);
    printf("{\"name\": \"nccl version\", \"value\": \"%s\"}\n", text);
    int rc = lib->device(0, bus);
    if (rc == 0) rc = lib->id(id);
    if (rc == 0) rc = over(lib->open(id, 0, 1, &h));
    if (rc == 0) rc = (int)cudaMalloc((void **)&x, N * sizeof *x);
    if (rc == 0) rc = (int)cudaMalloc((void **)&y, N * sizeof *y);
    if (rc != 0) {
        snprintf(text, sizeof text, "error %d of CUDA or NCCL", rc);
        return fail("open", text);
    }
    for (int i = 0; i < 4; i++) rc |= one(i);
    lib->close(h);
    return rc != 0;
}
