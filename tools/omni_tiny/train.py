"""train.py - stage 2: the whole model on questions and answers.

One sequence is a media prefix followed by several questions. Attention is masked so that every
question sees the media and itself only, and its positions restart after the media: six
conversations for the price of one prefix. A share of the sequences is a plain many-turn chat.

The loss is taken on answers. While learning, linear heads on a middle layer name, for every media
token, the word spoken, the two words before it, its number in the sentence, the second, and what is on the
screen; they make the alignment emerge in minutes and are thrown away at the end. Two more helps, for a model
that reads its evidence early (docs/quality.md says what they do to a comparison of pruning methods):

* three heads of the layers LOOK are told, at the places that write an answer, which media tokens hold it;
  the other three heads of the layers ASK are told the same at the end of the question's own text;
* in a part of the batches media tokens vanish: some before the decoder, as step 0 of OmniDrop drops them or
  at random, the rest layer by layer on random schedules, those that hold the answer late.

A part of the transcripts is read back with wrong words in it (misremember), so that one slip, or a word that occurs
twice, does not send the model to another place of the sound.

    python -m torch.distributed.run --nproc-per-node 2 train.py --work DIR [--steps 2850]

Two processes of one thread each, which average their gradients: faster than one of two threads. A run
that was stopped goes on from its last checkpoint, DIR/model.run, when it is started again.
"""
import argparse, os, re, time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import model as M
import world
from optim import Optimizer
from train_towers import audio_labels, even, vision_labels

LOOK = (3, 4, 5)                                     # layers whose first three heads are guided where answers are written
ASK = (2, 3, 4, 5)                                   # layers whose other heads are guided at the end of the question
TAP = 2                                              # the middle layer the helping heads read
HEADS = {"word": 49, "before": 49, "before2": 49, "number": 41, "second": 25, "screen": 13}
BF = torch.bfloat16


class Encoder:
    """Text -> ids, remembered."""

    def __init__(self, tok):
        self.tok, self.known = tok, {}

    def __call__(self, text):
        if text not in self.known:
            if len(self.known) > 200000:
                self.known.clear()
            self.known[text] = self.tok.encode(text, add_special_tokens=False).ids
        return self.known[text]


COLOUR = {c: i for i, c in enumerate(world.COLOURS)}
SHAPE = {s: 8 + i for i, s in enumerate(world.SHAPES)}
NO_HELP = -1


def row_help(enc, kind, question, answer, n):
    """What the middle layer should hold at the n places of an answer, in the terms of the media tokens:
    [n, 7]: number of the word to write, word asked about, second asked about, word before the one to write, word before
    that, colour and shape asked about."""
    h = np.full((n, 7), NO_HELP, np.int64)
    if kind in ("transcribe", "repeat"):
        j, words = 0, answer.split()
        for i, w in enumerate(words):
            k = len(enc(w if i == 0 else " " + w))
            if kind == "transcribe":
                h[j:j + k, 0] = min(i + 1, 40)
                h[j:j + k, 3] = world.WORD_ID[words[i - 1]] if i else 0
                h[j:j + k, 4] = world.WORD_ID[words[i - 2]] if i > 1 else 0
            j += k
        if kind == "transcribe":
            h[j:, 0] = min(len(words) + 1, 40)
    elif kind == "first_word":
        h[0, 0] = 1
    elif kind in ("heard", "shape_while"):
        h[:, 1] = world.WORD_ID[re.search(r"word (\w+) |when (\w+) is said", question).group(1) or
                                re.search(r"when (\w+) is said", question).group(1)]
    elif kind in ("screen_at", "count_at"):
        h[:, 2] = int(re.search(r"\d+", question).group())
    elif kind in ("when", "word_while", "colour_of", "shape_of"):
        words = re.findall(r"\w+", question)
        h[0, 5] = next((COLOUR[w] for w in words if w in COLOUR), NO_HELP)
        h[0, 6] = next((SHAPE[w] for w in words if w in SHAPE), NO_HELP)
    return h


def evidence(clip, kind, second, rows):
    """For every row the media tokens that hold its answer: lists of (layer, place in the answer or None for
    all places, token indices). Layer 4 finds it; questions across the modalities take two steps:
    thing -> its second (3) -> word (4), or word -> its second (4) -> things (5)."""
    audio, video = np.flatnonzero(kind == 1), np.flatnonzero(kind == 2)
    said = audio_labels(clip, len(audio)) if len(audio) and clip.timed else np.zeros(len(audio), np.int64)
    seen = vision_labels(clip).reshape(-1, 2) if len(video) else np.zeros((0, 2), np.int64)
    out = []
    for what, question, _ in rows:
        e = []
        words = re.findall(r"\w+", question)
        if len(audio) and clip.timed and what in ("transcribe", "first_word", "last_word"):
            each = [audio[max(0, (a + 320) // 640):(b + 320) // 640] for _, a, b in clip.words]
            e = [(4, j, t) for j, t in enumerate(each)] if what == "transcribe" else \
                [(4, 0, each[0 if what == "first_word" else -1])]
        elif len(audio) and clip.timed and what in ("heard", "shape_while"):
            w = re.search(r"word (\w+) |when (\w+) is said", question)
            here = audio[said == world.WORD_ID[w.group(1) or w.group(2)]]
            e = [(4, None, here)]
            if what == "shape_while" and len(here):
                now = np.isin(second[video], second[here])
                e.append((5, None, video[now & (seen[:, 0] > 0)] if (now & (seen[:, 0] > 0)).any() else video[now]))
        elif len(video) and what in ("screen_at", "count_at"):
            now = second[video] == int(re.search(r"\d+", question).group())
            e = [(4, None, video[now & (seen[:, 0] > 0)] if (now & (seen[:, 0] > 0)).any() else video[now])]
        elif len(video) and what in ("when", "colour_of", "shape_of", "word_while"):
            c = next((COLOUR[w] + 1 for w in words if w in COLOUR), None)
            s = next((SHAPE[w] - 7 for w in words if w in SHAPE), None)
            hit = (seen[:, 0] == c if c else True) & (seen[:, 1] == s if s else True)
            e = [(4, None, video[hit])]
            if what == "word_while":
                e = [(3, None, video[hit]), (4, None, audio[(said > 0) & np.isin(second[audio], second[video[hit]])])]
        out.append([x for x in e if len(x[2])])
    return out


def asked(clip, held):
    """The same for the end of a question's own text: lists of (layer, head, token indices). A question of two steps looks for
    both, its first step alone in the first layer."""
    first = np.concatenate([t for l, _, t in held if l == min(x[0] for x in held)]) if held else np.zeros(0, int)
    last = np.concatenate([t for l, _, t in held if l == max(x[0] for x in held)]) if held else first
    return [(l, h, first if h == 3 or l == ASK[0] else last) for l in ASK for h in (3, 4, 5)] if held else []


_PREFIX = {}


def prefix(tok, n_audio, grid, image):
    key = (n_audio, grid, image)
    if key not in _PREFIX:
        if len(_PREFIX) > 2000:
            _PREFIX.clear()
        p = M.Prompt(tok, n_audio, grid, image)
        _PREFIX[key] = [np.array(x) for x in (p.ids, p.pos, p.kind, p.second)] + [p.next]
    return _PREFIX[key]


def misremember(enc, ids, rng, share=0.12):
    """The transcript as a reader of its own mistakes sees it: some of its words are others (any, or of the same transcript), or a run
    of words is one from elsewhere in it, as a reader has written who took one of two equal words for the other. What is to be
    written stays the truth, so the place in the sound has to come from more than the last words."""
    *out, end = ids
    how = rng.random()
    if how < 0.4 and len(out) > 4:
        for _ in range(1 + len(out) // 16):
            n = int(rng.integers(1, min(8, len(out) - 1)))
            to, of = (int(rng.integers(len(out) - n + 1)) for _ in range(2))
            out[to:to + n] = ids[of:of + n]
        return out + [end]
    words = [enc(" " + w)[0] for w in world.LEXICON] if how < 0.7 else ids[:-1]
    return [words[rng.integers(len(words))] if rng.random() < share else i for i in out] + [end]


def sequence(enc, clip, chat=False, rng=None):
    """With rng, some transcripts are misremembered. ids [n], pos [n, 3], seg [n] (0 = prefix), kind, second, target [n] (-100 = no
    loss), weight [n], row [n] (number of the question, -1 elsewhere), true [n] (0 in a misremembered transcript)."""
    n_audio = 0 if clip.wave is None else M.n_audio_tokens(-(-len(clip.wave) // 160))
    grid = None if clip.frames is None else \
        (max(1, len(clip.frames) // 2), clip.frames.shape[1] // 14, clip.frames.shape[2] // 14)
    ids, pos, kind, second, first = prefix(enc.tok, n_audio, grid, clip.kind == "image")
    seg, target, weight, row, true = ([v] * len(ids) for v in (0, -100, 0.0, -1, 1))
    none = lambda n: np.full((n, 7), NO_HELP, np.int64)
    hints = [none(len(ids))]
    more, at = [], first
    held, proof, search, lives = evidence(clip, kind, second, clip.rows), [], [], []
    for k, (what, question, answer) in enumerate(clip.rows):
        q = enc(question + "<|im_end|>\n<|im_start|>assistant\n")
        if chat and k:
            q = enc("\n<|im_start|>user\n") + q
        a = enc(answer) + [M.ID["<|im_end|>"]]
        if not chat:
            at = first
        slip = rng is not None and what == "transcribe" and rng.random() < 0.6
        said = misremember(enc, a, rng) if slip else a
        more += [(i, at + j) for j, i in enumerate(q + said)]
        at += len(q) + len(a)
        seg += [0 if chat else k + 1] * (len(q) + len(a))
        start = len(seg) - 1 - len(a)                       # the place that writes the first token of the answer
        end = start - len(enc("<|im_end|>\n<|im_start|>assistant\n"))                    # the last token of the question
        search += [(l, h, r, t) for l, h, t in asked(clip, held[k]) for r in (end - 1, end)]
        lives.append((start + 1 - len(q), len(seg), np.concatenate([t for _, _, t in held[k]] or [np.zeros(0, int)])))
        for layer, j, tokens in held[k]:
            proof += [(layer, start + (i if j is None else j), tokens) for i in (range(len(a)) if j is None else (0,))]
        row += [-1] * (len(q) - 1) + [k] * len(a) + [-1]
        target += [-100] * (len(q) - 1) + a + [-100]
        weight += [0.0] * (len(q) - 1) + [len(a) ** -0.5] * len(a) + [0.0]
        true += [1] * len(q) + [1 - slip] * len(a)
        help_ = row_help(enc, what, question, answer, len(a))
        wrong = np.array(said) != np.array(a)                                           # the true word before stands nowhere
        help_[1:][wrong[:-1], 3] = help_[2:][wrong[:-2], 4] = NO_HELP
        hints += [none(len(q) - 1), help_, none(1)]
    m = np.array(more)
    pad = np.zeros(len(m), np.int64)
    return dict(proof=proof, search=search, lives=lives, ids=np.concatenate([ids, m[:, 0]]), pos=np.concatenate([pos, np.repeat(m[:, 1:], 3, 1)]),
                kind=np.concatenate([kind, pad]), second=np.concatenate([second, pad - 1]), seg=np.array(seg),
                hint=np.concatenate(hints), target=np.array(target), weight=np.array(weight, np.float32), row=np.array(row),
                true=np.array(true))


def by_row(search, layer):
    """[(row, {head: tokens})] of the guided rows of questions in one layer."""
    rows = {}
    for l, h, at, t in search:
        if l == layer:
            rows.setdefault(at, {})[h - 3] = t
    return list(rows.items())


def padded(points, heads, S):
    """Rows [B, R], whether a row is one [B, R], and what it should see [B, heads, R, S]; None without any."""
    R = max(map(len, points))
    if R == 0:
        return None
    at, ok = np.zeros((len(points), R), np.int64), np.zeros((len(points), R), np.float32)
    on = np.zeros((len(points), heads, R, S), bool)
    for i, rows in enumerate(points):
        for j, (row, seen) in enumerate(rows):
            at[i, j], ok[i, j] = row, 1
            for h, t in seen.items():
                on[i, h, j, t] = True
    return torch.from_numpy(at), torch.from_numpy(ok), torch.from_numpy(on)


def collate(enc, clips, chat=False, rng=None):
    rows = [sequence(enc, c, chat, rng) for c in clips]
    S = -(-max(len(r["ids"]) for r in rows) // 32) * 32            # few shapes: oneDNN compiles each one
    fill = dict(hint=NO_HELP, ids=M.ID["<|endoftext|>"], pos=0, kind=0, second=-1, seg=-1, target=-100, weight=0, row=-1, true=1)
    out = {}
    for k, v in fill.items():
        x = np.full((len(rows), S) + rows[0][k].shape[1:], v, rows[0][k].dtype)
        for y, r in zip(x, rows):
            y[:len(r[k])] = r[k]
        out[k] = torch.from_numpy(x)
    out["guide"] = {}
    for layer in sorted(set(LOOK + ASK)):
        out["guide"][layer] = (padded([[(at, {0: t}) for l, at, t in r["proof"] if l == layer] for r in rows], 1, S),
                               padded([by_row(r["search"], layer) for r in rows], 3, S))
    out["lives"] = [r["lives"] for r in rows]
    seg = out["seg"]
    see = ((seg[:, None, :] == 0) | (seg[:, None, :] == seg[:, :, None])) & \
        torch.ones(S, S, dtype=torch.bool).tril() & (seg[:, None, :] >= 0)
    see |= torch.eye(S, dtype=torch.bool)
    out["mask"] = torch.zeros(see.shape, dtype=BF).masked_fill_(~see, -1e9)[:, None]
    return out


def features(p, clips, grad, saliency=None):
    """Audio rows and vision rows of all clips, in order. A list `saliency` receives that of the audio tokens of every clip."""
    with torch.set_grad_enabled(grad):
        audio = vision = None
        if clips[0].wave is not None:
            mel, L = M.log_mel([c.wave for c in clips])
            audio = M.audio_tower(p, mel, L, BF, want_attention=saliency is not None)
            if saliency is not None:
                audio, sal = audio
                saliency += [x.detach().float().numpy() for x in sal]
            audio = torch.cat(audio)
        if clips[0].frames is not None:
            parts = []
            same = len({c.frames.shape for c in clips}) == 1
            for group in [clips] if same else [[c] for c in clips]:
                f = torch.from_numpy(np.stack([even(c.frames) for c in group]))
                parts.append(M.vision_tower(p, M.patches(f), f.shape[2] // 14, f.shape[3] // 14, BF).flatten(0, 1))
            vision = torch.cat(parts)
    return audio, vision


def embed(p, b, audio, vision):
    x = F.embedding(b["ids"], p["model.embed_tokens.weight"])
    if audio is not None:
        x = x.masked_scatter((b["kind"] == 1)[..., None], audio)
    if vision is not None:
        x = x.masked_scatter((b["kind"] == 2)[..., None], vision)
    return x


def helping_loss(p, mid, b, clips):
    """Loss of the heads on the middle layer."""
    on = b["kind"] > 0
    if not bool(on.any()):
        return 0.0
    mid = 8 * M.rms(mid, 1.0)
    head = lambda h, name: F.linear(h, p["head." + name]).float()
    loss = F.cross_entropy(head(mid[on], "second"), b["second"][on].clamp(max=24))
    for i, name in enumerate(("number", "word", "second", "before", "before2")):  # the same heads read the text
        at = b["hint"][..., i] >= 0
        if bool(at.any()):
            loss = loss + F.cross_entropy(head(mid[at], name), b["hint"][..., i][at].clamp(max=HEADS[name] - 1))
    at = (b["hint"][..., 5:] >= 0).any(-1)
    if bool(at.any()):
        y = torch.zeros(int(at.sum()), 14).scatter_(1, b["hint"][..., 5:][at].clamp(min=-1) % 14, 1.0)[:, :13]
        loss = loss + 2 * F.binary_cross_entropy_with_logits(head(mid[at], "screen"), y)
    if clips[0].frames is not None:
        v = np.concatenate([vision_labels(c).reshape(-1, 2) for c in clips])
        y = np.zeros((len(v), 22), np.float32)
        y[np.arange(len(v)), np.where(v[:, 0] > 0, v[:, 0] - 1, 21)] = 1
        y[np.arange(len(v)), np.where(v[:, 1] > 0, v[:, 1] + 7, 21)] = 1
        loss = loss + 2 * F.binary_cross_entropy_with_logits(head(mid[b["kind"] == 2], "screen"), torch.from_numpy(y[:, :13]))
    if clips[0].wave is not None and clips[0].timed:
        audio = b["kind"] == 1
        n = audio.sum(1).tolist()
        h = mid[audio]
        word = torch.from_numpy(np.concatenate([audio_labels(c, k) for c, k in zip(clips, n)]))
        place = []                                                # number of the word, the word before it, the one before that
        for c, k in zip(clips, n):
            y = np.zeros((3, k), np.int64)
            for j, (w, s, e) in enumerate(c.words):
                y[0, max(0, (s + 320) // 640):] = min(j + 1, 40)
                y[1, (e + 320) // 640:] = world.WORD_ID[w]
                y[2, (e + 320) // 640:] = world.WORD_ID[c.words[j - 1][0]] if j else 0
            place.append(y)
        loss = loss + F.cross_entropy(head(h, "word"), word)
        for name, y in zip(("number", "before", "before2"), torch.from_numpy(np.concatenate(place, 1))):
            loss = loss + F.cross_entropy(head(h, name), y)
        if clips[0].screen is not None:
            y = np.zeros((len(clips), n[0], 13), np.float32)
            for c, t in zip(clips, y):
                for k, things in enumerate(c.screen):
                    for colour, shape in things:
                        t[25 * k:25 * k + 25, [list(world.COLOURS).index(colour), 8 + world.SHAPES.index(shape)]] = 1
            z = F.linear(h, p["head.screen"]).float()
            loss = loss + 2 * F.binary_cross_entropy_with_logits(z, torch.from_numpy(y).flatten(0, 1))
    return loss


def guide(qk, b):
    """The guided heads should look at the evidence: where answers are written -log of the attention that falls on it, at the
    end of a question the cross-entropy to an even share of it (so that pruning by those rows keeps all of it)."""
    loss = []
    for first, weight in ((0, 1.0), (3, 0.5)):
        total, n = 0.0, 0.0
        for layer, sides in b["guide"].items():
            side = sides[first // 3]
            if side is None:
                continue
            at, ok, on = side
            q, k = qk[layer]
            q = q[:, first:first + 3].gather(2, at[:, None, :, None].expand(-1, 3, -1, q.shape[-1]))
            z = (q @ k[:, first // 3, None].transpose(2, 3)).float() / q.shape[-1] ** 0.5
            z = (z + b["mask"][:, 0].gather(1, at[:, :, None].expand(-1, -1, k.shape[2]))[:, None]).log_softmax(-1)
            if first == 0:
                z = torch.logsumexp(z.masked_fill(~on, -1e9), -1)
            else:
                m = on.float()
                size = m.sum(-1).clamp(min=1)
                z = (z.clamp(min=-30) * m).sum(-1) / size + size.log()
            total = total - (z * ok[:, None]).sum()
            n += 3 * float(ok.sum())
        loss.append(weight * total / max(n, 1))
    return loss[0] + loss[1]


def step0(rng, kind, second, saliency, vision):
    """bool [media]: what OmniDrop's step 0 keeps (audio saliency 0.7, temporal merging over groups of four steps at 0.2)."""
    keep = np.ones(len(kind), bool)
    audio, video = np.flatnonzero(kind == 1), np.flatnonzero(kind == 2)
    if len(audio):
        keep[audio[np.argsort(saliency, kind="stable")[:len(audio) - int(0.7 * len(audio))]]] = False
    if len(video) and second[video].max() > 0:
        t = second[video].max() + 1
        x = F.normalize(vision.view(t, len(video) // t, -1), dim=-1)
        m = int(0.2 * x.shape[1])
        for k in range(t):
            if k % 4:
                sim = (x[k] * x[k - (2 if k % 4 == 2 else 1)]).sum(-1).numpy()
                keep[video[k * x.shape[1] + np.argsort(-sim, kind="stable")[:x.shape[1] - m]]] = False
    return keep


def vanish(rng, b, saliency, vision):
    """Masks of every layer with media tokens that vanish: [B, 1, S, S] each. At the entry for everybody; layer by layer for each
    question by itself (the media rows go on reading what questions have lost, which costs nothing and is near enough)."""
    L = M.TEXT["num_hidden_layers"]
    masks, at = [b["mask"].clone() for _ in range(L)], 0            # b["mask"] stays: the guide's, with all of the media
    entry = rng.choice(["all", "step0", "random"], p=[0.4, 0.4, 0.2])
    for i, lives in enumerate(b["lives"]):
        kind, second = b["kind"][i].numpy(), b["second"][i].numpy()
        media = np.flatnonzero(kind > 0)
        keep = np.ones(len(media), bool)
        n_video = int((kind == 2).sum())
        if entry == "step0":
            keep = step0(rng, kind[media], second[media], saliency[i] if saliency else None,
                         None if vision is None else vision[at:at + n_video])
        elif entry == "random":
            keep = rng.random(len(media)) < rng.uniform(0.5, 1.0)
        at += n_video
        gone = torch.zeros(b["mask"].shape[-1], dtype=torch.bool)
        gone[torch.from_numpy(media[~keep])] = True
        here = media[keep]
        if gone.any():
            hide = gone & ~torch.eye(len(gone), dtype=torch.bool)
            for m in masks:
                m[i, 0].masked_fill_(hide, -1e9)
        for start, end, proof in lives:
            middle, last = rng.uniform(2.0, 7.0), rng.uniform(0.3, 0.9)
            rate = [last / (1 + np.exp(-20 * (l - middle) / L)) for l in range(L)]
            rank = rng.random(len(here)) - (2.0 if rng.random() < 0.8 else 0.0) * np.isin(here, proof)
            order, n = here[np.argsort(rank)], len(here)
            for l in range(L - 1):
                n -= int(rate[l] * n)
                masks[l + 1][i, 0, start:end, torch.from_numpy(order[n:].copy())] = -1e9
    return masks


class Ladder:
    """The longest clip in use for a kind grows while transcripts (or, without speech, answers) are right, and in any case
    along a straight line of the run from a quarter to two thirds of it."""

    def __init__(self, top, most, goal=0.3):
        self.first = self.top = top
        self.most, self.goal = most, goal

    def learn(self, seconds, loss, frac):
        if seconds > 0.6 * self.top:
            self.top = min(self.most, self.top + 0.25) if loss < self.goal else max(self.first, self.top - 0.04)
        self.top = max(self.top, self.first + (self.most - self.first) * min(1, (frac - 0.25) / 0.42))


KINDS = ["av", "speech", "phrase", "video", "image", "text"]
SHARES = [0.42, 0.25, 0.07, 0.11, 0.06, 0.09]


def draw_batch(rng, own, bank, ladder, budget):
    """A batch of clips of one kind, not longer than the ladder says: kind and length from `rng`, which both processes share,
    the clips from `own`; returns clips, seconds."""
    kind = rng.choice(KINDS, p=SHARES)
    if kind == "text":
        return [world.make_clip(own, bank, kind, 0, 8) for _ in range(24)], 0
    if kind == "image":
        return [world.make_clip(own, bank, kind, 0, 4) for _ in range(24)], 0
    top = ladder["av" if kind == "av" else "video" if kind == "video" else "speech"].top
    long = kind == "speech" and rng.random() < 0.35             # among many words the place of the next is hard to find
    secs = int(rng.uniform(0.7 * top if long else 2, top + 1))
    tokens = {"av": 37 * secs + 210, "video": 12 * secs + 210, "speech": 25 * secs + 110, "phrase": 210}[kind]
    rows = {"av": 12, "video": 10, "speech": 6, "phrase": 5}[kind]
    n = max(4, int(budget / tokens))
    return [world.make_clip(own, bank, kind, secs, rows) for _ in range(n)], secs


@torch.no_grad()
def forced(p, enc, clips, batch=16):
    """Teacher-forced check: kind -> (exact answers, answers), and words wrong / words of transcripts."""
    right, wrong, total = {}, 0, 0
    for i in range(0, len(clips), batch):
        part = clips[i:i + batch]
        b = collate(enc, part)
        h = M.decoder(p, embed(p, b, *features(p, part, False)), b["pos"].transpose(1, 2), b["mask"])
        ok = F.linear(h, p["lm_head.weight"]).argmax(-1) == b["target"]
        for j, c in enumerate(part):
            for k, (kind, _, _) in enumerate(c.rows):
                hit = ok[j][b["row"][j] == k]
                r = right.setdefault(kind, [0, 0])
                r[0] += bool(hit.all()); r[1] += 1
                if kind == "transcribe":
                    wrong += int((~hit).sum()); total += len(hit)
    return right, wrong, total


def test_clips(bank, n, seconds, kind, seed=99):
    return [world.make_clip(np.random.default_rng([seed, i, sum(map(ord, kind))]), bank, kind, seconds, 6) for i in range(n)]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--work", required=True)
    a.add_argument("--steps", type=int, default=2850)
    a.add_argument("--longest", type=float, default=3.0, help="seconds of the longest clips at the start")
    a.add_argument("--most", default="13,19,12", help="seconds of the longest films, sounds and silent films ever")
    a.add_argument("--open-towers", type=float, default=0.4, help="towers learn too from here on")
    a.add_argument("--budget", type=int, default=4500, help="tokens in a batch of one process; two thirds of it in the first 30 %%")
    a.add_argument("--vanish", type=float, default=0.3, help="share of the batches whose media tokens vanish, once answers come")
    a.add_argument("--muon", type=float, default=0.012)
    a.add_argument("--seed", type=int, default=21)
    a.add_argument("--check", type=int, default=300, help="steps from one look at held-out clips to the next")
    a = a.parse_args()
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.set_num_threads(2 if ranks == 1 else 1)
    torch.set_flush_denormal(True)
    if ranks > 1:
        dist.init_process_group("gloo")
    path = lambda n: os.path.join(a.work, n)
    bank, test, voices = (world.SpeechBank(path("bank"), s) for s in ("train", "test", "voices"))
    enc = Encoder(M.tokenizer(path("tokenizer.json"), None if os.path.exists(path("tokenizer.json")) else world.corpus()))
    params = M.init_params()
    params.update({n: x for n, x in torch.load(path("towers.pt")).items() if not n.startswith("head")})
    for i, (n, size) in enumerate(HEADS.items()):
        params["head." + n] = torch.randn(size, M.TEXT["hidden_size"], generator=torch.Generator().manual_seed(i)) * 0.02
    for x in params.values():
        x.requires_grad_(True)
    tower = {n: x for n, x in params.items() if n.startswith(("audio_tower", "visual"))}
    flat = list(params.values())
    opts = [Optimizer({n: x for n, x in params.items() if n not in tower}, muon_lr=a.muon),
            Optimizer(tower, muon_lr=a.muon / 6, adam_lr=3e-4)]
    ladder = {k: Ladder(a.longest, float(m)) for k, m in zip(("av", "speech", "video"), a.most.split(","))}
    step, spent, cpu = 0, 0.0, 0.0
    if os.path.exists(path("model.run")):
        z = torch.load(path("model.run"), weights_only=False)
        with torch.no_grad():
            for n, x in params.items():
                x.copy_(z["params"][n])
        for o, state in zip(opts, z["opts"]):
            o.load(state)
        for k, top in z["ladder"].items():
            ladder[k].top = top
        step, spent, cpu = z["step"], z["spent"], z["cpu"]
    held = [(f"{k} {s}" + (" new" if b is voices else ""), test_clips(b, 16, s, k)) for b, k, s in (
        (test, "av", 8), (test, "speech", 10), (test, "av", 12), (test, "speech", 18), (voices, "speech", 8), (test, "video", 8),
        (test, "phrase", 8), (test, "image", 8), (test, "text", 8))]
    began, own_began, seen, log = time.time() - spent, time.process_time() - cpu, 0, []
    first, started = step, time.time()

    def save():
        if rank == 0:
            torch.save(dict(params={n: x.detach() for n, x in params.items()}, opts=[o.state() for o in opts],
                            ladder={k: v.top for k, v in ladder.items()}, step=step, spent=time.time() - began,
                            cpu=time.process_time() - own_began), path("model.run.new"))
            os.replace(path("model.run.new"), path("model.run"))

    def look():
        p = {n: x.detach().to(BF) for n, x in params.items()}
        for name, clips in held[rank::ranks]:
            r, wrong, total = forced(p, enc, clips)
            print(f"   {name}: " + " ".join(f"{k} {v[0]}/{v[1]}" for k, v in r.items()) +
                  (f" | tokens wrong {wrong / total:.3f}" if total else ""), flush=True)

    while step < a.steps:
        frac = step / a.steps
        rng, own = np.random.default_rng([a.seed, step]), np.random.default_rng([a.seed, step, rank + 1])
        clips, secs = draw_batch(rng, own, bank, ladder, a.budget if frac > 0.3 else a.budget * 2 // 3)
        chat, fade = rng.random() < 0.12, rng.random() < a.vanish
        fade = fade and not chat and frac > 0.12 and clips[0].kind in ("av", "speech", "phrase", "video")
        b = collate(enc, clips, chat, own if frac > 0.2 else None)
        grad = frac > a.open_towers
        p = {n: x.to(BF) for n, x in params.items()}
        saliency = [] if fade and clips[0].wave is not None else None
        audio, vision = features(p, clips, grad, saliency)
        mask = vanish(own, b, saliency, None if vision is None else vision.detach().float()) if fade else b["mask"]
        h, mid, qk = M.decoder(p, embed(p, b, audio, vision), b["pos"].transpose(1, 2), mask, TAP, sorted(set(LOOK + ASK)))
        on = (b["target"] >= 0).flatten().nonzero()[:, 0]
        n_on = len(on)
        on = torch.cat([on, on[:1].expand(-len(on) % 256)])
        w = b["weight"].flatten()[on]
        w[n_on:] = 0
        ce = F.cross_entropy(F.linear(h.flatten(0, 1)[on], p["lm_head.weight"]).float(),
                             b["target"].flatten()[on], reduction="none")
        loss = (ce * w).sum() / w.sum()
        spoken = ((b["hint"][..., 0] > 0) & (b["true"] > 0)).flatten()[on] & (w > 0)
        heard = float(ce.detach()[spoken].mean()) if clips[0].wave is not None and bool(spoken.any()) else loss.item()
        helped = helping_loss(p, mid, b, clips)
        guided = guide(qk, b)
        (loss + 0.3 * max(0.1, 1 - frac) * (helped + guided)).backward()
        if ranks > 1:
            both = torch.cat([(x.grad if x.grad is not None else torch.zeros_like(x)).flatten() for x in flat]
                             + [torch.tensor([heard])])
            dist.all_reduce(both)
            heard, i = float(both[-1]) / ranks, 0
            for x in flat:
                x.grad = both[i:i + x.numel()].view_as(x) / ranks
                i += x.numel()
        scale = min(1, (step + 1) / 100) * min(1, max(0.02, 1.7 * (1 - frac)))
        for o in opts[:1 + grad]:
            o.step(scale)
        for x in flat:
            x.grad = None
        if clips[0].kind in ladder and not fade:
            ladder[clips[0].kind].learn(secs, heard, frac)
        log.append((clips[0].kind + ("-" if fade else ""), loss.item(), float(torch.as_tensor(helped).detach()),
                    float(torch.as_tensor(guided).detach()), heard))
        seen += b["ids"].numel()
        step += 1
        if step % 50 == 0 and rank == 0:
            mean = lambda i: " ".join(f"{k} {np.mean([l[i] for l in log if l[0] == k]):.3f}" for k in sorted({l[0] for l in log}))
            print(f"{(time.time() - began) / 60:5.1f} min step {step} tok/s {ranks * seen / (time.time() - started):.0f} s/step "
                  f"{(time.time() - started) / (step - first):.2f} | {mean(1)} | heard {mean(4)} | help {mean(2)} | guide {mean(3)}"
                  f" | longest " + " ".join(f"{k} {v.top:.1f}" for k, v in ladder.items()), flush=True)
            log = []
        if step % 100 == 0:
            save()
        if step % a.check == 0 or step == a.steps:
            look()
    save()
    if rank == 0:
        torch.save({n: x.detach() for n, x in params.items()}, path("model.pt"))
        print(f"end: {(time.time() - began) / 60:.1f} minutes, {ranks} x {(time.process_time() - own_began) / 60:.1f} of a core")


if __name__ == "__main__":
    main()
