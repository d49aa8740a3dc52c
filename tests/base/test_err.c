/* Goal: an error is text, whatever it quotes and wherever it was cut, and keeps its first tag and place.
 * Method: characters of every length, and bytes that are none, at every place of the ends of text and param; jansson,
 * which takes UTF-8 alone, as the judge. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"

static void is_text(const char *s)
{
    json_t *j = json_string(s);
    if (j == NULL) fail_msg("not UTF-8: %s", s);
    json_decref(j);
}

static void always_text(void **state)
{
    (void)state;
    static const char *const quoted[] = { "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xff", "\xc3", "\xed\xa0\x80",
                                          "\xc0\x80", "\xf4\x90\x80\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\x80" };
    char filler[1100];
    for (size_t k = 0; k < sizeof quoted / sizeof *quoted; k++)
        for (size_t n = 0; n < 1060; n += n == 20 ? 90 : n == 140 ? 860 : 1) {
            struct err e;
            memset(filler, 'x', n);
            filler[n] = '\0';
            assert_int_equal(err_set(&e, E_ARG, "%s%s%s", filler, quoted[k], quoted[k]), E_ARG);
            is_text(e.text);
            assert_int_equal(err_tag(&e, "invalid_value", filler), E_ARG);
            is_text(e.param);
            e.param[0] = '\0';
            strcpy(filler + n, quoted[k]);
            err_tag(&e, "other", filler);
            is_text(e.param);
            assert_string_equal(e.tag, "invalid_value");
            err_prefix(&e, "%s", filler);
            is_text(e.text);
            err_prefix(&e, "p");
            is_text(e.text);
        }
    struct err e;
    err_set(&e, E_ARG, "%s", "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80 \xed\x9f\xbf \xf4\x8f\xbf\xbf");
    assert_string_equal(e.text, "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80 \xed\x9f\xbf \xf4\x8f\xbf\xbf");   /* kept */
    err_set(&e, E_ARG, "%.4s", "abc\xc3\x9f");
    assert_string_equal(e.text, "abc?");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(always_text) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
