/* engine/inside.h - what the files of engine/ share; no other folder includes it, tests and measurements apart.
 *
 *   engine.c       opening, alone or on several ranks
 *   request.c      messages -> features' counts, prompt, plan: any thread, no pages
 *   loop.c         requests -> scheduler -> steps -> ends; eng_run, and what the service's thread drives
 *   encode.c       the towers, a few batches at a time
 *   memory.c       a device's memory: the plan, and what each request has of it
 *   march.c        a group through the layers, a quantum at a time
 *   lists.c        its rows as lists of the device
 *   decode.c       one token of every running choice
 *   accept.c       a token to text: detokenizing, stops, ends */
#ifndef ENGINE_INSIDE_H
#define ENGINE_INSIDE_H

#include <signal.h>
#include <stdatomic.h>

#include "engine/engine.h"
#include "engine/lists.h"
#include "engine/media_cache.h"
#include "engine/selector.h"
#include "kvcache/block_table.h"
#include "kvcache/pool.h"
#include "kvcache/prefix.h"
#include "media/media.h"
#include "model/checkpoint.h"
#include "model/decoder.h"
#include "model/team.h"
#include "model/towers.h"
#include "scheduler/scheduler.h"

struct service_loader;

/* What of a policy's needs (enum prune_needs) this engine computes; a policy that needs more is refused before any work.
 * PRUNE_NEEDS_WEIGHTS besides, where the checkpoint has them: engine_serves. */
#define SERVED_NEEDS (PRUNE_NEEDS_AUDIO_SALIENCY | PRUNE_NEEDS_VISION_SALIENCY | PRUNE_NEEDS_EMBEDDINGS | \
                      PRUNE_NEEDS_ROW_SCORES | PRUNE_NEEDS_GO | PRUNE_NEEDS_BACK | PRUNE_NEEDS_TEXT_EMBEDDINGS | \
                      PRUNE_NEEDS_MERGES | PRUNE_NEEDS_PAGERANK | PRUNE_NEEDS_AUDIO_GLOBAL | PRUNE_NEEDS_VISION_BLOCKS | \
                      PRUNE_NEEDS_VISION_KEYS)

struct engine {
    struct engine_info info;
    bool textbook_order;
    struct stream *st;
    const struct ops *ops;
    struct model_config config;
    struct model_defaults defaults;
    struct selector selector;      /* the leader's */
    struct tokenizer *tok;
    struct decoder *dec;           /* this rank's */
    struct team *team;             /* around it: the decoder of all ranks */
    struct comm *comm;             /* NULL: alone */
    struct engine_rank *rank;      /* [info.n_ranks] */
    struct audio_tower *audio;
    struct vision_tower *vision;
    struct kv_pool *pool;
    struct kv_shape kv;
    uint8_t *allowed;              /* [V] ids that the tokenizer defines */
    uint8_t *allowed_there;        /* the same on a device that finds candidates itself; NULL: rows of logits come whole */
    uint64_t film_at_once;         /* a film of more bytes of patches is streamed into the tower */
    volatile sig_atomic_t interrupted;
    struct march *march[SCHED_GROUPS];     /* march.c's own */
    struct decode_buffers *decode;         /* decode.c's own */
    struct sched *sched;           /* of the loop that runs */
    struct {                       /* memory.c: where memory is planned (ops->reserve) */
        uint32_t rows, seqs, block;    /* of the longest group; sequences of a step; rows computed at once */
        uint64_t work;             /* bytes */
    } plan;
    void *common;                  /* memory.c: work memory that is no request's */
    uint64_t free_at_open;         /* bytes of the device before the weights */
    /* The service's; NULL without. */
    struct media_cache *media_cache;
    struct kv_prefix_cache *prefixes;
    uint64_t prefix_queries, prefix_hits;
};

/* One media part of the messages. */
struct req_part {
    const struct chat_part *chat;  /* borrowed; NULL where given */
    struct prompt_media media;
    struct media *file;            /* owned */
    struct media_video *video;     /* owned; a film's reader, until the tower has eaten it */
    float *mel;                    /* owned unless `given` or `entry` */
    uint32_t n_frames;
    float *patches;                /* owned unless `given` or `entry`; pictures, and films only where asked for */
    bool given;
    struct media_entry *entry;     /* held: features and embeddings are the cache's */
    bool was_cached;               /* its embeddings were there already */
    char identity[160];            /* what its content is, for prefixes; "": unknown, nothing is shared */
    double seconds;                /* of sound or film */
    struct media_video_plan plan;  /* films that were opened; else total_frames is 0 */
    uint32_t film_h, film_w;       /* of its frames as they are in the file */
};

/* One answer to a prompt. */
struct eng_choice {
    struct eng_request *r;
    uint32_t index;
    struct block_table *table;     /* [L] */
    struct sampler *sampler;
    struct detokenizer detok;
    uint32_t n_played;             /* ids that were fed back; n_ids - 1 but after a preemption, when they are fed anew */
    char *text;                    /* generated so far; the first n_sent bytes were handed out */
    size_t n_text_bytes, text_cap, n_sent;
    int32_t *ids;
    size_t n_ids, ids_cap;
    double *token_s;
    size_t token_cap;
    struct eng_result result;
};

/* Who is told, on the thread that runs the loop. Any function may be NULL. */
struct eng_watch {
    void *self;
    void (*admitted)(void *self);
    void (*progress)(void *self, double done);
    /* A token was taken: text that became final with it (may be empty). Return false to cancel. */
    bool (*token)(void *self, struct eng_choice *c, const char *text, size_t n, int32_t id, float logprob);
    void (*choice)(void *self, struct eng_choice *c);  /* it ended: stop or length */
    void (*ended)(void *self);     /* all of it, whatever the end; it may be destroyed from now on, not in here */
};

/* Memory of a request on its way, while it waits: of audio_embeds, vision_embeds, vision_keys, audio_look. */
enum { REQUEST_BLOCKS = 4, EMBEDS_MORE = 64 };     /* bytes behind embeddings, so that none is no block */
struct parked { void *host; size_t bytes; };

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
    char salt[MEDIA_DIGEST_TEXT];

    /* Towers' outputs: device memory, freed after prefill unless it may have to be done again. */
    float *audio_embeds, *vision_embeds;
    float *audio_saliency, *vision_saliency;   /* host; where the plan needs them: of audio the one that it asks for */
    float *vision_blocks, *vision_keys;        /* [blocks, n_vision] host, [n_vision, d_key] device; likewise */
    float *audio_look;             /* device: encode.c's own, of the sound that it is at */
    size_t look_floats;
    uint64_t lease_bytes;          /* memory.c: of work memory from admission to the end of prefill; 0: none is planned */
    void *lease;
    struct parked parked[REQUEST_BLOCKS];
    uint32_t enc_part, enc_step;   /* encode.c: how far it came */
    bool enc_sound, encoded, keep_embeds;

    struct sched_request sched;
    uint32_t *bound;               /* [L] */
    uint32_t n_text, n_new_max;
    struct eng_choice *choice;     /* [n_choices] */
    uint32_t n_choices, n_open;    /* n_open: choices that have not ended */
    bool over;
    struct eng_watch watch;
    void *group_member;            /* march.c: its place while it marches */
    uint32_t n_cached, cached_layers, n_cached_early;

    /* Results, of all choices. */
    double started;                /* clock at the start of eng_run, or at submit */
    uint32_t n_av[4];
    double mean_retention, media_s, tower_s, prefill_s, select_s, decode_s;
    uint32_t (*alive)[4];          /* [L + 1] */
    uint32_t *pages;               /* [L] */
    uint32_t **survivors;          /* [L + 1], each owned */
    struct eng_why *why;           /* [n_why] where wanted */
    size_t n_why, why_cap;
};

/* engine.c: an engine around a decoder that is in no file (measurements). The tokenizer and the special ids are those of
 * o->model_dir (NULL: the bundled model), sizes and weights those of shape and src, computed as `compute`. There are
 * no towers: requests bring their embeddings (struct eng_given). */
status engine_open_source(const struct engine_options *o, const struct decoder_shape *shape,
                          const struct decoder_source *src, enum dtype compute, struct engine **out, struct err *e);

/* Does this engine compute what the plan of p needs? E_ARG says what is lacking. */
status engine_serves(const struct engine *en, const struct policy_params *p, const struct policy_plan *plan, struct err *e);

/* ---- request.c -------------------------------------------------------------------------------------------- */

/* How a request comes to its media where files may not simply be opened. */
struct request_source {
    const struct service_loader *loader;   /* NULL: files are opened in this process */
    struct media_cache *cache;             /* with a loader */
    void *owner;                           /* resolve() gets it */
    const char *salt;
    const atomic_bool *stop;
};
struct request_extra {
    const struct request_source *source;   /* may be NULL */
    const struct chat_render_options *render;
    const int32_t *ids;                    /* a raw prompt instead of a chat */
    uint32_t n_ids, n_choices;
    uint32_t default_max_tokens;           /* of an answer that names no length; 0: the room that is left */
    bool count_only;                       /* the prompt alone: no plan, no samplers, any length */
};
/* eng_request_create with all of it. Any thread where source has a loader; touches no pages and no device. */
status request_create(struct engine *en, const struct chat *chat, const struct eng_request_options *o,
                      const struct eng_given *given, const struct request_extra *x, struct eng_request **out, struct err *e);
/* A line of eng_request_warnings. */
void request_warn(struct eng_request *r, const char *text);
/* Readers and features of all parts, which the towers have eaten or nobody wants any more. */
void request_free_media(struct engine *en, struct eng_request *r);
/* Pages, embeddings and media: what a request holds while it runs. Not its promise, which is the scheduler's. */
void request_give_back(struct engine *en, struct eng_request *r);
/* Pages alone: it will march again. */
void request_drop_pages(struct engine *en, struct eng_request *r);
/* Those of one choice; nothing where it has none. */
void choice_drop_pages(struct engine *en, struct eng_choice *c);
/* Floats of one row of patches. */
size_t request_patch_width(const struct engine *en);
bool choice_open(const struct eng_choice *c);

/* ---- memory.c --------------------------------------------------------------------------------------------- */

/* The plan's counts, by max_model_len; bytes of its parts. work: the least that a plan may have, and what it has where there is room. */
void memory_plan(struct engine *en);
uint32_t memory_group_rows(const struct engine *en, uint32_t group);
uint32_t memory_group_angles(const struct engine *en, uint32_t group);
struct lists_room memory_group_lists(const struct engine *en, uint32_t group);
uint64_t memory_rows_bytes(const struct engine *en);
uint64_t memory_work_least(const struct engine *en);
uint64_t memory_work_wanted(const struct engine *en);
struct reserve_args memory_args(const struct engine *en);      /* with plan.work */

/* Work memory that r allocates until it is prefilled, at most at once: its lease. Any thread. */
uint64_t memory_demand(const struct engine *en, const struct eng_request *r);
/* At admission: false where there is none now; caches have given way. Nothing to do where none is planned. */
bool memory_claim(struct engine *en, struct eng_request *r);
/* The lease goes, with all that is in it. */
void memory_return(struct engine *en, struct eng_request *r);
/* ... but what it holds is kept on the host until memory_enter. */
void memory_park(struct engine *en, struct eng_request *r);
/* Between these two what is allocated comes out of r's lease. Leave also after an error. */
status memory_enter(struct engine *en, struct eng_request *r, struct err *e);
void memory_leave(struct engine *en);
/* After the pages: what is allocated from now on is a group's own. */
status memory_open(struct engine *en, struct err *e);
/* Until memory_leave what is allocated is nobody's but a cache's: E_NOMEM is no error. */
void memory_outside(struct engine *en);
float **request_block(struct eng_request *r, size_t i);        /* i < REQUEST_BLOCKS */

/* Global audio saliency is quadratic in the clip and keeps its queries and keys: longer ones get the windowed one
 * (docs/pruning-methods.md 0.3). 20 minutes of 50 rows a second. */
#define AUDIO_GLOBAL_ROWS 60000

/* ---- encode.c --------------------------------------------------------------------------------------------- */

/* About max_work units of tower work for r; *done when its embeddings are complete. */
status encode_some(struct engine *en, struct eng_request *r, double max_work, double *work, bool *done, struct err *e);

/* ---- march.c ---------------------------------------------------------------------------------------------- */

struct march;
void march_free(struct engine *en, uint32_t group);
/* Its rows, where memory is planned. */
status march_prepare(struct engine *en, uint32_t group, struct err *e);
void march_free_hidden(void *engine, void *hidden);    /* for struct kv_prefix_options */
/* How one request ends alone: `self` is the loop. */
typedef void (*march_fail)(void *self, struct eng_request *r, const struct err *why);
/* The members of a new group, in order; reqs is borrowed for the call. A member that cannot begin fails alone. */
status march_begin(struct engine *en, uint32_t group, struct eng_request *const *reqs, uint32_t n, march_fail fail,
                   void *self, struct err *e);
/* About max_work units; *work what was done, *left what is still before the group, *done at its end: every member that
 * is left has its first token then. */
status march_some(struct engine *en, uint32_t group, double max_work, double *work, double *left, bool *done,
                  march_fail fail, void *self, struct err *e);
/* r leaves its group at once; its pages may go. */
void march_leave(struct engine *en, struct eng_request *r);
/* Its members that are still there; reqs [that many], may be NULL. Returns how many. */
uint32_t march_members(const struct engine *en, uint32_t group, struct eng_request **reqs);
/* Rows of the group's last quantum, for metrics. */
uint32_t march_rows(const struct engine *en, uint32_t group);
/* Work units of n rows of one layer, keys apart. */
double march_row_work(const struct engine *en, uint32_t n);
/* 0..1 of the group's layers; the layer that it is in. */
double march_progress(const struct engine *en, uint32_t group, uint32_t *layer);

/* ---- decode.c, accept.c ------------------------------------------------------------------------------------ */

#define LOGIT_ROWS 96              /* choices whose logits are held at once: 8 tiles of 12 */

void decode_free(struct engine *en);
status decode_prepare(struct engine *en, uint32_t rows, struct err *e);        /* likewise */
/* One token of each open choice of the n requests. */
status decode_step(struct engine *en, struct eng_request *const *reqs, uint32_t n, uint32_t *n_rows, march_fail fail, void *self,
                   struct err *e);
/* The first token of each of n requests, from row i of x. ready is called once, when logits are there and before any is used. */
typedef status (*march_ready)(struct engine *en, void *group, struct err *e);
status first_tokens(struct engine *en, struct eng_request *const *reqs, uint32_t n, const struct team_rows *x, march_ready ready,
                    void *group, march_fail fail, void *self, struct err *e);
/* Further choices of r begin where its first one stands: pages shared or copied. After prefill. */
status fork_choices(struct engine *en, struct eng_request *r, struct err *e);
/* Where a token comes from: a row of logits, or what the device found of it, by which the row can still be brought into `whole`. */
struct token_row { const float *logits; const struct top_row *top; uint32_t row; float *whole; };
/* row->logits, brought where they are not there yet. */
status token_logits(struct engine *en, struct token_row *row, struct err *e);
/* Sample, detokenize, hand out, decide. */
status accept_token(struct engine *en, struct eng_choice *c, struct token_row *row, struct err *e);
/* An open choice ends so. */
void choice_end(struct engine *en, struct eng_choice *c, enum eng_finish how, const struct err *why);

/* ---- loop.c ----------------------------------------------------------------------------------------------- */

struct loop;
struct loop_options {
    uint32_t max_running, max_waiting, group_rows, overtake_max;
    uint32_t quantum_rows;         /* 0: by the target alone */
    double itl_target_s, step_s;
    bool preempt;
    void (*on_step)(void *self, uint32_t n_rows);
    void *self;
};
status loop_create(struct engine *en, const struct loop_options *o, struct loop **out, struct err *e);
void loop_destroy(struct engine *en, struct loop **lp);    /* every request must be over */
/* E_FULL, E_BUSY: r is as it was. */
status loop_add(struct loop *lp, struct eng_request *r, struct err *e);
/* One step. *idle: there was nothing to do. E_DEVICE: every request has failed with it. */
status loop_step(struct loop *lp, bool *idle, struct err *e);
/* Ends r so, from any phase; nothing where it is over. */
void loop_end(struct loop *lp, struct eng_request *r, enum eng_finish how, const struct err *why);
struct sched *loop_sched(struct loop *lp);

#endif
