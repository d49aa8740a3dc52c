/* kernels/stream.c - which device answers to a name. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/plugin.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/backend.h"
#include "kernels/device.h"

bool device_cuda_driver(char *text, size_t cap)
{
    void *lib = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (lib == NULL) {
        snprintf(text, cap, "no CUDA driver (libcuda.so.1) on this machine");
        return false;
    }
    int version = 0;
    int (*get_version)(int *);
    void *symbol = dlsym(lib, "cuDriverGetVersion");
    memcpy(&get_version, &symbol, sizeof get_version);   /* ISO C has no such cast */
    if (get_version == NULL || get_version(&version) != 0) version = 0;
    snprintf(text, cap, "CUDA driver %d.%d", version / 1000, version % 1000 / 10);
    dlclose(lib);
    return true;
}

static const struct cuda_backend *backend(char *why, size_t cap)
{
    const struct cuda_backend *b = plugin_symbol(CUDA_BACKEND_FILE, CUDA_BACKEND_SYMBOL, false, why, cap);
    if (b == NULL) return NULL;
    if (b->ops_bytes == sizeof(struct ops) && b->args_bytes == sizeof(struct attention_args) && b->own_bytes == sizeof *b) return b;
    snprintf(why, cap, "%s: of another version of this program", CUDA_BACKEND_FILE);
    return NULL;
}

bool device_cuda_backend(char *text, size_t cap)
{
    if (cap > 0) text[0] = 0;
    return backend(text, cap) != NULL;
}

status device_memory(struct stream *st, uint64_t *free_bytes, uint64_t *total, struct err *e)
{
    char why[512];
    if (strcmp(st->ops->name, "cuda") == 0) {
        const struct cuda_backend *b = backend(why, sizeof why);
        return b != NULL ? b->memory(st, free_bytes, total, e) : err_set(e, E_INTERNAL, "%s", why);
    }
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGE_SIZE);
    *free_bytes = *total = pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : (uint64_t)1 << 30;
    return OK;
}

static const struct cuda_backend *backend_of(const struct stream *st)
{
    char why[512];
    return strcmp(st->ops->name, "cuda") == 0 ? backend(why, sizeof why) : NULL;
}

struct device_steps device_steps(struct stream *st)
{
    const struct cuda_backend *b = backend_of(st);
    return b != NULL ? b->steps(st) : (struct device_steps){ 0 };
}

bool device_native(struct stream *st, void **native, int *device)
{
    const struct cuda_backend *b = backend_of(st);
    if (b != NULL) b->native(st, native, device);
    return b != NULL;
}

void device_guard(struct stream *st, device_look *look, void *self)
{
    const struct cuda_backend *b = backend_of(st);
    if (b != NULL) b->guard(st, look, self);
}

/* E_MODEL with what is missing, the driver named too. */
static status cuda_open(const struct stream_options *o, struct stream **out, struct err *e)
{
    char why[512], driver[128];
    struct err said = { .code = E_MODEL };
    const struct cuda_backend *b = backend(why, sizeof why);
    if (b != NULL && b->open(o, out, &said) == OK) return OK;
    device_cuda_driver(driver, sizeof driver);
    return err_set(e, said.code, "%s (%s)", b != NULL ? said.text : why, driver);
}

status stream_open(const struct stream_options *o, struct stream **out, struct err *e)
{
    const char *device = o->device != NULL ? o->device : "auto";
    struct err why = { 0 };
    if (strcmp(device, "cuda") == 0) {
        if (cuda_open(o, out, &why) == OK) return OK;
        return err_set(e, why.code, "no device 'cuda': %s; use --device cpu", why.text);
    }
    if (strcmp(device, "cpu") != 0 && strcmp(device, "auto") != 0)
        return err_set(e, E_MODEL, "no device '%s': give auto, cpu or cuda", device);
    /* Unasked, a GPU is taken where there is a driver; the instruction set is the CPU's alone, so naming one names the CPU. */
    char driver[128];
    const bool isa = o->isa != NULL || getenv("OMNIDROP_ISA") != NULL;
    if (strcmp(device, "auto") == 0 && !isa && device_cuda_driver(driver, sizeof driver)) {
        if (cuda_open(o, out, &why) == OK) return OK;
        fprintf(stderr, "omnidrop: %s, but no GPU is used: %s\n", driver, why.text);
    }
    return cpu_stream_open(o, out, e);
}
