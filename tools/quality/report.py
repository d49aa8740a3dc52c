"""report.py - the tables and the plot of run.py, and results.json with every answer."""
import datetime
import json
import os

import analysis as A
import cells as C
import engine as E

FIGURES = (("screen", "Screen: share of questions about what is to be seen that are answered exactly, %"),
           ("cross", "Cross-modal: share of questions that need eye and ear that are answered exactly, %"),
           ("speech", "Speech: share of questions about single words (first, last, is it spoken) that are answered exactly, %"),
           ("wer", "Transcripts: word error rate, %"))
COUNTED = (0.3, 0.2)               # budgets of the tables of differences and kinds


class Figures:
    """What the tables hold, worked out once a cell."""

    def __init__(self, questions, store):
        self.questions, self.store = questions, store
        self.bootstrap = A.Bootstrap(dict.fromkeys(q["clip"] for q in questions))
        self.memo = {}

    def sums(self, cell, figure, kind=None):
        at = (cell.key, figure, kind)
        if at not in self.memo:
            group = "transcribe" if figure == "wer" else figure
            self.memo[at] = A.sums(self.questions, self.store.texts(cell), None if kind else group, kind, figure == "wer")
        return self.memo[at]

    def kept(self, cell, figure):
        return self.store.kept(cell, self.questions, "transcribe" if figure == "wer" else figure)

    def whole(self, cell):
        """Every question is answered."""
        return len(self.store.texts(cell)) == len(self.questions)

    def text(self, cell, figure, target=None):
        """86.0 [82.1, 89.6], with the share really kept where it is not the target's."""
        s = self.sums(cell, figure)
        value = A.ratio(s)
        if value is None or not self.whole(cell):
            return "-"
        low, high = self.bootstrap.interval(s)
        kept = self.kept(cell, figure)
        note = f" (kept {100 * kept:.1f})" if target is not None and abs(kept - target) > 0.01 else ""
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]{note}"

    def difference(self, cell, other, figure):
        if not self.whole(cell) or not self.whole(other):
            return "-"
        d = self.bootstrap.difference(self.sums(cell, figure), self.sums(other, figure))
        return "-" if d is None else f"{100 * d[0]:+.1f} [{100 * d[1]:+.1f}, {100 * d[2]:+.1f}]"


def rows_of(header, rows):
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)] + ["| " + " | ".join(r) + " |" for r in rows] + [""]


def percent(target):
    return f"{100 * target:.0f} %"


def by_budget(f, cells, figure):
    """Policies down, budgets across."""
    main = [c for c in cells if c.target is not None and not c.study]
    at = {(c.label, c.target): c for c in main}
    labels = list(dict.fromkeys(c.label for c in main if f.whole(c)))
    budgets = [b for b in C.BUDGETS if any(t == b for _, t in at)]
    return rows_of(["policy"] + [percent(b) for b in budgets],
                   [[label] + [f.text(at[label, b], figure, b) if (label, b) in at else "-" for b in budgets] for label in labels])


def glance(f, cells, budgets=(0.5, 0.3, 0.2)):
    """A policy a line, without intervals: screen, cross-modal and word error rate at a few budgets."""
    main = [c for c in cells if not c.study and f.whole(c)]
    at = {(c.label, c.target): c for c in main}
    number = lambda c, x: "-" if c is None or A.ratio(f.sums(c, x)) is None else f"{100 * A.ratio(f.sums(c, x)):.0f}"
    out, shown = [], ("screen", "cross", "wer")
    for label in dict.fromkeys(c.label for c in main):
        cells_ = [at.get((label, b)) for b in budgets] if any((label, b) in at for b in budgets) else \
            [at.get((label, None)) or at.get((label, 1.0))] * len(budgets)
        same = len(set(map(id, cells_))) == 1 and cells_[0] is not None
        kept = f.kept(cells_[0], "screen") if same else None
        note = f" ({100 * kept:.0f} % of films)" if same and kept is not None else ""
        out.append([f"`{label}`{note}" if "," not in label else label + note] +
                   [" / ".join(number(c, x) for c in (cells_[:1] if same else cells_)) for x in shown])
    over = " / ".join(percent(b) for b in budgets)
    return rows_of(["policy", f"screen right at {over}", f"cross-modal right at {over}", f"word error rate at {over}"], out)


def guide(f, cells, path, stem):
    """The short table between the marks of docs/policies.md."""
    begin, end = "<!-- made by make quality -->\n", "<!-- end -->\n"
    with open(path) as text:
        head, rest = text.read().split(begin)
    table = "\n".join(glance(f, cells))
    text = f"\n{table}\nIntervals, other budgets and kinds, differences: [{stem}](measurements/{stem}.md).\n\n"
    with open(path, "w") as out:
        out.write(head + begin + text + end + rest.split(end, 1)[1])


def own(f, cells):
    """Policies without a budget: what they keep on films and on speech."""
    out = []
    for c in cells:
        if c.target is None and f.whole(c):
            kept = [f.store.kept(c, f.questions, media=m) for m in ("video", "audio")]
            out.append([c.label] + ["-" if k is None else f"{100 * k:.1f}" for k in kept] + [f.text(c, x) for x, _ in FIGURES])
    return rows_of(["policy", "kept of films, %", "kept of speech, %"] + [x for x, _ in FIGURES], out) if out else []


def differences(f, cells):
    """Each policy less `none`, and guided less random drops of the same counts."""
    at = {(c.label, c.target): c for c in cells if not c.study}
    none, out = at.get(("none", 1.0)), []
    for target in COUNTED:
        for c in cells:
            if none and c.target == target and not c.study and f.whole(c):
                out.append([f"{c.label} {percent(target)} less none"] + [f.difference(none, c, x) for x, _ in FIGURES])
        for guided, drawn in (("omnidrop", "random-layers"), ("omnidrop, kappa 0.5", "random-layers"), ("plp", "random-layers, no step 0"),
                              ("omnidrop", "random"), ("omnidrop", "uniform")):
            if (guided, target) in at and (drawn, target) in at:
                out.append([f"**{guided} less {drawn}**, {percent(target)}"] +
                           [f.difference(at[drawn, target], at[guided, target], x) for x, _ in FIGURES])
    return rows_of(["points of a hundred"] + [x for x, _ in FIGURES], out) if out else []


def the_study(f, cells):
    """Every diversity score with every choice of query rows; differences from the default's."""
    mine = [c for c in cells if c.study]
    if not mine:
        return []
    out = []
    for c in mine:
        base = next((x for x in mine if x.note and (x.study, x.target) == (c.study, c.target)), c)
        out.append([c.name + (" (default)" if c.note else "")] + [f.text(c, x) for x, _ in FIGURES] +
                   ["" if base is c else f.difference(base, c, x) for x, _ in FIGURES])
    return rows_of(["setting"] + [x for x, _ in FIGURES] + [f"{x} less default" for x, _ in FIGURES], out)


def by_kind(f, cells, target):
    kinds = [k for k in dict.fromkeys(q["kind"] for q in f.questions) if k != "transcribe"]
    n = {k: sum(q["kind"] == k for q in f.questions) for k in kinds}
    out = []
    for c in cells:
        if (c.target == target or c.label == "none") and not c.study and f.whole(c):
            out.append([c.name] + [f"{100 * A.ratio(f.sums(c, 'kind', k)):.0f}" for k in kinds])
    return rows_of(["policy"] + [f"{k} ({n[k]})" for k in kinds], out)


def document(who, f, cells, missed, messages, speed, image):
    n = {g: sum(q["group"] == g for q in f.questions) for g in A.GROUPS}
    clips = {m: len({q["clip"] for q in f.questions if q["media"] == m}) for m in ("video", "audio")}
    out = [f"# Quality under pruning, measured on {datetime.date.today()}", "",
           f"By `make quality`: omni-tiny ({who['model']}), engine at commit {who['commit']} (sources {who['engine']}), dtype {who['dtype']}; "
           f"{who['machine']}. What the figures mean, and what they do not: [docs/quality.md](../quality.md).", "",
           f"{clips['video']} films with sound, {clips['audio']} clips of speech, from seeds that training never saw; in every cell the same "
           f"{len(f.questions)} questions: {n['screen']} screen, {n['cross']} cross-modal, {n['speech']} speech, {n['transcribe']} transcripts. "
           "Columns: the target of the mean share kept over the layers, counted before step 0; the share really kept stands beside a "
           "figure where it is more than a point away. Brackets: 95 % intervals by bootstrap over clips. A dash: the policy cannot reach "
           "that budget.", ""]
    if speed[0]:
        out += [f"{speed[0]} answers in {speed[1]:.0f} s of the engine, {speed[0] / speed[1]:.0f} a second.", ""]
    if image:
        out += [f"![accuracy and word error rate against the share kept]({image})", ""]
    for figure, title in FIGURES:
        out += [f"## {title}", ""] + by_budget(f, cells, figure)
    out += ["## Policies that take no budget", ""] + own(f, cells)
    out += ["## Differences, paired by question", ""] + differences(f, cells)
    study_table = the_study(f, cells)
    if study_table:
        out += ["## The words of the importance score", "",
                "`tds`: the diversity score, from the schedule's middle on; `query`: the rows whose attention is the score (docs/omnidrop.md 4 "
                "and 5). On the right: less the default's, paired by question.", ""]
        out += study_table
    out += ["## By kind of question at 30 %, % right", ""] + by_kind(f, cells, 0.3)
    out += ["## The settings", ""] + rows_of(["setting", "policy", "parameters"], [[c.name, c.policy, f"`{json.dumps(c.options)}`"] for c in cells if f.whole(c)])
    if f.store.older:
        out += [f"Answers that stood already, of the engine at commit {f.store.older}, were kept (`--same-engine`).", ""]
    why = {}                                            # (label, reason): the targets
    for label, target, reason in missed + [(c.label, c.target, (f.store.errors(c) or ["questions without an answer"])[0])
                                           for c in cells if not f.whole(c)]:
        why.setdefault((label, reason), []).append(target)
    notes = [f"{label}{'' if None in at else ', ' + ', '.join(map(percent, at))}: {reason}" for (label, reason), at in why.items()] + messages
    if notes:
        out += ["## Not measured", ""] + [f"* {x}" for x in notes] + [""]
    return "\n".join(out)


def plot(f, cells, path):
    """Three panels against the share really kept; returns False where there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "omnidrop", "font.size": 9})
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(13, 4.6))
    labels = [x for x in dict.fromkeys(c.label for c in cells if c.target is not None and not c.study and f.whole(c)) if x != "none"]
    none = next((c for c in cells if c.label == "none"), None)
    for axis, (figure, title) in zip(axes, (("screen", "screen, % right"), ("cross", "cross-modal, % right"), ("wer", "word error rate, %"))):
        for i, label in enumerate(labels):
            mine = sorted((f.kept(c, figure), 100 * A.ratio(f.sums(c, figure))) for c in cells
                          if c.label == label and not c.study and f.whole(c) and A.ratio(f.sums(c, figure)) is not None)
            axis.plot([100 * x for x, _ in mine], [y for _, y in mine], marker="osv^D*Px"[i % 8], ms=4, lw=1.2, color=f"C{i}", label=label)
        for c in cells:
            if c.target is None and f.whole(c):
                axis.plot([100 * f.kept(c, figure)], [100 * A.ratio(f.sums(c, figure))], "k.", ms=5)
                axis.annotate(c.label, (100 * f.kept(c, figure), 100 * A.ratio(f.sums(c, figure))), fontsize=6, xytext=(3, -3), textcoords="offset points",
                              rotation=-40, va="top")
        if none and f.whole(none):
            axis.axhline(100 * A.ratio(f.sums(none, figure)), color="0.5", ls=":", lw=1)
        axis.set_xlabel("kept, mean over the layers, %")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.set_xlim(0, 105)
        if figure != "wer":
            axis.set_ylim(0, 102)
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axes[2].set_yscale("log")
    axes[2].set_yticks(ticks, [str(x) for x in ticks])
    axes[2].minorticks_off()
    axes[2].set_ylim(bottom=min(1, axes[2].get_ylim()[0]))
    axes[0].legend(fontsize=7, loc="lower right")
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)
    return True


def results(f, cells):
    """Every figure and every answer."""
    out = []
    for c in cells:
        figures = {}
        for figure, _ in FIGURES:
            s = f.sums(c, figure)
            if A.ratio(s) is not None:
                figures[figure] = {"value": A.ratio(s), "interval": f.bootstrap.interval(s), "kept": f.kept(c, figure),
                                   "sums": [sum(x[0] for x in s.values()), sum(x[1] for x in s.values())]}
        kinds = {k: A.ratio(f.sums(c, "kind", k)) for k in dict.fromkeys(q["kind"] for q in f.questions)}
        out.append({"label": c.label, "target": c.target, "policy": c.policy, "options": c.options, "study": c.study, "whole": f.whole(c),
                    "figures": figures, "kinds": kinds, "answers": f.store.texts(c)})
    return out


def write(a, who, questions, cells, missed, messages, store, speed):
    f = Figures(questions, store)
    os.makedirs(os.path.dirname(a.report) or ".", exist_ok=True)
    image = a.report + ".svg" if plot(f, cells, a.report + ".svg") else None
    with open(a.report + ".md", "w") as out:
        out.write(document(who, f, cells, missed, messages, speed, image and os.path.basename(image)))
    with open(os.path.join(a.out, "results.json"), "w") as out:
        json.dump({"who": who, "questions": questions, "cells": results(f, cells)}, out)
    if os.path.dirname(os.path.abspath(a.report)) == os.path.join(E.ROOT, "docs/measurements"):
        guide(f, cells, os.path.join(E.ROOT, "docs/policies.md"), os.path.basename(a.report))
    print(f"{a.report}.md, {image or 'no plot: matplotlib is not there'}, {a.out}/results.json")
