/* http/page.c - GET /: the page http/page/index.html, which is part of the program, and the policy that confines it.
 * Its one script and its one style sheet are allowed by their hashes, so nothing that finds its way into the page runs;
 * it talks to this server alone and nobody may frame it. */
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "http/app_inside.h"

__asm__(".section .rodata\n"
        ".global http_page_start\nhttp_page_start:\n.incbin \"http/page/index.html\"\n"
        ".global http_page_end\nhttp_page_end:\n.byte 0\n"
        ".previous\n");
extern const char http_page_start[], http_page_end[];

/* The hash of what stands between two tags of the page, as the policy writes it: 'sha256-...'. */
static void hash_of(const char *open, const char *close, char *out, size_t cap)
{
    const char *from = strstr(http_page_start, open), *to = from ? strstr(from, close) : NULL;
    unsigned char digest[SHA256_DIGEST_LENGTH], text[4 * SHA256_DIGEST_LENGTH / 3 + 8];
    if (to == NULL) abort();                           /* the page is our own */
    from += strlen(open);
    SHA256((const unsigned char *)from, (size_t)(to - from), digest);
    EVP_EncodeBlock(text, digest, SHA256_DIGEST_LENGTH);
    snprintf(out, cap, "'sha256-%s'", text);
}

static void page(void *self, struct http_request *r)
{
    char script[80], style[80], policy[512];
    (void)self;
    hash_of("<script>", "</script>", script, sizeof script);
    hash_of("<style>", "</style>", style, sizeof style);
    snprintf(policy, sizeof policy, "default-src 'none'; script-src %s; style-src %s; connect-src 'self'; img-src 'self' blob: "
                                    "data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
             script, style);
    http_reply_header(r, "Content-Security-Policy", policy);
    http_reply_header(r, "Referrer-Policy", "no-referrer");
    http_reply_header(r, "Cache-Control", "no-cache");
    http_reply_bytes(r, 200, "text/html; charset=utf-8", http_page_start, (size_t)(http_page_end - http_page_start));
}

void page_route(struct http_server *s)
{
    const struct http_route route = { .method = "GET", .path = "/", .body = HTTP_BODY_NONE, .open = true, .while_draining = true,
                                      .handle = page };
    http_route_add(s, &route);
}
