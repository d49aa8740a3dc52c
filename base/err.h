/* base/err.h - how a function says no.
 * What can fail returns `status` and takes `struct err *e` last: a code for the program and a sentence
 * for the person (what was wrong, the numbers, what to do). On OK *e is untouched. */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stddef.h>

typedef enum status {
    OK = 0,
    E_ARG,         /* the caller's value is wrong: usage, flags, request fields                  */
    E_INPUT,       /* an input file is missing, unreadable, unsupported or damaged               */
    E_MODEL,       /* the checkpoint or the device cannot be loaded                              */
    E_FULL,        /* does not fit: pages, context length; the text names need and have          */
    E_NOMEM,       /* out of memory or disk                                                      */
    E_IO,          /* reading or writing failed at run time                                      */
    E_DEVICE,      /* a kernel or the device failed                                              */
    E_CANCELLED,   /* the caller asked to stop                                                   */
    E_INTERNAL     /* a promise of our own was broken; always a defect                           */
} status;

struct err {
    status code;
    char text[1024];
};

/* Fill *e (may be NULL) and return `code`, so that `return err_set(...)` reads well. */
status err_set(struct err *e, status code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Put "prefix: " before the text that *e already has; returns e->code. */
status err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Name of a code, for logs: "E_ARG". */
const char *err_name(status code);

#define TRY(expr)                                                                                          \
    do {                                                                                                   \
        const status try_st_ = (expr);                                                                     \
        if (try_st_ != OK) return try_st_;                                                                 \
    } while (0)

#define TRY_GOTO(st, expr, label)                                                                          \
    do {                                                                                                   \
        (st) = (expr);                                                                                     \
        if ((st) != OK) goto label;                                                                        \
    } while (0)

#endif
