/* tests/bench/bench_load.c - load: a cached safetensors file to packed weights, the way a checkpoint is loaded. */
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "model/safetensors.h"
#include "tests/bench/bench.h"

/* The products of ten layers of width 896 and MLP 4864: 298 MB of bf16. */
enum { LAYERS = 10, PER_LAYER = 5, N_TENSORS = LAYERS * PER_LAYER };
static const struct { const char *name; uint32_t n, k; } TENSORS[PER_LAYER] = {
    { "qkv", 1152, 896 }, { "o", 896, 896 }, { "gate", 4864, 896 }, { "up", 4864, 896 }, { "down", 896, 4864 } };

static size_t tensor_bytes(int i) { return (size_t)TENSORS[i].n * TENSORS[i].k * 2; }

static status write_file(const char *path, struct err *e)
{
    char *head = mem_must(N_TENSORS, 128);
    size_t n = 0, at = 0, most = 0;
    n += (size_t)sprintf(head + n, "{");
    for (int i = 0; i < N_TENSORS; i++) {
        const int k = i % PER_LAYER;
        n += (size_t)sprintf(head + n, "%s\"layers.%02d.%s\":{\"dtype\":\"BF16\",\"shape\":[%u,%u],\"data_offsets\":[%zu,%zu]}",
                             i ? "," : "", i / PER_LAYER, TENSORS[k].name, TENSORS[k].n, TENSORS[k].k, at, at + tensor_bytes(k));
        at += tensor_bytes(k);
        if (tensor_bytes(k) > most) most = tensor_bytes(k);
    }
    head[n++] = '}';
    while (n % 8 != 0) head[n++] = ' ';
    uint16_t *values = NULL;
    FILE *f = NULL;
    status s;
    TRY_GOTO(s, bench_random_bf16(most / 2, 0.05f, &values, e), done);
    f = fopen(path, "we");
    const uint64_t length = n;
    bool ok = f != NULL && fwrite(&length, 8, 1, f) == 1 && fwrite(head, 1, n, f) == n;
    for (int i = 0; ok && i < N_TENSORS; i++)
        ok = fwrite(values, 1, tensor_bytes(i % PER_LAYER), f) == tensor_bytes(i % PER_LAYER);
    if (f != NULL && fclose(f) != 0) ok = false;
    if (!ok) s = err_set(e, E_IO, "cannot write %s", path);
done:
    free(head);
    free(values);
    return s;
}

/* All tensors of the file into packed weights, the parts of the gated product together. */
static status load_once(struct bench *b, const char *path, double *seconds, bool *undisturbed, struct err *e)
{
    const struct ops *ops = b->st->ops;
    struct weight *w[N_TENSORS] = { NULL };
    struct tensor_files *files = NULL;
    status s;
    const struct bench_clock t = bench_clock_now();
    TRY(tensor_files_open(&path, 1, &files, e));
    for (int i = 0; i < N_TENSORS; i++) {
        const int k = i % PER_LAYER;
        if (strcmp(TENSORS[k].name, "up") == 0) continue;
        const bool gated = strcmp(TENSORS[k].name, "gate") == 0;
        struct weight_args a = { .form = gated ? WEIGHT_SWIGLU : WEIGHT_PLAIN, .compute = DT_BF16, .k = TENSORS[k].k,
                                 .n_parts = gated ? 2 : 1 };
        const struct tensor_info *part[2];
        for (uint32_t j = 0; j < a.n_parts; j++) {
            char name[64];
            snprintf(name, sizeof name, "layers.%02d.%s", i / PER_LAYER, TENSORS[(uint32_t)k + j].name);
            part[j] = tensor_files_find(files, name);
            if (part[j] == NULL) TRY_GOTO(s, err_set(e, E_INTERNAL, "%s lacks %s", path, name), done);
            a.part[j] = (struct weight_part){ .data = part[j]->data, .dtype = DT_BF16, .n = TENSORS[k].n };
        }
        TRY_GOTO(s, ops->weight_create(b->st, &a, &w[i], e), done);
        for (uint32_t j = 0; j < a.n_parts; j++) tensor_drop(part[j]);
    }
    s = OK;
    *seconds = bench_seconds(b, t, undisturbed);
done:
    tensor_files_close(&files);
    for (int i = 0; i < N_TENSORS; i++) ops->weight_destroy(b->st, &w[i]);
    return s;
}

static status run_load(struct bench *b, struct bench_result *r, struct err *e)
{
    enum { ROUNDS = 9 };
    char path[PATH_MAX], copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", b->program);
    snprintf(path, sizeof path, "%s/bench-load.safetensors", dirname(copy));
    size_t bytes = 0;
    for (int i = 0; i < PER_LAYER; i++) bytes += LAYERS * tensor_bytes(i);
    struct stat st;
    if (stat(path, &st) != 0 || (size_t)st.st_size < bytes) TRY(write_file(path, e));
    double v[ROUNDS], seconds = 0;
    bool undisturbed[ROUNDS];
    for (int i = 0; i <= ROUNDS; i++) {
        bool alone;
        TRY(load_once(b, path, &seconds, &alone, e));
        if (i == 0) continue;                                            /* brings the file into the page cache */
        v[i - 1] = (double)bytes / seconds * 1e-9;
        undisturbed[i - 1] = alone;
    }
    r->value = bench_median_of(v, undisturbed, ROUNDS);
    r->unit = "GB/s";
    r->floor = 3;
    snprintf(r->note, sizeof r->note, "%.0f MB of bf16 tensors from the page cache to packed weights, memory taken anew",
             (double)bytes * 1e-6);
    return OK;
}

const struct bench_row bench_load_rows[] = { { "load", run_load }, { NULL, NULL } };
