/* api/remote.h - a job that runs on the leader of another group: what crosses, and the side of that leader. The side of
 * rank 0, which has the clients, is api/groups.h.
 *
 *   front (rank 0)                        leader of group g
 *     JOB body, caller            ->        parsed, started: the same code as on rank 0. A body is JSON, or a question
 *                                           of a transcription (api/questions.h)
 *                                 <-        ADMITTED, PROGRESS, CHUNK..., DONE          of one job in this order
 *     CREDIT bytes                ->        more of the job's chunks may come
 *     CANCEL                      ->        its DONE comes soon
 *                                 <-        ASK: bytes of an upload, or of a file that a client keeps here
 *     PIECE                       ->
 *                                 <-        READY or FAILED once; GAUGES with each admission and end, and every 200 ms
 *     DRAIN, STOP                 ->
 *
 * Flow: at most remote_options.window bytes and one chunk of a job are under way; the others wait with the job, so that one
 * with much to say keeps nobody else's waiting. Bodies carry data: URLs with them; http(s): URLs are fetched and file:
 * URLs opened where the job runs, so that the folders of --allowed-local-media-path must be mounted there too. Uploads and
 * file ids are asked for in pieces and put into that leader's own spool.
 * Clocks of two hosts differ: times cross as ages. */
#ifndef API_REMOTE_H
#define API_REMOTE_H

#include "api/audio.h"
#include "api/outbox.h"

#define REMOTE_PIECE ((size_t)2 << 20)     /* bytes of one PIECE, at most */
#define REMOTE_CREDIT ((size_t)32 << 10)   /* bytes that the front has taken before it says so */

enum remote_message {              /* u32 this, u64 job; then */
    /* to a leader */
    REMOTE_JOB = 1,                /* u32 remote_job, u32 batch, f64 age, text request id, text key, blob body, u32 has_file */
    REMOTE_CANCEL, REMOTE_CREDIT_MESSAGE,  /* -; u64 bytes */
    REMOTE_PIECE_MESSAGE,          /* u64 ask, err; code OK: u64 of the whole, text digest, blob bytes */
    REMOTE_DRAIN, REMOTE_STOP,
    /* from one */
    REMOTE_READY,                  /* text fingerprint */
    REMOTE_FAILED,                 /* err */
    REMOTE_GAUGES,                 /* blob struct service_gauges */
    REMOTE_METRIC,                 /* as often as there are: u32 which, u32 n, n texts, f64 */
    REMOTE_ADMITTED,
    REMOTE_PROGRESS,               /* text phase, f64 done */
    REMOTE_CHUNK,                  /* blob JSON */
    REMOTE_DONE,                   /* err; u32 remote_reply, blob */
    REMOTE_ASK                     /* u64 ask, u64 offset, text key, text id; id "": the job's upload */
};
enum remote_job { REMOTE_CHAT, REMOTE_COMPLETION, REMOTE_TRANSCRIPTION, REMOTE_TRANSLATION, REMOTE_QUESTION };
enum remote_reply { REMOTE_NOTHING, REMOTE_JSON, REMOTE_BYTES };

void remote_begin(struct wire *w, enum remote_message what, uint64_t job);

struct remote;

struct remote_options {
    const struct remote_link *link;    /* borrowed */
    const char *dir;               /* the spool; NULL: /tmp */
    uint64_t window;               /* 0: 256 KiB; at least REMOTE_CREDIT */
};

/* From now on the front is heard; jobs are refused until remote_start. */
status remote_create(const struct remote_options *o, struct remote **out, struct err *e);
/* Jobs may come. audio NULL: transcriptions are refused. Both are borrowed until remote_destroy. */
void remote_start(struct remote *r, struct api *api, struct api_audio *audio);
/* Loading failed, for this reason. */
void remote_failed(struct remote *r, const struct err *why);
/* Until the front says STOP. E_DEVICE: it cannot be heard any more. */
status remote_wait(struct remote *r, struct err *e);
/* Before the service closes: cancels what is left and waits for it. Afterwards the service, the audio and the api may go,
 * then remote_destroy. */
void remote_stop(struct remote *r);
void remote_destroy(struct remote **r);

/* loader_options.files with files_self == the struct remote: the front's store. */
status remote_files(void *remote, const char *key, const char *id, const char *name, struct media_source *out,
                    struct err *e);
/* A counter or histogram of the front's grows (http/metrics.h): label [n]. Any thread. */
void remote_metric(void *remote, uint32_t which, const char *const *label, uint32_t n, double v);

#endif
