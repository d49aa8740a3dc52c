/* media/fetch.h - http and https URLs to sources, by the rules of docs/http-api.md 2.6.
 *
 *   check     the URL by libcurl's own parser, which also connects; scheme, host and port against the operator's list
 *   resolve   once; every address must be public (or in a range that the operator allows)
 *   connect   to one of those addresses and to no other; TLS checks the name
 *   redirect  at most three times, each one checked from the start; never from https to http
 *   read      into an unnamed file of the spool, with caps on bytes and time
 *
 * No proxy, no cookies, no credentials, no header of the client's. An address that is refused and a name that does not
 * exist give the same answer. */
#ifndef MEDIA_FETCH_H
#define MEDIA_FETCH_H

#include <stdbool.h>
#include <sys/socket.h>

#include "media/extract.h"

#define FETCH_ADDRESSES_MAX 16

/* A range of addresses: "10.1.0.0/16", "fd00::/8". */
struct fetch_net {
    int family;                    /* AF_INET, AF_INET6 */
    uint8_t address[16];
    unsigned bits;
};
/* E_ARG: not a range, or one with bits behind its mask. */
status fetch_net_parse(const char *text, struct fetch_net *out, struct err *e);

/* An entry of --allowed-media-domains: "example.org" (ports 80 and 443), "example.org:8443", ".example.org" (what is
 * below it), "*" and "*:8443" (every host). E_ARG: not a host. out->host is lower case, without a dot at the end. */
struct fetch_domain {
    char host[256];
    unsigned port;                 /* 0: 80 and 443 */
    bool below, any;
};
status fetch_domain_parse(const char *text, struct fetch_domain *out, struct err *e);

struct fetch_options {
    const struct fetch_domain *domain;     /* [n_domains]; none: nothing is fetched */
    uint32_t n_domains;
    const struct fetch_net *net;           /* [n_nets] ranges that are allowed although they are not public */
    uint32_t n_nets;
    const char *dir;                       /* the spool; NULL: /tmp */
    uint64_t max_bytes;                    /* 0: 2 GiB */
    double connect_s, total_s;             /* 0: 5 and 120; total with redirects and resolving */
    const char *ca_file;                   /* certificates that are trusted; NULL: the system's */
    /* How names become addresses; NULL: the system's way. Fills at most FETCH_ADDRESSES_MAX (the ports are not looked
     * at); E_INPUT: there is no such name. */
    status (*resolve)(void *self, const char *host, struct sockaddr_storage *out, uint32_t *n, struct err *e);
    void *resolve_self;
};

/* May this URL be fetched as far as its text tells? E_INPUT, tag media_url_not_allowed. `name` is for the message. */
status fetch_check(const struct fetch_options *o, const char *url, const char *name, struct err *e);

/* Is the address public, or in one of the ranges? */
bool fetch_address_allowed(const struct fetch_options *o, const struct sockaddr *address);

/* *out is owned. Tags: media_url_not_allowed, media_fetch_failed (the answer is no file), media_too_large (E_INPUT);
 * media_fetch_failed_remote (E_IO: 5xx, a connection that is refused or breaks), media_fetch_timeout (E_TIMEOUT);
 * E_CANCELLED; E_IO with spool_full. stop may be NULL. */
status media_fetch(const struct fetch_options *o, const char *url, const char *name, const atomic_bool *stop,
                   struct media_source *out, struct err *e);

#endif
