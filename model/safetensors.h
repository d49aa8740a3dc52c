/* model/safetensors.h - files of tensors, read through mmap. A set holds the tensors of one or many files.
 * Nothing in a header is believed before it is checked: the header's length against the file, dtype, shape
 * (no overflow), offsets (integers, begin <= end <= data, end - begin == product of the shape * size of
 * the dtype), no two tensors share a byte, no byte belongs to none, no name stands twice in the set.
 * Source: the format page of safetensors 0.5; limits as in its reference reader (header <= 100 MB). A set
 * is read-only after opening and may be used from any thread. */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/ops.h"

#define TENSOR_RANK_MAX 8

/* The first three have the values of enum dtype: (enum dtype)t->dtype is right for what tensor_is_weight()
 * holds. */
enum tensor_dtype {
    TENSOR_F32 = DT_F32,
    TENSOR_BF16 = DT_BF16,
    TENSOR_F16 = DT_F16,
    TENSOR_F64,
    TENSOR_I64,
    TENSOR_I32,
    TENSOR_I16,
    TENSOR_I8,
    TENSOR_U64,
    TENSOR_U32,
    TENSOR_U16,
    TENSOR_U8,
    TENSOR_BOOL,
    TENSOR_F8_E4M3,
    TENSOR_F8_E5M2
};

struct tensor_info {
    const char *name;
    enum tensor_dtype dtype;
    uint32_t rank;
    uint64_t shape[TENSOR_RANK_MAX];
    uint64_t n;       /* product of the shape, 1 for a scalar */
    const void *data; /* aligned to the dtype, host, little-endian, row-major */
    uint64_t bytes;
    uint64_t begin; /* offset in the file's data */
    uint32_t file;  /* index for tensor_files_path */
    bool is_copy;   /* the file did not align it: data is on the heap, not in the mapping */
};

struct tensor_files;

/* Open the given files as one set; *out owns the mappings. E_MODEL (E_INPUT is for media): no such file,
 * too short, a damaged header; the text names file and tensor. */
status tensor_files_open(const char *const *paths, size_t n_paths, struct tensor_files **out, struct err *e);

/* Open the tensors of a checkpoint folder: the shards that model.safetensors.index.json lists, else
 * model.safetensors. E_MODEL also: neither is there, a shard of the index is missing, a tensor is in the
 * index and not in its shard, or the other way round. */
status tensor_files_open_dir(const char *dir, struct tensor_files **out, struct err *e);
void tensor_files_close(struct tensor_files **s);

/* Check one header as it lies in memory: n bytes that begin with the 8-byte length, of a file of
 * file_bytes (>= n). For tests and fuzzing: the same code as above; the tensors found are counted and
 * forgotten. */
status tensor_files_check(const void *head, size_t n, uint64_t file_bytes, size_t *n_tensors, struct err *e);

size_t tensor_files_count(const struct tensor_files *s);
const struct tensor_info *tensor_files_at(const struct tensor_files *s, size_t i); /* sorted by name */
const struct tensor_info *tensor_files_find(const struct tensor_files *s, const char *name); /* or NULL */
const char *tensor_files_path(const struct tensor_files *s, uint32_t file);
uint64_t tensor_files_bytes(const struct tensor_files *s); /* of all tensors */

/* Advice to the kernel, for load: read ahead, or forget the resident pages of a tensor that was packed
 * elsewhere. */
void tensor_will_need(const struct tensor_info *t);
void tensor_drop(const struct tensor_info *t);

size_t tensor_dtype_size(enum tensor_dtype t);
const char *tensor_dtype_name(enum tensor_dtype t); /* "BF16" */
static inline bool tensor_is_weight(const struct tensor_info *t)
{
    return t->dtype <= TENSOR_F16;
}

/* "[2, 3]" into out, cut to n bytes. Returns out. */
char *tensor_shape_text(uint32_t rank, const uint64_t *shape, char *out, size_t n);

#endif
