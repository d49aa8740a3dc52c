/* kernels/stream.c - which device answers to a name. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

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
    snprintf(text, cap, "CUDA driver %d.%d found; this build has no CUDA backend", version / 1000,
             version % 1000 / 10);
    dlclose(lib);
    return true;
}

status stream_open(const struct stream_options *o, struct stream **out, struct err *e)
{
    const char *device = o->device != NULL ? o->device : "auto";
    if (strcmp(device, "cuda") == 0) {
        char driver[128];
        device_cuda_driver(driver, sizeof driver);
        return err_set(e, E_MODEL, "no device 'cuda': this build has no CUDA backend (%s); use --device cpu",
                       driver);
    }
    if (strcmp(device, "cpu") != 0 && strcmp(device, "auto") != 0)
        return err_set(e, E_MODEL, "no device '%s': give auto or cpu", device);
    return cpu_stream_open(o, out, e);
}
