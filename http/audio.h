/* http/audio.h - POST /v1/audio/transcriptions and /v1/audio/translations on api/audio.h: docs/http-api.md 1.7.
 *
 *   app_create -> http_audio_routes          the routes answer 503 not_ready
 *     app_engine -> http_audio_start         and from now on work
 *   http_server_run ... ends -> api_audio_destroy -> app_destroy, http_server_destroy */
#ifndef HTTP_AUDIO_H
#define HTTP_AUDIO_H

#include <stdatomic.h>

#include "api/audio.h"
#include "http/app.h"

struct audio_call;

struct http_audio {                /* zeroed but for app; borrowed as long as the server runs */
    struct app *app;
    _Atomic(struct api_audio *) audio;
    struct audio_call *calls;      /* loop thread alone: those whose reply is not over */
};
/* Before http_server_run. */
void http_audio_routes(struct http_audio *h);
/* From any thread, when the model is there. audio is borrowed until after http_server_run. */
void http_audio_start(struct http_audio *h, struct api_audio *audio);
/* Every reply ends with this error; NULL: draining, as the drain's time is over. Loop thread. */
void http_audio_end_all(struct http_audio *h, const struct err *e);
/* api_audio_options.observe, with self == the metrics of the app. */
void http_audio_observe(void *metrics, const struct api_audio_outcome *o);

#endif
