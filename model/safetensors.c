/* model/safetensors.c - see safetensors.h. */
#include "model/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"

#define HEADER_MAX ((size_t)100 << 20)
#define SHARDS_MAX 4096
#define PAGE       ((uintptr_t)4096)

static const struct doc_limits header_limits = { .bytes_max = HEADER_MAX, .depth_max = 8, .code = E_MODEL };

struct mapped_file {
    char *path;         /* owned */
    const uint8_t *map; /* [size], NULL where nothing is mapped */
    uint64_t size;
};

struct tensor_files {
    struct mapped_file *file;
    size_t n_files;
    struct tensor_info *tensor; /* sorted by name; names are owned */
    size_t n, cap;
    void **copy; /* aligned copies of tensors whose data is not aligned in its file */
    size_t n_copies, copy_cap;
};

static const struct {
    const char *name;
    uint8_t size;
} dtypes[] = {
    [TENSOR_F32] = { "F32", 4 },   [TENSOR_BF16] = { "BF16", 2 },       [TENSOR_F16] = { "F16", 2 },
    [TENSOR_F64] = { "F64", 8 },   [TENSOR_I64] = { "I64", 8 },         [TENSOR_I32] = { "I32", 4 },
    [TENSOR_I16] = { "I16", 2 },   [TENSOR_I8] = { "I8", 1 },           [TENSOR_U64] = { "U64", 8 },
    [TENSOR_U32] = { "U32", 4 },   [TENSOR_U16] = { "U16", 2 },         [TENSOR_U8] = { "U8", 1 },
    [TENSOR_BOOL] = { "BOOL", 1 }, [TENSOR_F8_E4M3] = { "F8_E4M3", 1 }, [TENSOR_F8_E5M2] = { "F8_E5M2", 1 },
};

size_t tensor_dtype_size(enum tensor_dtype t)
{
    return dtypes[t].size;
}

const char *tensor_dtype_name(enum tensor_dtype t)
{
    return dtypes[t].name;
}

char *tensor_shape_text(uint32_t rank, const uint64_t *shape, char *out, size_t n)
{
    size_t used = (size_t)snprintf(out, n, "[");
    for (uint32_t i = 0; i < rank && used < n; i++)
        used += (size_t)snprintf(out + used, n - used, "%s%" PRIu64, i ? ", " : "", shape[i]);
    if (used < n) snprintf(out + used, n - used, "]");
    return out;
}

/* ---- one header -------------------------------------------------------------------------------------- */

/* One entry of the header. t->data is left NULL: it is set when the file is mapped. */
static status parse_entry(const struct doc_at *at, uint64_t data_bytes, struct tensor_info *t, struct err *e)
{
    static const char *const known[] = { "dtype", "shape", "data_offsets", NULL };
    struct doc_at shape, el;
    const char *dtype;
    int64_t offset[2], dim;
    TRY(doc_only(at, known, e));
    TRY(doc_string(at, "dtype", &dtype, e));
    size_t d = 0;
    while (d < sizeof dtypes / sizeof *dtypes && strcmp(dtypes[d].name, dtype) != 0) d++;
    if (d == sizeof dtypes / sizeof *dtypes) return doc_err(at, e, "dtype \"%.40s\" is not supported", dtype);
    t->dtype = (enum tensor_dtype)d;
    TRY(doc_array(at, "shape", &shape, e));
    if (doc_count(&shape) > TENSOR_RANK_MAX)
        return doc_err(&shape, e, "has %zu dimensions, at most %d are supported", doc_count(&shape),
                       TENSOR_RANK_MAX);
    t->rank = (uint32_t)doc_count(&shape);
    t->n = 1;
    for (uint32_t i = 0; i < t->rank; i++) {
        doc_element(&shape, i, &el);
        TRY(doc_as_int(&el, 0, INT64_MAX, &dim, e));
        t->shape[i] = (uint64_t)dim;
        if (__builtin_mul_overflow(t->n, t->shape[i], &t->n))
            return doc_err(&shape, e, "the product of its dimensions is more than 2^64");
    }
    if (__builtin_mul_overflow(t->n, tensor_dtype_size(t->dtype), &t->bytes))
        return doc_err(&shape, e, "a tensor of this shape has more than 2^64 bytes");
    TRY(doc_ints(at, "data_offsets", 2, 0, INT64_MAX, offset, e));
    t->begin = (uint64_t)offset[0];
    const uint64_t end = (uint64_t)offset[1];
    if (end < t->begin)
        return doc_err(at, e, "data_offsets [%" PRIu64 ", %" PRIu64 "] run backwards", t->begin, end);
    if (end - t->begin != t->bytes) {
        char text[200];
        tensor_shape_text(t->rank, t->shape, text, sizeof text);
        return doc_err(at, e,
                       "data_offsets [%" PRIu64 ", %" PRIu64 "] hold %" PRIu64 " bytes, %s of shape %s "
                       "has %" PRIu64,
                       t->begin, end, end - t->begin, dtype, text, t->bytes);
    }
    if (end > data_bytes)
        return doc_err(at, e,
                       "ends at byte %" PRIu64 " of the data, the file has %" PRIu64
                       " there: it is truncated, fetch it again",
                       end, data_bytes);
    return OK;
}

static int by_begin(const void *a, const void *b)
{
    const struct tensor_info *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* empty tensors first */
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor_info *)a)->name, ((const struct tensor_info *)b)->name);
}

/* The tensors [0, n) of one file cover its data: no byte twice, none unused. Sorts them by offset. */
static status check_cover(const char *path, struct tensor_info *t, size_t n, uint64_t data_bytes,
                          struct err *e)
{
    uint64_t at = 0;
    if (n > 0) qsort(t, n, sizeof *t, by_begin);
    for (size_t i = 0; i < n; i++) {
        if (t[i].begin < at)
            return err_set(e, E_MODEL, "%s: tensors %s and %s overlap at byte %" PRIu64 " of the data", path,
                           t[i - 1].name, t[i].name, t[i].begin);
        if (t[i].begin > at)
            return err_set(e, E_MODEL, "%s: %" PRIu64 " bytes before tensor %s belong to no tensor", path,
                           t[i].begin - at, t[i].name);
        at += t[i].bytes;
    }
    if (at != data_bytes)
        return err_set(e, E_MODEL, "%s: %" PRIu64 " bytes after the last tensor belong to none", path,
                       data_bytes - at);
    return OK;
}

/* Parse the header at map[0..n) of a file of `size` bytes; append its tensors to the set. */
static status parse_header(struct tensor_files *s, const char *path, const uint8_t *map, size_t n,
                           uint64_t size, uint32_t file, size_t *data_at, struct err *e)
{
    status st = OK;
    if (size < 8 || n < 8)
        return err_set(e, E_MODEL, "%s: %" PRIu64 " bytes are too few for a safetensors file", path, size);
    uint64_t head = 0;
    for (int i = 7; i >= 0; i--) head = head << 8 | map[i];
    if (head > HEADER_MAX)
        return err_set(e, E_MODEL,
                       "%s: a header of %" PRIu64 " bytes is more than the 100 MiB allowed: "
                       "not a safetensors file?",
                       path, head);
    if (head > size - 8)
        return err_set(e, E_MODEL,
                       "%s: the header has %" PRIu64 " bytes, the file only %" PRIu64
                       ": it is truncated, fetch it again",
                       path, head, size - 8);
    if (head > n - 8) return err_set(e, E_MODEL, "%s: the header is not complete", path);
    const uint64_t data_bytes = size - 8 - head;
    struct doc d;
    struct doc_at root;
    TRY(doc_parse((const char *)map + 8, (size_t)head, path, &header_limits, &d, e));
    doc_root(&d, &root);
    TRY_GOTO(st, doc_as_object(&root, e), done);
    const char *key;
    json_t *v;
    const size_t first = s->n;
    json_object_foreach(d.root, key, v)
    {
        const struct doc_at at = { .v = v, .up = &root, .key = key, .doc = &d };
        if (strcmp(key, "__metadata__") == 0) {
            TRY_GOTO(st, doc_as_object(&at, e), done);
            continue;
        }
        TRY_GOTO(st, mem_grow(&s->tensor, &s->cap, s->n + 1, sizeof *s->tensor, e), done);
        struct tensor_info t = { .file = file };
        TRY_GOTO(st, parse_entry(&at, data_bytes, &t, e), done);
        t.name = mem_must_strdup(key);
        s->tensor[s->n++] = t;
    }
    TRY_GOTO(st, check_cover(path, s->n > first ? &s->tensor[first] : NULL, s->n - first, data_bytes, e),
             done);
    *data_at = (size_t)(8 + head);
done:
    doc_close(&d);
    return st;
}

/* ---- files ------------------------------------------------------------------------------------------- */

/* Data that its file does not align is copied: consumers may load whole elements. */
static status copy_aligned(struct tensor_files *s, struct tensor_info *t, struct err *e)
{
    void *p;
    TRY(mem_grow(&s->copy, &s->copy_cap, s->n_copies + 1, sizeof *s->copy, e));
    TRY(mem_alloc_aligned(&p, (size_t)t->bytes, e));
    memcpy(p, t->data, (size_t)t->bytes);
    s->copy[s->n_copies++] = p;
    t->data = p;
    t->is_copy = true;
    return OK;
}

static status map_file(struct tensor_files *s, const char *path, struct err *e)
{
    struct mapped_file *f = &s->file[s->n_files++];
    const uint32_t index = (uint32_t)(s->n_files - 1);
    f->path = mem_must_strdup(path);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return err_set(e, E_MODEL, "%s: %s", path, strerror(errno));
    struct stat sb;
    if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        close(fd);
        return err_set(e, E_MODEL, "%s: not a regular file", path);
    }
    f->size = (uint64_t)sb.st_size;
    if (f->size > 0) {
        void *p = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
        f->map = p == MAP_FAILED ? NULL : p;
    }
    const int why = errno;
    close(fd);
    if (f->size > 0 && f->map == NULL)
        return err_set(e, E_MODEL, "%s: cannot be mapped: %s", path, strerror(why));
    const size_t first = s->n;
    size_t data_at = 0;
    TRY(parse_header(s, path, f->map, (size_t)f->size, f->size, index, &data_at, e));
    for (size_t i = first; i < s->n; i++) {
        struct tensor_info *t = &s->tensor[i];
        t->data = f->map + data_at + t->begin;
        if ((uintptr_t)t->data % tensor_dtype_size(t->dtype) != 0) TRY(copy_aligned(s, t, e));
    }
    return OK;
}

/* Sort by name; a name that stands in two files is an error. */
static status finish(struct tensor_files *s, struct err *e)
{
    if (s->n > 0) qsort(s->tensor, s->n, sizeof *s->tensor, by_name);
    for (size_t i = 1; i < s->n; i++)
        if (strcmp(s->tensor[i - 1].name, s->tensor[i].name) == 0)
            return err_set(e, E_MODEL, "tensor %s is in %s and in %s", s->tensor[i].name,
                           s->file[s->tensor[i - 1].file].path, s->file[s->tensor[i].file].path);
    return OK;
}

status tensor_files_open(const char *const *paths, size_t n_paths, struct tensor_files **out, struct err *e)
{
    status st = OK;
    struct tensor_files *s = mem_must(1, sizeof *s);
    TRY_GOTO(st, mem_alloc(&s->file, n_paths, sizeof *s->file, e), fail);
    for (size_t i = 0; i < n_paths; i++) TRY_GOTO(st, map_file(s, paths[i], e), fail);
    TRY_GOTO(st, finish(s, e), fail);
    *out = s;
    return OK;
fail:
    tensor_files_close(&s);
    return st;
}

void tensor_files_close(struct tensor_files **set)
{
    struct tensor_files *s = *set;
    if (s == NULL) return;
    for (size_t i = 0; i < s->n; i++) free((void *)(uintptr_t)s->tensor[i].name);
    for (size_t i = 0; i < s->n_copies; i++) free(s->copy[i]);
    for (size_t i = 0; i < s->n_files; i++) {
        if (s->file[i].map != NULL) munmap((void *)(uintptr_t)s->file[i].map, s->file[i].size);
        free(s->file[i].path);
    }
    free(s->tensor);
    free(s->copy);
    free(s->file);
    free(s);
    *set = NULL;
}

status tensor_files_check(const void *head, size_t n, uint64_t file_bytes, size_t *n_tensors, struct err *e)
{
    struct tensor_files *s = mem_must(1, sizeof *s);
    size_t data_at;
    status st = parse_header(s, "header", head, n, file_bytes, 0, &data_at, e);
    if (st == OK) st = finish(s, e);
    *n_tensors = s->n;
    tensor_files_close(&s);
    return st;
}

/* ---- a folder ---------------------------------------------------------------------------------------- */

static char *join(const char *dir, const char *name)
{
    const size_t n = strlen(dir) + strlen(name) + 2;
    char *p = mem_must(n, 1);
    snprintf(p, n, "%s/%s", dir, name);
    return p;
}

/* The shards of weight_map, each once, in order of first mention. A shard is a plain name in this folder. */
static status list_shards(const char *dir, const struct doc_at *map, char **path, size_t *n, struct err *e)
{
    const char *key, *shard;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)map->v, key, v)
    {
        const struct doc_at at = { .v = v, .up = map, .key = key, .doc = map->doc };
        TRY(doc_as_string(&at, &shard, NULL, e));
        if (shard[0] == '\0' || shard[0] == '.' || strchr(shard, '/') != NULL)
            return doc_err(&at, e, "\"%.80s\" is not a file name in this folder", shard);
        char *p = join(dir, shard);
        size_t i = 0;
        while (i < *n && strcmp(path[i], p) != 0) i++;
        if (i < *n) {
            free(p);
            continue;
        }
        if (*n == SHARDS_MAX) {
            free(p);
            return doc_err(&at, e, "there are more than %d shards", SHARDS_MAX);
        }
        path[(*n)++] = p;
    }
    return OK;
}

/* Index and shards agree, both ways. */
static status check_index(const struct tensor_files *s, const char *dir, const struct doc_at *map,
                          struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)map->v, key, v)
    {
        const struct tensor_info *t = tensor_files_find(s, key);
        const char *shard = json_string_value(v);
        if (t == NULL || strcmp(s->file[t->file].path + strlen(dir) + 1, shard) != 0)
            return err_set(e, E_MODEL, "tensor %s should be in %s/%s by the index and is in %s", key, dir,
                           shard, t == NULL ? "none of the shards" : s->file[t->file].path);
    }
    if (s->n != json_object_size(map->v))
        for (size_t i = 0; i < s->n; i++)
            if (json_object_get(map->v, s->tensor[i].name) == NULL)
                return err_set(e, E_MODEL, "tensor %s of %s is not in the index %s", s->tensor[i].name,
                               s->file[s->tensor[i].file].path, map->doc->name);
    return OK;
}

static status open_index(const char *dir, const char *index, struct tensor_files **out, struct err *e)
{
    status st = OK;
    struct doc d;
    struct doc_at root, map;
    char **path = mem_must(SHARDS_MAX, sizeof *path);
    size_t n = 0;
    struct tensor_files *s = NULL;
    if ((st = doc_load(index, &header_limits, &d, e)) != OK) {
        free(path);
        return st;
    }
    doc_root(&d, &root);
    TRY_GOTO(st, doc_object(&root, "weight_map", &map, e), done);
    TRY_GOTO(st, list_shards(dir, &map, path, &n, e), done);
    for (size_t i = 0; i < n; i++)
        if (access(path[i], F_OK) != 0) {
            st = err_set(e, E_MODEL, "%s: the index lists this shard and it is not there: fetch it", path[i]);
            goto done;
        }
    TRY_GOTO(st, tensor_files_open((const char *const *)path, n, &s, e), done);
    TRY_GOTO(st, check_index(s, dir, &map, e), done);
    *out = s;
    s = NULL;
done:
    tensor_files_close(&s);
    for (size_t i = 0; i < n; i++) free(path[i]);
    free(path);
    doc_close(&d);
    return st;
}

status tensor_files_open_dir(const char *dir, struct tensor_files **out, struct err *e)
{
    char *index = join(dir, "model.safetensors.index.json"), *single = join(dir, "model.safetensors");
    status st;
    if (access(index, F_OK) == 0)
        st = open_index(dir, index, out, e);
    else if (access(single, F_OK) == 0)
        st = tensor_files_open((const char *const[]){ single }, 1, out, e);
    else
        st = err_set(e, E_MODEL,
                     "%s: no weights: neither model.safetensors.index.json nor model.safetensors "
                     "is there (other formats must be converted to safetensors)",
                     dir);
    free(index);
    free(single);
    return st;
}

/* ---- reading ----------------------------------------------------------------------------------------- */

size_t tensor_files_count(const struct tensor_files *s)
{
    return s->n;
}

const struct tensor_info *tensor_files_at(const struct tensor_files *s, size_t i)
{
    assert(i < s->n);
    return &s->tensor[i];
}

const struct tensor_info *tensor_files_find(const struct tensor_files *s, const char *name)
{
    const struct tensor_info key = { .name = name };
    return s->n == 0 ? NULL : bsearch(&key, s->tensor, s->n, sizeof *s->tensor, by_name);
}

const char *tensor_files_path(const struct tensor_files *s, uint32_t file)
{
    assert(file < s->n_files);
    return s->file[file].path;
}

uint64_t tensor_files_bytes(const struct tensor_files *s)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < s->n; i++) sum += s->tensor[i].bytes;
    return sum;
}

void tensor_will_need(const struct tensor_info *t)
{
    const uintptr_t from = (uintptr_t)t->data / PAGE * PAGE;
    if (t->bytes > 0) madvise((void *)from, (uintptr_t)t->data + t->bytes - from, MADV_WILLNEED);
}

void tensor_drop(const struct tensor_info *t)
{
    /* Only pages that are this tensor's alone: a neighbour may still be in use. They stay in the page
     * cache. */
    const uintptr_t from = ((uintptr_t)t->data + PAGE - 1) / PAGE * PAGE;
    const uintptr_t to = ((uintptr_t)t->data + t->bytes) / PAGE * PAGE;
    if (!t->is_copy && to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}
