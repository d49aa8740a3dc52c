"""tests/serve/lib.py - what the tests of the server share: a server on a free port, media, metrics, raw sockets, TAP.

A test file has functions marked with @case("what is true"), and ends with lib.main(). `python test_x.py WORD...` runs
those whose title holds one of the words. OMNIDROP names the program, OMNIDROP_BUILD its folder (made media are kept
there). Every JSON reply that passes through here, and every event of a stream, is validated against the server's own
/openapi.json, against the types of the official client, and, where OPENAI_OPENAPI names a file with the published
description of that API (JSON), against that too.
"""
import base64
import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import httpx2
import jsonschema
import openai
import pydantic
from openai.types import Batch, Completion, FileDeleted, FileObject, Model
from openai.types.audio import (Transcription, TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent,
                                TranscriptionTextSegmentEvent, TranscriptionVerbose, Translation, TranslationVerbose)
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.abspath(os.environ.get("OMNIDROP", os.path.join(ROOT, "build/omnidrop")))
BUILD = os.path.abspath(os.environ.get("OMNIDROP_BUILD", os.path.dirname(PROGRAM)))
DEMO = os.path.join(ROOT, "tests/data/omni-tiny-demo")
FILES = os.path.join(ROOT, "tests/data/media")
RANDOM_MODEL = os.path.join(ROOT, "tests/goldens/odd/checkpoint")      # random weights: talks without end
SANITIZED = "/san" in BUILD
PATIENCE = 6.0 if SANITIZED else 1.0       # what times are multiplied by

# ---- TAP ------------------------------------------------------------------------------------------------------

_cases = []
_at_end = []


def case(title):
    def mark(function):
        _cases.append((title, function))
        return function
    return mark


def at_end(function):
    """Run after the last case, failed or not; in reverse order."""
    _at_end.append(function)
    return function


def note(text):
    print("\n".join("# " + line for line in str(text).splitlines()), flush=True)


class Skip(Exception):
    """The machine lacks what the case needs: said, and counted neither way."""


def main():
    words, bad, n = sys.argv[1:], 0, 0
    try:
        for title, function in _cases:
            if words and not any(w in title for w in words):
                continue
            n += 1
            start = time.monotonic()
            try:
                function()
                print(f"ok - {title}", flush=True)
            except Skip as why:
                note(f"skipped: {title}: {why}")
            except Exception as error:         # noqa: BLE001: whatever a case raises is its failure
                bad += 1
                print(f"not ok - {title}", flush=True)
                note("".join(traceback.format_exception_only(error)).strip()[:1500])
                frames = traceback.extract_tb(error.__traceback__)
                own = [f for f in frames if "/tests/" in f.filename][-3:]
                for f in own:
                    note(f"{os.path.basename(f.filename)}:{f.lineno}: {f.line}")
            if time.monotonic() - start > 10:
                note(f"{time.monotonic() - start:.1f} s: {title}")
    finally:
        for function in reversed(_at_end):
            try:
                function()
            except Exception as error:         # noqa: BLE001
                bad += 1
                print(f"not ok - {function.__name__}: {error}", flush=True)
        for server in list(Server.alive):
            server.kill()
        shutil.rmtree(TEMPORARY, ignore_errors=True)
    if n == 0:
        print("not ok - no case has such a title")
        bad = 1
    sys.exit(1 if bad else 0)


TEMPORARY = tempfile.mkdtemp(prefix="omnidrop-serve-")


def wait_for(what, condition, seconds=10.0, every=0.01):
    """Until condition() is true; its value. Fails with `what` after `seconds` times PATIENCE."""
    end = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds * PATIENCE:.1f} s: {what}")
        time.sleep(every)


# ---- the server -----------------------------------------------------------------------------------------------

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


_libc = ctypes.CDLL(None)


class Server:
    """`omnidrop serve` on a free port of the loopback. Without model: the bundled one."""
    alive = []

    def __init__(self, *options, model=None, key=None, port=None, wait=True, environment=None, uds=None, tls=None,
                 directory=None, before=None, program=PROGRAM, launcher=()):
        self.key, self.uds, self.tls = key, uds, tls
        self.port = None if uds else port or free_port()
        self.directory = directory or tempfile.mkdtemp(dir=TEMPORARY)
        self.log_path = os.path.join(self.directory, "log")
        command = [*launcher, program, "serve"]
        command += ["--uds", uds] if uds else ["--port", str(self.port)]
        for name in ("spool", "state"):
            folder = os.path.join(self.directory, name)
            os.makedirs(folder, exist_ok=True)
            if f"--{name}-dir" not in options:
                command += [f"--{name}-dir", folder]
        if model:
            command += ["-m", model]
        if key:
            command += ["--api-key", key]
        if tls:
            command += ["--ssl-certfile", tls[0], "--ssl-keyfile", tls[1]]
        self.command = command + [str(o) for o in options]
        env = {k: v for k, v in os.environ.items() if not k.startswith("OMNIDROP")}
        env.update(environment or {})
        def child():
            _libc.prctl(1, signal.SIGKILL)     # PR_SET_PDEATHSIG: a test that is killed leaves no server
            if before:
                before()
        self.log = open(self.log_path, "ab")
        self.process = subprocess.Popen(self.command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log, preexec_fn=child)
        Server.alive.append(self)
        if wait:
            self.wait_ready()

    @property
    def pid(self):
        return self.process.pid

    @property
    def root(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def url(self):
        return self.root + "/v1"

    def wait_ready(self, seconds=30.0):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log_text()[-3000:]}")
            try:
                return self.get("/ready", check=False).status == 200
            except OSError:
                return False
        wait_for("the server is ready", ready, seconds, 0.02)

    def log_text(self):
        with open(self.log_path, "rb") as f:
            return f.read().decode("utf-8", "replace")

    def connect(self, timeout=30.0):
        """A connected socket."""
        if self.uds:
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(timeout * PATIENCE)
            s.connect(self.uds)
            return s
        return socket.create_connection(("127.0.0.1", self.port), timeout * PATIENCE)

    def connection(self, timeout=60.0):
        """An http.client connection."""
        c = http.client.HTTPConnection("127.0.0.1", self.port or 80, timeout=timeout * PATIENCE)
        if self.uds:
            c.sock = self.connect(timeout)
        return c

    def request(self, method, path, body=None, headers=None, check=True, timeout=60.0, connection=None):
        """One request; JSON for a dict or list. The reply has .status, .headers, .body, .json()."""
        c = connection or self.connection(timeout)
        headers = dict(headers or {})
        names = {h.lower() for h in headers}
        if self.key and "authorization" not in names:
            headers["Authorization"] = "Bearer " + self.key
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
            if "content-type" not in names:
                headers["Content-Type"] = "application/json"
        elif isinstance(body, str):
            body = body.encode()
        if body is not None and "content-type" not in names and "Content-Type" not in headers:
            headers["Content-Type"] = "application/json"
        c.request(method, path, body, headers)
        reply = Reply(c.getresponse(), method)
        if connection is None:
            c.close()
        if check:
            self.checker().reply(method, path, reply.status, reply.headers.get("content-type", ""), reply.body,
                                 reply.headers)
        return reply

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, body, **more):
        return self.request("POST", path, body, **more)

    def chat(self, content="Hello!", check=True, timeout=60.0, **fields):
        """A chat with one user message; the parsed reply. Fails where the status is not 200."""
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0, **fields}
        reply = self.post("/v1/chat/completions", body, check=check, timeout=timeout)
        assert reply.status == 200, (reply.status, reply.body[:800])
        return reply.json()

    def client(self, asynchronous=False, **more):
        """The official client; what it receives is validated."""
        more = {"base_url": self.url, "api_key": self.key or "none", "max_retries": 0, "timeout": 120 * PATIENCE, **more}
        checker = self.checker()
        if asynchronous:
            async def hook(response):
                checker.watch_async(response)
            more.setdefault("http_client", openai.DefaultAsyncHttpxClient(event_hooks={"response": [hook]}))
            return openai.AsyncOpenAI(**more)
        more.setdefault("http_client", openai.DefaultHttpxClient(event_hooks={"response": [checker.watch]}))
        return openai.OpenAI(**more)

    def checker(self):
        global _checker
        if _checker is None:
            _checker = Checker(self.request("GET", "/openapi.json", check=False).json())
        return _checker

    def metrics(self):
        reply = self.get("/metrics", check=False)
        assert reply.status == 200, reply.body[:300]
        return Metrics(reply.body.decode())

    def busy(self):
        """Requests that run, wait or have their media prepared, by the metrics."""
        m = self.metrics()
        return m["num_requests_running"] + m["num_requests_waiting"]

    def wait_idle(self, seconds=10.0):
        wait_for("no request runs or waits", lambda: self.busy() == 0, seconds)

    # What the operating system knows of the process.
    def rss(self):
        with open(f"/proc/{self.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+) kB", f.read()).group(1)) * 1024

    def heap(self):
        """Resident memory that is no file's."""
        with open(f"/proc/{self.pid}/status") as f:
            return int(re.search(r"RssAnon:\s+(\d+) kB", f.read()).group(1)) * 1024

    def peak_rss(self):
        with open(f"/proc/{self.pid}/status") as f:
            return int(re.search(r"VmHWM:\s+(\d+) kB", f.read()).group(1)) * 1024

    def cpu_seconds(self):
        """Of the server and of its children that are over."""
        with open(f"/proc/{self.pid}/stat") as f:
            return sum(int(x) for x in f.read().rsplit(")", 1)[1].split()[11:15]) / os.sysconf("SC_CLK_TCK")

    def n_fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def children(self):
        found = []
        for task in os.listdir(f"/proc/{self.pid}/task"):
            try:
                with open(f"/proc/{self.pid}/task/{task}/children") as f:
                    found += [int(p) for p in f.read().split()]
            except OSError:
                pass
        return found

    def stop(self, signal_number=signal.SIGTERM, seconds=20.0):
        """Ends it; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        status = self.process.wait(seconds * PATIENCE)
        self.forget()
        return status

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.forget()

    def forget(self):
        self.log.close()
        if self in Server.alive:
            Server.alive.remove(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error[0] is None:
            status = self.stop()
            assert status == 0, f"the server ended with {status}:\n{self.log_text()[-3000:]}"
        else:
            self.kill()


class Reply:
    def __init__(self, response, method="GET"):
        self.status, self.reason = response.status, response.reason
        self.headers = {k.lower(): v for k, v in response.getheaders()}
        self.body = response.read()
        self.method = method

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]

    def events(self):
        return sse(self.body)


def sse(body):
    """The data of each event of a stream; comments are left out; "[DONE]" stays a string."""
    out = []
    for block in body.decode().split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data: "):
                out.append("[DONE]" if line == "data: [DONE]" else json.loads(line[6:]))
            else:
                assert line == "" or line.startswith(":"), f"a line that is neither data nor comment: {line!r}"
    return out


class Metrics:
    """Prometheus text: m["name"] sums over all labels, m.of("name", label="value") over those that match."""

    def __init__(self, text):
        self.series = []
        for line in text.splitlines():
            if line.startswith("#") or not line:
                continue
            name, labels, value = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? (\S+)", line).groups()
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""))
            self.series.append((name.removeprefix("omnidrop:"), labels, float(value)))

    def of(self, name, **labels):
        return sum(v for n, have, v in self.series
                   if n == name and all(have.get(k) == x for k, x in labels.items()))

    def __getitem__(self, name):
        assert self.has(name), f"no metric {name}"
        return self.of(name)

    def has(self, name):
        return any(n == name for n, _, _ in self.series)


# ---- raw bytes ------------------------------------------------------------------------------------------------

def head(method, path, *headers, host="localhost", length=None, kind="application/json", key=None, version="1.1"):
    """The head of a request as bytes."""
    lines = [f"{method} {path} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    if length is not None:
        lines.append(f"Content-Length: {length}")
    if kind and method == "POST":
        lines.append(f"Content-Type: {kind}")
    if key:
        lines.append(f"Authorization: Bearer {key}")
    return ("\r\n".join(lines + list(headers)) + "\r\n\r\n").encode()


class Raw:
    """Bytes to the server and replies from it, no client in between."""

    def __init__(self, server, timeout=30.0):
        self.server, self.socket, self.buffer = server, server.connect(timeout), b""

    def send(self, *pieces):
        for p in pieces:
            self.socket.sendall(p)
        return self

    def reply(self, method="GET"):
        """The next reply, as Reply; its JSON is validated where it is an error."""
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        reply = Reply(response, method)
        if reply.status >= 400 and method != "HEAD":
            error_shape(reply.status, reply.headers, reply.body)
        return reply

    def closed(self, seconds=5.0):
        """Has the server closed (or reset) the connection, after what may still come?"""
        self.socket.settimeout(seconds * PATIENCE)
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def close(self, reset=False):
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def chunked(*pieces):
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def form(fields, boundary="xxBOUNDARYxx"):
    """(content type, body) of multipart/form-data. A field is (name, value) or (name, filename, bytes)."""
    out = b""
    for name, *rest in fields:
        extra = f'; filename="{rest[0]}"\r\nContent-Type: application/octet-stream' if len(rest) == 2 else ""
        value = rest[-1] if isinstance(rest[-1], bytes) else str(rest[-1]).encode()
        out += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", out + f"--{boundary}--\r\n".encode()


# ---- what replies must look like ------------------------------------------------------------------------------

_checker = None
n_validated = 0


def error_shape(status, headers, body):
    """The error contract, 2.1."""
    kind = headers.get("content-type", "")
    assert kind.startswith("application/json"), f"{status} comes as {kind!r}: {body[:200]!r}"
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", headers.get("x-request-id", "")), f"{status} without x-request-id"
    value = json.loads(body)
    assert set(value) == {"error"}, value
    error = value["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str) and error["message"], error
    assert error["param"] is None or isinstance(error["param"], str), error
    assert isinstance(error["code"], str), error
    want = {401: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error")
    assert error["type"] in (want, "server_error" if error["code"] == "insufficient_memory" else want), (status, error)
    text = error["message"]
    assert not re.search(r"(/(?:tmp|work|home|root|usr)/|0x[0-9a-f]{6,})", text), f"a path or address: {text}"
    assert not re.search(r"[A-Za-z0-9+/]{120,}", text), f"base64: {text[:200]}"
    if status in (429, 503) and error["code"] != "insufficient_memory":
        assert re.fullmatch(r"[1-9]|[1-5]\d|60", headers.get("retry-after", "")), \
            f"{status} {error['code']} with Retry-After {headers.get('retry-after')!r}"
    return error


class Checker:
    """Replies against schemas."""
    CLIENT_TYPES = [
        ("GET", r"/v1/models/.+", Model), ("POST", r"/v1/chat/completions", ChatCompletion),
        ("POST", r"/v1/completions", Completion), ("POST", r"/v1/files", FileObject),
        ("GET", r"/v1/files/[^/]+", FileObject), ("DELETE", r"/v1/files/[^/]+", FileDeleted),
        ("POST", r"/v1/batches(/.*)?", Batch), ("GET", r"/v1/batches/[^/]+", Batch),
    ]
    ELEMENT_TYPES = [("/v1/models", Model), ("/v1/files", FileObject), ("/v1/batches", Batch)]
    EVENT_TYPES = {"transcript.text.delta": TranscriptionTextDeltaEvent, "transcript.text.done": TranscriptionTextDoneEvent,
                   "transcript.text.segment": TranscriptionTextSegmentEvent}
    PUBLISHED = [
        ("GET", r"/v1/models", "ListModelsResponse"), ("GET", r"/v1/models/.+", "Model"),
        ("POST", r"/v1/chat/completions", "CreateChatCompletionResponse"),
        ("POST", r"/v1/completions", "CreateCompletionResponse"),
        ("GET", r"/v1/files", "ListFilesResponse"), ("POST", r"/v1/files", "OpenAIFile"),
        ("GET", r"/v1/files/[^/]+", "OpenAIFile"), ("DELETE", r"/v1/files/[^/]+", "DeleteFileResponse"),
        ("GET", r"/v1/batches", "ListBatchesResponse"), ("POST", r"/v1/batches(/.*)?", "Batch"),
        ("GET", r"/v1/batches/[^/]+", "Batch"),
    ]
    PUBLISHED_EVENTS = {"transcript.text.delta": "TranscriptTextDeltaEvent", "transcript.text.done": "TranscriptTextDoneEvent",
                        "transcript.text.segment": "TranscriptTextSegmentEvent"}

    def __init__(self, own):
        self.own = own
        self.published = None
        if os.environ.get("OPENAI_OPENAPI"):
            with open(os.environ["OPENAI_OPENAPI"]) as f:
                self.published = json.load(f)
        registry = Registry().with_resource("urn:own", Resource.from_contents(own, default_specification=DRAFT202012))
        if self.published:
            registry = registry.with_resource(
                "urn:published", Resource.from_contents(self.published, default_specification=DRAFT202012))
        self.registry = registry
        self.validators = {}
        self.failures = []
        self.paths = []
        for template in own["paths"]:
            pattern = re.sub(r"\\\{\w+\\\}", "(?:.+)" if template.startswith("/v1/models/") else "(?:[^/]+)",
                             re.escape(template))
            self.paths.append((re.compile(pattern + "/?"), template))
        self.paths.sort(key=lambda p: "{" in p[1])

    def validate(self, reference, value):
        if reference not in self.validators:
            self.validators[reference] = jsonschema.Draft202012Validator({"$ref": reference}, registry=self.registry)
        errors = sorted(self.validators[reference].iter_errors(value), key=lambda e: len(e.path))
        if reference.startswith("urn:published"):
            # It knows members that are absent but, for most, not that they may be null, as that API itself sends them.
            errors = [e for e in errors if e.instance is not None]
        if errors:
            best = jsonschema.exceptions.best_match(errors)
            raise AssertionError(f"reply does not match {reference}: {best.message[:300]} at {best.json_path}")

    def client_type(self, kind, value):
        try:
            pydantic.TypeAdapter(kind).validate_python(value)
        except pydantic.ValidationError as error:
            raise AssertionError(f"reply is no {kind.__name__} of the client: {error}") from None

    def schema_of(self, method, path, status, kind):
        path = path.split("?")[0]
        for pattern, template in self.paths:
            operation = self.own["paths"][template].get(method.lower())
            if not pattern.fullmatch(path) or operation is None:
                continue
            responses = operation["responses"]
            key = next((k for k in (str(status), f"{status // 100}XX", "default") if k in responses), None)
            assert key is not None, f"/openapi.json does not describe {status} of {method} {template}"
            response, place = responses[key], f"/paths/{escape(template)}/{method.lower()}/responses/{key}"
            if "$ref" in response:
                place = response["$ref"].removeprefix("#")
                response = self.own
                for piece in place.strip("/").split("/"):
                    response = response[piece]
            content = response.get("content", {})
            name = kind.split(";")[0].strip()
            name = name if name in content else "*/*"
            assert name in content, f"/openapi.json does not describe {kind} as {status} of {method} {template}"
            if "schema" not in content[name]:
                return None
            return f"urn:own#{place}/content/{escape(name)}/schema"
        assert status in (400, 401, 404, 405), f"/openapi.json does not describe {method} {path}"
        return None

    def reply(self, method, path, status, kind, body, headers=None):
        global n_validated
        if status >= 400 and method != "HEAD" and headers is not None:
            error_shape(status, headers, body)
        if method == "HEAD" or status == 204:
            return
        if kind.startswith("text/event-stream"):
            self.stream(path, body)
            return
        reference = self.schema_of(method, path, status, kind)
        if kind.split(";")[0] != "application/json":
            return
        value = json.loads(body)
        if reference:
            self.validate(reference, value)
        n_validated += 1
        if status != 200:
            return
        path = path.split("?")[0].rstrip("/")
        for m, pattern, cls in self.CLIENT_TYPES:
            if m == method and re.fullmatch(pattern, path):
                self.client_type(cls, value)
        for prefix, cls in self.ELEMENT_TYPES:
            if path == prefix and method == "GET":
                for element in value["data"]:
                    self.client_type(cls, element)
        match = re.fullmatch(r"/v1/audio/(transcription|translation)s", path)
        if match:
            verbose = "segments" in value
            spoken = match.group(1) == "transcription"
            self.client_type((TranscriptionVerbose if verbose else Transcription) if spoken else
                             (TranslationVerbose if verbose else Translation), value)
            if self.published and spoken:
                name = "CreateTranscriptionResponse" + ("VerboseJson" if verbose else "Json")
                self.validate(f"urn:published#/components/schemas/{name}", value)
        if self.published:
            for m, pattern, name in self.PUBLISHED:
                if m == method and re.fullmatch(pattern, path):
                    self.validate(f"urn:published#/components/schemas/{name}", value)

    def stream(self, path, body):
        global n_validated
        for event in sse(body):
            if event == "[DONE]":
                continue
            n_validated += 1
            if "error" in event:
                assert set(event["error"]) == {"message", "type", "param", "code"}, event
                continue
            if path.endswith("/chat/completions"):
                self.client_type(ChatCompletionChunk, event)
                if self.published:
                    self.validate("urn:published#/components/schemas/CreateChatCompletionStreamResponse", event)
            elif path.endswith("/completions"):
                # Chunks say null until the end, as that API does; the client's type, made for whole replies, does not.
                ended = {**event, "choices": [{**c, "finish_reason": c["finish_reason"] or "stop"} for c in event["choices"]]}
                self.client_type(Completion, ended)
            elif "/audio/" in path:
                assert event.get("type") in self.EVENT_TYPES, event
                self.client_type(self.EVENT_TYPES[event["type"]], event)
                if self.published:
                    self.validate("urn:published#/components/schemas/" + self.PUBLISHED_EVENTS[event["type"]], event)

    # Hooks of the client's transport: what it receives is kept until it is whole.
    def watch(self, response):
        response.stream = Tee(response.stream, lambda body: self.seen(response, body))

    def watch_async(self, response):
        response.stream = AsyncTee(response.stream, lambda body: self.seen(response, body))

    def seen(self, response, body):
        request = response.request
        try:
            if response.headers.get("content-encoding"):
                raise AssertionError("the reply has a content encoding")
            self.reply(request.method, request.url.raw_path.decode(), response.status_code,
                       response.headers.get("content-type", ""), body, {k.lower(): v for k, v in response.headers.items()})
        except AssertionError as error:
            self.failures.append(f"{request.method} {request.url.path} {response.status_code}: {error}")


class Tee(httpx2.SyncByteStream):
    def __init__(self, inner, done):
        self.inner, self.done, self.body, self.whole = inner, done, b"", False

    def __iter__(self):
        for piece in self.inner:
            self.body += piece
            yield piece
        self.whole = True

    def close(self):
        self.inner.close()
        if self.whole or self.body.endswith(b"data: [DONE]\n\n"):     # the client reads no further than that
            self.whole, body, self.body = False, self.body, b""
            self.done(body)


class AsyncTee(httpx2.AsyncByteStream):
    def __init__(self, inner, done):
        self.inner, self.done, self.body, self.whole = inner, done, b"", False

    async def __aiter__(self):
        async for piece in self.inner:
            self.body += piece
            yield piece
        self.whole = True

    async def aclose(self):
        await self.inner.aclose()
        if self.whole or self.body.endswith(b"data: [DONE]\n\n"):     # the client reads no further than that
            self.whole, body, self.body = False, self.body, b""
            self.done(body)


def escape(piece):
    """A piece of a path as a JSON pointer in a URI fragment."""
    return piece.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")


def all_valid():
    """Fails where a reply that the official client took did not match a schema; to be the last case of a file."""
    assert _checker is not None and n_validated > 0, "nothing was validated"
    failures = list(dict.fromkeys(_checker.failures))
    note(f"{n_validated} replies and events validated" + (", also against the published description" if
                                                          _checker.published else ""))
    assert not failures, f"{len(failures)} different ones:\n" + "\n".join(failures[:12])


# ---- media ----------------------------------------------------------------------------------------------------

def demo(name):
    return os.path.join(DEMO, name)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def data_url(path, mime="application/octet-stream"):
    return f"data:{mime};base64," + base64.b64encode(read(path)).decode()


_making = threading.Lock()


def made(name, *arguments):
    """A file made by ffmpeg, once for all tests of this build."""
    folder = os.path.join(BUILD, "serve-media")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    with _making:
        if not os.path.exists(path):
            part = os.path.join(folder, f"part-{os.getpid()}-{name}")
            subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *[str(a) for a in arguments], part], check=True)
            os.rename(part, path)
    return path


def long_film(seconds=240):
    """A film with sound that takes some seconds to decode."""
    return made(f"film{seconds}.mp4", "-f", "lavfi", "-i", f"testsrc2=size=854x480:rate=25:duration={seconds}",
                "-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds}", "-c:v", "mpeg4", "-q:v", "9", "-c:a", "aac",
                "-b:a", "64k")


def speech(seconds, name="speech000.wav"):
    """Speech of the demo over and over, for so many seconds."""
    return made(f"speech{seconds}.wav", "-stream_loop", "-1", "-i", demo(name), "-t", seconds, "-ar", "16000", "-ac", "1")


def image(path, **more):
    return {"type": "image_url", "image_url": {"url": data_url(path, "image/png"), **more}}


def audio(path, format="wav"):
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(read(path)).decode(), "format": format}}


def video(path, **more):
    return {"type": "video_url", "video_url": {"url": data_url(path, "video/mp4")}, **more}


def text(value):
    return {"type": "text", "text": value}


# ---- load beside a test ---------------------------------------------------------------------------------------

class Background:
    """function(stop) on a thread; stop is an Event. join() raises what it raised."""

    def __init__(self, function):
        self.stop, self.error, self.value = threading.Event(), None, None
        self.thread = threading.Thread(target=self.run, args=(function,), daemon=True)
        self.thread.start()

    def run(self, function):
        try:
            self.value = function(self.stop)
        except BaseException as error:         # noqa: BLE001: raised again by join
            self.error = error

    def join(self, seconds=60.0):
        self.stop.set()
        self.thread.join(seconds * PATIENCE)
        assert not self.thread.is_alive(), "a thread of the test did not end"
        if self.error is not None:
            raise self.error
        return self.value
