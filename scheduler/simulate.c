/* scheduler/simulate.c - see simulate.h.
 *
 * Events, by time: an arrival, a request whose media are ready, a device that is free. A step is done when it is named: its
 * pages are taken, its reports carry the time at which it ends, and the device's next event is then; what comes meanwhile is
 * added to the scheduler and seen by the next step, as in the engine's loop. Groups touch each other in the router and the
 * front end alone, so memory and work grow with the simulated groups, and a cluster of many equal groups may be simulated
 * by some of them with their share of the stream: the front end still serves all of it. */
#include "scheduler/simulate.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kvcache/prefix.h"

#define BINS_DECADE 256            /* a percentile is within 1 % */
#define BINS (12 * BINS_DECADE)    /* 1 us .. 1e6 s */
#define RETRY_S 1.0                /* a refused client of a closed loop asks again */

/* ---- times ------------------------------------------------------------------------------------------------- */

struct histogram { uint64_t n, bin[BINS]; double sum; };

static void note(struct histogram *h, double s)
{
    const double at = (log10(s > 1e-6 ? s : 1e-6) + 6) * BINS_DECADE;
    h->bin[at < BINS - 1 ? (uint32_t)at : BINS - 1]++;
    h->n++;
    h->sum += s;
}

static double quantile(const struct histogram *h, double q)
{
    uint64_t seen = 0;
    for (uint32_t i = 0; i < BINS; i++) {
        seen += h->bin[i];
        if (h->n && (double)seen >= q * (double)h->n) return pow(10, (i + 0.5) / BINS_DECADE - 6);
    }
    return 0;
}

static struct sim_times times_of(const struct histogram *h)
{
    return (struct sim_times){ h->n, h->n ? h->sum / (double)h->n : 0, quantile(h, 0.5), quantile(h, 0.9), quantile(h, 0.99) };
}

/* ---- the world --------------------------------------------------------------------------------------------- */

/* What all requests of one shape have in common. */
struct kind {
    const struct sim_shape *shape;
    struct policy_plan plan;
    uint32_t *bound;               /* [L] owned */
    uint64_t demand, unpruned;     /* pages; of policy none */
    uint32_t n_choices, first_drop;    /* first layer that selects; L: none */
};

struct request {
    struct sched_request r;
    const struct kind *kind;
    uint32_t *bound;               /* [L] owned */
    struct block_table *table;     /* [n_choices][L] owned */
    struct kv_block_digest *digest;    /* [n_blocks] owned, while it marches: pages of rows entering layer 0 */
    uint64_t media, what, kv_rows; /* what: its media, also where nobody else has them; kv_rows: of one choice */
    double asked, last;
    uint32_t group, enc_step, n_blocks, n_hit, n_skip;     /* n_skip: rows in shared pages that have not joined */
    uint32_t n_done, n_played;     /* tokens drawn; fed */
    bool enc_sound, encoded, cached, pending;  /* pending: routed and not yet admitted */
    struct request *prev, *next;   /* in its group's list */
};

enum stage { AT_ENTER, AT_LAYER, AT_KV, AT_SCORE, AT_MIX, AT_END };

struct march {
    struct request **member;       /* [n] */
    uint32_t n, cap, l, cursor;
    uint32_t *start, *out;         /* [n + 1] rows of the members entering the stage; of those that live on */
    enum stage stage;
};

struct media { uint64_t id; double ready, used, bytes; };

struct group {
    struct world *w;
    struct kv_pool *pool;
    struct kv_prefix_cache *prefixes;      /* NULL: nothing is shared */
    struct sched *s;
    struct march march[SCHED_GROUPS];
    struct request *live;          /* all routed here */
    struct media *media;           /* what the cache holds */
    size_t n_media, media_cap;
    double *core;                  /* [n_cores] free at */
    uint64_t pending_pages, n_admitted;
    uint32_t n_pending;
    bool idle;
    /* since the window began */
    double last, at_once, pages;   /* integrals up to `last` */
    double busy, reduce, hosts, waits_pages, waits_slots;
    uint32_t running;
};

enum event_kind { ARRIVAL, PREPARED, DEVICE };
struct event { double at; uint64_t order; enum event_kind kind; uint32_t group; struct request *r; };

struct world {
    const struct sim_options *o;
    struct sched_options so;
    struct work_row cost;
    struct kind *kind;             /* [n_kinds] those that fit the pool */
    uint32_t n_kinds, n_cores;
    struct group *group;           /* [n] */
    uint32_t n;
    double share;                  /* groups of the cluster for each simulated one */
    int64_t *room;                 /* [2 leaves] tournament of pages that are neither held, promised nor asked for */
    uint32_t leaves;
    struct event *heap;
    size_t n_events, heap_cap;
    uint64_t order, rng, unique;
    double front_free, link_free, front_busy, link_busy;
    /* the window */
    bool measuring, over;
    double begin, end, now;        /* now: of the event; what a step does ends later */
    uint64_t n_ended, ended_before, running, n_steps;
    struct histogram first, between, whole;
    struct sim_result res;
    uint64_t generated, prompt_tokens, n_prefilled, n_media, n_cached, n_begun, n_found, preempted_before;
    double promised, unpruned, freed;
};

static uint64_t draw(struct world *w)
{
    w->rng += 0x9e3779b97f4a7c15u;
    uint64_t z = w->rng;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double uniform(struct world *w) { return ((double)(draw(w) >> 11) + 0.5) * 0x1p-53; }

static bool sooner(const struct event *a, const struct event *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

static status push(struct world *w, struct event ev, struct err *e)
{
    TRY(mem_grow(&w->heap, &w->heap_cap, w->n_events + 1, sizeof *w->heap, e));
    ev.order = w->order++;
    size_t i = w->n_events++;
    for (; i > 0 && sooner(&ev, &w->heap[(i - 1) / 2]); i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = ev;
    return OK;
}

static struct event pop(struct world *w)
{
    const struct event top = w->heap[0], ev = w->heap[--w->n_events];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= w->n_events) break;
        if (k + 1 < w->n_events && sooner(&w->heap[k + 1], &w->heap[k])) k++;
        if (!sooner(&w->heap[k], &ev)) break;
        w->heap[i] = w->heap[k];
        i = k;
    }
    w->heap[i] = ev;
    return top;
}

/* ---- the router -------------------------------------------------------------------------------------------- */

static void set_room(struct world *w, uint32_t g)
{
    const struct group *p = &w->group[g];
    uint32_t i = w->leaves + g, free = kv_n_free(p->pool);
    if (p->prefixes) free += kv_prefix_read(p->prefixes).n_pages;      /* cached ones are given up for it */
    if (free > kv_n_total(p->pool)) free = kv_n_total(p->pool);
    w->room[i] = (int64_t)free - kv_n_reserved(p->pool) - (int64_t)p->pending_pages;
    for (i /= 2; i > 0; i /= 2) w->room[i] = w->room[2 * i] > w->room[2 * i + 1] ? w->room[2 * i] : w->room[2 * i + 1];
}

static uint32_t most_room(const struct world *w)
{
    uint32_t i = 1;
    while (i < w->leaves) i = w->room[2 * i] >= w->room[2 * i + 1] ? 2 * i : 2 * i + 1;
    return i - w->leaves;
}

static struct media *find_media(struct group *g, uint64_t id)
{
    for (size_t i = 0; i < g->n_media; i++)
        if (g->media[i].id == id) return &g->media[i];
    return NULL;
}

static uint32_t route(struct world *w, const struct kind *k, uint64_t media)
{
    for (uint32_t g = 0; media && g < w->n; g++)
        if (w->room[w->leaves + g] >= (int64_t)k->demand && find_media(&w->group[g], media)) return g;
    return most_room(w);
}

/* ---- accounts ---------------------------------------------------------------------------------------------- */

/* Integrals of group g up to now. */
static void account(struct world *w, struct group *g, double now)
{
    const double dt = now - g->last;
    if (dt > 0) {
        g->at_once += dt * g->running;
        g->pages += dt * (kv_n_total(g->pool) - kv_n_free(g->pool));
        g->last = now;
    }
    struct sched_counts c;
    sched_read(g->s, &c);
    const uint32_t running = c.n_encoding + c.n_ready + c.n_prefilling + c.n_decoding;
    w->running = w->running - g->running + running;
    g->running = running;
    if (w->measuring && (double)w->running > w->res.at_once_max) w->res.at_once_max = (double)w->running;
}

/* What lies before the front end now. Work of a step is posted when the step is named, not when it ends. */
static double backlog(const struct world *w) { return w->front_free > w->now ? w->front_free - w->now : 0; }

/* So much of a server's time is wanted, `own` of it by one request: returns the seconds until that one has its part. It
 * stands somewhere among its fellows of the groups that are not simulated. */
static double serve(struct world *w, double *free_at, double *busy, double own, double each)
{
    const double from = *free_at > w->now ? *free_at : w->now;
    *free_at = from + own * each;
    *busy += own * each;
    return from - w->now + own + uniform(w) * own * (each - 1);
}

/* Seconds until the front end has done this. `each`: requests of the cluster that this one stands for. */
static double front(struct world *w, double cpu_s, double bytes, double each)
{
    const struct sim_front *f = &w->o->front;
    double delay = 0;
    if (cpu_s > 0 && f->cores > 0) delay = serve(w, &w->front_free, &w->front_busy, cpu_s / f->cores, each);
    if (bytes > 0 && f->bytes_per_s > 0) delay = fmax(delay, serve(w, &w->link_free, &w->link_busy, bytes / f->bytes_per_s, each));
    return delay;
}

static uint64_t n_preempted(const struct world *w)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < w->n; i++) {
        struct sched_counts c;
        sched_read(w->group[i].s, &c);
        n += c.n_preempted;
    }
    return n;
}

static void begin_window(struct world *w, double now)
{
    w->measuring = true;
    w->begin = now;
    w->ended_before = w->n_ended;
    w->preempted_before = n_preempted(w);
    w->front_busy = fmax(0, w->front_free - now);      /* what is served in the window: what waits, and what comes less what is left */
    w->link_busy = fmax(0, w->link_free - now);
    for (uint32_t i = 0; i < w->n; i++) {
        struct group *g = &w->group[i];
        g->at_once = g->pages = g->busy = g->reduce = g->hosts = g->waits_pages = g->waits_slots = 0;
        if (g->last < now) g->last = now;
    }
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

static void drop_pages(struct world *w, struct request *r)
{
    const uint32_t n = r->table ? r->kind->n_choices * w->so.n_layers : 0;
    for (uint32_t i = 0; i < n; i++) block_table_fini(&r->table[i], w->group[r->group].pool);
}

static void request_free(struct world *w, struct request *r)
{
    struct group *g = &w->group[r->group];
    drop_pages(w, r);
    if (r->pending) {
        g->pending_pages -= r->kind->demand;
        g->n_pending--;
    }
    if (r->prev) r->prev->next = r->next;
    else g->live = r->next;
    if (r->next) r->next->prev = r->prev;
    free(r->digest);
    free(r->table);
    free(r->bound);
    free(r);
}

/* As engine/loop.c's two: cached pages are given up; a preempted request keeps its tokens alone. */
static uint32_t reclaim(void *self, uint32_t n_pages)
{
    struct group *g = self;
    return g->prefixes ? kv_prefix_reclaim(g->prefixes, n_pages) : 0;
}

static void drop(void *self, struct sched_request *sr)
{
    struct group *g = self;
    struct request *r = sr->driver;
    drop_pages(g->w, r);
    r->n_played = 0;
    r->kv_rows = 0;
    sr->n_pages = (uint32_t)sched_demand(g->pool, g->w->so.n_layers, sr);
    sr->encodes = !r->encoded && r->kind->plan.n_orig > 0;
}

static void free_hidden(void *self, void *hidden)
{
    (void)self;
    free(hidden);
}

/* The next request of a client of a closed loop, or of the stream. */
static status arrive_again(struct world *w, double at, struct err *e)
{
    return push(w, (struct event){ .at = at, .kind = ARRIVAL }, e);
}

/* Its last token has come. */
static status request_over(struct world *w, struct request *r, double now, struct err *e)
{
    struct group *g = &w->group[r->group];
    const bool closed = w->o->rate <= 0;
    const double whole = r->last - r->asked, heard = r->last;
    drop_pages(w, r);
    sched_end(g->s, &r->r);
    if (w->measuring) note(&w->whole, whole);
    request_free(w, r);
    w->n_ended++;
    if (!w->measuring && w->n_ended >= w->o->warmup) begin_window(w, now);
    else if (w->measuring && w->n_ended - w->ended_before >= w->o->measured) {
        w->over = true;
        w->end = now;
    }
    return closed ? arrive_again(w, heard > now ? heard : now, e) : OK;
}

/* A token of each of r's choices, made at `now`; the front end hands them out. */
static void token(struct world *w, struct request *r, double now)
{
    const double out = now + backlog(w);
    if (w->measuring) {
        if (r->n_done == 0) note(&w->first, out - r->asked);
        else note(&w->between, out > r->last ? out - r->last : 0);
        w->generated += r->kind->n_choices;
    }
    r->last = out > r->last ? out : r->last;
    r->n_done++;
}

static status make_request(struct world *w, const struct kind *k, uint64_t what, double asked, uint32_t group,
                           struct request **out, struct err *e)
{
    struct request *r;
    const uint32_t L = w->so.n_layers;
    struct group *g = &w->group[group];
    TRY(mem_alloc(&r, 1, sizeof *r, e));
    status st = mem_alloc(&r->bound, L, sizeof *r->bound, e);
    if (st == OK) st = mem_alloc(&r->table, (size_t)k->n_choices * L, sizeof *r->table, e);
    if (st != OK) {
        free(r->bound);
        free(r);
        return st;
    }
    memcpy(r->bound, k->bound, L * sizeof *r->bound);
    r->kind = k;
    r->media = k->shape->media;
    r->what = what;
    r->asked = r->last = asked;
    r->group = group;
    r->r = (struct sched_request){ .priority = k->shape->priority, .n_choices = k->n_choices, .n_new = k->shape->n_new,
                                   .bound = r->bound, .n_rows = k->plan.n_entry + k->shape->n_text,
                                   .encodes = k->plan.n_orig > 0, .driver = r };
    r->next = g->live;
    if (g->live) g->live->prev = r;
    g->live = r;
    r->pending = true;
    g->pending_pages += k->demand;
    g->n_pending++;
    *out = r;
    return OK;
}

/* ---- preparing: host cores and what is cached ----------------------------------------------------------------- */

static uint32_t cores_busy(const struct world *w, const struct group *g, double now)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->n_cores; i++) n += g->core[i] > now;
    return n;
}

/* How much slower all is where device and media decoding share cores. */
static double slowed(const struct world *w, double wanted)
{
    const double cores = w->o->device.shared_cores;
    return cores > 0 && wanted > cores ? wanted / cores : 1;
}

/* Embeddings of r's media are in the cache, or on their way there: when they are. Else there is room for them now. */
static status look_up(struct world *w, struct group *g, struct request *r, double now, bool *hit, double *ready, struct err *e)
{
    const struct sim_shape *s = r->kind->shape;
    const double bytes = (double)r->kind->plan.n_orig * w->o->model.work.d * sizeof(float);
    *hit = false;
    if (r->media == 0 || bytes > (double)w->o->media_cache_bytes) return OK;
    struct media *m = find_media(g, r->media);
    if (m) {
        m->used = now;
        *hit = true;
        *ready = m->ready;
        return OK;
    }
    double held = bytes;
    for (size_t i = 0; i < g->n_media; i++) held += g->media[i].bytes;
    while (held > (double)w->o->media_cache_bytes) {
        size_t oldest = 0;
        for (size_t i = 1; i < g->n_media; i++)
            if (g->media[i].used < g->media[oldest].used) oldest = i;
        held -= g->media[oldest].bytes;
        g->media[oldest] = g->media[--g->n_media];
    }
    TRY(mem_grow(&g->media, &g->media_cap, g->n_media + 1, sizeof *g->media, e));
    g->media[g->n_media++] = (struct media){ .id = r->media, .ready = now + s->host_s, .used = now, .bytes = bytes };
    return OK;
}

/* Seconds of a core until the media are features. */
static status prepare(struct world *w, struct request *r, double now, struct err *e)
{
    struct group *g = &w->group[r->group];
    const struct sim_shape *s = r->kind->shape;
    double ready = now;
    TRY(look_up(w, g, r, now, &r->cached, &ready, e));
    if (w->measuring && r->kind->plan.n_orig) {
        w->n_media++;
        w->n_cached += r->cached;
    }
    if (!r->cached && s->host_s > 0) {
        uint32_t core = 0;
        for (uint32_t i = 1; i < w->n_cores; i++)
            if (g->core[i] < g->core[core]) core = i;
        const double from = g->core[core] > now ? g->core[core] : now;
        const double took = s->host_s * slowed(w, cores_busy(w, g, now) + 1 + (g->idle ? 0 : w->o->device.device_threads));
        g->core[core] = ready = from + took;
        g->hosts += took;
        struct media *m = r->media ? find_media(g, r->media) : NULL;
        if (m) m->ready = ready;
    }
    return push(w, (struct event){ .at = ready > now ? ready : now, .kind = PREPARED, .group = r->group, .r = r }, e);
}

/* ---- the device: towers --------------------------------------------------------------------------------------- */

/* As engine/encode.c: batches of the film, then of its sound, until max_work is done. */
static bool encode(struct world *w, struct request *r, double max_work, double *work, double *took)
{
    const struct sim_options *o = w->o;
    const struct sim_shape *s = r->kind->shape;
    const uint32_t film = s->patches ? s->item.steps : 0;
    if (r->cached) {
        if (o->device.memory > 0) *took += r->kind->plan.n_orig * (double)o->model.work.d * sizeof(float) / o->device.memory;
        return true;
    }
    if (!r->enc_sound && r->enc_step < film) {
        const uint32_t at_once = work_grids_at_once(s->patches);
        do {
            const uint32_t n = film - r->enc_step < at_once ? film - r->enc_step : at_once;
            *work += work_patches(&o->model.work, (uint64_t)n * s->patches);
            *took += sim_tower_s(o, (uint64_t)n * s->patches, 0);
            r->enc_step += n;
        } while (r->enc_step < film && *work < max_work);
        if (r->enc_step < film) return false;
        r->enc_step = 0;
        r->enc_sound = true;
        if (s->frames && *work >= max_work) return false;
    }
    r->enc_sound = true;
    while (r->enc_step < s->frames) {
        const uint32_t left = s->frames - r->enc_step, n = left < o->model.audio_span ? left : o->model.audio_span;
        *work += work_frames(&o->model.work, n);
        *took += sim_tower_s(o, 0, n);
        r->enc_step += n;
        if (*work >= max_work) break;
    }
    return r->enc_step >= s->frames;
}

/* ---- the device: a group's march ------------------------------------------------------------------------------- */

static uint32_t page_rows(const struct world *w) { return w->o->page_tokens; }

/* What the pages of r's rows depend on, and those that an earlier prompt left. Pages with text in them are like nobody's. */
static status take_prefix(struct world *w, struct request *r, struct err *e)
{
    struct group *g = &w->group[r->group];
    const struct policy_plan *p = &r->kind->plan;
    const uint32_t rows = p->n_entry + r->kind->shape->n_text, per = page_rows(w), drop_at = r->kind->first_drop;
    r->n_blocks = r->n_hit = r->n_skip = 0;
    if (g->prefixes == NULL || p->n_orig == 0 || p->trim) return OK;
    free(r->digest);
    r->digest = NULL;
    TRY(mem_alloc(&r->digest, rows / per, sizeof *r->digest, e));
    r->n_blocks = rows / per;
    w->unique++;
    for (uint32_t b = 0; b < r->n_blocks; b++) {
        const bool own = (b + 1) * per > p->n_entry;
        const struct { uint64_t what, mine; uint32_t n_orig, n_entry, b, zero; } d = { r->what, own ? w->unique : 0, p->n_orig,
                                                                                     p->n_entry, b, 0 };
        _Static_assert(sizeof d == sizeof r->digest->byte, "a digest is its content");
        memcpy(r->digest[b].byte, &d, sizeof d);
    }
    const uint32_t most = (rows - 1) / per;
    const struct kv_prefix_hit hit = kv_prefix_find(g->prefixes, r->digest, most < r->n_blocks ? most : r->n_blocks, drop_at);
    w->n_begun += w->measuring;
    if (hit.n_blocks == 0) return OK;
    w->n_found += w->measuring;
    r->n_hit = hit.n_blocks;
    r->n_skip = hit.n_blocks * per;
    for (uint32_t l = 0; l < drop_at; l++) block_table_share(&r->table[l], g->pool, kv_prefix_pages(&hit, l), hit.n_blocks);
    sched_forfeit(g->s, &r->r, hit.n_blocks * drop_at, false);
    return OK;
}

/* For the next question about the same media: pages of the layers before the first drop, hidden states entering it. */
static double keep_prefix(struct world *w, struct request *r)
{
    struct group *g = &w->group[r->group];
    const uint32_t at = r->kind->first_drop, L = w->so.n_layers, per = page_rows(w), media = r->kind->plan.n_entry / per;
    const uint32_t n = at < L && media < r->n_blocks ? media : r->n_blocks;
    struct err none;
    if (at == 0 || n <= r->n_hit) return 0;
    const uint64_t bytes = at < L ? (uint64_t)n * per * w->o->model.work.d * sizeof(float) : 0;
    void *hidden = NULL;
    if (at < L && (hidden = malloc(1)) == NULL) return 0;
    kv_prefix_insert(g->prefixes, r->digest, n, at, r->table, hidden, bytes, &none);
    return w->o->device.memory > 0 ? (double)bytes / w->o->device.memory : 0;
}

static bool chooses_before(const struct request *r, uint32_t l)
{
    const struct policy_plan *p = &r->kind->plan;
    return p->go && p->selects[l] && !p->scored[l];
}

/* ... when its K are there. */
static bool chooses_after(const struct request *r, uint32_t l) { return r->kind->plan.selects[l] && !chooses_before(r, l); }

/* Those that it drops at layer l are no keys there. */
static bool packs(const struct request *r, uint32_t l) { return r->kind->plan.go && chooses_after(r, l); }

static status march_begin(struct world *w, struct march *m, const struct sched_step *step, double *took, struct err *e)
{
    if (step->n > m->cap) {
        free(m->member);
        free(m->start);
        free(m->out);
        m->member = NULL;
        m->start = m->out = NULL;
        m->cap = 0;
        TRY(mem_alloc(&m->member, step->n, sizeof *m->member, e));
        TRY(mem_alloc(&m->start, step->n + 1, sizeof *m->start, e));
        TRY(mem_alloc(&m->out, step->n + 1, sizeof *m->out, e));
        m->cap = step->n;
    }
    m->n = step->n;
    m->l = m->cursor = 0;
    m->stage = AT_ENTER;
    m->start[0] = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        struct request *r = m->member[i] = step->list[i]->driver;
        const struct policy_plan *p = &r->kind->plan;
        const uint32_t rows = p->n_entry + r->kind->shape->n_text;
        sched_tighten(w->group[r->group].s, &r->r, r->bound, 0, rows);
        for (uint32_t l = 0; l < w->so.n_layers; l++)
            TRY(block_table_init(&r->table[l], w->group[r->group].pool, r->bound[l] + r->r.n_new, e));
        if (p->n_entry < p->n_orig) *took += p->n_orig * w->o->device.entry_row_s;
        TRY(take_prefix(w, r, e));
        m->start[i + 1] = m->start[i] + rows - r->n_skip;
    }
    return OK;
}

/* Rows that live past the layer, as start[] of them. */
static void list_survivors(const struct world *w, struct march *m)
{
    m->out[0] = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        const struct request *r = m->member[i];
        const uint32_t *alive = r->kind->plan.alive, n_text = r->kind->shape->n_text;
        uint32_t n = m->start[i + 1] - m->start[i];
        if (m->l + 1 == w->so.n_layers) n = 1;
        else if (chooses_after(r, m->l)) n = (packs(r, m->l) ? alive[m->l] : alive[m->l + 1]) + n_text;
        m->out[i + 1] = m->out[i] + n;
    }
}

/* Rows of shared prefixes join where tokens first drop, choices without scores that come before keys are made, pages taken. */
static void enter(struct world *w, struct march *m, double *took)
{
    bool whole = m->l + 1 < w->so.n_layers;
    uint32_t was = m->start[0], n = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        struct request *r = m->member[i];
        struct group *g = &w->group[r->group];
        const uint32_t n_text = r->kind->shape->n_text;
        uint32_t rows = m->start[i + 1] - was;
        was = m->start[i + 1];
        if (m->l == r->kind->first_drop) {
            rows += r->n_skip;
            r->n_skip = 0;
            if (r->digest) *took += keep_prefix(w, r);
        }
        if (chooses_before(r, m->l)) {
            const uint32_t left = r->kind->plan.alive[m->l];
            *took += sim_select_s(w->o, rows, rows - n_text, 0);
            sched_tighten(g->s, &r->r, r->bound, m->l, left + n_text);
            rows = left + n_text;
        }
        block_table_append(&r->table[m->l], g->pool, &r->r.reservation, rows);
        whole = whole && !chooses_after(r, m->l);
        m->start[i] = n;
        n += rows;
    }
    m->start[m->n] = n;
    m->cursor = 0;
    m->stage = whole ? AT_LAYER : AT_KV;
    if (whole) list_survivors(w, m);
}

/* Of a sequence of rows, of which `kept` live on: what the j-th of these sees, survivors lying evenly; the last of all sees
 * all. before: rows in shared pages, which all of them see. */
struct sight { uint32_t first, kept, before; double ratio; };

static uint32_t sees(const void *self, uint32_t i)
{
    const struct sight *s = self;
    return s->before + (uint32_t)((i - s->first + 1) * s->ratio);
}

static struct sight sight_of(const struct march *m, const uint32_t *rows, uint32_t i)
{
    const struct request *r = m->member[i];
    const uint32_t kept = rows[i + 1] - rows[i], here = m->start[i + 1] - m->start[i];
    if (kept == here) return (struct sight){ rows[i], kept, r->n_skip, 1 };
    const uint32_t keys = packs(r, m->l) ? r->kind->plan.alive[m->l] + r->kind->shape->n_text : r->n_skip + here;
    return (struct sight){ rows[i], kept, 0, (double)keys / kept };
}

/* The next range of rows and what it takes; false: there is none. */
static bool range(struct world *w, struct march *m, const uint32_t *rows, bool kv, bool mix, double max_work, double *work,
                  double *took, double *reduce)
{
    uint32_t i = 0, end = m->cursor;
    double sum = 0, keys = 0;
    while (i < m->n && rows[i + 1] <= m->cursor) i++;
    for (; i < m->n && (sum < max_work || end - m->cursor < WORK_ROWS_MIN); i++) {
        const uint32_t from = end;
        const struct sight s = sight_of(m, rows, i);
        end = work_take((kv ? w->cost.kv : 0) + (mix ? w->cost.mix : 0), w->cost.key, mix ? sees : NULL, &s, end, rows[i + 1],
                        end - m->cursor, max_work, &sum);
        const double a = from - rows[i], b = end - rows[i];
        keys += s.before * (b - a) + s.ratio * (b * (b + 1) - a * (a + 1)) / 2;
    }
    if (end == m->cursor) return false;
    *work += sum;
    *took += sim_range_s(w->o, end - m->cursor, kv, mix, mix ? keys : 0, reduce);
    m->cursor = end;
    return true;
}

static void leave(const struct world *w, struct march *m)
{
    uint32_t *t = m->start;
    m->start = m->out;
    m->out = t;
    m->l++;
    m->cursor = 0;
    m->stage = m->l == w->so.n_layers ? AT_END : AT_ENTER;
}

/* One member's scores and choice. */
static void score(struct world *w, struct march *m, double *work, double *took)
{
    const uint32_t i = m->cursor++, l = m->l;
    struct request *r = m->member[i];
    const struct policy_plan *p = &r->kind->plan;
    if (!chooses_after(r, l)) return;
    const uint32_t n = m->start[i + 1] - m->start[i], n_text = r->kind->shape->n_text;
    const bool walks = p->scored[l] && p->needs & PRUNE_NEEDS_PAGERANK;
    uint32_t n_query = p->scored[l] && p->needs & PRUNE_NEEDS_ROW_SCORES ? r->kind->shape->n_query : 0, times = 0;
    double none = 0;
    if (walks) {                   /* each of five walks goes along half of the pairs */
        n_query = (uint32_t)(5 * (uint64_t)n / 2);
        times = 1;
    } else if (p->scored[l] && p->back) {
        times = 2;                 /* keys by the weights of another layer, then its own again */
    }
    if (n_query) *work += work_scores(&w->cost, n_query, n);
    *work += times * n * w->cost.kv;
    *took += sim_select_s(w->o, n, n - n_text, n_query) + times * sim_range_s(w->o, n, true, false, 0, &none);
    sched_tighten(w->group[r->group].s, &r->r, r->bound, l + 1, p->alive[packs(r, l) ? l : l + 1] + n_text);
}

/* As engine/march.c's: layer l of r's prompt keeps n rows. */
static status shrink(struct world *w, struct request *r, uint32_t l, uint32_t n, uint32_t *freed, struct err *e)
{
    struct group *g = &w->group[r->group];
    struct block_table *t = &r->table[l];
    const uint32_t had_pages = t->n_pages, promised = kv_pages_of(g->pool, t->n_rows + r->r.n_new) - had_pages;
    block_table_trim(t, g->pool, n);
    *freed += had_pages - t->n_pages;
    const uint32_t needed = kv_pages_of(g->pool, n + r->r.n_new) - t->n_pages;
    if (needed > promised) TRY(kv_reserve(g->pool, needed - promised, &r->r.reservation, e));
    if (needed < promised) sched_forfeit(g->s, &r->r, promised - needed, true);
    return OK;
}

static void note_freed(struct world *w, struct group *g, uint32_t pages)
{
    sched_pruned(g->s, pages);
    if (w->measuring) w->freed += pages;
}

/* The dropped of those whose choice comes before keys leave the pages again. */
static status pack(struct world *w, struct march *m, struct err *e)
{
    for (uint32_t i = 0; i < m->n; i++) {
        struct request *r = m->member[i];
        const uint32_t n = r->kind->plan.alive[m->l] + r->kind->shape->n_text;
        uint32_t pages = 0;
        if (!packs(r, m->l) || n >= r->table[m->l].n_rows) continue;
        TRY(shrink(w, r, m->l, n, &pages, e));
        note_freed(w, &w->group[r->group], pages);
    }
    return OK;
}

/* engine/march.c's piece. */
static status piece(struct world *w, struct march *m, double max_work, double *work, double *took, double *reduce, struct err *e)
{
    switch (m->stage) {
    case AT_ENTER: enter(w, m, took); return OK;
    case AT_LAYER:
        if (!range(w, m, m->start, true, true, max_work, work, took, reduce)) leave(w, m);
        return OK;
    case AT_KV:
        if (range(w, m, m->start, true, false, max_work, work, took, reduce)) return OK;
        m->stage = AT_SCORE;
        m->cursor = 0;
        return OK;
    case AT_SCORE:
        if (m->cursor < m->n) {
            score(w, m, work, took);
            return OK;
        }
        TRY(pack(w, m, e));
        list_survivors(w, m);
        m->stage = AT_MIX;
        m->cursor = 0;
        return OK;
    case AT_MIX:
        if (!range(w, m, m->out, false, true, max_work, work, took, reduce)) leave(w, m);
        return OK;
    case AT_END: break;
    }
    return OK;
}

/* As engine/march.c's: shallow layers keep what lives trim_lag layers deeper. */
static status trim(struct world *w, struct request *r, struct err *e)
{
    const struct policy_plan *p = &r->kind->plan;
    const uint32_t L = w->so.n_layers;
    uint32_t pages = 0;
    for (uint32_t l = 0; l < L; l++) {
        const uint32_t to = l + p->trim_lag < L - 1 ? l + p->trim_lag : L - 1, n = p->alive[to] + r->kind->shape->n_text;
        if (n < r->table[l].n_rows) TRY(shrink(w, r, l, n, &pages, e));
    }
    note_freed(w, &w->group[r->group], pages);
    return OK;
}

/* As engine/decode.c's: further choices share the prompt's full pages and copy the last. */
static status fork_choices(struct world *w, struct request *r, struct err *e)
{
    struct group *g = &w->group[r->group];
    const uint32_t L = w->so.n_layers, per = page_rows(w);
    for (uint32_t i = 1; i < r->kind->n_choices; i++)
        for (uint32_t l = 0; l < L; l++) {
            const struct block_table *from = &r->table[l];
            struct block_table *t = &r->table[i * L + l];
            TRY(block_table_init(t, g->pool, r->bound[l] + r->r.n_new, e));
            block_table_share(t, g->pool, from->page, from->n_rows / per);
            if (from->n_rows % per) block_table_append(t, g->pool, &r->r.reservation, from->n_rows % per);
        }
    return OK;
}

static status march_end(struct world *w, struct march *m, double now, struct err *e)
{
    for (uint32_t i = 0; i < m->n; i++) {
        struct request *r = m->member[i];
        if (r->digest && r->kind->first_drop == w->so.n_layers) keep_prefix(w, r);
        free(r->digest);
        r->digest = NULL;
        if (r->kind->plan.trim) TRY(trim(w, r, e));
        for (uint32_t l = 0; l < w->so.n_layers; l++) r->kv_rows += r->table[l].n_rows;
        TRY(fork_choices(w, r, e));
        if (w->measuring && r->n_done == 0) {
            w->n_prefilled++;
            w->prompt_tokens += r->kind->plan.n_orig + r->kind->shape->n_text;
            w->promised += (double)r->kind->demand;
            w->unpruned += (double)r->kind->unpruned;
            w->freed += (double)(r->kind->unpruned - r->kind->demand);
        }
        if (r->n_done == 0) token(w, r, now);
    }
    return OK;
}

/* ---- the device: steps ---------------------------------------------------------------------------------------- */

static status do_prefill(struct world *w, struct group *g, const struct sched_step *step, double now, double slow, double *took,
                         double *reduce, struct err *e)
{
    struct march *m = &g->march[step->group];
    double work = 0;
    if (step->begins) TRY(march_begin(w, m, step, took, e));
    do TRY(piece(w, m, step->max_work - work, &work, took, reduce, e));
    while (m->stage != AT_END && work < step->max_work);
    const bool done = m->stage == AT_END;
    if (done) *took += sim_logits_s(w->o, m->n, reduce);
    *took *= slow;
    const double left = done ? 0 : (double)(w->so.n_layers - m->l) * m->start[m->n] * (w->cost.kv + w->cost.mix);
    const double end = now + *took;
    uint32_t n_tokens = 0;
    for (uint32_t i = 0; done && i < m->n; i++) n_tokens += m->member[i]->n_done ? 0 : m->member[i]->kind->n_choices;
    if (done) TRY(march_end(w, m, end, e));
    sched_quantum(g->s, step->group, work, *took);
    sched_group_left(g->s, step->group, left);
    if (!done) return OK;
    front(w, n_tokens * w->o->front.token_s, 0, w->share);
    sched_prefilled(g->s, step->group, end);
    for (uint32_t i = 0; i < m->n; i++)
        if (m->member[i]->n_done >= m->member[i]->kind->shape->n_out) TRY(request_over(w, m->member[i], end, e));
    m->n = 0;
    return OK;
}

static status do_decode(struct world *w, struct group *g, const struct sched_step *step, double now, double slow, double *took,
                        double *reduce, struct err *e)
{
    double kv_rows = 0;
    uint32_t rows = 0, n_tokens = 0;
    for (uint32_t i = 0; i < step->n; i++) {
        struct request *r = step->list[i]->driver;
        const uint32_t n = r->kind->n_choices;
        for (uint32_t k = 0; k < n * w->so.n_layers; k++) block_table_append(&r->table[k], g->pool, &r->r.reservation, 1);
        r->kv_rows += w->so.n_layers;
        kv_rows += (double)r->kv_rows * n;
        rows += n;
        n_tokens += ++r->n_played == r->n_done ? n : 0;
    }
    *took = sim_decode_s(w->o, rows, kv_rows, reduce) * slow;
    const double end = now + *took;
    front(w, n_tokens * w->o->front.token_s, 0, w->share);
    for (uint32_t i = 0; i < step->n; i++) {
        struct request *r = step->list[i]->driver;
        if (r->n_played == r->n_done) token(w, r, end);    /* else it feeds old ones again */
    }
    sched_decoded(g->s, end, *took);
    for (uint32_t i = 0; i < step->n; i++) {
        struct request *r = step->list[i]->driver;
        if (r->n_done >= r->kind->shape->n_out) TRY(request_over(w, r, end, e));
    }
    return OK;
}

/* Those that were admitted meanwhile wait no longer. */
static void note_admitted(struct group *g)
{
    struct sched_counts c;
    sched_read(g->s, &c);
    if (c.n_admitted == g->n_admitted) return;
    g->n_admitted = c.n_admitted;
    for (struct request *r = g->live; r; r = r->next) {
        if (!r->pending || r->r.state == SCHED_NEW || r->r.state == SCHED_WAITING) continue;
        r->pending = false;
        g->pending_pages -= r->kind->demand;
        g->n_pending--;
    }
}

/* The device of group gi is free. */
static status device(struct world *w, uint32_t gi, double now, struct err *e)
{
    struct group *g = &w->group[gi];
    struct sched_step step;
    struct sched_counts c;
    double took = 0, reduce = 0, work = 0;
    const bool measured = w->measuring;
    account(w, g, now);
    sched_next(g->s, now, &step);
    note_admitted(g);
    account(w, g, now);
    sched_read(g->s, &c);
    g->idle = step.kind == SCHED_NOTHING;
    const double slow = slowed(w, cores_busy(w, g, now) + w->o->device.device_threads);
    switch (step.kind) {
    case SCHED_NOTHING: set_room(w, gi); return OK;
    case SCHED_ENCODE: {
        struct request *r = step.one->driver;
        const bool done = encode(w, r, step.max_work, &work, &took);
        took *= slow;
        r->encoded = done;
        sched_encoded(g->s, &r->r, done, work, took);
        break;
    }
    case SCHED_PREFILL: TRY(do_prefill(w, g, &step, now, slow, &took, &reduce, e)); break;
    case SCHED_DECODE: TRY(do_decode(w, g, &step, now, slow, &took, &reduce, e)); break;
    }
    w->n_steps++;
    if (measured) {                /* not the step in which the window began */
        g->busy += took;
        g->reduce += reduce * slow;
        if (c.n_waiting) *(c.n_sequences < w->so.max_running ? &g->waits_pages : &g->waits_slots) += took;
    }
    set_room(w, gi);
    if (w->o->check) sched_check(g->s);
    return push(w, (struct event){ .at = now + took, .kind = DEVICE, .group = gi }, e);
}

/* ---- arrivals -------------------------------------------------------------------------------------------------- */

static status arrival(struct world *w, double now, struct err *e)
{
    const struct sim_options *o = w->o;
    const struct kind *k = &w->kind[draw(w) % w->n_kinds];
    const bool open = o->rate > 0;
    if (open) TRY(arrive_again(w, now - log(uniform(w)) / o->rate, e));
    /* An open stream comes whole to the front end; of groups that are not simulated no more is seen. */
    const double ready = now + front(w, o->front.request_s, k->shape->bytes, open ? 1 : w->share);
    const uint64_t media = k->shape->media ? k->shape->media : (uint64_t)1 << 63 | ++w->unique;
    const double lot = k->shape->media ? (double)(media * 0x9e3779b97f4a7c15u >> 11) * 0x1p-53 : uniform(w);
    if (open && lot * w->share >= 1) return OK;
    const uint32_t gi = route(w, k, k->shape->media);
    if (w->group[gi].n_pending >= o->max_waiting) {
        w->res.n_refused += w->measuring;
        return open ? OK : arrive_again(w, now + RETRY_S, e);
    }
    struct request *r;
    TRY(make_request(w, k, media, now, gi, &r, e));
    set_room(w, gi);
    return prepare(w, r, ready, e);
}

static status prepared(struct world *w, struct request *r, double now, struct err *e)
{
    struct group *g = &w->group[r->group];
    TRY(sched_add(g->s, &r->r, e));
    if (!g->idle) return OK;
    g->idle = false;
    return push(w, (struct event){ .at = now, .kind = DEVICE, .group = r->group }, e);
}

/* ---- life ------------------------------------------------------------------------------------------------------ */

static status make_kinds(struct world *w, const struct kv_pool *pool, struct err *e)
{
    const struct sim_options *o = w->o;
    const uint32_t L = w->so.n_layers;
    uint64_t least = UINT64_MAX;
    TRY(mem_alloc(&w->kind, o->n_shapes, sizeof *w->kind, e));
    for (uint32_t i = 0; i < o->n_shapes; i++) {
        const struct sim_shape *s = &o->shape[i];
        struct kind *k = &w->kind[w->n_kinds];
        const struct prune_shape ps = { .n_layers = L, .n_items = s->n_items, .item = &s->item };
        if (s->n_text == 0 || s->n_new == 0 || s->n_out == 0 || s->n_out > s->n_new || s->n_items > 1)
            return err_set(e, E_ARG, "shape %u: %u text tokens, %u of at most %u tokens of answer, %u media: out of range", i,
                           s->n_text, s->n_out, s->n_new, s->n_items);
        *k = (struct kind){ .shape = s, .n_choices = s->n_choices ? s->n_choices : 1 };
        if (k->n_choices > w->so.max_running)
            return err_set(e, E_ARG, "shape %u: %u choices are asked for and at most %u sequences run at once", i, k->n_choices,
                           w->so.max_running);
        TRY(prune_plan_shape(o->policy, &ps, &k->plan, e));
        w->n_kinds++;              /* freed from now on */
        TRY(mem_alloc(&k->bound, L, sizeof *k->bound, e));
        for (uint32_t l = 0; l < L; l++) k->bound[l] = prune_plan_rows(&k->plan, l) + s->n_text;
        while (k->first_drop < L && !k->plan.selects[k->first_drop]) k->first_drop++;
        const struct sched_request r = { .n_choices = k->n_choices, .n_new = s->n_new, .bound = k->bound };
        k->demand = sched_demand(pool, L, &r);
        const uint32_t further = (k->n_choices - 1) * (kv_pages_of(pool, s->n_new) + 1);
        k->unpruned = (uint64_t)L * (kv_pages_of(pool, k->plan.n_orig + s->n_text + s->n_new) + further);
        if (k->demand < least) least = k->demand;
        if (k->demand <= kv_n_total(pool)) continue;
        prune_plan_free(&k->plan);
        free(k->bound);
        w->n_kinds--;
        w->res.n_too_large++;
    }
    if (w->n_kinds > 0) return OK;
    return err_set(e, E_FULL, "the smallest request needs %llu pages of KV and the pool of a group has %u",
                   (unsigned long long)least, kv_n_total(pool));
}

static status open_world(struct world *w, struct err *e)
{
    const struct sim_options *o = w->o;
    w->n = o->simulated && o->simulated < o->groups ? o->simulated : o->groups;
    w->share = (double)o->groups / w->n;
    w->n_cores = o->device.host_cores * o->tp;
    w->so = o->sched;
    w->so.n_layers = o->model.work.L;
    w->so.max_waiting = UINT32_MAX;        /* what is refused is refused at the door */
    w->so.reclaim = reclaim;
    w->so.drop = drop;
    w->cost = work_row(&o->model.work);
    w->leaves = 1;
    while (w->leaves < w->n) w->leaves *= 2;
    TRY(mem_alloc(&w->room, 2 * (size_t)w->leaves, sizeof *w->room, e));
    for (uint32_t i = 0; i < 2 * w->leaves; i++) w->room[i] = INT64_MIN;
    TRY(mem_alloc(&w->group, w->n, sizeof *w->group, e));
    for (uint32_t i = 0; i < w->n; i++) {
        struct group *g = &w->group[i];
        const struct kv_prefix_options po = { .n_layers = w->so.n_layers, .hidden_bytes_max = o->hidden_bytes,
                                              .free_hidden = free_hidden };
        g->w = w;
        w->so.self = g;
        TRY(kv_pool_create(o->n_pages, o->page_tokens, &g->pool, e));
        TRY(sched_create(&w->so, g->pool, &g->s, e));
        if (o->hidden_bytes) TRY(kv_prefix_create(&po, g->pool, &g->prefixes, e));
        TRY(mem_alloc(&g->core, w->n_cores, sizeof *g->core, e));
        g->idle = true;
        set_room(w, i);
    }
    return make_kinds(w, w->group[0].pool, e);
}

/* Whoever is still there goes; every page must be home then. */
static void close_world(struct world *w)
{
    for (uint32_t i = 0; w->group && i < w->n; i++) {
        struct group *g = &w->group[i];
        for (struct request *r; g->s && (r = g->live) != NULL; request_free(w, r)) {
            drop_pages(w, r);
            sched_end(g->s, &r->r);
        }
        for (uint32_t k = 0; k < SCHED_GROUPS; k++) {
            free(g->march[k].member);
            free(g->march[k].start);
            free(g->march[k].out);
        }
        sched_destroy(&g->s);
        kv_prefix_destroy(&g->prefixes);
        kv_pool_destroy(&g->pool);
        free(g->media);
        free(g->core);
    }
    for (uint32_t i = 0; i < w->n_kinds; i++) {
        prune_plan_free(&w->kind[i].plan);
        free(w->kind[i].bound);
    }
    free(w->kind);
    free(w->group);
    free(w->room);
    free(w->heap);
}

static void summarise(struct world *w)
{
    struct sim_result *s = &w->res;
    const double t = w->end - w->begin, share = w->share;
    uint32_t most = 0;
    s->groups = w->o->groups;
    s->simulated = w->n;
    s->seconds = t;
    s->n_ended = w->n_ended - w->ended_before;
    s->at_once_max *= share;
    s->n_steps = w->n_steps;
    s->first = times_of(&w->first);
    s->between = times_of(&w->between);
    s->whole = times_of(&w->whole);
    if (t <= 0) return;
    for (uint32_t i = 0; i < w->n; i++) {
        struct group *g = &w->group[i];
        account(w, g, w->end);
        s->at_once_mean += g->at_once / t * share;
        s->pages_mean += g->pages / t / w->n / w->o->n_pages;
        s->busy += g->busy / t / w->n;
        s->hosts += w->n_cores ? g->hosts / t / w->n / w->n_cores : 0;
        s->reduce += g->reduce / t / w->n;
        s->waits_pages += g->waits_pages / t / w->n;
        s->waits_slots += g->waits_slots / t / w->n;
        if (kv_n_held_max(g->pool) > most) most = kv_n_held_max(g->pool);
    }
    s->pages_max = (double)most / w->o->n_pages;
    s->requests_s = (double)s->n_ended / t * share;
    s->tokens_s = (double)w->generated / t * share;
    s->prompt_tokens_s = (double)w->prompt_tokens / t * share;
    s->pages_freed_s = w->freed / t * share;
    s->front = (w->front_busy - fmax(0, w->front_free - w->end)) / t;
    s->link = (w->link_busy - fmax(0, w->link_free - w->end)) / t;
    if (w->n_prefilled) {
        s->pages_promised = w->promised / (double)w->n_prefilled;
        s->pages_unpruned = w->unpruned / (double)w->n_prefilled;
    }
    if (w->n_media) s->media_cached = (double)w->n_cached / (double)w->n_media;
    if (w->n_begun) s->prefix_found = (double)w->n_found / (double)w->n_begun;
    s->n_preempted = n_preempted(w) - w->preempted_before;
}

static status run(struct world *w, struct err *e)
{
    const struct sim_options *o = w->o;
    TRY(open_world(w, e));
    if (o->warmup == 0) begin_window(w, 0);
    if (o->rate > 0) TRY(arrive_again(w, 0, e));
    else {
        const uint64_t clients = (uint64_t)ceil((double)o->clients / w->share);
        for (uint64_t i = 0; i < clients; i++) TRY(arrive_again(w, 0, e));
    }
    while (w->n_events && !w->over) {
        const struct event ev = pop(w);
        w->now = ev.at;
        switch (ev.kind) {
        case ARRIVAL: TRY(arrival(w, ev.at, e)); break;
        case PREPARED: TRY(prepared(w, ev.r, ev.at, e)); break;
        case DEVICE: TRY(device(w, ev.group, ev.at, e)); break;
        }
    }
    summarise(w);
    return OK;
}

static status check(const struct sim_options *o, struct err *e)
{
    if (o->tp == 0 || o->groups == 0 || o->n_shapes == 0)
        return err_set(e, E_ARG, "%u ranks a group, %u groups, %u shapes of requests: all must be above 0", o->tp, o->groups, o->n_shapes);
    if (o->tp > o->model.work.H)
        return err_set(e, E_ARG, "%u ranks a group: the model has %u heads", o->tp, o->model.work.H);
    if (o->measured == 0 || o->max_waiting == 0) return err_set(e, E_ARG, "nothing is measured, or nobody may wait");
    if (!(o->rate > 0) && o->clients == 0) return err_set(e, E_ARG, "neither a rate of arrivals nor clients");
    if (o->model.audio_span == 0) return err_set(e, E_ARG, "the audio tower takes 0 frames at once");
    return OK;
}

status sim_run(const struct sim_options *o, struct sim_result *out, struct err *e)
{
    struct world *w;
    TRY(check(o, e));
    TRY(mem_alloc(&w, 1, sizeof *w, e));
    w->o = o;
    w->rng = o->seed;
    const status st = run(w, e);
    *out = w->res;
    close_world(w);
    free(w);
    return st;
}
