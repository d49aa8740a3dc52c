#!/usr/bin/env python3
"""plan_check.py - does `omnidrop bench plan` foretell what the real server does on this machine?

    tools/plan_check.py [--omnidrop build/omnidrop] [--rounds 3] [--least 30] [--seconds 100] [--clients 8] [--output 48]
                        [--prefix-cache 0]

Run it on an idle machine: what else runs makes the server slower than the profile says, or the profile than the server.
It makes one sound of so many --seconds. A round measures the machine with `bench profile`, and right after that, for `none` and
`omnidrop` (in turns first), starts `serve` with the bundled model and a page pool of --kv-bytes and lets --clients ask about the
sound over HTTP, each again when it has its answer: first 2 x clients answers to warm up, then --least seconds and --requests
answers, whichever comes later; what counts is the time from one answer to another, while all clients ask. It compares
requests a second with `bench plan` of that round's profile. What is judged is the median over the rounds.
Prefixes are not shared, unless --prefix-cache says so for both; encoder outputs are kept, so the sound is decoded and encoded
once. The prompt's token counts are those of the server's own usage. Exit status 0: both within --within (0.20). Standard
library only. A round takes up to a minute for the profile and two thirds of a minute for each policy: 7 minutes in all.
"""
import argparse
import http.client
import json
import math
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import wave

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = os.path.join(ROOT, "models/omni-tiny")
QUESTION = "What is said?"
POLICIES = ("none", "omnidrop")


def make_sound(path, seconds):
    """Tones that change, with noise: 16 kHz mono."""
    rng = random.Random(1)
    with wave.open(path, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(16000)
        for s in range(int(seconds * 4)):
            hz = rng.choice([220, 330, 440, 550, 660])
            w.writeframes(b"".join(struct.pack("<h", int(6000 * math.sin(2 * math.pi * hz * i / 16000) + rng.gauss(0, 300)))
                                   for i in range(4000)))


class Server:
    def __init__(self, a, folder, policy):
        self.log = open(os.path.join(folder, "serve.log"), "w+")
        self.process = subprocess.Popen(
            [a.omnidrop, "serve", "-m", MODEL, "--port", "0", "--threads", str(a.threads), "--kv-bytes", str(a.kv_bytes),
             "--max-num-seqs", "32", "--prefix-cache", str(a.prefix_cache), "--allowed-local-media-path", folder, "--policy", policy] +
            (["--retention", str(a.retention)] if policy == "omnidrop" else []),
            stdout=subprocess.DEVNULL, stderr=self.log)
        self.port = 0
        for _ in range(600):
            self.log.seek(0)
            for word in self.log.read().replace("/", " ").split():
                if word.startswith("127.0.0.1:"):
                    self.port = int(word.split(":")[1].strip(".,;"))
            if self.port and self.ready():
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.log.seek(0)
        sys.exit("the server did not start:\n" + self.log.read())

    def ready(self):
        try:
            c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            c.request("GET", "/ready")
            return c.getresponse().status == 200
        except OSError:
            return False

    def close(self):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


def body_of(a, sound):
    return json.dumps({"model": "omni-tiny", "max_tokens": a.output, "ignore_eos": True, "temperature": 0, "messages": [
        {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "file://" + sound}},
                                     {"type": "text", "text": QUESTION}]}]})


def ask(connection, body):
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != 200:
        sys.exit(f"status {reply.status}: {text[:500]!r}")
    return json.loads(text)["usage"]


def serve_run(a, folder, sound, policy):
    """Requests a second, of how many, and the usage of one."""
    server = Server(a, folder, policy)
    body, ends, lock = body_of(a, sound), [], threading.Lock()
    warm = 2 * a.clients
    over = threading.Event()

    def enough():
        return len(ends) > warm + a.requests and ends[-1] - ends[warm] > a.least

    try:
        usage = ask(http.client.HTTPConnection("127.0.0.1", server.port, timeout=600), body)    # decodes, encodes

        def client():
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
            while not over.is_set():
                ask(connection, body)
                with lock:
                    if not over.is_set():      # what ends later has fewer beside it
                        ends.append(time.monotonic())
                        if enough():
                            over.set()

        threads = [threading.Thread(target=client) for _ in range(a.clients)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        server.close()
    if not over.is_set():
        sys.exit("a client failed")
    n = len(ends) - 1 - warm
    return n / (ends[-1] - ends[warm]), n, usage


def plan_run(a, profile, folder, usage, policy):
    trace = os.path.join(folder, "trace.jsonl")
    n_sound = (math.ceil(a.seconds * 100) + 1) // 4
    with open(trace, "w") as f:
        json.dump({"seconds": a.seconds, "video": False, "prompt": usage["prompt_tokens"] - n_sound,
                   "output": usage["completion_tokens"], "max_tokens": a.output, "media": "sound"}, f)
    out = subprocess.run([a.omnidrop, "bench", "plan", "-q", "-m", MODEL, "--profile", profile, "--trace", trace,
                          "--clients", str(a.clients), "--kv-bytes", str(a.kv_bytes), "--max-num-seqs", "32", "--prefix-cache", str(a.prefix_cache), "--requests", "300",
                          "--json",
                          "--policy", policy] + (["--retention", str(a.retention)] if policy == "omnidrop" else []),
                         check=True, capture_output=True, text=True).stdout
    return [r for r in json.loads(out)["runs"] if r["policy"] == policy][0]


def text_config():
    with open(os.path.join(MODEL, "config.json")) as f:
        c = json.load(f)
    return c.get("thinker_config", c)["text_config"]


def pages_of(a, page_tokens):
    """Of one such request, nothing dropped."""
    return text_config()["num_hidden_layers"] * math.ceil((a.seconds * 25 + 40 + a.output) / page_tokens)


def page_bytes(profile):
    c = text_config()
    head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    return profile["page_tokens"] * 2 * c["num_key_value_heads"] * head * profile["kv_value_bytes"]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--omnidrop", default=os.path.join(ROOT, "build/omnidrop"))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--least", type=float, default=30, help="seconds that are measured, at least")
    p.add_argument("--seconds", type=float, default=100, help="of sound that is asked about")
    p.add_argument("--clients", type=int, default=8)
    p.add_argument("--requests", type=int, default=48, help="answers that are measured, at least")
    p.add_argument("--output", type=int, default=48, help="tokens of each answer")
    p.add_argument("--retention", type=float, default=0.4)
    p.add_argument("--kv-bytes", type=int, default=0, help="of the page pool; 0: room for three such requests unpruned")
    p.add_argument("--prefix-cache", type=int, default=0, help="bytes of hidden states kept for the next question")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--within", type=float, default=0.20)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sound = os.path.join(folder, "sound.wav")
        make_sound(sound, a.seconds)
        profile = os.path.join(folder, "measured.json")
        off = {policy: [] for policy in POLICIES}
        for i in range(a.rounds):
            subprocess.run([a.omnidrop, "bench", "profile", "-q", "-y", "-m", MODEL, "--threads", str(a.threads), "-o", profile],
                           check=True)
            with open(profile) as f:
                measured = json.load(f)
            if a.kv_bytes == 0:
                a.kv_bytes = int(3.2 * pages_of(a, measured["page_tokens"]) * page_bytes(measured))
            for policy in POLICIES if i % 2 == 0 else POLICIES[::-1]:
                real, n, usage = serve_run(a, folder, sound, policy)
                plan = plan_run(a, profile, folder, usage, policy)
                off[policy].append(plan["requests_per_s"] / real - 1)
                print(f"{policy:<9} server {real:.3f} requests/s of {n}, plan {plan['requests_per_s']:.3f} "
                      f"({100 * off[policy][-1]:+.1f} %), at once {plan['at_once_mean']:.1f}; "
                      f"prompt {usage['prompt_tokens']}, answer {usage['completion_tokens']} tokens", flush=True)
        bad = 0
        for policy in POLICIES:
            median = statistics.median(off[policy])
            bad += abs(median) > a.within
            print(f"{policy:<9} off by {100 * median:+.1f} % (median of {a.rounds}; {100 * min(off[policy]):+.1f} to "
                  f"{100 * max(off[policy]):+.1f}): {'within' if abs(median) <= a.within else 'NOT within'} {100 * a.within:.0f} %")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
