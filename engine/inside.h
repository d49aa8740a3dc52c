/* engine/inside.h - what the files of engine/ share; no other folder includes it, tests and measurements apart. */
#ifndef ENGINE_INSIDE_H
#define ENGINE_INSIDE_H

#include <signal.h>

#include "engine/engine.h"
#include "kvcache/block_table.h"
#include "kvcache/pool.h"
#include "media/media.h"
#include "model/checkpoint.h"
#include "model/decoder.h"
#include "model/towers.h"

struct engine {
    struct engine_info info;
    bool textbook_order;
    struct stream *st;
    const struct ops *ops;
    struct model_config config;
    struct tokenizer *tok;
    struct decoder *dec;
    struct audio_tower *audio;
    struct vision_tower *vision;
    struct kv_pool *pool;
    struct kv_shape kv;
    uint8_t *allowed;              /* [V] ids that the tokenizer defines */
    uint64_t film_at_once;         /* a film of more bytes of patches is streamed into the tower */
    volatile sig_atomic_t interrupted;
    struct run_buffers *run;       /* run.c's own */
};

/* One media part of the messages. */
struct req_part {
    const struct chat_part *chat;  /* borrowed; NULL where given */
    struct prompt_media media;
    struct media *file;            /* owned */
    struct media_video *video;     /* owned; a film's reader, until the tower has eaten it */
    float *mel;                    /* owned unless `given` */
    uint32_t n_frames;
    float *patches;                /* owned unless `given`; pictures, and films only where asked for */
    bool given;
    struct media_video_plan plan;  /* films that were opened; else total_frames is 0 */
};

struct eng_request {
    struct eng_request_options o;
    struct chat_prompt rendered;
    struct token_list tokens;
    struct req_part *part;
    uint32_t n_parts;
    char *warnings;                /* of media that are closed by now, a line each; or NULL */
    struct prompt prompt;
    struct policy_plan plan;
    struct policy_params policy;
    const float *given_audio, *given_vision, *given_saliency;

    /* Towers' outputs: device memory, freed after prefill. */
    float *audio_embeds, *vision_embeds;
    float *audio_saliency, *vision_saliency;   /* host; where the plan needs them */

    /* Pages. */
    struct kv_reservation reservation;
    struct block_table *table;     /* [L] */
    uint32_t n_text, n_new_max;

    /* Decode. */
    struct sampler *sampler;
    struct detokenizer detok;
    int32_t next_id, next_pos;
    char *text;                    /* generated so far; the first n_sent bytes were handed out */
    size_t n_text_bytes, text_cap, n_sent;
    int32_t *ids;
    size_t n_ids, ids_cap;
    double started, *token_s;      /* clock at the start of eng_run; result.token_s */
    size_t token_cap;

    /* Results. */
    struct eng_result result;
    uint32_t (*alive)[4];          /* [L + 1] */
    uint32_t *pages;               /* [L] */
    uint32_t **survivors;          /* [L + 1], each owned */
};

/* engine.c: an engine around a decoder that is in no file (measurements). The tokenizer and the special ids are those of
 * o->model_dir (NULL: the bundled model), sizes and weights those of shape and src, computed as `compute`. There are
 * no towers: requests bring their embeddings (struct eng_given). */
status engine_open_source(const struct engine_options *o, const struct decoder_shape *shape,
                          const struct decoder_source *src, enum dtype compute, struct engine **out, struct err *e);

/* Readers and features of all parts, which the towers have eaten or nobody wants any more. */
void request_free_media(struct eng_request *r);

/* run.c */
void run_buffers_free(struct engine *en);
/* Every page and promise back; buffers of the run freed. Called once for each request, whatever its end. */
void request_give_back(struct engine *en, struct eng_request *r);

#endif
