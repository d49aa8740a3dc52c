"""The page at / in a headless Chromium: ask about a clip, watch the answer come, the heat map, transcription, the key.
Nothing is logged as an error and nothing outside the server is asked for. PAGE_SHOTS=DIR keeps screenshots."""
import json
import os
import re
import tempfile

import browser
from browser import Browser
from omni_server import DEMO, SANITIZED, TALKER, Server, check, finish

CLIP = DEMO + "/av000.mp4"
PATIENCE = 90 if SANITIZED else 20
SHOTS = os.environ.get("PAGE_SHOTS")

# Pixels of a canvas: how many colours there are, and how many pixels were drawn at all.
PIXELS = """(() => { const c = document.getElementById(%s), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data,
 s = new Set(); let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i + 3]) { n++; s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); }
 return { colours: s.size, drawn: n, all: d.length / 4, width: c.width, height: c.height } })()"""


def shot(b, name):
    if SHOTS:
        b.screenshot(os.path.join(SHOTS, name + ".png"))


def quiet(what, b, base):
    """Nothing was logged, nobody else was asked."""
    check(what + ": nothing on the console", not b.console, "\n".join(b.console))
    others = [u for u in b.requests if not u.startswith((base, "data:", "blob:" + base.rstrip("/"), "about:"))]
    check(what + ": no request to anybody else", not others, "\n".join(others))


def ask(b, question):
    b.js("document.getElementById('question').value = ''; document.getElementById('question').focus(); 1")
    b.type(question)
    n = b.js("document.querySelectorAll('.turn').length")
    b.key("Enter", 13, "\r")
    return b.wait("document.querySelectorAll('.turn').length > %d && !document.querySelector('.turn .a.busy') && "
                  "document.querySelector('.turn .a').textContent" % n, PATIENCE)


def error(b):
    return b.js("document.getElementById('error').hidden ? '' : document.getElementById('error-text').textContent")


def test_ask(server, base, shots=True):
    demo = [json.loads(l) for l in open(DEMO + "/answers.jsonl")]
    with Browser() as b:
        b.open(base)
        check("the page loads and says what is served", b.wait("document.getElementById('model').textContent.includes('omni-tiny')"))
        check("and that it is ready", b.wait("document.getElementById('state-text').textContent === 'ready'"))
        check("empty states", b.js("!document.getElementById('turns-empty').hidden && !document.getElementById('heat-empty').hidden"))
        check("pages of the pool", b.wait("/^\\d+ of \\d+$/.test(document.getElementById('pages-text').textContent)"))
        check("the policies of the build", b.wait("[...document.getElementById('policy').options].some(o => o.value === 'omnidrop')"))
        if shots:
            shot(b, "empty")
        b.key("Tab", 9)
        check("the keyboard's first stop is the link to the question", b.js("document.activeElement.className") == "skip")
        b.key("Enter", 13, "\r")
        b.choose_file("#file", CLIP)
        check("a chosen file is shown", b.wait("!document.getElementById('file-card').hidden && document.getElementById('file-name').textContent === 'av000.mp4'"))
        b.js("""window.grown = 0; new MutationObserver(() => window.grown++).observe(document.getElementById('turns'),
                { subtree: true, childList: true, characterData: true }); 1""")
        b.js("document.getElementById('policy').value = 'omnidrop'; document.getElementById('policy').onchange(); 1")
        answer = ask(b, "What is said?")
        check("an answer to a question about a clip", answer and not error(b), (answer, error(b)))
        check("its tokens came one after the other", b.js("window.grown") >= 3, b.js("window.grown"))
        facts = b.js("document.querySelector('.turn .soft').textContent")
        check("with counts and times", re.search(r"\d+ tokens in, \d+ out", facts), facts)
        check("what was kept is said", re.search(r"\d+ % of the media tokens kept", facts), facts)
        for kind in ("audio", "video"):
            p = b.js(PIXELS % json.dumps("heat-" + kind))
            check("the heat map of the %s is drawn, with more than two colours" % kind,
                  p["drawn"] == p["all"] and p["colours"] > 2 and p["width"] > 300, p)
            caption = b.js("document.getElementById('caption-%s').textContent" % kind)
            numbers = [int(n) for n in re.findall(r"\d+", caption)]
            check("and says that tokens were dropped", len(numbers) == 3 and 0 < numbers[1] < numbers[0], caption)
        box = b.js("(() => { const c = document.getElementById('heat-video'); c.scrollIntoView(); const r = c.getBoundingClientRect(); "
                   "return [r.left + r.width / 2, r.top + 4] })()")
        b.mouse(*box)
        readout = b.wait("document.getElementById('readout').textContent")
        check("hovering tells the counts of a cell", readout and re.search(r"picture, layer 0, .*: \d+ of \d+ tokens", readout), readout)
        b.js("document.getElementById('heat-audio').focus(); 1")
        b.key("ArrowDown", 40)
        check("so do the arrow keys", b.wait("document.getElementById('readout').textContent.startsWith('sound, layer 1')"))
        if shots:
            shot(b, "answer")
        second = ask(b, "What is said?")
        check("a second question about the same clip, the same answer", second == answer, second)
        check("found in the cache", b.wait("[...document.querySelectorAll('#facts dd')].map(d => d.textContent)[5] !== '0'"))
        check("a question without words is refused in place", ask_nothing(b))
        quiet("asking", b, base)


def ask_nothing(b):
    b.js("document.getElementById('question').value = '  '; document.getElementById('form').requestSubmit(); 1")
    return error(b) == "Write a question first."


def test_large_and_dropped(base):
    """A file beyond what goes into a request is uploaded first; one that is dropped on the window is taken."""
    with tempfile.TemporaryDirectory() as d, Browser() as b:
        large = os.path.join(d, "large.png")
        with open(DEMO + "/image000.png", "rb") as f, open(large, "wb") as out:
            out.write(f.read() + bytes(9 << 20))            # a decoder stops where the picture ends
        b.open(base)
        b.wait("document.getElementById('state-text').textContent === 'ready'")
        b.choose_file("#file", DEMO + "/image000.png")
        b.wait("!document.getElementById('file-card').hidden")
        inline = ask(b, "What is shown?")
        b.js("document.getElementById('file-remove').click(); 1")
        check("a file can be taken away again", b.js("document.getElementById('file-card').hidden"))
        b.choose_file("#file", large)
        b.wait("!document.getElementById('file-card').hidden")
        check("a large file is uploaded and asked about", ask(b, "What is shown?") == inline and inline, (inline, error(b)))
        check("once", ask(b, "What is shown?") == inline and sum(u.endswith("/v1/files") for u in b.requests) == 1, b.requests)
        b.js("""{ document.getElementById('file-remove').click(); const t = new DataTransfer();
                t.items.add(new File(['no film'], 'dropped.mp4', { type: 'video/mp4' }));
                dispatchEvent(new DragEvent('drop', { dataTransfer: t, cancelable: true })); } 1""")
        check("a file can be dropped", b.wait("document.getElementById('file-name').textContent === 'dropped.mp4'"))
        b.js("document.getElementById('question').value = 'What is said?'; document.getElementById('form').requestSubmit(); 1")
        check("one that is no film is an error in words", b.wait("!document.getElementById('error').hidden"), error(b))
        check("that holds no path of the server", "/" not in error(b), error(b))
        check("and leaves no empty answer", b.js("document.querySelectorAll('.turn').length") == 3)


def test_transcribe(base):
    with Browser() as b:
        b.open(base)
        b.wait("document.getElementById('state-text').textContent === 'ready'")
        b.js("document.getElementById('tab-ask').focus(); 1")
        b.key("ArrowRight", 39)
        check("the arrow keys change the tab", b.js("document.getElementById('send').textContent") == "Transcribe")
        b.js("document.getElementById('form').requestSubmit(); 1")
        check("without a file it says so", error(b) == "Choose a sound or film first.")
        b.choose_file("#file", DEMO + "/speech000.wav")
        b.wait("!document.getElementById('file-card').hidden")
        b.js("document.getElementById('send').click(); 1")
        text = b.wait("!document.querySelector('.turn .a.busy') && document.querySelector('.turn .a').textContent", PATIENCE)
        check("a transcription", text and len(text.split()) >= 2 and not error(b), (text, error(b)))
        check("with segments and their times", b.js("document.querySelectorAll('.segments .t').length") >= 1)
        check("to be saved as txt and srt", b.js("[...document.querySelectorAll('.turn button')].map(x => x.textContent).join()") ==
              "Save .txt,Save .srt")
        shot(b, "transcript")
        quiet("transcribing", b, base)


def test_narrow_and_dark(base):
    with Browser(width=420, height=900, dark=True) as b:
        b.open(base)
        b.wait("document.getElementById('state-text').textContent === 'ready'")
        check("a narrow window does not scroll sideways",
              b.js("document.documentElement.scrollWidth <= innerWidth"), b.js("document.documentElement.scrollWidth"))
        luma = b.js("getComputedStyle(document.body).backgroundColor")
        check("dark where the system is", sum(int(n) for n in re.findall(r"\d+", luma)[:3]) < 150, luma)
        shot(b, "dark")
        quiet("narrow and dark", b, base)


def test_groups(base):
    """What /v1/omnidrop/state says of groups (tests/serve/test_ranks.py) is a line each; alone there is no such table."""
    groups = [{"group": 0, "ranks": [0, 1], "hosts": "alpha", "state": "ready", "jobs": 3, "given": 9,
               "pages": {"total": 100, "free": 60}, "requests": {"waiting": 1, "running": 2}},
              {"group": 1, "ranks": [2, 3], "hosts": "alpha, <b>beta", "state": "gone", "jobs": 0, "given": 7,
               "pages": {"total": 100, "free": 1}, "requests": {"waiting": 5, "running": 6},
               "why": "rank 3 (pid 7 on beta): killed"},
              {"group": 2, "ranks": [4], "hosts": "gamma", "state": "loading", "jobs": 0, "given": 0,
               "pages": {"total": 0, "free": 0}, "requests": {"waiting": 0, "running": 0}}]
    with Browser() as b:
        b.open(base)
        b.wait("document.getElementById('state-text').textContent === 'ready'")
        check("one process has no table of groups", b.js("document.getElementById('groups-panel').hidden"))
        rows = b.js("clearTimeout(timer), showGroups(" + json.dumps(groups) + "), [...document.querySelectorAll('#groups tr')]"
                    ".map(r => [...r.children].map(d => d.textContent))")
        want = [["0\u20131", "alpha", "ready", "2", "1", "40", "60"],
                ["2\u20133", "alpha, <b>beta", "gone", "\u2013", "\u2013", "\u2013", "\u2013"],
                ["rank 3 (pid 7 on beta): killed"], ["4", "gamma", "loading", "0", "0", "0", "0"]]
        check("a line for each group, and the reason under one that is gone", rows == want, rows)
        check("how many take requests", b.js("document.getElementById('groups-text').textContent") == "1 of 3 take requests")
        check("it is seen", b.js("document.getElementById('groups-panel').offsetHeight > 40"))
        shot(b, "groups")
        check("a narrow window does not scroll sideways", b.js("document.documentElement.scrollWidth <= innerWidth"))
        quiet("groups", b, base)


def test_key_and_loss():
    with Server("--api-key", "sesame") as s:
        base = "http://127.0.0.1:%d/" % s.port
        with Browser() as b:
            b.open(base)
            check("where a key is needed it is asked for", b.wait("document.getElementById('key-dialog').open"))
            b.type("wrong")
            b.key("Enter", 13, "\r")
            check("a wrong one: asked again", b.wait("document.getElementById('key-dialog').open && "
                                                     "document.getElementById('key').value === ''"))
            b.type("sesame")
            b.key("Enter", 13, "\r")
            check("the right one: ready", b.wait("document.getElementById('state-text').textContent === 'ready'"))
            check("it is not kept beyond the tab", b.js("localStorage.length === 0 && !document.cookie"))
            answer = ask(b, "Hello!")
            check("text alone can be asked too", answer and not error(b), (answer, error(b)))
            s.close()
            check("when the server has gone the page says so",
                  b.wait("document.getElementById('state-text').textContent.startsWith('no answer')"))
            ask(b, "Hello!")
            check("and a question then is an error in words", b.wait("!document.getElementById('error').hidden") and
                  "does not answer" in error(b), error(b))


def test_stop():
    with Server("-m", TALKER) as s:
        with Browser() as b:
            b.open("http://127.0.0.1:%d/" % s.port)
            b.wait("document.getElementById('state-text').textContent === 'ready'")
            b.js("{ const ask = fetch; window.fetch = (u, o) => ask(u, typeof o.body === 'string' ? { ...o, body: "
                 "o.body.replace('{', '{\"ignore_eos\":true,') } : o); } 1")     # it may not end by itself
            b.js("document.getElementById('max-tokens').value = 30000; document.getElementById('question').value = 'talk'; "
                 "document.getElementById('form').requestSubmit(); 1")
            check("a running request is seen in the engine's list", b.wait("!document.getElementById('list-wrap').hidden && "
                  "document.querySelector('#list td').textContent"))
            b.wait("document.querySelector('.turn .a').textContent.length > 5")
            b.js("document.getElementById('stop').click(); 1")
            check("Stop stops it", b.wait("document.querySelector('.turn .soft').textContent === 'stopped'"))
            check("and the engine is free again", b.wait("document.getElementById('list-wrap').hidden"))


def main():
    if browser.program() is None:
        check("a Chromium to drive the page with (tools/install-browser.sh installs one)", False)
        finish()
    with Server() as s:
        base = "http://127.0.0.1:%d/" % s.port
        for test in (lambda: test_ask(s, base), lambda: test_large_and_dropped(base),
                     lambda: test_transcribe(base), lambda: test_groups(base), lambda: test_narrow_and_dark(base)):
            attempt(test)
    attempt(test_key_and_loss)
    attempt(test_stop)
    finish()


def attempt(test):
    try:
        test()
    except Exception as e:
        check("it came to its end", False, repr(e))


if __name__ == "__main__":
    main()
