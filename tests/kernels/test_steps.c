/* tests/kernels/test_steps.c - ops between step_begin and step_end of the CUDA table (kernels/cuda/steps.c), on the CPU that plays a
 * GPU: steps that end early, that are dropped, whose lists outgrow their place, that a device refuses to capture; and how often a
 * decoder's steps are captured, counted on many random requests. Decoders' steps as a whole: tests/model/test_graphs.c. */
#include <unistd.h>

#include "kernels/cuda/room.h"
#include "kernels/device.h"
#include "tests/kernels/twin.h"
#include "tests/simt_device.h"

enum { N = 6, D = 20, OF = 40 };

/* A table of OF rows, y and o = norm(y), and what the host has of them. */
struct bench {
    struct stream *st;
    struct weight *table, *one;
    float *y, *w, *back, *rows;
    struct operand o;
    float host[OF * D];
    int owner;
};

static void bench_open(struct bench *b)
{
    float ones[D], identity[D * D] = { 0 };
    b->st = NULL;
    TWIN_OK(stream_open(&(struct stream_options){ .device = "cuda", .n_threads = 1 }, &b->st, e));
    const struct ops *ops = b->st->ops;
    twin_fill(b->host, OF * D);
    for (uint32_t i = 0; i < D; i++) ones[i] = identity[i * D + i] = 1.0f;
    TWIN_OK(ops->weight_create(b->st, &(struct weight_args){ .compute = DT_F32, .k = D, .n_parts = 1,
                                                             .part = { { .data = b->host, .dtype = DT_F32, .n = OF } } }, &b->table, e));
    TWIN_OK(ops->weight_create(b->st, &(struct weight_args){ .compute = DT_F32, .k = D, .n_parts = 1,
                                                             .part = { { .data = identity, .dtype = DT_F32, .n = D } } }, &b->one, e));
    TWIN_OK(ops->alloc(b->st, N * D * sizeof(float), (void **)&b->y, e));
    TWIN_OK(ops->alloc(b->st, N * D * sizeof(float), (void **)&b->back, e));
    TWIN_OK(ops->alloc(b->st, D * sizeof(float), (void **)&b->w, e));
    TWIN_OK(ops->alloc(b->st, (size_t)1 << 21, (void **)&b->rows, e));
    TWIN_OK(ops->upload(b->st, b->w, ones, sizeof ones, e));
    b->o = (struct operand){ NULL, N, D, DT_F32 };
    TWIN_OK(ops->alloc(b->st, ops->operand_bytes(b->st, N, D, DT_F32), &b->o.data, e));
}

static void bench_close(struct bench *b)
{
    const struct ops *ops = b->st->ops;
    ops->weight_destroy(b->st, &b->table);
    ops->weight_destroy(b->st, &b->one);
    void *device[] = { b->y, b->back, b->w, b->rows, b->o.data };
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) ops->release(b->st, device[i]);
    ops->close(&b->st);
    assert_null(b->st);
}

/* y = the normed rows id of the table, or more by them. The ids go out of scope before anything runs. */
static void rows_to(struct bench *b, const int32_t id[N], enum linear_mode mode, float *y)
{
    const struct ops *ops = b->st->ops;
    int32_t list[N];
    memcpy(list, id, sizeof list);
    TWIN_OK(ops->embed(b->st, &(struct embed_args){ b->table, list, N, b->y }, e));
    memset(list, 0xff, sizeof list);
    TWIN_OK(ops->norm(b->st, &(struct norm_args){ .x = b->y, .rows = N, .d = D, .group = 1, .w = b->w, .eps = 1e-6f, .out = &b->o }, e));
    TWIN_OK(ops->linear(b->st, &(struct linear_args){ .x = &b->o, .w = b->one, .mode = mode, .y = y, .ldy = D }, e));
}
static void rows_of(struct bench *b, const int32_t id[N]) { rows_to(b, id, LINEAR_STORE, b->back); }

static void add_normed(const struct bench *b, const int32_t id[N], double *want)
{
    for (uint32_t i = 0; i < N; i++) {
        const float *x = b->host + (size_t)id[i] * D;
        double sum = 1e-6;
        for (uint32_t c = 0; c < D; c++) sum += (double)x[c] * x[c] / D;
        for (uint32_t c = 0; c < D; c++) want[i * D + c] += x[c] / sqrt(sum);
    }
}

static void check_rows(struct bench *b, const int32_t id[N], const char *what)
{
    float got[N * D];
    double want[N * D] = { 0 };
    TWIN_OK(b->st->ops->download(b->st, got, b->back, sizeof got, e));
    add_normed(b, id, want);
    twin_near(got, want, N * D, 1e-5, what);
}

static void random_ids(int32_t id[N])
{
    for (uint32_t i = 0; i < N; i++) id[i] = (int32_t)twin_below(OF);
}

static void count_is(const struct bench *b, uint64_t plain, uint64_t captured, uint64_t replayed, uint64_t early)
{
    const struct device_steps n = device_steps(b->st);
    assert_int_equal(n.plain, plain);
    assert_int_equal(n.captured, captured);
    assert_int_equal(n.replayed, replayed);
    assert_int_equal(n.ended_early, early);
}

static void whole_step(struct bench *b, const void *owner, uint32_t rows)
{
    int32_t id[N];
    random_ids(id);
    b->st->ops->step_begin(b->st, owner, rows);
    rows_of(b, id);
    TWIN_OK(b->st->ops->step_end(b->st, false, e));
    check_rows(b, id, "a step");
}

/* Plain, captured, run again and again; by owner and rows; the one not used for longest makes room. */
static void test_kinds(void **state)
{
    (void)state;
    twin_seed("kinds");
    struct bench b;
    bench_open(&b);
    for (int i = 0; i < 4; i++) whole_step(&b, &b, N);
    count_is(&b, 1, 1, 2, 0);
    whole_step(&b, &b, N + 1);
    whole_step(&b, &b.owner, N);
    count_is(&b, 3, 1, 2, 0);
    whole_step(&b, &b, N + 1);
    whole_step(&b, &b, N);
    count_is(&b, 3, 2, 3, 0);
    for (uint32_t i = 0; i < 63; i++) whole_step(&b, NULL, i);       /* of 64 all but the last go */
    whole_step(&b, &b, N);
    count_is(&b, 66, 2, 4, 0);
    whole_step(&b, &b, N + 1);
    count_is(&b, 67, 2, 4, 0);
    bench_close(&b);
}

/* Steps run one behind the other, with nobody waiting in between: each with its own lists. */
static void test_queue(void **state)
{
    (void)state;
    twin_seed("queue");
    struct bench b;
    bench_open(&b);
    for (int round = 0; round < 20; round++) {
        float got[N * D] = { 0 };
        double want[N * D] = { 0 };
        const uint32_t n = twin_below(5);
        TWIN_OK(b.st->ops->upload(b.st, b.rows, got, sizeof got, e));
        for (uint32_t i = 0; i <= n; i++) {
            int32_t id[N];
            random_ids(id);
            b.st->ops->step_begin(b.st, &b, N);
            rows_to(&b, id, LINEAR_ADD, b.rows);
            TWIN_OK(b.st->ops->step_end(b.st, false, e));
            add_normed(&b, id, want);
        }
        TWIN_OK(b.st->ops->download(b.st, got, b.rows, sizeof got, e));
        twin_near(got, want, N * D, 1e-5, "a queue of steps");
    }
    assert_true(device_steps(b.st).replayed > 20);
    bench_close(&b);
}

/* What cannot be held back runs all that was, in order, and the step goes on; what is dropped is not run. */
static void test_early(void **state)
{
    (void)state;
    twin_seed("early");
    struct bench b;
    int32_t id[N], other[N];
    bench_open(&b);
    const struct ops *ops = b.st->ops;
    whole_step(&b, &b, N), whole_step(&b, &b, N);
    random_ids(id), random_ids(other);
    ops->step_begin(b.st, &b, N);
    rows_of(&b, id);
    check_rows(&b, id, "read in the middle of a step");
    rows_of(&b, other);
    TWIN_OK(ops->step_end(b.st, false, e));
    check_rows(&b, other, "the rest of the step");
    count_is(&b, 1, 1, 0, 1);
    whole_step(&b, &b, N);
    count_is(&b, 1, 1, 1, 1);
    /* an op that no decoder's step has; memory that goes; a wait */
    const uint32_t row[] = { 3 };
    float got[D];
    ops->step_begin(b.st, &b, N);
    rows_of(&b, id);
    TWIN_OK(ops->gather(b.st, &(struct gather_args){ b.back, row, 1, D, b.rows }, e));
    TWIN_OK(ops->step_end(b.st, false, e));
    check_rows(&b, id, "beside a gather");
    float *mine = twin_floats(N * D);
    TWIN_OK(ops->download(b.st, mine, b.back, N * D * sizeof *mine, e));
    TWIN_OK(ops->download(b.st, got, b.rows, sizeof got, e));
    twin_same(got, mine + 3 * D, D, "a row gathered in a step");
    void *spare = NULL;
    TWIN_OK(ops->alloc(b.st, sizeof got, &spare, e));
    ops->step_begin(b.st, &b, N);
    TWIN_OK(ops->upload(b.st, spare, got, sizeof got, e));
    rows_of(&b, other);
    ops->release(b.st, spare);
    TWIN_OK(ops->step_end(b.st, false, e));
    check_rows(&b, other, "beside memory that went");
    ops->step_begin(b.st, &b, N);
    rows_of(&b, id);
    TWIN_OK(ops->sync(b.st, e));
    TWIN_OK(ops->step_end(b.st, false, e));
    count_is(&b, 1, 1, 1, 4);
    ops->step_begin(b.st, &b, N);
    rows_of(&b, other);
    TWIN_OK(ops->step_end(b.st, true, e));
    check_rows(&b, id, "a step that was dropped");
    ops->step_begin(b.st, &b, N);
    TWIN_OK(ops->step_end(b.st, false, e));
    whole_step(&b, &b, N);
    count_is(&b, 1, 1, 2, 4);
    free(mine);
    bench_close(&b);
}

/* Uploads travel with the lists, large ones do not, and lists that outgrow their place get a larger one for the next step. */
static void test_lists(void **state)
{
    (void)state;
    twin_seed("lists");
    struct bench b;
    bench_open(&b);
    const struct ops *ops = b.st->ops;
    enum { FLOATS = 60000, PIECES = 8 };
    float *x = twin_floats(FLOATS * PIECES), *got = twin_floats(FLOATS * PIECES);
    for (int round = 0; round < 5; round++) {
        twin_fill(x, FLOATS * PIECES);
        ops->step_begin(b.st, &b, N);
        for (size_t i = 0; i < PIECES; i++)
            TWIN_OK(ops->upload(b.st, b.rows + i * FLOATS, x + i * FLOATS, FLOATS * sizeof *x, e));
        TWIN_OK(ops->step_end(b.st, false, e));
        TWIN_OK(ops->download(b.st, got, b.rows, FLOATS * PIECES * sizeof *x, e));
        twin_same(got, x, FLOATS * PIECES, "uploads in a step");
    }
    count_is(&b, 1, 1, 2, 1);
    for (int round = 0; round < 2; round++) {                        /* bytes that are no floats, and more than are held back */
        twin_fill(x, FLOATS * PIECES);
        ops->step_begin(b.st, &b, N);
        TWIN_OK(ops->upload(b.st, b.rows, x, round ? 7 : FLOATS * PIECES * sizeof *x, e));
        TWIN_OK(ops->step_end(b.st, false, e));
        TWIN_OK(ops->download(b.st, got, b.rows, FLOATS * PIECES * sizeof *x, e));
        if (round) assert_memory_equal(got, x, 7);
        else twin_same(got, x, FLOATS * PIECES, "a long upload");
    }
    count_is(&b, 1, 1, 2, 3);
    free(x), free(got);
    bench_close(&b);
}

/* A device that does not capture, instantiate or launch: told once, and decode goes on. */
static void test_refused(void **state)
{
    (void)state;
    twin_seed("refused");
    static const char *const what[] = { "capture", "instantiate", "graph" };
    for (int i = 0; i < 3; i++) {
        struct bench b;
        char text[2000] = "", name[256];
        FILE *said = tmpfile();
        const int own = dup(2);
        assert_non_null(said);
        bench_open(&b);
        b.st->ops->describe(b.st, name, sizeof name);
        if (strstr(name, "plays a GPU") == NULL) skip();             /* a true one cannot be told to */
        setenv("FAKE_CUDA_FAILS", what[i], 1);
        fflush(stderr);
        dup2(fileno(said), 2);
        for (int k = 0; k < 5; k++) whole_step(&b, &b, N);
        fflush(stderr);
        dup2(own, 2);
        close(own);
        unsetenv("FAKE_CUDA_FAILS");
        rewind(said);
        const size_t n = fread(text, 1, sizeof text - 1, said);
        fclose(said);
        const char *first = strstr(text, "without CUDA graphs");
        assert_true(n > 0 && first != NULL && strstr(first + 1, "without") == NULL);
        count_is(&b, 2, 0, 0, 0);                                    /* no further steps are held back */
        bench_close(&b);
    }
}

/* Up to 32 requests of random prompts, pruned layer by layer, with answers of some hundred tokens, and another some steps after
 * each that ends: of the first 1000 steps some, of the fourth 1000 few are not as the last of as many rows. */
static void test_room(void **state)
{
    (void)state;
    enum { L = 28, SEQS = 32, STEPS = 1000, BEFORE = 3000, PAGE = 64, SPLIT = 4 };
    static const struct { uint32_t least, most, idle; double kept; } cases[] = {
        { 20, 400, 1, 1.0 }, { 20, 400, 60, 1.0 }, { 2000, 20000, 1, 0.2 }, { 2000, 20000, 60, 1.0 }, { 2000, 20000, 60, 0.2 } };
    twin_seed("room");
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        static uint32_t keys[SEQS][L], left[SEQS], idle[SEQS], had[SEQS + 1][L][2];
        uint32_t other[2] = { 0 };
        memset(had, 0, sizeof had);
        memset(left, 0, sizeof left);
        memset(idle, 0, sizeof idle);
        for (uint32_t t = 0; t < BEFORE + STEPS; t++) {
            uint32_t need[L][2] = { { 0 } }, n = 0;
            for (uint32_t i = 0; i < SEQS; i++) {
                if (idle[i] > 0 && idle[i]-- > 0) continue;
                if (left[i] == 0) {
                    const uint32_t prompt = cases[c].least + twin_below(cases[c].most - cases[c].least);
                    left[i] = 20 + twin_below(500);
                    for (uint32_t l = 0; l < L; l++) keys[i][l] = 1 + (uint32_t)(prompt * (1 - (1 - cases[c].kept) * l / L));
                }
                if (--left[i] == 0) idle[i] = twin_below(cases[c].idle);
                n++;
                for (uint32_t l = 0; l < L; l++) {
                    const uint32_t pages = (++keys[i][l] + PAGE - 1) / PAGE;
                    need[l][0] += pages;
                    need[l][1] += (pages + SPLIT - 1) / SPLIT;
                }
            }
            bool same = true;
            for (uint32_t l = 0; l < L; l++)
                for (int k = 0; k < 2; k++) {
                    const uint32_t room = cuda_room_for(need[l][k], had[n][l][k]);
                    assert_true(room >= need[l][k] && room <= 2 * need[l][k] + 256);
                    same = same && room == had[n][l][k];
                    had[n][l][k] = room;
                }
            if (!same && (t < STEPS || t >= BEFORE)) other[t >= BEFORE]++;
        }
        print_message("prompts of %u to %u tokens, %g of them left in the last layer, idle up to %u: %u of the first %u steps are other, "
                      "%u of the last\n", cases[c].least, cases[c].most, cases[c].kept, cases[c].idle, other[0], (unsigned)STEPS, other[1]);
        assert_true(other[0] <= 60 && other[1] <= 15);
    }
}

int main(void)
{
    simt_device("../simt");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds), cmocka_unit_test(test_queue),   cmocka_unit_test(test_early),
        cmocka_unit_test(test_lists), cmocka_unit_test(test_refused), cmocka_unit_test(test_room),
    };
    return cmocka_run_group_tests_name("steps of CUDA", tests, NULL, NULL);
}
