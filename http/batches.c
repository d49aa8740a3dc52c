/* http/batches.c - see batches.h. */
#include "http/batches.h"

#define BATCHES "/v1/batches"
#define BATCH "/v1/batches/{id}"
#define CANCEL "/v1/batches/{id}/cancel"
#define LIST_MAX 100
#define BODY_MAX ((uint64_t)1 << 20)

static status create_batch(struct disk_job *j, struct err *e)
{
    const struct http_batches *b = j->self;
    size_t n = 0;
    const char *body = http_request_body(j->r, &n);
    return batches_create(b->batches, http_request_key(j->r), body ? body : "", body ? n : 0, &j->json, e);
}

static status list_batches(struct disk_job *j, struct err *e)
{
    const struct http_batches *b = j->self;
    uint32_t limit;
    TRY(disk_limit(j->r, LIST_MAX, &limit, e));
    return batches_list(b->batches, http_request_key(j->r), http_request_query(j->r, "after"), limit, &j->json, e);
}

static status get_batch(struct disk_job *j, struct err *e)
{
    const struct http_batches *b = j->self;
    return batches_get(b->batches, http_request_key(j->r), http_request_capture(j->r), &j->json, e);
}

static status cancel_batch(struct disk_job *j, struct err *e)
{
    const struct http_batches *b = j->self;
    return batches_cancel(b->batches, http_request_key(j->r), http_request_capture(j->r), &j->json, e);
}

static void create(void *self, struct http_request *r)
{
    disk_reply(&((struct http_batches *)self)->disk, r, BATCHES, self, -1, create_batch);
}
static void list(void *self, struct http_request *r)
{
    disk_reply(&((struct http_batches *)self)->disk, r, BATCHES, self, -1, list_batches);
}
static void get(void *self, struct http_request *r)
{
    disk_reply(&((struct http_batches *)self)->disk, r, BATCH, self, -1, get_batch);
}
static void cancel(void *self, struct http_request *r)
{
    disk_reply(&((struct http_batches *)self)->disk, r, CANCEL, self, -1, cancel_batch);
}

void http_batches_routes(struct http_batches *b)
{
    const struct http_route route[] = {
        { .method = "POST",
          .path = BATCHES,
          .body = HTTP_BODY_JSON,
          .max_body = BODY_MAX,
          .handle = create,
          .self = b },
        { .method = "GET", .path = BATCHES, .handle = list, .self = b },
        { .method = "GET", .path = BATCH, .handle = get, .self = b },
        { .method = "POST",
          .path = CANCEL,
          .handle = cancel,
          .self = b }, /* clients send no body, or an empty object */
    };
    for (size_t i = 0; i < sizeof route / sizeof *route; i++) http_route_add(b->disk.server, &route[i]);
}
