/* http/server.c - the loop and what hangs on it: the listener, posts from other threads, timers, signals, the drain.
 *
 *     SERVING --stop--> DELAYING --drain_delay_s--> DRAINING --drain_s--> EXPIRED --EXPIRED_S--> loop ends, 1
 *                                                       |                    |
 *                                                       +-- no connection ---+--> loop ends, 0       second stop: 1 */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <openssl/err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/internal.h"

#define BACKLOG 512
#define EXPIRED_S (LINGER_S + 1)              /* for the last words of streams that the drain's end cut short */

/* ---- posts ------------------------------------------------------------------------------------------------ */

static void wake(struct http_server *s)
{
    const uint64_t one = 1;
    const ssize_t put = write(s->wake_fd, &one, sizeof one);
    (void)put;                     /* a full counter wakes as well */
}

void http_post(struct http_server *s, void (*fn)(void *arg), void *arg)
{
    struct post *p = mem_must(1, sizeof *p);
    p->fn = fn;
    p->arg = arg;
    /* Once it is in the stack it is no longer ours to look at. */
    struct post *old = atomic_load_explicit(&s->posts, memory_order_relaxed);
    do p->next = old;
    while (!atomic_compare_exchange_weak_explicit(&s->posts, &old, p, memory_order_acq_rel, memory_order_relaxed));
    if (old == NULL) wake(s);
}

/* Takes the whole stack, turns it round and runs it; what is posted meanwhile comes with the next wake. */
void http_run_posts(struct http_server *s)
{
    struct post *p = atomic_exchange_explicit(&s->posts, NULL, memory_order_acq_rel), *in_order = NULL;
    while (p) {
        struct post *next = p->next;
        p->next = in_order;
        in_order = p;
        p = next;
    }
    while (in_order) {
        struct post *next = in_order->next;
        in_order->fn(in_order->arg);
        free(in_order);
        in_order = next;
    }
}

static void stop_seen(struct http_server *s);

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    struct http_server *s = arg;
    uint64_t n;
    (void)what;
    const ssize_t got = read(fd, &n, sizeof n);
    (void)got;
    stop_seen(s);
    http_run_posts(s);
}

/* ---- timers ----------------------------------------------------------------------------------------------- */

static void set_timer(struct event *ev, double seconds)
{
    const struct timeval tv = { (time_t)seconds, (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6) };
    event_add(ev, &tv);
}

static void timer_free(struct http_timer *t)
{
    *t->prev = t->next;
    if (t->next) t->next->prev = t->prev;
    event_free(t->event);
    free(t);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct http_timer *t = arg;
    void (*fn)(void *) = t->fn;
    void *self = t->arg;
    (void)fd, (void)what;
    timer_free(t);
    fn(self);
}

struct http_timer *http_after(struct http_server *s, double seconds, void (*fn)(void *arg), void *arg)
{
    struct http_timer *t = mem_must(1, sizeof *t);
    t->fn = fn;
    t->arg = arg;
    t->event = event_new(s->base, -1, 0, on_timer, t);
    t->next = s->timers;
    t->prev = &s->timers;
    if (t->next) t->next->prev = &t->next;
    s->timers = t;
    set_timer(t->event, seconds > 0 ? seconds : 0);
    return t;
}

void http_timer_cancel(struct http_timer **t)
{
    if (*t == NULL) return;
    timer_free(*t);
    *t = NULL;
}

/* ---- life cycle ------------------------------------------------------------------------------------------- */

bool http_server_draining(const struct http_server *s) { return s->phase != SERVING; }

void http_server_settle(struct http_server *s)
{
    if (s->phase >= DRAINING && s->connections == NULL) event_base_loopbreak(s->base);
}

static void drain_connections(struct http_server *s)
{
    for (struct connection *c = s->connections, *next; c; c = next) {
        next = c->next;
        connection_drain(c);
    }
    http_server_settle(s);
}

static void on_phase(evutil_socket_t fd, short what, void *arg)
{
    struct http_server *s = arg;
    (void)fd, (void)what;
    switch (s->phase) {
    case DELAYING:
        s->phase = DRAINING;
        evconnlistener_free(s->listener);
        s->listener = NULL;
        set_timer(s->phase_timer, s->o.drain_s);
        drain_connections(s);
        break;
    case DRAINING:
        s->phase = EXPIRED;
        set_timer(s->phase_timer, EXPIRED_S);
        if (s->drain_expired) s->drain_expired(s->drain_self);
        drain_connections(s);
        break;
    default:
        s->exit_code = 1;
        event_base_loopbreak(s->base);
    }
}

/* On the loop: how often were we told to stop since we looked? */
static void stop_seen(struct http_server *s)
{
    const int n = atomic_load(&s->stops);
    if (n == s->stops_seen) return;
    if (s->stops_seen == 0) {
        s->phase = DELAYING;
        if (s->drain_begin) s->drain_begin(s->drain_self);
        set_timer(s->phase_timer, s->o.drain_delay_s);
    }
    if (n > 1) {
        s->exit_code = 1;
        event_base_loopbreak(s->base);
    }
    s->stops_seen = n;
}

void http_server_stop(struct http_server *s)
{
    atomic_fetch_add(&s->stops, 1);
    wake(s);
}

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
    struct http_server *s = arg;
    struct err e;
    (void)what;
    if (sig != SIGHUP) {
        http_server_stop(s);
        return;
    }
    if (keys_load(s, &e) != OK) fprintf(stderr, "omnidrop: the keys stay as they were: %s\n", e.text);
    if (s->hup) s->hup(s->hup_self);
}

static void on_sweep(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    connection_free_closed(arg);
    http_server_settle(arg);
}

static void on_watch(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    connection_watch_ready(arg);
}

int http_server_run(struct http_server *s)
{
    static const int SIGNALS[3] = { SIGTERM, SIGINT, SIGHUP };
    s->loop_thread = pthread_self();
    for (int i = 0; i < 3; i++) {
        s->signal[i] = evsignal_new(s->base, SIGNALS[i], on_signal, s);
        event_add(s->signal[i], NULL);
    }
    atomic_store(&s->running, true);
    stop_seen(s);
    if (s->stops_seen < 2) event_base_dispatch(s->base);
    atomic_store(&s->running, false);
    for (int i = 0; i < 3; i++) {
        event_free(s->signal[i]);
        s->signal[i] = NULL;
    }
    return s->exit_code;
}

/* ---- the listener ----------------------------------------------------------------------------------------- */

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *peer, int n_peer, void *arg)
{
    struct http_server *s = arg;
    (void)l;
    connection_accept(s, fd, peer, s->uds ? 0 : (socklen_t)n_peer);
}

static void on_listen_again(evutil_socket_t fd, short what, void *arg)
{
    struct http_server *s = arg;
    (void)fd, (void)what;
    if (s->listener) evconnlistener_enable(s->listener);
}

/* Out of descriptors: waiting clients stay in the backlog for a moment instead of keeping the loop busy. */
static void on_accept_error(struct evconnlistener *l, void *arg)
{
    struct http_server *s = arg;
    evconnlistener_disable(l);
    set_timer(s->listen_again, 0.1);
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

static status may_serve(struct http_server *s, bool loopback, const char *host, struct err *e)
{
    s->check_host = loopback && s->keys.n == 0;
    if (loopback || s->keys.n || s->o.insecure_no_auth) return OK;
    return err_set(e, E_ARG, "--host %s is not loopback, and there are no keys: give --api-key or --api-key-file, or "
                   "--insecure-no-auth if everybody may use this server", host);
}

/* A socket file that nobody listens on any more is in the way of nobody. */
static status clear_uds(const struct sockaddr_un *a, struct err *e)
{
    struct stat st;
    if (lstat(a->sun_path, &st) != 0) return OK;
    if (!S_ISSOCK(st.st_mode)) return err_set(e, E_ARG, "--uds %s: there is something else of that name", a->sun_path);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool alive = fd >= 0 && connect(fd, (const struct sockaddr *)a, sizeof *a) == 0;
    if (fd >= 0) close(fd);
    if (alive) return err_set(e, E_IO, "--uds %s: another server listens there", a->sun_path);
    unlink(a->sun_path);
    return OK;
}

static status listen_at(struct http_server *s, const struct sockaddr *a, socklen_t n, const char *where, struct err *e)
{
    s->listener = evconnlistener_new_bind(s->base, on_accept, s, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE,
                                          BACKLOG, a, (int)n);
    if (s->listener == NULL)
        return err_set(e, E_IO, errno == EADDRINUSE ? "%s is taken by another program: %s" : "%s cannot be listened on: %s", where,
                       strerror(errno));
    evconnlistener_set_error_cb(s->listener, on_accept_error);
    return OK;
}

static status listen_uds(struct http_server *s, struct err *e)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    char text[160];
    if (strlen(s->o.uds) >= sizeof a.sun_path)
        return err_set(e, E_ARG, "--uds: the path is longer than %zu bytes", sizeof a.sun_path - 1);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", s->o.uds);
    TRY(clear_uds(&a, e));
    TRY(listen_at(s, (const struct sockaddr *)&a, sizeof a, s->o.uds, e));
    s->uds = mem_must_strdup(s->o.uds);
    snprintf(text, sizeof text, "unix:%s", s->o.uds);
    s->address = mem_must_strdup(text);
    return OK;
}

static status listen_tcp(struct http_server *s, struct err *e)
{
    char port[8], where[300], text[300];
    const char *host = s->o.host;
    /* One address is bound; of the two that "localhost" often is, the one that everybody means. */
    const struct addrinfo want = { .ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM,
                                   .ai_family = strcmp(host, "localhost") == 0 ? AF_INET : AF_UNSPEC };
    struct addrinfo *found = NULL;
    snprintf(port, sizeof port, "%u", s->o.port_any ? 0u : (unsigned)s->o.port);
    const int failed = getaddrinfo(host, port, &want, &found);
    if (failed) return err_set(e, E_ARG, "--host %s: %s", host, gai_strerror(failed));
    snprintf(where, sizeof where, "port %s of %.200s", port, host);
    status st = may_serve(s, is_loopback(found->ai_addr), host, e);
    if (st == OK) st = listen_at(s, found->ai_addr, found->ai_addrlen, where, e);
    freeaddrinfo(found);
    TRY(st);
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    if (getsockname(evconnlistener_get_fd(s->listener), (struct sockaddr *)&a, &n) != 0) return err_set(e, E_IO, "getsockname failed");
    s->o.port = ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port : ((struct sockaddr_in *)&a)->sin_port);
    const bool v6 = strchr(host, ':') != NULL;
    snprintf(text, sizeof text, "%s://%s%.200s%s:%u", s->tls ? "https" : "http", v6 ? "[" : "", host, v6 ? "]" : "",
             (unsigned)s->o.port);
    s->address = mem_must_strdup(text);
    return OK;
}

static status open_tls(struct http_server *s, struct err *e)
{
    const struct http_options *o = &s->o;
    if (o->ssl_certfile == NULL && o->ssl_keyfile == NULL) return OK;
    if (o->ssl_certfile == NULL || o->ssl_keyfile == NULL)
        return err_set(e, E_ARG, "TLS needs both --ssl-certfile and --ssl-keyfile");
    s->tls = SSL_CTX_new(TLS_server_method());
    if (s->tls == NULL) return err_set(e, E_NOMEM, "TLS cannot be set up");
    SSL_CTX_set_min_proto_version(s->tls, TLS1_2_VERSION);
    SSL_CTX_set_options(s->tls, SSL_OP_NO_RENEGOTIATION);
#ifdef SSL_OP_IGNORE_UNEXPECTED_EOF
    SSL_CTX_set_options(s->tls, SSL_OP_IGNORE_UNEXPECTED_EOF);
#endif
    if (SSL_CTX_use_certificate_chain_file(s->tls, o->ssl_certfile) != 1)
        return err_set(e, E_ARG, "--ssl-certfile %s cannot be used: %s", o->ssl_certfile, ERR_reason_error_string(ERR_get_error()));
    if (SSL_CTX_use_PrivateKey_file(s->tls, o->ssl_keyfile, SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(s->tls) != 1)
        return err_set(e, E_ARG, "--ssl-keyfile %s cannot be used: %s", o->ssl_keyfile, ERR_reason_error_string(ERR_get_error()));
    return OK;
}

/* ---- create and destroy ----------------------------------------------------------------------------------- */

static char **copy_list(const char *const *list, size_t n)
{
    char **out = mem_must(n ? n : 1, sizeof *out);
    for (size_t i = 0; i < n; i++) out[i] = mem_must_strdup(list[i]);
    return out;
}

static void free_list(char **list, size_t n)
{
    for (size_t i = 0; list && i < n; i++) free(list[i]);
    free(list);
}

#define DEFAULT(field, value) do { if (!o->field) o->field = (value); } while (0)

static void fill_defaults(struct http_options *o)
{
    DEFAULT(host, "127.0.0.1");
    DEFAULT(port, 8000);
    DEFAULT(spool_dir, "/tmp");
    DEFAULT(max_json_body, UINT64_C(256) << 20);
    DEFAULT(max_upload, UINT64_C(8) << 30);
    DEFAULT(max_spool, UINT64_C(32) << 30);
    DEFAULT(max_connections, 1024);
    DEFAULT(per_ip_connections, 64);
    DEFAULT(header_s, 10);
    DEFAULT(body_grace_s, 10);
    DEFAULT(body_stall_s, 30);
    DEFAULT(idle_s, 75);
    DEFAULT(write_stall_s, 60);
    DEFAULT(drain_s, 60);
    DEFAULT(body_rate, 16u << 10);
}

static void copy_options(struct http_server *s, const struct http_options *o)
{
    s->o = *o;
    fill_defaults(&s->o);
    s->key = copy_list(o->api_key, o->n_api_key);
    s->origin = copy_list(o->allowed_origin, o->n_allowed_origin);
    s->host = copy_list(o->allowed_host, o->n_allowed_host);
    if (o->api_key_file) s->key_file = mem_must_strdup(o->api_key_file);
    if (o->root_path) {
        s->root_path = mem_must_strdup(o->root_path);
        for (size_t n = strlen(s->root_path); n && s->root_path[n - 1] == '/'; n--) s->root_path[n - 1] = '\0';
    }
}

/* Every connection and every file in the spool is a descriptor: take as many as the system gives without asking. */
static void raise_descriptors(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) != 0 || l.rlim_cur == l.rlim_max) return;
    l.rlim_cur = l.rlim_max;
    setrlimit(RLIMIT_NOFILE, &l);
}

/* Fixes that a distribution puts under an old number cannot be seen: so it is said, once, and not refused. */
static void check_libevent(void)
{
    static atomic_bool said;
    if (event_get_version_number() >= 0x02010d00 || atomic_exchange(&said, true)) return;
    fprintf(stderr, "omnidrop: libevent %s: make sure that it has its distribution's security updates of 2026\n", event_get_version());
}

static status open_loop(struct http_server *s, struct err *e)
{
    struct event_config *config = event_config_new();
    if (config == NULL) return err_set(e, E_NOMEM, "out of memory");
    /* Signals, posts and sockets take turns: a flood of one does not keep the loop from the others. */
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    s->base = event_base_new_with_config(config);
    event_config_free(config);
    s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    s->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    if (s->base == NULL || s->wake_fd < 0 || s->watch_fd < 0)
        return err_set(e, E_IO, "the event loop cannot be set up: %s", strerror(errno));
    s->wake = event_new(s->base, s->wake_fd, EV_READ | EV_PERSIST, on_wake, s);
    s->watch = event_new(s->base, s->watch_fd, EV_READ | EV_PERSIST, on_watch, s);
    s->sweep = event_new(s->base, -1, 0, on_sweep, s);
    s->listen_again = event_new(s->base, -1, 0, on_listen_again, s);
    s->phase_timer = event_new(s->base, -1, 0, on_phase, s);
    event_add(s->wake, NULL);
    event_add(s->watch, NULL);
    return OK;
}

static status open_server(struct http_server *s, const struct http_options *o, struct err *e)
{
    TRY(keys_load(s, e));
    TRY(open_tls(s, e));
    TRY(open_loop(s, e));
    TRY(spool_create(o->spool_dir ? o->spool_dir : s->o.spool_dir, s, &s->spool, e));
    return s->o.uds ? listen_uds(s, e) : listen_tcp(s, e);
}

status http_server_create(const struct http_options *o, struct http_server **out, struct err *e)
{
    struct http_server *s = mem_must(1, sizeof *s);
    signal(SIGPIPE, SIG_IGN);
    raise_descriptors();
    check_libevent();
    s->wake_fd = s->watch_fd = -1;
    s->loop_thread = pthread_self();
    copy_options(s, o);
    const status st = open_server(s, o, e);
    if (st != OK) {
        http_server_destroy(&s);
        return st;
    }
    *out = s;
    return OK;
}

static void free_event(struct event *ev)
{
    if (ev) event_free(ev);
}

void http_server_destroy(struct http_server **server)
{
    struct http_server *s = *server;
    if (s == NULL) return;
    *server = NULL;
    assert(!atomic_load(&s->running));
    s->loop_thread = pthread_self();
    if (s->listener) evconnlistener_free(s->listener);
    if (s->uds) unlink(s->uds);
    while (s->connections) connection_close(s->connections);
    http_run_posts(s);
    spool_destroy(&s->spool);      /* runs the last posts */
    http_run_posts(s);
    connection_free_closed(s);
    for (struct http_timer *timer = s->timers, *next; timer; timer = next) {
        next = timer->next;
        timer_free(timer);
    }
    free_event(s->wake);
    free_event(s->watch);
    free_event(s->sweep);
    free_event(s->listen_again);
    free_event(s->phase_timer);
    if (s->base) event_base_free(s->base);
    if (s->wake_fd >= 0) close(s->wake_fd);
    if (s->watch_fd >= 0) close(s->watch_fd);
    SSL_CTX_free(s->tls);
    keys_free(&s->keys);
    free_list(s->key, s->o.n_api_key);
    free_list(s->origin, s->o.n_allowed_origin);
    free_list(s->host, s->o.n_allowed_host);
    free(s->key_file);
    free(s->root_path);
    free(s->uds);
    free(s->address);
    free(s->route);
    free(s->status_count);
    free(s);
}

uint16_t http_server_port(const struct http_server *s) { return s->o.port; }
const char *http_server_address(const struct http_server *s) { return s->address; }

void http_server_counts(const struct http_server *s, struct http_counts *out)
{
    *out = s->counts;
    out->n_connections = s->n_connections;
}

void http_server_on_drain(struct http_server *s, void (*begin)(void *self), void (*expired)(void *self), void *self)
{
    s->drain_begin = begin;
    s->drain_expired = expired;
    s->drain_self = self;
}

void http_server_set_gate(struct http_server *s, status (*gate)(void *self, struct err *e), void *self)
{
    s->gate = gate;
    s->gate_self = self;
}

void http_server_on_hup(struct http_server *s, void (*hup)(void *self), void *self)
{
    s->hup = hup;
    s->hup_self = self;
}
