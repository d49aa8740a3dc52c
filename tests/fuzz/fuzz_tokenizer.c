/* Fuzz target: tokenizer.json. What is accepted must encode and decode a few texts. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Ab  c's \xc3\xa9 e\xcc\x81 12\n\n \xe4\xbd\xa0\xf0\x9f\x99\x82 "
                               "\xff<|x|>aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ";
    struct err e;
    struct tokenizer *t;
    struct token_list l = { 0 };
    if (tokenizer_parse((const char *)data, size, &t, &e) != OK) return 0;
    for (int is_template = 0; is_template < 2; is_template++) {
        const struct text_segment seg = { .text = text, .n = sizeof text - 1, .is_template = is_template };
        if (tokenizer_encode(t, &seg, 1, &l, &e) != OK) continue;
        struct detokenizer d;
        detok_init(&d, t);
        char *room = malloc(detok_room(t));
        if (room == NULL) abort();
        for (size_t i = 0; i < l.n; i++) {
            if (!tokenizer_has(t, l.token[i].id)) abort();
            if (detok_push(&d, l.token[i].id, room) > detok_room(t)) abort();
        }
        detok_flush(&d, room);
        free(room);
    }
    token_list_free(&l);
    tokenizer_free(&t);
    return 0;
}
