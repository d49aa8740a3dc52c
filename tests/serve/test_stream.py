"""Streams and what cuts them short: docs/http-api.md 1.4, 2.3. A model of random weights talks as long as it may, so that
a request can be caught in each phase."""
import json
import re
import socket
import struct
import time

from omni_server import PATIENCE, TALKER, Server, check, events, finish


def body(n, **fields):
    return json.dumps({"messages": [{"role": "user", "content": "talk"}], "max_tokens": n, "ignore_eos": True, **fields}).encode()


def start(s, n, **fields):
    c = s.connect()
    c.request("POST", "/v1/chat/completions", body(n, **fields), {"Content-Type": "application/json"})
    return c


def streaming(s, n, **fields):
    c = start(s, n, stream=True, **fields)
    return c, c.getresponse()


def metric(s, name, **labels):
    for line in s.request("GET", "/metrics")[2].decode().splitlines():
        if re.match(r"omnidrop:%s[ {]" % name, line) and all('%s="%s"' % kv in line for kv in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    return None


def waits(holds):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return False


def idle(s):
    return waits(lambda: s.json("GET", "/v1/omnidrop/state")[1]["list"] == [])


def test_shape():
    with Server() as s:
        ask = {"messages": [{"role": "user", "content": "Which number comes after four?"}], "temperature": 0}
        whole = s.json("POST", "/v1/chat/completions", ask)[1]
        status, headers, text = s.request("POST", "/v1/chat/completions",
                                          {**ask, "stream": True, "stream_options": {"include_usage": True}})
        check("headers of a stream", status == 200 and headers["content-type"] == "text/event-stream; charset=utf-8"
              and headers["cache-control"] == "no-cache" and headers["x-accel-buffering"] == "no", headers)
        blocks = text.decode().split("\n\n")
        check("every event is one data line", blocks[-1] == "" and all(re.match(r"(data|): ?[^\n]*$", b) or b.startswith(": ")
                                                                       for b in blocks[:-1]), text)
        data = [b[6:] for b in blocks if b.startswith("data: ")]
        check("[DONE] ends it", data[-1] == "[DONE]")
        chunks = [json.loads(d) for d in data[:-1]]
        check("first the role", chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}, chunks[0])
        check("one id, time and model", len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1)
        check("the text is that of the whole reply", "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
              == whole["choices"][0]["message"]["content"] != "", (chunks, whole))
        ends = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
        check("one finish reason, at the end", ends[-1] == "stop" and ends[:-1] == [None] * (len(ends) - 1), ends)
        check("then the usage", chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
              and all(c["usage"] is None for c in chunks[:-1]), chunks[-1])
        status, _, text = s.request("POST", "/v1/completions", {"prompt": "dog", "max_tokens": 3, "stream": True})
        check("completions stream too", status == 200 and text.endswith(b"data: [DONE]\n\n") and b"text_completion" in text, text)
        status, _, text = s.request("POST", "/v1/chat/completions", {**ask, "stream": True, "temperature": 9})
        check("an error before the commit has its own status", status == 400 and json.loads(text)["error"]["param"] == "temperature", text)
        check("and is counted", metric(s, "request_failure_total", code="invalid_value", route="/v1/chat/completions") == 1)


def test_queue():
    with Server("-m", TALKER, "--max-num-seqs", "1", "--max-queue", "2", "--stream-commit-ms", "100", "--stream-ping", "0.2",
                "--queue-timeout", "1.5") as s:
        first, r = streaming(s, 20000)
        check("the first one runs", next(events(r)) and waits(lambda: metric(s, "num_requests_running") == 1))
        begun = time.monotonic()
        second, r2 = streaming(s, 5)
        check("a stream that waits is committed all the same", r2.status == 200 and 0.05 < time.monotonic() - begun < 1.4,
              time.monotonic() - begun)
        third = start(s, 5)
        check("two wait", waits(lambda: metric(s, "num_requests_waiting") == 2))
        status, headers, text = s.request("POST", "/v1/chat/completions", json.loads(body(5)))
        check("one more is refused: queue_full, with Retry-After", status == 429 and json.loads(text)["error"]["code"] == "queue_full"
              and 1 <= int(headers["retry-after"]) <= 60, (status, headers, text))
        check("and counted", metric(s, "request_failure_total", code="queue_full", route="/v1/chat/completions") == 1)
        seen = list(events(r2))
        check("silence is filled with comments", sum(e.startswith(": ") for e in seen) >= 3, seen)
        check("after the commit an error is an event", json.loads(seen[-1])["error"]["code"] == "queue_timeout", seen)
        check("without [DONE], and cut so that no client takes it for whole", "[DONE]" not in seen and broken_end(second, r2))
        r3 = third.getresponse()
        check("without a stream it is a status", r3.status == 503 and json.loads(r3.read())["error"]["code"] == "queue_timeout")
        leave(first, r)
        check("the engine is free again", idle(s))
        check("and answers", s.chat("hello", max_tokens=2)[0] == 200)


def broken_end(c, r):
    """The chunked body has no last chunk."""
    return r.chunked and r.chunk_left != 0 or r.fp is None or r.isclosed() or c.sock is None


def leave(c, r=None):
    """Away without a word, as a killed client."""
    sock = c.sock or (r and r.fp and r.fp.raw._sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if r:
        r.close()
    c.close()


def test_gone():
    with Server("-m", TALKER, "--max-num-seqs", "1") as s:
        c, r = streaming(s, 20000)
        for _ in range(3):
            next(events(r))
        leave(c, r)
        begun = time.monotonic()
        check("gone in the middle of a stream: the request ends", idle(s))
        check("soon", time.monotonic() - begun < 3, time.monotonic() - begun)
        check("counted by its phase", metric(s, "client_disconnects_total", phase="decode") == 1)
        check("and as an abort", waits(lambda: metric(s, "request_success_total", finished_reason="abort") == 1))

        c = start(s, 20000)
        check("a request without a stream runs", waits(lambda: metric(s, "num_requests_running") == 1))
        waiting = start(s, 10)
        check("another waits", waits(lambda: metric(s, "num_requests_waiting") == 1))
        leave(waiting)
        check("gone while it waits: taken from the queue", waits(lambda: metric(s, "num_requests_waiting") == 0))
        check("counted as such", metric(s, "client_disconnects_total", phase="queue") == 1)
        leave(c)
        check("gone without a stream: seen all the same", idle(s))
        gauges = s.json("GET", "/v1/omnidrop/state")[1]["pages"]
        check("every page is free or cached", gauges["free"] + gauges["cached"] == gauges["total"] and gauges["reserved"] == 0, gauges)

        c = s.connect()
        c.connect()
        c.sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                       b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.1)
        leave(c)
        check("gone in the middle of its body", waits(lambda: metric(s, "client_disconnects_total", phase="upload") == 1))


def test_side_by_side():
    with Server("-m", TALKER) as s:
        alone = s.json("POST", "/v1/chat/completions", json.loads(body(40, temperature=0)))[1]["choices"][0]["message"]["content"]
        pairs = [streaming(s, 40, temperature=0) for _ in range(8)]
        texts = []
        for c, r in pairs:
            data = [json.loads(d) for d in events(r) if d[0] == "{"]
            texts.append("".join(d["choices"][0]["delta"].get("content") or "" for d in data if d["choices"]))
            c.close()
        check("eight streams side by side, the same text as alone", texts == [alone] * 8 and alone, (alone, texts))
        check("as many answers are counted", metric(s, "request_success_total", finished_reason="length") == 10)  # warm-up too


if __name__ == "__main__":
    for test in (test_shape, test_queue, test_gone, test_side_by_side):
        try:
            test()
        except Exception as e:
            check("%s: %r" % (test.__name__, e), False, e)
    finish()
