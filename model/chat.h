/* model/chat.h - OpenAI `messages` in, segments of the chat template out. Parsing believes nothing:
 * counts, sizes and base64 are bounded, errors name the path ("messages[1].content[0].type"). Rendering
 * implements the behaviour of the published Qwen2.5-Omni template (the Jinja text of the checkpoint is not
 * executed): default system message, <|im_start|>role\n body <|im_end|>\n, one placeholder for each media
 * part, in place. */
#ifndef MODEL_CHAT_H
#define MODEL_CHAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/json.h"
#include "model/config.h"
#include "model/tokenizer.h"

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT };
/* PART_FILE: media whose kind only its bytes tell; who probes them sets image, audio or video before chat_render. */
enum chat_part_kind { PART_TEXT, PART_IMAGE, PART_AUDIO, PART_VIDEO, PART_FILE };

/* A media part may carry wishes of its own; what was not given has the value named here. */
struct chat_media_options {
    double start_s, end_s;           /* -1: not given */
    double fps;                      /* 0 */
    uint32_t max_frames;             /* 0 */
    uint64_t min_pixels, max_pixels; /* 0 */
    int use_audio;                   /* -1; else 0 or 1 (video) */
    bool low_detail;                 /* image_url.detail is "low": at most a quarter of the pixels that the part
                                        may have by max_pixels or by default; whoever plans the picture applies it */
};

struct chat_part {
    enum chat_part_kind kind;
    char *text; /* PART_TEXT: n_text bytes and a NUL; else NULL */
    size_t n_text;
    char *url;     /* media by reference, as given, or "file-id:ID"; NULL where the bytes are here or in `frame` */
    uint8_t *data; /* media inline (base64 or data: URL), decoded; pcm16 has got a WAV header */
    size_t n_data;
    char **frame;    /* PART_VIDEO as a list of pictures: [n_frames] URLs as given (chat_data_url decodes those that
                        hold their bytes; they were checked); url and data are NULL then. Else NULL */
    size_t n_frames;
    double list_fps; /* of the list: sample_fps, fps or 2; 0 where there is no list */
    char *format; /* hint of the sender ("wav", "image/png"), may be NULL */
    struct chat_media_options options;
    char path[48]; /* where it stood: "messages[1].content[0]", for later messages about it */
};

struct chat_message {
    enum chat_role role;
    struct chat_part *part;
    size_t n_parts, cap;
};

struct chat {
    struct chat_message *message;
    size_t n_messages, cap;
};

struct chat_limits {
    size_t messages_max, parts_max; /* messages; parts of one message, frames of one list */
    size_t text_max;                /* bytes of text of all messages */
    size_t inline_max;              /* decoded bytes of inline media of all messages */
};
extern const struct chat_limits chat_default_limits; /* 2048, 1024, 16 MiB, 512 MiB */

/* Parse the array at `messages` (a place in a request or case file), shapes of docs/http-api.md 1.3. *out owns
 * copies of everything: chat_free. limits NULL: the default ones. Errors carry the doc's code; where that is
 * E_ARG also the tag and the param of 2.2 there (messages[0].content[0].type). */
status chat_parse(const struct doc_at *messages, const struct chat_limits *limits, struct chat *out,
                  struct err *e);
void chat_free(struct chat *c);

/* Build a chat by hand (CLI): chat_init to empty, then messages, then parts of the last message; copies
 * its arguments. */
void chat_init(struct chat *c);
status chat_add_message(struct chat *c, enum chat_role role, struct err *e);
status chat_add_text(struct chat *c, const char *text, size_t n, struct err *e);
status chat_add_media(struct chat *c, enum chat_part_kind kind, const char *url, struct err *e);

/* Take the last message back. */
void chat_drop_last(struct chat *c);

struct chat_render_options {
    bool no_generation_prompt;        /* else ends with <|im_start|>assistant\n */
    bool continue_final;              /* the last message, an assistant's, stays open: its text goes on in the answer */
    bool add_vision_id, add_audio_id; /* "Picture 1: ", "Video 1: ", "Audio 1: " */
};

/* The prompt: text for the tokenizer, and the media parts in the order of their placeholders. */
struct chat_prompt {
    struct text_segment *seg; /* [n_seg] borrow from the chat and from `own` */
    size_t n_seg, seg_cap;
    const struct chat_part **media; /* [n_media] borrowed from the chat */
    size_t n_media, media_cap;
    char **own; /* numbered labels */
    size_t n_own, own_cap;
};

/* options NULL: none. The chat must outlive *out: chat_prompt_free. E_ARG: no message at all; the last one is an
 * assistant's and is neither continued nor left without a generation prompt; continue_final and it is not an
 * assistant's; a part that is still PART_FILE. */
status chat_render(const struct chat *c, const struct chat_render_options *options, struct chat_prompt *out,
                   struct err *e);
void chat_prompt_free(struct chat_prompt *p);

/* Do the tokenizer's added tokens carry the ids of the config? E_MODEL names the first that does not. */
status chat_check_tokens(const struct tokenizer *t, const struct model_ids *ids, struct err *e);

/* Decode n characters of base64 (standard or URL alphabet, white space skipped, padding optional); *out
 * owns n_out bytes. E_ARG: a character that is none, a broken length, or more than max bytes. */
status chat_base64(const char *text, size_t n, size_t max, uint8_t **out, size_t *n_out, struct err *e);

/* The bytes of "data:TYPE;base64,DATA" of n characters, as chat_base64; *type (may be NULL) is owned: "image/png", or
 * NULL where none is written. E_ARG: no data: URL, no base64 in it, no comma, or as chat_base64. */
status chat_data_url(const char *url, size_t n, size_t max, char **type, uint8_t **out, size_t *n_out, struct err *e);

#endif
