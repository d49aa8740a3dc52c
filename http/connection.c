/* http/connection.c - one socket: what may happen when, time limits, back-pressure, departure.
 *
 *     HEAD -> BODY -> STORE -> HANDLE -> HEAD ...          one request after the other, pipelined or not
 *       |       |        |        |
 *       +-------+--------+--------+--> FLUSH -> LINGER -> closed
 *
 * process() drives it: it takes steps until nothing moves, and every callback ends there. What a step calls may call
 * process() again; that call only leaves a note. A closed connection is freed later, from the loop, so that whoever is
 * on the stack can still look at c->closed.
 *
 * Departure. While a request is being handled the socket is not read beyond the input's high water, so a reader's end
 * of file may lie behind data. Every socket is therefore watched by a second epoll set for its peer's shutdown, with
 * edges: libevent cannot do that beside a buffered event (it would spin on an error that no event takes). */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <event2/bufferevent_ssl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/internal.h"

uint64_t connection_backlog(const struct connection *c)
{
    return evbuffer_get_length(bufferevent_get_output(c->bev)) + evbuffer_get_length(c->ring);
}

/* ---- time ------------------------------------------------------------------------------------------------- */

/* When the present state is over unless something moves; 0: never. */
static double deadline(const struct connection *c)
{
    const struct http_options *o = &c->server->o;
    const double stalled = connection_backlog(c) ? c->moved_out + o->write_stall_s : 0;
    double until = 0;
    switch (c->state) {
    case CONNECTION_HEAD:
        until = c->since + (c->n_requests && reader_idle(c->reader) ? o->idle_s : o->header_s);
        break;
    case CONNECTION_BODY: {
        if (c->paused) break;      /* the disk is slow, not the client */
        const double at_rate = c->since + (double)c->request->n_body / (double)o->body_rate;
        const double grace = c->since + o->body_grace_s;
        until = c->moved_in + o->body_stall_s;
        if (until > (at_rate > grace ? at_rate : grace)) until = at_rate > grace ? at_rate : grace;
        break;
    }
    case CONNECTION_LINGER: return c->since + LINGER_S;
    default: break;
    }
    return stalled && (until == 0 || stalled < until) ? stalled : until;
}

/* Timers only ever move to an earlier time here; one that fires too early looks again. */
static void arm(struct connection *c)
{
    const double until = deadline(c);
    if (until == 0 || (c->armed > 0 && c->armed <= until)) return;
    double left = until - clock_s();
    if (left < 0.001) left = 0.001;
    const struct timeval tv = { (time_t)left, (suseconds_t)((left - (double)(time_t)left) * 1e6) };
    c->armed = until;
    event_add(c->timer, &tv);
}

static void refuse(struct connection *c, const struct err *e);

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct connection *c = arg;
    (void)fd, (void)what;
    c->armed = 0;
    const double until = deadline(c), now = clock_s();
    if (until == 0 || until > now) {
        arm(c);
        return;
    }
    struct err e;
    const bool stalled = connection_backlog(c) && c->moved_out + c->server->o.write_stall_s <= now;
    if (stalled && c->state != CONNECTION_LINGER) {
        if (c->request == NULL) c->server->counts.gone_slow_reader++;
        connection_depart(c, "slow_reader");
    } else if (c->state == CONNECTION_LINGER || (c->state == CONNECTION_HEAD && reader_idle(c->reader))) {
        connection_close(c);
    } else {
        if (c->state == CONNECTION_HEAD)
            err_set(&e, E_TIMEOUT, "The request's headers did not arrive within %g s.", c->server->o.header_s);
        else
            err_set(&e, E_TIMEOUT, "The body came too slowly: after %g s it must keep %llu bytes a second, without a pause of "
                    "%g s.", c->server->o.body_grace_s, (unsigned long long)c->server->o.body_rate, c->server->o.body_stall_s);
        err_tag(&e, "request_timeout", NULL);
        refuse(c, &e);
        if (!c->closed) connection_process(c);
    }
}

/* ---- output ----------------------------------------------------------------------------------------------- */

void connection_write(struct connection *c, const void *bytes, size_t n)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);
    const bool wait = evbuffer_get_length(c->ring) || evbuffer_get_length(out) >= OUTPUT_HIGH;
    if (connection_backlog(c) == 0) c->moved_out = clock_s();
    if (evbuffer_add(wait ? c->ring : out, bytes, n) != 0) abort();
    arm(c);
}

static void on_output(struct evbuffer *b, const struct evbuffer_cb_info *info, void *arg)
{
    struct connection *c = arg;
    (void)b;
    if (info->n_deleted == 0) return;
    c->moved_out = clock_s();
    c->server->counts.bytes_out += info->n_deleted;
}

static void on_input(struct evbuffer *b, const struct evbuffer_cb_info *info, void *arg)
{
    struct connection *c = arg;
    (void)b;
    c->server->counts.bytes_in += info->n_added;
}

static void refill(struct connection *c)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);
    const size_t n = evbuffer_get_length(out);
    if (evbuffer_get_length(c->ring) && n < OUTPUT_HIGH) evbuffer_remove_buffer(c->ring, out, OUTPUT_HIGH - n);
    if (c->request) reply_file_more(c->request);
}

/* ---- the way of a request --------------------------------------------------------------------------------- */

static void set_state(struct connection *c, enum connection_state state)
{
    c->state = state;
    c->since = clock_s();
}

static void pause_reading(struct connection *c, bool on)
{
    if (c->paused == on) return;
    const double now = clock_s();
    c->paused = on;
    if (on) {
        c->paused_at = now;
        bufferevent_disable(c->bev, EV_READ);
    } else {
        bufferevent_enable(c->bev, EV_READ);
        c->since += now - c->paused_at;
        c->moved_in = now;
    }
}

/* Answer with an error and close, because what the client still sends is not understood or not wanted. */
static void refuse(struct connection *c, const struct err *e)
{
    struct http_request *r = c->request;
    if (r == NULL) r = c->request = request_new(c);
    r->close = true;
    pause_reading(c, false);
    c->state = CONNECTION_HANDLE;
    http_reply_error(r, e);
}

static void on_head(struct connection *c)
{
    struct err e;
    struct http_request *r = c->request = request_new(c);
    reader_take_head(c->reader, &r->head);
    r->began_s = c->since;
    c->n_requests++;
    const bool body = request_has_body(r);
    const status st = request_head(r, &e);
    if (!body) {                   /* its end needs no more bytes */
        size_t used, n;
        const char *piece;
        struct err none;
        const enum reader_event end = reader_next(c->reader, "", 0, &used, &piece, &n, &none);
        assert(end == READER_END);
    }
    if (st != OK || strcmp(r->head.method, "OPTIONS") == 0) {
        r->close |= body;
        c->state = CONNECTION_HANDLE;
        if (st != OK) http_reply_error(r, &e);
        else request_answer_options(r);
        return;
    }
    if (!body) {
        set_state(c, CONNECTION_STORE);
        if (request_body_end(r, &e) != OK) refuse(c, &e);
        return;
    }
    set_state(c, CONNECTION_BODY);
    c->moved_in = c->since;
    if (r->head.expects_continue && evbuffer_get_length(bufferevent_get_input(c->bev)) == 0)
        connection_write(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
}

static void dispatch(struct connection *c)
{
    struct http_request *r = http_ref(c->request);
    r->start_s = clock_s();
    r->handled = true;
    set_state(c, CONNECTION_HANDLE);
    r->route->handle(r->route->self, r);
    /* A client that was gone before its request was handled gets what could be said at once. */
    if (c->peer_shut && r->connection == c) connection_depart(c, r->status ? "stream" : "wait");
    http_unref(r);
}

/* One event of the reader; true: go on. */
static bool read_some(struct connection *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);
    struct evbuffer_iovec v = { 0 };
    struct err e;
    size_t used, n_piece;
    const char *piece;
    const size_t n = evbuffer_peek(in, -1, NULL, &v, 1) > 0 ? v.iov_len : 0;
    const bool fresh = c->state == CONNECTION_HEAD && reader_idle(c->reader);
    if (fresh && n) c->since = clock_s();
    const enum reader_event event = reader_next(c->reader, n ? v.iov_base : "", n, &used, &piece, &n_piece, &e);
    switch (event) {
    case READER_HEAD:
        evbuffer_drain(in, used);
        on_head(c);
        return true;
    case READER_BODY: {
        const status st = request_body(c->request, piece, n_piece, &e);
        evbuffer_drain(in, used);
        if (st != OK) refuse(c, &e);
        return true;
    }
    case READER_END:
        evbuffer_drain(in, used);
        set_state(c, CONNECTION_STORE);
        if (request_body_end(c->request, &e) != OK) refuse(c, &e);
        return true;
    case READER_BAD:
        evbuffer_drain(in, used);
        refuse(c, &e);
        return true;
    default:
        evbuffer_drain(in, used);
        return n > 0;
    }
}

static bool store(struct connection *c)
{
    const struct err *e = request_store_error(c->request);
    if (e) {
        refuse(c, e);
        return true;
    }
    if (c->state == CONNECTION_STORE) {
        if (!request_stored(c->request)) return false;
        dispatch(c);
        return true;
    }
    const uint64_t pending = request_pending(c->request);
    if (pending > SPOOL_HIGH) pause_reading(c, true);
    else if (pending < SPOOL_LOW) pause_reading(c, false);
    return !c->paused && read_some(c);
}

/* The peer is told that nothing follows; its own such word is not waited for. */
static void shut_tls(struct connection *c)
{
    SSL *ssl = c->tls ? bufferevent_openssl_get_ssl(c->bev) : NULL;
    if (ssl == NULL || !SSL_is_init_finished(ssl)) return;
    SSL_shutdown(ssl);
    ERR_clear_error();             /* the queue is the thread's: another connection must not find this */
}

/* Output is sent: shut our side, so that the peer sees the end, and drop what it still sends. Closing at once would
 * reset the connection and could take the reply away from a client that is still busy sending. */
static bool linger(struct connection *c)
{
    set_state(c, CONNECTION_LINGER);
    bufferevent_enable(c->bev, EV_READ);
    if (c->reset) {                /* what was written has a moment to arrive, then the connection breaks */
        c->since -= LINGER_S - RESET_S;
        return true;
    }
    shut_tls(c);
    shutdown(c->fd, SHUT_WR);
    return true;
}

static bool drop_input(struct connection *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);
    const size_t n = evbuffer_get_length(in);
    c->n_dropped += n;
    evbuffer_drain(in, n);
    if (c->n_dropped > LINGER_BYTES) connection_close(c);
    return false;
}

static bool step(struct connection *c)
{
    switch (c->state) {
    case CONNECTION_HEAD:
        if (connection_backlog(c) > OUTPUT_HIGH) return false;
        if (c->server->phase >= DRAINING && reader_idle(c->reader) && connection_backlog(c) == 0 &&
            evbuffer_get_length(bufferevent_get_input(c->bev)) == 0) {
            connection_close(c);   /* nothing is under way in either direction */
            return false;
        }
        return read_some(c);
    case CONNECTION_BODY:
    case CONNECTION_STORE: return store(c);
    case CONNECTION_FLUSH: return connection_backlog(c) == 0 && linger(c);
    case CONNECTION_LINGER: return drop_input(c);
    default: return false;
    }
}

void connection_process(struct connection *c)
{
    if (c->closed) return;
    if (c->processing) {
        c->again = true;
        return;
    }
    c->processing = true;
    do {
        c->again = false;
        while (!c->closed && step(c)) {}
    } while (c->again && !c->closed);
    c->processing = false;
    if (!c->closed) arm(c);
}

void connection_reply_done(struct connection *c)
{
    struct http_request *r = c->request;
    const bool close = r->close;
    c->request = NULL;
    r->connection = NULL;
    http_unref(r);
    set_state(c, close ? CONNECTION_FLUSH : CONNECTION_HEAD);
    connection_process(c);
}

/* ---- the end ---------------------------------------------------------------------------------------------- */

void connection_close(struct connection *c)
{
    if (c->closed) return;
    struct http_server *s = c->server;
    c->closed = true;
    *c->prev = c->next;
    if (c->next) c->next->prev = c->prev;
    if (c->refused) s->n_refused--;
    else s->n_connections--;
    struct http_request *r = c->request;
    c->request = NULL;
    if (r) {
        request_abandon(r, r->status ? "stream" : "wait");
        http_unref(r);
    }
    event_del(c->timer);
    const struct linger now = { 1, 0 };
    /* No client shall take what it has for all there is. */
    if (c->reset || connection_backlog(c)) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    else if (c->state != CONNECTION_LINGER) shut_tls(c);
    epoll_ctl(s->watch_fd, EPOLL_CTL_DEL, c->fd, NULL);
    bufferevent_free(c->bev);
    c->bev = NULL;
    c->next = s->closed;
    s->closed = c;
    event_active(s->sweep, EV_TIMEOUT, 0);
}

void connection_free_closed(struct http_server *s)
{
    while (s->closed) {
        struct connection *c = s->closed;
        s->closed = c->next;
        event_free(c->timer);
        evbuffer_free(c->ring);
        reader_free(&c->reader);
        free(c);
    }
}

void connection_depart(struct connection *c, const char *phase)
{
    struct http_request *r = c->request;
    if (c->closed) return;
    c->request = NULL;
    if (r) {
        request_abandon(r, phase);
        http_unref(r);
    }
    connection_close(c);
}

/* The peer has shut its side, or the connection broke. */
static void peer_left(struct connection *c)
{
    c->peer_shut = true;
    if (c->state == CONNECTION_HANDLE && c->request) connection_depart(c, c->request->status ? "stream" : "wait");
}

void connection_watch_ready(struct http_server *s)
{
    struct epoll_event ready[64];
    const int n = epoll_wait(s->watch_fd, ready, 64, 0);
    for (int i = 0; i < n; i++) {
        /* Connections that an earlier one of this batch closed are only freed by the sweep. */
        struct connection *c = ready[i].data.ptr;
        if (!c->closed) peer_left(c);
    }
}

static void on_read(struct bufferevent *bev, void *arg)
{
    struct connection *c = arg;
    (void)bev;
    c->moved_in = clock_s();
    connection_process(c);
}

static void on_write(struct bufferevent *bev, void *arg)
{
    struct connection *c = arg;
    (void)bev;
    refill(c);
    connection_process(c);
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
    struct connection *c = arg;
    (void)bev;
    if (what & BEV_EVENT_CONNECTED) return;
    c->peer_shut = true;
    /* What was read before the end may still hold whole requests. */
    if (what & BEV_EVENT_EOF && (c->state == CONNECTION_HEAD || c->state == CONNECTION_BODY)) connection_process(c);
    if (c->closed) return;
    const bool sending = c->state == CONNECTION_FLUSH || c->state == CONNECTION_STORE ||
                         (c->state == CONNECTION_HEAD && connection_backlog(c));
    if (what & BEV_EVENT_EOF && sending) {
        if (c->state == CONNECTION_HEAD) set_state(c, CONNECTION_FLUSH);
        connection_process(c);
        return;
    }
    connection_depart(c, c->request && c->request->status ? "stream" : "wait");
}

/* ---- the start -------------------------------------------------------------------------------------------- */

static bool same_peer(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    if (a->ss_family != b->ss_family) return false;
    if (a->ss_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    if (a->ss_family != AF_INET6) return false;
    const struct in6_addr *x = &((const struct sockaddr_in6 *)a)->sin6_addr, *y = &((const struct sockaddr_in6 *)b)->sin6_addr;
    /* One who has IPv6 has a whole /64 of it. */
    return memcmp(x, y, IN6_IS_ADDR_V4MAPPED(x) ? 16 : 8) == 0;
}

/* Has an idle peer closed, and the loop has not come to it yet? Busy clients that open a connection for each request
 * would be refused for those that they have closed already. */
static bool has_left(const struct connection *c)
{
    char byte;
    return c->state == CONNECTION_HEAD && c->request == NULL && recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

static bool over_limit(const struct http_server *s, const struct sockaddr_storage *peer)
{
    if (s->n_connections >= s->o.max_connections) return true;
    uint32_t n = 0;
    for (const struct connection *c = s->connections; c; c = c->next) n += !c->refused && same_peer(&c->peer, peer);
    if (n < s->o.per_ip_connections) return false;
    for (const struct connection *c = s->connections; c; c = c->next)
        n -= !c->refused && same_peer(&c->peer, peer) && has_left(c);
    return n >= s->o.per_ip_connections;
}

static struct bufferevent *open_events(struct http_server *s, evutil_socket_t fd)
{
    if (s->tls == NULL) return bufferevent_socket_new(s->base, fd, BEV_OPT_CLOSE_ON_FREE);
    SSL *ssl = SSL_new(s->tls);
    struct bufferevent *bev =
        ssl ? bufferevent_openssl_socket_new(s->base, fd, ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE) : NULL;
    if (bev) bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
    else SSL_free(ssl);
    return bev;
}

static void name_peer(struct connection *c)
{
    char text[INET6_ADDRSTRLEN] = "";
    if (c->peer.ss_family == AF_INET)
        inet_ntop(AF_INET, &((struct sockaddr_in *)&c->peer)->sin_addr, text, sizeof text);
    else if (c->peer.ss_family == AF_INET6)
        inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&c->peer)->sin6_addr, text, sizeof text);
    snprintf(c->peer_text, sizeof c->peer_text, "%s", text[0] ? text : "unix");
}

static void refuse_connection(struct connection *c)
{
    struct err e;
    err_set(&e, E_BUSY, "Too many connections: at most %u at once, %u from one address.", c->server->o.max_connections,
            c->server->o.per_ip_connections);
    err_tag(&e, "too_many_connections", NULL);
    refuse(c, &e);
    if (!c->closed) connection_process(c);
}

void connection_accept(struct http_server *s, evutil_socket_t fd, const struct sockaddr *peer, socklen_t n_peer)
{
    struct sockaddr_storage address = { 0 };
    memcpy(&address, peer, n_peer < (socklen_t)sizeof address ? (size_t)n_peer : sizeof address);
    if (n_peer == 0) address.ss_family = AF_UNIX;
    const bool over = over_limit(s, &address);
    const int one = 1;
    struct bufferevent *bev = over && s->n_refused >= REFUSED_MAX ? NULL : open_events(s, fd);
    if (bev == NULL) {
        close(fd);
        return;
    }
    if (address.ss_family != AF_UNIX) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection *c = mem_must(1, sizeof *c);
    c->server = s;
    c->fd = fd;
    c->tls = s->tls != NULL;
    c->bev = bev;
    c->peer = address;
    c->refused = over;
    c->reader = reader_create();
    c->ring = evbuffer_new();
    c->timer = event_new(s->base, -1, 0, on_timer, c);
    name_peer(c);
    c->next = s->connections;
    if (c->next) c->next->prev = &c->next;
    s->connections = c;
    c->prev = &s->connections;
    if (over) s->n_refused++;
    else s->n_connections++;
    set_state(c, CONNECTION_HEAD);
    c->moved_in = c->moved_out = c->since;
    struct epoll_event watch = { .events = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLET, .data.ptr = c };
    if (epoll_ctl(s->watch_fd, EPOLL_CTL_ADD, fd, &watch) != 0) {
        connection_close(c);
        return;
    }
    evbuffer_add_cb(bufferevent_get_output(bev), on_output, c);
    evbuffer_add_cb(bufferevent_get_input(bev), on_input, c);
    bufferevent_setcb(bev, on_read, on_write, on_event, c);
    bufferevent_setwatermark(bev, EV_READ, 0, INPUT_HIGH);
    bufferevent_setwatermark(bev, EV_WRITE, OUTPUT_LOW, 0);
    bufferevent_set_max_single_read(bev, INPUT_HIGH);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    if (over) refuse_connection(c);
    else arm(c);
}

/* The drain begins, or its time is over: what has no request under way goes; expired: what uploads as well. */
void connection_drain(struct connection *c)
{
    struct err e;
    if (c->server->phase == EXPIRED && (c->state == CONNECTION_BODY || c->state == CONNECTION_STORE ||
                                        (c->state == CONNECTION_HEAD && !reader_idle(c->reader)))) {
        err_set(&e, E_BUSY, "The server is shutting down: send the request to another one or try again later.");
        err_tag(&e, "draining", NULL);
        refuse(c, &e);
    }
    connection_process(c);
}
