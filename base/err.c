/* base/err.c - see err.h. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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
    return e->code;
}

status err_tag(struct err *e, const char *tag, const char *param)
{
    if (e == NULL) return E_INTERNAL;
    if (tag && e->tag == NULL) e->tag = tag;
    if (param && e->param[0] == 0) snprintf(e->param, sizeof e->param, "%s", param);
    return e->code;
}

const char *err_name(status code)
{
    static const char *const name[] = { "OK", "E_ARG", "E_INPUT", "E_MODEL", "E_FULL",
                                        "E_NOMEM", "E_IO", "E_DEVICE", "E_CANCELLED", "E_BUSY", "E_TIMEOUT",
                                        "E_INTERNAL" };
    return (unsigned)code < sizeof name / sizeof *name ? name[code] : "E_UNKNOWN";
}
