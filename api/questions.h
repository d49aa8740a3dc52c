/* api/questions.h - the questions of transcriptions (engine/question.h) over groups: each goes to the group that has the
 * fewest, and comes back as what one process would have been answered, bit for bit.
 *
 *   questions_create             rank 0, when the local group is there
 *     questions_join             a run; the longest first
 *     transcribe_options.by      questions_by of it
 *     questions_part
 *   questions_destroy
 *
 * So many windows at once as all groups that are there have places. A free place is the window's of the run that joined with
 * the lowest `turn` of those that want one: then the longest sound is never behind. A group that dies answers nothing: its
 * questions end with group_lost and are asked again (engine/ask.c). */
#ifndef API_QUESTIONS_H
#define API_QUESTIONS_H

#include <pthread.h>

#include "api/api.h"
#include "engine/question.h"

struct wire;
struct questions;
struct questions_run { struct questions *of; uint32_t turn; bool wants; struct questions_run *next; };

/* at_once: windows of one group. api, with groups, is borrowed. */
struct questions *questions_create(struct api *api, uint32_t at_once);
void questions_destroy(struct questions **q);
/* Places of all groups that are there now. */
uint32_t questions_places(struct questions *q);

/* r stays where it is until questions_part, which comes after transcribe_run. */
void questions_join(struct questions *q, uint32_t turn, struct questions_run *r);
void questions_part(struct questions_run *r);
struct questioned questions_by(struct questions_run *r);

/* ---- what crosses (api/remote.h) ------------------------------------------------------------------------------------ */

void questions_put(struct wire *w, const struct question *q);
void questions_put_answer(struct wire *w, const struct answer *a);
/* E_INTERNAL: what came is none. */
status questions_get_answer(const uint8_t *bytes, size_t n, struct answer *out, struct err *e);
/* n bytes that questions_put wrote (copied) are asked of the service of a, as question_ask. */
status questions_ask(struct api *a, const void *bytes, size_t n, question_answered answered, void *self, uint64_t *id,
                     struct err *e);
void questions_cancel(struct api *a, uint64_t id);

#endif
