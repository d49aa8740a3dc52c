/* A device whose memory is one plan. Method: the CUDA backend played by the CPU (tests/kernels/fake_cuda.cpp), which counts what is
 * asked of the runtime, under a tiny model of random weights; OMNIDROP_CUDA_POISON fills what is released with NaN, so whoever reads
 * another's memory says something else than the CPU. After start-up nothing is asked of the runtime whatever requests do; more of them
 * than the work memory holds wait; one that it can never hold is told so; who is preempted holds nothing and comes back to the same
 * answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <math.h>
#include <pthread.h>
#include <cmocka.h>

#include "base/mem.h"
#include "base/plugin.h"
#include "engine/inside.h"
#include "engine/service.h"
#include "kernels/device.h"
#include "tests/engine/give_selector.h"
#include "tests/engine/resolve_path.h"
#include "tests/simt_device.h"

#define MODEL "tests/goldens/odd-f16/checkpoint"
#define CARD  "tests/goldens/odd/media/card.png"
#define HUM   "tests/goldens/odd/media/hum.wav"
#define FILM  "tests/goldens/odd/media/yuv.mp4"

static const char *device;
struct fake_cuda_counts { uint64_t asked, given_back, up, down; };
static const struct fake_cuda_counts *counts(void)
{
    char why[256];
    const struct fake_cuda_counts *c = plugin_symbol("omnidrop-cuda.so", "fake_cuda_counts", false, why, sizeof why);
    if (c == NULL) fail_msg("%s", why);
    return c;
}

static struct engine *open_on(const char *name, uint64_t work, uint64_t kv)
{
    const struct engine_options o = { .model_dir = MODEL, .device = name, .n_threads = 1, .max_model_len = 1024, .work_bytes = work,
                                      .kv_bytes = kv };
    struct engine *en;
    struct err e;
    if (engine_open(&o, &en, &e) != OK) fail_msg("%s", e.text);
    give_selector(en);
    return en;
}

/* ---- requests -------------------------------------------------------------------------------------------- */

struct ask { const char *media, *more, *policy, *text; bool trim; };
static const struct ask ASKS[] = {
    { CARD, HUM, "none", "Say all.", false },
    { NULL, NULL, "none", "Say all that you know of it.", false },
    { FILM, HUM, "omnidrop", "What was there?", true },
    { CARD, HUM, "aim", "And what is it?", false },
    { FILM, HUM, "dash", "What?", false },
    { CARD, NULL, "prumerge", "Which colour is it?", false },
    { FILM, HUM, "omnifocus", "What is heard?", false },
    { CARD, HUM, "omnisift", "Is it there?", false },
    { FILM, NULL, "trim-lc", "How many?", false },
};
enum { N_ASKS = sizeof ASKS / sizeof *ASKS, N_NEW = 3 };

static enum chat_part_kind kind_of(const char *path)
{
    const char *end = strrchr(path, '.');
    return strcmp(end, ".png") == 0 ? PART_IMAGE : strcmp(end, ".wav") == 0 ? PART_AUDIO : PART_VIDEO;
}

struct asked { struct chat chat; struct policy_params p; struct eng_request_options o; };

static void ask_for(const struct ask *a, struct asked *out)
{
    struct err e;
    chat_init(&out->chat);
    assert_int_equal(chat_add_message(&out->chat, CHAT_USER, &e), OK);
    if (a->media) assert_int_equal(chat_add_media(&out->chat, kind_of(a->media), a->media, &e), OK);
    if (a->more) assert_int_equal(chat_add_media(&out->chat, kind_of(a->more), a->more, &e), OK);
    assert_int_equal(chat_add_text(&out->chat, a->text, strlen(a->text), &e), OK);
    assert_int_equal(prune_params_init(&out->p, a->policy, 4, &e), OK);
    if (a->trim) assert_int_equal(prune_params_set(&out->p, "trim", 1, &e), OK);
    assert_int_equal(prune_params_finish(&out->p, &e), OK);
    out->o = eng_request_defaults();
    out->o.max_tokens = N_NEW;
    out->o.ignore_eos = true;
    out->o.max_pixels = 28 * 28 * 16;
    out->o.policy = &out->p;
}

static struct eng_request *request(struct engine *en, struct asked *x)
{
    struct eng_request *r = NULL;
    struct err e;
    if (eng_request_create(en, &x->chat, &x->o, &r, &e) != OK) fail_msg("%s", e.text);
    return r;
}

/* All asks at once; ids of each. */
static void run_all(struct engine *en, int32_t id[N_ASKS][N_NEW], uint64_t *largest, uint64_t *sum)
{
    struct asked x[N_ASKS];
    struct eng_request *r[N_ASKS];
    struct err e;
    *largest = *sum = 0;
    for (int i = 0; i < N_ASKS; i++) {
        ask_for(&ASKS[i], &x[i]);
        r[i] = request(en, &x[i]);
        if (r[i]->lease_bytes > *largest) *largest = r[i]->lease_bytes;
        *sum += r[i]->lease_bytes;
    }
    assert_int_equal(eng_run(en, r, N_ASKS, &e), OK);
    for (int i = 0; i < N_ASKS; i++) {
        const struct eng_result *res = eng_request_result(r[i]);
        if (res->finish != ENG_LENGTH) fail_msg("%s: %s", ASKS[i].policy, res->error.text);
        memcpy(id[i], res->ids, sizeof id[i]);
        assert_null(r[i]->lease);
        eng_request_destroy(en, &r[i]);
        chat_free(&x[i].chat);
    }
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
}

static int32_t on_cpu[N_ASKS][N_NEW];

/* ---- requests that are there from the start: they wait for each other --------------------------------------- */

static void test_waiting(void **state)
{
    (void)state;
    int32_t got[N_ASKS][N_NEW];
    uint64_t largest, sum;
    struct engine *cpu = open_on("cpu", 0, 0);
    assert_int_equal(engine_info(cpu)->memory.total, 0);
    run_all(cpu, on_cpu, &largest, &sum);
    assert_int_equal(sum, 0);                  /* the CPU plans no memory */
    engine_close(&cpu);

    struct engine *en = open_on(device, 0, 0);
    struct asked x;
    for (int i = 0; i < N_ASKS; i++) {         /* the largest alone is what the next plan has */
        ask_for(&ASKS[i], &x);
        struct eng_request *r = request(en, &x);
        if (i == 0 || r->lease_bytes > largest) largest = r->lease_bytes;
        assert_true((r->lease_bytes > 0) == (ASKS[i].media != NULL));
        eng_request_destroy(en, &r);
        chat_free(&x.chat);
    }
    const struct engine_memory m = engine_info(en)->memory;
    assert_int_equal(m.before + m.loaded + m.rows + m.ops + m.work + m.pages + m.left, m.total);
    assert_true(m.loaded > 0 && m.rows > 0 && m.ops > 0 && m.work > 0 && m.pages > 0 && m.left > 0);
    assert_non_null(strstr(engine_info(en)->device, "work of requests"));
    engine_close(&en);

    en = open_on(device, largest, 0);
    const struct fake_cuda_counts before = *counts();
    assert_int_equal(engine_info(en)->memory.work, largest);
    run_all(en, got, &largest, &sum);
    assert_true(sum > largest);                /* so they can not all have been there at once */
    assert_int_equal(counts()->asked, before.asked);
    assert_int_equal(counts()->given_back, before.given_back);
    assert_memory_equal(got, on_cpu, sizeof got);

    /* A picture larger than the tower's own room has room of its own in its lease, and one that needs more than all is refused. */
    ask_for(&ASKS[3], &x);
    x.o.min_pixels = x.o.max_pixels = 28 * 28 * 900;
    struct eng_request *r = NULL;
    struct err e;
    assert_int_equal(eng_request_create(en, &x.chat, &x.o, &r, &e), E_FULL);
    assert_null(r);
    assert_non_null(strstr(e.text, "work memory"));
    assert_non_null(strstr(e.text, "--work-bytes"));
    assert_string_equal(e.tag, "insufficient_memory");
    chat_free(&x.chat);
    engine_close(&en);
}

/* A plan that does not fit is no start, and says what it is made of. */
static void test_too_small(void **state)
{
    (void)state;
    struct engine_options o = { .model_dir = MODEL, .device = device, .n_threads = 1, .max_model_len = 1024,
                                .work_bytes = (uint64_t)1 << 40 };
    struct engine *en = NULL;
    struct err e;
    assert_int_equal(engine_open(&o, &en, &e), E_NOMEM);
    assert_non_null(strstr(e.text, "weights") && strstr(e.text, "1099.51 work") ? e.text : NULL);
    o.work_bytes = 0;
    o.kv_bytes = (uint64_t)1 << 40;
    assert_int_equal(engine_open(&o, &en, &e), E_NOMEM);
    assert_non_null(strstr(e.text, "1099.51 pages"));
    assert_null(en);
}

/* ---- candidates -------------------------------------------------------------------------------------------- */

/* Of a greedy answer the device brings lists of candidates and no row of logits, of one whose penalties may move any id every row too. */
static void test_candidates(void **state)
{
    (void)state;
    uint64_t down[2][2];
    int32_t id[2][2][N_NEW];
    for (int there = 0; there < 2; there++) {
        struct engine *en = open_on(there ? device : "cpu", 0, 0);
        for (int moved = 0; moved < 2; moved++) {
            struct asked x;
            struct err e;
            ask_for(&ASKS[1], &x);
            if (moved) x.o.sample.repetition_penalty = 1.1f;
            struct eng_request *r = request(en, &x);
            const uint64_t before = counts()->down;
            assert_int_equal(eng_run(en, &r, 1, &e), OK);
            down[there][moved] = counts()->down - before;
            const struct eng_result *res = eng_request_result(r);
            assert_int_equal(res->n_ids, N_NEW);
            memcpy(id[there][moved], res->ids, sizeof id[there][moved]);
            eng_request_destroy(en, &r);
            chat_free(&x.chat);
        }
        const struct device_steps steps = device_steps(en->st);            /* steps live in the plan as graphs */
        assert_true(!there || steps.captured + steps.replayed > 0);
        if (there) assert_int_equal(down[1][0], N_NEW * sizeof(struct top_row));
        if (there) assert_int_equal(down[1][1], N_NEW * (sizeof(struct top_row) + decoder_shape(en->dec)->V * sizeof(float)));
        engine_close(&en);
    }
    assert_memory_equal(id[0], id[1], sizeof id[0]);
}

/* ---- a service: caches, several choices ------------------------------------------------------------------- */

static const struct service_loader LOADER = { .resolve = resolve_path, .limits = { .wall_s = 3600 } };

struct seen { pthread_mutex_t lock; pthread_cond_t changed; int n_done, n_failed; char why[256]; };

static void watch(void *self, const struct service_event *ev)
{
    struct seen *s = self;
    if (ev->kind != SERVICE_DONE) return;
    pthread_mutex_lock(&s->lock);
    s->n_done++;
    if (ev->error) {
        s->n_failed++;
        snprintf(s->why, sizeof s->why, "%.250s", ev->error->text);
    }
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void test_service(void **state)
{
    (void)state;
    static const int turns[] = { 0, 2, 1, 0, 5, 2, 0 };       /* the same media again: caches are used, and give way */
    enum { N = sizeof turns / sizeof *turns };
    struct seen s = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
    struct asked x[N];
    struct service *sv;
    struct err e;
    uint64_t id;
    struct engine *probe = open_on(device, 0, 0);
    uint64_t largest = 0;
    for (int i = 0; i < N; i++) {
        ask_for(&ASKS[turns[i]], &x[0]);
        struct eng_request *r = request(probe, &x[0]);
        if (r->lease_bytes > largest) largest = r->lease_bytes;
        eng_request_destroy(probe, &r);
        chat_free(&x[0].chat);
    }
    engine_close(&probe);
    struct engine *en = open_on(device, 2 * largest, 0);
    const struct fake_cuda_counts before = *counts();
    const struct service_options so = { .loader = &LOADER };
    if (service_open(en, &so, &sv, &e) != OK) fail_msg("%s", e.text);
    for (int i = 0; i < N; i++) {
        ask_for(&ASKS[turns[i]], &x[i]);
        struct service_request rq = { .chat = x[i].chat, .o = x[i].o, .n_choices = 1 + (uint32_t)i % 3, .priority = i % 2, .event = watch,
                                      .self = &s };
        if (service_submit(sv, &rq, &id, &e) != OK) fail_msg("%s", e.text);
    }
    pthread_mutex_lock(&s.lock);
    while (s.n_done < N) pthread_cond_wait(&s.changed, &s.lock);
    pthread_mutex_unlock(&s.lock);
    if (s.n_failed) fail_msg("%d failed: %s", s.n_failed, s.why);
    service_close(&sv);
    assert_int_equal(counts()->asked, before.asked);
    assert_int_equal(counts()->given_back, before.given_back);
    engine_close(&en);
}

/* ---- preempted in any phase -------------------------------------------------------------------------------- */

static void test_preempted(void **state)
{
    (void)state;
    struct engine *en = open_on(device, 0, 0);
    const struct fake_cuda_counts before = *counts();
    const struct loop_options lo = { .max_running = 1, .max_waiting = 10, .group_rows = 4096, .overtake_max = 16, .itl_target_s = INFINITY,
                                     .step_s = 1e-30, .preempt = true };
    uint32_t n_preempted = 0;
    static const int at[] = { 1, 2, 1000 };    /* steps of the first before the second comes: its media are encoded, it decodes */
    for (int k = 0; k < 3; k++) {
        struct asked x, y;
        struct loop *lp;
        struct err e;
        bool idle = false;
        ask_for(&ASKS[0], &x);
        ask_for(&ASKS[1], &y);
        struct eng_request *low = request(en, &x), *high = request(en, &y);
        low->sched.priority = 5;
        low->keep_embeds = true;
        assert_int_equal(loop_create(en, &lo, &lp, &e), OK);
        assert_int_equal(loop_add(lp, low, &e), OK);
        for (int i = 0; i < at[k] && low->choice[0].n_ids == 0; i++) assert_int_equal(loop_step(lp, &idle, &e), OK);
        assert_int_equal(loop_add(lp, high, &e), OK);
        for (idle = false; !idle;) {
            assert_int_equal(loop_step(lp, &idle, &e), OK);
            if (low->sched.state == SCHED_WAITING) assert_null(low->lease);
            if (low->sched.state == SCHED_WAITING || low->sched.state == SCHED_DECODING) assert_null(low->audio_embeds);
            sched_check(loop_sched(lp));
        }
        n_preempted += low->sched.n_preempted;
        loop_destroy(en, &lp);
        if (low->choice[0].result.finish != ENG_LENGTH) fail_msg("%s", low->choice[0].result.error.text);
        assert_memory_equal(low->choice[0].ids, on_cpu[0], sizeof on_cpu[0]);
        assert_memory_equal(high->choice[0].ids, on_cpu[1], sizeof on_cpu[1]);
        eng_request_destroy(en, &low);
        eng_request_destroy(en, &high);
        chat_free(&x.chat);
        chat_free(&y.chat);
    }
    assert_true(n_preempted >= 2);
    assert_int_equal(counts()->asked, before.asked);
    engine_close(&en);
}

/* ---- a cache that gives way -------------------------------------------------------------------------------- */

static void test_cache_yields(void **state)
{
    (void)state;
    enum { D = 6, N_SOUND = 5, N_FILM = 4 };
    const struct stream_options so = { .device = device, .n_threads = 1 };
    struct stream *st;
    struct media_cache *c;
    struct media_entry *m[2];
    struct err e;
    float host[N_SOUND * D], back[N_SOUND * D], *rows, *to;
    assert_int_equal(stream_open(&so, &st, &e), OK);
    const struct reserve_args a = { .bytes = 16 << 10, .seqs = 4, .keys = 64, .list = 64 };
    assert_int_equal(st->ops->reserve(st, &a, &e), OK);
    for (int i = 0; i < N_SOUND * D; i++) host[i] = (float)i;
    assert_int_equal(st->ops->alloc(st, sizeof host, (void **)&rows, &e), OK);
    assert_int_equal(st->ops->alloc(st, sizeof host, (void **)&to, &e), OK);
    assert_int_equal(st->ops->upload(st, rows, host, sizeof host, &e), OK);
    assert_int_equal(media_cache_create(st, D, 1 << 20, &c, &e), OK);
    assert_false(media_cache_yield(c));
    for (int i = 0; i < 2; i++) {
        struct extract x = { .kind = MEDIA_AUDIO, .n_audio = N_SOUND };
        assert_int_equal(media_cache_find(c, i ? "b" : "a", NULL, &m[i], &e), OK);
        media_entry_set_features(c, m[i], &x);
        const struct media_rows from = { .audio = rows, .vision = rows, .stride = N_FILM };
        assert_int_equal(media_entry_set_embeds(c, m[i], N_FILM, &from, &e), OK);
    }
    media_entry_release(c, m[1]);              /* nobody's: it goes; the other is held and stays, on the host */
    assert_true(media_cache_yield(c));
    assert_true(m[0]->rows.on_host);
    assert_true(media_cache_yield(c));
    assert_int_equal(media_cache_read(c).n_entries, 1);
    assert_false(media_cache_yield(c));
    const struct media_rows want = { .audio = to };
    assert_int_equal(media_entry_copy(c, m[0], N_FILM, &want, &e), OK);
    assert_int_equal(st->ops->download(st, back, to, sizeof back, &e), OK);
    assert_memory_equal(back, host, sizeof back);
    const struct media_rows film = { .vision = to };
    host[N_FILM * D] = 0;
    assert_int_equal(st->ops->upload(st, to, host, sizeof host, &e), OK);
    assert_int_equal(media_entry_copy(c, m[0], N_FILM, &film, &e), OK);
    assert_int_equal(st->ops->download(st, back, to, sizeof back, &e), OK);
    assert_memory_equal(back, host, N_FILM * D * sizeof *back);
    media_entry_release(c, m[0]);
    st->ops->release(st, rows);
    st->ops->release(st, to);
    void *all;                                 /* the rows of neither are there any more */
    assert_int_equal(st->ops->alloc(st, 16 << 10, &all, &e), OK);
    media_cache_destroy(&c);
    st->ops->close(&st);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--media-child") == 0) return extract_child_main(argc, argv);
    device = simt_device("../simt");
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_waiting), cmocka_unit_test(test_too_small), cmocka_unit_test(test_service),
                                        cmocka_unit_test(test_candidates),
                                        cmocka_unit_test(test_preempted), cmocka_unit_test(test_cache_yields) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
