/* engine/question.h - one question about a piece of sound, as a transcription asks it for each try of a window, and what
 * comes back: plain data, so that it may be answered by another process (api/questions.h). */
#ifndef ENGINE_QUESTION_H
#define ENGINE_QUESTION_H

#include "engine/service.h"

/* What it points at lives until it is answered. */
struct question {
    const float *x;                /* [n] 16 kHz mono */
    size_t n;
    const char *context, *previous;    /* before the sound; NULL or "": none */
    const char *instruction;       /* behind it */
    const char *begun;             /* the answer goes on from here; NULL or "": it begins */
    const struct sample_bias *bias;
    uint32_t n_bias;
    uint32_t max_tokens;
    double temperature;
    float top_p;                   /* 0: 1 */
    uint64_t seed;
    const struct policy_params *policy;    /* NULL: none */
    int priority;
    char salt[MEDIA_DIGEST_TEXT];
    bool keep_tokens;
};

struct answer_token { int32_t id; float logprob; size_t end; };    /* end: bytes of text with it */

struct answer {                    /* answer_free */
    struct err error;              /* code OK: it is whole */
    enum eng_finish finish;
    char *text;                    /* owned; n_text bytes and a NUL */
    size_t n_text;
    int32_t *ids;                  /* owned */
    uint32_t n_ids;
    double logprob_sum;
    uint32_t n_prompt, n_audio;    /* tokens that were asked with, of them sound */
    struct answer_token *token;    /* owned: [n_token] where keep_tokens */
    size_t n_token;
};
void answer_free(struct answer *a);

/* Once, on any thread; what is left in *a is freed by the caller. It must not block. */
typedef void (*question_answered)(void *self, struct answer *a);

/* Who answers the questions of a run. */
struct questioned {
    void *self;
    /* As question_ask. An answer with the error's tag `group_lost` or `queue_full` means: ask again. */
    status (*ask)(void *self, const struct question *q, question_answered answered, void *answered_self, uint64_t *id,
                  struct err *e);
    void (*cancel)(void *self, uint64_t id);       /* its answer comes soon; of one that is over nothing happens */
    /* A place for one window, before its sound is read, and back; false: not now. Both NULL: always. */
    bool (*enter)(void *self);
    void (*leave)(void *self);
};

/* A request of the service. submit: service_submit, or what stands in its place. Errors as there; then no answer comes. */
status question_ask(struct service *s,
                    status (*submit)(struct service *s, struct service_request *rq, uint64_t *id, struct err *e),
                    const struct question *q, question_answered answered, void *self, uint64_t *id, struct err *e);

#endif
