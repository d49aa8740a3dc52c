/* media/isa.h - inside header: one source, several instruction sets, the same bits.
 * A file of inner loops (mel_isa.h, resize_isa.h) is included once per set by its .c, with
 *   ISA_SUFFIX   plain, avx2, avx512: the ending of its function names
 *   ISA_LANES    floats a vector
 * under the compiler's target pragma. Products and sums are never contracted (-ffp-contract=off), so all sets
 * agree bit for bit. media_isa() says which set this machine runs; OMNIDROP_ISA=avx2|plain in the environment
 * lowers it. */
#ifndef MEDIA_ISA_H
#define MEDIA_ISA_H

#define ISA_CAT2(a, b) a##_##b
#define ISA_CAT(a, b) ISA_CAT2(a, b)
#define ISA_NAME(name) ISA_CAT(name, ISA_SUFFIX)

#if defined(__x86_64__)
#define MEDIA_HAVE_X86 1
#else
#define MEDIA_HAVE_X86 0
#endif

enum media_isa { MEDIA_PLAIN, MEDIA_AVX2, MEDIA_AVX512 };

/* The best set that this machine runs and the environment allows; found once. */
enum media_isa media_isa(void);

/* For tests: use this set from now on (it must not be above what the machine has). */
void media_isa_force(enum media_isa isa);

#endif
