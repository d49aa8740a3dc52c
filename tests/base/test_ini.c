/* Goal: an INI file is read as base/ini.h says, and what is wrong in it is told with its line. Method: texts with every
 * kind of line, quotes and blanks in odd places, files that are none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/ini.h"

static char path[64];

static void write_file(const char *text)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* Every line that the file gives as "line|section|key|value\n", sections alone without key and value. */
static status read_all(const char *text, char *out, size_t cap, struct err *e)
{
    struct ini in;
    bool more = true;
    size_t n = 0;
    write_file(text);
    out[0] = 0;
    status st = ini_open(path, E_MODEL, &in, e);
    while (st == OK && more) {
        st = ini_next(&in, &more, e);
        if (st != OK || !more) break;
        if (in.key) n += (size_t)snprintf(out + n, cap - n, "%d|%s|%s|%s\n", in.line, in.section, in.key, in.value);
        else n += (size_t)snprintf(out + n, cap - n, "%d|%s\n", in.line, in.section);
    }
    ini_close(&in);
    return st;
}

static void lines(void **state)
{
    (void)state;
    static const struct { const char *text, *want; } good[] = {
        { "", "" },
        { "\n\n# a\n ; b\n", "" },
        { "a=1\nb = 2", "1||a|1\n2||b|2\n" },
        { "[s]\na = 1\n[t]\n[s]\nb=", "1|s\n2|s|a|1\n3|t\n4|s\n5|s|b|\n" },
        { "  [s]  \n\t key \t=\t value of two words \t\r\n", "1|s\n2|s|key|value of two words\n" },
        { "a = b = c # no comment\n", "1||a|b = c # no comment\n" },
        { "a = \" x \"\nb = \"\\\"\\\\\\n|\"\n", "1||a| x \n2||b|\"\\\n|\n" },
        { "a = x\"y\n", "1||a|x\"y\n" },
        { "= 1\n", "1|||1\n" },
        { "[s] trailing\na=1\n", "1|s\n2|s|a|1\n" },
    };
    char out[512];
    struct err e;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        if (read_all(good[i].text, out, sizeof out, &e) != OK) fail_msg("%zu: %s", i, e.text);
        assert_string_equal(out, good[i].want);
    }
    char *longer = malloc(70000);
    assert_non_null(longer);
    memset(longer, 'x', 69999);
    memcpy(longer, "key = ", 6);
    longer[69999] = 0;
    struct ini in;
    bool more;
    write_file(longer);
    assert_int_equal(ini_open(path, E_ARG, &in, &e), OK);
    assert_int_equal(ini_next(&in, &more, &e), OK);
    assert_true(more && strlen(in.value) == 69999 - 6);
    assert_int_equal(ini_next(&in, &more, &e), OK);
    assert_false(more);
    ini_close(&in);
    free(longer);
}

static void refusals(void **state)
{
    (void)state;
    static const struct { const char *text, *line, *why; } bad[] = {
        { "[s\n", ":1: ", "without ]" },
        { "\n# c\nword\n", ":3: ", "\"word\": expected key = value" },
        { "a = \"x\n", ":1: ", "a: a quote without its end" },
        { "a = \"x\" y\n", ":1: ", "quote" },
        { "a = \"x\\\n", ":1: ", "quote" },
        { "a = \"\\\"\n", ":1: ", "quote" },
    };
    char out[512];
    struct err e;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read_all(bad[i].text, out, sizeof out, &e), E_MODEL);
        assert_memory_equal(e.text, path, strlen(path));
        if (strstr(e.text, bad[i].line) == NULL || strstr(e.text, bad[i].why) == NULL) fail_msg("%zu: %s", i, e.text);
    }
    struct ini in;
    assert_int_equal(ini_open("/nonexistent/a.ini", E_ARG, &in, &e), E_ARG);
    assert_string_equal(e.text, "/nonexistent/a.ini: No such file or directory");
    ini_close(&in);
    assert_int_equal(ini_open("/", E_MODEL, &in, &e), E_MODEL);
    assert_string_equal(e.text, "/: Is a directory");
    ini_close(&in);
}

static void errors_of_the_caller(void **state)
{
    (void)state;
    struct ini in;
    struct err e;
    bool more;
    char want[128];
    write_file("\n\na = 1\n");
    assert_int_equal(ini_open(path, E_MODEL, &in, &e), OK);
    assert_int_equal(ini_next(&in, &more, &e), OK);
    err_set(&e, E_ARG, "a is 1");
    assert_int_equal(ini_err(&in, &e), E_MODEL);
    assert_int_equal(e.code, E_MODEL);
    snprintf(want, sizeof want, "%s:3: a is 1", path);
    assert_string_equal(e.text, want);
    ini_close(&in);
}

static int setup(void **state)
{
    (void)state;
    strcpy(path, "/tmp/test_ini_XXXXXX");
    const int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(lines), cmocka_unit_test(refusals),
                                        cmocka_unit_test(errors_of_the_caller) };
    return cmocka_run_group_tests(tests, setup, teardown);
}
