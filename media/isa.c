/* media/isa.c - see isa.h. */
#include "media/isa.h"

#include <stdlib.h>
#include <string.h>

static int forced = -1;

static enum media_isa found(void)
{
    enum media_isa best = MEDIA_PLAIN;
#if MEDIA_HAVE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) best = MEDIA_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        best = MEDIA_AVX512;
#endif
    const char *want = getenv("OMNIDROP_ISA");
    if (want != NULL && strcmp(want, "plain") == 0) best = MEDIA_PLAIN;
    if (want != NULL && strcmp(want, "avx2") == 0 && best > MEDIA_AVX2) best = MEDIA_AVX2;
    return best;
}

enum media_isa media_isa(void)
{
    int isa = __atomic_load_n(&forced, __ATOMIC_RELAXED);
    if (isa < 0) {
        isa = (int)found();
        __atomic_store_n(&forced, isa, __ATOMIC_RELAXED);
    }
    return (enum media_isa)isa;
}

void media_isa_force(enum media_isa isa)
{
    const enum media_isa best = found();
    __atomic_store_n(&forced, (int)(isa > best ? best : isa), __ATOMIC_RELAXED);
}
