/* api/batch_engine.h - the engine behind batches: what runs their lines. */
#ifndef API_BATCH_ENGINE_H
#define API_BATCH_ENGINE_H

#include "api/audio.h"

struct batch_engine {
    struct api *api;
    struct api_audio *audio;       /* NULL: transcriptions and translations are refused, unsupported_parameter */
};

/* A batch_run (api/batch.h). */
void batch_engine_run(void *batch_engine, const char *endpoint, const char *body, size_t n, const char *request_id,
                      const atomic_bool *stop, int *status_code, json_t **reply);
/* A batches_run (api/batches.h): the same for an API key. */
void batch_engine_run_for(void *batch_engine, const char *owner, const char *endpoint, const char *body, size_t n,
                          const char *request_id, const atomic_bool *stop, int *status_code, json_t **reply);

#endif
