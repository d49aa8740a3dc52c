/* tests/bench/bench_ranks.c - several ranks on this host: sums of tensors beside MPI's own (tests/comm/ranks.c measures
 * both in one run), a decoder in two parts on one CPU each beside the whole one on the same two, and what NCCL's sums would
 * cost on GPUs, which is computed.
 *
 * The decoder of the second kind runs in programs of its own, this one again with --team: alone with two threads, under mpirun
 * with one each. They take turns, so that a ratio is of the same minute. */
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "cli/plan_profile.h"
#include "comm/comm.h"
#include "model/team.h"
#include "tests/bench/bench.h"
#include "tests/bench/pool.h"

/* As few settings as it takes, for MPI's own speed is measured. */
#define MPIRUN "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none mpirun -np 2"

/* ---- programs ------------------------------------------------------------------------------------------------ */

/* Runs `command` and gives each of its lines to `line`. */
static status run(const char *command, bool (*line)(void *self, const char *text), void *self, struct err *e)
{
    char text[512];
    FILE *f = popen(command, "r");
    if (f == NULL) return err_set(e, E_IO, "%s cannot be run", command);
    bool any = false;
    while (fgets(text, sizeof text, f) != NULL) any |= line(self, text);
    const int code = pclose(f);
    return code == 0 && any ? OK : err_set(e, E_INTERNAL, "status %d, %s: %s", code, any ? "with figures" : "no figure", command);
}

static bool has_mpirun(struct bench_result *r)
{
    if (system("command -v mpirun >/dev/null 2>&1") == 0) return true;
    r->unit = "-";
    snprintf(r->note, sizeof r->note, "no mpirun on this machine: not measured");
    return false;
}

/* `name` beside this program. */
static void beside(const struct bench *b, const char *name, char *out, size_t cap)
{
    const char *end = strrchr(b->program, '/');
    snprintf(out, cap, "%.*s%s", end ? (int)(end + 1 - b->program) : 0, b->program, name);
}

/* ---- sums ---------------------------------------------------------------------------------------------------- */

enum { SIZES = 16 };
static struct { size_t bytes; double ours_us, mpi_us; } sums[SIZES];
static int n_sums;

static bool sum_line(void *self, const char *text)
{
    (void)self;
    size_t bytes;
    double ours, mpi;
    if (n_sums == SIZES || sscanf(text, "%zu %lf %lf", &bytes, &ours, &mpi) != 3) return false;
    sums[n_sums].bytes = bytes;
    sums[n_sums].ours_us = ours;
    sums[n_sums++].mpi_us = mpi;
    return true;
}

static status run_sum(struct bench *b, size_t bytes, struct bench_result *r, struct err *e)
{
    char command[1024], ranks[512];
    if (!has_mpirun(r)) return OK;
    beside(b, "tests/comm/ranks", ranks, sizeof ranks);
    snprintf(command, sizeof command, MPIRUN " %s bench", ranks);
    if (n_sums == 0) TRY(run(command, sum_line, NULL, e));
    int i = 0;
    while (i < n_sums && sums[i].bytes != bytes) i++;
    if (i == n_sums || !(sums[i].mpi_us > 0)) return err_set(e, E_INTERNAL, "%s has no figures for %zu bytes", command, bytes);
    r->value = sums[i].mpi_us / sums[i].ours_us;
    r->unit = "x MPI";
    r->floor = 1;
    r->measured = bytes < 65536 ? 1e6 / sums[i].ours_us : (double)bytes / sums[i].ours_us * 1e-3;
    r->measured_unit = bytes < 65536 ? "calls/s" : "GB/s";
    snprintf(r->note, sizeof r->note, "all-reduce of %zu bytes by 2 ranks: %.2f us, MPI_Allreduce %.2f us", bytes, sums[i].ours_us,
             sums[i].mpi_us);
    return OK;
}

static status run_sum_4(struct bench *b, struct bench_result *r, struct err *e) { return run_sum(b, 4, r, e); }
static status run_sum_16k(struct bench *b, struct bench_result *r, struct err *e) { return run_sum(b, 16 << 10, r, e); }
static status run_sum_256k(struct bench *b, struct bench_result *r, struct err *e) { return run_sum(b, 256 << 10, r, e); }
static status run_sum_16m(struct bench *b, struct bench_result *r, struct err *e) { return run_sum(b, 16 << 20, r, e); }

/* ---- a decoder in two parts ---------------------------------------------------------------------------------- */

enum { PROMPT = 512, TOKENS = 32, PASSES = 3, ROUNDS = 3 };

struct run_of {                    /* one sequence on a team */
    struct team *t;
    struct decoder *dc;
    const struct decoder_shape *s;
    struct team_rows *x, *angles;
    struct kv_shape kv;
    struct kv_view *view;          /* [L] */
    uint32_t per_layer, *page;
    float *logits;
};

static status prefill(struct run_of *o, struct err *e)
{
    const uint32_t start[2] = { 0, PROMPT }, zero = 0, last = PROMPT - 1;
    uint32_t angle[PROMPT], visible[PROMPT];
    int32_t id[PROMPT], pos[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++) {
        angle[i] = i;
        visible[i] = i + 1;
        pos[i] = (int32_t)i;
        id[i] = (int32_t)(i * 7919u % o->s->V);
    }
    const int32_t *const all[3] = { pos, pos, pos };
    TRY(team_angles(o->t, all, PROMPT, o->angles, 0, e));
    TRY(team_embed(o->t, id, PROMPT, o->x, e));
    for (uint32_t l = 0; l < o->s->L; l++) {
        o->view[l].n_rows = PROMPT;
        const struct team_batch b = { .b = { .n_seqs = 1, .seq_start = start, .view = &o->view[l], .angle = angle },
                                      .angles = o->angles, .x = o->x };
        TRY(team_layer(o->t, l, &b, &zero, visible, e));
    }
    return team_logits(o->t, o->x, 0, &last, 1, o->logits, e);
}

static status decode(struct run_of *o, struct err *e)
{
    for (int32_t i = 0; i < TOKENS; i++) {
        const int32_t id = (int32_t)((uint32_t)i * 7919u % o->s->V), pos = PROMPT + i;
        for (uint32_t l = 0; l < o->s->L; l++) o->view[l].n_rows = PROMPT + (uint32_t)i + 1;
        TRY(team_step(o->t, &id, &pos, 1, o->view, o->angles, o->x, e));
        TRY(team_logits(o->t, o->x, 0, NULL, 1, o->logits, e));
    }
    return OK;
}

/* The leader: one line of tokens a second, prompt and answer; medians of the passes. */
static status lead(struct run_of *o, struct err *e)
{
    const uint32_t L = o->s->L, per = decoder_kv_shape(o->dc).page_tokens;
    double first[PASSES], then[PASSES];
    o->per_layer = (PROMPT + TOKENS + per - 1) / per;
    TRY(team_pages(o->t, L * o->per_layer, &o->kv, e));
    TRY(team_rows_open(o->t, PROMPT, o->s->d, &o->x, e));
    TRY(team_angles_open(o->t, PROMPT, &o->angles, e));
    TRY(mem_alloc(&o->view, L, sizeof *o->view, e));
    TRY(mem_alloc(&o->page, (size_t)L * o->per_layer, sizeof *o->page, e));
    TRY(mem_alloc(&o->logits, o->s->V, sizeof *o->logits, e));
    for (uint32_t i = 0; i < L * o->per_layer; i++) o->page[i] = i;
    for (uint32_t l = 0; l < L; l++) o->view[l].page = o->page + (size_t)l * o->per_layer;
    for (int i = -1; i < PASSES; i++) {        /* the first touches the memory */
        double t = clock_s();
        TRY(prefill(o, e));
        if (i >= 0) first[i] = PROMPT / (clock_s() - t);
        t = clock_s();
        TRY(decode(o, e));
        if (i >= 0) then[i] = TOKENS / (clock_s() - t);
    }
    printf("team %.3f %.3f\n", bench_median(first, PASSES), bench_median(then, PASSES));
    fflush(stdout);
    team_rows_close(o->t, &o->angles);
    team_rows_close(o->t, &o->x);
    return OK;
}

int bench_team(int n_threads)
{
    enum { BLOCK = 1032, CONTEXT = 2048 };
    struct bench_pool pool = { .n = (size_t)bench_model_shape.V * bench_model_shape.d, .shape = &bench_model_shape };
    const struct decoder_source src = bench_pool_source(&pool);
    const struct stream_options so = { .device = "cpu", .n_threads = n_threads };
    struct run_of o = { .s = &bench_model_shape };
    struct comm *world = NULL;
    struct stream *st = NULL;
    struct err e = { 0 };
    uint32_t n;
    status s = OK;
    if (comm_launched(&n)) s = comm_world_open(NULL, &world, &e);
    if (s == OK) s = stream_open(&so, &st, &e);
    if (s == OK) s = bench_random_bf16(pool.n, 0.05f, &pool.values, &e);
    if (s == OK) s = decoder_create_slice(st, &bench_model_shape, &src, DT_BF16, DT_BF16, BLOCK, CONTEXT, world, &o.dc, &e);
    free(pool.values);
    if (s == OK) s = team_open(o.dc, world, false, &o.t, &e);
    if (s == OK) s = world != NULL && comm_rank(world) != 0 ? team_work(o.t, &e) : lead(&o, &e);
    team_close(&o.t);
    if (s != OK) {
        fprintf(stderr, "bench --team: %s\n", e.text);
        comm_exit(world, 1);           /* whoever waits for this rank hears of it */
    }
    decoder_destroy(&o.dc);
    st->ops->close(&st);
    comm_close(&world);
    free(o.view);
    free(o.page);
    free(o.logits);
    return 0;
}

static double teams[2][2][ROUNDS];     /* alone, in two parts; prompt, answer; tokens a second */
static bool teams_known;

static bool team_line(void *self, const char *text)
{
    double *at = self;
    return sscanf(text, "team %lf %lf", &at[0], &at[1]) == 2;
}

/* On the first two CPUs that this program may use, and no other. */
static status run_teams(const struct bench *b, struct err *e)
{
    cpu_set_t all, two;
    char command[2][1024];
    if (teams_known) return OK;
    snprintf(command[0], sizeof command[0], "%s --team 2", b->program);
    snprintf(command[1], sizeof command[1], MPIRUN " %s --team 1", b->program);
    CPU_ZERO(&two);
    if (sched_getaffinity(0, sizeof all, &all) != 0) CPU_ZERO(&all);
    for (int c = 0; c < CPU_SETSIZE && CPU_COUNT(&two) < 2; c++)
        if (CPU_ISSET(c, &all)) CPU_SET(c, &two);
    if (CPU_COUNT(&two) < 2) return err_set(e, E_INTERNAL, "two CPUs are wanted");
    sched_setaffinity(0, sizeof two, &two);
    status s = OK;
    for (int i = 0; s == OK && i < ROUNDS; i++)
        for (int k = 0; s == OK && k < 2; k++) {
            double v[2];
            s = run(command[k], team_line, v, e);
            teams[k][0][i] = v[0];
            teams[k][1][i] = v[1];
        }
    sched_setaffinity(0, sizeof all, &all);
    teams_known = s == OK;
    return s;
}

static status run_parts(struct bench *b, int which, struct bench_result *r, struct err *e)
{
    double ratio[ROUNDS], alone[ROUNDS], parts[ROUNDS];
    if (!has_mpirun(r)) return OK;
    TRY(run_teams(b, e));
    for (int i = 0; i < ROUNDS; i++) {
        alone[i] = teams[0][which][i];
        parts[i] = teams[1][which][i];
        ratio[i] = parts[i] / alone[i];
    }
    r->value = bench_median(ratio, ROUNDS);
    r->unit = "x tp 1";
    r->floor = 0.9;
    r->measured = bench_median(parts, ROUNDS);
    r->measured_unit = "tokens/s";
    snprintf(r->note, sizeof r->note, "tp 2 of 1 thread beside tp 1 of 2 threads (%.4g tokens/s) on the same two CPUs, %s",
             bench_median(alone, ROUNDS), which ? "32 tokens after 512, one sequence" : "a prompt of 512");
    return OK;
}

static status run_parts_prefill(struct bench *b, struct bench_result *r, struct err *e) { return run_parts(b, 0, r, e); }
static status run_parts_decode(struct bench *b, struct bench_result *r, struct err *e) { return run_parts(b, 1, r, e); }

/* ---- NCCL, computed ------------------------------------------------------------------------------------------ */

/* Two sums a layer of rows of the 7B model's width in bf16, by the formulas and the profiles of `bench plan`: 18 us a call,
 * 370 GB/s of a ring's bytes over NVLink 4 (cli/plan_profile.c). The H100 and the H200 have the same links. */
static status run_nccl(uint32_t tp, struct bench_result *r, struct err *e)
{
    enum { ROWS = 10140 + 40, DEPTH = ROWS };
    char *p = r->note;
    p += snprintf(p, sizeof r->note, "COMPUTED, not measured: Qwen2.5-Omni-7B;");
    for (int i = 0; i < 2; i++) {
        static const char *const name[] = { "h200", "h100" };
        struct plan_profile v;
        struct sim_options o = { .tp = tp };
        double of[3] = { 0 }, all[3] = { 0 };
        TRY(plan_profile_load(name[i], &v, e));
        if (!plan_model_preset("7b", &o.model)) return err_set(e, E_INTERNAL, "no model 7b");
        o.device = v.device;
        o.model.value_bytes = v.value_bytes;
        o.model.kv_value_bytes = v.kv_value_bytes;
        const uint32_t L = o.model.work.L;
        for (uint32_t l = 0; l < L; l++) all[0] += sim_range_s(&o, ROWS, true, true, 0.5 * ROWS * (ROWS + 1.0), &of[0]);
        all[1] = sim_decode_s(&o, 1, (double)L * DEPTH, &of[1]);
        all[2] = sim_decode_s(&o, 32, 32.0 * L * DEPTH, &of[2]);
        p += snprintf(p, sizeof r->note - (size_t)(p - r->note), " %s: of a prefill of %d rows %.1f of %.0f ms (%.0f %%), of a step of 1 "
                      "%.2f of %.2f (%.0f %%), of 32 %.2f of %.1f (%.0f %%);", name[i], ROWS, of[0] * 1e3, all[0] * 1e3,
                      100 * of[0] / all[0], of[1] * 1e3, all[1] * 1e3, 100 * of[1] / all[1], of[2] * 1e3, all[2] * 1e3,
                      100 * of[2] / all[2]);
        if (i == 0) r->value = of[1] * 1e3;
    }
    r->unit = "ms/step";
    return OK;
}

static status run_nccl_2(struct bench *b, struct bench_result *r, struct err *e) { return (void)b, run_nccl(2, r, e); }
static status run_nccl_4(struct bench *b, struct bench_result *r, struct err *e) { return (void)b, run_nccl(4, r, e); }
static status run_nccl_8(struct bench *b, struct bench_result *r, struct err *e) { return (void)b, run_nccl(8, r, e); }

const struct bench_row bench_ranks_rows[] = {
    { "all_reduce_4", run_sum_4 },         { "all_reduce_16k", run_sum_16k },
    { "all_reduce_256k", run_sum_256k },   { "all_reduce_16m", run_sum_16m },
    { "tp2_prefill_512", run_parts_prefill }, { "tp2_decode", run_parts_decode },
    { "computed_nccl_tp2", run_nccl_2 },   { "computed_nccl_tp4", run_nccl_4 },
    { "computed_nccl_tp8", run_nccl_8 },   { NULL, NULL },
};
