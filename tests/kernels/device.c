/* tests/kernels/device.c - see device.h. */
#include "tests/kernels/device.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Of the CUDA runtime; written out, so that the test of this file needs no CUDA. */
int cudaMalloc(void **out, size_t bytes);
int cudaFree(void *p);
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind);
int cudaDeviceSynchronize(void);
const char *cudaGetErrorString(int rc);
enum { TO_DEVICE = 1, TO_HOST = 2 };

/* What the simulation plays (cuda.h); a GPU is what it is. */
extern unsigned simt_compute;
unsigned simt_compute;

#define BLOCKS_MAX 65536
#define TWINS_MAX  64

/* ---- the heap ------------------------------------------------------------------------------------------ */

struct block { char *at; size_t bytes; };
static struct block blocks[BLOCKS_MAX];
static size_t n_blocks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void __real_free(void *p);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void __wrap_free(void *p);

static void forget(void *p)
{
    pthread_mutex_lock(&lock);
    for (size_t i = n_blocks; i-- > 0;)
        if (blocks[i].at == p) {
            blocks[i] = blocks[--n_blocks];
            break;
        }
    pthread_mutex_unlock(&lock);
}

static void *known(void *p, size_t bytes)
{
    pthread_mutex_lock(&lock);
    if (p != NULL && n_blocks < BLOCKS_MAX) blocks[n_blocks++] = (struct block){ p, bytes };
    pthread_mutex_unlock(&lock);
    return p;
}

void *__wrap_malloc(size_t bytes) { return known(__real_malloc(bytes), bytes); }
void *__wrap_calloc(size_t n, size_t bytes) { return known(__real_calloc(n, bytes), n * bytes); }
void *__wrap_realloc(void *p, size_t bytes)
{
    if (p != NULL) forget(p);
    return known(__real_realloc(p, bytes), bytes);
}
void __wrap_free(void *p)
{
    if (p != NULL) forget(p);
    __real_free(p);
}

/* The block that holds address p; bytes 0: none. */
static struct block block_of(const char *p)
{
    struct block found = { NULL, 0 };
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n_blocks; i++)
        if (p >= blocks[i].at && p < blocks[i].at + blocks[i].bytes) found = blocks[i];
    pthread_mutex_unlock(&lock);
    return found;
}

/* ---- twins --------------------------------------------------------------------------------------------- */

static struct twin { struct block host; char *device; } twins[TWINS_MAX];
static size_t n_twins;

static status check(int rc, const char *kernel, const char *what, struct err *e)
{
    return rc == 0 ? OK : err_set(e, E_DEVICE, "%s, %s: %s", kernel, what, cudaGetErrorString(rc));
}

static status twin_of(const char *kernel, const struct block *b, char **device, struct err *e)
{
    for (size_t i = 0; i < n_twins; i++)
        if (twins[i].host.at == b->at) {
            *device = twins[i].device;
            return OK;
        }
    if (n_twins == TWINS_MAX) return err_set(e, E_ARG, "%s: points to more than %d blocks", kernel, TWINS_MAX);
    struct twin *t = &twins[n_twins];
    t->host = *b;
    TRY(check(cudaMalloc((void **)&t->device, b->bytes), kernel, "memory for a block", e));
    n_twins++;
    TRY(check(cudaMemcpy(t->device, b->at, b->bytes, TO_DEVICE), kernel, "bringing a block", e));
    *device = t->device;
    return OK;
}

status device_bring(const char *kernel, void *args, size_t bytes, struct err *e)
{
    extern char **environ, __executable_start, end;
    const char *here = __builtin_frame_address(0);
    for (size_t i = 0; i + sizeof(char *) <= bytes; i += sizeof(char *)) {
        char *p, *device;
        memcpy(&p, (char *)args + i, sizeof p);
        if (p == NULL) continue;
        if ((p >= here && p < (char *)environ) || (p >= &__executable_start && p < &end))
            return err_set(e, E_ARG, "%s: bytes %zu of its arguments point to memory that is not on the heap", kernel, i);
        const struct block b = block_of(p);
        if (b.bytes == 0) continue;
        TRY(twin_of(kernel, &b, &device, e));
        device += p - b.at;
        memcpy((char *)args + i, &device, sizeof device);
    }
    return OK;
}

status device_take(const char *kernel, status st, struct err *e)
{
    if (st == OK) st = check(cudaDeviceSynchronize(), kernel, "while it ran", e);
    for (size_t i = 0; i < n_twins; i++) {
        if (st == OK)
            st = check(cudaMemcpy(twins[i].host.at, twins[i].device, twins[i].host.bytes, TO_HOST), kernel,
                       "taking a block back", e);
        cudaFree(twins[i].device);
    }
    n_twins = 0;
    return st;
}
