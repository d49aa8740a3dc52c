/* Fuzz target: the messages of a request. What is accepted renders, with one placeholder for each media
 * part. */
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct doc_limits limits = {
        .bytes_max = 1 << 20, .depth_max = 64, .allow_nul = true, .code = E_ARG
    };
    struct chat_render_options labels = { .add_vision_id = true, .add_audio_id = true };
    struct err e;
    struct doc d;
    struct doc_at root;
    struct chat c;
    struct chat_prompt p;
    if (doc_parse((const char *)data, size, "messages", &limits, &d, &e) != OK) return 0;
    doc_root(&d, &root);
    const status st = chat_parse(&root, NULL, &c, &e);
    doc_close(&d);
    if (st != OK) {
        PROMISE(st == E_ARG && e.text[0] != '\0');
        return 0;
    }
    bool file = false;
    for (size_t m = 0; m < c.n_messages; m++)
        for (size_t i = 0; i < c.message[m].n_parts; i++) file = file || c.message[m].part[i].kind == PART_FILE;
    labels.continue_final = c.message[c.n_messages - 1].role == CHAT_ASSISTANT;
    if (file) PROMISE(chat_render(&c, &labels, &p, &e) == E_ARG);
    for (size_t m = 0; m < c.n_messages; m++)
        for (size_t i = 0; i < c.message[m].n_parts; i++)
            if (c.message[m].part[i].kind == PART_FILE) c.message[m].part[i].kind = PART_IMAGE;
    PROMISE(chat_render(&c, &labels, &p, &e) == OK);
    size_t holders = 0, media = 0;
    for (size_t i = 0; i < p.n_seg; i++)
        holders +=
            p.seg[i].is_template && (strstr(p.seg[i].text, "|IMAGE|") || strstr(p.seg[i].text, "|AUDIO|") ||
                                     strstr(p.seg[i].text, "|VIDEO|"));
    for (size_t m = 0; m < c.n_messages; m++)
        for (size_t i = 0; i < c.message[m].n_parts; i++) {
            const struct chat_part *part = &c.message[m].part[i];
            media += part->kind != PART_TEXT;
            PROMISE(part->kind == PART_TEXT ? part->text != NULL
                                            : (part->url != NULL) + (part->data != NULL) + (part->n_frames > 0) == 1);
        }
    PROMISE(holders == media && media == p.n_media);
    chat_prompt_free(&p);
    chat_free(&c);
    return 0;
}
