/* api/outbox.c - see outbox.h. */
#include "api/outbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

struct item { struct item *next; struct wire w; };

struct outbox {
    const struct remote_link *link;
    uint32_t to;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct item *first, **last;
    bool dropping, closing;
};

static void free_items(struct item *i)
{
    while (i) {
        struct item *next = i->next;
        free(i->w.bytes);
        free(i);
        i = next;
    }
}

static struct item *take_locked(struct outbox *o)
{
    struct item *i = o->first;
    o->first = i->next;
    if (o->first == NULL) o->last = &o->first;
    i->next = NULL;
    return i;
}

static void *thread_main(void *arg)
{
    struct outbox *o = arg;
    pthread_mutex_lock(&o->lock);
    for (;;) {
        if (o->first == NULL && o->closing) break;
        if (o->first == NULL) {
            pthread_cond_wait(&o->changed, &o->lock);
            continue;
        }
        struct item *i = take_locked(o);
        pthread_mutex_unlock(&o->lock);
        struct err e;
        const status st = o->link->post(o->link->self, o->to, i->w.bytes, i->w.n, &e);
        free_items(i);
        if (st != OK) outbox_drop(o);
        pthread_mutex_lock(&o->lock);
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

status outbox_open(const struct remote_link *link, uint32_t to, struct outbox **out, struct err *e)
{
    struct outbox *o = mem_must(1, sizeof *o);
    o->link = link;
    o->to = to;
    o->last = &o->first;
    pthread_mutex_init(&o->lock, NULL);
    pthread_cond_init(&o->changed, NULL);
    const int failed = pthread_create(&o->thread, NULL, thread_main, o);
    if (failed) {
        free(o);
        return err_set(e, E_NOMEM, "a thread for messages to group %u cannot be started: %s", to, strerror(failed));
    }
    *out = o;
    return OK;
}

void outbox_put(struct outbox *o, struct wire *w)
{
    struct item *i = mem_must(1, sizeof *i);
    i->w = *w;
    *w = (struct wire){ 0 };
    pthread_mutex_lock(&o->lock);
    const bool drop = o->dropping;
    if (!drop) {
        *o->last = i;
        o->last = &i->next;
        pthread_cond_signal(&o->changed);
    }
    pthread_mutex_unlock(&o->lock);
    if (drop) free_items(i);
}

void outbox_drop(struct outbox *o)
{
    pthread_mutex_lock(&o->lock);
    struct item *all = o->first;
    o->first = NULL;
    o->last = &o->first;
    o->dropping = true;
    pthread_mutex_unlock(&o->lock);
    free_items(all);
}

void outbox_close(struct outbox **po)
{
    struct outbox *o = *po;
    if (o == NULL) return;
    pthread_mutex_lock(&o->lock);
    o->closing = true;
    pthread_cond_signal(&o->changed);
    pthread_mutex_unlock(&o->lock);
    pthread_join(o->thread, NULL);
    pthread_mutex_destroy(&o->lock);
    pthread_cond_destroy(&o->changed);
    free_items(o->first);
    free(o);
    *po = NULL;
}
