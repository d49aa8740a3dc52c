/* api/batch_state.h - what is known of one batch of /v1/batches, as clients see it and as a line of its journal: every
 * change of status appends the whole state, so the last whole line of the journal is what is true. */
#ifndef API_BATCH_STATE_H
#define API_BATCH_STATE_H

#include <jansson.h>

#include "api/batch.h"
#include "api/files.h"

#define BATCH_ID 40                /* "batch_", 32 digits, NUL */

enum batch_status {
    BATCH_VALIDATING,
    BATCH_IN_PROGRESS,
    BATCH_FINALIZING,
    BATCH_COMPLETED,
    BATCH_FAILED,
    BATCH_CANCELLING,
    BATCH_CANCELLED,
    BATCH_EXPIRED,
    BATCH_N_STATUS
};

struct batch_state {
    char id[BATCH_ID];
    char owner[MEDIA_DIGEST_TEXT];
    char endpoint[40];
    char input_file_id[FILES_ID], output_file_id[FILES_ID], error_file_id[FILES_ID];     /* "": none */
    enum batch_status status, ending;      /* ending: the last status to come, once finalizing began; else 0 */
    int64_t created_at, expires_at;
    int64_t at[BATCH_N_STATUS];            /* when each status began; 0: never */
    int64_t output_expires_after;          /* seconds; 0: as batch files do */
    struct batch_counts counts;
    json_t *metadata;                      /* owned; NULL: none */
    json_t *problems;                      /* owned array of {code, line, message, param}; NULL: none */
};
void batch_state_free(struct batch_state *s);

const char *batch_status_name(enum batch_status s);
/* completed, failed, cancelled, expired: nothing changes any more. */
bool batch_is_over(const struct batch_state *s);

/* The batch object of the API. The caller owns the reference. */
json_t *batch_state_json(const struct batch_state *s);
/* A line of the journal, and back. False: it is none; *out is then as it was, else what it had is freed. */
json_t *batch_state_line(const struct batch_state *s);
bool batch_state_read(const json_t *line, struct batch_state *out);

#endif
