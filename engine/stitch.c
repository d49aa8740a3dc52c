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

/* Best local alignment (Smith and Waterman: equal 2, different -1, gap -1) of a[n] and b[m], n, m <= WORDS_MAX.
 * Equal pairs in order; of alignments equally good the one that ends last in a and first in b. */
static uint32_t align(const struct word *a, uint32_t n, const struct word *b, uint32_t m, struct pair *pair)
{
    static const int EQUAL = 2, OTHER = -1, GAP = -1;
    int score[WORDS_MAX + 1][WORDS_MAX + 1] = { { 0 } };
    int best = 0;
    uint32_t bi = 0, bj = 0;
    for (uint32_t i = 1; i <= n; i++)
        for (uint32_t j = 1; j <= m; j++) {
            int s = score[i - 1][j - 1] + (a[i - 1].key == b[j - 1].key ? EQUAL : OTHER);
            if (score[i - 1][j] + GAP > s) s = score[i - 1][j] + GAP;
            if (score[i][j - 1] + GAP > s) s = score[i][j - 1] + GAP;
            score[i][j] = s > 0 ? s : 0;
            if (s > best || (s == best && best > 0 && i > bi)) {
                best = s;
                bi = i;
                bj = j;
            }
        }
    uint32_t k = 0;
    for (uint32_t i = bi, j = bj; i > 0 && j > 0 && score[i][j] > 0;) {
        const bool equal = a[i - 1].key == b[j - 1].key;
        if (score[i][j] == score[i - 1][j - 1] + (equal ? EQUAL : OTHER)) {
            if (equal) pair[k++] = (struct pair){ i - 1, j - 1 };
            i--;
            j--;
        } else if (score[i][j] == score[i - 1][j] + GAP) {
            i--;
        } else {
            j--;
        }
    }
    for (uint32_t i = 0; i < k / 2; i++) {
        const struct pair t = pair[i];
        pair[i] = pair[k - 1 - i];
        pair[k - 1 - i] = t;
    }
    return k;
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
    struct pair pair[WORDS_MAX];
    const uint32_t n = reach(l, left->overlap), m = reach(r, right->overlap);
    const uint32_t l0 = (uint32_t)l->n - n;
    const uint32_t k = align(l->w + l0, n, r->w, m, pair);
    const double expect = fmax(1, fmin(round(left->overlap * (double)l->n), round(right->overlap * (double)r->n)));
    if (k >= 3 || (k >= 1 && k >= 0.6 * expect)) {
        const struct pair middle = pair[(k + 1) / 2 - 1];
        *out = (struct stitch_cut){ SEAM_MATCHED, l->w[l0 + middle.l].end, 0, k };
        out->right_from = middle.r + 1 < r->n ? r->w[middle.r + 1].begin : right->n;
        return;
    }
    const size_t keep = (size_t)lround(left->middle * (double)l->n), drop = (size_t)lround(right->middle * (double)r->n);
    *out = (struct stitch_cut){ SEAM_UNMATCHED, keep >= l->n ? left->n : keep == 0 ? 0 : l->w[keep - 1].end,
                                drop == 0 ? 0 : drop >= r->n ? right->n : r->w[drop].begin, k };
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
