/* tests/bench/bench.c - runs the rows, prints the table, writes the JSON.
 *   bench [--only a,b] [--threads N] [--json FILE] [--list]
 *   bench --team N     for bench_ranks.c: the decoder of this rank, with N threads */
#include "tests/bench/bench.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct bench_row *const tables[] = { bench_kernel_rows, bench_model_rows, bench_load_rows,
                                              bench_media_rows, bench_attention_rows, bench_policy_rows, bench_serve_rows,
                                              bench_ranks_rows };
#define N_TABLES (sizeof tables / sizeof tables[0])

struct options {
    const char *only, *json;
    int n_threads;
    bool list;
};

/* Is `name` one of the words of the comma-separated list? NULL: all are. */
static bool chosen(const char *list, const char *name)
{
    if (list == NULL) return true;
    const size_t n = strlen(name);
    for (const char *p = list; p != NULL; p = strchr(p, ',')) {
        if (*p == ',') p++;
        if (strncmp(p, name, n) == 0 && (p[n] == 0 || p[n] == ',')) return true;
    }
    return false;
}

static bool known(const char *word, size_t n)
{
    for (size_t t = 0; t < N_TABLES; t++)
        for (const struct bench_row *row = tables[t]; row->name != NULL; row++)
            if (strlen(row->name) == n && strncmp(row->name, word, n) == 0) return true;
    return false;
}

static status options_parse(int argc, char **argv, struct options *o, struct err *e)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--list") == 0) {
            o->list = true;
            continue;
        }
        if (i + 1 == argc) return err_set(e, E_ARG, "%s: unknown, or its value is missing", argv[i]);
        const char *value = argv[++i];
        if (strcmp(argv[i - 1], "--only") == 0) o->only = value;
        else if (strcmp(argv[i - 1], "--json") == 0) o->json = value;
        else if (strcmp(argv[i - 1], "--threads") == 0) o->n_threads = atoi(value);
        else return err_set(e, E_ARG, "%s: unknown; there are --only, --threads, --json, --list", argv[i - 1]);
    }
    for (const char *p = o->only; p != NULL && *p != 0; p += strcspn(p, ","), p += *p == ',')
        if (!known(p, strcspn(p, ",")))
            return err_set(e, E_ARG, "no row '%.*s': --list shows them", (int)strcspn(p, ","), p);
    return OK;
}

/* How near to the bound; a row without one is its own. */
static double share_of(const struct bench_result *r)
{
    if (r->measured_unit != NULL) return r->value;
    if (r->floor == 0.0) return 1.0;
    return r->lower_is_better ? r->floor / r->value : r->value / r->floor;
}

static json_t *row_json(const struct bench *b, const char *name, const struct bench_result *r)
{
    char command[512];
    snprintf(command, sizeof command, "%s --threads %d --only %s", b->program, b->n_threads, name);
    const bool ratio = r->measured_unit != NULL;
    const double value = ratio ? r->measured : r->value;
    const double bound = ratio ? r->measured / r->value : r->floor == 0.0 ? r->value : r->floor;
    return json_pack("{s:s, s:f, s:s, s:f, s:f, s:f, s:s, s:s}", "name", name, "value", value, "unit",
                     ratio ? r->measured_unit : r->unit, "floor", bound, "share", share_of(r), "target",
                     ratio ? r->floor : 1.0, "command", command, "note", r->note);
}

static status run_rows(struct bench *b, const struct options *o, json_t *list, struct err *e)
{
    for (size_t t = 0; t < N_TABLES; t++)
        for (const struct bench_row *row = tables[t]; row->name != NULL; row++) {
            if (!chosen(o->only, row->name)) continue;
            struct bench_result r = { .unit = "" };
            const status s = row->run(b, &r, e);
            if (s != OK) return err_prefix(e, "%s", row->name);
            printf("%-18s %10.4g %-10s", row->name, r.value, r.unit);
            if (r.floor == 0.0) printf("%-12s", "");
            else printf("%s %-8.4g %s ", r.lower_is_better ? "<=" : ">=", r.floor,
                        (r.lower_is_better ? r.value <= r.floor : r.value >= r.floor) ? "yes" : "NO ");
            if (r.measured_unit != NULL) printf("%.4g %s;", r.measured, r.measured_unit);
            printf(" %s\n", r.note);
            fflush(stdout);
            json_array_append_new(list, row_json(b, row->name, &r));
        }
    return OK;
}

static status bench_main(const struct options *o, const char *program, struct err *e)
{
    struct bench b = { .program = program };
    const struct stream_options so = { .device = "cpu", .n_threads = o->n_threads };
    TRY(stream_open(&so, &b.st, e));
    char text[256];
    b.st->ops->describe(b.st, text, sizeof text);
    const char *threads = strrchr(text, ',');
    b.n_threads = threads != NULL ? atoi(threads + 1) : 1;
    printf("# %s\n", text);
    fflush(stdout);
    json_t *list = json_array();
    status s = run_rows(&b, o, list, e);
    if (s == OK && o->json != NULL && json_dump_file(list, o->json, JSON_INDENT(2)) != 0)
        s = err_set(e, E_IO, "cannot write %s", o->json);
    json_decref(list);
    bench_model_close();
    bench_serve_close();
    b.st->ops->close(&b.st);
    return s;
}

int main(int argc, char **argv)
{
    struct err e = { 0 };
    struct options o = { 0 };
    if (argc == 3 && strcmp(argv[1], "--team") == 0) return bench_team(atoi(argv[2]));
    if (options_parse(argc, argv, &o, &e) != OK) {
        fprintf(stderr, "bench: %s\n", e.text);
        return 2;
    }
    if (o.list) {
        for (size_t t = 0; t < N_TABLES; t++)
            for (const struct bench_row *row = tables[t]; row->name != NULL; row++) puts(row->name);
        return 0;
    }
    if (bench_main(&o, argv[0], &e) != OK) {
        fprintf(stderr, "bench: %s\n", e.text);
        return 1;
    }
    return 0;
}
