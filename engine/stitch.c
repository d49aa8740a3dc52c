/* engine/stitch.c - see stitch.h. */
#include "engine/stitch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"

#define WORDS_MAX 40

struct word { size_t begin, end; uint64_t key; };
struct words { struct word *w; size_t n, cap; };

static size_t next_char(const char *text, size_t n, size_t at, utf8proc_int32_t *c)
{
    const utf8proc_ssize_t got = utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(n - at), c);
    if (got > 0) return (size_t)got;
    *c = 0xfffd;
    return 1;
}

static bool spaceless_char(utf8proc_int32_t c)
{
    return (c >= 0x0e00 && c <= 0x0fff) || (c >= 0x1000 && c <= 0x109f) || (c >= 0x1780 && c <= 0x17ff) ||
           (c >= 0x3000 && c <= 0x30ff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x4e00 && c <= 0x9fff) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0xff00 && c <= 0xff9f) || (c >= 0x20000 && c <= 0x3ffff);
}

/* Letters, marks and digits: what makes a word. */
static bool counts(utf8proc_int32_t c)
{
    const utf8proc_category_t k = utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NO;
}

static bool is_space(utf8proc_int32_t c)
{
    const utf8proc_category_t k = utf8proc_category(c);
    return (c >= 9 && c <= 13) || (k >= UTF8PROC_CATEGORY_ZS && k <= UTF8PROC_CATEGORY_ZP);
}

bool stitch_spaceless(const char *text, size_t n)
{
    size_t letters = 0, without = 0;
    utf8proc_int32_t c;
    for (size_t at = 0; at < n;) {
        at += next_char(text, n, at, &c);
        if (!counts(c)) continue;
        letters++;
        without += spaceless_char(c);
    }
    return 2 * without > letters;
}

const char *stitch_joint(const char *left, size_t n_left, const char *right, size_t n_right)
{
    if (n_left == 0 || n_right == 0) return "";
    utf8proc_int32_t l, r;
    size_t at = n_left - 1;
    while (at > 0 && ((unsigned char)left[at] & 0xc0) == 0x80) at--;
    next_char(left, n_left, at, &l);
    next_char(right, n_right, 0, &r);
    return is_space(l) || is_space(r) || (spaceless_char(l) && spaceless_char(r)) ? "" : " ";
}

/* Words in order; punctuation belongs to the word before it. Keys hash the folded letters. */
static status split(const char *text, size_t n, bool chars, struct words *out, struct err *e)
{
    bool open = false;             /* the last word goes on */
    utf8proc_int32_t c;
    for (size_t at = 0, next; at < n; at = next) {
        next = at + next_char(text, n, at, &c);
        if (is_space(c)) {
            open = false;
            continue;
        }
        if (!counts(c)) {
            if (out->n > 0 && out->w[out->n - 1].end == at) out->w[out->n - 1].end = next;
            continue;
        }
        const bool mark = utf8proc_category(c) >= UTF8PROC_CATEGORY_MN && utf8proc_category(c) <= UTF8PROC_CATEGORY_ME;
        if (!open || (chars && !mark)) {
            TRY(mem_grow(&out->w, &out->cap, out->n + 1, sizeof *out->w, e));
            out->w[out->n++] = (struct word){ at, next, 14695981039346656037u };
            open = true;
        }
        struct word *w = &out->w[out->n - 1];
        w->end = next;
        w->key = (w->key ^ (uint64_t)utf8proc_tolower(c)) * 1099511628211u;
    }
    return OK;
}

struct pair { uint32_t l, r; };

/* What a position of the alignment is worth. The left side's last word and the right side's first may have been broken by
 * the window's edge: they may differ at little cost. A word more or less than the voiced time expects costs FAR. */
enum { EQUAL = 8, OTHER = -4, GAP = -4, BROKEN = -1, FAR = -3 };

static int away(double words, double expected) { return (int)lround(FAR * fabs(words - expected)); }

struct overlap {
    struct pair pair[WORDS_MAX];   /* equal words, in order                                             */
    uint32_t n_pairs, counted;     /* counted: they, and the words that differ though no edge broke them */
    uint32_t from, to;             /* it begins at a[from] and ends before b[to]                        */
    int score;
};

/* The overlap: an end of a[n] beside a beginning of b[m], n, m <= WORDS_MAX, that agree best (a global alignment of the two
 * whose lengths are free but for what `expect` says of them). */
static void align(const struct word *a, uint32_t n, const struct word *b, uint32_t m, const double expect[2],
                  struct overlap *o)
{
    int at[WORDS_MAX + 1][WORDS_MAX + 1];
    for (uint32_t i = 0; i <= n; i++) {
        at[i][0] = away(n - i, expect[0]);
        for (uint32_t j = 1; j <= m; j++) {
            const int gap_b = j == 1 ? BROKEN : GAP, gap_a = i == n ? BROKEN : GAP;
            at[i][j] = at[i][j - 1] + gap_b;
            if (i == 0) continue;
            const int other = i == n || j == 1 ? BROKEN : OTHER;
            const int both = at[i - 1][j - 1] + (a[i - 1].key == b[j - 1].key ? EQUAL : other);
            if (at[i - 1][j] + gap_a > at[i][j]) at[i][j] = at[i - 1][j] + gap_a;
            if (both > at[i][j]) at[i][j] = both;
        }
    }
    uint32_t i = n, j = 0, k = 0;
    for (uint32_t c = 1; c <= m; c++)
        if (at[n][c] + away(c, expect[1]) > at[n][j] + away(j, expect[1])) j = c;
    *o = (struct overlap){ .to = j, .score = at[n][j] + away(j, expect[1]) };
    while (j > 0) {
        const bool equal = i > 0 && a[i - 1].key == b[j - 1].key;
        const int other = i == n || j == 1 ? BROKEN : OTHER, gap_a = i == n ? BROKEN : GAP;
        if (i > 0 && at[i][j] == at[i - 1][j - 1] + (equal ? EQUAL : other)) {
            if (equal) o->pair[k++] = (struct pair){ i - 1, j - 1 };
            o->counted += equal || other != BROKEN;
            i--;
            j--;
        } else if (i > 0 && at[i][j] == at[i - 1][j] + gap_a) {
            o->counted += gap_a != BROKEN;
            i--;
        } else {
            o->counted += j != 1;
            j--;
        }
    }
    o->from = i;
    o->n_pairs = k;
    for (uint32_t p = 0; p < k / 2; p++) {
        const struct pair t = o->pair[p];
        o->pair[p] = o->pair[k - 1 - p];
        o->pair[k - 1 - p] = t;
    }
}

/* Words that stay of a and that go of b: the place before or behind a pair that is nearest to the cut, counting words of the
 * overlap as its time. Before and behind are the same text, but the times of the segments hang on the place. */
static struct pair at_cut(const struct overlap *o, uint32_t n, const struct stitch_side *left, const struct stitch_side *right)
{
    const double l_share = left->overlap > 0 ? (left->middle - (1 - left->overlap)) / left->overlap : 0;
    const double r_share = right->overlap > 0 ? right->middle / right->overlap : 0;
    const double l_cut = o->from + l_share * (n - o->from), r_cut = r_share * o->to;
    struct pair best = { 0, 0 };
    double nearest = INFINITY;
    for (uint32_t i = 0; i < 2 * o->n_pairs; i++) {
        const struct pair p = { o->pair[i / 2].l + i % 2, o->pair[i / 2].r + i % 2 };
        const double d = fabs(p.l - l_cut) + fabs(p.r - r_cut);
        if (d > nearest + 1e-9) continue;          /* of equals the later */
        nearest = d;
        best = p;
    }
    return best;
}

/* Words that the overlap may hold, at most: twice what its share of the voiced time says, and three. */
static uint32_t reach(const struct words *w, double share)
{
    const double most = ceil(2 * share * (double)w->n) + 3;
    const size_t n = most < WORDS_MAX ? (size_t)most : WORDS_MAX;
    return (uint32_t)(n < w->n ? n : w->n);
}

static void cut(const struct stitch_side *left, const struct stitch_side *right, const struct words *l,
                const struct words *r, struct stitch_cut *out)
{
    struct overlap o;
    const uint32_t n = reach(l, left->overlap), m = reach(r, right->overlap);
    const uint32_t l0 = (uint32_t)l->n - n;
    const double expect[2] = { left->overlap * (double)l->n, right->overlap * (double)r->n };
    align(l->w + l0, n, r->w, m, expect, &o);
    if (o.n_pairs >= 3 || (o.n_pairs >= 1 && o.n_pairs >= 0.6 * o.counted && o.score > 0)) {
        const struct pair p = at_cut(&o, n, left, right);
        *out = (struct stitch_cut){ SEAM_MATCHED, l0 + p.l > 0 ? l->w[l0 + p.l - 1].end : 0,
                                    p.r < r->n ? r->w[p.r].begin : right->n, o.n_pairs };
        return;
    }
    const size_t keep = (size_t)lround(left->middle * (double)l->n), drop = (size_t)lround(right->middle * (double)r->n);
    *out = (struct stitch_cut){ SEAM_UNMATCHED, keep >= l->n ? left->n : keep == 0 ? 0 : l->w[keep - 1].end,
                                drop == 0 ? 0 : drop >= r->n ? right->n : r->w[drop].begin, o.n_pairs };
}

status stitch_hard(const struct stitch_side *left, const struct stitch_side *right, struct stitch_cut *out,
                   struct err *e)
{
    struct words l = { 0 }, r = { 0 };
    const bool chars = stitch_spaceless(left->text, left->n) && stitch_spaceless(right->text, right->n);
    status st = split(left->text, left->n, chars, &l, e);
    if (st == OK) st = split(right->text, right->n, chars, &r, e);
    if (st == OK) cut(left, right, &l, &r, out);
    free(l.w);
    free(r.w);
    return st;
}
