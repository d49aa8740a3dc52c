/* tests/bare/pcre2/pcre2.h - in place of PCRE2 on a machine that lacks its headers (docs/cuda.md, gpu-check): a vocabulary can
 * be loaded, text can not be cut into tokens. The goldens then take their tokens from what was made of them elsewhere. */
#ifndef TESTS_BARE_PCRE2_H
#define TESTS_BARE_PCRE2_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef unsigned char PCRE2_UCHAR;
typedef const unsigned char *PCRE2_SPTR;
typedef size_t PCRE2_SIZE;
typedef struct pcre2_code { int none; } pcre2_code;
typedef struct pcre2_match_data { int none; } pcre2_match_data;
enum { PCRE2_UTF = 1, PCRE2_UCP = 2, PCRE2_NEVER_BACKSLASH_C = 4, PCRE2_NO_UTF_CHECK = 8, PCRE2_NO_JIT = 16, PCRE2_JIT_COMPLETE = 32 };
enum { PCRE2_ERROR_NOMATCH = -1, PCRE2_ERROR_JIT_STACKLIMIT = -46, PCRE2_ERROR_INTERNAL = -44 };

static inline pcre2_code *pcre2_compile(PCRE2_SPTR p, PCRE2_SIZE n, uint32_t flags, int *why, PCRE2_SIZE *at, void *context)
{
    static pcre2_code one;
    (void)p, (void)n, (void)flags, (void)context;
    *why = 0, *at = 0;
    return &one;
}
static inline int pcre2_jit_compile(pcre2_code *c, uint32_t flags) { (void)c, (void)flags; return 0; }
static inline void pcre2_code_free(pcre2_code *c) { (void)c; }
static inline int pcre2_get_error_message(int why, PCRE2_UCHAR *out, PCRE2_SIZE cap)
{
    (void)why;
    return snprintf((char *)out, cap, "this build has no PCRE2");
}
static inline pcre2_match_data *pcre2_match_data_create_from_pattern(const pcre2_code *c, void *context)
{
    static pcre2_match_data one;
    (void)c, (void)context;
    return &one;
}
static inline void pcre2_match_data_free(pcre2_match_data *m) { (void)m; }
static inline PCRE2_SIZE *pcre2_get_ovector_pointer(pcre2_match_data *m)
{
    static PCRE2_SIZE none[2];
    (void)m;
    return none;
}
static inline int pcre2_match(const pcre2_code *c, PCRE2_SPTR s, PCRE2_SIZE n, PCRE2_SIZE at, uint32_t flags, pcre2_match_data *m,
                              void *context)
{
    (void)c, (void)s, (void)n, (void)at, (void)flags, (void)m, (void)context;
    return PCRE2_ERROR_INTERNAL;
}

#endif
