/* tests/bench/bench_model.c - the whole decoder, on the code that serves requests: prefill_*, decode_*, av10k_*.
 * 24 layers of width 896, MLP 4864, 14 query heads on 2 KV heads of 64, 151936 tied rows of vocabulary; random bf16
 * weights, bf16 pages taken in an order that jumps. The model is made once, by the first row that needs it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"
#include "kernels/cpu/linear.h"
#include "tests/bench/bench.h"
#include "tests/bench/pool.h"

#define SHAPE { .L = 24, .H = 14, .G = 2, .D = 64, .d = 896, .ff = 4864, .V = 151936, .rms_eps = 1e-6f, \
                .rope_theta = 1e6, .mrope_section = { 8, 12, 12 }, .tied = true }
#define MAX_LEN 16384

static const struct decoder_shape S = SHAPE;
const struct decoder_shape bench_model_shape = SHAPE;

/* Multiply-adds of one row in all products of a layer: K and V, and what only rows that live on take. */
static double macs_kv(void) { return 2.0 * S.d * S.G * S.D; }
static double macs_rest(void) { return 2.0 * S.d * S.H * S.D + 3.0 * S.d * S.ff; }
/* ... of one query row with one key, all heads, scores and weighted sum. */
static double macs_pair(void) { return 2.0 * S.D * S.H; }

/* ---- the model --------------------------------------------------------------------------------------------- */

static struct engine *engine;

/* The engine around the random decoder, and a bench on its threads. */
static status model_open(const struct bench *b, struct bench *on, struct err *e)
{
    if (engine == NULL) {
        struct bench_pool pool = { .n = (size_t)S.V * S.d, .shape = &S };
        const struct decoder_source src = bench_pool_source(&pool);
        const struct engine_options o = { .device = "cpu", .n_threads = b->n_threads, .max_model_len = MAX_LEN };
        TRY(bench_random_bf16(pool.n, 0.05f, &pool.values, e));
        const status s = engine_open_source(&o, &S, &src, DT_BF16, &engine, e);
        free(pool.values);
        if (s != OK) return s;
    }
    *on = *b;
    on->st = engine->st;
    return OK;
}

void bench_model_close(void)
{
    if (engine != NULL) engine_close(&engine);
}

/* ---- rows over the decoder's own calls --------------------------------------------------------------------- */

/* One sequence of up to n rows in the engine's pages. */
struct sequence {
    uint32_t n, per_layer;         /* rows; pages of a layer                 */
    uint32_t *page;                /* [L][per_layer]                         */
    uint32_t *angle, *visible;     /* [n]                                    */
    int32_t *id, *pos;             /* [n]                                    */
    float *x, *cos, *sin, *logits; /* [n, d], [n, D/2] twice, [V]            */
};

static void sequence_fini(struct sequence *q)
{
    void *all[] = { q->page, q->angle, q->visible, q->id, q->pos, q->x, q->cos, q->sin, q->logits };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static status sequence_init(struct sequence *q, uint32_t n, struct err *e)
{
    const uint32_t T = engine->kv.page_tokens, n_pages = engine->info.n_pages;
    *q = (struct sequence){ .n = n, .per_layer = (n + T - 1) / T };
    TRY(mem_alloc(&q->page, (size_t)S.L * q->per_layer, sizeof *q->page, e));
    TRY(mem_alloc(&q->angle, n, sizeof *q->angle, e));
    TRY(mem_alloc(&q->visible, n, sizeof *q->visible, e));
    TRY(mem_alloc(&q->id, n, sizeof *q->id, e));
    TRY(mem_alloc(&q->pos, n, sizeof *q->pos, e));
    TRY(mem_alloc_aligned(&q->x, (size_t)n * S.d * sizeof(float), e));
    TRY(mem_alloc_aligned(&q->cos, (size_t)n * S.D / 2 * sizeof(float), e));
    TRY(mem_alloc_aligned(&q->sin, (size_t)n * S.D / 2 * sizeof(float), e));
    TRY(mem_alloc_aligned(&q->logits, S.V * sizeof(float), e));
    for (uint32_t i = 0; i < S.L * q->per_layer; i++) q->page[i] = (uint32_t)((uint64_t)i * 37 % n_pages);
    for (uint32_t i = 0; i < n; i++) {
        q->angle[i] = i;
        q->visible[i] = i + 1;
        q->pos[i] = (int32_t)i;
        q->id[i] = (int32_t)((uint64_t)i * 7919 % S.V);
    }
    return OK;
}

/* Rows [row, row + n) of the sequence through layer l. */
static status layer_run(struct sequence *q, uint32_t l, uint32_t row, uint32_t n, bool decode, struct err *e)
{
    const uint32_t start[2] = { 0, n };
    const struct kv_view view = { q->page + (size_t)l * q->per_layer, row + n };
    const struct decoder_batch batch = { .n_seqs = 1, .seq_start = start, .view = &view, .angle = q->angle, .cos = q->cos,
                                         .sin = q->sin, .kv = engine->kv, .decode = decode };
    return decoder_layer(engine->dec, l, &batch, q->x, &row, q->visible + row, e);
}

static status inputs_run(struct sequence *q, uint32_t row, uint32_t n, struct err *e)
{
    const int32_t *const pos[3] = { q->pos + row, q->pos + row, q->pos + row };
    TRY(decoder_angles(engine->dec, pos, n, q->cos, q->sin, e));
    return decoder_embed(engine->dec, q->id + row, n, q->x, e);
}

/* Random K and V in the first `depth` rows of all layers. */
static status fill_pages(struct sequence *q, uint32_t depth, struct err *e)
{
    const struct ops *ops = engine->ops;
    float *kv;
    status s = OK;
    if (depth == 0) return OK;
    TRY(bench_random((size_t)depth * 2 * S.G * S.D, &kv, e));
    for (uint32_t l = 0; l < S.L && s == OK; l++) {
        const struct kv_view view = { q->page + (size_t)l * q->per_layer, depth };
        const struct kv_write_args w = { .kv = kv, .ldkv = 2 * (size_t)S.G * S.D, .shape = engine->kv, .n_seqs = 1,
                                         .seq_start = (const uint32_t[]){ 0, depth }, .kv_start = (const uint32_t[]){ 0 },
                                         .view = &view };
        s = ops->kv_write(engine->st, &w, e);
    }
    free(kv);
    return s;
}

/* ---- prefill ----------------------------------------------------------------------------------------------- */

enum { SAMPLES = 256 };

/* Times of equal stretches, in seconds and in what the machine could have multiplied meanwhile. */
struct samples { double seconds[SAMPLES], gflop[SAMPLES]; bool undisturbed[SAMPLES]; int n; };

static void sample_add(struct bench *b, struct samples *s, struct bench_clock since, double *peak)
{
    bool undisturbed;
    const double seconds = bench_seconds(b, since, &undisturbed), after = bench_peak(b);
    if (s->n < SAMPLES) {
        s->seconds[s->n] = seconds;
        s->gflop[s->n] = seconds * 0.5 * (*peak + after);
        s->undisturbed[s->n++] = undisturbed;
    }
    *peak = after;
}

static int n_undisturbed(const struct samples *s)
{
    int n = 0;
    for (int i = 0; i < s->n; i++) n += s->undisturbed[i];
    return n;
}

static status prefill_once(struct bench *b, struct sequence *q, struct samples *layers, struct samples *rest, struct err *e)
{
    const uint32_t last = q->n - 1;
    double peak = bench_peak(b);
    struct bench_clock t = bench_clock_now();
    TRY(inputs_run(q, 0, q->n, e));
    sample_add(b, rest, t, &peak);
    for (uint32_t l = 0; l < S.L; l++) {
        t = bench_clock_now();
        TRY(layer_run(q, l, 0, q->n, false, e));
        sample_add(b, layers, t, &peak);
    }
    t = bench_clock_now();
    TRY(decoder_logits(engine->dec, q->x, &last, 1, q->logits, e));
    sample_add(b, rest + 1, t, &peak);
    return OK;
}

/* Layers do equal work, so that 24 times their median is the prefill; the inputs and the head of the last row add
 * theirs. The peak is measured between all layers. */
static status run_prefill(struct bench *base, uint32_t n, double floor, struct bench_result *r, struct err *e)
{
    enum { ROUNDS = 8, ENOUGH = 20 };
    struct bench on, *b = &on;
    struct sequence q = { 0 };
    struct samples layers = { .n = 0 }, rest[2] = { { .n = 0 }, { .n = 0 } };
    status s;
    TRY(model_open(base, b, e));
    TRY_GOTO(s, sequence_init(&q, n, e), done);
    TRY_GOTO(s, fill_pages(&q, n, e), done);                            /* first touch */
    TRY_GOTO(s, inputs_run(&q, 0, n, e), done);
    TRY_GOTO(s, layer_run(&q, 0, 0, n, false, e), done);
    for (int i = 0; i < ROUNDS && (n_undisturbed(&layers) < ENOUGH || i * n < 2048); i++) {
        if (i > 0 && i * n >= 16384) break;                             /* long rounds are few */
        TRY_GOTO(s, prefill_once(b, &q, &layers, rest, e), done);
    }
    double seconds = 0, gflop = 0;
    const struct samples *part[] = { &layers, &rest[0], &rest[1] };
    for (int i = 0; i < 3; i++) {
        const double times = i == 0 ? S.L : 1;
        seconds += times * bench_median_of(part[i]->seconds, part[i]->undisturbed, part[i]->n);
        gflop += times * bench_median_of(part[i]->gflop, part[i]->undisturbed, part[i]->n);
    }
    const double flops = 2 * S.L * (n * (macs_kv() + macs_rest()) + macs_pair() * 0.5 * n * (n + 1.0));
    r->value = flops * 1e-9 / gflop;
    r->unit = "of peak";
    r->floor = floor;
    r->measured = n / seconds;
    r->measured_unit = "tokens/s";
    snprintf(r->note, sizeof r->note, "%.0f GFLOP/s (2 n L products + 4 D H L n(n+1)/2); a layer %.2f ms, "
             "inputs %.2f, head of one row %.2f; %d of %d layers undisturbed", flops / seconds * 1e-9,
             bench_median_of(layers.seconds, layers.undisturbed, layers.n) * 1e3,
             bench_median_of(rest[0].seconds, rest[0].undisturbed, rest[0].n) * 1e3,
             bench_median_of(rest[1].seconds, rest[1].undisturbed, rest[1].n) * 1e3, n_undisturbed(&layers), layers.n);
done:
    sequence_fini(&q);
    return s;
}

static status run_prefill_512(struct bench *b, struct bench_result *r, struct err *e) { return run_prefill(b, 512, 0.80, r, e); }
static status run_prefill_2048(struct bench *b, struct bench_result *r, struct err *e) { return run_prefill(b, 2048, 0.80, r, e); }
static status run_prefill_8192(struct bench *b, struct bench_result *r, struct err *e) { return run_prefill(b, 8192, 0.70, r, e); }

/* ---- decode ------------------------------------------------------------------------------------------------ */

/* Seconds to read every weight of a token in its order, then as many bytes of pages as `depth` rows have. */
static double read_all(struct bench *b, uint32_t depth, size_t *bytes)
{
    const struct weight *w;
    double seconds = 0;
    *bytes = 0;
    for (uint32_t i = 0; (w = decoder_weight(engine->dec, i)) != NULL; i++) {
        seconds += bench_read(b, w->data, w->bytes);
        *bytes += w->bytes;
    }
    const size_t kv = (size_t)S.L * ((depth + engine->kv.page_tokens - 1) / engine->kv.page_tokens) * engine->kv.page_bytes;
    if (kv > 0) seconds += bench_read(b, engine->kv.base, kv);
    *bytes += kv;
    return seconds;
}

static status decode_once(struct sequence *q, uint32_t depth, struct err *e)
{
    TRY(inputs_run(q, depth, 1, e));
    for (uint32_t l = 0; l < S.L; l++) TRY(layer_run(q, l, depth, 1, true, e));
    return decoder_logits(engine->dec, q->x, NULL, 1, q->logits, e);
}

/* One token at `depth` against a pure read of the same bytes, turn about. */
static status run_decode(struct bench *base, uint32_t depth, double floor, struct bench_result *r, struct err *e)
{
    enum { ROUNDS = 60, ENOUGH = 25 };
    struct bench on, *b = &on;
    struct sequence q = { 0 };
    double shares[ROUNDS], token[ROUNDS], read[ROUNDS];
    bool undisturbed[ROUNDS];
    size_t bytes = 0;
    int n = 0;
    status s;
    TRY(model_open(base, b, e));
    TRY_GOTO(s, sequence_init(&q, depth + 1, e), done);
    TRY_GOTO(s, fill_pages(&q, depth, e), done);
    TRY_GOTO(s, decode_once(&q, depth, e), done);                       /* first touch */
    for (int n_good = 0; n < ROUNDS && n_good < ENOUGH; n++) {
        bool alone[3];
        struct bench_clock t = bench_clock_now();
        const double before = read_all(b, depth, &bytes);
        bench_seconds(b, t, &alone[0]);
        t = bench_clock_now();
        TRY_GOTO(s, decode_once(&q, depth, e), done);
        token[n] = bench_seconds(b, t, &alone[1]);
        t = bench_clock_now();
        read[n] = 0.5 * (before + read_all(b, depth, &bytes));
        bench_seconds(b, t, &alone[2]);
        shares[n] = read[n] / token[n];
        undisturbed[n] = alone[0] && alone[1] && alone[2];
        n_good += undisturbed[n];
    }
    r->value = bench_median_of(shares, undisturbed, n);
    r->unit = "of read";
    r->floor = floor;
    r->measured = 1 / bench_median_of(token, undisturbed, n);
    r->measured_unit = "tokens/s";
    const double t = bench_median_of(token, undisturbed, n), t_read = bench_median_of(read, undisturbed, n);
    snprintf(r->note, sizeof r->note, "depth %u; %.0f MB of weights and KV at %.1f GB/s, a read of the same "
             "bytes %.1f GB/s", depth, (double)bytes * 1e-6, (double)bytes / t * 1e-9, (double)bytes / t_read * 1e-9);
done:
    sequence_fini(&q);
    return s;
}

static status run_decode_0(struct bench *b, struct bench_result *r, struct err *e) { return run_decode(b, 0, 0.93, r, e); }
static status run_decode_8192(struct bench *b, struct bench_result *r, struct err *e) { return run_decode(b, 8192, 0.80, r, e); }

/* ---- a minute of film -------------------------------------------------------------------------------------- */

/* 60 grid steps of 144 tokens and 1500 tokens of sound in chunks of two seconds, then 40 tokens of question. */
enum { STEPS = 60, GRID = 24, SOUND = 1500, QUESTION = 40, AV = STEPS * GRID * GRID / 4 + SOUND };

/* The paper's two settings for the 7B model, with and without step 0. */
enum { NONE, OD30, OD20, OD30_WHOLE, OD20_WHOLE, N_PLANS };
static const struct { const char *policy; double p_init, p_final; bool step0; } PLANS[N_PLANS] = {
    [NONE] = { "none", 0, 0, false },           [OD30] = { "omnidrop", 0, 0.2, true },
    [OD20] = { "omnidrop", 0.02, 0.5, true },   [OD30_WHOLE] = { "omnidrop", 0, 0.2, false },
    [OD20_WHOLE] = { "omnidrop", 0.02, 0.5, false } };

enum { FILM_ROUNDS = 3 };
static struct film {
    bool done;
    double seconds[N_PLANS][FILM_ROUNDS], select[N_PLANS][FILM_ROUNDS], gather[N_PLANS];
    double gflop[N_PLANS];         /* what each plan multiplies, score first */
    double mean[N_PLANS];          /* retention */
    uint32_t n_prompt, n_entry[N_PLANS];
} film;

static status film_prompt(struct prompt *out, struct err *e)
{
    const struct model_ids *id = &engine->config.ids;
    const struct prompt_rules rules = {
        .audio_id = id->audio, .image_id = id->image, .video_id = id->video, .audio_bos = id->audio_start,
        .audio_eos = id->audio_end, .vision_bos = id->vision_start, .vision_eos = id->vision_end,
        .position_id_per_seconds = 25, .seconds_per_chunk = 2, .audio_in_video = true, .n_query_max = 256 };
    const struct prompt_media media = { .kind = TOKEN_VIDEO, .n_audio = SOUND, .has_audio = true, .t = STEPS, .h = GRID,
                                        .w = GRID, .second_per_grid = 1 };
    struct prompt_token token[3 + QUESTION] = { { id->vision_start, false }, { id->video, false }, { id->vision_end, false } };
    for (int i = 0; i < QUESTION; i++) token[3 + i] = (struct prompt_token){ 10 + i, true };
    return prompt_build(&rules, token, 3 + QUESTION, &media, 1, out, e);
}

/* Floating point operations of the rows that really lived: K and V of all rows of a layer, the rest of those that
 * leave it (one row at the last layer), and the keys that each of these sees. Scores are not work of the plan. */
static double plan_gflop(const struct eng_result *res, const struct prompt *p)
{
    double macs = 0;
    for (uint32_t l = 0; l < S.L; l++) {
        const uint32_t *in = res->survivors[l], *out = res->survivors[l + 1];
        const uint32_t n_in = res->alive[l][1] + res->alive[l][2] + res->alive[l][3];
        const uint32_t n_out = res->alive[l + 1][1] + res->alive[l + 1][2] + res->alive[l + 1][3];
        uint32_t rank = 0;
        for (uint32_t i = 0, a = 0, k = 0; i < p->n; i++) {
            const bool text = p->kind[i] == TOKEN_TEXT, enters = text || (a < n_in && in[a] == i);
            const bool leaves = text || (k < n_out && out[k] == i);
            a += !text && enters;
            k += !text && leaves;
            if (!enters) continue;
            rank++;
            if (l + 1 == S.L ? i + 1 == p->n : leaves) macs += macs_rest() + macs_pair() * rank;
        }
        macs += rank * macs_kv();
    }
    return 2 * macs * 1e-9;
}

/* Seconds of copying the rows that leave each layer, where some are dropped. */
static status gather_seconds(const struct eng_result *res, double *seconds, struct err *e)
{
    const uint32_t n_text = res->alive[0][TOKEN_TEXT];
    float *x = NULL, *y = NULL;
    uint32_t *row = NULL;
    status s;
    *seconds = 0;
    TRY_GOTO(s, bench_random((size_t)film.n_prompt * S.d, &x, e), done);
    TRY_GOTO(s, bench_random((size_t)film.n_prompt * S.d, &y, e), done);
    TRY_GOTO(s, mem_alloc(&row, film.n_prompt, sizeof *row, e), done);
    for (uint32_t l = 0; l < S.L; l++) {
        const uint32_t n_in = res->alive[l][1] + res->alive[l][2] + res->alive[l][3] + n_text;
        const uint32_t n_out = res->alive[l + 1][1] + res->alive[l + 1][2] + res->alive[l + 1][3] + n_text;
        if (n_in == n_out) continue;
        for (uint32_t i = 0; i < n_out; i++) row[i] = (uint32_t)((uint64_t)i * n_in / n_out);
        const double t = clock_s();
        TRY_GOTO(s, engine->ops->gather(engine->st, &(struct gather_args){ x, row, n_out, S.d, y }, e), done);
        *seconds += clock_s() - t;
    }
done:
    free(x), free(y), free(row);
    return s;
}

static status film_once(uint32_t plan, int round, const float *embeds, const float *saliency, struct err *e)
{
    struct prompt p;
    struct policy_params policy;
    struct eng_request *r = NULL;
    status s;
    TRY(prune_params_init(&policy, PLANS[plan].policy, S.L, e));
    if (plan != NONE) {
        TRY(prune_params_set(&policy, "p_init", PLANS[plan].p_init, e));
        TRY(prune_params_set(&policy, "p_final", PLANS[plan].p_final, e));
        TRY(prune_params_set(&policy, "step0", PLANS[plan].step0, e));
    }
    TRY(prune_params_finish(&policy, e));
    struct eng_request_options o = eng_request_defaults();
    o.policy = &policy;
    o.max_tokens = 1;
    o.ignore_eos = true;
    TRY(film_prompt(&p, e));
    const struct eng_given given = { .prompt = &p, .audio_embeds = embeds, .vision_embeds = embeds + (size_t)SOUND * S.d,
                                     .audio_saliency = saliency };
    TRY_GOTO(s, eng_request_create_given(engine, NULL, &o, &given, &r, e), done);
    TRY_GOTO(s, eng_run(engine, &r, 1, e), done);
    const struct eng_result *res = eng_request_result(r);
    if (res->finish == ENG_FAILED) {
        *e = res->error;
        s = e->code;
        goto done;
    }
    film.seconds[plan][round] = res->prefill_s;
    film.select[plan][round] = res->select_s;
    film.n_prompt = res->n_prompt;
    film.mean[plan] = res->mean_retention;
    film.n_entry[plan] = res->alive[0][1] + res->alive[0][2] + res->alive[0][3];
    if (round == 0) {
        film.gflop[plan] = plan_gflop(res, eng_request_prompt(r));
        s = gather_seconds(res, &film.gather[plan], e);
    }
done:
    prompt_free(&p);
    eng_request_destroy(engine, &r);
    return s;
}

/* All plans in turn, round after round. */
static status film_run(const struct bench *base, struct err *e)
{
    struct bench on;
    float *embeds = NULL;
    status s;
    if (film.done) return OK;
    TRY(model_open(base, &on, e));
    TRY_GOTO(s, bench_random((size_t)AV * S.d, &embeds, e), done);
    for (int round = 0; round < FILM_ROUNDS; round++)
        for (uint32_t plan = 0; plan < N_PLANS; plan++)
            TRY_GOTO(s, film_once(plan, round, embeds, embeds, e), done);
    film.done = true;
done:
    free(embeds);
    return s;
}

static double film_seconds(uint32_t plan)
{
    double v[FILM_ROUNDS];
    memcpy(v, film.seconds[plan], sizeof v);
    return bench_median(v, FILM_ROUNDS);
}

static status run_av10k_none(struct bench *b, struct bench_result *r, struct err *e)
{
    TRY(film_run(b, e));
    r->value = film_seconds(NONE);
    r->unit = "s";
    snprintf(r->note, sizeof r->note, "%u tokens, %u of them of a minute of film with sound: %.0f tokens/s, %.0f GFLOP/s",
             film.n_prompt, film.n_entry[NONE], film.n_prompt / r->value, film.gflop[NONE] / r->value);
    return OK;
}

/* Speed-up against `none` of the same round; the bound is what the operations of both plans promise. */
static status run_speed_up(struct bench *b, uint32_t plan, struct bench_result *r, struct err *e)
{
    double v[FILM_ROUNDS];
    TRY(film_run(b, e));
    for (int i = 0; i < FILM_ROUNDS; i++) v[i] = film.seconds[NONE][i] / film.seconds[plan][i];
    const double promised = film.gflop[NONE] / film.gflop[plan];
    r->measured = bench_median(v, FILM_ROUNDS);
    r->measured_unit = "x none";
    r->value = r->measured / promised;
    r->unit = "of promised";
    r->floor = 0.90;
    snprintf(r->note, sizeof r->note, "%.3f s; promised %.2fx (%.0f of %.0f GFLOP, score first); p %g "
             "to %g, %u tokens enter, mean %.3f", film_seconds(plan), promised, film.gflop[plan], film.gflop[NONE],
             PLANS[plan].p_init, PLANS[plan].p_final, film.n_entry[plan], film.mean[plan]);
    return OK;
}

static status run_av10k_30(struct bench *b, struct bench_result *r, struct err *e) { return run_speed_up(b, OD30, r, e); }
static status run_av10k_20(struct bench *b, struct bench_result *r, struct err *e) { return run_speed_up(b, OD20, r, e); }
static status run_av10k_30_whole(struct bench *b, struct bench_result *r, struct err *e)
{
    return run_speed_up(b, OD30_WHOLE, r, e);
}
static status run_av10k_20_whole(struct bench *b, struct bench_result *r, struct err *e)
{
    return run_speed_up(b, OD20_WHOLE, r, e);
}

/* The dearest of the four pruned plans: its scores, selections and copies of rows as a share of its prefill. */
static status run_av10k_select(struct bench *b, struct bench_result *r, struct err *e)
{
    char *p = r->note;
    TRY(film_run(b, e));
    p += snprintf(p, sizeof r->note, "scores + selections + copies, ms:");
    for (uint32_t plan = OD30; plan < N_PLANS; plan++) {
        double v[FILM_ROUNDS], s[FILM_ROUNDS];
        for (int i = 0; i < FILM_ROUNDS; i++) {
            s[i] = film.select[plan][i];
            v[i] = (film.select[plan][i] + film.gather[plan]) / film.seconds[plan][i];
        }
        const double share = bench_median(v, FILM_ROUNDS);
        if (share > r->value) r->value = share;
        p += snprintf(p, sizeof r->note - (size_t)(p - r->note), " %.1f + %.1f of %.0f%s",
                      bench_median(s, FILM_ROUNDS) * 1e3, film.gather[plan] * 1e3, film_seconds(plan) * 1e3,
                      plan + 1 < N_PLANS ? "," : "");
    }
    r->unit = "of prefill";
    r->floor = 0.02;
    r->lower_is_better = true;
    return OK;
}

const struct bench_row bench_model_rows[] = {
    { "prefill_512", run_prefill_512 },
    { "prefill_2048", run_prefill_2048 },
    { "prefill_8192", run_prefill_8192 },
    { "decode_0", run_decode_0 },
    { "decode_8192", run_decode_8192 },
    { "av10k_none", run_av10k_none },
    { "av10k_omnidrop30", run_av10k_30 },
    { "av10k_omnidrop20", run_av10k_20 },
    { "av10k_omnidrop30_whole", run_av10k_30_whole },
    { "av10k_omnidrop20_whole", run_av10k_20_whole },
    { "av10k_select", run_av10k_select },
    { NULL, NULL },
};
