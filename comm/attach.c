/* comm/attach.c - see comm.h, comm_attach: tensors of a device through NCCL. MPI exchanges the id, the watcher says who is dead, and a
 * communicator that can not go on is aborted, which ends what waits on the device. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/plugin.h"
#include "comm/inside.h"

#define START_S 120.0               /* for NCCL to find all ranks */
#define FINISH_S 10.0              /* for all ranks to come to the end of a communicator */

bool comm_attached(const struct comm *c) { return c->nccl_h != NULL; }

/* ---- those that a death must abort --------------------------------------------------------------------------- */

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct comm *list;

static void *abort_doomed(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&list_lock);
    for (struct comm *c = list; c != NULL; c = c->next_nccl)
        if (c->doomed) c->nccl->abort(c->nccl_h);
    pthread_mutex_unlock(&list_lock);
    return NULL;
}

/* An abort takes its time, and the watcher has to go on giving signs of life. */
void comm_nccl_deaths(struct world *w, uint32_t rank)
{
    pthread_t t;
    bool any = false;
    pthread_mutex_lock(&list_lock);
    for (struct comm *c = list; c != NULL; c = c->next_nccl)
        for (uint32_t i = 0; c->w == w && i < c->size && !c->doomed; i++) any |= c->doomed = c->member[i] == rank || rank == 0;
    pthread_mutex_unlock(&list_lock);
    if (!any) return;
    if (pthread_create(&t, NULL, abort_doomed, NULL) == 0) pthread_detach(t);
    else abort_doomed(NULL);
}

static void enlist(struct comm *c)
{
    pthread_mutex_lock(&list_lock);
    c->doomed = false;
    c->next_nccl = list;
    list = c;
    pthread_mutex_unlock(&list_lock);
}

static void strike(struct comm *c)
{
    pthread_mutex_lock(&list_lock);
    for (struct comm **at = &list; *at != NULL; at = &(*at)->next_nccl)
        if (*at == c) {
            *at = c->next_nccl;
            break;
        }
    pthread_mutex_unlock(&list_lock);
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

static status nccl_err(const struct comm *c, const struct nccl_lib *lib, const char *call, int rc, struct err *e)
{
    const struct comm_peer *own = &c->w->peer[c->w->rank];
    char text[256];
    lib->text(c->nccl_h, rc, text, sizeof text);
    return err_set(e, E_DEVICE, "%s on rank %u (pid %lld on host %s): NCCL says: %s", call, c->w->rank, (long long)own->pid, own->host,
                   text);
}

/* The group can not go on; what it has on the device ends. A death is the better reason. */
static status give_up(struct comm *c, const char *call, int rc, double waited, struct err *e)
{
    struct err own;
    if (e == NULL) e = &own;
    if (comm_check(c, call, waited, false, UINT32_MAX, e) == OK) nccl_err(c, c->nccl, call, rc, e);
    comm_break(c, BROKEN_TENSORS, e);
    c->nccl->abort(c->nccl_h);
    return e->code;
}

status comm_nccl_done(struct comm *c, const char *call, int rc, struct err *e)
{
    struct wait w;
    wait_begin(&w, call);
    while (rc == 0 && (rc = c->nccl->state(c->nccl_h)) == NCCL_IN_PROGRESS) {
        const status st = wait_turn(c, &w, e);
        if (st != OK) {
            c->nccl->abort(c->nccl_h);
            return st;
        }
        rc = 0;
    }
    return rc == 0 ? OK : give_up(c, call, rc, clock_s() - w.start, e);
}

status comm_look(void *self, double waited, struct err *e)
{
    struct comm *c = self;
    const char *call = "waiting for the device";
    struct err own;
    if (c->nccl_h == NULL) return OK;
    if (e == NULL) e = &own;
    const int rc = c->nccl->state(c->nccl_h);
    if (comm_check(c, call, waited, false, UINT32_MAX, e) != OK || (rc != 0 && rc != NCCL_IN_PROGRESS))
        return give_up(c, call, rc, waited, e);
    if (waited < c->w->o.timeout_s) return OK;
    comm_late(c, call, BROKEN_TENSORS, waited, e);
    c->nccl->abort(c->nccl_h);
    return e->code;
}

/* In good order together, as long as all are there, and nobody waits long for one that does not come. */
static void detach(struct comm *c, bool together)
{
    if (c->nccl_h == NULL) return;
    const double until = clock_s() + FINISH_S;
    int rc = together && comm_check(c, "comm_detach", 0, false, UINT32_MAX, NULL) == OK ? c->nccl->finish(c->nccl_h) : -1;
    while (rc == 0 && (rc = c->nccl->state(c->nccl_h)) == NCCL_IN_PROGRESS && clock_s() < until &&
           comm_check(c, "comm_detach", 0, false, UINT32_MAX, NULL) == OK) {
        nap(200e-6);
        rc = 0;
    }
    strike(c);
    if (rc != 0) c->nccl->abort(c->nccl_h);
    c->nccl->close(c->nccl_h);
    c->nccl_h = NULL;
    c->nccl_st = NULL;
}

/* ---- attaching --------------------------------------------------------------------------------------------------- */

struct device_word { uint32_t ok, host; char bus[32], text[256]; };

/* What this rank has to offer. */
static const struct nccl_lib *look_for(int device, struct device_word *mine)
{
    const char *off = getenv("OMNIDROP_COMM");
    if (off != NULL && strcmp(off, "staged") == 0) {
        snprintf(mine->text, sizeof mine->text, "OMNIDROP_COMM=staged");
        return NULL;
    }
    const struct nccl_lib *lib = plugin_symbol("omnidrop-nccl.so", NCCL_LIB_SYMBOL, true, mine->text, sizeof mine->text);
    int rc = 0;
    if (lib == NULL) return NULL;
    if (lib->abi != NCCL_LIB_ABI) {
        snprintf(mine->text, sizeof mine->text, "omnidrop-nccl.so: of another version of this program");
        return NULL;
    }
    if ((rc = lib->device(device, mine->bus)) != 0) {
        lib->text(NULL, rc, mine->text, sizeof mine->text);
        return NULL;
    }
    mine->ok = 1;
    return lib;
}

/* OK: each of them has NCCL and a device of its own. */
static status judge(const struct comm *c, const struct device_word *all, struct err *e)
{
    for (uint32_t i = 0; i < c->size; i++) {
        const struct comm_peer *p = comm_peer(c, i);
        if (!all[i].ok)
            return err_set(e, E_MODEL, "rank %u (pid %lld on host %s) has no NCCL: %s; tensors go through host memory and MPI",
                           p->world, (long long)p->pid, p->host, all[i].text);
        for (uint32_t k = 0; k < i; k++)
            if (all[k].host == all[i].host && strcmp(all[k].bus, all[i].bus) == 0)
                return err_set(e, E_MODEL, "ranks %u and %u of host %s have one device (%s): NCCL wants one each; tensors go through "
                               "host memory and MPI", comm_peer(c, k)->world, p->world, p->host, all[i].bus);
    }
    return OK;
}

/* Everyone's word to everyone; OK as judge. */
static status exchange(struct comm *c, struct device_word *mine, struct err *e)
{
    struct device_word *all = mem_must(c->size, sizeof *all);
    size_t *bytes = mem_must(c->size, sizeof *bytes);
    for (uint32_t i = 0; i < c->size; i++) bytes[i] = sizeof *mine;
    status s = comm_check(c, "comm_attach", 0, false, UINT32_MAX, e);
    if (s == OK) s = c->ops->gather(c, "comm_attach", UINT32_MAX, mine, all, bytes, e);
    if (s == OK) s = judge(c, all, e);
    free(all);
    free(bytes);
    return s;
}

/* Rank 0's id, or why there is none, to all. */
static status share_id(struct comm *c, const struct nccl_lib *lib, uint8_t id[NCCL_ID_BYTES], struct err *e)
{
    struct { int rc; char text[256]; uint8_t id[NCCL_ID_BYTES]; } word = { 0 };
    if (c->rank == 0) word.rc = lib->id(word.id);
    if (word.rc != 0) lib->text(NULL, word.rc, word.text, sizeof word.text);
    TRY(c->ops->broadcast(c, 0, &word, sizeof word, e));
    if (word.rc != 0)
        return err_set(e, E_MODEL, "rank %u has no id of NCCL: %s; tensors go through host memory and MPI", c->member[0], word.text);
    memcpy(id, word.id, NCCL_ID_BYTES);
    return OK;
}

/* This rank's communicator, until NCCL has found the others. */
static void start(struct comm *c, const struct nccl_lib *lib, const uint8_t id[NCCL_ID_BYTES], struct device_word *mine)
{
    const double most = c->w->o.timeout_s < START_S ? c->w->o.timeout_s : START_S, until = clock_s() + most;
    int rc = lib->open(id, (int)c->rank, (int)c->size, &c->nccl_h);
    c->nccl = lib;
    if (c->nccl_h != NULL) enlist(c);
    while (c->nccl_h != NULL && rc == 0 && (rc = lib->state(c->nccl_h)) == NCCL_IN_PROGRESS && clock_s() < until &&
           comm_check(c, "comm_attach", 0, false, UINT32_MAX, NULL) == OK) {
        nap(200e-6);
        rc = 0;
    }
    mine->ok = c->nccl_h != NULL && rc == 0;
    if (rc == NCCL_IN_PROGRESS) snprintf(mine->text, sizeof mine->text, "it has not found the other ranks within %.0f s", most);
    else if (!mine->ok) lib->text(c->nccl_h, rc, mine->text, sizeof mine->text);
}

status comm_attach(struct comm *c, struct stream *st, void *native, int device, struct err *e)
{
    struct device_word mine = { .host = c->w->host[c->w->rank] };
    uint8_t id[NCCL_ID_BYTES];
    comm_detach(c);
    const struct nccl_lib *lib = look_for(device, &mine);
    TRY(exchange(c, &mine, e));
    TRY(share_id(c, lib, id, e));
    start(c, lib, id, &mine);
    const status s = exchange(c, &mine, e);
    if (s != OK) {
        detach(c, false);
        return s;
    }
    c->nccl_st = st;
    c->nccl_stream = native;
    return OK;
}

void comm_detach(struct comm *c) { detach(c, true); }
