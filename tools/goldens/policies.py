"""policies.py - pruning policies in numpy, in double precision, written from docs/pruning-methods.md and from nothing
of the engine. reference.run asks one of them

    entry()             before the decoder: which AV tokens live, and what some of them become
    before(l, av)       on the input of layer l: whom of av it keeps; those that go are not even keys there
    after(l, av)        after layer l: whom of av it keeps

`safe` turns false where noise on the figures could change a choice.
"""
import math

import numpy as np

AUDIO, VIDEO = 1, 2


def fl(x):
    return math.floor(x + 1e-9)


def rn(x):
    low = math.floor(x)
    over = x - low
    return low + (over > 0.5 + 1e-9 or (abs(over - 0.5) <= 1e-9 and low % 2 == 1))


def unit(x):
    return x / np.sqrt(np.maximum((x * x).sum(-1, keepdims=True), 1e-12))


def cos(x, y):
    return (unit(x) * unit(y)).sum(-1)


def remainders(share, total, room=None):
    """fl of each share, one more for the largest remainders until they sum to total."""
    count = [fl(s) for s in share]
    order = sorted(range(len(share)), key=lambda i: (-round(share[i] - count[i], 9), i))
    while sum(count) < total:
        for i in order:
            if sum(count) < total and (room is None or count[i] < room[i]):
                count[i] += 1
    return count


def offset(rates, n, lo, hi, target):
    """The rates moved by one number and clamped, so that n . rates is target."""
    rates, n = np.array(rates), np.array(n)
    lo, hi = min(lo, target / n.sum()), max(hi, target / n.sum())
    a, b = -2.0, 2.0
    for _ in range(200):
        mid = (a + b) / 2
        if (n * np.clip(rates + mid, lo, hi)).sum() < target:
            a = mid
        else:
            b = mid
    return np.clip(rates + b, lo, hi)


class Context:
    """What a policy may know. `ask(l, by, reduce)`, set while it chooses at layer l: reduce's [rows] of the attention
    [heads, rows, rows] that the weights of layer `by` make of the rows there, by prompt index."""
    def __init__(self, items, kinds, chunks, audio, vision, text, layers, noise, selector=None):
        self.selector = selector
        self.items, self.kinds, self.chunks, self.layers, self.noise = items, kinds, chunks, layers, noise
        self.av = np.flatnonzero(kinds)
        self.audio_at, self.vision_at = np.flatnonzero(kinds == AUDIO), np.flatnonzero(kinds >= VIDEO)
        width = text.shape[-1]
        self.x = np.zeros((len(kinds), width))
        if audio is not None:
            self.x[self.audio_at] = audio
        if vision is not None:
            self.x[self.vision_at] = vision
        self.text = text
        self.saliency, self.loud = np.zeros(len(kinds)), np.zeros(len(kinds))
        some = lambda key, axis=0: np.concatenate([i[key] for i in items if key in i], axis)
        if len(self.audio_at):
            self.saliency[self.audio_at] = some("saliency")
            self.loud[self.audio_at] = some("global_saliency")
        if len(self.vision_at):
            self.saliency[self.vision_at] = some("vision_saliency")
            self.blocks = np.zeros((len(next(i["blocks"] for i in items if "blocks" in i)), len(kinds)))
            self.blocks[:, self.vision_at] = some("blocks", 1)
            self.keys = np.zeros((len(kinds), some("keys").shape[1]))
            self.keys[self.vision_at] = some("keys")
        self.safe, self.ask = True, None

    def best(self, at, score, k):
        """The k of `at` with the highest score, ascending; the lower index on ties."""
        at, score = np.asarray(at), np.asarray(score, float)
        order = np.lexsort((at, -score))
        if 0 < k < len(at):
            self.safe &= bool(score[order[k - 1]] - score[order[k]]
                              > self.noise * (abs(score[order[k - 1]]) + abs(score[order[k]])))
        return np.sort(at[order[:k]])

    def steps(self):
        """Prompt indices of every grid step of every item."""
        out, v = [], 0
        for item in self.items:
            if "grid" in item:
                t = int(item["grid"][0]) if item["kind"] == VIDEO else 1
                for _ in range(t):
                    out.append(self.vision_at[v:v + item["n_vision"] // t])
                    v += item["n_vision"] // t
        return out

    def peaks(self, at, knn):
        """DPC: density times the distance to a denser one, of the tokens `at` among themselves."""
        u = unit(self.x[at])
        far = 1 - u @ u.T
        n = len(at)
        k = min(knn, n - 1)
        density = np.array([
            math.exp(-np.sort(np.delete(far[i], i))[:k].mean()) if k else 1.0 for i in range(n)
        ])
        delta = np.empty(n)
        for i in range(n):
            higher = density > density[i]
            delta[i] = far[i][higher].min() if higher.any() else far.max()
        return density * delta


class Policy:
    def __init__(self, p, c):
        self.p, self.c = p, c

    def entry(self):
        return self.c.av, {}

    def before(self, l, av):
        return None

    def after(self, l, av):
        return None


def last_row(w):
    return w[:, -1].mean(0)


class Exit(Policy):
    def before(self, l, av):
        return av[:0] if l == self.p["at"] else None


class PyramidDrop(Policy):
    def before(self, l, av):
        c, L = self.c, self.c.layers
        if l not in self.p.get("at", [L // 4, L // 2, 3 * L // 4]):
            return None
        ranked = av if self.p.get("kinds", "av") == "av" else av[c.kinds[av] >= VIDEO]
        score = c.ask(l, l, last_row)
        best = c.best(ranked, score[ranked], fl(self.p.get("R", 0.5) * len(ranked)))
        return np.sort(np.concatenate([best, np.setdiff1d(av, ranked)]))


class Table(Policy):
    def before(self, l, av):
        c = self.c
        if self.p["score"] != "saliency":
            return None
        return c.best(av, c.saliency[av], min(len(av), fl(self.p["rates"][l] * len(c.av))))


class OmniFit(Policy):
    def entry(self):
        c = self.c
        self.score = np.zeros(len(c.kinds))
        sides = (c.audio_at, c.vision_at)
        for mine, other in (sides, sides[::-1]):
            score = np.sqrt((c.x[mine]**2).sum(-1))
            if len(mine) and len(other):
                k = min(self.p.get("n_anchor", 32), len(other))
                z = unit(c.x[c.best(other, c.peaks(other, self.p.get("knn", 5)), k)])
                like = np.maximum(0, (unit(c.x[mine]) @ z.T).max(1)) * score
                score = score + self.p.get("lam", 1.5) * like
            self.score[mine] = score
        return c.av, {}

    def before(self, l, av):
        c, out = self.c, []
        for at, rates in ((c.audio_at, "rates_a"), (c.vision_at, "rates_v")):
            mine = np.intersect1d(av, at)
            out.append(c.best(mine, self.score[mine], fl(min(1, self.p[rates][l]) * len(at))))
        return np.sort(np.concatenate(out))


class OmniFocus(Policy):
    def entry(self):
        c = self.c
        n, k = len(c.av), max(1, rn(self.p.get("R", 0.25) * len(c.av)))
        ids = sorted(set(c.chunks[c.av]))
        by = [[at[c.chunks[at] == i] for at in (c.audio_at, c.vision_at)] for i in ids]
        sizes = np.array([len(a) + len(v) for a, v in by])
        rate = np.full(len(ids), 0.55)
        if len(c.text):
            near = np.array([cos(c.x[np.concatenate(pair)], c.text.mean(0)).max() for pair in by])
            if near.max() - near.min() > 1e-6:
                rate = 0.75 - 0.4 * (near - near.min()) / (near.max() - near.min())
        rate = offset(rate, sizes, 0.35, 0.75, n - k)
        kept, out = remainders(sizes * (1 - rate), k, sizes), []
        for pair, m in zip(by, kept):
            total = len(pair[0]) + len(pair[1])
            counts = remainders([m * len(p) / total for p in pair], m, [len(p) for p in pair])
            for mine, other, count in zip(pair, pair[::-1], counts):
                first = (count + 1) // 2 if len(other) else 0
                if first:
                    out.append(c.best(mine, cos(c.x[mine], c.x[other].mean(0)), first))
                    left = np.setdiff1d(mine, out[-1])
                else:
                    left = mine
                if count > first:
                    out.append(c.best(left, 1 - cos(c.x[left], c.x[mine].mean(0)), count - first))
        return np.sort(np.concatenate(out)), {}


class TrimLC(Policy):
    def far(self, at):
        u = unit(self.c.x[at])
        return 1 - u @ u.T

    def spread(self, at, k):
        """Farthest first: the greatest mean distance to the others, then the greatest least distance to the chosen."""
        d = self.far(at)
        if k >= len(at):
            return np.asarray(at)
        np.fill_diagonal(d, 0)
        taken = [int(np.argmax(d.sum(1)))]
        if len(at) > 2:  # two are as far from each other as they are
            self.clear(d.sum(1), np.ones(len(at), bool), taken[0])
        while len(taken) < k:
            least = d[:, taken].min(1)
            left = np.ones(len(at), bool)
            left[taken] = False
            best = int(np.argmax(np.where(left, least, -np.inf)))
            self.clear(least, left, best)
            taken.append(best)
        return np.sort(np.asarray(at)[taken])

    def clear(self, figure, left, best):
        rest = np.delete(figure, best)[np.delete(left, best)]
        if len(rest):
            self.c.safe &= bool(figure[best] - rest.max() > self.c.noise * 2)

    def entry(self):
        c, images = self.c, self.c.steps()
        total = sum(len(i) for i in images)
        if total == 0:
            return c.av, {}
        want = max(1, rn(self.p.get("R", 0.2) * total))
        sizes = [len(i) for i in images]
        var = [(lambda m, s: 0.0 if m == 1 else (m * (m - 1) - ((s**2).sum() - m)) / (m * (m - 1)))(
            len(i), unit(c.x[i]).sum(0)) for i in images]
        intra = float(np.mean(var))
        means = np.array([unit(c.x[i]).mean(0) for i in images])
        n = len(images)
        b = 1.0
        if n > 1:
            u = unit(means)
            inter = float((1 - u @ u.T)[~np.eye(n, dtype=bool)].mean())
            a1, a2 = max(0, 1 - intra), max(0, 1 - inter)
            b = a1 / (a1 + a2) if a1 + a2 else 0.5
        k1 = total - rn(b * (total - want))
        w = np.array([m * max(v, 1e-6) for m, v in zip(sizes, var)])
        if k1 < n:
            budget = np.zeros(n, int)
            budget[np.lexsort((np.arange(n), -w))[:k1]] = 1
        else:
            lo, hi = 0.0, total / w.min()
            for _ in range(300):
                mid = (lo + hi) / 2
                if np.clip(mid * w, 1, sizes).sum() < k1:
                    lo = mid
                else:
                    hi = mid
            budget = remainders(np.clip(hi * w, 1, sizes), k1, sizes)
        first = np.sort(np.concatenate([self.spread(i, k) for i, k in zip(images, budget) if k]))
        k2 = min(len(first), rn(self.p.get("pool", 1.5) * want))
        cand = self.spread(first, k2)
        d = self.far(cand)
        np.fill_diagonal(d, np.inf)
        f1 = d.min(1) if len(cand) > 1 else np.zeros(1)
        f2 = cos(c.x[cand], c.text.mean(0)) if len(c.text) else np.zeros(len(cand))
        rank = np.array([(f1 > f1[i]).sum() + (f2 > f2[i]).sum() for i in range(len(cand))])
        left, out = list(range(len(cand))), []
        while len(out) < want:
            front = [
                i for i in left
                if not any(f1[j] >= f1[i] and f2[j] >= f2[i] and (f1[j] > f1[i] or f2[j] > f2[i]) for j in left)
            ]
            front.sort(key=lambda i: (rank[i], i))
            out += front[:want - len(out)]
            left = [i for i in left if i not in front]
        return np.sort(np.concatenate([c.audio_at, cand[out]])), {}


class Aim(Policy):
    def entry(self):
        c, merged, keep = self.c, {}, [self.c.audio_at]
        for step in c.steps():
            at, x = list(step), {i: c.x[i] for i in step}
            for _ in range(self.p.get("rounds", 2)):
                source, dest = at[0::2], at[1::2]
                if not dest:
                    break
                like = unit(np.array([x[i] for i in source])) @ unit(np.array([x[i] for i in dest])).T
                order = np.sort(like, 1)
                if len(dest) > 1:
                    c.safe &= bool((order[:, -1] - order[:, -2]).min() > 2 * c.noise)
                going = c.best(source, like.max(1), len(dest))
                new = {j: [x[j]] for j in dest}
                for i in going:
                    new[dest[int(like[source.index(i)].argmax())]].append(x[i])
                x = {j: np.mean(rows, 0) for j, rows in new.items()} | {i: x[i] for i in source if i not in going}
                at = sorted(x)
            keep.append(np.array(at, int))
            merged.update({i: x[i] for i in at})
        keep = np.sort(np.concatenate(keep))
        self.n = len(keep)
        return keep, merged

    def after(self, l, av):
        c, l1 = self.c, self.p.get("l1", self.c.layers // 2)
        k = fl(self.n * max(0, 1 - (l - l1 + 1) / 8))
        if l < l1 or k >= len(av):
            return None
        score = c.ask(l, l, self.walk)
        return c.best(av, score[av], k)

    def walk(self, w):
        """w: the layer's own attention; a power of it, made to sum to 1, is that of logits ten times as large."""
        hot = np.log(np.maximum(w, 1e-300)) * 10
        hot = np.where(np.tril(np.ones(hot.shape[1:], bool)), hot, -np.inf)
        hot = np.exp(hot - hot.max(-1, keepdims=True))
        hot /= hot.sum(-1, keepdims=True)
        dist = np.full((len(w), w.shape[1]), 1 / w.shape[1])
        for _ in range(5):
            dist = np.einsum("hi,hij->hj", dist, hot)
        return np.sqrt((dist**2).mean(0))


class Seats(Policy):
    def ratios(self, target):
        """(layer before which, share of those alive that stays) for the drops."""
        L, p = self.c.layers, self.p
        end = p["exit_at"] - 1
        at = [l for l in p["drops"] if l < end]
        weight = np.exp(np.arange(len(at)))
        weight /= weight.sum()

        def mean(removed):
            alive, out = 1.0, []
            for l in range(end):
                for i, a in enumerate(at):
                    if a == l:
                        alive -= removed * weight[i]
                out.append(alive)
            return sum(out) / L

        entry = min(1, self.p.get("scale", 1.4) * target)
        lo, hi = 0.0, 1.0
        for _ in range(200):
            mid = (lo + hi) / 2
            if entry * mean(mid) > target:
                lo = mid
            else:
                hi = mid
        share = 1 - np.cumsum(hi * weight)
        return {a: rn(1e4 * share[i] / (share[i - 1] if i else 1)) / 1e4 for i, a in enumerate(at)}

    def entry(self):
        c, out = self.c, []
        self.target = (self.p["target_v"], self.p["target_a"])
        for i in sorted(set(c.chunks[c.av])):
            for at, target in zip((c.vision_at, c.audio_at), self.target):
                mine = at[c.chunks[at] == i]
                if len(mine):
                    out.append(self.diverse(mine, max(1, rn(min(1, self.p.get("scale", 1.4) * target) * len(mine)))))
        return np.sort(np.concatenate(out)), {}

    def diverse(self, at, k):
        u = unit(self.c.x[at])
        d = (1 - u @ u.T) * self.c.saliency[at][None] * 1e6
        second = np.sort(d, 0)[1] if len(at) > 1 else d[0]
        taken = [int(np.argmax(second))]
        while len(taken) < k:
            least = d[taken].min(0)
            least[taken] = -np.inf
            taken.append(int(np.argmax(least)))
        return np.asarray(at)[taken]

    def before(self, l, av):
        c = self.c
        if l == self.p["exit_at"] - 1:
            return av[:0]
        rv, ra = (self.ratios(t) for t in self.target)
        if l not in rv:
            return None
        score = c.ask(l, l - 1, last_row)
        v, a = av[c.kinds[av] >= VIDEO], av[c.kinds[av] == AUDIO]
        kv, ka = (max(1, rn(r[l] * len(m))) if len(m) else 0 for r, m in ((rv, v), (ra, a)))
        ids = sorted(set(c.chunks[av]))
        if len(ids) == 1 or not len(v) or not len(a):
            return np.sort(np.concatenate([c.best(v, score[v], kv), c.best(a, score[a], ka)]))
        wins = [(v[c.chunks[v] == i], a[c.chunks[a] == i]) for i in ids]

        def soft(m):
            mean = np.exp(np.array([score[w[m]].mean() if len(w[m]) else 0 for w in wins]) / 0.1)
            return mean / mean.sum()

        pv, pa, size = soft(0), soft(1), [len(x) + len(y) for x, y in wins]
        total = kv + ka
        B = [min(max(1, rn(total * (x + y) / 2)), s) for x, y, s in zip(pv, pa, size)]
        while sum(B) > total:
            B[max((i for i in range(len(B)) if B[i] > 1), key=lambda i: (B[i], -i))] -= 1
        while sum(B) < total:
            B[min((i for i in range(len(B)) if B[i] < size[i]), key=lambda i: (B[i], i))] += 1
        out = []
        for (wv, wa), x, y, b in zip(wins, pv, pa, B):
            bv = min(len(wv), rn(b * x * kv / (x * kv + y * ka)))
            ba = min(len(wa), b - bv)
            bv += min(b - bv - ba, len(wv) - bv)
            ba += min(b - bv - ba, len(wa) - ba)
            if len(wv) and bv == 0:
                bv, ba = 1, min(len(wa), max(1, b - 1)) if ba > 1 else ba
            if len(wa) and ba == 0:
                ba, bv = 1, min(len(wv), max(1, b - 1)) if bv > 1 else bv
            out += [c.best(wv, score[wv], bv), c.best(wa, score[wa], ba)]
        return np.sort(np.concatenate(out))


class VtcCls(Policy):
    def entry(self):
        c, out = self.c, [self.c.audio_at]
        for at in c.steps():
            out.append(c.best(at, c.blocks[:, at].sum(0), max(1, fl(self.p.get("retain", 0.3) * len(at)))))
        return np.sort(np.concatenate(out)), {}


class PruMerge(Policy):
    def entry(self):
        c, keep, merged = self.c, [self.c.audio_at], {}
        for at in c.steps():
            v = c.saliency[at]
            w, cap = v / v.sum(), max(1, fl(self.p.get("cap", 0.3) * len(at)))
            q1, q3 = np.quantile(v, 0.25), np.quantile(v, 0.75)
            line = q3 + 1.5 * (q3 - q1)
            c.safe &= bool((np.abs(v - line) > 4 * c.noise * np.abs(v)).all())
            n_out = int((v > line).sum())
            kept = list(c.best(at, v, min(n_out, cap - 1)))
            if self.p.get("plus", False):
                by = max(1, len(at) // n_out // 3) if n_out else len(at)
                for i in at[::by]:
                    if len(kept) < cap - 1 and i not in kept:
                        kept.append(i)
            rest = [i for i in at if i not in kept]
            extra = c.best(rest, c.saliency[rest], 1)[0]
            weight = dict(zip(at, w))
            for i in kept:
                others = np.array([j for j in at if j != i])
                near = c.best(others, cos(c.keys[others], c.keys[i]), min(len(others), self.p.get("near", 32)))
                merged[i] = c.x[i] + sum(weight[j] * c.x[j] for j in near)
            merged[extra] = sum(weight[j] * c.x[j] for j in rest)
            keep += [np.array(kept + [extra], int)]
        return np.sort(np.concatenate(keep)), merged


class Omni(Policy):
    """What OmniZip and DASH share."""
    def audio(self, a, v, score):
        """Dominant tokens and anchors of the clip `a` beside the video `v`; what the anchors become."""
        c, merged = self.c, {}
        dominant = c.best(a, score, rn((1 - self.p["rho_a"]) * len(a)))
        rest = np.setdiff1d(a, dominant)
        n = min(rn(self.p.get("anchor", 0.05) * len(a)), len(rest))
        if n == 0:
            return dominant, merged
        anchors = rest[::max(1, len(rest) // n)][:n]
        pool = np.setdiff1d(rest, anchors)
        if len(pool):
            like = unit(c.x[pool]) @ unit(c.x[anchors]).T
            order = np.sort(like, 1)
            if n > 1:
                c.safe &= bool((order[:, -1] - order[:, -2]).min() > 2 * c.noise)
            owner = like.argmax(1)
            near = (unit(c.x[pool]) @ unit(c.x[v]).T).max(1) if len(v) else like.max(1)
            for i, anchor in enumerate(anchors):
                mine = pool[owner == i]
                if len(mine):
                    m = c.best(mine, near[owner == i], min(self.p.get("G", 3), len(mine)))
                    x = near[np.searchsorted(pool, m)]
                    w = np.exp(x - x.max())
                    merged[anchor] = (c.x[anchor] + (w / w.sum()) @ c.x[m]) / 2
        return np.sort(np.concatenate([dominant, anchors])), merged

    def video(self, steps, counts):
        c, out = self.c, []
        for t, (at, m) in enumerate(zip(steps, counts)):
            if t % 2 == 0:
                out.append(c.best(at, c.peaks(at, self.p.get("knn", 5)), m))
            else:
                out.append(c.best(at, -cos(c.x[at], c.x[steps[t - 1]]), m))
        return out

    def entry(self):
        c, keep, merged, steps, a0 = self.c, [], {}, self.c.steps(), 0
        for item in c.items:
            n_a = item.get("n_audio", 0) if "mel" in item else 0
            a = c.audio_at[a0:a0 + n_a]
            a0 += n_a
            n_steps = 0 if "grid" not in item else int(item["grid"][0]) if item["kind"] == VIDEO else 1
            mine, steps = steps[:n_steps], steps[n_steps:]
            v = np.concatenate(mine) if mine else np.zeros(0, int)
            if len(a):
                kept, new = self.audio(a, v, self.score(a))
                merged.update(new)
                keep.append(kept)
            else:
                kept = a
            if mine:
                keep += self.film(a, kept, mine)
        return np.sort(np.concatenate(keep)), merged


class OmniZip(Omni):
    def score(self, a):
        return self.c.loud[a]

    def film(self, a, kept, steps):
        c, p, out = self.c, self.p, []
        at_chunk = [c.chunks[s[0]] for s in steps]
        ids = sorted(set(at_chunk))
        groups = [[s for s, i in zip(steps, at_chunk) if i == g] for g in ids]
        n = np.array([sum(len(s) for s in g) for g in groups])
        lo, hi, rho = p.get("rho_min", 0.35), p.get("rho_max", 0.75), []
        for g in ids:
            all_, some = (c.chunks[a] == g).sum(), (c.chunks[kept] == g).sum()
            rho.append(min(hi, max(lo, hi - (hi - lo) * some / all_)) if all_ else p["rho_v"])
        total = int(n.sum())
        rho = offset(rho, n, lo, hi, p["rho_v"] * total)
        counts = remainders(n * (1 - rho), total - fl(p["rho_v"] * total), n)
        for g, k in zip(groups, counts):
            each = [k // len(g) + (i < k % len(g)) for i in range(len(g))]
            out += self.video(g, each)
        return out


class Dash(Omni):
    def score(self, a):
        c = self.c
        x = c.x[a]
        b = np.ones(len(a))
        b[1:] = np.clip((1 - cos(x[:-1], x[1:])) / 2, 0, 1)
        half = np.sort(np.lexsort((np.arange(x.shape[1]), x.var(0)))[:x.shape[1] // 2])
        f = unit(x[:, half])
        far = ((f - f.mean(0))**2).sum(1)
        k = sum(np.exp(-far / (2 * al)) for al in (1 / 8, 1 / 4, 1 / 2, 1, 2))
        loud = c.loud[a]
        return 0.4 * b / (b.max() + 1e-6) + 0.3 * (1 - k / k.max()) + 0.3 * loud / (loud.max() + 1e-6)

    def film(self, a, kept, steps):
        c, p, out, F = self.c, self.p, [], len(steps)
        if not len(a):
            bounds, shares = [0, F], [None]
        else:
            like, cuts, last = cos(c.x[a][:-1], c.x[a][1:]), [], 0
            c.safe &= bool((np.abs(like - p.get("threshold", 0.4)) > 4 * c.noise).all())
            for t, x in enumerate(like):
                if x < p.get("threshold", 0.4) and t + 1 - last >= p.get("gap", 30):
                    cuts.append(t + 1)
                    last = t + 1
            at = {}
            for cut in cuts:
                s = rn(cut * F / len(a))
                if 0 < s < F:
                    at.setdefault(s, cut)
            bounds = [0] + sorted(at) + [F]
            edges = [0] + [at[s] for s in sorted(at)] + [len(a)]
            shares = [
                np.isin(a[x:y], kept).mean() if y > x else 0.5 for x, y in zip(edges, edges[1:])
            ]
        for x, y, share in zip(bounds, bounds[1:], shares):
            rho = max(0.35, p["rho_v"] - 0.15) if share is None else min(0.95, max(0.1, p["rho_v"] + 0.1 * (0.5 - share)))
            out += self.video(steps[x:y], [fl(len(s) * (1 - rho)) for s in steps[x:y]])
        return out


class OmniSift(Omni):
    """The film of every chunk, and its audio by the selector: PyTorch's own attention, norms and products."""
    def network(self, at, film):
        """Scores of the audio tokens `at`, asked of the film tokens kept."""
        import torch
        from torch.nn import functional as F
        s = self.c.selector
        line = lambda x, name: F.linear(x, s[name + ".weight"], s[name + ".bias"])
        norm = lambda x, name: F.layer_norm(x, x.shape[-1:], s[name + ".weight"], s[name + ".bias"], 1e-5)
        v = norm(line(torch.from_numpy(self.c.x[film]), "v_proj"), "v_norm")
        a = norm(line(torch.from_numpy(self.c.x[at]), "a_proj"), "a_norm")
        ask = torch.nn.MultiheadAttention(a.shape[-1], 8, batch_first=True, dtype=torch.float64)
        ask.load_state_dict({n[len("cross_attn."):]: x for n, x in s.items() if n.startswith("cross_attn.")})
        with torch.no_grad():
            z = norm(a + ask(a[None], v[None], v[None], need_weights=False)[0][0], "post_attn_norm")
            return torch.sigmoid(line(F.silu(line(z, "score_head.0")), "score_head.2"))[:, 0].numpy()

    def entry(self):
        c, keep, steps, a0, v0 = self.c, [], self.c.steps(), 0, 0
        left = lambda n, rho: n - fl(n * self.p.get(rho, {"rho_v": 0.67, "rho_a": 0.4}[rho]))
        for item in c.items:
            n_a = item.get("n_audio", 0) if "mel" in item else 0
            a = c.audio_at[a0:a0 + n_a]
            a0 += n_a
            n_steps = 0 if "grid" not in item else int(item["grid"][0]) if item["kind"] == VIDEO else 1
            mine, steps = steps[:n_steps], steps[n_steps:]
            chunk_of = np.array([c.chunks[s[0]] for s in mine], int)
            for chunk in sorted(set(chunk_of) | set(c.chunks[a])):
                film = [np.zeros(0, int)]
                for t, i in enumerate(np.flatnonzero(chunk_of == chunk)):
                    at = mine[i]
                    like = cos(c.x[at], c.x[at].mean(0)) if t % 2 == 0 else cos(c.x[at], c.x[mine[i - 1]])
                    film.append(c.best(at, 1 - like, left(len(at), "rho_v")))
                film, heard = np.concatenate(film), a[c.chunks[a] == chunk]
                if len(film) and len(heard) > 1:
                    heard = c.best(heard, self.network(heard, film), left(len(heard), "rho_a"))
                keep += [film, heard]
        return np.sort(np.concatenate(keep)), {}


POLICIES = {
    "exit": Exit, "pyramiddrop": PyramidDrop, "table": Table, "omnifit": OmniFit, "omnifocus": OmniFocus,
    "trim-lc": TrimLC, "aim": Aim, "seats": Seats, "vtc-cls": VtcCls, "prumerge": PruMerge, "omnizip": OmniZip,
    "dash": Dash, "omnisift": OmniSift
}
