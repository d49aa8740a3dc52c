/* model/prompt.h - one request as the decoder sees it: tokens with kind, chunk, item and position. Plain data that
 * prune/ and the scheduler may include. Built once by prompt_build, fixed afterwards, never renumbered: an index
 * into these arrays is what "prompt index" means everywhere.
 * Sources: qwen2_5_omni behaviour of transformers 5.23 (placeholder expansion, TMRoPE with audio in video), chunk ids
 * and query rows as in docs/omnidrop.md. */
#ifndef MODEL_PROMPT_H
#define MODEL_PROMPT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum token_kind { TOKEN_TEXT = 0, TOKEN_AUDIO = 1, TOKEN_VIDEO = 2, TOKEN_IMAGE = 3 };

/* What one media part of the messages brings: counts known before any tower runs. In order of the prompt. */
struct prompt_media {
    enum token_kind kind;          /* TOKEN_AUDIO, TOKEN_IMAGE, TOKEN_VIDEO                                      */
    uint32_t n_audio;              /* audio tokens: of an audio, or of a video's own sound (else 0)              */
    bool has_audio;                /* a video with its sound interleaved (use_audio_in_video)                    */
    uint32_t t, h, w;              /* patch grid of images and videos; h and w count patches, t grid steps       */
    double second_per_grid;        /* of videos: 2 / fps handed to the processor                                 */
};

/* One item after building. The tokens of one item are not contiguous where audio is interleaved. */
struct prompt_item {
    struct prompt_media media;
    uint32_t first_token, last_token;  /* prompt indices of its first and last AV token (first > last: it has none) */
    uint32_t audio_row;            /* its first row among all audio embeddings of the prompt                     */
    uint32_t vision_row;           /* its first row among all vision embeddings (images and videos mixed)        */
    uint32_t n_vision;             /* t * (h/2) * (w/2)                                                          */
    int32_t first_chunk, last_chunk;
};

struct prompt {
    uint32_t n;
    int32_t *id;                   /* [n] token ids, placeholders expanded                                       */
    int32_t *pos[3];               /* [n] each: t, h, w                                                          */
    uint8_t *kind;                 /* [n] enum token_kind                                                        */
    int32_t *chunk;                /* [n] -1 for text                                                            */
    uint16_t *item;                /* [n] index into items; UINT16_MAX for text                                  */
    uint32_t *step;                /* [n] grid step inside the item; 0 for audio, images and text                */
    uint16_t *y, *x;               /* [n] merged-grid coordinates of vision tokens, else 0                       */
    uint32_t *row;                 /* [n] row of its embedding: audio rows and vision rows count apart           */
    uint32_t n_audio, n_vision;    /* AV tokens by tower                                                         */
    uint32_t n_av;                 /* n_audio + n_vision                                                         */
    uint32_t *av;                  /* [n_av] prompt indices of AV tokens, ascending                              */
    int32_t max_chunk;             /* largest chunk id, 0 without AV tokens                                      */
    uint32_t n_query;
    uint32_t *query;               /* [n_query] prompt indices of the query rows, ascending                      */
    uint32_t after;                /* the rows [after, n) follow the last AV token: all, or the last n_query_max */
    uint32_t n_user_text;
    uint32_t *user_text;           /* [n_user_text] tokens that are the user's own text of the last user turn    */
    uint32_t n_items;
    struct prompt_item *items;
    int32_t next_pos;              /* position (all three) of the first generated token                          */
};

/* Whose attention says which AV tokens matter (docs/omnidrop.md 4): the user's text, every row after the last AV token, the
 * last row. */
enum query_rows { QUERY_TEXT, QUERY_AFTER, QUERY_LAST };

struct prompt_token { int32_t id; bool is_user_text; };  /* a tokenizer's output before expansion */

struct prompt_rules {              /* from the checkpoint's config */
    int32_t audio_id, image_id, video_id, audio_bos, audio_eos, vision_bos, vision_eos;
    double position_id_per_seconds;    /* 25 */
    double seconds_per_chunk;          /* 2 */
    bool audio_in_video;           /* every video must then have a sound track                                   */
    uint32_t n_query_max;          /* 256 */
};

/* Expand placeholders, lay out positions, chunks and query rows. tokens[] holds one placeholder id per media part in
 * order of media[]. *out owns its arrays: prompt_free.
 * E_ARG: the number or kind of placeholders does not match media[]; a video without sound beside one with sound. */
status prompt_build(const struct prompt_rules *rules, const struct prompt_token *tokens, uint32_t n_tokens,
                    const struct prompt_media *media, uint32_t n_media, struct prompt *out, struct err *e);

/* From given arrays instead (reference cases that start at ids): copies id, pos, kind, chunk, query; items are
 * derived from runs of AV tokens; an empty query becomes the tokens after the last AV token; user_text is empty.
 * E_ARG where lengths or ranges are wrong. */
status prompt_from_arrays(const struct prompt_rules *rules, uint32_t n, const int64_t *id, const int64_t *pos /*[3,n]*/,
                          const int64_t *kind, const int64_t *chunk, const int64_t *query, uint32_t n_query,
                          struct prompt *out, struct err *e);

/* Prompt indices of those rows, ascending: row [their number] gets them, NULL only counts. Returns their number: 0 where
 * nothing follows the media. */
uint32_t prompt_query(const struct prompt *p, enum query_rows which, uint32_t *row);

void prompt_free(struct prompt *p);

#endif
