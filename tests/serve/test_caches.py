"""Goal: a second question on the same film decodes nothing and encodes nothing, and its answer has the same bits as one
without any cache.
Method: logprobs of every token from a server with its caches and from one without, policies none and omnidrop; the
metrics say what was done."""
import lib
from lib import Server, case, demo, note, text, video

cached = Server()
plain = Server("--media-cache", 0, "--prefix-cache", 0)
QUESTIONS = ["Transcribe the speech.", "What is on the screen when bird is said?", "Is the word over spoken?",
             "What is shown at second 3?", "Transcribe the speech."]
POLICIES = {"none": {"policy": "none"}, "omnidrop": {"policy": "omnidrop", "retention": 0.45},
            "random": {"policy": "random", "retention": 0.5}}


def bits(server, content, **more):
    r = server.chat(content, logprobs=True, top_logprobs=3, max_tokens=24, seed=5, **more)
    choice = r["choices"][0]
    return (choice["message"]["content"], [(t["token"], t["logprob"], [x["logprob"] for x in t["top_logprobs"]])
                                           for t in choice["logprobs"]["content"]]), r


def work(server):
    m = server.metrics()
    return {"decodes": m.of("media_decode_time_seconds_count"), "encodes": m.of("encoder_time_seconds_count"),
            "queries": m["mm_cache_queries_total"], "hits": m["mm_cache_hits_total"],
            "prefix": m["prefix_cache_hits_total"]}


def questions_on(clip, name, policy):
    for i, question in enumerate(QUESTIONS):
        content = [clip, text(question)]
        before = work(cached)
        got, _ = bits(cached, content, omnidrop=POLICIES[policy])
        after = work(cached)
        want, _ = bits(plain, content, omnidrop=POLICIES[policy])
        assert got == want, f"{name}, {policy}, {question}: {got} from the cache, {want} without"
        if i > 0:
            assert after["decodes"] == before["decodes"], f"decoded again: {question}"
            assert after["encodes"] == before["encodes"], f"encoded again: {question}"
            assert after["hits"] > before["hits"], "no hit counted"


@case("policy none: no work twice, the same bits")
def none():
    questions_on(video(demo("av000.mp4")), "av000", "none")


@case("policy omnidrop: no work twice, the same bits")
def omnidrop():
    questions_on(video(demo("av001.mp4")), "av001", "omnidrop")


@case("policy random: no work twice, the same bits")
def random():
    questions_on(video(demo("video000.mp4")), "video000", "random")


@case("one policy after the other on one film: still the same bits")
def mixed():
    clip = video(demo("av000.mp4"))
    for policy in ("omnidrop", "none", "random", "omnidrop"):
        questions_on(clip, "av000", policy)


@case("sound, pictures, a film without its sound, other frame rates: the same bits")
def other():
    from lib import audio, image
    contents = [[audio(demo("speech000.wav"))], [image(demo("image000.png"))],
                [image(demo("image000.png")), image(demo("image001.png"))], [video(demo("av000.mp4"), use_audio=False)],
                [video(demo("av000.mp4"), fps=1)], [video(demo("av000.mp4"), start=1, end=4)],
                [image(demo("image001.png")), video(demo("av000.mp4"))]]
    for _ in range(2):
        for content in contents:
            q = [*content, text("What is shown?")]
            got, want = bits(cached, q)[0], bits(plain, q)[0]
            assert got == want, (content[0]["type"], got, want)


@case("the usage counts reused prompt tokens; statistics say how many layers were shared")
def counted():
    clip = video(demo("av001.mp4"))
    _, r = bits(cached, [clip, text("What is said when the blue circle is on the screen?")])
    _, r = bits(cached, [clip, text("What is the last word?")])
    u = r["usage"]
    assert 0 < u["prompt_tokens_details"]["cached_tokens"] < u["prompt_tokens"], u
    media = sum(u["prompt_tokens_details"][k] for k in ("audio_tokens", "video_tokens"))
    assert u["prompt_tokens_details"]["cached_tokens"] >= media // 16 * 16 * 0.9, u
    wish = {"policy": "omnidrop", "retention": 0.45, "return_pruning": True}
    bits(cached, [clip, text("What is said?")], omnidrop=wish)
    _, r = bits(cached, [clip, text("What is the first word?")], omnidrop=wish)
    assert r["usage"]["prompt_tokens_details"]["cached_tokens"] < media, r["usage"]
    note(f"omnidrop: cached_layers {r['omnidrop']['cached_layers']}, cached_tokens "
         f"{r['usage']['prompt_tokens_details']['cached_tokens']} of {r['usage']['prompt_tokens']}")
    _, r = bits(plain, [clip, text("What is the first word?")])
    assert r["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@case("caches are not shared between API keys")
def salted():
    with Server("--api-key", "sk-b", key="sk-a") as s:
        clip = [video(demo("av000.mp4")), text("Transcribe the speech.")]
        bits(s, clip)
        before = work(s)
        body = {"messages": [{"role": "user", "content": clip}], "temperature": 0}
        r = s.post("/v1/chat/completions", body, headers={"Authorization": "Bearer sk-b"})
        after = work(s)
        assert r.status == 200 and r.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, r.body
        assert after["hits"] == before["hits"] and after["decodes"] == before["decodes"] + 1, (before, after)


@case("a stream that joins others: the same bits beside eight of them")
def beside_others():
    clip = [video(demo("av000.mp4")), text("What is on the screen when bird is said?")]
    want = bits(plain, clip)[0]
    def noise(stop):
        n = 0
        while not stop.is_set():
            cached.chat("Who are you?", max_tokens=50, ignore_eos=True, temperature=1, seed=n, n=4)
            n += 1
        return n
    load = [lib.Background(noise) for _ in range(2)]
    for _ in range(4):
        assert bits(cached, clip)[0] == want
        assert bits(cached, clip, omnidrop=POLICIES["omnidrop"])[0] == bits(plain, clip, omnidrop=POLICIES["omnidrop"])[0]
    assert all(job.join() > 0 for job in load)


@case("every reply matches /openapi.json")
def valid():
    lib.all_valid()


@lib.at_end
def both_servers_end_with_status_0():
    assert [s.stop() for s in (cached, plain)] == [0, 0]


if __name__ == "__main__":
    lib.main()
