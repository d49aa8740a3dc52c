/* cli/ranks.c - see ranks.h. */
#include "cli/ranks.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/remote.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/threads.h"
#include "comm/comm.h"
#include "engine/engine.h"
#include "engine/version.h"
#include "kernels/ops.h"
#include "model/link.h"

#ifndef OMNIDROP_COMMIT
#define OMNIDROP_COMMIT "unknown"
#endif

#define TAG_GROUPS 900             /* of messages between leaders */
#define PROBE_FLOATS ((size_t)1 << 18)
#define PROBES 4
#define FATAL_S 3                  /* from a death that is the end of this process to that end at most, `fatal` included */

const struct cli_option cli_rank_options[] = {
    { "tp", 0, CLI_UINT, "T", "1", "under mpirun: ranks that share one model, layer by layer" },
    { "dp", 0, CLI_UINT, "D", "1", "under mpirun: groups of T ranks, each with the whole model and requests of its own" },
    { 0 }
};

struct ranks {
    enum ranks_role role;
    uint32_t rank, size, tp, dp;
    struct comm *world, *leaders, *tensor;     /* the last two NULL where this rank is in none */
    struct comm *alone;            /* a group of this rank only, where T is 1: it knows who shares the host */
    struct remote_link link;
    pthread_mutex_t lock;          /* of groups */
    struct groups *groups;         /* ranks_watch to ranks_leave */
    void (*fatal)(void *self, const struct err *why);
    void *self;
    struct err why;                /* of fatal */
    atomic_bool is_fatal;          /* `fatal` is called, or deaths are of no account any more */
};

enum ranks_role ranks_role(const struct ranks *r) { return r->role; }
uint32_t ranks_count(const struct ranks *r) { return r->size; }
uint32_t ranks_groups(const struct ranks *r) { return r->dp; }
uint32_t ranks_group(const struct ranks *r) { return r->rank / r->tp; }
struct comm *ranks_tensor(const struct ranks *r) { return r->tensor ? r->tensor : r->alone; }
const struct remote_link *ranks_link(const struct ranks *r) { return r->leaders ? &r->link : NULL; }

/* ---- messages between leaders ---------------------------------------------------------------------------------- */

static void group_lost(struct ranks *r, uint32_t group, const struct err *why)
{
    pthread_mutex_lock(&r->lock);
    if (r->groups) groups_lost(r->groups, group, why);
    pthread_mutex_unlock(&r->lock);
}

/* Some leader is gone, or has left by itself: the others go on, as long as rank 0 is there. Rank 0 is told here of those that
 * left: nobody else hears of them. */
static status look_around(struct ranks *r, struct err *e)
{
    struct err why;
    if (r->role != RANKS_FRONT && comm_dead(r->leaders, 0, &why)) return e->code;
    for (uint32_t g = 1; g < r->dp && r->role == RANKS_FRONT; g++)
        if (comm_dead(r->leaders, g, &why)) group_lost(r, g, &why);
    comm_go_on(r->leaders);
    return OK;
}

/* What is refused because another leader died in the meantime is sent again: there are no more deaths than leaders. */
static status post(void *self, uint32_t to, const void *bytes, size_t n, struct err *e)
{
    struct ranks *r = self;
    struct err why;
    status st = OK;
    for (uint32_t i = 0; i <= r->dp; i++) {
        st = comm_post(r->leaders, to, TAG_GROUPS, bytes, n, e);
        if (st != E_DEVICE || comm_dead(r->leaders, to, &why) || look_around(r, e) != OK) break;
    }
    return st;
}

static status take(void *self, double wait_s, uint32_t *from, uint8_t **bytes, size_t *n, bool *got, struct err *e)
{
    struct ranks *r = self;
    struct comm_message m;
    *got = false;
    const status st = comm_take(r->leaders, COMM_ANY, TAG_GROUPS, wait_s, &m, got, e);
    if (st != OK) return look_around(r, e);
    if (!*got) return OK;
    *from = m.from;
    *bytes = m.bytes;
    *n = m.n;
    return OK;
}

/* Groups across hosts name each of them once. */
static void hosts(void *self, uint32_t group, char *out, size_t cap)
{
    const struct ranks *r = self;
    size_t n = 0;
    *out = 0;
    for (uint32_t i = group * r->tp; i < (group + 1) * r->tp && n < cap; i++) {
        const char *host = comm_peer(r->world, i)->host;
        bool known = false;
        for (uint32_t k = group * r->tp; k < i; k++) known = known || strcmp(comm_peer(r->world, k)->host, host) == 0;
        if (!known) n += (size_t)snprintf(out + n, cap - n, "%s%s", n ? ", " : "", host);
    }
}

/* ---- deaths ------------------------------------------------------------------------------------------------------ */

void ranks_exit(struct ranks *r, int code)
{
    comm_exit(r->world, code);
}

static void *fatal_main(void *arg)
{
    struct ranks *r = arg;
    r->fatal(r->self, &r->why);
    return NULL;
}

static void front_lost(struct ranks *r, uint32_t rank, const struct err *why)
{
    pthread_t t;
    if (rank / r->tp != 0) {
        group_lost(r, rank / r->tp, why);
        return;
    }
    if (atomic_exchange(&r->is_fatal, true)) return;
    r->why = *why;
    comm_exit_within(FATAL_S, CLI_FAILED);
    fprintf(stderr, "omnidrop: error: %s; it belongs to group 0, without which nothing goes on\n", why->text);
    if (r->fatal == NULL || pthread_create(&t, NULL, fatal_main, r) != 0) ranks_exit(r, CLI_FAILED);
    pthread_detach(t);
}

/* On comm's watcher. Whoever holds the lock of stderr must not keep us. */
static void told(void *self, uint32_t rank, const struct err *why)
{
    struct ranks *r = self;
    if (r->role == RANKS_FRONT) {
        front_lost(r, rank, why);
    } else if ((rank == 0 || rank / r->tp == r->rank / r->tp) && !atomic_load(&r->is_fatal)) {
        comm_exit_within(FATAL_S, CLI_FAILED);
        fprintf(stderr, "omnidrop: rank %u ends: %s\n", r->rank, why->text);
        ranks_exit(r, CLI_FAILED);
    }
}

void ranks_watch(struct ranks *r, struct groups *g, void (*fatal)(void *self, const struct err *why), void *self)
{
    if (r->role != RANKS_FRONT) return;
    pthread_mutex_lock(&r->lock);
    r->groups = g;
    pthread_mutex_unlock(&r->lock);
    r->fatal = fatal;
    r->self = self;
    comm_on_death(r->world, told, r);
}

void ranks_leave(struct ranks *r)
{
    if (r == NULL) return;
    if (r->role == RANKS_LEADER) atomic_store(&r->is_fatal, true);
    if (r->role != RANKS_FRONT) return;
    while (atomic_exchange(&r->is_fatal, true)) pause();
    pthread_mutex_lock(&r->lock);
    r->groups = NULL;
    pthread_mutex_unlock(&r->lock);
}

int ranks_close(struct ranks **pr, int code)
{
    struct ranks *r = *pr;
    if (r == NULL) return code;
    /* Workers may wait for an engine that was never opened: a leader that leaves like this ends their wait. A worker's own end
     * would be a death to the others, who have an error to tell: it waits for theirs. */
    if (code != CLI_OK && r->tensor && r->role != RANKS_WORKER) ranks_exit(r, code);
    if (r->role == RANKS_WORKER) atomic_store(&r->is_fatal, true);
    if (r->tensor) comm_close(&r->tensor);
    if (r->alone) comm_close(&r->alone);
    if (r->leaders) comm_close(&r->leaders);
    if (r->world) comm_close(&r->world);
    pthread_mutex_destroy(&r->lock);
    free(r);
    *pr = NULL;
    return code;
}

int ranks_work(struct ranks *r, const struct cli *c)
{
    struct err e;
    uint64_t threads = 0;
    const int said = ranks_agree(r, CLI_OK);
    if (said != CLI_OK) return said < 0 ? CLI_OK : said;
    status st = cli_uint(c, "threads", 0, 256, &threads, &e);
    const struct engine_options o = { .device = cli_text(c, "device"), .isa = cli_text(c, "isa"), .n_threads = (int)threads };
    if (st == OK) st = engine_work(r->tensor, &o, &e);
    if (st != E_DEVICE) return st == OK ? CLI_OK : cli_exit_of(st);       /* the leader says why it could not be opened */
    fprintf(stderr, "omnidrop: rank %u ends: %s\n", r->rank, e.text);
    ranks_exit(r, CLI_FAILED);
}

int ranks_lead(struct ranks *r, const struct ranks_lead *l)
{
    const struct remote_options o = { .link = ranks_link(r) };
    struct err e = { 0 }, why;
    const int said = ranks_agree(r, CLI_OK);
    if (said != CLI_OK) return said < 0 ? CLI_OK : said;
    status st = remote_create(&o, l->remote, &e);
    bool loaded = false;
    if (st == OK) {
        loaded = l->open(l->self, &why) == OK;
        if (loaded) remote_start(*l->remote, *l->api, l->audio ? *l->audio : NULL);
        else remote_failed(*l->remote, &why);
        st = remote_wait(*l->remote, &e);
    }
    if (st == OK) {
        ranks_leave(r);
        return loaded ? CLI_OK : CLI_MODEL;
    }
    fprintf(stderr, "omnidrop: the leader of group %u ends: %s\n", ranks_group(r), e.text);
    ranks_exit(r, CLI_FAILED);
}

int ranks_agree(struct ranks *r, int code)
{
    struct err e;
    int32_t said = code;
    if (r->world == NULL) return code;
    if (comm_broadcast(r->world, NULL, 0, &said, sizeof said, &e) == OK) return said;
    fprintf(stderr, "omnidrop: rank %u ends: %s\n", r->rank, e.text);
    ranks_exit(r, CLI_FAILED);
}

/* ---- who is there ------------------------------------------------------------------------------------------------- */

struct row {                       /* what a rank says of itself; the same bytes on all, as they are of one build */
    char device[160], why[256];    /* why: not "" where it has no device */
    char by[24], link[512];        /* what its group's tensors go by; of devices: model/link.h */
    double latency_s, bytes_s;     /* of an all-reduce of its group; 0: it is alone */
    uint32_t cpus, online;         /* it may run on so many of so many */
    uint32_t threads;              /* asked for; 0: one a CPU */
    uint32_t bound;                /* by mpirun */
};

/* *st, and PROBE_FLOATS of its memory at *many: nothing may be lacking where others wait. */
static status probe_device(const struct cli *c, struct row *row, struct stream **st, float **many, struct err *e)
{
    uint64_t threads = 0;
    TRY(cli_uint(c, "threads", 0, 256, &threads, e));
    const struct stream_options o = { .device = cli_text(c, "device"), .isa = cli_text(c, "isa"), .n_threads = (int)threads };
    TRY(stream_open(&o, st, e));
    (*st)->ops->describe(*st, row->device, sizeof row->device);
    return (*st)->ops->alloc(*st, PROBE_FLOATS * sizeof **many, (void **)many, e);
}

/* n floats of the device summed over the group, and there when it returns. */
static status probe_sum(struct ranks *r, struct stream *st, float *x, size_t n, struct err *e)
{
    TRY(comm_all_reduce(r->tensor, st, x, n, e));
    return st->ops->sync(st, e);
}

/* As the group's decoder is going to do it. */
static status probe_links(struct ranks *r, struct stream *st, float *many, struct row *row, struct err *e)
{
    if (r->tensor == NULL) return OK;
    TRY(link_open(r->tensor, st, row->link, sizeof row->link, e));
    status s = probe_sum(r, st, many, 1, e);
    double from = clock_s();
    for (int i = 0; i < PROBES && s == OK; i++) s = probe_sum(r, st, many, 1, e);
    row->latency_s = (clock_s() - from) / PROBES;
    from = clock_s();
    if (s == OK) s = probe_sum(r, st, many, PROBE_FLOATS, e);
    row->bytes_s = (double)(PROBE_FLOATS * sizeof *many) / (clock_s() - from);
    snprintf(row->by, sizeof row->by, "%s", comm_name(r->tensor));
    link_close(r->tensor, st);
    return s;
}

static void say_row(const struct ranks *r, const struct cli *c, uint32_t i, const struct row *row)
{
    const struct comm_peer *p = comm_peer(r->world, i);
    char link[64] = "";
    if (i % r->tp == 0 && row->bytes_s > 0)
        snprintf(link, sizeof link, "  all-reduce %.0f us, %.2f GB/s, %s", row->latency_s * 1e6, row->bytes_s / 1e9, row->by);
    cli_log(c, CLI_NOTE, "%4u  %-20.20s %8lld  %5u  %-14.14s %s%s", i, p->host, (long long)p->pid, i / r->tp, p->build,
            row->why[0] ? row->why : row->device, link);
}

static void look_at_cpus(const struct cli *c, struct row *row)
{
    const struct threads_cpus cpus = threads_allowed();
    const char *bound = getenv("OMPI_MCA_orte_bound_at_launch");
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t threads = 0;
    struct err none;
    row->cpus = threads_cpus_count(&cpus);
    row->online = online > 0 ? (uint32_t)online : 1;
    row->threads = cli_uint(c, "threads", 0, 256, &threads, &none) == OK ? (uint32_t)threads : 0;
    row->bound = bound != NULL && strcmp(bound, "1") == 0;
}

/* mpirun binds two ranks to a core each, whatever they were going to do there. */
static void say_bound(const struct ranks *r, const struct cli *c, const struct row *all)
{
    for (uint32_t i = 0; i < r->size; i++) {
        const struct row *row = &all[i];
        const struct comm_peer *p = comm_peer(r->world, i);
        if (!row->bound || row->cpus >= row->online) continue;
        if (row->threads ? row->threads <= row->cpus : row->cpus * p->n_local >= row->online) continue;
        cli_log(c, CLI_NOTE, "mpirun has bound rank %u to %u of the %u CPUs of %s: with --bind-to none its ranks share out all of them",
                i, row->cpus, row->online, p->host);
        return;
    }
}

/* Why tensors of devices go through their hosts: once, where it is the same in all groups. */
static void say_links(const struct ranks *r, const struct cli *c, const struct row *all)
{
    for (uint32_t i = 0; i < r->size; i += r->tp) {
        const char *why = all[i].link;
        if (why[0] == 0 || strcmp(all[i].by, "nccl") == 0) continue;
        if (i == 0 || strcmp(why, all[i - r->tp].link) != 0) cli_log(c, CLI_NOTE, "group %u: %s", i / r->tp, why);
    }
}

static void say_table(const struct ranks *r, const struct cli *c, const struct row *all)
{
    char versions[256] = "";
    comm_versions(r->world, versions, sizeof versions);
    cli_log(c, CLI_NOTE, "%u ranks in %u groups of %u; %s", r->size, r->dp, r->tp, versions);
    cli_log(c, CLI_NOTE, "rank  host                      pid  group  build          device");
    for (uint32_t i = 0; i < r->size; i++) say_row(r, c, i, &all[i]);
    say_links(r, c, all);
    say_bound(r, c, all);
}

/* One table on rank 0; E_MODEL where a rank lacks its device. */
static status self_test(struct ranks *r, const struct cli *c, struct err *e)
{
    struct row mine = { 0 }, *all = mem_must(r->size, sizeof *all);
    size_t *bytes = mem_must(r->size, sizeof *bytes);
    struct stream *device = NULL;
    float *many = NULL;
    struct err why;
    for (uint32_t i = 0; i < r->size; i++) bytes[i] = sizeof mine;
    look_at_cpus(c, &mine);
    if (probe_device(c, &mine, &device, &many, &why) != OK) snprintf(mine.why, sizeof mine.why, "%.255s", why.text);
    status st = comm_all_gather(r->world, NULL, &mine, all, bytes, e);
    bool whole = st == OK;
    for (uint32_t i = 0; whole && i < r->size; i++) whole = all[i].why[0] == 0;
    if (whole) st = probe_links(r, device, many, &mine, e);
    if (st == OK && whole) st = comm_all_gather(r->world, NULL, &mine, all, bytes, e);
    if (st == OK && r->rank == 0) say_table(r, c, all);
    for (uint32_t i = 0; st == OK && i < r->size; i++)
        if (all[i].why[0])
            st = err_set(e, E_MODEL, "rank %u on %s has no device: %s", i, comm_peer(r->world, i)->host, all[i].why);
    if (device) {
        device->ops->release(device, many);
        device->ops->close(&device);
    }
    free(all);
    free(bytes);
    return st;
}

/* ---- opening ------------------------------------------------------------------------------------------------------- */

static status check_size(const struct ranks *r, bool launched, struct err *e)
{
    const uint64_t want = (uint64_t)r->tp * r->dp;
    if (!launched && want > 1)
        return err_set(e, E_ARG, "--tp %u --dp %u are %llu ranks and this is one process: start mpirun -np %llu omnidrop ...",
                       r->tp, r->dp, (unsigned long long)want, (unsigned long long)want);
    if (r->size != want)
        return err_set(e, E_ARG, "%u ranks were started, --tp %u --dp %u are %llu: start as many (mpirun -np %llu), or say how "
                       "the %u are to be grouped (--dp %u: each for itself)", r->size, r->tp, r->dp, (unsigned long long)want,
                       (unsigned long long)want, r->size, r->size);
    return OK;
}

static status split(struct ranks *r, struct err *e)
{
    const bool leads = r->rank % r->tp == 0;
    r->role = r->rank == 0 ? RANKS_FRONT : leads ? RANKS_LEADER : RANKS_WORKER;
    if (r->dp > 1) TRY(comm_split(r->world, leads ? 0 : UINT32_MAX, r->rank, &r->leaders, e));
    TRY(comm_split(r->world, r->rank / r->tp, r->rank, r->tp > 1 ? &r->tensor : &r->alone, e));
    r->link = (struct remote_link){ .self = r, .rank = r->rank / r->tp, .size = r->dp, .post = post, .take = take,
                                    .n_ranks = r->tp, .hosts = hosts };
    return OK;
}

/* Rank 0 says the error, when the others have come as far; they end with its code. */
static status refuse(struct ranks **pr, status st, struct err *e)
{
    struct ranks *r = *pr;
    const bool front = r->rank == 0;
    struct err ignored;
    if (st == E_DEVICE) {              /* a rank is gone: nobody is waited for */
        fprintf(stderr, "omnidrop: error: rank %u: %s\n", r->rank, e->text);
        ranks_exit(r, CLI_FAILED);
    }
    if (r->world) comm_barrier(r->world, &ignored);
    ranks_close(pr, 0);
    if (!front) exit(cli_exit_of(st));
    return st;
}

/* What every leader reads before it opens its engine: refused here, so that all ranks end alike. */
static status check_options(const struct cli *c, struct err *e)
{
    uint64_t n = 0;
    TRY(cli_uint(c, "threads", 0, 256, &n, e));
    TRY(cli_uint(c, "max-model-len", 0, 1u << 24, &n, e));
    return cli_uint(c, "kv-bytes", 0, (uint64_t)1 << 46, &n, e);
}

status ranks_open(const struct cli *c, struct ranks **out, struct err *e)
{
    uint64_t tp = 1, dp = 1;
    uint32_t n = 1;
    TRY(cli_uint(c, "tp", 1, 64, &tp, e));
    TRY(cli_uint(c, "dp", 1, 4096, &dp, e));
    struct ranks *r = mem_must(1, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    r->tp = (uint32_t)tp;
    r->dp = (uint32_t)dp;
    r->size = 1;
    const bool launched = comm_launched(&n);
    if (!launched || (n == 1 && tp * dp == 1)) {
        const status st = check_size(r, launched, e);
        if (st == OK) *out = r;
        else free(r);
        return st;
    }
    const struct comm_options o = { .build = OMNIDROP_VERSION " " OMNIDROP_COMMIT };
    status st = comm_world_open(&o, &r->world, e);
    if (st != OK) {
        free(r);
        return st;
    }
    r->rank = comm_rank(r->world);
    r->size = comm_size(r->world);
    st = check_size(r, true, e);
    if (st == OK) st = check_options(c, e);
    if (st == OK) st = split(r, e);
    if (st == OK) st = self_test(r, c, e);
    if (st != OK) return refuse(&r, st, e);
    if (r->role != RANKS_FRONT) {      /* rank 0 says when all end */
        signal(SIGTERM, SIG_IGN);
        signal(SIGINT, SIG_IGN);
        signal(SIGHUP, SIG_IGN);
        comm_on_death(r->world, told, r);
    }
    *out = r;
    return OK;
}
