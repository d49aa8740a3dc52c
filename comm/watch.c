/* comm/watch.c - who is alive. One thread a rank, a TCP connection between each rank and rank 0, a beat on it from both
 * sides. A connection that closes is a process that has ended; no beat for silence_s is one that is stopped or cut off.
 * Rank 0 tells the others. Not MPI: a launcher tells of deaths it sees itself at best, and of a stopped process never.
 *
 * Frames are small and go out whole: a peer whose socket is full has read nothing for thousands of beats. Who connects
 * must know a secret that MPI carried. A watcher that itself did not run for a while (its process was stopped, the machine
 * slept) judges nobody by that time. */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "comm/inside.h"

enum { TEXT = 192 };
enum kind { HELLO = 1, WELCOME, BEAT, BYE, ENDS, GONE };
enum state { ALIVE, LEFT, DEAD };

struct frame { uint8_t kind, pad[3]; uint32_t rank; char text[TEXT]; };   /* of fixed size; one kernel writes all ranks' */

struct line {
    int fd;                         /* -1: closed */
    int given_up;                   /* rank 0: the half-closed connection of a rank that is given up, so that what it was
                                       told can still be read should it wake; -1: none */
    double heard;
    size_t n;                       /* bytes of a frame that is not whole yet */
    uint8_t in[sizeof(struct frame)];
};

struct watch {
    const struct world *w;
    double beat, silence;
    int listener, poke;             /* poke: an eventfd that wakes the thread */
    struct line *line;              /* rank 0: [size], by rank; others: [1], to rank 0 */
    uint32_t n_lines;
    uint8_t token[32];
    pthread_t thread;
    bool started;
    _Atomic bool quit;
    _Atomic uint32_t n_gone;
    _Atomic uint8_t *state;         /* [size], enum state; the rest of a rank's entry is written before it */
    double *gone_at;
    char (*why)[TEXT];
    pthread_mutex_t lock;           /* told */
    void (*told)(void *, uint32_t, const struct err *);
    void *told_self;
    bool *was_told;
};

/* ---- the gone ---------------------------------------------------------------------------------------------- */

uint32_t watch_count(const struct watch *x) { return x ? atomic_load_explicit(&x->n_gone, memory_order_acquire) : 0; }

static void describe(const struct watch *x, uint32_t r, struct err *why)
{
    const struct comm_peer *p = &x->w->peer[r];
    err_set(why, E_DEVICE, "rank %u (pid %lld on host %s): %s", r, (long long)p->pid, p->host, x->why[r]);
}

bool watch_gone(const struct watch *x, uint32_t r, double grace, struct err *why)
{
    if (x == NULL) return false;
    const uint8_t s = atomic_load_explicit(&x->state[r], memory_order_acquire);
    if (s == ALIVE || (s == LEFT && clock_s() - x->gone_at[r] < grace)) return false;
    if (why != NULL) describe(x, r, why);
    return true;
}

uint32_t watch_first(const struct watch *x, const uint32_t *rank, const uint8_t *skip, uint32_t keep, uint32_t n, double grace)
{
    uint32_t first = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++)
        if (!(skip != NULL && skip[i] && i != keep) && watch_gone(x, rank[i], grace, NULL) &&
            (first == UINT32_MAX || x->gone_at[rank[i]] < x->gone_at[first]))
            first = rank[i];
    return first;
}

/* Once, by whoever comes first: the callback is told of deaths, not of those who left. */
static void tell(struct watch *x, uint32_t r)
{
    pthread_mutex_lock(&x->lock);
    const bool now = x->told != NULL && !x->was_told[r] && atomic_load(&x->state[r]) == DEAD;
    if (now) x->was_told[r] = true;
    void (*told)(void *, uint32_t, const struct err *) = x->told;
    void *self = x->told_self;
    pthread_mutex_unlock(&x->lock);
    struct err why;
    if (!now) return;
    describe(x, r, &why);
    told(self, r, &why);
}

void watch_told(struct watch *x, void (*told)(void *self, uint32_t rank, const struct err *why), void *self)
{
    if (x == NULL) return;
    pthread_mutex_lock(&x->lock);
    x->told = told;
    x->told_self = self;
    pthread_mutex_unlock(&x->lock);
    for (uint32_t r = 0; r < x->w->size; r++) tell(x, r);
}

static void say(struct line *l, enum kind kind, uint32_t rank, const char *text)
{
    struct frame f = { .kind = (uint8_t)kind, .rank = rank };
    if (l->fd < 0) return;
    if (text != NULL) snprintf(f.text, sizeof f.text, "%s", text);
    if (send(l->fd, &f, sizeof f, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof f) return;
    if (kind == WELCOME || kind == HELLO) return;
    shutdown(l->fd, SHUT_RDWR);     /* half a frame, or nothing read for so long: the reading side sees the end */
}

static void drop(struct line *l)
{
    if (l->fd >= 0) close(l->fd);
    l->fd = -1;
}

static void mark(struct watch *x, uint32_t r, enum state s, const char *why)
{
    if (atomic_load(&x->state[r]) == DEAD || r == x->w->rank) return;
    if (atomic_load(&x->state[r]) == LEFT && s == LEFT) return;
    const bool first = atomic_load(&x->state[r]) == ALIVE;
    if (!first) return;             /* who left and then closed its connection is no death */
    snprintf(x->why[r], TEXT, "%s", why);
    x->gone_at[r] = clock_s();
    atomic_store_explicit(&x->state[r], (uint8_t)s, memory_order_release);
    atomic_fetch_add(&x->n_gone, 1);
    if (s == DEAD) comm_nccl_deaths((struct world *)x->w, r);
    tell(x, r);
    if (x->w->rank == 0)
        for (uint32_t k = 1; k < x->n_lines; k++)
            if (k != r) say(&x->line[k], s == LEFT ? BYE : GONE, r, why);
}

/* ---- lines ------------------------------------------------------------------------------------------------- */

static void lost(struct watch *x, uint32_t r, const char *why)
{
    drop(&x->line[x->w->rank == 0 ? r : 0]);
    mark(x, r, DEAD, why);
}

static void heard(struct watch *x, uint32_t r, const struct frame *f)
{
    char text[TEXT];
    snprintf(text, sizeof text, "%.*s", TEXT - 1, f->text);
    switch (f->kind) {
    case BYE:
        if (x->w->rank == 0 || f->rank == 0) mark(x, r, LEFT, "it has closed its world");
        else if (f->rank < x->w->size) mark(x, f->rank, LEFT, text);
        break;
    case ENDS: lost(x, r, text); break;
    case GONE:
        if (x->w->rank == 0) break;
        if (f->rank == x->w->rank) {
            char why[TEXT + 40];
            snprintf(why, sizeof why, "it has given this rank up: %s", text);
            lost(x, 0, why);
        } else if (f->rank < x->w->size) {
            mark(x, f->rank, DEAD, text);
        }
        break;
    default: break;
    }
}

/* Whatever has come from rank r. */
static void listen_to(struct watch *x, uint32_t r)
{
    struct line *l = &x->line[x->w->rank == 0 ? r : 0];
    while (l->fd >= 0) {
        const ssize_t n = recv(l->fd, l->in + l->n, sizeof l->in - l->n, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n <= 0) {
            char why[TEXT];
            if (n == 0) snprintf(why, sizeof why, "the process has ended (its connection is closed)");
            else snprintf(why, sizeof why, "its connection broke: %s", strerror(errno));
            lost(x, r, why);
            return;
        }
        l->heard = clock_s();
        l->n += (size_t)n;
        if (l->n < sizeof l->in) continue;
        struct frame f;
        memcpy(&f, l->in, sizeof f);
        l->n = 0;
        heard(x, r, &f);
    }
}

static void *watch_main(void *arg)
{
    struct watch *x = arg;
    const bool hub = x->w->rank == 0;
    /* Its few microseconds must not wait behind a machine full of work; where that is not allowed it waits. */
    setpriority(PRIO_PROCESS, (id_t)gettid(), -10);
    const uint32_t first = hub ? 1 : 0;
    struct pollfd *p = mem_must(x->n_lines + 1, sizeof *p);
    double next_beat = clock_s(), turn = next_beat;
    for (uint32_t i = first; i < x->n_lines; i++) x->line[i].heard = turn;
    while (!atomic_load(&x->quit)) {
        double now = clock_s();
        if (now >= next_beat) {
            for (uint32_t i = first; i < x->n_lines; i++) say(&x->line[i], BEAT, x->w->rank, NULL);
            next_beat = now + x->beat;
        }
        for (uint32_t i = first; i < x->n_lines; i++) p[i] = (struct pollfd){ .fd = x->line[i].fd, .events = POLLIN };
        p[x->n_lines] = (struct pollfd){ .fd = x->poke, .events = POLLIN };
        const double left = next_beat - clock_s();
        poll(p + first, x->n_lines - first + 1, left > 0 ? (int)(left * 1e3) + 1 : 0);
        for (uint32_t i = first; i < x->n_lines; i++)
            if (p[i].fd >= 0 && p[i].revents != 0) listen_to(x, i);
        now = clock_s();
        /* Time in which this thread did not run is nobody's silence. */
        const double stall = now - turn - x->beat;
        turn = now;
        for (uint32_t i = first; i < x->n_lines; i++) {
            struct line *l = &x->line[i];
            if (l->fd < 0) continue;
            if (stall > x->silence / 2) l->heard += stall < now - l->heard ? stall : now - l->heard;
            if (now - l->heard <= x->silence) continue;
            listen_to(x, i);           /* it may have come since the poll */
            if (l->fd < 0 || now - l->heard <= x->silence) continue;
            char why[TEXT];
            snprintf(why, sizeof why, "no sign of life for %.1f s", now - l->heard);
            if (hub) {
                say(l, GONE, i, why);
                shutdown(l->fd, SHUT_WR);
                l->given_up = l->fd;
                l->fd = -1;
            }
            lost(x, i, why);
        }
    }
    for (uint32_t i = first; i < x->n_lines; i++) say(&x->line[i], BYE, x->w->rank, NULL);
    free(p);
    return NULL;
}

/* ---- coming together --------------------------------------------------------------------------------------- */

static struct watch *watch_new(const struct world *w)
{
    struct watch *x = mem_must(1, sizeof *x);
    x->w = w;
    x->beat = w->o.beat_s;
    x->silence = w->o.silence_s;
    x->listener = -1;
    x->poke = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    x->n_lines = w->rank == 0 ? w->size : 1;
    x->line = mem_must(x->n_lines, sizeof *x->line);
    for (uint32_t i = 0; i < x->n_lines; i++) x->line[i] = (struct line){ .fd = -1, .given_up = -1 };
    x->state = mem_must(w->size, sizeof *x->state);
    x->gone_at = mem_must(w->size, sizeof *x->gone_at);
    x->why = mem_must(w->size, sizeof *x->why);
    x->was_told = mem_must(w->size, sizeof *x->was_told);
    pthread_mutex_init(&x->lock, NULL);
    return x;
}

static void watch_free(struct watch **x)
{
    struct watch *o = *x;
    if (o == NULL) return;
    for (uint32_t i = 0; i < o->n_lines; i++) {
        drop(&o->line[i]);
        if (o->line[i].given_up >= 0) close(o->line[i].given_up);
    }
    if (o->listener >= 0) close(o->listener);
    if (o->poke >= 0) close(o->poke);
    free(o->line);
    free(o->state);
    free(o->gone_at);
    free(o->why);
    free(o->was_told);
    pthread_mutex_destroy(&o->lock);
    free(o);
    *x = NULL;
}

static void own_addresses(struct watch_place *place)
{
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) != 0) return;
    for (struct ifaddrs *a = all; a != NULL && place->n < WATCH_ADDRESSES; a = a->ifa_next) {
        if (a->ifa_addr == NULL || !(a->ifa_flags & IFF_UP) || (a->ifa_flags & IFF_LOOPBACK)) continue;
        struct watch_address *to = &place->a[place->n];
        if (a->ifa_addr->sa_family == AF_INET) {
            to->family = 4;
            memcpy(to->bytes, &((struct sockaddr_in *)a->ifa_addr)->sin_addr, 4);
            place->n++;
        } else if (a->ifa_addr->sa_family == AF_INET6) {
            const struct in6_addr *v6 = &((struct sockaddr_in6 *)a->ifa_addr)->sin6_addr;
            if (IN6_IS_ADDR_LINKLOCAL(v6)) continue;      /* needs the other side's name of the interface */
            to->family = 6;
            memcpy(to->bytes, v6, 16);
            place->n++;
        }
    }
    freeifaddrs(all);
}

status watch_listen(const struct world *w, struct watch_place *place, struct watch **out, struct err *e)
{
    struct watch *x = watch_new(w);
    const int off = 0;
    union { struct sockaddr any; struct sockaddr_in v4; struct sockaddr_in6 v6; } at = { .v6 = { .sin6_family = AF_INET6 } };
    socklen_t n = sizeof at.v6;
    *out = NULL;
    memset(place, 0, sizeof *place);
    x->listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (x->listener >= 0) {
        setsockopt(x->listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        if (bind(x->listener, &at.any, n) != 0) {
            close(x->listener);
            x->listener = -1;
        }
    }
    if (x->listener < 0) {          /* a machine without IPv6 */
        at.v4 = (struct sockaddr_in){ .sin_family = AF_INET };
        n = sizeof at.v4;
        x->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (x->listener >= 0 && bind(x->listener, &at.any, n) != 0) {
            close(x->listener);
            x->listener = -1;
        }
    }
    if (x->poke < 0 || x->listener < 0 || listen(x->listener, 4096) != 0 || getsockname(x->listener, &at.any, &n) != 0 ||
        getrandom(x->token, sizeof x->token, 0) != sizeof x->token) {
        const status st = err_set(e, E_DEVICE, "rank 0 cannot listen for the signs of life of the others: %s", strerror(errno));
        watch_free(&x);
        return st;
    }
    place->port = at.any.sa_family == AF_INET6 ? at.v6.sin6_port : at.v4.sin_port;
    memcpy(place->token, x->token, sizeof x->token);
    own_addresses(place);
    *out = x;
    return OK;
}

static void tune(int fd)
{
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Strangers may knock: they get a few places for a few seconds and are never believed. */
status watch_accept(struct watch *x, double seconds, struct err *e)
{
    enum { GUESTS = 64 };
    struct { struct line l; double since; } guest[GUESTS];
    for (int i = 0; i < GUESTS; i++) guest[i].l = (struct line){ .fd = -1, .given_up = -1 };
    const double until = clock_s() + seconds;
    uint32_t there = 1;
    while (there < x->w->size && clock_s() < until) {
        struct pollfd p[GUESTS + 1];
        int room = -1;
        for (int i = 0; i < GUESTS; i++) {
            if (guest[i].l.fd >= 0 && clock_s() - guest[i].since > 5) drop(&guest[i].l);
            if (guest[i].l.fd < 0) room = i;
            p[i] = (struct pollfd){ .fd = guest[i].l.fd, .events = POLLIN };
        }
        p[GUESTS] = (struct pollfd){ .fd = room >= 0 ? x->listener : -1, .events = POLLIN };
        poll(p, GUESTS + 1, 100);
        if (p[GUESTS].revents != 0) {
            const int fd = accept4(x->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            guest[room].since = clock_s();
            guest[room].l = (struct line){ .fd = fd, .given_up = -1 };
        }
        for (int i = 0; i < GUESTS; i++) {
            struct line *l = &guest[i].l;
            if (l->fd < 0 || p[i].fd != l->fd || p[i].revents == 0) continue;
            const ssize_t n = recv(l->fd, l->in + l->n, sizeof l->in - l->n, MSG_DONTWAIT);
            if (n <= 0) {
                drop(l);
                continue;
            }
            l->n += (size_t)n;
            if (l->n < sizeof l->in) continue;
            struct frame f;
            memcpy(&f, l->in, sizeof f);
            if (f.kind != HELLO || memcmp(f.text, x->token, 16) != 0 || f.rank == 0 || f.rank >= x->w->size ||
                x->line[f.rank].fd >= 0) {
                drop(l);
                continue;
            }
            struct frame answer = { .kind = WELCOME };
            memcpy(answer.text, x->token + 16, 16);
            tune(l->fd);
            if (send(l->fd, &answer, sizeof answer, MSG_NOSIGNAL) != (ssize_t)sizeof answer) {
                drop(l);
                continue;
            }
            l->n = 0;
            x->line[f.rank] = *l;
            l->fd = -1;
            there++;
        }
    }
    for (int i = 0; i < GUESTS; i++) drop(&guest[i].l);
    if (there < x->w->size) {
        uint32_t r = 1;
        while (x->line[r].fd >= 0) r++;
        return err_set(e, E_DEVICE, "rank %u (pid %lld on host %s) has not connected to rank 0 within %.0f s: TCP between the "
                       "hosts must be open", r, (long long)x->w->peer[r].pid, x->w->peer[r].host, seconds);
    }
    close(x->listener);
    x->listener = -1;
    return OK;
}

static int dial(const struct watch_address *a, uint16_t port)
{
    union { struct sockaddr any; struct sockaddr_in v4; struct sockaddr_in6 v6; } to = { 0 };
    socklen_t n;
    if (a->family == 4) {
        to.v4 = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = port };
        memcpy(&to.v4.sin_addr, a->bytes, 4);
        n = sizeof to.v4;
    } else {
        to.v6 = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = port };
        memcpy(&to.v6.sin6_addr, a->bytes, 16);
        n = sizeof to.v6;
    }
    const int fd = socket(a->family == 4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, &to.any, n) == 0 || errno == EINPROGRESS) return fd;
    close(fd);
    return -1;
}

/* All addresses at once; the first that knows the secret is rank 0. */
status watch_connect(const struct world *w, const struct watch_place *place, bool same_host, double seconds,
                     struct watch **out, struct err *e)
{
    struct watch *x = watch_new(w);
    struct watch_address a[WATCH_ADDRESSES + 2] = { { .family = 4, .bytes = { 127, 0, 0, 1 } }, { .family = 6, .bytes = { [15] = 1 } } };
    uint32_t n = same_host ? 2 : 0;
    struct line l[WATCH_ADDRESSES + 2];
    bool said[WATCH_ADDRESSES + 2] = { 0 };
    *out = NULL;
    memcpy(x->token, place->token, sizeof x->token);
    for (uint32_t i = 0; i < place->n && i < WATCH_ADDRESSES; i++) a[n++] = place->a[i];
    for (uint32_t i = 0; i < n; i++) l[i] = (struct line){ .fd = dial(&a[i], place->port), .given_up = -1 };
    const double until = clock_s() + seconds;
    while (x->line[0].fd < 0 && clock_s() < until) {
        struct pollfd p[WATCH_ADDRESSES + 2];
        uint32_t open = 0;
        for (uint32_t i = 0; i < n; i++) {
            p[i] = (struct pollfd){ .fd = l[i].fd, .events = said[i] ? POLLIN : POLLOUT };
            open += l[i].fd >= 0;
        }
        if (open == 0) break;
        poll(p, n, 100);
        for (uint32_t i = 0; i < n && x->line[0].fd < 0; i++) {
            if (l[i].fd < 0 || p[i].revents == 0) continue;
            if (!said[i]) {
                struct frame f = { .kind = HELLO, .rank = w->rank };
                memcpy(f.text, x->token, 16);
                said[i] = true;
                tune(l[i].fd);
                if (send(l[i].fd, &f, sizeof f, MSG_NOSIGNAL) != (ssize_t)sizeof f) drop(&l[i]);
                continue;
            }
            const ssize_t got = recv(l[i].fd, l[i].in + l[i].n, sizeof l[i].in - l[i].n, MSG_DONTWAIT);
            if (got <= 0) {
                if (got == 0 || (errno != EAGAIN && errno != EINTR)) drop(&l[i]);
                continue;
            }
            l[i].n += (size_t)got;
            if (l[i].n < sizeof l[i].in) continue;
            struct frame f;
            memcpy(&f, l[i].in, sizeof f);
            if (f.kind != WELCOME || memcmp(f.text, x->token + 16, 16) != 0) {
                drop(&l[i]);
                continue;
            }
            x->line[0] = (struct line){ .fd = l[i].fd, .given_up = -1 };
            l[i].fd = -1;
        }
    }
    for (uint32_t i = 0; i < n; i++) drop(&l[i]);
    if (x->line[0].fd >= 0 && x->poke >= 0) {
        *out = x;
        return OK;
    }
    char tried[512] = "";
    for (uint32_t i = 0; i < n; i++) {
        char t[INET6_ADDRSTRLEN] = "?";
        const size_t at = strlen(tried);
        inet_ntop(a[i].family == 4 ? AF_INET : AF_INET6, a[i].bytes, t, sizeof t);
        snprintf(tried + at, sizeof tried - at, "%s%s", i ? ", " : "", t);
    }
    const status st = err_set(e, E_DEVICE, "rank %u (pid %lld on host %s) cannot reach rank 0 on host %s, port %u; tried %s: TCP "
                              "between the hosts must be open", w->rank, (long long)w->peer[w->rank].pid, w->peer[w->rank].host,
                              w->peer[0].host, ntohs(place->port), n ? tried : "nothing, it has no address");
    watch_free(&x);
    return st;
}

status watch_start(struct watch *x, struct err *e)
{
    if (pthread_create(&x->thread, NULL, watch_main, x) != 0)
        return err_set(e, E_NOMEM, "the thread that watches the other ranks cannot be started");
    x->started = true;
    return OK;
}

void watch_ends(struct watch *x, const char *why)
{
    if (x == NULL) return;
    for (uint32_t i = x->w->rank == 0 ? 1 : 0; i < x->n_lines; i++) say(&x->line[i], ENDS, x->w->rank, why);
}

void watch_stop(struct watch **x)
{
    if (*x == NULL) return;
    if ((*x)->started) {
        const uint64_t one = 1;
        atomic_store(&(*x)->quit, true);
        if (write((*x)->poke, &one, sizeof one) < 0) {}      /* it wakes by the next beat anyway */
        pthread_join((*x)->thread, NULL);
    }
    watch_free(x);
}
