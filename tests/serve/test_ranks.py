"""Several ranks: mpirun -np 4 omnidrop serve --tp 2 --dp 2, with the official client; what is left when a rank is killed or
stopped while weights load, a prompt is read, an answer is written, or nothing happens; and omnidrop batch on the same ranks.
Nothing may take longer than ten seconds to be noticed, and nobody but the group that lost a rank may suffer.
"""
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import lib
from lib import BUILD, PATIENCE, PROGRAM, RANDOM_MODEL, ROOT, Server, Skip, case, note, wait_for

LIMIT = 10.0 * PATIENCE
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
               "OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMPI_MCA_hwloc_base_binding_policy": "none",
               "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}     # MPI itself leaks
SMALL = ("--threads", 1, "--max-num-seqs", 4, "--drain-timeout", 2)
FILM = os.path.join(lib.FILES, "film.mp4")


def mpirun(n, recovery=True):
    if shutil.which("mpirun") is None or not os.path.exists(os.path.join(BUILD, "omnidrop-mpi.so")):
        raise Skip("no MPI on this machine")
    return ["mpirun"] + ["--enable-recovery"] * recovery + ["-np", str(n)]


class Ranks(Server):
    """The server on tp x dp ranks; pid_of[rank] from the table that it prints. folder: what it has under the number of a group
    is the current folder of that group's ranks."""

    def __init__(self, *options, tp=2, dp=2, wait=True, recovery=True, folder=None, **more):
        launcher = mpirun(tp * dp, recovery)
        if folder:
            launcher += ["bash", "-c", f'cd "$0/$((OMPI_COMM_WORLD_RANK / {tp}))" && exec "$@"', folder]
        super().__init__("--tp", tp, "--dp", dp, *SMALL, *options, launcher=launcher, environment=ENVIRONMENT, wait=False, **more)
        self.tp, self.dp, self.pid_of = tp, dp, {}
        wait_for("the table of ranks is there", self.read_table, 60, 0.05)
        if wait:
            self.wait_ready(120)

    def read_table(self):
        if self.process.poll() is not None:
            raise AssertionError(f"it ended with {self.process.returncode}:\n{self.log_text()[-3000:]}")
        rows = re.findall(r"^(?:omnidrop: )?\s*(\d+)  \S+\s+(\d+)  +(\d+)  ", self.log_text(), re.M)
        self.pid_of = {int(r): int(p) for r, p, _ in rows}
        return len(rows) == self.tp * self.dp

    def groups(self):
        return self.get("/health").json()["groups"]

    def stop(self, seconds=30.0):
        """SIGTERM to rank 0 (to mpirun it would be the end of all within a second); mpirun's exit status."""
        if self.process.poll() is None:
            os.kill(self.pid_of[0], signal.SIGTERM)
        wait_for("rank 0 has ended", lambda: gone(self.pid_of[0]), seconds, 0.05)
        self.end_stopped()
        status = self.process.wait(10 * PATIENCE)
        self.forget()
        return status

    def end_stopped(self):
        """mpirun waits for a stopped rank for ever."""
        for pid in self.pid_of.values():
            if state_of(pid) == "T":
                os.kill(pid, signal.SIGKILL)

    def kill(self):
        for pid in self.pid_of.values():
            for s in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.kill(pid, s)
                except ProcessLookupError:
                    pass
        super().kill()


def state_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def gone(pid):
    return state_of(pid) == "Z"


class Talk:
    """A stream in a thread: its events, and the error it ended with."""

    def __init__(self, server, content="talk", max_tokens=20000):
        self.text, self.error, self.started, self.over = 0, None, threading.Event(), threading.Event()
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "stream": True,
                "ignore_eos": True, "temperature": 0}
        self.thread = threading.Thread(target=self.run, args=(server, body), daemon=True)
        self.thread.start()

    def run(self, server, body):
        try:
            c = server.connection(300)
            c.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            r = c.getresponse()
            if r.status != 200:
                self.error = (r.status, json.loads(r.read())["error"])
                return
            for line in r:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    self.error = (200, event["error"])
                    return
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    self.text += 1
                    self.started.set()
        except Exception as e:                 # noqa: BLE001: a connection that was cut
            self.error = (0, {"code": repr(e), "message": repr(e)})
        finally:
            self.over.set()


# ---- what a client sees ---------------------------------------------------------------------------------------------

def clean(reply):
    """Without what depends on the time, and on what lies in a group's caches."""
    reply = json.loads(json.dumps(reply))
    for key in ("id", "created", "system_fingerprint"):
        reply.pop(key, None)
    reply.get("usage", {}).get("prompt_tokens_details", {}).pop("cached_tokens", None)
    return reply


def questions():
    film = {"type": "video_url", "video_url": {"url": "file://" + os.path.abspath(FILM)}, "fps": 1, "max_pixels": 50176}
    for i in range(6):
        yield [{"type": "text", "text": f"What is number {i}?"}]
    yield [film, {"type": "text", "text": "What is said?"}]
    yield [film, {"type": "text", "text": "What is seen?"}]


@case("tp 2 x dp 2 answers as one process does: chats, films, streams, transcriptions, files, batches")
def equal():
    options = ("--allowed-local-media-path", lib.FILES)
    sound = os.path.join(lib.DEMO, "speech000.wav")
    with Server("--threads", 1, *options) as one:
        want = [clean(one.chat(q, max_tokens=12)) for q in questions()]
        with open(sound, "rb") as f:
            want_sound = one.client().audio.transcriptions.create(model="omni-tiny", file=f, response_format="srt")
    with Ranks(*options) as s:
        assert [g["state"] for g in s.groups()] == ["ready", "ready"], s.groups()
        assert [g["ranks"] for g in s.groups()] == [[0, 1], [2, 3]], s.groups()
        assert s.groups()[0]["hosts"] == s.groups()[1]["hosts"] != "", s.groups()
        assert re.search(r"4 ranks in 2 groups of 2; .*MPI", s.log_text()), s.log_text()
        assert len(re.findall(r"all-reduce \d+ us, [0-9.]+ GB/s", s.log_text())) == 2, s.log_text()
        got = [None] * len(want)

        def ask(i, q):
            got[i] = clean(s.chat(q, max_tokens=12))
        threads = [threading.Thread(target=ask, args=(i, q)) for i, q in enumerate(questions())]
        for t in threads:
            t.start()
        for t in threads:
            t.join(120 * PATIENCE)
        for w, g in zip(want, got):
            assert g == w, (w, g)
        given = [g["given"] for g in s.groups()]
        assert min(given) >= 1 and sum(given) >= len(want), given
        client = s.client()
        for _ in range(3):                     # one of them is at least on each group
            stream = client.chat.completions.create(model="omni-tiny", max_tokens=12, temperature=0, stream=True,
                                                    messages=[{"role": "user", "content": next(questions())}],
                                                    stream_options={"include_usage": True})
            chunks = list(stream)
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == want[0]["choices"][0]["message"]["content"], text
            assert chunks[-1].usage.total_tokens == want[0]["usage"]["total_tokens"]
        talk = Talk(s, max_tokens=300)         # keeps group 0 busy, so that the next ones are group 1's
        with open(sound, "rb") as f:
            bytes_ = f.read()
        for _ in range(2):
            srt = client.audio.transcriptions.create(model="omni-tiny", file=("a.wav", bytes_), response_format="srt")
            assert srt == want_sound, (srt, want_sound)
        talk.over.wait(60 * PATIENCE)
        lines = [{"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions",
                  "body": {"messages": [{"role": "user", "content": q}], "max_tokens": 12, "temperature": 0}}
                 for i, q in enumerate(questions()) if i < 6]
        up = client.files.create(file=("b.jsonl", "\n".join(json.dumps(x) for x in lines).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=up.id, endpoint="/v1/chat/completions", completion_window="24h")
        wait_for("the batch is over", lambda: client.batches.retrieve(batch.id).status == "completed", 60, 0.2)
        out = client.files.content(client.batches.retrieve(batch.id).output_file_id).text
        for line in out.splitlines():
            o = json.loads(line)
            assert clean(o["response"]["body"])["choices"] == want[int(o["custom_id"])]["choices"], o
        m = s.get("/metrics", check=False).body.decode()
        for g in "01":
            assert re.search(r'omnidrop:kv_pages\{[^}]*state="total",group="%s"\} [1-9]' % g, m), m
            assert re.search(r'omnidrop:group_up\{[^}]*group="%s"\} 1\n' % g, m), m
        assert re.search(r'request_success_total\{[^}]*\} [1-9]', m)
        assert s.stop(seconds=30) == 0
        wait_for("all ranks are gone", lambda: all(gone(p) for p in s.pid_of.values()), 10)


@case("groups of one rank on one host share its memory, and say so")
def shared_host():
    many = ("--max-num-seqs", 4096)            # more than a quarter of any memory holds
    with Server("--threads", 1, *many) as one:
        alone = one.metrics().of("kv_pages", state="total")
        assert "share the memory" not in one.log_text()
    with Ranks(*many, tp=1, dp=2) as s:
        wait_for("it says so", lambda: "2 ranks share the memory of this host" in s.log_text(), 10)     # mpirun brings it along
        assert [abs(2 * g["pages"]["total"] - alone) <= 2 for g in s.groups()] == [True, True], (alone, s.groups())
    with Ranks(*many, "--kv-bytes", 1 << 24, tp=1, dp=2) as s:
        assert "share the memory" not in s.log_text()


@case("what cannot be started says what to start")
def refused():
    def run(n, *options):
        env = {k: v for k, v in os.environ.items() if not k.startswith("OMNIDROP")} | ENVIRONMENT
        command = [PROGRAM, "serve", "--port", str(lib.free_port()), *options]
        r = subprocess.run((mpirun(n)[:1] + ["-np", str(n)] if n else []) + command, cwd=ROOT, env=env, capture_output=True,
                           text=True, timeout=60 * PATIENCE)
        return r.returncode, r.stderr
    code, err = run(0, "--dp", "2")
    assert code == 2 and "mpirun -np 2" in err, (code, err)
    code, err = run(3, "--tp", "2", "--dp", "2")
    assert code != 0 and "mpirun -np 4" in err, (code, err)
    code, err = run(2, "--dp", "2", "-m", "no-such-folder")
    assert code != 0 and "no-such-folder" in err, (code, err)
    for _ in range(3):                         # ranks that end because they cannot load are no deaths
        code, err = run(2, "--tp", "2", "-m", "no-such-folder")
        assert code == 4 and "no-such-folder" in err and "group 0" not in err, (code, err)


# ---- deaths ---------------------------------------------------------------------------------------------------------

def kill_one(s, rank, how):
    os.kill(s.pid_of[rank], how)
    return time.monotonic()


def group1_is_lost(s, since=None):
    wait_for("group 1 is known to be gone", lambda: s.groups()[1]["state"] == "gone", 10, 0.05)
    if since:
        took = time.monotonic() - since
        assert took < LIMIT, took
        note(f"noticed after {took:.1f} s")
    g = s.groups()
    assert g[0]["state"] == "ready" and "rank 3" in g[1]["why"], g
    wait_for("the log names it", lambda: re.search(r"group 1 is gone.*rank 3\b", s.log_text()), 5)
    assert s.get("/ready").status == 200
    assert 'group_up{' in s.get("/metrics", check=False).body.decode()
    s.chat("still there?", max_tokens=4)
    wait_for("its leader has ended too", lambda: gone(s.pid_of[2]), 10)


@case("of three groups two go on when one is lost among requests")
def three_groups():
    with Ranks(tp=1, dp=3) as s:
        over, errors = threading.Event(), []

        def client(i):
            while not over.is_set():
                talk = Talk(s, f"What is number {i}?", 8)
                talk.over.wait(60 * PATIENCE)
                if talk.error:
                    errors.append(talk.error)
        threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        try:
            wait_for("all groups have had requests", lambda: min(g["given"] for g in s.groups()) >= 1, 60)
            since = kill_one(s, 2, signal.SIGKILL)
            wait_for("group 2 is known to be gone", lambda: s.groups()[2]["state"] == "gone", 10, 0.05)
            assert time.monotonic() - since < LIMIT
            had = [g["given"] for g in s.groups()]
            wait_for("both others get more", lambda: all(g["given"] >= n + 3 for g, n in zip(s.groups()[:2], had)), 60)
        finally:
            over.set()
            for t in threads:
                t.join(60 * PATIENCE)
        assert [g["state"] for g in s.groups()] == ["ready", "ready", "gone"], s.groups()
        assert all(e[1]["code"] == "group_lost" for e in errors), errors
        wait_for("no request is left", lambda: all(g["jobs"] == 0 for g in s.groups()), 20)
        assert not gone(s.pid_of[1])
        s.stop()
        wait_for("the other leader has ended", lambda: gone(s.pid_of[1]), 10)
        assert not re.search(r"(rank|group) 1 ends", s.log_text()), s.log_text()     # in good order


class Slow:
    """Current folders for two groups, with the model in each; that of `slow` has a file that comes through a pipe, so that
    the leader of that group is loading until this says otherwise."""

    def __init__(self, slow):
        self.folder = tempfile.mkdtemp(dir=lib.TEMPORARY)
        self.end = -1
        for group in "01":
            model = os.path.join(self.folder, group, "model")
            os.makedirs(model)
            for name in os.listdir(RANDOM_MODEL):
                os.symlink(os.path.join(RANDOM_MODEL, name), os.path.join(model, name))
        self.pipe = os.path.join(self.folder, str(slow), "model", "omnidrop.ini")
        os.mkfifo(self.pipe)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.end >= 0:
            os.close(self.end)

    def reading(self):
        """Nobody can open a pipe for writing, without waiting, before somebody reads it."""
        try:
            self.end = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO, error
        return self.end >= 0


def enter(phase, started, running):
    """A request (None in idle) that is seen to be in that phase; running(): requests of its group."""
    if phase == "idle":
        wait_for("the group is idle", lambda: running() == 0, 20, 0.01)
        return None
    if phase == "decode":
        talk = started()
        assert talk.started.wait(60 * PATIENCE), talk.error
        return talk
    for words in (2000, 9000):                 # the longer one is for a machine that has read 2000 before anyone looks
        talk = started("red green blue " * words, 50)
        wait_for("its prompt is read", lambda: running() == 1 or talk.started.is_set(), 60, 0.01)
        if talk.text == 0:
            return talk
        talk.over.wait(60 * PATIENCE)
    raise AssertionError("prompts are read before anyone sees that")


def ended_by(talk, since, phase):
    assert talk.over.wait(LIMIT), "the request has not ended"
    took = time.monotonic() - since
    assert took < LIMIT, took
    assert talk.error, "it has an answer"
    assert phase == "decode" or talk.text == 0, "a token came: the prompt was read already"
    return took


def lost_while(how, phase):
    with Ranks(model=RANDOM_MODEL) as s:
        witness = Talk(s)                      # on group 0: the next one is group 1's
        assert witness.started.wait(60 * PATIENCE), witness.error

        def started(*given):
            talk = Talk(s, *given)
            wait_for("group 1 has it", lambda: s.groups()[1]["jobs"] == 1, 20, 0.01)
            return talk
        talk = enter(phase, started, lambda: s.groups()[1]["requests"]["running"])
        since = kill_one(s, 3, how)
        if talk:
            took = ended_by(talk, since, phase)
            status, error = talk.error
            assert error["code"] in ("group_lost", "engine_error", "engine_dead") and status in (200, 500, 503), talk.error
            note(f"its request ended after {took:.1f} s: {status} {error['code']}: {error['message'][:160]}")
        group1_is_lost(s, since)
        before = witness.text
        wait_for("the others go on", lambda: witness.over.is_set() or witness.text > before, 20)
        assert witness.error is None, witness.error


def lost_while_loading(how):
    with Slow(1) as slow:
        s = Ranks(model="model", folder=slow.folder, wait=False)
        try:
            wait_for("the leader of group 1 loads", slow.reading, 60, 0.01)
            since = kill_one(s, 3, how)
            wait_for("the leader of group 1 has ended", lambda: gone(s.pid_of[2]), 10, 0.05)
            took = time.monotonic() - since
            assert took < LIMIT, took
            note(f"noticed after {took:.1f} s")
            s.wait_ready(60)
            group1_is_lost(s)
        finally:
            s.kill()


HOW = ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "stopped"))
for _how, _name in HOW:
    case(f"a worker of group 1 is {_name} in loading: noticed within 10 s, the others load on")(
        lambda how=_how: lost_while_loading(how))
    for _phase in ("idle", "prefill", "decode"):
        case(f"a worker of group 1 is {_name} in {_phase}: noticed within 10 s, the others go on")(
            lambda how=_how, phase=_phase: lost_while(how, phase))


def named_end(s, rank, since):
    """Rank 0 has named who is gone and ended, and so has mpirun, not with 0."""
    wait_for("rank 0 has ended", lambda: gone(s.pid_of[0]), 10, 0.05)
    took = time.monotonic() - since
    assert took < LIMIT, took
    s.end_stopped()
    status = s.process.wait(10 * PATIENCE)
    assert status != 0, status
    assert re.search(rf"error: .*rank {rank}\b|mpirun noticed that process rank {rank} ", s.log_text()), s.log_text()
    note(f"rank 0 ended after {took:.1f} s, mpirun with status {status}")


def job_ends(how, phase):
    """One group, and mpirun as people start it."""
    slow = Slow(0) if phase == "loading" else None
    s = Ranks(model="model" if slow else RANDOM_MODEL, dp=1, recovery=False, wait=not slow, folder=slow and slow.folder)
    try:
        talk = None
        if slow:
            wait_for("rank 0 loads", slow.reading, 60, 0.01)
        else:
            talk = enter(phase, lambda *given: Talk(s, *given), lambda: s.metrics()["num_requests_running"])
        since = kill_one(s, 1, how)
        if talk:
            ended_by(talk, since, phase)
            if how == signal.SIGSTOP:          # one that is killed has mpirun end all at once
                assert talk.error[0] in (200, 500, 503) and "rank 1" in talk.error[1]["message"], talk.error
        named_end(s, 1, since)
    finally:
        if slow:
            slow.__exit__()
        s.kill()


for _how, _name in HOW:
    for _phase in ("loading", "idle", "prefill", "decode"):
        case(f"the worker of the only group is {_name} in {_phase}: requests end with an error, the job ends, not with 0")(
            lambda how=_how, phase=_phase: job_ends(how, phase))


@case("a worker of group 0 of two is killed or stopped: requests end with an error, rank 0 names the rank and ends, and all with it")
def group0():
    for how, _ in HOW:
        s = Ranks(model=RANDOM_MODEL)
        try:
            talks = [Talk(s), Talk(s)]
            for t in talks:
                assert t.started.wait(60 * PATIENCE), t.error
            since = kill_one(s, 1, how)
            for t in talks:
                assert t.over.wait(LIMIT) and t.error, t.error
            wait_for("rank 0 has ended", lambda: gone(s.pid_of[0]), 10, 0.05)
            took = time.monotonic() - since
            assert took < LIMIT, took
            assert re.search(r"error: .*rank 1\b", s.log_text()), s.log_text()
            wait_for("the other leader has ended", lambda: gone(s.pid_of[2]), 10, 0.05)
            note(f"over after {took:.1f} s; {talks[0].error}")
        finally:
            s.kill()


@case("rank 0 is killed, or asked to end, while it loads: all end")
def rank0_loading():
    for how in (signal.SIGKILL, signal.SIGTERM):
        with Slow(0) as slow:
            s = Ranks(model="model", folder=slow.folder, wait=False)
            try:
                wait_for("rank 0 loads", slow.reading, 60, 0.01)
                since = kill_one(s, 0, how)
                wait_for("all have ended", lambda: all(gone(p) for p in s.pid_of.values()), 10, 0.05)
                note(f"over after {time.monotonic() - since:.1f} s")
            finally:
                s.kill()


@case("rank 0 is killed: the others end by themselves")
def rank0():
    s = Ranks(model=RANDOM_MODEL)
    try:
        kill_one(s, 0, signal.SIGKILL)
        wait_for("all have ended", lambda: all(gone(p) for p in s.pid_of.values()), 10, 0.05)
    finally:
        s.kill()


@case("SIGTERM to rank 0 drains all groups; a second one stops")
def drained():
    s = Ranks("--drain-timeout", 60, model=RANDOM_MODEL)
    try:
        talks = [Talk(s, max_tokens=60), Talk(s, max_tokens=60)]
        for t in talks:
            assert t.started.wait(60 * PATIENCE), t.error
        os.kill(s.pid_of[0], signal.SIGTERM)
        for t in talks:
            assert t.over.wait(60 * PATIENCE) and t.error is None, t.error
        wait_for("all have ended", lambda: all(gone(p) for p in s.pid_of.values()), 20, 0.05)
    finally:
        s.kill()
    s = Ranks("--drain-timeout", 60, model=RANDOM_MODEL)
    try:
        talk = Talk(s)
        assert talk.started.wait(60 * PATIENCE), talk.error
        os.kill(s.pid_of[0], signal.SIGTERM)
        time.sleep(0.3)
        os.kill(s.pid_of[0], signal.SIGTERM)
        wait_for("all have ended", lambda: all(gone(p) for p in s.pid_of.values()), 10, 0.05)
    finally:
        s.kill()


# ---- the offline batch ----------------------------------------------------------------------------------------------

@case("omnidrop batch on ranks: the same answers, also where a group dies in the middle")
def batch():
    with tempfile.TemporaryDirectory() as d:
        lines = [{"custom_id": f"l{i}", "method": "POST", "url": "/v1/chat/completions",
                  "body": {"messages": [{"role": "user", "content": f"count to {i}"}], "max_tokens": 400 + 20 * i,
                           "temperature": 0, "ignore_eos": True}} for i in range(24)]
        given = os.path.join(d, "in.jsonl")
        with open(given, "w") as f:
            f.writelines(json.dumps(x) + "\n" for x in lines)
        env = {k: v for k, v in os.environ.items() if not k.startswith("OMNIDROP")} | ENVIRONMENT

        def answers(path):
            with open(path) as f:
                rows = [json.loads(x) for x in f]
            assert sorted(r["custom_id"] for r in rows) == sorted(x["custom_id"] for x in lines)
            return {r["custom_id"]: r["response"]["body"]["choices"] for r in rows}

        def command(out, *options):
            return [PROGRAM, "batch", "-m", RANDOM_MODEL, "-i", given, "-o", os.path.join(d, out), "--threads", "1",
                    "--max-concurrency", "2", *options]
        r = subprocess.run(command("one.jsonl"), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300 * PATIENCE)
        assert r.returncode == 0, r.stderr
        want = answers(os.path.join(d, "one.jsonl"))
        for kill in (False, True):
            out = f"many{kill}.jsonl"
            log = os.path.join(d, out + ".log")
            with open(log, "w") as f:
                p = subprocess.Popen(mpirun(4) + command(out, "--tp", "2", "--dp", "2"), cwd=ROOT, env=env, stderr=f, stdout=f)
            try:
                if kill:
                    path = os.path.join(d, out)
                    wait_for("some lines are answered", lambda: os.path.exists(path) and open(path).read().count("\n") >= 3,
                             120, 0.02)
                    rank3 = re.search(r"^(?:omnidrop: )?\s*3  \S+\s+(\d+)  ", open(log).read(), re.M)
                    os.kill(int(rank3.group(1)), signal.SIGKILL)
                p.wait(300 * PATIENCE)
            finally:
                p.kill()
            text = open(log).read()
            assert answers(os.path.join(d, out)) == want, text
            assert ("group 1 is gone" in text) == kill, text


@case("omnidrop batch on one group: its worker is killed or stopped, the job ends, not with 0, and --resume goes on")
def batch_ends():
    with tempfile.TemporaryDirectory() as d:
        n = 12
        given, out, log = (os.path.join(d, name) for name in ("in.jsonl", "out.jsonl", "log"))
        with open(given, "w") as f:
            f.writelines(json.dumps({"custom_id": f"l{i}", "method": "POST", "url": "/v1/chat/completions",
                                     "body": {"messages": [{"role": "user", "content": f"count to {i}"}], "max_tokens": 800,
                                              "temperature": 0, "ignore_eos": True}}) + "\n" for i in range(n))
        env = {k: v for k, v in os.environ.items() if not k.startswith("OMNIDROP")} | ENVIRONMENT

        def answered():
            return open(out).read().count("\n") if os.path.exists(out) else 0

        def start():
            with open(log, "w") as f:
                return subprocess.Popen(mpirun(2, recovery=False) + [
                    PROGRAM, "batch", "-m", RANDOM_MODEL, "-i", given, "-o", out, "--threads", "1", "--max-concurrency", "2",
                    "--tp", "2", "--resume"], cwd=ROOT, env=env, stderr=f, stdout=f)
        for how, _ in HOW:
            before, p, pids = answered(), start(), {}
            try:
                wait_for("a line is answered", lambda: answered() > before, 120, 0.02)
                pids = {int(r): int(i) for r, i in re.findall(r"^(?:omnidrop: )?\s*(\d+)  \S+\s+(\d+)  +\d+  ", open(log).read(), re.M)}
                since = time.monotonic()
                os.kill(pids[1], how)
                wait_for("rank 0 has ended", lambda: gone(pids[0]), 10, 0.05)
                took = time.monotonic() - since
                assert took < LIMIT, took
                if how == signal.SIGSTOP:
                    os.kill(pids[1], signal.SIGKILL)       # mpirun waits for one that is stopped
                status = p.wait(20 * PATIENCE)
            finally:
                for pid in pids.values():
                    if not gone(pid):
                        os.kill(pid, signal.SIGKILL)
                p.kill()
            text = open(log).read()
            assert status != 0 and answered() < n, (status, answered())
            assert re.search(r"error: .*rank 1\b|mpirun noticed that process rank 1 ", text), text
            note(f"rank 0 ended after {took:.1f} s, mpirun with status {status}, {answered()} of {n} lines answered")
        p = start()
        assert p.wait(300 * PATIENCE) == 0, open(log).read()
        with open(out) as f:
            rows = [json.loads(x) for x in f]
        assert sorted(r["custom_id"] for r in rows) == sorted(f"l{i}" for i in range(n))
        assert all(r["response"]["status_code"] == 200 for r in rows)


if __name__ == "__main__":
    lib.main()
