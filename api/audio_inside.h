/* api/audio_inside.h - what the files of transcription share; no other folder includes it, tests apart.
 *
 *   audio_fields.c    form or JSON -> struct audio_params
 *   audio_reply.c     transcript -> reply, events
 *   audio.c           threads, jobs, the window cache */
#ifndef API_AUDIO_INSIDE_H
#define API_AUDIO_INSIDE_H

#include "api/audio.h"
#include "api/inside.h"
#include "base/json.h"
#include "engine/transcribe.h"

#define AUDIO_KEYWORDS_MAX 100
#define AUDIO_KEYWORD_BYTES_MAX 64
#define AUDIO_PROMPT_TOKENS_MAX 1024

enum audio_format { AUDIO_JSON, AUDIO_TEXT, AUDIO_SRT, AUDIO_VTT, AUDIO_VERBOSE_JSON };

struct audio_params {
    bool translate;
    char *url;                     /* owned; "file-id:ID" for file_id; NULL: the form's file */
    const char *language;          /* static; NULL: ask */
    const char *languages[AUDIO_KEYWORDS_MAX];     /* static */
    size_t n_languages;
    char *context;                 /* owned: prompt and keywords; NULL: none */
    double temperature, top_p;
    int64_t seed;
    enum audio_format format;
    bool stream, segments, logprobs;
    double start_s, end_s, window_s, overlap_s, max_segment_s;     /* window_s 0, overlap_s -1: the model's */
    bool condition_on_previous, mark;
    struct api_omnidrop omnidrop;
};

struct api_audio_job {
    struct api_owner owner;        /* must come first: a loader's resolve() looks at it */
    struct api_audio *audio;
    struct audio_params p;
    struct media_source source;    /* fd -1: to be resolved from p.url */
    char request_id[72];
    bool batch;
    char *fields;                  /* owned: JSON of all fields, where another group's leader may want it; else NULL */
    bool counted;                  /* groups_left is due when it is over */
    /* Where the file is with rank 0: brings it, into this leader's spool. NULL: there is none */
    status (*fetch)(void *self, const atomic_bool *stop, struct media_source *out, struct err *e);
    void *fetch_self;
    struct transcribe_options o;
    /* While it runs. */
    struct api_audio_sink sink;
    uint64_t id;
    atomic_bool stop;
    const atomic_bool *cancel;     /* &stop, or what the caller of api_audio_run gave */
    double length_s;               /* of what is asked for; <= 0: unknown */
    struct transcript *t;
    size_t n_segments_sent, n_tokens_sent;
    struct api_text sent;          /* all deltas */
    json_t *all_logprobs;          /* streaming with logprobs; else NULL */
    struct api_audio_job *next;
};

/* audio_fields.c: *out as zero; audio_params_free also after an error. */
status audio_fields_form(const struct api_audio_field *field, size_t n, json_t **out, struct err *e);
status audio_fields_read(const struct api *a, const struct doc_at *root, bool translate, bool batch, struct audio_params *out,
                         struct err *e);
void audio_params_free(struct audio_params *p);

/* audio.c */
struct api *api_audio_api(const struct api_audio *a);
/* A job that came from rank 0: n bytes of its fields; fetch as above or NULL. */
status audio_parse_moved(struct api_audio *a, bool translate, const char *fields, size_t n,
                         status (*fetch)(void *, const atomic_bool *, struct media_source *, struct err *), void *fetch_self,
                         const struct api_caller *c, struct api_audio_job **out, struct err *e);

/* audio_reply.c */
const char *audio_content_type(enum audio_format f);     /* of formats that are text; else NULL */
status audio_reply(const struct api_audio_job *j, const struct transcript *t, struct api_audio_reply *out, struct err *e);
/* The events for the segments that are new since the last call; the last one. */
void audio_send_segments(struct api_audio_job *j, const struct transcript *t, size_t from);
void audio_send_done(struct api_audio_job *j, const struct transcript *t);

#endif
