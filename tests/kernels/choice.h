/* tests/kernels/choice.h - random cases of ops->choose and ops->list_rows, and what they must give: scores summed on the host, the
 * tokens alone through ops->select, lists written out. */
#ifndef TESTS_KERNELS_CHOICE_H
#define TESTS_KERNELS_CHOICE_H

#include "tests/kernels/twin.h"

struct choice_case {
    struct choose_args a;              /* all that goes in, on the host; [n] each of the outputs has room */
    uint32_t n_ids, n_marked;          /* n_marked: rows with mark 1, which are no tokens */
    uint32_t *id, *want_row, *want_id, *want_visible;
    uint8_t *mark;
    int32_t *chunk;
    float *partial, *want_score;
};

/* Up to `most` rows, of which some are tokens (2 or 4; `of` asks for one kind or both), with scores full of ties, NaN and infinities. */
TWIN struct choice_case choice_make(uint32_t most)
{
    static const float special[] = { 0.0f, -0.0f, NAN, -NAN, INFINITY, -INFINITY, 1e-42f, -1e-42f, 3e38f, 1.0f };
    const uint32_t n = twin_below(most + 1), style = twin_below(4), how = twin_below(4), text = twin_below(3);
    struct choice_case c = { .a = { .n = n, .G = 1 + twin_below(4), .first = twin_below(1000), .by = 1.0f / (float)(1 + twin_below(500)),
                                    .of = (uint8_t)(2 * (1 + twin_below(3))), .tds = twin_below(3) > 0, .relative = twin_below(2),
                                    .lambda_div = twin_below(2) ? 0.2 : 1e-4, .max_chunk = (int32_t)twin_below(60) } };
    c.id = twin_alloc(n * sizeof *c.id);
    for (uint32_t i = 0; i < n; i++) c.id[i] = c.n_ids += 1 + (twin_below(3) == 0 ? twin_below(5) : 0);
    c.n_ids++;
    c.mark = twin_alloc(c.n_ids);
    c.chunk = twin_alloc(c.n_ids * sizeof *c.chunk);
    c.partial = twin_floats((size_t)c.a.G * n);
    for (uint32_t i = 0; i < c.n_ids; i++) {
        c.mark[i] = text == 0 || twin_below(5) > text ? (uint8_t)(2 + 2 * twin_below(2)) : 1;
        c.chunk[i] = (int32_t)(i / (1 + twin_below(20)));
    }
    for (size_t i = 0; i < (size_t)c.a.G * n; i++)
        c.partial[i] = style == 0 ? twin_float() : style == 1 ? (float)twin_below(4) / 2000 : style == 2 ? special[twin_below(10)] : 0.25f;
    for (uint32_t i = 0; i < n; i++) c.a.n_of += (c.mark[c.id[i]] & c.a.of) != 0, c.n_marked += c.mark[c.id[i]] == 1;
    c.a.k = how == 0 ? 0 : how == 1 ? c.a.n_of : how == 2 ? c.a.n_of / 9 : twin_below(c.a.n_of + 1);
    c.want_row = twin_alloc(n * sizeof(uint32_t)), c.want_id = twin_alloc(n * sizeof(uint32_t));
    c.want_visible = twin_alloc(n * sizeof(uint32_t)), c.want_score = twin_floats(n);
    return c;
}

/* What is wanted, by the host's way. */
TWIN void choice_want(struct choice_case *c, struct stream *cpu)
{
    const uint32_t n = c->a.n;
    float *score = twin_floats(n);
    int32_t *chunk = twin_alloc(n * sizeof *chunk);
    uint32_t *keep = twin_alloc(n * sizeof *keep), m = 0, out = 0;
    void *scratch = twin_alloc(cpu->ops->select_scratch(cpu, n));
    for (uint32_t i = 0; i < n; i++) {
        float sum = 0;
        for (uint32_t g = 0; g < c->a.G; g++) sum += c->partial[(size_t)g * n + i];
        c->want_score[i] = sum * c->a.by;
        if (!(c->mark[c->id[i]] & c->a.of)) continue;
        chunk[m] = c->chunk[c->id[i]];
        score[m++] = c->want_score[i];
    }
    const struct select_args s = { score, chunk, m, c->a.k, c->a.tds, c->a.relative, c->a.lambda_div, c->a.max_chunk, keep, scratch };
    TWIN_OK(cpu->ops->select(cpu, &s, e));
    for (uint32_t i = 0, t = 0, j = 0; i < n; i++) {
        if (c->mark[c->id[i]] & c->a.of) {
            const bool stays = j < m - c->a.k && keep[j] == t;
            t++, j += stays;
            if (!stays) continue;
        }
        c->want_row[out] = c->a.first + i;
        c->want_id[out] = c->id[i];
        c->want_visible[out++] = i + 1;
    }
    assert_int_equal(out, n - c->a.k);
    free(score), free(chunk), free(keep), free(scratch);
}

TWIN void choice_check(const struct choice_case *c, const float *score, const uint32_t *row, const uint32_t *id, const uint32_t *visible,
                       const char *what)
{
    for (uint32_t i = 0; i < c->a.n; i++)
        if (memcmp(&score[i], &c->want_score[i], sizeof *score) != 0 && !(isnan(score[i]) && isnan(c->want_score[i])))
            fail_msg("%s: score %u of %u is %.9g, not %.9g", what, i, c->a.n, (double)score[i], (double)c->want_score[i]);
    for (uint32_t i = 0; i < c->a.n - c->a.k; i++)
        if (row[i] != c->want_row[i] || id[i] != c->want_id[i] || visible[i] != c->want_visible[i])
            fail_msg("%s: %u of %u rows go, tds %d, relative %d: place %u holds row %u, id %u, which sees %u, not %u, %u, %u", what, c->a.k,
                     c->a.n, (int)c->a.tds, (int)c->a.relative, i, row[i], id[i], visible[i], c->want_row[i], c->want_id[i],
                     c->want_visible[i]);
}

TWIN void choice_free(struct choice_case *c)
{
    void *all[] = { c->id, c->mark, c->chunk, c->partial, c->want_row, c->want_id, c->want_visible, c->want_score };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

#endif
