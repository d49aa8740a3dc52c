/* Prefills whose choices stay on the device, beside the same ones chosen by the host. Method: prompts of a film with sound, more sound
 * and text between and behind, given as embeddings; random settings of omnidrop (and fastv, none), alone and in groups. Asked for
 * reasons an engine chooses on the host, so a request runs both ways: survivors, logits and answers must be the same bits. On the
 * CPU, and on CUDA played by the CPU (kernels/fake_cuda.cpp), which keeps a list of launches and waits: between the first keys that
 * are written and the logits the host must not have stood still, where the host chooses it must have. In quanta of a few rows, a
 * member that leaves anywhere changes nothing for the others. SEED=n repeats a run. */
#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "engine/inside.h"
#include "tests/simt_device.h"

enum { N_MAX = 3, ROWS_MAX = 400, NEW = 3 };

static uint64_t random_state;
static uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 32) * n >> 32);
}

#define MUST(expr)                                                                                       \
    do {                                                                                                 \
        struct err e;                                                                                    \
        if ((expr) != OK) fail_msg("%s: %s", #expr, e.text);                                             \
    } while (0)

/* One request, so that it can be made again. */
struct ask { uint32_t steps, side, n_audio, n_sound, between, behind; struct policy_params policy; const float *embeds; };
struct got { float *logits; uint32_t V, n_ids; int32_t ids[NEW]; uint32_t n[64], index[64][ROWS_MAX]; double mean; };

static void keep_logits(void *self, const float *logits, uint32_t V)
{
    struct got *g = self;
    g->V = V;
    g->logits = mem_must(V, sizeof(float));
    memcpy(g->logits, logits, V * sizeof(float));
}

static void prompt_of(const struct engine *en, const struct ask *a, struct prompt *out)
{
    const struct model_ids *id = &en->config.ids;
    const struct prompt_rules rules = { .audio_id = id->audio, .image_id = id->image, .video_id = id->video,
                                        .audio_bos = id->audio_start, .audio_eos = id->audio_end, .vision_bos = id->vision_start,
                                        .vision_eos = id->vision_end, .position_id_per_seconds = 25, .seconds_per_chunk = 2,
                                        .audio_in_video = true, .n_query_max = 256 };
    const struct prompt_media media[] = { { .kind = TOKEN_VIDEO, .n_audio = a->n_audio, .has_audio = true, .t = a->steps,
                                            .h = 2 * a->side, .w = 2 * a->side, .second_per_grid = 1 },
                                          { .kind = TOKEN_AUDIO, .n_audio = a->n_sound } };
    struct prompt_token token[64];
    uint32_t n = 0;
    token[n++] = (struct prompt_token){ 11, false };
    token[n++] = (struct prompt_token){ id->vision_start, false };
    token[n++] = (struct prompt_token){ id->video, false };
    token[n++] = (struct prompt_token){ id->vision_end, false };
    for (uint32_t i = 0; i < a->between; i++) token[n++] = (struct prompt_token){ (int32_t)(20 + i), i % 2 == 0 };
    token[n++] = (struct prompt_token){ id->audio_start, false };
    token[n++] = (struct prompt_token){ id->audio, false };
    token[n++] = (struct prompt_token){ id->audio_end, false };
    for (uint32_t i = 0; i < a->behind; i++) token[n++] = (struct prompt_token){ (int32_t)(40 + i), i > 0 };
    MUST(prompt_build(&rules, token, n, media, 2, out, &e));
}

static struct ask random_ask(const struct engine *en, const float *embeds)
{
    struct ask a = { .steps = 1 + below(5), .side = 1 + below(3), .n_audio = 1 + below(60), .n_sound = 1 + below(30),
                     .between = below(6), .behind = 1 + below(9), .embeds = embeds };
    const uint32_t L = engine_config(en)->text.layers, which = below(8);
    struct policy_params *p = &a.policy;
    if (which < 2) {
        MUST(prune_params_init(p, which ? "fastv" : "none", L, &e));
    } else {
        static const char *const tds[] = { "printed", "max", "off" }, *const query[] = { "text", "after", "last" };
        MUST(prune_params_init(p, "omnidrop", L, &e));
        MUST(prune_params_set(p, "p_init", below(2) * 0.1, &e));
        MUST(prune_params_set(p, "p_final", 0.1 + 0.1 * below(9), &e));
        MUST(prune_params_set(p, "t_mid", 0.1 * below(10), &e));
        MUST(prune_params_set(p, "step0", below(2), &e));
        MUST(prune_params_set(p, "trim", below(4) == 0, &e));
        MUST(prune_params_set(p, "tds_start_layer", below(L + 1), &e));
        MUST(prune_params_set(p, "lambda_div", below(2) ? 0.2 : 1e-3, &e));
        MUST(prune_params_set_text(p, "tds", tds[below(3)], &e));
        MUST(prune_params_set_text(p, "query", query[below(3)], &e));
    }
    MUST(prune_params_finish(p, &e));
    return a;
}

/* Requests that march together; by the host where they want reasons. */
static void make(struct engine *en, const struct ask *a, uint32_t n, bool by_host, uint32_t n_new, struct got *got,
                 struct eng_trace *trace, struct eng_request **r)
{
    for (uint32_t i = 0; i < n; i++) {
        struct eng_request_options o = eng_request_defaults();
        struct prompt p;
        got[i] = (struct got){ 0 };
        trace[i] = (struct eng_trace){ .self = &got[i], .logits = keep_logits };
        o.policy = &a[i].policy;
        o.want_why = by_host;
        o.max_tokens = n_new;
        o.ignore_eos = true;
        o.trace = &trace[i];
        prompt_of(en, &a[i], &p);
        const struct eng_given given = { .prompt = &p, .audio_embeds = a[i].embeds, .vision_embeds = a[i].embeds + 100,
                                         .audio_saliency = a[i].embeds };
        MUST(eng_request_create_given(en, NULL, &o, &given, &r[i], &e));
        prompt_free(&p);
        double work;
        bool done;
        MUST(encode_some(en, r[i], INFINITY, &work, &done, &e));       /* who is ready when it comes marches with the others */
        assert_true(done);
        r[i]->sched.encodes = false;
    }
}

static void take(struct engine *en, struct eng_request **r, uint32_t n_new, struct got *got)
{
    const struct eng_result *res = eng_request_result(*r);
    if (res->finish == ENG_FAILED) fail_msg("%s", res->error.text);
    assert_int_equal(res->n_ids, n_new);
    memcpy(got->ids, res->ids, n_new * sizeof *res->ids);
    got->n_ids = res->n_ids;
    got->mean = res->mean_retention;
    for (uint32_t l = 0; l <= res->n_layers; l++) {
        got->n[l] = res->alive[l][1] + res->alive[l][2] + res->alive[l][3];
        assert_int_equal(got->n[l], eng_request_plan(*r)->alive[l]);
        memcpy(got->index[l], res->survivors[l], got->n[l] * sizeof(uint32_t));
    }
    eng_request_destroy(en, r);
}

static void run(struct engine *en, const struct ask *a, uint32_t n, bool by_host, uint32_t n_new, struct got *got)
{
    struct eng_request *r[N_MAX] = { NULL };
    struct eng_trace trace[N_MAX];
    make(en, a, n, by_host, n_new, got, trace, r);
    MUST(eng_run(en, r, n, &e));
    for (uint32_t i = 0; i < n; i++) take(en, &r[i], n_new, &got[i]);
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
}

static void assert_same(const struct got *a, const struct got *b, uint32_t L, const char *how)
{
    for (uint32_t l = 0; l <= L; l++)
        if (a->n[l] != b->n[l] || memcmp(a->index[l], b->index[l], a->n[l] * sizeof(uint32_t)) != 0)
            fail_msg("%s: others enter layer %u", how, l);
    if (memcmp(a->logits, b->logits, a->V * sizeof(float)) != 0) fail_msg("%s: other logits", how);
    if (memcmp(a->ids, b->ids, sizeof a->ids) != 0 || a->mean != b->mean) fail_msg("%s: another answer", how);
}

static void forget(struct got *g, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) free(g[i].logits);
}

static struct engine *open_engine(const char *device)
{
    struct engine *en = NULL;
    const struct engine_options o = { .model_dir = "tests/goldens/odd-shared/checkpoint", .device = device, .n_threads = 2,
                                      .kv_bytes = 8 << 20, .max_model_len = 1024 };
    MUST(engine_open(&o, &en, &e));
    return en;
}

static float *random_embeds(const struct engine *en)
{
    const size_t n = (size_t)ROWS_MAX * engine_config(en)->text.hidden + 200;
    float *x = mem_must(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)below(2001) / 1000.0f - 1.0f;
    return x;
}

/* Alone and together, on the device and by the host. */
static void compare(struct engine *en, const float *embeds, uint32_t rounds)
{
    const uint32_t L = engine_config(en)->text.layers;
    struct got *host = mem_must(N_MAX, sizeof *host), *there = mem_must(N_MAX, sizeof *there), *alone = mem_must(1, sizeof *alone);
    for (uint32_t v = 0; v < rounds; v++) {
        struct ask a[N_MAX];
        const uint32_t n = 1 + below(N_MAX);
        for (uint32_t i = 0; i < n; i++) a[i] = random_ask(en, embeds);
        run(en, a, n, true, NEW, host);
        run(en, a, n, false, NEW, there);
        for (uint32_t i = 0; i < n; i++) assert_same(&host[i], &there[i], L, "chosen by the host and by the device");
        run(en, a + n - 1, 1, false, NEW, alone);
        assert_same(alone, &there[n - 1], L, "alone and in a group");
        forget(host, n), forget(there, n), forget(alone, 1);
    }
    free(host), free(there), free(alone);
}

/* N_MAX together in quanta of a few rows; one of them leaves after some steps. */
static void leave(struct engine *en, const float *embeds, uint32_t rounds)
{
    const struct loop_options o = { .max_running = UINT32_MAX, .max_waiting = UINT32_MAX, .group_rows = 1 << 20, .quantum_rows = 20,
                                    .itl_target_s = INFINITY, .step_s = INFINITY };
    struct got *got = mem_must(N_MAX, sizeof *got), *alone = mem_must(1, sizeof *alone);
    uint32_t left = 0;
    for (uint32_t v = 0; v < rounds; v++) {
        struct ask a[N_MAX];
        struct eng_request *r[N_MAX] = { NULL };
        struct eng_trace trace[N_MAX];
        struct loop *lp;
        const uint32_t gone = below(N_MAX), at = 1 + below(v % 2 ? 5 : 20);
        const struct err why = { .code = E_CANCELLED };
        for (uint32_t i = 0; i < N_MAX; i++) a[i] = random_ask(en, embeds);
        make(en, a, N_MAX, false, NEW, got, trace, r);
        MUST(loop_create(en, &o, &lp, &e));
        for (uint32_t i = 0; i < N_MAX; i++) MUST(loop_add(lp, r[i], &e));
        bool idle = false;
        for (uint32_t step = 0; !idle; step++) {
            if (step == at && !r[gone]->over) left++;
            if (step == at) loop_end(lp, r[gone], ENG_CANCELLED, &why);
            MUST(loop_step(lp, &idle, &e));
        }
        loop_destroy(en, &lp);
        for (uint32_t i = 0; i < N_MAX; i++) {
            if (eng_request_result(r[i])->finish == ENG_CANCELLED) {
                eng_request_destroy(en, &r[i]);
                continue;
            }
            take(en, &r[i], NEW, &got[i]);
            run(en, &a[i], 1, false, NEW, alone);
            assert_same(alone, &got[i], engine_config(en)->text.layers, "alone and where one leaves");
            forget(alone, 1);
        }
        forget(got, N_MAX);
    }
    assert_true(left > 0);
    free(got), free(alone);
}

static void test_same_bits(void **state)
{
    (void)state;
    struct engine *en = open_engine("cpu");
    float *embeds = random_embeds(en);
    compare(en, embeds, 40);
    leave(en, embeds, 30);
    free(embeds);
    engine_close(&en);
}

/* Does the host stand still after the first write of keys, before the last launch? why: between which. */
static bool waits_between(unsigned (*log)(const char *const **list, int clear), uint32_t L, char *why, size_t cap)
{
    const char *const *list;
    const unsigned n = log(&list, 0);
    unsigned i = 0, wait = 0, writes = 0;
    for (unsigned k = 0; k < n; k++) writes += strcmp(list[k], "kv_write") == 0;
    assert_int_equal(writes, L);                                     /* they march together */
    while (i < n && strcmp(list[i], "kv_write") != 0) i++;
    assert_true(i < n);
    for (; i < n; i++) {
        if (strncmp(list[i], "wait", 4) == 0) wait = i;
        else if (wait) {
            snprintf(why, cap, "%s after %s, before %s (%u of %u)", list[wait], list[wait - 1], list[i], wait, n);
            return true;
        }
    }
    assert_true(wait > 0);
    snprintf(why, cap, "there is none");
    return false;
}

static void test_nothing_waits(void **state)
{
    (void)state;
    struct engine *en = open_engine(simt_device("../simt"));
    char path[PATH_MAX + 64], why[256];
    snprintf(path, sizeof path, "%s/omnidrop-cuda.so", getenv("OMNIDROP_LIB"));
    void *lib = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    unsigned (*log)(const char *const **list, int clear) = NULL;
    if (lib) *(void **)&log = dlsym(lib, "fake_cuda_log");
    if (log == NULL) fail_msg("%s: %s", path, dlerror());
    float *embeds = random_embeds(en);
    struct got *got = mem_must(4, sizeof *got);
    struct ask a[2];
    for (int i = 0; i < 2; i++) {
        a[i] = (struct ask){ .steps = 4, .side = 2, .n_audio = 30, .n_sound = 12, .between = 3, .behind = 6, .embeds = embeds };
        MUST(prune_params_init(&a[i].policy, "omnidrop", engine_config(en)->text.layers, &e));
        MUST(prune_params_set(&a[i].policy, "p_init", 0.2, &e));
        MUST(prune_params_set(&a[i].policy, "p_final", 0.5, &e));
        if (i) MUST(prune_params_set_text(&a[i].policy, "tds", "max", &e));
        MUST(prune_params_finish(&a[i].policy, &e));
    }
    a[1].steps = 2, a[1].n_sound = 20;
    for (int by_host = 1; by_host >= 0; by_host--) {
        run(en, a, 2, by_host, 1, got + 2 * by_host);                   /* memory that grows has grown then */
        forget(got + 2 * by_host, 2);
        log(NULL, 1);
        run(en, a, 2, by_host, 1, got + 2 * by_host);
        if (waits_between(log, engine_config(en)->text.layers, why, sizeof why) != (by_host == 1))
            fail_msg("a wait where %s chooses: %s", by_host ? "the host" : "the device", why);
    }
    for (int i = 0; i < 2; i++) assert_same(&got[i], &got[2 + i], engine_config(en)->text.layers, "CUDA: by the host and by the device");
    forget(got, 4);
    compare(en, embeds, 2);
    leave(en, embeds, 3);
    free(got), free(embeds);
    engine_close(&en);
    dlclose(lib);
}

int main(void)
{
    const char *s = getenv("SEED");
    random_state = (s ? strtoull(s, NULL, 10) : 1) * 0x9e3779b97f4a7c15u + 1;
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_same_bits), cmocka_unit_test(test_nothing_waits) };
    return cmocka_run_group_tests_name("lists of the device", tests, NULL, NULL);
}
