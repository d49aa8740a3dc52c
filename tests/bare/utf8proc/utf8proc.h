/* tests/bare/utf8proc/utf8proc.h - in place of utf8proc on a machine that lacks its headers; beside pcre2.h, so never asked. */
#ifndef TESTS_BARE_UTF8PROC_H
#define TESTS_BARE_UTF8PROC_H

#include <stdint.h>
#include <sys/types.h>

typedef int32_t utf8proc_int32_t;
typedef ssize_t utf8proc_ssize_t;
typedef enum { UTF8PROC_CATEGORY_CN, UTF8PROC_CATEGORY_MN, UTF8PROC_CATEGORY_MC, UTF8PROC_CATEGORY_ME } utf8proc_category_t;
typedef struct { uint16_t decomp_seqindex, decomp_type, combining_class; } utf8proc_property_t;
enum { UTF8PROC_COMPOSE = 1, UTF8PROC_DECOMPOSE = 2, UTF8PROC_STABLE = 4 };

static inline utf8proc_category_t utf8proc_category(utf8proc_int32_t c) { (void)c; return UTF8PROC_CATEGORY_CN; }
static inline const utf8proc_property_t *utf8proc_get_property(utf8proc_int32_t c)
{
    static const utf8proc_property_t none = { UINT16_MAX, 0, 0 };
    (void)c;
    return &none;
}
static inline utf8proc_ssize_t utf8proc_decompose_char(utf8proc_int32_t c, utf8proc_int32_t *out, utf8proc_ssize_t cap, int how, int *last)
{
    (void)c, (void)out, (void)cap, (void)how, (void)last;
    return -1;
}
static inline utf8proc_ssize_t utf8proc_normalize_utf32(utf8proc_int32_t *s, utf8proc_ssize_t n, int how)
{
    (void)s, (void)n, (void)how;
    return -1;
}

#endif
