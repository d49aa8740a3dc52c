"""What the tests of the server share: the program started and ended, requests over http.client, TAP lines.

Only the standard library. OMNIDROP names the program, OMNIDROP_BUILD its build folder; the tests run in the
repository's root."""
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

PROGRAM = os.environ.get("OMNIDROP", "build/omnidrop")
BUILD = os.environ.get("OMNIDROP_BUILD", os.path.dirname(PROGRAM))
SANITIZED = "san" in BUILD
PATIENCE = 120 if SANITIZED else 60         # seconds until something counts as hanging
DEMO = "tests/data/omni-tiny-demo"
TALKER = "tests/goldens/odd/checkpoint"     # random weights: answers run to their length

_failed = 0


def check(what, holds, detail=""):
    global _failed
    print(("ok - " if holds else "not ok - ") + what, flush=True)
    if not holds:
        _failed += 1
        for line in str(detail).splitlines()[:20]:
            print("#   " + line, flush=True)
    return bool(holds)


def finish():
    sys.exit(1 if _failed else 0)


def environment(**extra):
    env = {k: v for k, v in os.environ.items() if not k.startswith("OMNIDROP_")}
    env.update(extra)
    return env


class Server:
    """omnidrop serve on a port of its own. `with Server("-m", DIR) as s:` waits until it is ready."""

    def __init__(self, *args, ready=True, port=True, env=None, **popen):
        self.dir = tempfile.TemporaryDirectory(prefix="omnidrop-serve-")
        self.lines, self.port, self.ended = [], 0, False
        words = [PROGRAM, "serve"] + (["--port", "0", "--spool-dir", self.dir.name] if port else []) + list(args)
        self.started = time.monotonic()
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env=environment(**(env or {})), **popen)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if ready:
            self.wait_for(r"ready on https?://[^ ]*:(\d+)")

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
        self.ended = True

    def stderr(self):
        return "\n".join(self.lines)

    def wait_for(self, pattern):
        """Until a line of stderr matches; its first group is the port where it has one."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for line in list(self.lines):
                found = re.search(pattern, line)
                if found:
                    if found.groups():
                        self.port = int(found.group(1))
                    return found
            if self.ended:
                break
            time.sleep(0.01)
        raise RuntimeError("the server never said %r; it said:\n%s" % (pattern, self.stderr()))

    def connect(self, timeout=PATIENCE):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=PATIENCE):
        """(status, headers, bytes); a body that is no bytes is sent as JSON."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        c = self.connect(timeout)
        try:
            c.request(method, path, body, headers)
            r = c.getresponse()
            return r.status, {k.lower(): v for k, v in r.getheaders()}, r.read()
        finally:
            c.close()

    def json(self, method, path, body=None, headers=None):
        status, _, text = self.request(method, path, body, headers)
        return status, json.loads(text)

    def chat(self, text, **fields):
        return self.json("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, timeout=PATIENCE):
        """The exit status."""
        code = self.process.wait(timeout)
        self.reader.join(5)
        return code

    def close(self):
        if self.process.poll() is None:
            self.signal()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            if self.process.returncode != 0:        # also what a leak ends with
                check("the server ended well", False, "exit status %d\n%s" % (self.process.returncode, self.stderr()[-2000:]))
        self.process.stdout.close()
        self.reader.join(5)
        self.process.stderr.close()
        self.dir.cleanup()
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()
        return False


def run(*args, env=None):
    """The program to its end: (exit status, stdout, stderr)."""
    p = subprocess.run([PROGRAM, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       env=environment(**(env or {})), timeout=PATIENCE)
    return p.returncode, p.stdout.decode(), p.stderr.decode()


def events(response):
    """The data of a stream's events, as they come; comments come as strings that start with ':'."""
    while True:
        line = response.readline()
        if not line:
            return
        line = line.decode().rstrip("\n")
        if line.startswith("data: "):
            yield line[6:]
        elif line.startswith(":"):
            yield line
