/* tests/bare/cmocka/cmocka.h - in place of cmocka on a machine that lacks its headers (docs/cuda.md, gpu-check): what the tests
 * of the kernels use. A test that fails is named, the next one runs. Prints TAP. One test program a process. */
#ifndef TESTS_BARE_CMOCKA_H
#define TESTS_BARE_CMOCKA_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static jmp_buf bare_failed;

struct CMUnitTest { const char *name; void (*run)(void **); int (*up)(void **), (*down)(void **); };
#define cmocka_unit_test(f)                          { #f, f, NULL, NULL }
#define cmocka_unit_test_setup_teardown(f, up, down) { #f, f, up, down }

__attribute__((unused, noreturn, format(printf, 3, 4))) static void bare_fail(const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf("# %s:%d: ", file, line);
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
    longjmp(bare_failed, 1);
}
#define fail_msg(...) bare_fail(__FILE__, __LINE__, __VA_ARGS__)
#define BARE_IF(ok)   do { if (!(ok)) bare_fail(__FILE__, __LINE__, "%s", #ok); } while (0)
#define assert_true(x)                BARE_IF(x)
#define assert_false(x)               BARE_IF(!(x))
#define assert_null(x)                BARE_IF((x) == NULL)
#define assert_non_null(x)            BARE_IF((x) != NULL)
#define assert_int_equal(a, b)        BARE_IF((a) == (b))
#define assert_string_equal(a, b)     BARE_IF(strcmp(a, b) == 0)
#define assert_memory_equal(a, b, n)  BARE_IF(memcmp(a, b, n) == 0)
#define print_message(...)            (void)(printf("# "), printf(__VA_ARGS__))

__attribute__((unused)) static int bare_run(const struct CMUnitTest *test, size_t n, int (*up)(void **), int (*down)(void **))
{
    volatile int bad = 0;
    void *state = NULL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("1..%zu\n", n);
    if (up && up(&state) != 0) return printf("not ok 1 - set-up\n"), 1;
    for (volatile size_t i = 0; i < n; i++) {
        if (setjmp(bare_failed) == 0) {
            if (test[i].up && test[i].up(&state) != 0) fail_msg("set-up failed");
            test[i].run(&state);
            if (test[i].down) test[i].down(&state);
            printf("ok %zu - %s\n", i + 1, test[i].name);
        } else {
            bad++;
            printf("not ok %zu - %s\n", i + 1, test[i].name);
        }
    }
    if (down) down(&state);
    return bad;
}
#define cmocka_run_group_tests_name(name, tests, up, down) bare_run(tests, sizeof(tests) / sizeof *(tests), up, down)
#define cmocka_run_group_tests(tests, up, down)            bare_run(tests, sizeof(tests) / sizeof *(tests), up, down)

#endif
