"""How the server starts, says what it is, and ends: docs/http-api.md 3.6 and 4."""
import base64
import glob
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time

from lib import form
from omni_server import DEMO, PATIENCE, SANITIZED, TALKER, Server, check, events, finish, run

LONG = {"messages": [{"role": "user", "content": "talk"}], "max_tokens": 400, "stream": True, "ignore_eos": True}


CAPACITY = re.compile(r"policy (\S+): of films of (\d+) s with sound \((\d+) \+ (\d+) tokens, (\d+) of text, (\d+) of answer\) the "
                      r"pages hold (\d+) at once[;,] (?:without pruning|(.*) would hold) (\d+) \((\d+\.\d)x\)")


def own_model(directory, defaults):
    """A folder with the bundled model's files and another omnidrop.ini."""
    for name in os.listdir("models/omni-tiny"):
        if name != "omnidrop.ini":
            os.symlink(os.path.abspath("models/omni-tiny/" + name), os.path.join(directory, name))
    with open(os.path.join(directory, "omnidrop.ini"), "w") as f:
        f.write(defaults)


def inspected(*args):
    """Pages of a plan by `inspect schedule`, which counts them by itself."""
    code, out, err = run("inspect", "schedule", "--json", *args)
    return json.loads(out)


def test_capacity():
    """The line is held against a count of its own, from the tokens that it names and the plan that inspect shows."""
    def counted(s, *policy):
        line = CAPACITY.search(s.stderr())
        audio, video, text, answer = (int(line.group(i)) for i in range(3, 7))
        steps = int(line.group(2))
        pages = int(re.search(r"(\d+) pages of \d+ tokens", s.stderr()).group(1))
        plan = inspected("--audio-tokens", str(audio), "--video-steps", str(steps), "--step-tokens", str(video // steps),
                         "--text-tokens", str(text + answer), *policy)
        return int(line.group(7)), int(line.group(9)), pages // plan["pages"], pages // plan["pages_unpruned"]
    for mb, max_len in ((8, 4096), (64, 4096), (16, 1024)):
        with Server("--kv-bytes", str(mb << 20), "--max-model-len", str(max_len)) as s:
            off, on, pruned, whole = counted(s, "--policy", "omnidrop", "--retention", "0.3")
            check("%d MB, context %d: %d and %d films" % (mb, max_len, off, on), (off, on) == (whole, pruned) and on > off, s.stderr())
    with Server("--kv-bytes", str(64 << 20), "--policy", "omnidrop", "--p-final", "0.6", "--max-num-seqs", "2") as s:
        on, off, pruned, whole = counted(s, "--policy", "omnidrop", "--p-final", "0.6")
        check("with a policy: %d films, %d without" % (on, off), (on, off) == (pruned, whole) and on > off, s.stderr())
        check("what --max-num-seqs allows is said where it is less", "--max-num-seqs 2 runs no more than that" in s.stderr(), s.stderr())
    with Server("--policy", "omnidrop", "--retention", "0.95") as s:
        check("a policy that such a film cannot reach is told", re.search("would be refused.*cannot be reached", s.stderr()), s.stderr())


def test_defaults_of_the_model():
    sound = {"type": "input_audio", "input_audio": {
        "data": base64.b64encode(open(DEMO + "/speech000.wav", "rb").read()).decode(), "format": "wav"}}

    def resolved(s, **omnidrop):
        status, body = s.chat([sound, {"type": "text", "text": "What is said?"}], omnidrop={"return_pruning": True, **omnidrop})
        return body["omnidrop"]["resolved"] if status == 200 else body

    def windows(s, *fields):
        kind, body = form([("file", "a.wav", open(DEMO + "/speech000.wav", "rb").read()), ("response_format", "verbose_json"), *fields])
        status, _, text = s.request("POST", "/v1/audio/transcriptions", body, {"Content-Type": kind})
        return [(w["start"], w["end"]) for w in json.loads(text)["segments"]] if status == 200 else text

    with tempfile.TemporaryDirectory() as d:
        own_model(d, "[transcribe]\ninstruction = What is said?\nwindow = 3\noverlap = 0.5\n"
                     "[policy]\nomnidrop.t_mid = 0.25\nomnidrop.p_final = 0.4\nrandom.retention = 0.45\n")
        with Server("-m", d, "--beta", "7") as s:
            got = resolved(s, policy="omnidrop")
            check("a policy has the model's values, and the flag's", (got.get("t_mid"), got.get("p_final"), got.get("beta")) == (0.25, 0.4, 7), got)
            got = resolved(s, policy="omnidrop", t_mid=0.6, p_final=0.5)
            check("the request comes before the model", (got.get("t_mid"), got.get("p_final")) == (0.6, 0.5), got)
            got = resolved(s, retention=0.5)
            check("its retention takes the place of the model's p_final", got.get("retention") == 0.5 and got.get("t_mid") == 0.25
                  and got.get("p_final") != 0.4, got)
            got = resolved(s, policy="random")
            check("another policy has its own", got.get("retention") == 0.45, got)
            got = windows(s)
            check("windows are the model's", len(got) >= 2 and all(b - a <= 3.01 for a, b in got), got)
            got = windows(s, ("omnidrop[window_s]", "30"))
            check("the request's come before", len(got) == 1, got)
        with Server("-m", d, "--policy", "omnidrop", "--t-mid", "0.3", env={"OMNIDROP_P_FINAL": "0.35"}) as s:
            got = resolved(s)
            check("flag and environment come before the model", (got.get("t_mid"), got.get("p_final")) == (0.3, 0.35), got)
        code, out, err = run("serve", "--port", "0", "-m", d, "--p-init", "0.9")
        check("defaults that a flag makes impossible are refused", code == 2 and "p_init 0.9 is above p_final 0.4" in err, (code, err))
        with open(d + "/omnidrop.ini", "w") as f:
            f.write("[policy]\nomnidrop.t_mid = 3\n")
        code, out, err = run("serve", "--port", "0", "-m", d)
        check("a wrong file ends the start, with file, line and range", code == 4 and "omnidrop.ini:2: t_mid is 3: give a number from 0 to 1"
              in err, (code, err))


def test_bare_start():
    with Server() as s:
        took = float(re.search(r"([0-9.]+) s after the start", s.stderr()).group(1))
        check("the bundled model is served within a second of the start", took < (20 if SANITIZED else 1), s.stderr())
        line = [l for l in s.lines if "ready on" in l][0]
        for what, pattern in [("address", r"http://127\.0\.0\.1:\d+"), ("model", "omni-tiny"), ("default", "bundled"),
                              ("device", r"\d+ threads"), ("policy", "policy none"), ("pages", r"\d+ pages of \d+ tokens")]:
            check("the line that says ready names the " + what, re.search(pattern, line), line)
        given = [l for l in s.lines if CAPACITY.search(l)]
        check("one line says what pruning would give", len(given) == 1 and "--policy omnidrop --retention 0.3 would hold" in given[0],
              s.stderr())
        check("/health", s.json("GET", "/health") == (200, {"status": "ok"}))
        check("/ready", s.request("GET", "/ready")[0] == 200)
        status, version = s.json("GET", "/version")
        check("/version names version, backend and policies",
              status == 200 and version["version"] and version["backend"] and "omnidrop" in version["policies"]
              and version["libevent"] and version["ffmpeg"], version)
        status, models = s.json("GET", "/v1/models")
        check("/v1/models", status == 200 and models["object"] == "list" and models["data"][0]["id"] == "omni-tiny", models)
        check("/models is the same for Open WebUI", s.json("GET", "/models") == (200, models))
        check("one model", s.json("GET", "/v1/models/omni-tiny")[1]["object"] == "model")
        status, body = s.json("GET", "/v1/models/nope")
        check("an unknown model", status == 404 and body["error"]["code"] == "model_not_found", body)
        status, body = s.chat("say something", max_tokens=8)
        check("a chat", status == 200 and body["choices"][0]["finish_reason"] in ("stop", "length"), body)
        status, headers, text = s.request("GET", "/metrics")
        check("/metrics", status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
              and b'omnidrop:request_success_total{model_name="omni-tiny"' in text and b"omnidrop:http_requests_total{" in text)
        check("the engine's steps and the request are counted",
              re.search(rb'e2e_request_latency_seconds_count\{[^}]*\} [1-9]', text) and
              re.search(rb'iteration_tokens_total_count\{[^}]*\} [1-9]', text) and
              re.search(rb'generation_tokens_total\{[^}]*\} [1-9]', text), text.decode())
        status, state = s.json("GET", "/v1/omnidrop/state")
        check("the engine's state for the page", status == 200 and state["state"] == "ready" and state["pages"]["total"] > 0
              and state["list"] == [], state)
        status, headers, text = s.request("GET", "/")
        check("the page, and the policy that confines it", status == 200 and b"<!doctype html>" in text[:40]
              and "default-src 'none'" in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"])
        status, body = s.json("GET", "/openapi.json")
        check("/openapi.json names the routes", status == 200 and "/v1/chat/completions" in body["paths"], body)
        status, body = s.json("POST", "/tokenize", {"prompt": "hello"})
        check("/tokenize", status == 200 and body["count"] == len(body["tokens"]) > 0, body)
        check("/detokenize is its inverse", s.json("POST", "/v1/detokenize", {"tokens": body["tokens"]})[1]["prompt"] == "hello")


def test_listening():
    with Server() as s:
        code, out, err = run("serve", "--port", str(s.port))
        check("a port in use is told before the model loads", code == 1 and str(s.port) in err and "in use" in err.lower(), (code, err))
    code, out, err = run("serve", "--host", "0.0.0.0", "--port", "0")
    check("without keys only loopback", code == 2 and "key" in err, (code, err))
    with Server("--no-ui", "--api-key", "sesame", "--metrics-public") as s:
        check("--no-ui: no page", s.request("GET", "/", headers={"Authorization": "Bearer sesame"})[0] == 404)
        status, body = s.json("GET", "/v1/models")
        check("with keys nothing without one", status == 401 and body["error"]["code"] == "invalid_api_key", body)
        check("but with it", s.request("GET", "/v1/models", headers={"Authorization": "Bearer sesame"})[0] == 200)
        check("--metrics-public", s.request("GET", "/metrics")[0] == 200)
        check("the state needs a key", s.request("GET", "/v1/omnidrop/state")[0] == 401)


def test_loading():
    """A model whose vocab.json is a pipe: loading stands still until somebody writes there."""
    with tempfile.TemporaryDirectory() as d:
        for f in glob.glob("models/omni-tiny/*"):
            os.symlink(os.path.abspath(f), os.path.join(d, os.path.basename(f)))
        os.unlink(os.path.join(d, "vocab.json"))
        os.mkfifo(os.path.join(d, "vocab.json"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        s = Server("-m", d, "--served-model-name", "slow", "--port", str(port), ready=False)
        s.port = port
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                s.request("GET", "/health")
                break
            except OSError:
                time.sleep(0.02)
        check("while the model loads /health is 200", s.request("GET", "/health")[0] == 200)
        status, body = s.json("GET", "/ready")
        check("and /ready 503 not_ready", status == 503 and body["error"]["code"] == "not_ready", body)
        status, headers, body = s.request("POST", "/v1/chat/completions", {"messages": []})
        check("and chat too, with Retry-After", status == 503 and 1 <= int(headers["retry-after"]) <= 60, (status, headers, body))
        status, body = s.json("GET", "/models")
        check("and /models has the names", status == 200 and body["data"][0]["id"] == "slow", body)
        check("and the state says loading", s.json("GET", "/v1/omnidrop/state")[1]["state"] == "loading")
        s.signal()
        check("SIGTERM ends it", s.wait() == 0, s.stderr())
        check("and nothing is left in the spool", os.listdir(s.dir.name) == [], os.listdir(s.dir.name))
        s.close()
        os.unlink(os.path.join(d, "vocab.json"))
        shutil.copy("models/omni-tiny/vocab.json", d)
        with Server("-m", d, "--served-model-name", "slow", "--served-model-name", "quick") as s:
            check("served names, the first one echoed", s.chat("hello", max_tokens=1, model="quick")[1]["model"] == "slow")
    code, out, err = run("serve", "--port", "0", "-m", "tests/data")
    check("no model there: exit status 4", code == 4 and "config.json" in err, (code, err))


def stream(s, results, body=LONG):
    """A stream to its end: appends 'first' when the first event came, then the last data, or the exception."""
    c = s.connect()
    try:
        c.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        r, last, n = c.getresponse(), "", 0
        for data in events(r):
            n += 1
            if n == 4:
                results.append("running")
            last = data
        results.append(last)
    except Exception as e:                      # what came of it is what the test looks at
        results.append(repr(e))
    finally:
        c.close()


def running(s, body=LONG):
    results = []
    thread = threading.Thread(target=stream, args=(s, results, body))
    thread.start()
    end = time.monotonic() + PATIENCE
    while not results and time.monotonic() < end:
        time.sleep(0.005)
    return thread, results


def test_drain():
    s = Server("-m", TALKER, "--drain-delay", "1")
    thread, results = running(s)
    s.signal()
    time.sleep(0.3)
    try:
        status, body = s.json("GET", "/ready")
        check("while it drains /ready is 503 draining", status == 503 and body["error"]["code"] == "draining", body)
        status, body = s.chat("hello")
        check("and new requests are refused", status == 503 and body["error"]["code"] == "draining", body)
    except OSError as e:
        check("during the drain delay it still answers", False, repr(e))
    code = s.wait()
    thread.join()
    check("a running stream goes to its end", results[-1] == "[DONE]", results)
    check("exit status 0 after a drain", code == 0, s.stderr())
    s.close()

    s = Server("-m", TALKER, "--drain-timeout", "0.3")
    thread, results = running(s, {**LONG, "max_tokens": 4000})
    s.signal()
    code = s.wait()
    thread.join()
    check("when the drain's time is over streams end with the error draining", '"draining"' in results[-1], results[-1])
    check("and no [DONE]", "[DONE]" not in results[-1])
    check("exit status 0 all the same", code == 0, (code, s.stderr()))
    s.close()

    s = Server("-m", TALKER)
    thread, results = running(s, {**LONG, "max_tokens": 4000})
    s.signal()
    time.sleep(0.2)
    start = time.monotonic()
    s.signal(signal.SIGINT)
    code = s.wait()
    thread.join()
    check("a second signal stops at once, exit status 1", code == 1 and time.monotonic() - start < 5, (code, s.stderr()))
    check("and the stream was not ended as if whole", results[-1] != "[DONE]", results[-1])
    s.close()


def test_hang_up():
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("# keys\nold\n")
        keys.flush()
        with Server("--api-key-file", keys.name) as s:
            ask = lambda key: s.request("GET", "/v1/models", headers={"Authorization": "Bearer " + key})[0]
            check("keys of a file", ask("old") == 200 and ask("new") == 401)
            keys.seek(0)
            keys.write("new\n")
            keys.truncate()
            keys.flush()
            s.signal(signal.SIGHUP)
            end = time.monotonic() + PATIENCE
            while ask("new") != 200 and time.monotonic() < end:
                time.sleep(0.02)
            check("SIGHUP reads them again", ask("new") == 200 and ask("old") == 401)


def test_log():
    with tempfile.TemporaryDirectory() as d:
        log = os.path.join(d, "access")
        with Server("--access-log", log) as s:
            s.request("GET", "/health")
            ends = time.monotonic() + PATIENCE
            while os.path.getsize(log) == 0 and time.monotonic() < ends:
                time.sleep(0.01)
            line = json.loads(open(log).readline())
            check("the access log has a JSON line for a request", "/health" in json.dumps(line) and "200" in json.dumps(line), line)
            os.rename(log, log + ".1")
            s.signal(signal.SIGHUP)
            while not os.path.exists(log) and time.monotonic() < ends:
                time.sleep(0.01)
            s.request("GET", "/ready")
            while os.path.getsize(log) == 0 and time.monotonic() < ends:
                time.sleep(0.01)
            check("after SIGHUP it goes on under its name", "/ready" in open(log).read() and "/ready" not in open(log + ".1").read())


def test_options():
    code, first, err = run("serve", "--print-config", "--port", "8123", "--served-model-name", "a,b", "--served-model-name", "c")
    check("--print-config", code == 0 and "port = 8123" in first and first.startswith("[common]"), err)
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as f:
        f.write(first)
        f.flush()
        code, second, err = run("serve", "--config", f.name, "--print-config")
        check("what it prints reads back the same", code == 0 and first == second, err + second)
        code, third, err = run("serve", "--config", f.name, "--print-config", env={"OMNIDROP_PORT": "8200"})
        check("the environment comes before the file", "port = 8200" in third, err)
        code, third, err = run("serve", "--config", f.name, "--print-config", "--port=8300", env={"OMNIDROP_PORT": "8200"})
        check("and a flag before both", "port = 8300" in third, err)
    code, out, err = run("serve", "--config", "configs/omnidrop.ini", "--print-config")
    check("configs/omnidrop.ini is understood", code == 0 and "max-num-seqs = 32" in out and "policy = none" in out, err)
    unit = open("configs/omnidrop.service").read()
    words = re.search(r"^ExecStart=\S+ (.*)$", unit, re.M).group(1).split()
    words[words.index("--config") + 1] = "configs/omnidrop.ini"
    code, out, err = run(*words, "--print-config")
    check("configs/omnidrop.service starts it with options that there are", code == 0, err)
    for args, want in [(["--port", "70000"], "65535"), (["--max-upload", "lots"], "8G"), (["--max-queue", "0"], "whole number"),
                       (["--limit-mm-per-prompt", "smell=3"], "image"), (["--unknown-fields", "maybe"], "reject"),
                       (["--no-such-thing"], "no such option"), (["a-word"], "a-word"), (["--policy", "guess"], "omnidrop"),
                       (["--config", "no/such.ini"], "no/such.ini")]:
        code, out, err = run("serve", "--port", "0", *([] if args[0] == "--port" else args), *(args if args[0] == "--port" else []))
        check("refused: " + " ".join(args), code == 2 and want in err and out == "", (code, err))


def test_notify():
    with tempfile.TemporaryDirectory() as d, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.path.join(d, "notify"))
        manager.settimeout(PATIENCE)
        with Server(env={"NOTIFY_SOCKET": os.path.join(d, "notify")}) as s:
            check("a service manager is told READY=1", manager.recv(64) == b"READY=1")
            s.signal()
            check("and STOPPING=1", manager.recv(64) == b"STOPPING=1")
            check("exit status 0 when nothing runs", s.wait() == 0, s.stderr())
            check("nothing is left in the spool", os.listdir(s.dir.name) == [], os.listdir(s.dir.name))


if __name__ == "__main__":
    for test in (test_bare_start, test_capacity, test_defaults_of_the_model, test_listening, test_loading, test_drain, test_hang_up, test_log, test_options, test_notify):
        try:
            test()
        except Exception as e:
            check("%s: %r" % (test.__name__, e), False, e)
    finish()
