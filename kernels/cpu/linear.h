/* kernels/cpu/linear.h - products: the weight layout and the inner kernels of isa_linear.c.
 *
 * A weight [N, K] is cut into panels of 32 output columns, each contiguous, so that a product walks memory in
 * order:
 *   bf16   [panel][K / 2][32][2]   a dword holds two k values of one output column
 *   f32    [panel][K][32]
 * K is padded to even (bf16) and N to 32 with zeros. WEIGHT_SWIGLU: a panel is 16 gate columns, then their 16
 * up columns. One output column sums its k pairs in order in one accumulator, whatever the rows, tile or
 * threads; long rows are summed in chunks of at most LINEAR_K_CHUNK that are added in order, where the output
 * can hold a sum (STORE, ADD, GELU). */
#ifndef KERNELS_CPU_LINEAR_H
#define KERNELS_CPU_LINEAR_H

#include "kernels/cpu/operand.h"

#define LINEAR_K_CHUNK 5120

struct weight {
    uint32_t n, k, n_panels;
    enum weight_form form;
    enum dtype compute;
    bool has_bias;
    size_t panel_bytes, bytes;
    void *data;
    float *bias;                  /* [n_panels * 32] in the order of the panels; NULL: none           */
};

/* The 32 rows of a checkpoint's tensors that make a panel. */
struct cpu_panel_source {
    const void *row[CPU_PANEL];   /* [k] elements at any alignment; NULL: zeros                       */
    enum dtype dtype[CPU_PANEL];
    uint32_t k;
    enum dtype compute;
};

struct cpu_product {
    struct operand x;
    bool x_pairs, out_pairs;
    const struct weight *w;
    enum linear_mode mode;
    uint32_t k0, k1;              /* this chunk of k: k0 even                                         */
    bool first, last;             /* ... is the first, the last                                       */
    float *y;
    size_t ldy;
    struct operand out;
};

struct cpu_norm_tile {
    const float *x;               /* [*, d]                                                           */
    const uint32_t *row;
    uint32_t d, group;
    const float *w, *b;
    float eps;
};

struct cpu_linear_kernels {
    void (*pack_panel)(const struct cpu_panel_source *s, void *panel);
    /* Panels [panel0, panel1) for tiles [tile0, tile1) of the operand. */
    void (*product)(const struct cpu_product *p, uint32_t panel0, uint32_t panel1, uint32_t tile0,
                    uint32_t tile1);
    /* Rows row0 .. row0 + t->m - 1 of the norm into the tile. */
    void (*norm_tile)(const struct cpu_norm_tile *a, uint32_t row0, const struct operand_tile *t);
    /* Columns [k0, k0 + n) of t->m rows at x, ldx floats apart; k0 a multiple of 32. */
    void (*fill_tile)(const struct operand_tile *t, uint32_t k0, uint32_t n, const float *x, size_t ldx);
};

#endif
