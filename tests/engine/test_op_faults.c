/* Failures in every op. Method: the device's table is patched, so that the n-th call of an op from a given moment fails
 * once, with want of memory or as a failed device, while requests encode, march and decode in a service. Want of memory
 * ends those that marched together and nobody else: the others keep their own bits. A failed device ends all, once each,
 * and every later one at once. Every page comes home each time. */
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
#include <pthread.h>
#include <cmocka.h>

#include "base/mem.h"
#include "engine/inside.h"
#include "engine/service.h"

#define FILM "tests/data/media/film.mp4"

/* ---- a table that fails -------------------------------------------------------------------------------------- */

#define OPS(X)                                                                                                     \
    X(embed, embed_args) X(norm, norm_args) X(pack, pack_args) X(linear, linear_args) X(im2col, im2col_args)       \
    X(rope, rope_args) X(kv_write, kv_write_args) X(attention, attention_args)                                     \
    X(attention_decode, attention_args) X(segment_attention, segment_attention_args)                               \
    X(query_scores, query_scores_args) X(select, select_args) X(cosine, cosine_args) X(gather, gather_args)        \
    X(scatter, scatter_args) X(add_rows, add_rows_args) X(mean_pairs, mean_pairs_args)                             \
    X(page_copy, page_copy_args) X(kv_compact, kv_compact_args) X(choose, choose_args) X(list_rows, list_rows_args) \
    X(top, top_args)

#define FAULTY_HERE true
#include "tests/engine/faulty_ops.h"

/* ---- requests ------------------------------------------------------------------------------------------------ */

enum { N_NEW = 5 };
struct ask { const char *media, *text, *policy; bool trim; uint32_t n; };
static const struct ask ASKS[] = {
    { NULL, "Say something.", "none", false, 2 },
    { FILM, "What happens here?", "omnidrop", true, 1 },
    { FILM, "And what is heard?", "ttm", false, 1 },
};
enum { N_ASKS = sizeof ASKS / sizeof *ASKS };

struct seen {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t n_done, n_ids[N_ASKS], n_failed;
    int32_t id[N_ASKS][2 * N_NEW];
    status failed[N_ASKS];
};
struct one { struct seen *s; int i; struct policy_params p; };

static void watch(void *self, const struct service_event *ev)
{
    struct one *o = self;
    struct seen *s = o->s;
    pthread_mutex_lock(&s->lock);
    if (ev->kind == SERVICE_TEXT) s->id[o->i][s->n_ids[o->i]++] = ev->token[0].id * 2 + (int32_t)ev->choice;
    if (ev->kind == SERVICE_DONE) {
        s->failed[o->i] = ev->error ? ev->error->code : OK;
        s->n_failed += ev->error != NULL;
        s->n_done++;
        pthread_cond_signal(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
}

/* All asks through a service of their own. Returns what became of them. */
static struct seen run(struct engine *en, bool *dead)
{
    struct seen s = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
    const struct service_options so = { .itl_target_s = 1e-6 };
    struct service *sv;
    struct one one[N_ASKS];
    struct err e;
    uint32_t sent = 0;
    *dead = false;
    if (service_open(en, &so, &sv, &e) != OK) fail_msg("%s", e.text);
    for (int i = 0; i < N_ASKS; i++) {
        const struct ask *a = &ASKS[i];
        one[i] = (struct one){ .s = &s, .i = i };
        assert_int_equal(prune_params_init(&one[i].p, a->policy, engine_config(en)->text.layers, &e), OK);
        if (a->trim) assert_int_equal(prune_params_set(&one[i].p, "trim", 1, &e), OK);
        assert_int_equal(prune_params_finish(&one[i].p, &e), OK);
        struct service_request rq = { .o = eng_request_defaults(), .n_choices = a->n, .event = watch, .self = &one[i] };
        rq.o.max_tokens = N_NEW;
        rq.o.ignore_eos = true;
        rq.o.audio_in_video = true;
        rq.o.policy = &one[i].p;
        rq.o.max_pixels = 28 * 28 * 16;
        chat_init(&rq.chat);
        assert_int_equal(chat_add_message(&rq.chat, CHAT_USER, &e), OK);
        if (a->media) assert_int_equal(chat_add_media(&rq.chat, PART_VIDEO, a->media, &e), OK);
        assert_int_equal(chat_add_text(&rq.chat, a->text, strlen(a->text), &e), OK);
        uint64_t id;
        const status st = service_submit(sv, &rq, &id, &e);
        if (st == OK) {
            sent++;
            continue;
        }
        assert_int_equal(st, E_DEVICE);
        assert_string_equal(e.tag, "engine_dead");
        s.failed[i] = st;
        s.n_failed++;
        chat_free(&rq.chat);
    }
    pthread_mutex_lock(&s.lock);
    while (s.n_done < sent) pthread_cond_wait(&s.changed, &s.lock);
    pthread_mutex_unlock(&s.lock);
    struct service_gauges g;
    service_read(sv, &g);
    *dead = g.device_failed;
    service_close(&sv);
    assert_int_equal(engine_pages_free(en), engine_info(en)->n_pages);
    return s;
}

static void test_every_op(void **state)
{
    (void)state;
    const struct engine_options eo = { .n_threads = 2 };
    struct engine *en;
    struct err e;
    bool dead;
    if (engine_open(&eo, &en, &e) != OK) fail_msg("%s", e.text);
    const struct ops *table = en->ops;
    patch(table, true);
    const struct seen want = run(en, &dead);
    assert_int_equal(want.n_failed, 0);
    int calls[N_OPS];
    for (int op = 0; op < N_OPS; op++) calls[op] = atomic_load(&n_calls[op]);
    uint32_t n_runs = 0, hurt = 0, spared = 0;
    for (int op = 0; op < N_OPS; op++) {
        if (calls[op] == 0) {
            print_message("%s is not called by these requests\n", OP_NAME[op]);
            continue;
        }
        for (int k = 0; k < 8; k++) {
            atomic_store(&code, k % 2 ? E_DEVICE : E_NOMEM);
            atomic_store(&countdown, 1 + calls[op] * (k / 2) / 4);
            atomic_store(&which, op);
            const struct seen got = run(en, &dead);
            atomic_store(&which, -1);
            n_runs++;
            if (k % 2) assert_true(dead || got.n_failed == 0);
            else assert_false(dead);
            for (int i = 0; i < N_ASKS; i++) {
                if (got.failed[i] != OK) {
                    assert_int_equal(got.failed[i], k % 2 ? E_DEVICE : E_NOMEM);
                    hurt++;
                    continue;
                }
                spared++;
                assert_int_equal(got.n_ids[i], want.n_ids[i]);
                /* Two choices take turns: compare each one's own sequence. */
                for (int choice = 0; choice < 2; choice++) {
                    uint32_t a = 0, b = 0;
                    for (;;) {
                        while (a < got.n_ids[i] && got.id[i][a] % 2 != choice) a++;
                        while (b < want.n_ids[i] && want.id[i][b] % 2 != choice) b++;
                        if (a == got.n_ids[i] || b == want.n_ids[i]) break;
                        assert_int_equal(got.id[i][a++], want.id[i][b++]);
                    }
                }
            }
        }
    }
    print_message("%u runs: %u requests failed, %u were spared\n", n_runs, hurt, spared);
    assert_true(hurt > 50 && spared > 50);
    patch(table, false);
    const struct seen last = run(en, &dead);
    assert_int_equal(last.n_failed, 0);
    assert_memory_equal(last.n_ids, want.n_ids, sizeof want.n_ids);
    engine_close(&en);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_every_op) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
