/* Goal: JSON from strangers is bounded, and every refusal names the file, the place and what was wrong.
 * Method: texts that break one rule each, checked by code and by the words of the message. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"

static const struct doc_limits small = { .bytes_max = 4096, .depth_max = 5, .code = E_MODEL };

#define MUST_OK(expr)                                                                                        \
    do {                                                                                                     \
        if ((expr) != OK) fail_msg("%s", e.text);                                                            \
    } while (0)

/* The call failed with E_MODEL and says `words`. */
static void says(status st, const struct err *e, const char *words)
{
    assert_int_equal(st, E_MODEL);
    if (strstr(e->text, words) == NULL) fail_msg("'%s' does not say '%s'", e->text, words);
}

static void refuses_broken_texts(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } bad[] = {
        { "", "t.json: line 1" },
        { "{\"a\": 1", "not valid JSON" },
        { "{\"a\": 1} x", "line 1, column 10" },
        { "{\"a\": 1,\n \"a\": 2}", "line 2" },
        { "{\"a\": 1,\n \"a\": 2}", "duplicate" },
        { "[[[[[[]]]]]]", "line 1: nested 6 deep, 5 are allowed" },
        { "[1, NaN]", "not valid JSON" },
        { "[1e999]", "not valid JSON" },
        { "[99999999999999999999]", "too big integer" },
        { "[\"\xff\"]", "unable to decode byte 0xff" },
        { "[\"\\ud800\"]", "not valid JSON" },
        { "[\"a\\u0000b\"]", "\\u0000" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct doc d;
        struct err e;
        says(doc_parse(bad[i].text, strlen(bad[i].text), "t.json", &small, &d, &e), &e, bad[i].words);
    }
}

static void depth_counts_brackets_outside_strings(void **state)
{
    (void)state;
    struct doc d;
    struct err e;
    const char *text = "[[[[[\"[[[[\\\"[[[\"]]]], [[[[1]]]]]";
    MUST_OK(doc_parse(text, strlen(text), "t.json", &small, &d, &e));
    doc_close(&d);
}

static void size_limit_holds_for_files_and_buffers(void **state)
{
    (void)state;
    char *big = malloc(5000);
    assert_non_null(big);
    memset(big, ' ', 5000);
    struct doc d;
    struct err e;
    says(doc_parse(big, 5000, "big", &small, &d, &e), &e, "5000 bytes of JSON are more than the 4096");
    char path[] = "/tmp/test_json_XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, big, 5000), 5000);
    close(fd);
    says(doc_load(path, &small, &d, &e), &e, "at most 4096");
    unlink(path);
    says(doc_load(path, &small, &d, &e), &e, "No such file");
    says(doc_load("/tmp", &small, &d, &e), &e, "not a regular file");
    free(big);
}

static void getters_check_kind_range_and_name_the_path(void **state)
{
    (void)state;
    static const char text[] =
        "{\"t\": {\"i\": 7, \"f\": 1.5, \"two\": 2.0, \"s\": \"x\", \"b\": true, \"z\": null,"
        " \"a\": [1, 2, \"3\"]}, \"list\": [{\"k\": 1}, {\"k\": \"no\"}]}";
    struct doc d;
    struct err e;
    struct doc_at root, t, list, el, any;
    int64_t i = -1, three[3];
    uint32_t u;
    double f;
    bool b = false;
    const char *s;
    MUST_OK(doc_parse(text, sizeof text - 1, "c.json", &small, &d, &e));
    doc_root(&d, &root);
    MUST_OK(doc_object(&root, "t", &t, &e));
    MUST_OK(doc_int(&t, "i", 0, 7, &i, &e));
    assert_int_equal(i, 7);
    MUST_OK(doc_double(&t, "f", 0, 2, &f, &e));
    assert_true(f == 1.5);
    MUST_OK(doc_double(&t, "i", 0, 10, &f, &e));
    assert_true(f == 7);
    MUST_OK(doc_bool(&t, "b", &b, &e));
    assert_true(b);
    MUST_OK(doc_string(&t, "s", &s, &e));
    assert_string_equal(s, "x");
    assert_false(doc_has(&t, "z"));
    u = 5;
    MUST_OK(doc_opt_u32(&t, "z", 0, 1, &u, &e));
    assert_int_equal(u, 5);
    says(doc_int(&t, "i", 0, 6, &i, &e), &e, "c.json: t.i: is 7, must be 0 to 6");
    says(doc_int(&t, "two", 0, 6, &i, &e), &e, "t.two: is a number with a fraction, an integer is needed");
    says(doc_int(&t, "none", 0, 6, &i, &e), &e, "t.none: is missing");
    says(doc_opt_int(&t, "s", 0, 6, &i, &e), &e, "t.s: is a string");
    says(doc_double(&t, "f", 2, 3, &f, &e), &e, "is 1.5, must be 2 to 3");
    says(doc_bool(&t, "i", &b, &e), &e, "t.i: is an integer, true or false");
    says(doc_string(&t, "b", &s, &e), &e, "a string is needed");
    says(doc_object(&t, "a", &any, &e), &e, "t.a: is an array, an object");
    says(doc_array(&t, "s", &any, &e), &e, "an array is needed");
    says(doc_ints(&t, "a", 3, 0, 9, three, &e), &e, "t.a[2]: is a string");
    says(doc_ints(&t, "a", 2, 0, 9, three, &e), &e, "t.a: has 3 elements, must have 2");
    MUST_OK(doc_any(&t, "i", &el, &e));
    says(doc_any(&el, "x", &any, &e), &e, "t.i: is an integer, an object is needed");
    MUST_OK(doc_array(&root, "list", &list, &e));
    assert_int_equal(doc_count(&list), 2);
    doc_element(&list, 1, &el);
    says(doc_int(&el, "k", 0, 1, &i, &e), &e, "list[1].k: is a string");
    static const char *const known[] = { "i", "f", "two", "s", "b", "a", NULL };
    says(doc_only(&t, known, &e), &e, "t.z: is an unknown key; known are i, f, two");
    assert_int_equal(i, 7);
    doc_close(&d);
}

static void strings_may_hold_nul_only_where_allowed(void **state)
{
    (void)state;
    struct doc_limits chat = small;
    chat.allow_nul = true;
    chat.code = E_ARG;
    struct doc d;
    struct err e;
    struct doc_at root, el;
    const char *s;
    size_t n;
    MUST_OK(doc_parse("[\"a\\u0000b\"]", 12, "m", &chat, &d, &e));
    doc_root(&d, &root);
    doc_element(&root, 0, &el);
    MUST_OK(doc_as_string(&el, &s, &n, &e));
    assert_int_equal(n, 3);
    assert_int_equal(doc_as_string(&el, &s, NULL, &e), E_ARG);
    doc_close(&d);
}

/* Requests: every refusal has the code and the place that the HTTP interface gives to the client. */
static void requests_get_tags_and_params(void **state)
{
    (void)state;
    static const struct doc_limits limits = { .bytes_max = 4096, .depth_max = 5, .code = E_ARG };
    struct err e;
    struct doc d;
    struct doc_at root, m;
    int64_t i;
    double x;
    const char *s;
    assert_int_equal(doc_parse("{\"a\":", 5, "request", &limits, &d, &e), E_ARG);
    assert_string_equal(e.tag, "invalid_json");
    assert_int_equal(doc_parse("[[[[[[]]]]]]", 12, "request", &limits, &d, &e), E_ARG);
    assert_string_equal(e.tag, "json_too_complex");
    static const char text[] = "{\"a\":{\"n\":5,\"r\":0.5,\"big\":1e99,\"s\":\"x\"}}";
    MUST_OK(doc_parse(text, sizeof text - 1, "request", &limits, &d, &e));
    doc_root(&d, &root);
    MUST_OK(doc_object(&root, "a", &m, &e));
#define REFUSED(call, code, place)                                                                           \
    do {                                                                                                     \
        assert_int_equal(call, E_ARG);                                                                       \
        assert_string_equal(e.tag, code);                                                                    \
        assert_string_equal(e.param, place);                                                                 \
    } while (0)
    REFUSED(doc_int(&m, "n", 6, 9, &i, &e), "invalid_value", "a.n");
    REFUSED(doc_int(&m, "big", 0, 9, &i, &e), "invalid_value", "a.big");
    REFUSED(doc_int(&m, "r", 0, 9, &i, &e), "invalid_type", "a.r");
    REFUSED(doc_double(&m, "s", 0, 9, &x, &e), "invalid_type", "a.s");
    REFUSED(doc_double(&m, "r", 1, 9, &x, &e), "invalid_value", "a.r");
    REFUSED(doc_string(&m, "t", &s, &e), "missing_required_parameter", "a.t");
    assert_int_equal(doc_err(&m, &e, "is odd"), E_ARG);
    assert_null(e.tag);
    assert_string_equal(e.param, "a");
    REFUSED(doc_err_as(&m, "unsupported_parameter", &e, "is odd"), "unsupported_parameter", "a");
    assert_int_equal(doc_int(&m, "n", 6, 9, &i, NULL), E_ARG);
    doc_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_broken_texts),
        cmocka_unit_test(depth_counts_brackets_outside_strings),
        cmocka_unit_test(size_limit_holds_for_files_and_buffers),
        cmocka_unit_test(getters_check_kind_range_and_name_the_path),
        cmocka_unit_test(strings_may_hold_nul_only_where_allowed),
        cmocka_unit_test(requests_get_tags_and_params),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
