/* Goal: no header of a tensor file is believed: each broken one is refused with the tensor's name, each
 * good one read exactly. Method: headers that break one rule each; whole files and shards written to a
 * temporary folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/safetensors.h"

#define MUST_OK(expr)                                                                                        \
    do {                                                                                                     \
        if ((expr) != OK) fail_msg("%s", e.text);                                                            \
    } while (0)

static void says(status st, const struct err *e, const char *words)
{
    if (st != E_MODEL) fail_msg("status %d instead of E_MODEL for '%s'", (int)st, words);
    if (strstr(e->text, words) == NULL) fail_msg("'%s' does not say '%s'", e->text, words);
}

/* The 8-byte length and the header, n_data zero bytes behind it; *n is the size of all. free() it. */
static uint8_t *image(const char *header, size_t n_data, size_t *n)
{
    const size_t head = strlen(header);
    *n = 8 + head + n_data;
    uint8_t *p = calloc(1, *n);
    assert_non_null(p);
    for (int i = 0; i < 8; i++) p[i] = (uint8_t)(head >> (8 * i));
    memcpy(p + 8, header, head);
    for (size_t i = 0; i < n_data; i++) p[8 + head + i] = (uint8_t)i;
    return p;
}

static void one_broken_rule_each(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *words;
    } bad[] = {
        { "[]", 0, "is an array, an object is needed" },
        { "{", 0, "not valid JSON" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
          "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
          4, "duplicate" },
        { "{\"a\":{\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "a: dtype \"Q4\"" },
        { "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "a.dtype: is missing" },
        { "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "a.shape: is missing" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "a.data_offsets: is missing" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4,
          "a.x: is an unknown key" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[NaN,4]}}", 4, "not valid JSON" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,1e308]}}", 4,
          "a.data_offsets[1]: is 1e+308" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}}", 4, "an integer is needed" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[\"0\",4]}}", 4,
          "a.data_offsets[0]: is a string" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "is -4, must be 0 to" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,18446744073709551620]}}", 4,
          "too big integer" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4,
          "has 3 elements, must have 2" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "run backwards" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "F32 of shape [2] has 8" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, "it is truncated" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "a.shape[0]: is -1" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4,
          "a.shape[0]: is a number" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "2^64" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
          "2^64 bytes" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
          "9 dimensions" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[3,7]}}",
          7, "tensors a and b overlap at byte 3" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
          4, "overlap" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[5,9]}}",
          9, "1 bytes before tensor b" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 6,
          "2 bytes after the last tensor" },
        { "{\"__metadata__\":7}", 0, "__metadata__: is an integer" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e;
        size_t n, found;
        uint8_t *p = image(bad[i].header, bad[i].data, &n);
        says(tensor_files_check(p, n, n, &found, &e), &e, bad[i].words);
        free(p);
    }
}

static void length_of_the_header_is_checked_against_the_file(void **state)
{
    (void)state;
    struct err e;
    size_t n, found;
    uint8_t *p = image("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, &n);
    MUST_OK(tensor_files_check(p, n, n, &found, &e));
    assert_int_equal(found, 1);
    size_t n_none;
    uint8_t *none = image("{\"__metadata__\":{}}", 0, &n_none); /* no tensor at all is a whole file */
    MUST_OK(tensor_files_check(none, n_none, n_none, &found, &e));
    assert_int_equal(found, 0);
    free(none);
    for (size_t cut = 0; cut < n; cut++)
        assert_int_equal(tensor_files_check(p, cut, cut, &found, &e), E_MODEL);
    says(tensor_files_check(p, 5, 5, &found, &e), &e, "5 bytes are too few");
    says(tensor_files_check(p, 20, 20, &found, &e), &e, "the file only 12");
    memset(p, 0xff, 8);
    says(tensor_files_check(p, n, n, &found, &e), &e, "not a safetensors file?");
    free(p);
}

/* ---- files -------------------------------------------------------------------------------------------- */

static char dir[] = "/tmp/test_safetensors_XXXXXX";

static char *in_dir(const char *name)
{
    static char path[4][256];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}

static void write_file(const char *name, const void *data, size_t n)
{
    FILE *f = fopen(in_dir(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

static void write_image(const char *name, const char *header, size_t n_data)
{
    size_t n;
    uint8_t *p = image(header, n_data, &n);
    write_file(name, p, n);
    free(p);
}

static void write_text(const char *name, const char *text)
{
    write_file(name, text, strlen(text));
}

static void tensors_are_found_by_name(void **state)
{
    (void)state;
    struct err e;
    struct tensor_files *s;
    write_image("model.safetensors",
                "{\"__metadata__\":{\"format\":\"pt\"},"
                "\"z\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
                "\"e\":{\"dtype\":\"I64\",\"shape\":[0,3],\"data_offsets\":[8,8]},"
                "\"s\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[8,10]}}",
                10);
    MUST_OK(tensor_files_open_dir(dir, &s, &e));
    assert_int_equal(tensor_files_count(s), 3);
    assert_string_equal(tensor_files_at(s, 0)->name, "e");
    assert_int_equal(tensor_files_bytes(s), 10);
    const struct tensor_info *t = tensor_files_find(s, "s");
    assert_non_null(t);
    assert_int_equal(t->rank, 0);
    assert_int_equal(t->n, 1);
    assert_int_equal(t->dtype, TENSOR_BF16);
    assert_int_equal(((const uint8_t *)t->data)[0], 8);
    t = tensor_files_find(s, "z");
    assert_int_equal((uintptr_t)t->data % 4, 0);
    assert_int_equal(((const uint8_t *)t->data)[7], 7);
    tensor_will_need(t);
    tensor_drop(t);
    assert_int_equal(((const uint8_t *)t->data)[7], 7);
    assert_null(tensor_files_find(s, "nothing"));
    tensor_files_close(&s);
    assert_null(s);
    unlink(in_dir("model.safetensors"));
}

static void data_that_is_not_aligned_is_copied(void **state)
{
    (void)state;
    struct err e;
    struct tensor_files *s;
    for (int pad = 0; pad < 4; pad++) {
        char header[200];
        snprintf(header, sizeof header,
                 "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                 "\"f\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}%*s",
                 pad, "");
        write_image("model.safetensors", header, 9);
        MUST_OK(tensor_files_open_dir(dir, &s, &e));
        const struct tensor_info *t = tensor_files_find(s, "f");
        assert_int_equal((uintptr_t)t->data % 4, 0);
        for (int i = 0; i < 8; i++) assert_int_equal(((const uint8_t *)t->data)[i], i + 1);
        tensor_drop(t);
        assert_int_equal(((const uint8_t *)t->data)[0], 1);
        tensor_files_close(&s);
    }
    unlink(in_dir("model.safetensors"));
}

/* Dropping gives pages back and loses nothing, in the file's mapping and in a copy. */
static void dropped_tensors_are_still_there(void **state)
{
    (void)state;
    for (int copied = 0; copied < 2; copied++) {
        struct err e;
        struct tensor_files *s;
        char header[100];
        size_t n = (size_t)sprintf(header,
                                   "{\"f\":{\"dtype\":\"F32\",\"shape\":[8192],\"data_offsets\":[0,32768]}}");
        while (n % 4 != (size_t)copied) header[n++] = ' '; /* where the data begins, mod 4 */
        header[n] = '\0';
        write_image("model.safetensors", header, 32768);
        MUST_OK(tensor_files_open_dir(dir, &s, &e));
        const struct tensor_info *t = tensor_files_find(s, "f");
        assert_int_equal(t->is_copy, copied);
        tensor_drop(t);
        for (size_t i = 0; i < 32768; i++) assert_int_equal(((const uint8_t *)t->data)[i], i % 256);
        tensor_files_close(&s);
    }
    unlink(in_dir("model.safetensors"));
}

#define HEAD(name) "{\"" name "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}"

static void index_and_shards_must_agree(void **state)
{
    (void)state;
    static const struct {
        const char *index, *words;
    } bad[] = {
        { "{\"weight_map\":{\"a\":\"s1\",\"b\":\"s2\",\"c\":\"s2\"}}", "tensor c should be in" },
        { "{\"weight_map\":{\"a\":\"s1\",\"b\":\"s1\"}}", "tensor b should be in" },
        { "{\"weight_map\":{\"a\":\"s2\",\"b\":\"s1\"}}", "should be in" },
        { "{\"weight_map\":{\"a\":\"s1\",\"b\":\"s3\"}}",
          "s3: the index lists this shard and it is not there" },
        { "{\"weight_map\":{\"a\":\"s1\",\"b\":\"../s2\"}}", "is not a file name in this folder" },
        { "{\"weight_map\":{\"a\":\"s1\",\"b\":7}}", "weight_map.b: is an integer" },
        { "{\"weight_map\":{\"a\":\"s1\",\"b\":\"s2\",\"x\":\"s4\"}}", "s4: 0 bytes are too few" },
        { "{\"metadata\":{}}", "weight_map: is missing" },
        { "{\"weight_map\":{\"a\":\"s1\",\"b\":\"both\"}}", "tensor a is in" },
        { "{\"weight_map\":{\"b\":\"both\"}}", "tensor a of" },
    };
    struct err e;
    struct tensor_files *s;
    says(tensor_files_open_dir(dir, &s, &e), &e, "no weights");
    says(tensor_files_open_dir("/nonexistent", &s, &e), &e, "/nonexistent: no weights");
    write_image("s1", HEAD("a"), 1);
    write_image("s2", HEAD("b"), 1);
    write_image("both",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                2);
    write_text("s4", "");
    write_text("model.safetensors.index.json",
               "{\"metadata\":{\"total_size\":2},\"weight_map\":{\"a\":\"s1\",\"b\":\"s2\"}}");
    MUST_OK(tensor_files_open_dir(dir, &s, &e));
    assert_int_equal(tensor_files_count(s), 2);
    assert_string_equal(tensor_files_path(s, tensor_files_find(s, "b")->file), in_dir("s2"));
    tensor_files_close(&s);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_text("model.safetensors.index.json", bad[i].index);
        says(tensor_files_open_dir(dir, &s, &e), &e, bad[i].words);
        assert_null(s);
    }
    static const char *const names[] = { "s1", "s2", "both", "s4", "model.safetensors.index.json" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(in_dir(names[i]));
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) == NULL;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_broken_rule_each),
        cmocka_unit_test(length_of_the_header_is_checked_against_the_file),
        cmocka_unit_test(tensors_are_found_by_name),
        cmocka_unit_test(data_that_is_not_aligned_is_copied),
        cmocka_unit_test(dropped_tensors_are_still_there),
        cmocka_unit_test(index_and_shards_must_agree),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
