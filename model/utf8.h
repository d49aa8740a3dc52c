/* model/utf8.h - one step through bytes that may or may not be UTF-8. */
#ifndef MODEL_UTF8_H
#define MODEL_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Look at s[0..n), n >= 1. Returns the length of the character there (> 0, *cp is set); 0 when all n bytes
 * are the beginning of one and more are needed; -k when the first k bytes can be no part of one: they
 * stand for a single U+FFFD (the maximal part, as Python's errors='replace' and Rust's from_utf8_lossy
 * count). */
static inline int utf8_step(const uint8_t *s, size_t n, uint32_t *cp)
{
    const uint8_t a = s[0];
    if (a < 0x80) {
        *cp = a;
        return 1;
    }
    if (a < 0xc2 || a > 0xf4) return -1;
    const int len = a < 0xe0 ? 2 : a < 0xf0 ? 3 : 4;
    /* The second byte has a narrower range where the first would give overlong forms, surrogates or too
     * much. */
    const uint8_t lo = a == 0xe0   ? 0xa0
                       : a == 0xf0 ? 0x90
                                   : 0x80,
                  hi = a == 0xed   ? 0x9f
                       : a == 0xf4 ? 0x8f
                                   : 0xbf;
    uint32_t v = a & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n) return 0;
        if (s[i] < (i == 1 ? lo : 0x80) || s[i] > (i == 1 ? hi : 0xbf)) return -i;
        v = v << 6 | (s[i] & 0x3fu);
    }
    *cp = v;
    return len;
}

/* Write a valid code point; returns 1..4. */
static inline int utf8_put(uint32_t cp, char *out)
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    const int len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3f));
    out[0] = (char)((0xf00 >> len) | cp);
    return len;
}

#endif
