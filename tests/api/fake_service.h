/* tests/api/fake_service.h - a service without an engine thread: what is submitted is answered by a script of events, on a
 * thread of its own, as engine/service.h promises. Around a real engine (the bundled model), for names and tokens. */
#ifndef FAKE_SERVICE_H
#define FAKE_SERVICE_H

#include "api/api.h"

struct fake_step {
    enum service_event_kind kind;  /* anything but DONE, which comes last by itself */
    uint32_t choice;
    const char *text;              /* TEXT */
    int32_t id[4];                 /* TEXT: tokens, 0 ends them */
    enum eng_finish finish;        /* CHOICE */
};

struct fake_script {
    const struct fake_step *step;  /* [n_step]; those of choices that were not asked for are left out */
    uint32_t n_step;
    status refuse;                 /* submit says this, with `tag`, from request number `refuse_from` on */
    uint32_t refuse_from;
    status fail;                   /* DONE says this after all steps, with `tag` */
    const char *tag;
    uint64_t fail_only;            /* ... of this request (the n-th of all, from 1) alone; 0: of all */
    bool hold;                     /* after the steps wait for a cancel, unless it fails */
    bool pruned;                   /* a film with sound, dropped from layer to layer: see fake_service.c */
    uint32_t n_prompt;             /* text tokens of the prompt; 0: 5 */
    void (*look)(void *self, const struct service_request *rq);    /* at each request, on its thread; may be NULL */
    void *self;
};

/* The service to hand to api_options, with fake_calls. script is borrowed and may be changed between requests. */
struct service *fake_open(const struct engine *en, const struct fake_script *script);
/* Waits for all requests. */
void fake_close(struct service **s);
extern const struct api_calls fake_calls;

struct fake_seen { uint32_t n_submitted, n_cancelled, n_owners_freed, n_drained; };
/* What service_read says from now on: pages, waiting; zeros at first. */
void fake_gauges(struct service *s, const struct service_gauges *g);
struct fake_seen fake_seen(struct service *s);

/* The bundled model, opened once for the program. */
struct engine *fake_engine(void);

#endif
