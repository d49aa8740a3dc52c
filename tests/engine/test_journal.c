/* Goal: whatever a crash leaves of a journal, opening it again finds exactly the windows that were finished, and a
 * journal of other work is refused. Method: a written journal is cut at every byte and opened; bytes are flipped;
 * keys differ; a second writer tries. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/journal.h"
#include "engine/transcribe.h"
#include "media/digest.h"

static char dir[64], path[96];

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/test_journal_XXXXXX");
    if (mkdtemp(dir) == NULL) return -1;
    snprintf(path, sizeof path, "%s/a.odj", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

static struct journal *open_or_fail(const char *key, bool resume)
{
    struct journal *j;
    struct err e;
    if (journal_open(path, key, resume, &j, &e) != OK) fail_msg("%s", e.text);
    return j;
}

static void add(struct journal *j, uint32_t i, const char *text)
{
    const struct journal_entry t = { .window = i, .from = i * 1000u, .to = i * 1000u + 1000, .text = text, .n_tokens = 7,
                                     .attempts = 2, .mean_logprob = -0.1 - i, .temperature = 0.2, .split = i == 1 };
    struct err e;
    if (journal_add(j, &t, &e) != OK) fail_msg("%s", e.text);
}

static char *slurp(size_t *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = calloc(1, 65536);
    assert_non_null(text);
    *n = fread(text, 1, 65536, f);
    fclose(f);
    return text;
}

static void write_bytes(const char *text, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

static void make(void)
{
    struct journal *j = open_or_fail("key", false);
    struct err e;
    assert_int_equal(journal_add_language(j, "english", &e), OK);
    add(j, 0, "eins \"zwei\"\n\xe5\xa5\xbd");
    add(j, 1, "");
    add(j, 2, "drei");
    assert_int_equal(journal_count(j), 3);
    journal_close(&j, false);
}

static void entries_come_back(void **state)
{
    (void)state;
    make();
    struct journal *j = open_or_fail("key", true);
    assert_int_equal(journal_count(j), 3);
    assert_string_equal(journal_language(j), "english");
    const struct journal_entry *t = journal_find(j, 0, 0, 1000);
    assert_non_null(t);
    assert_string_equal(t->text, "eins \"zwei\"\n\xe5\xa5\xbd");
    assert_true(t->n_tokens == 7 && t->attempts == 2 && t->mean_logprob == -0.1 && t->temperature == 0.2 && !t->split);
    assert_true(journal_find(j, 1, 1000, 2000)->split);
    assert_null(journal_find(j, 1, 1000, 2001));
    assert_null(journal_find(j, 3, 3000, 4000));
    add(j, 3, "vier");
    journal_close(&j, false);
    j = open_or_fail("key", true);
    assert_int_equal(journal_count(j), 4);
    journal_close(&j, true);
    assert_int_not_equal(access(path, F_OK), 0);
}

static void torn_anywhere(void **state)
{
    (void)state;
    size_t n;
    make();
    char *text = slurp(&n);
    for (size_t cut = 0; cut <= n; cut++) {
        uint32_t lines = 0;
        for (size_t i = 0; i < cut; i++) lines += text[i] == '\n';
        write_bytes(text, cut);
        struct journal *j = open_or_fail("key", true);
        assert_int_equal(journal_count(j), lines > 2 ? lines - 2 : 0);
        add(j, 9, "neu");
        journal_close(&j, false);
        j = open_or_fail("key", true);             /* what is appended stands on a line of its own */
        assert_int_equal(journal_count(j), (lines > 2 ? lines - 2 : 0) + 1);
        assert_non_null(journal_find(j, 9, 9000, 10000));
        journal_close(&j, false);
    }
    free(text);
}

static void broken_bytes(void **state)
{
    (void)state;
    size_t n, valid;
    make();
    char *text = slurp(&n);
    for (size_t i = 0; i < n; i++)
        for (int b = 0; b < 8; b++) {
            text[i] = (char)(text[i] ^ (1 << b));
            const int got = journal_parse(text, n, "key", &valid);
            assert_true(got >= -1 && got <= 3 && valid <= n);
            text[i] = (char)(text[i] ^ (1 << b));
        }
    assert_int_equal(journal_parse(text, n, "key", &valid), 3);
    assert_int_equal(valid, n);
    free(text);
}

static void other_work_is_refused(void **state)
{
    (void)state;
    struct journal *j, *k;
    struct err e;
    make();
    assert_int_equal(journal_open(path, "other", true, &j, &e), E_ARG);
    assert_non_null(strstr(e.text, "belongs to another input"));
    j = open_or_fail("key", true);                 /* and it was left alone */
    assert_int_equal(journal_count(j), 3);
    assert_int_equal(journal_open(path, "key", true, &k, &e), E_ARG);
    assert_non_null(strstr(e.text, "in use by another run"));
    assert_int_equal(journal_open(path, "key", false, &k, &e), E_ARG);
    journal_close(&j, false);
    j = open_or_fail("other", false);              /* not resumed: begun anew */
    assert_int_equal(journal_count(j), 0);
    journal_close(&j, false);
    write_bytes("my diary\n", 9);
    assert_int_equal(journal_open(path, "key", true, &j, &e), E_ARG);
    assert_non_null(strstr(e.text, "no journal"));
}

static void digests(void **state)
{
    (void)state;
    struct media_digest *d;
    struct err e;
    char text[MEDIA_DIGEST_TEXT];
    assert_int_equal(media_digest_begin(&d, &e), OK);
    media_digest_add(d, "abc", 3);
    media_digest_end(&d, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    write_bytes("abc", 3);
    assert_int_equal(media_digest_begin(&d, &e), OK);
    assert_int_equal(media_digest_add_file(d, path, NULL, NULL, &e), OK);
    media_digest_end(&d, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_int_equal(media_digest_begin(&d, &e), OK);
    assert_int_equal(media_digest_add_file(d, "/nowhere/at/all", NULL, NULL, &e), E_INPUT);
    media_digest_free(&d);
}

static void loops_are_seen(void **state)
{
    (void)state;
    int32_t ids[400];
    for (int i = 0; i < 400; i++) ids[i] = i;
    assert_false(transcribe_repeats(ids, 400));
    assert_false(transcribe_repeats(ids, 0));
    for (int i = 0; i < 11; i++) ids[i] = 5;
    assert_false(transcribe_repeats(ids, 11));     /* short: people do say no no no */
    for (int i = 0; i < 12; i++) ids[i] = 5;
    assert_true(transcribe_repeats(ids, 13));
    assert_false(transcribe_repeats(ids, 40));     /* 12 of 40: 30 % */
    for (int i = 0; i < 100; i++) ids[i] = i % 12;
    assert_true(transcribe_repeats(ids, 100));
    for (int i = 0; i < 100; i++) ids[i] = i % 13;
    assert_false(transcribe_repeats(ids, 100));    /* n-grams of up to 12 */
    for (int i = 0; i < 100; i++) ids[i] = i < 55 ? i : 200 + i % 3;
    assert_true(transcribe_repeats(ids, 100));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(entries_come_back, setup, teardown),
        cmocka_unit_test_setup_teardown(torn_anywhere, setup, teardown),
        cmocka_unit_test_setup_teardown(broken_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(other_work_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(digests, setup, teardown),
        cmocka_unit_test(loops_are_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
