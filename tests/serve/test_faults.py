"""Goal: what breaks, breaks alone: a decoder that is killed, a full disk, clients that leave in every phase, a server that
is killed in the middle of a batch.
Method: the fault is made, then the metrics must say that nothing is held any more, and the next request must work."""
import json
import os
import resource
import signal
import subprocess
import threading
import time

import openai

import lib
from lib import Background, Raw, Server, audio, case, demo, form, head, note, text, video, wait_for

CHAT = "/v1/chat/completions"
server = Server(model=lib.RANDOM_MODEL)        # talks without end, in a context of 32768 tokens


def chat_body(content="x", **more):
    return json.dumps({"messages": [{"role": "user", "content": content}], "stream": True, "ignore_eos": True,
                       "max_tokens": 20000, **more}).encode()


def film_body(seconds=240, **more):
    return chat_body([video(lib.long_film(seconds)), text("x")], **{"max_tokens": 5, "stream": False, **more})


def start(s, body):
    raw = Raw(s, 60)
    raw.send(head("POST", CHAT, length=len(body), key=s.key), body)
    return raw


def decoding(s):
    return s.metrics().of("media_jobs", stage="decode") + s.metrics().of("media_jobs", stage="probe") > 0


# ---- decoders -------------------------------------------------------------------------------------------------

@case("a decoder that is killed costs its request alone: 400 media_decode_failed")
def killed():
    beside = start(server, chat_body())
    victim = start(server, film_body())
    child = wait_for("a decoder runs", server.children, 20, 0.002)
    time.sleep(0.05)
    for pid in server.children() or child:
        os.kill(pid, signal.SIGKILL)
    r = victim.reply()
    assert r.status == 400 and r.error["code"] == "media_decode_failed", (r.status, r.body[:300])
    if server.metrics()["num_requests_running"] != 1:           # a slow machine: it has said all it was to say
        whole = beside.reply()
        assert whole.status == 200 and whole.body.endswith(b"data: [DONE]\n\n"), "the request beside is gone"
    assert server.metrics().of("request_failure_total", code="media_decode_failed") == 1
    beside.close()
    wait_for("no decoder is left", lambda: not server.children(), 5)
    server.wait_idle(5)
    again = start(server, chat_body([audio(demo("speech000.wav")), text("x")], stream=False, max_tokens=5)).reply()
    assert again.status == 200, again.body


@case("a decoder that is killed while it transcribes: an error, never half a text as a whole one")
def killed_transcription():
    long = lib.made("speech1800.mp3", "-stream_loop", "-1", "-i", demo("speech000.wav"), "-t", "1800", "-b:a", "32k")
    with Server() as s:
        kind, body = form([("file", "a.mp3", lib.read(long))])
        raw = Raw(s, 120)
        raw.send(head("POST", "/v1/audio/transcriptions", length=len(body), kind=kind), body)
        wait_for("a decoder runs", s.children, 20, 0.002)
        time.sleep(0.05)
        for pid in s.children():
            os.kill(pid, signal.SIGKILL)
        r = raw.reply()
        if r.status == 200:                    # it was through with decoding, or began again
            assert abs(r.json()["usage"]["seconds"] - 1800) < 2, r.body[-200:]
        else:
            assert r.status in (400, 500) and r.error["code"] in ("media_decode_failed", "transcription_incomplete"), r.body
        s.wait_idle(20)


# ---- disk -----------------------------------------------------------------------------------------------------

def full(s, n_bytes):
    """An upload that does not fit is refused as spool_full; then small ones work, and nothing is held."""
    kind, body = form([("file", "x.wav", lib.read(demo("speech000.wav")) + bytes(n_bytes))])
    r = s.post("/v1/audio/transcriptions", body, headers={"Content-Type": kind})
    assert r.status == 503 and r.error["code"] == "spool_full" and r.error["type"] == "server_error", (r.status, r.body)
    assert 1 <= int(r.headers["retry-after"]) <= 60
    with Raw(s) as raw:                        # the same in chunks, whose size nobody knows
        raw.send(head("POST", "/v1/audio/transcriptions", "Transfer-Encoding: chunked", kind=kind))
        try:
            for i in range(0, len(body), 1 << 20):
                piece = body[i:i + (1 << 20)]
                raw.send(b"%x\r\n" % len(piece), piece, b"\r\n")
            raw.send(b"0\r\n\r\n")
        except ConnectionError:
            pass
        r = raw.reply()
        assert r.status == 503 and r.error["code"] == "spool_full", r.body
    wait_for("the spool is empty", lambda: s.metrics()["spool_bytes"] == 0, 5)
    kind, body = form([("file", "x.wav", lib.read(demo("speech000.wav")))])
    for wait in (0.05, 0.2, 1, 0):             # the disk gives back what was written a moment after the count
        r = s.post("/v1/audio/transcriptions", body, headers={"Content-Type": kind})
        if r.status != 503 or wait == 0:
            break
        time.sleep(wait)
    assert r.status == 200 and r.json()["text"].strip() == "sleep green three nine jump sing bird cat", r.body


@case("a spool that is full by --max-spool: 503 spool_full, then it works")
def spool_limit():
    with Server("--max-spool", 8 << 20) as s:
        full(s, 12 << 20)


@case("a disk that is full (files may not grow): 503 spool_full, then it works")
def disk_full():
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))     # noqa: E731
    with Server(before=limit) as s:
        full(s, 8 << 20)
        client = s.client()
        try:
            client.files.create(file=("x", bytes(8 << 20)), purpose="user_data")
            raise AssertionError("stored")
        except openai.InternalServerError as e:
            assert e.status_code == 503 and e.code == "spool_full", e.body
        assert list(client.files.list()) == []
        assert not [f for f in os.listdir(os.path.join(s.directory, "spool"))], os.listdir(os.path.join(s.directory, "spool"))


@case("a tmpfs of 4 MiB as the spool: 503 spool_full, then it works")
def tmpfs_full():
    folder = os.path.join(lib.TEMPORARY, "tmpfs")
    os.makedirs(folder)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode != 0:
        raise lib.Skip("this user may not mount")
    try:
        with Server("--spool-dir", folder) as s:
            full(s, 8 << 20)
    finally:
        subprocess.run(["umount", folder], check=True)


# ---- clients that leave ---------------------------------------------------------------------------------------

def leaves(phase, raw, busy, seconds=0.2, reset=False):
    """The client leaves; how long until nothing of it is held; it was counted under its phase."""
    before = server.metrics().of("client_disconnects_total", phase=phase)
    start_s = time.monotonic()
    raw.close(reset)
    wait_for(f"{phase}: all is given back", lambda: not busy(), 10, 0.002)
    took = time.monotonic() - start_s
    wait_for("it was counted", lambda: server.metrics().of("client_disconnects_total", phase=phase) == before + 1, 2)
    note(f"{phase}{' (reset)' if reset else ''}: {took * 1e3:.0f} ms")
    assert took < seconds * lib.PATIENCE, f"{took * 1e3:.0f} ms"


def in_server():
    m = server.metrics()
    return m["num_requests_running"] + m["num_requests_waiting"] + m.of("media_jobs")


@case("gone while uploading: the spooled bytes are dropped")
def gone_upload():
    for reset in (False, True):
        kind, body = form([("file", "x.wav", bytes(4 << 20))])
        raw = Raw(server)
        raw.send(head("POST", "/v1/audio/transcriptions", length=len(body), kind=kind), body[:3 << 20])
        wait_for("it is spooled", lambda: server.metrics()["spool_bytes"] >= 2 << 20)
        leaves("upload", raw, lambda: server.metrics()["spool_bytes"] > 0, reset=reset)


@case("gone while queued: the place in the queue is free")
def gone_queue():
    with Server("--max-num-seqs", 1, model=lib.RANDOM_MODEL) as s:
        global server
        old, server = server, s
        try:
            first = start(s, chat_body())
            wait_for("one runs", lambda: s.metrics()["num_requests_running"] == 1)
            for stream in (True, False):
                second = start(s, chat_body(stream=stream))
                wait_for("one waits", lambda: any(x["phase"] == "wait" for x in state(s)["list"]))
                leaves("queue", second, lambda: s.metrics()["num_requests_waiting"] > 0)
            first.close()
            s.wait_idle(5)
        finally:
            server = old


@case("gone while its film is decoded: the decoder is gone too")
def gone_media():
    for stream in (True, False):
        raw = start(server, film_body(stream=stream, omnidrop={"policy": "none"}))
        wait_for("it is decoded", lambda: server.children() and decoding(server), 20, 0.002)
        leaves("media", raw, in_server)
        wait_for("no decoder is left", lambda: not server.children(), 2.5)


@case("gone while its prompt is read: the pages are free")
def gone_prefill():
    words = "red green blue " * 2000
    for stream in (True, False):
        body = chat_body(words + str(stream), stream=stream, max_tokens=50)
        n = server.post("/tokenize", {"messages": json.loads(body)["messages"]}).json()["count"]
        assert 8000 < n < 32000, n
        raw = start(server, body)
        wait_for("it is read", lambda: any(x["phase"] == "prefill" for x in state(server)["list"]), 20, 0.002)
        leaves("prefill", raw, in_server)
        wait_for("its pages are free", all_free, 2)


def all_free():
    """Is every page free or kept for others to share, and none promised?"""
    m = server.metrics()
    pages = {k: m.of("kv_pages", state=k) for k in ("total", "free", "cached", "reserved")}
    return pages["free"] + pages["cached"] == pages["total"] and pages["reserved"] == 0


def state(s):
    return s.get("/v1/omnidrop/state").json()


@case("gone while it is answered, streaming and not, by FIN, by reset and half closed")
def gone_decode():
    for stream in (True, False):
        for reset in (False, True):
            raw = start(server, chat_body(stream=stream))
            wait_for("it is answered", lambda: any(x["phase"] == "decode" and x["generated_tokens"] > 3
                                                   for x in state(server)["list"]))
            leaves("decode", raw, in_server, reset=reset)
    raw = start(server, chat_body())
    wait_for("it is answered", lambda: any(x["phase"] == "decode" for x in state(server)["list"]))
    raw.socket.shutdown(1)
    wait_for("half closed counts as gone", lambda: in_server() == 0, 1)
    raw.close()


@case("gone while others go on: 40 clients, each leaves at a moment of its own; all is free, the one that stays is whole")
def gone_many():
    client = server.client()
    def stays(stop):
        return client.chat.completions.create(model="", messages=[{"role": "user", "content": "stay"}], temperature=0,
                                              max_tokens=400, extra_body={"ignore_eos": True}).choices[0].message.content
    alone = stays(None)
    staying = Background(stays)
    def leaver(i):
        raw = start(server, film_body(30) if i % 5 == 0 else chat_body("word " * (1 + 150 * (i % 7)), stream=i % 2 == 0))
        time.sleep(0.013 * i)
        raw.close(reset=i % 3 == 0)
    threads = [threading.Thread(target=leaver, args=(i,)) for i in range(40)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert staying.join() == alone, "another answer beside those that left"
    server.wait_idle(5)
    wait_for("all pages are free", all_free, 5)
    wait_for("the spool is empty", lambda: server.metrics()["spool_bytes"] == 0, 5)
    wait_for("no decoder is left", lambda: not server.children(), 5)


# ---- time-outs and retries ------------------------------------------------------------------------------------

@case("A31 a client whose patience is shorter than its transcription gets there by retries, from where it was")
def window_cache():
    long = lib.made("speech900.mp3", "-stream_loop", "-1", "-i", demo("speech000.wav"), "-t", "900", "-b:a", "32k")
    with Server() as s:
        once = time.monotonic()
        client = s.client()
        with open(long, "rb") as f:
            want = client.audio.transcriptions.create(file=f, model="", response_format="verbose_json", temperature=0)
        once = time.monotonic() - once
        windows = s.metrics().of("transcription_windows_total", status="ok")
    with Server() as s:
        hasty = s.client(timeout=max(0.4, once / 4), max_retries=30)
        with open(long, "rb") as f:
            got = hasty.audio.transcriptions.create(file=("x.mp3", f.read()), model="", response_format="verbose_json",
                                                    temperature=0)
        m = s.metrics()
        assert got.text == want.text and got.duration == want.duration, "another text by retries"
        ok, kept = m.of("transcription_windows_total", status="ok"), m.of("transcription_windows_total", status="cached")
        assert kept > 0 and ok <= 1.5 * windows, f"{ok:.0f} windows run and {kept:.0f} kept of {windows:.0f}"
        note(f"{once:.1f} s at once; {ok:.0f} windows run, {kept:.0f} kept, of {windows:.0f}")


# ---- a server that is killed ----------------------------------------------------------------------------------

LINE_TOKENS = 1500


def lines(n):
    return b"".join(json.dumps({"custom_id": f"c-{i}", "method": "POST", "url": CHAT, "body": {
        "messages": [{"role": "user", "content": f"word {i}"}], "temperature": 0, "max_tokens": LINE_TOKENS, "ignore_eos": True,
        "seed": i}}).encode() + b"\n" for i in range(n))


def all_lines(client, b):
    out = [json.loads(x) for x in client.files.content(b.output_file_id).read().splitlines()]
    if b.error_file_id:
        out += [json.loads(x) for x in client.files.content(b.error_file_id).read().splitlines()]
    return out


@case("SIGKILL in the middle of a batch: after the start it goes on, every line once, finished ones not again")
def batch_killed():
    n = 80
    directory = os.path.join(lib.TEMPORARY, "killed")
    os.makedirs(directory)
    s = Server(model=lib.RANDOM_MODEL, directory=directory)
    client = s.client()
    f = client.files.create(file=("in.jsonl", lines(n)), purpose="batch")
    kept = client.files.create(file=("keep", b"kept"), purpose="user_data")
    b = client.batches.create(input_file_id=f.id, endpoint=CHAT, completion_window="24h")
    runs = 1
    for quota in (n // 4, n // 2):
        wait_for("part of it is done", lambda: client.batches.retrieve(b.id).request_counts.completed >= quota, 60, 0.02)
        time.sleep(1.1)                        # the journal is written once a second at least
        done = client.batches.retrieve(b.id).request_counts.completed
        if done == n:
            break
        s.kill()
        s = Server(model=lib.RANDOM_MODEL, directory=directory)
        client = s.client()
        runs += 1
        # Its journal is read again after /ready.
        wait_for("what was done is known", lambda: client.batches.retrieve(b.id).request_counts.completed >= quota, 5, 0.02)
    assert runs > 1, "the batch was too quick for this test"
    assert client.files.content(kept.id).read() == b"kept"
    wait_for("the batch is done", lambda: client.batches.retrieve(b.id).status == "completed", 120, 0.1)
    b = client.batches.retrieve(b.id)
    assert (b.request_counts.total, b.request_counts.completed, b.request_counts.failed) == (n, n, 0), b.request_counts
    out = all_lines(client, b)
    assert sorted(x["custom_id"] for x in out) == sorted(f"c-{i}" for i in range(n)), len(out)
    again = s.metrics().of("batch_requests_total")
    assert again <= n - done + 16 + 32, f"{again} lines after the last start, {done} of {n} were done"
    # The same bits as a line that ran in one go.
    i = 3
    alone = s.chat(f"word {i}", max_tokens=LINE_TOKENS, ignore_eos=True, seed=i)["choices"][0]["message"]["content"]
    line = next(x for x in out if x["custom_id"] == f"c-{i}")
    assert line["response"]["body"]["choices"][0]["message"]["content"] == alone
    assert s.stop() == 0


@case("A34 SIGTERM in the middle of a batch: after the start it goes on")
def batch_drained():
    n = 60
    directory = os.path.join(lib.TEMPORARY, "drained")
    os.makedirs(directory)
    s = Server("--drain-timeout", 1, model=lib.RANDOM_MODEL, directory=directory)
    client = s.client()
    f = client.files.create(file=("in.jsonl", lines(n)), purpose="batch")
    b = client.batches.create(input_file_id=f.id, endpoint=CHAT, completion_window="24h")
    wait_for("part of it is done", lambda: client.batches.retrieve(b.id).request_counts.completed >= 10, 60, 0.02)
    assert s.stop() == 0
    s = Server(model=lib.RANDOM_MODEL, directory=directory)
    client = s.client()
    wait_for("the batch is done", lambda: client.batches.retrieve(b.id).status == "completed", 120, 0.1)
    b = client.batches.retrieve(b.id)
    assert sorted(x["custom_id"] for x in all_lines(client, b)) == sorted(f"c-{i}" for i in range(n))
    assert b.request_counts.completed == n and b.request_counts.failed == 0, b.request_counts
    assert s.stop() == 0


@case("every reply matches /openapi.json; nothing is left")
def valid():
    lib.all_valid()
    server.wait_idle()
    assert server.metrics()["spool_bytes"] == 0 and not server.children()


@lib.at_end
def the_server_ends_with_status_0():
    status = server.stop()
    assert status == 0, f"{status}\n{server.log_text()[-2000:]}"


if __name__ == "__main__":
    lib.main()
