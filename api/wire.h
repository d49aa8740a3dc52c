/* api/wire.h - messages between ranks of one build: numbers and byte strings, one after the other.
 * Written and read by the same program on machines of one kind (ranks of another build are refused at the start), so
 * numbers are as they lie in memory. A reader that runs past the end gets zeros and says `bad` from then on. */
#ifndef API_WIRE_H
#define API_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct wire { uint8_t *bytes; size_t n, cap; };        /* bytes are owned by who has the struct: free */
void wire_put(struct wire *w, const void *bytes, size_t n);
void wire_u32(struct wire *w, uint32_t v);
void wire_u64(struct wire *w, uint64_t v);
void wire_f64(struct wire *w, double v);
void wire_blob(struct wire *w, const void *bytes, size_t n);       /* its length, then it */
void wire_text(struct wire *w, const char *text);                  /* NULL: "" */
void wire_err(struct wire *w, const struct err *e);

struct wire_reader { const uint8_t *bytes; size_t n, at; bool bad; };
void wire_get(struct wire_reader *r, void *out, size_t n);
uint32_t wire_get_u32(struct wire_reader *r);
uint64_t wire_get_u64(struct wire_reader *r);
double wire_get_f64(struct wire_reader *r);
/* Points into the message; NULL and 0 where bad. */
const uint8_t *wire_get_blob(struct wire_reader *r, size_t *n);
/* Cut to fit. */
void wire_get_text(struct wire_reader *r, char *out, size_t cap);
/* Code OK: none. The tag becomes the literal of api/error.c that is equal. */
void wire_get_err(struct wire_reader *r, struct err *e);

#endif
