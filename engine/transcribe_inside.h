/* engine/transcribe_inside.h - one question about one piece of sound: what the files of transcription share; no other
 * folder includes it.
 *
 *   ask_init -> ask_start -> (service) -> ask_over -> ask_judge -> ask_start once more, or ask_free
 *
 * An ask stays where it is while it is under way: who answers writes to it. All functions are the run's own thread's. */
#ifndef ENGINE_TRANSCRIBE_INSIDE_H
#define ENGINE_TRANSCRIBE_INSIDE_H

#include <pthread.h>

#include "engine/transcribe.h"

#define TRANSCRIBE_PREVIOUS_BYTES 200

/* Whom is asked, and in which words. */
struct asker {                     /* asker_init, asker_fini */
    struct service *service;       /* for the tokenizer; it answers where nobody else is named */
    struct questioned by;
    const struct transcribe_options *o;
    char instruction[1024];
    char previous[TRANSCRIBE_PREVIOUS_BYTES + 1];
    pthread_mutex_t lock;          /* of what who answers writes: ask.over and what it covers */
    pthread_cond_t changed;
    uint64_t n_over, n_seen;       /* asks that ended; of them before the last asker_wait */
};

enum ask_state { ASK_IDLE, ASK_WANTED, ASK_UNDER_WAY };        /* WANTED: ask_start again, as the queue was full, or
                                                                  whoever had it is gone */

struct ask {
    struct asker *asker;
    const float *x;                /* [n] borrowed */
    size_t n;
    double voiced_s;
    uint32_t max_tokens;           /* 0: by the voiced time */
    /* Of the try that is under way or was the last. */
    enum ask_state state;
    const char *instruction;       /* borrowed */
    const char *begun;             /* the answer goes on from here, or NULL */
    const struct sample_bias *bias;
    uint32_t n_bias;
    double temperature;
    uint64_t seed;
    uint64_t id;
    float *padded;                 /* owned */
    /* Written by who answers, under asker.lock until `over`. */
    bool over;
    struct err error;              /* code OK: the answer is whole */
    enum eng_finish finish;
    char *text;                    /* owned; n_text bytes and a NUL */
    size_t n_text;
    int32_t *ids;                  /* owned */
    uint32_t n_tokens;
    double logprob_sum;
    uint32_t n_prompt, n_audio;
    struct answer_token *token;    /* owned: [n_token] where keep_tokens */
    size_t n_token, cap_token;
    /* The verdict. */
    double mean_logprob;
    const char *code;              /* why the answer is not good; NULL: it is */
    char reason[160];
    bool again;                    /* another try may help */
};

void asker_init(struct asker *k, struct service *s, const struct transcribe_options *o);
void asker_fini(struct asker *k);

/* E_CANCELLED where the run was told to end at once. */
status asker_cancelled(const struct asker *k, struct err *e);
/* Sleep until an ask has ended since the last call; 50 ms at most. */
void asker_wait(struct asker *k);

/* Ask; a full queue leaves it WANTED. E_BUSY draining, E_DEVICE, E_NOMEM. */
status ask_start(struct ask *a, struct err *e);
bool ask_over(struct ask *a);
/* Blocks until it is over. E_CANCELLED, after cancelling it. */
status ask_wait(struct ask *a, struct err *e);
/* Waits for a cancelled ask's end where it is under way; frees what it owns. */
void ask_free(struct ask *a);
void ask_cancel(struct ask *a);

/* What the guards say of an answer that is over: a->code. An error where the run cannot go on at all. */
status ask_judge(struct ask *a, struct err *e);

/* The language of a piece of sound, of o->languages or of all that are known: the answer is forced to be one of them,
 * token by token. *name NULL: the model was nowhere near any of them. *a is asked with. */
status ask_language(struct ask *a, const char **name, struct err *e);

#endif
