/* tests/model/test_graphs.c - decode on the CUDA backend with its steps as graphs (kernels/cuda/steps.c), on the CPU that plays a
 * GPU. Goal: steps of requests that come, go, fork and cross pages, with as many keys in each layer as pruning left, give the bits
 * that they give launch by launch, and the CPU's numbers; and steps are captured and run again as often as can be predicted.
 * Method: three decoders of the same random weights, on the CPU, on CUDA with OMNIDROP_CUDA_GRAPHS=0 and on CUDA, and a model of
 * what is alike from step to step. */
#include <unistd.h>

#include "kernels/cuda/room.h"
#include "kernels/device.h"
#include "model/team.h"
#include "tests/kernels/twin.h"
#include "tests/simt_device.h"

enum { CPU, PLAIN, GRAPHS, SIDES };
enum { L = 3, H = 6, G = 2, WIDTH = 40, FF = 48, V = 30, SLOTS = 6, KEYS = 700, POOL = 3 * 1024, ROWS = 700 };
#define EACH_SIDE(s) for (int s = 0; s < SIDES; s++)

struct values { const float *x; uint32_t D; };

static status random_weight(void *self, enum decoder_role role, uint32_t l, struct weight_args *a, struct err *e)
{
    (void)e;
    const struct values *v = self;
    const uint32_t D = v->D;
    const struct { uint32_t k, n[2]; enum weight_form form; } of[] = {
        [DEC_QKV_Q] = { WIDTH, { H * D, 0 }, WEIGHT_PLAIN },    [DEC_QKV_KV] = { WIDTH, { G * D, G * D }, WEIGHT_PLAIN },
        [DEC_O] = { H * D, { WIDTH, 0 }, WEIGHT_PLAIN },        [DEC_GATE_UP] = { WIDTH, { FF, FF }, WEIGHT_SWIGLU },
        [DEC_DOWN] = { FF, { WIDTH, 0 }, WEIGHT_PLAIN },        [DEC_EMBED] = { WIDTH, { V, 0 }, WEIGHT_PLAIN } };
    a->form = of[role].form;
    a->k = of[role].k;
    a->n_parts = of[role].n[1] ? 2 : 1;
    for (uint32_t i = 0; i < a->n_parts; i++) {
        const float *x = v->x + 100 * role + 1000 * i + 31 * l;
        a->part[i] = (struct weight_part){ .data = x, .dtype = DT_F32, .n = of[role].n[i] };
        if (role == DEC_QKV_Q || role == DEC_QKV_KV) a->part[i].bias = x, a->part[i].bias_dtype = DT_F32;
    }
    return OK;
}

static status ones(void *self, enum decoder_role role, uint32_t l, float *out, struct err *e)
{
    (void)self, (void)role, (void)l, (void)e;
    for (uint32_t i = 0; i < WIDTH; i++) out[i] = 1.0f;
    return OK;
}

/* A device, a decoder on it, and pages handed out in no order. */
static struct side {
    struct stream *st;
    struct decoder *dec;
    struct team *team;
    struct team_rows *x, *angles;
    uint32_t free[POOL], n_free, per;
} side[SIDES];

static struct stream *device(int s)
{
    struct stream *st = NULL;
    if (s == CPU) return twin_open(NULL, 1);
    setenv("OMNIDROP_CUDA_GRAPHS", s == PLAIN ? "0" : "1", 1);
    TWIN_OK(stream_open(&(struct stream_options){ .device = "cuda", .n_threads = 1 }, &st, e));
    unsetenv("OMNIDROP_CUDA_GRAPHS");
    return st;
}

/* A layer of as many rows as steps will have, as a prompt before them has: what ops keep beside their arguments grows now. */
static void prefill(struct side *d)
{
    uint32_t start[2] = { 0, SLOTS }, zero[1] = { 0 }, row[SLOTS], visible[SLOTS];
    int32_t pos[SLOTS] = { 0 };
    float x[SLOTS * WIDTH];
    twin_fill(x, SLOTS * WIDTH);
    for (uint32_t i = 0; i < SLOTS; i++) row[i] = i, visible[i] = i + 1;
    const struct kv_view view = { d->free, SLOTS };
    const struct team_batch b = { .b = { .n_seqs = 1, .seq_start = start, .view = &view, .angle = row }, .angles = d->angles, .x = d->x };
    TWIN_OK(team_angles(d->team, (const int32_t *const[3]){ pos, pos, pos }, SLOTS, d->angles, 0, e));
    TWIN_OK(d->st->ops->upload(d->st, d->x->x, x, sizeof x, e));
    TWIN_OK(team_layer(d->team, 0, &b, zero, visible, e));
}

static void open_sides(uint32_t D, enum dtype dtype)
{
    const struct decoder_shape shape = { .L = L, .H = H, .G = G, .D = D, .d = WIDTH, .ff = FF, .V = V, .rms_eps = 1e-6f,
                                         .rope_theta = 1e4, .mrope_section = { D / 2 - 4, 2, 2 }, .tied = true };
    float *x = twin_floats(30000);
    for (size_t i = 0; i < 30000; i++) x[i] = 0.3f * twin_float();
    struct values v = { x, D };
    const struct decoder_source src = { .weight = random_weight, .norm = ones, .self = &v };
    EACH_SIDE(s) {
        struct side *d = &side[s];
        struct kv_shape kv;
        d->st = device(s);
        TWIN_OK(decoder_create(d->st, &shape, &src, dtype, dtype, ROWS, KEYS, &d->dec, e));
        TWIN_OK(team_open(d->dec, NULL, false, &d->team, e));
        TWIN_OK(team_pages(d->team, POOL, &kv, e));
        TWIN_OK(team_rows_open(d->team, ROWS, WIDTH, &d->x, e));
        TWIN_OK(team_angles_open(d->team, ROWS, &d->angles, e));
        d->per = kv.page_tokens;
        d->n_free = POOL;
        for (uint32_t i = 0; i < POOL; i++) d->free[i] = i * 5 % POOL;
        prefill(d);
    }
    free(x);
}

static void close_sides(void)
{
    EACH_SIDE(s) {
        struct side *d = &side[s];
        team_rows_close(d->team, &d->x);
        team_rows_close(d->team, &d->angles);
        team_close(&d->team);
        decoder_destroy(&d->dec);
        d->st->ops->close(&d->st);
        assert_null(d->st);
    }
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

/* keys[l] rows in layer l; pages of its own on each side. */
static struct slot { uint32_t keys[L], page[SIDES][L][(KEYS + 15) / 16]; int32_t pos; } slot[SLOTS];
static uint32_t n_slots;

static void more_pages(int s, struct slot *a, uint32_t l, uint32_t keys)
{
    struct side *d = &side[s];
    for (uint32_t p = (a->keys[l] + d->per - 1) / d->per; p * d->per < keys; p++) {
        assert_true(d->n_free > 0);
        a->page[s][l][p] = d->free[--d->n_free];
    }
}

/* A request whose prompt left keys[l] rows in layer l. */
static void join(const uint32_t keys[L])
{
    struct slot *a = &slot[n_slots++];
    *a = (struct slot){ .pos = 5 };
    for (uint32_t l = 0; l < L; l++) {
        const uint32_t n = keys[l], start[2] = { 0, n }, zero[1] = { 0 };
        float *x = twin_random_floats((size_t)n * WIDTH);
        uint32_t angle[KEYS];
        int32_t pos[KEYS];
        for (uint32_t i = 0; i < n; i++) angle[i] = i, pos[i] = (int32_t)i / 3;
        EACH_SIDE(s) {
            struct side *d = &side[s];
            more_pages(s, a, l, n);
            const struct kv_view view = { a->page[s][l], n };
            const struct team_batch b = { .b = { .n_seqs = 1, .seq_start = start, .view = &view, .angle = angle }, .angles = d->angles,
                                          .x = d->x };
            TWIN_OK(team_angles(d->team, (const int32_t *const[3]){ pos, pos, pos }, n, d->angles, 0, e));
            TWIN_OK(d->st->ops->upload(d->st, d->x->x, x, (size_t)n * WIDTH * sizeof *x, e));
            TWIN_OK(team_kv(d->team, l, &b, zero, e));
        }
        a->keys[l] = n;
        free(x);
    }
}

static void leave(uint32_t i)
{
    EACH_SIDE(s)
        for (uint32_t l = 0; l < L; l++)
            for (uint32_t p = 0; p * side[s].per < slot[i].keys[l]; p++) side[s].free[side[s].n_free++] = slot[i].page[s][l][p];
    slot[i] = slot[--n_slots];
}

/* Another choice of request i: every page is copied. */
static void fork_slot(uint32_t i)
{
    struct slot *a = &slot[n_slots++];
    *a = slot[i];
    memset(a->keys, 0, sizeof a->keys);
    EACH_SIDE(s)
        for (uint32_t l = 0; l < L; l++) {
            const uint32_t n = (slot[i].keys[l] + side[s].per - 1) / side[s].per;
            more_pages(s, a, l, slot[i].keys[l]);
            TWIN_OK(team_page_copy(side[s].team, slot[i].page[s][l], a->page[s][l], n, e));
        }
    memcpy(a->keys, slot[i].keys, sizeof a->keys);
}

/* ---- steps ------------------------------------------------------------------------------------------------- */

/* What steps of so many rows had last: the room of their lists, and how far they are. */
static struct { uint32_t room[2 * L]; enum { NEW, SEEN, CAPTURED } state; } kind[SLOTS + 1];
static struct device_steps foretold;

static void foretell(void)
{
    uint32_t room[2 * L];
    bool same = kind[n_slots].state != NEW;
    for (uint32_t l = 0; l < L; l++) {
        uint32_t pages = 0, tiles = 0;
        for (uint32_t i = 0; i < n_slots; i++) {
            const uint32_t n = (slot[i].keys[l] + side[GRAPHS].per - 1) / side[GRAPHS].per;
            pages += n;
            tiles += (n + 3) / 4;
        }
        room[2 * l] = cuda_room_for(pages, kind[n_slots].room[2 * l]);
        room[2 * l + 1] = cuda_room_for(tiles, kind[n_slots].room[2 * l + 1]);
    }
    same = same && memcmp(room, kind[n_slots].room, sizeof room) == 0;
    memcpy(kind[n_slots].room, room, sizeof room);
    if (!same) kind[n_slots].state = SEEN, foretold.plain++;
    else if (kind[n_slots].state == SEEN) kind[n_slots].state = CAPTURED, foretold.captured++;
    else foretold.replayed++;
}

static void step(double tol)
{
    int32_t id[SLOTS], pos[SLOTS];
    float *logits[SIDES];
    for (uint32_t i = 0; i < n_slots; i++) {
        id[i] = (int32_t)twin_below(V);
        pos[i] = slot[i].pos++;
        EACH_SIDE(s)
            for (uint32_t l = 0; l < L; l++) more_pages(s, &slot[i], l, slot[i].keys[l] + 1);
        for (uint32_t l = 0; l < L; l++) slot[i].keys[l]++;
    }
    foretell();
    EACH_SIDE(s) {
        struct side *d = &side[s];
        struct kv_view view[L * SLOTS];
        for (uint32_t l = 0; l < L; l++)
            for (uint32_t i = 0; i < n_slots; i++) view[l * n_slots + i] = (struct kv_view){ slot[i].page[s][l], slot[i].keys[l] };
        logits[s] = twin_floats((size_t)n_slots * V);
        TWIN_OK(team_step(d->team, id, pos, n_slots, view, d->angles, d->x, e));
        TWIN_OK(team_logits(d->team, d->x, 0, NULL, n_slots, logits[s], e));
    }
    double top = 0;
    for (uint32_t i = 0; i < n_slots * V; i++) top = fmax(top, fabs((double)logits[CPU][i]));
    for (uint32_t i = 0; i < n_slots * V; i++)
        if (!(fabs((double)logits[CPU][i] - (double)logits[GRAPHS][i]) <= tol * top))
            fail_msg("logit %u of row %u is %g, the CPU has %g", i % V, i / V, (double)logits[GRAPHS][i], (double)logits[CPU][i]);
    twin_same(logits[GRAPHS], logits[PLAIN], (size_t)n_slots * V, "logits with graphs and without");
    EACH_SIDE(s) free(logits[s]);
    const struct device_steps got = device_steps(side[GRAPHS].st);
    if (memcmp(&got, &foretold, sizeof got) != 0)
        fail_msg("%u rows: %u steps plain, %u captured, %u run again, %u ended early; %u, %u, %u and none were foretold", n_slots,
                 (unsigned)got.plain, (unsigned)got.captured, (unsigned)got.replayed, (unsigned)got.ended_early, (unsigned)foretold.plain,
                 (unsigned)foretold.captured, (unsigned)foretold.replayed);
}

static void steps(uint32_t n, double tol)
{
    for (uint32_t i = 0; i < n; i++) step(tol);
}

/* Residual rows and angles at other addresses: nothing captured fits any more. */
static void move_rows(void)
{
    EACH_SIDE(s) {
        struct side *d = &side[s];
        struct team_rows *x = d->x, *angles = d->angles;
        TWIN_OK(team_rows_open(d->team, ROWS, WIDTH, &d->x, e));
        TWIN_OK(team_angles_open(d->team, ROWS, &d->angles, e));
        team_rows_close(d->team, &x);
        team_rows_close(d->team, &angles);
    }
    for (uint32_t n = 0; n <= SLOTS; n++) kind[n].state = NEW;
}

static void decode(uint32_t D, enum dtype dtype, double tol)
{
    memset(kind, 0, sizeof kind);
    foretold = (struct device_steps){ 0 };
    n_slots = 0;
    open_sides(D, dtype);
    join((uint32_t[L]){ 62, 30, 3 });
    steps(2, tol);                 /* plain, captured */
    join((uint32_t[L]){ 1, 1, 1 });
    join((uint32_t[L]){ 126, 127, 5 });
    steps(5, tol);                 /* across the ends of pages in different layers */
    fork_slot(2);
    steps(4, tol);
    leave(0);
    steps(3, tol);                 /* as many rows as before, another request's in each place */
    join((uint32_t[L]){ 60, 40, 20 });
    steps(2, tol);
    leave(1);
    join((uint32_t[L]){ 690, 200, 2 });   /* more tiles and pages than a quarter over */
    steps(3, tol);
    move_rows();
    steps(3, tol);
    while (n_slots > 1) leave(0);
    steps(3, tol);
    assert_true(foretold.captured >= 5 && foretold.replayed >= 8 && foretold.plain >= 5);
    assert_true(device_steps(side[PLAIN].st).replayed == 0 && device_steps(side[CPU].st).plain == 0);
    close_sides();
}

static void test_tensor_cores(void **state)
{
    (void)state;
    twin_seed("graphs");
    decode(64, DT_BF16, 0.05);
}

/* Rows of heads that do not lie end to end go through the room: D is no multiple of 8. */
static void test_plain_kernels(void **state)
{
    (void)state;
    twin_seed("graphs, f32");
    decode(10, DT_F32, 1e-4);
}

int main(void)
{
    simt_device("../simt");
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_tensor_cores), cmocka_unit_test(test_plain_kernels) };
    return cmocka_run_group_tests_name("decode in graphs", tests, NULL, NULL);
}
