/* Goal: the seam between two windows that heard the same seconds drops nothing and says nothing twice, and an overlap
 * that does not agree is cut by time. Method: texts with known overlaps, in scripts with and without spaces, with
 * words broken at the edges; the joined text is compared as a whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/stitch.h"

static enum stitch_seam join(const char *l, double lm, double lo, const char *r, double rm, double ro, char *out)
{
    const struct stitch_side left = { l, strlen(l), lm, lo }, right = { r, strlen(r), rm, ro };
    struct stitch_cut cut;
    struct err e;
    if (stitch_hard(&left, &right, &cut, &e) != OK) fail_msg("%s", e.text);
    assert_true(cut.left_keep <= strlen(l) && cut.right_from <= strlen(r));
    const char *rest = r + cut.right_from;
    sprintf(out, "%.*s%s%s", (int)cut.left_keep, l, stitch_joint(l, cut.left_keep, rest, strlen(rest)), rest);
    return cut.seam;
}

static void equal_overlaps_join(void **state)
{
    (void)state;
    char out[512];
    assert_int_equal(join("We went down to the old harbour, and then", 0.85, 0.3,
                          "the old harbour and then we saw the ship", 0.2, 0.4, out), SEAM_MATCHED);
    assert_string_equal(out, "We went down to the old harbour, and then we saw the ship");
    /* Broken words at both edges, another case, another comma. */
    assert_int_equal(join("she said that The weather would chan", 0.8, 0.4, "at the weather would change tomorrow", 0.2,
                          0.4, out), SEAM_MATCHED);
    assert_string_equal(out, "she said that The weather would change tomorrow");
    /* One word is enough where the overlap holds one. */
    assert_int_equal(join("cat dog bird nine", 0.95, 0.15, "nine fish left", 0.1, 0.3, out), SEAM_MATCHED);
    assert_string_equal(out, "cat dog bird nine fish left");
    /* All of both is the overlap. */
    assert_int_equal(join("red blue green", 0.5, 1, "red blue green", 0.5, 1, out), SEAM_MATCHED);
    assert_string_equal(out, "red blue green");
}

/* As heard at real seams: the word that an edge broke is another one, or none; one word agrees. */
static void broken_words_at_the_edges_do_not_hide_the_overlap(void **state)
{
    (void)state;
    char out[512];
    assert_int_equal(join("one two three zero nine down seven cat", 0.75, 0.25, "and cat sleep run behind six ten", 0.125, 0.25, out),
                     SEAM_MATCHED);
    assert_string_equal(out, "one two three zero nine down seven cat sleep run behind six ten");
    assert_int_equal(join("nine jump open four house three", 0.9, 0.35, "house green stop one right stop", 0.2, 0.3, out),
                     SEAM_MATCHED);
    assert_string_equal(out, "nine jump open four house green stop one right stop");
}

/* A word that is said again and again: how often is known from the time that both heard. */
static void repeated_words_are_counted_by_time(void **state)
{
    (void)state;
    char out[512];
    assert_int_equal(join("six dog cat up red yellow red two blue horse", 0.93, 0.12,
                          "horse horse horse under six ten up cat dog run", 0.07, 0.12, out), SEAM_MATCHED);
    assert_string_equal(out, "six dog cat up red yellow red two blue horse horse horse under six ten up cat dog run");
    assert_int_equal(join("six dog cat blue horse horse horse", 0.75, 0.44, "horse horse horse horse under six up cat", 0.2, 0.39,
                          out), SEAM_MATCHED);
    assert_string_equal(out, "six dog cat blue horse horse horse horse under six up cat");
}

/* Before or behind a word that both heard is the same text; the place nearer to the cut gives the segments their times. */
static void the_place_nearest_to_the_cut(void **state)
{
    (void)state;
    static const char l[] = "red blue cat two", r[] = "nine two dog fish";
    struct stitch_cut cut;
    struct err e;
    const struct stitch_side left = { l, strlen(l), 0.75, 0.5 }, right = { r, strlen(r), 0.25, 0.5 };
    assert_int_equal(stitch_hard(&left, &right, &cut, &e), OK);
    assert_int_equal(cut.seam, SEAM_MATCHED);
    assert_int_equal(cut.left_keep, strlen("red blue cat"));
    assert_int_equal(cut.right_from, strlen("nine "));
    const struct stitch_side late = { l, strlen(l), 1, 0.5 }, from = { r, strlen(r), 0.5, 0.5 };
    assert_int_equal(stitch_hard(&late, &from, &cut, &e), OK);
    assert_int_equal(cut.left_keep, strlen(l));
    assert_int_equal(cut.right_from, strlen("nine two "));
}

static void scripts_without_spaces_go_by_characters(void **state)
{
    (void)state;
    char out[512];
    assert_int_equal(join("今天的天气非常好我们", 0.8, 0.4, "非常好我们去公园吧", 0.25, 0.5, out), SEAM_MATCHED);
    assert_string_equal(out, "今天的天气非常好我们去公园吧");
    assert_true(stitch_spaceless("今天的天气", strlen("今天的天气")));
    assert_true(stitch_spaceless("สวัสดี", strlen("สวัสดี")));
    assert_false(stitch_spaceless("안녕 하세요", strlen("안녕 하세요")));
    assert_false(stitch_spaceless("plain words", 11));
    assert_false(stitch_spaceless("", 0));
}

static void disagreeing_overlaps_are_cut_by_time(void **state)
{
    (void)state;
    char out[512];
    assert_int_equal(join("one two three four five six", 0.667, 0.6, "sun moon tree fish car boat", 0.334, 0.6, out),
                     SEAM_UNMATCHED);
    assert_string_equal(out, "one two three four tree fish car boat");
    assert_int_equal(join("", 0.5, 0.5, "all of this", 0, 0.2, out), SEAM_UNMATCHED);
    assert_string_equal(out, "all of this");
    assert_int_equal(join("all of this", 1, 0.2, "", 0.5, 0.5, out), SEAM_UNMATCHED);
    assert_string_equal(out, "all of this");
    assert_int_equal(join("...", 0.5, 0.5, "?!", 0.5, 0.5, out), SEAM_UNMATCHED);
}

static void a_far_repeat_is_no_overlap(void **state)
{
    (void)state;
    char out[512];
    /* "dog" stands at the far end of the left text; the overlap holds one word. */
    assert_int_equal(join("dog a b c d e f g h i j k l m sun moon", 0.97, 0.06, "tree dog fish car boat", 0.1, 0.2, out),
                     SEAM_UNMATCHED);
    assert_string_equal(out, "dog a b c d e f g h i j k l m sun moon dog fish car boat");
    /* One equal word of the four that the overlap holds is chance. */
    assert_int_equal(join("a b c d e f sun moon dog star", 0.8, 0.4, "one two three dog fish car boat six nine ten", 0.2, 0.4,
                          out), SEAM_UNMATCHED);
    assert_int_equal(join("dog a b c d e f g h i j k l m sun moon", 0.95, 0.1, "tree dog fish car boat six", 0.15, 0.3,
                          out), SEAM_UNMATCHED);
    assert_string_equal(out, "dog a b c d e f g h i j k l m sun dog fish car boat six");
}

static void broken_bytes_do_no_harm(void **state)
{
    (void)state;
    char out[512];
    join("\xff\xfe ab\xe4\xbb", 0.5, 0.5, "\x80\x80 ab cd", 0.5, 0.5, out);
    assert_string_equal(stitch_joint("\x80\x80", 2, "\xc3", 1), " ");
}

static void joints(void **state)
{
    (void)state;
    assert_string_equal(stitch_joint("a", 1, "b", 1), " ");
    assert_string_equal(stitch_joint("a ", 2, "b", 1), "");
    assert_string_equal(stitch_joint("", 0, "b", 1), "");
    assert_string_equal(stitch_joint("好", 3, "吗", 3), "");
    assert_string_equal(stitch_joint("好", 3, "x", 1), " ");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_overlaps_join),
        cmocka_unit_test(broken_words_at_the_edges_do_not_hide_the_overlap),
        cmocka_unit_test(repeated_words_are_counted_by_time),
        cmocka_unit_test(the_place_nearest_to_the_cut),
        cmocka_unit_test(scripts_without_spaces_go_by_characters),
        cmocka_unit_test(disagreeing_overlaps_are_cut_by_time),
        cmocka_unit_test(a_far_repeat_is_no_overlap),
        cmocka_unit_test(broken_bytes_do_no_harm),
        cmocka_unit_test(joints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
