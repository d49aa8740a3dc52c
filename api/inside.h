/* api/inside.h - what the files of api/ that answer chat and completions share; no other folder includes it, tests apart.
 *
 *   body -> fields (names, types, ranges) -> struct api_job -> service requests -> events -> chunks or one reply
 *
 * A job is one call of an endpoint. It has groups, one for each prompt (a chat has one), and every group n choices that
 * share its prefill. Choice c of group g is choices[g * n + c] of the reply. */
#ifndef API_INSIDE_H
#define API_INSIDE_H

#include <pthread.h>

#include "api/api.h"

#define API_PROMPTS_MAX 64
#define API_STOPS_MAX 16
#define API_STOP_BYTES_MAX 256
#define API_STOP_IDS_MAX 64
#define API_BIAS_MAX 1024
#define API_TOP_MAX 20
#define API_LOGGED_MAX 256
#define API_VIEWS 1024             /* requests that api_job_phase looks at */

struct api {
    const struct api_calls *calls;
    struct service *service;
    struct api_options o;          /* names, policy and calls are elsewhere */
    char **name;                   /* [n_name] owned; the first is echoed */
    size_t n_name;
    const struct tokenizer *tok;
    uint32_t vocab, n_layers, max_model_len;
    int32_t media_id[3];           /* placeholders of sound, picture and film */
    double seconds_per_chunk;
    struct sample_params sample;   /* defaults of the model */
    struct policy_params policy;   /* default policy */
    const struct model_defaults *defaults; /* of the model, under it */
    int64_t created;
    char weights[9];               /* digest of the weights, its first digits */
    char fingerprint[96];

    pthread_mutex_t lock;          /* of what follows, and of every job's group[].id and n_submitted */
    struct api_job *live;          /* started and not over */
    uint64_t last_id;
    struct { char name[64]; double at_s; } logged[API_LOGGED_MAX];     /* unknown fields, and when they were last told */
    uint32_t n_logged;
};

/* Bytes that grow; free(text). */
struct api_text {
    char *text;                    /* n bytes and a NUL; NULL while empty */
    size_t n, cap;
};

struct api_choice {
    struct api_text text;          /* all of it where the reply comes at once */
    unsigned char held[4];         /* bytes of a character that is not whole yet */
    uint32_t n_held;
    json_t *logprobs;              /* array of the tokens that were not sent yet; where asked for */
    json_t *token_ids;             /* the same */
    size_t n_chars;                /* characters of text so far, for text_offset */
    enum eng_finish finish;
    bool started;                  /* its first chunk was sent */
};

struct api_group {
    struct api_job *job;
    uint32_t index;
    struct service_request rq;     /* until it is submitted */
    uint64_t id;                   /* of the service */
    struct api_text echo;          /* completions: the prompt's text, where wanted */
    json_t *prompt_ids;            /* return_token_ids */
    bool known;                    /* the counts below */
    uint32_t n_prompt, n_kind[4], n_cached, n_generated;
};

/* What the key `omnidrop` of a request says. */
struct api_omnidrop {
    struct policy_params policy;
    bool return_pruning;
    bool tokens;                   /* "detail": "tokens" or "reasons" */
    bool reasons;                  /* "detail": "reasons" */
};

struct api_job {
    struct api_owner owner;        /* must come first */
    struct api *api;
    bool is_chat;
    char id[96];                   /* "chatcmpl-..." */
    int64_t created;
    bool stream, include_usage, logprobs, echo, return_token_ids;
    uint32_t n;                    /* choices of each group */
    struct api_omnidrop omnidrop;
    struct eng_request_options o;
    struct chat_render_options render;     /* where a group.rq points at it */
    uint32_t top_logprobs;
    int priority;
    double arrived_s;
    bool batch;
    char request_id[72];
    const char *body;              /* borrowed: what another group's leader would parse */
    size_t n_body;
    bool counted;                  /* groups_left is due when it is over */

    /* What o points at. */
    char *stop[API_STOPS_MAX];
    int32_t stop_id[API_STOP_IDS_MAX];
    struct sample_bias *bias;

    uint32_t n_groups;
    struct api_group *group;       /* [n_groups] */
    struct api_choice *choice;     /* [n_groups * n] */

    /* While it runs. */
    struct api_sink sink;
    pthread_mutex_t lock;          /* of all below but the atomic ones */
    bool admitted;
    uint32_t n_pending;            /* groups that are not over */
    uint32_t n_finished;           /* choices */
    json_t *held_finish;           /* the last finishing chunk, which waits for the statistics */
    json_t *statistics;
    struct err error;              /* code OK: none */
    atomic_bool cancelled;
    atomic_uint ref;

    /* Of the api's list. */
    uint64_t number;
    uint32_t n_submitted;
    struct api_job *next;
};

/* api.c */
status api_job_new(struct api *a, const struct api_caller *c, bool is_chat, struct api_job **out);
status api_job_groups(struct api_job *j, uint32_t n_groups, struct err *e);
void api_log_unknown(struct api *a, const char *field);
/* Appends the bytes as valid UTF-8: what can be no character becomes U+FFFD; up to 3 bytes of one that is not whole wait
 * in held (NULL: nothing follows). Returns the characters appended. */
size_t api_text_add(struct api_text *t, unsigned char *held, uint32_t *n_held, const char *bytes, size_t n);
/* What is held comes out as U+FFFD. */
size_t api_text_end(struct api_text *t, uint32_t *n_held);
void api_text_put(struct api_text *t, const void *bytes, size_t n);        /* as they are */
void api_text_free(struct api_text *t);
json_t *api_text_json(const struct api_text *t);

/* run.c: a thread that waits for a job of other threads. What the job leaves is written before api_wait_over and read after
 * api_wait_for. */
struct api_wait { pthread_mutex_t lock; pthread_cond_t over; bool done; };
#define API_WAIT { .lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER }
void api_wait_over(struct api_wait *w);
/* Looks at *stop (may be NULL) every 50 ms and then cancels, once; a cancelled job still says that it is over. */
void api_wait_for(struct api_wait *w, const atomic_bool *stop, void (*cancel)(void *self, uint64_t id), void *self, uint64_t id);
void api_wait_end(struct api_wait *w);

/* reply.c; all return new references. */
json_t *reply_token(const struct api_job *j, const struct service_token *t, size_t text_offset);
json_t *reply_whole(struct api_job *j);
json_t *reply_start_chunk(struct api_job *j, uint32_t choice);
json_t *reply_text_chunk(struct api_job *j, uint32_t choice, const struct api_text *text);
json_t *reply_finish_chunk(struct api_job *j, uint32_t choice);
json_t *reply_usage_chunk(struct api_job *j);
json_t *reply_statistics(const struct api_job *j, const struct service_summary *s);

#endif
