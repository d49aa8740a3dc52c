"""run.py - quality under pruning, measured through the engine itself: every policy at every budget, every question of a folder of clips.

    python run.py --clips build/quality/clips                      the study; docs/measurements/quality-DATE.md, .svg
    python run.py --clips build/quality/clips --clips-max 6        a trial
    python run.py --reference build/quality/reference.json         the engine beside transformers (reference.py made the file)
    python run.py --check tests/quality                            CI: none, omnidrop 30 %, random 30 % on the committed clips
    python run.py --expect tests/quality                           CI: the engine in f32 says what transformers said about them
    python run.py --write-known tests/quality                      its known figures anew, from what is measured now

Answers go to OUT/answers.jsonl as they come; what is there is not asked again, unless the model, the clips or the engine's
sources changed (then the old file is put aside). Clips are taken a few at a time, and one process of the engine answers
all that is asked about them under all settings: so the towers run once a clip, and what layers have in common is reused.
numpy makes the intervals faster and matplotlib draws the plot; nothing else is needed.
"""
import argparse
import datetime
import json
import os
import platform
import sys

import analysis as A
import cells as C
import engine as E

CHUNK_LINES = 4000


class Store:
    """answers.jsonl: first line who answered, then {"cell", "q", "text", "kept"} or {"cell", "q", "error"}."""

    def __init__(self, folder, who, same_engine=False):
        os.makedirs(folder, exist_ok=True)
        self.path, self.answers, self.older = os.path.join(folder, "answers.jsonl"), {}, None   # older: the commit of other sources
        if os.path.exists(self.path):
            self._read(who, same_engine)
        if not os.path.exists(self.path):
            with open(self.path, "w") as f:
                f.write(json.dumps(who) + "\n")

    def _read(self, who, same_engine):
        with open(self.path) as f:
            lines = f.read().split("\n")
        had = json.loads(lines[0])
        differ = [k for k in who if had.get(k) != who[k] and k != "commit" and not (same_engine and k == "engine")]
        if differ:
            aside = f"{self.path}.{datetime.datetime.now():%Y%m%d-%H%M%S}"
            os.rename(self.path, aside)
            print(f"another {' and '.join(differ)} than before: all is asked anew; the old answers are in {aside}", flush=True)
            return
        if had["engine"] != who["engine"]:
            self.older = had["commit"]
        for line in lines[1:]:
            try:
                row = json.loads(line)
            except ValueError:         # torn by a kill, or the empty end
                continue
            if "error" not in row:     # what failed is asked again
                self.answers.setdefault(row.pop("cell"), {})[row.pop("q")] = row
        whole = "\n".join(line for line in lines if line.endswith("}"))
        if whole + "\n" != "\n".join(lines):
            with open(self.path, "w") as f:
                f.write(whole + "\n")

    def add(self, rows):
        """[(cell, q, reply)]"""
        with open(self.path, "a") as f:
            for cell, q, reply in rows:
                self.answers.setdefault(cell, {})[q] = reply
                f.write(json.dumps({"cell": cell, "q": q, **reply}) + "\n")

    def has(self, cell, q):
        return q in self.answers.get(cell, ())

    def texts(self, cell):
        return {q: r["text"] for q, r in self.answers.get(cell.key, {}).items() if "text" in r}

    def errors(self, cell):
        return [r["error"] for r in self.answers.get(cell.key, {}).values() if "error" in r]

    def kept(self, cell, questions, group=None, media=None):
        mine = self.answers.get(cell.key, {})
        v = [mine[q["id"]]["kept"] for q in questions if q["id"] in mine and "kept" in mine[q["id"]] and
             (group is None or q["group"] == group) and (media is None or q["media"] == media)]
        return sum(v) / len(v) if v else None


def chunks(questions, n_cells):
    """Questions of a few clips each, so that a chunk has about CHUNK_LINES lines."""
    part, clips = [], set()
    for q in questions:
        if q["clip"] not in clips and len(part) * n_cells >= CHUNK_LINES:
            yield part
            part, clips = [], set()
        part.append(q)
        clips.add(q["clip"])
    if part:
        yield part


def ask_all(engine, known, folder, questions, cells, store, at_once):
    """Ask what is not answered yet; returns requests and seconds."""
    by_key = {c.key: c for c in cells}         # two labels may name one setting
    todo = sum(not store.has(k, q["id"]) for k in by_key for q in questions)
    done, spent, failed = 0, 0.0, set()
    for part in chunks(questions, len(by_key)):
        pending = [(k, q) for q in part for k in by_key if not store.has(k, q["id"]) and k not in failed]
        if not pending:
            continue
        lines = [(str(i), os.path.join(folder, q["file"]), q["media"], q["question"], E.options_of(by_key[k], known, q["clip"]))
                 for i, (k, q) in enumerate(pending)]
        replies, took = engine.ask(lines, at_once)
        store.add((k, q["id"], replies[str(i)]) for i, (k, q) in enumerate(pending))
        for i, (k, q) in enumerate(pending):
            if "error" in replies[str(i)] and k not in failed:
                failed.add(k)
                print(f"{by_key[k].name}: {q['id']}: {replies[str(i)]['error']}", flush=True)
        done, spent = done + len(pending), spent + took
        print(f"  {done} of {todo} answers, {done / spent:.0f} a second, {(todo - done) * spent / done / 60:.1f} min left", flush=True)
    return done, spent


def some(q, clips_max):
    """The questions about so many clips, films and speech by halves; None: all."""
    if not clips_max:
        return q.rows
    films = [c for c in q.clips if any(r["clip"] == c and r["media"] == "video" for r in q.rows)]
    speech = [c for c in q.clips if c not in films]
    chosen = set(films[:(clips_max + 1) // 2] + speech[:clips_max // 2])
    return [r for r in q.rows if r["clip"] in chosen]


def who_of(engine, questions):
    return {"engine": E.sources(), "commit": E.commit(), "model": E.model_digest(engine.model),
            "defaults": E.model_defaults(engine.model), "clips": questions.digest(), "dtype": engine.dtype}


# ---- the committed small set ------------------------------------------------------------------------------------

MARGIN = {"accuracy": 0.04, "wer": 0.02}       # beyond what another instruction set's rounding moves
CHECKED = ("none", "omnidrop", "random")


def small_figures(engine, folder):
    """{cell: {"screen", "cross", "speech": share right, "wer", "kept"}} on the committed clips, and requests, seconds."""
    q, known = E.Questions(os.path.join(folder, "clips")), C.parameters_of(engine.policies())
    shapes = q.shapes()
    cells, _, _ = C.plan(known, lambda p, o: engine.refuses(p, o, shapes, C.P_FINAL_MAX), engine.n_layers(), (0.3,), CHECKED, study=False)
    lines = [(f"{i}|{r['id']}", os.path.join(q.folder, r["file"]), r["media"], r["question"], E.options_of(c, known, r["clip"]))
             for i, c in enumerate(cells) for r in q.rows]
    replies, took = engine.ask(lines)
    errors = [r["error"] for r in replies.values() if "error" in r]
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed: {errors[0]}")
    out = {}
    for i, c in enumerate(cells):
        mine = {r["id"]: replies[f"{i}|{r['id']}"] for r in q.rows}
        said = {k: v["text"] for k, v in mine.items()}
        out[c.name] = {g: A.ratio(A.sums(q.rows, said, g)) for g in ("screen", "cross", "speech")}
        out[c.name]["wer"] = A.ratio(A.sums(q.rows, said, "transcribe", wer=True))
        out[c.name]["kept"] = sum(v["kept"] for v in mine.values()) / len(mine)
    return out, len(lines), took


def write_known(engine, folder):
    figures, _, _ = small_figures(engine, folder)
    known = {"made_by": "tools/quality/run.py --write-known", "model": E.model_digest(engine.model), "margin": MARGIN, "measured": figures}
    with open(os.path.join(folder, "known.json"), "w") as f:
        json.dump(known, f, indent=1)
        f.write("\n")
    print(json.dumps(figures, indent=1))


def judge(known, now):
    """[(holds, text)] for every figure of none and omnidrop: no worse than known by more than the margin."""
    out = []
    for cell in ("none", "omnidrop"):
        name = next((c for c in now if c.split()[0] == cell), None)
        for figure in ("screen", "cross", "speech", "wer"):
            if name is None or name not in known["measured"]:
                out.append((False, f"{name or cell}: {figure} was not measured"))
                continue
            margin = known["margin"]["wer" if figure == "wer" else "accuracy"]
            have, want = now[name][figure], known["measured"][name][figure]
            holds = have <= want + margin if figure == "wer" else have >= want - margin
            out.append((holds, f"{name}: {figure} {have:.4f}, known {want:.4f}, margin {margin}"))
    return out


def check(engine, folder):
    """TAP lines; 0 where every figure holds."""
    with open(os.path.join(folder, "known.json")) as f:
        known = json.load(f)
    now, n, took = small_figures(engine, folder)
    if known["model"] != E.model_digest(engine.model):
        print("# known.json was written for another model: make quality-refresh")
    for cell in now:
        print(f"# {cell}: " + ", ".join(f"{k} {v:.4f}" for k, v in now[cell].items()))
    verdict = judge(known, now)
    for holds, text in verdict:
        print(f"{'ok' if holds else 'not ok'} - {text}")
    print(f"# {n} requests in {took:.1f} s")
    return not all(holds for holds, _ in verdict)


def expect(program, model, folder, clips_max):
    """TAP; 0 where the engine in f32 says word for word what reference.py --small wrote down."""
    with open(os.path.join(folder, "expected.json")) as f:
        want = json.load(f)
    if want["model"] != E.model_digest(model):
        print("# expected.json was written for another model: make quality-refresh")
    q = E.Questions(os.path.join(folder, "clips"))
    rows = some(q, clips_max)
    replies, took = E.Engine(program, model, "f32").ask(
        [(r["id"], os.path.join(q.folder, r["file"]), r["media"], r["question"], {"policy": "none"}) for r in rows])
    differ = 0
    for r in rows:
        have = replies[r["id"]].get("text", replies[r["id"]].get("error"))
        if have != want["texts"][r["id"]]:
            differ += 1
            print(f"# {r['id']} \"{r['question']}\": the engine says \"{have}\", the reference \"{want['texts'][r['id']]}\"")
    print(f"{'not ok' if differ else 'ok'} - {len(rows)} questions about committed clips: {len(rows) - differ} answers equal transformers' in f32")
    print(f"# {len(rows)} requests in {took:.1f} s")
    return differ > 0


# ---- the engine beside transformers -----------------------------------------------------------------------------

def against_reference(program, model, folder, path, out):
    """Texts of `none` in f32 and bf16 against those of reference.py; f32 must be equal."""
    with open(path) as f:
        ref = json.load(f)
    q = E.Questions(folder)
    if ref["clips"] != q.digest() or ref["model"] != E.model_digest(model):
        print("the reference was made with other clips or another model: run reference.py again")
        return 1
    rows = [r for r in q.rows if r["id"] in ref["answers"]]
    result, bad = {}, 0
    for dtype, key in (("f32", "float32"), ("bf16", "bfloat16")):
        engine = E.Engine(program, model, dtype)
        replies, _ = engine.ask([(r["id"], os.path.join(q.folder, r["file"]), r["media"], r["question"], {"policy": "none"}) for r in rows])
        differ = []
        for r in rows:
            want, have = ref["answers"][r["id"]][key], replies[r["id"]].get("text", replies[r["id"]].get("error"))
            if have != want["text"]:
                differ.append({"id": r["id"], "question": r["question"], "truth": r["answer"], "reference": want["text"], "engine": have,
                               **first_difference(want, have)})
        same = len(rows) - len(differ)
        print(f"{dtype}: {same} of {len(rows)} texts equal transformers' in {key}")
        for d in differ:
            print(f"  {d['id']} \"{d['question']}\"\n    reference \"{d['reference']}\"\n    engine    \"{d['engine']}\"\n    at token {d['at']}: "
                  f"the reference's two best logits are {d['best']:.4f} and {d['second']:.4f}, {d['margin']:.4f} apart")
        result[dtype] = {"questions": len(rows), "equal": same, "differences": differ}
        bad |= dtype == "f32" and bool(differ)
    with open(os.path.join(out, "reference-result.json"), "w") as f:
        json.dump(result, f, indent=1)
    return bad


def first_difference(want, have):
    """The reference's two best logits where its text and the engine's part: at the token in which the first differing character lies,
    or at the end."""
    same = 0
    while same < min(len(want["text"]), len(have)) and want["text"][same] == have[same]:
        same += 1
    at, length = 0, 0
    for at, piece in enumerate(want["pieces"]):
        length += len(piece)
        if length > same:
            break
    best, second = want["top2"][at]
    return {"at": at, "best": best, "second": second, "margin": best - second}


# ---- main ------------------------------------------------------------------------------------------------------

def study(a):
    engine = E.Engine(a.engine, a.model, a.dtype, a.threads, a.processes)
    q, known = E.Questions(a.clips), C.parameters_of(engine.policies())
    rows, shapes = some(q, a.clips_max), q.shapes()
    cells, missed, messages = C.plan(known, lambda p, o: engine.refuses(p, o, shapes, C.P_FINAL_MAX), engine.n_layers(),
                                     labels=a.policies.split(";") if a.policies else None, study=not a.no_study)
    for m in messages:
        print(m, flush=True)
    who = who_of(engine, q)
    store = Store(a.out, who, a.same_engine)
    n_keys = len({c.key for c in cells})
    print(f"{len(rows)} questions about {len({r['clip'] for r in rows})} clips, {n_keys} settings: {len(rows) * n_keys} answers", flush=True)
    done, spent = ask_all(engine, known, q.folder, rows, cells, store, a.at_once)
    import report
    who["machine"] = f"{os.cpu_count()} CPUs, {platform.machine()}"
    report.write(a, who, rows, cells, missed, messages, store, (done, spent))
    return 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--engine", default=os.path.join(E.ROOT, "build/omnidrop"))
    p.add_argument("--model", default=os.path.join(E.ROOT, "models/omni-tiny"))
    p.add_argument("--clips", default=os.path.join(E.ROOT, "build/quality/clips"))
    p.add_argument("--out", default=os.path.join(E.ROOT, "build/quality"), help="answers.jsonl, results.json")
    p.add_argument("--report", help="stem of the table and the plot [docs/measurements/quality-DATE; OUT/quality with --clips-max]")
    p.add_argument("--clips-max", type=int, help="so many clips only, films and speech by halves")
    p.add_argument("--policies", help="labels of tools/quality/cells.py, separated by ;")
    p.add_argument("--no-study", action="store_true", help="without the words of the importance score (tds, query)")
    p.add_argument("--at-once", type=int, default=32, help="requests at once")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--processes", type=int, default=os.cpu_count(), help="of the engine, side by side")
    p.add_argument("--dtype", default="auto")
    p.add_argument("--same-engine", action="store_true", help="go on with the answers that are there though the engine's sources changed")
    p.add_argument("--reference", metavar="FILE", help="compare with reference.py's answers")
    p.add_argument("--check", metavar="FOLDER")
    p.add_argument("--expect", metavar="FOLDER")
    p.add_argument("--write-known", metavar="FOLDER")
    a = p.parse_args()
    if a.check or a.write_known:
        engine = E.Engine(a.engine, a.model, a.dtype, a.threads, a.processes)
        return check(engine, a.check) if a.check else write_known(engine, a.write_known)
    if a.expect:
        return expect(a.engine, a.model, a.expect, a.clips_max)
    if a.reference:
        return against_reference(a.engine, a.model, a.clips, a.reference, a.out)
    if not a.report:
        name = f"quality-{datetime.date.today()}"
        a.report = os.path.join(a.out, name) if a.clips_max or a.policies else os.path.join(E.ROOT, "docs/measurements", name)
    return study(a)


if __name__ == "__main__":
    sys.exit(main())
