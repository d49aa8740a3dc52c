/* The simulation of scheduler/simulate.h. Method: closed forms that nothing in it was made from. One request alone on an
 * empty device takes the sum of its parts, worked out here from the shapes; what the pool holds and what a plan spares are
 * the plan's own page counts; mean requests in the system = arrivals a second x mean stay; the same seed gives the same
 * figures and another does not; a group simulated for many stands for them. Pages come home, or kv_pool_destroy aborts;
 * with `check` the scheduler's and the pool's invariants hold after every step. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "scheduler/simulate.h"

enum { L = 4, H = 4, G = 2, D = 16, WIDTH = 64, FF = 128, V = 256, PAGE = 16 };

static const struct sim_shape FILM = {
    .n_items = 1, .item = { .kind = TOKEN_VIDEO, .n_audio = 50, .steps = 6, .step_tokens = 20 }, .n_text = 30, .n_query = 10,
    .n_new = 20, .n_out = 12, .patches = 80, .frames = 400, .host_s = 0.25 };
static const struct sim_shape TEXT = { .n_text = 100, .n_query = 100, .n_new = 8, .n_out = 8 };

static struct policy_params policy;

static void set_policy(const char *name, double retention)
{
    struct err e;
    assert_int_equal(prune_params_init(&policy, name, L, &e), OK);
    if (retention > 0) assert_int_equal(prune_params_set(&policy, "retention", retention, &e), OK);
    assert_int_equal(prune_params_finish(&policy, &e), OK);
}

/* A device of flat rates. */
static struct sim_options base(const struct sim_shape *shape, uint32_t n_shapes)
{
    return (struct sim_options){
        .device = { .n_gemm = 1, .gemm = { { 1, 1e9 } }, .attention = 2e8, .score = 1e8, .vision = 3e8, .audio = 2e8, .memory = 1e9,
                    .range_s = 1e-5, .step_s = 2e-5, .row_s = 1e-6, .select_s = 3e-5, .select_row_s = 1e-8, .tower_s = 4e-5,
                    .host_cores = 2 },
        .model = { .work = { L, H, G, D, WIDTH, FF, V, { 2, 32, 64 }, { 2, 32, 64 } }, .audio_span = 200, .value_bytes = 2,
                   .kv_value_bytes = 2 },
        .policy = &policy, .shape = shape, .n_shapes = n_shapes, .tp = 1, .groups = 1, .n_pages = 4000, .page_tokens = PAGE,
        .media_cache_bytes = 1 << 20, .sched = sched_defaults(), .max_waiting = 1000, .clients = 1, .measured = 1, .seed = 7,
        .check = true };
}

static struct sim_result run(const struct sim_options *o)
{
    struct sim_result r;
    struct err e = { 0 };
    if (sim_run(o, &r, &e) != OK) fail_msg("%s", e.text);
    return r;
}

static void near(double got, double want, double tolerance)
{
    if (fabs(got - want) > tolerance * fabs(want)) fail_msg("%.9g is not %.9g within %g", got, want, tolerance);
}

static uint32_t pages(uint32_t rows) { return (rows + PAGE - 1) / PAGE; }

/* ---- one request alone ---------------------------------------------------------------------------------------- */

/* Prefill of n rows, nothing dropped, in one range a layer: the sums of docs/qwen2_5_omni.md's shapes. */
static double prefill_s(const struct sim_device *v, uint32_t n)
{
    const double kv = 4.0 * WIDTH * G * D, mix = 4.0 * WIDTH * H * D + 6.0 * WIDTH * FF, key = 4.0 * H * D, rows = n;
    double t = 0;
    for (int l = 0; l < L; l++) {
        if (l + 1 < L) t += v->range_s + rows * (kv + mix) / 1e9 + rows * (rows + 1) / 2 * key / v->attention;
        else t += 2 * v->range_s + (rows * kv + mix) / 1e9 + rows * key / v->attention;    /* the last row alone goes on */
    }
    return t + v->step_s + v->row_s + 2.0 * V * WIDTH / 1e9;
}

/* Of n rows at that depth. */
static double decode_rows_s(const struct sim_device *v, uint32_t depth, uint32_t n)
{
    const double weights = L * (2.0 * WIDTH * (G * D + H * D) + 3.0 * WIDTH * FF) + (double)V * WIDTH;
    return L * v->range_s + v->step_s + n * (v->row_s + 2 * weights / 1e9 + L * (double)depth * 2 * G * D * 2 / v->memory);
}

static double decode_s(const struct sim_device *v, uint32_t depth) { return decode_rows_s(v, depth, 1); }

static void alone(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_options o = base(&TEXT, 1);
    const struct sim_result r = run(&o);
    double whole = prefill_s(&o.device, 100);
    near(r.first.mean, whole, 1e-9);
    for (uint32_t i = 1; i < TEXT.n_out; i++) whole += decode_s(&o.device, 100 + i);
    near(r.whole.mean, whole, 1e-9);
    assert_int_equal(r.n_ended, 1);
    assert_int_equal(r.between.n, TEXT.n_out - 1);
    near(r.between.mean, (whole - prefill_s(&o.device, 100)) / (TEXT.n_out - 1), 1e-9);
    near(r.busy, 1, 1e-9);
    near(r.pages_max, (double)(L * pages(100 + TEXT.n_out - 1)) / o.n_pages, 1e-9);    /* the last token is fed to nobody */
}

/* The towers' batches, the host's seconds, the front end and what they add to the first token. */
static void parts(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_options o = base(&FILM, 1);
    o.device.step_s = o.device.row_s = 0;
    o.sched.step_s = INFINITY;
    o.front = (struct sim_front){ .cores = 2, .request_s = 0.5, .bytes_per_s = 1000 };
    const double patches = 480.0 * 2 * (8 * 32 * 32 + 6 * 32 * 64), frames = 400.0 / 2 * 2 * (8 * 32 * 32 + 4 * 32 * 64);
    const double towers = 3 * 4e-5 + patches / 3e8 + frames / 2e8;     /* one batch of film, two of sound */
    const double want = 0.25 + 0.25 + towers + prefill_s(&o.device, 200);
    near(run(&o).first.mean, want, 1e-9);
    struct sim_shape heavy = FILM;
    heavy.bytes = 2000;            /* two seconds of the network, beside the front end's own */
    o.shape = &heavy;
    near(run(&o).first.mean, want - 0.25 + 2, 1e-9);
    o.device.shared_cores = 1;     /* decoding has the core alone, then the device */
    o.device.device_threads = 2;
    near(run(&o).first.mean, 2 + 0.25 + 2 * (towers + prefill_s(&o.device, 200)), 1e-9);
}

/* Cut into quanta the request does the same products: only the fixed costs of ranges are more. */
static void quanta(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_shape longer = TEXT;
    longer.n_text = 2000;
    struct sim_options o = base(&longer, 1);
    o.device.range_s = 0;
    const double whole = run(&o).whole.mean;
    o.sched.step_s = INFINITY;
    const uint64_t steps = run(&o).n_steps;
    near(run(&o).whole.mean, whole, 1e-9);
    o.sched.step_s = 1e-3;
    assert_true(run(&o).n_steps > steps + 10);
    near(run(&o).whole.mean, whole, 1e-9);
}

/* ---- ranks ------------------------------------------------------------------------------------------------------ */

static void ranks(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_options o = base(&TEXT, 1), two;
    o.device.range_s = o.device.step_s = o.device.row_s = 0;
    o.device.n_gemm = 1;
    two = o;
    two.tp = 2;
    near(run(&two).whole.mean, run(&o).whole.mean / 2, 1e-9);          /* all of it is shared evenly */
    two.device.reduce_s = 1e-3;
    two.device.reduce_bytes = 1e6;
    const struct sim_result r = run(&two);
    /* Two a layer, one more for the logits; a range of the last layer has one row. */
    const double vector = WIDTH * 2 / 1e6;
    const double prefill = (2 * L + 1) * 1e-3 + (2 * (L - 1) * 100 + 2 + 1) * vector, decode = (2 * L + 1) * (1e-3 + vector);
    const double reduces = prefill + (TEXT.n_out - 1) * decode;
    near(r.whole.mean - run(&o).whole.mean / 2, reduces, 1e-9);
    near(r.reduce * r.seconds, reduces, 1e-9);
    /* At more ranks than KV heads each holds one: rows of K and V are no fewer. */
    uint32_t tp = 1;
    double reduced = 0, keys[3];
    for (int i = 0; i < 3; i++, tp *= 2) {
        o.tp = tp;
        keys[i] = sim_decode_s(&o, 1, 1e6, &reduced) - sim_decode_s(&o, 1, 0, &reduced);
    }
    near(keys[0], 2 * keys[1], 1e-6);
    near(keys[1], keys[2], 1e-6);
}

static void rates(void **state)
{
    (void)state;
    const struct sim_rate t[] = { { 10, 100 }, { 1000, 10000 }, { 4000, 20000 } };
    near(sim_rate_at(t, 3, 10), 100, 1e-12);
    near(sim_rate_at(t, 3, 1), 10, 1e-12);         /* the same time as 10 rows */
    near(sim_rate_at(t, 3, 100), 1000, 1e-12);     /* halfway in the logarithm */
    near(sim_rate_at(t, 3, 2000), 14142.1356, 1e-6);
    near(sim_rate_at(t, 3, 1e9), 20000, 1e-12);
    assert_true(sim_rate_at(t, 0, 5) == 0);
}

/* ---- pages ------------------------------------------------------------------------------------------------------ */

/* Requests at once are what the pool holds, and pruning's gain is that of the plans. */
static void page_ratio(void **state)
{
    (void)state;
    struct sim_options o = base(&FILM, 1);
    struct sim_result r[2];
    uint32_t need[2] = { 0, 0 };
    o.clients = 120;
    o.warmup = 200;
    o.measured = 1000;
    o.n_pages = 600;
    for (int k = 0; k < 2; k++) {
        struct policy_plan plan;
        struct err e;
        set_policy(k ? "omnidrop" : "none", k ? 0.5 : 0);
        const struct prune_shape shape = { .n_layers = L, .n_items = 1, .item = &FILM.item };
        assert_int_equal(prune_plan_shape(&policy, &shape, &plan, &e), OK);
        for (uint32_t l = 0; l < L; l++) need[k] += pages(plan.alive[l] + FILM.n_text + FILM.n_new);
        prune_plan_free(&plan);
        r[k] = run(&o);
        near(r[k].pages_promised, need[k], 1e-12);
        assert_true(r[k].at_once_max == o.n_pages / need[k]);
        near(r[k].at_once_mean, o.n_pages / need[k], 0.1);
        assert_true(r[k].waits_pages > 0.95 && r[k].waits_slots == 0);
        near(r[k].pages_unpruned, need[0], 1e-12);
        near(r[k].pages_freed_s, r[k].requests_s * (need[0] - need[k]), 0.05);
    }
    assert_true(2 * need[0] > 3 * need[1]);
}

/* Half of what is left goes at layer 2: shallow layers give back what it dropped. */
static void set_steep(bool trim)
{
    struct err e;
    assert_int_equal(prune_params_init(&policy, "omnidrop", L, &e), OK);
    assert_int_equal(prune_params_set(&policy, "t_mid", 0.5, &e), OK);
    assert_int_equal(prune_params_set(&policy, "p_final", 0.9, &e), OK);
    assert_int_equal(prune_params_set(&policy, "trim", trim, &e), OK);
    assert_int_equal(prune_params_finish(&policy, &e), OK);
}

static void trims(void **state)
{
    (void)state;
    struct sim_options o = base(&FILM, 1);
    struct policy_plan plan;
    struct err e;
    set_steep(false);
    const struct sim_result kept = run(&o);
    set_steep(true);
    const struct sim_result r = run(&o);
    const struct prune_shape shape = { .n_layers = L, .n_items = 1, .item = &FILM.item };
    assert_int_equal(prune_plan_shape(&policy, &shape, &plan, &e), OK);
    uint32_t given = 0;            /* held pages of the shallow layers: no answer yet but the room for it */
    for (uint32_t l = 0; l < L; l++) given += pages(plan.alive[l] + FILM.n_text) - pages(plan.alive[L - 1] + FILM.n_text);
    prune_plan_free(&plan);
    assert_true(given > 0);
    near(r.pages_freed_s * r.seconds - kept.pages_freed_s * kept.seconds, given, 1e-9);
    assert_int_equal(r.n_ended, 1);
}

static void slots(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_options o = base(&TEXT, 1);
    o.clients = 20;
    o.sched.max_running = 5;
    o.warmup = 50;
    o.measured = 200;
    const struct sim_result r = run(&o);
    assert_true(r.at_once_max == 5 && r.waits_slots > 0.9 && r.waits_pages == 0);
}

static void what_does_not_fit(void **state)
{
    (void)state;
    struct err e;
    struct sim_result r;
    set_policy("none", 0);
    const struct sim_shape both[] = { FILM, TEXT };
    struct sim_options o = base(both, 2);
    o.n_pages = 40;                /* a text, but no film */
    o.measured = 50;
    r = run(&o);
    assert_int_equal(r.n_too_large, 1);
    assert_int_equal(r.n_ended, 50);
    assert_true(r.media_cached == 0);
    o.n_pages = 20;
    assert_int_equal(sim_run(&o, &r, &e), E_FULL);
    assert_non_null(strstr(e.text, "28 pages"));
    struct sim_shape wrong = TEXT;
    wrong.n_out = 9;               /* more than is promised */
    o = base(&wrong, 1);
    assert_int_equal(sim_run(&o, &r, &e), E_ARG);
    o = base(&TEXT, 1);
    o.clients = 0;
    assert_int_equal(sim_run(&o, &r, &e), E_ARG);
    o = base(&TEXT, 1);
    o.tp = 8;
    assert_int_equal(sim_run(&o, &r, &e), E_ARG);
}

/* ---- choices before keys ------------------------------------------------------------------------------------------ */

/* Prefill of FILM by any plan: docs/pruning-methods.md 9.2, layer by layer. */
static double plan_s(const struct sim_device *v, const struct policy_plan *p)
{
    const double kv = 4.0 * WIDTH * G * D, mix = 4.0 * WIDTH * H * D + 6.0 * WIDTH * FF, key = 4.0 * H * D, score = 2.0 * H * D;
    double t = p->n_entry < p->n_orig ? p->n_orig * v->entry_row_s : 0, n = p->n_entry + FILM.n_text;
    for (int l = 0; l < L; l++) {
        const double left = p->alive[p->go ? l : l + 1] + FILM.n_text, last = l + 1 == L;
        const bool before = p->go && p->selects[l] && !p->scored[l], after = p->selects[l] && !before;
        if (p->selects[l]) t += v->select_s + (n - FILM.n_text) * v->select_row_s;
        if (before) n = left;
        if (!after && !last) {
            t += v->range_s + n * (kv + mix) / 1e9 + n * (n + 1) / 2 * key / v->attention;
            continue;
        }
        t += v->range_s + n * kv / 1e9;
        if (after && p->scored[l]) t += (p->needs & PRUNE_NEEDS_PAGERANK ? floor(2.5 * n) : FILM.n_query) * n * score / v->score;
        if (after && p->scored[l] && p->needs & PRUNE_NEEDS_PAGERANK) t += v->range_s + n * kv / 1e9;
        if (after && p->scored[l] && p->back) t += 2 * (v->range_s + n * kv / 1e9);
        const double kept = last ? 1 : after ? left : n, keys = p->go && after ? left : n;
        t += v->range_s + kept * mix / 1e9 + keys / kept * kept * (kept + 1) / 2 * key / v->attention;
        if (after) n = left;
    }
    return t + v->step_s + v->row_s + 2.0 * V * WIDTH / 1e9;
}

static void every_policy(void **state)
{
    (void)state;
    uint32_t n_go = 0, n_before = 0, n_back = 0, n_walks = 0;
    for (const struct policy *const *all = prune_list(); *all; all++) {
        struct policy_plan plan;
        struct err e;
        if (prune_params_init(&policy, (*all)->name, L, &e) != OK) continue;
        if (prune_has(&policy, "retention")) (void)prune_params_set(&policy, "retention", 0.5, &e);
        if (prune_params_finish(&policy, &e) != OK) continue;      /* four layers are too few, or a table is missing */
        const struct prune_shape shape = { .n_layers = L, .n_items = 1, .item = &FILM.item };
        if (prune_plan_shape(&policy, &shape, &plan, &e) != OK) continue;
        struct sim_options o = base(&FILM, 1);
        struct sim_shape ready = FILM;
        ready.host_s = 0;
        o.shape = &ready;
        o.device.vision = o.device.audio = o.device.tower_s = 0;       /* towers take no time */
        o.device.entry_row_s = 2e-7;
        o.sched.step_s = INFINITY;
        const struct sim_result r = run(&o);
        const double want = plan_s(&o.device, &plan);
        if (fabs(r.first.mean - want) > 1e-9 * want) fail_msg("%s: %.9g is not %.9g", (*all)->name, r.first.mean, want);
        uint32_t promised = 0, held = 0;
        for (uint32_t l = 0; l < L; l++) {
            promised += pages(prune_plan_rows(&plan, l) + FILM.n_text + FILM.n_new);
            held += pages(prune_plan_rows(&plan, l) + FILM.n_text);
            n_back += plan.go && plan.selects[l] && plan.scored[l] && plan.back;
            n_before += plan.go && plan.selects[l] && !plan.scored[l];
            n_walks += plan.selects[l] && plan.scored[l] && plan.needs & PRUNE_NEEDS_PAGERANK;
        }
        n_go += plan.go;
        near(r.pages_promised, promised, 1e-12);
        assert_true(r.pages_max * o.n_pages <= promised && (plan.go || r.pages_max * o.n_pages >= held - 1e-6));
        prune_plan_free(&plan);
    }
    print_message("# %u plans choose before keys: %u layers without scores, %u by another layer's; %u by walks\n", n_go, n_before,
                  n_back, n_walks);
    assert_true(n_go >= 2 && n_before > 0 && n_back > 0 && n_walks > 0);
}

/* ---- what is shared ----------------------------------------------------------------------------------------------- */

/* The second question about a film begins with the pages of the first: whole pages of the media rows that enter layer 0, in the
 * layers before the first drop. What they save is those rows, and nothing else. */
static void prefixes(void **state)
{
    (void)state;
    struct sim_shape known = FILM;
    known.media = 5;
    known.host_s = 0;
    for (int k = 0; k < 3; k++) {
        struct policy_plan plan;
        struct err e;
        if (k == 0) set_policy("none", 0);
        else set_steep(k == 2);
        const struct prune_shape shape = { .n_layers = L, .n_items = 1, .item = &FILM.item };
        assert_int_equal(prune_plan_shape(&policy, &shape, &plan, &e), OK);
        uint32_t first_drop = 0;
        while (first_drop < L && !plan.selects[first_drop]) first_drop++;
        struct sim_options o = base(&known, 1);
        o.sched.step_s = INFINITY;
        o.warmup = 1;
        const struct sim_result apart = run(&o);
        o.hidden_bytes = 1 << 20;
        const struct sim_result r = run(&o);
        const double row = 4.0 * WIDTH * (G * D + H * D) + 6.0 * WIDTH * FF, n = plan.n_entry / PAGE * PAGE, key = 4.0 * H * D;
        double saved = 0;
        for (uint32_t l = 0; l < first_drop; l++)
            saved += l + 1 < L ? n * row / 1e9 + n * (n + 1) / 2 * key / o.device.attention : n * 4 * WIDTH * G * D / 1e9;
        if (k == 2) {              /* trim moves rows in place: nothing is shared */
            assert_true(r.prefix_found == 0);
            near(r.first.mean, apart.first.mean, 1e-12);
        } else {
            assert_true(k == 0 ? first_drop == L && n == 160 : first_drop > 0 && first_drop < L && n > 0);
            near(r.prefix_found, 1, 1e-12);
            near(apart.first.mean - r.first.mean, saved, 1e-9);
            near(r.whole.mean - r.first.mean, apart.whole.mean - apart.first.mean, 1e-9);
        }
        assert_true(apart.prefix_found == 0);
        prune_plan_free(&plan);
    }
    /* Others' films do not help, and a pool that is full of them still has room for the next. */
    set_policy("none", 0);
    struct sim_options o = base(&FILM, 1);
    o.hidden_bytes = 1 << 20;
    o.n_pages = 200;
    o.clients = 6;
    o.warmup = 20;
    o.measured = 300;
    struct sim_result r = run(&o);
    assert_true(r.prefix_found == 0 && r.n_ended == 300);
    assert_true(r.at_once_max == 200 / (L * pages(200 + FILM.n_new)));
    /* Where there is room all of them begin with the first one's. */
    o.shape = &known;
    o.n_pages = 2000;
    r = run(&o);
    assert_true(r.prefix_found > 0.9);
    o.hidden_bytes = 0;
    assert_true(r.requests_s > 1.2 * run(&o).requests_s);
}

static void choices(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_shape three = TEXT;
    three.n_choices = 3;
    struct sim_options o = base(&three, 1);
    const struct sim_result r = run(&o);
    double whole = prefill_s(&o.device, 100);
    near(r.first.mean, whole, 1e-9);
    for (uint32_t i = 1; i < TEXT.n_out; i++) whole += decode_rows_s(&o.device, 100 + i, 3);
    near(r.whole.mean, whole, 1e-9);
    near(r.tokens_s * r.seconds, 3 * TEXT.n_out, 1e-9);
    /* 100 rows: 6 full pages that all share, and a page of each for the rest and the 7 tokens that are fed. */
    near(r.pages_max * o.n_pages, L * (6 + 3), 1e-9);
    near(r.pages_promised, L * (pages(100 + 8) + 2 * (pages(8) + 1)), 1e-12);
    o.clients = 20;                /* slots are sequences */
    o.warmup = 50;
    o.measured = 200;
    o.sched.max_running = 8;
    assert_true(run(&o).at_once_max == 2);
    o.sched.max_running = 2;
    struct sim_result none;
    struct err e;
    assert_int_equal(sim_run(&o, &none, &e), E_ARG);
}

/* Whoever is more urgent takes the pages of others, who are read again and feed their tokens again: all end, with every token
 * counted once, and without leave to do so nobody is dropped. */
static void priorities(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_shape both[] = { FILM, TEXT };
    both[0].priority = 5;
    both[0].n_out = both[0].n_new = 60;
    struct sim_options o = base(both, 2);
    o.n_pages = 150;
    o.clients = 12;
    o.warmup = 50;
    o.measured = 600;
    struct sim_result r = run(&o);
    assert_true(r.n_preempted > 10 && r.n_ended == 600);
    near(r.tokens_s, r.requests_s * (60 + TEXT.n_out) / 2, 0.1);
    o.sched.preempt = false;
    const struct sim_result patient = run(&o);
    assert_true(patient.n_preempted == 0 && patient.n_ended == 600);
    assert_true(r.first.p50 < patient.first.p50);
}

/* ---- many requests ------------------------------------------------------------------------------------------------ */

static void little(void **state)
{
    (void)state;
    const struct sim_shape both[] = { FILM, TEXT };
    for (int k = 0; k < 2; k++) {
        set_policy(k ? "omnidrop" : "none", k ? 0.5 : 0);
        struct sim_options o = base(both, 2);
        struct sim_shape instant[] = { FILM, TEXT };
        instant[0].host_s = 0;     /* who is in the system is who was asked */
        o.shape = instant;
        o.groups = 3;
        o.clients = 0;
        o.rate = 12;
        o.warmup = 500;
        o.measured = 6000;
        const struct sim_result r = run(&o);
        near(r.requests_s, o.rate, 0.05);
        assert_true(r.waits_pages == 0 && r.waits_slots == 0 && r.n_refused == 0 && r.busy < 0.8);
        near(r.at_once_mean, r.requests_s * r.whole.mean, 0.1);
        near(r.tokens_s, r.requests_s * (FILM.n_out + TEXT.n_out) / 2, 0.05);
    }
}

static void seeds(void **state)
{
    (void)state;
    set_policy("omnidrop", 0.5);
    const struct sim_shape both[] = { FILM, TEXT };
    struct sim_options o = base(both, 2);
    o.groups = 4;
    o.clients = 40;
    o.warmup = 100;
    o.measured = 500;
    const struct sim_result a = run(&o), b = run(&o);
    assert_memory_equal(&a, &b, sizeof a);
    o.seed++;
    const struct sim_result c = run(&o);
    assert_memory_not_equal(&a, &c, sizeof a);
}

/* Media that many ask about are decoded and encoded once where they stay. */
static void same_media(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_shape known = FILM;
    known.media = 5;
    struct sim_options o = base(&known, 1);
    o.groups = 4;
    o.clients = 2;
    o.measured = 100;
    struct sim_result r = run(&o);
    near(r.media_cached, 0.99, 0.011);
    assert_true(r.hosts < 0.05);
    o.media_cache_bytes = 0;
    r = run(&o);
    assert_true(r.media_cached == 0 && r.hosts > 0.1);
}

/* Eight of sixty-four groups with their share of the stream stand for all. */
static void sample(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_options o = base(&TEXT, 1);
    o.clients = 0;
    o.groups = 64;
    o.rate = 64 * 10;
    o.front = (struct sim_front){ .cores = 1, .request_s = 1e-3, .token_s = 1e-6 };
    o.warmup = 1000;
    o.measured = 8000;
    const struct sim_result all = run(&o);
    o.simulated = 8;
    const struct sim_result some = run(&o);
    assert_int_equal(some.simulated, 8);
    near(some.requests_s, all.requests_s, 0.05);
    near(some.at_once_mean, all.at_once_mean, 0.1);
    near(some.front, all.front, 0.05);
    near(some.front, 640 * (1e-3 + 8e-6), 0.05);
    near(some.first.p50, all.first.p50, 0.1);
    o.front.cores = 0.5;           /* more than it can do: the front end is the limit, and everyone waits for it */
    assert_true(run(&o).front > 0.99);
    assert_true(run(&o).first.p50 > 10 * some.first.p50);
}

static void refusals(void **state)
{
    (void)state;
    set_policy("none", 0);
    struct sim_options o = base(&TEXT, 1);
    o.clients = 0;
    o.rate = 1e5;
    o.max_waiting = 10;
    o.warmup = 50;
    o.measured = 500;
    const struct sim_result r = run(&o);
    assert_true(r.n_refused > 1000);
    assert_true(r.busy > 0.99 && r.requests_s < 1e4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alone), cmocka_unit_test(parts), cmocka_unit_test(quanta), cmocka_unit_test(ranks),
        cmocka_unit_test(rates), cmocka_unit_test(page_ratio), cmocka_unit_test(trims), cmocka_unit_test(slots),
        cmocka_unit_test(what_does_not_fit), cmocka_unit_test(little), cmocka_unit_test(seeds), cmocka_unit_test(same_media),
        cmocka_unit_test(sample), cmocka_unit_test(refusals), cmocka_unit_test(every_policy), cmocka_unit_test(prefixes),
        cmocka_unit_test(choices), cmocka_unit_test(priorities),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
