/* data: URLs and base64 into files: every length, both alphabets, white space, padding or none; rows B22 and B23; heap that
 * does not grow with the text.
 * Method: bytes coded here and compared with what comes back. */
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "media/data_url.h"
#include "tests/media/expected.h"

static size_t code(const uint8_t *p, size_t n, bool url, bool pad, char *out)
{
    const char *digits = url ? "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
                             : "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t at = 0;
    for (size_t i = 0; i < n; i += 3) {
        const uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
        const size_t have = n - i >= 3 ? 4 : n - i + 1;
        for (size_t k = 0; k < 4; k++)
            if (k < have) out[at++] = digits[v >> (18 - 6 * k) & 63];
            else if (pad) out[at++] = '=';
    }
    out[at] = 0;
    return at;
}

static void gives(const char *url, const uint8_t *want, size_t n)
{
    struct media_source s;
    struct err e = { .text = "" };
    assert_ok(data_url_source(url, "part", NULL, 0, &s, &e), e);
    assert_int_equal(s.bytes, n);
    uint8_t *have = malloc(n + 1);
    assert_int_equal(pread(s.fd, have, n + 1, 0), n);
    assert_memory_equal(have, want, n);
    free(have);
    struct media_source again;
    assert_ok(media_source_of_bytes(want, n, "x", NULL, &again, &e), e);
    assert_string_equal(s.digest, again.digest);
    media_source_close(&again);
    media_source_close(&s);
}

static void round_trip(void **state)
{
    (void)state;
    static uint8_t bytes[500000];
    static char url[800000];
    static const size_t length[] = { 1, 2, 3, 4, 5, 61, 196607, 196608, 196609, 196610, 400000, 500000 };
    uint64_t seed = 7;
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)expected_noise(&seed);
    for (size_t i = 0; i < sizeof length / sizeof *length; i++)
        for (int how = 0; how < 4; how++) {
            const int head = sprintf(url, "data:video/mp4;base64,");
            code(bytes, length[i], how & 1, how & 2, url + head);
            gives(url, bytes, length[i]);
        }
}

static void forms(void **state)
{
    (void)state;
    static const char *const good[] = {
        "data:;base64,YWJj", "DATA:image/png;BASE64,YWJj", "data:text/plain;charset=utf-8;base64,YWJj",
        "data:a/b;base64, Y\tW\r\nJ j \n",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) gives(good[i], (const uint8_t *)"abc", 3);
    gives("data:;base64,YWI=", (const uint8_t *)"ab", 2);
    gives("data:;base64,YQ= =", (const uint8_t *)"a", 1);
    static const char *const bad[] = {
        "data:image/png;base64,", "data:image/png;base64,   ", "data:image/png;base64,@@@", "data:image/png,YWJj",      /* B22, B23 */
        "data:,hello", "data:", "data:;base64", "data;base64,YWJj", "dat", "data:;base64,Y", "data:;base64,YWJjY",
        "data:;base64,YW=J", "data:;base64,YWJj=", "data:;base64,YQ=", "data:;base64,YQ===", "data:;base64,YWI==",
        "data:;base64,====", "data:;base64,YWJj====", "data:;base64,YWJj\x80", "data:;base64,YW%4a",
        "data:;base64;x,YWJj", "data:base64,YWJj",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct media_source s;
        struct err e = { .text = "" };
        const status st = data_url_source(bad[i], "part", NULL, 0, &s, &e);
        if (st != E_ARG || strcmp(e.tag, "invalid_value") != 0 || strncmp(e.text, "part: ", 6) != 0)
            fail_msg("%s: %s '%s'", bad[i], err_name(st), e.text);
    }
}

static void limits(void **state)
{
    (void)state;
    struct media_source s;
    struct err e = { .text = "" };
    assert_int_equal(data_base64_source("YWJjZA==", 8, "part", NULL, 3, &s, &e), E_INPUT);
    assert_string_equal(e.tag, "media_too_large");
    assert_ok(data_base64_source("YWJjZA==", 8, "part", NULL, 4, &s, &e), e);
    media_source_close(&s);
    const struct rlimit small = { 2, RLIM_INFINITY };
    struct rlimit old;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    setrlimit(RLIMIT_FSIZE, &small);
    const status st = data_base64_source("YWJjZA==", 8, "part", NULL, 0, &s, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(st, E_IO);
    assert_string_equal(e.tag, "spool_full");
    assert_int_equal(data_base64_source("YWJj", 4, "part", "/nonexistent", 0, &s, &e), E_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(round_trip), cmocka_unit_test(forms), cmocka_unit_test(limits) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
