/* URLs to sources: what may be fetched and what may not (docs/http-api.md 2.6; rows B29, B30, B32 of 6.2), and what every
 * kind of answer becomes.
 * Method: an HTTP server in a thread of this process, which counts its connections, and a resolver of our own; with TLS
 * for the rules that need it. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "media/fetch.h"
#include "tests/media/expected.h"

#define BODY "The bytes of a file, as they are.\n"

/* ---- the server ----------------------------------------------------------------------------------------- */

struct server {
    int fd;
    unsigned port;
    SSL_CTX *tls;                         /* NULL: plain */
    pthread_t thread;
    atomic_int n_connections;
    atomic_bool stop;
    char request[4096];                   /* the last one's head */
};

static struct server plain, secure;

struct talk {
    int fd;
    SSL *ssl;
};

static int put(struct talk *t, const void *p, size_t n)
{
    return t->ssl ? SSL_write(t->ssl, p, (int)n) : (int)send(t->fd, p, n, MSG_NOSIGNAL);
}

static void puts_to(struct talk *t, const char *text) { put(t, text, strlen(text)); }

/* The peer has gone, or ms are over. */
static void wait_gone(struct talk *t, int ms)
{
    struct pollfd p = { .fd = t->fd, .events = POLLIN };
    poll(&p, 1, ms);
}

static void endless(struct talk *t, const char *piece, int pause_ms)
{
    while (put(t, piece, strlen(piece)) > 0)
        if (pause_ms > 0) usleep((unsigned)pause_ms * 1000);
}

static void redirect(struct talk *t, const char *to)
{
    char head[512];
    snprintf(head, sizeof head, "HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 4\r\n\r\nbody", to);
    puts_to(t, head);
}

static void answer(struct server *s, struct talk *t, const char *path)
{
    char text[512];
    if (strncmp(path, "/ok", 3) == 0) {
        snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n" BODY, strlen(BODY));
        puts_to(t, text);
    } else if (strcmp(path, "/chunked") == 0) {
        puts_to(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nThe \r\n1e\r\nbytes of a file, as they are.\n\r\n0\r\n\r\n");
    } else if (strcmp(path, "/404") == 0) {
        puts_to(t, "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope");
    } else if (strcmp(path, "/500") == 0) {
        puts_to(t, "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nnope");
    } else if (strcmp(path, "/206") == 0) {
        puts_to(t, "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\n\r\npart");
    } else if (strcmp(path, "/short") == 0) {
        puts_to(t, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nten bytes.");
    } else if (strcmp(path, "/slow") == 0) {
        puts_to(t, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
        endless(t, "x", 20);
    } else if (strcmp(path, "/silent") == 0) {
        wait_gone(t, 5000);
    } else if (strcmp(path, "/large") == 0) {
        puts_to(t, "HTTP/1.1 200 OK\r\nContent-Length: 3221225472\r\n\r\n");
        endless(t, "0123456789abcdef0123456789abcdef", 0);
    } else if (strcmp(path, "/large-chunked") == 0) {
        puts_to(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        endless(t, "20\r\n0123456789abcdef0123456789abcdef\r\n", 0);
    } else if (strcmp(path, "/large-closed") == 0) {
        puts_to(t, "HTTP/1.0 200 OK\r\n\r\n");
        endless(t, "0123456789abcdef0123456789abcdef", 0);
    } else if (strcmp(path, "/gzip") == 0) {
        puts_to(t, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope");
    } else if (strcmp(path, "/identity") == 0) {
        puts_to(t, "HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 4\r\n\r\nnope");
    } else if (strcmp(path, "/loop") == 0) {
        redirect(t, "/loop");
    } else if (strcmp(path, "/hop3") == 0) {
        redirect(t, "/hop2");
    } else if (strcmp(path, "/hop2") == 0) {
        redirect(t, "/hop1");
    } else if (strcmp(path, "/hop1") == 0) {
        redirect(t, "ok?after=3");
    } else if (strcmp(path, "/to-metadata") == 0) {
        redirect(t, "http://169.254.169.254/latest/meta-data/");
    } else if (strcmp(path, "/to-private") == 0) {
        snprintf(text, sizeof text, "http://private.test:%u/", s->port);
        redirect(t, text);
    } else if (strcmp(path, "/to-file") == 0) {
        redirect(t, "file:///etc/passwd");
    } else if (strcmp(path, "/to-user") == 0) {
        snprintf(text, sizeof text, "http://user:secret@media.test:%u/ok", s->port);
        redirect(t, text);
    } else if (strcmp(path, "/to-plain") == 0) {
        snprintf(text, sizeof text, "http://media.test:%u/ok", plain.port);
        redirect(t, text);
    } else if (strcmp(path, "/to-secure") == 0) {
        snprintf(text, sizeof text, "https://media.test:%u/ok", secure.port);
        redirect(t, text);
    } else {
        puts_to(t, "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n");
    }
}

static void serve_one(struct server *s, int fd)
{
    struct talk t = { .fd = fd };
    size_t n = 0;
    char path[256];
    if (s->tls != NULL) {
        t.ssl = SSL_new(s->tls);
        SSL_set_fd(t.ssl, fd);
        if (SSL_accept(t.ssl) != 1) goto done;
    }
    while (n < sizeof s->request - 1) {
        const int got = t.ssl ? SSL_read(t.ssl, s->request + n, (int)(sizeof s->request - 1 - n))
                      : (int)recv(fd, s->request + n, sizeof s->request - 1 - n, 0);
        if (got <= 0) goto done;
        s->request[n += (size_t)got] = 0;
        if (strstr(s->request, "\r\n\r\n") != NULL) break;
    }
    if (sscanf(s->request, "GET %255s HTTP/1.1", path) == 1) answer(s, &t, path);
    if (t.ssl) SSL_shutdown(t.ssl);
done:
    SSL_free(t.ssl);
    close(fd);
}

static void *serve(void *arg)
{
    struct server *s = arg;
    while (!atomic_load(&s->stop)) {
        struct pollfd p = { .fd = s->fd, .events = POLLIN };
        if (poll(&p, 1, 50) != 1) continue;
        const int fd = accept(s->fd, NULL, NULL);
        if (fd < 0) continue;
        atomic_fetch_add(&s->n_connections, 1);
        serve_one(s, fd);
    }
    return NULL;
}

static void server_start(struct server *s)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t n = sizeof a;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(s->fd, 16), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&a, &n), 0);
    s->port = ntohs(a.sin_port);
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void server_stop(struct server *s)
{
    atomic_store(&s->stop, true);
    pthread_join(s->thread, NULL);
    close(s->fd);
    SSL_CTX_free(s->tls);
}

/* A certificate for media.test, signed by itself, in the context and in a file for the client. */
static char ca_path[64];

static SSL_CTX *certificate(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), -3600);
    X509_gmtime_adj(X509_getm_notAfter(x), 3600);
    X509_set_pubkey(x, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, (const unsigned char *)"media.test", -1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(x));
    X509_EXTENSION *names = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "DNS:media.test");
    X509_add_ext(x, names, -1);
    X509_EXTENSION_free(names);
    assert_true(X509_sign(x, key, EVP_sha256()) > 0);
    assert_int_equal(SSL_CTX_use_certificate(ctx, x), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, key), 1);
    snprintf(ca_path, sizeof ca_path, "/tmp/omnidrop-fetch-%d.pem", (int)getpid());
    FILE *f = fopen(ca_path, "w");
    assert_non_null(f);
    PEM_write_X509(f, x);
    fclose(f);
    X509_free(x);
    EVP_PKEY_free(key);
    return ctx;
}

/* ---- names ---------------------------------------------------------------------------------------------- */

static struct fetch_options options;
static struct fetch_domain domain[8];
static struct fetch_net net[2];
static int n_lookups;

static void address(struct sockaddr_storage *out, const char *text)
{
    struct sockaddr_in *four = (struct sockaddr_in *)out;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) four->sin_family = AF_INET;
    else if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) six->sin6_family = AF_INET6;
    else fail_msg("%s is no address", text);
}

static status resolve(void *self, const char *host, struct sockaddr_storage *out, uint32_t *n, struct err *e)
{
    static const struct { const char *host, *address[3]; } table[] = {
        { "media.test", { "127.0.0.1" } },          /* allowed by its range */
        { "other.test", { "127.0.0.1" } },          /* the same server by another name */
        { "private.test", { "10.0.0.1" } },
        { "mixed.test", { "127.0.0.1", "192.168.1.1" } },       /* one bad address spoils all */
        { "mapped.test", { "::ffff:127.0.0.1" } },
        { "127.0.0.1", { "127.0.0.1" } }, { "169.254.169.254", { "169.254.169.254" } },
        { "::ffff:127.0.0.1", { "::ffff:127.0.0.1" } }, { "::ffff:7f00:1", { "::ffff:127.0.0.1" } },
        { "::1", { "::1" } },
    };
    (void)self;
    n_lookups++;
    *n = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(table[i].host, host) != 0) continue;
        for (; *n < 3 && table[i].address[*n] != NULL; ++*n) address(&out[*n], table[i].address[*n]);
        return OK;
    }
    return err_set(e, E_INPUT, "no such name: %s", host);
}

static void domains(const char *const *text, uint32_t n)
{
    struct err e = { .text = "" };
    for (uint32_t i = 0; i < n; i++) assert_ok(fetch_domain_parse(text[i], &domain[i], &e), e);
    options.domain = domain;
    options.n_domains = n;
}

static void everywhere(void)
{
    static char one[32], two[32];
    snprintf(one, sizeof one, "*:%u", plain.port);
    snprintf(two, sizeof two, "*:%u", secure.port);
    domains((const char *const[]){ "*", one, two }, 3);
}

static int setup(void **state)
{
    struct err e = { .text = "" };
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    secure.tls = certificate();
    server_start(&plain);
    server_start(&secure);
    assert_ok(fetch_net_parse("127.0.0.0/8", &net[0], &e), e);
    options = (struct fetch_options){ .net = net, .n_nets = 1, .resolve = resolve, .ca_file = ca_path, .max_bytes = 1 << 20 };
    everywhere();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    server_stop(&plain);
    server_stop(&secure);
    unlink(ca_path);
    return 0;
}

static const char *at(struct server *s, const char *host, const char *path)
{
    static char url[512];
    snprintf(url, sizeof url, "%s://%s:%u%s", s->tls ? "https" : "http", host, s->port, path);
    return url;
}

/* ---- the text of URLs ----------------------------------------------------------------------------------- */

static void expect(const char *url, const char *tag)
{
    struct media_source s;
    struct err e = { .text = "" };
    const status st = media_fetch(&options, url, "part", NULL, &s, &e);
    if (st == OK || e.tag == NULL || strcmp(e.tag, tag) != 0)
        fail_msg("%s: %s, tag %s, '%s' instead of %s", url, err_name(st), st != OK && e.tag ? e.tag : "none", e.text, tag);
    if (strncmp(e.text, "part: ", 6) != 0 || strstr(e.text, "127.0") != NULL || strstr(e.text, "10.0.0") != NULL)
        fail_msg("%s: '%s'", url, e.text);
}

/* B30 and what else a parser may be tricked with: refused before anything is looked up. */
static void bad_urls(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "http://allowed.example@evil.example/", "http://allowed.example:80@evil.example/", "http:\\\\evil", "http:/\\evil",
        "http://media.test\\@evil.example/", "gopher://media.test/", "ftp://media.test/", "file:///etc/passwd",
        "dict://media.test/", "ldap://media.test", "", "http:", "http://", "http:///x", "//media.test/", "media.test",
        "http://media.test:0x50/", "http://media.test:99999/", "http://media.test/a b", "http://media.test/\n",
        "http://media.test/\x7f", "http://[::1%25eth0]/", "http://[fe80::1%25lo]/", "http://media.test:8081/",
        "http://media%2etest%00.evil.example/", "http://..", "http://./", "jar:http://media.test/!", "http://a%40b/",
        "HTTP//media.test/",
    };
    const int before = atomic_load(&plain.n_connections);
    n_lookups = 0;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) expect(bad[i], "media_url_not_allowed");
    assert_int_equal(n_lookups, 0);
    assert_int_equal(atomic_load(&plain.n_connections), before);
}

static bool may(const char *url)
{
    struct err e;
    const status st = fetch_check(&options, url, "part", &e);
    assert_true(st == OK || (st == E_INPUT && strcmp(e.tag, "media_url_not_allowed") == 0));
    return st == OK;
}

static void allowed_domains(void **state)
{
    (void)state;
    options.n_domains = 0;
    assert_false(may("http://media.test/"));              /* an empty list is nobody */
    domains((const char *const[]){ "Media.Test.", ".example.org", "special.test:8443", "[2001:DB8::1]:81" }, 4);
    assert_true(may("http://media.test/x"));
    assert_true(may("https://MEDIA.test./x?y#z"));
    assert_true(may("http://media.test:443/"));
    assert_true(may("http://media.test:80"));
    assert_false(may("http://media.test:8080/"));
    assert_false(may("http://media.test../"));
    assert_false(may("http://a.media.test/"));
    assert_false(may("http://media.test.evil.example/"));
    assert_true(may("http://a.example.org/"));
    assert_true(may("http://a.b.example.org/"));
    assert_false(may("http://example.org/"));
    assert_false(may("http://aexample.org/"));
    assert_false(may("http://.example.org/"));
    assert_true(may("https://special.test:8443/"));
    assert_false(may("https://special.test/"));
    assert_true(may("http://[2001:db8::1]:81/"));
    assert_false(may("http://[2001:db8::1]/"));
    struct fetch_domain d;
    struct err e;
    static const char *const bad[] = { "", ".", "a/b", "*.example.org", "http://a", "a:0", "a:99999", "a:b", "a b", "u@h" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (fetch_domain_parse(bad[i], &d, &e) != E_ARG) fail_msg("\"%s\" is taken for a domain", bad[i]);
    everywhere();
    assert_true(may("http://anything.example/"));
    assert_true(may(at(&plain, "anything.example", "/")));
    assert_false(may("http://anything.example:22/"));
}

/* Internationalised names are compared as they are resolved. */
static void idna(void **state)
{
    (void)state;
    domains((const char *const[]){ "xn--bcher-kva.example" }, 1);
    assert_true(may("http://b\xc3\xbc" "cher.example/"));
    assert_true(may("http://B\xc3\x9c" "CHER.example./"));
    assert_false(may("http://bucher.example/"));
    everywhere();
}

/* ---- addresses ------------------------------------------------------------------------------------------ */

static bool public_address(const struct fetch_options *o, const char *text)
{
    struct sockaddr_storage a;
    address(&a, text);
    return fetch_address_allowed(o, (struct sockaddr *)&a);
}

static void addresses(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1",
        "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.0.1",
        "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
        "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a00:1",
        "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1",
        "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "3fff:fff::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1",
        "fec0::1", "ff02::1", "4000::1",
    };
    static const char *const good[] = {
        "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.1",
        "169.253.0.1", "172.15.0.1", "172.32.0.1", "192.0.1.1", "192.167.0.1", "198.17.0.1", "198.20.0.1", "223.255.255.255",
        "2606:4700::1111", "2a00:1450::1", "2001:200::1", "2001:4860:4860::8888", "2003::1", "2400::1",
    };
    const struct fetch_options none = { .n_nets = 0 };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (public_address(&none, bad[i])) fail_msg("%s is taken for a public address", bad[i]);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (!public_address(&none, good[i])) fail_msg("%s is refused", good[i]);
    struct err e = { .text = "" };
    struct fetch_net two[2];
    assert_ok(fetch_net_parse("10.32.0.0/11", &two[0], &e), e);
    assert_ok(fetch_net_parse("fd12:3400::/22", &two[1], &e), e);
    const struct fetch_options some = { .net = two, .n_nets = 2 };
    assert_true(public_address(&some, "10.32.0.1"));
    assert_true(public_address(&some, "10.63.255.255"));
    assert_false(public_address(&some, "10.64.0.0"));
    assert_false(public_address(&some, "10.31.255.255"));
    assert_false(public_address(&some, "::ffff:10.32.0.1"));
    assert_true(public_address(&some, "fd12:37ff::1"));
    assert_false(public_address(&some, "fd12:3800::1"));
    static const char *const wrong[] = { "", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.1/8", "10.0.0/8", "fd00::/129",
                                         "fd00::1/64", "x/8", "10.0.0.0/-1", "10.0.0.0/8x", "/8" };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (fetch_net_parse(wrong[i], two, &e) != E_ARG) fail_msg("\"%s\" is taken for a range", wrong[i]);
}

/* B29: nothing is connected to, whatever the spelling, and the answer is that of a name that does not exist. */
static void refused_hosts(void **state)
{
    (void)state;
    static const char *const host[] = { "[::ffff:7f00:1]", "[::ffff:127.0.0.1]", "[::1]", "private.test", "mixed.test",
                                        "mapped.test", "169.254.169.254", "missing.test" };
    const int before = atomic_load(&plain.n_connections);
    struct err e, first = { .text = "" };
    struct media_source s;
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) {
        expect(at(&plain, host[i], "/ok"), "media_url_not_allowed");
        assert_int_equal(media_fetch(&options, at(&plain, host[i], "/ok"), "part", NULL, &s, &e), E_INPUT);
        if (i > 0) assert_string_equal(e.text, first.text);
        first = e;
    }
    options.n_nets = 0;                                   /* without the range our own server is refused, too */
    static const char *const local[] = { "127.0.0.1", "0x7f.1", "2130706433", "0177.0.0.1", "127.1", "media.test", "127.0.0.1." };
    for (size_t i = 0; i < sizeof local / sizeof *local; i++) expect(at(&plain, local[i], "/ok"), "media_url_not_allowed");
    options.resolve = NULL;                               /* the system's own resolver */
    expect(at(&plain, "localhost", "/ok"), "media_url_not_allowed");
    expect(at(&plain, "0x7f.1", "/ok"), "media_url_not_allowed");
    options.resolve = resolve;
    options.n_nets = 1;
    assert_int_equal(atomic_load(&plain.n_connections), before);
}

/* ---- answers -------------------------------------------------------------------------------------------- */

static void gives(const char *url, const char *body)
{
    struct media_source s;
    struct err e = { .text = "" };
    char buf[256];
    const status st = media_fetch(&options, url, "part", NULL, &s, &e);
    if (st != OK) fail_msg("%s: %s", url, e.text);
    assert_int_equal(s.bytes, strlen(body));
    assert_int_equal(pread(s.fd, buf, sizeof buf, 0), strlen(body));
    assert_memory_equal(buf, body, strlen(body));
    assert_string_equal(s.name, "part");
    struct media_source again;
    assert_ok(media_source_of_bytes(body, strlen(body), "x", NULL, &again, &e), e);
    assert_string_equal(s.digest, again.digest);
    media_source_close(&again);
    media_source_close(&s);
}

static void good(void **state)
{
    (void)state;
    setenv("http_proxy", "http://127.0.0.1:1/", 1);       /* not asked */
    setenv("ALL_PROXY", "http://127.0.0.1:1/", 1);
    gives(at(&plain, "media.test", "/ok"), BODY);
    assert_non_null(strstr(plain.request, "Accept-Encoding: identity\r\n"));
    assert_non_null(strstr(plain.request, "Host: media.test:"));
    assert_null(strstr(plain.request, "Authorization"));
    gives(at(&plain, "MEDIA.test.", "/ok#fragment"), BODY);
    gives(at(&plain, "127.0.0.1", "/ok"), BODY);
    gives(at(&plain, "media.test", "/chunked"), BODY);
    gives(at(&plain, "media.test", "/identity"), "nope");
    gives(at(&plain, "media.test", "/hop3"), BODY);
    assert_non_null(strstr(plain.request, "GET /ok?after=3 "));
    options.resolve = NULL;
    gives(at(&plain, "localhost", "/ok"), BODY);
    options.resolve = resolve;
    unsetenv("http_proxy");
    unsetenv("ALL_PROXY");
}

/* B32 and its kin. */
static void bad_answers(void **state)
{
    (void)state;
    static const struct { const char *path, *tag; } bad[] = {
        { "/404", "media_fetch_failed" }, { "/206", "media_fetch_failed" }, { "/gzip", "media_fetch_failed" },
        { "/500", "media_fetch_failed_remote" }, { "/short", "media_fetch_failed_remote" },
        { "/large", "media_too_large" }, { "/large-chunked", "media_too_large" }, { "/large-closed", "media_too_large" },
        { "/loop", "media_fetch_failed" }, { "/to-metadata", "media_url_not_allowed" },
        { "/to-private", "media_url_not_allowed" }, { "/to-file", "media_url_not_allowed" },
        { "/to-user", "media_url_not_allowed" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) expect(at(&plain, "media.test", bad[i].path), bad[i].tag);
    const struct server closed = { .port = 1 };
    domains((const char *const[]){ "*:1" }, 1);
    expect(at((struct server *)&closed, "media.test", "/ok"), "media_fetch_failed_remote");
    everywhere();
}

static void slow(void **state)
{
    (void)state;
    static const char *const path[] = { "/slow", "/silent" };
    options.total_s = 0.4;
    for (int i = 0; i < 2; i++) {
        const double began = clock_s();
        expect(at(&plain, "media.test", path[i]), "media_fetch_timeout");
        assert_true(clock_s() - began < 1.5);
    }
    options.total_s = 0;
}

static void *set_later(void *stop)
{
    usleep(200000);
    atomic_store((atomic_bool *)stop, true);
    return NULL;
}

static void stop_flag(void **state)
{
    (void)state;
    atomic_bool stop = false;
    pthread_t t;
    struct media_source s;
    struct err e;
    const double began = clock_s();
    pthread_create(&t, NULL, set_later, &stop);
    assert_int_equal(media_fetch(&options, at(&plain, "media.test", "/silent"), "part", &stop, &s, &e), E_CANCELLED);
    assert_true(clock_s() - began < 1);
    pthread_join(t, NULL);
}

/* TLS: the name is what counts; from https there is no way back. */
static void tls(void **state)
{
    (void)state;
    gives(at(&secure, "media.test", "/ok"), BODY);
    gives(at(&plain, "media.test", "/to-secure"), BODY);
    expect(at(&secure, "other.test", "/ok"), "media_fetch_failed");       /* same server, wrong name */
    expect(at(&secure, "127.0.0.1", "/ok"), "media_fetch_failed");
    expect(at(&secure, "media.test", "/to-plain"), "media_url_not_allowed");
    options.ca_file = NULL;                                               /* a stranger's signature */
    expect(at(&secure, "media.test", "/ok"), "media_fetch_failed");
    options.ca_file = ca_path;
}

/* The spool has no room: not the host's fault. */
static void full(void **state)
{
    (void)state;
    const struct rlimit small = { 10, RLIM_INFINITY };
    struct rlimit old;
    struct media_source s;
    struct err e;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    setrlimit(RLIMIT_FSIZE, &small);
    const status st = media_fetch(&options, at(&plain, "media.test", "/ok"), "part", NULL, &s, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(st, E_IO);
    assert_string_equal(e.tag, "spool_full");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_urls), cmocka_unit_test(allowed_domains), cmocka_unit_test(idna), cmocka_unit_test(addresses),
        cmocka_unit_test(refused_hosts), cmocka_unit_test(good), cmocka_unit_test(bad_answers), cmocka_unit_test(slow),
        cmocka_unit_test(stop_flag), cmocka_unit_test(tls), cmocka_unit_test(full),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
