/* cli/serve.c - omnidrop serve: binds, loads the model beside the loop, serves until a drain has ended.
 *
 * Under mpirun rank 0 does so, and leaders of other groups (cli/ranks.h) run lead(): the same engine, jobs from rank 0.
 *
 *   main thread     options, bind, loop of http/server.h
 *   loading thread  engine, service, api; a warm-up request; then /ready says so, and one line on stderr */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "api/loader.h"
#include "api/remote.h"
#include "base/clock.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/ranks.h"
#include "cli/serve.h"
#include "http/app.h"
#include "http/audio.h"

static const char *const GENERATION[] = { "auto", "none", NULL };
static const char *const UNKNOWN[] = { "ignore", "log", "reject", NULL };
static const char *const SCHEDULING[] = { "fcfs", "priority", NULL };

static const struct cli_option listen_options[] = {
    { "host", 0, CLI_TEXT, "ADDR", "127.0.0.1", "address to listen on" },
    { "port", 0, CLI_UINT, "N", "8000", "port; 0: one that is free" },
    { "uds", 0, CLI_TEXT, "PATH", NULL, "listen on a Unix socket instead" },
    { "ssl-certfile", 0, CLI_TEXT, "FILE", NULL, "TLS: certificate chain, PEM" },
    { "ssl-keyfile", 0, CLI_TEXT, "FILE", NULL, "TLS: private key, PEM" },
    { "api-key", 0, CLI_TEXT, "KEY", NULL, "key that clients send as a Bearer token (repeatable)", .repeat = true },
    { "api-key-file", 0, CLI_TEXT, "FILE", NULL, "keys, one a line, # comments; read again on SIGHUP" },
    { "insecure-no-auth", 0, CLI_FLAG, NULL, NULL, "without keys, listen on more than loopback" },
    { "allowed-origins", 0, CLI_TEXT, "ORIGIN", NULL, "CORS: who may call from a browser; * for all (repeatable)",
      .repeat = true },
    { "allowed-hosts", 0, CLI_TEXT, "NAME", NULL, "names beside loopback ones in the Host header (repeatable)",
      .repeat = true },
    { "root-path", 0, CLI_TEXT, "PATH", NULL, "prefix of all paths behind a proxy" },
    { "metrics-public", 0, CLI_FLAG, NULL, NULL, "/metrics needs no key" },
    { "ui", 0, CLI_FLAG, NULL, "true", "the page at / (--no-ui: without)" },
    { "access-log", 0, CLI_TEXT, "FILE", NULL, "one JSON line a request; - for stderr" },
    { 0 }
};

static const struct cli_option limit_options[] = {
    { "max-json-body", 0, CLI_TEXT, "BYTES", "256M", "largest JSON body; K, M and G are powers of 1024" },
    { "max-upload", 0, CLI_TEXT, "BYTES", "8G", "largest upload" },
    { "spool-dir", 0, CLI_TEXT, "DIR", NULL, "where bodies wait; default: TMPDIR or /tmp" },
    { "max-spool", 0, CLI_TEXT, "BYTES", "0", "most bytes there; 0: what the disk has" },
    { "state-dir", 0, CLI_TEXT, "DIR", NULL, "files and batches live here; default: in the spool, gone at the end" },
    { "files-quota", 0, CLI_TEXT, "BYTES", "100G", "most bytes of uploaded files" },
    { "max-connections", 0, CLI_UINT, "N", "1024", "open connections" },
    { "per-ip-connections", 0, CLI_UINT, "N", "64", "of one address; 0: no limit (behind a proxy)" },
    { "write-stall", 0, CLI_SECONDS, "TIME", "60", "a client that reads nothing for so long is cut off" },
    { "drain-delay", 0, CLI_SECONDS, "TIME", "0", "after SIGTERM, time for load balancers to look at /ready" },
    { "drain-timeout", 0, CLI_SECONDS, "TIME", "60", "after SIGTERM, time for running requests" },
    { 0 }
};

static const struct cli_option api_options_table[] = {
    { "served-model-name", 0, CLI_TEXT, "NAME", NULL,
      "names of the model in the API, the first one is echoed (repeatable)", .repeat = true },
    { "strict-openai", 0, CLI_FLAG, NULL, NULL, "no extension keys in replies" },
    { "unknown-fields", 0, CLI_TEXT, "WHAT", "ignore", "fields that nobody knows: ignore, log or reject",
      .choices = UNKNOWN },
    { "generation-config", 0, CLI_TEXT, "WHAT", "auto", "auto: the model's temperature and top_p; none: 1 and 1",
      .choices = GENERATION },
    { "max-n", 0, CLI_UINT, "N", "8", "most answers of a request" },
    { "default-max-tokens", 0, CLI_UINT, "N", "0", "of answers that name no length; 0: the room left in the context" },
    { "stream-commit-ms", 0, CLI_UINT, "N", "5000", "a stream's status is sent at latest so long after its body" },
    { "stream-ping", 0, CLI_SECONDS, "TIME", "15", "a stream's silence is filled with a comment so often" },
    { "limit-mm-per-prompt", 0, CLI_TEXT, "LIST", "image=64,audio=16,video=4", "media parts of a request" },
    { "allowed-local-media-path", 0, CLI_TEXT, "DIR", NULL, "file: URLs may point below it (repeatable)",
      .repeat = true },
    { "allowed-media-domains", 0, CLI_TEXT, "HOST", NULL,
      "http(s): URLs may point at it; .example.org: below it (repeatable)", .repeat = true },
    { "media-allow-private-nets", 0, CLI_TEXT, "CIDR", NULL, "private addresses that media may come from (repeatable)",
      .repeat = true },
    { "media-fetch-timeout", 0, CLI_SECONDS, "TIME", "2:00", "longest time of a fetch, with its redirects" },
    { "max-media-duration", 0, CLI_SECONDS, "TIME", "24:00:00", "longest sound or film" },
    { 0 }
};

static const struct cli_option engine_options_table[] = {
    { "max-num-seqs", 0, CLI_UINT, "N", "32", "requests that run at once" },
    { "max-queue", 0, CLI_UINT, "N", "256", "requests that may wait" },
    { "scheduling", 0, CLI_TEXT, "HOW", "fcfs", "fcfs, or priority: the field `priority` counts", .choices = SCHEDULING },
    { "overtake-max", 0, CLI_UINT, "N", "16", "later requests that may pass one that waits for pages" },
    { "queue-timeout", 0, CLI_SECONDS, "TIME", "0", "longest wait; 0: no limit" },
    { "deadline", 0, CLI_SECONDS, "TIME", "0", "longest time of a request; 0: no limit" },
    { "itl-target", 0, CLI_SECONDS, "TIME", "50ms", "time between two tokens that prefill beside must leave" },
    { "batch-share", 0, CLI_NUMBER, "X", "1",
      "share of the slots that batch lines may take when nobody else wants them" },
    { "window-cache-ttl", 0, CLI_SECONDS, "TIME", "30:00", "finished windows of a transcription are kept so long" },
    { "media-cache", 0, CLI_TEXT, "BYTES", "1G", "encoder outputs kept for the next question; 0: none" },
    { "prefix-cache", 0, CLI_TEXT, "BYTES", "1G", "hidden states kept for the next question; 0: none" },
    { 0 }
};

static const struct cli_option *const serve_groups[] = { listen_options, api_options_table, engine_options_table, limit_options,
                                                         cli_policy_options, cli_rank_options, cli_common_options, NULL };
static const struct cli_command serve_command = {
    .name = "serve", .summary = "The OpenAI API over one model: chat about sound and film, transcription, files, batches.",
    .usage = "omnidrop serve [-m DIR] [--port N] [--policy omnidrop --retention R] [options]",
    .groups = serve_groups,
    .examples = "omnidrop serve\n"
                "omnidrop serve -m Qwen2.5-Omni-7B --host 0.0.0.0 --api-key-file keys --policy omnidrop --retention 0.3\n"
                "mpirun -np 4 --enable-recovery omnidrop serve --tp 2 --dp 2 -m Qwen2.5-Omni-7B\n"
                "omnidrop serve --config /etc/omnidrop/omnidrop.ini" };

/* ---- options ----------------------------------------------------------------------------------------------- */

/* "256M", "8GiB", "1000000". */
static status bytes_of(const struct cli *c, const char *name, uint64_t *out, struct err *e)
{
    const char *text = cli_text(c, name);
    char *end;
    errno = 0;
    const unsigned long long v = strtoull(text, &end, 10);
    const char *unit = strchr("KMGT", *end);
    int shift = 0;
    if (end != text && *end && unit) {
        shift = 10 * (int)(unit - "KMGT" + 1);
        end += strcmp(end + 1, "iB") == 0 ? 3 : 1;
    }
    if (errno || end == text || *end || strchr(text, '-') || v > UINT64_MAX >> (shift + 1))
        return err_set(e, E_ARG, "--%s %s: give a number of bytes such as 1000000, 256M or 8G", name, text);
    *out = (uint64_t)v << shift;
    return OK;
}

/* All values of a repeatable option; *out is owned, its texts are borrowed. */
static size_t values_of(const struct cli *c, const char *name, const char *const **out)
{
    size_t n = 0;
    const char **v = mem_must(cli_n_given(c) + 1, sizeof *v);
    for (size_t i = 0; i < cli_n_given(c); i++)
        if (strcmp(cli_given_at(c, i).option->name, name) == 0 && cli_given_at(c, i).value[0]) v[n++] = cli_given_at(c, i).value;
    *out = v;
    return n;
}

struct part_limits { uint32_t image, audio, video; };

/* "image=64,audio=16,video=4"; kinds that are not named keep what they have. */
static status media_limits_of(const struct cli *c, struct part_limits *out, struct err *e)
{
    const char *p = cli_text(c, "limit-mm-per-prompt");
    while (*p) {
        char kind[8];
        unsigned n;
        int used = 0;
        if (sscanf(p, " %7[a-z] = %u%n", kind, &n, &used) != 2 || (p[used] != 0 && p[used] != ','))
            return err_set(e, E_ARG, "--limit-mm-per-prompt %s: give a list such as image=64,audio=16,video=4",
                           cli_text(c, "limit-mm-per-prompt"));
        if (strcmp(kind, "image") == 0) out->image = n;
        else if (strcmp(kind, "audio") == 0) out->audio = n;
        else if (strcmp(kind, "video") == 0) out->video = n;
        else return err_set(e, E_ARG, "--limit-mm-per-prompt: \"%s\" is none of image, audio and video", kind);
        p += used + (p[used] == ',');
    }
    return OK;
}

struct serve {
    struct cli *cli;
    struct http_options http;
    struct app_options app_options;
    struct service_options service_options;
    struct loader_options loader_options;
    struct serve_stores_options stores_options;
    struct api_options api_options;
    const char *const *api_key, *const *origin, *const *host, *const *name, *const *root, *const *domain,
        *const *net;               /* owned lists */
    char model_name[1024], windows_dir[1056];
    const char *only_name;

    struct http_server *server;
    struct app *app;
    struct serve_stores *stores;
    struct service_loader loader, counted;     /* the second is the first, and counts */
    struct engine *engine;
    struct service *service;
    struct api *api;
    struct api_audio *audio;
    struct http_audio http_audio;
    struct policy_params policy;
    double started_s, window_ttl_s;
    pthread_t loading;
    bool is_loading;               /* the thread was started and not joined */
    atomic_bool loaded;            /* it has ended */
    atomic_int failed;             /* the exit code of what ended the server; 0: nothing did */
    struct metrics *metrics;       /* the app's; a leader's own, which go to rank 0 */
    struct ranks *ranks;
    struct groups *groups;         /* rank 0 of several groups, else NULL */
    struct remote *remote;         /* another leader, else NULL */
    struct err lost;               /* why group 0 is gone */
    int code;                      /* that the program ends with */
};

static status http_options_of(struct serve *s, struct err *e)
{
    const struct cli *c = s->cli;
    struct http_options *o = &s->http;
    uint64_t port = 0, connections = 0, per_ip = 0;
    TRY(cli_uint(c, "port", 0, 65535, &port, e));
    TRY(cli_uint(c, "max-connections", 1, 65535, &connections, e));
    TRY(cli_uint(c, "per-ip-connections", 0, 65535, &per_ip, e));
    TRY(bytes_of(c, "max-json-body", &o->max_json_body, e));
    TRY(bytes_of(c, "max-upload", &o->max_upload, e));
    TRY(bytes_of(c, "max-spool", &o->max_spool, e));
    TRY(cli_seconds(c, "write-stall", &o->write_stall_s, e));
    TRY(cli_seconds(c, "drain-delay", &o->drain_delay_s, e));
    TRY(cli_seconds(c, "drain-timeout", &o->drain_s, e));
    o->host = cli_text(c, "host");
    o->port = (uint16_t)port;
    o->port_any = port == 0;
    o->uds = cli_text(c, "uds");
    o->ssl_certfile = cli_text(c, "ssl-certfile");
    o->ssl_keyfile = cli_text(c, "ssl-keyfile");
    o->n_api_key = values_of(c, "api-key", &s->api_key);
    o->api_key = s->api_key;
    o->api_key_file = cli_text(c, "api-key-file");
    o->insecure_no_auth = cli_flag(c, "insecure-no-auth");
    o->n_allowed_origin = values_of(c, "allowed-origins", &s->origin);
    o->allowed_origin = s->origin;
    o->n_allowed_host = values_of(c, "allowed-hosts", &s->host);
    o->allowed_host = s->host;
    o->root_path = cli_text(c, "root-path");
    o->spool_dir = cli_text(c, "spool-dir");
    o->max_connections = (uint32_t)connections;
    o->per_ip_connections = per_ip ? (uint32_t)per_ip : (uint32_t)connections;     /* 0: as many as there may be at all */
    o->metrics_public = cli_flag(c, "metrics-public");
    const char *log = cli_text(c, "access-log");
    if (log == NULL) return OK;
    o->access_log = strcmp(log, "-") == 0 ? stderr : fopen(log, "ae");
    if (o->access_log == NULL) return err_set(e, E_ARG, "--access-log %s: %s", log, strerror(errno));
    return OK;
}

static status service_options_of(struct serve *s, struct err *e)
{
    const struct cli *c = s->cli;
    struct service_options *o = &s->service_options;
    uint64_t running = 0, waiting = 0, overtake = 0, tokens = 0;
    TRY(cli_uint(c, "max-num-seqs", 1, 4096, &running, e));
    TRY(cli_uint(c, "max-queue", 1, 1u << 20, &waiting, e));
    TRY(cli_uint(c, "overtake-max", 1, 1u << 20, &overtake, e));
    TRY(cli_uint(c, "default-max-tokens", 0, 1u << 24, &tokens, e));
    TRY(cli_seconds(c, "itl-target", &o->itl_target_s, e));
    TRY(bytes_of(c, "media-cache", &o->media_cache_bytes, e));
    TRY(bytes_of(c, "prefix-cache", &o->hidden_cache_bytes, e));
    o->max_running = (uint32_t)running;
    o->max_waiting = (uint32_t)waiting;
    o->overtake_max = (uint32_t)overtake;
    o->default_max_tokens = (uint32_t)tokens;
    o->priorities = strcmp(cli_text(c, "scheduling"), "priority") == 0;
    o->no_media_cache = o->media_cache_bytes == 0;
    o->no_prefix_cache = o->hidden_cache_bytes == 0;
    return OK;
}

/* Where media may come from, and how many. */
static status loader_options_of(struct serve *s, struct err *e)
{
    const struct cli *c = s->cli;
    struct loader_options *o = &s->loader_options;
    struct part_limits media = { 64, 16, 4 };
    TRY(media_limits_of(c, &media, e));
    TRY(cli_seconds(c, "max-media-duration", &o->limits.max_duration_s, e));
    TRY(cli_seconds(c, "media-fetch-timeout", &o->fetch_s, e));
    o->n_roots = (uint32_t)values_of(c, "allowed-local-media-path", &s->root);
    o->root = s->root;
    o->n_domains = (uint32_t)values_of(c, "allowed-media-domains", &s->domain);
    o->domain = s->domain;
    o->n_nets = (uint32_t)values_of(c, "media-allow-private-nets", &s->net);
    o->net = s->net;
    o->dir = s->http.spool_dir;
    o->limits.dir = s->http.spool_dir;
    o->max_images = media.image;
    o->max_audios = media.audio;
    o->max_videos = media.video;
    return OK;
}

static status stores_options_of(struct serve *s, struct err *e)
{
    struct serve_stores_options *o = &s->stores_options;
    TRY(bytes_of(s->cli, "files-quota", &o->files_quota, e));
    TRY(cli_number(s->cli, "batch-share", 0, 1, &o->batch_share, e));
    o->state_dir = cli_text(s->cli, "state-dir");
    o->spool_dir = s->http.spool_dir;
    o->max_running = s->service_options.max_running * ranks_groups(s->ranks);
    o->limits = s->loader_options.limits;
    return OK;
}

static void log_line(void *self, const char *line) { cli_log(((struct serve *)self)->cli, CLI_NOTE, "%s", line); }

static status api_options_of(struct serve *s, struct err *e)
{
    const struct cli *c = s->cli;
    struct api_options *o = &s->api_options;
    const char *unknown = cli_text(c, "unknown-fields");
    uint64_t max_n = 0;
    TRY(cli_uint(c, "max-n", 1, 128, &max_n, e));
    TRY(cli_seconds(c, "queue-timeout", &o->queue_timeout_s, e));
    TRY(cli_seconds(c, "deadline", &o->deadline_s, e));
    o->max_n = (uint32_t)max_n;
    o->n_served_name = values_of(c, "served-model-name", &s->name);
    o->served_name = o->n_served_name ? s->name : NULL;
    o->generation_config_none = strcmp(cli_text(c, "generation-config"), "none") == 0;
    o->unknown_fields = strcmp(unknown, "reject") == 0 ? API_UNKNOWN_REJECT : strcmp(unknown, "log") == 0 ? API_UNKNOWN_LOG
                                                                                                          : API_UNKNOWN_IGNORE;
    o->strict_openai = cli_flag(c, "strict-openai");
    o->priorities = s->service_options.priorities;
    o->log = log_line;
    o->log_self = s;
    return OK;
}

static void engine_died(void *self)
{
    cli_log(((struct serve *)self)->cli, CLI_ERROR, "the engine has stopped; /health says engine_dead until the server is "
                                                    "started again");
}

/* What /models says while the weights load: the served names, else what the model will be called. */
static void names_of(struct serve *s, struct app_options *o)
{
    char dir[1024];
    struct err e;
    o->served_name = s->name;
    o->n_served_name = s->api_options.n_served_name;
    if (o->n_served_name) return;
    if (cli_text(s->cli, "model")) snprintf(dir, sizeof dir, "%s", cli_text(s->cli, "model"));
    else if (engine_bundled_model(dir, sizeof dir, &e) != OK) return;
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/') dir[--n] = 0;
    const char *slash = strrchr(dir, '/');
    snprintf(s->model_name, sizeof s->model_name, "%s", slash ? slash + 1 : dir);
    s->only_name = s->model_name;
    o->served_name = &s->only_name;
    o->n_served_name = 1;
}

static void audio_drain_over(void *self) { http_audio_end_all(self, NULL); }

static status app_options_of(struct serve *s, struct err *e)
{
    uint64_t commit_ms = 0;
    double ping_s = 15;
    TRY(cli_seconds(s->cli, "window-cache-ttl", &s->window_ttl_s, e));
    TRY(cli_uint(s->cli, "stream-commit-ms", 1, 600000, &commit_ms, e));
    TRY(cli_seconds(s->cli, "stream-ping", &ping_s, e));
    s->app_options = (struct app_options){ .max_queue = s->service_options.max_waiting, .no_ui = !cli_flag(s->cli, "ui"),
                                           .metrics_public = s->http.metrics_public,
                                           .stream_commit_s = (double)commit_ms / 1000, .ping_s = ping_s, .engine_died = engine_died,
                                           .engine_died_self = s, .drain = serve_stores_drain,
                                           .sweep = serve_stores_sweep, .drain_over = audio_drain_over };
    names_of(s, &s->app_options);
    return OK;
}

/* ---- what is said when all is ready ------------------------------------------------------------------------ */

static void say_ready(const struct serve *s)
{
    const struct engine_info *i = engine_info(s->engine);
    cli_say_capacity(s->cli, s->engine, &s->policy, s->service_options.max_running, "--max-num-seqs");
    cli_log(s->cli, CLI_NOTE, "ready on %s: %s%s, %s, policy %s, %u pages of %u tokens (%.0f MB); %.2f s after the start",
            http_server_address(s->server), api_model_name(s->api), i->bundled ? " (bundled; -m DIR serves another)" : "",
            i->device, prune_params_name(&s->policy), i->n_pages, i->page_tokens, (double)i->n_pages * (double)i->page_bytes / 1e6,
            clock_s() - s->started_s);
}

/* Tell a service manager, where one started us (systemd, Type=notify). */
static void notify(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    if (path == NULL || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof to.sun_path) return;
    memcpy(to.sun_path, path, strlen(path));
    if (path[0] == '@') to.sun_path[0] = 0;
    const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    const socklen_t n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    if (sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&to, n) < 0)
        fprintf(stderr, "omnidrop: the service manager was not told: %s\n", strerror(errno));
    close(fd);
}

/* ---- the model --------------------------------------------------------------------------------------------- */

struct warm_up { pthread_mutex_t lock; pthread_cond_t over; bool done; struct err e; status st; };

static void warm_up_event(void *self, const struct service_event *ev)
{
    struct warm_up *w = self;
    if (ev->kind != SERVICE_DONE) return;
    pthread_mutex_lock(&w->lock);
    if (ev->error) {
        w->e = *ev->error;
        w->st = ev->error->code;
    }
    w->done = true;
    pthread_cond_signal(&w->over);
    pthread_mutex_unlock(&w->lock);
}

/* One small request through every layer: what is allocated or chosen at first use is there before somebody waits. */
static status warm_up(struct service *service, struct err *e)
{
    struct warm_up w = { .lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER };
    struct service_request rq = { .o = eng_request_defaults(), .event = warm_up_event, .self = &w };
    uint64_t id;
    rq.o.max_tokens = 2;
    chat_init(&rq.chat);
    status st = chat_add_message(&rq.chat, CHAT_USER, e);
    if (st == OK) st = chat_add_text(&rq.chat, "Hello.", 6, e);
    if (st == OK) st = service_submit(service, &rq, &id, e);
    if (st != OK) {
        chat_free(&rq.chat);
        return st;
    }
    pthread_mutex_lock(&w.lock);
    while (!w.done) pthread_cond_wait(&w.over, &w.lock);
    pthread_mutex_unlock(&w.lock);
    if (w.st == OK) return OK;
    *e = w.e;
    return err_prefix(e, "the warm-up request");
}

static const char *fetch_result(const struct err *e)
{
    static const struct { const char *tag, *result; } results[] = {
        { "media_url_not_allowed", "refused" }, { "media_fetch_timeout", "timeout" }, { "media_too_large", "too_large" } };
    for (size_t i = 0; e->tag && i < sizeof results / sizeof *results; i++)
        if (strcmp(e->tag, results[i].tag) == 0) return results[i].result;
    return "failed";
}

/* What media come from, for the metrics; then as the loader does. */
static status resolve_counted(void *self, void *owner, const struct chat_part *part, int frame, const atomic_bool *stop,
                              struct media_source *out, struct err *e)
{
    struct serve *s = self;
    const char *url = frame >= 0 ? part->frame[frame] : part->url;
    const char *from = url == NULL || strncasecmp(url, "data:", 5) == 0 ? "data" : strncmp(url, "file-id:", 8) == 0 ? "upload"
                       : strncasecmp(url, "file:", 5) == 0 ? "file" : "http";
    const status st = s->loader.resolve(s->loader.self, owner, part, frame, stop, out, e);
    if (st == OK) metrics_add1(s->metrics, METRIC_MEDIA_BYTES, from, (double)out->bytes);
    if (strcmp(from, "http") == 0) metrics_add1(s->metrics, METRIC_MEDIA_FETCH, st == OK ? "ok" : fetch_result(e), 1);
    return st;
}

/* Engine, service, api and audio: of rank 0 and of every other leader. */
static status load_engine(struct serve *s, struct err *e)
{
    uint64_t at_once = 32;
    TRY(cli_uint(s->cli, "max-num-seqs", 1, 4096, &at_once, e));
    TRY(cli_engine_on(s->cli, at_once, ranks_tensor(s->ranks), &s->engine, e));
    TRY(extract_check(&s->loader.limits, e));          /* where decoders cannot be confined nothing is decoded */
    TRY(cli_policy(s->cli, "none", engine_config(s->engine)->text.layers, engine_defaults(s->engine), &s->policy, e));
    s->service_options.observe = metrics_observe;
    s->service_options.observe_step = metrics_observe_step;
    s->service_options.observe_self = s->metrics;
    s->service_options.loader = &s->counted;
    TRY(service_open(s->engine, &s->service_options, &s->service, e));
    s->api_options.service = s->service;
    s->api_options.policy = &s->policy;
    s->api_options.groups = s->groups;
    TRY(api_create(&s->api_options, &s->api, e));
    const struct api_audio_options audio = { .api = s->api, .loader = &s->counted, .limits = s->loader_options.limits,
                                             .cache_dir = s->windows_dir, .cache_ttl_s = s->window_ttl_s,
                                             .observe = http_audio_observe, .observe_self = s->metrics };
    return api_audio_create(&audio, &s->audio, e);
}

static status load(struct serve *s, struct err *e)
{
    snprintf(s->windows_dir, sizeof s->windows_dir, "%s/windows", serve_stores_dir(s->stores));
    TRY(load_engine(s, e));
    app_engine(s->app, s->api);
    http_audio_start(&s->http_audio, s->audio);
    TRY(warm_up(s->service, e));
    if (s->groups == NULL) return OK;
    groups_local(s->groups, s->api);
    return groups_wait(s->groups, NULL, e);
}

/* SIGHUP: a log that was moved away goes on under its name; where that cannot be had, where it was. */
static void reopen_log(void *self)
{
    struct serve *s = self;
    const char *path = cli_text(s->cli, "access-log");
    if (s->http.access_log == NULL || s->http.access_log == stderr) return;
    fflush(s->http.access_log);
    const int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || dup3(fd, fileno(s->http.access_log), O_CLOEXEC) < 0)
        cli_log(s->cli, CLI_ERROR, "--access-log %s: %s: it goes on where it was", path, strerror(errno));
    if (fd >= 0) close(fd);
}

static void stop_server(void *server) { http_server_stop(server); }

static void *load_thread(void *arg)
{
    struct serve *s = arg;
    struct err e;
    const status st = load(s, &e);
    if (st == OK) {
        app_ready(s->app);
        serve_stores_start(s->stores, s->api, s->audio);
        say_ready(s);
        notify("READY=1");
    } else {
        app_failed(s->app);
        atomic_store(&s->failed, cli_fail(s->cli, st, &e));
        http_post(s->server, stop_server, s->server);
    }
    atomic_store(&s->loaded, true);
    return NULL;
}

/* ---- ranks ------------------------------------------------------------------------------------------------- */

static void end_requests(void *self)
{
    struct serve *s = self;
    struct err e;
    err_set(&e, E_DEVICE, "the server has lost a rank that it cannot go on without: %s", s->lost.text);
    err_tag(&e, "engine_dead", NULL);
    app_lost(s->app, &e);
    http_audio_end_all(&s->http_audio, &e);
}

/* A rank of group 0 is gone: clients are told, then all ends. Time enough for what they are told to leave. */
static void group0_lost(void *self, const struct err *why)
{
    struct serve *s = self;
    const struct timespec t = { 1, 500000000 };
    s->lost = *why;
    http_post(s->server, end_requests, s);
    nanosleep(&t, NULL);
    if (s->stores) serve_stores_abandon(s->stores);
    ranks_exit(s->ranks, CLI_FAILED);
}

static status open_groups(struct serve *s, struct err *e)
{
    const struct groups_options o = { .link = ranks_link(s->ranks), .files = loader_files,
                                      .files_self = serve_stores_files(s->stores), .metric = metrics_take,
                                      .metric_self = s->metrics, .log = log_line, .log_self = s };
    if (o.link) TRY(groups_create(&o, &s->groups, e));
    ranks_watch(s->ranks, s->groups, group0_lost, s);
    return OK;
}

static status lead_options(struct serve *s, struct err *e)
{
    TRY(http_options_of(s, e));
    TRY(service_options_of(s, e));
    TRY(api_options_of(s, e));
    TRY(loader_options_of(s, e));
    return app_options_of(s, e);
}

static status lead_load(struct serve *s, struct err *e)
{
    s->counted = s->loader;
    s->counted.self = s;
    s->counted.resolve = resolve_counted;
    TRY(load_engine(s, e));
    return warm_up(s->service, e);
}

/* The leader of another group, until rank 0 says that it is over. A group that cannot load waits too: rank 0 says why. */
static status lead_run(struct serve *s, bool *loaded, struct err *e)
{
    const struct remote_options o = { .link = ranks_link(s->ranks), .dir = s->http.spool_dir };
    struct err why;
    TRY(metrics_create(&s->metrics, e));
    TRY(remote_create(&o, &s->remote, e));
    metrics_forward(s->metrics, remote_metric, s->remote);
    s->loader_options.files = remote_files;
    s->loader_options.files_self = s->remote;
    snprintf(s->windows_dir, sizeof s->windows_dir, "%s/omnidrop-windows-XXXXXX", o.dir ? o.dir : "/tmp");
    status st = mkdtemp(s->windows_dir) ? OK : err_set(&why, E_IO, "%s cannot be made: %s", s->windows_dir, strerror(errno));
    if (st == OK) st = api_loader_create(&s->loader_options, &s->loader, &why);
    if (st == OK) st = lead_load(s, &why);
    if (st == OK) remote_start(s->remote, s->api, s->audio);
    else remote_failed(s->remote, &why);
    *loaded = st == OK;
    return remote_wait(s->remote, e);
}

static void remove_windows(struct serve *s)
{
    char path[sizeof s->windows_dir + 300];
    DIR *d = opendir(s->windows_dir);
    for (struct dirent *f; d && (f = readdir(d)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", s->windows_dir, f->d_name);
        unlink(path);
    }
    if (d) closedir(d);
    rmdir(s->windows_dir);
}

static int lead(struct serve *s)
{
    struct err e = { 0 };
    bool loaded = false;
    status st = lead_options(s, &e);
    const int said = ranks_agree(s->ranks, CLI_OK);
    if (said == CLI_OK && st == OK) st = lead_run(s, &loaded, &e);
    if (s->windows_dir[0]) remove_windows(s);
    if (said == CLI_OK && st != OK) {      /* rank 0 cannot be heard */
        fprintf(stderr, "omnidrop: the leader of group %u ends: %s\n", ranks_group(s->ranks), e.text);
        ranks_exit(s->ranks, CLI_FAILED);
    }
    ranks_leave(s->ranks);
    if (s->remote) remote_stop(s->remote);
    if (s->audio) api_audio_destroy(&s->audio);
    if (s->service) service_close(&s->service);
    remote_destroy(&s->remote);
    metrics_destroy(&s->metrics);
    return said != CLI_OK || loaded ? said : CLI_MODEL;
}

/* ---- life -------------------------------------------------------------------------------------------------- */

static status start(struct serve *s, struct err *e)
{
    TRY(http_options_of(s, e));
    TRY(service_options_of(s, e));
    TRY(api_options_of(s, e));
    TRY(loader_options_of(s, e));
    TRY(stores_options_of(s, e));
    TRY(app_options_of(s, e));
    TRY(http_server_create(&s->http, &s->server, e));
    TRY(serve_stores_open(&s->stores_options, &s->stores, e));
    s->app_options.server = s->server;
    s->app_options.stores = s->stores;
    s->app_options.drain_over_self = &s->http_audio;
    TRY(app_create(&s->app_options, &s->app, e));
    s->metrics = app_metrics(s->app);
    serve_stores_routes(s->stores, s->app);
    http_server_on_hup(s->server, reopen_log, s);
    s->http_audio.app = s->app;
    http_audio_routes(&s->http_audio);
    s->loader_options.files = loader_files;
    s->loader_options.files_self = serve_stores_files(s->stores);
    TRY(api_loader_create(&s->loader_options, &s->loader, e));
    s->counted = s->loader;
    s->counted.self = s;
    s->counted.resolve = resolve_counted;
    TRY(open_groups(s, e));
    return OK;
}

static status start_loading(struct serve *s, struct err *e)
{
    sigset_t all, before;
    sigfillset(&all);                                  /* signals are the loop's; threads started from there too */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&s->loading, NULL, load_thread, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) return err_set(e, E_NOMEM, "the loading thread cannot be started: %s", strerror(failed));
    s->is_loading = true;
    return OK;
}

static void finish(struct serve *s)
{
    ranks_leave(s->ranks);
    if (s->is_loading) pthread_join(s->loading, NULL);
    if (s->app) app_stop(s->app);
    if (s->stores) serve_stores_stop(s->stores);
    if (s->audio) api_audio_destroy(&s->audio);
    if (s->service) service_close(&s->service);
    if (s->groups) groups_stop(s->groups);
    groups_destroy(&s->groups);
    app_destroy(&s->app);
    serve_stores_close(&s->stores);
    if (s->loader.self) api_loader_destroy(&s->loader);
    if (s->api) api_destroy(&s->api);
    if (s->server) http_server_destroy(&s->server);
    if (s->engine) engine_close(&s->engine);
    if (s->http.access_log && s->http.access_log != stderr) fclose(s->http.access_log);
    free((void *)s->api_key);
    free((void *)s->origin);
    free((void *)s->host);
    free((void *)s->name);
    free((void *)s->root);
    free((void *)s->domain);
    free((void *)s->net);
    cli_free(&s->cli);
    s->code = ranks_close(&s->ranks, s->code);
}

int cli_main_serve(int argc, char **argv)
{
    struct serve s = { .started_s = clock_s() };
    struct err e;
    bool done = false;
    status st = cli_parse(&serve_command, argc, argv, &s.cli, &done, &e);
    if (st != OK || done) {
        const int code = st == OK ? CLI_OK : cli_fail(NULL, st, &e);
        cli_free(&s.cli);
        return code;
    }
    if (cli_n_words(s.cli)) st = err_set(&e, E_ARG, "serve takes no words, \"%s\" is one; -m DIR names a model", cli_word(s.cli, 0));
    if (st == OK) st = ranks_open(s.cli, &s.ranks, &e);
    if (st == OK && ranks_role(s.ranks) != RANKS_FRONT && ranks_role(s.ranks) != RANKS_ALONE) {
        s.code = ranks_role(s.ranks) == RANKS_LEADER ? lead(&s) : ranks_work(s.ranks, s.cli);
        finish(&s);
        return s.code;
    }
    if (st == OK) st = start(&s, &e);
    int code = st == OK ? CLI_OK : cli_fail(s.cli, st, &e);
    if (s.ranks) ranks_agree(s.ranks, code);
    if (st == OK && (st = start_loading(&s, &e)) != OK) code = cli_fail(s.cli, st, &e);
    if (st == OK) {
        code = http_server_run(s.server);
        notify("STOPPING=1");
        /* Forced, or asked to end in the middle of loading: nothing is there that must be kept. */
        if (code != 0 || !atomic_load(&s.loaded)) {
            serve_stores_abandon(s.stores);
            ranks_exit(s.ranks, atomic_load(&s.failed) ? atomic_load(&s.failed) : code);
        }
        if (atomic_load(&s.failed)) code = atomic_load(&s.failed);
    }
    s.code = code;
    finish(&s);
    return s.code;
}
