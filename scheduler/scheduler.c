/* scheduler/scheduler.c - see scheduler.h. */
#include "scheduler/scheduler.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"

#define LEARN 0.3                  /* weight of the newest measurement                                     */
#define AIM 0.75                   /* of the target between two tokens: quanta take more and less than foreseen, and few may miss it */
#define SHARE_MIN 0.25             /* of the target: prefill's least share of the time between two tokens   */
#define SHORT_SHARE 0.25           /* a group this much shorter than the one that marches may go first      */
#define GUESS_S 1e-11              /* seconds a unit of work before anything was measured                   */

struct list { struct sched_request *head, *tail; uint32_t n; };

struct sched_group {
    bool live;
    uint32_t n, overtaken;
    double work_left;              /* NAN: the driver has not said */
    struct list member;
};

struct sched {
    struct sched_options o;
    struct kv_pool *pool;
    struct list waiting, encoding, ready, decoding;
    struct sched_group group[SCHED_GROUPS];
    uint64_t next_order;
    uint32_t n_sequences;
    double encode_unit, prefill_unit, decode_s;    /* seconds a unit; seconds a step: learned */
    double last_quantum_s;
    double token_at;               /* when the running requests last got their tokens */
    struct sched_request **list;   /* of the step handed out */
    size_t list_cap;
    struct sched_counts counts;
};

/* ---- lists ------------------------------------------------------------------------------------------------ */

static void list_insert(struct list *l, struct sched_request *r, struct sched_request *before)
{
    r->next = before;
    r->prev = before ? before->prev : l->tail;
    if (r->prev) r->prev->next = r;
    else l->head = r;
    if (before) before->prev = r;
    else l->tail = r;
    l->n++;
}

static void list_remove(struct list *l, struct sched_request *r)
{
    if (r->prev) r->prev->next = r->next;
    else l->head = r->next;
    if (r->next) r->next->prev = r->prev;
    else l->tail = r->prev;
    r->prev = r->next = NULL;
    l->n--;
}

static bool before(const struct sched_request *a, const struct sched_request *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->order < b->order;
}

/* By priority and arrival. */
static void list_sort_in(struct list *l, struct sched_request *r)
{
    struct sched_request *at = l->tail;        /* newcomers belong near the end */
    while (at && before(r, at)) at = at->prev;
    list_insert(l, r, at ? at->next : l->head);
}

static struct list *list_of(struct sched *s, const struct sched_request *r)
{
    switch (r->state) {
    case SCHED_WAITING: return &s->waiting;
    case SCHED_ENCODING: return &s->encoding;
    case SCHED_READY: return &s->ready;
    case SCHED_PREFILLING: return &s->group[r->group].member;
    case SCHED_DECODING: return &s->decoding;
    default: return NULL;
    }
}

static void move(struct sched *s, struct sched_request *r, enum sched_state to)
{
    struct list *from = list_of(s, r);
    if (from) list_remove(from, r);
    r->state = to;
    struct list *l = list_of(s, r);
    if (l) list_sort_in(l, r);
}

/* ---- life ------------------------------------------------------------------------------------------------- */

struct sched_options sched_defaults(void)
{
    return (struct sched_options){ .max_running = 32, .max_waiting = UINT32_MAX, .group_rows = 8192, .overtake_max = 16,
                                   .itl_target_s = 0.05, .step_s = 0.05, .preempt = true };  /* cancels wait for no longer than a step */
}

status sched_create(const struct sched_options *o, struct kv_pool *pool, struct sched **out, struct err *e)
{
    struct sched *s;
    if (o->n_layers == 0 || o->max_running == 0 || o->group_rows == 0)
        return err_set(e, E_ARG, "a scheduler of %u layers, %u running requests and groups of %u rows: all must be above 0",
                       o->n_layers, o->max_running, o->group_rows);
    TRY(mem_alloc(&s, 1, sizeof *s, e));
    s->o = *o;
    s->pool = pool;
    s->encode_unit = s->prefill_unit = GUESS_S;
    *out = s;
    return OK;
}

void sched_destroy(struct sched **ps)
{
    struct sched *s = *ps;
    if (s == NULL) return;
    assert(s->waiting.n + s->encoding.n + s->ready.n + s->decoding.n == 0);
    free(s->list);
    free(s);
    *ps = NULL;
}

uint64_t sched_demand(const struct kv_pool *pool, uint32_t n_layers, const struct sched_request *r)
{
    uint64_t pages = 0;
    for (uint32_t l = 0; l < n_layers; l++) {
        const uint64_t rows = (uint64_t)r->bound[l] + r->n_new;
        if (rows > UINT32_MAX) return UINT64_MAX;
        pages += kv_pages_of(pool, (uint32_t)rows);
        /* A further choice shares the prompt's full pages; its own begin with a copy of the last, partly filled one. */
        pages += (uint64_t)(r->n_choices - 1) * (kv_pages_of(pool, r->n_new) + 1);
    }
    return pages;
}

status sched_add(struct sched *s, struct sched_request *r, struct err *e)
{
    assert(r->state == SCHED_NEW && r->n_choices > 0);
    const uint64_t pages = sched_demand(s->pool, s->o.n_layers, r);
    if (pages > kv_n_total(s->pool)) {
        err_set(e, E_FULL, "the request needs %llu pages of KV and the pool has %u", (unsigned long long)pages,
                kv_n_total(s->pool));
        return err_tag(e, "insufficient_memory", NULL);
    }
    if (r->n_choices > s->o.max_running) {
        err_set(e, E_ARG, "%u choices are asked for and at most %u sequences run at once", r->n_choices, s->o.max_running);
        return err_tag(e, "invalid_value", "n");
    }
    if (s->waiting.n >= s->o.max_waiting) {
        err_set(e, E_BUSY, "%u requests wait already, the most that may: try again later", s->waiting.n);
        return err_tag(e, "queue_full", NULL);
    }
    r->n_pages = (uint32_t)pages;
    r->order = s->next_order++;
    r->overtaken = 0;
    r->pruned_refused = UINT64_MAX;
    r->state = SCHED_WAITING;
    list_sort_in(&s->waiting, r);
    return OK;
}

void sched_forfeit(struct sched *s, struct sched_request *r, uint32_t n_pages, bool pruned)
{
    kv_forfeit(s->pool, &r->reservation, n_pages);
    if (pruned) s->counts.pages_pruned += n_pages;
}

void sched_tighten(struct sched *s, struct sched_request *r, uint32_t *bound, uint32_t from, uint32_t rows)
{
    uint32_t pages = 0;
    for (uint32_t l = from; l < s->o.n_layers; l++) {
        if (bound[l] <= rows) continue;
        pages += kv_pages_of(s->pool, bound[l] + r->n_new) - kv_pages_of(s->pool, rows + r->n_new);
        bound[l] = rows;
    }
    if (pages) sched_forfeit(s, r, pages, true);
}

void sched_pruned(struct sched *s, uint32_t n_pages) { s->counts.pages_pruned += n_pages; }

void sched_end(struct sched *s, struct sched_request *r)
{
    if (r->state == SCHED_OVER || r->state == SCHED_NEW) return;
    if (r->state != SCHED_WAITING) s->n_sequences -= r->n_choices;
    if (r->state == SCHED_PREFILLING) s->group[r->group].n--;
    kv_forfeit_all(s->pool, &r->reservation);
    move(s, r, SCHED_OVER);
}

/* ---- admission -------------------------------------------------------------------------------------------- */

static uint32_t room(const struct sched *s) { return kv_n_free(s->pool) - kv_n_reserved(s->pool); }

static void admit(struct sched *s, struct sched_request *r)
{
    struct err none;
    const uint32_t had = room(s);
    if (kv_reserve(s->pool, r->n_pages, &r->reservation, &none) != OK) abort();    /* the caller has looked */
    s->n_sequences += r->n_choices;
    s->counts.n_admitted++;
    /* Would it still be waiting if pruning had given nothing back since it was refused? */
    if (r->pruned_refused != UINT64_MAX) {
        const uint64_t freed = s->counts.pages_pruned - r->pruned_refused;
        if (freed > 0 && had < freed + r->n_pages) s->counts.n_admitted_by_freed++;
    }
    for (struct sched_request *w = s->waiting.head; w != r; w = w->next) {
        w->overtaken++;
        s->counts.n_overtakes++;
    }
    move(s, r, r->encodes ? SCHED_ENCODING : SCHED_READY);
}

static bool make_room(struct sched *s, struct sched_request *r)
{
    const uint32_t have = room(s);
    if (have >= r->n_pages) return true;
    if (s->o.reclaim) s->o.reclaim(s->o.self, r->n_pages - have);
    return room(s) >= r->n_pages;
}

/* The last to have come, of the lowest priority below that of r, among those that may be dropped. */
static struct sched_request *victim(struct sched *s, const struct sched_request *r)
{
    struct list *from[] = { &s->decoding, &s->ready, &s->encoding };
    struct sched_request *worst = NULL;
    for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
        struct sched_request *t = from[i]->tail;
        if (t && t->priority > r->priority && (worst == NULL || before(worst, t))) worst = t;
    }
    return worst;
}

static void preempt(struct sched *s, struct sched_request *v)
{
    s->o.drop(s->o.self, v);
    kv_forfeit_all(s->pool, &v->reservation);
    s->n_sequences -= v->n_choices;
    v->n_preempted++;
    v->pruned_refused = UINT64_MAX;
    s->counts.n_preempted++;
    move(s, v, SCHED_WAITING);
}

static bool claim(struct sched *s, struct sched_request *r) { return s->o.claim == NULL || s->o.claim(s->o.self, r); }

/* Take pages and slots from lower priorities until r fits; only where that will do. */
static bool push_aside(struct sched *s, struct sched_request *r)
{
    uint64_t pages = room(s);
    uint32_t slots = s->o.max_running - s->n_sequences;
    struct list *from[] = { &s->decoding, &s->ready, &s->encoding };
    for (size_t i = 0; i < sizeof from / sizeof *from; i++)
        for (const struct sched_request *t = from[i]->head; t; t = t->next)
            if (t->priority > r->priority) {
                pages += t->n_pages;
                slots += t->n_choices;
            }
    if (pages < r->n_pages || slots < r->n_choices) return false;
    if (!claim(s, r)) return false;            /* nobody is pushed aside for one that cannot run */
    struct sched_request *v;
    while ((room(s) < r->n_pages || s->n_sequences + r->n_choices > s->o.max_running) && (v = victim(s, r)) != NULL)
        preempt(s, v);
    if (make_room(s, r) && s->n_sequences + r->n_choices <= s->o.max_running) return true;
    if (s->o.unclaim) s->o.unclaim(s->o.self, r);
    return false;
}

static bool fits(struct sched *s, struct sched_request *r)
{
    if (s->n_sequences + r->n_choices > s->o.max_running) return false;
    if (make_room(s, r)) return claim(s, r);
    if (r->pruned_refused == UINT64_MAX) r->pruned_refused = s->counts.pages_pruned;
    return false;
}

static void admit_all(struct sched *s)
{
    struct sched_request *r = s->waiting.head, *next;
    uint32_t refused = 0, passed = 0;          /* of those that stay: how many, and how often the worst off was passed */
    for (; r; r = next) {
        next = r->next;
        if (refused > 0 && passed >= s->o.overtake_max) return;
        const bool fit = fits(s, r);
        if (fit || (s->o.preempt && push_aside(s, r))) {
            admit(s, r);
            passed++;
            if (fit) continue;
            next = s->waiting.head;            /* the dropped ones wait again; all of them stand behind r */
            refused = passed = 0;
            continue;
        }
        if (refused == 0 || r->overtaken > passed) passed = r->overtaken;
        refused++;
        if (s->n_sequences >= s->o.max_running && !s->o.preempt) return;
    }
}

/* ---- groups ----------------------------------------------------------------------------------------------- */

static uint32_t n_live(const struct sched *s)
{
    uint32_t n = 0;
    for (uint32_t g = 0; g < SCHED_GROUPS; g++) n += s->group[g].live;
    return n;
}

/* Rows of the READY requests that would form the next group. */
static uint32_t next_rows(const struct sched *s)
{
    uint32_t rows = 0;
    for (const struct sched_request *r = s->ready.head; r && (rows == 0 || rows + r->n_rows <= s->o.group_rows); r = r->next)
        rows += r->n_rows;
    return rows;
}

static void hand_out(struct sched *s, const struct list *l, struct sched_step *out)
{
    if (l->n > s->list_cap) {
        s->list_cap = l->n + 16;
        free(s->list);
        s->list = mem_must(s->list_cap, sizeof *s->list);
    }
    out->n = 0;
    for (struct sched_request *r = l->head; r; r = r->next) s->list[out->n++] = r;
    out->list = s->list;
}

static void begin_group(struct sched *s, uint32_t g, struct sched_step *out)
{
    struct sched_group *group = &s->group[g];
    *group = (struct sched_group){ .live = true, .work_left = NAN };
    uint32_t rows = 0;
    while (s->ready.head && (group->n == 0 || rows + s->ready.head->n_rows <= s->o.group_rows)) {
        struct sched_request *r = s->ready.head;
        rows += r->n_rows;
        r->group = g;
        move(s, r, SCHED_PREFILLING);
        group->n++;
    }
    hand_out(s, &group->member, out);
    out->begins = true;
}

/* The group to march: the one with less before it, unless it has passed the other too often. */
static uint32_t pick_group(struct sched *s)
{
    uint32_t pick = SCHED_GROUPS;
    for (uint32_t g = 0; g < SCHED_GROUPS; g++) {
        if (!s->group[g].live) continue;
        if (pick == SCHED_GROUPS || s->group[g].work_left < s->group[pick].work_left) pick = g;
    }
    return pick;
}

/* May a second group form beside the one that marches? */
static bool may_overtake(struct sched *s, uint32_t marching)
{
    struct sched_group *m = &s->group[marching];
    if (isnan(m->work_left) || m->overtaken >= s->o.overtake_max || m->n == 0) return false;
    double rows = 0;
    for (const struct sched_request *r = m->member.head; r; r = r->next) rows += r->n_rows;
    return next_rows(s) < SHORT_SHARE * rows;
}

/* ---- the next step ---------------------------------------------------------------------------------------- */

/* Work that may be done before decode has its turn; 0: decode is due. */
static double work_now(const struct sched *s, double now, double unit)
{
    const double most = s->o.step_s / unit;
    if (s->decoding.n == 0 || !isfinite(s->o.itl_target_s)) return most;
    const double since = now - s->token_at, share = AIM * s->o.itl_target_s - s->decode_s;
    const double least = SHARE_MIN * s->o.itl_target_s;
    const double left = (share > least ? share : least) - since;
    if (left <= 0.1 * least) return 0;
    return left / unit < most ? left / unit : most;
}

void sched_next(struct sched *s, double now, struct sched_step *out)
{
    *out = (struct sched_step){ .kind = SCHED_NOTHING, .max_work = INFINITY };
    admit_all(s);
    const uint32_t live = n_live(s), marching = pick_group(s);
    const bool form = s->ready.n > 0 && (live == 0 || (live < SCHED_GROUPS && may_overtake(s, marching)));
    const bool prefill = live > 0 || form, encode = s->encoding.n > 0;
    if (prefill || encode) {
        out->max_work = work_now(s, now, prefill ? s->prefill_unit : s->encode_unit);
        if (out->max_work > 0) {
            if (!prefill) {
                out->kind = SCHED_ENCODE;
                out->one = s->encoding.head;
                return;
            }
            out->kind = SCHED_PREFILL;
            out->group = marching;
            if (form) {
                uint32_t g = 0;
                while (s->group[g].live) g++;
                if (live > 0) s->group[marching].overtaken++;
                out->group = g;
                begin_group(s, g, out);
            }
            return;
        }
    }
    if (s->decoding.n == 0) return;
    out->kind = SCHED_DECODE;
    hand_out(s, &s->decoding, out);
}

/* ---- reports ---------------------------------------------------------------------------------------------- */

static void learn(double *unit, double work, double took)
{
    if (work <= 0 || took <= 0) return;
    const double got = took / work;
    *unit = *unit == GUESS_S ? got : (1 - LEARN) * *unit + LEARN * got;
}

void sched_encoded(struct sched *s, struct sched_request *r, bool done, double work, double took)
{
    learn(&s->encode_unit, work, took);
    if (done && r->state == SCHED_ENCODING) move(s, r, SCHED_READY);
}

void sched_quantum(struct sched *s, uint32_t group, double work, double took)
{
    (void)group;
    learn(&s->prefill_unit, work, took);
    s->last_quantum_s = took;
    s->counts.n_quanta++;
}

void sched_group_left(struct sched *s, uint32_t group, double work) { s->group[group].work_left = work; }

void sched_prefilled(struct sched *s, uint32_t group, double now)
{
    struct sched_group *g = &s->group[group];
    if (s->decoding.n == 0) s->token_at = now;
    while (g->member.head) move(s, g->member.head, SCHED_DECODING);
    *g = (struct sched_group){ 0 };
}

void sched_decoded(struct sched *s, double now, double took)
{
    s->token_at = now;
    s->decode_s = s->decode_s == 0 ? took : (1 - LEARN) * s->decode_s + LEARN * took;
    s->counts.n_decode_steps++;
}

/* ---- watching --------------------------------------------------------------------------------------------- */

void sched_read(const struct sched *s, struct sched_counts *out)
{
    *out = s->counts;
    out->n_waiting = s->waiting.n;
    out->n_encoding = s->encoding.n;
    out->n_ready = s->ready.n;
    for (uint32_t g = 0; g < SCHED_GROUPS; g++) out->n_prefilling += s->group[g].n;
    out->n_decoding = s->decoding.n;
    out->n_sequences = s->n_sequences;
    out->decode_s = s->decode_s;
    out->quantum_s = s->last_quantum_s;
}

static void broken(const char *what)
{
    fprintf(stderr, "scheduler: %s\n", what);
    abort();
}

static uint32_t check_list(const struct list *l, enum sched_state state, uint64_t *reserved)
{
    uint32_t n = 0, sequences = 0;
    for (const struct sched_request *r = l->head; r; r = r->next) {
        n++;
        sequences += r->n_choices;
        *reserved += r->reservation.n_pages;
        if (r->state != state) broken("a request is in a list that is not of its state");
        if (r->next && !before(r, r->next)) broken("a list is out of order");
        if (r->next ? r->next->prev != r : l->tail != r) broken("a list is torn");
    }
    if (n != l->n) broken("a list is counted wrong");
    return sequences;
}

void sched_check(const struct sched *s)
{
    uint64_t reserved = 0, waiting = 0;
    check_list(&s->waiting, SCHED_WAITING, &waiting);
    if (waiting != 0) broken("a waiting request holds a promise");
    uint32_t n = check_list(&s->encoding, SCHED_ENCODING, &reserved);
    n += check_list(&s->ready, SCHED_READY, &reserved);
    n += check_list(&s->decoding, SCHED_DECODING, &reserved);
    for (uint32_t g = 0; g < SCHED_GROUPS; g++) {
        if (!s->group[g].live && s->group[g].member.n) broken("a group that does not march has members");
        if (s->group[g].n != s->group[g].member.n) broken("a group is counted wrong");
        n += check_list(&s->group[g].member, SCHED_PREFILLING, &reserved);
    }
    if (n != s->n_sequences || n > s->o.max_running) broken("sequences are counted wrong");
    if (reserved != kv_n_reserved(s->pool)) broken("promises of the pool and of the requests differ");
    for (const struct sched_request *r = s->waiting.head; r; r = r->next)
        if (r->overtaken > s->o.overtake_max) broken("a request was passed more often than it may be");
    kv_pool_check(s->pool);
}
