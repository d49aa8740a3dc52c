/* kernels/cuda/linear.c - weights on the device and products by cuBLASLt. See inside.h.
 *
 * Everything is row-major here and column-major there: x [M, K], W [N, K] and y [M, N] are its B (K x M), A (K x N, taken
 * transposed) and D (N x M), all as they lie. Bf16 operands with f32 sums, or f32 throughout (no TF32). The bias is an epilogue
 * where the product is what is wanted; cuBLASLt's GELU is the tanh form and it has no SwiGLU, so those are kernels over its output
 * (rows.cu).
 *
 * A *plan* is a product's algorithm, the library's first choice for its shape, kept for the life of the stream. The bits of a row
 * must not depend on the rows beside it (ops.h): so a plan is not asked for the number of rows at hand but for one of two numbers
 * that stand for all up to FEW and for all above, and only algorithms that neither split K nor reduce afterwards are taken. Then a
 * row's sums run in one order inside each of the two. Between them the bits may differ, as a tile suited to few rows may step
 * through K otherwise; OMNIDROP_CUDA_ONE_PLAN=1 takes the plan of many for all, and few rows pay. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bf16.h"
#include "base/mem.h"
#include "kernels/cuda/inside.h"
#include "kernels/element.h"

#define WORKSPACE_BYTES ((size_t)32 << 20)
enum { FEW = 64, FEW_AS = 16, MANY_AS = 2048, PIECE_ROWS_MIN = 1024, CHOICES = 16 };

static status lt_check(cublasStatus_t rc, const char *what, struct err *e)
{
    if (rc == CUBLAS_STATUS_SUCCESS) return OK;
    return err_set(e, rc == CUBLAS_STATUS_ALLOC_FAILED ? E_NOMEM : E_DEVICE, "%s: cuBLASLt says %s", what, cublasLtGetStatusString(rc));
}

/* ---- weights --------------------------------------------------------------------------------------------- */

struct pack_job {
    const struct weight_args *a;
    const struct weight *w;
    char *to;
    uint32_t first, n;            /* rows as they lie */
    atomic_uint next;
};

/* Row r of a weight as it lies: its part and the row of that. NULL: zeros. */
static const struct weight_part *part_of_row(const struct weight_args *a, uint32_t r, uint32_t *row)
{
    if (a->form == WEIGHT_SWIGLU) {
        *row = r / 16 * 8 + r % 8;
        return *row < a->part[0].n ? &a->part[r / 8 % 2] : NULL;
    }
    *row = r;
    for (uint32_t i = 0; i < a->n_parts; *row -= a->part[i++].n)
        if (*row < a->part[i].n) return &a->part[i];
    return NULL;
}

static void pack_row(const struct pack_job *j, uint32_t r, char *to)
{
    uint32_t row;
    const uint32_t k = j->w->k;
    const enum dtype compute = j->w->compute;
    const size_t size = dtype_size(compute), width = cuda_columns(k) * size;
    const struct weight_part *p = part_of_row(j->a, r, &row);
    if (p == NULL) {
        memset(to, 0, width);
        return;
    }
    const char *from = (const char *)p->data + row * (p->ld ? p->ld : k) * dtype_size(p->dtype);
    memset(to + k * size, 0, width - k * size);
    if (p->dtype == compute) {
        memcpy(to, from, k * size);
    } else {
        for (uint32_t i = 0; i < k; i++) {
            const float f = element(from, p->dtype, i);
            if (compute == DT_F32) ((float *)(void *)to)[i] = f;
            else ((bf16 *)(void *)to)[i] = bf16_of_f32(f);
        }
    }
}

static void pack_rows(void *arg, int thread, int n_threads)
{
    (void)thread, (void)n_threads;
    enum { EACH = 16 };
    struct pack_job *j = arg;
    const size_t width = cuda_columns(j->w->k) * dtype_size(j->w->compute);
    for (uint32_t i; (i = atomic_fetch_add(&j->next, EACH)) < j->n;)
        for (uint32_t r = i; r < j->n && r < i + EACH; r++) pack_row(j, j->first + r, j->to + r * width);
}

static status weight_check(const struct weight_args *a, struct err *e)
{
    if (a->n_parts < 1 || a->n_parts > 3 || a->k < 1)
        return err_set(e, E_ARG, "a weight of %u parts and k = %u: need 1 to 3 parts and k >= 1", a->n_parts, a->k);
    if (a->compute != DT_F32 && a->compute != DT_BF16) return err_set(e, E_ARG, "a weight can be computed in f32 or bf16 only");
    if (a->form == WEIGHT_SWIGLU && (a->n_parts != 2 || a->part[0].n != a->part[1].n))
        return err_set(e, E_ARG, "a gated weight needs two parts of equal rows");
    uint64_t n = 0;
    for (uint32_t i = 0; i < a->n_parts; i++) {
        if (a->part[i].n < 1) return err_set(e, E_ARG, "part %u of a weight has no rows", i);
        if (a->part[i].ld && a->part[i].ld < a->k)
            return err_set(e, E_ARG, "part %u of a weight: rows of k = %u do not fit %zu elements apart", i, a->k, a->part[i].ld);
        n += a->part[i].n;
    }
    if (n > INT32_MAX) return err_set(e, E_ARG, "a weight of %llu rows: too many", (unsigned long long)n);
    if ((uint64_t)cuda_columns(a->k) * 4 > CUDA_STAGE_BYTES)
        return err_set(e, E_ARG, "a weight of k = %u: rows are at most %zu bytes here", a->k, CUDA_STAGE_BYTES);
    return OK;
}

/* Stage by stage: threads read the file's pages (and make bf16 of what is not) while stages before are on their way. */
static status weight_send(struct cuda_stream *s, const struct weight_args *a, const struct weight *w, struct err *e)
{
    const size_t width = cuda_columns(w->k) * dtype_size(w->compute);
    const uint32_t fit = (uint32_t)(CUDA_STAGE_BYTES / width);
    TRY(cuda_behind_main(s, w->data, e));
    for (uint32_t r = 0; r < w->rows; r += fit) {
        struct cuda_stage *g;
        const uint32_t i = s->next_copy++ % CUDA_COPIES;
        TRY(cuda_stage_next(s, &g, e));
        struct pack_job j = { .a = a, .w = w, .to = g->host, .first = r, .n = w->rows - r < fit ? w->rows - r : fit };
        threads_share(s->threads, pack_rows, &j);
        TRY(cuda_stage_send(g, (char *)w->data + r * width, j.n * width, s->copy[i], e));
    }
    for (int i = 0; i < CUDA_COPIES; i++) {
        TRY(cuda_check(cudaEventRecord(s->copied[i], s->copy[i]), "marking a weight", e));
        TRY(cuda_check(cudaStreamWaitEvent(s->main, s->copied[i], 0), "waiting for a weight", e));
    }
    return OK;
}

static status bias_send(struct cuda_stream *s, const struct weight_args *a, struct weight *w, struct err *e)
{
    float *bias;
    bool exact = true;
    TRY(mem_alloc(&bias, w->rows, sizeof *bias, e));
    for (uint32_t r = 0; r < w->rows; r++) {
        uint32_t row;
        const struct weight_part *p = part_of_row(a, r, &row);
        if (p != NULL && p->bias != NULL) bias[r] = element(p->bias, p->bias_dtype, row);
        exact = exact && bf16_to_f32(bf16_of_f32(bias[r])) == bias[r];
    }
    if (!exact) w->gated = DT_F32;
    const bool half = w->form == WEIGHT_SWIGLU && w->gated == DT_BF16;
    for (uint32_t r = 0; half && r < w->rows; r++) {
        const bf16 b = bf16_of_f32(bias[r]);
        memcpy((char *)bias + 2 * (size_t)r, &b, sizeof b);       /* never ahead of what is read */
    }
    const size_t bytes = (size_t)w->rows * (half ? 2 : 4);
    status st = cuda_alloc(&s->base, bytes, (void **)&w->bias, e);
    if (st == OK) st = cuda_upload(&s->base, w->bias, bias, bytes, e);
    free(bias);
    w->bytes += bytes;
    return st;
}

status cuda_weight_create(struct stream *st, const struct weight_args *a, struct weight **out, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    TRY(weight_check(a, e));
    struct weight *w = mem_must(1, sizeof *w);
    *w = (struct weight){ .k = a->k, .form = a->form, .compute = a->compute, .gated = a->compute };
    bool biased = false;
    for (uint32_t i = 0; i < a->n_parts; i++) {
        w->n += a->part[i].n;
        biased = biased || a->part[i].bias != NULL;
    }
    w->rows = a->form == WEIGHT_SWIGLU ? 2 * cuda_columns(a->part[0].n) : w->n;
    w->bytes = (size_t)w->rows * cuda_columns(w->k) * dtype_size(w->compute);
    status code = cuda_alloc(st, w->bytes, &w->data, e);
    if (code == OK) code = weight_send(s, a, w, e);
    if (code == OK && biased) code = bias_send(s, a, w, e);
    const size_t row = (size_t)w->rows * dtype_size(w->form == WEIGHT_SWIGLU ? w->gated : DT_F32);
    if (row > s->widest) s->widest = row;
    if (code != OK) cuda_weight_destroy(st, &w);
    *out = w;
    return code;
}

void cuda_weight_destroy(struct stream *st, struct weight **w)
{
    if (*w == NULL) return;
    cuda_release(st, (*w)->data);
    cuda_release(st, (*w)->bias);
    free(*w);
    *w = NULL;
}

struct weight_shape cuda_weight_shape(const struct weight *w)
{
    return (struct weight_shape){ w->n, w->k, w->compute, w->bias != NULL, w->bytes };
}

/* ---- plans ----------------------------------------------------------------------------------------------- */

/* All 32-bit words, so that two are compared as bytes. */
struct plan_key { uint32_t n, k, compute, y, bias, add, few, align; };

struct cuda_plan {
    struct plan_key key;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
};

static cudaDataType_t type_of(enum dtype t) { return t == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

#define STEP(call) do { if (rc == CUBLAS_STATUS_SUCCESS) rc = (call); } while (0)
#define SET_PRODUCT(p, what, v) STEP(cublasLtMatmulDescSetAttribute((p)->product, CUBLASLT_MATMUL_DESC_##what, &(v), sizeof(v)))
#define SET_LAYOUT(layout, what, v) STEP(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_##what, &(v), sizeof(v)))
#define PREFER(what, v) STEP(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_##what, &(v), sizeof(v)))

static cublasStatus_t describe(struct cuda_plan *p)
{
    const struct plan_key *k = &p->key;
    const cublasOperation_t transposed = CUBLAS_OP_T, as_is = CUBLAS_OP_N;
    const cudaDataType_t in = type_of((enum dtype)k->compute), out = type_of((enum dtype)k->y);
    const cublasLtEpilogue_t epilogue = k->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    const uint32_t columns = cuda_columns(k->k), rows = k->few ? FEW_AS : MANY_AS;
    cublasStatus_t rc = cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    SET_PRODUCT(p, TRANSA, transposed);
    SET_PRODUCT(p, TRANSB, as_is);
    SET_PRODUCT(p, EPILOGUE, epilogue);
    if (k->bias) SET_PRODUCT(p, BIAS_DATA_TYPE, out);
    STEP(cublasLtMatrixLayoutCreate(&p->w, in, columns, k->n, columns));
    STEP(cublasLtMatrixLayoutCreate(&p->x, in, columns, rows, columns));
    STEP(cublasLtMatrixLayoutCreate(&p->y, out, k->n, rows, k->n));
    return rc;
}

/* Does it sum each value of y in one piece? */
static bool whole_sums(const cublasLtMatmulAlgo_t *a)
{
    int32_t split = 0;
    uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
    size_t n;
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split, &n);
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme, &n);
    return split <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* For the rows that p's layouts say. */
static status choose(struct cuda_stream *s, const struct cuda_plan *p, cublasLtMatmulAlgo_t *algo, struct err *e)
{
    const struct plan_key *k = &p->key;
    const uint64_t workspace = WORKSPACE_BYTES;
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE, in = 16, out = k->align;
    cublasLtMatmulPreference_t want = NULL;
    cublasLtMatmulHeuristicResult_t found[CHOICES];
    int n = 0, i = 0;
    cublasStatus_t rc = cublasLtMatmulPreferenceCreate(&want);
    PREFER(MAX_WORKSPACE_BYTES, workspace);
    PREFER(REDUCTION_SCHEME_MASK, schemes);
    PREFER(MIN_ALIGNMENT_A_BYTES, in);
    PREFER(MIN_ALIGNMENT_B_BYTES, in);
    PREFER(MIN_ALIGNMENT_C_BYTES, out);
    PREFER(MIN_ALIGNMENT_D_BYTES, out);
    STEP(cublasLtMatmulAlgoGetHeuristic(s->lt, p->product, p->w, p->x, p->y, p->y, want, CHOICES, found, &n));
    if (want) cublasLtMatmulPreferenceDestroy(want);
    while (rc == CUBLAS_STATUS_SUCCESS && i < n && (found[i].state != CUBLAS_STATUS_SUCCESS || !whole_sums(&found[i].algo))) i++;
    if (rc == CUBLAS_STATUS_SUCCESS && i < n) {
        *algo = found[i].algo;
        return OK;
    }
    return err_set(e, E_DEVICE, "a product of %u columns over %u of %s: cuBLASLt has no algorithm that sums in one piece (%s, %d offered)",
                   k->n, k->k, k->compute == DT_BF16 ? "bf16" : "f32", cublasLtGetStatusString(rc), n);
}

static void plan_free(struct cuda_plan *p)
{
    if (p->product) cublasLtMatmulDescDestroy(p->product);
    if (p->w) cublasLtMatrixLayoutDestroy(p->w);
    if (p->x) cublasLtMatrixLayoutDestroy(p->x);
    if (p->y) cublasLtMatrixLayoutDestroy(p->y);
}

/* A model has some forty, so they are looked through. */
static status plan_of(struct cuda_stream *s, const struct plan_key *key, size_t *out, struct err *e)
{
    for (size_t i = 0; i < s->n_plans; i++)
        if (memcmp(&s->plan[i].key, key, sizeof *key) == 0) {
            *out = i;
            return OK;
        }
    struct cuda_plan p = { .key = *key };
    TRY(mem_grow(&s->plan, &s->plan_cap, s->n_plans + 1, sizeof p, e));
    status st = lt_check(describe(&p), "describing a product", e);
    if (st == OK) st = choose(s, &p, &p.algo, e);
    if (st != OK) {
        plan_free(&p);
        return st;
    }
    s->plan[s->n_plans] = p;
    *out = s->n_plans++;
    return OK;
}

status cuda_products_open(struct cuda_stream *s, struct err *e)
{
    const char *one = getenv("OMNIDROP_CUDA_ONE_PLAN");
    s->one_plan = one != NULL && strcmp(one, "1") == 0;
    TRY(lt_check(cublasLtCreate(&s->lt), "opening cuBLASLt", e));
    return cuda_alloc(&s->base, WORKSPACE_BYTES, &s->workspace, e);
}

void cuda_products_close(struct cuda_stream *s)
{
    for (size_t i = 0; i < s->n_plans; i++) plan_free(&s->plan[i]);
    free(s->plan);
    if (s->lt) cublasLtDestroy(s->lt);
    cuda_release(&s->base, s->workspace);
}

/* ---- products -------------------------------------------------------------------------------------------- */

/* All of a product that cuBLASLt is given. */
struct product_args {
    size_t plan;
    const void *w, *x, *bias;     /* bias NULL: none */
    void *y;
    size_t ldy;
    uint32_t rows;
    float beta;
};

static cublasStatus_t multiply(struct cuda_stream *s, const struct cuda_plan *p, const cublasLtMatmulAlgo_t *algo,
                               const struct product_args *a)
{
    const float one = 1;
    return cublasLtMatmul(s->lt, p->product, &one, a->w, p->w, a->x, p->x, &a->beta, a->y, p->y, a->y, p->y, algo, s->workspace,
                          WORKSPACE_BYTES, s->main);
}

static status run_product(struct cuda_stream *s, const void *args, struct err *e)
{
    const struct product_args *a = args;
    const struct cuda_plan *p = &s->plan[a->plan];
    const uint64_t columns = a->rows;
    const int64_t ld = (int64_t)a->ldy;
    cublasStatus_t rc = CUBLAS_STATUS_SUCCESS;
    SET_LAYOUT(p->x, COLS, columns);
    SET_LAYOUT(p->y, COLS, columns);
    SET_LAYOUT(p->y, LD, ld);
    if (a->bias != NULL) SET_PRODUCT(p, BIAS_POINTER, a->bias);
    STEP(multiply(s, p, &p->algo, a));
    if (rc == CUBLAS_STATUS_NOT_SUPPORTED || rc == CUBLAS_STATUS_INVALID_VALUE) {   /* not for so many rows: what there is for these */
        cublasLtMatmulAlgo_t other;
        TRY(choose(s, p, &other, e));
        rc = multiply(s, p, &other, a);
    }
    if (rc == CUBLAS_STATUS_SUCCESS) return OK;
    return err_set(e, E_DEVICE, "a product of %u rows, %u columns over %u of %s: cuBLASLt says %s", a->rows, p->key.n, p->key.k,
                   p->key.compute == DT_BF16 ? "bf16" : "f32", cublasLtGetStatusString(rc));
}

/* y [rows, ldy] of type y_type (+)= x W^T (+ bias). few: by the plan of few rows. */
static status product(struct cuda_stream *s, const struct weight *w, const void *x, uint32_t rows, bool few, bool bias, bool add, void *y,
                      enum dtype y_type, size_t ldy, struct err *e)
{
    const size_t step = ldy * dtype_size(y_type);
    const uint32_t align = (((uintptr_t)y | step) & 15) == 0 ? 16 : (uint32_t)dtype_size(y_type);
    const struct plan_key key = { w->rows, w->k, w->compute, y_type, bias, add, few, align };
    struct product_args a = { .w = w->data, .x = x, .bias = bias ? w->bias : NULL, .y = y, .ldy = ldy, .rows = rows, .beta = add ? 1 : 0 };
    TRY(plan_of(s, &key, &a.plan, e));
    return CUDA_RUN(s, run_product, &a, e);
}

CUDA_LAUNCHER(swiglu)
CUDA_LAUNCHER(gelu)

static bool to_operand(enum linear_mode m) { return m == LINEAR_GELU_OPERAND || m == LINEAR_SWIGLU; }

static status linear_check(const struct linear_args *a, struct err *e)
{
    const struct weight *w = a->w;
    if (a->x->k != w->k || a->x->compute != w->compute)
        return err_set(e, E_ARG, "an operand of k = %u (dtype %d) meets a weight of k = %u (dtype %d)", a->x->k, (int)a->x->compute, w->k,
                       (int)w->compute);
    if ((a->mode == LINEAR_SWIGLU) != (w->form == WEIGHT_SWIGLU))
        return err_set(e, E_ARG, "a gated weight and LINEAR_SWIGLU go together, and with nothing else");
    const uint32_t columns = w->form == WEIGHT_SWIGLU ? w->n / 2 : w->n;
    if (to_operand(a->mode) && (a->out->rows != a->x->rows || a->out->k != columns))
        return err_set(e, E_ARG, "a product of %u x %u goes to an operand of %u x %u", a->x->rows, columns, a->out->rows, a->out->k);
    if (!to_operand(a->mode) && a->ldy < w->n)
        return err_set(e, E_ARG, "rows of %u columns do not fit %zu floats apart", w->n, a->ldy);
    return OK;
}

/* Products that become operands: into the room, a piece at a time, then through the kernel. */
static status to_operands(struct cuda_stream *s, const struct linear_args *a, bool few, struct err *e)
{
    const struct weight *w = a->w;
    const enum dtype type = a->mode == LINEAR_SWIGLU ? w->gated : DT_F32;
    const size_t row = (size_t)w->rows * dtype_size(type), in = cuda_columns(w->k) * dtype_size(w->compute);
    const uint32_t columns = cuda_columns(a->out->k), all = a->x->rows;
    size_t fit = CUDA_ROOM_BYTES / row > PIECE_ROWS_MIN ? CUDA_ROOM_BYTES / row : PIECE_ROWS_MIN;
    if (fit > all) fit = all;
    if (s->work != NULL && fit > s->room_bytes / row && s->room_bytes >= row) fit = s->room_bytes / row;
    TRY(cuda_room(s, fit * row, e));
    for (uint32_t r = 0; r < all; r += (uint32_t)fit) {
        const uint32_t n = all - r < fit ? all - r : (uint32_t)fit;
        void *out = (char *)a->out->data + (size_t)r * columns * dtype_size(a->out->compute);
        const bool gated = a->mode == LINEAR_SWIGLU;
        TRY(product(s, w, (const char *)a->x->data + r * in, n, few, gated && w->bias, false, s->room, type, w->rows, e));
        struct cuda_swiglu_args swiglu = { s->room, type, n, columns, out, a->out->compute };
        struct cuda_gelu_args gelu = { s->room, w->rows, w->bias, n, w->n, out, columns, a->out->compute, columns };
        TRY(gated ? CUDA_RUN(s, run_swiglu, &swiglu, e) : CUDA_RUN(s, run_gelu, &gelu, e));
    }
    return OK;
}

status cuda_linear(struct stream *st, const struct linear_args *a, struct err *e)
{
    struct cuda_stream *s = cuda_stream_of(st);
    const struct weight *w = a->w;
    const uint32_t rows = a->x->rows;
    const bool few = rows <= FEW && !s->one_plan, gelu = a->mode == LINEAR_GELU;
    TRY(linear_check(a, e));
    TRY(cuda_join(s, e));
    if (rows == 0) return OK;
    if (to_operand(a->mode)) return to_operands(s, a, few, e);
    TRY(product(s, w, a->x->data, rows, few, w->bias && !gelu, a->mode == LINEAR_ADD, a->y, DT_F32, a->ldy, e));
    if (!gelu) return OK;
    struct cuda_gelu_args g = { a->y, a->ldy, w->bias, rows, w->n, a->y, a->ldy, DT_F32, 0 };
    return CUDA_RUN(s, run_gelu, &g, e);
}
