/* The scheduler over the real page pool. Method: a driver that runs nothing but keeps real block tables goes through
 * random schedules: arrivals, lengths, choices, priorities, upper bounds that turn out lower, stops, cancellations and
 * failures in every phase, pages held by a cache. After every step the scheduler's and the pool's invariants are checked
 * and every page is counted through the tables; at the end every request has ended once, nobody starved, and every page
 * is home. Then single cases: who may pass, preemption, pages that pruning frees, the time between tokens.
 * SEED=n starts elsewhere, N=n sets how many schedules. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "kvcache/block_table.h"
#include "scheduler/scheduler.h"

enum { L_MAX = 5, REQS = 14, CHOICES = 3, PAGE = 4, CACHED = 12, WORK = 40 };

static uint64_t rng;

static uint32_t below(uint32_t n)
{
    rng += 0x9e3779b97f4a7c15u;
    uint64_t z = rng;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 33) % n;
}

static bool chance(uint32_t percent) { return below(100) < percent; }

/* ---- the driver ---------------------------------------------------------------------------------------------- */

struct fake {
    struct sched_request r;
    uint32_t bound[L_MAX], true_rows[L_MAX];
    struct block_table table[CHOICES][L_MAX];
    bool open[CHOICES], has_tables, ended, marches;
    uint32_t done[CHOICES], total[CHOICES], layer, encode_left, n_ends;
    uint32_t bytes;                /* of work memory until it is prefilled */
    bool claimed;
};

struct world {
    struct kv_pool *pool;
    struct sched *s;
    uint32_t L, n;
    struct fake f[REQS];
    uint32_t cached[CACHED], n_cached;
    struct kv_reservation cache_promise;
    double now;
    bool live[SCHED_GROUPS];
    uint32_t bytes_left, n_refused;
};

/* Work memory, beside pages. */
static bool claim(void *self, struct sched_request *r)
{
    struct world *w = self;
    struct fake *f = r->driver;
    w->n_refused += !f->claimed && f->bytes > w->bytes_left;
    if (f->claimed || f->bytes > w->bytes_left) return f->claimed;
    w->bytes_left -= f->bytes;
    return f->claimed = true;
}

static void unclaim(void *self, struct sched_request *r)
{
    struct world *w = self;
    struct fake *f = r->driver;
    if (f->claimed) w->bytes_left += f->bytes;
    f->claimed = false;
}

/* Who is on the way to its first token has its memory, nobody else has. */
static void check_claims(const struct world *w, uint32_t all, bool claims)
{
    uint32_t held = 0;
    for (uint32_t i = 0; i < w->n; i++) {
        const struct fake *f = &w->f[i];
        const bool on_the_way = f->r.state == SCHED_ENCODING || f->r.state == SCHED_READY || f->r.state == SCHED_PREFILLING;
        assert_int_equal(f->claimed, claims && on_the_way);
        held += f->claimed ? f->bytes : 0;
    }
    assert_int_equal(held + w->bytes_left, all);
}

static void drop_tables(struct world *w, struct fake *f)
{
    for (uint32_t c = 0; c < CHOICES; c++)
        for (uint32_t l = 0; l < w->L; l++) block_table_fini(&f->table[c][l], w->pool);
    f->has_tables = f->marches = false;
}

static uint32_t reclaim(void *self, uint32_t n)
{
    struct world *w = self;
    const uint32_t before = kv_n_free(w->pool);
    while (w->n_cached && kv_n_free(w->pool) - before < n) kv_release(w->pool, w->cached[--w->n_cached]);
    return kv_n_free(w->pool) - before;
}

static void drop(void *self, struct sched_request *r)
{
    struct world *w = self;
    struct fake *f = r->driver;
    drop_tables(w, f);
    unclaim(w, r);
    f->layer = 0;
    for (uint32_t c = 0; c < r->n_choices; c++) f->done[c] = 0;    /* all of it is fed again */
    r->n_pages = (uint32_t)sched_demand(w->pool, w->L, r);
}

static void end(struct world *w, struct fake *f)
{
    assert_false(f->ended);
    drop_tables(w, f);
    unclaim(w, &f->r);
    sched_end(w->s, &f->r);
    assert_int_equal(f->r.state, SCHED_OVER);
    assert_int_equal(f->r.reservation.n_pages, 0);
    f->ended = true;
    f->n_ends++;
}

/* From layer l on no more than rows are stored. */
static void tighten(struct world *w, struct fake *f, uint32_t from, uint32_t rows)
{
    uint32_t pages = 0;
    for (uint32_t l = from; l < w->L; l++) {
        if (f->bound[l] <= rows) continue;
        pages += kv_pages_of(w->pool, f->bound[l] + f->r.n_new) - kv_pages_of(w->pool, rows + f->r.n_new);
        f->bound[l] = rows;
    }
    sched_forfeit(w->s, &f->r, pages, true);
}

static void begin(struct world *w, struct fake *f)
{
    struct err e;
    f->layer = 0;
    f->marches = f->has_tables = true;
    for (uint32_t l = 0; l < w->L; l++)
        assert_int_equal(block_table_init(&f->table[0][l], w->pool, f->bound[l] + f->r.n_new, &e), OK);
}

static void layer(struct world *w, struct fake *f)
{
    const uint32_t l = f->layer++;
    block_table_append(&f->table[0][l], w->pool, &f->r.reservation, f->true_rows[l]);
    if (l + 1 < w->L) tighten(w, f, l + 1, f->true_rows[l + 1]);
}

/* Full pages are shared, the last one copied; sometimes the cache keeps one too. */
static void fork_choices(struct world *w, struct fake *f)
{
    struct err e;
    for (uint32_t c = 1; c < f->r.n_choices; c++)
        for (uint32_t l = 0; f->open[c] && l < w->L; l++) {
            const struct block_table *from = &f->table[0][l];
            struct block_table *t = &f->table[c][l];
            assert_int_equal(block_table_init(t, w->pool, f->bound[l] + f->r.n_new, &e), OK);
            block_table_share(t, w->pool, from->page, from->n_rows / PAGE);
            if (from->n_rows % PAGE) block_table_append(t, w->pool, &f->r.reservation, from->n_rows % PAGE);
        }
    if (w->n_cached < CACHED && f->table[0][0].n_rows >= PAGE && chance(40)) {
        w->cached[w->n_cached++] = f->table[0][0].page[0];
        kv_share(w->pool, f->table[0][0].page[0]);
    }
}

static void prefill(struct world *w, const struct sched_step *step)
{
    const uint32_t g = step->group;
    if (step->begins) {
        assert_false(w->live[g]);
        w->live[g] = true;
        for (uint32_t i = 0; i < step->n; i++) begin(w, step->list[i]->driver);
    }
    bool done = true;
    for (uint32_t i = 0; i < w->n; i++) {
        struct fake *f = &w->f[i];
        if (!f->marches || f->r.state != SCHED_PREFILLING || f->r.group != g) continue;
        if (chance(2)) {
            end(w, f);             /* it fails */
            continue;
        }
        for (uint32_t k = 1 + below(2); k > 0 && f->layer < w->L; k--) layer(w, f);
        done = done && f->layer == w->L;
    }
    w->now += 0.01;
    sched_quantum(w->s, g, 1 + below(100), 0.01);
    sched_group_left(w->s, g, below(1000));
    if (!done) return;
    w->live[g] = false;
    for (uint32_t i = 0; i < w->n; i++)
        if (w->f[i].r.state == SCHED_PREFILLING && w->f[i].r.group == g) {
            fork_choices(w, &w->f[i]);
            unclaim(w, &w->f[i].r);
            w->f[i].marches = false;
        }
    sched_prefilled(w->s, g, w->now);
}

static void decode(struct world *w, const struct sched_step *step)
{
    struct fake *list[REQS];
    const uint32_t n = step->n;
    for (uint32_t i = 0; i < n; i++) list[i] = step->list[i]->driver;
    for (uint32_t i = 0; i < n; i++) {
        struct fake *f = list[i];
        bool open = false;
        for (uint32_t c = 0; c < f->r.n_choices; c++) {
            if (!f->open[c]) continue;
            if (f->done[c] == f->total[c]) f->open[c] = false;
            else {
                for (uint32_t l = 0; l < w->L; l++) block_table_append(&f->table[c][l], w->pool, &f->r.reservation, 1);
                f->done[c]++;
            }
            open = open || f->open[c];
        }
        if (!open || chance(1)) end(w, f);
    }
    w->now += 0.005;
    sched_decoded(w->s, w->now, 0.005);
}

/* Every page is in as many tables as its count says. */
static void count_pages(struct world *w)
{
    uint32_t held = 0, seen[1024] = { 0 };
    for (uint32_t i = 0; i < w->n; i++)
        for (uint32_t c = 0; c < CHOICES; c++)
            for (uint32_t l = 0; l < w->L; l++)
                for (uint32_t p = 0; p < w->f[i].table[c][l].n_pages; p++) seen[w->f[i].table[c][l].page[p]]++;
    for (uint32_t i = 0; i < w->n_cached; i++) seen[w->cached[i]]++;
    for (uint32_t p = 0; p < kv_n_total(w->pool); p++) {
        assert_int_equal(seen[p], kv_count(w->pool, p));
        held += seen[p] > 0;
    }
    assert_int_equal(held + kv_n_free(w->pool), kv_n_total(w->pool));
}

static void arrive(struct world *w)
{
    struct fake *f = &w->f[w->n++];
    struct err e;
    *f = (struct fake){ 0 };
    uint32_t rows = 1 + below(chance(20) ? 60 : 16), left;
    f->r = (struct sched_request){ .priority = chance(30) ? (int)below(3) : 0, .n_choices = chance(20) ? 1 + below(CHOICES) : 1,
                                   .n_new = 1 + below(9), .bound = f->bound, .n_rows = rows, .encodes = chance(50), .driver = f };
    left = rows;
    for (uint32_t l = 0; l < w->L; l++) {
        f->bound[l] = rows;
        f->true_rows[l] = left;
        rows -= below(rows / 3 + 1);
        left -= below(left / 2 + 1);
        if (left > rows) left = rows;
    }
    if (chance(50)) memcpy(f->true_rows, f->bound, sizeof f->bound);   /* an exact plan */
    for (uint32_t c = 0; c < f->r.n_choices; c++) {
        f->open[c] = true;
        f->total[c] = 1 + below(f->r.n_new);
    }
    f->encode_left = 1 + below(3);
    f->bytes = below(4) ? below(WORK / 2) : below(WORK + 1);
    const status st = sched_add(w->s, &f->r, &e);
    if (st == OK) return;
    if (st == E_FULL) assert_true(sched_demand(w->pool, w->L, &f->r) > kv_n_total(w->pool));
    else assert_true(st == E_BUSY || f->r.n_choices > 1);
    assert_non_null(e.tag);
    f->ended = true;
    f->n_ends = 1;
}

static void step(struct world *w)
{
    struct sched_step step;
    sched_next(w->s, w->now, &step);
    switch (step.kind) {
    case SCHED_ENCODE: {
        struct fake *f = step.one->driver;
        assert_int_equal(f->r.state, SCHED_ENCODING);
        w->now += 0.01;
        if (chance(3)) {
            end(w, f);
            return;
        }
        f->encode_left -= f->encode_left > 0;
        sched_encoded(w->s, &f->r, f->encode_left == 0, 10, 0.01);
        return;
    }
    case SCHED_PREFILL: prefill(w, &step); return;
    case SCHED_DECODE: decode(w, &step); return;
    case SCHED_NOTHING: w->now += 0.001; return;
    }
}

static bool all_ended(const struct world *w)
{
    for (uint32_t i = 0; i < w->n; i++)
        if (!w->f[i].ended) return false;
    return true;
}

static void run_schedule(uint64_t *admitted, uint64_t *by_freed, uint64_t *preempted, uint64_t *passed, uint64_t *refused)
{
    struct world w = { .L = 1 + below(L_MAX), .bytes_left = WORK };
    const bool claims = chance(50);
    struct err e;
    const uint32_t n_reqs = 2 + below(REQS - 1);
    assert_int_equal(kv_pool_create(20 + below(180), PAGE, &w.pool, &e), OK);
    const struct sched_options o = { .n_layers = w.L, .max_running = 1 + below(8), .max_waiting = chance(10) ? 2 : 100,
                                     .group_rows = 1 + below(60), .overtake_max = below(4),
                                     .itl_target_s = chance(30) ? INFINITY : 0.02 * (1 + below(3)), .step_s = INFINITY,
                                     .preempt = chance(60),
                                     .self = &w, .reclaim = reclaim, .drop = drop, .claim = claims ? claim : NULL,
                                     .unclaim = claims ? unclaim : NULL };
    assert_int_equal(sched_create(&o, w.pool, &w.s, &e), OK);
    for (uint32_t steps = 0; w.n < n_reqs || !all_ended(&w); steps++) {
        if (w.n < n_reqs && chance(30)) arrive(&w);
        if (w.n && chance(3)) {
            struct fake *f = &w.f[below(w.n)];         /* somebody goes away, in whatever phase */
            if (!f->ended) end(&w, f);
        }
        step(&w);
        sched_check(w.s);
        count_pages(&w);
        check_claims(&w, WORK, claims);
        assert_true(steps < 20000);    /* nobody starves: all of this is a few hundred steps of work */
    }
    struct sched_counts c;
    sched_read(w.s, &c);
    *admitted += c.n_admitted;
    *by_freed += c.n_admitted_by_freed;
    *preempted += c.n_preempted;
    *passed += c.n_overtakes;
    *refused += w.n_refused;
    assert_int_equal(c.n_sequences, 0);
    for (uint32_t i = 0; i < w.n; i++) assert_int_equal(w.f[i].n_ends, 1);
    reclaim(&w, UINT32_MAX);
    assert_int_equal(kv_n_free(w.pool), kv_n_total(w.pool));
    assert_int_equal(kv_n_reserved(w.pool), 0);
    sched_destroy(&w.s);
    kv_pool_destroy(&w.pool);
}

static void test_random_schedules(void **state)
{
    (void)state;
    const char *seed = getenv("SEED"), *many = getenv("N");
    const uint64_t first = seed ? strtoull(seed, NULL, 10) : 1;
    const uint32_t n = many ? (uint32_t)strtoul(many, NULL, 10) : 100000;
    uint64_t admitted = 0, by_freed = 0, preempted = 0, passed = 0, refused = 0;
    for (uint32_t i = 0; i < n; i++) {
        rng = (first + i) * 0x2545f4914f6cdd1du;
        run_schedule(&admitted, &by_freed, &preempted, &passed, &refused);
    }
    print_message("%u schedules: %llu admitted, %llu of them by pages that pruning freed, %llu preempted, %llu passed\n", n,
                  (unsigned long long)admitted, (unsigned long long)by_freed, (unsigned long long)preempted,
                  (unsigned long long)passed);
    if (n >= 1000) assert_true(by_freed > 0 && preempted > 0 && passed > 0 && refused > 0);
}

/* ---- single cases -------------------------------------------------------------------------------------------- */

struct one { struct kv_pool *pool; struct sched *s; uint32_t dropped; };

static void count_drop(void *self, struct sched_request *r)
{
    struct one *w = self;
    (void)r;
    w->dropped++;
}

static void open_one(struct one *w, uint32_t pages, struct sched_options o)
{
    struct err e;
    *w = (struct one){ 0 };
    assert_int_equal(kv_pool_create(pages, PAGE, &w->pool, &e), OK);
    o.n_layers = 1;
    if (o.max_running == 0) o.max_running = 100;
    if (o.group_rows == 0) o.group_rows = 1000;
    if (o.itl_target_s == 0) o.itl_target_s = INFINITY;
    o.max_waiting = 100;
    if (o.step_s == 0) o.step_s = INFINITY;
    o.self = w;
    o.drop = count_drop;
    assert_int_equal(sched_create(&o, w->pool, &w->s, &e), OK);
}

static void close_one(struct one *w)
{
    sched_check(w->s);
    sched_destroy(&w->s);
    kv_pool_destroy(&w->pool);
}

static void add(struct one *w, struct sched_request *r, uint32_t *bound, uint32_t rows, int priority)
{
    struct err e;
    *bound = rows;
    *r = (struct sched_request){ .priority = priority, .n_choices = 1, .n_new = PAGE, .bound = bound, .n_rows = rows };
    assert_int_equal(sched_add(w->s, r, &e), OK);
}

/* B waits for pages; A's selection keeps less than its bound; B is admitted in the same step, while A still marches. */
static void test_admitted_by_freed_pages(void **state)
{
    (void)state;
    struct one w;
    struct sched_request a, b;
    uint32_t bound[2];
    struct sched_step step;
    struct sched_counts c;
    open_one(&w, 20, (struct sched_options){ 0 });
    add(&w, &a, &bound[0], 15 * PAGE, 0);
    add(&w, &b, &bound[1], 7 * PAGE, 0);
    sched_next(w.s, 0, &step);
    assert_int_equal(step.kind, SCHED_PREFILL);
    assert_int_equal(a.state, SCHED_PREFILLING);
    assert_int_equal(b.state, SCHED_WAITING);
    sched_quantum(w.s, 0, 1, 1);
    sched_forfeit(w.s, &a, 5, true);       /* 5 of the 16 pages that were promised to A */
    sched_next(w.s, 1, &step);
    assert_int_equal(a.state, SCHED_PREFILLING);
    assert_int_equal(b.state, SCHED_READY);
    sched_read(w.s, &c);
    assert_int_equal(c.n_admitted, 2);
    assert_int_equal(c.n_admitted_by_freed, 1);
    assert_int_equal(c.pages_pruned, 5);
    sched_end(w.s, &a);
    sched_end(w.s, &b);
    close_one(&w);
}

/* A long one that waits is passed by short ones so often and no more. */
static void test_overtaking_is_bounded(void **state)
{
    (void)state;
    struct one w;
    struct sched_request first, late, small[8];
    uint32_t bound[10];
    struct sched_step step;
    open_one(&w, 20, (struct sched_options){ .overtake_max = 3 });
    add(&w, &first, &bound[8], 9 * PAGE, 0);           /* 10 pages of 20 */
    sched_next(w.s, 0, &step);
    add(&w, &late, &bound[9], 14 * PAGE, 0);           /* 15 */
    for (int i = 0; i < 8; i++) add(&w, &small[i], &bound[i], 0, 0);   /* a page each */
    sched_next(w.s, 0, &step);
    uint32_t passed = 0;
    for (int i = 0; i < 8; i++) passed += small[i].state != SCHED_WAITING;
    assert_int_equal(passed, 3);
    assert_int_equal(late.overtaken, 3);
    sched_end(w.s, &first);
    sched_next(w.s, 0, &step);
    assert_true(late.state != SCHED_WAITING);          /* 3 + 15 pages; and two more small ones behind it */
    sched_end(w.s, &late);
    for (int i = 0; i < 8; i++) sched_end(w.s, &small[i]);
    close_one(&w);
}

/* A higher priority takes pages from running lower ones, from as few as need be, and only where that admits it. */
static void test_preemption(void **state)
{
    (void)state;
    struct one w;
    struct sched_request low[3], high, huge;
    uint32_t bound[5];
    struct sched_step step;
    struct err e;
    open_one(&w, 18, (struct sched_options){ .preempt = true });
    for (int i = 0; i < 3; i++) add(&w, &low[i], &bound[i], 5 * PAGE, 2);  /* 6 pages each: all of the pool */
    sched_next(w.s, 0, &step);
    sched_prefilled(w.s, step.group, 0);
    for (int i = 0; i < 3; i++) assert_int_equal(low[i].state, SCHED_DECODING);
    add(&w, &high, &bound[3], 6 * PAGE, 1);
    sched_next(w.s, 0, &step);
    assert_true(high.state != SCHED_WAITING);
    assert_int_equal(w.dropped, 2);                    /* 7 pages: two of 6 */
    assert_int_equal(low[0].state, SCHED_DECODING);    /* the last to come went first */
    assert_int_equal(low[1].state, SCHED_WAITING);
    assert_int_equal(low[2].state, SCHED_WAITING);
    add(&w, &huge, &bound[4], 13 * PAGE, 1);           /* 14 pages: not even all lower ones would do */
    sched_next(w.s, 0, &step);
    assert_int_equal(huge.state, SCHED_WAITING);
    assert_int_equal(w.dropped, 2);
    uint32_t too_much = 18 * PAGE;
    struct sched_request never = { .n_choices = 1, .n_new = 1, .bound = &too_much };
    assert_int_equal(sched_add(w.s, &never, &e), E_FULL);
    assert_non_null(strstr(e.text, "19 pages"));
    assert_non_null(strstr(e.text, "has 18"));
    struct sched_request *all[] = { &low[0], &low[1], &low[2], &high, &huge };
    for (int i = 0; i < 5; i++) sched_end(w.s, all[i]);
    close_one(&w);
}

/* With work whose seconds are known, tokens of a running request come no further apart than the target, and prefill gets
 * the rest; without a running request quanta have no limit. */
static void test_time_between_tokens(void **state)
{
    (void)state;
    struct one w;
    struct sched_request runs, big;
    uint32_t bound[2];
    struct sched_step step;
    const double unit = 1e-9, target = 0.05, decode = 0.01;
    open_one(&w, 4000, (struct sched_options){ .itl_target_s = target });
    add(&w, &runs, &bound[0], 10, 0);
    sched_next(w.s, 0, &step);
    assert_true(isinf(step.max_work));
    sched_quantum(w.s, step.group, 1e7, 1e7 * unit);
    double now = 1e7 * unit, last, worst = 0, prefill_s = 0;
    sched_prefilled(w.s, step.group, now);
    last = now;
    add(&w, &big, &bound[1], 8000, 0);
    for (int i = 0; i < 2000; i++) {
        sched_next(w.s, now, &step);
        if (step.kind == SCHED_DECODE) {
            now += decode;
            sched_decoded(w.s, now, decode);
            if (i > 20 && now - last > worst) worst = now - last;
            last = now;
            continue;
        }
        assert_int_equal(step.kind, SCHED_PREFILL);
        const double took = step.max_work * unit < 0.02 ? step.max_work * unit : 0.02;     /* a coarse executor */
        now += took;
        prefill_s += took;
        sched_quantum(w.s, step.group, took / unit, took);
        sched_group_left(w.s, step.group, 1e12);
    }
    assert_true(worst < 1.1 * target);
    assert_true(prefill_s > 0.6 * now);
    sched_end(w.s, &runs);
    sched_end(w.s, &big);
    close_one(&w);
}

/* A short request forms a group beside a long one that marches, and goes first. */
static void test_short_beside_long(void **state)
{
    (void)state;
    struct one w;
    struct sched_request big, small;
    uint32_t bound[2];
    struct sched_step step;
    open_one(&w, 4000, (struct sched_options){ .overtake_max = 2 });
    add(&w, &big, &bound[0], 8000, 0);
    sched_next(w.s, 0, &step);
    const uint32_t g = step.group;
    sched_quantum(w.s, g, 1e6, 0.1);
    sched_group_left(w.s, g, 1e9);
    add(&w, &small, &bound[1], 100, 0);
    sched_next(w.s, 0.1, &step);
    assert_int_equal(step.kind, SCHED_PREFILL);
    assert_true(step.begins && step.group != g && step.n == 1);
    sched_quantum(w.s, step.group, 1e4, 0.001);
    sched_group_left(w.s, step.group, 1e6);
    const uint32_t h = step.group;
    sched_next(w.s, 0.1, &step);
    assert_int_equal(step.group, h);
    sched_prefilled(w.s, h, 0.2);
    assert_int_equal(small.state, SCHED_DECODING);
    assert_int_equal(big.state, SCHED_PREFILLING);
    sched_end(w.s, &small);
    sched_end(w.s, &big);
    sched_prefilled(w.s, g, 0.3);
    close_one(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_schedules),    cmocka_unit_test(test_admitted_by_freed_pages),
        cmocka_unit_test(test_overtaking_is_bounded), cmocka_unit_test(test_preemption),
        cmocka_unit_test(test_time_between_tokens), cmocka_unit_test(test_short_beside_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
