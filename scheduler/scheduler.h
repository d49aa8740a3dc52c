/* scheduler/scheduler.h - who runs next. Pure book-keeping over a page pool: it runs nothing and reads no clock, so the
 * engine, a simulation and a property test drive the same code.
 *
 *   sched_add       a prepared request waits                       (may say: never, its pages exceed the pool)
 *   sched_next      admits what fits, then names one piece of work  -> the driver does it and reports:
 *     ENCODE        a few tower batches of one request               sched_encoded
 *     PREFILL       one quantum of one group's layer                 sched_quantum, at its end sched_prefilled
 *     DECODE        one token of every running request               sched_decoded
 *   sched_end       a request is over, from any state
 *
 *      WAITING --admit--> ENCODING --> READY --group--> PREFILLING --> DECODING --> OVER
 *         ^-------------------------- preempted (recompute) -----------------'
 *
 * Order. First come first served inside a priority (lower values first). A request that lacks pages or a slot may be
 * passed by later ones that fit, at most overtake_max times; then nobody passes. READY requests march in groups of up
 * to group_rows rows; beside a long group a short one may form and run first, under the same bound.
 * Time. Each quantum is sized so that decode steps come itl_target_s apart: the driver counts work in units of its own
 * (FLOPs), the scheduler learns seconds a unit from what was reported.
 * Pages. Admission reserves sum over layers of ceil((bound + n_new) / page_tokens) for the first choice, and for each
 * further one the pages that it cannot share. What a layer turns out not to need the driver forfeits (sched_forfeit);
 * the next sched_next sees it. Preemption takes pages from running requests of a lower priority only, and only where
 * that admits the one that waits; the driver's `drop` releases their pages and they wait again at their old place.
 * Source: docs/architecture.md (prefill by quanta, failure rules). */
#ifndef SCHEDULER_SCHEDULER_H
#define SCHEDULER_SCHEDULER_H

#include <stdbool.h>

#include "kvcache/pool.h"

struct sched;

enum sched_state { SCHED_NEW, SCHED_WAITING, SCHED_ENCODING, SCHED_READY, SCHED_PREFILLING, SCHED_DECODING, SCHED_OVER };

/* Embedded in the driver's request. */
struct sched_request {
    /* Set before sched_add, then left alone. */
    int priority;
    uint32_t n_choices, n_new;     /* sequences after prefill; tokens of each answer at most              */
    const uint32_t *bound;         /* [L] rows that layer l stores of the prompt at most                  */
    uint32_t n_rows;               /* rows entering layer 0 at most                                       */
    bool encodes;                  /* towers must run before prefill                                      */
    void *driver;                  /* the driver's own */

    /* The scheduler's; readable. */
    enum sched_state state;
    struct kv_reservation reservation;     /* the driver takes pages from it */
    uint64_t order;                /* of arrival */
    uint32_t n_pages;              /* demand at admission */
    uint32_t overtaken, n_preempted;
    uint32_t group;                /* PREFILLING: which */
    uint64_t pruned_refused;       /* pages that pruning had freed when it first did not fit; UINT64_MAX: it always did */
    struct sched_request *prev, *next;     /* in its list */
};

struct sched_options {
    uint32_t n_layers;
    uint32_t max_running;          /* sequences admitted at once                                          */
    uint32_t max_waiting;          /* E_BUSY, tag queue_full beyond                                       */
    uint32_t group_rows;           /* rows of a group; a longer request is a group of its own             */
    uint32_t overtake_max;
    double itl_target_s;           /* INFINITY: quanta are never cut for decode                           */
    double step_s;                 /* longest step of encode or prefill, so that arrivals and departures are seen; INFINITY: none */
    bool preempt;                  /* lower priorities may be preempted                                   */
    void *self;                    /* of the two below */
    uint32_t (*reclaim)(void *self, uint32_t n_pages);     /* free cached pages, at least so many if there are; may be NULL */
    void (*drop)(void *self, struct sched_request *r);     /* preempted: release its pages, forget its rows   */
    /* What else a request must have to run, beside pages and a slot; both may be NULL. claim: take it, true also where r has it
     * already; false: not now. Asked last, and given up (unclaim) where r does not run after all. What a request took goes back
     * before it is over or waits again, by the driver. */
    bool (*claim)(void *self, struct sched_request *r);
    void (*unclaim)(void *self, struct sched_request *r);
};

/* What a server runs with where nobody says otherwise: n_layers, max_waiting and the driver's functions are the caller's. */
struct sched_options sched_defaults(void);

/* The pool is borrowed. */
status sched_create(const struct sched_options *o, struct kv_pool *pool, struct sched **out, struct err *e);
void sched_destroy(struct sched **s);      /* every request must be over */

/* Pages of a request over n_layers layers: what admission will reserve. */
uint64_t sched_demand(const struct kv_pool *pool, uint32_t n_layers, const struct sched_request *r);

/* r must stay where it is until sched_end. E_FULL, tag insufficient_memory: can never fit (both numbers); E_BUSY. */
status sched_add(struct sched *s, struct sched_request *r, struct err *e);

enum sched_kind { SCHED_NOTHING, SCHED_ENCODE, SCHED_PREFILL, SCHED_DECODE };
#define SCHED_GROUPS 2

struct sched_step {
    enum sched_kind kind;
    struct sched_request *one;     /* ENCODE */
    uint32_t group;                /* PREFILL: 0..SCHED_GROUPS-1 */
    bool begins;                   /* PREFILL: the group is new: its members are in list */
    struct sched_request **list;   /* [n] PREFILL that begins, DECODE; valid until the next call */
    uint32_t n;
    double max_work;               /* ENCODE, PREFILL: do about so much; INFINITY: no limit */
};

/* What to do now. `now`: seconds of any steady clock. */
void sched_next(struct sched *s, double now, struct sched_step *out);

/* Reports. `now` is the time of the report; `took` the seconds that the work took. */
void sched_encoded(struct sched *s, struct sched_request *r, bool done, double work, double took);
void sched_quantum(struct sched *s, uint32_t group, double work, double took);
/* Work that a group still has before it, as far as known: for the choice between groups. */
void sched_group_left(struct sched *s, uint32_t group, double work);
/* The group is done; members that did not end meanwhile decode from now on. */
void sched_prefilled(struct sched *s, uint32_t group, double now);
void sched_decoded(struct sched *s, double now, double took);

/* Pages promised to r that a layer did not need; pruned: because tokens were dropped. */
void sched_forfeit(struct sched *s, struct sched_request *r, uint32_t n_pages, bool pruned);

/* From layer `from` on r stores no more than `rows` rows of its prompt: bound ([n_layers], r's own) is lowered, and what was
 * promised for more goes back as pruned. */
void sched_tighten(struct sched *s, struct sched_request *r, uint32_t *bound, uint32_t from, uint32_t rows);

/* Pages that r held and gave back because their tokens were dropped (trim); for the count alone. */
void sched_pruned(struct sched *s, uint32_t n_pages);

/* Over, from any state; gives back what is left of its promise. Its pages are the driver's to release, before. The
 * driver ends what fails or is cancelled between two steps; a member of a marching group leaves it. */
void sched_end(struct sched *s, struct sched_request *r);

struct sched_counts {
    uint32_t n_waiting, n_encoding, n_ready, n_prefilling, n_decoding, n_sequences;
    uint64_t n_admitted, n_admitted_by_freed, n_preempted, n_overtakes, pages_pruned;
    uint64_t n_quanta, n_decode_steps;
    double decode_s, quantum_s;    /* expected of the next */
};
void sched_read(const struct sched *s, struct sched_counts *out);

/* Aborts with what is wrong: lists and states agree, sequences are counted right, nobody waits behind overtake_max
 * passers, the pool's own invariants. O(requests + pages). */
void sched_check(const struct sched *s);

#endif
