/* media/fetch.c - see fetch.h. */
#include "media/fetch.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "media/source.h"

#define URL_MAX 8192
#define REDIRECTS_MAX 3
#define PASSED_MAX (64u << 10)
#define STOP_MS 50
#define BYTES_MAX ((uint64_t)2 << 30)

/* ---- addresses ------------------------------------------------------------------------------------------ */

static bool in_net(const uint8_t *address, const uint8_t *net, unsigned bits)
{
    const unsigned whole = bits / 8, rest = bits % 8;
    if (memcmp(address, net, whole) != 0) return false;
    return rest == 0 || (address[whole] ^ net[whole]) >> (8 - rest) == 0;
}

/* IPv4 that is not the public Internet: IANA's special-purpose registry. */
static const struct { uint8_t net[4]; unsigned bits; } PRIVATE4[] = {
    { { 0, 0, 0, 0 }, 8 },         /* this network */
    { { 10, 0, 0, 0 }, 8 },        /* private */
    { { 100, 64, 0, 0 }, 10 },     /* behind a carrier's NAT */
    { { 127, 0, 0, 0 }, 8 },       /* loopback */
    { { 169, 254, 0, 0 }, 16 },    /* link-local: clouds tell their secrets there */
    { { 172, 16, 0, 0 }, 12 },     /* private */
    { { 192, 0, 0, 0 }, 24 },      /* protocol assignments */
    { { 192, 0, 2, 0 }, 24 },      /* documentation */
    { { 192, 31, 196, 0 }, 24 },   /* AS112 */
    { { 192, 52, 193, 0 }, 24 },   /* AMT */
    { { 192, 88, 99, 0 }, 24 },    /* 6to4 relays */
    { { 192, 168, 0, 0 }, 16 },    /* private */
    { { 192, 175, 48, 0 }, 24 },   /* AS112 */
    { { 198, 18, 0, 0 }, 15 },     /* benchmarks */
    { { 198, 51, 100, 0 }, 24 },   /* documentation */
    { { 203, 0, 113, 0 }, 24 },    /* documentation */
    { { 224, 0, 0, 0 }, 4 },       /* multicast */
    { { 240, 0, 0, 0 }, 4 },       /* reserved, broadcast */
};

/* Of IPv6 only 2000::/3 is public, and of it not these: whatever holds an IPv4 address, too. */
static const struct { uint8_t net[6]; unsigned bits; } PRIVATE6[] = {
    { { 0x20, 0x01, 0x00 }, 23 },                      /* protocols: Teredo, benchmarks, ORCHID */
    { { 0x20, 0x01, 0x0d, 0xb8 }, 32 },                /* documentation */
    { { 0x20, 0x02 }, 16 },                            /* 6to4 */
    { { 0x26, 0x20, 0x00, 0x4f, 0x80, 0x00 }, 48 },    /* AS112 */
    { { 0x3f, 0xff, 0x00 }, 20 },                      /* documentation */
};

static bool public4(const uint8_t *a)
{
    for (size_t i = 0; i < sizeof PRIVATE4 / sizeof *PRIVATE4; i++)
        if (in_net(a, PRIVATE4[i].net, PRIVATE4[i].bits)) return false;
    return true;
}

static bool public6(const uint8_t *a)
{
    if ((a[0] & 0xe0) != 0x20) return false;           /* mapped, NAT64, link-local, ULA, multicast, ... */
    for (size_t i = 0; i < sizeof PRIVATE6 / sizeof *PRIVATE6; i++)
        if (in_net(a, PRIVATE6[i].net, PRIVATE6[i].bits)) return false;
    return true;
}

bool fetch_address_allowed(const struct fetch_options *o, const struct sockaddr *address)
{
    const bool four = address->sa_family == AF_INET;
    if (!four && address->sa_family != AF_INET6) return false;
    const uint8_t *a = four ? (const uint8_t *)&((const struct sockaddr_in *)address)->sin_addr
                     : (const uint8_t *)&((const struct sockaddr_in6 *)address)->sin6_addr;
    for (uint32_t i = 0; i < o->n_nets; i++)
        if (o->net[i].family == address->sa_family && in_net(a, o->net[i].address, o->net[i].bits)) return true;
    return four ? public4(a) : public6(a);
}

status fetch_net_parse(const char *text, struct fetch_net *out, struct err *e)
{
    struct fetch_net n = { .family = strchr(text, ':') != NULL ? AF_INET6 : AF_INET };
    char address[64];
    const char *slash = strchr(text, '/');
    const unsigned most = n.family == AF_INET ? 32 : 128;
    char *end = NULL;
    if (slash != NULL && (size_t)(slash - text) < sizeof address && isdigit((unsigned char)slash[1])) {
        snprintf(address, sizeof address, "%.*s", (int)(slash - text), text);
        n.bits = (unsigned)strtoul(slash + 1, &end, 10);
    }
    if (end == NULL || *end != 0 || n.bits > most || inet_pton(n.family, address, n.address) != 1)
        return err_set(e, E_ARG, "\"%s\" is not a range of addresses such as 10.1.0.0/16 or fd00::/8", text);
    for (unsigned i = n.bits; i < most; i++)
        if (n.address[i / 8] >> (7 - i % 8) & 1)
            return err_set(e, E_ARG, "\"%s\": the address has bits behind the first %u", text, n.bits);
    *out = n;
    return OK;
}

/* ---- hosts ---------------------------------------------------------------------------------------------- */

/* Lower case, without the one dot that may end a name. */
static bool host_tidy(const char *host, char *out, size_t cap)
{
    size_t n = strlen(host);
    if (n > 0 && host[n - 1] == '.') n--;
    if (n == 0 || n >= cap) return false;
    for (size_t i = 0; i < n; i++) out[i] = (char)tolower((unsigned char)host[i]);
    out[n] = 0;
    return out[n - 1] != '.';
}

status fetch_domain_parse(const char *text, struct fetch_domain *out, struct err *e)
{
    struct fetch_domain d = { .port = 0 };
    char host[300];
    const char *colon = strrchr(text, ':'), *bracket = strrchr(text, ']');
    size_t n = strlen(text);
    if (colon != NULL && (bracket == NULL || colon > bracket)) {
        char *end;
        const unsigned long port = strtoul(colon + 1, &end, 10);
        if (!isdigit((unsigned char)colon[1]) || *end != 0 || port == 0 || port > 65535)
            return err_set(e, E_ARG, "\"%s\": the port must be 1 to 65535", text);
        d.port = (unsigned)port;
        n = (size_t)(colon - text);
    }
    if (n >= sizeof host) return err_set(e, E_ARG, "\"%.60s...\" is too long for a host", text);
    snprintf(host, sizeof host, "%.*s", (int)n, text);
    d.any = strcmp(host, "*") == 0;
    d.below = host[0] == '.';
    if (!d.any && (!host_tidy(host + d.below, d.host, sizeof d.host) || strpbrk(d.host, "*/@?#\\ %") != NULL))
        return err_set(e, E_ARG, "\"%s\" is not a host: give example.org, .example.org, example.org:8443 or *", text);
    *out = d;
    return OK;
}

static bool domain_has(const struct fetch_domain *d, const char *host, unsigned port)
{
    if (d->port != 0 ? port != d->port : port != 80 && port != 443) return false;
    if (d->any) return true;
    const size_t n = strlen(host), m = strlen(d->host);
    if (!d->below) return strcmp(host, d->host) == 0;
    return n > m + 1 && host[n - m - 1] == '.' && strcmp(host + n - m, d->host) == 0;
}

/* ---- URLs ----------------------------------------------------------------------------------------------- */

struct target {
    CURLU *url;                    /* owned; what is checked is what connects */
    char host[256];                /* tidy; an IPv6 address in brackets */
    unsigned port;
    bool https;
};

static void target_free(struct target *t)
{
    curl_url_cleanup(t->url);
    t->url = NULL;
}

static status not_allowed(struct err *e, const char *name, const char *why)
{
    err_set(e, E_INPUT, "%s: %s", name, why);
    err_tag(e, "media_url_not_allowed", NULL);
    return E_INPUT;
}

static bool part_get(CURLU *url, CURLUPart what, unsigned flags, char *out, size_t cap)
{
    char *text = NULL;
    const bool ok = curl_url_get(url, what, &text, flags) == CURLUE_OK && strlen(text) < cap;
    if (ok) snprintf(out, cap, "%s", text);
    curl_free(text);
    return ok;
}

/* The host as it is looked up: letters beyond ASCII as IDNA has them. curl reads them by the locale, which a server
 * does not have, so this thread gets one for the moment. */
static bool host_get(CURLU *url, char *out, size_t cap)
{
    const locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    const locale_t old = utf8 != (locale_t)0 ? uselocale(utf8) : (locale_t)0;
    const bool ok = part_get(url, CURLUPART_HOST, CURLU_PUNYCODE, out, cap);
    if (utf8 != (locale_t)0) {
        uselocale(old);
        freelocale(utf8);
    }
    return ok;
}

/* curl forgives a missing or a third slash; nobody honest needs that. */
static bool begins_well(const char *text)
{
    const size_t n = strncasecmp(text, "http://", 7) == 0 ? 7 : strncasecmp(text, "https://", 8) == 0 ? 8 : 0;
    return n > 0 && text[n] != '/' && text[n] != 0;
}

static status target_parse(const char *text, const char *name, struct target *t, struct err *e)
{
    char scheme[16], port[16], host[256];
    if (!begins_well(text)) return not_allowed(e, name, "its URL must begin with http:// or https:// and a host");
    if (strlen(text) > URL_MAX) return not_allowed(e, name, "its URL is longer than 8192 characters");
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if (*p <= ' ' || *p == 0x7f || *p == '\\')
            return not_allowed(e, name, "its URL has a space, a control character or a backslash");
    if (curl_url_set(t->url, CURLUPART_URL, text, CURLU_DISALLOW_USER) != CURLUE_OK ||
        !part_get(t->url, CURLUPART_SCHEME, 0, scheme, sizeof scheme) ||
        (strcmp(scheme, "https") != 0 && strcmp(scheme, "http") != 0))
        return not_allowed(e, name, "its URL cannot be used: http or https, a host, and no user name");
    t->https = strcmp(scheme, "https") == 0;
    if (!host_get(t->url, host, sizeof host) ||
        !host_tidy(host, t->host, sizeof t->host) || part_get(t->url, CURLUPART_ZONEID, 0, host, sizeof host) ||
        strpbrk(t->host, "%/\\@") != NULL || !part_get(t->url, CURLUPART_PORT, CURLU_DEFAULT_PORT, port, sizeof port))
        return not_allowed(e, name, "the host in its URL cannot be used");
    t->port = (unsigned)strtoul(port, NULL, 10);
    if (curl_url_set(t->url, CURLUPART_HOST, t->host, 0) != CURLUE_OK)
        return not_allowed(e, name, "the host in its URL cannot be used");
    curl_url_set(t->url, CURLUPART_FRAGMENT, NULL, 0);
    return OK;
}

static status target_check(const struct fetch_options *o, const char *text, const char *name, struct target *t,
                           struct err *e)
{
    *t = (struct target){ .url = NULL };
    if (o->n_domains == 0) return not_allowed(e, name, "this server fetches nothing from a network: send the bytes");
    t->url = curl_url();
    if (t->url == NULL) return err_set(e, E_NOMEM, "out of memory");
    status st = target_parse(text, name, t, e);
    bool found = false;
    for (uint32_t i = 0; st == OK && i < o->n_domains && !found; i++)
        found = domain_has(&o->domain[i], t->host, t->port);
    if (st == OK && !found) st = not_allowed(e, name, "this server does not fetch from the host and port of its URL");
    if (st != OK) target_free(t);
    return st;
}

status fetch_check(const struct fetch_options *o, const char *url, const char *name, struct err *e)
{
    struct target t;
    TRY(target_check(o, url, name, &t, e));
    target_free(&t);
    return OK;
}

/* ---- names to addresses --------------------------------------------------------------------------------- */

/* The system's resolver knows no deadline, so it has a thread of its own that may outlive the asker. */
struct lookup {
    pthread_mutex_t lock;
    pthread_cond_t answered;
    char host[256];
    bool done, given_up;
    struct sockaddr_storage address[FETCH_ADDRESSES_MAX];
    uint32_t n;
};

static void lookup_free(struct lookup *l)
{
    pthread_cond_destroy(&l->answered);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

static void *look_up(void *arg)
{
    struct lookup *l = arg;
    const struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM };
    struct addrinfo *list = NULL;
    const int rc = getaddrinfo(l->host, NULL, &hints, &list);
    pthread_mutex_lock(&l->lock);
    for (const struct addrinfo *a = rc == 0 ? list : NULL; a != NULL; a = a->ai_next) {
        /* Too many to check all: none is taken. */
        if (l->n == FETCH_ADDRESSES_MAX || a->ai_addrlen > sizeof l->address[0]) {
            l->n = 0;
            break;
        }
        memcpy(&l->address[l->n++], a->ai_addr, a->ai_addrlen);
    }
    l->done = true;
    pthread_cond_signal(&l->answered);
    const bool mine = l->given_up;
    pthread_mutex_unlock(&l->lock);
    if (rc == 0) freeaddrinfo(list);
    if (mine) lookup_free(l);
    return NULL;
}

struct fetch {
    const struct fetch_options *o;
    const char *name;
    const atomic_bool *stop;
    double until_s;                /* clock_s() at which all must be over */
    uint64_t max_bytes, bytes;
    size_t passed;                 /* bytes of a redirection's own text */
    int fd;
    struct media_digest *digest;
    CURL *easy;
    CURLM *multi;
    bool began;                    /* the body of this answer has a right to be kept */
    bool too_large, coded;
    status write_st;
    struct err write_e;
};

static status stopped(const struct fetch *f, struct err *e)
{
    if (f->stop != NULL && atomic_load(f->stop)) return err_set(e, E_CANCELLED, "interrupted");
    if (clock_s() < f->until_s) return OK;
    err_set(e, E_TIMEOUT, "%s: it was not there within %.0f s", f->name, f->o->total_s > 0 ? f->o->total_s : 120);
    err_tag(e, "media_fetch_timeout", NULL);
    return E_TIMEOUT;
}

/* One answer for names that do not exist and addresses that are refused. */
static status no_host(const struct fetch *f, struct err *e)
{
    return not_allowed(e, f->name, "the host in its URL cannot be reached from here");
}

static status resolve_system(const struct fetch *f, const char *host, struct sockaddr_storage *out, uint32_t *n,
                             struct err *e)
{
    struct lookup *l = mem_must(1, sizeof *l);
    pthread_attr_t attr;
    pthread_t thread;
    status st = OK;
    snprintf(l->host, sizeof l->host, "%s", host);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->answered, NULL);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    const int rc = pthread_create(&thread, &attr, look_up, l);
    pthread_attr_destroy(&attr);
    if (rc != 0) {
        lookup_free(l);
        return err_set(e, E_NOMEM, "%s: no thread to look up its host", f->name);
    }
    pthread_mutex_lock(&l->lock);
    while (!l->done && st == OK) {
        struct timespec wake;
        clock_gettime(CLOCK_REALTIME, &wake);
        wake.tv_nsec += STOP_MS * 1000000l;
        wake.tv_sec += wake.tv_nsec / 1000000000l;
        wake.tv_nsec %= 1000000000l;
        pthread_cond_timedwait(&l->answered, &l->lock, &wake);
        if (!l->done) st = stopped(f, e);
    }
    const bool done = l->done;
    l->given_up = !done;
    pthread_mutex_unlock(&l->lock);
    if (!done) return st;
    memcpy(out, l->address, sizeof l->address);
    *n = l->n;
    lookup_free(l);
    return OK;
}

/* "host:port:address,address" for curl, after every address was looked at. NULL: the host is an address itself. */
static status resolve(const struct fetch *f, const struct target *t, char *entry, size_t cap, struct err *e)
{
    struct sockaddr_storage a[FETCH_ADDRESSES_MAX] = { { 0 } };
    uint32_t n = 0;
    char bare[256];
    const size_t len = strlen(t->host);
    const bool bracket = t->host[0] == '[' && t->host[len - 1] == ']';
    snprintf(bare, sizeof bare, "%.*s", (int)(bracket ? len - 2 : len), t->host + bracket);
    const bool system = f->o->resolve == NULL;
    const status st = system ? resolve_system(f, bare, a, &n, e) : f->o->resolve(f->o->resolve_self, bare, a, &n, e);
    if (st != OK) return st == E_INPUT ? no_host(f, e) : st;
    if (n == 0 || n > FETCH_ADDRESSES_MAX) return no_host(f, e);
    size_t at = (size_t)snprintf(entry, cap, "%s:%u:", t->host, t->port);
    for (uint32_t i = 0; i < n; i++) {
        char text[INET6_ADDRSTRLEN];
        if (!fetch_address_allowed(f->o, (const struct sockaddr *)&a[i])) return no_host(f, e);
        const bool four = a[i].ss_family == AF_INET;
        const void *bytes = four ? (const void *)&((const struct sockaddr_in *)&a[i])->sin_addr
                          : (const void *)&((const struct sockaddr_in6 *)&a[i])->sin6_addr;
        inet_ntop(a[i].ss_family, bytes, text, sizeof text);
        if (at < cap) at += (size_t)snprintf(entry + at, cap - at, four ? "%s%s" : "%s[%s]", i > 0 ? "," : "", text);
    }
    if (bracket || inet_pton(AF_INET, bare, &(struct in_addr){ 0 }) == 1) entry[0] = 0;
    return OK;
}

/* ---- the transfer --------------------------------------------------------------------------------------- */

/* The last gate: whatever curl is about to connect to. */
static curl_socket_t socket_open(void *self, curlsocktype purpose, struct curl_sockaddr *a)
{
    const struct fetch *f = self;
    if (purpose != CURLSOCKTYPE_IPCXN || !fetch_address_allowed(f->o, &a->addr)) return CURL_SOCKET_BAD;
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

static size_t header_take(char *p, size_t size, size_t n, void *self)
{
    struct fetch *f = self;
    const size_t len = size * n;
    static const char word[] = "content-encoding:";
    if (len > 5 && strncasecmp(p, "HTTP/", 5) == 0) f->coded = false;
    if (len <= sizeof word - 1 || strncasecmp(p, word, sizeof word - 1) != 0) return len;
    const char *v = p + sizeof word - 1, *end = p + len;
    while (v < end && (*v == ' ' || *v == '\t')) v++;
    while (end > v && strchr(" \t\r\n", end[-1]) != NULL) end--;
    if (end > v && !(end - v == 8 && strncasecmp(v, "identity", 8) == 0)) f->coded = true;
    return len;
}

static size_t body_take(char *p, size_t size, size_t n, void *self)
{
    struct fetch *f = self;
    const size_t len = size * n;
    long code = 0;
    curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &code);
    if (code >= 300 && code < 400) {                   /* curl tells where to only at its end */
        f->passed += len;
        return f->passed <= PASSED_MAX ? len : 0;
    }
    if (code != 200 || f->coded) return 0;             /* not wanted: no need to read on */
    f->began = true;
    if (len > f->max_bytes - f->bytes) {
        f->too_large = true;
        return 0;
    }
    f->write_st = spool_write(f->fd, p, len, &f->write_e);
    if (f->write_st != OK) return 0;
    media_digest_add(f->digest, p, len);
    f->bytes += len;
    return len;
}

static bool easy_setup(struct fetch *f, const struct target *t, struct curl_slist *at, struct curl_slist *headers)
{
    CURL *c = f->easy;
    const double left = f->until_s - clock_s(), connect_s = f->o->connect_s > 0 ? f->o->connect_s : 5;
    CURLcode rc = curl_easy_setopt(c, CURLOPT_CURLU, t->url);
#define SET(option, value) if (rc == CURLE_OK) rc = curl_easy_setopt(c, option, value)
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NOPROXY, "*");
    SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_FRESH_CONNECT, 1L);
    SET(CURLOPT_FORBID_REUSE, 1L);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    SET(CURLOPT_USERAGENT, "omnidrop");
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)(connect_s * 1000));
    SET(CURLOPT_TIMEOUT_MS, left > 0.001 ? (long)(left * 1000) : 1L);
    SET(CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)f->max_bytes);
    SET(CURLOPT_OPENSOCKETFUNCTION, socket_open);
    SET(CURLOPT_OPENSOCKETDATA, f);
    SET(CURLOPT_HEADERFUNCTION, header_take);
    SET(CURLOPT_HEADERDATA, f);
    SET(CURLOPT_WRITEFUNCTION, body_take);
    SET(CURLOPT_WRITEDATA, f);
    if (at != NULL) SET(CURLOPT_RESOLVE, at);
    if (f->o->ca_file != NULL) SET(CURLOPT_CAINFO, f->o->ca_file);
#undef SET
    return rc == CURLE_OK;
}

/* Drives the transfer to its end; *rc is curl's word on it. */
static status drive(struct fetch *f, CURLcode *rc, struct err *e)
{
    int running = 1, left;
    *rc = CURLE_FAILED_INIT;
    if (curl_multi_add_handle(f->multi, f->easy) != CURLM_OK) return err_set(e, E_NOMEM, "out of memory");
    status st = OK;
    while (st == OK && running > 0) {
        if (curl_multi_perform(f->multi, &running) != CURLM_OK) break;
        if (running == 0) break;
        curl_multi_poll(f->multi, NULL, 0, STOP_MS, NULL);
        st = stopped(f, e);
    }
    const CURLMsg *m = st == OK ? curl_multi_info_read(f->multi, &left) : NULL;
    if (m != NULL && m->msg == CURLMSG_DONE) *rc = m->data.result;
    curl_multi_remove_handle(f->multi, f->easy);
    return st;
}

static status fetch_fail(struct err *e, status code, const char *tag, const char *name, const char *why)
{
    err_set(e, code, "%s: %s", name, why);
    err_tag(e, tag, NULL);
    return code;
}

/* What an answer that was no file means. code 0: none came. */
static status judge(const struct fetch *f, CURLcode rc, long code, struct err *e)
{
    char why[160];
    if (f->write_st != OK) {
        if (e != NULL) *e = f->write_e;
        return f->write_st;
    }
    if (f->too_large || rc == CURLE_FILESIZE_EXCEEDED) {
        snprintf(why, sizeof why, "the file is larger than %" PRIu64 " bytes, the limit here", f->max_bytes);
        return fetch_fail(e, E_INPUT, "media_too_large", f->name, why);
    }
    if (rc == CURLE_OPERATION_TIMEDOUT)
        return fetch_fail(e, E_TIMEOUT, "media_fetch_timeout", f->name, "its host takes too long to answer");
    if (f->coded)
        return fetch_fail(e, E_INPUT, "media_fetch_failed", f->name, "its host sends it compressed, unasked");
    if (code >= 500) {
        snprintf(why, sizeof why, "its host answers with %ld: it is in trouble", code);
        return fetch_fail(e, E_IO, "media_fetch_failed_remote", f->name, why);
    }
    if (code != 0 && code != 200) {
        snprintf(why, sizeof why, "its host answers with %ld and gives no file", code);
        return fetch_fail(e, E_INPUT, "media_fetch_failed", f->name, why);
    }
    if (rc == CURLE_PEER_FAILED_VERIFICATION)
        return fetch_fail(e, E_INPUT, "media_fetch_failed", f->name, "its host cannot prove to be who the URL says");
    if (f->began)
        return fetch_fail(e, E_IO, "media_fetch_failed_remote", f->name,
                          "its host broke off before the file was whole");
    return fetch_fail(e, E_IO, "media_fetch_failed_remote", f->name, "no connection to its host, or no answer");
}

/* One request. *next (owned, curl_free) is where it sends us, or NULL: the file is here. */
static status request(struct fetch *f, const struct target *t, char **next, struct err *e)
{
    char entry[300 + FETCH_ADDRESSES_MAX * 64];
    struct curl_slist *at = NULL;
    CURLcode rc = CURLE_OK;
    long code = 0;
    *next = NULL;
    TRY(resolve(f, t, entry, sizeof entry, e));
    struct curl_slist *headers = curl_slist_append(NULL, "Accept-Encoding: identity");
    if (entry[0] != 0) at = curl_slist_append(NULL, entry);
    f->easy = curl_easy_init();
    f->multi = curl_multi_init();
    f->coded = f->began = false;
    f->passed = 0;
    status st = OK;
    if (f->easy == NULL || f->multi == NULL || headers == NULL || !easy_setup(f, t, at, headers))
        st = err_set(e, E_NOMEM, "%s: cannot be fetched: out of memory", f->name);
    if (st == OK) st = drive(f, &rc, e);
    if (st == OK) curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &code);
    if (st == OK && code >= 300 && code < 400 && code != 304) {
        char *to = NULL;
        curl_easy_getinfo(f->easy, CURLINFO_REDIRECT_URL, &to);
        if (to != NULL) *next = strdup(to);
    }
    if (st == OK && *next == NULL && (rc != CURLE_OK || code != 200 || f->coded)) st = judge(f, rc, code, e);
    curl_multi_cleanup(f->multi);
    curl_easy_cleanup(f->easy);
    curl_slist_free_all(headers);
    curl_slist_free_all(at);
    return st;
}

/* The first URL and up to three that it leads to. */
static status follow(struct fetch *f, const char *url, struct err *e)
{
    char *here = mem_must_strdup(url);
    bool https = false;
    status st = OK;
    for (int n = 0; st == OK && here != NULL; n++) {
        struct target t;
        char *next = NULL;
        st = n <= REDIRECTS_MAX ? target_check(f->o, here, f->name, &t, e)
           : fetch_fail(e, E_INPUT, "media_fetch_failed", f->name, "it is redirected more than 3 times");
        if (st != OK) break;
        if (https && !t.https) st = not_allowed(e, f->name, "it is redirected from https to http");
        https = t.https;
        if (st == OK) st = request(f, &t, &next, e);
        target_free(&t);
        free(here);
        here = next;
    }
    free(here);
    return st;
}

static void curl_start(void) { curl_global_init(CURL_GLOBAL_DEFAULT); }

status media_fetch(const struct fetch_options *o, const char *url, const char *name, const atomic_bool *stop,
                   struct media_source *out, struct err *e)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct fetch f = { .o = o, .name = name, .stop = stop, .fd = -1,
                       .max_bytes = o->max_bytes ? o->max_bytes : BYTES_MAX,
                       .until_s = clock_s() + (o->total_s > 0 ? o->total_s : 120) };
    char digest[MEDIA_DIGEST_TEXT];
    status st;
    pthread_once(&once, curl_start);
    TRY(fetch_check(o, url, name, e));
    TRY(spool_open(o->dir, &f.fd, e));
    TRY_GOTO(st, media_digest_begin(&f.digest, e), undo);
    TRY_GOTO(st, follow(&f, url, e), undo);
    TRY_GOTO(st, spool_finish(&f.fd, e), undo);
    media_digest_end(&f.digest, digest);
    return media_source_of_fd(f.fd, name, digest, out, e);
undo:
    media_digest_free(&f.digest);
    close(f.fd);
    return st;
}
