/* api/batch_engine.c - see batch_engine.h. */
#include "api/batch_engine.h"

#include <string.h>

void batch_engine_run_for(void *self, const char *owner, const char *endpoint, const char *body, size_t n,
                          const char *request_id, const atomic_bool *stop, int *status_code, json_t **reply)
{
    const struct batch_engine *b = self;
    const struct api_caller caller = { .request_id = request_id, .key = owner, .batch = true };
    const bool audio = strncmp(endpoint, "/v1/audio/", 10) == 0;
    if (!audio) api_run(b->api, endpoint, body, n, &caller, stop, status_code, reply);
    else if (b->audio) api_audio_run(b->audio, endpoint, body, n, &caller, stop, status_code, reply);
    if (!audio || b->audio) return;
    struct err e;
    err_set(&e, E_ARG, "%s is not offered in batches", endpoint);
    err_tag(&e, "unsupported_parameter", "url");
    *status_code = api_error_of(&e).status;
    *reply = api_error_json(&e);
}

void batch_engine_run(void *self, const char *endpoint, const char *body, size_t n, const char *request_id,
                      const atomic_bool *stop, int *status_code, json_t **reply)
{
    batch_engine_run_for(self, "", endpoint, body, n, request_id, stop, status_code, reply);
}
