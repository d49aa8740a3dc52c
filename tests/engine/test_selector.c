/* tests/engine/test_selector.c - the trained selector of a checkpoint: all of it, or none of it and the tensor that is to blame is
 * named. Method: the header of a checkpoint that has one, changed by as many bytes as were there. What the selector chooses is
 * tests/goldens/odd/case-omnisift. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "engine/selector.h"

#define WHOLE "tests/goldens/odd/checkpoint"

static char dir[] = "/tmp/omnidrop-selector-XXXXXX";
static char *file;                 /* its model.safetensors */
static size_t n_file;

static void put(const char *from, const char *to)
{
    char path[256], *text = mem_must(n_file + 1, 1);
    memcpy(text, file, n_file);
    if (from) {
        const size_t head = 8 + *(const uint32_t *)(const void *)file;
        char *at = NULL;
        for (char *p = text + 8; at == NULL && p + strlen(from) <= text + head; p++)
            if (memcmp(p, from, strlen(from)) == 0) at = p;
        assert_non_null(at);
        assert_int_equal(strlen(from), strlen(to));
        memcpy(at, to, strlen(to));
    }
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n_file, f), n_file);
    fclose(f);
    free(text);
}

/* A folder that is the whole checkpoint but for the file of tensors. */
static int set_up(void **state)
{
    (void)state;
    char here[1024], from[2048], to[512];
    struct stat s;
    if (mkdtemp(dir) == NULL || getcwd(here, sizeof here) == NULL) return -1;
    DIR *d = opendir(WHOLE);
    for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
        if (f->d_name[0] == '.' || strcmp(f->d_name, "model.safetensors") == 0) continue;
        snprintf(from, sizeof from, "%s/%s/%s", here, WHOLE, f->d_name);
        snprintf(to, sizeof to, "%s/%s", dir, f->d_name);
        if (symlink(from, to) != 0) return -1;
    }
    if (d == NULL || closedir(d) != 0 || stat(WHOLE "/model.safetensors", &s) != 0) return -1;
    n_file = (size_t)s.st_size;
    file = mem_must(n_file, 1);
    FILE *f = fopen(WHOLE "/model.safetensors", "rb");
    const size_t n = f ? fread(file, 1, n_file, f) : 0;
    if (f) fclose(f);
    return n == n_file ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char path[512];
    DIR *d = opendir(dir);
    for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
        snprintf(path, sizeof path, "%s/%s", dir, f->d_name);
        if (f->d_name[0] != '.') unlink(path);
    }
    if (d) closedir(d);
    free(file);
    return rmdir(dir);
}

static struct selector load(const char *folder)
{
    struct checkpoint ck;
    struct selector s;
    struct err e;
    if (checkpoint_open(folder, &ck, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(selector_load(&ck, &s, &e), OK);
    checkpoint_close(&ck);
    return s;
}

static void whole_ones_are_taken(void **state)
{
    (void)state;
    put(NULL, NULL);
    struct selector s = load(dir);
    assert_string_equal(s.flaw, "");
    assert_int_equal(s.n_tensors, 18);
    size_t n = 0;
    for (uint32_t i = 0; i < s.n_tensors; i++) n += s.tensor[i].n;
    assert_int_equal(n, 2 * (16 * 60 + 16) + 6 * 16 + 4 * (16 * 16 + 16) + 8 * 16 + 8 + 8 + 1);
    assert_string_equal(s.tensor[0].name, "v_proj.weight");
    assert_true(s.tensor[0].data[0] != s.tensor[0].data[1]);
    selector_free(&s);
    s = load("models/omni-tiny");
    assert_int_equal(s.n_tensors, 0);
    assert_non_null(strstr(s.flaw, "has no trained selector"));
    selector_free(&s);
}

/* Each is a checkpoint that serves all other policies. */
static void broken_ones_name_the_tensor(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *says;
    } bad[] = {
        { "\"compressor.v_norm.bias\"", "\"token2wav.v_norm.bias_\"", "compressor.v_norm.bias of the trained selector is missing" },
        { "\"compressor.v_proj.bias\"", "\"token2wav.v_proj.bias_\"", "compressor.v_proj.bias of the trained selector is missing" },
        { "\"compressor.v_proj.weight\"", "\"token2wav.v_proj.weight_\"",
          "compressor.v_proj.weight of the trained selector is missing" },
        { "\"compressor.v_norm.bias\"", "\"compressor.v_norm.bia2\"", "compressor.v_norm.bia2 is none of" },
        { "compressor.cross_attn.in_proj_weight\":{\"dtype\":\"F32\",\"shape\":[48,16]",
          "compressor.cross_attn.in_proj_weight\":{\"dtype\":\"F32\",\"shape\":[16,48]",
          "compressor.cross_attn.in_proj_weight is [16, 48], in this selector it must be [48, 16]" },
        { "compressor.a_proj.weight\":{\"dtype\":\"F32\",\"shape\":[16,60]",
          "compressor.a_proj.weight\":{\"dtype\":\"F32\",\"shape\":[60,16]",
          "must be [16, 60]" },
        { "compressor.v_proj.weight\":{\"dtype\":\"F32\",\"shape\":[16,60]",
          "compressor.v_proj.weight\":{\"dtype\":\"F32\",\"shape\":[60,16]",
          "must be [60, 60]" },
        { "compressor.a_norm.bias\":{\"dtype\":\"F32\"", "compressor.a_norm.bias\":{\"dtype\":\"I32\"", "is I32, supported are" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put(bad[i].from, bad[i].to);
        struct selector s = load(dir);
        assert_int_equal(s.n_tensors, 0);
        if (strstr(s.flaw, bad[i].says) == NULL) fail_msg("\"%s\" lacks \"%s\"", s.flaw, bad[i].says);
        selector_free(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(whole_ones_are_taken), cmocka_unit_test(broken_ones_name_the_tensor) };
    return cmocka_run_group_tests_name("selector", tests, set_up, tear_down);
}
