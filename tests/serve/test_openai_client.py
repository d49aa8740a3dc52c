"""Goal: an unmodified client of the OpenAI API works: rows A1 to A34 of docs/http-api.md 6.1.
Method: the official Python client against the real server with the bundled model, whose answers are known; every reply
that it takes is validated (lib.Checker)."""
import asyncio
import json
import os
import re
import signal
import threading
import time

import openai

import lib
from lib import Background, Server, audio, case, demo, image, note, text, video, wait_for

KEY = "sk-one"
_shared = None


def server():
    """One server for all cases that leave it as it was."""
    global _shared
    if _shared is None:
        _shared = Server("--api-key", "sk-two", "--served-model-name", "omni-tiny", "--served-model-name", "org/name",
                         "--served-model-name", "whisper-1", "--max-num-seqs", 32, "--per-ip-connections", 0, key=KEY)
    return _shared


@lib.at_end
def shared_server_ends_with_status_0():
    if _shared is not None:
        status = _shared.stop()
        assert status == 0, f"{status}\n{_shared.log_text()[-2000:]}"


def ask(question="What is said?", *parts, client=None, **more):
    model = "" if client else "omni-tiny"
    client = client or server().client()
    content = [*parts, text(question)] if parts else question
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}],
                                          **{"temperature": 0, **more})


def answer(*arguments, **more):
    return ask(*arguments, **more).choices[0].message.content


# ---- models, chat ---------------------------------------------------------------------------------------------

@case("A1 models: list and retrieve, a slash in a name survives")
def a1():
    client = server().client()
    names = [m.id for m in client.models.list()]
    assert names == ["omni-tiny", "org/name", "whisper-1"], names
    one = client.models.retrieve("org/name")
    assert one.id == "org/name" and one.object == "model" and one.owned_by == "omnidrop", one
    assert one.max_model_len == 4096 and "video" in one.architecture["input_modalities"], one
    assert server().get("/v1/models/org/name").json()["id"] == "org/name"
    assert server().get("/v1/models/").status == 200


@case("A2 chat: text, usage, request id")
def a2():
    r = ask("Repeat: dog red seven")
    assert r.choices[0].message.content == "dog red seven", r
    assert r.choices[0].message.role == "assistant" and r.choices[0].finish_reason == "stop"
    u = r.usage
    assert u.total_tokens == u.prompt_tokens + u.completion_tokens and u.completion_tokens == 4, u
    d = u.prompt_tokens_details
    assert d.text_tokens + d.image_tokens + d.audio_tokens + d.video_tokens == u.prompt_tokens, d
    assert r._request_id and r.id.startswith("chatcmpl-") and r.object == "chat.completion"
    assert r.system_fingerprint.startswith("od-"), r.system_fingerprint
    assert abs(r.created - time.time()) < 60
    assert "omnidrop" not in (r.model_extra or {}), "statistics nobody asked for"
    mine = server().client().with_options(default_headers={"x-request-id": "my-id_1.x"})
    assert ask("Hello!", client=mine)._request_id == "my-id_1.x"



@case("A3 chat stream: role, deltas, finish; the text of A2")
def a3():
    q = "What is on the screen when bird is said?"
    want = answer(q, video(demo("av000.mp4")))
    client = server().client()
    chunks = list(client.chat.completions.create(model="omni-tiny", temperature=0, stream=True, messages=[
        {"role": "user", "content": [video(demo("av000.mp4")), text(q)]}]))
    got = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert got == want == "a blue cross and a red star", (got, want)
    first = chunks[0].choices[0]
    assert first.delta.role == "assistant" and first.delta.content == "" and first.finish_reason is None, first
    finished = [c for c in chunks if c.choices[0].finish_reason]
    assert len(finished) == 1 and finished[0] is chunks[-1] and finished[0].choices[0].finish_reason == "stop"
    assert not chunks[-1].choices[0].delta.content
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert all(c.object == "chat.completion.chunk" for c in chunks)
    assert sum(1 for c in chunks if c.choices[0].delta.role) == 1


@case("A3 on the wire: headers, one line of data an event, [DONE] at the end")
def a3_wire():
    r = server().post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}], "stream": True})
    assert r.headers["content-type"] == "text/event-stream; charset=utf-8", r.headers
    assert r.headers["cache-control"] == "no-cache" and r.headers["x-accel-buffering"] == "no", r.headers
    assert r.headers.get("transfer-encoding") == "chunked" and "content-length" not in r.headers
    assert r.events()[-1] == "[DONE]" and r.body.endswith(b"data: [DONE]\n\n")
    assert all(e["usage"] is None for e in r.events()[:-1] if "usage" in e)


@case("A4 stream with usage: a last chunk without choices")
def a4():
    plain = ask("Who are you?")
    chunks = list(ask("Who are you?", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert all(c.usage is None and "usage" in c.to_dict(exclude_unset=True) for c in chunks[:-1])
    assert chunks[-1].usage.to_dict() == plain.usage.to_dict() or \
        chunks[-1].usage.total_tokens == plain.usage.total_tokens, (chunks[-1].usage, plain.usage)


@case("A5 the client's stream helper returns content and usage")
def a5():
    client = server().client()
    with client.chat.completions.stream(model="omni-tiny", messages=[{"role": "user", "content": "Hello!"}], temperature=0,
                                        stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == answer("Hello!"), final
    assert final.choices[0].finish_reason == "stop" and final.usage.total_tokens > 0
    assert "content.delta" in kinds and "content.done" in kinds, set(kinds)


# ---- media ----------------------------------------------------------------------------------------------------

@case("A6 images by data URL; two between texts; the order is kept")
def a6():
    r = ask("How many shapes are shown?", image(demo("image000.png")))
    assert r.usage.prompt_tokens_details.image_tokens > 0, r.usage
    first, second = image(demo("image000.png")), image(demo("image001.png"))
    parts = lambda a, b: [{"role": "user", "content": [text("one"), a, text("two"), b, text("What is shown?")]}]   # noqa: E731
    client = server().client()
    both = [client.chat.completions.create(model="", messages=parts(*p), temperature=0, logprobs=True)
            for p in ((first, second), (second, first))]
    tokens = [b.usage.prompt_tokens_details.image_tokens for b in both]
    alone = [ask("?", p).usage.prompt_tokens_details.image_tokens for p in (first, second)]
    assert tokens[0] == tokens[1] == sum(alone), (tokens, alone)
    assert [t.logprob for t in both[0].choices[0].logprobs.content] != [t.logprob for t in both[1].choices[0].logprobs.content]
    low = ask("?", image(demo("image000.png"), detail="low"))
    assert low.usage.prompt_tokens_details.image_tokens <= alone[0]


@case("A7 input_audio, wav and mp3: 25 tokens a second, the right words")
def a7():
    r = ask("What is said?", audio(demo("speech000.wav")))
    assert r.choices[0].message.content == "sleep green three nine jump sing bird cat", r.choices[0]
    seconds = os.path.getsize(demo("speech000.wav")) / 32000
    assert abs(r.usage.prompt_tokens_details.audio_tokens - 25 * seconds) <= 2, (r.usage, seconds)
    mp3 = lib.made("speech000.mp3", "-i", demo("speech000.wav"), "-b:a", "128k")
    m = ask("What is said?", audio(mp3, "mp3"))
    assert abs(m.usage.prompt_tokens_details.audio_tokens - r.usage.prompt_tokens_details.audio_tokens) <= 2
    hinted = ask("What is said?", audio(mp3, "wav"))           # the format is a hint: the bytes decide
    assert hinted.choices[0].message.content == m.choices[0].message.content
    part = audio(demo("speech000.wav"))
    part["input_audio"]["data"] = "data:audio/wav;base64," + part["input_audio"]["data"]
    assert answer("What is said?", part) == r.choices[0].message.content


@case("A8 A9 video_url with and without its sound")
def a8():
    r = ask("Transcribe the speech.", video(demo("av000.mp4")))
    d = r.usage.prompt_tokens_details
    assert r.choices[0].message.content == "zero bird then" and d.video_tokens > 0 and d.audio_tokens > 0, r
    deaf = ask("What is shown at second 3?", video(demo("av000.mp4"), use_audio=False))
    d = deaf.usage.prompt_tokens_details
    assert d.audio_tokens == 0 and d.video_tokens > 0, d
    silent = ask("What is shown at second 3?", video(demo("video000.mp4")))    # no track: no error
    assert silent.usage.prompt_tokens_details.audio_tokens == 0 and silent.choices[0].message.content == "a blue square"


@case("A8 the demo questions get the model's answers, media in every shape of 1.3")
def demo_questions():
    lines = [json.loads(line) for line in open(os.path.join(lib.DEMO, "answers.jsonl"))]
    wrong = []
    for i, line in enumerate(lines[::4]):
        name = line.get("video") or line.get("audio") or line.get("image")
        if name is None:
            part = []
        else:
            url = lib.data_url(demo(name))
            kind = "video" if name.endswith("mp4") else "image" if name.endswith("png") else "audio"
            shapes = [{"type": f"{kind}_url", f"{kind}_url": {"url": url}}, {"type": f"{kind}_url", f"{kind}_url": url},
                      {"type": kind, kind: url}, {"type": "file", "file": {"file_data": url, "filename": name}}]
            part = [shapes[i % 4]]
        got = answer(line["question"], *part)
        if got != line["model_says"]:
            wrong.append((name, line["question"], line["model_says"], got))
    assert len(wrong) * 12 <= len(lines[::4]), wrong
    note(f"{len(lines[::4]) - len(wrong)} of {len(lines[::4])}; {wrong}")


@case("A10 a file by id answers as inline")
def a10():
    client = server().client()
    f = client.files.create(file=open(demo("av001.mp4"), "rb"), purpose="user_data")
    by_id = ask("Write down every word you hear.", {"type": "file", "file": {"file_id": f.id}}, logprobs=True)
    inline = ask("Write down every word you hear.", video(demo("av001.mp4")), logprobs=True)
    assert by_id.choices[0].message.content == inline.choices[0].message.content == "down one five near"
    assert [t.logprob for t in by_id.choices[0].logprobs.content] == [t.logprob for t in inline.choices[0].logprobs.content]
    try:
        ask("?", {"type": "file", "file": {"file_id": f.id}}, client=server().client(api_key="sk-two"))
        raise AssertionError("another key may read the file")
    except openai.BadRequestError as e:
        raise AssertionError(f"400 {e.code}") from None
    except openai.NotFoundError as e:
        assert e.code == "not_found", e.body
    client.files.delete(f.id)


@case("A11 A12 the omnidrop object: statistics on request only, never growing with depth")
def a11():
    wish = {"policy": "omnidrop", "retention": 0.45, "return_pruning": True}    # what step 0 leaves of so short a film
    r = ask("Transcribe the speech.", video(demo("av000.mp4")), extra_body={"omnidrop": wish})
    s = r.omnidrop
    kept = s["kept_per_layer"]
    assert len(kept) == s["layers"] == 12 and all(a >= b for a, b in zip(kept, kept[1:])), s
    d = r.usage.prompt_tokens_details
    assert s["av_tokens_in"] == {"audio": d.audio_tokens, "video": d.video_tokens, "image": 0}, (s, d)
    n = sum(s["av_tokens_in"].values())
    assert abs(sum(kept) / (12 * n) - 0.45) < 0.02 and abs(s["mean_retention"] - sum(kept) / (12 * n)) < 1e-3, s
    assert s["policy"] == "omnidrop" and s["resolved"]["p_final"] > 0 and s["kv_bytes"] < s["kv_bytes_unpruned"], s
    for key in ("kept_last", "cached_layers", "encode_ms", "prefill_ms"):
        assert key in s, key
    quiet = ask("Transcribe the speech.", video(demo("av000.mp4")), extra_body={"omnidrop": {"policy": "omnidrop"}})
    assert "omnidrop" not in (quiet.model_extra or {})
    assert quiet.usage.prompt_tokens == r.usage.prompt_tokens, "bills depend on the policy"
    chunks = list(ask("Transcribe the speech.", video(demo("av000.mp4")), stream=True, extra_body={"omnidrop": wish},
                      stream_options={"include_usage": True}))
    assert "omnidrop" in chunks[-1].model_extra and not any("omnidrop" in (c.model_extra or {}) for c in chunks[:-1])
    detail = ask("Transcribe the speech.", video(demo("av000.mp4")),
                 extra_body={"omnidrop": {"policy": "none", "return_pruning": True}})
    assert detail.omnidrop["kept_per_layer"] == [n] * 12 and detail.omnidrop["mean_retention"] == 1.0, detail.omnidrop


# ---- sampling -------------------------------------------------------------------------------------------------

@case("A13 n = 3, seeded: three choices, the same again")
def a13():
    go = lambda **m: ask("A joke about a fish and a car?", n=3, seed=11, temperature=2.0, max_tokens=24,              # noqa: E731
                         extra_body={"ignore_eos": True}, **m)               # of what it was never taught it is not sure
    one, two = go(), go()
    texts = [c.message.content for c in one.choices]
    assert [c.index for c in one.choices] == [0, 1, 2]
    assert texts == [c.message.content for c in two.choices], (texts, two)
    assert len(set(texts)) > 1, texts
    assert one.usage.completion_tokens == 72, one.usage
    parts = {0: "", 1: "", 2: ""}
    ended = []
    for c in go(stream=True):
        for choice in c.choices:
            parts[choice.index] += choice.delta.content or ""
            ended += [choice.index] if choice.finish_reason else []
    assert sorted(ended) == [0, 1, 2] and list(parts.values()) == texts, (parts, texts)


@case("A14 logprobs: one entry a token, bytes that join to the text")
def a14():
    r = ask("Repeat: dog red seven", logprobs=True, top_logprobs=5)
    entries = r.choices[0].logprobs.content
    joined = b"".join(bytes(t.bytes) for t in entries if t.bytes is not None).decode()
    assert joined.removesuffix("<|im_end|>") == r.choices[0].message.content, joined
    assert r.usage.completion_tokens - 1 <= len(entries) <= r.usage.completion_tokens
    for t in entries:
        assert len(t.top_logprobs) == 5 and t.top_logprobs[0].logprob >= t.logprob - 1e-6 and t.logprob <= 0, t
        values = [x.logprob for x in t.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert t.token == t.top_logprobs[0].token, "greedy takes the likeliest"
    assert ask("Hello!").choices[0].logprobs is None
    none = ask("Hello!", logprobs=True)
    assert all(t.top_logprobs == [] for t in none.choices[0].logprobs.content)
    chunks = list(ask("Repeat: dog red seven", logprobs=True, top_logprobs=5, stream=True))
    flat = [t for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [t.logprob for t in flat] == [t.logprob for t in entries], "the stream's logprobs differ"


@case("A15 stop strings and length")
def a15():
    full = answer("Repeat: dog red seven")
    r = ask("Repeat: dog red seven", stop=[" red"])
    assert r.choices[0].message.content == full.split(" red")[0] and r.choices[0].finish_reason == "stop", r
    across = ask("Repeat: dog red seven", stop=["g r"], stream=True)            # over the border of two tokens
    assert "".join(c.choices[0].delta.content or "" for c in across) == "do"
    r = ask("Repeat: dog red seven", max_completion_tokens=1)
    assert r.choices[0].finish_reason == "length" and r.usage.completion_tokens == 1, r
    assert ask("Repeat: dog red seven", max_tokens=1000, max_completion_tokens=2).usage.completion_tokens == 2
    assert ask("Repeat: dog red seven", stop="\n").choices[0].finish_reason == "stop"


@case("A16 completions: string, list of strings, ids, echo, stream")
def a16():
    client = server().client()
    go = lambda prompt, **m: client.completions.create(model="omni-tiny", prompt=prompt, temperature=0,    # noqa: E731
                                                       **{"max_tokens": 6, **m})
    prompt = ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
              "<|im_start|>user\nRepeat: dog red seven<|im_end|>\n<|im_start|>assistant\n")
    r = go(prompt)
    assert r.object == "text_completion" and r.choices[0].text.startswith("dog red seven"), r
    ids = server().post("/tokenize", {"prompt": prompt, "add_special_tokens": False}).json()["tokens"]
    assert go(ids).choices[0].text == r.choices[0].text and r.usage.prompt_tokens == len(ids), (r.usage, len(ids))
    other = prompt.replace("dog red seven", "cat")
    two = go([prompt, other])
    assert [c.index for c in two.choices] == [0, 1] and two.choices[0].text == r.choices[0].text
    assert two.choices[1].text == go(other).choices[0].text != r.choices[0].text, two
    assert go([ids, ids]).choices[1].text == r.choices[0].text
    echoed = go("Hello", echo=True, max_tokens=2)
    assert echoed.choices[0].text.startswith("Hello"), echoed
    assert "".join(c.choices[0].text for c in go(prompt, stream=True) if c.choices) == r.choices[0].text
    assert client.completions.create(model="omni-tiny", prompt="Hello", extra_body={"ignore_eos": True}
                                     ).usage.completion_tokens == 16, "the default of max_tokens is 16"
    scored = go(prompt, logprobs=2)
    lp = scored.choices[0].logprobs
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.text_offset) == len(lp.top_logprobs), lp


# ---- transcription --------------------------------------------------------------------------------------------

SPOKEN = "sleep green three nine jump sing bird cat"


def transcribe(client=None, name="speech000.wav", **more):
    client = client or server().client()
    with open(demo(name), "rb") as f:
        return client.audio.transcriptions.create(file=f, model="whisper-1", **more)


@case("A17 transcription of sound and of film; usage is a duration")
def a17():
    r = transcribe()
    seconds = os.path.getsize(demo("speech000.wav")) / 32000
    assert r.text.strip() == SPOKEN and r.usage.type == "duration" and abs(r.usage.seconds - seconds) < 1.01, r
    assert transcribe(name="av000.mp4").text.strip() == "zero bird then"
    named = server().client().audio.transcriptions.create(file=("x.bin", open(demo("speech000.wav"), "rb")), model="",
                                                          language="EN", prompt="numbers", temperature=0)
    assert isinstance(named.text, str)


def cues(srt, comma):
    """A parser of our own: [(start, end, text)]."""
    out = []
    for block in srt.strip("\n").split("\n\n"):
        lines = block.split("\n")
        if lines[0].startswith("WEBVTT"):
            continue
        if comma:
            assert lines.pop(0) == str(len(out) + 1), block
        m = re.fullmatch(r"(\d\d):(\d\d):(\d\d)[.,](\d{3}) --> (\d\d):(\d\d):(\d\d)[.,](\d{3})", lines[0])
        assert m and (("," in lines[0]) == comma), block
        t = [int(x) for x in m.groups()]
        at = [3600 * t[i] + 60 * t[i + 1] + t[i + 2] + t[i + 3] / 1000 for i in (0, 4)]
        assert at[0] < at[1] and (not out or out[-1][1] <= at[0]), block
        out.append((*at, "\n".join(lines[1:])))
    return out


@case("A18 formats text, srt, vtt come as strings that parse")
def a18():
    assert transcribe(response_format="text") == SPOKEN + "\n"
    srt, vtt = transcribe(response_format="srt"), transcribe(response_format="vtt")
    assert isinstance(srt, str) and isinstance(vtt, str) and vtt.startswith("WEBVTT\n\n")
    a, b = cues(srt, True), cues(vtt, False)
    assert a == b and " ".join(c[2] for c in a).split() == SPOKEN.split(), (a, b)
    kind, body = lib.form([("file", "a.wav", lib.read(demo("speech000.wav"))), ("response_format", "srt")])
    r = server().post("/v1/audio/transcriptions", body, headers={"Content-Type": kind}, check=False)
    assert r.headers["content-type"].startswith("application/x-subrip"), r.headers


@case("A19 verbose_json with segments: all ten keys, a duration that is a number")
def a19():
    r = transcribe(response_format="verbose_json", timestamp_granularities=["segment"])
    seconds = os.path.getsize(demo("speech000.wav")) / 32000
    assert isinstance(r.duration, float) and abs(r.duration - seconds) < 0.1 and r.language == "english", r
    assert " ".join(s.text.strip() for s in r.segments).split() == SPOKEN.split() == r.text.split()
    for i, s in enumerate(r.segments):
        have = s.to_dict(exclude_unset=True)
        for key in ("id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio",
                    "no_speech_prob"):
            assert key in have, key
        assert s.id == i and 0 <= s.start < s.end <= r.duration + 0.01 and s.avg_logprob <= 0 <= s.no_speech_prob <= 1, s


@case("A20 transcription as a stream: deltas join to the text of one done event")
def a20():
    long = lib.speech(20)
    client = server().client()
    events = list(client.audio.transcriptions.create(file=open(long, "rb"), model="whisper-1", stream=True))
    done = [e for e in events if e.type == "transcript.text.done"]
    deltas = [e.delta for e in events if e.type == "transcript.text.delta"]
    assert len(done) == 1 and events[-1] is done[0] and "".join(deltas) == done[0].text, events
    assert len(deltas) > 1 and done[0].usage.type == "tokens" and done[0].usage.total_tokens == \
        done[0].usage.input_tokens + done[0].usage.output_tokens, done
    plain = client.audio.transcriptions.create(file=open(long, "rb"), model="whisper-1")
    assert plain.text.split() == done[0].text.split()
    segments = [e for e in client.audio.transcriptions.create(
        file=open(long, "rb"), model="whisper-1", stream=True, timestamp_granularities=["segment"])
        if e.type == "transcript.text.segment"]
    assert segments and all(s.start < s.end for s in segments)


@case("A22 translation to English")
def a22():
    with open(demo("speech000.wav"), "rb") as f:
        r = server().client().audio.translations.create(file=f, model="whisper-1")
    assert r.text.strip(), r
    with open(demo("speech000.wav"), "rb") as f:
        v = server().client().audio.translations.create(file=f, model="whisper-1", response_format="verbose_json")
    assert v.duration > 1 and v.segments, v


# ---- files and batches ----------------------------------------------------------------------------------------

@case("A23 files: create, list by pages of one, retrieve, content, range, delete")
def a23():
    client = server().client(api_key="sk-two")
    contents = [os.urandom(1000 + i) for i in range(5)]
    made = [client.files.create(file=(f"f{i}.bin", c), purpose="user_data") for i, c in enumerate(contents)]
    assert all(re.fullmatch(r"file-[0-9A-Za-z_-]{20,}", f.id) and f.bytes == 1000 + i for i, f in enumerate(made)), made
    assert [f.id for f in client.files.list(limit=1, order="asc")] == [f.id for f in made]
    assert [f.id for f in client.files.list(limit=2)] == [f.id for f in reversed(made)]
    page = client.files.list(limit=5)
    assert page.has_more is False and page.first_id == made[4].id and page.last_id == made[0].id, page
    one = client.files.retrieve(made[2].id)
    assert one.filename == "f2.bin" and one.purpose == "user_data" and one.status in ("processed", "error"), one
    assert client.files.content(made[2].id).read() == contents[2]
    r = server().get(f"/v1/files/{made[2].id}/content", headers={"Authorization": "Bearer sk-two", "Range": "bytes=10-19"},
                     check=False)
    assert r.status == 206 and r.body == contents[2][10:20] and r.headers["content-range"] == "bytes 10-19/1002", r.headers
    assert list(server().client().files.list(purpose="batch_output")) == []
    for f in made:
        gone = client.files.delete(f.id)
        assert gone.deleted is True and gone.id == f.id and gone.object == "file", gone
    for call in (client.files.retrieve, client.files.delete, client.files.content):
        try:
            call(made[0].id)
            raise AssertionError("a deleted file is there")
        except openai.NotFoundError as e:
            assert e.code == "not_found", e.body
    assert client.files.wait_for_processing(client.files.create(file=open(demo("speech000.wav"), "rb"),
                                                                purpose="user_data").id).status == "processed"


def batch_lines(n, refused=(), **more):
    out = []
    for i in range(n):
        body = {"model": "omni-tiny", "messages": [{"role": "user", "content": f"Repeat: {['dog', 'cat', 'red'][i % 3]}"}],
                "temperature": 0, **more}
        if i in refused:
            body = [{**body, "temperature": 3}, {**body, "stream": True}, {**body, "model": "nope"}][refused.index(i)]
        out.append({"custom_id": f"line-{i}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    return out


def submit_batch(client, lines, **more):
    f = client.files.create(file=("in.jsonl", "\n".join(json.dumps(x) for x in lines).encode() + b"\n"), purpose="batch")
    return client.batches.create(input_file_id=f.id, endpoint="/v1/chat/completions", completion_window="24h", **more)


@case("A24 a batch of 100 lines, three refused: 97 done, 3 failed, every custom_id once")
def a24():
    client = server().client()
    refused = [13, 50, 88]
    b = submit_batch(client, batch_lines(100, refused), metadata={"who": "me"})
    assert b.object == "batch" and b.status in ("validating", "in_progress") and b.metadata == {"who": "me"}, b
    wait_for("the batch is done", lambda: client.batches.retrieve(b.id).status not in ("validating", "in_progress", "finalizing"),
             60, 0.2)
    b = client.batches.retrieve(b.id)
    assert b.status == "completed", b
    c = b.request_counts
    assert (c.total, c.completed, c.failed) == (100, 97, 3), c
    good = [json.loads(x) for x in client.files.content(b.output_file_id).read().splitlines()]
    bad = [json.loads(x) for x in client.files.content(b.error_file_id).read().splitlines()]
    assert sorted(x["custom_id"] for x in good + bad) == sorted(f"line-{i}" for i in range(100))
    assert {x["custom_id"] for x in bad} == {f"line-{i}" for i in refused}, bad
    for x in good:
        i = int(x["custom_id"][5:])
        assert x["response"]["status_code"] == 200 and x["error"] is None and x["id"].startswith("batch_req_"), x
        assert x["response"]["body"]["choices"][0]["message"]["content"] == ["dog", "cat", "red"][i % 3], x
    assert sorted(x["response"]["status_code"] for x in bad) == [400, 400, 404], bad
    assert all(x["response"]["body"]["error"]["code"] for x in bad)
    assert client.files.retrieve(b.output_file_id).purpose == "batch_output"
    assert b.id in [x.id for x in client.batches.list(limit=1)]
    assert b.created_at <= b.in_progress_at <= b.finalizing_at <= b.completed_at, b


@case("A24 a batch is cancelled; its input cannot be deleted while it lives")
def a24_cancel():
    client = server().client()
    b = submit_batch(client, batch_lines(60, ignore_eos=True, max_tokens=3000))
    wait_for("the batch runs", lambda: client.batches.retrieve(b.id).status == "in_progress", 20, 0.05)
    try:
        client.files.delete(b.input_file_id)
        raise AssertionError("the input of a live batch was deleted")
    except openai.ConflictError as e:
        assert e.code == "file_in_use" and e.response.headers["x-should-retry"] == "false", e.body
    assert client.batches.cancel(b.id).status in ("cancelling", "cancelled")
    wait_for("the batch is cancelled", lambda: client.batches.retrieve(b.id).status == "cancelled", 65, 0.2)
    b = client.batches.retrieve(b.id)
    lines = [json.loads(x) for f in (b.output_file_id, b.error_file_id) if f
             for x in client.files.content(f).read().splitlines()]
    assert sorted(x["custom_id"] for x in lines) == sorted(f"line-{i}" for i in range(60)), len(lines)
    never = [x for x in lines if x["response"] is None]
    assert never and all(x["error"]["code"] == "batch_cancelled" for x in never), never[:1]
    client.files.delete(b.input_file_id)


@case("A24 a batch with bad lines fails in validation and says which")
def a24_bad():
    client = server().client()
    lines = batch_lines(3)
    lines[1]["custom_id"] = "line-0"
    f = client.files.create(file=("in.jsonl", "\n".join(json.dumps(x) for x in lines).encode() + b"\n{oops\n"), purpose="batch")
    b = client.batches.create(input_file_id=f.id, endpoint="/v1/chat/completions", completion_window="24h")
    wait_for("the batch failed", lambda: client.batches.retrieve(b.id).status == "failed", 20, 0.05)
    b = client.batches.retrieve(b.id)
    assert {e.line for e in b.errors.data} == {2, 4} and all(e.message and e.code for e in b.errors.data), b.errors
    for wrong in ({"completion_window": "1h"}, {"endpoint": "/v1/embeddings"}):
        try:
            client.batches.create(**{"input_file_id": f.id, "endpoint": "/v1/chat/completions", "completion_window": "24h",
                                     **wrong})
            raise AssertionError(f"taken: {wrong}")
        except openai.BadRequestError as e:
            assert e.code == "invalid_value" and e.param == next(iter(wrong)), e.body


# ---- the client's other ways ----------------------------------------------------------------------------------

@case("A25 raw and streaming responses: headers are readable")
def a25():
    client = server().client()
    messages = [{"role": "user", "content": "Hello!"}]
    raw = client.chat.completions.with_raw_response.create(model="omni-tiny", messages=messages)
    assert raw.headers["content-type"] == "application/json" and raw.headers["x-request-id"], raw.headers
    assert raw.parse().choices
    with client.chat.completions.with_streaming_response.create(model="omni-tiny", messages=messages) as r:
        assert r.headers["x-request-id"] and json.loads(b"".join(r.iter_bytes()))["object"] == "chat.completion"


@case("A26 64 in parallel, asynchronously, 32 slots: all finish, some wait")
def a26():
    async def go():
        client = server().client(asynchronous=True)
        async def one(i):
            r = await client.chat.completions.create(model="omni-tiny", messages=[{"role": "user", "content": "Hello!"}],
                                                     seed=i, temperature=1, max_tokens=64, extra_body={"ignore_eos": True})
            return r.usage.completion_tokens
        return await asyncio.gather(*(one(i) for i in range(64)))
    seen = []
    def watch(stop):
        while not stop.is_set():
            m = server().metrics()
            seen.append((m["num_requests_running"], m["num_requests_waiting"]))
            time.sleep(0.005)
    watcher = Background(watch)
    tokens = asyncio.run(go())
    watcher.join()
    assert tokens == [64] * 64, tokens
    assert max(w for _, w in seen) > 0, "nobody waited"
    assert 1 < max(r for r, _ in seen) <= 32, max(seen)


def endless(server, n=1, **more):
    """n streams that talk without end: sockets whose first delta has come."""
    out = []
    for _ in range(n):
        body = json.dumps({"messages": [{"role": "user", "content": "Hello!"}], "stream": True, "ignore_eos": True,
                           "max_tokens": 30000, **more}).encode()
        raw = lib.Raw(server)
        raw.send(lib.head("POST", "/v1/chat/completions", length=len(body), key=server.key), body)
        out.append(raw)
    return out


@case("A27 a full queue: 429 with Retry-After, the client waits and succeeds")
def a27():
    with Server("--max-num-seqs", 1, "--max-queue", 1, model=lib.RANDOM_MODEL) as s:
        talking = endless(s, 1)
        wait_for("one runs", lambda: s.metrics()["num_requests_running"] == 1)
        talking += endless(s, 1)
        wait_for("one waits", lambda: s.metrics()["num_requests_waiting"] == 1)
        refused = s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert refused.status == 429 and refused.error["code"] == "queue_full", refused.body
        assert refused.error["type"] == "rate_limit_error" and 1 <= int(refused.headers["retry-after"]) <= 60
        asked = Background(lambda stop: ask("Hello!", client=s.client(max_retries=2), max_tokens=3))
        wait_for("the client was refused", lambda: s.metrics().of("request_failure_total", code="queue_full") >= 2)
        for t in talking:
            t.close()
        assert asked.join(70).usage.completion_tokens <= 3


@case("A28 wrong key, unknown model, bad value: the client's own errors with code and param")
def a28():
    def fails(kind, code, param, function):
        try:
            function()
        except kind as e:
            assert e.code == code and e.param == param, e.body
            return e
        raise AssertionError(f"no {kind.__name__}")
    e = fails(openai.AuthenticationError, "invalid_api_key", None, lambda: ask("x", client=server().client(api_key="no")))
    assert e.response.headers["www-authenticate"].startswith("Bearer")
    fails(openai.NotFoundError, "model_not_found", "model", lambda: ask("x", client=None) and
          server().client().chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}]))
    fails(openai.NotFoundError, "model_not_found", "model", lambda: server().client().models.retrieve("nope"))
    fails(openai.BadRequestError, "invalid_value", "temperature", lambda: ask("x", temperature=3))
    fails(openai.BadRequestError, "unsupported_parameter", "response_format",
          lambda: ask("x", response_format={"type": "json_object"}))
    long = fails(openai.BadRequestError, "context_length_exceeded", "messages", lambda: ask("dog " * 6000))
    assert long.body["message"].startswith("This model's maximum context length is 4096 tokens."), long.body


@case("A29 a request that fails in mid-stream: the client's error with its code, never a clean end")
def a29():
    with Server("--deadline", 1, model=lib.RANDOM_MODEL) as s:
        n = 0
        try:
            for _ in ask("Hello!", client=s.client(), stream=True, max_tokens=30000, n=4, extra_body={"ignore_eos": True}):
                n += 1
            raise AssertionError("a clean end")
        except openai.APIError as e:
            assert e.code == "deadline_exceeded" and n > 10, (e.code, n)
        talking = endless(s, n=1, logprobs=True, top_logprobs=2)[0]   # more would make this client a slow reader
        got = b""
        try:
            while piece := talking.socket.recv(1 << 20):
                got = got[-65536:] + piece
        except ConnectionResetError:
            pass
        assert b'"deadline_exceeded"' in got and b"[DONE]" not in got and not got.endswith(b"0\r\n\r\n"), got[-300:]
        r = s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "ignore_eos": True, "n": 4,
                                            "max_tokens": 30000})
        assert r.status == 504 and r.error["code"] == "deadline_exceeded", (r.status, r.body[:200])
        assert r.headers["x-should-retry"] == "false"
        m = s.metrics()
        assert m.of("request_failure_total", code="deadline_exceeded") == 3, "not counted"
        wait_for("the slots are free", lambda: s.busy() == 0, 1)


@case("A30 a client that leaves a stream frees its slot within 200 ms")
def a30():
    with Server(model=lib.RANDOM_MODEL) as s:
        stream = ask("Hello!", client=s.client(), stream=True, max_tokens=30000, extra_body={"ignore_eos": True})
        for i, _ in enumerate(stream):
            if i == 5:
                break
        wait_for("it runs", lambda: s.metrics()["num_requests_running"] == 1, 2)
        left = time.monotonic()
        stream.close()
        wait_for("the slot is free", lambda: s.metrics()["num_requests_running"] == 0, 5, 0.002)
        took = time.monotonic() - left
        assert took < 0.2 * lib.PATIENCE, f"{took * 1e3:.0f} ms"
        note(f"slot free after {took * 1e3:.0f} ms")
        m = wait_for("it was counted", lambda: (x := s.metrics()).of("client_disconnects_total", phase="decode") == 1 and x)
        assert m.of("request_success_total", finished_reason="abort") == 1
        try:
            ask("Hello!", client=s.client(timeout=0.3), max_tokens=30000, extra_body={"ignore_eos": True})
            raise AssertionError("no time-out")
        except openai.APITimeoutError:
            pass
        wait_for("the slot of the one that timed out is free", lambda: s.busy() == 0, 1)


@case("A34 SIGTERM under load: streams end or say draining, nothing new, status 0")
def a34():
    s = Server("--drain-timeout", 1, model=lib.RANDOM_MODEL)
    ends, started = [], threading.Event()
    def talk(max_tokens):
        try:
            n = 0
            for chunk in ask("Hello!", client=s.client(), stream=True, max_tokens=max_tokens,
                             extra_body={"ignore_eos": True}):
                n += 1
                started.set()
                reason = chunk.choices[0].finish_reason if chunk.choices else None
            ends.append((max_tokens, reason))
        except openai.APIError as e:
            ends.append((max_tokens, e.code))
    threads = [threading.Thread(target=talk, args=(n,)) for n in (200, 30000, 30000)]
    for t in threads:
        t.start()
    started.wait(10)
    wait_for("three run", lambda: s.metrics()["num_requests_running"] == 3 or len(ends) > 0)
    open_connection = lib.Raw(s)
    os.kill(s.pid, signal.SIGTERM)
    def not_ready():
        try:
            return s.get("/ready", check=False).status == 503
        except OSError:
            return True                        # its listener is closed already
    wait_for("/ready says no", not_ready, 2)
    try:
        body = b'{"messages":[{"role":"user","content":"Hello!"}]}'
        open_connection.send(lib.head("POST", "/v1/chat/completions", length=len(body)), body)
        r = open_connection.reply()
        assert r.status == 503 and r.error["code"] == "draining" and r.headers["connection"] == "close", r.body
    except (ConnectionError, __import__("http").client.HTTPException):
        pass                                   # an idle connection may be closed at once
    for t in threads:
        t.join(20)
    assert s.process.wait(20) == 0, s.log_text()[-2000:]
    s.forget()
    assert sorted(ends, key=str) == sorted([(200, "length"), (30000, "draining"), (30000, "draining")], key=str), ends


@case("A34 a second signal ends the server at once, with status 1")
def a34_second():
    s = Server("--drain-timeout", 60, model=lib.RANDOM_MODEL)
    talking = endless(s)
    wait_for("one runs", lambda: s.metrics()["num_requests_running"] == 1)
    os.kill(s.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert s.process.poll() is None
    start = time.monotonic()
    os.kill(s.pid, signal.SIGTERM)
    assert s.process.wait(5 * lib.PATIENCE) == 1 and time.monotonic() - start < 2 * lib.PATIENCE
    s.forget()
    talking[0].close()


@case("tokenize counts as chat does; detokenize is its inverse")
def tokenizer():
    messages = [{"role": "user", "content": [video(demo("av000.mp4")), text("What is said?")]}]
    count = server().post("/tokenize", {"messages": messages}).json()
    r = ask("What is said?", video(demo("av000.mp4")))
    assert count["count"] == r.usage.prompt_tokens and count["max_model_len"] == 4096, (count["count"], r.usage)
    assert count["omnidrop"]["audio_tokens"] == r.usage.prompt_tokens_details.audio_tokens, count["omnidrop"]
    t = server().post("/v1/tokenize", {"prompt": "dog red seven"}).json()
    assert server().post("/detokenize", {"tokens": t["tokens"]}).json()["prompt"] == "dog red seven"
    r = server().post("/detokenize", {"tokens": [10 ** 6]})
    assert r.status == 400 and r.error["code"] == "invalid_value", r.body


@case("health, ready, version need no key; metrics and tokenize do")
def small():
    for path in ("/health", "/ready", "/version"):
        r = server().get(path, headers={"Authorization": ""})
        assert r.status == 200, (path, r.status, r.body)
    assert server().get("/health").json() == {"status": "ok"}
    v = server().get("/version").json()
    assert "omnidrop" in v["policies"] and v["backend"] and v["libevent"], v
    for method, path in (("GET", "/metrics"), ("POST", "/tokenize"), ("GET", "/v1/models"), ("GET", "/openapi.json")):
        r = server().request(method, path, None if method == "GET" else b"{}", headers={"Authorization": ""}, check=False)
        assert r.status == 401, (path, r.status)


@case("every reply matches /openapi.json and the client's types")
def valid():
    lib.all_valid()


if __name__ == "__main__":
    lib.main()
