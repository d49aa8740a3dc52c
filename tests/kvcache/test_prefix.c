/* tests/kvcache/test_prefix.c - requests that begin alike share pages, and no page is lost, freed early or given to
 * rows that it does not hold.
 * Method: random requests over a small tree of beginnings find, share, grow, insert, trim and end beside a cache that
 * is reclaimed and overflows. A book beside the pool knows what every page holds and who holds it: I1 to I3 after every
 * step, hits against all sequences ever inserted; allocations that fail at every place of an insertion. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "kvcache/prefix.h"

#define N_REQUESTS   8
#define N_LAYERS     3
#define BLOCKS       9
#define PAGE_TOKENS  4
#define HIDDEN_BYTES 100

static uint64_t random_state;

static uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 32) * n >> 32);
}

static void seed(void)
{
    const char *s = getenv("SEED");
    random_state = (s ? strtoull(s, NULL, 10) : 1) * 0x9e3779b97f4a7c15u + 1;
    print_message("SEED=%s repeats this\n", s ? s : "1");
}

/* A request: its rows by their blocks, how many layers it may share, its tables. */
struct life {
    bool alive;
    uint32_t n_blocks, n_layers;           /* n_layers: 2 (early layers, with hidden states) or all */
    struct kv_block_digest digest[BLOCKS];
    struct kv_reservation promise;
    struct block_table table[N_LAYERS];
};

/* What was inserted, for the hits that must be. */
struct inserted { struct kv_block_digest digest[BLOCKS]; uint32_t n, n_layers; };

static struct book {
    struct kv_pool *pool;
    struct kv_prefix_cache *cache;
    struct life life[N_REQUESTS];
    uint64_t *holds;                       /* [pages] what the rows of the page are: see content() */
    struct inserted inserted[4000];
    uint32_t n_inserted, n_hidden;         /* hidden states that live */
    bool lossless;                         /* nothing is reclaimed and there is room for every entry */
} book;

static void hidden_free(void *self, void *hidden)
{
    assert_ptr_equal(self, &book);
    assert_true(book.n_hidden > 0);
    book.n_hidden--;
    free(hidden);
}

static void *hidden_new(void)
{
    book.n_hidden++;
    return mem_must(1, HIDDEN_BYTES);
}

/* The K and V of a block depend on the layer and on all rows so far: on the chained digest. */
static uint64_t content(uint32_t layer, const struct kv_block_digest *d)
{
    uint64_t x;
    memcpy(&x, d->byte, sizeof x);
    return x * N_LAYERS + layer + 1;
}

/* Two ways at each block, so that beginnings meet often. */
static void rows_choose(struct life *r)
{
    uint64_t path = 1;
    r->n_blocks = 1 + below(BLOCKS);
    r->n_layers = below(2) ? N_LAYERS : 2;
    for (uint32_t b = 0; b < r->n_blocks; b++) {
        path = path * 2 + below(2);
        memset(&r->digest[b], (int)(path % 251), sizeof r->digest[b]);
        memcpy(r->digest[b].byte, &path, sizeof path);
    }
}

static uint32_t alike(const struct life *r, const struct inserted *i)
{
    uint32_t n = 0;
    while (n < r->n_blocks && n < i->n && memcmp(&r->digest[n], &i->digest[n], sizeof r->digest[n]) == 0) n++;
    return n;
}

/* Nothing invented, and nothing missed while nothing was dropped. */
static void hit_check(const struct life *r, const struct kv_prefix_hit *h)
{
    uint32_t best = 0;
    for (uint32_t i = 0; i < book.n_inserted; i++) {
        if (book.inserted[i].n_layers != r->n_layers) continue;
        const uint32_t n = alike(r, &book.inserted[i]);
        if (n > best) best = n;
    }
    assert_true(h->n_blocks <= best && h->n_blocks <= h->entry_blocks);
    if (book.lossless) assert_int_equal(h->n_blocks, best);
    for (uint32_t l = 0; l < r->n_layers && h->n_blocks; l++)
        for (uint32_t b = 0; b < h->n_blocks; b++) {
            const uint32_t page = kv_prefix_pages(h, l)[b];
            assert_true(kv_count(book.pool, page) > 0);
            assert_int_equal(book.holds[page], content(l, &r->digest[b]));
        }
    assert_int_equal(h->hidden != NULL, h->n_blocks > 0 && r->n_layers < N_LAYERS);
}

static void begin(struct life *r, uint32_t *n_shared)
{
    struct err e;
    rows_choose(r);
    const struct kv_prefix_hit h = kv_prefix_find(book.cache, r->digest, r->n_blocks, r->n_layers);
    hit_check(r, &h);
    const uint32_t need = N_LAYERS * r->n_blocks - r->n_layers * h.n_blocks;
    if (kv_reserve(book.pool, need, &r->promise, &e) != OK) return;
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        struct block_table *t = &r->table[l];
        assert_int_equal(block_table_init(t, book.pool, r->n_blocks * PAGE_TOKENS, &e), OK);
        if (l < r->n_layers && h.n_blocks) block_table_share(t, book.pool, kv_prefix_pages(&h, l), h.n_blocks);
        const uint32_t from = t->n_pages;
        block_table_append(t, book.pool, &r->promise, r->n_blocks * PAGE_TOKENS - t->n_rows);
        for (uint32_t b = from; b < r->n_blocks; b++) book.holds[t->page[b]] = content(l, &r->digest[b]);
    }
    assert_int_equal(r->promise.n_pages, 0);
    *n_shared += h.n_blocks;
    r->alive = true;
}

static void keep(struct life *r)
{
    struct err e;
    uint32_t n = r->n_blocks;
    for (uint32_t l = 0; l < r->n_layers; l++)
        if (r->table[l].n_rows / PAGE_TOKENS < n) n = r->table[l].n_rows / PAGE_TOKENS;
    const uint32_t before = kv_n_free(book.pool);
    void *hidden = r->n_layers < N_LAYERS ? hidden_new() : NULL;
    assert_int_equal(kv_prefix_insert(book.cache, r->digest, n, r->n_layers, r->table, hidden,
                                      hidden ? HIDDEN_BYTES : 0, &e),
                     OK);
    assert_true(kv_n_free(book.pool) >= before);       /* an entry takes no page; what it replaces may give some back */
    struct inserted *i = &book.inserted[book.n_inserted++];
    memcpy(i->digest, r->digest, sizeof i->digest);
    i->n = n;
    i->n_layers = r->n_layers;
}

static void end(struct life *r)
{
    for (uint32_t l = 0; l < N_LAYERS; l++) block_table_fini(&r->table[l], book.pool);
    kv_forfeit_all(book.pool, &r->promise);
    r->alive = false;
}

static void reclaim(void)
{
    const uint32_t want = below(20), before = kv_n_free(book.pool);
    const uint32_t got = kv_prefix_reclaim(book.cache, want);
    assert_int_equal(kv_n_free(book.pool), before + got);
    if (got < want) assert_int_equal(kv_prefix_read(book.cache).n_entries, 0);
}

static void check(void)
{
    const struct kv_pool *p = book.pool;
    const struct kv_prefix_counts c = kv_prefix_read(book.cache);
    const uint32_t n = kv_n_total(p);
    uint32_t *tables = mem_must(n, sizeof *tables), held = 0, promised = 0;
    uint64_t by_cache = 0;
    kv_pool_check(p);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        const struct life *r = &book.life[i];
        promised += r->promise.n_pages;
        for (uint32_t l = 0; l < N_LAYERS && r->alive; l++)
            for (uint32_t b = 0; b < r->table[l].n_pages; b++) {
                tables[r->table[l].page[b]]++;
                assert_int_equal(book.holds[r->table[l].page[b]], content(l, &r->digest[b]));
            }
    }
    for (uint32_t i = 0; i < n; i++) {
        assert_true(kv_count(p, i) >= tables[i]);                              /* I3: the rest are the cache's */
        by_cache += kv_count(p, i) > tables[i];
        held += kv_count(p, i) > 0;
    }
    assert_int_equal(by_cache, c.n_pages);
    assert_int_equal(kv_n_free(p) + held, n);                                  /* I1 */
    assert_int_equal(kv_n_reserved(p), promised);
    assert_true(promised <= kv_n_free(p));                                     /* I2 */
    assert_int_equal(c.hidden_bytes, (uint64_t)book.n_hidden * HIDDEN_BYTES);
    assert_true(c.n_entries >= book.n_hidden);
    free(tables);
}

static void start(uint32_t n_pages, uint32_t entries_max, uint64_t hidden_max)
{
    struct err e;
    const struct kv_prefix_options o = { .n_layers = N_LAYERS, .hidden_bytes_max = hidden_max,
                                         .entries_max = entries_max, .free_hidden = hidden_free, .self = &book };
    memset(&book, 0, sizeof book);
    book.lossless = entries_max == 0 && hidden_max == UINT64_MAX;
    book.holds = mem_must(n_pages, sizeof *book.holds);
    assert_int_equal(kv_pool_create(n_pages, PAGE_TOKENS, &book.pool, &e), OK);
    assert_int_equal(kv_prefix_create(&o, book.pool, &book.cache, &e), OK);
}

static void stop(void)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) end(&book.life[i]);
    check();
    kv_prefix_destroy(&book.cache);
    assert_null(book.cache);
    assert_int_equal(book.n_hidden, 0);
    assert_int_equal(kv_n_free(book.pool), kv_n_total(book.pool));
    kv_pool_destroy(&book.pool);
    free(book.holds);
}

static void live(struct life *r, bool lose, uint32_t *n_shared)
{
    const uint32_t what = below(10);
    if (!r->alive) {
        begin(r, n_shared);
    } else if (what < 4) {
        keep(r);
    } else if (what < 5) {
        struct block_table *t = &r->table[below(N_LAYERS)];
        block_table_trim(t, book.pool, below(t->n_rows + 1));
    } else if (what < 6 && lose) {
        reclaim();
    } else if (what < 9) {
        end(r);
    }
}

/* A cache with room for all: every beginning that was kept is found. */
static void test_all_is_found(void **state)
{
    (void)state;
    uint32_t n_shared = 0;
    seed();
    for (uint32_t round = 0; round < 6; round++) {
        start(20000, 0, UINT64_MAX);
        for (uint32_t step = 0; step < 300; step++) {
            live(&book.life[below(N_REQUESTS)], false, &n_shared);
            check();
        }
        stop();
    }
    assert_true(n_shared > 500);
}

/* A small pool, few entries, little room for hidden states, reclaims: what is found is right and nothing is lost. */
static void test_nothing_is_lost(void **state)
{
    (void)state;
    uint32_t n_shared = 0;
    seed();
    for (uint32_t round = 0; round < 30; round++) {
        start(60 + below(200), 5, 3 * HIDDEN_BYTES);
        for (uint32_t step = 0; step < 300; step++) {
            live(&book.life[below(N_REQUESTS)], true, &n_shared);
            check();
            struct kv_prefix_counts c = kv_prefix_read(book.cache);
            assert_true(c.n_entries <= 5 && c.hidden_bytes <= 3 * HIDDEN_BYTES);
            if (below(20) > 0) continue;               /* device memory is short: entries with some go, others stay */
            const uint32_t plain = c.n_entries - book.n_hidden;
            for (uint32_t n = book.n_hidden; n > 0; n--, check()) assert_true(kv_prefix_drop_hidden(book.cache));
            assert_false(kv_prefix_drop_hidden(book.cache));
            c = kv_prefix_read(book.cache);
            assert_true(c.n_entries == plain && c.hidden_bytes == 0);
        }
        assert_true(kv_prefix_reclaim(book.cache, UINT32_MAX) <= kv_n_total(book.pool));
        assert_int_equal(kv_prefix_read(book.cache).n_entries, 0);
        assert_int_equal(kv_prefix_read(book.cache).n_pages, 0);
        check();
        stop();
    }
    assert_true(n_shared > 500);
}

/* The longest unused goes first; a use is a hit. */
static void test_order_of_reclaim(void **state)
{
    (void)state;
    struct life *r = book.life;
    uint32_t n_shared = 0;
    start(200, 0, UINT64_MAX);
    for (uint32_t i = 0; i < 3; i++) {
        do {
            if (r[i].alive) end(&r[i]);
            begin(&r[i], &n_shared);
            memset(r[i].digest, (int)i + 1, sizeof r[i].digest);               /* three beginnings that differ */
            for (uint32_t l = 0; l < N_LAYERS; l++)
                for (uint32_t b = 0; b < r[i].n_blocks; b++)
                    book.holds[r[i].table[l].page[b]] = content(l, &r[i].digest[b]);
        } while (r[i].n_layers != N_LAYERS);
        keep(&r[i]);
    }
    const uint32_t n0 = r[0].n_blocks;
    book.lossless = false;
    assert_int_equal(kv_prefix_find(book.cache, r[0].digest, n0, N_LAYERS).n_blocks, n0);
    for (uint32_t i = 1; i < 3; i++) {
        const uint32_t n = r[i].n_blocks * N_LAYERS;
        end(&r[i]);
        assert_int_equal(kv_prefix_reclaim(book.cache, 1), n);                 /* 1, then 2: 0 was used since */
        assert_int_equal(kv_prefix_read(book.cache).n_entries, 3 - i);
        assert_int_equal(kv_prefix_find(book.cache, r[i].digest, r[i].n_blocks, N_LAYERS).n_blocks, 0);
    }
    assert_int_equal(kv_prefix_reclaim(book.cache, 1), 0);                     /* its pages are in a table still */
    assert_int_equal(kv_prefix_read(book.cache).n_entries, 0);
    check();
    stop();
}

/* Out of memory at every place of an insertion: nothing is kept, the hidden states are freed. */
static void test_out_of_memory(void **state)
{
    (void)state;
    int n = 0;
    for (bool failed = true; failed;) {
        struct err e = { 0 };
        struct life *r = &book.life[0];
        uint32_t n_shared = 0;
        start(200, 0, UINT64_MAX);
        begin(r, &n_shared);
        void *hidden = hidden_new();
        mem_fail_after(++n);
        const status st = kv_prefix_insert(book.cache, r->digest, r->n_blocks, 2, r->table, hidden, HIDDEN_BYTES, &e);
        failed = mem_failed();
        mem_fail_after(0);
        assert_int_equal(st, failed ? E_NOMEM : OK);
        assert_int_equal(kv_prefix_read(book.cache).n_entries, failed ? 0 : 1);
        check();
        stop();
    }
    assert_int_equal(n, 5);                /* the list, the entry, its digests, its pages; then none fails */
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_all_is_found), cmocka_unit_test(test_nothing_is_lost),
                                        cmocka_unit_test(test_order_of_reclaim), cmocka_unit_test(test_out_of_memory) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
