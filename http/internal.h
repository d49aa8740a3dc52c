/* http/internal.h - what the files of http/'s transport share: the server, a connection, a request. Loop thread only,
 * but for posts.
 *
 *   server.c       the loop: listener, posts, timers, signals, drain
 *   connection.c   one socket: what may happen when, time limits, back-pressure, departure
 *   request.c      one request: checks of its head, its body, what handlers read of it
 *   reply.c        what goes out; event.c the text of events
 *   keys.c         who may ask: keys, Host, Origin
 *   routes.c       which handler
 *   access_log.c   what is told of a request when it is over; counts */
#ifndef HTTP_INTERNAL_H
#define HTTP_INTERNAL_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "http/multipart.h"
#include "http/reader.h"
#include "http/server.h"
#include "http/spool.h"

/* docs/http-api.md 2.4, 3.2, 3.4 */
#define INPUT_HIGH (64u << 10)             /* unread input of a connection */
#define OUTPUT_HIGH (256u << 10)
#define OUTPUT_LOW (64u << 10)
#define RING_MAX (1u << 20)                /* of a stream, above the high water */
#define SPOOL_HIGH (4u << 20)              /* between socket and disk */
#define SPOOL_LOW (1u << 20)
#define BODY_IN_MEMORY (1u << 20)
#define FIELD_MAX (1u << 20)               /* a plain field of a form */
#define LINGER_BYTES (64u << 20)
#define LINGER_S 5.0
#define RESET_S 0.2
#define REQUESTS_PER_CONNECTION 1000
#define REFUSED_MAX 64                     /* connections over the limit that are told so */
#define IGNORED_BODY_MAX (64u << 10)       /* of a request whose route takes none */

struct keys { char (*digest)[MEDIA_DIGEST_TEXT]; size_t n; };

struct post { struct post *next; void (*fn)(void *arg); void *arg; };

struct count { const char *route, *method; int status; uint64_t n; };

struct http_timer {
    struct http_timer *next, **prev;
    struct event *event;
    void (*fn)(void *arg);
    void *arg;
};

struct http_server {
    struct http_options o;         /* defaults filled in; what it points at is owned below */
    char *address, *uds, *root_path, *key_file;
    char **origin, **host;         /* [o.n_allowed_origin], [o.n_allowed_host] */
    char **key;                    /* [o.n_api_key] */
    struct keys keys;
    bool check_host;               /* loopback without keys */
    SSL_CTX *tls;
    struct event_base *base;
    struct evconnlistener *listener;
    struct spool *spool;
    pthread_t loop_thread;
    atomic_bool running;
    /* Posts: a stack that producers push to and the loop takes whole. */
    _Atomic(struct post *) posts;
    int wake_fd;
    struct event *wake;
    atomic_int stops;              /* how often http_server_stop was called */
    int stops_seen;
    /* Departures: one edge per connection, see connection.c. */
    int watch_fd;
    struct event *watch;
    struct event *signal[3];
    struct event *sweep;           /* frees closed connections */
    struct event *listen_again;    /* after the process ran out of descriptors */
    struct http_timer *timers;
    /* Life cycle. */
    enum { SERVING, DELAYING, DRAINING, EXPIRED } phase;
    struct event *phase_timer;
    int exit_code;
    void (*drain_begin)(void *), (*drain_expired)(void *);
    void *drain_self;
    void (*hup)(void *);
    void *hup_self;
    status (*gate)(void *, struct err *);
    void *gate_self;

    struct http_route *route;      /* [n_routes] */
    size_t n_routes, cap_routes;
    struct connection *connections, *closed;
    uint32_t n_connections, n_refused;
    struct http_counts counts;
    struct count *status_count;
    size_t n_status_count, cap_status_count;
};

enum connection_state {
    CONNECTION_HEAD,               /* waits for a request or reads its head                      */
    CONNECTION_BODY,               /* reads its body                                             */
    CONNECTION_STORE,              /* the body is here, not all of it on the disk                */
    CONNECTION_HANDLE,             /* a handler has it, or its reply is being written            */
    CONNECTION_FLUSH,              /* nothing more is read; closes when the output is sent       */
    CONNECTION_LINGER              /* our side is shut; input is dropped until the peer is done  */
};

struct connection {
    struct connection *next, **prev;
    struct http_server *server;
    struct bufferevent *bev;
    int fd;
    bool tls, refused;             /* refused: over the limit on connections */
    bool closed, processing, again;
    bool paused;                   /* not read, because the disk is behind */
    bool slow;                     /* its reader is about to be given up */
    bool reset;                    /* it must not end cleanly */
    bool peer_shut;                /* the peer sends no more */
    enum connection_state state;
    struct reader *reader;
    struct http_request *request;  /* counted; NULL between requests */
    uint32_t n_requests;
    struct evbuffer *ring;         /* output above the high water */
    struct sockaddr_storage peer;
    char peer_text[64];
    struct event *timer;
    double armed;                  /* when the timer fires; 0: not set */
    double since;                  /* the state, or the first byte of the head */
    double moved_in, moved_out;    /* last progress either way */
    double paused_at;
    uint64_t n_dropped;            /* LINGER */
};

enum body_kind { BODY_NOTHING, BODY_IGNORED, BODY_JSON, BODY_FORM };

struct part {
    struct http_part p;            /* what handlers see */
    char *name, *filename, *content_type, *value;
    size_t cap;
    struct spool_file *file;
};

struct query { char *key, *value; };

struct http_request {
    atomic_uint n_refs;
    struct http_server *server;
    struct connection *connection; /* NULL: gone, or its reply is complete */
    struct reader_head head;
    char id[65];
    char peer[64];
    char key[MEDIA_DIGEST_TEXT];
    const struct http_route *route;
    char *capture;
    struct query *query;
    size_t n_query;
    bool query_read;
    double began_s, start_s;       /* first and last byte */

    enum body_kind body_kind;
    uint64_t n_body, body_max;     /* so far; allowed */
    char *body;
    size_t cap_body;
    struct spool_file *file;       /* JSON over BODY_IN_MEMORY */
    struct multipart *multipart;
    struct part part[MULTIPART_PARTS_MAX];
    size_t n_parts;
    uint64_t n_spooled;            /* of server.counts.spool_bytes */
    bool handled;                  /* the handler was called */

    /* The reply. */
    struct evbuffer *headers;      /* lines that http_reply_header added */
    int status;                    /* 0: not begun */
    bool complete, chunked, head_only, streaming, close, gone;
    uint64_t bytes_out;
    struct file_reply *file_reply;
    void (*on_gone)(void *self, struct http_request *r, const char *phase);
    void *gone_self;
    void *user;
};

/* server.c */
void http_run_posts(struct http_server *s);
void http_server_settle(struct http_server *s);       /* a connection went: has the drain ended? */

/* connection.c */
void connection_accept(struct http_server *s, evutil_socket_t fd, const struct sockaddr *peer, socklen_t n_peer);
void connection_close(struct connection *c);
void connection_free_closed(struct http_server *s);
void connection_watch_ready(struct http_server *s);   /* departures that the kernel told of */
void connection_process(struct connection *c);        /* go on with what can go on */
void connection_write(struct connection *c, const void *bytes, size_t n);
void connection_reply_done(struct connection *c);     /* the request's reply is all in the output */
void connection_depart(struct connection *c, const char *phase);
void connection_drain(struct connection *c);          /* the drain begins */
uint64_t connection_backlog(const struct connection *c);

/* request.c */
struct http_request *request_new(struct connection *c);
/* The head is there: route it. On error the request is to be refused. */
status request_head(struct http_request *r, struct err *e);
status request_body(struct http_request *r, const char *bytes, size_t n, struct err *e);
status request_body_end(struct http_request *r, struct err *e);
bool request_stored(const struct http_request *r);    /* all of the body is where it belongs */
const struct err *request_store_error(const struct http_request *r);
uint64_t request_pending(const struct http_request *r);
bool request_has_body(const struct http_request *r);
/* Preflights and OPTIONS are answered here; true: it was. */
bool request_answer_options(struct http_request *r);
void request_abandon(struct http_request *r, const char *phase);   /* the client went away */

/* reply.c */
void reply_file_more(struct http_request *r);         /* the output has room again */
void reply_file_free(struct http_request *r);

/* keys.c */
status keys_load(struct http_server *s, struct err *e);
void keys_free(struct keys *k);
status keys_check(const struct http_server *s, const struct reader_head *h, char digest[MEDIA_DIGEST_TEXT],
                  bool needed, struct err *e);
status keys_check_host(const struct http_server *s, const struct reader_head *h, struct err *e);
/* OK without Origin, for the same origin, and for those allowed; *allow: what Access-Control-Allow-Origin says, or NULL. */
status keys_check_origin(const struct http_server *s, const struct reader_head *h, const char **allow, struct err *e);

/* routes.c */
/* The route, or NULL with an error; *capture is owned. allow [cap]: the methods of the path, for 405 and OPTIONS. */
status routes_find(const struct http_server *s, const char *path, const char *method, const struct http_route **out,
                   char **capture, char *allow, size_t cap, struct err *e);
const char *routes_strip_root(const struct http_server *s, const char *path);

/* access_log.c */
void access_log(struct http_request *r, int code);

#endif
