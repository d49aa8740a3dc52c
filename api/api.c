/* api/api.c - what is served: names, defaults, fingerprint; jobs as they are made. See api.h. */
#include "api/api.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <sys/random.h>
#include <utf8proc.h>

#include "api/inside.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "engine/version.h"
#include "media/digest.h"

#define N_DEFAULT 8
#define HEAD_BYTES 65536           /* of a weights file, for the fingerprint */

/* ---- the model's own defaults ----------------------------------------------------------------------------- */

/* generation_config.json of the checkpoint, where there is one. Values that are out of range are not the client's
 * fault: they are left out. */
static struct sample_params defaults_of(const char *dir)
{
    struct sample_params s = sample_defaults(), keep;
    char path[1200];
    struct doc d;
    struct doc_at root;
    double t = 1, top_p = 1, rep = 1;
    uint32_t top_k = 0;
    bool samples = true;
    s.temperature = 1;
    snprintf(path, sizeof path, "%s/generation_config.json", dir);
    if (doc_load(path, &doc_config_limits, &d, NULL) != OK) return s;
    doc_root(&d, &root);
    doc_opt_bool(&root, "do_sample", &samples, NULL);
    doc_opt_double(&root, "temperature", 0, 2, &t, NULL);
    doc_opt_double(&root, "top_p", 1e-6, 1, &top_p, NULL);
    doc_opt_double(&root, "repetition_penalty", 0.01, 10, &rep, NULL);
    doc_opt_u32(&root, "top_k", 0, INT32_MAX, &top_k, NULL);
    doc_close(&d);
    keep = s;
    s.temperature = samples ? (float)t : 0;
    s.top_p = (float)top_p;
    s.top_k = top_k;
    s.repetition_penalty = (float)rep;
    return sample_check(&s, NULL) == OK ? s : keep;
}

/* ---- the fingerprint -------------------------------------------------------------------------------------- */

static int is_weights(const struct dirent *d)
{
    const size_t n = strlen(d->d_name);
    return strcmp(d->d_name, "config.json") == 0 || (n > 12 && strcmp(d->d_name + n - 12, ".safetensors") == 0);
}

/* Name, size and first bytes of a file: the header of a weights file tells one checkpoint from another, and reading
 * all of it would take as long as loading it. */
static void add_file(struct media_digest *d, const char *dir, const char *name)
{
    char path[1400];
    struct stat st = { 0 };
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (f == NULL) return;
    char *head = mem_must(HEAD_BYTES, 1);
    const size_t n = fread(head, 1, HEAD_BYTES, f);
    if (fstat(fileno(f), &st) == 0) media_digest_add(d, &st.st_size, sizeof st.st_size);
    media_digest_add(d, name, strlen(name) + 1);
    media_digest_add(d, head, n);
    free(head);
    fclose(f);
}

static status weights_of(const char *dir, char out[9], struct err *e)
{
    struct media_digest *d;
    struct dirent **entry = NULL;
    char text[MEDIA_DIGEST_TEXT];
    TRY(media_digest_begin(&d, e));
    const int n = scandir(dir, &entry, is_weights, alphasort);
    for (int i = 0; i < n; i++) {
        add_file(d, dir, entry[i]->d_name);
        free(entry[i]);
    }
    free(entry);
    media_digest_end(&d, text);
    memcpy(out, text, 8);
    out[8] = 0;
    return OK;
}

/* ---- the api ---------------------------------------------------------------------------------------------- */

static void take_names(struct api *a, const struct api_options *o, const char *model)
{
    a->n_name = o->n_served_name > 0 ? o->n_served_name : 1;
    a->name = mem_must(a->n_name, sizeof *a->name);
    for (size_t i = 0; i < a->n_name; i++) a->name[i] = mem_must_strdup(o->n_served_name > 0 ? o->served_name[i] : model);
}

static status take_model(struct api *a, const struct api_options *o, struct err *e)
{
    const struct engine *en = a->calls->engine(a->service);
    const struct model_config *c = engine_config(en);
    const struct engine_info *info = engine_info(en);
    a->tok = engine_tokenizer(en);
    a->vocab = c->text.vocab;
    a->n_layers = c->text.layers;
    a->defaults = engine_defaults(en);
    a->max_model_len = info->max_model_len;
    a->seconds_per_chunk = c->seconds_per_chunk;
    a->media_id[0] = c->ids.audio;
    a->media_id[1] = c->ids.image;
    a->media_id[2] = c->ids.video;
    a->sample = sample_defaults();
    a->sample.temperature = 1;
    if (!o->generation_config_none) a->sample = defaults_of(info->model_dir);
    take_names(a, o, info->model_name);
    TRY(weights_of(info->model_dir, a->weights, e));
    snprintf(a->fingerprint, sizeof a->fingerprint, "od-%s-%s-%s", OMNIDROP_VERSION, a->weights,
             prune_params_name(&a->policy));
    return OK;
}

status api_create(const struct api_options *o, struct api **out, struct err *e)
{
    static const struct api_calls own = { service_submit, service_cancel, service_count, service_engine, service_read,
                                          service_drain };
    struct api *a;
    TRY(mem_alloc(&a, 1, sizeof *a, e));
    a->o = *o;
    a->calls = o->calls ? o->calls : &own;
    a->service = o->service;
    a->policy = o->policy ? *o->policy : prune_params_none();
    if (a->o.max_n == 0) a->o.max_n = N_DEFAULT;
    a->created = (int64_t)time(NULL);
    pthread_mutex_init(&a->lock, NULL);
    const status st = take_model(a, o, e);
    if (st != OK) api_destroy(&a);
    else *out = a;
    return st;
}

void api_destroy(struct api **pa)
{
    struct api *a = *pa;
    if (a == NULL) return;
    for (size_t i = 0; i < a->n_name; i++) free(a->name[i]);
    free(a->name);
    pthread_mutex_destroy(&a->lock);
    free(a);
    *pa = NULL;
}

struct service *api_service(const struct api *a) { return a->service; }
void api_read(const struct api *a, struct service_gauges *out) { a->calls->read(a->service, out); }
void api_drain(struct api *a) { a->calls->drain(a->service); }
struct groups *api_groups(const struct api *a) { return a->o.groups; }
const char *api_model_name(const struct api *a) { return a->name[0]; }
const char *api_fingerprint(const struct api *a) { return a->fingerprint; }

status api_check_model(const struct api *a, const char *name, struct err *e)
{
    if (name == NULL || name[0] == 0) return OK;
    for (size_t i = 0; i < a->n_name; i++)
        if (strcmp(a->name[i], name) == 0) return OK;
    err_set(e, E_ARG, "the model \"%.100s\" is not served here: this server has \"%.100s\"", name, a->name[0]);
    return err_tag(e, "model_not_found", "model");
}

json_t *api_model(const struct api *a, const char *id)
{
    if (id == NULL || id[0] == 0 || api_check_model(a, id, NULL) != OK) return NULL;
    json_t *o = json_pack("{s:s,s:s,s:I,s:s}", "id", id, "object", "model", "created", (json_int_t)a->created, "owned_by",
                          "omnidrop");
    if (o != NULL && !a->o.strict_openai)
        json_object_update_new(o, json_pack("{s:I,s:{s:[ssss],s:[s]}}", "max_model_len", (json_int_t)a->max_model_len,
                                            "architecture", "input_modalities", "text", "image", "audio", "video",
                                            "output_modalities", "text"));
    return o;
}

json_t *api_models(const struct api *a)
{
    json_t *list = json_array();
    for (size_t i = 0; i < a->n_name; i++) json_array_append_new(list, api_model(a, a->name[i]));
    return json_pack("{s:s,s:o}", "object", "list", "data", list);
}

/* Once an hour for each name. Names come from strangers: when the table is full, nothing more is told for that hour. */
void api_log_unknown(struct api *a, const char *field)
{
    char name[64], line[200];
    const double now = clock_s();
    if (a->o.log == NULL) return;
    snprintf(name, sizeof name, "%s", field);
    pthread_mutex_lock(&a->lock);
    uint32_t i = 0;
    while (i < a->n_logged && strcmp(a->logged[i].name, name) != 0) i++;
    if (i == a->n_logged && i == API_LOGGED_MAX)
        for (i = 0; i < API_LOGGED_MAX && now - a->logged[i].at_s < 3600;) i++;
    const bool is_new = i == a->n_logged && i < API_LOGGED_MAX;
    const bool tell = i < API_LOGGED_MAX && (is_new || now - a->logged[i].at_s >= 3600);
    if (tell) {
        snprintf(a->logged[i].name, sizeof a->logged[i].name, "%s", name);
        a->logged[i].at_s = now;
        a->n_logged += is_new;
    }
    pthread_mutex_unlock(&a->lock);
    if (!tell) return;
    snprintf(line, sizeof line, "unknown request field \"%.60s\" is ignored", name);
    a->o.log(a->o.log_self, line);
}

/* ---- jobs ------------------------------------------------------------------------------------------------- */

static void make_id(struct api_job *j, const struct api_caller *c)
{
    const char *prefix = j->is_chat ? "chatcmpl-" : "cmpl-";
    unsigned char r[16] = { 0 };
    if (c->request_id && c->request_id[0]) {
        snprintf(j->id, sizeof j->id, "%s%.64s", prefix, c->request_id);
        return;
    }
    if (getrandom(r, sizeof r, 0) < 0) memcpy(r, &(uint64_t){ clock_us() }, sizeof(uint64_t));
    int n = snprintf(j->id, sizeof j->id, "%s", prefix);
    for (size_t i = 0; i < sizeof r; i++) n += snprintf(j->id + n, sizeof j->id - (size_t)n, "%02x", r[i]);
}

status api_job_new(struct api *a, const struct api_caller *c, bool is_chat, struct api_job **out)
{
    struct api_job *j = mem_must(1, sizeof *j);
    *out = j;
    j->api = a;
    j->is_chat = is_chat;
    j->created = (int64_t)time(NULL);
    j->n = 1;
    j->o = eng_request_defaults();
    j->o.sample = a->sample;
    j->o.max_tokens = 0;
    j->o.auto_audio = true;
    j->priority = c->batch ? INT32_MAX : 0;
    j->arrived_s = c->arrived_s;
    j->batch = c->batch;
    snprintf(j->request_id, sizeof j->request_id, "%.64s", c->request_id ? c->request_id : "");
    snprintf(j->owner.key, sizeof j->owner.key, "%s", c->key ? c->key : "");
    pthread_mutex_init(&j->lock, NULL);
    atomic_init(&j->ref, 1);
    make_id(j, c);
    return OK;
}

status api_job_groups(struct api_job *j, uint32_t n_groups, struct err *e)
{
    TRY(mem_alloc(&j->group, n_groups, sizeof *j->group, e));
    for (uint32_t i = 0; i < n_groups; i++) {
        j->group[i].job = j;
        j->group[i].index = i;
    }
    j->n_groups = n_groups;
    return OK;
}

static void group_free(struct api_group *g)
{
    chat_free(&g->rq.chat);
    free(g->rq.ids);
    api_text_free(&g->echo);
    json_decref(g->prompt_ids);
}

void api_job_free(struct api_job **pj)
{
    struct api_job *j = *pj;
    *pj = NULL;
    if (j == NULL || atomic_fetch_sub(&j->ref, 1) > 1) return;
    for (uint32_t i = 0; i < j->n_groups; i++) group_free(&j->group[i]);
    for (uint32_t i = 0; j->choice && i < j->n_groups * j->n; i++) {
        api_text_free(&j->choice[i].text);
        json_decref(j->choice[i].logprobs);
        json_decref(j->choice[i].token_ids);
    }
    for (size_t i = 0; i < API_STOPS_MAX; i++) free(j->stop[i]);
    free(j->bias);
    free(j->group);
    free(j->choice);
    json_decref(j->held_finish);
    json_decref(j->statistics);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

bool api_job_streams(const struct api_job *j) { return j->stream; }
bool api_job_wants_usage(const struct api_job *j) { return j->include_usage; }

/* ---- text ------------------------------------------------------------------------------------------------- */

void api_text_put(struct api_text *t, const void *bytes, size_t n)
{
    if (n == 0) return;
    if (t->n + n + 1 > t->cap) {
        const size_t cap = (t->n + n + 1) * 2;
        char *grown = mem_must(cap, 1);
        if (t->n) memcpy(grown, t->text, t->n);
        free(t->text);
        t->text = grown;
        t->cap = cap;
    }
    memcpy(t->text + t->n, bytes, n);
    t->n += n;
    t->text[t->n] = 0;
}

/* Length of the character that starts at s; 0: it is none; n + 1: it may become one with more bytes. */
static size_t character(const unsigned char *s, size_t n)
{
    utf8proc_int32_t cp;
    const utf8proc_ssize_t k = utf8proc_iterate(s, (utf8proc_ssize_t)n, &cp);
    if (k > 0) return (size_t)k;
    const size_t want = s[0] >= 0xf0 && s[0] <= 0xf4 ? 4 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : 0;
    if (want <= n) return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    return n + 1;
}

size_t api_text_add(struct api_text *t, unsigned char *held, uint32_t *n_held, const char *bytes, size_t n)
{
    size_t chars = 0, all = n + (held ? *n_held : 0);
    if (all == 0) return 0;
    unsigned char *s = mem_must(all, 1);
    if (held) memcpy(s, held, *n_held);
    if (n) memcpy(s + (all - n), bytes, n);
    if (held) *n_held = 0;
    for (size_t i = 0; i < all; chars++) {
        const size_t k = character(s + i, all - i);
        if (k > all - i && held) {
            memcpy(held, s + i, all - i);
            *n_held = (uint32_t)(all - i);
            break;
        }
        if (k == 0 || k > all - i) api_text_put(t, "\xef\xbf\xbd", 3);
        else api_text_put(t, s + i, k);
        i += k == 0 ? 1 : k;
    }
    free(s);
    return chars;
}

size_t api_text_end(struct api_text *t, uint32_t *n_held)
{
    if (*n_held == 0) return 0;
    *n_held = 0;
    api_text_put(t, "\xef\xbf\xbd", 3);
    return 1;
}

void api_text_free(struct api_text *t)
{
    free(t->text);
    *t = (struct api_text){ 0 };
}

json_t *api_text_json(const struct api_text *t)
{
    return t->text ? json_stringn(t->text, t->n) : json_string("");
}
