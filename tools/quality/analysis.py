"""analysis.py - from answers to figures: exact answers, word errors, and how far chance alone would move them.

No numpy is needed (tests/quality/test_analysis.py runs where there is none); where it is there, the bootstrap is faster by it.

A figure is a ratio of sums over clips: right answers over questions, or word errors over words. Questions about one clip
are not independent, so whole clips are drawn with replacement (cluster bootstrap, percentile intervals). One table of draws
serves every cell, so the differences of two cells over the same clips are paired: a hard clip is hard for both.
"""
import random

try:
    import numpy as np
except ImportError:
    np = None

GROUPS = ("screen", "cross", "speech", "transcribe")


def word_errors(truth, said):
    """Levenshtein distance in words: least insertions, deletions and substitutions that turn one into the other."""
    r, h = truth.split(), said.split()
    row = list(range(len(h) + 1))
    for i, a in enumerate(r, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(h, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def sums(questions, answers, group=None, kind=None, wer=False):
    """{clip: [errors or right answers, words or questions]} over the questions of a group or kind that have an answer."""
    out = {}
    for q in questions:
        said = answers.get(q["id"])
        if said is None or group and q["group"] != group or kind and q["kind"] != kind:
            continue
        s = out.setdefault(q["clip"], [0, 0])
        if wer:
            s[0] += word_errors(q["answer"], said)
            s[1] += len(q["answer"].split())
        else:
            s[0] += said == q["answer"]
            s[1] += 1
    return out


def ratio(by_clip):
    """The figure itself; None where nothing was asked."""
    n = sum(s[1] for s in by_clip.values())
    return sum(s[0] for s in by_clip.values()) / n if n else None


def quantile(values, q):
    """Linear between the two nearest of a sorted list."""
    at = q * (len(values) - 1)
    i = int(at)
    return values[i] + (at - i) * (values[min(i + 1, len(values) - 1)] - values[i])


class Bootstrap:
    """`resamples` draws of the clips with replacement; the same ones for every figure."""

    def __init__(self, clips, resamples=2000, seed=1):
        rng = random.Random(seed)
        self.clips = list(clips)
        self.counts = []           # [resamples][clips]: how often each clip was drawn
        for _ in range(resamples):
            c = [0] * len(self.clips)
            for i in rng.choices(range(len(self.clips)), k=len(self.clips)):
                c[i] += 1
            self.counts.append(c)
        if np:
            self.counts = np.array(self.counts, dtype=np.float64)

    def ratios(self, by_clip):
        """The figure of every resample; None where it drew no clip that was asked."""
        s = [by_clip.get(c, (0, 0)) for c in self.clips]
        if np:
            a, n = self.counts @ np.array([x[0] for x in s], float), self.counts @ np.array([x[1] for x in s], float)
            return [x / y if y else None for x, y in zip(a.tolist(), n.tolist())]
        out = []
        for counts in self.counts:
            a = sum(c * x[0] for c, x in zip(counts, s))
            n = sum(c * x[1] for c, x in zip(counts, s))
            out.append(a / n if n else None)
        return out

    def interval(self, by_clip, level=0.95):
        """(low, high) of the figure, or None."""
        return self._between([x for x in self.ratios(by_clip) if x is not None], level)

    def difference(self, by_clip, other, level=0.95):
        """(other - this, low, high), drawn together; None where one of them is empty."""
        a, b = ratio(by_clip), ratio(other)
        if a is None or b is None:
            return None
        d = [y - x for x, y in zip(self.ratios(by_clip), self.ratios(other)) if x is not None and y is not None]
        return (b - a, *self._between(d, level))

    @staticmethod
    def _between(values, level):
        if not values:
            return None
        values = sorted(values)
        return quantile(values, (1 - level) / 2), quantile(values, (1 + level) / 2)
