/* build/tests/vectors [--isa I] FILE...
 * Answers worked out apart from the engine: schedules, calibrations and selections of OmniDrop (format
 * omnidrop-vectors-1 as in tests/data/vectors). One line per case, then 'N passed, N failed'. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "kernels/ops.h"
#include "prune/schedule.h"

static unsigned n_passed, n_failed;

static void verdict(bool ok, const char *what, size_t i, const char *detail)
{
    printf("%s %s.%zu%s%s\n", ok ? "PASS" : "FAIL", what, i, ok || !detail[0] ? "" : " ", ok ? "" : detail);
    if (ok) n_passed++;
    else n_failed++;
}

/* A list of integers of any length; *out is owned. */
static status ints_of(const struct doc_at *o, const char *key, int64_t **out, size_t *n, struct err *e)
{
    struct doc_at a;
    TRY(doc_array(o, key, &a, e));
    *n = doc_count(&a);
    *out = mem_must(*n, sizeof **out);
    return doc_ints(o, key, *n, INT32_MIN, UINT32_MAX, *out, e);
}

static status schedule_of(const struct doc_at *c, struct prune_schedule *s, uint32_t *L, struct err *e)
{
    TRY(doc_u32(c, "layers", 1, 65536, L, e));
    TRY(doc_double(c, "p_init", 0, 1, &s->p_init, e));
    TRY(doc_opt_double(c, "p_final", 0, 1, &s->p_final, e));
    TRY(doc_double(c, "t_mid", -1e9, 1e9, &s->t_mid, e));
    return doc_double(c, "beta", -1e9, 1e9, &s->beta, e);
}

static status run_schedule(const struct doc_at *c, size_t i, struct err *e)
{
    struct prune_schedule s = { 0 };
    uint32_t L = 0, n0 = 0;
    int64_t *want = NULL;
    size_t n = 0;
    TRY(schedule_of(c, &s, &L, e));
    TRY(doc_u32(c, "n0", 0, UINT32_MAX, &n0, e));
    TRY(ints_of(c, "alive", &want, &n, e));
    uint32_t *alive = mem_must(L + 1, sizeof *alive);
    prune_alive(&s, L, n0, alive);
    char detail[96] = "another number of layers";
    bool ok = n == L || n == L + 1;
    for (size_t l = 0; ok && l < n; l++)
        if (alive[l] != want[l]) {
            ok = false;
            snprintf(detail, sizeof detail, "layer %zu: %u, expected %lld", l, alive[l], (long long)want[l]);
        }
    verdict(ok, "schedule", i, detail);
    free(alive);
    free(want);
    return OK;
}

static status run_calibrate(const struct doc_at *c, size_t i, struct err *e)
{
    struct prune_schedule s = { 0 };
    uint32_t L = 0;
    double r0, target, want = NAN, got = NAN, range[2], want_range[2] = { NAN, NAN };
    TRY(schedule_of(c, &s, &L, e));
    TRY(doc_double(c, "r0", 0, 1, &r0, e));
    TRY(doc_double(c, "target", -1e9, 1e9, &target, e));
    TRY(doc_opt_double(c, "p_final", -1e9, 1e9, &want, e));
    if (doc_has(c, "reachable")) TRY(doc_doubles(c, "reachable", 2, -1e9, 1e9, want_range, e));
    struct err why;
    const status st = prune_calibrate(&s, L, r0, target, &got, range, &why);
    char detail[160] = "";
    bool ok = isnan(want) ? st == E_ARG : st == OK && fabs(got - want) <= 1e-9;
    if (!ok) snprintf(detail, sizeof detail, "p_final %.12g, expected %.12g", got, want);
    for (int k = 0; k < 2 && ok; k++)
        if (!isnan(want_range[k]) && fabs(range[k] - want_range[k]) > 1e-9) {
            ok = false;
            snprintf(detail, sizeof detail, "reachable[%d] %.12g, expected %.12g", k, range[k], want_range[k]);
        }
    verdict(ok, "calibrate", i, detail);
    return OK;
}

static status run_select(struct stream *st, const struct doc_at *c, size_t i, struct err *e)
{
    struct doc_at scores;
    int64_t *chunks = NULL, *pruned = NULL;
    size_t n_chunks = 0, n_pruned = 0;
    uint32_t k = 0, max_chunk = 0;
    double lambda = 0;
    bool tds = false;
    TRY(doc_array(c, "scores", &scores, e));
    const size_t n = doc_count(&scores);
    TRY(ints_of(c, "chunks", &chunks, &n_chunks, e));
    TRY(ints_of(c, "pruned", &pruned, &n_pruned, e));
    TRY(doc_u32(c, "k", 0, UINT32_MAX, &k, e));
    TRY(doc_double(c, "lambda_div", -1e9, 1e9, &lambda, e));
    TRY(doc_bool(c, "tds", &tds, e));
    TRY(doc_u32(c, "max_chunk", 0, INT32_MAX, &max_chunk, e));
    if (n_chunks != n || n_pruned != k || k > n) return doc_err(c, e, "scores, chunks, k and pruned do not fit together");
    float *score = mem_must(n, sizeof *score);
    int32_t *chunk = mem_must(n, sizeof *chunk);
    uint32_t *keep = mem_must(n + 1, sizeof *keep);
    for (size_t j = 0; j < n; j++) {
        struct doc_at v;
        double x = NAN;            /* null: not a number */
        doc_element(&scores, j, &v);
        if (!json_is_null(v.v)) doc_as_double(&v, -1e300, 1e300, &x, e);
        score[j] = (float)x;
        chunk[j] = (int32_t)chunks[j];
    }
    void *scratch = NULL;
    status r = mem_alloc_aligned(&scratch, st->ops->select_scratch(st, (uint32_t)n) + 64, e);
    if (r == OK)
        r = st->ops->select(st, &(struct select_args){ .score = score, .chunk = chunk, .n = (uint32_t)n, .k = k, .tds = tds,
                                                       .lambda_div = lambda, .max_chunk = (int32_t)max_chunk, .keep = keep,
                                                       .scratch = scratch }, e);
    char detail[96] = "";
    bool ok = r == OK;
    for (size_t j = 0, a = 0, p = 0; ok && j < n; j++) {
        const bool want_pruned = p < n_pruned && pruned[p] == (int64_t)j, kept = a < n - k && keep[a] == j;
        p += want_pruned;
        a += kept;
        if (want_pruned == kept) {
            ok = false;
            snprintf(detail, sizeof detail, "token %zu is %s", j, kept ? "kept" : "pruned");
        }
    }
    if (r == OK) verdict(ok, "select", i, detail);
    free(scratch);
    free(keep);
    free(chunk);
    free(score);
    free(chunks);
    free(pruned);
    return r;
}

static status run_section(struct stream *st, const struct doc_at *root, const char *key, struct err *e)
{
    struct doc_at list, c;
    if (!doc_has(root, key)) return OK;
    TRY(doc_array(root, key, &list, e));
    for (size_t i = 0; i < doc_count(&list); i++) {
        doc_element(&list, i, &c);
        TRY(doc_as_object(&c, e));
        if (key[0] == 's' && key[1] == 'c') TRY(run_schedule(&c, i, e));
        else if (key[0] == 'c') TRY(run_calibrate(&c, i, e));
        else TRY(run_select(st, &c, i, e));
    }
    return OK;
}

static status run_file(struct stream *st, const char *path, struct err *e)
{
    static const char *const keys[] = { "format", "schedule", "calibrate", "select", NULL };
    struct doc_limits limits = doc_config_limits;
    struct doc doc;
    struct doc_at root;
    const char *format;
    limits.bytes_max = (size_t)1 << 30;
    TRY(doc_load(path, &limits, &doc, e));
    doc_root(&doc, &root);
    status r = doc_string(&root, "format", &format, e);
    if (r == OK && strcmp(format, "omnidrop-vectors-1") != 0)
        r = doc_err(&root, e, "format \"%s\": this runner takes omnidrop-vectors-1", format);
    if (r == OK) r = doc_only(&root, keys, e);
    for (int i = 1; r == OK && keys[i]; i++) r = run_section(st, &root, keys[i], e);
    doc_close(&doc);
    return r;
}

int main(int argc, char **argv)
{
    struct stream_options o = { .device = "cpu", .n_threads = 1 };
    struct stream *st = NULL;
    struct err e = { 0 };
    int files = 0;
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--isa") == 0) o.isa = argv[i + 1];
    if (stream_open(&o, &st, &e) != OK) {
        fprintf(stderr, "vectors: %s\n", e.text);
        return 2;
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--isa") == 0) {
            i++;
            continue;
        }
        files++;
        if (run_file(st, argv[i], &e) != OK) {
            printf("FAIL %s %s\n", argv[i], e.text);
            n_failed++;
        }
    }
    st->ops->close(&st);
    if (files == 0) {
        fprintf(stderr, "usage: vectors [--isa I] FILE...\n");
        return 2;
    }
    printf("%u passed, %u failed\n", n_passed, n_failed);
    return n_failed != 0;
}
