"""world.py - the closed world of omni-tiny: spoken words and coloured shapes.

A clip is a sound track of words out of LEXICON (synthesised by espeak-ng, one wave per word,
joined with pauses, gain and noise) and a silent film of plain shapes, two frames a second.
Because we make it ourselves we know when every word is spoken and what is on the screen in
every second, so every question has one right answer.

    SpeechBank     word -> waveforms in many voices, cached on disk
    make_clip      seed, kind, seconds -> Clip (wave, frames, words, screen, questions)
    write_clip     Clip -> clip.mp4 / clip.wav / clip.png and rows for a JSONL file

Run as a program it writes such files:
    python world.py --out demo --n 20 --seed 7
"""
import argparse, json, math, os, subprocess, tempfile
from dataclasses import dataclass, field

import numpy as np

RATE = 16000
FPS = 2                                            # frames a second
HEIGHT, WIDTH = 84, 112                            # 3 x 4 merged tokens a grid step

NUMBERS = "zero one two three four five six seven eight nine".split()
HUES = "red green blue yellow black white pink orange purple brown".split()
THINGS = "dog cat bird fish horse tree house car boat moon".split()
VERBS = "run jump sing eat sleep open stop turn".split()
PLACES = "under over left right up down near behind".split()
JOINTS = "and then".split()
LEXICON = NUMBERS + HUES + THINGS + VERBS + PLACES + JOINTS      # 48 words
WORD_ID = {w: i + 1 for i, w in enumerate(LEXICON)}              # 0 is silence

SHAPES = "circle square triangle cross star".split()
COLOURS = {"red": (215, 35, 40), "green": (35, 165, 60), "blue": (45, 75, 220),
           "yellow": (235, 215, 45), "white": (246, 246, 246), "black": (12, 12, 12),
           "purple": (145, 45, 175), "orange": (240, 135, 25)}

VOICES = ["en-us", "en-us+f2", "en-us+m3", "en-us+f4", "en-gb", "en-gb+f3", "en-gb+m7",
          "en-gb-x-rp+f1", "en-gb-scotland+m1", "en-us+klatt2", "en-us+linda", "en-gb+belinda",
          "en-us+max", "en-gb+Andy"]
# More voices for training alone: other people of espeak-ng, spread over its accents of English.
PEOPLE = """f1 f2 f3 f4 m1 m3 m4 m5 m6 m7 m8 klatt klatt2 klatt3 klatt4 klatt5 klatt6 linda belinda max Andy Annie Alex Alicia Andrea
Denis Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen RicishayMax Storm Tweaky adam anika antonio aunty benjamin
boris caleb david ed edward grandma grandpa gustave iven john kaukovalta marcelo michel miguel norbert pablo paul pedro quincy rob
robert sandro shelby steph travis victor zac""".split()
ACCENTS = ["en-us", "en-gb", "en-gb-x-gbclan", "en-029", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp"]
MORE_VOICES = [f"{ACCENTS[i % len(ACCENTS)]}+{p}" for i, p in enumerate(PEOPLE)] + ACCENTS[2:]
NEW_VOICES = ["en-us+f5", "en-gb-x-gbcwmd+m2"]     # never heard in training: nor f5, m2 and gbcwmd with anything else


# ---------------------------------------------------------------- speech

def espeak(text, voice, speed, pitch, gap=0):
    """One call of espeak-ng; float32 mono at 16 kHz, silence at both ends cut off."""
    from scipy.signal import resample_poly
    raw = subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-g",
                          str(gap), "--stdout", text], capture_output=True, check=True).stdout
    x = np.frombuffer(raw[44:], dtype="<i2").astype(np.float32) / 32768
    x = resample_poly(x, 320, 441).astype(np.float32)            # 22050 -> 16000
    loud = np.flatnonzero(np.abs(x) > 0.01)
    x = x[max(0, loud[0] - 160): loud[-1] + 320]
    return x / (np.abs(x).max() + 1e-6)


class SpeechBank:
    """Waves of single words and of whole utterances, as float16 arrays on disk.

    split "train": VOICES and MORE_VOICES, bent a little each time they are drawn; "test": VOICES at other speeds and
    pitches; "voices": NEW_VOICES.
    """
    N_TAKES = {"train": 4, "test": 1, "voices": 2}
    N_PHRASES = {"train": 2400, "test": 200, "voices": 60}
    SEED = {"train": 1, "test": 2, "voices": 3}

    def __init__(self, folder, split):
        path = os.path.join(folder, f"speech_{split}.npz")
        self.train = split == "train"
        if not os.path.exists(path):
            self.build(path, split)
        z = np.load(path)
        self.wave, self.start = z["wave"], z["start"]
        self.words, self.phrases, self.text = {}, [], []
        for i, key in enumerate(z["key"]):
            voice, text = str(key).split("|")
            if " " in text or voice.startswith("phrase:"):
                self.phrases.append(i); self.text.append(text.split())
            else:
                self.words.setdefault((voice, text), []).append(i)
        self.voices = sorted({v for v, _ in self.words})

    def get(self, i):
        return self.wave[self.start[i]:self.start[i + 1]].astype(np.float32)

    def word(self, word, voice, rng, bend=1.0):
        return stretch(self.get(rng.choice(self.words[voice, word])), bend)

    def bend(self, rng):
        """A speaker's own factor of tempo, pitch and formants together: 1 outside training."""
        return rng.uniform(0.84, 1.2) if self.train and rng.random() < 0.6 else 1.0

    @classmethod
    def build(cls, path, split):
        from concurrent.futures import ThreadPoolExecutor
        rng = np.random.default_rng(cls.SEED[split])
        voices = NEW_VOICES if split == "voices" else VOICES
        wide = split == "train"
        jobs = [(v, w, int(rng.integers(130, 211)), int(rng.integers(30, 71)), 0, f"{v}|{w}")
                for v in voices for w in LEXICON for _ in range(cls.N_TAKES[split])]
        if wide:
            jobs += [(v, w, int(rng.integers(110, 221)), int(rng.integers(20, 81)), 0, f"{v}|{w}")
                     for v in MORE_VOICES for w in LEXICON for _ in range(2)]
            voices = VOICES + MORE_VOICES
        for _ in range(cls.N_PHRASES[split]):
            v, words = rng.choice(voices), rng.choice(LEXICON, rng.integers(2, 11))
            jobs.append((v, " ".join(words), int(rng.integers(110, 180)), int(rng.integers(30, 71)),
                         int(rng.integers(1, 12)), f"phrase:{v}|{' '.join(words)}"))
        with ThreadPoolExecutor(4) as pool:
            waves = list(pool.map(lambda j: espeak(j[1], *((j[0],) + j[2:5])), jobs))
        start = np.cumsum([0] + [len(w) for w in waves])
        np.savez(path, wave=np.concatenate(waves).astype(np.float16), start=start,
                 key=np.array([j[5] for j in jobs]))


def stretch(x, factor):
    """The same wave in `factor` of its time: faster and higher below 1, slower and lower above."""
    if factor == 1.0:
        return x
    n = max(16, int(len(x) * factor))
    return np.interp(np.linspace(0, len(x) - 1, n), np.arange(len(x)), x).astype(np.float32)


def channel(wave, bank, rng):
    """A channel that favours low or high tones a little; training alone."""
    if not bank.train or rng.random() < 0.5:
        return wave
    tilt = rng.uniform(-0.5, 0.7)
    out = wave.copy()
    out[1:] -= tilt * wave[:-1]
    return out * (0.9 / max(0.9, float(np.abs(out).max())))


def add_noise(wave, rng):
    """Gain and a little white or low-passed noise."""
    noise = rng.standard_normal(len(wave)).astype(np.float32)
    if rng.random() < 0.5:
        noise[1:] = 0.7 * noise[1:] + 0.7 * noise[:-1]
    level = 10 ** rng.uniform(-4.0, -2.0)
    return np.clip(wave * rng.uniform(0.3, 0.95) + level * noise, -1, 1).astype(np.float32)


def say(bank, rng, seconds, n_words=None, exact=False, pool=LEXICON):
    """Words out of `pool` one after another with random pauses.

    Returns wave and [(word, first sample, last sample)]. Not longer than `seconds`; cut to the
    end of the speech plus a little silence unless `exact`.
    """
    voice, bend = rng.choice(bank.voices), bank.bend(rng)
    limit = int(seconds * RATE)
    parts, marks, t = [], [], 0
    pace = rng.uniform(0.03, 0.35)
    gap = int(rng.uniform(0.05, 0.5) * RATE)
    while n_words is None or len(marks) < n_words:
        word = pool[rng.integers(len(pool))]
        if rng.random() < 0.04:
            voice, bend = rng.choice(bank.voices), bank.bend(rng)
        x = bank.word(word, voice, rng, bend) * rng.uniform(0.5, 1.0)
        if t + gap + len(x) > limit - 480:
            break
        parts += [np.zeros(gap, np.float32), x]
        marks.append((word, t + gap, t + gap + len(x)))
        t += gap + len(x)
        gap = int((0.06 + rng.exponential(pace)) * RATE)
        gap = min(gap, 2 * RATE)
    tail = limit - t if exact else min(limit - t, int(rng.uniform(0.03, 0.6) * RATE))
    wave = np.concatenate(parts + [np.zeros(tail, np.float32)])
    return wave, marks


def say_phrase(bank, rng):
    """A whole utterance spoken in one go (words run together); times are not known."""
    i = rng.integers(len(bank.phrases))
    x = stretch(bank.get(bank.phrases[i]), bank.bend(rng)) * rng.uniform(0.5, 1.0)
    lead, tail = (int(rng.uniform(0.05, 0.5) * RATE) for _ in range(2))
    return np.concatenate([np.zeros(lead, np.float32), x, np.zeros(tail, np.float32)]), bank.text[i]


# ---------------------------------------------------------------- pictures

_YX = {}


def _grid(h, w):
    if (h, w) not in _YX:
        _YX[h, w] = np.mgrid[0:h, 0:w].astype(np.float32)
    return _YX[h, w]


def paint(frame, colour, shape, cx, cy, r, turn):
    """Draw one shape of radius r at (cx, cy) on a float frame [h, w, 3], edges softened."""
    x0, x1 = max(0, int(cx - r - 3)), min(frame.shape[1], int(cx + r + 4))
    y0, y1 = max(0, int(cy - r - 3)), min(frame.shape[0], int(cy + r + 4))
    if x0 >= x1 or y0 >= y1:
        return
    yy, xx = _grid(frame.shape[0], frame.shape[1])[:, y0:y1, x0:x1]
    c, s = math.cos(turn), math.sin(turn)
    x, y = c * (xx - cx) + s * (yy - cy), -s * (xx - cx) + c * (yy - cy)
    if shape == "circle":
        d = np.sqrt(x * x + y * y) - 0.95 * r
    elif shape == "square":
        d = np.maximum(abs(x), abs(y)) - 0.8 * r
    elif shape == "triangle":
        d = np.maximum(y - 0.6 * r, 0.866 * abs(x) - 0.5 * y - 0.5 * r)
    elif shape == "cross":
        d = np.minimum(np.maximum(abs(x) - 0.3 * r, abs(y) - r), np.maximum(abs(x) - r, abs(y) - 0.3 * r))
    else:                                                        # star with five points
        a = np.arctan2(x, -y)
        a = np.abs((a + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)
        rho = np.sqrt(x * x + y * y)
        u, v = rho * np.cos(a), rho * np.sin(a)
        ix, iy = 0.42 * r * math.cos(math.pi / 5), 0.42 * r * math.sin(math.pi / 5)
        nx, ny = iy, 1.1 * r - ix
        d = ((u - 1.1 * r) * nx + v * ny) / math.hypot(nx, ny)
    alpha = np.clip(0.5 - d, 0, 1)[..., None]
    frame[y0:y1, x0:x1] = frame[y0:y1, x0:x1] * (1 - alpha) + alpha * colour


def place(things, rng, h, w):
    """Give every (colour, shape) a place, size, speed and tint; places do not overlap."""
    cells = [(y, x) for y in range(h // 28) for x in range(w // 28)]
    out = []
    for (colour, shape), k in zip(things, rng.permutation(len(cells))):
        cy, cx = (28 * c + 14 + rng.uniform(-5, 5) for c in cells[k])
        tint = np.clip(np.array(COLOURS[colour]) + rng.uniform(-10, 10, 3), 0, 255)
        out.append([tint, shape, cx, cy, rng.uniform(9.5, 13.5), rng.uniform(-0.25, 0.25),
                    *rng.uniform(-2, 2, 2)])
    return out


def spots(things, placed, step, h, w):
    """Centres of the things after `step` frames: (colour, shape, x, y)."""
    return [(c, s, min(max(p[2] + p[6] * step, 10), w - 10), min(max(p[3] + p[7] * step, 10), h - 10))
            for (c, s), p in zip(things, placed)]


def draw(back, placed, step, rng, noise, blur):
    """One frame uint8 [h, w, 3]; `step` counts frames since the things appeared."""
    f = back.copy()
    h, w = f.shape[:2]
    for tint, shape, cx, cy, r, turn, vx, vy in placed:
        paint(f, tint, shape, min(max(cx + vx * step, 10), w - 10), min(max(cy + vy * step, 10), h - 10), r, turn)
    if blur:                                                     # as chroma subsampling does
        small = f.reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3))
        f = 0.4 * f + 0.6 * small.repeat(2, 0).repeat(2, 1)
    f += noise * _grain(rng, h, w)
    return np.clip(f, 0, 255).astype(np.uint8)


_GRAIN = np.random.default_rng(0).standard_normal((16, 200, 200, 3), dtype=np.float32)


def _grain(rng, h, w):
    i, y, x = rng.integers(16), rng.integers(201 - h), rng.integers(201 - w)
    return _GRAIN[i, y:y + h, x:x + w]


def background(rng, h, w):
    return np.full((h, w, 3), rng.uniform(95, 150), np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)


# ---------------------------------------------------------------- questions

ASK = {
    "transcribe": ["Transcribe the speech.", "What is said?", "Write down every word you hear."],
    "first_word": ["What is the first word?"],
    "last_word": ["What is the last word?"],
    "heard": ["Is the word {w} spoken?"],
    "screen_at": ["What is shown at second {k}?", "What is on the screen at second {k}?"],
    "count_at": ["How many shapes are shown at second {k}?"],
    "colour_of": ["What colour is the {s}?", "Which colour is the {s}?"],
    "shape_of": ["Which shape is {c}?", "What is {c}?"],
    "when": ["When is the {c} {s} shown?"],
    "word_while": ["Which word is spoken while the {c} {s} is shown?",
                   "What is said when the {c} {s} is on the screen?"],
    "shape_while": ["What is shown while the word {w} is spoken?",
                    "What is on the screen when {w} is said?"],
    "picture": ["What is shown?", "Describe the picture."],
    "count": ["How many shapes are shown?"],
}
SCREEN = ["screen_at", "count_at", "colour_of", "shape_of", "when", "picture", "count"]
CROSS = ["word_while", "shape_while"]
SPEECH = ["transcribe", "first_word", "last_word", "heard"]


def phrase(things):
    """'a red star and a blue circle' in the canonical order of SHAPES, then colour name."""
    things = sorted(things, key=lambda t: (SHAPES.index(t[1]), t[0]))
    return " and ".join(f"{'an' if c[0] == 'o' else 'a'} {c} {s}" for c, s in things) or "nothing"


def ask(kind, rng, **slots):
    return ASK[kind][rng.integers(len(ASK[kind]))].format(**slots)


def text_question(rng):
    """Questions about nothing but words."""
    k = (0, 1, 2, 2, 2, 3, 4)[rng.integers(7)]
    if k == 0:
        i = rng.integers(9)
        return "after", f"Which number comes after {NUMBERS[i]}?", NUMBERS[i + 1]
    if k == 1:
        a, b = rng.integers(5, size=2)
        return "plus", f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", NUMBERS[a + b]
    if k == 2:
        words = " ".join(rng.choice(LEXICON, rng.integers(1, 8)))
        return "repeat", f"Repeat: {words}", words
    if k == 3:
        w = rng.choice(HUES + THINGS + VERBS + NUMBERS)
        group = next(n for n, g in (("colour", HUES), ("thing", THINGS), ("verb", VERBS), ("number", NUMBERS)) if w in g)
        return "kind", f"What kind of word is {w}?", f"a {group}"
    return [("who", "Who are you?", "I am omni-tiny, a very small model for demonstrations."),
            ("hello", "Hello!", "Hello! Show me shapes or say some words."),
            ("what", "What can you do?", "I hear 48 words and see coloured shapes.")][rng.integers(3)]


def questions(rng, words, screen, n):
    """n different questions about a clip: words in order with times, screen[k] per second.

    words: [(word, first sample, last sample)], may be []; screen: list of lists, may be None.
    Each row is (kind, question, answer).
    """
    rows, texts = [], [w for w, _, _ in words]
    kinds = []
    if words:
        kinds += ["first_word", "last_word"] + ["heard"] * (2 if screen is None else 1)
    if screen is not None:
        kinds += ["screen_at"] * 3 + ["count_at", "colour_of", "shape_of"] + ["when"] * 2
        if words:
            kinds += ["word_while"] * 3 + ["shape_while"] * 3
    seen = sorted({t for s in screen or [] for t in s})
    if words:
        rows.append(("transcribe", ask("transcribe", rng), " ".join(texts)))
    for _ in range(6 * n):
        if len(rows) >= n:
            break
        kind, slots, answer = kinds[rng.integers(len(kinds))], {}, None
        if kind == "first_word":
            answer = texts[0]
        elif kind == "last_word":
            answer = texts[-1]
        elif kind == "heard":
            slots["w"] = texts[rng.integers(len(texts))] if rng.random() < 0.5 else LEXICON[rng.integers(48)]
            answer = "yes" if slots["w"] in texts else "no"
        elif kind in ("screen_at", "count_at"):
            slots["k"] = int(rng.integers(len(screen)))
            now = screen[slots["k"]]
            answer = phrase(now) if kind == "screen_at" else NUMBERS[len(now)]
        elif kind == "shape_while":
            w, a, b = words[rng.integers(len(words))]
            slots["w"] = w
            now = screen[min(int((a + b) / 2 / RATE), len(screen) - 1)]
            if texts.count(w) == 1 and a // RATE == (b - 1) // RATE or \
               texts.count(w) == 1 and screen[a // RATE] == screen[min((b - 1) // RATE, len(screen) - 1)]:
                answer = phrase(now)
        elif seen:
            c, s = seen[rng.integers(len(seen))]
            at = [k for k, now in enumerate(screen) if (c, s) in now]
            slots.update(c=c, s=s)
            if kind == "colour_of" and sum(t[1] == s for t in seen) == 1:
                answer = c
            elif kind == "shape_of" and sum(t[0] == c for t in seen) == 1:
                answer = s
            elif kind == "when":
                answer = f"at second {at[0]}"
            elif kind == "word_while":
                said = [w for w, a, b in words if at[0] * RATE <= (a + b) / 2 < (at[-1] + 1) * RATE]
                if len(said) == 1:
                    answer = said[0]
        if answer is not None:
            row = (kind, ask(kind, rng, **slots), answer)
            if all(row[1] != r[1] for r in rows):
                rows.append(row)
    return rows


# ---------------------------------------------------------------- clips

@dataclass
class Clip:
    """wave [n] float32 or None; frames [2 * seconds, h, w, 3] uint8 or None (an image: one frame)."""
    kind: str
    wave: np.ndarray = None
    frames: np.ndarray = None
    words: list = field(default_factory=list)      # (word, first sample, last sample)
    timed: bool = True                             # the times in words are true
    screen: list = None                            # per second, or one entry for an image
    rows: list = field(default_factory=list)       # (kind, question, answer)
    spots: list = None                             # per second: (colour, shape, x, y) of every thing


def twin(rng, pool, order, at):
    """Let the thing at order[at + 1] share the colour or the shape of the one at order[at], by a swap with a later one."""
    c, s = pool[order[at]]
    like = [k for k in range(at + 2, len(order)) if (pool[order[k]][0] == c) != (pool[order[k]][1] == s)]
    if like:
        k = like[rng.integers(len(like))]
        order[[at + 1, k]] = order[[k, at + 1]]


def screen_plan(rng, seconds, most=3, alike=0.0):
    """What is shown in every second: stretches of 1-3 s, each thing in one stretch only. A share `alike` of the scenes with
    two things has them share their colour or their shape."""
    pool = [(c, s) for c in COLOURS for s in SHAPES]
    order, used, plan, t = rng.permutation(len(pool)), 0, [], 0
    while t < seconds:
        d = min(int(rng.choice([1, 1, 2, 2, 3])), seconds - t)
        n = min(int(rng.choice([0, 1, 1, 1, 1, 2, 2, 3])), most)
        if plan and n == 0 and not plan[-1][2]:
            n = 1
        if alike and n > 1 and rng.random() < alike:
            twin(rng, pool, order, used)
        plan.append((t, d, [pool[i] for i in order[used:used + n]]))
        used += n
        if used + 3 > len(pool):
            used = 0
        t += d
    return plan


def make_clip(rng, bank, kind, seconds, n_rows=6):
    """One clip. kind: speech | phrase | video (silent) | av | image | text."""
    if kind == "text":
        return Clip(kind, rows=[text_question(rng) for _ in range(n_rows)])
    if kind == "speech":
        # Half of the sentences to learn from are of few words, said again and again: the word before does not tell the place.
        few = bank.train and rng.random() < 0.5
        wave, words = say(bank, rng, seconds, pool=rng.choice(LEXICON, rng.integers(2, 10)) if few else LEXICON)
        clip = Clip(kind, wave=add_noise(channel(wave, bank, rng), rng), words=words)
        clip.rows = questions(rng, words, None, n_rows)
        return clip
    if kind == "phrase":
        wave, texts = say_phrase(bank, rng)
        clip = Clip(kind, wave=add_noise(channel(wave, bank, rng), rng), words=[(t, 0, 0) for t in texts], timed=False)
        clip.rows = questions(rng, clip.words, None, n_rows)
        return clip
    noise, blur, alike = rng.uniform(0, 5), rng.random() < 0.4, 0.35 if bank.train else 0.0
    if kind == "image":
        h, w = (int(28 * rng.integers(2, 7)) for _ in range(2))
        pool = [(c, s) for c in COLOURS for s in SHAPES]
        n = int(rng.choice([0, 1, 1, 1, 2, 2, 3]))
        order = rng.permutation(len(pool))
        if alike and n > 1 and rng.random() < alike:
            twin(rng, pool, order, 0)
        things = [pool[i] for i in order[:n]]
        placed = place(things, rng, h, w)
        frame = draw(background(rng, h, w), placed, 0, rng, noise, blur)
        clip = Clip(kind, frames=frame[None], screen=[things], spots=[spots(things, placed, 0, h, w)])
        clip.rows = [("picture", ask("picture", rng), phrase(things)),
                     ("count", ask("count", rng), NUMBERS[n])]
        clip.rows += [r for r in questions(rng, [], [things], 8) if r[0] in ("colour_of", "shape_of")]
        return clip
    plan = screen_plan(rng, seconds, alike=alike)
    back, frames, screen, where = background(rng, HEIGHT, WIDTH), [], [], []
    for t, d, things in plan:
        placed = place(things, rng, HEIGHT, WIDTH)
        frames += [draw(back, placed, i, rng, noise, blur) for i in range(FPS * d)]
        screen += [things] * d
        where += [spots(things, placed, FPS * i + 0.5, HEIGHT, WIDTH) for i in range(d)]
    clip = Clip(kind, frames=np.stack(frames), screen=screen, spots=where)
    if kind == "av":
        voice, bend, wave, words = rng.choice(bank.voices), bank.bend(rng), np.zeros(seconds * RATE, np.float32), []
        for t, d, _ in plan:
            n = int(rng.choice([0, 1, 1, 1, 1, 2]) if d == 1 else rng.choice([0, 1, 1, 1, 2, 3]))
            takes = [(LEXICON[i], bank.word(LEXICON[i], voice, rng, bend)) for i in rng.integers(48, size=n)]
            while takes and sum(len(x) + 1600 for _, x in takes) > d * RATE - 1200:
                takes.pop()
            if not takes:
                continue
            free = d * RATE - 1200 - sum(len(x) + 1600 for _, x in takes)
            gaps = np.sort(rng.uniform(0, free, len(takes)))
            at = t * RATE + 600
            for (w, x), g in zip(takes, gaps):
                a = at + int(g)
                wave[a:a + len(x)] += x * rng.uniform(0.5, 1.0)
                words.append((w, a, a + len(x)))
                at += len(x) + 1600
        clip.wave, clip.words = add_noise(channel(wave, bank, rng), rng), words
    clip.rows = questions(rng, clip.words, screen, n_rows)
    return clip


def corpus():
    """Text that covers every phrase of the world; the tokenizer is trained on it."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(3000):
        c, s, w = rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(LEXICON)
        for kind in ASK:
            lines.append(ask(kind, rng, c=c, s=s, w=w, k=int(rng.integers(10))))
        lines += list(text_question(rng)[1:])
        lines += [phrase([(c, s), (rng.choice(list(COLOURS)), rng.choice(SHAPES))]), f"at second {rng.integers(10)}",
                  " ".join(rng.permutation(LEXICON)), w, c, s, "yes", "no", "nothing",
                  "You are a helpful assistant.", "system\n", "user\n", "assistant\n"]
    return lines


# ---------------------------------------------------------------- files

def write_clip(clip, stem):
    """Write stem.mp4, .wav or .png with ffmpeg; returns the media part of a JSONL row."""
    from PIL import Image
    import soundfile
    if clip.kind == "text":
        return {}
    if clip.kind == "image":
        Image.fromarray(clip.frames[0]).save(stem + ".png")
        return {"image": os.path.basename(stem) + ".png"}
    if clip.frames is None:
        soundfile.write(stem + ".wav", clip.wave, RATE, subtype="PCM_16")
        return {"audio": os.path.basename(stem) + ".wav"}
    with tempfile.TemporaryDirectory() as tmp:
        cmd = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s",
               f"{WIDTH}x{HEIGHT}", "-r", str(FPS), "-i", "-"]
        if clip.wave is not None:
            soundfile.write(tmp + "/a.wav", clip.wave, RATE, subtype="PCM_16")
            cmd += ["-i", tmp + "/a.wav", "-c:a", "aac", "-b:a", "96k"]
        cmd += ["-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p", stem + ".mp4"]
        subprocess.run(cmd, input=clip.frames.tobytes(), check=True)
    return {"video": os.path.basename(stem) + ".mp4", "use_audio_in_video": clip.wave is not None}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--bank", default="bank", help="folder of the cached speech")
    p.add_argument("--split", default="test")
    p.add_argument("--n", type=int, default=20, help="clips of each kind")
    p.add_argument("--seconds", type=int, default=8)
    p.add_argument("--seed", type=int, default=7)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    os.makedirs(a.bank, exist_ok=True)
    bank = SpeechBank(a.bank, a.split)
    with open(os.path.join(a.out, "questions.jsonl"), "w") as f:
        for kind in ("av", "video", "speech", "phrase", "image", "text"):
            for i in range(a.n):
                rng = np.random.default_rng([a.seed, i, sum(map(ord, kind))])
                clip = make_clip(rng, bank, kind, a.seconds)
                media = write_clip(clip, os.path.join(a.out, f"{kind}{i:03d}"))
                for what, question, answer in clip.rows:
                    f.write(json.dumps({"clip": f"{kind}{i:03d}", **media, "kind": what,
                                        "question": question, "answer": answer}) + "\n")


if __name__ == "__main__":
    main()
