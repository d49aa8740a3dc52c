/* tests/engine/faulty_ops.h - a device whose ops fail when told: its table is patched, so that call `countdown` of op `which`
 * fails once with `code`. Who includes this defines OPS(X) before, the ops that may fail (upload, download, fetch and alloc always may),
 * and FAULTY_HERE, whether a call of this thread counts. */
#ifndef TESTS_ENGINE_FAULTY_OPS_H
#define TESTS_ENGINE_FAULTY_OPS_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "kernels/ops.h"

#define NUMBER(name, args) OP_##name,
enum { OPS(NUMBER) OP_upload, OP_download, OP_fetch, OP_alloc, N_OPS };
#define NAME(name, args) #name,
static const char *const OP_NAME[] = { OPS(NAME) "upload", "download", "fetch", "alloc" };
static struct ops real;
static atomic_int which = -1, countdown, code, n_calls[N_OPS];

static bool fails(int op)
{
    if (!(FAULTY_HERE)) return false;
    atomic_fetch_add(&n_calls[op], 1);
    return atomic_load(&which) == op && atomic_fetch_sub(&countdown, 1) == 1;
}

static status failure(int op, struct err *e)
{
    return err_set(e, (status)atomic_load(&code), "the op %s was made to fail", OP_NAME[op]);
}

#define WRAP(name, args)                                                                                           \
    static status faulty_##name(struct stream *st, const struct args *a, struct err *e)                            \
    {                                                                                                              \
        return fails(OP_##name) ? failure(OP_##name, e) : real.name(st, a, e);                                     \
    }
OPS(WRAP)

static status faulty_upload(struct stream *st, void *dst, const void *host, size_t n, struct err *e)
{
    return fails(OP_upload) ? failure(OP_upload, e) : real.upload(st, dst, host, n, e);
}
static status faulty_download(struct stream *st, void *host, const void *src, size_t n, struct err *e)
{
    return fails(OP_download) ? failure(OP_download, e) : real.download(st, host, src, n, e);
}
static status faulty_fetch(struct stream *st, void *host, const void *src, size_t n, struct err *e)
{
    return fails(OP_fetch) ? failure(OP_fetch, e) : real.fetch(st, host, src, n, e);
}
static status faulty_alloc(struct stream *st, size_t n, void **out, struct err *e)
{
    return fails(OP_alloc) ? failure(OP_alloc, e) : real.alloc(st, n, out, e);
}

#define SET(name, args) t->name = faulty_##name;

/* The table is constant data: its pages are made writable for the moment. */
static void patch(const struct ops *table, bool faulty)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)table & ~(page - 1);
    const size_t n = ((uintptr_t)table + sizeof *table - from + page - 1) & ~(page - 1);
    if (mprotect((void *)from, n, PROT_READ | PROT_WRITE) != 0) fail_msg("the ops table cannot be written");
    struct ops *t = (struct ops *)table;
    if (!faulty) {
        *t = real;
        return;
    }
    real = *t;
    OPS(SET)
    t->upload = faulty_upload;
    t->download = faulty_download;
    t->fetch = faulty_fetch;
    t->alloc = faulty_alloc;
}

#endif
