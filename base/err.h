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
    E_BUSY,        /* not now: a queue is full, or the engine drains; the same call may work later */
    E_TIMEOUT,     /* a deadline passed                                                          */
    E_INTERNAL     /* a promise of our own was broken; always a defect                           */
} status;

/* Beside the code and the sentence an error may carry what an API client is told: `tag`, one of the codes of
 * docs/http-api.md 2.2 ("context_length_exceeded"), a string literal or NULL, and `param`, the place in the
 * request that is to blame ("messages[0].content[2].type"), or "". */
struct err {
    status code;
    char text[1024];
    const char *tag;
    char param[128];
};

/* Fill *e (may be NULL) and return `code`, so that `return err_set(...)` reads well. Clears tag and param. Text and
 * param are always whole UTF-8: what is none, or was cut in two, becomes '?'. */
status err_set(struct err *e, status code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Put "prefix: " before the text that *e already has; returns e->code. */
status err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Add a tag (a literal; NULL leaves it) and a param (NULL leaves it) to an error that was set; returns e->code, so that
 * `return err_tag(e, ...)` reads well. A tag or param that is there already stays: who is nearest to the cause knows
 * best. */
status err_tag(struct err *e, const char *tag, const char *param);

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
