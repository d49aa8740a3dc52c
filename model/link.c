/* model/link.c - see link.h. */
#include "model/link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/device.h"

enum { TRIED = 64 };               /* floats a rank */

/* NCCL connects to peers and takes its memory at the first call of each kind: now, before anyone counts what is left. Each rank brings
 * its number; what comes back is known. */
static size_t tried_bytes(const struct comm *c) { return (size_t)(comm_size(c) + 2) * TRIED * sizeof(float); }
static status try_all(struct comm *c, struct stream *st, float *x, struct err *e)
{
    const uint32_t n = comm_size(c), me = comm_rank(c), m = TRIED;
    size_t *bytes = mem_must(n, sizeof *bytes);
    float *host = mem_must((size_t)(n + 2) * m, sizeof *host);
    float *const sum = host, *const all = host + m, *const root = host + (size_t)(n + 1) * m, wanted = (float)n * (float)(n + 1) / 2;
    bool right = true;
    for (uint32_t r = 0; r < n; r++) bytes[r] = m * sizeof *host;
    for (uint32_t i = 0; i < (n + 2) * m; i++) host[i] = (float)(me + 1);
    status s = st->ops->upload(st, x, host, tried_bytes(c), e);
    if (s == OK) s = comm_all_reduce(c, st, x, m, e);
    if (s == OK) s = comm_all_gather(c, st, x + (size_t)(n + 1) * m, x + m, bytes, e);
    if (s == OK) s = comm_broadcast(c, st, 0, x + (size_t)(n + 1) * m, bytes[0], e);
    if (s == OK) s = comm_gather(c, st, 0, x + (size_t)(me + 1) * m, x + m, bytes, e);
    if (s == OK) s = st->ops->download(st, host, x, tried_bytes(c), e);
    for (uint32_t i = 0; i < m; i++) {
        right = right && sum[i] == wanted && root[i] == 1;
        for (uint32_t r = 0; r < n; r++) right = right && all[r * m + i] == (float)(r + 1);
    }
    if (s == OK && !right)
        s = err_set(e, E_DEVICE, "NCCL says that it is done and has other numbers than it was given: OMNIDROP_COMM=staged does without it");
    free(host);
    free(bytes);
    return s;
}

/* Does every rank compute on a device with a stream of its own kind? */
static status all_native(struct comm *c, bool mine, bool *out, struct err *e)
{
    const uint32_t n = comm_size(c);
    uint8_t own = mine, *all = mem_must(n, 1);
    size_t *bytes = mem_must(n, sizeof *bytes);
    for (uint32_t r = 0; r < n; r++) bytes[r] = 1;
    const status s = comm_all_gather(c, NULL, &own, all, bytes, e);
    *out = s == OK;
    for (uint32_t r = 0; r < n; r++) *out = *out && all[r];
    free(bytes);
    free(all);
    return s;
}

static status attach(struct comm *c, struct stream *st, void *native, int device, float *x, char *text, size_t cap, struct err *e)
{
    struct err why = { 0 };
    const status s = comm_attach(c, st, native, device, &why);
    if (s == E_MODEL) {
        snprintf(text, cap, "%s", why.text);
        return OK;
    }
    if (s != OK) return err_set(e, s, "%s", why.text);
    device_guard(st, comm_look, c);
    char versions[256];
    comm_versions(c, versions, sizeof versions);
    const char *nccl = strstr(versions, "NCCL");
    snprintf(text, cap, "nccl: %s", nccl ? nccl : versions);
    return try_all(c, st, x, e);
}

status link_open(struct comm *c, struct stream *st, char *text, size_t cap, struct err *e)
{
    void *native = NULL;
    int device = 0;
    bool all;
    float *x = NULL;
    status s = OK;
    if (cap > 0) *text = 0;
    if (c == NULL) return OK;
    const bool own = device_native(st, &native, &device);
    if (own) s = st->ops->alloc(st, tried_bytes(c), (void **)&x, e);      /* nothing may be lacking where others wait */
    TRY(all_native(c, own && s == OK, &all, s == OK ? e : NULL));
    if (s == OK && all) s = attach(c, st, native, device, x, text, cap, e);
    if (own) st->ops->release(st, x);
    return s;
}

void link_close(struct comm *c, struct stream *st)
{
    if (c == NULL || st == NULL || !comm_attached(c)) return;
    st->ops->sync(st, NULL);
    comm_detach(c);
    device_guard(st, NULL, NULL);
}
