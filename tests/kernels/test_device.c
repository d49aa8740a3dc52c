/* tests/kernels/test_device.c - the seam between tests of kernels and a GPU (device.h), with a CUDA runtime of the test's own whose
 * device memory is other memory of the host: what a launcher is given lies there, what it writes comes back, and lists that a
 * device could not read are refused. */
#include "tests/kernels/device.h"
#include "tests/kernels/twin.h"

/* ---- the runtime ------------------------------------------------------------------------------------------- */

int cudaMalloc(void **out, size_t bytes);
int cudaFree(void *p);
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind);
int cudaDeviceSynchronize(void);
const char *cudaGetErrorString(int rc);

static int n_there, sync_fails;
static size_t largest;

int cudaMalloc(void **out, size_t bytes)
{
    n_there++;
    if (bytes > largest) largest = bytes;
    return (*out = malloc(bytes)) == NULL;
}
int cudaFree(void *p)
{
    n_there--;
    free(p);
    return 0;
}
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind)
{
    (void)kind;
    memcpy(to, from, bytes);
    return 0;
}
int cudaDeviceSynchronize(void) { return sync_fails; }
const char *cudaGetErrorString(int rc) { return rc == 7 ? "an illegal access" : "?"; }

/* ---- a launcher -------------------------------------------------------------------------------------------- */

struct add_args { const float *x; uint32_t n, more; float *y; const uint32_t *list; double factor; };
static const struct add_args *last;
static bool away;                  /* nothing that it was given was the host's own */
static const float *host_x;
static float *host_y;

static status add(void *stream, const struct add_args *a, struct err *e)
{
    (void)stream;
    last = a;
    if (a->n == 0) return err_set(e, E_ARG, "add: no rows");
    away = a->x != host_x && a->y != host_y && (a->list == NULL || a->list != (const uint32_t *)(uintptr_t)host_x);
    for (uint32_t i = 0; i < a->n; i++) a->y[i] = a->x[i] + (float)a->factor + (a->list ? (float)a->list[i] : 0.0f);
    return OK;
}
#define add(stream, a, e) ON_DEVICE(add, struct add_args, a, e)

static void test_there_and_back(void **state)
{
    (void)state;
    twin_seed("device");
    for (uint32_t v = 0; v < 50; v++) {
        const uint32_t n = 1 + twin_below(500), skip = twin_below(5), behind = twin_below(5);
        float *x = twin_random_floats(skip + n), *y = twin_floats(n + behind);
        uint32_t *list = v % 2 ? twin_alloc(n * sizeof *list) : NULL;
        for (uint32_t i = 0; i < n && list; i++) list[i] = twin_below(9);
        host_x = x + skip, host_y = y;
        largest = 0;
        const struct add_args a = { x + skip, n, 7, y, list, 0.5 };
        TWIN_OK(add(NULL, &a, e));
        assert_true(away);
        assert_int_equal(n_there, 0);
        assert_int_equal(largest, sizeof(float) * (skip > behind ? skip + n : n + behind));
        assert_true(a.x == x + skip && a.y == y);
        for (uint32_t i = 0; i < n; i++) assert_true(y[i] == x[skip + i] + 0.5f + (list ? (float)list[i] : 0.0f));
        for (uint32_t i = n; i < n + behind; i++) assert_true(isnan(y[i]));
        free(x), free(y), free(list);
    }
    /* In place, by two pointers into one block. */
    float *x = twin_random_floats(20), was = x[13];
    host_x = x, host_y = x + 10;
    const struct add_args a = { x + 3, 10, 0, x + 10, NULL, 1 };
    x[3 + 3] = was;
    TWIN_OK(add(NULL, &a, e));
    assert_true(x[13] == was + 1 && last->y - last->x == 7);
    free(x);
}

static void test_refused(void **state)
{
    (void)state;
    static uint32_t fixed[4];
    uint32_t own[4] = { 0 };
    float *x = twin_random_floats(4), *y = twin_floats(4);
    struct err e = { 0 };
    struct add_args a = { x, 4, 0, y, own, 0 };
    assert_int_equal(add(NULL, &a, &e), E_ARG);
    assert_non_null(strstr(e.text, "not on the heap"));
    a.list = fixed;
    assert_int_equal(add(NULL, &a, &e), E_ARG);
    a.list = NULL, a.n = 0;
    assert_int_equal(add(NULL, &a, &e), E_ARG);          /* the launcher's own word comes through */
    assert_non_null(strstr(e.text, "no rows"));
    assert_int_equal(n_there, 0);
    for (int i = 0; i < 4; i++) assert_true(isnan(y[i]));
    a.n = 4, sync_fails = 7;
    assert_int_equal(add(NULL, &a, &e), E_DEVICE);       /* the kernel failed while it ran */
    assert_non_null(strstr(e.text, "add, while it ran: an illegal access"));
    sync_fails = 0;
    assert_int_equal(n_there, 0);
    free(x), free(y);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_there_and_back), cmocka_unit_test(test_refused) };
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
