/* tests/kernels/test_stream.c - which device and which instruction set a stream gets.
 * Method: open by name, by environment and by mistake, and read what it says about itself. */
#include "kernels/device.h"
#include "tests/kernels/twin.h"

/* Every instruction set opens by its name; the first is the one that is taken unasked. */
static void test_names(void **state)
{
    (void)state;
    char text[256], first[256];
    unsetenv("OMNIDROP_ISA");
    uint32_t n = 0;
    for (const char *const *isa = cpu_isas(); *isa != NULL; isa++, n++) {
        struct stream *st = twin_open(*isa, 2);
        st->ops->describe(st, text, sizeof text);
        assert_non_null(strstr(text, *isa));
        assert_non_null(strstr(text, "2 threads"));
        if (n == 0) memcpy(first, text, sizeof first);
        assert_string_equal(st->ops->name, "cpu");
        st->ops->close(&st);
        st = NULL;
    }
    assert_true(n >= 1);
    struct stream *st = twin_open(NULL, 2);
    st->ops->describe(st, text, sizeof text);
    assert_string_equal(text, first);
    st->ops->close(&st);
    st = twin_open(NULL, 1);
    st->ops->describe(st, text, sizeof text);
    assert_null(strstr(text, "threads"));
    st->ops->close(&st);
}

/* OMNIDROP_ISA comes before the best, and after what the caller names. */
static void test_environment(void **state)
{
    (void)state;
    char text[256];
    setenv("OMNIDROP_ISA", "plain", 1);
    struct stream *st = twin_open(NULL, 1);
    st->ops->describe(st, text, sizeof text);
    assert_non_null(strstr(text, "plain"));
    st->ops->close(&st);
    st = twin_open(cpu_isas()[0], 1);
    st->ops->describe(st, text, sizeof text);
    assert_non_null(strstr(text, cpu_isas()[0]));
    st->ops->close(&st);
    setenv("OMNIDROP_ISA", "sse17", 1);
    struct err err;
    const struct stream_options o = { .n_threads = 1 };
    assert_int_equal(stream_open(&o, &st, &err), E_MODEL);
    assert_non_null(strstr(err.text, "sse17"));
    assert_non_null(strstr(err.text, "plain"));              /* what there is */
    unsetenv("OMNIDROP_ISA");
}

/* A device that is not there is E_MODEL and says what to do; too many threads are E_ARG. */
static void test_refuse(void **state)
{
    (void)state;
    struct stream *st = NULL;
    struct err err;
    char text[512] = "";
    const struct stream_options cuda = { .device = "cuda" }, other = { .device = "tpu" },
                                many = { .n_threads = 100000 };
    /* CUDA: without the shared object; with it where there is a GPU, else with CUDA's own words. */
    setenv("OMNIDROP_LIB", "/nowhere", 1);
    assert_int_equal(stream_open(&cuda, &st, &err), E_MODEL);
    assert_non_null(strstr(err.text, "omnidrop-cuda.so"));
    assert_non_null(strstr(err.text, "--device cpu"));
    assert_false(device_cuda_backend(text, sizeof text));
    assert_non_null(strstr(text, "omnidrop-cuda.so"));
    unsetenv("OMNIDROP_LIB");
    if (stream_open(&cuda, &st, &err) == OK) {
        st->ops->close(&st);
    } else {
        assert_int_equal(err.code, E_MODEL);
        assert_non_null(strstr(err.text, "--device cpu"));
    }
    assert_int_equal(stream_open(&other, &st, &err), E_MODEL);
    assert_non_null(strstr(err.text, "tpu"));
    assert_int_equal(stream_open(&many, &st, &err), E_ARG);
    assert_null(st);
    device_cuda_driver(text, sizeof text);
    assert_non_null(strstr(text, "CUDA"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_refuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
