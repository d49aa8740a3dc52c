/* engine/loop.c - the scheduler's steps, done: see scheduler/scheduler.h and inside.h. One loop at a time per engine,
 * one thread at a time per loop.
 *
 * A device may still be at work when a step's call returns, so steps are timed by the device itself (ops->time_begin) and told to the
 * scheduler when they are over. The loop is at most AHEAD quanta before the device, so cancels and arrivals are seen; and what is still
 * to be done counts as time gone by, so decode steps come when they should. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"

#define AHEAD 2

/* A quantum (work > 0) or a decode step that is being timed. */
struct timed { uint32_t group; double work; };

struct loop {
    struct engine *en;
    struct timed timed[OPS_TIMES]; /* [n_timed] the oldest first */
    uint32_t n_timed;
    double unit, until;            /* seconds of a unit of work, of the last quantum that is over; when those under way will be */
    struct sched *s;
    struct loop_options o;
    struct eng_request **list;     /* of the step; requests leave the scheduler's lists while it is worked on */
    size_t list_cap;
};

static uint32_t reclaim(void *self, uint32_t n_pages)
{
    struct loop *lp = self;
    return lp->en->prefixes ? kv_prefix_reclaim(lp->en->prefixes, n_pages) : 0;
}

/* Preempted: all it has goes but its tokens and what it needs to come back. */
static void drop(void *self, struct sched_request *sr)
{
    struct loop *lp = self;
    struct eng_request *r = sr->driver;
    request_drop_pages(lp->en, r);
    memory_park(lp->en, r);
    for (uint32_t i = 0; i < r->n_choices; i++) r->choice[i].n_played = 0;
    sr->n_pages = (uint32_t)sched_demand(lp->en->pool, decoder_shape(lp->en->dec)->L, sr);   /* pruning may have shown that less will do */
    sr->encodes = !r->encoded && r->prompt.n_av > 0;
}

static bool claim(void *self, struct sched_request *sr) { return memory_claim(((struct loop *)self)->en, sr->driver); }
static void unclaim(void *self, struct sched_request *sr) { memory_return(((struct loop *)self)->en, sr->driver); }

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

status loop_create(struct engine *en, const struct loop_options *o, struct loop **out, struct err *e)
{
    struct loop *lp;
    TRY(mem_alloc(&lp, 1, sizeof *lp, e));
    *lp = (struct loop){ .en = en, .o = *o };
    const bool planned = en->ops->reserve != NULL;
    struct sched_options so = { .n_layers = decoder_shape(en->dec)->L, .max_running = o->max_running,
                                      .max_waiting = o->max_waiting, .group_rows = o->group_rows,
                                      .overtake_max = o->overtake_max, .itl_target_s = o->itl_target_s, .step_s = o->step_s,
                                      .preempt = o->preempt, .self = lp, .reclaim = reclaim, .drop = drop };
    if (planned) {
        so.max_running = least(so.max_running, en->plan.seqs);
        so.group_rows = least(so.group_rows, en->plan.rows);
        so.claim = claim;
        so.unclaim = unclaim;
    }
    status st = sched_create(&so, en->pool, &lp->s, e);
    for (double left = 0; st == OK && !isnan(left);) st = en->ops->time_read(en->st, true, &left, e);      /* of a loop before */
    if (st != OK) {
        sched_destroy(&lp->s);
        free(lp);
        return st;
    }
    en->sched = lp->s;
    *out = lp;
    return OK;
}

void loop_destroy(struct engine *en, struct loop **plp)
{
    struct loop *lp = *plp;
    if (lp == NULL) return;
    en->sched = NULL;
    sched_destroy(&lp->s);
    free(lp->list);
    free(lp);
    *plp = NULL;
}

struct sched *loop_sched(struct loop *lp) { return lp->s; }

status loop_add(struct loop *lp, struct eng_request *r, struct err *e) { return sched_add(lp->s, &r->sched, e); }

/* All choices have ended: pages home, watchers told. */
static void over(struct loop *lp, struct eng_request *r)
{
    if (r->over) return;
    r->over = true;
    march_leave(lp->en, r);
    request_give_back(lp->en, r);
    sched_end(lp->s, &r->sched);
    if (r->watch.ended) r->watch.ended(r->watch.self);
}

void loop_end(struct loop *lp, struct eng_request *r, enum eng_finish how, const struct err *why)
{
    for (uint32_t i = 0; i < r->n_choices; i++) choice_end(lp->en, &r->choice[i], how, why);
    over(lp, r);
}

static void fail_one(void *self, struct eng_request *r, const struct err *why) { loop_end(self, r, ENG_FAILED, why); }

/* The step's requests, in a list that stays. */
static status take_list(struct loop *lp, const struct sched_step *step, struct err *e)
{
    TRY(mem_grow(&lp->list, &lp->list_cap, step->n, sizeof *lp->list, e));
    for (uint32_t i = 0; i < step->n; i++) lp->list[i] = step->list[i]->driver;
    return OK;
}

/* What came of work for n requests of the list: a device that failed and an interrupt end the whole run, any other failure
 * those n. */
static status settle(struct loop *lp, uint32_t n, status st, const struct err *why, struct err *e)
{
    if (st == E_DEVICE || st == E_CANCELLED) {
        *e = *why;
        return st;
    }
    for (uint32_t i = 0; st != OK && i < n; i++)
        if (!lp->list[i]->over) loop_end(lp, lp->list[i], ENG_FAILED, why);
    return OK;
}

static void told(struct loop *lp, uint32_t rows)
{
    if (lp->o.on_step && rows) lp->o.on_step(lp->o.self, rows);
}

static status do_encode(struct loop *lp, const struct sched_step *step, struct err *e)
{
    struct eng_request *r = step->one->driver;
    const double start = clock_s();
    struct err why;
    double work;
    bool done;
    TRY(mem_grow(&lp->list, &lp->list_cap, 1, sizeof *lp->list, e));
    lp->list[0] = r;
    if (r->watch.admitted) r->watch.admitted(r->watch.self);
    const status st = encode_some(lp->en, r, step->max_work, &work, &done, &why);
    if (st != OK) return settle(lp, 1, st, &why, e);
    sched_encoded(lp->s, &r->sched, done, work, clock_s() - start);
    if (r->watch.progress && r->n_parts) r->watch.progress(r->watch.self, 0.5 * r->enc_part / r->n_parts);
    return OK;
}

/* Members of the group that are still there: *n of them, in the list. */
static status list_members(struct loop *lp, uint32_t group, uint32_t *n, struct err *e)
{
    TRY(mem_grow(&lp->list, &lp->list_cap, march_members(lp->en, group, NULL), sizeof *lp->list, e));
    *n = march_members(lp->en, group, lp->list);
    return OK;
}

/* Tell the scheduler of steps that are over; while there are `most` or more, wait. */
static status tell_times(struct loop *lp, uint32_t most, struct err *e)
{
    struct engine *en = lp->en;
    while (lp->n_timed > 0) {
        const struct timed t = lp->timed[0];
        double took;
        TRY(en->ops->time_read(en->st, lp->n_timed >= most, &took, e));
        if (isnan(took)) return OK;
        memmove(lp->timed, lp->timed + 1, --lp->n_timed * sizeof *lp->timed);
        if (t.work > 0) {
            lp->unit = took / t.work;
            sched_quantum(lp->s, t.group, t.work, took);
        } else {
            sched_decoded(lp->s, clock_s(), took);
        }
    }
    return OK;
}

/* The time at which what is asked for next may begin. */
static double next_time(const struct loop *lp)
{
    const double now = clock_s();
    return lp->n_timed > 0 && lp->until > now ? lp->until : now;
}

static status end_time(struct loop *lp, uint32_t group, double work, struct err *e)
{
    TRY(lp->en->ops->time_end(lp->en->st, e));
    lp->until = next_time(lp) + lp->unit * work;
    lp->timed[lp->n_timed++] = (struct timed){ group, work };
    return OK;
}

static status do_prefill(struct loop *lp, const struct sched_step *step, struct err *e)
{
    struct engine *en = lp->en;
    struct err why;
    double work, left;
    bool done;
    TRY(tell_times(lp, AHEAD, e));
    TRY(en->ops->time_begin(en->st, e));
    if (step->begins) {
        TRY(take_list(lp, step, e));
        for (uint32_t i = 0; i < step->n; i++)
            if (lp->list[i]->watch.admitted) lp->list[i]->watch.admitted(lp->list[i]->watch.self);
        const status st = march_begin(en, step->group, lp->list, step->n, fail_one, lp, &why);
        if (st != OK) {
            TRY(settle(lp, step->n, st, &why, e));
            sched_prefilled(lp->s, step->group, clock_s());
            return OK;
        }
    }
    uint32_t n;
    TRY(list_members(lp, step->group, &n, e));
    const double rows = lp->o.quantum_rows ? march_row_work(en, lp->o.quantum_rows) : INFINITY;
    status st = march_some(en, step->group, step->max_work < rows ? step->max_work : rows, &work, &left, &done, fail_one, lp, &why);
    const double now = clock_s();
    told(lp, march_rows(en, step->group));
    if (st != OK) {
        TRY(settle(lp, n, st, &why, e));
        sched_prefilled(lp->s, step->group, now);
        return OK;
    }
    if (work > 0) TRY(end_time(lp, step->group, work, e));
    TRY(tell_times(lp, UINT32_MAX, e));
    sched_group_left(lp->s, step->group, left);
    const double part = march_progress(en, step->group, NULL);
    for (uint32_t i = 0; i < n && !done; i++)
        if (!lp->list[i]->over && lp->list[i]->watch.progress)
            lp->list[i]->watch.progress(lp->list[i]->watch.self, 0.5 + 0.5 * part);
    if (!done) return OK;
    sched_prefilled(lp->s, step->group, now);
    for (uint32_t i = 0; i < n; i++)           /* answers of one token */
        if (!lp->list[i]->over && lp->list[i]->n_open == 0) over(lp, lp->list[i]);
    return OK;
}

static status do_decode(struct loop *lp, const struct sched_step *step, struct err *e)
{
    struct err why;
    uint32_t rows = 0;
    TRY(take_list(lp, step, e));
    TRY(lp->en->ops->time_begin(lp->en->st, e));
    const status st = decode_step(lp->en, lp->list, step->n, &rows, fail_one, lp, &why);
    TRY(end_time(lp, 0, 0, e));
    TRY(settle(lp, step->n, st, &why, e));
    told(lp, rows);
    TRY(tell_times(lp, 1, e));     /* its tokens are here: what came before it is over too */
    for (uint32_t i = 0; i < step->n; i++)
        if (!lp->list[i]->over && lp->list[i]->n_open == 0) over(lp, lp->list[i]);
    return OK;
}

status loop_step(struct loop *lp, bool *idle, struct err *e)
{
    struct sched_step step;
    *idle = false;
    if (lp->en->interrupted) return err_set(e, E_CANCELLED, "interrupted");
    sched_next(lp->s, next_time(lp), &step);
    switch (step.kind) {
    case SCHED_ENCODE: return do_encode(lp, &step, e);
    case SCHED_PREFILL: return do_prefill(lp, &step, e);
    case SCHED_DECODE: return do_decode(lp, &step, e);
    case SCHED_NOTHING: break;
    }
    *idle = true;
    return OK;
}

/* ---- requests that are all there from the start ------------------------------------------------------------ */

#define GROUP_ROWS 16384           /* rows that march together; a longer prompt is a group of its own */

static status run_all(struct loop *lp, struct eng_request **reqs, uint32_t n, struct err *e)
{
    for (uint32_t i = 0; i < n; i++) {
        struct err why;
        if (reqs[i]->over) continue;
        if (loop_add(lp, reqs[i], &why) != OK) loop_end(lp, reqs[i], ENG_FAILED, &why);
    }
    for (bool idle = false; !idle;) TRY(loop_step(lp, &idle, e));
    return OK;
}

status eng_run(struct engine *en, struct eng_request **reqs, uint32_t n, struct err *e)
{
    struct loop *lp = NULL;
    struct err why = { 0 };
    const struct loop_options o = { .max_running = UINT32_MAX, .max_waiting = UINT32_MAX, .group_rows = GROUP_ROWS,
                                    .itl_target_s = INFINITY, .step_s = INFINITY };
    for (uint32_t i = 0; i < n; i++) reqs[i]->started = clock_s();
    status st = loop_create(en, &o, &lp, &why);
    if (st == OK) st = run_all(lp, reqs, n, &why);
    en->interrupted = 0;           /* consumed: one interrupt ends one run */
    const enum eng_finish how = st == E_CANCELLED ? ENG_CANCELLED : ENG_FAILED;
    for (uint32_t i = 0; i < n; i++) {
        if (reqs[i]->over) continue;
        if (lp) loop_end(lp, reqs[i], how, &why);
        else {
            choice_end(en, &reqs[i]->choice[0], how, &why);
            request_give_back(en, reqs[i]);
            reqs[i]->over = true;
        }
    }
    loop_destroy(en, &lp);
    if (st != E_DEVICE) return OK;
    if (e) *e = why;
    return st;
}
