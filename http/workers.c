/* http/workers.c - see workers.h: a list and a condition. */
#include "http/workers.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

struct job { void (*fn)(void *arg); void *arg; struct job *next; };

struct workers {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct job *first, **last;
    bool quit;
    uint32_t n;
    pthread_t *thread;             /* [n] */
};

static void *work(void *arg)
{
    struct workers *w = arg;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (w->first == NULL && !w->quit) pthread_cond_wait(&w->more, &w->lock);
        struct job *j = w->first;
        if (j == NULL) break;
        w->first = j->next;
        if (w->first == NULL) w->last = &w->first;
        pthread_mutex_unlock(&w->lock);
        j->fn(j->arg);
        free(j);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

status workers_create(uint32_t n_threads, struct workers **out, struct err *e)
{
    struct workers *w;
    sigset_t all, before;
    TRY(mem_alloc(&w, 1, sizeof *w, e));
    w->thread = mem_must(n_threads, sizeof *w->thread);
    w->last = &w->first;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    sigfillset(&all);                                  /* signals are the loop's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = 0;
    while (w->n < n_threads && (failed = pthread_create(&w->thread[w->n], NULL, work, w)) == 0) w->n++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        workers_destroy(&w);
        return err_set(e, E_NOMEM, "a request worker cannot be started: %s", strerror(failed));
    }
    *out = w;
    return OK;
}

void workers_destroy(struct workers **pw)
{
    struct workers *w = *pw;
    if (w == NULL) return;
    pthread_mutex_lock(&w->lock);
    w->quit = true;
    pthread_cond_broadcast(&w->more);
    pthread_mutex_unlock(&w->lock);
    for (uint32_t i = 0; i < w->n; i++) pthread_join(w->thread[i], NULL);
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
    free(w->thread);
    free(w);
    *pw = NULL;
}

void workers_run(struct workers *w, void (*fn)(void *arg), void *arg)
{
    struct job *j = mem_must(1, sizeof *j);
    *j = (struct job){ fn, arg, NULL };
    pthread_mutex_lock(&w->lock);
    *w->last = j;
    w->last = &j->next;
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
}
