/* base/err.c - see err.h. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Bytes of the whole UTF-8 character at s (no longer than Unicode allows, no surrogate), 0: none begins here. */
static size_t character(const unsigned char *s)
{
    const size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f)) return 0;
    if ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f)) return 0;
    return n;
}

/* What was cut in the middle of a character, or never was text, becomes '?': errors go into JSON. */
static void make_text(char *s)
{
    while (*s) {
        const size_t n = character((const unsigned char *)s);
        if (n == 0) *s = '?';
        s += n ? n : 1;
    }
}

status err_set(struct err *e, status code, const char *fmt, ...)
{
    if (e == NULL) return code;
    e->code = code;
    e->tag = NULL;
    e->param[0] = 0;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    make_text(e->text);
    return code;
}

status err_prefix(struct err *e, const char *fmt, ...)
{
    if (e == NULL) return E_INTERNAL;
    char old[sizeof e->text];
    memcpy(old, e->text, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->text)
        snprintf(e->text + n, sizeof e->text - (size_t)n, ": %.*s", (int)(sizeof old - 1 - (size_t)n), old);
    make_text(e->text);
    return e->code;
}

status err_tag(struct err *e, const char *tag, const char *param)
{
    if (e == NULL) return E_INTERNAL;
    if (tag && e->tag == NULL) e->tag = tag;
    if (param && e->param[0] == 0) {
        snprintf(e->param, sizeof e->param, "%s", param);
        make_text(e->param);
    }
    return e->code;
}

const char *err_name(status code)
{
    static const char *const name[] = { "OK", "E_ARG", "E_INPUT", "E_MODEL", "E_FULL",
                                        "E_NOMEM", "E_IO", "E_DEVICE", "E_CANCELLED", "E_BUSY", "E_TIMEOUT",
                                        "E_INTERNAL" };
    return (unsigned)code < sizeof name / sizeof *name ? name[code] : "E_UNKNOWN";
}
