/* Goal: ids, positions, chunks and query rows of a prompt are the reference's.
 * Method: 240 random prompts whose ids and positions transformers computed (tools/make_prompt_cases.py),
 * worked examples with known numbers, prompt_from_arrays against prompt_build, and inputs to be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "model/prompt.h"

enum { AUDIO = 900, IMAGE, VIDEO, A_BOS, A_EOS, V_BOS, V_EOS, CAP = 1 << 16, N_MEDIA = 8 };

static const char *cases_path = "tests/data/prompt/cases.txt";

static struct prompt_rules rules_of(bool audio_in_video)
{
    return (struct prompt_rules){ .audio_id = AUDIO,
                                  .image_id = IMAGE,
                                  .video_id = VIDEO,
                                  .audio_bos = A_BOS,
                                  .audio_eos = A_EOS,
                                  .vision_bos = V_BOS,
                                  .vision_eos = V_EOS,
                                  .position_id_per_seconds = 25,
                                  .seconds_per_chunk = 2,
                                  .audio_in_video = audio_in_video,
                                  .n_query_max = 256 };
}

/* ---- the reference's cases ----------------------------------------------------------------------------- */

struct list {
    int64_t *v;
    uint32_t n;
};

struct ref_case {
    struct prompt_rules rules;
    struct prompt_media media[N_MEDIA];
    uint32_t n_media, n_tokens;
    struct prompt_token *token;
    struct list id, kind, chunk, pos[3], query;
    int64_t next;
};

/* "COUNT:VALUE ..." into out; values are differences where `sum`. */
static void read_runs(const char *s, bool sum, struct list *out)
{
    int64_t at = 0;
    out->n = 0;
    for (char *end;; s = end) {
        const long count = strtol(s, &end, 10);
        if (end == s) return;
        assert_true(*end == ':' && count > 0 && out->n + count <= CAP);
        const long value = strtol(end + 1, &end, 10);
        for (long i = 0; i < count; i++) {
            at = sum ? at + value : value;
            out->v[out->n++] = at;
        }
    }
}

static void read_tokens(const char *s, struct ref_case *c)
{
    c->n_tokens = 0;
    for (char *end;; s = end) {
        const long count = strtol(s, &end, 10);
        if (end == s) return;
        const long id = strtol(end + 1, &end, 10), user = strtol(end + 1, &end, 10);
        for (long i = 0; i < count; i++)
            c->token[c->n_tokens++] = (struct prompt_token){ (int32_t)id, user != 0 };
    }
}

/* The next case of the file; false at its end. */
static bool read_case(FILE *f, struct ref_case *c, char **line, size_t *cap)
{
    int audio_in_video, query_max;
    if (getline(line, cap, f) < 0) return false;
    assert_int_equal(sscanf(*line, "case %d %d", &audio_in_video, &query_max), 2);
    c->rules = rules_of(audio_in_video);
    c->rules.n_query_max = (uint32_t)query_max;
    c->n_media = 0;
    for (;;) {
        char word[8];
        int used;
        assert_true(getline(line, cap, f) > 0);
        assert_int_equal(sscanf(*line, "%7s%n", word, &used), 1);
        const char *rest = *line + used;
        if (!strcmp(word, "media")) {
            struct prompt_media *m = &c->media[c->n_media++];
            int kind, has_audio;
            assert_int_equal(sscanf(rest, "%d %u %d %u %u %u %lf", &kind, &m->n_audio, &has_audio, &m->t,
                                    &m->h, &m->w, &m->second_per_grid),
                             7);
            m->kind = (enum token_kind)kind;
            m->has_audio = has_audio;
        } else if (!strcmp(word, "token"))
            read_tokens(rest, c);
        else if (!strcmp(word, "id"))
            read_runs(rest, false, &c->id);
        else if (!strcmp(word, "kind"))
            read_runs(rest, false, &c->kind);
        else if (!strcmp(word, "chunk"))
            read_runs(rest, false, &c->chunk);
        else if (!strcmp(word, "t"))
            read_runs(rest, true, &c->pos[0]);
        else if (!strcmp(word, "h"))
            read_runs(rest, true, &c->pos[1]);
        else if (!strcmp(word, "w"))
            read_runs(rest, true, &c->pos[2]);
        else if (!strcmp(word, "query"))
            read_runs(rest, true, &c->query);
        else {
            c->next = strtol(rest, NULL, 10);
            return true;
        }
    }
}

static void case_init(struct ref_case *c)
{
    memset(c, 0, sizeof *c);
    c->token = mem_must(CAP, sizeof *c->token);
    struct list *l[] = { &c->id, &c->kind, &c->chunk, &c->pos[0], &c->pos[1], &c->pos[2], &c->query };
    for (size_t i = 0; i < sizeof l / sizeof *l; i++) l[i]->v = mem_must(CAP, sizeof *l[i]->v);
}

static void case_fini(struct ref_case *c)
{
    struct list *l[] = { &c->id, &c->kind, &c->chunk, &c->pos[0], &c->pos[1], &c->pos[2], &c->query };
    for (size_t i = 0; i < sizeof l / sizeof *l; i++) free(l[i]->v);
    free(c->token);
}

#define SAME(k, what, i, got, want)                                                                          \
    do {                                                                                                     \
        if ((int64_t)(got) != (int64_t)(want))                                                               \
            fail_msg("case %d: %s[%u] is %lld, the reference has %lld", k, what, i, (long long)(got),        \
                     (long long)(want));                                                                     \
    } while (0)

/* What must hold for any prompt, whoever built it. */
static void check_invariants(const struct prompt *p)
{
    uint32_t n_av = 0, n_audio = 0, n_vision = 0;
    int32_t max_chunk = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        if (p->kind[i] == TOKEN_TEXT) {
            assert_int_equal(p->chunk[i], -1);
            assert_int_equal(p->item[i], UINT16_MAX);
            continue;
        }
        const struct prompt_item *it = &p->items[p->item[i]];
        assert_int_equal(p->av[n_av++], i);
        assert_true(p->item[i] < p->n_items && i >= it->first_token && i <= it->last_token);
        assert_true(p->chunk[i] >= it->first_chunk && p->chunk[i] <= it->last_chunk);
        if (p->chunk[i] > max_chunk) max_chunk = p->chunk[i];
        if (p->kind[i] == TOKEN_AUDIO) {
            assert_int_equal(p->row[i], n_audio++);
            continue;
        }
        assert_int_equal(p->row[i], n_vision);
        const uint32_t gw = it->media.w / 2, gh = it->media.h / 2, j = n_vision++ - it->vision_row;
        assert_int_equal(p->step[i], j / (gh * gw));
        assert_int_equal(p->y[i], j / gw % gh);
        assert_int_equal(p->x[i], j % gw);
    }
    assert_int_equal(p->n_av, n_av);
    assert_int_equal(p->n_audio, n_audio);
    assert_int_equal(p->n_vision, n_vision);
    assert_int_equal(p->max_chunk, max_chunk);
    for (uint32_t k = 0, a = 0, v = 0; k < p->n_items; k++) {
        const struct prompt_item *it = &p->items[k];
        if (it->media.n_audio) assert_int_equal(it->audio_row, a);
        if (it->n_vision) assert_int_equal(it->vision_row, v);
        a += it->media.n_audio;
        v += it->n_vision;
    }
}

/* From the arrays of a built prompt the same prompt comes back. */
static void check_from_arrays(const struct ref_case *c, const struct prompt *p)
{
    struct err e;
    struct prompt q;
    int64_t *pos = mem_must(3 * (size_t)p->n, sizeof *pos);
    for (int a = 0; a < 3; a++) memcpy(pos + (size_t)a * p->n, c->pos[a].v, p->n * sizeof *pos);
    assert_int_equal(prompt_from_arrays(&c->rules, p->n, c->id.v, pos, c->kind.v, c->chunk.v, c->query.v,
                                        c->query.n, &q, &e),
                     OK);
    assert_int_equal(q.n, p->n);
    assert_int_equal(q.next_pos, p->next_pos);
    assert_int_equal(q.n_items, p->n_items);
    assert_int_equal(q.max_chunk, p->max_chunk);
    assert_int_equal(q.n_query, p->n_query);
    assert_memory_equal(q.id, p->id, p->n * sizeof *p->id);
    for (int a = 0; a < 3; a++) assert_memory_equal(q.pos[a], p->pos[a], p->n * sizeof *p->pos[a]);
    assert_memory_equal(q.kind, p->kind, p->n);
    assert_memory_equal(q.chunk, p->chunk, p->n * sizeof *p->chunk);
    assert_memory_equal(q.item, p->item, p->n * sizeof *p->item);
    assert_memory_equal(q.row, p->row, p->n * sizeof *p->row);
    assert_memory_equal(q.query, p->query, p->n_query * sizeof *p->query);
    for (uint32_t k = 0; k < q.n_items; k++) {
        const struct prompt_item *x = &q.items[k], *y = &p->items[k];
        assert_true(x->first_token == y->first_token && x->last_token == y->last_token);
        assert_true(x->first_chunk == y->first_chunk && x->last_chunk == y->last_chunk &&
                    x->n_vision == y->n_vision);
        assert_true(x->media.kind == y->media.kind && x->media.n_audio == y->media.n_audio);
    }
    prompt_free(&q);
    free(pos);
}

static void test_reference(void **state)
{
    (void)state;
    char *line = NULL;
    size_t cap = 0;
    struct ref_case c;
    FILE *f = fopen(cases_path, "r");
    if (!f) fail_msg("%s: run the tests from the root of the repository", cases_path);
    case_init(&c);
    int n_cases = 0, n_woven = 0;
    for (; read_case(f, &c, &line, &cap); n_cases++) {
        struct err e = { .text = "" };
        struct prompt p;
        if (prompt_build(&c.rules, c.token, c.n_tokens, c.media, c.n_media, &p, &e) != OK)
            fail_msg("case %d: %s", n_cases, e.text);
        SAME(n_cases, "number of tokens", 0, p.n, c.id.n);
        SAME(n_cases, "number of query rows", 0, p.n_query, c.query.n);
        for (uint32_t i = 0; i < p.n; i++) {
            SAME(n_cases, "id", i, p.id[i], c.id.v[i]);
            SAME(n_cases, "kind", i, p.kind[i], c.kind.v[i]);
            SAME(n_cases, "chunk", i, p.chunk[i], c.chunk.v[i]);
            SAME(n_cases, "t", i, p.pos[0][i], c.pos[0].v[i]);
            SAME(n_cases, "h", i, p.pos[1][i], c.pos[1].v[i]);
            SAME(n_cases, "w", i, p.pos[2][i], c.pos[2].v[i]);
        }
        for (uint32_t i = 0; i < p.n_query; i++) SAME(n_cases, "query", i, p.query[i], c.query.v[i]);
        SAME(n_cases, "next position", 0, p.next_pos, c.next);
        check_invariants(&p);
        check_from_arrays(&c, &p);
        for (uint32_t i = 0; i < c.n_media; i++) n_woven += c.media[i].has_audio;
        prompt_free(&p);
    }
    print_message("%d prompts, %d videos with sound\n", n_cases, n_woven);
    assert_true(n_cases > 0);
    case_fini(&c);
    free(line);
    fclose(f);
}

/* ---- worked examples ----------------------------------------------------------------------------------- */

/* 14 tokens, one media part between its bos and eos, 15 tokens of which the first 10 are the user's. */
static uint32_t frame(struct prompt_token *t, enum token_kind kind)
{
    uint32_t n = 0;
    const bool audio = kind == TOKEN_AUDIO;
    for (; n < 14; n++) t[n] = (struct prompt_token){ 5, false };
    t[n++].id = audio ? A_BOS : V_BOS;
    t[n++].id = audio ? AUDIO : kind == TOKEN_IMAGE ? IMAGE : VIDEO;
    t[n++].id = audio ? A_EOS : V_EOS;
    for (int i = 0; i < 15; i++) t[n++] = (struct prompt_token){ 6, i < 10 };
    return n;
}

static struct prompt build_one(struct prompt_media m)
{
    struct err e = { .text = "" };
    struct prompt p;
    struct prompt_token t[40] = { 0 };
    const struct prompt_rules r = rules_of(m.has_audio);
    if (prompt_build(&r, t, frame(t, m.kind), &m, 1, &p, &e) != OK) fail_msg("%s", e.text);
    check_invariants(&p);
    return p;
}

static void at(const struct prompt *p, uint32_t i, int kind, int t, int h, int w)
{
    assert_int_equal(p->kind[i], kind);
    assert_int_equal(p->pos[0][i], t);
    assert_int_equal(p->pos[1][i], h);
    assert_int_equal(p->pos[2][i], w);
}

static void test_examples(void **state)
{
    (void)state;
    struct prompt p = build_one((struct prompt_media){ .kind = TOKEN_AUDIO, .n_audio = 250 });
    assert_int_equal(p.n, 281);
    assert_int_equal(p.next_pos, 281);
    assert_int_equal(p.max_chunk, 4);
    assert_int_equal(p.n_query, 10);
    assert_int_equal(p.query[0], 266);
    prompt_free(&p);

    p = build_one((struct prompt_media){ .kind = TOKEN_IMAGE, .t = 1, .h = 32, .w = 32 });
    assert_int_equal(p.n, 287);
    at(&p, 15, TOKEN_IMAGE, 15, 15, 15);
    at(&p, 270, TOKEN_IMAGE, 15, 30, 30);
    at(&p, 271, TOKEN_TEXT, 31, 31, 31);
    assert_int_equal(p.next_pos, 47);
    prompt_free(&p);

    /* 6 s of 640 x 360 with its sound */
    struct prompt_media video = {
        .kind = TOKEN_VIDEO, .n_audio = 150, .has_audio = true, .t = 6, .h = 26, .w = 46, .second_per_grid = 1
    };
    p = build_one(video);
    assert_int_equal(p.n, 1977);
    at(&p, 14, TOKEN_TEXT, 14, 14, 14);
    at(&p, 15, TOKEN_TEXT, 14, 14, 14);
    at(&p, 16, TOKEN_VIDEO, 15, 15, 15);
    at(&p, 613, TOKEN_VIDEO, 40, 27, 37);
    at(&p, 614, TOKEN_AUDIO, 15, 15, 15);
    at(&p, 1262, TOKEN_AUDIO, 65, 65, 65);
    at(&p, 1312, TOKEN_VIDEO, 115, 15, 15);
    at(&p, 1959, TOKEN_AUDIO, 164, 164, 164);
    at(&p, 1960, TOKEN_TEXT, 165, 165, 165);
    at(&p, 1961, TOKEN_TEXT, 165, 165, 165);
    assert_int_equal(p.next_pos, 181);
    assert_int_equal(p.max_chunk, 2);
    prompt_free(&p);

    /* sound shorter than its video: text falls back behind the last slice */
    video.n_audio = 102;
    p = build_one(video);
    at(&p, p.n - 15, TOKEN_TEXT, 118, 118, 118);
    assert_int_equal(p.next_pos, 133);
    prompt_free(&p);

    /* without its sound */
    video.has_audio = false;
    video.n_audio = 0;
    p = build_one(video);
    assert_int_equal(p.n, 1825);
    at(&p, 1808, TOKEN_VIDEO, 140, 27, 37);
    at(&p, 1809, TOKEN_TEXT, 141, 141, 141);
    assert_int_equal(p.next_pos, 157);
    assert_int_equal(p.items[0].last_chunk, 2);
    prompt_free(&p);

    /* two slices 4 s apart are torn: V 4, A 50, V 1, A 50, V 3, A 50, A 50 */
    p = build_one((struct prompt_media){ .kind = TOKEN_VIDEO,
                                         .n_audio = 200,
                                         .has_audio = true,
                                         .t = 2,
                                         .h = 4,
                                         .w = 4,
                                         .second_per_grid = 4 });
    static const struct {
        uint32_t i;
        int kind;
    } torn[] = { { 16, TOKEN_VIDEO },  { 20, TOKEN_AUDIO },  { 70, TOKEN_VIDEO },  { 71, TOKEN_AUDIO },
                 { 121, TOKEN_VIDEO }, { 124, TOKEN_AUDIO }, { 223, TOKEN_AUDIO }, { 224, TOKEN_TEXT } };
    for (size_t i = 0; i < sizeof torn / sizeof *torn; i++) assert_int_equal(p.kind[torn[i].i], torn[i].kind);
    assert_int_equal(p.max_chunk, 3);
    prompt_free(&p);
}

static void test_query(void **state)
{
    (void)state;
    struct err e;
    struct prompt p;
    struct prompt_rules r = rules_of(false);
    struct prompt_media m = { .kind = TOKEN_AUDIO, .n_audio = 10 };
    struct prompt_token t[40] = { 0 };
    uint32_t n = frame(t, TOKEN_AUDIO);
    t[3].is_user_text = true; /* the user's, but before the sound: not a query row */
    r.n_query_max = 4;
    assert_int_equal(prompt_build(&r, t, n, &m, 1, &p, &e), OK);
    assert_int_equal(p.n_user_text, 11);
    assert_int_equal(p.n_query, 4);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(p.query[i], 32 + i);
    uint32_t row[256]; /* other choices of the same prompt: its last four rows, its last one */
    assert_int_equal(prompt_query(&p, QUERY_TEXT, NULL), 4);
    assert_int_equal(prompt_query(&p, QUERY_TEXT, row), 4);
    assert_memory_equal(row, p.query, 4 * sizeof *row);
    assert_int_equal(prompt_query(&p, QUERY_AFTER, row), 4);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(row[i], p.n - 4 + i);
    assert_int_equal(prompt_query(&p, QUERY_LAST, row), 1);
    assert_int_equal(row[0], p.n - 1);
    prompt_free(&p);
    r.n_query_max = 256; /* with room: the template on both sides of the text too */
    assert_int_equal(prompt_build(&r, t, n, &m, 1, &p, &e), OK);
    assert_int_equal(prompt_query(&p, QUERY_AFTER, row), p.n - 1 - p.av[p.n_av - 1]);
    assert_true(p.n - 1 - p.av[p.n_av - 1] > p.n_query);
    for (uint32_t i = p.av[p.n_av - 1] + 1, k = 0; i < p.n; i++) assert_int_equal(row[k++], i);
    prompt_free(&p);

    for (uint32_t i = 0; i < n; i++)
        t[i].is_user_text = i == 3; /* question first: all rows after the sound */
    r.n_query_max = 256;
    assert_int_equal(prompt_build(&r, t, n, &m, 1, &p, &e), OK);
    assert_int_equal(p.n_query, 16);
    assert_int_equal(p.query[0], 25);
    assert_int_equal(prompt_query(&p, QUERY_AFTER, row), 16);
    assert_memory_equal(row, p.query, 16 * sizeof *row);
    prompt_free(&p);

    m.n_audio = 0; /* a clip too short for a token; and no AV token, no query row */
    assert_int_equal(prompt_build(&r, t, n, &m, 1, &p, &e), OK);
    assert_int_equal(p.n, n - 1);
    assert_int_equal(p.n_query, 0);
    for (int which = QUERY_TEXT; which <= QUERY_LAST; which++)
        assert_int_equal(prompt_query(&p, (enum query_rows)which, NULL), 0);
    assert_true(p.items[0].first_token > p.items[0].last_token);
    prompt_free(&p);
}

/* ---- what is refused ----------------------------------------------------------------------------------- */

static void refuse(const struct prompt_rules *r, const struct prompt_token *t, uint32_t n,
                   const struct prompt_media *m, uint32_t n_media, const char *part)
{
    struct err e = { .text = "" };
    struct prompt p;
    assert_int_equal(prompt_build(r, t, n, m, n_media, &p, &e), E_ARG);
    if (!strstr(e.text, part)) fail_msg("\"%s\" does not say \"%s\"", e.text, part);
}

static void test_refused(void **state)
{
    (void)state;
    struct prompt_rules r = rules_of(true);
    struct prompt_token t[40] = { 0 };
    const uint32_t n = frame(t, TOKEN_VIDEO);
    const struct prompt_media good = {
        .kind = TOKEN_VIDEO, .n_audio = 10, .has_audio = true, .t = 2, .h = 4, .w = 4, .second_per_grid = 1
    };
    struct prompt_media m[2] = { good, good };
    refuse(&r, t, 0, m, 0, "empty");
    refuse(&r, t, n, m, 0, "1 media placeholders");
    refuse(&r, t, n, m, 2, "2 media");
    m[0].kind = TOKEN_AUDIO;
    refuse(&r, t, n, m, 1, "is for video, media 0 is audio");
    m[0] = good;
    m[0].has_audio = false;
    refuse(&r, t, n, m, 1, "no sound");
    r.audio_in_video = false;
    m[0].has_audio = true;
    refuse(&r, t, n, m, 1, "off for this request");
    r.audio_in_video = true;
    m[0].h = 3;
    refuse(&r, t, n, m, 1, "2 x 3 x 4");
    m[0] = good;
    m[0].t = m[0].h = m[0].w = 65536;
    m[0].second_per_grid = 1e-3;
    refuse(&r, t, n, m, 1, "more tokens");
    m[0] = good;
    m[0].second_per_grid = 0;
    refuse(&r, t, n, m, 1, "fps");
    m[0].second_per_grid = 1e9;
    refuse(&r, t, n, m, 1, "shorter");
    t[14].id = 5; /* no vision_bos before the placeholder */
    refuse(&r, t, n, &good, 1, "between");
    r.position_id_per_seconds = 0;
    refuse(&r, t, n, &good, 1, "position_id_per_seconds");
}

static void test_refused_arrays(void **state)
{
    (void)state;
    struct err e;
    struct prompt p;
    const struct prompt_rules r = rules_of(false);
    const int64_t id[4] = { 5, AUDIO, AUDIO, 5 }, pos[12] = { 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3 };
    int64_t kind[4] = { 0, 1, 1, 0 }, chunk[4] = { -1, 0, 0, -1 }, query[2] = { 3, 3 };
    assert_int_equal(prompt_from_arrays(&r, 4, id, pos, kind, chunk, query, 1, &p, &e), OK);
    assert_int_equal(p.next_pos, 4);
    prompt_free(&p);
    assert_int_equal(prompt_from_arrays(&r, 4, id, pos, kind, chunk, NULL, 0, &p, &e), OK);
    assert_int_equal(p.n_query, 1);
    prompt_free(&p);
    assert_int_equal(prompt_from_arrays(&r, 4, id, pos, kind, chunk, query, 2, &p, &e), E_ARG);
    assert_int_equal(prompt_from_arrays(&r, 0, id, pos, kind, chunk, query, 0, &p, &e), E_ARG);
    kind[1] = 4;
    assert_int_equal(prompt_from_arrays(&r, 4, id, pos, kind, chunk, query, 1, &p, &e), E_ARG);
    kind[1] = 1;
    chunk[1] = -1;
    assert_int_equal(prompt_from_arrays(&r, 4, id, pos, kind, chunk, query, 1, &p, &e), E_ARG);
}

int main(int argc, char **argv)
{
    if (argc > 1) cases_path = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference), cmocka_unit_test(test_examples),       cmocka_unit_test(test_query),
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_refused_arrays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
