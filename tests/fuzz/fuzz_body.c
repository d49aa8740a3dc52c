/* Request bodies of chat and completions: whatever comes becomes a job within all limits, or an error with a code and a place
 * that the client gets as JSON.
 * Sources: api/api.c api/fields.c api/chat.c api/completion.c engine/sample.c
 * Sources: prune/registry.c prune/none.c prune/random.c prune/omnidrop.c prune/schedule.c prune/step0.c
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/inside.h"
#include "base/mem.h"

#define PROMISE(c)                                                                                         \
    do {                                                                                                   \
        if (!(c)) {                                                                                        \
            fprintf(stderr, "broken promise: %s\n", #c);                                                   \
            abort();                                                                                       \
        }                                                                                                  \
    } while (0)

/* What api_create would ask of a running service: nothing here. */
status service_submit(struct service *s, struct service_request *rq, uint64_t *id, struct err *e) { abort(); }
void service_cancel(struct service *s, uint64_t id) { abort(); }
status service_count(struct service *s, struct service_request *rq, struct token_list *t, uint32_t n[4], struct err *e) { abort(); }
const struct engine *service_engine(const struct service *s) { abort(); }
const struct model_config *engine_config(const struct engine *en) { abort(); }
const struct engine_info *engine_info(const struct engine *en) { abort(); }
const struct tokenizer *engine_tokenizer(const struct engine *en) { abort(); }
struct eng_request_options eng_request_defaults(void)
{
    return (struct eng_request_options){ .max_tokens = 512, .sample = sample_defaults() };
}

static struct api *the_api(void)
{
    static struct api a;
    static char *names[] = { "tiny" };
    static struct tokenizer *tok;
    struct err e;
    if (tok) return &a;
    if (tokenizer_load("models/omni-tiny", &tok, &e) != OK) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
    a = (struct api){ .name = names, .n_name = 1, .tok = tok, .vocab = tokenizer_n_ids(tok), .n_layers = 12,
                      .max_model_len = 2048, .sample = sample_defaults(), .policy = prune_params_none(), .o = { .max_n = 8 } };
    a.media_id[0] = tokenizer_id(tok, "<|AUDIO|>");
    a.media_id[1] = tokenizer_id(tok, "<|IMAGE|>");
    a.media_id[2] = tokenizer_id(tok, "<|VIDEO|>");
    pthread_mutex_init(&a.lock, NULL);
    return &a;
}

static void check_error(status st, const struct err *e)
{
    PROMISE(st != OK && e->code == st && e->text[0] != '\0');
    const struct api_error w = api_error_of(e);
    PROMISE(w.status == 400 || w.status == 404);
    json_t *o = api_error_json(e);
    PROMISE(o != NULL);
    json_decref(o);
}

static void check_job(struct api_job *j)
{
    PROMISE(j->n >= 1 && j->n <= 8 && j->n_groups >= 1 && j->n_groups <= API_PROMPTS_MAX && j->choice != NULL);
    PROMISE(j->o.n_stop <= API_STOPS_MAX && j->o.n_stop_id <= API_STOP_IDS_MAX && j->top_logprobs <= API_TOP_MAX);
    PROMISE(sample_check(&j->o.sample, NULL) == OK);
    for (uint32_t i = 0; i < j->n_groups; i++) {
        const struct service_request *rq = &j->group[i].rq;
        PROMISE(j->is_chat ? rq->chat.n_messages > 0 : rq->n_ids > 0 && rq->n_ids < j->api->max_model_len);
        for (uint32_t k = 0; k < rq->n_ids; k++) PROMISE(tokenizer_has(j->api->tok, rq->ids[k]));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct api_caller caller = { .request_id = "r" };
    struct api *a = the_api();
    for (int chat = 0; chat < 2; chat++) {
        struct api_job *j = NULL;
        struct err e = { 0 };
        const status st = chat ? api_chat_parse(a, (const char *)data, size, &caller, &j, &e)
                               : api_completion_parse(a, (const char *)data, size, &caller, &j, &e);
        if (st != OK) check_error(st, &e);
        else check_job(j);
        api_job_free(&j);
    }
    return 0;
}
