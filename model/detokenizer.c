/* model/detokenizer.c - ids back to text, a token at a time; see tokenizer.h. */
#include <string.h>

#include "model/tokenizer.h"
#include "model/utf8.h"

#define BROKEN "\xef\xbf\xbd" /* U+FFFD */

void detok_init(struct detokenizer *d, const struct tokenizer *t)
{
    *d = (struct detokenizer){ .t = t };
}

size_t detok_room(const struct tokenizer *t)
{
    /* Every byte of the token, and the three held before it, may come out as a U+FFFD of three bytes. */
    return 3 * (tokenizer_bytes_max(t) + 3);
}

/* Take one byte; write the characters it completes, return their length. */
static size_t take(struct detokenizer *d, uint8_t byte, char *out)
{
    size_t n = 0;
    uint32_t cp;
    d->held[d->n_held++] = byte;
    for (;;) { /* a broken beginning goes, the byte is looked at again */
        const int len = d->n_held == 0 ? 0 : utf8_step(d->held, d->n_held, &cp);
        if (len == 0) return n;
        const size_t used = (size_t)(len > 0 ? len : -len);
        if (len > 0) {
            memcpy(out + n, d->held, used);
            n += used;
        } else {
            memcpy(out + n, BROKEN, 3);
            n += 3;
        }
        memmove(d->held, d->held + used, d->n_held - used);
        d->n_held = (uint8_t)(d->n_held - used);
    }
}

size_t detok_push(struct detokenizer *d, int32_t id, char *out)
{
    size_t len, n = 0;
    const char *bytes = tokenizer_bytes(d->t, id, &len);
    if (bytes == NULL || (!d->keep_special && tokenizer_is_special(d->t, id))) return 0;
    for (size_t i = 0; i < len; i++) n += take(d, (uint8_t)bytes[i], out + n);
    return n;
}

size_t detok_flush(struct detokenizer *d, char *out)
{
    if (d->n_held == 0) return 0;
    d->n_held = 0;
    memcpy(out, BROKEN, 3);
    return 3;
}
