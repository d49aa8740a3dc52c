/* api/loader.c - see loader.h. */
#include "api/loader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/api.h"
#include "api/files.h"
#include "base/mem.h"
#include "media/data_url.h"
#include "media/fetch.h"
#include "media/roots.h"

struct loader {
    struct roots *roots;           /* NULL: none */
    struct fetch_options fetch;    /* its lists are the next two */
    struct fetch_domain *domain;
    struct fetch_net *net;
    char *dir;
    uint64_t max_bytes;
    status (*files)(void *files_self, const char *key, const char *id, const char *name, struct media_source *out,
                    struct err *e);
    void *files_self;
};

/* ---- one URL -------------------------------------------------------------------------------------------- */

static bool starts(const char *url, const char *with) { return strncasecmp(url, with, strlen(with)) == 0; }

static status refuse(const char *name, const char *why, struct err *e)
{
    err_set(e, E_INPUT, "%s: %s", name, why);
    err_tag(e, "media_url_not_allowed", NULL);
    return E_INPUT;
}

static status source_of(struct loader *l, const char *url, const char *key, const char *name, const atomic_bool *stop,
                        struct media_source *out, struct err *e)
{
    if (data_url_is(url)) return data_url_source(url, name, l->dir, l->max_bytes, out, e);
    if (roots_is_file_url(url)) return roots_source(l->roots, url, name, stop, out, e);
    if (starts(url, "http:") || starts(url, "https:")) return media_fetch(&l->fetch, url, name, stop, out, e);
    if (strncmp(url, "file-id:", 8) != 0)
        return refuse(name, "its URL must begin with data:, http://, https:// or file:", e);
    if (l->files != NULL) return l->files(l->files_self, key, url + 8, name, out, e);
    err_set(e, E_ARG, "%s: this server keeps no files", name);
    err_tag(e, "not_found", NULL);
    return E_ARG;
}

static status source_of_part(struct loader *l, const char *key, const struct chat_part *p, int frame,
                             const atomic_bool *stop, struct media_source *out, struct err *e)
{
    char name[sizeof p->path + 16];
    if (frame >= 0) snprintf(name, sizeof name, "%s[%d]", p->path, frame);
    else snprintf(name, sizeof name, "%s", p->path[0] ? p->path : "media");
    if (frame >= 0 && (size_t)frame < p->n_frames) return source_of(l, p->frame[frame], key, name, stop, out, e);
    if (p->url != NULL) return source_of(l, p->url, key, name, stop, out, e);
    if (p->data == NULL) return err_set(e, E_INTERNAL, "%s: neither bytes nor a URL", name);
    if (p->n_data <= l->max_bytes) return media_source_of_bytes(p->data, p->n_data, name, l->dir, out, e);
    err_set(e, E_INPUT, "%s: %zu bytes are more than %llu, the limit here", name, p->n_data,
            (unsigned long long)l->max_bytes);
    err_tag(e, "media_too_large", NULL);
    return E_INPUT;
}

/* Files are as large as a source may be, wherever they come from. */
static status check_bytes(const struct loader *l, struct media_source *s, struct err *e)
{
    if (s->bytes <= l->max_bytes) return OK;
    err_set(e, E_INPUT, "%s: %llu bytes are more than %llu, the limit here", s->name, (unsigned long long)s->bytes,
            (unsigned long long)l->max_bytes);
    err_tag(e, "media_too_large", NULL);
    media_source_close(s);
    return E_INPUT;
}

static status resolve(void *self, void *owner, const struct chat_part *part, int frame, const atomic_bool *stop,
                      struct media_source *out, struct err *e)
{
    struct loader *l = self;
    const struct api_owner *who = owner;
    struct media_source s;
    TRY(source_of_part(l, who != NULL ? who->key : "", part, frame, stop, &s, e));
    TRY(check_bytes(l, &s, e));
    *out = s;
    return OK;
}

status api_loader_source(const struct service_loader *l, const char *url, const char *key, const char *name,
                         const atomic_bool *stop, struct media_source *out, struct err *e)
{
    struct media_source s;
    TRY(source_of(l->self, url, key, name, stop, &s, e));
    TRY(check_bytes(l->self, &s, e));
    *out = s;
    return OK;
}

status loader_files(void *files, const char *key, const char *id, const char *name, struct media_source *out,
                    struct err *e)
{
    struct file_info info;
    int fd;
    TRY(files_open_data(files, key, id, &info, &fd, e));
    return media_source_of_fd(fd, name, info.digest[0] ? info.digest : NULL, out, e);
}

/* ---- the whole ------------------------------------------------------------------------------------------ */

static void loader_free(struct loader *l)
{
    roots_close(&l->roots);
    free(l->domain);
    free(l->net);
    free(l->dir);
    free(l);
}

status api_loader_create(const struct loader_options *o, struct service_loader *out, struct err *e)
{
    struct loader *l = mem_must(1, sizeof *l);
    status st = OK;
    l->domain = mem_must(o->n_domains + 1, sizeof *l->domain);
    l->net = mem_must(o->n_nets + 1, sizeof *l->net);
    l->dir = mem_must_strdup(o->dir ? o->dir : "/tmp");
    l->max_bytes = o->max_bytes ? o->max_bytes : (uint64_t)2 << 30;
    l->files = o->files;
    l->files_self = o->files_self;
    for (uint32_t i = 0; i < o->n_domains && st == OK; i++) st = fetch_domain_parse(o->domain[i], &l->domain[i], e);
    for (uint32_t i = 0; i < o->n_nets && st == OK; i++) st = fetch_net_parse(o->net[i], &l->net[i], e);
    if (st == OK && o->n_roots > 0) st = roots_open(o->root, o->n_roots, &l->roots, e);
    if (st != OK) {
        loader_free(l);
        return st;
    }
    l->fetch = (struct fetch_options){ .domain = l->domain, .n_domains = o->n_domains, .net = l->net,
                                       .n_nets = o->n_nets, .dir = l->dir, .max_bytes = l->max_bytes,
                                       .total_s = o->fetch_s };
    *out = (struct service_loader){ .self = l, .resolve = resolve, .limits = o->limits, .max_images = o->max_images,
                                    .max_audios = o->max_audios, .max_videos = o->max_videos };
    out->limits.dir = l->dir;
    return OK;
}

void api_loader_destroy(struct service_loader *l)
{
    if (l->self != NULL) loader_free(l->self);
    *l = (struct service_loader){ .self = NULL };
}
