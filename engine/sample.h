/* engine/sample.h - logits to one token id. Host arithmetic, one request at a time, so a request's tokens never
 * depend on its neighbours: a sampler is a pure function of its parameters and of the logits it was shown. Order of the
 * steps as in vLLM: bias and banned stops, penalties, temperature, min-p, top-k, top-p. Nothing sorts the vocabulary:
 * a token costs some passes over the V logits and a sort of the few candidates that top-k, min-p, top-p or the draw
 * itself can reach. */
#ifndef ENGINE_SAMPLE_H
#define ENGINE_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/ops.h"

struct sample_bias { int32_t id; float bias; };    /* added to the logit; -100 and 100 as good as ban and force */

#define SAMPLE_BIAS_MAX 1024
#define SAMPLE_TOP_MAX 20

struct sample_params {
    float temperature;             /* 0: greedy                                                       */
    uint32_t top_k;                /* 0: all                                                          */
    float top_p;                   /* (0, 1]                                                          */
    float min_p;                   /* [0, 1]: drop what is less likely than min_p times the best      */
    float repetition_penalty;      /* > 0; 1: none. Over prompt and generated ids (Hugging Face's)    */
    float presence_penalty;        /* over generated ids only (OpenAI's)                              */
    float frequency_penalty;
    uint64_t seed;
    const struct sample_bias *logit_bias;  /* [n_logit_bias] copied; an id once. May be NULL          */
    uint32_t n_logit_bias;
    uint32_t min_tokens;           /* stop_id are not chosen before so many tokens were generated     */
    const int32_t *stop_id;        /* [n_stop_ids] copied; ids outside the vocabulary do not matter   */
    uint32_t n_stop_ids;
    uint32_t top_logprobs;         /* 0..20 for sampler_top()                                         */
};

/* Greedy, no penalties. */
struct sample_params sample_defaults(void);

/* E_ARG names the field, its value and its range; tag invalid_value, param the field. */
status sample_check(const struct sample_params *p, struct err *e);

struct sampler;

/* A token and its log probability, for top_logprobs. */
struct sample_top { int32_t id; float logprob; };

/* For a vocabulary of V rows; allowed[V] (borrowed, may be NULL): ids that may be chosen at all. prompt ids count for
 * the repetition penalty. *out owns its scratch. E_ARG: as sample_check, a bias for an id that is not below V or for
 * one id twice. */
status sampler_create(const struct sample_params *p, uint32_t V, const uint8_t *allowed, const int32_t *prompt,
                      uint32_t n_prompt, struct sampler **out, struct err *e);
void sampler_destroy(struct sampler **s);

/* The next id; *logprob = log softmax of the raw (unpenalised, temperature 1) logits at it, over allowed ids.
 * Ties go to the lower id. The id is counted as generated. step-th call of the same seed gives the same draw. */
int32_t sampler_next(struct sampler *s, const float *logits, float *logprob);

/* The same from what ops->top found of the logits, with allowed as the sampler's: the id, and its log probability but for the last bits
 * of norm. false, and nothing has happened: the highest do not decide it (penalties, bias and bans; draws from more than they hold)
 * and sampler_next has to see the whole row. */
bool sampler_next_top(struct sampler *s, const struct top_row *row, int32_t *id, float *logprob);

/* Of the last sampler_next: the top_logprobs likeliest allowed ids, best first, with the log softmax of the raw logits.
 * Ties: the lower id first. Valid until the next call; *n is 0 before the first, and fewer than asked for where fewer
 * ids are allowed. */
void sampler_top(const struct sampler *s, const struct sample_top **top, uint32_t *n);

#endif
