/* api/audio.h - transcriptions and translations: docs/http-api.md 1.7 and 5. A client of the service like any other, but
 * one that lives for long: a job reads its sound, plans windows and waits for them on a thread of its own.
 *
 *   api_audio_create                         the threads, the window cache
 *   api_audio_parse_form, api_audio_parse_json     fields -> struct api_audio_job, or an error with tag and param
 *   api_audio_start                          queued; a thread takes it; a sink gets the reply as it comes
 *   api_audio_run                            the same on the caller's thread, from JSON to JSON: batch lines
 *
 * What is decoded is decoded in a confined child, as a stream: memory does not grow with the length of the sound.
 * Window cache: finished windows are journals in a folder under a digest of the sound, the options, the model and the API
 * key, so that a client that lost its connection and asks again goes on where it was. */
#ifndef API_AUDIO_H
#define API_AUDIO_H

#include "api/api.h"

struct api_audio;
struct api_audio_job;

/* What a job did: windows that were transcribed at once, after another try, not at all, or before. */
struct api_audio_outcome {
    uint32_t n_ok, n_retried, n_failed, n_cached;
    double sound_s, took_s;        /* sound_s 0: it did not come to its end */
    const char *policy;
};

struct api_audio_options {
    struct api *api;
    const struct service_loader *loader;       /* resolves file_id and file_url; NULL: they are refused; borrowed */
    struct extract_limits limits;  /* of the child; max_duration_s 0: 24 h; stop is not used                  */
    const char *cache_dir;         /* of the window cache, made where it is not there; NULL: none             */
    double cache_ttl_s;            /* 0: 1800                                                                 */
    uint32_t n_threads;            /* jobs at once; 0: 8                                                      */
    uint32_t max_waiting;          /* jobs that wait for a thread; 0: 64                                      */
    uint32_t windows_at_once;      /* of one job, 1..64; 0: 4                                                 */
    void (*observe)(void *self, const struct api_audio_outcome *o);    /* once a job, on its thread; may be NULL */
    void *observe_self;
};

/* E_MODEL: the model's profile is wrong. E_IO: cache_dir. */
status api_audio_create(const struct api_audio_options *o, struct api_audio **out, struct err *e);
/* Cancels what is left and waits for it: every sink was told. */
void api_audio_destroy(struct api_audio **a);

/* One field of a form; files have a filename and no value. */
struct api_audio_field { const char *name, *value, *filename; };

/* file: what the form's part `file` brought, fd -1 where there was none; moved, also on failure. */
status api_audio_parse_form(struct api_audio *a, bool translate, const struct api_audio_field *field, size_t n,
                            struct media_source *file, const struct api_caller *c, struct api_audio_job **out,
                            struct err *e);
status api_audio_parse_json(struct api_audio *a, bool translate, const char *body, size_t n, const struct api_caller *c,
                            struct api_audio_job **out, struct err *e);
void api_audio_job_free(struct api_audio_job **j);
bool api_audio_job_streams(const struct api_audio_job *j);

/* The whole reply: JSON, or bytes of a content type. The sink owns both. */
struct api_audio_reply {
    json_t *json;                  /* NULL: bytes */
    const char *content_type;      /* static */
    char *bytes;
    size_t n;
};
void api_audio_reply_free(struct api_audio_reply *r);

/* Called on the job's thread; they must not block. */
struct api_audio_sink {
    void *self;
    void (*chunk)(void *self, json_t *event);          /* streaming: transcript.text.*; a reference is stolen */
    void (*progress)(void *self, const char *phase, double done);      /* "queue", "transcribe"; may be NULL */
    /* Once, the last. reply: where not streaming and all went well; moved to the sink. */
    void (*done)(void *self, struct api_audio_reply *reply, const struct err *error);
};
/* *j is moved from on OK. E_BUSY, tag queue_full: too many wait. */
status api_audio_start(struct api_audio_job **j, const struct api_audio_sink *sink, uint64_t *id, struct err *e);
/* Its done comes soon with E_CANCELLED; of a job that is over nothing happens. */
void api_audio_cancel(struct api_audio *a, uint64_t id);
/* Every job: what is left of a drain. */
void api_audio_cancel_all(struct api_audio *a);

/* "/v1/audio/transcriptions" or "/v1/audio/translations" from body to reply, as api_run. Text formats give a JSON string. */
void api_audio_run(struct api_audio *a, const char *endpoint, const char *body, size_t n, const struct api_caller *c,
                   const atomic_bool *stop, int *status_code, json_t **reply);

struct api_audio_counts { uint32_t n_waiting, n_running; uint64_t n_windows_replayed; };
void api_audio_read(struct api_audio *a, struct api_audio_counts *out);

#endif
