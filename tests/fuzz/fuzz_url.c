/* Fuzz target: URLs that clients give, domains and ranges that operators give. What is accepted is what it says.
 * Sources: media/fetch.c media/source.c
 * Packages: libcurl libavutil */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "media/fetch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

/* The server named between "://" and the path must be one that the list has: ASCII hosts are compared here anew. */
static void check_accepted(const char *url)
{
    PROMISE(strncasecmp(url, "http://", 7) == 0 || strncasecmp(url, "https://", 8) == 0);
    const char *host = strstr(url, "://") + 3;
    const size_t n = strcspn(host, "/?#");
    PROMISE(n > 0 && memchr(host, '@', n) == NULL);
    for (const char *p = url; *p; p++) PROMISE((unsigned char)*p > ' ' && *p != '\\' && *p != 0x7f);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)host[i] > 126 || host[i] == '%') return;      /* IDNA and escapes: the library's word counts */
    size_t name = host[0] == '[' ? n : strcspn(host, ":/?#");
    if (name > 0 && host[name - 1] == '.') name--;
    PROMISE((name == 10 && strncasecmp(host, "media.test", 10) == 0) ||
            (name > 12 && strncasecmp(host + name - 12, ".example.org", 12) == 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fetch_domain list[2];
    static const struct fetch_domain nothing;
    const struct fetch_options o = { .domain = list, .n_domains = 2 };
    struct err e = { .text = "" };
    struct fetch_domain d = nothing;
    struct fetch_net net;
    if (list[0].host[0] == 0) {
        PROMISE(fetch_domain_parse("media.test", &list[0], &e) == OK);
        PROMISE(fetch_domain_parse(".example.org:8443", &list[1], &e) == OK);
        list[1].port = 0;
    }
    char *text = malloc(size + 1);
    memcpy(text, data, size);
    text[size] = 0;
    const status st = fetch_check(&o, text, "part", &e);
    if (st == OK) check_accepted(text);
    else PROMISE(st == E_INPUT && strcmp(e.tag, "media_url_not_allowed") == 0);
    if (fetch_domain_parse(text, &d, &e) == OK) PROMISE(d.any || (d.host[0] != 0 && d.port <= 65535));
    if (fetch_net_parse(text, &net, &e) == OK) PROMISE(net.bits <= (net.family == AF_INET ? 32u : 128u));
    free(text);
    return 0;
}
