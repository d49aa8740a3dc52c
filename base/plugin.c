/* base/plugin.c - see plugin.h. */
#include "base/plugin.h"

#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *open_in(const char *dir, const char *up, const char *file, bool shared)
{
    char path[PATH_MAX + 128];
    snprintf(path, sizeof path, "%s%s/%s", dir, up, file);
    return access(path, R_OK) == 0 ? dlopen(path, RTLD_NOW | (shared ? RTLD_GLOBAL : RTLD_LOCAL)) : NULL;
}

const void *plugin_symbol(const char *file, const char *symbol, bool shared, char *why, size_t cap)
{
    static const char *const up[] = { "", "/..", "/../..", "/../../..", "/../lib/omnidrop", "/../lib" };
    char exe[PATH_MAX];
    const char *dir = getenv("OMNIDROP_LIB");
    void *so = NULL;
    dlerror();
    if (dir != NULL && *dir != 0) {
        so = open_in(dir, "", file, shared);
    } else {
        const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
        exe[n > 0 ? n : 0] = 0;
        dir = dirname(exe);
        for (size_t i = 0; so == NULL && n > 0 && i < sizeof up / sizeof *up; i++) so = open_in(dir, up[i], file, shared);
    }
    const char *said = dlerror();
    const void *found = so ? dlsym(so, symbol) : NULL;
    if (so == NULL) snprintf(why, cap, "%s: %s", file, said ? said : "not beside the program");
    else if (found == NULL) snprintf(why, cap, "%s: of another version of this program", file);
    return found;
}
