/* Fuzz target: any bytes through the bundled tokenizer and back, cut into three segments. Whatever they
 * are: user text makes no added token, tokens lie in order inside the text, what comes out is UTF-8, and
 * encoding that again gives the same ids. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer.h"
#include "model/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *t;
    struct err e;
    struct token_list l = { 0 }, again = { 0 };
    if (t == NULL && tokenizer_load("models/omni-tiny", &t, &e) != OK) abort();
    if (size < 2) return 0;
    const char *text = (const char *)data + 2;
    const size_t n = size - 2, a = n * data[0] / 256, b = a + (n - a) * data[1] / 256;
    const struct text_segment segs[] = {
        { .text = text, .n = a, .is_template = true },
        { .text = text + a, .n = b - a, .is_user_text = true },
        { .text = text + b, .n = n - b },
    };
    PROMISE(tokenizer_encode(t, segs, 3, &l, &e) == OK);
    char *room = malloc(detok_room(t)), *back = malloc(3 * size + 64);
    PROMISE(room != NULL && back != NULL);
    struct detokenizer d;
    detok_init(&d, t);
    d.keep_special = true;
    size_t len = 0;
    bool added = false;
    for (size_t i = 0; i < l.n; i++) {
        PROMISE(l.begin[i] < l.end[i] && l.end[i] <= n && (i == 0 || l.begin[i] >= l.begin[i - 1]));
        if (tokenizer_is_added(t, l.token[i].id)) {
            added = true;
            PROMISE(l.end[i] <= a && !l.token[i].is_user_text);
        } else {
            PROMISE(l.token[i].is_user_text == (a < b && l.begin[i] < b && l.end[i] > a));
        }
        const size_t k = detok_push(&d, l.token[i].id, room);
        PROMISE(k <= detok_room(t));
        memcpy(back + len, room, k);
        len += k;
    }
    PROMISE(detok_flush(&d, room) == 0);
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        const int step = utf8_step((const uint8_t *)back + i, len - i, &cp);
        PROMISE(step > 0);
        i += (size_t)step;
    }
    if (!added) {
        PROMISE(tokenizer_encode_text(t, back, len, &again, &e) == OK && again.n == l.n);
        for (size_t i = 0; i < l.n; i++) PROMISE(again.token[i].id == l.token[i].id);
    }
    free(room);
    free(back);
    token_list_free(&l);
    token_list_free(&again);
    return 0;
}
