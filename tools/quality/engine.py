"""engine.py - the program itself, driven from outside: what policies it has, what it accepts, and answers of `omnidrop batch`.

No numpy is needed.
"""
import concurrent.futures
import glob
import hashlib
import json
import os
import subprocess
import tempfile
import time
import wave
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCES = "base kernels kvcache media prune model scheduler engine api cli".split()
MAX_TOKENS = 72
KV_BYTES = 1 << 30


def digest(paths):
    h = hashlib.sha256()
    for p in sorted(paths):
        h.update(os.path.basename(p).encode() + b"\0")
        with open(p, "rb") as f:
            h.update(f.read())
    return h.hexdigest()[:16]


def sources():
    """Digest of what makes the engine's answers. The commit alone would change with every word of the documentation."""
    return digest(p for d in SOURCES for p in glob.glob(os.path.join(ROOT, d, "**/*.[ch]"), recursive=True))


def commit():
    """HEAD, with a + where the sources of the engine differ from it; "unknown" outside a checkout."""
    git = lambda *a: subprocess.run(["git", "-C", ROOT, *a], capture_output=True, text=True)
    head = git("rev-parse", "--short=12", "HEAD")
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if git("status", "--porcelain", "--", *SOURCES).stdout else "")


def model_digest(folder):
    """Of weights, sizes, tokens and how media are read; not of its words about itself."""
    return digest(os.path.join(folder, f) for f in os.listdir(folder) if f.endswith(".safetensors") or
                  f in ("config.json", "tokenizer.json", "preprocessor_config.json", "video_preprocessor_config.json"))


WRITTEN_OUT = ("t_mid", "retention", "step0", "kappa", "tds", "query")  # what cells.py says itself


def model_defaults(folder):
    """The parameters of policies that the model's own omnidrop.ini sets and no cell does: they move answers."""
    path, out, here = os.path.join(folder, "omnidrop.ini"), [], False
    if not os.path.exists(path):
        return ""
    with open(path) as f:
        for line in f:
            line = line.split("#")[0].strip()
            if line.startswith("["):
                here = line == "[policy]"
            elif here and line and line.split("=")[0].strip().split(".")[-1] not in WRITTEN_OUT:
                out.append("".join(line.split()))
    return " ".join(sorted(out))


def environment():
    """Without OMNIDROP_<FLAG>, which would come before the model's defaults."""
    return {k: v for k, v in os.environ.items() if not k.startswith("OMNIDROP")}


class Questions:
    """A folder of clips with questions.jsonl."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        with open(os.path.join(folder, "questions.jsonl")) as f:
            self.rows = [json.loads(line) for line in f]
        self.clips = list(dict.fromkeys(q["clip"] for q in self.rows))

    def digest(self):
        return digest([os.path.join(self.folder, "questions.jsonl")] + [os.path.join(self.folder, f) for f in {q["file"] for q in self.rows}])

    def shapes(self):
        """[(audio tokens, grid steps)] of a typical film and of the shortest and longest speech: what a target must be reachable for.
        25 tokens a second of sound; films of this world have a grid step of 12 tokens a second."""
        out = set()
        films = {q["file"] for q in self.rows if q["media"] == "video"}
        for f in sorted(films)[:1]:
            s = round(seconds(os.path.join(self.folder, f)))
            out.add((25 * s, s))
        sound = [seconds(os.path.join(self.folder, f)) for f in {q["file"] for q in self.rows if q["media"] == "audio"}]
        for s in [min(sound), max(sound)] if sound else []:
            out.add((round(25 * s), 0))
        return sorted(out, reverse=True)


def seconds(path):
    if path.endswith(".wav"):
        with wave.open(path) as w:
            return w.getnframes() / w.getframerate()
    out = subprocess.run(["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", path], capture_output=True,
                         text=True, check=True).stdout
    return float(out)


class Engine:
    """processes: so many run side by side, each with its own clips; a model this small gains nothing from a second thread."""

    def __init__(self, program, model, dtype="auto", threads=0, processes=1):
        self.program, self.model, self.dtype, self.threads = os.path.abspath(program), os.path.abspath(model), dtype, threads
        self.processes = processes

    def policies(self):
        return json.loads(subprocess.run([self.program, "inspect", "policies", "--json"], capture_output=True, check=True).stdout)

    def n_layers(self):
        r = subprocess.run([self.program, "inspect", "model", self.model, "--json"], capture_output=True, check=True)
        return json.loads(r.stdout)["text"]["layers"]

    def refuses(self, policy, options, shapes, p_final_max):
        """None where it takes these options for every shape with p_final not above the limit, else why not."""
        text = lambda v: ",".join(map(text, v)) if isinstance(v, list) else str(v).lower() if isinstance(v, bool) else str(v)
        words = [x for k, v in options.items() for x in ("--policy-param", f"{k}={text(v)}")]
        for audio, steps in shapes:
            r = subprocess.run([self.program, "inspect", "schedule", "--json", "-m", self.model, "--policy", policy, *words, "--audio-tokens",
                                str(audio), "--video-steps", str(steps), "--step-tokens", "12"], capture_output=True, text=True, env=environment())
            if r.returncode:
                return r.stderr.strip().removeprefix("omnidrop: error: ")
            p_final = json.loads(r.stdout)["resolved"].get("p_final", 0)
            if p_final > p_final_max:
                return f"p_final {p_final:.2f}"
        return None

    def ask(self, lines, at_once=16):
        """lines: [(tag, file, media, question, options)], options with "policy". Returns {tag: reply}: {"text", "kept", "kept_last",
        "tokens"} or {"error"}, and the seconds it took. tag is any text."""
        files = list(dict.fromkeys(line[1] for line in lines))
        parts = [set(files[i::self.processes]) for i in range(self.processes)]
        start, out = time.time(), {}
        with concurrent.futures.ThreadPoolExecutor(self.processes) as pool:
            for replies in pool.map(lambda part: self._ask([x for x in lines if x[1] in part], at_once), filter(None, parts)):
                out.update(replies)
        return out, time.time() - start

    def _ask(self, lines, at_once):
        with tempfile.TemporaryDirectory(prefix="omnidrop-quality-") as tmp:
            with open(tmp + "/in.jsonl", "w") as f:
                for tag, file, media, question, options in lines:
                    content = [{"type": f"{media}_url", f"{media}_url": {"url": file}}, {"type": "text", "text": question}]
                    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": MAX_TOKENS,
                            "omnidrop": {**options, "return_pruning": True}}
                    f.write(json.dumps({"custom_id": tag, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n")
            r = subprocess.run([self.program, "batch", "-q", "-m", self.model, "--dtype", self.dtype, "-t", str(self.threads), "--kv-bytes",
                                str(KV_BYTES), "--max-concurrency", str(at_once), "-i", tmp + "/in.jsonl", "-o", tmp + "/out.jsonl",
                                "--error-file", tmp + "/err.jsonl"], capture_output=True, text=True, env=environment())
            out = {}
            if r.returncode not in (0, 5):
                raise RuntimeError(f"omnidrop batch ended with status {r.returncode}: {r.stderr.strip()[-2000:]}")
            for name in ("out.jsonl", "err.jsonl"):
                if not os.path.exists(os.path.join(tmp, name)):
                    continue
                with open(os.path.join(tmp, name)) as f:
                    for line in f:
                        row = json.loads(line)
                        out[row["custom_id"]] = reply_of(row)
        return out


def reply_of(row):
    body = (row.get("response") or {}).get("body") or {}
    if not body.get("choices"):
        return {"error": (body.get("error") or row.get("error") or {}).get("message", "no answer")}
    p = body["omnidrop"]
    n = sum(p["av_tokens_in"].values())
    return {"text": body["choices"][0]["message"]["content"], "kept": sum(p["kept_per_layer"]) / (len(p["kept_per_layer"]) * n) if n else 1.0,
            "tokens": body["usage"]["completion_tokens"]}


def options_of(cell, known, clip):
    """A cell's options for a clip: a policy that draws, draws anew for each clip (alike for its questions)."""
    more = {"seed": zlib.crc32(clip.encode())} if "seed" in known[cell.policy] else {}
    return {"policy": cell.policy, **cell.options, **more}
