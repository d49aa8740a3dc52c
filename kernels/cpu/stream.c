/* kernels/cpu/stream.c - the CPU's table of operations, and the choice of the instruction set. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "kernels/cpu/cpu.h"

/* ---- instruction sets -------------------------------------------------------------------------------- */

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && has_avx2();
}
static bool has_avx512bf16(void) { return __builtin_cpu_supports("avx512bf16") && has_avx512(); }
#endif
static bool has_plain(void) { return true; }

/* Best first. */
static const struct cpu_isa isas[] = {
#if defined(__x86_64__)
    { "avx512-bf16", has_avx512bf16, true, &cpu_linear_kernels_avx512bf16,
      &cpu_attention_kernels_avx512bf16 },
    { "avx512", has_avx512, false, &cpu_linear_kernels_avx512, &cpu_attention_kernels_avx512 },
    { "avx2", has_avx2, false, &cpu_linear_kernels_avx2, &cpu_attention_kernels_avx2 },
#endif
    { "plain", has_plain, false, &cpu_linear_kernels_plain, &cpu_attention_kernels_plain },
};
#define N_ISAS (sizeof isas / sizeof isas[0])

const char *const *cpu_isas(void)
{
    static const char *name[N_ISAS + 1];
    uint32_t n = 0;
    for (uint32_t i = 0; i < N_ISAS; i++)
        if (isas[i].supported()) name[n++] = isas[i].name;   /* the same values from every caller */
    return name;
}

/* NULL or "": the best. */
static status isa_find(const char *name, const struct cpu_isa **out, struct err *e)
{
    char has[128] = "";
    for (uint32_t i = 0; i < N_ISAS; i++) {
        if (!isas[i].supported()) continue;
        if (name == NULL || name[0] == 0 || strcmp(name, isas[i].name) == 0) {
            *out = &isas[i];
            return OK;
        }
        const size_t used = strlen(has);
        snprintf(has + used, sizeof has - used, "%s%s", used ? ", " : "", isas[i].name);
    }
    return err_set(e, E_MODEL, "no instruction set '%s' on this machine: it has %s", name, has);
}

/* ---- memory ------------------------------------------------------------------------------------------ */

static status cpu_alloc(struct stream *st, size_t bytes, void **out, struct err *e)
{
    (void)st;
    return mem_alloc_aligned(out, bytes, e);
}

static void cpu_release(struct stream *st, void *p)
{
    (void)st;
    free(p);
}

static status cpu_upload(struct stream *st, void *dst, const void *host, size_t bytes, struct err *e)
{
    (void)st, (void)e;
    if (bytes > 0) memcpy(dst, host, bytes);
    return OK;
}

static status cpu_download(struct stream *st, void *host, const void *src, size_t bytes, struct err *e)
{
    (void)st, (void)e;
    if (bytes > 0) memcpy(host, src, bytes);
    return OK;
}

static status cpu_sync(struct stream *st, struct err *e)
{
    (void)st, (void)e;
    return OK;
}

/* Work is done when an op returns. */
static status cpu_time_begin(struct stream *st, struct err *e)
{
    struct cpu_stream *s = (struct cpu_stream *)st;
    if (s->n_times == OPS_TIMES) return err_set(e, E_ARG, "%d times that nobody has read", OPS_TIMES);
    s->began = clock_s();
    return OK;
}

static status cpu_time_end(struct stream *st, struct err *e)
{
    struct cpu_stream *s = (struct cpu_stream *)st;
    (void)e;
    s->took[s->n_times++] = clock_s() - s->began;
    return OK;
}

static status cpu_time_read(struct stream *st, bool wait, double *seconds, struct err *e)
{
    struct cpu_stream *s = (struct cpu_stream *)st;
    (void)wait, (void)e;
    *seconds = s->n_times > 0 ? s->took[0] : NAN;
    if (s->n_times > 0) memmove(s->took, s->took + 1, --s->n_times * sizeof *s->took);
    return OK;
}

/* ---- the stream -------------------------------------------------------------------------------------- */

/* "AMD EPYC" from /proc/cpuinfo, else "CPU". */
static void cpu_model(char *name, size_t cap)
{
    snprintf(name, cap, "CPU");
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (f == NULL) return;
    char line[256];
    while (fgets(line, sizeof line, f) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        snprintf(name, cap, "%s", colon + 1 + strspn(colon + 1, " \t"));
        name[strcspn(name, "\n")] = 0;
        break;
    }
    fclose(f);
}

static void cpu_describe(const struct stream *st, char *text, size_t cap)
{
    const struct cpu_stream *s = cpu_stream_of(st);
    const int n = threads_count(s->threads);
    char model[128];
    cpu_model(model, sizeof model);
    snprintf(text, cap, "%s, %s, %d thread%s", model, s->isa->name, n, n == 1 ? "" : "s");
}

static void cpu_step_begin(struct stream *st, const void *owner, uint32_t rows) { (void)st, (void)owner, (void)rows; }
static status cpu_step_end(struct stream *st, bool drop, struct err *e)
{
    (void)st, (void)drop, (void)e;
    return OK;
}

static void cpu_close(struct stream **st)
{
    struct cpu_stream *s = (struct cpu_stream *)*st;
    if (s == NULL) return;
    threads_destroy(&s->threads);
    free(s);
    *st = NULL;
}

static const struct ops cpu_ops = {
    .name = "cpu",
    .page_tokens = CPU_PAGE_TOKENS,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_upload,
    .download = cpu_download,
    .fetch = cpu_download,
    .sync = cpu_sync,
    .time_begin = cpu_time_begin,
    .time_end = cpu_time_end,
    .time_read = cpu_time_read,
    .operand_bytes = cpu_operand_bytes,
    .page_bytes = cpu_page_bytes,
    .attention_scratch = cpu_attention_scratch,
    .select_scratch = cpu_select_scratch,
    .choose_scratch = cpu_choose_scratch,
    .weight_create = cpu_weight_create,
    .weight_destroy = cpu_weight_destroy,
    .weight_shape = cpu_weight_shape,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .pack = cpu_pack,
    .linear = cpu_linear,
    .im2col = cpu_im2col,
    .rope = cpu_rope,
    .kv_write = cpu_kv_write,
    .attention = cpu_attention,
    .attention_decode = cpu_attention_decode,
    .segment_attention = cpu_segment_attention,
    .query_scores = cpu_query_scores,
    .select = cpu_select,
    .list_rows = cpu_list_rows,
    .choose = cpu_choose,
    .cosine = cpu_cosine,
    .pair_scratch = cpu_pair_scratch,
    .pagerank_scratch = cpu_pagerank_scratch,
    .means = cpu_means,
    .nearest = cpu_nearest,
    .density = cpu_density,
    .farthest = cpu_farthest,
    .merge = cpu_merge,
    .pagerank = cpu_pagerank,
    .top = cpu_top,
    .gather = cpu_gather,
    .scatter = cpu_scatter,
    .add_rows = cpu_add_rows,
    .mean_pairs = cpu_mean_pairs,
    .page_copy = cpu_page_copy,
    .kv_compact = cpu_kv_compact,
    .step_begin = cpu_step_begin,
    .step_end = cpu_step_end,
    .describe = cpu_describe,
    .close = cpu_close,
};

status cpu_stream_open(const struct stream_options *o, struct stream **out, struct err *e)
{
    const struct cpu_isa *isa = NULL;
    TRY(isa_find(o->isa != NULL ? o->isa : getenv("OMNIDROP_ISA"), &isa, e));
    struct threads *threads;
    TRY(threads_create(o->n_threads, &threads, e));
    struct cpu_stream *s = mem_must(1, sizeof *s);
    *s = (struct cpu_stream){ .base = { &cpu_ops }, .threads = threads, .isa = isa };
    *out = &s->base;
    return OK;
}
