/* comm/comm.c - see comm.h: the world and its groups, launchers, dispatch to a backend, staging, waiting, error texts. */
#include "comm/comm.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/plugin.h"
#include "base/threads.h"
#include "comm/inside.h"
#include "kernels/ops.h"

#define START_S 60.0               /* for what ranks do together before anyone watches */
#define LEFT_GRACE_S 1.0           /* what a rank sent before it left may still be on its way */
#define FINALIZE_S 10.0

/* ---- waiting ----------------------------------------------------------------------------------------------- */

void nap(double seconds)
{
    const struct timespec t = { .tv_nsec = (long)(seconds * 1e9) };
    nanosleep(&t, NULL);
}

void wait_begin(struct wait *w, const char *call) { *w = (struct wait){ .call = call, .start = clock_s() }; }
void wait_moved(struct wait *w) { w->turns = 0; }

/* Spin, yield, nap. The clock and the dead are looked at every turn: the MPI call between two turns may yield by itself, and
 * on a busy machine that is milliseconds. */
static void wait_relax(struct wait *w)
{
    enum { SPINS = 300, YIELDS = 300 };
    w->turns++;
    if (w->turns <= SPINS) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    } else if (w->turns <= SPINS + YIELDS) {
        sched_yield();
    } else {
        nap(w->turns < SPINS + YIELDS + 20 ? 50e-6 : 200e-6);
    }
}

static const struct comm_peer *own(const struct comm *c) { return &c->w->peer[c->w->rank]; }

static status gone_err(const struct comm *c, const char *call, double waited, const struct err *why, struct err *e)
{
    return err_set(e, E_DEVICE, "%s: %s; rank %u (pid %lld on host %s) waited %.1f s", call, why->text, c->w->rank,
                   (long long)own(c)->pid, own(c)->host, waited);
}

status comm_check(struct comm *c, const char *call, double waited, bool messages, uint32_t peer, struct err *e)
{
    struct err why;
    const uint32_t broken = atomic_load_explicit(&c->broken, memory_order_acquire);
    if (broken & (messages ? BROKEN_MESSAGES : BROKEN_TENSORS))
        return err_set(e, c->broken_why.code, "%s: this group broke before: %.900s", call, c->broken_why.text);
    if (watch_count(c->w->watch) == 0) return OK;
    const uint32_t first = watch_first(c->w->watch, c->member, messages ? c->accepted : NULL, peer, c->size, LEFT_GRACE_S);
    if (first != UINT32_MAX && watch_gone(c->w->watch, first, LEFT_GRACE_S, &why)) return gone_err(c, call, waited, &why, e);
    if (c->w->rank != 0 && watch_gone(c->w->watch, 0, LEFT_GRACE_S, &why)) return gone_err(c, call, waited, &why, e);
    return OK;
}

status comm_break(struct comm *c, enum broken what, const struct err *e)
{
    pthread_mutex_lock(&c->inbox_lock);
    if (!(atomic_load(&c->broken) & what)) {
        c->broken_why = *e;
        atomic_fetch_or_explicit(&c->broken, what, memory_order_release);
    }
    pthread_mutex_unlock(&c->inbox_lock);
    return e->code;
}

status comm_late(struct comm *c, const char *call, enum broken what, double waited, struct err *e)
{
    struct err own_err;
    if (e == NULL) e = &own_err;
    err_set(e, E_DEVICE, "%s: no answer within %.1f s; rank %u (pid %lld on host %s) waited for %u others, all of which show "
            "signs of life", call, waited, c->w->rank, (long long)own(c)->pid, own(c)->host, c->size - 1);
    return comm_break(c, what, e);
}

status wait_turn(struct comm *c, struct wait *w, struct err *e)
{
    wait_relax(w);
    return wait_look(c, w, e);
}

status wait_look(struct comm *c, struct wait *w, struct err *e)
{
    const double waited = clock_s() - w->start;
    struct err own_err;
    if (e == NULL) e = &own_err;
    if (watch_count(c->w->watch) != 0 && comm_check(c, w->call, waited, false, UINT32_MAX, e) != OK)
        return comm_break(c, BROKEN_TENSORS, e);
    return waited < c->w->o.timeout_s ? OK : comm_late(c, w->call, BROKEN_TENSORS, waited, e);
}

status wait_turn_message(struct comm *c, struct wait *w, uint32_t peer, struct err *e)
{
    wait_relax(w);
    const double waited = clock_s() - w->start;
    struct err why;
    if (watch_gone(c->w->watch, c->member[peer], LEFT_GRACE_S, &why) || (c->w->rank != 0 && watch_gone(c->w->watch, 0, LEFT_GRACE_S, &why)))
        return gone_err(c, w->call, waited, &why, e);
    return waited < c->w->o.timeout_s ? OK : comm_late(c, w->call, BROKEN_MESSAGES, waited, e);
}

status comm_mpi_err(struct comm *c, const char *call, int rc, struct err *e)
{
    char text[256];
    struct err own_err;
    if (e == NULL) e = &own_err;
    c->w->mpi->text(rc, text, sizeof text);
    err_set(e, E_DEVICE, "%s on rank %u (pid %lld on host %s): MPI says: %s", call, c->w->rank, (long long)own(c)->pid,
            own(c)->host, text);
    comm_break(c, BROKEN_MESSAGES, e);
    return comm_break(c, BROKEN_TENSORS, e);
}

/* ---- launchers -------------------------------------------------------------------------------------------- */

static bool env_number(const char *name, uint32_t *out)
{
    const char *s = getenv(name);
    char *end;
    if (s == NULL || *s == 0) return false;
    const unsigned long v = strtoul(s, &end, 10);
    if (*end != 0 || v == 0 || v > 1u << 20) return false;
    *out = (uint32_t)v;
    return true;
}

bool comm_launched(uint32_t *size)
{
    /* Open MPI, MVAPICH, MPICH and Intel MPI; a step of srun (a batch script alone has no step size). */
    static const char *const sizes[] = { "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS" };
    *size = 1;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (env_number(sizes[i], size)) return *size > 1;
    if (getenv("PMIX_RANK") == NULL || getenv("PMIX_NAMESPACE") == NULL) return false;
    *size = 0;                     /* PMIx of another launcher: how many, MPI will say */
    return true;
}

/* MPI is opened and closed in a thread of its own, since either may wait for ranks that never come. */
struct starter {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t turn;
    const struct mpi_lib *mpi;
    enum { OPENING, OPEN, CLOSING, CLOSED } state;
    int rc, rank, size, tag_max;
};

static void *starter_main(void *arg)
{
    struct starter *s = arg;
    int rank = 0, size = 0, tag_max = 0;
    const int rc = s->mpi->open(&rank, &size, &tag_max);
    pthread_mutex_lock(&s->lock);
    s->rc = rc;
    s->rank = rank;
    s->size = size;
    s->tag_max = tag_max;
    s->state = OPEN;
    pthread_cond_broadcast(&s->turn);
    while (s->state != CLOSING) pthread_cond_wait(&s->turn, &s->lock);
    pthread_mutex_unlock(&s->lock);
    if (rc == 0) s->mpi->close();
    pthread_mutex_lock(&s->lock);
    s->state = CLOSED;
    pthread_cond_broadcast(&s->turn);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* Waits until the state is at least `state`; false: the time is up, or `watch` has seen somebody die. */
static bool starter_wait(struct starter *s, int state, double seconds, const struct watch *watch)
{
    const double until = clock_s() + seconds;
    const uint32_t gone = watch_count(watch);
    pthread_mutex_lock(&s->lock);
    while ((int)s->state < state && clock_s() < until && watch_count(watch) == gone) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 50000000;
        if (t.tv_nsec >= 1000000000) {
            t.tv_nsec -= 1000000000;
            t.tv_sec++;
        }
        pthread_cond_timedwait(&s->turn, &s->lock, &t);
    }
    const bool there = (int)s->state >= state;
    pthread_mutex_unlock(&s->lock);
    return there;
}

static status starter_open(const struct mpi_lib *mpi, double seconds, struct starter **out, struct err *e)
{
    struct starter *s = mem_must(1, sizeof *s);
    s->mpi = mpi;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->turn, NULL);
    *out = s;
    if (pthread_create(&s->thread, NULL, starter_main, s) != 0) {
        free(s);
        *out = NULL;
        return err_set(e, E_NOMEM, "the thread that starts MPI cannot be started");
    }
    pthread_detach(s->thread);
    if (!starter_wait(s, OPEN, seconds, NULL)) {
        *out = NULL;               /* the thread keeps it */
        return err_set(e, E_DEVICE, "MPI_Init (pid %ld): the other ranks have not all come within %.0f s", (long)getpid(), seconds);
    }
    if (s->rc == 0) return OK;
    char text[256];
    mpi->text(s->rc, text, sizeof text);
    return err_set(e, E_DEVICE, "MPI_Init (pid %ld): %s", (long)getpid(), text);
}

static void starter_close(struct starter **s, double seconds, const struct watch *watch)
{
    if (*s == NULL) return;
    pthread_mutex_lock(&(*s)->lock);
    (*s)->state = CLOSING;
    pthread_cond_broadcast(&(*s)->turn);
    pthread_mutex_unlock(&(*s)->lock);
    starter_wait(*s, CLOSED, seconds, watch);
    *s = NULL;                     /* its thread may not have let go of it yet: a few bytes stay */
}

/* ---- opening ----------------------------------------------------------------------------------------------- */

static struct comm *comm_new(struct world *w, uint32_t rank, uint32_t size, uint32_t ctx, const struct comm_ops *ops)
{
    struct comm *c = mem_must(1, sizeof *c);
    *c = (struct comm){ .w = w, .rank = rank, .size = size, .ctx = ctx, .ops = ops };
    c->member = mem_must(size, sizeof *c->member);
    c->accepted = mem_must(size, 1);
    c->post_lock = mem_must(size, sizeof *c->post_lock);
    c->inbox_end = &c->inbox;
    for (uint32_t i = 0; i < size; i++) pthread_mutex_init(&c->post_lock[i], NULL);
    pthread_mutex_init(&c->pull_lock, NULL);
    pthread_mutex_init(&c->inbox_lock, NULL);
    return c;
}

static void comm_free(struct comm **c)
{
    struct comm *o = *c;
    inbox_clear(o);
    segment_close(&o->seg);
    for (uint32_t i = 0; i < o->size; i++) pthread_mutex_destroy(&o->post_lock[i]);
    pthread_mutex_destroy(&o->pull_lock);
    pthread_mutex_destroy(&o->inbox_lock);
    free(o->member);
    free(o->accepted);
    free(o->post_lock);
    free(o->stage);
    free(o);
    *c = NULL;
}

static struct world *world_new(const struct comm_options *o, uint32_t rank, uint32_t size)
{
    struct world *w = mem_must(1, sizeof *w);
    if (o != NULL) w->o = *o;
    if (!(w->o.timeout_s > 0)) w->o.timeout_s = 300;
    if (!(w->o.beat_s > 0)) w->o.beat_s = 1;
    if (!(w->o.silence_s > 0)) w->o.silence_s = 6;
    w->rank = rank;
    w->size = size;
    w->peer = mem_must(size, sizeof *w->peer);
    w->host = mem_must(size, sizeof *w->host);
    w->next_ctx = 1;
    struct comm_peer *p = &w->peer[rank];
    gethostname(p->host, sizeof p->host - 1);
    p->world = rank;
    p->n_local = 1;
    p->pid = getpid();
    snprintf(p->build, sizeof p->build, "%s", w->o.build ? w->o.build : "");
    w->o.build = p->build;
    return w;
}

static void world_free(struct world **w)
{
    segment_close(&(*w)->bells);
    free((*w)->peer);
    free((*w)->host);
    free(*w);
    *w = NULL;
}

status comm_self_open(struct comm **out, struct err *e)
{
    (void)e;
    struct comm *c = comm_new(world_new(NULL, 0, 1), 0, 1, 0, &comm_self_ops);
    c->is_world = c->all_local = true;
    *out = c;
    return OK;
}

/* What makes ranks share a host: one kernel, one name, one network (containers differ in the last two). */
static void host_key(char *key, size_t cap)
{
    char boot[64] = "", name[65] = "", net[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f != NULL) {
        if (fgets(boot, sizeof boot, f) == NULL) boot[0] = 0;
        fclose(f);
    }
    boot[strcspn(boot, "\n")] = 0;
    gethostname(name, sizeof name - 1);
    if (readlink("/proc/self/ns/net", net, sizeof net - 1) < 0) net[0] = 0;
    memset(key, 0, cap);
    if (snprintf(key, cap, "%s %s %s", boot, name, net) >= (int)cap) key[cap - 1] = 0;
}

struct hello { struct comm_peer peer; char key[200]; };
struct verdict { uint32_t code; char text[1000]; };

/* Everyone's peer to everyone, and how to reach rank 0's watcher. */
static status exchange_peers(struct comm *c, struct watch_place *place, struct err *e)
{
    struct world *w = c->w;
    struct hello mine = { .peer = w->peer[w->rank] }, *all = NULL;
    struct verdict v = { 0 };
    size_t *bytes = mem_must(w->size, sizeof *bytes);
    host_key(mine.key, sizeof mine.key);
    for (uint32_t i = 0; i < w->size; i++) bytes[i] = sizeof mine;
    status st = mem_alloc(&all, w->size, sizeof *all, e);
    if (st == OK) st = c->ops->gather(c, "exchanging ranks", 0, &mine, all, bytes, e);
    free(bytes);
    if (st == OK && w->rank == 0) {
        for (uint32_t i = 0; i < w->size; i++) {
            w->peer[i] = all[i].peer;
            w->host[i] = i;
            for (uint32_t k = 0; k < i; k++)
                if (memcmp(all[k].key, all[i].key, sizeof mine.key) == 0) {
                    w->host[i] = w->host[k];
                    break;
                }
        }
        for (uint32_t i = 0; i < w->size; i++) {
            struct comm_peer *p = &w->peer[i];
            p->local = p->n_local = 0;
            for (uint32_t k = 0; k < w->size; k++) {
                if (w->host[k] != w->host[i]) continue;
                p->n_local++;
                p->local += k < i;
            }
        }
        struct err why;
        if (watch_listen(w, place, &w->watch, &why) != OK) {
            v.code = (uint32_t)why.code;
            snprintf(v.text, sizeof v.text, "%.999s", why.text);
        }
    }
    free(all);
    if (st == OK) st = c->ops->broadcast(c, 0, &v, sizeof v, e);
    if (st == OK && v.code != OK) return err_set(e, (status)v.code, "%s", v.text);
    if (st == OK) st = c->ops->broadcast(c, 0, place, sizeof *place, e);
    if (st == OK) st = c->ops->broadcast(c, 0, w->peer, w->size * sizeof *w->peer, e);
    if (st == OK) st = c->ops->broadcast(c, 0, w->host, w->size * sizeof *w->host, e);
    if (st != OK) return st;
    for (uint32_t i = 1; i < w->size; i++)
        if (strcmp(w->peer[i].build, w->peer[0].build) != 0)
            return err_set(e, E_MODEL, "rank %u (pid %lld on host %s) is of build \"%s\", rank 0 (host %s) of build \"%s\": start "
                           "the same program everywhere", i, (long long)w->peer[i].pid, w->peer[i].host, w->peer[i].build,
                           w->peer[0].host, w->peer[0].build);
    return OK;
}

/* All agree on whether all could: the first reason is everybody's. */
static status agree(struct comm *c, status st, struct err *own_why, struct err *e)
{
    struct verdict mine = { .code = (uint32_t)st }, *all;
    size_t *bytes = mem_must(c->size, sizeof *bytes);
    for (uint32_t i = 0; i < c->size; i++) bytes[i] = sizeof mine;
    if (st != OK) snprintf(mine.text, sizeof mine.text, "%.999s", own_why->text);
    all = mem_must(c->size, sizeof *all);
    st = c->ops->gather(c, "agreeing", 0, &mine, all, bytes, e);
    if (st == OK && c->rank == 0)
        for (uint32_t i = c->size; i-- > 0;)
            if (all[i].code != OK) mine = all[i];
    if (st == OK) st = c->ops->broadcast(c, 0, &mine, sizeof mine, e);
    free(bytes);
    free(all);
    return st != OK || mine.code == OK ? st : err_set(e, (status)mine.code, "%s", mine.text);
}

static status open_watch(struct comm *c, const struct watch_place *place, struct err *e)
{
    struct world *w = c->w;
    struct err why = { 0 };
    status st = w->rank == 0 ? watch_accept(w->watch, 20, &why)
                             : watch_connect(w, place, w->host[w->rank] == w->host[0], 15, &w->watch, &why);
    TRY(agree(c, st, &why, e));
    return watch_start(w->watch, e);
}

static status open_bells(struct comm *c, struct err *e)
{
    struct world *w = c->w;
    uint32_t n = 0, *member = mem_must(w->size, sizeof *member);
    for (uint32_t i = 0; i < w->size; i++)
        if (w->host[i] == w->host[w->rank]) member[n++] = i;
    const status st = n > 1 ? segment_open(c, member, n, w->peer[w->rank].local, n * sizeof(struct bell), &w->bells, e) : OK;
    if (w->bells != NULL) w->bell = segment_memory(w->bells);
    free(member);
    return st;
}

/* Shared memory where all members are on one host. */
static status open_segment(struct comm *c, struct err *e)
{
    c->all_local = c->w->bells != NULL;
    bool one_host = true;
    for (uint32_t i = 0; i < c->size; i++) one_host = one_host && c->w->host[c->member[i]] == c->w->host[c->w->rank];
    c->all_local = c->all_local && one_host;
    const char *off = getenv("OMNIDROP_COMM");
    if (c->size < 2 || !one_host || (off != NULL && strcmp(off, "wire") == 0)) return OK;
    return segment_open(c, c->member, c->size, c->rank, segment_bytes(c->size), &c->seg, e);
}

/* Ranks of a host share out the CPUs that they may run on, so that no two pin threads to the same. */
static status share_cpus(struct comm *c, struct err *e)
{
    const struct world *w = c->w;
    const struct threads_cpus mine = threads_allowed();
    struct threads_cpus *all = mem_must(w->size, sizeof *all);
    size_t *bytes = mem_must(w->size, sizeof *bytes);
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->size; i++) bytes[i] = sizeof mine;
    const status st = c->ops->gather(c, "sharing out CPUs", UINT32_MAX, &mine, all, bytes, e);
    if (st == OK) {
        for (uint32_t i = 0; i < w->size; i++)
            if (w->host[i] == w->host[w->rank]) all[n++] = all[i];
        const struct threads_cpus part = threads_part(all, n, w->peer[w->rank].local);
        threads_own(&part, n);
    }
    free(bytes);
    free(all);
    return st;
}

static status world_start(struct comm *c, struct err *e)
{
    struct watch_place place = { 0 };
    TRY(exchange_peers(c, &place, e));
    TRY(share_cpus(c, e));
    TRY(open_watch(c, &place, e));
    TRY(open_bells(c, e));
    return open_segment(c, e);
}

status comm_world_open(const struct comm_options *o, struct comm **out, struct err *e)
{
    uint32_t size;
    char why[512] = "";
    *out = NULL;
    if (!comm_launched(&size)) {
        TRY(comm_self_open(out, e));
        struct world *w = (*out)->w;
        world_free(&w);
        (*out)->w = world_new(o, 0, 1);
        return OK;
    }
    const struct mpi_lib *mpi = plugin_symbol("omnidrop-mpi.so", MPI_LIB_SYMBOL, true, why, sizeof why);
    if (mpi == NULL || mpi->abi != MPI_LIB_ABI)
        return err_set(e, E_MODEL, "this is one of %u ranks, but MPI cannot be loaded: %s: install an MPI (Debian: libopenmpi-dev "
                       "openmpi-bin) and build again", size, mpi ? "omnidrop-mpi.so: of another version of this program" : why);
    struct starter *s;
    const double seconds = o != NULL && o->timeout_s > 0 && o->timeout_s < START_S ? o->timeout_s : START_S;
    TRY(starter_open(mpi, seconds, &s, e));
    if (s->size < 1 || (size != 0 && (uint32_t)s->size != size)) {
        char version[128];
        mpi->version(version, sizeof version);
        err_set(e, E_MODEL, "the launcher has started %u ranks, MPI (%s) sees %d: launcher and library are of different kinds; use "
                "the mpirun of that MPI, or srun --mpi=pmix", size, version, s->size);
        starter_close(&s, FINALIZE_S, NULL);
        return e ? e->code : E_MODEL;
    }
    struct world *w = world_new(o, (uint32_t)s->rank, (uint32_t)s->size);
    w->mpi = mpi;
    w->tag_max = s->tag_max;
    w->starter = s;
    struct comm *c = comm_new(w, w->rank, w->size, 0, w->size > 1 ? &comm_host_ops : &comm_self_ops);
    c->is_world = true;
    for (uint32_t i = 0; i < w->size; i++) c->member[i] = i;
    const double timeout = w->o.timeout_s;
    w->o.timeout_s = seconds;
    const status st = w->size > 1 ? world_start(c, e) : OK;
    w->o.timeout_s = timeout;
    if (w->size == 1) c->all_local = true;
    if (st == OK) {
        *out = c;
        return OK;
    }
    watch_stop(&w->watch);
    starter_close(&w->starter, FINALIZE_S, NULL);
    comm_free(&c);
    world_free(&w);
    return st;
}

struct choice { uint32_t color, key, next_ctx; };

status comm_split(struct comm *c, uint32_t color, uint32_t key, struct comm **out, struct err *e)
{
    struct world *w = c->w;
    struct choice mine = { color, key, atomic_load(&w->next_ctx) }, *all = mem_must(c->size, sizeof *all);
    size_t *bytes = mem_must(c->size, sizeof *bytes);
    uint32_t *in = mem_must(c->size, sizeof *in), n = 0, rank = 0;
    *out = NULL;
    for (uint32_t i = 0; i < c->size; i++) bytes[i] = sizeof mine;
    status st = comm_check(c, "comm_split", 0, false, UINT32_MAX, e);
    if (st == OK) st = c->ops->gather(c, "comm_split", UINT32_MAX, &mine, all, bytes, e);
    if (st != OK) goto out;
    uint32_t ctx = 0;
    for (uint32_t i = 0; i < c->size; i++)
        if (all[i].next_ctx > ctx) ctx = all[i].next_ctx;
    atomic_store(&w->next_ctx, ctx + 1);
    if (w->mpi != NULL && (uint64_t)ctx * N_CHANNELS + N_CHANNELS > (uint64_t)w->tag_max) {
        st = err_set(e, E_FULL, "comm_split: %u groups were made, this MPI has tags for no more", ctx);
        goto out;
    }
    if (color == UINT32_MAX) goto out;
    for (uint32_t i = 0; i < c->size; i++) {
        if (all[i].color != color) continue;
        uint32_t at = n++;
        while (at > 0 && all[in[at - 1]].key > all[i].key) {
            in[at] = in[at - 1];
            at--;
        }
        in[at] = i;
    }
    while (in[rank] != c->rank) rank++;
    struct comm *g = comm_new(w, rank, n, ctx, n > 1 ? c->ops : &comm_self_ops);
    for (uint32_t i = 0; i < n; i++) g->member[i] = c->member[in[i]];
    st = open_segment(g, e);
    if (st == OK) *out = g;
    else comm_free(&g);
out:
    free(all);
    free(bytes);
    free(in);
    return st;
}

/* ---- closing ----------------------------------------------------------------------------------------------- */

void comm_close(struct comm **cp)
{
    struct comm *c = *cp;
    if (c == NULL) return;
    comm_detach(c);
    if (!c->is_world) {
        comm_free(cp);
        return;
    }
    struct world *w = c->w;
    /* Nobody leaves while another may still wait for it. */
    const bool whole = w->size == 1 || (comm_check(c, "comm_close", 0, false, UINT32_MAX, NULL) == OK &&
                                        c->ops->barrier(c, "comm_close", NULL) == OK);
    if (whole) {
        starter_close(&w->starter, FINALIZE_S, w->watch);
        watch_stop(&w->watch);
    } else {
        watch_ends(w->watch, "it has closed its world after a failure");
        watch_stop(&w->watch);
    }
    comm_free(cp);
    world_free(&w);
}

static volatile sig_atomic_t exit_code;

static void exit_now(int sig)
{
    (void)sig;
    _exit(exit_code);
}

void comm_exit_within(unsigned seconds, int code)
{
    sigset_t alone;
    exit_code = code;
    signal(SIGALRM, exit_now);
    sigemptyset(&alone);
    sigaddset(&alone, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &alone, NULL);
    alarm(seconds);
}

_Noreturn void comm_exit(struct comm *world, int code)
{
    char why[64];
    snprintf(why, sizeof why, "the process has ended itself with exit code %d", code);
    if (world != NULL) watch_ends(world->w->watch, why);
    /* A pipe that nobody reads must not hold us, nor must a thread that waits in a read with its file locked. */
    comm_exit_within(1, code);
    fflush(stdout);
    fflush(NULL);
    _exit(code);
}

/* ---- who ---------------------------------------------------------------------------------------------------- */

uint32_t comm_rank(const struct comm *c) { return c->rank; }
uint32_t comm_size(const struct comm *c) { return c->size; }
const struct comm_peer *comm_peer(const struct comm *c, uint32_t rank) { return &c->w->peer[c->member[rank]]; }

const char *comm_name(const struct comm *c)
{
    return c->nccl_h != NULL ? "nccl" : c->staged && c->size > 1 ? "mpi, host-staged" : c->ops->name;
}

void comm_versions(const struct comm *c, char *text, size_t cap)
{
    char mpi[160] = "no MPI", nccl[160], why[256];
    if (c->w->mpi != NULL) c->w->mpi->version(mpi, sizeof mpi);
    const struct nccl_lib *lib = plugin_symbol("omnidrop-nccl.so", NCCL_LIB_SYMBOL, true, why, sizeof why);
    if (lib == NULL || lib->abi != NCCL_LIB_ABI || lib->version(nccl, sizeof nccl) != 0) snprintf(nccl, sizeof nccl, "no NCCL");
    snprintf(text, cap, "%s; %s", mpi, nccl);
}

bool comm_dead(const struct comm *c, uint32_t r, struct err *why)
{
    return r < c->size && watch_gone(c->w->watch, c->member[r], 0, why);
}

bool comm_any_dead(const struct comm *c, uint32_t *r, struct err *why)
{
    if (watch_count(c->w->watch) == 0) return false;
    const uint32_t first = watch_first(c->w->watch, c->member, NULL, 0, c->size, 0);
    for (uint32_t i = 0; first != UINT32_MAX && i < c->size; i++)
        if (c->member[i] == first) *r = i;
    return first != UINT32_MAX && watch_gone(c->w->watch, first, 0, why);
}

void comm_on_death(struct comm *world, void (*told)(void *self, uint32_t rank, const struct err *why), void *self)
{
    watch_told(world->w->watch, told, self);
}

/* ---- tensors ------------------------------------------------------------------------------------------------ */

enum where { ON_HOST, STAGED, ON_DEVICE };

static enum where where(const struct comm *c, const struct stream *st)
{
    if (st == NULL || strcmp(st->ops->name, "cpu") == 0) return ON_HOST;
    return c->nccl_h != NULL && st == c->nccl_st ? ON_DEVICE : STAGED;
}

/* Host memory for a device's tensor; the group keeps it. */
static status stage(struct comm *c, size_t bytes, struct err *e)
{
    c->staged = true;
    if (bytes <= c->stage_cap) return OK;
    free(c->stage);
    c->stage = NULL;
    c->stage_cap = 0;
    TRY(mem_alloc_aligned(&c->stage, bytes, e));
    c->stage_cap = bytes;
    return OK;
}

static status fetch(struct stream *st, void *host, const void *x, size_t bytes, struct err *e)
{
    if (bytes == 0) return OK;
    TRY(st->ops->download(st, host, x, bytes, e));
    return st->ops->sync(st, e);
}

static status put_back(struct stream *st, void *x, const void *host, size_t bytes, struct err *e)
{
    if (bytes == 0) return OK;
    TRY(st->ops->upload(st, x, host, bytes, e));
    return st->ops->sync(st, e);       /* the stage is used again */
}

static status enter(struct comm *c, const char *call, uint32_t who, struct err *e)
{
    if (who != UINT32_MAX && who >= c->size) return err_set(e, E_ARG, "%s: no rank %u among %u", call, who, c->size);
    return comm_check(c, call, 0, false, UINT32_MAX, e);
}

status comm_all_reduce(struct comm *c, struct stream *st, float *x, size_t n, struct err *e)
{
    TRY(enter(c, "comm_all_reduce", UINT32_MAX, e));
    if (n == 0 || (c->size == 1 && c->nccl_h == NULL)) return OK;
    switch (where(c, st)) {
    case ON_HOST: return c->ops->all_reduce(c, x, n, e);
    case ON_DEVICE: return comm_nccl_done(c, "comm_all_reduce", c->nccl->all_reduce(c->nccl_h, c->nccl_stream, x, n), e);
    default:
        TRY(stage(c, n * sizeof *x, e));
        TRY(fetch(st, c->stage, x, n * sizeof *x, e));
        TRY(c->ops->all_reduce(c, c->stage, n, e));
        return put_back(st, x, c->stage, n * sizeof *x, e);
    }
}

static status gather(struct comm *c, const char *call, struct stream *st, uint32_t root, const void *mine, void *all,
                     const size_t *bytes, struct err *e)
{
    TRY(enter(c, call, root, e));
    size_t total = 0, start = 0;
    for (uint32_t i = 0; i < c->size; i++) {
        if (i == c->rank) start = total;
        total += bytes[i];
    }
    if (total == 0) return OK;
    const bool reads = root == UINT32_MAX || root == c->rank;
    switch (where(c, st)) {
    case ON_HOST: return c->ops->gather(c, call, root, mine, all, bytes, e);
    case ON_DEVICE:
        return comm_nccl_done(c, call, root == UINT32_MAX
            ? c->nccl->all_gather(c->nccl_h, c->nccl_stream, (int)c->rank, (int)c->size, mine, all, bytes)
            : c->nccl->gather(c->nccl_h, c->nccl_stream, (int)c->rank, (int)c->size, (int)root, mine, all, bytes), e);
    default: {
        TRY(stage(c, total, e));
        uint8_t *own_part = (uint8_t *)c->stage + start;
        TRY(fetch(st, own_part, mine, bytes[c->rank], e));
        TRY(c->ops->gather(c, call, root, own_part, c->stage, bytes, e));
        return reads ? put_back(st, all, c->stage, total, e) : OK;
    }
    }
}

status comm_all_gather(struct comm *c, struct stream *st, const void *mine, void *all, const size_t *bytes, struct err *e)
{
    return gather(c, "comm_all_gather", st, UINT32_MAX, mine, all, bytes, e);
}

status comm_gather(struct comm *c, struct stream *st, uint32_t root, const void *mine, void *all, const size_t *bytes,
                   struct err *e)
{
    if (root >= c->size) return err_set(e, E_ARG, "comm_gather: no rank %u among %u", root, c->size);
    return gather(c, "comm_gather", st, root, mine, all, bytes, e);
}

status comm_broadcast(struct comm *c, struct stream *st, uint32_t root, void *x, size_t bytes, struct err *e)
{
    if (root >= c->size) return err_set(e, E_ARG, "comm_broadcast: no rank %u among %u", root, c->size);
    TRY(enter(c, "comm_broadcast", root, e));
    if (bytes == 0 || (c->size == 1 && c->nccl_h == NULL)) return OK;
    switch (where(c, st)) {
    case ON_HOST: return c->ops->broadcast(c, root, x, bytes, e);
    case ON_DEVICE: return comm_nccl_done(c, "comm_broadcast", c->nccl->broadcast(c->nccl_h, c->nccl_stream, (int)root, x, bytes), e);
    default:
        TRY(stage(c, bytes, e));
        if (c->rank == root) TRY(fetch(st, c->stage, x, bytes, e));
        TRY(c->ops->broadcast(c, root, c->stage, bytes, e));
        return c->rank == root ? OK : put_back(st, x, c->stage, bytes, e);
    }
}

status comm_barrier(struct comm *c, struct err *e)
{
    TRY(enter(c, "comm_barrier", UINT32_MAX, e));
    return c->ops->barrier(c, "comm_barrier", e);
}

static status one_to_one(struct comm *c, const char *call, uint32_t peer, struct err *e)
{
    if (peer == c->rank) return err_set(e, E_ARG, "%s: rank %u to itself", call, peer);
    if (peer >= c->size) return err_set(e, E_ARG, "%s: no rank %u among %u", call, peer, c->size);
    return enter(c, call, peer, e);
}

status comm_send(struct comm *c, struct stream *st, uint32_t to, const void *x, size_t bytes, struct err *e)
{
    TRY(one_to_one(c, "comm_send", to, e));
    switch (where(c, st)) {
    case ON_HOST: return c->ops->send(c, to, x, bytes, e);
    case ON_DEVICE: return comm_nccl_done(c, "comm_send", c->nccl->send(c->nccl_h, c->nccl_stream, (int)to, x, bytes), e);
    default:
        TRY(stage(c, bytes, e));
        TRY(fetch(st, c->stage, x, bytes, e));
        return c->ops->send(c, to, c->stage, bytes, e);
    }
}

status comm_recv(struct comm *c, struct stream *st, uint32_t from, void *x, size_t bytes, struct err *e)
{
    TRY(one_to_one(c, "comm_recv", from, e));
    switch (where(c, st)) {
    case ON_HOST: return c->ops->recv(c, from, x, bytes, e);
    case ON_DEVICE: return comm_nccl_done(c, "comm_recv", c->nccl->recv(c->nccl_h, c->nccl_stream, (int)from, x, bytes), e);
    default:
        TRY(stage(c, bytes, e));
        TRY(c->ops->recv(c, from, c->stage, bytes, e));
        return put_back(st, x, c->stage, bytes, e);
    }
}
