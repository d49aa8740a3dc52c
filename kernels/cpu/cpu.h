/* kernels/cpu/cpu.h - what the files of the CPU device share; nobody outside this folder includes it.
 *
 * Two kinds of files:
 *   *.c            compiled once, for any x86-64 (or other) machine: checks, loops over threads, layouts
 *   isa_*.c        compiled once per instruction set with -DISA=plain|avx2|avx512|avx512bf16 and its -m flags; each
 *                  defines one table of inner kernels. Vectors are GCC vector extensions of CPU_VEC floats
 *                  (vec.h), so one source serves all; only the bf16 dot product is an intrinsic.
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
};

static inline const struct cpu_stream *cpu_stream_of(const struct stream *st) { return (const struct cpu_stream *)st; }

#endif
