/* engine/service.h - a running engine: many requests at once, given and watched from any thread.
 *
 *   service_open                 the engine thread and the threads that prepare requests
 *     service_submit             moves a chat (or ids) and its options in; returns at once
 *        prepare                 media resolved and extracted (or found in the cache), prompt built, plan counted
 *        wait                    for pages; first come first served, with a bound on overtaking
 *        encode, prefill, decode continuous batching: quanta of prefill between decode steps
 *     events                     TEXT..., CHOICE per choice, at last exactly one DONE: finished, cancelled or failed
 *     service_cancel             in any phase; its DONE comes with E_CANCELLED
 *   service_drain, service_close
 *
 * Events are called on the service's own threads, one at a time for one request, never after DONE. They must not block
 * and must not call service_close; service_submit and service_cancel are allowed. What an event points at lives until
 * the call returns. */
#ifndef ENGINE_SERVICE_H
#define ENGINE_SERVICE_H

#include <stdatomic.h>

#include "engine/engine.h"
#include "media/extract.h"

struct service;
struct service_summary;

/* How media parts become features where files may not simply be opened: see media/extract.h. resolve: a part's URL,
 * file id or bytes to a source (of `frame`: of the part's frame list, else -1). NULL in service_options: files are
 * opened in this process and only "data:", inline bytes and pcm: are known beside them. Called on preparing threads. */
struct service_loader {
    void *self;
    status (*resolve)(void *self, void *owner, const struct chat_part *part, int frame, const atomic_bool *stop,
                      struct media_source *out, struct err *e);
    struct extract_limits limits;
    uint32_t max_images, max_audios, max_videos;   /* of one request; 0: no limit. Tag too_many_media */
};

struct service_options {
    uint32_t max_running;          /* requests in decode, prefill and encode at once; 0: 32                       */
    uint32_t max_waiting;          /* prepared or to be prepared; 0: 256                                          */
    uint32_t default_max_tokens;   /* of an answer that names no length; 0: the room left in the context          */
    double itl_target_s;           /* time between two tokens of a running request; 0: 0.05                       */
    uint32_t group_rows;           /* rows that march together; 0: 8192                                           */
    uint32_t quantum_rows;         /* at most so many rows of a layer before decode has its turn; 0: by the target */
    uint32_t overtake_max;         /* later requests that may pass one that waits for pages; 0: 16                */
    bool priorities;               /* lower priority values first; may preempt                                    */
    uint64_t media_cache_bytes;    /* encoder outputs; 0: 1 GiB                                                   */
    uint64_t hidden_cache_bytes;   /* hidden states of early-layer prefixes; 0: 1 GiB                             */
    bool no_media_cache, no_prefix_cache;
    uint32_t n_workers;            /* preparing threads; 0: 2                                                     */
    /* Told of every request just before its DONE, on the same thread: the metrics. error as there. May be NULL. */
    void (*observe)(void *self, const struct service_summary *summary, const struct err *error);
    void (*observe_step)(void *self, uint32_t n_tokens);   /* rows of a step: a quantum's or a decode step's. May be NULL */
    void *observe_self;
    const struct service_loader *loader;   /* NULL: this process opens files; borrowed                            */
};

/* en is borrowed and used by the service alone until service_close. */
status service_open(struct engine *en, const struct service_options *o, struct service **out, struct err *e);

/* No new requests from now on (E_BUSY, tag draining); those that are there go on. */
void service_drain(struct service *s);
/* Cancels what is left, waits for the last DONE, frees. */
void service_close(struct service **s);

/* ---- requests --------------------------------------------------------------------------------------------- */

enum service_event_kind {
    SERVICE_ADMITTED,              /* it has its pages: prompt and plan are known                                 */
    SERVICE_PROGRESS,              /* part of encode and prefill that is done, 0..1; a few times a second at most */
    SERVICE_TEXT,                  /* final text of a choice: whole characters, maybe none, with its tokens       */
    SERVICE_CHOICE,                /* a choice ended: result->finish is ENG_STOP, ENG_LENGTH                      */
    SERVICE_DONE                   /* all is over; `error` is NULL where every choice finished                    */
};

/* One generated token. */
struct service_token {
    int32_t id;
    float logprob;                 /* log softmax of the raw logits */
    const struct sample_top *top;  /* [n_top] the likeliest, best first; where top_logprobs asked for them */
    uint32_t n_top;
};

struct service_event {
    enum service_event_kind kind;
    uint64_t id;                   /* of the request */
    uint32_t choice;               /* TEXT, CHOICE */
    const char *text;              /* TEXT: n_text bytes */
    size_t n_text;
    const struct service_token *token;     /* TEXT: [n_token] tokens that ended since the last TEXT of this choice */
    uint32_t n_token;
    double progress;
    const struct eng_result *result;       /* CHOICE: of this choice */
    const struct service_summary *summary; /* ADMITTED (counts), DONE */
    const struct err *error;               /* DONE */
};

/* What is known of a request as a whole. */
struct service_summary {
    uint32_t n_choices;
    const struct eng_result *const *choice;    /* [n_choices] */
    const struct prompt *prompt;               /* NULL where it never came to one */
    const struct policy_plan *plan;
    const struct policy_params *policy;        /* as resolved */
    uint32_t n_prompt, n_kind[4];              /* tokens of the prompt: all, by kind, before pruning */
    uint32_t n_cached;                         /* prompt tokens whose every layer was reused */
    uint32_t cached_layers, n_cached_early;    /* early layers that were reused, and for how many tokens */
    uint64_t kv_bytes, kv_bytes_unpruned;      /* pages of the prompt after prefill; as they would be with none */
    uint32_t n_preempted;
    uint32_t max_tokens;                       /* of an answer, as asked or by default */
    double prepare_s, queue_s, encode_s, prefill_s, decode_s, total_s;     /* queue: prepared until admitted */
    double first_token_s;                      /* since submit; 0: none came */
    double media_seconds;                      /* of sound and film decoded or found in the cache */
    bool media_cached;                         /* no part was decoded or encoded */
    const char *warnings;
};

struct service_request {
    struct chat chat;              /* moved, unless ids */
    const struct chat_render_options *render;  /* NULL: none; copied */
    int32_t *ids;                  /* moved; a raw prompt of n_ids tokens */
    uint32_t n_ids;
    const struct eng_given *given; /* features or embeddings in place of files, as eng_request_create_given; lives until DONE */
    struct eng_request_options o;  /* strings, pcm and policy that it points at must live until DONE: see owner */
    uint32_t n_choices;            /* 0: 1. One prefill, n decodes; seeds seed, seed + 1, ... */
    uint32_t top_logprobs;         /* 0..20 */
    int priority;                  /* lower is sooner; 0 */
    bool continues;                /* part of work that began earlier: taken during a drain too */
    double queue_timeout_s;        /* 0: none. E_TIMEOUT, tag queue_timeout */
    double deadline_s;             /* since submit; 0: none. E_TIMEOUT, tag deadline_exceeded */
    double arrived_s;              /* clock_s() when all of it had come; 0: at submit. first_token_s and total_s count from it */
    char salt[MEDIA_DIGEST_TEXT];  /* caches are shared between equal salts only */
    void (*event)(void *self, const struct service_event *ev);     /* o.on_text is not used */
    void *self;
    void *owner;                   /* freed by owner_free after DONE; may be NULL. resolve() gets it too */
    void (*owner_free)(void *owner);
};

/* *rq is moved from on OK; on failure it stays the caller's (and no event comes). *id is never used again.
 * E_BUSY: tags queue_full, draining. E_ARG: options. */
status service_submit(struct service *s, struct service_request *rq, uint64_t *id, struct err *e);
/* Of a request that is over: nothing happens. */
void service_cancel(struct service *s, uint64_t id);
void service_cancel_all(struct service *s);

/* Render, resolve and probe media, count: what a prompt would be, without running it. On the caller's thread.
 * n_kind [4] by enum token_kind. tokens may be NULL. rq is not moved from. */
status service_count(struct service *s, struct service_request *rq, struct token_list *tokens, uint32_t n_kind[4],
                     struct err *e);

/* ---- watching --------------------------------------------------------------------------------------------- */

struct service_gauges {
    uint32_t n_preparing, n_waiting, n_encoding, n_prefilling, n_decoding;
    uint32_t pages_total, pages_free, pages_reserved, pages_cached;
    uint64_t media_cache_bytes, hidden_cache_bytes;
    /* Counters since the start. */
    uint64_t n_admitted, n_admitted_by_freed;  /* of them: with pages that pruning of a running request gave back */
    uint64_t n_preemptions, n_overtakes;
    uint64_t pages_freed_by_pruning;
    uint64_t prompt_tokens, generated_tokens;
    uint64_t media_cache_queries, media_cache_hits, prefix_cache_queries, prefix_cache_hits;
    uint64_t n_quanta, n_decode_steps;
    double decode_step_s, quantum_s;           /* what the cost model expects of the next ones */
    double service_s;                          /* from admission to the end, a running mean; 0: none ended yet */
    double beat_s;                             /* seconds since the engine thread last showed a sign of life */
    bool draining, device_failed;
};
void service_read(struct service *s, struct service_gauges *out);
const struct engine *service_engine(const struct service *s);

/* A line for each request that is there, for the page at /. `done` is 0..1 of its prefill. */
struct service_view {
    uint64_t id;
    char phase[12];                /* prepare, wait, encode, prefill, decode */
    char policy[24];
    uint32_t n_prompt, n_generated, n_pages, layer;
    double age_s, done;
};
uint32_t service_list(struct service *s, struct service_view *out, uint32_t cap);

#endif
