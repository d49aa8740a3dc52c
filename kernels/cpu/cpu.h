/* kernels/cpu/cpu.h - what the files of the CPU device share; nobody outside kernels/ includes it.
 *
 * Two kinds of files:
 *   *.c            compiled once, for any x86-64 (or other) machine: checks, loops over threads, layouts
 *   isa_*.c        compiled once per instruction set with -DISA=plain|avx2|avx512|avx512bf16 and its flags;
 *                  each defines one table of inner kernels. Vectors are GCC vector extensions of CPU_VEC
 *                  floats (vec.h), so one source serves all; intrinsics only where a line of those has no name.
 * The instruction set is chosen once, in stream.c. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "base/bf16.h"
#include "base/threads.h"
#include "kernels/ops.h"

#define CPU_PAGE_TOKENS 16
#define CPU_PANEL 32            /* output rows of one weight panel                                    */
#define CPU_TILE 12             /* most operand rows of one micro-kernel tile                         */

#define CPU_CAT2(a, b) a##_##b
#define CPU_CAT(a, b) CPU_CAT2(a, b)
#define CPU_ISA(name) CPU_CAT(name, ISA)      /* CPU_ISA(cpu_linear) -> cpu_linear_avx2 */

struct cpu_linear_kernels;      /* linear.h: packing, products, norms      */
struct cpu_attention_kernels;   /* attention.h: pages, softmax, scores     */

struct cpu_isa {
    const char *name;           /* "avx512-bf16" */
    bool (*supported)(void);
    bool dot_bf16;              /* bf16 operands stay bf16; else they are widened to f32 */
    const struct cpu_linear_kernels *linear;
    const struct cpu_attention_kernels *attention;
};

struct cpu_stream {
    struct stream base;
    struct threads *threads;
    const struct cpu_isa *isa;
    double began, took[OPS_TIMES]; /* time_begin; what is not read yet, the oldest first */
    uint32_t n_times;
};

/* The tables of inner kernels, one set per instruction set. */
extern const struct cpu_linear_kernels cpu_linear_kernels_plain, cpu_linear_kernels_avx2,
    cpu_linear_kernels_avx512, cpu_linear_kernels_avx512bf16;
extern const struct cpu_attention_kernels cpu_attention_kernels_plain, cpu_attention_kernels_avx2,
    cpu_attention_kernels_avx512, cpu_attention_kernels_avx512bf16;

static inline const struct cpu_stream *cpu_stream_of(const struct stream *st)
{
    return (const struct cpu_stream *)st;
}

/* Call body for all of 0 .. n-1, `grain` indices at a time, on whichever thread is free; on the caller alone
 * where there is only one piece. The pieces do not depend on the number of threads. */
typedef void (*cpu_body)(void *arg, int thread, uint32_t begin, uint32_t end);
void cpu_for(const struct stream *st, uint32_t n, uint32_t grain, cpu_body body, void *arg);

/* The same in pieces that shrink from `most` to 1 as the end comes near, so that long runs of neighbours stay
 * together and the threads still end at the same time. */
void cpu_for_shrinking(const struct stream *st, uint32_t n, uint32_t most, cpu_body body, void *arg);

/* kernels/stream.c opens a CPU stream through this. */
status cpu_stream_open(const struct stream_options *o, struct stream **out, struct err *e);

/* The entries of the table (stream.c), by the file that has them; meanings in kernels/ops.h. */
/* linear.c */
size_t cpu_operand_bytes(const struct stream *st, uint32_t rows, uint32_t k, enum dtype compute);
status cpu_weight_create(struct stream *st, const struct weight_args *a, struct weight **out, struct err *e);
void cpu_weight_destroy(struct stream *st, struct weight **w);
struct weight_shape cpu_weight_shape(const struct weight *w);
status cpu_embed(struct stream *st, const struct embed_args *a, struct err *e);
status cpu_linear(struct stream *st, const struct linear_args *a, struct err *e);
/* norm.c */
status cpu_norm(struct stream *st, const struct norm_args *a, struct err *e);
status cpu_pack(struct stream *st, const struct pack_args *a, struct err *e);
status cpu_im2col(struct stream *st, const struct im2col_args *a, struct err *e);
/* misc.c */
status cpu_gather(struct stream *st, const struct gather_args *a, struct err *e);
status cpu_scatter(struct stream *st, const struct scatter_args *a, struct err *e);
status cpu_add_rows(struct stream *st, const struct add_rows_args *a, struct err *e);
status cpu_mean_pairs(struct stream *st, const struct mean_pairs_args *a, struct err *e);
status cpu_page_copy(struct stream *st, const struct page_copy_args *a, struct err *e);
/* attention.c */
size_t cpu_page_bytes(const struct stream *st, uint32_t G, uint32_t D, enum dtype dtype);
size_t cpu_attention_scratch(const struct stream *st, uint32_t H, uint32_t D, uint32_t n, uint32_t max_keys);
status cpu_rope(struct stream *st, const struct rope_args *a, struct err *e);
status cpu_kv_write(struct stream *st, const struct kv_write_args *a, struct err *e);
status cpu_kv_compact(struct stream *st, const struct kv_compact_args *a, struct err *e);
status cpu_attention(struct stream *st, const struct attention_args *a, struct err *e);
status cpu_attention_decode(struct stream *st, const struct attention_args *a, struct err *e);
status cpu_segment_attention(struct stream *st, const struct segment_attention_args *a, struct err *e);
status cpu_query_scores(struct stream *st, const struct query_scores_args *a, struct err *e);
/* select.c */
size_t cpu_select_scratch(const struct stream *st, uint32_t n);
status cpu_select(struct stream *st, const struct select_args *a, struct err *e);
size_t cpu_choose_scratch(const struct stream *st, uint32_t n);
status cpu_choose(struct stream *st, const struct choose_args *a, struct err *e);
status cpu_list_rows(struct stream *st, const struct list_rows_args *a, struct err *e);
/* top.c */
status cpu_top(struct stream *st, const struct top_args *a, struct err *e);
/* cosine.c */
status cpu_cosine(struct stream *st, const struct cosine_args *a, struct err *e);
/* pairs.c */
size_t cpu_pair_scratch(const struct stream *st, uint32_t d, size_t n);
status cpu_means(struct stream *st, const struct means_args *a, struct err *e);
status cpu_nearest(struct stream *st, const struct nearest_args *a, struct err *e);
status cpu_density(struct stream *st, const struct density_args *a, struct err *e);
status cpu_farthest(struct stream *st, const struct farthest_args *a, struct err *e);
status cpu_merge(struct stream *st, const struct merge_args *a, struct err *e);
/* pagerank.c */
size_t cpu_pagerank_scratch(const struct stream *st, uint32_t H, uint32_t n);
status cpu_pagerank(struct stream *st, const struct pagerank_args *a, struct err *e);

#endif
