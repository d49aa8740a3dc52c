/* engine/media_cache.c - see media_cache.h. One list under one lock; entries are few (a medium each). */
#include "engine/media_cache.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"

struct media_cache {
    struct stream *st;
    uint32_t d;
    uint64_t bytes_max, bytes, clock, queries, hits;
    struct media_entry *first;
    uint32_t *row;                 /* 0, 1, 2, ...: copies are gathers */
    size_t row_cap, n_row;
    pthread_mutex_t lock;
    pthread_cond_t filled;
};

status media_cache_create(struct stream *st, uint32_t d, uint64_t bytes_max, struct media_cache **out, struct err *e)
{
    struct media_cache *c;
    TRY(mem_alloc(&c, 1, sizeof *c, e));
    c->st = st;
    c->d = d;
    c->bytes_max = bytes_max;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->filled, NULL);
    *out = c;
    return OK;
}

static void rows_free(struct media_cache *c, struct media_rows *r)
{
    float *const device[] = { r->audio, r->vision, r->keys };
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) {
        if (r->on_host) free(device[i]);
        else c->st->ops->release(c->st, device[i]);
    }
    free(r->audio_saliency);
    free(r->vision_saliency);
    free(r->blocks);
}

static void entry_free(struct media_cache *c, struct media_entry *m)
{
    if (m->state == MEDIA_FEATURES) extract_free(&m->features);
    rows_free(c, &m->rows);
    free(m->warning);
    free(m);
}

static void unlink_entry(struct media_cache *c, struct media_entry *m)
{
    for (struct media_entry **p = &c->first; *p; p = &(*p)->next)
        if (*p == m) {
            *p = m->next;
            break;
        }
    c->bytes -= m->bytes;
    entry_free(c, m);
}

/* Least used first, until `most` bytes are held. Engine thread, under the lock. */
static void shrink(struct media_cache *c, uint64_t most)
{
    while (c->bytes > most) {
        struct media_entry *old = NULL;
        for (struct media_entry *m = c->first; m; m = m->next)
            if (m->holds == 0 && m->state == MEDIA_EMBEDDED && (old == NULL || m->used < old->used)) old = m;
        if (old == NULL) return;
        unlink_entry(c, old);
    }
}

/* Rows [n, d] at *rows to the host; a device that fails says so at its next op too. */
static void to_host(struct media_cache *c, float **rows, uint32_t n, uint32_t d)
{
    if (*rows == NULL) return;
    const size_t bytes = (size_t)n * d * sizeof(float);
    float *host = mem_must(bytes, 1);
    c->st->ops->download(c->st, host, *rows, bytes, NULL);
    c->st->ops->release(c->st, *rows);
    *rows = host;
}

bool media_cache_yield(struct media_cache *c)
{
    struct media_entry *old = NULL;
    pthread_mutex_lock(&c->lock);
    for (struct media_entry *m = c->first; m; m = m->next)
        if (m->state == MEDIA_EMBEDDED && !m->rows.on_host && (old == NULL || m->used < old->used)) old = m;
    if (old != NULL && old->holds == 0) {
        unlink_entry(c, old);
    } else if (old != NULL) {
        struct media_rows *r = &old->rows;
        to_host(c, &r->audio, old->media.n_audio, c->d);
        to_host(c, &r->vision, (uint32_t)r->stride, c->d);
        to_host(c, &r->keys, (uint32_t)r->stride, r->d_key);
        r->on_host = true;
    }
    pthread_mutex_unlock(&c->lock);
    return old != NULL;
}

void media_cache_clear(struct media_cache *c)
{
    pthread_mutex_lock(&c->lock);
    shrink(c, 0);
    pthread_mutex_unlock(&c->lock);
}

void media_cache_destroy(struct media_cache **pc)
{
    struct media_cache *c = *pc;
    if (c == NULL) return;
    while (c->first) unlink_entry(c, c->first);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->filled);
    free(c->row);
    free(c);
    *pc = NULL;
}

static struct media_entry *entry_of(struct media_cache *c, const char *key)
{
    struct media_entry *m = c->first;
    while (m && strcmp(m->key, key) != 0) m = m->next;
    return m;
}

/* Up to 50 ms for somebody to be done. */
static void wait_filled(struct media_cache *c)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&c->filled, &c->lock, &until);
}

status media_cache_find(struct media_cache *c, const char *key, const atomic_bool *stop, struct media_entry **out,
                        struct err *e)
{
    status st = OK;
    pthread_mutex_lock(&c->lock);
    c->queries++;
    struct media_entry *m;
    while ((m = entry_of(c, key)) != NULL && m->filling && st == OK) {
        if (stop && atomic_load(stop)) st = err_set(e, E_CANCELLED, "cancelled");
        else wait_filled(c);
    }
    if (st == OK && m == NULL) {
        st = mem_alloc(&m, 1, sizeof *m, e);
        if (st == OK) {
            snprintf(m->key, sizeof m->key, "%s", key);
            m->filling = true;
            m->next = c->first;
            c->first = m;
        }
    } else if (st == OK) {
        c->hits++;
    }
    if (st == OK) {
        m->holds++;
        m->used = ++c->clock;
        *out = m;
    }
    pthread_mutex_unlock(&c->lock);
    return st;
}

static double seconds_of(const struct extract *x)
{
    if (x->kind == MEDIA_VIDEO) return x->t * x->second_per_grid;
    return x->n_frames / 100.0;
}

void media_entry_set_features(struct media_cache *c, struct media_entry *m, struct extract *x)
{
    static const enum token_kind kind_of[] = { [MEDIA_IMAGE] = TOKEN_IMAGE, [MEDIA_AUDIO] = TOKEN_AUDIO,
                                               [MEDIA_VIDEO] = TOKEN_VIDEO };
    pthread_mutex_lock(&c->lock);
    m->media = (struct prompt_media){ .kind = kind_of[x->kind], .n_audio = x->n_audio, .t = x->t, .h = x->h, .w = x->w,
                                      .has_audio = x->kind == MEDIA_VIDEO && x->has_sound,
                                      .second_per_grid = x->second_per_grid };
    m->plan = x->plan;
    m->info = x->info;
    m->seconds = seconds_of(x);
    m->extract_s = x->decode_s;
    m->warning = x->warning;
    x->warning = NULL;
    m->features = *x;
    *x = (struct extract){ 0 };
    m->state = MEDIA_FEATURES;
    m->filling = false;
    pthread_cond_broadcast(&c->filled);
    pthread_mutex_unlock(&c->lock);
}

void media_entry_give_up(struct media_cache *c, struct media_entry *m)
{
    pthread_mutex_lock(&c->lock);
    unlink_entry(c, m);            /* those that wait look for the key anew */
    pthread_cond_broadcast(&c->filled);
    pthread_mutex_unlock(&c->lock);
}

void media_entry_release(struct media_cache *c, struct media_entry *m)
{
    if (m == NULL) return;
    pthread_mutex_lock(&c->lock);
    if (--m->holds == 0 && m->state != MEDIA_EMBEDDED) unlink_entry(c, m);     /* features alone are not kept */
    pthread_mutex_unlock(&c->lock);
}

enum media_entry_state media_entry_state(struct media_cache *c, const struct media_entry *m)
{
    pthread_mutex_lock(&c->lock);
    const enum media_entry_state s = m->state;
    pthread_mutex_unlock(&c->lock);
    return s;
}

/* ---- device memory: the engine's thread --------------------------------------------------------------------- */

static status copy_rows(struct media_cache *c, const float *from, uint32_t n, uint32_t d, float *to, struct err *e)
{
    if (n == 0) return OK;
    TRY(mem_grow(&c->row, &c->row_cap, n, sizeof *c->row, e));
    for (; c->n_row < c->row_cap; c->n_row++) c->row[c->n_row] = (uint32_t)c->n_row;
    return c->st->ops->gather(c->st, &(struct gather_args){ .x = from, .row = c->row, .n = n, .d = d, .y = to }, e);
}

static status give_rows(struct media_cache *c, const struct media_rows *r, const float *from, uint32_t n, uint32_t d, float *to,
                        struct err *e)
{
    if (!r->on_host) return copy_rows(c, from, n, d, to, e);
    return n == 0 ? OK : c->st->ops->upload(c->st, to, from, (size_t)n * d * sizeof(float), e);
}

static status keep_rows(struct media_cache *c, const float *from, uint32_t n, uint32_t d, float **to, struct err *e)
{
    if (n == 0 || from == NULL) return OK;
    TRY(c->st->ops->alloc(c->st, (size_t)n * d * sizeof(float), (void **)to, e));
    return copy_rows(c, from, n, d, *to, e);
}

/* n_rows of n figures, a stride apart, end to end. */
static status keep_figures(const float *from, uint32_t n_rows, uint32_t n, size_t stride, float **to, struct err *e)
{
    if (n == 0 || from == NULL) return OK;
    TRY(mem_alloc(to, (size_t)n_rows * n, sizeof(float), e));
    for (uint32_t i = 0; i < n_rows; i++) memcpy(*to + (size_t)i * n, from + i * stride, n * sizeof(float));
    return OK;
}

status media_entry_set_embeds(struct media_cache *c, struct media_entry *m, uint32_t n_vision, const struct media_rows *rows,
                              struct err *e)
{
    const uint32_t n_audio = m->media.n_audio;
    struct media_rows own = { .n_blocks = rows->n_blocks, .d_key = rows->d_key, .stride = n_vision };
    status st = keep_rows(c, rows->audio, n_audio, c->d, &own.audio, e);
    if (st == OK) st = keep_rows(c, rows->vision, n_vision, c->d, &own.vision, e);
    if (st == OK) st = keep_rows(c, rows->keys, n_vision, rows->d_key, &own.keys, e);
    if (st == OK) st = keep_figures(rows->audio_saliency, 1, n_audio, 0, &own.audio_saliency, e);
    if (st == OK) st = keep_figures(rows->vision_saliency, 1, n_vision, 0, &own.vision_saliency, e);
    if (st == OK) st = keep_figures(rows->blocks, rows->n_blocks, n_vision, rows->stride, &own.blocks, e);
    if (st != OK) {
        rows_free(c, &own);
        return st;
    }
    pthread_mutex_lock(&c->lock);
    extract_free(&m->features);
    m->rows = own;
    m->bytes = (((uint64_t)n_audio + n_vision) * (c->d + 1) +
                (uint64_t)n_vision * ((own.keys ? own.d_key : 0) + (own.blocks ? own.n_blocks : 0))) * sizeof(float);
    c->bytes += m->bytes;
    m->state = MEDIA_EMBEDDED;
    shrink(c, c->bytes_max);
    pthread_mutex_unlock(&c->lock);
    return OK;
}

status media_entry_copy(struct media_cache *c, const struct media_entry *m, uint32_t n_vision, const struct media_rows *to,
                        struct err *e)
{
    const struct media_rows *r = &m->rows;
    const uint32_t n_audio = m->media.n_audio;
    if (n_vision && ((to->blocks && r->blocks == NULL) || (to->keys && r->keys == NULL)))
        return err_set(e, E_INTERNAL, "the cache has this medium without what the policy asks for");
    if (to->audio) TRY(give_rows(c, r, r->audio, n_audio, c->d, to->audio, e));
    if (to->vision) TRY(give_rows(c, r, r->vision, n_vision, c->d, to->vision, e));
    if (to->keys) TRY(give_rows(c, r, r->keys, n_vision, r->d_key, to->keys, e));
    if (to->audio_saliency && n_audio) memcpy(to->audio_saliency, r->audio_saliency, n_audio * sizeof(float));
    if (to->vision_saliency && n_vision) memcpy(to->vision_saliency, r->vision_saliency, n_vision * sizeof(float));
    for (uint32_t i = 0; to->blocks && n_vision && i < r->n_blocks; i++)
        memcpy(to->blocks + i * to->stride, r->blocks + i * r->stride, n_vision * sizeof(float));
    return OK;
}

struct media_cache_counts media_cache_read(struct media_cache *c)
{
    pthread_mutex_lock(&c->lock);
    struct media_cache_counts n = { .bytes = c->bytes, .queries = c->queries, .hits = c->hits };
    for (const struct media_entry *m = c->first; m; m = m->next) n.n_entries++;
    pthread_mutex_unlock(&c->lock);
    return n;
}
