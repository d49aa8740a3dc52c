/* engine/sample.h - logits to one token id. Host arithmetic, one request at a time, so a request's tokens never
 * depend on its neighbours. Order of the steps as in vLLM: penalties, temperature, min-p, top-k, top-p. */
#ifndef ENGINE_SAMPLE_H
#define ENGINE_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct sample_params {
    float temperature;             /* 0: greedy                                                       */
    uint32_t top_k;                /* 0: all                                                          */
    float top_p;                   /* (0, 1]                                                          */
    float min_p;                   /* [0, 1]: drop what is less likely than min_p times the best      */
    float repetition_penalty;      /* > 0; 1: none. Over prompt and generated ids (Hugging Face's)    */
    float presence_penalty;        /* over generated ids only (OpenAI's)                              */
    float frequency_penalty;
    uint64_t seed;
};

/* Greedy, no penalties. */
struct sample_params sample_defaults(void);

/* E_ARG names the field, its value and its range. */
status sample_check(const struct sample_params *p, struct err *e);

struct sampler;

/* A token and its log probability, for top_logprobs. */
struct sample_top { int32_t id; float logprob; };

/* For a vocabulary of V rows; allowed[V] (borrowed, may be NULL): ids that may be chosen at all. prompt ids count for
 * the repetition penalty. *out owns its scratch. */
status sampler_create(const struct sample_params *p, uint32_t V, const uint8_t *allowed, const int32_t *prompt,
                      uint32_t n_prompt, struct sampler **out, struct err *e);
void sampler_destroy(struct sampler **s);

/* The next id; *logprob = log softmax of the raw (unpenalised, temperature 1) logits at it, over allowed ids.
 * Ties go to the lower id. The id is counted as generated. step-th call of the same seed gives the same draw. */
int32_t sampler_next(struct sampler *s, const float *logits, float *logprob);

#endif
