/* cli/serve_stores.c - see serve.h. STATE/files and STATE/batches; without a folder for the state both live in one that
 * goes with the server. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/batch_engine.h"
#include "api/files.h"
#include "api/groups.h"
#include "base/mem.h"
#include "cli/serve.h"

struct serve_stores {
    struct serve_stores_options o;
    char dir[1024], files_dir[1056], batches_dir[1056];
    bool temporary;
    struct files *files;
    struct batches *batches;
    struct http_files http_files;
    struct http_batches http_batches;
    struct service *service;       /* where the engine is there */
    struct batch_engine engine;
    struct metrics *metrics;
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static status make_dir(struct serve_stores *s, struct err *e)
{
    if (s->o.state_dir) {
        snprintf(s->dir, sizeof s->dir, "%s", s->o.state_dir);
        if (mkdir(s->dir, 0700) == 0 || errno == EEXIST) return OK;
        return err_set(e, E_ARG, "--state-dir %s: %s", s->dir, strerror(errno));
    }
    snprintf(s->dir, sizeof s->dir, "%s/omnidrop-state-XXXXXX", s->o.spool_dir ? s->o.spool_dir : "/tmp");
    if (mkdtemp(s->dir) == NULL) return err_set(e, E_ARG, "--spool-dir: a folder there cannot be made: %s", strerror(errno));
    s->temporary = true;
    return OK;
}

static void observe_line(void *self, int status_code)
{
    const struct serve_stores *s = self;
    if (s->metrics) metrics_add1(s->metrics, METRIC_BATCH, status_code == 0 ? "cancelled" : status_code < 400 ? "completed" : "failed", 1);
}

/* Requests in all groups that are there. */
static uint32_t requests(const struct serve_stores *s)
{
    struct groups *groups = api_groups(s->engine.api);
    struct groups_view *v = mem_must(groups ? groups_count(groups) : 1, sizeof *v);
    uint32_t n = 1, sum = 0;
    if (groups) n = groups_list(groups, v, groups_count(groups));
    else service_read(s->service, &v[0].gauges);
    for (uint32_t i = 0; i < n; i++) {
        const struct service_gauges *g = &v[i].gauges;
        if (v[i].state == GROUPS_GONE) continue;
        sum += g->n_preparing + g->n_waiting + g->n_encoding + g->n_prefilling + g->n_decoding;
    }
    free(v);
    return sum;
}

/* Batch lines may take what online requests leave, and at most their share. */
static uint32_t room(void *self, uint32_t n_batch)
{
    const struct serve_stores *s = self;
    const uint32_t all = requests(s);
    const uint32_t online = all > n_batch ? all - n_batch : 0, most = s->o.max_running;
    const uint32_t left = online < most ? most - online : 0, share = (uint32_t)(s->o.batch_share * most);
    return left < share ? left : share;
}

status serve_stores_open(const struct serve_stores_options *o, struct serve_stores **out, struct err *e)
{
    struct serve_stores *s;
    TRY(mem_alloc(&s, 1, sizeof *s, e));
    s->o = *o;
    status st = make_dir(s, e);
    snprintf(s->files_dir, sizeof s->files_dir, "%s/files", s->dir);
    snprintf(s->batches_dir, sizeof s->batches_dir, "%s/batches", s->dir);
    const struct files_options files = { .dir = s->files_dir, .quota = o->files_quota };
    if (st == OK) st = files_open(&files, &s->files, e);
    const struct batches_options batches = { .dir = s->batches_dir, .files = s->files, .n_at_once = o->max_running,
                                             .room = room, .room_self = s, .observe = observe_line,
                                             .observe_self = s };
    if (st == OK) st = batches_open(&batches, &s->batches, e);
    if (st != OK) serve_stores_close(&s);
    else *out = s;
    return st;
}

/* Is an upload a medium that can be used? The confined child looks. */
static status probe(void *self, int fd, const char *name, struct err *e)
{
    const struct serve_stores *s = self;
    struct media_source src = { .fd = fcntl(fd, F_DUPFD_CLOEXEC, 3) };
    struct media_info info;
    struct stat st;
    if (src.fd < 0 || fstat(fd, &st) != 0) {
        media_source_close(&src);
        return err_set(e, E_IO, "the upload cannot be read: %s", strerror(errno));
    }
    src.bytes = (uint64_t)st.st_size;
    snprintf(src.name, sizeof src.name, "%.120s", name);
    const status result = extract_probe(&src, &s->o.limits, &info, e);
    media_source_close(&src);
    return result;
}

void serve_stores_routes(struct serve_stores *s, struct app *app)
{
    const struct disk disk = { .server = app_server(app), .workers = app_workers(app), .metrics = app_metrics(app) };
    s->metrics = app_metrics(app);
    s->http_files = (struct http_files){ .disk = disk, .files = s->files, .probe = probe, .probe_self = s };
    s->http_batches = (struct http_batches){ .disk = disk, .batches = s->batches };
    http_files_routes(&s->http_files);
    http_batches_routes(&s->http_batches);
}

void serve_stores_start(struct serve_stores *s, struct api *api, struct api_audio *audio)
{
    s->engine = (struct batch_engine){ .api = api, .audio = audio };
    s->service = api_service(api);
    batches_start(s->batches, batch_engine_run_for, &s->engine);
}

const char *serve_stores_dir(const struct serve_stores *s) { return s->dir; }
struct files *serve_stores_files(struct serve_stores *s) { return s->files; }
void serve_stores_drain(void *stores) { batches_drain(((struct serve_stores *)stores)->batches); }
void serve_stores_sweep(void *stores) { files_sweep(((struct serve_stores *)stores)->files); }
void serve_stores_stop(struct serve_stores *s) { batches_close(&s->batches); }

void serve_stores_abandon(struct serve_stores *s)
{
    if (s->temporary) nftw(s->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void serve_stores_close(struct serve_stores **ps)
{
    struct serve_stores *s = *ps;
    if (s == NULL) return;
    if (s->batches) batches_close(&s->batches);
    if (s->files) files_close(&s->files);
    serve_stores_abandon(s);
    free(s);
    *ps = NULL;
}
