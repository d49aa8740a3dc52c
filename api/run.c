/* api/run.c - one call from JSON to JSON, waiting: batch lines. See api.h. */
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "api/inside.h"

void api_wait_over(struct api_wait *w)
{
    pthread_mutex_lock(&w->lock);
    w->done = true;
    pthread_cond_signal(&w->over);
    pthread_mutex_unlock(&w->lock);
}

void api_wait_for(struct api_wait *w, const atomic_bool *stop, void (*cancel)(void *self, uint64_t id), void *self, uint64_t id)
{
    bool told = false;
    pthread_mutex_lock(&w->lock);
    while (!w->done) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 50000000;
        if (t.tv_nsec >= 1000000000) {
            t.tv_sec++;
            t.tv_nsec -= 1000000000;
        }
        pthread_cond_timedwait(&w->over, &w->lock, &t);
        if (w->done || told || stop == NULL || !atomic_load(stop)) continue;
        told = true;
        pthread_mutex_unlock(&w->lock);
        cancel(self, id);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
}

void api_wait_end(struct api_wait *w)
{
    pthread_cond_destroy(&w->over);
    pthread_mutex_destroy(&w->lock);
}

struct waiter {
    struct api_wait wait;
    json_t *reply;
    struct err error;
};

static void on_done(void *self, json_t *reply, const struct err *error)
{
    struct waiter *w = self;
    w->reply = reply;
    if (error) w->error = *error;
    api_wait_over(&w->wait);
}

static void cancel(void *self, uint64_t id) { api_job_cancel(self, id); }

static status start(struct api *a, const char *endpoint, const char *body, size_t n, const struct api_caller *c,
                    const struct api_sink *sink, uint64_t *id, struct err *e)
{
    struct api_job *j = NULL;
    status st;
    if (strcmp(endpoint, "/v1/chat/completions") == 0) st = api_chat_parse(a, body, n, c, &j, e);
    else if (strcmp(endpoint, "/v1/completions") == 0) st = api_completion_parse(a, body, n, c, &j, e);
    else {
        err_set(e, E_ARG, "there is no endpoint %.100s for a batch", endpoint);
        st = err_tag(e, "unknown_endpoint", NULL);
    }
    if (st == OK && api_job_streams(j)) {
        err_set(e, E_ARG, "stream: is true, which a reply in one piece cannot be");
        st = err_tag(e, "invalid_value", "stream");
    }
    if (st == OK) st = api_job_start(&j, sink, id, e);
    api_job_free(&j);
    return st;
}

void api_run(struct api *a, const char *endpoint, const char *body, size_t n, const struct api_caller *c,
             const atomic_bool *stop, int *status_code, json_t **reply)
{
    struct waiter w = { .wait = API_WAIT };
    const struct api_sink sink = { .self = &w, .done = on_done };
    uint64_t id = 0;
    if (start(a, endpoint, body, n, c, &sink, &id, &w.error) == OK) api_wait_for(&w.wait, stop, cancel, a, id);
    api_wait_end(&w.wait);
    *status_code = w.reply ? 200 : api_error_of(&w.error).status;
    *reply = w.reply ? w.reply : api_error_json(&w.error);
}
