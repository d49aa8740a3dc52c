#!/usr/bin/env python3
"""make gpu-check: the CUDA backend on this machine's GPU, built, proven and measured in under ten minutes.

Stages run in order, what fails is named and does not stop the rest, every stage says its seconds; all of it is in gpu-check.json
and, as Markdown for docs/measurements, in gpu-check.md beside it. A stage alone (--stage kernels) keeps the others' results.

  build      what is needed of the engine, for this GPU's architecture alone; libraries that are missing are said
  kernels    each kernel on the device against the CPU's op or double precision: tests/kernels/test_cuda_*.c
  sanitizer  the same programs under compute-sanitizer: memcheck, racecheck
  goldens    build/tests/golden --device cuda
  bench      each kernel against its floor; prefill, decode and towers of Qwen2.5-Omni-7B with random weights; pages, memory
  reference  Hugging Face transformers (sdpa) at the same sizes, and the same with the pruning in the textbook order
  nccl       the calls of omnidrop-nccl.so on one rank, and a decoder of one rank through it

--device simt goes through all of it without a GPU: kernels thread for thread on the CPU, goldens and measurements on the CPU at
tiny sizes, the reference in PyTorch on the CPU. Nothing that it measures means anything.
Exit status: 0 all passed, 1 something failed, 2 nothing could be run. Standard library alone; PyTorch is reference.py's.
"""
import argparse
import concurrent.futures
import datetime
import glob
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import floors  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Seconds that a stage may take; together under ten minutes.
LIMITS = dict(build=115, kernels=50, sanitizer=90, goldens=60, bench=140, reference=110, nccl=20)
STAGES = list(LIMITS)


class Failed(Exception):
    """The stage cannot go on."""


def run(argv, seconds, env=None, out=None):
    """(status, text) of a command; 124 where it was ended because its time was over. out: called with each line as it comes. What
    does not even end when it is killed, as a process whose driver hangs, is left behind."""
    try:
        p = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=ROOT,
                             env=dict(os.environ, **(env or {})), start_new_session=True)
    except OSError as e:
        return 127, f"{argv[0]}: {e.strerror}"
    text = []

    def read():
        for line in p.stdout:
            text.append(line)
            if out:
                out(line.rstrip("\n"))
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        p.wait(max(seconds, 0.1))
        reader.join(5)
        return p.returncode, "".join(text)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
    reader.join(5)
    return 124, "".join(text)


def words(argv):
    status, text = run(argv, 20)
    return text.strip() if status == 0 else ""


# What the driver says of the first GPU: CUDA's version, name, compute capability, memory. For where there is no nvidia-smi.
ASK_DRIVER = """
import ctypes
cuda, v, d, a, b = ctypes.CDLL("libcuda.so.1"), *(ctypes.c_int() for _ in range(4))
m, name = ctypes.c_size_t(), ctypes.create_string_buffer(100)
assert cuda.cuInit(0) == 0 and cuda.cuDriverGetVersion(ctypes.byref(v)) == 0 and cuda.cuDeviceGet(ctypes.byref(d), 0) == 0
cuda.cuDeviceGetAttribute(ctypes.byref(a), 75, d), cuda.cuDeviceGetAttribute(ctypes.byref(b), 76, d)
cuda.cuDeviceGetName(name, 100, d), cuda.cuDeviceTotalMem_v2(ctypes.byref(m), d)
print(f"{v.value // 1000}.{v.value % 1000 // 10}|{name.value.decode()}|{a.value}.{b.value}|{m.value >> 20} MiB")
"""


def release(text):
    """"13.0" as something to compare; (0, 0): unknown."""
    m = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(m.group(1)), int(m.group(2))) if m else (0, 0)


class Check:
    def __init__(self, o):
        self.o = o
        self.simt = o.device == "simt"
        self.build = o.build if self.simt else os.path.join(o.build, "gpu")
        self.result = {}
        self.say_lock = threading.Lock()
        self.driver_cuda = self.nvcc_path = self.nvcc_release = self.nvcc_unfit = ""

    # ---- what there is ---------------------------------------------------------------------------------------

    def look(self):
        """The device and the versions; ends the program where there is no GPU."""
        d = dict(date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"), mode=self.o.device,
                 machine=f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs")
        said = [] if self.simt else words([sys.executable, "-c", ASK_DRIVER]).split("|")
        self.driver_cuda = said[0] if len(said) == 4 else ""
        query = "name,driver_version,compute_cap,memory.total,clocks.max.sm,clocks.sm,clocks.mem"
        gpu = "" if self.simt else words(["nvidia-smi", "--query-gpu=" + query, "--format=csv,noheader"]).split("\n")[0]
        if not gpu and len(said) == 4:
            gpu = ", ".join([said[1], "?", said[2], said[3], "?", "?", "?"])
        if not gpu and not self.simt:
            print("gpu-check: no GPU on this machine (neither nvidia-smi nor the driver knows one). `make gpu-check DEVICE=simt` goes through the same "
                  "stages on the CPU.", file=sys.stderr)
            sys.exit(2)
        if gpu:
            v = [x.strip() for x in gpu.split(",")]
            d.update(device=v[0], driver=f"{v[1]} (CUDA {self.driver_cuda or '?'})", capability=v[2], memory=v[3], clock_max=v[4], clock_sm=v[5], clock_mem=v[6])
        else:
            d.update(device="none: the CPU, thread for thread, tiny sizes", driver="-", capability="9.0")
        self.nvcc()
        d["versions"] = {"commit": words(["git", "rev-parse", "--short=12", "HEAD"]) or "unknown",
                         "nvcc": self.nvcc_release or "none", "gcc": words(["gcc", "-dumpfullversion"]),
                         "python": platform.python_version()}
        version = re.search(r"Version (\S+)", words([self.sanitizer(), "--version"]))
        d["versions"]["compute-sanitizer"] = version.group(1) if version else "none"
        return d

    def sanitizer(self):
        return shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"

    def arch(self):
        c = self.result["machine"]["capability"].replace(".", "")
        return c + "a" if c == "90" else c

    # ---- building --------------------------------------------------------------------------------------------

    def find_nvcc(self):
        """NVCC of the environment, else the one that is found first, else the newest, of those that are new enough for the kernels and
        not newer than what the driver runs."""
        first = [x for x in (os.environ.get("NVCC"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc") if x]
        for path in first + sorted(glob.glob("/usr/local/cuda-*/bin/nvcc"), reverse=True):
            m = re.search(r"release (\S+),", words([path, "--version"]))
            if not m:
                continue
            fits = release(m.group(1)) >= (12, 8) and (not self.driver_cuda or release(m.group(1))[0] <= release(self.driver_cuda)[0])
            if fits or not self.nvcc_path:
                self.nvcc_path, self.nvcc_release = path, m.group(1)
            if fits:
                return
        self.nvcc_unfit = f"nvcc {self.nvcc_release or 'is not there'}" + (
            f", and the driver runs CUDA {self.driver_cuda}: 12.8 or later is wanted, of a release that the driver runs (NVCC=path)"
            if self.driver_cuda else ": 12.8 or later is wanted (NVCC=path)")

    def nvcc(self):
        if not self.nvcc_path and not self.nvcc_unfit:
            self.find_nvcc()
        return self.nvcc_path or "nvcc"

    def toolkit(self):
        """The folder that has CUDA's headers and libraries: nvcc's own, or, where it lacks some that came with Python's packages, a
        folder of links to both."""
        root = os.path.dirname(os.path.dirname(os.path.realpath(self.nvcc())))
        wanted = ("cuda_runtime_api.h", "cublasLt.h", "nccl.h")
        if all(os.path.exists(f"{root}/include/{h}") for h in wanted) and os.path.exists(f"{root}/lib64/libcublasLt.so"):
            return root
        both = os.path.abspath(os.path.join(self.build, "toolkit"))
        packages = sysconfig.get_paths()["purelib"]
        for where in [root, root + "/targets/x86_64-linux"] + sorted(glob.glob(packages + "/nvidia/*")):
            for source, to in (("include", "include"), ("lib64", "lib64"), ("lib", "lib64")):
                for path in glob.glob(f"{where}/{source}/*"):
                    name = os.path.basename(path)
                    names = [name]
                    if to == "lib64":
                        if ".so" not in name and ".a" not in name:
                            continue
                        names.append(name.split(".so")[0] + ".so" if ".so" in name else name)
                    os.makedirs(f"{both}/{to}", exist_ok=True)
                    for n in names:
                        if not os.path.lexists(f"{both}/{to}/{n}"):
                            os.symlink(path, f"{both}/{to}/{n}")
        return both

    def make(self, targets, seconds):
        """Failed names what could not be made; what could is there. Returns what make said of missing libraries."""
        if self.o.no_make:
            return ""
        argv = [self.o.make, "-k", f"-j{os.cpu_count()}", "--no-print-directory", f"BUILD={self.build}"]
        if not self.simt:
            argv += [f"CU_ARCHS={self.arch()}", f"CUDA={self.toolkit()}", f"NVCC={self.nvcc()}"]
        status, text = run(argv + targets, seconds, env={"MAKEFLAGS": "", "MAKELEVEL": "0"})
        if status == 0:
            return text
        with open(os.path.join(self.o.build, "gpu-check-build.log"), "w") as f:
            f.write(text)
        lines = [x for x in text.splitlines() if re.search(r"error|\*\*\*|undefined reference|No rule", x)]
        why = "out of time" if status == 124 else "make failed"
        raise Failed(f"{why}; {self.o.build}/gpu-check-build.log: " + " | ".join(lines[:6]))

    def place(self, name):
        """A program of the build, also where libraries were missing and it lies in bare/."""
        for folder in ("", "bare"):
            path = os.path.join(self.build, folder, name)
            if os.path.exists(path):
                return path
        return None

    def tests(self):
        """Test programs of the kernels, by name."""
        folder = "tests/kernels" if self.simt else "device"
        names = [os.path.basename(p)[:-2] for p in sorted(glob.glob(os.path.join(ROOT, "tests/kernels/test_cuda_*.c")))]
        tests = {n: self.place(f"{folder}/{n}") for n in names if self.simt or n != "test_cuda_simt"}
        tests["test_table"] = self.place("tests/kernels/test_table")      # the ops of the backend beside the CPU's
        tests["test_steps"] = self.place("tests/kernels/test_steps")      # decode steps as graphs: what can go wrong, and the whole
        tests["test_graphs"] = self.place("tests/model/test_graphs")
        return {n: p for n, p in tests.items() if self.o.filter in n}

    def on_what(self):
        """The device that goldens and measurements are told."""
        if self.o.golden_device or not self.simt:
            return self.o.golden_device or "cuda"
        return "simt" if self.place("tests/simt/omnidrop-cuda.so") else "cpu"

    # ---- stages ----------------------------------------------------------------------------------------------

    def stage_build(self, s):
        if self.nvcc_unfit and not self.simt:
            s["failures"].append(self.nvcc_unfit)
        text = self.make(["gpu-simt-programs" if self.simt else "gpu-programs"], LIMITS["build"])
        missing = re.search(r"missing: (.*)", text)
        s["rows"].append(dict(name="built for", value="the CPU" if self.simt else "sm_" + self.arch()))
        s["rows"].append(dict(name="missing libraries", value=missing.group(1) if missing else "none"))
        for name in ("tests/golden", "gpu_bench"):
            if self.place(name) is None and not self.o.no_make:
                s["failures"].append(f"{name} was not built")

    def need(self, target, s):
        """Stages alone build what they need; what was made in time is used."""
        start = time.monotonic()
        try:
            self.make([target], LIMITS["build"])
        except Failed as e:
            s["failures"].append(str(e))
        s["build_seconds"] = round(time.monotonic() - start, 1)

    def run_tests(self, s, label, prefix, seconds, at_once, each, more=None):
        """Every test program; a line that fails, a program that dies or stays out is a failure with its name. each: seconds of one,
        so that one that hangs leaves time to the others. more: of the environment."""
        end = time.monotonic() + seconds
        tests = self.tests()
        if not tests:
            raise Failed(f"no test of a kernel has '{self.o.filter}' in its name")

        def one(item):
            name, path = item
            if path is None:
                return name, 127, "was not built", 0.0
            start = time.monotonic()
            env = dict(more or {}, CMOCKA_MESSAGE_OUTPUT="TAP")
            backend = self.place("omnidrop-cuda.so")
            if not self.simt and backend:
                env["OMNIDROP_LIB"] = os.path.abspath(os.path.dirname(backend))
            status, text = run(prefix + [path], min(each, end - start), env=env)
            return name, status, text, time.monotonic() - start
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            for name, status, text, took in pool.map(one, tests.items()):
                ok = len(re.findall(r"^ok ", text, re.M))
                bad = re.findall(r"^not ok \d+ - (.*)", text, re.M)
                said = [x.strip() for x in text.splitlines()
                        if re.search(r"^# .*:\d+:|ERROR SUMMARY|=========.*(Invalid|Error|hazard)", x)]
                s["rows"].append(dict(name=f"{label}{name[len('test_'):]}", value=ok, unit="passed", seconds=round(took, 1),
                                      failed=len(bad)))
                if bad:
                    s["failures"].append(f"{label}{name}: {', '.join(bad)}: {' | '.join(said[:3])}")
                elif status == 124:
                    s["failures"].append(f"{label}{name}: not at its end after {took:.0f} s")
                elif status != 0:
                    s["failures"].append(f"{label}{name}: exit status {status}: {' | '.join(said[:3]) or text.strip()[-200:]}")
                elif ok == 0:
                    s["failures"].append(f"{label}{name}: ran no test")

    def stage_kernels(self, s):
        self.need("gpu-simt-tests" if self.simt else "gpu-tests", s)
        self.run_tests(s, "", [], LIMITS["kernels"], 1, LIMITS["kernels"] if self.simt else 15)

    def stage_sanitizer(self, s):
        if self.simt:
            # The stand-in sees races and wild addresses by itself; that it does is a test of its own.
            self.o, kept = argparse.Namespace(**dict(vars(self.o), filter="simt")), self.o
            try:
                self.run_tests(s, "simt ", [], LIMITS["sanitizer"], 1, LIMITS["sanitizer"])
            finally:
                self.o = kept
            return
        if not os.path.exists(self.sanitizer()):
            raise Failed("no compute-sanitizer on this machine")
        self.need("gpu-tests", s)
        for tool in ("memcheck", "racecheck"):
            more = ["--report-api-errors", "no"] if tool == "memcheck" else []      # a test asks for more memory than there is
            self.run_tests(s, tool + " ", [self.sanitizer(), "--tool", tool, "--error-exitcode", "9", "--print-limit", "3"] + more,
                           LIMITS["sanitizer"] / 2, 4, 30, {"OMNIDROP_TESTS": "small"})

    def pack(self, golden):
        """Options for one that was built without libraries: what `make gpu-pack` made of texts and media."""
        if "/bare/" not in golden:
            return []
        folder, archive = os.path.join(self.build, "gpu-pack"), os.path.join(self.o.build, "gpu-pack.tar.gz")
        if os.path.exists(archive) and not os.path.exists(folder):
            with tarfile.open(archive) as t:
                try:
                    t.extractall(self.build, filter="data")
                except TypeError:              # an older Python; the archive is our own
                    t.extractall(self.build)
        return ["--pack", folder]

    def stage_goldens(self, s):
        self.need("gpu-simt-golden" if self.simt else "gpu-golden", s)
        golden = self.place("tests/golden")
        if golden is None:
            raise Failed("tests/golden was not built")
        device = self.on_what()
        end = time.monotonic() + LIMITS["goldens"]
        dirs = self.o.goldens.split() if self.o.goldens else sorted(d for d in glob.glob(os.path.join(ROOT, "tests/goldens/*"))
                                                                    if os.path.isdir(d + "/checkpoint"))
        packed = self.pack(golden)
        # Small checkpoints are computed in f32: those that have a tolerance for it once more in bf16, which tensor cores take. These
        # first, and no folder has all the time; the CPU that plays a GPU has time for them alone.
        half = [d for d in dirs if os.path.basename(d) in ("wide", "odd-f16") and not self.o.goldens]
        rest = [d for d in dirs if d not in half] if not half or device != "simt" else []
        runs = [(d, t) for d in half for t in ("bf16", "")] + [(d, "") for d in rest]
        for d, dtype in runs:
            status, text = run([golden, "--device", device] + (["--dtype", dtype] if dtype else []) + packed + [d],
                               min(end - time.monotonic(), LIMITS["goldens"] if self.o.goldens else 25))
            tail = re.search(r"(\d+) passed, (\d+) failed", text)
            failed = re.findall(r"^FAIL (.*)", text, re.M)
            passed = int(tail.group(1)) if tail else len(re.findall(r"^PASS ", text, re.M))
            skipped = re.findall(r"^SKIP (\S+) (.*)", text, re.M)
            s["rows"].append(dict(name=f"{os.path.basename(d)} {dtype}".strip(), value=passed, unit="passed", failed=len(failed), skipped=len(skipped)))
            s["failures"] += [f"{os.path.basename(d)} {dtype}: {x}".replace(" :", ":") for x in failed[:5]]
            if status not in (0, 1) or (status == 1 and not failed) or (passed == 0 and not failed):
                s["failures"].append(f"{os.path.basename(d)}: exit status {status}, {passed} checks passed: {text.strip()[-200:]}")

    def rows_of(self, s, argv, seconds, what):
        """Rows that a program prints, a JSON object a line, as they come; other lines are kept for its failure."""
        other, held, done = [], [0.0], threading.Event()

        def watch():
            while not done.wait(1):
                used = words(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]).split("\n")[0]
                if used.isdigit():
                    held[0] = max(held[0], int(used) * 2 ** 20 / 1e9)

        def line(text):
            try:
                row = json.loads(text)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                other.append(text)
                return
            if row.get("error"):
                s["failures"].append(f"{row.get('name', what)}: {row['error']}")
                return
            self.floor_of(row)
            if held[0]:
                row["device_gb"], held[0] = round(held[0], 1), 0.0
            s["rows"].append(row)
            self.say("    " + self.line_of(row))
        if not self.simt:
            threading.Thread(target=watch, daemon=True).start()
        status, _ = run(argv, seconds, out=line, env={"PYTHONUNBUFFERED": "1"})
        done.set()
        if status == 124:
            s["failures"].append(f"{what}: out of time after {seconds:.0f} s; the rows above stand")
        elif status == 77:
            s["skipped"] = " ".join(other[-1:])
        elif status != 0:
            s["failures"].append(f"{what}: exit status {status}: {' | '.join(other[-4:])}")

    def stage_bench(self, s):
        self.need("gpu-simt-bench" if self.simt else "gpu-bench", s)
        bench = self.place("gpu_bench")
        if bench is None:
            raise Failed("gpu_bench was not built")
        towers = os.path.join(self.build, "towers")
        start = time.monotonic()
        status, text = run([sys.executable, os.path.join(ROOT, "tests/gpu/reference.py"), "--write-towers", towers] +
                           (["--tiny"] if self.simt else []), 60)
        if status not in (0, 77):
            s["failures"].append("towers: no checkpoint: " + text.strip()[-200:])
        device = self.on_what()
        self.rows_of(s, [bench, "--device", device] + (["--tiny"] if self.simt else []) +
                     (["--towers", towers] if status == 0 else []), LIMITS["bench"] - (time.monotonic() - start), "bench")
        shutil.rmtree(towers, ignore_errors=True)
        if not any(r.get("name", "").startswith("prefill") for r in s["rows"]):
            s["failures"].append("bench: no prefill was measured")

    def stage_reference(self, s):
        self.rows_of(s, [sys.executable, os.path.join(ROOT, "tests/gpu/reference.py"), "--device", "cpu" if self.simt else "cuda"] +
                     (["--tiny"] if self.simt else []), LIMITS["reference"], "reference")

    def stage_nccl(self, s):
        start = time.monotonic()
        self.need("gpu-simt-nccl" if self.simt else "gpu-nccl", s)
        program, lib = self.place("gpu_nccl"), self.place("tests/simt/omnidrop-nccl.so" if self.simt else "omnidrop-nccl.so")
        if lib is None or (program is None and not self.simt):
            s["skipped"] = "no NCCL headers beside CUDA's: nothing was built"
            return
        if not self.simt:
            self.rows_of(s, [program, os.path.abspath(lib)], LIMITS["nccl"] / 2, "nccl")
        # A decoder of one rank whose sums and gathers go through NCCL.
        golden = self.place("tests/golden")
        if golden is None:
            raise Failed("tests/golden was not built")
        status, text = run([golden, "--device", "simt" if self.simt else "cuda", "--nccl"] + self.pack(golden) + ["tests/goldens/odd-f16"],
                           max(start + LIMITS["nccl"] - time.monotonic(), LIMITS["nccl"] / 2))
        m = re.search(r"^tensors between ranks: (.*)", text, re.M)
        tail = re.search(r"(\d+) passed, (\d+) failed", text)
        s["rows"].append(dict(name="decoder through nccl", value=int(tail.group(1)) if tail else 0, unit="passed",
                              failed=int(tail.group(2)) if tail else 0, note=m.group(1) if m else ""))
        if status != 0 or not m or not m.group(1).startswith("nccl") or not tail or int(tail.group(1)) == 0:
            s["failures"].append(f"decoder through nccl: exit status {status}: {m.group(1) if m else text.strip()[-200:]}")

    # ---- floors, lines, files --------------------------------------------------------------------------------

    def floor_of(self, row):
        """row['floor'] in row's unit and row['of_floor'] = value / floor (times) for rows that name what they did."""
        f = None if self.simt else floors.of(row)
        if f:
            row["floor"] = f
            row["of_floor"] = row["value"] / f

    @staticmethod
    def line_of(r):
        v = r["value"]
        text = f"{r['name']:<34} {v:>10.4g}" if isinstance(v, (int, float)) else f"{r['name']:<34} {v}"
        text += " " + r.get("unit", "")
        if "floor" in r:
            text += f"   floor {r['floor']:.4g}, {r['of_floor']:.2f} x"
        if r.get("failed"):
            text += f"   {r['failed']} FAILED"
        if r.get("skipped"):
            text += f"   {r['skipped']} skipped"
        return text + (f"   {r['note']}" if r.get("note") else "")

    def say(self, text):
        with self.say_lock:
            print(text, flush=True)

    def stage(self, name):
        s = dict(name=name, ok=False, seconds=0.0, date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"), rows=[],
                 failures=[])
        self.say(f"== {name}")
        start = time.monotonic()
        try:
            getattr(self, "stage_" + name)(s)
        except Failed as e:
            s["failures"].append(str(e))
        except Exception as e:  # a stage's own mistake is a failure with its name as well
            s["failures"].append(f"{type(e).__name__}: {e}")
        s["seconds"] = round(time.monotonic() - start, 1)
        s["ok"] = not s["failures"]
        self.result["stages"] = [x for x in self.result["stages"] if x["name"] != name] + [s]
        self.result["stages"].sort(key=lambda x: STAGES.index(x["name"]))
        self.save()
        if name not in ("bench", "reference", "nccl"):
            for r in s["rows"]:
                self.say("    " + self.line_of(r))
        for f in s["failures"]:
            self.say(f"    FAILED {f}")
        if s.get("skipped"):
            self.say(f"    not run: {s['skipped']}")
        self.say(f"   {name}: {'ok' if s['ok'] else 'FAILED'}, {s['seconds']:.1f} s")

    def expected(self):
        """What is expected of an H200, from rows of this run: (sentence, value, bound, reached or None)."""
        rows = {r["name"]: r for x in self.result["stages"] for r in x["rows"] if isinstance(r.get("value"), (int, float))}
        v = {k: r["value"] for k, r in rows.items()}
        out = []

        def add(what, value, bound, least):
            ok = None if value is None else value >= bound if least else value <= bound
            out.append(dict(what=what, value=value, bound=bound, reached=ok))

        def ratio(a, b):
            return v[a] / v[b] if a in v and b in v and v[b] else None
        towers = sum(v.get(k, float("nan")) for k in ("video tower 20k", "audio tower 20k"))
        whole = {k: v[f"prefill 20k {k}"] + towers for k in ("none", "omnidrop 30 %") if f"prefill 20k {k}" in v and towers == towers}
        floor = floors.prefill(20000, "omnidrop 30 %", True) * 1e3
        add("prefill 20k, omnidrop 30 %, towers included: x its floor",
            whole["omnidrop 30 %"] / floor if "omnidrop 30 %" in whole else None, 1.5, False)
        add("... times faster than none", whole["none"] / whole["omnidrop 30 %"] if len(whole) == 2 else None, 1.9, True)
        theirs = sum(v.get("transformers " + k, float("nan")) for k in ("prefill 20k", "video tower 20k", "audio tower 20k"))
        add("... times faster than transformers", theirs / whole["omnidrop 30 %"] if "omnidrop 30 %" in whole and theirs == theirs else None,
            3.0, True)
        add("the decoder alone: times faster than transformers", ratio("transformers prefill 20k", "prefill 20k omnidrop 30 %"), 3.0, True)
        add("score, selection and gather, share of prefill", v.get("selection share 20k omnidrop 30 %"), 0.02, False)
        for b in (1, 8, 32, 128):
            r = rows.get(f"decode 20k omnidrop 30 % B={b}")
            add(f"decode at batch {b}: share of its floor's speed", 1 / r["of_floor"] if r and r.get("of_floor") else None, 0.8, True)
        return out

    def markdown(self):
        m = self.result["machine"]
        text = [f"# On a GPU, {m['date'][:10]}", "", f"`make gpu-check`: {m['device']}, driver {m['driver']}, {m['machine']}; " +
                ", ".join(f"{k} {v}" for k, v in m["versions"].items()) + ".", "", "| stage | s | |", "|---|---|---|"]
        for s in self.result["stages"]:
            word = "passed" if s["ok"] else "**failed**: " + "; ".join(s["failures"]).replace("|", "/")
            text.append(f"| {s['name']} | {s['seconds']} | {'not run: ' + s['skipped'] if s.get('skipped') else word} |")
        text += ["", "| row | value | floor | x floor | |", "|---|---|---|---|---|"]
        for s in self.result["stages"]:
            for r in s["rows"]:
                v = f"{r['value']:.4g}" if isinstance(r["value"], (int, float)) else r["value"]
                floor = f"{r['floor']:.4g} | {r['of_floor']:.2f}" if "floor" in r else " | "
                note = ", ".join(x for x in (r.get("note"), f"{r['device_gb']} GB of the device held" if "device_gb" in r else "") if x)
                text.append(f"| {r['name']} | {v} {r.get('unit', '')} | {floor} | {note} |")
        if self.result.get("expected"):
            text += ["", "| expected | measured | bound | |", "|---|---|---|---|"]
            for x in self.result["expected"]:
                v = "-" if x["value"] is None else f"{x['value']:.3g}"
                text.append(f"| {x['what']} | {v} | {x['bound']} | {'' if x['reached'] is None else 'yes' if x['reached'] else 'no'} |")
        return "\n".join(text) + "\n"

    def save(self):
        os.makedirs(self.o.build, exist_ok=True)
        for name, text in (("gpu-check.json", json.dumps(self.result, indent=1) + "\n"), ("gpu-check.md", self.markdown())):
            path = os.path.join(self.o.build, name)
            with open(path + ".part", "w") as f:
                f.write(text)
            os.replace(path + ".part", path)

    def main(self):
        start = time.monotonic()
        wanted = self.o.stage.replace(",", " ").split() or STAGES
        for name in wanted:
            if name not in STAGES:
                print(f"gpu-check: no stage '{name}'; there are: {' '.join(STAGES)}", file=sys.stderr)
                return 2
        machine = self.look()
        before = {}
        try:
            with open(os.path.join(self.o.build, "gpu-check.json")) as f:
                before = json.load(f)
        except (OSError, ValueError):
            pass
        same = all(before.get("machine", {}).get(k) == machine[k] for k in ("mode", "device"))
        self.result = dict(machine=machine, stages=before.get("stages", []) if same else [])
        self.result["stages"] = [s for s in self.result["stages"] if s.get("name") in STAGES and s["name"] not in wanted]
        m = machine
        self.say(f"gpu-check: {m['device']}, driver {m['driver']}; " + ", ".join(f"{k} {v}" for k, v in m["versions"].items()))
        for name in sorted(wanted, key=STAGES.index):
            self.stage(name)
        self.result["expected"] = [] if self.simt else self.expected()
        self.save()
        print(self.markdown())
        ran = [s for s in self.result["stages"] if s["name"] in wanted]
        bad = [s["name"] for s in ran if not s["ok"]]
        took = time.monotonic() - start
        print(f"{len(ran) - len(bad)} stages passed, {len(bad)} failed{': ' + ' '.join(bad) if bad else ''}, {took:.0f} s; "
              f"{os.path.join(self.o.build, 'gpu-check.json')}")
        return 1 if bad else 0


def main():
    a = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    a.add_argument("--build", default="build")
    a.add_argument("--make", default="make")
    a.add_argument("--no-make", action="store_true", help="use what is built")
    a.add_argument("--device", default="cuda", choices=["cuda", "simt"])
    a.add_argument("--stage", default="", help="one or several; default: all")
    a.add_argument("--filter", default="", help="kernel tests whose name holds it")
    a.add_argument("--goldens", default="", help="folders; default: tests/goldens/*")
    a.add_argument("--golden-device", default="", help="what goldens and bench run on; default: cuda, with simt cpu")
    o = a.parse_args()
    os.chdir(ROOT)
    return Check(o).main()


if __name__ == "__main__":
    sys.exit(main())
