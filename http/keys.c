/* http/keys.c - who may ask: API keys, the Host header, the Origin header. docs/http-api.md 2.5. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "http/internal.h"

static status digest_of(const char *text, size_t n, char out[MEDIA_DIGEST_TEXT], struct err *e)
{
    struct media_digest *d;
    TRY(media_digest_begin(&d, e));
    media_digest_add(d, text, n);
    media_digest_end(&d, out);
    return OK;
}

void keys_free(struct keys *k)
{
    free(k->digest);
    *k = (struct keys){ 0 };
}

static status add(struct keys *k, const char *key, size_t n, struct err *e)
{
    for (size_t i = 0; i < n; i++)
        if (key[i] <= 0x20 || key[i] >= 0x7f)
            return err_set(e, E_ARG, "API keys are words of printable ASCII characters");
    k->digest = realloc(k->digest, (k->n + 1) * sizeof *k->digest);
    if (k->digest == NULL) abort();
    return digest_of(key, n, k->digest[k->n++], e);
}

/* One key a line; what follows '#' at the start of a word is comment. */
static status add_file(struct keys *k, const char *path, struct err *e)
{
    char line[4096];
    FILE *f = fopen(path, "re");
    if (f == NULL) return err_set(e, E_ARG, "--api-key-file %s cannot be read", path);
    status st = OK;
    while (st == OK && fgets(line, sizeof line, f)) {
        const size_t start = strspn(line, " \t\r\n"), n = strcspn(line + start, " \t\r\n");
        if (n == 0 || line[start] == '#') continue;
        st = add(k, line + start, n, e);
    }
    if (st == OK && ferror(f)) st = err_set(e, E_ARG, "--api-key-file %s cannot be read", path);
    fclose(f);
    return st;
}

/* All or nothing: on an error the keys stay what they were. */
status keys_load(struct http_server *s, struct err *e)
{
    struct keys k = { 0 };
    status st = OK;
    for (size_t i = 0; st == OK && i < s->o.n_api_key; i++)
        st = s->key[i][0] ? add(&k, s->key[i], strlen(s->key[i]), e) : err_set(e, E_ARG, "--api-key: the key is empty");
    if (st == OK && s->key_file) {
        st = add_file(&k, s->key_file, e);
        if (st == OK && k.n == 0) st = err_set(e, E_ARG, "--api-key-file %s holds no key", s->key_file);
    }
    if (st != OK) {
        keys_free(&k);
        return st;
    }
    keys_free(&s->keys);
    s->keys = k;
    return OK;
}

/* The time does not depend on what is right in it: every key is compared over its whole length. */
static bool known(const struct keys *k, const char *digest)
{
    unsigned found = 0;
    for (size_t i = 0; i < k->n; i++) {
        unsigned differ = 0;
        for (size_t j = 0; j < MEDIA_DIGEST_TEXT - 1; j++) differ |= (unsigned char)(k->digest[i][j] ^ digest[j]);
        found |= differ == 0;
    }
    return found != 0;
}

status keys_check(const struct http_server *s, const struct reader_head *h, char digest[MEDIA_DIGEST_TEXT],
                  bool needed, struct err *e)
{
    digest[0] = '\0';
    if (s->keys.n == 0) return OK;
    const char *a = reader_header(h, "authorization");
    const char *key = "";
    if (a && strncasecmp(a, "bearer ", 7) == 0) key = a + 7 + strspn(a + 7, " \t");
    char sum[MEDIA_DIGEST_TEXT];
    TRY(digest_of(key, strlen(key), sum, e));
    if (known(&s->keys, sum)) {
        memcpy(digest, sum, sizeof sum);
        return OK;
    }
    if (!needed) return OK;
    err_set(e, E_ARG, "This server needs an API key: send a valid one as 'Authorization: Bearer KEY'.");
    return err_tag(e, "invalid_api_key", NULL);
}

/* The name in "name:port" or "[v6]:port". */
static size_t host_name(const char *host)
{
    if (*host == '[') {
        const char *end = strchr(host, ']');
        return end ? (size_t)(end + 1 - host) : strlen(host);
    }
    return strcspn(host, ":");
}

static bool is_loopback(const char *name, size_t n)
{
    static const char suffix[] = ".localhost";
    if (n && name[n - 1] == '.') n--;
    if (n == 9 && strncasecmp(name, "localhost", 9) == 0) return true;
    if (n > 10 && strncasecmp(name + n - 10, suffix, 10) == 0) return true;
    if (n == 5 && strncmp(name, "[::1]", 5) == 0) return true;
    char text[32];
    struct in_addr a;
    if (n >= sizeof text) return false;
    memcpy(text, name, n);
    text[n] = '\0';
    return inet_pton(AF_INET, text, &a) == 1 && (ntohl(a.s_addr) >> 24) == 127;
}

status keys_check_host(const struct http_server *s, const struct reader_head *h, struct err *e)
{
    if (!s->check_host || (h->minor == 0 && h->host[0] == '\0')) return OK;
    const size_t n = host_name(h->host);
    if (is_loopback(h->host, n)) return OK;
    for (size_t i = 0; i < s->o.n_allowed_host; i++) {
        const char *allowed = s->host[i];
        if (strcmp(allowed, "*") == 0 || (strlen(allowed) == n && strncasecmp(allowed, h->host, n) == 0) ||
            strcasecmp(allowed, h->host) == 0)
            return OK;
    }
    err_set(e, E_ARG, "This server without keys answers to loopback names only; --allowed-hosts adds others.");
    return err_tag(e, "host_not_allowed", NULL);
}

status keys_check_origin(const struct http_server *s, const struct reader_head *h, const char **allow, struct err *e)
{
    *allow = NULL;
    const char *origin = reader_header(h, "origin");
    if (origin == NULL) return OK;
    for (size_t i = 0; i < s->o.n_allowed_origin; i++)
        if (strcmp(s->origin[i], "*") == 0 || strcasecmp(s->origin[i], origin) == 0) {
            *allow = strcmp(s->origin[i], "*") == 0 ? "*" : origin;
            return OK;
        }
    /* The page at / asks its own server. */
    const char *own = strstr(origin, "://");
    if (own && h->host[0] && strcasecmp(own + 3, h->host) == 0) return OK;
    err_set(e, E_ARG, "Pages of this origin may not use this server; --allowed-origins lists those that may.");
    return err_tag(e, "origin_not_allowed", NULL);
}
