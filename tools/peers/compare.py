#!/usr/bin/env python3
"""The engine against llama.cpp and ik_llama.cpp: equal sizes, bf16, equal threads, one machine, interleaved.

usage: compare.py [--omnidrop "COMMAND"] [--llama-bench PATH] [--ik-bench PATH] [--gguf FILE]
                  [--tests prefill_512,prefill_8192,decode_0] [--rounds 5] [--threads N] [--out FILE.md]

In each round every test is run by every program in turn (A B C, A B C, ...), each run a process of its own,
so that a change of the clock or of the memory's speed during the minutes this takes falls on all alike. A
program's figure is the median over the rounds, in tokens/s. A ratio is the median of the ratios within the
rounds, next to its least and its largest. The share of the CPU that others had during the runs is measured
and printed: figures of a busy machine say so themselves. A program that is missing or fails is named, the
others go on.

The engine's bench writes a list of {"name","value","unit",...} (`--only TEST --json FILE`); llama-bench
prints JSON with the samples of each test. Without --gguf a model of the 0.5B shape is made next to the peer's
program.
Needs Python 3.9 or newer and nothing else. Exit: 0 table printed, 1 no program ran, 2 bad arguments.
"""
import argparse
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MODEL_NAME = "qwen2-0.5b-random.gguf"
UNITS = ("tokens/s", "tok/s", "t/s")
N_GEN = 64                          # tokens of one decode run
# Weights of the 0.5B shape: embedding, last norm, and 24 layers of norms, q/k/v with biases, output, MLP.
N_PARAMS = 151936 * 896 + 896 + 24 * (2 * 896 + (896 + 2 * 128) * (896 + 1) + 896 * 896 + 3 * 896 * 4864)
# ik_llama.cpp counts the tied embedding a second time, as the head.
N_PARAMS_KNOWN = (N_PARAMS, N_PARAMS + 151936 * 896)
RUN_SECONDS_MAX = 1800
# The least ratio that the engine has to reach: (test, peer) -> ratio.
FLOORS = {("prefill_512", "llama.cpp"): 1.6, ("prefill_8192", "llama.cpp"): 2.5,
          ("decode_0", "llama.cpp"): 1.05,
          ("prefill_512", "ik_llama.cpp"): 1.2, ("prefill_2048", "ik_llama.cpp"): 1.2,
          ("prefill_8192", "ik_llama.cpp"): 1.2, ("decode_0", "ik_llama.cpp"): 1.0}


class RunError(Exception):
    """One run of one program gave no figure; the text says why."""


def call(argv):
    """Run a command to its end and return its standard output."""
    try:
        p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=RUN_SECONDS_MAX,
                           encoding="utf-8", errors="replace")
    except OSError as e:
        raise RunError(f"cannot start {argv[0]}: {e.strerror}")
    except subprocess.TimeoutExpired:
        raise RunError(f"no end after {RUN_SECONDS_MAX} s: {shlex.join(argv)}")
    if p.returncode:
        tail = " / ".join((p.stderr or p.stdout).strip().splitlines()[-3:])
        raise RunError(f"exit {p.returncode}: {shlex.join(argv)}: {tail}")
    return p.stdout


class Engine:
    """The engine's own bench."""
    name = "omnidrop"

    def __init__(self, command, threads):
        self.argv = [w.replace("{threads}", str(threads)) for w in shlex.split(command)]
        self.version = git_version()

    def command(self, test, out="FILE"):
        return self.argv + ["--only", test, "--json", out]

    def run(self, test):
        """Tokens/s of one test."""
        with tempfile.TemporaryDirectory() as d:
            out = os.path.join(d, "bench.json")
            call(self.command(test, out))
            try:
                with open(out, encoding="utf-8") as f:
                    rows = [r for r in json.load(f) if r["name"] == test]
            except (OSError, ValueError, TypeError, KeyError) as e:
                raise RunError(f"{shlex.join(self.argv)} wrote no list of results: {e!r}")
        if len(rows) != 1:
            raise RunError(f"{len(rows)} results named {test}, 1 is needed")
        if rows[0].get("unit") not in UNITS:
            raise RunError(f"{test} is in {rows[0].get('unit')!r}, one of {', '.join(UNITS)} is needed")
        return positive(rows[0].get("value"), test)


class Peer:
    """A llama-bench program; both peers have the same interface but for the flags."""

    def __init__(self, name, path, gguf, threads, flags):
        self.name, self.path, self.threads = name, path, threads
        self.argv = [path, "-m", gguf, "-t", str(threads), "-fa", "1", "-o", "json"] + flags
        self.version = "not known"

    def command(self, test):
        """One test of llama-bench: its warm-up, then 3 repetitions (1 when the prompt is long)."""
        n = 0 if test == "decode_0" else int(test.split("_")[1])
        return self.argv + ["-p", str(n), "-n", str(0 if n else N_GEN), "-r", "1" if n >= 4096 else "3"]

    def run(self, test):
        """Tokens/s of one test, the median of its repetitions."""
        text = call(self.command(test))
        try:
            rows = json.loads(text[text.index("["):])     # a line of notes may stand before the list
            row, = rows
            samples = [positive(s, test) for s in row["samples_ts"]]
            value = statistics.median(samples)
            self.version = f"{row['build_commit']} (build {row['build_number']})"
            threads, model, n_params = row["n_threads"], row["model_type"], row["model_n_params"]
        except (ValueError, TypeError, KeyError, statistics.StatisticsError) as e:
            raise RunError(f"{self.path} printed no result for {test}: {e!r}")
        if threads != self.threads:
            raise RunError(f"{self.path} ran on {threads} threads, {self.threads} were asked for")
        if "BF16" not in model.upper() or n_params not in N_PARAMS_KNOWN:
            raise RunError(f"{self.path} ran a model of type {model!r} with {n_params} weights, BF16 with "
                           f"{N_PARAMS} is needed: make one with make_gguf.py")
        return value


def positive(v, test):
    if isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < float("inf"):
        raise RunError(f"{test} is {v!r}, a positive number is needed")
    return float(v)


def git_version():
    """The engine's commit, with -dirty where files differ from it."""
    try:
        p = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=9"],
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
        return p.stdout.strip() or "not known"
    except OSError:
        return "not known"


class Meter:
    """The share of all CPUs that others had while a program ran: processes, interrupts, the host (steal)."""

    def __init__(self):
        self.shares = []

    @staticmethod
    def now():
        tick = os.sysconf("SC_CLK_TCK")
        try:
            with open("/proc/stat", encoding="ascii") as f:
                # user nice system idle iowait irq softirq steal
                t = [int(x) / tick for x in f.readline().split()[1:9]]
        except (OSError, ValueError):
            return None
        ours = sum(sum(resource.getrusage(who)[:2])
                   for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))
        return sum(t), sum(t) - t[3] - t[4], ours

    def measure(self, f, *args):
        a = self.now()
        try:
            return f(*args)
        finally:
            b = self.now()
            if a and b and b[0] > a[0]:
                self.shares.append(max(0.0, (b[1] - a[1] - (b[2] - a[2])) / (b[0] - a[0])))


def cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            m = re.search(r"^model name\s*:\s*(.*)$", f.read(), re.M)
        return m.group(1) if m else platform.machine()
    except OSError:
        return platform.machine()


def number(x):
    return f"{x:.0f}" if x >= 200 else f"{x:.1f}"


def ratio_cells(test, engine, peer, values):
    """[ratio with its range, floor, reached] of the rounds in which both ran."""
    floor = FLOORS.get((test, peer.name))
    need = f"{floor:.2f}" if floor else "-"
    pairs = [x / y for x, y in zip(values[engine.name, test], values[peer.name, test]) if x and y]
    if not pairs:
        return ["-", need, "-"]
    mid = statistics.median(pairs)
    met = "-" if not floor else "yes" if mid >= floor else "no"
    return [f"{mid:.2f} ({min(pairs):.2f} to {max(pairs):.2f})", need, met]


def table(head, rows):
    lines = [head, ["---"] * len(head)] + rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(a, programs, values, notes, meter, started):
    """The whole page as markdown."""
    engine = next((p for p in programs if p.name == "omnidrop"), None)
    peers = [p for p in programs if p is not engine]
    head = ["test"] + [p.name for p in programs]
    for p in peers if engine else []:
        head += [f"against {p.name}", "floor", "reached"]
    rows = []
    for test in a.tests:
        row = [test]
        for p in programs:
            got = [v for v in values[p.name, test] if v]
            row.append(number(statistics.median(got)) if got else "-")
        for p in peers if engine else []:
            row += ratio_cells(test, engine, p, values)
        rows.append(row)

    out = [f"# Against the peers, {time.strftime('%Y-%m-%d', time.gmtime(started))}", "",
           "A text decoder of the 0.5B shape (24 layers, d 896, ff 4864, 14/2 heads of 64, vocabulary 151936",
           f"tied) with random bf16 weights, {a.threads} threads, {a.rounds} interleaved rounds. Tokens/s,",
           "median; a ratio is the median (least to largest) of the ratios within the rounds. Written by",
           "`tools/peers/compare.py`.", "",
           table(head, rows), "", "Programs:", ""]
    for p in programs:
        path = os.path.abspath(p.argv[0])
        name = os.path.relpath(path, ROOT) if path.startswith(ROOT + os.sep) else os.path.basename(path)
        words = [name] + [os.path.basename(w) if w.endswith(".gguf") else w
                          for w in p.command(a.tests[0])[1:]]
        out.append(f"- {p.name} {p.version}: `{shlex.join(words)}` and so on")
    out += ["", f"Machine: {cpu_name()}, {os.cpu_count()} CPUs, Linux {platform.release()}.",
            f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(started))} UTC, {time.time() - started:.0f} s."]
    if meter.shares:
        out += ["Share of the CPUs that others (processes, interrupts, the host) had during a run: median "
                f"{100 * statistics.median(meter.shares):.1f} %, largest {100 * max(meter.shares):.1f} %."]
    if notes:
        out += ["", "Notes:", ""] + [f"- {n}" for n in notes]
    out += ["", "Each round, tokens/s:", "",
            table(["test", "program"] + [str(r + 1) for r in range(a.rounds)],
                  [[t, p.name] + [number(v) if v else "-" for v in values[p.name, t]]
                   for t in a.tests for p in programs])]
    return "\n".join(out) + "\n"


def default_engine():
    for path in ("build/bench", "build/tests/bench"):
        if os.access(os.path.join(ROOT, path), os.X_OK):
            return shlex.quote(os.path.join(ROOT, path))
    return None


def is_program(path):
    return bool(path) and os.path.isfile(path) and os.access(path, os.X_OK)


def find_programs(a, notes):
    """The programs that are there, in the order of the rounds; the others are named in notes."""
    programs = []
    command = a.omnidrop or default_engine()
    if command and shlex.split(command) and is_program(shlex.split(command)[0]):
        programs.append(Engine(command, a.threads))
        if "{threads}" not in command and a.threads != os.cpu_count():
            notes.append(f"omnidrop was not told to use {a.threads} threads: put {{threads}} into --omnidrop")
    else:
        notes.append(f"omnidrop: no program {command}" if command else
                     "omnidrop: neither build/bench nor build/tests/bench is there: run `make bench`")
    for name, option, path, flags in (("llama.cpp", "--llama-bench", a.llama_bench, []),
                                      ("ik_llama.cpp", "--ik-bench", a.ik_bench,
                                       ["-rtr", "1", "-thp", "1", "-mmp", "0"])):
        if is_program(path):
            programs.append(Peer(name, path, a.gguf, a.threads, flags))
        else:
            notes.append(f"{name}: no program {path}" if path else f"{name}: {option} was not given")
    return programs


def make_model(a):
    """Make sure that a.gguf names a file when a peer needs one."""
    bench = next((p for p in (a.llama_bench, a.ik_bench) if is_program(p)), None)
    if not bench:
        return
    if not a.gguf:
        a.gguf = os.path.join(os.path.dirname(os.path.abspath(bench)), MODEL_NAME)
    if not os.path.exists(a.gguf):
        print(f"making {a.gguf}", file=sys.stderr)
        try:
            call([sys.executable, os.path.join(HERE, "make_gguf.py"), a.gguf])
        except RunError as e:
            sys.exit(f"compare.py: {e}")


def arguments(argv=None):
    p = argparse.ArgumentParser(description="the engine against llama.cpp and ik_llama.cpp, interleaved")
    p.add_argument("--omnidrop", metavar="COMMAND",
                   help="the engine's bench, with arguments if it needs any; {threads} becomes the number of "
                   "threads (build/bench when not given)")
    p.add_argument("--llama-bench", metavar="PATH", help="llama-bench of llama.cpp")
    p.add_argument("--ik-bench", metavar="PATH", help="llama-bench of ik_llama.cpp")
    p.add_argument("--gguf", metavar="FILE", help="the model of the peers; made when it is not there")
    p.add_argument("--tests", default="prefill_512,prefill_8192,decode_0",
                   help="prefill_N and decode_0, with commas")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="one for each CPU when not given")
    p.add_argument("--out", metavar="FILE.md", help="write the page there too")
    a = p.parse_args(argv)
    if a.rounds < 1 or a.threads < 1:
        p.error(f"--rounds {a.rounds} and --threads {a.threads}: at least 1 is needed")
    a.tests = a.tests.split(",")
    for t in a.tests:
        if t != "decode_0" and not re.fullmatch(r"prefill_[1-9][0-9]*", t):
            p.error(f"--tests: {t!r} is neither decode_0 nor prefill_N")
    return a


def main():
    a = arguments()
    started = time.time()
    make_model(a)
    notes, meter = [], Meter()
    programs = find_programs(a, notes)
    values = {(p.name, t): [None] * a.rounds for p in programs for t in a.tests}
    failed = set()
    for r in range(a.rounds):
        for test in a.tests:
            for p in programs:
                if (p.name, test) in failed:
                    continue
                try:
                    values[p.name, test][r] = meter.measure(p.run, test)
                    shown = number(values[p.name, test][r])
                    print(f"round {r + 1}/{a.rounds} {test} {p.name}: {shown} tokens/s", file=sys.stderr)
                except RunError as e:
                    failed.add((p.name, test))
                    notes.append(f"{p.name}, {test}, from round {r + 1} on: {e}")
                    print(f"compare.py: {notes[-1]}", file=sys.stderr)
    if not any(v for rounds in values.values() for v in rounds):
        sys.exit("compare.py: no program ran\n" + "\n".join("  " + n for n in notes))
    page = report(a, programs, values, notes, meter, started)
    print(page, end="")
    if a.out:
        with open(a.out, "w", encoding="utf-8") as f:
            f.write(page)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
