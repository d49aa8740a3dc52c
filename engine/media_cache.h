/* engine/media_cache.h - encoder outputs by what they were made of, so that a second question about a file decodes and
 * encodes nothing; and features on their way to the towers, so that two questions that arrive together decode it once.
 *
 *   find        preparing threads: the entry of a key, made if there is none
 *     EMPTY       this caller is the one to extract: media_entry_set_features or _give_up; others wait for it
 *     FEATURES    counts are known and the features are there
 *     EMBEDDED    the engine thread has encoded: rows of both towers
 *   release     the caller's hold; entries that nobody holds go by least use when bytes are short
 *
 * Any thread, but for set_embeds, copy and destroy, which touch device memory: the engine's. */
#ifndef ENGINE_MEDIA_CACHE_H
#define ENGINE_MEDIA_CACHE_H

#include <stdatomic.h>

#include "kernels/ops.h"
#include "media/extract.h"
#include "model/prompt.h"

struct media_cache;

enum media_entry_state { MEDIA_EMPTY, MEDIA_FEATURES, MEDIA_EMBEDDED };

/* What the towers made of one part; NULL: not there, or not wanted. */
struct media_rows {
    float *audio, *vision;         /* device: [n_audio, d], [n_vision, d]                              */
    float *audio_saliency, *vision_saliency;   /* host */
    uint32_t n_blocks, d_key;
    float *blocks;                 /* host: [n_blocks] rows of n_vision, a stride apart                */
    size_t stride;
    float *keys;                   /* device: [n_vision, d_key]                                        */
    bool on_host;                  /* what stands at `device` is on the host: media_cache_yield        */
};

struct media_entry {
    char key[160];
    enum media_entry_state state;
    bool filling;                  /* somebody extracts right now */
    uint32_t holds;
    /* From FEATURES on. */
    struct prompt_media media;     /* counts */
    struct media_video_plan plan;
    struct media_info info;
    double seconds;                /* of sound or film */
    double extract_s;
    char *warning;
    struct extract features;       /* FEATURES; freed when EMBEDDED */
    /* EMBEDDED */
    struct media_rows rows;        /* owned; stride: n_vision */
    uint64_t bytes, used;
    struct media_entry *next;
};

/* The stream is borrowed. bytes_max bounds the embeddings of entries that nobody holds. */
status media_cache_create(struct stream *st, uint32_t d, uint64_t bytes_max, struct media_cache **out, struct err *e);
void media_cache_destroy(struct media_cache **c);      /* nothing may be held */

/* The entry, held. If its state is EMPTY the caller fills it. Waits while another fills it. E_CANCELLED: *stop. */
status media_cache_find(struct media_cache *c, const char *key, const atomic_bool *stop, struct media_entry **out,
                        struct err *e);
/* x is moved from. */
void media_entry_set_features(struct media_cache *c, struct media_entry *m, struct extract *x);
void media_entry_give_up(struct media_cache *c, struct media_entry *m);        /* and releases */
void media_entry_release(struct media_cache *c, struct media_entry *m);
enum media_entry_state media_entry_state(struct media_cache *c, const struct media_entry *m);

/* Engine thread: keep copies of these rows. E_NOMEM: it stays as it was. */
status media_entry_set_embeds(struct media_cache *c, struct media_entry *m, uint32_t n_vision, const struct media_rows *rows,
                              struct err *e);
/* Engine thread: the rows to where a request wants them. What it wants beside embeddings and saliencies is there if its key
 * says so (engine/request.c). */
status media_entry_copy(struct media_cache *c, const struct media_entry *m, uint32_t n_vision, const struct media_rows *to,
                        struct err *e);

/* Device memory of the entry that was used longest ago, of those that have some: dropped where nobody holds it, else brought to the
 * host. false: none has. Engine thread. */
bool media_cache_yield(struct media_cache *c);

/* Drop every entry that nobody holds. Engine thread. */
void media_cache_clear(struct media_cache *c);

struct media_cache_counts { uint64_t bytes, queries, hits; uint32_t n_entries; };
struct media_cache_counts media_cache_read(struct media_cache *c);

#endif
