/* engine/ask.c - see transcribe_inside.h: questions about sound, and what is made of the answers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zlib.h>

#include "base/mem.h"
#include "engine/languages.h"
#include "engine/transcribe_inside.h"

#define LOGPROB_MIN (-1.2)
#define COMPRESSION_MAX 2.4
#define TOKENS_A_SECOND 12
#define TOKENS_MIN 64
#define PAD_SAMPLES 3200           /* shorter pieces get silence behind them: the tower wants 321 samples */
#define WAIT_MS 50                 /* signals and flags are looked at so often */
#define LANGUAGE_BIAS 100.0f       /* as good as a must */
#define LANGUAGE_LOGPROB_MIN (-7.0)    /* one in a thousand: the model would have said something else */
#define LANGUAGE_TOKENS 8

/* ---- guards ------------------------------------------------------------------------------------------------- */

bool transcribe_repeats(const int32_t *ids, uint32_t n)
{
    for (uint32_t k = 1; k <= 12 && k < n; k++) {
        uint32_t same = 0;         /* ids[i] == ids[i - k], in a row */
        for (uint32_t i = k; i < n; i++) {
            same = ids[i] == ids[i - k] ? same + 1 : 0;
            const uint32_t length = same + k;
            if (length >= 4 * k && length >= 12 && length > 0.4 * n) return true;
        }
    }
    return false;
}

double transcribe_compression(const char *text, size_t n)
{
    if (n == 0) return 0;
    uLongf packed = compressBound((uLong)n);
    Bytef *out = malloc(packed);
    const bool done = out && compress2(out, &packed, (const Bytef *)text, (uLong)n, 6) == Z_OK;
    free(out);
    return done ? (double)n / (double)packed : 0;
}

static bool same_text(const char *a, size_t n, const char *b)
{
    if (b == NULL) return false;
    const size_t m = strlen(b);
    while (n > 0 && (unsigned char)a[n - 1] <= 32) n--;
    while (n > 0 && (unsigned char)*a <= 32) a++, n--;
    return n == m && n > 0 && strncasecmp(a, b, n) == 0;
}

static status failed(struct ask *a, struct err *e)
{
    switch (a->error.code) {
    case E_ARG:                    /* no window would do better: it is too long for the context, if nothing else is said */
        *e = a->error;
        err_tag(e, "context_length_exceeded", NULL);
        return E_ARG;
    case E_FULL:
    case E_BUSY:
    case E_TIMEOUT:
        *e = a->error;
        return e->code;
    case E_CANCELLED: return err_set(e, E_CANCELLED, "interrupted");
    default: break;
    }
    if (a->error.tag && strcmp(a->error.tag, "engine_dead") == 0) {
        *e = a->error;
        return e->code;
    }
    a->code = "engine_error";
    a->again = false;
    snprintf(a->reason, sizeof a->reason, "%.150s", a->error.text);
    return OK;
}

static status bad(struct ask *a, const char *code)
{
    a->code = code;
    return OK;
}

status ask_judge(struct ask *a, struct err *e)
{
    a->mean_logprob = a->n_tokens ? a->logprob_sum / a->n_tokens : 0;
    a->code = NULL;
    a->again = true;
    if (a->error.code != OK) return failed(a, e);
    if (a->finish == ENG_LENGTH) {
        snprintf(a->reason, sizeof a->reason, "the text ran to %u tokens without an end", a->n_tokens);
        return bad(a, "length");
    }
    if (transcribe_repeats(a->ids, a->n_tokens)) {
        snprintf(a->reason, sizeof a->reason, "the text goes in circles");
        return bad(a, "repetition");
    }
    const double ratio = transcribe_compression(a->text, a->n_text);
    if (ratio > COMPRESSION_MAX) {
        snprintf(a->reason, sizeof a->reason, "the text goes in circles: it compresses %.2f times", ratio);
        return bad(a, "repetition");
    }
    if (a->mean_logprob < LOGPROB_MIN) {
        snprintf(a->reason, sizeof a->reason, "the model is unsure: mean log probability %.2f", a->mean_logprob);
        return bad(a, "low_logprob");
    }
    if (same_text(a->text, a->n_text, a->asker->instruction) || same_text(a->text, a->n_text, a->asker->o->context)) {
        a->n_text = a->n_token = 0;
        a->text[0] = 0;
    }
    return OK;
}

/* ---- who answers ------------------------------------------------------------------------------------------- */

static void on_answer(void *self, struct answer *got)
{
    struct ask *a = self;
    struct asker *k = a->asker;
    pthread_mutex_lock(&k->lock);
    a->error = got->error;
    a->finish = got->finish;
    a->n_prompt = got->n_prompt;
    a->n_audio = got->n_audio;
    a->logprob_sum = got->logprob_sum;
    a->text = got->text;
    a->n_text = got->n_text;
    a->ids = got->ids;
    a->n_tokens = got->n_ids;
    free(a->token);
    a->token = got->token;
    a->n_token = a->cap_token = got->n_token;
    *got = (struct answer){ 0 };
    a->over = true;
    k->n_over++;
    pthread_cond_signal(&k->changed);
    pthread_mutex_unlock(&k->lock);
}

static status ask_service(void *self, const struct question *q, question_answered answered, void *answered_self, uint64_t *id,
                          struct err *e)
{
    return question_ask(self, service_submit, q, answered, answered_self, id, e);
}

static void cancel_service(void *self, uint64_t id) { service_cancel(self, id); }

/* ---- asking ------------------------------------------------------------------------------------------------- */

void asker_init(struct asker *k, struct service *s, const struct transcribe_options *o)
{
    *k = (struct asker){ .service = s, .o = o, .by = { s, ask_service, cancel_service, NULL, NULL } };
    if (o->by) k->by = *o->by;
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->changed, NULL);
}

void asker_fini(struct asker *k)
{
    pthread_mutex_destroy(&k->lock);
    pthread_cond_destroy(&k->changed);
}

status asker_cancelled(const struct asker *k, struct err *e)
{
    const bool now = (k->o->stop && *k->o->stop > 1) || (k->o->cancel && atomic_load(k->o->cancel));
    return now ? err_set(e, E_CANCELLED, "interrupted") : OK;
}

/* With the lock held. */
static void wait_locked(struct asker *k)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_MS * 1000000l;
    if (until.tv_nsec >= 1000000000l) {
        until.tv_nsec -= 1000000000l;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&k->changed, &k->lock, &until);
}

void asker_wait(struct asker *k)
{
    pthread_mutex_lock(&k->lock);
    if (k->n_over == k->n_seen) wait_locked(k);
    k->n_seen = k->n_over;
    pthread_mutex_unlock(&k->lock);
}

static void forget_answer(struct ask *a)
{
    free(a->text);
    free(a->ids);
    a->text = NULL;
    a->ids = NULL;
    a->n_text = a->n_token = 0;
    a->n_tokens = 0;
    a->over = false;
    a->error = (struct err){ 0 };
}

static status submit(struct ask *a, struct err *e)
{
    const struct transcribe_options *o = a->asker->o;
    const double by_voice = ceil(TOKENS_A_SECOND * a->voiced_s);
    const uint32_t most = by_voice > TOKENS_MIN ? (uint32_t)by_voice : TOKENS_MIN;
    struct question q = { .x = a->padded ? a->padded : a->x, .n = a->padded ? PAD_SAMPLES : a->n, .context = o->context,
                          .previous = o->condition_on_previous ? a->asker->previous : NULL, .instruction = a->instruction,
                          .begun = a->begun, .bias = a->bias, .n_bias = a->n_bias,
                          .max_tokens = a->max_tokens ? a->max_tokens : most, .temperature = a->temperature,
                          .top_p = o->top_p, .seed = a->seed, .policy = o->policy, .priority = o->priority,
                          .keep_tokens = o->keep_tokens };
    memcpy(q.salt, o->salt, sizeof q.salt);
    return a->asker->by.ask(a->asker->by.self, &q, on_answer, a, &a->id, e);
}

status ask_start(struct ask *a, struct err *e)
{
    if (a->n < PAD_SAMPLES && a->padded == NULL) {
        TRY(mem_alloc(&a->padded, PAD_SAMPLES, sizeof *a->padded, e));
        memcpy(a->padded, a->x, a->n * sizeof *a->x);
    }
    forget_answer(a);
    a->state = ASK_WANTED;
    struct err why = { 0 };
    const status st = submit(a, &why);
    if (st == OK) a->state = ASK_UNDER_WAY;
    else if (st == E_BUSY && why.tag && strcmp(why.tag, "queue_full") == 0) return OK;
    else *e = why;
    return st;
}

/* Whoever had it is gone, or had no room after all: somebody else may answer. */
static bool unanswered(const struct err *e)
{
    return e->code != OK && e->tag && (strcmp(e->tag, "group_lost") == 0 || strcmp(e->tag, "queue_full") == 0);
}

bool ask_over(struct ask *a)
{
    if (a->state != ASK_UNDER_WAY) return false;
    pthread_mutex_lock(&a->asker->lock);
    const bool over = a->over;
    pthread_mutex_unlock(&a->asker->lock);
    if (!over) return false;
    a->state = unanswered(&a->error) ? ASK_WANTED : ASK_IDLE;
    return a->state == ASK_IDLE;
}

void ask_cancel(struct ask *a)
{
    if (a->state == ASK_UNDER_WAY) a->asker->by.cancel(a->asker->by.self, a->id);
    if (a->state == ASK_WANTED) a->state = ASK_IDLE;
}

status ask_wait(struct ask *a, struct err *e)
{
    while (!ask_over(a)) {
        TRY(asker_cancelled(a->asker, e));
        if (a->state == ASK_WANTED) TRY(ask_start(a, e));
        asker_wait(a->asker);
    }
    return OK;
}

void ask_free(struct ask *a)
{
    ask_cancel(a);
    while (a->state == ASK_UNDER_WAY && !ask_over(a)) asker_wait(a->asker);
    forget_answer(a);
    free(a->padded);
    free(a->token);
    a->padded = NULL;
    a->token = NULL;
}

/* ---- language ----------------------------------------------------------------------------------------------- */

/* A name that the answer may be, as tokens. */
struct candidate { const char *name; struct token_list tokens; };

static status add_candidate(const struct tokenizer *t, const char *name, struct candidate *c, struct err *e)
{
    char text[64];
    snprintf(text, sizeof text, "%s", name);
    if (*text >= 'a' && *text <= 'z') *text = (char)(*text - 32);
    c->name = name;
    return tokenizer_encode_text(t, text, strlen(text), &c->tokens, e);
}

/* What candidate c's token `at` is; its end counts as `end`. */
static int32_t token_at(const struct candidate *c, size_t at, int32_t end)
{
    return at < c->tokens.n ? c->tokens.token[at].id : end;
}

/* The ids that may come next; all candidates left are one name: *only. */
static uint32_t choices(const struct candidate *c, size_t n, size_t at, int32_t end, struct sample_bias *bias,
                        const char **only)
{
    uint32_t n_bias = 0;
    *only = n ? c[0].name : NULL;
    for (size_t i = 0; i < n; i++) {
        const int32_t id = token_at(&c[i], at, end);
        uint32_t k = 0;
        while (k < n_bias && bias[k].id != id) k++;
        if (k == n_bias && n_bias < SAMPLE_BIAS_MAX) bias[n_bias++] = (struct sample_bias){ id, LANGUAGE_BIAS };
        if (strcmp(c[i].name, c[0].name) != 0) *only = NULL;
    }
    return n_bias;
}

/* Down the tree of the candidates' tokens, one short answer a level. */
static status walk(struct ask *a, struct candidate *c, size_t n, int32_t end, struct sample_bias *bias, const char **name,
                   struct err *e)
{
    char begun[128] = "";
    const struct tokenizer *t = engine_tokenizer(service_engine(a->asker->service));
    for (size_t at = 0; n > 0 && at < LANGUAGE_TOKENS; at++) {
        a->n_bias = choices(c, n, at, end, bias, name);
        if (*name && at > 0) return OK;
        a->bias = bias;
        a->begun = begun;
        a->max_tokens = 1;
        TRY(ask_start(a, e));
        TRY(ask_wait(a, e));
        if (a->error.code == E_CANCELLED) return err_set(e, E_CANCELLED, "interrupted");
        if (a->error.code != OK || a->n_tokens == 0) return a->error.code == OK ? OK : failed(a, e);
        if (at == 0 && a->logprob_sum < LANGUAGE_LOGPROB_MIN) break;
        const int32_t id = a->ids[0];
        size_t left = 0, n_bytes;
        for (size_t i = 0; i < n; i++)
            if (token_at(&c[i], at, end) == id) {
                const struct candidate keep = c[i];
                c[i] = c[left];
                c[left++] = keep;
            }
        n = left;
        if (id == end && n > 0) {
            *name = c[0].name;
            return OK;
        }
        const char *bytes = tokenizer_bytes(t, id, &n_bytes);
        const size_t have = strlen(begun);
        if (bytes && have + n_bytes < sizeof begun) memcpy(begun + have, bytes, n_bytes), begun[have + n_bytes] = 0;
    }
    *name = NULL;
    return OK;
}

status ask_language(struct ask *a, const char **name, struct err *e)
{
    static const char question[] = "Which language is spoken in the audio? Answer with its English name only.";
    const struct transcribe_options *o = a->asker->o;
    const struct tokenizer *t = engine_tokenizer(service_engine(a->asker->service));
    struct candidate *c = NULL;
    struct sample_bias *bias = NULL;
    size_t n = 0;
    if (o->n_languages) n = o->n_languages;
    else while (language_at(n)) n++;
    *name = NULL;
    TRY(mem_alloc(&c, n, sizeof *c, e));
    status st = mem_alloc(&bias, SAMPLE_BIAS_MAX, sizeof *bias, e);
    for (size_t i = 0; i < n && st == OK; i++)
        st = add_candidate(t, o->n_languages ? o->languages[i] : language_at(i), &c[i], e);
    a->instruction = question;
    a->temperature = 0;
    a->seed = o->seed;
    if (st == OK) st = walk(a, c, n, tokenizer_id(t, "<|im_end|>"), bias, name, e);
    ask_cancel(a);
    while (a->state == ASK_UNDER_WAY && !ask_over(a)) asker_wait(a->asker);    /* it borrows the bias */
    a->bias = NULL;
    a->n_bias = 0;
    a->begun = NULL;
    for (size_t i = 0; i < n; i++) token_list_free(&c[i].tokens);
    free(c);
    free(bias);
    return st;
}
