/* http/app_inside.h - what the application's own files share. */
#ifndef HTTP_APP_INSIDE_H
#define HTTP_APP_INSIDE_H

#include <stdatomic.h>

#include "http/app.h"

struct call;                       /* one chat or completion request, see chat.c */

struct app {
    struct app_options o;          /* with the defaults filled in */
    _Atomic(struct api *) api;
    atomic_int state;              /* enum app_state */
    struct metrics *metrics;
    struct workers *workers;
    double created_s;
    /* Loop thread alone. */
    struct http_timer *watch;
    struct call *calls;            /* those whose reply is not over */
};

enum app_state { APP_LOADING, APP_READY, APP_FAILED };

/* chat.c: handlers with self == the app. */
void chat_handle(void *app, struct http_request *r);
void completion_handle(void *app, struct http_request *r);
/* Every reply ends with this error. Loop thread. */
void chat_end_all(struct app *a, const struct err *e);

/* What a reply that the drain cuts short says; chat.c. */
void app_draining_error(struct err *e);

/* page.c: GET / */
void page_route(struct http_server *s);

#endif
