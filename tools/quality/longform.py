"""longform.py - long speech of the world of tools/omni_tiny with its truth, and how `omnidrop transcribe` does on it.

    python tools/quality/longform.py make -o long10.flac --seconds 600 --seed 101 --bank bank
        writes the sound (.wav, .flac; .m4a, .opus by ffmpeg) and long10.truth.json: each word with its first and last sample
    python tools/quality/longform.py measure long10.flac --markdown docs/measurements/longform-DATE.md --json figures.json
        [--window 8 --overlap 2] [--sweep window=4,6,8 overlap=0.5,1,2] [--no-kill] [--faults]

The speech: pieces of one speaker out of the held-out takes (`say`), one speaker after another, pauses of 0.05 to 2 s between
them, gain and noise (`add_noise`) new in every half minute to minute.

What is measured, per file:
    WER            (substitutions + deletions + insertions) / words of the truth, after Levenshtein; of alignments equally
                   good the one whose words lie nearest in time
    at seams       of words within 1 s of a cut; at clean and at hard cuts; away: of all others. An inserted word counts where
                   the nearer of its two neighbours stands
    faults         (--faults; from the raw text of each window, which the journal holds) at hard cuts: words that one or both
                   windows heard right and the joined text lost; words it says twice
    segment times  start and end of a segment against the truth of its first and last word, where the text has them right: the
                   distance to the word, and to the pause beside it (0 inside the pause). By the segment's label
    RTF, memory    wall time over the length of the sound, and the peak of resident memory (getrusage of the process)
    kill           SIGKILL when half of the windows are in the journal, then --resume: the same bytes as undisturbed
"""
import argparse, hashlib, json, os, shutil, signal, subprocess, sys, tempfile, time

import numpy as np

RATE = 16000
NEAR = 1.0                                         # seconds around a cut
HERE = os.path.dirname(os.path.abspath(__file__))


# ---------------------------------------------------------------- sound

def hurry(wave, marks, most, rng):
    """The same words with pauses of 40 ms to `most` seconds."""
    parts, out, n = [], [], 0
    for word, first, last in marks:
        gap = int(rng.uniform(0.04, most) * RATE)
        parts += [np.zeros(gap, np.float32), wave[first:last]]
        out.append((word, n + gap, n + gap + last - first))
        n += gap + last - first
    return np.concatenate(parts), out


def compose(bank, rng, seconds, most=None):
    """Wave and words [(word, first, last sample)] of about `seconds`; with `most` no pause is longer."""
    sys.path.insert(0, os.path.join(HERE, "..", "omni_tiny"))
    import world
    chapters, words, at = [], [], 0
    while at < seconds * RATE:
        parts, length = [], min(rng.uniform(30, 60) * RATE, seconds * RATE - at)
        n = 0
        while n < length:
            wave, marks = world.say(bank, rng, min(rng.uniform(3, 18), max(2.0, (length - n) / RATE)))
            pause = np.zeros(0 if most else int(0.05 * 40 ** rng.random() * RATE), np.float32)
            if most:
                wave, marks = hurry(wave, marks, most, rng)
            words += [(w, at + n + int(a), at + n + int(b)) for w, a, b in marks]
            parts += [wave, pause]
            n += len(wave) + len(pause)
        chapters.append(world.add_noise(np.concatenate(parts), rng))
        at += n
    return np.concatenate(chapters), words


def truth_path(sound):
    return os.path.splitext(sound)[0] + ".truth.json"


def make(a):
    import soundfile
    sys.path.insert(0, os.path.join(HERE, "..", "omni_tiny"))
    import world
    rng = np.random.default_rng([a.seed, 77])
    os.makedirs(a.bank, exist_ok=True)
    wave, words = compose(world.SpeechBank(a.bank, a.split), rng, a.seconds, a.most_gap)
    if a.output.endswith((".wav", ".flac")):
        soundfile.write(a.output, wave, RATE, subtype="PCM_16")
    else:
        with tempfile.TemporaryDirectory() as tmp:
            soundfile.write(tmp + "/x.wav", wave, RATE, subtype="PCM_16")
            subprocess.run(["ffmpeg", "-y", "-loglevel", "error", "-i", tmp + "/x.wav", "-b:a", a.bitrate, a.output], check=True)
    with open(truth_path(a.output), "w") as f:
        rows = ",\n".join(json.dumps([w, first, last]) for w, first, last in words)
        f.write(f'{{"rate": {RATE}, "samples": {len(wave)}, "seed": {a.seed}, "words": [\n{rows}]}}\n')
    gaps = np.diff([x for _, first, last in words for x in (first, last)])[1::2] / RATE
    print(f"{a.output}: {len(wave) / RATE:.1f} s, {len(words)} words, gaps under 0.2 s: {np.mean(gaps < 0.2):.0%}")


# ---------------------------------------------------------------- alignment

def align(hyp, ref, hyp_at, ref_at):
    """Levenshtein with backtrace: [(i or None, j or None)] in order. Times in seconds decide between equals."""
    far = 1e-4                                     # of an edit, a second
    n, m = len(hyp), len(ref)
    ids = {w: k for k, w in enumerate(dict.fromkeys(list(hyp) + list(ref)))}
    h, r = np.array([ids[w] for w in hyp], int), np.array([ids[w] for w in ref], int)
    ha, ra = np.array(hyp_at, float), np.array(ref_at, float)
    cost = np.empty((n + 1, m + 1), np.float32 if n * m > 4e7 else np.float64)
    step = np.arange(m + 1, dtype=float)
    cost[0] = step
    for i in range(1, n + 1):
        here = np.empty(m + 1)
        here[0] = i
        away = np.minimum(np.abs(ha[i - 1] - ra), 100) * far
        here[1:] = np.minimum(cost[i - 1, :-1] + (h[i - 1] != r) + away, cost[i - 1, 1:] + 1)
        cost[i] = np.minimum.accumulate(here - step) + step
    out, i, j = [], n, m
    while i or j:
        if i and j:
            diagonal = cost[i - 1, j - 1] + (h[i - 1] != r[j - 1]) + min(abs(ha[i - 1] - ra[j - 1]), 100) * far
        else:
            diagonal = np.inf
        up, left = cost[i - 1, j] + 1 if i else np.inf, cost[i, j - 1] + 1 if j else np.inf
        if diagonal <= up + 1e-5 and diagonal <= left + 1e-5:
            i, j = i - 1, j - 1
            out.append((i, j))
        elif up <= left:
            i -= 1
            out.append((i, None))
        else:
            j -= 1
            out.append((None, j))
    return out[::-1]


# ---------------------------------------------------------------- the engine

RUN = """import json, os, sys, time
t = time.monotonic()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, use = os.wait4(pid, 0)
print(json.dumps({"code": os.waitstatus_to_exitcode(status), "wall_s": time.monotonic() - t, "peak_mb": use.ru_maxrss / 1024,
                  "cpu_s": use.ru_utime + use.ru_stime}))"""


def command(a, sound, out, window, overlap):
    c = [a.omnidrop, "transcribe", "-F", "json", "-o", out, "-j", str(a.jobs), "--progress", "none"]
    c += ["-m", a.model] if a.model else []
    c += ["--window", str(window)] if window else []
    c += ["--overlap", str(overlap)] if overlap is not None else []
    return c + a.option + [sound]


def run(a, sound, out, window, overlap, journal=None):
    """Transcribe to the file `out`; figures. journal: a path that the journal is kept under."""
    # A small process between: what a child's peak memory says includes its parent's at the time of exec.
    p = subprocess.Popen([sys.executable, "-S", "-c", RUN] + command(a, sound, out, window, overlap), stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    while journal and p.poll() is None and not os.path.exists(journal):
        try:
            os.link(out + ".odj", journal)
        except OSError:
            time.sleep(0.02)
    said, err = p.communicate()
    figures = json.loads(said)
    if figures["code"] not in (0, 5):
        sys.exit(f"{sound}: exit status {figures['code']}: {err}")
    return figures


def plan(a, sound, window, overlap):
    c = [a.omnidrop, "inspect", "media", "--json", sound] + (["-m", a.model] if a.model else [])
    c += (["--window", str(window)] if window else []) + (["--overlap", str(overlap)] if overlap is not None else [])
    return json.loads(subprocess.run(c, check=True, capture_output=True, text=True).stdout)["windows"]


def kill_and_resume(a, sound, want, window, overlap, n_windows):
    """SIGKILL in the middle, --resume: (windows that the journal held, the same bytes?)"""
    with tempfile.TemporaryDirectory() as tmp:
        out = os.path.join(tmp, os.path.basename(want))
        p = subprocess.Popen(command(a, sound, out, window, overlap), stderr=subprocess.DEVNULL)
        lines = 0
        while p.poll() is None and lines < n_windows // 2:
            time.sleep(0.01)
            if os.path.exists(out + ".odj"):
                with open(out + ".odj", "rb") as f:
                    lines = f.read().count(b'{"window"')
        p.send_signal(signal.SIGKILL)
        p.wait()
        if p.returncode != -signal.SIGKILL:
            return {"killed": False, "same": False}
        again = subprocess.run(command(a, sound, out, window, overlap) + ["--resume"], capture_output=True, text=True)
        with open(want, "rb") as x, open(out, "rb") as y:
            same = again.returncode in (0, 5) and x.read() == y.read()
        return {"killed": True, "after_windows": lines, "of": n_windows, "same": same}


# ---------------------------------------------------------------- figures

def hypothesis(result):
    """Words of the segments, with the segment's number and a time by their place in it."""
    words, segment, at = [], [], []
    for k, s in enumerate(result["segments"]):
        if s.get("gap") or s["text"].startswith("[untranscribed"):
            continue
        own = s["text"].lower().replace(",", " ").replace(".", " ").split()
        for i, w in enumerate(own):
            words.append(w)
            segment.append(k)
            at.append(s["start"] + (s["end"] - s["start"]) * (i + 0.5) / len(own))
    return words, segment, at


def shares(errors, counts):
    return {k: {"errors": int(errors[k]), "words": int(counts[k]), "wer": errors[k] / max(counts[k], 1)} for k in counts}


def percentiles(x):
    if len(x) == 0:
        return {"n": 0, "median": None, "p95": None}
    return {"n": len(x), "median": float(np.median(x)), "p95": float(np.percentile(x, 95))}


def judge(result, planned, truth):
    """All figures of one result."""
    words = truth["words"]
    ref, starts = [w for w, _, _ in words], np.array([s for _, s, _ in words]) / RATE
    ends = np.array([e for _, _, e in words]) / RATE
    hyp, segment, at = hypothesis(result)
    pairs = align(hyp, ref, at, (starts + ends) / 2)
    cuts = [(w["end"], w["clean_end"]) for w in planned["list"][:-1]]
    clean, hard = (np.array([t for t, c in cuts if c == kind]) for kind in (True, False))

    def distance(j, where):
        if len(where) == 0:
            return np.inf
        return float(np.min(np.maximum(0, np.maximum(starts[j] - where, where - ends[j]))))
    near = [("hard", distance(j, hard)) if distance(j, hard) <= distance(j, clean) else ("clean", distance(j, clean))
            for j in range(len(ref))]
    place = [kind if d <= NEAR else "away" for kind, d in near]
    errors, counts = (dict.fromkeys(("all", "seams", "clean", "hard", "away"), 0) for _ in range(2))
    kinds = {"substituted": 0, "deleted": 0, "inserted": 0}
    wrong = []

    def add(table, j):
        table["all"] += 1
        table[place[j]] += 1
        if place[j] != "away":
            table["seams"] += 1
    for j in range(len(ref)):
        add(counts, j)
    last = -1
    for i, j in pairs:
        if j is not None:
            last = j
        if i is not None and j is not None and hyp[i] == ref[j]:
            continue
        if j is None:                              # beside the neighbour that is nearer a cut
            j = min((k for k in (last, last + 1) if 0 <= k < len(ref)), key=lambda k: near[k][1])
            kinds["inserted"] += 1
        else:
            kinds["deleted" if i is None else "substituted"] += 1
        add(errors, j)
        wrong.append((round(float(starts[j]), 2), place[j], ref[j], None if i is None else hyp[i]))
    right = {i: j for i, j in pairs if i is not None and j is not None and hyp[i] == ref[j]}
    word, pause = {}, {}
    for k, s in enumerate(result["segments"]):
        first, final = (int(i) for i in (np.searchsorted(segment, k), np.searchsorted(segment, k, "right") - 1))
        if final < first:
            continue
        if first in right:
            j, t = right[first], s["start"]
            low = ends[j - 1] if j else 0
            for key in ("all", s["timing"]):
                word.setdefault(key, []).append(abs(t - starts[j]))
                pause.setdefault(key, []).append(max(0, low - t, t - starts[j]))
        if final in right:
            j, t = right[final], s["end"]
            high = starts[j + 1] if j + 1 < len(ref) else truth["samples"] / RATE
            for key in ("all", s["timing"]):
                word.setdefault(key, []).append(abs(t - ends[j]))
                pause.setdefault(key, []).append(max(0, ends[j] - t, t - high))
    seams = [w.get("seam") for w in result["omnidrop"]["windows"]]
    return {"wer": shares(errors, counts), **kinds, "cuts": {"clean": len(clean), "hard": len(hard)},
            "seams": {k: seams.count(k) for k in ("matched", "unmatched")},
            "failed_windows": len(result["omnidrop"]["failed_windows"]),
            "times": {k: {"word": percentiles(word[k]), "pause": percentiles(pause[k])} for k in word}, "wrong": wrong}


def faults(journal, result, planned, truth):
    """Words at hard cuts that stitching lost or said twice, by the raw text of both sides."""
    words = truth["words"]
    ref, mid = [w for w, _, _ in words], np.array([(s + e) / 2 / RATE for _, s, e in words])
    raw = {}
    with open(journal) as f:
        for line in f:
            row = json.loads(line)
            if "window" in row and "text" in row:
                raw[row["window"]] = row["text"].lower().replace(",", " ").replace(".", " ").split()
    hyp, _, at = hypothesis(result)
    pairs = align(hyp, ref, at, mid)
    said = {j for i, j in pairs if i is not None and j is not None and hyp[i] == ref[j]}
    extra = {}                                     # inserted words, by the truth's word before them
    last = -1
    for i, j in pairs:
        last = last if j is None else j
        if j is None:
            extra.setdefault(last, []).append(hyp[i])
    out = {"lost_of_both": 0, "lost_of_one": 0, "twice": 0, "list": []}
    windows = planned["list"]
    for k in range(len(windows) - 1):
        l, r = windows[k], windows[k + 1]
        if l["clean_end"] or k not in raw or k + 1 not in raw:
            continue
        heard = []
        for w, text in ((l, raw[k]), (r, raw[k + 1])):
            own = [j for j in range(len(ref)) if w["hear_start"] <= mid[j] < w["hear_end"]]
            t = np.linspace(w["hear_start"], w["hear_end"], 2 * len(text) + 1)[1::2]
            heard.append({own[j] for i, j in align(text, [ref[x] for x in own], t, mid[own])
                          if i is not None and j is not None and text[i] == ref[own[j]]} if own else set())
        zone = [j for j in range(len(ref)) if r["hear_start"] - 0.5 <= mid[j] <= l["hear_end"] + 0.5]
        both = [j for j in zone if j not in said and j in heard[0] and j in heard[1]]
        one = [j for j in zone if j not in said and (j in heard[0]) != (j in heard[1])]
        twice = [w for j in zone for w in extra.get(j, []) if w in (ref[max(0, j - 1):j + 3])]
        out["lost_of_both"] += len(both)
        out["lost_of_one"] += len(one)
        out["twice"] += len(twice)
        if both or one or twice:
            seam = result["omnidrop"]["windows"][k + 1].get("seam")
            out["list"].append({"cut": l["end"], "hear": [r["hear_start"], l["hear_end"]], "seam": seam,
                                "both": [ref[j] for j in both], "one": [ref[j] for j in one], "twice": twice,
                                "left": raw[k][-5:], "right": raw[k + 1][:5],
                                "truth": [(ref[j], round(words[j][1] / RATE, 2), round(words[j][2] / RATE, 2)) for j in zone]})
    return out


def measure_one(a, sound, window, overlap, kill, tmp):
    with open(truth_path(sound)) as f:
        truth = json.load(f)
    out, journal = os.path.join(tmp, "out.json"), os.path.join(tmp, "journal") if a.faults else None
    for path in (out, journal or out):
        if os.path.exists(path):
            os.remove(path)
    figures = run(a, sound, out, window, overlap, journal)
    with open(out) as f:
        result = json.load(f)
    planned = plan(a, sound, window, overlap)
    seconds = truth["samples"] / RATE
    row = {"file": os.path.basename(sound), "seconds": seconds, "window": planned["window_s"], "overlap": planned["overlap_s"],
           "n_windows": len(planned["list"]), **figures, "rtf": figures["wall_s"] / seconds, **judge(result, planned, truth)}
    if journal:
        row["faults"] = faults(journal, result, planned, truth)
    if kill:
        row["kill"] = kill_and_resume(a, sound, out, window, overlap, len(planned["list"]))
    return row


# ---------------------------------------------------------------- tables

def percent(x):
    return f"{100 * x['wer']:.1f} % ({x['errors']}/{x['words']})"


def seconds_of(x):
    return "-" if x["n"] == 0 else f"{x['median']:.2f}, {x['p95']:.2f}"


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + ["| " + " | ".join(r) + " |" for r in rows]) + "\n"


def markdown(rows, sweep, model, argv):
    out = [f"# Long form, measured on {time.strftime('%Y-%m-%d')}\n",
           f"`python tools/quality/longform.py {argv}`; the held-out takes of the world of omni-tiny, weights {model}. What each column "
           "means stands at the head of that file. WER with errors and words.\n",
           "## Words\n",
           table(["file", "window, overlap", "cuts clean, hard", "WER", "within 1 s of a cut", "of a clean one", "of a hard one", "away"],
                 [[f"{r['file']}, {r['seconds']:.0f} s", f"{r['window']:g}, {r['overlap']:g} s",
                   f"{r['cuts']['clean']}, {r['cuts']['hard']}"] +
                  [percent(r["wer"][k]) for k in ("all", "seams", "clean", "hard", "away")] for r in rows]),
           "## Segment times, speed, memory, kill and resume\n",
           "Seconds, median and 95th percentile, of starts and ends together: to the word; to the pause beside it.\n",
           table(["file", "bounds", "to the word", "to the pause", "exact: pause", "snapped: pause", "interpolated: pause", "RTF",
                  "peak MB", "SIGKILL"],
                 [[r["file"], str(r["times"]["all"]["word"]["n"])] + [seconds_of(r["times"]["all"][k]) for k in ("word", "pause")] +
                  [seconds_of(r["times"][k]["pause"]) if k in r["times"] else "-" for k in ("exact", "snapped", "interpolated")] +
                  [f"{r['rtf']:.4f}", f"{r['peak_mb']:.0f}",
                   "-" if "kill" not in r else f"after {r['kill'].get('after_windows')} of {r['n_windows']} windows: " +
                   ("the same bytes" if r["kill"]["same"] else "OTHER BYTES")] for r in rows])]
    if any("faults" in r for r in rows):
        out += ["## Stitching at hard cuts\n",
                table(["file", "hard cuts", "matched", "unmatched", "lost, both heard it", "lost, one did", "said twice"],
                      [[r["file"], str(r["cuts"]["hard"]), str(r["seams"]["matched"]), str(r["seams"]["unmatched"])] +
                       [str(r["faults"][k]) for k in ("lost_of_both", "lost_of_one", "twice")] for r in rows if "faults" in r])]
    if sweep:
        out += ["## Window and overlap\n",
                table(["file", "window", "overlap", "cuts clean, hard", "WER", "near hard", "near clean", "away", "RTF"],
                      [[r["file"], f"{r['window']:g}", f"{r['overlap']:g}", f"{r['cuts']['clean']}, {r['cuts']['hard']}"] +
                       [percent(r["wer"][k]) for k in ("all", "hard", "clean", "away")] + [f"{r['rtf']:.4f}"] for r in sweep])]
    return "\n".join(out)


def weights_of(a):
    path = os.path.join(a.model or os.path.join(HERE, "..", "..", "models", "omni-tiny"), "model.safetensors")
    if not os.path.exists(path):
        return "(several files)"
    with open(path, "rb") as f:
        return "sha256 " + hashlib.sha256(f.read()).hexdigest()[:16]


def said(a):
    """The command line without the places of this machine."""
    words = ["measure"] + [os.path.basename(f) for f in a.file]
    words += [f"--{k} {getattr(a, k):g}" for k in ("window", "overlap") if getattr(a, k) is not None]
    return " ".join(words + a.option + (["--faults"] if a.faults else []) + (["--sweep"] + a.sweep if a.sweep else []))


def grid_of(text):
    grid = {"window": [None], "overlap": [None]}
    for item in text or []:
        key, _, values = item.partition("=")
        if key not in grid or not values:
            sys.exit(f"--sweep {item}: give window=4,6,8 and overlap=1,2")
        grid[key] = [float(v) for v in values.split(",")]
    return [(w, o) for w in grid["window"] for o in grid["overlap"] if w is None or o is None or o <= w / 2]


def measure(a):
    rows, sweep, tmp = [], [], tempfile.mkdtemp()
    try:
        for sound in a.file:
            rows.append(measure_one(a, sound, a.window, a.overlap, a.kill, tmp))
            print(markdown(rows[-1:], [], "", ""), flush=True)
        for window, overlap in grid_of(a.sweep) if a.sweep else []:
            sweep.append(measure_one(a, a.file[0], window, overlap, False, tmp))
            r = sweep[-1]
            print(f"window {r['window']:g} overlap {r['overlap']:g}: " + ", ".join(f"{k} {percent(v)}" for k, v in r["wer"].items()),
                  flush=True)
    finally:
        shutil.rmtree(tmp)
    if a.json:
        with open(a.json, "w") as f:
            json.dump({"model": weights_of(a), "files": rows, "sweep": sweep}, f, indent=1)
    if a.markdown:
        with open(a.markdown, "w") as f:
            f.write(markdown(rows, sweep, weights_of(a), said(a)))
    return 0 if all(r.get("kill", {"same": True})["same"] for r in rows) else 1


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="what", required=True)
    m = sub.add_parser("make")
    m.add_argument("-o", "--output", required=True)
    m.add_argument("--seconds", type=float, default=600)
    m.add_argument("--most-gap", type=float, help="no pause is longer, so that every cut is a hard one")
    m.add_argument("--seed", type=int, default=101)
    m.add_argument("--bank", default="bank", help="folder of the cached speech")
    m.add_argument("--split", default="test")
    m.add_argument("--bitrate", default="48k", help="of .m4a and .opus")
    d = sub.add_parser("measure")
    d.add_argument("file", nargs="+", help="sounds that `make` wrote; the sweep takes the first")
    d.add_argument("--omnidrop", default=os.path.join(HERE, "..", "..", "build", "omnidrop"))
    d.add_argument("--model", default=None)
    d.add_argument("--window", type=float, default=None, help="default: the model's own")
    d.add_argument("--overlap", type=float, default=None)
    d.add_argument("--jobs", type=int, default=4)
    d.add_argument("--option", action="append", default=[], help="any other option of transcribe, as --option=--policy=none")
    d.add_argument("--no-kill", dest="kill", action="store_false")
    d.add_argument("--faults", action="store_true")
    d.add_argument("--sweep", nargs="+", metavar="KEY=VALUES")
    d.add_argument("--json")
    d.add_argument("--markdown")
    a = p.parse_args()
    sys.exit(make(a) if a.what == "make" else measure(a))


if __name__ == "__main__":
    main()
