/* engine/question.c - see question.h. */
#include "engine/question.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* Under way in the service, whose threads call one after the other for one request. */
struct asked {
    struct eng_pcm pcm;
    struct policy_params policy;
    bool keep_tokens;
    size_t cap_token, n_text_told;
    struct answer answer;
    question_answered answered;
    void *self;
};

void answer_free(struct answer *a)
{
    free(a->text);
    free(a->ids);
    free(a->token);
    *a = (struct answer){ 0 };
}

/* Tokens with the bytes of text that were told with them; memory that lacks loses them, not the text. */
static void take_tokens(struct asked *q, const struct service_event *ev)
{
    struct answer *a = &q->answer;
    struct err e;
    q->n_text_told += ev->n_text;
    if (mem_grow(&a->token, &q->cap_token, a->n_token + ev->n_token, sizeof *a->token, &e) != OK) return;
    for (uint32_t i = 0; i < ev->n_token; i++)
        a->token[a->n_token++] = (struct answer_token){ ev->token[i].id, ev->token[i].logprob, q->n_text_told };
}

static status take_result(struct answer *a, const struct service_summary *sum, struct err *e)
{
    const struct eng_result *res = sum->choice[0];
    a->finish = res->finish;
    a->n_prompt = sum->n_prompt;
    a->n_audio = sum->n_kind[TOKEN_AUDIO];
    a->logprob_sum = res->logprob_sum;
    TRY(mem_alloc(&a->text, res->n_text + 1, 1, e));
    if (res->n_text) memcpy(a->text, res->text, res->n_text);
    a->n_text = res->n_text;
    TRY(mem_alloc(&a->ids, res->n_ids, sizeof *a->ids, e));
    if (res->n_ids) memcpy(a->ids, res->ids, res->n_ids * sizeof *a->ids);
    a->n_ids = res->n_ids;
    return OK;
}

static void on_event(void *self, const struct service_event *ev)
{
    struct asked *q = self;
    if (ev->kind == SERVICE_TEXT && q->keep_tokens) take_tokens(q, ev);
    if (ev->kind != SERVICE_DONE) return;
    if (ev->error) q->answer.error = *ev->error;
    else (void)take_result(&q->answer, ev->summary, &q->answer.error);
    q->answered(q->self, &q->answer);
}

static void asked_free(void *owner)
{
    struct asked *q = owner;
    answer_free(&q->answer);
    free(q);
}

static status add_line(struct chat *chat, const char *text, struct err *e)
{
    if (text == NULL || *text == 0) return OK;
    TRY(chat_add_text(chat, text, strlen(text), e));
    return chat_add_text(chat, "\n", 1, e);
}

static status build_chat(const struct question *q, struct chat *chat, struct err *e)
{
    TRY(chat_add_message(chat, CHAT_USER, e));
    TRY(add_line(chat, q->context, e));
    TRY(add_line(chat, q->previous, e));
    TRY(chat_add_media(chat, PART_AUDIO, "pcm:0", e));
    TRY(chat_add_text(chat, q->instruction, strlen(q->instruction), e));
    if (q->begun == NULL || *q->begun == 0) return OK;
    TRY(chat_add_message(chat, CHAT_ASSISTANT, e));
    return chat_add_text(chat, q->begun, strlen(q->begun), e);
}

status question_ask(struct service *s,
                    status (*submit)(struct service *s, struct service_request *rq, uint64_t *id, struct err *e),
                    const struct question *q, question_answered answered, void *self, uint64_t *id, struct err *e)
{
    static const struct chat_render_options go_on = { .no_generation_prompt = true, .continue_final = true };
    struct asked *mine;
    TRY(mem_alloc(&mine, 1, sizeof *mine, e));
    *mine = (struct asked){ .pcm = { q->x, q->n }, .policy = q->policy ? *q->policy : prune_params_none(),
                            .keep_tokens = q->keep_tokens, .answered = answered, .self = self };
    struct service_request rq = { .o = eng_request_defaults(), .n_choices = 1, .priority = q->priority, .continues = true,
                                  .event = on_event, .self = mine, .owner = mine, .owner_free = asked_free };
    chat_init(&rq.chat);
    rq.o.pcm = &mine->pcm;
    rq.o.n_pcm = 1;
    rq.o.policy = &mine->policy;
    rq.o.max_tokens = q->max_tokens;
    rq.o.sample.temperature = (float)q->temperature;
    if (q->top_p > 0) rq.o.sample.top_p = q->top_p;
    rq.o.sample.seed = q->seed;
    rq.o.sample.logit_bias = q->bias;
    rq.o.sample.n_logit_bias = q->n_bias;
    if (q->begun && *q->begun) rq.render = &go_on;
    memcpy(rq.salt, q->salt, sizeof rq.salt);
    status st = build_chat(q, &rq.chat, e);
    if (st == OK) st = submit(s, &rq, id, e);
    if (st == OK) return OK;
    chat_free(&rq.chat);
    asked_free(mine);
    return st;
}
