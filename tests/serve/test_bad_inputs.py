"""Goal: the 40 bad inputs of docs/http-api.md 6.2 each get their status, type, code and param, and harm nobody.
Method: each row against the real server, from raw bytes where a client would not send it, while a healthy client streams
one and the same answer over and over: it must get the same text every time, without a long gap."""
import base64
import http.server
import json
import os
import struct
import threading
import time
import zlib

import lib
from lib import Background, Raw, Server, case, chunked, demo, form, head, note, text, video, wait_for

IRE = "invalid_request_error"
media_root = os.path.join(lib.TEMPORARY, "media")
os.makedirs(media_root)


class Remote(http.server.BaseHTTPRequestHandler):
    """The rest of the world: what it is asked for is what it does. Counts its connections."""
    seen = []

    def do_GET(self):
        Remote.seen.append(self.path)
        if self.path.startswith("/404"):
            self.send_error(404)
        elif self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", f"http://{self.path.split('/', 2)[2]}")
            self.end_headers()
        elif self.path.startswith("/huge"):
            self.send_response(200)
            self.send_header("Content-Length", str(3 << 30))
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 20))
            except OSError:
                pass
        elif self.path.startswith("/never"):
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.2)
            except OSError:
                pass
        elif self.path.startswith("/good"):
            body = lib.read(demo("speech000.wav"))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


remote = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Remote)
remote.daemon_threads = True
threading.Thread(target=remote.serve_forever, daemon=True).start()
PORT = remote.server_address[1]

def domains(*names):
    return [word for name in names for word in ("--allowed-media-domains", name)]


# Even an operator who lists such hosts gets no private address: that takes --media-allow-private-nets.
server = Server("--allowed-local-media-path", media_root, *domains("allowed.example", f"127.0.0.1:{PORT}", "169.254.169.254"),
                "--max-json-body", 96 << 20, "--max-upload", 96 << 20, "--per-ip-connections", 0)


# ---- somebody else, meanwhile ---------------------------------------------------------------------------------

GAP = 2.0 * lib.PATIENCE                       # seconds between two events that nobody would notice


def healthy(stop):
    """The same stream over and over; how often, and the longest gap."""
    client, texts, gap = server.client(), [], 0.0
    while not stop.is_set() or not texts:
        last = time.monotonic()
        out = ""
        reason = None
        for chunk in client.chat.completions.create(
                model="", messages=[{"role": "user", "content": "Who are you?"}], stream=True, temperature=0, max_tokens=300,
                extra_body={"ignore_eos": True}):
            now = time.monotonic()
            gap, last = max(gap, now - last), now
            out += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
        assert reason == "length", reason
        texts.append(out)
        assert out == texts[0], f"another text the {len(texts)}th time"
    return len(texts), gap


stream = Background(healthy)


# ---- what is expected -----------------------------------------------------------------------------------------

def no(reply, status, code, param=None, kind=IRE):
    """The reply is this refusal. param: exact, or a prefix where it ends with '*'; None: whatever."""
    assert reply.status == status, f"{reply.status} {reply.body[:400]!r}, expected {status} {code}"
    e = reply.error
    assert (e["type"], e["code"]) == (kind, code), f"{e}, expected {kind} {code}"
    if param is not None:
        good = (e["param"] or "").startswith(param[:-1]) if param.endswith("*") else e["param"] == param
        assert good, f"param {e['param']!r}, expected {param!r}: {e['message']}"
    return e


def chat(body, **more):
    if isinstance(body, dict) and "messages" not in body:
        body = {"messages": [{"role": "user", "content": "Hello!"}], **body}
    return server.post("/v1/chat/completions", body, **more)


def part(p, **more):
    return chat({"messages": [{"role": "user", "content": [p, text("What is said?")]}], **more})


def url(u, kind="video"):
    return part({"type": f"{kind}_url", f"{kind}_url": {"url": u}})


def data(name_or_bytes, kind="video"):
    b = lib.read(os.path.join(lib.FILES, name_or_bytes)) if isinstance(name_or_bytes, str) else name_or_bytes
    return url("data:application/octet-stream;base64," + base64.b64encode(b).decode(), kind)


def upload(fields, path="/v1/audio/transcriptions", **more):
    kind, body = form(fields, **more)
    return server.post(path, body, headers={"Content-Type": kind})


WAV = lib.read(demo("speech000.wav"))
PLACE = "messages[0].content[0]*"


# ---- JSON and fields ------------------------------------------------------------------------------------------

@case("B1 B2 unfinished JSON, garbage behind")
def b1():
    no(chat('{"messages":['), 400, "invalid_json")
    no(chat('{"messages":[{"role":"user","content":"x"}]} x'), 400, "invalid_json")
    no(chat(b""), 400, "invalid_json")


@case("B3 bad UTF-8, lone surrogate")
def b3():
    for bad in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\\ud800", b"\\udc00x"):
        no(chat(b'{"messages":[{"role":"user","content":"' + bad + b'"}]}'), 400, "invalid_json")


@case("B4 10000 nested arrays, a million values")
def b4():
    no(chat("[" * 10000 + "]" * 10000), 400, "json_too_complex")
    no(chat('{"messages":' + "[" * 10000 + "]" * 10000 + "}"), 400, "json_too_complex")
    no(chat('{"messages":[' + "1," * 10 ** 6 + "1]}"), 400, "json_too_complex")


@case("B5 a key twice")
def b5():
    no(chat('{"model":"a","messages":[{"role":"user","content":"x"}],"model":"omni-tiny"}'), 400, "invalid_json")


@case("B6 a body that is no object")
def b6():
    for body in ("[]", '"x"', "1", "null", "true"):
        no(chat(body), 400, "invalid_type")


@case("B7 messages absent or empty")
def b7():
    no(chat("{}"), 400, "missing_required_parameter", "messages")
    no(chat({"messages": []}), 400, "invalid_value", "messages")
    no(chat({"messages": None}), 400, "missing_required_parameter", "messages")
    no(chat({"messages": "hello"}), 400, "invalid_type", "messages")


@case("B8 B9 unknown role and part")
def b8():
    no(chat({"messages": [{"role": "wizard", "content": "x"}]}), 400, "invalid_value", "messages[0].role")
    no(chat({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}), 400, "invalid_value",
       "messages[0].content[0].type")
    no(chat({"messages": [{"role": "user", "content": [text("a"), text("b"), {"type": "text", "text": 3}]}]}), 400,
       "invalid_type", "messages[0].content[2]*")
    no(part({"type": "image_embeds", "image_embeds": "x"}), 400, "unsupported_parameter", "messages[0].content[0]*")
    no(chat({"messages": [{"role": "tool", "content": "x"}]}), 400, "unsupported_parameter", "messages[0].role")


@case("B10 temperature out of range, NaN, a string")
def b10():
    no(chat({"temperature": 3}), 400, "invalid_value", "temperature")
    no(chat('{"messages":[{"role":"user","content":"x"}],"temperature":NaN}'), 400, "invalid_json")
    no(chat({"temperature": "0.5"}), 400, "invalid_type", "temperature")
    no(chat({"top_p": 0}), 400, "invalid_value", "top_p")
    no(chat({"top_logprobs": 3}), 400, "invalid_value", "top_logprobs")
    no(chat({"logprobs": True, "top_logprobs": 21}), 400, "invalid_value", "top_logprobs")
    no(chat({"logit_bias": {"999999": 1}}), 400, "invalid_value", "logit_bias*")
    no(chat({"stop": [""]}), 400, "invalid_value", "stop*")


@case("B11 max_tokens 0, negative, 1e99")
def b11():
    for value in (0, -5):
        no(chat({"max_tokens": value}), 400, "invalid_value", "max_tokens")
    no(chat('{"messages":[{"role":"user","content":"x"}],"max_tokens":1e99}'), 400, "invalid_value", "max_tokens")
    no(chat({"max_completion_tokens": 0}), 400, "invalid_value", "max_completion_tokens")


@case("B12 n of 100000")
def b12():
    no(chat({"n": 100000}), 400, "invalid_value", "n")
    no(chat({"n": 0}), 400, "invalid_value", "n")


@case("B13 unknown model")
def b13():
    no(chat({"model": "nope"}), 404, "model_not_found", "model")


@case("B14 no key, wrong key: the same reply in the same time, before the body is read")
def b14():
    with Server(key="sk-right-one") as s:
        replies = [s.post("/v1/chat/completions", {"messages": []}, headers={"Authorization": a})
                   for a in ("", "Bearer", "Bearer wrong", "Bearer sk-right-on", "Bearer sk-right-one2", "Basic c2s6")]
        for r in replies:
            no(r, 401, "invalid_api_key")
            assert r.headers["www-authenticate"].startswith("Bearer")
        assert len({r.body for r in replies}) == 1, "the replies differ"
        with Raw(s) as raw:                    # 401 comes although not a byte of the body does
            raw.send(head("POST", "/v1/chat/completions", length=1 << 20))
            no(raw.reply(), 401, "invalid_api_key")
        assert s.get("/v1/models").status == 200


@case("B15 to B18 stream_options alone, response_format, modalities, tools")
def b15():
    no(chat({"stream_options": {"include_usage": True}}), 400, "invalid_value", "stream_options")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    no(chat({"response_format": schema}), 400, "unsupported_parameter", "response_format")
    no(chat({"modalities": ["text", "audio"]}), 400, "unsupported_parameter", "modalities")
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    no(chat({"tools": [tool]}), 400, "unsupported_parameter", "tools")
    for field, value in (("tool_choice", "auto"), ("guided_json", {}), ("prompt_logprobs", 3), ("best_of", 2),
                         ("moderation", {"type": "x"}), ("chat_template", "x"), ("truncate_prompt_tokens", 5)):
        no(chat({field: value}), 400, "unsupported_parameter", field)
    assert chat({"tools": [], "tool_choice": "none", "modalities": ["text"], "response_format": {"type": "text"},
                 "user": "u", "store": False, "max_tokens": 1, "no_such_field": 1, "seed": None}).status == 200


@case("B19 B20 the omnidrop object is strict")
def b19():
    clip = video(demo("av000.mp4"))
    for value, param in (({"retension": 0.3}, "omnidrop.retension"), ({"p_final": 1.5}, "omnidrop.p_final"),
                         ({"policy": "omnidrop", "retention": 0.3, "p_final": 0.2}, "omnidrop*"),
                         ({"policy": "omnidrop", "retention": 0.9, "step0": True}, "omnidrop.retention"),
                         ({"policy": "nonesuch"}, "omnidrop.policy"), ({"policy": "none", "retention": 0.3}, "omnidrop*"),
                         ({"policy": "omnidrop", "retention": 0}, "omnidrop.retention"),
                         ({"policy": "omnidrop", "beta": -1}, "omnidrop.beta")):
        no(part(clip, omnidrop=value), 400, "invalid_value", param)
    no(part(clip, omnidrop=3), 400, "invalid_type", "omnidrop")
    no(part(clip, omnidrop={"return_pruning": "yes"}), 400, "invalid_type", "omnidrop.return_pruning")


# ---- media ----------------------------------------------------------------------------------------------------

@case("B21 a film of three hours: refused in less than a second, with the count and what would fit")
def b21():
    path = lib.made("three-hours.mp4", "-f", "lavfi", "-i", "color=size=128x96:rate=2:duration=10800", "-f", "lavfi", "-i",
                    "anullsrc=r=16000:cl=mono:d=10800", "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", "-b:a", "8k", "-shortest")
    body = json.dumps({"messages": [{"role": "user", "content": [video(path), text("x")]}]}).encode()
    start, work = time.monotonic(), server.cpu_seconds()
    e = no(chat(body), 400, "context_length_exceeded")
    took, work = time.monotonic() - start, server.cpu_seconds() - work
    assert e["message"].startswith("This model's maximum context length is 4096 tokens."), e
    # Others use this machine too: it may take longer where the work was less.
    assert min(took, work) < 1.0 * lib.PATIENCE, f"{took:.2f} s, {work:.2f} s of work for {len(body) >> 20} MiB"
    note(f"refused after {took:.2f} s, {work:.2f} s of work, the stream beside included")


@case("B22 B23 data URLs: empty, no base64 letters, no base64 at all")
def b22():
    for u in ("data:image/png;base64,", "data:image/png;base64,@@@", "data:image/png;base64,A", "data:image/png,abc", "data:",
              "data:image/png"):
        no(url(u, "image"), 400, "invalid_value", PLACE)
    no(part({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), 400, "invalid_value", PLACE)
    no(part({"type": "image_url"}), 400, "missing_required_parameter", PLACE)


@case("B24 text named .mp4")
def b24():
    no(data("bad_text.mp4"), 400, "unsupported_media", PLACE)
    no(upload([("file", "x.mp4", b"This is not a film. " * 400)]), 400, "unsupported_media")


@case("B25 half an mp4, an encrypted one, and other broken ones")
def b25():
    whole = lib.read(os.path.join(lib.FILES, "film.mp4"))
    for name in ("bad_no_moov.mp4", "bad_encrypted.mp4", whole[:len(whole) // 2] if b"moov" not in whole[:len(whole) // 2]
                 else "bad_no_moov.mp4"):
        no(data(name), 400, "media_decode_failed", PLACE)
    for name in ("bad_no_tracks.mp4", "bad_no_frames.mp4"):
        no(data(name), 400, "media_decode_failed", PLACE)
    no(data("bad_codec.mp4"), 400, "unsupported_media", PLACE)
    no(data("bad_half.png", "image"), 400, "media_decode_failed", PLACE)
    no(data("bad_no_samples.wav", "audio"), 400, "media_decode_failed", PLACE)


def png(width, height):
    """A PNG that claims a size and holds next to nothing."""
    chunk = lambda kind, b: struct.pack(">I", len(b)) + kind + b + struct.pack(">I", zlib.crc32(kind + b))   # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + \
        chunk(b"IDAT", zlib.compress(bytes(900))) + chunk(b"IEND", b"")


@case("B26 a picture of 60000 x 60000 in a kilobyte: refused, memory flat")
def b26():
    before = server.peak_rss()
    no(data(png(60000, 60000), "image"), 400, "media_too_large", PLACE)
    no(data("bad_bomb.png", "image"), 400, "media_too_large", PLACE)
    assert lib.SANITIZED or server.peak_rss() - before < 64 << 20, f"grew by {(server.peak_rss() - before) >> 20} MiB"


@case("B27 a container that claims 10^9 seconds: refused, or heard as what it is; nothing allocated by claim")
def b27():
    path = lib.made("one.mp4", "-i", demo("phrase000.wav"), "-t", "1", "-c:a", "aac")
    b = bytearray(lib.read(path))
    at = b.index(b"mvhd")
    assert b[at + 4] == 0
    b[at + 16:at + 24] = struct.pack(">II", 4, 4 * 10 ** 9)
    at = b.index(b"tkhd")
    b[at + 24:at + 28] = struct.pack(">I", 4 * 10 ** 9)
    at = b.index(b"mdhd")
    b[at + 20:at + 24] = struct.pack(">I", 0xfffffff0)
    before = server.peak_rss()
    for r in (upload([("file", "x.mp4", bytes(b)), ("response_format", "verbose_json")]), data(bytes(b), "audio")):
        if r.status == 200:
            assert r.json().get("duration", 1) < 3, r.body
            assert r.json().get("usage", {}).get("prompt_tokens", 0) < 200, r.body
        else:
            no(r, 400, "media_too_long")
    wav = bytearray(WAV)
    wav[40:44] = wav[4:8] = b"\xff\xff\xff\x7f"
    r = upload([("file", "x.wav", bytes(wav)), ("response_format", "verbose_json")])
    assert r.status == 200 and r.json()["duration"] < 10 or no(r, 400, "media_too_long"), r.body
    assert lib.SANITIZED or server.peak_rss() - before < 64 << 20


@case("B28 playlists and concat scripts: refused, nothing opened")
def b28():
    n = len(Remote.seen)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:{PORT}/good.wav\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile {demo('speech000.wav')}\n".encode()
    for b in (playlist, concat, "bad_list.m3u8", "bad_list.ffconcat", "bad_list.sdp"):
        no(data(b), 400, "unsupported_media", PLACE)
    for b in (playlist, concat):
        no(upload([("file", "x.wav", b)]), 400, "unsupported_media")
    assert len(Remote.seen) == n, Remote.seen[n:]


@case("B29 B30 addresses and URLs that are not allowed: no connection")
def b29():
    n = len(Remote.seen)
    for u in ("http://169.254.169.254/latest/meta-data", f"http://[::ffff:7f00:1]:{PORT}/good", "http://0x7f.1/",
              f"http://127.0.0.1:{PORT}/good", f"http://localhost:{PORT}/good", f"http://2130706433:{PORT}/good",
              "http://allowed.example@evil.example/", f"http://allowed.example@127.0.0.1:{PORT}/good", "http:\\\\evil",
              f"http://127.0.0.1:{PORT}\\@allowed.example/good", "gopher://allowed.example/", "ftp://allowed.example/x.mp4",
              "http://other.example/x.mp4", "http://allowed.example:81/x.mp4", "http://allowed.example/\nx",
              "rtsp://allowed.example/x", "concat:http://allowed.example/x"):
        no(url(u), 400, "media_url_not_allowed", PLACE)
    assert len(Remote.seen) == n, f"connected: {Remote.seen[n:]}"


@case("B31 files out of the root, FIFOs, folders, missing ones: one code, no hang")
def b31():
    outside = os.path.join(lib.TEMPORARY, "outside.wav")
    for path in (outside, os.path.join(media_root, "good.wav")):
        with open(path, "wb") as f:
            f.write(WAV)
    os.symlink(outside, os.path.join(media_root, "link.wav"))
    os.symlink(lib.TEMPORARY, os.path.join(media_root, "up"))
    os.mkfifo(os.path.join(media_root, "fifo"))
    start = time.monotonic()
    for u in ("file:../outside.wav", "file:%2e%2e/outside.wav", "file:link.wav", "file:up/outside.wav", "file:fifo",
              "file:missing.wav", "file:.", f"file://{media_root}", f"file://{outside}", f"file://{media_root}/../outside.wav",
              "file://evil.example/x.wav", "file:///etc/passwd", "file:///proc/self/environ", "file:good.wav%00.mp4",
              f"file://{media_root}/%252e%252e/outside.wav"):
        e = no(url(u, "audio"), 400, "media_path_not_allowed", PLACE)
        assert media_root not in e["message"] and "outside" not in e["message"], e
    assert time.monotonic() - start < 10 * lib.PATIENCE
    r = url("file:good.wav", "audio")
    assert r.status == 200, r.body
    assert url(f"file://{media_root}/good.wav", "audio").status == 200


@case("B32 a remote file that is missing, never ends, is too big; redirects are checked anew")
def b32():
    with Server(*domains(f"127.0.0.1:{PORT}", "good.example"), "--media-allow-private-nets", "127.0.0.0/8",
                "--media-fetch-timeout", 2) as s:
        def fetch(path):
            return s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [
                {"type": "audio_url", "audio_url": {"url": f"http://127.0.0.1:{PORT}/{path}"}}, text("What is said?")]}]})
        r = fetch("good.wav")
        assert r.status == 200, r.body
        no(fetch("404"), 400, "media_fetch_failed", PLACE)
        no(fetch("huge"), 400, "media_too_large", PLACE)
        start = time.monotonic()
        no(fetch("never"), 504, "media_fetch_timeout", kind="server_error")
        assert time.monotonic() - start < 8 * lib.PATIENCE
        assert fetch(f"redirect/127.0.0.1:{PORT}/good.wav").status == 200
        no(fetch("redirect/169.254.169.254/x"), 400, "media_url_not_allowed", PLACE)
        no(fetch(f"redirect/[::1]:{PORT}/good"), 400, "media_url_not_allowed", PLACE)
        no(fetch(f"redirect/127.0.0.1:{PORT}/redirect/127.0.0.1:{PORT}/redirect/127.0.0.1:{PORT}/redirect/127.0.0.1:{PORT}/good"),
           400, "media_fetch_failed", PLACE)
        m = s.metrics()
        assert m.of("media_fetch_total", result="ok") >= 2 and m.of("media_fetch_total", result="timeout") == 1
    # nobody may fetch where nothing is listed
    with Server() as s:
        no(s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [
            {"type": "audio_url", "audio_url": {"url": f"http://127.0.0.1:{PORT}/good.wav"}}]}]}), 400, "media_url_not_allowed",
           PLACE)


# ---- forms ----------------------------------------------------------------------------------------------------

@case("B33 no file; a file that is a text field")
def b33():
    no(upload([("model", "omni-tiny")]), 400, "missing_required_parameter", "file")
    no(upload([("file", "just text")]), 400, "invalid_type", "file")
    no(upload([("file", "x.wav", b"")]), 400, "media_decode_failed")


@case("B34 forms without boundary, unterminated, of a million parts, with two files")
def b34():
    path = "/v1/audio/transcriptions"
    kind, body = form([("file", "x.wav", WAV)])
    no(server.post(path, body, headers={"Content-Type": "multipart/form-data"}), 400, "invalid_multipart")
    no(server.post(path, body[:-10], headers={"Content-Type": kind}), 400, "invalid_multipart")
    no(server.post(path, b"no boundary in here", headers={"Content-Type": kind}), 400, "invalid_multipart")
    no(upload([("file", "x.wav", WAV), ("file", "y.wav", WAV)]), 400, "invalid_multipart")
    no(server.post(path, body, headers={"Content-Type": kind.replace("xxBOUNDARYxx", "b" * 71)}), 400, "invalid_multipart")
    many = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 10 ** 6 + b"--b--\r\n"
    before = server.peak_rss()
    no(server.post(path, many, headers={"Content-Type": "multipart/form-data; boundary=b"}), 400, "invalid_multipart")
    assert lib.SANITIZED or server.peak_rss() - before < 64 << 20


@case("B35 word times, an unknown language, an unknown format")
def b35():
    f = ("file", "x.wav", WAV)
    no(upload([f, ("response_format", "verbose_json"), ("timestamp_granularities[]", "word")]), 400,
       "unsupported_timestamp_granularity", "timestamp_granularities*")
    no(upload([f, ("language", "klingon")]), 400, "invalid_language", "language")
    no(upload([f, ("response_format", "ass")]), 400, "invalid_value", "response_format")
    no(upload([f, ("response_format", "srt"), ("stream", "true")]), 400, "invalid_value", "stream")
    no(upload([f, ("temperature", "7")]), 400, "invalid_value", "temperature")
    no(upload([f, ("known_speaker_names[]", "x")]), 400, "unsupported_parameter", "known_speaker_names*")
    no(upload([f, ("omnidrop[retension]", "0.3")]), 400, "invalid_value", "omnidrop.retension")
    no(upload([f, ("timestamp_granularities[]", "segment")]), 400, "invalid_value", "timestamp_granularities*")


# ---- HTTP -----------------------------------------------------------------------------------------------------

@case("B36 too long a body, by its length and by its chunks: 413, readable while 64 MiB more come")
def b36():
    limit = 96 << 20
    with Raw(server) as raw:
        raw.send(head("POST", "/v1/chat/completions", length=limit + (60 << 20)))
        piece = bytes(1 << 20)
        for _ in range(60):                    # a client that does not look before it has sent all
            raw.send(piece)
        no(raw.reply(), 413, "request_too_large")
    with Raw(server) as raw:
        raw.send(head("POST", "/v1/chat/completions", "Transfer-Encoding: chunked"))
        piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        try:
            for _ in range(96 + 60):
                raw.send(piece)
        except ConnectionError as e:
            raise AssertionError(f"cut while sending: {e}") from None
        no(raw.reply(), 413, "request_too_large")


@case("B37 other content types and encodings; no length")
def b37():
    body = b'{"messages":[{"role":"user","content":"x"}]}'
    no(server.post("/v1/chat/completions", body, headers={"Content-Type": "text/plain"}), 415, "unsupported_content_type")
    no(server.post("/v1/chat/completions", body, headers={"Content-Encoding": "gzip"}), 415, "unsupported_content_type")
    with Raw(server) as raw:
        raw.send(head("POST", "/v1/chat/completions"))
        no(raw.reply(), 411, "length_required")


@case("B38 framing that two readers could read in two ways: 400 and closed")
def b38():
    body = b'{"messages":[{"role":"user","content":"x"}]}'
    path = "/v1/chat/completions"
    n = len(body)
    te = "Transfer-Encoding: chunked"
    bad = {
        "CL and TE": head("POST", path, te, length=n) + chunked(body),
        "two CL": head("POST", path, f"Content-Length: {n}", length=n) + body,
        "two other CL": head("POST", path, f"Content-Length: {n + 1}", length=n) + body,
        "CL list": head("POST", path, f"Content-Length: {n}, {n}") + body,
        "CL with a sign": head("POST", path, f"Content-Length: +{n}") + body,
        "CL negative": head("POST", path, "Content-Length: -1") + body,
        "CL in hex": head("POST", path, "Content-Length: 0x10") + body,
        "CL of 30 digits": head("POST", path, "Content-Length: " + "9" * 30) + body,
        "TE gzip, chunked": head("POST", path, "Transfer-Encoding: gzip, chunked") + chunked(body),
        "TE identity": head("POST", path, "Transfer-Encoding: identity") + body,
        "TE twice": head("POST", path, te, te) + chunked(body),
        "bare LF": head("GET", "/v1/models").replace(b"\r\n", b"\n"),
        "one bare LF": b"GET /v1/models HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
        "no Host": head("GET", "/v1/models", host=None),
        "two Hosts": head("GET", "/v1/models", "Host: localhost"),
        "%00 in the path": head("GET", "/v1/models/%00"),
        "a control character in the path": b"GET /v1/mod\x01els HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "NUL in a header": b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        "folded header": b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
        "space before the colon": b"GET /v1/models HTTP/1.1\r\nHost : localhost\r\n\r\n",
        "no version": b"GET /v1/models\r\n\r\n",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "bad chunk size": head("POST", path, te) + b"zz\r\nab\r\n0\r\n\r\n",
        "chunk size overflow": head("POST", path, te) + b"ffffffffffffffffff\r\nab\r\n0\r\n\r\n",
        "chunk longer than said": head("POST", path, te) + b"2\r\nabc\r\n0\r\n\r\n",
        "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        "noise": bytes(range(128, 256)) * 3 + b"\r\n\r\n",
    }
    wrong = []
    for name, message in bad.items():
        with Raw(server, 5) as raw:
            try:
                raw.send(message)
                no(raw.reply(), 400, "invalid_http")
                assert raw.closed(), "the connection stays open"
            except (AssertionError, OSError, __import__("http").client.HTTPException) as e:
                wrong.append(f"{name}: {type(e).__name__} {str(e)[:200]}")
    assert not wrong, "\n".join(wrong)


@case("B39 40 KiB of headers, headers and bodies byte by byte")
def b39():
    for message in (head("GET", "/v1/models", *[f"X-{i}: {'y' * 1000}" for i in range(40)]),
                    head("GET", "/v1/models", *[f"X-{i}: y" for i in range(120)]),
                    head("GET", "/v1/models", "X: " + "y" * 9000)):
        with Raw(server) as raw:
            raw.send(message)
            no(raw.reply(), 431, "headers_too_large")
            assert raw.closed()

    def trickle(start, each, n):
        """Seconds until the connection was closed, and the reply if one came."""
        with Raw(server, 60) as raw:
            begin = time.monotonic()
            raw.send(start)
            raw.socket.settimeout(0.5)
            got = b""
            for _ in range(2 * n):
                try:
                    piece = raw.socket.recv(65536)
                    got += piece
                    if not piece:
                        return time.monotonic() - begin, got
                except TimeoutError:
                    try:
                        raw.send(each)
                    except OSError:
                        pass
                except ConnectionError:
                    return time.monotonic() - begin, got
            return None, got
    jobs = [Background(lambda stop: trickle(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"y", 40)),
            Background(lambda stop: trickle(head("POST", "/v1/chat/completions", length=1000), b" ", 40)),
            Background(lambda stop: trickle(b"", b"", 40))]
    (t_head, _), (t_body, got), (t_idle, _) = [j.join(60) for j in jobs]
    assert t_head is not None and 9 <= t_head <= 12, f"header: {t_head}"
    assert t_body is not None and 9 <= t_body <= 14, f"body: {t_body}"
    status, _, rest = got.partition(b"\r\n")
    assert b" 408 " in status + b" " and json.loads(rest.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "request_timeout", got
    note(f"closed after {t_head:.1f} s (head), {t_body:.1f} s (body), {t_idle} s (not a byte)")


@case("B40 the 257th waiting request, wrong method, unknown path")
def b40():
    r = server.get("/v1/chat/completions")
    no(r, 405, "method_not_allowed")
    assert "POST" in r.headers["allow"], r.headers
    for method, path in (("DELETE", "/v1/models"), ("PUT", "/v1/files"), ("PATCH", "/v1/batches"), ("TRACE", "/health")):
        no(server.request(method, path), 405, "method_not_allowed")
    for path in ("/v1/nothing", "/v1/embeddings", "/v1/responses", "/nothing", "/v1", "//v1/models", "/v1/chat/completions/x"):
        no(server.get(path), 404, "unknown_endpoint")
    no(server.post("/v1/embeddings", {}), 404, "unknown_endpoint")
    with Server("--max-num-seqs", 1, "--per-ip-connections", 0, model=lib.RANDOM_MODEL) as s:
        body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True, "ignore_eos": True,
                           "max_tokens": 30000}).encode()
        clients = []
        for i in range(257):
            raw = Raw(s)
            raw.send(head("POST", "/v1/chat/completions", length=len(body)), body)
            clients.append(raw)
            if i == 0:
                wait_for("the first one runs", lambda: s.metrics()["num_requests_running"] == 1)
        wait_for("256 wait", lambda: s.metrics()["num_requests_waiting"] == 256, 20)
        r = s.post("/v1/chat/completions", body)
        no(r, 429, "queue_full", kind="rate_limit_error")
        with Raw(s) as raw:                    # and before its body is read
            raw.send(head("POST", "/v1/chat/completions", length=1 << 20))
            no(raw.reply(), 429, "queue_full", kind="rate_limit_error")
        for c in clients:
            c.close()
        wait_for("all are gone", lambda: s.busy() == 0, 10)


@case("B40 while draining: 503")
def b40_drain():
    s = Server("--drain-timeout", 3, model=lib.RANDOM_MODEL)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True, "ignore_eos": True,
                       "max_tokens": 30000}).encode()
    talking, asking = Raw(s), Raw(s)
    talking.send(head("POST", "/v1/chat/completions", length=len(body)), body)
    asking.send(head("POST", "/v1/chat/completions", length=len(body)), body[:10])     # not idle: it stays
    wait_for("it runs", lambda: s.metrics()["num_requests_running"] == 1)
    s.process.terminate()
    time.sleep(0.3)
    asking.send(body[10:])
    r = asking.reply()
    no(r, 503, "draining", kind="server_error")
    assert r.headers["connection"] == "close"
    asking.close()
    talking.close()
    assert s.process.wait(10 * lib.PATIENCE) == 0
    s.forget()


@case("Host and Origin: only loopback names without keys; no CORS unasked")
def host():
    no(server.get("/v1/models", headers={"Host": "evil.example"}), 403, "host_not_allowed", kind="permission_error")
    r = server.get("/v1/models", headers={"Origin": "http://evil.example"}, check=False)
    assert "access-control-allow-origin" not in r.headers, r.headers


@case("the healthy stream noticed nothing")
def unharmed():
    n, gap = stream.join(60)
    assert n >= 3, n
    assert gap < GAP, f"a gap of {gap:.2f} s"
    note(f"{n} times the same text, longest gap {gap * 1e3:.0f} ms")


@case("every reply matches /openapi.json; every request is over, no child is left")
def valid():
    lib.all_valid()
    server.wait_idle()
    wait_for("no decoder is left", lambda: len(server.children()) == 0, 5)
    assert server.process.poll() is None


@lib.at_end
def the_server_ends_with_status_0():
    status = server.stop()
    assert status == 0, f"{status}\n{server.log_text()[-2000:]}"


if __name__ == "__main__":
    lib.main()
