/* engine/engine.c - opening a model on a device: see engine.h. */
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/range.h"
#include "engine/inside.h"
#include "kernels/device.h"
#include "model/link.h"

#define EXACT_BYTES ((uint64_t)128 << 20)   /* bf16 models under this run in f32: dtype "auto" */
#define BLOCK_ROWS 1032                     /* rows computed at once: 86 tiles of 12           */
#define BLOCK_ROWS_GPU 2048                 /* 16 tiles of 128                                 */
#define CONTEXT_DEFAULT 32768u
#define TAG_OPEN 16                         /* the message that tells ranks what to open        */
#define FILM_AT_ONCE ((uint64_t)256 << 20)

status engine_bundled_model(char *dir, size_t cap, struct err *e)
{
    char exe[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    const char *up[] = { "/..", "/../..", "/../../..", "/../share/omnidrop" };
    if (n > 0) {
        exe[n] = 0;
        const char *base = dirname(exe);
        for (size_t i = 0; i < sizeof up / sizeof *up; i++) {
            char path[PATH_MAX + 64];
            struct stat s;
            snprintf(path, sizeof path, "%s%s/" ENGINE_BUNDLED_MODEL, base, up[i]);
            char *real = stat(path, &s) == 0 ? realpath(path, NULL) : NULL;
            if (real == NULL) continue;
            snprintf(dir, cap, "%s", real);
            free(real);
            return OK;
        }
    }
    struct stat s;
    if (stat(ENGINE_BUNDLED_MODEL, &s) == 0) {
        snprintf(dir, cap, "%s", ENGINE_BUNDLED_MODEL);
        return OK;
    }
    return err_set(e, E_MODEL, "no model was named and the bundled one (" ENGINE_BUNDLED_MODEL
                               ") is not beside the program: give a folder with -m");
}

static status pick_dtype(const char *asked, const struct checkpoint *ck, enum dtype *out, struct err *e)
{
    if (asked == NULL || strcmp(asked, "auto") == 0) {
        *out = ck->dtype == DT_F32 || ck->bytes <= EXACT_BYTES ? DT_F32 : DT_BF16;
        return OK;
    }
    if (strcmp(asked, "f32") == 0 || strcmp(asked, "float32") == 0) *out = DT_F32;
    else if (strcmp(asked, "bf16") == 0 || strcmp(asked, "bfloat16") == 0) *out = DT_BF16;
    else return err_set(e, E_ARG, "dtype \"%s\": the CPU computes in f32 or bf16; give auto, f32 or bf16", asked);
    return OK;
}

/* Ranks on this machine, of this group and of others: they share its memory and its CPUs. */
static uint32_t ranks_here(const struct comm *c)
{
    const uint32_t n = c ? comm_peer(c, comm_rank(c))->n_local : 1;
    return n ? n : 1;
}

uint64_t engine_pool_pages(uint64_t memory, uint32_t n_local, uint64_t page_bytes, uint64_t context_pages, uint32_t contexts)
{
    const uint64_t half = memory / n_local / 2 / page_bytes;
    const uint64_t pages = context_pages * contexts < half / 2 ? context_pages * contexts : half / 2;
    if (pages < context_pages) return context_pages < half ? context_pages : half;
    return pages;
}

static bool on_host(const struct engine *en) { return strcmp(en->ops->name, "cpu") == 0; }

static double gb(uint64_t bytes) { return (double)bytes / 1e9; }

static status no_plan(const struct engine_memory *m, uint64_t work, uint64_t pages, uint64_t edge, struct err *e)
{
    return err_set(e, E_NOMEM, "%.2f GB of memory are too little: %.2f taken before, %.2f weights and what they work in, %.2f rows of "
                               "groups and steps, %.2f lists and room of ops, %.2f work of requests, %.2f pages, %.2f lost at edges; "
                               "give a shorter --max-model-len or more ranks (--tp)",
                   gb(m->total), gb(m->before), gb(m->loaded), gb(m->rows), gb(m->ops), gb(work), gb(pages), gb(edge));
}

/* A GPU's memory is shared out before anything but weights is asked for: what is fixed first, then what requests work in, and what is
 * left may become pages. Nothing that does not fit is begun. */
static status plan_pages(struct engine *en, const struct engine_options *o, uint64_t one, uint64_t *pages, uint64_t *work, struct err *e)
{
    const size_t page = decoder_kv_shape(en->dec).page_bytes;
    const uint64_t L = decoder_shape(en->dec)->L, contexts = o->kv_contexts ? o->kv_contexts : 1;
    struct engine_memory *m = &en->info.memory;
    uint64_t left = 0;
    TRY(device_memory(en->st, &left, &m->total, e));
    memory_plan(en);
    struct reserve_args a = memory_args(en);
    a.bytes = 0;
    m->before = m->total - en->free_at_open;
    m->loaded = en->free_at_open > left ? en->free_at_open - left : 0;
    m->rows = memory_rows_bytes(en);
    m->ops = en->ops->reserve_bytes(en->st, &a);
    const uint64_t edge = m->total / 50, fixed = m->rows + m->ops + edge;     /* what allocation loses at edges */
    const uint64_t spare = left > fixed ? left - fixed : 0, least = memory_work_least(en), wanted = memory_work_wanted(en);
    *work = o->work_bytes ? o->work_bytes : spare / 4 > wanted ? wanted : spare / 4 > least ? spare / 4 : least;
    const uint64_t fit = spare > *work ? (spare - *work) / page : 0;
    *pages = o->kv_bytes ? o->kv_bytes / page : fit < one * contexts ? fit : one * contexts;
    if (fit < L || *pages > fit) return no_plan(m, *work, (*pages > L ? *pages : L) * page, edge, e);
    return OK;
}

/* Pages of this rank: as asked, else by its share of the host's memory, or by what its device has left. *work: where it is planned. */
static status pages_wanted(struct engine *en, const struct engine_options *o, uint64_t *out, uint64_t *work, struct err *e)
{
    const struct kv_shape kv = decoder_kv_shape(en->dec);
    const uint32_t L = decoder_shape(en->dec)->L, per = kv.page_tokens;
    const uint64_t one = (uint64_t)L * ((en->info.max_model_len + per - 1) / per + 1), contexts = o->kv_contexts ? o->kv_contexts : 1;
    uint64_t left = 0, total = 0;
    if (en->ops->reserve) return plan_pages(en, o, one, out, work, e);
    TRY(device_memory(en->st, &left, &total, e));
    *out = o->kv_bytes / kv.page_bytes;
    if (o->kv_bytes == 0) *out = engine_pool_pages(total, en->info.n_local, kv.page_bytes, one, (uint32_t)contexts);
    return OK;
}

/* Behind the device's name: the parts, and that they are all of it. */
static void say_plan(struct engine *en)
{
    struct engine_memory *m = &en->info.memory;
    char *text = en->info.device;
    const size_t n = strlen(text);
    m->work = en->plan.work;
    m->pages = (uint64_t)en->info.n_pages * decoder_kv_shape(en->dec).page_bytes;
    const uint64_t sum = m->before + m->loaded + m->rows + m->ops + m->work + m->pages;
    m->left = m->total > sum ? m->total - sum : 0;
    snprintf(text + n, sizeof en->info.device - n, "; memory of %.2f GB: %.2f taken before, %.2f weights and what they work in, "
             "%.2f rows of groups and steps, %.2f lists and room of ops, %.2f work of requests, %.2f pages, %.2f left",
             gb(m->total), gb(m->before), gb(m->loaded), gb(m->rows), gb(m->ops), gb(m->work), gb(m->pages), gb(m->left));
}

static uint64_t resident_bytes(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f == NULL) return 0;
    if (fscanf(f, "%*u %llu", &pages) != 1) pages = 0;
    fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGE_SIZE);
}

static status agree(struct comm *c, status st, struct err *e);

/* What every rank has; the pool is what the rank with the least room can hold. The same answer on all of them. */
static status share_out(struct engine *en, const struct engine_options *o, struct err *e)
{
    const struct kv_shape kv = decoder_kv_shape(en->dec);
    const uint32_t n = en->info.n_ranks, me = en->comm ? comm_rank(en->comm) : 0, L = decoder_shape(en->dec)->L;
    struct engine_rank *own = &en->rank[me];
    *own = (struct engine_rank){ .weight_bytes = en->info.weight_bytes, .page_bytes = kv.page_bytes,
                                 .resident_bytes = resident_bytes() };
    const status wanted = pages_wanted(en, o, &own->pages_fit, &own->work_fit, e);
    TRY(agree(en->comm, wanted, e));
    if (en->comm) {
        size_t *bytes = mem_must(n, sizeof *bytes);
        for (uint32_t r = 0; r < n; r++) bytes[r] = sizeof *own;
        const status st = comm_all_gather(en->comm, NULL, own, en->rank, bytes, e);
        free(bytes);
        if (st != OK) return st;
    }
    uint32_t least = 0;
    for (uint32_t r = 1; r < n; r++)
        if (en->rank[r].pages_fit < en->rank[least].pages_fit) least = r;
    const uint64_t pages = en->rank[least].pages_fit;
    en->plan.work = en->rank[0].work_fit;
    for (uint32_t r = 1; r < n; r++)
        if (en->rank[r].work_fit < en->plan.work) en->plan.work = en->rank[r].work_fit;
    en->plan.work -= en->plan.work % RANGE_ALIGN;
    char of[32] = "";
    if (n > 1) snprintf(of, sizeof of, " of rank %u", least);
    if (pages < L)
        return err_set(e, E_ARG, "the page pool%s of %llu bytes holds %llu pages of %llu bytes, fewer than the %u layers: "
                                 "give more with --kv-bytes", of, (unsigned long long)o->kv_bytes, (unsigned long long)pages,
                       (unsigned long long)en->rank[least].page_bytes, L);
    en->info.n_pages = pages < UINT32_MAX ? (uint32_t)pages : UINT32_MAX;
    if (en->ops->reserve == NULL) return OK;
    const struct reserve_args a = memory_args(en);
    team_reserve(en->team, &a);
    say_plan(en);
    return OK;
}

/* All that is asked of a device once and for all. */
static status open_pool(struct engine *en, struct err *e)
{
    const size_t V = decoder_shape(en->dec)->V;
    for (uint32_t g = 0; en->ops->reserve && g < SCHED_GROUPS; g++) TRY(march_prepare(en, g, e));
    if (en->ops->reserve && team_alone(en->team)) {            /* candidates are found where the logits are */
        TRY(en->ops->alloc(en->st, V, (void **)&en->allowed_there, e));
        TRY(en->ops->upload(en->st, en->allowed_there, en->allowed, V, e));
    }
    if (en->ops->reserve) TRY(decode_prepare(en, en->plan.seqs, e));
    TRY(team_pages(en->team, en->info.n_pages, &en->kv, e));
    if (en->ops->reserve) TRY(memory_open(en, e));
    const uint32_t per = en->kv.page_tokens;
    TRY(kv_pool_create(en->info.n_pages, per, &en->pool, e));
    en->info.page_tokens = per;
    en->info.page_bytes = en->kv.page_bytes;
    return OK;
}

/* This rank's decoder. */
static status open_decoder(struct engine *en, const struct engine_options *o, const struct decoder_shape *shape,
                           const struct decoder_source *src, struct err *e)
{
    struct engine_info *info = &en->info;
    info->kv_dtype = info->compute;
    const uint32_t limit = en->config.text.max_positions;
    info->max_model_len = o->max_model_len ? o->max_model_len : limit < CONTEXT_DEFAULT ? limit : CONTEXT_DEFAULT;
    if (info->max_model_len > limit)
        return err_set(e, E_ARG, "max-model-len %u is over the %u positions that the model was made for",
                       info->max_model_len, limit);
    info->n_ranks = en->comm ? comm_size(en->comm) : 1;
    TRY(mem_alloc(&en->rank, info->n_ranks, sizeof *en->rank, e));
    en->plan.block = on_host(en) ? BLOCK_ROWS : BLOCK_ROWS_GPU;
    TRY(decoder_create_slice(en->st, shape, src, info->compute, info->kv_dtype, en->plan.block, info->max_model_len, en->comm, &en->dec,
                             e));
    info->weight_bytes = decoder_weight_bytes(en->dec);
    return team_open(en->dec, en->comm, o->check_ranks, &en->team, e);
}

/* What goes with text on the rank that talks to people. */
static status open_text(struct engine *en, const struct decoder_shape *shape, struct err *e)
{
    struct engine_info *info = &en->info;
    TRY(tokenizer_load(info->model_dir, &en->tok, e));
    TRY(chat_check_tokens(en->tok, &en->config.ids, e));
    if (tokenizer_n_ids(en->tok) > shape->V)
        return err_set(e, E_MODEL, "%s: tokenizer.json has ids up to %u, the model only %u rows of vocabulary",
                       info->model_dir, tokenizer_n_ids(en->tok) - 1, shape->V);
    TRY(mem_alloc(&en->allowed, shape->V, 1, e));
    for (uint32_t i = 0; i < tokenizer_n_ids(en->tok); i++) en->allowed[i] = tokenizer_has(en->tok, (int32_t)i);
    return OK;
}

static status open_model(struct engine *en, const struct engine_options *o, struct checkpoint *ck, bool leads, struct err *e)
{
    TRY(pick_dtype(o->dtype, ck, &en->info.compute, e));
    en->config = ck->config;
    if (leads) TRY(model_defaults_load(en->info.model_dir, en->config.text.layers, &en->defaults, e));
    if (leads) TRY(selector_load(ck, &en->selector, e));
    struct decoder_shape shape = decoder_shape_of(&en->config);
    shape.tied = ck->tied;
    struct decoder_checkpoint source = { .ck = ck };
    const struct decoder_source src = decoder_source_checkpoint(&source);
    if (leads) TRY(open_text(en, &shape, e));
    TRY(open_decoder(en, o, &shape, &src, e));
    TRY(audio_tower_create(en->st, ck, en->info.compute, &en->audio, e));
    TRY(vision_tower_create(en->st, ck, en->info.compute, &en->vision, e));
    team_towers(en->team, en->audio, en->vision);
    return OK;
}

static struct media_vision vision_of(const struct model_config *c)
{
    const struct vision_config *v = &c->vision;
    struct media_vision m = { .patch = v->patch_size, .merge = v->merge_size, .temporal = v->temporal_patch_size };
    memcpy(m.mean, c->preprocess.mean, sizeof m.mean);
    memcpy(m.std, c->preprocess.std, sizeof m.std);
    return m;
}

/* The caller's limits before the checkpoint's own; one that was given moves the other where they would cross. */
static struct media_limits limits_of(struct pixel_limits own, uint64_t min_pixels, uint64_t max_pixels)
{
    struct media_limits l = { min_pixels ? min_pixels : own.min, max_pixels ? max_pixels : own.max };
    if (min_pixels == 0 && l.min_pixels > l.max_pixels) l.min_pixels = l.max_pixels;
    if (max_pixels == 0 && l.max_pixels < l.min_pixels) l.max_pixels = l.min_pixels;
    return l;
}

struct media_image_options engine_image_options(const struct model_config *c, uint64_t min_pixels, uint64_t max_pixels)
{
    return (struct media_image_options){ .vision = vision_of(c),
                                         .limits = limits_of(c->preprocess.image, min_pixels, max_pixels) };
}

struct media_video_options engine_video_options(const struct model_config *c, uint64_t min_pixels, uint64_t max_pixels,
                                                double fps)
{
    static const struct pixel_limits published = { 100352, 602112 };
    const struct preprocess_config *own = &c->preprocess;
    return (struct media_video_options){ .vision = vision_of(c), .fps = fps,
                                         .cap_pixels = own->has_video ? own->video.max : 0,
                                         .limits = limits_of(own->has_video ? own->video : published, min_pixels,
                                                             max_pixels) };
}

/* The model's folder and the device. */
static status open_start(struct engine *en, const struct engine_options *o, struct err *e)
{
    struct engine_info *info = &en->info;
    en->textbook_order = o->textbook_order;
    en->film_at_once = FILM_AT_ONCE;
    en->defaults = model_defaults_none();
    info->bundled = o->model_dir == NULL;
    info->n_local = ranks_here(o->comm);
    if (o->model_dir) snprintf(info->model_dir, sizeof info->model_dir, "%s", o->model_dir);
    else TRY(engine_bundled_model(info->model_dir, sizeof info->model_dir, e));
    char copy[sizeof info->model_dir];
    snprintf(copy, sizeof copy, "%s", info->model_dir);
    snprintf(info->model_name, sizeof info->model_name, "%s", basename(copy));
    return OK;
}

static status open_stream(struct engine *en, const struct engine_options *o, struct err *e)
{
    const struct stream_options so = { .device = o->device, .n_threads = o->n_threads, .isa = o->isa };
    TRY(stream_open(&so, &en->st, e));
    en->ops = en->st->ops;
    en->ops->describe(en->st, en->info.device, sizeof en->info.device);
    uint64_t total;
    return device_memory(en->st, &en->free_at_open, &total, e);
}

/* ---- several ranks ------------------------------------------------------------------------------------------ */

/* What the leader tells the others to open. */
struct open_plan {
    char model_dir[sizeof((struct engine_info *)0)->model_dir];
    char dtype[32], device[64], isa[64];
    int32_t n_threads;
    uint32_t max_model_len, kv_contexts, check;
    uint64_t kv_bytes, work_bytes;
    int32_t code;                  /* not OK: the leader cannot; why: its text */
    char why[sizeof((struct err *)0)->text];
};

static status tell(struct engine *en, const struct engine_options *o, status st, struct err *e)
{
    struct open_plan p = { .n_threads = o->n_threads, .max_model_len = o->max_model_len, .kv_contexts = o->kv_contexts,
                           .check = o->check_ranks, .kv_bytes = o->kv_bytes, .work_bytes = o->work_bytes, .code = st };
    if (en->comm == NULL) return st;
    snprintf(p.model_dir, sizeof p.model_dir, "%s", en->info.model_dir);
    snprintf(p.dtype, sizeof p.dtype, "%s", o->dtype ? o->dtype : "");
    snprintf(p.device, sizeof p.device, "%s", o->device ? o->device : "");
    snprintf(p.isa, sizeof p.isa, "%s", o->isa ? o->isa : "");
    if (st != OK) snprintf(p.why, sizeof p.why, "%s", e->text);
    struct err why;
    const status told = comm_post_all(en->comm, TAG_OPEN, &p, sizeof p, st == OK ? e : &why);
    return st != OK ? st : told;
}

/* How each rank came this far; the lowest that failed is everybody's error. */
struct verdict { int32_t code; char text[sizeof((struct err *)0)->text]; };

static status agree(struct comm *c, status st, struct err *e)
{
    if (c == NULL) return st;
    const uint32_t n = comm_size(c), me = comm_rank(c);
    struct verdict own = { .code = st }, *all;
    size_t *bytes;
    struct err why;
    if (st != OK) snprintf(own.text, sizeof own.text, "%s", e->text);
    all = mem_must(n, sizeof *all);
    bytes = mem_must(n, sizeof *bytes);
    for (uint32_t r = 0; r < n; r++) bytes[r] = sizeof *all;
    status met = comm_all_gather(c, NULL, &own, all, bytes, &why);
    if (met != OK) {
        if (st == OK) *e = why;
    } else {
        uint32_t r = 0;
        while (r < n && all[r].code == OK) r++;
        if (r < n && r != me) err_set(e, (status)all[r].code, "rank %u (%s): %s", r, comm_peer(c, r)->host, all[r].text);
        met = r < n ? (status)all[r].code : OK;
    }
    free(bytes);
    free(all);
    return st != OK && met == OK ? st : met;
}

/* Everything that all ranks do: checkpoint and device, the way between them, this rank's weights. */
static status open_together(struct engine *en, const struct engine_options *o, bool leads, struct err *e)
{
    struct checkpoint ck;
    const status opened = checkpoint_open(en->info.model_dir, &ck, e);
    status st = agree(en->comm, opened == OK ? open_stream(en, o, e) : opened, e);
    if (st == OK) st = agree(en->comm, link_open(en->comm, en->st, en->info.link, sizeof en->info.link, e), e);
    if (st == OK) st = agree(en->comm, open_model(en, o, &ck, leads, e), e);
    if (opened == OK) checkpoint_close(&ck);
    return st == OK ? share_out(en, o, e) : st;
}

static bool check_asked(const struct engine_options *o)
{
    const char *v = getenv("OMNIDROP_CHECK_RANKS");
    return o->check_ranks || (v && strcmp(v, "1") == 0);
}

status engine_open(const struct engine_options *options, struct engine **out, struct err *e)
{
    struct engine_options o = *options;
    struct engine *en;
    struct err why = { 0 };
    const double start = clock_s();
    if (e == NULL) e = &why;
    status st = mem_alloc(&en, 1, sizeof *en, e);
    if (st != OK) return st;
    en->comm = o.comm && (comm_size(o.comm) > 1 || o.one_rank_too) ? o.comm : NULL;
    o.check_ranks = check_asked(&o);
    st = open_start(en, &o, e);
    TRY_GOTO(st, tell(en, &o, st, e), undo);
    TRY_GOTO(st, open_together(en, &o, true, e), undo);
    TRY_GOTO(st, open_pool(en, e), undo);
    en->info.load_s = clock_s() - start;
    *out = en;
    return OK;
undo:
    engine_close(&en);
    return st;
}

static const char *given(const char *own, const char *leaders) { return own ? own : leaders[0] ? leaders : NULL; }

status engine_work(struct comm *c, const struct engine_options *options, struct err *e)
{
    struct engine_options o = *options;
    struct comm_message m;
    struct open_plan p;
    struct engine *en;
    struct err why = { 0 };
    bool got = false;
    if (e == NULL) e = &why;
    while (!got) TRY(comm_take(c, 0, TAG_OPEN, INFINITY, &m, &got, e));
    const bool whole = m.n == sizeof p;
    if (whole) memcpy(&p, m.bytes, sizeof p);
    free(m.bytes);
    if (!whole) return err_set(e, E_INTERNAL, "rank 0 sent a plan of %zu bytes, not %zu", m.n, sizeof p);
    if (p.code != OK) return err_set(e, (status)p.code, "rank 0 (%s): %s", comm_peer(c, 0)->host, p.why);
    en = mem_must(1, sizeof *en);
    en->comm = c;
    en->info.n_local = ranks_here(c);
    en->defaults = model_defaults_none();
    o.model_dir = p.model_dir;
    o.dtype = p.dtype[0] ? p.dtype : NULL;
    o.device = given(o.device, p.device);
    o.isa = given(o.isa, p.isa);
    if (o.n_threads == 0) o.n_threads = p.n_threads;
    o.max_model_len = p.max_model_len;
    o.kv_bytes = p.kv_bytes;
    o.work_bytes = p.work_bytes;
    o.kv_contexts = p.kv_contexts;
    o.check_ranks = p.check;
    snprintf(en->info.model_dir, sizeof en->info.model_dir, "%s", p.model_dir);
    status st = open_together(en, &o, false, e);
    if (st == OK) st = team_work(en->team, e);
    engine_close(&en);
    return st;
}

status engine_open_source(const struct engine_options *o, const struct decoder_shape *shape,
                          const struct decoder_source *src, enum dtype compute, struct engine **out, struct err *e)
{
    struct engine *en;
    const double start = clock_s();
    TRY(mem_alloc(&en, 1, sizeof *en, e));
    status st;
    TRY_GOTO(st, open_start(en, o, e), undo);
    TRY_GOTO(st, model_config_load(en->info.model_dir, &en->config, e), undo);
    struct text_config *t = &en->config.text;
    *t = (struct text_config){ .hidden = shape->d, .layers = shape->L, .heads = shape->H, .kv_heads = shape->G,
                               .head_dim = shape->D, .ff = shape->ff, .vocab = shape->V, .rms_eps = shape->rms_eps,
                               .rope_theta = shape->rope_theta, .max_positions = CONTEXT_DEFAULT };
    memcpy(t->mrope_section, shape->mrope_section, sizeof t->mrope_section);
    en->info.compute = compute;
    TRY_GOTO(st, open_stream(en, o, e), undo);
    TRY_GOTO(st, open_text(en, shape, e), undo);
    TRY_GOTO(st, open_decoder(en, o, shape, src, e), undo);
    TRY_GOTO(st, share_out(en, o, e), undo);
    TRY_GOTO(st, open_pool(en, e), undo);
    en->info.load_s = clock_s() - start;
    *out = en;
    return OK;
undo:
    engine_close(&en);
    return st;
}

void engine_close(struct engine **pen)
{
    struct engine *en = *pen;
    if (en == NULL) return;
    for (uint32_t g = 0; g < SCHED_GROUPS; g++) march_free(en, g);
    decode_free(en);
    kv_prefix_destroy(&en->prefixes);
    media_cache_destroy(&en->media_cache);
    if (en->pool) kv_pool_destroy(&en->pool);
    if (en->st) {
        team_close(&en->team);
        audio_tower_destroy(&en->audio);
        vision_tower_destroy(&en->vision);
        en->ops->release(en->st, en->allowed_there);
        decoder_destroy(&en->dec);
        link_close(en->comm, en->st);
        en->ops->close(&en->st);
    }
    tokenizer_free(&en->tok);
    model_defaults_free(&en->defaults);
    selector_free(&en->selector);
    free(en->allowed);
    free(en->rank);
    free(en);
    *pen = NULL;
}

const struct engine_info *engine_info(const struct engine *en) { return &en->info; }
const struct engine_rank *engine_rank(const struct engine *en, uint32_t rank) { return &en->rank[rank]; }
const struct model_config *engine_config(const struct engine *en) { return &en->config; }
const struct tokenizer *engine_tokenizer(const struct engine *en) { return en->tok; }
const struct model_defaults *engine_defaults(const struct engine *en) { return &en->defaults; }
uint32_t engine_pages_free(const struct engine *en) { return kv_n_free(en->pool) - kv_n_reserved(en->pool); }
void engine_interrupt(struct engine *en) { en->interrupted = 1; }

status engine_serves(const struct engine *en, const struct policy_params *p, const struct policy_plan *plan, struct err *e)
{
    if (!(plan->needs & PRUNE_NEEDS_WEIGHTS)) return prune_served(p, plan, SERVED_NEEDS, e);
    if (en->selector.n_tensors == 0)
        return err_set(e, E_ARG, "policy %s: %s; omnisift-lite needs none", prune_params_name(p),
                       en->selector.flaw[0] ? en->selector.flaw : "this model is in no file and has no trained selector");
    return prune_served(p, plan, SERVED_NEEDS | PRUNE_NEEDS_WEIGHTS, e);
}

status engine_pages_of(const struct engine *en, const struct policy_params *p, const struct prune_shape *s, uint32_t n_text,
                       uint32_t n_new, uint64_t *out, struct err *e)
{
    const uint32_t L = s->n_layers;
    struct policy_plan plan;
    uint32_t *bound;
    TRY(prune_plan_shape(p, s, &plan, e));
    status st = engine_serves(en, p, &plan, e);
    if (st == OK) st = mem_alloc(&bound, L, sizeof *bound, e);
    if (st == OK) {
        for (uint32_t l = 0; l < L; l++) bound[l] = prune_plan_rows(&plan, l) + n_text;
        const struct sched_request r = { .n_choices = 1, .n_new = n_new, .bound = bound, .n_rows = plan.n_entry + n_text };
        *out = sched_demand(en->pool, L, &r);
        free(bound);
    }
    prune_plan_free(&plan);
    return st;
}
