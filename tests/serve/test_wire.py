"""Goal: what happens on the wire: A21 (an upload of any size in constant memory) and A32 (Expect, HTTP/1.0, HEAD,
keep-alive, pipelining, TLS, Unix socket), slow readers, and times.
Method: raw sockets, curl where it is there, and the official client over TLS."""
import json
import os
import socket
import ssl
import subprocess
import threading
import time

import httpx2
import openai

import lib
from lib import Raw, Server, case, demo, form, head, note, wait_for

server = Server()
CHAT = "/v1/chat/completions"
HELLO = json.dumps({"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}).encode()


def spool_bytes(s):
    return s.metrics()["spool_bytes"]


@case("A21 an upload of 1 GiB in chunks: memory grows by less than 64 MiB, the spool is empty afterwards")
def a21():
    # A film whose index stands in front and whose last box is a hole: small to make, a GiB on the wire.
    film = lib.read(lib.made("front.mp4", "-i", demo("av000.mp4"), "-c", "copy", "-movflags", "+faststart"))
    total = 1 << 30
    hole = total - len(film) - 16
    start, rss, peak = time.monotonic(), server.rss(), [0]
    kind = "multipart/form-data; boundary=b"
    with Raw(server, 120) as raw:
        raw.send(head("POST", "/v1/audio/transcriptions", "Transfer-Encoding: chunked", kind=kind))
        def chunk(b):
            raw.send(b"%x\r\n" % len(b), b, b"\r\n")
        chunk(b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.mp4"\r\n\r\n')
        chunk(film + (1).to_bytes(4, "big") + b"free" + (hole + 16).to_bytes(8, "big"))
        piece, left = bytes(1 << 20), hole
        while left > 0:
            chunk(piece[:min(left, len(piece))])
            left -= min(left, len(piece))
            if left % (64 << 20) < len(piece):
                peak[0] = max(peak[0], server.rss())
            if time.monotonic() - start > 60 * lib.PATIENCE:
                raise AssertionError(f"only {(total - left) >> 20} MiB in a minute")
        chunk(b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nomni-tiny\r\n--b--\r\n')
        raw.send(b"0\r\n\r\n")
        sent = time.monotonic() - start
        r = raw.reply("POST")
    assert r.status == 200 and r.json()["text"].strip() == "zero bird then", (r.status, r.body[:300])
    grown = max(peak[0], server.rss()) - rss
    assert lib.SANITIZED or grown < 64 << 20, f"grew by {grown >> 20} MiB"
    note(f"{1024 / sent:.0f} MiB/s, memory grew by {grown >> 20} MiB")
    wait_for("the spool is empty", lambda: spool_bytes(server) == 0, 5)


@case("a JSON body of 64 MiB with a film in base64: understood, and what it took is given back")
def big_json():
    film = lib.read(lib.made("front.mp4", "-i", demo("av000.mp4"), "-c", "copy", "-movflags", "+faststart"))
    size = 48 << 20
    film += (size - len(film)).to_bytes(4, "big") + b"free" + bytes(size - len(film) - 8)
    import base64
    body = json.dumps({"messages": [{"role": "user", "content": [
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + base64.b64encode(film).decode()}},
        {"type": "text", "text": "Transcribe the speech."}]}], "temperature": 0}).encode()
    before, peak = server.heap(), []
    stop = threading.Event()
    def watch():
        while not stop.is_set():
            peak.append(server.heap())
            time.sleep(0.005)
    t = threading.Thread(target=watch)
    t.start()
    r = server.post(CHAT, body)
    stop.set()
    t.join()
    assert r.status == 200 and r.json()["choices"][0]["message"]["content"] == "zero bird then", r.body[:300]
    note(f"{len(body) >> 20} MiB body, the heap grew by {(max(peak) - before) >> 20} MiB")
    assert lib.SANITIZED or max(peak) - before < 3 * len(body), f"{(max(peak) - before) >> 20} MiB"
    wait_for("it is given back", lambda: lib.SANITIZED or server.heap() - before < 32 << 20, 20, 0.2)


@case("A32 Expect: 100-continue comes after the checks, and only then")
def expect():
    with Raw(server) as raw:
        raw.send(head("POST", CHAT, "Expect: 100-continue", length=len(HELLO)))
        got = raw.socket.recv(1000)
        assert got == b"HTTP/1.1 100 Continue\r\n\r\n", got
        raw.send(HELLO)
        assert raw.reply().status == 200
    for message, status in ((head("POST", "/v1/nothing", "Expect: 100-continue", length=10), 404),
                            (head("POST", CHAT, "Expect: 100-continue", length=10 << 30), 413),
                            (head("POST", CHAT, "Expect: 100-continue", length=10, kind="text/plain"), 415)):
        with Raw(server) as raw:
            raw.send(message)
            got = b""
            while b"\r\n" not in got:
                got += raw.socket.recv(1000)
            assert got.startswith(f"HTTP/1.1 {status} ".encode()), got


@case("A32 curl: POST of a large form with its own Expect")
def curl():
    if subprocess.run(["sh", "-c", "command -v curl"], capture_output=True).returncode != 0:
        raise lib.Skip("no curl")
    big = lib.made("film60.wav", "-stream_loop", "-1", "-i", demo("speech000.wav"), "-t", "60", "-ar", "48000", "-ac", "2")
    out = subprocess.run(["curl", "-sS", "-H", "Expect: 100-continue", "-F", f"file=@{big}", "-F", "model=omni-tiny",
                          server.url + "/audio/transcriptions"], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout)["text"], out.stdout
    out = subprocess.run(["curl", "-sS", "--http1.0", "-d", HELLO, "-H", "Content-Type: application/json",
                          server.url + "/chat/completions"], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout)["choices"], out.stdout


@case("A32 HTTP/1.0: no chunks, the connection closes")
def http10():
    for stream in (False, True):
        body = json.dumps({**json.loads(HELLO), "stream": stream}).encode()
        with Raw(server) as raw:
            raw.send(head("POST", CHAT, length=len(body), version="1.0", host=None), body)
            r = raw.reply()
            assert r.status == 200 and "transfer-encoding" not in r.headers, r.headers
            assert raw.closed(), "it stays open"
            if stream:
                assert r.events()[-1] == "[DONE]"
    with Raw(server) as raw:
        raw.send(head("GET", "/health", "Connection: keep-alive", version="1.0"))
        r = raw.reply()
        assert r.status == 200
        if r.headers.get("connection", "").lower() == "keep-alive":
            raw.send(head("GET", "/health", version="1.0"))
            assert raw.reply().status == 200


@case("A32 HEAD: the headers of GET, no body, the connection goes on")
def http_head():
    with Raw(server) as raw:
        for path in ("/v1/models", "/health", "/metrics", "/version"):
            raw.send(head("HEAD", path))
            h = raw.reply("HEAD")
            raw.send(head("GET", path))
            g = raw.reply()
            assert h.status == g.status == 200 and h.body == b"", (path, h.status, g.status)
            assert h.headers["content-type"] == g.headers["content-type"], (h.headers, g.headers)
            if path != "/metrics":
                assert h.headers["content-length"] == g.headers["content-length"], (path, h.headers, g.headers)
        raw.send(head("HEAD", CHAT))
        assert raw.reply("HEAD").status == 405


@case("A32 1000 requests on one connection")
def keep_alive():
    before = server.n_fds()
    with Raw(server) as raw:
        for i in range(999):
            if i % 50 == 0:
                raw.send(head("POST", CHAT, length=len(HELLO)), HELLO)
            else:
                raw.send(head("GET", "/v1/models"))
            r = raw.reply()
            assert r.status == 200 and r.headers.get("connection", "keep-alive") != "close", (i, r.headers)
        raw.send(head("GET", "/v1/models"))
        r = raw.reply()
        assert r.status == 200
        if r.headers.get("connection") == "close":
            assert raw.closed()
    wait_for("the descriptor is back", lambda: server.n_fds() <= before, 5)


@case("pipelined requests are answered one after the other, in order")
def pipelined():
    with Raw(server) as raw:
        stream = json.dumps({**json.loads(HELLO), "stream": True}).encode()
        raw.send(head("POST", CHAT, length=len(stream)) + stream + head("GET", "/v1/models") + head("GET", "/nothing") +
                 head("POST", CHAT, length=len(HELLO)) + HELLO)
        replies = [raw_reply(raw) for _ in range(4)]
    assert [status for status, _ in replies] == [200, 200, 404, 200], replies
    assert replies[0][1].endswith(b"data: [DONE]\n\n") and json.loads(replies[1][1])["object"] == "list"
    assert json.loads(replies[3][1])["object"] == "chat.completion"


def raw_reply(raw):
    """One reply out of a buffer that may hold the next already: http.client would swallow that."""
    def need(mark):
        while mark not in raw.buffer:
            piece = raw.socket.recv(65536)
            assert piece, "closed"
            raw.buffer += piece
        before, _, raw.buffer = raw.buffer.partition(mark)
        return before
    def take(n):
        while len(raw.buffer) < n:
            raw.buffer += raw.socket.recv(65536)
        out, raw.buffer = raw.buffer[:n], raw.buffer[n:]
        return out
    lines = need(b"\r\n\r\n").decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    status = int(lines[0].split()[1])
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while (n := int(need(b"\r\n"), 16)) > 0:
            body += take(n)
            assert take(2) == b"\r\n"
        assert take(2) == b"\r\n"
        return status, body
    return status, take(int(headers["content-length"]))


@case("bytes one by one, and a head cut anywhere, are the same request")
def cut():
    message = head("POST", CHAT, length=len(HELLO)) + HELLO
    with Raw(server) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(message)):
            raw.send(message[i:i + 1])
        assert raw.reply().status == 200
    kind, body = form([("file", "x.wav", lib.read(demo("phrase000.wav")))])
    message = head("POST", "/v1/audio/transcriptions", length=len(body), kind=kind) + body
    with Raw(server) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(message), 977):
            raw.send(message[i:i + 977])
        want = raw.reply()
    assert want.status == 200 and want.json()["text"], want.body


@case("every route with and without a slash at the end; names with %2F")
def slashes():
    for path in ("/v1/models/", "/health/", "/v1/files/", "/v1/models/omni-tiny/", "/v1/models/omni%2Dtiny"):
        assert server.get(path).status == 200, path
    r = server.get("/v1/models/org%2Fname")
    assert r.status == 404 and r.error["code"] == "model_not_found", r.body
    r = server.get("/v1/models/org/name")
    assert r.status == 404 and r.error["code"] == "model_not_found", r.body


@case("A32 TLS: the official client, a stream, and a client that speaks plain text")
def tls():
    pem, key = os.path.join(lib.TEMPORARY, "cert.pem"), os.path.join(lib.TEMPORARY, "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
                    "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key,
                    "-out", pem], check=True, capture_output=True)
    s = Server(tls=(pem, key), wait=False)
    context = ssl.create_default_context(cafile=pem)
    client = openai.OpenAI(base_url=s.url, api_key="none", max_retries=0, http_client=httpx2.Client(verify=context))
    def ready():
        try:
            return client.get("/../ready", cast_to=httpx2.Response).status_code == 200
        except (openai.APIStatusError, openai.APIConnectionError):
            return False
    wait_for("the server is ready", ready, 30, 0.1)
    messages = [{"role": "user", "content": "Repeat: dog red seven"}]
    r = client.chat.completions.create(model="omni-tiny", messages=messages, temperature=0)
    assert r.choices[0].message.content == "dog red seven"
    chunks = list(client.chat.completions.create(model="omni-tiny", messages=messages, temperature=0, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "dog red seven"
    big = lib.speech(60)
    with open(big, "rb") as f:
        assert client.audio.transcriptions.create(file=f, model="omni-tiny").text
    with Raw(s) as raw:
        raw.send(head("GET", "/health"))
        assert raw.closed(), "plain text to a TLS port"
    stream = client.chat.completions.create(model="omni-tiny", messages=messages, temperature=0, stream=True, max_tokens=4000,
                                            extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    assert client.get("/../health", cast_to=httpx2.Response).status_code == 200
    client.close()
    status = s.stop()
    assert status == 0, status


@case("A32 a Unix socket")
def unix():
    path = os.path.join(lib.TEMPORARY, "socket")
    with Server(uds=path) as s:
        assert s.get("/v1/models").status == 200
        client = openai.OpenAI(base_url="http://localhost/v1", api_key="none",
                               http_client=httpx2.Client(transport=httpx2.HTTPTransport(uds=path)))
        r = client.chat.completions.create(model="", messages=[{"role": "user", "content": "Repeat: dog red seven"}],
                                           temperature=0)
        assert r.choices[0].message.content == "dog red seven"
        client.close()
    assert not os.path.exists(path), "the socket's file is left"


@case("a reader that stops reading is dropped after --write-stall, memory bounded; others go on")
def slow_reader():
    with Server("--write-stall", 2, model=lib.RANDOM_MODEL) as s:
        body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True, "ignore_eos": True, "n": 8,
                           "max_tokens": 30000, "logprobs": True, "top_logprobs": 20}).encode()
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", s.port))
        raw.sendall(head("POST", CHAT, length=len(body)) + body)
        raw.recv(100)
        before = s.rss()
        wait_for("it is dropped", lambda: s.metrics().of("client_disconnects_total", phase="slow_reader") == 1, 60, 0.05)
        wait_for("its slot is free", lambda: s.metrics()["num_requests_running"] == 0, 2)
        assert lib.SANITIZED or s.peak_rss() - before < 64 << 20, f"{(s.peak_rss() - before) >> 20} MiB"
        raw.close()


@case("silence is filled with comments; a reply that takes long commits its status")
def silence():
    with Server("--stream-commit-ms", 200, "--stream-ping", 1, "--max-num-seqs", 1, model=lib.RANDOM_MODEL) as s:
        body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True, "ignore_eos": True,
                           "max_tokens": 30000}).encode()
        talking, waiting = Raw(s), Raw(s)
        talking.send(head("POST", CHAT, length=len(body)), body)
        wait_for("one runs", lambda: s.metrics()["num_requests_running"] == 1)
        start = time.monotonic()
        waiting.send(head("POST", CHAT, length=len(body)), body)
        got = waiting.socket.recv(4096)
        assert got.startswith(b"HTTP/1.1 200 ") and 0.1 < time.monotonic() - start < 2 * lib.PATIENCE, got
        while b"\n\n: " not in got.replace(b"\r\n", b"\n") and b": ping" not in got:
            got += waiting.socket.recv(4096)
            assert time.monotonic() - start < 6 * lib.PATIENCE, got
        talking.close()
        waiting.close()
        wait_for("both are gone", lambda: s.busy() == 0, 5)


@case("nothing is left: connections, spool, descriptors")
def left():
    wait_for("no connection but ours", lambda: server.metrics()["http_connections"] <= 1, 10)
    assert spool_bytes(server) == 0
    lib.all_valid()


@lib.at_end
def the_server_ends_with_status_0():
    status = server.stop()
    assert status == 0, f"{status}\n{server.log_text()[-2000:]}"


if __name__ == "__main__":
    lib.main()
