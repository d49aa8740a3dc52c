/* api/loader.h - where a request's media come from: a service_loader (engine/service.h) by the form of the URL.
 *
 *   inline bytes            into the spool
 *   data:                   decoded into the spool                         media/data_url.h
 *   file:                   beneath the operator's folders                 media/roots.h
 *   http:, https:           from the operator's domains                    media/fetch.h
 *   file-id:ID              what the client uploaded                       files()
 *
 * Anything else is refused: whatever a client writes, no other file or host is touched. */
#ifndef API_LOADER_H
#define API_LOADER_H

#include "engine/service.h"

struct loader_options {
    const char *const *root;       /* [n_roots] --allowed-local-media-path; none: no file: URLs           */
    uint32_t n_roots;
    const char *const *domain;     /* [n_domains] --allowed-media-domains; none: nothing is fetched       */
    uint32_t n_domains;
    const char *const *net;        /* [n_nets] --media-allow-private-nets: "10.1.0.0/16"                  */
    uint32_t n_nets;
    const char *dir;               /* the spool; NULL: /tmp. Also of limits                               */
    uint64_t max_bytes;            /* of one source; 0: 2 GiB                                             */
    double fetch_s;                /* longest time of a fetch, with its redirects; 0: 120                 */
    struct extract_limits limits;
    uint32_t max_images, max_audios, max_videos;
    /* The bytes of a client's file; `key` is the digest of its API key or "". NULL: there is no store. loader_files
     * with a struct files as files_self is the one there is. */
    status (*files)(void *files_self, const char *key, const char *id, const char *name, struct media_source *out,
                    struct err *e);
    void *files_self;
};

/* Copies what it needs; out->self is owned: api_loader_destroy, after the service has closed. E_ARG: a folder, domain
 * or range that is none; the text names it, for the operator. */
status api_loader_create(const struct loader_options *o, struct service_loader *out, struct err *e);
void api_loader_destroy(struct service_loader *l);

/* A URL of any form above to a source, for routes that have no chat part (file_url, file_id). name: what messages call
 * it. *out is owned. Errors with the tags of docs/http-api.md 2.2. */
status api_loader_source(const struct service_loader *l, const char *url, const char *key, const char *name,
                         const atomic_bool *stop, struct media_source *out, struct err *e);

status loader_files(void *files, const char *key, const char *id, const char *name, struct media_source *out,
                    struct err *e);

#endif
