/* One rank without a launcher. Goal: every call of comm.h works, or says what is wrong, where there is nobody else; the
 * launchers' environments are read as they are written. Method: each call, odd sizes, several threads on one inbox. Sums in
 * rank order and the shared objects of NCCL are tried here too, since they need no launcher. */
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/clock.h"
#include "comm/inside.h"

static struct comm *open_self(void)
{
    struct err e;
    struct comm *c = NULL;
    assert_int_equal(comm_self_open(&c, &e), OK);
    return c;
}

static const char *const launcher_env[] = { "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS",
                                            "PMIX_RANK", "PMIX_NAMESPACE" };
static void no_launcher(void)
{
    for (size_t i = 0; i < sizeof launcher_env / sizeof *launcher_env; i++) unsetenv(launcher_env[i]);
}

static void test_launched(void **state)
{
    (void)state;
    uint32_t n = 99;
    no_launcher();
    assert_false(comm_launched(&n));
    assert_int_equal(n, 1);
    for (size_t i = 0; i < 4; i++) {
        no_launcher();
        setenv(launcher_env[i], "4", 1);
        assert_true(comm_launched(&n));
        assert_int_equal(n, 4);
        setenv(launcher_env[i], "1", 1);
        assert_false(comm_launched(&n));
        static const char *const junk[] = { "", "0", "-2", "four", "4x", "99999999999" };
        for (size_t k = 0; k < sizeof junk / sizeof *junk; k++) {
            setenv(launcher_env[i], junk[k], 1);
            assert_false(comm_launched(&n));
        }
    }
    no_launcher();
    setenv("PMIX_RANK", "0", 1);
    assert_false(comm_launched(&n));
    setenv("PMIX_NAMESPACE", "x", 1);
    assert_true(comm_launched(&n));
    assert_int_equal(n, 0);
    no_launcher();
}

static void test_world_alone(void **state)
{
    (void)state;
    struct comm *c = NULL;
    struct err e;
    const struct comm_options o = { .build = "abc" };
    no_launcher();
    assert_int_equal(comm_world_open(&o, &c, &e), OK);
    assert_string_equal(comm_name(c), "self");
    assert_string_equal(comm_peer(c, 0)->build, "abc");
    comm_close(&c);
    assert_null(c);
    comm_close(&c);
    /* A launcher whose MPI is not here. */
    setenv("OMPI_COMM_WORLD_SIZE", "3", 1);
    setenv("OMNIDROP_LIB", "/nowhere", 1);
    assert_int_equal(comm_world_open(&o, &c, &e), E_MODEL);
    assert_null(c);
    assert_non_null(strstr(e.text, "one of 3 ranks"));
    assert_non_null(strstr(e.text, "openmpi-bin"));
    unsetenv("OMNIDROP_LIB");
    no_launcher();
}

static void test_calls(void **state)
{
    (void)state;
    struct comm *c = open_self();
    struct err e;
    assert_int_equal(comm_rank(c), 0);
    assert_int_equal(comm_size(c), 1);
    assert_int_equal(comm_peer(c, 0)->pid, getpid());
    assert_int_equal(comm_peer(c, 0)->n_local, 1);
    assert_true(comm_peer(c, 0)->host[0] != 0);
    assert_false(comm_attached(c));
    assert_false(comm_dead(c, 0, &e));
    uint32_t r;
    assert_false(comm_any_dead(c, &r, &e));
    comm_on_death(c, NULL, NULL);
    char text[256] = "";
    comm_versions(c, text, sizeof text);
    assert_non_null(strstr(text, "no MPI"));

    static const size_t sizes[] = { 0, 1, 3, 4097, 1000003 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t n = sizes[i];
        float *x = malloc((n + 1) * sizeof *x), *y = malloc((n + 1) * sizeof *y);
        for (size_t k = 0; k <= n; k++) x[k] = y[k] = (float)k - 0.5f;
        x[0] = y[0] = -0.0f;
        assert_int_equal(comm_all_reduce(c, NULL, x, n, &e), OK);
        assert_memory_equal(x, y, (n + 1) * sizeof *x);
        const size_t bytes[1] = { n * sizeof *x };
        memset(y, 0, (n + 1) * sizeof *y);
        assert_int_equal(comm_all_gather(c, NULL, x, y, bytes, &e), OK);
        if (n > 0) assert_memory_equal(x, y, n * sizeof *x);
        assert_true(y[n] == 0);
        memset(y, 0, (n + 1) * sizeof *y);
        assert_int_equal(comm_gather(c, NULL, 0, x, y, bytes, &e), OK);
        if (n > 0) assert_memory_equal(x, y, n * sizeof *x);
        assert_int_equal(comm_gather(c, NULL, 0, y, y, bytes, &e), OK);        /* in its place */
        if (n > 0) assert_memory_equal(x, y, n * sizeof *x);
        assert_int_equal(comm_broadcast(c, NULL, 0, x, n * sizeof *x, &e), OK);
        if (n > 0) assert_memory_equal(x, y, n * sizeof *x);
        free(x);
        free(y);
    }
    assert_int_equal(comm_barrier(c, &e), OK);
    uint8_t b = 0;
    assert_int_equal(comm_send(c, NULL, 0, &b, 1, &e), E_ARG);
    assert_non_null(strstr(e.text, "itself"));
    assert_int_equal(comm_recv(c, NULL, 0, &b, 1, &e), E_ARG);
    assert_int_equal(comm_send(c, NULL, 1, &b, 1, &e), E_ARG);
    assert_int_equal(comm_broadcast(c, NULL, 1, &b, 1, &e), E_ARG);
    assert_int_equal(comm_gather(c, NULL, UINT32_MAX, &b, &b, (size_t[]){ 1 }, &e), E_ARG);
    assert_int_equal(comm_broadcast(c, NULL, UINT32_MAX, &b, 1, &e), E_ARG);

    struct comm *g = NULL, *none = c;
    assert_int_equal(comm_split(c, 5, 1, &g, &e), OK);
    assert_int_equal(comm_size(g), 1);
    assert_int_equal(comm_barrier(g, &e), OK);
    assert_int_equal(comm_split(g, UINT32_MAX, 0, &none, &e), OK);
    assert_null(none);
    comm_close(&g);
    comm_close(&c);
}

static void test_messages(void **state)
{
    (void)state;
    struct comm *c = open_self(), *g = NULL;
    struct comm_message m;
    struct err e;
    bool got = true;
    assert_int_equal(comm_take(c, COMM_ANY, COMM_ANY, 0, &m, &got, &e), OK);
    assert_false(got);
    const double start = clock_s();
    assert_int_equal(comm_take(c, 0, 3, 0.05, &m, &got, &e), OK);
    assert_true(!got && clock_s() - start >= 0.05);
    assert_int_equal(comm_split(c, 0, 0, &g, &e), OK);
    /* In order of coming; by tag past others; empty ones; a group's are its own. */
    for (uint32_t i = 0; i < 5; i++) assert_int_equal(comm_post(c, 0, i % 2, &i, i, &e), OK);
    assert_int_equal(comm_post(c, 0, 1023, NULL, 0, &e), OK);
    assert_int_equal(comm_take(g, COMM_ANY, COMM_ANY, 0, &m, &got, &e), OK);
    assert_false(got);
    static const uint32_t order[] = { 1, 3, 0, 2, 4 };
    for (uint32_t k = 0; k < 5; k++) {
        assert_int_equal(comm_take(c, COMM_ANY, order[k] % 2, INFINITY, &m, &got, &e), OK);
        assert_true(got && m.from == 0 && m.tag == order[k] % 2 && m.n == order[k]);
        assert_memory_equal(m.bytes, &order[k], m.n < 4 ? m.n : 4);
        free(m.bytes);
        if (k == 2) assert_int_equal(comm_post(c, 0, 7, "z", 1, &e), OK);
    }
    assert_int_equal(comm_take(c, 0, COMM_ANY, 0, &m, &got, &e), OK);
    assert_true(got && m.tag == 1023 && m.n == 0);
    free(m.bytes);
    assert_int_equal(comm_take(c, 0, COMM_ANY, 0, &m, &got, &e), OK);
    assert_true(got && m.tag == 7 && m.n == 1);
    free(m.bytes);
    assert_int_equal(comm_post_all(c, 0, "x", 1, &e), OK);      /* nobody */
    assert_int_equal(comm_take(c, COMM_ANY, COMM_ANY, 0, &m, &got, &e), OK);
    assert_false(got);
    assert_int_equal(comm_post(c, 1, 0, "x", 1, &e), E_ARG);
    assert_int_equal(comm_post(c, 0, 1024, "x", 1, &e), E_ARG);
    assert_int_equal(comm_take(c, 1, 0, 0, &m, &got, &e), E_ARG);
    assert_int_equal(comm_take(c, 0, 1024, 0, &m, &got, &e), E_ARG);
    comm_go_on(c);
    assert_int_equal(comm_post(c, 0, 1, "left in the inbox", 18, &e), OK);
    comm_close(&g);
    comm_close(&c);
}

enum { EACH = 500 };
static void *post_many(void *arg)
{
    struct comm *c = arg;
    struct err e;
    for (uint32_t i = 0; i < EACH; i++)
        for (uint32_t tag = 0; tag < 3; tag++)
            if (comm_post(c, 0, tag, &i, sizeof i, &e) != OK) return arg;
    return NULL;
}

struct taking { struct comm *c; uint32_t tag; bool ok; };
static void *take_many(void *arg)
{
    struct taking *t = arg;
    struct err e;
    t->ok = true;
    for (uint32_t i = 0; t->ok && i < EACH; i++) {
        struct comm_message m;
        bool got = false;
        t->ok = comm_take(t->c, COMM_ANY, t->tag, 30, &m, &got, &e) == OK && got && m.tag == t->tag && memcmp(m.bytes, &i, 4) == 0;
        if (got) free(m.bytes);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct comm *c = open_self();
    struct taking t[3];
    pthread_t taker[3], poster;
    for (uint32_t i = 0; i < 3; i++) {
        t[i] = (struct taking){ .c = c, .tag = i };
        pthread_create(&taker[i], NULL, take_many, &t[i]);
    }
    pthread_create(&poster, NULL, post_many, c);
    void *bad;
    pthread_join(poster, &bad);
    assert_null(bad);
    for (int i = 0; i < 3; i++) {
        pthread_join(taker[i], NULL);
        assert_true(t[i].ok);
    }
    comm_close(&c);
}

/* Left to right, whatever is added where. */
static void test_order(void **state)
{
    (void)state;
    enum { N = 5000, RANKS = 7 };
    static float v[RANKS][N], want[N], x[N];
    const float *in[RANKS];
    for (uint32_t r = 0; r < RANKS; r++) {
        in[r] = v[r];
        for (size_t i = 0; i < N; i++)
            v[r][i] = ldexpf((float)((i * 2654435761u + r * 40503u) % 65521) - 32000, (int)((i * 7 + r * 13) % 60) - 30);
    }
    for (uint32_t n_v = 1; n_v <= RANKS; n_v++)
        for (size_t n = 0; n <= N; n = n * 3 + 1) {
            bool differs = false;
            for (size_t i = 0; i < n; i++) {
                want[i] = v[0][i];
                for (uint32_t r = 1; r < n_v; r++) want[i] += v[r][i];
                float back = v[n_v - 1][i];
                for (uint32_t r = n_v - 1; r-- > 0;) back += v[r][i];
                differs = differs || back != want[i];
            }
            if (n > 1000 && n_v > 2) assert_true(differs);      /* the order can be seen in the bits */
            sum_in_order(x, in, n_v, n);
            assert_memory_equal(x, want, n * sizeof *x);
        }
    sum_in_order(x, in, RANKS, N);
    sum_in_order(v[RANKS - 1], in, RANKS, N);                   /* in place */
    assert_memory_equal(v[RANKS - 1], x, N * sizeof *x);
}

/* What NCCL does without a device: its version, and ids that differ. */
static void test_nccl(void **state)
{
    (void)state;
    struct comm *c = open_self();
    char text[256];
    comm_versions(c, text, sizeof text);
    const struct nccl_lib *lib = dlsym(RTLD_DEFAULT, NCCL_LIB_SYMBOL);
    if (lib == NULL) {
        assert_non_null(strstr(text, "no NCCL"));
        comm_close(&c);
        skip();
    }
    assert_int_equal(lib->abi, NCCL_LIB_ABI);
    assert_non_null(strstr(text, "NCCL 2."));
    uint8_t a[NCCL_ID_BYTES], b[NCCL_ID_BYTES];
    assert_int_equal(lib->id(a), 0);
    assert_int_equal(lib->id(b), 0);
    assert_memory_not_equal(a, b, sizeof a);
    struct err e;
    assert_int_equal(comm_attach(c, NULL, NULL, 9999, &e), E_MODEL);
    assert_non_null(strstr(e.text, "NCCL"));
    comm_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_launched), cmocka_unit_test(test_world_alone), cmocka_unit_test(test_calls),
        cmocka_unit_test(test_messages), cmocka_unit_test(test_threads),     cmocka_unit_test(test_order),
        cmocka_unit_test(test_nccl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
