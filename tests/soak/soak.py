"""tests/soak/soak.py [--seconds N] [--seed N] [--clients N] - a server under everything at once, for a long time.

Clients that chat (with and without media, streaming and not), transcribe, store files, send batches, leave in the middle,
read slowly or not at all, and send nonsense; against one server with a bounded page pool and bounded caches. Five times
on the way the load pauses, and what the server holds is read. At the end:
  * every request had the one outcome that it must have: the known answer, the known error, or its own cancel;
  * every page is free or cached, none reserved; the spool is empty; no decoder is left;
  * file descriptors and memory are as they were at 20 % of the time.
Prints the figures as one JSON object; status 1 where something does not hold. SEED repeats the order of what each
client does, not the times."""
import argparse
import collections
import json
import os
import random
import statistics
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "serve"))
import lib                                     # noqa: E402
from lib import Raw, Server, audio, demo, form, head, image, sse, text, video, wait_for   # noqa: E402

CHAT, SPEECH = "/v1/chat/completions", "/v1/audio/transcriptions"
MEMORY_GROWTH = 0.05                           # share that the resident memory may grow from 20 % to 100 %, and
MEMORY_SLACK = 32 << 20                        # bytes that it may grow whatever it was: the allocator's own


class Soak:
    def __init__(self, options):
        self.options = options
        self.server = Server("--kv-bytes", options.kv_bytes, "--max-num-seqs", 16, "--max-queue", 64, "--write-stall", 3,
                             "--per-ip-connections", 0)
        self.lock = threading.Lock()
        self.counts, self.lost = collections.Counter(), []
        self.answers = {}                      # what is asked -> what it answers, always
        self.running = threading.Event()       # cleared in the pauses
        self.over = threading.Event()
        self.busy = 0
        self.samples, self.pool = [], []
        self.media = {name: lib.read(demo(name)) for name in
                      ("av000.mp4", "av001.mp4", "video000.mp4", "speech000.wav", "speech001.wav", "phrase000.wav",
                       "image000.png")}
        self.long = lib.read(lib.made("speech45.mp3", "-stream_loop", "-1", "-i", demo("speech000.wav"), "-t", "45"))
        self.slow_film = lib.long_film(30)

    # ---- what a client does; each returns after its one outcome, or raises AssertionError ----------------------

    def post(self, path, body, kind="application/json"):
        return self.server.request("POST", path, body, headers={"Content-Type": kind}, check=False, timeout=120)

    def known(self, key, value):
        """The same question has the same answer, whatever runs beside."""
        with self.lock:
            want = self.answers.setdefault(key, value)
        assert want == value, f"{key}: {value!r} once, {want!r} before"

    def question(self, rng):
        """(key, fields of a chat with a known answer)"""
        n = rng.randrange(6)
        if n < 2:
            words = rng.choice(["dog red seven", "cat", "blue house tree", "two"])
            return f"text {words}", {"messages": [{"role": "user", "content": f"Repeat: {words}"}], "max_tokens": 16}
        name, question = rng.choice([("av000.mp4", "Transcribe the speech."), ("av001.mp4", "What is the last word?"),
                                     ("av000.mp4", "What is on the screen when bird is said?"),
                                     ("video000.mp4", "What is purple?"), ("speech000.wav", "What is said?"),
                                     ("speech001.wav", "What is the first word?"), ("image000.png", "What is shown?")])
        part = {"mp4": video, "wav": audio, "png": image}[name[-3:]](demo(name))
        policy = rng.choice([{"policy": "none"}, {"policy": "none"}, {"policy": "omnidrop", "p_final": 0.3},
                             {"policy": "random", "retention": 0.5}])
        return f"{name} {question} {policy}", {"messages": [{"role": "user", "content": [part, text(question)]}],
                                               "omnidrop": policy, "max_tokens": 64}

    def chat(self, rng):
        key, fields = self.question(rng)
        r = self.post(CHAT, {**fields, "temperature": 0, "logprobs": True})
        if r.status == 429:
            return "refused: queue full"
        assert r.status == 200, (r.status, r.body[:300])
        choice = r.json()["choices"][0]
        self.known(key, [choice["message"]["content"], [t["logprob"] for t in choice["logprobs"]["content"]]])
        return "chat"

    def stream(self, rng, pause=0.0):
        key, fields = self.question(rng)
        body = json.dumps({**fields, "temperature": 0, "stream": True, "logprobs": True,
                           "stream_options": {"include_usage": True}}).encode()
        connection = self.server.connection(120)
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        got = b""
        while piece := response.read(64 if pause else 65536):
            got += piece
            time.sleep(pause)
        connection.close()
        if response.status == 429:
            return "refused: queue full"
        assert response.status == 200, (response.status, got[:300])
        events = sse(got)
        assert events[-1] == "[DONE]" and "error" not in events[-2], events[-2:]
        choices = [c for e in events[:-1] for c in e["choices"]]
        assert [c["finish_reason"] for c in choices if c["finish_reason"]] in (["stop"], ["length"]), events[-3:]
        self.known(key, ["".join(c["delta"].get("content") or "" for c in choices),
                         [t["logprob"] for c in choices if c.get("logprobs") for t in c["logprobs"]["content"]]])
        return "stream, slowly read" if pause else "stream"

    def slow(self, rng):
        return self.stream(rng, pause=0.004)

    def stalled(self, rng):
        """Never reads: the server must drop it."""
        raw = Raw(self.server, 120)
        raw.socket.setsockopt(1, 8, 4096)      # SO_RCVBUF
        raw.send(*self.endless(n=4, logprobs=True, top_logprobs=20))
        time.sleep(4.5)
        raw.close()
        return "not read at all"

    def endless(self, **more):
        body = json.dumps({"messages": [{"role": "user", "content": "Who are you?"}], "stream": True, "ignore_eos": True,
                           "max_tokens": 1500, "temperature": 1, **more}).encode()
        return head("POST", CHAT, length=len(body)), body

    def leave(self, rng):
        """Goes away in the middle of something."""
        raw = Raw(self.server, 120)
        how = rng.choice(["upload", "at once", "media", "prefill", "decode", "decode"])
        if how == "upload":
            raw.send(head("POST", SPEECH, length=5 << 20, kind="multipart/form-data; boundary=b"),
                     b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.wav"\r\n\r\n', bytes(1 << 20))
        elif how == "media":
            body = json.dumps({"messages": [{"role": "user", "content": [video(self.slow_film), text("x")]}]}).encode()
            raw.send(head("POST", CHAT, length=len(body)), body)
        elif how == "prefill":
            body = json.dumps({"messages": [{"role": "user", "content": f"{rng.random()} " + "dog red " * 800}]}).encode()
            raw.send(head("POST", CHAT, length=len(body)), body)
        else:
            raw.send(*self.endless(n=rng.choice([1, 3])))
        if how != "at once":
            time.sleep(rng.random() * 0.6)
        raw.close(reset=rng.random() < 0.5)
        return "left: " + how

    def transcribe(self, rng):
        name = rng.choice(["speech000.wav", "phrase000.wav", "av000.mp4", "long"])
        streaming = rng.random() < 0.3
        kind, body = form([("model", ""), ("file", name, self.long if name == "long" else self.media[name]),
                           ("stream", "true" if streaming else "false")])
        r = self.post(SPEECH, body, kind)
        if r.status == 429:
            return "refused: queue full"
        assert r.status == 200, (r.status, r.body[:300])
        if streaming:
            events = r.events()
            assert events[-1] == "[DONE]" and events[-2]["type"] == "transcript.text.done", events[-2:]
            got = events[-2]["text"]
            assert got == "".join(e["delta"] for e in events[:-2] if e["type"] == "transcript.text.delta")
        else:
            got = r.json()["text"]
        self.known(f"transcription {name}", got.split())
        return "transcription, streamed" if streaming else "transcription"

    BAD = [('{"messages":[', "invalid_json"), ("[]", "invalid_type"), ('{"messages":[]}', "invalid_value"),
           ("[" * 9999, "json_too_complex"), ('{"messages":[{"role":"wizard","content":"x"}]}', "invalid_value"),
           ('{"messages":[{"role":"user","content":"x"}],"model":"nope"}', "model_not_found"),
           ('{"messages":[{"role":"user","content":"x"}],"temperature":3}', "invalid_value")]

    def bad(self, rng):
        n = rng.randrange(4)
        if n == 0:
            body, code = rng.choice(self.BAD)
            r = self.post(CHAT, body)
        elif n == 1:
            name, code = rng.choice([("bad_text.mp4", "unsupported_media"), ("bad_no_moov.mp4", "media_decode_failed"),
                                     ("bad_encrypted.mp4", "media_decode_failed"), ("bad_list.m3u8", "unsupported_media")])
            r = self.post(CHAT, {"messages": [{"role": "user", "content": [video(os.path.join(lib.FILES, name))]}]})
        elif n == 2:
            kind, body = form([("model", "x")])
            r, code = self.post(SPEECH, body, kind), "model_not_found"
            if r.status == 400:
                code = "missing_required_parameter"
        else:
            with Raw(self.server) as raw:
                raw.send(rng.choice([b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(60) + b"\r\n\r\n",
                                     head("POST", CHAT, "Transfer-Encoding: chunked", length=3) + b"abc"]))
                r, code = raw.reply(), "invalid_http"
        if r.status == 429:
            return "refused: queue full"
        assert 400 <= r.status < 500 and r.error["code"] == code, (code, r.status, r.body[:300])
        return "bad input"

    def files(self, rng):
        content = rng.randbytes(rng.randrange(1, 300000))
        kind, body = form([("purpose", "user_data"), ("file", "x.bin", content)])
        f = self.post("/v1/files", body, kind).json()
        r = self.server.get(f"/v1/files/{f['id']}/content", check=False)
        assert r.status == 200 and r.body == content, (r.status, len(r.body))
        assert self.server.request("DELETE", f"/v1/files/{f['id']}", check=False).json()["deleted"] is True
        return "file"

    def batch(self, rng):
        lines = b"".join(json.dumps({"custom_id": str(i), "method": "POST", "url": CHAT, "body": {
            "messages": [{"role": "user", "content": "Repeat: dog"}], "temperature": 0 if i else 9}}).encode() + b"\n"
            for i in range(6))
        kind, body = form([("purpose", "batch"), ("file", "x.jsonl", lines)])
        f = self.post("/v1/files", body, kind).json()
        b = self.post("/v1/batches", {"input_file_id": f["id"], "endpoint": CHAT, "completion_window": "24h"}).json()
        end = time.monotonic() + 300
        while b["status"] not in ("completed", "failed", "cancelled", "expired"):
            assert time.monotonic() < end, f"a batch without end: {b}"
            time.sleep(0.2)
            b = self.server.get(f"/v1/batches/{b['id']}", check=False).json()
        counts = b["request_counts"]
        assert (counts["completed"], counts["failed"]) == (5, 1), b
        for name in ("output_file_id", "error_file_id", "input_file_id"):
            self.server.request("DELETE", f"/v1/files/{b[name]}", check=False)
        return "batch"

    KINDS = [("chat", 30), ("stream", 20), ("slow", 6), ("stalled", 1), ("leave", 14), ("transcribe", 10), ("bad", 12),
             ("files", 5), ("batch", 1)]

    # ---- the load ---------------------------------------------------------------------------------------------

    def client(self, i):
        rng = random.Random(self.options.seed * 1000 + i)
        names, weights = zip(*self.KINDS)
        while not self.over.is_set():
            if not self.running.wait(0.2):
                continue
            with self.lock:
                self.busy += 1
            kind = rng.choices(names, weights)[0]
            try:
                outcome = getattr(self, kind)(rng)
                with self.lock:
                    self.counts[outcome] += 1
            except Exception as error:         # noqa: BLE001: whatever it is, a request was lost
                with self.lock:
                    self.lost.append(f"{kind}: {type(error).__name__}: {str(error)[:400]}")
            finally:
                with self.lock:
                    self.busy -= 1

    def watch(self):
        while not self.over.wait(0.5):
            try:
                m = self.server.metrics()
            except (OSError, AssertionError):
                continue
            self.pool.append((m["num_requests_running"], m["num_requests_waiting"], m["kv_cache_usage_perc"]))

    def sample(self, share):
        """The load pauses; what is held when all is over."""
        self.running.clear()
        wait_for("the clients are through", lambda: self.busy == 0, 300, 0.05)
        wait_for("the server is idle", lambda: self.server.busy() == 0, 30)
        wait_for("no decoder is left", lambda: not self.server.children(), 10)
        time.sleep(1.0)
        m = self.server.metrics()
        pages = {k: int(m.of("kv_pages", state=k)) for k in ("total", "free", "cached", "reserved")}
        self.samples.append({"share": share, "fds": self.server.n_fds(), "rss_bytes": self.server.rss(), "pages": pages,
                             "spool_bytes": int(m["spool_bytes"]), "connections": int(m["http_connections"])})
        print(f"# {share:.0%}: {self.samples[-1]}", file=sys.stderr, flush=True)

    def run(self):
        clients = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(self.options.clients)]
        watcher = threading.Thread(target=self.watch, daemon=True)
        start, loaded = time.monotonic(), 0.0
        for t in [*clients, watcher]:
            t.start()
        for share in (0.2, 0.4, 0.6, 0.8, 1.0):
            begin = time.monotonic()
            self.running.set()
            while time.monotonic() - begin < self.options.seconds / 5:
                time.sleep(0.1)
                assert self.server.process.poll() is None, self.server.log_text()[-3000:]
            self.sample(share)
            loaded += time.monotonic() - begin
        self.over.set()
        for t in [*clients, watcher]:
            t.join(10)
        return self.report(time.monotonic() - start)

    def report(self, seconds):
        m = self.server.metrics()
        first, last = self.samples[0], self.samples[-1]
        faults = list(dict.fromkeys(self.lost))[:20]
        for s in self.samples:
            p = s["pages"]
            if p["free"] + p["cached"] != p["total"] or p["reserved"]:
                faults.append(f"pages are held at {s['share']:.0%}: {p}")
            if s["spool_bytes"]:
                faults.append(f"the spool holds {s['spool_bytes']} bytes at {s['share']:.0%}")
        if last["fds"] > first["fds"]:
            faults.append(f"file descriptors: {first['fds']} at 20 %, {last['fds']} at the end")
        grown = last["rss_bytes"] - first["rss_bytes"]
        if grown > max(MEMORY_SLACK, MEMORY_GROWTH * first["rss_bytes"]):
            faults.append(f"memory: {first['rss_bytes']} bytes at 20 %, {last['rss_bytes']} at the end")
        status = self.server.stop()
        if status != 0:
            faults.append(f"the server ended with status {status}")
        return {"seconds": round(seconds, 1), "clients": self.options.clients, "seed": self.options.seed,
                "requests": dict(sorted(self.counts.items())), "n_requests": sum(self.counts.values()),
                "n_lost": len(self.lost),
                "running": {"max": max(p[0] for p in self.pool), "mean": round(statistics.mean(p[0] for p in self.pool), 2)},
                "waiting_max": max(p[1] for p in self.pool), "kv_usage_max": round(max(p[2] for p in self.pool), 3),
                "preemptions": int(m["num_preemptions_total"]),
                "admitted_by_freed_pages": int(m["admitted_by_freed_pages_total"]),
                "generated_tokens": int(m["generation_tokens_total"]), "prompt_tokens": int(m["prompt_tokens_total"]),
                "disconnects": {x["phase"]: int(v) for n, x, v in m.series if n == "client_disconnects_total"},
                "fds": [s["fds"] for s in self.samples], "rss_mib": [round(s["rss_bytes"] / 2 ** 20, 1) for s in self.samples],
                "rss_growth_20_to_100": round(grown / first["rss_bytes"], 4), "pages_at_the_end": last["pages"],
                "faults": faults}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--kv-bytes", type=int, default=64 << 20)
    soak = Soak(parser.parse_args())
    try:
        report = soak.run()
    finally:
        for s in list(Server.alive):
            s.kill()
        __import__("shutil").rmtree(lib.TEMPORARY, ignore_errors=True)
    print(json.dumps(report, indent=1))
    sys.exit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
