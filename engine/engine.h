/* engine/engine.h - one model on one device, and requests run through it from media to text.
 *
 *   engine_open                 checkpoint -> packed weights, page pool
 *     eng_request_create        messages -> media counts, prompt, plan, pages: everything that can say no
 *     eng_run                   towers, prefill of all (layer-major, score first, pruning), decode of all
 *     eng_request_result        text, why it ended, what was pruned, how long each stage took
 *     eng_request_destroy       its pages went home before; this frees the rest
 *   engine_close
 *
 * Requests that run together give the bits that each gives alone. One thread at a time per engine.
 * Each request ends in exactly one way: finished (stop, length), cancelled, or failed with its own error. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include "engine/defaults.h"
#include "engine/sample.h"
#include "media/features.h"
#include "model/chat.h"
#include "model/config.h"
#include "model/prompt.h"
#include "model/tokenizer.h"
#include "prune/policy.h"

#define ENGINE_BUNDLED_MODEL "models/omni-tiny"

struct engine;
struct comm;                       /* comm/comm.h */

struct engine_options {
    const char *model_dir;         /* NULL: the bundled model, looked for beside the program and in the cwd      */
    const char *device;            /* "auto", "cpu", "cuda"; NULL: auto                                          */
    const char *isa;               /* NULL: the best                                                             */
    int n_threads;                 /* 0: one per CPU of this process's (base/threads.h)                          */
    const char *dtype;             /* "auto": f32 checkpoints in f32; bf16 ones in bf16, but in f32 where the whole
                                      model is under 128 MiB, as exactness costs nothing there; "f32", "bf16"    */
    uint32_t max_model_len;        /* prompt + answer, tokens; 0: min(config, 32768)                             */
    uint64_t kv_bytes;             /* of the page pool (on each rank); 0: engine_pool_pages, for kv_contexts of max_model_len */
    uint64_t work_bytes;           /* of a GPU (on each rank), beside weights and pages, for all that requests allocate until they are
                                      prefilled, and for caches; 0: four contexts of embeddings, or less where pages need it    */
    uint32_t kv_contexts;          /* 0: 1 */
    struct comm *comm;             /* the ranks of this engine: its rank 0 opens it, the others call engine_work. One rank: it
                                      is alone, and shares its host as comm_peer.n_local says. Borrowed for the engine's
                                      life. NULL: alone on its host                                               */
    bool one_rank_too;             /* a comm of one rank is used all the same, where it has NCCL: to try that on one GPU      */
    bool check_ranks;              /* compare over ranks what must be equal, after every layer: slow. Also by the
                                      environment's OMNIDROP_CHECK_RANKS=1                                        */
    bool textbook_order;           /* whole layers first, then the drop: same results, for tests                 */
};

/* E_MODEL: as checkpoint_open, or the device cannot be had. E_NOMEM. *out owns everything. */
status engine_open(const struct engine_options *o, struct engine **out, struct err *e);
void engine_close(struct engine **en);

/* What a rank other than 0 of c runs: it waits for the leader's engine_open, opens its part of the same model and serves until
 * the leader closes (OK). o: what is this rank's own: device, isa, n_threads; the rest is the leader's. Call it again for
 * another engine. E_DEVICE: a rank is gone. Otherwise the opening failed, here or elsewhere (the text names the rank); the
 * leader's engine_open fails with the same. */
status engine_work(struct comm *c, const struct engine_options *o, struct err *e);

/* The plan of a GPU's memory, bytes; what is asked for after start-up comes out of `work`. All 0 on the CPU. */
struct engine_memory {
    uint64_t total;
    uint64_t before;               /* not free before the model came: the driver's, other programs', the backend's own */
    uint64_t loaded;               /* weights of decoder and towers, and what these two work in                  */
    uint64_t rows;                 /* of groups that march, of decode steps                                      */
    uint64_t ops;                  /* lists and room of ops                                                      */
    uint64_t work, pages;
    uint64_t left;                 /* nobody's                                                                   */
};

struct engine_info {
    char model_dir[1024];
    char model_name[256];          /* last part of the folder's name  */
    bool bundled;                  /* nobody named it                 */
    char device[512];              /* "cpu: avx512-bf16, 2 threads"; of a GPU also the plan of its memory */
    char link[512];                /* how tensors of devices get from rank to rank: model/link.h */
    enum dtype compute, kv_dtype;
    uint32_t max_model_len;
    uint32_t page_tokens, n_pages;
    size_t page_bytes, weight_bytes;   /* of rank 0 */
    struct engine_memory memory;       /* of rank 0 */
    double load_s;
    uint32_t n_ranks;
    uint32_t n_local;              /* ranks of this host, of whatever group: they share its memory and CPUs */
};
/* Pages of a pool that nobody gave a size: room for `contexts` of context_pages each in at most a quarter of this rank's share
 * of the host's memory (bytes), or for one of them in at most half of that share. */
uint64_t engine_pool_pages(uint64_t memory, uint32_t n_local, uint64_t page_bytes, uint64_t context_pages, uint32_t contexts);
/* What each of n_ranks ranks holds. */
struct engine_rank {
    uint64_t weight_bytes, page_bytes; /* decoder weights, one page */
    uint64_t pages_fit;                /* of which n_pages is the least */
    uint64_t work_fit;                 /* likewise of work memory, where it is planned */
    uint64_t resident_bytes;           /* of the process after loading, as the system counts it */
};
const struct engine_rank *engine_rank(const struct engine *en, uint32_t rank);
const struct engine_info *engine_info(const struct engine *en);
const struct model_config *engine_config(const struct engine *en);
const struct tokenizer *engine_tokenizer(const struct engine *en);
const struct model_defaults *engine_defaults(const struct engine *en);     /* of omnidrop.ini in the model's folder */
uint32_t engine_pages_free(const struct engine *en);

/* Pages that admission reserves for a request with the media of s, n_text tokens of text and an answer of at most n_new,
 * under policy p; the pool holds engine_info()->n_pages / *out of them at once. E_ARG: the policy has no plan for it, or needs
 * what this engine lacks. */
status engine_pages_of(const struct engine *en, const struct policy_params *p, const struct prune_shape *s, uint32_t n_text,
                       uint32_t n_new, uint64_t *out, struct err *e);

/* The bundled model's folder: beside the program (build/omnidrop -> models/), under its prefix, or in the cwd.
 * E_MODEL: none of these. */
status engine_bundled_model(char *dir, size_t cap, struct err *e);

/* How a checkpoint wants its pictures and films: its own limits where it has some, the caller's (not 0) before them. */
struct media_image_options engine_image_options(const struct model_config *c, uint64_t min_pixels, uint64_t max_pixels);
struct media_video_options engine_video_options(const struct model_config *c, uint64_t min_pixels, uint64_t max_pixels,
                                                double fps);

/* Samples handed over in place of a file: an audio part with the URL "pcm:I" means pcm[I]. */
struct eng_pcm { const float *samples; size_t n; };   /* 16 kHz mono, borrowed until eng_run returns */

/* Watching a run from inside (reference cases, the explain view). Any may be NULL. Rows are host memory, borrowed. */
struct eng_trace {
    void *self;
    /* Input of layer l (l == L: the rows after the last layer): n rows [n, d], prompt index of each. */
    void (*hidden)(void *self, uint32_t l, const float *rows, const uint32_t *index, uint32_t n, uint32_t d);
    /* AV tokens alive entering layer l: prompt indices, ascending; and where tokens drop, their scores. */
    void (*alive)(void *self, uint32_t l, const uint32_t *index, uint32_t n, const float *score /* or NULL */);
    void (*logits)(void *self, const float *logits, uint32_t V);            /* of the last prompt position */
    void (*towers)(void *self, const float *audio, uint32_t n_audio, const float *vision, uint32_t n_vision, uint32_t d,
                   const float *audio_saliency);
};

struct eng_request_options {
    const char *media_root;        /* relative URLs ("file:media/x.mp4", "x.mp4") start here; NULL: the cwd      */
    const struct eng_pcm *pcm;
    uint32_t n_pcm;
    bool audio_in_video;           /* all videos, each must have sound; with `auto_audio` only if each has       */
    bool auto_audio;
    double fps;                    /* 0: 2.0                                                                     */
    uint64_t min_pixels, max_pixels;   /* 0: the checkpoint's, else the published ones                           */
    const struct policy_params *policy;    /* NULL: none                                                         */
    bool want_why;                 /* keep why each token went: eng_result.why                                   */
    uint32_t max_tokens;           /* of the answer; 0: as many as fit                                           */
    struct sample_params sample;
    const char *const *stop;       /* stop strings, not part of the text                                         */
    uint32_t n_stop;
    const int32_t *stop_id;        /* [n_stop_id] ids that end the answer beside the model's own; borrowed, also with
                                      ignore_eos. What sample.stop_id holds is the engine's to fill                */
    uint32_t n_stop_id;
    bool keep_stop_text;           /* the stop string that ended the answer stays part of the text               */
    bool show_special_tokens;      /* special tokens give text too ("<|im_end|>"); a stop id never does          */
    bool ignore_eos;               /* the model's own stop ids do not end the answer */
    /* Text as it becomes final: n bytes, whole characters. Return false to cancel. */
    bool (*on_text)(void *self, const char *text, size_t n);
    void *on_text_self;
    const struct eng_trace *trace;
};

/* Zeroed, greedy, policy none. */
struct eng_request_options eng_request_defaults(void);

struct eng_request;

/* Opens and measures the media, renders and tokenizes, plans the pruning, reserves the pages. The chat and what o points
 * at are borrowed until eng_run returns.
 * E_INPUT: media. E_ARG: options, or the prompt is longer than max_model_len (the text has the count and the largest fps
 * or duration that fits). E_FULL: the pool cannot hold it ever (pages needed and there). *out is owned. */
status eng_request_create(struct engine *en, const struct chat *chat, const struct eng_request_options *o,
                          struct eng_request **out, struct err *e);

/* A reference case that brings its own inputs. Fields that are NULL are worked out from the chat as above. */
struct eng_features {              /* one media part, in prompt order */
    const float *mel;              /* [128, n_frames] of an audio, or of a video's own sound; NULL               */
    uint32_t n_frames;
    const float *patches;          /* [t*h*w, 1176]; NULL: audio                                                 */
    uint32_t t, h, w;
};
struct eng_given {
    const struct eng_features *features;   /* [n_features]; the chat's files are not opened                      */
    uint32_t n_features;
    const struct prompt_token *tokens;     /* [n_tokens] of the rendered chat, before expansion; NULL: tokenized here */
    uint32_t n_tokens;
    struct prompt *prompt;         /* moved from: the decoder alone; then the embeddings too:                    */
    const float *audio_embeds, *vision_embeds;   /* [prompt->n_audio, d], [prompt->n_vision, d] host, borrowed   */
    const float *audio_saliency;   /* [prompt->n_audio] host, borrowed; NULL: policies that need it refuse       */
};
status eng_request_create_given(struct engine *en, const struct chat *chat, const struct eng_request_options *o,
                                const struct eng_given *given, struct eng_request **out, struct err *e);

const struct prompt *eng_request_prompt(const struct eng_request *r);
const struct policy_plan *eng_request_plan(const struct eng_request *r);
/* Features of media part i as the towers got or will get them, host; NULL where streamed or given. Loads them. */
status eng_request_features(struct engine *en, struct eng_request *r, uint32_t part, struct eng_features *out,
                            struct err *e);

/* Run all to their ends. Returns OK when every request has its result (also a failed one); another status only where
 * the device itself failed, and then too every request has its result. What fails in the media or in the policy of one
 * request ends that one; memory that is lacking ends the requests that march together. */
status eng_run(struct engine *en, struct eng_request **reqs, uint32_t n, struct err *e);

/* Ask a running eng_run to end after the current step; safe from a signal handler. All its requests: cancelled. */
void engine_interrupt(struct engine *en);

/* Why a token of the prompt went, and where: before the decoder, or by the choice made in a layer, in or after which it is gone. */
#define ENG_BEFORE_LAYERS (-1)
struct eng_why { int32_t layer; struct prune_why why; };

enum eng_finish { ENG_UNFINISHED, ENG_STOP, ENG_LENGTH, ENG_CANCELLED, ENG_FAILED };

struct eng_result {
    enum eng_finish finish;
    struct err error;              /* ENG_FAILED */
    const char *text;              /* UTF-8, NUL-terminated; n_text bytes */
    size_t n_text;
    const int32_t *ids;            /* [n_ids] generated, the stop id included if one ended it */
    uint32_t n_ids;
    const double *token_s;         /* [n_ids] seconds from the start of eng_run to each id */
    double logprob_sum;            /* over ids */
    uint32_t n_prompt;
    /* Pruning: alive[l][kind] AV tokens entering layer l; [L] also holds the count after the last. */
    uint32_t n_layers;
    const uint32_t (*alive)[4];    /* [L + 1][enum token_kind] (text: index 0) */
    const uint32_t *pages;         /* [L] pages of layer l after prefill */
    const struct eng_why *why;     /* [n_why] with want_why: of every dropped token, in order of layers, then of the prompt */
    uint32_t n_why;
    const uint32_t *const *survivors;   /* [L + 1] prompt indices of AV tokens, ascending; n = sum of alive[l][1..3] */
    uint32_t n_av[4];              /* before step 0, by kind */
    double mean_retention;         /* (1/L) sum n_l / n_orig */
    double media_s, tower_s, prefill_s, decode_s;      /* media_s: opened, decoded, made features and a prompt */
    double select_s;               /* of prefill_s: importance scores and selections of this request. A device that chooses by itself
                                      does so while the host goes on: its time is here where a trace has `alive` */
};
const struct eng_result *eng_request_result(const struct eng_request *r);
/* What is missing in the media that were used nevertheless ("clip.mp4: truncated: ..."), a line each; NULL: nothing.
 * Complete after eng_run. */
const char *eng_request_warnings(const struct eng_request *r);
void eng_request_destroy(struct engine *en, struct eng_request **r);

#endif
